"""The core process: durable before told, recovered after a kill, one writer a folder."""

import asyncio
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from exchange.engine import Engine
from exchange.folder import DataFolder, Settings
from exchange.link import BusyError, CoreLink, CoreLostError
from exchange.log import FileLog, LogError, read_records
from gateway.session import CallError, Exchange
from gateway.state import State
from schemas.codec import encode
from schemas.commands import CancelOrder, CorrectClock, HaltContract, OpenEra, Tick
from schemas.events import ClockCorrected, ContractClosed, OrderAccepted, OrderEnded, OrderRepeated, Rejected
from schemas.reasons import DoorError, RejectReason
from schemas.records import Decoded, decoded
from tests.market import AUTHORITY, BUYER, FIRST_HOUR, OPERATOR_KEY, START_NS, ask, bid, opening
from tests.small_venue import SMALL_VENUE


def make_folder(path: Path, **changes: object) -> DataFolder:
    folder = DataFolder(path / "exchange")
    fields: dict[str, object] = {
        "format": 1,
        "origin": "test.example/small",
        "venue": SMALL_VENUE,
        "venue_key": bytes(32),
        "operator_keys": (OPERATOR_KEY,),
        "clock_speed": 1,
        "start_ns": START_NS,
    }
    folder.create(Settings(**{**fields, **changes}))  # type: ignore[arg-type]
    return folder


class CoreProcess:
    """A real core in its own process; `program` runs in its place, and has something go wrong in it."""

    def __init__(self, folder: DataFolder, *options: str, program: str = "") -> None:
        self.folder = folder
        start = ["-c", f"{program}\nimport exchange.core, sys\nsys.exit(exchange.core.main())"]
        self.process = subprocess.Popen(
            [sys.executable, *(start if program else ["-m", "exchange.core"]), str(folder.path), *options],
            stderr=subprocess.PIPE,
            text=True,
        )

    async def link(self) -> CoreLink:
        for _ in range(200):
            try:
                return await CoreLink.connect(self.folder.core_socket)
            except OSError:
                assert self.process.poll() is None, self.process.communicate()[1]
                await asyncio.sleep(0.05)
        raise AssertionError("the core did not start")

    def kill(self, number: int = signal.SIGKILL) -> int:
        self.process.send_signal(number)
        return self.process.wait(10)


def accepted(record: Decoded) -> OrderAccepted:
    """Return the first event of an order that was accepted."""
    event = record.events[0]
    assert isinstance(event, OrderAccepted), record
    return event


async def _open_market(link: CoreLink) -> None:
    for command in opening()[1:]:
        answer = await link.submit(command)
        assert not isinstance(answer.events[0], Rejected), answer


async def _bids_until_lost(link: CoreLink, acknowledged: list[int], pause_seconds: float = 0) -> None:
    """Enter bids until one is not taken, and keep the sequence of each that was."""
    for n in range(1, 10_000):
        acknowledged.append((await link.submit(bid(n, 1, 1))).sequence)
        await asyncio.sleep(pause_seconds)


async def test_what_was_acknowledged_survives_a_kill_and_is_known_when_repeated(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    core = CoreProcess(folder)
    link = await core.link()
    await _open_market(link)
    orders = [bid(n, 1, 100 + n) for n in range(30)]
    answers = await asyncio.gather(*(link.submit(order) for order in orders))
    first = [accepted(answer) for answer in answers]
    core.kill()
    with pytest.raises(CoreLostError):
        await link.submit(Tick())
    again = CoreProcess(folder)
    link = await again.link()
    repeated = [await link.submit(order) for order in orders]
    assert [r.events[0] for r in repeated] == [
        OrderRepeated(one.order_id, one.reserved_micros, 0, 1) for one in first
    ]
    await link.close()
    assert again.kill(signal.SIGTERM) == 0


async def test_the_log_replayed_gives_the_same_events_and_state(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    core = CoreProcess(folder)
    link = await core.link()
    await _open_market(link)
    await link.submit(ask(1, 1, 3, 100))
    await link.submit(bid(2, 2, 101))
    await link.set_clock((FIRST_HOUR + 1) * 3600 * 10**9)
    await link.close()
    assert core.kill(signal.SIGTERM) == 0
    hashes = []
    for _ in range(2):
        engine = Engine()
        for record in read_records(folder.log):
            known = decoded(record)
            assert tuple(engine.apply(known.time_ns, known.command)) == known.events
            engine.check()
        hashes.append(engine.state_hash())
    assert hashes[0] == hashes[1]
    events = [event for record in read_records(folder.log) for event in decoded(record).events]
    assert ContractClosed("H100-SXM", FIRST_HOUR) in events
    assert any(isinstance(event, OrderEnded) for event in events)


async def test_due_work_happens_without_a_command(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    core = CoreProcess(folder)
    link = await core.link()
    await _open_market(link)
    await link.submit(ask(1, 1, 3, 100))
    gate = FIRST_HOUR * 3600 * 10**9 - 900 * 10**9
    await link.set_clock(gate - 10**9, 4)
    seen: list[Decoded] = []
    deadline = time.monotonic() + 5
    while not seen and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
        records = map(decoded, read_records(folder.log))
        seen = [r for r in records if any(isinstance(e, ContractClosed) for e in r.events)]
    assert isinstance(seen[0].command, Tick)
    assert gate <= seen[0].time_ns < gate + 4 * 10**9
    await link.close()
    core.kill()


async def test_an_operators_command_needs_a_key_of_the_era(tmp_path: Path) -> None:
    core = CoreProcess(make_folder(tmp_path, operator_keys=(bytes(32),)))
    link = await core.link()
    answer = await link.submit(opening()[1])
    assert isinstance(answer.events[0], Rejected)
    assert answer.events[0].reason is RejectReason.UNKNOWN_OPERATOR
    await link.close()
    core.kill()


async def test_a_real_clock_cannot_be_set(tmp_path: Path) -> None:
    core = CoreProcess(make_folder(tmp_path, clock_speed=0))
    link = await core.link()
    with pytest.raises(ValueError, match="real"):
        await link.set_clock(2**62)
    await link.close()
    core.kill()


async def test_a_second_core_on_the_folder_is_refused_in_one_sentence(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    core = CoreProcess(folder)
    await (await core.link()).close()
    second = CoreProcess(folder)
    _, error = second.process.communicate(timeout=10)
    assert second.process.returncode == 1
    assert "is held by another running exchange" in error
    assert "Traceback" not in error
    assert core.process.poll() is None
    core.kill()


async def test_a_folder_of_another_version_is_refused_in_one_sentence(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    settings = msgspec.json.decode(folder.settings_file.read_bytes())
    folder.settings_file.write_bytes(msgspec.json.encode({**settings, "format": 99}))
    _, error = CoreProcess(folder).process.communicate(timeout=10)
    assert "data format 99; this version of cux reads 1" in error
    assert "Traceback" not in error


async def test_a_full_disk_stops_the_core_and_what_was_acknowledged_is_safe(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], check=True)
    try:
        folder = make_folder(disk)
        core = CoreProcess(folder, "--low-disk-bytes", "0")
        link = await core.link()
        await _open_market(link)
        acknowledged: list[int] = []
        with pytest.raises(CoreLostError):
            await _bids_until_lost(link, acknowledged)
        assert core.process.wait(10) == 1
        words = core.process.communicate()[1]
        assert re.fullmatch(
            "core: stopped, nothing after the last answer was told: .*No space left.*\n", words
        )
        assert [r.sequence for r in read_records(folder.log)][: acknowledged[-1]] == list(
            range(1, acknowledged[-1] + 1)
        )
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


async def test_when_the_disk_is_low_only_cancels_are_taken_until_there_is_room_again(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
    try:
        folder = make_folder(disk)
        core = CoreProcess(folder, "--low-disk-bytes", str(256 * 1024))
        link = await core.link()
        await _open_market(link)
        answer = await link.submit(bid(0, 1, 100))
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(800 * 1024))
        reason = "only cancels are taken: the disk of the log has [0-9]+ bytes left; 262144 are needed"
        with pytest.raises(BusyError, match=reason):
            await _bids_until_lost(link, [], 0.02)
        canceled = await link.submit(CancelOrder(BUYER, accepted(answer).order_id))
        assert isinstance(canceled.events[0], OrderEnded)
        ballast.unlink()
        await asyncio.sleep(1.5)
        accepted(await link.submit(bid(1000, 1, 100)))
        await link.close()
        assert core.kill(signal.SIGTERM) == 0
        first, second = core.process.communicate()[1].splitlines()
        assert re.fullmatch(f"core: {reason}", first)
        assert second == "core: all commands are taken again"
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


FAILING_SYNC = """
import errno, os
real, count = os.fdatasync, 0
def fdatasync(file):
    global count
    count += 1
    real(file)
    if count == 30:
        raise OSError(errno.EIO, "Input/output error")
    assert count < 30, "synced again"
os.fdatasync = fdatasync
"""


async def test_after_a_failed_sync_nothing_is_told_or_touched_and_the_core_ends(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    core = CoreProcess(folder, program=FAILING_SYNC)
    link = await core.link()
    await _open_market(link)
    acknowledged: list[int] = []
    with pytest.raises(CoreLostError):
        await _bids_until_lost(link, acknowledged)
    size = next(folder.log.glob("*.log")).stat().st_size
    assert core.process.wait(10) == 1
    words = core.process.communicate()[1]
    assert words == ("core: stopped, nothing after the last answer was told: [Errno 5] Input/output error\n")
    assert next(folder.log.glob("*.log")).stat().st_size == size
    # What the failed sync was for may be in the log, and was told to nobody.
    last = [record.sequence for record in read_records(folder.log)][-1]
    assert acknowledged[-1] == last - 1


# Only what is interpreted can be given a bug from outside.
FAILING_ENGINE = """
import os
os.environ["CUX_ENGINE"] = "interpreted"
import exchange.engine
real = exchange.engine.enter
def enter(market, command):
    if command.client_order_id == "o77":
        raise ZeroDivisionError("our own bug")
    return real(market, command)
exchange.engine.enter = enter
"""


async def test_a_command_at_which_the_engine_fails_ends_the_core_once_and_is_refused_ever_after(
    tmp_path: Path,
) -> None:
    folder = make_folder(tmp_path)
    core = CoreProcess(folder, program=FAILING_ENGINE)
    link = await core.link()
    await _open_market(link)
    accepted(await link.submit(bid(1, 1, 100)))
    fatal = bid(77, 1, 100)
    with pytest.raises(CoreLostError):
        await link.submit(fatal)
    assert core.process.wait(10) == 1
    (file,) = folder.quarantine.iterdir()
    assert file.name == f"{hashlib.sha256(encode(fatal)).hexdigest()}.txt"
    assert "ZeroDivisionError: our own bug" in file.read_text()
    assert '"client_order_id":"o77"' in file.read_text()
    assert core.process.communicate()[1] == (
        f"core: the engine failed at a command of type enter_order; it is refused from now on: {file}\n"
    )
    again = CoreProcess(folder, program=FAILING_ENGINE)
    link = await again.link()
    for _ in range(2):
        with pytest.raises(ValueError, match="failed at this very command before and refuses it"):
            await link.submit(fatal)
    # Another one, by a hair, is none of it.
    accepted(await link.submit(bid(78, 1, 100)))
    await link.close()
    assert again.kill(signal.SIGTERM) == 0


FAILING_TICK = """
import os
os.environ["CUX_ENGINE"] = "interpreted"
import exchange.engine, schemas.commands
real = exchange.engine.Engine._dispatch
def dispatch(engine, command):
    assert not isinstance(command, schemas.commands.Tick), "our own bug"
    return real(engine, command)
exchange.engine.Engine._dispatch = dispatch
"""


async def test_a_command_of_the_cores_own_at_which_the_engine_fails_only_ends_the_core(
    tmp_path: Path,
) -> None:
    folder = make_folder(tmp_path)
    core = CoreProcess(folder, program=FAILING_TICK)
    link = await core.link()
    with pytest.raises(CoreLostError):
        await link.set_clock(START_NS + 1)
    assert core.process.wait(10) == 1
    assert "our own bug" in core.process.communicate()[1]
    assert not folder.quarantine.exists()


SLOW_START = """
import sys, time
import exchange.core
def recover(log, snapshots):
    sys.stderr.write("starting\\n")
    time.sleep(60)
exchange.core.recover = recover
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_core_that_is_told_to_stop_while_it_starts_ends_well(tmp_path: Path, number: int) -> None:
    core = CoreProcess(make_folder(tmp_path), program=SLOW_START)
    assert core.process.stderr is not None
    assert core.process.stderr.readline() == "starting\n"
    assert core.kill(number) == 0
    assert core.process.communicate()[1] == ""


def test_a_folder_that_cannot_be_written_is_not_led_and_the_last_word_says_so(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    folder.log.rmdir()
    folder.log.write_text("no folder")
    core = CoreProcess(folder)
    assert core.process.wait(10) == 1
    words = core.process.communicate()[1]
    assert re.fullmatch(r"core: .*exchange cannot be led: .*File exists.*\n", words), words


async def test_a_core_that_cannot_write_its_last_snapshot_says_so_and_ends_well(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    core = CoreProcess(folder)
    link = await core.link()
    await _open_market(link)
    folder.snapshots.write_text("no folder")
    await link.close()
    assert core.kill(signal.SIGTERM) == 0
    assert re.fullmatch(
        r"core: no snapshot of record \d+ was made: .*File exists.*\n", core.process.communicate()[1]
    )


SLOW_END = """
import asyncio, sys, time
import uvloop
real = uvloop.run
def run(process):
    real(process)
    sys.stderr.write("ending\\n")
    time.sleep(0.5)
uvloop.run = run
"""


async def test_a_core_that_is_told_twice_to_stop_ends_as_if_told_once(tmp_path: Path) -> None:
    core = CoreProcess(make_folder(tmp_path), program=SLOW_END)
    await (await core.link()).close()
    core.process.send_signal(signal.SIGTERM)
    assert core.process.stderr is not None
    assert core.process.stderr.readline() == "ending\n"
    assert core.kill(signal.SIGTERM) == 0


JUMPING_CLOCK = """
import pathlib, sys, time
real, jump = time.time_ns, pathlib.Path(sys.argv[1]) / "jump"
time.time_ns = lambda: real() + (int(jump.read_text()) if jump.exists() else 0)
"""


@pytest.mark.parametrize("jump_seconds", [3600, -3600])
async def test_when_the_clock_jumps_only_cancels_are_taken_until_an_operator_corrects_it(
    tmp_path: Path, jump_seconds: int
) -> None:
    folder = make_folder(tmp_path, clock_speed=0)
    core = CoreProcess(folder, program=JUMPING_CLOCK)
    link = await core.link()
    before = await link.submit(CancelOrder(BUYER, 1))
    (folder.path / "jump").write_text(str(jump_seconds * 10**9))
    with pytest.raises(
        BusyError, match=f"the clock jumped by {jump_seconds}[0-9]{{3}} ms; an operator must sign"
    ):
        await link.submit(bid(1, 1, 100))
    with pytest.raises(BusyError):
        await link.submit(HaltContract("H100-SXM", FIRST_HOUR, authority=AUTHORITY))
    meanwhile = await link.submit(CancelOrder(BUYER, 1))
    assert isinstance(meanwhile.events[0], Rejected)
    # Time went on as it does, and did not jump.
    assert before.time_ns < meanwhile.time_ns < before.time_ns + 60 * 10**9
    refused = await link.submit(CorrectClock())
    assert isinstance(refused.events[0], Rejected)
    with pytest.raises(BusyError):
        await link.submit(bid(1, 1, 100))
    corrected = await link.submit(CorrectClock(authority=AUTHORITY))
    assert corrected.events == (ClockCorrected(),)
    after = await link.submit(bid(1, 1, 100))
    if jump_seconds > 0:
        assert after.time_ns >= before.time_ns + jump_seconds * 10**9
    else:
        # It stands until the machine's clock has caught up.
        assert after.time_ns == corrected.time_ns
    await link.close()
    assert core.kill(signal.SIGTERM) == 0


async def test_a_member_is_told_why_nothing_was_taken(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    core = CoreProcess(folder, "--low-disk-bytes", str(2**62))
    door = Exchange(State())
    door.link = await core.link()
    with pytest.raises(CallError) as told:
        await door.submit(bid(1, 1, 100))
    assert told.value.error.code == DoorError.BUSY
    assert re.match("nothing was taken, try again: only cancels are taken: the disk", str(told.value))
    with pytest.raises(CallError, match="tick is given by the core alone"):
        await door.submit(Tick())
    await door.link.close()
    assert core.kill(signal.SIGTERM) == 0


async def test_the_era_names_the_engine_and_the_clock(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, clock_speed=7)
    core = CoreProcess(folder)
    await (await core.link()).close()
    core.kill()
    era = decoded(next(read_records(folder.log))).command
    assert isinstance(era, OpenEra)
    assert era.clock_speed == 7
    assert era.venue == SMALL_VENUE


def test_damage_before_the_tail_is_refused_with_its_place(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    core = subprocess.Popen([sys.executable, "-m", "exchange.core", str(folder.path)])
    while not folder.core_socket.exists():
        time.sleep(0.02)
    core.terminate()
    core.wait(10)
    segment = next(folder.log.glob("*.log"))
    data = bytearray(segment.read_bytes())
    data[100] ^= 1
    segment.write_bytes(data)
    with pytest.raises(LogError, match="damaged at byte 0"):
        FileLog(folder.log)
