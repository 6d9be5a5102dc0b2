"""How far a phase is, in one line: redrawn on a terminal, a plain line a minute where output goes to a file."""

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from tqdm import tqdm

LINE_SECONDS = 60.0  # between two lines in a file


def duration(seconds: float) -> str:
    """Return seconds in words of at most two units: "45 s", "12 min", "3 h 20 min", "2 d 4 h"."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


class ProgressLine(AbstractContextManager):
    """The line of a phase of `total` units of work, at least 1; `say` takes the plain lines."""

    def __init__(self, name: str, total: float, say: Callable[[str], None] = print, shown: bool = True):
        self.name, self.total, self.say = name, total, say
        self.done = 0.0
        self.started = self.last_line = time.perf_counter()
        terminal = sys.stderr.isatty()
        self.plain = shown and not terminal
        layout = {"bar_format": "{desc}  {percentage:3.0f}% |{bar:10}|{postfix}", "leave": False, "mininterval": 0.5}
        self.bar = tqdm(total=total, desc=name, disable=not (shown and terminal), **layout)

    @property
    def seconds(self) -> float:
        """Seconds since the phase began."""
        return time.perf_counter() - self.started

    def advance(self, units: float) -> None:
        """Count units as done."""
        self.done = min(self.done + units, self.total)

    def show(self, text: str) -> None:
        """Show how far the phase is, with a text on how things stand, if it is time to."""
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(self.done - self.bar.n)
        if self.plain and time.perf_counter() - self.last_line >= LINE_SECONDS:
            self.last_line = time.perf_counter()
            self.say(f"{self.name}  {self.done / self.total:.0%}  {text}")

    def close(self, *_: object) -> None:
        """Take the line off the terminal."""
        self.bar.close()

    __exit__ = close
