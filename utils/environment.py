"""What a run ran on: command, commit, versions, hardware, memory."""

import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "accelerate", "numpy")


def describe_environment(device: torch.device, num_processes: int) -> dict[str, Any]:
    """Return what is needed to repeat a run, beside its settings: command, commit, versions, hardware, start."""
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": shlex.join(sys.orig_argv),
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "hardware": f"{num_processes} x {hardware}, {os.cpu_count()} CPU cores",
        "system": platform.platform(),
    }


def peak_memory_mb(device: torch.device) -> dict[str, float]:
    """Return this process's highest memory so far in MiB: of the machine, and of the GPU where it computes on one."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"machine": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20}
    if device.type == "cuda":
        peak["gpu"] = torch.cuda.max_memory_allocated(device) / 2**20
    return {name: round(value, 1) for name, value in peak.items()}


def _commit() -> str | None:
    """Return the project's commit, marked where files differ from it; None where it is not in a Git repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
