"""Small shared things, each named for what it does. Imports nothing from the rest of the project.

Every room imports this before anything else, since OpenMP reads how long its threads spin while they wait when torch is
loaded. By itself libgomp takes 300,000 turns, 7 ms: on a machine that is not idle each wait then keeps a core from what
is waited for, and steps become several times slower (benchmarks/README.md). 10,000 turns are 0.2 ms. What is set
already stays.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
