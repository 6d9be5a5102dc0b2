"""What a baseline learns from and is judged on, and how scores become a ranking."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from baselines.config import BaselineConfig
from data.batching import training_users
from data.interactions import Interactions, dataset_folder, load_interactions, split_positions, training_part
from evaluation.metrics import mean_metrics, parse_metric, target_ranks
from training.run_folder import RunFolder
from utils.errors import InputError


@dataclass
class Data:
    """A dataset, the part of it that is learnt from, and the target positions of evaluation."""

    interactions: Interactions
    training: Interactions  # x_1..x_{m-2} of the users trained on: a method learns from nothing else
    valid: np.ndarray  # int, target positions in interactions.items
    test: np.ndarray

    def sources(self) -> dict[str, str]:
        """Return the hash of what is read."""
        return {"interactions": self.interactions.sha256}


class Baseline(ABC):
    """A method that has learnt; `best` is what validation chose: best_epoch, or parameters by name."""

    best: dict[str, object]

    @classmethod
    @abstractmethod
    def learn(cls, config: BaselineConfig, data: Data, run: RunFolder) -> "Baseline":
        """Learn from data.training, choose on data.valid, and tell the run how it went."""

    @abstractmethod
    def recommend(self, positions: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return for target positions, int [U], the k best item ids, int64 [U, k], and their scores, float32 [U, k].

        All items are ranked, seen ones too, as the generative models' search does; equal scores stand by item id.
        """

    def metrics(self, interactions: Interactions, positions: np.ndarray, names: list[str]) -> dict[str, float]:
        """Return {metric name: mean over users}."""
        items, _ = self.recommend(positions, max(parse_metric(name)[1] for name in names))
        return mean_metrics(target_ranks(items, interactions.items[positions]), names)

    def save(self, folder: Path) -> None:  # noqa: B027  (most have nothing)
        """Write into the run's folder what others may use of the method."""


class Scorer(Baseline):
    """A method that gives every item a score, of what it reads of a history."""

    def __init__(self, config: BaselineConfig, interactions: Interactions):
        self.config, self.interactions = config, interactions

    @abstractmethod
    def scores(self, positions: np.ndarray, lengths: np.ndarray) -> Tensor:
        """Return the scores of the ids 1..N after the last `lengths` items, int [B], before positions, int [B]: [B, N].

        Positions are places in `interactions.items`; scores are float32.
        """

    def recommend(self, positions: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the items with the highest scores; see `Baseline`."""
        starts = self.interactions.offsets[self.interactions.users_of(positions)]
        lengths = np.minimum(positions - starts, self.config.max_item_seq_len)
        order, size, found = np.argsort(lengths, kind="stable"), self.config.eval_batch_size, []
        for start in range(0, len(order), size):
            part = order[start : start + size]
            found.append(best_items(self.scores(positions[part], lengths[part]), k))
        items, scores = (torch.cat(parts).cpu().numpy()[np.argsort(order)] for parts in zip(*found, strict=True))
        return items, scores


def load_data(config: BaselineConfig) -> Data:
    """Read the dataset and cut it; InputError where a split is empty."""
    folder = dataset_folder(config.data_dir, config.dataset)
    interactions = load_interactions(folder)
    trained_on = training_users(interactions.num_users, config.train_user_ratio, config.rand_seed)
    training = training_part(interactions, trained_on)
    valid, test = (split_positions(interactions.offsets, split) for split in ("valid", "test"))
    if config.val_users == "new":
        valid = valid[~trained_on[interactions.users_of(valid)]]
    if max(config.topk) > interactions.num_items:
        raise InputError(f"{folder} has {interactions.num_items} items; lower the cut-offs, --topk={config.topk}")
    needed = 2 if config.method == "sasrec" else 1  # of a single item there is no next one to learn
    learnt = np.flatnonzero(np.diff(training.offsets) >= needed)
    empty = [name for name, part in (("train", learnt), ("valid", valid), ("test", test)) if len(part) == 0]
    if empty:
        raise InputError(
            f"{folder}: no user has enough items for {' and '.join(empty)} examples; bring users of at least 4"
        )
    return Data(interactions, training, valid, test)


def sequences(items: np.ndarray, ends: np.ndarray, lengths: np.ndarray, device: torch.device) -> Tensor:
    """Return items[end - length:end] for each of B rows as int64 [B, longest], padded with 0 at the end."""
    slots = np.arange(lengths.max())
    where = np.minimum((ends - lengths)[:, None] + slots, len(items) - 1)
    return torch.from_numpy(np.where(slots < lengths[:, None], items[where], 0).astype(np.int64)).to(device)


def best_items(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ids of the k best items, int64 [B, k], and their scores; equal scores stand by item id.

    `scores` are float32 [B, N], those of the ids 1..N.
    """
    lowest = scores.topk(k).values[:, -1:]
    rows, places = (scores >= lowest).nonzero(as_tuple=True)  # by row, then by id; more than k where scores are equal
    order = scores[rows, places].argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]
    firsts = torch.searchsorted(rows, torch.arange(len(scores), device=scores.device))
    best = places[order[firsts.unsqueeze(1) + torch.arange(k, device=scores.device)]]
    return best + 1, scores.gather(1, best)
