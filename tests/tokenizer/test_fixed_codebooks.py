"""Residual k-means as a kind of tokenizer, alone and with related ones around it."""

import json
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from data.interactions import load_interactions, training_items
from tokenizer.config import TokenizerConfig
from tokenizer.embed import load_embeddings
from tokenizer.export import export
from tokenizer.fixed_codebooks import RQKMeans, nearest_residual_codes
from tokenizer.folder import load_tokenizer
from tokenizer.train import train
from utils.errors import InputError


def test_codes_are_those_of_scikit_learn_level_by_level(make_config: Callable[..., TokenizerConfig], dataset):
    config = make_config(kind="rqkmeans", ckpt_name="kmeans", sent_emb_pca=-1)
    train(config)
    items = training_items(load_interactions(dataset))
    embeddings = load_embeddings(config, 60)
    seen, everything, expected = embeddings[items - 1], embeddings, []
    for size in (8, 8, 8):
        kmeans = KMeans(size, n_init="auto", random_state=config.rand_seed).fit(seen)
        expected.append(kmeans.predict(everything))
        seen = seen - kmeans.cluster_centers_[kmeans.labels_]
        everything = everything - kmeans.cluster_centers_[expected[-1]]
    tokenizer = load_tokenizer(config)
    assert tokenizer.epochs == [None]
    np.testing.assert_array_equal(tokenizer.codes(tokenizer.prepare(embeddings), None), np.column_stack(expected))


def test_related_ones_lie_around_it(make_config: Callable[..., TokenizerConfig]):
    alone = make_config(kind="rqkmeans", ckpt_name="alone")
    related = make_config(kind="rqkmeans", ckpt_name="related", drift=0.3, num_tokenizers=5)
    for config in (alone, related):
        train(config)
    report = export(related)
    assert report["epochs"] == [1, 2, 3, 4, 5]
    assert report["drift"][4]["first"] == 0
    assert report["drift"][4]["any"] == pytest.approx(0.3, abs=0.05)
    embeddings = load_embeddings(alone, 60)
    middle, only = load_tokenizer(related), load_tokenizer(alone)
    codes = only.codes(only.prepare(embeddings), None)
    np.testing.assert_array_equal(middle.dataset_codes(middle.prepare(embeddings), 3), codes)
    np.testing.assert_array_equal(middle.codes(middle.prepare(embeddings[:7]), 1), codes[:7])  # as new items: nearest


def test_related_ones_stay_where_the_embeddings_are_rounded_otherwise(make_config: Callable[..., TokenizerConfig]):
    """As with another number of threads, or on another machine."""
    config = make_config(kind="rqkmeans", drift=0.3, num_tokenizers=5)
    train(config)
    tokenizer, embeddings = load_tokenizer(config), load_embeddings(config, 60)
    before = [tokenizer.dataset_codes(tokenizer.prepare(embeddings), epoch) for epoch in tokenizer.epochs]
    whiten = tokenizer.whiten
    tokenizer.whiten = lambda rows: whiten(rows) * np.float32(1 + 1e-6)
    after = [tokenizer.dataset_codes(tokenizer.prepare(embeddings), epoch) for epoch in tokenizer.epochs]
    np.testing.assert_array_equal(before, after)
    assert (before[0] != before[4]).any()


def test_what_kept_levels_forbid_is_said(make_config: Callable[..., TokenizerConfig]):
    with pytest.raises(InputError, match=r"--drift=0\.99 cannot be had: at most .*; lower it, or --kept_levels"):
        train(make_config(kind="rqkmeans", drift=0.99, kept_levels=2))


def test_a_codeword_without_items_is_never_near():
    codebook = torch.tensor([[0.0, 0.0], [torch.inf, torch.inf], [4.0, 0.0]])
    found = nearest_residual_codes(torch.tensor([[3.0, 0.0], [1.0, 0.0]]), [codebook, codebook])
    assert found.tolist() == [[2, 0], [0, 0]]


def test_what_an_rqvaes_training_has_decides_nothing(make_config: Callable[..., TokenizerConfig], capsys):
    train(make_config(kind="rqkmeans"))
    of_rqvae = {"lr": 0.5, "scheduler_type": "linear", "epochs": 77, "hidden_sizes": [9, 8], "vq_type": "vq"}
    train(make_config(kind="rqkmeans", **of_rqvae))
    assert "reused, a finished training with the same settings" in capsys.readouterr().out
    assert {*of_rqvae} < {*RQKMeans.unused} <= {field.name for field in fields(TokenizerConfig)}
    with pytest.raises(InputError, match="rand_seed was 2024, now 1"):
        train(make_config(kind="rqkmeans", rand_seed=1))


def test_another_kind_is_another_training(make_config: Callable[..., TokenizerConfig]):
    train(make_config(kind="rqkmeans"))
    with pytest.raises(InputError, match="kind was 'rqkmeans', now 'rqvae'"):
        train(make_config())
    record = json.loads((make_config().tokenizer_folder / "training.json").read_text())
    assert record["finished"]
