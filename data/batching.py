"""Batches as tensor gathers: which examples, by which tokenizer group, in which order, on which process.

Order, tokenizer draws and sharding are pure functions of (seed, epoch, step), so any step can be made again. Examples
are known by their target's position in the flat item array (data.interactions).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from data.interactions import Interactions
from data.token_table import TokenTable

DRAWS_AT_ONCE = 2**20  # float64 numbers in memory while an epoch's tokenizers are drawn


class Stream(IntEnum):
    """Independent random streams of one seed."""

    ORDER = 0
    GROUPS = 1
    INFLUENCE_SAMPLE = 2
    VALIDATION_SAMPLE = 3
    TRAINING_USERS = 4
    TEST_SAMPLE = 5


def random_stream(seed: int, stream: Stream, epoch: int = 0) -> np.random.Generator:
    """Return the generator of one purpose at one 1-based epoch (0: for the whole run)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream, epoch])))


@dataclass
class Batch:
    """Tokenized examples."""

    input_ids: Tensor
    """int64 [B, S], [user token, history tokens, eos, padding]; S is the longest row's length."""
    labels: Tensor
    """int64 [B, L + 1], the target's tokens and eos."""
    lengths: Tensor
    """int64 [B], tokens of each row that are not padding."""

    def __len__(self) -> int:
        return len(self.lengths)


class Tokenization:
    """Makes batches out of target positions and tokenizer groups, on the table's device.

    Of each history the last max_item_seq_len items are kept.
    """

    def __init__(self, interactions: Interactions, table: TokenTable, max_item_seq_len: int = 20):
        self.interactions, self.table, self.max_item_seq_len = interactions, table, max_item_seq_len
        self.items = torch.from_numpy(interactions.items).to(table.tokens.device)

    def history_lengths(self, positions: np.ndarray) -> np.ndarray:
        """Return the items of history that each example keeps, int64 [B]."""
        starts = self.interactions.offsets[self.interactions.users_of(positions)]
        return np.minimum(positions - starts, self.max_item_seq_len)

    def batch(self, positions: np.ndarray, groups: np.ndarray | int) -> Batch:
        """Tokenize target positions, int [B], each by its 0-based group, int [B] or one for all.

        History and target of one example are tokenized by the same group (paper section 2.2.3).
        """
        vocabulary = self.table.vocabulary
        num_levels, device = vocabulary.num_levels, self.items.device
        user_ids = self.interactions.user_ids[self.interactions.users_of(positions)]
        user_tokens = vocabulary.base_user_token + user_ids % vocabulary.n_user_tokens
        kept = self.history_lengths(positions)
        columns = np.stack([positions, np.broadcast_to(groups, positions.shape), kept, user_tokens]).astype(np.int64)
        target, group, length, user_token = torch.from_numpy(columns).to(device, non_blocking=True)

        slots = torch.arange(int(kept.max()), device=device)  # [H]
        where = (target - length).unsqueeze(1) + slots  # [B, H]
        history = torch.where(slots < length.unsqueeze(1), self.items[where.clamp(max=len(self.items) - 1)], 0)
        tokens = self.table.tokens[group.unsqueeze(1), history].long()  # [B, H, L]

        input_ids = torch.zeros(len(positions), len(slots) * num_levels + 2, dtype=torch.int64, device=device)
        input_ids[:, 0] = user_token
        input_ids[:, 1:-1] = tokens.flatten(1)
        input_ids.scatter_(1, (1 + length * num_levels).unsqueeze(1), vocabulary.eos_token)
        target_tokens = self.table.tokens[group, self.items[target]].long()  # [B, L]
        labels = torch.nn.functional.pad(target_tokens, (0, 1), value=vocabulary.eos_token)
        return Batch(input_ids, labels, length * num_levels + 2)

    def by_length(self, positions: np.ndarray) -> np.ndarray:
        """Return the positions by history length, longest first (stable), so that batches hold little padding."""
        return positions[np.argsort(-self.history_lengths(positions), kind="stable")]

    def batches(self, positions: np.ndarray, group: int, batch_size: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """Yield (positions, batch) of one group in the order given."""
        for start in range(0, len(positions), batch_size):
            part = positions[start : start + batch_size]
            yield part, self.batch(part, group)


@dataclass(eq=False)
class TrainingOrder:
    """Which examples each step trains on, and by which tokenizer group.

    A global batch holds batch_size x accumulation x num_processes examples, cut into that many micro-batches of nearly
    equal size; the cut depends on the global batch alone, so runs with the same global batch see the same data.
    """

    positions: np.ndarray
    """int [N], target positions of the training examples."""
    batch_size: int
    """Examples of one micro-batch."""
    num_processes: int = 1
    process_index: int = 0
    accumulation: int = 1
    """Micro-batches per process and optimizer step."""
    seed: int = 0
    """Of the order and of the tokenizer draws."""

    @property
    def global_batch_size(self) -> int:
        return self.batch_size * self.num_processes * self.accumulation

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch; the last may hold fewer examples."""
        return -(-len(self.positions) // self.global_batch_size)

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one process that an epoch would hold on one process: the learning-rate schedule counts in them."""
        return -(-len(self.positions) // self.batch_size)

    def epoch(self, epoch: int, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return a 1-based epoch's positions in visiting order, int [N], and the group drawn for each, unsigned [N].

        Groups are drawn with the probabilities, float64 [G], at each visit anew (section 2.2.3).
        """
        positions = random_stream(self.seed, Stream.ORDER, epoch).permutation(self.positions)
        rng = random_stream(self.seed, Stream.GROUPS, epoch)
        edges = np.cumsum(probabilities)
        groups = np.empty(len(positions), dtype=np.min_scalar_type(len(edges)))
        for start in range(0, len(groups), DRAWS_AT_ONCE):
            part = groups[start : start + DRAWS_AT_ONCE]
            part[:] = np.searchsorted(edges / edges[-1], rng.random(len(part)), side="right")
        return positions, groups

    def micro_batches(self, step: int) -> tuple[list[slice], int]:
        """Return this process's slices of the epoch's order at a 0-based step, and the global batch's size.

        A slice is empty where the epoch's last global batch has fewer examples than micro-batches.
        """
        start = step * self.global_batch_size
        size = min(self.global_batch_size, len(self.positions) - start)
        parts = self.num_processes * self.accumulation
        edges = start + np.arange(parts + 1) * size // parts
        mine = [round_ * self.num_processes + self.process_index for round_ in range(self.accumulation)]
        return [slice(int(edges[part]), int(edges[part + 1])) for part in mine], size


def random_share(positions: np.ndarray, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """Return a random share of the positions, at least one, in their old order; all of them for ratio 1."""
    if ratio >= 1:
        return positions
    count = max(1, round(ratio * len(positions)))
    return positions[np.sort(rng.permutation(len(positions))[:count])]


def training_users(num_users: int, ratio: float, seed: int) -> np.ndarray:
    """Return which users' histories are trained on, a random share of them, bool [num_users]."""
    users = np.arange(num_users)
    return np.isin(users, random_share(users, ratio, random_stream(seed, Stream.TRAINING_USERS)))
