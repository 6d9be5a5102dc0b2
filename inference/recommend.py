"""Recommendations for histories of any length, always of real items."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.batching import Tokenization
from data.interactions import Interactions
from evaluation.predict import search
from inference.model_folder import TrainedModel, load_trained_model


@dataclass
class Recommendations:
    """k items for each of U histories, best first."""

    items: np.ndarray  # int64 [U, k], item ids, all different in a row
    scores: np.ndarray  # float32 [U, k], mean log-probability per level; NaN for most popular items
    by_popularity: np.ndarray  # bool [U], whose history was empty, so that the most popular items are recommended


class RecommendationModel:
    """A trained model that recommends."""

    def __init__(self, model: TrainedModel, device: torch.device | str = "cpu"):
        self.catalogue, self.settings = model.catalogue, model.settings
        self.recommender = model.recommender.to(device)
        self.table = model.catalogue.table.to(torch.device(device))

    def recommend(
        self, histories: Sequence[Sequence[str]], k: int = 10, num_beams: int = 50, exclude_seen: bool = True
    ) -> tuple[list[list[str]], list[list[float]]]:
        """Recommend k items for each history of item names, newest last; names that the catalogue lacks are skipped.

        Returns:
            Item names and scores, best first; a score is the mean log-probability per level, NaN where the history is
            empty and the most popular items are recommended.
        """
        ids = [self.catalogue.known(history)[0] for history in histories]
        found = self.recommend_ids(ids, None, k, num_beams, exclude_seen)
        return [[self.catalogue.names[item] for item in row] for row in found.items], found.scores.tolist()

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
        """Recommend k items for each history of item ids.

        Args:
            histories: int [items] each, newest last.
            user_ids: int [U], ids in id_mapping.json, for models with several user tokens; by default 0.
            num_beams: Beams of the search, at least k are used.
            exclude_seen: Leave out the items of the history.

        Raises:
            ValueError: A history leaves fewer than k items.
        """
        for row, history in enumerate(histories):
            left = self.available(history, exclude_seen)
            if left < k:
                raise ValueError(f"history {row} leaves {left} items to recommend, {k} are wanted")
        items = np.zeros((len(histories), k), dtype=np.int64)
        scores = np.full((len(histories), k), np.nan, dtype=np.float32)
        empty = np.asarray([len(history) == 0 for history in histories], dtype=bool)
        items[empty] = self.catalogue.most_popular()[:k]
        tokenization = self._tokenization(histories, user_ids)
        targets = tokenization.interactions.offsets[1:][~empty] - 1

        def seen(positions: np.ndarray) -> torch.Tensor:
            """Return the trie rows of each history's items, once each: int64 [B, E], filled up with -1."""
            of_batch = (histories[row] for row in tokenization.interactions.users_of(positions))
            distinct = [torch.from_numpy(np.unique(history).astype(np.int64) - 1) for history in of_batch]
            return torch.nn.utils.rnn.pad_sequence(distinct, True, -1.0).to(self.table.tokens.device)

        found, score = search(
            *(self.recommender, tokenization, targets, 0, k, max(num_beams, k), batch_size),
            trie=self.table.trie(0),
            banned=seen if exclude_seen else None,
        )
        items[~empty], scores[~empty] = self.table.items_of(0, found).cpu().numpy(), score.cpu().numpy()
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
        return Tokenization(interactions, self.table, self.settings["max_item_seq_len"])


def load(path: Path | str, device: torch.device | str = "cpu", data_dir: str | None = None) -> RecommendationModel:
    """Load a run folder or an exported model folder."""
    return RecommendationModel(load_trained_model(path, data_dir), device)
