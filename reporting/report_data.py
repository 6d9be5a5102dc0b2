"""What a report on one run is made of, and the paper's numbers beside it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml

from data.interactions import Interactions, dataset_folder, item_texts, load_interactions
from data.token_table import Group, Vocabulary, level_sizes, load_token_table
from evaluation.run import Run, baseline_runs

PAPER = yaml.safe_load(Path(__file__).with_name("paper.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class ReportData:
    """A run, and `baseline`, one with a single tokenizer and no pre-training; all else is read when it is wanted."""

    run: Run
    baseline: Run | None

    @cached_property
    def other_methods(self) -> list[Run]:
        """The best run of each baseline that lies beside the run."""
        return baseline_runs(self.run)

    @cached_property
    def interactions(self) -> Interactions:
        """The dataset."""
        return load_interactions(dataset_folder(self.run.settings["data_dir"], self.run.settings["dataset"]))

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
