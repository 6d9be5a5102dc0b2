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
from utils.prefix_trie import PrefixTrie


def search(
    recommender: Recommender,
    tokenization: Tokenization,
    positions: np.ndarray,
    group: int,
    k: int,
    num_beams: int,
    batch_size: int,
    trie: PrefixTrie | None = None,
    banned: Callable[[np.ndarray], Tensor] | None = None,
    processes: Accelerator | None = None,
    advance: Callable[[int], None] = lambda users: None,
) -> tuple[Tensor, Tensor]:
    """Search the k best semantic IDs for every target position.

    Args:
        recommender: The model, not wrapped for several processes.
        positions: int [U], target positions, each once; the same on every process.
        group: 0-based tokenizer group that tokenizes the histories.
        k, num_beams: Sequences per user, and beams of the search.
        trie: Find sequences of the trie only.
        banned: Makes of a batch's positions the rows of the trie that must not be found, as `generate` takes them.
        processes: Those that share the users; each takes its part, all get the whole result. None: this one has all.
        advance: Called with the number of users that all processes have done since the last call.

    Returns:
        Sequences int64 [U, k, L], best first, and scores float32 [U, k], on the tokenization's device.

    Raises:
        Stopped: SIGTERM or SIGINT came.
    """
    index, count = (processes.process_index, processes.num_processes) if processes else (0, 1)
    device, num_levels = tokenization.items.device, tokenization.table.vocabulary.num_levels
    sequences = torch.zeros(len(positions), k, num_levels, dtype=torch.int64, device=device)
    scores = torch.zeros(len(positions), k, device=device)
    by_position, was_training = np.argsort(positions), recommender.training
    recommender.eval()
    for part, batch in tokenization.batches(tokenization.by_length(positions)[index::count], group, batch_size):
        stop_if_requested()
        rows = torch.from_numpy(by_position[np.searchsorted(positions, part, sorter=by_position)]).to(device)
        found = recommender.generate(
            batch.input_ids, batch.lengths, num_beams, k, trie, banned(part) if banned else None
        )
        sequences[rows], scores[rows] = found
        advance(len(part) * count)
    recommender.train(was_training)
    if processes:
        sequences, scores = processes.reduce(sequences, "sum"), processes.reduce(scores, "sum")
    return sequences, scores


def predict(
    recommender: Recommender,
    tokenization: Tokenization,
    positions: np.ndarray,
    group: int,
    k: int,
    num_beams: int,
    batch_size: int,
    accelerator: Accelerator,
    constrained: bool = False,
    advance: Callable[[int], None] = lambda users: None,
) -> Predictions:
    """Recommend k items for every target position, real ones only if `constrained`; all the rest as in `search`."""
    table = tokenization.table
    sequences, scores = search(
        *(recommender, tokenization, positions, group, k, num_beams, batch_size),
        trie=table.trie(group) if constrained else None,
        processes=accelerator,
        advance=advance,
    )
    items = table.items_of(group, sequences)
    targets = tokenization.interactions.items[positions].astype(np.int64)
    return Predictions(group, positions, sequences.cpu().numpy(), scores.cpu().numpy(), items.cpu().numpy(), targets)
