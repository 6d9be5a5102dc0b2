"""Learning-rate schedule and curriculum stages as pure functions."""

import math


def cosine_factor(position: int, warmup: int, total: int) -> float:
    """Return the learning rate's factor: linear warm-up, then half a cosine to zero, which it keeps.

    Differs from the reference code: there the factor rises again beyond `total`, which uneven global batches reach.

    Args:
        position: 0-based schedule position, counted in batches of one process.
        warmup, total: In the same unit.
    """
    if position < warmup:
        return position / max(1, warmup)
    progress = min(1.0, (position - warmup) / max(1, total - warmup))
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def stage_ends(epoch_per_stage: list[int], epochs: int) -> tuple[list[int], list[int]]:
    """Cut training into stages.

    Args:
        epoch_per_stage: Epochs of each stage.
        epochs: Epochs in all.

    Returns:
        The 1-based last epoch of each stage, and the trailing stages that were dropped because they do not fit.
        Where the stages end early, the remaining epochs are one more segment, after which nothing is estimated.
    """
    kept = list(epoch_per_stage)
    while sum(kept) > epochs:
        kept.pop()
    ends = [sum(kept[: index + 1]) for index in range(len(kept))]
    if not ends or ends[-1] < epochs:
        ends.append(epochs)
    return ends, list(epoch_per_stage[len(kept) :])
