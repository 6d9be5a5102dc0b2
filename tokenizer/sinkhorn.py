"""Entropic assignment at the last level: items share out the codes among themselves, so that fewer of them collide."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tokenizer.quality import collision_groups

ROUNDS = 20


def sinkhorn_plan(distances: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Return the shares in which B items take K codes, each code getting the same share of the items.

    Source: LC-Rec (arXiv 2311.09049); distances are scaled to [-1, 1] as in its code.

    Args:
        distances: float64 [..., B, K].
        epsilon: Weight of the entropy; the lower, the fewer codes an item is spread over. From 0.003 on all is finite.
        iterations: How often rows, and then columns, are scaled to their sums.

    Returns:
        float64 [..., B, K]; the columns' sums are 1/K, the rows' go to 1/B.
    """
    lowest, highest = distances.amin((-2, -1), keepdim=True), distances.amax((-2, -1), keepdim=True)
    half = ((highest - lowest) / 2).clamp(min=torch.finfo(distances.dtype).tiny)
    scores = (lowest - distances) / half / epsilon
    scores = scores - scores.amax(-1, keepdim=True)
    kernel = (scores - scores.amax(-2, keepdim=True)).exp()  # every row and every column has a 1, and nothing above
    (items, codes), columns = distances.shape[-2:], torch.ones_like(distances[..., :1, :].mT)
    for _ in range(iterations):
        rows = 1 / items / (kernel @ columns)  # [..., B, 1]
        columns = 1 / codes / (kernel.mT @ rows)  # [..., K, 1]
    return rows * kernel * columns.mT


@dataclass(frozen=True)
class Sinkhorn:
    """Settings of the assignment, as `sinkhorn_plan` has them."""

    epsilon: float
    iterations: int

    def codes(self, residual: Tensor, codebook: Tensor, taken: Tensor | None = None) -> Tensor:
        """Assign residuals, float [..., B, D], to codes, float [K, D], among each other: int64 [..., B], 0-based.

        Codes that are `taken`, bool [..., K], get none.
        """
        exact = "donot_use_mm_for_euclid_dist"  # equal residuals have equal distances
        distances = torch.cdist(residual.double(), codebook.double(), compute_mode=exact).square()
        plan = sinkhorn_plan(distances, self.epsilon, self.iterations)
        return (plan if taken is None else plan.masked_fill(taken.unsqueeze(-2), -1)).argmax(-1)


def separate(latents: Tensor, codebooks: Sequence[Tensor], codes: np.ndarray, sinkhorn: Sinkhorn) -> np.ndarray:
    """Give items that collide other last codes: each group of them shares out the codes, in up to 20 rounds.

    As LC-Rec's code does, which however lets them have codes that other items have behind the same levels, and then may
    go round in circles. A group takes the codes that tell its items apart best, which need not be near. Items of the
    same embedding keep colliding.

    Args:
        latents: float [N, D], what is quantised.
        codebooks: H of float [K, D]; each level quantises what the levels before it left over.
        codes: int64 [N, H], 0-based.

    Returns:
        int64 [N, H]; all levels but the last, and items that do not collide, are as they were.
    """
    residual, codes, before = latents, codes.copy(), None
    for codebook, chosen in zip(codebooks[:-1], codes.T, strict=False):
        residual = residual - codebook[torch.from_numpy(chosen)]
    prefix, counts = collision_groups(codes[:, :-1])
    for _ in range(ROUNDS):
        if before is not None and (codes == before).all():
            break
        before, (group, sizes) = codes.copy(), collision_groups(codes)
        taken = np.zeros((len(counts), len(codebooks[-1])), dtype=bool)
        taken[prefix, codes[:, -1]] = True
        order = np.argsort(group, kind="stable")
        for size in np.unique(sizes[sizes > 1]):
            rows = order[sizes[group[order]] == size].reshape(-1, size)  # a group in each
            others = taken[prefix[rows[:, 0]]]
            np.put_along_axis(others, before[rows[:, :1], -1], False, axis=1)
            found = sinkhorn.codes(
                residual[torch.from_numpy(rows)], codebooks[-1], torch.from_numpy(others).to(residual.device)
            )
            codes[rows, -1] = found.cpu().numpy()
    return codes
