"""Model folders: what a recommender needs on another machine, read and written."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from data.token_table import Group, Vocabulary, check_identifiers
from evaluation.run import Run, run_around
from inference.catalogue import Catalogue
from model.recommender import Recommender, find_model_folder
from utils.errors import InputError
from utils.files import atomic_folder, read_json, remove_leftovers, write_checksums, write_json
from utils.locks import LOCK_FILE, FileLock

ABOUT_FILE = "mtgrec.json"
ITEMS_FILE = "items.jsonl"


@dataclass
class TrainedModel:
    """A recommender with its items.

    Attributes:
        recommender: The network in eval mode.
        catalogue: What it can recommend.
        settings: What it was trained with, as the run's config.yaml has it.
        metrics: Of the tokenizer in the catalogue: {"valid": {metric: mean}, "test": {...}}, if these are a finished
            run's best weights.
    """

    recommender: Recommender
    catalogue: Catalogue
    settings: dict
    metrics: dict[str, dict[str, float]]


def load_trained_model(path: Path | str, data_dir: str | None = None) -> TrainedModel:
    """Read a model from a run folder, one of its checkpoints, or an exported model folder.

    A run with several tokenizers is read with the one that is best on validation. Only an exported folder needs no
    dataset.

    Args:
        path: The folder.
        data_dir: Folder of dataset folders; by default where the run had it.

    Raises:
        InputError: It is none of these, or a file is absent or broken.
    """
    weights = find_model_folder(path)
    recommender = Recommender.from_pretrained(weights, dropout_rate=0.0).eval()
    architecture = recommender.architecture
    vocabulary = Vocabulary(architecture.level_sizes, architecture.n_user_tokens)
    if (weights / ABOUT_FILE).is_file():
        about = read_json(weights / ABOUT_FILE)
        group = Group(about["tokenizer"]["prefix"], about["tokenizer"]["epoch"], weights / ITEMS_FILE)
        catalogue = Catalogue.load(weights / ITEMS_FILE, group, vocabulary)
        return TrainedModel(recommender, catalogue, read_settings(path, data_dir), about["metrics"])
    run, settings = _run_of(path), read_settings(path, data_dir)
    tokenizer = run.tokenizer
    catalogue = Catalogue.of_dataset(settings, tokenizer["prefix"], tokenizer["epoch"], vocabulary)
    remedy = "bring those of its training back, or recommend with a folder that export.py made before they changed"
    check_identifiers(recommender.identifiers, catalogue.table, path, remedy)
    best = weights.resolve() == run.model.resolve()  # the results are this epoch's
    metrics = {split: tokenizer[split] for split in ("valid", "test") if best and split in tokenizer}
    return TrainedModel(recommender, catalogue, settings, metrics)


def read_settings(path: Path | str, data_dir: str | None = None) -> dict:
    """Return the training settings of any of these folders, with another data_dir where one is given."""
    about = find_model_folder(path) / ABOUT_FILE
    settings = read_json(about)["settings"] if about.is_file() else _run_of(path).settings
    return settings | ({"data_dir": data_dir} if data_dir else {})


def _run_of(path: Path | str) -> Run:
    path = Path(path).absolute()
    run = run_around(path)
    if run is None:
        raise InputError(
            f"{path} has no {ABOUT_FILE} and lies in no run folder; python export.py makes a complete folder"
        )
    return run


def complete_model_folder(run: Path) -> None:
    """Make the model folder of a finished run complete, unless it is: the run may have been killed before.

    Raises:
        InputError: Another process works on the run.
    """
    if (run / "model" / ABOUT_FILE).is_file():
        return
    with FileLock(run / LOCK_FILE):
        remove_leftovers(run)
        if not (run / "model" / ABOUT_FILE).is_file():
            export_model(run, run / "model")


def export_model(path: Path | str, output: Path, data_dir: str | None = None) -> TrainedModel:
    """Write a complete model folder, whole or not at all.

    It holds config.json and model.safetensors (plain transformers reads them), items.jsonl (the token table: item,
    semantic ID, popularity and text in item id order), mtgrec.json (tokenizer, vocabulary layout, training settings,
    metrics) and sha256.json (checksums).
    """
    weights, model = find_model_folder(path), load_trained_model(path, data_dir)
    vocabulary, group = model.catalogue.table.vocabulary, model.catalogue.table.groups[0]
    with atomic_folder(output) as temporary:
        for name in ("config.json", "generation_config.json", "model.safetensors"):
            if (weights / name).is_file():
                shutil.copyfile(weights / name, temporary / name)
        model.catalogue.save(temporary / ITEMS_FILE)
        about = {
            "tokenizer": {"prefix": group.prefix, "epoch": group.epoch},
            "vocabulary": asdict(vocabulary)
            | {
                "level_offsets": vocabulary.level_offsets,
                "base_user_token": vocabulary.base_user_token,
                "eos_token": vocabulary.eos_token,
            },
            "settings": model.settings,
            "metrics": model.metrics,
        }
        write_json(temporary / ABOUT_FILE, about)
        write_checksums(temporary, sorted(temporary.iterdir()))
    return model
