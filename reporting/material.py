"""What a report on one run is made of."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.interactions import Interactions, dataset_folder, item_texts, load_interactions
from data.token_table import Group, Vocabulary, level_sizes, load_token_table
from evaluation.run import Run, pretraining_of, trained_identifiers


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
