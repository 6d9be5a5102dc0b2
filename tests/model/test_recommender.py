from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import T5ForConditionalGeneration

from model.recommender import (
    Architecture,
    Recommender,
    find_model_folder,
    read_model_config,
    read_reference_checkpoint,
    sizes_of_weights,
)
from utils.errors import InputError

pytestmark = pytest.mark.usefixtures("layout")

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
RaggedBatch = tuple[Tensor, Tensor, Tensor]


def plain_t5(recommender: Recommender) -> T5ForConditionalGeneration:
    """Return Hugging Face's own network with a copy of the weights."""
    t5 = T5ForConditionalGeneration(recommender.t5.config)
    t5.config._attn_implementation = "eager"
    t5.load_state_dict(recommender.t5.state_dict())
    return t5.eval()


def plain_forward(t5: T5ForConditionalGeneration, batch: RaggedBatch):
    input_ids, labels, lengths = batch
    mask = (torch.arange(input_ids.shape[1]) < lengths.unsqueeze(1)).long()
    return t5(input_ids=input_ids, attention_mask=mask, labels=labels)


@pytest.mark.parametrize("feed_forward_proj", ["relu", "gated-gelu"])
def test_logits_losses_and_gradients_equal_plain_t5(
    make: Callable[..., Recommender], batch: RaggedBatch, feed_forward_proj: str
):
    recommender = make(feed_forward_proj=feed_forward_proj)
    input_ids, labels, lengths = batch
    t5 = plain_t5(recommender)
    plain = plain_forward(t5, batch)
    assert plain.logits.std() > 0.5  # the comparison has something to see
    with torch.no_grad():
        assert_close(recommender.logits(input_ids, labels, lengths), plain.logits, **TOLERANCE)
    losses = recommender(input_ids, labels, lengths)
    assert losses.shape == (len(labels),)
    assert_close(losses.mean(), plain.loss, **TOLERANCE)
    losses.mean().backward()
    plain.loss.backward()
    theirs = dict(t5.named_parameters())
    for name, parameter in recommender.t5.named_parameters():
        assert theirs[name].grad.abs().max() > 0, name
        assert_close(parameter.grad, theirs[name].grad, **TOLERANCE)


def test_rows_do_not_see_each_other(recommender: Recommender, batch: RaggedBatch):
    input_ids, labels, lengths = batch
    with torch.no_grad():
        together = recommender.logits(input_ids, labels, lengths)
        for row in range(len(labels)):
            alone = recommender.logits(input_ids[row : row + 1], labels[row : row + 1], lengths[row : row + 1])
            assert_close(alone, together[row : row + 1], **TOLERANCE)


def test_what_stands_in_the_padding_does_not_matter(recommender: Recommender, batch: RaggedBatch):
    input_ids, labels, lengths = batch
    padding = torch.arange(input_ids.shape[1]) >= lengths.unsqueeze(1)
    assert padding.any()
    with torch.no_grad():
        assert torch.equal(
            recommender(input_ids, labels, lengths), recommender(input_ids.masked_fill(padding, 3), labels, lengths)
        )


def test_dropout_is_for_training_only(recommender: Recommender, batch: RaggedBatch):
    for module in recommender.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    with torch.no_grad():
        plain = recommender(*batch)
        assert torch.equal(recommender(*batch), plain)
        torch.manual_seed(0)
        dropped = recommender.train()(*batch)
        assert not torch.allclose(dropped, plain)
        torch.manual_seed(0)
        assert torch.equal(recommender(*batch), dropped)


def test_a_saved_folder_is_read_by_plain_t5(recommender: Recommender, batch: RaggedBatch, tmp_path: Path):
    recommender.save_pretrained(tmp_path)
    t5 = T5ForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager").eval()
    input_ids, labels, lengths = batch
    with torch.no_grad():
        assert_close(plain_forward(t5, batch).logits, recommender.logits(input_ids, labels, lengths), **TOLERANCE)
    assert (t5.config.pad_token_id, t5.config.decoder_start_token_id, t5.config.eos_token_id) == (0, 0, 15)


@pytest.mark.parametrize("feed_forward_proj", ["relu", "gated-gelu"])
def test_round_trip(make: Callable[..., Recommender], tmp_path: Path, feed_forward_proj: str):
    recommender = make(feed_forward_proj=feed_forward_proj)
    recommender.save_pretrained(tmp_path)
    read = Recommender.from_pretrained(tmp_path)
    assert read.architecture == recommender.architecture
    assert_close(read.state_dict(), recommender.state_dict(), rtol=0, atol=0)
    assert read.t5.lm_head.weight is read.t5.shared.weight
    assert len(list(read.parameters())) == len(list(recommender.parameters()))
    dropping = Recommender.from_pretrained(tmp_path, dropout_rate=0.4)
    assert dropping.architecture.dropout_rate == 0.4
    assert {module.p for module in dropping.modules() if isinstance(module, torch.nn.Dropout)} == {0.4}


@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.99])
def test_truncated_weights_are_refused(recommender: Recommender, tmp_path: Path, keep: float):
    recommender.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(InputError, match=r"model\.safetensors is no whole file of weights"):
        Recommender.from_pretrained(tmp_path)


def test_broken_folders_are_refused(recommender: Recommender, make: Callable[..., Recommender], tmp_path: Path):
    recommender.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="is no whole file of weights"):
        Recommender.from_pretrained(tmp_path)
    make(level_sizes=(5, 4, 9)).save_pretrained(tmp_path / "other")
    for name in ("model.safetensors", "sha256.json"):
        (tmp_path / "other" / name).rename(tmp_path / name)
    with pytest.raises(InputError, match=r"do not fit the model: .*size mismatch"):
        Recommender.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is no T5 configuration"):
        Recommender.from_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"config\.json is no T5 configuration"):
        read_model_config(tmp_path / "nothing")


def test_a_model_of_another_project_is_refused(recommender: Recommender, tmp_path: Path):
    del recommender.t5.config.level_sizes
    recommender.t5.config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"config\.json has no level_sizes"):
        Architecture.of_t5_config(read_model_config(tmp_path))


def test_find_model_folder(recommender: Recommender, tmp_path: Path):
    recommender.save_pretrained(tmp_path / "run" / "model")
    assert find_model_folder(tmp_path / "run") == tmp_path / "run" / "model"
    assert find_model_folder(tmp_path / "run" / "model") == tmp_path / "run" / "model"
    with pytest.raises(InputError, match="is neither a model folder"):
        find_model_folder(tmp_path)


def test_architecture_and_vocabulary():
    architecture = Architecture(level_sizes=(256,) * 4, n_user_tokens=5, num_layers=6, feed_forward_proj="gated-gelu")
    config = architecture.to_t5_config()
    assert (config.vocab_size, config.eos_token_id, config.num_layers, config.d_ff) == (1031, 1030, 6, 512)
    assert config.tie_word_embeddings
    assert (config.relative_attention_num_buckets, config.relative_attention_max_distance) == (32, 128)
    assert config.layer_norm_epsilon == 1e-6
    assert Architecture.of_t5_config(config) == architecture


def test_the_seed_decides_the_weights():
    architecture = Architecture(level_sizes=(4, 4), num_layers=1, num_decoder_layers=1, d_model=8, d_ff=8)
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(Recommender.from_architecture(architecture).t5.shared.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("feed_forward_proj", ["relu", "gated-gelu"])
def test_sizes_of_weights(make: Callable[..., Recommender], feed_forward_proj: str):
    expected = {
        **{"vocab_size": 16, "num_layers": 2, "num_decoder_layers": 3},
        **{"d_model": 12, "d_ff": 20, "num_heads": 2, "d_kv": 7},
    }
    assert sizes_of_weights(make(feed_forward_proj=feed_forward_proj).state_dict()) == expected


def test_reference_checkpoint_round_trip(recommender: Recommender, make: Callable[..., Recommender], tmp_path: Path):
    torch.save({"model": recommender.state_dict(), "optimizer": {}, "scheduler": {}}, tmp_path / "best.pth")
    weights = read_reference_checkpoint(tmp_path / "best.pth")
    other = Recommender.from_architecture(recommender.architecture)
    other.load_weights(weights, "best.pth")
    assert_close(other.state_dict(), recommender.state_dict(), rtol=0, atol=0)
    with pytest.raises(InputError, match=r"weights of best\.pth do not fit the model"):
        make(level_sizes=(3, 3)).load_weights(weights, "best.pth")


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.write_text, (self.file, "executed")


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickle_is_refused_and_not_executed(tmp_path: Path, zipped: bool):
    trap, file = tmp_path / "trap", tmp_path / "best.pth"
    content = {"model": {"t5.shared.weight": Malicious(trap)}}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"best\.pth is not a readable checkpoint of tensors"):
        read_reference_checkpoint(file)
    assert not trap.exists()
    torch.load(file, weights_only=False)  # the trap itself works
    assert trap.exists()


def test_other_checkpoints_are_refused(tmp_path: Path):
    file = tmp_path / "best.pth"
    for content in (b"", b"not a checkpoint"):
        file.write_bytes(content)
        with pytest.raises(InputError, match="is not a readable checkpoint"):
            read_reference_checkpoint(file)
    for content in ({"model": {"w": torch.zeros(1)}}, {"weights": {}}, [torch.zeros(1)], {"model": 3}):
        torch.save(content, file)
        with pytest.raises(InputError, match=r"no weights under model/t5\.shared\.weight"):
            read_reference_checkpoint(file)
    with pytest.raises(InputError, match="is not a readable checkpoint"):
        read_reference_checkpoint(tmp_path / "nothing.pth")
