"""A lock that dies with the process that holds it."""

import fcntl
import os
import socket
from contextlib import AbstractContextManager
from pathlib import Path

from utils.errors import InputError

LOCK_FILE = ".lock"


class FileLock(AbstractContextManager):
    """Holds a file against other processes; the system gives it back when this process ends, however it ends.

    The file is made if it is not there, and names the holder while it is held.

    Raises:
        InputError: Another process holds it, or its folder cannot be written to.
    """

    def __init__(self, file: Path):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._handle = open(file, "a+", encoding="utf-8")  # noqa: SIM115  (open as long as the lock is held)
        except OSError as error:
            raise InputError(f"{file.parent} cannot be written to: {error.strerror}; choose another folder") from None
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._handle.seek(0)
            holder = self._handle.read().strip() or "another process"
            self._handle.close()
            raise InputError(f"{file.parent} is in use by {holder}; wait for it, or use another folder") from None
        self._handle.truncate(0)
        self._handle.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._handle.flush()

    def release(self, *_: object) -> None:
        """Give it back."""
        self._handle.close()

    __exit__ = release
