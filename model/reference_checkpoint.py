"""Checkpoints of the reference code, whose network is T5."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import InputError


def read_reference_checkpoint(file: Path | str) -> dict[str, Tensor]:
    """Read the weights of {model, optimizer, scheduler}, never arbitrary pickle; raise InputError for anything else."""
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for broken or malicious files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{file} is not a readable checkpoint of tensors: {reason}") from None
    weights = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or "t5.shared.weight" not in weights:
        raise InputError(f"{file} has no weights under model/t5.shared.weight")
    return weights


def sizes_of_weights(weights: dict[str, Tensor]) -> dict[str, Any]:
    """Read off a state dict what it settles: the network, the flags that its shapes fix, and vocab_size."""

    def layers(stack: str) -> int:
        return len({name.split(".")[3] for name in weights if name.startswith(f"t5.{stack}.block.")})

    vocab_size, d_model = weights["t5.shared.weight"].shape
    attention = "t5.encoder.block.0.layer.0.SelfAttention"
    num_heads = weights[f"{attention}.relative_attention_bias.weight"].shape[1]
    return {
        "network": "t5",
        "vocab_size": vocab_size,
        "num_layers": layers("encoder"),
        "num_decoder_layers": layers("decoder"),
        "d_model": d_model,
        "d_ff": weights["t5.encoder.block.0.layer.1.DenseReluDense.wo.weight"].shape[1],
        "num_heads": num_heads,
        "d_kv": weights[f"{attention}.q.weight"].shape[0] // num_heads,
    }
