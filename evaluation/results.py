"""What is recommended to each user: result files, ensembles of them, bins of users, the most popular items."""

import math
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from data.batching import Tokenization
from data.interactions import Interactions, item_counts
from evaluation.metrics import mean_metrics, per_user, target_ranks
from utils.errors import InputError
from utils.files import read_json, write_json

OLD_NO_ITEM = "None"  # in files of the reference code, and in ours before null took its place
# What a file says in which an item has that name: all its texts are names.
NULL_IS_NO_ITEM = {"no_item": None}


@dataclass
class Predictions:
    """What one tokenizer group recommends to the U users of a split, by item id."""

    group: int  # 0-based
    positions: np.ndarray  # int [U], of the targets
    sequences: np.ndarray  # int64 [U, k, L], generated tokens, best first
    scores: np.ndarray  # float32 [U, k], mean log-probability per level
    items: np.ndarray  # int64 [U, k], item ids; 0 where the sequence is no item's
    targets: np.ndarray  # int64 [U], item ids

    def metrics(self, names: list[str]) -> dict[str, float]:
        """Return {metric name: mean over users}; a sequence that is no item is never a hit but keeps its rank."""
        return mean_metrics(target_ranks(self.items, self.targets), names)


@dataclass
class Results:
    """What was recommended to each of U users, by name: what a result file holds."""

    users: list[str]  # empty in files of the reference code
    items: list[list[str | None]]  # U lists of k names, best first; None where a sequence is no item's
    scores: list[list[float]]  # mean log-probability per level
    targets: list[str]
    levels: int | None = None  # of the sequences; None where the file has none

    @property
    def k(self) -> int:
        return len(self.items[0])

    def ranks(self) -> np.ndarray:
        """Return each target's 0-based rank, the first match, k where it is not recommended: int64 [U]."""
        rows = zip(self.items, self.targets, strict=True)
        return np.asarray([row.index(target) if target in row else len(row) for row, target in rows])

    def per_user(self, names: list[str]) -> np.ndarray:
        """Return metrics of each user, float64 [U, M]."""
        ranks = self.ranks()
        return np.stack([per_user(name, ranks) for name in names], axis=1)

    def metrics(self, names: list[str]) -> dict[str, float]:
        """Return {metric name: mean over users}."""
        return mean_metrics(self.ranks(), names)

    def invalid_share(self, k: int) -> float:
        """Return which share of the first k recommendations of all users is no item."""
        return float(np.mean([name is None for row in self.items for name in row[:k]]))

    def coverage(self, k: int, num_items: int) -> float:
        """Return which share of the items is among the first k recommendations of anybody."""
        return len({name for row in self.items for name in row[:k]} - {None}) / num_items

    def save(self, file: Path) -> None:
        """Write a result file without tokens."""
        scores = [[None if score == -math.inf else score for score in row] for row in self.scores]
        content = {"users": self.users, "scores": scores, "pred_ids": self.items, "label_ids": self.targets}
        said = NULL_IS_NO_ITEM if any(OLD_NO_ITEM in row for row in self.items) else {}
        write_json(file, {name: value for name, value in content.items() if value} | said, indent=None)


def write_results(file: Path, predictions: Predictions, tokenization: Tokenization) -> None:
    """Write a result file per user: users, preds, scores, labels (tokens with eos), pred_ids, label_ids.

    The reference code's format, but that it has no users, and the text "None" for what is null here: a sequence that is
    no item's semantic ID. The score of a place that the search could not fill is null, too, as JSON has no infinity.
    """
    interactions, table = tokenization.interactions, tokenization.table
    names = np.asarray([None, *interactions.item_names[1:]], dtype=object)
    labels = table.tokens[predictions.group].cpu().numpy()[predictions.targets]
    eos = np.full((len(labels), 1), table.vocabulary.eos_token)
    scores = predictions.scores.astype(object)
    scores[np.isneginf(predictions.scores)] = None
    result = {
        "users": [interactions.user_names[user] for user in interactions.users_of(predictions.positions)],
        "preds": predictions.sequences.tolist(),
        "scores": scores.tolist(),
        "labels": np.concatenate([labels, eos], axis=1).tolist(),
        "pred_ids": names[predictions.items].tolist(),
        "label_ids": names[predictions.targets].tolist(),
    }
    write_json(file, result | (NULL_IS_NO_ITEM if OLD_NO_ITEM in interactions.item_names else {}), indent=None)


def read_results(file: Path) -> Results:
    """Read a result file per user, this project's or the reference code's.

    Raises InputError where it is none, its columns differ in length, or it leaves open whether "None" is an item.
    """
    content = read_json(file)
    try:
        scores = [[-math.inf if score is None else score for score in row] for row in content["scores"]]
        found = Results(content.get("users", []), content["pred_ids"], scores, content["label_ids"])
        found.levels = len(content["preds"][0][0]) if content.get("preds") else None
        sizes = {len(column) for column in (found.items, found.scores, found.targets, found.users or found.targets)}
        widths = {len(row) for row in (*found.items, *found.scores)}
    except (AttributeError, IndexError, KeyError, TypeError):
        raise InputError(f"{file} is no result file per user (pred_ids, scores, label_ids)") from None
    if len(sizes) != 1 or len(widths) != 1 or not found.targets:
        raise InputError(f"{file}: users, pred_ids, scores and label_ids must be equally long, and not empty")
    if content.keys() >= NULL_IS_NO_ITEM.keys() or any(None in row for row in found.items):  # every text is a name
        return found
    if OLD_NO_ITEM not in found.targets:
        found.items = [[None if name == OLD_NO_ITEM else name for name in row] for row in found.items]
    elif not found.users:
        raise InputError(
            f'{file} has an item named "None" among its label_ids, and no users, so the reference code wrote it: its '
            '"None" among pred_ids may be this item, or a sequence that is no item'
        )
    return found


def read_comparable(files: list[Path], cutoff: int) -> list[Results]:
    """Read result files per user, of the same users, for metrics with cut-offs up to `cutoff`.

    Raises InputError where users or targets differ, or one lists fewer items, so that its misses would look like hits.
    """
    results = list(map(read_results, files))
    for file, result in zip(files, results, strict=True):
        if result.k < cutoff:
            raise InputError(f"{file} lists {result.k} items for each user: lower the cut-offs, --topk, from {cutoff}")
    for file, other in zip(files[1:], results[1:], strict=True):
        same_users = not (other.users and results[0].users) or other.users == results[0].users
        if other.targets != results[0].targets or not same_users:
            raise InputError(f"{files[0]} and {file} are results of different users or splits")
    return results


def ensemble(results: list[Results], rule: Literal["votes", "mixture"] = "votes") -> Results:
    """Join several tokenizers' results into one ranking. Equal scores stand in the order of first appearance.

    votes: An item's score is the mean of its scores over all entries that list it, plus the number of these entries;
    what is no item gets the mean alone (the reference code's rule).

    mixture: An item's score is log(p)/L of the mean p of the probabilities that the tokenizers give it, exp(L s) for L
    levels and the score s, 0 where it is not listed; what is no item is left out. This is not in the paper.

    Raises:
        InputError: For a mixture, a file does not say how many levels its semantic IDs have, or they differ.
    """
    totals = _votes if rule == "votes" else partial(_mixture, count=len(results), levels=_common_levels(results))
    joined = Results(results[0].users, [], [], results[0].targets)
    for rows in zip(*(zip(result.items, result.scores, strict=True) for result in results), strict=True):
        entries: dict[str | None, list[float]] = defaultdict(list)
        for items, scores in rows:
            for item, score in zip(items, scores, strict=True):
                entries[item].append(score)
        total = totals(entries)
        best = sorted(total, key=total.get, reverse=True)[: results[0].k]
        padding = results[0].k - len(best)  # all files list few different items
        joined.items.append(best + [None] * padding)
        joined.scores.append([total[item] for item in best] + [min(total.values(), default=0.0)] * padding)
    return joined


def _votes(entries: dict[str | None, list[float]]) -> dict[str | None, float]:
    return {
        item: sum(scores) / len(scores) + (len(scores) if item is not None else 0) for item, scores in entries.items()
    }


def _mixture(entries: dict[str | None, list[float]], count: int, levels: int) -> dict[str | None, float]:
    listed = {item: scores for item, scores in entries.items() if item is not None}
    mean = {item: sum(math.exp(levels * score) for score in scores) / count for item, scores in listed.items()}
    return {item: math.log(max(probability, 1e-300)) / levels for item, probability in mean.items()}


def _common_levels(results: list[Results]) -> int:
    levels = {result.levels for result in results}
    if len(levels) > 1 or None in levels:
        found = ", ".join(str(result.levels or "none") for result in results)
        raise InputError(
            "a mixture needs result files with the generated sequences (preds), with the same number of levels in all; "
            f"found: {found}. Take files of fine-tuning or evaluate.py, or --ensemble_rule=votes"
        )
    return levels.pop()


def most_popular(training: Interactions, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of the k items that occur most often in a training part, int64 [k], and how often, int64 [k].

    Equally popular ones stand by item id.
    """
    counts = item_counts(training)[1:]
    best = np.argsort(-counts, kind="stable")[:k]
    return best + 1, counts[best]


def user_bins(values: np.ndarray, edges: list[int]) -> dict[str, np.ndarray]:
    """Cut users into bins {"0-19": bool [U], "20-39": ..., "40+": ...} of a value, int [U]; empty ones are left out.

    Each of the rising `edges` is the lowest value of a bin; the first bin begins at 0.
    """
    bins = {}
    for low, high in pairwise([0, *edges, np.inf]):
        members = (values >= low) & (values < high)
        if members.any():
            bins[f"{low}+" if high == np.inf else f"{low}-{high - 1}" if high > low + 1 else f"{low}"] = members
    return bins
