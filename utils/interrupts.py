"""SIGTERM and SIGINT as a request that long work looks at where it can stop."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

_SAME_KEYPRESS = 0.5  # seconds; launchers pass a terminal's SIGINT on to processes that got it already

_received: list[int] = []  # signals since `listening` began


class Stopped(Exception):
    """A signal asked the command to stop."""


def stop_requested() -> bool:
    """Return whether SIGTERM or SIGINT has come."""
    return bool(_received)


def stop_if_requested() -> None:
    """Raise Stopped if SIGTERM or SIGINT has come."""
    if _received:
        raise Stopped(f"stopped by {signal.Signals(_received[0]).name}")


@contextmanager
def listening() -> Iterator[None]:
    """Collect SIGTERM and SIGINT instead of dying of them; a second SIGINT ends the process at once."""
    first_at = 0.0

    def receive(number: int, frame: object) -> None:
        nonlocal first_at
        now = time.monotonic()
        second = number == signal.SIGINT and signal.SIGINT in _received
        if second and now - first_at > _SAME_KEYPRESS:
            os._exit(128 + number)
        first_at = first_at or now
        _received.append(number)

    before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()
