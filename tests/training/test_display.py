from types import SimpleNamespace

import pytest

from training.config import FinetuneConfig, PretrainConfig
from training.display import EVALUATION_COST, Display
from utils import progress


def make_display(config, num_groups: int = 4, say=lambda text: None) -> Display:
    table, order = SimpleNamespace(num_groups=num_groups), SimpleNamespace(positions=range(100))
    data = SimpleNamespace(table=table, order=order, valid=range(30), valid_sample=range(20), test=range(40))
    return Display(config, config.epochs, data, SimpleNamespace(say=say, is_main=True))


def test_work_of_a_pre_training():
    config = PretrainConfig(epochs=6, epoch_per_stage=[3, 2], val_delay=3, eval_interval=2, num_beams=10)
    config.influence_sample_ratio = 0.5
    display = make_display(config)
    assert display.left == {
        "training": 600,
        "influence": 2 * 4 * (50 + 30),  # after epochs 3 and 5
        "evaluation": 4 * (2 * 20 * 10 + 40 * 10),  # epochs 4 and 6, and the test
    }
    assert [display.epoch_name(epoch) for epoch in (3, 4, 6)] == [
        "stage 1/3  epoch 3/6",
        "stage 2/3  epoch 4/6",
        "stage 3/3  epoch 6/6",
    ]


def test_no_influence_with_uniform_sampling_or_one_tokenizer():
    config = PretrainConfig(epochs=6, epoch_per_stage=[3, 3])
    assert make_display(config, num_groups=1).left["influence"] == 0
    config.curriculum = "uniform"
    assert make_display(config).left["influence"] == 0


def test_no_evaluated_epoch_is_one_evaluation_at_the_end():
    config = FinetuneConfig(epochs=2, val_delay=9, num_beams=10, test_num_beams=50)
    display = make_display(config, num_groups=1)
    assert display.left["evaluation"] == 20 * 10 + 40 * 50
    assert display.epoch_name(2) == "epoch 2/2"


def test_time_left_follows_from_what_was_timed(monkeypatch):
    clock, said = SimpleNamespace(now=0.0), []
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    config = PretrainConfig(epochs=4, epoch_per_stage=[2, 2], val_delay=3, num_beams=10)
    display = make_display(config, say=said.append)
    assert display.seconds_left() is None
    assert display.left_in_run() == ""
    with display.training(1) as advance:
        clock.now += 50
        advance(50, "loss 2.5")  # one second an example
    influence, evaluation = 4 * (100 + 30), 4 * (20 * 10 + 40 * 10)
    expected = 350 + influence + EVALUATION_COST * evaluation
    assert display.seconds_left() == pytest.approx(expected)
    assert said == [f"stage 1/2  epoch 1/4  50%  2 min left (run: {progress.duration(expected)}), loss 2.5"]
    with display.phase("evaluation", "validation", 4 * 20 * 10) as advance:
        clock.now += 400
        advance(200, "tokenizer 1 of 4")  # two seconds a user and beam
    assert display.seconds_left() == pytest.approx(350 + influence + 2 * (evaluation - 200))
    assert said[1].startswith("validation  25%  20 min left (run: ")
    assert said[1].endswith("), tokenizer 1 of 4")


def test_resumed_run_has_less_left():
    display = make_display(PretrainConfig(epochs=6, epoch_per_stage=[3, 2], val_delay=3, num_beams=10))
    before = dict(display.left)
    display.skip(4, influences=1)
    with display.training(5, done=30):
        pass
    assert display.left["training"] == before["training"] - 430
    assert display.left["influence"] == before["influence"] / 2
    assert display.left["evaluation"] == before["evaluation"] - 4 * 20 * 10  # epoch 4


def test_phase_is_the_stage(monkeypatch):
    clock, said = SimpleNamespace(now=0.0), []
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    display = make_display(PretrainConfig(epochs=40, epoch_per_stage=[20, 10]), say=said.append)
    with display.training(11) as advance:
        clock.now += 600
        advance(100)
    assert "100%  90 min left (run: " in said[0]  # epochs 12 to 20 at 10 minutes


def test_a_warning_is_said_once():
    said = []
    display = make_display(FinetuneConfig(), say=said.append)
    for text in (None, "first", "second"):
        display.warn("validation", text)
    display.warn("curriculum", "other")
    assert said == ["warning: first", "warning: other"]
