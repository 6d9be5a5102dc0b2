import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack

import pytest

from serving.batcher import Batcher, QueueFull

SECONDS = 10  # more than anything takes here


class Recorder:
    """Computes key + payload when it is let to, and keeps its batches."""

    def __init__(self):
        self.batches: list[tuple[object, list]] = []
        self.began, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def __call__(self, key: object, payloads: list) -> list:
        self.batches.append((key, payloads))
        self.began.set()
        assert self.go_on.wait(SECONDS)
        if "wrong" in payloads:
            raise ZeroDivisionError
        return [f"{key}{payload}" for payload in payloads]


def results(futures: list[Future]) -> list:
    return [future.result(SECONDS) for future in futures]


@pytest.fixture
def compute() -> Recorder:
    return Recorder()


@pytest.fixture
def batcher_of(compute: Recorder) -> Iterator[Callable[..., Batcher]]:
    """Return what makes a batcher of max_wait, max_batch and max_queue; all are closed in the end."""
    with ExitStack() as stack:

        def make(*limits: float, function: Callable = compute) -> Batcher:
            batcher = Batcher(function, *limits)
            stack.callback(batcher.close, SECONDS)
            return batcher

        yield make


def hold(compute: Recorder, batcher: Batcher) -> list[Future]:
    """Have the thread busy with one job until compute.go_on is set."""
    compute.go_on.clear()
    futures = batcher.submit("first", [0])
    assert compute.began.wait(SECONDS)
    return futures


def test_what_waits_is_computed_together_oldest_first_by_key(compute: Recorder, batcher_of: Callable[..., Batcher]):
    batcher = batcher_of(0, 3, 100)
    first = hold(compute, batcher)
    futures = [
        batcher.submit(key, payloads) for key, payloads in (("a", [1, 2]), ("b", [3]), ("a", [4, 5]), ("b", [6]))
    ]
    assert len(batcher) == 6
    compute.go_on.set()
    assert [results(each) for each in futures] == [["a1", "a2"], ["b3"], ["a4", "a5"], ["b6"]]
    assert results(first) == ["first0"]
    assert compute.batches == [("first", [0]), ("a", [1, 2, 4]), ("b", [3, 6]), ("a", [5])]


def test_a_job_waits_for_others_but_not_longer_than_said(compute: Recorder, batcher_of: Callable[..., Batcher]):
    batcher = batcher_of(0.2, 2, 100)
    started = time.monotonic()
    assert results(batcher.submit("a", [1])) == ["a1"]
    assert 0.2 <= time.monotonic() - started < SECONDS
    patient = batcher_of(9 * SECONDS, 2, 100)  # which does not wait where a batch is full
    assert results(patient.submit("a", [1]) + patient.submit("a", [2])) == ["a1", "a2"]
    assert compute.batches == [("a", [1]), ("a", [1, 2])]


def test_a_full_queue_takes_all_or_nothing(compute: Recorder, batcher_of: Callable[..., Batcher]):
    batcher = batcher_of(0, 8, 3)
    hold(compute, batcher)
    two = batcher.submit("a", [1, 2])
    with pytest.raises(QueueFull):
        batcher.submit("a", [3, 4])
    three = batcher.submit("a", [5])
    compute.go_on.set()
    assert results(two + three) == ["a1", "a2", "a5"]


def test_an_error_goes_to_its_batch_alone(compute: Recorder, batcher_of: Callable[..., Batcher]):
    batcher = batcher_of(0, 8, 100)
    hold(compute, batcher)
    wrong, right = batcher.submit("a", ["wrong", 1]), batcher.submit("b", [2])
    compute.go_on.set()
    for future in wrong:
        with pytest.raises(ZeroDivisionError):
            future.result(SECONDS)
    assert results(right) == ["b2"]


def test_nothing_of_a_batch_is_kept_while_the_thread_waits(batcher_of: Callable[..., Batcher]):
    """The key holds the model that was asked, which may be replaced meanwhile."""

    class Key:
        pass

    def compute(key: Key, payloads: list) -> list:
        return payloads

    key, batcher = Key(), batcher_of(0, 8, 8, function=compute)
    alive = weakref.ref(key)
    assert results(batcher.submit(key, [1])) == [1]
    del key
    deadline = time.monotonic() + SECONDS
    while alive() is not None and time.monotonic() < deadline:
        time.sleep(0.01)  # the thread goes back to waiting
    assert alive() is None


def test_a_wrong_number_of_results_is_an_error(batcher_of: Callable[..., Batcher]):
    with pytest.raises(ValueError, match="zip"):
        batcher_of(0, 8, 8, function=lambda key, payloads: []).submit("a", [1])[0].result(SECONDS)


def test_what_nobody_waits_for_is_not_computed(compute: Recorder, batcher_of: Callable[..., Batcher]):
    batcher = batcher_of(0, 8, 100)
    hold(compute, batcher)
    gone, alone, there = batcher.submit("a", [1, 2]), batcher.submit("b", [3]), batcher.submit("a", [4])
    assert all(future.cancel() for future in (gone[0], *alone))
    compute.go_on.set()
    assert results([gone[1], *there]) == ["a2", "a4"]
    batcher.close(SECONDS)
    assert compute.batches[1:] == [("a", [2, 4])]


def test_a_closed_queue_computes_what_waits_and_takes_no_more(compute: Recorder, batcher_of: Callable[..., Batcher]):
    batcher = batcher_of(30, 8, 100)
    futures = batcher.submit("a", [1, 2])
    batcher.close(SECONDS)
    assert [future.result(0) for future in futures] == ["a1", "a2"]
    with pytest.raises(QueueFull):
        batcher.submit("a", [3])
