"""Semantic IDs as tokens: the vocabulary layout, `.sem_ids` files, and every tokenizer's IDs in one tensor."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.config import expand_epochs
from utils.errors import InputError
from utils.files import read_json, write_json
from utils.prefix_trie import PrefixTrie

TOKENIZER_FOLDER = "rqvae"
TRAINING_FILE = "training.json"  # in a tokenizer's folder that was trained here, not published
NEW_ITEMS_FILE = "new_items.json"
QUALITY_FILE = "quality.json"  # written when all its semantic IDs are


def level_sizes(n_codebooks: int, codebook_size: int | list[int]) -> tuple[int, ...]:
    """Return the number of codes of each level of a semantic ID, the disambiguation level last.

    One size is for all levels; a list has n_codebooks entries (disambiguation takes the last one's) or one more.

    Raises:
        InputError: The list has another length.
    """
    if isinstance(codebook_size, int):
        return (codebook_size,) * (n_codebooks + 1)
    if len(codebook_size) == n_codebooks:
        return (*codebook_size, codebook_size[-1])
    if len(codebook_size) == n_codebooks + 1:
        return tuple(codebook_size)
    raise InputError(
        f"codebook_size={codebook_size} has {len(codebook_size)} entries; "
        f"n_codebooks={n_codebooks} takes {n_codebooks} or {n_codebooks + 1}"
    )


@dataclass(frozen=True)
class Vocabulary:
    """The layout of the tokens: padding 0, the levels' codes one after another, user tokens, end of sequence.

    Level l (0-based) with code c is token c + 1 + the sizes of the levels before it. The disambiguation code starts at
    1, so the first token of its level is never used (the published files' layout).
    """

    sizes: tuple[int, ...]
    """Codes per level, disambiguation included."""
    n_user_tokens: int = 1
    """User u (id from 1) has token base_user_token + u % n_user_tokens."""

    @property
    def num_levels(self) -> int:
        return len(self.sizes)

    @property
    def level_offsets(self) -> tuple[int, ...]:
        """What to add to a level's code to get its token."""
        return tuple(1 + sum(self.sizes[:level]) for level in range(self.num_levels))

    @property
    def base_user_token(self) -> int:
        return sum(self.sizes) + 1

    @property
    def eos_token(self) -> int:
        return self.base_user_token + self.n_user_tokens

    @property
    def size(self) -> int:
        return self.eos_token + 1


@dataclass(frozen=True)
class Group:
    """One tokenizer group: the data as the RQ-VAE checkpoint of an epoch tokenizes it."""

    prefix: str
    """Of its files, relative to the dataset's folder, such as rqvae/sentence-t5-base_256,256,256,256."""
    epoch: int | None
    """1-based epoch of the RQ-VAE, None for its best-loss checkpoint."""
    file: Path = field(compare=False)


def group_labels(groups: Sequence[tuple[str, int | None]]) -> list[str]:
    """Name each (prefix, epoch) shortly: the epoch or "best", after the prefix's number where there are several."""
    prefixes = list(dict.fromkeys(prefix for prefix, _ in groups))
    names = ["best" if epoch is None else str(epoch) for _, epoch in groups]
    if len(prefixes) == 1:
        return names
    return [f"{prefixes.index(prefix)}_{name}" for (prefix, _), name in zip(groups, names, strict=True)]


@dataclass
class TokenTable:
    """Every tokenizer group's semantic IDs as tokens."""

    tokens: Tensor
    """int32 [G, N + 1, L]; row 0 of every group is padding, row i is item id i."""
    groups: list[Group]
    vocabulary: Vocabulary
    _tries: dict[int, PrefixTrie] = field(default_factory=dict, repr=False)

    @property
    def num_groups(self) -> int:
        return len(self.groups)

    @property
    def sha256(self) -> list[str]:
        """A hash of each group's semantic IDs, of which item has which."""
        return [hashlib.sha256(tokens.cpu().contiguous().numpy()).hexdigest() for tokens in self.tokens]

    def codes(self, group: int) -> np.ndarray:
        """Return a group's semantic IDs without padding, int64 [N, L], 0-based codes."""
        return self.tokens[group, 1:].cpu().numpy() - np.asarray(self.vocabulary.level_offsets)

    @property
    def labels(self) -> list[str]:
        """A short name for each group."""
        return group_labels([(group.prefix, group.epoch) for group in self.groups])

    def trie(self, group: int) -> PrefixTrie:
        """Return the group's items as a prefix trie on the table's device; trie row r is item id r + 1."""
        if group not in self._tries:
            self._tries[group] = PrefixTrie(self.tokens[group, 1:], self.vocabulary.size)
        return self._tries[group]

    def items_of(self, group: int, semantic_ids: Tensor) -> Tensor:
        """Return the item id of each semantic ID: int [..., L] of tokens to int64 [...], 0 where it is no item's."""
        return self.trie(group).find(semantic_ids) + 1

    def to(self, device: torch.device) -> "TokenTable":
        """Return the table with its tensor on `device`."""
        return TokenTable(self.tokens.to(device), self.groups, self.vocabulary)


def write_sem_ids(file: Path, item_names: Sequence[str], codes: np.ndarray) -> None:
    """Write the published format {item: [code per level]}, whole or not at all.

    Args:
        item_names: N names in item id order, without padding.
        codes: int [N, L], 0-based codes, disambiguation (from 1) last.
    """
    write_json(file, dict(zip(item_names, codes.tolist(), strict=True)), indent=None)


def read_sem_ids(file: Path, item_names: Sequence[str], sizes: Sequence[int]) -> np.ndarray:
    """Read a file of {item: [code per level]} into codes in the order of the N names, int32 [N, L].

    Raises:
        InputError: An item is missing or unknown, a code is out of range, the number of levels differs, or two items
            share a semantic ID; names the file, the item and the count.
    """
    table = read_json(file)
    if not isinstance(table, dict):
        raise InputError(f"{file} is not a dictionary {{item: [codes]}}")
    rows = list(map(table.get, item_names))
    if None in rows:
        missing = [name for name in item_names if table.get(name) is None]
        raise InputError(f"{file}: {len(missing)} of {len(item_names)} items have no semantic ID, first {missing[0]!r}")
    if len(table) > len(item_names):
        unknown = sorted(set(table) - set(item_names))
        raise InputError(f"{file}: {len(unknown)} items are not in the dataset, the first is {unknown[0]!r}")
    lists = set(map(type, rows)) == {list} and set(map(len, rows)) == {len(sizes)}
    if not lists or set(map(type, chain.from_iterable(rows))) != {int}:  # all at once, since that is quicker
        good = [isinstance(row, list) and [type(code) for code in row] == [int] * len(sizes) for row in rows]
        wrong = [name for name, is_good in zip(item_names, good, strict=True) if not is_good]
        raise InputError(
            f"{file}: {len(wrong)} items have no list of {len(sizes)} integer codes, the first is {wrong[0]!r}: "
            f"{table[wrong[0]]}; check --n_codebooks"
        )
    try:
        codes = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=len(rows) * len(sizes))
    except OverflowError:
        raise InputError(f"{file}: a code does not fit in 32 bits") from None
    codes = codes.reshape(len(rows), len(sizes))
    lowest = [0] * (len(sizes) - 1) + [1]  # the disambiguation code counts from 1
    bad = np.flatnonzero(((codes < lowest) | (codes >= sizes)).any(axis=1))
    if len(bad):
        raise InputError(
            f"{file}: {len(bad)} items have a code out of range, the first is {item_names[bad[0]]!r}: "
            f"{codes[bad[0]].tolist()} for level sizes {list(sizes)} (the last level counts from 1); "
            "check --codebook_size"
        )
    ordered = codes[np.lexsort(codes.T[::-1])]
    again = (ordered[1:] == ordered[:-1]).all(axis=1)  # the row before has the same semantic ID
    if again.any():
        shared = ordered[again.argmax()]
        twins = [item_names[i] for i in np.flatnonzero((codes == shared).all(axis=1))]
        raise InputError(
            f"{file}: {int(again.sum())} items share another's semantic ID, "
            f"for example {twins[0]!r} and {twins[1]!r}: {shared.tolist()}"
        )
    return codes


def find_sem_ids(
    folder: Path, suffix: str = "sem_ids", tokenizer: str | None = None
) -> dict[str, dict[int | None, Path]]:
    """Find a dataset's files in the folder of one tokenizer; by default rqvae/, and the others where that has none.

    Returns:
        {prefix relative to the dataset's folder: {epoch, None for the best: file}}, both sorted.
    """
    files = sorted((folder / (tokenizer or TOKENIZER_FOLDER)).glob(f"*.{suffix}"))
    if tokenizer is None:
        files = files or sorted(folder.glob(f"*/*.{suffix}"))
    found: dict[str, dict[int | None, Path]] = {}
    for file in files:
        name, epoch = re.fullmatch(r"(.+?)(?:_(\d+))?", file.name.removesuffix(f".{suffix}")).groups()
        found.setdefault(f"{file.parent.name}/{name}", {})[int(epoch) if epoch else None] = file
    return {prefix: dict(sorted(found[prefix].items(), key=lambda pair: pair[0] or 0)) for prefix in sorted(found)}


def resolve_groups(
    folder: Path,
    token_prefix: str | list[str] | None = None,
    epochs: list[int] | None = None,
    suffix: str = "sem_ids",
    last: int | None = None,
) -> list[Group]:
    """Choose tokenizer groups: all prefixes x epochs, in that order.

    Args:
        folder: The dataset's folder.
        token_prefix: One or several prefixes, relative to the dataset's folder or to its rqvae/ folder;
            None takes the only one there is. One that ends with @18:20 or @best takes these epochs instead of `epochs`.
        epochs: 1-based RQ-VAE epochs; None takes every epoch present, or the best checkpoint where none has a number.
        suffix: File name suffix.
        last: With `epochs` None, take only that many of the last epochs present.

    Raises:
        InputError: No file, several prefixes to choose from, or an epoch without a file; lists what is there.
    """
    prefixes = [token_prefix] if isinstance(token_prefix, str) else token_prefix
    if prefixes is None:
        prefixes = list(find_sem_ids(folder, suffix))
        if not prefixes:
            raise InputError(f"{folder} has no .{suffix} files; make them with tokenizer/run.sh")
        if len(prefixes) > 1:
            raise InputError(f"{folder} has several tokenizers, choose with --token_prefix: {' '.join(prefixes)}")
    return [group for prefix in prefixes for group in _groups_of(folder, prefix, epochs, suffix, last)]


def _groups_of(folder: Path, prefix: str, epochs: list[int] | None, suffix: str, last: int | None) -> list[Group]:
    """Choose the groups of one prefix, as `resolve_groups` does."""
    if own := re.fullmatch(r"(.+)@(best|[\d:,]+)", prefix):
        prefix, epochs = own[1], [None] if own[2] == "best" else expand_epochs(own[2])
    full = prefix if "/" in prefix else f"{TOKENIZER_FOLDER}/{prefix}"
    tokenizer_folder = (folder / full).parent
    if (tokenizer_folder / TRAINING_FILE).exists() and not (tokenizer_folder / QUALITY_FILE).exists():
        raise InputError(
            f"{tokenizer_folder} lacks semantic IDs: its training or export was interrupted; "
            "run tokenizer/run.sh again with RESUME=1"
        )
    there = find_sem_ids(folder, suffix, tokenizer_folder.name)
    if full not in there:
        names = " ".join(there) or "none"
        raise InputError(f"{folder} has no files {full}_<epoch>.{suffix}; prefixes in that folder: {names}")
    present = there[full]
    numbered = [epoch for epoch in present if epoch is not None]
    if epochs is None and last and len(numbered) < last:
        raise InputError(
            f"{folder / full} has {len(numbered)} numbered .{suffix} files, {last} are wanted: keep more epochs "
            "with tokenizer/run.sh --save_last, or lower --num_tokenizers"
        )
    chosen = epochs if epochs is not None else numbered[-(last or 0) :] or [None]
    missing = [str(epoch) for epoch in chosen if epoch not in present]
    if missing:
        span = f"{numbered[0]}..{numbered[-1]} ({len(numbered)} epochs)" if numbered else "none"
        raise InputError(f"{folder / full}_<epoch>.{suffix}: no file for epoch {', '.join(missing)}; present: {span}")
    return [Group(full, epoch, present[epoch]) for epoch in chosen]


def flags_of_tokenizers(tokenizers: Iterable[tuple[str, int | None]]) -> tuple[list[str], list[int | None] | None]:
    """Return what --token_prefix and --sem_id_epochs take for tokenizers (prefix, epoch): prefixes and epochs.

    Of kinds whose epochs are not the same each prefix has its own behind an @, and the epochs are None. So it is with
    best checkpoints, which no number names.
    """
    epochs: dict[str, list[int | None]] = {}
    for prefix, epoch in tokenizers:
        epochs.setdefault(prefix, []).append(epoch)
    first, *others = epochs.values()
    if first != [None] and all(of_other == first for of_other in others):
        return list(epochs), first
    return [f"{prefix}@{','.join(str(epoch or 'best') for epoch in own)}" for prefix, own in epochs.items()], None


def load_token_table(groups: list[Group], item_names: Sequence[str], vocabulary: Vocabulary) -> TokenTable:
    """Read the groups' files into one table; `item_names` are those of item ids 1..N, without padding."""
    tokens = np.zeros((len(groups), len(item_names) + 1, vocabulary.num_levels), dtype=np.int32)
    for row, group in zip(tokens, groups, strict=True):
        row[1:] = read_sem_ids(group.file, item_names, vocabulary.sizes) + np.asarray(vocabulary.level_offsets)
    return TokenTable(torch.from_numpy(tokens), groups, vocabulary)


def check_semantic_ids(known: list[str], table: TokenTable, model: object, remedy: str) -> None:
    """Refuse a model that was trained with other semantic IDs than the table's.

    Args:
        known: Hashes of the groups that the model was trained with; empty where it does not say.
        model: Where it comes from, for the error.
        remedy: What to do about it, for the error.
    """
    others = [str(group.file) for group, digest in zip(table.groups, table.sha256, strict=True) if digest not in known]
    if known and others:
        raise InputError(
            f"the model {model} was trained with other semantic IDs than {', '.join(others)}: its tokens mean other "
            f"items; {remedy}"
        )
