import io
import sys

import pytest

from utils import progress
from utils.progress import ProgressLine, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (99, "99 s"),
        (100, "2 min"),
        (5900, "98 min"),
        (3 * 3600 + 20 * 60, "3 h 20 min"),
        (52 * 3600, "2 d 4 h"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


class Clock:
    """A clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "perf_counter", lambda: self.now)


def test_plain_lines_come_once_a_minute(monkeypatch):
    clock, said = Clock(monkeypatch), []
    with ProgressLine("epoch 1/2", 10, said.append) as line:
        for units in range(1, 11):
            clock.now += 25
            line.advance(1)
            line.show(f"after {units}")
    assert said == ["epoch 1/2  30%  after 3", "epoch 1/2  60%  after 6", "epoch 1/2  90%  after 9"]


def test_other_processes_show_nothing(monkeypatch):
    clock, said = Clock(monkeypatch), []
    line = ProgressLine("epoch", 10, said.append, shown=False)
    clock.now += 100
    line.advance(1)
    line.show("")
    assert said == []
    assert line.seconds == 100


def test_terminal_has_one_line_that_is_redrawn_and_no_plain_ones(monkeypatch):
    terminal, said = io.StringIO(), []
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    with ProgressLine("stage 1/2  epoch 3/4", 10, said.append) as line:
        line.advance(4)
        line.show("loss 2.5")
        line.bar.refresh()
    drawn = terminal.getvalue()
    assert "\n" not in drawn
    assert "stage 1/2  epoch 3/4   40%" in drawn
    assert "loss 2.5" in drawn
    assert said == []
