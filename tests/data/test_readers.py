"""Whatever format, encoding, line end or order of columns people bring: the right dataset, or one clear sentence."""

import gzip
import json
import shutil
import tempfile
import time
from pathlib import Path

import duckdb
import pytest

from data import prepare, sample
from data.interactions import item_texts, load_interactions
from utils.errors import InputError
from utils.locks import FileLock

ITEMS = "item,title\nA,Apple\nB,Bread\nC,Cake\n"
HEADER = "user,item,ts\n"


def write(file: Path, content: str | bytes) -> Path:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def copy(query: str, file: Path) -> Path:
    """Write what a query returns, as the file's ending says."""
    kind = {".csv": "csv", ".jsonl": "json", ".parquet": "parquet"}[file.suffix]
    with tempfile.TemporaryDirectory() as folder:
        duckdb.sql(f"COPY ({query}) TO '{folder}/copy' (FORMAT {kind})")
        shutil.move(f"{folder}/copy", file)
    return file


def run(interactions: Path | str, items: Path | str, *flags: str, data_dir: Path | None = None) -> Path:
    """Prepare the dataset R and return its folder."""
    data_dir = data_dir or Path(str(items)).parent / "ds"
    columns = ["--user_col=user", "--item_col=item", "--time_col=ts", "--text_cols=title", "--k_core=1"]
    given = [f"--interactions={interactions}", f"--items={items}"]
    prepare.main(["--dataset=R", f"--data_dir={data_dir}", *given, *columns, *flags])
    return data_dir / "R"


def prepared(folder: Path, content: str | bytes, *flags: str, name: str = "o.csv", items: str | bytes = ITEMS) -> dict:
    """Return the sequences of a file of interactions."""
    made = run(write(folder / name, content), write(folder / "items.csv", items), *flags)
    return json.loads((made / "all_item_seqs.json").read_text())


def dropped(folder: Path) -> dict[str, int]:
    stats = json.loads((folder / "ds" / "R" / "stats.json").read_text())
    return {reason: count for reason, count in stats["dropped"].items() if count}


def refused(folder: Path, message: str, content: str | bytes, *flags: str, name: str = "o.csv", items=ITEMS) -> None:
    with pytest.raises(InputError, match=message):
        prepared(folder, content, *flags, name=name, items=items)
    assert not (folder / "ds" / "R").exists()


# Paths are names.


@pytest.mark.parametrize("name", ["orders[1].csv", "o*.csv", "o?.csv", "a,b.csv", "o'1\\x.csv", "o{1,2}.csv"])
def test_a_path_is_a_name(name: str, tmp_path: Path):
    write(tmp_path / "orders1.csv", HEADER + "EVE,C,1\n")
    assert prepared(tmp_path, HEADER + "ann,A,1\nann,B,2\n", name=name) == {"ann": ["A", "B"]}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_folders_are_names_too_for_input_and_output(kind: str, tmp_path: Path):
    strange, other = tmp_path / "d[1]*?x", tmp_path / "d1x"
    for folder, user in ((strange, "ann"), (other, "EVE")):
        folder.mkdir()
        copy(f"""SELECT '{user}' AS "user", 'A' AS item, 1 AS ts""", folder / f"o.{kind}")
    write(strange / "items.csv", ITEMS)
    folder = run(strange / f"o.{kind}", strange / "items.csv", data_dir=strange / "out[1]?")
    assert json.loads((folder / "all_item_seqs.json").read_text()) == {"ann": ["A"]}


def test_several_files_by_folder_or_by_commas_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture):
    parts = tmp_path / "parts"
    parts.mkdir()
    first = write(parts / "part-0.csv", HEADER + "ann,A,1\n")
    (parts / "day=2").mkdir()
    (parts / "_temporary").mkdir()
    write(parts / "_temporary" / "part-2.csv", HEADER + "EVE,A,1\n")
    second = write(parts / "day=2" / "part-1.tsv", "ts\tuser\titem\n2\tann\tB\n")
    for name in ("_SUCCESS", ".part-0.csv.crc", "notes.txt"):
        write(parts / name, "x")
    items = write(tmp_path / "items.csv", ITEMS)
    for given, name in ((parts, "folder"), (f"{first}, {second}", "commas")):
        made = run(given, items, data_dir=tmp_path / name)
        assert json.loads((made / "all_item_seqs.json").read_text()) == {"ann": ["A", "B"]}
        settings = json.loads((made / "stats.json").read_text())["settings"]
        assert sorted(entry["file"] for entry in settings["interactions"]) == ["part-0.csv", "part-1.tsv"]
        printed = capsys.readouterr().out
        assert f"{first}: 1 rows" in printed
        assert f"{second}: 1 rows" in printed
    with pytest.raises(InputError, match=r"p\*\.csv does not exist; a path is a name, not a pattern"):
        run(parts / "p*.csv", items)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"none is a folder without files that end in \.jsonl, "):
        run(tmp_path / "none", items)


# Times are instants.

TIMES = [
    ("2023-01-01T10:00:00+02:00", "2023-01-01T09:00:00+00:00"),
    ("2023-01-01 10:00:00 AM", "2023-01-01 09:00:00 PM"),
    ("2023-01-01 12:30 AM", "2023-01-01 01:00 a.m."),
    ("2023-01-01 11:59:59 AM", "2023-01-01 12:00 PM"),
    ("2023-01-01 23:00:00-0130", "2023-01-02T01:00:00Z"),
    ("2023-01-02 03:00:00 +05:30", "2023-01-01 21:31 UTC"),
    ("2023-01-01T00:00:00.000100", "2023-01-01T00:00:00.000900"),
    ("2023-01-01 00:00:00,5", "2023/01/01 00:00:01"),
    ("2022-12-31", "2022-12-31 00:00:01"),
    ("2022-12-31 24:00:00", "2023-01-01 00:00:01"),
    ("20221231", "2022-12-31 00:00:01"),
    ("1672444800", "20230101"),
    ("20221301", "20221231"),  # no month 13: seconds, a day of 1970
    ("1672531200", "2023-01-01 00:00:01+00"),
    ("1672531200000", "1672531201"),
    ("1672531200000001", "1672531200000002000"),
    ("1672531200.25", "2023-01-01T01:00:00.5+01:00"),
]


@pytest.mark.parametrize(("moment", "said"), [(20010133, False), (20010131, True)])  # seconds, one reads as a date
def test_times_in_two_units_are_pointed_to(moment, said, tmp_path: Path, capsys: pytest.CaptureFixture):
    prepared(tmp_path, HEADER + f"ann,A,20010132\nann,B,{moment}\n")
    note = "times lie from 1970-08-20 to 2001-01-31; if these are not the true ones, some numbers are read in another"
    assert (note in capsys.readouterr().out) is said


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_times_are_instants(kind: str, zone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    rows = [(f"u{n:02}", item, moment) for n, pair in enumerate(TIMES) for item, moment in zip("BA", pair, strict=True)]
    if kind == "csv":
        content = HEADER + "".join(f'{user},{item},"{moment}"\n' for user, item, moment in rows)
    else:
        content = "".join(json.dumps(dict(zip(("user", "item", "ts"), row, strict=True))) + "\n" for row in rows)
    found = prepared(tmp_path, content, name=f"o.{kind}")
    monkeypatch.undo()
    time.tzset()
    assert found == {f"u{n:02}": ["B", "A"] for n in range(len(TIMES))}


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
def test_times_of_parquet_are_instants(zone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'America/New_York'")
        connection.execute(f"""COPY (SELECT 'ann' AS "user", i AS item, z AS ts FROM (VALUES
            ('B', TIMESTAMPTZ '2023-01-01 10:00:00+02'), ('A', TIMESTAMPTZ '2023-01-01 09:00:00+00'),
            ('C', NULL)) AS t(i, z)) TO '{tmp_path}/a.parquet'""")
    write(tmp_path / "b.csv", HEADER + "ann,C,2023-01-01 08:30\n")
    made = run(f"{tmp_path}/a.parquet,{tmp_path}/b.csv", write(tmp_path / "items.csv", ITEMS))
    monkeypatch.undo()
    time.tzset()
    assert json.loads((made / "all_item_seqs.json").read_text()) == {"ann": ["B", "C", "A"]}


NO_TIMES = [
    *("2023-01-01 09:00:00 EST", "2023-01-01 13:00 PM", "2023-01-01 0:30 AM", "01/02/2023", "2023-02-30", "nan", "inf"),
    *("2023-01-01 09:00:00+25:00", "2023-01-01 09:00 tomorrow", "yesterday", "infinity", "2023-01-01 25:00", "1e30"),
    *("2023-01-01+02:00", "10:00:00"),
]


def test_what_cannot_be_read_is_no_time_with_an_example_and_the_accepted_forms(tmp_path: Path, capsys):
    content = HEADER + "".join(f"ann,A,{moment}\n" for moment in NO_TIMES)
    assert prepared(tmp_path, content + "ann,B,5\n") == {"ann": ["B"]}
    assert dropped(tmp_path) == {"no time": len(NO_TIMES)}
    assert (
        "rows with no time: 15, such as '01/02/2023' in ts of --time_col; accepted are sec" in capsys.readouterr().out
    )
    folder = tmp_path / "all"
    folder.mkdir()
    refused(
        folder,
        r"no interaction of 1 is left \(no time 1\); .*'01/02/2023' in ts of --time_col",
        HEADER + "a,A,01/02/2023\n",
    )


# Not a number, null, blank, reserved.


def test_what_is_no_rating(tmp_path: Path):
    content = "user,item,ts,stars\n" + "".join(
        f"a,{item},1,{stars}\n" for item, stars in zip("ABCA", ("nan", "5", "inf", "x"), strict=True)
    )
    assert prepared(tmp_path, content, "--rating_col=stars", "--min_rating=4") == {"a": ["B"]}
    assert dropped(tmp_path) == {"no rating": 3}
    with pytest.raises(InputError, match="min_rating=nan must be a number"):
        prepared(tmp_path, content, "--rating_col=stars", "--min_rating=nan")


def test_nan_is_no_name(tmp_path: Path):
    rows = [(1.0, 7.0, 1), (float("nan"), 7.0, 2), (2.0, float("nan"), 3), (None, 7.0, 4)]
    values = ", ".join(f"({user!r}::DOUBLE, {item!r}::DOUBLE, {ts})" for user, item, ts in rows)
    values = values.replace("nan::", "'NaN'::").replace("None::", "NULL::")
    copy(f"""SELECT * FROM (VALUES {values}) AS t("user", item, ts)""", tmp_path / "o.parquet")
    lines = "".join(json.dumps(dict(zip(("user", "item", "ts"), row, strict=True))) + "\n" for row in rows)
    write(tmp_path / "o.jsonl", lines)
    copy("SELECT 'NaN'::DOUBLE AS item, 'lent' AS title UNION ALL SELECT 7.0, 'own'", tmp_path / "m.parquet")
    write(tmp_path / "m.jsonl", '{"item": NaN, "title": "lent"}\n{"item": 7.0, "title": "own"}\n')
    for kind in ("parquet", "jsonl"):
        made = run(tmp_path / f"o.{kind}", tmp_path / f"m.{kind}", "--overwrite")
        assert json.loads((made / "all_item_seqs.json").read_text()) == {"1.0": ["7.0"]}
        assert json.loads((made / "metadata.sentence.json").read_text()) == {"7.0": "own."}
        assert dropped(tmp_path) == {"no user": 2, "no item": 1}


def test_a_null_item_lends_its_text_to_nobody(tmp_path: Path):
    items = write(
        tmp_path / "m.jsonl", '{"item": null, "title": "lent"}\n{"title": "lent"}\n{"item": "A", "title": "x"}\n'
    )
    made = run(write(tmp_path / "o.csv", HEADER + "a,None,1\na,A,2\na,null,3\n"), items)
    assert json.loads((made / "all_item_seqs.json").read_text()) == {"a": ["A"]}
    assert dropped(tmp_path) == {"item without text": 2}


def test_blanks_are_trimmed_alike_in_both_files(tmp_path: Path):
    names = ['"A\t"', " A", "A\u3000", "\xa0A\x0b", '"A\n"', "\u2028A"]
    content = HEADER + "".join(f"u{number},{name},1\n" for number, name in enumerate(names))
    assert prepared(tmp_path, content, items='item,title\n"\tA ",Apple\n') == {
        f"u{n}": ["A"] for n in range(len(names))
    }


def test_the_reserved_name_is_dropped_and_counted(tmp_path: Path):
    content = HEADER + "a,[PAD],1\n[PAD],A,1\na,B,1\n"
    assert prepared(tmp_path, content, items=ITEMS + "[PAD],Pad\n") == {"a": ["B"]}
    assert dropped(tmp_path) == {"reserved name [PAD]": 2}
    assert load_interactions(tmp_path / "ds" / "R").item_names == ["[PAD]", "B"]


# Quotes, lost lines, encodings.


def test_a_lone_quote_in_a_tsv_is_a_character(tmp_path: Path):
    lines = [f"{chr(34) if n == 2 else ''}u{n:02}\t{'ABC'[n % 3]}\t{n}" for n in range(12)]
    found = prepared(tmp_path, "user\titem\tts\n" + "\n".join(lines) + "\n", name="o.tsv")
    assert found == {'"u02': ["C"], **{f"u{n:02}": ["ABC"[n % 3]] for n in range(12) if n != 2}}
    assert dropped(tmp_path) == {}


def test_quoted_fields_of_a_tsv(tmp_path: Path):
    content = 'user\titem\tts\n"an ""n"\t"A"\t1\n"b\to\nb"\tB\t2\n5"\tC\t3\n"d"e\tA\t4\n"\tB\t5\n'
    found = prepared(tmp_path, content, name="o.tsv")
    assert found == {'"': ["B"], '"d"e': ["A"], '5"': ["C"], 'an "n': ["A"], "b\to\nb": ["B"]}


def test_a_quote_that_never_closes_in_a_csv_is_an_error_with_its_line(tmp_path: Path):
    lines = [f'{chr(34) if n == 2 else ""}u{n},"{"ABC"[n % 3]}",{n}' for n in range(12)]
    refused(tmp_path, r"o\.csv line 4: a quote opens a field and never closes", HEADER + "\n".join(lines))
    refused(tmp_path, r"o\.csv line 4: a quote", HEADER + "\n".join(lines).replace('"A"', "A").replace('"B"', "B"))
    refused(tmp_path, r"items\.csv line 3: a quote", HEADER + "a,A,1\n", items='item,title\nA,x\nB,"Bread\nC,Cake\n')


def test_lost_lines_of_both_files_are_counted_and_the_first_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture):
    items = 'item,title\nA,"Great" Cats\nB,a,b\n\nC,Cake\nD\n'
    content = HEADER + 'a,A,1\na,"B\nx",2,5\na,C,3\na,C\n'
    assert prepared(tmp_path, content, items=items) == {"a": ["A", "C"]}
    assert dropped(tmp_path) == {"unreadable row": 3}
    assert item_texts(tmp_path / "ds" / "R", ["", "A"]) == ['"Great" Cats.']
    printed = capsys.readouterr().out
    assert f"{tmp_path}/o.csv: unreadable rows: 3, the first is line 3: 'a,\"B'" in printed
    assert f"{tmp_path}/items.csv: unreadable rows: 2, the first is line 3: 'B,a,b'" in printed
    assert "4 items read (2 unreadable rows)" in printed


def test_lost_lines_of_json(tmp_path: Path, capsys: pytest.CaptureFixture):
    write(tmp_path / "m.jsonl", '{"item": "A", "title": "x"}\n\n{"item"\n7\n')
    content = '{"user": "a", "item": "A", "ts": 1}\n\n[1, 2]\n{"user": \n'
    run(write(tmp_path / "o.jsonl", content), tmp_path / "m.jsonl")
    assert dropped(tmp_path) == {"unreadable row": 2}
    printed = capsys.readouterr().out
    assert "o.jsonl: unreadable rows: 2, the first is line 3: '[1, 2]'" in printed
    assert "m.jsonl: unreadable rows: 2, the first is line 3: '{\"item\"'" in printed


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_line_that_is_not_utf8_is_read_and_shown(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    if kind == "csv":
        orders, items = HEADER + "é,A,1\nè,A,1\n", "item,title\nA,Café\n"
    else:
        orders = "".join(f'{{"user": "{user}", "item": "A", "ts": 1}}\n' for user in "éè")
        items = '{"item": "A", "title": "Café"}\n'
    made = run(
        write(tmp_path / f"o.{kind}", orders.encode("latin-1")), write(tmp_path / f"m.{kind}", items.encode("latin-1"))
    )
    assert list(load_interactions(made).user_names) == ["è", "é"]
    assert item_texts(made, ["", "A"]) == ["Café."]
    printed = capsys.readouterr().out
    first = {"csv": ("2", "2"), "jsonl": ("1", "1")}[kind]
    assert (
        f"o.{kind}: lines that are not UTF-8 and were read as Windows-1252: 2, the first is line {first[0]}" in printed
    )
    assert (
        f"m.{kind}: lines that are not UTF-8 and were read as Windows-1252: 1, the first is line {first[1]}" in printed
    )


def texts(folder: Path) -> dict[str, str]:
    return json.loads((folder / "ds" / "R" / "metadata.sentence.json").read_text())


def test_quotes_behind_a_backslash_as_spark_and_mysql_write_them(tmp_path: Path, capsys: pytest.CaptureFixture):
    items = (
        'item,title\nA,"5\\" pipe, \\"good\\", a\\\nnew line, a\\\\b"\nB,"6\\""\nC,"7\\""\nD,"x \\"y\\"",too many\n'
        'E,8" and "9\\" x"\nF,"end\\\\"\nG,"10\\""\n'
    )
    orders = HEADER + "".join(f"a,{item},{place}\n" for place, item in enumerate("ABCDEFG"))
    assert prepared(tmp_path, orders, items=items) == {"a": ["A", "B", "C", "E", "F", "G"]}
    assert texts(tmp_path) == {
        **{"A": '5" pipe, "good", a new line, a\\b.', "B": '6".', "C": '7".', "E": '8" and "9\\" x".'},
        **{"F": "end\\\\.", "G": '10".'},  # a row that doubled quotes explain has only these
    }
    printed = capsys.readouterr().out
    assert "items.csv: unreadable rows: 1, the first is line 6: 'D,\"x" in printed
    content = 'user\titem\tts\n"an\\"n"\tA\t1\ndom\\bob\tA\t1\n"\\"\tA\t1\n'
    found = prepared(tmp_path, content, "--overwrite", name="o.tsv", items=items)
    assert found == {'an"n': ["A"], "dom\\bob": ["A"], "\\": ["A"]}


def test_blanks_around_quotes_are_no_part_of_a_name(tmp_path: Path):
    items = 'item, "title"\nA, "Apple, red"\nB,  "Bread"  \nC, "x" y"\n'
    content = 'user, "item", ts\n"ann" ,A,1\nann, "B" ,2\n  "a, ""b""", "C", "3"\n "z" w,A,4\n'
    found = prepared(tmp_path, content, items=items)
    assert found == {"ann": ["A", "B"], 'a, "b"': ["C"], '"z" w': ["A"]}
    assert texts(tmp_path) == {"A": "Apple, red.", "B": "Bread.", "C": '"x" y".'}
    refused(tmp_path / "ds", r"o\.csv line 3: a quote opens", HEADER + 'a,A,1\na, "B,2\n')


def test_excels_own_first_line(tmp_path: Path):
    assert prepared(tmp_path, "sep=;\nuser;item;ts\nann;A;1\n") == {"ann": ["A"]}


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_what_databases_write_for_no_value_is_none_in_every_format(kind: str, tmp_path: Path):
    rows = [("\\N", "A", "1"), ("a", "\\N", "2"), ("a", "B", "3"), ("a", "C", "\\N")]
    if kind == "parquet":
        values = ", ".join(f"('{user}', '{item}', '{moment}')" for user, item, moment in rows)
        copy(f"""SELECT * FROM (VALUES {values}) AS t("user", item, ts)""", tmp_path / "o.parquet")
        content = (tmp_path / "o.parquet").read_bytes()
    elif kind in ("csv", "tsv"):
        mark = "," if kind == "csv" else "\t"
        content = "".join(mark.join(row) + "\n" for row in [("user", "item", "ts"), *rows])
    else:
        objects = [dict(zip(("user", "item", "ts"), row, strict=True)) for row in rows]
        content = json.dumps(objects) if kind == "json" else "\n".join(map(json.dumps, objects))
    items = ITEMS.replace("Cake", "\\N")
    assert prepared(tmp_path, content, name=f"o.{kind}", items=items) == {"a": ["B"]}
    assert dropped(tmp_path) == {"no item": 1, "no time": 1, "no user": 1}
    assert prepared(tmp_path, HEADER + "a,B,1\na,C,1\n", "--overwrite", items=items) == {"a": ["B"]}


def test_half_a_character_is_no_name(tmp_path: Path):
    content = '{"user": "a\\ud83d", "item": "A", "ts": 1}\n{"user": "\\ud83d\\ude00", "item": "A", "ts": 1}\n'
    assert prepared(tmp_path, content, name="o.jsonl") == {"\U0001f600": ["A"]}
    assert dropped(tmp_path) == {"no user": 1}


def test_names_that_are_likely_mistakes_are_pointed_to(tmp_path: Path, capsys: pytest.CaptureFixture):
    content = HEADER + "NULL,A,1\n12.0,A,1\n12,B,1\n007,C,1\n7,B,1\n123456789012345678,A,1\n123456789012345679,A,1\n"
    assert len(prepared(tmp_path, content)) == 7
    printed = capsys.readouterr().out
    assert "users are called NULL; if that stands for no value, export it as an empty field" in printed
    assert "users such as 007 and 7 have different names; write numbers alike in all files" in printed
    prepared(tmp_path, HEADER + "123456789012345678,A,1\n123456789012345679,A,1\n1,D,1\n", "--overwrite")
    printed = capsys.readouterr().out
    assert "different names" not in printed
    assert "1 items without text, the first is 'D'" in printed


def test_a_list_of_json_longer_than_what_is_looked_at_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [{"user": f"u{n}", "item": "ABC"[n % 3], "ts": n, "note": "], {\n" * n} for n in range(30)]
    monkeypatch.setattr("data.readers.PIECE", 40)
    listed = json.dumps(rows, indent=1)
    found = prepared(tmp_path, listed, name="o.json")
    assert found == {row["user"]: [row["item"]] for row in sorted(rows, key=lambda row: row["user"])}
    for cut in (listed[:-1], listed[:-9], listed + "x"):
        refused(tmp_path / "ds", r"o\.json cannot be read: ", cut, name="o.json")


# Columns.


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_mistyped_column_is_named_in_every_format(kind: str, tmp_path: Path):
    copy("""SELECT 'a' AS "user", 'A' AS item, 1 AS ts""", tmp_path / f"o.{kind}")
    copy("SELECT 'A' AS item, 'x' AS title, 'y' AS text", tmp_path / f"m.{kind}")
    orders, items = tmp_path / f"o.{kind}", tmp_path / f"m.{kind}"
    for flag, message in (
        ("--text_cols=title, txet", r"m\.\w+ has no column txet; its columns: item, title, text; .* --text_cols"),
        ("--user_col=usre", r"o\.\w+ has no column usre; its columns: .*user.*; .* --user_col"),
        ("--time_col=time", r"o\.\w+ has no column time; .* --time_col"),
        ("--items_item_col=sku", r"m\.\w+ has no column sku; .* --items_item_col"),
    ):
        with pytest.raises(InputError, match=message):
            run(orders, items, flag)
    made = run(orders, items, "--text_cols= title , text ")
    assert item_texts(made, ["", "A"]) == ["x. y."]


def test_columns_that_nobody_asked_for_do_not_matter(tmp_path: Path):
    items = "title,Title,item,,\nApple,x,A,,\n"
    assert prepared(tmp_path, "user,item,ts,note,note\na,A,1,,\n", items=items) == {"a": ["A"]}
    query = """SELECT 'a' AS "user", 'A' AS item, 'x' AS "Item", {'ts': 9} AS s, 1 AS ts"""
    copy(query.replace('"Item"', "item2"), tmp_path / "o.parquet")
    write(tmp_path / "twice.csv", "user,item,ts,ts\na,A,1,2\n")
    with pytest.raises(InputError, match=r"twice\.csv has 2 columns ts, which --time_col names; rename all but one"):
        run(tmp_path / "twice.csv", tmp_path / "items.csv", data_dir=tmp_path / "twice")
    made = run(tmp_path / "o.parquet", tmp_path / "items.csv", data_dir=tmp_path / "parquet")
    assert json.loads((made / "all_item_seqs.json").read_text()) == {"a": ["A"]}
    line = '{"user": "a", "item": "A", "Item": "x", "ts": 1, "TS": 2}\n'
    made = run(write(tmp_path / "o.jsonl", line), tmp_path / "items.csv", "--user_col=Item", data_dir=tmp_path / "json")
    assert json.loads((made / "all_item_seqs.json").read_text()) == {"x": ["A"]}


def test_rows_of_millions_of_characters(tmp_path: Path):
    long = "x" * 3_000_000
    content = f'user,item,ts,note\na,A,1,{long}\na,B,2,"y\n{long}"\n'
    assert prepared(tmp_path, content, items=f'item,title\nA,{long}\nB,"z{long}"\n') == {"a": ["A", "B"]}


def test_headers_with_blanks_and_other_delimiters(tmp_path: Path):
    assert prepared(tmp_path, " user ;item;ts \na;A;1\n", items="item\ttitle\nA\tx, y\n") == {"a": ["A"]}
    refused(tmp_path / "ds", r"no column ts; its columns: user, ' item ', time; name", "user, item ,time\na,A,1\n")


def test_the_item_id_may_have_two_names(tmp_path: Path):
    items = ITEMS.replace("item", "sku")
    assert prepared(tmp_path, HEADER + "a,A,1\n", "--items_item_col=sku", items=items) == {"a": ["A"]}


# Ends of lines, endings of names, forms of JSON, encodings.


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n", "mixed"])
def test_line_ends(end: str, tmp_path: Path):
    content = HEADER + "a,A,1\na,B,2\nb,C,3"
    content = content.replace("\n", "\r\n", 2) if end == "mixed" else content.replace("\n", end)
    assert prepared(tmp_path, content) == {"a": ["A", "B"], "b": ["C"]}
    assert dropped(tmp_path) == {}


ROW = '{"user": "é", "item": "A", "ts": 1}'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ORDERS.CSV", HEADER + "é,A,1\n"),
        ("o.csv", "\n\r\n" + HEADER + "é,A,1\n"),
        ("o.CSV.GZ", gzip.compress((HEADER + "é,A,1\n").encode(), mtime=0)),
        ("o.csv", gzip.compress((HEADER + "é,A,1\n").encode(), mtime=0)),
        ("o.csv.gz", HEADER + "é,A,1\n"),
        ("o.ndjson", ROW),
        ("o.json", f"[{ROW}]"),
        ("o.json", f"\n[\n {ROW.replace(',', ',' + chr(10))}\n]\n"),
        ("o.json.gz", gzip.compress(f"[{ROW}]".encode(), mtime=0)),
        ("o.jsonl", b"\xef\xbb\xbf" + ROW.encode()),
        ("o.json", b"\xef\xbb\xbf" + f"[{ROW}]".encode()),
        *(
            (f"o.{kind}", text.encode(encoding))
            for kind, text in (("csv", HEADER + "é,A,1\n"), ("jsonl", ROW))
            for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")
        ),
    ],
)
def test_names_forms_and_encodings(name: str, content: str | bytes, tmp_path: Path):
    assert prepared(tmp_path, content, name=name) == {"é": ["A"]}


def test_other_things_are_named(tmp_path: Path):
    refused(tmp_path, r"o\.xlsx ends in none of \.jsonl, .*; export it as one of them", "x", name="o.xlsx")
    refused(tmp_path, r"o\.csv is empty; it must begin with the names of its columns", "")
    refused(tmp_path, r"o\.csv has no rows$", HEADER)
    refused(tmp_path, r"o\.csv is not text, but begins with 'PK", b"PK\3\4\0\0\1", name="o.csv")
    refused(tmp_path, r"o\.csv is not text, but begins with 'PAR1", b"PAR1\x15\0\x15\0", name="o.csv")
    refused(tmp_path, r"its columns: '\\u200buser', item, ts; ", "\u200buser,item,ts\n")
    refused(tmp_path, r"DuckDB stopped: .*; look at --memory_limit=lots", HEADER + "a,A,1\n", "--memory_limit=lots")
    refused(tmp_path, r"a name is text or a number, not", '{"user": ["a"], "item": "A", "ts": 1}', name="o.jsonl")
    copy("""SELECT '\\xE9'::BLOB AS "user", 'A' AS item, 1 AS ts""", tmp_path / "blob.parquet")
    content = (tmp_path / "blob.parquet").read_bytes()
    refused(tmp_path, rf"{tmp_path}/o\.parquet\": value .* is not valid UTF8", content, name="o.parquet")
    refused(tmp_path, r"o\.json cannot be read: ", f"[{ROW}, ", name="o.json")
    refused(tmp_path, r"o\.parquet cannot be read: ", "PAR1", name="o.parquet")
    refused(tmp_path, r"\(no user 1\)", '{"user": {"0": "a"}, "item": {"0": "A"}, "ts": {"0": 1}}', name="o.json")
    refused(tmp_path, r"o\.json: unreadable rows: 3, the first is line 1: '{'", '{\n"user": 1\n}', name="o.json")


# Links and locks.


def test_a_link_is_written_through(tmp_path: Path):
    real = tmp_path / "disk" / "real"
    real.mkdir(parents=True)
    (tmp_path / "ds").mkdir()
    (tmp_path / "ds" / "R").symlink_to(real)
    assert prepared(tmp_path, HEADER + "a,A,1\n") == {"a": ["A"]}
    assert prepared(tmp_path, HEADER + "b,B,1\n", "--overwrite") == {"b": ["B"]}
    assert (tmp_path / "ds" / "R").is_symlink()
    assert {path.name for path in real.iterdir()} == prepare.FILES
    assert [path.name for path in real.parent.iterdir()] == ["real"]
    assert [path.name for path in (tmp_path / "ds").iterdir()] == ["R"]


def test_the_second_of_two_preparations_is_refused(tmp_path: Path):
    (tmp_path / "ds").mkdir()
    with FileLock(tmp_path / "ds" / ".R.prepare" / ".lock"):
        refused(tmp_path, r"\.R\.prepare is in use by process \d+", HEADER + "a,A,1\n")
    assert prepared(tmp_path, HEADER + "a,A,1\n") == {"a": ["A"]}


def test_the_sample_goes_through_a_link_and_waits_for_no_lock(tmp_path: Path):
    flags = [f"--data_dir={tmp_path}", "--dataset=S", "--num_users=120", "--num_items=80"]
    real = tmp_path / "disk"
    real.mkdir()
    (tmp_path / "S").symlink_to(real)
    sample.main(flags)
    assert len(list(real.iterdir())) == 3
    assert (tmp_path / "S").is_symlink()
    with (
        FileLock(tmp_path / ".disk.prepare" / ".lock"),
        pytest.raises(InputError, match=r"\.disk\.prepare is in use by"),
    ):
        sample.main([*flags, "--overwrite", "--rand_seed=7"])


def test_a_dataset_from_before_the_second_item_flag_is_reused(tmp_path: Path, capsys: pytest.CaptureFixture):
    prepared(tmp_path, HEADER + "a,A,1\n")
    file = tmp_path / "ds" / "R" / "stats.json"
    stats = json.loads(file.read_text())
    del stats["settings"]["items_item_col"]
    file.write_text(json.dumps(stats))
    prepared(tmp_path, HEADER + "a,A,1\n")
    assert "reused, it was prepared before" in capsys.readouterr().out
    for broken in ("", "[]", '{"settings": 5}'):
        file.write_text(broken)
        with pytest.raises(InputError, match="holds a dataset of other files or settings; --overwrite replaces it"):
            prepared(tmp_path, HEADER + "a,A,1\n")
        prepared(tmp_path, HEADER + "a,A,1\n", "--overwrite")
