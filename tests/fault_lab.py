"""Tiny runs of every command that can be interrupted, and their comparison with uninterrupted ones."""

import json
import shutil
from pathlib import Path

from forked import Counted, read_counts, run_forked
from tiny_dataset import make_dataset
from tiny_runs import flags

import finetune
import pretrain
import tokenizer.export
import tokenizer.train
from data import sample
from tokenizer import embed

TIMES = {"time", "seconds", "samples_per_second", "peak_memory_mb"}

PRETRAIN = {"epochs": 3, "epoch_per_stage": [1, 1], "val_delay": 0, "save_interval": 2, "tau": 0.5, "num_beams": 10}
FINETUNE = {"epochs": 3, "patience": 1, "sem_id_epochs": 2}
TOKENIZER = {
    **{"sent_emb_model": "tfidf", "sent_emb_dim": 16, "sent_emb_pca": 8, "codebook_size": 16, "hidden_sizes": [16, 8]},
    **{"epochs": 12, "save_last": 3, "batch_size": 32, "device": "cpu"},
}


MAIN = {
    "train": tokenizer.train.main,
    "export": tokenizer.export.main,
    "pretrain": pretrain.main,
    "finetune": finetune.main,
}


class Lab:
    """Runs commands under names of their own, and compares what they leave with an uninterrupted run.

    Args:
        folder: For everything.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.tiny = make_dataset(folder / "Tiny")
        argv = [f"--data_dir={folder}", "--dataset=Shop", "--num_users=60", "--num_items=40"]
        assert run_forked(sample.main, argv, folder / "log") == 0
        assert run_forked(embed.main, self.argv("train", "whole"), folder / "log") == 0
        self.counts: dict[str, dict[str, int]] = {}

    def argv(self, command: str, name: str, *more: str) -> list[str]:
        """Return the flags of a command's run, which saves its state after every step if it is told to."""
        if command in ("train", "export"):
            settings = {"dataset": "Shop", "data_dir": self.folder, "ckpt_name": name} | TOKENIZER
            return [*(f"--{key}={str(value).replace(' ', '')}" for key, value in settings.items()), *more]
        settings = {"pretrain": PRETRAIN, "finetune": FINETUNE}[command]
        return [*flags(self.tiny, self.folder / "runs", run_name=name, **settings), *more]

    def output(self, command: str, name: str) -> Path:
        """Return the folder that a run writes."""
        return self.folder / ("Shop" if command in ("train", "export") else "runs/Tiny") / name

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def run(self, command: str, name: str, *more: str, counted: Counted | None = None) -> int:
        """Run a command; an export begins with the whole tokenizer."""
        output = self.output(command, name)
        if command == "export" and not output.exists():
            shutil.copytree(self.whole("train"), output, ignore=shutil.ignore_patterns("*.sem_ids", "quality.*"))
        return run_forked(MAIN[command], self.argv(command, name, *more), self.log(name), counted)

    def whole(self, command: str) -> Path:
        """Return the folder of the command's uninterrupted run, which saves no state."""
        name = "whole" if command == "train" else f"whole_{command}"
        if not self.output(command, name).exists():
            assert self.run(command, name) == 0, self.log(name).read_text()
        return self.output(command, name)

    def count(self, command: str) -> dict[str, int]:
        """Return how many moments of each kind the command's run has when it saves its state after every step."""
        if command not in self.counts:
            name = f"counted_{command}"
            assert self.run(command, name, "--checkpoint_minutes=0", counted=Counted()) == 0, self.log(name).read_text()
            self.compare(command, name)  # saving changes nothing
            self.counts[command] = read_counts(self.log(name))
        return self.counts[command]

    def compare(self, command: str, name: str) -> None:
        """Assert that a finished run left exactly what the uninterrupted one did."""
        expected, found = contents(self.whole(command)), contents(self.output(command, name))
        assert found.keys() == expected.keys()
        for file, value in expected.items():
            assert found[file] == value, file


def contents(folder: Path) -> dict[str, object]:
    """Return what a run's files hold, by name, but for times and what names the run itself."""
    found: dict[str, object] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(file.relative_to(folder))
        if name in (".lock", "log.txt", "config.yaml", "environment.json"):
            continue
        if file.suffix == ".jsonl":
            found[name] = [without_times(json.loads(line)) for line in file.read_text().splitlines()]
        elif name == "training.json":
            found[name] = without_times(json.loads(file.read_text()))
        elif file.name == "README.md":
            found[name] = file.read_text().replace(folder.name, "RUN")
        elif file.name == "mtgrec.json":
            found[name] = {key: value for key, value in json.loads(file.read_text()).items() if key != "settings"}
        elif file.name == "sha256.json":
            found[name] = {key: value for key, value in json.loads(file.read_text()).items() if key != "mtgrec.json"}
        else:
            found[name] = file.read_bytes()  # weights too, bit for bit
    return found


def without_times(line: dict) -> dict:
    return {name: value for name, value in line.items() if name not in TIMES}
