"""Distances between tokenizers, and which are in their middle."""

import numpy as np

from data.distances import distances, most_central


def walk(num_tokenizers: int) -> np.ndarray:
    """Tokenizers [G, 20, 2]; from one to the next one more item changes its last code."""
    places = np.arange(num_tokenizers)[:, None]
    return np.stack([np.zeros((num_tokenizers, 20), int), (np.arange(20) < places).astype(int)], axis=2)


def test_distance_is_the_share_of_items_that_differ():
    found = distances(walk(3))
    assert found.tolist() == [[0, 0.05, 0.1], [0.05, 0, 0.05], [0.1, 0.05, 0]]
    assert distances(walk(3)[:, :, :1]).max() == 0


def test_the_middle_of_a_walk_is_most_central():
    assert most_central(distances(walk(9)), 3) == [3, 4, 5]
    assert most_central(distances(walk(9)), 1) == [4]
    assert most_central(distances(walk(2)), 3) == [0, 1]  # no more are there


def test_equal_distances_take_the_middle():
    unrelated = np.arange(5)[:, None, None] * np.ones((5, 20, 2), int)
    assert most_central(distances(unrelated), 1) == [2]


def test_an_outlier_is_not_central():
    ids = walk(5)
    ids[2] = 9
    assert 2 not in most_central(distances(ids), 4)
