import numpy as np

from data.interactions import Interactions
from evaluation.popularity import most_popular, popularity_recommendations

# Training interactions (all but the last two of each user): 3 3 1 | 4 1 | none | none.
INTERACTIONS = Interactions(
    user_names=["a", "b", "c", "d"],
    user_ids=np.arange(1, 5),
    item_names=["[PAD]", "w", "x", "y", "z", "never"],
    items=np.asarray([3, 3, 1, 2, 2, 4, 1, 2, 2, 2, 2, 2], dtype=np.int32),
    offsets=np.asarray([0, 5, 9, 11, 12]),
)


def test_most_popular_counts_training_interactions_only():
    assert most_popular(INTERACTIONS, 5).tolist() == [1, 3, 4, 2, 5]  # equal counts by item id
    assert most_popular(INTERACTIONS, 2).tolist() == [1, 3]


def test_everyone_gets_the_same_items():
    recommended, targets = popularity_recommendations(INTERACTIONS, "test", 3)
    assert recommended.tolist() == [[1, 3, 4]] * 3
    assert targets.tolist() == [2, 2, 2]
    assert popularity_recommendations(INTERACTIONS, "valid", 3)[1].tolist() == [2, 2]
