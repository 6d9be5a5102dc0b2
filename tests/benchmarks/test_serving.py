import random
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest
from tiny_dataset import make_dataset
from tiny_runs import make_untrained_run

from benchmarks import serving_fuzz, serving_load
from utils.errors import InputError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving")
    return make_untrained_run(make_dataset(folder / "datasets" / "Tiny"), folder / "runs" / "Tiny" / "joint")


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[tuple[psutil.Process, int]]:
    """Start a server as the fuzzer does."""
    flags = (f"--max_body_bytes={serving_fuzz.MAX_BODY_BYTES}", "--token=right", "--num_threads=1")
    with serving_load.serving(model, *flags) as server:
        yield server


@pytest.fixture
def started(server: tuple[psutil.Process, int], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have the measurements use that one server; return the flags that they would start theirs with."""
    flags = []

    def serving(model: str, *given: str) -> nullcontext:
        flags.extend(given)
        return nullcontext(server)

    for module in (serving_load, serving_fuzz):
        monkeypatch.setattr(module, "serving", serving)
    return flags


@pytest.mark.slow
def test_malformed_requests_are_refused_and_the_server_answers_as_before(
    model: Path, started: list[str], capsys: pytest.CaptureFixture
):
    serving_fuzz.main([f"--model={model}", "--requests=250", "--rand_seed=3"])
    lines = capsys.readouterr().out.splitlines()
    assert started == ["--max_body_bytes=100000", "--token=right"]
    assert lines[-1].startswith("250 requests, all refused; memory grew by ")
    assert lines[-1].endswith(" MB; it answers as before")
    assert {line.split("  ")[0] for line in lines[1:-1]} == set(serving_fuzz.KINDS)


def test_a_request_that_is_not_refused_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serving_fuzz, "ask", lambda *_: (200, b"{}"))
    statuses = iter([422, 404, 500])
    monkeypatch.setattr(serving_fuzz, "status_of", lambda *_: next(statuses))
    with pytest.raises(InputError, match="status 500 for b'"):
        serving_fuzz.fuzz(1, 3, 0)
    answers = iter([(200, b"{}"), (200, b"[]")])
    monkeypatch.setattr(serving_fuzz, "ask", lambda *_: next(answers))
    monkeypatch.setattr(serving_fuzz, "status_of", lambda *_: 422)
    with pytest.raises(InputError, match="the server does not answer as before"):
        serving_fuzz.fuzz(1, 3, 0)


def test_the_seed_decides_what_is_sent():
    def sent(seed: int) -> list[bytes]:
        return [make(random.Random(seed)) for make in serving_fuzz.KINDS.values()]

    assert sent(1) == sent(1) != sent(2)


@pytest.mark.slow
def test_both_ways_and_the_memory_are_measured(model: Path, started: list[str], capsys: pytest.CaptureFixture):
    flags = ["--clients=[1,3]", "--seconds=0.3", "--num_threads=1", "--num_beams=5", "--memory_requests=40"]
    serving_load.main([f"--model={model}", *flags])
    assert started == ["--num_threads=1", "--num_threads=1", "--max_batch=1", "--num_threads=1"]
    lines = [re.split("  +", line) for line in capsys.readouterr().out.splitlines()[2:]]
    rows, memory = lines[:4], lines[5:]
    assert [row[:2] for row in rows] == [[mode, count] for mode in ("batches", "one at a time") for count in "13"]
    for _, _, *percentiles, rate, count in rows:
        milliseconds = [float(value.removesuffix(" ms")) for value in percentiles]
        assert 0 < milliseconds[0] <= milliseconds[1] <= milliseconds[2]
        assert float(rate) > 0 < int(count)
    assert int(memory[-1][0]) >= 40
    assert int(memory[-1][1].removesuffix(" MB")) > 50


def test_the_model_of_the_papers_size_is_loaded_by_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from inference.recommend import load

    write, architecture = serving_load.write_dataset, serving_load.Architecture
    monkeypatch.setattr(
        serving_load, "write_dataset", lambda folder, num_tokenizers: write(folder, 400, num_tokenizers)
    )
    monkeypatch.setattr(serving_load, "Architecture", lambda sizes, **_: architecture(sizes, 1, 1, 1, 8, 16, 2, 4))
    model = load(serving_load.write_paper_model(tmp_path))
    assert model.catalogue.num_items == 61
    assert len(model.recommend([[model.catalogue.names[1]]], k=3)[0][0]) == 3


def test_wrong_flags():
    with pytest.raises(InputError, match=r"seconds=0.0 must be positive; clients=\[0\] are at least 1 each"):
        serving_load.main(["--seconds=0", "--clients=[0]"])
    with pytest.raises(InputError, match="--model is needed"):
        serving_fuzz.main([])
