"""The items that a model can recommend: names, texts, popularity, and the semantic IDs of one tokenizer."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.interactions import PADDING, dataset_folder, item_texts, load_interactions, training_interactions
from data.token_table import Group, TokenTable, Vocabulary, load_token_table, resolve_groups
from utils.errors import InputError
from utils.files import read_json, write_text

FIELDS = ("item", "semantic_id", "popularity", "text")


@dataclass
class Catalogue:
    """The items of one tokenizer, by item id from 1; index 0 is padding.

    Attributes:
        names: N + 1 names.
        texts: N + 1 texts.
        popularity: int64 [N + 1], how often each item occurs in x_1..x_{m-2} of all users.
        table: Their semantic IDs as tokens, one group.
    """

    names: list[str]
    texts: list[str]
    popularity: np.ndarray
    table: TokenTable

    def __post_init__(self):
        self.ids = {name: number for number, name in enumerate(self.names) if number}

    @property
    def num_items(self) -> int:
        return len(self.names) - 1

    def most_popular(self) -> np.ndarray:
        """Return all item ids, the most popular first, equally popular ones by id."""
        return np.argsort(-self.popularity[1:], kind="stable") + 1

    def codes(self) -> np.ndarray:
        """Return the items' semantic IDs, int64 [N, L], 0-based codes."""
        return self.table.codes(0)

    def rows(self) -> list[dict]:
        """Return {"item", "semantic_id", "popularity", "text"} of each item, in item id order."""
        columns = zip(self.names[1:], self.codes().tolist(), self.popularity[1:].tolist(), self.texts[1:], strict=True)
        return [dict(zip(FIELDS, values, strict=True)) for values in columns]

    def save(self, file: Path) -> None:
        """Write a line of JSON for each item."""
        write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows()))

    @classmethod
    def load(cls, file: Path, group: Group, vocabulary: Vocabulary) -> "Catalogue":
        """Read what `save` wrote."""
        lines = file.read_text(encoding="utf-8").rstrip("\n").split("\n")  # splitlines would cut texts at U+2028
        return cls.of_rows(map(json.loads, lines), group, vocabulary)

    @classmethod
    def of_rows(cls, rows: Iterable[dict], group: Group, vocabulary: Vocabulary) -> "Catalogue":
        """Make a catalogue of what `rows` returns."""
        names, codes, counts, texts = zip(*([row[name] for name in FIELDS] for row in rows), strict=True)
        tokens = np.zeros((1, len(names) + 1, vocabulary.num_levels), dtype=np.int32)
        tokens[0, 1:] = np.asarray(codes) + np.asarray(vocabulary.level_offsets)
        table = TokenTable(torch.from_numpy(tokens), [group], vocabulary)
        return cls([PADDING, *names], ["", *texts], np.asarray([0, *counts], dtype=np.int64), table)

    @classmethod
    def of_dataset(cls, settings: dict, prefix: str, epoch: int | None, vocabulary: Vocabulary) -> "Catalogue":
        """Read the items of a run's dataset, by the run's settings, as one of its tokenizers names them."""
        folder = dataset_folder(settings["data_dir"], settings["dataset"])
        interactions = load_interactions(folder)
        groups = resolve_groups(folder, prefix, None if epoch is None else [epoch], settings["token_suffix"])
        names = interactions.item_names
        counts = np.bincount(training_interactions(interactions), minlength=len(names))
        table = load_token_table(groups[:1], names[1:], vocabulary)
        return cls(names, ["", *item_texts(folder, names)], counts, table)

    def with_new_items(self, file: Path) -> "Catalogue":
        """Return the catalogue with the items behind its own that tokenizer/export.py --assign named.

        Raises:
            InputError: The file was made with another tokenizer, or the items' IDs are taken.
        """
        assigned, group = read_json(file), self.table.groups[0]
        epoch = str(group.epoch or "best")
        same_name = assigned.get("prefix") == group.prefix
        if not same_name or assigned.get("semantic_ids_sha256", {}).get(epoch) != self.table.sha256[0]:
            raise InputError(
                f"{file} has no semantic IDs of the model's tokenizer {group.prefix}, epoch {epoch}; "
                "make it with tokenizer/export.py --assign from the tokenizer that the model was trained with"
            )
        rows = self.rows()
        rows += [
            dict(zip(FIELDS, (name, codes, 0, assigned["texts"][name]), strict=True))
            for name, codes in assigned["semantic_ids"][epoch].items()
            if name not in self.ids
        ]
        if len({tuple(row["semantic_id"]) for row in rows}) < len(rows):
            raise InputError(f"{file}: a new item has another item's semantic ID; assign them anew from this dataset")
        return self.of_rows(rows, group, self.table.vocabulary)
