"""Neighbour identifiers: related tokenizers made out of one, by drawing codes among the nearest codewords.

The last epochs of a training (paper section 2.2.2) are related because few codewords and latents have moved between
them. This makes the same relation on purpose, for any tokenizer whose codewords lie in a space with distances. How far
the tokenizers are apart is asked for instead of found.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from tokenizer.quality import share_differing

CANDIDATES = 10  # nearest codewords that a code is drawn among
BISECTIONS = 12
CHUNK = 4096  # items whose distances are held at once


def neighbour_codes(
    latents: Tensor,
    codebooks: Sequence[Tensor],
    codes: np.ndarray,
    num_tokenizers: int,
    drift: float,
    seed: int,
    kept_levels: int = 1,
) -> np.ndarray:
    """Make related tokenizers whose middle one is the given tokenizer.

    On each side of the middle, every item and codeword has one Gumbel number for good, and a temperature that rises
    towards the end: codes change one item after another and stay changed, as in a walk.

    Args:
        latents: float [N, D], what is quantised.
        codebooks: H of float [K, D]; each level quantises what the levels before it left over.
        codes: int [N, H], 0-based, the given tokenizer's.
        num_tokenizers: n, how many tokenizers in all.
        drift: Share of the items that differ in any token, disambiguation included, between the first and the last.
        seed: Of all draws.
        kept_levels: Levels that keep their code, from the first on.

    Returns:
        int64 [n, N, H]; number n // 2 is `codes`.

    Raises:
        ValueError: No temperature reaches the drift.
    """
    middle = num_tokenizers // 2
    sides = {-1: middle, 1: num_tokenizers - 1 - middle}  # tokenizers on each side

    def drawn(side: int, temperature: float) -> np.ndarray:
        return _draw(latents, codebooks, codes, temperature, seed * 2 + (side > 0), kept_levels)

    def ends(temperature: float) -> list[np.ndarray]:
        return [drawn(side, temperature) if count else codes for side, count in sides.items()]

    hottest = _solve(lambda temperature: share_differing(*ends(temperature)), drift)
    found = np.empty((num_tokenizers, *codes.shape), dtype=np.int64)
    found[middle] = codes
    for side, count in sides.items():
        share = share_differing(codes, drawn(side, hottest))
        for place in range(1, count + 1):
            wanted, temperature = share * place / count, hottest
            if place < count:
                temperature = _solve(lambda t, side=side: share_differing(codes, drawn(side, t)), wanted, hottest)
            found[middle + side * place] = drawn(side, temperature)
    return found


def estimated_codebooks(embeddings: np.ndarray, codes: np.ndarray, sizes: Sequence[int]) -> list[Tensor]:
    """Return codewords for semantic IDs that came without any: level by level the mean of what is left of the items.

    Args:
        embeddings: float32 [N, D].
        codes: int [N, H], 0-based.
        sizes: K of each level.

    Returns:
        H of float32 [K, D]; infinitely far where a code has no item.
    """
    residual, found = torch.from_numpy(embeddings), []
    for level, size in zip(torch.from_numpy(codes).long().T, sizes, strict=True):
        counts = torch.bincount(level, minlength=size).unsqueeze(1)
        sums = torch.zeros(size, residual.shape[1]).index_add_(0, level, residual)
        found.append(torch.where(counts > 0, sums / counts.clamp(min=1), torch.inf))
        residual = residual - found[-1][level]
    return found


def _draw(
    latents: Tensor, codebooks: Sequence[Tensor], codes: np.ndarray, temperature: float, seed: int, kept_levels: int
) -> np.ndarray:
    """Draw every item's codes: each level's among the codewords nearest to what is left, given the levels before."""
    original = torch.from_numpy(codes).long()
    parts = []
    for start in range(0, len(latents), CHUNK):
        rows = slice(start, start + CHUNK)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + start)
        residual, own, chosen = latents[rows].cpu(), original[rows], []
        same = torch.ones(len(residual), dtype=torch.bool)  # no level before has changed
        for level, codebook in enumerate(codebooks):
            gumbel = -torch.empty(len(residual), len(codebook)).exponential_(generator=generator).log()
            code = own[:, level]
            if level >= kept_levels:
                code = _draw_level(residual, codebook.cpu(), torch.where(same, code, -1), temperature * gumbel)
            same = same & (code == own[:, level])
            residual = residual - codebook.cpu()[code]
            chosen.append(code)
        parts.append(torch.stack(chosen, 1))
    return torch.cat(parts).numpy()


def _draw_level(residual: Tensor, codebook: Tensor, own: Tensor, noise: Tensor) -> Tensor:
    """Return one level's codes, int64 [B], drawn with noise, float [B, K], among the nearest codewords.

    How near a codeword is: by how much its squared distance differs from that of the item's own code, int64 [B], or
    from the least where the levels before have changed (own is -1); in units of the mean gap of the two nearest.
    """
    distances = torch.cdist(residual, codebook).square().nan_to_num(nan=torch.inf, posinf=torch.inf)
    used = int(codebook.isfinite().all(dim=1).sum())  # an estimated codeword without items is nowhere
    if used == 1:
        return distances.argmin(1)
    nearest = distances.topk(2, largest=False).values
    gap = (nearest[:, 1] - nearest[:, 0]).mean().clamp(min=1e-12)
    known, place = own.unsqueeze(1) >= 0, own.clamp(min=0).unsqueeze(1)
    distances = (distances - torch.where(known, distances.gather(1, place), nearest[:, :1])).abs()
    # without noise the own code wins against a codeword that is equal to its own
    distances = distances.scatter(1, place, torch.where(known, -1e-30, distances.gather(1, place)))
    found, candidates = distances.topk(min(CANDIDATES, used), largest=False)
    scores = found / gap - noise.gather(1, candidates)
    return candidates.gather(1, scores.argmin(1, keepdim=True)).squeeze(1)


def _solve(share: Callable[[float], float], wanted: float, highest: float | None = None) -> float:
    """Return the temperature at which a share that rises with it comes nearest to the wanted one.

    Raises:
        ValueError: None reaches it.
    """
    if wanted <= 0:
        return 0.0
    if highest is None:
        highest = 1.0
        while share(highest) < wanted:
            highest *= 4
            if highest > 1e6:
                raise ValueError(f"at most {share(highest):.1%} of the items change, {wanted:.1%} are wanted")
    low, high = 0.0, highest
    for _ in range(BISECTIONS):
        between = (low + high) / 2
        low, high = (between, high) if share(between) < wanted else (low, between)
    return high
