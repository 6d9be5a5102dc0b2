"""Train tokenizers: of an RQ-VAE, each of the last epochs is one (paper section 2.2.2).

    python -m tokenizer.train --dataset=Musical_Instruments
    python -m tokenizer.train --dataset=Sample --sent_emb_model=tfidf --sent_emb_dim=256 --sent_emb_pca=64 \
        --codebook_size=64 --hidden_sizes=[128,64] --epochs=300 --save_last=20

Writes <dataset>/<ckpt_name>/: epochs/<epoch>.safetensors (encoder and codebooks of the last epochs, 1-based),
best.safetensors, last.safetensors, pca.safetensors, metrics.jsonl, config.yaml and training.json.
"""

from collections import Counter

import numpy as np

from data.interactions import dataset_folder, load_interactions, training_items
from tokenizer.config import TokenizerConfig
from tokenizer.embed import load_embeddings
from tokenizer.epoch_writer import EpochWriter
from tokenizer.folder import (
    announce_published,
    begin_training,
    finish_training,
    load_pca,
    reusable,
    snapshot_to_resume,
    training_settings,
)
from tokenizer.kinds import KINDS
from utils.config import parse_config
from utils.errors import InputError
from utils.interrupts import listening
from utils.locks import LOCK_FILE, FileLock
from utils.runtime import choose_device, run_command, seed_everything


def train(config: TokenizerConfig) -> None:
    """Train the dataset's tokenizers, or reuse a finished training with the same settings."""
    folder = dataset_folder(config.data_dir, config.dataset)
    if announce_published(config):
        return
    interactions = load_interactions(folder)
    embeddings, items = load_embeddings(config, interactions.num_items), training_items(interactions)
    _check_sizes(config, embeddings, items)
    settings = training_settings(config, embeddings=embeddings, training_items=items)
    with FileLock(config.tokenizer_folder / LOCK_FILE):
        if not reusable(config, settings):
            _train(config, settings, embeddings, items)


def _check_sizes(config: TokenizerConfig, embeddings: np.ndarray, items: np.ndarray) -> None:
    """Refuse embeddings, float32 [N, E], that cannot fill the codebooks or have too many alike to be told apart."""
    largest, last_size = max(config.codebook_sizes), config.level_sizes[-1]
    if len(items) < largest:
        raise InputError(f"{len(items)} training items cannot fill {largest} codes; lower --codebook_size")
    identical = max(Counter(hash(row.tobytes()) for row in embeddings).values())
    if identical >= last_size:
        raise InputError(
            f"{identical} items have the same embedding, which no codebooks tell apart, but the disambiguation level "
            f"separates at most {last_size - 1}; give it more codes with a last entry of its own in --codebook_size "
            f"(at least {identical + 1}), or join items of the same text"
        )


def _train(config: TokenizerConfig, settings: dict[str, object], embeddings: np.ndarray, items: np.ndarray) -> None:
    """Train on `items`, int [training items], of the embeddings, float32 [N, E], and write the tokenizer's folder."""
    folder, device, kind = config.tokenizer_folder, choose_device(config.device), KINDS[config.kind]
    snapshot = snapshot_to_resume(folder) if config.resume else None
    if snapshot is None:
        begin_training(config, settings, embeddings)
    inputs = load_pca(config)(embeddings)
    print(f"{folder}: training on {len(items)} of {len(embeddings)} items, {device}")
    with EpochWriter(kind.title, config, snapshot) as writer, listening():
        result = kind.train(config, inputs, items, writer)
    finish_training(config, settings, result | {"seconds": writer.seconds})


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and train."""
    config, _ = parse_config(TokenizerConfig, argv, "python -m tokenizer.train", __doc__)
    seed_everything(config.rand_seed, config.reproducibility)
    train(config)


if __name__ == "__main__":
    run_command(main)
