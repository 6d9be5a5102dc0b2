import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tokenizer.config import TokenizerConfig
from tokenizer.embed import embed, load_embeddings
from tokenizer.export import export, main, semantic_ids
from tokenizer.folder import load_tokenizer, sem_ids_file
from tokenizer.quality import disambiguation_codes
from tokenizer.train import train
from utils.errors import InputError

MakeConfig = Callable[..., TokenizerConfig]


def test_every_kept_epoch_and_the_best(make_config: MakeConfig):
    config = make_config()
    train(config)
    report = export(config)
    folder = config.tokenizer_folder
    files = {f"encoder_8,8,8,8{suffix}.sem_ids" for suffix in ("_4", "_5", "_6", "")}
    assert {path.name for path in folder.glob("*.sem_ids")} == files
    tokenizer = load_tokenizer(config)
    prepared = tokenizer.prepare(load_embeddings(config, 60))
    for epoch in (4, 5, 6, None):
        table = json.loads(sem_ids_file(config, epoch).read_text())
        assert list(table) == [f"item{i}" for i in range(60)]
        ids = np.array(list(table.values()))
        np.testing.assert_array_equal(ids[:, :3], tokenizer.codes(prepared, epoch))
        assert len(np.unique(ids, axis=0)) == 60
        assert ids[:4, 3].tolist() == list(range(ids[0, 3], ids[0, 3] + 4))  # the four items with equal embeddings
        assert report["tokenizers"][str(epoch or "best")]["largest_group"] == ids[:, 3].max()
    assert json.loads((folder / "quality.json").read_text())["drift"].keys() == {"1", "2"}
    assert (folder / "quality.txt").read_text().startswith("60 items, codebooks of 8, 8, 8")
    before = {name: (folder / name).read_bytes() for name in files}
    export(config)
    assert {name: (folder / name).read_bytes() for name in files} == before


def test_export_without_training(make_config: MakeConfig):
    with pytest.raises(InputError, match=r"rqvae does not exist; run python -m tokenizer.train first"):
        export(make_config())


def test_names_that_do_not_exist_leave_nothing(make_config: MakeConfig, dataset: Path):
    before = sorted(dataset.parent.rglob("*"))
    for changes, message in (
        (
            {"ckpt_name": "absent"},
            "absent does not exist; run python -m tokenizer.train first, or give its --ckpt_name",
        ),
        ({"dataset": "Tinny"}, r"Tinny does not exist.*did you mean Tiny\?"),
    ):
        config = make_config(**changes)
        flags = [f"--{name}={getattr(config, name)}" for name in ("dataset", "data_dir", "ckpt_name")]
        for more in ([], ["--assign=texts.json"]):
            with pytest.raises(InputError, match=message):
                main([*flags, *more])
    assert sorted(dataset.parent.rglob("*")) == before


def test_published_semantic_ids_are_left_alone(make_config: MakeConfig, capsys: pytest.CaptureFixture):
    config = make_config()
    config.tokenizer_folder.mkdir()
    file = sem_ids_file(config, 9987)
    file.write_text("published")
    config.embedding_file.unlink()
    embed(config)
    train(config)
    assert export(config) == {}
    assert (
        capsys.readouterr().out.count("holds 1 files of semantic IDs encoder_8,8,8,8*.sem_ids that were not made") == 3
    )
    assert [path.name for path in config.tokenizer_folder.iterdir()] == [file.name]
    for command in (train, export):
        with pytest.raises(InputError, match=r"encoder_8,8,8,8_9987.sem_ids, these settings: encoder_4,4,4,4_"):
            command(make_config(codebook_size=4))


def test_disambiguation_counts_in_item_order_within_a_group():
    codes = np.array([[1, 2], [0, 0], [1, 2], [2, 1], [0, 0], [1, 2]])
    assert disambiguation_codes(codes).tolist() == [1, 1, 2, 1, 2, 3]


def test_disambiguation_equals_a_plain_loop():
    codes = np.random.default_rng(0).integers(0, 3, size=(200, 3))
    seen: dict[tuple[int, ...], int] = {}
    expected = []
    for row in map(tuple, codes.tolist()):
        seen[row] = seen.get(row, 0) + 1
        expected.append(seen[row])
    assert disambiguation_codes(codes).tolist() == expected


def test_a_group_may_fill_its_level_but_not_more():
    names = [f"item{i}" for i in range(4)]
    codes = np.array([[7, 7], [7, 7], [0, 7], [7, 7]])
    assert semantic_ids(codes, 4, "9", names)[:, 2].tolist() == [1, 2, 1, 3]
    with pytest.raises(InputError, match=r"epoch 9: 3 items share the codes \[7, 7\] \('item3' among them\)") as error:
        semantic_ids(codes, 3, "9", names)
    assert "separates at most 2" in str(error.value)
    assert "--codebook_size (at least 4)" in str(error.value)


def test_new_items_are_counted_behind_the_old_ones():
    taken = np.asarray([[0, 1, 1], [0, 1, 2], [2, 2, 5]])
    codes = np.asarray([[2, 2], [0, 1], [3, 3], [0, 1]])
    assert disambiguation_codes(codes, taken).tolist() == [6, 3, 1, 4]
