"""The headline: test metrics beside baselines and the paper's, and the candidates that the run was chosen from."""

from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from evaluation.metrics import metric_titles, parse_metric
from evaluation.run import WINNER_SUFFIX, Run, resolve_winner, winning_row
from reporting.page import PIECES, Section, section
from reporting.pictures import COLOURS, GREY, Picture, draw_rows, picture, short, words
from reporting.report_data import PAPER, ReportData, Row
from utils.files import read_json


def paper_rows(dataset: str, names: list[str]) -> list[Row]:
    """Return the paper's Table 2 for one of its datasets."""
    return [
        Row(f"{method} (paper)", {name: value for name, value in metrics.items() if name in names})
        for method, metrics in PAPER["table_2"].get(dataset, {}).items()
    ]


def headline_section(data: ReportData) -> Section:
    """Return tiles, the table and the picture of test metrics, and the candidates on validation."""
    run, marked = data.run, len(data.rows) - 1
    titles = metric_titles(list(run.tokenizer["test"]))
    rows = data.rows + paper_rows(run.settings["dataset"], list(titles))
    best = run.method or f"tokenizer {run.labels[run.chosen]}"
    best += f", of {len(run.labels)} the best on validation" if len(run.labels) > 1 else ""
    body = PIECES.table(["test", *titles.values()], [_cells(row, list(titles)) for row in rows], marked)
    cutoff = parse_metric(run.settings["val_metric"])[1]
    shown = [name for name in titles if parse_metric(name)[1] == cutoff]
    pictures = [metric_picture(rows, name, titles[name], marked) for name in shown]
    blocks = [_tiles(rows[marked], rows[:marked], titles), body, pictures, *_candidates(run)]
    return section("Results", blocks, users=run.results["num_users"], best=best)


def _cells(row: Row, names: list[str]) -> list[str]:
    cells = [row.title]
    for name in names:
        half = row.intervals[name].half_width if name in row.metrics else np.nan
        interval = "" if np.isnan(half) else Markup(" <small>± {:.4f}</small>").format(half)
        cells.append(f"{row.metrics[name]:.4f}" + interval if name in row.metrics else "–")
    return cells


def _tiles(row: Row, others: list[Row], titles: dict[str, str]) -> str:
    """Return the metrics in large figures, each compared with the strongest baseline."""
    tiles = []
    for name, title in titles.items():
        other = max((row for row in others if name in row.metrics), key=lambda other: other.metrics[name])
        before = other.metrics[name]
        gain = f"{(row.metrics[name] - before) / before:+.1%}" if before else "above 0"
        label = "most popular" if other is others[0] else other.name.replace("One", "one")
        tiles.append((title, f"{row.metrics[name]:.4f}", f"{gain} against {label}"))
    return PIECES.tiles(tiles)


def metric_picture(rows: list[Row], name: str, title: str, marked: int) -> Picture:
    """Return a metric of all methods as points with their intervals."""
    styles = [{"color": COLOURS[1], "markersize": 5.5}] * marked + [{"color": COLOURS[0], "markersize": 8}]
    styles += [{"color": GREY, "markersize": 5.5, "fmt": "D"}] * (len(rows) - len(styles))
    shown = [(row, style) for row, style in zip(rows, styles, strict=True) if name in row.metrics]

    def draw(axes: Axes) -> None:
        names = [short(row.name, 32) for row, _ in shown]
        draw_rows(axes, names, [row.intervals[name] for row, _ in shown], [style for _, style in shown])
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)

    return picture(*words("test", f"test_{name.replace('@', '_')}", title=title), draw)


def _candidates(run: Run) -> list[str]:
    """Return the table of candidates that this run won among, and that of its own tokenizers."""
    blocks = []
    for file in sorted(run.folder.parent.glob(f"*{WINNER_SUFFIX}")):
        selection = read_json(file)
        if resolve_winner(file).name != run.folder.name or len(selection.get("candidates", [])) < 2:
            continue
        titles = metric_titles(list(selection["winner"]["valid"]))
        rows = [
            [f"{Path(row['run']).name}, tokenizer {row['epoch'] or 'best'}"]
            + [f"{row['valid'][name]:.4f}" for name in titles]
            for row in selection["candidates"]
        ]
        blocks.append(PIECES.heading("Chosen among these on validation"))
        blocks.append(PIECES.table(["validation", *titles.values()], rows, winning_row(selection)))
    if len(run.labels) > 1:
        titles, metric = metric_titles(list(run.tokenizer["test"])), run.settings["val_metric"]
        rows = [
            [label, f"{row['valid'][metric]:.4f}", *(f"{row['test'][name]:.4f}" for name in titles)]
            for label, row in zip(run.labels, run.results["per_tokenizer"], strict=True)
        ]
        head = ["tokenizer", f"valid. {titles[metric]}", *(f"test {title}" for title in titles.values())]
        blocks += [PIECES.heading("Each tokenizer"), PIECES.table(head, rows, run.chosen)]
    return blocks
