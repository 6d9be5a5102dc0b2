"""Memory of large tensors is kept for the next ones, unless the user set glibc's allocator himself."""

import ctypes
import os
import subprocess
import sys

import pytest
from tiny_runs import ROOT

PAGES = """
import resource, sys, utils, numpy as np
small = np.ones(2**18)
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**21)  # 16 MB, 4,096 pages, freed at once
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
@pytest.mark.parametrize(("variables", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "0"}, False)])
def test_a_large_array_takes_the_pages_of_the_one_before(variables: dict[str, str], kept: bool):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | variables
    result = subprocess.run([sys.executable, "-c", PAGES], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert (int(result.stdout) < 400) == kept
