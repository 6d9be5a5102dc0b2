import math

import numpy as np
import pytest
from scipy.stats import ttest_rel

from evaluation.compare import Interval, bootstrap_over_users, paired_differences, t_interval_over_seeds
from evaluation.results import Results
from utils.errors import InputError


def test_bootstrap_of_a_share_is_near_the_textbooks_interval():
    found = bootstrap_over_users(np.array([1.0] * 20 + [0.0] * 80))
    half = 1.959964 * math.sqrt(0.2 * 0.8 / 99)
    assert found.mean == 0.2
    assert (found.low, found.high) == pytest.approx((0.2 - half, 0.2 + half), abs=0.01)


def test_bootstrap_draws_the_same_users_for_every_metric():
    values = np.random.default_rng(0).normal(size=(50, 3))
    together = bootstrap_over_users(values, resamples=100, seed=1)
    for column, interval in zip(values.T, together, strict=True):
        alone = bootstrap_over_users(column, resamples=100, seed=1)
        assert (alone.mean, alone.low, alone.high) == pytest.approx((interval.mean, interval.low, interval.high))
    assert together != bootstrap_over_users(values, resamples=100, seed=2)


def test_t_interval_is_the_paired_t_tests():
    first, second = np.array([0.1, 0.13, 0.12, 0.09]), np.array([0.12, 0.14, 0.16, 0.1])
    expected = ttest_rel(second, first).confidence_interval(0.95)
    found = t_interval_over_seeds(second - first)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(0.02)


@pytest.mark.parametrize("interval", [bootstrap_over_users, t_interval_over_seeds])
def test_one_has_no_interval(interval):
    found = interval(np.array([0.5]))
    assert isinstance(found, Interval)
    assert found.mean == 0.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_bootstrap_of_hits_is_near_the_normal_approximation():
    rng = np.random.default_rng(0)
    rows = {True: ["x", "y"], False: ["y", "z"]}
    hits = rng.random((2, 4000)) < [[0.3], [0.4]]
    first, second = (Results([], [rows[bool(hit)] for hit in row], [[]] * 4000, ["x"] * 4000) for row in hits)
    difference = hits[1].astype(float) - hits[0]
    error = difference.std() / np.sqrt(4000)
    for found in bootstrap_over_users(paired_differences(first, second, ["recall@2", "mrr@2"]), 1000, seed=1):
        assert found.mean == pytest.approx(difference.mean())
        assert found.low == pytest.approx(difference.mean() - 1.96 * error, abs=0.15 * error)
        assert found.high == pytest.approx(difference.mean() + 1.96 * error, abs=0.15 * error)
    same = bootstrap_over_users(paired_differences(first, first, ["recall@2"]), 10, seed=1)
    assert same == [Interval(0, 0, 0)]


def test_differences_are_of_the_users_that_both_have():
    first = Results(["u", "v", "w"], [["a"], ["a"], ["b"]], [[-1.0]] * 3, ["a", "a", "a"])
    second = Results(["w", "u", "x"], [["a"], ["b"], ["a"]], [[-1.0]] * 3, ["a", "a", "a"])
    assert paired_differences(first, second, ["recall@1", "mrr@1"]).tolist() == [[-1, -1], [1, 1]]  # u, w
    unnamed = Results([], second.items, second.scores, second.targets)
    assert paired_differences(first, unnamed, ["recall@1"]).tolist() == [[0], [-1], [1]]
    other = Results(second.users, second.items, second.scores, ["a", "b", "a"])  # u has another target
    with pytest.raises(InputError, match="users have other targets in one result than in the other"):
        paired_differences(first, other, ["recall@1"])
