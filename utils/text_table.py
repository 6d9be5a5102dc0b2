"""Tables and lines on the terminal."""

import textwrap
from collections.abc import Sequence


def shorten(text: str, width: int) -> str:
    """Return a text in a line of at most `width` characters: cut between words, or where there are none, in one."""
    text = " ".join(text.split())
    found = textwrap.shorten(text, width, placeholder=" ...")
    return found if len(found) == len(text) or len(found) > width // 2 else f"{text[: width - 4].rstrip()} ..."


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an aligned table: the first column, names, on the left, the others, numbers, on the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in (head, *rows)]
    return "\n".join("  ".join(line).rstrip() for line in lines)
