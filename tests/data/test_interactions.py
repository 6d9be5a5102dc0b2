import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from data.interactions import (
    Interactions,
    dataset_folder,
    follow_counts,
    item_counts,
    item_texts,
    load_interactions,
    split_positions,
    training_items,
    training_part,
)
from utils.errors import InputError
from utils.files import read_json_pieces


def offsets_of(lengths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)])


def edit_json(file: Path, change) -> None:
    value = json.loads(file.read_text())
    file.write_text(json.dumps(change(value) or value))


def test_splits_of_hand_made_lengths():
    """Users of 1, 2, 3, 4, 0 and 6 items."""
    offsets = offsets_of([1, 2, 3, 4, 0, 6])
    assert split_positions(offsets, "train").tolist() == [7, 11, 12, 13]
    assert split_positions(offsets, "valid").tolist() == [4, 8, 14]
    assert split_positions(offsets, "test").tolist() == [2, 5, 9, 15]
    assert split_positions(offsets, "train").dtype == np.int32
    with pytest.raises(ValueError, match="'dev' is none of"):
        split_positions(offsets, "dev")


@pytest.mark.parametrize("seed", range(5))
def test_splits_leak_nothing(seed: int):
    lengths = np.random.default_rng(seed).integers(1, 31, size=60).tolist()
    offsets = offsets_of(lengths)
    splits = {name: split_positions(offsets, name).tolist() for name in ("train", "valid", "test")}
    everything = [position for positions in splits.values() for position in positions]
    assert len(set(everything)) == len(everything)  # no interaction is a target twice
    for start, length in zip(offsets[:-1].tolist(), lengths, strict=True):
        mine = {
            name: [position - start + 1 for position in positions if start <= position < start + length]
            for name, positions in splits.items()
        }  # 1-based, as in the paper
        assert mine["test"] == ([length] if length >= 2 else [])
        assert mine["valid"] == ([length - 1] if length >= 3 else [])
        assert mine["train"] == list(range(2, length - 1))


def test_training_looks_at_nothing_of_validation_and_test(dataset: Path):
    interactions = load_interactions(dataset)
    bounds = list(zip(interactions.offsets[:-1].tolist(), interactions.offsets[1:].tolist(), strict=True))
    expected = [item for start, end in bounds for item in interactions.items[start : max(start, end - 2)].tolist()]
    assert training_part(interactions).items.tolist() == expected
    assert item_counts(training_part(interactions)).tolist() == [expected.count(item) for item in range(21)]
    assert training_items(interactions).tolist() == sorted(set(expected))
    targets = split_positions(interactions.offsets, "train")
    assert set(interactions.items[targets]) <= set(expected)


def test_follow_counts_by_hand():
    """Training has 1 2 3, 2 3, nothing of the third user, and 3 1: no pair leads from one user to the next."""
    sequences = [[1, 2, 3, 2, 3], [2, 3, 1, 2], [1, 2], [3, 1, 2, 3]]
    interactions = Interactions(
        user_names=list("abcd"),
        user_ids=np.arange(1, 5),
        item_names=["[PAD]", "x", "y", "z"],
        items=np.concatenate(sequences).astype(np.int32),
        offsets=offsets_of([len(items) for items in sequences]),
    )
    training = training_part(interactions)
    test, valid = (split_positions(interactions.offsets, split) for split in ("test", "valid"))
    assert follow_counts(training, interactions, test).tolist() == [2, 1, 1, 2]  # 2 3, 1 2, 1 2, 2 3
    assert follow_counts(training, interactions, valid).tolist() == [0, 1, 1]  # 3 2, 3 1, 1 2
    assert follow_counts(training, interactions, test[:0]).tolist() == []


def test_arrays_say_what_the_files_say(dataset: Path):
    interactions = load_interactions(dataset)
    sequences = json.loads((dataset / "all_item_seqs.json").read_text())
    assert list(interactions.user_names) == list(sequences)
    assert (interactions.num_users, interactions.num_items) == (30, 20)
    assert interactions.user_ids.tolist() == list(range(1, 31))
    assert interactions.item_names[0] == "[PAD]"
    for user, items in enumerate(sequences.values()):
        start, end = interactions.offsets[user : user + 2]
        assert [interactions.item_names[item] for item in interactions.items[start:end]] == items
        assert interactions.users_of(np.arange(start, end)).tolist() == [user] * len(items)
        assert interactions.history(int(end) - 1).tolist() == interactions.items[start : end - 1].tolist()
        assert interactions.history(int(end) - 1, 3).tolist() == interactions.items[start : end - 1][-3:].tolist()


def test_padding_in_the_dictionaries_changes_nothing(dataset: Path):
    without = load_interactions(dataset)

    def add_padding(mapping: dict) -> None:
        for key in ("user2id", "item2id"):
            mapping[key] = {"[PAD]": 0, **mapping[key]}

    edit_json(dataset / "id_mapping.json", add_padding)
    with_padding = load_interactions(dataset)
    assert list(with_padding.user_names) == list(without.user_names)
    assert with_padding.item_names == without.item_names
    for name in ("user_ids", "items", "offsets"):
        assert np.array_equal(getattr(with_padding, name), getattr(without, name))


def test_ids_come_from_the_mapping_and_users_from_the_sequences(tmp_path: Path):
    mapping = {"user2id": {"a": 2, "b": 1}, "item2id": {"x": 3, "y": 1, "z": 2}}
    (tmp_path / "id_mapping.json").write_text(json.dumps(mapping))
    (tmp_path / "all_item_seqs.json").write_text(json.dumps({"a": ["x", "y"], "b": ["z", "z", "x"]}))
    interactions = load_interactions(tmp_path)
    assert interactions.user_ids.tolist() == [2, 1]
    assert interactions.item_names == ["[PAD]", "y", "z", "x"]
    assert interactions.items.tolist() == [3, 1, 2, 2, 3]
    assert interactions.offsets.tolist() == [0, 2, 5]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("id_mapping.json", lambda m: m["item2id"].update(item3=99), "the 20 ids of item2id are not 1..20, each once"),
        ("id_mapping.json", lambda m: m["user2id"].update(user1=2), "the 30 ids of user2id are not 1..30, each once"),
        ("id_mapping.json", lambda m: m["user2id"].update(user1="1"), "ids of user2id are not 1..30"),
        ("id_mapping.json", lambda m: m.pop("item2id") and m, "has no dictionary 'item2id'"),
        ("id_mapping.json", lambda m: m.update(user2id={}), "user2id is empty"),
        ("all_item_seqs.json", lambda s: s.update(stranger=["item1"]), "user 'stranger' is not in user2id"),
        (
            "all_item_seqs.json",
            lambda s: s["user4"].append("nothing"),
            r"user 'user4' has \['nothing'\], not in item2id",
        ),
        ("all_item_seqs.json", lambda s: s.update(user4=7), "user 'user4' has 7, not a list of items"),
        ("all_item_seqs.json", lambda s: s.clear(), "holds no users"),
    ],
)
def test_broken_contents_are_refused(dataset: Path, file: str, change, message: str):
    edit_json(dataset / file, lambda value: change(value) and None)
    with pytest.raises(InputError, match=message):
        load_interactions(dataset)


def test_absent_and_broken_files_are_refused(dataset: Path):
    file = dataset / "all_item_seqs.json"
    file.write_text(file.read_text()[:-5])
    with pytest.raises(InputError, match=r"all_item_seqs.json is not a whole JSON file in UTF-8"):
        load_interactions(dataset)
    file.unlink()
    with pytest.raises(InputError, match=r"all_item_seqs.json does not exist"):
        load_interactions(dataset)


def test_dataset_folder_names_near_matches(dataset: Path):
    assert dataset_folder(dataset.parent, "Tiny") == dataset
    with pytest.raises(InputError, match=r"did you mean Tiny\?"):
        dataset_folder(dataset.parent, "Tinny")
    with pytest.raises(InputError, match="unzip a published dataset there or set --data_dir"):
        dataset_folder(dataset.parent / "nowhere", "Tiny")


def test_item_texts(dataset: Path):
    names = load_interactions(dataset).item_names
    assert item_texts(dataset, names) == [f"text of {name}" for name in names[1:]]
    edit_json(dataset / "metadata.sentence.json", lambda texts: texts.update(item2=" ", item5=None))
    with pytest.raises(InputError, match="2 of 20 items have no text, the first is 'item2'"):
        item_texts(dataset, names)
    (dataset / "metadata.sentence.json").write_text("[]")
    with pytest.raises(InputError, match="is not a dictionary"):
        item_texts(dataset, names)


def test_halves_of_characters_do_not_reach_the_texts_or_names(dataset: Path):
    """JSON can write half an emoji, UTF-8 can not; it would end fine-tuning when its model is written."""
    metadata, mapping = dataset / "metadata.sentence.json", dataset / "id_mapping.json"
    texts = json.loads(metadata.read_text())
    metadata.write_text(json.dumps(texts | {"item2": "cut \ud83d"}))
    assert item_texts(dataset, load_interactions(dataset).item_names)[1] == "cut ?"
    mapping.write_text(mapping.read_text().replace('"item2"', '"item2\\ud83d"'))
    with pytest.raises(InputError, match="item2id has 1 names with half a character, the first is 'item2"):
        load_interactions(dataset)


def test_a_large_file_is_read_in_pieces(dataset: Path, monkeypatch: pytest.MonkeyPatch):
    whole = load_interactions(dataset)
    monkeypatch.setattr("data.interactions.read_json_pieces", partial(read_json_pieces, piece_size=64))
    in_pieces = load_interactions(dataset)
    assert list(in_pieces.user_names) == list(whole.user_names)
    for name in ("user_ids", "items", "offsets"):
        assert np.array_equal(getattr(in_pieces, name), getattr(whole, name)), name
    text = (dataset / "all_item_seqs.json").read_text()
    (dataset / "all_item_seqs.json").write_text(text.strip()[:-1] + ', "user1": ["item1"]}')
    with pytest.raises(InputError, match="has a user twice"):
        load_interactions(dataset)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_files_with_a_byte_order_mark_are_read(dataset: Path, encoding: str):
    expected = load_interactions(dataset)
    for name in ("id_mapping.json", "all_item_seqs.json", "metadata.sentence.json"):
        text = (dataset / name).read_text(encoding="utf-8")
        (dataset / name).write_bytes(text.encode(encoding))
    assert load_interactions(dataset).sha256 == expected.sha256
    assert len(item_texts(dataset, expected.item_names)) == expected.num_items
