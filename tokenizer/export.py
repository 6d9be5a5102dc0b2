"""Write the semantic IDs of all tokenizers of a training, and a quality report.

    python -m tokenizer.export --dataset=Musical_Instruments
    python -m tokenizer.export --config_file=datasets/Musical_Instruments/rqvae/config.yaml --assign=new.json

Writes <dataset>/<ckpt_name>/<encoder>_<sizes,...>_<epoch>.sem_ids (without _<epoch>: the best-loss checkpoint's),
JSON {item: [code of each level, disambiguation code last]}; quality.json and quality.txt.

With --assign, gives semantic IDs to new items instead, from their texts {item: text} with the saved PCA and RQ-VAEs,
and writes them to <dataset>/<ckpt_name>/new_items.json: recommend.py --new_items takes it. No old item's ID changes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.advice import relation_advice, tokenizer_advice
from data.interactions import dataset_folder, load_interactions
from data.token_table import NEW_ITEMS_FILE, QUALITY_FILE, Group, Vocabulary, load_token_table, write_sem_ids
from tokenizer.config import TokenizerConfig
from tokenizer.embed import check_encoder, encode_texts, load_embeddings
from tokenizer.folder import announce_published, load_tokenizer, lock_tokenizer, sem_ids_file, sem_ids_prefix
from tokenizer.quality import disambiguation_codes, drift_of_ends, format_report, relatedness, tokenizer_quality
from utils.config import parse_config
from utils.errors import InputError
from utils.files import read_json, remove_leftovers, whole_characters, write_json, write_text
from utils.runtime import run_command, seed_everything


@dataclass
class ExportConfig(TokenizerConfig):
    """Settings of the export; all others are those of the training."""

    assign: str = ""
    """JSON file {item: text} of new items that get semantic IDs beside the old ones"""


def semantic_ids(
    codes: np.ndarray, size: int, name: str, item_names: list[str], order: np.ndarray | None = None
) -> np.ndarray:
    """Append the disambiguation level: int [N, H], 0-based, row i = item id i + 1, to int64 [N, H + 1] (section 2.2.2).

    Differs from the reference code: a group larger than the level holds is an error; there, code 256 of 256 was let
    through and became the user token.

    Of the level's `size` codes 1..size-1 are used; the names, of tokenizer and items in id order, are for the error.
    Items of the same codes are counted in the `order`, a permutation int [N], by default that of their ids.
    """
    order = np.arange(len(codes)) if order is None else order
    extra = np.empty(len(codes), dtype=np.int64)
    extra[order] = disambiguation_codes(codes[order])
    if extra.max() >= size:
        example = int(extra.argmax())
        members = int(extra[example])
        raise InputError(
            f"tokenizer of epoch {name}: {members} items share the codes {codes[example].tolist()} "
            f"({item_names[example]!r} among them), but the disambiguation level of {size} separates at most "
            f"{size - 1}; give it more codes with a last entry of its own in --codebook_size (at least {members + 1}), "
            "or use more or larger codebooks"
        )
    return np.column_stack([codes, extra])


def export(config: TokenizerConfig) -> dict[str, object]:
    """Write all tokenizers' semantic IDs and return the quality report; it is empty where published ones are used."""
    folder = dataset_folder(config.data_dir, config.dataset)
    if announce_published(config):
        return {}
    with lock_tokenizer(config):
        names = load_interactions(folder).item_names[1:]
        embeddings = load_embeddings(config, len(names))
        tokenizer = load_tokenizer(config, embeddings)
        inputs = tokenizer.prepare(embeddings)
        remove_leftovers(config.tokenizer_folder)
        codes = ((epoch, tokenizer.dataset_codes(inputs, epoch)) for epoch in tokenizer.epochs)
        return write_tokenizers(config, names, codes, tokenizer.order())


def write_tokenizers(
    config: TokenizerConfig,
    names: list[str],
    tokenizers: Iterable[tuple[int | None, np.ndarray]],
    order: np.ndarray | None = None,
) -> dict[str, object]:
    """Write semantic IDs of tokenizers (1-based epoch, None the best; codes int [N, H]) and the quality report.

    `order` is that of `semantic_ids`.
    """
    (config.tokenizer_folder / QUALITY_FILE).unlink(missing_ok=True)  # written last: without it, files are missing
    qualities, sem_ids = {}, {}
    for epoch, codes in tokenizers:
        name = str(epoch or "best")
        ids = semantic_ids(codes, config.level_sizes[-1], name, names, order)
        write_sem_ids(sem_ids_file(config, epoch), names, ids)
        qualities[name] = tokenizer_quality(codes, config.codebook_sizes)
        if epoch is not None:
            sem_ids[epoch] = ids.astype(np.int32)
    report = {"items": len(names), "codebook_sizes": list(config.codebook_sizes)}
    report |= {"tokenizers": qualities}
    if sem_ids:
        report |= relatedness(list(sem_ids), np.stack(list(sem_ids.values())))
    write_text(config.tokenizer_folder / "quality.txt", format_report(report) + "\n")
    write_json(config.tokenizer_folder / QUALITY_FILE, report)
    return report


def assign(config: TokenizerConfig, file: Path) -> str:
    """Give semantic IDs of every tokenizer of the training to new items of a JSON file {item: text}.

    They are added to new_items.json, {"prefix", "texts": {item: text}, "semantic_ids": {epoch or "best": {item:
    codes}}, "semantic_ids_sha256": {epoch or "best": hash of the dataset's own items' semantic IDs}}. Items that it has
    already, like the dataset's own, keep what they have. Returns what was done, in words.
    """
    with lock_tokenizer(config):
        texts = read_json(file)
        if not isinstance(texts, dict) or not all(isinstance(text, str) and text.strip() for text in texts.values()):
            raise InputError(f"{file} is not a dictionary {{item: text}} with a text for every item")
        texts = {name: whole_characters(text) for name, text in texts.items()}
        old_names = load_interactions(config.folder).item_names[1:]
        target = config.tokenizer_folder / NEW_ITEMS_FILE
        prefix = f"{config.ckpt_name}/{sem_ids_prefix(config)}"
        assigned = read_json(target) if target.exists() else {"prefix": prefix, "texts": {}}
        known = {*old_names, *assigned["texts"]}
        new = {name: text for name, text in texts.items() if name not in known}
        if not new:
            return f"{file}: all {len(texts)} items have semantic IDs already"
        _add(config, assigned, new, old_names)
        write_json(target, assigned)
        skipped = f"; {len(texts) - len(new)} had them already" if len(new) < len(texts) else ""
        return f"{target}: semantic IDs for {len(new)} new items{skipped}"


def _add(config: TokenizerConfig, assigned: dict[str, dict], new: dict[str, str], old_names: list[str]) -> None:
    """Add the new items {item: text} to `assigned`, what new_items.json holds."""
    check_encoder(config)
    tokenizer = load_tokenizer(config, load_embeddings(config, len(old_names)))
    inputs, sizes = tokenizer.prepare(encode_texts(config, list(new.values()))), config.level_sizes
    for epoch in tokenizer.epochs:
        key, codes = str(epoch or "best"), tokenizer.codes(inputs, epoch)
        present = assigned.setdefault("semantic_ids", {}).setdefault(key, {})
        group = Group(assigned["prefix"], epoch, sem_ids_file(config, epoch))
        old = load_token_table([group], old_names, Vocabulary(sizes))
        assigned.setdefault("semantic_ids_sha256", {})[key] = old.sha256[0]
        extra = disambiguation_codes(codes, np.asarray([*old.codes(0), *present.values()]))
        for name, shared, last in zip(new, codes.tolist(), extra.tolist(), strict=True):
            if last >= sizes[-1]:
                raise InputError(
                    f"tokenizer of epoch {key}: {last} items would share the codes {shared} of "
                    f"{name!r}, but the disambiguation level of {sizes[-1]} separates at most {sizes[-1] - 1}"
                )
            present[name] = [*shared, last]
    assigned["texts"] |= new


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, export and print the report."""
    config, _ = parse_config(ExportConfig, argv, "python -m tokenizer.export", __doc__)
    seed_everything(config.rand_seed, config.reproducibility)
    if config.assign:
        print(assign(config, Path(config.assign)))
    elif report := export(config):
        print(format_report(report))
        *_, last = report["tokenizers"].values()  # the best one if there is such; the others resemble it
        advice = tokenizer_advice(last["codes_used"], report["codebook_sizes"], last["collision_rate"])
        if report.get("drift"):
            ends = drift_of_ends(report)
            advice += relation_advice(ends["first"], ends["any"])
        for line in advice:
            print(f"warning: {line}")
        print(f"{config.tokenizer_folder}: {len(report['tokenizers'])} files {sem_ids_prefix(config)}*.sem_ids")


if __name__ == "__main__":
    run_command(main)
