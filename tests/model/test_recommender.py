"""What networks share: the table, folders, and a network that brings nothing but its logits."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from model.recommender import (
    NETWORKS,
    Architecture,
    Recommender,
    build_recommender,
    find_model_folder,
    load_recommender,
    read_architecture,
)
from model.t5 import T5Recommender
from utils.errors import InputError
from utils.prefix_trie import PrefixTrie

RaggedBatch = tuple[Tensor, Tensor, Tensor]


class Bigram(Recommender):
    """A token depends on the one before it, the first one on the history's mean."""

    def __init__(self, architecture: Architecture):
        super().__init__(architecture)
        self.embeddings = nn.Embedding(architecture.vocab_size, architecture.d_model)

    def logits(self, input_ids: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
        real = (torch.arange(input_ids.shape[1]) < lengths.unsqueeze(1)).unsqueeze(2)
        history = (self.embeddings(input_ids) * real).sum(1, keepdim=True) / lengths.view(-1, 1, 1)
        return torch.cat([history, self.embeddings(labels[:, :-1])], dim=1) @ self.embeddings.weight.T


@pytest.fixture
def bigram(monkeypatch: pytest.MonkeyPatch) -> Recommender:
    monkeypatch.setitem(NETWORKS, "bigram", Bigram)
    torch.manual_seed(0)
    return build_recommender(Architecture((5, 4, 4), d_model=6, network="bigram")).eval()


def test_a_network_needs_its_logits_alone(bigram: Recommender, batch: RaggedBatch):
    input_ids, labels, lengths = batch
    losses = bigram(*batch)
    expected = -bigram.logits(*batch).log_softmax(-1).gather(2, labels.unsqueeze(2))
    assert_close(losses, expected.mean((1, 2)))
    losses.sum().backward()
    assert bigram.embeddings.weight.grad.abs().sum() > 0
    catalogue = torch.tensor([[1, 6, 10], [5, 9, 13], [2, 6, 11]])
    found, scores = bigram.generate(input_ids, lengths, 3, 3, PrefixTrie(catalogue, bigram.architecture.vocab_size))
    for row in range(len(labels)):
        shown = (input_ids[row].expand(3, -1), torch.cat([found[row], labels[:3, -1:]], 1), lengths[row].expand(3))
        every = bigram.logits(*shown)[:, :-1].log_softmax(-1).gather(2, found[row].unsqueeze(2))
        assert_close(scores[row], every.mean((1, 2)).detach())


def test_its_folder(bigram: Recommender, batch: RaggedBatch, tmp_path: Path):
    bigram.semantic_ids_sha256 = ["abc"]
    bigram.save_pretrained(tmp_path / "deep" / "model")
    read = load_recommender(tmp_path / "deep" / "model", dropout_rate=0.4)
    assert isinstance(read, Bigram)
    assert read.semantic_ids_sha256 == ["abc"]
    assert (read.architecture.dropout_rate, bigram.architecture.dropout_rate) == (0.4, 0.1)
    assert read_architecture(tmp_path / "deep" / "model") == bigram.architecture
    assert torch.equal(read(*batch), bigram(*batch))
    del NETWORKS["bigram"]
    with pytest.raises(InputError, match="network=bigram is not known here; there are t5"):
        load_recommender(tmp_path / "deep" / "model")


def test_the_table():
    assert type(build_recommender(Architecture((4, 4), d_model=8, d_ff=8))) is T5Recommender
    with pytest.raises(InputError, match="network=none is not known here; there are t5"):
        build_recommender(Architecture((4, 4), network="none"))


@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.99])
def test_truncated_weights_are_refused(recommender: Recommender, tmp_path: Path, keep: float):
    recommender.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(InputError, match=r"model\.safetensors is no whole file of weights"):
        load_recommender(tmp_path)


def test_broken_folders_are_refused(recommender: Recommender, make: Callable[..., Recommender], tmp_path: Path):
    recommender.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="is no whole file of weights"):
        load_recommender(tmp_path)
    make(level_sizes=(5, 4, 9)).save_pretrained(tmp_path / "other")
    for name in ("model.safetensors", "sha256.json"):
        (tmp_path / "other" / name).rename(tmp_path / name)
    with pytest.raises(InputError, match=r"do not fit the model: .*size mismatch"):
        load_recommender(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is not a whole JSON file"):
        load_recommender(tmp_path)
    with pytest.raises(InputError, match=r"nothing is neither a model folder"):
        read_architecture(tmp_path / "nothing")
    config = recommender.architecture.to_config()
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_layers": "many"}))
    with pytest.raises(InputError, match=r"config\.json is no T5 configuration"):
        load_recommender(tmp_path)


def test_a_model_of_another_project_is_refused(recommender: Recommender, tmp_path: Path):
    del recommender.t5.config.level_sizes
    recommender.t5.config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"config\.json has no level_sizes"):
        read_architecture(tmp_path)


def test_find_model_folder(recommender: Recommender, tmp_path: Path):
    recommender.save_pretrained(tmp_path / "run" / "model")
    assert find_model_folder(tmp_path / "run") == tmp_path / "run" / "model"
    assert find_model_folder(tmp_path / "run" / "model") == tmp_path / "run" / "model"
    with pytest.raises(InputError, match="is neither a model folder"):
        find_model_folder(tmp_path)


def test_the_seed_decides_the_weights():
    architecture = Architecture(level_sizes=(4, 4), num_layers=1, num_decoder_layers=1, d_model=8, d_ff=8)
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(build_recommender(architecture).t5.shared.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
