"""Long work in numbered shards: shared by processes, kept over interruptions, independent of how many share it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from utils.files import read_json, write_json
from utils.locks import LOCK_FILE, FileLock

if TYPE_CHECKING:
    from accelerate import Accelerator


class Shards:
    """Files of `count` finished shards, numbered from 0, beside the file `target` that they will become.

    Shards that were `made_of` something else, JSON values, are thrown away. From `open` to `close` others are kept out.
    """

    def __init__(self, target: Path, made_of: dict, count: int):
        self.folder = target.with_name(f".{target.name}.shards")
        self.made_of = made_of | {"shards": count}
        self.count = count
        self._lock: FileLock | None = None

    def open(self) -> str:
        """Prepare the folder, on one process before any other looks at it; return what was found, in words.

        Raises InputError where another command is at work in it.
        """
        file, note, found = self.folder / "settings.json", "", self.folder.exists()
        self._lock = FileLock(self.folder / LOCK_FILE)
        if found:
            if file.is_file() and read_json(file) == self.made_of:
                return f"going on: {self.count - len(self.missing())} of {self.count} shards were finished before"
            note = "starting over: an interrupted run had other settings"
            for path in self.folder.iterdir():
                if path.name != LOCK_FILE:
                    path.unlink()
        write_json(file, self.made_of)
        return note

    @contextmanager
    def shared(self, processes: "Accelerator") -> Iterator[tuple[str, list[int], list[int]]]:
        """Open the folder for all processes and close it in the end.

        Yields what was found, in words on the main process, the shards that are missing, and this process's of them.
        """
        try:
            note = self.open() if processes.is_main_process else ""
            processes.wait_for_everyone()
            missing = self.missing()
            processes.wait_for_everyone()  # nobody finishes a shard before everybody has looked
            yield note, missing, missing[processes.process_index :: processes.num_processes]
        finally:
            self.close()

    def path(self, index: int) -> Path:
        """Return the file of a shard; it is there when the shard is finished."""
        return self.folder / f"{index:06d}"

    def missing(self) -> list[int]:
        """Return the shards that are not finished."""
        return [index for index in range(self.count) if not self.path(index).exists()]

    def paths(self) -> list[Path]:
        """Return all shards' files in order."""
        return list(map(self.path, range(self.count)))

    def remove(self) -> None:
        """Delete the folder, once the target is written."""
        shutil.rmtree(self.folder)

    def close(self) -> None:
        """Let others in, whether the work is finished or not."""
        if self._lock:
            self._lock.release()
