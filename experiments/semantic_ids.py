"""The semantic IDs that results rest on, kept beside them: trained again elsewhere, a tokenizer would give others."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from data.interactions import load_interactions
from data.token_table import TRAINING_FILE, level_sizes, read_sem_ids, write_sem_ids
from experiments.results import alone_in, read_outcomes, results_folder, tokenizer_config
from experiments.study import Job
from tokenizer.folder import sem_ids_file
from utils.errors import InputError
from utils.files import atomic_path


def kept_file(tokenizer: Job, results_dir: str | Path) -> Path:
    """Return where a tokenizer's semantic IDs are kept: for each epoch, its key, uint [N, L] in item id order."""
    return results_folder(tokenizer, results_dir) / f"{tokenizer.id}.npz"


def keep_semantic_ids(jobs: Iterable[Job], results_dir: str | Path) -> None:
    """Keep the semantic IDs that finished jobs were trained with."""
    for tokenizer, epochs in _used(jobs).items():
        file = kept_file(tokenizer, results_dir)
        with alone_in(file.parent):
            kept = _kept(file)
            if not (new := epochs - kept.keys()):
                continue
            kept |= _present(tokenizer, new)
            small = {str(epoch): kept[epoch].astype(np.min_scalar_type(kept[epoch].max())) for epoch in sorted(kept)}
            with atomic_path(file) as temporary, open(temporary, "wb") as handle:
                np.savez_compressed(handle, **small)


def restore_semantic_ids(jobs: Iterable[Job], results_dir: str | Path) -> None:
    """Give open jobs the semantic IDs that earlier results of their tokenizers rest on, where such were kept.

    The tokenizer's folder then holds semantic IDs without a model, as published ones come.

    Raises:
        InputError: The folder has other ones, or a job needs an epoch that was not kept though results rest on others.
    """
    for tokenizer, epochs in _used(jobs).items():
        file, config = kept_file(tokenizer, results_dir), tokenizer_config(tokenizer)
        kept, present = _kept(file), _present(tokenizer, epochs)
        trained_here = (config.tokenizer_folder / TRAINING_FILE).exists()
        absent = epochs - present.keys()
        if not kept:
            outcomes = read_outcomes([tokenizer], results_dir).values()
            if absent and any(tokenizer.id in outcome["needs"] for outcome in outcomes):
                raise InputError(
                    f"results in {file.parent} rest on {tokenizer.id}, whose semantic IDs were not kept, and trained "
                    "again it may be another one; take other --seeds, or --results_dir to begin anew"
                )
            continue
        if (trained_here and absent) or any((present[epoch] != kept[epoch]).any() for epoch in present.keys() & kept):
            raise InputError(
                f"{config.tokenizer_folder} holds a tokenizer with other semantic IDs than {file}, which results rest "
                "on; remove that folder, and they are put there, or take other --seeds"
            )
        if lacking := absent - kept.keys():
            raise InputError(
                f"{file} keeps the semantic IDs of the epochs {sorted(kept)}, which results rest on, not of "
                f"{sorted(lacking)}, and a tokenizer trained again would be another one; take other --seeds"
            )
        names = load_interactions(config.folder).item_names[1:]
        for epoch in sorted(absent):
            write_sem_ids(sem_ids_file(config, epoch), names, kept[epoch])


def _used(jobs: Iterable[Job]) -> dict[Job, set[int]]:
    """Return the tokenizers that jobs train with, and their epochs."""
    used: dict[Job, set[int]] = defaultdict(set)
    for job in jobs:
        for need in job.needs:
            if need.kind == "tokenizer":
                used[need].update(job.flags["sem_id_epochs"])
    return used


def kept_codes(tokenizer: Job, results_dir: str | Path) -> dict[int, np.ndarray]:
    """Return the semantic IDs of a tokenizer that results rest on: {epoch: uint [N, L]}, disambiguation last."""
    return _kept(kept_file(tokenizer, results_dir))


def _kept(file: Path) -> dict[int, np.ndarray]:
    if not file.exists():
        return {}
    with np.load(file) as arrays:
        return {int(epoch): arrays[epoch] for epoch in arrays.files}


def _present(tokenizer: Job, epochs: set[int]) -> dict[int, np.ndarray]:
    """Return the codes of those of the epochs whose semantic IDs are in the tokenizer's folder."""
    config = tokenizer_config(tokenizer)
    files = {epoch: file for epoch in sorted(epochs) if (file := sem_ids_file(config, epoch)).exists()}
    if not files:
        return {}
    names = load_interactions(config.folder).item_names[1:]
    sizes = level_sizes(config.n_codebooks, config.codebook_size)
    return {epoch: read_sem_ids(file, names, sizes) for epoch, file in files.items()}
