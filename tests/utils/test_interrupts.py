import os
import signal
import time

import pytest

from utils.interrupts import Stopped, listening, stop_if_requested, stop_requested


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_request_inside_and_what_it_was_outside(number):
    before = signal.getsignal(number)
    with listening():
        stop_if_requested()
        os.kill(os.getpid(), number)
        assert stop_requested()
        with pytest.raises(Stopped, match=f"stopped by {number.name}"):
            stop_if_requested()
    assert signal.getsignal(number) is before
    assert not stop_requested()


def exit_code(*signals: tuple[int, float]) -> int:
    """Return the exit code of a process that listens and gets signals, each after a pause in seconds; 0: it goes on."""
    pid = os.fork()
    if pid == 0:
        with listening():
            for number, pause in signals:
                time.sleep(pause)
                os.kill(os.getpid(), number)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_second_sigint_exits_at_once():
    assert exit_code((signal.SIGINT, 0), (signal.SIGINT, 0.6)) == 130
    assert exit_code((signal.SIGINT, 0), (signal.SIGINT, 0)) == 0  # passed on by a launcher: the same key press
    assert exit_code((signal.SIGTERM, 0), (signal.SIGTERM, 0.6)) == 0
