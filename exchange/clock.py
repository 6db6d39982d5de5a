"""Venue time: the wall clock, or a simulated one that starts where it is told and runs faster, or stands."""

import time
from collections.abc import Callable
from typing import Protocol

SECOND_NS = 1_000_000_000


class Clock(Protocol):
    """What the sequencer stamps with. Never runs backwards."""

    speed: int
    simulated: bool
    parted_ns: int
    """By how much it was found ahead of the time that passed (under 0: behind), 0 while it is believed."""

    def now_ns(self) -> int:
        """Return venue time, UTC nanoseconds."""

    def correct(self) -> None:
        """Believe it again."""


PARTED_NS = 50_000_000
"""A wall clock that parts from the monotonic one by more than this was set, or the machine slept."""


class WallClock:
    """UTC as the machine knows it, held back where the machine's clock steps back.

    Once it has parted from the monotonic clock it is not believed: until `correct`, time goes on from
    where the two last agreed.
    """

    speed = 1
    simulated = False

    def __init__(
        self,
        not_before_ns: int = 0,
        wall: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._last = not_before_ns
        self._wall = wall
        self._monotonic = monotonic
        self.correct()

    def correct(self) -> None:
        """Believe the wall clock again, as it is now."""
        self._apart = self._wall() - self._monotonic()
        self.parted_ns = 0

    def now_ns(self) -> int:
        """Return venue time, UTC nanoseconds."""
        monotonic = self._monotonic()
        now = self._wall()
        ahead = now - monotonic - self._apart
        if not self.parted_ns and abs(ahead) > PARTED_NS:
            self.parted_ns = ahead
        if self.parted_ns:
            now = monotonic + self._apart
        self._last = max(self._last, now)
        return self._last


class SimulatedClock:
    """Starts at `start_ns` and stands until it is set to a speed."""

    simulated = True
    parted_ns = 0

    def __init__(self, start_ns: int, speed: int = 0) -> None:
        self.speed = speed
        self._from_ns = start_ns
        self._since = time.monotonic_ns()

    def now_ns(self) -> int:
        """Return venue time, UTC nanoseconds."""
        return self._from_ns + (time.monotonic_ns() - self._since) * self.speed

    def correct(self) -> None:
        """Believe it again; it never parted."""

    def set(self, time_ns: int | None, speed: int | None) -> None:
        """Move forward to `time_ns`, then run at `speed`; None leaves as is.

        Raises:
            ValueError: the time is past.
        """
        now = self.now_ns()
        if time_ns is not None and time_ns < now:
            raise ValueError(f"time {time_ns}: a simulated clock only moves forward; it shows {now}")
        self._from_ns = now if time_ns is None else time_ns
        self._since = time.monotonic_ns()
        if speed is not None:
            self.speed = speed
