"""The most popular items, the same for everybody."""

import numpy as np

from baselines.config import BaselineConfig
from baselines.data import Baseline, Data
from evaluation.results import most_popular
from training.run_folder import RunFolder


class Popular(Baseline):
    """Recommends what occurs most often in the training part."""

    def __init__(self, data: Data):
        self.training, self.best = data.training, {}

    @classmethod
    def learn(cls, config: BaselineConfig, data: Data, run: RunFolder) -> "Popular":
        """Return the method; there is nothing to choose."""
        return cls(data)

    def recommend(self, positions: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the same items for all; see `Baseline`."""
        items, counts = most_popular(self.training, k)
        shape = (len(positions), len(items))
        return np.broadcast_to(items, shape), np.broadcast_to(counts.astype(np.float32), shape)
