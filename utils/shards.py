"""Long work in numbered shards: shared by processes, kept over interruptions, independent of how many share it."""

import shutil
from pathlib import Path

from utils.files import read_json, write_json


class Shards:
    """Files of `count` finished shards, numbered from 0, beside the file `target` that they will become.

    Shards that were `made_of` something else, JSON values, are thrown away.
    """

    def __init__(self, target: Path, made_of: dict, count: int):
        self.folder = target.with_name(f".{target.name}.shards")
        self.made_of = made_of | {"shards": count}
        self.count = count

    def open(self) -> str:
        """Prepare the folder, on one process before any other looks at it; return what was found, in words."""
        file, note = self.folder / "settings.json", ""
        if self.folder.exists():
            if file.is_file() and read_json(file) == self.made_of:
                return f"going on: {self.count - len(self.missing())} of {self.count} shards were finished before"
            note = "starting over: an interrupted run had other settings"
            shutil.rmtree(self.folder)
        write_json(file, self.made_of)
        return note

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
