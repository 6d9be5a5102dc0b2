"""A disk that fails, signals, and states that were damaged: what was saved before serves to go on, bit for bit."""

import json
import os
import shutil
import signal
import time

import pytest
from forked import DISK_FAULTS, Counted

from utils.files import write_checksums
from utils.locks import LOCK_FILE, FileLock

pytestmark = pytest.mark.slow

LONG = os.environ.get("FAULTS") == "long"  # bash test.sh --faults


def said(lab, name: str) -> str:
    return lab.log(name).read_text()


def interrupted(lab, name: str, number: int = 30) -> None:
    """Leave a fine-tuning killed at its 1-based step `number`, with the states of the two steps before."""
    assert lab.run("finetune", name, "--checkpoint_minutes=0", counted=Counted("training step", number)) == -9


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 6, 7, 8, 9] if LONG else [3])
@pytest.mark.parametrize("fault", DISK_FAULTS)
def test_a_disk_that_fails_leaves_the_state_before(lab, fault, step):
    flushes = lab.count("finetune")["flush of a file"]
    name = f"disk_{fault}_{step}".replace(" ", "_").replace("/", "_")
    at = Counted("flush of a file", step * flushes // 10, DISK_FAULTS[fault])
    assert lab.run("finetune", name, "--checkpoint_minutes=0", counted=at) == 1
    last = said(lab, name).splitlines()[-1]
    assert last.startswith("error: writing failed: ")
    assert fault in last
    assert last.endswith("what was written before is whole: make room and go on with --resume")
    assert lab.run("finetune", name, "--resume") == 0
    assert "resumed after step" in said(lab, name)
    lab.compare("finetune", name)


@pytest.mark.parametrize(
    ("command", "kind", "number", "signal_number"),
    [
        ("train", "tokenizer epoch", 5, signal.SIGTERM),
        ("pretrain", "training step", 30, signal.SIGTERM),
        ("pretrain", "influence batch", 40, signal.SIGINT),
        ("pretrain", "evaluation batch", 8, signal.SIGTERM),
    ],
)
def test_a_signal_saves_and_ends_with_its_own_code(lab, command, kind, number, signal_number):
    """No state is due by time, so what is resumed is what the signal saved."""
    name, began = f"{signal_number.name}_{command}_{kind}".replace(" ", "_"), time.monotonic()
    at = Counted(kind, number, lambda: os.kill(os.getpid(), signal_number))
    assert lab.run(command, name, counted=at) == 75
    assert time.monotonic() - began < 30
    assert "--resume goes on" in said(lab, name).splitlines()[-1]
    assert lab.run(command, name, "--resume") == 0
    assert "resumed after" in said(lab, name)
    lab.compare(command, name)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "checksums"])
def test_a_damaged_state_is_skipped_for_the_one_before(lab, damage):
    interrupted(lab, damage)
    states = lab.output("finetune", damage) / "state"
    assert sorted(int(path.name) for path in states.iterdir()) == [29, 30]
    file = states / "30" / ("sha256.json" if damage == "checksums" else "tensors.safetensors")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    assert lab.run("finetune", damage, "--resume") == 0
    assert f"skipped the saved state {states / '30'}: " in said(lab, damage)
    assert f"resumed after step 28, 1 epochs done, from {states / '29'}" in said(lab, damage)
    lab.compare("finetune", damage)


def test_without_a_whole_state_nothing_is_thrown_away(lab):
    interrupted(lab, "none_whole", 5)
    states = lab.output("finetune", "none_whole") / "state"
    for file in states.glob("*/values.json"):
        file.write_text("{}")
    assert lab.run("finetune", "none_whole", "--resume") == 2
    assert "error: no saved state is whole (skipped the saved state" in said(lab, "none_whole")
    assert len(list(states.iterdir())) == 2


def test_resume_of_nothing_and_of_a_finished_run(lab):
    assert lab.run("finetune", "anew", "--resume") == 0
    assert f"{lab.output('finetune', 'anew')} has no saved state to resume: starting anew" in said(lab, "anew")
    lab.compare("finetune", "anew")
    before = said(lab, "anew")
    assert lab.run("finetune", "anew", "--resume") == 0
    after = said(lab, "anew").removeprefix(before)
    assert after == f"{lab.output('finetune', 'anew')} is already finished with these settings\n"


def test_an_interrupted_run_is_resumed_by_request_and_with_its_own_settings_only(lab):
    interrupted(lab, "asked")
    assert lab.run("finetune", "asked") == 2
    assert "holds an unfinished run; go on with --resume (RESUME=1), or start anew with" in said(lab, "asked")
    assert lab.run("finetune", "asked", "--resume", "--lr=0.5", "--num_beams=11", "--epochs=9") == 2
    assert "with other settings: num_beams=11 (there: 10); lr=0.5 (there: 0.01); resume it" in said(lab, "asked")
    assert lab.run("finetune", "asked", "--resume", "--gradient_accumulation_steps=2") == 2
    assert "its global batch was 16, now 32, which would change the order" in said(lab, "asked")
    assert lab.run("finetune", "asked", "--resume", "--epochs=1") == 2
    assert "the run asked cannot be resumed: epochs=1, but epoch 2 has begun" in said(lab, "asked")
    assert lab.run("finetune", "asked", "--resume", "--epochs=4") == 0
    assert "epoch 2/4" in said(lab, "asked")


def test_other_semantic_ids_are_noticed(lab):
    interrupted(lab, "other_ids")
    file = next(lab.tiny.glob("rqvae/*_2.sem_ids"))
    content = file.read_text()
    try:
        codes = json.loads(content)
        codes["item1"], codes["item2"] = codes["item2"], codes["item1"]
        file.write_text(json.dumps(codes))
        assert lab.run("finetune", "other_ids", "--resume") == 2
    finally:
        file.write_text(content)
    assert "other_ids cannot be resumed: semantic IDs of tokenizer 2 changed" in said(lab, "other_ids")


def test_two_runs_do_not_share_a_folder(lab):
    for command in ("train", "finetune"):
        folder, name = lab.output(command, f"shared_{command}"), f"shared_{command}"
        lock = FileLock(folder / LOCK_FILE)
        assert lab.run(command, name) == 2
        assert f"error: {folder} is in use by process {os.getpid()} on " in said(lab, name)
        assert [file.name for file in folder.iterdir()] == [LOCK_FILE]
        lock.release()


def test_a_finished_run_that_was_killed_before_its_model_folder_was_complete(lab):
    run = lab.output("finetune", "incomplete")
    shutil.copytree(lab.whole("finetune"), run)
    settings = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(settings.replace("run_name: whole_finetune", "run_name: incomplete"))
    for name in ("mtgrec.json", "items.jsonl", "README.md"):
        (run / "model" / name).unlink()
    write_checksums(run / "model", [run / "model" / "model.safetensors"])  # as training leaves it
    (run / "model").rename(run / ".model.77.old")  # between the two renames that put a folder in another's place
    assert lab.run("finetune", "incomplete", "--resume") == 0, said(lab, "incomplete")
    assert said(lab, "incomplete") == f"{run} is already finished with these settings\n"
    lab.compare("finetune", "incomplete")
