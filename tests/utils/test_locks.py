import os
import signal

import pytest

from utils.errors import InputError
from utils.locks import FileLock


def test_a_dead_process_does_not_hold_the_lock(tmp_path):
    """Another process takes it, is waited for, and is killed."""
    file, (reader, writer) = tmp_path / "run" / ".lock", os.pipe()
    pid = os.fork()
    if pid == 0:
        lock = FileLock(file)
        os.write(writer, b"x")
        signal.pause()
        lock.release()
        os._exit(0)
    os.read(reader, 1)
    with pytest.raises(InputError, match=rf"{tmp_path / 'run'} is in use by process {pid} on \S+; wait for it"):
        FileLock(file)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    FileLock(file).release()
    for descriptor in (reader, writer):
        os.close(descriptor)


def test_released_locks_are_free(tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(InputError, match=f"in use by process {os.getpid()}"):
        FileLock(tmp_path / ".lock")
    FileLock(tmp_path / ".lock").release()
