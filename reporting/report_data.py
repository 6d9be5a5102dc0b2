"""What a report on one run is made of, and the paper's numbers beside it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml

from data.interactions import (
    Interactions,
    item_texts,
    split_positions,
    training_part,
)
from data.token_table import Group, Vocabulary, level_sizes, load_token_table
from evaluation.compare import Interval, bootstrap_over_users
from evaluation.metrics import mean_metrics, parse_metric, per_user, target_ranks
from evaluation.results import most_popular
from evaluation.run import BASELINES, Run, baseline_runs, is_single

PAPER = yaml.safe_load(Path(__file__).with_name("paper.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Row:
    """A method's test metrics: means, and those of each user, float64 [U, metrics], where they are known."""

    name: str
    metrics: dict[str, float]
    values: np.ndarray | None = None
    folder: str = ""  # that of the run which stands for the method

    @property
    def title(self) -> str:
        return f"{self.name}: {self.folder}" if self.folder else self.name

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """The interval of each metric; NaN without results per user."""
        if self.values is None:
            return {name: Interval(mean, np.nan, np.nan) for name, mean in self.metrics.items()}
        return dict(zip(self.metrics, bootstrap_over_users(self.values), strict=True))


def popularity_row(interactions: Interactions, names: list[str], users: list[str] | None = None) -> Row:
    """Return the most-popular baseline, for `users` of the test only where they are given."""
    items, _ = most_popular(training_part(interactions), max(parse_metric(name)[1] for name in names))
    positions = split_positions(interactions.offsets, "test")
    if users:
        tested = np.isin(np.asarray(interactions.user_names), users)
        positions = positions[tested[interactions.users_of(positions)]]
    targets = interactions.items[positions]
    ranks = target_ranks(np.broadcast_to(items, (len(targets), len(items))), targets)
    values = np.stack([per_user(name, ranks) for name in names], axis=1)
    return Row(BASELINES["popular"], mean_metrics(ranks, names), values)


def run_row(name: str, run: Run, folder: str = "") -> Row:
    """Return a run's chosen tokenizer's results; without intervals where the result file per user is gone."""
    metrics = run.tokenizer["test"]
    values = run.user_results.per_user(list(metrics)) if run.user_results_file.is_file() else None
    return Row(name, metrics, values, folder)


@dataclass(frozen=True)
class ReportData:
    """A run, and `baseline`, which it is compared with; all else is read when it is wanted."""

    run: Run
    baseline: Run | None

    @cached_property
    def other_methods(self) -> list[Run]:
        """The best run of each baseline that lies beside the run."""
        return baseline_runs(self.run)

    @cached_property
    def rows(self) -> list[Row]:
        """The test metrics of the most popular items, of the runs that are compared with, and of the run itself."""
        others = [(other.method, other) for other in self.other_methods]
        if self.baseline:
            alone = "One tokenizer, no pre-training" if is_single(self.baseline) else "Another run"
            others.append((self.baseline.method or alone, self.baseline))
        users = self.run.user_results.users if self.run.user_results_file.is_file() else None
        return [
            popularity_row(self.interactions, list(self.run.tokenizer["test"]), users),
            *(run_row(name, other, other.folder.name) for name, other in others),
            run_row(self.run.folder.name, self.run),
        ]

    @cached_property
    def interactions(self) -> Interactions:
        """The dataset; InputError where it has changed since the run."""
        return self.run.load_interactions()

    @cached_property
    def texts(self) -> list[str]:
        """N item texts in item id order, without padding."""
        return item_texts(self.run.dataset_folder, self.interactions.item_names)

    @cached_property
    def codes(self) -> np.ndarray | None:
        """The chosen tokenizer's semantic IDs, int64 [N, L]; None of a baseline, and where they are gone or others."""
        if self.run.method:
            return None
        prefix, epoch = self.run.tokenizer["prefix"], self.run.tokenizer["epoch"]
        name = f"{prefix}{'' if epoch is None else f'_{epoch}'}.{self.run.settings['token_suffix']}"
        file = self.run.dataset_folder / name
        if not file.is_file():
            return None
        vocabulary = Vocabulary(self.level_sizes, self.run.settings["n_user_tokens"])
        table = load_token_table([Group(prefix, epoch, file)], self.interactions.item_names[1:], vocabulary)
        trained_with = self.run.trained_identifiers
        return None if trained_with and table.sha256[0] != trained_with[self.run.chosen] else table.codes(0)

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Codes of each level of the semantic IDs, disambiguation included."""
        return level_sizes(self.run.settings["n_codebooks"], self.run.settings["codebook_size"])

    @cached_property
    def row_of_item(self) -> dict[str, int]:
        """The 0-based row of each item in texts and codes, by name."""
        return {name: row for row, name in enumerate(self.interactions.item_names[1:])}

    @cached_property
    def row_of_user(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.interactions.user_names)}

    def text(self, item: str) -> str:
        """Return the text of an item by its name."""
        return self.texts[self.row_of_item[item]]

    def history(self, user: str, count: int) -> tuple[list[str], int]:
        """Return the names of the last items, at most `count`, that a user had before the test, and of how many."""
        start, end = self.interactions.offsets[self.row_of_user[user] :][:2]
        items = self.interactions.history(int(end) - 1, count)
        return [self.interactions.item_names[item] for item in items], int(end - start) - 1
