"""Splits, vocabulary and batches against the reference code's, for any case in the golden format."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data.batching import Batch
from data.interactions import SPLITS
from data.token_table import Vocabulary, read_sem_ids


def assert_same_batch(batch: Batch, tensors: dict[str, torch.Tensor], prefix: str) -> None:
    """Compare a batch with the golden one, which is padded to the longest possible row."""
    expected = tensors[f"{prefix}/input_ids"]
    width = expected.shape[1]
    padded = F.pad(batch.input_ids, (0, width - batch.input_ids.shape[1]))
    assert torch.equal(padded, expected)
    assert torch.equal(batch.labels, tensors[f"{prefix}/labels"])
    mask = torch.arange(width) < batch.lengths.unsqueeze(1)
    assert torch.equal(mask, tensors[f"{prefix}/attention_mask"].bool())


@pytest.mark.parametrize("split", SPLITS)
def test_splits(world, split: str):
    expected = json.loads((world.case.folder / "splits.json").read_text())[split]
    interactions, max_items = world.interactions, world.tokenization.max_item_seq_len
    names = interactions.item_names
    ours = [
        [
            interactions.user_names[interactions.users_of(position)],
            [names[item] for item in interactions.history(position, max_items)],
            names[interactions.items[position]],
        ]
        for position in world.positions(split).tolist()
    ]
    assert ours == expected


def test_semantic_ids(world):
    codes = np.load(world.case.folder / "sem_ids_codes.npy")
    assert [group.epoch for group in world.table.groups] == sorted(group.epoch for group in world.table.groups)
    assert len(codes) == world.table.num_groups
    names, sizes = world.interactions.item_names[1:], world.vocabulary.sizes
    for group, expected, tokens in zip(world.table.groups, codes, world.table.tokens, strict=True):
        ours = read_sem_ids(group.file, names, sizes)
        assert np.array_equal(ours[:, :-1], expected)
        assert np.array_equal(tokens[1:].numpy() - ours, np.tile(world.vocabulary.level_offsets, (len(names), 1)))
        assert not tokens[0].any()


def test_vocabulary_numbers(world):
    numbers, vocabulary = world.case.recommender_json, world.vocabulary
    assert vocabulary.size == numbers["vocab_size"]
    assert vocabulary.eos_token == numbers["eos_token"]
    assert vocabulary.base_user_token == numbers["base_user_token"]
    five = Vocabulary(vocabulary.sizes, 5)
    assert five.size == numbers["vocab_size_5_user_tokens"]
    assert five.eos_token == numbers["eos_token_5_user_tokens"]


def test_batches(world):
    tensors = world.case.recommender
    prefixes = [name.removesuffix("/labels") for name in tensors if name.startswith("batch/") and "labels" in name]
    assert len(prefixes) >= world.table.num_groups
    for prefix in prefixes:
        _, split, group = prefix.split("/")
        assert_same_batch(world.tokenization.batch(world.positions(split), int(group)), tensors, prefix)


def test_batch_with_five_user_tokens(world):
    tokenization = world.with_user_tokens(5)
    tensors = world.case.recommender
    names = [name for name in tensors if name.startswith("batch_5_user_tokens/") and name.endswith("labels")]
    assert names
    for name in names:
        _, split, group, _ = name.split("/")
        batch = tokenization.batch(world.positions(split), int(group))
        assert_same_batch(batch, tensors, name.removesuffix("/labels"))
