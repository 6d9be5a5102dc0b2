"""A finished run as its folder records it."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data.token_table import group_labels
from evaluation.metrics import per_user
from utils.errors import InputError
from utils.files import read_json

RESULTS_FILE = "results.json"
CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
ENVIRONMENT_FILE = "environment.json"


def is_finished(folder: Path) -> bool:
    """Return whether the folder holds a run that has its results."""
    return (folder / RESULTS_FILE).is_file() and (folder / CONFIG_FILE).is_file()


def read_config(folder: Path) -> dict[str, Any]:
    """Return the settings that a run was made with."""
    try:
        config = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{folder} has no readable {CONFIG_FILE}: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{folder} has no settings in its {CONFIG_FILE}")
    return config


def trained_identifiers(folder: Path) -> list[str]:
    """Return the hashes of the semantic IDs that a run's best weights were trained with (TokenTable.sha256).

    Empty where they were not recorded.
    """
    weights = folder / "model" / "config.json"
    return read_json(weights).get("semantic_ids_sha256", []) if weights.is_file() else []


def results_folder_of(run: Path, results_dir: str | None) -> Path:
    """Return where a run <ckpt_dir>/<dataset>/<run_name> puts its result files per user."""
    return Path(results_dir) / run.parent.name / run.name if results_dir else run


@dataclass(frozen=True)
class UserResults:
    """What one tokenizer recommended to each test user.

    Attributes:
        users: U names.
        targets: U items that came next.
        recommended: [U][k] items, best first; "None" where a sequence is no item's.
        ranks: int64 [U], 0-based rank of the target, the number of recommended items where it is not among them.
    """

    users: list[str]
    targets: list[str]
    recommended: list[list[str]]
    ranks: np.ndarray

    def metric(self, name: str) -> np.ndarray:
        """Return a metric of each user, float64 [U]."""
        return per_user(name, self.ranks)


@dataclass(frozen=True)
class Run:
    """A finished run, and of its tokenizers the chosen one: the best on validation.

    Attributes:
        folder: <ckpt_dir>/<dataset>/<run_name>.
        settings: What it was made with.
        results: results.json.
    """

    folder: Path
    settings: dict[str, Any]
    results: dict[str, Any]

    @property
    def dataset_folder(self) -> Path:
        return Path(self.settings["data_dir"]) / self.settings["dataset"]

    @property
    def labels(self) -> list[str]:
        """A short name of each tokenizer."""
        return group_labels([(row["prefix"], row["epoch"]) for row in self.results["per_tokenizer"]])

    @property
    def chosen(self) -> int:
        """The 0-based index of the tokenizer with the best validation score."""
        rows, metric = self.results["per_tokenizer"], self.settings["val_metric"]
        return max(range(len(rows)), key=lambda index: rows[index]["valid"][metric])

    @property
    def row(self) -> dict[str, Any]:
        """The chosen tokenizer's entry in results.json: prefix, epoch, valid, test."""
        return self.results["per_tokenizer"][self.chosen]

    @property
    def file(self) -> Path:
        """The result file per user of the chosen tokenizer."""
        folder = results_folder_of(self.folder, self.settings.get("results_dir"))
        return folder / f"test_results_{self.labels[self.chosen]}.json"

    @property
    def is_pretraining(self) -> bool:
        return "epoch_per_stage" in self.settings

    @cached_property
    def events(self) -> dict[str, list[dict[str, Any]]]:
        """The lines of metrics.jsonl by their event; none where there is no such file."""
        file, found = self.folder / METRICS_FILE, {}
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
            values = json.loads(line)
            found.setdefault(values["event"], []).append(values)
        return found

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Command, versions and hardware; empty where they were not recorded."""
        file = self.folder / ENVIRONMENT_FILE
        return read_json(file) if file.is_file() else {}

    @cached_property
    def users(self) -> UserResults:
        """The chosen tokenizer's results per user."""
        results = read_json(self.file)
        recommended, targets = results["pred_ids"], results["label_ids"]
        ranks = [row.index(x) if x in row else len(row) for row, x in zip(recommended, targets, strict=True)]
        return UserResults(results["users"], targets, recommended, np.asarray(ranks))


def load_run(path: Path) -> Run:
    """Read a run folder, or that of the winner, which lies beside the `.winner.json`.

    Raises:
        InputError: It holds no results.
    """
    folder = path.parent / Path(read_json(path)["winner"]["run"]).name if path.is_file() else path
    for name in (RESULTS_FILE, CONFIG_FILE):
        if not (folder / name).is_file():
            raise InputError(f"{folder} holds no finished run ({name} is not there)")
    return Run(folder, read_config(folder), read_json(folder / RESULTS_FILE))


def single_identifier_run(run: Run) -> Run | None:
    """Return the best on validation of the finished runs beside `run` with one tokenizer and no pre-training.

    None where there is none, or where `run` itself is such a run.
    """

    def is_single(candidate: Run) -> bool:
        from_scratch = not candidate.is_pretraining and not candidate.settings.get("pretrained_model")
        return from_scratch and len(candidate.results["per_tokenizer"]) == 1

    if is_single(run):
        return None
    beside = [load_run(folder) for folder in sorted(run.folder.parent.glob("*")) if is_finished(folder)]
    metric = run.settings["val_metric"]
    singles = [other for other in beside if is_single(other) and metric in other.row["valid"]]
    return max(singles, key=lambda other: other.row["valid"][metric], default=None)


def pretraining_of(run: Run) -> Run | None:
    """Return the finished pre-training whose weights a run started from, if its folder is still there."""
    model = run.settings.get("pretrained_model")
    for folder in (Path(model), *Path(model).parents[:2]) if model else ():
        if is_finished(folder):
            return load_run(folder)
    return None
