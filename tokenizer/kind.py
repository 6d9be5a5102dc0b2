"""What a kind of tokenizer is: the base class of all."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from tokenizer.config import TokenizerConfig
from tokenizer.epoch_writer import EpochWriter

BALANCE_FLAGS = ("balance", "sinkhorn_epsilon", "sinkhorn_iterations")


class Tokenizer(ABC):
    """A finished training at work: it turns embeddings into codes, as each of its epochs learnt to.

    A kind keeps what it learns in the tokenizer's folder, in *.safetensors files and in epochs/<1-based epoch>.*, which
    are removed before a training begins anew; with --drift, those of the epochs that are not chosen are removed when it
    has finished. All else there, the PCA too, is the commands'.

    Args:
        whiten: The training's PCA, float32 [N, sent_emb_dim] to [N, input_size]; without PCA it changes nothing.
    """

    title: str  # on the progress line
    flags: tuple[str, ...] = ()  # of those settings that not every kind has, the ones that this kind has
    unused: tuple[str, ...] = ()  # settings that decide nothing for this kind: a training is reused whatever they are
    fits = True  # whether codebooks are fitted to the training items, which must then be as many as codes
    epochs: list[int | None]  # the related tokenizers, in order: 1-based epochs, None for the best one; may be set

    def __init__(self, config: TokenizerConfig, whiten: Callable[[np.ndarray], np.ndarray]):
        self.config, self.whiten, self.epochs = config, whiten, [*config.kept_epochs]

    @classmethod
    def problems(cls, config: TokenizerConfig) -> list[str]:
        """Return one sentence for each setting that does not fit this kind."""
        return []

    @classmethod
    def sources(cls, config: TokenizerConfig) -> dict[str, str]:
        """Return the hash of what else a training learns from, by name; a training is reused where they are the same.

        Raises InputError where something is not there.
        """
        return {}

    @classmethod
    def check(cls, config: TokenizerConfig, inputs: np.ndarray, items: np.ndarray) -> None:
        """Raise InputError where `train` would at once; asked before an earlier training is removed."""
        return

    @classmethod
    @abstractmethod
    def train(
        cls, config: TokenizerConfig, inputs: np.ndarray, items: np.ndarray, writer: EpochWriter
    ) -> dict[str, object]:
        """Write what a tokenizer needs into its folder, and return what training.json says of the result.

        Where it returns "epochs", these are the tokenizers, not those that an instance has from the settings.

        Args:
            inputs: float32 [N, input_size], all items after PCA, row i = item id i + 1.
            items: int [training items], ids of the items to train on.
            writer: To be called after every epoch; its `snapshot` is what a resumed training goes on from.
        """

    def prepare(self, embeddings: np.ndarray) -> Any:
        """Return what `codes` takes, made once for all epochs: from float32 [N, sent_emb_dim]."""
        return self.whiten(embeddings)

    @abstractmethod
    def codes(self, inputs: Any, epoch: int | None) -> np.ndarray:
        """Return the codes of the tokenizer `epoch`: int64 [N, H], 0-based, without disambiguation."""

    def dataset_codes(self, inputs: Any, epoch: int | None) -> np.ndarray:
        """Return the codes of all of the dataset's items, where they are others than an item alone would get."""
        return self.codes(inputs, epoch)

    def order(self) -> np.ndarray | None:
        """Return the order in which items of the same codes are counted, a permutation int [N]; None: by item id."""
        return None
