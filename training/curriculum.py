"""Curriculum over tokenizer groups: influence scores from gradients, sampling probabilities from scores.

Source: arXiv 2504.04400, section 2.3. Deviations from its text follow the reference code; each is named where it is.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer

from data.batching import Batch, Tokenization
from model.recommender import Recommender
from utils.interrupts import stop_if_requested

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8

Gradient = list[Tensor]  # one tensor per parameter, in the order of model.parameters()


def mean_gradient(recommender: Recommender, batches: Iterable[Batch], num_examples: int) -> Gradient:
    """Return the gradient of the mean loss over all examples (equations 10 and 12).

    Gradients are accumulated in place, batch by batch. Differs from the reference code: every example counts the same,
    not every batch, and the model is in eval mode, so that no dropout makes the scores random.

    Args:
        recommender: The model; its parameters' own gradients are cleared.
        batches: Batches that hold each example once; with several processes, this process's share.
        num_examples: What the sum over `batches` is divided by: the examples of all processes.

    Raises:
        Stopped: SIGTERM or SIGINT came.
    """
    parameters = list(recommender.parameters())
    was_training = recommender.training
    recommender.eval()
    recommender.zero_grad(set_to_none=True)
    for batch in batches:
        stop_if_requested()
        (recommender(batch.input_ids, batch.labels, batch.lengths).sum() / num_examples).backward()
    gradient = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    recommender.zero_grad(set_to_none=True)
    recommender.train(was_training)
    return gradient


def adam_moments(recommender: Recommender, optimizer: Optimizer) -> tuple[Gradient, Gradient]:
    """Return the optimizer's present first and second moments per parameter; zeros before its first step."""
    states = [(p, optimizer.state.get(p, {})) for p in recommender.parameters()]
    first = [state.get("exp_avg", torch.zeros_like(p)) for p, state in states]
    second = [state.get("exp_avg_sq", torch.zeros_like(p)) for p, state in states]
    return first, second


def adam_direction(gradient: Gradient, first: Gradient, second: Gradient) -> Gradient:
    """Return Gamma(g), the direction in which Adam would move for this gradient (equations 13-15).

    As the reference code, unlike the paper's text: no bias correction, and epsilon inside the root.
    """
    directions = []
    for g, m, v in zip(gradient, first, second, strict=True):
        next_m = BETA_1 * m + (1 - BETA_1) * g
        next_v = BETA_2 * v + (1 - BETA_2) * g * g
        directions.append(next_m / torch.sqrt(next_v + EPSILON))
    return directions


def inner_product(left: Gradient, right: Gradient) -> float:
    """Return <left, right> over all parameters, summed in float64."""
    return float(sum(torch.dot(*(x.flatten().cpu().double() for x in pair)) for pair in zip(left, right, strict=True)))


def estimate_influence(
    recommender: Recommender,
    optimizer: Optimizer,
    tokenization: Tokenization,
    train_positions: np.ndarray,
    valid_positions: np.ndarray,
    batch_size: int,
    accelerator: Accelerator,
    scores: list[float] | None = None,
    pause: Callable[[], None] = lambda: None,
    advance: Callable[[int], None] = lambda examples: None,
) -> np.ndarray:
    """Return the influence of each tokenizer's data on the validation loss, <v, Gamma(g_i)> (equation 16 without eta).

    v is one mean gradient over the validation examples of all groups: by linearity the mean over groups of the
    reference code's n x n matrix. eta enters in `accumulate_scores`.

    Args:
        recommender: The model, not wrapped for several processes.
        optimizer: Holds the Adam moments.
        tokenization: Makes the batches.
        train_positions, valid_positions: int, target positions of the examples; the same on every process.
        batch_size: Examples per backward pass; changes time and memory only.
        accelerator: Sums over processes.
        scores: Those of the first groups, from an interrupted estimate; the others are appended to the list.
        pause: Called after each group.
        advance: Called with the number of examples that all processes have done since the last call.

    Returns:
        float64 [G].
    """
    num_groups = tokenization.table.num_groups
    scores = [] if scores is None else scores

    def gradient(positions: np.ndarray, groups: Iterable[int], num_examples: int) -> Gradient:
        ordered = tokenization.by_length(positions)[accelerator.process_index :: accelerator.num_processes]
        batches = (batch for group in groups for batch in counted(tokenization.batches(ordered, group, batch_size)))
        summed = mean_gradient(recommender, batches, num_examples)
        return [accelerator.reduce(part, "sum") for part in summed]

    def counted(batches: Iterable[tuple[np.ndarray, Batch]]) -> Iterable[Batch]:
        for positions, batch in batches:
            yield batch
            advance(len(positions) * accelerator.num_processes)

    valid = gradient(valid_positions, range(num_groups), num_groups * len(valid_positions))
    first, second = adam_moments(recommender, optimizer)
    for group in range(len(scores), num_groups):
        train = gradient(train_positions, [group], len(train_positions))
        scores.append(inner_product(valid, adam_direction(train, first, second)))
        pause()
    return np.array(scores)


def accumulate_scores(influences: np.ndarray, learning_rates: np.ndarray) -> np.ndarray:
    """Return the tokenizers' scores after the stages so far (equation 17).

    As the reference code: a stage's weight is the learning rate at its end, normalised to sum 1 over the stages so far.

    Args:
        influences: float64 [S, G], of every finished stage.
        learning_rates: float64 [S].

    Returns:
        float64 [G].
    """
    total = learning_rates.sum()
    weights = learning_rates / total if total > 0 else np.full(len(learning_rates), 1 / len(learning_rates))
    return weights @ influences


def sampling_probabilities(scores: np.ndarray, tau: float) -> np.ndarray:
    """Return softmax(scores / tau) (equation 18), float64 [G], stable for scores of any size.

    Raises:
        FloatingPointError: A score is not finite.
    """
    if not np.isfinite(scores).all():
        raise FloatingPointError(f"the influence scores are not finite: {scores}; lower --lr or raise --warmup_steps")
    exponentials = np.exp((scores - scores.max()) / tau)
    return exponentials / exponentials.sum()


def entropy(probabilities: np.ndarray) -> float:
    """Return the entropy of probabilities [G] in nats; one that has underflowed to 0 adds nothing."""
    drawn = probabilities[probabilities > 0]
    return float(-(drawn @ np.log(drawn)))
