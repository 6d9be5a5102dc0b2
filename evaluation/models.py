"""Evaluating a model with every combination of tokenizer, beams and constraint; what is said of results."""

import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from data.batching import Tokenization
from data.interactions import Interactions, dataset_folder, load_interactions, split_positions, training_interactions
from data.token_table import Vocabulary, check_identifiers, load_token_table, resolve_groups
from evaluation.config import EvaluateConfig, as_list
from evaluation.metrics import mean_metrics
from evaluation.predict import predict
from evaluation.results import Results, groups_of, read_results, write_results
from model.recommender import Recommender, find_model_folder
from utils.config import expand_epochs
from utils.errors import InputError


def short_name(path: Path) -> str:
    """Return what a model's result files are called after: its folder and the one around it."""
    return "_".join([part for part in path.parts if part not in ("checkpoints", "model", "/")][-2:])


def check_names(paths: list[Path]) -> None:
    """Raise InputError where two models' result files would have the same name."""
    names = {short_name(path): path for path in paths}
    for path in paths:
        if names[short_name(path)] != path:
            raise InputError(
                f"{path} and {names[short_name(path)]} end alike, and so would their result files; "
                "evaluate them apart, each with its own --output"
            )


def open_model(
    path: Path, settings: dict[str, Any], config: EvaluateConfig, device: torch.device
) -> tuple[Recommender, Tokenization]:
    """Read a model and its dataset, tokenized as in its training or by the tokenizers that `config` names.

    Args:
        path: Model, checkpoint or run folder.
        settings: What the model was trained with.
        config: The evaluation's settings.
        device: For both.

    Raises:
        InputError: The dataset's semantic IDs are others than those of the training.
    """
    recommender = Recommender.from_pretrained(find_model_folder(path)).eval().to(device)
    vocabulary = Vocabulary(recommender.architecture.level_sizes, recommender.architecture.n_user_tokens)
    folder = dataset_folder(settings["data_dir"], settings["dataset"])
    interactions = load_interactions(folder)
    groups = resolve_groups(
        folder,
        config.token_prefix or settings["token_prefix"],
        expand_epochs(config.sem_id_epochs) or settings["sem_id_epochs"],
        settings["token_suffix"],
    )
    table = load_token_table(groups, interactions.item_names[1:], vocabulary).to(device)
    if not config.token_prefix and not config.sem_id_epochs:
        remedy = "bring those of its training back, or name others with --token_prefix and --sem_id_epochs"
        check_identifiers(recommender.identifiers, table, path, remedy)
    return recommender, Tokenization(interactions, table, settings["max_item_seq_len"])


def evaluate_model(
    path: Path, settings: dict[str, Any], config: EvaluateConfig, processes: Accelerator, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Evaluate a model with every combination of tokenizer, beams and constraint; write a result file for each.

    Args:
        path: Model, checkpoint or run folder.
        settings: What the model was trained with.
        config: The evaluation's settings.
        processes: Those that share the users; only the main one writes and yields.
        device: Where this one computes.

    Yields:
        A row of settings and outcomes for each.
    """
    recommender, tokenization = open_model(path, settings, config, device)
    interactions, table = tokenization.interactions, tokenization.table
    positions = split_positions(interactions.offsets, config.split)
    if len(positions) == 0:
        folder = dataset_folder(settings["data_dir"], settings["dataset"])
        raise InputError(f"{folder}: no user has enough items for a {config.split} example")
    combinations = product(enumerate(table.groups), as_list(config.num_beams), as_list(config.constrained))
    for (number, group), beams, constrained in combinations:
        started = time.perf_counter()
        predictions = predict(
            *(recommender, tokenization, positions, number, config.cutoff, beams, config.batch_size, processes),
            constrained,
        )
        seconds = time.perf_counter() - started
        if not processes.is_main_process:
            continue
        name = f"{short_name(path)}_{table.labels[number]}_beams{beams}{'_constrained' if constrained else ''}"
        file = Path(config.output) / f"{config.split}_results_{name}.json"
        write_results(file, predictions, tokenization)
        yield {
            **{"model": str(path), "prefix": group.prefix, "epoch": group.epoch},
            **{"split": config.split, "num_beams": beams, "constrained": constrained, "file": str(file)},
            **{"users": len(positions), "users_per_second": len(positions) / seconds},
            **summary(read_results(file), interactions, positions, config),
        }


def summary(
    results: Results, interactions: Interactions, positions: np.ndarray, config: EvaluateConfig
) -> dict[str, Any]:
    """Return metrics, coverage, share of invalid sequences, and the metrics of groups of users.

    Args:
        results: Of the users of a split.
        interactions: The dataset.
        positions: int [U], their target positions.
        config: Says which metrics and groups.
    """
    ranks = results.ranks()
    counts = np.bincount(training_interactions(interactions), minlength=interactions.num_items + 1)
    lengths = positions - interactions.offsets[interactions.users_of(positions)]

    def by(values: np.ndarray, edges: list[int]) -> dict[str, dict]:
        return {
            name: {"users": int(members.sum()), **mean_metrics(ranks[members], config.metrics)}
            for name, members in groups_of(values, edges).items()
        }

    return {
        "metrics": mean_metrics(ranks, config.metrics),
        f"coverage@{config.cutoff}": results.coverage(config.cutoff, interactions.num_items),
        f"invalid@{config.cutoff}": results.invalid_share(config.cutoff),
        "by_popularity": by(counts[interactions.items[positions]], config.popularity_edges),
        "by_history_length": by(lengths, config.length_edges),
    }
