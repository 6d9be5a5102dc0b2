"""A set of equally long token sequences as a prefix trie in flat sorted tensors: look-up and allowed next tokens."""

import copy

import torch
from torch import Tensor


class PrefixTrie:
    """Sequences of tokens int [N, L], distinct rows in 0..vocab_size - 1, each level's nodes numbered in sorted order.

    A node at depth t + 1 is the pair (its parent's number, its token), kept as the key parent * vocab_size + token.
    Every method takes and returns whole tensors; there is no Python per sequence.

    Raises:
        ValueError: Two rows are the same.
    """

    def __init__(self, sequences: Tensor, vocab_size: int):
        self.vocab_size = vocab_size
        self.keys: list[Tensor] = []  # per level: sorted int64 [nodes]
        self.child_offsets: list[Tensor] = []  # per level: node n's children are keys[offsets[n]:offsets[n + 1]]
        node = torch.zeros(len(sequences), dtype=torch.int64, device=sequences.device)
        num_parents = 1
        for level in range(sequences.shape[1]):
            keys, node = torch.unique(node * vocab_size + sequences[:, level].long(), return_inverse=True)
            starts = torch.arange(num_parents + 1, device=keys.device) * vocab_size
            self.keys.append(keys)
            self.child_offsets.append(torch.searchsorted(keys, starts))
            num_parents = len(keys)
        if num_parents != len(sequences):
            raise ValueError(f"{len(sequences) - num_parents} sequences occur more than once")
        self.rows = torch.argsort(node)  # of each leaf
        self.leaf_of_row = node
        self.leaves = [torch.ones_like(node)]  # below each node, per level
        for keys, offsets in zip(self.keys[:0:-1], self.child_offsets[:0:-1], strict=True):
            below = torch.zeros(len(offsets) - 1, dtype=torch.int64, device=keys.device)
            self.leaves.insert(0, below.scatter_add_(0, keys // vocab_size, self.leaves[0]))
        self.closed: list[Tensor] = []  # see `without`

    @property
    def depth(self) -> int:
        return len(self.keys)

    def step(self, nodes: Tensor, tokens: Tensor, level: int) -> Tensor:
        """Follow a token int [...] from each node int64 [...] at depth `level`: the root is 0, and -1 is no node.

        Returns:
            int64 [...], nodes at depth level + 1, -1 where no sequence goes on so.
        """
        keys = self.keys[level]
        wanted = nodes * self.vocab_size + tokens
        found = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        return torch.where((keys[found] == wanted) & (nodes >= 0) & (tokens < self.vocab_size), found, -1)

    def find(self, sequences: Tensor) -> Tensor:
        """Return the row of each sequence in the trie: int [..., L] to int64 [...], -1 where it is none."""
        nodes = torch.zeros(sequences.shape[:-1], dtype=torch.int64, device=sequences.device)
        for level in range(self.depth):
            nodes = self.step(nodes, sequences[..., level], level)
        return torch.where(nodes >= 0, self.rows[nodes], -1)

    def children(self, nodes: Tensor, level: int) -> Tensor:
        """Return the nodes that follow each node: int64 [...] at depth `level` to int64 [..., C], filled up with -1.

        C is the most that any of them has, at least 1. Children come in the order of their tokens.
        """
        offsets, keys = self.child_offsets[level], self.keys[level]
        parents = nodes.clamp(min=0)
        counts = torch.where(nodes >= 0, offsets[parents + 1] - offsets[parents], 0).unsqueeze(-1)
        order = torch.arange(max(1, int(counts.max())), device=keys.device)
        children = torch.where(order < counts, offsets[parents].unsqueeze(-1) + order, -1)
        if self.closed:
            closed, searches = self.closed[level], torch.arange(len(nodes), device=keys.device)
            numbers = searches.view(-1, *[1] * (children.dim() - 1)) * len(keys) + children
            children = children.masked_fill(torch.isin(numbers, closed), -1)
        return children

    def tokens(self, nodes: Tensor, level: int) -> Tensor:
        """Return the token that leads to each node: int64 [...] at depth level + 1; 0 for -1, no node."""
        return torch.where(nodes >= 0, self.keys[level][nodes] % self.vocab_size, 0)

    def without(self, rows: Tensor) -> "PrefixTrie":
        """Return the trie as each of B searches sees it that must not end at some sequences.

        `rows`, int64 [B, E], are those of the trie that search b must not find, each once, filled up with -1. A node is
        closed to a search when every sequence below it is banned; what is open leads somewhere. The new trie shares
        this one's tensors; its `children` takes nodes [B, M], M beams of each of the B searches.
        """
        restricted = copy.copy(self)
        restricted.closed = []
        search, column = torch.nonzero(rows >= 0, as_tuple=True)
        node = self.leaf_of_row[rows[search, column]]
        for level in reversed(range(self.depth)):
            num_nodes = len(self.keys[level])
            banned, counts = torch.unique(search * num_nodes + node, return_counts=True)
            restricted.closed.insert(0, banned[counts == self.leaves[level][banned % num_nodes]])
            node = self.keys[level][node] // self.vocab_size
        return restricted
