"""The one training loop: epochs, evaluation, early stopping, checkpoints, the final test."""

import gc
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from data.batching import Tokenization, TrainingOrder
from data.token_table import Group
from evaluation.predict import Predictions, predict
from evaluation.results import write_results
from evaluation.run import RESULTS_FILE, results_folder_of
from model.recommender import Recommender
from training.checkpoint import STATE_FOLDER, load_state_, process_state, state_tensors
from training.config import TrainingConfig
from training.progress import Live, log_hyperparameters
from training.run_folder import RunFolder
from training.schedule import cosine_factor
from utils.advice import validation_advice
from utils.environment import peak_memory_mb
from utils.files import atomic_folder, write_json
from utils.interrupts import Stopped, listening, stop_requested
from utils.snapshots import Snapshot, link_folder, write_snapshot

LOG_EVERY = 50  # optimizer steps between two readings of the loss
AGREE_EVERY = 10  # optimizer steps between two agreements of several processes on saving or stopping


@dataclass
class Data:
    """A dataset ready for training.

    Attributes:
        tokenization: Makes batches of any examples.
        order: The training examples, and which of them each step sees.
        valid: int, target positions of all validation examples (influence looks at these).
        valid_sample: Those that evaluation looks at.
        test: Those of the test.
    """

    tokenization: Tokenization
    order: TrainingOrder
    valid: np.ndarray
    valid_sample: np.ndarray
    test: np.ndarray

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """Hashes of what training reads: {"interactions": ..., "semantic IDs of tokenizer <label>": ...}."""
        table, interactions = self.tokenization.table, self.tokenization.interactions
        return {"interactions": interactions.sha256} | {
            f"semantic IDs of tokenizer {label}": digest
            for label, digest in zip(table.labels, table.sha256, strict=True)
        }


@dataclass
class Progress:
    """How far training is: with the tensors of training.checkpoint, all that a resumed run needs.

    Attributes:
        epoch: Epochs trained.
        closed: Those of them whose evaluation and checkpoint, where due, are done too.
        step: Optimizer steps taken.
        epoch_seconds: Time spent on the unfinished epoch.
        window_size: Examples of all processes since the loss was last reported.
        best_epoch: 1-based epoch of the best validation score, 0 before the first evaluation.
        best_score: Its mean over the tokenizers.
        best_valid: Its metrics per tokenizer group.
        stopped: Whether early stopping has ended training.
        valid_parts, test_parts: Metrics of the tokenizer groups that an unfinished evaluation is done with.
        testing: Whether the test has begun; the weights are the best ones then.
        stages: Finished curriculum stages.
        influences: float [stages][G], influence scores at the ends of the stages.
        learning_rates: Those at the ends of the stages.
        influence_parts: Scores of the tokenizer groups that an unfinished estimate is done with.
    """

    epoch: int = 0
    closed: int = 0
    step: int = 0
    epoch_seconds: float = 0.0
    window_size: int = 0
    best_epoch: int = 0
    best_score: float = -math.inf
    best_valid: list[dict[str, float]] = field(default_factory=list)
    stopped: bool = False
    valid_parts: list[dict[str, float]] = field(default_factory=list)
    testing: bool = False
    test_parts: list[dict[str, float]] = field(default_factory=list)
    stages: int = 0
    influences: list[list[float]] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    influence_parts: list[float] = field(default_factory=list)


class Trainer:
    """Trains a recommender on batches whose tokenizers are drawn by given probabilities.

    Args:
        config: Settings of either stage.
        accelerator: Processes, precision, trackers.
        run: Where log, checkpoints and results go.
        data: The examples.
        recommender: The model.
        snapshot: State of an earlier run in the same folder to go on from.
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
        self.config, self.accelerator, self.run, self.data = config, accelerator, run, data
        self.recommender = recommender
        order = data.order
        self.total_positions = config.steps or order.batches_per_epoch * (config.schedule_epochs or config.epochs)
        self.epochs = math.ceil(config.steps / order.batches_per_epoch) if config.steps else config.epochs
        planned = order.steps_per_epoch * order.accumulation * order.num_processes * self.epochs
        if planned > 1.05 * self.total_positions:
            run.say(
                f"the learning rate reaches 0 after {self.total_positions / planned:.0%} of the steps: "
                f"{len(order.positions):,} examples fill global batches of {order.global_batch_size:,} badly; "
                "lower --gradient_accumulation_steps"
            )
        if config.warmup_steps > self.total_positions / 2:
            run.say(
                f"warning: the learning rate rises for --warmup_steps={config.warmup_steps:,} of the run's "
                f"{self.total_positions:,} batches; three epochs' would be {3 * order.batches_per_epoch:,}"
            )
        self.progress = Progress()
        torch.manual_seed(config.rand_seed + accelerator.process_index)  # dropout differs between processes
        optimizer = torch.optim.AdamW(recommender.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.model, self.optimizer = accelerator.prepare(recommender, optimizer)
        self.loss_sums = torch.zeros(2, device=accelerator.device)  # this process's: of the epoch, since the last line
        splits = {"train": order.positions, "valid": data.valid, "valid_sample": data.valid_sample, "test": data.test}
        sizes = {split: len(positions) for split, positions in splits.items()}
        self.live = Live(config, self.epochs, sizes, len(self.groups), run.say, accelerator.is_main_process)
        self._scores: list[float] = []  # of the evaluations since this process began
        self._saved_at = time.monotonic()
        self._frozen: list[dict[str, torch.Tensor]] | None = None  # every process's state while none of them trains
        if snapshot is not None:
            self._resume(snapshot)

    @property
    def groups(self) -> list[Group]:
        return self.data.tokenization.table.groups

    @property
    def best_folder(self) -> Path:
        """The model folder with the best weights so far."""
        return self.run.path / "model"

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next optimizer step.

        A step advances the schedule by the batches that all processes took for it.
        """
        position = self.progress.step * self.data.order.accumulation * self.data.order.num_processes
        return self.config.lr * cosine_factor(position, self.config.warmup_steps, self.total_positions)

    def fit(self, last_epoch: int, probabilities: np.ndarray) -> None:
        """Train up to and including 1-based `last_epoch`, or until early stopping.

        Args:
            last_epoch: Evaluation and checkpoints happen on the way, where they are due.
            probabilities: float64 [G], sampling probability of each tokenizer group.
        """
        config, progress = self.config, self.progress
        while progress.closed < last_epoch and not progress.stopped:
            if progress.epoch == progress.closed:
                self._train_epoch(progress.epoch + 1, probabilities)
                progress.epoch += 1
                self.pause()
            epoch = progress.epoch
            if epoch > config.val_delay and epoch % config.eval_interval == 0:
                self._validate()
                if config.patience is not None and epoch - progress.best_epoch >= config.patience:
                    progress.stopped = True
                    self.run.say(
                        f"stopped early: the best epoch is {progress.best_epoch}, {config.patience} epochs back"
                    )
            last = epoch == self.epochs or progress.stopped
            if config.save_interval is not None and (last or epoch % config.save_interval == 0):
                self._save_model(self.run.path / "checkpoints" / f"epoch_{epoch}")
            progress.closed = epoch

    def _train_epoch(self, epoch: int, probabilities: np.ndarray) -> None:
        """Take the optimizer steps of a 1-based epoch."""
        order, progress = self.data.order, self.progress
        positions, groups = order.epoch(epoch, probabilities)
        started = time.perf_counter() - progress.epoch_seconds
        first = progress.step - (epoch - 1) * order.steps_per_epoch  # above 0 where an interrupted epoch goes on
        self.model.train()
        text = ""
        with self.live.training(epoch, first * order.global_batch_size) as advance:
            for step in range(first, order.steps_per_epoch):
                loss, size, gradient_norm = self._train_step(positions, groups, step)
                self.loss_sums += loss
                progress.window_size += size
                last = step + 1 == order.steps_per_epoch
                if progress.step % LOG_EVERY == 0 or last:
                    mean = float(self.accelerator.reduce(self.loss_sums[1], "sum")) / progress.window_size
                    speed = (step + 1) * order.global_batch_size / (time.perf_counter() - started)
                    text = f"loss {mean:.4f}, {speed:,.0f} samples/s"
                    self._log_step(epoch, mean, float(gradient_norm))
                    self.loss_sums[1] = 0
                    progress.window_size = 0
                advance(size, text)
                if not last:
                    progress.epoch_seconds = time.perf_counter() - started
                    self.pause(gradient_norm)
        seconds = time.perf_counter() - started
        mean = float(self.accelerator.reduce(self.loss_sums[0], "sum")) / len(positions)
        self.loss_sums.zero_()
        progress.epoch_seconds = 0.0
        speed = len(positions) / seconds
        self.run.say(
            f"{self.live.epoch_name(epoch)}  loss {mean:.4f}  {speed:,.0f} samples/s  {seconds:.1f} s, "
            f"{self.live.left_in_run()}"
        )
        self.run.record("epoch", epoch=epoch, step=progress.step, loss=mean, seconds=seconds, samples_per_second=speed)
        self.accelerator.log({"train/epoch_loss": mean, "train/samples_per_second": speed}, step=progress.step)

    def _train_step(
        self, positions: np.ndarray, groups: np.ndarray, step: int
    ) -> tuple[torch.Tensor, int, torch.Tensor]:
        """Take one optimizer step over a global batch.

        Every example weighs the same, however unevenly the batch is cut: sums of losses over the global batch's size.

        Returns:
            This process's sum of losses, the global batch's size, and the gradient's norm before clipping.
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
        self.progress.step += 1
        return total, size, gradient_norm

    def _log_step(self, epoch: int, loss: float, gradient_norm: float) -> None:
        """Report the mean loss since the last report.

        Raises:
            FloatingPointError: The loss is not finite.
        """
        step, learning_rate = self.progress.step, self.optimizer.param_groups[0]["lr"]
        self._check_finite(loss, gradient_norm)
        self.run.record(
            "train", epoch=epoch, step=step, loss=loss, learning_rate=learning_rate, gradient_norm=gradient_norm
        )
        values = {"train/loss": loss, "train/learning_rate": learning_rate, "train/gradient_norm": gradient_norm}
        self.accelerator.log(values, step=step)

    def _check_finite(self, loss: float, gradient_norm: float) -> None:
        """Raise FloatingPointError if training has diverged at the latest step."""
        if math.isfinite(loss) and math.isfinite(gradient_norm):
            return
        progress, learning_rate = self.progress, self.optimizer.param_groups[0]["lr"]
        epoch = 1 + (progress.step - 1) // self.data.order.steps_per_epoch
        raise FloatingPointError(
            f"the loss is {loss} at epoch {epoch}, step {progress.step} (learning rate {learning_rate:.3g}, gradient "
            f"norm {gradient_norm:.3g}); lower --lr or raise --warmup_steps"
        )

    def _validate(self) -> None:
        """Evaluate every tokenizer on validation; keep the weights if their mean score is the best so far."""
        started = time.perf_counter()
        progress = self.progress
        with self.frozen_state():
            predicted = self._predict_all(
                "validation", self.data.valid_sample, self.config.num_beams, len(progress.valid_parts)
            )
            for _, predictions in predicted:
                progress.valid_parts.append(predictions.metrics(self.config.metric_names))
                self.pause()
        per_group, progress.valid_parts = progress.valid_parts, []
        mean = mean_over_groups(per_group)
        score = mean[self.config.val_metric]
        best = score > progress.best_score
        if best:
            progress.best_epoch, progress.best_score, progress.best_valid = progress.epoch, score, per_group
            self._save_model(self.best_folder)
        seconds = time.perf_counter() - started
        text = "  ".join(f"{name} {value:.4f}" for name, value in mean.items())
        self.run.say(f"epoch {progress.epoch}  validation  {text}  {seconds:.1f} s{'  (best)' if best else ''}")
        self._scores.append(score)
        self.live.warn("validation", validation_advice(self.config.val_metric, self._scores))
        named = dict(zip(self.data.tokenization.table.labels, per_group, strict=True))
        self.run.record(
            "valid", epoch=progress.epoch, step=progress.step, seconds=seconds, mean=mean, per_tokenizer=named
        )
        values = {f"valid/{name}": value for name, value in mean.items()}
        if len(per_group) > 1:
            for tokenizer, metrics in named.items():
                values |= {f"valid_per_tokenizer/{name}/{tokenizer}": value for name, value in metrics.items()}
        self.accelerator.log(values, step=progress.step)

    def _predict_all(
        self, name: str, positions: np.ndarray, num_beams: int, first: int
    ) -> Iterator[tuple[int, Predictions]]:
        """Recommend with one tokenizer group after the other, from the 0-based `first` on, showing how far it is."""
        count = len(self.groups)
        with self.live.phase("evaluation", name, (count - first) * len(positions) * num_beams) as advance:
            for group in range(first, count):
                done = partial(_advance_users, advance, num_beams, f"tokenizer {group + 1} of {count}")
                yield group, self._predict(positions, group, num_beams, done)

    def _predict(
        self, positions: np.ndarray, group: int, num_beams: int, advance: Callable[[int], None]
    ) -> Predictions:
        config = self.config
        return predict(
            self.recommender,
            self.data.tokenization,
            positions,
            group,
            k=max(config.topk),
            num_beams=num_beams,
            batch_size=config.eval_batch_size,
            accelerator=self.accelerator,
            constrained=config.constrained,
            advance=advance,
        )

    def load_best(self) -> None:
        """Go back to the best weights so far."""
        self.accelerator.wait_for_everyone()
        with torch.random.fork_rng(devices=[]):  # making a network draws weights, and a resumed run makes it once more
            best = Recommender.from_pretrained(self.best_folder)
        self.recommender.load_state_dict(best.state_dict())

    def test(self) -> dict:
        """Test the best weights with every tokenizer; write a result file for each, and results.json.

        Returns:
            What results.json holds: means over the tokenizers of validation and test metrics, and each one's.
        """
        config, progress = self.config, self.progress
        if not progress.best_epoch:
            self.run.say(f"no epoch was evaluated (val_delay={config.val_delay}): the last one is taken")
            self._validate()
        progress.testing = True
        self.load_best()
        started = time.perf_counter()
        results_folder = results_folder_of(self.run.path, config.results_dir)
        labels = self.data.tokenization.table.labels
        with self.frozen_state():
            num_beams, done = config.test_num_beams or config.num_beams, len(progress.test_parts)
            for index, predictions in self._predict_all("test", self.data.test, num_beams, done):
                if self.accelerator.is_main_process:
                    file = results_folder / f"test_results_{labels[index]}.json"
                    write_results(file, predictions, self.data.tokenization)
                progress.test_parts.append(predictions.metrics(config.metric_names))
                self.pause()
        per_tokenizer = [
            {"epoch": group.epoch, "prefix": group.prefix, "valid": valid, "test": metrics}
            for group, valid, metrics in zip(self.groups, progress.best_valid, progress.test_parts, strict=True)
        ]
        results = {
            "valid": mean_over_groups(progress.best_valid),
            "test": mean_over_groups([row["test"] for row in per_tokenizer]),
            "per_tokenizer": per_tokenizer,
            "best_epoch": progress.best_epoch,
            "num_users": len(self.data.test),
            "global_batch_size": self.data.order.global_batch_size,
        }
        seconds, peak = time.perf_counter() - started, peak_memory_mb(self.accelerator.device)
        self.run.record("test", epoch=progress.best_epoch, mean=results["test"], seconds=seconds, peak_memory_mb=peak)
        self.accelerator.log({f"test/{name}": value for name, value in results["test"].items()}, step=progress.step)
        log_hyperparameters(self.accelerator, config, results)
        self._leave()
        if self.accelerator.is_main_process:
            write_json(self.run.path / RESULTS_FILE, results)
            shutil.rmtree(self.run.path / STATE_FOLDER, ignore_errors=True)  # nothing is left to go on with
        text = "  ".join(f"{name} {value:.4f}" for name, value in results["test"].items())
        self.run.say(f"test of epoch {progress.best_epoch}  {text}")
        self.run.say(f"results: {self.run.path / RESULTS_FILE}")
        return results

    def _leave(self) -> None:
        """Finish the trackers and leave the process group; nothing can be trained any more.

        The wrapped model goes first: were its reducer the last to hold the group, its destructor would wait, with
        Python's lock held, for the group's threads, which may be waiting for that lock.
        """
        del self.model
        self.accelerator.free_memory()
        gc.collect()
        self.accelerator.end_training()

    @contextmanager
    def resumable(self) -> Iterator[None]:
        """Save the state before SIGTERM or SIGINT ends what happens inside, and give the folder back at the end.

        Raises:
            Stopped: One of the two came.
            MemoryError: A batch is too large for the device.
        """
        with listening():
            try:
                yield
            except (Stopped, RuntimeError) as error:
                if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                    raise MemoryError(self._out_of_memory(str(error))) from None
                # A process that waits for one that has stopped already gets a RuntimeError.
                if not isinstance(error, Stopped) and not (stop_requested() and self._frozen):
                    raise
                where = self._save_state()
                self._leave()
                raise Stopped(f"{error}; the state is saved in {where}, --resume goes on from it") from None
            finally:
                self.run.unlock()

    @contextmanager
    def frozen_state(self) -> Iterator[None]:
        """Mark a stretch in which no process trains, so that the main one can save the state on its own."""
        self._frozen = gather_object([process_state(self.loss_sums)])
        yield
        self._frozen = None  # left as it is on an exception, for `resumable`

    def _out_of_memory(self, reason: str) -> str:
        config = self.config
        return (
            f"out of memory: {reason.splitlines()[0]}; in training and influence estimation lower "
            f"--train_batch_size={config.train_batch_size} and raise --gradient_accumulation_steps as much, "
            f"in evaluation lower --eval_batch_size={config.eval_batch_size}"
        )

    def pause(self, gradient_norm: float | torch.Tensor = 0.0) -> None:
        """Save the state where it is time; stop where a signal asked for it. Several processes agree on either.

        Raises:
            Stopped: SIGTERM or SIGINT came.
            FloatingPointError: The latest step's gradient was not finite; what it made of the weights is not saved.
        """
        accelerator = self.accelerator
        due = time.monotonic() - self._saved_at >= 60 * self.config.checkpoint_minutes
        stop = stop_requested()
        if accelerator.num_processes > 1:
            if self._frozen is None and self.progress.step % AGREE_EVERY:
                return
            flags = torch.tensor([float(due and accelerator.is_main_process), float(stop)], device=accelerator.device)
            due, stop = (accelerator.reduce(flags, "sum") > 0).tolist()
        if due or stop:
            self._check_finite(float(self.loss_sums[0]), float(gradient_norm))
        if stop:
            raise Stopped("stopped by SIGTERM or SIGINT")
        if due:
            self._save_state()

    def _save_state(self) -> Path:
        """Write a snapshot; return the folder that holds the run's snapshots."""
        progress, folder = self.progress, self.run.path / STATE_FOLDER
        processes = self._frozen or gather_object([process_state(self.loss_sums)])
        if self.accelerator.is_main_process:
            values = {
                "progress": asdict(progress),
                "metrics_size": self.run.metrics_size(),
                "global_batch_size": self.data.order.global_batch_size,
                "data": self.data.fingerprint,
            }
            best = self.best_folder if progress.best_epoch else None
            write_snapshot(folder, state_tensors(self.recommender, self.optimizer, processes), values, best)
        self._saved_at = time.monotonic()
        return folder

    def _resume(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot that `start_run` has found to fit."""
        accelerator = self.accelerator
        self.progress = progress = Progress(**snapshot.values["progress"])
        load_state_(
            snapshot.tensors,
            self.recommender,
            self.optimizer,
            self.loss_sums,
            accelerator.process_index,
            accelerator.num_processes,
        )
        if accelerator.is_main_process and progress.best_epoch:  # a later epoch may have become the best since
            shutil.rmtree(self.best_folder, ignore_errors=True)
            link_folder(snapshot.attachment, self.best_folder)
        accelerator.wait_for_everyone()
        self.live.skip(progress.epoch, len(progress.influences))
        self.run.say(f"resumed after step {progress.step:,}, {progress.epoch} epochs done, from {snapshot.path}")

    def _save_model(self, folder: Path) -> None:
        if self.accelerator.is_main_process:
            with atomic_folder(folder) as temporary:
                self.recommender.save_pretrained(temporary)
        self.accelerator.wait_for_everyone()


def _advance_users(advance: Callable[[float, str], None], num_beams: int, text: str, users: int) -> None:
    """Count `users` that are evaluated with `num_beams`."""
    advance(users * num_beams, text)


def mean_over_groups(per_group: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over the tokenizer groups."""
    return {name: float(np.mean([metrics[name] for metrics in per_group])) for name in per_group[0]}
