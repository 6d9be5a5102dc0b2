"""Time a training step on a GPU in every way that is at hand, count its kernels and its host waits.

    python -m benchmarks.gpu_check --device=cuda --dataset=benchmarks/results/gpu/generated --output=check.jsonl

Each measurement is a line as soon as it is there; one that fails is a line too, and the exit code is 1. The equality of
numbers with the CPU's is tested in tests/cuda/.
"""

import json
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import describe, device_problems, seconds
from benchmarks.speed import TINY
from benchmarks.stages import Sizes, Workload
from data.batching import Batch
from model import t5_layers
from model.recommender import Recommender
from training.curriculum import mean_gradient
from utils.config import parse_config
from utils.runtime import run_command, seed_everything

Step = Callable[[Batch], Tensor]


@dataclass
class CheckConfig:
    """What is measured and where the numbers go."""

    dataset: str
    """dataset folder with .sem_ids"""
    device: str = "cuda"
    """cuda, or cpu for a rehearsal with tiny sizes"""
    output: str | None = None
    """file of a JSON line for each measurement"""

    def problems(self) -> list[str]:
        """Name everything that is wrong with the settings."""
        return device_problems(self.device)


@dataclass(frozen=True)
class Variant:
    """A way to take a training step; the defaults are those of training on a GPU."""

    name: str
    precision: str = "float32"
    deterministic: bool = True
    fill: bool = False  # torch's own default in deterministic mode
    fused_adamw: bool = True
    rms_norm: bool = True
    fused_attention: bool = False

    @contextmanager
    def in_force(self, device: torch.device) -> Iterator[None]:
        """Switch the process to the variant within."""
        with ExitStack() as stack:
            devices = (device.type,)
            stack.enter_context(patch.object(t5_layers, "RMS_NORM_DEVICES", devices if self.rms_norm else ()))
            fused = devices if self.fused_attention else ()
            stack.enter_context(patch.object(t5_layers, "FUSED_ATTENTION_DEVICES", fused))
            torch.use_deterministic_algorithms(self.deterministic, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = self.fill
            stack.callback(seed_everything, 0)
            yield


VARIANTS = (
    Variant("as training"),
    Variant("filled memory", fill=True),
    Variant("not deterministic", deterministic=False),
    Variant("T5's norm", rms_norm=False),
    Variant("AdamW for each parameter", fused_adamw=False),
    Variant("fused attention", fused_attention=True),
    Variant("tf32", precision="tf32"),
    Variant("tf32, fused attention", precision="tf32", fused_attention=True),
    Variant("bf16", precision="bf16"),
    Variant("bf16, fused attention", precision="bf16", fused_attention=True),
)
GRAPHS = [each for each in VARIANTS if each.name in ("as training", "tf32", "bf16", "bf16, fused attention")]


class Check:
    """The measurements on one workload; `record` takes each one's name and values."""

    def __init__(self, workload: Workload, record: Callable[..., None]):
        self.workload, self.record, self.device = workload, record, workload.device
        self.on_gpu = workload.device.type == "cuda"
        self.sizes, self.rounds = ((256, 1024), 20) if self.on_gpu else ((4, 8), 2)

    def batch(self, size: int) -> Batch:
        tokenization, positions = self.workload.tokenization, self.workload.loaded[1]["train"]
        rng = np.random.default_rng(0)
        rows = rng.permutation(positions)[:size]
        return tokenization.batch(rows, rng.integers(tokenization.table.num_groups, size=len(rows)))

    def make_step(self, recommender: Recommender, variant: Variant, **adamw: object) -> Step:
        """Return an optimizer step of a recommender in training mode, as the trainer takes it; it returns the loss."""
        adamw |= {"fused": True if variant.fused_adamw and self.on_gpu else None}
        optimizer = torch.optim.AdamW(recommender.train().parameters(), **{"lr": 1e-3, "weight_decay": 0.05} | adamw)

        def step(batch: Batch) -> Tensor:
            with self.workload.computing(variant.precision):
                loss = recommender(batch.input_ids, batch.labels, batch.lengths).sum() / len(batch)
            with self.workload.computing("tf32" if variant.precision == "tf32" else "float32"):
                loss.backward()
            torch.nn.utils.clip_grad_norm_(recommender.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        return step

    def waits(self) -> None:
        """Count the times that the host waits for the device, and what for."""
        recommender, batch = self.workload.recommender(), self.batch(self.sizes[0])
        step, tokenization = self.make_step(recommender, VARIANTS[0]), self.workload.tokenization

        def search(**options: object) -> None:
            recommender.eval().generate(batch.input_ids, batch.lengths, num_beams=20, num_return=10, **options)

        calls = {
            "training step": lambda: step(self.batch(self.sizes[0])),
            "influence batch": lambda: mean_gradient(recommender, [batch], len(batch)),
            "beam search": search,
            "beam search among items": lambda: search(trie=tokenization.table.trie(0)),
        }
        for name, call in calls.items():
            call()  # whatever the first call makes ready
            if self.on_gpu:
                torch.cuda.set_sync_debug_mode("warn")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                call()
            if self.on_gpu:
                torch.cuda.set_sync_debug_mode("default")
            messages = [text for warning in caught if "synchroniz" in (text := str(warning.message))]
            self.record(f"host waits, {name}", count=len(messages), messages=sorted({text[:120] for text in messages}))

    def timing(self, size: int, variant: Variant) -> None:
        """Time a step: milliseconds in all and of the host's share, examples a second, and the peak of memory."""
        batch = self.batch(size)
        with variant.in_force(self.device):
            step = self.make_step(self.workload.recommender(), variant)
            for _ in range(3):
                step(batch)
            self.record_time("step", size, variant, partial(step, batch), len(batch))

    def record_time(self, name: str, size: int, variant: Variant, step: Callable[[], object], examples: int) -> None:
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        host: list[float] = []

        def steps() -> None:
            host.append(seconds(lambda: [step() for _ in range(self.rounds)], torch.device("cpu")))

        total = seconds(steps, self.device) / self.rounds
        peak = torch.cuda.max_memory_allocated() / 2**20 if self.on_gpu else None
        values = {"ms": 1e3 * total, "host_ms": 1e3 * host[0] / self.rounds, "samples_per_second": examples / total}
        rounded = {key: round(value, 3) for key, value in values.items()}
        self.record(f"{name}, {variant.name}", batch=size, **rounded, peak_mb=peak, **asdict(variant))

    def kernels(self, size: int) -> None:
        """Count the kernels of a step, on the CPU its operators, and name the slowest."""
        batch, step = self.batch(size), self.make_step(self.workload.recommender(), VARIANTS[0])
        step(batch)
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self.on_gpu else [])
        with profile(activities=activities) as profiled:
            step(batch)
            seconds(lambda: None, self.device)
        kind = torch.autograd.DeviceType.CUDA if self.on_gpu else torch.autograd.DeviceType.CPU
        events = [event for event in profiled.events() if event.device_type == kind]
        busy = sum(event.device_time for event in events) / 1e3 if self.on_gpu else None
        slowest = sorted(profiled.key_averages(), key=lambda row: -row.self_device_time_total)[:15]
        times = {row.key[:80]: [row.count, round(row.self_device_time_total / 1e3, 3)] for row in slowest}
        self.record("kernels of a step", batch=size, count=len(events), busy_ms=busy, slowest_count_and_ms=times)

    def graph(self, size: int, variant: Variant) -> None:
        """Time the whole step as one CUDA graph, optimizer included, without a compiler."""
        if not self.on_gpu:
            self.record(f"graph, {variant.name}", batch=size, skipped="there is no GPU")
            return
        batch, rate = self.batch(size), torch.tensor(1e-3, device=self.device)
        with variant.in_force(self.device):
            step = self.make_step(self.workload.recommender(), variant, lr=rate, capturable=True)
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    step(batch)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                loss = step(batch)
            self.record_time("graph", size, variant, graph.replay, len(batch))
            self.record(f"graph, {variant.name}, loss", batch=size, loss=float(loss))

    def all(self) -> list[Callable[[], None]]:
        """Return the measurements in order of value."""
        timings = [partial(self.timing, size, variant) for size in self.sizes for variant in VARIANTS]
        graphs = [partial(self.graph, size, variant) for size in self.sizes for variant in GRAPHS]
        return [self.waits, *timings, partial(self.kernels, self.sizes[0]), *graphs]


def main(argv: list[str] | None = None) -> None:
    """Measure; exit with 1 where a measurement failed."""
    config, _ = parse_config(CheckConfig, argv, "python -m benchmarks.gpu_check", __doc__)
    device, failed = torch.device(config.device), []

    def record(name: str, /, **values: object) -> None:
        line = json.dumps({"measurement": name} | values)
        print(line, flush=True)
        if config.output:
            with open(config.output, "a", encoding="utf-8") as file:
                file.write(line + "\n")

    if config.output:
        Path(config.output).unlink(missing_ok=True)
    seed_everything(0)
    record("machine", **describe(device))
    with tempfile.TemporaryDirectory() as scratch:
        sizes = Sizes() if device.type == "cuda" else TINY
        check = Check(Workload(Path(config.dataset), Path(scratch), sizes, device), record)
        for measure in check.all():
            try:
                measure()
            except (RuntimeError, AssertionError, TypeError, AttributeError) as error:  # another version of torch
                traceback.print_exc()
                failed.append(str(error))
                record("failed", what=repr(measure)[:200], error=str(error)[:500])
    if failed:
        sys.exit(f"error: {len(failed)} measurements failed")


if __name__ == "__main__":
    run_command(main)
