"""A copy of a live exchange, by `cux backup` or by any program, is that exchange at an earlier record."""

import asyncio
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exchange.disk import FolderDisk
from exchange.engine import Engine
from exchange.folder import DataFolder, FolderError
from exchange.lock import FolderLock
from exchange.log import LogEnd, LogError, SegmentLog, batch_at, durable_end, end_of, read_records
from exchange.recovery import Recovered, reapply, snapshot_of
from exchange.snapshot import Snapshots
from gateway.cli import backup
from gateway.cli.backup import back_up
from schemas.codec import encode
from schemas.commands import RegisterAccount, Tick
from schemas.records import Record
from settlement.database import connect
from settlement.postgres import connection_of
from settlement.writer import engine_equals_ledger, position
from tests.campaigns.cores import CoreProcess, bids, make_folder, open_market
from tests.exchange_fixture import (
    Served,
    ask,
    bid,
    free_port,
    order,
    served,
    small_folder,
    temporary_folder,
    until,
)
from tests.market import START_NS

CATCH_UP_SECONDS = 60.0


@pytest.fixture(scope="module")
def exchange() -> Iterator[Served]:
    with served() as running:
        yield running


async def under_load(exchange: Served, work: Any) -> Any:
    """Return what `work` in a thread returns, while orders come and go."""
    seller, buyer = await exchange.register(), await exchange.register()
    site, hour = await exchange.certify(seller), exchange.new_hour()
    entered = 0

    async def trade() -> None:
        nonlocal entered
        async with exchange.client(seller) as sells, exchange.client(buyer) as buys:
            for n in itertools.count():
                await sells.enter(order(ask(f"a{n}", site, hour + n % 20)))
                await buys.enter(order(bid(f"b{n}", hour + n % 20)))
                entered = n

    trading = asyncio.create_task(trade())
    await until(lambda: entered >= 20)
    before = entered
    done = await asyncio.to_thread(work)
    # A copy may be made faster than a trade: that trade must come all the same.
    await until(lambda: entered > before)
    trading.cancel()
    await asyncio.gather(trading, return_exceptions=True)
    return done


def replayed(folder: DataFolder, last: int) -> tuple[list[Record], Recovered]:
    """The records up to `last`, and what they make."""
    records = list(read_records(folder.log, 1, last))
    recovered = Recovered(Engine(), None, 0)
    for record in records:
        recovered = reapply(recovered, record)
    return records, recovered


def goes_on(original: DataFolder, copy: DataFolder) -> int:
    """Start the copy; it is the original's beginning, and its ledger catches up. Returns its last record."""
    with temporary_folder() as path:
        # Where the database's user may pass.
        shutil.move(copy.path, path / "restored")
        restored = Served(DataFolder(path / "restored"), free_port())
        try:
            last = durable_end(restored.folder.log)
            ours, theirs = replayed(original, last), replayed(restored.folder, last)
            assert ours[0] == theirs[0]
            assert ours[1].engine.state_hash() == theirs[1].engine.state_hash()
            asyncio.run(ledger_reaches(restored, theirs[1]))
            # It takes orders again, as its own log's next record.
            (answer,) = asyncio.run(restored.operate(*register_next(theirs[1])))
            assert answer["sequence"] == last + 1
        finally:
            restored.stop()
    return last


def register_next(recovered: Recovered) -> list[Any]:
    account = 1_000_000 + recovered.sequence
    return [RegisterAccount(account, account)]


async def ledger_reaches(exchange: Served, recovered: Recovered) -> None:
    deadline = time.monotonic() + CATCH_UP_SECONDS
    conn = await connect(connection_of(exchange.folder.postgres))
    try:
        while await position(conn) < recovered.sequence:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert await engine_equals_ledger(conn, recovered.engine.balances()) == []
    finally:
        await conn.close()


def cux(*words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "gateway.cli", *map(str, words)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def keep_snapshot(folder: DataFolder) -> int:
    """Keep a snapshot at the end of the log, as a follower does; return its record."""
    recovered = replayed(folder, durable_end(folder.log))[1]
    Snapshots(folder.snapshots).write(snapshot_of(recovered))
    return recovered.sequence


def test_a_backup_under_load_goes_on_from_the_record_it_names(exchange: Served, tmp_path: Path) -> None:
    to = tmp_path / "copies" / "monday"

    def work() -> tuple[int, int]:
        kept = keep_snapshot(exchange.folder)
        said = cux("backup", to, "--folder", exchange.folder.path, "--json")
        assert said.returncode == 0, said
        made = json.loads(said.stdout)
        assert made["folder"] == str(to)
        return kept, made["record"]

    kept, record = asyncio.run(under_load(exchange, work))
    copy = DataFolder(to)
    assert record == durable_end(copy.log) >= kept
    assert Snapshots(copy.snapshots).last_sequence == kept
    assert {path.name for path in to.iterdir()} == {"cux.json", "keys", "log", "snapshots"}
    for path in (to, *to.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
    for path in (exchange.folder.settings_file, *exchange.folder.keys.iterdir()):
        assert (to / path.relative_to(exchange.folder.path)).read_bytes() == path.read_bytes()
    assert goes_on(exchange.folder, copy) == record


@pytest.mark.parametrize("program", [("cp", "-R"), ("rsync", "-a")], ids=" ".join)
def test_a_log_that_any_program_copied_under_load_goes_on(
    exchange: Served, tmp_path: Path, program: tuple[str, ...]
) -> None:
    if shutil.which(program[0]) is None:
        pytest.skip(f"{program[0]} is not installed")
    copy = DataFolder(tmp_path / "copy")
    copy.path.mkdir()
    source = exchange.folder

    def work() -> int:
        before = durable_end(source.log)
        parts = (source.settings_file, source.keys, source.log)
        subprocess.run([*program, *map(str, parts), str(copy.path)], check=True, timeout=60)
        return before

    before = asyncio.run(under_load(exchange, work))
    assert goes_on(source, copy) >= before


def test_a_stopped_exchange_is_backed_up_to_its_last_record(tmp_path: Path) -> None:
    folder = filled(tmp_path, [3, 2])
    assert back_up(folder, tmp_path / "copy").record == 5
    assert list(read_records(tmp_path / "copy" / "log")) == list(read_records(folder.log))


def filled(path: Path, batches: list[int], *, sealed: bool = True) -> DataFolder:
    """An exchange whose log holds so many ticks, batch by batch, a segment each."""
    folder = small_folder(path)
    disk = FolderDisk(folder.log)
    log = SegmentLog(disk, segment_max_bytes=1)
    numbers = itertools.count(1)
    for size in batches:
        log.append([tick(next(numbers)) for _ in range(size)])
    if sealed:
        log.seal()
    disk.close()
    return folder


def tick(sequence: int) -> Record:
    return Record(sequence, START_NS, bytes(16), msgspec.Raw(encode(Tick())), ())


def test_a_backup_holds_all_whole_batches_of_a_crash_and_of_a_live_log_what_is_known_to_be_durable(
    tmp_path: Path,
) -> None:
    folder = filled(tmp_path, [3, 2], sealed=False)
    (segment,) = folder.log.glob(f"{4:020d}.log")
    with segment.open("ab") as file:
        file.write(segment.read_bytes()[:20])
    lock = FolderLock(folder.log)
    assert back_up(folder, tmp_path / "live").record == durable_end(folder.log) == 3
    assert [one.sequence for one in read_records(tmp_path / "live" / "log")] == [1, 2, 3]
    lock.release()
    assert back_up(folder, tmp_path / "crashed").record == 5
    assert [one.sequence for one in read_records(tmp_path / "crashed" / "log")] == [1, 2, 3, 4, 5]


async def test_what_a_killed_core_had_told_is_verified_shown_exported_and_backed_up(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    with CoreProcess(folder) as core:
        link = await core.link()
        await open_market(link)
        told = await bids(link, 1, 40, at_a_time=40)
        core.process.kill()
        await core.ended()
    assert len(told) == 40
    last = max(answer.sequence for answer in told.values())
    at = ("--folder", folder.path)
    out = tmp_path / "lines"
    copy = DataFolder(tmp_path / "copy")
    assert cux("log", "export", out, *at).returncode == 0
    assert len(out.read_text().splitlines()) == last
    (line,) = cux("log", "show", "--from", last, *at).stdout.splitlines()
    assert json.loads(line)["sequence"] == last
    verdict = json.loads(cux("log", "verify", *at, "--json").stdout)
    assert (verdict["records"], verdict["records_behind"], verdict["torn_bytes"]) == (last, 0, 0)
    assert json.loads(cux("backup", copy.path, *at, "--json").stdout)["record"] == last
    assert list(read_records(copy.log)) == list(read_records(folder.log))


def test_a_log_without_records_is_backed_up(tmp_path: Path) -> None:
    assert back_up(small_folder(tmp_path), tmp_path / "copy").record == 0
    DataFolder(tmp_path / "copy").settings()


def test_a_snapshot_that_comes_meanwhile_is_not_beyond_the_logs_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = filled(tmp_path, [2])

    def end_then_more(log: Path) -> LogEnd:
        found = end_of(log)
        end = found.last
        more = SegmentLog(FolderDisk(log))
        more.append([tick(end + 1)])
        more.close()
        folder.snapshots.mkdir()
        (folder.snapshots / f"{end + 1:020d}.snapshot").write_bytes(b"state")
        return found

    monkeypatch.setattr(backup, "end_of", end_then_more)
    assert back_up(folder, tmp_path / "copy").record == 2
    assert Snapshots(tmp_path / "copy" / "snapshots").last_sequence <= 2


def test_a_log_that_ends_below_its_snapshot_is_not_backed_up(tmp_path: Path) -> None:
    folder = filled(tmp_path, [2])
    folder.snapshots.mkdir()
    (folder.snapshots / f"{3:020d}.snapshot").write_bytes(b"state")
    with pytest.raises(LogError, match="ends with record 2, but record 3 was seen"):
        back_up(folder, tmp_path / "copy")


@pytest.mark.parametrize("segment", [1, 4])
def test_a_damaged_log_is_refused_with_its_place_and_leaves_no_exchange(tmp_path: Path, segment: int) -> None:
    folder = filled(tmp_path, [3, 2])
    path = folder.log / f"{segment:020d}.log"
    data = bytearray(path.read_bytes())
    assert batch_at(bytes(data), 0) is not None
    data[50] ^= 1
    path.write_bytes(data)
    with pytest.raises(LogError) as refused:
        back_up(folder, tmp_path / "copy")
    assert str(refused.value) == f"{path} is damaged at byte 0, after record {segment - 1}"
    with pytest.raises(FolderError):
        DataFolder(tmp_path / "copy").settings()


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_target_that_holds_something_is_left_as_it_is(tmp_path: Path, what: str) -> None:
    folder = filled(tmp_path, [1])
    to = tmp_path / "copy"
    there = to if what == "file" else to / "mine"
    there.parent.mkdir(exist_ok=True)
    there.write_text("mine")
    said = cux("backup", to, "--folder", folder.path)
    assert (said.returncode, said.stdout) == (1, "")
    assert said.stderr == f"cux: {to} holds something already; name a new folder, or an empty one\n"
    assert there.read_text() == "mine"
    assert [path.name for path in tmp_path.rglob("copy/*")] == ([] if what == "file" else ["mine"])


def test_what_cannot_be_copied_whole_is_refused_before_anything_is_copied(tmp_path: Path) -> None:
    folder = filled(tmp_path, [1])
    with pytest.raises(FolderError, match=r"of which it would be a copy"):
        back_up(folder, folder.path / "copy")
    (folder.keys / "old").mkdir()
    with pytest.raises(FolderError, match=r"keys/old is no file: keys holds key files alone"):
        back_up(folder, tmp_path / "copy")
    assert not list(tmp_path.rglob("copy"))


@pytest.mark.parametrize(
    "verb", [("log", "verify"), ("log", "show"), ("log", "quarantine"), ("backup", "to")]
)
def test_a_file_in_the_place_of_the_folder_is_one_sentence(tmp_path: Path, verb: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("")
    said = cux(*verb, "--folder", tmp_path / "file")
    assert (said.returncode, said.stdout) == (1, "")
    assert said.stderr == f"cux: {tmp_path / 'file'} is no folder; name one that holds an exchange\n"


def test_everything_is_synced_before_a_backup_is_said_to_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = filled(tmp_path, [3, 2])
    synced: list[str] = []

    def sync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "fdatasync", sync)
    to = tmp_path / "copy"
    back_up(folder, to)
    assert {str(path) for path in (tmp_path, to, *to.rglob("*"))} <= set(synced)
    # What makes the folder an exchange comes last.
    assert synced[-3:] == [str(to / "cux.json"), str(to), str(tmp_path)]
