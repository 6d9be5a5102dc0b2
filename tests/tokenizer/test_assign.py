import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tokenizer import export
from tokenizer.config import TokenizerConfig
from tokenizer.embed import embed
from tokenizer.export import assign
from tokenizer.train import train
from utils.errors import InputError


@pytest.fixture
def config(make_config: Callable[..., TokenizerConfig]) -> TokenizerConfig:
    """A trained tokenizer of the built-in encoder, with its semantic IDs."""
    config = make_config(sent_emb_model="tfidf", sent_emb_dim=10)
    embed(config)
    train(config)
    export.export(config)
    return config


def test_new_items_get_the_codes_of_their_texts(config: TokenizerConfig, tmp_path: Path):
    """An item with an old item's text gets its codes and the next disambiguation code."""
    old_files = {file: file.read_bytes() for file in config.tokenizer_folder.glob("*.sem_ids")}
    texts = json.loads((config.folder / "metadata.sentence.json").read_text())
    (tmp_path / "new.json").write_text(
        json.dumps({"twin": texts["item7"], "twin2": texts["item7"], "item7": "changed", "odd": "Crane glove size L"})
    )
    flags = [f"--config_file={config.tokenizer_folder / 'config.yaml'}", f"--assign={tmp_path / 'new.json'}"]
    export.main(flags)
    found = json.loads((config.tokenizer_folder / "new_items.json").read_text())
    assert found["prefix"] == "rqvae/tfidf_8,8,8,8"
    assert found["texts"] == {"twin": texts["item7"], "twin2": texts["item7"], "odd": "Crane glove size L"}
    assert list(found["semantic_ids"]) == ["4", "5", "6", "best"]
    for epoch, rows in found["semantic_ids"].items():
        suffix = "" if epoch == "best" else f"_{epoch}"
        old = json.loads((config.tokenizer_folder / f"tfidf_8,8,8,8{suffix}.sem_ids").read_text())
        group = [codes for codes in old.values() if codes[:3] == old["item7"][:3]]
        expected = [[*old["item7"][:3], len(group) + 1], [*old["item7"][:3], len(group) + 2]]
        assert [rows["twin"], rows["twin2"]] == expected
        everything = [*map(tuple, old.values()), *map(tuple, rows.values())]
        assert len(set(everything)) == len(everything) == 63
    assert {file: file.read_bytes() for file in config.tokenizer_folder.glob("*.sem_ids")} == old_files

    (tmp_path / "more.json").write_text(json.dumps({"twin3": texts["item7"], "odd": "other words"}))
    assert "semantic IDs for 1 new items; 1 had them already" in assign(config, tmp_path / "more.json")
    more = json.loads((config.tokenizer_folder / "new_items.json").read_text())
    for epoch, rows in found["semantic_ids"].items():
        twin3 = more["semantic_ids"][epoch].pop("twin3")
        assert more["semantic_ids"][epoch] == rows
        assert twin3 == [*rows["twin2"][:3], rows["twin2"][3] + 1]
    assert assign(config, tmp_path / "more.json").endswith("all 2 items have semantic IDs already")


def test_new_items_do_not_outlive_their_tokenizer(config: TokenizerConfig, tmp_path: Path):
    (tmp_path / "new.json").write_text(json.dumps({"odd": "Crane glove size L"}))
    assign(config, tmp_path / "new.json")
    train(replace(config, epochs=7, overwrite=True))
    assert not (config.tokenizer_folder / "new_items.json").exists()


def test_new_items_are_encoded_as_the_old_ones_were(config: TokenizerConfig, tmp_path: Path):
    """A built-in encoder fitted to other texts would give codes that mean nothing."""
    texts = config.folder / "metadata.sentence.json"
    texts.write_text(texts.read_text().replace("glove", "mitten"))
    embed(replace(config, overwrite=True))
    (tmp_path / "new.json").write_text(json.dumps({"odd": "Crane glove size L"}))
    with pytest.raises(InputError, match="was trained with other settings: embeddings_sha256"):
        assign(config, tmp_path / "new.json")


def test_new_texts_are_embedded_with_the_old_ones_settings(config: TokenizerConfig, tmp_path: Path):
    (tmp_path / "new.json").write_text(json.dumps({"odd": "Crane glove size L"}))
    with pytest.raises(InputError, match="was made with seed=2024, new texts would be with 7; give the same"):
        assign(replace(config, rand_seed=7), tmp_path / "new.json")


def test_mistakes_are_named(config: TokenizerConfig, tmp_path: Path):
    texts = json.loads((config.folder / "metadata.sentence.json").read_text())
    new = tmp_path / "new.json"
    new.write_text(json.dumps({f"twin{number}": texts["item7"] for number in range(8)}))
    with pytest.raises(InputError, match=r"items would share the codes .* the disambiguation level of 8 separates"):
        assign(config, new)
    assert not (config.tokenizer_folder / "new_items.json").exists()
    new.write_text(json.dumps(["item"]))
    with pytest.raises(InputError, match=r"new\.json is not a dictionary"):
        assign(config, new)
