"""What others had after a user's last items: neighbours of items, counted, not trained."""

import time
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from scipy.sparse import csr_array, diags_array
from torch import Tensor

from baselines.config import BaselineConfig
from baselines.data import Data, Scorer
from data.interactions import Interactions, item_counts
from training.run_folder import RunFolder

POPULARITY = 1e-6  # weight of an item's share of all interactions: it orders the items that no neighbour names


@dataclass(frozen=True)
class Parameters:
    """What validation chooses."""

    window: int = 10  # two items of a user are neighbours if they are at most that many places apart
    backward: float = 0.3  # weight of a neighbour that came before; one that came after has 1
    power: float = 0.25  # counts are divided by the product of both items' interactions to this power; 0.5 is cosine
    decay: float = 0.4  # weight of the last item but one; the last has 1, others a power of this


# Tried one after the other, each with the best of those before.
CHOICES = {
    "window": (3, 10, 30),
    "backward": (0.0, 0.1, 0.3, 1.0),
    "power": (0.0, 0.25, 0.5),
    "decay": (0.2, 0.4, 0.7),
}


def neighbours(training: Interactions, parameters: Parameters) -> csr_array:
    """Return how much item id i + 1 speaks for id j + 1: float32 [N, N], sparse, 0 for itself.

    A pair of a user's items counts 1 / its distance in places.
    """
    size, users = training.num_items, training.users_of(np.arange(len(training.items)))
    items, pairs = training.items.astype(np.int64) - 1, []
    longest = int(np.diff(training.offsets).max())
    for distance in range(1, max(1, min(parameters.window, longest - 1)) + 1):
        same = users[distance:] == users[:-distance]
        weights = np.full(same.sum(), 1 / distance, dtype=np.float32)
        pairs.append((weights, items[:-distance][same], items[distance:][same]))
    weights, before, after = map(np.concatenate, zip(*pairs, strict=True))
    different = before != after
    found = csr_array((weights[different], (before[different], after[different])), shape=(size, size))
    if parameters.backward:
        found = found + parameters.backward * found.T
    counts = np.maximum(item_counts(training)[1:], 1)
    scale = diags_array(counts.astype(np.float32) ** -parameters.power)
    return csr_array(scale @ found @ scale)


class ItemKNN(Scorer):
    """Sums the neighbours of a user's items, late items with more weight."""

    def __init__(self, config: BaselineConfig, data: Data, parameters: Parameters):
        super().__init__(config, data.interactions)
        self.decay, self.best = parameters.decay, asdict(parameters)
        self.neighbours = neighbours(data.training, parameters)
        share = item_counts(data.training)[1:] / len(data.training.items)
        self.popularity = torch.from_numpy((POPULARITY * share).astype(np.float32))

    @classmethod
    def learn(cls, config: BaselineConfig, data: Data, run: RunFolder) -> "ItemKNN":
        """Return the method with the parameters that are best on validation, the first of equals."""
        best, best_score = Parameters(), -1.0
        for name, values in CHOICES.items():
            for value in values:
                started, tried = time.perf_counter(), replace(best, **{name: value})
                mean = cls(config, data, tried).metrics(data.interactions, data.valid, [config.val_metric])
                score = mean[config.val_metric]
                values = {**asdict(tried), "score": score, "seconds": time.perf_counter() - started}
                run.emit("choice", values, {}, 0, f"{name} {value:g}  validation {config.val_metric} {score:.4f}")
                if score > best_score:
                    best, best_score = tried, score
        return cls(config, data, best)

    def scores(self, positions: np.ndarray, lengths: np.ndarray) -> Tensor:
        """Return the weighted sums of neighbours; see `Scorer`."""
        rows = np.repeat(np.arange(len(positions)), lengths)
        back = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(rows))  # 1 for the last item
        items = self.interactions.items[positions[rows] - back] - 1
        weights = (self.decay ** (back - 1.0)).astype(np.float32)
        history = csr_array((weights, (rows, items)), shape=(len(positions), len(self.popularity)))
        return torch.from_numpy((history @ self.neighbours).toarray()) + self.popularity
