"""Embed the items' texts: <dataset>/<encoder>.sent_emb, raw float32, row i = item id i + 1.

python -m tokenizer.embed --dataset=Musical_Instruments
python -m tokenizer.embed --dataset=Sample --sent_emb_model=tfidf --sent_emb_dim=256 --sent_emb_pca=64
accelerate launch --multi_gpu --num_processes=4 -m tokenizer.embed --dataset=Musical_Instruments

Processes share the work and make the same file as one. Interrupted, it goes on from the last finished shard.
"""

import hashlib
import json
import os
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from data.interactions import dataset_folder, item_texts, load_interactions
from tokenizer import tfidf
from tokenizer.config import TokenizerConfig
from tokenizer.folder import announce_published
from utils.claims import claim
from utils.config import parse_config
from utils.errors import InputError
from utils.files import atomic_path, read_json, sha256_of, write_json
from utils.runtime import choose_device, join_processes, run_command, seed_everything
from utils.shards import Shards

if TYPE_CHECKING:
    from accelerate import Accelerator
    from sentence_transformers import SentenceTransformer

TEXTS_PER_SHARD = 4096

# What the side file says of the encoder itself; older ones do not, and not every encoder is at hand.
_ENCODER_FACTS = ("encoder_sha256", "commit", "default_prompt")

UNFINISHED = {"unfinished": True}  # the side file while embeddings are written

# How the networks call their table of learnt positions.
_POSITIONS = (".position_embeddings", ".embed_positions", ".wpe")


def embed(config: TokenizerConfig) -> Path:
    """Make the dataset's embedding file, or reuse the one that is there, and return it."""
    folder, file = dataset_folder(config.data_dir, config.dataset), config.embedding_file
    processes, device = join_processes(config.device)
    if announce_published(config):
        return file
    texts = item_texts(folder, load_interactions(folder).item_names)
    settings = embedding_settings(config, texts)
    if file.exists():
        before = _made_with(config) or settings  # published files have no settings beside them
        found = [f"{name} was {before.get(name)!r}, now {settings.get(name)!r}" for name in _changed(before, settings)]
        if before == UNFINISHED:
            found = ["an interrupted run left it there"]
        differences = "; ".join(filter(None, [_size_problem(config, len(texts)), *found]))
        refusal = f"does not fit: {differences}; --overwrite replaces it"
        decision = claim(file, "finished", differences, overwrite=config.overwrite, reuse=True, refusal=refusal)
        if decision == "reuse":
            processes.print(f"{file}: reused ({len(texts)} items, {config.sent_emb_dim} dimensions)")
            return file
        processes.print(f"{file}: made anew, since {differences}")
    processes.wait_for_everyone()  # nobody writes before everybody has looked
    if config.sent_emb_model != tfidf.NAME:
        _encode_shards(config, texts, settings, processes, device)
    elif processes.is_main_process:
        encoder = tfidf.fit_tfidf(texts, config.sent_emb_dim, config.rand_seed)
        _write(config, settings, encoder.encode(texts), encoder)
    processes.wait_for_everyone()
    return file


def _write(
    config: TokenizerConfig,
    settings: dict[str, object],
    embeddings: np.ndarray,
    encoder: tfidf.TfidfEncoder | None = None,
) -> None:
    """Write the embedding file, float32 [N, E], the built-in encoder if that made it, and the settings beside it."""
    _check_finite(embeddings, config.embedding_file)
    write_json(_side_file(config), UNFINISHED)  # an earlier embedding file is never taken for this, whenever this stops
    if encoder:
        encoder.save(config.folder)
    with atomic_path(config.embedding_file) as temporary:
        embeddings.astype("<f4").tofile(temporary)
    write_json(_side_file(config), settings)
    print(f"{config.embedding_file}: written ({len(embeddings)} items, {config.sent_emb_dim} dimensions)")


def embedding_settings(config: TokenizerConfig, texts: list[str]) -> dict[str, object]:
    """Return what determines the embeddings, as the side file <encoder>.sent_emb.json keeps it."""
    settings: dict[str, object] = {
        "model": config.sent_emb_model,
        "dim": config.sent_emb_dim,
        "items": len(texts),
        "texts_sha256": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
    }
    if config.sent_emb_model == tfidf.NAME:
        return settings | {"seed": config.rand_seed}
    names = ("dtype", "prompt", "max_length", "trust_remote_code")
    given, usual = {name: getattr(config, f"sent_emb_{name}") for name in names}, TokenizerConfig(config.dataset)
    facts = _encoder_facts(config)
    if config.sent_emb_prompt == "" and facts and "default_prompt" not in facts:
        del given["prompt"]  # there is nothing to switch off
    differing = {name: value for name, value in given.items() if value != getattr(usual, f"sent_emb_{name}")}
    return settings | facts | differing


def _encoder_facts(config: TokenizerConfig) -> dict[str, object]:
    """Return what is known of the encoder: its folder's hash or its commit, and its default prompt if it has one."""
    folder = Path(config.sent_emb_model)
    is_local = folder.is_dir()
    if not is_local:
        folder = _downloaded(config.sent_emb_model)
    if folder is None or not any((folder / name).is_file() for name in ("modules.json", "config.json")):
        return {}
    facts: dict[str, object] = {"encoder_sha256": _folder_sha256(folder)} if is_local else {"commit": folder.name}
    file = folder / "config_sentence_transformers.json"
    own = read_json(file) if file.is_file() else {}
    prompt = (own.get("prompts") or {}).get(own.get("default_prompt_name"))
    return facts | ({"default_prompt": prompt} if prompt else {})


def _downloaded(name: str) -> Path | None:
    """Return the folder of a hub's encoder in the cache, named by its commit; None where it was not downloaded."""
    from huggingface_hub import try_to_load_from_cache  # tfidf does without
    from huggingface_hub.errors import HFValidationError

    cache = os.getenv("SENTENCE_TRANSFORMERS_HOME")
    for repository in (name,) if "/" in name else (name, f"sentence-transformers/{name}"):
        for file in ("modules.json", "config.json"):
            with suppress(HFValidationError):  # a path to nowhere is no name
                found = try_to_load_from_cache(repository, file, cache_dir=cache)
                if isinstance(found, str):
                    return Path(found).parent
    return None


def _folder_sha256(folder: Path) -> str:
    """Hash the names and contents of an encoder's files, but for hidden ones and pages that describe it."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        hidden = any(part.startswith((".", "__pycache__")) for part in name.parts)
        if file.is_file() and file.suffix != ".md" and not hidden:
            digest.update(f"{name.as_posix()}\0{sha256_of(file)}\n".encode())
    return digest.hexdigest()


def _side_file(config: TokenizerConfig) -> Path:
    return config.embedding_file.with_name(config.embedding_file.name + ".json")


def _made_with(config: TokenizerConfig) -> dict[str, object]:
    return read_json(_side_file(config)) if _side_file(config).exists() else {}


def _changed(before: dict[str, object], now: dict[str, object]) -> list[str]:
    """Name the settings that differ; what only one of the two knows of the encoder is no difference."""
    either = before.keys() | now.keys()
    same = {name for name in _ENCODER_FACTS if name not in before or name not in now}
    if "encoder_sha256" not in same and before["encoder_sha256"] == now["encoder_sha256"]:
        same.add("model")  # wherever it lies
    if "default_prompt" not in either and not before.get("prompt") and not now.get("prompt"):
        same.add("prompt")  # switched off, or never there
    return [name for name in sorted(either - same) if before.get(name) != now.get(name)]


def check_encoder(config: TokenizerConfig) -> None:
    """Raise InputError where texts would be embedded otherwise than the dataset's were."""
    made_with, settings = _made_with(config), embedding_settings(config, [])
    for name in _changed(made_with, settings) if made_with else ():
        if name not in ("model", "items", "texts_sha256"):  # the tokenizer's settings name the model, wherever it lies
            raise InputError(
                f"{config.embedding_file} was made with {name}={made_with.get(name)!r}, new texts would be with "
                f"{settings.get(name)!r}; give the same (--config_file takes the tokenizer's config.yaml)"
            )


def encode_texts(config: TokenizerConfig, texts: list[str]) -> np.ndarray:
    """Embed the texts of new items as the dataset's were: float32 [texts, sent_emb_dim]."""
    if config.sent_emb_model == tfidf.NAME:
        return tfidf.load_tfidf(config.folder).encode(texts)
    model = _load_sentence_transformer(config, choose_device(config.device))
    found = model.encode(texts, batch_size=config.sent_emb_batch_size)
    return np.asarray(found, dtype=np.float32)


def load_embeddings(config: TokenizerConfig, num_items: int) -> np.ndarray:
    """Read the dataset's embedding file: float32 [N, E], row i = item id i + 1; InputError if it is of no use."""
    file = config.embedding_file
    if not file.is_file():
        raise InputError(f"{file} does not exist; make it with python -m tokenizer.embed, or set --sent_emb_model")
    problem = _size_problem(config, num_items)
    if _made_with(config) == UNFINISHED:
        problem = "an interrupted run left it there; make it anew with python -m tokenizer.embed --overwrite"
    if problem:
        raise InputError(f"{file}: {problem}")
    embeddings = np.fromfile(file, dtype="<f4").reshape(num_items, config.sent_emb_dim)
    _check_finite(embeddings, file)
    if (embeddings == embeddings[0]).all():
        raise InputError(f"{file}: all items have the same embedding; there is nothing to train on")
    return embeddings


def _size_problem(config: TokenizerConfig, num_items: int) -> str:
    size, row = config.embedding_file.stat().st_size, num_items * 4
    if size == row * config.sent_emb_dim:
        return ""
    hint = f"; it would fit --sent_emb_dim={size // row}" if size and size % row == 0 else ""
    return f"{size} bytes, expected {num_items} items x {config.sent_emb_dim} x 4 = {row * config.sent_emb_dim}{hint}"


def _check_finite(embeddings: np.ndarray, file: Path) -> None:
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1)) + 1
    if len(bad):
        raise InputError(f"{file}: {len(bad)} items have NaN or infinity in their embedding, first item id {bad[0]}")


def _encode_shards(
    config: TokenizerConfig,
    texts: list[str],
    settings: dict[str, object],
    processes: "Accelerator",
    device: torch.device,
) -> None:
    """Embed the shards that are missing, each process its share; a shard's batches are the same whoever makes it."""
    model = _load_sentence_transformer(config, device)
    if "encoder_sha256" not in settings:
        settings = embedding_settings(config, texts)  # a hub's encoder may have been downloaded only now
    dimensions = len(model.encode(texts[0], show_progress_bar=False))
    if dimensions != config.sent_emb_dim:
        raise InputError(f"{config.sent_emb_model} gives {dimensions} dimensions; pass --sent_emb_dim={dimensions}")
    # the longest first: the texts of a batch are equally long
    distinct = sorted(set(texts), key=lambda text: (-len(text), text))
    determined_by = settings | {"batch_size": config.sent_emb_batch_size}
    shards = Shards(config.embedding_file, determined_by, -(-len(distinct) // TEXTS_PER_SHARD))
    with shards.shared(processes) as (note, _, mine):
        processes.print(f"{len(distinct):,} different texts of {len(texts):,} items" + (f"; {note}" if note else ""))
        for index in tqdm(mine, desc="embeddings", unit="shard", disable=not processes.is_main_process):
            part = distinct[index * TEXTS_PER_SHARD : (index + 1) * TEXTS_PER_SHARD]
            found = model.encode(part, batch_size=config.sent_emb_batch_size, show_progress_bar=False)
            with atomic_path(shards.path(index)) as temporary:
                found.astype("<f4").tofile(temporary)
        processes.wait_for_everyone()
        if processes.is_main_process:
            rows = np.concatenate([np.fromfile(path, dtype="<f4") for path in shards.paths()])
            row_of = {text: row for row, text in enumerate(distinct)}
            _write(config, settings, rows.reshape(len(distinct), -1)[[row_of[text] for text in texts]])
            shards.remove()


def _load_sentence_transformer(config: TokenizerConfig, device: torch.device) -> "SentenceTransformer":
    """Load the encoder by name or folder, in the configured precision, with the configured limit and prompt."""
    from sentence_transformers import SentenceTransformer  # takes seconds to import, and tfidf does without

    name = config.sent_emb_model
    try:
        model = SentenceTransformer(name, device=str(device), trust_remote_code=config.sent_emb_trust_remote_code)
        model = model.to(getattr(torch, config.sent_emb_dtype))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "trust_remote_code" in str(error) and not config.sent_emb_trust_remote_code:
            raise InputError(
                f"the text encoder {name} needs code that comes with it; read that code, and if you trust it, "
                "let it run with --sent_emb_trust_remote_code"
            ) from error
        if Path(name).is_dir():
            raise InputError(f"the folder {name} is no sentence-transformers model: {reason}") from error
        raise InputError(
            f"the text encoder {name} could not be loaded or downloaded ({reason}); pass a local model folder with "
            f"--sent_emb_model=/path/to/{config.encoder_name}, or the built-in encoder with --sent_emb_model=tfidf"
        ) from error
    _limit_length(config, model)
    if config.sent_emb_prompt is not None:
        model.prompts["given"] = config.sent_emb_prompt
        model.default_prompt_name = "given" if config.sent_emb_prompt else None
    return model


def _limit_length(config: TokenizerConfig, model: "SentenceTransformer") -> None:
    """Set how many tokens of a text are read, never more than the encoder has positions for."""
    wanted, own, positions = config.sent_emb_max_length, model.max_seq_length, _positions(model)
    if wanted is not None:
        refused = f"--sent_emb_max_length={wanted}: the text encoder {config.sent_emb_model} reads"
        special = getattr(model.tokenizer, "num_special_tokens_to_add", lambda: 0)()
        if wanted <= special:
            raise InputError(f"{refused} {special} tokens of its own with each text; give {special + 1} or more")
        if wanted > positions:
            raise InputError(f"{refused} at most {positions} tokens of a text; give {positions} or less")
        if own == inf:
            raise InputError(f"{refused} texts to their end, whatever their length; leave the flag out")
        model.max_seq_length = wanted
    elif positions < inf and (own is None or own > positions):
        model.max_seq_length = int(positions)


def _positions(model: "SentenceTransformer") -> float:
    """Return how many tokens the encoder has learnt positions for; infinity where it has none that end."""
    found = [inf]
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding) and name.endswith(_POSITIONS):
            first = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa's, MPNet's
            found.append(module.num_embeddings - getattr(module, "offset", first))  # BART's, OPT's
    return min(found)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and embed."""
    config, _ = parse_config(TokenizerConfig, argv, "python -m tokenizer.embed", __doc__)
    seed_everything(config.rand_seed, config.reproducibility)
    embed(config)


if __name__ == "__main__":
    run_command(main)
