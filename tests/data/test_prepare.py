import json
import os
import random
import re
import resource
import subprocess
import sys
from pathlib import Path

import duckdb
import pandas as pd
import pytest
from raw_files import START, Review, write_items, write_lines, write_reviews, write_table
from tiny_runs import ROOT

from data import prepare
from data.interactions import dataset_folder, item_texts, load_interactions
from data.raw import SOURCES, clean, sentence
from data.readers import parse_line
from utils.errors import InputError

EDITIONS = {"2023": "amazon2023", "2023 rating_only": "amazon2023", "2018": "amazon2018", "2014": "amazon2014"}


def make_reviews(seed: int = 0) -> list[Review]:
    """Return 900 reviews of 60 users and 40 items, unevenly popular, with equal times and repeats."""
    rng = random.Random(seed)
    reviews = []
    for _ in range(900):
        user, item = int(60 * rng.random() ** 1.5), int(40 * rng.random() ** 2)
        reviews.append(Review(f"U{user:02}", f"B{item:03}", START + rng.randrange(200), float(rng.randint(1, 5))))
    return reviews


def make_texts() -> dict[str, str]:
    """Return titles; B005 has none, B007 only markup, B011 no row at all."""
    texts = {f"B{item:03}": f"<b>Product</b> no.&nbsp;{item} &amp; more" for item in range(40)}
    texts |= {"B005": "", "B007": "<br/>"}
    del texts["B011"]
    return texts


def by_pandas(reviews: list[Review], items: set[str], k: int = 5, min_rating: float = 0) -> dict[str, list[str]]:
    """Compute the item sequences the plain way."""
    table = pd.DataFrame(reviews)
    table = table[(table["rating"] >= min_rating) & table["item"].isin(items)]
    table = table.sort_values("time").drop_duplicates(["user", "item"])
    while True:
        kept = table[
            (table.groupby("user")["item"].transform("size") >= k)
            & (table.groupby("item")["user"].transform("size") >= k)
        ]
        if len(kept) == len(table):
            break
        table = kept
    return {
        user: rows.sort_values(["time", "item"])["item"].tolist() for user, rows in table.groupby("user", sort=True)
    }


def run(tmp_path: Path, *flags: str, dataset: str = "Shop", name: str = "datasets") -> Path:
    prepare.main([f"--dataset={dataset}", f"--data_dir={tmp_path / name}", *flags])
    return tmp_path / name / dataset


def sequences(folder: Path) -> dict[str, list[str]]:
    return json.loads((folder / "all_item_seqs.json").read_text())


def stats(folder: Path) -> dict:
    return json.loads((folder / "stats.json").read_text())


@pytest.mark.parametrize("edition", EDITIONS)
def test_each_edition_against_pandas(edition: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    reviews, texts = make_reviews(), make_texts()
    csv_file = edition == "2023 rating_only"
    dirt = ["U01,B001", "U01,B001,5.0,yesterday", ",B001,5.0,1500000000000", "U01,,5.0,1500000000000"]
    if not csv_file:
        columns = SOURCES[EDITIONS[edition]]
        user, item, time = columns.user, columns.item, columns.time
        rows = [{user: "U01", item: "B001", time: "yesterday"}, {item: "B001", time: START}, {user: "U01", time: START}]
        dirt = [f'{{"{user}": "U01", "{item}": ', *map(json.dumps, rows), ""]
    interactions = write_reviews(tmp_path, edition, reviews + reviews[:50], dirt)
    items = write_items(tmp_path, edition, texts, ["{broken", "[1, 2]"])
    folder = run(tmp_path, f"--source={EDITIONS[edition]}", f"--interactions={interactions}", f"--items={items}")

    expected = by_pandas(reviews, set(texts))
    assert sequences(folder) == expected
    loaded = load_interactions(folder)
    assert list(loaded.user_names) == sorted(expected)
    names = sorted({item for row in expected.values() for item in row})
    assert loaded.item_names[1:] == names
    category = "Tools, Hand 'tools'."
    title = {"B005": "", "B007": ""}
    wanted = [f"{title.get(name, f'Product no. {int(name[1:])} & more.')} {category}".strip() for name in names]
    assert item_texts(folder, loaded.item_names) == wanted

    found = stats(folder)
    made = sum(map(len, expected.values()))
    assert found["rows"] == 954
    assert found["dropped"].pop("unreadable row") == 1
    assert [found["dropped"].pop(reason) for reason in ("no time", "no user", "no item")] == [1, 1, 1]
    different = {(review.user, review.item) for review in reviews}
    assert found["dropped"].pop("repeated interaction") == 950 - len(different)
    assert found["dropped"].pop("item without text") > 0
    assert sum(found["dropped"].values()) < len(different) - made
    assert list(found["dropped"]) == ["outside the 5-core"]
    assert sum(stats(folder)["dropped"].values()) + made == 954
    assert found["dataset"] == {
        **{"users": len(expected), "items": len(names), "interactions": made},
        **{"sparsity": 1 - made / len(expected) / len(names), "mean_length": made / len(expected)},
    }
    assert f"{made:,}" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "jsonl"])
def test_any_table_with_ratings_and_dates(kind: str, tmp_path: Path):
    reviews = make_reviews(1)
    rows = [
        {
            **{"customer": review.user, "sku": review.item, "stars": review.rating},
            "when": str(pd.Timestamp(review.time, unit="s"))
            if number % 2
            else pd.Timestamp(review.time, unit="s").isoformat(),
        }
        for number, review in enumerate(reviews)
    ]
    products = [{"sku": f"B{i:03}", "name": f"Name {i}", "brand": "A, B\tC", "extra": "x"} for i in range(39)]
    flags = [
        f"--interactions={write_table(tmp_path, kind, rows, 'orders')}",
        f"--items={write_table(tmp_path, kind, products, 'products')}",
        *("--user_col=customer", "--item_col=sku", "--time_col=when", "--rating_col=stars", "--min_rating=2"),
        *("--text_cols=name,brand", "--k_core=4"),
    ]
    folder = run(tmp_path, *flags)
    assert sequences(folder) == by_pandas(reviews, {row["sku"] for row in products}, k=4, min_rating=2)
    low = sum(review.rating < 2 for review in reviews)
    assert stats(folder)["dropped"]["rating below 2.0"] == low > 0
    assert item_texts(folder, load_interactions(folder).item_names)[0] == "Name 0. A, B C."


def test_broken_rows_at_the_top_of_a_csv_with_windows_line_ends(tmp_path: Path):
    rows = [f"U{user},B{item},{START + item}" for user in range(2) for item in range(2)]
    table = tmp_path / "orders.csv"
    table.write_bytes("\r\n".join(["\ufeffwho,what,when", "U0", "U0,B0,1,2,3", "", *rows, ""]).encode())
    items = write_table(tmp_path, "csv", [{"what": f"B{item}", "name": f"Thing {item}"} for item in range(2)], "items")
    flags = [f"--interactions={table}", f"--items={items}", "--user_col=who", "--item_col=what", "--time_col=when"]
    folder = run(tmp_path, *flags, "--text_cols=name", "--k_core=2")
    assert sequences(folder) == {"U0": ["B0", "B1"], "U1": ["B0", "B1"]}
    assert stats(folder)["dropped"]["unreadable row"] == 2  # an empty line is no row


def test_a_table_with_an_unnamed_index_and_one_of_the_same_size_with_other_times(tmp_path: Path):
    table, items = tmp_path / "orders.csv", tmp_path / "items.csv"
    rows = [(user, item, 100 + item) for user in range(2) for item in range(2)]
    items.write_text(",what,name\n" + "".join(f"{item},B{item},Thing {item}\n" for item in range(2)))

    def write(rows: list[tuple[int, int, int]]) -> None:  # as pandas' to_csv does
        lines = [f"{number},U{user},B{item},{time}\n" for number, (user, item, time) in enumerate(rows)]
        table.write_text(",who,what,when\n" + "".join(lines))

    flags = [f"--interactions={table}", f"--items={items}", "--user_col=who", "--item_col=what", "--time_col=when"]
    flags += ["--text_cols=name", "--k_core=2"]
    write(rows)
    assert sequences(run(tmp_path, *flags)) == {"U0": ["B0", "B1"], "U1": ["B0", "B1"]}
    write([(user, item, 201 - time) for user, item, time in rows])
    with pytest.raises(InputError, match="holds a dataset of other files or settings; --overwrite replaces it"):
        run(tmp_path, *flags)
    assert sequences(run(tmp_path, *flags, "--overwrite")) == {"U0": ["B1", "B0"], "U1": ["B1", "B0"]}
    items.write_text("what,name\n0,Thing\n1.0,Thing\n")
    with pytest.raises(InputError, match=r"none of the 2 items of .* \(B0, B1, \.\.\.\) has a text in .* \(0, 1\.0, "):
        run(tmp_path, *flags, "--overwrite")


def plain_files(tmp_path: Path, reviews: list[Review], name: str = "raw") -> list[str]:
    """Write the 2023 edition's files and return the flags that name them."""
    folder = tmp_path / name
    folder.mkdir()
    return [
        "--source=amazon2023",
        f"--interactions={write_reviews(folder, '2023 rating_only', reviews, [])}",
        f"--items={write_items(folder, '2023', make_texts(), [])}",
    ]


def test_words_for_no_text_are_pointed_to(tmp_path: Path, capsys: pytest.CaptureFixture):
    rows = [{"user_id": review.user, "item_id": review.item, "timestamp": review.time} for review in make_reviews(1)]
    products = [{"item_id": f"B{i:03}", "title": "NA" if i % 13 == 0 else "A NA", "brand": "[]"} for i in range(39)]
    flags = [f"--interactions={write_table(tmp_path, 'csv', rows, 'orders')}", "--text_cols=title,brand"]
    flags += ["--user_col=user_id", "--item_col=item_id", "--time_col=timestamp"]
    run(tmp_path, *flags, f"--items={write_table(tmp_path, 'csv', products, 'products')}", "--k_core=1")
    output = capsys.readouterr()
    assert re.search(r"[1-3] items have no other text than such as 'NA\. \[\]\.'; if that", output.out + output.err)


def test_neither_row_order_nor_threads_matter(tmp_path: Path):
    reviews = make_reviews(2)
    first = run(tmp_path, *plain_files(tmp_path, reviews), "--threads=1")
    shuffled = random.Random(0).sample(reviews, len(reviews))
    second = run(tmp_path, *plain_files(tmp_path, shuffled, "shuffled"), "--threads=4", name="again")
    for name in ("all_item_seqs.json", "id_mapping.json", "metadata.sentence.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_repeats_may_be_kept(tmp_path: Path):
    reviews = [Review(f"U{user}", f"B{item:03}", START + 10 * item + user) for user in range(3) for item in range(1, 4)]
    reviews += [Review("U0", "B001", START + 90), Review("U0", "B001", START + 90)]
    flags = [*plain_files(tmp_path, reviews), "--k_core=2"]
    assert sequences(run(tmp_path, *flags))["U0"] == ["B001", "B002", "B003"]
    folder = run(tmp_path, *flags, "--keep_repeats", dataset="Repeats")
    assert sequences(folder)["U0"] == ["B001", "B002", "B003", "B001"]
    assert stats(folder)["dropped"]["repeated interaction"] == 1


def test_reused_refused_and_replaced(tmp_path: Path, capsys: pytest.CaptureFixture):
    flags = plain_files(tmp_path, make_reviews())
    folder = run(tmp_path, *flags)
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert set(before) == prepare.FILES
    run(tmp_path, *flags, "--threads=3")
    assert "reused, it was prepared before" in capsys.readouterr().out
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    with pytest.raises(InputError, match="holds a dataset of other files or settings; --overwrite"):
        run(tmp_path, *flags, "--k_core=3")
    run(tmp_path, *flags, "--k_core=3", "--overwrite")
    assert stats(folder)["settings"]["k_core"] == 3
    (folder / "rqvae").mkdir()
    with pytest.raises(InputError, match="holds rqvae, made from other data"):
        run(tmp_path, *flags, "--overwrite")
    assert sorted(path.name for path in folder.parent.iterdir()) == ["Shop"]


def test_interrupted_nothing_is_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    flags = plain_files(tmp_path, make_reviews())
    monkeypatch.setattr(prepare, "write_json", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, *flags)
    assert list((tmp_path / "datasets").iterdir()) == []
    monkeypatch.undo()
    for name in (".Shop.prepare", ".Shop.7.old", ".Shop.7.tmp"):  # as a killed process leaves them
        (tmp_path / "datasets" / name).mkdir()
    with pytest.raises(InputError, match=r"Shop does not exist; unzip a published dataset there"):
        dataset_folder(tmp_path / "datasets", "Shop")
    run(tmp_path, *flags)
    assert "an earlier preparation was interrupted; starting over" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "datasets").iterdir()] == ["Shop"]


def test_the_papers_numbers_stand_beside(tmp_path: Path, capsys: pytest.CaptureFixture):
    run(tmp_path, *plain_files(tmp_path, make_reviews()), dataset="Video_Games")
    lines = capsys.readouterr().out.splitlines()
    paper = next(line for line in lines if line.startswith("paper, table 1"))
    assert paper.split()[3:] == ["94,762", "25,612", "814,586", "99.966%", "8.60"]


def test_mistakes_are_named(tmp_path: Path):
    flags = plain_files(tmp_path, make_reviews())
    nothing = write_lines(tmp_path / "odd.jsonl", ['{"a": 1}'])
    for argv, message in (
        (["--source=amazon"], "source=amazon is none of amazon2023, amazon2018, amazon2014, table"),
        (flags[1:], "--user_col is needed with --source=table"),
        ([*flags, "--user_col=who"], "has no column who; its columns: user_id, parent_asin, rating, timestamp"),
        ([*flags, "--k_core=100"], r"no interaction of 900 is left \(repeated interaction"),
        (
            [*flags, f"--interactions={nothing}"],
            r"odd\.jsonl has no column user_id or parent_asin or timestamp; its columns: a; ",
        ),
        ([*flags, f"--interactions={tmp_path}/gone.csv"], r"gone\.csv does not exist"),
        ([*flags, f"--items={tmp_path}/x.xls"], r"x\.xls does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            run(tmp_path, *argv)
    assert not (tmp_path / "datasets" / "Shop").exists()


@pytest.mark.parametrize("name", ["Shop.csv.gz", "meta_Shop.jsonl.gz"])
def test_half_a_download_is_refused(name: str, tmp_path: Path):
    flags = plain_files(tmp_path, make_reviews())
    file = tmp_path / "raw" / name
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"GZIP stream|end-of-stream"):
        run(tmp_path, *flags)
    assert list((tmp_path / "datasets").iterdir()) == []


def test_texts_are_cleaned():
    assert clean("A &amp;amp; B<br/>C <i>D</i>\n E") == "A & B C D E"
    assert clean("<style>p {x: y}</style>Lamp <script type='x'>var a = '<b>';</script>2 < 3") == "Lamp 2 < 3"
    assert clean([["Tools", None], {"size": "3 in"}, ""]) == "Tools, 3 in"
    assert clean(float("nan")) == clean(None) == ""
    assert sentence({"a": "One", "b": None, "c": "Two!"}, ("a", "b", "c", "d")) == "One. Two!"
    assert parse_line("{'a': 'it\\'s', 'b': [1.5, None]}") == {"a": "it's", "b": [1.5, None]}
    assert parse_line("__import__('os').system('true')") is None
    assert parse_line("{[1]: 2}") is None
    assert parse_line(f'{{"price": {"9" * 5000}}}') is None
    assert clean("half an emoji \ud83d") == "half an emoji ?"


LARGE = 10_000_000


@pytest.mark.slow
@pytest.mark.skipif("MTGREC_LARGE" not in os.environ, reason="takes minutes; MTGREC_LARGE=1 runs it")
def test_ten_million_rows_in_four_gigabytes(tmp_path: Path):
    generate_large(tmp_path, LARGE)
    command = [sys.executable, "-m", "data.prepare", "--dataset=Large", f"--data_dir={tmp_path}", "--threads=2"]
    command += ["--source=amazon2023", f"--interactions={tmp_path}/large.csv", f"--items={tmp_path}/items.jsonl"]
    subprocess.run(command, cwd=ROOT, check=True)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4 * 2**20  # KiB
    assert stats(tmp_path / "Large")["rows"] == LARGE


def generate_large(folder: Path, rows: int) -> None:
    """Write `rows` interactions of rows / 12 users and 200,000 items, unevenly active and popular."""
    with duckdb.connect() as connection:
        connection.execute(f"""
            COPY (SELECT
                printf('AE%026d', CAST(floor({rows // 12} * power(random(), 2)) AS BIGINT)) AS user_id,
                printf('B%09d', CAST(floor(200000 * power(random(), 2)) AS BIGINT)) AS parent_asin,
                5.0 AS rating, CAST(1.4e12 + 2e11 * random() AS BIGINT) AS timestamp FROM range({rows}))
            TO '{folder}/large.csv' (HEADER)""")
        connection.execute(f"""
            COPY (SELECT printf('B%09d', i) AS parent_asin, 'Product ' || i AS title FROM range(200000) r(i))
            TO '{folder}/items.jsonl' (FORMAT json)""")
