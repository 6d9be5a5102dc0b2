"""Evaluate checkpoints with tokenizers, join result files into an ensemble, or compare two of them.

    python evaluate.py --model=ckpt/Sample/mtgrec_best_104                              as it was tested
    python evaluate.py --model=ckpt/Sample/pretrain_tau1/checkpoints/epoch_10 --sem_id_epochs=[80,104,120] \\
        --num_beams=[10,50] --constrained=[false,true] --split=valid                    every combination
    python evaluate.py --ensemble=[test_results_80.json,test_results_120.json] --output=joined
    python evaluate.py --compare=[single/test_results_104.json,mtgrec/test_results_104.json]

Prints Recall, NDCG and MRR, the share of the items that are recommended to anybody (coverage), the share of generated
sequences that are no item (invalid), and the metrics by the target's popularity, by the history's length and by how
often training has the target right after the history's last item. Result files per user and evaluation.json go to
--output.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

import utils  # noqa: F401  # isort: skip  (before torch)
import numpy as np
import torch
from accelerate import Accelerator

from data.batching import Tokenization, training_users
from data.interactions import (
    Interactions,
    dataset_folder,
    follow_counts,
    item_counts,
    load_interactions,
    split_positions,
    training_part,
)
from data.token_table import Vocabulary, check_semantic_ids, load_token_table, resolve_groups
from evaluation.compare import RESAMPLES, bootstrap_over_users, paired_differences
from evaluation.metrics import METRICS, mean_metrics
from evaluation.predict import predict
from evaluation.results import Results, ensemble, read_comparable, read_results, user_bins, write_results
from evaluation.run import Run, resolve_winner, run_around
from inference.model_folder import read_settings
from model.recommender import Recommender, load_recommender
from utils.config import Epochs, expand_epochs, parse_config
from utils.errors import InputError
from utils.files import write_json
from utils.runtime import join_processes, run_command
from utils.text_table import text_table


def as_list(value: object) -> list:
    """Return a flag that takes one value or several as a list."""
    return value if isinstance(value, list) else [value]


@dataclass
class EvaluateConfig:
    """Settings of an evaluation; exactly one of model, ensemble and compare says what is done."""

    model: str | list[str] | None = None
    """Run folder, checkpoint in one, exported model folder, <name>.winner.json or hf:user/name; or a list of them. Of a
    baseline's run the recommendations of its test are judged."""
    ensemble: list[str] = field(default_factory=list)
    """Result files per user of the same users, to be joined into one ranking."""
    ensemble_rule: Literal["votes", "mixture"] = "votes"
    """How they are joined: votes (the reference code's: in how many files an item is, then its mean score) or mixture
    (the mean of the probabilities that the tokenizers give an item)."""
    compare: list[str] = field(default_factory=list)
    """Two result files per user: is the second better than the first?"""
    output: str = "evaluation"
    """Folder for result files per user and evaluation.json."""

    data_dir: str | None = None
    """Folder that holds the dataset's folder; by default where the run had it."""
    token_prefix: str | list[str] | None = None
    """Prefix of the .sem_ids files, or a list; by default the run's."""
    sem_id_epochs: Epochs | None = None
    """RQ-VAE epochs of the tokenizers: 9986, [9986,9990], 9976:10000 (inclusive). By default the run's."""
    split: str = "test"
    """test or valid."""
    num_beams: int | list[int] = 50
    """Beams, or a list of numbers of beams."""
    constrained: bool | list[bool] = False
    """Generate real items only, by a prefix trie; [false,true] does both."""
    topk: list[int] = field(default_factory=lambda: [5, 10])
    """Cut-offs of the metrics."""
    batch_size: int = 128
    """Users per batch and process."""
    popularity_edges: list[int] = field(default_factory=lambda: [20, 40, 60, 80, 100])
    """Where the bins of the target's training interactions begin, after the bin from 0 (as in the paper's Figure 5,
    whose text names the group below 20)."""
    length_edges: list[int] = field(default_factory=lambda: [5, 10, 20])
    """Where the bins of the history's length begin, after the bin from 0."""
    transition_edges: list[int] = field(default_factory=lambda: [1, 2, 4, 10])
    """Where the bins begin of how often training has the target right after the history's last item, after the bin from
    0."""
    resamples: int = RESAMPLES
    """Bootstrap samples of compare."""
    rand_seed: int = 2024
    """Seed of the bootstrap."""
    device: str = "auto"
    """auto (a GPU where there is one) or cpu."""

    def problems(self) -> list[str]:
        """Name everything that is wrong with the settings."""
        found = []
        if sum(map(bool, (self.model, self.ensemble, self.compare))) != 1:
            found.append("say what to do with one of --model, --ensemble, --compare")
        if self.compare and len(self.compare) != 2:
            found.append(f"--compare takes two files, {len(self.compare)} are given")
        if self.ensemble and len(self.ensemble) < 2:
            found.append("--ensemble takes two files or more")
        if self.split not in ("test", "valid"):
            found.append(f"split={self.split} must be test or valid")
        if self.device not in ("auto", "cpu"):
            found.append(f"device={self.device} must be auto or cpu (CUDA_VISIBLE_DEVICES chooses among GPUs)")
        if not self.topk or min(self.topk) < 1:
            found.append(f"topk={self.topk} must be cut-offs from 1")
        elif self.model and max(self.topk) > min(as_list(self.num_beams), default=0):
            found.append(f"topk={self.topk} asks for more items than there are beams (num_beams={self.num_beams})")
        for name in ("popularity_edges", "length_edges", "transition_edges"):
            edges = getattr(self, name)
            if edges != sorted(set(edges)) or min(edges, default=1) < 1:
                found.append(f"{name}={edges} must rise from 1")
        for name in ("batch_size", "resamples"):
            if getattr(self, name) < 1:
                found.append(f"{name}={getattr(self, name)} must be at least 1")
        return found

    @property
    def cutoff(self) -> int:
        """The largest cut-off."""
        return max(self.topk)

    @property
    def metrics(self) -> list[str]:
        """Every metric at every cut-off, such as ndcg@5."""
        return [f"{metric}@{k}" for metric in METRICS for k in self.topk]


def short_name(path: Path) -> str:
    """Return what a model's result files are called after: its folder and the one around it."""
    return "_".join([part for part in path.parts if part not in ("checkpoints", "model", "snapshots", "/")][-2:])


def check_names(paths: list[Path]) -> None:
    """Raise InputError where two models' result files would have the same name."""
    named: dict[str, Path] = {}
    for path in paths:
        other = named.setdefault(short_name(path), path)
        if other != path:
            raise InputError(
                f"{other} and {path} end alike, and so would their result files; "
                "evaluate them apart, each with its own --output"
            )


def open_model(
    path: Path, settings: dict, config: EvaluateConfig, device: torch.device
) -> tuple[Recommender, Tokenization]:
    """Read a model and its dataset, tokenized as in its training, `settings`, or by the tokenizers of `config`."""
    recommender = load_recommender(path).eval().to(device)
    vocabulary = Vocabulary(recommender.architecture.level_sizes, recommender.architecture.n_user_tokens)
    folder = dataset_folder(settings["data_dir"], settings["dataset"])
    interactions = load_interactions(folder)
    if len(split_positions(interactions.offsets, config.split)) == 0:
        raise InputError(f"{folder}: no user has enough items for a {config.split} example")
    prefix = config.token_prefix or settings["token_prefix"]
    asked = expand_epochs(config.sem_id_epochs)
    groups = resolve_groups(folder, prefix, asked or settings["sem_id_epochs"], settings["token_suffix"])
    if asked and not config.token_prefix:  # the run's prefixes may have epochs of their own
        groups = [group for group in groups if group.epoch in asked]
        if not groups:
            raise InputError(f"{path} has no tokenizer of the epochs {', '.join(map(str, asked))}")
    table = load_token_table(groups, interactions.item_names[1:], vocabulary).to(device)
    if not config.token_prefix and not asked:
        remedy = "bring those of its training back, or name others with --token_prefix and --sem_id_epochs"
        check_semantic_ids(recommender.semantic_ids_sha256, table, path, remedy)
    return recommender, Tokenization(interactions, table, settings["max_item_seq_len"])


def evaluate_model(
    path: Path, config: EvaluateConfig, processes: Accelerator, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Evaluate a model with every combination of tokenizer, beams and constraint; write a result file for each.

    The main process yields what was evaluated and what came out, for each.
    """
    settings = read_settings(path, config.data_dir)
    recommender, tokenization = open_model(path, settings, config, device)
    interactions, table = tokenization.interactions, tokenization.table
    positions = split_positions(interactions.offsets, config.split)
    combinations = product(enumerate(table.groups), as_list(config.num_beams), as_list(config.constrained))
    for (number, group), beams, constrained in combinations:
        started = time.perf_counter()
        how = (number, config.cutoff, beams, config.batch_size, processes, constrained)
        predictions = predict(recommender, tokenization, positions, *how)
        seconds = time.perf_counter() - started
        if processes.is_main_process:
            name = f"{short_name(path)}_{table.labels[number]}_beams{beams}{'_constrained' if constrained else ''}"
            file = Path(config.output) / f"{config.split}_results_{name}.json"
            write_results(file, predictions, tokenization)
            yield {
                **{"model": str(path), "prefix": group.prefix, "epoch": group.epoch},
                **{"split": config.split, "num_beams": beams, "constrained": constrained, "file": str(file)},
                **{"users": len(positions), "users_per_second": len(positions) / seconds},
                **summary(read_results(file), interactions, positions, settings, config),
            }


def evaluate_baseline(run: Run, config: EvaluateConfig) -> dict[str, Any]:
    """Return what came out of the recommendations that a baseline's run has left of its test."""
    if config.split != "test":
        raise InputError(f"{run.folder} is a baseline, whose recommendations are those of the test: --split=test")
    interactions = run.load_interactions(config.data_dir)
    positions = split_positions(interactions.offsets, config.split)
    (results,) = read_comparable([run.user_results_file], config.cutoff)
    return {
        **{"model": str(run.folder), "method": run.method, "split": config.split, "file": str(run.user_results_file)},
        **{"users": len(positions), **summary(results, interactions, positions, run.settings, config)},
    }


def summary(
    results: Results, interactions: Interactions, positions: np.ndarray, settings: dict, config: EvaluateConfig
) -> dict[str, Any]:
    """Return metrics, coverage, share of invalid sequences, and the metrics of bins of users.

    `positions` are the target positions of the results' users, int [U], `settings` those of the run, which say whose
    histories it was trained on.
    """
    ranks, k = results.ranks(), config.cutoff
    drawn = settings.get("train_user_ratio", 1.0), settings.get("rand_seed", 0)
    training = training_part(interactions, training_users(interactions.num_users, *drawn))
    counts = item_counts(training)
    lengths = positions - interactions.offsets[interactions.users_of(positions)]

    def by(values: np.ndarray, edges: list[int]) -> dict[str, dict]:
        return {
            name: {"users": int(members.sum()), **mean_metrics(ranks[members], config.metrics)}
            for name, members in user_bins(values, edges).items()
        }

    return {
        "metrics": mean_metrics(ranks, config.metrics),
        f"coverage@{k}": results.coverage(k, interactions.num_items),
        f"invalid@{k}": results.invalid_share(k),
        "by_popularity": by(counts[interactions.items[positions]], config.popularity_edges),
        "by_history_length": by(lengths, config.length_edges),
        "by_transition": by(follow_counts(training, interactions, positions), config.transition_edges),
    }


def metrics_table(title: str, rows: dict[str, dict], names: list[str]) -> str:
    """Return a table of named rows of metrics, with the number of users where rows have it."""
    users = ["users"] if all("users" in values for values in rows.values()) else []
    cells = [
        [label, *(f"{values[name]:>5}" for name in users), *(f"{values[name]:9.4f}" for name in names)]
        for label, values in rows.items()
    ]
    return text_table([title, *users, *(f"{name:>9}" for name in names)], cells)


def as_text(row: dict, config: EvaluateConfig) -> str:
    """Return one evaluation for the terminal."""
    k, names, everybody = config.cutoff, config.metrics, {"users": row["users"], **row["metrics"]}
    how, speed = row.get("method"), ""
    if not how:
        how = f"tokenizer {row['epoch'] or 'best'} of {row['prefix']}  {row['num_beams']} beams"
        how += ", real items only" if row["constrained"] else ""
        speed = f"{row['users_per_second']:,.0f} users/s, "
    return "\n".join([
        f"{row['model']}  {how}",
        f"{row['split']}: {row['users']:,} users, {speed}"
        f"coverage@{k} {row[f'coverage@{k}']:.1%}, invalid@{k} {row[f'invalid@{k}']:.2%}",
        metrics_table("target's training interactions", row["by_popularity"], names),
        metrics_table("items of history", row["by_history_length"], names),
        metrics_table("target after the last item, times in training", row["by_transition"], names),
        metrics_table("", {"everybody": everybody}, names).splitlines()[1],
        f"{row['file']}\n",
    ])  # fmt: skip


def join(config: EvaluateConfig) -> dict:
    """Join result files, write the ensemble's, and print each alone, the best alone and the ensemble."""
    files = list(map(Path, config.ensemble))
    results = read_comparable(files, config.cutoff)
    joined, target = ensemble(results, config.ensemble_rule), Path(config.output) / "ensemble_results.json"
    joined.save(target)
    alone = {str(file): result.metrics(config.metrics) for file, result in zip(files, results, strict=True)}
    best = max(alone, key=lambda file: alone[file][f"ndcg@{config.cutoff}"])
    last = {"best alone": alone[best], "ensemble": joined.metrics(config.metrics)}
    print(metrics_table(f"{len(joined.targets):,} users", alone | last, config.metrics), target, sep="\n")
    return {
        "rule": config.ensemble_rule,
        "files": alone,
        "best_alone": {"file": best, **alone[best]},
        "ensemble": last["ensemble"],
    }


def compare(config: EvaluateConfig) -> dict:
    """Print how much better the second result file is, with 95% intervals."""
    files = list(map(Path, config.compare))
    pair = read_comparable(files, config.cutoff)
    differences = paired_differences(*pair, config.metrics)
    intervals = bootstrap_over_users(differences, config.resamples, config.rand_seed)
    found = dict(zip(config.metrics, intervals, strict=True))
    first, second = (result.metrics(config.metrics) for result in pair)
    rows = [
        [
            *(f"{name:9}", f"{first[name]:7.4f}", f"{second[name]:7.4f}", f"{one.mean:+10.4f}"),
            *(f"{one.low:+.4f} .. {one.high:+.4f}", "clear" if one.is_clear else ""),
        ]
        for name, one in found.items()
    ]
    print(f"{len(differences):,} users, {config.resamples:,} bootstrap samples of them")
    print(text_table(["", "first", "second", "difference", f"{'95% interval':18}", ""], rows))
    return {
        "first": {"file": str(files[0]), **first},
        "second": {"file": str(files[1]), **second},
        "difference": {name: asdict(one) for name, one in found.items()},
    }


def main(argv: list[str] | None = None) -> None:
    """Evaluate; `argv` are the flags, by default the command line's."""
    config, _ = parse_config(EvaluateConfig, argv, "evaluate.py", __doc__)
    processes, device = join_processes(config.device)
    outcome: list | dict = []
    if config.model:
        paths = [resolve_winner(path) for path in as_list(config.model)]
        check_names(paths)
        for path in paths:
            run = run_around(path)
            if run and run.method:
                rows = [evaluate_baseline(run, config)] if processes.is_main_process else []
            else:
                rows = evaluate_model(path, config, processes, device)
            for row in rows:
                print(as_text(row, config))
                outcome.append(row)
    elif processes.is_main_process:
        outcome = join(config) if config.ensemble else compare(config)
    if processes.is_main_process:
        write_json(Path(config.output) / "evaluation.json", outcome)
    processes.end_training()


if __name__ == "__main__":
    run_command(main)
