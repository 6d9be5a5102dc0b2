"""A dataset folder of a few users and items, without text encoders or RQ-VAEs."""

import json
from pathlib import Path

import numpy as np

from data.token_table import level_sizes, write_sem_ids


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
