"""Semantic IDs for items that came after training, from their texts; no old item's ID changes."""

from pathlib import Path

import numpy as np

from data.interactions import dataset_folder, load_interactions
from data.token_table import NEW_ITEMS_FILE, Group, Vocabulary, level_sizes, load_token_table
from tokenizer.config import TokenizerConfig
from tokenizer.embed import check_encoder, encode_texts, load_embeddings
from tokenizer.published import sem_ids_file, sem_ids_prefix
from tokenizer.train import load_tokenizer
from utils.errors import InputError
from utils.files import read_json, whole_characters, write_json


def assign(config: TokenizerConfig, file: Path) -> str:
    """Give semantic IDs of every kept tokenizer to new items, and add them to new_items.json.

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
    texts = read_json(file)
    if not isinstance(texts, dict) or not all(isinstance(text, str) and text.strip() for text in texts.values()):
        raise InputError(f"{file} is not a dictionary {{item: text}} with a text for every item")
    texts = {name: whole_characters(text) for name, text in texts.items()}
    interactions = load_interactions(dataset_folder(config.data_dir, config.dataset))
    old_names = interactions.item_names[1:]
    target = config.tokenizer_folder / NEW_ITEMS_FILE
    prefix = f"{config.ckpt_name}/{sem_ids_prefix(config)}"
    assigned = read_json(target) if target.exists() else {"prefix": prefix, "texts": {}}
    known = {*old_names, *assigned["texts"]}
    names = [name for name in texts if name not in known]
    if not names:
        return f"{file}: all {len(texts)} items have semantic IDs already"
    check_encoder(config)
    tokenizer = load_tokenizer(config, load_embeddings(config, interactions.num_items))
    inputs = tokenizer.prepare(encode_texts(config, [texts[name] for name in names]))
    sizes = level_sizes(config.n_codebooks, config.codebook_size)
    for epoch in [*range(config.first_kept_epoch, config.epochs + 1), None]:
        key = str(epoch or "best")
        present = assigned.setdefault("semantic_ids", {}).setdefault(key, {})
        old = load_token_table([Group(prefix, epoch, sem_ids_file(config, epoch))], old_names, Vocabulary(sizes, 1))
        assigned.setdefault("semantic_ids_sha256", {})[key] = old.sha256[0]
        taken = np.asarray([*old.codes(0), *present.values()])
        for name, codes in zip(names, next_semantic_ids(taken, tokenizer.codes(inputs, epoch)), strict=True):
            if codes[-1] >= sizes[-1]:
                raise InputError(
                    f"tokenizer of epoch {epoch or 'best'}: {codes[-1]} items would share the codes {codes[:-1]} of "
                    f"{name!r}, but the disambiguation level of {sizes[-1]} separates at most {sizes[-1] - 1}"
                )
            present[name] = codes
    assigned["texts"] |= {name: texts[name] for name in names}
    write_json(target, assigned)
    skipped = f"; {len(texts) - len(names)} had them already" if len(names) < len(texts) else ""
    return f"{target}: semantic IDs for {len(names)} new items{skipped}"


def next_semantic_ids(taken: np.ndarray, codes: np.ndarray) -> list[list[int]]:
    """Append to each new item's codes the first disambiguation code behind those that are taken.

    Args:
        taken: int [N, H + 1], the semantic IDs there are.
        codes: int [M, H], codes of the new items.

    Returns:
        M lists of H + 1 codes.
    """
    highest: dict[tuple[int, ...], int] = {}
    for *shared, extra in taken.tolist():
        highest[tuple(shared)] = max(extra, highest.get(tuple(shared), 0))
    found = []
    for shared in map(tuple, codes.tolist()):
        highest[shared] = highest.get(shared, 0) + 1
        found.append([*shared, highest[shared]])
    return found
