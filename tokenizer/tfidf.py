"""The built-in text encoder: TF-IDF and truncated SVD, so that no model has to be downloaded."""

import re
from collections import Counter
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
_WORD = re.compile(r"\w")
# Thai, Lao, Tibetan, Burmese, Khmer, kana, and Chinese characters.
UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9d\U00020000-\U0003ffff]+"
)


@dataclass
class TfidfEncoder:
    """A fitted encoder."""

    terms: list[str]  # the vocabulary, in the order of the columns
    idf: np.ndarray  # float32 [terms]
    components: np.ndarray  # float32 [dimensions, terms]
    ngrams: bool = False  # terms are runs of characters rather than words

    def encode(self, texts: list[str]) -> np.ndarray:
        """Return the embeddings of `texts`, float32 [texts, dimensions]; unknown words count nothing."""
        vectorizer = _vectorizer(self.ngrams, vocabulary={term: column for column, term in enumerate(self.terms)})
        vectorizer.idf_ = self.idf
        return np.asarray(vectorizer.transform(texts) @ self.components.T, dtype=np.float32)

    def save(self, folder: Path) -> None:
        """Write tfidf.vocabulary.json and tfidf.safetensors into `folder`."""
        terms = {"ngrams": self.terms} if self.ngrams else self.terms
        write_json(folder / f"{NAME}.vocabulary.json", terms, indent=None)
        with atomic_path(folder / f"{NAME}.safetensors") as temporary:
            temporary.write_bytes(save({"idf": self.idf, "components": self.components}))


def _vectorizer(ngrams: bool, **settings: object) -> TfidfVectorizer:
    if ngrams:
        settings |= {"analyzer": "char_wb", "ngram_range": (1, 3)}
    return TfidfVectorizer(sublinear_tf=True, dtype=np.float32, **settings)


def words_serve(texts: list[str]) -> bool:
    """Return whether the texts' words tell which of them are alike.

    They do not where a fifth of the letters is of a script without spaces, or where most texts are a single word that
    no other text has.
    """
    letters = sum(character.isalpha() for text in texts for character in text)
    unspaced = sum(len(run) for text in texts for run in UNSPACED.findall(text))
    if 5 * unspaced > letters:
        return False
    words = [set(text.lower().split()) for text in texts]
    frequency = Counter(word for text in words for word in text)
    alone = sum(len(text) == 1 and frequency[next(iter(text))] == 1 for text in words)
    return 2 * alone <= len(texts)


def fit_tfidf(texts: list[str], dimensions: int, seed: int) -> TfidfEncoder:
    """Fit the encoder on the items' texts; InputError if they, or their distinct terms, are fewer than `dimensions`."""
    ngrams = any(map(_WORD.search, texts)) and not words_serve(texts)
    vectorizer = _vectorizer(ngrams, max_features=MAX_TERMS)
    try:
        counts = vectorizer.fit_transform(texts)
    except ValueError:
        raise InputError("the items' texts have no words; see metadata.sentence.json") from None
    if ngrams:
        print(
            "tfidf: the texts are not made of words with spaces between; runs of 1 to 3 characters are compared instead"
        )
    if dimensions > min(counts.shape):
        raise InputError(
            f"tfidf reaches at most {min(counts.shape)} dimensions with {counts.shape[0]} texts of {counts.shape[1]} "
            f"different {'runs' if ngrams else 'words'}; pass --sent_emb_dim={min(counts.shape)} or lower"
        )
    svd = TruncatedSVD(dimensions, random_state=seed).fit(counts)
    components = np.ascontiguousarray(svd.components_, dtype=np.float32)
    return TfidfEncoder(vectorizer.get_feature_names_out().tolist(), np.float32(vectorizer.idf_), components, ngrams)


def load_tfidf(folder: Path) -> TfidfEncoder:
    """Read a saved encoder, to encode the texts of new items."""
    terms, arrays = read_json(folder / f"{NAME}.vocabulary.json"), load_file(folder / f"{NAME}.safetensors")
    ngrams = isinstance(terms, dict)
    return TfidfEncoder(terms["ngrams"] if ngrams else terms, **arrays, ngrams=ngrams)
