import pytest
import torch
from torch import Tensor

from utils.prefix_trie import PrefixTrie

VOCAB_SIZE = 7


def random_sequences(seed: int, count: int = 40, depth: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(VOCAB_SIZE, (3 * count, depth), generator=generator).unique(dim=0)
    return rows[torch.randperm(len(rows), generator=generator)[:count]]


@pytest.mark.parametrize("seed", range(4))
def test_find_against_a_dictionary(seed: int):
    sequences = random_sequences(seed)
    trie = PrefixTrie(sequences, VOCAB_SIZE)
    rows = {tuple(sequence): row for row, sequence in enumerate(sequences.tolist())}
    everything = torch.cartesian_prod(*[torch.arange(VOCAB_SIZE)] * 3)
    expected = [rows.get(tuple(sequence), -1) for sequence in everything.tolist()]
    assert trie.depth == 3
    assert trie.find(everything).tolist() == expected
    assert trie.find(everything.view(7, 49, 3)).tolist() == torch.tensor(expected).view(7, 49).tolist()
    assert trie.find(sequences.int()).tolist() == list(range(len(sequences)))


@pytest.mark.parametrize("seed", range(4))
def test_step_and_children_against_brute_force(seed: int):
    sequences = random_sequences(seed)
    trie = PrefixTrie(sequences, VOCAB_SIZE)
    rows = [tuple(sequence) for sequence in sequences.tolist()]
    nodes = {(): 0}
    for level in range(3):
        children = trie.children(torch.tensor(list(nodes.values())), level)
        tokens = trie.tokens(children, level)
        following = {}
        for index, (prefix, node) in enumerate(nodes.items()):
            expected = sorted({row[level] for row in rows if row[:level] == prefix})
            assert tokens[index, : len(expected)].tolist() == expected
            assert (children[index, len(expected) :] == -1).all()
            steps = trie.step(torch.full((VOCAB_SIZE,), node), torch.arange(VOCAB_SIZE), level).tolist()
            assert [token for token, child in enumerate(steps) if child >= 0] == expected
            assert [steps[token] for token in expected] == children[index, : len(expected)].tolist()
            following |= {(*prefix, token): steps[token] for token in expected}
        assert children.shape[1] == (children >= 0).sum(1).max()
        assert sorted(following.values()) == list(range(len(following)))  # every prefix has a node of its own
        nodes = following
    assert [trie.rows[nodes[row]].item() for row in rows] == list(range(len(rows)))


def test_no_node_leads_nowhere():
    trie = PrefixTrie(torch.tensor([[0, 0], [0, 1], [6, 6]]), VOCAB_SIZE)
    nobody = torch.tensor([-1, 0, -1])
    assert trie.step(nobody, torch.tensor([0, 6, 6]), 0).tolist() == [-1, 1, -1]
    assert trie.children(nobody, 0).tolist() == [[-1, -1], [0, 1], [-1, -1]]
    assert trie.children(torch.tensor([[-1], [-1]]), 1).tolist() == [[[-1]], [[-1]]]
    assert trie.children(torch.tensor([[1], [0]]), 1).tolist() == [[[2, -1]], [[0, 1]]]
    assert trie.tokens(torch.tensor([[2, -1], [0, 1]]), 1).tolist() == [[6, 0], [0, 1]]


@pytest.mark.parametrize("seed", range(4))
def test_without_closes_exactly_the_prefixes_of_banned_sequences(seed: int):
    sequences = random_sequences(seed)
    trie = PrefixTrie(sequences, VOCAB_SIZE)
    generator = torch.Generator().manual_seed(seed)
    banned = torch.stack([torch.randperm(len(sequences), generator=generator)[:35] for _ in range(3)])
    banned[1, 10:] = -1
    restricted = trie.without(banned)
    for search, seen in enumerate(banned.tolist()):
        kept = [tuple(row) for index, row in enumerate(sequences.tolist()) if index not in seen]
        nodes = {(): 0}
        for level in range(3):
            beams = torch.full((3, len(nodes)), -1)
            beams[search] = torch.tensor(list(nodes.values()))
            children = restricted.children(beams, level)
            assert (children[[other for other in range(3) if other != search]] == -1).all()
            following = {}
            for index, (prefix, node) in enumerate(nodes.items()):
                found = children[search, index][children[search, index] >= 0]
                expected = sorted({row[level] for row in kept if row[:level] == prefix})
                assert trie.tokens(found, level).tolist() == expected
                assert trie.step(torch.tensor(node), torch.tensor(expected), level).tolist() == found.tolist()
                following |= {(*prefix, token): node for token, node in zip(expected, found.tolist(), strict=True)}
            nodes = following
    assert trie.closed == []


def test_tokens_outside_the_vocabulary_are_not_found():
    """Token 7 of node 0 would have the key of token 0 of node 1."""
    trie = PrefixTrie(torch.tensor([[0, 1], [1, 0]]), VOCAB_SIZE)
    assert trie.find(torch.tensor([[0, 7], [0, 1], [7, 1], [1, 0]])).tolist() == [-1, 0, -1, 1]


def test_one_sequence_of_one_token():
    trie = PrefixTrie(torch.tensor([[3]]), VOCAB_SIZE)
    assert trie.find(torch.tensor([[3], [4]])).tolist() == [0, -1]


def test_duplicates_are_refused():
    with pytest.raises(ValueError, match="2 sequences occur more than once"):
        PrefixTrie(torch.tensor([[1, 2], [3, 4], [1, 2], [1, 2]]), VOCAB_SIZE)
