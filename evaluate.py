"""Evaluate checkpoints with tokenizers, join result files into an ensemble, or compare two of them.

    python evaluate.py --model=ckpt/Sample/mtgrec_best_300                              as it was tested
    python evaluate.py --model=ckpt/Sample/pretrain_tau1/checkpoints/epoch_10 --sem_id_epochs=295:300 \\
        --num_beams=[10,50] --constrained=[false,true] --split=valid                    every combination
    python evaluate.py --ensemble=[test_results_295.json,test_results_300.json] --output=joined
    python evaluate.py --compare=[single/test_results_300.json,mtgrec/test_results_300.json]

Prints Recall, NDCG and MRR, the share of the items that are recommended to anybody (coverage), the share of generated
sequences that are no item (invalid), and the metrics by the target's popularity and by the history's length. Result
files per user and evaluation.json go to --output.
"""

import time
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from data.batching import Tokenization
from data.interactions import (
    Interactions,
    dataset_folder,
    load_interactions,
    split_positions,
    training_interactions,
)
from data.token_table import Vocabulary, check_identifiers, load_token_table, resolve_groups
from evaluation.metrics import METRICS, mean_metrics
from evaluation.predict import predict, write_results
from evaluation.results import Results, ensemble, groups_of, paired_bootstrap, read_comparable, read_results
from inference.model_folder import named_folder, read_settings
from model.recommender import find_model_folder, load_recommender
from utils.config import Epochs, expand_epochs, parse_config
from utils.errors import InputError
from utils.files import write_json
from utils.runtime import join_processes, run_command


@dataclass
class EvaluateConfig:
    """Settings of an evaluation; exactly one of model, ensemble and compare says what is done."""

    model: str | list[str] | None = None
    """Run folder, checkpoint in one, exported model folder, or <name>.winner.json; or a list of them."""
    ensemble: list[str] = field(default_factory=list)
    """Result files per user of the same users, to be joined into one ranking."""
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
    """Where the groups of the target's training interactions begin, after the group from 0 (as in the paper's Figure 5,
    whose text names the group below 20)."""
    length_edges: list[int] = field(default_factory=lambda: [5, 10, 20])
    """Where the groups of the history's length begin, after the group from 0."""
    resamples: int = 2000
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
        for name in ("popularity_edges", "length_edges"):
            edges = getattr(self, name)
            if edges != sorted(set(edges)) or min(edges, default=1) < 1:
                found.append(f"{name}={edges} must rise from 1")
        for name in ("batch_size", "resamples"):
            if getattr(self, name) < 1:
                found.append(f"{name}={getattr(self, name)} must be at least 1")
        return found

    @property
    def metrics(self) -> list[str]:
        """Every metric at every cut-off, such as ndcg@5."""
        return [f"{metric}@{k}" for metric in METRICS for k in self.topk]


def as_list(value: object) -> list:
    """Return a flag that takes one value or several as a list."""
    return value if isinstance(value, list) else [value]


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


def evaluate_model(path: Path, config: EvaluateConfig, processes: Accelerator, device: torch.device) -> list[dict]:
    """Evaluate a model with every combination of tokenizer, beams and constraint; write a result file for each.

    Returns:
        A row of settings and outcomes for each.
    """
    weights, settings = find_model_folder(path), read_settings(path, config.data_dir)
    recommender = load_recommender(weights).eval().to(device)
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
        check_identifiers(recommender.semantic_ids_sha256, table, path, remedy)
    tokenization = Tokenization(interactions, table, settings["max_item_seq_len"])
    positions = split_positions(interactions.offsets, config.split)
    if len(positions) == 0:
        raise InputError(f"{folder}: no user has enough items for a {config.split} example")
    rows = []
    for group, beams, constrained in product(
        range(len(groups)), as_list(config.num_beams), as_list(config.constrained)
    ):
        started = time.perf_counter()
        predictions = predict(
            *(recommender, tokenization, positions, group, max(config.topk), beams, config.batch_size, processes),
            constrained,
        )
        seconds = time.perf_counter() - started
        if not processes.is_main_process:
            continue
        name = f"{short_name(path)}_{table.labels[group]}_beams{beams}{'_constrained' if constrained else ''}"
        file = Path(config.output) / f"{config.split}_results_{name}.json"
        write_results(file, predictions, tokenization)
        results = read_results(file)
        row = {
            **{"model": str(path), "prefix": groups[group].prefix, "epoch": groups[group].epoch},
            **{"split": config.split, "num_beams": beams, "constrained": constrained, "file": str(file)},
            **{"users": len(positions), "users_per_second": len(positions) / seconds},
            **summary(results, interactions, positions, config),
        }
        rows.append(row)
        print(as_text(row, config))
    return rows


def summary(results: Results, interactions: Interactions, positions: np.ndarray, config: EvaluateConfig) -> dict:
    """Return metrics, coverage, share of invalid sequences, and the metrics of groups of users."""
    ranks, k = results.ranks(), max(config.topk)
    counts = np.bincount(training_interactions(interactions), minlength=interactions.num_items + 1)
    popularity = counts[interactions.items[positions]]
    lengths = positions - interactions.offsets[interactions.users_of(positions)]

    def by(values: np.ndarray, edges: list[int]) -> dict[str, dict]:
        groups = groups_of(values, edges).items()
        return {
            name: {"users": int(members.sum()), **mean_metrics(ranks[members], config.metrics)}
            for name, members in groups
        }

    return {
        "metrics": mean_metrics(ranks, config.metrics),
        f"coverage@{k}": results.coverage(k, interactions.num_items),
        f"invalid@{k}": results.invalid_share(k),
        "by_popularity": by(popularity, config.popularity_edges),
        "by_history_length": by(lengths, config.length_edges),
    }


def metrics_lines(rows: list[tuple[str, dict]], first: str, names: list[str]) -> list[str]:
    """Return a table of named rows of metrics, with the number of users where rows have it."""
    width = max(len(first), *(len(label) for label, _ in rows))
    users = any("users" in values for _, values in rows)
    lines = [f"{first:{width}}  {'users  ' if users else ''}" + "  ".join(f"{name:>9}" for name in names)]
    for label, values in rows:
        count = f"{values['users']:>5}  " if users else ""
        lines.append(f"{label:{width}}  {count}" + "  ".join(f"{values[name]:9.4f}" for name in names))
    return lines


def as_text(row: dict, config: EvaluateConfig) -> str:
    """Return one evaluation for the terminal."""
    k = max(config.topk)
    lines = [
        f"{row['model']}  tokenizer {row['epoch'] or 'best'} of {row['prefix']}  {row['num_beams']} beams"
        f"{', real items only' if row['constrained'] else ''}",
        f"{row['split']}: {row['users']:,} users, {row['users_per_second']:,.0f} users/s, "
        f"coverage@{k} {row[f'coverage@{k}']:.1%}, invalid@{k} {row[f'invalid@{k}']:.2%}",
    ]
    for title, key in (
        ("target's training interactions", "by_popularity"),
        ("items of history", "by_history_length"),
    ):
        lines += metrics_lines(list(row[key].items()), title, config.metrics)
    everybody = {"users": row["users"], **row["metrics"]}
    return "\n".join([*lines, *metrics_lines([("everybody", everybody)], "", config.metrics)[1:], f"{row['file']}\n"])


def join(config: EvaluateConfig) -> dict:
    """Join result files, write the ensemble's, and print each alone, the best alone and the ensemble."""
    files = [Path(file) for file in config.ensemble]
    results = read_comparable(files, max(config.topk))
    joined = ensemble(results)
    target = Path(config.output) / "ensemble_results.json"
    joined.save(target)
    alone = [mean_metrics(result.ranks(), config.metrics) for result in results]
    best = max(range(len(alone)), key=lambda index: alone[index][f"ndcg@{max(config.topk)}"])
    rows = [(str(file), metrics) for file, metrics in zip(files, alone, strict=True)]
    rows += [("best alone", alone[best]), ("ensemble", mean_metrics(joined.ranks(), config.metrics))]
    print("\n".join([*metrics_lines(rows, f"{len(joined.targets):,} users", config.metrics), str(target)]))
    return {"files": dict(rows[:-2]), "best_alone": {"file": str(files[best]), **alone[best]}, "ensemble": rows[-1][1]}


def compare(config: EvaluateConfig) -> dict:
    """Print how much better the second result file is, with 95% intervals."""
    files = [Path(file) for file in config.compare]
    first, second = results = read_comparable(files, max(config.topk))
    differences = paired_bootstrap(first, second, config.metrics, config.resamples, config.rand_seed)
    means = [mean_metrics(result.ranks(), config.metrics) for result in results]
    print(f"{len(first.targets):,} users, {config.resamples:,} bootstrap samples of them")
    print(f"{'':9}  {'first':>7}  {'second':>7}  {'difference':>10}  95% interval")
    for name, difference in differences.items():
        clear = "  clear" if difference.low > 0 or difference.high < 0 else ""
        print(
            f"{name:9}  {means[0][name]:7.4f}  {means[1][name]:7.4f}  {difference.mean:+10.4f}  "
            f"{difference.low:+.4f} .. {difference.high:+.4f}{clear}"
        )
    return {
        "first": {"file": str(files[0]), **means[0]},
        "second": {"file": str(files[1]), **means[1]},
        "difference": {name: asdict(difference) for name, difference in differences.items()},
    }


def main(argv: list[str] | None = None) -> None:
    """Evaluate; `argv` are the flags, by default the command line's."""
    config, _ = parse_config(EvaluateConfig, argv, "evaluate.py", __doc__)
    processes, device = join_processes(config.device)
    if config.model:
        paths = [named_folder(path) for path in as_list(config.model)]
        check_names(paths)
        outcome: object = [row for path in paths for row in evaluate_model(path, config, processes, device)]
    elif processes.is_main_process:
        outcome = join(config) if config.ensemble else compare(config)
    if processes.is_main_process:
        write_json(Path(config.output) / "evaluation.json", outcome)
    processes.end_training()


if __name__ == "__main__":
    run_command(main)
