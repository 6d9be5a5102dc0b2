"""Learning-rate schedule and curriculum stages as pure functions."""

import math
from itertools import accumulate


def cosine_factor(done: int, warmup: int, total: int) -> float:
    """Return the learning rate's factor: linear warm-up, then half a cosine to zero, which it keeps.

    Differs from the reference code: there the factor rises again beyond `total`, which uneven global batches reach.
    All three count batches of one process; `done` are those before the step.
    """
    if done < warmup:
        return done / max(1, warmup)
    share = min(1.0, (done - warmup) / max(1, total - warmup))
    return 0.5 * (1.0 + math.cos(math.pi * share))


def stage_ends(epoch_per_stage: list[int], epochs: int) -> tuple[list[int], list[int]]:
    """Return the 1-based last epoch of each stage, and the trailing stages that do not fit into `epochs` in all.

    Where the stages end early, the remaining epochs are one more segment, after which nothing is estimated.
    """
    ends = [end for end in accumulate(epoch_per_stage) if end <= epochs]
    dropped = epoch_per_stage[len(ends) :]
    return ends if ends[-1:] == [epochs] else [*ends, epochs], dropped
