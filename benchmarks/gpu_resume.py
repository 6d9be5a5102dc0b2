"""Whether a pre-training that SIGTERM stopped, and one in a process group of one, end as an undisturbed one does.

    python -m benchmarks.gpu_resume --device=cuda --output=resume.json

Three real runs of one small pre-training, two stages with influence between them; weights are compared bit for bit.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.generated import write_dataset
from benchmarks.machine import DeviceConfig
from utils.config import parse_config
from utils.files import write_json
from utils.runtime import STOPPED_CODE, run_command

SMALL = {"train_batch_size": 256, "num_layers": 6, "num_decoder_layers": 6, "warmup_steps": 50}
TINY = {
    **{"train_batch_size": 32, "num_layers": 1, "num_decoder_layers": 1, "warmup_steps": 4},
    **{"d_model": 16, "d_ff": 32, "num_heads": 2, "d_kv": 8},
}
COMMON = {
    **{"dataset": "generated", "epochs": 4, "epoch_per_stage": "[2,2]", "val_delay": 3, "val_ratio": 0.2},
    **{"test_ratio": 0.2, "num_beams": 10, "test_num_beams": 10, "influence_sample_ratio": 0.2, "log_with": "none"},
}


class Runs:
    """Runs of one command in a folder."""

    def __init__(self, folder: Path, device: str):
        self.folder, self.environment = folder, dict(os.environ)
        if device == "cpu":
            self.environment |= {"ACCELERATE_USE_CPU": "true"}
        settings = COMMON | (TINY if device == "cpu" else SMALL) | {"data_dir": folder, "ckpt_dir": folder / "ckpt"}
        self.flags = [f"--{name}={value}" for name, value in settings.items()]

    def path(self, name: str) -> Path:
        return self.folder / "ckpt" / "generated" / name

    def start(self, name: str, *flags: str, **environment: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "pretrain", *self.flags, f"--run_name={name}", *flags]
        return subprocess.Popen(command, env=self.environment | environment)

    def finish(self, name: str, *flags: str, **environment: str) -> None:
        """Run to the end; raise CalledProcessError where it fails."""
        process = self.start(name, *flags, **environment)
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, process.args)

    def stop_after_an_epoch(self, name: str) -> None:
        """Start, send SIGTERM once the first epoch is over; raise RuntimeError where it does not stop as it should."""
        process, metrics = self.start(name), self.path(name) / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and '"event": "epoch"' in metrics.read_text()):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        if process.wait() != STOPPED_CODE:
            raise RuntimeError(f"after SIGTERM the run ended with code {process.returncode}, not {STOPPED_CODE}")

    def same_weights(self, left: str, right: str) -> bool:
        a, b = (load_file(self.path(name) / "model" / "model.safetensors") for name in (left, right))
        return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def alone_in_a_group() -> dict[str, str]:
    """Return the environment of a process that is a whole process group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def main(argv: list[str] | None = None) -> None:
    """Run and compare; exit with 1 where weights differ."""
    config, _ = parse_config(DeviceConfig, argv, "python -m benchmarks.gpu_resume", __doc__)
    outcome: dict[str, object] = {"device": config.device}

    def note(**found: object) -> None:
        outcome.update(found)
        print(outcome, flush=True)
        if config.output:
            write_json(Path(config.output), outcome)

    with tempfile.TemporaryDirectory() as scratch:
        runs, started = Runs(Path(scratch), config.device), time.perf_counter()
        write_dataset(Path(scratch) / "generated", 1000 if config.device == "cpu" else 20, 3)
        runs.finish("whole")
        note(seconds_of_a_run=round(time.perf_counter() - started, 1))
        runs.stop_after_an_epoch("stopped")
        runs.finish("stopped", "--resume")
        note(resumed_equal=runs.same_weights("whole", "stopped"))
        runs.finish("grouped", **alone_in_a_group())
        note(group_of_one_equal=runs.same_weights("whole", "grouped"))
    if not (outcome["resumed_equal"] and outcome["group_of_one_equal"]):
        sys.exit("error: weights differ")


if __name__ == "__main__":
    run_command(main)
