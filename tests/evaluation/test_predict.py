import json
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator

from data.batching import Tokenization
from data.interactions import split_positions
from evaluation.predict import Predictions, predict
from evaluation.results import write_results
from model.beam_search import beam_search
from model.recommender import Recommender


@pytest.fixture
def positions(tokenization: Tokenization) -> np.ndarray:
    return split_positions(tokenization.interactions.offsets, "test")


def run(recommender, tokenization, positions, accelerator, **options) -> Predictions:
    settings = {"group": 1, "k": 4, "num_beams": 6, "batch_size": 5} | options
    return predict(recommender, tokenization, positions, accelerator=accelerator, **settings)


def test_predictions_stand_in_the_order_of_the_positions(
    recommender: Recommender, tokenization: Tokenization, positions: np.ndarray, accelerator: Accelerator
):
    recommender.train()
    predictions = run(recommender, tokenization, positions, accelerator)
    assert recommender.training  # as it was, though nothing was dropped
    recommender.eval()
    lookup = {tuple(row): item for item, row in enumerate(tokenization.table.tokens[1].tolist()) if item}
    assert np.array_equal(predictions.positions, positions)
    for row, position in enumerate(positions):
        batch = tokenization.batch(positions[row : row + 1], 1)
        sequences, scores = beam_search(recommender.t5, batch.input_ids, batch.lengths, 4, 6, 4)
        assert predictions.sequences[row].tolist() == sequences[0].tolist()
        assert predictions.scores[row] == pytest.approx(scores[0].numpy(), rel=1e-5)
        assert predictions.items[row].tolist() == [lookup.get(tuple(ids), 0) for ids in sequences[0].tolist()]
        assert predictions.targets[row] == tokenization.interactions.items[position]


def test_batch_size_and_order_do_not_matter(
    recommender: Recommender, tokenization: Tokenization, positions: np.ndarray, accelerator: Accelerator
):
    first = run(recommender, tokenization, positions, accelerator)
    second = run(recommender, tokenization, positions[::-1].copy(), accelerator, batch_size=100)
    assert np.array_equal(first.sequences, second.sequences[::-1])
    assert np.array_equal(first.targets, second.targets[::-1])


def test_constrained_predictions_are_items(
    recommender: Recommender, tokenization: Tokenization, positions: np.ndarray, accelerator: Accelerator
):
    predictions = run(recommender, tokenization, positions, accelerator, constrained=True, num_beams=20, k=10)
    assert (predictions.items > 0).all()
    assert all(len(set(row)) == 10 for row in predictions.items.tolist())
    free = run(recommender, tokenization, positions, accelerator, num_beams=20, k=10)
    assert (free.items == 0).any()


def hand_made(tokenization: Tokenization, positions: np.ndarray) -> Predictions:
    """Return predictions with the target first, third and nowhere, over and over, and a sequence that is no item."""
    targets = tokenization.interactions.items[positions].astype(np.int64)
    others = np.stack([targets % 20 + 1, (targets + 1) % 20 + 1, (targets + 2) % 20 + 1], axis=1)
    items = others.copy()
    for row, target in enumerate(targets):
        if row % 3 == 0:
            items[row, 0] = target
        if row % 3 == 1:
            items[row, :] = [0, others[row, 0], target]
    sequences = tokenization.table.tokens[1].long().numpy()[items]
    scores = np.tile(np.asarray([-0.5, -1.0, -1.5], dtype=np.float32), (len(items), 1))
    return Predictions(1, positions, sequences, scores, items, targets)


def test_metrics(tokenization: Tokenization, positions: np.ndarray):
    predictions = hand_made(tokenization, positions[:27])
    assert predictions.metrics(["recall@1", "recall@3", "ndcg@3"]) == pytest.approx(
        {"recall@1": 1 / 3, "recall@3": 2 / 3, "ndcg@3": (1 + 0.5) / 3}
    )


def test_result_file(tokenization: Tokenization, positions: np.ndarray, tmp_path: Path):
    predictions = hand_made(tokenization, positions)
    write_results(tmp_path / "test_results_2.json", predictions, tokenization)
    result = json.loads((tmp_path / "test_results_2.json").read_text())
    assert list(result) == ["users", "preds", "scores", "labels", "pred_ids", "label_ids"]
    interactions, tokens = tokenization.interactions, tokenization.table.tokens[1].tolist()
    assert result["users"] == [f"user{row + 1}" for row in range(30) if row % 29 + 1 >= 2]
    assert {len(column) for column in result.values()} == {len(positions)}
    eos = tokenization.table.vocabulary.eos_token
    for row, position in enumerate(positions):
        target = int(interactions.items[position])
        assert result["labels"][row] == [*tokens[target], eos]
        assert result["label_ids"][row] == f"item{target}"
        assert result["preds"][row] == [tokens[item] for item in predictions.items[row]]
        assert result["scores"][row] == [-0.5, -1.0, -1.5]
        assert result["pred_ids"][row] == [f"item{item}" if item else None for item in predictions.items[row]]
    assert None in result["pred_ids"][1]


def test_wide_constrained_beams_list_every_item(
    recommender: Recommender, tokenization: Tokenization, positions: np.ndarray, accelerator: Accelerator
):
    """As many beams as items find every target."""
    predictions = run(recommender, tokenization, positions, accelerator, constrained=True, num_beams=20, k=20)
    assert predictions.metrics(["recall@20"]) == {"recall@20": 1.0}
    assert np.sort(predictions.items, axis=1).tolist() == [list(range(1, 21))] * len(positions)
