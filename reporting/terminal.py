"""The report as text: a table of test metrics, and some users' recommendations in words."""

import shutil
import textwrap

from evaluation.metrics import parse_metric
from reporting.report_data import ReportData
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


def recommendations(data: ReportData, count: int) -> str:
    """Return `count` users, spread over all of them: history, the item that came next, and what was recommended."""
    results = data.run.user_results
    ranks, step = results.ranks(), max(1, len(results.users) // max(1, count))
    columns = min(120, shutil.get_terminal_size((100, 20)).columns)

    def line(item: str, mark: str = "-") -> str:
        return "    " + textwrap.shorten(f"{mark} {data.text(item)}", columns - 4, placeholder=" ...")

    blocks = []
    for row in list(range(step // 2, len(results.users), step))[:count]:
        user, target, rank = results.users[row], results.targets[row], ranks[row]
        history, length = data.history(user, 5)
        items = list(dict.fromkeys(item for item in results.items[row] if item is not None))[:5]
        hit = f"recommended at rank {rank + 1}" if rank < results.k else "not among the recommended"
        lines = [
            f"User {user}: {length} items, the last {len(history)}, newest last",
            *map(line, history),
            f"  came next ({hit})",
            line(target),
            f"  recommended, best first, the first {len(items)} real items",
            *(line(item, "*" if item == target else "-") for item in items),
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
