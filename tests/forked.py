"""Commands in forked processes, which may be killed or have their writing fail at a chosen moment."""

import errno
import os
import resource
import signal
import socket
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState

import evaluation.predict
import tokenizer.rqvae_training
import training.curriculum
from training.trainer import Trainer
from utils.runtime import run_command

# What a run does again and again: the kinds of moments at which it is killed, and the functions that begin them.
MOMENTS = {
    "tokenizer epoch": (tokenizer.rqvae_training, "train_epoch"),
    "training step": (Trainer, "_train_step"),
    "influence batch": (training.curriculum, "stop_if_requested"),
    "evaluation batch": (evaluation.predict, "stop_if_requested"),
    "flush of a file": (os, "fsync"),
    "rename of a folder": (os, "rename"),
    "rename of a file": (os, "replace"),
}


@dataclass
class Counted:
    """Counts the moments of a run in this process and acts at one of them.

    Attributes:
        kind: Of the moment to act at.
        number: 1-based occurrence of it.
        act: What happens then, before the function runs.
    """

    kind: str | None = None
    number: int = 0
    act: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGKILL)
    counts: Counter = field(default_factory=Counter)

    def install(self) -> None:
        """Wrap the functions of every kind."""
        for kind, (owner, name) in MOMENTS.items():
            setattr(owner, name, self._wrapped(kind, getattr(owner, name)))

    def _wrapped(self, kind: str, function: Callable) -> Callable:
        def wrapped(*arguments: object, **named: object) -> object:
            self.counts[kind] += 1
            if kind == self.kind and self.counts[kind] == self.number:
                self.act()
            return function(*arguments, **named)

        return wrapped


def run_forked(main: Callable[[list[str]], None], argv: list[str], log: Path, counted: Counted | None = None) -> int:
    """Run a command in a forked process, with this one's imports.

    Args:
        main: Takes the flags.
        argv: The flags.
        log: Gets what the command prints; <log>.counts gets a line "<count> <kind>" for each kind of moment.
        counted: What to count, and where to act.

    Returns:
        The exit code; -9 if it was killed.
    """
    return ended(start_forked(main, argv, log, counted))


def run_processes(main: Callable[[list[str]], None], argv: list[str], log: Path) -> int:
    """Run a command in two forked processes of one group on the CPU, with what torchrun and accelerate would tell them.

    Returns:
        0 if both ended well, else the exit code of one that did not.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    shared |= {"LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": "no"}
    places = [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    codes = [ended(pid) for pid in [start_forked(main, argv, log, environment=place) for place in places]]
    return next((code for code in codes if code), 0)


def ended(pid: int) -> int:
    """Wait for a process and return its exit code; -9 if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def start_forked(
    main: Callable[[list[str]], None],
    argv: list[str],
    log: Path,
    counted: Counted | None = None,
    environment: dict[str, str] | None = None,
) -> int:
    """Fork a process that runs a command, with more variables in its environment; return its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 70  # a traceback
    try:
        with open(log, "a", encoding="utf-8") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            torch.set_num_threads(1)
            if environment:
                os.environ.update(environment)
                AcceleratorState._reset_state(reset_partial_state=True)
                GradientState._reset_state()
            os.fsync = lambda _: None  # the kernel survives what happens here, and flushing takes most of the time
            if counted:
                counted.install()
            try:
                run_command(lambda: main(argv))
                code = 0
            except SystemExit as exit_:
                code = exit_.code
            except BaseException:
                traceback.print_exc()
            if counted:
                lines = [f"{count} {kind}\n" for kind, count in counted.counts.items()]
                Path(f"{log}.counts").write_text("".join(lines))
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        os._exit(code)


def read_counts(log: Path) -> dict[str, int]:
    """Return how often each kind of moment came in a run."""
    lines = Path(f"{log}.counts").read_text().splitlines()
    return {kind: int(count) for count, kind in (line.split(" ", 1) for line in lines)}


def failing(number: int) -> Callable[[], None]:
    """Return an act that raises the OSError of an errno."""

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    return fail


def limit_file_size(size: int) -> Callable[[], None]:
    """Return an act after which every write beyond a file's first `size` bytes fails, whichever library writes."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return limit


DISK_FAULTS = {
    "No space left on device": failing(errno.ENOSPC),
    "Input/output error": failing(errno.EIO),
    "File too large": limit_file_size(4096),
}
