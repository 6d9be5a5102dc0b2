"""What the semantic IDs of a tokenizer say should be changed, in a sentence each."""

from collections.abc import Sequence

import numpy as np

from data.token_table import TokenTable


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


def judge_tokenizer(table: TokenTable) -> list[str]:
    """Return what looks wrong with the last tokenizer, which the others resemble."""
    codes = table.tokens[-1, 1:, :-1].cpu().numpy()
    _, shared = np.unique(codes, axis=0, return_counts=True)
    used = [len(np.unique(level)) for level in codes.T]
    return tokenizer_advice(used, table.vocabulary.sizes[:-1], float(shared[shared > 1].sum() / len(codes)))
