import json
from pathlib import Path

import pytest

from utils.errors import InputError
from utils.files import atomic_folder, atomic_path, read_json, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    file = tmp_path / "deep" / "a.txt"
    write_text(file, "first é")
    assert file.read_text(encoding="utf-8") == "first é"

    def fail_halfway() -> None:
        with atomic_path(file) as temporary:
            temporary.write_text("half")
            assert file.read_text(encoding="utf-8") == "first é"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert file.read_text(encoding="utf-8") == "first é"
    assert names(file.parent) == ["a.txt"]
    write_text(file, "second")
    assert file.read_text() == "second"


def test_json_round_trip(tmp_path: Path):
    value = {"é": [1, 2.5, None, "x"], "b": {}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert (tmp_path / "a.json").read_bytes() == (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
    write_json(tmp_path / "a.json", value, indent=None)
    assert (tmp_path / "a.json").read_text(encoding="utf-8").count("\n") == 1


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe{", b"{'a': 1}"])
def test_broken_json_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json is not a whole JSON file in UTF-8"):
        read_json(tmp_path / "a.json")


def test_absent_json_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"a\.json does not exist"):
        read_json(tmp_path / "a.json")


def test_atomic_folder_replaces_the_whole_folder(tmp_path: Path):
    target = tmp_path / "runs" / "model"
    for content in ("first", "second"):
        with atomic_folder(target) as temporary:
            (temporary / f"{content}.txt").write_text(content)
            (temporary / "deep").mkdir()
            (temporary / "deep" / "file").write_text(content)
        assert names(target) == ["deep", f"{content}.txt"]
        assert (target / "deep" / "file").read_text() == content
        assert names(target.parent) == ["model"]


def test_a_failed_folder_leaves_the_old_one(tmp_path: Path):
    target = tmp_path / "model"
    with atomic_folder(target) as temporary:
        (temporary / "whole").write_text("x")

    def fail_halfway() -> None:
        with atomic_folder(target) as temporary:
            (temporary / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert names(target) == ["whole"]
    assert names(tmp_path) == ["model"]
