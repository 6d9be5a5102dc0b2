"""A tokenizer's folder, <dataset>/<ckpt_name>: its files' names, whose training it holds, and how it is opened.

It holds training.json (settings, whether finished, result), config.yaml, metrics.jsonl, state/ until training is
finished, pca.safetensors, what the kind keeps, and then <encoder>_<sizes,...>_<epoch>.sem_ids, quality.json and
quality.txt. A folder with semantic IDs but no training.json came with the dataset: published ones.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from data.interactions import dataset_folder
from data.token_table import TRAINING_FILE, level_sizes
from tokenizer.config import TokenizerConfig
from tokenizer.kinds import KINDS, Tokenizer
from tokenizer.whitening import load_whitening
from utils.errors import InputError
from utils.files import read_json
from utils.locks import LOCK_FILE, FileLock

PCA_FILE = "pca.safetensors"

# Settings that do not change what is trained; all others must be the same for a training to be reused.
_FREE_SETTINGS = (
    *("data_dir", "dataset", "ckpt_name", "device", "reproducibility", "sent_emb_batch_size", "assign"),
    *("overwrite", "resume", "checkpoint_minutes", "sem_ids", "cf_emb"),
    # the embeddings' hash stands for these
    *("sent_emb_dtype", "sent_emb_prompt", "sent_emb_max_length", "sent_emb_trust_remote_code"),
)


def sem_ids_prefix(config: TokenizerConfig) -> str:
    """Return the start of the `.sem_ids` file names: <encoder>_<codes of every level, disambiguation included>."""
    return f"{config.encoder_name}_{','.join(map(str, config.level_sizes))}"


def sem_ids_file(config: TokenizerConfig, epoch: int | None) -> Path:
    """Return the file of an epoch's (1-based) semantic IDs; None is the best tokenizer."""
    name = sem_ids_prefix(config) + ("" if epoch is None else f"_{epoch}")
    return config.tokenizer_folder / f"{name}.sem_ids"


def announce_published(config: TokenizerConfig) -> bool:
    """Whether the tokenizer's folder holds semantic IDs that were not made here, and no --overwrite; say so if it does.

    They are used as they are. Raises InputError if they are of another encoder or of other codebook sizes.
    """
    folder, prefix = config.tokenizer_folder, sem_ids_prefix(config)
    files = sorted(folder.glob("*.sem_ids"))
    if config.overwrite or (folder / TRAINING_FILE).exists() or not files:
        return False
    fitting = [file for file in files if file.stem == prefix or file.stem.startswith(f"{prefix}_")]
    if not fitting:
        raise InputError(
            f"{folder} holds semantic IDs that were not made here and that these settings would not make "
            f"({files[0].name}, these settings: {prefix}_<epoch>.sem_ids); "
            "name another folder with --ckpt_name, or replace them with --overwrite"
        )
    print(
        f"{folder} holds {len(fitting)} files of semantic IDs {prefix}*.sem_ids that were not made here; "
        "they are used as they are and nothing is made (--overwrite trains anew)"
    )
    return True


def training_settings(config: TokenizerConfig, **arrays: np.ndarray) -> dict[str, object]:
    """Return what determines a training: its settings, and the hash <name>_sha256 of each array."""
    free = {*_FREE_SETTINGS, *KINDS[config.kind].unused}
    settings: dict[str, object] = {key: value for key, value in asdict(config).items() if key not in free}
    settings["sent_emb_model"] = config.encoder_name
    settings.pop("num_tokenizers" if config.drift is None else "save_last", None)  # the one that is not used
    for name, values in arrays.items():
        settings[f"{name}_sha256"] = hashlib.sha256(np.ascontiguousarray(values)).hexdigest()
    return settings


def differences(before: dict[str, object], now: dict[str, object]) -> str:
    """Name the settings of `now` that were something else before; a setting that was not known had its default."""
    before = {field.name: field.default for field in fields(TokenizerConfig)} | before
    old, new = (level_sizes(settings["n_codebooks"], settings["codebook_size"]) for settings in (before, now))
    if old[:-1] == new[:-1]:  # the disambiguation level is not trained
        before |= {"codebook_size": now["codebook_size"]}
    return "; ".join(f"{key} was {before.get(key)!r}, now {now[key]!r}" for key in now if now[key] != before.get(key))


def read_training(config: TokenizerConfig) -> dict[str, object]:
    """Return what training.json says; nothing where there is none."""
    file = config.tokenizer_folder / TRAINING_FILE
    return read_json(file) if file.exists() else {}


def load_pca(config: TokenizerConfig) -> Callable[[np.ndarray], np.ndarray]:
    """Return the training's PCA, float32 [N, sent_emb_dim] to [N, input_size]; without PCA it changes nothing."""
    if not config.has_pca:
        return lambda embeddings: embeddings
    return load_whitening(config.tokenizer_folder / PCA_FILE).apply


def lock_tokenizer(config: TokenizerConfig) -> FileLock:
    """Lock the tokenizer's folder, which a lock alone would make; raise InputError where it or the dataset has none."""
    dataset_folder(config.data_dir, config.dataset)
    if not config.tokenizer_folder.is_dir():
        raise InputError(
            f"{config.tokenizer_folder} does not exist; run python -m tokenizer.train first, or give its --ckpt_name"
        )
    return FileLock(config.tokenizer_folder / LOCK_FILE)


def load_tokenizer(config: TokenizerConfig, embeddings: np.ndarray | None = None) -> Tokenizer:
    """Open the finished training in the tokenizer's folder; InputError if there is none, or one with other settings.

    `embeddings`, float32 [N, sent_emb_dim], must be the ones that were trained on.
    """
    folder, training = config.tokenizer_folder, read_training(config)
    if not training.get("finished"):
        raise InputError(f"{folder} holds no finished training; run python -m tokenizer.train first")
    arrays = {} if embeddings is None else {"embeddings": embeddings}
    different = differences(training["settings"], training_settings(config, **arrays))
    if different:
        raise InputError(f"{folder} was trained with other settings: {different}; give those, or train anew")
    tokenizer = KINDS[config.kind](config, load_pca(config))
    tokenizer.epochs = training.get("epochs", tokenizer.epochs)  # those that were chosen, with --drift
    return tokenizer
