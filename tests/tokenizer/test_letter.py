"""LETTER's two losses against their formulas, its collaborative embeddings, and a training."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from data.interactions import load_interactions, training_items
from tokenizer.config import TokenizerConfig
from tokenizer.folder import read_training
from tokenizer.letter import (
    Letter,
    alignment_loss,
    balanced_groups,
    collaborative_embeddings,
    diversity_loss,
    draw_positives,
    svd_embeddings,
)
from tokenizer.rqvae_training import build_model
from tokenizer.train import train
from utils.errors import InputError

MakeConfig = Callable[..., TokenizerConfig]


def test_alignment_equals_its_formula():
    """Minus the mean over i of log(exp<q_i, e_i> / sum over j of exp<q_i, e_j>)."""
    rng = np.random.default_rng(0)
    quantized, embeddings = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    expected = 0.0
    for i in range(5):
        scores = [np.exp(quantized[i] @ embeddings[j]) for j in range(5)]
        expected -= np.log(scores[i] / sum(scores)) / 5
    found = alignment_loss(torch.from_numpy(quantized), torch.from_numpy(embeddings))
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_diversity_equals_its_formula():
    """Minus the mean over items of log(exp<e_c, e_p> / sum over all codes k but c of exp<e_c, e_k>)."""
    codebook = np.random.default_rng(0).normal(size=(6, 3))
    codes, positives, expected = [0, 2, 2, 5], [1, 3, 4, 1], 0.0
    for own, positive in zip(codes, positives, strict=True):
        scores = {k: np.exp(codebook[own] @ codebook[k]) for k in range(6) if k != own}
        expected -= np.log(scores[positive] / sum(scores.values())) / 4
    book = torch.from_numpy(codebook).requires_grad_()
    found = diversity_loss(book, torch.tensor(codes), torch.tensor(positives))
    assert found.item() == pytest.approx(expected, rel=1e-12)
    found.backward()
    assert book.grad.isfinite().all()


def test_positives_are_the_other_codes_of_the_group():
    groups = torch.tensor([0, 1, 0, 1, 0, 1, 1])
    codes = torch.tensor([4]).repeat(4000)
    torch.manual_seed(0)
    found = draw_positives(codes, groups)
    torch.manual_seed(0)
    assert torch.equal(found, (groups == groups.unsqueeze(1)).float().fill_diagonal_(0)[codes].multinomial(1)[:, 0])
    drawn = found.bincount(minlength=7)
    assert drawn[[1, 3, 4, 5, 6]].sum() == 0
    assert drawn[0].item() == pytest.approx(2000, abs=150)
    assert drawn[2].item() == pytest.approx(2000, abs=150)


def test_groups_are_of_equal_size_and_near_each_other():
    """Ten clear clusters of ten points are found; of three points less, sizes differ by one; few points, few groups."""
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(10), 10)
    points = 100 * np.eye(10)[cluster] + rng.normal(size=(100, 10))
    groups = balanced_groups(points, seed=0)
    assert np.bincount(groups).tolist() == [10] * 10
    assert len({(a, b) for a, b in zip(cluster, groups, strict=True)}) == 10
    assert sorted(np.bincount(balanced_groups(points[3:], seed=0))) == [9, 9, 9, *[10] * 7]
    assert np.bincount(balanced_groups(points[:5], seed=0)).tolist() == [3, 2]
    assert balanced_groups(points[:2], seed=0).tolist() == [0, 0]


def with_sequences(folder: Path, change: Callable[[list[str]], list[str]]) -> np.ndarray:
    """Change every user's sequence and return the embeddings."""
    file = folder / "all_item_seqs.json"
    before = file.read_text()
    file.write_text(json.dumps({user: change(items) for user, items in json.loads(before).items()}))
    found = svd_embeddings(load_interactions(folder), 4, seed=1)
    file.write_text(before)
    return found


def test_svd_does_not_see_validation_and_test(dataset: Path):
    """Other last and last but one items, of every user, leave every byte; another item before them does not."""
    found = with_sequences(dataset, list)
    for last in ("item3", "item59"):
        for validation in ("item3", "item58"):
            other = with_sequences(dataset, lambda items, pair=(validation, last): [*items[:-2], *pair])
            assert other.tobytes() == found.tobytes()
    assert with_sequences(dataset, lambda items: [*items[:-3], "item3", *items[-2:]]).tobytes() != found.tobytes()
    unseen = np.setdiff1d(np.arange(60), training_items(load_interactions(dataset)) - 1)
    assert len(unseen) > 0
    assert np.abs(found[unseen]).max() < 1e-6


def test_svd_equals_numpys(dataset: Path):
    """Its inner products are those of the best approximation of the user-item matrix, scaled."""
    interactions = load_interactions(dataset)
    matrix = np.zeros((30, 60))
    for user in range(30):
        start, end = interactions.offsets[user : user + 2]
        matrix[user, interactions.items[start : end - 2] - 1] = 1
    _, values, directions = np.linalg.svd(matrix, full_matrices=False)
    expected = directions[:4].T @ np.diag(values[:4]) @ directions[:4]
    expected *= 60 / np.trace(expected)  # the mean squared norm is 1
    found = svd_embeddings(interactions, 4, seed=1)
    np.testing.assert_allclose(found @ found.T, expected, atol=1e-5)


def test_embeddings_come_from_a_file(make_config: MakeConfig, tmp_path: Path):
    given = np.random.default_rng(0).normal(size=(60, 4)).astype("<f4")
    np.save(tmp_path / "cf.npy", given.astype(np.float64))
    given.tofile(tmp_path / "cf.emb")
    for name in ("cf.npy", "cf.emb"):
        config = make_config(kind="letter", vq_type="vq", cf_emb=str(tmp_path / name))
        np.testing.assert_array_equal(collaborative_embeddings(config), given)
    with pytest.raises(InputError, match=r"cf.npy has 60 x 4 numbers, not 60 items x 5 dimensions; .*--hidden_sizes"):
        collaborative_embeddings(replace(config, cf_emb=str(tmp_path / "cf.npy"), hidden_sizes=[8, 5]))
    with pytest.raises(InputError, match=r"--cf_emb=absent.npy cannot be read: "):
        collaborative_embeddings(replace(config, cf_emb="absent.npy"))
    given[7, 2] = np.nan
    given.tofile(tmp_path / "cf.emb")
    with pytest.raises(InputError, match="not finite"):
        collaborative_embeddings(config)
    with pytest.raises(InputError, match="30 users and 60 items have no 30 directions"):
        collaborative_embeddings(replace(config, cf_emb="svd", hidden_sizes=[30]))


def test_terms_are_weighted_and_reach_encoder_and_codebooks(make_config: MakeConfig):
    config = make_config(kind="letter", vq_type="vq", cf_weight=0.5, diversity_weight=0.1)
    torch.manual_seed(0)
    model, items, rows = build_model(config), np.array([3, 9, 11, 20, 41, 55]), torch.tensor([5, 0, 2])
    output = model(torch.randn(3, config.input_size))
    terms_of = Letter.extra_loss(config, items)(model)
    torch.manual_seed(1)
    terms = terms_of(output, rows)
    targets = torch.from_numpy(collaborative_embeddings(config)[items[rows] - 1])
    assert_close(terms["alignment"], 0.5 * alignment_loss(output.quantized, targets))
    torch.manual_seed(1)
    levels = []
    for book, codes in zip(model.quantization_layer.codebooks, output.codes.T, strict=True):
        groups = torch.from_numpy(balanced_groups(book.detach().numpy(), config.rand_seed))
        levels.append(diversity_loss(book, codes, draw_positives(codes, groups)))
    assert_close(terms["diversity"], 0.1 * sum(levels) / 3)
    terms["alignment"].backward(retain_graph=True)
    assert model.encoder.mlp[1].weight.grad.abs().sum() > 0
    assert model.quantization_layer.codebooks[0].grad is None
    terms["diversity"].backward()
    assert all(book.grad.abs().sum() > 0 for book in model.quantization_layer.codebooks)


def test_latents_learn_what_the_embeddings_know(make_config: MakeConfig, tmp_path: Path):
    """Two kinds of items, of which the texts know nothing: only an alignment of some weight gets below guessing."""
    np.save(tmp_path / "cf.npy", 3 * np.eye(4)[np.random.default_rng(1).integers(0, 2, size=60)])
    found = {}
    for weight in (0.001, 1.0):
        name, file = f"weight{weight}", str(tmp_path / "cf.npy")
        train(
            make_config(kind="letter", vq_type="vq", ckpt_name=name, cf_emb=file, cf_weight=weight, epochs=15, lr=0.03)
        )
        line = json.loads((tmp_path / "Tiny" / name / "metrics.jsonl").read_text().splitlines()[-1])
        terms = [line[term] for term in ("reconstruction", "quantization", "alignment", "diversity")]
        assert line["loss"] == pytest.approx(sum(terms), rel=1e-5)
        assert line["diversity"] == pytest.approx(1e-4 * np.log(7), rel=0.3)
        found[weight] = line["alignment"] / weight
    assert found[1.0] < 2.6 < found[0.001]  # guessing among 16, and 9 in the last batch: 2.68


def test_other_interactions_and_weights_are_another_training(make_config: MakeConfig):
    config = make_config(kind="letter", vq_type="vq", epochs=1)
    train(config)
    assert read_training(config)["settings"]["cf_emb_sha256"]
    file = config.folder / "all_item_seqs.json"
    sequences = json.loads(file.read_text())
    sequences["user1"][0] = sequences["user1"][1]
    file.write_text(json.dumps(sequences))
    with pytest.raises(InputError, match="cf_emb_sha256 was"):
        train(config)
    with pytest.raises(InputError, match=r"cf_weight was 0\.02, now 0\.3"):
        train(replace(config, cf_weight=0.3))


def test_moving_averages_are_refused(make_config: MakeConfig):
    assert replace(make_config(), kind="letter").problems() == [
        "--kind=letter has codebooks that follow a gradient; give --vq_type=vq"
    ]
