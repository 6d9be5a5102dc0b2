"""How the rows of a batch of histories are laid out: packed in parts of equal length, or as one padded part.

Histories have few different lengths. On the CPU the rows of a batch are sorted by length and their tokens packed one
after another, so that every linear layer sees real tokens only; attention runs part by part and needs no mask. On a
GPU, where many small products cost more than a large one, all rows are one part, padded and masked.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PACKING_DEVICES = ("cpu",)  # types of devices that compute every length apart


@dataclass
class Packing:
    """A batch's rows in parts that attention handles at once."""

    shapes: list[tuple[int, int]]  # (rows, length) of each part, lengths falling
    order: Tensor | None  # int64 [B], the rows in the parts' order; None where they stay as they are
    masks: list[Tensor | None]  # of each part: what is added to scores, float32 [rows, 1, 1, length]; None: no padding

    @classmethod
    def of(cls, lengths: Tensor, longest: int) -> "Packing":
        """Pack rows by their number of tokens, int64 [B], at most `longest`; on the CPU where lengths lie apart."""
        if lengths.device.type in PACKING_DEVICES:
            ordered, order = torch.sort(lengths, descending=True, stable=True)
            values, counts = torch.unique_consecutive(ordered, return_counts=True)
            return cls(list(zip(counts.tolist(), values.tolist(), strict=True)), order, [None] * len(values))
        padding = torch.arange(longest, device=lengths.device) >= lengths.unsqueeze(1)
        mask = torch.zeros(padding.shape, device=lengths.device).masked_fill_(padding, torch.finfo(torch.float32).min)
        return cls([(len(lengths), longest)], None, [mask[:, None, None]])

    def sort(self, rows: Tensor) -> Tensor:
        """Put rows [B, ...] into the parts' order."""
        return rows if self.order is None else rows[self.order]

    def unsort(self, rows: Tensor) -> Tensor:
        """Put rows [B, ...] in the parts' order back into the batch's."""
        return rows if self.order is None else rows[torch.argsort(self.order)]

    def split(self, packed: Tensor) -> list[Tensor]:
        """Cut packed tokens [T, ...] into [rows, length, ...] per part."""
        parts = cut(packed, [rows * length for rows, length in self.shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, self.shapes, strict=True)]


def cut(packed: Tensor, sizes: list[int]) -> Sequence[Tensor]:
    """Split along the first dimension. A single part stays as it is: the gradient of a split is a copy."""
    return [packed] if len(sizes) == 1 else packed.split(sizes)


def join(parts: list[Tensor]) -> Tensor:
    """Concatenate along the first dimension, without copying a single part."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
