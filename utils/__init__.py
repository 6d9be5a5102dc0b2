"""Small shared things, each named for what it does. Imports nothing from the rest of the project.

Every room imports this before anything else, since two things are set for the whole process (benchmarks/README.md has
the figures; both leave every number as it is):

OpenMP reads how long its threads spin while they wait when torch is loaded. By itself libgomp takes 300,000 turns,
7 ms: on a machine that is not idle each wait then keeps a core from what is waited for, and steps become several times
slower. 10,000 turns are 0.2 ms, which costs nothing on an idle machine. Where other processes take a core that the
threads need, 300 turns are twice as fast. So the machine is looked at for 0.2 s first. What is set already stays.

glibc gives the memory of large tensors back to the system as soon as they are freed, and the next one of the same size
costs a page fault for every 4 KB. So it keeps what is freed, up to 32 MB a piece.
"""

import ctypes
import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")


def _busy_ticks(stat: str, cores: set[int]) -> int:
    """Return how long the cores have worked, in the system's ticks, by the text of /proc/stat."""
    names = {f"cpu{core}" for core in cores}
    rows = [line.split() for line in stat.splitlines()]
    mine = [[int(ticks) for ticks in row[1:9]] for row in rows if row and row[0] in names]
    return sum(sum(row) - row[3] - row[4] for row in mine)  # without idle and waiting for a disk


def _spins(seconds: float = 0.2) -> int:
    """Return how many turns suit what other processes do now; with one thread, or where /proc does not say, 10,000."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads == "1" or not os.access(_STAT, os.R_OK):
        return 10_000
    cores = os.sched_getaffinity(0)
    before = _busy_ticks(_STAT.read_text(), cores)
    time.sleep(seconds)
    others = (_busy_ticks(_STAT.read_text(), cores) - before) / (seconds * os.sysconf("SC_CLK_TCK"))
    wanted = int(threads) if threads.isdigit() else len(cores)
    return 300 if wanted + others > len(cores) + 0.5 else 10_000


SPINS_CHOSEN = not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}  # here, not by the user
if SPINS_CHOSEN:
    os.environ["GOMP_SPINCOUNT"] = str(_spins())

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names of malloc.h
if not any(name.startswith("MALLOC_") for name in os.environ):
    _mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if _mallopt is not None:  # glibc
        _mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        _mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
