import os
import re
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import busy
from benchmarks.busy import busy_process
from benchmarks.stages import Sizes
from utils.errors import InputError

TINY = Sizes(shrink=400, tokenizers=2, train_batch=4, eval_batch_20=3, num_layers=1, d_model=8, d_ff=12)


def test_every_step_is_measured_beside_every_process(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(busy, "SIZES", TINY)
    monkeypatch.setattr(busy, "QUIET", float("inf"))
    busy.main(["--spins=[7]", "--beside=[nothing,lowest]", "--rounds=2", "--seconds=0.01"])
    beside = capsys.readouterr().out.split("beside ")[1:]
    assert [part.split("\n")[0] for part in beside] == ["nothing", "lowest"]
    for part in beside:
        rows = [line.split() for line in part.strip().split("\n")[2:]]
        assert [row[:2] for row in rows] == [[name, "7"] for name in busy.STEPS]
        assert all(float(row[2]) > 0 and float(row[4]) >= 1 and int(row[6]) >= 2 for row in rows)


def test_a_measuring_process_has_the_setting_and_this_one_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    monkeypatch.setattr(busy, "prepare", print)
    with busy.start(7, tmp_path) as pool:
        assert pool.submit(os.getenv, "GOMP_SPINCOUNT").result() == "7"
    assert os.environ["GOMP_SPINCOUNT"] == "5"


def test_what_is_beside_has_its_priority_and_ends():
    with busy_process(None) as none, busy_process(19) as (beside,):
        assert none == []
        process, deadline = psutil.Process(beside), time.monotonic() + 30
        while process.nice() != 19 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process.nice() == 19
    assert not psutil.pid_exists(beside)


def test_a_disturbed_turn_is_repeated_and_the_least_disturbed_one_counts(monkeypatch: pytest.MonkeyPatch):
    class Pool:
        def submit(self, function, *arguments):
            return self

        def result(self):
            return os.getpid()

    shares = iter([0.0, 0.5, 0.0, 0.2, 0.0, 0.3, *(0.0, 0.4) * 9])
    monkeypatch.setattr(busy, "of_others", lambda processes: next(shares))
    monkeypatch.setattr(busy.time, "perf_counter", iter(range(99)).__next__)
    assert busy.measure(Pool(), [], "train_step", 1.0)[1] == 0.2
    assert len(list(shares)) == 24 - 2 * busy.TRIES


def test_wrong_flags():
    with pytest.raises(InputError, match=re.escape("--beside has idle; there are nothing,normal,lowest")):
        busy.main(["--beside=[normal,idle]"])
