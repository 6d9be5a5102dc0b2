import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from data.interactions import load_interactions
from experiments import run
from experiments.results import (
    check_open,
    collect,
    open_jobs,
    pack_ranks,
    read_outcomes,
    take_in_files,
    unpack_ranks,
    write_outcome,
)
from experiments.run import RunConfig, Runner
from experiments.study import Job
from utils.errors import InputError
from utils.files import write_json
from utils.interrupts import Stopped

TOKENIZER = Job.of("tokenizer", dataset="Tiny", data_dir="nowhere", epochs=3)
PRETRAINING = Job.of("pretrain", (TOKENIZER,), dataset="Tiny", tau=1, sem_id_epochs=[2, 3])
FINETUNING = Job.of("finetune", (TOKENIZER, PRETRAINING), dataset="Tiny", sem_id_epochs=[3])
SCRATCH = Job.of("finetune", (TOKENIZER,), dataset="Tiny", sem_id_epochs=[3])
HERE = {"threads": 1, "hardware": "1 x CPU", "commit": None}
JOBS = [TOKENIZER, PRETRAINING, FINETUNING, SCRATCH]


@pytest.fixture
def make_runner(tmp_path, monkeypatch):
    """Return a maker of runners whose jobs append their id to order.txt; those in `failing` exit with 3 after that."""

    def make(failing: tuple[Job, ...] = (), jobs: int = 1) -> Runner:
        def commands(job: Job, ckpt_dir: str) -> list[list[str]]:
            order = str(tmp_path / "order.txt")
            code = "import sys; print(sys.argv[2], file=open(sys.argv[1], 'a')); sys.exit(int(sys.argv[3]))"
            return [[sys.executable, "-c", code, order, job.id, str(3 * (job in failing))]]

        def collect(job: Job, ckpt_dir: str, results_dir: str, began_in: dict) -> None:
            write_outcome(job, results_dir, began_in)

        monkeypatch.setattr(run, "commands", commands)
        monkeypatch.setattr(run, "collect", collect)
        config = RunConfig(["study.yaml"], jobs=jobs, ckpt_dir=str(tmp_path), results_dir=str(tmp_path / "results"))
        return Runner(config, JOBS)

    return make


def order(tmp_path) -> list[str]:
    return (tmp_path / "order.txt").read_text().split()


def test_jobs_run_after_what_they_need_and_never_again(make_runner, tmp_path):
    assert make_runner().run()
    assert order(tmp_path) == [job.id for job in JOBS]
    outcomes = read_outcomes(JOBS, tmp_path / "results").values()
    assert {outcome["threads"] for outcome in outcomes} == {len(os.sched_getaffinity(0))}
    assert make_runner().run()
    assert len(order(tmp_path)) == len(JOBS)


@pytest.mark.parametrize(("cores", "jobs", "threads"), [({0, 1, 5}, 1, 3), ({0, 1, 5}, 2, 1), ({4}, 2, 1)])
def test_jobs_share_the_cores_that_the_process_may_use(cores, jobs: int, threads: int, make_runner, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)
    assert make_runner(jobs=jobs).threads == threads


def test_what_needs_a_failed_job_does_not_run_and_the_rest_does(make_runner, tmp_path, capsys):
    runner = make_runner(failing=(PRETRAINING,), jobs=2)
    assert not runner.run()
    assert sorted(order(tmp_path)) == sorted([TOKENIZER.id, PRETRAINING.id, SCRATCH.id])
    assert [job.id for job in runner.open] == [PRETRAINING.id, FINETUNING.id]
    assert f"FAILED {PRETRAINING.id} (exit code 3)" in capsys.readouterr().err


def test_several_studies_run_what_they_share_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    budget = {"dataset": "Tiny", "data_dir": "nowhere", "seeds": [1], "num_tokenizers": 2, "gap": 1, "candidates": 1}
    sections = {"tokenizer": {"epochs": 9}, "recommender": {}, "pretrain": {}, "finetune": {}, "scratch": {}}
    (tmp_path / "budgets.yaml").write_text(json.dumps({"cpu": budget | sections}))
    for name, variants in (("a", {"MTGRec": {}}), ("b", {"MTGRec": {}, "TIGER++": {"pretrain": None}})):
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"title": name, "variants": variants}))
    run.main(["a.yaml", "b.yaml", "--dry_run"])
    kinds = [line.split("_")[0] for line in capsys.readouterr().out.splitlines()]
    assert kinds == ["embed", "tokenizer", "pretrain", "finetune", "finetune"]
    run.main(["a.yaml", "b.yaml", "--only_table"])
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("##")] == ["## a", "## b"]


def test_sigterm_reaches_what_is_running(make_runner, tmp_path, monkeypatch):
    runner = make_runner()
    code = f"import time; open({str(tmp_path / 'started')!r}, 'w').close(); time.sleep(60)"
    monkeypatch.setattr(run, "commands", lambda job, ckpt_dir: [[sys.executable, "-c", code]])
    watcher = f"while [ ! -e {tmp_path / 'started'} ]; do sleep 0.05; done; kill -TERM {os.getpid()}"
    with subprocess.Popen(["bash", "-c", watcher]), pytest.raises(Stopped, match="SIGTERM"):
        runner.run()
    assert [running.process.returncode for running in runner.running] == [-signal.SIGTERM]


def test_files_that_are_gone_are_made_again_if_an_open_job_needs_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for job in JOBS:
        write_outcome(job, tmp_path / "results", {})
    arguments = (JOBS, str(tmp_path), str(tmp_path / "results"))
    assert open_jobs(*arguments) == []
    file = tmp_path / "results" / "Tiny" / "jobs.jsonl"
    file.write_text("".join(line for line in file.read_text().splitlines(True) if FINETUNING.id not in line[:30]))
    assert open_jobs(*arguments) == [TOKENIZER, PRETRAINING, FINETUNING]
    write_json(tmp_path / "Tiny" / PRETRAINING.id / "results.json", {})
    tokenizer = tmp_path / "nowhere" / "Tiny" / TOKENIZER.id
    write_json(tokenizer / "training.json", {})
    assert open_jobs(*arguments) == [TOKENIZER, FINETUNING]
    write_json(tokenizer / "quality.json", {})
    assert open_jobs(*arguments) == [FINETUNING]


def test_a_training_that_others_rest_on_is_not_repeated(dataset, tmp_path):
    data = {"dataset": dataset.name, "data_dir": str(dataset.parent)}
    pretraining = Job.of("pretrain", **data)
    finetuning = Job.of("finetune", (pretraining,), **data)
    jobs, folders = [pretraining, finetuning], (str(tmp_path), str(tmp_path / "results"))
    check_open(open_jobs(jobs, *folders), jobs, *folders)
    write_outcome(pretraining, tmp_path / "results", {"interactions": load_interactions(dataset).sha256})
    with pytest.raises(InputError, match=f"{pretraining.id} is done, but its weights, .* are not in "):
        check_open(open_jobs(jobs, *folders), jobs, *folders)
    write_json(tmp_path / dataset.name / pretraining.id / "results.json", {})
    check_open(open_jobs(jobs, *folders), jobs, *folders)
    write_outcome(pretraining, tmp_path / "results", {"interactions": "others"})
    with pytest.raises(InputError, match=f"{pretraining.id} is of other interactions than .* has now"):
        check_open(open_jobs(jobs, *folders), jobs, *folders)


def test_outcomes_are_lines_sorted_by_id(tmp_path):
    for job in JOBS:
        write_outcome(job, tmp_path, {"seconds": 1.0})
    file = tmp_path / "Tiny" / "jobs.jsonl"
    first = file.read_text()
    lines = [json.loads(line) for line in first.splitlines()]
    assert [line["id"] for line in lines] == sorted(job.id for job in JOBS)
    expected = {"id": SCRATCH.id, "kind": "finetune", "settings": SCRATCH.flags, "needs": [TOKENIZER.id]}
    assert read_outcomes(JOBS, tmp_path)[SCRATCH.id] == expected | {"seconds": 1.0}
    write_outcome(SCRATCH, tmp_path, {"seconds": 2.0})  # run again: its line alone is another one
    assert len(set(file.read_text().splitlines()) - set(first.splitlines())) == 1
    file.write_text(first + first.splitlines()[0])
    with pytest.raises(InputError, match="has two lines of"):
        read_outcomes(JOBS, tmp_path)
    file.write_text("<<<<<<< HEAD\n" + first)
    with pytest.raises(InputError, match="line 1 is not the JSON of a job's outcome"):
        read_outcomes(JOBS, tmp_path)


def test_files_of_one_job_each_become_lines(tmp_path):
    write_outcome(TOKENIZER, tmp_path, {"seconds": 1.0})
    older = {"id": TOKENIZER.id, "needs": [], "seconds": 2.0}, {"id": SCRATCH.id, "needs": [TOKENIZER.id]}
    for outcome in older:
        write_json(tmp_path / "Tiny" / f"{outcome['id']}.json", outcome)
    take_in_files(tmp_path)
    assert read_outcomes(JOBS, tmp_path) == {outcome["id"]: outcome for outcome in older}
    assert [file.name for file in (tmp_path / "Tiny").iterdir()] == ["jobs.jsonl"]


def test_a_dry_run_changes_no_file_and_a_file_without_an_id_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    baseline = {"dataset": "Tiny", "data_dir": "nowhere", "seeds": [1], "recommender": {}, "method": "popular"}
    (tmp_path / "budgets.yaml").write_text(json.dumps({"cpu": baseline}))
    (tmp_path / "a.yaml").write_text(json.dumps({"variants": {"popular": {}}}))
    files = [tmp_path / "experiments" / "results" / "Tiny" / name for name in ("an_outcome.json", "stray_notes.json")]
    for file, content in zip(files, ({"id": "an_outcome"}, {"a": 1}), strict=True):
        write_json(file, content)
    run.main(["a.yaml", "--dry_run"])
    assert capsys.readouterr().out.startswith("baseline_")
    assert sorted(files[0].parent.iterdir()) == files
    with pytest.raises(InputError, match=r"stray_notes\.json is no job's outcome, for it has no id"):
        run.main(["a.yaml", "--only_table"])


@pytest.mark.parametrize("flag", ["--minutes=0", "--minutes=-1", "--jobs=0"])
def test_numbers_must_be_positive(flag):
    with pytest.raises(InputError, match=f"{flag[2:]} must be positive"):
        run.main(["a.yaml", flag])


def test_an_outcome_says_where_its_run_began_not_where_it_was_collected(tmp_path):
    run, environment = tmp_path / "Tiny" / PRETRAINING.id, {"commit": "abc-dirty", "hardware": "8 x GPU"}
    write_json(run / "results.json", {"per_tokenizer": []})
    for began, threads in ((environment | {"threads": 4}, 4), (environment, 1)):  # older runs do not say their threads
        write_json(run / "environment.json", began)
        collect(PRETRAINING, str(tmp_path), str(tmp_path / "results"), HERE)
        outcome = read_outcomes([PRETRAINING], tmp_path / "results")[PRETRAINING.id]
        assert (outcome["threads"], outcome["hardware"], outcome["commit"]) == (threads, "8 x GPU", "abc+")


def test_a_pre_trainings_outcome_has_its_stages_and_tokenizers(tmp_path):
    run, rows = tmp_path / "Tiny" / PRETRAINING.id, [{"epoch": 2}, {"epoch": 3}]
    write_json(run / "results.json", {"test": {"recall@10": 0.5}, "per_tokenizer": rows})
    stage = {"influence": {"2": 1.0, "3": 2.0}, "probabilities": {"2": 0.25, "3": 0.75}}
    events = [{"event": "influence", "stage": 1, "seconds": 1.5, **stage}, {"event": "train", "step": 50}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    collect(PRETRAINING, str(tmp_path), str(tmp_path / "results"), HERE)
    outcome = read_outcomes([PRETRAINING], tmp_path / "results")[PRETRAINING.id]
    assert (outcome["stages"], outcome["per_tokenizer"]) == ([stage], rows)
    assert (outcome["seconds"], outcome["losses"], outcome["validation"]) == (1.5, [], {})


def test_ranks_are_packed_small_and_read_back():
    ranks = np.random.default_rng(0).integers(0, 11, 1000)
    text = pack_ranks(ranks)
    assert np.array_equal(unpack_ranks(text), ranks)
    assert len(text) < 1000


def test_an_ensemble_joins_its_candidates_results(tmp_path):
    candidates = tuple(Job.of("finetune", dataset="Tiny", sem_id_epochs=[epoch]) for epoch in (1, 2))
    job = Job.of("ensemble", candidates)
    for candidate, items in zip(candidates, (["a", "b"], ["b", "c"]), strict=True):
        content = {"pred_ids": [items], "scores": [[-1.0, -2.0]], "label_ids": ["b"]}
        write_json(tmp_path / "Tiny" / candidate.id / "test_results_1.json", content)
    collect(job, str(tmp_path), str(tmp_path / "results"), HERE)
    outcome = read_outcomes([job], tmp_path / "results")[job.id]
    assert outcome["test"]["recall@5"] == outcome["test"]["ndcg@10"] == 1.0
    assert unpack_ranks(outcome["ranks"]).tolist() == [0]
    assert outcome["needs"] == [candidate.id for candidate in candidates]
    assert (outcome["threads"], outcome["hardware"], outcome["commit"]) == (1, "1 x CPU", "")


def test_a_trainings_outcome_says_what_it_was_trained_with_and_how_it_went(tmp_path):
    run = tmp_path / FINETUNING.flags["dataset"] / FINETUNING.id
    metrics = {"recall@10": 0.5}
    write_json(run / "results.json", {"valid": metrics, "test": metrics, "best_epoch": 1})
    write_json(run / "model" / "config.json", {"semantic_ids_sha256": ["abc"]})
    write_json(run / "test_results_1.json", {"pred_ids": [["a"], ["a"]], "scores": [[0], [0]], "label_ids": ["b", "a"]})
    events = [
        {"event": "epoch", "epoch": 1, "loss": 1.23456, "seconds": 2.5},
        {"event": "valid", "epoch": 1, "mean": {"recall@10": 0.123456}, "seconds": 1.0},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    collect(FINETUNING, str(tmp_path), str(tmp_path / "results"), HERE)
    outcome = read_outcomes([FINETUNING], tmp_path / "results")[FINETUNING.id]
    assert outcome["semantic_ids_sha256"] == ["abc"]
    assert (outcome["losses"], outcome["validation"]) == ([1.2346], {"1": {"recall@10": 0.12346}})
    assert (outcome["seconds"], outcome["best_epoch"]) == (3.5, 1)
    assert unpack_ranks(outcome["ranks"]).tolist() == [1, 0]  # no item of a list of one; its first


@pytest.mark.parametrize(("chosen", "expected"), [(True, ""), (False, "300")])
def test_a_job_looks_for_itself_how_long_to_spin_unless_the_user_has_said(
    make_runner, tmp_path, monkeypatch, chosen, expected
):
    monkeypatch.setenv("GOMP_SPINCOUNT", "300")
    monkeypatch.setattr(run, "SPINS_CHOSEN", chosen)
    show = "import os; print('spins:' + os.environ.get('GOMP_SPINCOUNT', ''))"
    process = make_runner()._command([sys.executable, "-c", show], tmp_path / "log")
    assert process.wait() == 0
    assert (tmp_path / "log").read_text().splitlines()[-1] == f"spins:{expected}"
