"""A client of the core's Unix socket: commands up, durable records down."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from schemas.commands import AnyCommand
from schemas.link import (
    FRAME_MAX_BYTES,
    LENGTH,
    AnyFrame,
    AskClock,
    Busy,
    Clock,
    Done,
    Frame,
    Hello,
    Indicated,
    Released,
    SetClock,
    Submit,
    Welcome,
    decode_frame,
    encode_frame,
)
from schemas.records import Decoded, Record, decoded


class CoreLostError(ConnectionError):
    """The connection ended; what became of commands under way must be asked of the log."""


class BusyError(Exception):
    """The core took nothing, for the reason that the message tells; the command has no number."""


async def read_frame(reader: asyncio.StreamReader) -> AnyFrame | None:
    """Return the next frame, or None at the end of the stream.

    Raises:
        CoreLostError: the stream ended within a frame, or what came is none, or too large.
    """
    try:
        head = await reader.readexactly(LENGTH.size)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    (length,) = LENGTH.unpack(head)
    if length > FRAME_MAX_BYTES:
        raise CoreLostError(f"a frame of {length} bytes; at most {FRAME_MAX_BYTES} are allowed")
    try:
        return frame_of(await reader.readexactly(length))
    except asyncio.IncompleteReadError as error:
        raise CoreLostError("the stream ended within a frame") from error


def frame_of(body: bytes) -> AnyFrame:
    """Return the frame.

    Raises:
        CoreLostError: the bytes are none.
    """
    try:
        return decode_frame(body)
    except msgspec.DecodeError as error:
        raise CoreLostError(f"what came is no frame: {error}") from error


class FrameBuffer:
    """Makes frames of the bytes of a stream, in whatever pieces they come."""

    def __init__(self, frame_max_bytes: int) -> None:
        self._frame_max_bytes = frame_max_bytes
        self._left = b""

    def frames(self, data: bytes) -> Iterator[AnyFrame]:
        """Yield the frames that `data` completes.

        Raises:
            CoreLostError: what came is no frame, or too large.
        """
        data = self._left + data
        offset = 0
        while len(data) - offset >= LENGTH.size:
            (length,) = LENGTH.unpack_from(data, offset)
            if length > self._frame_max_bytes:
                raise CoreLostError(f"a frame of {length} bytes; at most {self._frame_max_bytes} are allowed")
            end = offset + LENGTH.size + length
            if end > len(data):
                break
            yield frame_of(data[offset + LENGTH.size : end])
            offset = end
        self._left = data[offset:]


class CoreLink:
    """One connection. `on_record`, if given, sees every durable record after `durable`, in order.

    With it `on_indicated`, if given, sees what each call that collects would clear at.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        welcome: Welcome,
        on_record: Callable[[Record], None] | None,
        on_indicated: Callable[[Indicated], None] | None,
    ) -> None:
        self.durable = welcome.durable
        self.welcome = welcome
        self._reader, self._writer = reader, writer
        self._on_record = on_record
        self._on_indicated = on_indicated
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Record | Clock | None]] = {}
        self._unsent: list[bytes] = []
        self._task = asyncio.create_task(self._receive())

    @classmethod
    async def connect(
        cls,
        path: Path,
        on_record: Callable[[Record], None] | None = None,
        on_indicated: Callable[[Indicated], None] | None = None,
    ) -> "CoreLink":
        """Connect to the core.

        Raises:
            OSError: nobody listens there.
            CoreLostError: the core did not answer.
        """
        reader, writer = await asyncio.open_unix_connection(str(path), limit=1 << 20)
        writer.write(encode_frame(Hello(on_record is not None)))
        welcome = await read_frame(reader)
        if not isinstance(welcome, Welcome):
            writer.close()
            raise CoreLostError(f"{path} did not say welcome")
        return cls(reader, writer, welcome, on_record, on_indicated)

    async def submit(self, command: AnyCommand) -> Decoded:
        """Return the durable record that the command became.

        Raises:
            BusyError: the core took nothing; it may be submitted again.
            ValueError: the core does not take such a command, and never will.
            CoreLostError: the connection ended first; the outcome is unknown.
        """
        record = await self._ask(lambda number: Submit(number, command))
        assert isinstance(record, Record)
        return decoded(record)

    async def set_clock(self, time_ns: int | None = None, speed: int | None = None) -> None:
        """Move the simulated clock forward, wait until what is due by then is durable, set its speed.

        Raises:
            ValueError: the clock is real, or the time is past.
        """
        await self._ask(lambda number: SetClock(number, time_ns, speed))

    async def clock(self) -> Clock:
        """Return venue time and its speed now."""
        answer = await self._ask(AskClock)
        assert isinstance(answer, Clock)
        return answer

    async def _ask(self, frame: Callable[[int], Frame]) -> Record | Clock | None:
        # The transport may know of the end before what came over it is all read.
        if self._task.done() or self._writer.is_closing():
            raise CoreLostError("the core is gone")
        number = next(self._numbers)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Record | Clock | None] = loop.create_future()
        self._waiting[number] = answer
        if not self._unsent:
            # What others submit in the same turn of the loop goes with it.
            loop.call_soon(self._flush)
        self._unsent.append(encode_frame(frame(number)))
        try:
            return await answer
        finally:
            self._waiting.pop(number, None)

    def _flush(self) -> None:
        if not self._writer.is_closing():
            self._writer.write(b"".join(self._unsent))
        self._unsent.clear()

    async def _receive(self) -> None:
        try:
            while (frame := await read_frame(self._reader)) is not None:
                match frame:
                    case Released(records, correlations):
                        for record, correlation in zip(records, correlations, strict=True):
                            if self._on_record is not None:
                                self._on_record(record)
                            self._resolve(correlation, record)
                        if records:
                            self.durable = records[-1].sequence
                    case Indicated():
                        if self._on_indicated is not None:
                            self._on_indicated(frame)
                    case Busy(correlation, reason):
                        self._fail(correlation, BusyError(reason))
                    case Clock(correlation):
                        self._resolve(correlation, frame)
                    case Done(correlation, ""):
                        self._resolve(correlation, None)
                    case Done(correlation, message):
                        self._fail(correlation, ValueError(message))
        finally:
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(CoreLostError("the connection to the core ended"))
            self._writer.close()

    def _resolve(self, correlation: int, record: Record | Clock | None) -> None:
        answer = self._waiting.get(correlation)
        if answer is not None and not answer.done():
            answer.set_result(record)

    def _fail(self, correlation: int, error: Exception) -> None:
        answer = self._waiting.get(correlation)
        if answer is not None and not answer.done():
            answer.set_exception(error)

    async def wait_closed(self) -> None:
        """Return when the connection has ended."""
        await asyncio.wait([self._task])

    async def close(self) -> None:
        """End the connection."""
        self._writer.close()
        await asyncio.wait([self._task], timeout=5)
