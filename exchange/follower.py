"""The follower: applies the log again in a process of its own, makes snapshots, and stands by to lead."""

import asyncio
import contextlib
import gc
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct

from exchange.desk import LOW_DISK_BYTES
from exchange.disk import FolderDisk
from exchange.folder import DataFolder, FolderError
from exchange.link import CoreLink, CoreLostError
from exchange.lock import FolderLock, HeldError, Holder, holder_of, process
from exchange.log import (
    FileLog,
    HeldLogError,
    LogError,
    LogReader,
    SegmentLog,
    durable_end,
    read_records,
)
from exchange.recovery import Recovered, keep_snapshot, reapply, start_from
from exchange.snapshot import Snapshots
from schemas.records import Record

POLL_SECONDS = 0.02
SLICE_RECORDS = 500
"""After so many records the follower looks whether it is asked something."""
SNAPSHOT_RECORDS = 100_000
SNAPSHOT_SECONDS = 600.0
TAKE_OVER_SECONDS = 3.0
"""How long a follower that starts waits for one that has just been promoted to stand aside."""
LOOK_SECONDS = 2.0
"""After so long without a record, where there are bytes, the follower looks whether they are damage."""
CATCH_UP_SECONDS = 5.0
"""How long a promotion waits for the follower to have applied what is durable."""
LOCK_SECONDS = 0.1
PROMOTE_SECONDS = 20.0
"""How long a promotion waits for the leader's end: one that waits for a disk cannot be killed at once."""
STATUS_SECONDS = 10.0
PROMOTED_SECONDS = 120.0
"""How long the answer to a promotion may take: before the leader is ended the whole log is read."""
_LINE_MAX_BYTES = 4096


class StandbyError(Exception):
    """The follower is not there, or cannot do what it was asked; the message says why."""


class Ask(Struct, frozen=True, forbid_unknown_fields=True):
    """What a follower is asked: how it stands, or to lead."""

    ask: Literal["status", "promote"]


class Standing(Struct, frozen=True):
    """How a follower stands: what it has applied, and up to where the log is known durable.

    `fault` says why it cannot go on, empty while it can. `leads` says that it was promoted, and from which
    epoch on; `refused` why it was not.
    """

    sequence: int
    durable: int
    fault: str = ""
    leads: bool = False
    epoch: int = 0
    refused: str = ""

    @property
    def behind(self) -> int:
        """How many records it has still to apply."""
        return max(0, self.durable - self.sequence)


class Promoted(NamedTuple):
    """The log, which is now this process's to write, and what it makes."""

    log: FileLog
    recovered: Recovered


class _Asked(NamedTuple):
    """A promotion that was asked for: who waits, up to where the log was durable then, and until when."""

    by: asyncio.StreamReader
    answer: asyncio.Future[Standing]
    durable: int
    deadline: float


class _Watched(FolderDisk):
    """A disk that says whether there was anything where it was read last."""

    found = False

    def read(self, segment: int, offset: int = 0) -> bytes:
        """Return what stands in the segment from `offset` on."""
        data = super().read(segment, offset)
        self.found = bool(data)
        return data


class _Untouched(FolderDisk):
    """A disk that is only read, whatever is asked of it: to try whether a log could be led."""

    def create(self, segment: int) -> None:
        """Do nothing."""

    def append(self, segment: int, data: bytes) -> None:
        """Do nothing."""

    def sync(self, segment: int) -> None:
        """Do nothing."""

    def truncate(self, segment: int, size: int) -> None:
        """Do nothing."""


class Follower:
    """Follows the log of a folder until it is stopped or promoted."""

    def __init__(
        self,
        folder: DataFolder,
        tell: Callable[[str], None],
        snapshot_records: int = SNAPSHOT_RECORDS,
        snapshot_seconds: float = SNAPSHOT_SECONDS,
        low_disk_bytes: int = LOW_DISK_BYTES,
    ) -> None:
        """Become the folder's one follower, and start from its newest snapshot.

        Raises:
            FolderError: the folder has a follower.
            LogError: log and snapshots do not fit.
        """
        self._folder = folder
        self._tell = tell
        self._snapshot_records, self._snapshot_seconds = snapshot_records, snapshot_seconds
        self._snapshots = Snapshots(folder.snapshots, low_disk_bytes)
        try:
            self._lock = FolderLock(folder.run, TAKE_OVER_SECONDS)
        except HeldError:
            raise FolderError(f"{folder.path} is led and has a follower already") from None
        last = durable_end(folder.log)
        self.recovered = start_from(self._snapshots.whole(tell), last)
        self._end_of_start = last
        self._kept = self.recovered.sequence
        self._kept_at = time.monotonic()
        # What recovery made stays: the collector need not look at it again.
        gc.set_threshold(100_000, 50, 100)
        self._fault = ""
        # The one that it leads, once it was promoted.
        self._epoch = 0
        # Up to where the log was seen to be durable: who reads it finds so much.
        self._durable = last
        self._wake = asyncio.Event()
        self._promotions: list[_Asked] = []
        self._answering: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event) -> Promoted | None:
        """Follow until `stop`, then return None; or until promoted, then return what to lead with.

        Where the log is damaged, or gives other events when it is applied again, the follower says so and
        goes no further. It stays, to tell whoever asks, and refuses to lead.

        Raises:
            LogError: it was promoted, and the log could not be led after all.
        """
        socket = self._folder.standby_socket
        socket.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._connected, str(socket), limit=_LINE_MAX_BYTES)
        stopping = asyncio.create_task(self._wake_at(stop))
        try:
            promoted = await self._follow(stop)
            if promoted is None and not self._fault:
                self._keep()
            return promoted
        finally:
            stopping.cancel()
            server.close()
            socket.unlink(missing_ok=True)
            while self._answering:
                self._answer("" if self._epoch else "the follower stops")
                await asyncio.wait(self._answering, timeout=POLL_SECONDS)
            self._lock.release()

    async def _wake_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._wake.set()

    async def _follow(self, stop: asyncio.Event) -> Promoted | None:
        slices = self._slices()
        while not stop.is_set():
            has_advanced = not self._fault and self._advance(slices)
            if self._promotions:
                promoted = await self._promote()
                if promoted is not None:
                    return promoted
            if not self._fault and self._is_snapshot_due():
                self._keep()
            self._wake.clear()
            if has_advanced:
                await asyncio.sleep(0)
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), POLL_SECONDS)
        return None

    def _advance(self, slices: Iterator[list[Record]]) -> bool:
        """Apply what comes next and return whether anything did."""
        try:
            records = next(slices)
            for record in records:
                self.recovered = reapply(self.recovered, record)
        except (LogError, OSError) as error:
            self._fail(error)
            return False
        return bool(records)

    def _slices(self) -> Iterator[list[Record]]:
        """Yield what is known durable, in order, a slice at a time; an empty one where that is all, now.

        Raises:
            LogError: the log is damaged.
        """
        # What is there already, however much, is not read into memory at once.
        # From the record of the snapshot on: it says whether that is one of this log.
        stored = read_records(self._folder.log, max(self.recovered.sequence, 1), self._end_of_start)
        while records := list(itertools.islice(stored, SLICE_RECORDS)):
            yield records
        disk = _Watched(self._folder.log)
        reader = LogReader(disk, self.recovered.sequence + 1)
        quiet_since = time.monotonic()
        while True:
            if records := reader.poll():
                for start in range(0, len(records), SLICE_RECORDS):
                    yield records[start : start + SLICE_RECORDS]
                quiet_since = time.monotonic()
                continue
            # Damage in the newest segment reads like its end; but what was durable before must come.
            if self.recovered.sequence < self._durable:
                raise LogError(
                    f"the log in {self._folder.log} is damaged behind record {self.recovered.sequence}: "
                    f"it is durable up to record {self._durable}, and no more can be read"
                )
            if disk.found and time.monotonic() - quiet_since > LOOK_SECONDS:
                self._look()
                quiet_since = time.monotonic()
            yield []

    def _look(self) -> int:
        """Return up to where the log is durable now, or was when that could be seen last."""
        try:
            self._durable = max(self._durable, durable_end(self._folder.log))
        except (LogError, OSError) as error:
            self._fail(error)
        return self._durable

    def _fail(self, error: LogError | OSError) -> None:
        """Go no further; say so once."""
        if not self._fault:
            self._fault = str(error)
            self._tell(f"the follower stands still at record {self.recovered.sequence}: {error}")

    # -- snapshots -------------------------------------------------------------------------------------

    def _is_snapshot_due(self) -> bool:
        new = self.recovered.sequence - self._kept
        late = time.monotonic() - self._kept_at > self._snapshot_seconds
        return new >= self._snapshot_records or (new > 0 and late)

    def _keep(self) -> None:
        """Make a snapshot of what is new; without room for it the follower goes on."""
        try:
            keep_snapshot(self._snapshots, self.recovered)
        except OSError as error:
            self._tell(f"no snapshot of record {self.recovered.sequence} was made: {error}")
        self._kept, self._kept_at = self.recovered.sequence, time.monotonic()

    # -- promotion -------------------------------------------------------------------------------------

    async def _promote(self) -> Promoted | None:
        """Take the leader's place where that can be done, else leave him be; tell who asked how it went."""
        # Who went away meanwhile did not wait for it: the leader may have come round since.
        if all(asked.by.at_eof() for asked in self._promotions):
            self._answer("nobody waits for it any more")
            return None
        first = self._promotions[0]
        if not self._fault and self.recovered.sequence < first.durable:
            if time.monotonic() > first.deadline:
                self._answer("the follower is too far behind to lead; ask again")
            return None
        if obstacle := self._obstacle():
            self._answer(f"the follower cannot lead: {obstacle}")
            return None
        try:
            promoted = await self._take_over()
        except StandbyError as error:
            self._answer(str(error))
            return None
        except LogError as error:
            self._answer(str(error))
            raise
        self._epoch = promoted.log.epoch
        self._answer()
        return promoted

    def _answer(self, refused: str = "") -> None:
        """Tell those who asked for a promotion that it is done, or why it is not."""
        standing = self._standing(refused)
        for asked in self._promotions:
            asked.answer.set_result(standing)
        self._promotions.clear()

    def _obstacle(self) -> str:
        """Return why the folder cannot be led by this process, empty where it can.

        The log is opened as a leader opens it, without a write: what would refuse him is found while the one
        who leads, and may hold the last sound copy in memory, still lives.
        """
        if not self._fault:
            try:
                self._folder.settings()
                SegmentLog(_Untouched(self._folder.log), not_below=self.recovered.sequence)
            except FolderError as error:
                return str(error)
            except (LogError, OSError) as error:
                self._fail(error)
        return self._fault

    async def _take_over(self) -> Promoted:
        """End whoever leads, until the log is ours; bring the engine to its end.

        Raises:
            StandbyError: the leader does not end.
            LogError: the log cannot be led.
        """
        deadline = time.monotonic() + PROMOTE_SECONDS
        while True:
            holder = holder_of(self._folder.log)
            if holder is not None:
                await end_process(holder, deadline)
            try:
                log = FileLog(
                    self._folder.log,
                    not_below=self.recovered.sequence,
                    next_epoch=True,
                    wait_seconds=LOCK_SECONDS,
                )
                break
            except HeldLogError:
                # Another process has led since, or has not yet said who it is.
                if time.monotonic() > deadline:
                    raise StandbyError("the folder is led by a process that does not end") from None
        for record in log.read(self.recovered.sequence + 1):
            self.recovered = reapply(self.recovered, record)
        return Promoted(log, self.recovered)

    # -- the door --------------------------------------------------------------------------------------

    def _standing(self, refused: str = "") -> Standing:
        durable = max(self._look(), self.recovered.sequence)
        leads = self._epoch > 0
        return Standing(self.recovered.sequence, durable, self._fault, leads, self._epoch, refused)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            asked = msgspec.json.decode(await reader.readline(), type=Ask)
            # From here on the answer is owed, also when the follower ends.
            self._answering.add(task)
            if asked.ask == "promote":
                # Who asked while this process was held up, and went away since, is seen to be gone then.
                await asyncio.sleep(POLL_SECONDS)
                answer: asyncio.Future[Standing] = asyncio.get_running_loop().create_future()
                deadline = time.monotonic() + CATCH_UP_SECONDS
                self._promotions.append(_Asked(reader, answer, self._look(), deadline))
                self._wake.set()
                standing = await answer
            else:
                standing = self._standing()
            writer.write(msgspec.json.encode(standing) + b"\n")
            await writer.drain()
        except (ConnectionError, ValueError):
            # Who does not ask as we are asked is not answered.
            pass
        finally:
            self._answering.discard(task)
            writer.close()


async def end_process(holder: Holder, deadline: float) -> None:
    """Kill exactly this process and return when it has ended; one that has ended already is no matter.

    Raises:
        StandbyError: it may not be killed, or has not ended at the deadline (of the monotonic clock).
    """
    assert holder.pid != os.getpid()
    try:
        handle = os.pidfd_open(holder.pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    try:
        # The handle is of one process for good; only now is it known of which.
        if process(holder.pid) != holder:
            return
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        loop.add_reader(handle, ended.set)
        await asyncio.wait_for(ended.wait(), max(0.0, deadline - time.monotonic()))
    except ProcessLookupError:
        return
    except PermissionError:
        raise StandbyError(f"the leader, process {holder.pid}, belongs to another user") from None
    except TimeoutError:
        raise StandbyError(f"the leader, process {holder.pid}, was killed and does not end") from None
    finally:
        loop.remove_reader(handle)
        os.close(handle)


async def ask_standby(folder: DataFolder, ask: Literal["status", "promote"]) -> Standing:
    """Ask the folder's follower, and return what it says; once it leads, when its socket takes commands.

    Raises:
        StandbyError: there is no follower, or it refuses.
    """
    seconds = STATUS_SECONDS if ask == "status" else PROMOTED_SECONDS
    try:
        reader, writer = await asyncio.open_unix_connection(str(folder.standby_socket))
        try:
            writer.write(msgspec.json.encode(Ask(ask)) + b"\n")
            line = await asyncio.wait_for(reader.readline(), seconds)
        finally:
            writer.close()
    except TimeoutError:
        raise StandbyError(f"the follower at {folder.path} has not answered in {seconds:g} seconds") from None
    except OSError:
        line = b""
    if not line:
        raise StandbyError(f"no follower stands by at {folder.path}")
    standing = msgspec.json.decode(line, type=Standing)
    if standing.refused:
        raise StandbyError(standing.refused)
    if standing.leads:
        await _until_led(folder.core_socket)
    return standing


async def _until_led(socket: Path) -> None:
    deadline = time.monotonic() + PROMOTE_SECONDS
    while True:
        try:
            await (await CoreLink.connect(socket)).close()
            return
        except (OSError, CoreLostError) as error:
            if time.monotonic() > deadline:
                raise StandbyError(f"the new leader does not answer: {error}") from None
        await asyncio.sleep(POLL_SECONDS)
