import json
import os
import re
from pathlib import Path

import pytest
from tiny_runs import fake_run

import report
from evaluation.run import load_run, results_folder_of, single_tokenizer_run
from report import ReportConfig, with_lists
from utils.errors import InputError

# The last item of each is the test's target, the one before it validation's; the rest is what popularity counts.
SEQUENCES = {
    "user1": [1, 1, 2, 3, 1],
    "user2": [1, 2, 4, 9, 2],
    "user3": [1, 2, 5, 7, 8, 2, 6],
    "user4": [3, 4],
}
# Most popular: item1 (4 times), item2 (3), items 4, 5, 7, 8 (once), then the first ones that never occur: 3, 6, 9, 10.
# The targets 1, 2, 6, 4 have the ranks 1, 2, 8, 3: NDCG@5 = (1 + 1 / log2(3) + 0 + 1 / 2) / 4, NDCG@10 has 1 / log2(9).
POPULAR = "0.7500     1.0000     0.5327     0.6116"


def metrics(first: float) -> dict[str, float]:
    """Return metrics that differ: first, first + 0.01, ..."""
    names = ("ndcg@5", "recall@5", "ndcg@10", "recall@10")
    return {name: first + number / 100 for number, name in enumerate(names)}


@pytest.fixture
def runs(dataset: Path, tmp_path: Path) -> Path:
    """Return the folder of runs on the tiny dataset, which gets the sequences above."""
    sequences = {user: [f"item{item}" for item in sequence] for user, sequence in SEQUENCES.items()}
    (dataset / "all_item_seqs.json").write_text(json.dumps(sequences))
    return tmp_path / "runs" / "Tiny"


def make_run(
    folder: Path,
    tokenizers: list[tuple[str, int, float, float]],
    file: str,
    results_dir: Path | None = None,
    **more: object,
) -> Path:
    """Write a finished run.

    Args:
        folder: Its folder.
        tokenizers: Prefix, epoch, validation score and first test metric of each.
        file: Name of the result file per user.
        results_dir: The setting of that name.
        more: Further settings.
    """
    rows = [
        {"prefix": prefix, "epoch": epoch, "valid": {"ndcg@10": valid}, "test": metrics(test)}
        for prefix, epoch, valid, test in tokenizers
    ]
    settings = {"dataset": "Tiny", "data_dir": str(folder.parents[2] / "datasets"), "val_metric": "ndcg@10"}
    settings["results_dir"] = str(results_dir) if results_dir else None
    settings |= {"token_suffix": "sem_ids", "n_codebooks": 3, "codebook_size": 8, **more}
    fake_run(folder, {"best_epoch": 1, "per_tokenizer": rows}, **settings)
    recommended = [[1, 2, 3, 4, 5], [9, 8, 8, 2, 2], [None, 6, 3, 3, 9], [7, 7, 7, 7, 7]]
    result = {
        "users": list(SEQUENCES),
        "scores": [[-0.1, -0.2, -0.3, -0.4, -0.5]] * 4,
        "label_ids": [f"item{sequence[-1]}" for sequence in SEQUENCES.values()],
        "pred_ids": [[f"item{item}" if item else "None" for item in row] for row in recommended],
    }
    where = results_folder_of(folder, settings["results_dir"]) / file
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_text(json.dumps(result))
    return folder


@pytest.fixture(autouse=True)
def written(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the list of HTML reports that would have been written; tests/reporting writes them."""
    files: list[Path] = []
    monkeypatch.setattr(report, "write_report", lambda data, file: files.append(file))
    return files


def winner(run: Path) -> Path:
    """Write a selection beside a run that names it."""
    file = run.parent / f"{run.name}.winner.json"
    file.write_text(json.dumps({"winner": {"run": str(run)}}))
    return file


def test_one_run(runs, capsys):
    run = make_run(runs / "tuned", [("rqvae/toy", 2, 0.5, 0.3)], "test_results_2.json")
    report.main([str(run), "--users=1"])
    assert (
        capsys.readouterr().out
        == f"""Tiny: 4 test users

test                 Recall@5  Recall@10     NDCG@5    NDCG@10
Most popular items     {POPULAR}
tuned                  0.3100     0.3300     0.3000     0.3200

User user3: 6 items, the last 5, newest last
    - text of item2
    - text of item5
    - text of item7
    - text of item8
    - text of item2
  came next (recommended at rank 2)
    - text of item6
  recommended, best first, the first 3 real items
    * text of item6
    - text of item3
    - text of item9

run: {run}
per user: {run}/test_results_2.json
report: {run}/report.html
"""
    )


def test_winner_beside_a_baseline(runs, capsys):
    tuned = make_run(runs / "tuned", [("rqvae/toy", 2, 0.5, 0.3)], "test_results_2.json")
    single = make_run(runs / "single", [("rqvae/toy", 1, 0.5, 0.2)], "test_results_1.json")
    report.main([f"--run={winner(tuned)}", f"--baseline={winner(single)}", "--users=0"])
    assert (
        capsys.readouterr().out
        == f"""Tiny: 4 test users

test                             Recall@5  Recall@10     NDCG@5    NDCG@10
Most popular items                 {POPULAR}
One tokenizer, no pre-training     0.2100     0.2300     0.2000     0.2200
MTGRec (tuned)                     0.3100     0.3300     0.3000     0.3200

run: {tuned}
per user: {tuned}/test_results_2.json
report: {tuned}/report.html
"""
    )


def test_a_baseline_is_called_what_it_is_and_is_of_the_same_dataset(runs, capsys):
    tuned = make_run(runs / "tuned", [("rqvae/toy", 2, 0.5, 0.3)], "test_results_2.json")
    two = [("rqvae/toy", 1, 0.9, 0.2), ("rqvae/toy", 2, 0.9, 0.2)]
    other = make_run(runs / "other", two, "test_results_1.json")
    report.main([str(tuned), f"--baseline={other}", "--users=0"])
    assert re.search(r"\nAnother run +0\.2100 ", capsys.readouterr().out)
    elsewhere = make_run(runs / "elsewhere", two, "test_results_1.json", dataset="Elsewhere")
    with pytest.raises(InputError, match="elsewhere is of another dataset: Elsewhere"):
        report.main([str(tuned), f"--baseline={elsewhere}", "--users=0"])


def test_a_run_of_other_interactions_than_there_are_now_has_no_report(runs):
    run = make_run(runs / "tuned", [("rqvae/toy", 2, 0.5, 0.3)], "test_results_2.json")
    (run / "environment.json").write_text(json.dumps({"sources": {"interactions": "others"}}))
    with pytest.raises(InputError, match=r"tuned was made with other interactions than .* has now"):
        report.main([str(run), "--users=0"])


def test_report_lies_in_the_run_or_where_it_is_said(runs, written, tmp_path):
    run = make_run(runs / "tuned", [("rqvae/toy", 2, 0.5, 0.3)], "test_results_2.json")
    report.main([str(run), "--users=0"])
    report.main([str(run), "--users=0", f"--output={tmp_path / 'there.html'}"])
    assert written == [run / "report.html", tmp_path / "there.html"]


def test_reuse_leaves_a_report_alone_that_is_newer_than_the_results(runs, written):
    run = make_run(runs / "tuned", [("rqvae/toy", 2, 0.5, 0.3)], "test_results_2.json")
    (run / "report.html").write_text("")
    for results_are_newer in (False, True):
        os.utime(run / "report.html", (1e9, 1e9 + 5))
        os.utime(run / "results.json", (1e9, 1e9 + (9 if results_are_newer else 0)))
        report.main([str(run), "--users=0", "--reuse"])
        assert len(written) == results_are_newer


def test_baseline_is_the_best_run_beside_it_with_one_tokenizer_from_scratch(runs):
    one, two = [("rqvae/toy", 1, 0.5, 0.2)], [("rqvae/toy", 1, 0.9, 0.2), ("rqvae/toy", 2, 0.9, 0.2)]
    make_run(runs / "a_weaker", [("rqvae/toy", 1, 0.4, 0.9)], "test_results_1.json", pretrained_model="")
    single = make_run(runs / "b_single", one, "test_results_1.json", pretrained_model="")
    make_run(runs / "c_joint", two, "test_results_1.json", pretrained_model="")
    make_run(runs / "d_pretrained", two, "test_results_1.json", pretrained_model="", epoch_per_stage=[1])
    tuned = make_run(runs / "e_tuned", [("rqvae/toy", 1, 0.9, 0.2)], "test_results_1.json", pretrained_model="model")
    assert single_tokenizer_run(load_run(tuned)).folder == single
    assert single_tokenizer_run(load_run(single)) is None


def test_runs_of_other_interactions_are_not_mixed(runs):
    """Where both say what they were made with, as runs of earlier versions do not."""
    one = [("rqvae/toy", 1, 0.5, 0.2)]
    single = make_run(runs / "single", one, "test_results_1.json", pretrained_model="")
    tuned = make_run(runs / "tuned", [("rqvae/toy", 2, 0.5, 0.3)], "test_results_2.json", pretrained_model="model")
    (single / "environment.json").write_text('{"sources": {"interactions": "before"}}')
    assert single_tokenizer_run(load_run(tuned)).folder == single
    (tuned / "environment.json").write_text('{"sources": {"interactions": "after"}}')
    assert single_tokenizer_run(load_run(tuned)) is None
    with pytest.raises(InputError, match=r"--baseline=.*single was made with other interactions than .*tuned"):
        report.main([str(tuned), f"--baseline={single}"])
    with pytest.raises(InputError, match="were made with other interactions than each other"):
        report.main(["--compare", str(single), str(tuned)])


def test_a_share_of_the_test_users_is_compared_with_itself(runs, capsys):
    run = make_run(runs / "tuned", [("rqvae/toy", 2, 0.5, 0.3)], "test_results_2.json", test_ratio=0.5, rand_seed=1)
    make_run(runs / "all", [("rqvae/toy", 1, 0.5, 0.2)], "test_results_1.json", pretrained_model="")
    file = run / "test_results_2.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({name: values[:2] for name, values in content.items()}))  # user1 and user2
    report.main([str(run), "--users=0"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Tiny: 2 test users"
    assert lines[3].split() == ["Most", "popular", "items", "1.0000", "1.0000", "0.8155", "0.8155"]  # ranks 1 and 2
    assert lines[4].startswith("tuned")


def test_users_are_spread_over_all_and_a_miss_is_told(runs, capsys):
    run = make_run(runs / "tuned", [("rqvae/toy", 2, 0.5, 0.3)], "test_results_2.json")
    report.main([str(run), "--users=2"])
    users = capsys.readouterr().out.split("\n\n")[2:4]
    assert [text.splitlines()[0] for text in users] == [
        "User user2: 4 items, the last 4, newest last",
        "User user4: 1 items, the last 1, newest last",
    ]
    assert [line for text in users for line in text.splitlines() if "came next" in line] == [
        "  came next (recommended at rank 4)",
        "  came next (not among the recommended)",
    ]
    assert users[1].splitlines()[-2:] == ["  recommended, best first, the first 1 real items", "    - text of item7"]


def test_best_tokenizer_by_validation_among_several_prefixes(runs, tmp_path):
    tokenizers = [
        ("rqvae/a", 2, 0.4, 0.9),
        ("rqvae/a", 3, 0.3, 0.8),
        ("rqvae/b", 2, 0.1, 0.7),
        ("rqvae/b", 3, 0.5, 0.1),
    ]
    run = make_run(runs / "joint", tokenizers, "test_results_1_3.json", results_dir=tmp_path / "results")
    outcome = load_run(run)
    assert outcome.tokenizer["test"] == metrics(0.1)
    assert outcome.user_results_file == tmp_path / "results" / "Tiny" / "joint" / "test_results_1_3.json"
    assert outcome.user_results_file.is_file()


def test_absent_runs_and_wrong_flags(runs):
    run = make_run(runs / "tuned", [("rqvae/toy", 2, 0.5, 0.3)], "test_results_2.json")
    for argv in ([str(runs / "absent")], [str(run), f"--baseline={runs / 'absent'}"]):
        with pytest.raises(InputError, match=r"absent holds no finished run \(results\.json is not there\)"):
            report.main(argv)
    (run / "results.json").unlink()
    with pytest.raises(InputError, match="tuned holds no finished run"):
        report.main([str(winner(run))])
    wrong = {
        "name a run folder": [],
        "users=-1 must not be negative": [str(run), "--users=-1"],
        r"output=x.pdf must end in \.html": [str(run), "--output=x.pdf"],
        "absent_.* matches no run": ["--compare", str(run), str(runs / "absent_*")],
    }
    for message, argv in wrong.items():
        with pytest.raises(InputError, match=message):
            report.main(argv)
    assert ReportConfig("run").problems() == []


def test_compare_takes_any_number_of_runs():
    assert with_lists(["--compare", "a", "b c", "--users=0"]) == ['--compare=["a", "b c"]', "--users=0"]
    assert with_lists(["--compare", "😀/a"]) == ['--compare=["😀/a"]']
    assert with_lists(["a", "--users=0"]) == ["--run=a", "--users=0"]


def test_compare_expands_patterns_and_drops_what_is_named_twice_or_unfinished(runs, monkeypatch):
    compared: list = []
    monkeypatch.setattr(report, "compare_runs", lambda found, file: compared.append((found, file)) or "the table")
    names = ["one", "two", "unfinished"]
    folders = [make_run(runs / name, [("rqvae/toy", 2, 0.5, 0.3)], "test_results_2.json") for name in names]
    (folders[2] / "results.json").unlink()
    for folder in folders[:2]:
        winner(folder)
    report.main(["--compare", str(folders[1]), str(runs / "*.winner.json")])
    ((found, _),) = compared
    assert [run.folder.name for run in found] == ["two", "one"]
    compared.clear()
    report.main(["--compare", str(folders[1]), str(runs / "*")])
    ((found, file),) = compared
    assert [run.folder.name for run in found] == ["two", "one"]
    assert file == runs / "compare.html"
    with pytest.raises(InputError, match="1 finished run is nothing to compare"):
        report.main(["--compare", str(folders[1]), str(folders[1])])


def test_a_name_that_exists_is_no_pattern(runs, monkeypatch):
    compared: list = []
    monkeypatch.setattr(report, "compare_runs", lambda found, file: compared.append(found) or "the table")
    for name in ("x[1]", "x1", "y"):
        make_run(runs / name, [("rqvae/toy", 2, 0.5, 0.3)], "test_results_2.json")
    report.main(["--compare", str(runs / "x[1]"), str(runs / "y")])
    report.main(["--compare", str(runs / "x[12]"), str(runs / "y")])
    assert [[run.folder.name for run in found] for found in compared] == [["x[1]", "y"], ["x1", "y"]]


def test_a_run_without_its_results_per_user(runs, capsys):
    run = make_run(runs / "tuned", [("rqvae/toy", 2, 0.5, 0.3)], "test_results_2.json")
    (run / "test_results_2.json").unlink()
    report.main([str(run)])
    output = capsys.readouterr().out
    assert "\nUser " not in output
    assert output.endswith(f"per user: {run}/test_results_2.json (gone)\nreport: {run}/report.html\n")
