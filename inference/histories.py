"""Whom to recommend to: histories from the command line, from files, or from the dataset."""

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.interactions import Interactions
from inference.catalogue import Catalogue
from utils.errors import InputError

NAMED = 5  # unknown names that a message spells out


@dataclass
class Request:
    """One recommendation that is wanted.

    Attributes:
        user: Name, "" for a history without a user.
        user_id: Id in id_mapping.json, 0 for a user that is not there.
        history: int [items], item ids of the catalogue, newest last.
    """

    user: str
    user_id: int
    history: np.ndarray


def names_in(text: str) -> list[str]:
    """Return the names of a list such as "item1, item2"."""
    return [name.strip() for name in text.split(",") if name.strip()]


def near_matches(name: str, names: Iterable[str]) -> str:
    """Return " (did you mean A, B?)", or nothing where no name is near."""
    near = difflib.get_close_matches(name, list(names), n=3)
    return f" (did you mean {', '.join(near)}?)" if near else ""


def known_items(history: Sequence[str], catalogue: Catalogue) -> tuple[np.ndarray, list[str]]:
    """Return the ids of a history's items and the names that the catalogue lacks."""
    known = [catalogue.ids[name] for name in history if name in catalogue.ids]
    return np.asarray(known, dtype=np.int64), [name for name in history if name not in catalogue.ids]


def unknown_items_notes(skipped: dict[str, list[str]], catalogue: Catalogue) -> list[str]:
    """Say which items are skipped, with near matches, for the first users and the others in one line."""
    notes = []
    for user, unknown in list(skipped.items())[:NAMED]:
        distinct = list(dict.fromkeys(unknown))
        named = [f"{name!r}{near_matches(name, catalogue.ids)}" for name in distinct[:NAMED]]
        more = f" and {len(distinct) - NAMED} more" if len(distinct) > NAMED else ""
        notes.append(f"{user + ': ' if user else ''}skipped, not in the catalogue: {', '.join(named)}{more}")
    if len(skipped) > NAMED:
        notes.append(f"items of {len(skipped) - NAMED:,} more users are skipped, not in the catalogue")
    return notes


def requests_of_users(users: list[str], interactions: Interactions, catalogue: Catalogue) -> list[Request]:
    """Return the users' whole item sequences as histories.

    Raises:
        InputError: A user does not exist; names near matches.
    """
    row_of = {user: row for row, user in enumerate(interactions.user_names)}
    unknown = [user for user in users if user not in row_of]
    if unknown:
        named = [f"{user!r}{near_matches(user, row_of)}" for user in unknown[:NAMED]]
        raise InputError(f"{len(unknown)} users are not in the dataset: {', '.join(named)}")
    to_catalogue = np.asarray([0, *(catalogue.ids.get(name, 0) for name in interactions.item_names[1:])])
    requests = []
    for user in users:
        row = row_of[user]
        history = to_catalogue[interactions.items[interactions.offsets[row] : interactions.offsets[row + 1]]]
        requests.append(Request(user, int(interactions.user_ids[row]), history[history > 0]))
    return requests


def read_users_file(file: Path) -> list[tuple[str, list[str] | None]]:
    """Read a user per line, or JSON {"user": name, "history": [item, ...]} per line; history is None where absent.

    Raises:
        InputError: A line is neither, names a user twice, or the file has none.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--users_file={file} cannot be read: {error}") from None
    rows: dict[str, list[str] | None] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line) if line.lstrip().startswith("{") else {"user": line.strip()}
            user, history = row["user"], row.get("history")
            items = [] if history is None else history
            if not isinstance(items, list) or not all(isinstance(name, str) for name in [user, *items]):
                raise TypeError
        except (json.JSONDecodeError, KeyError, TypeError):
            raise InputError(
                f'{file} line {number} is neither a user nor {{"user": "name", "history": ["item", ...]}}'
            ) from None
        if user in rows:
            raise InputError(f"{file} line {number} names the user {user!r} a second time")
        rows[user] = history
    if not rows:
        raise InputError(f"{file} names no user")
    return list(rows.items())
