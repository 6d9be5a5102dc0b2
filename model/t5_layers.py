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

from model.beam_search import PAD_TOKEN, take_beams
from model.dropout import dropout
from model.packing import Packing, cut, join

RMS_NORM_DEVICES = ("cuda",)  # types of devices that normalise with one kernel instead of T5's several
# Likewise attention: none, as long as nobody has measured it. Its gradient is the same from run to run only where
# torch.use_deterministic_algorithms raises errors instead of warnings.
FUSED_ATTENTION_DEVICES: tuple[str, ...] = ()


@dataclass
class Encoded:
    """Encoder output."""

    hidden: Tensor  # [T, d_model], packed, rows in the parts' order
    packing: Packing


def encode(t5: T5ForConditionalGeneration, input_ids: Tensor, lengths: Tensor) -> Encoded:
    """Encode token sequences, int64 [B, S], padded at the end; `lengths` as in Packing.of."""
    stack = t5.encoder
    packing = Packing.of(lengths, input_ids.shape[1])
    rows = packing.sort(input_ids)
    parts = cut(rows, [count for count, _ in packing.shapes])
    packed = join([part[:, :length].flatten() for part, (_, length) in zip(parts, packing.shapes, strict=True)])
    hidden = stack.dropout(t5.shared(packed))  # [T, d]
    longest = packing.shapes[0][1]
    bias = position_bias(stack, longest, longest)  # [H, S, S]
    biases = [
        for_scores(bias[:, :length, :length] if mask is None else bias + mask)
        for (_, length), mask in zip(packing.shapes, packing.masks, strict=True)
    ]
    for block in stack.block:
        layer = block.layer[0]
        qkv = packing.split(project_qkv(layer, hidden))
        mixed = [self_attention(layer, *pair).flatten(0, 1) for pair in zip(qkv, biases, strict=True)]
        hidden = hidden + layer.dropout(layer.SelfAttention.o(join(mixed)))
        hidden = feed_forward(block.layer[1], hidden)
    return Encoded(stack.dropout(normalize(stack.final_layer_norm, hidden)), packing)


def decode(t5: T5ForConditionalGeneration, encoded: Encoded, decoder_input_ids: Tensor) -> Tensor:
    """Return the decoder's output for whole target sequences (teacher forcing): [B, Q, d_model].

    They are int64 [B, Q], rows in the parts' order, the start token first.
    """
    stack, steps = t5.decoder, decoder_input_ids.shape[1]
    hidden = stack.dropout(t5.shared(decoder_input_ids))
    bias = position_bias(stack, steps, steps)
    future = torch.ones(steps, steps, dtype=torch.bool, device=hidden.device).triu(1)
    bias = for_scores(bias.masked_fill(future, torch.finfo(bias.dtype).min))
    for block in stack.block:
        layer = block.layer[0]
        mixed = self_attention(layer, project_qkv(layer, hidden), bias)
        hidden = hidden + layer.dropout(layer.SelfAttention.o(mixed))
        hidden = cross_attention(block.layer[1], hidden, cross_keys_values(block.layer[1], encoded))
        hidden = feed_forward(block.layer[2], hidden)
    return stack.dropout(normalize(stack.final_layer_norm, hidden))


class IncrementalDecoder:
    """T5's decoder, a token at a time for each beam.

    A history's cross-attention keys and values are shared by its beams, which stand in the query dimension.
    Self-attention's keys and values stay where their step put them; beams remember where theirs lie.
    """

    def __init__(self, t5: T5ForConditionalGeneration, encoded: Encoded):
        self.t5 = t5
        self.shared = [cross_keys_values(block.layer[1], encoded) for block in t5.decoder.block]
        # per layer: keys and values [B, M', 2, H, d_kv] of each step so far, with its own number of beams M'
        self.caches: list[list[Tensor]] = [[] for _ in self.shared]

    def step(self, sequences: Tensor, ancestors: list[Tensor]) -> Tensor:
        """Run the decoder on each beam's newest token; see model.beam_search.Step."""
        stack, level = self.t5.decoder, sequences.shape[2]
        tokens = sequences[:, :, -1] if level else torch.full_like(sequences.sum(2), PAD_TOKEN)
        hidden = self.t5.shared(tokens)  # [B, M, d]
        bias = position_bias(stack, 1, level + 1)[:, 0]  # [H, t]
        for block, cache, keys_values in zip(stack.block, self.caches, self.shared, strict=True):
            hidden = attend_to_own(block.layer[0], hidden, cache, ancestors, bias)
            hidden = cross_attention(block.layer[1], hidden, keys_values)
            hidden = feed_forward(block.layer[2], hidden)
        return project(self.t5, normalize(stack.final_layer_norm, hidden))


def attend_to_own(
    layer: nn.Module, hidden: Tensor, cache: list[Tensor], ancestors: list[Tensor], bias: Tensor
) -> Tensor:
    """Let each beam look at its own tokens so far: [B, M, d_model], and append this step to the cache."""
    attention, normed = layer.SelfAttention, normalize(layer.layer_norm, hidden)
    query = attention.q(normed).unflatten(2, (attention.n_heads, -1))  # [B, M, H, d_kv]
    both = F.linear(normed, torch.cat([attention.k.weight, attention.v.weight]))
    cache.append(both.unflatten(2, (2, attention.n_heads, -1)))  # [B, M, 2, H, d_kv]
    own = [take_beams(step, beams) for step, beams in zip(cache, ancestors, strict=False)] + [cache[-1]]
    scores = torch.stack([(query * step[:, :, 0]).sum(-1) for step in own], dim=2)  # [B, M, t, H]
    weights = torch.softmax(scores + bias.T, dim=2).unsqueeze(-1)
    out = sum(weights[:, :, index] * step[:, :, 1] for index, step in enumerate(own))
    return hidden + attention.o(out.flatten(2))


def normalize(norm: nn.Module, hidden: Tensor) -> Tensor:
    """Apply a T5LayerNorm."""
    if hidden.device.type in RMS_NORM_DEVICES:
        return F.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)
    return norm(hidden)


def project_qkv(layer: nn.Module, hidden: Tensor) -> Tensor:
    """Return queries, keys and values of a T5LayerSelfAttention side by side: [..., d_model] to [..., 3 x H x d_kv]."""
    attention = layer.SelfAttention
    weights = torch.cat([attention.q.weight, attention.k.weight, attention.v.weight])
    return F.linear(normalize(layer.layer_norm, hidden), weights)


def self_attention(layer: nn.Module, qkv: Tensor, bias: Tensor) -> Tensor:
    """Let the tokens of each row look at each other: [rows, length, 3 x H x d_kv] to [rows, length, H x d_kv]."""
    attention = layer.SelfAttention
    query, key, value = qkv.unflatten(2, (3, attention.n_heads, -1)).permute(2, 0, 3, 1, 4)
    return attend(query, key, value, bias, attention).transpose(1, 2).flatten(2)


KeysValues = tuple[Tensor, Tensor, Tensor | None]  # keys and values [rows, H, length, d_kv] of a part, and its mask


def cross_keys_values(layer: nn.Module, encoded: Encoded) -> list[KeysValues]:
    """Return each part's keys and values for a decoder layer's cross-attention."""
    attention = layer.EncDecAttention
    both = F.linear(encoded.hidden, torch.cat([attention.k.weight, attention.v.weight]))
    parts = encoded.packing.split(both.unflatten(1, (2, attention.n_heads, -1)))
    return [(*part.permute(2, 0, 3, 1, 4), mask) for part, mask in zip(parts, encoded.packing.masks, strict=True)]


def cross_attention(layer: nn.Module, hidden: Tensor, keys_values: list[KeysValues]) -> Tensor:
    """Let every query of a row, steps or beams, [B, Q, d_model] in the parts' order, look at its encoded history."""
    attention = layer.EncDecAttention
    queries = attention.q(normalize(layer.layer_norm, hidden)).unflatten(2, (attention.n_heads, -1)).transpose(1, 2)
    parts = cut(queries, [len(key) for key, _, _ in keys_values])
    mixed = [attend(query, *others, attention) for query, others in zip(parts, keys_values, strict=True)]
    out = join(mixed).transpose(1, 2).flatten(2)  # [B, Q, H x d_kv]
    return hidden + layer.dropout(attention.o(out))


def feed_forward(layer: nn.Module, hidden: Tensor) -> Tensor:
    """Apply T5LayerFF to [..., d_model], without its cast to the weights' type, which autocast would undo at once."""
    dense, normed = layer.DenseReluDense, normalize(layer.layer_norm, hidden)
    inner = dense.act(dense.wi(normed)) if hasattr(dense, "wi") else dense.act(dense.wi_0(normed)) * dense.wi_1(normed)
    return hidden + layer.dropout(dense.wo(dense.dropout(inner)))


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, attention: nn.Module) -> Tensor:
    """T5 attention, unscaled, with dropout on the weights: [..., Q, d], [..., K, d], [..., K, d] to [..., Q, d].

    On the CPU bf16 is left for float32 here: its products are compiled for every new shape, and parts have many.
    """
    if query.dtype == torch.bfloat16 and query.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):
            return attend(query.float(), key.float(), value.float(), bias, attention)
    if query.device.type in FUSED_ATTENTION_DEVICES:
        share = attention.dropout if attention.training else 0.0
        mask = None if bias is None else bias.to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, mask, share, scale=1.0)
    scores = query @ key.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    weights = torch.softmax(scores, dim=-1).to(scores.dtype)  # computed in float32, whatever the type
    if attention.training and attention.dropout > 0:
        weights = dropout(weights, attention.dropout)
    return weights @ value


def for_scores(bias: Tensor) -> Tensor:
    """Cast what is added to scores to their type, once for all layers; on the CPU scores are float32 (`attend`)."""
    device = bias.device.type
    cast = device != "cpu" and torch.is_autocast_enabled(device)
    return bias.to(torch.get_autocast_dtype(device)) if cast else bias


def position_bias(stack: nn.Module, queries: int, keys: int) -> Tensor:
    """Return a T5Stack's learnt relative position bias [H, queries, keys]; the last query stands at the last key."""
    attention = stack.block[0].layer[0].SelfAttention
    bias, bidirectional = attention.relative_attention_bias, not attention.is_decoder
    kind = (bidirectional, attention.relative_attention_num_buckets, attention.relative_attention_max_distance)
    # a compiled step computes them in its graph
    buckets = position_buckets if torch.compiler.is_compiling() else kept_position_buckets
    return bias(buckets(queries, keys, bias.weight.device, *kind)).permute(2, 0, 1)


def position_buckets(queries: int, keys: int, device: torch.device, *kind: int) -> Tensor:
    """Return the bucket of each query's distance to each key, int64 [queries, keys]."""
    distances = torch.arange(keys, device=device) - torch.arange(keys - queries, keys, device=device)[:, None]
    return T5Attention._relative_position_bucket(distances, *kind)


@lru_cache(maxsize=256)
def kept_position_buckets(queries: int, keys: int, device: torch.device, *kind: int) -> Tensor:
    """Return the same, computed on the CPU for every device.

    Distances of 16, 32 and 64 lie on a bucket's edge, where another device's logarithm may round to the other side.
    """
    with torch.inference_mode(False):  # training takes them too
        return position_buckets(queries, keys, torch.device("cpu"), *kind).to(device)


def project(t5: T5ForConditionalGeneration, hidden: Tensor) -> Tensor:
    """Return vocabulary logits [..., V] of decoder output, through the tied embeddings with T5's scaling."""
    if t5.config.tie_word_embeddings:
        hidden = hidden * t5.config.d_model**-0.5
    return F.linear(hidden, t5.lm_head.weight)
