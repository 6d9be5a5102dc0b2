"""The golden case as the project's own objects; every size is read from the case's files."""

import re
from dataclasses import dataclass

import pytest
import torch

from data.batching import Tokenization
from data.interactions import Interactions, load_interactions, split_positions
from data.token_table import TokenTable, Vocabulary, load_token_table, resolve_groups
from model.recommender import Architecture, Recommender, build_recommender
from model.reference_checkpoint import sizes_of_weights
from tests.conftest import GoldenCase


@dataclass
class GoldenWorld:
    """The golden dataset, tokenized by all of its tokenizers with the vocabulary of the golden recommender."""

    case: GoldenCase
    interactions: Interactions
    table: TokenTable
    tokenization: Tokenization

    @property
    def vocabulary(self) -> Vocabulary:
        return self.table.vocabulary

    @property
    def test_group(self) -> int:
        """The 0-based group of the test batch and of the beams."""
        return next(int(name.split("/")[2]) for name in self.case.recommender if name.startswith("batch/test/"))

    def positions(self, split: str):
        return split_positions(self.interactions.offsets, split)

    def with_user_tokens(self, n_user_tokens: int) -> Tokenization:
        vocabulary = Vocabulary(self.vocabulary.sizes, n_user_tokens)
        table = load_token_table(self.table.groups, self.interactions.item_names[1:], vocabulary)
        return Tokenization(self.interactions, table, self.tokenization.max_item_seq_len)

    def recommender(self, prefix: str = "weights/") -> Recommender:
        """Return the golden recommender without dropout, in eval mode."""
        weights = self.case.weights(prefix)
        sizes = sizes_of_weights(weights)
        assert sizes.pop("vocab_size") == self.vocabulary.size
        gated = any("wi_0" in name for name in weights)
        architecture = Architecture(
            level_sizes=self.vocabulary.sizes,
            n_user_tokens=self.vocabulary.n_user_tokens,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu" if gated else "relu",
            **sizes,
        )
        recommender = build_recommender(architecture)
        recommender.load_weights(weights, "the golden case")
        return recommender.eval()


@dataclass
class TrainSteps:
    """The settings of the golden training steps, read from the sentence that describes them."""

    steps: int
    lr: float
    weight_decay: float
    warmup: int
    total: int
    clip: float
    batch_size: int

    @classmethod
    def of(cls, sentence: str) -> "TrainSteps":
        def number(pattern: str) -> str:
            return re.search(pattern, sentence)[1]

        return cls(
            steps=int(number(r"(\d+) steps")),
            lr=float(number(r"lr ([\d.e-]+)")),
            weight_decay=float(number(r"weight decay ([\d.e-]+)")),
            warmup=int(number(r"warmup (\d+)")),
            total=int(number(r"total (\d+)")),
            clip=float(number(r"clip ([\d.e-]+)")),
            batch_size=int(number(r"examples (\d+)k\.\.")),
        )


@pytest.fixture(scope="session")
def world(golden: GoldenCase) -> GoldenWorld:
    interactions = load_interactions(golden.dataset)
    groups = resolve_groups(golden.dataset)
    sizes = tuple(map(int, groups[0].prefix.rsplit("_", 1)[1].split(",")))
    numbers = golden.recommender_json
    vocabulary = Vocabulary(sizes, numbers["vocab_size"] - sum(sizes) - 2)
    table = load_token_table(groups, interactions.item_names[1:], vocabulary)
    max_items = (numbers["max_token_seq_len"] - 2) // len(sizes)
    return GoldenWorld(golden, interactions, table, Tokenization(interactions, table, max_items))


@pytest.fixture
def recommender(world: GoldenWorld) -> Recommender:
    torch.manual_seed(0)
    return world.recommender()


@pytest.fixture
def train_steps(golden: GoldenCase) -> TrainSteps:
    return TrainSteps.of(golden.recommender_json["train_steps"]["what"])
