"""How sure a mean over users is."""

import numpy as np

Z_95 = 1.959964  # the normal distribution's 97.5% point


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the mean over users and the half-width of its 95% confidence interval.

    Normal approximation. It says how much another draw of users would change the mean, not another seed of training.

    Args:
        values: float [U], a metric of each user, or the difference of two runs for each user (a paired comparison).
    """
    if len(values) < 2:
        return float(values.mean()), float("nan")
    return float(values.mean()), float(Z_95 * values.std(ddof=1) / np.sqrt(len(values)))
