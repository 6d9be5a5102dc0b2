"""The one training loop: epochs of optimizer steps, evaluation where it is due, early stopping."""

import gc
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator

from evaluation.run import RESULTS_FILE
from model.recommender import Recommender
from training.checkpointer import Checkpointer, TrainingState
from training.config import TrainingConfig
from training.data import Data
from training.display import Display
from training.evaluator import Evaluator, text_of
from training.run_folder import RunFolder, log_hyperparameters
from utils.files import write_json
from utils.interrupts import Stopped, listening, stop_requested
from utils.snapshots import Snapshot

LOG_EVERY = 50  # optimizer steps between two readings of the loss


class Trainer:
    """Trains a recommender on batches whose tokenizers are drawn by given probabilities.

    `snapshot` was saved by an earlier run in the same folder, to go on from; it has been found to fit.
    """

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator,
        run: RunFolder,
        data: Data,
        recommender: Recommender,
        snapshot: Snapshot | None = None,
    ):
        self.config, self.accelerator, self.run = config, accelerator, run
        self.data, self.recommender = data, recommender
        batches_per_epoch = data.order.batches_per_epoch
        self.schedule_batches = config.steps or batches_per_epoch * (config.schedule_epochs or config.epochs)
        self.epochs = math.ceil(config.steps / batches_per_epoch) if config.steps else config.epochs
        self._warn_of_the_schedule()
        torch.manual_seed(config.rand_seed + accelerator.process_index)  # dropout differs between processes
        fused = accelerator.device.type == "cuda" or None  # one kernel for all parameters; the CPU keeps its own
        parameters = recommender.parameters()
        optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=fused)
        self.model, self.optimizer = accelerator.prepare(recommender, optimizer)
        self.state = TrainingState(**snapshot.values["progress"]) if snapshot else TrainingState()
        self.loss_sums = torch.zeros(2, device=accelerator.device)  # this process's: of the epoch, since the last line
        self.display = Display(config, self.epochs, data, run)
        saved = (self.optimizer, self.state, self.loss_sums)
        self.checkpointer = Checkpointer(accelerator, run, data, recommender, *saved, config.checkpoint_minutes)
        tools = (self.state, self.checkpointer, self.display)
        self.evaluator = Evaluator(config, accelerator, run, data, recommender, *tools)
        if snapshot:
            self.checkpointer.restore_(snapshot)
            self.display.skip(self.state.epoch, len(self.state.influences))
            done = f"step {self.state.step:,}, {self.state.epoch} epochs done"
            run.say(f"resumed after {done}, from {snapshot.path}")

    def _warn_of_the_schedule(self) -> None:
        """Say where the learning rate's schedule does not fit the run."""
        config, order, total = self.config, self.data.order, self.schedule_batches
        planned = order.steps_per_epoch * order.accumulation * order.num_processes * self.epochs
        if planned > 1.05 * total:
            why = f"{len(order.positions):,} examples fill global batches of {order.global_batch_size:,} badly"
            why += "; lower --gradient_accumulation_steps" if order.accumulation > 1 else ""
            if config.steps and order.batches_per_epoch * self.epochs > 1.05 * config.steps:
                why = f"--steps={config.steps:,} are rounded up to whole epochs of {order.batches_per_epoch:,}"
            self.run.say(f"the learning rate reaches 0 after {total / planned:.0%} of the steps: {why}")
        run_batches = min(total, order.batches_per_epoch * self.epochs)  # the schedule may be longer than the run
        if config.warmup_steps > run_batches / 2:
            self.run.say(
                f"warning: the learning rate rises for --warmup_steps={config.warmup_steps:,} of the run's "
                f"{run_batches:,} batches; three epochs' would be {3 * order.batches_per_epoch:,}"
            )

    @property
    def learning_rate(self) -> float:
        """That of the next optimizer step; a step advances the schedule by the batches that all processes took."""
        batches = self.state.step * self.data.order.accumulation * self.data.order.num_processes
        return self.config.lr * cosine_factor(batches, self.config.warmup_steps, self.schedule_batches)

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
                    config = self.config
                    raise MemoryError(
                        f"out of memory: {str(error).splitlines()[0]}; in training and influence estimation lower "
                        f"--train_batch_size={config.train_batch_size} and raise --gradient_accumulation_steps as "
                        f"much, in evaluation lower --eval_batch_size={config.eval_batch_size}"
                    ) from None
                # A process that waits for one that has stopped already gets a RuntimeError.
                if not isinstance(error, Stopped) and not (stop_requested() and self.checkpointer.frozen):
                    raise
                self.checkpointer.save()
                self.leave()
                raise Stopped(f"{error}; the state is saved in {self.run.states}, --resume goes on from it") from None
            finally:
                self.run.unlock()

    def leave(self) -> None:
        """Finish the trackers and leave the process group; nothing can be trained any more.

        The wrapped model goes first: were its reducer the last to hold the group, its destructor would wait, with
        Python's lock held, for the group's threads, which may be waiting for that lock.
        """
        del self.model
        self.accelerator.free_memory()
        gc.collect()
        self.accelerator.end_training()

    def fit(self, last_epoch: int, probabilities: np.ndarray) -> None:
        """Train up to and including 1-based `last_epoch`, or until early stopping; evaluate and save where it is due.

        `probabilities`, float64 [G], are the tokenizer groups' sampling probabilities.
        """
        config, state = self.config, self.state
        while state.closed < last_epoch and not state.stopped:
            if state.epoch == state.closed:
                state.valid_parts = []  # of an interrupted evaluation before --epochs was raised
                self._train_epoch(state.epoch + 1, probabilities)
                state.epoch += 1
                self.checkpointer.pause()
            epoch = state.epoch
            if epoch > config.val_delay and epoch % config.eval_interval == 0:
                self.evaluator.validate()
                if config.patience is not None and epoch - state.best_epoch >= config.patience:
                    state.stopped = True
                    self.run.say(f"stopped early: the best epoch is {state.best_epoch}, {config.patience} epochs back")
            last = epoch == self.epochs or state.stopped
            if config.save_interval is not None and (last or epoch % config.save_interval == 0):
                self.checkpointer.save_model(self.run.checkpoints / f"epoch_{epoch}")
            state.closed = epoch

    def test(self) -> dict:
        """Test the best weights with every tokenizer, and end the run; return what results.json holds."""
        results = self.evaluator.test()
        log_hyperparameters(self.accelerator, self.config, results)
        self.leave()
        if self.accelerator.is_main_process:
            write_json(self.run.path / RESULTS_FILE, results)
            shutil.rmtree(self.run.states, ignore_errors=True)  # nothing is left to go on with
        self.run.say(f"test of epoch {results['best_epoch']}  {text_of(results['test'])}")
        self.run.say(f"results: {self.run.path / RESULTS_FILE}")
        return results

    def _train_epoch(self, epoch: int, probabilities: np.ndarray) -> None:
        """Take the optimizer steps of a 1-based epoch."""
        order, state = self.data.order, self.state
        positions, groups = order.epoch(epoch, probabilities)
        started = time.perf_counter() - state.epoch_seconds
        first = state.step - (epoch - 1) * order.steps_per_epoch  # above 0 where an interrupted epoch goes on
        self.model.train()
        text = ""
        with self.display.training(epoch, first * order.global_batch_size) as advance:
            for step in range(first, order.steps_per_epoch):
                loss, size, gradient_norm = self._train_step(positions, groups, step)
                self.loss_sums += loss
                state.window_size += size
                last = step + 1 == order.steps_per_epoch
                if state.step % LOG_EVERY == 0 or last:
                    mean = self._report_steps(epoch, float(gradient_norm))
                    speed = (step + 1) * order.global_batch_size / (time.perf_counter() - started)
                    text = f"loss {mean:.4f}, {speed:,.0f} samples/s"
                advance(size, text)
                if not last:
                    state.epoch_seconds = time.perf_counter() - started
                    self.checkpointer.pause(partial(self._check_finite, self.loss_sums[0], gradient_norm))
        self._report_epoch(epoch, len(positions), time.perf_counter() - started)

    def _train_step(
        self, positions: np.ndarray, groups: np.ndarray, step: int
    ) -> tuple[torch.Tensor, int, torch.Tensor]:
        """Take one optimizer step over a global batch.

        Differs from the reference code: every example weighs the same, however unevenly the batch is cut: sums of
        losses over the global batch's size. Returns this process's sum of losses, the global batch's size, and the
        gradient's norm before clipping.
        """
        slices, size = self.data.order.micro_batches(step)
        for parameter_group in self.optimizer.param_groups:
            parameter_group["lr"] = self.learning_rate
        total = torch.zeros((), device=self.accelerator.device)
        for index, part in enumerate(slices):
            last = index + 1 == len(slices)
            weight = 1.0
            if part.start == part.stop:  # too few examples for every process: take part in the reduction with nothing
                part, weight = slice(0, 1), 0.0
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                batch = self.data.tokenization.batch(positions[part], groups[part])
                loss = weight * self.model(batch.input_ids, batch.labels, batch.lengths).sum()
                # several processes: gradients are averaged over them
                self.accelerator.backward(loss * self.accelerator.num_processes / size)
            total += loss.detach()
        gradient_norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state.step += 1
        return total, size, gradient_norm

    def _report_steps(self, epoch: int, gradient_norm: float) -> float:
        """Report, and return, the mean loss since the last report."""
        step, learning_rate = self.state.step, self.optimizer.param_groups[0]["lr"]
        loss = float(self.accelerator.reduce(self.loss_sums[1], "sum")) / self.state.window_size
        self._check_finite(loss, gradient_norm)
        values = {"loss": loss, "learning_rate": learning_rate, "gradient_norm": gradient_norm}
        tracked = {f"train/{name}": value for name, value in values.items()}
        self.run.emit("train", {"epoch": epoch, "step": step, **values}, tracked, step)
        self.loss_sums[1] = 0
        self.state.window_size = 0
        return loss

    def _check_finite(self, loss: float | torch.Tensor, gradient_norm: float | torch.Tensor) -> None:
        """Raise FloatingPointError if training has diverged at the latest step."""
        loss, gradient_norm = float(loss), float(gradient_norm)
        if math.isfinite(loss) and math.isfinite(gradient_norm):
            return
        step, learning_rate = self.state.step, self.optimizer.param_groups[0]["lr"]
        epoch = 1 + (step - 1) // self.data.order.steps_per_epoch
        raise FloatingPointError(
            f"the loss is {loss} at epoch {epoch}, step {step} (learning rate {learning_rate:.3g}, gradient "
            f"norm {gradient_norm:.3g}); lower --lr or raise --warmup_steps"
        )

    def _report_epoch(self, epoch: int, num_examples: int, seconds: float) -> None:
        """Report the mean loss of an epoch."""
        step, speed = self.state.step, num_examples / seconds
        loss = float(self.accelerator.reduce(self.loss_sums[0], "sum")) / num_examples
        self.loss_sums.zero_()
        self.state.epoch_seconds = 0.0
        self.run.emit(
            "epoch",
            {"epoch": epoch, "step": step, "loss": loss, "seconds": seconds, "samples_per_second": speed},
            {"train/epoch_loss": loss, "train/samples_per_second": speed},
            step,
            f"{self.display.epoch_name(epoch)}  loss {loss:.4f}  {speed:,.0f} samples/s  {seconds:.1f} s, "
            f"{self.display.left_in_run()}",
        )


def cosine_factor(done: int, warmup: int, total: int) -> float:
    """Return the learning rate's factor: linear warm-up, then half a cosine to zero, which it keeps.

    Differs from the reference code: there the factor rises again beyond `total`, which uneven global batches reach.
    All three count batches of one process; `done` are those before the step.
    """
    if done < warmup:
        return done / max(1, warmup)
    share = min(1.0, (done - warmup) / max(1, total - warmup))
    return 0.5 * (1.0 + math.cos(math.pi * share))
