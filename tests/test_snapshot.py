"""The state restored is the same market for ever after; a snapshot is whole or passed over."""

import fcntl
import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange import migrations
from exchange.engine import Engine, restored
from exchange.folder import FolderError
from exchange.migrations import STATE_FORMAT, Encoded, can_migrate, migrated
from exchange.snapshot import (
    Snapshot,
    SnapshotError,
    Snapshots,
    decode_snapshot,
    encode_snapshot,
)
from schemas.codec import encode
from schemas.commands import AnyCommand
from schemas.records import Decoded
from schemas.state import State, decode_state, encode_state
from schemas.venue import Venue
from tests.golden import SettledFlow
from tests.market import Market, open_era
from tests.test_engine_properties import VENUES, Step, steps

ROOT = Path(__file__).parent.parent


# -- the same for ever after -----------------------------------------------------------------------------


class Restoring(SettledFlow):
    """A market beside one that was restored from its state, and is told the same."""

    def __init__(self, venue: Venue) -> None:
        self.copy: Engine | None = None
        super().__init__(venue)

    def restore(self) -> None:
        """Restore from the copy, so that what it lost once is lost for good."""
        self.copy = restored((self.copy or self.engine).encoded_state())
        self.compare()

    def do(self, step: Step) -> Decoded:
        return self.follow(super().do(step))

    def take(self, command: AnyCommand) -> Decoded:
        return self.follow(super().take(command))

    def follow(self, record: Decoded) -> Decoded:
        if self.copy is not None:
            assert tuple(self.copy.apply(record.time_ns, record.command)) == record.events, record.command
            self.compare()
        return record

    def compare(self) -> None:
        engine, copy = self.engine, self.copy
        assert copy is not None
        copy.check()
        if copy.state_hash() != engine.state_hash():
            # Where they differ is easier to read than that they do.
            assert decode_state(copy.encoded_state()) == decode_state(engine.encoded_state())
        assert copy.chores() == engine.chores()
        assert sorted(copy.calls()) == sorted(engine.calls())
        assert copy.next_due_ns() == engine.next_due_ns()


@pytest.mark.parametrize("seed", range(12))
def test_a_market_restored_at_any_moment_goes_on_as_the_one_that_was_not(seed: int) -> None:
    choose = random.Random(seed).choice
    flow = Restoring(VENUES[seed % len(VENUES)])
    for _ in range(300):
        if not choose(range(20)):
            flow.restore()
        flow.act(choose)


@settings(max_examples=60)
@given(st.integers(0, len(VENUES) - 1), st.lists(steps(), max_size=40), st.lists(steps(), max_size=40))
def test_whatever_led_to_a_state_it_is_restored_whole(
    venue: int, before: list[Step], after: list[Step]
) -> None:
    flow = Restoring(VENUES[venue])
    for step in before:
        flow.do(step)
    flow.restore()
    for step in after:
        flow.do(step)


class RestoringMarket(Market):
    """The market of the scenarios, restored after every step."""

    def apply(self, command: AnyCommand) -> list[str]:
        """Apply the command in an engine that was restored just now."""
        self.engine = restored(self.engine.encoded_state())
        return super().apply(command)


@pytest.mark.parametrize(
    ("scenario", "reports"),
    [
        # The queue of a price, and an iceberg's next slice behind it.
        ("ask 1 4 @ 100 show 1; ask 1 2 @ 100; bid 2 @ 100", ["1 @ 100 with 1", "1 @ 100 with 2"]),
        # A group's alternatives, in the order of entry.
        (
            "bid 2 @ 100 group a; bid 2 @ 90 at 1 group a; bid 2 @ 90 at 2 group a; ask 1 2 @ 100",
            ["2 @ 100 with 1", "2 ended group, 2 left", "3 ended group, 2 left"],
        ),
        # A member that has ended still answers with what its living group reserves.
        ("bid 2 @ 100 group a; bid 2 @ 90 at 1 group a; cancel 1; repeat 1", ["1 repeated, 0 left"]),
        # A block meets an ask that would not rest.
        (
            "bid 1 @ 100 hours 2; ask 1 1 @ 90 at 1; ask 1 1 @ 90 ioc",
            ["block 1 at site 1: 1 @ 90 with 3, 1 @ 90 with 2"],
        ),
        # A run's stretches.
        (
            "ask 1 2 @ 90 hours 4 stretch 2; bid 1 @ 100 hours 4; bid 2 @ 100 hours 2; bid 1 @ 100 hours 2",
            ["block 4 at site 1: 1 @ 90 with 1, 1 @ 90 with 1"],
        ),
        # A standing offer lists on.
        ("standing ask 1 1 @ 90 until 2; chores", None),
    ],
)
def test_a_scenario_is_the_same_when_the_market_is_restored_at_every_step(
    scenario: str, reports: list[str] | None
) -> None:
    expected = Market().play(scenario)
    assert RestoringMarket().play(scenario) == expected
    if reports is not None:
        assert expected == reports


def test_equal_states_are_equal_bytes_in_whatever_way_they_came_about() -> None:
    ways = (
        "bid 1 @ 90; ask 1 2 @ 100; ask 1 1 @ 100; cancel 3",
        "bid 1 @ 90; ask 1 2 @ 100; ask 1 1 @ 101; cancel 3",
    )
    found = []
    for way in ways:
        market = Market()
        market.play(way)
        # That the third was at another price is still known, until its id may be used again.
        market.play("later 601")
        found.append(market.engine.encoded_state())
    assert found[0] == found[1]


# -- files -------------------------------------------------------------------------------------------------


def snapshot(sequence: int, orders: int = 2) -> Snapshot:
    market = Market()
    for number in range(orders):
        market.play(f"bid 1 @ {90 + number}")
    state = market.engine.encoded_state()
    state_hash = hashlib.sha256(state).digest()
    return Snapshot(sequence, b"e" * 48, STATE_FORMAT, state_hash, encode(open_era()), state)


def refuse(words: str) -> None:
    raise AssertionError(words)


def test_a_snapshot_is_read_as_it_was_written(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path / "snapshots")
    assert snapshots.last_sequence == 0
    assert list(snapshots.whole(refuse)) == []
    snapshots.write(snapshot(7))
    assert list(snapshots.whole(refuse)) == [snapshot(7)]
    assert snapshots.last_sequence == 7
    assert restored(snapshot(7).state).state_hash() == snapshot(7).state_hash


def test_the_newest_two_are_kept_the_newest_first(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    for sequence in (5, 100, 30_000):
        snapshots.write(snapshot(sequence))
    assert [found.sequence for found in snapshots.whole(refuse)] == [30_000, 100]
    assert len(list(tmp_path.iterdir())) == 2


def test_every_byte_of_a_snapshot_is_covered() -> None:
    data = encode_snapshot(snapshot(1))
    assert decode_snapshot(data) == snapshot(1)
    flips = random.Random(1)
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << flips.randrange(8)
        with pytest.raises(SnapshotError):
            decode_snapshot(bytes(damaged))
    for size in range(len(data)):
        with pytest.raises(SnapshotError):
            decode_snapshot(data[:size])


def test_a_damaged_snapshot_is_passed_over_with_a_word(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    snapshots.write(snapshot(1))
    snapshots.write(snapshot(2))
    (newest,) = tmp_path.glob("*2.snapshot")
    newest.write_bytes(newest.read_bytes()[:-1])
    words: list[str] = []
    assert [found.sequence for found in snapshots.whole(words.append)] == [1]
    assert words == [f"{newest} is passed over: it is damaged: its state has another hash"]


def small_disk(path: Path, size: str) -> Iterator[Path]:
    if os.getuid() != 0:
        pytest.skip("mounting a small disk needs root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    yield from small_disk(tmp_path, "256k")


def test_a_snapshot_that_finds_no_room_leaves_the_disk_as_it_was(disk: Path) -> None:
    """What it had written before the disk was full would else be missing to the log."""
    snapshots = Snapshots(disk, 0)
    snapshots.write(snapshot(1))
    before = os.statvfs(disk).f_bavail
    # The disk is full only while it is written: the look at its room before is of no help.
    large = snapshot(2)._replace(state=random.Random(1).randbytes(400_000))
    large = large._replace(state_hash=hashlib.sha256(large.state).digest())
    snapshots._refuse_low_disk = lambda size: None  # type: ignore[method-assign]
    with pytest.raises(OSError, match="No space left"):
        snapshots.write(large)
    assert os.statvfs(disk).f_bavail == before
    assert [found.sequence for found in snapshots.whole(refuse)] == [1]


def test_no_snapshot_is_made_that_would_leave_the_log_less_than_its_reserve(disk: Path) -> None:
    space = os.statvfs(disk)
    free, size = space.f_bavail * space.f_frsize, len(encode_snapshot(snapshot(1)))
    with pytest.raises(OSError, match=f"it needs {size} bytes; the disk has {free} left"):
        Snapshots(disk, free - size + 1).write(snapshot(1))
    assert list(disk.iterdir()) == []
    Snapshots(disk, free - size).write(snapshot(1))


def test_what_a_killed_process_left_unfinished_is_removed_at_a_start(tmp_path: Path) -> None:
    unfinished = tmp_path / "new"
    Snapshots(tmp_path / "missing").remove_unfinished()
    unfinished.write_bytes(b"half")
    writer = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(writer, fcntl.LOCK_EX)
    Snapshots(tmp_path).remove_unfinished()
    assert unfinished.exists(), "another process writes it now"
    os.close(writer)
    Snapshots(tmp_path).remove_unfinished()
    assert not unfinished.exists()


def test_a_file_that_is_named_like_a_snapshot_and_is_none_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "7x.snapshot").touch()
    snapshots = Snapshots(tmp_path)
    for read in (lambda: snapshots.last_sequence, lambda: list(snapshots.whole(refuse))):
        with pytest.raises(FolderError, match=r"7x\.snapshot is no snapshot: one is named by 20 digits"):
            read()


def test_a_snapshot_of_another_record_than_its_name_says_is_passed_over_with_a_word(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    snapshots.write(snapshot(7))
    (path,) = tmp_path.iterdir()
    renamed = path.rename(tmp_path / f"{9:020d}.snapshot")
    words: list[str] = []
    assert list(snapshots.whole(words.append)) == []
    assert words == [f"{renamed} is passed over: it is of record 7"]


def test_a_snapshot_of_a_form_from_which_nothing_leads_is_passed_over_with_a_word(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    snapshots.write(snapshot(7)._replace(state_format=STATE_FORMAT + 1))
    words: list[str] = []
    assert list(snapshots.whole(words.append)) == []
    form = STATE_FORMAT + 1
    assert words[0].endswith(f"its state is of form {form}, from which nothing leads to this version's")


WRITE = """
import sys, itertools, pathlib
from exchange.snapshot import Snapshots
from tests.test_snapshot import snapshot
one = snapshot(1, 200)
for sequence in itertools.count(1):
    Snapshots(pathlib.Path(sys.argv[1])).write(one._replace(sequence=sequence))
    print(sequence, flush=True)
"""


def test_what_was_written_survives_a_kill_while_the_next_is_written(tmp_path: Path) -> None:
    chance = random.Random(1)
    for life in range(5):
        folder = tmp_path / str(life)
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITE, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert writer.stdout is not None
        first = int(writer.stdout.readline())
        time.sleep(chance.random() * 0.05)
        writer.kill()
        told = max([first, *map(int, writer.stdout.read().split())])
        writer.wait()
        # `refuse`: none of them is damaged.
        assert next(Snapshots(folder).whole(refuse)).sequence in (told, told + 1)


# -- forms -------------------------------------------------------------------------------------------------


def test_an_older_form_becomes_the_next_one_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    oldest, older = STATE_FORMAT - 2, STATE_FORMAT - 1
    monkeypatch.setitem(migrations.STEPS, older, lambda old: old._replace(state=old.state + b"b"))
    assert not can_migrate(oldest)
    monkeypatch.setitem(migrations.STEPS, oldest, lambda old: Encoded(old.era + b"a", old.state + b"a"))
    assert can_migrate(oldest)
    assert migrated(Encoded(b"era", b"-"), oldest) == (b"eraa", b"-ab")
    assert migrated(Encoded(b"era", b"-"), older) == (b"era", b"-b")
    assert migrated(Encoded(b"era", b"-"), STATE_FORMAT) == (b"era", b"-")
    assert not can_migrate(STATE_FORMAT + 1)


def test_bytes_that_are_no_state_are_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        restored(b"")
    state = decode_state(snapshot(1).state)
    assert encode_state(state) == snapshot(1).state
    fields = [getattr(state, name) for name in State.__struct_fields__]
    with pytest.raises(msgspec.DecodeError):
        restored(msgspec.msgpack.encode([*fields, 1]))
