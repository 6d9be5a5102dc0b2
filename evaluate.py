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

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from evaluation.compare import bootstrap_over_users, paired_differences
from evaluation.config import EvaluateConfig, as_list
from evaluation.models import check_names, evaluate_model
from evaluation.results import ensemble, read_comparable
from evaluation.run import resolve_winner
from inference.model_folder import read_settings
from utils.config import parse_config
from utils.files import write_json
from utils.runtime import join_processes, run_command
from utils.text_table import text_table


def metrics_table(rows: Sequence[tuple[str, dict]], title: str, names: list[str]) -> list[str]:
    """Return the lines of a table of named rows of metrics, with the number of users where rows have it."""
    users = ["users"] if "users" in rows[0][1] else []
    cells = [
        [label, *(f"{values[name]:>5}" for name in users), *(f"{values[name]:9.4f}" for name in names)]
        for label, values in rows
    ]
    return text_table([title, *users, *(f"{name:>9}" for name in names)], cells).splitlines()


def as_text(row: dict, config: EvaluateConfig) -> str:
    """Return one evaluation for the terminal."""
    k = config.cutoff
    everybody = [("everybody", {"users": row["users"], **row["metrics"]})]
    lines = [
        f"{row['model']}  tokenizer {row['epoch'] or 'best'} of {row['prefix']}  {row['num_beams']} beams"
        f"{', real items only' if row['constrained'] else ''}",
        f"{row['split']}: {row['users']:,} users, {row['users_per_second']:,.0f} users/s, "
        f"coverage@{k} {row[f'coverage@{k}']:.1%}, invalid@{k} {row[f'invalid@{k}']:.2%}",
        *metrics_table(list(row["by_popularity"].items()), "target's training interactions", config.metrics),
        *metrics_table(list(row["by_history_length"].items()), "items of history", config.metrics),
        *metrics_table(everybody, "", config.metrics)[1:],
        f"{row['file']}\n",
    ]
    return "\n".join(lines)


def join(config: EvaluateConfig) -> dict:
    """Join result files, write the ensemble's, and print each alone, the best alone and the ensemble."""
    files = [Path(file) for file in config.ensemble]
    results = read_comparable(files, config.cutoff)
    joined = ensemble(results)
    target = Path(config.output) / "ensemble_results.json"
    joined.save(target)
    alone = [result.metrics(config.metrics) for result in results]
    best = max(range(len(alone)), key=lambda index: alone[index][f"ndcg@{config.cutoff}"])
    of_ensemble = joined.metrics(config.metrics)
    rows = [*zip(map(str, files), alone, strict=True), ("best alone", alone[best]), ("ensemble", of_ensemble)]
    print("\n".join([*metrics_table(rows, f"{len(joined.targets):,} users", config.metrics), str(target)]))
    return {
        "files": dict(rows[:-2]),
        "best_alone": {"file": str(files[best]), **alone[best]},
        "ensemble": of_ensemble,
    }


def compare(config: EvaluateConfig) -> dict:
    """Print how much better the second result file is, with 95% intervals."""
    files = [Path(file) for file in config.compare]
    first, second = read_comparable(files, config.cutoff)
    differences = paired_differences(first, second, config.metrics)
    intervals = bootstrap_over_users(differences, config.resamples, config.rand_seed)
    found = dict(zip(config.metrics, intervals, strict=True))
    means = [result.metrics(config.metrics) for result in (first, second)]
    rows = [
        [
            *(f"{name:9}", f"{means[0][name]:7.4f}", f"{means[1][name]:7.4f}", f"{one.mean:+10.4f}"),
            *(f"{one.low:+.4f} .. {one.high:+.4f}", "clear" if one.is_clear else ""),
        ]
        for name, one in found.items()
    ]
    print(f"{len(first.targets):,} users, {config.resamples:,} bootstrap samples of them")
    print(text_table(["", "first", "second", "difference", f"{'95% interval':18}", ""], rows))
    return {
        "first": {"file": str(files[0]), **means[0]},
        "second": {"file": str(files[1]), **means[1]},
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
            for row in evaluate_model(path, read_settings(path, config.data_dir), config, processes, device):
                print(as_text(row, config))
                outcome.append(row)
    elif processes.is_main_process:
        outcome = join(config) if config.ensemble else compare(config)
    if processes.is_main_process:
        write_json(Path(config.output) / "evaluation.json", outcome)
    processes.end_training()


if __name__ == "__main__":
    run_command(main)
