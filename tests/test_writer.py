"""The engine goes on while a sync runs; what came meanwhile is one batch; nobody hears of it before."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from exchange.core import Core
from exchange.folder import DataFolder
from exchange.link import BusyError, CoreLink, CoreLostError
from exchange.log import FileLog, LogReader
from exchange.recovery import recover
from exchange.writer import SEAL_AFTER_SECONDS, Writer
from schemas.commands import CancelOrder
from schemas.events import Rejected
from schemas.records import Record
from tests.exchange_fixture import until
from tests.test_chores import served
from tests.test_core import make_folder
from tests.test_log import batch


class HeldLog(FileLog):
    """A log whose syncs last as long as the test wants, or fail."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.go_on = threading.Event()
        self.go_on.set()
        self.failure: OSError | None = None
        self.batches: list[int] = []

    def append(self, records: Sequence[Record]) -> None:
        self.batches.append(len(records))
        self.go_on.wait(10)
        if self.failure is not None:
            raise self.failure
        super().append(records)


class Heard:
    """What a writer told."""

    def __init__(self) -> None:
        self.durable: list[int] = []
        self.failures: list[Exception] = []


def writer_of(log: FileLog) -> tuple[Writer, Heard]:
    heard = Heard()
    return Writer(log, heard.durable.append, heard.failures.append), heard


async def test_all_that_came_while_a_sync_ran_is_one_batch(tmp_path: Path) -> None:
    log = HeldLog(tmp_path)
    log.go_on.clear()
    writer, heard = writer_of(log)
    writer.put(batch(1, 1))
    await until(lambda: log.batches == [1])
    for first in (2, 4, 6):
        writer.put(batch(first, 2))
    assert heard.durable == []
    log.go_on.set()
    writer.stop()
    assert log.batches == [1, 6]
    assert heard.durable == [1, 7]
    log.close()
    assert [r.sequence for r in LogReader(tmp_path).poll()] == list(range(1, 8))


async def test_an_idle_writer_seals_its_log(tmp_path: Path) -> None:
    log = FileLog(tmp_path)
    writer, _ = writer_of(log)
    reader = LogReader(tmp_path)
    told: list[Record] = []
    for first in (1, 3):
        writer.put(batch(first, 2))
        await asyncio.sleep(SEAL_AFTER_SECONDS * 2)
        await until(lambda last=first + 1: _read(reader, told) == last)  # type: ignore[misc]
    writer.stop()
    log.close()


def _read(reader: LogReader, told: list[Record]) -> int:
    told += reader.poll()
    return told[-1].sequence if told else 0


async def test_after_a_failure_the_log_is_not_touched_and_nothing_told(tmp_path: Path) -> None:
    log = HeldLog(tmp_path)
    log.failure = OSError("the disk is gone")
    writer, heard = writer_of(log)
    writer.put(batch(1, 1))
    await until(lambda: bool(heard.failures))
    writer.put(batch(2, 1))
    writer.stop()
    assert heard.failures == [log.failure]
    assert heard.durable == []
    assert log.batches == [1]


class Slow(NamedTuple):
    """A core whose syncs are held."""

    folder: DataFolder
    log: HeldLog
    core: Core
    link: CoreLink


@pytest.fixture
async def slow(tmp_path: Path) -> AsyncIterator[Slow]:
    """A core in this very process, and a link to it."""
    folder = make_folder(tmp_path)
    log = HeldLog(folder.log)
    core = Core(folder, log, recover(log))
    async with served(core, folder.core_socket) as link:
        yield Slow(folder, log, core, link)
        log.go_on.set()


async def test_the_engine_goes_on_while_a_sync_runs_and_nobody_hears_of_it_before(slow: Slow) -> None:
    _, log, core, link = slow
    log.go_on.clear()
    answers = []
    for number in range(1, 4):
        answers.append(asyncio.create_task(link.submit(CancelOrder(1, number))))
        # In a batch of its own.
        await until(lambda last=number: core._applied == 1 + last)  # type: ignore[misc]
    await asyncio.sleep(0.05)
    assert not any(answer.done() for answer in answers)
    log.go_on.set()
    records = await asyncio.gather(*answers)
    assert [record.sequence for record in records] == [2, 3, 4]
    assert log.batches[-2:] == [1, 2]


async def test_no_more_than_so_many_records_are_applied_and_not_durable(
    slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exchange.core.UNSYNCED_MAX", 5)
    monkeypatch.setattr("exchange.core.BATCH_MAX", 2)
    _, log, core, link = slow
    log.go_on.clear()
    answers = [asyncio.create_task(link.submit(CancelOrder(1, number))) for number in range(20)]
    await until(lambda: core._applied >= 6)
    await asyncio.sleep(0.1)
    assert core._applied == 1 + 6
    log.go_on.set()
    records = await asyncio.gather(*answers)
    assert all(isinstance(record.events[0], Rejected) for record in records)


async def test_each_client_hears_its_own_answers_and_a_follower_all_of_them(slow: Slow) -> None:
    folder, log, _, link = slow
    heard: list[int] = []
    socket = folder.core_socket
    other = await CoreLink.connect(socket)
    follower = await CoreLink.connect(socket, lambda record: heard.append(record.sequence))
    log.go_on.clear()
    links = [link, other, follower] * 4
    answers = [asyncio.create_task(one.submit(CancelOrder(1, n))) for n, one in enumerate(links)]
    await asyncio.sleep(0.05)
    log.go_on.set()
    records = await asyncio.gather(*answers)
    # Each got the record of the very command that it had submitted.
    assert [record.command for record in records] == [CancelOrder(1, n) for n in range(len(links))]
    assert heard == list(range(2, 2 + len(links)))
    assert [one.durable for one in (link, other)] == [records[-3].sequence, records[-2].sequence]
    for one in (other, follower):
        await one.close()


async def test_a_core_that_stops_finishes_what_it_took_and_takes_no_more(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    log = HeldLog(folder.log)
    core = Core(folder, log, recover(log))
    async with served(core, folder.core_socket) as link:
        log.go_on.clear()
        taken = asyncio.create_task(link.submit(CancelOrder(1, 1)))
        await until(lambda: core._applied == 2)
        core.stop()
        with pytest.raises(BusyError, match="the exchange is stopping"):
            await link.submit(CancelOrder(1, 2))
        log.go_on.set()
        assert (await taken).sequence == 2
        await link.wait_closed()
        with pytest.raises(CoreLostError):
            await link.submit(CancelOrder(1, 3))
