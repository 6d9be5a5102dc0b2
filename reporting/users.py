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
    cards = _Cards(data)
    return Section("Recommendations", lead, [f"{sentence}<div class='users'>{''.join(map(cards.user, rows))}</div>"])


def _spread(rows: np.ndarray, count: int) -> list[int]:
    """Return `count` of the rows, or all if there are fewer, evenly spread."""
    count = min(count, len(rows))
    return [int(rows[(2 * index + 1) * len(rows) // (2 * count)]) for index in range(count)]


class _Cards:
    """Makes a card for a user.

    Args:
        data: Of the report.
    """

    def __init__(self, data: ReportData):
        self.results, self.interactions, self.texts = data.run.user_results, data.interactions, data.texts
        self.codes = data.codes
        self.row_of_user = {user: row for row, user in enumerate(self.interactions.user_names)}
        self.row_of_item = {name: row for row, name in enumerate(self.interactions.item_names[1:])}

    def user(self, row: int) -> str:
        """Return the card of a row of the results."""
        name, target = self.results.users[row], self.results.targets[row]
        recommended = self.results.items[row][:RECOMMENDED]
        end = int(self.interactions.offsets[self.row_of_user[name] + 1]) - 1
        start = int(self.interactions.offsets[self.row_of_user[name]])
        history = [self.interactions.item_names[item] for item in self.interactions.history(end, HISTORY)]
        parts = [
            f"<h3>User {escape(name)}</h3><h4>had {end - start} items, the last {len(history)}, newest last</h4><ul>",
            *(self._item(item, target) for item in history),
            "</ul><h4>came next</h4><ul>",
            self._item(target, target),
            "</ul><h4>recommended, best first</h4><ol>",
            *(self._item(item, target, rank) for rank, item in enumerate(recommended, start=1)),
            "</ol>",
        ]
        return f"<div class='user'>{''.join(parts)}</div>"

    def _item(self, item: str, target: str, rank: int | None = None) -> str:
        number = f"<span class='rank'>{'✓ ' if rank and item == target else ''}{rank or '·'}</span>"
        if item not in self.row_of_item:
            return f"<li>{number}<span class='words'><small>a semantic ID that is no item's</small></span></li>"
        words = f"<span class='words'>{escape(short(self.texts[self.row_of_item[item]], 80))}</span>"
        mark = " class='hit'" if rank and item == target else ""
        return f"<li{mark}>{number}{words}{self._semantic_id(item, target)}</li>"

    def _semantic_id(self, item: str, target: str) -> str:
        if self.codes is None:
            return ""
        codes, of_target = (self.codes[self.row_of_item[name]].tolist() for name in (item, target))
        shared = next(
            (i for i, pair in enumerate(zip(codes, of_target, strict=True)) if pair[0] != pair[1]), len(codes)
        )
        dark, light = "·".join(map(str, codes[:shared])), "·".join(map(str, codes[shared:]))
        return f"<span class='id'>{f'<b>{dark}</b>' if dark else ''}{'·' if dark and light else ''}{light}</span>"
