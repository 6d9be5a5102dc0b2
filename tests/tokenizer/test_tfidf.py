import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

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


UNSPACED = [
    *("不锈钢电热水壶", "不锈钢保温杯", "陶瓷咖啡杯", "红茶礼盒"),
    *("ステンレスボトル", "ステンレスケトル", "รองเท้าวิ่งผู้ชาย", "รองเท้าวิ่งผู้หญิง"),
]


@pytest.mark.parametrize(
    "texts",
    [UNSPACED, [f"{text}。{text[::-1]}！" for text in UNSPACED], ["茶", "茶杯", "酒", "酒杯"],
     ["steel_hammer", "steel_drill", "rubber_glove", "rubber_boot"]],
)  # fmt: skip
def test_texts_without_spaces_are_compared_by_runs_of_characters(texts: list[str], tmp_path: Path, capsys):
    encoder = fit_tfidf(texts, 3, seed=1)
    assert "runs of 1 to 3 characters are compared instead" in capsys.readouterr().out
    encoder.save(tmp_path)
    found = load_tfidf(tmp_path).encode(texts)
    np.testing.assert_array_equal(found, encoder.encode(texts))
    similarity = found @ found.T
    assert similarity[0, 1] > 0.3 > abs(similarity[0, 2])


@pytest.mark.parametrize(
    "texts",
    [TEXTS, ["Apple pie", "Rye bread", "Lime cake"], ["한국어 제목 하나", "다른 제목 둘", "셋째 이름"],
     ["steel kettle with a long name 不锈钢", "copper kettle", "glass cup"], ["thing", "thing", "thing one"]],
)  # fmt: skip
def test_texts_with_spaces_are_compared_by_words_as_ever(texts: list[str], tmp_path: Path, capsys):
    encoder = fit_tfidf(texts, 2, seed=1)
    assert capsys.readouterr().out == ""
    plain = TfidfVectorizer(sublinear_tf=True, dtype=np.float32, max_features=20_000)
    counts = plain.fit_transform(texts)
    assert encoder.terms == plain.get_feature_names_out().tolist()
    svd = TruncatedSVD(2, random_state=1).fit(counts)
    np.testing.assert_array_equal(encoder.components, np.float32(svd.components_))
    encoder.save(tmp_path)
    assert json.loads((tmp_path / "tfidf.vocabulary.json").read_text()) == encoder.terms
