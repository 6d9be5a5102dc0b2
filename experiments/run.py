"""Run studies: every job that is not done yet, then the tables of their results.

python -m experiments.run experiments/main.yaml                          on the CPU's budget
python -m experiments.run experiments/main.yaml experiments/tau.yaml     both, what they share once
python -m experiments.run experiments/main.yaml --budget=gpu
python -m experiments.run experiments/main.yaml --jobs=2 --minutes=120   two jobs at once, on to the next stretch later
python -m experiments.run experiments/main.yaml --only_table

What a finished job came to is a line of experiments/results/<dataset>/jobs.jsonl, and it is never run again; what was
cut off goes on where it was. A file <job>.json that is put there, one a job, becomes a line when a study is run.
The semantic IDs that a job was trained with lie beside its line in <tokenizer's job>.npz, and further jobs use them
wherever they run: trained again on another machine, the tokenizer would be another one.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.results import check_open, collect, open_jobs, take_in_files, tokenizer_config, tokenizer_flags
from experiments.semantic_ids import keep_semantic_ids, restore_semantic_ids
from experiments.study import Job, load_study
from experiments.table import write_table
from tokenizer.folder import sem_ids_prefix
from utils import SPINS_CHOSEN
from utils.config import parse_config
from utils.errors import InputError
from utils.interrupts import listening, stop_if_requested, stop_requested
from utils.runtime import ROOT, choose_device, describe_environment, run_command


@dataclass
class RunConfig:
    """Settings of a run; the studies' files are given without a flag too."""

    studies: list[str] = field(default_factory=list)
    """The studies' YAML files."""
    budget: str = "cpu"
    """Budget in experiments/budgets.yaml: quarter, all_users, cpu (2 cores), gpu (the paper's model) or another."""
    seeds: list[int] | None = None
    """Seeds instead of the budget's and the study's own; the table is named after them."""
    jobs: int = 1
    """Jobs at once; they share the cores evenly. A job's numbers depend on its threads, as sums do on their order."""
    minutes: float | None = None
    """Stop after that long; what was running is saved and goes on next time."""
    ckpt_dir: str = "ckpt"
    """Folder of the runs."""
    results_dir: str = "experiments/results"
    """Folder of what finished jobs came to."""
    dry_run: bool = False
    """Only list the jobs that are not done."""
    only_table: bool = False
    """Only write the tables of what is done."""

    def problems(self) -> list[str]:
        """Name everything that is wrong with the settings."""
        found = [] if self.studies else ["name a study: python -m experiments.run experiments/main.yaml"]
        numbers = {"jobs": self.jobs, "minutes": 1 if self.minutes is None else self.minutes}
        return found + [f"{name}={value:g} must be positive" for name, value in numbers.items() if value <= 0]


def commands(job: Job, ckpt_dir: str) -> list[list[str]]:
    """Return the commands of a job; each goes on where it was cut off. Jobs that train nothing have none."""
    modules = {"embed": ["tokenizer.embed"], "tokenizer": ["tokenizer.train", "tokenizer.export"]}
    flags = dict(job.flags)
    if job.kind == "tokenizer":
        flags = tokenizer_flags(job)
    elif job.kind == "baseline":
        modules[job.kind] = [job.kind]
        flags |= {"run_name": job.id, "ckpt_dir": ckpt_dir}
    elif job.kind in ("pretrain", "finetune"):
        modules[job.kind] = [job.kind]
        tokenizers = [need for need in job.needs if need.kind == "tokenizer"]
        prefixes = [f"{need.id}/{sem_ids_prefix(tokenizer_config(need))}" for need in tokenizers]
        flags |= {"run_name": job.id, "ckpt_dir": ckpt_dir}
        flags |= {"token_prefix": prefixes if len(prefixes) > 1 else prefixes[0]}
        for need in job.needs:
            if need.kind == "pretrain":
                flags |= {"pretrained_model": str(Path(ckpt_dir) / need.flags["dataset"] / need.id)}
    arguments = [f"--{name}={_flag(value)}" for name, value in flags.items()]
    return [[sys.executable, "-m", module, *arguments, "--resume"] for module in modules.get(job.kind, [])]


def _flag(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


@dataclass
class Running:
    """A job at work: its commands that have not begun, the one at work, and where all of them write."""

    job: Job
    waiting: list[list[str]]
    process: subprocess.Popen
    log: Path
    began_in: dict[str, Any]  # the environment at the beginning of this stretch


def _cores() -> int:
    """Return how many cores this process may run on, which taskset and containers narrow down."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Runner:
    """Runs jobs side by side; `jobs` has each after those that it needs."""

    def __init__(self, config: RunConfig, jobs: list[Job]):
        self.config = config
        self.threads = max(1, _cores() // config.jobs)
        self.jobs = jobs
        self.open = open_jobs(jobs, config.ckpt_dir, config.results_dir)
        self.failed: set[str] = set()
        self.running: list[Running] = []

    def run(self) -> bool:
        """Run until nothing is left that can run, or the time is over; return whether every job is done.

        Raises:
            InputError: What there is does not fit the earlier results: semantic IDs, weights, interactions.
            Stopped: SIGTERM or SIGINT came; what was running has saved itself.
        """
        restore_semantic_ids(self.open, self.config.results_dir)
        self.open = open_jobs(self.jobs, self.config.ckpt_dir, self.config.results_dir)
        check_open(self.open, self.jobs, self.config.ckpt_dir, self.config.results_dir)
        deadline = time.monotonic() + 60 * self.config.minutes if self.config.minutes else float("inf")
        with listening():
            try:
                while time.monotonic() < deadline and not stop_requested():
                    self._start_ready()
                    if not self.running:
                        break
                    time.sleep(0.5)
                    self._look_after()
            finally:
                self._stop()
            stop_if_requested()
        return not self.open

    def _start_ready(self) -> None:
        for job in list(self.open):
            taken = self.failed | {running.job.id for running in self.running}
            blocked = {other.id for other in self.open}
            ready = job.id not in taken and not any(need.id in blocked for need in job.needs)
            if ready and len(self.running) < self.config.jobs:
                self._start(job)

    def _start(self, job: Job) -> None:
        waiting = commands(job, self.config.ckpt_dir)
        began_in = describe_environment(choose_device("auto"), num_processes=1) | {"threads": self.threads}
        if not waiting:
            self._finish(job, began_in)
            return
        log = Path(self.config.ckpt_dir) / "experiments" / f"{job.id}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        print(f"{time.strftime('%H:%M:%S')} start  {job.id}  ({len(self.open)} left, log {log})", flush=True)
        self.running.append(Running(job, waiting[1:], self._command(waiting[0], log), log, began_in))

    def _command(self, command: list[str], log: Path) -> subprocess.Popen:
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false"}
        if SPINS_CHOSEN:
            environment.pop("GOMP_SPINCOUNT", None)  # a job looks itself, when it starts
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"$ {shlex.join(command)}\n")
            file.flush()
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)

    def _look_after(self) -> None:
        for running in list(self.running):
            code = running.process.poll()
            if code == 0 and running.waiting:
                running.process = self._command(running.waiting.pop(0), running.log)
            elif code is not None:
                self.running.remove(running)
                if code == 0:
                    self._finish(running.job, running.began_in)
                else:
                    self.failed.add(running.job.id)
                    print(f"FAILED {running.job.id} (exit code {code}): {running.log}", file=sys.stderr, flush=True)

    def _finish(self, job: Job, began_in: dict[str, Any]) -> None:
        keep_semantic_ids([job], self.config.results_dir)  # first: what has an outcome is never looked at again
        collect(job, self.config.ckpt_dir, self.config.results_dir, began_in)
        self.open.remove(job)
        print(f"{time.strftime('%H:%M:%S')} done   {job.id}", flush=True)

    def _stop(self) -> None:
        """Ask what is running to save itself and wait for it."""
        for running in self.running:
            running.process.send_signal(signal.SIGTERM)
        for running in self.running:
            running.process.wait()
            is_baseline = running.job.kind == "baseline"  # saves nothing on the way
            what = f"ended  {running.job.id}: begins anew" if is_baseline else f"saved  {running.job.id}: goes on"
            print(f"{what} next time", flush=True)


def with_studies(argv: list[str]) -> list[str]:
    """Put --studies before the studies' files."""
    return [f"--studies+={a}" if a.endswith(".yaml") and not a.startswith("-") else a for a in argv]


def main(argv: list[str] | None = None) -> None:
    """Run studies; `argv` are the arguments, by default the command line's."""
    argv = with_studies(sys.argv[1:] if argv is None else argv)
    config, _ = parse_config(RunConfig, argv, "experiments.run", __doc__)
    studies = [load_study(Path(file), config.budget, config.seeds) for file in config.studies]
    jobs = list({job.id: job for study in studies for job in study.jobs()}.values())
    if config.dry_run:
        for job in open_jobs(jobs, config.ckpt_dir, config.results_dir):
            print(f"{job.id}  {job.settings}  needs {' '.join(need.id for need in job.needs) or 'nothing'}")
        return
    take_in_files(config.results_dir)
    runner = Runner(config, jobs)
    done = config.only_table or runner.run()
    label = "-".join([config.budget, *map(str, config.seeds or [])])  # other seeds have a table of their own
    for study in studies:
        print(write_table(study, label, config.results_dir))
    if not done:
        raise InputError(f"{len(runner.open)} jobs are not done; run the same command again")


if __name__ == "__main__":
    run_command(main)
