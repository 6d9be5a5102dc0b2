from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA

from tokenizer.whitening import fit_whitening, load_whitening
from utils.errors import InputError


@pytest.fixture
def embeddings() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(200, 10)) @ rng.normal(size=(10, 10)) + 3).astype(np.float32)


def test_equals_scikit_learn_and_survives_saving(embeddings: np.ndarray, tmp_path: Path):
    fitted = fit_whitening(embeddings, 5, seed=0)
    expected = PCA(5, whiten=True, random_state=0).fit_transform(embeddings)
    result = fitted.apply(embeddings)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.cov(result.T), np.eye(5), atol=1e-3)
    fitted.save(tmp_path / "pca.safetensors")
    np.testing.assert_array_equal(load_whitening(tmp_path / "pca.safetensors").apply(embeddings), result)


def test_too_many_components_are_refused(embeddings: np.ndarray):
    with pytest.raises(InputError, match="at most 4"):
        fit_whitening(embeddings[:4], 5, seed=0)
    with pytest.raises(InputError, match="vary in only 0 directions"):
        fit_whitening(np.ones_like(embeddings), 5, seed=0)
    with pytest.raises(InputError, match="only 3 directions"):
        fit_whitening(np.hstack([embeddings[:, :3]] * 3), 5, seed=0)


def test_broken_files_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="does not exist"):
        load_whitening(tmp_path / "pca.safetensors")
    (tmp_path / "pca.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match="not a saved PCA"):
        load_whitening(tmp_path / "pca.safetensors")
