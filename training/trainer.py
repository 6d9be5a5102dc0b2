"""The one training loop: epochs, evaluation, early stopping, checkpoints, the final test."""

import gc
import math
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from data.batching import Tokenization, TrainingOrder
from data.token_table import Group
from model.recommender import Recommender
from training.config import TrainingConfig
from training.evaluation import Predictions, predict, write_results
from training.schedule import cosine_factor
from utils.files import atomic_folder, write_json
from utils.run_folder import RESULTS_FILE, RunFolder, results_folder_of

LOG_EVERY = 50  # optimizer steps between two readings of the loss


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


@dataclass
class Progress:
    """How far training is.

    Attributes:
        epoch: Finished epochs.
        step: Optimizer steps taken.
        best_epoch: 1-based epoch of the best validation score, 0 before the first evaluation.
        best_score: Its mean over the tokenizers.
        best_valid: Its metrics per tokenizer group.
        stopped: Whether early stopping has ended training.
    """

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_score: float = -math.inf
    best_valid: list[dict[str, float]] = field(default_factory=list)
    stopped: bool = False


class Trainer:
    """Trains a recommender on batches whose tokenizers are drawn by given probabilities.

    Args:
        config: Settings of either stage.
        accelerator: Processes, precision, trackers.
        run: Where log, checkpoints and results go.
        data: The examples.
        recommender: The model.
    """

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator,
        run: RunFolder,
        data: Data,
        recommender: Recommender,
    ):
        self.config, self.accelerator, self.run, self.data = config, accelerator, run, data
        self.recommender = recommender
        order = data.order
        self.total_positions = config.steps or order.batches_per_epoch * config.epochs
        self.epochs = math.ceil(config.steps / order.batches_per_epoch) if config.steps else config.epochs
        planned = order.steps_per_epoch * order.accumulation * order.num_processes * self.epochs
        if planned > 1.05 * self.total_positions:
            run.say(
                f"the learning rate reaches 0 after {self.total_positions / planned:.0%} of the steps: "
                f"{len(order.positions):,} examples fill global batches of {order.global_batch_size:,} badly; "
                "lower --gradient_accumulation_steps"
            )
        self.progress = Progress()
        torch.manual_seed(config.rand_seed + accelerator.process_index)  # dropout differs between processes
        optimizer = torch.optim.AdamW(recommender.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.model, self.optimizer = accelerator.prepare(recommender, optimizer)

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
        while progress.epoch < last_epoch and not progress.stopped:
            self._train_epoch(progress.epoch + 1, probabilities)
            progress.epoch += 1
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

    def _train_epoch(self, epoch: int, probabilities: np.ndarray) -> None:
        """Take the optimizer steps of a 1-based epoch."""
        order, progress = self.data.order, self.progress
        positions, groups = order.epoch(epoch, probabilities)
        started = time.perf_counter()
        epoch_loss = torch.zeros((), device=self.accelerator.device)
        window = torch.zeros_like(epoch_loss)
        window_size = 0
        self.model.train()
        bar = tqdm(
            range(order.steps_per_epoch), desc=f"epoch {epoch}/{self.epochs}", leave=False, disable=not self._show_bars
        )
        for step in bar:
            loss, size, gradient_norm = self._train_step(positions, groups, step)
            epoch_loss += loss
            window += loss
            window_size += size
            if progress.step % LOG_EVERY == 0 or step + 1 == order.steps_per_epoch:
                mean = float(self.accelerator.reduce(window, "sum")) / window_size
                bar.set_postfix(loss=f"{mean:.4f}")
                self._log_step(epoch, mean, float(gradient_norm))
                window.zero_()
                window_size = 0
        seconds = time.perf_counter() - started
        mean = float(self.accelerator.reduce(epoch_loss, "sum")) / len(positions)
        speed = len(positions) / seconds
        self.run.say(f"epoch {epoch}/{self.epochs}  loss {mean:.4f}  {speed:,.0f} samples/s  {seconds:.1f} s")
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
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at epoch {epoch}, step {step} (learning rate {learning_rate:.3g}, gradient norm "
                f"{gradient_norm:.3g}); lower --lr or raise --warmup_steps"
            )
        self.run.record(
            "train", epoch=epoch, step=step, loss=loss, learning_rate=learning_rate, gradient_norm=gradient_norm
        )
        values = {"train/loss": loss, "train/learning_rate": learning_rate, "train/gradient_norm": gradient_norm}
        self.accelerator.log(values, step=step)

    def _validate(self) -> None:
        """Evaluate every tokenizer on validation; keep the weights if their mean score is the best so far."""
        started = time.perf_counter()
        per_group = [
            self._predict(self.data.valid_sample, group, self.config.num_beams).metrics(self.config.metric_names)
            for group in range(len(self.groups))
        ]
        mean = mean_over_groups(per_group)
        score = mean[self.config.val_metric]
        progress = self.progress
        best = score > progress.best_score
        if best:
            progress.best_epoch, progress.best_score, progress.best_valid = progress.epoch, score, per_group
            self._save_model(self.best_folder)
        seconds = time.perf_counter() - started
        text = "  ".join(f"{name} {value:.4f}" for name, value in mean.items())
        self.run.say(f"epoch {progress.epoch}  validation  {text}  {seconds:.1f} s{'  (best)' if best else ''}")
        named = dict(zip(self.data.tokenization.table.labels, per_group, strict=True))
        self.run.record(
            "valid", epoch=progress.epoch, step=progress.step, seconds=seconds, mean=mean, per_tokenizer=named
        )
        values = {f"valid/{name}": value for name, value in mean.items()}
        if len(per_group) > 1:
            for tokenizer, metrics in named.items():
                values |= {f"valid_per_tokenizer/{name}/{tokenizer}": value for name, value in metrics.items()}
        self.accelerator.log(values, step=progress.step)

    def _predict(self, positions: np.ndarray, group: int, num_beams: int) -> Predictions:
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
        )

    def load_best(self) -> None:
        """Go back to the best weights so far."""
        self.accelerator.wait_for_everyone()
        self.recommender.load_state_dict(Recommender.from_pretrained(self.best_folder).state_dict())

    def test(self) -> dict:
        """Test the best weights with every tokenizer; write a result file for each, and results.json.

        Returns:
            What results.json holds: means over the tokenizers of validation and test metrics, and each one's.
        """
        config, progress = self.config, self.progress
        if not progress.best_epoch:
            self.run.say(f"no epoch was evaluated (val_delay={config.val_delay}): the last one is taken")
            self._validate()
        self.load_best()
        results_folder = results_folder_of(self.run.path, config.results_dir)
        per_tokenizer = []
        for index, (group, label) in enumerate(zip(self.groups, self.data.tokenization.table.labels, strict=True)):
            predictions = self._predict(self.data.test, index, config.test_num_beams or config.num_beams)
            metrics = predictions.metrics(config.metric_names)
            if self.accelerator.is_main_process:
                write_results(results_folder / f"test_results_{label}.json", predictions, self.data.tokenization)
            valid = progress.best_valid[index]
            per_tokenizer.append({"epoch": group.epoch, "prefix": group.prefix, "valid": valid, "test": metrics})
        results = {
            "valid": mean_over_groups(progress.best_valid),
            "test": mean_over_groups([row["test"] for row in per_tokenizer]),
            "per_tokenizer": per_tokenizer,
            "best_epoch": progress.best_epoch,
            "num_users": len(self.data.test),
        }
        self.run.record("test", epoch=progress.best_epoch, mean=results["test"])
        self.accelerator.log({f"test/{name}": value for name, value in results["test"].items()}, step=progress.step)
        self._leave()
        if self.accelerator.is_main_process:
            write_json(self.run.path / RESULTS_FILE, results)
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

    def _save_model(self, folder: Path) -> None:
        if self.accelerator.is_main_process:
            with atomic_folder(folder) as temporary:
                self.recommender.save_pretrained(temporary)
        self.accelerator.wait_for_everyone()

    @property
    def _show_bars(self) -> bool:
        """Progress bars are for the main process on a terminal; a log file gets lines."""
        return self.accelerator.is_main_process and sys.stderr.isatty()


def mean_over_groups(per_group: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over the tokenizer groups."""
    return {name: float(np.mean([metrics[name] for metrics in per_group])) for name in per_group[0]}
