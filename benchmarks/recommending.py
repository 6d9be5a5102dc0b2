"""Measure how long a model takes to recommend: one history at a time, and 1,000 together.

    python -m benchmarks.recommending                                          all cells: 10 minutes on 2 cores
    python -m benchmarks.recommending --items=[25000] --layers=[2] --beams=[50] --threads=[1]    one: 20 seconds

The networks are untrained, d_model 128, and recommend 10 items; histories have 3 to 20.
"""

import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import torch

from benchmarks.generated import make_semantic_ids
from benchmarks.machine import describe
from data.token_table import Group, Vocabulary
from inference.model_folder import Catalogue
from inference.recommend import RecommendationModel
from model.recommender import Architecture, build_recommender
from utils.config import parse_config
from utils.files import write_json
from utils.runtime import run_command
from utils.text_table import text_table

K = 10


@dataclass
class RecommendingConfig:
    """What is measured and where the numbers go."""

    items: list[int] = field(default_factory=lambda: [4_000, 25_000, 1_000_000])
    """sizes of the catalogue"""
    layers: list[int] = field(default_factory=lambda: [2, 6])
    """layers of the encoder, and as many of the decoder"""
    beams: list[int] = field(default_factory=lambda: [10, 50])
    """beams of the search"""
    threads: list[int] = field(default_factory=lambda: [1, 2])
    """threads that compute"""
    histories: int = 1_000
    """histories that are given together"""
    calls: int = 100
    """calls with one history"""
    output: str | None = None
    """JSON file for the numbers"""

    def problems(self) -> list[str]:
        """Name everything that is wrong with the settings."""
        values = [*self.items, *self.layers, *self.beams, *self.threads, self.histories, self.calls]
        return [] if min(values) >= 1 else ["all numbers must be at least 1"]


def make_model(num_items: int, num_layers: int) -> RecommendationModel:
    """Return an untrained recommender of generated items."""
    codes = make_semantic_ids(num_items, 1)[0]
    vocabulary = Vocabulary((256, 256, 256, max(256, int(codes.max()) + 1)))
    rows = [
        {"item": f"item{number}", "semantic_id": row, "popularity": 0, "text": ""}
        for number, row in enumerate(codes.tolist())
    ]
    catalogue = Catalogue.of_rows(rows, Group("generated", 1, Path("generated")), vocabulary)
    torch.manual_seed(0)
    sizes = {"num_layers": num_layers, "num_decoder_layers": num_layers, "dropout_rate": 0.0}
    recommender = build_recommender(Architecture(vocabulary.sizes, **sizes)).eval()
    return RecommendationModel(recommender, catalogue, {"max_item_seq_len": 20}, {})


def measure(model: RecommendationModel, histories: list[np.ndarray], calls: int, num_beams: int) -> dict[str, float]:
    """Return median and 95th percentile of the milliseconds for one history, and users per second for all together."""
    milliseconds = []
    for call in range(-2, calls):  # two to warm up
        started = time.perf_counter()
        model.recommend_ids([histories[call % len(histories)]], None, K, num_beams)
        milliseconds.append(1e3 * (time.perf_counter() - started))
    started = time.perf_counter()
    model.recommend_ids(histories, None, K, num_beams)
    rate = len(histories) / (time.perf_counter() - started)
    median, worst = np.percentile(milliseconds[2:], [50, 95])
    return {"one_ms": float(median), "one_p95_ms": float(worst), "together_users_per_s": rate}


def main(argv: list[str] | None = None) -> None:
    """Measure every cell, print the table, write the JSON file after each."""
    config, _ = parse_config(RecommendingConfig, argv, "python -m benchmarks.recommending", __doc__)
    rows, threads_before = [], torch.get_num_threads()
    for num_items, num_layers in product(config.items, config.layers):
        model = make_model(num_items, num_layers)
        rng = np.random.default_rng(0)
        histories = [rng.integers(1, num_items + 1, rng.integers(3, 21)) for _ in range(config.histories)]
        for num_beams, threads in product(config.beams, config.threads):
            torch.set_num_threads(threads)
            cell = {"items": num_items, "layers": num_layers, "beams": num_beams, "threads": threads}
            rows.append(cell | measure(model, histories, config.calls, num_beams))
            if config.output:
                write_json(config.output, {"machine": describe(torch.device("cpu")), "rows": rows})
    torch.set_num_threads(threads_before)
    figures = ("{items:,}", "{layers} + {layers}", "{beams}", "{threads}", "{one_ms:.1f} ms", "{one_p95_ms:.1f} ms")
    head = ["items", "layers", "beams", "threads", "one history", "95% within", "users/s of all together"]
    print(text_table(head, [[text.format(**row) for text in (*figures, "{together_users_per_s:.0f}")] for row in rows]))


if __name__ == "__main__":
    run_command(main)
