"""How good tokenizers are: collisions, use of the codes, and how much tokenizers differ from each other."""

from collections.abc import Sequence

import numpy as np

from data.distances import distances, most_central
from utils.text_table import text_table

GAPS = (1, 5, 10, 20, 30)


def collision_groups(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the groups of items that share all codes, int [N, H], 0-based.

    Returns:
        Each item's group, int64 [N], in ascending order of codes, and the groups' sizes, int64 [groups].
    """
    group, sizes = np.zeros(len(codes), dtype=np.int64), np.array([len(codes)])
    for level in codes.T:  # ranked anew at each level, so that no product of sizes overflows
        _, group, sizes = np.unique(group * (int(codes.max()) + 1) + level, return_inverse=True, return_counts=True)
    return group, sizes


def disambiguation_codes(codes: np.ndarray, taken: np.ndarray | None = None) -> np.ndarray:
    """Count 1, 2, 3, ... in order within each group of items that share all codebook codes: int [N, H] to int64 [N].

    Source: section 2.2.2. Of semantic IDs that are `taken`, int [T, H + 1], counting goes on behind their highest.
    """
    taken = np.empty((0, codes.shape[1] + 1), dtype=np.int64) if taken is None else taken
    group, sizes = collision_groups(np.concatenate([taken[:, :-1], codes]))
    highest = np.zeros(len(sizes), dtype=np.int64)
    np.maximum.at(highest, group[: len(taken)], taken[:, -1])
    group = group[len(taken) :]
    order, counts = np.argsort(group, kind="stable"), np.bincount(group, minlength=len(sizes))
    result = np.empty(len(codes), dtype=np.int64)
    result[order] = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    return highest[group] + result


def share_differing(first: np.ndarray, second: np.ndarray) -> float:
    """Return the share of items that two tokenizers, int [N, H], give other tokens, disambiguation included."""
    ids = [np.column_stack([codes, disambiguation_codes(codes)]) for codes in (first, second)]
    return float(distances(np.stack(ids))[0, 1])


def tokenizer_quality(codes: np.ndarray, codebook_sizes: Sequence[int]) -> dict[str, object]:
    """Judge one tokenizer by its codes, int [N, H], 0-based, without disambiguation, of K codes at each level.

    Returns:
        collision_rate (share of items that share all codes with another), largest_group (items), and codes_used and
        perplexity per level: exp of the entropy of its codes, K where all are used equally often.
    """
    _, sizes = collision_groups(codes)
    used, perplexity = [], []
    for level, size in zip(codes.T, codebook_sizes, strict=True):
        counts = np.bincount(level, minlength=size)
        share = counts[counts > 0] / len(codes)
        used.append(int((counts > 0).sum()))
        perplexity.append(float(np.exp(-(share * np.log(share)).sum())))
    return {
        "collision_rate": float(sizes[sizes > 1].sum() / len(codes)),
        "largest_group": int(sizes.max()),
        "codes_used": used,
        "perplexity": perplexity,
    }


def drift(sem_ids: np.ndarray, gaps: Sequence[int] = GAPS) -> dict[int, dict[str, float]]:
    """Return how many items' semantic IDs differ between two tokenizers, by how many places these are apart.

    Source: arXiv 2504.04400, Table 5; neighbours there are neighbouring epochs.

    Args:
        sem_ids: int [G, N, L], disambiguation included, tokenizers in their order in training.
        gaps: Places apart; 1 are neighbours.

    Returns:
        {gap: {first, any, any_codebook, pairs}}: share of items whose first / any / any but the disambiguation token
        differs, means over all pairs at that distance; gaps without a pair are left out.
    """
    levels = {"first": slice(1), "any": slice(None), "any_codebook": slice(-1)}
    matrices = {name: distances(sem_ids[:, :, which]) for name, which in levels.items()}
    return {
        gap: {name: float(matrix.diagonal(gap).mean()) for name, matrix in matrices.items()}
        | {"pairs": len(sem_ids) - gap}
        for gap in gaps
        if gap < len(sem_ids)
    }


def relatedness(epochs: Sequence[int], sem_ids: np.ndarray) -> dict[str, object]:
    """Judge how tokenizers of one dataset, int [G, N, L] of 1-based epochs in rising order, are related.

    Returns:
        epochs; drift of every gap in GAPS and of the ends; distances [G, G], rounded to 4 places;
        different_ids, how many different semantic IDs an item has on average; middle, the three most central epochs.
    """
    last, matrix = len(sem_ids) - 1, distances(sem_ids)
    different = [len(np.unique(ids, axis=0)) for ids in sem_ids.swapaxes(0, 1)]
    return {
        "epochs": list(epochs),
        "drift": drift(sem_ids, sorted({*(gap for gap in GAPS if gap < last), last} - {0})),
        "distances": matrix.round(4).tolist(),
        "different_ids": float(np.mean(different)),
        "middle": [epochs[index] for index in most_central(matrix, 3)],
    }


def drift_of_ends(report: dict[str, object]) -> dict[str, float]:
    """Return the drift at the largest distance that `relatedness` has: of the first tokenizer and the last."""
    return max(report["drift"].items(), key=lambda gap_and_drift: int(gap_and_drift[0]))[1]


def middle_sentence(report: dict[str, object]) -> str:
    """Say what `relatedness` found of the middle."""
    return (
        f"An item has {report['different_ids']:.2f} different semantic IDs on average. The middle tokenizers, "
        f"which are nearest to all others: {', '.join(map(str, report['middle']))}."
    )


def format_report(report: dict[str, object]) -> str:
    """Return {"items", "codebook_sizes", "tokenizers": {name: tokenizer_quality}} and `relatedness` as text."""
    sizes = report["codebook_sizes"]
    head = ["tokenizer", "collisions", "largest"]
    head += [f"{name} {level}" for name in ("used", "perplexity") for level in range(len(sizes))]
    rows = [
        [name, f"{quality['collision_rate']:.2%}", str(quality["largest_group"]), *map(str, quality["codes_used"])]
        + [f"{perplexity:.1f}" for perplexity in quality["perplexity"]]
        for name, quality in report["tokenizers"].items()
    ]
    parts = [f"{report['items']} items, codebooks of {', '.join(map(str, sizes))}", text_table(head, rows)]
    if report.get("drift"):
        kinds = {"first token": "first", "any token": "any", "any but disambiguation": "any_codebook"}
        rows = [
            [str(gap), *(f"{values[kind]:.2%}" for kind in kinds.values()), str(values["pairs"])]
            for gap, values in report["drift"].items()
        ]
        parts += [
            "Share of items whose tokens differ between two tokenizers:",
            text_table(["apart", *kinds, "pairs"], rows),
        ]
    if "middle" in report:
        parts.append(middle_sentence(report))
    return "\n\n".join(parts)
