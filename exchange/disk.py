"""What the log needs of a disk, and nothing more: a simulation can lose what a real one may lose."""

import os
import re
from pathlib import Path
from typing import Protocol

from exchange.folder import FolderError, sync


class Disk(Protocol):
    """Segments, each known by the first sequence that it may hold. Every failure is an `OSError`."""

    def segments(self) -> list[int]:
        """Return the segments there are, in order."""

    def name(self, segment: int) -> str:
        """Return what people call the segment."""

    def create(self, segment: int) -> None:
        """Make an empty segment; it is there for good when this returns."""

    def read(self, segment: int, offset: int = 0) -> bytes:
        """Return what stands in the segment from `offset` on, durable or not."""

    def append(self, segment: int, data: bytes) -> None:
        """Write at the segment's end; a crash before the next `sync` may leave any part of it."""

    def sync(self, segment: int) -> None:
        """Make durable what was appended to the segment."""

    def truncate(self, segment: int, size: int) -> None:
        """Cut the segment to `size` bytes; they are durable then, also where a sync of them had failed."""

    def free_bytes(self) -> int:
        """Return how much more can be appended."""

    def close(self) -> None:
        """Let go, without a sync."""


_SEGMENT = re.compile(r"[0-9]{20}\.log", re.ASCII)


class FolderDisk:
    """Segment files in a folder, which may be missing as long as it is only read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # The one segment that is written. A failed sync is told to who held the file when it was written.
        self._segment = 0
        self._file: int | None = None
        self._name = ""

    def segments(self) -> list[int]:
        """Return the segments there are, in order.

        Raises:
            FolderError: a file begins with a digit and is named as no segment is.
        """
        found = list(self._folder.glob("[0-9]*.log"))
        for path in found:
            if not _SEGMENT.fullmatch(path.name) or not int(path.stem):
                raise FolderError(
                    f"{path} is no segment of the log: one is named by 20 digits, its first record, and "
                    ".log; move it elsewhere"
                )
        return sorted(int(path.stem) for path in found)

    def name(self, segment: int) -> str:
        """Return the segment's path."""
        return str(self._path(segment))

    def create(self, segment: int) -> None:
        """Make an empty segment; it is there for good when this returns."""
        os.close(os.open(self._path(segment), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        sync(self._folder)

    def read(self, segment: int, offset: int = 0) -> bytes:
        """Return what stands in the segment from `offset` on, durable or not."""
        with self._path(segment).open("rb") as file:
            file.seek(offset)
            return file.read()

    def append(self, segment: int, data: bytes) -> None:
        """Write at the segment's end."""
        file = self._open(segment)
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]

    def sync(self, segment: int) -> None:
        """Make durable what was appended to the segment.

        Raises:
            OSError: that failed; or the segment, or its folder, is no longer where it was.
        """
        file = self._open(segment)
        os.fdatasync(file)
        # What nobody can find again is not durable, however well it was written.
        try:
            is_there = os.path.samestat(os.stat(self._name), os.fstat(file))
        except FileNotFoundError:
            is_there = False
        if not is_there:
            raise OSError(f"{self._name} was removed, moved or replaced while it was written")

    def truncate(self, segment: int, size: int) -> None:
        """Cut the segment to `size` bytes, which are durable when this returns."""
        kept = memoryview(self.read(segment))[:size]
        # Not the file that appends: that one writes at its end, whatever place is named.
        file = os.open(self._path(segment), os.O_WRONLY)
        try:
            os.ftruncate(file, size)
            # After a sync that failed, what is read may be in memory alone and counts as written: a sync
            # would pass over it. The same bytes once more at the same place harm nothing at any moment.
            at = 0
            while at < size:
                at += os.pwrite(file, kept[at:], at)
            os.fsync(file)
        finally:
            os.close(file)

    def free_bytes(self) -> int:
        """Return what the file system has left for this user."""
        space = os.statvfs(self._folder)
        return space.f_bavail * space.f_frsize

    def close(self) -> None:
        """Let go, without a sync."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _path(self, segment: int) -> Path:
        return self._folder / f"{segment:020d}.log"

    def _open(self, segment: int) -> int:
        if self._file is None or self._segment != segment:
            self.close()
            self._name = self.name(segment)
            self._file = os.open(self._name, os.O_WRONLY | os.O_APPEND)
            self._segment = segment
        return self._file
