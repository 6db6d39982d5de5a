"""A machine to live on: one thread, one seed. Its time, its disk, and connections to it, all of which fail.

The disk keeps for each segment what is on it for good and what the kernel shows. What was appended since the
last sync is dirty, sector by sector. A kill leaves what the kernel shows, of a write under way any part. A
power cut leaves of every dirty sector the old, the new or a part of the new, in any order, and the file as
long as it happens to be. A sync that fails has written some sectors and forgets about the others: the kernel
goes on to show them, and no later sync writes them.
"""

import errno
import heapq
import random
from collections.abc import Callable
from typing import Any, NamedTuple

SECTOR = 512
SECOND_NS = 1_000_000_000


class KilledError(BaseException):
    """The process was killed at this point; nothing in it may catch this."""


class PowerCutError(KilledError):
    """The machine lost power at this point."""


class Time:
    """Simulated time and what is to happen in it."""

    def __init__(self, start_ns: int) -> None:
        self.now_ns = start_ns
        self._agenda: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0

    def later(self, delay_ns: int, action: Callable[[], None]) -> None:
        """Do something so much later; what falls on the same moment keeps its order."""
        self._count += 1
        heapq.heappush(self._agenda, (self.now_ns + delay_ns, self._count, action))

    def step(self) -> bool:
        """Let the next thing happen; False if nothing is to come."""
        if not self._agenda:
            return False
        self.now_ns, _, action = heapq.heappop(self._agenda)
        action()
        return True


class _Segment:
    """One file."""

    def __init__(self) -> None:
        self.shown = bytearray()
        self.kept = bytearray()
        self.dirty: dict[int, None] = {}

    def written(self, start: int) -> None:
        """Mark what was written from `start` on."""
        for sector in range(start // SECTOR, (len(self.shown) + SECTOR - 1) // SECTOR):
            self.dirty[sector] = None

    def keep(self, sector: int, length: int = SECTOR) -> None:
        """Put a sector, or its first bytes, on the disk for good."""
        start = sector * SECTOR
        data = self.shown[start : start + length]
        if len(self.kept) < start + len(data):
            self.kept.extend(bytes(start + len(data) - len(self.kept)))
        self.kept[start : start + len(data)] = data


class SimulatedDisk:
    """A disk as `exchange/disk.py` wants it."""

    def __init__(self, draw: random.Random, tell: Callable[[str], None]) -> None:
        self.crash_after: int | None = None
        """After so many more operations it crashes, in the middle of one."""
        self.crash_is_power_cut = False
        self.fault = ""
        """`sync` or `write`: the next one fails."""
        self.room = 1 << 30
        self._draw = draw
        self._tell = tell
        self._segments: dict[int, _Segment] = {}

    # -- what the log asks ---------------------------------------------------------------------------

    def segments(self) -> list[int]:
        """Return the segments there are, in order."""
        return sorted(self._segments)

    def name(self, segment: int) -> str:
        """Return what people call the segment."""
        return f"segment {segment}"

    def create(self, segment: int) -> None:
        """Make an empty segment."""
        assert segment not in self._segments
        crash = self._crash()
        if crash is None or self._draw.random() < 0.5:
            self._segments[segment] = _Segment()
        if crash is not None:
            raise crash

    def read(self, segment: int, offset: int = 0) -> bytes:
        """Return what the kernel shows of the segment."""
        return bytes(self._segments[segment].shown[offset:])

    def append(self, segment: int, data: bytes) -> None:
        """Write at the segment's end."""
        file = self._segments[segment]
        start = len(file.shown)
        crash = self._crash()
        failure = self._failure("write", errno.ENOSPC)
        if crash is not None or failure is not None:
            data = data[: self._draw.randint(0, len(data))]
        file.shown += data
        file.written(start)
        if crash is not None:
            raise crash
        if failure is not None:
            raise failure

    def sync(self, segment: int) -> None:
        """Make durable what was appended to the segment."""
        crash = self._crash()
        failure = self._failure("sync", errno.EIO)
        file = self._segments[segment]
        for sector in list(file.dirty):
            if (crash is None and failure is None) or self._draw.random() < 0.5:
                file.keep(sector)
            if crash is None:
                # Also what a failed sync did not write: the kernel takes it for clean from now on.
                del file.dirty[sector]
        if crash is not None:
            raise crash
        if failure is not None:
            raise failure

    def truncate(self, segment: int, size: int) -> None:
        """Cut the segment to `size` bytes, which are durable then, also those of a sync that failed."""
        file = self._segments[segment]
        crash = self._crash()
        if crash is None or self._draw.random() < 0.5:
            del file.shown[size:]
            file.dirty.clear()
            file.written(0)
            if crash is None or self._draw.random() < 0.5:
                del file.kept[size:]
        if crash is not None:
            raise crash
        self.sync(segment)

    def free_bytes(self) -> int:
        """Return how much more can be appended."""
        return self.room

    def close(self) -> None:
        """Let go."""

    # -- what happens to it --------------------------------------------------------------------------

    def cut_power(self) -> None:
        """Forget what was not synced, except what happened to be written."""
        for file in self._segments.values():
            for sector in file.dirty:
                chance = self._draw.random()
                if chance < 0.4:
                    file.keep(sector)
                elif chance < 0.6:
                    file.keep(sector, self._draw.randrange(SECTOR))
            file.dirty.clear()
            if len(file.kept) < len(file.shown) and self._draw.random() < 0.3:
                # The file has its length already, and zeros where its bytes should be.
                file.kept.extend(bytes(self._draw.randint(0, len(file.shown) - len(file.kept))))
            file.shown = bytearray(file.kept)

    def _crash(self) -> KilledError | None:
        if self.crash_after is None:
            return None
        self.crash_after -= 1
        if self.crash_after >= 0:
            return None
        self.crash_after = None
        return PowerCutError() if self.crash_is_power_cut else KilledError()

    def _failure(self, kind: str, number: int) -> OSError | None:
        if self.fault != kind:
            return None
        self.fault = ""
        self._tell(f"the disk fails at a {kind}")
        return OSError(number, f"simulated failure of a {kind}")


class Message(NamedTuple):
    """What crosses a connection: a command one way, a record or a refusal the other."""

    correlation: int
    content: Any


class Connection:
    """Between a client and the core: in order, each way with delays of its own, until it is cut.

    What is under way to the core when it is cut is lost, what is under way to the client perhaps; the client
    hears of the cut later.
    """

    def __init__(
        self,
        time: Time,
        draw: random.Random,
        to_core: Callable[["Connection", Message], None],
        to_client: Callable[["Connection", Message], None],
        cut_heard: Callable[["Connection"], None],
    ) -> None:
        self.is_open = True
        self._drains = draw.random() < 0.5
        self._time = time
        self._draw = draw
        self._receivers = to_core, to_client
        self._cut_heard = cut_heard
        # When the last message arrives, each way.
        self._arrival_ns = [0, 0]

    def send_to_core(self, message: Message) -> None:
        """Send from the client's end."""
        self._send(0, message)

    def send_to_client(self, message: Message) -> None:
        """Send from the core's end."""
        self._send(1, message)

    def _send(self, way: int, message: Message) -> None:
        if not self.is_open:
            return
        delay_ns = self._draw.randrange(50_000, 20_000_000)
        self._arrival_ns[way] = max(self._arrival_ns[way], self._time.now_ns + delay_ns)
        receive = self._receivers[way]

        def arrive() -> None:
            if self.is_open or (way == 1 and self._drains):
                receive(self, message)

        self._time.later(self._arrival_ns[way] - self._time.now_ns, arrive)

    def cut(self) -> None:
        """Lose it and what is under way; the client hears of it later."""
        if self.is_open:
            self.is_open = False
            heard_ns = max(self._arrival_ns[1] - self._time.now_ns, 0) + self._draw.randrange(100_000_000)
            self._time.later(heard_ns, lambda: self._cut_heard(self))
