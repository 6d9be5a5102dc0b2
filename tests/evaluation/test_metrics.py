import math

import numpy as np
import pytest

from evaluation.metrics import mean_metrics, parse_metric, per_user, target_ranks

# Six users, three recommendations each: hit at rank 0, at 2, twice (the first counts), no hit, after a non-item, none.
RECOMMENDED = np.asarray([[7, 1, 2], [1, 2, 7], [4, 7, 7], [1, 2, 3], [0, 0, 7], [0, 0, 0]])
TARGETS = np.asarray([7, 7, 7, 7, 7, 7])
RANKS = [0, 2, 1, 3, 2, 3]


def test_ranks():
    assert target_ranks(RECOMMENDED, TARGETS).tolist() == RANKS


def test_what_is_no_item_is_never_a_hit():
    assert target_ranks(np.asarray([[0, -1, 5]]), np.asarray([0])).tolist() == [3]
    assert target_ranks(np.asarray([[0, -1, 5]]), np.asarray([-1])).tolist() == [3]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("recall@1", [1, 0, 0, 0, 0, 0]),
        ("recall@2", [1, 0, 1, 0, 0, 0]),
        ("recall@3", [1, 1, 1, 0, 1, 0]),
        ("mrr@2", [1, 0, 1 / 2, 0, 0, 0]),
        ("mrr@3", [1, 1 / 3, 1 / 2, 0, 1 / 3, 0]),
        ("ndcg@1", [1, 0, 0, 0, 0, 0]),
        ("ndcg@2", [1, 0, 1 / math.log2(3), 0, 0, 0]),
        ("ndcg@3", [1, 0.5, 1 / math.log2(3), 0, 0.5, 0]),
    ],
)
def test_per_user_tables(name: str, expected: list[float]):
    assert per_user(name, np.asarray(RANKS)).tolist() == pytest.approx(expected)


def test_means():
    expected = {"recall@3": 4 / 6, "ndcg@3": (2 + 1 / math.log2(3)) / 6}
    assert mean_metrics(np.asarray(RANKS), ["recall@3", "ndcg@3"]) == pytest.approx(expected)


def test_parse_metric():
    assert parse_metric("ndcg@10") == ("ndcg", 10)
    assert parse_metric("recall@5") == ("recall", 5)
    for name in ("map@10", "Recall@5", "NDCG@10", "ndcg", "ndcg@0", "ndcg@", "ndcg@5.0", "@5"):
        with pytest.raises(ValueError, match="is no metric"):
            parse_metric(name)


def test_against_ranx(monkeypatch: pytest.MonkeyPatch):
    numba = pytest.importorskip("numba")
    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)  # compiling takes half a minute
    ranx = pytest.importorskip("ranx")
    rng = np.random.default_rng(0)
    recommended = np.stack([rng.permutation(30)[:10] + 1 for _ in range(80)])
    targets = rng.integers(1, 31, size=80)
    relevant = {f"u{user}": {str(item): 1} for user, item in enumerate(targets)}
    run = {
        f"u{user}": {str(item): 1.0 - 0.05 * rank for rank, item in enumerate(row)}
        for user, row in enumerate(recommended)
    }
    names = ["recall@5", "recall@10", "ndcg@5", "ndcg@10", "mrr@5", "mrr@10"]
    theirs = ranx.evaluate(ranx.Qrels(relevant), ranx.Run(run), names)
    ours = mean_metrics(target_ranks(recommended, targets), names)
    assert ours == pytest.approx(dict(theirs), rel=1e-9)
    assert 0 < ours["ndcg@5"] < ours["recall@10"] < 1
