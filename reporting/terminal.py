"""The report as text: a table of test metrics, and some users' recommendations in words."""

import shutil
import textwrap

from data.interactions import Interactions
from evaluation.metrics import parse_metric
from evaluation.run import Run


def metric_titles(names: list[str]) -> dict[str, str]:
    """Return {metric: title}, recall before NDCG, small cut-offs first: {"recall@5": "Recall@5", ...}."""
    ordered = sorted(names, key=lambda name: (parse_metric(name)[0] != "recall", parse_metric(name)[1]))
    return {name: name.replace("recall", "Recall").replace("ndcg", "NDCG") for name in ordered}


def metrics_table(rows: list[tuple[str, dict[str, float]]]) -> str:
    """Return named rows of metrics as an aligned table."""
    titles = metric_titles(list(rows[-1][1]))
    width = max(len(label) for label, _ in rows)
    lines = [f"{'test':{width}}  " + "  ".join(f"{title:>9}" for title in titles.values())]
    for label, metrics in rows:
        values = (f"{metrics[name]:9.4f}" if name in metrics else f"{'-':>9}" for name in titles)
        lines.append(f"{label:{width}}  " + "  ".join(values))
    return "\n".join(lines)


def recommendations(run: Run, interactions: Interactions, texts: dict[str, str], count: int) -> str:
    """Return `count` users, spread over all of them: history, the item that came next, and what was recommended."""
    results = run.users
    step = max(1, len(results.users) // max(1, count))
    rows = list(range(step // 2, len(results.users), step))[:count]
    row_of_user = {user: row for row, user in enumerate(interactions.user_names)}
    columns = min(120, shutil.get_terminal_size((100, 20)).columns)

    def line(mark: str, item: str) -> str:
        return textwrap.shorten(f"{mark} {texts[item]}", columns - 4, placeholder=" ...")

    blocks = []
    for row in rows:
        user, target, rank = results.users[row], results.targets[row], results.ranks[row]
        end = int(interactions.offsets[row_of_user[user] + 1]) - 1
        history = [interactions.item_names[item] for item in interactions.history(end, 5)]
        length = end - int(interactions.offsets[row_of_user[user]])
        items = list(dict.fromkeys(item for item in results.recommended[row] if item != "None"))[:5]
        hit = f" (recommended at rank {rank + 1})" if target in results.recommended[row] else None
        blocks.append(
            "\n".join(
                [
                    f"User {user}: {length} items, the last {len(history)}, newest last",
                    *(f"    {line('-', item)}" for item in history),
                    f"  came next{hit or ' (not among the recommended)'}",
                    f"    {line('-', target)}",
                    f"  recommended, best first, the first {len(items)} real items",
                    *(f"    {line('*' if item == target else '-', item)}" for item in items),
                ]
            )
        )
    return "\n\n".join(blocks)
