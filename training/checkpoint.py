"""What a training run needs to go on exactly where it was, as tensors: weights, optimizer, each process's own state."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from model.recommender import Recommender
from utils.snapshots import load_optimizer_, optimizer_tensors, under_prefix, with_prefix

STATE_FOLDER = "state"  # inside the run's folder

# Settings that a resumed run may change: how long, where to, how often; none changes what a step computes, but for
# `epochs`, on whose number the learning rates of the steps to come depend.
RESUMABLE_CHANGES = (
    *("epochs", "patience", "save_interval", "checkpoint_minutes", "gradient_accumulation_steps"),
    *("data_dir", "ckpt_dir", "results_dir", "log_dir", "log_with", "tensorboard_log_dir"),
)

# Settings in which a finished run may differ and still be the one that is asked for: where it lies, how it was watched.
FINISHED_CHANGES = ("checkpoint_minutes", "data_dir", "ckpt_dir", "log_dir", "log_with", "tensorboard_log_dir")


def process_state(loss_sums: Tensor) -> dict[str, Tensor]:
    """Return what differs between processes: random generators, and the partial sums of the epoch's loss."""
    state = {"cpu_rng": torch.get_rng_state(), "loss_sums": loss_sums.cpu()}
    if loss_sums.is_cuda:
        state["cuda_rng"] = torch.cuda.get_rng_state(loss_sums.device)
    return state


def state_tensors(
    recommender: Recommender, optimizer: Optimizer, processes: list[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Return the whole state; `processes` holds each one's `process_state`."""
    tensors = with_prefix("model", dict(recommender.named_parameters()))
    tensors |= with_prefix("optimizer", optimizer_tensors(optimizer))
    for index, state in enumerate(processes):
        tensors |= with_prefix(f"process{index}", state)
    return tensors


@torch.no_grad()
def load_state_(
    tensors: dict[str, Tensor],
    recommender: Recommender,
    optimizer: Optimizer,
    loss_sums: Tensor,
    process_index: int,
    num_processes: int,
) -> None:
    """Put the state back.

    With another number of processes than the state was saved with, the sums go to the first one, and a process that
    was not there before keeps its own random generator: order and tokenizer draws stay exact, dropout does not.
    """
    weights = under_prefix("model", tensors)
    for name, parameter in recommender.named_parameters():
        parameter.copy_(weights[name])
    load_optimizer_(optimizer, under_prefix("optimizer", tensors))
    saved = [name for name in tensors if name.endswith("/loss_sums")]
    mine = under_prefix(f"process{process_index}", tensors)
    if len(saved) == num_processes:
        loss_sums.copy_(mine["loss_sums"])
    elif process_index == 0:
        loss_sums.copy_(torch.stack([tensors[name] for name in saved]).sum(dim=0))
    if "cpu_rng" in mine:
        torch.set_rng_state(mine["cpu_rng"])
    if "cuda_rng" in mine and loss_sums.is_cuda:
        torch.cuda.set_rng_state(mine["cuda_rng"], loss_sums.device)
