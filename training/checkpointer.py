"""What a training run needs to go on exactly where it was: when it is saved, and how it is taken back."""

import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.optim import Optimizer

from model.recommender import Recommender
from training.data import Data
from training.run_folder import RunFolder
from utils.files import atomic_folder
from utils.interrupts import Stopped, stop_requested
from utils.snapshots import Snapshot, link_folder, load_optimizer_, optimizer_tensors, under_prefix, write_snapshot

AGREE_EVERY = 10  # optimizer steps between two agreements of several processes on saving or stopping


@dataclass
class TrainingState:
    """How far training is: with the tensors of `state_tensors`, all that a resumed run needs."""

    epoch: int = 0  # epochs trained
    closed: int = 0  # those of them whose evaluation and checkpoint, where due, are done too
    step: int = 0  # optimizer steps taken
    epoch_seconds: float = 0.0  # spent on the unfinished epoch
    window_size: int = 0  # examples of all processes since the loss was last reported
    best_epoch: int = 0  # 1-based, of the best validation score; 0 before the first evaluation
    best_score: float = -math.inf  # its mean over the tokenizers
    best_valid: list[dict[str, float]] = field(default_factory=list)  # its metrics per tokenizer group
    stopped: bool = False  # whether early stopping has ended training
    valid_parts: list[dict[str, float]] = field(default_factory=list)  # of the groups an evaluation is done with
    testing: bool = False  # whether the test has begun; the weights are the best ones then
    test_parts: list[dict[str, float]] = field(default_factory=list)  # metrics of the groups that it is done with
    stages: int = 0  # finished curriculum stages
    influences: list[list[float]] = field(default_factory=list)  # scores [stages][G] at the ends of the stages
    learning_rates: list[float] = field(default_factory=list)  # those at the ends of the stages
    influence_parts: list[float] = field(default_factory=list)  # scores of the groups an estimate is done with


def process_state(loss_sums: Tensor) -> dict[str, Tensor]:
    """Return what differs between processes: random generators, and the partial sums of the epoch's loss."""
    state = {"cpu_rng": torch.get_rng_state(), "loss_sums": loss_sums.cpu()}
    if loss_sums.is_cuda:
        state["cuda_rng"] = torch.cuda.get_rng_state(loss_sums.device)
    return state


def state_tensors(recommender: Recommender, optimizer: Optimizer, processes: list[dict]) -> dict[str, Tensor]:
    """Return the whole state; `processes` holds each one's `process_state`."""
    parts = {"model": dict(recommender.named_parameters()), "optimizer": optimizer_tensors(optimizer)}
    parts |= {f"process{index}": state for index, state in enumerate(processes)}
    return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


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
    saved = [tensor for name, tensor in tensors.items() if name.endswith("/loss_sums")]
    mine = under_prefix(f"process{process_index}", tensors)
    if len(saved) == num_processes:
        loss_sums.copy_(mine["loss_sums"])
    elif process_index == 0:
        loss_sums.copy_(torch.stack(saved).sum(dim=0))
    if "cpu_rng" in mine:
        torch.set_rng_state(mine["cpu_rng"])
    if "cuda_rng" in mine and loss_sums.is_cuda:
        torch.cuda.set_rng_state(mine["cuda_rng"], loss_sums.device)


@dataclass(eq=False)
class Checkpointer:
    """Saves a run's state and its models; the main process writes, all take part."""

    accelerator: Accelerator
    run: RunFolder
    data: Data
    recommender: Recommender
    optimizer: Optimizer
    state: TrainingState
    loss_sums: Tensor  # this process's
    minutes: float  # between two saved states

    def __post_init__(self):
        self.frozen: list[dict[str, Tensor]] | None = None  # every process's state while none of them trains
        self._saved_at = time.monotonic()

    @contextmanager
    def frozen_state(self) -> Iterator[None]:
        """Mark a stretch in which no process trains, so that the main one can save the state on its own."""
        self.frozen = gather_object([process_state(self.loss_sums)])
        yield
        self.frozen = None  # left as it is on an exception, for Trainer.resumable

    def pause(self, check: Callable[[], None] = lambda: None) -> None:
        """Save the state where it is time; raise Stopped where a signal asked for it. Processes agree on either.

        Before either `check` is called, which raises an error where the state is not worth to be saved.
        """
        due, stop = time.monotonic() - self._saved_at >= 60 * self.minutes, stop_requested()
        if self.accelerator.num_processes > 1:
            if self.frozen is None and self.state.step % AGREE_EVERY:
                return
            flags = torch.tensor([due and self.accelerator.is_main_process, stop], device=self.accelerator.device)
            due, stop = (self.accelerator.reduce(flags.float(), "sum") > 0).tolist()
        if due or stop:
            check()
        if stop:
            raise Stopped("stopped by SIGTERM or SIGINT")
        if due:
            self.save()

    def save(self) -> None:
        """Write a snapshot."""
        processes = self.frozen or gather_object([process_state(self.loss_sums)])
        if self.accelerator.is_main_process:
            values = {
                "progress": asdict(self.state),
                "metrics_size": self.run.metrics_size(),
                "global_batch_size": self.data.order.global_batch_size,
                "data": self.data.sources,
            }
            tensors = state_tensors(self.recommender, self.optimizer, processes)
            write_snapshot(self.run.states, tensors, values, self.run.model if self.state.best_epoch else None)
        self._saved_at = time.monotonic()

    def restore_(self, snapshot: Snapshot) -> None:
        """Put back the tensors and the best model of a snapshot, whose values the state holds already."""
        mine = self.accelerator.process_index, self.accelerator.num_processes
        load_state_(snapshot.tensors, self.recommender, self.optimizer, self.loss_sums, *mine)
        if self.accelerator.is_main_process and self.state.best_epoch:  # a later epoch may have become the best since
            shutil.rmtree(self.run.model, ignore_errors=True)
            link_folder(snapshot.attachment, self.run.model)
        self.accelerator.wait_for_everyone()

    def save_model(self, folder: Path) -> None:
        """Write the network as it is into a model folder."""
        if self.accelerator.is_main_process:
            with atomic_folder(folder) as temporary:
                self.recommender.save_pretrained(temporary)
        self.accelerator.wait_for_everyone()

    def load_best(self) -> None:
        """Go back to the best weights so far."""
        self.accelerator.wait_for_everyone()
        self.recommender.load_pretrained(self.run.model)
