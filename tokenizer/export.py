"""Write the semantic IDs of all tokenizers of a training, and a quality report.

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

from data.interactions import dataset_folder, load_interactions
from data.token_table import QUALITY_FILE, write_sem_ids
from tokenizer.assign import assign
from tokenizer.config import TokenizerConfig
from tokenizer.disambiguation import semantic_ids
from tokenizer.embed import load_embeddings
from tokenizer.folder import (
    announce_published,
    epoch_name,
    load_tokenizer,
    lock_tokenizer,
    sem_ids_file,
    sem_ids_prefix,
)
from tokenizer.quality import drift, format_report, tokenizer_quality
from utils.advice import tokenizer_advice
from utils.config import parse_config
from utils.files import remove_leftovers, write_json, write_text
from utils.runtime import run_command, seed_everything


@dataclass
class ExportConfig(TokenizerConfig):
    """Settings of the export; all others are those of the training."""

    assign: str = ""
    """JSON file {item: text} of new items that get semantic IDs beside the old ones"""


def export(config: TokenizerConfig) -> dict[str, object]:
    """Write the semantic IDs of all tokenizers of the training, and the quality report.

    Returns:
        The quality report; empty where published semantic IDs are used as they are.
    """
    folder = dataset_folder(config.data_dir, config.dataset)
    if announce_published(config):
        return {}
    with lock_tokenizer(config):
        interactions = load_interactions(folder)
        return _export(config, interactions.item_names[1:], load_embeddings(config, interactions.num_items))


def _export(config: TokenizerConfig, names: list[str], embeddings: np.ndarray) -> dict[str, object]:
    tokenizer = load_tokenizer(config, embeddings)
    inputs = tokenizer.prepare(embeddings)
    remove_leftovers(config.tokenizer_folder)
    (config.tokenizer_folder / QUALITY_FILE).unlink(missing_ok=True)  # written last: without it, files are missing
    qualities, sem_ids = {}, {}
    for epoch in tokenizer.epochs:
        name, codes = epoch_name(epoch), tokenizer.codes(inputs, epoch)
        ids = semantic_ids(codes, config.level_sizes[-1], name, names)
        write_sem_ids(sem_ids_file(config, epoch), names, ids)
        qualities[name] = tokenizer_quality(codes, config.codebook_sizes)
        if epoch is not None:
            sem_ids[epoch] = ids.astype(np.int32)
    report = {
        "items": len(names),
        "codebook_sizes": list(config.codebook_sizes),
        "tokenizers": qualities,
        "drift": drift(sem_ids),
    }
    write_text(config.tokenizer_folder / "quality.txt", format_report(report) + "\n")
    write_json(config.tokenizer_folder / QUALITY_FILE, report)
    return report


def judge(report: dict[str, object]) -> list[str]:
    """Return what looks wrong with the last tokenizer, the best one if there is such, which the others resemble."""
    *_, last = report["tokenizers"].values()
    return tokenizer_advice(last["codes_used"], report["codebook_sizes"], last["collision_rate"])


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, export and print the report."""
    config, _ = parse_config(ExportConfig, argv, "python -m tokenizer.export", __doc__)
    seed_everything(config.rand_seed, config.reproducibility)
    if config.assign:
        print(assign(config, Path(config.assign)))
    elif report := export(config):
        print(format_report(report))
        for line in judge(report):
            print(f"warning: {line}")
        print(f"{config.tokenizer_folder}: {len(report['tokenizers'])} files {sem_ids_prefix(config)}*.sem_ids")


if __name__ == "__main__":
    run_command(main)
