from pathlib import Path

import numpy as np
import pytest
import torch

from data.batching import Stream, Tokenization, TrainingOrder, random_share, random_stream
from data.interactions import load_interactions, split_positions
from data.token_table import Vocabulary, load_token_table, resolve_groups


@pytest.fixture(params=[1, 4])
def tokenization(dataset: Path, request: pytest.FixtureRequest) -> Tokenization:
    interactions = load_interactions(dataset)
    vocabulary = Vocabulary((8,) * 4, n_user_tokens=request.param)
    table = load_token_table(resolve_groups(dataset), interactions.item_names[1:], vocabulary)
    return Tokenization(interactions, table, max_item_seq_len=6)


def tokenize_one(tokenization: Tokenization, position: int, group: int) -> tuple[list[int], list[int]]:
    """Tokenize one example the plain way."""
    interactions, tokens = tokenization.interactions, tokenization.table.tokens[group].tolist()
    vocabulary = tokenization.table.vocabulary
    user = next(user for user in range(interactions.num_users) if position < interactions.offsets[user + 1])
    sequence = interactions.items[interactions.offsets[user] : position].tolist()
    row = [vocabulary.base_user_token + int(interactions.user_ids[user]) % vocabulary.n_user_tokens]
    for item in sequence[-tokenization.max_item_seq_len :]:
        row += tokens[item]
    return [*row, vocabulary.eos_token], [*tokens[interactions.items[position]], vocabulary.eos_token]


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_batches_equal_a_plain_loop(tokenization: Tokenization, split: str):
    rng = np.random.default_rng(1)
    positions = rng.permutation(split_positions(tokenization.interactions.offsets, split))
    groups = rng.integers(3, size=len(positions))
    batch = tokenization.batch(positions, groups)
    assert len(batch) == len(positions)
    for row, (position, group) in enumerate(zip(positions.tolist(), groups.tolist(), strict=True)):
        input_ids, labels = tokenize_one(tokenization, position, group)  # history and target by the same group
        padding = [0] * (batch.input_ids.shape[1] - len(input_ids))
        assert batch.input_ids[row].tolist() == input_ids + padding
        assert batch.labels[row].tolist() == labels
        assert batch.lengths[row] == len(input_ids)
    assert batch.input_ids.shape[1] == batch.lengths.max()
    assert batch.input_ids.dtype == batch.labels.dtype == torch.int64


def test_one_group_for_all(tokenization: Tokenization):
    positions = split_positions(tokenization.interactions.offsets, "valid")
    one, many = tokenization.batch(positions, 2), tokenization.batch(positions, np.full(len(positions), 2))
    assert torch.equal(one.input_ids, many.input_ids)
    assert torch.equal(one.labels, many.labels)
    assert not torch.equal(one.labels, tokenization.batch(positions, 1).labels)


def test_the_last_position_of_all(tokenization: Tokenization):
    last = np.asarray([len(tokenization.interactions.items) - 1])
    batch = tokenization.batch(last, 0)
    assert (batch.input_ids[0].tolist(), batch.labels[0].tolist()) == tokenize_one(tokenization, int(last[0]), 0)


def test_by_length_and_batches(tokenization: Tokenization):
    positions = split_positions(tokenization.interactions.offsets, "train")
    ordered = tokenization.by_length(positions)
    lengths = tokenization.history_lengths(ordered)
    assert sorted(ordered.tolist()) == sorted(positions.tolist())
    assert (np.diff(lengths) <= 0).all()
    assert lengths.max() == 6
    assert all((np.diff(ordered[lengths == length]) > 0).all() for length in np.unique(lengths))  # stable
    parts = list(tokenization.batches(ordered, 1, 16))
    assert [len(batch) for _, batch in parts] == [16] * (len(ordered) // 16) + [len(ordered) % 16]
    assert np.concatenate([part for part, _ in parts]).tolist() == ordered.tolist()


SHAPES = [(1, 1), (2, 1), (3, 2), (1, 4), (4, 1)]


def walk(num_examples: int, batch_size: int, processes: int, accumulation: int) -> list[list[list[slice]]]:
    """Return [step][process][round] slices of every process's micro-batches."""
    orders = [
        TrainingOrder(np.arange(num_examples), batch_size, processes, index, accumulation) for index in range(processes)
    ]
    return [[order.micro_batches(step)[0] for order in orders] for step in range(orders[0].steps_per_epoch)]


@pytest.mark.parametrize(("processes", "accumulation"), SHAPES)
@pytest.mark.parametrize("num_examples", [1, 5, 24, 47, 97])
def test_micro_batches_cover_each_example_once(num_examples: int, processes: int, accumulation: int):
    order = TrainingOrder(np.arange(num_examples), 4, processes, 0, accumulation)
    seen = []
    for step, per_process in enumerate(walk(num_examples, 4, processes, accumulation)):
        in_step = [part for parts in per_process for part in parts]
        assert len(in_step) == processes * accumulation
        sizes = [part.stop - part.start for part in in_step]
        assert max(sizes) - min(sizes) <= 1  # nearly equal
        assert max(sizes) <= 4
        assert sum(sizes) == order.micro_batches(step)[1]
        seen += [example for part in in_step for example in range(part.start, part.stop)]
    assert sorted(seen) == list(range(num_examples))
    assert order.steps_per_epoch == -(-num_examples // (4 * processes * accumulation))
    assert order.batches_per_epoch == -(-num_examples // 4)


def test_same_global_batch_same_data():
    """What a step sees depends on the global batch alone, and so does the cut into micro-batches."""

    def cuts(processes: int, accumulation: int) -> list[list[tuple[int, int]]]:
        return [
            sorted((part.start, part.stop) for parts in per_process for part in parts)
            for per_process in walk(101, 4, processes, accumulation)
        ]

    assert cuts(4, 1) == cuts(2, 2) == cuts(1, 4)
    probabilities = np.full(3, 1 / 3)
    one = TrainingOrder(np.arange(101), 16, 1, 0, 1, seed=5)
    four = [TrainingOrder(np.arange(101), 4, 4, index, 1, seed=5) for index in range(4)]
    assert one.steps_per_epoch == four[0].steps_per_epoch
    for order in four:
        assert np.array_equal(one.epoch(2, probabilities), order.epoch(2, probabilities))
    for step in range(one.steps_per_epoch):
        whole, size = one.micro_batches(step)
        parts = sorted((order.micro_batches(step)[0][0] for order in four), key=lambda part: part.start)
        assert [example for part in parts for example in range(part.start, part.stop)] == list(
            range(whole[0].start, whole[0].stop)
        )
        assert {order.micro_batches(step)[1] for order in four} == {size}


def test_an_epoch_is_a_pure_function_of_seed_and_epoch():
    order = TrainingOrder(np.arange(100, 300), 8, seed=3)
    probabilities = np.asarray([0.2, 0.5, 0.3])
    positions, groups = order.epoch(4, probabilities)
    for other in range(1, 4):
        order.epoch(other, probabilities)
    again = TrainingOrder(np.arange(100, 300), 32, 2, 1, seed=3).epoch(4, probabilities)
    assert np.array_equal(positions, again[0])
    assert np.array_equal(groups, again[1])
    assert sorted(positions.tolist()) == list(range(100, 300))
    different = [order.epoch(5, probabilities), TrainingOrder(np.arange(100, 300), 8, seed=4).epoch(4, probabilities)]
    for other_positions, other_groups in different:
        assert not np.array_equal(positions, other_positions)
        assert not np.array_equal(groups, other_groups)
    assert np.array_equal(positions, order.epoch(4, np.asarray([1.0]))[0])  # the order does not depend on the draws


def test_draws_follow_the_probabilities():
    probabilities = np.asarray([0.05, 0.0, 0.6, 0.35])
    order = TrainingOrder(np.arange(20_000), 8, seed=1)
    _, groups = order.epoch(1, probabilities)
    counts = np.bincount(groups, minlength=4)
    assert counts[1] == 0
    expected = probabilities[probabilities > 0] * 20_000
    chi_square = ((counts[probabilities > 0] - expected) ** 2 / expected).sum()
    assert chi_square < 13.8  # 2 degrees of freedom: exceeded once in a thousand seeds
    assert set(order.epoch(1, np.asarray([0.0, 1.0, 0.0]))[1]) == {1}


def test_streams_are_independent():
    drawn = {
        (seed, stream, epoch): random_stream(seed, stream, epoch).random()
        for seed in (0, 1)
        for stream in Stream
        for epoch in (0, 1, 2)
    }
    assert len(set(drawn.values())) == len(drawn)
    assert random_stream(0, Stream.ORDER, 1).random() == drawn[0, Stream.ORDER, 1]


def test_random_share():
    positions = np.arange(50) * 3
    share = random_share(positions, 0.3, random_stream(0, Stream.INFLUENCE_SAMPLE))
    assert len(share) == 15
    assert (np.diff(share) > 0).all()
    assert set(share) < set(positions)
    assert np.array_equal(share, random_share(positions, 0.3, random_stream(0, Stream.INFLUENCE_SAMPLE)))
    assert len(random_share(positions, 0.001, random_stream(0, Stream.ORDER))) == 1
    assert np.array_equal(random_share(positions, 1.0, random_stream(0, Stream.ORDER)), positions)


def test_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch: pytest.MonkeyPatch):
    order = TrainingOrder(np.arange(100, dtype=np.int32), 8, seed=3)
    probabilities = np.asarray([0.2, 0.5, 0.3])
    positions, groups = order.epoch(2, probabilities)
    monkeypatch.setattr("data.batching.DRAWS_AT_ONCE", 7)
    assert np.array_equal(order.epoch(2, probabilities)[1], groups)
    assert (positions.dtype, groups.dtype) == (np.int32, np.uint8)
    plain = random_stream(3, Stream.ORDER, 2).permutation(100)
    assert np.array_equal(positions, plain)
