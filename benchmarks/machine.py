"""What a measurement needs to know of the machine: its matrix-multiply rate, memory peaks, a steady clock."""

import ctypes
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

Result = TypeVar("Result")
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def device_problems(name: str) -> list[str]:
    """Name what is wrong with --device."""
    return [] if name in ("cpu", "cuda") else [f"--device={name} must be cpu or cuda (CUDA_VISIBLE_DEVICES chooses)"]


@dataclass
class DeviceConfig:
    """Where something runs, and where its outcome goes."""

    device: str = "cuda"
    """cuda, or cpu for a rehearsal"""
    output: str | None = None
    """JSON file"""

    def problems(self) -> list[str]:
        """Name everything that is wrong with the settings."""
        return device_problems(self.device)


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Return how long a call takes, the device's work included."""
    synchronize = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    synchronize()
    started = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - started


def with_peak_memory(function: Callable[[], Result], device: torch.device) -> tuple[Result, float | None]:
    """Call the function; return its result and by how many MB memory rose at most: the GPU's there, else the process's.

    None where the system does not tell (it is Linux's /proc).
    """
    if device.type == "cuda":
        gc.collect()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = function()
        return result, (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if not os.access(_CLEAR, os.W_OK):
        return function(), None
    before = resident_mb()
    _CLEAR.write_text("5")  # the peak counts from here
    result = function()
    return result, _status_mb("VmHWM") - before


def resident_mb() -> float | None:
    """Return the process's memory in MB, after giving back what is free; None where the system does not tell."""
    gc.collect()
    if not _STATUS.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)
    return _status_mb("VmRSS")


def _status_mb(key: str) -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


@contextmanager
def tf32_products() -> Iterator[None]:
    """Let a GPU's float32 matrix products be TF32's within."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def matmul_rate(device: torch.device, precision: str, size: int) -> float:
    """Return the floating-point operations per second of a product of two size x size matrices, median of 9.

    `precision` is float32, tf32 or bf16.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    with tf32_products() if precision == "tf32" else nullcontext():
        times = [seconds(lambda: left @ right, device) for _ in range(10)][1:]
    return 2 * size**3 / statistics.median(times)


def describe(device: torch.device) -> dict[str, object]:
    """Return the machine as the results name it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
