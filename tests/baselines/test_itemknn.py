from types import SimpleNamespace

import numpy as np
import pytest

from baselines.itemknn import ItemKNN, Parameters, neighbours
from data.interactions import training_part
from evaluation.metrics import target_ranks

# Pairs of x_1..x_{m-2}: 1 1 2 | 1 2 4 | 1 2 5 7 8. Side by side 1, with one between 1 / 2; 1 beside 1 is left out.
FORWARD = {
    **{(1, 2): 3.5, (1, 4): 0.5, (1, 5): 0.5, (2, 4): 1, (2, 5): 1, (2, 7): 0.5},
    **{(5, 7): 1, (5, 8): 0.5, (7, 8): 1},
}
COUNTS = {1: 4, 2: 3}  # the others occur once


def by_hand(backward: float, power: float) -> np.ndarray:
    """Return float [20, 20] for the pairs above."""
    matrix = np.zeros((20, 20))
    for (one, other), count in FORWARD.items():
        scaled = count / (COUNTS.get(one, 1) * COUNTS.get(other, 1)) ** power
        matrix[one - 1, other - 1] = scaled
        matrix[other - 1, one - 1] = backward * scaled
    return matrix


@pytest.mark.parametrize(("backward", "power"), [(0.5, 0.0), (0.0, 0.0), (1.0, 0.5), (0.3, 0.25)])
def test_neighbours_are_counted_by_direction_distance_and_popularity(data, backward, power):
    found = neighbours(data.training, Parameters(window=2, backward=backward, power=power))
    assert found.toarray() == pytest.approx(by_hand(backward, power), rel=1e-6)


def test_ranks_and_metrics_are_those_computed_by_hand(config, data):
    """History 1 1 2 3: 3 has no neighbours; 2 counts 1/2, the 1s 1/4 and 1/8. Item 2 gets 3/8 x 3.5 = 1.3125, item 1
    1/2 x 1.75 = .875, items 4 and 5 .6875 each, item 7 .25: the target, 1, is second.
    History 1 2 4 9: item 2 gets .6875, item 1 .5625: the target, 2, is first.
    History 1 2 5 7 8 2: all six items with neighbours have a score, then by popularity and id 3 and 6, the target.
    History 3: by popularity 1, 2, then 4, the target.
    """
    method = ItemKNN(config, data, Parameters(window=2, backward=0.5, power=0.0, decay=0.5))
    items, scores = method.recommend(data.test, 10)
    assert items[0, :5].tolist() == [2, 1, 4, 5, 7]
    assert scores[0, :5] == pytest.approx([1.3125, 0.875, 0.6875, 0.6875, 0.25], abs=1e-5)
    assert items[3].tolist() == [1, 2, 4, 5, 7, 8, 3, 6, 9, 10]
    assert target_ranks(items, data.interactions.items[data.test]).tolist() == [1, 0, 7, 2]
    metrics = method.metrics(data.interactions, data.test, ["recall@5", "ndcg@5"])
    assert metrics == pytest.approx({"recall@5": 3 / 4, "ndcg@5": (1 / np.log2(3) + 1 + 1 / 2) / 4})


def test_only_the_last_items_are_read(config, data):
    config.max_item_seq_len = 1
    method = ItemKNN(config, data, Parameters(window=2, backward=0.5, power=0.0, decay=0.5))
    items, scores = method.recommend(data.test[2:3], 4)  # after item 2 alone
    assert items.tolist() == [[1, 4, 5, 7]]
    assert scores[0] == pytest.approx([1.75, 1, 1, 0.5], abs=1e-5)


def test_later_items_change_no_neighbour(data):
    before = neighbours(data.training, Parameters()).toarray()
    last = np.concatenate([data.test, data.valid])
    data.interactions.items[last] = 20 - data.interactions.items[last]
    assert np.array_equal(neighbours(training_part(data.interactions), Parameters()).toarray(), before)


def test_validation_chooses_the_best_parameters(config, data):
    tried: list[dict] = []
    run = SimpleNamespace(emit=lambda event, values, *_: tried.append(values))
    chosen = ItemKNN.learn(config, data, run)
    best = max(tried, key=lambda values: values["score"])
    assert chosen.best == {name: best[name] for name in ("window", "backward", "power", "decay")}
    assert chosen.metrics(data.interactions, data.valid, ["ndcg@10"])["ndcg@10"] == best["score"]
    assert len({values["score"] for values in tried}) > 1
