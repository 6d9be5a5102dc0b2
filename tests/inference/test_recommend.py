import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from data.token_table import TokenTable
from inference.recommend import RecommendationModel, load
from utils.errors import InputError

PREFIX = "rqvae/toy_8,8,8,8"


@pytest.fixture
def model(joint_run: Path) -> RecommendationModel:
    return load(joint_run)


def test_every_history_gets_k_different_unseen_items(model: RecommendationModel):
    rng = np.random.default_rng(0)
    names = model.catalogue.names[1:]
    histories = [list(rng.choice(names[:15], size=length)) for length in (1, 2, 19, 20, 21, 60)]
    histories += [names[:15], ["item3", "never heard of", "item4"]]
    items, scores = model.recommend(histories, k=5, num_beams=1)
    for history, row, score in zip(histories, items, scores, strict=True):
        assert len(set(row)) == 5
        assert set(row) <= set(names) - set(history)
        assert score == sorted(score, reverse=True)
        assert max(score) < 0
    assert set(items[6]) == set(names[15:])
    assert items[7] == model.recommend([["item3", "item4"]], k=5, num_beams=1)[0][0]


def test_what_is_recommended_is_the_beam_search_over_the_trie(model: RecommendationModel):
    """One history by hand: the last 20 items' tokens between user token and eos."""
    history = [f"item{number % 20 + 1}" for number in range(3, 30)]
    vocabulary, table = model.table.vocabulary, model.table
    ids = torch.tensor([[model.catalogue.ids[name] for name in history[-20:]]])
    tokens = [vocabulary.base_user_token, *table.tokens[0, ids].flatten().tolist(), vocabulary.eos_token]
    sequences, scores = model.recommender.generate(torch.tensor([tokens]), torch.tensor([82]), 20, 20, table.trie(0))
    names = [model.catalogue.names[item] for item in table.items_of(0, sequences)[0]]
    items, found = model.recommend([history, ["item1"]], k=20, num_beams=20, exclude_seen=False)
    assert items[0] == names
    np.testing.assert_allclose(found[0], scores[0], rtol=1e-5)


def test_an_empty_history_gets_the_most_popular_items(model: RecommendationModel, dataset: Path):
    sequences = json.loads((dataset / "all_item_seqs.json").read_text()).values()
    counted = [item for sequence in sequences for item in sequence[:-2]]
    names = model.catalogue.names[1:]
    expected = sorted(names, key=lambda name: (-counted.count(name), names.index(name)))[:4]
    items, scores = model.recommend([[], ["item7"], ["unheard of"]], k=4)
    assert items[0] == items[2] == expected
    assert all(math.isnan(score) for score in scores[0])
    assert not any(math.isnan(score) for score in scores[1])
    assert model.recommend([[]], k=4)[0] == [expected]


def test_batches_and_company_change_nothing(model: RecommendationModel):
    rng = np.random.default_rng(1)
    histories = [rng.integers(1, 21, size=length) for length in (3, 25, 1, 8, 3, 14, 2)]
    users = np.arange(1, 8)
    together = model.recommend_ids(histories, users, k=3)
    small = model.recommend_ids(histories, users, k=3, batch_size=2)
    np.testing.assert_array_equal(together.items, small.items)
    alone = [model.recommend_ids([history], k=3).items[0] for history in histories]
    np.testing.assert_array_equal(together.items, alone)


def test_too_few_items_are_an_error(model: RecommendationModel):
    with pytest.raises(ValueError, match="history 1 leaves 2 items to recommend, 3 are wanted"):
        model.recommend([["item1"], [f"item{number}" for number in range(1, 19)]], k=3)


def assigned(old: TokenTable, prefix: str = PREFIX, **semantic_ids: list[int]) -> str:
    texts = {name: f"text of {name}" for name in semantic_ids}
    content = {"prefix": prefix, "texts": texts, "semantic_ids": {"2": semantic_ids}}
    return json.dumps(content | {"semantic_ids_sha256": {"2": old.sha256[0]}})


def test_new_items_are_recommended_and_known_in_histories(joint_run: Path, tmp_path: Path):
    model = load(joint_run)
    codes, old = model.catalogue.codes(), model.catalogue.table
    twin = [*codes[4, :3].tolist(), 7]  # shares item5's codes
    file = tmp_path / "new.json"
    file.write_text(assigned(old, novelty=twin, item3=[0, 0, 0, 7]))
    catalogue = model.catalogue.with_new_items(file)
    assert catalogue.names[20:] == ["item20", "novelty"]
    assert catalogue.texts[21] == "text of novelty"
    np.testing.assert_array_equal(catalogue.codes()[:20], codes)
    model.catalogue, model.table = catalogue, catalogue.table
    items, _ = model.recommend([["novelty", "item1"], ["item1"]], k=19)
    assert "novelty" not in items[0]
    assert "novelty" in model.recommend([["item1"]], k=20)[0][0]
    file.write_text(assigned(old, novelty=codes[4].tolist()))
    with pytest.raises(InputError, match="a new item has another item's semantic ID"):
        load(joint_run).catalogue.with_new_items(file)
    retrained = TokenTable(old.tokens.flip(1), old.groups, old.vocabulary)  # a tokenizer of the same name
    for text in (assigned(old, "rqvae/other", novelty=twin), assigned(retrained, novelty=twin)):
        file.write_text(text)
        with pytest.raises(InputError, match="no semantic IDs of the model's tokenizer"):
            load(joint_run).catalogue.with_new_items(file)
