"""Reads what people bring: tables and JSON of any encoding and line end, with every lost line counted and shown.

A path is a name, never a pattern. Each format ends in the same text of each field, which is judged in one place.
"""

import ast
import codecs
import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import TextIO

import duckdb

from data.raw import NULL
from utils.errors import InputError
from utils.files import whole_characters

FORMATS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
PIECE = 2**24  # characters that are looked at together
LONGEST = 2**21  # characters of a row; a quote that is open for longer was never meant to open a field
csv.field_size_limit(PIECE)
# Atomic groups, (?>...), around what may go back: Python before 3.11.5 repeats that wrongly where it is possessive.
QUOTED = '"(?>(?:[^"]++|"")*)"'  # a field with its quotes, those inside doubled
ESCAPED = r'"(?>(?:[^"\\]|\\[\s\S])*)"'  # and with a backslash before those inside, as MySQL and Spark write them

_BROKEN = (EOFError, OSError, zlib.error, UnicodeDecodeError, csv.Error)
_WINDOWS_1252 = {0xDC00 + byte: bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in range(128, 256)}


def files_of(path: str) -> list[Path]:
    """Return the files that a path names: one, those of a folder, or several with commas between."""
    whole = Path(path)
    if whole.is_dir():
        found = sorted(file for file in whole.rglob("*") if _ending(file) in FORMATS and file.is_file())
        found = [file for file in found if not any(part[0] in "._" for part in file.relative_to(whole).parts)]
        if not found:
            raise InputError(f"{path} is a folder without files that end in {', '.join(FORMATS)}")
        return found
    if not whole.is_file() and "," in path:
        return [file for part in path.split(",") if part.strip() for file in files_of(part.strip())]
    if not whole.is_file():
        hint = "; a path is a name, not a pattern: give a folder, or files with commas between"
        raise InputError(f"{whole} does not exist" + (hint if "*" in path else ""))
    if _ending(whole) not in FORMATS:
        raise InputError(f"{whole} ends in none of {', '.join(FORMATS)} (each also with .gz); export it as one of them")
    return [whole]


def _ending(file: Path) -> str:
    return Path(file.name.lower().removesuffix(".gz")).suffix


def opened(file: Path) -> TextIO:
    """Open a text file as its first bytes say; line ends become "\\n", and what is not UTF-8 lone surrogates."""
    with open(file, "rb") as handle:
        opener = gzip.open if handle.read(2) == b"\x1f\x8b" else open
    with opener(file, "rb") as handle:
        start = handle.read(4)
    if start in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        encoding = "utf-32"
    elif start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        encoding = "utf-16"
    elif b"\0\0" in (start[::2], start[1::2]):
        encoding = "utf-16-be" if start[0] == 0 else "utf-16-le"
    else:
        encoding = "utf-8-sig" if start.startswith(codecs.BOM_UTF8) else "utf-8"
    return opener(file, "rt", encoding=encoding, errors="surrogateescape")


class RawFile:
    """A file, the columns that are wanted of it, each with its flag, and what is wrong with its lines, from 1."""

    def __init__(self, file: Path, wanted: list[tuple[str, str]]):
        self.file, self.wanted, self.format = file, wanted, FORMATS[_ending(file)]
        self.link = ""  # the name that DuckDB reads the file by, if it does
        self.columns: dict[str, None] = {}  # names that its header or any of its rows has, in order
        self.lost, self.first_lost = 0, ""  # lines that could not be read
        self.foreign, self.first_foreign = 0, ""  # lines that are not UTF-8 and were read as Windows-1252

    def tell(self, note: Callable[[str], None]) -> None:
        """Note what the user has to know."""
        if self.lost:
            note(f"{self.file}: unreadable rows: {self.lost:,}, the first is {self.first_lost}")
        if self.foreign:
            note(
                f"{self.file}: lines that are not UTF-8 and were read as Windows-1252: {self.foreign:,}, the first is "
                f"{self.first_foreign}; save the file as UTF-8 where that is wrong"
            )

    def unreadable(self, error: Exception) -> InputError:
        """Return the error of a file that is broken as a whole."""
        reason = str(error).split("\n")[0].replace(self.link or str(self.file), str(self.file))
        return InputError(f"{self.file} cannot be read: {reason}; copy or export it again")

    def absent(self, missing: list[tuple[str, str]]) -> InputError:
        """Return the error of wanted columns that the file does not have."""
        names = " or ".join(name for _, name in missing)
        flags = " and ".join(dict.fromkeys(flag for flag, _ in missing))
        there = ", ".join(name if name == name.strip() and name.isprintable() else repr(name) for name in self.columns)
        return InputError(f"{self.file} has no column {names}; its columns: {there}; name the right one with {flags}")

    def _lose(self, place: str, text: str, lines: int = 1) -> None:
        self.lost += lines
        self.first_lost = self.first_lost or f"{place}: {text.strip()[:80]!r}"

    def pieces(self, skip: int = 0) -> Iterator[str]:
        """Yield the text but for its first `skip` lines, as strings of whole lines; half a download is an error."""
        try:
            with opened(self.file) as lines:
                for _ in range(skip):
                    lines.readline()
                number = skip + 1
                while text := lines.read(PIECE):
                    text += lines.readline()
                    try:
                        text.encode()
                    except UnicodeEncodeError:
                        text = self._mended(text, number)
                    yield text
                    number += text.count("\n")
        except _BROKEN as error:
            raise self.unreadable(error) from None

    def _mended(self, text: str, number: int) -> str:
        """Return a text, from line `number` on, with what is not UTF-8 taken for Windows-1252."""
        mended = text.translate(_WINDOWS_1252)
        pairs = enumerate(zip(text.split("\n"), mended.split("\n"), strict=True), start=number)
        strange = [f"line {line}: {after.strip()[:80]!r}" for line, (before, after) in pairs if before != after]
        self.foreign += len(strange)
        self.first_foreign = self.first_foreign or strange[0]
        return mended

    def _header(self) -> tuple[str, list[str], int]:
        """Return the delimiter (the format's own unless only another shows the wanted columns), names, and lines."""
        own = "\t" if self.format == "tsv" else ","
        for delimiter in (own, *",;\t|", own):
            try:
                with opened(self.file) as lines:
                    reader = csv.reader(lines, delimiter=delimiter)
                    names = next(filter(None, reader), [])
                    if re.fullmatch("sep=.?", "".join(names)):  # Excel's own first line
                        names = next(filter(None, reader), [])
                    names = [re.sub('^ *"(.*)" *$', r"\1", name.translate(_WINDOWS_1252)) for name in names]
            except _BROKEN as error:
                raise self.unreadable(error) from None
            names = [name or f"column {number}" for number, name in enumerate(names, start=1)]  # pandas' index
            if all(_places(name, names) for _, name in self.wanted):
                break
        if not names:
            raise InputError(f"{self.file} is empty; it must begin with the names of its columns")
        if "\0" in "".join(names) or names[0].startswith("PK\3"):
            raise InputError(f"{self.file} is not text, but begins with {names[0][:8]!r}; export it as CSV")
        return delimiter, names, reader.line_num

    def _places(self, names: list[str]) -> list[int]:
        """Return where the wanted columns stand among all; one that is absent or there twice is an error."""
        self.columns = dict.fromkeys(names)
        found = [_places(name, names) for _, name in self.wanted]
        if missing := [pair for pair, places in zip(self.wanted, found, strict=True) if not places]:
            raise self.absent(missing)
        for (flag, name), places in zip(self.wanted, found, strict=True):
            if len(places) > 1:
                raise InputError(
                    f"{self.file} has {len(places)} columns {name}, which {flag} names; rename all but one"
                )
        return [places[0] for places in found]

    def _tidy_rows(self, delimiter: str, width: int, skip: int) -> Iterator[str]:
        """Yield the rows, many at once, as a strict reader takes them, and count the lines that are none.

        A field is quoted where quotes enclose it whole, over several lines if need be; other quotes are characters,
        but for one that opens a field of a CSV file and never closes, which is an error.
        """
        mark = re.escape(delimiter)
        rows = re.compile(rf"(?:(?>{mark.join([_field(QUOTED, mark, blanks=False)] * width)}\n|\n))*+")
        rest, number = "", skip + 1
        for piece in chain(self.pieces(skip), [""]):  # "" is the end
            text, start = rest + piece, 0
            text += "\n" if not piece and text and text[-1] != "\n" else ""
            while start < len(text):
                end = rows.match(text, start).end()
                yield text[start:end]
                number += text.count("\n", start, end)
                start = end
                if start == len(text) or (piece and len(text) - start < LONGEST):
                    break  # a quoted field may go on in the next piece
                row, end = self._odd_row(text, start, number, delimiter, width)
                yield row
                number += text.count("\n", start, end)
                start = end
            rest = text[start:]

    def _odd_row(self, text: str, start: int, number: int, delimiter: str, width: int) -> tuple[str, int]:
        """Return what is meant by the line that is no row as such, "" where that is nothing, and where it ends."""
        mark, end = re.escape(delimiter), text.index("\n", start) + 1
        for quotes in (QUOTED, ESCAPED):
            if row := re.compile(mark.join([_field(quotes, mark)] * width) + "\n").match(text, start):
                fields = [f.rstrip(" ") for f in row.groups()]
                if quotes == ESCAPED:
                    fields = [re.sub(r'\\(["\\\n])', r"\1", f[1:-1]) if f[:1] == '"' else f for f in fields]
                    return delimiter.join(map(_quoted, fields)) + "\n", row.end()
                return delimiter.join(f if f[:1] == '"' else _quoted(f) for f in fields) + "\n", row.end()
        line = text[start : end - 1]
        fields = [field.strip(" ") for field in line.split(delimiter)]
        if delimiter != "\t" and line.strip():
            field = _field(QUOTED, mark)
            if row := re.compile(rf"{field}(?:{mark}{field})*\n").match(text, start):
                self._lose(f"line {number}", line, text.count("\n", start, row.end()))
                return "", row.end()
            unclosed = re.search(rf'(?:^|{mark}) *"(?:[^"]|"")*$', line)
            if unclosed or (len(fields) == width and any(re.fullmatch('"(?:[^"]|"")*', field) for field in fields)):
                raise InputError(
                    f"{self.file} line {number}: a quote opens a field and never closes, in {line[:80]!r}; double "
                    "the quotes inside a quoted field, and remove a lone one"
                )
        if len(fields) == width:
            return delimiter.join(f if re.fullmatch(QUOTED, f) else _quoted(f) for f in fields) + "\n", end
        if line.strip():
            self._lose(f"line {number}", line)
        return "", end

    def _json_rows(self) -> Iterator[dict]:
        """Yield the objects of JSON's lines, or of its one list, and count what is none.

        A line may be a Python literal, as in Amazon's 2014 edition; it is parsed but never evaluated.
        """
        pieces = self.pieces()
        first = next(pieces, "")
        if re.match(r"\s*\[\s*[{\]]", first):
            unit, values = "entry", ((str(value), value) for value in self._listed(first, pieces))
        else:
            lines = chain.from_iterable(piece.removesuffix("\n").split("\n") for piece in chain([first], pieces))
            unit, values = "line", ((line, parse_line(line)) for line in lines)
        for number, (text, value) in enumerate(values, start=1):
            if isinstance(value, dict):
                if not value.keys() <= self.columns.keys():
                    self.columns |= dict.fromkeys(value)
                yield value
            elif text.strip():
                self._lose(f"{unit} {number}", text)

    def _listed(self, text: str, pieces: Iterator[str]) -> Iterator[object]:
        """Yield the members of JSON's one list, which `text` begins."""
        between, start = re.compile(r"[\s,]*"), text.index("[") + 1
        for piece in chain(pieces, [""]):  # "" is the end
            text, start = text[start:] + piece, 0
            while (start := between.match(text, start).end()) < len(text) and text[start] != "]":
                try:
                    value, start = json.JSONDecoder().raw_decode(text, start)
                except (ValueError, RecursionError) as error:
                    if piece:
                        break  # it may go on in the next piece
                    raise self.unreadable(error) from None
                yield value
        if text[start:].strip() != "]":
            raise self.unreadable(ValueError("its list has no end, or something behind it"))

    def query(self, connection: duckdb.DuckDBPyConnection, links: Path, as_text: bool = True) -> str:
        """Return the SQL of the wanted columns, in order: as text, NULL where there is none, or as they are.

        `links` is a folder for links to files, with nothing special in its path: DuckDB takes every path for a pattern.
        In its "work" is room for a copy.
        """
        if self.format == "parquet":
            link = links / str(len(list(links.iterdir())))
            link.symlink_to(self.file.resolve())
            self.link = str(link)
            return self._parquet_query(connection, as_text)
        copy = links / "work" / "copy"  # in place of the last one
        if self.format == "json":
            delimiter, width = ",", len(self.wanted)
            places: Sequence[int] = range(width)
            named = (map(name_of, map(row.get, [name for _, name in self.wanted])) for row in self._json_rows())
            write_texts(copy, (",".join(map(_quoted, row)) + "\n" for row in named))
            missing = [pair for pair in self.wanted if pair[1] not in self.columns]
            if missing and self.columns:
                raise self.absent(missing)
        else:
            delimiter, names, lines = self._header()
            places, width = self._places(names), len(names)
            write_texts(copy, self._tidy_rows(delimiter, width, lines))
        fields = ", ".join(f"c{place}: 'VARCHAR'" for place in range(width))
        return (
            f"SELECT {', '.join(f'c{place}' for place in places)} FROM read_csv({literal(copy)}, header = false, "
            f"auto_detect = false, columns = {{{fields}}}, delim = '{delimiter}', quote = '\"', escape = '\"', "
            f"nullstr = '', new_line = '\\n', max_line_size = {PIECE})"
        )

    def _parquet_query(self, connection: duckdb.DuckDBPyConnection, as_text: bool) -> str:
        """Return the SQL of Parquet; columns go by their place, since names that differ in case alone clash in SQL."""
        table = f"read_parquet({literal(self.link)}, binary_as_string = true)"
        try:
            types = [row[1] for row in connection.execute(f"DESCRIBE SELECT * FROM {table}").fetchall()]
            schema = connection.execute(
                f"SELECT name, num_children FROM parquet_schema({literal(self.link)})"
            ).fetchall()
        except duckdb.Error as error:
            raise self.unreadable(error) from None
        names, inner = [], 0  # a column of columns has them behind it
        for name, children in schema[1:]:
            names += [name] if inner == 0 else []
            inner += (children or 0) - (inner > 0)
        wanted = []
        for place in self._places(names):
            column, kind = f"c{place}", types[place]
            text = f"CAST({column} AS VARCHAR)"
            if not as_text:
                wanted.append(text if kind.endswith("WITH TIME ZONE") else column)  # Python would want pytz
            elif kind in ("FLOAT", "DOUBLE"):
                wanted.append(f"CASE WHEN isfinite({column}) THEN {text} END")
            else:
                wanted.append("NULL" if kind.endswith("]") or kind.startswith(("STRUCT", "MAP")) else text)
        return f"SELECT {', '.join(wanted)} FROM {table} AS t({', '.join(f'c{place}' for place in range(len(types)))})"

    def rows(self, connection: duckdb.DuckDBPyConnection, links: Path) -> Iterator[dict]:
        """Yield the rows, of JSON with all their columns, of other formats with the wanted; arguments as of `query`."""
        if self.format == "json":
            yield from self._json_rows()
            return
        rows = connection.execute(self.query(connection, links, as_text=False))
        while batch := rows.fetchmany(10_000):
            yield from (dict(zip([name for _, name in self.wanted], row, strict=True)) for row in batch)


def _places(name: str, names: list[str]) -> list[int]:
    """Return where the columns of that name stand, or those that differ in blanks around it alone."""
    exact = [place for place, there in enumerate(names) if there == name]
    return exact or [place for place, there in enumerate(names) if there.strip() == name.strip()]


def write_texts(file: Path, texts: Iterable[str]) -> None:
    with open(file, "w", encoding="utf-8", newline="\n") as handle:
        handle.writelines(texts)


def parse_line(line: str) -> object:
    """Return the value of a line of JSON, or else of a Python literal; None for neither."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        try:
            return ast.literal_eval(line.strip())
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return None


def _field(quotes: str, mark: str, blanks: bool = True) -> str:
    """Return the pattern of a field between marks: a group with blanks around it, or without blanks around quotes."""
    plain = rf'(?>(?:[^"{mark}\n][^{mark}\n]*+)?)'
    return f" *+({quotes}|{plain}) *+" if blanks else f"(?:{quotes}| *+{plain})"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def literal(text: object) -> str:
    """Return an SQL string."""
    return "'" + str(text).replace("'", "''") + "'"


# What Python's str.strip removes, and SQL's trim does not by itself.
BLANKS = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())


def stripped(text: str) -> str:
    """Return the SQL of a text without blanks around it and with "\\n" for any line end, NULL where it is no value."""
    ends = " AND ".join(f"{side}({text}, 1) BETWEEN '!' AND '~'" for side in ("left", "right"))  # most, and quickly
    rest = f"replace(replace(trim({text}, '{BLANKS}'), chr(13) || chr(10), chr(10)), chr(13), chr(10))"
    whole = f"CASE WHEN {ends} AND NOT contains({text}, chr(13)) THEN {text} ELSE {rest} END"
    return f"nullif(nullif({whole}, ''), '{NULL}')"


def name_of(value: object) -> str:
    """Return the name that a field holds, as `RawFile.query` and `stripped` make it; "" where it holds none."""
    if not isinstance(value, str):
        if (
            value is None
            or isinstance(value, dict | list | tuple)
            or (isinstance(value, float) and not isfinite(value))
        ):
            return ""
        value = str(value).lower() if isinstance(value, bool) else str(value)
    text = value.strip().replace("\r\n", "\n").replace("\r", "\n")
    return "" if text == NULL or whole_characters(text) != text else text


# What a time may look like besides a number: day, clock, half of the day, and sign, hours, minutes of the offset.
_DATE = (
    r"(?i)^(\d{4}[-/]\d{1,2}[-/]\d{1,2})(?:(?:T| +)(\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?)(?: *([AP])\.?M\.?)?"
    r" *(?:Z|UTC|GMT|(?:UTC|GMT)?([+-])([01]\d|2[0-3])(?::?([0-5]\d))?)?)?$"
)
TIME_FORMS = (
    "seconds, milli-, micro- or nanoseconds since 1970, and dates such as 2023-01-31, 20230131, "
    "2023-01-31 09:00:00 PM or 2023-01-31T21:00:00+02:00"
)


def with_instant(rows: str) -> str:
    """Return the SQL of rows with the time of their column `moment` as `t`: microseconds since 1970, or NULL.

    A time without an offset is taken as UTC, wherever the machine is.
    """
    hour = "CAST(split_part(d.clock, ':', 1) AS INTEGER)"
    return f"""
        SELECT *, CASE
            WHEN d.day != '' THEN
                epoch_us(TRY_CAST(trim(replace(d.day, '/', '-') || ' ' || replace(d.clock, ',', '.')) AS TIMESTAMP))
                + 3600000000 * CASE WHEN d.half = '' THEN 0 WHEN {hour} NOT BETWEEN 1 AND 12 THEN NULL
                    ELSE {hour} % 12 - {hour} + CASE WHEN upper(d.half) = 'P' THEN 12 ELSE 0 END END
                - CASE d.sign WHEN '' THEN 0 WHEN '+' THEN 60000000 ELSE -60000000 END
                    * (60 * coalesce(TRY_CAST(d.hours AS BIGINT), 0) + coalesce(TRY_CAST(d.minutes AS BIGINT), 0))
            WHEN NOT isfinite(number) THEN NULL
            WHEN regexp_matches(moment, '^(19|20)[0-9]{{6}}$') AND TRY_STRPTIME(moment, '%Y%m%d') IS NOT NULL
                THEN epoch_us(TRY_STRPTIME(moment, '%Y%m%d'))  -- as seconds, a day of 1970
            WHEN abs(number) < 1e11 THEN CAST(round(number * 1e6) AS BIGINT)
            WHEN abs(number) < 1e14 THEN CAST(round(number * 1e3) AS BIGINT)
            WHEN abs(number) < 1e17 THEN CAST(round(number) AS BIGINT)
            WHEN abs(number) < 1e20 THEN CAST(round(number / 1e3) AS BIGINT)
        END AS t
        FROM (SELECT *, CASE WHEN number IS NULL THEN regexp_extract(
                moment, '{_DATE}', ['day', 'clock', 'half', 'sign', 'hours', 'minutes']) END AS d
              FROM (SELECT *, TRY_CAST(moment AS DOUBLE) AS number FROM {rows}))"""
