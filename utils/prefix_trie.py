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
        self.barred: list[tuple[Tensor, Tensor]] = []  # see `without`

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

    def allowed(self, nodes: Tensor, level: int) -> Tensor:
        """Return which tokens may follow each node: int64 [...] at depth `level` to bool [..., vocab_size]."""
        offsets, flat = self.child_offsets[level], nodes.reshape(-1)
        counts = torch.where(flat >= 0, offsets[flat + 1] - offsets[flat], 0)
        owner = torch.repeat_interleave(torch.arange(len(flat), device=flat.device), counts)
        before = torch.cumsum(counts, 0) - counts
        child = offsets[flat][owner] + torch.arange(len(owner), device=flat.device) - before[owner]
        mask = torch.zeros(len(flat), self.vocab_size, dtype=torch.bool, device=flat.device)
        mask[owner, self.keys[level][child] % self.vocab_size] = True
        mask = mask.reshape(*nodes.shape, self.vocab_size)
        if self.barred:
            search, key = self.barred[level]
            which, beam = torch.nonzero(nodes[search] == (key // self.vocab_size).unsqueeze(1), as_tuple=True)
            mask[search[which], beam, key[which] % self.vocab_size] = False
        return mask

    def without(self, rows: Tensor) -> "PrefixTrie":
        """Return the trie as each of B searches sees it that must not end at some sequences.

        `rows`, int64 [B, E], are those of the trie that search b must not find, each once, filled up with -1. A node is
        closed to a search when every sequence below it is banned; what is open leads somewhere. The new trie shares
        this one's tensors; its `allowed` takes nodes [B, M], M beams of each of the B searches.
        """
        restricted = copy.copy(self)
        restricted.barred = []
        search, column = torch.nonzero(rows >= 0, as_tuple=True)
        leaf_of_row = torch.empty_like(self.rows)
        leaf_of_row[self.rows] = torch.arange(len(self.rows), device=rows.device)
        node, leaves = leaf_of_row[rows[search, column]], torch.ones_like(self.rows)
        for level in reversed(range(self.depth)):
            keys = self.keys[level]
            banned, counts = torch.unique(search * len(keys) + node, return_counts=True)
            closed = banned[counts == leaves[banned % len(keys)]]
            restricted.barred.insert(0, (closed // len(keys), keys[closed % len(keys)]))
            parent = keys // self.vocab_size
            num_parents = len(self.child_offsets[level]) - 1
            leaves = torch.zeros(num_parents, dtype=torch.int64, device=rows.device).scatter_add_(0, parent, leaves)
            node = parent[node]
        return restricted
