"""SASRec: a causal transformer over items that predicts the next one, by cross-entropy over the whole catalogue.

Source: Kang and McAuley, arXiv 1808.09781; the loss over all items: Klenitskiy and Vasilev, arXiv 2309.07602.
"""

import math
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from baselines.config import BaselineConfig
from baselines.data import Data, Scorer, sequences
from data.batching import Stream, random_stream
from data.interactions import Interactions
from training.run_folder import RunFolder
from utils.files import atomic_path
from utils.runtime import choose_device

EMBEDDINGS_FILE = "item_embeddings.npy"
SORTED_BATCHES = 16  # users of so many batches are sorted by length, so that batches hold little padding


class Network(nn.Module):
    """Turns item sequences into vectors, whose products with the item embeddings are the next item's logits."""

    def __init__(self, num_items: int, config: BaselineConfig):
        super().__init__()
        width = config.d_model
        self.items = nn.Embedding(num_items + 1, width, padding_idx=0)
        self.positions = nn.Embedding(config.max_item_seq_len, width)
        self.dropout = nn.Dropout(config.dropout_rate)
        options = {"dropout": config.dropout_rate, "activation": "gelu", "batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(width, config.num_heads, 4 * width, **options)
        norm = nn.LayerNorm(width)
        self.layers = nn.TransformerEncoder(layer, config.num_layers, norm, enable_nested_tensor=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, items: Tensor) -> Tensor:
        """Return what is expected after each item, [B, L, D], of ids, int64 [B, L], padded with 0 at the end.

        A place sees itself and those before it, so that padding is never seen.
        """
        length = items.shape[1]
        future = torch.ones(length, length, dtype=torch.bool, device=items.device).triu(1)
        scale = self.items.embedding_dim**0.5  # without it items weigh no more than places, and learning begins late
        hidden = self.dropout(scale * self.items(items) + self.positions.weight[:length])
        return self.layers(hidden, future, is_causal=True)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of the item ids 1..N, [..., N], after vectors, [..., D]."""
        return hidden @ self.items.weight[1:].T


class SASRec(Scorer):
    """A trained network; `losses` is that of each epoch."""

    def __init__(self, config: BaselineConfig, interactions: Interactions, device: torch.device):
        super().__init__(config, interactions)
        self.device, self.best = device, {"best_epoch": 0}
        self.network = Network(interactions.num_items, config).to(device)

    @classmethod
    def learn(cls, config: BaselineConfig, data: Data, run: RunFolder) -> "SASRec":
        """Train until the best epoch on validation lies `patience` epochs back, and go back to that one."""
        method = cls(config, data.interactions, choose_device(config.device))
        optimizer = torch.optim.AdamW(method.network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        best_score, best_weights, step = -1.0, {}, 0
        for epoch in range(1, config.epochs + 1):
            started = time.perf_counter()
            loss, steps = method.train_epoch(optimizer, data.training, epoch)
            step, seconds = step + steps, time.perf_counter() - started
            values = {"epoch": epoch, "step": step, "loss": loss, "seconds": seconds}
            run.emit("epoch", values, {}, step, f"epoch {epoch}/{config.epochs}  loss {loss:.4f}  {seconds:.1f} s")
            if epoch % config.eval_interval and epoch < config.epochs:
                continue
            started = time.perf_counter()
            mean = method.metrics(data.interactions, data.valid, config.metric_names)
            score, seconds = mean[config.val_metric], time.perf_counter() - started
            if score > best_score:
                best_score, best_weights = score, deepcopy(method.network.state_dict())
                method.best = {"best_epoch": epoch}
            values = {"epoch": epoch, "step": step, "seconds": seconds, "mean": mean, "per_tokenizer": {"best": mean}}
            best = "  (best)" if method.best["best_epoch"] == epoch else ""
            run.emit("valid", values, {}, step, f"  validation {config.val_metric} {score:.4f}  {seconds:.1f} s{best}")
            if epoch - method.best["best_epoch"] >= config.patience:
                break
        method.network.load_state_dict(best_weights)
        return method

    def train_epoch(self, optimizer: torch.optim.Optimizer, training: Interactions, epoch: int) -> tuple[float, int]:
        """Take the optimizer steps of a 1-based epoch; return the mean loss of its targets, and the steps."""
        self.network.train()
        total, count, steps = torch.zeros((), device=self.device), 0, 0
        for users in self.batches(training, epoch):
            ends = training.offsets[users + 1]
            lengths = np.minimum(ends - training.offsets[users], self.config.max_item_seq_len + 1)
            items = sequences(training.items, ends, lengths, self.device)
            targets = items[:, 1:]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.mixed_precision == "bf16"):
                logits = self.network.logits(self.network(items[:, :-1])[targets > 0])
            losses = cross_entropy(logits.float(), targets[targets > 0] - 1, reduction="sum")
            size = int((lengths - 1).sum())
            (losses / size).backward()
            optimizer.step()
            optimizer.zero_grad()
            total += losses.detach()
            count, steps = count + size, steps + 1
        if not math.isfinite(total):
            raise FloatingPointError(f"the loss is {float(total)} in epoch {epoch}; lower --lr={self.config.lr}")
        return float(total) / count, steps

    def batches(self, training: Interactions, epoch: int) -> Iterator[np.ndarray]:
        """Yield the users of each batch, int [at most train_batch_size], in an order that (seed, epoch) decides."""
        size, lengths = self.config.train_batch_size, np.diff(training.offsets)
        draw = random_stream(self.config.rand_seed, Stream.ORDER, epoch)
        users = draw.permutation(np.flatnonzero(lengths > 1))
        batches = []
        for start in range(0, len(users), size * SORTED_BATCHES):
            part = users[start : start + size * SORTED_BATCHES]
            part = part[np.argsort(lengths[part], kind="stable")]
            batches += [part[first : first + size] for first in range(0, len(part), size)]
        yield from (batches[index] for index in draw.permutation(len(batches)))

    @torch.no_grad()
    def scores(self, positions: np.ndarray, lengths: np.ndarray) -> Tensor:
        """Return the logits after each target's history; see `Scorer`."""
        self.network.eval()
        hidden = self.network(sequences(self.interactions.items, positions, lengths, self.device))
        return self.network.logits(hidden[torch.arange(len(hidden)), lengths - 1])

    def save(self, folder: Path) -> None:
        """Write the item embeddings, item_embeddings.npy, float32 [N, D], row i = item id i + 1."""
        with atomic_path(folder / EMBEDDINGS_FILE) as temporary, open(temporary, "wb") as file:
            np.save(file, self.network.items.weight[1:].detach().cpu().numpy())
