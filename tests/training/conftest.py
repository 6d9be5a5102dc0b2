"""A tiny dataset tokenized three ways, and a tiny recommender for it."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from data.batching import Tokenization
from data.interactions import load_interactions
from data.token_table import Vocabulary, load_token_table, resolve_groups
from model.recommender import Architecture, Recommender


@pytest.fixture
def tokenization(dataset: Path) -> Tokenization:
    interactions = load_interactions(dataset)
    table = load_token_table(resolve_groups(dataset), interactions.item_names[1:], Vocabulary((8,) * 4))
    return Tokenization(interactions, table, max_item_seq_len=5)


@pytest.fixture
def recommender() -> Recommender:
    torch.manual_seed(0)
    architecture = Architecture((8,) * 4, 1, 1, 1, d_model=8, d_ff=12, num_heads=2, d_kv=4, dropout_rate=0.3)
    return Recommender.from_architecture(architecture)


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)
