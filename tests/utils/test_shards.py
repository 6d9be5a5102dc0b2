from pathlib import Path

import pytest

from utils.errors import InputError
from utils.shards import Shards


def test_finished_shards_are_kept_for_the_same_settings_only(tmp_path: Path):
    target = tmp_path / "out.bin"
    shards = Shards(target, {"k": 3}, 4)
    assert shards.open() == ""
    assert shards.missing() == [0, 1, 2, 3]
    for index in (0, 2):
        shards.path(index).write_text("done")
    with pytest.raises(InputError, match=r"\.out\.bin\.shards is in use by process \d+"):
        Shards(target, {"k": 4}, 4).open()
    shards.close()
    again = Shards(target, {"k": 3}, 4)
    assert again.open() == "going on: 2 of 4 shards were finished before"
    assert again.missing() == [1, 3]
    again.close()
    for other in (Shards(target, {"k": 4}, 4), Shards(target, {"k": 4}, 5)):
        assert other.open() == "starting over: an interrupted run had other settings"
        assert other.missing() == list(range(other.count))
        other.path(0).write_text("done")
        other.close()
    other.remove()
    assert list(tmp_path.iterdir()) == []


def test_paths_are_in_order(tmp_path: Path):
    shards = Shards(tmp_path / "out.bin", {}, 1200)
    names = [path.name for path in shards.paths()]
    assert names == sorted(names)
    assert len(set(names)) == 1200
