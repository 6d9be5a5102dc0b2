import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from tiny_runs import ROOT, run_script

from benchmarks import gpu, gpu_check
from benchmarks.generated import write_dataset
from benchmarks.gpu import GpuConfig, Stage, plan, run_stages
from utils.errors import InputError
from utils.interrupts import listening


def fake(name: str, code: str, seconds: float = 0.0, **more: object) -> Stage:
    return Stage(name, [sys.executable, "-c", code], seconds, **more)


def run(stages: list[Stage], seconds: float, output: Path) -> dict[str, tuple[str, str]]:
    """Return {stage: (outcome, reason)} in the order in which they were done."""
    rows = run_stages(stages, time.monotonic() + seconds, output, dict(os.environ), lambda text: None)
    written = [json.loads(line) for line in (output / "stages.jsonl").read_text().splitlines()]
    assert written == rows
    return {row["stage"]: (row["outcome"], row["reason"]) for row in rows}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu, "LEAST", 0.1)
    monkeypatch.setattr(gpu, "GRACE", 5.0)


def test_a_failing_stage_is_said_and_the_next_is_run(tmp_path: Path):
    stages = [
        fake("first", "print('hello')", 60),
        fake("second", "print('what went wrong'); exit(3)", 60),
        fake("absent", "", skip="there is no dataset"),
        fake("last", f"open({str(tmp_path / 'stages.jsonl')!r}).read().index('second')", 60),
    ]
    assert run(stages, 600, tmp_path) == {
        "first": ("ok", ""),
        "second": ("failed", "exit code 3"),
        "absent": ("skipped", "there is no dataset"),
        "last": ("ok", ""),  # what came before was written when it was over
    }
    assert (tmp_path / "first.log").read_text() == "hello\n"


def test_budgets(tmp_path: Path):
    """One stage with too little for what it does, one that takes all that is left, but for the last one's."""
    sleep = "import time; time.sleep(100)"
    saves = f"import signal, sys, pathlib\ndef save(*_):\n    pathlib.Path({str(tmp_path / 'saved')!r}).touch()\n"
    saves += f"    sys.exit(75)\nsignal.signal(signal.SIGTERM, save)\n{sleep}"
    studies = [fake(name, saves, open=True) for name in ("study", "study 2")]
    stages = [fake("slow", sleep, 0.5), *studies, fake("last", "", 4)]
    started = time.monotonic()
    assert run(stages, 14, tmp_path) == {
        "slow": ("failed", "it took longer than its budget of 0 s"),
        "study": ("stopped", "its time was over"),
        "study 2": ("skipped", "no time was left"),
        "last": ("ok", ""),
    }
    assert time.monotonic() - started < 14
    assert (tmp_path / "saved").exists()


def test_when_the_minutes_are_over_nothing_is_started(tmp_path: Path):
    stages = [fake("long", "import time; time.sleep(100)", 60), fake("other", "", 60)]
    assert run(stages, 0.5, tmp_path) == {
        "long": ("stopped", "its time was over"),
        "other": ("skipped", "no time was left"),
    }


def test_an_interrupt_ends_what_runs(tmp_path: Path):
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with listening():
        found = run([fake("long", "import time; time.sleep(100)", 60), fake("other", "", 60)], 60, tmp_path)
    assert found == {"long": ("stopped", "interrupted"), "other": ("skipped", "interrupted")}


def test_what_a_stage_started_does_not_outlive_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The stage dies of SIGTERM, a process that it started does not."""
    monkeypatch.setattr(gpu, "GRACE", 1.0)
    child = "import signal, time, os; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    child += f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(100)"
    stage = fake("long", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])", 60)
    assert run([stage], 3, tmp_path) == {"long": ("stopped", "its time was over")}
    pid = int((tmp_path / "pid").read_text())
    while (status := Path(f"/proc/{pid}/status")).exists() and "State:\tZ" not in status.read_text():
        time.sleep(0.05)  # it has been killed, and ends at once


def test_the_plan_is_in_order_of_value_and_fits():
    stages = plan(GpuConfig())
    names = [stage.name for stage in stages]
    speed = [f"speed_{name}" for name in ("train_step", "eval_beam20", "eval_beam50", "influence", "rqvae_epoch")]
    studies = [f"study_{seed}" for seed in (2024, 2025, 2026)]
    assert names == ["tests", "check", "resume", "commands", *speed, *studies, "compiled"]
    on_device = [stage for stage in stages if not stage.name.startswith(("tests", "study"))]
    assert all("--device=cuda" in stage.command for stage in on_device)
    assert not any("pip" in word for stage in stages for word in stage.command)
    folder = ROOT / "datasets" / "Industrial_and_Scientific_2018"
    skips = {stage.skip for stage in stages if stage.name.startswith("study")}
    assert skips == ({""} if folder.is_dir() else {f"there is no {folder}"})


def test_wrong_flags(tmp_path: Path):
    with pytest.raises(InputError, match=r"--device=tpu must be cpu or cuda"):
        gpu.main(["--device=tpu"])
    with pytest.raises(InputError, match=r"--stages has nothing; there are tests,check,resume,commands,speed,"):
        gpu.main(["--stages=nothing", "--device=cpu"])
    if not gpu.torch.cuda.is_available():
        with pytest.raises(InputError, match="shows no GPU; --device=cpu rehearses"):
            gpu.main([f"--output={tmp_path}"])


def test_the_check_goes_on_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_dataset(tmp_path / "data", 400, 2)
    monkeypatch.setattr(gpu_check, "VARIANTS", gpu_check.VARIANTS[:1])
    monkeypatch.setattr(gpu_check, "mean_gradient", lambda *_: no_such_kernel())
    output = tmp_path / "check.jsonl"
    with pytest.raises(SystemExit, match="1 measurements failed"):
        gpu_check.main(["--device=cpu", f"--dataset={tmp_path / 'data'}", f"--output={output}"])
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    names = [line["measurement"] for line in lines]
    assert names[:3] == ["machine", "host waits, training step", "failed"]
    assert names.count("step, as training") == 2
    assert lines[2]["error"] == "no kernel"
    assert all(line["ms"] > 0 for line in lines if line["measurement"] == "step, as training")


def no_such_kernel() -> None:
    raise RuntimeError("no kernel")


@pytest.mark.slow
def test_a_rehearsal_of_all_stages_but_studies(tmp_path: Path):
    """And but the compiled step, which has a test of its own."""
    names = ("tests", "check", "resume", "commands", "speed")
    flags = ["--device=cpu", "--minutes=8", f"--output={tmp_path / 'out'}", f"--stages={','.join(names)}"]
    quick = {"PYTEST_ADDOPTS": "-k 'not one_seed and not fifty and not influence'"}
    script = run_script("benchmarks/gpu.sh", *flags, **quick)
    assert script.returncode == 0, script.stdout + script.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "stages.jsonl").read_text().splitlines()]
    assert {row["stage"]: row["outcome"] for row in rows} == dict.fromkeys(names, "ok")
    log = (tmp_path / "out" / "tests.log").read_text()
    assert re.search(r"1\d passed, 2 skipped", log), log
    assert "failed" not in (tmp_path / "out" / "check.jsonl").read_text()
    resumed = json.loads((tmp_path / "out" / "resume.json").read_text())
    assert (resumed["resumed_equal"], resumed["group_of_one_equal"]) == (True, True)
