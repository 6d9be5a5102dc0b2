"""T5's arithmetic on the weights of Hugging Face's T5ForConditionalGeneration, on the CPU without padding.

The numbers are those of T5ForConditionalGeneration.forward (tests/model/test_t5.py compares them).
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention

from model.dropout import dropout
from model.length_groups import LengthGroups, cut, join


@dataclass
class Encoded:
    """Encoder output: packed hidden states [T, d_model] of rows in the groups' order."""

    hidden: Tensor
    groups: LengthGroups


def encode(t5: T5ForConditionalGeneration, input_ids: Tensor, lengths: Tensor) -> Encoded:
    """Encode token sequences.

    Args:
        t5: The network.
        input_ids: int64 [B, S], padded at the end.
        lengths: int64 [B], tokens of each row that are not padding; on the CPU where rows are grouped.
    """
    stack = t5.encoder
    groups = LengthGroups.of(lengths, input_ids.shape[1], input_ids.device)
    rows = groups.sort(input_ids)
    parts = cut(rows, [count for count, _ in groups.shapes])
    packed = join([part[:, :length].flatten() for part, (_, length) in zip(parts, groups.shapes, strict=True)])
    hidden = stack.dropout(t5.shared(packed))  # [T, d]
    longest = groups.shapes[0][1]
    bias = position_bias(stack, longest, longest)  # [H, S, S]
    biases = [
        bias[:, :length, :length] if mask is None else bias + mask
        for (_, length), mask in zip(groups.shapes, groups.masks, strict=True)
    ]
    for block in stack.block:
        layer = block.layer[0]
        qkv = groups.split(project_qkv(layer, hidden))
        mixed = [self_attention(layer, *pair).flatten(0, 1) for pair in zip(qkv, biases, strict=True)]
        hidden = hidden + layer.dropout(layer.SelfAttention.o(join(mixed)))
        hidden = feed_forward(block.layer[1], hidden)
    return Encoded(stack.dropout(stack.final_layer_norm(hidden)), groups)


def decode(t5: T5ForConditionalGeneration, encoded: Encoded, decoder_input_ids: Tensor) -> Tensor:
    """Return the decoder's output for whole target sequences (teacher forcing).

    Args:
        t5: The network.
        encoded: Encoder output.
        decoder_input_ids: int64 [B, Q], rows in the groups' order, the start token first.

    Returns:
        [B, Q, d_model].
    """
    stack, steps = t5.decoder, decoder_input_ids.shape[1]
    hidden = stack.dropout(t5.shared(decoder_input_ids))
    bias = position_bias(stack, steps, steps)
    future = torch.ones(steps, steps, dtype=torch.bool, device=hidden.device).triu(1)
    bias = bias.masked_fill(future, torch.finfo(bias.dtype).min)
    for block in stack.block:
        layer = block.layer[0]
        mixed = self_attention(layer, project_qkv(layer, hidden), bias)
        hidden = hidden + layer.dropout(layer.SelfAttention.o(mixed))
        hidden = cross_attention(block.layer[1], hidden, cross_keys_values(block.layer[1], encoded))
        hidden = feed_forward(block.layer[2], hidden)
    return stack.dropout(stack.final_layer_norm(hidden))


def project_qkv(layer: nn.Module, hidden: Tensor) -> Tensor:
    """Return queries, keys and values of a T5LayerSelfAttention side by side: [..., d_model] to [..., 3 x H x d_kv]."""
    attention = layer.SelfAttention
    weights = torch.cat([attention.q.weight, attention.k.weight, attention.v.weight])
    return F.linear(layer.layer_norm(hidden), weights)


def self_attention(layer: nn.Module, qkv: Tensor, bias: Tensor) -> Tensor:
    """Let the tokens of each row look at each other: [rows, length, 3 x H x d_kv] to [rows, length, H x d_kv]."""
    attention = layer.SelfAttention
    query, key, value = qkv.unflatten(2, (3, attention.n_heads, -1)).permute(2, 0, 3, 1, 4)
    return attend(query, key, value, bias, attention).transpose(1, 2).flatten(2)


KeysValues = tuple[Tensor, Tensor, Tensor | None]  # keys and values [rows, H, length, d_kv] of a group, and its mask


def cross_keys_values(layer: nn.Module, encoded: Encoded) -> list[KeysValues]:
    """Return each group's keys and values for a decoder layer's cross-attention."""
    attention = layer.EncDecAttention
    both = F.linear(encoded.hidden, torch.cat([attention.k.weight, attention.v.weight]))
    result = []
    for part, mask in zip(encoded.groups.split(both), encoded.groups.masks, strict=True):
        key, value = part.unflatten(2, (2, attention.n_heads, -1)).permute(2, 0, 3, 1, 4)
        result.append((key, value, mask))
    return result


def cross_attention(layer: nn.Module, hidden: Tensor, keys_values: list[KeysValues]) -> Tensor:
    """Let every query of a row, be they steps or beams, look at the row's encoded history.

    Args:
        layer: T5LayerCrossAttention.
        hidden: [B, Q, d_model], rows in the groups' order.
        keys_values: From cross_keys_values.
    """
    attention = layer.EncDecAttention
    queries = attention.q(layer.layer_norm(hidden)).unflatten(2, (attention.n_heads, -1)).transpose(1, 2)
    parts = cut(queries, [len(key) for key, _, _ in keys_values])
    mixed = [attend(query, *others, attention) for query, others in zip(parts, keys_values, strict=True)]
    out = join(mixed).transpose(1, 2).flatten(2)  # [B, Q, H x d_kv]
    return hidden + layer.dropout(attention.o(out))


def feed_forward(layer: nn.Module, hidden: Tensor) -> Tensor:
    """Apply T5LayerFF to [..., d_model], without its cast to the weights' type, which autocast would undo at once."""
    dense, normed = layer.DenseReluDense, layer.layer_norm(hidden)
    inner = dense.act(dense.wi(normed)) if hasattr(dense, "wi") else dense.act(dense.wi_0(normed)) * dense.wi_1(normed)
    return hidden + layer.dropout(dense.wo(dense.dropout(inner)))


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, attention: nn.Module) -> Tensor:
    """T5 attention, unscaled, with dropout on the weights: [..., Q, d], [..., K, d], [..., K, d] to [..., Q, d].

    On the CPU bf16 is left for float32 here: its products are compiled for every new shape, and groups have many.
    """
    if query.dtype == torch.bfloat16 and query.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):
            return attend(query.float(), key.float(), value.float(), bias, attention)
    scores = query @ key.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    weights = torch.softmax(scores, dim=-1).to(scores.dtype)  # computed in float32, whatever the type
    if attention.training and attention.dropout > 0:
        weights = dropout(weights, attention.dropout)
    return weights @ value


def position_bias(stack: nn.Module, queries: int, keys: int) -> Tensor:
    """Return a T5Stack's learnt relative position bias [H, queries, keys]; the last query stands at the last key."""
    attention = stack.block[0].layer[0].SelfAttention
    kind = (
        not attention.is_decoder,
        attention.relative_attention_num_buckets,
        attention.relative_attention_max_distance,
    )
    buckets = position_buckets(queries, keys, attention.relative_attention_bias.weight.device, *kind)
    return attention.relative_attention_bias(buckets).permute(2, 0, 1)


@torch.compiler.assume_constant_result  # else a compiled step would hold the CPU's operations, and use no CUDA graph
def position_buckets(queries: int, keys: int, device: torch.device, *kind: int) -> Tensor:
    """Return the bucket of each query's distance to each key, int64 [queries, keys]."""
    return _position_buckets(queries, keys, device, *kind)


@lru_cache(maxsize=256)
def _position_buckets(queries: int, keys: int, device: torch.device, *kind: int) -> Tensor:
    """Compute the buckets on the CPU for every device.

    Distances of 16, 32 and 64 lie on a bucket's edge, where another device's logarithm may round to the other side.
    """
    distances = torch.arange(keys) - torch.arange(keys - queries, keys)[:, None]
    return T5Attention._relative_position_bucket(distances, *kind).to(device)


def project(t5: T5ForConditionalGeneration, hidden: Tensor) -> Tensor:
    """Return vocabulary logits [..., V] of decoder output, through the tied embeddings with T5's scaling."""
    if t5.config.tie_word_embeddings:
        hidden = hidden * t5.config.d_model**-0.5
    return F.linear(hidden, t5.lm_head.weight)
