import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import growth
from benchmarks.generated import NUM_ITEMS, NUM_USERS, make_interactions, make_semantic_ids, write_interactions
from data.interactions import load_interactions
from utils.errors import InputError


def test_every_size_is_measured(tmp_path: Path):
    sizes = ["--interactions=[1000,2000]", "--items=[1000]", "--steps_per_epoch=2"]
    growth.main([*sizes, f"--output={tmp_path / 'a.json'}"])
    result = json.loads((tmp_path / "a.json").read_text())
    counts = [row["interactions"] for row in result["interactions"]]
    assert counts == pytest.approx([1000, 2000], rel=0.2)
    assert all(row["load_s"] > 0 and row["epoch_s"] > 0 for row in result["interactions"])
    assert result["items"][0]["items"] == 1000
    assert result["items"][0]["trie_s"] > 0


def test_too_small():
    with pytest.raises(InputError, match=r"--interactions and --items have \[10\]"):
        growth.main(["--interactions=[10]", "--items=[1000]"])


def test_generated_data_has_the_paper_s_shape(tmp_path: Path):
    interactions = make_interactions(NUM_USERS, NUM_ITEMS)
    lengths = np.diff(interactions.offsets)
    assert len(interactions.items) == pytest.approx(511_836, rel=0.01)
    assert (lengths.min(), lengths.mean()) == (5, pytest.approx(8.91, abs=0.05))
    assert lengths.max() > 200
    assert np.array_equal(np.unique(interactions.items), np.arange(1, NUM_ITEMS + 1))
    small = make_interactions(50, 30)
    write_interactions(tmp_path, small)
    read = load_interactions(tmp_path)
    assert list(read.user_names) == small.user_names
    assert np.array_equal(read.items, small.items)


def test_generated_tokenizers_are_related():
    tables = make_semantic_ids(2000, 3)
    assert all(len(np.unique(table, axis=0)) == 2000 for table in tables)
    assert tables[:, :, 3].min() == 1
    changed = (tables[0, :, :3] != tables[1, :, :3]).any(axis=1).mean()
    assert 0.05 < changed < 0.15
