"""Some users: what they had, what they took next, and what was recommended, in words and semantic IDs."""

from html import escape

import numpy as np

from reporting.page import Section, paragraph
from reporting.pictures import short
from reporting.report_data import ReportData

USERS, HISTORY, RECOMMENDED = 10, 8, 10


def users_section(data: ReportData) -> Section:
    """Return ten users, half of them hits where there are as many."""
    run, file = data.run, data.run.user_results_file
    lead = (
        "Ten users: five (or all) whose next item was recommended (framed), others for whom it was not, spread evenly "
        "over all such users. Numbers are semantic IDs; dark are the codes, from the first on, that an item shares "
        "with the one that came next: the longer, the closer."
    )
    if not file.is_file():
        return Section("Recommendations", lead, [paragraph(f"The result file {file.name} is no longer there.")])
    hit = run.user_results.ranks() < run.user_results.k
    rows = _spread(np.flatnonzero(hit), USERS // 2)
    rows += _spread(np.flatnonzero(~hit), USERS - len(rows))
    sentence = paragraph(
        f"Of all users, {hit.mean():.1%} got the item that came next among their {run.user_results.k}."
    )
    cards = "".join(_card(data, row) for row in rows)
    return Section("Recommendations", lead, [f"{sentence}<div class='users'>{cards}</div>"])


def _spread(rows: np.ndarray, count: int) -> list[int]:
    """Return `count` of the rows, or all if there are fewer, evenly spread."""
    count = min(count, len(rows))
    return [int(rows[(2 * index + 1) * len(rows) // (2 * count)]) for index in range(count)]


def _card(data: ReportData, row: int) -> str:
    """Return the card of the user in a row of the results."""
    results = data.run.user_results
    name, target = results.users[row], results.targets[row]
    history, length = data.history(name, HISTORY)
    parts = [
        f"<h3>User {escape(name)}</h3><h4>had {length} items, the last {len(history)}, newest last</h4><ul>",
        *(_item(data, item, target) for item in history),
        "</ul><h4>came next</h4><ul>",
        _item(data, target, target),
        "</ul><h4>recommended, best first</h4><ol>",
        *(_item(data, item, target, rank) for rank, item in enumerate(results.items[row][:RECOMMENDED], start=1)),
        "</ol>",
    ]
    return f"<div class='user'>{''.join(parts)}</div>"


def _item(data: ReportData, item: str | None, target: str, rank: int | None = None) -> str:
    hit = rank and item == target
    number = f"<span class='rank'>{'✓ ' if hit else ''}{rank or '·'}</span>"
    if item not in data.row_of_item:
        return f"<li>{number}<span class='words'><small>a semantic ID that is no item's</small></span></li>"
    words = f"<span class='words'>{escape(short(data.text(item), 80))}</span>"
    mark = " class='hit'" if hit else ""
    return f"<li{mark}>{number}{words}{_semantic_id(data, item, target)}</li>"


def _semantic_id(data: ReportData, item: str, target: str) -> str:
    if data.codes is None:
        return ""
    codes, of_target = (data.codes[data.row_of_item[name]] for name in (item, target))
    shared = int(np.cumprod(codes == of_target).sum())
    dark, light = "·".join(map(str, codes[:shared])), "·".join(map(str, codes[shared:]))
    return f"<span class='id'>{f'<b>{dark}</b>' if dark else ''}{'·' if dark and light else ''}{light}</span>"
