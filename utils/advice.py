"""What the numbers of a run say should be changed, in a sentence each."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

FALLING_EVALUATIONS = 3


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


def curriculum_advice(probabilities: np.ndarray, tau: float) -> str | None:
    """Judge sampling probabilities, float64 [G], that came out at temperature tau."""
    highest, uniform = float(probabilities.max()), 1 / len(probabilities)
    if highest > 0.5 and len(probabilities) > 2:
        return f"one tokenizer is drawn with probability {highest:.2f}; raise --tau ({tau:g}) to draw the others too"
    if np.abs(probabilities / uniform - 1).max() < 0.01:
        return f"all sampling probabilities are within 1% of uniform: the curriculum is idle; lower --tau ({tau:g})"
    return None


def validation_advice(name: str, scores: Sequence[float]) -> str | None:
    """Judge the scores of all evaluations so far: have the last ones fallen, each below the one before?"""
    last = scores[-FALLING_EVALUATIONS - 1 :]
    if len(last) <= FALLING_EVALUATIONS or any(after >= before for before, after in pairwise(last)):
        return None
    return (
        f"validation {name} has fallen {FALLING_EVALUATIONS} times in a row, from {last[0]:.4f} to {last[-1]:.4f}: the "
        "model overfits or the learning rate is too high; lower --lr or --epochs, or raise --dropout_rate"
    )
