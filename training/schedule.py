"""Learning-rate schedule and curriculum stages as pure functions."""

import math
from itertools import accumulate


def cosine_factor(position: int, warmup: int, total: int) -> float:
    """Return the learning rate's factor: linear warm-up, then half a cosine to zero, which it keeps.

    Differs from the reference code: there the factor rises again beyond `total`, which uneven global batches reach.
    `position` is 0-based and counts batches of one process, as the other two.
    """
    if position < warmup:
        return position / max(1, warmup)
    progress = min(1.0, (position - warmup) / max(1, total - warmup))
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def stage_ends(epoch_per_stage: list[int], epochs: int) -> tuple[list[int], list[int]]:
    """Return the 1-based last epoch of each stage, and the trailing stages that do not fit into `epochs` in all.

    Where the stages end early, the remaining epochs are one more segment, after which nothing is estimated.
    """
    ends = [end for end in accumulate(epoch_per_stage) if end <= epochs]
    dropped = epoch_per_stage[len(ends) :]
    return ends if ends[-1:] == [epochs] else [*ends, epochs], dropped
