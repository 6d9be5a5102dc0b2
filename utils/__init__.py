"""Small shared things, each named for what it does. Imports nothing from the rest of the project.

Every room imports this before anything else, since OpenMP reads how long its threads spin while they wait when torch is
loaded. By itself it takes 300,000 turns, milliseconds: on a machine that is not idle each wait then takes a core from
the thread that is waited for, and training becomes ten times slower (benchmarks/README.md). What the user set stays.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
