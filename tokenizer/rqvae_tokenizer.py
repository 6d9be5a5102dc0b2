"""The kind of tokenizer `rqvae`: each of the last epochs of an RQ-VAE's training, and the one of the lowest loss."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tokenizer.config import TokenizerConfig
from tokenizer.epoch_writer import EpochWriter
from tokenizer.rqvae import encoding_state, load_weights, save_weights
from tokenizer.rqvae_training import TrainingState, build_model, train_rqvae
from utils.runtime import choose_device


def epoch_file(config: TokenizerConfig, epoch: int | None) -> Path:
    """Return the file of a kept epoch (1-based); None is the best-loss checkpoint."""
    name = "best" if epoch is None else f"epochs/{epoch}"
    return config.tokenizer_folder / f"{name}.safetensors"


class RQVAETokenizer:
    """One RQ-VAE, into which any kept epoch is loaded; see `tokenizer.kinds.Tokenizer`."""

    title = "RQ-VAE"

    def __init__(self, config: TokenizerConfig, whiten: Callable[[np.ndarray], np.ndarray]):
        self.config, self.whiten = config, whiten
        self.epochs = [*config.kept_epochs, None]
        self.device = choose_device(config.device)
        self.model = build_model(config).to(self.device).eval()

    @classmethod
    def train(
        cls, config: TokenizerConfig, inputs: np.ndarray, items: np.ndarray, writer: EpochWriter
    ) -> dict[str, object]:
        """Write epochs/<epoch>.safetensors, best.safetensors and last.safetensors (the whole RQ-VAE)."""

        def on_epoch(state: TrainingState, metrics: dict[str, object]) -> None:
            if state.epoch in config.kept_epochs:
                save_weights(epoch_file(config, state.epoch), encoding_state(state.model), epoch=state.epoch)
            writer(metrics, state.snapshot)

        rows = torch.from_numpy(inputs[items - 1]).to(choose_device(config.device))
        state = train_rqvae(config, rows, on_epoch, writer.snapshot)
        save_weights(epoch_file(config, None), state.best_weights, epoch=state.best_epoch)
        save_weights(config.tokenizer_folder / "last.safetensors", state.model.state_dict(), epoch=state.epoch)
        print(
            f"{config.tokenizer_folder}: epochs {config.kept_epochs[0]}..{config.epochs} kept, "
            f"best epoch {state.best_epoch} with loss {state.best_loss:.4f}, {writer.seconds:.0f} s"
        )
        return {"best_epoch": state.best_epoch, "best_loss": state.best_loss}

    def prepare(self, embeddings: np.ndarray) -> Tensor:
        """Return what the RQ-VAE encodes, on its device: float32 [N, sent_emb_dim] to float32 [N, input_size]."""
        return torch.from_numpy(self.whiten(embeddings)).to(self.device)

    def codes(self, inputs: Tensor, epoch: int | None) -> np.ndarray:
        """Return the codes of tokenizer `epoch` (1-based, None: best-loss): int64 [N, H], 0-based."""
        load_weights(self.model, epoch_file(self.config, epoch))
        return self.model.encode(inputs).cpu().numpy()
