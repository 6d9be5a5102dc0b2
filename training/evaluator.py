"""Validation and the final test of a run, with one tokenizer group after the other."""

import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from evaluation.predict import Predictions, predict
from evaluation.results import write_results
from evaluation.run import RESULTS_FILE, results_folder_of
from training.run_folder import log_hyperparameters
from utils.files import write_json
from utils.runtime import peak_memory_mb

if TYPE_CHECKING:
    from training.trainer import Trainer

FALLING_EVALUATIONS = 3


class Evaluator:
    """Evaluates a trainer's network; an interrupted evaluation goes on with the next tokenizer group."""

    def __init__(self, trainer: "Trainer"):
        self.trainer = trainer
        self._scores: list[float] = []  # of the evaluations since this process began

    def validate(self) -> None:
        """Evaluate every tokenizer on validation; keep the weights if their mean score is the best so far."""
        started = time.perf_counter()
        trainer, config, state = self.trainer, self.trainer.config, self.trainer.state
        self._evaluate("validation", trainer.data.valid_sample, config.num_beams, state.valid_parts)
        per_group, state.valid_parts = state.valid_parts, []
        mean = mean_over_groups(per_group)
        score = mean[config.val_metric]
        best = score > state.best_score
        if best:
            state.best_epoch, state.best_score, state.best_valid = state.epoch, score, per_group
            trainer.checkpointer.save_model(trainer.checkpointer.best_folder)
        seconds = time.perf_counter() - started
        named = dict(zip(trainer.data.table.labels, per_group, strict=True))
        tracked = {f"valid/{name}": value for name, value in mean.items()}
        for tokenizer, metrics in named.items() if len(named) > 1 else ():
            tracked |= {f"valid_per_tokenizer/{name}/{tokenizer}": value for name, value in metrics.items()}
        trainer.run.emit(
            "valid",
            {"epoch": state.epoch, "step": state.step, "seconds": seconds, "mean": mean, "per_tokenizer": named},
            tracked,
            state.step,
            f"epoch {state.epoch}  validation  {text_of(mean)}  {seconds:.1f} s{'  (best)' if best else ''}",
        )
        self._scores.append(score)
        trainer.display.warn("validation", validation_advice(config.val_metric, self._scores))

    def test(self) -> dict:
        """Test the best weights with every tokenizer; write a result file for each, and results.json.

        Returns what results.json holds: means over the tokenizers of validation and test metrics, and each one's.
        """
        trainer, config, state, data = self.trainer, self.trainer.config, self.trainer.state, self.trainer.data
        run, is_main = trainer.run, trainer.accelerator.is_main_process
        if not state.best_epoch:
            run.say(f"no epoch was evaluated (val_delay={config.val_delay}): the last one is taken")
            self.validate()
        state.testing = True
        trainer.checkpointer.load_best()
        started = time.perf_counter()
        folder = results_folder_of(run.path, config.results_dir)

        def write(group: int, predictions: Predictions) -> None:
            if is_main:
                write_results(folder / f"test_results_{data.table.labels[group]}.json", predictions, data.tokenization)

        self._evaluate("test", data.test, config.test_num_beams or config.num_beams, state.test_parts, write)
        results = self._results()
        seconds, peak = time.perf_counter() - started, peak_memory_mb(trainer.accelerator.device)
        values = {"epoch": state.best_epoch, "mean": results["test"], "seconds": seconds, "peak_memory_mb": peak}
        run.emit("test", values, {f"test/{name}": value for name, value in results["test"].items()}, state.step)
        log_hyperparameters(trainer.accelerator, config, results)
        trainer.checkpointer.leave()
        if is_main:
            write_json(run.path / RESULTS_FILE, results)
            shutil.rmtree(trainer.checkpointer.folder, ignore_errors=True)  # nothing is left to go on with
        run.say(f"test of epoch {state.best_epoch}  {text_of(results['test'])}")
        run.say(f"results: {run.path / RESULTS_FILE}")
        return results

    def _evaluate(
        self,
        name: str,
        positions: np.ndarray,
        num_beams: int,
        parts: list[dict[str, float]],
        keep: Callable[[int, Predictions], None] = lambda group, predictions: None,
    ) -> None:
        """Append the metrics of the tokenizer groups that are not yet among `parts`, each `keep`ing its predictions."""
        trainer, config = self.trainer, self.trainer.config
        first, count = len(parts), trainer.data.table.num_groups
        predict_group = partial(
            predict,
            trainer.recommender,
            trainer.data.tokenization,
            positions,
            k=max(config.topk),
            num_beams=num_beams,
            batch_size=config.eval_batch_size,
            accelerator=trainer.accelerator,
            constrained=config.constrained,
        )
        units = (count - first) * len(positions) * num_beams
        with trainer.checkpointer.frozen_state(), trainer.display.phase("evaluation", name, units) as advance:
            for group in range(first, count):

                def done(users: int, text: str = f"tokenizer {group + 1} of {count}") -> None:
                    advance(users * num_beams, text)

                predictions = predict_group(group, advance=done)
                keep(group, predictions)
                parts.append(predictions.metrics(config.metric_names))
                trainer.checkpointer.pause()

    def _results(self) -> dict:
        """Return what results.json holds, of a test that is done."""
        state, data = self.trainer.state, self.trainer.data
        return {
            "valid": mean_over_groups(state.best_valid),
            "test": mean_over_groups(state.test_parts),
            "per_tokenizer": [
                {"epoch": group.epoch, "prefix": group.prefix, "valid": valid, "test": test}
                for group, valid, test in zip(data.table.groups, state.best_valid, state.test_parts, strict=True)
            ],
            "best_epoch": state.best_epoch,
            "num_users": len(data.test),
            "global_batch_size": data.order.global_batch_size,
        }


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
