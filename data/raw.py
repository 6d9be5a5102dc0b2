"""Raw review data as it is published: which columns hold what, how files are read, how texts are cleaned."""

import ast
import csv
import gzip
import html
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import duckdb

from utils.errors import InputError
from utils.files import whole_characters


@dataclass(frozen=True)
class Columns:
    """Names of a source's columns; `item` is the item's in both files.

    Attributes:
        text: Columns of the item file that make the text, in order.
    """

    user: str
    item: str
    time: str
    rating: str
    text: tuple[str, ...]


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


def file_format(file: Path) -> str:
    """Return json, csv, tsv or parquet, by the file's name.

    Raises:
        InputError: The file is absent or named otherwise.
    """
    if not file.is_file():
        raise InputError(f"{file} does not exist")
    kind = Path(file.name.removesuffix(".gz")).suffix
    formats = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
    if kind not in formats:
        raise InputError(f"{file} ends in none of .jsonl, .json, .csv, .tsv (each also with .gz) and .parquet")
    return formats[kind]


def scan(file: Path, columns: list[str], connection: duckdb.DuckDBPyConnection) -> str:
    """Return the SQL expression that reads these columns of a file as text; broken rows are all NULL, or rejected.

    Raises:
        InputError: A column is absent.
    """
    kind, path = file_format(file), quoted(str(file), "'")
    if kind == "json":
        fields = ", ".join(f"{quoted(column)}: 'VARCHAR'" for column in dict.fromkeys(columns))
        return f"read_json({path}, format = 'newline_delimited', ignore_errors = true, columns = {{{fields}}})"
    try:
        if kind == "parquet":
            expression = f"read_parquet({path})"
            present = [row[0] for row in connection.execute(f"DESCRIBE SELECT * FROM {expression}").fetchall()]
        else:  # nothing is guessed from rows: a broken one at the top would mislead
            delimiter = "\t" if kind == "tsv" else ","
            with opened(file) as lines:
                header = next(csv.reader(lines, delimiter=delimiter), [])
            present = [name or f"column {number}" for number, name in enumerate(header, start=1)]  # pandas' index
            fields = ", ".join(quoted(column, "'") + ": 'VARCHAR'" for column in present)
            expression = (
                f"read_csv({path}, header = true, auto_detect = false, columns = {{{fields}}}, delim = '{delimiter}', "
                "quote = '\"', escape = '\"', store_rejects = true, strict_mode = true)"
            )
    except (duckdb.Error, OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} cannot be read: {str(error).splitlines()[0]}") from None
    missing = [column for column in columns if column not in present]
    if missing:
        raise InputError(f"{file} has no column {' or '.join(missing)}; its columns: {', '.join(present)}")
    return expression


def quoted(name: str, quote: str = '"') -> str:
    """Return an SQL name, or a string with quote "'"."""
    return quote + name.replace(quote, 2 * quote) + quote


def opened(file: Path) -> TextIO:
    """Open a text file, compressed or not, with broken characters replaced."""
    opener = gzip.open if file.suffix == ".gz" else open
    return opener(file, "rt", encoding="utf-8-sig", errors="replace", newline="")


def item_rows(file: Path, columns: list[str]) -> Iterator[dict | None]:
    """Yield an item file's rows, None for one that cannot be read.

    Lines are JSON, or the Python literals of the 2014 edition, which are parsed but never evaluated.

    Raises:
        InputError: The file is broken, such as half a download.
    """
    if file_format(file) != "json":
        with duckdb.connect() as connection:
            names = ", ".join(quoted(column) for column in columns)
            rows = connection.execute(f"SELECT {names} FROM {scan(file, columns, connection)}")
            while batch := rows.fetchmany(10_000):
                yield from (dict(zip(columns, row, strict=True)) for row in batch)
        return
    try:
        with opened(file) as lines:
            for line in lines:
                if line.strip():
                    row = parse_line(line)
                    yield row if isinstance(row, dict) else None
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{file} is broken: {error}; copy or download it again") from None


def parse_line(line: str) -> object:
    """Return the value of a line of JSON or of a Python literal, None if it is neither."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        try:
            return ast.literal_eval(line.strip())
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return None


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
