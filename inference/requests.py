"""Whom to recommend to, from the command line, files or the dataset, and the file of what they get.

It is JSON lines, CSV or Parquet, and written in shards, so that an interruption costs little.
"""

import difflib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np

from data.interactions import Interactions, dataset_folder, load_interactions
from data.readers import literal, name_of, parse_line
from inference.model_folder import Catalogue
from inference.recommend import RecommendationModel, Recommendations
from utils.errors import InputError
from utils.files import atomic_path

SEARCHED = 20_000  # names among which near ones are looked for; of more, one search takes over a second
NAMED = 5  # unknown names that a message spells out
FORMATS = {".jsonl": "", ".csv": "csv, header", ".parquet": "parquet"}  # of the output, with DuckDB's words
ROWS = """
    SELECT "user", unnest(range(1, len(items) + 1)) AS rank, unnest(items) AS item, unnest(scores) AS score, source
    FROM read_json(?, format = 'newline_delimited', hive_partitioning = false, columns = {
        user: 'VARCHAR', items: 'VARCHAR[]', scores: 'DOUBLE[]', source: 'VARCHAR'})"""


@dataclass
class Request:
    """One recommendation that is wanted."""

    user: str  # "" for a history without a user
    user_id: int  # in id_mapping.json, 0 for a user that is not there
    history: np.ndarray  # int [items], item ids of the catalogue, newest last
    unknown: list[str]  # names of its history that the catalogue lacks


def find_requests(
    model: RecommendationModel, users: str, history: str, users_file: str, all_users: bool
) -> list[Request]:
    """Return whom to recommend to, with their histories; the arguments are recommend.py's flags, one of which is given.

    Whoever brings a history is taken for somebody new, also under the name of a user of the dataset.

    Raises InputError where a history has names and none is known: to take it for an empty one would hide a mistake.
    """
    catalogue, settings = model.catalogue, model.settings
    rows: list[tuple[str, list[str] | None]] = []  # users and histories; None: the dataset's
    if history:
        rows = [("", names_in(history, catalogue.ids))]
    elif users_file:
        rows = read_users_file(Path(users_file))
    of_dataset = iter(())
    if not rows or any(items is None for _, items in rows):
        interactions = load_interactions(dataset_folder(settings["data_dir"], settings["dataset"]))
        if not rows:
            everybody = list(interactions.user_names)
            rows = [(user, None) for user in (everybody if all_users else names_in(users, set(everybody)))]
            if not rows:
                raise InputError(f"--users={users} names no user")
        of_dataset_users = [user for user, items in rows if items is None]
        of_dataset = iter(DatasetUsers(interactions, catalogue).requests(of_dataset_users))
    found = [next(of_dataset) if items is None else Request(user, 0, *catalogue.known(items)) for user, items in rows]
    lost = [request for request in found if request.unknown and not len(request.history)]
    if lost and not all_users:
        raise InputError(
            f"nothing is known of {len(lost):,} of {len(found):,} histories: "
            f"{'; '.join(unknown_items_notes(lost, catalogue))}; an empty history, [], gets the most popular items"
        )
    return found


def names_in(text: str, known: Collection[str]) -> list[str]:
    """Return the names of a list such as "item1, item2", or of "[item1, item2]" where no name has the brackets.

    Raises InputError where a part of the text is one of the known names and has commas itself.
    """

    def split(whole: str) -> list[str]:
        return [part.strip() for part in whole.split(",")]

    parts, text = split(text), text.strip()
    inner = split(text[1:-1]) if text[:1] == "[" and text[-1:] == "]" else parts
    given = f",{','.join(parts)},,{','.join(inner)},"
    for name in known:
        if "," in name and f",{','.join(split(name))}," in given:
            raise InputError(
                f"{name!r} is one name with commas, which separate names here; write it into a --users_file, as a user "
                'or in {"user": "name", "history": ["item", ...]}'
            )
    return [part for part in (parts if parts[0] in known or parts[-1] in known else inner) if part]


def near_matches(name: str, names: Collection[str]) -> str:
    """Return " (did you mean A, B?)", or nothing where no name is near, or where there are too many to look at."""
    if len(names) > SEARCHED:
        return ""
    near = difflib.get_close_matches(name, list(names), n=3)
    return f" (did you mean {', '.join(near)}?)" if near else ""


def unknown_items_notes(requests: list[Request], catalogue: Catalogue) -> list[str]:
    """Say which items are skipped, with near matches, for the first users and the others in one line."""
    notes, skipping = [], [request for request in requests if request.unknown]
    for request in skipping[:NAMED]:
        distinct = list(dict.fromkeys(request.unknown))
        named = [f"{name!r}{near_matches(name, catalogue.ids)}" for name in distinct[:NAMED]]
        more = f" and {len(distinct) - NAMED} more" if len(distinct) > NAMED else ""
        whose = f"{request.user}: " if request.user else ""
        notes.append(f"{whose}skipped, not in the catalogue: {', '.join(named)}{more}")
    if len(skipping) > NAMED:
        notes.append(f"items of {len(skipping) - NAMED:,} more users are skipped, not in the catalogue")
    return notes


class DatasetUsers:
    """The users of a dataset, whose whole item sequences are histories."""

    def __init__(self, interactions: Interactions, catalogue: Catalogue):
        self.interactions = interactions
        self.row_of = {user: row for row, user in enumerate(interactions.user_names)}
        known = (catalogue.ids.get(name, 0) for name in interactions.item_names[1:])
        self.to_catalogue = np.asarray([0, *known])  # int64 [N + 1], 0 where the catalogue lacks the dataset's item

    def requests(self, users: Sequence[str]) -> list[Request]:
        """Return the users' histories; raise InputError where a user does not exist."""
        strangers = [user for user in users if user not in self.row_of]
        if strangers:
            named = [f"{user!r}{near_matches(user, self.row_of)}" for user in strangers[:NAMED]]
            raise InputError(f"{len(strangers)} users are not in the dataset: {', '.join(named)}")
        requests, interactions = [], self.interactions
        for user in users:
            row = self.row_of[user]
            items = interactions.items[slice(*interactions.offsets[row : row + 2])]
            history = self.to_catalogue[items]
            unknown = [interactions.item_names[item] for item in items[history == 0]]
            requests.append(Request(user, int(interactions.user_ids[row]), history[history > 0], unknown))
        return requests


def read_users_file(file: Path) -> list[tuple[str, list[str] | None]]:
    """Read a user per line, or JSON {"user": name, "history": [item, ...]} per line; history is None where absent.

    Numbers are taken for the names that data.prepare makes of them. Raises InputError where a line is neither or names
    a user twice, or the file has none.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--users_file={file} cannot be read: {error}") from None
    rows: dict[str, list[str] | None] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = parse_line(line) if line.lstrip().startswith("{") else {"user": line.strip()}
        given, history = (row.get("user"), row.get("history")) if isinstance(row, dict) else (None, None)
        if isinstance(row, dict) and (others := ", ".join(map(repr, row.keys() - {"user", "history"}))):
            raise InputError(f"{file} line {number} has {others}; its keys are user and history")
        user = name_of(given)
        if isinstance(history, list):
            history = [name_of(item) for item in history]
        if not user or not (history is None or (isinstance(history, list) and all(history))):
            raise InputError(f'{file} line {number} is neither a user nor {{"user": "name", "history": ["item", ...]}}')
        if user in rows:
            raise InputError(f"{file} line {number} names the user {user!r} a second time")
        rows[user] = history
    if not rows:
        raise InputError(f"{file} names no user")
    return list(rows.items())


def write_shard(file: Path, requests: list[Request], found: Recommendations, names: list[str]) -> None:
    """Write {"user", "items", "scores", "source"} per line; the scores of most popular items are null."""
    with atomic_path(file) as temporary, open(temporary, "w", encoding="utf-8") as handle:
        columns = zip(requests, found.items, found.scores, found.by_popularity, strict=True)
        for request, items, scores, popular in columns:
            row = {
                "user": request.user,
                "items": [names[item] for item in items[items > 0]],
                "scores": [None if np.isnan(score) else round(float(score), 6) for score in scores[items > 0]],
                "source": "most_popular" if popular else "model",
            }
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")


def combine_shards(shards: list[Path], output: Path) -> None:
    """Make the output of its shards: JSON lines as they are, or a row (user, rank from 1, item, score, source)."""
    with atomic_path(output) as temporary:
        if output.suffix == ".jsonl":
            with open(temporary, "wb") as handle:
                for shard in shards:
                    handle.write(shard.read_bytes())
        else:
            target, kind = literal(str(temporary)), FORMATS[output.suffix]
            with duckdb.connect() as connection:
                connection.execute(f"COPY ({ROWS}) TO {target} (FORMAT {kind})", [list(map(str, shards))])
