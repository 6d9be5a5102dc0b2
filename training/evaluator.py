"""Validation and the final test of a run, with one tokenizer group after the other."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from accelerate import Accelerator

from evaluation.predict import Predictions, predict
from evaluation.results import write_results
from evaluation.run import results_folder_of
from model.recommender import Recommender
from training.checkpointer import Checkpointer, TrainingState
from training.config import TrainingConfig
from training.data import Data
from training.display import Display
from training.run_folder import RunFolder
from utils.runtime import peak_memory_mb

FALLING_EVALUATIONS = 3


@dataclass(eq=False)
class Evaluator:
    """Evaluates a network in training; an interrupted evaluation goes on with the next tokenizer group."""

    config: TrainingConfig
    accelerator: Accelerator
    run: RunFolder
    data: Data
    recommender: Recommender  # not wrapped for several processes
    state: TrainingState
    checkpointer: Checkpointer
    display: Display
    _scores: list[float] = field(default_factory=list)  # of the evaluations since this process began

    def validate(self) -> None:
        """Evaluate every tokenizer on validation; keep the weights if their mean score is the best so far."""
        started, state = time.perf_counter(), self.state
        self.evaluate("validation", self.data.valid_sample, self.config.num_beams, state.valid_parts)
        per_group, state.valid_parts = state.valid_parts, []
        mean = mean_over_groups(per_group)
        score = mean[self.config.val_metric]
        best = score > state.best_score
        if best:
            state.best_epoch, state.best_score, state.best_valid = state.epoch, score, per_group
            self.checkpointer.save_model(self.run.model)
        seconds = time.perf_counter() - started
        named = dict(zip(self.data.table.labels, per_group, strict=True))
        tracked = {f"valid/{name}": value for name, value in mean.items()}
        for tokenizer, metrics in named.items() if len(named) > 1 else ():
            tracked |= {f"valid_per_tokenizer/{name}/{tokenizer}": value for name, value in metrics.items()}
        self.run.emit(
            "valid",
            {"epoch": state.epoch, "step": state.step, "seconds": seconds, "mean": mean, "per_tokenizer": named},
            tracked,
            state.step,
            f"epoch {state.epoch}  validation  {text_of(mean)}  {seconds:.1f} s{'  (best)' if best else ''}",
        )
        self._scores.append(score)
        self.display.warn("validation", validation_advice(self.config.val_metric, self._scores))

    def test(self) -> dict:
        """Test the best weights with every tokenizer, and write a result file per user for each.

        Returns what results.json holds: means over the tokenizers of validation and test metrics, and each one's.
        """
        config, state, data = self.config, self.state, self.data
        if not state.best_epoch:
            self.run.say(f"no epoch was evaluated (val_delay={config.val_delay}): the last one is taken")
            self.validate()
        state.testing = True
        self.checkpointer.load_best()
        started = time.perf_counter()
        folder = results_folder_of(self.run.path, config.results_dir)

        def write(group: int, predictions: Predictions) -> None:
            if self.accelerator.is_main_process:
                write_results(folder / f"test_results_{data.table.labels[group]}.json", predictions, data.tokenization)

        self.evaluate("test", data.test, config.test_num_beams or config.num_beams, state.test_parts, write)
        mean = mean_over_groups(state.test_parts)
        seconds, peak = time.perf_counter() - started, peak_memory_mb(self.accelerator.device)
        values = {"epoch": state.best_epoch, "mean": mean, "seconds": seconds, "peak_memory_mb": peak}
        self.run.emit("test", values, {f"test/{name}": value for name, value in mean.items()}, state.step)
        return {
            "valid": mean_over_groups(state.best_valid),
            "test": mean,
            "per_tokenizer": [
                {"epoch": group.epoch, "prefix": group.prefix, "valid": valid, "test": test}
                for group, valid, test in zip(data.table.groups, state.best_valid, state.test_parts, strict=True)
            ],
            "best_epoch": state.best_epoch,
            "num_users": len(data.test),
            "global_batch_size": data.order.global_batch_size,
        }

    def evaluate(
        self,
        name: str,
        positions: np.ndarray,
        num_beams: int,
        parts: list[dict[str, float]],
        keep: Callable[[int, Predictions], None] = lambda group, predictions: None,
    ) -> None:
        """Append the metrics of the tokenizer groups that are not yet among `parts`, each `keep`ing its predictions."""
        config, first, count = self.config, len(parts), self.data.table.num_groups
        units = (count - first) * len(positions) * num_beams
        with self.checkpointer.frozen_state(), self.display.phase("evaluation", name, units) as advance:
            for group in range(first, count):
                text = f"tokenizer {group + 1} of {count}"
                predictions = predict(
                    *(self.recommender, self.data.tokenization, positions, group),
                    k=max(config.topk),
                    num_beams=num_beams,
                    batch_size=config.eval_batch_size,
                    accelerator=self.accelerator,
                    constrained=config.constrained,
                    advance=lambda users, text=text: advance(users * num_beams, text),
                )
                keep(group, predictions)
                parts.append(predictions.metrics(config.metric_names))
                self.checkpointer.pause()


def mean_over_groups(per_group: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over the tokenizer groups."""
    return {name: float(np.mean([metrics[name] for metrics in per_group])) for name in per_group[0]}


def text_of(metrics: dict[str, float]) -> str:
    """Return metrics in one line."""
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def validation_advice(name: str, scores: Sequence[float]) -> str | None:
    """Judge the scores of all evaluations so far: have the last ones fallen, each below the one before?"""
    last = scores[-FALLING_EVALUATIONS - 1 :]
    if len(last) <= FALLING_EVALUATIONS or any(after >= before for before, after in pairwise(last)):
        return None
    return (
        f"validation {name} has fallen {FALLING_EVALUATIONS} times in a row, from {last[0]:.4f} to {last[-1]:.4f}: the "
        "model overfits or the learning rate is too high; lower --lr or --epochs, or raise --dropout_rate"
    )
