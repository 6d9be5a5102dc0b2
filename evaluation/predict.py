"""Beam search over many users: what is recommended to each."""

from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from data.batching import Tokenization
from evaluation.results import Predictions
from model.recommender import Recommender
from utils.interrupts import stop_if_requested


def predict(
    recommender: Recommender,
    tokenization: Tokenization,
    positions: np.ndarray,
    group: int,
    k: int,
    num_beams: int,
    batch_size: int,
    accelerator: Accelerator | None = None,
    constrained: bool = False,
    banned: Callable[[np.ndarray], Tensor] | None = None,
    advance: Callable[[int], None] = lambda users: None,
) -> Predictions:
    """Recommend k items for every target position, by beam search; raise Stopped where SIGTERM or SIGINT comes.

    Args:
        recommender: The model, not wrapped for several processes.
        positions: int [U], target positions, each once; the same on every process.
        group: 0-based tokenizer group that tokenizes the histories.
        k, num_beams: Sequences per user, and beams of the search.
        accelerator: Of processes that share the users; each takes its part, all get the whole. None: this one has all.
        constrained: Find semantic IDs of items only.
        banned: Makes of a batch's positions the rows of the trie that must not be found, as `generate` takes them.
        advance: Called with the number of users that all processes have done since the last call.
    """
    index, count = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    table, device = tokenization.table, tokenization.items.device
    trie = table.trie(group) if constrained else None
    sequences = torch.zeros(len(positions), k, table.vocabulary.num_levels, dtype=torch.int64, device=device)
    scores = torch.zeros(len(positions), k, device=device)
    by_position, was_training = np.argsort(positions), recommender.training
    if was_training:
        recommender.eval()
    mine = tokenization.by_length(positions)[index::count]
    rows = torch.from_numpy(by_position[np.searchsorted(positions, mine, sorter=by_position)]).to(device)
    batches = tokenization.batches(mine, group, batch_size)
    # the rows are on the device already: to copy them for each batch would wait for it
    for (part, batch), now in zip(batches, rows.split(batch_size), strict=False):  # of no rows there is one split
        stop_if_requested()
        not_these = banned(part) if banned else None
        found = recommender.generate(batch.input_ids, batch.lengths, num_beams, k, trie, not_these)
        sequences[now], scores[now] = found
        advance(len(part) * count)
    if was_training:
        recommender.train()
    if accelerator:
        sequences, scores = accelerator.reduce(sequences, "sum"), accelerator.reduce(scores, "sum")
    items, targets = table.items_of(group, sequences), tokenization.interactions.items[positions].astype(np.int64)
    return Predictions(group, positions, sequences.cpu().numpy(), scores.cpu().numpy(), items.cpu().numpy(), targets)
