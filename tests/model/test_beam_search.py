import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from model.recommender import Recommender
from utils.prefix_trie import PrefixTrie

pytestmark = pytest.mark.usefixtures("layout")

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
NUM_LEVELS = 3
RaggedBatch = tuple[Tensor, Tensor, Tensor]


def exhaustive_scores(recommender: Recommender, batch: RaggedBatch, sequences: Tensor) -> Tensor:
    """Return the mean log-probability [B, N] of each sequence [N, L], by teacher forcing."""
    input_ids, _, lengths = batch
    scores = []
    labels = F.pad(sequences, (0, 1), value=recommender.architecture.eos_token)
    for row in range(len(input_ids)):
        many = (input_ids[row].expand(len(sequences), -1), labels, lengths[row].expand(len(sequences)))
        with torch.no_grad():
            log_probs = recommender.logits(*many)[:, :-1].log_softmax(-1)  # [N, L, V]
        scores.append(log_probs.gather(2, sequences.unsqueeze(2)).squeeze(2).mean(1))
    return torch.stack(scores)


def items(recommender: Recommender, count: int) -> Tensor:
    """Return `count` distinct semantic IDs as tokens [count, L]."""
    sizes = recommender.architecture.level_sizes
    every = torch.tensor(list(itertools.product(*map(range, sizes))))
    chosen = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(2))[:count]]
    return chosen + 1 + torch.tensor([0, *itertools.accumulate(sizes[:-1])])


def search(recommender: Recommender, batch: RaggedBatch, num_beams: int, k: int, trie: PrefixTrie | None = None):
    input_ids, _, lengths = batch
    return recommender.generate(input_ids, lengths, num_beams, k, trie)


def assert_best(found: Tensor, scores: Tensor, candidates: Tensor, expected: Tensor) -> None:
    """Check that found [B, k, L] are the k best of candidates [N, L] with scores expected [B, N]."""
    k = found.shape[1]
    best, order = expected.topk(k, dim=1)
    assert_close(scores, best, **TOLERANCE)
    apart = (-torch.diff(best, dim=1) > 1e-4).all(dim=1)
    assert apart.float().mean() > 0.5  # most rows have no near ties
    assert torch.equal(found[apart], candidates[order[apart]])


def test_wide_beams_equal_enumerating_the_whole_vocabulary(make: Callable[..., Recommender], batch: RaggedBatch):
    recommender = make()
    vocab_size = recommender.architecture.vocab_size
    everything = torch.tensor(list(itertools.product(range(vocab_size), repeat=NUM_LEVELS)))  # padding, eos and all
    few = tuple(part[:3] for part in batch)
    found, scores = search(recommender, few, num_beams=vocab_size**2, k=10)
    assert found.shape == (3, 10, NUM_LEVELS)
    assert_best(found, scores, everything, exhaustive_scores(recommender, few, everything))


def test_narrow_beams_keep_the_best_prefixes(recommender: Recommender, batch: RaggedBatch):
    """A plain search, one row and one step at a time, that runs the whole network for every prefix."""
    num_beams = 4
    input_ids, _, lengths = batch
    vocab_size = recommender.architecture.vocab_size
    found, scores = search(recommender, batch, num_beams, k=3)
    for row in range(len(input_ids)):
        beams: list[tuple[float, list[int]]] = [(0.0, [])]
        for level in range(NUM_LEVELS):
            candidates = []
            for total, prefix in beams:
                labels = torch.tensor([prefix + [0] * (NUM_LEVELS + 1 - level)])
                with torch.no_grad():
                    logits = recommender.logits(input_ids[row : row + 1], labels, lengths[row : row + 1])
                log_probs = logits[0, level].log_softmax(-1).tolist()
                candidates += [(total + log_probs[token], [*prefix, token]) for token in range(vocab_size)]
            beams = sorted(candidates, reverse=True)[:num_beams]
        assert found[row].tolist() == [sequence for _, sequence in beams[:3]]
        assert scores[row].tolist() == pytest.approx([total / NUM_LEVELS for total, _ in beams[:3]], rel=1e-5)


def test_constrained_search_equals_scoring_every_item(recommender: Recommender, batch: RaggedBatch):
    catalogue = items(recommender, 40)
    trie = PrefixTrie(catalogue, recommender.architecture.vocab_size)
    found, scores = search(recommender, batch, num_beams=40, k=8, trie=trie)
    assert_best(found, scores, catalogue, exhaustive_scores(recommender, batch, catalogue))


@pytest.mark.parametrize("num_beams", [2, 5, 40])
def test_constrained_search_returns_items_only(recommender: Recommender, batch: RaggedBatch, num_beams: int):
    catalogue = items(recommender, 12)
    trie = PrefixTrie(catalogue, recommender.architecture.vocab_size)
    k = min(num_beams, 10)
    found, scores = search(recommender, batch, num_beams, k, trie)
    real = scores > float("-inf")
    assert real[:, 0].all()
    assert (trie.find(found)[real] >= 0).all()
    assert (found[~real] == 0).all()
    for row, ok in zip(found.tolist(), real.tolist(), strict=True):
        kept = [tuple(sequence) for sequence, is_real in zip(row, ok, strict=True) if is_real]
        assert len(set(kept)) == len(kept)
        assert ok == sorted(ok, reverse=True)  # padding stands at the end
    unconstrained, _ = search(recommender, batch, num_beams, k)
    assert (trie.find(unconstrained) < 0).any()  # so the trie had something to do


def test_fewer_items_than_wanted(recommender: Recommender, batch: RaggedBatch):
    catalogue = items(recommender, 3)
    trie = PrefixTrie(catalogue, recommender.architecture.vocab_size)
    found, scores = search(recommender, batch, num_beams=20, k=6, trie=trie)
    assert found.shape == (len(batch[0]), 6, NUM_LEVELS)
    assert (found[:, 3:] == 0).all()
    assert (scores[:, 3:] == float("-inf")).all()
    assert_best(found[:, :3], scores[:, :3], catalogue, exhaustive_scores(recommender, batch, catalogue))
    assert trie.find(found[:, :3]).sort(dim=1).values.tolist() == [[0, 1, 2]] * len(found)


def test_more_beams_than_sequences(make: Callable[..., Recommender], batch: RaggedBatch):
    """One level has only as many sequences as tokens."""
    input_ids, _, lengths = batch
    recommender = make(level_sizes=(13,))
    vocab_size = recommender.architecture.vocab_size
    found, scores = recommender.generate(input_ids, lengths, vocab_size + 4, vocab_size + 2)
    assert found.shape == (len(input_ids), vocab_size + 2, 1)
    assert found[:, :vocab_size, 0].sort(dim=1).values.tolist() == [list(range(vocab_size))] * len(input_ids)
    assert (scores[:, vocab_size:] == float("-inf")).all()
    assert_close(scores[:, :vocab_size].exp().sum(1), torch.ones(len(input_ids)))


@pytest.mark.parametrize("constrained", [False, True])
def test_rows_are_independent_and_in_order(recommender: Recommender, batch: RaggedBatch, constrained: bool):
    trie = PrefixTrie(items(recommender, 30), recommender.architecture.vocab_size) if constrained else None
    assert len(batch[2].unique()) > 2
    assert batch[2].tolist() != sorted(batch[2].tolist(), reverse=True)
    found, scores = search(recommender, batch, 6, 4, trie)
    assert len({tuple(row.flatten().tolist()) for row in found}) > 1
    shuffled = torch.tensor([3, 0, 6, 5, 1, 4, 2])
    again, scores_again = search(recommender, tuple(part[shuffled] for part in batch), 6, 4, trie)
    assert torch.equal(again, found[shuffled])
    assert_close(scores_again, scores[shuffled], **TOLERANCE)
    for row in range(len(found)):
        alone, score = search(recommender, tuple(part[row : row + 1] for part in batch), 6, 4, trie)
        assert torch.equal(alone[0], found[row])
        assert_close(score[0], scores[row], **TOLERANCE)


def test_scores_fall(recommender: Recommender, batch: RaggedBatch):
    _, scores = search(recommender, batch, 12, 12)
    assert (torch.diff(scores, dim=1) <= 0).all()
    assert (scores < 0).all()


def test_more_returned_than_beams_is_an_error(recommender: Recommender, batch: RaggedBatch):
    with pytest.raises(ValueError, match="11 sequences cannot be returned from 10 beams"):
        search(recommender, batch, 10, 11)


def test_banned_items_are_not_found_and_leave_room_for_others(recommender: Recommender, batch: RaggedBatch):
    """Narrow beams still fill up: a search never enters a prefix that only banned items have."""
    input_ids, _, lengths = batch
    catalogue = items(recommender, 30)
    trie = PrefixTrie(catalogue, recommender.architecture.vocab_size)
    generator = torch.Generator().manual_seed(3)
    banned = torch.stack([torch.randperm(30, generator=generator)[:25] for _ in lengths])
    banned[1, 4:] = -1
    banned[2] = -1
    found, scores = recommender.generate(input_ids, lengths, 5, 5, trie, banned)
    rows = trie.find(found)
    assert (scores > float("-inf")).all()
    for row, seen in zip(rows.tolist(), banned.tolist(), strict=True):
        assert len(set(row)) == 5
        assert not set(row) & set(seen)
    assert sorted(rows[0].tolist()) == sorted(set(range(30)) - set(banned[0].tolist()))
    unrestricted, _ = search(recommender, batch, 5, 5, trie)
    assert torch.equal(found[2], unrestricted[2])
    wide, wide_scores = recommender.generate(input_ids, lengths, 30, 5, trie, banned)
    expected = exhaustive_scores(recommender, batch, catalogue)
    for row, seen in enumerate(banned.tolist()):
        expected[row, [item for item in seen if item >= 0]] = float("-inf")
    assert_best(wide, wide_scores, catalogue, expected)


def test_a_search_that_may_find_nothing_ends_with_padding(recommender: Recommender, batch: RaggedBatch):
    trie = PrefixTrie(items(recommender, 4), recommender.architecture.vocab_size)
    banned = torch.arange(4).repeat(len(batch[0]), 1)
    found, scores = recommender.generate(batch[0], batch[2], 5, 3, trie, banned)
    assert found.tolist() == torch.zeros(len(banned), 3, NUM_LEVELS).tolist()
    assert (scores == float("-inf")).all()


def test_running_the_whole_network_for_every_step_finds_the_same(recommender: Recommender, batch: RaggedBatch):
    """The search that a network has without a decoder of its own."""
    input_ids, _, lengths = batch
    trie = PrefixTrie(items(recommender, 30), recommender.architecture.vocab_size)
    banned = torch.arange(10).repeat(len(lengths), 1)
    for arguments in ((6, 4), (6, 4, trie), (6, 4, trie, banned)):
        found, scores = recommender.generate(input_ids, lengths, *arguments)
        slowly, slow_scores = Recommender.generate(recommender, input_ids, lengths, *arguments)
        assert torch.equal(slowly, found)
        assert_close(slow_scores, scores, **TOLERANCE)
