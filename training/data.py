"""The data of a run: where it lies, found once, and as training, evaluation and influence read it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from data.batching import Stream, Tokenization, TrainingOrder, random_share, random_stream, training_users
from data.interactions import Interactions, load_interactions, split_positions
from data.token_table import Group, TokenTable, Vocabulary, load_token_table
from training.config import TrainingConfig
from utils.errors import InputError


@dataclass(frozen=True)
class Source:
    """The dataset and the tokenizers that a run was told to train on; each is read when it is first asked for.

    Attributes:
        folder: The dataset's.
        groups: The tokenizer groups.
        vocabulary: Layout of the tokens.
    """

    folder: Path
    groups: list[Group]
    vocabulary: Vocabulary

    @cached_property
    def interactions(self) -> Interactions:
        return load_interactions(self.folder)

    @cached_property
    def table(self) -> TokenTable:
        """The semantic IDs of all groups, on the CPU."""
        return load_token_table(self.groups, self.interactions.item_names[1:], self.vocabulary)


@dataclass
class Data:
    """A dataset ready for training.

    Attributes:
        tokenization: Makes batches of any examples.
        order: The training examples, and which of them each step sees.
        valid: int, target positions of all validation examples (influence looks at these).
        valid_sample: Those that evaluation looks at.
        test: Those of the test.
    """

    tokenization: Tokenization
    order: TrainingOrder
    valid: np.ndarray
    valid_sample: np.ndarray
    test: np.ndarray

    @property
    def table(self) -> TokenTable:
        return self.tokenization.table

    @property
    def sizes(self) -> dict[str, int]:
        """How many examples there are of train, valid, valid_sample and test."""
        evaluated = {"valid": self.valid, "valid_sample": self.valid_sample, "test": self.test}
        return {split: len(positions) for split, positions in ({"train": self.order.positions} | evaluated).items()}

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """Hashes of what training reads: {"interactions": ..., "semantic IDs of tokenizer <label>": ...}."""
        return {"interactions": self.tokenization.interactions.sha256} | {
            f"semantic IDs of tokenizer {label}": digest
            for label, digest in zip(self.table.labels, self.table.sha256, strict=True)
        }


def load_data(config: TrainingConfig, source: Source, accelerator: Accelerator) -> Data:
    """Read the dataset and the chosen tokenizers onto the device, and cut the splits."""
    interactions = source.interactions
    table = source.table.to(accelerator.device)
    positions = {split: split_positions(interactions.offsets, split) for split in ("train", "valid", "test")}
    if config.train_user_ratio < 1:
        trained_on = training_users(interactions.num_users, config.train_user_ratio, config.rand_seed)
        positions["train"] = positions["train"][trained_on[interactions.users_of(positions["train"])]]
        if config.val_users == "new":
            positions["valid"] = positions["valid"][~trained_on[interactions.users_of(positions["valid"])]]
    empty = [split for split, targets in positions.items() if len(targets) == 0]
    if empty:
        raise InputError(f"{source.folder}: no user has enough items for {' and '.join(empty)} examples")
    order = TrainingOrder(
        positions["train"],
        config.train_batch_size,
        accelerator.num_processes,
        accelerator.process_index,
        config.gradient_accumulation_steps,
        config.rand_seed,
    )
    sampled = random_share(
        positions["valid"], config.val_ratio, random_stream(config.rand_seed, Stream.VALIDATION_SAMPLE)
    )
    tested = random_share(positions["test"], config.test_ratio, random_stream(config.rand_seed, Stream.TEST_SAMPLE))
    tokenization = Tokenization(interactions, table, config.max_item_seq_len)
    return Data(tokenization, order, positions["valid"], sampled, tested)
