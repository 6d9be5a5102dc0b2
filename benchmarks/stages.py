"""The stages that benchmarks.speed measures: what each way calls, what must be equal, how much work it is."""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import cycle
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from benchmarks import reference
from benchmarks.machine import tf32_products
from data.batching import Batch, Tokenization
from data.interactions import load_interactions, split_positions, training_items
from data.token_table import TRAINING_FILE, Group, Vocabulary, load_token_table, resolve_groups
from model import packing
from model.recommender import Architecture, Recommender, build_recommender
from tokenizer.config import TokenizerConfig
from tokenizer.export import export
from tokenizer.folder import training_settings
from tokenizer.rqvae import RQVAE, encoding_state, save_weights
from tokenizer.rqvae_training import TrainingState, build_model, build_optimizer, epoch_file, train_epoch
from tokenizer.whitening import Whitening
from training.curriculum import mean_gradient
from utils.files import write_json

COMPILE = {"mode": "reduce-overhead", "dynamic": False, "fullgraph": True}  # CUDA graphs where there are any
PRECISIONS = ("float32", "bf16")
NUM_BATCHES = 8  # of training, different ones in turn; of one influence gradient
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32, another order of summation
CLOSE_LOGITS = {"rtol": 1e-3, "atol": 1e-3}
CLOSE_BF16 = {"rtol": 2e-2, "atol": 2e-2}  # of losses; 8 bits of mantissa, TF32 has 11


@dataclass(frozen=True)
class Sizes:
    """How much is measured; the defaults are the paper's model on Musical_Instruments."""

    shrink: int = 1  # of the generated dataset, one user and one item in so many
    rounds: int = 5
    tokenizers: int = 25
    train_batch: int = 256
    eval_batch_20: int = 256
    eval_batch_50: int = 128
    num_layers: int = 6
    d_model: int = 128
    d_ff: int = 512
    hidden_sizes: tuple[int, ...] = (2048, 1024, 512, 256, 128)
    kept_epochs: int = 51  # that are exported, besides the best


@dataclass
class Stage:
    """One thing to measure."""

    reference: Callable[[], object]  # the reference way, float32
    project: Callable[[str], object]  # this project's way in a precision
    equal: Callable[[str], bool]  # whether a precision computes what the reference way computes
    precisions: tuple[str, ...] = ("float32",)  # those that `project` has
    samples: int | None = None  # of one call; None where the call's seconds are the figure
    flops: float | None = None  # useful floating-point operations of one call, None where they do not matter


@dataclass
class Workload:
    """The data (a dataset folder) and the model that all stages work on, and an empty folder for their files."""

    folder: Path
    scratch: Path
    sizes: Sizes
    device: torch.device

    @cached_property
    def level_sizes(self) -> tuple[int, ...]:
        """Codes per level, as the .sem_ids files' names say."""
        return tuple(map(int, self.groups[0].prefix.rsplit("_", 1)[1].split(",")))

    @cached_property
    def groups(self) -> list[Group]:
        return resolve_groups(self.folder)

    def load(self) -> tuple[Tokenization, dict[str, np.ndarray]]:
        """Load the dataset this project's way, as training.setup does."""
        interactions = load_interactions(self.folder)
        table = load_token_table(self.groups, interactions.item_names[1:], Vocabulary(self.level_sizes))
        splits = {split: split_positions(interactions.offsets, split) for split in ("train", "valid", "test")}
        return Tokenization(interactions, table.to(self.device)), splits

    def load_reference(self) -> reference.LoadedDataset:
        return reference.load(self.folder, [group.file for group in self.groups], self.level_sizes)

    loaded, loaded_reference = cached_property(load), cached_property(load_reference)

    @property
    def tokenization(self) -> Tokenization:
        return self.loaded[0]

    def examples(self, split: str, count: int) -> tuple[np.ndarray, list[reference.Example]]:
        """Draw examples of a split, for both ways: positions and Example objects."""
        positions = self.loaded[1][split]
        rows = np.random.default_rng(1).permutation(len(positions))[:count]
        return positions[rows], [self.loaded_reference.splits[split][row] for row in rows]

    def recommender(self) -> Recommender:
        """Return the same freshly initialised network every time."""
        torch.manual_seed(0)
        depth, width = self.sizes.num_layers, {"d_model": self.sizes.d_model, "d_ff": self.sizes.d_ff}
        architecture = Architecture(self.level_sizes, num_layers=depth, num_decoder_layers=depth, **width)
        return build_recommender(architecture).to(self.device)

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those of what trains the recommender: TF32 only where there is one."""
        return ("float32", "tf32", "bf16") if self.device.type == "cuda" else PRECISIONS

    def computing(self, precision: str) -> AbstractContextManager:
        """Compute in a precision within; TF32's holds for the backward pass too, bf16's matters to the forward one."""
        if precision == "tf32":
            return tf32_products()
        return torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")


def forward_flops(recommender: Recommender, lengths: Tensor, steps: list[int]) -> float:
    """Count the floating-point operations of encoding histories of int64 [B] tokens and decoding, without padding.

    `steps` are the tokens that each row feeds at each call of the decoder: [5] in training, [1, M, M, M] in search.
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


def train_step(workload: Workload, compiled: bool) -> Stage:
    """One optimizer step on a random batch, each example tokenized by its own tokenizer."""
    size, tokenization, dataset = workload.sizes.train_batch, workload.tokenization, workload.loaded_reference
    positions, examples = workload.examples("train", NUM_BATCHES * size)
    groups = np.random.default_rng(0).integers(tokenization.table.num_groups, size=len(positions))
    lengths, count = tokenization.batch(positions, groups).lengths, min(size, len(positions))
    longest = int(lengths.max())
    turns = in_turn(len(positions), size)
    recommender = workload.recommender().train()
    plain_network = reference.make_network(recommender).train()
    optimizer = torch.optim.AdamW(recommender.parameters(), lr=1e-4, fused=workload.device.type == "cuda" or None)
    plain_optimizer = torch.optim.AdamW(plain_network.parameters(), lr=1e-4)
    one_shape = partial(patch.object, packing, "PACKING_DEVICES", ())  # not each length apart, to compile it
    loss_of, layout = (torch.compile(recommender, **COMPILE), one_shape) if compiled else (recommender, nullcontext)

    def make_batch(part: slice) -> Batch:
        batch = tokenization.batch(positions[part], groups[part])
        if not compiled:
            return batch
        # one shape for all batches, as CUDA graphs ask
        input_ids = F.pad(batch.input_ids, (0, longest - batch.input_ids.shape[1]))
        return Batch(input_ids, batch.labels, batch.lengths)

    def make_plain_batch(part: slice) -> reference.Batch:
        return reference.make_batch(examples[part], dataset, groups[part])

    def step(precision: str) -> None:
        batch = make_batch(next(turns[precision]))
        with layout(), workload.computing(precision):
            loss = loss_of(batch.input_ids, batch.labels, batch.lengths).mean()
        with workload.computing("tf32" if precision == "tf32" else "float32"):
            loss.backward()
        torch.nn.utils.clip_grad_norm_(recommender.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def equal(precision: str) -> bool:
        ours = workload.recommender().eval()
        plain = reference.make_network(ours).eval()
        batch = make_batch(slice(size))
        plain_loss, plain_logits = reference.forward(plain, make_plain_batch(slice(size)))
        with torch.no_grad(), layout(), workload.computing(precision):
            loss = (torch.compile(ours, **COMPILE) if compiled else ours)(batch.input_ids, batch.labels, batch.lengths)
            logits = ours.logits(batch.input_ids, batch.labels, batch.lengths).float()
        if precision != "float32":
            return torch.allclose(loss.mean(), plain_loss, **CLOSE_BF16)
        return torch.allclose(loss.mean(), plain_loss, **CLOSE) and torch.allclose(logits, plain_logits, **CLOSE_LOGITS)

    def plain_step() -> float:
        return reference.train_step(plain_network, plain_optimizer, make_plain_batch(next(turns["reference"])))

    flops = 3 * forward_flops(recommender, lengths, [5]) * count / len(positions)
    precisions = ("float32",) if compiled else workload.precisions  # compiling takes its time for each
    return Stage(plain_step, step, equal, precisions, count, flops)


def evaluation(workload: Workload, num_beams: int) -> Stage:
    """Beam search as in validation (20 beams) and in the test (50)."""
    batch_size = getattr(workload.sizes, f"eval_batch_{num_beams}")
    positions, examples = workload.examples("test", batch_size)
    tokenization, dataset = workload.tokenization, workload.loaded_reference
    recommender = workload.recommender().eval()
    plain_network = reference.make_network(recommender).eval()
    num_levels, num_return = len(workload.level_sizes), min(10, num_beams)

    def search(count: int = batch_size) -> tuple[Tensor, Tensor]:
        batch = tokenization.batch(positions[:count], 0)
        return recommender.generate(batch.input_ids, batch.lengths, num_beams, num_return)

    def plain_search(count: int = batch_size) -> tuple[Tensor, Tensor]:
        batch = reference.make_batch(examples[:count], dataset, [0] * len(examples[:count]))
        return reference.beam_search(plain_network, batch, num_levels, num_beams, num_return)

    def equal(precision: str) -> bool:
        (ours, scores), (plain, plain_scores) = search(16), plain_search(16)
        return torch.equal(ours, plain) and torch.allclose(scores, plain_scores, **CLOSE)

    lengths = tokenization.batch(positions, 0).lengths
    flops = forward_flops(recommender, lengths, [1] + [num_beams] * (num_levels - 1))
    return Stage(plain_search, lambda precision: search(), equal, samples=len(positions), flops=flops)


def influence(workload: Workload) -> Stage:
    """The mean gradient of one tokenizer's examples, so many that batches sorted by length have few lengths each."""
    size, tokenization, dataset = workload.sizes.train_batch, workload.tokenization, workload.loaded_reference
    at_once = NUM_BATCHES * size
    positions, examples = workload.examples("train", 2 * at_once)
    turns = in_turn(len(positions), at_once)
    recommender = workload.recommender()
    plain_network = reference.make_network(recommender)

    def gradient(precision: str, part: slice) -> list[Tensor]:
        batches = (batch for _, batch in tokenization.batches(tokenization.by_length(positions[part]), 0, size))
        with workload.computing(precision):
            return mean_gradient(recommender, batches, len(positions[part]))

    def plain_gradient(part: slice) -> list[Tensor]:
        return reference.influence_gradient(plain_network, examples[part], dataset, 0, size)

    def equal(precision: str) -> bool:
        ways = gradient(precision, slice(at_once)), plain_gradient(slice(at_once))
        ours, plain = map(parameters_to_vector, ways)
        return float((ours - plain).norm() / plain.norm()) < (1e-4 if precision == "float32" else 0.05)

    def project(precision: str) -> list[Tensor]:
        return gradient(precision, next(turns[precision]))

    lengths, count = tokenization.batch(positions, 0).lengths, min(at_once, len(positions))
    flops = 3 * forward_flops(recommender, lengths, [5]) * count / len(positions)
    return Stage(lambda: plain_gradient(next(turns["reference"])), project, equal, workload.precisions, count, flops)


def tokenizer_config(workload: Workload) -> TokenizerConfig:
    sizes, num_items = workload.sizes, workload.tokenization.interactions.num_items
    return TokenizerConfig(
        dataset=workload.folder.name,
        data_dir=str(workload.folder.parent),
        hidden_sizes=list(sizes.hidden_sizes),
        codebook_size=[*workload.level_sizes[:-1], num_items + 1],  # an untrained network collides often
        epochs=sizes.kept_epochs,
        save_last=sizes.kept_epochs,
        device=str(workload.device),
    )


def make_rqvae(config: TokenizerConfig, inputs: Tensor) -> RQVAE:
    """Return a fresh RQ-VAE whose codes are encoded items: k-means would take longer than what is measured."""
    torch.manual_seed(0)
    model = build_model(config).to(inputs.device)
    residual = model.latents(inputs)
    for layer in model.quantization_layer.quantization_layers:
        size = len(layer.codebook)
        rows = torch.randperm(len(residual), device=residual.device)[:size]
        layer.initialize_(residual[rows].repeat(-(-size // len(rows)), 1)[:size])
        residual = residual - layer.codebook[torch.cdist(residual, layer.codebook).argmin(1)]
    return model


def num_weights(module: torch.nn.Module) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if name.endswith("weight"))


def rqvae_epoch(workload: Workload) -> Stage:
    """An epoch of RQ-VAE training on all training items."""
    config = tokenizer_config(workload)
    count = len(training_items(workload.tokenization.interactions))
    inputs = torch.randn(count, config.input_size, generator=torch.Generator().manual_seed(0)).to(workload.device)
    settings = {"float32": config, "bf16": replace(config, mixed_precision="bf16")}

    def fresh() -> TrainingState:
        model = make_rqvae(config, inputs).train()
        return TrainingState(model, build_optimizer(model, config))

    states, plain = {precision: fresh() for precision in PRECISIONS}, fresh()

    def plain_epoch(state: TrainingState = plain) -> float:
        torch.manual_seed(config.rand_seed * 1_000_003 % 2**63)  # epoch 0's order, as train_epoch draws it
        order = torch.randperm(count, device=workload.device).tolist()
        return reference.rqvae_epoch(state.model, state.optimizer, inputs, order, config.batch_size)

    def equal(precision: str) -> bool:
        ours, other = fresh(), fresh()
        loss, plain_loss = train_epoch(ours, inputs, settings[precision])["loss"], plain_epoch(other)
        if precision == "bf16":
            return abs(loss - plain_loss) < CLOSE_BF16["rtol"] * plain_loss
        same_codes = torch.equal(ours.model.encode(inputs), other.model.encode(inputs))
        return abs(loss - plain_loss) < 1e-5 * plain_loss and same_codes

    def project(precision: str) -> dict[str, float]:
        return train_epoch(states[precision], inputs, settings[precision])

    flops = count * 6 * num_weights(plain.model)
    flops += 3 * 4 * count * sum(workload.level_sizes[:-1]) * config.hidden_sizes[-1]
    return Stage(plain_epoch, project, equal, PRECISIONS, flops=flops)


def trained_tokenizer(workload: Workload) -> tuple[TokenizerConfig, Tensor, list[Path]]:
    """Write a tokenizer's folder as a finished training leaves it; three checkpoints and links stand for all epochs.

    Returns:
        Its settings, its inputs float32 [N, input size], and the checkpoints of the reference way.
    """
    scratch, num_items = workload.scratch, workload.tokenization.interactions.num_items
    config = replace(tokenizer_config(workload), ckpt_name="exported", data_dir=str(scratch), dataset="export")
    config.folder.mkdir()
    for name in ("all_item_seqs.json", "id_mapping.json"):
        (config.folder / name).symlink_to((workload.folder / name).resolve())
    rng, size = np.random.default_rng(0), config.sent_emb_pca
    embeddings = rng.standard_normal((num_items, config.sent_emb_dim)).astype(np.float32)
    embeddings.tofile(config.embedding_file)
    components = np.linalg.qr(rng.standard_normal((config.sent_emb_dim, size)))[0].T.astype(np.float32)
    whitening = Whitening(embeddings.mean(0), components, np.ones(size, dtype=np.float32))
    whitening.save(config.tokenizer_folder / "pca.safetensors")
    inputs = torch.from_numpy(whitening.apply(embeddings)).to(workload.device)
    model = make_rqvae(config, inputs)
    optimizer = build_optimizer(model, config)
    checkpoints = [scratch / f"{epoch}.pth" for epoch in range(1, config.epochs + 1)]
    for epoch, checkpoint in enumerate(checkpoints, start=1):
        if epoch <= 3:
            with torch.no_grad():
                for parameter in model.encoder.parameters():
                    parameter.mul_(1.001)
            save_weights(epoch_file(config, epoch), encoding_state(model), epoch=epoch)
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint)
        else:
            os.link(epoch_file(config, 1 + epoch % 3), epoch_file(config, epoch))
            os.link(checkpoints[epoch % 3], checkpoint)
    os.link(epoch_file(config, 1), epoch_file(config, None))
    settings = training_settings(config, embeddings=embeddings)
    write_json(config.tokenizer_folder / TRAINING_FILE, {"finished": True, "settings": settings})
    return config, inputs, checkpoints


def export_tokenizers(workload: Workload) -> Stage:
    """The semantic IDs of all kept epochs."""
    config, inputs, checkpoints = trained_tokenizer(workload)
    names, model = workload.tokenization.interactions.item_names[1:], build_model(config).to(workload.device)

    def plain_export(count: int | None = None) -> list[Path]:
        return reference.export(model, checkpoints[:count], inputs, names, workload.scratch)

    def equal(precision: str) -> bool:
        export(config)
        files = [next(config.tokenizer_folder.glob(f"*_{epoch}.sem_ids")) for epoch in (1, 2, 3)[: config.epochs]]
        ours, plain = ([json.loads(file.read_text()) for file in way] for way in (files, plain_export(3)))
        return ours == plain

    codebooks = sum(workload.level_sizes[:-1]) * config.hidden_sizes[-1]
    flops = 2.0 * len(names) * (config.epochs + 1) * (num_weights(model.encoder) + codebooks)
    return Stage(plain_export, lambda precision: export(config), equal, flops=flops)


def load(workload: Workload) -> Stage:
    """From files to everything that training reads, all tokenizers."""

    def equal(precision: str) -> bool:
        (tokenization, splits), plain = workload.load(), workload.load_reference()
        interactions, names = tokenization.interactions, tokenization.interactions.item_names
        for split, positions in splits.items():
            if len(positions) != len(plain.splits[split]):
                return False
            for row in np.random.default_rng(2).integers(len(positions), size=1000):
                history = [names[item] for item in interactions.history(int(positions[row]))]
                if plain.splits[split][row] != reference.Example(history, names[interactions.items[positions[row]]]):
                    return False
        plain_tokens = [[table[name] for name in names[1:]] for table in plain.tokens]
        return np.array_equal(tokenization.table.tokens[:, 1:].cpu(), plain_tokens)

    # Other stages' gigabyte of Python objects would slow whatever is loaded beside it.
    workload.__dict__.pop("loaded_reference", None)
    return Stage(workload.load_reference, lambda precision: workload.load(), equal)


STAGES: dict[str, Callable[[Workload], Stage]] = {
    "train_step": partial(train_step, compiled=False),
    "eval_beam20": partial(evaluation, num_beams=20),
    "eval_beam50": partial(evaluation, num_beams=50),
    "influence": influence,
    "rqvae_epoch": rqvae_epoch,
    "export": export_tokenizers,
    "load": load,
    "train_step_compiled": partial(train_step, compiled=True),
}
