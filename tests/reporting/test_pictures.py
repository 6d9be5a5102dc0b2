import warnings

import pytest
from matplotlib.axes import Axes

from evaluation.compare import Interval
from reporting.pictures import draw_lines, draw_rows, drawable, glyphs, picture

NAMES = ["_a", "cost_$5_to_$9", "$x^$", r"\$", "with\ttab\nand line", "中文 texts", "\U0001f600", "plain", "_"]
# What is shown of each; a character that no installed font has is a question mark.
SHOWN = ["_a", "cost_$5_to_$9", "$x^$", r"\$", "with tab and line", "中文 texts", "\U0001f600", "plain", "_"]
SHOWN = ["".join(c if ord(c) in glyphs() else "?" for c in name) for name in SHOWN]


def test_a_text_is_made_drawable():
    assert [drawable(name).lstrip("\u200b") for name in NAMES] == SHOWN  # zero width: only keeps it in the legend
    assert [drawable(name)[0] == "\u200b" for name in NAMES] == [name.startswith("_") for name in NAMES]


@pytest.mark.parametrize("installed", [False, True])
def test_characters_without_a_glyph_become_question_marks(monkeypatch, installed):
    more = {ord(c) for c in "中文"} if installed else set()
    monkeypatch.setattr("reporting.pictures.glyphs", lambda: frozenset(range(32, 127)) | more)
    assert drawable("中文 a\u3000b") == ("中文 a b" if installed else "?? a b")


def test_every_name_is_in_the_picture_without_a_warning():
    seen: list[Axes] = []

    def lines(axes: Axes) -> None:
        seen.append(axes)
        draw_lines(axes, {name: ([1, 2], [1, number]) for number, name in enumerate(NAMES[:8])}, "epoch")

    def rows(axes: Axes) -> None:
        seen.append(axes)
        draw_rows(axes, NAMES, [Interval(0.2, 0.1, 0.3)] * len(NAMES), [{}] * len(NAMES))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for draw in (lines, rows):
            assert picture("name", "$5 中文 _", "caption", draw).size == (810, 495)
    (legend,) = seen[0].figure.legends
    assert [text.get_text().lstrip("\u200b") for text in legend.get_texts()] == SHOWN[:8]
    assert [text.get_text().lstrip("\u200b") for text in seen[1].get_yticklabels()] == SHOWN
    assert seen[0].get_title(loc="left") == drawable("$5 中文 _")
