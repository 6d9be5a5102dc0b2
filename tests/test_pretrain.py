import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_dataset import make_dataset
from tiny_runs import assert_same_weights, flags, read_lines, read_results, read_weights

import pretrain
from evaluation.run import Run
from training.checkpointer import Checkpointer
from training.curriculum import RULES, accumulate_scores, sampling_probabilities
from training.trainer import Trainer
from utils.config import parse_config
from utils.runtime import run_command

NAMES = {"recall@5", "recall@10", "ndcg@5", "ndcg@10"}
STAGES = {"epochs": 4, "epoch_per_stage": [1, 2, 5, 5], "val_delay": 1, "save_interval": 3, "tau": 0.5}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Return the dataset, the folder of runs, and one pre-training: stages of 1 and 2 epochs, then one more epoch."""
    folder = tmp_path_factory.mktemp("pretrain")
    dataset = make_dataset(folder / "datasets" / "Tiny")
    pretrain.main(flags(dataset, folder / "runs", run_name="whole", **STAGES))
    return SimpleNamespace(dataset=dataset, ckpt_dir=folder / "runs", runs=folder / "runs" / "Tiny")


@pytest.fixture
def whole(world: SimpleNamespace) -> Path:
    return world.runs / "whole"


def test_results_are_as_architecture_fixes_them(whole):
    results = read_results(whole)
    assert list(results) == ["valid", "test", "per_tokenizer", "best_epoch", "num_users", "global_batch_size"]
    assert (results["num_users"], results["global_batch_size"]) == (28, 16)
    assert results["best_epoch"] in (2, 3, 4)
    assert [(row["epoch"], row["prefix"]) for row in results["per_tokenizer"]] == [
        (epoch, "rqvae/toy_8,8,8,8") for epoch in (1, 2, 3)
    ]
    for split in ("valid", "test"):
        assert results[split].keys() == NAMES
        for name in NAMES:
            mean = np.mean([row[split][name] for row in results["per_tokenizer"]])
            assert results[split][name] == pytest.approx(mean, rel=1e-12)
    best = {line["epoch"]: line for line in read_lines(whole, "valid")}[results["best_epoch"]]
    assert best["mean"] == results["valid"]
    assert list(best["per_tokenizer"].values()) == [row["valid"] for row in results["per_tokenizer"]]


def test_test_results_of_every_tokenizer(whole, world):
    sequences = json.loads((world.dataset / "all_item_seqs.json").read_text())
    users = [user for user, sequence in sequences.items() if len(sequence) >= 2]
    for row in read_results(whole)["per_tokenizer"]:
        result = json.loads((whole / f"test_results_{row['epoch']}.json").read_text())
        assert result.keys() == {"users", "preds", "scores", "labels", "pred_ids", "label_ids"}
        assert result["users"] == users
        assert result["label_ids"] == [sequences[user][-1] for user in users]
        assert np.shape(result["preds"]) == (28, 10, 4)
        assert np.shape(result["scores"]) == np.shape(result["pred_ids"]) == (28, 10)
        assert np.shape(result["labels"]) == (28, 5)
        hits = [label in items[:5] for label, items in zip(result["label_ids"], result["pred_ids"], strict=True)]
        assert row["test"]["recall@5"] == pytest.approx(np.mean(hits))


def test_evaluations_stages_and_checkpoints(whole):
    assert [line["epoch"] for line in read_lines(whole, "valid")] == [2, 3, 4]
    assert [(line["stage"], line["epoch"], line["step"]) for line in read_lines(whole, "influence")] == [
        (1, 1, 22),
        (2, 3, 66),
    ]
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == ["epoch_3", "epoch_4"]
    log = (whole / "log.txt").read_text()
    assert "the stages [5, 5] at the end do not fit into 4 epochs and are dropped" in log
    assert [f"stage {n}/3: epochs {span}" in log for n, span in ((1, "1..1"), (2, "2..3"), (3, "4..4"))] == [True] * 3


def test_log_tells_stage_ends_and_time_left(whole):
    log = [line[20:] for line in (whole / "log.txt").read_text().splitlines()]
    assert [line for line in log if line.startswith("stage 2/3  epoch 2/4  loss ") and "left in the run" in line]
    for line in read_lines(whole, "influence"):
        start = next(i for i, said in enumerate(log) if said.startswith(f"stage {line['stage']} is over after epoch"))
        probabilities = np.array(list(line["probabilities"].values()))
        assert f"lowest {probabilities.min():.4f} (tokenizer " in log[start + 1]
        assert f"highest {probabilities.max():.4f} (tokenizer " in log[start + 1]
        entropy = -(probabilities * np.log(probabilities)).sum()
        assert log[start + 2] == f"  their entropy: {entropy:.4f}, uniform {np.log(len(probabilities)):.4f}"


def test_probabilities_follow_from_the_influence_so_far(whole):
    lines = read_lines(whole, "influence")
    influences = np.array([list(line["influence"].values()) for line in lines])
    rates = np.array([line["learning_rate"] for line in lines])
    assert (influences != 0).all()
    assert rates[0] > rates[1] > 0
    for stage in (1, 2):
        scores = accumulate_scores(influences[:stage], rates[:stage])
        np.testing.assert_allclose(
            list(lines[stage - 1]["probabilities"].values()), sampling_probabilities(scores, 0.5), rtol=1e-12
        )


def test_settings_passed_back_make_bit_identical_weights(whole, world):
    pretrain.main([f"--config_file={whole / 'config.yaml'}", "--run_name=again"])
    again = world.runs / "again"
    for name in ("model", "checkpoints/epoch_3", "checkpoints/epoch_4"):
        assert_same_weights(whole / name, again / name)
    assert read_results(again) == read_results(whole)
    assert Run(again).settings == Run(whole).settings | {"run_name": "again"}
    probabilities = [[line["probabilities"] for line in read_lines(run, "influence")] for run in (whole, again)]
    assert probabilities[0] == probabilities[1]


def test_best_model_is_a_folder_that_transformers_reads(whole):
    from transformers import T5ForConditionalGeneration

    t5 = T5ForConditionalGeneration.from_pretrained(whole / "model")
    weights = read_weights(whole / "model")
    assert torch.equal(t5.shared.weight, weights["shared.weight"])
    assert t5.config.vocab_size == 4 * 8 + 3


def exit_code(argv: list[str]) -> int:
    try:
        run_command(lambda: pretrain.main(argv))
    except SystemExit as error:
        return error.code
    return 0


def test_folder_is_refused_reused_or_replaced(world, whole, capsys):
    argv = flags(world.dataset, world.ckpt_dir, run_name="kept", **STAGES)
    shutil.copytree(whole, world.runs / "kept")
    settings = (world.runs / "kept" / "config.yaml").read_text().replace("run_name: whole", "run_name: kept")
    (world.runs / "kept" / "config.yaml").write_text(settings)
    before = {path: path.stat().st_mtime_ns for path in (world.runs / "kept").rglob("*")}

    assert exit_code(argv) == 2
    assert (
        "holds a finished run; set another RUN_NAME (--run_name), or start anew with --overwrite"
        in capsys.readouterr().err
    )
    assert exit_code([*argv, "--reuse"]) == 0
    assert "kept is already finished with these settings" in capsys.readouterr().out
    assert exit_code([*argv, "--reuse", "--tau=2", "--epochs=5"]) == 2
    error = capsys.readouterr().err
    assert "other settings: epochs=5 (there: 4); tau=2.0 (there: 0.5);" in error
    assert {path: path.stat().st_mtime_ns for path in (world.runs / "kept").rglob("*")} == before

    (world.runs / "kept" / "results.json").unlink()
    assert exit_code([*argv, "--reuse"]) == 2
    assert (
        "holds an unfinished run; go on with --resume (RESUME=1), or start anew with --overwrite"
        in capsys.readouterr().err
    )
    assert exit_code([*argv, "--overwrite", "--epochs=1", "--epoch_per_stage=[1]"]) == 0
    assert sorted(path.name for path in (world.runs / "kept" / "checkpoints").iterdir()) == ["epoch_1"]


class Script:
    """Stands in for training: records each segment's end and probabilities, and where influence is estimated."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, influences: list[list[float]], stop_at: int | None = None):
        self.segments: list[tuple[int, list[float]]] = []
        self.estimated_at: list[int] = []
        self.best_loaded_at: list[int] = []
        self.rates: list[float] = []
        script = self

        def fit(trainer: Trainer, last_epoch: int, probabilities: np.ndarray) -> None:
            script.segments.append((last_epoch, probabilities.tolist()))
            script.trainer = trainer
            state = trainer.state
            state.step += (last_epoch - state.epoch) * trainer.data.order.steps_per_epoch
            state.epoch = last_epoch
            state.best_epoch = 1 if last_epoch > trainer.config.val_delay else 0
            state.stopped = stop_at is not None and last_epoch >= stop_at

        def estimate(*_: object) -> np.ndarray:
            script.estimated_at.append(script.trainer.state.epoch)
            script.rates.append(script.trainer.learning_rate)
            return np.array(influences[len(script.estimated_at) - 1])

        monkeypatch.setattr(Trainer, "fit", fit)
        monkeypatch.setattr(Checkpointer, "load_best", lambda c: script.best_loaded_at.append(c.state.epoch))
        monkeypatch.setattr(Trainer, "test", lambda _: None)
        monkeypatch.setitem(RULES, "influence", estimate)


INFLUENCES = [[1.0, 0.0, -1.0], [0.0, 3.0, 0.0], [2.0, 2.0, 5.0]]


def run_scripted(world: SimpleNamespace, tmp_path: Path, **settings: object) -> None:
    given = {"epochs": 10, "epoch_per_stage": [4, 2, 2], "val_delay": 0, "tau": 2.0, "run_name": "s"} | settings
    pretrain.main(flags(world.dataset, tmp_path, **given))


def test_first_stage_is_uniform_and_every_stage_with_an_epoch_left_is_weighed(world, monkeypatch, tmp_path):
    script = Script(monkeypatch, INFLUENCES)
    run_scripted(world, tmp_path)
    assert script.estimated_at == [4, 6, 8]
    assert [end for end, _ in script.segments] == [4, 6, 8, 10]
    assert script.segments[0][1] == [1 / 3] * 3
    for stage in (1, 2, 3):
        weights = np.array(script.rates[:stage]) / sum(script.rates[:stage])
        scores = weights @ np.array(INFLUENCES[:stage])
        expected = np.exp(scores / 2) / np.exp(scores / 2).sum()
        np.testing.assert_allclose(script.segments[stage][1], expected, rtol=1e-12)


def test_no_estimate_after_the_last_epoch(world, monkeypatch, tmp_path):
    script = Script(monkeypatch, INFLUENCES)
    run_scripted(world, tmp_path, epochs=8)
    assert script.estimated_at == [4, 6]
    assert [end for end, _ in script.segments] == [4, 6, 8]


def test_early_stop_ends_pre_training(world, monkeypatch, tmp_path):
    script = Script(monkeypatch, INFLUENCES, stop_at=6)
    run_scripted(world, tmp_path)
    assert script.estimated_at == [4]
    assert [end for end, _ in script.segments] == [4, 6]


def test_uniform_curriculum_estimates_nothing(world, monkeypatch, tmp_path):
    script = Script(monkeypatch, [])
    run_scripted(world, tmp_path, curriculum="uniform")
    assert script.estimated_at == []
    assert script.segments == [(end, [1 / 3] * 3) for end in (4, 6, 8, 10)]


def test_one_tokenizer_needs_no_curriculum(world, monkeypatch, tmp_path):
    script = Script(monkeypatch, [])
    run_scripted(world, tmp_path, sem_id_epochs=2)
    assert script.estimated_at == []
    assert script.segments[-1] == (10, [1.0])


def test_load_best_for_next_stage(world, monkeypatch, tmp_path):
    script = Script(monkeypatch, INFLUENCES)
    run_scripted(world, tmp_path, load_best_for_next_stage="true", val_delay=5)
    assert script.best_loaded_at == [6, 8]  # after epoch 4 nothing was evaluated yet
    script = Script(monkeypatch, INFLUENCES)
    run_scripted(world, tmp_path, run_name="latest")
    assert script.best_loaded_at == []


def test_best_weights_start_the_next_stage(world, monkeypatch, tmp_path):
    """The real loading: stage 2 begins with epoch 1's weights, which were better than epoch 2's."""
    scores, seen = iter([0.9, 0.1, 0.2]), []

    def train(trainer: Trainer, epoch: int, probabilities: np.ndarray) -> None:
        seen.append(trainer.recommender.t5.shared.weight[0, 0].item())
        for parameter in trainer.recommender.parameters():
            parameter.data.fill_(epoch)

    def predict(*_: object, **__: object) -> SimpleNamespace:
        score = next(scores, 0.0)
        return SimpleNamespace(metrics=lambda names: dict.fromkeys(names, score))

    monkeypatch.setattr(Trainer, "_train_epoch", train)
    monkeypatch.setattr("training.evaluator.predict", predict)
    monkeypatch.setattr("training.evaluator.write_results", lambda *_: None)
    settings = {"epochs": 3, "epoch_per_stage": [2], "sem_id_epochs": 1, "load_best_for_next_stage": "true"}
    run_scripted(world, tmp_path, **settings)
    assert seen[1:] == [1, 1]  # the weights that epochs 2 and 3 began with


def test_steps_set_the_number_of_epochs(world, monkeypatch, tmp_path):
    script = Script(monkeypatch, INFLUENCES)
    run_scripted(world, tmp_path, steps=50, epochs=7, epoch_per_stage=[1, 1, 5])  # 22 batches an epoch
    assert [end for end, _ in script.segments] == [1, 2, 3]
    assert script.trainer.schedule_batches == 50
    assert script.estimated_at == [1, 2]


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "pretrain_3tokenizers_1layers_tau2_seed2024"),
        ({"tau": 0.5, "rand_seed": 7, "sem_id_epochs": [1, 2]}, "pretrain_2tokenizers_1layers_tau0.5_seed7"),
        ({"curriculum": "uniform"}, "pretrain_3tokenizers_1layers_uniform_seed2024"),
    ],
)
def test_default_run_name_is_readable(world, monkeypatch, tmp_path, settings, name):
    Script(monkeypatch, INFLUENCES)
    argv = flags(world.dataset, tmp_path, **{"tau": 2, "epochs": 1, "epoch_per_stage": [1]} | settings)
    pretrain.main(argv)
    assert [path.name for path in (tmp_path / "Tiny").iterdir()] == [name]


def test_settings_that_are_wrong_leave_nothing_behind(world, tmp_path, capsys):
    assert exit_code(flags(world.dataset, tmp_path, epoch_per_stage=[0], lr=-1)) == 2
    assert capsys.readouterr().err.startswith("error: lr=-1.0 must be positive; epoch_per_stage=[0] must be")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [{"run_name": "."}, {"run_name": "../x"}, {"run_name": ""}, {"dataset": ".."}])
def test_a_path_for_a_name_deletes_nothing(world, whole, tmp_path, capsys, settings):
    runs = tmp_path / "runs"
    for name in ("Tiny/whole", "x", "run"):
        shutil.copytree(whole, runs / name)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    argv = flags(world.dataset, runs, **{"run_name": "run", "overwrite": "true"} | settings)
    assert exit_code(argv) == 2
    ((name, value),) = settings.items()
    assert capsys.readouterr().err == f"error: {name}={value} must be the name of a folder, not a path\n"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_influence_that_is_not_finite_ends_with_one_sentence(world, monkeypatch, tmp_path, capsys):
    Script(monkeypatch, [[0.0, np.nan, 1.0]])
    assert exit_code(flags(world.dataset, tmp_path, epochs=2, epoch_per_stage=[1, 1], run_name="s")) == 1
    assert capsys.readouterr().err == (
        "error: the influence scores are not finite: [ 0. nan  1.]; lower --lr or raise --warmup_steps\n"
    )


def test_no_arguments_take_the_defaults(monkeypatch):
    assert parse_config(pretrain.PretrainConfig, [], "test", "")[0] == pretrain.PretrainConfig()
