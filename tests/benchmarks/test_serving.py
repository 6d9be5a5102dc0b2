import random
from pathlib import Path

import pytest
from tiny_runs import make_untrained_run

from benchmarks import serving_fuzz, serving_load
from utils.errors import InputError


@pytest.fixture
def run(dataset: Path, tmp_path: Path) -> Path:
    return make_untrained_run(dataset, tmp_path / "runs" / "Tiny" / "joint")


@pytest.mark.slow
def test_malformed_requests_are_refused_and_the_server_answers_as_before(run: Path, capsys: pytest.CaptureFixture):
    serving_fuzz.main([f"--model={run}", "--requests=250", "--rand_seed=3"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("250 requests, all refused; memory grew by ")
    assert lines[-1].endswith(" MB; it answers as before")
    kinds = {line.split("  ")[0] for line in lines[1:-1]}
    assert kinds == set(serving_fuzz.KINDS)


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
def test_both_ways_and_the_memory_are_measured(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(serving_load, "MODES", {"batches": ()})
    flags = ["--clients=[1,3]", "--seconds=0.3", "--num_threads=1", "--num_beams=5", "--memory_requests=40"]
    serving_load.main([f"--model={run}", *flags])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[:2] for row in rows[1:3]] == [["batches", "1"], ["batches", "3"]]
    for row in rows[1:3]:
        assert float(row[2]) <= float(row[4]) <= float(row[6])
        assert float(row[8]) > 0
        assert int(row[9]) > 0
    assert int(rows[-1][0]) >= 40
    assert int(rows[-1][1]) > 50


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
