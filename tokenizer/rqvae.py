"""The RQ-VAE: MLP encoder, residual quantizer, MLP decoder; and what of it a kept epoch stores."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from tokenizer.quantizer import ResidualQuantizer
from tokenizer.sinkhorn import Sinkhorn
from utils.errors import InputError
from utils.files import atomic_path


def mlp(sizes: Sequence[int], dropout: float = 0.0) -> nn.Module:
    """Return linear layers from one size to the next, each after dropout and before a ReLU; none after the last."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Dropout(dropout), nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(OrderedDict(mlp=nn.Sequential(*layers[:-1])))


@dataclass
class RQVAEOutput:
    """One batch's losses (scalars), reconstruction float [B, input size], codes int64 [B, H], and latents float [B, D].

    The quantised latent's gradient goes to the encoder.
    """

    loss: Tensor
    reconstruction_loss: Tensor
    quantization_loss: Tensor
    reconstruction: Tensor
    codes: Tensor
    latent: Tensor
    quantized: Tensor


class RQVAE(nn.Module):
    """Residual-quantised variational autoencoder; sizes as in TokenizerConfig, weights named as in the reference code.

    Source: arXiv 2504.04400, section 2.2.1.
    """

    def __init__(
        self,
        input_size: int,
        hidden_sizes: Sequence[int],
        codebook_sizes: Sequence[int],
        dropout: float = 0.0,
        beta: float = 0.25,
        vq_type: str = "ema",
        sinkhorn: Sinkhorn | None = None,
    ):
        super().__init__()
        sizes = [input_size, *hidden_sizes]
        self.encoder = mlp(sizes, dropout)
        self.quantization_layer = ResidualQuantizer(codebook_sizes, sizes[-1], beta, vq_type, sinkhorn)
        self.decoder = mlp(sizes[::-1], dropout)

    def forward(self, embeddings: Tensor) -> RQVAEOutput:
        """Encode, quantise and decode float [B, input size]; the loss is reconstruction MSE + quantisation loss."""
        latent = self.encoder(embeddings)
        quantized, codes, quantization_loss = self.quantization_layer(latent)
        reconstruction = self.decoder(quantized).float()
        reconstruction_loss = F.mse_loss(reconstruction, embeddings)
        loss = reconstruction_loss + quantization_loss
        return RQVAEOutput(loss, reconstruction_loss, quantization_loss, reconstruction, codes, latent, quantized)

    @torch.no_grad()
    def latents(self, embeddings: Tensor, chunk_size: int = 2048) -> Tensor:
        """Return the encoder's output for float [N, input size] in eval mode, chunk by chunk: float [N, D]."""
        was_training = self.training
        self.eval()
        latents = torch.cat([self.encoder(chunk) for chunk in embeddings.split(chunk_size)])
        self.train(was_training)
        return latents

    @torch.no_grad()
    def encode(self, embeddings: Tensor, chunk_size: int = 2048) -> Tensor:
        """Return the codes of float [N, input size] in eval mode, chunk by chunk: int64 [N, H], 0-based."""
        latents = self.latents(embeddings, chunk_size)
        return torch.cat([self.quantization_layer.encode(chunk) for chunk in latents.split(chunk_size)])


def encoding_state(model: RQVAE) -> dict[str, Tensor]:
    """Return what `encode` needs, the encoder and the codebooks, as a part of the state dict."""
    return {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith("decoder.") and not name.endswith((".embed_avg", ".cluster_size"))
    }


def save_weights(file: Path, state: dict[str, Tensor], **metadata: object) -> None:
    """Write tensors as safetensors, whole or not at all, with `metadata` as text."""
    with atomic_path(file) as temporary:
        cpu = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        temporary.write_bytes(save(cpu, {name: str(value) for name, value in metadata.items()}))


def load_weights(model: RQVAE, file: Path) -> None:
    """Load what the file has; raise InputError where it is absent, broken, or of other sizes than the model."""
    if not file.is_file():
        raise InputError(f"{file} does not exist; make it with python -m tokenizer.train")
    try:
        state = load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is not a whole safetensors file: {error}") from None
    missing = sorted(encoding_state(model).keys() - state.keys())
    if missing:
        raise InputError(f"{file} has no {missing[0]} ({len(missing)} tensors missing); check --vq_type and sizes")
    try:
        model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise InputError(f"{file} does not fit the settings (--hidden_sizes, --codebook_size): {detail}") from None
