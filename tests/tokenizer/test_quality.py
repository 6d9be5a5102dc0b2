import numpy as np
import pytest

from tokenizer.quality import collision_groups, drift, format_report, tokenizer_quality

CODES = np.array([[0, 1], [3, 3], [0, 1], [0, 2], [3, 3], [0, 1]])


def test_collision_groups():
    group, sizes = collision_groups(CODES)
    assert group.tolist() == [0, 2, 0, 1, 2, 0]
    assert sizes.tolist() == [3, 1, 2]


def test_without_levels_all_items_are_one_group():
    group, sizes = collision_groups(np.empty((3, 0), dtype=np.int64))
    assert (group.tolist(), sizes.tolist()) == ([0, 0, 0], [3])


def test_many_large_levels_do_not_overflow():
    codes = np.random.default_rng(0).integers(0, 2**20, size=(100, 8))
    codes[7] = codes[3]
    group, sizes = collision_groups(codes)
    assert (group[7], sizes.max(), len(sizes)) == (group[3], 2, 99)


def test_quality_of_one_tokenizer():
    quality = tokenizer_quality(CODES, [4, 8])
    assert quality["collision_rate"] == pytest.approx(5 / 6)
    assert quality["largest_group"] == 3
    assert quality["codes_used"] == [2, 3]
    halves = -(4 / 6 * np.log(4 / 6) + 2 / 6 * np.log(2 / 6))
    thirds = -(3 / 6 * np.log(3 / 6) + 1 / 6 * np.log(1 / 6) + 2 / 6 * np.log(2 / 6))
    assert quality["perplexity"] == pytest.approx([np.exp(halves), np.exp(thirds)])
    distinct = tokenizer_quality(np.arange(8).reshape(8, 1), [8])
    assert distinct["perplexity"] == pytest.approx([8])
    assert distinct["collision_rate"] == 0


def test_drift_between_tokenizers():
    """Three tokenizers: at gap 1 the pairs (0, 1) and (1, 2), at gap 2 the pair (0, 2)."""
    sem_ids = np.ones((3, 4, 3), dtype=int)
    sem_ids[1][0, 0] = 2  # first code of one item
    sem_ids[2][:2, 1] = 2  # second code of two items
    sem_ids[2][2, 2] = 2  # disambiguation of a third
    found = drift(sem_ids, gaps=(1, 2, 3))
    assert found == {
        1: {"first": 0.25, "any": (0.25 + 0.75) / 2, "any_codebook": (0.25 + 0.5) / 2, "pairs": 2},
        2: {"first": 0.0, "any": 0.75, "any_codebook": 0.5, "pairs": 1},
    }


def test_readable_report():
    report = {
        "items": 6,
        "codebook_sizes": [4, 8],
        "tokenizers": {"7": tokenizer_quality(CODES, [4, 8])},
        "drift": {1: {"first": 0.0273, "any": 0.11, "any_codebook": 0.1, "pairs": 30}},
    }
    lines = format_report(report).splitlines()
    assert lines[0] == "6 items, codebooks of 4, 8"
    assert lines[3].split() == ["7", "83.33%", "3", "2", "3", "1.9", "2.7"]
    assert lines[-1].split() == ["1", "2.73%", "11.00%", "10.00%", "30"]
