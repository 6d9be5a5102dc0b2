import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data.interactions import load_interactions
from data.token_table import (
    Vocabulary,
    find_sem_ids,
    group_labels,
    level_sizes,
    load_token_table,
    read_sem_ids,
    resolve_groups,
    write_sem_ids,
)
from utils.errors import InputError

PREFIX = "toy_8,8,8,8"
NAMES = ["x", "y", "z"]
SIZES = (4, 4, 3)


def write(file: Path, table: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(table))
    return file


@pytest.mark.parametrize(
    ("n_codebooks", "codebook_size", "expected"),
    [(3, 256, (256,) * 4), (3, [4, 5, 6], (4, 5, 6, 6)), (3, [4, 5, 6, 9], (4, 5, 6, 9)), (1, [7], (7, 7))],
)
def test_level_sizes(n_codebooks: int, codebook_size: int | list[int], expected: tuple[int, ...]):
    assert level_sizes(n_codebooks, codebook_size) == expected


def test_level_sizes_of_a_wrong_length():
    with pytest.raises(InputError, match=r"codebook_size=\[4, 5\] has 2 entries; n_codebooks=3 takes 3 or 4"):
        level_sizes(3, [4, 5])


def test_vocabulary_of_the_published_files():
    vocabulary = Vocabulary((256,) * 4)
    assert vocabulary.level_offsets == (1, 257, 513, 769)
    assert (vocabulary.base_user_token, vocabulary.eos_token, vocabulary.size) == (1025, 1026, 1027)


@pytest.mark.parametrize(("sizes", "n_user_tokens"), [((8, 8, 8, 8), 1), ((4, 9, 2), 5), ((3, 3, 3, 7), 2000)])
def test_tokens_and_level_code_pairs_are_a_bijection(sizes: tuple[int, ...], n_user_tokens: int):
    vocabulary = Vocabulary(sizes, n_user_tokens)
    codes = [vocabulary.level_offsets[level] + code for level, size in enumerate(sizes) for code in range(size)]
    users = [vocabulary.base_user_token + user % n_user_tokens for user in range(1, 5001)]
    assert codes == list(range(1, sum(sizes) + 1))  # each (level, code) its own token, and no token without one
    assert sorted(set(users)) == list(range(sum(sizes) + 1, sum(sizes) + 1 + n_user_tokens))
    assert vocabulary.eos_token == sum(sizes) + 1 + n_user_tokens
    assert vocabulary.size == len({0, *codes, *users, vocabulary.eos_token})


def test_sem_ids_round_trip(tmp_path: Path):
    codes = np.asarray([[0, 3, 1], [1, 0, 1], [1, 0, 2]])
    write_sem_ids(tmp_path / "a.sem_ids", NAMES, codes)
    assert json.loads((tmp_path / "a.sem_ids").read_text()) == {"x": [0, 3, 1], "y": [1, 0, 1], "z": [1, 0, 2]}
    read = read_sem_ids(tmp_path / "a.sem_ids", NAMES, SIZES)
    assert read.dtype == np.int32
    assert np.array_equal(read, codes)
    assert read_sem_ids(tmp_path / "a.sem_ids", ["z", "x", "y"], SIZES).tolist() == codes[[2, 0, 1]].tolist()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"x": [0, 0, 1]}, "2 of 3 items have no semantic ID, first 'y'"),
        ({"x": [0, 0, 1], "y": [0, 1, 1], "z": [0, 2, 1], "q": [1, 1, 1]}, "1 items are not in the dataset.*'q'"),
        ({"x": [0, 0, 1], "y": [0, 1], "z": [0, 2]}, r"2 items have no list of 3 integer codes.*'y': \[0, 1\]"),
        ({"x": [0, 0, 1], "y": [0, 1.0, 1], "z": [0, 2, 1]}, "1 items have no list of 3 integer codes.*'y'"),
        ({"x": [0, 0, 1], "y": [0, 4, 1], "z": [0, -1, 1]}, r"2 items have a code out of range.*'y': \[0, 4, 1\]"),
        ({"x": [0, 0, 0], "y": [0, 1, 1], "z": [0, 2, 1]}, "1 items have a code out of range.*'x'.*counts from 1"),
        ({"x": [0, 0, 3], "y": [0, 1, 1], "z": [0, 2, 1]}, "1 items have a code out of range.*'x'"),
        ({"x": [0, 0, 2**40], "y": [0, 1, 1], "z": [0, 2, 1]}, "does not fit in 32 bits"),
        ({"x": [0, 0, 1], "y": [0, 1, 1], "z": [0, 0, 1]}, r"1 items share another's.*'x' and 'z': \[0, 0, 1\]"),
        (["x", "y", "z"], "is not a dictionary"),
    ],
)
def test_broken_sem_ids_are_refused(tmp_path: Path, table: object, message: str):
    file = write(tmp_path / "broken_7.sem_ids", table)
    with pytest.raises(InputError, match=rf"broken_7\.sem_ids.*{message}"):
        read_sem_ids(file, NAMES, SIZES)


def test_find_sem_ids(dataset: Path):
    write(dataset / "rqvae" / "other_4,4_10.sem_ids", {})
    write(dataset / "rqvae" / "other_4,4_9.sem_ids", {})
    write(dataset / "rqvae" / "other_4,4.sem_ids", {})
    write(dataset / "rqvae" / "other_4,4_9.quality.json", {})
    write(dataset / "elsewhere" / "hidden_4,4_1.sem_ids", {})
    found = find_sem_ids(dataset)
    assert {prefix: list(files) for prefix, files in found.items()} == {
        "rqvae/other_4,4": [None, 9, 10],
        f"rqvae/{PREFIX}": [1, 2, 3],
    }
    assert found["rqvae/other_4,4"][10] == dataset / "rqvae" / "other_4,4_10.sem_ids"


def test_find_sem_ids_in_another_folder_where_rqvae_has_none(tmp_path: Path):
    write(tmp_path / "mine" / "toy_4,4_1.sem_ids", {})
    assert list(find_sem_ids(tmp_path)) == ["mine/toy_4,4"]
    assert find_sem_ids(tmp_path, suffix="codes") == {}


def test_the_only_prefix_is_taken_with_all_its_epochs(dataset: Path):
    groups = resolve_groups(dataset)
    assert [(group.prefix, group.epoch) for group in groups] == [(f"rqvae/{PREFIX}", epoch) for epoch in (1, 2, 3)]
    assert [group.epoch for group in resolve_groups(dataset, epochs=[3, 1])] == [3, 1]
    assert [group.epoch for group in resolve_groups(dataset, last=2)] == [2, 3]


def test_prefixes_times_epochs_in_that_order(dataset: Path):
    for epoch in (2, 3):
        write(dataset / "rqvae" / f"other_8,8,8,8_{epoch}.sem_ids", {})
    groups = resolve_groups(dataset, ["other_8,8,8,8", f"rqvae/{PREFIX}"], [3, 2])
    assert [(group.prefix, group.epoch) for group in groups] == list(
        itertools.product(["rqvae/other_8,8,8,8", f"rqvae/{PREFIX}"], [3, 2])
    )
    with pytest.raises(InputError, match=f"several tokenizers.*--token_prefix: rqvae/other_8,8,8,8 rqvae/{PREFIX}"):
        resolve_groups(dataset)


def test_the_best_checkpoint_has_no_number(dataset: Path):
    write(dataset / "rqvae" / "best_8,8.sem_ids", {})
    (group,) = resolve_groups(dataset, "best_8,8")
    assert (group.epoch, group.file.name) == (None, "best_8,8.sem_ids")
    write(dataset / "rqvae" / f"{PREFIX}.sem_ids", {})
    assert [group.epoch for group in resolve_groups(dataset, PREFIX)] == [1, 2, 3]  # numbered ones come first


def test_missing_groups_are_refused(dataset: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"no file for epoch 4, 9; present: 1\.\.3 \(3 epochs\)"):
        resolve_groups(dataset, epochs=[2, 4, 9])
    with pytest.raises(InputError, match=r"has 3 numbered \.sem_ids files, 5 are wanted"):
        resolve_groups(dataset, last=5)
    with pytest.raises(
        InputError, match=rf"has no files rqvae/nothing_<epoch>\.sem_ids; prefixes in that folder: rqvae/{PREFIX}$"
    ):
        resolve_groups(dataset, "nothing")
    with pytest.raises(InputError, match=r"has no files elsewhere/toy_<epoch>\.sem_ids; .* folder: none$"):
        resolve_groups(dataset, "elsewhere/toy")
    with pytest.raises(InputError, match=r"has no \.sem_ids files; make them with tokenizer/run\.sh"):
        resolve_groups(tmp_path)


@pytest.mark.parametrize("n_user_tokens", [1, 3])
def test_token_table(dataset: Path, n_user_tokens: int):
    names = load_interactions(dataset).item_names[1:]
    table = load_token_table(resolve_groups(dataset), names, Vocabulary((8,) * 4, n_user_tokens))
    assert table.tokens.shape == (3, 21, 4)
    assert table.tokens.dtype == torch.int32
    assert table.num_groups == 3
    assert not table.tokens[:, 0].any()
    for group in range(3):
        codes = json.loads((dataset / "rqvae" / f"{PREFIX}_{group + 1}.sem_ids").read_text())
        for item, name in enumerate(names, start=1):
            expected = [code + 1 + 8 * level for level, code in enumerate(codes[name])]
            assert table.tokens[group, item].tolist() == expected


def test_items_of_semantic_ids(dataset: Path):
    names = load_interactions(dataset).item_names[1:]
    table = load_token_table(resolve_groups(dataset), names, Vocabulary((8,) * 4))
    for group in range(3):
        assert table.items_of(group, table.tokens[group, 1:]).tolist() == list(range(1, 21))
    assert not torch.equal(table.tokens[0], table.tokens[1])
    lookup = {tuple(row): item for item, row in enumerate(table.tokens[1].tolist())}
    foreign = table.tokens[0, 1:].view(4, 5, 4)
    expected = [[lookup.get(tuple(row), 0) for row in block] for block in foreign.tolist()]
    assert table.items_of(1, foreign).tolist() == expected
    wrong = torch.tensor([[0, 0, 0, 0], [33, 33, 33, 33], [34, 34, 34, 34]])
    assert table.items_of(0, wrong).tolist() == [0, 0, 0]


def test_labels_are_short_and_unique():
    assert group_labels([("a", 3), ("a", None)]) == ["3", "best"]
    assert group_labels([("a", 3), ("a", 4), ("b", 3)]) == ["0_3", "0_4", "1_3"]
