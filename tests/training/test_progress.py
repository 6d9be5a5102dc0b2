from types import SimpleNamespace

import pytest

from training.config import FinetuneConfig, PretrainConfig
from training.progress import EVALUATION_COST, Live, log_hyperparameters
from utils import progress

SIZES = {"train": 100, "valid": 30, "valid_sample": 20, "test": 40}


def make_live(config, num_groups: int = 4, say=lambda text: None) -> Live:
    return Live(config, config.epochs, SIZES, num_groups, say, shown=True)


def test_work_of_a_pre_training():
    config = PretrainConfig(epochs=6, epoch_per_stage=[3, 2], val_delay=3, eval_interval=2, num_beams=10)
    config.influence_sample_ratio = 0.5
    live = make_live(config)
    assert live.left == {
        "training": 600,
        "influence": 2 * 4 * (50 + 30),  # after epochs 3 and 5
        "evaluation": 4 * (2 * 20 * 10 + 40 * 10),  # epochs 4 and 6, and the test
    }
    assert [live.epoch_name(epoch) for epoch in (3, 4, 6)] == [
        "stage 1/3  epoch 3/6",
        "stage 2/3  epoch 4/6",
        "stage 3/3  epoch 6/6",
    ]


def test_no_influence_with_uniform_sampling_or_one_tokenizer():
    config = PretrainConfig(epochs=6, epoch_per_stage=[3, 3])
    assert make_live(config, num_groups=1).left["influence"] == 0
    config.curriculum = "uniform"
    assert make_live(config).left["influence"] == 0


def test_no_evaluated_epoch_is_one_evaluation_at_the_end():
    config = FinetuneConfig(epochs=2, val_delay=9, num_beams=10, test_num_beams=50)
    live = make_live(config, num_groups=1)
    assert live.left["evaluation"] == 20 * 10 + 40 * 50
    assert live.epoch_name(2) == "epoch 2/2"


def test_time_left_follows_from_what_was_timed(monkeypatch):
    clock, said = SimpleNamespace(now=0.0), []
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    config = PretrainConfig(epochs=4, epoch_per_stage=[2, 2], val_delay=3, num_beams=10)
    live = make_live(config, say=said.append)
    assert live.seconds_left() is None
    assert live.left_in_run() == ""
    with live.training(1) as advance:
        clock.now += 50
        advance(50, "loss 2.5")  # one second an example
    influence, evaluation = 4 * (100 + 30), 4 * (20 * 10 + 40 * 10)
    expected = 350 + influence + EVALUATION_COST * evaluation
    assert live.seconds_left() == pytest.approx(expected)
    assert said == [f"stage 1/2  epoch 1/4  50%  2 min left (run: {progress.duration(expected)}), loss 2.5"]
    with live.phase("evaluation", "validation", 4 * 20 * 10) as advance:
        clock.now += 400
        advance(200, "tokenizer 1 of 4")  # two seconds a user and beam
    assert live.seconds_left() == pytest.approx(350 + influence + 2 * (evaluation - 200))
    assert said[1].startswith("validation  25%  20 min left (run: ")
    assert said[1].endswith("), tokenizer 1 of 4")


def test_resumed_run_has_less_left():
    live = make_live(PretrainConfig(epochs=6, epoch_per_stage=[3, 2], val_delay=3, num_beams=10))
    before = dict(live.left)
    live.skip(4, influences=1)
    with live.training(5, done=30):
        pass
    assert live.left["training"] == before["training"] - 430
    assert live.left["influence"] == before["influence"] / 2
    assert live.left["evaluation"] == before["evaluation"] - 4 * 20 * 10  # epoch 4


def test_phase_is_the_stage(monkeypatch):
    clock, said = SimpleNamespace(now=0.0), []
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    live = make_live(PretrainConfig(epochs=40, epoch_per_stage=[20, 10]), say=said.append)
    with live.training(11) as advance:
        clock.now += 600
        advance(100)
    assert "100%  90 min left (run: " in said[0]  # epochs 12 to 20 at 10 minutes


def test_a_warning_is_said_once():
    said = []
    live = make_live(FinetuneConfig(), say=said.append)
    for text in (None, "first", "second"):
        live.warn("validation", text)
    live.warn("curriculum", "other")
    assert said == ["warning: first", "warning: other"]


def test_hyperparameters_come_with_the_final_metrics():
    calls = []
    writer = SimpleNamespace(add_hparams=lambda *arguments, **named: calls.append((arguments, named)))
    trackers = [SimpleNamespace(name="tensorboard", writer=writer), SimpleNamespace(name="wandb")]
    results = {"valid": {"ndcg@10": 0.2}, "test": {"ndcg@10": 0.1}}
    config = FinetuneConfig(sem_id_epochs=[1, 2])
    log_hyperparameters(SimpleNamespace(trackers=trackers, is_main_process=True), config, results)
    (((settings, metrics), named),) = calls
    assert (settings["lr"], settings["sem_id_epochs"]) == (0.001, "[1, 2]")
    assert metrics == {"final/valid_ndcg@10": 0.2, "final/test_ndcg@10": 0.1}
    assert named == {"run_name": "."}
