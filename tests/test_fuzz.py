"""Whatever a file holds, its reader either reads it or raises the project's own error."""

import csv
import io
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.interactions import load_interactions
from data.raw import sentence
from data.readers import RawFile, name_of, stripped, with_instant
from data.recbole import safe_names
from data.token_table import read_sem_ids
from evaluation.compare import Interval
from inference.recommend import Recommendations
from inference.requests import Request, combine_shards, names_in, read_users_file, write_shard
from reporting.page import PIECES
from reporting.pictures import draw_rows, drawable, picture
from tokenizer.config import TokenizerConfig
from tokenizer.embed import load_embeddings
from training.config import PretrainConfig
from utils.config import parse_config
from utils.errors import InputError

NAMES = ["a", "b", "c"]
fuzzed = settings(
    max_examples=600 if os.environ.get("FAULTS") == "long" else 40,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
scalars = (
    st.none() | st.booleans() | st.integers(-3, 9) | st.integers() | st.floats() | st.sampled_from(NAMES) | st.text()
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*NAMES, "user2id", "item2id"]) | st.text(), inner, max_size=4)
    ),
    max_leaves=20,
)


def contents(value: st.SearchStrategy) -> st.SearchStrategy[bytes]:
    """Return files of the JSON of such values, whole or cut, or of any bytes."""
    whole = value.map(lambda v: json.dumps(v).encode())
    return whole | st.tuples(whole, st.integers(0, 99)).map(lambda pair: pair[0][: pair[1]]) | st.binary(max_size=99)


def reads(read: Callable[[], object]) -> object:
    """Return what is read, or None for the project's own error; anything else fails the test."""
    try:
        return read()
    except InputError:
        return None


@fuzzed
@given(contents(st.dictionaries(st.sampled_from(NAMES), st.lists(st.integers(-1, 4) | scalars, max_size=4)) | values))
def test_semantic_ids(tmp_path, content):
    (tmp_path / "a.sem_ids").write_bytes(content)
    codes = reads(lambda: read_sem_ids(tmp_path / "a.sem_ids", NAMES, [4, 4, 4]))
    if codes is not None:
        assert codes.shape == (3, 3)
        assert (codes >= [0, 0, 1]).all()
        assert (codes < 4).all()
        assert len(np.unique(codes, axis=0)) == 3


ids = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 4) | scalars)
mappings = st.fixed_dictionaries({"user2id": ids, "item2id": st.just({"a": 1, "b": 2}) | ids})
sequences = st.dictionaries(st.sampled_from(NAMES), st.lists(st.sampled_from(["a", "b"])) | values)


@fuzzed
@given(contents(mappings | values), contents(sequences | values))
def test_interactions(tmp_path, mapping, sequence):
    (tmp_path / "id_mapping.json").write_bytes(mapping)
    (tmp_path / "all_item_seqs.json").write_bytes(sequence)
    found = reads(lambda: load_interactions(tmp_path))
    if found is not None:
        assert len(found.items) == found.offsets[-1]
        assert ((found.items >= 1) & (found.items <= found.num_items)).all()
        assert ((found.user_ids >= 1) & (found.user_ids <= len(json.loads(mapping)["user2id"]))).all()


@fuzzed
@given(
    st.binary(max_size=48)
    | st.lists(st.floats(width=32), min_size=6, max_size=6).map(lambda v: np.float32(v).tobytes())
)
def test_embeddings(tmp_path, content):
    config = TokenizerConfig("Tiny", str(tmp_path), sent_emb_model="e", sent_emb_dim=2, sent_emb_pca=1)
    config.folder.mkdir(exist_ok=True)
    config.embedding_file.write_bytes(content)
    embeddings = reads(lambda: load_embeddings(config, 3))
    if embeddings is not None:
        assert embeddings.shape == (3, 2)
        assert np.isfinite(embeddings).all()
        assert embeddings.tobytes() == content


flags = st.sampled_from(
    ["lr", "epochs", "epoch_per_stage", "topk", "metrics", "codebook_size", "sem_id_epochs", "dataset"]
)
good = st.sampled_from([1, 2, 0.1, [1, 2], ["ndcg"], "1:3", "x", None, True])
yaml_files = st.dictionaries(flags, good | values, max_size=4).map(lambda v: yaml.safe_dump(v).encode())


@fuzzed
@given(
    yaml_files | values.map(lambda v: yaml.safe_dump(v).encode()) | st.text().map(str.encode) | st.binary(max_size=60)
)
def test_settings(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    argv = [f"--config_file={tmp_path / 'config.yaml'}"]
    found = reads(lambda: parse_config(PretrainConfig, argv, "test", ""))
    if found is not None:
        assert found[0].problems() == []


# Raw data: what a plain reader makes of a file is right, and the same data in another guise is the same dataset.

words = st.text(st.sampled_from("ab\"',;\t\n\\|{[N é日\u3000\U0001f600") | st.characters(codec="utf-8"), max_size=5)
moments = st.integers(0, 10**10).map(str) | st.sampled_from(
    ["2023-01-01", "2023-01-01T10:00:00+02:00", "soon", "nan", ""]
)
raw_rows = st.lists(st.fixed_dictionaries({"user": words, "it em": words, "ts": moments, "text": words}), max_size=6)
guises = st.tuples(
    st.permutations(["user", "it em", "ts", "text", "note"]),
    st.sampled_from(["csv", "tsv", "jsonl", "json", "parquet"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
DATABASE = duckdb.connect(config={"threads": 1})
WANTED = [("--user_col", "user"), ("--item_col", "it em"), ("--time_col", "ts"), ("--text_cols", "text")]


def write_guise(folder: Path, rows: list[dict[str, str]], guise: tuple) -> Path:
    """Write rows in a format, encoding, line end, order of columns and manner of quoting."""
    columns, kind, encoding, end, quoting = guise
    file, rows = folder / f"rows.{kind}", [{name: row.get(name, "x") for name in columns} for row in rows]
    if kind == "parquet":
        names = ", ".join(f'"{name}" VARCHAR' for name in columns)
        DATABASE.execute(f"CREATE OR REPLACE TABLE rows ({names})")
        for row in rows:
            DATABASE.execute(f"INSERT INTO rows VALUES ({', '.join('?' * len(row))})", list(row.values()))
        DATABASE.execute(f"COPY rows TO '{file}'")
        return file
    if kind == "json":
        text = json.dumps(rows, indent=1, ensure_ascii=False)
    elif kind == "jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)
    else:
        handle = io.StringIO()
        delimiter = "\t" if kind == "tsv" else ","
        if any("\r" in value for row in rows for value in row.values()):
            quoting = csv.QUOTE_ALL  # Python before 3.13 leaves a lone one without quotes, which ends the line
        writer = csv.DictWriter(handle, columns, delimiter=delimiter, lineterminator=end, quoting=quoting)
        writer.writeheader()
        writer.writerows(rows)
        text = handle.getvalue()
    file.write_bytes(text.encode(encoding) if text.isascii() or encoding != "utf-16-le" else text.encode("utf-16"))
    return file


def as_read(file: Path) -> tuple[list[tuple], list[tuple], RawFile]:
    """Return users, items and times as the preparation reads them, the texts of items, and the file."""
    raw = RawFile(file, WANTED)
    with tempfile.TemporaryDirectory() as links:
        (Path(links) / "work").mkdir()
        cleaned = ", ".join(f"{stripped(name)} AS {name}" for name in ("user_name", "item_name", "moment"))
        table = f"(SELECT * FROM ({raw.query(DATABASE, Path(links))})) AS t(user_name, item_name, moment, text)"
        try:
            rows = with_instant(f"(SELECT {cleaned} FROM {table})")
            found = DATABASE.execute(f"SELECT user_name, item_name, t FROM ({rows})").fetchall()
        except duckdb.Error as error:
            raise raw.unreadable(error) from None
        again = RawFile(file, WANTED)
        try:
            rows = list(again.rows(DATABASE, Path(links)))
        except duckdb.Error as error:
            raise again.unreadable(error) from None
    items = [(name_of(row.get("it em")), sentence(row, ("text",))) for row in rows]
    if raw.format != "parquet":
        assert (raw.lost, raw.first_lost) == (again.lost, again.first_lost)
    return sorted(found, key=repr), sorted(items), raw


def judged(rows: list[dict[str, str]]) -> tuple[list[tuple], list[tuple]]:
    """Return what plain Python makes of the rows."""
    dates = {"2023-01-01": 1_672_531_200, "2023-01-01T10:00:00+02:00": 1_672_560_000}
    found, items = [], []
    for row in rows:
        seconds = dates.get(row["ts"], int(row["ts"]) if row["ts"].isdecimal() else None)
        names = [row[name].replace("\r\n", "\n").replace("\r", "\n").strip() for name in ("user", "it em")]
        names = [None if name in ("", "\\N") else name for name in names]
        found.append((*names, None if seconds is None else seconds * 10**6))
        items.append((names[1] or "", sentence(row, ("text",))))
    return sorted(found, key=repr), sorted(items)


@fuzzed
@given(raw_rows, guises)
def test_the_same_rows_in_any_guise_are_the_same(tmp_path, rows, guise):
    found, items, raw = as_read(write_guise(tmp_path, rows, guise))
    assert (found, items) == judged(rows)
    assert (raw.lost, raw.foreign) == (0, 0)


@fuzzed
@given(st.text(st.sampled_from('a1,;\t\n\r é"\\')), st.sampled_from(["csv", "tsv"]))
def test_any_table_is_read_as_plain_python_reads_it(tmp_path, text, kind):
    """Lines without quotes are judged by str.split, those with some by the number of rows that come or are counted."""
    mark = "\t" if kind == "tsv" else ","
    file = tmp_path / f"rows.{kind}"
    file.write_bytes((mark.join(name for _, name in WANTED) + "\n" + text).encode())
    said, found = "a quote opens a field and never closes", None
    try:
        found = as_read(file)
    except InputError as error:
        said = str(error)
    assert "a quote opens a field and never closes" in said
    lines = [
        line for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n") if line.strip(" ") or mark in line
    ]
    if '"' not in text:
        good = [line.split(mark) for line in lines if line.count(mark) == 3]
        assert [row[:2] for row in found[0]] == sorted(
            [tuple(name.strip() or None for name in line[:2]) for line in good], key=repr
        )
        assert found[2].lost == len([line for line in lines if line.count(mark) != 3 and line.strip()])
    elif found:
        assert len(found[0]) == len(found[1]) <= len(lines)


@fuzzed
@given(
    contents(values) | st.binary(max_size=60).map(lambda content: b"user,it em,ts,text\n" + content),
    st.sampled_from(["csv", "tsv", "jsonl", "json", "parquet", "csv.gz"]),
)
def test_any_bytes_are_read_or_refused(tmp_path, content, kind):
    file = tmp_path / f"rows.{kind}"
    file.write_bytes(content)
    reads(lambda: as_read(file))


# Names and texts of any characters, on their way in by the command line and out into files, pages and pictures.

letters = st.sampled_from("ab[]{}(),;'\"\\$_#&<>\t\n\x85\u200b\u202e\u05d0\u65e5\U0001f600") | st.characters(
    codec="utf-8"
)
reserved = st.sampled_from(["NA", "None", "null", "nan", "true", "007", "12.0", "1e3", "x" * 300, "-1", "--k", "[PAD]"])
any_names = st.lists(
    (st.text(letters, min_size=1, max_size=6) | reserved).map(name_of).filter(bool), min_size=1, max_size=5, unique=True
)


@fuzzed
@given(any_names, st.booleans())
def test_names_come_in_as_they_are(tmp_path, names, brackets):
    listed = [name for name in names if "," not in name and not name.startswith("[")]
    text = ", ".join(listed)
    found = reads(lambda: names_in(f"[{text}]" if brackets else text, set(names)))
    assert found is None or found == listed
    assert found is not None or any("," in name for name in names)
    file = tmp_path / "users.jsonl"
    file.write_text("".join(json.dumps({"user": name, "history": names}) + "\n" for name in names), encoding="utf-8")
    assert read_users_file(file) == [(name, names) for name in names]


@fuzzed
@given(any_names, st.sampled_from([".jsonl", ".csv", ".parquet"]))
def test_recommendations_name_everybody_in_every_format(tmp_path, names, ending):
    everything = np.tile(np.arange(1, len(names) + 1), (len(names), 1))
    found = Recommendations(everything, np.float32(-everything), np.zeros(len(names), dtype=bool))
    requests = [Request(name, 0, np.empty(0, dtype=np.int64), []) for name in names]
    write_shard(tmp_path / "0[1]", requests, found, ["[PAD]", *names])
    output = tmp_path / f"out[1]{ending}"
    combine_shards([tmp_path / "0[1]"], output)
    if ending == ".jsonl":
        rows = [json.loads(line) for line in output.read_text(encoding="utf-8").split("\n") if line]
        pairs = [(row["user"], item) for row in rows for item in row["items"]]
    elif ending == ".csv":
        with open(output, encoding="utf-8", newline="") as file:
            pairs = [(row["user"], row["item"]) for row in csv.DictReader(file)]
    else:
        (tmp_path / "out.parquet").write_bytes(output.read_bytes())
        pairs = DATABASE.execute(f"SELECT user, item FROM '{tmp_path}/out.parquet'").fetchall()
    assert pairs == [(user, item) for user in names for item in names]


@fuzzed
@given(any_names)
def test_recbole_reads_the_names_or_those_that_stand_for_them(names):
    safe, renamed = safe_names(names, "item")
    read = pd.read_csv(
        io.StringIO("id:token\tn:float\n" + "".join(f"{name}\t1\n" for name in safe)),
        **{"delimiter": "\t", "dtype": str, "engine": "python"},
    )
    assert [renamed.get(name, name) for name in read["id:token"]] == names
    assert len(set(safe)) == len(names)


class Cells(HTMLParser):
    """The texts of a table's cells."""

    def __init__(self, html: str):
        super().__init__()
        self.found: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.found += [""] if tag in ("td", "th") else []

    def handle_data(self, text: str) -> None:
        self.found[-1:] = [cell + text for cell in self.found[-1:]]


@fuzzed
@given(any_names)
def test_a_page_shows_every_text(names):
    assert [cell.strip() for cell in Cells(str(PIECES.table(names, [names]))).found] == [n.strip() for n in names] * 2


@settings(fuzzed, max_examples=8)
@given(any_names)
def test_a_picture_shows_every_text(names):
    def draw(axes):
        draw_rows(axes, names, [Interval(0.2, 0.1, 0.3)] * len(names), [{}] * len(names))
        labels = [text.get_text() for text in axes.get_yticklabels()]
        assert labels == [drawable(name) for name in names]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture("name", names[0], names[-1], draw)
