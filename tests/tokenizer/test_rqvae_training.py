from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch.testing import assert_close

from tokenizer.config import TokenizerConfig
from tokenizer.rqvae_training import (
    TrainingState,
    build_model,
    build_optimizer,
    initialize_codebooks_,
    learning_rate,
    train_epoch,
    train_rqvae,
)
from utils.snapshots import Snapshot

MakeConfig = Callable[..., TokenizerConfig]


def inputs_of(config: TokenizerConfig, rows: int = 50) -> torch.Tensor:
    return torch.randn(rows, config.input_size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("vq_type", ["ema", "vq"])
def test_codebooks_start_at_the_centres_of_the_residuals(make_config: MakeConfig, vq_type: str):
    config = make_config(vq_type=vq_type, codebook_size=[8, 4, 2])
    torch.manual_seed(0)
    model, inputs = build_model(config), inputs_of(config)
    initialize_codebooks_(model, inputs, seed=5)
    residual = model.encoder(inputs).detach().numpy()
    for layer, size in zip(model.quantization_layer.quantization_layers, (8, 4, 2), strict=True):
        kmeans = KMeans(size, n_init="auto", random_state=5).fit(residual)
        assert_close(layer.codebook.detach().numpy(), kmeans.cluster_centers_)
        if vq_type == "ema":
            assert torch.equal(layer.embed_avg, layer.embed)
            assert layer.cluster_size.tolist() == [1.0] * size
        residual = residual - kmeans.cluster_centers_[kmeans.labels_]


def test_learning_rates(make_config: MakeConfig):
    def rates(**changes: object) -> list[float]:
        config = make_config(lr=1.0, epochs=4, **changes)
        return [learning_rate(step, 2, config) for step in range(8)]

    assert rates() == [1] * 8
    assert rates(warmup_steps=2) == pytest.approx([0, 1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1])
    assert rates(scheduler_type="linear") == pytest.approx([step / 8 for step in range(8, 0, -1)])
    assert rates(scheduler_type="linear", warmup_steps=2) == pytest.approx(
        [0, 1 / 4, 2 / 4, 3 / 4, 1, 3 / 4, 2 / 4, 1 / 4]
    )


@pytest.mark.parametrize("learner", ["adagrad", "adamw"])
def test_an_epoch_equals_a_plain_loop(make_config: MakeConfig, learner: str):
    """50 items in batches of 16: the last batch has 2; every item once; means over the items."""
    config = make_config(learner=learner, weight_decay=0.1)
    inputs = inputs_of(config)
    torch.manual_seed(0)
    model = build_model(config).train()
    state = TrainingState(model, build_optimizer(model, config), epoch=3)
    torch.manual_seed(0)
    plain = build_model(config).train()
    kind = {"adagrad": torch.optim.Adagrad, "adamw": torch.optim.AdamW}[learner]
    optimizer = kind(plain.parameters(), lr=0.001, weight_decay=0.1)

    metrics = train_epoch(state, inputs, config)

    torch.manual_seed(2024 * 1_000_003 + 3)
    order, total = torch.randperm(50), 0.0
    for rows in (order[:16], order[16:32], order[32:48], order[48:]):
        loss = plain(inputs[rows]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(rows)
    assert state.epoch == 4
    assert metrics["loss"] == pytest.approx(total / 50, rel=1e-5)
    assert metrics["loss"] == pytest.approx(metrics["reconstruction"] + metrics["quantization"], rel=1e-5)
    assert_close(model.state_dict(), plain.state_dict())


def test_training_learns_and_keeps_the_best(make_config: MakeConfig):
    config = make_config(epochs=30, lr=0.01)
    losses = {}
    state = train_rqvae(config, inputs_of(config), lambda state, metrics: losses.update({state.epoch: metrics["loss"]}))
    assert list(losses) == list(range(1, 31))
    assert losses[30] < 0.9 * losses[1]
    assert (state.best_loss, state.best_epoch) == min((loss, epoch) for epoch, loss in losses.items())


def test_a_loss_that_is_not_finite_stops(make_config: MakeConfig):
    config = make_config(lr=1e30)
    with pytest.raises(
        FloatingPointError, match=r"loss became (nan|inf) in epoch \d at learning rate 1e\+30; lower --lr"
    ):
        train_rqvae(config, inputs_of(config))


def test_many_items_start_from_mini_batches(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch):
    """Three clear clusters: the centres are their means, also when k-means sees samples."""
    monkeypatch.setattr("tokenizer.kmeans._MANY", 100)
    config = make_config(codebook_size=3, n_codebooks=1)
    torch.manual_seed(0)
    model = build_model(config)
    kinds = torch.eye(config.input_size)[:3].repeat(100, 1)
    initialize_codebooks_(model, kinds + 1e-4 * torch.randn(kinds.shape), seed=0)
    found = model.quantization_layer.quantization_layers[0].codebook
    expected = model.latents(kinds[:3])
    assert torch.cdist(found, expected).min(dim=0).values.max() < 1e-3


def test_bf16_trains_like_float32(make_config: MakeConfig):
    """Encoder and decoder in bf16, codebooks and losses in float32."""
    losses = {}
    for precision in ("no", "bf16"):
        config = make_config(mixed_precision=precision, epochs=3)
        state = train_rqvae(config, inputs_of(config))
        losses[precision] = train_epoch(state, inputs_of(config), config)["loss"]
        assert {value.dtype for value in state.model.state_dict().values()} == {torch.float32}
    assert losses["bf16"] != losses["no"]
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.02)


def test_revived_codes_are_used_and_training_resumes_in_their_midst(make_config: MakeConfig):
    """Ten codes for three kinds of items leave some without any; a snapshot after each epoch leads to the same end."""
    config = make_config(codebook_size=10, n_codebooks=2, epochs=4, revive_codes=5, lr=0.01)
    kinds = torch.eye(config.input_size)[:3].repeat(20, 1)
    inputs = kinds + 0.01 * torch.randn(kinds.shape, generator=torch.Generator().manual_seed(0))
    snapshots = []
    whole = train_rqvae(config, inputs, lambda state, metrics: snapshots.append(deepcopy(state.snapshot())))
    assert max(int(counts.max()) for counts in whole.unused) < 5
    assert any(counts.any() for counts in whole.unused)
    for tensors, values in snapshots[:-1]:
        state = train_rqvae(config, inputs, snapshot=Snapshot(Path(), tensors, values))
        assert_close(state.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
        assert_close(state.unused, whole.unused, rtol=0, atol=0)
    plain = train_rqvae(replace(config, revive_codes=0), inputs)
    assert plain.unused == []
    assert not [name for name in plain.snapshot()[0] if name.startswith("unused")]
    used = [len(np.unique(state.model.encode(inputs)[:, 0])) for state in (plain, whole)]
    assert used[1] > used[0]


def test_extra_terms_are_added_and_reported(make_config: MakeConfig):
    """A constant term changes the loss alone; one of the latents pulls them to zero."""
    config = make_config(epochs=3)
    inputs, seen = inputs_of(config), []

    def begin_epoch(model):
        seen.append(len(seen))
        return lambda output, rows: {"constant": torch.tensor(2.0), "size": output.quantized.square().mean()}

    extra = {}
    pulled = train_rqvae(config, inputs, lambda state, metrics: extra.update(metrics), extra_loss=begin_epoch)
    assert seen == [0, 1, 2]
    assert extra["constant"] == pytest.approx(2)
    total = extra["reconstruction"] + extra["quantization"] + extra["constant"] + extra["size"]
    assert extra["loss"] == pytest.approx(total, rel=1e-5)
    free = train_rqvae(config, inputs)
    assert pulled.model.latents(inputs).square().mean() < free.model.latents(inputs).square().mean()
