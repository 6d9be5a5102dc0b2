"""The published dataset folder as flat arrays, and its leave-one-out splits as positions in them."""

import difflib
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.files import read_json, read_json_pieces, remove, remove_leftovers_of, whole_characters
from utils.locks import LOCK_FILE, FileLock

PADDING = "[PAD]"
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Interactions:
    """Every user's item sequence, one after another."""

    user_names: np.ndarray | list[str]
    """Users in the key order of all_item_seqs.json, 0-based; as NumPy's strings they take less memory."""
    user_ids: np.ndarray
    """int64 [U], their ids in id_mapping.json, from 1."""
    item_names: list[str]
    """Item id i's name at index i; index 0 is "[PAD]"."""
    items: np.ndarray
    """int32 [T], item ids from 1, each user's in time order."""
    offsets: np.ndarray
    """int64 [U + 1]; user u's items are items[offsets[u]:offsets[u + 1]]."""

    @property
    def sha256(self) -> str:
        """Hash of users, items and sequences."""
        digest = hashlib.sha256(json.dumps([list(self.user_names), self.item_names]).encode())
        for array in (self.user_ids, self.items, self.offsets):
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()

    @property
    def num_users(self) -> int:
        return len(self.user_names)

    @property
    def num_items(self) -> int:
        return len(self.item_names) - 1

    def users_of(self, positions: np.ndarray) -> np.ndarray:
        """Return the 0-based user of each position in `items`, int64 of the same shape."""
        return np.searchsorted(self.offsets, positions, side="right") - 1

    def history(self, position: int, max_items: int | None = None) -> np.ndarray:
        """Return the item ids before `position` within its user's sequence, the last `max_items` of them."""
        start = int(self.offsets[self.users_of(np.asarray(position))])
        if max_items is not None:
            start = max(start, position - max_items)
        return self.items[start:position]


def split_positions(offsets: np.ndarray, split: str) -> np.ndarray:
    """Return the target positions of a leave-one-out split; a target's history is all of its user's earlier items.

    Of a user's x_1..x_m, test is x_m (m >= 2), validation x_{m-1} (m >= 3), training every one of
    x_2..x_{m-2} (m >= 4). Users in order, targets in time order; int32, or int64 where the interactions do not fit.
    """
    lengths = np.diff(offsets)
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {SPLITS}")
    if split == "train":
        positions = _concatenated_ranges(offsets[:-1] + 1, np.maximum(lengths - 3, 0))
    else:
        from_end = 1 if split == "test" else 2
        positions = offsets[1:][lengths > from_end] - from_end
    return positions.astype(np.int32 if offsets[-1] < 2**31 else np.int64)


def _concatenated_ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return starts[0], starts[0] + 1, ... (lengths[0] of them), starts[1], ...: int64 [sum of lengths]."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


def training_part(interactions: Interactions, users: np.ndarray | None = None) -> Interactions:
    """Return x_1..x_{m-2} of every user, or of `users`, bool [U], alone: what training may look at."""
    lengths = np.maximum(np.diff(interactions.offsets) - 2, 0)
    lengths = lengths if users is None else lengths * users
    items = interactions.items[_concatenated_ranges(interactions.offsets[:-1], lengths)]
    return replace(interactions, items=items, offsets=np.concatenate([[0], np.cumsum(lengths)]))


def item_counts(interactions: Interactions) -> np.ndarray:
    """Return how often each item occurs, int64 [N + 1] by item id, with a leading 0 of padding."""
    return np.bincount(interactions.items, minlength=interactions.num_items + 1)


def follow_counts(training: Interactions, interactions: Interactions, positions: np.ndarray) -> np.ndarray:
    """Return how often the training part has an item right after the one that it follows in `interactions`: int64 [P].

    `positions`, int [P], are places in `interactions.items` that are not the first of their user.
    """

    def pairs(items: np.ndarray, places: np.ndarray) -> np.ndarray:
        return items[places - 1].astype(np.int64) * (interactions.num_items + 1) + items[places]

    starts = training.offsets[:-1][np.diff(training.offsets) > 0]
    known = pairs(training.items, np.delete(np.arange(len(training.items)), starts))
    _, numbers = np.unique(np.concatenate([known, pairs(interactions.items, positions)]), return_inverse=True)
    counts = np.bincount(numbers[: len(known)], minlength=len(numbers))
    return counts[numbers[len(known) :]]


def training_items(interactions: Interactions) -> np.ndarray:
    """Return the sorted distinct item ids of x_1..x_{m-2}: the items that the RQ-VAE is trained on."""
    return np.unique(training_part(interactions).items)


def dataset_folder(data_dir: str | Path, dataset: str) -> Path:
    """Return the dataset's folder; one that does not exist is an error, which names the near matches."""
    folder = Path(data_dir) / dataset
    if folder.is_dir():
        return folder
    present = sorted(path.name for path in Path(data_dir).glob("[!.]*") if path.is_dir())
    near = difflib.get_close_matches(dataset, present, n=3) or present
    hint = f"did you mean {' or '.join(near)}?" if near else "unzip a published dataset there or set --data_dir"
    raise InputError(f"the dataset folder {folder} does not exist; {hint}")


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """Hold a folder against others who make it too, and yield one beside it for what is needed on the way."""
    folder = folder.resolve()
    work = folder.with_name(f".{folder.name}.prepare")
    interrupted = work.exists()
    with FileLock(work / LOCK_FILE):
        for path in work.iterdir():
            if path.name != LOCK_FILE:
                remove(path)
        if interrupted:
            print(f"{work}: an earlier preparation was interrupted; starting over")
        remove_leftovers_of(folder)
        try:
            yield work
        finally:
            remove(work)


def load_interactions(folder: Path) -> Interactions:
    """Read all_item_seqs.json and id_mapping.json, with or without "[PAD]" in the dictionaries.

    Raises:
        InputError: A file is absent or broken, ids are not 1..N, or a sequence names an unknown user or item.
    """
    mapping_file, sequence_file = folder / "id_mapping.json", folder / "all_item_seqs.json"
    mapping = read_json(mapping_file)
    user_to_id, item_to_id = (_ids(mapping, key, mapping_file) for key in ("user2id", "item2id"))
    del mapping  # as large as all that is read afterwards
    user_ids, lengths, items = [], [], []  # of each piece
    for sequences in read_json_pieces(sequence_file):
        if not isinstance(sequences, dict) or not sequences:
            raise InputError(f"{sequence_file} holds no users; expected {{user: [item, ...]}}")
        try:
            user_ids.append(np.fromiter(map(user_to_id.__getitem__, sequences), dtype=np.int64))
            if set(map(type, sequences.values())) != {list}:
                raise TypeError
            lengths.append(np.fromiter(map(len, sequences.values()), dtype=np.int64))
            one_by_one = chain.from_iterable(sequences.values())
            items.append(np.fromiter(map(item_to_id.__getitem__, one_by_one), dtype=np.int32, count=lengths[-1].sum()))
        except (KeyError, TypeError):
            raise InputError(f"{sequence_file}: {_stranger(sequences, user_to_id, item_to_id, mapping_file)}") from None
    ids, user_of = np.concatenate(user_ids), [PADDING, *sorted(user_to_id, key=user_to_id.get)]
    if len(np.unique(ids)) < len(ids):
        raise InputError(f"{sequence_file} has a user twice")
    return Interactions(
        user_names=np.array([user_of[number] for number in ids], dtype=np.dtypes.StringDType()),
        user_ids=ids,
        item_names=[PADDING, *sorted(item_to_id, key=item_to_id.get)],
        items=np.concatenate(items),
        offsets=np.concatenate([[0], np.cumsum(np.concatenate(lengths))]),
    )


def _stranger(sequences: dict, user_to_id: dict[str, int], item_to_id: dict[str, int], mapping_file: Path) -> str:
    """Name the first user or items that the id mapping does not know."""
    for user, sequence in sequences.items():
        if user not in user_to_id:
            return f"user {user!r} is not in user2id of {mapping_file.name}"
        if not isinstance(sequence, list):
            return f"user {user!r} has {sequence!r}, not a list of items"
        unknown = [item for item in sequence if not isinstance(item, str) or item not in item_to_id]
        if unknown:
            return f"user {user!r} has {unknown!r}, not in item2id of {mapping_file.name}"
    raise AssertionError("called without a stranger")


def _ids(mapping: dict, key: str, file: Path) -> dict[str, int]:
    """Return a checked {name: id} dictionary without padding; ids are 1..N, each once."""
    if not isinstance(mapping, dict) or not isinstance(mapping.get(key), dict):
        raise InputError(f"{file} has no dictionary {key!r}")
    ids = {name: number for name, number in mapping[key].items() if name != PADDING}
    if not ids:
        raise InputError(f"{file}: {key} is empty")
    halves = [name for name in ids if name != whole_characters(name)]
    if halves:
        raise InputError(f"{file}: {key} has {len(halves)} names with half a character, the first is {halves[0]!r}")
    if not all(type(number) is int for number in ids.values()) or set(ids.values()) != set(range(1, len(ids) + 1)):
        raise InputError(f"{file}: the {len(ids)} ids of {key} are not 1..{len(ids)}, each once")
    return ids


def item_texts(folder: Path, item_names: list[str]) -> list[str]:
    """Return the items' texts in item id order, without padding.

    Raises:
        InputError: metadata.sentence.json is absent or broken, or an item has no text.
    """
    file = folder / "metadata.sentence.json"
    texts = read_json(file)
    if not isinstance(texts, dict):
        raise InputError(f"{file} is not a dictionary {{item: text}}")
    missing = [name for name in item_names[1:] if not isinstance(texts.get(name), str) or not texts[name].strip()]
    if missing:
        raise InputError(
            f"{file}: {len(missing)} of {len(item_names) - 1} items have no text, the first is {missing[0]!r}"
        )
    return [whole_characters(texts[name]) for name in item_names[1:]]
