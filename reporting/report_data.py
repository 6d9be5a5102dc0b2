"""What a report on one run is made of."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from data.interactions import Interactions, dataset_folder, item_texts, load_interactions
from data.token_table import Group, Vocabulary, level_sizes, load_token_table
from evaluation.run import Run, trained_identifiers


@dataclass(frozen=True)
class ReportData:
    """What a report on one run is made of.

    Attributes:
        run: The run.
        baseline: One with a single tokenizer and no pre-training, to compare with.
        interactions: The dataset.
        texts: N item texts in item id order, without padding.
        codes: int64 [N, L], the chosen tokenizer's semantic IDs; None where those of the run's training are no longer
            there.
    """

    run: Run
    baseline: Run | None
    interactions: Interactions
    texts: list[str]
    codes: np.ndarray | None

    @cached_property
    def row_of_item(self) -> dict[str, int]:
        """The 0-based row of each item in texts and codes, by name."""
        return {name: row for row, name in enumerate(self.interactions.item_names[1:])}

    @cached_property
    def _row_of_user(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.interactions.user_names)}

    def text(self, item: str) -> str:
        """Return the text of an item by its name."""
        return self.texts[self.row_of_item[item]]

    def history(self, user: str, count: int) -> tuple[list[str], int]:
        """Return the names of the last items, at most `count`, that a user had before the test, and of how many."""
        start, end = self.interactions.offsets[self._row_of_user[user] :][:2]
        items = self.interactions.history(int(end) - 1, count)
        return [self.interactions.item_names[item] for item in items], int(end - start) - 1

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes of each level without disambiguation."""
        return level_sizes_of(self.run)[:-1]


def level_sizes_of(run: Run) -> tuple[int, ...]:
    """Return the codes of each level of a run's semantic IDs, disambiguation included."""
    return level_sizes(run.settings["n_codebooks"], run.settings["codebook_size"])


def read_report_data(run: Run, baseline: Run | None) -> ReportData:
    """Read what belongs to a run: its dataset and its semantic IDs."""
    folder = dataset_folder(run.settings["data_dir"], run.settings["dataset"])
    interactions = load_interactions(folder)
    texts = item_texts(folder, interactions.item_names)
    return ReportData(run, baseline, interactions, texts, _codes(run, folder, interactions.item_names[1:]))


def _codes(run: Run, folder: Path, item_names: list[str]) -> np.ndarray | None:
    suffix = run.settings["token_suffix"]
    epoch = "" if run.tokenizer["epoch"] is None else f"_{run.tokenizer['epoch']}"
    file = folder / f"{run.tokenizer['prefix']}{epoch}.{suffix}"
    if not file.is_file():
        return None
    group = Group(run.tokenizer["prefix"], run.tokenizer["epoch"], file)
    vocabulary = Vocabulary(level_sizes_of(run), run.settings["n_user_tokens"])
    table = load_token_table([group], item_names, vocabulary)
    trained_with = trained_identifiers(run.folder)
    return None if trained_with and table.sha256[0] != trained_with[run.chosen] else table.codes(0)
