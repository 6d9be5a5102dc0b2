"""How sure a difference is: the interval that other users would draw, and the one that other seeds would."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import sem, t

from evaluation.results import Results
from utils.errors import InputError

# Bootstrap samples: with so many an interval's ends are off by 3% of its half-width, in seconds even for 100,000 users.
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% confidence interval, from low to high; NaN where there is too little to tell."""

    mean: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def bootstrap_over_users(
    differences: np.ndarray, resamples: int = RESAMPLES, seed: int = 2024
) -> Interval | list[Interval]:
    """Return the interval that another draw of users would give (percentile bootstrap), not another seed of training.

    Args:
        differences: float64 [U, M], M metrics of two methods paired by user, second minus first, or one method's
            metrics; or [U] for a single one.
        resamples: How many times U users are drawn with replacement, the same for every metric.

    There is one for each metric; for [U] the interval itself.
    """
    if differences.ndim == 1:
        return bootstrap_over_users(differences[:, None], resamples, seed)[0]
    num_users = len(differences)
    if num_users < 2:
        return [Interval(float(mean), np.nan, np.nan) for mean in differences.sum(axis=0) / (num_users or np.nan)]
    rng = np.random.default_rng(seed)
    drawn = [differences.take(rng.integers(num_users, size=num_users), axis=0).mean(axis=0) for _ in range(resamples)]
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return [Interval(*map(float, row)) for row in zip(differences.mean(axis=0), low, high, strict=True)]


def t_interval_over_seeds(differences: np.ndarray) -> Interval:
    """Return the interval that other seeds of training would give (paired t-test) to differences, float64 [S]."""
    mean, half = differences.mean(), np.nan
    if len(differences) > 1:
        half = t.ppf(0.975, len(differences) - 1) * sem(differences)
    return Interval(float(mean), float(mean - half), float(mean + half))


def paired_differences(first: Results, second: Results, metrics: list[str]) -> np.ndarray:
    """Return how much better the second result is for each user that both have, in the first's order: float64 [U, M].

    Where one names no users, they must be the same in the same order. Raises InputError where targets differ.
    """
    before, after = first.per_user(metrics), second.per_user(metrics)
    if first.users and second.users:
        rows = {user: row for row, user in enumerate(second.users)}
        both = [row for row, user in enumerate(first.users) if user in rows]
        others = [rows[first.users[row]] for row in both]
        if any(first.targets[row] != second.targets[other] for row, other in zip(both, others, strict=True)):
            raise InputError("users have other targets in one result than in the other: their data or splits differ")
        before, after = before[both], after[others]
    return after - before
