"""Some users: what they had, what they took next, and what was recommended, in words and semantic IDs."""

from typing import Any

import numpy as np

from reporting.page import PIECES, Section, section
from reporting.pictures import short
from reporting.report_data import ReportData

USERS, HISTORY, RECOMMENDED = 10, 8, 10


def users_section(data: ReportData) -> Section:
    """Return ten users, half of them hits where there are as many."""
    run, file = data.run, data.run.user_results_file
    if not file.is_file():
        return section("Recommendations", [f"The result file {file.name} is no longer there."])
    hit = run.user_results.ranks() < run.user_results.k
    rows = _spread(np.flatnonzero(hit), USERS // 2)
    rows += _spread(np.flatnonzero(~hit), USERS - len(rows))
    sentence = f"Of all users, {hit.mean():.1%} got the item that came next among their {run.user_results.k}."
    return section("Recommendations", [sentence, PIECES.users([_card(data, row) for row in rows])])


def _spread(rows: np.ndarray, count: int) -> list[int]:
    """Return `count` of the rows, or all if there are fewer, evenly spread."""
    count = min(count, len(rows))
    return [int(rows[(2 * index + 1) * len(rows) // (2 * count)]) for index in range(count)]


def _card(data: ReportData, row: int) -> dict[str, Any]:
    """Return what the card of the user in a row of the results shows."""
    results = data.run.user_results
    name, target = results.users[row], results.targets[row]
    history, length = data.history(name, HISTORY)
    recommended = enumerate(results.items[row][:RECOMMENDED], start=1)
    return {
        "name": name,
        "length": length,
        "history": [_item(data, item, target) for item in history],
        "target": _item(data, target, target),
        "recommended": [_item(data, item, target, rank) for rank, item in recommended],
    }


def _item(data: ReportData, item: str | None, target: str, rank: int | None = None) -> dict[str, Any]:
    """Return an item's words, and its codes: those that it shares with the target from the first on, and the rest."""
    found = {"rank": rank, "hit": rank and item == target, "words": None, "shared": "", "rest": ""}
    if item in data.row_of_item:
        found["words"] = short(data.text(item), 80)
        if data.codes is not None:
            codes, of_target = (data.codes[data.row_of_item[name]] for name in (item, target))
            shared = int(np.cumprod(codes == of_target).sum())
            found["shared"], found["rest"] = "·".join(map(str, codes[:shared])), "·".join(map(str, codes[shared:]))
    return found
