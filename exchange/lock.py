"""The lock of a folder: one process leads, and says which one it is.

The folder itself is locked: a file in it could be removed under its holder, and then be locked once more. The
file in it only says who the holder is.
"""

import fcntl
import os
import time
from pathlib import Path
from typing import NamedTuple

_NAME = "lock"
_LOOK_SECONDS = 0.01
_LEAST_WAIT_SECONDS = 0.05
"""Whoever asks whether the folder is held holds it for an instant, which is no other holder."""


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


def is_held(folder: Path) -> bool:
    """Say whether somebody holds the folder now."""
    try:
        asked = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _taken(asked, fcntl.LOCK_SH)
    finally:
        os.close(asked)


def _taken(folder: int, kind: int) -> bool:
    try:
        fcntl.flock(folder, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class FolderLock:
    """Held from when it is made until `release`, or until the process ends in whatever way."""

    def __init__(self, folder: Path, wait_seconds: float = 0.0) -> None:
        """Take the folder's lock, waiting for it at most so long.

        Raises:
            HeldError: another process holds it still.
        """
        self._folder = os.open(folder, os.O_RDONLY)
        try:
            self._take(folder, max(wait_seconds, _LEAST_WAIT_SECONDS))
        except BaseException:
            self.release()
            raise

    def _take(self, folder: Path, wait_seconds: float) -> None:
        deadline = time.monotonic() + wait_seconds
        while not _taken(self._folder, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                raise HeldError(f"{folder} is held by another running exchange")
            time.sleep(_LOOK_SECONDS)
        _say_who(folder / _NAME)

    def release(self) -> None:
        """Let others take the folder."""
        os.close(self._folder)


def _say_who(path: Path) -> None:
    me = process(os.getpid())
    assert me is not None
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(file, f"{me.pid} {me.started}\n".encode())
    finally:
        os.close(file)
