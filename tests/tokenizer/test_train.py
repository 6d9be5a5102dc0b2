import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data.interactions import load_interactions, training_items
from tokenizer.config import TokenizerConfig
from tokenizer.embed import load_embeddings
from tokenizer.folder import load_tokenizer
from tokenizer.rqvae_training import build_model
from tokenizer.train import train
from utils.config import parse_config
from utils.errors import InputError

MakeConfig = Callable[..., TokenizerConfig]


def test_fewer_items_than_codes(make_config: MakeConfig):
    with pytest.raises(InputError, match="57 training items cannot fill 64 codes; lower --codebook_size"):
        train(make_config(codebook_size=64))


def test_files_of_a_training(make_config: MakeConfig):
    config = make_config()
    train(replace(config, overwrite=True))  # what to do with the folder is no setting that config.yaml gives back
    folder = config.tokenizer_folder
    assert sorted(path.name for path in (folder / "epochs").iterdir()) == [
        f"{epoch}.safetensors" for epoch in (4, 5, 6)
    ]
    last = load_file(folder / "last.safetensors")
    build_model(config).load_state_dict(last)
    kept = load_file(folder / "epochs" / "6.safetensors")
    assert all(torch.equal(value, last[name]) for name, value in kept.items())
    assert not any(name.startswith("decoder") for name in kept)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    result = json.loads((folder / "training.json").read_text())
    losses = [line["loss"] for line in metrics]
    assert (result["finished"], result["best_loss"]) == (True, min(losses))
    assert result["best_epoch"] == losses.index(min(losses)) + 1
    again, _ = parse_config(TokenizerConfig, [f"--config_file={folder / 'config.yaml'}"], "test", "")
    assert again == config


def test_pca_sees_all_items_and_training_only_training_items(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch):
    config, seen = make_config(), []
    monkeypatch.setattr(
        "tokenizer.rqvae_training.initialize_codebooks_", lambda model, inputs, seed: seen.append(inputs.clone())
    )
    train(config)
    interactions = load_interactions(config.folder)
    embeddings, items = load_embeddings(config, 60), training_items(interactions)
    assert 0 < len(items) < 60
    assert 60 not in items
    pca = load_file(config.tokenizer_folder / "pca.safetensors")
    np.testing.assert_allclose(pca["mean"].numpy(), embeddings.mean(axis=0), atol=1e-6)
    prepared = load_tokenizer(config, embeddings).prepare(embeddings)
    assert torch.equal(seen[0], prepared[items - 1])


def test_without_pca_the_embeddings_are_trained_on_as_they_are(make_config: MakeConfig):
    config = make_config(sent_emb_pca=-1, epochs=1)
    train(config)
    assert not (config.tokenizer_folder / "pca.safetensors").exists()
    embeddings = load_embeddings(config, 60)
    assert torch.equal(load_tokenizer(config).prepare(embeddings), torch.from_numpy(embeddings))


def test_the_seed_decides_the_codes(make_config: MakeConfig):
    def codes(name: str, seed: int) -> np.ndarray:
        config = make_config(ckpt_name=name, rand_seed=seed, dropout=0.1)
        train(config)
        tokenizer = load_tokenizer(config)
        return tokenizer.codes(tokenizer.prepare(load_embeddings(config, 60)), epoch=5)

    first = codes("a", 1)
    np.testing.assert_array_equal(first, codes("b", 1))
    assert (first != codes("c", 2)).any()


def test_reuse_and_refusal(make_config: MakeConfig, capsys: pytest.CaptureFixture):
    config = make_config()
    train(config)
    weights = config.tokenizer_folder / "last.safetensors"
    before = weights.stat().st_mtime_ns
    train(make_config(sent_emb_batch_size=3, overwrite=True))
    assert "reused, a finished training" in capsys.readouterr().out
    assert weights.stat().st_mtime_ns == before
    with pytest.raises(
        InputError, match=r"beta was 0.25, now 0.5; epochs was 6, now 7.*--ckpt_name.*--overwrite"
    ) as error:
        train(make_config(epochs=7, beta=0.5))
    assert str(config.tokenizer_folder) in str(error.value)
    with pytest.raises(InputError, match="trained with other settings: epochs was 6, now 7"):
        load_tokenizer(make_config(epochs=7))

    stale = config.tokenizer_folder / "encoder_8,8,8,8_6.sem_ids"
    stale.write_text("{}")
    train(make_config(epochs=7, overwrite=True))
    assert not stale.exists()
    assert sorted(path.stem for path in (config.tokenizer_folder / "epochs").iterdir()) == ["5", "6", "7"]


def test_other_embeddings_are_another_training(make_config: MakeConfig):
    config = make_config()
    train(config)
    embeddings = load_embeddings(config, 60)[::-1].copy()
    embeddings.tofile(config.embedding_file)
    with pytest.raises(InputError, match="embeddings_sha256"):
        train(config)
    with pytest.raises(InputError, match="embeddings_sha256"):
        load_tokenizer(config, embeddings)


def test_an_unfinished_training_is_made_anew(make_config: MakeConfig, capsys: pytest.CaptureFixture):
    config = make_config()
    train(config)
    file = config.tokenizer_folder / "training.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"finished": False}))
    with pytest.raises(InputError, match="no finished training"):
        load_tokenizer(config)
    train(config)
    assert "the last run did not finish" in capsys.readouterr().out
    assert json.loads(file.read_text())["finished"]


def test_more_items_of_one_embedding_than_can_be_told_apart(make_config: MakeConfig):
    """Four of the tiny dataset's items have the same."""
    with pytest.raises(InputError, match=r"4 items have the same embedding.* at most 3;.*\(at least 5\)"):
        train(make_config(codebook_size=[8, 8, 8, 4]))


def test_the_disambiguation_level_is_no_setting_of_training(make_config: MakeConfig, capsys: pytest.CaptureFixture):
    train(make_config())
    train(make_config(codebook_size=[8, 8, 8, 16]))
    assert "reused, a finished training" in capsys.readouterr().out
    assert load_tokenizer(make_config(codebook_size=[8, 8, 8, 16])).config.codebook_size == [8, 8, 8, 16]
    with pytest.raises(InputError, match=r"codebook_size was 8, now \[8, 8, 6\]"):
        train(make_config(codebook_size=[8, 8, 6]))
