"""Pictures of one panel each, as PNG: readable at a phone's width, in grey, and without telling red from green."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import yaml
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.compare import Interval

WORDS = yaml.safe_load(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8"))
# Okabe and Ito's palette, told apart with every kind of colour vision; lines differ in dashes too, points in shape.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333", "#8C6D31")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY = "#777777"
WIDTH, HEIGHT = 5.4, 3.3  # inches
# Matplotlib's own font, and what is installed of those for other writings: the first that has a character draws it.
OTHER_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Noto Sans JP", "Noto Sans KR", "Source Han Sans SC"),
    *("WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback", "Microsoft YaHei", "SimHei", "PingFang SC"),
    *("PingFang HK", "Hiragino Sans GB", "Heiti TC", "Malgun Gothic", "Arial Unicode MS", "Unifont"),
)
INSTALLED = {font.name for font in font_manager.fontManager.ttflist}
FONTS = ["DejaVu Sans", *(name for name in OTHER_FONTS if name in INSTALLED)]
STYLE = {
    **{"font.size": 10, "axes.titlesize": 11, "axes.titlelocation": "left", "axes.titleweight": "bold"},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY, "axes.grid": True},
    **{"grid.color": "#E6E6E6", "legend.frameon": False, "legend.fontsize": 8.5, "lines.linewidth": 1.6},
    **{"axes.axisbelow": True, "figure.constrained_layout.use": True},
    **{"font.family": FONTS, "text.usetex": False, "text.parse_math": False},  # no $ is the beginning of a formula
}

Line = tuple[Sequence[float], Sequence[float]]  # x and y


@dataclass(frozen=True)
class Tooltip:
    """A place in a picture with a text that shows when pointed at; x and y in 0..1 from the upper left corner."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Picture:
    """A picture of a report."""

    name: str  # of its file, without .png
    title: str
    caption: str  # how to read it
    png: bytes
    tooltips: Sequence[Tooltip] = ()
    wide: bool = False  # takes a row of its own

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the file's header."""
        return int.from_bytes(self.png[16:20], "big"), int.from_bytes(self.png[20:24], "big")

    @property
    def base64(self) -> str:
        return base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Marks:
    """What is marked along the epochs, from 1, of a training run."""

    stages: Sequence[int]  # the last epochs of the curriculum's stages, without the last of all
    checkpoints: Sequence[int]  # whose weights were kept
    chosen: int  # whose weights were tested


def picture(
    name: str, title: str, caption: str, draw: Callable[..., list[tuple[float, float, str]] | None], *drawn: Any,
    wide: bool = False, height: float = HEIGHT, legend: int = 3, **style: Any,
) -> Picture:  # fmt: skip
    """Return what `draw` draws on axes: it is called with them, `drawn` and `style`.

    Args:
        draw: May return tooltips (x, y, text) in data coordinates.
        height: In inches.
        legend: Columns of the legend, which is below the axes, where it covers nothing; 0 for no legend.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH * (1.6 if wide else 1), height))
        axes = figure.add_subplot()
        axes.set_title(drawable(title))
        places = draw(axes, *drawn, **style) or []
        handles, labels = axes.get_legend_handles_labels()
        if labels and legend:
            figure.legend(handles, labels, loc="outside lower center", ncols=legend)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=150)
        across, down = figure.get_size_inches() * figure.dpi
        at = axes.transData.transform([place[:2] for place in places]) if places else ()
        pairs = zip(at, places, strict=True)
        tooltips = [Tooltip(float(x / across), float(1 - y / down), text) for (x, y), (_, _, text) in pairs]
    return Picture(name, title, caption, file.getvalue(), tooltips, wide)


def words(of: str, name: str | None = None, **values: object) -> tuple[str, str, str]:
    """Return name, title and caption of a picture in words.yaml, with the values in their places."""
    text = WORDS["pictures"][of]
    return name or of, text["title"].format(**values), text["caption"].format(**values)


def by_epoch(events: Sequence[dict], *keys: str) -> Line:
    """Return the epochs of recorded events, and a value of each, which lies under one key or several nested ones."""
    return [event["epoch"] for event in events], [reduce(getitem, keys, event) for event in events]


def draw_marks(axes: Axes, marks: Marks) -> None:
    """Mark the stages' ends, the checkpoints and the chosen epoch on axes whose x is the epoch."""
    for stage, epoch in enumerate(marks.stages, start=1):
        axes.axvline(epoch, color=GREY, linewidth=0.8, linestyle=":", label="end of a stage" if stage == 1 else None)
    if marks.checkpoints:
        axes.plot(
            marks.checkpoints,
            np.zeros(len(marks.checkpoints)),
            **{"transform": axes.get_xaxis_transform(), "clip_on": False, "zorder": 5, "label": "checkpoint"},
            **{"linestyle": "", "marker": "^", "markersize": 5, "color": GREY},
        )
    axes.axvline(marks.chosen, color="black", linewidth=1, label="chosen")


def draw_lines(
    axes: Axes, lines: dict[str, Line], xlabel: str = "epoch", points: bool = False, marks: Marks | None = None,
    ylim: tuple[float | None, float | None] = (None, None), percent: bool = False,
) -> None:  # fmt: skip
    """Draw named lines {name: (x, y)}; with more than eight, all grey but the first and the last.

    The y axis goes from and to `ylim`, in percent if wanted.
    """
    for index, (name, (x, y)) in enumerate(lines.items()):
        style = {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index % len(DASHES)]}
        style["label"] = drawable(name)
        if len(lines) > len(COLOURS):
            ends = {0: COLOURS[0], len(lines) - 1: COLOURS[1]}
            style = {"color": ends.get(index, "#BBBBBB"), "label": style["label"] if index in ends else None}
            style |= {"zorder": 3 if index in ends else 2}
        if points or len(x) < 30:
            style |= {"marker": MARKERS[index % len(MARKERS)], "markersize": 3.5}
        axes.plot(x, y, **style)
    axes.set_xlabel(xlabel)
    axes.set_ylim(ylim)
    if percent:
        axes.yaxis.set_major_formatter("{x:.0%}")
    if marks:
        draw_marks(axes, marks)


def draw_rows(axes: Axes, names: Sequence[str], intervals: Sequence[Interval], styles: Sequence[dict]) -> None:
    """Draw named intervals as points with error bars, if they are known, the first on top."""
    rows = range(len(names) - 1, -1, -1)
    for row, interval, style in zip(rows, intervals, styles, strict=True):
        below, above = max(interval.mean - interval.low, 0.0), max(interval.high - interval.mean, 0.0)
        axes.errorbar(interval.mean, row, xerr=[[below], [above]], capsize=4, **{"fmt": "o", **style})
    axes.set_yticks(rows, [drawable(name) for name in names])
    axes.set_ylim(-0.6, len(names) - 0.4)


@cache
def glyphs() -> frozenset[int]:
    """Return the code points that the fonts of pictures have, plain and bold."""
    found = set()
    for name in FONTS:
        files = {
            font_manager.findfont(font_manager.FontProperties(family=name, weight=weight)) for weight in (400, 700)
        }
        found |= set.intersection(*(set(font_manager.get_font(file).get_charmap()) for file in files))
    return frozenset(found)


def drawable(text: str) -> str:
    """Return a text as a picture can show it: each text of a picture that is the user's goes through this.

    Blanks of all kinds become a space, and characters that no font has a question mark.
    """
    text = "".join(c if ord(c) in glyphs() else "?" for c in " ".join(text.split()))
    return f"\u200b{text}" if text.startswith("_") else text  # a legend leaves out what begins with an underscore


def short(text: str, length: int = 60) -> str:
    """Return a text of at most `length` characters."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def without_middle(names: Sequence[str], length: int) -> list[str]:
    """Return names without their middle, of at most `length` characters; whole where they would not differ any more."""
    end = length // 2
    cut = [name if len(name) <= length else f"{name[: length - end - 1]}…{name[-end:]}" for name in names]
    return cut if len(set(cut)) == len(set(names)) else list(names)
