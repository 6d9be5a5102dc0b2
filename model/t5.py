"""T5's arithmetic on the weights of Hugging Face's T5ForConditionalGeneration, on the CPU without padding.

Histories have few different lengths. On the CPU the rows of a batch are sorted by length and their tokens packed one
after another, so that every linear layer sees real tokens only; attention runs group by group of equal length and needs
no mask. On a GPU, where many small products cost more than a large one, all rows are one group, padded and masked. The
numbers are those of T5ForConditionalGeneration.forward (tests/model/test_recommender.py compares them).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

from model.dropout import dropout

GROUPING_DEVICES = ("cpu",)  # types of devices that compute every length apart


@dataclass
class LengthGroups:
    """A batch's rows in groups that attention handles at once.

    Attributes:
        shapes: (rows, length) of each group, lengths falling.
        order: int64 [B], the rows in the groups' order; None where they stay as they are.
        masks: For each group what is added to scores, float32 [rows, 1, 1, length]: the lowest number at padding, else
            0; None where nothing is padded.
    """

    shapes: list[tuple[int, int]]
    order: Tensor | None
    masks: list[Tensor | None]

    @classmethod
    def of(cls, lengths: Tensor, longest: int, device: torch.device) -> "LengthGroups":
        """Group rows by their number of tokens, int64 [B], at most `longest`; on the CPU where rows are grouped."""
        if device.type in GROUPING_DEVICES:
            ordered, order = torch.sort(lengths, descending=True, stable=True)
            values, counts = torch.unique_consecutive(ordered, return_counts=True)
            return cls(list(zip(counts.tolist(), values.tolist(), strict=True)), order, [None] * len(values))
        padding = torch.arange(longest, device=device) >= lengths.to(device, non_blocking=True).unsqueeze(1)
        mask = torch.zeros(padding.shape, device=device).masked_fill_(padding, torch.finfo(torch.float32).min)
        return cls([(len(lengths), longest)], None, [mask[:, None, None]])

    def sort(self, rows: Tensor) -> Tensor:
        """Put rows [B, ...] into the groups' order."""
        return rows if self.order is None else rows[self.order]

    def unsort(self, rows: Tensor) -> Tensor:
        """Put rows [B, ...] in the groups' order back into the batch's."""
        return rows if self.order is None else rows[torch.argsort(self.order)]

    def split(self, packed: Tensor) -> list[Tensor]:
        """Cut packed tokens [T, ...] into [rows, length, ...] per group."""
        parts = cut(packed, [rows * length for rows, length in self.shapes])
        return [
            part.view(rows, length, *packed.shape[1:]) for part, (rows, length) in zip(parts, self.shapes, strict=True)
        ]


def cut(packed: Tensor, sizes: list[int]) -> Sequence[Tensor]:
    """Split along the first dimension. A single part stays as it is: the gradient of a split is a copy."""
    return [packed] if len(sizes) == 1 else packed.split(sizes)


def join(parts: list[Tensor]) -> Tensor:
    """Concatenate along the first dimension, without copying a single part."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


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
    stack, config = t5.encoder, t5.config
    groups = LengthGroups.of(lengths, input_ids.shape[1], input_ids.device)
    rows = groups.sort(input_ids)
    parts = cut(rows, [count for count, _ in groups.shapes])
    packed = join([part[:, :length].flatten() for part, (_, length) in zip(parts, groups.shapes, strict=True)])
    hidden = stack.dropout(t5.shared(packed))  # [T, d]
    longest = groups.shapes[0][1]
    bias = position_bias(stack.block[0].layer[0].SelfAttention, longest, longest, bidirectional=True)  # [H, S, S]
    biases = [
        bias[:, :length, :length] if mask is None else bias + mask
        for (_, length), mask in zip(groups.shapes, groups.masks, strict=True)
    ]
    for block in stack.block:
        layer = block.layer[0]
        attention = layer.SelfAttention
        qkv = F.linear(
            layer.layer_norm(hidden), torch.cat([attention.q.weight, attention.k.weight, attention.v.weight])
        )
        mixed = []
        for part, group_bias in zip(groups.split(qkv), biases, strict=True):
            rows_, length, _ = part.shape
            query, key, value = part.view(rows_, length, 3, config.num_heads, config.d_kv).permute(2, 0, 3, 1, 4)
            out = attend(query, key, value, group_bias, attention)
            mixed.append(out.transpose(1, 2).reshape(rows_ * length, -1))
        hidden = hidden + layer.dropout(attention.o(join(mixed)))
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
    stack, config = t5.decoder, t5.config
    num_rows, steps = decoder_input_ids.shape
    hidden = stack.dropout(t5.shared(decoder_input_ids))
    bias = position_bias(stack.block[0].layer[0].SelfAttention, steps, steps, bidirectional=False)
    future = torch.ones(steps, steps, dtype=torch.bool, device=hidden.device).triu(1)
    bias = bias.masked_fill(future, torch.finfo(bias.dtype).min)
    for block in stack.block:
        layer = block.layer[0]
        attention = layer.SelfAttention
        qkv = F.linear(
            layer.layer_norm(hidden), torch.cat([attention.q.weight, attention.k.weight, attention.v.weight])
        )
        query, key, value = qkv.view(num_rows, steps, 3, config.num_heads, config.d_kv).permute(2, 0, 3, 1, 4)
        out = attend(query, key, value, bias, attention).transpose(1, 2).reshape(num_rows, steps, -1)
        hidden = hidden + layer.dropout(attention.o(out))
        hidden = cross_attention(block.layer[1], hidden, cross_keys_values(block.layer[1], encoded))
        hidden = feed_forward(block.layer[2], hidden)
    return stack.dropout(stack.final_layer_norm(hidden))


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
    mixed = []
    parts = cut(queries, [len(key) for key, _, _ in keys_values])
    for query, (key, value, mask) in zip(parts, keys_values, strict=True):
        mixed.append(attend(query, key, value, mask, attention))
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


def position_bias(attention: nn.Module, queries: int, keys: int, bidirectional: bool) -> Tensor:
    """Return the learnt relative position bias [H, queries, keys]; the last query stands at the last key."""
    device = attention.relative_attention_bias.weight.device
    key_position = torch.arange(keys, device=device)
    query_position = torch.arange(keys - queries, keys, device=device)
    bucket = attention._relative_position_bucket(
        key_position - query_position[:, None],
        bidirectional=bidirectional,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    return attention.relative_attention_bias(bucket).permute(2, 0, 1)


def project(t5: T5ForConditionalGeneration, hidden: Tensor) -> Tensor:
    """Return vocabulary logits [..., V] of decoder output, through the tied embeddings with T5's scaling."""
    if t5.config.tie_word_embeddings:
        hidden = hidden * t5.config.d_model**-0.5
    return F.linear(hidden, t5.lm_head.weight)
