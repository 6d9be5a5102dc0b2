"""What a person wants to know while a run goes on: how far it is, what is left of it, and what looks wrong."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from training.config import PretrainConfig, TrainingConfig
from training.curriculum import rule_of, stage_ends
from training.data import Data
from training.run_folder import RunFolder
from utils.progress import ProgressLine, duration

# Time of one user and beam in evaluation, in training examples; until an evaluation has been timed.
EVALUATION_COST = 0.08


class Display:
    """Shows one line for the phase that is going on, with the time left in it and in the whole run of `epochs`."""

    def __init__(self, config: TrainingConfig, epochs: int, data: Data, run: RunFolder):
        self.run, self.epochs, self.epoch_units = run, epochs, len(data.order.positions)
        num_groups = data.table.num_groups
        self.ends, influences, share = [epochs], 0, 1.0
        if isinstance(config, PretrainConfig):
            self.ends, share = stage_ends(config.epoch_per_stage, epochs)[0], config.influence_sample_ratio
            influences = len(self.ends) - 1 if rule_of(config.curriculum, num_groups) else 0
        self.influence_units = num_groups * (self.epoch_units * share + len(data.valid))
        self.evaluated = [e for e in range(1, epochs + 1) if e > config.val_delay and e % config.eval_interval == 0]
        self.evaluation_units = num_groups * len(data.valid_sample) * config.num_beams
        test_units = num_groups * len(data.test) * (config.test_num_beams or config.num_beams)
        self.left = {
            "training": float(self.epoch_units * epochs),
            "influence": influences * self.influence_units,
            "evaluation": float(max(1, len(self.evaluated)) * self.evaluation_units + test_units),
        }
        self.seconds_per_unit: dict[str, float] = {}
        self.warned: set[str] = set()

    def skip(self, epochs: int, influences: int) -> None:
        """Take what an interrupted run has done out of what is left: its finished epochs and influence estimates."""
        self.left["training"] -= self.epoch_units * epochs
        self.left["influence"] -= self.influence_units * influences
        self.left["evaluation"] -= self.evaluation_units * sum(epoch <= epochs for epoch in self.evaluated)

    def seconds_left(self) -> float | None:
        """Return the seconds that the rest of the run takes, None before anything has been timed.

        Kinds of work that have not been timed yet are taken at the training's speed, evaluation at EVALUATION_COST.
        """
        training = self.seconds_per_unit.get("training")
        if training is None:
            return None
        speed = {"influence": training, "evaluation": EVALUATION_COST * training} | self.seconds_per_unit
        return sum(speed[kind] * max(0.0, left) for kind, left in self.left.items())

    def left_in_run(self) -> str:
        """Return the time left in words, empty before anything has been timed."""
        seconds = self.seconds_left()
        return "" if seconds is None else f"{duration(seconds)} left in the run"

    def epoch_name(self, epoch: int) -> str:
        """Return stage and 1-based epoch, such as "stage 2/7  epoch 65/200"; the stage only where there are several."""
        stage = 1 + sum(end < epoch for end in self.ends)
        return (f"stage {stage}/{len(self.ends)}  " if len(self.ends) > 1 else "") + f"epoch {epoch}/{self.epochs}"

    def training(self, epoch: int, done: int = 0) -> AbstractContextManager[Callable[..., None]]:
        """Show a 1-based epoch, `done` of its examples behind it already; the phase is the rest of its stage."""
        self.left["training"] -= done
        later = (min(end for end in self.ends if end >= epoch) - epoch) * self.epoch_units
        return self.phase("training", self.epoch_name(epoch), self.epoch_units - done, later)

    def influence(self, stage: int) -> AbstractContextManager[Callable[..., None]]:
        """Show the estimation of influence after a stage."""
        return self.phase("influence", f"influence after stage {stage}/{len(self.ends)}", self.influence_units)

    @contextmanager
    def phase(self, kind: str, name: str, units: float, later: float = 0.0) -> Iterator[Callable[..., None]]:
        """Show a phase; yield a function to call with the units that are done and a text on how things stand.

        Args:
            kind: training, influence or evaluation.
            name: What is going on.
            units: Examples of training or influence, users x beams of evaluation.
            later: Units of the same phase that come in another line.
        """
        with ProgressLine(name, max(1.0, units), self.run.say, self.run.is_main) as line:

            def advance(done: float, text: str = "") -> None:
                self.left[kind] -= done
                line.advance(done)
                self.seconds_per_unit[kind] = line.seconds / line.done
                rest = (line.total - line.done + later) * self.seconds_per_unit[kind]
                in_run = duration(self.seconds_left() or rest)
                line.show(", ".join(part for part in (f"{duration(rest)} left (run: {in_run})", text) if part))

            yield advance

    def warn(self, kind: str, text: str | None) -> None:
        """Say a warning of some kind, once in a run; None is nothing to say."""
        if text and kind not in self.warned:
            self.warned.add(kind)
            self.run.say(f"warning: {text}")
