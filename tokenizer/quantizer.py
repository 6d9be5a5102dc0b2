"""Residual quantisation: codebooks that follow a moving average or a gradient, one per level."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.sinkhorn import Sinkhorn


def nearest_codes(residual: Tensor, codebook: Tensor) -> Tensor:
    """Return the index of the nearest code by squared L2 distance, the lowest index on a tie.

    Takes residuals, float [B, D], and a codebook, float [K, D]; returns int64 [B], 0-based. The residual's own squared
    norm is the same for every code, so it is left out.
    """
    return torch.addmm(codebook.square().sum(1), residual, codebook.t(), alpha=-2).argmin(1)


class EMACodebook(nn.Module):
    """K = codebook_size codes of D = dim, moving averages of the residuals assigned to them; no gradient moves them.

    A step keeps the share `decay` of the old averages; `eps` is for the Laplace smoothing of the cluster sizes.
    """

    def __init__(self, codebook_size: int, dim: int, decay: float = 0.99, eps: float = 1e-5):
        super().__init__()
        self.decay, self.eps = decay, eps
        self.register_buffer("embed", torch.randn(codebook_size, dim))
        self.register_buffer("embed_avg", self.embed.clone())
        self.register_buffer("cluster_size", torch.ones(codebook_size))

    @property
    def codebook(self) -> Tensor:  # [K, D]
        return self.embed

    @torch.no_grad()
    def initialize_(self, centers: Tensor) -> None:
        """Set the codes, [K, D], each with a cluster size of 1."""
        self.embed.copy_(centers)
        self.embed_avg.copy_(centers)
        self.cluster_size.fill_(1)

    @torch.no_grad()
    def replace_(self, which: Tensor, vectors: Tensor) -> None:
        """Set the codes `which`, bool [K], as `initialize_` does, to their rows of vectors, [K, D]."""
        self.embed.copy_(torch.where(which.unsqueeze(1), vectors, self.embed))
        self.embed_avg.copy_(torch.where(which.unsqueeze(1), vectors, self.embed_avg))
        self.cluster_size.masked_fill_(which, 1)

    @torch.no_grad()
    def update_(self, residual: Tensor, codes: Tensor) -> None:
        """Move the averages towards a batch: residual float [B, D], codes int64 [B]. Unused codes just decay."""
        assigned = F.one_hot(codes, len(self.embed)).to(residual.dtype)  # [B, K]; a matmul beats index_add
        self.cluster_size.mul_(self.decay).add_(assigned.sum(0), alpha=1 - self.decay)
        self.embed_avg.mul_(self.decay).add_(assigned.t() @ residual, alpha=1 - self.decay)
        total = self.cluster_size.sum()
        smoothed = total * (self.cluster_size + self.eps) / (total + len(self.embed) * self.eps)
        torch.div(self.embed_avg, smoothed.unsqueeze(1), out=self.embed)

    def level_loss(self, residual: Tensor, codewords: Tensor, beta: float) -> Tensor:
        """Return beta x the commitment term; only `residual` can receive a gradient."""
        return beta * F.mse_loss(residual, codewords.detach())


class GradientCodebook(nn.Module):
    """K = codebook_size codes of D = dim that their own loss term moves by gradient (VQ-VAE, as in TIGER)."""

    def __init__(self, codebook_size: int, dim: int):
        super().__init__()
        self.embed = nn.Embedding(codebook_size, dim)

    @property
    def codebook(self) -> Tensor:  # [K, D]
        return self.embed.weight

    @torch.no_grad()
    def initialize_(self, centers: Tensor) -> None:
        self.embed.weight.copy_(centers)

    @torch.no_grad()
    def replace_(self, which: Tensor, vectors: Tensor) -> None:
        """Set the codes `which`, bool [K], to their rows of vectors, [K, D]."""
        self.embed.weight.copy_(torch.where(which.unsqueeze(1), vectors, self.embed.weight))

    def update_(self, residual: Tensor, codes: Tensor) -> None:
        """Do nothing: the optimizer moves this codebook."""

    def level_loss(self, residual: Tensor, codewords: Tensor, beta: float) -> Tensor:
        """Return the codebook term + beta x the commitment term."""
        return F.mse_loss(codewords, residual.detach()) + beta * F.mse_loss(residual, codewords.detach())


class ResidualQuantizer(nn.Module):
    """H codebooks of D = dim, each quantising what the levels before it left over.

    Source: arXiv 2504.04400, section 2.2.1. With `sinkhorn` a batch's items share out the last
    level's codes in training.
    """

    def __init__(
        self,
        codebook_sizes: Sequence[int],
        dim: int,
        beta: float = 0.25,
        vq_type: str = "ema",
        sinkhorn: Sinkhorn | None = None,
    ):
        super().__init__()
        self.beta, self.sinkhorn = beta, sinkhorn
        kind = {"ema": EMACodebook, "vq": GradientCodebook}[vq_type]
        self.quantization_layers = nn.ModuleList(kind(size, dim) for size in codebook_sizes)

    @property
    def codebooks(self) -> list[Tensor]:  # H of [K, D]
        return [layer.codebook for layer in self.quantization_layers]

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise in float32; in training mode the moving averages are updated after the old codes have been used.

        No gradient flows through a residual: the latent receives the reconstruction's gradient unchanged
        (straight-through) and level 0's commitment term, the deeper commitment terms only count in the loss.

        Returns:
            The sum of the chosen codes, float32 [B, D], these codes, int64 [B, H], 0-based, and the levels' mean loss.
        """
        latent = latent.float()
        residual, total, codes, losses = latent, torch.zeros_like(latent), [], []
        for layer in self.quantization_layers:
            shared_out = self.sinkhorn and self.training and layer is self.quantization_layers[-1]
            assign = self.sinkhorn.codes if shared_out else nearest_codes
            chosen = assign(residual.detach(), layer.codebook.detach())
            codewords = F.embedding(chosen, layer.codebook)
            losses.append(layer.level_loss(residual, codewords, self.beta))
            if self.training:
                layer.update_(residual.detach(), chosen)
            codewords = codewords.detach()
            residual, total = residual.detach() - codewords, total + codewords
            codes.append(chosen)
        return latent + (total - latent).detach(), torch.stack(codes, 1), torch.stack(losses).mean()

    @torch.no_grad()
    def encode(self, latent: Tensor) -> Tensor:
        """Return the codes of `latent`, float [B, D]: int64 [B, H], 0-based. Updates nothing."""
        codes = []
        for layer in self.quantization_layers:
            codes.append(nearest_codes(latent, layer.codebook))
            latent = latent - layer.codebook[codes[-1]]
        return torch.stack(codes, 1)

    @torch.no_grad()
    def revive_(self, latent: Tensor, codes: Tensor, unused: Sequence[Tensor], steps: int) -> None:
        """Put random residuals of a batch in the place of codes that no item has used for `steps` steps.

        Args:
            latent: float [B, D]; which residual comes where is drawn from torch's generator.
            codes: int64 [B, H], what the step has just used.
            unused: H of int64 [K], for how many steps each code has not been used; changed in place.
        """
        residual = latent.float()
        for layer, chosen, count in zip(self.quantization_layers, codes.T, unused, strict=True):
            count.add_(1)[chosen] = 0
            dead = count >= steps
            rows = torch.randperm(len(residual), device=latent.device)
            places = torch.arange(len(count), device=latent.device)
            if len(rows) < len(count):  # each dead code gets an item of its own; more wait for the next batch
                dead &= dead.cumsum(0) <= len(rows)
                places = dead.cumsum(0) - 1
            layer.replace_(dead, residual[rows[places % len(rows)]])
            count.masked_fill_(dead, 0)
            residual = residual - layer.codebook[chosen]
