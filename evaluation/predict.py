"""Evaluation at item level: beam search for every user of a split, and its result files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from data.batching import Tokenization
from evaluation.metrics import mean_metrics, target_ranks
from model.recommender import Recommender
from utils.files import write_json
from utils.interrupts import stop_if_requested


@dataclass
class Predictions:
    """What one tokenizer group recommends to the users of a split.

    Attributes:
        group: 0-based tokenizer group.
        positions: int [U], target positions.
        sequences: int64 [U, k, L], generated tokens, best first.
        scores: float32 [U, k], mean log-probability per level.
        items: int64 [U, k], item ids; 0 where the sequence is no item's.
        targets: int64 [U], item ids.
    """

    group: int
    positions: np.ndarray
    sequences: np.ndarray
    scores: np.ndarray
    items: np.ndarray
    targets: np.ndarray

    def metrics(self, names: list[str]) -> dict[str, float]:
        """Return {metric name: mean over users}; a sequence that is no item is never a hit but keeps its rank."""
        return mean_metrics(target_ranks(self.items, self.targets), names)


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
    """Recommend k items for every target position; each process takes its share, all get the whole result.

    Args:
        recommender: The model, not wrapped for several processes.
        tokenization: Makes the batches.
        positions: int [U], target positions; the same on every process.
        group: 0-based tokenizer group that tokenizes the histories.
        k: Items per user.
        num_beams: Beams of the search.
        batch_size: Users per batch.
        accelerator: Shares the users out and collects the results.
        constrained: Generate real items only.
        advance: Called with the number of users that all processes have done since the last call.

    Raises:
        Stopped: SIGTERM or SIGINT came.
    """
    table, device = tokenization.table, accelerator.device
    num_levels = table.vocabulary.num_levels
    trie = table.trie(group) if constrained else None
    by_position = np.argsort(positions)
    sequences = torch.zeros(len(positions), k, num_levels, dtype=torch.int64, device=device)
    scores = torch.zeros(len(positions), k, device=device)
    mine = tokenization.by_length(positions)[accelerator.process_index :: accelerator.num_processes]

    was_training = recommender.training
    recommender.eval()
    for part, batch in tokenization.batches(mine, group, batch_size):
        stop_if_requested()
        found, score = recommender.generate(batch.input_ids, batch.lengths, num_beams, k, trie)
        rows = torch.from_numpy(by_position[np.searchsorted(positions, part, sorter=by_position)]).to(device)
        sequences[rows], scores[rows] = found, score
        advance(len(part) * accelerator.num_processes)
    recommender.train(was_training)

    sequences, scores = accelerator.reduce(sequences, "sum"), accelerator.reduce(scores, "sum")
    items = table.items_of(group, sequences)
    targets = tokenization.interactions.items[positions].astype(np.int64)
    return Predictions(group, positions, sequences.cpu().numpy(), scores.cpu().numpy(), items.cpu().numpy(), targets)


def write_results(file: Path, predictions: Predictions, tokenization: Tokenization) -> None:
    """Write a result file per user: users, preds, scores, labels (tokens with eos), pred_ids, label_ids.

    An item id of "None" marks a sequence that is no item's semantic ID (the reference code's format).
    """
    interactions, table = tokenization.interactions, tokenization.table
    names = np.asarray(["None", *interactions.item_names[1:]], dtype=object)
    users = interactions.users_of(predictions.positions)
    labels = table.tokens[predictions.group].cpu().numpy()[predictions.targets]
    eos = np.full((len(labels), 1), table.vocabulary.eos_token)
    result = {
        "users": [interactions.user_names[user] for user in users],
        "preds": predictions.sequences.tolist(),
        "scores": predictions.scores.tolist(),
        "labels": np.concatenate([labels, eos], axis=1).tolist(),
        "pred_ids": names[predictions.items].tolist(),
        "label_ids": names[predictions.targets].tolist(),
    }
    write_json(file, result, indent=None)
