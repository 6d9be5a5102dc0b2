"""Recall@K, NDCG@K and MRR@K of one relevant item per user, from the rank of the target."""

import re
from collections.abc import Callable

import numpy as np

# The gain of a target within the cut-off, from its 0-based ranks, float64 [U]; beyond the cut-off it is 0 for all.
METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "recall": np.ones_like,
    "ndcg": lambda ranks: 1 / np.log2(ranks + 2),
    "mrr": lambda ranks: 1 / (ranks + 1),
}


def parse_metric(name: str) -> tuple[str, int]:
    """Split "ndcg@10" into ("ndcg", 10); raise ValueError for a name of another form."""
    match = re.fullmatch(r"([a-z]+)@([1-9]\d*)", name)
    if not match or match[1] not in METRICS:
        raise ValueError(f"{name!r} is no metric; expected {' or '.join(METRICS)} with a cut-off, such as ndcg@10")
    return match[1], int(match[2])


def target_ranks(recommended: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the 0-based rank of each target, the first match; k where it is not recommended.

    Args:
        recommended: int [U, k], best first; what is no item (0 or less) keeps its rank and is never a hit.
        targets: int [U], from 1.
    """
    hits = (recommended == targets[:, None]) & (recommended > 0)
    return np.where(hits.any(axis=1), hits.argmax(axis=1), recommended.shape[1])


def per_user(name: str, ranks: np.ndarray) -> np.ndarray:
    """Return a metric's value for each user, float64 [U]; `ranks` are 0-based, at least the cut-off for a miss."""
    metric, cutoff = parse_metric(name)
    return (ranks < cutoff) * METRICS[metric](ranks.astype(np.float64))


def mean_metrics(ranks: np.ndarray, names: list[str]) -> dict[str, float]:
    """Return {metric name: mean over users}."""
    return {name: float(per_user(name, ranks).mean()) for name in names}


def metric_titles(names: list[str]) -> dict[str, str]:
    """Return {metric: title}, recall before NDCG, small cut-offs first: {"recall@5": "Recall@5", ...}."""
    ordered = sorted(names, key=lambda name: (parse_metric(name)[0] != "recall", parse_metric(name)[1]))
    return {name: name.replace("recall", "Recall").replace("ndcg", "NDCG") for name in ordered}
