"""Dropout with cheap masks: share of zeros, scaling, independence, gradients, and its place in the recommender."""

import pytest
import torch
from torch import nn

from model.dropout import Dropout, dropout
from model.recommender import Architecture, build_recommender


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_share_of_zeros_and_scaling(p):
    torch.manual_seed(0)
    dropped = dropout(torch.ones(1003, 1001), p)
    zeros = dropped == 0
    # a million draws: the standard deviation of the share is below 0.0005
    assert zeros.float().mean().item() == pytest.approx(p, abs=0.0025)
    assert torch.equal(dropped[~zeros], torch.full_like(dropped[~zeros], 1 / (1 - p)))
    # elements that share a 64-bit draw are independent too
    for shift in (1, 2, 3, 4):
        both = (zeros.flatten()[shift:] & zeros.flatten()[:-shift]).float().mean().item()
        assert both == pytest.approx(p * p, abs=0.0025)


def test_same_seed_same_mask_and_gradient_is_the_mask():
    x = torch.ones(7, 5, requires_grad=True)
    torch.manual_seed(3)
    first = dropout(x, 0.3)
    torch.manual_seed(3)
    assert torch.equal(first, dropout(x, 0.3))
    first.sum().backward()
    assert torch.equal(x.grad, first.detach())


def test_recommender_uses_it_everywhere_and_only_in_training():
    recommender = build_recommender(Architecture((4, 4), d_model=8, d_ff=8, num_heads=2, d_kv=4))
    kinds = {type(module) for module in recommender.modules() if isinstance(module, nn.Dropout)}
    assert kinds == {Dropout}
    module = Dropout(0.5).eval()
    assert torch.equal(module(torch.ones(10)), torch.ones(10))


def test_bf16_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.rand(2**20).bfloat16() + 1
    kept = dropout(x, 0.1)
    kept, x = kept[kept > 0].float(), x.float()
    assert kept.mean() == pytest.approx(float(x.mean()) / 0.9, rel=3e-4)
