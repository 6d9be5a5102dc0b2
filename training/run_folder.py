"""The folder of one run: who may use it, and how what happens is told: the log, metrics.jsonl, the tracker."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from evaluation.run import METRICS_FILE, SETTINGS_FILE, Run
from training.config import TrainingConfig
from utils.claims import Claim, Found, claim
from utils.config import HANDLING_FLAGS, dump_config
from utils.errors import InputError
from utils.files import remove_leftovers, write_text
from utils.locks import LOCK_FILE, FileLock

# Settings in which a run may differ and still be the one that is asked for: where it lies and ran, how it was watched,
# and of an unfinished one also how long it goes on and how often it is saved. None changes what a step computes,
# but for `epochs`, on whose number the learning rates of the steps to come depend.
MAY_DIFFER: dict[Found, tuple[str, ...]] = {
    "finished": ("checkpoint_minutes", "device", "data_dir", "ckpt_dir", "log_dir", "log_with", "tensorboard_log_dir"),
    "unfinished": (
        *("epochs", "patience", "save_interval", "checkpoint_minutes", "gradient_accumulation_steps"),
        *("device", "data_dir", "ckpt_dir", "log_dir", "log_with", "tensorboard_log_dir"),
    ),
}


def other_settings(folder: Path, config: Any, but: tuple[str, ...] = ()) -> list[str]:
    """Return "flag=here (there: value)" for each setting, but some, in which the run in the folder differs."""
    # A flag that is younger than the run had its default
    there = {**yaml.safe_load(dump_config(type(config)())), **Run(folder).settings}
    here = yaml.safe_load(dump_config(config))
    for settings in (here, there):
        if model := settings.get("pretrained_model"):
            settings["pretrained_model"] = os.path.relpath(model, settings["ckpt_dir"])  # the two may move together
    return [
        f"{name}={here.get(name)} (there: {there.get(name)})"
        for name in {**here, **there}
        if name not in (*HANDLING_FLAGS, *but) and here.get(name) != there.get(name)
    ]


class RunFolder:
    """A run's folder, <ckpt_dir>/<dataset>/<run_name>; only the main process writes. `track` shows values at a step."""

    def __init__(self, path: Path, is_main: bool, log_file: Path, track: Callable[..., None] = lambda *_: None):
        self.path, self.is_main, self.log_file, self.track = path, is_main, log_file, track
        self.metrics_file = path / METRICS_FILE
        self.model = path / "model"  # the model folder with the best weights so far
        self.checkpoints = path / "checkpoints"  # the folder of the model folders that are kept
        self.states = path / "state"  # what --resume goes on from
        self._lock: FileLock | None = None

    def claim(self, config: Any, sources: Callable[[], dict[str, str]] = dict, global_batch_size: int = 0) -> Claim:
        """Decide what is to be done here, touching nothing; reuse: the run is already finished with the same settings.

        A finished run of the same `global_batch_size` may have accumulated it otherwise. `sources` returns the hashes
        of what is read, by name; with others a finished run is another one. Raises InputError where something else is
        there and `config.overwrite` is not set.
        """
        run = Run(self.path)
        # Hidden files alone are of a run that was killed before it had settings
        if config.overwrite or not self.path.exists() or all(p.name.startswith(".") for p in self.path.iterdir()):
            return "make"
        if run.is_finished:
            found, holds, remedy = "finished", "holds a finished run", "set another RUN_NAME (--run_name)"
            asked, but = config.reuse or config.resume, MAY_DIFFER["finished"]
            if run.results.get("global_batch_size") == global_batch_size:
                but += ("gradient_accumulation_steps",)
        else:
            found, holds, remedy = "unfinished", "holds an unfinished run", "go on with --resume (RESUME=1)"
            asked, but = config.resume, MAY_DIFFER["unfinished"]
        different = "; ".join(other_settings(self.path, config, but)) if asked else ""
        if different:
            holds += f" with other settings: {different}"
            remedy = remedy if run.is_finished else "resume it with its own"
        refusal = f"{holds}; {remedy}, or start anew with --overwrite"
        answer = claim(self.path, found, different, resume=config.resume, reuse=asked, refusal=refusal)
        if answer == "reuse" and (changed := run.changed_sources(sources())):
            raise InputError(
                f"{self.path} holds a finished run of the same settings, but since then these changed: "
                f"{', '.join(changed)}; set another RUN_NAME (--run_name), or start anew with --overwrite"
            )
        return answer

    def claim_again(self, *what: Any) -> None:
        """Claim, as before, what is locked now; InputError where another process took or finished it meanwhile."""
        if self.claim(*what) == "reuse":
            raise InputError(f"{self.path} was finished by another process meanwhile; start again to reuse it")

    def lock(self) -> None:
        """Keep other processes out until `unlock`, or until this process ends; InputError if one has the folder."""
        self._lock = FileLock(self.path / LOCK_FILE)

    def unlock(self) -> None:
        """Let others use the folder."""
        if self._lock:
            self._lock.release()

    def create(self, config: Any) -> None:
        """Make the folder, empty but for config.yaml, which --config_file takes back."""
        if not self.is_main:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        for path in self.path.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK_FILE:
                path.unlink()
        self._write_config(config)

    def reopen(self, config: Any, metrics_size: int, closed: int) -> None:
        """Take back an unfinished run: what it wrote after its saved state is to be made again.

        That are its metrics after the first `metrics_size` bytes, and checkpoints of epochs above `closed`.
        """
        remove_leftovers(self.path)
        for folder in self.checkpoints.glob("epoch_*"):
            if int(folder.name.removeprefix("epoch_")) > closed:
                shutil.rmtree(folder)
        with open(self.metrics_file, "ab") as file:
            file.truncate(min(metrics_size, file.tell()))
        self._write_config(config)

    def metrics_size(self) -> int:
        """Return how many bytes of metrics there are, all of them on the disk."""
        with open(self.metrics_file, "ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def _write_config(self, config: Any) -> None:
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path / SETTINGS_FILE, dump_config(config, without=HANDLING_FLAGS))

    def say(self, text: str) -> None:
        """Print a line and keep it in the log."""
        if self.is_main:
            print(text, flush=True)
            with open(self.log_file, "a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def record(self, event: str, **values: Any) -> None:
        """Append one line to metrics.jsonl: the event, Unix time in seconds, and the values."""
        if self.is_main:
            with open(self.metrics_file, "a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, "time": round(time.time(), 3), **values}) + "\n")

    def emit(self, event: str, values: dict[str, Any], tracked: dict[str, float], step: int, *lines: str) -> None:
        """Tell everybody what happened: `lines` to people, `values` to metrics.jsonl, `tracked` to the tracker.

        `step` is the optimizer steps so far.
        """
        for line in lines:
            self.say(line)
        self.record(event, **values)
        self.track(tracked, step)


def start_tracker(accelerator: Accelerator, config: TrainingConfig, first_step: int) -> None:
    """Start the tracker that `log_with` names, if any, at the 1-based optimizer step at which the run goes on."""
    if config.log_with == "none":
        return
    if config.log_with != "tensorboard":
        accelerator.init_trackers("mtgrec", plain_settings(config), {})
        return
    # TensorBoard takes the settings with the final metrics, and hides what a run before logged from this step on
    accelerator.init_trackers("tensorboard", None, {"tensorboard": {"purge_step": first_step}})


def plain_settings(config: TrainingConfig) -> dict[str, int | float | str]:
    """Return the settings as trackers take them: numbers and strings."""
    return {name: value if isinstance(value, int | float | str) else str(value) for name, value in vars(config).items()}


def log_hyperparameters(accelerator: Accelerator, config: TrainingConfig, results: dict[str, Any]) -> None:
    """Write the settings and the final metrics for TensorBoard's table of runs (HPARAMS)."""
    final = {f"final/{split}_{name}": value for split in ("valid", "test") for name, value in results[split].items()}
    for tracker in accelerator.trackers if accelerator.is_main_process else ():
        if tracker.name == "tensorboard":
            tracker.writer.add_hparams(plain_settings(config), final, run_name=".")
