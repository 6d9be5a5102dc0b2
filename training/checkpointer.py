"""What a training run needs to go on exactly where it was, and when it is saved, taken back, and left."""

import gc
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.optim import Optimizer

from model.recommender import Recommender
from utils.files import atomic_folder
from utils.interrupts import Stopped, listening, stop_requested
from utils.snapshots import Snapshot, link_folder, load_optimizer_, optimizer_tensors, under_prefix, write_snapshot

if TYPE_CHECKING:
    from training.trainer import Trainer

STATE_FOLDER = "state"  # inside the run's folder
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


class Checkpointer:
    """Saves a trainer's state and its models, and ends the run where a signal asks for it."""

    def __init__(self, trainer: "Trainer"):
        self.trainer = trainer
        self.folder = trainer.run.path / STATE_FOLDER  # of the run's states
        self.best_folder = trainer.run.path / "model"  # the model folder with the best weights so far
        self._saved_at = time.monotonic()
        self._frozen: list[dict[str, Tensor]] | None = None  # every process's state while none of them trains

    @contextmanager
    def resumable(self) -> Iterator[None]:
        """Save the state before SIGTERM or SIGINT ends what happens inside, and give the folder back at the end.

        Raises Stopped where one of the two came, and MemoryError where a batch is too large for the device.
        """
        with listening():
            try:
                yield
            except (Stopped, RuntimeError) as error:
                if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                    config = self.trainer.config
                    raise MemoryError(
                        f"out of memory: {str(error).splitlines()[0]}; in training and influence estimation lower "
                        f"--train_batch_size={config.train_batch_size} and raise --gradient_accumulation_steps as "
                        f"much, in evaluation lower --eval_batch_size={config.eval_batch_size}"
                    ) from None
                # A process that waits for one that has stopped already gets a RuntimeError.
                if not isinstance(error, Stopped) and not (stop_requested() and self._frozen):
                    raise
                self._save()
                self.leave()
                raise Stopped(f"{error}; the state is saved in {self.folder}, --resume goes on from it") from None
            finally:
                self.trainer.run.unlock()

    @contextmanager
    def frozen_state(self) -> Iterator[None]:
        """Mark a stretch in which no process trains, so that the main one can save the state on its own."""
        self._frozen = gather_object([process_state(self.trainer.loss_sums)])
        yield
        self._frozen = None  # left as it is on an exception, for `resumable`

    def pause(self, gradient_norm: float | Tensor = 0.0) -> None:
        """Save the state where it is time; raise Stopped where a signal asked for it. Processes agree on either.

        Raises FloatingPointError where the latest step's gradient was not finite: what it made is not saved.
        """
        trainer, accelerator = self.trainer, self.trainer.accelerator
        due = time.monotonic() - self._saved_at >= 60 * trainer.config.checkpoint_minutes
        stop = stop_requested()
        if accelerator.num_processes > 1:
            if self._frozen is None and trainer.state.step % AGREE_EVERY:
                return
            flags = torch.tensor([float(due and accelerator.is_main_process), float(stop)], device=accelerator.device)
            due, stop = (accelerator.reduce(flags, "sum") > 0).tolist()
        if due or stop:
            trainer.check_finite(float(trainer.loss_sums[0]), float(gradient_norm))
        if stop:
            raise Stopped("stopped by SIGTERM or SIGINT")
        if due:
            self._save()

    def _save(self) -> None:
        """Write a snapshot."""
        trainer = self.trainer
        processes = self._frozen or gather_object([process_state(trainer.loss_sums)])
        if trainer.accelerator.is_main_process:
            values = {
                "progress": asdict(trainer.state),
                "metrics_size": trainer.run.metrics_size(),
                "global_batch_size": trainer.data.order.global_batch_size,
                "data": trainer.data.fingerprint,
            }
            tensors = state_tensors(trainer.recommender, trainer.optimizer, processes)
            write_snapshot(self.folder, tensors, values, self.best_folder if trainer.state.best_epoch else None)
        self._saved_at = time.monotonic()

    def restore_(self, snapshot: Snapshot) -> None:
        """Put back the tensors and the best model of a snapshot, whose values the trainer's state holds already."""
        trainer, processes = self.trainer, self.trainer.accelerator
        mine = processes.process_index, processes.num_processes
        load_state_(snapshot.tensors, trainer.recommender, trainer.optimizer, trainer.loss_sums, *mine)
        if processes.is_main_process and trainer.state.best_epoch:  # a later epoch may have become the best since
            shutil.rmtree(self.best_folder, ignore_errors=True)
            link_folder(snapshot.attachment, self.best_folder)
        processes.wait_for_everyone()

    def save_model(self, folder: Path) -> None:
        """Write the network as it is into a model folder."""
        if self.trainer.accelerator.is_main_process:
            with atomic_folder(folder) as temporary:
                self.trainer.recommender.save_pretrained(temporary)
        self.trainer.accelerator.wait_for_everyone()

    def load_best(self) -> None:
        """Go back to the best weights so far."""
        self.trainer.accelerator.wait_for_everyone()
        self.trainer.recommender.load_pretrained(self.best_folder)

    def leave(self) -> None:
        """Finish the trackers and leave the process group; nothing can be trained any more.

        The wrapped model goes first: were its reducer the last to hold the group, its destructor would wait, with
        Python's lock held, for the group's threads, which may be waiting for that lock.
        """
        del self.trainer.model
        self.trainer.accelerator.free_memory()
        gc.collect()
        self.trainer.accelerator.end_training()
