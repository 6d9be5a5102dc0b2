import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from forked import run_processes
from tiny_dataset import make_dataset
from tiny_runs import ROOT, flags, read_lines, read_results, read_weights

import finetune
import pretrain

pytestmark = pytest.mark.slow

SAME = {"dropout_rate": 0, "lr": 0.001, "warmup_steps": 8}
# Two processes x 1 batch against one x 2, 351 examples in batches of 16: the last global batch holds 31.
PRETRAIN = SAME | {"train_batch_size": 16, "epochs": 3, "epoch_per_stage": [1, 1], "val_delay": 1, "tau": 0.5}
# Two processes x 2 batches against one x 4, batches of 29: the last global batch holds 3 examples, one batch none.
FINETUNE = SAME | {"train_batch_size": 29, "epochs": 2, "sem_id_epochs": "1:2"}


def start(module: str, argv: list[str], num_processes: int) -> subprocess.Popen:
    """Start processes on the CPU, as utils/launch.sh does; accelerate's --cpu would start only one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(num_processes)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", str(port), "--module", module, *argv]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Return the folders of four runs: pre-training and fine-tuning, each in one process and in two."""
    folder = tmp_path_factory.mktemp("processes")
    dataset, ckpt_dir = make_dataset(folder / "datasets" / "Tiny"), folder / "runs"

    def argv(settings: dict, name: str, accumulation: int) -> list[str]:
        given = settings | {"run_name": name, "gradient_accumulation_steps": accumulation}
        return flags(dataset, ckpt_dir, **given)

    pretrain.main(argv(PRETRAIN, "pretrain1", 2))
    finetune.main(argv(FINETUNE, "finetune1", 4))
    for main, arguments in (
        (pretrain.main, argv(PRETRAIN, "pretrain2", 1)),
        (finetune.main, argv(FINETUNE, "finetune2", 2)),
    ):
        assert run_processes(main, arguments, folder / "log") == 0, (folder / "log").read_text()
    return SimpleNamespace(dataset=dataset, folder=ckpt_dir / "Tiny", again=arguments)


@pytest.fixture(params=["pretrain", "finetune"])
def pair(request: pytest.FixtureRequest, runs: SimpleNamespace) -> tuple[Path, Path]:
    """Return the same run in one process and in two."""
    return runs.folder / f"{request.param}1", runs.folder / f"{request.param}2"


def numbers(value: object) -> list[float]:
    """Return every number in nested dictionaries and lists, in order."""
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return [number for part in parts for number in numbers(part)]
    return [value] if isinstance(value, int | float) else []


def test_two_processes_did_run(pair):
    logs = [(run / "log.txt").read_text() for run in pair]
    assert " x 1 processes x " in logs[0]
    assert " x 2 processes x " in logs[1]
    batches = [log.split("global batch ")[1].split(" =")[0] for log in logs]
    assert batches[0] == batches[1]
    assert all(log.count("test of epoch") == 1 for log in logs)  # only the main process writes


@pytest.mark.parametrize("event", ["train", "epoch", "valid", "test"])
def test_same_losses_rates_and_metrics(pair, event):
    one, two = (read_lines(run, event) for run in pair)
    assert len(one) == len(two) > 0
    for a, b in zip(one, two, strict=True):
        for line in (a, b):
            for name in ("time", "seconds", "samples_per_second", "peak_memory_mb"):
                line.pop(name, None)
        assert a.keys() == b.keys()
        np.testing.assert_allclose(numbers(a), numbers(b), rtol=1e-5)


def test_same_influence_scores_and_sampling_probabilities(runs):
    one, two = (read_lines(runs.folder / name, "influence") for name in ("pretrain1", "pretrain2"))
    assert [(line["epoch"], line["step"]) for line in one] == [(1, 11), (2, 22)]
    for a, b in zip(one, two, strict=True):
        assert (a["epoch"], a["step"], a["learning_rate"]) == (b["epoch"], b["step"], b["learning_rate"])
        for name in ("influence", "probabilities"):
            assert a[name].keys() == b[name].keys()
            np.testing.assert_allclose(numbers(a[name]), numbers(b[name]), rtol=1e-5)


def test_same_results(pair):
    one, two = (read_results(run) for run in pair)
    assert one.keys() == two.keys()
    assert (one["best_epoch"], one["num_users"]) == (two["best_epoch"], two["num_users"])
    np.testing.assert_allclose(numbers(one), numbers(two), rtol=1e-5)


def test_every_user_is_tested_once(pair, runs):
    sequences = json.loads((runs.dataset / "all_item_seqs.json").read_text())
    users = [user for user, sequence in sequences.items() if len(sequence) >= 2]
    files = sorted(path.name for path in pair[0].glob("test_results_*.json"))
    assert files == sorted(path.name for path in pair[1].glob("test_results_*.json"))
    assert files
    for file in files:
        one, two = (json.loads((run / file).read_text()) for run in pair)
        assert one["users"] == two["users"] == users
        assert one["labels"] == two["labels"]
        np.testing.assert_allclose(one["scores"], two["scores"], rtol=1e-5)
        assert one["preds"] == two["preds"]


def test_same_weights(pair):
    one, two = (read_weights(run / "model") for run in pair)
    for name, weight in one.items():
        np.testing.assert_allclose(two[name], weight, rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_refused_folder_stops_both_processes_with_one_message(runs, tmp_path):
    assert run_processes(finetune.main, runs.again, tmp_path / "log") == 2
    assert (tmp_path / "log").read_text().count(f"error: {runs.folder / 'finetune2'} holds a finished run") == 1


def workers(launcher: subprocess.Popen) -> dict[int, int]:
    """Return {rank: process id} of the processes that a launcher started."""
    found = {}
    for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        found |= {int(line[5:]): int(pid) for line in variables if line.startswith(b"RANK=")}
    return found


def wait_for_a_state(run: Path, launcher: subprocess.Popen) -> None:
    """Return when the run has saved its state."""
    until = time.monotonic() + 120
    while not list(run.glob("state/[0-9]*")):
        assert launcher.poll() is None, launcher.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.05)


def resumed_alone(runs: SimpleNamespace, main: Callable, settings: dict, name: str, accumulation: int) -> None:
    """Finish an interrupted run in one process, and compare it with one that was never interrupted."""
    for run in (name, f"{name}_whole"):
        given = settings | {"run_name": run, "gradient_accumulation_steps": accumulation}
        main(flags(runs.dataset, runs.folder.parent, **given, resume="true"))
    interrupted, whole = runs.folder / name, runs.folder / f"{name}_whole"
    assert "resumed after step" in (interrupted / "log.txt").read_text()
    losses = [[line["loss"] for line in read_lines(run, "epoch")] for run in (interrupted, whole)]
    assert len(losses[0]) == len(losses[1]) == settings["epochs"]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    np.testing.assert_allclose(numbers(read_results(interrupted)), numbers(read_results(whole)), rtol=1e-5)


def test_a_process_that_dies_takes_the_others_down_and_one_process_goes_on(runs):
    """Three processes x 2 batches of 29: the last global batch holds 3 examples. Then one process x 6."""
    settings = SAME | {"train_batch_size": 29, "epochs": 6, "sem_id_epochs": 2, "checkpoint_minutes": 0}
    argv = flags(runs.dataset, runs.folder.parent, **settings, run_name="killed", gradient_accumulation_steps=2)
    launcher = start("finetune", argv, 3)
    wait_for_a_state(runs.folder / "killed", launcher)
    others = workers(launcher)
    os.kill(others.pop(2), signal.SIGKILL)
    assert launcher.wait(60) != 0
    assert not [pid for pid in others.values() if Path(f"/proc/{pid}").exists()]
    assert "Signal 9 (SIGKILL) received by PID" in launcher.stderr.read()
    resumed_alone(runs, finetune.main, settings, "killed", 6)


def test_sigterm_saves_the_state_of_all_processes(runs):
    settings = PRETRAIN | {"checkpoint_minutes": 0.001}
    argv = flags(runs.dataset, runs.folder.parent, **settings, run_name="stopped", gradient_accumulation_steps=1)
    launcher = start("pretrain", argv, 2)
    wait_for_a_state(runs.folder / "stopped", launcher)
    launcher.terminate()
    assert launcher.wait(60) != 0
    assert (
        f"the state is saved in {runs.folder / 'stopped' / 'state'}, --resume goes on from it" in launcher.stderr.read()
    )
    resumed_alone(runs, pretrain.main, settings, "stopped", 2)
