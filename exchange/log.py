"""The log: the only truth. Batches of records in numbered segments, durable when `append` returns.

A segment is named after the first sequence number that it may hold. A batch is a header of 36 bytes
(little-endian: magic, CRC-32C of all that follows it, epoch, first sequence, the last sequence known
durable when it was written, count, length) and its records as a MessagePack array. An empty batch only
says up to where the log is durable. Epochs count the writers that were promoted and never go back.
"""

import contextlib
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import google_crc32c
import msgspec

from exchange.disk import Disk, FolderDisk
from exchange.folder import FolderError
from exchange.lock import FolderLock, HeldError, is_held
from schemas.records import Record

_HEADER = struct.Struct("<4sIIQQII")
_CHECKED = struct.Struct("<IQQII")
_MAGIC = b"CUX1"
_CHECKED_FROM = 8
SEGMENT_MAX_BYTES = 64 * 1024 * 1024

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[tuple[Record, ...]] = msgspec.msgpack.Decoder(tuple[Record, ...])


class LogError(Exception):
    """The log cannot be used as it stands; the message says where and why."""


class HeldLogError(LogError):
    """Another process writes the log."""


class Follower(Protocol):
    """Follows a log that another writes."""

    def poll(self) -> list[Record]:
        """Return the records that have become durable since the last call, in order, perhaps none."""


class Log(Protocol):
    """What a sequencer needs of a log; nothing above knows about files.

    Opening one cuts what its last writer left unfinished and told nobody of. One writer has it at a time.
    """

    @property
    def last_sequence(self) -> int:
        """The last record that is durable, 0 if none."""

    def append(self, records: Sequence[Record]) -> None:
        """Make the records durable, in order; they follow on `last_sequence`.

        Raises:
            OSError: they may or may not stand in the log, which must not be written again.
        """

    def seal(self) -> None:
        """Say in the log up to where it is durable, so that readers may go on."""

    def read(self, first: int) -> Iterator[Record]:
        """Yield the records from sequence `first` on, as far as they are durable now."""

    def follow(self, first: int) -> Follower:
        """Return what follows the log from sequence `first` on."""

    def free_bytes(self) -> int:
        """Return how much more can be appended."""

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

    @property
    def last_sequence(self) -> int:
        """The batch's last record, or of an empty one the last before it."""
        return self.first_sequence + self.size - 1

    def records(self) -> tuple[Record, ...]:
        """Return the decoded records.

        Raises:
            LogError: the batch is whole, but another version of cux wrote it, or it holds other records.
        """
        if not self.size:
            return ()
        try:
            records = _decoder.decode(self.payload)
        except msgspec.DecodeError as error:
            raise LogError(
                f"the batch of sequence {self.first_sequence} is of another version of cux: {error}"
            ) from None
        held = (len(records), records[0].sequence, records[-1].sequence) if records else (0, 0, 0)
        if held != (self.size, self.first_sequence, self.last_sequence):
            raise LogError(f"the batch of sequence {self.first_sequence} holds other records than it says")
        return records


def batch_at(data: bytes, offset: int) -> Batch | None:
    """Return the whole, undamaged batch at `offset`, or None."""
    if offset + _HEADER.size > len(data):
        return None
    magic, crc, epoch, first, durable, count, length = _HEADER.unpack_from(data, offset)
    end = offset + _HEADER.size + length
    if magic != _MAGIC or end > len(data):
        return None
    if google_crc32c.value(data[offset + _CHECKED_FROM : end]) != crc:
        return None
    return Batch(epoch, first, durable, count, data[offset + _HEADER.size : end], end)


def _encode_batch(epoch: int, first: int, durable: int, records: Sequence[Record]) -> bytes:
    payload = _encoder.encode(records) if records else b""
    rest = _CHECKED.pack(epoch, first, durable, len(records), len(payload)) + payload
    return _MAGIC + struct.pack("<I", google_crc32c.value(rest)) + rest


class SegmentLog:
    """The log on a disk that nobody else writes."""

    def __init__(
        self,
        disk: Disk,
        segment_max_bytes: int = SEGMENT_MAX_BYTES,
        *,
        not_below: int = 0,
        next_epoch: bool = False,
    ) -> None:
        """Read the log and cut a torn tail. `next_epoch` opens it for a writer that was promoted.

        Raises:
            LogError: the log is damaged before its tail, or would end before record `not_below`, which
                somebody has seen.
        """
        self._disk = disk
        self._segment_max_bytes = segment_max_bytes
        self.epoch = 1
        self.cut_bytes = 0
        self._last = 0
        self._known_durable = 0
        self._segment = 0
        self._size = 0
        self._has_failed = False
        self._recover(not_below)
        if next_epoch:
            self.epoch += 1
            self._write(())
            self._disk.sync(self._segment)

    @property
    def last_sequence(self) -> int:
        """The last record that is durable, 0 if none."""
        return self._last

    def append(self, records: Sequence[Record]) -> None:
        """Make the records durable, in order; they follow on `last_sequence`.

        Raises:
            OSError: a write or a sync failed, now or before; the log is not written again.
        """
        if not records:
            return
        assert records[0].sequence == self._last + 1
        # A segment without a record is not full, whatever seals and epochs stand in it: its name is taken.
        is_full = self._size >= self._segment_max_bytes and self._segment <= self._last
        with self._once_only():
            if is_full:
                # Its last seal too: a tear in a segment that has a successor would be damage.
                self._disk.sync(self._segment)
                self._start_segment()
            self._write(records)
            self._disk.sync(self._segment)
        self._last = records[-1].sequence

    def seal(self) -> None:
        """Say in the log up to where it is durable, so that readers may go on.

        Raises:
            OSError: the write failed, or one did before; the log is not written again.
        """
        if self._known_durable < self._last:
            with self._once_only():
                self._write(())

    def read(self, first: int) -> Iterator[Record]:
        """Yield the records from sequence `first` on, as far as they are durable now."""
        return read_records(self._disk, first, self._last)

    def follow(self, first: int) -> "LogReader":
        """Return what follows the log from sequence `first` on."""
        return LogReader(self._disk, first)

    def free_bytes(self) -> int:
        """Return how much more can be appended."""
        return self._disk.free_bytes()

    def close(self) -> None:
        """Seal, sync and let go; of a log that failed only let go."""
        try:
            if not self._has_failed:
                self.seal()
                self._disk.sync(self._segment)
        finally:
            self._disk.close()

    @contextlib.contextmanager
    def _once_only(self) -> Iterator[None]:
        """Write within this: what failed is not tried again, for nobody knows what stands on the disk."""
        if self._has_failed:
            raise OSError("a write to the log failed before: it is not written again")
        self._has_failed = True
        yield
        self._has_failed = False

    def _write(self, records: Sequence[Record]) -> None:
        data = _encode_batch(self.epoch, self._last + 1, self._last, records)
        self._disk.append(self._segment, data)
        self._known_durable = self._last
        self._size += len(data)

    def _start_segment(self) -> None:
        self._segment = self._last + 1
        self._size = 0
        self._disk.create(self._segment)

    def _recover(self, not_below: int) -> None:
        found = _segments(self._disk)
        end, size = 0, 0
        for segment in found:
            name, data = self._disk.name(segment), self._disk.read(segment)
            _refuse_other_name(name, segment, self._last + 1)
            _refuse_other_version(name, data)
            end, size = 0, len(data)
            while end < size:
                batch = batch_at(data, end)
                if batch is None:
                    self._refuse_damage_before_tail(name, data, end, segment == found[-1])
                    break
                where = f"{name} at byte {end}"
                _refuse_other_sequence(where, batch, self._last + 1)
                self.epoch = _next_epoch(where, self.epoch, batch)
                self._last = batch.last_sequence
                self._known_durable = max(self._known_durable, batch.durable)
                end = batch.end
        if self._last < not_below:
            raise LogError(
                f"the log ends with record {self._last}, but record {not_below} was seen by a reader or a "
                "checkpoint: it has lost what was told; restore it from a copy"
            )
        if not found:
            self._start_segment()
            return
        self._segment, self._size = found[-1], end
        self.cut_bytes = size - end
        # What was written but perhaps not synced when the last writer died becomes durable now.
        self._disk.truncate(self._segment, end)
        self.seal()

    def _refuse_damage_before_tail(self, name: str, data: bytes, offset: int, last_segment: bool) -> None:
        where = f"{name} is damaged at byte {offset}, in the batch of sequence {self._last + 1}"
        if not last_segment:
            raise LogError(f"{where}; later segments exist, so this is no torn tail")
        durable = _durable_later(data, offset)
        if durable > self._last:
            raise LogError(f"{where}; the log was durable up to {durable}, so this is no torn tail")


class FileLog(SegmentLog):
    """The log in a folder of segment files, held by one writer at a time."""

    def __init__(
        self,
        folder: Path,
        segment_max_bytes: int = SEGMENT_MAX_BYTES,
        *,
        not_below: int = 0,
        next_epoch: bool = False,
        wait_seconds: float = 0.0,
    ) -> None:
        """Open the folder, or make it, and cut a torn tail; wait for its lock at most so long.

        Raises:
            HeldLogError: another process holds the folder.
            LogError: as for `SegmentLog`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = FolderLock(folder, wait_seconds)
        except HeldError as error:
            raise HeldLogError(str(error)) from None
        disk = FolderDisk(folder)
        try:
            super().__init__(disk, segment_max_bytes, not_below=not_below, next_epoch=next_epoch)
        except BaseException:
            disk.close()
            self._lock.release()
            raise

    def close(self) -> None:
        """Seal, sync and let the folder go."""
        try:
            super().close()
        finally:
            self._lock.release()


def _segments(disk: Disk) -> list[int]:
    try:
        return disk.segments()
    except FolderError as error:
        raise LogError(str(error)) from None


def _refuse_other_name(name: str, segment: int, due: int) -> None:
    """A crash leaves a segment empty, but none that does not go on where the one before it ends."""
    if segment != due:
        raise LogError(f"{name} is named after record {segment}, but record {due} is due")


def _refuse_other_sequence(where: str, batch: Batch, due: int) -> None:
    if batch.first_sequence != due:
        raise LogError(f"{where}: sequence {batch.first_sequence} found, {due} due")


def _refuse_other_version(name: str, data: bytes) -> None:
    if len(data) >= 4 and data[:3] == _MAGIC[:3] and data[:4] != _MAGIC:
        raise LogError(f"{name} is of log format {data[3:4]!r}; this version reads format {_MAGIC[3:]!r}")


def _next_epoch(where: str, epoch: int, batch: Batch) -> int:
    if batch.epoch < epoch:
        raise LogError(
            f"{where}: the batch of sequence {batch.first_sequence} is of epoch {batch.epoch}, after epoch "
            f"{epoch}: it was written by a leader that had been deposed"
        )
    return batch.epoch


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


def _disk(place: Path | Disk) -> Disk:
    return FolderDisk(place) if isinstance(place, Path) else place


def read_records(place: Path | Disk, first: int = 1, last: int | None = None) -> Iterator[Record]:
    """Yield the records `first` to `last` of a log at rest; where it ends before `last`, as far as it goes.

    By default all whole batches, without a torn tail. A path is the log's folder.

    Raises:
        LogError: a batch is damaged or missing before the last one asked for.
    """
    disk = _disk(place)
    due, epoch = 0, 1
    found = _segments(disk)
    if found and found[0] > first:
        raise LogError(f"the log starts at {found[0]}; {first} was asked for")
    for index, segment in enumerate(found):
        if index + 1 < len(found) and found[index + 1] <= first:
            continue
        name, data = disk.name(segment), disk.read(segment)
        due = due or segment
        _refuse_other_name(name, segment, due)
        _refuse_other_version(name, data)
        offset = 0
        while offset < len(data):
            batch = batch_at(data, offset)
            if batch is None:
                torn = index == len(found) - 1 and _durable_later(data, offset) < due
                if last is None and torn:
                    return
                raise LogError(f"{name} is damaged at byte {offset}")
            where = f"{name} at byte {offset}"
            _refuse_other_sequence(where, batch, due)
            epoch = _next_epoch(where, epoch, batch)
            due = batch.last_sequence + 1
            if due > first:
                for record in batch.records():
                    if last is not None and record.sequence > last:
                        return
                    if record.sequence >= first:
                        yield record
            offset = batch.end
            if last is not None and due > last:
                return


class LogEnd(NamedTuple):
    """Where a log ends: by what it says itself, and by what stands in it.

    `whole` is the last record of the last whole batch; behind it stand `torn_bytes` that are none.
    """

    durable: int
    whole: int
    torn_bytes: int
    is_held: bool

    @property
    def last(self) -> int:
        """The last record that counts.

        While somebody writes, what is known to be durable. Else all whole batches, as at a start: they may
        have been told before their writer was killed.
        """
        return self.durable if self.is_held else max(self.durable, self.whole)


def end_of(folder: Path) -> LogEnd:
    """Return where the log of a folder ends, for whoever reads it and is not its writer.

    Raises:
        LogError: a file is named as no segment is.
    """
    durable, whole, torn_bytes = _end(FolderDisk(folder))
    # Asked last: what stood there before, with nobody to go on with it, is all that there is.
    return LogEnd(durable, whole, torn_bytes, is_held(folder))


def durable_end(place: Path | Disk) -> int:
    """Return up to which record the log is known to be durable, 0 for a log that is not there yet.

    Whole batches behind damage count: to read up to there is to find it.
    """
    return _end(_disk(place))[0]


def _end(disk: Disk) -> tuple[int, int, int]:
    """Return up to where the log is durable, its last whole record, and the bytes behind that."""
    found = _segments(disk)
    if not found:
        return 0, 0, 0
    # A segment is begun when all before it is durable.
    durable = whole = found[-1] - 1
    data = disk.read(found[-1])
    offset = 0
    while (batch := batch_at(data, offset)) is not None:
        durable, whole = max(durable, batch.durable), batch.last_sequence
        offset = batch.end
    if offset < len(data):
        durable = max(durable, _durable_later(data, offset))
    return durable, whole, len(data) - offset


class LogReader:
    """Follows a live log from another process: yields only what is known to be durable."""

    def __init__(self, place: Path | Disk, first: int = 1) -> None:
        """Start before sequence `first`; the log, a folder or a disk, may still be empty."""
        self._disk = _disk(place)
        self._next = first
        self._segment = 0
        self._offset = 0
        self._due = 0
        self._epoch = 1

    def poll(self) -> list[Record]:
        """Return the records that have become durable since the last call, in order, perhaps none.

        Raises:
            LogError: the log lacks records asked for, or is damaged in a segment that has a successor, or
                was written by a leader that had been deposed.
        """
        ready: list[Record] = []
        while self._segment or self._find():
            # Listed before the segment is read: it grows no more once it has a successor.
            later = [segment for segment in _segments(self._disk) if segment > self._segment]
            name, data = self._disk.name(self._segment), self._disk.read(self._segment, self._offset)
            batches: list[Batch] = []
            # A segment is begun when all before it is durable.
            durable = later[0] - 1 if later else 0
            offset = 0
            while (batch := batch_at(data, offset)) is not None:
                batches.append(batch)
                durable = max(durable, batch.durable)
                offset = batch.end
            consumed = 0
            for batch in batches:
                # The rest is read again: should its writer die, the next one may have to cut it.
                if batch.last_sequence > durable:
                    break
                where = f"{name} at byte {self._offset + consumed}"
                _refuse_other_sequence(where, batch, self._due)
                self._epoch = _next_epoch(where, self._epoch, batch)
                ready += [record for record in batch.records() if record.sequence >= self._next]
                self._due = batch.last_sequence + 1
                consumed = batch.end
            self._offset += consumed
            if not later:
                break
            if offset < len(data):
                raise LogError(f"{name} is damaged at byte {self._offset}")
            _refuse_other_name(self._disk.name(later[0]), later[0], self._due)
            self._segment, self._offset = later[0], 0
        if ready:
            self._next = ready[-1].sequence + 1
        return ready

    def _find(self) -> bool:
        found = _segments(self._disk)
        for segment in reversed(found):
            if segment <= self._next:
                self._segment, self._offset, self._due = segment, 0, segment
                return True
        if found:
            raise LogError(f"the log starts at {found[0]}; {self._next} was asked for")
        return False
