"""Semantic IDs for items that came after training, from their texts; no old item's ID changes."""

from pathlib import Path

import numpy as np

from data.interactions import load_interactions
from data.token_table import NEW_ITEMS_FILE, Group, Vocabulary, load_token_table
from tokenizer.config import TokenizerConfig
from tokenizer.disambiguation import disambiguation_codes
from tokenizer.embed import check_encoder, encode_texts, load_embeddings
from tokenizer.folder import epoch_name, load_tokenizer, lock_tokenizer, sem_ids_file, sem_ids_prefix
from utils.errors import InputError
from utils.files import read_json, whole_characters, write_json


def assign(config: TokenizerConfig, file: Path) -> str:
    """Give semantic IDs of every tokenizer of the training to new items, and add them to new_items.json.

    That file is {"prefix", "texts": {item: text}, "semantic_ids": {epoch or "best": {item: codes}},
    "semantic_ids_sha256": {epoch or "best": hash of the dataset's own items' semantic IDs}}; items that it has already,
    like the dataset's own, keep what they have.

    Args:
        config: Settings of the training.
        file: JSON {item: text}.

    Returns:
        What was done, in words.

    Raises:
        InputError: The file is something else, the tokenizer is not there or was trained on other embeddings, or a
            disambiguation level is full.
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
        key, codes = epoch_name(epoch), tokenizer.codes(inputs, epoch)
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
