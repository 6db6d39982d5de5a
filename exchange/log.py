"""The log: the only truth. Batches of records in numbered segment files, durable when `append` returns.

A segment is named after the first sequence number that it may hold. A batch is a header of 36 bytes
(little-endian: magic, CRC-32C of all that follows it, epoch, first sequence, the last sequence known
durable when it was written, count, length) and its records as MessagePack arrays, one after another.
An empty batch only says up to where the log is durable.
"""

import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import google_crc32c
import msgspec

from schemas.records import Record

_HEADER = struct.Struct("<4sIIQQII")
_MAGIC = b"CUX1"
_CHECKED_FROM = 8
SEGMENT_MAX_BYTES = 64 * 1024 * 1024

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[tuple[Record, ...]] = msgspec.msgpack.Decoder(tuple[Record, ...])


class LogError(Exception):
    """The log cannot be used as it stands; the message says where and why."""


class Log(Protocol):
    """What the sequencer needs of a log; nothing above knows about files."""

    @property
    def last_sequence(self) -> int:
        """The last record that is durable, 0 if none."""

    def append(self, records: Sequence[Record]) -> None:
        """Make the records durable, in order."""

    def seal(self) -> None:
        """Say in the log up to where it is durable, so that readers may go on."""

    def read(self, first: int) -> Iterator[Record]:
        """Yield the records from sequence `first` on."""

    def close(self) -> None:
        """Seal and let go."""


class Batch(NamedTuple):
    """A batch as it stands in a segment."""

    epoch: int
    first_sequence: int
    durable: int
    size: int
    payload: bytes
    end: int

    def records(self) -> tuple[Record, ...]:
        """Return the decoded records.

        Raises:
            LogError: the batch is whole, but another version of cux wrote it.
        """
        if not self.size:
            return ()
        try:
            return _decoder.decode(self.payload)
        except msgspec.DecodeError as error:
            raise LogError(
                f"the batch of sequence {self.first_sequence} is of another version of cux: {error}"
            ) from None


def segments(folder: Path) -> list[Path]:
    """Return the segment files in order."""
    return sorted(folder.glob("[0-9]*.log"))


def batch_at(data: bytes | memoryview, offset: int) -> Batch | None:
    """Return the whole, undamaged batch at `offset`, or None."""
    if offset + _HEADER.size > len(data):
        return None
    magic, crc, epoch, first, durable, count, length = _HEADER.unpack_from(data, offset)
    end = offset + _HEADER.size + length
    if magic != _MAGIC or end > len(data):
        return None
    if google_crc32c.value(bytes(data[offset + _CHECKED_FROM : end])) != crc:
        return None
    return Batch(epoch, first, durable, count, bytes(data[offset + _HEADER.size : end]), end)


def _encode_batch(epoch: int, first: int, durable: int, records: Sequence[Record]) -> bytes:
    payload = _encoder.encode(tuple(records)) if records else b""
    rest = struct.pack("<IQQII", epoch, first, durable, len(records), len(payload)) + payload
    return _MAGIC + struct.pack("<I", google_crc32c.value(rest)) + rest


def _refuse_other_version(path: Path, data: bytes) -> None:
    if len(data) >= 4 and data[:3] == _MAGIC[:3] and data[:4] != _MAGIC:
        raise LogError(f"{path} is of log format {data[3:4]!r}; this version reads format {_MAGIC[3:]!r}")


class FileLog:
    """The log in a folder of segment files, held by one writer at a time."""

    def __init__(self, folder: Path, segment_max_bytes: int = SEGMENT_MAX_BYTES) -> None:
        """Open the folder, or make it, and cut a torn tail.

        Raises:
            LogError: another process holds the folder, or the log is damaged before its tail.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._segment_max_bytes = segment_max_bytes
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise LogError(f"{folder} is held by another running exchange") from None
        self.epoch = 1
        self.cut_bytes = 0
        self._last = 0
        self._known_durable = 0
        try:
            self._recover()
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def last_sequence(self) -> int:
        """The last record that is durable, 0 if none."""
        return self._last

    def append(self, records: Sequence[Record]) -> None:
        """Make the records durable, in order; they follow on `last_sequence`.

        Raises:
            OSError: a write or a sync failed; the log must not be written again.
        """
        assert records[0].sequence == self._last + 1
        if self._size >= self._segment_max_bytes:
            self._start_segment()
        self._write(_encode_batch(self.epoch, records[0].sequence, self._last, records))
        os.fdatasync(self._file)
        self._last = records[-1].sequence

    def seal(self) -> None:
        """Say in the log up to where it is durable, so that readers may go on."""
        if self._known_durable < self._last:
            self._write(_encode_batch(self.epoch, self._last + 1, self._last, ()))
            self._known_durable = self._last

    def read(self, first: int) -> Iterator[Record]:
        """Yield the records from sequence `first` on, as far as they are durable now."""
        return read_records(self._folder, first, self._last)

    def close(self) -> None:
        """Seal, sync and let the folder go."""
        self.seal()
        os.fdatasync(self._file)
        os.close(self._file)
        os.close(self._lock)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.write(self._file, view)
            view = view[written:]
        self._size += len(data)

    def _start_segment(self) -> None:
        path = self._folder / f"{self._last + 1:020d}.log"
        old = getattr(self, "_file", None)
        if old is not None:
            # Its last seal too: a tear in a segment that has a successor would be damage.
            os.fdatasync(old)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._size = 0
        folder = os.open(self._folder, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        if old is not None:
            os.close(old)

    def _recover(self) -> None:
        paths = segments(self._folder)
        if not paths:
            self._start_segment()
            return
        end = 0
        for path in paths:
            data = path.read_bytes()
            _refuse_other_version(path, data)
            end = 0
            while end < len(data):
                batch = batch_at(data, end)
                if batch is None:
                    self._refuse_damage_before_tail(path, data, end, path == paths[-1])
                    break
                if batch.first_sequence != self._last + 1:
                    raise LogError(
                        f"{path} at byte {end}: sequence {batch.first_sequence} found, {self._last + 1} due"
                    )
                self._last += batch.size
                self._known_durable = max(self._known_durable, batch.durable)
                self.epoch = batch.epoch
                end = batch.end
        self._file = os.open(paths[-1], os.O_WRONLY | os.O_APPEND)
        self.cut_bytes = os.fstat(self._file).st_size - end
        os.ftruncate(self._file, end)
        # What was written but perhaps not synced when the last writer died becomes durable now.
        os.fsync(self._file)
        self._size = end
        self.seal()

    def _refuse_damage_before_tail(self, path: Path, data: bytes, offset: int, last_segment: bool) -> None:
        where = f"{path} is damaged at byte {offset}, in the batch of sequence {self._last + 1}"
        if not last_segment:
            raise LogError(f"{where}; later segments exist, so this is no torn tail")
        durable = _durable_later(data, offset)
        if durable > self._last:
            raise LogError(f"{where}; the log was durable up to {durable}, so this is no torn tail")


def _durable_later(data: bytes, offset: int) -> int:
    """Return up to where the log was durable by the whole batches after the damage at `offset`; 0 if none."""
    durable = 0
    at = data.find(_MAGIC, offset + 1)
    while at >= 0:
        later = batch_at(data, at)
        if later is not None:
            durable = max(durable, later.durable)
        at = data.find(_MAGIC, at + 1)
    return durable


def read_records(folder: Path, first: int = 1, last: int | None = None) -> Iterator[Record]:
    """Yield the records `first` to `last` of a log at rest; where it ends before `last`, as far as it goes.

    By default all whole batches, without a torn tail.

    Raises:
        LogError: a batch is damaged or missing before the last one asked for.
    """
    expected = 0
    paths = segments(folder)
    if paths and int(paths[0].stem) > first:
        raise LogError(f"{folder} starts at {int(paths[0].stem)}; {first} was asked for")
    for index, path in enumerate(paths):
        if index + 1 < len(paths) and int(paths[index + 1].stem) <= first:
            continue
        data = path.read_bytes()
        _refuse_other_version(path, data)
        offset = 0
        while offset < len(data):
            batch = batch_at(data, offset)
            if batch is None:
                torn = index == len(paths) - 1 and _durable_later(data, offset) < max(expected, 1)
                if last is None and torn:
                    return
                raise LogError(f"{path} is damaged at byte {offset}")
            if expected and batch.first_sequence != expected:
                raise LogError(f"{path} at byte {offset}: {batch.first_sequence} found, {expected} expected")
            expected = batch.first_sequence + batch.size
            if expected > first:
                for record in batch.records():
                    if last is not None and record.sequence > last:
                        return
                    if record.sequence >= first:
                        yield record
            offset = batch.end
            if last is not None and expected > last:
                return


def durable_end(log_folder: Path) -> int:
    """Return up to which record the log is known to be durable, 0 for a log that is not there yet.

    Whole batches behind damage count: to read up to there is to find it.
    """
    paths = segments(log_folder)
    if not paths:
        return 0
    # A segment is begun when all before it is durable.
    durable = int(paths[-1].stem) - 1
    data = paths[-1].read_bytes()
    offset = 0
    while (batch := batch_at(data, offset)) is not None:
        durable = max(durable, batch.durable)
        offset = batch.end
    return max(durable, _durable_later(data, offset)) if offset < len(data) else durable


class LogReader:
    """Follows a live log from another process: yields only what is known to be durable."""

    def __init__(self, folder: Path, first: int = 1) -> None:
        """Start before sequence `first`; the folder may still be empty."""
        self._folder = folder
        self._next = first
        self._path: Path | None = None
        self._offset = 0
        self._waiting: list[Record] = []

    def poll(self) -> list[Record]:
        """Return the records that have become durable since the last call, in order, perhaps none.

        Raises:
            LogError: the log lacks records asked for, or is damaged in a segment that has a successor.
        """
        ready: list[Record] = []
        while self._path is not None or self._find():
            assert self._path is not None
            # Listed before the segment is read: it grows no more once it has a successor.
            later = [p for p in segments(self._folder) if p > self._path]
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
            offset = 0
            while (batch := batch_at(data, offset)) is not None:
                self._waiting += [r for r in batch.records() if r.sequence >= self._next]
                durable = sum(1 for record in self._waiting if record.sequence <= batch.durable)
                ready += self._waiting[:durable]
                del self._waiting[:durable]
                offset = batch.end
            self._offset += offset
            if not later:
                break
            if offset < len(data):
                raise LogError(f"{self._path} is damaged at byte {self._offset}")
            self._path, self._offset = later[0], 0
        for record in ready:
            if record.sequence != self._next:
                raise LogError(f"{self._folder} lacks record {self._next}; {record.sequence} follows")
            self._next += 1
        return ready

    def _find(self) -> bool:
        paths = segments(self._folder)
        for path in reversed(paths):
            if int(path.stem) <= self._next:
                self._path, self._offset = path, 0
                return True
        if paths:
            raise LogError(f"{self._folder} starts at {int(paths[0].stem)}; {self._next} was asked for")
        return False
