"""Small shared things, each named for what it does. Imports nothing from the rest of the project.

Every room imports this before anything else, since two things are set for the whole process (benchmarks/README.md has
the figures; both leave every number as it is):

OpenMP reads how long its threads spin while they wait when torch is loaded. By itself libgomp takes 300,000 turns,
7 ms: on a machine that is not idle each wait then keeps a core from what is waited for, and steps become several times
slower. 10,000 turns are 0.2 ms. What is set already stays.

glibc gives the memory of large tensors back to the system as soon as they are freed, and the next one of the same size
costs a page fault for every 4 KB. So it keeps what is freed, up to 32 MB a piece.
"""

import ctypes
import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names of malloc.h
if not any(name.startswith("MALLOC_") for name in os.environ):
    _mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if _mallopt is not None:  # glibc
        _mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        _mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
