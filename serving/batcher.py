"""What is asked for at about the same time, computed together by one thread."""

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any


class QueueFull(Exception):
    """There is no room for more, or nothing more is taken."""


@dataclass(frozen=True, eq=False)
class Job:
    """One payload that waits."""

    key: Hashable  # only jobs with equal keys are computed together
    payload: Any
    arrived: float = field(default_factory=time.monotonic)
    future: Future = field(default_factory=Future)


class Batcher:
    """A queue and the one thread that computes it, the oldest job first, with those that have the same key.

    Args:
        compute: Takes a key and its payloads; returns a result for each. What it raises goes to all of the batch.
        max_wait: Seconds that a job waits for others, at most, while the thread has nothing to do.
        max_batch, max_queue: Jobs that are computed together, and that may wait.
    """

    def __init__(
        self, compute: Callable[[Any, list[Any]], Sequence[Any]], max_wait: float, max_batch: int, max_queue: int
    ):
        self.compute, self.max_wait, self.max_batch, self.max_queue = compute, max_wait, max_batch, max_queue
        self._waiting: list[Job] = []
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Return how many jobs wait."""
        return len(self._waiting)

    def submit(self, key: Hashable, payloads: Sequence[Any]) -> list[Future]:
        """Put all payloads into the queue; raise QueueFull, and take none, where there is no room for all."""
        jobs = [Job(key, payload) for payload in payloads]
        with self._changed:
            if self._closed or len(self._waiting) + len(jobs) > self.max_queue:
                raise QueueFull
            self._waiting += jobs
            self._changed.notify()
        return [job.future for job in jobs]

    def close(self, timeout: float | None = None) -> None:
        """Take nothing more, and wait until what waits is computed."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)

    def _next_batch(self) -> list[Job]:
        """Wait for jobs and return those to compute now; none after the last one of a closed queue."""
        with self._changed:
            while self._waiting or not self._closed:
                left = None
                if self._waiting:
                    oldest = self._waiting[0]
                    batch = [job for job in self._waiting if job.key == oldest.key][: self.max_batch]
                    left = oldest.arrived + self.max_wait - time.monotonic()
                    if self._closed or left <= 0 or len(batch) == self.max_batch:
                        taken = set(batch)
                        self._waiting = [job for job in self._waiting if job not in taken]
                        return batch
                self._changed.wait(left)
            return []

    def _work(self) -> None:
        while batch := self._next_batch():
            batch = [job for job in batch if job.future.set_running_or_notify_cancel()]
            try:
                results = self.compute(batch[0].key, [job.payload for job in batch]) if batch else []
                pairs = list(zip(batch, results, strict=True))
            except Exception as error:
                for job in batch:
                    job.future.set_exception(error)
            else:
                for job, result in pairs:
                    job.future.set_result(result)
            job = result = results = pairs = batch = None  # while it waits, nothing keeps a replaced model alive
