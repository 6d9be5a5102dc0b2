from pathlib import Path

import numpy as np
import pytest

from tokenizer.tfidf import fit_tfidf, load_tfidf
from utils.errors import InputError

TEXTS = ["steel hammer acme", "steel drill acme", "rubber glove bolt", "cotton glove bolt", "garden hose"]


def test_similar_texts_lie_close_and_the_same_seed_gives_the_same():
    first = fit_tfidf(TEXTS, 4, seed=1).encode(TEXTS)
    assert first.shape == (5, 4)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, fit_tfidf(TEXTS, 4, seed=1).encode(TEXTS))
    similarity = first @ first.T
    assert similarity[0, 1] > 0.3 > abs(similarity[0, 2])
    assert similarity[2, 3] > 0.3 > abs(similarity[2, 4])


def test_a_saved_encoder_encodes_new_texts_too(tmp_path: Path):
    encoder = fit_tfidf(TEXTS, 3, seed=1)
    encoder.save(tmp_path)
    new = [*TEXTS, "steel glove of unseen wool", "nothing known"]
    loaded = load_tfidf(tmp_path).encode(new)
    np.testing.assert_array_equal(loaded, encoder.encode(new))
    assert not loaded[-1].any()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tfidf.safetensors", "tfidf.vocabulary.json"]


def test_more_dimensions_than_possible_are_refused_with_the_remedy():
    with pytest.raises(InputError, match="--sent_emb_dim=5 or lower"):
        fit_tfidf(TEXTS, 6, seed=1)
    with pytest.raises(InputError, match="no words"):
        fit_tfidf(["-", "!"], 1, seed=1)
