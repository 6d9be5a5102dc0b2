"""The most-popular baseline: the same items for everyone, by number of training interactions."""

import numpy as np

from data.interactions import Interactions, split_positions, training_interactions


def most_popular(interactions: Interactions, k: int) -> np.ndarray:
    """Return the k item ids that occur most often in x_1..x_{m-2}; equally popular ones by item id."""
    counts = np.bincount(training_interactions(interactions), minlength=interactions.num_items + 1)[1:]
    return np.argsort(-counts, kind="stable")[:k] + 1


def popularity_recommendations(interactions: Interactions, split: str, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the baseline's items [users of the split, k] and the targets [users]; seen items are not excluded."""
    targets = interactions.items[split_positions(interactions.offsets, split)]
    return np.tile(most_popular(interactions, k), (len(targets), 1)), targets
