"""How far apart tokenizers are: the share of items whose semantic IDs differ."""

import numpy as np


def distances(sem_ids: np.ndarray) -> np.ndarray:
    """Return the share of items in whose semantic IDs two tokenizers differ, for every pair: float64 [G, G].

    Source: arXiv 2504.04400, Table 5 ("any token"). Takes int [G, N, L]; some levels alone are a slice of it.
    """
    return np.array([(sem_ids != one).any(axis=2).mean(axis=1) for one in sem_ids])


def most_central(matrix: np.ndarray, count: int) -> list[int]:
    """Return the tokenizers that, by their `distances`, are nearest to all others on average: 0-based, in rising order.

    The epochs of a training are a walk, so these are in its middle; with equal distances the middle ones are taken.
    """
    mean = matrix.mean(axis=1)
    from_middle = abs(np.arange(len(mean)) - (len(mean) - 1) / 2)
    return sorted(np.lexsort((from_middle, mean.round(9)))[:count].tolist())
