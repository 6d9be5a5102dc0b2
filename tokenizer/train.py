"""Train the RQ-VAE; each of its last epochs is a tokenizer (paper section 2.2.2).

    python -m tokenizer.train --dataset=Musical_Instruments
    python -m tokenizer.train --dataset=Sample --sent_emb_model=tfidf --sent_emb_dim=256 --sent_emb_pca=64 \
        --codebook_size=64 --hidden_sizes=[128,64] --epochs=300 --save_last=20

Writes <dataset>/<ckpt_name>/: epochs/<epoch>.safetensors (encoder and codebooks of the last epochs, 1-based),
best.safetensors, last.safetensors, pca.safetensors, metrics.jsonl, config.yaml and training.json.
"""

import hashlib
import json
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

from data.interactions import dataset_folder, load_interactions, training_items
from data.token_table import NEW_ITEMS_FILE, TRAINING_FILE, level_sizes
from tokenizer.config import TokenizerConfig, choose_device
from tokenizer.embed import load_embeddings
from tokenizer.published import announce_published
from tokenizer.quality import collision_rate
from tokenizer.rqvae import RQVAE, encoding_state, load_weights, save_weights
from tokenizer.whitening import Whitening, fit_whitening, load_whitening
from utils.config import HANDLING_FLAGS, dump_config, parse_config
from utils.errors import InputError
from utils.files import read_json, remove_leftovers, write_json, write_text
from utils.interrupts import Stopped, listening, stop_requested
from utils.locks import LOCK_FILE, FileLock
from utils.progress import ProgressLine, duration
from utils.runtime import run_command, seed_everything
from utils.snapshots import (
    Snapshot,
    load_optimizer_,
    newest_snapshot,
    optimizer_tensors,
    read_snapshot,
    under_prefix,
    with_prefix,
    write_snapshot,
)

# Settings that do not change what is trained; all others must be the same for a training to be reused.
_FREE_SETTINGS = (
    *("data_dir", "dataset", "ckpt_name", "device", "reproducibility", "sent_emb_batch_size", "assign"),
    *("overwrite", "resume", "checkpoint_minutes"),
    *("sent_emb_dtype", "sent_emb_prompt", "sent_emb_max_length"),  # the embeddings' hash stands for these
)
_STATE_FOLDER = "state"  # inside the tokenizer's folder, until training is finished
_MANY_ITEMS = 50_000  # from here on k-means looks at samples of the items at each step
_CODE_CHECKS = 100  # how often in a training codes and collisions are counted


@dataclass
class TrainingState:
    """All that changes during training.

    Every epoch's randomness follows from (seed, epoch), so this is also all that a resumed training needs.

    Attributes:
        epoch: Finished epochs.
        best_loss: Lowest mean loss of an epoch.
        best_epoch: 1-based, 0 before the first.
        best_weights: Whole state dict after `best_epoch`.
    """

    model: RQVAE
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    best_loss: float = math.inf
    best_epoch: int = 0
    best_weights: dict[str, Tensor] | None = None

    def save(self, folder: Path, metrics_size: int, seconds: float) -> None:
        """Write a snapshot into `folder`, with the bytes of metrics.jsonl and the seconds of training so far."""
        tensors = with_prefix("model", self.model.state_dict()) | with_prefix("best", self.best_weights or {})
        tensors |= with_prefix("optimizer", optimizer_tensors(self.optimizer))
        values = {name: getattr(self, name) for name in ("epoch", "best_loss", "best_epoch")}
        write_snapshot(folder, tensors, values | {"metrics_size": metrics_size, "seconds": seconds})

    def load_(self, snapshot: Snapshot) -> None:
        """Take over a snapshot that `save` wrote."""
        self.model.load_state_dict(under_prefix("model", snapshot.tensors))
        load_optimizer_(self.optimizer, under_prefix("optimizer", snapshot.tensors))
        self.best_weights = under_prefix("best", snapshot.tensors)
        for name in ("epoch", "best_loss", "best_epoch"):
            setattr(self, name, snapshot.values[name])


def build_model(config: TokenizerConfig) -> RQVAE:
    """Return an untrained RQ-VAE of the configured sizes."""
    sizes = level_sizes(config.n_codebooks, config.codebook_size)[:-1]
    return RQVAE(config.input_size, config.hidden_sizes, sizes, config.dropout, config.beta, config.vq_type)


def build_optimizer(model: RQVAE, config: TokenizerConfig) -> torch.optim.Optimizer:
    """Return the optimizer over all parameters."""
    kind = {"adagrad": torch.optim.Adagrad, "adamw": torch.optim.AdamW}[config.learner]
    return kind(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)


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

    One OpenMP thread, so that sums have one order and the same seed gives the same centres.

    Args:
        model: Untrained.
        inputs: float [N, input size], all training items.
        seed: For k-means++.
    """
    residual = model.latents(inputs)
    for layer in model.quantization_layer.quantization_layers:
        size = len(layer.codebook)
        with threadpool_limits(1, user_api="openmp"):
            kind = KMeans if len(residual) <= _MANY_ITEMS else partial(MiniBatchKMeans, batch_size=2**14)
            kmeans = kind(size, n_init="auto", random_state=seed).fit(residual.cpu().numpy())
        centers = torch.from_numpy(kmeans.cluster_centers_).to(residual)
        layer.initialize_(centers)
        residual = residual - centers[torch.from_numpy(kmeans.labels_).to(residual.device).long()]


def train_epoch(state: TrainingState, inputs: Tensor, config: TokenizerConfig) -> dict[str, float]:
    """Train one epoch on reshuffled batches; the host waits for the device only once, at the end.

    Args:
        state: Moved on by one epoch.
        inputs: float [N, input size] on the model's device.

    Returns:
        loss, reconstruction and quantization: means over the items.
    """
    torch.manual_seed((config.rand_seed * 1_000_003 + state.epoch) % 2**63)
    steps = math.ceil(len(inputs) / config.batch_size)
    totals = torch.zeros(3, device=inputs.device)
    order = torch.randperm(len(inputs), device=inputs.device)
    for step, rows in enumerate(order.split(config.batch_size), start=state.epoch * steps):
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, config)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=config.mixed_precision == "bf16"):
            output = state.model(inputs[rows])
        state.optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        state.optimizer.step()
        losses = torch.stack([output.loss, output.reconstruction_loss, output.quantization_loss])
        totals += losses.detach() * len(rows)
    state.epoch += 1
    return dict(zip(("loss", "reconstruction", "quantization"), (totals / len(inputs)).tolist(), strict=True))


def train_rqvae(
    config: TokenizerConfig,
    inputs: Tensor,
    on_epoch: Callable[[TrainingState, dict[str, object]], None] = lambda state, metrics: None,
    snapshot: Snapshot | None = None,
) -> TrainingState:
    """Train from k-means, or from a snapshot, to the last epoch.

    Source: arXiv 2504.04400, section 2.2.1 and equations 4-5.

    Args:
        config: Settings; `rand_seed` decides the weights' start, k-means, and the order of the batches.
        inputs: float [N, input size] of the training items, on the device to train on.
        on_epoch: Called after every epoch with the state and the epoch's metrics.
        snapshot: Of an interrupted training with the same settings and inputs.

    Raises:
        FloatingPointError: The loss is not finite.
    """
    torch.manual_seed(config.rand_seed)
    model = build_model(config).to(inputs.device)
    state = TrainingState(model.train(), build_optimizer(model, config))
    if snapshot is not None:
        state.load_(snapshot)
    else:
        initialize_codebooks_(model, inputs, config.rand_seed)
    check_every = max(1, config.epochs // _CODE_CHECKS)
    while state.epoch < config.epochs:
        metrics = train_epoch(state, inputs, config)
        if not math.isfinite(metrics["loss"]):
            raise FloatingPointError(
                f"the loss became {metrics['loss']} in epoch {state.epoch} at learning rate "
                f"{state.optimizer.param_groups[0]['lr']:g}; lower --lr or look at the embeddings' scale"
            )
        if metrics["loss"] < state.best_loss:
            state.best_loss, state.best_epoch = metrics["loss"], state.epoch
            state.best_weights = {name: value.clone() for name, value in model.state_dict().items()}
        if state.epoch % check_every == 0 or state.epoch == config.epochs:
            codes = model.encode(inputs).cpu().numpy()
            metrics["codes_used"] = [len(np.unique(level)) for level in codes.T]
            metrics["collision_rate"] = collision_rate(codes)
        on_epoch(state, {"epoch": state.epoch, **metrics})
    return state


class EpochWriter:
    """Writes the metrics, the progress line, the kept epochs and the states to resume from, after every epoch.

    Args:
        config: Settings.
        snapshot: What training goes on from; metrics after it are to be written again.

    Raises:
        Stopped: SIGTERM or SIGINT came; the state is saved.
    """

    def __init__(self, config: TokenizerConfig, snapshot: Snapshot | None = None):
        self.config, self.folder = config, config.tokenizer_folder
        self.metrics_file = open(self.folder / "metrics.jsonl", "ab")  # noqa: SIM115
        self.metrics_file.truncate(snapshot.values["metrics_size"] if snapshot else 0)
        self.line = ProgressLine("RQ-VAE", config.epochs - (snapshot.values["epoch"] if snapshot else 0))
        self.codes = ""
        self.saved_at = time.monotonic()
        self.started = self.saved_at - (snapshot.values.get("seconds", 0.0) if snapshot else 0.0)

    @property
    def seconds(self) -> float:
        """How long training has taken, with what an interrupted run before this one had saved."""
        return time.monotonic() - self.started

    def __call__(self, state: TrainingState, metrics: dict[str, object]) -> None:
        self.metrics_file.write(json.dumps(metrics).encode() + b"\n")
        self.metrics_file.flush()
        if "codes_used" in metrics:
            used = "/".join(map(str, metrics["codes_used"]))
            self.codes = f", codes {used}, collisions {metrics['collision_rate']:.1%}"
        self.line.advance(1)
        left = self.line.seconds / self.line.done * (self.line.total - self.line.done)
        self.line.show(
            f"{duration(left)} left, epoch {state.epoch}/{self.config.epochs}, loss {metrics['loss']:.4f}, "
            f"reconstruction {metrics['reconstruction']:.4f}, quantisation {metrics['quantization']:.4f}{self.codes}"
        )
        if state.epoch >= self.config.first_kept_epoch:
            save_weights(epoch_file(self.config, state.epoch), encoding_state(state.model), epoch=state.epoch)
        due = time.monotonic() - self.saved_at >= 60 * self.config.checkpoint_minutes
        if due or stop_requested():
            os.fsync(self.metrics_file.fileno())
            state.save(self.folder / _STATE_FOLDER, self.metrics_file.tell(), self.seconds)
            self.saved_at = time.monotonic()
        if stop_requested():
            raise Stopped(f"stopped after epoch {state.epoch}; the state is saved in {self.folder}, --resume goes on")

    def close(self) -> None:
        self.metrics_file.close()
        self.line.close()


def epoch_file(config: TokenizerConfig, epoch: int | None) -> Path:
    """Return the file of a kept epoch (1-based); None is the best-loss checkpoint."""
    name = "best" if epoch is None else f"epochs/{epoch}"
    return config.tokenizer_folder / f"{name}.safetensors"


def training_settings(config: TokenizerConfig) -> dict[str, object]:
    """Return the settings that determine a training of given embeddings."""
    settings: dict[str, object] = {key: value for key, value in asdict(config).items() if key not in _FREE_SETTINGS}
    settings["sent_emb_model"] = config.encoder_name
    return settings


def sha256(values: np.ndarray) -> str:
    """Return the hash of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(values)).hexdigest()


def _differences(before: dict[str, object], now: dict[str, object]) -> str:
    """Name the settings of `now` that were something else before; a setting that was not known had its default."""
    before = {field.name: field.default for field in fields(TokenizerConfig)} | before
    if _codebook_sizes(before) == _codebook_sizes(now):  # the disambiguation level is not trained
        before |= {"codebook_size": now["codebook_size"]}
    return "; ".join(f"{key} was {before.get(key)!r}, now {now[key]!r}" for key in now if now[key] != before.get(key))


def _codebook_sizes(settings: dict[str, object]) -> tuple[int, ...]:
    return level_sizes(settings["n_codebooks"], settings["codebook_size"])[:-1]


def largest_group(embeddings: np.ndarray) -> int:
    """Return how many items share the embedding that most share; float32 [N, E]."""
    return max(Counter(hash(row.tobytes()) for row in embeddings).values())


def _reusable(config: TokenizerConfig, settings: dict[str, object]) -> bool:
    """Whether the folder holds this very training, finished.

    Raises:
        InputError: A training with other settings, or one to resume, is there, and no --overwrite.
    """
    folder = config.tokenizer_folder
    if not (folder / TRAINING_FILE).exists():
        return False
    earlier = read_json(folder / TRAINING_FILE)
    differences = _differences(earlier.get("settings", {}), settings)
    if differences and not config.overwrite:
        raise InputError(
            f"{folder} holds a tokenizer trained with other settings ({differences}); "
            "name another folder with --ckpt_name, or replace it with --overwrite"
        )
    if earlier.get("finished") and not differences:
        print(f"{folder}: reused, a finished training with the same settings")
        return True
    if not differences and (folder / _STATE_FOLDER).exists():
        if config.resume:
            return False
        if not config.overwrite:
            raise InputError(
                f"{folder} holds an unfinished training; go on with --resume (RESUME=1), or start anew with --overwrite"
            )
    print(f"{folder}: trained anew, since {differences or 'the last run did not finish'}")
    return False


def _clear(folder: Path) -> None:
    """Remove what an earlier training made: its semantic IDs, new items' too, would not fit the new checkpoints."""
    for name in ("epochs", _STATE_FOLDER):
        shutil.rmtree(folder / name, ignore_errors=True)
    names = ("best.safetensors", "last.safetensors", "pca.safetensors", "metrics.jsonl", "config.yaml", "quality.*")
    for pattern in (*names, "*.sem_ids", NEW_ITEMS_FILE):
        for file in folder.glob(pattern):
            file.unlink()


def train(config: TokenizerConfig) -> None:
    """Train the dataset's tokenizers, or reuse a finished training with the same settings."""
    folder = dataset_folder(config.data_dir, config.dataset)
    if announce_published(config):
        return
    interactions = load_interactions(folder)
    embeddings, items = load_embeddings(config, interactions.num_items), training_items(interactions)
    *sizes, last_size = level_sizes(config.n_codebooks, config.codebook_size)
    if len(items) < max(sizes):
        raise InputError(f"{len(items)} training items cannot fill {max(sizes)} codes; lower --codebook_size")
    identical = largest_group(embeddings)
    if identical >= last_size:
        raise InputError(
            f"{identical} items have the same embedding, which no codebooks tell apart, but the disambiguation level "
            f"separates at most {last_size - 1}; give it more codes with a last entry of its own in --codebook_size "
            f"(at least {identical + 1}), or join items of the same text"
        )
    settings = training_settings(config)
    settings |= {"embeddings_sha256": sha256(embeddings), "training_items_sha256": sha256(items)}
    with FileLock(config.tokenizer_folder / LOCK_FILE):
        if not _reusable(config, settings):
            _train(config, settings, embeddings, items)


def _train(config: TokenizerConfig, settings: dict[str, object], embeddings: np.ndarray, items: np.ndarray) -> None:
    """Train on `items`, int [training items], of the embeddings, float32 [N, E], and write the tokenizer's folder."""
    folder, device = config.tokenizer_folder, choose_device(config.device)
    snapshot, whitening = _snapshot_to_resume(folder) if config.resume else None, None
    if config.sent_emb_pca != -1:
        whitening = (
            load_whitening(folder / "pca.safetensors")
            if snapshot
            else fit_whitening(embeddings, config.sent_emb_pca, config.rand_seed)
        )
        embeddings = whitening.apply(embeddings)
    if snapshot is None:
        write_json(folder / TRAINING_FILE, {"finished": False, "settings": settings})
        _clear(folder)
        write_text(folder / "config.yaml", dump_config(config, without=HANDLING_FLAGS))
        if whitening is not None:
            whitening.save(folder / "pca.safetensors")
    inputs = torch.from_numpy(embeddings[items - 1]).to(device)
    print(f"{folder}: training on {len(items)} of {len(embeddings)} items, {device}")
    writer = EpochWriter(config, snapshot)
    try:
        with listening():
            state = train_rqvae(config, inputs, writer, snapshot)
    finally:
        writer.close()
    save_weights(epoch_file(config, None), state.best_weights, epoch=state.best_epoch)
    save_weights(folder / "last.safetensors", state.model.state_dict(), epoch=state.epoch)
    result = {"best_epoch": state.best_epoch, "best_loss": state.best_loss, "seconds": writer.seconds}
    write_json(folder / TRAINING_FILE, {"finished": True, "settings": settings, **result})
    shutil.rmtree(folder / _STATE_FOLDER, ignore_errors=True)
    print(
        f"{folder}: epochs {config.first_kept_epoch}..{config.epochs} kept, "
        f"best epoch {state.best_epoch} with loss {state.best_loss:.4f}, {result['seconds']:.0f} s"
    )


def _snapshot_to_resume(folder: Path) -> Snapshot | None:
    """Return the newest whole state of the folder's training, saying where it goes on; None, saying so, without one."""
    remove_leftovers(folder)
    path, notes = newest_snapshot(folder / _STATE_FOLDER)
    print(*notes, sep="\n", end="\n" if notes else "")
    if path is None:
        print(f"{folder} has no saved state to resume: starting anew")
        return None
    snapshot = read_snapshot(path)
    print(f"{folder}: resumed after epoch {snapshot.values['epoch']}, from {path}")
    return snapshot


@dataclass
class TrainedTokenizer:
    """A finished training: its PCA, and one RQ-VAE into which any kept epoch is loaded."""

    config: TokenizerConfig
    whitening: Whitening | None
    model: RQVAE

    def prepare(self, embeddings: np.ndarray) -> Tensor:
        """Return what the RQ-VAE encodes, on its device: float32 [N, sent_emb_dim] to float32 [N, input size]."""
        if self.whitening is not None:
            embeddings = self.whitening.apply(embeddings)
        return torch.from_numpy(embeddings).to(next(self.model.parameters()).device)

    def codes(self, prepared: Tensor, epoch: int | None) -> np.ndarray:
        """Return the codes of tokenizer `epoch` (1-based, None: best-loss): int64 [N, H], 0-based."""
        load_weights(self.model, epoch_file(self.config, epoch))
        return self.model.encode(prepared).cpu().numpy()


def load_tokenizer(config: TokenizerConfig, embeddings: np.ndarray | None = None) -> TrainedTokenizer:
    """Open the finished training in the tokenizer's folder.

    Args:
        config: Settings; must be those of the training.
        embeddings: float32 [N, sent_emb_dim], where these must be the ones that were trained on.

    Raises:
        InputError: There is none, or it was made with other settings or embeddings.
    """
    folder = config.tokenizer_folder
    training = read_json(folder / TRAINING_FILE) if (folder / TRAINING_FILE).exists() else {}
    if not training.get("finished"):
        raise InputError(f"{folder} holds no finished training; run python -m tokenizer.train first")
    settings = training_settings(config)
    if embeddings is not None:
        settings["embeddings_sha256"] = sha256(embeddings)
    differences = _differences(training["settings"], settings)
    if differences:
        raise InputError(f"{folder} was trained with other settings: {differences}; give those, or train anew")
    whitening = load_whitening(folder / "pca.safetensors") if config.sent_emb_pca != -1 else None
    return TrainedTokenizer(config, whitening, build_model(config).to(choose_device(config.device)).eval())


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and train."""
    config, _ = parse_config(TokenizerConfig, argv, "python -m tokenizer.train", __doc__)
    seed_everything(config.rand_seed, config.reproducibility)
    train(config)


if __name__ == "__main__":
    run_command(main)
