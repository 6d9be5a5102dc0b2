"""What the tokenizer learnt: collisions, use of the codes, drift between its epochs, and a map of the items."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from data.advice import relation_advice
from data.token_table import read_sem_ids, resolve_groups
from reporting.page import PIECES, Section, section
from reporting.pictures import COLOURS, DASHES, MARKERS, Picture, by_epoch, draw_lines, drawable, picture, short, words
from reporting.report_data import PAPER, ReportData
from tokenizer.quality import drift_of_ends, middle_sentence, relatedness, tokenizer_quality
from utils.files import read_json

MAP_ITEMS = 1200  # as many as stay apart in a picture
RQVAE_EPOCH = "epoch of the RQ-VAE"


def tokenizer_section(data: ReportData) -> Section:
    """Return what is known of the chosen tokenizer and of its neighbours in training."""
    run, codes = data.run, data.codes
    chosen = run.labels[run.chosen]
    if codes is None:
        return section("Tokenizer", ["The semantic IDs that it was trained with are no longer there."], chosen=chosen)
    sizes = data.level_sizes[:-1]
    folder = (run.dataset_folder / run.tokenizer["prefix"]).parent
    report, record = quality_report(data, folder, sizes), folder / "metrics.jsonl"
    lines = map(json.loads, record.read_text().splitlines() if record.is_file() else [])
    history = [line for line in lines if "codes_used" in line]
    codes = codes[:, :-1]
    found = training_pictures(history, sizes) if history else []
    found.append(picture(*words("usage"), draw_usage, codes, sizes))
    kept = {int(name): each["perplexity"] for name, each in report["tokenizers"].items() if name.isdigit()}
    lines = {f"level {i}": (list(kept), [values[i] for values in kept.values()]) for i in range(len(sizes))}
    found.append(picture(*words("perplexity"), draw_lines, lines, RQVAE_EPOCH, ylim=(0, max(sizes) * 1.03)))
    about = _level_table(codes, sizes)
    if report.get("drift"):
        by_gap = {int(gap): values for gap, values in report["drift"].items()}
        found.append(picture(*words("drift"), draw_drift, by_gap, run.settings["dataset"]))
        ends = drift_of_ends(report)
        about += [f"Warning: {line}." for line in relation_advice(ends["first"], ends["any"])]
    if report.get("distances"):
        found.append(picture(*words("distances"), draw_distances, report["distances"], report["epochs"], legend=0))
        about.append(middle_sentence(report))
    embeddings = _embeddings(data)
    if embeddings is not None:
        found.append(map_picture(embeddings, codes[:, 0], data.texts, run.settings["rand_seed"]))
    return section("Tokenizer", [*about, found], chosen=chosen)


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
    related = relatedness(list(found), np.stack(list(found.values()))) if len(found) > 1 else {}
    return {"tokenizers": qualities, **related}


def _embeddings(data: ReportData) -> np.ndarray | None:
    """Return the text embeddings that the tokenizer's name points to, float32 [N, E], if they are there."""
    encoder = Path(data.run.tokenizer["prefix"]).name.rsplit("_", 1)[0]
    file, items = data.run.dataset_folder / f"{encoder}.sent_emb", len(data.texts)
    if not file.is_file() or file.stat().st_size % (4 * items):
        return None
    return np.memmap(file, dtype="<f4", mode="r").reshape(items, -1)


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
    return [
        picture(*words("collisions"), draw_lines, rates, RQVAE_EPOCH, ylim=(0, 1), percent=True),
        picture(*words("codes"), draw_lines, shares, RQVAE_EPOCH, ylim=(0, 1.03), percent=True),
    ]


def draw_usage(axes: Axes, codes: np.ndarray, sizes: Sequence[int]) -> None:
    """Draw how many items have each code: int [N, L] without disambiguation."""
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


def draw_drift(axes: Axes, found: dict[int, dict[str, float]], dataset: str) -> None:
    """Draw how many items change their tokens between two tokenizers, beside the paper's Table 5."""
    published = PAPER["table_5"]
    beside = [published[dataset]] if dataset in published else published.values()
    for number, shares in enumerate(beside):
        for kind, dashes in (("any", "-"), ("first", "--")):
            label = f"{kind} token (paper)" if number == 0 else None
            values = [of_gap[kind] for of_gap in shares.values()]
            axes.plot(list(shares), values, color="#AAAAAA", linestyle=dashes, linewidth=1, label=label)
    gaps = list(found)
    lines = {f"{kind} token": (gaps, [found[gap][kind] for gap in gaps]) for kind in ("any", "first")}
    draw_lines(axes, lines, "places between two tokenizers", ylim=(0, None), percent=True)


def draw_distances(axes: Axes, distances: Sequence[Sequence[float]], epochs: Sequence[int]) -> None:
    """Draw the share of items that differ for every pair of tokenizers, [G][G]."""
    shown = axes.imshow(distances, cmap="cividis", vmin=0, origin="lower")
    places = np.unique(np.linspace(0, len(epochs) - 1, 5).round().astype(int))
    labels = [str(epochs[place]) for place in places]
    axes.set_xticks(places, labels)
    axes.set_yticks(places, labels)
    axes.grid(visible=False)
    axes.set_xlabel("tokenizer")
    axes.set_ylabel("tokenizer")
    axes.figure.colorbar(shown, ax=axes, format="{x:.0%}")


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
    about = words("items", shown=len(rows), all=len(texts))
    described = [f"code {first_codes[row]}: {short(texts[row], 110)}" for row in rows]
    centres = [short(texts[row], 40) for row in rows]
    return picture(*about, draw_map, points, first_codes[rows], centres, described, wide=True, height=6, legend=0)


def draw_map(
    axes: Axes, points: np.ndarray, codes: np.ndarray, names: list[str], texts: list[str]
) -> list[tuple[float, float, str]]:
    """Draw items at points, float [N, 2 or more], coloured by their codes, int [N]; return their texts as tooltips."""
    frequent = np.argsort(-np.bincount(codes), kind="stable")[: min(len(COLOURS), len(np.unique(codes)))]
    rest = ~np.isin(codes, frequent)
    axes.scatter(*points[rest, :2].T, s=7, color="#CCCCCC", linewidths=0, label="other codes")
    for code, colour, marker in zip(frequent, COLOURS, MARKERS, strict=False):
        members = np.flatnonzero(codes == code)
        centre = np.median(points[members, :2], axis=0)
        nearest = members[np.argmin(((points[members, :2] - centre) ** 2).sum(axis=1))]
        label = drawable(f"{code}: {names[nearest]}")
        axes.scatter(*points[members, :2].T, s=18, color=colour, marker=marker, linewidths=0, label=label)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.figure.legend(loc="outside lower center", ncols=2, markerscale=1.5)
    return [(x, y, text) for (x, y, *_), text in zip(points, texts, strict=True)]
