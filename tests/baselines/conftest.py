"""A dataset in which popularity and neighbours can be counted by hand."""

import json
from pathlib import Path

import pytest

from baselines.config import BaselineConfig
from baselines.data import Data, load_data

# The last item of each is the test's target, the one before it validation's; the rest is what is learnt from.
SEQUENCES = {
    "user1": [1, 1, 2, 3, 1],
    "user2": [1, 2, 4, 9, 2],
    "user3": [1, 2, 5, 7, 8, 2, 6],
    "user4": [3, 4],
}


@pytest.fixture
def config(dataset: Path) -> BaselineConfig:
    """Return settings of the tiny dataset, which gets the sequences above."""
    sequences = {user: [f"item{item}" for item in items] for user, items in SEQUENCES.items()}
    (dataset / "all_item_seqs.json").write_text(json.dumps(sequences))
    return BaselineConfig(dataset=dataset.name, data_dir=str(dataset.parent), eval_batch_size=3)


@pytest.fixture
def data(config: BaselineConfig) -> Data:
    return load_data(config)
