"""Measure single steps on a machine that is not idle, for several times that OpenMP's threads may spin while they wait.

    python -m benchmarks.busy                             5 minutes on 2 cores
    python -m benchmarks.busy --spins=[0,1000,300000]     values of GOMP_SPINCOUNT; 300000 is libgomp's own

Steps are of the model with 2 + 2 layers and d_model 128 (training on 128 examples, evaluation of 32 with 20 beams) and
of the RQ-VAE (1,229 items, encoder from 2048). The settings take turns, each in a process that sleeps in between.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import psutil
import torch

from benchmarks.generated import write_dataset
from benchmarks.stages import STAGES, Sizes, Workload
from utils.config import parse_config
from utils.runtime import run_command
from utils.text_table import text_table

SIZES = Sizes(shrink=20, tokenizers=2, train_batch=128, eval_batch_20=32, num_layers=2, kept_epochs=4)
STEPS = ("train_step", "eval_beam20", "rqvae_epoch")  # of so few items, an epoch of the RQ-VAE is one step
NICENESS = {"nothing": None, "normal": 0, "lowest": 19}
QUIET, TRIES = 0.1, 5  # a turn in which others took more than that share of a core is repeated so often


@dataclass
class BusyConfig:
    """What is measured."""

    spins: list[int] = field(default_factory=lambda: [300, 10_000, 300_000])
    """values of GOMP_SPINCOUNT"""
    beside: list[str] = field(default_factory=lambda: list(NICENESS))
    """priorities of the busy process beside: nothing (there is none), normal, lowest"""
    rounds: int = 3
    """turns of every setting"""
    seconds: float = 2.0
    """length of a turn"""

    def problems(self) -> list[str]:
        """Name everything that is wrong with the settings."""
        unknown = [name for name in self.beside if name not in NICENESS]
        return [f"--beside has {', '.join(unknown)}; there are {','.join(NICENESS)}"] if unknown else []


_steps = {}  # of a measuring process


def prepare(folder: Path, sizes: Sizes) -> None:
    """Make the steps ready in a measuring process."""
    workload = Workload(folder, folder, sizes, torch.device("cpu"))
    for name in STEPS:
        _steps[name] = STAGES[name](workload).project
        _steps[name]("float32")


def turn(name: str, seconds: float) -> list[float]:
    """Return the seconds of each step of a turn."""
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        started = time.perf_counter()
        _steps[name]("float32")
        times.append(time.perf_counter() - started)
    return times


@contextmanager
def busy_process(niceness: int | None) -> Iterator[list[int]]:
    """Have a process beside that computes all the time; yield the list of its id."""
    if niceness is None:
        yield []
        return
    with subprocess.Popen([sys.executable, "-c", f"import os; os.nice({niceness})\nwhile True: pass"]) as process:
        try:
            yield [process.pid]
        finally:
            process.kill()


def of_others(processes: list[int]) -> float:
    """Return the seconds that the cores have worked for other processes than these."""
    times = psutil.cpu_times()
    return sum(times[:8]) - times.idle - times.iowait - sum(sum(psutil.Process(p).cpu_times()[:2]) for p in processes)


def measure(pool: ProcessPoolExecutor, beside: list[int], name: str, seconds: float) -> tuple[list[float], float]:
    """Return the steps of a turn in seconds and the share of a core that others took, of the least disturbed try."""
    known, found = [*beside, pool.submit(os.getpid).result()], []
    while not found or (len(found) < TRIES and found[-1][1] > QUIET):
        before, started = of_others(known), time.perf_counter()
        times = pool.submit(turn, name, seconds).result()
        found.append((times, (of_others(known) - before) / (time.perf_counter() - started)))
    return min(found, key=lambda each: each[1])


def start(spins: int, folder: Path) -> ProcessPoolExecutor:
    """Start a measuring process whose threads spin that often."""
    with patch.dict(os.environ, {"GOMP_SPINCOUNT": str(spins)}):
        pool = ProcessPoolExecutor(1, get_context("spawn"), prepare, (folder, SIZES))
        pool.submit(os.getpid).result()  # it is there, and has read its environment
    return pool


def table(turns: dict[tuple[str, int], list[tuple[list[float], float]]]) -> str:
    """Return for each step and setting the median and the worst of all its turns, and how much others disturbed."""
    rows = []
    for (name, spins), found in turns.items():
        times = [seconds for steps, _ in found for seconds in steps]
        median = statistics.median(times)
        figures = (f"{1e3 * median:.1f} ms", f"{max(times) / median:.1f} x", str(len(times)))
        rows.append([name, str(spins), *figures, f"{max(share for _, share in found):.0%}"])
    return text_table(["step", "spins", "median", "worst", "steps", "others, of a core"], rows)


def main(argv: list[str] | None = None) -> None:
    """Measure and print a table for each priority of what is beside."""
    config, _ = parse_config(BusyConfig, argv, "python -m benchmarks.busy", __doc__)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "generated"
        write_dataset(folder, SIZES.shrink, SIZES.tokenizers)
        pools = {spins: start(spins, folder) for spins in config.spins}
        for beside in config.beside:
            turns = {(name, spins): [] for name in STEPS for spins in pools}
            with busy_process(NICENESS[beside]) as processes:
                for _ in range(config.rounds):
                    for name, spins in turns:
                        turns[name, spins].append(measure(pools[spins], processes, name, config.seconds))
            print(f"beside {beside}\n{table(turns)}\n", flush=True)
        for pool in pools.values():
            pool.shutdown()


if __name__ == "__main__":
    run_command(main)
