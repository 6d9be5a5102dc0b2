"""T5 against Hugging Face's own."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import T5ForConditionalGeneration

from model.recommender import Architecture, Recommender, load_recommender
from model.t5 import T5Recommender, t5_config
from model.t5_layers import kept_position_buckets

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
    read = load_recommender(tmp_path)
    assert read.architecture == recommender.architecture
    assert_close(read.state_dict(), recommender.state_dict(), rtol=0, atol=0)
    assert read.t5.lm_head.weight is read.t5.shared.weight
    assert len(list(read.parameters())) == len(list(recommender.parameters()))
    dropping = load_recommender(tmp_path, dropout_rate=0.4)
    assert dropping.architecture.dropout_rate == 0.4
    assert {module.p for module in dropping.modules() if isinstance(module, torch.nn.Dropout)} == {0.4}


def test_configuration():
    architecture = Architecture(level_sizes=(256,) * 4, n_user_tokens=5, num_layers=6, feed_forward_proj="gated-gelu")
    config = t5_config(architecture)
    assert (config.vocab_size, config.eos_token_id, config.num_layers, config.d_ff) == (1031, 1030, 6, 512)
    assert config.tie_word_embeddings
    assert (config.relative_attention_num_buckets, config.relative_attention_max_distance) == (32, 128)
    assert config.layer_norm_epsilon == 1e-6
    assert Architecture.of_config(config.to_dict(), "config.json") == architecture


def test_what_else_a_configuration_says_is_kept(recommender: Recommender, batch: RaggedBatch, tmp_path: Path):
    """Hugging Face's settings that are no flags of this project's."""
    recommender.t5.config.relative_attention_max_distance = 9
    recommender.save_pretrained(tmp_path)
    read = load_recommender(tmp_path).eval()
    assert isinstance(read, T5Recommender)
    assert read.t5.config.relative_attention_max_distance == 9
    with torch.no_grad():
        assert_close(read.logits(*batch), plain_forward(plain_t5(read), batch).logits, **TOLERANCE)


def test_what_a_search_keeps_serves_training_too(make: Callable[..., Recommender], batch: RaggedBatch):
    """Position buckets are kept; those made in a search must take part in a backward pass."""
    kept_position_buckets.cache_clear()
    recommender = make()
    input_ids, labels, lengths = batch
    recommender.generate(input_ids, lengths, 4, 2)
    recommender(input_ids, labels, lengths).mean().backward()
    assert all(parameter.grad is not None for parameter in recommender.parameters())
