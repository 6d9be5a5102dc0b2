from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny_runs import flags, read_lines

import pretrain
from data.batching import Tokenization, TrainingOrder
from data.interactions import split_positions
from model.recommender import Recommender
from training.config import PretrainConfig
from training.curriculum import (
    RULES,
    accumulate_scores,
    adam_direction,
    adam_moments,
    curriculum_advice,
    entropy,
    estimate_influence,
    influence_positions,
    inner_product,
    mean_gradient,
    sampling_probabilities,
    stage_ends,
)
from utils.config import parse_config
from utils.errors import InputError


@pytest.fixture
def splits(tokenization: Tokenization) -> tuple[np.ndarray, np.ndarray]:
    offsets = tokenization.interactions.offsets
    return split_positions(offsets, "train")[:37], split_positions(offsets, "valid")


@pytest.fixture
def optimizer(recommender: Recommender, tokenization: Tokenization, splits) -> torch.optim.Optimizer:
    """An optimizer that has taken a few steps, so that its moments are not zero."""
    optimizer = torch.optim.AdamW(recommender.parameters(), lr=1e-3)
    for step in range(3):
        batch = tokenization.batch(splits[0][step * 8 : step * 8 + 8], step)
        recommender(batch.input_ids, batch.labels, batch.lengths).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def plain_gradient(recommender: Recommender, tokenization: Tokenization, examples: list[tuple[int, int]]) -> dict:
    """Return {parameter name: mean gradient}, one example at a time, one gradient per example."""
    recommender.eval()
    names = [name for name, _ in recommender.named_parameters()]
    total = {name: 0.0 for name in names}
    for position, group in examples:
        batch = tokenization.batch(np.asarray([position]), group)
        loss = recommender(batch.input_ids, batch.labels, batch.lengths)[0]
        for name, gradient in zip(names, torch.autograd.grad(loss, list(recommender.parameters())), strict=True):
            total[name] = total[name] + gradient.double().numpy()
    return {name: value / len(examples) for name, value in total.items()}


def test_influence_equals_a_plain_loop(
    recommender: Recommender, tokenization: Tokenization, splits, optimizer, accelerator: Accelerator
):
    train, valid = splits
    scores = estimate_influence(recommender, optimizer, tokenization, train, valid, 10, accelerator)
    groups = range(3)
    v = [plain_gradient(recommender, tokenization, [(p, group) for p in valid.tolist()]) for group in groups]
    for group in groups:
        g = plain_gradient(recommender, tokenization, [(p, group) for p in train.tolist()])
        per_column = []
        for column in groups:  # the reference code's matrix, then the mean of its row
            products = 0.0
            for name, parameter in recommender.named_parameters():
                m = optimizer.state[parameter]["exp_avg"].double().numpy()
                s = optimizer.state[parameter]["exp_avg_sq"].double().numpy()
                root = (0.999 * s + 0.001 * g[name] ** 2 + 1e-8) ** 0.5
                products += float((v[column][name] * (0.9 * m + 0.1 * g[name]) / root).sum())
            per_column.append(products)
        assert scores[group] == pytest.approx(np.mean(per_column), rel=1e-4)
    assert len(set(scores.round(6).tolist())) == 3


def test_influence_is_deterministic_and_leaves_no_trace(
    recommender: Recommender, tokenization: Tokenization, splits, optimizer, accelerator: Accelerator
):
    recommender.train()
    before = {name: value.clone() for name, value in recommender.state_dict().items()}
    moments = [part.clone() for parts in adam_moments(recommender, optimizer) for part in parts]
    estimates = [estimate_influence(recommender, optimizer, tokenization, *splits, 10, accelerator) for _ in range(2)]
    assert np.array_equal(estimates[0], estimates[1])  # no dropout, although the model is in training mode
    assert recommender.training
    assert all(parameter.grad is None for parameter in recommender.parameters())
    assert all(torch.equal(value, before[name]) for name, value in recommender.state_dict().items())
    after = [part for parts in adam_moments(recommender, optimizer) for part in parts]
    assert all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_batch_size_changes_nothing_but_time(
    recommender: Recommender, tokenization: Tokenization, splits, optimizer, accelerator: Accelerator, batch_size: int
):
    reference = estimate_influence(recommender, optimizer, tokenization, *splits, 16, accelerator)
    other = estimate_influence(recommender, optimizer, tokenization, *splits, batch_size, accelerator)
    assert other == pytest.approx(reference, rel=1e-4)


def test_mean_gradient_counts_examples_not_batches(recommender: Recommender, tokenization: Tokenization, splits):
    positions = splits[0][:11]
    batches = [batch for _, batch in tokenization.batches(positions, 0, 8)]  # 8 and 3 examples
    expected = plain_gradient(recommender, tokenization, [(p, 0) for p in positions.tolist()])
    found = mean_gradient(recommender, batches, len(positions))
    for (name, _), gradient in zip(recommender.named_parameters(), found, strict=True):
        assert np.allclose(gradient.numpy(), expected[name], rtol=1e-4, atol=1e-7)
    assert all(not gradient.any() for gradient in mean_gradient(recommender, [], 1))  # a process without a share


def test_adam_direction_by_hand():
    (direction,) = adam_direction([torch.tensor([2.0, 0.0])], [torch.tensor([1.0, 0.0])], [torch.tensor([4.0, 0.0])])
    assert direction.tolist() == pytest.approx([(0.9 + 0.2) / (3.996 + 0.004 + 1e-8) ** 0.5, 0.0])
    (small,) = adam_direction([torch.tensor([1e-3])], [torch.tensor([0.0])], [torch.tensor([0.0])])
    assert small.item() == pytest.approx(1e-4 / (1e-9 + 1e-8) ** 0.5)  # epsilon inside the root, no bias correction


def test_moments_before_the_first_step_are_zero(recommender: Recommender):
    for moment in adam_moments(recommender, torch.optim.AdamW(recommender.parameters())):
        shapes = [(part.shape, bool(part.any())) for part in moment]
        assert shapes == [(parameter.shape, False) for parameter in recommender.parameters()]


def test_inner_product():
    left = [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])]
    right = [torch.tensor([4.0, -1.0]), torch.tensor([[0.5]])]
    assert inner_product(left, right) == 3.5


def test_accumulate_scores():
    influences = np.asarray([[1.0, 2.0], [3.0, 6.0]])
    assert accumulate_scores(influences[:1], np.asarray([0.01])).tolist() == [1.0, 2.0]
    assert accumulate_scores(influences, np.asarray([0.003, 0.001])) == pytest.approx([1.5, 3.0])
    assert accumulate_scores(influences, np.zeros(2)) == pytest.approx([2.0, 4.0])  # learning rates may end at 0


def test_sampling_probabilities():
    assert sampling_probabilities(np.log([1.0, 2.0, 5.0]), 1.0) == pytest.approx([1 / 8, 2 / 8, 5 / 8])
    assert sampling_probabilities(2 * np.log([1.0, 3.0]), 2.0) == pytest.approx([1 / 4, 3 / 4])
    assert sampling_probabilities(np.asarray([7.0, 7.0]), 0.1).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("shift", [1e4, -1e4, 0.0])
def test_scores_of_any_size(shift: float):
    scores = np.asarray([0.0, 1.0, 2.0])
    expected = sampling_probabilities(scores, 1.0)
    assert sampling_probabilities(scores + shift, 1.0) == pytest.approx(expected, rel=1e-9)
    extreme = sampling_probabilities(np.asarray([-1e4, 1e4, 0.0]), 0.1)
    assert extreme.tolist() == [0.0, 1.0, 0.0]


def test_entropy():
    assert entropy(np.full(4, 0.25)) == pytest.approx(np.log(4))
    underflowed = sampling_probabilities(np.array([0.0, 0.0, -80.0]), tau=0.1)
    assert underflowed[2] == 0
    assert entropy(underflowed) == pytest.approx(np.log(2))


def test_scores_that_are_not_finite_are_refused():
    for value in (np.nan, np.inf):
        with pytest.raises(
            FloatingPointError, match=r"the influence scores are not finite: .* lower --lr or raise --warmup"
        ):
            sampling_probabilities(np.asarray([0.0, value]), 1.0)


def test_influence_sample_ratio():
    """The same share at every stage and for every number of processes."""
    orders = [TrainingOrder(np.arange(40), 4, processes, 0, seed=2) for processes in (1, 2)]
    assert influence_positions(orders[0], 1.0).tolist() == list(range(40))
    shares = [influence_positions(order, 0.25).tolist() for order in orders]
    assert shares[0] == shares[1]
    assert len(set(shares[0])) == 10
    assert influence_positions(TrainingOrder(np.arange(40), 4, seed=3), 0.25).tolist() != shares[0]


@pytest.mark.parametrize(
    ("probabilities", "text"),
    [
        ([0.6, 0.2, 0.2], "one tokenizer is drawn with probability 0.60; raise --tau (0.5)"),
        ([0.2515, 0.2495, 0.2495, 0.2495], "all sampling probabilities are within 1% of uniform"),
        ([0.26, 0.25, 0.25, 0.24], None),
        ([0.6, 0.4], None),  # of two tokenizers one is always above a half
    ],
)
def test_advice_on_the_probabilities(probabilities, text):
    found = curriculum_advice(np.array(probabilities), 0.5)
    assert (found or "").startswith(text or "")
    assert (found is None) == (text is None)


def test_another_rule_is_a_function_and_a_line(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(RULES, "last_first", lambda *_: np.arange(3.0))
    settings = {"epochs": 2, "epoch_per_stage": [1, 1], "val_delay": 9, "curriculum": "last_first", "tau": 1}
    pretrain.main(flags(dataset, tmp_path, run_name="run", **settings))
    (line,) = read_lines(tmp_path / "Tiny" / "run", "influence")
    assert list(line["influence"].values()) == [0.0, 1.0, 2.0]
    expected = np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum()
    np.testing.assert_allclose(list(line["probabilities"].values()), expected, rtol=1e-12)
    with pytest.raises(InputError, match="curriculum=first must be influence or uniform or last_first"):
        parse_config(PretrainConfig, ["--curriculum=first"], "", "")


@pytest.mark.parametrize(
    ("epoch_per_stage", "epochs", "ends", "dropped"),
    [
        ([60, 20, 20, 20, 20, 20, 20], 200, [60, 80, 100, 120, 140, 160, 180, 200], []),
        ([60, 20, 20, 20, 20, 20, 20], 180, [60, 80, 100, 120, 140, 160, 180], []),
        ([60, 20, 20, 20, 20, 20, 20], 110, [60, 80, 100, 110], [20, 20, 20, 20]),
        ([60, 20, 20], 80, [60, 80], [20]),
        ([60, 20], 10, [10], [60, 20]),
        ([1, 1], 2, [1, 2], []),
        ([3], 3, [3], []),
        ([2, 9, 1], 4, [2, 4], [9, 1]),
    ],
)
def test_stage_ends(epoch_per_stage: list[int], epochs: int, ends: list[int], dropped: list[int]):
    given = list(epoch_per_stage)
    assert stage_ends(epoch_per_stage, epochs) == (ends, dropped)
    assert epoch_per_stage == given
