"""Raw review data as it is published: which columns hold what, and how texts are cleaned."""

import html
import re
from dataclasses import dataclass

from utils.files import whole_characters


@dataclass(frozen=True)
class Columns:
    """Names of a source's columns.

    Attributes:
        item: The item's in the interactions.
        text: Columns of the item file that make the text, in order.
        item_of_text: The item's in the item file.
    """

    user: str
    item: str
    time: str
    rating: str
    text: tuple[str, ...]
    item_of_text: str = ""


SOURCES = {
    "amazon2023": Columns(
        *("user_id", "parent_asin", "timestamp", "rating"), ("title", "store", "categories", "features", "description")
    ),
    "amazon2018": Columns(
        *("reviewerID", "asin", "unixReviewTime", "overall"), ("title", "brand", "category", "feature", "description")
    ),
    "amazon2014": Columns(
        *("reviewerID", "asin", "unixReviewTime", "overall"), ("title", "brand", "categories", "description")
    ),
    "table": Columns("", "", "", "", ()),
}


def quoted(name: str, quote: str = '"') -> str:
    """Return an SQL name, or a string with quote "'"."""
    return quote + name.replace(quote, 2 * quote) + quote


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
    if value is None or (isinstance(value, float) and value != value):
        return ""
    text = html.unescape(html.unescape(str(value)))  # some shops escape twice
    text = _TAG.sub(" ", _INVISIBLE.sub(" ", text))
    return whole_characters(" ".join(text.split()))


def sentence(row: dict, columns: tuple[str, ...]) -> str:
    """Return an item's text: its fields, each ended by a full stop; "" where all are empty."""
    parts = [clean(row.get(column)) for column in columns]
    return " ".join(part if part[-1] in ".!?" else f"{part}." for part in parts if part)
