"""The stages that benchmarks.speed measures: what each way calls, what must be equal, how much work it is."""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import reference
from data.batching import Batch, Tokenization
from data.interactions import load_interactions, split_positions, training_items
from data.token_table import TRAINING_FILE, TokenTable, Vocabulary, load_token_table, resolve_groups
from model import length_groups
from model.recommender import Architecture, Recommender, build_recommender
from tokenizer.config import TokenizerConfig
from tokenizer.export import export
from tokenizer.folder import training_settings
from tokenizer.rqvae import RQVAE, encoding_state, save_weights
from tokenizer.rqvae_tokenizer import epoch_file
from tokenizer.rqvae_training import TrainingState, build_model, build_optimizer, train_epoch
from tokenizer.whitening import Whitening
from training.curriculum import mean_gradient
from utils.files import write_json

COMPILE = {"mode": "reduce-overhead", "dynamic": False, "fullgraph": True}  # CUDA graphs where there are any
NUM_BATCHES = 8  # of training, different ones in turn; of one influence gradient
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32, another order of summation
CLOSE_BF16 = {"rtol": 2e-2, "atol": 2e-2}  # of losses; 8 bits of mantissa


@dataclass(frozen=True)
class Sizes:
    """How much is measured; the defaults are the paper's model on Musical_Instruments.

    Attributes:
        shrink: Of the generated dataset, one user and one item in so many.
        rounds: At least 3.
        kept_epochs: Epochs that are exported, besides the best.
    """

    shrink: int = 1
    rounds: int = 5
    tokenizers: int = 25
    train_batch: int = 256
    eval_batch_20: int = 256
    eval_batch_50: int = 128
    num_layers: int = 6
    d_model: int = 128
    d_ff: int = 512
    hidden_sizes: tuple[int, ...] = (2048, 1024, 512, 256, 128)
    kept_epochs: int = 51


@dataclass
class Stage:
    """One thing to measure.

    Attributes:
        name: As in the results.
        reference: The reference way, float32.
        project: This project's way by precision.
        equal: Whether a precision computes what the reference way computes.
        samples: Of one call; None where the call's seconds are the figure.
        flops: Useful floating-point operations of one call, None where they do not matter.
    """

    name: str
    reference: Callable[[], object]
    project: dict[str, Callable[[], object]]
    equal: Callable[[str], bool]
    samples: int | None = None
    flops: float | None = None


@dataclass
class World:
    """The data and the model that all stages share.

    Attributes:
        folder: Dataset folder.
        scratch: Empty folder for files of stages.
    """

    folder: Path
    scratch: Path
    sizes: Sizes
    device: torch.device
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    @cached_property
    def level_sizes(self) -> tuple[int, ...]:
        """Codes per level, as the .sem_ids files' names say."""
        return tuple(map(int, self.groups[0].prefix.rsplit("_", 1)[1].split(",")))

    @cached_property
    def groups(self) -> list:
        return resolve_groups(self.folder)

    def load(self) -> tuple[Tokenization, dict[str, np.ndarray]]:
        """Load the dataset this project's way, as training.setup does."""
        interactions = load_interactions(self.folder)
        table = load_token_table(self.groups, interactions.item_names[1:], Vocabulary(self.level_sizes))
        splits = {split: split_positions(interactions.offsets, split) for split in ("train", "valid", "test")}
        return Tokenization(interactions, table.to(self.device)), splits

    def load_reference(self) -> reference.LoadedDataset:
        return reference.load(self.folder, [group.file for group in self.groups], self.level_sizes)

    @cached_property
    def loaded(self) -> tuple[Tokenization, dict[str, np.ndarray]]:
        return self.load()

    @cached_property
    def loaded_reference(self) -> reference.LoadedDataset:
        return self.load_reference()

    @property
    def table(self) -> TokenTable:
        return self.loaded[0].table

    def examples(self, split: str, count: int) -> tuple[np.ndarray, list[reference.Example]]:
        """Draw examples of a split, for both ways: positions and Example objects."""
        positions = self.loaded[1][split]
        rows = np.random.default_rng(1).permutation(len(positions))[:count]
        return positions[rows], [self.loaded_reference.splits[split][row] for row in rows]

    def recommender(self) -> Recommender:
        """Return the same freshly initialised network every time, its embeddings spread out so that beams differ."""
        torch.manual_seed(0)
        sizes = self.sizes
        architecture = Architecture(
            self.level_sizes,
            num_layers=sizes.num_layers,
            num_decoder_layers=sizes.num_layers,
            d_model=sizes.d_model,
            d_ff=sizes.d_ff,
        )
        return build_recommender(architecture).to(self.device)

    def autocast(self, precision: str) -> AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")


def forward_flops(recommender: Recommender, lengths: Tensor, steps: list[int]) -> float:
    """Count the floating-point operations of encoding histories and decoding, without padding.

    Args:
        recommender: The network.
        lengths: int64 [B], tokens per history.
        steps: Decoder tokens that each row feeds at each call of the decoder: [5] in training, [1, M, M, M] in search.
    """
    config = recommender.architecture
    inner, d, d_ff, vocab = config.num_heads * config.d_kv, config.d_model, config.d_ff, config.vocab_size
    tokens, squares, rows = float(lengths.sum()), float((lengths.double() ** 2).sum()), len(lengths)
    encoder = config.num_layers * (tokens * (4 * d * inner + 2 * d * d_ff) + 2 * squares * inner)
    queries = sum(steps)
    per_query = 6 * d * inner + 2 * d * d_ff
    self_attention = 2 * inner * sum(n * (i + 1) for i, n in enumerate(steps)) if len(steps) > 1 else 2 * inner * 15
    decoder = config.num_decoder_layers * (
        rows * (queries * per_query + self_attention) + tokens * 2 * d * inner + 2 * queries * tokens * inner
    )
    return 2 * (encoder + decoder + rows * queries * d * vocab)


def in_turn(count: int, size: int) -> dict[str, Iterator[slice]]:
    """Cut `count` examples into batches of `size`; every way takes them in turn, the first `size` at first.

    The same batch again and again would be too easy: bf16 products are compiled for every new shape.
    """
    return defaultdict(lambda: cycle(slice(start, start + size) for start in range(0, max(count - size, 0) + 1, size)))


@contextmanager
def _training(world: World, name: str, compiled: bool) -> Iterator[Stage]:
    size = world.sizes.train_batch
    positions, examples = world.examples("train", NUM_BATCHES * size)
    turns = in_turn(len(positions), size)
    groups = world.rng.integers(world.table.num_groups, size=len(positions))
    tokenization, dataset = world.loaded[0], world.loaded_reference
    recommender = world.recommender().train()
    plain = reference.make_network(recommender).train()
    optimizer, plain_optimizer = (torch.optim.AdamW(m.parameters(), lr=1e-4) for m in (recommender, plain))
    forward = torch.compile(recommender, **COMPILE) if compiled else recommender

    def step(precision: str) -> None:
        batch = make_batch(next(turns[precision]))
        with world.autocast(precision):
            loss = forward(batch.input_ids, batch.labels, batch.lengths).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(recommender.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def make_batch(part: slice) -> Batch:
        batch = tokenization.batch(positions[part], groups[part])
        if not compiled:
            return batch
        # One shape for all batches, and nothing on the CPU, as CUDA graphs ask.
        input_ids = F.pad(batch.input_ids, (0, int(lengths.max()) - batch.input_ids.shape[1]))
        return Batch(input_ids, batch.labels, batch.lengths.to(world.device))

    def plain_step() -> float:
        part = next(turns["reference"])
        return reference.train_step(plain, plain_optimizer, reference.make_batch(examples[part], dataset, groups[part]))

    def equal(precision: str) -> bool:
        ours, other = world.recommender().eval(), reference.make_network(world.recommender()).eval()
        first = slice(0, size)
        batch = make_batch(first)
        plain_batch = reference.make_batch(examples[first], dataset, groups[first])
        plain_loss, plain_logits = reference.forward(other, plain_batch)
        loss_of = torch.compile(ours, **COMPILE) if compiled else ours
        with torch.no_grad(), world.autocast(precision):
            loss = loss_of(batch.input_ids, batch.labels, batch.lengths).mean()
            logits = ours.logits(batch.input_ids, batch.labels, batch.lengths).float()
        if precision == "bf16":
            return torch.allclose(loss, plain_loss, **CLOSE_BF16)
        return torch.allclose(loss, plain_loss, **CLOSE) and torch.allclose(logits, plain_logits, rtol=1e-3, atol=1e-3)

    lengths, count = tokenization.batch(positions, groups).lengths, min(size, len(positions))
    flops = 3 * forward_flops(recommender, lengths, [5]) * count / len(positions)
    project = {precision: lambda precision=precision: step(precision) for precision in ("float32", "bf16")}
    layout = length_groups.GROUPING_DEVICES
    length_groups.GROUPING_DEVICES = () if compiled else layout
    try:
        yield Stage(name, plain_step, project, equal, count, flops)
    finally:
        length_groups.GROUPING_DEVICES = layout


def train_step(world: World) -> AbstractContextManager[Stage]:
    """One optimizer step on a random batch, each example tokenized by its own tokenizer."""
    return _training(world, "train_step", compiled=False)


def train_step_compiled(world: World) -> AbstractContextManager[Stage]:
    """The same through torch.compile, on a GPU with CUDA graphs."""
    return _training(world, "train_step_compiled", compiled=True)


@contextmanager
def _evaluation(world: World, name: str, batch_size: int, num_beams: int) -> Iterator[Stage]:
    positions, examples = world.examples("test", batch_size)
    tokenization, dataset = world.loaded[0], world.loaded_reference
    recommender = world.recommender().eval()
    plain = reference.make_network(recommender).eval()
    num_levels, num_return = len(world.level_sizes), min(10, num_beams)

    def search(count: int = batch_size) -> tuple[Tensor, Tensor]:
        batch = tokenization.batch(positions[:count], 0)
        return recommender.generate(batch.input_ids, batch.lengths, num_beams, num_return)

    def plain_search(count: int = batch_size) -> tuple[Tensor, Tensor]:
        batch = reference.make_batch(examples[:count], dataset, [0] * len(examples[:count]))
        return reference.beam_search(plain, batch, num_levels, num_beams, num_return)

    def equal(precision: str) -> bool:
        (ours, scores), (found, plain_scores) = search(16), plain_search(16)
        return torch.equal(ours, found) and torch.allclose(scores, plain_scores, **CLOSE)

    lengths = tokenization.batch(positions, 0).lengths
    flops = forward_flops(recommender, lengths, [1] + [num_beams] * (num_levels - 1))
    yield Stage(name, plain_search, {"float32": search}, equal, len(positions), flops)


def eval_beam20(world: World) -> AbstractContextManager[Stage]:
    """Beam search as in validation."""
    return _evaluation(world, "eval_beam20", world.sizes.eval_batch_20, 20)


def eval_beam50(world: World) -> AbstractContextManager[Stage]:
    """Beam search as in the test."""
    return _evaluation(world, "eval_beam50", world.sizes.eval_batch_50, 50)


@contextmanager
def influence(world: World) -> Iterator[Stage]:
    """The mean gradient of one tokenizer's examples, so many that batches sorted by length have few lengths each."""
    size = world.sizes.train_batch
    at_once = NUM_BATCHES * size
    positions, examples = world.examples("train", 2 * at_once)
    turns = in_turn(len(positions), at_once)
    tokenization, dataset = world.loaded[0], world.loaded_reference
    recommender = world.recommender()
    plain = reference.make_network(recommender)

    def gradient(precision: str, part: slice) -> list[Tensor]:
        batches = (batch for _, batch in tokenization.batches(tokenization.by_length(positions[part]), 0, size))
        with world.autocast(precision):
            return mean_gradient(recommender, batches, len(positions[part]))

    def plain_gradient(part: slice) -> list[Tensor]:
        return reference.influence_gradient(plain, examples[part], dataset, 0, size)

    def equal(precision: str) -> bool:
        first = slice(0, at_once)
        ways = gradient(precision, first), plain_gradient(first)
        ours, other = (torch.cat([part.flatten() for part in way]) for way in ways)
        error = float((ours - other).norm() / other.norm())
        return error < (0.05 if precision == "bf16" else 1e-4)

    lengths, count = tokenization.batch(positions, 0).lengths, min(at_once, len(positions))
    flops = 3 * forward_flops(recommender, lengths, [5]) * count / len(positions)
    project = {
        precision: lambda precision=precision: gradient(precision, next(turns[precision]))
        for precision in ("float32", "bf16")
    }
    yield Stage("influence", lambda: plain_gradient(next(turns["reference"])), project, equal, count, flops)


def tokenizer_config(world: World) -> TokenizerConfig:
    sizes = world.sizes
    return TokenizerConfig(
        dataset=world.folder.name,
        data_dir=str(world.folder.parent),
        hidden_sizes=list(sizes.hidden_sizes),
        codebook_size=[*world.level_sizes[:-1], world.table.tokens.shape[1]],  # an untrained network collides often
        epochs=sizes.kept_epochs,
        save_last=sizes.kept_epochs,
        device=str(world.device),
    )


def make_rqvae(config: TokenizerConfig, inputs: Tensor) -> RQVAE:
    """Return a fresh RQ-VAE whose codes are encoded items: k-means would take longer than what is measured."""
    torch.manual_seed(0)
    model = build_model(config).to(inputs.device)
    residual = model.latents(inputs)
    for layer in model.quantization_layer.quantization_layers:
        rows = torch.randperm(len(residual), device=residual.device)[: len(layer.codebook)]
        layer.initialize_(residual[rows].repeat(-(-len(layer.codebook) // len(rows)), 1)[: len(layer.codebook)])
        residual = residual - layer.codebook[layer_codes(residual, layer.codebook)]
    return model


def layer_codes(residual: Tensor, codebook: Tensor) -> Tensor:
    return torch.cdist(residual, codebook).argmin(1)


@contextmanager
def rqvae_epoch(world: World) -> Iterator[Stage]:
    """An epoch of RQ-VAE training on all training items."""
    config = tokenizer_config(world)
    count = len(training_items(world.loaded[0].interactions))
    inputs = torch.randn(count, config.input_size, generator=torch.Generator().manual_seed(0)).to(world.device)

    def fresh(precision: str) -> tuple[TrainingState, TokenizerConfig]:
        model = make_rqvae(config, inputs).train()
        settings = replace(config, mixed_precision={"float32": "no", "bf16": "bf16"}[precision])
        return TrainingState(model, build_optimizer(model, config)), settings

    def order() -> list[int]:
        torch.manual_seed(config.rand_seed * 1_000_003 % 2**63)  # epoch 0's, as train_epoch draws it
        return torch.randperm(count, device=world.device).tolist()

    states = {precision: fresh(precision) for precision in ("float32", "bf16")}
    plain = fresh("float32")[0]

    def plain_epoch(state: TrainingState = plain) -> float:
        return reference.rqvae_epoch(state.model, state.optimizer, inputs, order(), config.batch_size)

    def equal(precision: str) -> bool:
        ours, settings = fresh(precision)
        other = fresh("float32")[0]
        loss, plain_loss = train_epoch(ours, inputs, settings)["loss"], plain_epoch(other)
        if precision == "bf16":
            return abs(loss - plain_loss) < CLOSE_BF16["rtol"] * plain_loss
        return abs(loss - plain_loss) < 1e-5 * plain_loss and torch.equal(
            ours.model.encode(inputs), other.model.encode(inputs)
        )

    weights = sum(p.numel() for name, p in plain.model.named_parameters() if name.endswith("weight"))
    flops = count * 6 * weights + 3 * 4 * count * sum(world.level_sizes[:-1]) * config.hidden_sizes[-1]
    project = {
        precision: lambda precision=precision: train_epoch(states[precision][0], inputs, states[precision][1])
        for precision in states
    }
    yield Stage("rqvae_epoch", plain_epoch, project, equal, None, flops)


@contextmanager
def export_tokenizers(world: World) -> Iterator[Stage]:
    """The semantic IDs of all kept epochs. Three different checkpoints stand for all; the others are links to them."""
    config = replace(tokenizer_config(world), ckpt_name="exported", data_dir=str(world.scratch), dataset="export")
    interactions = world.loaded[0].interactions
    config.folder.mkdir()
    for name in ("all_item_seqs.json", "id_mapping.json"):
        os.link(world.folder / name, config.folder / name) if world.folder.is_relative_to(world.scratch) else (
            config.folder / name
        ).symlink_to((world.folder / name).resolve())
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((interactions.num_items, config.sent_emb_dim)).astype(np.float32)
    embeddings.tofile(config.embedding_file)
    components = np.linalg.qr(rng.standard_normal((config.sent_emb_dim, config.sent_emb_pca)))[0].T
    whitening = Whitening(
        embeddings.mean(0), components.astype(np.float32), np.ones(config.sent_emb_pca, dtype=np.float32)
    )
    whitening.save(config.tokenizer_folder / "pca.safetensors")
    inputs = torch.from_numpy(whitening.apply(embeddings)).to(world.device)
    model = make_rqvae(config, inputs)
    optimizer = build_optimizer(model, config)
    checkpoints = []
    for epoch in range(1, config.epochs + 1):
        file, plain_file = epoch_file(config, epoch), world.scratch / f"{epoch}.pth"
        if epoch <= 3:
            with torch.no_grad():
                for parameter in model.encoder.parameters():
                    parameter.mul_(1.001)
            save_weights(file, encoding_state(model), epoch=epoch)
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, plain_file)
        else:
            os.link(epoch_file(config, 1 + epoch % 3), file)
            os.link(world.scratch / f"{1 + epoch % 3}.pth", plain_file)
        checkpoints.append(plain_file)
    os.link(epoch_file(config, 1), epoch_file(config, None))
    settings = training_settings(config, embeddings=embeddings)
    write_json(config.tokenizer_folder / TRAINING_FILE, {"finished": True, "settings": settings})
    names, plain_model = interactions.item_names[1:], build_model(config).to(world.device)

    def plain_export() -> list[Path]:
        return reference.export(plain_model, checkpoints, inputs, names, world.scratch)

    def equal(precision: str) -> bool:
        export(config)
        files = [
            next(config.tokenizer_folder.glob(f"*_{epoch}.sem_ids")) for epoch in range(1, min(3, config.epochs) + 1)
        ]
        plain = reference.export(plain_model, checkpoints[:3], inputs, names, world.scratch)
        return all(
            json.loads(ours.read_text()) == json.loads(theirs.read_text())
            for ours, theirs in zip(files, plain, strict=True)
        )

    encoder = sum(p.numel() for name, p in model.encoder.named_parameters() if name.endswith("weight"))
    codebooks = sum(world.level_sizes[:-1]) * config.hidden_sizes[-1]
    flops = 2.0 * interactions.num_items * (config.epochs + 1) * (encoder + codebooks)
    yield Stage("export", plain_export, {"float32": lambda: export(config)}, equal, None, flops)


@contextmanager
def load(world: World) -> Iterator[Stage]:
    """From files to everything that training reads, all tokenizers."""

    def equal(precision: str) -> bool:
        (tokenization, splits), plain = world.load(), world.load_reference()
        interactions, names = tokenization.interactions, tokenization.interactions.item_names
        for split, positions in splits.items():
            if len(positions) != len(plain.splits[split]):
                return False
            for row in np.random.default_rng(2).integers(len(positions), size=1000):
                example, position = plain.splits[split][row], int(positions[row])
                history = [names[item] for item in interactions.history(position)]
                if (example.history, example.target) != (history, names[interactions.items[position]]):
                    return False
        tokens = tokenization.table.tokens.cpu().numpy()
        return all(
            np.array_equal(tokens[group, 1:], [table[name] for name in names[1:]])
            for group, table in enumerate(plain.tokens)
        )

    # Other stages' gigabyte of Python objects would slow whatever is loaded beside it.
    world.__dict__.pop("loaded_reference", None)
    yield Stage("load", world.load_reference, {"float32": world.load}, equal)


STAGES: dict[str, Callable[[World], AbstractContextManager[Stage]]] = {
    "train_step": train_step,
    "eval_beam20": eval_beam20,
    "eval_beam50": eval_beam50,
    "influence": influence,
    "rqvae_epoch": rqvae_epoch,
    "export": export_tokenizers,
    "load": load,
    "train_step_compiled": train_step_compiled,
}
