"""The wall clock is followed as long as it keeps pace with the time that passes."""

from exchange.clock import SimulatedClock, WallClock

MS = 1_000_000
START_MS = 10**12


class Machine:
    """A machine whose clocks the test moves."""

    def __init__(self) -> None:
        self.wall_ms = START_MS
        self.monotonic_ms = 5
        self.clock = WallClock(0, lambda: self.wall_ms * MS, lambda: self.monotonic_ms * MS)

    def after(self, wall_ms: int, monotonic_ms: int) -> int:
        """Move the clocks by so much and return what time it is, in milliseconds since the start."""
        self.wall_ms += wall_ms
        self.monotonic_ms += monotonic_ms
        return self.clock.now_ns() // MS - START_MS


def test_within_50_ms_the_wall_clock_is_followed_and_never_backwards() -> None:
    machine = Machine()
    assert machine.after(1000, 950) == 1000
    assert machine.after(-30, 0) == 1000
    assert machine.after(40, 40) == 1010
    assert machine.clock.parted_ns == 0


def test_small_steps_add_up() -> None:
    machine = Machine()
    for _ in range(5):
        machine.after(10, 0)
    assert machine.clock.parted_ns == 0
    machine.after(1, 0)
    assert machine.clock.parted_ns == 51 * MS


def test_a_clock_that_has_parted_goes_on_with_the_time_that_passes_until_it_is_corrected() -> None:
    for jump in (3_600_000, -3_600_000):
        machine = Machine()
        assert machine.after(100, 100) == 100
        assert machine.after(jump, 0) == 100
        assert machine.clock.parted_ns == jump * MS
        assert machine.after(7, 7) == 107
        # That it comes back by itself does not make it right.
        assert machine.after(-jump, 10) == 117
        assert machine.clock.parted_ns == jump * MS


def test_a_corrected_clock_is_believed_and_stands_where_it_is_behind() -> None:
    ahead, behind = Machine(), Machine()
    ahead.after(60_000, 0)
    behind.after(-60_000, 0)
    for machine in (ahead, behind):
        machine.clock.correct()
        assert machine.clock.parted_ns == 0
    assert ahead.after(1, 1) == 60_001
    assert behind.after(59_999, 59_999) == 0
    assert behind.after(2, 2) == 1
    assert ahead.clock.parted_ns == behind.clock.parted_ns == 0


def test_time_goes_on_where_the_log_ends() -> None:
    clock = WallClock(10, lambda: 3, lambda: 0)
    assert clock.now_ns() == 10


def test_a_simulated_clock_never_parts() -> None:
    clock = SimulatedClock(5)
    clock.correct()
    assert (clock.now_ns(), clock.parted_ns) == (5, 0)
