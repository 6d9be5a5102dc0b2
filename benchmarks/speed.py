"""Measure every costly stage beside the plain reference way, interleaved in one process on the same data.

    python -m benchmarks.speed                                   the table of record (20 + 5 minutes on 2 cores)
    python -m benchmarks.speed --quick                           small batches, a twentieth of the data (3 minutes)
    python -m benchmarks.speed --stages=train_step,load          some stages; others that the JSON file holds stay
    python -m benchmarks.speed --dataset=datasets/MyData --device=cuda

What both ways compute is compared before anything is timed. Writes benchmarks/results/<date>-<machine>.json.
"""

import datetime
import re
import statistics
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.generated import write_dataset
from benchmarks.machine import describe, device_problems, matmul_rate, seconds, with_peak_memory
from benchmarks.stages import STAGES, Sizes, Stage, Workload
from utils.config import parse_config
from utils.errors import InputError
from utils.files import read_json, write_json
from utils.runtime import run_command, seed_everything

QUICK = Sizes(shrink=20, train_batch=64, eval_batch_20=16, eval_batch_50=8, rounds=3)
SLOW = 30  # seconds of a reference round from which on 3 rounds are enough
TINY = Sizes(
    **{"shrink": 400, "rounds": 1, "tokenizers": 2, "train_batch": 4, "eval_batch_20": 3, "eval_batch_50": 2},
    **{"num_layers": 1, "d_model": 8, "d_ff": 12, "hidden_sizes": (16, 8), "kept_epochs": 4},
)
RESULTS = Path(__file__).parent / "results"


@dataclass
class SpeedConfig:
    """What is measured and where the numbers go."""

    quick: bool = False
    """small batches and a twentieth of the data"""
    tiny: bool = False
    """sizes that show only whether everything runs: seconds"""
    stages: str | None = None
    """stages to measure, separated by commas; by default all, train_step_compiled only on a GPU"""
    dataset: str | None = None
    """dataset folder with .sem_ids; by default one of Musical_Instruments' shape is generated"""
    output: str | None = None
    """JSON file; rows of other stages that it holds are kept. By default benchmarks/results/<date>-<machine>.json"""
    device: str = "cpu"
    """cpu or cuda"""

    @property
    def wanted(self) -> list[str]:
        """Names of the stages to measure."""
        compiling = self.device.startswith("cuda")
        default = [name for name in STAGES if compiling or name != "train_step_compiled"]
        return self.stages.split(",") if self.stages is not None else default

    def problems(self) -> list[str]:
        """Name everything that is wrong with the settings."""
        unknown = [name for name in self.wanted if name not in STAGES]
        found = [f"--stages has {', '.join(unknown)}; there are {','.join(STAGES)}"] if unknown else []
        return found + device_problems(self.device)


def measure(
    name: str, stage: Stage, rounds: int, device: torch.device, rates: dict[str, float]
) -> list[dict[str, object]]:
    """Compare, then time a stage in rounds of every way in turn: one row for each precision.

    `rates` are the floating-point operations per second of a matrix product, by precision.
    """
    ways = {"reference": stage.reference} | {each: partial(stage.project, each) for each in stage.precisions}
    equal = {precision: stage.equal(precision) for precision in stage.precisions}
    times: dict[str, list[float]] = {way: [] for way in ways}
    memory = {way: with_peak_memory(function, device)[1] for way, function in ways.items()}
    while len(times["reference"]) < rounds:
        for way, function in ways.items():
            times[way].append(seconds(function, device))
        if statistics.median(times["reference"]) > SLOW:
            rounds = min(rounds, 3)
    rows = []
    for precision in stage.precisions:
        ratios = [plain / ours for plain, ours in zip(times["reference"], times[precision], strict=True)]
        figure = {way: statistics.median(times[way]) for way in ("reference", precision)}
        rate = {way: stage.samples / value if stage.samples else value for way, value in figure.items()}
        rows.append({
            "stage": name, "precision": precision,
            "reference": rate["reference"], "project": rate[precision], "unit": "samples/s" if stage.samples else "s",
            "ratio": figure["reference"] / figure[precision], "ratio_min": min(ratios), "ratio_max": max(ratios),
            "fraction_of_matmul": stage.flops / figure[precision] / rates[precision] if stage.flops else None,
            "peak_memory_mb": memory[precision], "reference_peak_memory_mb": memory["reference"],
            "equal": equal[precision], "rounds": len(ratios),
        })  # fmt: skip
    return rows


def format_table(rows: list[dict[str, object]]) -> str:
    """Return the rows as a Markdown table."""
    head = "| stage | precision | reference | project | ratio (min to max) | of matmul | peak MB, reference | equal |"
    lines = [head, "|---" * 8 + "|"]
    for row in rows:
        share, peaks = row["fraction_of_matmul"], (row["peak_memory_mb"], row["reference_peak_memory_mb"])
        figures = [
            row["stage"], row["precision"],
            *(f"{row[way]:.3g} {row['unit']}" for way in ("reference", "project")),
            f"**{row['ratio']:.1f}x** ({row['ratio_min']:.1f} to {row['ratio_max']:.1f})",
            "-" if share is None else f"{share:.0%}",
            ", ".join("-" if peak is None else f"{peak:,.0f}" for peak in peaks),
            "yes" if row["equal"] else "NO",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(figures)} |")
    return "\n".join(lines)


def default_output(config: SpeedConfig, machine: dict[str, object]) -> Path:
    """Return benchmarks/results/<date>-<machine>[-tiny or -quick][-<dataset>].json."""
    where = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    slug = re.sub(r"[^a-z0-9]+", "-", f"{where} {machine['threads']} threads".lower()).strip("-")
    size = "-tiny" if config.tiny else "-quick" if config.quick else ""
    dataset = f"-{Path(config.dataset).name}" if config.dataset else ""
    return RESULTS / f"{datetime.date.today()}-{slug}{size}{dataset}.json"


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write the JSON file after every stage; exit with 1 if anything was not equal."""
    config, _ = parse_config(SpeedConfig, argv, "python -m benchmarks.speed", __doc__)
    device = torch.device(config.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("--device=cuda: this machine shows no GPU")
    seed_everything(0)  # deterministic mode, as in training
    sizes = TINY if config.tiny else QUICK if config.quick else Sizes()
    width = 64 if config.tiny else 8192 if device.type == "cuda" else 1024  # large enough to keep the device busy
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(config.dataset or f"{scratch}/generated")
        if not config.dataset:
            write_dataset(folder, sizes.shrink, sizes.tokenizers)
        workload = Workload(folder, Path(scratch), sizes, device)
        made = []
        for name in config.wanted:
            rates = {precision: matmul_rate(device, precision, width) for precision in workload.precisions}
            machine = describe(device) | {f"{key}_matmul_gflops": value / 1e9 for key, value in rates.items()}
            rows = measure(name, STAGES[name](workload), sizes.rounds, device, rates)
            output = Path(config.output) if config.output else default_output(config, machine)
            others = read_json(output, "rows") if output.exists() else []
            rows_of_file = [*(row for row in others if row["stage"] != name), *rows]
            rows_of_file.sort(key=lambda row: list(STAGES).index(row["stage"]))
            write_json(output, {"rows": rows_of_file, "machine": machine})
            print(format_table(rows), flush=True)
            made += rows
    print(f"\n{output}\n{format_table(rows_of_file)}")
    if not all(row["equal"] for row in made):
        sys.exit("error: the two ways do not agree")


if __name__ == "__main__":
    run_command(main)
