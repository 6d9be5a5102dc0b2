"""What the project computes on the device beside what it computes on the CPU, and from run to run."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tiny_runs import MODEL, assert_same_weights, flags
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector
from torch.testing import assert_close

import pretrain
from data.batching import Tokenization
from data.interactions import split_positions
from model.recommender import Architecture, Recommender, build_recommender
from tests.cuda.conftest import as_on_a_gpu, on_gpu_only
from tokenizer.config import TokenizerConfig
from tokenizer.rqvae_training import train_rqvae
from training.config import PretrainConfig
from training.curriculum import mean_gradient
from training.setup import resolve_config, start_run
from training.trainer import Trainer
from utils.config import parse_config
from utils.interrupts import Stopped

STAGES = {"epochs": 2, "epoch_per_stage": "[1,1]", "val_delay": 1}


@pytest.fixture
def on_device(tokenization: Tokenization, device: torch.device) -> Tokenization:
    return Tokenization(tokenization.interactions, tokenization.table.to(device), tokenization.max_item_seq_len)


def make_recommender(device: str | torch.device) -> Recommender:
    """Return a recommender of the tiny dataset with weights that show in its outputs, the same on every device."""
    torch.manual_seed(0)
    architecture = Architecture((8,) * 4, **MODEL, dropout_rate=0.0)
    return build_recommender(architecture).to(device)


def examples(tokenization: Tokenization, split: str = "train") -> np.ndarray:
    return split_positions(tokenization.interactions.offsets, split)


def train(recommender: Recommender, tokenization: Tokenization, steps: int) -> list[float]:
    """Train on batches of 16 in a random order; return the losses."""
    rng, losses = np.random.default_rng(0), []
    fused = tokenization.items.is_cuda or None
    optimizer = torch.optim.AdamW(recommender.train().parameters(), lr=3e-3, weight_decay=0.05, fused=fused)
    for _ in range(steps):
        batch = tokenization.batch(rng.choice(examples(tokenization), 16), rng.integers(3, size=16))
        loss = recommender(batch.input_ids, batch.labels, batch.lengths).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(recommender.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def weights(recommender: Recommender) -> torch.Tensor:
    return parameters_to_vector(recommender.parameters()).detach().cpu()


def test_fifty_training_steps_are_those_of_the_cpu(tokenization, on_device, device):
    plain, ours = make_recommender("cpu"), make_recommender(device)
    expected, start = train(plain, tokenization, 50), weights(ours)
    with as_on_a_gpu():
        losses = train(ours, on_device, 50)
    assert expected[-1] < 0.8 * expected[0]
    assert losses == pytest.approx(expected, rel=1e-4)
    moved = (weights(plain) - start).norm()
    assert (weights(ours) - weights(plain)).norm() < 1e-3 * moved


@pytest.mark.parametrize("search", ["free", "among items", "without some"])
def test_beams_are_those_of_the_cpu(tokenization, on_device, device, search):
    positions, found = examples(tokenization, "test"), []
    for data, where, layout in ((tokenization, "cpu", no_context), (on_device, device, as_on_a_gpu)):
        batch, options = data.batch(positions, 0), {}
        if search != "free":
            options["trie"] = data.table.trie(0)
        if search == "without some":
            options["banned"] = torch.arange(5, device=where).repeat(len(positions), 1)
        with layout():
            found.append(make_recommender(where).eval().generate(batch.input_ids, batch.lengths, 10, 8, **options))
    (expected, scores), (ours, our_scores) = found
    assert_close(our_scores.cpu(), scores, rtol=1e-4, atol=1e-5)
    assert (ours.cpu() == expected).all(dim=2).float().mean() > 0.95  # two of one score may change places


@contextmanager
def no_context() -> Iterator[None]:
    yield


def test_bf16_is_close(on_device, device):
    recommender = make_recommender(device)
    batch = on_device.batch(examples(on_device, "valid"), 0)
    with as_on_a_gpu():
        loss = recommender(batch.input_ids, batch.labels, batch.lengths)
        full = torch.cat([part.flatten() for part in mean_gradient(recommender, [batch], len(batch))])
        with torch.autocast(device.type, torch.bfloat16):
            half_loss = recommender(batch.input_ids, batch.labels, batch.lengths)
            half = torch.cat([part.flatten() for part in mean_gradient(recommender, [batch], len(batch))])
    assert half_loss.dtype == torch.float32
    assert_close(half_loss, loss, rtol=2e-2, atol=2e-2)
    assert (half - full).norm() < 0.05 * full.norm()


@pytest.fixture
def run(dataset: Path, tmp_path: Path, device: torch.device) -> Callable[..., Path]:
    """Return a function that pre-trains with some flags and returns the model's folder."""

    def pretrain_(name: str, *more: str, **settings: object) -> Path:
        argv = flags(dataset, tmp_path / "runs", run_name=name, **STAGES | settings)
        pretrain.main([*argv, *more])
        return tmp_path / "runs" / "Tiny" / name / "model"

    return pretrain_


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_runs_of_one_seed_are_equal_one_of_them_resumed(run, monkeypatch, precision):
    whole = run("whole", mixed_precision=precision)
    step, taken = Trainer._train_step, []

    def stopping(trainer: Trainer, *arguments: object) -> object:
        taken.append(1)
        if len(taken) == 30:  # in the second epoch, after an estimate of influence
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, *arguments)

    monkeypatch.setattr(Trainer, "_train_step", stopping)
    with pytest.raises(Stopped):
        run("other", mixed_precision=precision)
    assert_same_weights(whole, run("other", "--resume", mixed_precision=precision))


@pytest.fixture
def make_trainer(dataset: Path, tmp_path: Path, device: torch.device) -> Callable[..., Trainer]:
    def make(**settings: object) -> Trainer:
        argv = flags(dataset, tmp_path / "runs", run_name="steps", **STAGES | settings)
        trainer = start_run(*resolve_config(*parse_config(PretrainConfig, argv, "test", "")))
        assert trainer.accelerator.device.type == device.type
        return trainer

    return make


def test_gradients_in_a_process_group_are_those_without(on_device, device):
    """A group of one, as Accelerate wraps the model in larger ones: accumulation, and influence past DDP's hooks."""
    batches = [on_device.batch(examples(on_device)[part], 0) for part in (slice(16), slice(16, 40))]
    plain, grouped = make_recommender(device), make_recommender(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(grouped, device_ids=[0] if device.type == "cuda" else None)
        for model, accumulating in ((plain, no_context), (wrapped, wrapped.no_sync)):
            for batch, context in zip(batches, (accumulating, no_context), strict=True):
                with context(), as_on_a_gpu():
                    model(batch.input_ids, batch.labels, batch.lengths).sum().backward()
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), grouped.parameters(), strict=True))
        gradients = [mean_gradient(model, batches, 40) for model in (plain, grouped)]
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    finally:
        dist.destroy_process_group()


def take_steps(trainer: Trainer, count: int, first: int = 0) -> None:
    positions, groups = trainer.data.order.epoch(1, np.full(3, 1 / 3))
    trainer.model.train()
    for step in range(first, first + count):
        trainer._train_step(positions, groups, step)


def test_nothing_in_training_lacks_a_deterministic_kernel(make_trainer, tmp_path, device):
    trainer = make_trainer()
    torch.use_deterministic_algorithms(True, warn_only=False)  # an error where training warns
    with as_on_a_gpu():
        take_steps(trainer, 3)
        batch = trainer.data.tokenization.batch(trainer.data.valid, 0)
        mean_gradient(trainer.recommender, [batch], len(batch))
    config = TokenizerConfig(
        "Any", str(tmp_path), sent_emb_pca=16, hidden_sizes=[12, 8], codebook_size=[8, 8, 8, 64], epochs=3, save_last=1
    )
    inputs = torch.randn(100, 16, generator=torch.Generator().manual_seed(0)).to(device)
    first, second = (train_rqvae(config, inputs).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@on_gpu_only
def test_a_training_step_does_not_wait_for_the_gpu(make_trainer):
    trainer = make_trainer()
    take_steps(trainer, 6)  # what is kept of each shape is there
    torch.cuda.set_sync_debug_mode("error")
    try:
        take_steps(trainer, 3, first=3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu_only
def test_memory_of_a_step_of_the_papers_model(make_trainer, capsys):
    sizes = {"num_layers": 6, "num_decoder_layers": 6, "d_model": 128, "d_ff": 512, "num_heads": 4, "d_kv": 64}
    trainer = make_trainer(train_batch_size=256, **sizes)
    torch.cuda.reset_peak_memory_stats()
    take_steps(trainer, 1)
    peak = torch.cuda.max_memory_allocated() / 2**20
    with capsys.disabled():
        print(f"peak memory of a step of 256 examples: {peak:.0f} MB")
    assert peak < 4096
