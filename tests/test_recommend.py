import csv
import json
from pathlib import Path

import duckdb
import pytest
import yaml
from forked import run_processes

import recommend
from inference import recommend as inference
from inference import requests as inference_requests
from inference.model_folder import export_model
from utils.errors import InputError
from utils.files import write_checksums


def shown(capsys: pytest.CaptureFixture) -> str:
    return capsys.readouterr().out


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_table_per_user(joint_run: Path, capsys: pytest.CaptureFixture):
    recommend.main([f"--model={joint_run}", "--users=user5,user2", "--k=3"])
    tables = [block.splitlines() for block in shown(capsys).split("\n\n")]
    assert [lines[0] for lines in tables] == [
        "User user5: 5 items, the last 3, newest last",
        "User user2: 2 items, the last 2, newest last",
    ]
    assert tables[0][4].split() == ["rank", "item", "score", "text"]
    items, scores = inference.load(joint_run).recommend(
        [json.loads((joint_run.parents[2] / "datasets/Tiny/all_item_seqs.json").read_text())["user5"]], k=3
    )
    expected = [[str(i), items[0][i - 1], f"{scores[0][i - 1]:.4f}", "text", "of", items[0][i - 1]] for i in (1, 2, 3)]
    assert [line.split() for line in tables[0][5:]] == expected


def test_the_winner_that_finetune_sh_names(joint_run: Path, capsys: pytest.CaptureFixture):
    winner = joint_run.parent / "finetune.winner.json"
    winner.write_text(json.dumps({"winner": {"run": f"where/the/runs/were/before/{joint_run.name}"}}))
    recommend.main([f"--model={winner}", "--users=user5"])
    by_winner = shown(capsys)
    recommend.main([f"--model={joint_run}", "--users=user5"])
    assert by_winner == shown(capsys)


@pytest.mark.parametrize("content", [{}, [], {"winner": None}, {"winner": {}}])
def test_a_winners_file_without_a_winner(content: object, joint_run: Path):
    winner = joint_run.parent / "lost.winner.json"
    winner.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"lost\.winner\.json holds no winner/run; make it again"):
        recommend.main([f"--model={winner}", "--users=user5"])


def test_brackets_around_three_names(joint_run: Path, capsys: pytest.CaptureFixture):
    recommend.main([f"--model={joint_run}", "--history=[item1,item2,item3]", "--k=2"])
    output = capsys.readouterr()
    assert (output.err, output.out.splitlines()[0]) == ("", "This history: 3 items, the last 3, newest last")


def test_a_history_with_an_unknown_item_and_an_empty_one(joint_run: Path, capsys: pytest.CaptureFixture):
    recommend.main([f"--model={joint_run}", "--history=item1,itme12,item2", "--k=2"])
    output = capsys.readouterr()
    assert output.err == "skipped, not in the catalogue: 'itme12' (did you mean item12, item2, item1?)\n"
    assert output.out.startswith("This history: 2 items, the last 2, newest last\n  - text of item1\n")
    recommend.main([f"--model={joint_run}", "--history=[]", "--k=2"])
    lines = shown(capsys).splitlines()
    assert lines[0] == "This history: no items, so the most popular ones are recommended"
    assert [line.split()[2] for line in lines[2:]] == ["-", "-"]


def test_files_of_all_formats_agree(
    joint_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(recommend, "USERS_PER_SHARD", 4)
    for suffix in ("jsonl", "csv", "parquet"):
        recommend.main([f"--model={joint_run}", "--all_users", f"--output={tmp_path}/recs.{suffix}", "--k=3"])
        assert "3 items for 30 users, 30 of them now" in shown(capsys)
    lines = rows(tmp_path / "recs.jsonl")
    assert [line["user"] for line in lines] == [f"user{number}" for number in range(1, 31)]
    flat = [
        (line["user"], rank, item, score, line["source"])
        for line in lines
        for rank, (item, score) in enumerate(zip(line["items"], line["scores"], strict=True), start=1)
    ]
    assert duckdb.sql(f"SELECT * FROM '{tmp_path}/recs.parquet'").fetchall() == flat
    with open(tmp_path / "recs.csv", newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == ["user", "rank", "item", "score", "source"]
    assert [(user, int(rank), item, float(score), source) for user, rank, item, score, source in table[1:]] == flat
    assert sorted(path.name for path in tmp_path.glob("*recs*")) == ["recs.csv", "recs.jsonl", "recs.parquet"]
    with pytest.raises(InputError, match=r"recs\.jsonl is there already; --overwrite replaces it"):
        recommend.main([f"--model={joint_run}", "--all_users", f"--output={tmp_path}/recs.jsonl", "--k=3"])


def test_a_folder_that_is_called_as_a_column(joint_run: Path, tmp_path: Path):
    """Such names are how data lakes cut tables up; DuckDB would take them for values."""
    folder = tmp_path / "user=everybody" / "source=shop"
    folder.mkdir(parents=True)
    recommend.main([f"--model={joint_run}", "--all_users", f"--output={folder}/recs.csv", "--k=1"])
    with open(folder / "recs.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["user"] for row in table] == [f"user{number}" for number in range(1, 31)]
    assert {row["source"] for row in table} <= {"model", "most_popular"}


def test_an_interrupted_file_goes_on(
    joint_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.setattr(recommend, "USERS_PER_SHARD", 8)
    flags = [f"--model={joint_run}", "--all_users", "--k=3"]
    recommend.main([*flags, f"--output={tmp_path}/whole.jsonl"])
    real, calls = recommend.write_shard, []

    def stop_at_the_third(*arguments) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(recommend, "write_shard", stop_at_the_third)
    output = f"--output={tmp_path}/recs.jsonl"
    with pytest.raises(KeyboardInterrupt):
        recommend.main([*flags, output])
    assert not (tmp_path / "recs.jsonl").exists()
    capsys.readouterr()
    recommend.main([*flags, output])
    said = shown(capsys)
    assert "going on: 2 of 4 shards were finished before" in said
    assert "3 items for 30 users, 14 of them now" in said
    assert (tmp_path / "recs.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len(calls) == 5
    calls[:] = []
    with pytest.raises(KeyboardInterrupt):
        recommend.main([*flags, output, "--overwrite"])
    recommend.main([*flags, output, "--overwrite", "--num_beams=3"])
    assert "starting over: an interrupted run had other settings" in shown(capsys)


def test_users_file_of_names_and_histories(joint_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    users = tmp_path / "users.txt"
    users.write_text(
        'user7\n\n{"user": "guest", "history": ["item1", "itemX"]}\n{"user": "new", "history": []}\nuser1\n',
        encoding="utf-8-sig",  # as Windows editors do, with a mark in front
    )
    recommend.main([f"--model={joint_run}", f"--users_file={users}", f"--output={tmp_path}/recs.jsonl", "--k=3"])
    output = capsys.readouterr()
    assert output.err.startswith("guest: skipped, not in the catalogue: 'itemX' (did you mean")
    assert output.out.endswith("; 1 users have no known history and got the most popular items\n")
    lines = rows(tmp_path / "recs.jsonl")
    assert [(line["user"], line["source"]) for line in lines] == [
        ("user7", "model"),
        ("guest", "model"),
        ("new", "most_popular"),
        ("user1", "model"),
    ]
    assert lines[2]["scores"] == [None] * 3
    assert lines[1]["items"] == inference.load(joint_run).recommend([["item1"]], k=3)[0][0]
    for line in ('{"user": null}', '{"user": "a", "history": "item1"}', '{"user": "a", "history": [["item1"]]}', "{"):
        users.write_text(line)
        with pytest.raises(InputError, match=r'line 1 is neither a user nor \{"user"'):
            recommend.main([f"--model={joint_run}", f"--users_file={users}"])


def test_mistakes_are_named(joint_run: Path):
    for argv, message in (
        (["--users=user5,usr7"], r"1 users are not in the dataset: 'usr7' \(did you mean user7"),
        (["--history=" + ",".join(f"item{i}" for i in range(1, 20))], "leaves 1 of 20 items to recommend, k=10"),
        (["--users=,"], "--users=, names no user"),
        (["--users=user1", "--all_users"], r"one of .*\(given: users and all_users\); --all_users needs --output"),
        (
            ["--users=user1", "--output=recs.txt", "--k=0"],
            r"k=0 must be at least 1; output=recs.txt must end in .jsonl",
        ),
        (["--users=user1", "--data_dir=/nowhere"], "dataset folder /nowhere/Tiny does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            recommend.main([f"--model={joint_run}", *argv])


@pytest.mark.slow
def test_two_processes_write_the_same_file(joint_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recommend.main([f"--model={joint_run}", "--all_users", f"--output={tmp_path}/one.jsonl", "--k=3"])
    monkeypatch.setattr(recommend, "USERS_PER_SHARD", 7)
    flags = [f"--model={joint_run}", "--all_users", f"--output={tmp_path}/two.jsonl", "--k=3"]
    assert run_processes(recommend.main, flags, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    one, two = rows(tmp_path / "one.jsonl"), rows(tmp_path / "two.jsonl")
    assert [(row["user"], row["items"]) for row in one] == [(row["user"], row["items"]) for row in two]
    assert (tmp_path / "log").read_text().count("3 items for 30 users, 30 of them now") == 1


def test_export_makes_a_folder_that_recommends_alone(joint_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    import export

    export.main([f"--run={joint_run}", f"--output={tmp_path / 'out'}"])
    assert "20 items, tokenizer rqvae/toy_8,8,8,8, epoch 2" in shown(capsys)
    config = yaml.safe_load((joint_run / "config.yaml").read_text())
    (joint_run / "config.yaml").write_text(yaml.safe_dump(config | {"data_dir": "/nowhere"}))
    recommend.main([f"--model={tmp_path / 'out'}", "--history=item1,item2", "--k=2"])
    assert shown(capsys).startswith("This history: 2 items")
    with pytest.raises(InputError, match="out is there already; --overwrite replaces it"):
        export.main([f"--run={joint_run}", f"--output={tmp_path / 'out'}"])


def test_lists_may_have_spaces(joint_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    for flag, count in (("--history=item1, item2 ", 1), ("--users=user1, user2", 2)):
        recommend.main([f"--model={joint_run}", flag, f"--output={tmp_path}/{count}.jsonl", "--k=3"])
        assert capsys.readouterr().err == ""
        assert len(rows(tmp_path / f"{count}.jsonl")) == count


def test_numbers_in_a_users_file_are_the_names_that_data_prepare_makes(tmp_path: Path):
    users = tmp_path / "users.jsonl"
    users.write_text('{"user": 3, "history": [12, 1.5, " 7 ", true]}\n{"user": 4}\n')
    assert inference_requests.read_users_file(users) == [("3", ["12", "1.5", "7", "true"]), ("4", None)]
    for line, said in (
        ('{"user": "3"}', r"line 3 names the user '3' a second time"),
        ('{"user": 5, "history": [null]}', "line 3 is neither a user nor"),
        ('{"user": 5, "histroy": [1]}', "line 3 has 'histroy'; its keys are user and history"),
        ('{"user": NaN}', "line 3 is neither a user nor"),
        ('{"user": ' + "1" * 5000 + "}", "line 3 is neither a user nor"),
    ):
        users.write_text('{"user": 3}\n{"user": 4}\n' + line)
        with pytest.raises(InputError, match=said):
            inference_requests.read_users_file(users)


def renamed(run: Path, folder: Path, names: dict[str, str]) -> Path:
    """Export a run with other names of some items."""
    export_model(run, folder)
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    lines = [json.dumps(item | {"item": names.get(item["item"], item["item"])}) + "\n" for item in items]
    (folder / "items.jsonl").write_text("".join(lines))
    write_checksums(folder, [file for file in sorted(folder.iterdir()) if file.name != "sha256.json"])
    return folder


def test_names_with_brackets_and_commas(joint_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    names = {"item1": "B[1]", "item2": "[B]", "item3": "Salt, fine", "item4": "Salt"}
    model = renamed(joint_run, tmp_path / "out", names)
    recommend.main([f"--model={joint_run}", "--history=item1,item2", "--k=17"])
    expected = [line.split(" text of ")[1] for line in shown(capsys).splitlines()[4:]]
    for history in ("B[1],[B]", "[B[1],[B]]", " B[1] , [B] "):
        recommend.main([f"--model={model}", f"--history={history}", "--k=17"])
        output = capsys.readouterr()
        assert output.err == ""
        assert output.out.startswith("This history: 2 items, the last 2, newest last\n  - text of item1\n")
        assert [line.split(" text of ")[1] for line in output.out.splitlines()[4:]] == expected
    recommend.main([f"--model={model}", "--history=[B]", "--k=2"])
    assert shown(capsys).startswith("This history: 1 items, the last 1, newest last\n  - text of item2\n")
    for history in ("Salt, fine", "item9,Salt,fine", "[Salt, fine]", "[item9, Salt, fine,B[1]]"):
        with pytest.raises(InputError, match=r"'Salt, fine' is one name with commas.* --users_file"):
            recommend.main([f"--model={model}", f"--history={history}"])
    assert inference_requests.names_in("Salt, coarse", ["Salt, fine", "Salt"]) == ["Salt", "coarse"]


def test_a_history_of_which_nothing_is_known_is_an_error(joint_run: Path, tmp_path: Path):
    users = tmp_path / "users.jsonl"
    users.write_text('{"user": "ann", "history": ["itme12"]}\n{"user": "bob", "history": []}\nuser1\n')
    for flag, said in (
        (
            "--history=itme12",
            r"nothing is known of 1 of 1 histories: .*'itme12' \(did you mean item12, item2, item1\?\)",
        ),
        (f"--users_file={users}", "nothing is known of 1 of 3 histories: ann: .*'itme12'.*; an empty history, "),
    ):
        with pytest.raises(InputError, match=said):
            recommend.main([f"--model={joint_run}", flag, "--k=2"])


def test_items_of_the_dataset_that_the_model_lacks_are_said(
    joint_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    sequences = json.loads((joint_run.parents[2] / "datasets/Tiny/all_item_seqs.json").read_text())
    model = renamed(joint_run, tmp_path / "out", {item: f"other {item}" for item in set(sequences["user2"])})
    with pytest.raises(InputError, match="nothing is known of 1 of 1 histories: user2: skipped, not in the catalogue"):
        recommend.main([f"--model={model}", "--users=user2", "--k=2"])
    recommend.main([f"--model={model}", "--all_users", f"--output={tmp_path}/recs.jsonl", "--k=2"])
    output = capsys.readouterr()
    assert "user2: skipped, not in the catalogue: " in output.err
    assert "users have no known history and got the most popular items" in output.out
    by_user = {line["user"]: line["source"] for line in rows(tmp_path / "recs.jsonl")}
    assert by_user["user2"] == "most_popular"


def test_who_has_fewer_than_k_items_left_gets_these(joint_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    names = [f"item{number}" for number in range(1, 21)]
    histories = {"ann": names[:2], "most": names[:17], "all": names}
    users = tmp_path / "users.jsonl"
    users.write_text("".join(json.dumps({"user": u, "history": h}) + "\n" for u, h in histories.items()))
    flags = [f"--model={joint_run}", f"--users_file={users}", "--k=4"]
    recommend.main([*flags, f"--output={tmp_path}/recs.jsonl"])
    assert capsys.readouterr().err == "fewer than k=4 items are left for 2 of 3 users, who get these\n"
    lines = rows(tmp_path / "recs.jsonl")
    assert [len(line["items"]) for line in lines] == [len(line["scores"]) for line in lines] == [4, 3, 0]
    assert set(lines[1]["items"]) == set(names[17:])
    recommend.main([*flags, f"--output={tmp_path}/recs.csv"])
    with open(tmp_path / "recs.csv", newline="") as file:
        flat = [(user, int(rank), item) for user, rank, item, *_ in list(csv.reader(file))[1:]]
    assert flat == [(line["user"], rank, item) for line in lines for rank, item in enumerate(line["items"], start=1)]
    capsys.readouterr()
    recommend.main(flags)
    tables = shown(capsys).split("\n\n")
    assert [len(table.splitlines()) for table in tables] == [1 + 2 + 1 + 4, 1 + 3 + 1 + 3, 1 + 3 + 1]


def test_one_user_with_few_items_left_does_not_stop_all_users(
    joint_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    sequences = json.loads((joint_run.parents[2] / "datasets/Tiny/all_item_seqs.json").read_text())
    left = {user: 20 - len(set(sequence)) for user, sequence in sequences.items()}
    k = min(left.values()) + 1
    recommend.main([f"--model={joint_run}", "--all_users", f"--output={tmp_path}/recs.jsonl", f"--k={k}"])
    few = sum(count < k for count in left.values())
    assert capsys.readouterr().err == f"fewer than k={k} items are left for {few} of 30 users, who get these\n"
    assert {line["user"]: len(line["items"]) for line in rows(tmp_path / "recs.jsonl")} == {
        user: min(k, count) for user, count in left.items()
    }


def test_unknown_items_of_many_users_are_one_line(joint_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    users = tmp_path / "users.jsonl"
    users.write_text("".join(json.dumps({"user": f"u{n}", "history": ["item1", "gone"]}) + "\n" for n in range(9)))
    recommend.main([f"--model={joint_run}", f"--users_file={users}", f"--output={tmp_path}/recs.jsonl", "--k=3"])
    lines = capsys.readouterr().err.splitlines()
    assert lines[:5] == [f"u{n}: skipped, not in the catalogue: 'gone'" for n in range(5)]
    assert lines[5:] == ["items of 4 more users are skipped, not in the catalogue"]
