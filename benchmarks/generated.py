"""A generated dataset of Musical_Instruments' shape: 57,439 users, 24,587 items, mean length 8.9, 25 tokenizers."""

import json
from pathlib import Path

import numpy as np

from data.interactions import Interactions
from data.token_table import write_sem_ids
from utils.files import atomic_path, write_json

NUM_USERS, NUM_ITEMS, NUM_TOKENIZERS = 57_439, 24_587, 25
PREFIX = "rqvae/generated_256,256,256,256"
SHORTEST, MEAN_EXTRA, SPREAD = 5, 4.4, 1.2  # lengths are 5 + a log-normal, cut to whole items: mean 8.9


def make_interactions(num_users: int, num_items: int, seed: int = 0) -> Interactions:
    """Draw item sequences: lengths from 5 with a long tail, items with a long tail of popularity."""
    rng = np.random.default_rng(seed)
    extra = rng.lognormal(np.log(MEAN_EXTRA) - SPREAD**2 / 2, SPREAD, num_users)
    lengths = SHORTEST + np.minimum(extra, 500).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ranks = num_items * rng.random(offsets[-1]) ** 2  # popularity falls like a power
    user_ids = np.arange(1, num_users + 1)
    return Interactions(
        user_names=[f"AE{number:026d}" for number in user_ids],
        user_ids=user_ids,
        item_names=["[PAD]", *(f"B{number:09d}" for number in range(1, num_items + 1))],
        items=ranks.astype(np.int32) + 1,
        offsets=offsets,
    )


def make_semantic_ids(num_items: int, num_tokenizers: int, seed: int = 0) -> np.ndarray:
    """Draw semantic IDs that differ between neighbouring tokenizers in a tenth of the items: int64 [G, N, 4]."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(256, size=(num_items, 3))
    tables = []
    for _ in range(num_tokenizers):
        moved = rng.random(num_items) < 0.1
        codes[moved, 2] = rng.integers(256, size=int(moved.sum()))
        _, group = np.unique(codes @ [65536, 256, 1], return_inverse=True)
        order = np.argsort(group, kind="stable")
        first = np.searchsorted(group[order], group)  # where the collision group begins
        extra = np.empty(num_items, dtype=np.int64)
        extra[order] = np.arange(num_items) - first[order] + 1
        tables.append(np.column_stack([codes, extra]))
    return np.stack(tables)


def write_interactions(folder: Path, interactions: Interactions) -> None:
    """Write the two JSON files of a dataset folder that hold users, items and sequences."""
    names, offsets = np.asarray(interactions.item_names, dtype=object), interactions.offsets.tolist()
    with atomic_path(folder / "all_item_seqs.json") as temporary, open(temporary, "w", encoding="utf-8") as file:
        for row, user in enumerate(interactions.user_names):  # one by one: the text of all may not fit into memory
            sequence = names[interactions.items[offsets[row] : offsets[row + 1]]].tolist()
            file.write(f"{',' if row else '{'}{json.dumps(user)}: {json.dumps(sequence)}")
        file.write("}\n")
    mapping = {
        "user2id": dict(zip(interactions.user_names, interactions.user_ids.tolist(), strict=True)),
        "item2id": {name: number for number, name in enumerate(interactions.item_names) if number},
        "id2user": ["[PAD]", *interactions.user_names],
        "id2item": interactions.item_names,
    }
    write_json(folder / "id_mapping.json", mapping, indent=None)


def write_dataset(folder: Path, shrink: int = 1, num_tokenizers: int = NUM_TOKENIZERS) -> None:
    """Write a dataset folder with one user and one item in `shrink`, and its tokenizers 1..num_tokenizers."""
    interactions = make_interactions(NUM_USERS // shrink, NUM_ITEMS // shrink)
    write_interactions(folder, interactions)
    for epoch, codes in enumerate(make_semantic_ids(interactions.num_items, num_tokenizers), start=1):
        write_sem_ids(folder / f"{PREFIX}_{epoch}.sem_ids", interactions.item_names[1:], codes)
