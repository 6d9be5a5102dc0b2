"""Measure how time and memory grow with the interactions and with the items.

python -m benchmarks.growth                                            up to 50 million interactions, a million items
python -m benchmarks.growth --interactions=[50000] --items=[10000]     seconds
python -m benchmarks.growth --interactions=[] --items=[5000,25000,250000] --hidden_sizes=[2048,1024,512,256,128] \\
  --steps_per_epoch=12                                                 the RQ-VAE as tokenizer/run.sh trains it
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.generated import make_interactions, make_semantic_ids, write_interactions
from benchmarks.machine import describe, resident_mb, with_peak_memory
from data.batching import TrainingOrder
from data.interactions import load_interactions, split_positions
from data.token_table import write_sem_ids
from tokenizer.config import TokenizerConfig
from tokenizer.export import semantic_ids
from tokenizer.rqvae_training import TrainingState, build_model, build_optimizer, initialize_codebooks_, train_epoch
from utils.config import parse_config
from utils.files import write_json
from utils.prefix_trie import PrefixTrie
from utils.runtime import run_command

CPU = torch.device("cpu")
MEAN_LENGTH = 8.9


@dataclass
class GrowthConfig:
    """What is measured and where the numbers go."""

    interactions: list[int] = field(default_factory=lambda: [50_000, 500_000, 5_000_000, 50_000_000])
    """numbers of interactions; there are 8.9 for each user, and 24,587 items"""
    items: list[int] = field(default_factory=lambda: [10_000, 100_000, 1_000_000])
    """numbers of items"""
    hidden_sizes: list[int] = field(default_factory=lambda: [256, 128])
    """layers of the RQ-VAE's encoder"""
    steps_per_epoch: int | None = None
    """equal steps of an RQ-VAE epoch; null: batches of 2,048"""
    output: str | None = None
    """JSON file for the numbers"""

    def problems(self) -> list[str]:
        """Name everything that is wrong with the settings."""
        small = [count for count in (*self.interactions, *self.items) if count < 1000]
        return [f"--interactions and --items have {small}; both start at 1000"] if small else []


def timed(row: dict[str, float], name: str, function: Callable[[], Any]) -> Any:
    """Call the function; put its seconds and its peak of memory into the row."""
    started = time.perf_counter()
    result, peak = with_peak_memory(function, CPU)
    row[f"{name}_s"], row[f"{name}_peak_mb"] = time.perf_counter() - started, peak
    return result


def grow_interactions(count: int, folder: Path) -> dict[str, float]:
    """Measure loading, splitting and one epoch's order of about `count` interactions."""
    write_interactions(folder, make_interactions(round(count / MEAN_LENGTH), 24_587))
    row: dict[str, float] = {}
    before = resident_mb()
    interactions = timed(row, "load", lambda: load_interactions(folder))
    names = ("train", "valid", "test")
    splits = timed(row, "split", lambda: [split_positions(interactions.offsets, split) for split in names])
    order = TrainingOrder(splits[0], 256)
    epoch = timed(row, "epoch", lambda: order.epoch(1, np.full(25, 1 / 25)))
    row |= {"interactions": len(interactions.items), "examples": len(epoch[0])}
    if before is not None:
        row["bytes_per_interaction"] = (resident_mb() - before) * 2**20 / len(interactions.items)
    return row


def grow_items(count: int, folder: Path, network: dict[str, Any]) -> dict[str, float]:
    """Measure k-means, an RQ-VAE epoch, one tokenizer's export and its trie for `count` items of 128 dimensions."""
    config = TokenizerConfig(dataset="growth", codebook_size=[256, 256, 256, count], **network)
    inputs = torch.randn(count, config.input_size, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = build_model(config)
    row: dict[str, float] = {"items": count}
    timed(row, "kmeans", lambda: initialize_codebooks_(model, inputs, seed=0))
    state = TrainingState(model.train(), build_optimizer(model, config))
    timed(row, "rqvae_epoch", lambda: train_epoch(state, inputs, config))
    names = [f"B{number:09d}" for number in range(count)]

    def export() -> None:
        write_sem_ids(folder / "1.sem_ids", names, semantic_ids(model.encode(inputs).numpy(), count, "1", names))

    timed(row, "export", export)
    tokens = torch.from_numpy(make_semantic_ids(count, 1)[0]) + torch.tensor([1, 257, 513, 769])
    timed(row, "trie", lambda: PrefixTrie(tokens, 769 + int(tokens.max())))
    return row


def main(argv: list[str] | None = None) -> None:
    """Measure every size, print a line for each, write the JSON file after each."""
    config, _ = parse_config(GrowthConfig, argv, "python -m benchmarks.growth", __doc__)
    results: dict[str, Any] = {"machine": describe(CPU), "interactions": [], "items": []}
    network = {"hidden_sizes": config.hidden_sizes, "steps_per_epoch": config.steps_per_epoch}
    for kind, measure in (("interactions", grow_interactions), ("items", partial(grow_items, network=network))):
        for count in getattr(config, kind):
            with tempfile.TemporaryDirectory() as folder:
                results[kind].append(measure(count, Path(folder)))
            print(*(f"{name} {value:.4g}" for name, value in results[kind][-1].items()), sep="  ", flush=True)
            if config.output:
                write_json(config.output, results)


if __name__ == "__main__":
    run_command(main)
