import errno
import gc
import json
from itertools import chain
from pathlib import Path

import pytest

from utils.errors import InputError
from utils.files import (
    atomic_folder,
    atomic_path,
    check_checksums,
    read_json,
    read_json_pieces,
    remove_leftovers,
    remove_leftovers_of,
    write_checksums,
    write_json,
    write_text,
)


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


@pytest.mark.parametrize("content", [b'{"a": 1, "a": 2}', b'{"b": [{"a": 1, "a": 1}]}'])
def test_a_key_that_comes_twice_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match="the key 'a' comes twice"):
        read_json(tmp_path / "a.json")


def test_checksums_notice_every_change(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    files = [tmp_path / "a", tmp_path / "deep" / "b"]
    for file in files:
        file.write_text("content")
    write_checksums(tmp_path, files)
    check_checksums(tmp_path)
    files[1].write_text("Content")
    with pytest.raises(InputError, match="deep/b is not what was written: its checksum differs"):
        check_checksums(tmp_path)
    files[1].unlink()
    with pytest.raises(InputError, match="deep/b does not exist"):
        check_checksums(tmp_path)
    for content in ("{}", "[]"):
        (tmp_path / "sha256.json").write_text(content)
        with pytest.raises(InputError, match="holds no checksums"):
            check_checksums(tmp_path)


def test_leftovers_of_killed_processes_go(tmp_path: Path):
    for name in (".model.7.old", ".model.7.tmp", "model", ".best.1.8.old"):
        (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / "model" / ".a.json.7.tmp").write_text("half")
    (tmp_path / "run" / "model" / "a.json").write_text("whole")
    (tmp_path / "run" / ".best.1.8.old" / "weights").write_text("put aside")
    remove_leftovers(tmp_path)
    assert sorted(str(path.relative_to(tmp_path / "run")) for path in tmp_path.glob("run/**/*")) == [
        "best.1",
        "best.1/weights",
        "model",
        "model/a.json",
    ]


def test_what_was_half_written_of_one_folder_goes_and_that_of_others_stays(tmp_path: Path):
    for name in (".a.7.tmp", ".a.8.old", ".a.b.7.tmp", ".a.prepare", "b", ".b.7.old"):
        (tmp_path / name).mkdir()
    (tmp_path / ".a.8.old" / "file").write_text("put aside")
    remove_leftovers_of(tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.b.7.tmp", ".a.prepare", ".b.7.old", "a", "b"]
    assert (tmp_path / "a" / "file").read_text() == "put aside"
    remove_leftovers_of(tmp_path / "b")
    assert not (tmp_path / ".b.7.old").exists()


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_rename_that_fails_brings_the_old_folder_back(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    target = tmp_path / "model"
    with atomic_folder(target) as temporary:
        (temporary / "old").write_text("x")
    rename = Path.rename

    def fail(path: Path, new: Path) -> Path:
        if path.suffix == ".tmp":
            raise error
        return rename(path, new)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(type(error)), atomic_folder(target) as temporary:
        (temporary / "new").write_text("x")
    assert (names(target), names(tmp_path)) == (["old"], ["model"])


@pytest.mark.parametrize("indent", [None, 2])
def test_json_in_pieces(tmp_path: Path, indent: int | None):
    """Cuts may fall into strings that look like the end of a list, and into nested lists."""
    value = {f"k{n}": ["]," * 3, '"],', [["a"], ["b"]], n, "{}"] for n in range(50)}
    file = tmp_path / "a.json"
    file.write_text(json.dumps(value, indent=indent))
    for size in (1, 7, 100, 1000):
        pieces = list(read_json_pieces(file, size))
        assert len(pieces) > 1
        assert list(chain.from_iterable(piece.items() for piece in pieces)) == list(value.items())
    assert list(read_json_pieces(file)) == [value]


@pytest.mark.parametrize(
    "text", ['{"a": [1], "b": [2]', '{"a": [1], "b": [2]} x', 'x {"a": [1], "b": [2]}', '{"a": [1], "b"]}']
)
def test_broken_json_is_not_read_in_pieces(tmp_path: Path, text: str):
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(InputError, match=r"a\.json is not a whole JSON file"):
        list(read_json_pieces(file, 4))


def test_other_json_is_one_piece(tmp_path: Path):
    file = tmp_path / "a.json"
    file.write_text('["a", "b", "c"]')
    assert list(read_json_pieces(file, 4)) == [["a", "b", "c"]]
    with pytest.raises(InputError, match="does not exist"):
        list(read_json_pieces(tmp_path / "b.json"))


def test_reading_leaves_the_cycle_collector_as_it_was(tmp_path: Path):
    (tmp_path / "a.json").write_text("{}")
    gc.disable()
    try:
        read_json(tmp_path / "a.json")
        assert not gc.isenabled()
    finally:
        gc.enable()
    read_json(tmp_path / "a.json")
    assert gc.isenabled()
