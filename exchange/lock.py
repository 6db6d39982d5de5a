"""The lock of a folder: one process leads, and says which one it is."""

import fcntl
import os
import time
from pathlib import Path
from typing import NamedTuple

_NAME = "lock"
_LOOK_SECONDS = 0.01


class HeldError(Exception):
    """Another process holds the folder."""


class Holder(NamedTuple):
    """A process: its number, and when it was started, in clock ticks since the machine was.

    The two together never name another process, as a number alone does once it is used again.
    """

    pid: int
    started: int


def process(pid: int) -> Holder | None:
    """Return the process of this number, None where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name, in parentheses, and may hold anything.
    return Holder(pid, int(stat.rpartition(")")[2].split()[19]))


def holder_of(folder: Path) -> Holder | None:
    """Return who took the folder's lock last, None where nobody did. He may have let go, or be dead."""
    try:
        words = (folder / _NAME).read_text().split()
    except FileNotFoundError:
        return None
    # Between taking the lock and saying so its holder has not written yet.
    return Holder(int(words[0]), int(words[1])) if len(words) == 2 else None


class FolderLock:
    """Held from when it is made until `release`, or until the process ends in whatever way."""

    def __init__(self, folder: Path, wait_seconds: float = 0.0) -> None:
        """Take the folder's lock, waiting for it at most so long.

        Raises:
            HeldError: another process holds it still.
        """
        self._file = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + wait_seconds
        while not self._taken():
            if time.monotonic() >= deadline:
                os.close(self._file)
                raise HeldError(f"{folder} is held by another running exchange")
            time.sleep(_LOOK_SECONDS)
        me = process(os.getpid())
        assert me is not None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{me.pid} {me.started}\n".encode(), 0)

    def _taken(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Let others take the folder."""
        os.close(self._file)
