"""Write the semantic IDs of every kept epoch and of the best-loss checkpoint, and a quality report.

    python -m tokenizer.export --dataset=Musical_Instruments
    python -m tokenizer.export --config_file=datasets/Musical_Instruments/rqvae/config.yaml --assign=new.json

Writes <dataset>/<ckpt_name>/<encoder>_<sizes,...>_<epoch>.sem_ids (without _<epoch>: the best-loss checkpoint's),
JSON {item: [code of each level, disambiguation code last]}; quality.json and quality.txt.

With --assign, gives semantic IDs to new items instead, from their texts {item: text} with the saved PCA and RQ-VAEs,
and writes them to <dataset>/<ckpt_name>/new_items.json: recommend.py --new_items takes it. No old item's ID changes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.advice import tokenizer_advice
from data.interactions import dataset_folder, load_interactions
from data.token_table import QUALITY_FILE, level_sizes, write_sem_ids
from tokenizer.assign import assign
from tokenizer.config import TokenizerConfig
from tokenizer.embed import load_embeddings
from tokenizer.published import announce_published, sem_ids_file, sem_ids_prefix
from tokenizer.quality import collision_groups, drift, format_report, tokenizer_quality
from tokenizer.train import load_tokenizer
from utils.config import parse_config
from utils.errors import InputError
from utils.files import remove_leftovers, write_json, write_text
from utils.locks import LOCK_FILE, FileLock
from utils.runtime import run_command, seed_everything


@dataclass
class ExportConfig(TokenizerConfig):
    """Settings of the export; all others are those of the training."""

    assign: str = ""
    """JSON file {item: text} of new items that get semantic IDs beside the old ones"""


def disambiguation_codes(codes: np.ndarray) -> np.ndarray:
    """Count 1, 2, 3, ... in item id order within each group of items that share all codebook codes.

    Args:
        codes: int [N, H], row i = item id i + 1.

    Returns:
        int64 [N].
    """
    group, sizes = collision_groups(codes)
    order = np.argsort(group, kind="stable")
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    result = np.empty(len(codes), dtype=np.int64)
    result[order] = np.arange(len(codes)) - starts + 1
    return result


def semantic_ids(codes: np.ndarray, size: int, epoch: int | None, item_names: list[str]) -> np.ndarray:
    """Append the disambiguation level.

    Differs from the reference code: a group larger than the level holds is an error; there, code 256 of 256 was let
    through and became the user token.

    Args:
        codes: int [N, H], 0-based, row i = item id i + 1.
        size: Codes of the disambiguation level, of which 1..size-1 are used.
        epoch: 1-based, None for the best-loss checkpoint; for the error.
        item_names: N names in item id order, without padding; for the error.

    Returns:
        int64 [N, H + 1].

    Raises:
        InputError: A group has more than size - 1 items.
    """
    extra = disambiguation_codes(codes)
    if extra.max() >= size:
        example = int(extra.argmax())
        members = int(extra[example])
        raise InputError(
            f"tokenizer of epoch {epoch or 'best'}: {members} items share the codes {codes[example].tolist()} "
            f"({item_names[example]!r} among them), but the disambiguation level of {size} separates at most "
            f"{size - 1}; give it more codes with a last entry of its own in --codebook_size (at least {members + 1}), "
            "or use more or larger codebooks"
        )
    return np.column_stack([codes, extra])


def export(config: TokenizerConfig) -> dict[str, object]:
    """Write the semantic IDs of all kept epochs and the best checkpoint, and the quality report.

    Embeddings and PCA are loaded once for all.

    Returns:
        The quality report; empty where published semantic IDs are used as they are.
    """
    folder = dataset_folder(config.data_dir, config.dataset)
    if announce_published(config):
        return {}
    with _locked(config):
        interactions = load_interactions(folder)
        names, sizes = interactions.item_names[1:], level_sizes(config.n_codebooks, config.codebook_size)
        return _export(config, names, sizes, load_embeddings(config, interactions.num_items))


def _locked(config: TokenizerConfig) -> FileLock:
    """Lock the tokenizer's folder, which a lock alone would make; raise InputError where it or the dataset has none."""
    dataset_folder(config.data_dir, config.dataset)
    if not config.tokenizer_folder.is_dir():
        raise InputError(
            f"{config.tokenizer_folder} does not exist; run python -m tokenizer.train first, or give its --ckpt_name"
        )
    return FileLock(config.tokenizer_folder / LOCK_FILE)


def _export(
    config: TokenizerConfig, names: list[str], sizes: tuple[int, ...], embeddings: np.ndarray
) -> dict[str, object]:
    tokenizer = load_tokenizer(config, embeddings)
    inputs = tokenizer.prepare(embeddings)
    remove_leftovers(config.tokenizer_folder)
    (config.tokenizer_folder / QUALITY_FILE).unlink(missing_ok=True)  # written last: without it, files are missing
    qualities, sem_ids = {}, {}
    for epoch in [*range(config.first_kept_epoch, config.epochs + 1), None]:
        codes = tokenizer.codes(inputs, epoch)
        ids = semantic_ids(codes, sizes[-1], epoch, names)
        write_sem_ids(sem_ids_file(config, epoch), names, ids)
        qualities[str(epoch or "best")] = tokenizer_quality(codes, sizes[:-1])
        if epoch is not None:
            sem_ids[epoch] = ids.astype(np.int32)
    report = {
        "items": len(names),
        "codebook_sizes": list(sizes[:-1]),
        "tokenizers": qualities,
        "drift": drift(sem_ids),
    }
    write_text(config.tokenizer_folder / "quality.txt", format_report(report) + "\n")
    write_json(config.tokenizer_folder / QUALITY_FILE, report)
    return report


def judge(report: dict[str, object]) -> list[str]:
    """Return what looks wrong with the best-loss tokenizer, which the others resemble."""
    best = report["tokenizers"]["best"]
    return tokenizer_advice(best["codes_used"], report["codebook_sizes"], best["collision_rate"])


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, export and print the report."""
    config, _ = parse_config(ExportConfig, argv, "python -m tokenizer.export", __doc__)
    seed_everything(config.rand_seed, config.reproducibility)
    if config.assign:
        with _locked(config):
            print(assign(config, Path(config.assign)))
        return
    report = export(config)
    if report:
        print(format_report(report))
        for line in judge(report):
            print(f"warning: {line}")
        print(f"{config.tokenizer_folder}: {len(report['tokenizers'])} files {sem_ids_prefix(config)}*.sem_ids")


if __name__ == "__main__":
    run_command(main)
