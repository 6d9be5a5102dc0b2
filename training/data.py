"""The data of a run: where they lie, found once, and as training, evaluation and influence read them."""

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
from utils.files import sha256_of


@dataclass(frozen=True)
class Dataset:
    """The dataset's folder and the tokenizers to train on; each is read when it is first asked for."""

    folder: Path
    groups: list[Group]
    vocabulary: Vocabulary
    pretrained: Path | None = None  # the file of the weights that training starts from

    @cached_property
    def interactions(self) -> Interactions:
        return load_interactions(self.folder)

    @cached_property
    def table(self) -> TokenTable:
        """The semantic IDs of all groups, on the CPU."""
        return load_token_table(self.groups, self.interactions.item_names[1:], self.vocabulary)

    @cached_property
    def sources(self) -> dict[str, str]:
        """Hashes of what training reads: {"interactions": ..., "semantic IDs of tokenizer <label>": ..., ...}."""
        table = zip(self.table.labels, self.table.sha256, strict=True)
        there = self.pretrained and self.pretrained.is_file()  # what is absent is named when it is read
        weights = {"pre-trained weights": sha256_of(self.pretrained)} if there else {}
        semantic_ids = {f"semantic IDs of tokenizer {label}": digest for label, digest in table}
        return {"interactions": self.interactions.sha256, **semantic_ids, **weights}


@dataclass
class Data:
    """A dataset ready for training, on the device."""

    tokenization: Tokenization  # makes batches of any examples
    order: TrainingOrder  # the training examples, and which of them each step sees
    valid: np.ndarray  # int, target positions of all validation examples (influence looks at these)
    valid_sample: np.ndarray  # those that evaluation looks at
    test: np.ndarray  # those of the test
    sources: dict[str, str]  # the dataset's

    @property
    def table(self) -> TokenTable:
        return self.tokenization.table


def load_data(config: TrainingConfig, dataset: Dataset, accelerator: Accelerator) -> Data:
    """Read the dataset and the chosen tokenizers onto the device, and cut the splits."""
    interactions, seed = dataset.interactions, config.rand_seed
    places = accelerator.num_processes, accelerator.process_index
    table = dataset.table.to(accelerator.device)
    train, valid, test = (split_positions(interactions.offsets, split) for split in ("train", "valid", "test"))
    if config.train_user_ratio < 1:
        trained_on = training_users(interactions.num_users, config.train_user_ratio, seed)
        train = train[trained_on[interactions.users_of(train)]]
        if config.val_users == "new":
            valid = valid[~trained_on[interactions.users_of(valid)]]
    empty = [name for name, split in (("train", train), ("valid", valid), ("test", test)) if len(split) == 0]
    if empty:
        raise InputError(f"{dataset.folder}: no user has enough items for {' and '.join(empty)} examples")
    return Data(
        Tokenization(interactions, table, config.max_item_seq_len),
        TrainingOrder(train, config.train_batch_size, *places, config.gradient_accumulation_steps, seed),
        valid,
        valid_sample=random_share(valid, config.val_ratio, random_stream(seed, Stream.VALIDATION_SAMPLE)),
        test=random_share(test, config.test_ratio, random_stream(seed, Stream.TEST_SAMPLE)),
        sources=dataset.sources,
    )
