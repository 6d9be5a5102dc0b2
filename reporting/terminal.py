"""The report as text: a table of test metrics, and some users' recommendations in words."""

import shutil
import textwrap

from data.interactions import Interactions
from evaluation.metrics import parse_metric
from evaluation.run import Run
from utils.text_table import text_table


def metric_titles(names: list[str]) -> dict[str, str]:
    """Return {metric: title}, recall before NDCG, small cut-offs first: {"recall@5": "Recall@5", ...}."""
    ordered = sorted(names, key=lambda name: (parse_metric(name)[0] != "recall", parse_metric(name)[1]))
    return {name: name.replace("recall", "Recall").replace("ndcg", "NDCG") for name in ordered}


def metrics_table(rows: list[tuple[str, dict[str, float]]]) -> str:
    """Return named rows of metrics as an aligned table."""
    titles = metric_titles(list(rows[-1][1]))
    cells = [
        [label, *(f"{metrics[name]:.4f}" if name in metrics else "-" for name in titles)] for label, metrics in rows
    ]
    return text_table(["test", *(f"{title:>9}" for title in titles.values())], cells)


def recommendations(run: Run, interactions: Interactions, texts: dict[str, str], count: int) -> str:
    """Return `count` users, spread over all of them: history, the item that came next, and what was recommended."""
    results, ranks = run.user_results, run.user_results.ranks()
    step = max(1, len(results.users) // max(1, count))
    rows = list(range(step // 2, len(results.users), step))[:count]
    row_of_user = {user: row for row, user in enumerate(interactions.user_names)}
    columns = min(120, shutil.get_terminal_size((100, 20)).columns)

    def line(mark: str, item: str) -> str:
        return textwrap.shorten(f"{mark} {texts[item]}", columns - 4, placeholder=" ...")

    blocks = []
    for row in rows:
        user, target, rank = results.users[row], results.targets[row], ranks[row]
        end = int(interactions.offsets[row_of_user[user] + 1]) - 1
        history = [interactions.item_names[item] for item in interactions.history(end, 5)]
        length = end - int(interactions.offsets[row_of_user[user]])
        items = list(dict.fromkeys(item for item in results.items[row] if item is not None))[:5]
        hit = f"recommended at rank {rank + 1}" if rank < results.k else "not among the recommended"
        blocks.append(
            "\n".join(
                [
                    f"User {user}: {length} items, the last {len(history)}, newest last",
                    *(f"    {line('-', item)}" for item in history),
                    f"  came next ({hit})",
                    f"    {line('-', target)}",
                    f"  recommended, best first, the first {len(items)} real items",
                    *(f"    {line('*' if item == target else '-', item)}" for item in items),
                ]
            )
        )
    return "\n\n".join(blocks)
