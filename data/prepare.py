"""Make a dataset folder of raw reviews: filter, k-core, time order, item texts.

    python -m data.prepare --dataset=Musical_Instruments --source=amazon2023 \\
        --interactions=raw/Musical_Instruments.csv.gz --items=raw/meta_Musical_Instruments.jsonl.gz
    python -m data.prepare --dataset=MyShop --interactions=orders.parquet --items=products.csv \\
        --user_col=customer --item_col=sku --time_col=ordered_at --text_cols=name,brand,description

Files: .jsonl, .json, .csv, .tsv (each also .gz) and .parquet. Amazon's editions (--source=amazon2023, the raw files and
the official rating_only ones; amazon2018; amazon2014) know their columns. Times are seconds, milli- or microseconds, or
dates, mixed as they may be. Writes <data_dir>/<dataset>/: all_item_seqs.json, metadata.sentence.json, id_mapping.json,
and stats.json with what was dropped and why. Users and items are numbered by name; a user's items stand in time order,
those of the same time by item name: neither the order of the rows nor the number of threads matters.
"""

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb
import numpy as np

from data.interactions import PADDING
from data.raw import SOURCES, Columns, file_format, item_rows, quoted, scan, sentence
from utils.claims import claim
from utils.config import parse_config
from utils.errors import InputError
from utils.files import atomic_folder, read_json, sha256_of, write_json
from utils.runtime import run_command

STATS_FILE = "stats.json"
FILES = {"all_item_seqs.json", "metadata.sentence.json", "id_mapping.json", STATS_FILE}
# Users, items and interactions. Source: arXiv 2504.04400, table 1.
PAPER = {
    "Musical_Instruments": (57_439, 24_587, 511_836),
    "Industrial_and_Scientific": (50_985, 25_848, 412_947),
    "Video_Games": (94_762, 25_612, 814_586),
}


@dataclass
class PrepareConfig:
    """Settings of the preparation."""

    dataset: str = ""
    """Name of the dataset's folder."""
    data_dir: str = "datasets/"
    """Folder that holds dataset folders."""
    interactions: str = ""
    """File of interactions (reviews, orders, ratings)."""
    items: str = ""
    """File of items and the fields of their texts."""
    source: str = "table"
    """Where the files come from: amazon2023, amazon2018, amazon2014, or table for anything with columns."""
    user_col: str = ""
    """Column of the user; the Amazon sources have theirs."""
    item_col: str = ""
    """Column of the item, in both files."""
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
        needed["text_cols"] = columns.text
        if self.min_rating is not None:
            needed["rating_col"] = columns.rating
        found += [f"--{name} is needed with --source=table" for name, value in needed.items() if not value]
        for name in ("k_core", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                found.append(f"{name}={value} must be at least 1")
        return found

    @property
    def columns(self) -> Columns:
        """The source's columns, or those given."""
        source = SOURCES[self.source]
        return Columns(
            self.user_col or source.user,
            self.item_col or source.item,
            self.time_col or source.time,
            self.rating_col or source.rating,
            tuple(column for column in self.text_cols.split(",") if column) or source.text,
        )

    @property
    def folder(self) -> Path:
        """The dataset's folder."""
        return Path(self.data_dir) / self.dataset


class Preparation:
    """The steps, on tables of one DuckDB database on disk.

    Args:
        config: Settings.
        connection: An empty database.
    """

    def __init__(self, config: PrepareConfig, connection: duckdb.DuckDBPyConnection):
        self.config, self.sql = config, connection
        self.dropped: dict[str, int] = {}
        self.started = time.perf_counter()

    def say(self, text: str) -> None:
        print(f"{time.perf_counter() - self.started:6.0f} s  {text}", flush=True)

    def count(self, table: str) -> int:
        return self.sql.execute(f"SELECT count(*) FROM {table}").fetchone()[0]

    def read(self) -> int:
        """Make the table raw(user_name, item_name, t in milliseconds, reason to drop it) and return its rows."""
        config, columns, file = self.config, self.config.columns, Path(self.config.interactions)
        wanted = [columns.user, columns.item, columns.time]
        rating = config.min_rating is not None
        expression = scan(file, [*wanted, columns.rating] if rating else wanted, self.sql)
        user, item, when = (f"nullif(trim(CAST({quoted(name)} AS VARCHAR)), '')" for name in wanted)
        stars = f"TRY_CAST({quoted(columns.rating)} AS DOUBLE)" if rating else "NULL"
        self.sql.execute(f"""
            CREATE TABLE raw AS
            SELECT user_name, item_name, t,
                CASE
                    WHEN user_name IS NULL AND item_name IS NULL AND moment IS NULL THEN 'unreadable row'
                    WHEN user_name IS NULL THEN 'no user'
                    WHEN item_name IS NULL THEN 'no item'
                    WHEN t IS NULL THEN 'no time'
                    WHEN {rating} AND stars IS NULL THEN 'no rating'
                    WHEN {rating} AND stars < {config.min_rating or 0} THEN 'rating below {config.min_rating}'
                END AS reason
            FROM (
                SELECT *, CAST(round(CASE
                    WHEN number IS NULL THEN epoch_ms(TRY_CAST(moment AS TIMESTAMP))
                    WHEN NOT isfinite(number) THEN NULL
                    WHEN abs(number) < 1e11 THEN number * 1e3
                    WHEN abs(number) < 1e14 THEN number
                    WHEN abs(number) < 1e17 THEN number / 1e3
                    WHEN abs(number) < 1e20 THEN number / 1e6
                END) AS BIGINT) AS t
                FROM (
                    SELECT *, TRY_CAST(moment AS DOUBLE) AS number
                    FROM (SELECT {user} AS user_name, {item} AS item_name, {when} AS moment, {stars} AS stars
                          FROM {expression})))""")
        if file_format(file) in ("csv", "tsv"):
            rejected = self.sql.execute("SELECT count(DISTINCT line) FROM reject_errors").fetchone()[0]
            if rejected:
                self.dropped["unreadable row"] = rejected
        rows = self.count("raw") + sum(self.dropped.values())
        by_reason = self.sql.execute("SELECT reason, count(*) FROM raw WHERE reason IS NOT NULL GROUP BY 1").fetchall()
        self.dropped = dict(sorted((Counter(self.dropped) + Counter(dict(by_reason))).items()))
        self.say(f"{rows:,} rows read, {sum(self.dropped.values()):,} of them unusable")
        return rows

    def deduplicate(self) -> None:
        """Make the table pairs(u, i, t): one interaction per user and item, the first; or one per time as well."""
        for kind in ("user", "item"):
            self.sql.execute(
                f"CREATE TABLE {kind}s AS SELECT DISTINCT {kind}_name AS name FROM raw WHERE reason IS NULL"
            )
        usable = self.count("raw WHERE reason IS NULL")
        one = "t FROM" if self.config.keep_repeats else "min(t) AS t FROM"
        self.sql.execute(f"""
            CREATE TABLE pairs AS
            SELECT CAST(users.rowid AS INTEGER) AS u, CAST(items.rowid AS INTEGER) AS i, {one} raw
            JOIN users ON users.name = user_name JOIN items ON items.name = item_name
            WHERE reason IS NULL GROUP BY ALL""")
        self.sql.execute("DROP TABLE raw")
        self.dropped["repeated interaction"] = usable - self.count("pairs")
        self.say(
            f"{self.count('pairs'):,} different interactions of {self.count('users'):,} users "
            f"with {self.count('items'):,} items"
        )

    def keep_core(self) -> None:
        """Drop users and items with fewer than k_core interactions until none is left."""
        k, rounds, before = self.config.k_core, 0, self.count("pairs")
        remaining = before
        while k > 1:
            last, rounds = remaining, rounds + 1
            self.sql.execute(f"""
                CREATE OR REPLACE TABLE core AS SELECT * FROM pairs
                WHERE u IN (SELECT u FROM pairs GROUP BY u HAVING count(*) >= {k})
                AND i IN (SELECT i FROM pairs GROUP BY i HAVING count(*) >= {k})""")
            self.sql.execute("DROP TABLE pairs")
            self.sql.execute("ALTER TABLE core RENAME TO pairs")
            remaining = self.count("pairs")
            if remaining == last:
                break
            self.say(f"{k}-core, round {rounds}: {remaining:,} interactions")
        reason = f"outside the {k}-core"
        self.dropped[reason] = self.dropped.get(reason, 0) + before - remaining

    def read_texts(self) -> dict[str, str]:
        """Return the texts of the items that are left, and drop the interactions of those without one."""
        config, columns = self.config, self.config.columns
        names = self.sql.execute("SELECT name FROM items WHERE rowid IN (SELECT i FROM pairs)").fetchall()
        wanted, texts, rows, unreadable, first = {name for (name,) in names}, {}, 0, 0, []
        for row in item_rows(Path(config.items), [columns.item, *columns.text]):
            rows += 1
            unreadable += row is None
            name = str((row or {}).get(columns.item, "")).strip()
            if len(first) < 3:
                first.append(name)
            if name in wanted:
                text = sentence(row, columns.text)
                if text:  # of several rows the smallest text, whatever their order
                    texts[name] = min(texts.get(name, text), text)
            if rows % 500_000 == 0:
                self.say(f"{rows:,} rows of {config.items} read")
        if wanted and not texts:
            here = ", ".join(sorted(wanted)[:3])
            raise InputError(
                f"none of the {len(wanted):,} items of {config.interactions} ({here}, ...) has a text in "
                f"{config.items} ({', '.join(first)}, ...); check the columns, and that both files write items alike"
            )
        before = self.count("pairs")
        without = [(name,) for name in sorted(wanted - texts.keys())]
        if without:
            self.sql.execute("CREATE TABLE untold (name VARCHAR)")
            self.sql.executemany("INSERT INTO untold VALUES (?)", without)
            self.sql.execute(
                "DELETE FROM pairs WHERE i IN (SELECT rowid FROM items WHERE name IN (SELECT name FROM untold))"
            )
        self.dropped["item without text"] = before - self.count("pairs")
        self.say(
            f"{rows:,} items read ({unreadable:,} unreadable rows), texts for {len(texts):,} of {len(wanted):,}; "
            f"{len(without):,} items without text"
        )
        return texts

    def write(self, folder: Path, texts: dict[str, str]) -> dict[str, float]:
        """Write the three files of the published format and return the numbers of table 1."""
        for kind, column in (("user", "u"), ("item", "i")):
            self.sql.execute(f"""
                CREATE TABLE {kind}_ids AS
                SELECT name, {column}, CAST(row_number() OVER (ORDER BY name) AS INTEGER) AS id
                FROM {kind}s JOIN (SELECT DISTINCT {column} FROM pairs) ON {kind}s.rowid = {column}""")
        items = [name for (name,) in self.sql.execute("SELECT name FROM item_ids ORDER BY id").fetchall()]
        ordered = self.sql.execute("""
            SELECT user_ids.id AS "user", item_ids.id AS item FROM pairs JOIN user_ids USING (u) JOIN item_ids USING (i)
            ORDER BY user_ids.id, t, item_ids.id""").fetchnumpy()
        num_users = self.count("user_ids")
        offsets = np.searchsorted(ordered["user"], np.arange(1, num_users + 2))
        as_json = [json.dumps(name, ensure_ascii=False) for name in [PADDING, *items]]

        def users() -> Iterable[str]:
            cursor = self.sql.cursor().execute("SELECT name FROM user_ids ORDER BY id")
            while batch := cursor.fetchmany(10_000):
                yield from (json.dumps(name, ensure_ascii=False) for (name,) in batch)

        def sequences() -> Iterable[str]:
            for user, start, end in zip(users(), offsets[:-1], offsets[1:], strict=True):
                yield f"{user}: [{', '.join([as_json[item] for item in ordered['item'][start:end].tolist()])}]"

        with open(folder / "all_item_seqs.json", "w", encoding="utf-8") as file:
            _write_members(file, "{}", sequences())
            file.write("\n")
        with open(folder / "id_mapping.json", "w", encoding="utf-8") as file:
            file.write('{"user2id": ')
            _write_members(file, "{}", (f"{user}: {number}" for number, user in enumerate(users(), start=1)))
            file.write(', "item2id": ')
            _write_members(file, "{}", (f"{item}: {number}" for number, item in enumerate(as_json) if number))
            file.write(', "id2user": ')
            _write_members(file, "[]", (name for part in ([as_json[0]], users()) for name in part))
            file.write(', "id2item": ')
            _write_members(file, "[]", as_json)
            file.write("}\n")
        write_json(folder / "metadata.sentence.json", {item: texts[item] for item in items})
        return table_1(num_users, len(items), len(ordered["item"]))


def _write_members(file, brackets: str, members: Iterable[str]) -> None:
    """Write a JSON object or list of encoded members, one per line."""
    file.write(brackets[0])
    for number, member in enumerate(members):
        file.write(("," if number else "") + "\n" + member)
    file.write("\n" + brackets[1])


def table_1(users: int, items: int, interactions: int) -> dict[str, float]:
    """Return the numbers of the paper's table 1; sparsity is a share."""
    return {
        **{"users": users, "items": items, "interactions": interactions},
        **{"sparsity": 1 - interactions / (users * items), "mean_length": interactions / users},
    }


def stats_text(stats: dict, paper: tuple[int, int, int] | None) -> str:
    """Return what was made and dropped, beside the paper's numbers where it has this dataset."""
    rows = [("made", stats["dataset"])] + ([("paper, table 1", table_1(*paper))] if paper else [])
    lines = [f"{'':14}  {'users':>10}  {'items':>10}  {'interactions':>12}  sparsity  mean length"]
    for name, row in rows:
        counts = f"{row['users']:>10,}  {row['items']:>10,}  {row['interactions']:>12,}"
        lines.append(f"{name:14}  {counts}  {row['sparsity']:8.3%}  {row['mean_length']:11.2f}")
    lines.append(f"of {stats['rows']:,} rows were dropped:")
    lines += [f"  {count:>12,}  {reason}" for reason, count in stats["dropped"].items()]
    return "\n".join(lines)


def settings_of(config: PrepareConfig) -> dict:
    """Return what determines the dataset, as stats.json keeps it: the settings and the hashes of the files."""
    free = ("data_dir", "memory_limit", "threads", "overwrite")
    settings = {name: value for name, value in asdict(config).items() if name not in free}
    for name in ("interactions", "items"):
        file = Path(settings[name])
        file_format(file)
        settings[name] = {"file": file.name, "sha256": sha256_of(file)}
    return settings


def is_there(config: PrepareConfig, settings: dict) -> bool:
    """Return whether the dataset was prepared with these settings before.

    Raises:
        InputError: Something else is there that may not be replaced.
    """
    folder = config.folder
    if not folder.exists() or not any(folder.iterdir()):
        return False
    stats = folder / STATS_FILE
    same = stats.is_file() and read_json(stats).get("settings") == settings
    derived = ", ".join(sorted(path.name for path in folder.iterdir() if path.name not in FILES)[:5])
    answer = claim(
        folder,
        "finished",
        "" if same else "other files or settings",
        overwrite=config.overwrite,
        reuse=True,
        refusal="holds a dataset of other files or settings; --overwrite replaces it",
        protected=derived and f"holds {derived}, made from other data; move it, or choose another --dataset",
    )
    return answer == "reuse"


def prepare(config: PrepareConfig) -> dict:
    """Make the dataset's folder, whole or not at all, or leave it as it is.

    Returns:
        What stats.json holds.

    Raises:
        InputError: Files cannot be read, nothing is left, or another dataset is there.
    """
    settings = settings_of(config)
    if is_there(config, settings):
        print(f"{config.folder}: reused, it was prepared before from the same files with the same settings")
        return read_json(config.folder / STATS_FILE)
    work = Path(config.data_dir) / f".{config.dataset}.prepare"
    if work.exists():
        print(f"{work}: an earlier preparation was interrupted; starting over")
        shutil.rmtree(work)
    work.mkdir(parents=True)
    try:
        limits = {"memory_limit": config.memory_limit, "temp_directory": str(work / "spill")}
        limits |= {"threads": config.threads} if config.threads else {}
        with duckdb.connect(str(work / "tables.duckdb"), config=limits) as connection:
            connection.execute("SET preserve_insertion_order = false")
            connection.execute(f"SET enable_progress_bar = {sys.stdout.isatty()}")
            steps = Preparation(config, connection)
            rows = steps.read()
            steps.deduplicate()
            steps.keep_core()
            texts = steps.read_texts()
            steps.keep_core()
            if steps.count("pairs") == 0:
                reasons = ", ".join(f"{reason} {count:,}" for reason, count in steps.dropped.items() if count)
                raise InputError(f"no interaction of {rows:,} is left ({reasons}); check the columns and --k_core")
            with atomic_folder(config.folder) as temporary:
                dataset = steps.write(temporary, texts)
                stats = {"dataset": dataset, "rows": rows, "dropped": steps.dropped, "settings": settings}
                write_json(temporary / STATS_FILE, stats)
            steps.say(f"{config.folder}: written")
    except duckdb.Error as error:
        raise InputError(f"DuckDB stopped: {str(error).splitlines()[0]}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return stats


def main(argv: list[str] | None = None) -> None:
    """Prepare the dataset and print its numbers."""
    config, _ = parse_config(PrepareConfig, argv, "python -m data.prepare", __doc__)
    print(stats_text(prepare(config), PAPER.get(config.dataset)))


if __name__ == "__main__":
    run_command(main)
