"""Entropic assignment against plain loops, and what it does to items that collide."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from data.interactions import load_interactions, training_items
from tokenizer.config import TokenizerConfig
from tokenizer.embed import load_embeddings
from tokenizer.export import export
from tokenizer.fixed_codebooks import nearest_residual_codes
from tokenizer.folder import load_tokenizer
from tokenizer.quantizer import ResidualQuantizer, nearest_codes
from tokenizer.sinkhorn import Sinkhorn, separate, sinkhorn_plan
from tokenizer.train import train

MakeConfig = Callable[..., TokenizerConfig]


def scaled_kernel(distances: np.ndarray, epsilon: float) -> np.ndarray:
    """Return exp(-d / epsilon) of distances scaled to [-1, 1]."""
    middle, half = (distances.max() + distances.min()) / 2, (distances.max() - distances.min()) / 2
    return np.exp(-(distances - middle) / half / epsilon)


def test_plan_equals_a_plain_loop_to_convergence():
    distances = np.random.default_rng(0).uniform(size=(6, 4))
    kernel, rows, columns = scaled_kernel(distances, 0.1), np.ones(6), np.ones(4)
    for _ in range(3000):
        for i in range(6):
            rows[i] = 1 / 6 / sum(kernel[i, k] * columns[k] for k in range(4))
        for k in range(4):
            columns[k] = 1 / 4 / sum(kernel[i, k] * rows[i] for i in range(6))
    expected = rows[:, None] * kernel * columns
    np.testing.assert_allclose(expected.sum(axis=1), 1 / 6, rtol=1e-12)  # it has converged
    found = sinkhorn_plan(torch.from_numpy(distances), 0.1, 3000).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_plan_equals_the_published_steps():
    """As LC-Rec's code goes on: all rows, then all columns, 50 times."""
    distances = np.random.default_rng(1).uniform(1, 9, size=(20, 8))
    plan = scaled_kernel(distances, 0.003)
    for _ in range(50):
        plan /= plan.sum(axis=1, keepdims=True) * 20
        plan /= plan.sum(axis=0, keepdims=True) * 8
    found = sinkhorn_plan(torch.from_numpy(distances), 0.003, 50).numpy()
    np.testing.assert_allclose(found, plan, rtol=1e-8, atol=1e-300)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_plan_is_finite_at_any_scale(scale: float):
    distances = scale * torch.rand(2, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plan = sinkhorn_plan(distances, 0.003, 200)
    assert plan.isfinite().all()
    assert_close(plan.sum(-2), torch.full((2, 5), 1 / 5, dtype=torch.float64))
    assert_close(plan[1], sinkhorn_plan(distances[1], 0.003, 200))


def test_items_on_one_spot_share_out_the_codes():
    generator = torch.Generator().manual_seed(0)
    residual, codebook = 0.1 * torch.randn(32, 3, generator=generator), torch.randn(8, 3, generator=generator)
    codebook[0] = 0  # in their midst
    assert (nearest_codes(residual, codebook) == 0).float().mean() > 0.9
    counts = Sinkhorn(0.003, 2000).codes(residual, codebook).bincount(minlength=8)
    assert (counts - 4).abs().max() <= 1


def test_only_the_last_level_shares_out_and_only_in_training():
    torch.manual_seed(0)
    sinkhorn, latent = Sinkhorn(0.003, 50), torch.randn(40, 4)
    quantizer = ResidualQuantizer([8, 6], 4, vq_type="vq", sinkhorn=sinkhorn)
    first, last = quantizer.codebooks
    _, codes, _ = quantizer.train()(latent)
    assert torch.equal(codes[:, 0], nearest_codes(latent, first))
    residual = latent - first[codes[:, 0]]
    assert torch.equal(codes[:, 1], sinkhorn.codes(residual, last))
    assert not torch.equal(codes, quantizer.encode(latent))
    assert torch.equal(quantizer.eval()(latent)[1], quantizer.encode(latent))


def test_separated_items_differ_and_all_others_stay():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(60, 3, generator=generator)
    codebooks = [torch.randn(size, 3, generator=generator) for size in (3, 200)]
    latents[:2] = codebooks[0][0] = torch.full((3,), 99.0)  # nothing tells these two items apart
    codes = nearest_residual_codes(latents, codebooks)
    found = separate(latents, codebooks, codes, Sinkhorn(0.003, 50))
    np.testing.assert_array_equal(found[:, 0], codes[:, 0])

    def colliding(codes: np.ndarray) -> np.ndarray:
        _, group, sizes = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
        return sizes[group] > 1

    before, after = colliding(codes), colliding(found)
    assert before.sum() >= 20
    assert np.flatnonzero(after).tolist() == [0, 1]
    np.testing.assert_array_equal(found[~before], codes[~before])


def test_one_level_is_separated():
    latents, codebook = torch.tensor([[0.0], [0.1], [5.0]]), torch.tensor([[0.0], [1.0], [5.0], [9.0]])
    codes = nearest_residual_codes(latents, [codebook])
    assert codes.tolist() == [[0], [0], [2]]
    found = separate(latents, [codebook], codes, Sinkhorn(0.003, 50))
    assert len(set(found[:, 0].tolist())) == 3
    assert found[2] == 2


@pytest.mark.parametrize("kind", ["rqvae", "rqkmeans"])
def test_export_separates_and_new_items_get_the_nearest_code(make_config: MakeConfig, dataset, kind: str):
    changes = {"kind": kind, "codebook_size": [4, 2, 32], "sent_emb_pca": -1}
    plain, balanced = (make_config(ckpt_name=name, balance=name, **changes) for name in ("none", "sinkhorn"))
    rates = []
    for config in (plain, balanced):
        train(config)
        *_, quality = export(config)["tokenizers"].values()
        rates.append(quality["collision_rate"])
    assert rates[0] > 1.5 * rates[1]
    assert rates[1] >= 4 / 60  # the items with the same embedding
    tokenizer, embeddings = load_tokenizer(balanced), load_embeddings(balanced, 60)
    nearest = tokenizer.codes(tokenizer.prepare(embeddings[:59]), None)  # as new items
    separated = tokenizer.dataset_codes(tokenizer.prepare(embeddings), None)[:59]
    np.testing.assert_array_equal(nearest[:, :2], separated[:, :2])
    assert 0.1 < (nearest[:, 2] != separated[:, 2]).mean() < 0.5
    if kind == "rqkmeans":  # the codebooks are those without balance
        other = load_tokenizer(plain)
        np.testing.assert_array_equal(nearest, other.codes(other.prepare(embeddings), None)[:59])
    assert len(training_items(load_interactions(dataset))) < 60
