"""The built-in text encoder: TF-IDF and truncated SVD, so that no model has to be downloaded."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from utils.errors import InputError
from utils.files import atomic_path, read_json, write_json

NAME = "tfidf"
MAX_TERMS = 20_000


@dataclass
class TfidfEncoder:
    """A fitted encoder.

    Attributes:
        terms: The vocabulary, in the order of the columns.
        idf: float32 [terms].
        components: float32 [dimensions, terms].
    """

    terms: list[str]
    idf: np.ndarray
    components: np.ndarray

    def encode(self, texts: list[str]) -> np.ndarray:
        """Return the embeddings of `texts`, float32 [texts, dimensions]; unknown words count nothing."""
        vectorizer = _vectorizer(vocabulary={term: column for column, term in enumerate(self.terms)})
        vectorizer.idf_ = self.idf
        return np.asarray(vectorizer.transform(texts) @ self.components.T, dtype=np.float32)

    def save(self, folder: Path) -> None:
        """Write tfidf.vocabulary.json and tfidf.safetensors into `folder`."""
        write_json(folder / f"{NAME}.vocabulary.json", self.terms, indent=None)
        with atomic_path(folder / f"{NAME}.safetensors") as temporary:
            temporary.write_bytes(save({"idf": self.idf, "components": self.components}))


def _vectorizer(**settings: object) -> TfidfVectorizer:
    return TfidfVectorizer(sublinear_tf=True, dtype=np.float32, **settings)


def fit_tfidf(texts: list[str], dimensions: int, seed: int) -> TfidfEncoder:
    """Fit the encoder on the items' texts; the same texts and seed give the same encoder.

    Raises:
        InputError: The texts have fewer distinct words, or are fewer, than `dimensions`.
    """
    vectorizer = _vectorizer(max_features=MAX_TERMS)
    try:
        counts = vectorizer.fit_transform(texts)
    except ValueError:
        raise InputError("the items' texts have no words; see metadata.sentence.json") from None
    if dimensions > min(counts.shape):
        raise InputError(
            f"tfidf reaches at most {min(counts.shape)} dimensions with {counts.shape[0]} texts of {counts.shape[1]} "
            f"different words; pass --sent_emb_dim={min(counts.shape)} or lower"
        )
    svd = TruncatedSVD(dimensions, random_state=seed).fit(counts)
    components = np.ascontiguousarray(svd.components_, dtype=np.float32)
    return TfidfEncoder(vectorizer.get_feature_names_out().tolist(), np.float32(vectorizer.idf_), components)


def load_tfidf(folder: Path) -> TfidfEncoder:
    """Read a saved encoder, to encode the texts of new items."""
    return TfidfEncoder(read_json(folder / f"{NAME}.vocabulary.json"), **load_file(folder / f"{NAME}.safetensors"))
