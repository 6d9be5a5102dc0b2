"""kill -9 at seeded moments of every phase; the resumed run is the uninterrupted run, bit for bit."""

import os
import random

import pytest
from forked import Counted

pytestmark = pytest.mark.slow

LONG = os.environ.get("FAULTS") == "long"  # bash test.sh --faults
SMALL = ("flush of a file", "rename of a folder")
KINDS = {
    "train": ["tokenizer epoch", "flush of a file"],
    "export": ["rename of a file"],
    "pretrain": ["influence batch", "training step", "evaluation batch", *SMALL],
    "finetune": ["training step", "evaluation batch", *SMALL],
}


def moments(command: str, kind: str, counts: dict[str, int], number: int) -> list[int]:
    """Draw `number` occurrences of a kind of moment in a command; the same ones each time."""
    rng = random.Random(f"{command} {kind}")
    return [rng.randint(1, counts[kind]) for _ in range(number)]


SHORT = [("train", "tokenizer epoch"), ("train", "flush of a file"), ("export", "rename of a file")]
SHORT += [("pretrain", kind) for kind in ("training step", "influence batch", "evaluation batch")]
SHORT += [("pretrain", "rename of a folder"), ("finetune", "flush of a file")]
ALL = [(command, kind) for command, kinds in KINDS.items() for kind in kinds]
CASES = [(*case, index) for case in (ALL if LONG else SHORT) for index in range(4 if LONG else 1)]


@pytest.mark.parametrize(("command", "kind", "index"), CASES)
def test_a_killed_run_goes_on_bit_for_bit(lab, command, kind, index):
    number = moments(command, kind, lab.count(command), index + 1)[index]
    name = f"{command}_{kind}_{index}".replace(" ", "_")
    minutes = 0 if index % 2 == 0 else 0.001  # after every step, or some steps apart
    arguments = [f"--checkpoint_minutes={minutes}"]
    code = lab.run(command, name, *arguments, counted=Counted(kind, number))
    assert code == -9 or (minutes and code == 0)  # fewer files are written where fewer states are saved
    assert lab.run(command, name, *arguments, "--resume") == 0, lab.log(name).read_text()
    lab.compare(command, name)
