"""Train an RQ-VAE on embeddings, from k-means on, and use its last epochs and its best one as tokenizers."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tokenizer.config import TokenizerConfig
from tokenizer.epoch_writer import EpochWriter
from tokenizer.kind import BALANCE_FLAGS, Tokenizer
from tokenizer.kmeans import fit_kmeans
from tokenizer.quality import tokenizer_quality
from tokenizer.rqvae import RQVAE, RQVAEOutput, encoding_state, load_weights, save_weights
from tokenizer.sinkhorn import separate
from tokenizer.window import choose_epochs
from utils.runtime import choose_device
from utils.snapshots import Snapshot, load_optimizer_, optimizer_tensors, under_prefix, with_prefix

_CODE_CHECKS = 100  # how often in a training codes and collisions are counted

# Further terms of the loss: what gives those of a batch (its output, its rows of the inputs), weighted, by name, and
# what makes that at an epoch's start.
BatchTerms = Callable[[RQVAEOutput, Tensor], dict[str, Tensor]]
ExtraLoss = Callable[[RQVAE], BatchTerms]


@dataclass
class TrainingState:
    """All that changes during training, and, as randomness follows from (seed, epoch), all that resuming needs."""

    model: RQVAE
    optimizer: torch.optim.Optimizer
    epoch: int = 0  # finished ones
    best_loss: float = math.inf  # lowest mean of an epoch
    best_epoch: int = 0  # 1-based
    best_weights: dict[str, Tensor] | None = None  # whole state dict after best_epoch
    unused: list[Tensor] = field(default_factory=list)  # with revive_codes: `ResidualQuantizer.revive_` counts there

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Return the tensors and values that `load_` takes over."""
        tensors = with_prefix("model", self.model.state_dict()) | with_prefix("best", self.best_weights or {})
        tensors |= with_prefix("optimizer", optimizer_tensors(self.optimizer))
        tensors |= with_prefix("unused", {str(level): counts for level, counts in enumerate(self.unused)})
        return tensors, {name: getattr(self, name) for name in ("epoch", "best_loss", "best_epoch")}

    def load_(self, snapshot: Snapshot) -> None:
        """Take over what `snapshot` returned."""
        self.model.load_state_dict(under_prefix("model", snapshot.tensors))
        load_optimizer_(self.optimizer, under_prefix("optimizer", snapshot.tensors))
        for level, counts in under_prefix("unused", snapshot.tensors).items():
            self.unused[int(level)].copy_(counts)
        self.best_weights = under_prefix("best", snapshot.tensors)
        for name in ("epoch", "best_loss", "best_epoch"):
            setattr(self, name, snapshot.values[name])


def build_model(config: TokenizerConfig) -> RQVAE:
    """Return an untrained RQ-VAE of the configured sizes."""
    sizes = config.codebook_sizes
    layers = (config.hidden_sizes, sizes, config.dropout, config.beta, config.vq_type)
    return RQVAE(config.input_size, *layers, sinkhorn=config.sinkhorn)


def build_optimizer(model: RQVAE, config: TokenizerConfig) -> torch.optim.Optimizer:
    """Return the optimizer over all parameters."""
    kind = {"adagrad": torch.optim.Adagrad, "adamw": torch.optim.AdamW}[config.learner]
    return kind(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)


def steps_per_epoch(num_items: int, config: TokenizerConfig) -> int:
    """Return how many steps one epoch over the training items has."""
    return min(num_items, max(config.steps_per_epoch or 1, math.ceil(num_items / config.batch_size)))


def learning_rate(step: int, steps_per_epoch: int, config: TokenizerConfig) -> float:
    """Return the learning rate of the 0-based optimizer step `step`: warm-up from 0, then constant or linear to 0."""
    warmup, total = config.warmup_steps * steps_per_epoch, config.epochs * steps_per_epoch
    if step < warmup:
        return config.lr * step / warmup
    if config.scheduler_type == "linear":
        return config.lr * (total - step) / max(1, total - warmup)
    return config.lr


def initialize_codebooks_(model: RQVAE, inputs: Tensor, seed: int) -> None:
    """Set every level's codes to the k-means centres of what the levels before it leave of the encoder's output.

    It takes all training items, float [N, input size]. Source: section 2.2.1.
    """
    residual = model.latents(inputs)
    for layer in model.quantization_layer.quantization_layers:
        found, labels = fit_kmeans(residual.cpu().numpy(), len(layer.codebook), seed)
        centers = torch.from_numpy(found).to(residual)
        layer.initialize_(centers)
        residual = residual - centers[torch.from_numpy(labels).to(residual.device)]


def train_epoch(
    state: TrainingState, inputs: Tensor, config: TokenizerConfig, extra_loss: ExtraLoss | None = None
) -> dict[str, float]:
    """Train one epoch on reshuffled batches of float [N, input size]; the host waits for the device only at its end.

    Returns:
        loss, reconstruction, quantization and what extra_loss names: means over the items.
    """
    torch.manual_seed((config.rand_seed * 1_000_003 + state.epoch) % 2**63)
    steps, totals = steps_per_epoch(len(inputs), config), 0.0
    extra_terms = extra_loss(state.model) if extra_loss else lambda output, rows: {}
    order = torch.randperm(len(inputs), device=inputs.device)
    batches = order.split(config.batch_size) if config.steps_per_epoch is None else order.tensor_split(steps)
    for step, rows in enumerate(batches, start=state.epoch * steps):
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, config)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=config.mixed_precision == "bf16"):
            output = state.model(inputs[rows])
        extra = extra_terms(output, rows)
        loss = sum(extra.values(), start=output.loss)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        state.optimizer.step()
        if config.revive_codes:
            state.model.quantization_layer.revive_(output.latent, output.codes, state.unused, config.revive_codes)
        terms = {"loss": loss, "reconstruction": output.reconstruction_loss, "quantization": output.quantization_loss}
        totals = totals + torch.stack([*(terms | extra).values()]).detach() * len(rows)
    state.epoch += 1
    return dict(zip([*terms, *extra], (totals / len(inputs)).tolist(), strict=True))


def train_rqvae(
    config: TokenizerConfig,
    inputs: Tensor,
    on_epoch: Callable[[TrainingState, dict[str, object]], None] = lambda state, metrics: None,
    snapshot: Snapshot | None = None,
    extra_loss: ExtraLoss | None = None,
) -> TrainingState:
    """Train from k-means, or from a snapshot of the same training, to the last epoch.

    Source: arXiv 2504.04400, section 2.2.1. The inputs are float [N, input size] of the training
    items, on the device to train on; `on_epoch` is called after every epoch with the state and the epoch's metrics.
    """
    torch.manual_seed(config.rand_seed)
    model = build_model(config).to(inputs.device)
    state = TrainingState(model.train(), build_optimizer(model, config))
    if config.revive_codes:
        state.unused = [torch.zeros(size, dtype=torch.int64, device=inputs.device) for size in config.codebook_sizes]
    if snapshot is not None:
        state.load_(snapshot)
    else:
        initialize_codebooks_(model, inputs, config.rand_seed)
    check_every = max(1, config.epochs // _CODE_CHECKS)
    while state.epoch < config.epochs:
        metrics = train_epoch(state, inputs, config, extra_loss)
        if not math.isfinite(metrics["loss"]):
            raise FloatingPointError(
                f"the loss became {metrics['loss']} in epoch {state.epoch} at learning rate "
                f"{state.optimizer.param_groups[0]['lr']:g}; lower --lr or look at the embeddings' scale"
            )
        if metrics["loss"] < state.best_loss:
            state.best_loss, state.best_epoch = metrics["loss"], state.epoch
            state.best_weights = {name: value.clone() for name, value in model.state_dict().items()}
        if state.epoch % check_every == 0 or state.epoch == config.epochs:
            quality = tokenizer_quality(model.encode(inputs).cpu().numpy(), config.codebook_sizes)
            metrics |= {name: quality[name] for name in ("codes_used", "collision_rate")}
        on_epoch(state, {"epoch": state.epoch, **metrics})
    return state


def epoch_file(config: TokenizerConfig, epoch: int | None) -> Path:
    """Return the file of a kept epoch (1-based); None is the best-loss checkpoint."""
    return config.tokenizer_folder / ("best.safetensors" if epoch is None else f"epochs/{epoch}.safetensors")


class RQVAETokenizer(Tokenizer):
    """One RQ-VAE, into which any kept epoch is loaded."""

    title, flags = "RQ-VAE", ("revive_codes", *BALANCE_FLAGS)

    def __init__(self, config: TokenizerConfig, whiten: Callable[[np.ndarray], np.ndarray]):
        super().__init__(config, whiten)
        self.epochs.append(None)
        self.device = choose_device(config.device)
        self.model = build_model(config).to(self.device).eval()

    @classmethod
    def extra_loss(cls, config: TokenizerConfig, items: np.ndarray) -> ExtraLoss | None:
        """Return the terms of the loss beside the RQ-VAE's own, for int [training items], on the device to train on."""
        return None

    @classmethod
    def train(
        cls, config: TokenizerConfig, inputs: np.ndarray, items: np.ndarray, writer: EpochWriter
    ) -> dict[str, object]:
        """Write epochs/<epoch>.safetensors, best.safetensors and last.safetensors (the whole RQ-VAE)."""
        kept = set(config.kept_epochs)

        def on_epoch(state: TrainingState, metrics: dict[str, object]) -> None:
            if state.epoch in kept:
                save_weights(epoch_file(config, state.epoch), encoding_state(state.model), epoch=state.epoch)
            writer(metrics, state.snapshot)

        rows = torch.from_numpy(inputs[items - 1]).to(choose_device(config.device))
        state = train_rqvae(config, rows, on_epoch, writer.snapshot, cls.extra_loss(config, items))
        save_weights(epoch_file(config, None), state.best_weights, epoch=state.best_epoch)
        save_weights(config.tokenizer_folder / "last.safetensors", state.model.state_dict(), epoch=state.epoch)
        result: dict[str, object] = {"best_epoch": state.best_epoch, "best_loss": state.best_loss}
        print(
            f"{config.tokenizer_folder}: {len(kept)} epochs of {min(kept)}..{config.epochs} kept, "
            f"best epoch {state.best_epoch} with loss {state.best_loss:.4f}, {writer.seconds:.0f} s"
        )
        if config.drift is not None:
            tokenizer, all_items = cls(config, lambda embeddings: embeddings), torch.from_numpy(inputs).to(rows.device)
            codes = partial(tokenizer.dataset_codes, all_items)
            chosen = choose_epochs(codes, config.epochs, config.num_tokenizers, config.drift)
            print(f"{config.tokenizer_folder}: {len(chosen)} epochs {chosen[0]}..{chosen[-1]} chosen by their drift")
            result["epochs"] = [*chosen, None]
        return result

    def prepare(self, embeddings: np.ndarray) -> Tensor:
        """Return what the RQ-VAE encodes, on its device: float32 [N, input_size]."""
        return torch.from_numpy(self.whiten(embeddings)).to(self.device)

    def codes(self, inputs: Tensor, epoch: int | None) -> np.ndarray:
        """Load the tokenizer `epoch` and return its codes."""
        load_weights(self.model, epoch_file(self.config, epoch))
        return self.model.encode(inputs).cpu().numpy()

    def dataset_codes(self, inputs: Tensor, epoch: int | None) -> np.ndarray:
        """Return them separated where --balance asks for it."""
        codes = self.codes(inputs, epoch)
        if self.config.sinkhorn is None:
            return codes
        codebooks = self.model.quantization_layer.codebooks
        return separate(self.model.latents(inputs), codebooks, codes, self.config.sinkhorn)
