"""Fixed-depth beam search for semantic IDs (paper section 2.4), for any network."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.prefix_trie import PrefixTrie

PAD_TOKEN = 0

# A network's next step. It is called once a level with the beams' tokens so far, int64 [B, M, level], and for each step
# before the rows of its beams, int64 [B, M], that these descend from; it returns the next token's logits [B, M, V].
Step = Callable[[Tensor, list[Tensor]], Tensor]


@torch.no_grad()
def beam_search(
    step: Step,
    num_rows: int,
    num_levels: int,
    num_beams: int,
    num_return: int,
    device: torch.device,
    trie: PrefixTrie | None = None,
    banned: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generate the most likely semantic IDs.

    The search runs over the whole vocabulary (padding, user tokens and eos are not banned). Two sequences with scores
    that float32 does not tell apart may come in either order.

    Args:
        step: What follows the beams of B = num_rows histories; the first call has one empty beam for each.
        num_levels, num_beams, num_return: L steps, M beams kept at each, k <= M sequences returned.
        device: Where the logits are.
        trie: Keep only beams that begin a sequence of the trie, so that every returned one is in it. Scores stay those
            of the whole vocabulary.
        banned: int64 [B, E], rows of the trie that each history's beams must not find, each once, filled up with -1.

    Returns:
        Sequences int64 [B, k, L] of tokens and scores float32 [B, k], the summed log-probability / L, falling. Where
        there are fewer than k sequences, the rest are padding with score -inf.
    """
    if num_return > num_beams:
        raise ValueError(f"{num_return} sequences cannot be returned from {num_beams} beams")
    if banned is not None:
        trie = trie.without(banned)
    ancestors: list[Tensor] = []
    scores = torch.zeros(num_rows, 1, device=device)
    sequences = torch.zeros(num_rows, 1, 0, dtype=torch.int64, device=device)
    nodes = torch.zeros(num_rows, 1, dtype=torch.int64, device=device)
    for level in range(num_levels):
        log_probs = F.log_softmax(step(sequences, ancestors).float(), dim=-1)  # [B, M, V]
        if trie is not None:
            children = trie.children(nodes, level)  # [B, M, C]
            log_probs = log_probs.gather(2, trie.tokens(children, level)).masked_fill_(children < 0, float("-inf"))
        continued = log_probs.add_(scores.unsqueeze(2)).flatten(1)  # [B, M x (V or C)]
        scores, chosen = continued.topk(min(num_beams, continued.shape[1]), dim=1)
        beams, tokens = chosen // log_probs.shape[2], chosen % log_probs.shape[2]
        if trie is not None:
            nodes = children.flatten(1).gather(1, chosen)
            tokens = trie.tokens(nodes, level)
        sequences = torch.cat([take_beams(sequences, beams), tokens.unsqueeze(2)], dim=2)
        ancestors = [rows.gather(1, beams) for rows in ancestors] + [beams]
    lacking = max(0, num_return - scores.shape[1])
    scores = F.pad(scores[:, :num_return] / num_levels, (0, lacking), value=float("-inf"))
    sequences = F.pad(sequences[:, :num_return], (0, 0, 0, lacking), value=PAD_TOKEN)
    return sequences.masked_fill((scores == float("-inf")).unsqueeze(2), PAD_TOKEN), scores


def take_beams(values: Tensor, beams: Tensor) -> Tensor:
    """Take the chosen beams: [B, M, ...] at int64 [B, M'] to [B, M', ...], without a copy where M is 1."""
    if values.shape[1] == 1:
        return values.expand(-1, beams.shape[1], *values.shape[2:])
    rows = torch.arange(len(beams), device=beams.device).unsqueeze(1) * values.shape[1] + beams
    return values.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, beams.shape)  # whole rows are copied
