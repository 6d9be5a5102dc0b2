"""bf16 in training and influence estimation, float32 in evaluation."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_runs import flags

from evaluation.predict import predict
from model.recommender import Recommender, build_recommender
from training.config import FinetuneConfig
from training.curriculum import mean_gradient
from training.setup import resolve_config, start_run
from training.trainer import Trainer
from utils.config import parse_config


@pytest.fixture
def trainer(dataset: Path, tmp_path: Path) -> Iterator[Trainer]:
    AcceleratorState._reset_state(True)  # a process has one precision
    argv = flags(dataset, tmp_path / "runs", run_name="run", mixed_precision="bf16", epochs=1, dropout_rate=0.0)
    yield start_run(*resolve_config(*parse_config(FinetuneConfig, argv, "test", "")))
    AcceleratorState._reset_state(True)


@pytest.fixture
def plain(trainer: Trainer) -> Recommender:
    """Return the same weights, untouched by Accelerate."""
    recommender = build_recommender(trainer.recommender.architecture)
    recommender.load_state_dict(trainer.recommender.state_dict())
    return recommender


def batch_of(trainer: Trainer, count: int = 16):
    return trainer.data.tokenization.batch(trainer.data.order.positions[:count], 0)


def relative_difference(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    a, b = (torch.cat([part.flatten() for part in parts]) for parts in (left, right))
    return float((a - b).norm() / b.norm())


def test_losses_and_gradients_are_bf16(trainer: Trainer, plain: Recommender):
    batch = batch_of(trainer)
    loss = trainer.model(batch.input_ids, batch.labels, batch.lengths)
    with torch.autocast("cpu", torch.bfloat16):
        expected = plain(batch.input_ids, batch.labels, batch.lengths)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    in_float32 = plain(batch.input_ids, batch.labels, batch.lengths)
    assert not torch.equal(loss, in_float32)
    assert torch.allclose(loss, in_float32, rtol=0.02)
    ours, exact = (mean_gradient(model, [batch], len(batch)) for model in (trainer.recommender, plain))
    assert all(part.dtype == torch.float32 for part in ours)
    assert 1e-4 < relative_difference(ours, exact) < 0.05


def test_evaluation_is_float32(trainer: Trainer, plain: Recommender):
    positions, kept = trainer.data.test, []
    trainer.evaluator.evaluate("test", positions, 10, [], lambda group, predictions: kept.append(predictions))
    ours = kept[0]
    expected = predict(plain, trainer.data.tokenization, positions, 0, 10, 10, 16, trainer.accelerator)
    assert (ours.scores == expected.scores).all()
    assert (ours.sequences == expected.sequences).all()


def test_a_run_trains(trainer: Trainer):
    batch = batch_of(trainer)

    def loss() -> float:
        with torch.no_grad():
            return float(trainer.model(batch.input_ids, batch.labels, batch.lengths).mean())

    before = loss()
    trainer.fit(1, np.full(3, 1 / 3))
    assert loss() < before
    assert {parameter.dtype for parameter in trainer.recommender.parameters()} == {torch.float32}
