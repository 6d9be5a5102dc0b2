import numpy as np
import pytest

from utils.advice import curriculum_advice, tokenizer_advice, validation_advice


def test_levels_with_under_half_of_their_codes_are_named():
    (text,) = tokenizer_advice([127, 128, 3], [256, 256, 8], 0.3)
    assert "127 of 256 at level 0, 3 of 8 at level 2;" in text
    assert "--codebook_size" in text


def test_collisions_above_30_percent():
    (text,) = tokenizer_advice([256], [256], 0.301)
    assert text.startswith("30% of the items share all codes")
    assert tokenizer_advice([256], [256], 0.3) == []


@pytest.mark.parametrize(
    ("probabilities", "text"),
    [
        ([0.6, 0.2, 0.2], "one tokenizer is drawn with probability 0.60; raise --tau (0.5)"),
        ([0.2515, 0.2495, 0.2495, 0.2495], "all sampling probabilities are within 1% of uniform"),
        ([0.26, 0.25, 0.25, 0.24], None),
        ([0.6, 0.4], None),  # of two tokenizers one is always above a half
    ],
)
def test_curriculum(probabilities, text):
    found = curriculum_advice(np.array(probabilities), 0.5)
    assert (found or "").startswith(text or "")
    assert (found is None) == (text is None)


def test_validation_that_falls_three_times_in_a_row():
    assert validation_advice("ndcg@10", [0.5, 0.4, 0.3]) is None
    assert validation_advice("ndcg@10", [0.5, 0.4, 0.45, 0.3]) is None
    assert validation_advice("ndcg@10", [0.1, 0.5, 0.4, 0.3, 0.3]) is None
    text = validation_advice("ndcg@10", [0.1, 0.5, 0.4, 0.3, 0.2])
    assert text.startswith("validation ndcg@10 has fallen 3 times in a row, from 0.5000 to 0.2000")
