"""How sure a difference is: the interval that other users would draw, and the one that other seeds would."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import sem, t

Z_95 = 1.959964  # the normal distribution's 97.5% point


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% confidence interval, from low to high; NaN where there is too little to tell."""

    mean: float
    low: float
    high: float


def bootstrap_over_users(
    differences: np.ndarray, resamples: int = 10_000, seed: int = 2024
) -> Interval | list[Interval]:
    """Return the interval that another draw of users would give (percentile bootstrap), not another seed of training.

    Args:
        differences: float64 [U, M], M metrics of two methods paired by user, second minus first, or one method's
            metrics; or [U] for a single one.
        resamples: How many times U users are drawn with replacement.
        seed: Of the draws, which are the same for every metric.

    Returns:
        One for each metric; for [U] the interval itself.
    """
    if differences.ndim == 1:
        return bootstrap_over_users(differences[:, None], resamples, seed)[0]
    num_users = len(differences)
    if num_users < 2:
        return [Interval(float(mean), np.nan, np.nan) for mean in differences.sum(axis=0) / (num_users or np.nan)]
    rng = np.random.default_rng(seed)
    drawn = [differences[rng.integers(num_users, size=num_users)].mean(axis=0) for _ in range(resamples)]
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return [Interval(*map(float, row)) for row in zip(differences.mean(axis=0), low, high, strict=True)]


def t_interval_over_seeds(differences: np.ndarray) -> Interval:
    """Return the interval that other seeds of training would give (paired t-test).

    Args:
        differences: float64 [S], a metric of two methods paired by seed, second minus first.
    """
    mean, half = differences.mean(), np.nan
    if len(differences) > 1:
        half = t.ppf(0.975, len(differences) - 1) * sem(differences)
    return Interval(float(mean), float(mean - half), float(mean + half))


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the mean over users and the half-width of its 95% confidence interval.

    Normal approximation. It says how much another draw of users would change the mean, not another seed of training.

    Args:
        values: float [U], a metric of each user, or the difference of two runs for each user (a paired comparison).
    """
    if len(values) < 2:
        return float(values.mean()), float("nan")
    return float(values.mean()), float(Z_95 * values.std(ddof=1) / np.sqrt(len(values)))
