"""Make a dataset folder of raw reviews: filter, k-core, time order, item texts.

    python -m data.prepare --dataset=Musical_Instruments --source=amazon2023 \\
        --interactions=raw/Musical_Instruments.csv.gz --items=raw/meta_Musical_Instruments.jsonl.gz
    python -m data.prepare --dataset=MyShop --interactions=orders.parquet --items=products.csv \\
        --user_col=customer --item_col=sku --time_col=ordered_at --text_cols=name,brand,description

Files: .jsonl, .ndjson, .json (an object a line, or a list), .csv, .tsv (each also .gz) and .parquet; a path is a name,
never a pattern. Amazon's editions (--source=amazon2023, the raw files and the official rating_only ones; amazon2018;
amazon2014) know their columns. Times are seconds to nanoseconds, or dates (UTC unless they have an offset), mixed as
they may be. Writes <data_dir>/<dataset>/: all_item_seqs.json, metadata.sentence.json, id_mapping.json, stats.json with
what was dropped and why, and README.md, which says so to people and to model hubs. Users and items are numbered by
name; a user's items stand in time order, those of the same time by item name: neither the order of the rows nor the
number of threads matters.
"""

import json
import math
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb
import numpy as np

from data.dataset_card import STATS_FILE, dataset_card, has_own_card
from data.interactions import PADDING, making
from data.raw import PAPER, SOURCES, Columns, sentence
from data.readers import TIME_FORMS, RawFile, files_of, name_of, stripped, with_instant
from utils.cards import CARD_FILE
from utils.claims import claim
from utils.config import parse_config
from utils.errors import InputError
from utils.files import atomic_folder, read_json, sha256_of, write_json, write_text
from utils.runtime import run_command
from utils.text_table import text_table

NO_VALUES = ("null", "none", "nan", "<na>", "na", "n/a", "nil", "undefined")  # as programs write it in lower case
NO_TEXTS = {*NO_VALUES, "", "[]", "{}", "[nan]"}
YEAR = 31_557_600  # seconds
FILES = {"all_item_seqs.json", "metadata.sentence.json", "id_mapping.json", STATS_FILE, CARD_FILE}


@dataclass
class PrepareConfig:
    """Settings of the preparation."""

    dataset: str = ""
    """Name of the dataset's folder."""
    data_dir: str = "datasets/"
    """Folder that holds dataset folders."""
    interactions: str = ""
    """File of interactions (reviews, orders, ratings), a folder of such files, or several with commas between."""
    items: str = ""
    """File of items and the fields of their texts, a folder of such files, or several with commas between."""
    source: str = "table"
    """Where the files come from: amazon2023, amazon2018, amazon2014, or table for anything with columns."""
    user_col: str = ""
    """Column of the user; the Amazon sources have theirs."""
    item_col: str = ""
    """Column of the item, in both files unless items_item_col is given."""
    items_item_col: str = ""
    """Column of the item in the item file, where it is called otherwise there."""
    time_col: str = ""
    """Column of the time."""
    rating_col: str = ""
    """Column of the rating, for min_rating."""
    text_cols: str = ""
    """Columns of the item file that make the text, in order, separated by commas."""
    min_rating: float | None = None
    """Drop interactions with a lower rating, or none."""
    keep_repeats: bool = False
    """Keep every interaction of a user with an item instead of the first only."""
    k_core: int = 5
    """Keep users and items with at least that many interactions, until all have; 1 keeps all."""
    memory_limit: str = "2GB"
    """What DuckDB may use, for example 2GB; the rest goes to disk, beside the dataset's folder."""
    threads: int | None = None
    """Threads; by default one for each core."""
    overwrite: bool = False
    """Replace a dataset folder that was prepared with other settings."""

    def problems(self) -> list[str]:
        """Name everything that is wrong with the settings."""
        found = [f"--{name} is needed" for name in ("dataset", "interactions", "items") if not getattr(self, name)]
        if self.dataset and (self.dataset != Path(self.dataset).name or self.dataset in (".", "..")):
            found.append(f"dataset={self.dataset} must be the name of a folder, not a path")
        if self.source not in SOURCES:
            return [*found, f"source={self.source} is none of {', '.join(SOURCES)}"]
        columns = self.columns
        needed = {"user_col": columns.user, "item_col": columns.item, "time_col": columns.time}
        needed |= {"text_cols": columns.text, "rating_col": self.min_rating is None or columns.rating}
        if self.min_rating is not None and not math.isfinite(self.min_rating):
            found.append(f"min_rating={self.min_rating} must be a number")
        found += [f"--{name} is needed with --source=table" for name, value in needed.items() if not value]
        counts = {"k_core": self.k_core, "threads": 1 if self.threads is None else self.threads}
        return found + [f"{name}={value} must be at least 1" for name, value in counts.items() if value < 1]

    @property
    def columns(self) -> Columns:
        """The source's columns, or those given."""
        source = SOURCES[self.source]
        return Columns(
            self.user_col or source.user,
            self.item_col or source.item,
            self.time_col or source.time,
            self.rating_col or source.rating,
            tuple(column.strip() for column in self.text_cols.split(",") if column.strip()) or source.text,
            self.items_item_col or self.item_col or source.item,
        )

    @property
    def folder(self) -> Path:
        """The dataset's folder."""
        return Path(self.data_dir) / self.dataset


class Preparation:
    """The steps, on tables of one DuckDB database, empty at first; for `links` see `RawFile.query`."""

    def __init__(self, config: PrepareConfig, connection: duckdb.DuckDBPyConnection, links: Path):
        self.config, self.sql, self.run, self.links = config, connection, connection.execute, links
        self.dropped: dict[str, int] = {}
        self.notes: list[str] = []
        self.unreadable_items = 0
        self.started = time.perf_counter()

    def say(self, text: str) -> None:
        print(f"{time.perf_counter() - self.started:6.0f} s  {text}", flush=True)

    def count(self, table: str) -> int:
        return self.run(f"SELECT count(*) FROM {table}").fetchone()[0]

    def note(self, text: str) -> None:
        """Tell the user what has to be known, at once and where nothing is left in the end."""
        self.notes.append(text)
        self.say(text)

    def read(self) -> int:
        """Make the table raw(user_name, item_name, t in microseconds, reason to drop it, example); return the rows."""
        self.run("SET TimeZone = 'UTC'")  # the machine's would change what Parquet's times say
        self.run("CREATE TABLE raw (user_name VARCHAR, item_name VARCHAR, t BIGINT, reason VARCHAR, example VARCHAR)")
        lost = sum(self._read_file(file) for file in files_of(self.config.interactions))
        reasons = self.run(
            "SELECT reason, count(*), min(example) FROM raw WHERE reason IS NOT NULL GROUP BY 1 ORDER BY 1"
        ).fetchall()
        columns, rows = self.config.columns, self.count("raw") + lost
        accepted = {"no time": f"{columns.time} of --time_col; accepted are {TIME_FORMS}"}
        accepted["no rating"] = f"{columns.rating} of --rating_col; accepted are numbers"
        for reason, count, example in reasons:
            if example is not None:
                self.note(f"rows with {reason}: {count:,}, such as {example[:80]!r} in {accepted[reason]}")
        first, last = self.run(
            "SELECT epoch(make_timestamp(min(t))), epoch(make_timestamp(max(t))) FROM raw WHERE reason IS NULL"
        ).fetchone()
        if first is not None and first < YEAR and last > 10 * YEAR:
            days = " to ".join(time.strftime("%Y-%m-%d", time.gmtime(second)) for second in (first, last))
            self.note(
                f"times lie from {days}; if these are not the true ones, some numbers are read in another unit "
                "than others: export all times as dates, or all as seconds"
            )
        dropped = Counter({reason: count for reason, count, _ in reasons}) + Counter({"unreadable row": lost})
        self.dropped = dict(sorted(dropped.items()))
        self.say(f"{rows:,} rows read, {dropped.total():,} of them unusable")
        return rows

    def _read_file(self, file: Path) -> int:
        """Add a file's rows to the table raw, and return the lines that could not even become rows."""
        columns, before = self.config.columns, self.count("raw")
        wanted = [("--user_col", columns.user), ("--item_col", columns.item), ("--time_col", columns.time)]
        raw = RawFile(file, wanted + [("--rating_col", columns.rating)] * (self.config.min_rating is not None))
        try:
            self.run(f"INSERT INTO raw {self._judged(raw.query(self.sql, self.links))}")
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error as error:
            raise raw.unreadable(error) from None
        self.say(f"{file}: {self.count('raw') - before + raw.lost:,} rows")
        raw.tell(self.note)
        return raw.lost

    def _judged(self, query: str) -> str:
        """Return the SQL of the rows of raw: names, instant, and why the row is dropped if it is."""
        names, least = ["user_name", "item_name", "moment", "rating"], self.config.min_rating
        texts = f"(SELECT * FROM ({query})) AS t({', '.join(names[: 3 if least is None else 4])})"
        cleaned = ", ".join(f"{stripped(name)} AS {name}" for name in names)
        rows = f"(SELECT {cleaned} FROM (SELECT *{', NULL AS rating' if least is None else ''} FROM {texts}))"
        return f"""
            SELECT user_name, item_name, t, reason,
                CASE reason WHEN 'no time' THEN moment WHEN 'no rating' THEN rating END AS example
            FROM (
                SELECT *, TRY_CAST(rating AS DOUBLE) AS stars, CASE
                    WHEN user_name IS NULL THEN 'no user'
                    WHEN item_name IS NULL THEN 'no item'
                    WHEN '{PADDING}' IN (user_name, item_name) THEN 'reserved name {PADDING}'
                    WHEN t IS NULL THEN 'no time'
                    WHEN {least is not None} AND NOT coalesce(isfinite(stars), false) THEN 'no rating'
                    WHEN stars < {least or 0} THEN 'rating below {least}'
                END AS reason
                FROM ({with_instant(rows)}))"""

    def deduplicate(self) -> None:
        """Make the table pairs(u, i, t): one interaction per user and item, the first; or one per time as well."""
        for kind in ("user", "item"):
            self.run(f"CREATE TABLE {kind}s AS SELECT DISTINCT {kind}_name AS name FROM raw WHERE reason IS NULL")
            self._note_odd_names(f"{kind}s")
        usable = self.count("raw WHERE reason IS NULL")
        one = "t FROM" if self.config.keep_repeats else "min(t) AS t FROM"
        self.run(f"""
            CREATE TABLE pairs AS
            SELECT CAST(users.rowid AS INTEGER) AS u, CAST(items.rowid AS INTEGER) AS i, {one} raw
            JOIN users ON users.name = user_name JOIN items ON items.name = item_name
            WHERE reason IS NULL GROUP BY ALL""")
        self.run("DROP TABLE raw")
        pairs, users, items = map(self.count, ("pairs", "users", "items"))
        self.dropped["repeated interaction"] = usable - pairs
        self.say(f"{pairs:,} different interactions of {users:,} users with {items:,} items")

    def _note_odd_names(self, kind: str) -> None:
        """Point to names that are taken as they are written, but may not be meant so."""
        rows = self.run(f"SELECT name FROM {kind} WHERE lower(name) IN {NO_VALUES} ORDER BY 1").fetchall()
        if rows:
            names = ", ".join(name for (name,) in rows)
            self.note(f"{kind} are called {names}; if that stands for no value, export it as an empty field")
        pair = self.run(f"""
            SELECT min(name), max(name) FROM (SELECT name, TRY_CAST(name AS DOUBLE) AS number FROM {kind})
            WHERE isfinite(number) AND length(name) < 16 GROUP BY number HAVING count(*) > 1 ORDER BY 1""").fetchone()
        if pair:
            self.note(f"{kind} such as {pair[0]} and {pair[1]} have different names; write numbers alike in all files")

    def keep_core(self) -> None:
        """Drop users and items with fewer than k_core interactions until none is left."""
        k, rounds, before = self.config.k_core, 0, self.count("pairs")
        remaining = before
        while k > 1:
            last, rounds = remaining, rounds + 1
            self.run(f"""
                CREATE OR REPLACE TABLE core AS SELECT * FROM pairs
                WHERE u IN (SELECT u FROM pairs GROUP BY u HAVING count(*) >= {k})
                AND i IN (SELECT i FROM pairs GROUP BY i HAVING count(*) >= {k})""")
            self.run("DROP TABLE pairs; ALTER TABLE core RENAME TO pairs")
            remaining = self.count("pairs")
            if remaining == last:
                break
            self.say(f"{k}-core, round {rounds}: {remaining:,} interactions")
        reason = f"outside the {k}-core"
        self.dropped[reason] = self.dropped.get(reason, 0) + before - remaining

    def read_texts(self) -> dict[str, str]:
        """Return the texts of the items that are left, and drop the interactions of those without one."""
        config, columns = self.config, self.config.columns
        names = self.run("SELECT name FROM items WHERE rowid IN (SELECT i FROM pairs)").fetchall()
        wanted, texts, rows, first = {name for (name,) in names}, {}, 0, []
        for rows, row in enumerate(self._item_rows(), start=1):
            name = name_of(row.get(columns.item_of_text))
            if len(first) < 3:
                first.append(name)
            if name in wanted and (text := sentence(row, columns.text)):
                texts[name] = min(texts.get(name, text), text)  # of several rows the smallest, whatever their order
            if rows % 500_000 == 0:
                self.say(f"{rows:,} rows of {config.items} read")
        if wanted and not texts:
            here = ", ".join(sorted(wanted)[:3])
            raise InputError(
                f"none of the {len(wanted):,} items of {config.interactions} ({here}, ...) has a text in "
                f"{config.items} ({', '.join(first)}, ...); check the columns, and that both files write items alike"
            )
        empty = [text for text in texts.values() if {part.strip().lower() for part in text.split(".")} <= NO_TEXTS]
        if empty:
            self.note(
                f"{len(empty):,} items have no other text than such as {min(empty)!r}; if that stands for no value, "
                "export it as an empty field"
            )
        before = self.count("pairs")
        without = sorted(wanted - texts.keys())
        rows_without = "SELECT rowid FROM items WHERE name IN (SELECT unnest(CAST(? AS VARCHAR[])))"
        self.run(f"DELETE FROM pairs WHERE i IN ({rows_without})", [without])
        self.dropped["item without text"] = before - self.count("pairs")
        self.say(
            f"{rows + self.unreadable_items:,} items read ({self.unreadable_items:,} unreadable rows), "
            f"texts for {len(texts):,} of {len(wanted):,}; {len(without):,} items without text"
            + (f", the first is {without[0]!r}" if without else "")
        )
        return texts

    def _item_rows(self) -> Iterator[dict]:
        """Yield the rows of the item files, and complain about a column that was asked for and that none has."""
        columns, there = self.config.columns, {}
        wanted = [("--items_item_col", columns.item_of_text), *(("--text_cols", column) for column in columns.text)]
        for file in files_of(self.config.items):
            raw = RawFile(file, wanted)
            yield from raw.rows(self.sql, self.links)
            raw.tell(self.note)
            self.unreadable_items += raw.lost
            there |= raw.columns if raw.format == "json" else dict.fromkeys(name for _, name in wanted)
        asked = wanted if self.config.text_cols else wanted[:1]  # an edition's shop may lack a field in all its items
        missing = [pair for pair in asked if pair[1] not in there]
        if there and missing:
            raw.columns = there
            raise raw.absent(missing)

    def write(self, folder: Path, texts: dict[str, str]) -> dict[str, float]:
        """Write the three files of the published format and return the numbers of table 1."""
        names: dict[str, list[str]] = {}
        for kind, column in (("user", "u"), ("item", "i")):
            self.run(f"""
                CREATE TABLE {kind}_ids AS
                SELECT name, {column}, CAST(row_number() OVER (ORDER BY name) AS INTEGER) AS id
                FROM {kind}s JOIN (SELECT DISTINCT {column} FROM pairs) ON {kind}s.rowid = {column}""")
            names[kind] = [name for (name,) in self.run(f"SELECT name FROM {kind}_ids ORDER BY id").fetchall()]
        users, items = names.values()
        ordered = self.run("""
            SELECT user_ids.id AS "user", item_ids.id AS item FROM pairs JOIN user_ids USING (u) JOIN item_ids USING (i)
            ORDER BY user_ids.id, t, item_ids.id""").fetchnumpy()
        offsets = np.searchsorted(ordered["user"], np.arange(1, len(users) + 2))
        with open(folder / "all_item_seqs.json", "w", encoding="utf-8") as file:
            as_json = [json.dumps(name, ensure_ascii=False) for name in [PADDING, *items]]
            for number, user in enumerate(users):
                sequence = ordered["item"][offsets[number] : offsets[number + 1]].tolist()
                line = f"{json.dumps(user, ensure_ascii=False)}: [{', '.join([as_json[item] for item in sequence])}]"
                file.write((",\n" if number else "{\n") + line)
            file.write("\n}\n")
        mapping = {f"{kind}2id": {name: id for id, name in enumerate(names[kind], start=1)} for kind in names}
        mapping |= {f"id2{kind}": [PADDING, *names[kind]] for kind in names}
        write_json(folder / "id_mapping.json", mapping, indent=0)
        write_json(folder / "metadata.sentence.json", {item: texts[item] for item in items})
        return table_1(len(users), len(items), len(ordered["item"]))


def table_1(users: int, items: int, interactions: int) -> dict[str, float]:
    """Return the numbers of the paper's table 1; sparsity is a share."""
    return {
        **{"users": users, "items": items, "interactions": interactions},
        **{"sparsity": 1 - interactions / (users * items), "mean_length": interactions / users},
    }


def stats_text(stats: dict, paper: dict[str, int] | None) -> str:
    """Return what was made and dropped, beside the paper's numbers where it has this dataset."""
    made = {"made": stats["dataset"]} | ({"paper, table 1": table_1(**paper)} if paper else {})
    forms = {"users": ",", "items": ",", "interactions": ",", "sparsity": ".3%", "mean_length": ".2f"}
    table = [[name, *(format(row[column], form) for column, form in forms.items())] for name, row in made.items()]
    lines = [
        text_table(["", *(name.replace("_", " ") for name in forms)], table),
        f"of {stats['rows']:,} rows were dropped:",
    ]
    return "\n".join(lines + [f"  {count:>12,}  {reason}" for reason, count in stats["dropped"].items()])


def origin_of(config: PrepareConfig) -> dict:
    """Return what determines the dataset, as stats.json keeps it: the settings and the hashes of the files."""
    free = ("data_dir", "memory_limit", "threads", "overwrite")
    origin = {name: value for name, value in asdict(config).items() if name not in free}
    for name in ("interactions", "items"):
        hashes = [{"file": file.name, "sha256": sha256_of(file)} for file in files_of(origin[name])]
        origin[name] = hashes[0] if len(hashes) == 1 else hashes
    return origin


def is_there(config: PrepareConfig, origin: dict) -> bool:
    """Return whether the dataset was prepared with these settings before; what may not be replaced is an error."""
    folder = config.folder
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; choose another --dataset")
    if not folder.exists() or {path.name for path in folder.iterdir()} <= {CARD_FILE}:
        return False
    try:
        same = {"items_item_col": ""} | read_json(folder / STATS_FILE, "settings") == origin
    except (InputError, TypeError):  # there is none, or it is broken
        same = False
    derived = ", ".join(sorted(path.name for path in folder.iterdir() if path.name not in FILES)[:5])
    differing = "" if same else "other files or settings"
    refusal = f"holds a dataset of {differing}; --overwrite replaces it"
    protected = derived and f"holds {derived}, made from other data; move it, or choose another --dataset"
    flags = {"overwrite": config.overwrite, "reuse": True}
    return claim(folder, "finished", differing, **flags, refusal=refusal, protected=protected) == "reuse"


def prepare(config: PrepareConfig) -> dict:
    """Make the dataset's folder, whole or not at all, or leave it as it is; return what stats.json holds."""
    origin = origin_of(config)
    with nullcontext() if is_there(config, origin) else making(config.folder) as work:
        if not work or is_there(config, origin):  # somebody else may have made it meanwhile
            print(f"{config.folder}: reused, it was prepared before from the same files with the same settings")
            return read_json(config.folder / STATS_FILE)
        try:
            return _prepare(config, origin, work)
        except duckdb.Error as error:
            reason = f"DuckDB stopped: {str(error).splitlines()[0]}"
            raise InputError(f"{reason}; look at --memory_limit={config.memory_limit} and the room on disk") from None


def _prepare(config: PrepareConfig, origin: dict, work: Path) -> dict:
    """Make the dataset's folder with the help of a folder to work in, and return what stats.json holds."""
    limits = {"memory_limit": config.memory_limit, "temp_directory": str(work / "spill")}
    limits |= {"threads": config.threads} if config.threads else {}
    database = ":memory:" if "?" in str(work) else str(work / "tables.duckdb")  # DuckDB cuts a path there
    with tempfile.TemporaryDirectory() as links, duckdb.connect(database, config=limits) as connection:
        (Path(links) / "work").symlink_to(work)
        connection.execute("SET preserve_insertion_order = false")
        connection.execute(f"SET enable_progress_bar = {sys.stdout.isatty()}")
        steps = Preparation(config, connection, Path(links))
        rows = steps.read()
        steps.deduplicate()
        steps.keep_core()
        texts = steps.read_texts()
        steps.keep_core()
        if steps.count("pairs") == 0:
            if not rows:
                raise InputError(f"{config.interactions} has no rows")
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in steps.dropped.items() if count)
            advice = steps.notes or ["check the columns and --k_core"]
            if steps.dropped.keys() & {"no user", "no item"}:
                advice = [*advice, "a name is text or a number, not empty, null, a list or an object"]
            raise InputError(f"no interaction of {rows:,} is left ({reasons}); {'; '.join(advice)}")
        with atomic_folder(config.folder) as temporary:
            dataset = steps.write(temporary, texts)
            stats = {"dataset": dataset, "rows": rows, "dropped": steps.dropped, "settings": origin}
            write_json(temporary / STATS_FILE, stats)
            if has_own_card(config.folder):
                shutil.copyfile(config.folder / CARD_FILE, temporary / CARD_FILE)
                steps.say(f"{config.folder / CARD_FILE}: yours, so it stays as it is")
            else:
                write_text(temporary / CARD_FILE, dataset_card(stats))
        steps.say(f"{config.folder}: written")
    return stats


def main(argv: list[str] | None = None) -> None:
    """Prepare the dataset and print its numbers."""
    config, _ = parse_config(PrepareConfig, argv, "python -m data.prepare", __doc__)
    print(stats_text(prepare(config), PAPER.get(config.dataset)))


if __name__ == "__main__":
    run_command(main)
