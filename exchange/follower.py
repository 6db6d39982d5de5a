"""The follower: applies the log again in a process of its own, makes snapshots, and stands by to lead."""

import asyncio
import contextlib
import gc
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct

from exchange.folder import DataFolder, FolderError
from exchange.link import CoreLink, CoreLostError
from exchange.lock import FolderLock, HeldError, Holder, holder_of, process
from exchange.log import FileLog, HeldLogError, LogError, LogReader, durable_end, read_records
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
LOCK_SECONDS = 0.1
PROMOTE_SECONDS = 20.0
"""How long a promotion waits for the leader's end: one that waits for a disk cannot be killed at once."""
_LINE_MAX_BYTES = 4096


class StandbyError(Exception):
    """The follower is not there, or cannot do what it was asked; the message says why."""


class Ask(Struct, frozen=True, forbid_unknown_fields=True):
    """What a follower is asked: how it stands, or to lead."""

    ask: Literal["status", "promote"]


class Standing(Struct, frozen=True):
    """How a follower stands: what it has applied, and up to where the log is known durable.

    `leads` says that it was promoted, and from which epoch on; `refused` why it was not.
    """

    sequence: int
    durable: int
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


class Follower:
    """Follows the log of a folder until it is stopped or promoted."""

    def __init__(
        self,
        folder: DataFolder,
        tell: Callable[[str], None],
        snapshot_records: int = SNAPSHOT_RECORDS,
        snapshot_seconds: float = SNAPSHOT_SECONDS,
    ) -> None:
        """Become the folder's one follower, and start from its newest snapshot.

        Raises:
            FolderError: the folder has a follower.
            LogError: log and snapshots do not fit.
        """
        self._folder = folder
        self._tell = tell
        self._snapshot_records, self._snapshot_seconds = snapshot_records, snapshot_seconds
        self._snapshots = Snapshots(folder.snapshots)
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
        self._wake = asyncio.Event()
        self._promotions: list[asyncio.Future[Standing]] = []
        self._answering: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event) -> Promoted | None:
        """Follow until `stop`, then return None; or until promoted, then return what to lead with.

        Raises:
            LogError: the log gives other events when it is applied again, or is damaged.
        """
        socket = self._folder.standby_socket
        socket.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._connected, str(socket), limit=_LINE_MAX_BYTES)
        stopping = asyncio.create_task(self._wake_at(stop))
        try:
            promoted = await self._follow(stop)
            if promoted is None:
                self._keep()
            return promoted
        finally:
            stopping.cancel()
            for asked in self._promotions:
                asked.set_result(self._standing(refused="the follower stops"))
            server.close()
            socket.unlink(missing_ok=True)
            if self._answering:
                await asyncio.wait(self._answering)
            self._lock.release()

    async def _wake_at(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._wake.set()

    async def _follow(self, stop: asyncio.Event) -> Promoted | None:
        log = self._folder.log
        for count, record in enumerate(read_records(log, self.recovered.sequence + 1, self._end_of_start)):
            self._apply(record)
            if count % SLICE_RECORDS == 0:
                await asyncio.sleep(0)
                if stop.is_set():
                    return None
        reader = LogReader(log, self.recovered.sequence + 1)
        while not stop.is_set():
            records = reader.poll()
            for start in range(0, len(records), SLICE_RECORDS):
                for record in records[start : start + SLICE_RECORDS]:
                    self._apply(record)
                await asyncio.sleep(0)
            if self._promotions:
                promoted = await self._promote()
                if promoted is not None:
                    return promoted
            if self._is_snapshot_due():
                self._keep()
            self._wake.clear()
            if not records:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), POLL_SECONDS)
        return None

    def _apply(self, record: Record) -> None:
        self.recovered = reapply(self.recovered, record)

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
        """End the leader, take the log over; tell all who asked how it went."""
        try:
            promoted = await self._take_over()
        except StandbyError as error:
            self._answer(self._standing(refused=str(error)))
            return None
        except LogError as error:
            self._answer(self._standing(refused=str(error)))
            raise
        self._answer(self._standing(leads=True, epoch=promoted.log.epoch))
        return promoted

    def _answer(self, standing: Standing) -> None:
        for asked in self._promotions:
            asked.set_result(standing)
        self._promotions.clear()

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
            self._apply(record)
        return Promoted(log, self.recovered)

    # -- the door --------------------------------------------------------------------------------------

    def _standing(self, *, leads: bool = False, epoch: int = 0, refused: str = "") -> Standing:
        durable = max(durable_end(self._folder.log), self.recovered.sequence)
        return Standing(self.recovered.sequence, durable, leads, epoch, refused)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            asked = msgspec.json.decode(await reader.readline(), type=Ask)
            # From here on the answer is owed, also when the follower ends.
            self._answering.add(task)
            if asked.ask == "promote":
                answer: asyncio.Future[Standing] = asyncio.get_running_loop().create_future()
                self._promotions.append(answer)
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
    try:
        reader, writer = await asyncio.open_unix_connection(str(folder.standby_socket))
        writer.write(msgspec.json.encode(Ask(ask)) + b"\n")
        line = await reader.readline()
        writer.close()
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
