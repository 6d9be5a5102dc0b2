"""A model as it is served: its items found by words, its users by name, its answers ready to be sent."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from data.interactions import dataset_folder, load_interactions
from evaluation.run import resolve_winner
from inference.recommend import RecommendationModel, load
from inference.requests import DatasetUsers, Request, near_matches
from model.recommender import WEIGHTS_FILE, find_model_folder
from serving.config import ServeConfig
from utils.errors import InputError
from utils.files import sha256_of
from utils.hub import PREFIX

# Near names are searched only where the squares of the names' lengths sum to no more: difflib compares characters with
# characters, 0.5 us a pair, so one search takes up to 50 ms (1,000 names of 10 characters, 15 of 80).
NEAR_PAIRS = 100_000


@dataclass(frozen=True)
class Search:
    """What histories have in common that are computed together."""

    served: "Served"  # the one that was served when the request came
    k: int
    num_beams: int
    exclude_seen: bool

    def __call__(self, requests: list[Request]) -> list[tuple[list[int], list[float]]]:
        """Return the item ids and scores of each request, best first; the scores of most popular items are NaN."""
        histories = [request.history for request in requests]
        user_ids = np.asarray([request.user_id for request in requests], dtype=np.int64)
        found = self.served.model.recommend_ids(
            histories, user_ids, self.k, self.num_beams, self.exclude_seen, len(requests)
        )
        rows = ((items[items > 0].tolist(), scores) for items, scores in zip(found.items, found.scores, strict=True))
        return [(items, scores[: len(items)].tolist()) for items, scores in rows]

    def answers(self, requests: list[Request], found: list[tuple[list[int], list[float]]]) -> list[dict]:
        """Return what is sent for requests and what was found for each; near names only for the first unknown one."""
        first = next((request.unknown[0] for request in requests if request.unknown), None)
        near = {first: self.served.near_item(first)} if first is not None else {}
        return [
            {
                "user": request.user or None,
                "source": "model" if len(request.history) else "most_popular",
                "unknown": request.unknown,
                "notes": self.notes(request, len(items), near),
                "items": list(map(self.served.item, items, scores)),
            }
            for request, (items, scores) in zip(requests, found, strict=True)
        ]

    def notes(self, request: Request, num_found: int, near: dict[str, str]) -> list[str]:
        """Say in sentences what a person should know of an answer; `near` has near names of some unknown ones."""
        notes, unknown = [], list(dict.fromkeys(request.unknown))
        if unknown:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            notes.append(f"skipped, not in the catalogue: {unknown[0]!r}{near.get(unknown[0], '')}{more}")
        if not len(request.history):
            why = "no item of the history is known" if unknown else "the history is empty"
            notes.append(f"{why}, so the most popular items are recommended")
        if num_found < self.k:
            notes.append(f"only {num_found} items are left to recommend")
        return notes


class Served:
    """A loaded model; it never changes, a reload makes another."""

    def __init__(self, model: RecommendationModel, users: DatasetUsers | None, about: dict):
        self.model, self.users, self.about = model, users, about
        catalogue = model.catalogue
        self.codes = catalogue.codes().tolist()  # of item id i at i - 1
        self.sharing = sharing(catalogue.codes()).tolist()
        self.by_popularity = catalogue.most_popular.tolist()
        self.words = [f"{name}\n{text}".casefold() for name, text in zip(catalogue.names, catalogue.texts, strict=True)]
        self.near_item, self.near_user = near_in(catalogue.ids), near_in(users.row_of if users else {})

    def item(self, number: int, score: float | None = None) -> dict:
        """Return what is said of an item id."""
        catalogue, row = self.model.catalogue, number - 1
        return {
            "item": catalogue.names[number],
            "text": catalogue.texts[number],
            "semantic_id": self.codes[row],
            "sharing": self.sharing[row],
            "score": None if score is None or np.isnan(score) else round(score, 6),
        }

    def find(self, query: str, limit: int) -> list[int]:
        """Return the ids of items whose name and text have all of the query's words, the most popular first."""
        words, found = query.casefold().split(), []
        for item in self.by_popularity:
            if all(word in self.words[item] for word in words):
                found.append(item)
                if len(found) == limit:
                    break
        return found

    def find_users(self, query: str, limit: int) -> list[str]:
        """Return the users whose names have the query in them, in the dataset's order."""
        wanted, found = query.casefold(), []
        for user in self.users.row_of if self.users else ():
            if wanted in user.casefold():
                found.append(str(user))
                if len(found) == limit:
                    break
        return found

    def request(self, user: str | None, items: list[str] | None) -> Request:
        """Return the request of a history, or of a user's where `items` is None; raise InputError for no such user."""
        if items is not None:
            return Request(user or "", 0, *self.model.catalogue.known(items))
        if self.users is None:
            raise InputError("there are no users here, since the dataset is not at hand; send the items instead")
        if user not in self.users.row_of:
            raise InputError(f"there is no user {user!r}{self.near_user(user)}; send the items instead")
        return self.users.requests([user])[0]


def near_in(names: dict[str, int]) -> Callable[[str], str]:
    """Return `near_matches` among these names, or what finds none where a search would take too long."""
    searched = names if sum(len(name) ** 2 for name in names) <= NEAR_PAIRS else {}
    return lru_cache(1024)(lambda name: near_matches(name, searched))


def sharing(codes: np.ndarray) -> np.ndarray:
    """Return how many items begin with an item's first 1, 2, ... codes, itself among them: int64 [N, L] of [N, L]."""
    node, counts = np.zeros(len(codes), dtype=np.int64), []
    for level in codes.T:
        _, node, count = np.unique(node * (level.max() + 1) + level, return_inverse=True, return_counts=True)
        counts.append(count[node])
    return np.stack(counts, axis=1)


def load_served(config: ServeConfig) -> Served:
    """Load the model that --model names now, and compute with it once.

    Raises:
        InputError: A file is absent or broken, or the model's scores are no numbers.
    """
    path = resolve_winner(config.model)
    weights = sha256_of(find_model_folder(path) / WEIGHTS_FILE)
    model = load(path, config.device, config.data_dir, config.new_items or None)
    found = model.recommend_ids([np.asarray([1])], None, 1, config.max_beams, exclude_seen=False)
    if not np.isfinite(found.scores).all():
        raise InputError(f"{path}: the model's scores are no numbers; train it again, or bring its files back")
    users, settings, catalogue = None, model.settings, model.catalogue
    if config.users and (Path(settings["data_dir"]) / settings["dataset"]).is_dir():
        interactions = load_interactions(dataset_folder(settings["data_dir"], settings["dataset"]))
        users = DatasetUsers(interactions, catalogue)
    group = catalogue.table.groups[0]
    about = {
        "name": config.model if config.model.startswith(PREFIX) else path.name,  # a hub's folder is named by its commit
        "dataset": settings["dataset"],
        "tokenizer": {"prefix": group.prefix, "epoch": group.epoch},
        "network": model.recommender.architecture.network,
        "parameters": sum(parameter.numel() for parameter in model.recommender.parameters()),
        "level_sizes": list(catalogue.table.vocabulary.sizes),
        "items": catalogue.num_items,
        "users": len(users.row_of) if users else 0,
        "metrics": model.metrics,
        "sha256": {"weights": weights, "semantic_ids": catalogue.table.sha256[0]},
    }
    return Served(model, users, about)
