"""Semantic IDs that came with a dataset, without the checkpoints that made them."""

from pathlib import Path

from data.token_table import TRAINING_FILE, level_sizes
from tokenizer.config import TokenizerConfig
from utils.errors import InputError


def sem_ids_prefix(config: TokenizerConfig) -> str:
    """Return the start of the `.sem_ids` file names: <encoder>_<codes of every level, disambiguation included>."""
    sizes = ",".join(map(str, level_sizes(config.n_codebooks, config.codebook_size)))
    return f"{config.encoder_name}_{sizes}"


def sem_ids_file(config: TokenizerConfig, epoch: int | None) -> Path:
    """Return the file of an epoch's (1-based) semantic IDs; None is the best-loss checkpoint."""
    name = sem_ids_prefix(config) + ("" if epoch is None else f"_{epoch}")
    return config.tokenizer_folder / f"{name}.sem_ids"


def announce_published(config: TokenizerConfig) -> bool:
    """Say so if the tokenizer's folder holds semantic IDs that were not made here; they are used as they are.

    Returns:
        Whether there is nothing to make. With --overwrite there always is.

    Raises:
        InputError: The semantic IDs there are of another encoder or of other codebook sizes.
    """
    folder = config.tokenizer_folder
    if config.overwrite or (folder / TRAINING_FILE).exists():
        return False
    files = sorted(folder.glob("*.sem_ids"))
    if not files:
        return False
    prefix = sem_ids_prefix(config)
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
