"""Recommendations for histories of any length, always of real items."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.batching import Tokenization
from data.interactions import Interactions
from evaluation.predict import predict
from inference.model_folder import TrainedModel, load_trained_model
from utils.errors import InputError
from utils.runtime import choose_device

CALL = 'model.recommend([["item1", "item2"], []])'  # shown to those who called it otherwise


@dataclass
class Recommendations:
    """k items for each of U histories, best first, or all that are left where these are fewer."""

    items: np.ndarray  # int64 [U, k], item ids, all different in a row; at its end 0 where fewer are left
    scores: np.ndarray  # float32 [U, k], mean log-probability per level; NaN for most popular items and no items
    by_popularity: np.ndarray  # bool [U], whose history was empty, so that the most popular items are recommended


class RecommendationModel(TrainedModel):
    """A trained model that recommends."""

    def recommend(
        self, histories: Sequence[Sequence[str]], k: int = 10, num_beams: int = 50, exclude_seen: bool = True
    ) -> tuple[list[list[str]], list[list[float]]]:
        """Recommend k items for each history of item names, newest last; names that the catalogue lacks are skipped.

        Returns:
            Item names and scores, best first, fewer than k where a history leaves no more; a score is the mean
            log-probability per level, NaN where the history is empty and the most popular items are recommended.

        Raises:
            InputError: `histories` is no list of lists of names, or the catalogue knows nothing of one that has names.
        """
        ids = []
        for row, history in enumerate(_checked(histories)):
            known, unknown = self.catalogue.known(history)
            if unknown and not len(known):
                raise InputError(
                    f"history {row} has no item of the catalogue, its first is {unknown[0]!r}; give the items' names, "
                    "or [] for the most popular items"
                )
            ids.append(known)
        found = self.recommend_ids(ids, None, k, num_beams, exclude_seen)
        names = [[self.catalogue.names[item] for item in row if item] for row in found.items]
        return names, [scores[: len(row)] for row, scores in zip(names, found.scores.tolist(), strict=True)]

    def available(self, history: np.ndarray, exclude_seen: bool) -> int:
        """Return how many items a history leaves to recommend."""
        return self.catalogue.num_items - exclude_seen * len(np.unique(history))

    def recommend_ids(
        self,
        histories: Sequence[np.ndarray],
        user_ids: np.ndarray | None = None,
        k: int = 10,
        num_beams: int = 50,
        exclude_seen: bool = True,
        batch_size: int = 128,
    ) -> Recommendations:
        """Recommend k items for each history of item ids, or all that are left where these are fewer.

        Args:
            histories: int [items] each, newest last.
            user_ids: int [U], ids in id_mapping.json, for models with several user tokens; by default 0.
            num_beams: Beams of the search, at least k are used.
            exclude_seen: Leave out the items of the history.
        """
        items = np.zeros((len(histories), k), dtype=np.int64)
        scores = np.full((len(histories), k), np.nan, dtype=np.float32)
        empty = np.asarray([len(history) == 0 for history in histories], dtype=bool)
        if empty.any():
            popular = self.catalogue.most_popular[:k]
            items[empty, : len(popular)] = popular
        tokenization = self._tokenization(histories, user_ids)
        targets = tokenization.interactions.offsets[1:] - 1

        def seen(positions: np.ndarray) -> torch.Tensor:
            """Return the trie rows of each history's items, once each: int64 [B, E], filled up with -1."""
            of_batch = (histories[row] for row in tokenization.interactions.users_of(positions))
            distinct = [torch.from_numpy(np.unique(history).astype(np.int64) - 1) for history in of_batch]
            return torch.nn.utils.rnn.pad_sequence(distinct, True, -1.0).to(tokenization.items.device)

        counts = np.asarray([min(k, self.available(history, exclude_seen)) for history in histories]) * ~empty
        for count in np.unique(counts[counts > 0]).tolist():
            rows = counts == count
            found = predict(
                *(self.recommender, tokenization, targets[rows], 0, count, max(num_beams, count), batch_size),
                constrained=True,
                banned=seen if exclude_seen else None,
            )
            items[rows, :count], scores[rows, :count] = found.items, found.scores
        return Recommendations(items, scores, empty)

    def _tokenization(self, histories: Sequence[np.ndarray], user_ids: np.ndarray | None) -> Tokenization:
        """Lay the histories out as item sequences whose last item, padding, stands where a target would."""
        padded = [np.append(history, 0) for history in histories]
        interactions = Interactions(
            user_names=[""] * len(histories),
            user_ids=np.zeros(len(histories), dtype=np.int64) if user_ids is None else user_ids,
            item_names=self.catalogue.names,
            items=np.concatenate([np.zeros(0, dtype=np.int32), *padded]).astype(np.int32),
            offsets=np.cumsum([0, *map(len, padded)]),
        )
        return Tokenization(interactions, self.catalogue.table, self.settings["max_item_seq_len"])


def _checked(histories: Sequence[Sequence[str]]) -> Sequence[Sequence[str]]:
    """Return the histories; raise InputError if they are no list of lists of names, such as one history alone."""
    lists = (list, tuple, np.ndarray)
    if not isinstance(histories, lists):
        raise InputError(f"histories must be a list of lists of item names, as in {CALL}, not {histories!r:.80}")
    for row, history in enumerate(histories):
        if not isinstance(history, lists):
            raise InputError(f"history {row} must be a list of item names, as in {CALL}, not {history!r:.80}")
        for name in history:
            if not isinstance(name, str):
                raise InputError(f"item names are strings, as in {CALL}; history {row} has {name!r:.80}")
    return histories


def load(
    path: Path | str,
    device: torch.device | str = "cpu",
    data_dir: str | None = None,
    new_items: Path | str | None = None,
) -> RecommendationModel:
    """Load what recommend.py takes with --model, --device, --data_dir and --new_items."""
    trained, device = load_trained_model(path, data_dir), choose_device(str(device))
    catalogue = trained.catalogue.with_new_items(Path(new_items)) if new_items else trained.catalogue
    catalogue.table = catalogue.table.to(device)
    return RecommendationModel(trained.recommender.to(device), catalogue, trained.settings, trained.metrics)
