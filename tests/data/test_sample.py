"""The bundled sample: its bytes, its format, and that its users' next items depend on what came before."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from data.sample import (
    MAX_ITEMS,
    NUM_CATEGORIES,
    NUM_HOBBIES,
    NUM_MATERIALS,
    NUM_SERIES,
    NUM_SIZES,
    describe,
    main,
    make_items,
    make_sample,
    make_sequences,
    parse_catalogue,
)
from utils.errors import InputError

NAMES = {"metadata.sentence.json", "all_item_seqs.json", "id_mapping.json"}
# SHA-256 over the three files of the default sample, in the order of their names.
DEFAULT_SHA256 = "1d12e2254457064756eb274603322c994b10a764a47216e68ff8e405304e6cab"


def write(data_dir: Path, *flags: str, dataset: str = "Tiny") -> Path:
    """Run the command at test size; return the dataset folder."""
    main([f"--data_dir={data_dir}", f"--dataset={dataset}", "--num_users=200", "--num_items=80", *flags])
    return data_dir / dataset


def digest(folder: Path) -> str:
    """Return the SHA-256 of all files' bytes, in the order of their names."""
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in sorted(NAMES))).hexdigest()


@pytest.fixture(scope="module")
def sample() -> dict:
    return make_sample(rand_seed=2024, num_users=3000, num_items=600)


def test_default_sample_has_the_published_bytes(tmp_path):
    main([f"--data_dir={tmp_path}"])
    assert {path.name for path in (tmp_path / "Sample").iterdir()} == NAMES
    assert digest(tmp_path / "Sample") == DEFAULT_SHA256


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path):
    first, second = write(tmp_path, dataset="First"), write(tmp_path, dataset="Second")
    other = write(tmp_path, "--rand_seed=7", dataset="Other")
    assert digest(first) == digest(second) != digest(other)


def test_catalogue_is_whole():
    categories = parse_catalogue()
    assert len(categories) == NUM_HOBBIES * NUM_CATEGORIES == 36
    for category in categories:
        shape = (len(category.series), len(category.materials), len(category.sizes))
        assert shape == (NUM_SERIES, NUM_MATERIALS, NUM_SIZES)
    assert len({series for category in categories for series in category.series}) == NUM_HOBBIES * NUM_SERIES


def test_text_of_one_product():
    text = "Osaka Works Tsuki walnut burr grinder, 100 g. Osaka Works. Coffee. Grinds whole beans evenly, "
    assert describe(parse_catalogue()[0], series=7, material=2, size=2) == text + "from fine to coarse. $175.95."


def test_every_possible_item_has_a_text_of_its_own():
    uniform = np.random.default_rng(0).random
    assert len(set(make_items(MAX_ITEMS, uniform).texts)) == MAX_ITEMS


def test_items_are_spread_over_categories_and_series():
    items = make_items(600, np.random.default_rng(0).random)
    assert set(np.bincount(items.hobby * NUM_CATEGORIES + items.category)) == {16, 17}
    assert set(np.bincount(items.hobby * NUM_SERIES + items.series)) <= {12, 13, 14, 15, 16, 17, 18}
    assert (items.tier == items.series // 2).all()


def test_sequences(sample):
    sequences, texts = sample["all_item_seqs.json"], sample["metadata.sentence.json"]
    lengths = [len(sequence) for sequence in sequences.values()]
    counts = Counter(item for sequence in sequences.values() for item in sequence)
    assert len(sequences) == 3000
    assert min(lengths) == 5
    assert 30 <= max(lengths) <= 40
    assert 8.5 < np.mean(lengths) < 9.5
    assert all(len(set(sequence)) == len(sequence) for sequence in sequences.values())
    assert counts.keys() == texts.keys()
    assert min(counts.values()) >= 5
    assert len(set(texts.values())) == len(texts) == 600


def test_id_mapping(sample):
    mapping, sequences = sample["id_mapping.json"], sample["all_item_seqs.json"]
    for singular, names in (("user", sequences), ("item", sample["metadata.sentence.json"])):
        assert mapping[f"id2{singular}"] == ["[PAD]", *names]
        assert mapping[f"{singular}2id"] == {name: index for index, name in enumerate(["[PAD]", *names])}
    assert [mapping["item2id"][item] for item in sequences["U00001"]] == list(range(1, len(sequences["U00001"]) + 1))


@pytest.mark.parametrize(("num_users", "num_items"), [(40, 40), (41, 40), (90, 81), (300, 240)])
def test_every_item_is_in_some_training_history(num_users, num_items):
    sequences = make_sample(1, num_users, num_items)["all_item_seqs.json"].values()
    assert len({item for sequence in sequences for item in sequence[:-2]}) == num_items


def test_item_to_item_transitions_beat_popularity(sample):
    """Most often followed by: Recall@10 of the last item, counted on everything but users' last two items."""
    sequences = sample["all_item_seqs.json"].values()
    popular, following = Counter(), defaultdict(Counter)
    for *history, _, _ in sequences:
        popular.update(history)
        for item, after in pairwise(history):
            following[item][after] += 1
    top = [item for item, _ in popular.most_common(10)]
    by_popularity = np.mean([sequence[-1] in top for sequence in sequences])
    after = {item: [other for other, _ in counts.most_common(10)] for item, counts in following.items()}
    by_transition = np.mean([sequence[-1] in after[sequence[-2]] for sequence in sequences])
    assert 0.05 < by_popularity < 0.15
    assert by_transition > 3 * by_popularity
    assert by_transition < 0.6  # the last item alone does not give the next one away


def test_complements_series_and_taste_lead_to_the_next_item():
    items = make_items(600, np.random.default_rng(0).random)
    sequences = make_sequences(items, 3000, np.random.default_rng(1).random)
    before = np.concatenate([sequence[:-1] for sequence in sequences])
    after = np.concatenate([sequence[1:] for sequence in sequences])
    same_hobby = items.hobby[before] == items.hobby[after]
    steps = ((items.category[after] - items.category[before]) % NUM_CATEGORIES)[same_hobby]
    shares = np.bincount(steps, minlength=NUM_CATEGORIES) / len(steps)
    assert same_hobby.mean() > 3 / NUM_HOBBIES
    assert shares[1] > 2 * shares[3:].max()  # the complement comes next
    assert shares[3:].min() > shares[0]  # and hardly ever the same category again
    assert (items.series[before] == items.series[after])[same_hobby].mean() > 2.5 / NUM_SERIES
    # Back in a hobby after a detour, the category goes on from where that hobby was left.
    returns = [
        (items.category[sequence[i + 2]] - items.category[sequence[i]]) % NUM_CATEGORIES
        for sequence in sequences
        for i in range(len(sequence) - 2)
        if items.hobby[sequence[i]] == items.hobby[sequence[i + 2]] != items.hobby[sequence[i + 1]]
    ]
    assert np.mean(np.array(returns) == 1) > 2 / NUM_CATEGORIES


def test_reuses_the_same_dataset_and_completes_a_partial_one(tmp_path, capsys):
    folder = write(tmp_path)
    assert "reused" not in capsys.readouterr().out
    before = digest(folder)
    written = (folder / "id_mapping.json").stat().st_mtime_ns
    write(tmp_path)
    assert "reused" in capsys.readouterr().out
    assert (folder / "id_mapping.json").stat().st_mtime_ns == written
    (folder / "id_mapping.json").unlink()
    write(tmp_path)
    assert "reused" not in capsys.readouterr().out
    assert digest(folder) == before


def test_replaces_another_dataset_only_when_told_to(tmp_path):
    folder = write(tmp_path)
    before = digest(folder)
    with pytest.raises(InputError, match=r"all_item_seqs\.json.*--overwrite"):
        write(tmp_path, "--rand_seed=7")
    assert digest(folder) == before
    write(tmp_path, "--rand_seed=7", "--overwrite=true")
    assert digest(folder) != before
    (folder / "tfidf.sent_emb").write_bytes(b"made from the texts")
    with pytest.raises(InputError, match=r"also holds tfidf\.sent_emb"):
        write(tmp_path, "--overwrite=true")
    write(tmp_path, "--rand_seed=7")  # the same dataset may have company


def test_problems_come_in_one_message(tmp_path):
    flags = ["--num_items=39", "--num_users=9", "--rand_seed=-1", "--dataset=../out"]
    with pytest.raises(InputError) as error:
        main([f"--data_dir={tmp_path}", *flags])
    message = str(error.value)
    assert message.count(";") == 3
    assert all(flag.split("=")[0] in message for flag in flags)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a/"])
def test_dataset_is_a_name(tmp_path, name):
    with pytest.raises(InputError, match=rf"--dataset={re.escape(name)} is not the name of a folder inside --data_dir"):
        main([f"--data_dir={tmp_path / 'data'}", f"--dataset={name}", "--overwrite=true"])
    assert not list(tmp_path.iterdir())


def test_files_are_utf8_json_ending_in_a_newline(tmp_path):
    for name in NAMES:
        text = (write(tmp_path) / name).read_text(encoding="utf-8")
        assert text.endswith("}\n")
        assert json.loads(text)
