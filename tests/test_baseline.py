import json
import shutil
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from tiny_dataset import make_dataset
from tiny_runs import fake_run, read_lines, read_results

import baseline
import evaluate
import report
from baselines.config import BaselineConfig
from baselines.methods import METHODS
from evaluation.run import BASELINES, Run, baseline_runs, load_run, single_tokenizer_run
from reporting.curves import phase_seconds
from utils.errors import InputError
from utils.files import read_json, write_json

SMALL = ["--d_model=16", "--lr=0.01", "--dropout_rate=0.1", "--train_batch_size=16", "--max_item_seq_len=10"]
LONG = ["--epochs=20", "--patience=20"]


def flags(dataset: Path, method: str, *more: str) -> list[str]:
    folders = [f"--data_dir={dataset.parent}", f"--ckpt_dir={dataset.parents[1] / 'runs'}"]
    return [f"--dataset={dataset.name}", f"--method={method}", *folders, *SMALL, *more]


def make_cycles(folder: Path, last: int | None = None) -> Path:
    """Write a dataset in which item i is followed by item i + 1 of 20; `last` replaces every user's last two items."""
    make_dataset(folder, num_users=60)
    starts = np.random.default_rng(0).integers(20, size=60)
    sequences = {}
    for user, start in enumerate(starts, start=1):
        items = [(start + place) % 20 + 1 for place in range(5 + user % 6)]
        sequences[f"user{user}"] = [f"item{item}" for item in (items if last is None else [*items[:-2], last, last])]
    (folder / "all_item_seqs.json").write_text(json.dumps(sequences))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of each method on cycles of items; read only."""
    dataset = make_cycles(tmp_path_factory.mktemp("cycles") / "datasets" / "Tiny")
    for method in METHODS:
        baseline.main(flags(dataset, method, *LONG))
    return dataset.parents[1] / "runs" / "Tiny"


def test_every_method_has_a_class_and_a_name():
    assert METHODS.keys() == BASELINES.keys() == set(get_args(get_type_hints(BaselineConfig)["method"]))


def test_sequences_are_learnt_and_popularity_is_not_enough(runs):
    popular, neighbours, sasrec = (read_results(runs / name) for name in ("popular", "itemknn", "sasrec_seed2024"))
    assert popular["test"]["recall@5"] < 0.5
    assert neighbours["test"]["recall@5"] > 0.95
    assert sasrec["test"]["ndcg@5"] > 0.9
    assert sasrec["num_users"] == 60
    losses = [line["loss"] for line in read_lines(runs / "sasrec_seed2024", "epoch")]
    assert losses[0] == pytest.approx(np.log(20), abs=0.3)
    assert losses[-1] < 0.3 * losses[0]


def test_the_best_epoch_is_the_one_that_is_tested(runs):
    lines = read_lines(runs / "sasrec_seed2024", "valid")
    scores = {line["epoch"]: line["mean"]["ndcg@10"] for line in lines}
    results = read_results(runs / "sasrec_seed2024")
    assert results["best_epoch"] == max(scores, key=scores.get)
    assert results["valid"]["ndcg@10"] == scores[results["best_epoch"]]


@pytest.mark.parametrize("name", ["popular", "itemknn", "sasrec_seed2024"])
def test_the_duration_is_the_time_of_all_that_was_done(runs, name):
    lines = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
    assert sum(phase_seconds(Run(runs / name)).values()) == pytest.approx(sum(line["seconds"] for line in lines))


@pytest.mark.parametrize("name", ["popular", "itemknn", "sasrec_seed2024"])
def test_a_run_is_read_as_any_other(runs, name):
    run = load_run(runs / name)
    sequences = json.loads((run.dataset_folder / "all_item_seqs.json").read_text())
    assert run.user_results.users == list(sequences)
    assert run.user_results.targets == [items[-1] for items in sequences.values()]
    assert run.user_results.k == 10
    for items, scores in zip(run.user_results.items, run.user_results.scores, strict=True):
        assert len(set(items)) == 10
        assert scores == sorted(scores, reverse=True)
    assert run.user_results.metrics(list(run.tokenizer["test"])) == pytest.approx(run.tokenizer["test"])
    assert run.method == BASELINES[run.settings["method"]]


def test_embeddings_have_a_row_for_every_item(runs):
    embeddings = np.load(runs / "sasrec_seed2024" / "item_embeddings.npy")
    assert (embeddings.shape, embeddings.dtype) == ((20, 16), np.float32)
    assert len(np.unique(embeddings, axis=0)) == 20
    assert not (runs / "itemknn" / "item_embeddings.npy").exists()


def test_the_seed_decides_and_later_items_are_not_learnt_from(tmp_path):
    """With one evaluation its epoch is the best, whatever the targets are."""
    once, weights = ["--epochs=2", "--eval_interval=2"], {}
    for name, last, seed in (("a", None, 1), ("same", None, 1), ("other_seed", None, 2), ("other_targets", 7, 1)):
        dataset = make_cycles(tmp_path / name / "Tiny", last)
        baseline.main(flags(dataset, "sasrec", *once, f"--rand_seed={seed}", "--run_name=run"))
        weights[name] = np.load(tmp_path / "runs" / "Tiny" / "run" / "item_embeddings.npy")
        shutil.rmtree(tmp_path / "runs")
    assert np.array_equal(weights["a"], weights["same"])
    assert np.array_equal(weights["a"], weights["other_targets"])
    assert not np.allclose(weights["a"], weights["other_seed"])


def test_a_finished_run_is_kept_and_an_unfinished_one_started_anew(runs, tmp_path, capsys):
    copy = shutil.copytree(runs.parents[1], tmp_path / "copy")
    again = flags(copy / "datasets" / "Tiny", "itemknn", *LONG)
    with pytest.raises(InputError, match="holds a finished run; set another RUN_NAME"):
        baseline.main(again)
    with pytest.raises(InputError, match="with other settings: max_item_seq_len=4 "):
        baseline.main([*again, "--resume", "--max_item_seq_len=4"])
    capsys.readouterr()
    baseline.main([*again, "--resume"])
    assert capsys.readouterr().out.endswith("itemknn is already finished with these settings\n")
    results = copy / "runs" / "Tiny" / "itemknn" / "results.json"
    before = results.read_text()
    results.unlink()
    with pytest.raises(InputError, match="holds an unfinished run"):
        baseline.main(again)
    baseline.main([*again, "--resume", "--device=auto"])  # nothing of it goes on, so it may run elsewhere
    assert results.read_text() == before
    sequences = copy / "datasets" / "Tiny" / "all_item_seqs.json"
    users = read_json(sequences)
    write_json(sequences, {user: items[::-1] for user, items in users.items()})
    with pytest.raises(InputError, match="but since then these changed: interactions; set another RUN_NAME"):
        baseline.main([*again, "--resume"])
    run = str(copy / "runs" / "Tiny" / "itemknn")
    with pytest.raises(InputError, match=r"itemknn was made with other interactions than .* has now"):
        evaluate.main([f"--model={run}", f"--data_dir={copy / 'datasets'}", f"--output={tmp_path}"])


@pytest.mark.parametrize(
    ("more", "said"), [([], "holds a finished run"), (["--resume"], "was finished by another process meanwhile")]
)
def test_a_run_that_another_process_finished_meanwhile_is_not_deleted(runs, tmp_path, monkeypatch, more, said):
    copy = shutil.copytree(runs.parents[1], tmp_path / "copy")
    folder = copy / "runs" / "Tiny" / "itemknn"
    folder.rename(tmp_path / "aside")

    monkeypatch.setattr(baseline, "seed_everything", lambda _: (tmp_path / "aside").rename(folder))
    with pytest.raises(InputError, match=said):
        baseline.main(flags(copy / "datasets" / "Tiny", "itemknn", *LONG, *more))
    assert (folder / "results.json").read_bytes() == (runs / "itemknn" / "results.json").read_bytes()


def test_results_are_compared_and_cut_into_groups(runs, tmp_path, capsys):
    files = [str(load_run(runs / name).user_results_file) for name in ("popular", "itemknn")]
    evaluate.main([f"--compare=[{','.join(files)}]", f"--output={tmp_path}"])
    found = json.loads((tmp_path / "evaluation.json").read_text())
    gain = read_results(runs / "itemknn")["test"]["recall@5"] - read_results(runs / "popular")["test"]["recall@5"]
    assert found["difference"]["recall@5"]["mean"] == pytest.approx(gain)
    capsys.readouterr()
    evaluate.main([f"--model={runs / 'itemknn'}", "--popularity_edges=[12]", f"--output={tmp_path}"])
    (row,) = json.loads((tmp_path / "evaluation.json").read_text())
    assert row["metrics"]["recall@5"] == read_results(runs / "itemknn")["test"]["recall@5"]
    assert sum(group["users"] for group in row["by_popularity"].values()) == 60
    assert len(row["by_popularity"]) == 2
    assert f"{runs / 'itemknn'}  Item neighbours\ntest: 60 users, coverage@10 100.0%" in capsys.readouterr().out
    with pytest.raises(InputError, match="whose recommendations are those of the test"):
        evaluate.main([f"--model={runs / 'itemknn'}", "--split=valid", f"--output={tmp_path}"])


def test_reports_show_baselines_beside_a_run_and_as_runs(runs, tmp_path, capsys):
    report.main([str(runs / "sasrec_seed2024"), "--users=1", f"--output={tmp_path / 'one.html'}"])
    printed = capsys.readouterr().out.splitlines()
    names = [line.split("  ")[0] for line in printed[3:6]]
    assert names == ["Most popular items", "Item neighbours", "sasrec_seed2024"]
    page = (tmp_path / "one.html").read_text()
    assert "<p>Tiny, SASRec</p>" in page
    assert "Item neighbours: itemknn</th>" in page
    assert "against Item neighbours" in page
    report.main(["--compare", *map(str, runs.glob("*")), f"--output={tmp_path / 'all.html'}"])
    table = capsys.readouterr().out.splitlines()[1:4]
    assert sorted(line.split()[0] for line in table) == ["itemknn", "popular", "sasrec_seed2024"]


def test_a_baseline_is_not_taken_for_a_run_with_one_tokenizer(runs, tmp_path):
    row = {"epoch": 1, "prefix": "rqvae/toy", "valid": {"ndcg@10": 0.1}, "test": {"ndcg@10": 0.1}}
    copy = shutil.copytree(runs, tmp_path / "runs")
    for name, model in (("tuned", "somewhere"), ("single", "")):
        fake_run(copy / name, {"per_tokenizer": [row]}, dataset="Tiny", val_metric="ndcg@10", pretrained_model=model)
    tuned = Run(copy / "tuned")
    assert tuned.method is None
    assert single_tokenizer_run(tuned).folder == copy / "single"
    assert [run.folder.name for run in baseline_runs(tuned)] == ["itemknn", "sasrec_seed2024"]
    assert [run.folder.name for run in baseline_runs(Run(copy / "itemknn"))] == ["sasrec_seed2024"]


def test_runs_trained_on_other_users_are_not_compared_with(tmp_path):
    best = {"valid": {"ndcg@10": 0.9}, "test": {"ndcg@10": 0.9}}
    share = {"train_user_ratio": 0.25, "rand_seed": 1}
    kinds = {
        **{"older": {}, "all": {"train_user_ratio": 1.0, "val_users": "all", "rand_seed": 7}},
        **{"share": share, "other_ratio": share | {"train_user_ratio": 0.5}},
        **{"other_users": share | {"rand_seed": 2}, "other_validation": share | {"val_users": "new"}},
    }
    for number, (name, users) in enumerate(kinds.items()):
        best["valid"]["ndcg@10"] = number / 10  # that of other users is the better
        settings = {"dataset": "Tiny", "val_metric": "ndcg@10", **users}
        row = {"epoch": 1, "prefix": "rqvae/toy", **best}
        fake_run(tmp_path / f"single_{name}", {"per_tokenizer": [row]}, **settings)
        fake_run(tmp_path / f"itemknn_{name}", {"per_tokenizer": [row]}, method="itemknn", **settings)
    for name, users, among in (("mtgrec", {"rand_seed": 3}, "all"), ("mtgrec_share", share, "share")):
        model = {"pretrained_model": "somewhere", "val_metric": "ndcg@10", **users}
        run = Run(fake_run(tmp_path / name, {"per_tokenizer": [row]}, **model))
        assert single_tokenizer_run(run).folder.name == f"single_{among}"
        assert [other.folder.name for other in baseline_runs(run)] == [f"itemknn_{among}"]


def test_sasrec_needs_a_user_with_two_training_items_and_the_others_do_not(dataset, tmp_path):
    (dataset / "all_item_seqs.json").write_text(json.dumps({f"user{n}": ["item1", "item2", "item3"] for n in (1, 2)}))
    with pytest.raises(InputError, match="no user has enough items for train examples"):
        baseline.main(flags(dataset, "sasrec"))
    assert not (tmp_path / "runs").exists()
    for method in ("popular", "itemknn"):
        baseline.main(flags(dataset, method))
        assert read_results(tmp_path / "runs" / "Tiny" / method)["num_users"] == 2


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--method=markov", "method"),
        ("--num_heads=3", "num_heads=3 must divide d_model=16"),
        ("--val_metric=ndcg@7", r"val_metric=ndcg@7 is not among metrics=\['ndcg', 'recall'\] at topk=\[5, 10\]"),
        ("--metrics=[auc]", "metrics has 'auc'; there are recall and ndcg and mrr"),
        ("--val_users=new", "val_users=new needs users that training does not see: train_user_ratio below 1"),
        ("--run_name=a/b", "run_name=a/b must be the name of a folder, not a path"),
        ("--lr=1e30", "the loss is nan in epoch"),
    ],
)
def test_what_is_wrong_is_said(dataset, flag, said):
    with pytest.raises((InputError, FloatingPointError), match=said):
        baseline.main([*flags(dataset, "sasrec"), flag])
