"""How long OpenMP's threads spin is set by every entry point before torch is loaded, unless the user set it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import ROOT

import utils

SCRIPTS = sorted(file.relative_to(ROOT) for file in [*ROOT.glob("*.py"), *ROOT.glob("[!t.]*/*.py")])
SCRIPTS += [file.relative_to(ROOT) for room in ("tokenizer", "training") for file in sorted((ROOT / room).glob("*.py"))]
ENTRY_POINTS = [file for file in SCRIPTS if "__main__" in (ROOT / file).read_text(encoding="utf-8")]
# In torch's place: says what it would find.
TORCH = "import os; print(os.environ.get('GOMP_SPINCOUNT')); os._exit(0)"


def seen(command: list[str], tmp_path: Path, **variables: str) -> str:
    """Return what torch finds when a command imports it; the command's own output where it does not."""
    (tmp_path / "torch.py").write_text(TORCH)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    # With one thread nobody looks at what other processes do
    environment |= {"PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1"} | variables
    result = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    return result.stdout.strip()


def test_every_entry_point_is_looked_at():
    named = {str(file) for file in ENTRY_POINTS}
    assert named >= {"pretrain.py", "evaluate.py", "tokenizer/train.py", "training/candidates.py", "experiments/run.py"}


@pytest.mark.parametrize("file", ENTRY_POINTS, ids=str)
def test_it_is_set_before_torch(file: Path, tmp_path: Path):
    command = [str(file)] if len(file.parts) == 1 else ["-m", ".".join(file.with_suffix("").parts)]
    printed = seen([*command, "--help"], tmp_path)
    assert printed == "10000" or printed.startswith("usage:")  # the latter never loads torch


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"), ({"OMP_NUM_THREADS": "1"}, "10000")],
)
@pytest.mark.parametrize("command", [["pretrain.py"], ["evaluate.py"], ["-m", "tokenizer.train"]], ids=str)
def test_what_the_user_set_stays(command: list[str], variables: dict[str, str], expected: str, tmp_path: Path):
    assert seen(command, tmp_path, **variables) == expected


@pytest.mark.parametrize("room", sorted(file.parent.name for file in ROOT.glob("[!t.]*/__init__.py")))
def test_it_is_set_where_a_room_is_imported(room: str, tmp_path: Path):
    assert seen(["-c", f"import {room}, torch"], tmp_path) == "10000"


STAT = """cpu  900 0 100 5000 50 0 10 0 0 0
cpu0 400 0 50 2000 20 0 5 0 0 0
cpu1 {busy} 0 50 3000 30 0 5 0 0 0
cpu10 9000 0 0 0 0 0 0 0 0 0
intr 5 6 7
"""


@pytest.mark.parametrize(
    ("busy", "threads", "spins"),
    [(0, None, 10_000), (6, None, 10_000), (14, None, 300), (20, None, 300), (20, "2", 300), (20, "1", 10_000)],
)
def test_beside_a_busy_process_threads_spin_less(busy: int, threads: str | None, spins: int, monkeypatch, tmp_path):
    """Two cores, and ticks of 10 ms: another process works for `busy` of 20 ticks on a core of ours."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    monkeypatch.setattr(utils, "_STAT", tmp_path / "stat")
    (tmp_path / "stat").write_text(STAT.format(busy=500))
    monkeypatch.setattr(time, "sleep", lambda _: (tmp_path / "stat").write_text(STAT.format(busy=500 + busy)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert utils._spins() == spins


def test_where_the_system_does_not_say_nobody_looks(monkeypatch, tmp_path):
    monkeypatch.setattr(utils, "_STAT", tmp_path / "absent")
    assert utils._spins() == 10_000
