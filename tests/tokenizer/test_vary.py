import json
from pathlib import Path

import numpy as np
import pytest

from tokenizer import embed, export
from tokenizer.vary import main
from utils.errors import InputError


@pytest.fixture
def given(dataset: Path) -> Path:
    """Return a file of semantic IDs, as they are published: no model beside it."""
    rng = np.random.default_rng(3)
    codes = np.column_stack([rng.integers(4, size=60), rng.integers(8, size=(60, 2))])
    seen: dict[tuple, int] = {}
    table = {}
    for number, row in enumerate(codes.tolist()):
        seen[tuple(row)] = seen.get(tuple(row), 0) + 1
        table[f"item{number}"] = [*row, seen[tuple(row)]]
    file = dataset / "published" / "encoder_8,8,8,8_7.sem_ids"
    file.parent.mkdir()
    file.write_text(json.dumps(table))
    return file


def flags(dataset: Path, given: Path, **changes: object) -> list[str]:
    values = {"dataset": dataset.name, "data_dir": dataset.parent, "sem_ids": given, "codebook_size": 8}
    values |= {"sent_emb_model": "encoder", "sent_emb_dim": 12, "sent_emb_pca": 6, "num_tokenizers": 5, "drift": 0.4}
    return [f"--{name}={value}" for name, value in {**values, **changes}.items()]


def read(folder: Path) -> dict[int, np.ndarray]:
    tables = {int(file.stem.split("_")[-1]): json.loads(file.read_text()) for file in folder.glob("*.sem_ids")}
    return {number: np.array(list(table.values())) for number, table in sorted(tables.items())}


def test_the_middle_is_the_given_one_and_the_ends_are_as_far_apart_as_asked(dataset, given, capsys):
    main(flags(dataset, given))
    found = read(dataset / "neighbours")
    assert list(found) == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(found[3], list(json.loads(given.read_text()).values()))
    assert (found[1][:, 0] == found[5][:, 0]).all()
    assert (found[1] != found[5]).any(axis=1).mean() == pytest.approx(0.4, abs=0.08)  # 60 items
    report = json.loads((dataset / "neighbours" / "quality.json").read_text())
    assert report["drift"]["1"]["first"] == 0
    assert report["tokenizers"].keys() == {"1", "2", "3", "4", "5"}
    printed = capsys.readouterr().out
    assert "3 is the given tokenizer, the ends differ in" in printed
    assert "Share of items whose tokens differ" in printed


def test_what_is_there_stays_unless_it_may_be_replaced(dataset, given):
    main(flags(dataset, given))
    before = read(dataset / "neighbours")
    with pytest.raises(InputError, match=r"trained with other settings \(drift was 0.4, now 0.2"):
        main(flags(dataset, given, drift=0.2))
    np.testing.assert_array_equal(read(dataset / "neighbours")[5], before[5])
    main(flags(dataset, given, drift=0.2, num_tokenizers=3, overwrite="true"))
    assert list(read(dataset / "neighbours")) == [1, 2, 3]


@pytest.mark.parametrize("impossible", [{"drift": 0.99, "kept_levels": 2}, {"codebook_size": 4}])
def test_what_is_there_stays_where_nothing_can_replace_it(dataset, given, impossible):
    main(flags(dataset, given))
    files = {file: file.read_bytes() for file in (dataset / "neighbours").iterdir()}
    with pytest.raises(InputError):
        main(flags(dataset, given, overwrite="true", **impossible))
    assert {file: file.read_bytes() for file in (dataset / "neighbours").iterdir()} == files


@pytest.mark.parametrize(
    ("numbers", "kept"), [([3, 1, 2, 5, 4], True), ([3, 1, 2, 6, 5], False)], ids=["another order", "a gap"]
)
def test_the_middle_counts_colliding_items_as_the_given_one_does(dataset, given, capsys, numbers, kept):
    """Other programs may count in another order than by item id, or leave numbers out, which cannot be kept."""
    table = json.loads(given.read_text())
    table |= {name: [7, 7, 7, number] for name, number in zip(list(table)[-5:], numbers, strict=True)}
    given.write_text(json.dumps(table))
    main(flags(dataset, given))
    middle = json.loads((dataset / "neighbours" / "encoder_8,8,8,8_3.sem_ids").read_text())
    assert (middle == table) == kept
    assert (", its last level counted anew, the ends" in capsys.readouterr().out) != kept


def test_a_catalogue_may_have_fewer_items_than_codes(dataset, given):
    main(flags(dataset, given, codebook_size=100))
    np.testing.assert_array_equal(read(dataset / "neighbours")[3], list(json.loads(given.read_text()).values()))


def test_again_with_the_same_flags_it_is_reused(dataset, given, capsys):
    main(flags(dataset, given))
    capsys.readouterr()
    main(flags(dataset, given))
    assert "reused" in capsys.readouterr().out


def test_new_items_get_the_nearest_codes_by_all_tokenizers(dataset, given):
    """An item with the text of an old one has its embedding, and so its codes where these are the nearest."""
    embedded = [*flags(dataset, given), "--sent_emb_model=tfidf", "--sent_emb_dim=12"]
    embed.main([flag for flag in embedded if not flag.startswith(("--kept", "--sem_ids"))])
    main(embedded)
    config = dataset / "neighbours" / "config.yaml"
    new = dataset / "new.json"
    new.write_text(json.dumps({"another": json.loads((dataset / "metadata.sentence.json").read_text())["item7"]}))
    given.unlink()
    export.main([f"--config_file={config}", f"--assign={new}"])
    found = json.loads((dataset / "neighbours" / "new_items.json").read_text())["semantic_ids"]
    assert list(found) == ["1", "2", "3", "4", "5"]
    assert len({tuple(codes["another"][:-1]) for codes in found.values()}) == 1


def test_semantic_ids_that_came_with_the_dataset_are_used_as_they_are(dataset, given, capsys):
    (dataset / "neighbours").mkdir()
    before = given.read_text()
    (dataset / "neighbours" / given.name).write_text(before)
    main(flags(dataset, given))
    assert (dataset / "neighbours" / given.name).read_text() == before
    assert capsys.readouterr().out.count("holds 1 files of semantic IDs") == 2


def test_pre_training_takes_them(dataset, given):
    from data.token_table import resolve_groups

    main(flags(dataset, given))
    groups = resolve_groups(dataset, "neighbours/encoder_8,8,8,8", [1, 2, 3, 4, 5])
    assert [group.epoch for group in groups] == [1, 2, 3, 4, 5]


def test_wrong_flags_and_files(dataset, given):
    with pytest.raises(InputError) as caught:
        main(flags(dataset, "", num_tokenizers=1, drift=1, kept_levels=3))
    for part in ("--sem_ids is needed", "--num_tokenizers=1", "--drift=1.0", "--kept_levels=3 must be in 0..2"):
        assert part in str(caught.value)
    with pytest.raises(InputError, match=r"--drift=0\.99 cannot be had: at most"):
        main(flags(dataset, given, drift=0.99, kept_levels=2))
    with pytest.raises(InputError, match="--drift is needed"):
        main(flags(dataset, given, drift="null"))
    with pytest.raises(InputError, match="where new ones go; give another --ckpt_name"):
        main(flags(dataset, given, ckpt_name=given.parent.name, overwrite="true"))
    assert given.is_file()
    with pytest.raises(InputError, match=r"nothing\.sem_ids"):
        main(flags(dataset, given.with_name("nothing.sem_ids")))
