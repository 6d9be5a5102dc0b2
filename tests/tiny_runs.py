"""Runs of a few seconds: flags of a tiny model, fake finished runs, what runs have written."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from warm_python import VARIABLES, warm_environment

from model.recommender import Architecture, build_recommender

ROOT = Path(__file__).resolve().parent.parent
MODEL = {"num_layers": 1, "num_decoder_layers": 1, "d_model": 16, "d_ff": 32, "num_heads": 2, "d_kv": 8}
TRAINING = {
    **{"train_batch_size": 16, "eval_batch_size": 16, "num_beams": 10, "test_num_beams": 10},
    **{"warmup_steps": 4, "lr": 0.01, "log_with": "none"},
}


def flags(dataset: Path, runs: Path, /, model: bool = True, **settings: Any) -> list[str]:
    """Return a command line for a dataset folder; `settings` override; `model=False` leaves the architecture out."""
    values = {"dataset": dataset.name, "data_dir": dataset.parent, "ckpt_dir": runs}
    values |= ({"codebook_size": 8} | MODEL if model else {}) | TRAINING | settings
    return [f"--{name}={str(value).replace(' ', '')}" for name, value in values.items()]


def sizes_of_files(dataset: Path) -> list[int]:
    """Return the level sizes that the names of a dataset's .sem_ids files carry."""
    name = next((dataset / "rqvae").glob("*.sem_ids")).name
    return [int(size) for size in re.search(r"_(\d+(?:,\d+)+)[_.]", name)[1].split(",")]


def read_lines(run: Path, event: str) -> list[dict]:
    """Return a run's lines of one event in metrics.jsonl."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def read_results(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a model folder."""
    return load_file(folder / "model.safetensors")


def assert_same_weights(left: Path, right: Path) -> None:
    """Compare two model folders bit by bit."""
    a, b = read_weights(left), read_weights(right)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def fake_run(folder: Path, results: dict | None = None, kept: tuple[int, ...] = (), **config: Any) -> Path:
    """Write what a finished run leaves, without weights: config.yaml, results.json, folders of checkpoints."""
    (folder / "model").mkdir(parents=True)
    for epoch in kept:
        (folder / "checkpoints" / f"epoch_{epoch}").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "results.json").write_text(json.dumps(results if results is not None else {"best_epoch": 1}))
    return folder


def make_untrained_run(dataset: Path, folder: Path) -> Path:
    """Write a run of tokenizers 1 and 2 with random weights; 2 is better on validation, 1 on the test."""
    prefix = f"rqvae/{next((dataset / 'rqvae').glob('*_1.sem_ids')).name.removesuffix('_1.sem_ids')}"
    per_tokenizer = [
        {"epoch": epoch, "prefix": prefix, "valid": {"ndcg@10": valid}, "test": {"ndcg@10": test}}
        for epoch, valid, test in ((1, 0.1, 0.4), (2, 0.2, 0.3))
    ]
    fake_run(
        folder,
        {"best_epoch": 1, "per_tokenizer": per_tokenizer},
        **{"dataset": dataset.name, "data_dir": str(dataset.parent), "token_prefix": prefix, "sem_id_epochs": [1, 2]},
        **{"val_metric": "ndcg@10", "max_item_seq_len": 20, "token_suffix": "sem_ids", "results_dir": None},
    )
    torch.manual_seed(0)
    recommender = build_recommender(Architecture((8, 8, 8, 8), **MODEL))
    with torch.no_grad():
        for parameter in recommender.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    recommender.save_pretrained(folder / "model")
    return folder


def project_beside(folder: Path) -> Path:
    """Return a folder with the project's files as links, so that what the commands write does not land in it."""
    for path in ROOT.iterdir():
        if path.name not in ("datasets", "ckpt") and not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    return folder


def run_script(script: str, *arguments: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Run a shell script of the project from `folder`, with the settings in `environment` only."""
    ours = (
        "DATASET",
        "DATA_DIR",
        "CKPT_DIR",
        "NUM_GPUS",
        "RUN_NAME",
        "TAU_LIST",
        "PRETRAINED",
        "FINETUNE",
        "CPU",
        "RESUME",
        "SKIP_INSTALL",
    )
    inherited = {name: value for name, value in os.environ.items() if name not in (*ours, "DRY_RUN")}
    inherited |= VARIABLES | {"REPORT": "0", "VIRTUAL_ENV": str(warm_environment())}
    command = ["bash", os.path.relpath(ROOT / script, folder), *arguments]
    return subprocess.run(command, cwd=folder, env=inherited | environment, capture_output=True, text=True, timeout=300)
