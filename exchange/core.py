"""The core process: one queue in, one log, durable records out, over a Unix socket."""

import argparse
import asyncio
import gc
import signal
import sys
from collections import deque
from collections.abc import Coroutine
from pathlib import Path
from typing import NamedTuple, cast

import uvloop

from exchange.clearer import Clearer, prices_of, terms_of
from exchange.clock import SimulatedClock, WallClock
from exchange.contract import symbol
from exchange.desk import LOW_DISK_BYTES, Desk, Inbox, Request, note_answers
from exchange.folder import DataFolder, FolderError
from exchange.follower import Follower, Promoted
from exchange.indicator import Indicator
from exchange.link import CoreLostError, frame_of
from exchange.log import FileLog, HeldLogError, Log, LogError
from exchange.process import STOP_SIGNALS, end_with_supervisor
from exchange.quarantine import Quarantine
from exchange.recovery import Recovered, keep_snapshot, recover
from exchange.sequencer import CommandFailedError, Sequencer, Taken
from exchange.slots import Command
from exchange.snapshot import Snapshots
from exchange.writer import Writer
from schemas.commands import (
    EndCall,
    ListStandingOffer,
    OpenEra,
    ProposeClearing,
    RetryBlock,
    Tick,
)
from schemas.events import Phase
from schemas.link import (
    AskClock,
    Busy,
    Clock,
    Done,
    Frame,
    Hello,
    Released,
    SetClock,
    Submit,
    Welcome,
    encode_parts,
)
from schemas.records import Record

BATCH_MAX = 1_000
UNSYNCED_MAX = 10_000
"""So many records are applied and not yet durable at most, give or take a batch."""
COMMAND_MAX_BYTES = 1024 * 1024
WATCH_SECONDS = 1.0
"""So often the clock and the room on the disk are looked at."""
CLEAR_AGAIN_SECONDS = 1.0
"""After so long a contract that still waits for its clearing is cleared anew: its orders may have changed."""
BACKLOG_MAX_BYTES = 256 * 1024 * 1024
"""A reader of records that is this far behind is cut off; it finds what it missed in the log."""
SWITCH_SECONDS = 0.0005
"""The engine lets the writer have the interpreter after so long: a sync that is done must soon be told."""

OWN_COMMANDS = frozenset({OpenEra, Tick, RetryBlock, ListStandingOffer, EndCall, ProposeClearing})
"""What the core alone submits."""


class QuarantinedError(Exception):
    """The engine failed at a command, which is kept out from now on; the message says where it lies."""


class _Client(asyncio.Protocol):
    """A connection to the core."""

    def __init__(self, core: "Core") -> None:
        self._core = core
        self._inbox = Inbox(self, COMMAND_MAX_BYTES)
        self._transport: asyncio.Transport | None = None
        self._is_known = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody connected."""
        # That of uvloop is none by its class.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Serve the frames that are whole now; who sends anything else is cut off."""
        self._core.look_at_clock()
        try:
            for one in self._inbox.read(data):
                if isinstance(one, Request) and self._is_known:
                    self._core.submit(one)
                else:
                    self._serve(one)
        except CoreLostError:
            self.close()
        if self._inbox.is_broken:
            self.close()

    def _serve(self, one: Request | bytes) -> None:
        frame = None if isinstance(one, Request) else frame_of(one)
        if self._is_known and frame is not None:
            self._core.received(self, frame)
        elif isinstance(frame, Hello):
            self._is_known = True
            self._core.welcome(self, frame.records)
        else:
            raise CoreLostError("a client that did not say hello")

    def connection_lost(self, _error: Exception | None) -> None:
        """It is gone."""
        self._core.forget(self)

    def send(self, frame: Frame) -> None:
        """Send without waiting; one that does not read is cut off."""
        assert self._transport is not None
        if self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > BACKLOG_MAX_BYTES:
            self._transport.abort()
            return
        self._transport.writelines(encode_parts(frame))

    def close(self) -> None:
        """End the connection when what was sent is written."""
        assert self._transport is not None
        self._transport.close()


class _Unsynced(NamedTuple):
    """A batch that was applied and is on its way to the disk."""

    taken: Taken
    requests: list[Request]


class Core:
    """Desk, sequencer, writer and the connections. While a batch is synced the next ones are applied."""

    def __init__(
        self, folder: DataFolder, log: Log, recovered: Recovered, low_disk_bytes: int = LOW_DISK_BYTES
    ) -> None:
        """Lead with a log that is open and what recovery made of it.

        Raises:
            FolderError: the folder cannot be used.
            OSError: the log failed.
        """
        self._settings = folder.settings()
        self._folder = folder
        self.log = log
        recovered_ns = recovered.engine.time_ns
        self.clock: WallClock | SimulatedClock = WallClock(recovered_ns)
        if self._settings.clock_speed > 0:
            # Simulated time stands while the exchange is down: it goes on where the log ends, as it did.
            self.clock = SimulatedClock(max(recovered_ns, self._settings.start_ns), folder.clock_speed())
        self.sequencer = Sequencer(recovered, self.clock)
        opening = self.sequencer.open_era(self._settings)
        if opening:
            self.log.append(opening)
        self.log.seal()
        # What recovery made stays: the collector need not look at it again.
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)
        self._applied = self._released = self.log.last_sequence
        self._unsynced: deque[_Unsynced] = deque()
        self._failure: BaseException | None = None
        self._stopping = False
        self._quarantine = Quarantine(folder.quarantine)
        self._desk = Desk(low_disk_bytes=low_disk_bytes)
        self._free_bytes = self.log.free_bytes()
        self._look()
        self._clients: set[_Client] = set()
        # Those that want every record, not only answers to their own.
        self._followers: set[_Client] = set()
        self._wake = asyncio.Event()
        self._clearer = Clearer()
        self._clearer_is_free = asyncio.Lock()
        self._clearings: dict[tuple[str, int], asyncio.Task[None]] = {}

    async def serve(self, socket: Path) -> None:
        """Listen until `stop`.

        Raises:
            OSError: the log failed. It is not touched again, and nothing after its last batch was told.
            QuarantinedError: the engine failed at a member's command.
            CommandFailedError: the engine failed at a command of the core's own.
        """
        loop = asyncio.get_running_loop()
        self._writer = Writer(
            self.log,
            lambda sequence: loop.call_soon_threadsafe(self._durable, sequence),
            lambda error: loop.call_soon_threadsafe(self._failed, error),
        )
        server = await loop.create_unix_server(lambda: _Client(self), str(socket))
        indicator = Indicator(self.sequencer.engine, self._tell_followers)
        beside = [asyncio.create_task(self._watch()), asyncio.create_task(indicator.run())]
        for task in beside:
            task.add_done_callback(self._ended)
        try:
            await self._sequence()
        finally:
            server.close()
            for task in beside:
                task.cancel()
            await indicator.stop()
            for task in self._clearings.values():
                task.cancel()
            await self._clearer.stop()
            self._writer.stop()
            for client in self._clients:
                client.close()
        self.log.close()

    def stop(self) -> None:
        """Finish what was taken, then return from `serve`."""
        self._stopping = True
        self._wake.set()

    # -- from the desk to the disk -------------------------------------------------------------------

    async def _sequence(self) -> None:
        while True:
            self._wake.clear()
            if self._failure is not None:
                raise self._failure
            self._start_clearings()
            delay = self._seconds_to_due()
            if self._applied - self._released >= UNSYNCED_MAX:
                await self._wake.wait()
            elif len(self._desk) or (delay is not None and delay <= 0 and not self._stopping):
                self._take()
                # Between batches sockets are read, and what is durable is told.
                await asyncio.sleep(0)
            elif self._stopping and self._released == self._applied:
                return
            else:
                await self._woken(delay)

    async def _woken(self, delay: float | None) -> None:
        """Return when there may be something to do, at the latest after so many seconds."""
        if delay is None or self._stopping:
            await self._wake.wait()
            return
        # No longer than that: the wall clock may be set forward meanwhile.
        timer = asyncio.get_running_loop().call_later(min(delay, WATCH_SECONDS), self._wake.set)
        await self._wake.wait()
        timer.cancel()

    def _take(self) -> None:
        """Apply what goes next and what is due, and have it made durable."""
        requests = self._desk.take(BATCH_MAX)
        try:
            taken = self.sequencer.take([request.command for request in requests])
        except CommandFailedError as error:
            if type(error.command) in OWN_COMMANDS:
                raise
            path = self._quarantine.add(error.command, error)
            raise QuarantinedError(f"{error}; it is refused from now on: {path}") from error
        if taken.records:
            self._applied = taken.records[-1].sequence
            self._unsynced.append(_Unsynced(taken, requests))
            self._writer.put(taken.records)

    def _failed(self, error: BaseException) -> None:
        self._failure = error
        self._wake.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._failed(error)

    def _tell_followers(self, frame: Frame) -> None:
        for client in self._followers:
            client.send(frame)

    def _durable(self, sequence: int) -> None:
        """Tell what is durable now: only now may anyone hear of it."""
        records: list[Record] = []
        answers: dict[_Client, list[tuple[int, int]]] = {}
        while self._unsynced and self._unsynced[0].taken.records[-1].sequence <= sequence:
            taken, requests = self._unsynced.popleft()
            note_answers(answers, len(records), taken.answers, requests)
            records += taken.records
        self._released = sequence
        self._wake.set()
        for client in self._followers:
            correlations = [0] * len(records)
            for place, number in answers.pop(client, ()):
                correlations[place] = number
            client.send(Released(tuple(records), tuple(correlations)))
        for client, own in answers.items():
            client.send(Released(tuple([records[place] for place, _ in own]), tuple([n for _, n in own])))

    # -- what may be taken ---------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self._free_bytes = self.log.free_bytes()
            self._look()

    def look_at_clock(self) -> None:
        """See whether the clock has parted before anything is taken at its time."""
        self.clock.now_ns()
        if self.clock.parted_ns != self._parted_ns:
            self._look()

    def _look(self) -> None:
        before = self._desk.cancels_only
        self.clock.now_ns()
        self._parted_ns = self.clock.parted_ns
        self._desk.look(self._free_bytes, self._parted_ns)
        if self._desk.cancels_only != before:
            now = self._desk.cancels_only
            words = f"only cancels are taken: {now}" if now else "all commands are taken again"
            sys.stderr.write(f"core: {words}\n")

    def _seconds_to_due(self) -> float | None:
        due = self.sequencer.next_due_ns()
        if due is None or self.clock.speed == 0:
            return None if due is None or due > self.clock.now_ns() else 0
        return (due - self.clock.now_ns()) / self.clock.speed / 1e9

    def _start_clearings(self) -> None:
        """Have every contract that waits for its clearing cleared; nothing else waits meanwhile."""
        for contract, task in list(self._clearings.items()):
            if task.done():
                del self._clearings[contract]
                # What it cannot answer for ends the process.
                task.result()
        for class_code, hour, _, is_clearing in self.sequencer.engine.calls():
            if is_clearing and (class_code, hour) not in self._clearings:
                task = asyncio.create_task(self._clear(class_code, hour))
                task.add_done_callback(lambda _: self._wake.set())
                self._clearings[class_code, hour] = task

    async def _clear(self, class_code: str, hour: int) -> None:
        """Propose a contract's clearing, and return when it is time to see whether it was taken."""
        engine = self.sequencer.engine
        # Read when the helper is free: the later, the less may have changed when the proposal is tried.
        async with self._clearer_is_free:
            if engine.phase(class_code, hour) is not Phase.CLEARING:
                return
            try:
                clearing = await self._clearer.clear(terms_of(engine, class_code, hour))
            except OSError as error:
                sys.stderr.write(f"core: {symbol(class_code, hour)} is cleared later: {error}\n")
            else:
                prices = prices_of(engine, clearing)
                self._desk.put_own(ProposeClearing(class_code, hour, clearing.fills, prices))
                self._wake.set()
        await asyncio.sleep(CLEAR_AGAIN_SECONDS)

    # -- connections ---------------------------------------------------------------------------------

    def welcome(self, client: _Client, records: bool) -> None:
        """Let a client hear what becomes durable from now on."""
        client.send(Welcome(self._released, self.clock.now_ns(), self.clock.speed, self.clock.simulated))
        self._clients.add(client)
        if records:
            self._followers.add(client)

    def forget(self, client: _Client) -> None:
        """Tell the client nothing more."""
        self._clients.discard(client)
        self._followers.discard(client)

    def received(self, client: _Client, frame: Frame) -> None:
        """Serve a frame.

        Raises:
            CoreLostError: it is one that only the core sends.
        """
        match frame:
            case Submit():
                self.submit(Request(client, frame.correlation, frame.command))
            case AskClock(correlation):
                client.send(Clock(correlation, self.clock.now_ns(), self.clock.speed))
            case SetClock(correlation, time_ns, speed):
                self._set_clock(client, correlation, time_ns, speed)
            case _:
                raise CoreLostError("a frame that only the core sends")

    def submit(self, request: Request) -> None:
        """Take a client's command in, or tell him why not."""
        command = request.command
        refusal = ""
        if not isinstance(command, Command) and type(command) in OWN_COMMANDS:
            refusal = f"{command.__struct_config__.tag} is given by the core alone"
        elif self._quarantine.holds(command):
            refusal = "the exchange failed at this very command before and refuses it"
        if refusal:
            request.client.send(Done(request.correlation, refusal))
        elif busy := "the exchange is stopping" if self._stopping else self._desk.put(request):
            request.client.send(Busy(request.correlation, busy))
        else:
            self._wake.set()

    def _set_clock(self, client: _Client, correlation: int, time_ns: int | None, speed: int | None) -> None:
        if not isinstance(self.clock, SimulatedClock):
            client.send(Done(correlation, "the clock of this exchange is real and cannot be set"))
            return
        # A tick answers: when it is durable, so is all that was due before it.
        request = Request(client, correlation, Tick())
        if busy := self._desk.refusal(request):
            client.send(Busy(correlation, busy))
            return
        try:
            self.clock.set(time_ns, speed)
            self._folder.keep_clock_speed(self.clock.speed)
        except (ValueError, OSError) as error:
            client.send(Done(correlation, str(error)))
            return
        self._desk.put(request)
        self._wake.set()


async def lead(
    folder: DataFolder, log: Log, recovered: Recovered, low_disk_bytes: int = LOW_DISK_BYTES
) -> None:
    """Be the core of the exchange, on its socket, until a signal says to stop.

    Raises:
        FolderError: the folder cannot be used.
        OSError, QuarantinedError, CommandFailedError: as for `Core.serve`.
    """
    core = Core(folder, log, recovered, low_disk_bytes)
    folder.core_socket.unlink(missing_ok=True)
    sys.setswitchinterval(SWITCH_SECONDS)
    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, core.stop)
    await core.serve(folder.core_socket)
    # By the leader itself, whether it has a follower or not: another release starts from this very state.
    record = next(log.read(log.last_sequence))
    last = Recovered(core.sequencer.engine, core.sequencer.era, record.sequence, at=record)
    try:
        keep_snapshot(Snapshots(folder.snapshots, low_disk_bytes), last)
    except OSError as error:
        _tell(f"no snapshot of record {last.sequence} was made: {error}")


async def _stand_by(folder: DataFolder, low_disk_bytes: int) -> Promoted | None:
    """Follow who leads the folder; return when told to lead it, or with None when told to stop."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    promoted = await Follower(folder, _tell, low_disk_bytes=low_disk_bytes).run(stop)
    if promoted is not None and stop.is_set():
        promoted.log.close()
        return None
    return promoted


async def _ending(process: Coroutine[None, None, None]) -> None:
    try:
        await process
    finally:
        # It is ending: who says so again shall not end it in the middle of that.
        for number in STOP_SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)


def ended(process: Coroutine[None, None, None]) -> int:
    """Run the process to its end and return its exit code, after a last sentence where it could not go on."""
    try:
        uvloop.run(_ending(process))
    except (FolderError, LogError, QuarantinedError) as error:
        sys.stderr.write(f"core: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"core: stopped, nothing after the last answer was told: {error}\n")
        return 1
    return 0


async def _run(folder: DataFolder, low_disk_bytes: int, stands_by: bool) -> None:
    snapshots = Snapshots(folder.snapshots)
    try:
        log = FileLog(folder.log, not_below=snapshots.last_sequence)
        snapshots.remove_unfinished()
        recovered = recover(log, snapshots.whole(_tell))
    except HeldLogError:
        if not stands_by:
            raise
        promoted = await _stand_by(folder, low_disk_bytes)
        if promoted is None:
            return
        log, recovered = promoted
    except OSError as error:
        raise FolderError(f"{folder.path} cannot be led: {error}") from error
    if log.cut_bytes:
        _tell(
            f"{log.cut_bytes} bytes behind record {log.last_sequence} were cut off the log: a batch that a "
            "crash cut short, or damage to one that may have been told"
        )
    await lead(folder, log, recovered, low_disk_bytes)


def _tell(words: str) -> None:
    sys.stderr.write(f"core: {words}\n")


def main() -> int:
    """Run the core of the exchange in a data folder until told to stop.

    With --stand-by, where another process leads the folder, follow it and lead once promoted: so the two
    change places, and whoever is started again is what is wanted.
    """
    for number in STOP_SIGNALS:
        # Until it leads or follows, there is nothing to finish.
        signal.signal(number, lambda *_: sys.exit(0))
    end_with_supervisor()
    parser = argparse.ArgumentParser(prog="cux-core", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--low-disk-bytes", type=int, default=LOW_DISK_BYTES)
    parser.add_argument("--stand-by", action="store_true")
    arguments = parser.parse_args()
    return ended(_run(DataFolder(arguments.folder), arguments.low_disk_bytes, arguments.stand_by))


if __name__ == "__main__":
    sys.exit(main())
