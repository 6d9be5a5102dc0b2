"""Dropout whose masks are cheap on the CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero elements of `x` with probability p and scale the others by 1 / (1 - p).

    On the CPU one 64-bit draw of torch's global generator serves four elements, so p is rounded to a multiple of
    2**-16 (0.1 to 0.100006); torch's own dropout, taken elsewhere and where torch.compile fuses it, makes one draw for
    each element and takes three times as long.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), 2**63 - 1)
    keep = (words.view(torch.int16)[: x.numel()].view(x.shape) >= round(p * 2**16) - 2**15).to(x.dtype)
    scale = 1 / (1 - p)
    if x.dtype == torch.float32:
        return x * keep.mul_(scale)  # the same bits as below; backward has one product less
    return x * scale * keep  # the scale is applied in float32: bf16 would make 1.109 of 1.111


class Dropout(nn.Dropout):
    """`dropout` as a module; takes the place of nn.Dropout."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training and self.p > 0 else x


def replace_dropout_(module: nn.Module) -> None:
    """Put Dropout in the place of every nn.Dropout inside `module`."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p))
