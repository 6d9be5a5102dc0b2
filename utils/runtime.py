"""Process-wide matters: exit codes, seeds, the device, the Accelerator, and what a run ran on."""

import errno
import io
import os
import platform
import random
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from utils import errors
from utils.errors import InputError
from utils.interrupts import Stopped

ROOT = Path(__file__).resolve().parent.parent  # the project's folder
PACKAGES = ("torch", "transformers", "accelerate", "numpy")  # whose versions are noted
OF_THE_MACHINE = (OSError, MemoryError, torch.cuda.OutOfMemoryError)  # failures of disk and memory
STOPPED_CODE = 75  # EX_TEMPFAIL of sysexits.h: the same command with --resume goes on

if TYPE_CHECKING:
    from accelerate import Accelerator


def run_command(main: Callable[[], None]) -> None:
    """Run a command; what a user can mend or has asked for becomes one sentence and an exit code.

    InputError 2; numbers that are not finite and failures of disk or memory 1; SIGTERM and SIGINT with a saved state
    75, SIGINT without one 130. `--debug` shows the traceback of an error instead. What the terminal cannot print is
    printed as its code, such as \\u4e2d.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except (InputError, FloatingPointError, *OF_THE_MACHINE, Stopped, KeyboardInterrupt) as error:
        if errors.show_traceback and not isinstance(error, Stopped):
            raise
        # The main process may know nothing of memory and disk, and of what another machine lacks.
        first_of_machine = os.environ.get("LOCAL_RANK") == "0"
        if is_main_process():
            print(_sentence(error), file=sys.stderr)
        elif isinstance(error, OF_THE_MACHINE) or (isinstance(error, InputError) and first_of_machine):
            print(f"process {os.environ['RANK']}: {_sentence(error)}", file=sys.stderr)
        sys.exit({InputError: 2, Stopped: STOPPED_CODE, KeyboardInterrupt: 130}.get(type(error), 1))


def is_main_process() -> bool:
    """Return whether this is the process, of those that were started together, that writes and speaks."""
    return os.environ.get("RANK", "0") == "0"


def _sentence(error: BaseException) -> str:
    if isinstance(error, Stopped):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "error: interrupted"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        return f"error: writing failed: {error}; what was written before is whole: make room and go on with --resume"
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return f"error: {str(error).splitlines()[0]} A smaller batch needs less (--help names its flag)"
    return f"error: {error}"


def seed_everything(seed: int, reproducible: bool = True) -> None:
    """Seed Python, NumPy and torch; with `reproducible`, also choose deterministic kernels where torch has them."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic cuBLAS asks for
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (scikit-learn reads NumPy's global state)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = reproducible
    torch.backends.cudnn.benchmark = not reproducible
    torch.use_deterministic_algorithms(reproducible, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # hundreds of fills a step, and nobody reads them


def choose_device(name: str) -> torch.device:
    """Return the device that `--device` names, auto a GPU where there is one; InputError if there is no such device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device={name} is no device; use auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device={name}: this machine shows {torch.cuda.device_count()} GPUs; use --device=cpu")
    return device


def join_processes(
    device: str = "auto",
    remedy: str = "start fewer, or set ACCELERATE_USE_CPU=true for processes on the CPU",
    **options: Any,
) -> tuple["Accelerator", torch.device]:
    """Meet the other processes that accelerate launch started, if any; `options` are arguments of the Accelerator.

    `device` is auto (each process its GPU where there are any), or what `choose_device` takes for a single process.

    Raises:
        InputError: There is no such device, or the processes do not meet.
    """
    from accelerate import Accelerator  # takes a second to import, and most commands do without
    from accelerate.utils import parse_flag_from_env

    on_gpus = device != "cpu" and torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # Accelerate would let processes share a GPU, which NCCL refuses
    if on_gpus and here > (gpus := torch.cuda.device_count()):
        raise InputError(f"{here} processes were started, but this machine shows {gpus} GPUs; {remedy}")
    processes = Accelerator(cpu=device == "cpu", **options)
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != processes.num_processes:
        alone = f"{launched} processes were started but each runs alone"
        raise InputError(f"{alone}: there are not that many GPUs; {remedy}")
    alone = device != "auto" and processes.num_processes == 1
    return processes, choose_device(device) if alone else processes.device


def describe_environment(device: torch.device, num_processes: int) -> dict[str, Any]:
    """Return what is needed to repeat a run, beside its settings: command, commit, versions, hardware, threads."""
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": shlex.join(sys.orig_argv),
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "hardware": f"{num_processes} x {hardware}, {os.cpu_count()} CPU cores",
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }


def peak_memory_mb(device: torch.device) -> dict[str, float]:
    """Return this process's highest memory so far in MiB: of the machine, and of the GPU where it computes on one."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"machine": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20}
    if device.type == "cuda":
        peak["gpu"] = torch.cuda.max_memory_allocated(device) / 2**20
    return {name: round(value, 1) for name, value in peak.items()}


def _commit(root: Path = ROOT) -> str | None:
    """Return the project's commit, -dirty where files but studies' results differ; None outside a repository."""

    def git(*command: str) -> str:
        command = ["git", "-C", str(root), *command]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!experiments/results")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
