"""What finished jobs came to: one line of JSON a job, in a file that is committed."""

import base64
import fcntl
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from data.interactions import dataset_folder, load_interactions
from data.token_table import QUALITY_FILE, TRAINING_FILE
from evaluation.metrics import mean_metrics
from evaluation.results import ensemble, read_results
from evaluation.run import RESULTS_FILE, Run
from experiments.study import Job
from tokenizer.config import TokenizerConfig
from tokenizer.folder import sem_ids_file
from utils.errors import InputError
from utils.files import read_json, write_text

OUTCOMES_FILE = "jobs.jsonl"
TOP = 10  # recommended items that count
METRICS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")


def results_folder(job: Job, results_dir: str | Path) -> Path:
    """Return where the outcomes of a job's dataset are kept."""
    return Path(results_dir) / job.dataset


def read_outcomes(jobs: Iterable[Job], results_dir: str | Path) -> dict[str, dict[str, Any]]:
    """Return {job id: outcome} of all that is finished on the datasets of some jobs; InputError if a job has two."""
    folders = {results_folder(job, results_dir) for job in jobs}
    return {name: outcome for folder in folders for name, outcome in _read(folder / OUTCOMES_FILE).items()}


def write_outcome(job: Job, results_dir: str | Path, outcome: dict[str, Any]) -> None:
    """Put a job's line in its place among those of its dataset, sorted by id; it replaces an earlier one."""
    named = {"id": job.id, "kind": job.kind, "settings": job.flags, "needs": [need.id for need in job.needs]}
    _write(results_folder(job, results_dir), named | outcome)


def take_in_files(results_dir: str | Path) -> None:
    """Make lines of the files <results_dir>/<dataset>/<job>.json, as outcomes once were kept, and remove them."""
    for file in sorted(Path(results_dir).glob("*/*_*.json")):
        outcome = read_json(file)
        if not isinstance(outcome, dict) or "id" not in outcome:
            raise InputError(f"{file} is no job's outcome, for it has no id; move it out of the results' folder")
        _write(file.parent, outcome)
        file.unlink()


def _read(file: Path) -> dict[str, dict[str, Any]]:
    outcomes: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines() if file.exists() else [], start=1):
        try:
            outcome = json.loads(line)
            name = outcome["id"]
        except (ValueError, TypeError, KeyError):
            raise InputError(f"{file}, line {number} is not the JSON of a job's outcome") from None
        if outcomes.setdefault(name, outcome) is not outcome:
            raise InputError(f"{file} has two lines of {name}; keep the one that others rest on")
    return outcomes


def _write(folder: Path, outcome: dict[str, Any]) -> None:
    with alone_in(folder):
        outcomes = _read(folder / OUTCOMES_FILE) | {outcome["id"]: outcome}
        lines = [json.dumps(outcomes[name]) + "\n" for name in sorted(outcomes)]
        write_text(folder / OUTCOMES_FILE, "".join(lines))


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other job changes the folder's files: one of another study may finish at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def tokenizer_flags(job: Job) -> dict[str, Any]:
    """Return the flags of an embed or tokenizer job; its folder is named after it.

    A job of neighbour identifiers has the file of the tokenizer and epoch that they are made of.
    """
    flags = job.flags | {"ckpt_name": job.id}
    if epochs := flags.pop("sem_id_epochs", None):
        flags["sem_ids"] = str(sem_ids_file(tokenizer_config(job.needs[-1]), epochs[0]))
    return flags


def tokenizer_config(job: Job) -> TokenizerConfig:
    """Return the settings of an embed or tokenizer job."""
    return TokenizerConfig(**tokenizer_flags(job))


def product(job: Job, ckpt_dir: str) -> Path | None:
    """Return the file that is there when a job has made what others need of it; None where others need nothing."""
    if job.kind == "embed":
        return tokenizer_config(job).embedding_file
    if job.kind == "tokenizer":
        config = tokenizer_config(job)
        if (config.tokenizer_folder / TRAINING_FILE).exists():
            return config.tokenizer_folder / QUALITY_FILE
        return next(config.tokenizer_folder.glob("*.sem_ids"), sem_ids_file(config, config.epochs))  # kept ones
    return _run(job, Path(ckpt_dir)) / RESULTS_FILE if job.kind in ("pretrain", "finetune") else None


def _run(job: Job, ckpt_dir: Path) -> Path:
    return ckpt_dir / job.dataset / job.id


def open_jobs(jobs: list[Job], ckpt_dir: str, results_dir: str) -> list[Job]:
    """Return the jobs without an outcome, and those whose files are gone although one of these needs them.

    In `jobs` and in what is returned, each comes after those that it needs.
    """
    found: list[Job] = []
    outcomes = read_outcomes(jobs, results_dir)
    for job in reversed(jobs):
        file = product(job, ckpt_dir) if any(job in other.needs for other in found) else None
        if job.id not in outcomes or (file and not file.exists()):
            found.insert(0, job)
    return found


def check_open(open_ones: list[Job], jobs: list[Job], ckpt_dir: str, results_dir: str) -> None:
    """Raise InputError where what is to be run would not fit the outcomes that a study's jobs have already.

    That is a training whose outcome others may rest on, but whose weights are gone, and other interactions than those
    that results rest on.
    """
    outcomes = read_outcomes(jobs, results_dir)
    for job in open_ones:
        if job.kind in ("pretrain", "finetune") and job.id in outcomes:
            raise InputError(
                f"{job.id} is done, but its weights, which others need, are not in {_run(job, Path(ckpt_dir))}, and "
                "trained again it would be another one; bring them back, take other --seeds, or --results_dir to begin "
                "anew"
            )
    now: dict[Path, str] = {}
    for job in jobs if open_ones else []:
        if before := outcomes.get(job.id, {}).get("interactions"):
            folder = dataset_folder(job.flags["data_dir"], job.dataset)
            now[folder] = now.get(folder) or load_interactions(folder).sha256
            if now[folder] != before:
                raise InputError(f"{job.id} is of other interactions than {folder} has now; bring them back")


def pack_ranks(ranks: np.ndarray) -> str:
    """Return 0-based ranks up to TOP (a miss), int [U], as text of about half a byte per user."""
    return base64.b64encode(zlib.compress(ranks.astype(np.uint8).tobytes(), 9)).decode()


def unpack_ranks(text: str) -> np.ndarray:
    """Return what `pack_ranks` packed, int64 [U]."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8).astype(np.int64)


def collect(job: Job, ckpt_dir: str, results_dir: str, began_in: dict[str, Any]) -> None:
    """Write a finished job's outcome: settings, metrics, every test user's rank, seconds at work, where it ran.

    A run says itself where it began; `began_in` is the environment of other jobs. A + is added to the commit of a
    checkout whose files, but the results, differed from it; outside a checkout it is empty. Interactions are told by
    their hash.
    """
    environment = began_in | Run(_run(job, Path(ckpt_dir))).environment
    where = {name: environment[name] for name in ("threads", "hardware")}
    where["commit"] = (environment["commit"] or "").replace("-dirty", "+")
    if interactions := environment.get("sources", {}).get("interactions"):
        where["interactions"] = interactions
    write_outcome(job, results_dir, _OUTCOMES[job.kind](job, Path(ckpt_dir)) | where)


def _of_tokenizer(job: Job, ckpt_dir: Path) -> dict:
    folder = tokenizer_config(job).tokenizer_folder
    quality = read_json(folder / QUALITY_FILE)
    return {
        "drift": quality["drift"],
        "last_epoch": quality["tokenizers"][str(job.flags["epochs"])],
        "seconds": read_json(folder / TRAINING_FILE, "seconds"),
    }


def _of_training(job: Job, ckpt_dir: Path) -> dict:
    """Metrics, the course of training, hashes of the semantic IDs and, but of pre-training, every test user's rank.

    The hashes tell which ones it trained with: a tokenizer trained again elsewhere has the same name and other ones.
    """
    run = Run(_run(job, ckpt_dir))
    epochs, valid, influence = (run.events.get(event, []) for event in ("epoch", "valid", "influence"))
    seconds = sum(line.get("seconds", 0.0) for lines in run.events.values() for line in lines)
    outcome = {name: run.results[name] for name in ("valid", "test", "best_epoch") if name in run.results} | {
        "losses": [round(line["loss"], 4) for line in epochs],
        "validation": {line["epoch"]: {k: round(v, 5) for k, v in line["mean"].items()} for line in valid},
        "seconds": round(seconds, 1),
        "semantic_ids_sha256": run.trained_identifiers,
    }
    if job.kind == "pretrain":
        stages = [{name: line[name] for name in ("influence", "probabilities")} for line in influence]
        return outcome | {"per_tokenizer": run.results["per_tokenizer"], "stages": stages}
    return outcome | {"ranks": pack_ranks(read_results(test_results(job, ckpt_dir)).ranks())}


def test_results(job: Job, ckpt_dir: Path) -> Path:
    """Return the result file per user of a fine-tuning with one tokenizer or a baseline; InputError if it is gone."""
    run = _run(job, ckpt_dir)
    for file in run.glob("test_results_*.json"):
        return file
    raise InputError(f"{run} has no test_results_*.json; remove the job's line from the results to run it again")


def _of_ensemble(job: Job, ckpt_dir: Path) -> dict:
    """Join the candidates' recommendations; validation metrics are None, since nothing is chosen by them."""
    ranks = ensemble([read_results(test_results(need, ckpt_dir)) for need in job.needs]).ranks()
    return {"valid": None, "test": mean_metrics(ranks, METRICS), "ranks": pack_ranks(ranks), "seconds": 0.0}


_OUTCOMES = {
    "embed": lambda job, ckpt_dir: {"seconds": 0.0},
    "tokenizer": _of_tokenizer,
    "pretrain": _of_training,
    "finetune": _of_training,
    "ensemble": _of_ensemble,
    "baseline": _of_training,
}
