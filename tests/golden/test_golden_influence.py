"""Influence scores and sampling probabilities against the reference code's, for any case in the golden format."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from model.recommender import Recommender
from training.curriculum import (
    Gradient,
    accumulate_scores,
    adam_direction,
    adam_moments,
    estimate_influence,
    inner_product,
    mean_gradient,
    sampling_probabilities,
)

# What stage 1's artificial moments are, as multiples of stage 0's.
STAGE_FACTORS = {"stage0": (1.0, 1.0), "stage1": (-0.5, 4.0)}
CHECKPOINT = "stage_checkpoint"
STAGES = [*STAGE_FACTORS, CHECKPOINT]


@pytest.fixture(scope="module")
def numbers(world) -> dict:
    return world.case.recommender_json["influence"]


@pytest.fixture(scope="module")
def golden_recommender(world) -> Recommender:
    return world.recommender()


def examples(world, numbers: dict, split: str) -> np.ndarray:
    return world.positions(split)[: numbers[f"n_{split}_examples"]]


@pytest.fixture(scope="module")
def gradients(world, numbers: dict, golden_recommender: Recommender) -> dict[str, list[Gradient]]:
    """Return {split: plain gradient per group}, means over batches of the batch mean as in the reference code."""
    found = {}
    for split in ("train", "valid"):
        positions = examples(world, numbers, split)
        found[split] = []
        for group in range(world.table.num_groups):
            parts = [
                mean_gradient(golden_recommender, [batch], len(batch))
                for _, batch in world.tokenization.batches(positions, group, numbers["batch_size"])
            ]
            found[split].append([torch.stack(tensors).mean(0) for tensors in zip(*parts, strict=True)])
    return found


def optimizer_at(world, recommender: Recommender, stage: str) -> torch.optim.Optimizer:
    """Return an optimizer with the golden moments of a stage."""
    optimizer = torch.optim.AdamW(recommender.parameters())
    if stage == CHECKPOINT:
        checkpoint = torch.load(world.case.folder / "reference_checkpoint.pth", weights_only=True)
        optimizer.load_state_dict(checkpoint["optimizer"])
        return optimizer
    first, second = STAGE_FACTORS[stage]
    tensors = world.case.recommender
    for name, parameter in recommender.named_parameters():
        optimizer.state[parameter] = {
            "exp_avg": first * tensors[f"adam/exp_avg/{name}"],
            "exp_avg_sq": second * tensors[f"adam/exp_avg_sq/{name}"],
        }
    return optimizer


def norm(gradient: Gradient) -> float:
    return inner_product(gradient, gradient) ** 0.5


def test_gradient_norms(world, gradients: dict[str, list[Gradient]]):
    for split in ("train", "valid"):
        expected = world.case.recommender[f"influence/{split}_grad_norms"].tolist()
        assert [norm(gradient) for gradient in gradients[split]] == pytest.approx(expected, rel=1e-4)


def test_adam_direction_norms(world, golden_recommender: Recommender, gradients: dict[str, list[Gradient]]):
    moments = adam_moments(golden_recommender, optimizer_at(world, golden_recommender, "stage0"))
    ours = [norm(adam_direction(gradient, *moments)) for gradient in gradients["train"]]
    assert ours == pytest.approx(world.case.recommender["influence/adam_direction_norms"].tolist(), rel=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_influence_matrix(world, golden_recommender: Recommender, gradients: dict[str, list[Gradient]], stage: str):
    moments = adam_moments(golden_recommender, optimizer_at(world, golden_recommender, stage))
    directions = [adam_direction(gradient, *moments) for gradient in gradients["train"]]
    ours = [[inner_product(valid, direction) for valid in gradients["valid"]] for direction in directions]
    assert np.allclose(ours, world.case.recommender[f"influence/{stage}"].numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_estimate_influence(world, numbers: dict, golden_recommender: Recommender, stage: str):
    train, valid = examples(world, numbers, "train"), examples(world, numbers, "valid")
    if len(train) % numbers["batch_size"] or len(valid) % numbers["batch_size"]:
        pytest.skip("the case's last batch is smaller, and here examples weigh the same, not batches")
    ours = estimate_influence(
        golden_recommender,
        optimizer_at(world, golden_recommender, stage),
        world.tokenization,
        train,
        valid,
        numbers["batch_size"] + 5,  # the cut into batches does not matter
        Accelerator(cpu=True),
    )
    expected = world.case.recommender[f"influence/{stage}"].mean(1).numpy()
    assert np.allclose(ours, expected, rtol=1e-3, atol=1e-5)
    if stage != CHECKPOINT:
        return
    for tau, probabilities in numbers["sampling_probability_checkpoint_by_tau"].items():
        assert sampling_probabilities(ours, float(tau)) == pytest.approx(probabilities, rel=1e-3, abs=1e-5)


def test_sampling_probabilities(world, numbers: dict):
    matrices = [world.case.recommender[f"influence/{stage}"].double().mean(1).numpy() for stage in STAGE_FACTORS]
    rates = np.asarray(numbers["stage_end_learning_rates"])
    assert len(numbers["sampling_probability_by_tau"]) == len(numbers["sampling_probability_checkpoint_by_tau"]) > 0
    for tau, per_stage in numbers["sampling_probability_by_tau"].items():
        for stages, expected in enumerate(per_stage, start=1):
            scores = accumulate_scores(np.stack(matrices[:stages]), rates[:stages])
            assert sampling_probabilities(scores, float(tau)) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    scores = world.case.recommender[f"influence/{CHECKPOINT}"].double().mean(1).numpy()
    for tau, expected in numbers["sampling_probability_checkpoint_by_tau"].items():
        assert sampling_probabilities(scores, float(tau)) == pytest.approx(expected, rel=1e-4, abs=1e-5)
