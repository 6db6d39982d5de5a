"""Snapshots: the state as it was after a record, in a file, so that a start need not apply the whole log.

A file is named after the record: magic, length of the header (4 bytes, big-endian), SHA-256 of the
header, the header as MessagePack, and the state, whose hash the header holds. So no damage passes unseen.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from exchange.desk import LOW_DISK_BYTES
from exchange.folder import FolderError
from exchange.migrations import can_migrate

KEPT = 2
"""How many snapshots are kept: should the newest be damaged, the one before it does."""

_MAGIC = b"CUXSNAP1"
_NAME = re.compile(r"[0-9]{20}\.snapshot", re.ASCII)
_FRONT = struct.Struct(">8sI32s")


class _Header(Struct, frozen=True):
    """What a snapshot says of its state. Later versions may add fields, but change none."""

    sequence: int
    entry: bytes
    state_format: int
    state_hash: bytes
    era: bytes


class Snapshot(NamedTuple):
    """The state after record `sequence`, and the command that opened the era, encoded in a numbered form.

    `entry` is the record's leaf of the audit tree (`entry_of`): it says of which log this is the state. The
    era names the rules, the engine and the codec that made the state.
    """

    sequence: int
    entry: bytes
    state_format: int
    state_hash: bytes
    era: bytes
    state: bytes


class SnapshotError(Exception):
    """A snapshot cannot be read; the message says why."""


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """Return the bytes of the snapshot's file."""
    header = msgspec.msgpack.encode(
        _Header(snapshot.sequence, snapshot.entry, snapshot.state_format, snapshot.state_hash, snapshot.era)
    )
    front = _FRONT.pack(_MAGIC, len(header), hashlib.sha256(header).digest())
    return front + header + snapshot.state


def decode_snapshot(data: bytes) -> Snapshot:
    """Return the snapshot.

    Raises:
        SnapshotError: the bytes are not whole, or of another version.
    """
    if len(data) < _FRONT.size:
        raise SnapshotError("it is damaged: it ends too soon")
    magic, length, digest = _FRONT.unpack_from(data)
    start = _FRONT.size + length
    header_bytes = data[_FRONT.size : start]
    if magic != _MAGIC or hashlib.sha256(header_bytes).digest() != digest:
        raise SnapshotError("it is damaged in its header, or of another version of cux")
    try:
        header = msgspec.msgpack.decode(header_bytes, type=_Header)
    except msgspec.DecodeError as error:
        raise SnapshotError(f"it is of another version of cux: {error}") from None
    state = data[start:]
    if hashlib.sha256(state).digest() != header.state_hash:
        raise SnapshotError("it is damaged: its state has another hash")
    return Snapshot(header.sequence, header.entry, header.state_format, header.state_hash, header.era, state)


class Snapshots:
    """The snapshots of one folder. None is written that would leave less than `reserve_bytes` of the disk."""

    def __init__(self, folder: Path, reserve_bytes: int = LOW_DISK_BYTES) -> None:
        self._folder = folder
        self._reserve_bytes = reserve_bytes

    @property
    def last_sequence(self) -> int:
        """The record after which the newest was made, by its name, 0 if there is none.

        Raises:
            FolderError: a file begins with a digit and is named as no snapshot is.
        """
        paths = self._paths()
        return _sequence(paths[-1]) if paths else 0

    def whole(self, tell: Callable[[str], None]) -> Iterator[Snapshot]:
        """Yield those that can be used, the newest first; `tell` hears of the others.

        Raises:
            FolderError: a file begins with a digit and is named as no snapshot is.
        """
        for path in reversed(self._paths()):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                # Another process has written newer ones meanwhile.
                continue
            try:
                snapshot = decode_snapshot(data)
                _refuse_useless(snapshot, _sequence(path))
            except SnapshotError as error:
                tell(f"{path} is passed over: {error}")
            else:
                yield snapshot

    def write(self, snapshot: Snapshot) -> None:
        """Keep a snapshot for good, in the place of one of the same record, and delete old ones.

        Raises:
            OSError: it could not be written, or the disk would be low then; those that are there stay.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._folder / f"{snapshot.sequence:020d}.snapshot"
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            # One at a time: the leader's last and the follower's may come at the same moment.
            fcntl.flock(folder, fcntl.LOCK_EX)
            beside = self._unfinished
            beside.unlink(missing_ok=True)
            data = encode_snapshot(snapshot)
            self._refuse_low_disk(len(data))
            try:
                with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            except BaseException:
                # A disk that is full needs the room.
                beside.unlink(missing_ok=True)
                raise
            beside.rename(path)
            os.fsync(folder)
            for old in self._paths()[:-KEPT]:
                old.unlink()
        finally:
            os.close(folder)

    def remove_unfinished(self) -> None:
        """Remove what a process left that was killed while it wrote; not what another one is writing now."""
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            folder = os.open(self._folder, os.O_RDONLY)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._unfinished.unlink(missing_ok=True)
            finally:
                os.close(folder)

    @property
    def _unfinished(self) -> Path:
        return self._folder / "new"

    def _refuse_low_disk(self, size: int) -> None:
        space = os.statvfs(self._folder)
        free = space.f_bavail * space.f_frsize
        if free < size + self._reserve_bytes:
            raise OSError(
                f"it needs {size} bytes; the disk has {free} left, {self._reserve_bytes} of them the log's"
            )

    def _paths(self) -> list[Path]:
        found = sorted(self._folder.glob("[0-9]*.snapshot"))
        for path in found:
            if not _NAME.fullmatch(path.name):
                raise FolderError(
                    f"{path} is no snapshot: one is named by 20 digits, its record, and .snapshot; "
                    "move it elsewhere"
                )
        return found


def _refuse_useless(snapshot: Snapshot, sequence: int) -> None:
    if snapshot.sequence != sequence:
        raise SnapshotError(f"it is of record {snapshot.sequence}")
    if not can_migrate(snapshot.state_format):
        raise SnapshotError(
            f"its state is of form {snapshot.state_format}, from which nothing leads to this version's"
        )


def _sequence(path: Path) -> int:
    return int(path.stem)
