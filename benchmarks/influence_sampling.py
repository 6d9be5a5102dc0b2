"""How well a share of the training examples reproduces exact influence scores, on a finished pre-training run.

    python -m benchmarks.influence_sampling --run=ckpt/MyData/pretrain_tau3 --epochs=[5,10,15]

The training examples are cut into 100 random parts and each part's gradient is kept, so that one pass over the data
gives the exact scores and those of every sample that is made of parts. A run keeps weights, not Adam's moments: they
are made anew by AdamW steps with a learning rate of 0 from the checkpoint, and bias-corrected.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from model.recommender import Recommender, load_recommender
from training.config import PretrainConfig
from training.curriculum import BETA_1, BETA_2, adam_direction, adam_moments, mean_gradient, sampling_probabilities
from training.data import Data, load_data
from training.setup import resolve_config
from utils.config import Epochs, expand_epochs, parse_config
from utils.files import write_json
from utils.runtime import run_command

PARTS = 100


@dataclass
class InfluenceSamplingConfig:
    """What is measured."""

    run: str
    """folder of a finished pre-training with checkpoints"""
    epochs: Epochs = "10"
    """1-based epochs of the checkpoints"""
    ratios: list[float] = field(default_factory=lambda: [0.02, 0.05, 0.1, 0.3])
    """values of --influence_sample_ratio, multiples of 0.01"""
    taus: list[float] = field(default_factory=lambda: [1.0, 3.0])
    """temperatures of the sampling probabilities"""
    moment_steps: int = 300
    """steps that Adam's moments are made of"""
    rand_seed: int = 0
    """seed of the parts and of the moments' batches"""
    output: str | None = None
    """JSON file for the scores and the table"""

    def problems(self) -> list[str]:
        """Name everything that is wrong with the settings."""
        wrong = [ratio for ratio in self.ratios if not 0.01 <= ratio <= 0.5]
        return [f"--ratios={wrong} must be in 0.01..0.5"] if wrong else []


def make_moments(recommender: Recommender, data: Data, config: PretrainConfig, steps: int) -> tuple[Tensor, Tensor]:
    """Return Adam's first and second moments [P] at the present weights, from training steps that do not move them."""
    optimizer = torch.optim.AdamW(recommender.parameters(), lr=0.0, weight_decay=0.0)
    num_groups = data.tokenization.table.num_groups
    positions, groups = data.order.epoch(1, np.full(num_groups, 1 / num_groups))
    recommender.train()
    for step in range(steps):
        part = np.arange(step * config.train_batch_size, (step + 1) * config.train_batch_size) % len(positions)
        batch = data.tokenization.batch(positions[part], groups[part])
        recommender(batch.input_ids, batch.labels, batch.lengths).mean().backward()
        torch.nn.utils.clip_grad_norm_(recommender.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    first, second = map(parameters_to_vector, adam_moments(recommender, optimizer))
    return first / (1 - BETA_1**steps), second / (1 - BETA_2**steps)


def scores_of_parts(
    recommender: Recommender, data: Data, config: PretrainConfig, settings: InfluenceSamplingConfig
) -> dict[float, np.ndarray]:
    """Return influence scores per share of the training examples, 1.0 for all: float64 [samples, G]."""
    tokenization, positions = data.tokenization, data.order.positions
    num_groups = tokenization.table.num_groups
    first, second = make_moments(recommender, data, config, settings.moment_steps)

    def gradient(part: np.ndarray, groups: range, batch_size: int = 1024) -> Tensor:
        ordered = tokenization.by_length(part)
        batches = (batch for group in groups for _, batch in tokenization.batches(ordered, group, batch_size))
        return parameters_to_vector(mean_gradient(recommender, batches, len(groups) * len(part)))

    valid = gradient(data.valid, range(num_groups)).double()
    parts = np.array_split(np.random.default_rng(settings.rand_seed).permutation(positions), PARTS)
    sizes = torch.tensor([len(part) for part in parts], dtype=torch.float32, device=first.device)
    members = {}
    for ratio in (1.0, *settings.ratios):
        count = round(ratio * PARTS)
        members[ratio] = [list(range(start, start + count)) for start in range(0, PARTS - count + 1, count)]
    scores = {ratio: np.zeros((len(samples), num_groups)) for ratio, samples in members.items()}
    for group in range(num_groups):
        gradients = torch.stack([gradient(part, range(group, group + 1)) for part in parts])  # [parts, P]
        for ratio, samples in members.items():
            for row, sample in enumerate(samples):
                weights = sizes[sample] / sizes[sample].sum()
                (direction,) = adam_direction([weights @ gradients[sample]], [first], [second])
                scores[ratio][row, group] = float(valid @ direction.double())
        print(f"tokenizer {group + 1}/{num_groups}: {scores[1.0][0, group]:.4f}", flush=True)
    return scores


def compare(scores: dict[float, np.ndarray], tau: float) -> list[dict[str, float]]:
    """Return for each share how its samples' scores and sampling probabilities stand to the exact ones."""
    exact = scores[1.0][0]
    expected = sampling_probabilities(exact, tau)
    rows = []
    for ratio, samples in sorted(scores.items())[:-1]:  # the last are the exact ones
        correlations = [spearmanr(sample, exact).statistic for sample in samples]
        differences = [np.abs(sampling_probabilities(sample, tau) - expected).max() for sample in samples]
        rows.append({
            "ratio": ratio, "tau": tau, "samples": len(samples),
            "rank_correlation_mean": float(np.mean(correlations)), "rank_correlation_min": float(np.min(correlations)),
            "largest_difference_mean": float(np.mean(differences)),
            "largest_difference_max": float(np.max(differences)),
            "probabilities": [float(expected.min()), float(expected.max())],
        })  # fmt: skip
    return rows


def main(argv: list[str] | None = None) -> None:
    """Measure every checkpoint and print the table."""
    settings, _ = parse_config(InfluenceSamplingConfig, argv, "python -m benchmarks.influence_sampling", __doc__)
    run, accelerator = Path(settings.run), Accelerator()
    config, _ = parse_config(PretrainConfig, [f"--config_file={run / 'config.yaml'}"], "config.yaml", "")
    data = load_data(*resolve_config(config, set()), accelerator)
    report = {}
    for epoch in expand_epochs(settings.epochs):
        torch.manual_seed(settings.rand_seed)
        recommender = load_recommender(run / "checkpoints" / f"epoch_{epoch}").to(accelerator.device)
        scores = scores_of_parts(recommender, data, config, settings)
        rows = [row for tau in settings.taus for row in compare(scores, tau)]
        report[str(epoch)] = {"scores": {str(key): value.tolist() for key, value in scores.items()}, "table": rows}
        print(f"epoch {epoch}", *map(json.dumps, rows), sep="\n", flush=True)
        if settings.output:
            write_json(settings.output, report)


if __name__ == "__main__":
    run_command(main)
