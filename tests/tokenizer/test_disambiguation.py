import numpy as np
import pytest

from tokenizer.disambiguation import disambiguation_codes, semantic_ids
from utils.errors import InputError


def test_disambiguation_counts_in_item_order_within_a_group():
    codes = np.array([[1, 2], [0, 0], [1, 2], [2, 1], [0, 0], [1, 2]])
    assert disambiguation_codes(codes).tolist() == [1, 1, 2, 1, 2, 3]


def test_disambiguation_equals_a_plain_loop():
    codes = np.random.default_rng(0).integers(0, 3, size=(200, 3))
    seen: dict[tuple[int, ...], int] = {}
    expected = []
    for row in map(tuple, codes.tolist()):
        seen[row] = seen.get(row, 0) + 1
        expected.append(seen[row])
    assert disambiguation_codes(codes).tolist() == expected


def test_a_group_may_fill_its_level_but_not_more():
    names = [f"item{i}" for i in range(4)]
    codes = np.array([[7, 7], [7, 7], [0, 7], [7, 7]])
    assert semantic_ids(codes, 4, "9", names)[:, 2].tolist() == [1, 2, 1, 3]
    with pytest.raises(InputError, match=r"epoch 9: 3 items share the codes \[7, 7\] \('item3' among them\)") as error:
        semantic_ids(codes, 3, "9", names)
    assert "separates at most 2" in str(error.value)
    assert "--codebook_size (at least 4)" in str(error.value)


def test_new_items_are_counted_behind_the_old_ones():
    taken = np.asarray([[0, 1, 1], [0, 1, 2], [2, 2, 5]])
    codes = np.asarray([[2, 2], [0, 1], [3, 3], [0, 1]])
    assert disambiguation_codes(codes, taken).tolist() == [6, 3, 1, 4]
