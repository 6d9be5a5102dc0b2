"""May a command write where something is already? One answer for all commands: make, resume, reuse, or refuse."""

from pathlib import Path
from typing import Literal

from utils.errors import InputError

Found = Literal["nothing", "unfinished", "finished"]
Claim = Literal["make", "resume", "reuse"]


def claim(
    place: Path,
    found: Found | None = None,
    differences: str = "",
    *,
    overwrite: bool = False,
    resume: bool = False,
    reuse: bool = False,
    refusal: str = "is there already; --overwrite replaces it",
    protected: str = "",
) -> Claim:
    """Decide what a command does with the file or folder that it is to make.

    Args:
        place: The file or folder.
        found: What is there; by default nothing or something finished, as the place exists or not.
        differences: In what that differs from what is asked for, in words; empty where it does not or does not matter.
        overwrite: Whether what is there may be replaced.
        resume, reuse: Whether to go on with something unfinished, or to take something finished as it is (even with
            `overwrite`), that does not differ.
        refusal: Said, after the place's name, where none of them allows anything.
        protected: Why not even `overwrite` may replace it, said likewise; empty where it may.

    Returns:
        make: write it, over what is there; resume: go on with what is there; reuse: nothing is to be done.

    Raises:
        InputError: What is there may not be touched.
    """
    if found == "nothing" or (found is None and not place.exists()):
        return "make"
    if not differences and found == "unfinished" and resume:
        return "resume"
    if not differences and found != "unfinished" and reuse:
        return "reuse"
    if protected or not overwrite:
        raise InputError(f"{place} {protected or refusal}")
    return "make"
