import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.cluster import KMeans
from torch.testing import assert_close

from data.interactions import load_interactions, training_items
from tokenizer.config import TokenizerConfig
from tokenizer.embed import load_embeddings
from tokenizer.train import (
    EpochWriter,
    TrainingState,
    _differences,
    build_model,
    build_optimizer,
    initialize_codebooks_,
    learning_rate,
    load_tokenizer,
    train,
    train_epoch,
    train_rqvae,
    training_settings,
)
from utils.config import parse_config
from utils.errors import InputError

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


def test_fewer_items_than_codes(make_config: MakeConfig):
    with pytest.raises(InputError, match="57 training items cannot fill 64 codes; lower --codebook_size"):
        train(make_config(codebook_size=64))


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


def test_files_of_a_training(make_config: MakeConfig):
    config = make_config()
    train(replace(config, overwrite=True))  # what to do with the folder is no setting that config.yaml gives back
    folder = config.tokenizer_folder
    assert sorted(path.name for path in (folder / "epochs").iterdir()) == [
        f"{epoch}.safetensors" for epoch in (4, 5, 6)
    ]
    last = load_file(folder / "last.safetensors")
    build_model(config).load_state_dict(last)
    kept = load_file(folder / "epochs" / "6.safetensors")
    assert all(torch.equal(value, last[name]) for name, value in kept.items())
    assert not any(name.startswith("decoder") for name in kept)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    result = json.loads((folder / "training.json").read_text())
    losses = [line["loss"] for line in metrics]
    assert (result["finished"], result["best_loss"]) == (True, min(losses))
    assert result["best_epoch"] == losses.index(min(losses)) + 1
    again, _ = parse_config(TokenizerConfig, [f"--config_file={folder / 'config.yaml'}"], "test", "")
    assert again == config


def test_pca_sees_all_items_and_training_only_training_items(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch):
    config, seen = make_config(), []
    monkeypatch.setattr(
        "tokenizer.train.initialize_codebooks_", lambda model, inputs, seed: seen.append(inputs.clone())
    )
    train(config)
    interactions = load_interactions(config.folder)
    embeddings, items = load_embeddings(config, 60), training_items(interactions)
    assert 0 < len(items) < 60
    assert 60 not in items
    pca = load_file(config.tokenizer_folder / "pca.safetensors")
    np.testing.assert_allclose(pca["mean"].numpy(), embeddings.mean(axis=0), atol=1e-6)
    prepared = load_tokenizer(config, embeddings).prepare(embeddings)
    assert torch.equal(seen[0], prepared[items - 1])


def test_without_pca_the_embeddings_are_trained_on_as_they_are(make_config: MakeConfig):
    config = make_config(sent_emb_pca=-1, epochs=1)
    train(config)
    assert not (config.tokenizer_folder / "pca.safetensors").exists()
    embeddings = load_embeddings(config, 60)
    assert torch.equal(load_tokenizer(config).prepare(embeddings), torch.from_numpy(embeddings))


def test_the_seed_decides_the_codes(make_config: MakeConfig):
    def codes(name: str, seed: int) -> np.ndarray:
        config = make_config(ckpt_name=name, rand_seed=seed, dropout=0.1)
        train(config)
        tokenizer = load_tokenizer(config)
        return tokenizer.codes(tokenizer.prepare(load_embeddings(config, 60)), epoch=5)

    first = codes("a", 1)
    np.testing.assert_array_equal(first, codes("b", 1))
    assert (first != codes("c", 2)).any()


def test_reuse_and_refusal(make_config: MakeConfig, capsys: pytest.CaptureFixture):
    config = make_config()
    train(config)
    weights = config.tokenizer_folder / "last.safetensors"
    before = weights.stat().st_mtime_ns
    train(make_config(sent_emb_batch_size=3, overwrite=True))
    assert "reused, a finished training" in capsys.readouterr().out
    assert weights.stat().st_mtime_ns == before
    with pytest.raises(
        InputError, match=r"beta was 0.25, now 0.5; epochs was 6, now 7.*--ckpt_name.*--overwrite"
    ) as error:
        train(make_config(epochs=7, beta=0.5))
    assert str(config.tokenizer_folder) in str(error.value)
    with pytest.raises(InputError, match="trained with other settings: epochs was 6, now 7"):
        load_tokenizer(make_config(epochs=7))

    stale = config.tokenizer_folder / "encoder_8,8,8,8_6.sem_ids"
    stale.write_text("{}")
    train(make_config(epochs=7, overwrite=True))
    assert not stale.exists()
    assert sorted(path.stem for path in (config.tokenizer_folder / "epochs").iterdir()) == ["5", "6", "7"]


def test_other_embeddings_are_another_training(make_config: MakeConfig):
    config = make_config()
    train(config)
    embeddings = load_embeddings(config, 60)[::-1].copy()
    embeddings.tofile(config.embedding_file)
    with pytest.raises(InputError, match="embeddings_sha256"):
        train(config)
    with pytest.raises(InputError, match="embeddings_sha256"):
        load_tokenizer(config, embeddings)


def test_an_unfinished_training_is_made_anew(make_config: MakeConfig, capsys: pytest.CaptureFixture):
    config = make_config()
    train(config)
    file = config.tokenizer_folder / "training.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"finished": False}))
    with pytest.raises(InputError, match="no finished training"):
        load_tokenizer(config)
    train(config)
    assert "the last run did not finish" in capsys.readouterr().out
    assert json.loads(file.read_text())["finished"]


def test_many_items_start_from_mini_batches(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch):
    """Three clear clusters: the centres are their means, also when k-means sees samples."""
    monkeypatch.setattr("tokenizer.train._MANY_ITEMS", 100)
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


def test_more_items_of_one_embedding_than_can_be_told_apart(make_config: MakeConfig):
    """Four of the tiny dataset's items have the same."""
    with pytest.raises(InputError, match=r"4 items have the same embedding.* at most 3;.*\(at least 5\)"):
        train(make_config(codebook_size=[8, 8, 8, 4]))


def test_the_disambiguation_level_is_no_setting_of_training(make_config: MakeConfig, capsys: pytest.CaptureFixture):
    train(make_config())
    train(make_config(codebook_size=[8, 8, 8, 16]))
    assert "reused, a finished training" in capsys.readouterr().out
    assert load_tokenizer(make_config(codebook_size=[8, 8, 8, 16])).config.codebook_size == [8, 8, 8, 16]
    with pytest.raises(InputError, match=r"codebook_size was 8, now \[8, 8, 6\]"):
        train(make_config(codebook_size=[8, 8, 6]))


def test_settings_that_an_old_training_does_not_know_had_their_defaults(make_config: MakeConfig):
    now = training_settings(make_config())
    before = {name: value for name, value in now.items() if name != "mixed_precision"}
    assert _differences(before, now) == ""
    assert _differences(before, now | {"mixed_precision": "bf16"}) == "mixed_precision was 'no', now 'bf16'"


def test_seconds_count_what_came_before_an_interruption(make_config: MakeConfig):
    config = make_config()
    config.tokenizer_folder.mkdir(parents=True)
    writer = EpochWriter(config, SimpleNamespace(values={"metrics_size": 0, "epoch": 1, "seconds": 50.0}))
    assert 50 <= writer.seconds < 60
    writer.close()
