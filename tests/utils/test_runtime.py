import errno
import io
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from utils import runtime
from utils.errors import InputError
from utils.interrupts import Stopped
from utils.runtime import (
    choose_device,
    describe_environment,
    join_processes,
    peak_memory_mb,
    run_command,
    seed_everything,
)

CPU = torch.device("cpu")


def raising(error: BaseException):
    def main() -> None:
        raise error

    return main


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_success_returns(capsys: pytest.CaptureFixture):
    run_command(lambda: print("done"))
    assert capsys.readouterr() == ("done\n", "")


def test_what_cannot_be_printed_ends_nothing(monkeypatch: pytest.MonkeyPatch):
    def main() -> None:
        print("dé: 中")
        raise InputError("no 中")

    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == 2
    for stream, said in zip(streams.values(), (b"d\\xe9: \\u4e2d\n", b"error: no \\u4e2d\n"), strict=True):
        stream.flush()
        assert stream.buffer.getvalue() == said


@pytest.mark.parametrize(("error", "code"), [(InputError("mend it"), 2), (FloatingPointError("mend it"), 1)])
def test_errors_become_one_sentence_of_rank_0(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    for rank, said in ((None, "error: mend it\n"), ("0", "error: mend it\n"), ("1", "")):
        if rank is not None:
            monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as caught:
            run_command(raising(error))
        assert caught.value.code == code
        assert capsys.readouterr() == ("", said)


def test_what_the_main_process_may_not_know_is_said_by_the_one_that_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    cases = [
        (MemoryError("full"), "1", "process 5: error: full\n"),
        (OSError("no disk"), "1", "process 5: error: no disk\n"),
        (InputError("mend it"), "0", "process 5: error: mend it\n"),  # the first of another machine
        (InputError("mend it"), "1", ""),
        (Stopped("saved"), "0", ""),
    ]
    monkeypatch.setenv("RANK", "5")
    for error, local_rank, said in cases:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        with pytest.raises(SystemExit):
            run_command(raising(error))
        assert capsys.readouterr().err == said


def test_failures_of_the_disk_say_what_to_do(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as caught:
        run_command(raising(OSError(errno.ENOSPC, "No space left on device", "a/file")))
    assert caught.value.code == 1
    assert capsys.readouterr().err == (
        "error: writing failed: [Errno 28] No space left on device: 'a/file'; what was written before is whole: "
        "make room and go on with --resume\n"
    )


@pytest.mark.parametrize(("error", "code"), [(Stopped("saved"), 75), (KeyboardInterrupt(), 130), (MemoryError("m"), 1)])
def test_stops_have_codes_of_their_own(error: BaseException, code: int, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as caught:
        run_command(raising(error))
    assert caught.value.code == code
    assert capsys.readouterr().err in ("saved\n", "error: interrupted\n", "error: m\n")


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("utils.errors.show_traceback", True)
    with pytest.raises(InputError, match="mend it"):
        run_command(raising(InputError("mend it")))


def test_mistakes_in_the_program_keep_their_traceback(capsys: pytest.CaptureFixture):
    with pytest.raises(ValueError, match="a mistake"):
        run_command(raising(ValueError("a mistake")))
    assert capsys.readouterr().err == ""


def test_the_same_seed_gives_the_same_numbers():
    def draw(seed: int) -> tuple[float, float, float]:
        seed_everything(seed)
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    first = draw(7)
    assert draw(7) == first
    assert all(a != b for a, b in zip(draw(8), first, strict=True))


def test_reproducibility_chooses_deterministic_kernels():
    for reproducible in (False, True):
        seed_everything(1, reproducible)
        assert torch.are_deterministic_algorithms_enabled() is reproducible
        assert torch.backends.cudnn.deterministic is reproducible
        assert torch.backends.cudnn.benchmark is not reproducible
    assert torch.is_deterministic_algorithms_warn_only_enabled()


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch):
    processes, device = join_processes("cpu")
    assert (processes.num_processes, processes.is_main_process, device.type) == (1, True, "cpu")
    with pytest.raises(InputError, match=r"--device=nonsense is no device; use auto, cpu, cuda or cuda:1"):
        join_processes("nonsense")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 processes were started but each runs alone"):
        join_processes("cpu")
    with pytest.raises(InputError, match="lower NUM_GPUS"):
        join_processes("cpu", remedy="lower NUM_GPUS")


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(InputError, match="4 processes were started, but this machine shows 2 GPUs; lower NUM_GPUS"):
        join_processes(remedy="lower NUM_GPUS")
    assert join_processes("cpu")[1].type == "cpu"


def test_a_gpu_without_memory_is_said_in_a_sentence(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as caught:
        run_command(raising(torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.\nmore")))
    assert caught.value.code == 1
    sentence = "error: CUDA out of memory. Tried 2 GiB. A smaller batch needs less (--help names its flag)\n"
    assert capsys.readouterr().err == sentence


def test_devices(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert choose_device("auto").type == "cpu"
    for choose in (choose_device, join_processes):
        with pytest.raises(InputError, match="--device=cuda: this machine shows 0 GPUs; use --device=cpu"):
            choose("cuda")
        with pytest.raises(InputError, match="--device=gpu is no device"):
            choose("gpu")


def test_environment_names_command_versions_and_processes():
    found = describe_environment(CPU, num_processes=3)
    assert found["command"].split()[0].endswith(sys.orig_argv[0])
    assert found["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert found["hardware"].startswith("3 x ")
    assert found["threads"] == torch.get_num_threads()


def test_commit_is_gits_and_marked_where_other_files_than_results_differ(tmp_path):
    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True).stdout

    assert runtime._commit(tmp_path) is None
    code, results = tmp_path / "code.py", tmp_path / "experiments" / "results" / "jobs.jsonl"
    results.parent.mkdir(parents=True)
    git("init", "--quiet")
    for file in (code, results):
        file.write_text("1")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a", "commit", "--quiet", "--message=a")
    head = git("rev-parse", "HEAD")[:12]
    results.write_text("2")
    assert runtime._commit(tmp_path) == head
    code.write_text("2")
    assert runtime._commit(tmp_path) == f"{head}-dirty"


def test_peak_memory_grows_with_what_is_held():
    before = peak_memory_mb(CPU)["machine"]
    block = torch.ones(int(before * 2**20) // 8 + 50 * 2**18)  # half of the peak in addition, and more
    held = torch.ones_like(block)
    assert peak_memory_mb(CPU)["machine"] > before
    assert held.numel() == block.numel()
