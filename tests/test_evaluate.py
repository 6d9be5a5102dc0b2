import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_runs import flags, read_results

import evaluate
import finetune
from evaluation.results import read_results as read_file
from utils.errors import InputError


def read(folder: Path) -> object:
    return json.loads((folder / "evaluation.json").read_text())


def test_every_combination(joint_run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    output = tmp_path / "out"
    flags = ["--sem_id_epochs=[2,3]", "--num_beams=[3,20]", "--constrained=[false,true]", "--topk=[1,3]"]
    flags += ["--popularity_edges=[15]", "--length_edges=[2,20]", "--split=valid", f"--output={output}"]
    evaluate.main([f"--model={joint_run}", *flags])
    rows = read(output)
    assert [(row["epoch"], row["num_beams"], row["constrained"]) for row in rows] == [
        (epoch, beams, constrained) for epoch in (2, 3) for beams in (3, 20) for constrained in (False, True)
    ]
    assert len(list(output.glob("valid_results_Tiny_joint_*.json"))) == 8
    sequences = json.loads((dataset / "all_item_seqs.json").read_text())
    sequences = {user: items for user, items in sequences.items() if len(items) >= 3}
    trained = [item for items in sequences.values() for item in items[:-2]]
    for row in rows:
        content = json.loads(Path(row["file"]).read_text())
        assert content["users"] == list(sequences)
        assert content["label_ids"] == [items[-2] for items in sequences.values()]
        assert {len(items) for items in content["pred_ids"]} == {3}
        listed = [item for items in content["pred_ids"] for item in items]
        assert row["invalid@3"] == pytest.approx(listed.count(None) / len(listed))
        assert (row["invalid@3"] == 0) == row["constrained"]
        assert row["coverage@3"] == pytest.approx(len(set(listed) - {None}) / 20)
        hits = {user: target in items for user, target, items in zip(*columns(content), strict=True)}
        assert row["metrics"]["recall@3"] == pytest.approx(np.mean(list(hits.values())))
        rare = [user for user, items in sequences.items() if trained.count(items[-2]) < 15]
        assert row["by_popularity"]["0-14"]["users"] == len(rare) > 0
        assert row["by_popularity"]["0-14"]["recall@3"] == pytest.approx(np.mean([hits[user] for user in rare]))
        long = [user for user, items in sequences.items() if len(items) - 2 >= 20]
        assert row["by_history_length"]["20+"]["users"] == len(long) > 0
        assert row["by_history_length"]["20+"]["recall@3"] == pytest.approx(np.mean([hits[user] for user in long]))
        followed = [pair for items in sequences.values() for pair in pairwise(items[:-2])]
        new = [user for user, items in sequences.items() if tuple(items[-3:-1]) not in followed]
        assert row["by_transition"]["0"]["users"] == len(new) > 0
        assert row["by_transition"]["0"]["recall@3"] == pytest.approx(np.mean([hits[user] for user in new]))
        assert sum(group["users"] for group in row["by_transition"].values()) == len(sequences)
    text = capsys.readouterr().out
    assert len(re.findall(r"^everybody +\d+ ", text, re.MULTILINE)) == 8
    assert "tokenizer 3 of rqvae/toy_8,8,8,8  20 beams, real items only" in text


def columns(content: dict) -> tuple[list, list, list]:
    return content["users"], content["label_ids"], content["pred_ids"]


def test_checkpoints_by_their_runs_settings(joint_run: Path, tmp_path: Path):
    shutil.copytree(joint_run / "model", joint_run / "checkpoints" / "epoch_5")
    models = f"[{joint_run},{joint_run}/checkpoints/epoch_5]"
    evaluate.main([f"--model={models}", f"--output={tmp_path / 'out'}", "--num_beams=10"])
    rows = read(tmp_path / "out")
    assert [(Path(row["model"]).name, row["epoch"]) for row in rows] == [
        *(("joint", 1), ("joint", 2)),
        *(("epoch_5", 1), ("epoch_5", 2)),
    ]
    assert rows[0]["metrics"] == rows[2]["metrics"]
    assert len({row["file"] for row in rows}) == 4


def test_epochs_are_chosen_of_kinds_with_epochs_of_their_own(joint_run: Path, dataset: Path, tmp_path: Path):
    shutil.copytree(dataset / "rqvae", dataset / "other")
    file = joint_run / "config.yaml"
    settings = yaml.safe_load(file.read_text())
    kinds = ["rqvae/toy_8,8,8,8@1,2", "other/toy_8,8,8,8@2,3"]
    file.write_text(yaml.safe_dump(settings | {"token_prefix": kinds, "sem_id_epochs": None}))
    command = [f"--model={joint_run}", "--num_beams=10", f"--output={tmp_path / 'out'}"]
    evaluate.main([*command, "--sem_id_epochs=[2,3]"])
    found = [(row["prefix"].split("/")[0], row["epoch"]) for row in read(tmp_path / "out")]
    assert found == [("rqvae", 2), ("other", 2), ("other", 3)]
    with pytest.raises(InputError, match="has no tokenizer of the epochs 4, 5"):
        evaluate.main([*command, "--sem_id_epochs=4:5"])


def test_ensemble_and_comparison(joint_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    evaluate.main([f"--model={joint_run}", f"--output={tmp_path / 'out'}", "--num_beams=10"])
    files = [row["file"] for row in read(tmp_path / "out")]
    capsys.readouterr()
    evaluate.main([f"--ensemble=[{files[0]},{files[1]}]", f"--output={tmp_path / 'joined'}"])
    joined = read(tmp_path / "joined")
    assert list(joined["files"]) == files
    assert joined["best_alone"]["ndcg@10"] == max(metrics["ndcg@10"] for metrics in joined["files"].values())
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].split() == ["ensemble", *(f"{value:.4f}" for value in joined["ensemble"].values())]
    target = tmp_path / "joined" / "ensemble_results.json"
    mixed = [f"--ensemble=[{files[0]},{files[0]}]", "--ensemble_rule=mixture", f"--output={tmp_path / 'mixed'}"]
    evaluate.main(mixed)  # of one tokenizer twice: that one, without what is no item
    assert read_file(tmp_path / "mixed" / "ensemble_results.json").items == [
        sorted(row, key=lambda item: item is None) for row in read_file(Path(files[0])).items
    ]
    evaluate.main([f"--compare=[{files[0]},{target}]", f"--output={tmp_path / 'compared'}", "--resamples=50"])
    compared = read(tmp_path / "compared")
    difference = joined["ensemble"]["recall@10"] - joined["files"][files[0]]["recall@10"]
    assert compared["difference"]["recall@10"]["mean"] == pytest.approx(difference)


def test_an_item_may_be_named_none(dataset: Path, tmp_path: Path):
    for file in [*dataset.glob("*.json"), *dataset.glob("rqvae/*")]:
        file.write_text(file.read_text().replace('"item7"', '"None"'))
    sequences = json.loads((dataset / "all_item_seqs.json").read_text())
    sequences = {user: [*items, *["None"] * (2 + row % 2)] for row, (user, items) in enumerate(sequences.items())}
    last = dict(zip(sequences, ["None", "item3"] * 15, strict=True))
    sequences = {user: [*items, last[user]] for user, items in sequences.items()}
    (dataset / "all_item_seqs.json").write_text(json.dumps(sequences))
    run = tmp_path / "runs" / "Tiny" / "tuned"
    finetune.main(flags(dataset, run.parents[1], run_name="tuned", sem_id_epochs=2, epochs=2))
    evaluate.main([f"--model={run}", f"--output={tmp_path / 'out'}", "--num_beams=10"])
    ((row,), tested) = read(tmp_path / "out"), read_results(run)["test"]
    assert {name: row["metrics"][name] for name in tested} == pytest.approx(tested)
    assert row["metrics"]["recall@10"] >= 0.5
    _, targets, items = columns(json.loads(Path(row["file"]).read_text()))
    assert targets == list(last.values())
    listed = [item for row in items for item in row]
    assert "None" in listed
    assert row["invalid@10"] == pytest.approx(listed.count(None) / len(listed))
    assert row["invalid@10"] > 0
    assert row["coverage@10"] == pytest.approx(len(set(listed) - {None}) / 20)


def test_models_of_one_name_are_not_written_over_each_other(joint_run: Path):
    alike = joint_run.parent / "again" / joint_run.parent.name / joint_run.name
    with pytest.raises(InputError, match="end alike, and so would their result files"):
        evaluate.main([f"--model=[{joint_run},{alike}]"])


def test_wrong_flags(joint_run: Path):
    for argv, message in (
        ([], "one of --model, --ensemble, --compare"),
        (["--compare=[a.json]"], "--compare takes two files, 1 are given"),
        ([f"--model={joint_run}", "--num_beams=[5,50]"], "asks for more items than there are beams"),
        ([f"--model={joint_run}", "--split=train"], "split=train must be test or valid"),
        (["--compare=[a.json,b.json]", "--length_edges=[5,3]"], r"length_edges=\[5, 3\] must rise from 1"),
        (["--ensemble=[/no/a.json,/no/b.json]"], r"/no/a\.json does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate.main(argv)
