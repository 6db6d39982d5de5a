"""The follower: applies what the leader wrote, keeps snapshots, and leads when it is told to."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from exchange.core import _stand_by
from exchange.desk import LOW_DISK_BYTES
from exchange.folder import DataFolder, FolderError
from exchange.follower import Follower, Promoted, StandbyError, Standing, ask_standby, end_process
from exchange.link import BusyError, CoreLink, CoreLostError
from exchange.lock import Holder, holder_of, process
from exchange.log import FileLog, batch_at, durable_end, read_records
from exchange.recovery import recover, snapshot_of
from exchange.snapshot import Snapshots
from schemas.commands import EnterOrder
from schemas.events import OrderAccepted, OrderRepeated, Rejected
from schemas.records import Record, decoded
from settlement.postgres import DATABASE_URL
from tests.exchange_fixture import ROOT, served
from tests.golden import day, encoded
from tests.market import bid, opening
from tests.small_venue import SMALL_VENUE
from tests.test_core import make_folder
from tests.test_engine_properties import VENUES

DAY = [encoded(record) for record in day(VENUES[1], 37, 100)]
WAIT_SECONDS = 20.0


def refuse(words: str) -> None:
    raise AssertionError(words)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


# -- in this process: a log that a test writes, and one that follows it ------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    limits = msgspec.structs.replace(SMALL_VENUE.limits, open_orders_max=1_000_000)
    return make_folder(tmp_path, venue=msgspec.structs.replace(SMALL_VENUE, limits=limits))


class Following:
    """A follower that runs beside a test's own steps."""

    def __init__(
        self,
        folder: DataFolder,
        snapshot_records: int = 1000,
        snapshot_seconds: float = 1000,
        low_disk_bytes: int = LOW_DISK_BYTES,
    ) -> None:
        self.words: list[str] = []
        self.stop = asyncio.Event()
        self.follower = Follower(
            folder, self.words.append, snapshot_records, snapshot_seconds, low_disk_bytes
        )
        self.task = asyncio.create_task(self.follower.run(self.stop))

    async def reaches(self, sequence: int) -> None:
        """Return when it has applied so much."""

        async def reached() -> bool:
            if self.task.done():
                self.task.result()
            return self.follower.recovered.sequence >= sequence

        await until(reached)

    async def fails(self) -> Standing:
        """Return how it stands when it cannot go on."""

        async def failed() -> bool:
            with contextlib.suppress(StandbyError):
                return bool((await ask_standby(self.follower._folder, "status")).fault)
            return False

        await until(failed)
        return await ask_standby(self.follower._folder, "status")

    async def end(self) -> None:
        """Stop it."""
        self.stop.set()
        assert await self.task is None


async def test_what_is_known_durable_is_applied_and_no_more(folder: DataFolder) -> None:
    log = FileLog(folder.log)
    log.append(DAY[:50])
    log.seal()
    following = Following(folder)
    await following.reaches(50)
    log.append(DAY[50:60])
    await asyncio.sleep(0.1)
    # Durable, but that stands in the log only with the next batch, or its seal.
    assert following.follower.recovered.sequence == 50
    log.append(DAY[60:80])
    await following.reaches(60)
    log.seal()
    await following.reaches(80)
    assert following.follower.recovered.engine.state_hash() == recover(log).engine.state_hash()
    await following.end()
    log.close()


async def test_a_snapshot_is_kept_of_so_many_records_after_so_long_and_at_the_stop(
    folder: DataFolder,
) -> None:
    log, snapshots = FileLog(folder.log), Snapshots(folder.snapshots)
    log.append(DAY[:30])
    log.seal()
    following = Following(folder, snapshot_records=20)
    await following.reaches(30)

    async def kept() -> bool:
        return snapshots.last_sequence == 30

    await until(kept)
    log.append(DAY[30:40])
    log.seal()
    await following.reaches(40)
    assert snapshots.last_sequence == 30
    await following.end()
    assert snapshots.last_sequence == 40

    log.append(DAY[40:50])
    log.seal()
    soon = Following(folder, snapshot_seconds=0.05)
    assert soon.follower.recovered.sequence == 40

    async def kept_in_time() -> bool:
        return snapshots.last_sequence == 50

    await until(kept_in_time)
    for snapshot in snapshots.whole(refuse):
        assert recover(log, [snapshot]).engine.state_hash() == recover(log).engine.state_hash()
    await soon.end()
    log.close()


async def test_without_room_for_a_snapshot_the_follower_goes_on(folder: DataFolder) -> None:
    folder.snapshots.write_text("no folder")
    log = FileLog(folder.log)
    log.append(DAY[:30])
    log.seal()
    following = Following(folder, snapshot_records=20)
    await following.reaches(30)
    log.append(DAY[30:60])
    log.seal()
    await following.reaches(60)
    await following.end()
    assert following.words[0].startswith("no snapshot of record 30 was made: ")
    log.close()


async def test_a_followers_snapshots_leave_the_log_the_room_that_its_leader_keeps(folder: DataFolder) -> None:
    log = FileLog(folder.log)
    log.append(DAY[:30])
    log.seal()
    following = Following(folder, low_disk_bytes=2**62)
    await following.reaches(30)
    await following.end()
    assert following.words[0].endswith(f"{2**62} of them the log's")
    assert Snapshots(folder.snapshots).last_sequence == 0
    log.close()


async def test_a_record_that_gives_other_events_stops_the_follower_and_is_named(folder: DataFolder) -> None:
    log = FileLog(folder.log)
    log.append([*DAY[:20], msgspec.structs.replace(DAY[20], events=()), *DAY[21:30]])
    log.seal()
    following = Following(folder)
    standing = await following.fails()
    assert (standing.sequence, standing.durable) == (20, 30)
    assert "record 21: this engine gives other events" in standing.fault
    assert following.words == [f"the follower stands still at record 20: {standing.fault}"]
    with pytest.raises(StandbyError, match="the follower cannot lead: record 21: this engine gives other"):
        await ask_standby(folder, "promote")
    await following.end()
    # What the engine holds after it is not the state of any record.
    assert Snapshots(folder.snapshots).last_sequence == 0
    log.close()


def flip_in_batch_of(segment: Path, sequence: int) -> None:
    """Change one bit of the batch that begins with the record."""
    data, offset = segment.read_bytes(), 0
    while (batch := batch_at(data, offset)) is not None and batch.first_sequence < sequence:
        offset = batch.end
    # In its place: the file may be growing.
    with segment.open("r+b") as file:
        file.seek(offset + 50)
        file.write(bytes([data[offset + 50] ^ 1]))


async def test_a_follower_that_meets_damage_in_the_newest_segment_says_so_unasked(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exchange.follower.LOOK_SECONDS", 0.2)
    log = FileLog(folder.log)
    log.append(DAY[:50])
    log.seal()
    following = Following(folder)
    await following.reaches(50)
    log.append(DAY[50:60])
    log.append(DAY[60:70])
    # Whose header would say that 60 is durable.
    flip_in_batch_of(folder.log / f"{1:020d}.log", 61)
    log.append(DAY[70:80])
    log.seal()

    async def has_spoken() -> bool:
        return bool(following.words)

    await until(has_spoken)
    fault = (
        f"the log in {folder.log} is damaged behind record 50: it is durable up to record 80, and no more can"
    )
    assert following.words == [f"the follower stands still at record 50: {fault} be read"]
    assert await ask_standby(folder, "status") == Standing(50, 80, f"{fault} be read")
    await following.end()
    log.close()


async def test_what_is_not_yet_known_durable_is_no_damage(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exchange.follower.LOOK_SECONDS", 0.0)
    log = FileLog(folder.log)
    following = Following(folder)
    for first in range(0, 60, 10):
        log.append(DAY[first : first + 10])
        with (folder.log / f"{1:020d}.log").open("ab") as file:
            size = file.tell()
            file.write(b"CUX1 a batch that is being written")
            file.flush()
            await asyncio.sleep(0.06)
            file.truncate(size)
        assert (await ask_standby(folder, "status")).fault == ""
    await following.reaches(50)
    await following.end()
    log.close()


async def test_a_follower_that_is_too_far_behind_does_not_lead(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exchange.follower.CATCH_UP_SECONDS", 0.1)
    monkeypatch.setattr("exchange.follower.SLICE_RECORDS", 1)
    log = FileLog(folder.log)
    log.append(DAY)
    log.seal()
    following = Following(folder)
    apply = following.follower._advance

    def slowly(slices: Iterator[list[Record]]) -> bool:
        time.sleep(0.02)
        return apply(slices)

    monkeypatch.setattr(following.follower, "_advance", slowly)
    await until(_is_there(folder))
    with pytest.raises(StandbyError, match="the follower is too far behind to lead"):
        await ask_standby(folder, "promote")
    assert 0 < following.follower.recovered.sequence < len(DAY)
    # Who held the log holds it still.
    log.append([msgspec.structs.replace(DAY[-1], sequence=len(DAY) + 1)])
    await following.end()
    log.close()


async def test_a_folder_has_one_follower(folder: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange.follower.TAKE_OVER_SECONDS", 0.05)
    following = Following(folder)
    with pytest.raises(FolderError, match="has a follower already"):
        Follower(folder, refuse)
    await following.end()
    await Following(folder).end()


async def test_the_follower_says_how_far_behind_it_is(folder: DataFolder) -> None:
    with pytest.raises(StandbyError, match="no follower stands by"):
        await ask_standby(folder, "status")
    log = FileLog(folder.log)
    log.append(DAY[:50])
    log.seal()
    following = Following(folder)
    await following.reaches(50)
    standing = await ask_standby(folder, "status")
    assert standing == Standing(50, 50)
    assert standing.behind == 0
    assert Standing(50, 70).behind == 20
    await following.end()
    log.close()


@pytest.mark.parametrize("length", [10, 100])
async def test_the_follower_is_found_by_whatever_path_the_folder_is_reached(
    tmp_path: Path, length: int
) -> None:
    place = tmp_path / ("x" * length)
    place.mkdir()
    folder = make_folder(place, venue=SMALL_VENUE)
    (tmp_path / "link").symlink_to(place)
    (tmp_path / "longer").mkdir()
    (tmp_path / "longer" / ("y" * 100)).symlink_to(place)
    following = Following(folder)
    await until(_is_there(folder))
    for way in (tmp_path / "link", tmp_path / "longer" / ("y" * 100)):
        reached = DataFolder(way / folder.path.name)
        assert await ask_standby(reached, "status") == Standing(0, 0)
    await following.end()


async def test_a_folder_without_an_exchange_has_no_follower_and_says_how_to_make_one(tmp_path: Path) -> None:
    none = tmp_path / "none"
    said = cux("standby", "status", "--folder", str(none))
    assert said.returncode == 1
    words = f"cux: {none} holds no exchange; make one with: cux venue init --folder {none}\n"
    assert said.stderr == words


async def test_who_asks_otherwise_is_not_answered_and_does_no_harm(folder: DataFolder) -> None:
    following = Following(folder)
    await until(_is_there(folder))
    for line in (b"\n", b"{}\n", b'{"ask":"lead"}\n', b"x" * 100_000 + b"\n", b""):
        reader, writer = await asyncio.open_unix_connection(str(folder.standby_socket))
        writer.write(line)
        writer.write_eof()
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
    assert await ask_standby(folder, "status") == Standing(0, 0)
    await following.end()


def _is_there(folder: DataFolder) -> Callable[[], Awaitable[bool]]:
    async def is_there() -> bool:
        return folder.standby_socket.exists()

    return is_there


# -- whom it kills ---------------------------------------------------------------------------------------


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that is nobody's leader."""
    found = subprocess.Popen(["sleep", "60"])
    yield found
    found.kill()
    found.wait()


async def test_a_process_of_the_leaders_number_that_was_started_later_is_spared(
    sleeper: "subprocess.Popen[bytes]",
) -> None:
    known = process(sleeper.pid)
    assert known is not None
    await end_process(Holder(known.pid, known.started - 1), time.monotonic() + 1)
    assert sleeper.poll() is None
    await end_process(known, time.monotonic() + 10)
    assert sleeper.wait(0) == -signal.SIGKILL
    # One that has ended, or was waited for: its number may be another's by now.
    await end_process(known, time.monotonic() + 1)


async def test_a_log_that_cannot_be_had_leaves_the_follower_a_follower(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exchange.follower.PROMOTE_SECONDS", 0.3)
    log = FileLog(folder.log)
    log.append(DAY[:50])
    log.seal()
    # Held by somebody who is not named.
    (folder.log / "lock").write_text("")
    following = Following(folder)
    await following.reaches(50)
    with pytest.raises(StandbyError, match="led by a process that does not end"):
        await ask_standby(folder, "promote")
    log.append(DAY[50:60])
    log.seal()
    await following.reaches(60)
    log.close()
    await following.end()


# -- processes -------------------------------------------------------------------------------------------


class Node:
    """A process that leads or stands by."""

    def __init__(self, folder: DataFolder) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "exchange.core", str(folder.path), "--stand-by"],
            stderr=subprocess.PIPE,
            text=True,
        )

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Stop it in order; return its exit code and what it said."""
        self.process.terminate()
        said = self.process.communicate(timeout=30)[1]
        return self.process.returncode, said


class Pair:
    """A leader and its follower, and what starts them again."""

    def __init__(self, folder: DataFolder) -> None:
        self.folder = folder
        self.nodes: list[Node] = []

    async def start(self) -> Node:
        """Start one more: the first leads, the next follows."""
        node = Node(self.folder)
        self.nodes.append(node)
        if len(self.nodes) == 1:
            await until(self.is_led)
        else:
            await until(self.is_followed)
        return node

    async def is_led(self) -> bool:
        try:
            await (await CoreLink.connect(self.folder.core_socket)).close()
        except (OSError, CoreLostError):
            return False
        return True

    async def is_followed(self) -> bool:
        # Under load it is always some records behind.
        try:
            await ask_standby(self.folder, "status")
        except StandbyError:
            return False
        return True

    async def open_market(self) -> None:
        link = await CoreLink.connect(self.folder.core_socket)
        for command in opening()[1:]:
            assert not isinstance((await link.submit(command)).events[0], Rejected)
        await link.close()


@pytest.fixture
async def pair(folder: DataFolder) -> AsyncIterator[Pair]:
    """No process of it is left behind."""
    found = Pair(folder)
    await found.start()
    await found.open_market()
    yield found
    for node in found.nodes:
        node.process.kill()
        node.process.communicate()


class Load:
    """Clients that enter orders, one after the other, and repeat what they got no answer to."""

    def __init__(self, folder: DataFolder, clients: int = 8) -> None:
        self._folder = folder
        self.acknowledged: list[int] = []
        self._stopping = False
        self._numbers = iter(range(10**9))
        self._clients = [asyncio.create_task(self._enter()) for _ in range(clients)]

    async def _enter(self) -> None:
        link: CoreLink | None = None
        while not self._stopping:
            number = next(self._numbers)
            while True:
                try:
                    if link is None:
                        link = await CoreLink.connect(self._folder.core_socket)
                    answer = (await link.submit(bid(number, 1, 1))).events[0]
                except BusyError:
                    await asyncio.sleep(0.01)
                except (OSError, CoreLostError):
                    link = None
                    await asyncio.sleep(0.01)
                else:
                    assert isinstance(answer, OrderAccepted | OrderRepeated), answer
                    self.acknowledged.append(number)
                    break
        if link is not None:
            await link.close()

    async def more(self, count: int = 300) -> None:
        """Return when so many more were acknowledged."""
        wanted = len(self.acknowledged) + count

        async def come() -> bool:
            for client in self._clients:
                if client.done():
                    client.result()
            return len(self.acknowledged) >= wanted

        await until(come)

    async def end(self) -> None:
        self._stopping = True
        await asyncio.gather(*self._clients)


def check_nothing_is_lost(folder: DataFolder, load: Load) -> None:
    """Every acknowledged order is in the log once; what a start makes is what the whole log makes."""
    entered: dict[str, int] = {}
    for record in map(decoded, read_records(folder.log)):
        if isinstance(record.command, EnterOrder) and isinstance(record.events[0], OrderAccepted):
            name = record.command.client_order_id
            entered[name] = entered.get(name, 0) + 1
    assert set(entered.values()) == {1}
    assert {f"o{number}" for number in load.acknowledged} <= set(entered)
    log = FileLog(folder.log)
    snapshots = list(Snapshots(folder.snapshots).whole(refuse))
    # The leader's last act was to keep its state.
    assert snapshots[0].sequence == log.last_sequence
    whole = recover(log)
    whole.engine.check()
    assert snapshots[0].state_hash == whole.engine.state_hash()
    assert recover(log, snapshots).engine.state_hash() == whole.engine.state_hash()
    log.close()


async def test_nothing_acknowledged_is_lost_when_a_follower_takes_the_leaders_place_under_load(
    pair: Pair,
) -> None:
    leader, follower = pair.nodes[0], await pair.start()
    load = Load(pair.folder)
    await load.more()
    standing = await ask_standby(pair.folder, "promote")
    assert (standing.leads, standing.epoch) == (True, 2)
    assert leader.process.wait(5) == -signal.SIGKILL
    assert holder_of(pair.folder.log) == process(follower.process.pid)
    await load.more()
    # The one that was deposed stands by when it is started again, and may lead in its turn.
    again = await pair.start()
    await load.more()
    assert (await ask_standby(pair.folder, "promote")).epoch == 3
    await load.more()
    await load.end()
    assert follower.process.wait(5) == -signal.SIGKILL
    assert again.end() == (0, "")
    check_nothing_is_lost(pair.folder, load)


@pytest.mark.parametrize("pause", [0.0, 0.002, 0.02, 0.2])
async def test_a_leader_that_dies_before_or_while_it_is_replaced_takes_nothing_with_it(
    pair: Pair, pause: float
) -> None:
    leader, follower = pair.nodes[0], await pair.start()
    load = Load(pair.folder)
    await load.more()
    asking = asyncio.create_task(ask_standby(pair.folder, "promote"))
    await asyncio.sleep(0)
    if pause:
        leader.kill()
        await asyncio.sleep(pause)
    else:
        await asyncio.sleep(0.001)
        leader.kill()
    assert (await asking).epoch == 2
    await load.more()
    await load.end()
    assert follower.end() == (0, "")
    check_nothing_is_lost(pair.folder, load)


async def test_a_leader_that_hangs_is_replaced_and_writes_nothing_when_it_wakes(pair: Pair) -> None:
    leader, follower = pair.nodes[0], await pair.start()
    load = Load(pair.folder)
    await load.more()
    leader.kill(signal.SIGSTOP)
    assert (await ask_standby(pair.folder, "promote")).epoch == 2
    with contextlib.suppress(ProcessLookupError):
        leader.kill(signal.SIGCONT)
    await load.more()
    await load.end()
    assert follower.end() == (0, "")
    check_nothing_is_lost(pair.folder, load)


async def enter(folder: DataFolder, first: int, count: int) -> None:
    link = await CoreLink.connect(folder.core_socket)
    for number in range(first, first + count):
        assert isinstance((await link.submit(bid(number, 1, 1))).events[0], OrderAccepted)
    await link.close()


async def test_a_follower_that_cannot_read_what_is_durable_is_not_promoted_and_the_leader_lives(
    pair: Pair,
) -> None:
    at = ("--folder", str(pair.folder.path))
    leader, follower = pair.nodes[0], await pair.start()
    assert cux("standby", "status", *at).returncode == 0
    follower.kill(signal.SIGSTOP)
    end = durable_end(pair.folder.log)
    await enter(pair.folder, 0, 200)

    async def is_sealed() -> bool:
        return durable_end(pair.folder.log) == end + 200

    await until(is_sealed)
    flip_in_batch_of(pair.folder.log / f"{1:020d}.log", end + 1)
    follower.kill(signal.SIGCONT)

    promoted = cux("standby", "promote", *at)
    damage = (
        f"the log in {pair.folder.log} is damaged behind record {end}: it is durable up to record {end + 200}"
    )
    assert promoted.returncode == 1
    assert promoted.stderr.startswith(f"cux: the follower cannot lead: {damage}")
    found = cux("standby", "status", *at)
    assert found.returncode == 1
    assert found.stdout.startswith(f"record {end} of {end + 200}, 200 behind; it stands still: {damage}")
    # The last sound copy is in the leader's memory.
    await enter(pair.folder, 200, 10)
    assert leader.process.poll() is None
    code, said = follower.end()
    assert code == 0
    assert said.startswith(f"core: the follower stands still at record {end}: {damage}")
    assert said.count("\n") == 1


async def test_damage_where_the_follower_never_read_keeps_it_from_leading(pair: Pair) -> None:
    leader = pair.nodes[0]
    await enter(pair.folder, 0, 10)
    assert leader.end() == (0, "")
    pair.nodes.clear()
    await pair.start()
    # It begins with the snapshot that stands at the log's end.
    await pair.start()
    flip_in_batch_of(pair.folder.log / f"{1:020d}.log", 1)
    with pytest.raises(StandbyError, match=r"the follower cannot lead: .* is damaged at byte 0"):
        await ask_standby(pair.folder, "promote")
    await enter(pair.folder, 10, 10)


async def test_a_promotion_that_nobody_waits_for_is_none(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange.follower.PROMOTED_SECONDS", 0.2)
    follower = await pair.start()
    follower.kill(signal.SIGSTOP)
    with pytest.raises(StandbyError, match=r"has not answered in 0\.2 seconds"):
        await ask_standby(pair.folder, "promote")
    follower.kill(signal.SIGCONT)
    await until(pair.is_followed)
    await asyncio.sleep(0.2)
    assert holder_of(pair.folder.log) == process(pair.nodes[0].process.pid)
    assert follower.end() == (0, "")


async def test_two_promotions_at_once_are_one(pair: Pair) -> None:
    follower = await pair.start()
    told = await asyncio.gather(*(ask_standby(pair.folder, "promote") for _ in range(2)))
    assert [standing.epoch for standing in told] == [2, 2]
    assert follower.end() == (0, "")


async def test_a_core_that_is_started_again_at_once_leads_or_follows_but_never_beside_another(
    pair: Pair,
) -> None:
    await pair.start()
    load = Load(pair.folder)
    await load.more()
    asking = asyncio.create_task(ask_standby(pair.folder, "promote"))
    pair.nodes[0].kill()
    # As a supervisor does, while the follower is waiting for the lock, or has just got it.
    again = Node(pair.folder)
    pair.nodes.append(again)
    await asking
    await load.more()
    holder = holder_of(pair.folder.log)
    assert holder is not None
    leads = [node for node in pair.nodes if node.process.poll() is None and node.process.pid == holder.pid]
    assert len(leads) == 1
    await load.end()
    if again.process.poll() is None:
        await until(pair.is_followed)
        assert again not in leads
        assert again.end() == (0, "")
    assert leads[0].end() == (0, "")
    check_nothing_is_lost(pair.folder, load)


async def test_the_leaders_last_state_is_kept_when_it_stops(pair: Pair) -> None:
    assert pair.nodes[0].end() == (0, "")
    check_last_state(pair.folder)


def check_last_state(folder: DataFolder) -> None:
    log = FileLog(folder.log)
    (snapshot,) = Snapshots(folder.snapshots).whole(refuse)
    assert snapshot.sequence == log.last_sequence
    assert snapshot.state_hash == recover(log).engine.state_hash()
    log.close()


async def test_a_core_whose_log_ends_before_a_snapshot_says_so_and_does_not_start(folder: DataFolder) -> None:
    log = FileLog(folder.log)
    log.append(DAY[:50])
    Snapshots(folder.snapshots).write(snapshot_of(recover(log)))
    log.close()
    for segment in folder.log.glob("*.log"):
        segment.unlink()
    node = Node(folder)
    said = node.process.communicate(timeout=30)[1]
    assert node.process.returncode == 1
    assert said.startswith("core: the log ends with record 0, but record 50 was seen")


async def test_a_core_passes_a_damaged_snapshot_over_with_a_word(pair: Pair) -> None:
    pair.nodes[0].end()
    (path,) = pair.folder.snapshots.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    again = Node(pair.folder)
    pair.nodes.append(again)
    await until(pair.is_led)
    assert again.end() == (0, f"core: {path} is passed over: it is damaged: its state has another hash\n")
    # The last word of the leader is whole again.
    check_last_state(pair.folder)


async def test_a_standby_that_is_promoted_while_it_is_told_to_stop_does_not_lead(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = FileLog(folder.log)

    async def run(_: Follower, stop: asyncio.Event) -> Promoted:
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        return Promoted(log, recover(log))

    monkeypatch.setattr(Follower, "run", run)
    assert await _stand_by(folder, LOW_DISK_BYTES) is None
    FileLog(folder.log).close()


# -- the whole exchange ----------------------------------------------------------------------------------


def cux(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli", *arguments],
        capture_output=True,
        check=False,
        text=True,
        cwd=ROOT,
        timeout=60,
    )


async def test_in_a_served_exchange_core_and_follower_change_places_and_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(DATABASE_URL, raising=False)
    with served() as exchange:
        at = ("--folder", str(exchange.folder.path))

        async def is_followed() -> bool:
            return cux("standby", "status", *at).returncode == 0

        async def is_ready() -> bool:
            return exchange.health()[0] == 200

        await exchange.register()
        for epoch, leads in ((2, "follower"), (3, "core")):
            await until(is_followed)
            deposed = exchange.pid("core" if leads == "follower" else "follower")
            promoted = cux("standby", "promote", *at)
            assert promoted.returncode == 0, promoted.stderr
            assert promoted.stdout.endswith(f"epoch {epoch}\n")
            holder = holder_of(exchange.folder.log)
            assert holder is not None
            assert holder.pid == exchange.pid(leads) != deposed
            await until(is_ready)
            await exchange.register()
        await until(is_followed)
        stood = msgspec.json.decode(cux("standby", "status", "--json", *at).stdout)
        assert stood["behind"] == 0
        exchange.stop()
        assert exchange.process.returncode == 0
        log = FileLog(exchange.folder.log)
        assert Snapshots(exchange.folder.snapshots).last_sequence == log.last_sequence
        log.close()
        told = cux("standby", "status", *at)
        assert told.returncode == 1
        assert told.stderr == f"cux: no follower stands by at {exchange.folder.path}\n"
