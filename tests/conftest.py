"""What every test may use: the golden case, a tiny dataset with several tokenizers, one thread."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data.token_table import level_sizes, write_sem_ids

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(1)


class GoldenCase:
    """A folder of the reference code's inputs and outputs; sizes are read from its files."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.dataset = next(path for path in (folder / "dataset").iterdir() if path.is_dir())
        self.recommender = load_file(folder / "recommender.safetensors")
        self.recommender_json = json.loads((folder / "recommender.json").read_text())

    def weights(self, prefix: str = "weights/") -> dict[str, torch.Tensor]:
        """Return the tensors whose names start with `prefix`, without it."""
        return {name.removeprefix(prefix): t for name, t in self.recommender.items() if name.startswith(prefix)}


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """Return the golden case's folder, from MTGREC_GOLDEN or beside the project."""
    folder = Path(os.environ.get("MTGREC_GOLDEN", ROOT.parent / "shared" / "golden" / "case_a"))
    if not folder.is_dir():
        pytest.skip(f"no golden case at {folder}; name one with MTGREC_GOLDEN")
    return folder


@pytest.fixture(scope="session")
def golden(golden_folder: Path) -> GoldenCase:
    return GoldenCase(golden_folder)


def make_dataset(
    folder: Path, num_users: int = 30, num_items: int = 20, codebook_size: int = 8, epochs: tuple[int, ...] = (1, 2, 3)
) -> Path:
    """Write a tiny dataset with random sequences of 1 to 29 items and unique random semantic IDs for each epoch."""
    rng = np.random.default_rng(0)
    items = [f"item{number}" for number in range(1, num_items + 1)]
    users = [f"user{number}" for number in range(1, num_users + 1)]
    sequences = {user: [items[i] for i in rng.integers(num_items, size=row % 29 + 1)] for row, user in enumerate(users)}
    (folder / "rqvae").mkdir(parents=True)
    (folder / "all_item_seqs.json").write_text(json.dumps(sequences))
    (folder / "metadata.sentence.json").write_text(json.dumps({item: f"text of {item}" for item in items}))
    mapping = {
        "user2id": {user: row for row, user in enumerate(users, start=1)},
        "item2id": {item: row for row, item in enumerate(items, start=1)},
        "id2user": ["[PAD]", *users],
        "id2item": ["[PAD]", *items],
    }
    (folder / "id_mapping.json").write_text(json.dumps(mapping))
    sizes = level_sizes(3, codebook_size)
    for epoch in epochs:
        codes = rng.integers(codebook_size, size=(num_items, 4))
        codes[:, 3] = 1
        for row in range(num_items):  # count up within a collision group
            codes[row, 3] += (codes[:row, :3] == codes[row, :3]).all(axis=1).sum()
        write_sem_ids(folder / "rqvae" / f"toy_{','.join(map(str, sizes))}_{epoch}.sem_ids", items, codes)
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Return a tiny dataset folder, tmp_path/datasets/Tiny, with the tokenizers of epochs 1, 2, 3 (3 x 8 codes)."""
    return make_dataset(tmp_path / "datasets" / "Tiny")
