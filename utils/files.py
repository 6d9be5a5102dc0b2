"""Files that are whole or not there: written under a temporary name beside the target, then renamed."""

import gc
import hashlib
import json
import mmap
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

from utils.errors import InputError

CHECKSUMS_FILE = "sha256.json"


@contextmanager
def atomic_path(path: Path | str, is_folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it, on an error remove it.

    A symbolic link stays: what it leads to is written. A folder is yielded empty, and replaces what is there.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{ending}") for ending in ("tmp", "old"))
    remove(temporary)
    if is_folder:
        temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*") if is_folder else [temporary]:
            if file.is_file():
                with open(file, "rb+") as handle:
                    os.fsync(handle.fileno())
        if is_folder and path.exists():
            path.rename(old)
        temporary.rename(path) if is_folder else temporary.replace(path)
    finally:
        if old.exists() and not path.exists():  # an error or Ctrl-C between the two renames
            old.rename(path)
        remove(temporary)
        remove(old)


atomic_folder = partial(atomic_path, is_folder=True)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any, indent: int | None = 2) -> None:
    """Write `value` as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def read_json(path: Path | str, *keys: str) -> Any:
    """Read a JSON file, or what it holds under a key of a key; InputError if it is absent, no JSON, or has no such."""
    path = Path(path)
    try:
        value = _parse(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a whole JSON file in UTF-8: {error}") from None
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise InputError(f"{path} holds no {'/'.join(keys)}; make it again")
        value = value[key]
    return value


def _parse(content: bytes) -> Any:
    """Parse JSON, without the search for cycles, which it cannot have: that is half of the time of many lists."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return json.loads(content.decode(json.detect_encoding(content)), object_pairs_hook=_without_repeats)
    finally:
        if was_enabled:
            gc.enable()


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dictionary of JSON's pairs; where a key comes twice, there is no telling which value is meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {name!r} comes twice")
    return found


def write_checksums(folder: Path, files: Iterable[Path]) -> None:
    """Write what `check_checksums` checks the folder's files against."""
    write_json(folder / CHECKSUMS_FILE, {str(file.relative_to(folder)): sha256_of(file) for file in files})


def check_checksums(folder: Path) -> None:
    """Raise InputError if a file of the folder is not what was written, or there are no checksums."""
    expected = read_json(folder / CHECKSUMS_FILE)
    if not isinstance(expected, dict) or not expected:
        raise InputError(f"{folder / CHECKSUMS_FILE} holds no checksums")
    for name, digest in expected.items():
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} does not exist")
        if sha256_of(folder / name) != digest:
            raise InputError(f"{folder / name} is not what was written: its checksum differs")


def sha256_of(file: Path) -> str:
    """Return the hash of a file's bytes."""
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half-written in `folder`; none may be writing there.

    A folder that was put aside for a new one that never came is put back.
    """
    for path in [*folder.rglob(".*.tmp"), *folder.rglob(".*.old")]:
        _clear_leftover(path)


def remove_leftovers_of(target: Path) -> None:
    """Do the same with what was half-written of a file or folder, whatever else lies beside it."""
    for path in target.parent.glob(f".{escape(target.name)}.*"):
        if re.fullmatch(r"\.\d+\.(tmp|old)", path.name[1 + len(target.name) :]):
            _clear_leftover(path)


def _clear_leftover(path: Path) -> None:
    target = path.with_name(path.name[1:].rsplit(".", 2)[0])
    if path.suffix == ".old" and not target.exists():
        path.rename(target)
    else:
        remove(path)


def read_json_pieces(path: Path | str, piece_size: int = 2**24) -> Iterator[Any]:
    """Read a JSON dictionary of lists as smaller dictionaries, so that only one piece is in memory at a time.

    A file of at most `piece_size` bytes, or of anything else than such a dictionary, is one piece. Raises as read_json.
    """
    path = Path(path)
    if not path.is_file() or path.stat().st_size <= piece_size:
        yield read_json(path)
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start, last = content.find(b"{") + 1, content.rfind(b"}")
        whole = content[:start].strip() == b"{" and content[last:].strip() == b"}"
        cut, ahead = start, piece_size
        while whole and cut >= 0:
            cut = content.find(b"],", cut + ahead)
            end = cut + 1 if cut >= 0 else last
            try:
                piece = _parse(b"{" + content[start:end] + b"}")
            except (ValueError, RecursionError):
                whole = cut >= 0  # the cut lies inside a string or a nested list: try another, ever farther ahead
                ahead = 1 if ahead == piece_size else 2 * ahead
            else:
                yield piece
                start, ahead = end + 1, piece_size
    if not whole:
        yield read_json(path)


def whole_characters(text: str) -> str:
    """Return a text with a ? for each half of a character, such as an emoji cut in two: UTF-8 has no such thing."""
    return text.encode("utf-8", "replace").decode()
