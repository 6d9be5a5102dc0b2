"""The last level of a semantic ID, which tells items apart that share all codebook codes."""

import numpy as np

from tokenizer.quality import collision_groups
from utils.errors import InputError


def disambiguation_codes(codes: np.ndarray, taken: np.ndarray | None = None) -> np.ndarray:
    """Count 1, 2, 3, ... in order within each group of items that share all codebook codes: int [N, H] to int64 [N].

    Of semantic IDs that are `taken`, int [T, H + 1], counting goes on behind their highest.
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


def semantic_ids(codes: np.ndarray, size: int, name: str, item_names: list[str]) -> np.ndarray:
    """Append the disambiguation level: int [N, H], 0-based, row i = item id i + 1, to int64 [N, H + 1].

    Differs from the reference code: a group larger than the level holds is an error; there, code 256 of 256 was let
    through and became the user token.

    Args:
        size: Codes of the disambiguation level, of which 1..size-1 are used.
        name: The tokenizer's, for the error.
        item_names: N names in item id order, without padding; for the error.

    Raises:
        InputError: A group has more than size - 1 items.
    """
    extra = disambiguation_codes(codes)
    if extra.max() >= size:
        example = int(extra.argmax())
        members = int(extra[example])
        raise InputError(
            f"tokenizer of epoch {name}: {members} items share the codes {codes[example].tolist()} "
            f"({item_names[example]!r} among them), but the disambiguation level of {size} separates at most "
            f"{size - 1}; give it more codes with a last entry of its own in --codebook_size (at least {members + 1}), "
            "or use more or larger codebooks"
        )
    return np.column_stack([codes, extra])
