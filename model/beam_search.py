"""Fixed-depth beam search for semantic IDs (paper section 2.4).

Every history is encoded once; its cross-attention keys and values are shared by its beams, which stand in the query
dimension. Self-attention's keys and values stay where their step put them; beams remember where theirs lie.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

from model.t5 import KeysValues, cross_attention, cross_keys_values, encode, feed_forward, position_bias, project
from utils.prefix_trie import PrefixTrie


@torch.no_grad()
def beam_search(
    t5: T5ForConditionalGeneration,
    input_ids: Tensor,
    lengths: Tensor,
    num_levels: int,
    num_beams: int,
    num_return: int,
    trie: PrefixTrie | None = None,
    banned: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generate the most likely semantic IDs; the network must be in eval mode.

    The search runs over the whole vocabulary (padding, user tokens and eos are not banned). Two sequences with scores
    that float32 does not tell apart may come in either order.

    Args:
        t5: The network.
        input_ids: int64 [B, S], padded at the end.
        lengths: int64 [B] on the CPU, tokens of each row that are not padding.
        num_levels: Steps, L.
        num_beams: Beams kept at each step, M.
        num_return: Sequences returned, k <= M.
        trie: Keep only beams that begin a sequence of the trie, so that every returned one is in it. Scores stay those
            of the whole vocabulary.
        banned: int64 [B, E], rows of the trie that each history's beams must not find, each once, filled up with -1.

    Returns:
        Sequences int64 [B, k, L] of tokens and scores float32 [B, k], the summed log-probability / L, falling. Where
        there are fewer than k sequences, the rest are padding with score -inf.
    """
    if num_return > num_beams:
        raise ValueError(f"{num_return} sequences cannot be returned from {num_beams} beams")
    encoded = encode(t5, input_ids, lengths)
    device, num_rows = input_ids.device, len(input_ids)
    if banned is not None:
        trie = trie.without(encoded.groups.sort(banned))
    shared = [cross_keys_values(block.layer[1], encoded) for block in t5.decoder.block]
    caches: list[list[Tensor]] = [[] for _ in shared]
    ancestors: list[Tensor] = []  # for each step before, its rows that the beams descend from

    tokens = torch.full((num_rows, 1), t5.config.decoder_start_token_id, device=device)
    scores = torch.zeros(num_rows, 1, device=device)
    sequences = torch.zeros(num_rows, 1, 0, dtype=torch.int64, device=device)
    nodes = torch.zeros(num_rows, 1, dtype=torch.int64, device=device)
    for level in range(num_levels):
        log_probs = F.log_softmax(_step(t5, tokens, level, shared, caches, ancestors).float(), dim=-1)  # [B, M, V]
        if trie is not None:
            log_probs.masked_fill_(~trie.allowed(nodes, level), float("-inf"))
        vocab_size = log_probs.shape[-1]
        candidates = log_probs.add_(scores.unsqueeze(2)).flatten(1)  # [B, M x V]
        scores, chosen = candidates.topk(min(num_beams, candidates.shape[1]), dim=1)
        beams, tokens = chosen // vocab_size, chosen % vocab_size
        sequences = torch.cat([_take(sequences, beams), tokens.unsqueeze(2)], dim=2)
        if trie is not None:
            nodes = trie.step(nodes.gather(1, beams), tokens, level)
            nodes = nodes.masked_fill(scores == float("-inf"), -1)
        ancestors = [rows.gather(1, beams) for rows in ancestors] + [beams]

    scores, sequences = scores[:, :num_return] / num_levels, sequences[:, :num_return]
    sequences = sequences.masked_fill((scores == float("-inf")).unsqueeze(2), t5.config.pad_token_id)
    missing = num_return - scores.shape[1]
    if missing > 0:
        scores = F.pad(scores, (0, missing), value=float("-inf"))
        sequences = F.pad(sequences, (0, 0, 0, missing), value=t5.config.pad_token_id)
    return encoded.groups.unsort(sequences), encoded.groups.unsort(scores)


def _take(values: Tensor, beams: Tensor) -> Tensor:
    """Take the chosen beams: [B, M, ...] at int64 [B, M'] to [B, M', ...], without a copy where M is 1."""
    if values.shape[1] == 1:
        return values.expand(-1, beams.shape[1], *values.shape[2:])
    rows = torch.arange(len(beams), device=beams.device).unsqueeze(1) * values.shape[1] + beams
    return values.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, beams.shape)  # whole rows are copied


def _step(
    t5: T5ForConditionalGeneration,
    tokens: Tensor,
    level: int,
    shared: list[list[KeysValues]],
    caches: list[list[Tensor]],
    ancestors: list[Tensor],
) -> Tensor:
    """Run the decoder on each beam's newest token and return the next token's logits [B, M, V].

    `caches` holds, per layer, keys and values [B, M', 2, H, d_kv] of each step before, with its own number of beams
    M'; this step's are appended. `ancestors` says for each step before which of them the beams descend from, int64
    [B, M].
    """
    stack = t5.decoder
    hidden = t5.shared(tokens)  # [B, M, d]
    bias = position_bias(stack.block[0].layer[0].SelfAttention, 1, level + 1, bidirectional=False)[:, 0]  # [H, t]
    for block, cache, keys_values in zip(stack.block, caches, shared, strict=True):
        hidden = _self_attention(block.layer[0], hidden, cache, ancestors, bias)
        hidden = cross_attention(block.layer[1], hidden, keys_values)
        hidden = feed_forward(block.layer[2], hidden)
    return project(t5, stack.final_layer_norm(hidden))


def _self_attention(
    layer: nn.Module, hidden: Tensor, cache: list[Tensor], ancestors: list[Tensor], bias: Tensor
) -> Tensor:
    """Let each beam look at its own tokens so far: [B, M, d_model], and append this step to the cache."""
    attention, normed = layer.SelfAttention, layer.layer_norm(hidden)
    query = attention.q(normed).unflatten(2, (attention.n_heads, -1))  # [B, M, H, d_kv]
    both = F.linear(normed, torch.cat([attention.k.weight, attention.v.weight]))
    cache.append(both.unflatten(2, (2, attention.n_heads, -1)))  # [B, M, 2, H, d_kv]
    own = [_take(step, beams) for step, beams in zip(cache, ancestors, strict=False)] + [cache[-1]]
    scores = torch.stack([(query * step[:, :, 0]).sum(-1) for step in own], dim=2)  # [B, M, t, H]
    weights = torch.softmax(scores + bias.T, dim=2).unsqueeze(-1)
    out = sum(weights[:, :, index] * step[:, :, 1] for index, step in enumerate(own))
    return hidden + attention.o(out.flatten(2))
