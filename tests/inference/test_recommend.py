import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from data.token_table import TokenTable
from inference.model_folder import export_model
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
    vocabulary, table = model.catalogue.table.vocabulary, model.catalogue.table
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
    items, scores = model.recommend([[], ["item7"]], k=4)
    assert items[0] == expected
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


def test_who_has_fewer_than_k_items_left_gets_these(model: RecommendationModel):
    names = model.catalogue.names[1:]
    histories = [["item1"], names[:18], names, [], names[1:], names[:17]]
    items, scores = model.recommend(histories, k=3)
    assert items[0] == model.recommend([["item1"]], k=3)[0][0]
    assert [set(row) for row in (items[1], items[2], items[4])] == [set(names[18:]), set(), {"item1"}]
    assert set(items[5]) == set(names[17:])
    assert list(map(len, items)) == list(map(len, scores)) == [3, 2, 0, 3, 1, 3]
    assert scores[1] == sorted(scores[1], reverse=True)
    assert max(scores[1]) < 0
    assert list(map(len, model.recommend([[], ["item1"]], k=50)[0])) == [20, 19]


def test_a_history_of_another_shape_is_an_error_with_the_right_call(model: RecommendationModel):
    for wrong, said in (
        ("i3", "histories must be a list of lists of item names"),
        ({"ann": ["item1"]}, "histories must be a list of lists of item names"),
        (["i3", "i4"], "history 0 must be a list of item names"),
        ([["item1"], None], "history 1 must be a list of item names"),
        ([{"item1", "item2"}], "history 0 must be a list of item names"),
        ([[3]], "item names are strings"),
        ([["item1"], ["item2", None]], "item names are strings"),
        (np.asarray([[1, 2]]), "item names are strings"),
    ):
        with pytest.raises(InputError, match=said) as error:
            model.recommend(wrong)
        assert 'model.recommend([["item1", "item2"], []])' in str(error.value)
    right = model.recommend([["item1", "item2"]], k=3)
    assert (
        model.recommend((("item1", "item2"),), k=3) == model.recommend(np.asarray([["item1", "item2"]]), k=3) == right
    )


def test_a_history_of_which_nothing_is_known_is_an_error(model: RecommendationModel):
    with pytest.raises(InputError, match=r"history 1 has no item of the catalogue, its first is 'unheard of'"):
        model.recommend([[], ["unheard of"], ["item1"]])


def test_load_takes_what_the_command_line_takes(joint_run: Path, tmp_path: Path):
    winner = joint_run.parent / "finetune.winner.json"
    winner.write_text(json.dumps({"winner": {"run": f"where/the/runs/were/before/{joint_run.name}"}}))
    expected = load(joint_run).recommend([["item1"]], k=3)
    assert load(winner, device="auto").recommend([["item1"]], k=3) == expected
    export_model(winner, tmp_path / "out")
    assert load(str(tmp_path / "out")).recommend([["item1"]], k=3) == expected
    with pytest.raises(InputError, match="device=gpu is no device"):
        load(joint_run, device="gpu")
    codes = [*load(joint_run).catalogue.codes()[4, :3].tolist(), 7]
    (tmp_path / "new.json").write_text(assigned(load(joint_run).catalogue.table, novelty=codes))
    model = load(winner, new_items=tmp_path / "new.json")
    assert "novelty" in model.recommend([["item1"]], k=20)[0][0]


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
    model.catalogue = catalogue
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
