"""What every kind of tokenizer does under the commands: the same files, reports, new items, resuming, drift."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import ROOT

import tokenizer.rqvae_training
from data.interactions import load_interactions
from data.token_table import Vocabulary, load_token_table, read_sem_ids, resolve_groups
from tokenizer.config import TokenizerConfig
from tokenizer.embed import embed
from tokenizer.export import assign, export
from tokenizer.kind import Tokenizer
from tokenizer.kinds import KINDS
from tokenizer.train import train
from utils.interrupts import Stopped

OWN = {"letter": {"vq_type": "vq", "balance": "sinkhorn"}, "rqvae": {"revive_codes": 5}}


@pytest.fixture
def make(make_config: Callable[..., TokenizerConfig]) -> Callable[..., TokenizerConfig]:
    """Return the settings of a kind, in its own folder of the tiny dataset, with embeddings of its texts."""

    def make(kind: str, **changes: object) -> TokenizerConfig:
        config = make_config(kind="rqkmeans", ckpt_name="given", sent_emb_model="tfidf", sent_emb_dim=10)
        embed(config)
        given = config.tokenizer_folder / "tfidf_8,8,8,8.sem_ids"
        if kind == "neighbours" and not given.exists():
            train(config)
            export(config)
        own = OWN | {"neighbours": {"sem_ids": str(given)}}
        settings = {"ckpt_name": kind, "sent_emb_model": "tfidf", "sent_emb_dim": 10}
        return make_config(kind=kind, **settings | own.get(kind, {}) | changes)

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_semantic_ids_a_report_and_new_items(make, tmp_path, kind: str):
    config = make(kind)
    train(config)
    report = export(config)
    groups = resolve_groups(config.folder, f"{kind}/tfidf_8,8,8,8")
    assert [group.epoch for group in groups] == ([4, 5, 6] if kind in ("rqvae", "letter") else [None])
    names = load_interactions(config.folder).item_names[1:]
    ids = read_sem_ids(groups[-1].file, names, (8,) * 4)
    quality = report["tokenizers"][str(groups[-1].epoch or "best")]
    assert quality["codes_used"] == [len(np.unique(level)) for level in ids.T[:3]]
    assert (config.tokenizer_folder / "quality.txt").read_text().startswith("60 items, codebooks of 8, 8, 8")
    texts = json.loads((config.folder / "metadata.sentence.json").read_text())
    (tmp_path / "new.json").write_text(json.dumps({"twin": texts["item7"]}))
    assert "semantic IDs for 1 new items" in assign(config, tmp_path / "new.json")
    new = json.loads((config.tokenizer_folder / "new_items.json").read_text())["semantic_ids"]
    assert list(new) == list(report["tokenizers"])
    assert new[str(groups[-1].epoch or "best")]["twin"][:2] == ids[7, :2].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_related_tokenizers(make, kind: str):
    config = make(kind, drift=0.3, num_tokenizers=3, epochs=12)
    train(config)
    report = export(config)
    assert len(report["epochs"]) == 3
    assert report["drift"][2]["any"] > report["drift"][1]["any"] > 0


@pytest.mark.parametrize("kind", ["rqvae", "letter"])
def test_a_stopped_training_resumes_bit_for_bit(make, monkeypatch: pytest.MonkeyPatch, kind: str):
    whole, stopped = make(kind, ckpt_name="whole"), make(kind, ckpt_name="stopped", checkpoint_minutes=0)
    train(whole)
    original, epochs = tokenizer.rqvae_training.train_epoch, []

    def third_epoch_stops(*arguments: object) -> dict[str, float]:
        epochs.append(len(epochs))
        if len(epochs) == 4:
            raise Stopped("stopped")
        return original(*arguments)

    monkeypatch.setattr("tokenizer.rqvae_training.train_epoch", third_epoch_stops)
    with pytest.raises(Stopped):
        train(stopped)
    stopped.resume = True
    train(stopped)
    assert len(epochs) == 4 + 3
    for name in ("last.safetensors", "best.safetensors", "epochs/4.safetensors"):
        found, expected = (load_file(config.tokenizer_folder / name) for config in (stopped, whole))
        assert all(torch.equal(found[key], value) for key, value in expected.items())
    lines = [(config.tokenizer_folder / "metrics.jsonl").read_text() for config in (stopped, whole)]
    assert lines[0] == lines[1]


def test_kinds_mix_as_groups_of_one_pre_training(make):
    """Epochs of an RQ-VAE, epochs of LETTER and neighbours of k-means, side by side, in one token table."""
    for kind, changes in (("rqvae", {}), ("letter", {}), ("rqkmeans", {"drift": 0.2, "num_tokenizers": 3})):
        config = make(kind, **changes)
        train(config)
        export(config)
    prefixes = [f"{kind}/tfidf_8,8,8,8" for kind in ("rqvae", "letter", "rqkmeans")]
    groups = resolve_groups(config.folder, prefixes)
    assert [group.epoch for group in groups] == [4, 5, 6, 4, 5, 6, 1, 2, 3]
    names = load_interactions(config.folder).item_names[1:]
    table = load_token_table(groups, names, Vocabulary((8,) * 4))
    assert table.labels == ["0_4", "0_5", "0_6", "1_4", "1_5", "1_6", "2_1", "2_2", "2_3"]
    assert len(set(table.sha256)) == 9
    assert table.items_of(7, table.tokens[7, 1:]).tolist() == list(range(1, 61))


def test_a_kind_is_one_file_and_one_line(make, monkeypatch: pytest.MonkeyPatch):
    """Nobody asks for a kind by name, and one that only has what the base class demands goes all the way."""
    for file in (path for folder in ("tokenizer", "data", "training") for path in (ROOT / folder).glob("*.py")):
        named = [kind for kind in ("rqkmeans", "letter") if f'"{kind}"' in file.read_text()]
        assert named == (["rqkmeans", "letter"] if file.name == "kinds.py" else []), file

    class Hashed(Tokenizer):
        title = "hash"

        @classmethod
        def train(cls, config, inputs, items, writer):
            return {}

        def codes(self, inputs, epoch):
            return inputs[:, :3].argsort(axis=0).argsort(axis=0) // epoch % 8

    monkeypatch.setitem(KINDS, "hashed", Hashed)
    config = make("hashed")
    train(config)
    assert export(config)["epochs"] == [4, 5, 6]
    config.balance = "sinkhorn"
    assert config.problems() == ["--balance=sinkhorn is nothing for --kind=hashed"]


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("rqkmeans", {"revive_codes": 5}, ["--revive_codes=5"]),
        ("rqvae", {"kept_levels": 2, "cf_weight": 1.0}, ["--cf_weight=1.0", "--kept_levels=2"]),
        ("letter", {"cf_weight": 1.0, "sinkhorn_iterations": 9, "revive_codes": 5}, []),
    ],
)
def test_settings_of_other_kinds_are_refused(make_config, kind: str, changes: dict, said: list[str]):
    config = make_config(kind=kind, vq_type="vq")
    for name, value in changes.items():
        setattr(config, name, value)
    assert config.problems() == [f"{flag} is nothing for --kind={kind}" for flag in said]
