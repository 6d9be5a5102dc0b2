"""Logits, losses, beams, metrics and training steps against the reference code's, for any case in the golden format."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.testing import assert_close

from evaluation.metrics import mean_metrics, per_user, target_ranks
from evaluation.predict import predict
from model.recommender import Recommender
from model.reference_checkpoint import read_reference_checkpoint
from training.trainer import cosine_factor

pytestmark = pytest.mark.usefixtures("layout")

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
SCORES_TELL_APART = 1e-5  # below that, two sequences may come in either order


def beam_widths(tensors: dict[str, Tensor]) -> list[int]:
    return sorted({int(name.split("/")[1]) for name in tensors if name.startswith("beam/")})


def assert_same_beams(found: Tensor, scores: Tensor, expected: Tensor, expected_scores: Tensor) -> None:
    """Compare sequences [B, k, L] in order, but for neighbours whose scores float32 does not tell apart."""
    assert_close(scores, expected_scores, **TOLERANCE)
    for ours, theirs, values in zip(found.tolist(), expected.tolist(), expected_scores.tolist(), strict=True):
        for rank, sequence in enumerate(theirs):
            if ours[rank] == sequence:
                continue
            if sequence in ours:
                assert abs(values[ours.index(sequence)] - values[rank]) <= SCORES_TELL_APART
            else:  # the last of a tie that goes on beyond the k returned
                assert abs(values[-1] - values[rank]) <= SCORES_TELL_APART


def test_logits_and_losses(world, recommender: Recommender):
    losses = world.case.recommender_json["valid_loss_per_tokenizer"]
    for group in range(world.table.num_groups):
        batch = world.tokenization.batch(world.positions("valid"), group)
        with torch.no_grad():
            logits = recommender.logits(batch.input_ids, batch.labels, batch.lengths)
            loss = recommender(batch.input_ids, batch.labels, batch.lengths).mean()
        assert_close(logits, world.case.recommender[f"logits/valid/{group}"], **TOLERANCE)
        assert loss.item() == pytest.approx(losses[str(group)], rel=1e-4, abs=1e-5)


def test_logits_from_the_golden_padded_batch(world, recommender: Recommender):
    tensors = world.case.recommender
    lengths = tensors["batch/valid/0/attention_mask"].sum(1).long()
    with torch.no_grad():
        logits = recommender.logits(tensors["batch/valid/0/input_ids"], tensors["batch/valid/0/labels"], lengths)
    assert_close(logits, tensors["logits/valid/0"], **TOLERANCE)


def test_beams(world, recommender: Recommender):
    tensors = world.case.recommender
    batch = world.tokenization.batch(world.positions("test"), world.test_group)
    widths = beam_widths(tensors)
    assert widths
    for width in widths:
        expected, expected_scores = tensors[f"beam/{width}/preds"], tensors[f"beam/{width}/scores"]
        k = expected.shape[1]
        found, scores = recommender.generate(batch.input_ids, batch.lengths, width, k)
        assert_same_beams(found, scores, expected, expected_scores)


def test_metrics_of_beams(world, recommender: Recommender):
    tensors = world.case.recommender
    for width in beam_widths(tensors):
        expected = world.case.recommender_json["beam_metrics"][str(width)]
        predictions = predict(
            recommender,
            world.tokenization,
            world.positions("test"),
            world.test_group,
            k=tensors[f"beam/{width}/preds"].shape[1],
            num_beams=width,
            batch_size=16,
            accelerator=Accelerator(cpu=True),
        )
        scores = tensors[f"beam/{width}/scores"]
        assert_same_beams(
            torch.from_numpy(predictions.sequences),
            torch.from_numpy(predictions.scores),
            tensors[f"beam/{width}/preds"],
            scores,
        )
        assert predictions.metrics(list(expected)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_metrics_of_doctored_predictions(world):
    tensors, expected = world.case.recommender, world.case.recommender_json["metrics"]
    num_levels = world.vocabulary.num_levels
    items = world.table.items_of(world.test_group, tensors["metrics/preds"]).numpy()
    targets = world.table.items_of(world.test_group, tensors["metrics/labels"][:, :num_levels]).numpy()
    assert (targets > 0).all()
    assert (items == 0).any()
    ranks = target_ranks(items, targets)
    for name in expected:
        assert np.allclose(
            per_user(name, ranks), tensors[f"metrics/per_example/{name}"].numpy(), rtol=1e-4, atol=1e-5
        ), name
    assert mean_metrics(ranks, list(expected)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def take_golden_step(world, tokenization, train_steps, recommender, optimizer, step: int) -> list[float]:
    """Take the 0-based step that the reference code took; return its loss and its gradient's norm before clipping."""
    chosen = world.positions("train")[step * train_steps.batch_size : (step + 1) * train_steps.batch_size]
    batch = tokenization.batch(chosen, step % world.table.num_groups)
    loss = recommender(batch.input_ids, batch.labels, batch.lengths).mean()
    loss.backward()
    gradient_norm = torch.nn.utils.clip_grad_norm_(recommender.parameters(), train_steps.clip)
    optimizer.step()
    optimizer.zero_grad()
    return [loss.item(), gradient_norm.item()]


def test_train_steps(world, recommender: Recommender, train_steps):
    rows = world.case.recommender_json["train_steps"]["rows"]
    assert len(rows) == train_steps.steps
    optimizer = torch.optim.AdamW(recommender.parameters(), lr=train_steps.lr, weight_decay=train_steps.weight_decay)
    recommender.train()

    def learning_rate(step: int) -> float:
        return train_steps.lr * cosine_factor(step, train_steps.warmup, train_steps.total)

    for step, (loss, norm, rate) in enumerate(rows):
        before = [parameter.detach().clone() for parameter in recommender.parameters()]
        optimizer.param_groups[0]["lr"] = learning_rate(step)
        taken = take_golden_step(world, world.tokenization, train_steps, recommender, optimizer, step)
        assert taken == pytest.approx([loss, norm], rel=1e-4, abs=1e-5)
        assert learning_rate(step + 1) == pytest.approx(rate, rel=1e-4, abs=1e-8)
        if learning_rate(step) == 0:  # such a step fills the moments only
            assert all(torch.equal(a, b) for a, b in zip(before, recommender.parameters(), strict=True))
    expected = world.case.weights("weights_after_5_steps/")
    ours = recommender.state_dict()
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(ours[name], value, **TOLERANCE)


def test_reference_checkpoint(world):
    weights = read_reference_checkpoint(world.case.folder / "reference_checkpoint.pth")
    expected = world.case.weights("weights_after_5_steps/")
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(weights[name], value, rtol=0, atol=0)
    recommender = world.recommender()
    recommender.load_weights(weights, "the checkpoint")
    assert_close(recommender.state_dict(), dict(weights), rtol=0, atol=0)
