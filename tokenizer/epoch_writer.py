"""What a training of a tokenizer leaves and says after every epoch."""

import json
import os
import time
from collections.abc import Callable

from torch import Tensor

from tokenizer.config import TokenizerConfig
from utils.interrupts import Stopped, stop_requested
from utils.progress import ProgressLine, duration
from utils.snapshots import Snapshot, write_snapshot

METRICS_FILE = "metrics.jsonl"
STATE_FOLDER = "state"  # inside the tokenizer's folder, until training is finished


class EpochWriter:
    """Writes the metrics, the progress line and the states to resume from; metrics after `snapshot` come again."""

    def __init__(self, title: str, config: TokenizerConfig, snapshot: Snapshot | None = None):
        self.config, self.folder, self.snapshot = config, config.tokenizer_folder, snapshot
        before = snapshot.values if snapshot else {}
        self.metrics_file = open(self.folder / METRICS_FILE, "ab")  # noqa: SIM115
        self.metrics_file.truncate(before.get("metrics_size", 0))
        self.line = ProgressLine(title, config.epochs - before.get("epoch", 0))
        self.codes = ""
        self.saved_at = time.monotonic()
        self.started = self.saved_at - before.get("seconds", 0.0)

    @property
    def seconds(self) -> float:
        """How long training has taken, with what an interrupted run before this one had saved."""
        return time.monotonic() - self.started

    def __call__(
        self, metrics: dict[str, object], state: Callable[[], tuple[dict[str, Tensor], dict[str, object]]]
    ) -> None:
        """Write what an epoch brought, and from time to time the state; after a signal, write it and raise Stopped.

        Args:
            metrics: `epoch` (1-based), losses by name, and where they were counted `codes_used` and `collision_rate`.
            state: Gives the tensors and values, `epoch` among them, from which training can go on.
        """
        self.metrics_file.write(json.dumps(metrics).encode() + b"\n")
        self.metrics_file.flush()
        self._show(metrics)
        due = time.monotonic() - self.saved_at >= 60 * self.config.checkpoint_minutes
        if due or stop_requested():
            os.fsync(self.metrics_file.fileno())
            tensors, values = state()
            values |= {"metrics_size": self.metrics_file.tell(), "seconds": self.seconds}
            write_snapshot(self.folder / STATE_FOLDER, tensors, values)
            self.saved_at = time.monotonic()
        if stop_requested():
            raise Stopped(
                f"stopped after epoch {metrics['epoch']}; the state is saved in {self.folder}, --resume goes on"
            )

    def _show(self, metrics: dict[str, object]) -> None:
        if "codes_used" in metrics:
            used = "/".join(map(str, metrics["codes_used"]))
            self.codes = f", codes {used}, collisions {metrics['collision_rate']:.1%}"
        self.line.advance(1)
        left = self.line.seconds / self.line.done * (self.line.total - self.line.done)
        others = ("epoch", "codes_used", "collision_rate")
        losses = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name not in others)
        self.line.show(f"{duration(left)} left, epoch {metrics['epoch']}/{self.config.epochs}, {losses}{self.codes}")

    def __enter__(self) -> "EpochWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.metrics_file.close()
        self.line.close()
