"""The core process: one queue in, one log, durable records out, over a Unix socket."""

import argparse
import asyncio
import contextlib
import gc
import signal
import sys
from collections import deque
from pathlib import Path

from exchange.calls import price_of
from exchange.clearer import Clearer, terms_of
from exchange.clock import SimulatedClock, WallClock
from exchange.contract import symbol
from exchange.folder import DataFolder, FolderError
from exchange.link import CoreLostError, read_frame
from exchange.log import FileLog, LogError
from exchange.process import end_with_supervisor
from exchange.recovery import recover
from exchange.sequencer import Sequencer
from schemas.commands import (
    AnyCommand,
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
    encode_frame,
)
from schemas.records import Record

QUEUE_MAX = 10_000
BATCH_MAX = 1_000
WAIT_MAX_SECONDS = 1.0
CLEAR_AGAIN_SECONDS = 1.0
"""After so long a contract that still waits for its clearing is cleared anew: its orders may have changed."""
BACKLOG_MAX_BYTES = 256 * 1024 * 1024
"""A reader of records that is this far behind is cut off; it finds what it missed in the log."""

OWN_COMMANDS = (OpenEra, Tick, RetryBlock, ListStandingOffer, EndCall, ProposeClearing)
"""What the core alone submits."""


class _Client:
    """A connection to the core."""

    def __init__(self, writer: asyncio.StreamWriter, records: bool) -> None:
        self.writer = writer
        self.records = records

    def send(self, frame: Frame) -> None:
        """Send without waiting; one that does not read is cut off."""
        if self.writer.is_closing():
            return
        if self.writer.transport.get_write_buffer_size() > BACKLOG_MAX_BYTES:
            self.writer.transport.abort()
            return
        self.writer.write(encode_frame(frame))


class Core:
    """Sequencer, log and the connections; one batch at a time is on its way to the disk."""

    def __init__(self, folder: DataFolder) -> None:
        """Recover from the log.

        Raises:
            FolderError, LogError: the folder cannot be used.
        """
        self._settings = folder.settings()
        self._folder = folder
        self.log = FileLog(folder.log)
        self.clock: WallClock | SimulatedClock = WallClock()
        simulated = self._settings.clock_speed > 0
        if simulated:
            self.clock = SimulatedClock(self._settings.start_ns)
        self.sequencer = Sequencer(recover(self.log), self.clock)
        recovered_ns = self.sequencer.engine.time_ns
        if isinstance(self.clock, SimulatedClock):
            # Simulated time stands while the exchange is down: it goes on where the log ends, as it did.
            self.clock.set(max(recovered_ns, self._settings.start_ns), folder.clock_speed())
        else:
            self.clock = WallClock(recovered_ns)
        opening = self.sequencer.open_era(self._settings)
        if opening:
            self.log.append(opening)
        self.log.seal()
        # What recovery made stays: the collector need not look at it again.
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)
        self._released = self.log.last_sequence
        self._stopping = False
        self._clients: set[_Client] = set()
        # Without a client: the core's own proposals.
        self._queue: deque[tuple[_Client | None, int, AnyCommand]] = deque()
        self._wake = asyncio.Event()
        self._clearer = Clearer()
        self._clearer_is_free = asyncio.Lock()
        self._clearings: dict[tuple[str, int], asyncio.Task[None]] = {}

    async def serve(self, socket: Path) -> None:
        """Listen until `stop`.

        Raises:
            OSError: the log failed. It is not touched again, and nothing after its last batch was told.
        """
        server = await asyncio.start_unix_server(self._connected, str(socket), limit=1 << 20)
        try:
            await self._sequence()
        finally:
            server.close()
            for task in self._clearings.values():
                task.cancel()
            await self._clearer.stop()
            for client in self._clients:
                client.writer.close()
        self.log.close()

    def stop(self) -> None:
        """Finish what was taken, then return from `serve`."""
        self._stopping = True
        self._wake.set()

    async def _sequence(self) -> None:
        while not (self._stopping and not self._queue):
            await self._work()
            batch = [self._queue.popleft() for _ in range(min(BATCH_MAX, len(self._queue)))]
            await self._commit(batch)

    async def _work(self) -> None:
        """Return when a command waits or something is due."""
        while True:
            self._start_clearings()
            if self._queue or self._stopping:
                return
            self._wake.clear()
            delay = self._seconds_to_due()
            if delay is not None and delay <= 0:
                return
            self.log.seal()
            # No longer than that: the wall clock may be set forward meanwhile.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    self._wake.wait(), None if delay is None else min(delay, WAIT_MAX_SECONDS)
                )

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
            book = engine.call_book(class_code, hour)
            try:
                clearing = await self._clearer.clear(terms_of(book, engine.market.eligibility.served_by))
            except OSError as error:
                sys.stderr.write(f"core: {symbol(class_code, hour)} is cleared later: {error}\n")
            else:
                prices = tuple(price_of(engine.market, cell) for cell in clearing.cells())
                proposal = ProposeClearing(class_code, hour, clearing.fills, prices)
                self._queue.append((None, 0, proposal))
                self._wake.set()
        await asyncio.sleep(CLEAR_AGAIN_SECONDS)

    async def _commit(self, batch: list[tuple[_Client | None, int, AnyCommand]]) -> None:
        records, answers = self.sequencer.take([command for _, _, command in batch])
        if not records:
            return
        await asyncio.get_running_loop().run_in_executor(None, self.log.append, records)
        # Durable: only now may anyone hear of it.
        self._released = records[-1].sequence
        for client in list(self._clients):
            mine = [0] * len(records)
            for place, (owner, correlation, _) in zip(answers, batch, strict=True):
                if owner is client:
                    mine[place] = correlation
            self._release(client, records, mine)

    def _release(self, client: _Client, records: list[Record], correlations: list[int]) -> None:
        if client.records:
            client.send(Released(tuple(records), tuple(correlations)))
            return
        own = [(record, number) for record, number in zip(records, correlations, strict=True) if number]
        if own:
            client.send(Released(tuple(record for record, _ in own), tuple(number for _, number in own)))

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = None
        try:
            hello = await read_frame(reader)
            if not isinstance(hello, Hello):
                return
            client = _Client(writer, hello.records)
            client.send(Welcome(self._released, self.clock.now_ns(), self.clock.speed, self.clock.simulated))
            self._clients.add(client)
            while (frame := await read_frame(reader)) is not None:
                await self._received(client, frame)
        except (ConnectionError, CoreLostError):
            pass
        finally:
            if client is not None:
                self._clients.discard(client)
            writer.close()

    async def _received(self, client: _Client, frame: Frame) -> None:
        match frame:
            case Submit(correlation, command) if isinstance(command, OWN_COMMANDS):
                client.send(Done(correlation, f"{command.__struct_config__.tag} is given by the core alone"))
            case Submit(correlation, command):
                if len(self._queue) >= QUEUE_MAX:
                    client.send(Busy(correlation))
                else:
                    self._queue.append((client, correlation, command))
                    self._wake.set()
            case AskClock(correlation):
                client.send(Clock(correlation, self.clock.now_ns(), self.clock.speed))
            case SetClock(correlation, time_ns, speed):
                self._set_clock(client, correlation, time_ns, speed)
            case _:
                raise CoreLostError("a frame that only the core sends")

    def _set_clock(self, client: _Client, correlation: int, time_ns: int | None, speed: int | None) -> None:
        if not isinstance(self.clock, SimulatedClock):
            client.send(Done(correlation, "the clock of this exchange is real and cannot be set"))
            return
        try:
            self.clock.set(time_ns, speed)
            self._folder.keep_clock_speed(self.clock.speed)
        except (ValueError, OSError) as error:
            client.send(Done(correlation, str(error)))
            return
        # A tick answers: when it is durable, so is all that was due before it.
        self._queue.append((client, correlation, Tick()))
        self._wake.set()


async def _run(folder: DataFolder) -> None:
    socket = folder.core_socket
    core = Core(folder)
    if core.log.cut_bytes:
        sys.stderr.write(
            f"core: a torn end of {core.log.cut_bytes} bytes, told to nobody, was cut off the log\n"
        )
    socket.unlink(missing_ok=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, core.stop)
    await core.serve(socket)


def main() -> int:
    """Run the core of the exchange in a data folder until told to stop."""
    end_with_supervisor()
    parser = argparse.ArgumentParser(prog="cux-core", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    folder = DataFolder(parser.parse_args().folder)
    try:
        asyncio.run(_run(folder))
    except (FolderError, LogError) as error:
        sys.stderr.write(f"core: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"core: stopped, nothing after the last answer was told: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
