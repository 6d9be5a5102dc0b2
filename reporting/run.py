"""A finished run as its folder records it."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.interactions import Interactions, dataset_folder, item_texts, load_interactions
from data.token_table import Group, Vocabulary, group_labels, level_sizes, load_token_table
from utils.errors import InputError
from utils.files import read_json
from utils.metrics import per_user
from utils.run_folder import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    METRICS_FILE,
    RESULTS_FILE,
    is_finished,
    read_config,
    results_folder_of,
    trained_identifiers,
)


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


@dataclass(frozen=True)
class Material:
    """What a report on one run is made of.

    Attributes:
        run: The run.
        baseline: One with a single identifier and no pre-training, to compare with.
        pretraining: The run itself, or the pre-training that it started from.
        interactions: The dataset.
        texts: N item texts in item id order, without padding.
        codes: int64 [N, L], the chosen tokenizer's semantic IDs; None where those of the run's training are no longer
            there.
    """

    run: Run
    baseline: Run | None
    pretraining: Run | None
    interactions: Interactions
    texts: list[str]
    codes: np.ndarray | None


def load_material(run: Run, baseline: Run | None) -> Material:
    """Read what belongs to a run: its dataset, its pre-training and its semantic IDs."""
    folder = dataset_folder(run.settings["data_dir"], run.settings["dataset"])
    interactions = load_interactions(folder)
    texts = item_texts(folder, interactions.item_names)
    pretraining = run if run.is_pretraining else pretraining_of(run)
    return Material(run, baseline, pretraining, interactions, texts, _codes(run, folder, interactions.item_names[1:]))


def _codes(run: Run, folder: Path, item_names: list[str]) -> np.ndarray | None:
    suffix = run.settings["token_suffix"]
    epoch = "" if run.row["epoch"] is None else f"_{run.row['epoch']}"
    file = folder / f"{run.row['prefix']}{epoch}.{suffix}"
    if not file.is_file():
        return None
    group = Group(run.row["prefix"], run.row["epoch"], file)
    sizes = level_sizes(run.settings["n_codebooks"], run.settings["codebook_size"])
    table = load_token_table([group], item_names, Vocabulary(sizes, run.settings["n_user_tokens"]))
    trained_with = trained_identifiers(run.folder)
    return None if trained_with and table.sha256[0] != trained_with[run.chosen] else table.codes(0)
