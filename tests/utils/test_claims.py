from pathlib import Path

import pytest

from utils.claims import claim
from utils.errors import InputError

PLACE = Path("runs/one")


def answer(found: str, differences: str = "", **flags: object) -> str:
    """Return what `claim` answers, or the error's sentence."""
    try:
        return claim(PLACE, found, differences, **flags)
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("flags", [{}, {"overwrite": True}, {"resume": True}, {"reuse": True}, {"protected": "is not"}])
def test_where_nothing_is_it_is_made(flags):
    assert answer("nothing", **flags) == "make"


def test_what_is_there_is_refused():
    for found in ("unfinished", "finished"):
        assert answer(found) == "runs/one is there already; --overwrite replaces it"
        assert answer(found, refusal="holds a run") == "runs/one holds a run"
    assert answer("unfinished", reuse=True).startswith("runs/one is there")
    assert answer("finished", resume=True).startswith("runs/one is there")


def test_overwriting_makes_anew_but_for_what_is_protected():
    assert answer("finished", "lr was 1, now 2", overwrite=True, reuse=True, resume=True) == "make"
    assert answer("finished", overwrite=True, protected="is no run") == "runs/one is no run"
    assert answer("finished", protected="is no run") == "runs/one is no run"


def test_the_same_is_resumed_or_reused_even_where_it_could_be_overwritten():
    flags = {"resume": True, "reuse": True, "overwrite": True, "protected": "is no run"}
    assert (answer("unfinished", **flags), answer("finished", **flags)) == ("resume", "reuse")


def test_something_else_is_neither_resumed_nor_reused():
    for found in ("unfinished", "finished"):
        said = answer(found, "lr was 1, now 2", resume=True, reuse=True, refusal="holds another run (lr was 1, now 2)")
        assert said == "runs/one holds another run (lr was 1, now 2)"


def test_a_place_that_exists_holds_something_finished(tmp_path: Path):
    assert claim(tmp_path / "new") == "make"
    assert claim(tmp_path, reuse=True) == "reuse"
    with pytest.raises(InputError, match="is there already; --overwrite replaces it"):
        claim(tmp_path)
