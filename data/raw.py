"""Raw review data as it is published: which columns hold what, and how texts are cleaned."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from utils.files import whole_characters

NULL = "\\N"  # as databases write no value


@dataclass(frozen=True)
class Columns:
    """Names of a source's columns."""

    user: str = ""
    item: str = ""
    """The item's in the interactions."""
    time: str = ""
    rating: str = ""
    text: Sequence[str] = ()
    """Columns of the item file that make the text, in order."""
    item_of_text: str = ""
    """The item's in the item file."""


_PUBLISHED = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
SOURCES = {source: Columns(**columns) for source, columns in _PUBLISHED["sources"].items()}
PAPER: dict[str, dict[str, int]] = _PUBLISHED["table_1"]  # numbers of users, items and interactions by dataset

_INVISIBLE = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")


def clean(value: object) -> str:
    """Return a field as one line of text: no markup, no entities, no halves of characters; lists joined by commas.

    So are the values of dictionaries.
    """
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return ", ".join(part for part in map(clean, value) if part)
    if value in (None, NULL) or value != value:
        return ""
    text = html.unescape(html.unescape(str(value)))  # some shops escape twice
    text = _TAG.sub(" ", _INVISIBLE.sub(" ", text))
    return whole_characters(" ".join(text.split()))


def sentence(row: dict, columns: Sequence[str]) -> str:
    """Return an item's text: its fields, each ended by a full stop; "" where all are empty."""
    parts = [clean(row.get(column)) for column in columns]
    return " ".join(part if part[-1] in ".!?" else f"{part}." for part in parts if part)
