"""Kinds of tokenizers that are one set of codebooks, fitted or given, and with --drift related ones around it."""

from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from data.interactions import load_interactions
from data.token_table import read_sem_ids
from tokenizer.config import TokenizerConfig
from tokenizer.epoch_writer import EpochWriter
from tokenizer.kind import BALANCE_FLAGS, Tokenizer
from tokenizer.kmeans import fit_kmeans
from tokenizer.neighbours import estimated_codebooks, neighbour_codes
from tokenizer.quality import disambiguation_codes
from tokenizer.quantizer import nearest_codes
from tokenizer.rqvae import save_weights
from tokenizer.sinkhorn import separate
from utils.errors import InputError
from utils.files import sha256_of

_FILE = "codebooks.safetensors"

# Codebooks, H of float32 [K, D]; all items' codes, int64 [N, H]; the order in which items of the same codes count.
Start = tuple[list[Tensor], np.ndarray, np.ndarray]


class FixedCodebooks(Tokenizer):
    """One tokenizer, or with --drift num_tokenizers around it, numbered from 1.

    The dataset's items have the codes that were drawn for them. New items have the nearest codes, by all tokenizers.
    """

    unused = (
        *("hidden_sizes", "dropout", "beta", "vq_type", "mixed_precision", "batch_size", "steps_per_epoch", "epochs"),
        *("save_last", "lr", "learner", "scheduler_type", "weight_decay", "warmup_steps"),
    )

    def __init__(self, config: TokenizerConfig, whiten: Callable[[np.ndarray], np.ndarray]):
        super().__init__(config, whiten)
        self.epochs = [None] if config.drift is None else list(range(1, config.num_tokenizers + 1))

    @classmethod
    def problems(cls, config: TokenizerConfig) -> list[str]:
        """Name levels to keep that are too many."""
        highest = config.n_codebooks - 1
        wrong = not 0 <= config.kept_levels <= highest
        return [f"--kept_levels={config.kept_levels} must be in 0..{highest}"] if wrong else []

    @classmethod
    @abstractmethod
    def start(cls, config: TokenizerConfig, inputs: np.ndarray, items: np.ndarray) -> Start:
        """Return the codebooks, all items' codes, and the order of counting; arguments as `train` has."""

    @classmethod
    def check(cls, config: TokenizerConfig, inputs: np.ndarray, items: np.ndarray) -> None:
        """Draw the tokenizers in vain."""
        cls._draw(config, inputs, items)

    @classmethod
    def train(
        cls, config: TokenizerConfig, inputs: np.ndarray, items: np.ndarray, writer: EpochWriter
    ) -> dict[str, object]:
        """Write codebooks.safetensors: the codebooks, the codes of all items, int32 [tokenizers, N, H], and `order`."""
        codebooks, codes, order = cls._draw(config, inputs, items)
        state = {f"codebook_{level}": codebook for level, codebook in enumerate(codebooks)}
        state |= {"codes": torch.from_numpy(codes).int(), "order": torch.from_numpy(order).int()}
        save_weights(config.tokenizer_folder / _FILE, state)
        return {}

    @classmethod
    def _draw(cls, config: TokenizerConfig, inputs: np.ndarray, items: np.ndarray) -> Start:
        """Return what `start` does, but with the codes of each tokenizer, int64 [tokenizers, N, H]."""
        codebooks, codes, order = cls.start(config, inputs, items)
        if config.drift is None:
            return codebooks, codes[None], order
        settings = (config.num_tokenizers, config.drift, config.rand_seed, config.kept_levels)
        try:
            return codebooks, neighbour_codes(torch.from_numpy(inputs), codebooks, codes, *settings), order
        except ValueError as error:
            complaint = f"--drift={config.drift} cannot be had: {error}"
            raise InputError(f"{complaint}; lower it, or --kept_levels") from None

    def prepare(self, embeddings: np.ndarray) -> np.ndarray:
        """Return the nearest codes: int64 [N, H]."""
        codebooks = [self._stored[f"codebook_{level}"] for level in range(len(self.config.codebook_sizes))]
        return nearest_residual_codes(torch.from_numpy(self.whiten(embeddings)), codebooks)

    def codes(self, inputs: np.ndarray, epoch: int | None) -> np.ndarray:
        """Return the nearest codes, which new items have by all tokenizers."""
        return inputs

    def dataset_codes(self, inputs: np.ndarray, epoch: int | None) -> np.ndarray:
        """Return those that were drawn for the tokenizer `epoch`."""
        return self._stored["codes"][self.epochs.index(epoch)].long().numpy()

    def order(self) -> np.ndarray | None:
        """Return that of the file that the tokenizers were made of; by item id where there was none."""
        return self._stored["order"].numpy() if "order" in self._stored else None

    @cached_property
    def _stored(self) -> dict[str, Tensor]:
        file = self.config.tokenizer_folder / _FILE
        if not file.is_file():
            raise InputError(f"{file} does not exist; make it with python -m tokenizer.train")
        return load_file(file)


class RQKMeans(FixedCodebooks):
    """Residual k-means: level by level, k-means on what the levels before leave of the training items' embeddings."""

    title, flags = "k-means", ("kept_levels", *BALANCE_FLAGS)

    @classmethod
    def start(cls, config: TokenizerConfig, inputs: np.ndarray, items: np.ndarray) -> Start:
        """Fit the codebooks to the training items, then let --balance separate items that collide."""
        residual, codebooks = inputs[items - 1], []
        for size in config.codebook_sizes:
            centers, labels = fit_kmeans(residual, size, config.rand_seed)
            codebooks.append(torch.from_numpy(centers))
            residual = residual - centers[labels]
        latents = torch.from_numpy(inputs)
        codes = nearest_residual_codes(latents, codebooks)
        if config.sinkhorn:
            codes = separate(latents, codebooks, codes, config.sinkhorn)
        return codebooks, codes, np.arange(len(codes))


class Neighbours(FixedCodebooks):
    """Semantic IDs from a file, of any origin; a codeword is the mean of what its items leave."""

    title, flags, fits = "neighbours", ("kept_levels", "sem_ids"), False

    @classmethod
    def problems(cls, config: TokenizerConfig) -> list[str]:
        """Name what is wrong with the levels to keep, and a file that was not given or would be replaced."""
        found = super().problems(config)
        if not config.sem_ids:
            found.append("--sem_ids is needed")
        elif Path(config.sem_ids).resolve().parent == config.tokenizer_folder.resolve():
            found.append(f"--sem_ids lies in {config.tokenizer_folder}, where new ones go; give another --ckpt_name")
        return found

    @classmethod
    def sources(cls, config: TokenizerConfig) -> dict[str, str]:
        """Return the file's hash."""
        if not Path(config.sem_ids).is_file():
            raise InputError(f"--sem_ids={config.sem_ids}: there is no such file")
        return {"sem_ids_sha256": sha256_of(Path(config.sem_ids))}

    @classmethod
    def start(cls, config: TokenizerConfig, inputs: np.ndarray, items: np.ndarray) -> Start:
        """Read the file."""
        names = load_interactions(config.folder).item_names[1:]
        ids = read_sem_ids(Path(config.sem_ids), names, config.level_sizes).astype(np.int64)
        codes, counts, order = ids[:, :-1], ids[:, -1], np.arange(len(ids))
        if not np.array_equal(disambiguation_codes(codes), counts):  # another program's, in another order
            order = np.argsort(counts, kind="stable")
        return estimated_codebooks(inputs, codes, config.codebook_sizes), codes, order


def nearest_residual_codes(inputs: Tensor, codebooks: list[Tensor]) -> np.ndarray:
    """Quantise float [N, D] level by level with the nearest codewords: int64 [N, H], 0-based."""
    residual, codes = inputs, []
    for codebook in codebooks:
        used = codebook.isfinite().all(dim=1).nonzero()[:, 0]  # an estimated codeword without items is nowhere
        codes.append(used[nearest_codes(residual, codebook[used])])
        residual = residual - codebook[codes[-1]]
    return torch.stack(codes, 1).numpy()
