"""What the tokenizer learnt: collisions, use of the codes, drift between its epochs, and a map of the items."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from data.token_table import read_sem_ids, resolve_groups
from reporting.page import PIECES, Section
from reporting.pictures import (
    COLOURS,
    DASHES,
    MARKERS,
    Picture,
    by_epoch,
    draw_lines,
    drawable,
    line_picture,
    picture,
    short,
)
from reporting.report_data import PAPER, ReportData
from tokenizer.quality import drift, tokenizer_quality
from utils.files import read_json

MAP_ITEMS = 1200  # as many as stay apart in a picture
RQVAE_EPOCH = "epoch of the RQ-VAE"


def tokenizer_section(data: ReportData) -> Section:
    """Return what is known of the chosen tokenizer and of its neighbours in training."""
    run, codes = data.run, data.codes
    lead = (
        f"The last epochs of an RQ-VAE are the tokenizers; this run is tested with {run.labels[run.chosen]}. A good "
        "one uses all codes about equally and lets few items collide, that is, share all but the disambiguation code."
    )
    if codes is None:
        return Section("Tokenizer", lead, ["The semantic IDs that it was trained with are no longer there."])
    sizes = data.level_sizes[:-1]
    folder = (run.dataset_folder / run.tokenizer["prefix"]).parent
    report, record = quality_report(data, folder, sizes), folder / "metrics.jsonl"
    lines = map(json.loads, record.read_text().splitlines() if record.is_file() else [])
    history = [line for line in lines if "codes_used" in line]
    found = training_pictures(history, sizes) if history else []
    found += [usage_picture(codes[:, :-1], sizes), perplexity_picture(report["tokenizers"], sizes)]
    if report["drift"]:
        by_gap = {int(gap): values for gap, values in report["drift"].items()}
        found.append(drift_picture(by_gap, run.settings["dataset"]))
    embeddings = _embeddings(data)
    if embeddings is not None:
        found.append(map_picture(embeddings, codes[:, 0], data.texts, run.settings["rand_seed"]))
    return Section("Tokenizer", lead, [*_level_table(codes[:, :-1], sizes), found])


def quality_report(data: ReportData, folder: Path, sizes: Sequence[int]) -> dict[str, Any]:
    """Return the quality report that export wrote; for published semantic IDs the same of all epochs that are there."""
    if (folder / "quality.json").is_file():
        return read_json(folder / "quality.json")
    run, names = data.run, data.interactions.item_names[1:]
    groups = resolve_groups(run.dataset_folder, run.tokenizer["prefix"], suffix=run.settings["token_suffix"])
    found = {
        group.epoch: read_sem_ids(group.file, names, data.level_sizes) for group in groups if group.epoch is not None
    }
    qualities = {str(epoch): tokenizer_quality(codes[:, :-1], sizes) for epoch, codes in found.items()}
    return {"tokenizers": qualities, "drift": drift(found)}


def _embeddings(data: ReportData) -> np.ndarray | None:
    """Return the text embeddings that the tokenizer's name points to, float32 [N, E], if they are there."""
    encoder = Path(data.run.tokenizer["prefix"]).name.rsplit("_", 1)[0]
    file, items = data.run.dataset_folder / f"{encoder}.sent_emb", len(data.texts)
    if not file.is_file() or file.stat().st_size % (4 * items):
        return None
    return np.fromfile(file, dtype="<f4").reshape(items, -1)


def _level_table(codes: np.ndarray, sizes: Sequence[int]) -> list[str]:
    quality = tokenizer_quality(codes, sizes)
    columns = zip(quality["codes_used"], sizes, quality["perplexity"], codes.T, strict=True)
    rows = [
        [f"level {level}", f"{used:,} of {size:,}", f"{perplexity:.1f}", f"{np.bincount(own).max() / len(own):.1%}"]
        for level, (used, size, perplexity, own) in enumerate(columns)
    ]
    head = ["", "codes in use", "perplexity (all equal: number of codes)", "items with the most frequent code"]
    sentence = (
        f"{quality['collision_rate']:.1%} of the items collide with another; the largest group has "
        f"{quality['largest_group']} items."
    )
    return [PIECES.table(head, rows), sentence]


def training_pictures(history: list[dict], sizes: Sequence[int]) -> list[Picture]:
    """Return collisions and used codes over the tokenizer's training."""
    rates, (epochs, used) = {"": by_epoch(history, "collision_rate")}, by_epoch(history, "codes_used")
    shares = {f"level {i}": (epochs, [codes[i] / size for codes in used]) for i, size in enumerate(sizes)}
    rate_caption = "Share of training items that share all codebook codes with another item."
    code_caption = "Share of each level's codes that some item has; a level far below the top is wasted."
    return [
        line_picture("collisions", "Collision rate", rate_caption, rates, RQVAE_EPOCH, ylim=(0, 1), percent=True),
        line_picture("codes", "Codes in use", code_caption, shares, RQVAE_EPOCH, ylim=(0, 1.03), percent=True),
    ]


def usage_picture(codes: np.ndarray, sizes: Sequence[int]) -> Picture:
    """Return how many items have each code: int [N, L] without disambiguation."""

    def draw(axes: Axes) -> None:
        for level, size in enumerate(sizes):
            counts = np.sort(np.bincount(codes[:, level], minlength=size))[::-1]
            used = counts[counts > 0]
            style = {"color": COLOURS[level % 8], "linestyle": DASHES[level % 8]}
            axes.plot(np.arange(1, len(used) + 1), used, drawstyle="steps-mid", label=f"level {level}", **style)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.set_xlabel("code, by frequency")
        axes.set_ylabel("items")

    caption = "Each level's codes from the most to the least frequent; flat and long is good."
    return picture("usage", "Items per code", caption, draw)


def perplexity_picture(tokenizers: dict[str, dict], sizes: Sequence[int]) -> Picture:
    """Return the perplexity of each level's codes over the kept epochs."""
    kept = {int(name): quality["perplexity"] for name, quality in tokenizers.items() if name.isdigit()}
    lines = {f"level {i}": (list(kept), [values[i] for values in kept.values()]) for i in range(len(sizes))}
    caption = "How many codes would, used equally often, be as varied as those in use: the number of codes at best."
    ylim = (0, max(sizes) * 1.03)
    return line_picture("perplexity", "Perplexity of the kept epochs", caption, lines, RQVAE_EPOCH, ylim=ylim)


def drift_picture(found: dict[int, dict[str, float]], dataset: str) -> Picture:
    """Return how many items change their tokens between two epochs, beside the paper's Table 5."""
    published = PAPER["table_5"]
    beside = [published[dataset]] if dataset in published else published.values()

    def draw(axes: Axes) -> None:
        for number, shares in enumerate(beside):
            for kind, dashes in (("any", "-"), ("first", "--")):
                label = f"{kind} token (paper)" if number == 0 else None
                values = [of_gap[kind] for of_gap in shares.values()]
                axes.plot(list(shares), values, color="#AAAAAA", linestyle=dashes, linewidth=1, label=label)
        gaps = list(found)
        lines = {f"{kind} token": (gaps, [found[gap][kind] for gap in gaps]) for kind in ("any", "first")}
        draw_lines(axes, lines, "epochs between two tokenizers")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:.0%}")

    caption = "Neighbours should agree on most first tokens and differ in some others; grey: the paper's Table 5."
    return picture("drift", "Semantic IDs that differ between epochs", caption, draw)


def map_picture(embeddings: np.ndarray, first_codes: np.ndarray, texts: list[str], seed: int) -> Picture:
    """Return items in two dimensions, with their texts as tooltips; `seed` decides which, at most MAP_ITEMS.

    Embeddings are float32 [N, E], the codes those of level 0, int [N].
    """
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(texts))[:MAP_ITEMS])
    points = embeddings[rows].astype(np.float64)
    points = PCA(min(30, *points.shape), random_state=seed).fit_transform(points)
    if len(rows) > 60:  # t-SNE needs some neighbours
        points = TSNE(perplexity=min(30, len(rows) / 4), max_iter=400, random_state=seed).fit_transform(points)
    codes = first_codes[rows]
    frequent = np.argsort(-np.bincount(codes), kind="stable")[: min(len(COLOURS), len(np.unique(codes)))]

    def draw(axes: Axes) -> list[tuple[float, float, str]]:
        rest = ~np.isin(codes, frequent)
        axes.scatter(*points[rest, :2].T, s=7, color="#CCCCCC", linewidths=0, label="other codes")
        for index, code in enumerate(frequent):
            members = np.flatnonzero(codes == code)
            centre = np.median(points[members, :2], axis=0)
            colour, marker = COLOURS[index], MARKERS[index]
            nearest = members[np.argmin(((points[members, :2] - centre) ** 2).sum(axis=1))]
            label = drawable(f"{code}: {short(texts[rows[nearest]], 40)}")
            axes.scatter(*points[members, :2].T, s=18, color=colour, marker=marker, linewidths=0, label=label)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.figure.legend(loc="outside lower center", ncols=2, markerscale=1.5)
        described = zip(points, codes, rows, strict=True)
        return [(x, y, f"code {code}: {short(texts[row], 110)}") for (x, y, *_), code, row in described]

    caption = (
        f"{len(rows):,} of {len(texts):,} items, close where their texts are alike (t-SNE of the embeddings). "
        "A colour is one of the most frequent first codes, with its central item; colours should form patches. Point "
        "at an item to read its text."
    )
    return picture("items", "Items, coloured by their first code", caption, draw, wide=True, height=6, legend=0)
