"""Result files per user: read, cut into groups, joined into an ensemble, and compared."""

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from evaluation.metrics import per_user
from utils.errors import InputError
from utils.files import read_json, write_json

NO_ITEM = "None"


@dataclass
class Results:
    """What was recommended to each of U users.

    Attributes:
        users: Names; empty in files of the reference code.
        items: U lists of k item names, best first; "None" where a sequence is no item's.
        scores: U lists of k scores.
        targets: U item names.
    """

    users: list[str]
    items: list[list[str]]
    scores: list[list[float]]
    targets: list[str]

    @property
    def k(self) -> int:
        return len(self.items[0])

    def ranks(self) -> np.ndarray:
        """Return each target's 0-based rank, the first match, k where it is not recommended: int64 [U]."""
        rows = zip(self.items, self.targets, strict=True)
        return np.asarray([row.index(target) if target in row else len(row) for row, target in rows])

    def invalid_share(self, k: int) -> float:
        """Return which share of the first k recommendations of all users is no item."""
        return float(np.mean([name == NO_ITEM for row in self.items for name in row[:k]]))

    def coverage(self, k: int, num_items: int) -> float:
        """Return which share of the items is among the first k recommendations of anybody."""
        return len({name for row in self.items for name in row[:k]} - {NO_ITEM}) / num_items

    def save(self, file: Path) -> None:
        """Write a result file without tokens."""
        content = {"users": self.users, "scores": self.scores, "pred_ids": self.items, "label_ids": self.targets}
        write_json(file, {name: value for name, value in content.items() if value}, indent=None)


def read_results(file: Path) -> Results:
    """Read a result file per user, this project's or the reference code's.

    Raises:
        InputError: It is none, or its columns differ in length.
    """
    content = read_json(file)
    try:
        found = Results(content.get("users", []), content["pred_ids"], content["scores"], content["label_ids"])
        sizes = {len(column) for column in (found.items, found.scores, found.targets, found.users or found.targets)}
        widths = {len(row) for row in (*found.items, *found.scores)}
    except (AttributeError, KeyError, TypeError):
        raise InputError(f"{file} is no result file per user (pred_ids, scores, label_ids)") from None
    if len(sizes) != 1 or len(widths) != 1 or not found.targets:
        raise InputError(f"{file}: users, pred_ids, scores and label_ids must be equally long, and not empty")
    return found


def read_comparable(files: list[Path], cutoff: int) -> list[Results]:
    """Read result files of the same users that all list enough items.

    Args:
        files: Result files per user.
        cutoff: The largest cut-off that metrics are wanted for.

    Raises:
        InputError: Two differ in users or targets, or one lists fewer items, so that its misses would look like hits.
    """
    results = [read_results(file) for file in files]
    for file, result in zip(files, results, strict=True):
        if result.k < cutoff:
            raise InputError(f"{file} lists {result.k} items for each user: lower the cut-offs, --topk, from {cutoff}")
    for file, other in zip(files[1:], results[1:], strict=True):
        same_users = not (other.users and results[0].users) or other.users == results[0].users
        if other.targets != results[0].targets or not same_users:
            raise InputError(f"{files[0]} and {file} are results of different users or splits")
    return results


def ensemble(results: list[Results]) -> Results:
    """Join several tokenizers' results into one ranking.

    An item's score is the mean of its scores over all entries that list it, plus the number of these entries; what is
    no item gets the mean alone. Equal scores stand in the order of first appearance (the reference code's rule).
    """
    joined = Results(results[0].users, [], [], results[0].targets)
    for rows in zip(*(zip(result.items, result.scores, strict=True) for result in results), strict=True):
        entries: dict[str, list[float]] = defaultdict(list)
        for items, scores in rows:
            for item, score in zip(items, scores, strict=True):
                entries[item].append(score)
        total = {
            item: sum(scores) / len(scores) + (len(scores) if item != NO_ITEM else 0)
            for item, scores in entries.items()
        }
        best = sorted(total, key=total.get, reverse=True)[: results[0].k]
        padding = results[0].k - len(best)  # all files list few different items
        joined.items.append(best + [NO_ITEM] * padding)
        joined.scores.append([total[item] for item in best] + [min(total.values())] * padding)
    return joined


@dataclass
class Difference:
    """How much better the second of two results is.

    Attributes:
        mean: Mean over users of second minus first.
        low, high: Its 95% confidence interval.
    """

    mean: float
    low: float
    high: float


def paired_bootstrap(
    first: Results, second: Results, metrics: list[str], resamples: int, seed: int
) -> dict[str, Difference]:
    """Compare two results of the same users: {metric: difference}; see `bootstrap`.

    Args:
        first, second: Results in the same order of users.
        metrics: Such as ndcg@10.
        resamples, seed: Of the bootstrap.
    """
    ranks = first.ranks(), second.ranks()
    difference = np.stack([per_user(name, ranks[1]) - per_user(name, ranks[0]) for name in metrics], axis=1)
    return dict(zip(metrics, bootstrap(difference, resamples, seed), strict=True))


def bootstrap(difference: np.ndarray, resamples: int, seed: int) -> list[Difference]:
    """Return the mean over users of each metric's difference, with its interval, by resampling users.

    Args:
        difference: float64 [U, metrics].
        resamples: How many times as many users are drawn with replacement; the interval is their percentiles.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    drawn = [difference[rng.integers(len(difference), size=len(difference))].mean(axis=0) for _ in range(resamples)]
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return [Difference(*map(float, row)) for row in zip(difference.mean(axis=0), low, high, strict=True)]


def groups_of(values: np.ndarray, edges: list[int]) -> dict[str, np.ndarray]:
    """Cut users into {"0-19": bool [U], "20-39": ..., "40+": ...} by a value; groups without users are left out.

    Args:
        values: int [U].
        edges: Rising; each is the lowest value of a group, the first group begins at 0.
    """
    bounds = [0, *edges, None]
    groups = {}
    for low, high in pairwise(bounds):
        name = f"{low}+" if high is None else f"{low}-{high - 1}"
        groups[name] = (values >= low) & (values < np.inf if high is None else values < high)
    return {name: members for name, members in groups.items() if members.any()}
