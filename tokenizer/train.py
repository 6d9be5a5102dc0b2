"""Train tokenizers: of an RQ-VAE, each of the last epochs is one (paper section 2.2.2).

    python -m tokenizer.train --dataset=Musical_Instruments
    python -m tokenizer.train --dataset=Sample --sent_emb_model=tfidf --sent_emb_dim=256 --sent_emb_pca=64 \
        --codebook_size=64 --hidden_sizes=[128,64] --epochs=300 --save_last=20

Writes <dataset>/<ckpt_name>/: epochs/<epoch>.safetensors (encoder and codebooks of the last epochs, 1-based),
best.safetensors, last.safetensors, pca.safetensors, metrics.jsonl, config.yaml and training.json.
"""

import shutil
from collections import Counter

import numpy as np

from data.interactions import dataset_folder, load_interactions, training_items
from data.token_table import NEW_ITEMS_FILE, TRAINING_FILE
from tokenizer.config import TokenizerConfig
from tokenizer.embed import load_embeddings
from tokenizer.epoch_writer import METRICS_FILE, STATE_FOLDER, EpochWriter
from tokenizer.folder import PCA_FILE, announce_published, differences, load_pca, read_training, training_settings
from tokenizer.kinds import KINDS
from tokenizer.whitening import fit_whitening
from utils.claims import claim
from utils.config import HANDLING_FLAGS, dump_config, parse_config
from utils.errors import InputError
from utils.files import remove_leftovers, write_json, write_text
from utils.interrupts import listening
from utils.locks import LOCK_FILE, FileLock
from utils.runtime import choose_device, run_command, seed_everything
from utils.snapshots import newest_snapshot, read_snapshot

_CONFIG_FILE = "config.yaml"


def train(config: TokenizerConfig) -> None:
    """Train the dataset's tokenizers, or reuse a finished training with the same settings."""
    folder = dataset_folder(config.data_dir, config.dataset)
    if announce_published(config):
        return
    interactions = load_interactions(folder)
    embeddings, items = load_embeddings(config, interactions.num_items), training_items(interactions)
    _check_sizes(config, embeddings, items)
    settings = training_settings(config, embeddings=embeddings, training_items=items)
    settings |= KINDS[config.kind].sources(config)
    with FileLock(config.tokenizer_folder / LOCK_FILE):
        if not _reusable(config, settings):
            _train(config, settings, embeddings, items)


def _check_sizes(config: TokenizerConfig, embeddings: np.ndarray, items: np.ndarray) -> None:
    """Refuse embeddings, float32 [N, E], that cannot fill the codebooks or have too many alike to be told apart."""
    largest, last_size = max(config.codebook_sizes), config.level_sizes[-1]
    if KINDS[config.kind].fits and len(items) < largest:
        raise InputError(f"{len(items)} training items cannot fill {largest} codes; lower --codebook_size")
    identical = max(Counter(hash(row.tobytes()) for row in embeddings).values())
    if identical >= last_size:
        raise InputError(
            f"{identical} items have the same embedding, which no codebooks tell apart, but the disambiguation level "
            f"separates at most {last_size - 1}; give it more codes with a last entry of its own in --codebook_size "
            f"(at least {identical + 1}), or join items of the same text"
        )


def _reusable(config: TokenizerConfig, settings: dict[str, object]) -> bool:
    """Whether the folder holds this very training, finished; InputError if it holds another, and no --overwrite."""
    folder, earlier = config.tokenizer_folder, read_training(config)
    if not earlier:
        return False
    different = differences(earlier.get("settings", {}), settings)
    unfinished = "unfinished" if different or (folder / STATE_FOLDER).exists() else "nothing"
    found = "finished" if earlier.get("finished") else unfinished
    refusal = "holds an unfinished training; go on with --resume (RESUME=1), or start anew with --overwrite"
    if different:
        refusal = (
            f"holds a tokenizer trained with other settings ({different}); "
            "name another folder with --ckpt_name, or replace it with --overwrite"
        )
    may = {"overwrite": config.overwrite, "resume": config.resume, "reuse": True}
    decision = claim(folder, found, different, refusal=refusal, **may)
    if decision == "reuse":
        print(f"{folder}: reused, a finished training with the same settings")
    elif decision == "make":
        print(f"{folder}: trained anew, since {different or 'the last run did not finish'}")
    return decision == "reuse"


def _train(config: TokenizerConfig, settings: dict[str, object], embeddings: np.ndarray, items: np.ndarray) -> None:
    """Train on `items`, int [training items], of the embeddings, float32 [N, E], and write the tokenizer's folder."""
    folder, device, kind = config.tokenizer_folder, choose_device(config.device), KINDS[config.kind]
    snapshot = None
    if config.resume:
        remove_leftovers(folder)
        path, notes = newest_snapshot(folder / STATE_FOLDER)
        snapshot = path and read_snapshot(path)
        found = f"{folder} has no saved state to resume: starting anew"
        if snapshot:
            found = f"{folder}: resumed after epoch {snapshot.values['epoch']}, from {path}"
        print(*notes, found, sep="\n")
    if snapshot is None:
        _begin_anew(config, settings, embeddings, items)
    inputs = load_pca(config)(embeddings)
    print(f"{folder}: training on {len(items)} of {len(embeddings)} items, {device}")
    with EpochWriter(kind.title, config, snapshot) as writer, listening():
        result = kind.train(config, inputs, items, writer)
    result |= {"seconds": writer.seconds}
    write_json(folder / TRAINING_FILE, {"finished": True, "settings": settings, **result})  # from here on it is reused
    for file in (folder / "epochs").glob("*") if "epochs" in result else ():
        if int(file.stem) not in result["epochs"]:
            file.unlink()
    shutil.rmtree(folder / STATE_FOLDER, ignore_errors=True)


def _begin_anew(
    config: TokenizerConfig, settings: dict[str, object], embeddings: np.ndarray, items: np.ndarray
) -> None:
    """Remove what an earlier training made, whose semantic IDs would not fit, and write the settings and the PCA."""
    folder = config.tokenizer_folder  # untouched where there is no such PCA, or the new training is impossible
    whitening = fit_whitening(embeddings, config.sent_emb_pca, config.rand_seed) if config.has_pca else None
    if (folder / TRAINING_FILE).is_file():
        KINDS[config.kind].check(config, whitening.apply(embeddings) if whitening else embeddings, items)
    write_json(folder / TRAINING_FILE, {"finished": False, "settings": settings})
    for name in ("epochs", STATE_FOLDER):
        shutil.rmtree(folder / name, ignore_errors=True)
    for pattern in ("*.safetensors", METRICS_FILE, _CONFIG_FILE, "quality.*", "*.sem_ids", NEW_ITEMS_FILE):
        for file in folder.glob(pattern):
            file.unlink()
    write_text(folder / _CONFIG_FILE, dump_config(config, without=HANDLING_FLAGS))
    if whitening is not None:
        whitening.save(folder / PCA_FILE)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and train."""
    config, _ = parse_config(TokenizerConfig, argv, "python -m tokenizer.train", __doc__)
    seed_everything(config.rand_seed, config.reproducibility)
    train(config)


if __name__ == "__main__":
    run_command(main)
