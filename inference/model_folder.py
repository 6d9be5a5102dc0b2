"""Model folders: what a recommender needs on another machine, its weights and its items, read and written."""

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from data.interactions import PADDING, dataset_folder, item_counts, item_texts, load_interactions, training_part
from data.token_table import Group, TokenTable, Vocabulary, check_semantic_ids, load_token_table, resolve_groups
from evaluation.run import Run, resolve_winner, run_around
from inference.model_card import model_card
from model.recommender import Recommender, find_model_folder, load_recommender
from utils.cards import CARD_FILE
from utils.errors import InputError
from utils.files import atomic_folder, read_json, remove_leftovers, write_checksums, write_json, write_text
from utils.locks import LOCK_FILE, FileLock

ABOUT_FILE = "mtgrec.json"
ITEMS_FILE = "items.jsonl"
FIELDS = ("item", "semantic_id", "popularity", "text")  # of a line of ITEMS_FILE


@dataclass
class Catalogue:
    """The items that a model can recommend, by item id from 1; index 0 is padding."""

    names: list[str]
    texts: list[str]
    popularity: np.ndarray  # int64 [N + 1], how often each item occurs in x_1..x_{m-2} of all users
    table: TokenTable  # one group

    def __post_init__(self):
        self.ids = {name: number for number, name in enumerate(self.names) if number}

    @property
    def num_items(self) -> int:
        return len(self.names) - 1

    def known(self, history: Sequence[str]) -> tuple[np.ndarray, list[str]]:
        """Return the ids of a history's items and the names that the catalogue lacks."""
        known = [self.ids[name] for name in history if name in self.ids]
        return np.asarray(known, dtype=np.int64), [name for name in history if name not in self.ids]

    @cached_property
    def most_popular(self) -> np.ndarray:
        """All item ids, the most popular first, equally popular ones by id."""
        return np.argsort(-self.popularity[1:], kind="stable") + 1

    def codes(self) -> np.ndarray:
        """Return the items' semantic IDs, int64 [N, L], 0-based codes."""
        return self.table.codes(0)

    def rows(self) -> list[dict]:
        """Return {"item", "semantic_id", "popularity", "text"} of each item, in item id order."""
        columns = zip(self.names[1:], self.codes().tolist(), self.popularity[1:].tolist(), self.texts[1:], strict=True)
        return [dict(zip(FIELDS, values, strict=True)) for values in columns]

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
        groups = resolve_groups(folder, prefix, [epoch], settings["token_suffix"])
        names = interactions.item_names
        counts = item_counts(training_part(interactions))
        table = load_token_table(groups[:1], names[1:], vocabulary)
        return cls(names, ["", *item_texts(folder, names)], counts, table)

    def with_new_items(self, file: Path) -> "Catalogue":
        """Return the catalogue with the items behind its own that tokenizer/export.py --assign named.

        Raises InputError where the file was made with another tokenizer, or the items' IDs are taken.
        """
        assigned, group = read_json(file), self.table.groups[0]
        epoch = str(group.epoch or "best")
        found = (assigned.get("prefix"), assigned.get("semantic_ids_sha256", {}).get(epoch))
        if found != (group.prefix, self.table.sha256[0]):
            raise InputError(
                f"{file} has no semantic IDs of the model's tokenizer {group.prefix}, epoch {epoch}; "
                "make it with tokenizer/export.py --assign from the tokenizer that the model was trained with"
            )
        rows, texts = self.rows(), assigned["texts"]
        rows += [
            {"item": name, "semantic_id": codes, "popularity": 0, "text": texts[name]}
            for name, codes in assigned["semantic_ids"][epoch].items()
            if name not in self.ids
        ]
        if len({tuple(row["semantic_id"]) for row in rows}) < len(rows):
            raise InputError(f"{file}: a new item has another item's semantic ID; assign them anew from this dataset")
        return self.of_rows(rows, group, self.table.vocabulary)


@dataclass
class TrainedModel:
    """A recommender in eval mode, its items, and what it was trained with, as the run's config.yaml has it.

    The metrics are of the tokenizer in the catalogue, if these are a finished run's best weights: {"valid": {metric:
    mean}, "test": {...}}.
    """

    recommender: Recommender
    catalogue: Catalogue
    settings: dict
    metrics: dict[str, dict[str, float]]


def load_trained_model(path: Path | str, data_dir: str | None = None) -> TrainedModel:
    """Read a model from a run or one of its checkpoints, an exported folder, a <name>.winner.json, or hf:user/name.

    A run with several tokenizers is read with the one that is best on validation. Only an exported folder needs no
    dataset; `data_dir` is the folder of dataset folders, by default where the run had it. Raises InputError where the
    path is none of these, or a file is absent or broken.
    """
    path = resolve_winner(path)
    weights = find_model_folder(path)
    recommender = load_recommender(weights, dropout_rate=0.0).eval()
    architecture = recommender.architecture
    vocabulary = Vocabulary(architecture.level_sizes, architecture.n_user_tokens)
    if (weights / ABOUT_FILE).is_file():
        about = read_json(weights / ABOUT_FILE)
        group = Group(about["tokenizer"]["prefix"], about["tokenizer"]["epoch"], weights / ITEMS_FILE)
        lines = group.file.read_text(encoding="utf-8").rstrip("\n").split("\n")  # splitlines would cut texts at U+2028
        catalogue = Catalogue.of_rows(map(json.loads, lines), group, vocabulary)
        return TrainedModel(recommender, catalogue, read_settings(path, data_dir), about["metrics"])
    run, settings = _run_of(path), read_settings(path, data_dir)
    tokenizer = run.tokenizer
    catalogue = Catalogue.of_dataset(settings, tokenizer["prefix"], tokenizer["epoch"], vocabulary)
    remedy = "bring those of its training back, or recommend with a folder that export.py made before they changed"
    check_semantic_ids(recommender.semantic_ids_sha256, catalogue.table, path, remedy)
    best = weights.resolve() == run.model.resolve()  # the results are this epoch's
    metrics = {split: tokenizer[split] for split in ("valid", "test") if best and split in tokenizer}
    return TrainedModel(recommender, catalogue, settings, metrics)


def read_settings(path: Path | str, data_dir: str | None = None) -> dict:
    """Return the training settings of any of these folders, with another data_dir where one is given."""
    about = find_model_folder(path) / ABOUT_FILE
    settings = read_json(about, "settings") if about.is_file() else _run_of(path).settings
    return settings | ({"data_dir": data_dir} if data_dir else {})


def _run_of(path: Path | str) -> Run:
    path = Path(path).absolute()
    run = run_around(path)
    if run is None:
        raise InputError(
            f"{path} has no {ABOUT_FILE} and lies in no run folder; python export.py makes a complete folder"
        )
    return run


def complete_model_folder(run: Path) -> None:
    """Make the model folder of a finished run complete, unless it is: the run may have been killed before."""
    if (run / "model" / ABOUT_FILE).is_file():
        return
    with FileLock(run / LOCK_FILE):
        remove_leftovers(run)
        if not (run / "model" / ABOUT_FILE).is_file():
            export_model(run, run / "model")


def export_model(path: Path | str, output: Path, data_dir: str | None = None) -> TrainedModel:
    """Write a complete model folder, whole or not at all.

    It holds config.json and model.safetensors (plain transformers reads them), items.jsonl (the token table: item,
    semantic ID, popularity and text in item id order), mtgrec.json (tokenizer, vocabulary layout, training settings,
    metrics), sha256.json (checksums of these), and README.md, the model's card. A card may be edited, so it has no
    checksum, and the card of a folder that has one goes along with its model.
    """
    path = resolve_winner(path)
    weights, model = find_model_folder(path), load_trained_model(path, data_dir)
    layout = ("level_offsets", "base_user_token", "eos_token")
    vocabulary, group = model.catalogue.table.vocabulary, model.catalogue.table.groups[0]
    with atomic_folder(output) as temporary:
        for name in (CARD_FILE, "config.json", "generation_config.json", "model.safetensors"):
            if (weights / name).is_file():
                shutil.copyfile(weights / name, temporary / name)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in model.catalogue.rows()]
        write_text(temporary / ITEMS_FILE, "".join(lines))
        about = {
            "tokenizer": {"prefix": group.prefix, "epoch": group.epoch},
            "vocabulary": asdict(vocabulary) | {name: getattr(vocabulary, name) for name in layout},
            "settings": model.settings,
            "metrics": model.metrics,
        }
        write_json(temporary / ABOUT_FILE, about)
        card = temporary / CARD_FILE
        write_checksums(temporary, sorted({*temporary.iterdir()} - {card}))
        if not card.is_file():
            write_text(card, model_card(model, run_around(path)))
    return model
