import subprocess
import sys

import torch
from tiny_runs import ROOT

from utils import environment
from utils.environment import describe_environment, peak_memory_mb

CPU = torch.device("cpu")


def test_environment_names_command_versions_and_processes():
    found = describe_environment(CPU, num_processes=3)
    assert found["command"].split()[0].endswith(sys.orig_argv[0])
    assert found["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert found["hardware"].startswith("3 x ")


def test_commit_is_gits_or_none(monkeypatch, tmp_path):
    commit = environment._commit()
    git = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True)
    if git.returncode == 0:
        assert git.stdout.startswith(commit.removesuffix("-dirty"))
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    assert environment._commit() is None


def test_peak_memory_grows_with_what_is_held():
    before = peak_memory_mb(CPU)["machine"]
    block = torch.ones(int(before * 2**20) // 8 + 50 * 2**18)  # half of the peak in addition, and more
    held = torch.ones_like(block)
    assert peak_memory_mb(CPU)["machine"] > before
    assert held.numel() == block.numel()
