from pathlib import Path

import pytest

from evaluation.compare import Interval, bootstrap_over_users, paired_differences
from evaluation.run import load_run
from reporting.compare import _verdict, compare_runs, differing_settings, paired_interval, short_names
from reporting.pictures import without_middle
from utils.errors import InputError


@pytest.fixture
def runs(finished: Path) -> list:
    return [load_run(finished / name) for name in ("single", "pretrained", "tuned")]


def test_table_is_sorted_by_validation_and_the_page_has_all(runs, tmp_path):
    text = compare_runs(runs, tmp_path / "compare.html")
    best_first = sorted(runs, key=lambda run: -run.tokenizer["valid"]["ndcg@10"])
    lines = text.splitlines()
    assert lines[0].split()[:3] == ["run", "valid.", "NDCG@10"]
    assert [line.split()[0] for line in lines[1:]] == [run.folder.name for run in best_first]
    assert [line.split()[1] for line in lines[1:]] == [f"{run.tokenizer['valid']['ndcg@10']:.4f}" for run in best_first]
    page = (tmp_path / "compare.html").read_text()
    for title in ("Runs", "Settings", "Differences", "Curves"):
        assert f"<h2>{title}</h2>" in page
    names = {path.stem for path in (tmp_path / "compare_pictures").iterdir()}
    assert names == {"differences", "losses", "validations"}
    differences = paired_differences(best_first[0].user_results, best_first[1].user_results, ["ndcg@10"])
    found = bootstrap_over_users(differences[:, 0], 2000, seed=2024)  # what evaluate.py --compare prints
    assert f"<td>{found.mean:+.4f}</td><td>{found.low:+.4f} to {found.high:+.4f}</td>" in page


def test_what_is_told_apart():
    found = [Interval(0.2, 0.1, 0.3), Interval(-0.2, -0.3, -0.1), Interval(0.1, 0.0, 0.2)]
    assert [_verdict(difference) for difference in found] == ["higher", "lower", "not told apart"]
    nan = float("nan")
    assert {_verdict(Interval(0.3, nan, nan)), _verdict(Interval(nan, nan, nan))} == {
        "not told apart"
    }  # one user, none


def test_only_settings_that_differ_are_listed(runs):
    found = differing_settings(runs)
    assert found["epochs"] == [2, 3, 2]
    assert found["tau"] == ["–", 1.0, "–"]
    assert not {"lr", "dataset", "run_name"} & found.keys()


def test_difference_is_paired_by_user(runs):
    means = [run.tokenizer["test"]["recall@10"] for run in runs]
    assert paired_interval(runs[0], runs[1], "recall@10").mean == pytest.approx(means[1] - means[0])
    assert paired_interval(runs[0], runs[0], "ndcg@10") == Interval(0, 0, 0)


def test_what_cannot_be_compared_is_refused(runs, tmp_path):
    runs[1].settings["dataset"] = "Other"
    with pytest.raises(InputError, match=r"the runs differ in dataset \(Tiny, Other\)"):
        compare_runs(runs, tmp_path / "compare.html")


def test_runs_whose_names_begin_alike_keep_their_curves():
    names = [f"pretrain_25tokenizers_6layers_tau{tau}_seed2024" for tau in (1, 3)]
    assert without_middle(names, 30) == ["pretrain_25tok…s_tau1_seed2024", "pretrain_25tok…s_tau3_seed2024"]
    assert without_middle(["a" * 40, "a" * 20 + "b" + "a" * 19], 30) == ["a" * 40, "a" * 20 + "b" + "a" * 19]
    assert without_middle(["short", "short"], 30) == ["short", "short"]


def test_equal_names_are_shown_with_their_folders(runs):
    assert short_names(runs) == ["single", "pretrained", "tuned"]
    assert short_names([runs[0], runs[0]]) == [str(runs[0].folder)] * 2
