"""Show what a run came to: its test metrics beside baselines, and some users' recommendations in words.

python report.py ckpt/Sample/mtgrec.winner.json --baseline=ckpt/Sample/single.winner.json --users=3
python report.py ckpt/Sample/finetune_best_300
"""

import shutil
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from data.interactions import Interactions, dataset_folder, item_texts, load_interactions
from data.popularity import popularity_recommendations
from data.token_table import group_labels
from utils.config import parse_config
from utils.errors import InputError
from utils.files import read_json
from utils.metrics import mean_metrics, parse_metric, target_ranks
from utils.run_folder import RESULTS_FILE, read_config, results_folder_of
from utils.runtime import run_command


@dataclass
class ReportConfig:
    """Settings of the report; the run is given without a flag too."""

    run: str = ""
    """Run folder, or a <name>.winner.json that finetune.sh wrote."""
    baseline: str = ""
    """The same of the run to compare with, usually one tokenizer without pre-training."""
    users: int = 3
    """Users whose recommendations are shown."""

    def problems(self) -> list[str]:
        """Name everything that is wrong with the settings."""
        found = [] if self.run else ["name a run folder: python report.py ckpt/<dataset>/<run>"]
        return found + ([f"users={self.users} must not be negative"] if self.users < 0 else [])


@dataclass
class Outcome:
    """A run's test results with its tokenizer that is best on validation.

    Attributes:
        folder: The run's folder.
        settings: What it was made with.
        test: {metric: mean over users}.
        file: Its result file per user.
    """

    folder: Path
    settings: dict
    test: dict[str, float]
    file: Path


def load_outcome(path: Path) -> Outcome:
    """Read a run folder, or the winner that a `.winner.json` names.

    Raises:
        InputError: It holds no results.
    """
    folder = Path(read_json(path)["winner"]["run"]) if path.is_file() else path
    if not (folder / RESULTS_FILE).is_file():
        raise InputError(f"{folder} holds no finished run ({RESULTS_FILE} is not there)")
    settings, rows = read_config(folder), read_json(folder / RESULTS_FILE)["per_tokenizer"]
    labels = group_labels([(row["prefix"], row["epoch"]) for row in rows])
    best = max(range(len(rows)), key=lambda index: rows[index]["valid"][settings["val_metric"]])
    file = results_folder_of(folder, settings["results_dir"]) / f"test_results_{labels[best]}.json"
    return Outcome(folder, settings, rows[best]["test"], file)


def metrics_table(rows: list[tuple[str, dict[str, float]]]) -> str:
    """Return named rows of metrics as an aligned table, recall before NDCG."""
    names = sorted(rows[-1][1], key=lambda name: (parse_metric(name)[0] != "recall", parse_metric(name)[1]))
    titles = [name.replace("recall", "Recall").replace("ndcg", "NDCG") for name in names]
    width = max(len(label) for label, _ in rows)
    lines = [f"{'test':{width}}  " + "  ".join(f"{title:>9}" for title in titles)]
    lines += [f"{label:{width}}  " + "  ".join(f"{metrics[name]:9.4f}" for name in names) for label, metrics in rows]
    return "\n".join(lines)


def recommendations(outcome: Outcome, interactions: Interactions, texts: dict[str, str], count: int) -> str:
    """Return `count` users, spread over all of them: history, the item that came next, and what was recommended."""
    results = read_json(outcome.file)
    step = max(1, len(results["users"]) // max(1, count))
    rows = list(range(step // 2, len(results["users"]), step))[:count]
    row_of_user = {user: row for row, user in enumerate(interactions.user_names)}
    columns = min(120, shutil.get_terminal_size((100, 20)).columns)

    def line(mark: str, item: str) -> str:
        return textwrap.shorten(f"{mark} {texts[item]}", columns - 4, placeholder=" ...")

    blocks = []
    for row in rows:
        user, target = results["users"][row], results["label_ids"][row]
        end = int(interactions.offsets[row_of_user[user] + 1]) - 1
        history = [interactions.item_names[item] for item in interactions.history(end, 5)]
        length = end - int(interactions.offsets[row_of_user[user]])
        items = list(dict.fromkeys(item for item in results["pred_ids"][row] if item != "None"))[:5]
        hit = results["pred_ids"][row].index(target) + 1 if target in results["pred_ids"][row] else None
        blocks.append(
            "\n".join(
                [
                    f"User {user}: {length} items, the last {len(history)}, newest last",
                    *(f"    {line('-', item)}" for item in history),
                    "  came next" + (f" (recommended at rank {hit})" if hit else " (not among the recommended)"),
                    f"    {line('-', target)}",
                    f"  recommended, best first, the first {len(items)} real items",
                    *(f"    {line('*' if item == target else '-', item)}" for item in items),
                ]
            )
        )
    return "\n\n".join(blocks)


def main(argv: list[str] | None = None) -> None:
    """Print the report; `argv` are the arguments, by default the command line's."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and not argv[0].startswith("-"):
        argv[0] = f"--run={argv[0]}"
    config, _ = parse_config(ReportConfig, argv, "report.py", __doc__)
    outcome = load_outcome(Path(config.run))
    folder = dataset_folder(outcome.settings["data_dir"], outcome.settings["dataset"])
    interactions = load_interactions(folder)
    names = list(outcome.test)
    items, targets = popularity_recommendations(interactions, "test", max(parse_metric(name)[1] for name in names))
    rows = [("Most popular items", mean_metrics(target_ranks(items, targets), names))]
    if config.baseline:
        rows.append(("One tokenizer, no pre-training", load_outcome(Path(config.baseline)).test))
    rows.append((f"MTGRec ({outcome.folder.name})" if config.baseline else outcome.folder.name, outcome.test))
    print(f"{outcome.settings['dataset']}: {len(targets):,} test users\n")
    print(metrics_table(rows))
    if config.users:
        texts = dict(zip(interactions.item_names[1:], item_texts(folder, interactions.item_names), strict=True))
        print("\n" + recommendations(outcome, interactions, texts, config.users))
    print(f"\nrun: {outcome.folder}\nper user: {outcome.file}")


if __name__ == "__main__":
    run_command(main)
