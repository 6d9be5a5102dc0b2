"""A tiny dataset in the published format."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tokenizer.config import TokenizerConfig

NUM_ITEMS, DIM = 60, 12


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """60 items with texts and 12-dimensional embeddings, 30 users; the last item occurs in no training sequence."""
    folder = tmp_path / "Tiny"
    folder.mkdir()
    kinds, brands, sizes = ["drill", "hammer", "glove", "lamp", "valve"], ["Acme", "Bolt", "Crane"], "SMLX"
    items = [f"item{number}" for number in range(NUM_ITEMS)]
    texts = [f"{brands[i % 3]} {kinds[i % 5]} size {sizes[i % 4]} model {i:03d}" for i in range(NUM_ITEMS)]
    sequences = {f"user{u}": [items[(7 * u + 3 * k) % (NUM_ITEMS - 1)] for k in range(4 + u % 5)] for u in range(30)}
    sequences["user0"].append(items[-1])
    mapping = {
        "user2id": {user: number for number, user in enumerate(sequences, start=1)},
        "item2id": {item: number for number, item in enumerate(items, start=1)},
        "id2user": ["[PAD]", *sequences],
        "id2item": ["[PAD]", *items],
    }
    for name, value in (
        ("metadata.sentence", dict(zip(items, texts, strict=True))),
        ("all_item_seqs", sequences),
        ("id_mapping", mapping),
    ):
        (folder / f"{name}.json").write_text(json.dumps(value))
    embeddings = np.random.default_rng(0).normal(size=(NUM_ITEMS, DIM)).astype("<f4")
    embeddings[:4] = embeddings[0]  # a collision group of four
    embeddings.tofile(folder / "encoder.sent_emb")
    return folder


@pytest.fixture
def make_config(dataset: Path) -> Callable[..., TokenizerConfig]:
    """Return the settings of a training on the tiny dataset that takes less than a second, with changes."""

    def make(**changes: object) -> TokenizerConfig:
        settings: dict[str, object] = {
            "dataset": dataset.name,
            "data_dir": str(dataset.parent),
            "device": "cpu",
            "sent_emb_model": "some/encoder",
            "sent_emb_dim": DIM,
            "sent_emb_pca": 6,
            "codebook_size": 8,
            "hidden_sizes": [16, 4],
            "batch_size": 16,
            "epochs": 6,
            "save_last": 3,
        }
        config = TokenizerConfig(**settings | changes)
        assert config.problems() == []
        return config

    return make
