import json
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import flags, read_lines, read_results, read_weights
from transformers import get_cosine_schedule_with_warmup

import training.evaluator
import training.trainer
from training.config import FinetuneConfig, PretrainConfig, TrainingConfig
from training.setup import make_recommender, resolve_config, start_run
from training.trainer import Trainer, cosine_factor
from utils.config import parse_config
from utils.runtime import run_command
from utils.snapshots import newest_snapshot, read_snapshot

UNIFORM = np.full(3, 1 / 3)


@pytest.fixture
def make_trainer(dataset: Path, tmp_path: Path) -> Callable[..., Trainer]:
    """Return a maker of trainers on the tiny dataset: 351 training examples, 22 batches of 16."""

    def make(config_class: type[TrainingConfig] = PretrainConfig, **settings: object) -> Trainer:
        name = f"run{len(list(tmp_path.glob('runs/Tiny/*')))}"
        argv = flags(dataset, tmp_path / "runs", **{"run_name": name, "val_delay": 0} | settings)
        config, given = parse_config(config_class, argv, "test", "")
        return start_run(*resolve_config(config, given))

    return make


def script_scores(monkeypatch: pytest.MonkeyPatch, trainer: Trainer, scores: list[float]) -> None:
    """Replace training by setting every weight to the epoch's number, and epoch e's validation score by scores[e - 1].

    A test's score is the value of the weights.
    """

    def train(epoch: int, probabilities: np.ndarray) -> None:
        for parameter in trainer.recommender.parameters():
            parameter.data.fill_(epoch)

    def predict(_: object, __: object, positions: np.ndarray, group: int, **___: object) -> SimpleNamespace:
        is_test = positions is trainer.data.test
        score = trainer.recommender.t5.shared.weight[0, 0].item() if is_test else scores[trainer.state.epoch - 1]
        return SimpleNamespace(metrics=lambda names: {name: score + group for name in names})

    monkeypatch.setattr(trainer, "_train_epoch", train)
    monkeypatch.setattr(training.evaluator, "predict", predict)
    monkeypatch.setattr(training.evaluator, "write_results", lambda *_: None)


def value_of(folder: Path) -> float:
    """Return the number that every weight in a model folder was set to."""
    values = torch.cat([weight.flatten() for weight in read_weights(folder).values()]).unique()
    assert len(values) == 1
    return float(values)


def test_evaluates_after_val_delay_at_multiples_of_the_interval(make_trainer, monkeypatch):
    trainer = make_trainer(epochs=13, val_delay=3, eval_interval=3, patience="null")
    script_scores(monkeypatch, trainer, [0.5] * 13)
    trainer.fit(13, UNIFORM)
    lines = read_lines(trainer.run.path, "valid")
    assert [line["epoch"] for line in lines] == [6, 9, 12]  # not 3: it is not above val_delay
    assert lines[0]["mean"]["ndcg@10"] == 1.5  # 0.5, 1.5 and 2.5 of the three tokenizers
    assert [lines[0]["per_tokenizer"][name]["recall@5"] for name in ("1", "2", "3")] == [0.5, 1.5, 2.5]


@pytest.mark.parametrize("patience", [5, 6])
def test_patience_counts_epochs_not_evaluations(make_trainer, monkeypatch, patience):
    trainer = make_trainer(epochs=20, eval_interval=2, patience=patience, save_interval=100)
    script_scores(monkeypatch, trainer, [0.1, 0.3, 0.2, 0.2] + [0.3] * 16)  # an equal score is no better one
    trainer.fit(20, UNIFORM)
    assert trainer.state.stopped
    assert (trainer.state.best_epoch, trainer.state.epoch) == (2, 8)  # 8 - 2 >= patience, 6 - 2 is not
    assert [path.name for path in (trainer.run.path / "checkpoints").iterdir()] == ["epoch_8"]
    trainer.fit(20, UNIFORM)
    assert trainer.state.epoch == 8
    assert "stopped early: the best epoch is 2" in trainer.run.log_file.read_text()


def test_without_patience_training_goes_to_the_end(make_trainer, monkeypatch):
    trainer = make_trainer(epochs=6, patience="null")
    script_scores(monkeypatch, trainer, [0.5, 0.4, 0.3, 0.2, 0.1, 0.0])
    trainer.fit(6, UNIFORM)
    assert (trainer.state.best_epoch, trainer.state.epoch, trainer.state.stopped) == (1, 6, False)


def test_best_weights_are_tested_not_the_last(make_trainer, monkeypatch):
    trainer = make_trainer(FinetuneConfig, epochs=4)
    script_scores(monkeypatch, trainer, [0.1, 0.2, 0.9, 0.3])
    trainer.fit(4, UNIFORM)
    assert value_of(trainer.run.model) == 3
    assert trainer.recommender.t5.shared.weight[0, 0].item() == 4
    results = trainer.test()
    assert trainer.recommender.t5.shared.weight[0, 0].item() == 3
    assert results == read_results(trainer.run.path)
    names = ["ndcg@5", "recall@5", "ndcg@10", "recall@10"]
    assert results == {
        "valid": dict.fromkeys(names, pytest.approx(1.9)),
        "test": dict.fromkeys(names, 4.0),
        "per_tokenizer": [
            {
                "epoch": group + 1,
                "prefix": "rqvae/toy_8,8,8,8",
                "valid": dict.fromkeys(names, 0.9 + group),
                "test": dict.fromkeys(names, 3.0 + group),
            }
            for group in range(3)
        ],
        "best_epoch": 3,
        "num_users": 28,
        "global_batch_size": 16,
    }
    assert not (trainer.run.path / "checkpoints").exists()


def test_loading_the_best_weights_draws_no_random_number(make_trainer):
    """A run that is resumed after it loads them once more; its dropout must not notice."""
    trainer = make_trainer()
    trainer.recommender.save_pretrained(trainer.run.model)
    before = torch.get_rng_state()
    trainer.checkpointer.load_best()
    assert torch.equal(torch.get_rng_state(), before)


def test_no_evaluated_epoch_takes_the_last(make_trainer, monkeypatch):
    trainer = make_trainer(epochs=2, val_delay=5)
    script_scores(monkeypatch, trainer, [0.1, 0.2])
    trainer.fit(2, UNIFORM)
    assert not trainer.run.model.exists()
    results = trainer.test()
    assert results["best_epoch"] == 2
    assert results["test"]["recall@10"] == 3
    assert "no epoch was evaluated (val_delay=5): the last one is taken" in trainer.run.log_file.read_text()


def test_checkpoints_at_the_interval_and_at_the_last_epoch(make_trainer, monkeypatch):
    trainer = make_trainer(epochs=5, save_interval=2)
    script_scores(monkeypatch, trainer, [0.1] * 5)
    trainer.fit(3, UNIFORM)  # the end of a stage is not the last epoch
    trainer.fit(5, UNIFORM)
    kept = {path.name: value_of(path) for path in (trainer.run.path / "checkpoints").iterdir()}
    assert kept == {"epoch_2": 2, "epoch_4": 4, "epoch_5": 5}


def test_val_metric_picks_the_best_epoch(make_trainer, monkeypatch):
    trainer = make_trainer(epochs=2, val_metric="recall@5")
    script_scores(monkeypatch, trainer, [0.0, 0.0])
    tables = [{"ndcg@10": 0.1, "recall@5": 0.9}, {"ndcg@10": 0.9, "recall@5": 0.1}]
    scripted = SimpleNamespace(metrics=lambda _: tables[trainer.state.epoch - 1])
    monkeypatch.setattr(training.evaluator, "predict", lambda *_, **__: scripted)
    trainer.fit(2, UNIFORM)
    assert (trainer.state.best_epoch, trainer.state.best_score) == (1, 0.9)


def hugging_face_rates(lr: float, warmup: int, total: int, advance: int, steps: int) -> list[float]:
    """Return the learning rate of each optimizer step when it advances Hugging Face's schedule by `advance`."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = get_cosine_schedule_with_warmup(optimizer, warmup, total)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for _ in range(advance):
            scheduler.step()
    return rates


def test_learning_rates_are_hugging_faces_cosine(make_trainer, monkeypatch):
    monkeypatch.setattr(training.trainer, "LOG_EVERY", 1)
    trainer = make_trainer(epochs=2, val_delay=9, gradient_accumulation_steps=2, warmup_steps=7)
    trainer.fit(2, UNIFORM)
    lines = read_lines(trainer.run.path, "train")
    assert [line["step"] for line in lines] == list(range(1, 23))  # 11 steps an epoch, each of two batches
    expected = hugging_face_rates(0.01, 7, total=44, advance=2, steps=22)
    np.testing.assert_allclose([line["learning_rate"] for line in lines], expected, rtol=1e-12)
    assert max(expected) > 0.0099


@pytest.mark.parametrize(("accumulation", "num_processes"), [(1, 1), (1, 4), (3, 2)])
def test_schedule_advances_by_the_batches_of_all_processes(make_trainer, accumulation, num_processes):
    trainer = make_trainer(epochs=10, gradient_accumulation_steps=accumulation, warmup_steps=50)
    trainer.data.order.num_processes = num_processes
    assert trainer.schedule_batches == 220
    expected = hugging_face_rates(0.01, 50, 220, accumulation * num_processes, steps=30)
    for step, rate in enumerate(expected):
        trainer.state.step = step
        assert trainer.learning_rate == pytest.approx(rate, rel=1e-12)


def test_steps_set_schedule_and_epochs(make_trainer):
    trainer = make_trainer(epochs=7, steps=45)
    assert (trainer.schedule_batches, trainer.epochs) == (45, 3)  # 22 batches an epoch


def test_a_longer_schedule_ends_training_on_the_way(make_trainer):
    trainer = make_trainer(epochs=3, schedule_epochs=10, warmup_steps=50)
    assert (trainer.schedule_batches, trainer.epochs) == (220, 3)
    trainer.state.step = 66  # 22 batches an epoch
    assert trainer.learning_rate == pytest.approx(hugging_face_rates(0.01, 50, 220, 1, steps=67)[-1], rel=1e-12)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_batches_train_like_one_large_batch(make_trainer, parts):
    """With equal schedule positions and no dropout: 32 examples in one batch, or in several."""
    settings = {"epochs": 2, "val_delay": 9, "dropout_rate": 0, "lr": 0.001}
    whole = make_trainer(train_batch_size=32, warmup_steps=4, **settings)
    whole.fit(2, UNIFORM)
    cut = make_trainer(
        train_batch_size=32 // parts, gradient_accumulation_steps=parts, warmup_steps=4 * parts, **settings
    )
    cut.fit(2, UNIFORM)
    assert whole.state.step == cut.state.step == 22
    for (name, a), b in zip(whole.recommender.named_parameters(), cut.recommender.parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    losses = [[line["loss"] for line in read_lines(trainer.run.path, "epoch")] for trainer in (whole, cut)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


def test_a_step_is_clipped_adamw_on_the_mean_loss(make_trainer, monkeypatch):
    """The trainer's first steps against torch's own AdamW on the mean loss of the same examples."""
    monkeypatch.setattr(training.trainer, "LOG_EVERY", 1)
    trainer = make_trainer(epochs=1, val_delay=9, dropout_rate=0, train_batch_size=100, max_grad_norm=0.5)
    plain = make_recommender(trainer.config)
    plain.load_state_dict(trainer.recommender.state_dict())
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.05)
    positions, groups = trainer.data.order.epoch(1, UNIFORM)
    trainer.fit(1, UNIFORM)
    norms = []
    for step in range(4):  # 100, 100, 100 and 51 examples
        part = slice(100 * step, 100 * step + 100)
        batch = trainer.data.tokenization.batch(positions[part], groups[part])
        optimizer.param_groups[0]["lr"] = 0.01 * step / 4
        plain(batch.input_ids, batch.labels, batch.lengths).mean().backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)))
        optimizer.step()
        optimizer.zero_grad()
    lines = read_lines(trainer.run.path, "train")
    np.testing.assert_allclose([line["gradient_norm"] for line in lines], norms, rtol=1e-4)
    assert min(norms) > 0.5  # clipping had something to do
    for a, b in zip(trainer.recommender.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_loss_that_is_not_finite_stops_with_step_and_remedy(make_trainer):
    trainer = make_trainer(epochs=2, save_interval=1)
    trainer.recommender.t5.shared.weight.data[:] = float("nan")
    with pytest.raises(FloatingPointError, match=r"the loss is nan at epoch 1, step 22 .* lower --lr"):
        trainer.fit(2, UNIFORM)
    assert not trainer.run.model.exists()
    assert not (trainer.run.path / "checkpoints").exists()
    assert not (trainer.run.path / "metrics.jsonl").exists()


def test_a_state_is_never_saved_after_training_diverged(make_trainer, monkeypatch):
    trainer = make_trainer(epochs=2, checkpoint_minutes=0)
    forward = trainer.model.forward

    def diverge_at_step_5(*batch: torch.Tensor) -> torch.Tensor:
        return forward(*batch) * (float("inf") if trainer.state.step == 4 else 1.0)

    monkeypatch.setattr(trainer.model, "forward", diverge_at_step_5)
    message = r"the loss is inf at epoch 1, step 5 \(learning rate 0.01, gradient norm nan\); lower --lr"
    with pytest.raises(FloatingPointError, match=message), trainer.resumable():
        trainer.fit(2, UNIFORM)
    state, skipped = newest_snapshot(trainer.run.states)
    snapshot = read_snapshot(state)
    assert (snapshot.values["progress"]["step"], skipped) == (4, [])
    assert all(tensor.isfinite().all() for tensor in snapshot.tensors.values())


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_names_the_flags_to_lower(make_trainer, monkeypatch, capsys, error):
    trainer = make_trainer(epochs=1)

    def run() -> None:
        with trainer.resumable():
            trainer.fit(1, UNIFORM)

    monkeypatch.setattr(trainer.model, "forward", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(SystemExit) as exit_:
        run_command(run)
    assert exit_.value.code == 1
    assert capsys.readouterr().err == (
        f"error: out of memory: {error}; in training and influence estimation lower --train_batch_size=16 and raise "
        "--gradient_accumulation_steps as much, in evaluation lower --eval_batch_size=16\n"
    )


def test_tensorboard_hides_what_the_resumed_run_logs_again(dataset, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(Accelerator, "init_trackers", lambda self, name, config, kwargs: kept.append(kwargs))
    argv = flags(dataset, tmp_path / "runs", run_name="run", checkpoint_minutes=0, log_with="tensorboard")
    for more in ([], ["--resume"]):
        trainer = start_run(*resolve_config(*parse_config(FinetuneConfig, [*argv, *more], "test", "")))
        if not more:
            trainer.fit(1, UNIFORM)
            trainer.run.unlock()
    assert kept == [{"tensorboard": {"purge_step": step}} for step in (1, 23)]
    assert trainer.state.step == 22


def test_an_interrupted_evaluation_does_not_speak_for_later_weights(make_trainer, monkeypatch):
    """As where the only evaluation, before the test, is stopped, and more --epochs are asked for."""
    trainer = make_trainer(epochs=2, val_delay=1)
    script_scores(monkeypatch, trainer, [0.1, 0.2])
    trainer.fit(1, UNIFORM)
    trainer.state.valid_parts = [{"ndcg@10": 9.0, "recall@10": 9.0}]
    trainer.fit(2, UNIFORM)
    assert [values["ndcg@10"] for values in trainer.state.best_valid] == [0.2, 1.2, 2.2]


def test_checkpoints_behind_the_saved_state_are_made_again(dataset, tmp_path, monkeypatch):
    """A run of fewer epochs would be left with those of another schedule."""
    argv = flags(dataset, tmp_path / "runs", run_name="run", save_interval=1, val_delay=9, epochs=5)
    trainer = start_run(*resolve_config(*parse_config(FinetuneConfig, argv, "test", "")))
    monkeypatch.setattr(trainer, "_train_epoch", lambda *_: None)
    trainer.fit(2, UNIFORM)
    trainer.checkpointer.save()
    trainer.fit(4, UNIFORM)
    trainer.run.unlock()
    folder = trainer.run.checkpoints
    assert sorted(path.name for path in folder.iterdir()) == ["epoch_1", "epoch_2", "epoch_3", "epoch_4"]
    start_run(*resolve_config(*parse_config(FinetuneConfig, [*argv, "--epochs=3", "--resume"], "test", "")))
    assert sorted(path.name for path in folder.iterdir()) == ["epoch_1", "epoch_2"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"steps": 30}, "after 68% of the steps: --steps=30 are rounded up to whole epochs of 22"),
        ({"steps": 44, "gradient_accumulation_steps": 12}, "global batches of 192 badly; lower --gradient_"),
        ({"epochs": 4, "schedule_epochs": 40, "warmup_steps": 50}, "--warmup_steps=50 of the run's 88 batches"),
        ({"epochs": 40, "warmup_steps": 50}, None),
    ],
)
def test_a_schedule_that_does_not_fit_the_run_is_named(make_trainer, flags, said):
    trainer = make_trainer(FinetuneConfig, sem_id_epochs=2, **flags)
    log = (trainer.run.path / "log.txt").read_text()
    assert (said in log) if said else ("learning rate" not in log)


def test_loss_on_record_is_the_mean_over_examples(make_trainer, monkeypatch):
    """With a learning rate of zero the epoch's loss is the model's mean loss, whatever the batches' sizes."""
    trainer = make_trainer(FinetuneConfig, epochs=1, val_delay=9, dropout_rate=0, warmup_steps=10**9, sem_id_epochs=2)
    trainer.fit(1, np.ones(1))
    order, tokenization = trainer.data.order, trainer.data.tokenization
    batch = tokenization.batch(order.positions, 0)
    with torch.no_grad():
        expected = float(trainer.recommender(batch.input_ids, batch.labels, batch.lengths).mean())
    assert read_lines(trainer.run.path, "epoch")[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_tracker_gets_losses_rates_metrics_and_throughput(make_trainer, monkeypatch):
    trainer = make_trainer(epochs=1)
    logged: dict[str, float] = {}
    monkeypatch.setattr(trainer.accelerator, "log", lambda values, step: logged.update(values))
    trainer.fit(1, UNIFORM)
    trainer.test()
    for name in ("train/loss", "train/learning_rate", "train/gradient_norm", "train/samples_per_second"):
        assert np.isfinite(logged[name])
    assert {f"valid_per_tokenizer/ndcg@10/{epoch}" for epoch in (1, 2, 3)} <= logged.keys()
    assert logged["test/recall@10"] == read_results(trainer.run.path)["test"]["recall@10"]


def test_tensorboard_is_the_default_tracker(make_trainer, tmp_path):
    trainer = make_trainer(epochs=1, log_with="tensorboard", tensorboard_log_dir=tmp_path / "boards")
    trainer.accelerator.log({"train/loss": 1.0}, step=1)
    trainer.accelerator.end_training()
    assert PretrainConfig().log_with == "tensorboard"
    assert list((tmp_path / "boards" / "Tiny" / trainer.config.run_name).rglob("events.out.tfevents.*"))


def test_the_wrapped_model_is_gone_when_the_process_group_is_left(make_trainer, monkeypatch):
    trainer = make_trainer(epochs=1)
    wrapped = torch.nn.ModuleList([trainer.recommender])
    wrapped.itself = SimpleNamespace(wrapped=wrapped)  # a cycle, as mixed precision makes one
    trainer.model, trainer.accelerator._models = wrapped, [wrapped]
    alive = weakref.ref(wrapped)
    del wrapped
    seen = []
    monkeypatch.setattr(trainer.accelerator, "end_training", lambda: seen.append(alive()))
    trainer.leave()
    assert seen == [None]


def test_results_folder_can_lie_elsewhere(make_trainer, tmp_path):
    trainer = make_trainer(FinetuneConfig, epochs=1, sem_id_epochs=2, results_dir=tmp_path / "results")
    trainer.fit(1, np.ones(1))
    trainer.test()
    (file,) = (path for path in (tmp_path / "results").rglob("*") if path.is_file())
    assert file == tmp_path / "results" / "Tiny" / trainer.run.path.name / "test_results_2.json"
    assert len(json.loads(file.read_text())["users"]) == 28
    assert not list(trainer.run.path.glob("test_results_*"))


def test_tensorboard_has_tidy_groups_and_the_runs_table(make_trainer):
    trainer = make_trainer(FinetuneConfig, epochs=1, log_with="tensorboard", sem_id_epochs=2)
    trainer.fit(1, np.ones(1))
    results = trainer.test()
    board = EventAccumulator(str(trainer.run.path / "tensorboard")).Reload()
    assert {tag.split("/")[0] for tag in board.Tags()["scalars"]} == {"train", "valid", "test", "final"}
    assert board.Scalars("final/test_ndcg@10")[0].value == pytest.approx(results["test"]["ndcg@10"])
    assert "_hparams_/session_start_info" in board.PluginTagToContent("hparams")
    assert not [path for path in (trainer.run.path / "tensorboard").iterdir() if path.is_dir()]


def test_warnings_of_a_run_are_said_once(make_trainer, monkeypatch):
    trainer = make_trainer(epochs=6, patience="null")
    script_scores(monkeypatch, trainer, [0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    trainer.fit(6, UNIFORM)
    log = trainer.run.log_file.read_text()
    assert log.count("warning: validation ndcg@10 has fallen 3 times in a row, from 1.6000 to 1.3000") == 1
    assert log.count("warning: validation") == 1


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (3, 10), (1, 1), (5, 5), (12, 10), (7, 100)])
def test_cosine_equals_the_one_of_transformers(warmup: int, total: int):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_cosine_schedule_with_warmup(optimizer, warmup, total)
    (factor,) = scheduler.lr_lambdas
    for done in range(total + 1):
        assert cosine_factor(done, warmup, total) == pytest.approx(factor(done), abs=1e-12)


def test_cosine_by_hand():
    assert [cosine_factor(done, 2, 10) for done in (0, 1, 2)] == [0, 0.5, 1]
    assert cosine_factor(6, 2, 10) == pytest.approx(0.5)
    assert cosine_factor(10, 2, 10) == 0
    assert cosine_factor(18, 2, 10) == 0  # uneven global batches may step beyond the end
