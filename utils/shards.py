"""Long work in numbered shards: shared by processes, kept over interruptions, independent of how many share it."""

import shutil
from pathlib import Path

from utils.files import read_json, write_json


class Shards:
    """Files of finished shards beside the file that they will become.

    Args:
        target: The file that all shards together make.
        settings: JSON values that determine the shards; shards of other settings are thrown away.
        count: How many shards there are; shard i is 0-based.
    """

    def __init__(self, target: Path, settings: dict, count: int):
        self.folder = target.with_name(f".{target.name}.shards")
        self.settings = settings | {"shards": count}
        self.count = count

    def open(self) -> str:
        """Prepare the folder, on one process before any other looks at it; return what was found, in words."""
        note = ""
        if self.folder.exists():
            made_with = self.folder / "settings.json"
            if made_with.is_file() and read_json(made_with) == self.settings:
                return f"going on: {self.count - len(self.missing())} of {self.count} shards were finished before"
            note = "starting over: an interrupted run had other settings"
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        write_json(self.folder / "settings.json", self.settings)
        return note

    def path(self, index: int) -> Path:
        """Return the file of a shard; it is there when the shard is finished."""
        return self.folder / f"{index:06d}"

    def missing(self) -> list[int]:
        """Return the shards that are not finished."""
        return [index for index in range(self.count) if not self.path(index).exists()]

    def paths(self) -> list[Path]:
        """Return all shards' files in order."""
        return [self.path(index) for index in range(self.count)]

    def remove(self) -> None:
        """Delete the folder, once the target is written."""
        shutil.rmtree(self.folder)
