"""Tiny recommenders with weights large enough that every part of the network shows in the outputs."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.recommender import Architecture, Recommender, build_recommender


def make_recommender(level_sizes: tuple[int, ...] = (5, 4, 4), feed_forward_proj: str = "relu") -> Recommender:
    torch.manual_seed(0)
    architecture = Architecture(
        level_sizes=level_sizes,
        num_layers=2,
        num_decoder_layers=3,
        d_model=12,
        d_ff=20,
        num_heads=2,
        d_kv=7,
        dropout_rate=0.0,
        feed_forward_proj=feed_forward_proj,
    )
    recommender = build_recommender(architecture)
    with torch.no_grad():
        for parameter in recommender.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return recommender.eval()


def ragged_batch(recommender: Recommender, num_rows: int = 7, longest: int = 23) -> tuple[Tensor, Tensor, Tensor]:
    """Return random input_ids with padding, labels and lengths; mixed lengths, some of them equal."""
    generator = torch.Generator().manual_seed(1)
    architecture = recommender.architecture
    eos = architecture.eos_token
    lengths = torch.randint(2, longest + 1, (num_rows,), generator=generator)
    lengths[-1] = lengths[0]
    input_ids = torch.randint(1, eos, (num_rows, int(lengths.max())), generator=generator)
    columns = torch.arange(input_ids.shape[1])
    input_ids[columns == lengths.unsqueeze(1) - 1] = eos
    input_ids[columns >= lengths.unsqueeze(1)] = 0
    labels = torch.randint(1, eos, (num_rows, len(architecture.level_sizes) + 1), generator=generator)
    labels[:, -1] = eos
    return input_ids, labels, lengths


@pytest.fixture
def recommender() -> Recommender:
    return make_recommender()


@pytest.fixture
def batch(recommender: Recommender) -> tuple[Tensor, Tensor, Tensor]:
    return ragged_batch(recommender)


@pytest.fixture
def make() -> Callable[..., Recommender]:
    return make_recommender
