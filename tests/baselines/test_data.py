from dataclasses import replace

import numpy as np
import pytest
import torch

from baselines.data import best_items, load_data, sequences
from utils.errors import InputError


def test_equal_scores_stand_by_item_id():
    scores = torch.tensor([[0.0, 2.0, -1.0, 2.0, 2.0], [0.0, 0.0, -0.0, 0.0, 0.0], [-3.0, -1.0, -2.0, -9.0, -1.0]])
    items, found = best_items(scores, 2)
    assert items.tolist() == [[2, 4], [1, 2], [2, 5]]
    assert found.tolist() == [[2.0, 2.0], [0.0, 0.0], [-1.0, -1.0]]


@pytest.mark.parametrize("values", [3, 1000])
def test_the_best_items_are_a_stable_sorts(values: int):
    scores = torch.from_numpy(np.random.default_rng(0).integers(values, size=(40, 200)).astype(np.float32) - values / 2)
    expected = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :10] + 1
    assert best_items(scores, 10)[0].tolist() == expected.tolist()


def test_sequences_are_the_items_before_their_ends():
    rows = sequences(np.arange(1, 8), np.asarray([3, 7]), np.asarray([2, 4]), torch.device("cpu"))
    assert rows.tolist() == [[2, 3, 0, 0], [4, 5, 6, 7]]


def test_nothing_of_validation_and_test_is_learnt_from(data):
    assert data.training.items.tolist() == [1, 1, 2, 1, 2, 4, 1, 2, 5, 7, 8]
    assert data.training.offsets.tolist() == [0, 3, 6, 11, 11]
    assert data.interactions.items[data.valid].tolist() == [3, 9, 2]
    assert data.interactions.items[data.test].tolist() == [1, 2, 6, 4]


def test_a_share_of_the_users_is_trained_on_and_the_others_validated(config):
    data = load_data(replace(config, train_user_ratio=0.5, val_users="new", rand_seed=1))
    trained_on = np.diff(data.training.offsets) > 0
    users = data.interactions.users_of(data.valid)
    assert 0 < trained_on.sum() < 3
    assert not trained_on[users].any()
    assert len(users) + trained_on.sum() == 3  # the fourth user has one item and its test
    assert len(data.test) == 4


def test_what_cannot_be_ranked_or_split_is_said(config, dataset):
    with pytest.raises(InputError, match="has 20 items; lower the cut-offs"):
        load_data(replace(config, topk=[30]))
    (dataset / "all_item_seqs.json").write_text('{"user1": ["item1", "item2"]}')
    with pytest.raises(InputError, match="no user has enough items for train and valid examples"):
        load_data(config)
