"""Curriculum over tokenizer groups: influence scores from gradients, sampling probabilities from scores.

Source: arXiv 2504.04400, section 2.3. Deviations from its text follow the reference code; each is named where it is.
Another rule than influence is one function that scores the tokenizers, and its line in RULES.
"""

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from data.batching import Batch, Stream, Tokenization, TrainingOrder, random_share, random_stream
from utils.interrupts import stop_if_requested
from utils.progress import duration

if TYPE_CHECKING:
    from accelerate import Accelerator

    from model.recommender import Recommender
    from training.checkpointer import TrainingState
    from training.config import PretrainConfig
    from training.trainer import Trainer

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8

Gradient = list[Tensor]  # one tensor per parameter, in the order of model.parameters()


def mean_gradient(recommender: "Recommender", batches: Iterable[Batch], num_examples: int) -> Gradient:
    """Return the gradient of the mean loss over all examples (equations 10 and 12).

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


def adam_moments(recommender: "Recommender", optimizer: Optimizer) -> tuple[Gradient, Gradient]:
    """Return the optimizer's present first and second moments per parameter; zeros before its first step."""
    first, second = (
        [optimizer.state.get(p, {}).get(name, torch.zeros_like(p)) for p in recommender.parameters()]
        for name in ("exp_avg", "exp_avg_sq")
    )
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
    recommender: "Recommender",
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
    """Return the tokenizers' scores [G] after the stages so far (equation 17), from influences [S, G] and rates [S].

    As the reference code: a stage's weight is the learning rate at its end, normalised to sum 1 over the stages so far.
    """
    total = learning_rates.sum()
    weights = learning_rates / total if total > 0 else np.full(len(learning_rates), 1 / len(learning_rates))
    return weights @ influences


def sampling_probabilities(scores: np.ndarray, tau: float) -> np.ndarray:
    """Return softmax(scores / tau) (equation 18), float64 [G], stable for scores of any size.

    Raises FloatingPointError where a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise FloatingPointError(f"the influence scores are not finite: {scores}; lower --lr or raise --warmup_steps")
    exponentials = np.exp((scores - scores.max()) / tau)
    return exponentials / exponentials.sum()


def entropy(probabilities: np.ndarray) -> float:
    """Return the entropy of probabilities [G] in nats; one that has underflowed to 0 adds nothing."""
    drawn = probabilities[probabilities > 0]
    return float(-(drawn @ np.log(drawn)))


def influence_positions(config: "PretrainConfig", order: TrainingOrder) -> np.ndarray:
    """Return the training examples that influence is estimated on: one random share for every tokenizer and stage."""
    rng = random_stream(config.rand_seed, Stream.INFLUENCE_SAMPLE)
    return random_share(order.positions, config.influence_sample_ratio, rng)


def influence_rule(trainer: "Trainer", advance: Callable[[int], None]) -> np.ndarray:
    """Score each tokenizer by its data's influence on the validation loss."""
    return estimate_influence(
        trainer.recommender,
        trainer.optimizer,
        trainer.data.tokenization,
        influence_positions(trainer.config, trainer.data.order),
        trainer.data.valid,
        trainer.config.train_batch_size,
        trainer.accelerator,
        trainer.state.influence_parts,
        trainer.checkpointer.pause,
        advance,
    )


# What --curriculum chooses from. A rule scores the tokenizers at the end of a stage, float64 [G], higher to be drawn
# more often; it calls its second argument with the examples it has looked at. None draws all alike, always.
RULES: dict[str, Callable[["Trainer", Callable[[int], None]], np.ndarray] | None] = {
    "influence": influence_rule,
    "uniform": None,
}


def scores_tokenizers(config: "PretrainConfig", num_groups: int) -> bool:
    """Return whether the tokenizers are scored at the end of a stage."""
    return RULES[config.curriculum] is not None and num_groups > 1


def current_probabilities(state: "TrainingState", num_groups: int, tau: float) -> np.ndarray:
    """Return the sampling probabilities [G] after the stages so far; the first stage samples uniformly."""
    if not state.influences:
        return np.full(num_groups, 1 / num_groups)
    scores = accumulate_scores(np.array(state.influences), np.array(state.learning_rates))
    return sampling_probabilities(scores, tau)


def score_tokenizers(trainer: "Trainer", stage: int) -> None:
    """Score the tokenizers at the end of a 1-based stage, and tell what follows for the next one."""
    started, state, config = time.perf_counter(), trainer.state, trainer.config
    with trainer.checkpointer.frozen_state(), trainer.display.influence(stage) as advance:
        scores = RULES[config.curriculum](trainer, advance)
    state.influences.append(scores.tolist())
    state.learning_rates.append(trainer.learning_rate)
    state.influence_parts = []
    probabilities, names = current_probabilities(state, len(scores), config.tau), trainer.data.table.labels
    seconds = time.perf_counter() - started
    influence = dict(zip(names, scores.tolist(), strict=True))
    shares = dict(zip(names, probabilities.tolist(), strict=True))
    tracked = {f"influence/{name}": score for name, score in influence.items()}
    tracked |= {f"sampling_probability/{name}": share for name, share in shares.items()}
    values = {"stage": stage, "epoch": state.epoch, "step": state.step, "learning_rate": trainer.learning_rate}
    values |= {"seconds": seconds, "influence": influence, "probabilities": shares}
    low, high = min(shares, key=shares.get), max(shares, key=shares.get)
    trainer.run.emit(
        "influence",
        values,
        tracked,
        state.step,
        f"stage {stage} is over after epoch {state.epoch}; influence estimated in {duration(seconds)}",
        f"  the next stage's sampling probabilities: lowest {shares[low]:.4f} (tokenizer {low}), "
        f"highest {shares[high]:.4f} (tokenizer {high}), uniform {1 / len(names):.4f}",
        f"  their entropy: {entropy(probabilities):.4f}, uniform {np.log(len(names)):.4f}",
    )
    trainer.display.warn("curriculum", curriculum_advice(probabilities, config.tau))


def curriculum_advice(probabilities: np.ndarray, tau: float) -> str | None:
    """Judge sampling probabilities, float64 [G], that came out at temperature tau."""
    highest, uniform = float(probabilities.max()), 1 / len(probabilities)
    if highest > 0.5 and len(probabilities) > 2:
        return f"one tokenizer is drawn with probability {highest:.2f}; raise --tau ({tau:g}) to draw the others too"
    if np.abs(probabilities / uniform - 1).max() < 0.01:
        return f"all sampling probabilities are within 1% of uniform: the curriculum is idle; lower --tau ({tau:g})"
    return None
