"""Curriculum over tokenizer groups: influence scores from gradients, sampling probabilities from scores.

Source: arXiv 2504.04400, section 2.3. Deviations from its text follow the reference code; each is named where it is.
Another rule than influence is one function that scores the tokenizers, and its line in RULES.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from data.batching import Batch, Stream, Tokenization, TrainingOrder, random_share, random_stream
from model.recommender import Recommender
from utils.interrupts import stop_if_requested

if TYPE_CHECKING:  # the rules' names are settings, which most commands read without Accelerate
    from accelerate import Accelerator

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8

Gradient = list[Tensor]  # one tensor per parameter, in the order of model.parameters()


def mean_gradient(recommender: Recommender, batches: Iterable[Batch], num_examples: int) -> Gradient:
    """Return the gradient of the mean loss over all examples (equations 10 to 12).

    Gradients are accumulated in place, batch by batch; the parameters' own are cleared. Differs from the reference
    code: every example counts the same, not every batch, and the model is in eval mode, so that no dropout makes the
    scores random. Raises Stopped where SIGTERM or SIGINT comes.

    With several processes `batches` are this process's share; `num_examples`, of all processes, divides their sum.
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
    first, second = (
        [optimizer.state.get(p, {}).get(name, torch.zeros_like(p)) for p in recommender.parameters()]
        for name in ("exp_avg", "exp_avg_sq")
    )
    return first, second


def adam_direction(gradient: Gradient, first: Gradient, second: Gradient) -> Gradient:
    """Return Gamma(g), the direction in which Adam would move for this gradient (equations 13 to 15).

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
    accelerator: "Accelerator",
    scores: list[float] | None = None,
    pause: Callable[[], None] = lambda: None,
    advance: Callable[[int], None] = lambda examples: None,
) -> np.ndarray:
    """Return the influence of each tokenizer's data on the validation loss, float64 [G] (equation 16 without eta).

    It is <v, Gamma(g_i)>; v is one mean gradient over the validation examples of all groups: by linearity the mean
    over groups of the reference code's n x n matrix. eta enters in `accumulate_scores`.

    Args:
        recommender: The model, not wrapped for several processes.
        optimizer: Holds the Adam moments.
        tokenization: Makes the batches.
        train_positions, valid_positions: int, target positions of the examples; the same on every process.
        batch_size: Examples per backward pass; changes time and memory only.
        accelerator: Sums over processes.
        scores: Those of the first groups, from an interrupted estimate; the others are appended.
        pause: Called after each group.
        advance: Called with the examples that all processes have done since the last call.
    """
    scores = [] if scores is None else scores

    def batches(positions: np.ndarray, groups: Sequence[int]) -> Iterator[Batch]:
        mine = tokenization.by_length(positions)[accelerator.process_index :: accelerator.num_processes]
        for group in groups:
            for part, batch in tokenization.batches(mine, group, batch_size):
                yield batch
                advance(len(part) * accelerator.num_processes)

    def gradient(positions: np.ndarray, groups: Sequence[int]) -> Gradient:
        summed = mean_gradient(recommender, batches(positions, groups), len(groups) * len(positions))
        return [accelerator.reduce(part, "sum") for part in summed]

    num_groups = tokenization.table.num_groups
    valid = gradient(valid_positions, range(num_groups))
    moments = adam_moments(recommender, optimizer)
    for group in range(len(scores), num_groups):
        train = gradient(train_positions, [group])
        scores.append(inner_product(valid, adam_direction(train, *moments)))
        pause()
    return np.array(scores)


def stage_ends(epoch_per_stage: list[int], epochs: int) -> tuple[list[int], list[int]]:
    """Return the 1-based last epoch of each stage, and the trailing stages that do not fit into `epochs` in all.

    Source: section 2.3.2. Where the stages end early, the remaining epochs are one more segment, after which nothing
    is estimated.
    """
    ends = [end for end in accumulate(epoch_per_stage) if end <= epochs]
    dropped = epoch_per_stage[len(ends) :]
    return ends if ends[-1:] == [epochs] else [*ends, epochs], dropped


def accumulate_scores(influences: np.ndarray, learning_rates: np.ndarray) -> np.ndarray:
    """Return the tokenizers' scores [G] after the stages so far (equation 17), from influences [S, G] and rates [S].

    As the reference code: a stage's weight is the learning rate at its end, normalised to sum 1 over the stages so far.
    """
    total = learning_rates.sum()
    weights = learning_rates / total if total > 0 else np.full(len(learning_rates), 1 / len(learning_rates))
    return weights @ influences


def sampling_probabilities(scores: np.ndarray, tau: float) -> np.ndarray:
    """Return softmax(scores / tau) (equation 18), float64 [G].

    Differs from the reference code: stable for scores of any size. Raises FloatingPointError where one is not finite.
    """
    if not np.isfinite(scores).all():
        raise FloatingPointError(f"the influence scores are not finite: {scores}; lower --lr or raise --warmup_steps")
    exponentials = np.exp((scores - scores.max()) / tau)
    return exponentials / exponentials.sum()


def entropy(probabilities: np.ndarray) -> float:
    """Return the entropy of probabilities [G] in nats; one that has underflowed to 0 adds nothing."""
    drawn = probabilities[probabilities > 0]
    return float(-(drawn @ np.log(drawn)))


def influence_positions(order: TrainingOrder, ratio: float) -> np.ndarray:
    """Return the training examples that influence is estimated on: one random share for every tokenizer and stage."""
    return random_share(order.positions, ratio, random_stream(order.seed, Stream.INFLUENCE_SAMPLE))


# What --curriculum chooses from. A rule takes the arguments of `estimate_influence`; at a stage's end it scores the
# tokenizers, float64 [G], higher to be drawn more often. None draws all alike, always.
RULES: dict[str, Callable[..., np.ndarray] | None] = {"influence": estimate_influence, "uniform": None}


def rule_of(curriculum: str, num_groups: int) -> Callable[..., np.ndarray] | None:
    """Return what scores the tokenizers at the end of a stage; None where they are always drawn alike."""
    return RULES[curriculum] if num_groups > 1 else None


def curriculum_advice(probabilities: np.ndarray, tau: float) -> str | None:
    """Judge sampling probabilities, float64 [G], that came out at temperature tau."""
    highest, uniform = float(probabilities.max()), 1 / len(probabilities)
    if highest > 0.5 and len(probabilities) > 2:
        return f"one tokenizer is drawn with probability {highest:.2f}; raise --tau ({tau:g}) to draw the others too"
    if np.abs(probabilities / uniform - 1).max() < 0.01:
        return f"all sampling probabilities are within 1% of uniform: the curriculum is idle; lower --tau ({tau:g})"
    return None
