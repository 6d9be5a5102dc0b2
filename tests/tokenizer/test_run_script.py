import hashlib
import json
import os
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import ROOT
from warm_python import VARIABLES, warm_environment

from data.token_table import TRAINING_FILE
from tokenizer.config import TokenizerConfig
from utils.config import parse_config

PAPER = {
    "sent_emb_model": "sentence-transformers/sentence-t5-base",
    "sent_emb_dim": 768,
    "sent_emb_pca": 128,
    "n_codebooks": 3,
    "codebook_size": 256,
    "hidden_sizes": [2048, 1024, 512, 256, 128],
    "learner": "adagrad",
    "lr": 0.001,
    "batch_size": 2048,
    "epochs": 10000,
    "save_last": 51,
    "ckpt_name": "rqvae",
}


def run_script(*flags: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run the script from `folder`."""
    command = ["bash", os.path.relpath(ROOT / "tokenizer" / "run.sh", folder), *flags]
    environment = os.environ | VARIABLES | {"VIRTUAL_ENV": str(warm_environment())} | environment
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def dry_run(*flags: str, folder: Path, **environment: str) -> dict[str, TokenizerConfig]:
    """Return the configuration of each command that the script would start, by module."""
    result = run_script(*flags, folder=folder, DRY_RUN="1", **environment)
    assert result.returncode == 0, result.stderr
    commands = [shlex.split(line) for line in result.stdout.splitlines()]
    return {command[2]: parse_config(TokenizerConfig, command[3:], "test", "")[0] for command in commands}


@pytest.mark.parametrize("name", ["Musical_Instruments", "Industrial_and_Scientific", "Video_Games"])
def test_every_flag_parses_and_is_the_papers(name: str, tmp_path: Path):
    configs = dry_run(folder=tmp_path, DATASET=name, DATA_DIR=str(tmp_path))
    assert list(configs) == ["tokenizer.embed", "tokenizer.train", "tokenizer.export"]
    for config in configs.values():
        assert {key: getattr(config, key) for key in PAPER} == PAPER
        assert (config.dataset, config.data_dir) == (name, str(tmp_path))


def test_other_data_get_the_papers_steps_and_tokenizers_by_drift(tmp_path: Path):
    environment = {"DATASET": "Another", "DATA_DIR": str(tmp_path)}
    names = ("epochs", "steps_per_epoch", "num_tokenizers", "drift")
    for config in dry_run(folder=tmp_path, **environment).values():
        assert [getattr(config, name) for name in names] == [600, 12, 25, 0.5]
        assert {key: getattr(config, key) for key in PAPER} == PAPER | {"epochs": 600}
    for config in dry_run("--save_last=31", folder=tmp_path, **environment).values():
        assert [getattr(config, name) for name in ("save_last", "steps_per_epoch", "drift")] == [31, 12, None]


def test_letter_gets_its_published_sizes(tmp_path: Path):
    """And what is given still wins."""
    environment = {"DATASET": "Video_Games", "DATA_DIR": str(tmp_path)}
    expected = PAPER | {
        "ckpt_name": "letter",
        "n_codebooks": 4,
        "hidden_sizes": [2048, 1024, 512, 256, 128, 64, 32],
        "sent_emb_pca": -1,
        "vq_type": "vq",
        "learner": "adamw",
        "weight_decay": 0.0001,
        "batch_size": 1024,
        "balance": "sinkhorn",
        "cf_emb": "svd",
        "epochs": 20000,
    }
    flags = ("--kind=letter", "--ckpt_name=letter", "--epochs=20000")
    for config in dry_run(*flags, folder=tmp_path, **environment).values():
        assert {key: getattr(config, key) for key in expected} == expected
    for config in dry_run(*flags, "--n_codebooks=3", folder=tmp_path, **environment).values():
        assert config.n_codebooks == 3


def test_letter_with_sasrec_trains_one_as_wide_as_the_codebooks_and_takes_its_embeddings(dataset: Path, tmp_path: Path):
    """Again, it reuses both; another kind refuses the flag before anything is trained."""
    environment = {"DATASET": dataset.name, "DATA_DIR": str(dataset.parent), "CKPT_DIR": str(tmp_path / "runs")}
    flags = "--kind=letter --ckpt_name=letter --cf_emb=sasrec --sent_emb_model=tfidf --sent_emb_dim=10 --device=cpu"
    flags += " --codebook_size=8 --n_codebooks=3 --hidden_sizes=[8,4] --epochs=3 --save_last=2 --rand_seed=7"
    result = run_script(*flags.split(), folder=tmp_path, **environment)
    assert result.returncode == 0, result.stderr
    embeddings = np.load(tmp_path / "runs" / dataset.name / "sasrec_4_seed7" / "item_embeddings.npy")
    assert embeddings.shape == (60, 4)
    settings = json.loads((dataset / "letter" / TRAINING_FILE).read_text())["settings"]
    assert settings["cf_emb_sha256"] == hashlib.sha256(embeddings.tobytes()).hexdigest()
    again = run_script(*flags.split(), folder=tmp_path, **environment)
    assert "sasrec_4_seed7 is already finished with these settings" in again.stdout
    assert "letter: reused, a finished training with the same settings" in again.stdout
    refused = run_script("--cf_emb=sasrec", folder=tmp_path, **environment)
    assert (refused.returncode, refused.stdout) == (2, "")
    mistyped = run_script(*flags.split(), "--rand_seed=8", "--epochz=3", folder=tmp_path, **environment)
    assert (mistyped.returncode, mistyped.stdout) == (2, "")
    assert not (tmp_path / "runs" / dataset.name / "sasrec_4_seed8").exists()


def test_flags_after_the_script_win_in_all_commands_and_any_folder_will_do():
    folder = ROOT / "tokenizer"
    environment = {name: "" for name in ("DATASET", "DATA_DIR")}
    configs = dry_run("--epochs=600", "--hidden_sizes=[64,32]", "--overwrite", folder=folder, **environment)
    for config in configs.values():
        assert (config.epochs, config.hidden_sizes, config.overwrite) == (600, [64, 32], True)
        assert (config.dataset, Path(config.data_dir)) == ("Musical_Instruments", ROOT / "datasets")


def test_unknown_flag_stops_at_the_first_command(tmp_path: Path):
    result = run_script("--epochz=3", folder=tmp_path, DATASET="Tiny", DATA_DIR=str(tmp_path))
    assert result.returncode == 2
    assert result.stderr == "error: unknown flag --epochz (did you mean --epochs?); --help lists the flags\n"
    assert result.stdout == ""


def test_texts_to_semantic_ids(dataset: Path, tmp_path: Path):
    flags = "--sent_emb_model=tfidf --sent_emb_dim=10 --sent_emb_pca=4 --codebook_size=8 --hidden_sizes=[8,4]"
    flags += " --epochs=3 --save_last=2 --device=cpu"
    result = run_script(*flags.split(), folder=tmp_path, DATASET=dataset.name, DATA_DIR=str(dataset.parent))
    assert result.returncode == 0, result.stderr
    names = {f"tfidf_8,8,8,8{suffix}.sem_ids" for suffix in ("_2", "_3", "")}
    assert {path.name for path in (dataset / "rqvae").glob("*.sem_ids")} == names
    assert len(json.loads((dataset / "rqvae" / "tfidf_8,8,8,8_3.sem_ids").read_text())) == 60


def test_published_semantic_ids_are_left_alone(dataset: Path, tmp_path: Path):
    """As in the published folders: no checkpoints, and an item without a text."""
    (dataset / "rqvae").mkdir()
    for name in ("_9999", "_10000", ""):
        (dataset / "rqvae" / f"sentence-t5-base_256,256,256,256{name}.sem_ids").write_text("{}")
    (dataset / "sentence-t5-base.sent_emb").write_bytes(b"published")
    texts = json.loads((dataset / "metadata.sentence.json").read_text())
    (dataset / "metadata.sentence.json").write_text(json.dumps(texts | {"item3": ""}))
    before = {file: (file.stat().st_mtime_ns, file.is_dir() or file.read_bytes()) for file in dataset.rglob("*")}
    result = run_script(folder=tmp_path, DATASET=dataset.name, DATA_DIR=str(dataset.parent))
    assert result.returncode == 0, result.stderr
    said = f"{dataset}/rqvae holds 3 files of semantic IDs sentence-t5-base_256,256,256,256*.sem_ids that were not made"
    assert [line.startswith(said) for line in result.stdout.splitlines()] == [True] * 3  # one line for each command
    after = {file: (file.stat().st_mtime_ns, file.is_dir() or file.read_bytes()) for file in dataset.rglob("*")}
    assert after == before
