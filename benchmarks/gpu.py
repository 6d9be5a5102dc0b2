"""Check and measure on one GPU within a budget of minutes, the most valuable first.

    bash benchmarks/gpu.sh                              12 minutes; the results go to benchmarks/results/gpu/
    bash benchmarks/gpu.sh --device=cpu --minutes=1     a rehearsal with tiny sizes

Each stage is a process of its own, with a budget and a log. When it is over, a line is added to stages.jsonl. A stage
that fails does not keep the others from running; the exit code is 1 then.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml

from benchmarks.generated import write_dataset
from benchmarks.machine import device_problems
from utils.config import parse_config
from utils.errors import InputError
from utils.files import atomic_folder
from utils.interrupts import listening, stop_requested
from utils.runtime import ROOT, run_command
from utils.text_table import text_table

SPEED_STAGES = ("train_step", "eval_beam20", "eval_beam50", "influence", "rqvae_epoch")
STUDY, BUDGET = "experiments/why.yaml", "all_users"
GENERATED = "generated"  # the dataset of Musical_Instruments' shape, in the output folder
GRACE = 15.0  # seconds that a stage has to save itself after SIGTERM
LEAST = 5.0  # seconds below which no stage is started


@dataclass
class GpuConfig:
    """What is run, for how long, and where the results go."""

    minutes: float = 12.0
    """budget of all stages together"""
    output: str = str(ROOT / "benchmarks/results/gpu")
    """folder of stages.jsonl, the logs and the results"""
    device: str = "cuda"
    """cuda, or cpu for a rehearsal with tiny sizes"""
    stages: str | None = None
    """names of stages, separated by commas, which run in their usual order; by default all"""

    def problems(self) -> list[str]:
        """Name everything that is wrong with the settings."""
        found = device_problems(self.device)
        names = [stage.name for stage in plan(self)]
        unknown = [name for name in (self.stages or names[0]).split(",") if name not in names]
        found += [f"--stages has {', '.join(unknown)}; there are {','.join(names)}"] if unknown else []
        return found + ([] if self.minutes > 0 else [f"--minutes={self.minutes} must be positive"])


@dataclass
class Stage:
    """A command with a budget."""

    name: str
    command: list[str]
    seconds: float = 0.0  # its budget
    open: bool = False  # whether it may also take all that the later stages' budgets leave
    skip: str = ""  # why it cannot run


def plan(config: GpuConfig) -> list[Stage]:
    """Return all stages in order of value, those that cannot run too."""
    output, tiny = Path(config.output).resolve(), config.device == "cpu"
    device, data = f"--device={config.device}", f"--dataset={output / GENERATED}"

    def module(name: str, *flags: str) -> list[str]:
        return [sys.executable, "-m", name, *flags]

    def speed(*names: str) -> list[str]:
        flags = [device, data, f"--stages={','.join(names)}", f"--output={output}/speed.json"]
        return module("benchmarks.speed", *flags, *(["--tiny"] if tiny else []))

    check = module("benchmarks.gpu_check", device, data, f"--output={output}/check.jsonl")
    stages = [
        Stage("tests", module("pytest", "-p", "no:cacheprovider", "tests/cuda"), 150),
        Stage("check", check, 150),
        Stage("resume", module("benchmarks.gpu_resume", device, f"--output={output}/resume.json"), 120),
        Stage("commands", module("benchmarks.gpu_commands", device, f"--output={output}/commands.json"), 150),
    ]
    if tiny:
        stages.append(Stage("speed", speed(*SPEED_STAGES), 120))
    else:  # apart, so that one that fails takes no other with it
        stages += [Stage(f"speed_{name}", speed(name), 60) for name in SPEED_STAGES]
    settings = yaml.safe_load((ROOT / "experiments" / "budgets.yaml").read_text(encoding="utf-8"))[BUDGET]
    folder = ROOT / settings["data_dir"] / settings["dataset"]
    skip = "" if folder.is_dir() else f"there is no {folder}"
    for seed in settings["seeds"]:
        flags = [STUDY, f"--budget={BUDGET}", f"--seeds=[{seed}]", f"--ckpt_dir={output}/ckpt"]
        flags += [f"--results_dir={output}/studies", *(["--dry_run"] if tiny else [])]
        stages.append(Stage(f"study_{seed}", module("experiments.run", *flags), open=True, skip=skip))
    stages.append(Stage("compiled", speed("train_step_compiled"), 100, open=True))
    if tiny:  # a slow machine is no failure
        stages = [replace(stage, seconds=60 * config.minutes, open=False) for stage in stages]
    return stages


def run_stage(stage: Stage, limit: float, output: Path, environment: dict[str, str]) -> dict[str, object]:
    """Run a stage for at most `limit` seconds and return its line of stages.jsonl."""
    log, started = output / f"{stage.name}.log", time.monotonic()
    row = {"stage": stage.name, "outcome": "ok", "reason": "", "log": log.name, "command": shlex.join(stage.command)}
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            stage.command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        while process.poll() is None and time.monotonic() - started < limit and not stop_requested():
            time.sleep(0.1)
        over = process.poll() is None
        if over:
            end_group(process)
    row |= {"seconds": round(time.monotonic() - started, 1), "exit_code": process.returncode}
    if over and (stop_requested() or stage.open or limit < stage.seconds):
        row |= {"outcome": "stopped", "reason": "interrupted" if stop_requested() else "its time was over"}
    elif over:
        row |= {"outcome": "failed", "reason": f"it took longer than its budget of {stage.seconds:.0f} s"}
    elif process.returncode:
        row |= {"outcome": "failed", "reason": f"exit code {process.returncode}"}
    return row


def end_group(process: subprocess.Popen) -> None:
    """Ask a stage and all that it started to save themselves; kill what is still there after GRACE."""
    end = time.monotonic() + GRACE
    with suppress(ProcessLookupError):  # nobody is left
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < end:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_stages(
    stages: list[Stage], end: float, output: Path, environment: dict[str, str], say: Callable[[str], None] = print
) -> list[dict[str, object]]:
    """Run stages one after another until time.monotonic() is `end`; return their lines, which stages.jsonl has too."""
    rows = []
    for index, stage in enumerate(stages):
        left = end - time.monotonic()
        reserved = sum(later.seconds for later in stages[index + 1 :])
        limit = left - reserved - GRACE if stage.open else min(stage.seconds, left)
        reason = stage.skip or ("interrupted" if stop_requested() else "no time was left" if limit < LEAST else "")
        if reason:
            row = {"stage": stage.name, "outcome": "skipped", "reason": reason}
        else:
            say(f"{stage.name}: at most {limit:.0f} of the {left:.0f} s that are left")
            row = run_stage(stage, limit, output, environment)
        with open(output / "stages.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        say(f"{stage.name}: {row['outcome']}{', ' if row['reason'] else ''}{row['reason']}")
        if row["outcome"] == "failed":
            say("".join((output / row["log"]).read_text(encoding="utf-8", errors="replace").splitlines(True)[-15:]))
        rows.append(row)
    return rows


def summary(rows: Iterable[dict[str, object]]) -> str:
    """Return the stages as a table."""
    cells = [[row["stage"], row["outcome"], str(row.get("seconds", "-")), row["reason"]] for row in rows]
    return text_table(["stage", "outcome", "seconds", "reason"], cells)


def main(argv: list[str] | None = None) -> None:
    """Run the stages; exit with 1 if one failed."""
    config, _ = parse_config(GpuConfig, argv, "bash benchmarks/gpu.sh", __doc__)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("this machine shows no GPU; --device=cpu rehearses with tiny sizes")
    output, end = Path(config.output), time.monotonic() + 60 * config.minutes
    output.mkdir(parents=True, exist_ok=True)
    (output / "stages.jsonl").unlink(missing_ok=True)
    if not (output / GENERATED).exists():
        with atomic_folder(output / GENERATED) as temporary:
            write_dataset(temporary, *((400, 2) if config.device == "cpu" else ()))
    wanted = config.stages.split(",") if config.stages else None
    stages = [stage for stage in plan(config) if wanted is None or stage.name in wanted]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"MTGREC_TEST_DEVICE": config.device}
    with listening():
        rows = run_stages(stages, end, output, environment, lambda text: print(text, flush=True))
    print(f"\n{output}\n{summary(rows)}")
    failed = [row["stage"] for row in rows if row["outcome"] == "failed"]
    if failed:
        sys.exit(f"error: failed: {', '.join(failed)}")


if __name__ == "__main__":
    run_command(main)
