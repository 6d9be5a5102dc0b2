"""What the semantic IDs of a tokenizer say should be changed, in a sentence each."""

from collections.abc import Sequence

import numpy as np

from data.distances import distances
from data.token_table import TokenTable

# Between the first and the last of related tokenizers; in the paper, 1% and 55% or more (Table 5).
MOST_FIRST, LEAST_ANY = 0.05, 0.2


def tokenizer_advice(codes_used: Sequence[int], codebook_sizes: Sequence[int], collision_rate: float) -> list[str]:
    """Judge a tokenizer by how many codes of each level its items have, and how many items share all codes."""
    found = []
    poor = [level for level, pair in enumerate(zip(codes_used, codebook_sizes, strict=True)) if pair[0] < pair[1] / 2]
    if poor:
        parts = ", ".join(f"{codes_used[level]} of {codebook_sizes[level]} at level {level}" for level in poor)
        found.append(
            f"less than half of the codes are in use: {parts}; train the RQ-VAE longer (tokenizer/run.sh --epochs), "
            "keep --sent_emb_pca and --vq_type=ema, or lower --codebook_size"
        )
    if collision_rate > 0.3:
        found.append(
            f"{collision_rate:.0%} of the items share all codes but the disambiguation's with another; raise "
            "--codebook_size or --n_codebooks, or train the RQ-VAE longer"
        )
    return found


def relation_advice(first: float, any_token: float) -> list[str]:
    """Judge related tokenizers by the shares of items whose first, or any, token differs between the two ends."""
    if first > MOST_FIRST:
        return [
            f"the tokenizers are hardly related: between the first and the last, {first:.0%} of the items have another "
            f"first token, where at most {MOST_FIRST:.0%} should; lower --drift, or train the tokenizer longer"
        ]
    if any_token < LEAST_ANY:
        return [
            f"the tokenizers are hardly different: the first and the last differ in {any_token:.1%} of the items, "
            "where about half should; train with --drift=0.5 --steps_per_epoch=12, or for fewer --epochs, or make "
            "related ones out of one with python -m tokenizer.vary"
        ]
    return []


def judge_tokenizers(table: TokenTable) -> list[str]:
    """Return what looks wrong with the last tokenizer, which the others resemble, and with how they are related."""
    codes = table.tokens[-1, 1:, :-1].cpu().numpy()
    _, shared = np.unique(codes, axis=0, return_counts=True)
    used = [len(np.unique(level)) for level in codes.T]
    found = tokenizer_advice(used, table.vocabulary.sizes[:-1], float(shared[shared > 1].sum() / len(codes)))
    if table.num_groups > 1:
        ends = table.tokens[[0, -1], 1:].cpu().numpy()
        found += relation_advice(distances(ends[:, :, :1])[0, 1], distances(ends)[0, 1])
    return found
