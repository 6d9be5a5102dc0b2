"""PCA with whitening: fitted once on all items, saved with the tokenizer, reused by every later step."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from sklearn.decomposition import PCA

from utils.errors import InputError
from utils.files import atomic_path


@dataclass
class Whitening:
    """A fitted PCA, in float32."""

    mean: np.ndarray  # [E]
    components: np.ndarray  # [P, E]
    explained_variance: np.ndarray  # [P]

    def apply(self, embeddings: np.ndarray) -> np.ndarray:
        """Project float32 [N, E] to [N, P] of unit variance (over the items that the PCA was fitted on)."""
        scale = np.sqrt(np.maximum(self.explained_variance, np.finfo(np.float32).tiny))
        return ((embeddings - self.mean) @ self.components.T / scale).astype(np.float32)

    def save(self, file: Path) -> None:
        with atomic_path(file) as temporary:
            temporary.write_bytes(save({name: np.ascontiguousarray(value) for name, value in vars(self).items()}))


def fit_whitening(embeddings: np.ndarray, dimensions: int, seed: int) -> Whitening:
    """Fit a PCA to P = dimensions on all items' embeddings, float32 [N, E], before the training items are selected.

    Source: section 2.2.1. Differs from the reference code: fitted once and saved, not fitted again for generation.
    Raises InputError if items or dimensions are fewer than P, or if the embeddings vary in fewer directions.
    """
    if dimensions > min(embeddings.shape):
        raise InputError(
            f"{embeddings.shape[0]} items with {embeddings.shape[1]} dimensions have no {dimensions} principal "
            f"components; lower --sent_emb_pca to at most {min(embeddings.shape)} or switch it off with -1"
        )
    pca = PCA(dimensions, random_state=seed).fit(embeddings)
    variance = pca.explained_variance_
    usable = int((variance > variance[0] * 1e-6).sum())
    if usable < dimensions:
        raise InputError(
            f"the embeddings vary in only {usable} directions, too few for --sent_emb_pca={dimensions}; "
            f"lower it or switch it off with -1"
        )
    return Whitening(*(np.float32(value) for value in (pca.mean_, pca.components_, variance)))


def load_whitening(file: Path) -> Whitening:
    """Read a saved PCA; raise InputError where the file is absent or broken."""
    try:
        return Whitening(**load_file(file))
    except FileNotFoundError:
        raise InputError(f"{file} does not exist; make it with python -m tokenizer.train") from None
    except (SafetensorError, TypeError, OSError) as error:
        raise InputError(f"{file} is not a saved PCA: {error}") from None
