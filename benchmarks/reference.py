"""The reference way: the same mathematics done plainly, as the thing to be faster than and equal to.

Histories are padded to the longest possible, one Python call tokenizes one example, T5 is Hugging Face's with eager
attention, every beam repeats its history, nothing is cached, and every number is read back as soon as it is there.
Nothing here uses model/, training/ or data/, except that the RQ-VAE is the project's module.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import T5ForConditionalGeneration

from tokenizer.rqvae import RQVAE

Tokens = dict[str, list[int]]  # item name -> tokens
Batch = dict[str, Tensor]  # input_ids and attention_mask int64 [B, 82], labels int64 [B, 5]


@dataclass
class Example:
    """A user's item names so far (a copy), and the next one."""

    history: list[str]
    target: str


@dataclass
class LoadedDataset:
    """Everything that training reads."""

    splits: dict[str, list[Example]]
    tokens: list[Tokens]  # of each tokenizer
    eos_token: int  # end of sequence; the one user token is the token before it


def load(folder: Path, sem_ids_files: Sequence[Path], level_sizes: Sequence[int]) -> LoadedDataset:
    """Read a dataset folder: leave-one-out splits as lists of examples, each tokenizer as a dictionary."""
    sequences = json.loads((folder / "all_item_seqs.json").read_text())
    json.loads((folder / "id_mapping.json").read_text())
    splits: dict[str, list[Example]] = {"train": [], "valid": [], "test": []}
    for sequence in sequences.values():
        for place in range(1, len(sequence)):
            split = {len(sequence) - 1: "test", len(sequence) - 2: "valid"}.get(place, "train")
            splits[split].append(Example(sequence[:place], sequence[place]))
    tokens = []
    for file in sem_ids_files:
        codes = json.loads(file.read_text())
        tokens.append({item: [1 + sum(level_sizes[:i]) + c for i, c in enumerate(row)] for item, row in codes.items()})
    return LoadedDataset(splits, tokens, sum(level_sizes) + 2)


def tokenize(example: Example, tokens: Tokens, eos_token: int, max_items: int = 20) -> tuple[list[int], ...]:
    """Return input_ids, attention_mask and labels of one example."""
    input_ids = [eos_token - 1]
    for item in example.history[-max_items:]:
        input_ids.extend(tokens[item])
    input_ids.append(eos_token)
    padding = max_items * len(tokens[example.target]) + 2 - len(input_ids)
    mask = [1] * len(input_ids) + [0] * padding
    return input_ids + [0] * padding, mask, tokens[example.target] + [eos_token]


def make_batch(examples: Sequence[Example], dataset: LoadedDataset, groups: Sequence[int]) -> Batch:
    """Tokenize each example with the tokenizer of its 0-based group."""
    pairs = zip(examples, groups, strict=True)
    rows = [tokenize(example, dataset.tokens[group], dataset.eos_token) for example, group in pairs]
    columns = map(torch.tensor, zip(*rows, strict=True))
    return dict(zip(("input_ids", "attention_mask", "labels"), columns, strict=True))


def make_network(recommender: nn.Module) -> T5ForConditionalGeneration:
    """Return Hugging Face's own network with eager attention and a copy of the weights of the project's."""
    t5 = T5ForConditionalGeneration(recommender.t5.config)
    t5.config._attn_implementation = "eager"
    t5.load_state_dict(recommender.t5.state_dict())
    return t5.to(recommender.t5.device)


def forward(t5: T5ForConditionalGeneration, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the mean loss and the logits [B, 5, V]."""
    output = t5(**{name: value.to(t5.device) for name, value in batch.items()})
    return output.loss, output.logits


def train_step(t5: T5ForConditionalGeneration, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    """Take one optimizer step and return the loss."""
    loss, _ = forward(t5, batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(t5.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


@torch.no_grad()
def beam_search(
    t5: T5ForConditionalGeneration, batch: Batch, num_levels: int, num_beams: int, num_return: int
) -> tuple[Tensor, Tensor]:
    """Return the best sequences int64 [B, k, L] and their mean log-probabilities per level float32 [B, k]."""
    num_rows = len(batch["input_ids"])
    input_ids, mask = (batch[k].to(t5.device).repeat_interleave(num_beams, 0) for k in ("input_ids", "attention_mask"))
    encoded = t5.encoder(input_ids, mask).last_hidden_state
    sequences = torch.zeros(num_rows * num_beams, 1, dtype=torch.int64, device=t5.device)
    scores = torch.full((num_rows, num_beams), float("-inf"), device=t5.device)
    scores[:, 0] = 0.0  # the beams are still the same: only the first counts
    for _ in range(num_levels):
        output = t5(encoder_outputs=(encoded,), attention_mask=mask, decoder_input_ids=sequences, use_cache=False)
        log_probs = F.log_softmax(output.logits[:, -1], dim=-1)
        vocab_size = log_probs.shape[-1]
        candidates = (scores.view(-1, 1) + log_probs).view(num_rows, -1)
        scores, chosen = candidates.topk(num_beams, dim=1)
        rows = torch.arange(num_rows, device=t5.device).unsqueeze(1) * num_beams + chosen // vocab_size
        sequences = torch.cat([sequences[rows.flatten()], (chosen % vocab_size).view(-1, 1)], dim=1)
    sequences = sequences[:, 1:].view(num_rows, num_beams, num_levels)
    return sequences[:, :num_return], scores[:, :num_return] / num_levels


def influence_gradient(
    t5: T5ForConditionalGeneration, examples: Sequence[Example], dataset: LoadedDataset, group: int, batch_size: int
) -> list[Tensor]:
    """Return the mean gradient of one tokenizer's examples, batch after batch, per parameter."""
    t5.eval()
    total = [torch.zeros_like(parameter) for parameter in t5.parameters()]
    for start in range(0, len(examples), batch_size):
        part = examples[start : start + batch_size]
        t5.zero_grad()
        loss, _ = forward(t5, make_batch(part, dataset, [group] * len(part)))
        loss.backward()
        for into, parameter in zip(total, t5.parameters(), strict=True):
            into += parameter.grad * len(part) / len(examples)
    return total


def rqvae_epoch(model: RQVAE, optimizer: torch.optim.Optimizer, inputs: Tensor, order: list[int], size: int) -> float:
    """Train one epoch in the given order, batches of `size` from a DataLoader, and return the mean loss."""
    model.train()
    total = 0.0
    for (batch,) in DataLoader(TensorDataset(inputs), batch_size=size, sampler=order):
        output = model(batch)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        total += output.loss.item() * len(batch)
    return total / len(inputs)


@torch.no_grad()
def export(
    model: RQVAE, checkpoints: Sequence[Path], inputs: Tensor, item_names: Sequence[str], folder: Path
) -> list[Path]:
    """Write the semantic IDs of every checkpoint: one load and one pass over all items each."""
    files = []
    for number, checkpoint in enumerate(checkpoints):
        model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
        model.eval()
        rows: list[list[int]] = []
        for (batch,) in DataLoader(TensorDataset(inputs), batch_size=2048):
            rows.extend(model.quantization_layer(model.encoder(batch))[1].tolist())
        seen: dict[str, int] = {}
        semantic_ids = {}
        for item, row in zip(item_names, rows, strict=True):
            key = str(row)
            seen[key] = seen.get(key, 0) + 1
            semantic_ids[item] = [*row, seen[key]]
        files.append(folder / f"{number}.sem_ids")
        files[-1].write_text(json.dumps(semantic_ids, indent=4))
    return files
