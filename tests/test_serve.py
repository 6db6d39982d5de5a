"""`cux serve`: what dies is started again and nothing acknowledged is lost; what cannot start says why."""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exchange.engine import Engine
from exchange.folder import DataFolder
from exchange.lock import process
from exchange.log import batch_at, durable_end, read_records
from gateway.client import Client
from gateway.serve import Exchange, ServeError
from schemas.records import decoded
from schemas.wire import OrderResult
from settlement.database import connect
from settlement.postgres import DATABASE_URL, Postgres
from tests.exchange_fixture import (
    ROOT,
    Served,
    ask,
    bid,
    free_port,
    order,
    processes_of,
    serve,
    served,
    small_folder,
    temporary_folder,
    until,
)


@pytest.fixture(scope="module")
def exchange() -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(DATABASE_URL, raising=False)
        with served() as found:
            yield found


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[DataFolder]:
    """A data folder that was never served."""
    monkeypatch.delenv(DATABASE_URL, raising=False)
    with temporary_folder() as path:
        yield small_folder(path)


def cux(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli", *arguments],
        capture_output=True,
        check=False,
        text=True,
        cwd=ROOT,
        timeout=60,
    )


def refused(process: "subprocess.Popen[str]", folder: DataFolder) -> str:
    """What a `cux serve` that cannot run says: no traceback, no process left, a code that is not zero."""
    out, error = process.communicate(timeout=60)
    assert process.returncode == 1, (out, error)
    assert "Traceback" not in error
    assert "exchange ready" not in out
    # The process that failed says why; the supervisor may add that it did not start.
    assert 1 <= len(error.strip().splitlines()) <= 2, error
    assert processes_of(folder.path) == []
    return error


# -- what cannot start -----------------------------------------------------------------------------------


def test_a_folder_without_an_exchange_says_how_to_make_one() -> None:
    with temporary_folder() as path:
        error = refused(serve(path / "none", free_port()), DataFolder(path / "none"))
        assert error == (
            f"cux: {path}/none holds no exchange; make one with: cux venue init --folder {path}/none\n"
        )


def test_a_folder_of_another_version_is_refused(folder: DataFolder) -> None:
    settings = json.loads(folder.settings_file.read_text())
    folder.settings_file.write_text(json.dumps({**settings, "format": 2}))
    error = refused(serve(folder.path, free_port()), folder)
    assert error == f"cux: {folder.path} is of data format 2; this version of cux reads 1\n"


def test_a_database_that_cannot_start_is_named(folder: DataFolder) -> None:
    folder.postgres.write_text("no folder")
    error = refused(serve(folder.path, free_port()), folder)
    assert error.startswith(f"cux: the database in {folder.postgres} cannot be started: ")


def test_a_database_server_that_is_not_there_is_one_sentence(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATABASE_URL, f"postgresql://127.0.0.1:{free_port()}/none")
    assert refused(serve(folder.path, free_port()), folder).startswith("cux: ")


def test_a_port_in_use_and_a_damaged_log_and_a_second_serve_are_refused(folder: DataFolder) -> None:
    taken = Served(folder, free_port())
    try:
        # Neither the first exchange nor its doors suffer from a second one.
        error = refused_beside(serve(folder.path, free_port()))
        assert error == f"cux: {folder.path} is served by another cux serve\n"
        assert taken.health()[0] == 200
        assert cux("status", "--folder", str(folder.path)).returncode == 0

        with temporary_folder() as path:
            other = small_folder(path)
            error = refused(serve(other.path, taken.port), other)
            refusal = f"cannot listen on 127.0.0.1:{taken.port}: Address already in use; name another --port"
            assert error == f"cux: {refusal}\n"
    finally:
        taken.stop()
    segment = next(folder.log.glob("*.log"))
    data = bytearray(segment.read_bytes())
    data[100] ^= 1
    segment.write_bytes(data)
    error = refused(serve(folder.path, free_port()), folder)
    assert error.startswith(f"core: {segment} is damaged at byte 0, in the batch of sequence 1")


def refused_beside(process: "subprocess.Popen[str]") -> str:
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1, error
    return error


def test_a_second_serve_is_refused_also_where_the_database_is_another_s(
    folder: DataFolder, exchange: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = json.loads((exchange.folder.postgres / "connection.json").read_text())["connection"]
    user, password = connection["user"], connection["password"]
    host, port = connection["host"], connection["port"]
    monkeypatch.setenv(DATABASE_URL, f"postgresql://{user}:{password}@/template1?host={host}&port={port}")
    first = Served(folder, free_port())
    try:
        error = refused_beside(serve(folder.path, free_port()))
        assert error == f"cux: {folder.path} is served by another cux serve\n"
        assert cux("status", "--folder", str(folder.path)).returncode == 0
        assert first.process.poll() is None
    finally:
        first.stop()


def cut_to(folder: DataFolder, last: int) -> None:
    """Cut the log at the end of a batch, behind the last one that ends with `last` or before."""
    (segment,) = folder.log.glob("*.log")
    data, end, size = segment.read_bytes(), 0, 0
    while (batch := batch_at(data, end)) is not None and batch.last_sequence <= last:
        end = size = batch.end
    segment.write_bytes(data[:size])


async def test_a_log_that_lost_what_the_ledger_has_is_not_led(folder: DataFolder) -> None:
    exchange = Served(folder, free_port())
    for _ in range(4):
        await exchange.register()
    at = ("--folder", str(folder.path))

    def checked() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(cux("db", "check", *at, "--json").stdout)
        return found

    await until(lambda: checked()["position"] == 13, 20)
    for pid in (exchange.pid("core"), exchange.pid("follower"), exchange.process.pid):
        os.kill(pid, signal.SIGKILL)
    exchange.process.communicate()
    await until(lambda: not processes_of(folder.path))
    assert not folder.snapshots.exists()
    cut_to(folder, 9)

    words = f"cux: the log in {folder.log} ends before record 13, which the ledger has: restore the whole log"
    for verb in (("db", "check"), ("serve", "--port", str(exchange.port))):
        said = cux(*verb, *at)
        assert said.returncode == 1
        assert said.stderr.startswith(words), said.stderr
        assert said.stderr.count("\n") == 1
        assert processes_of(folder.path) == []
    # Who decides that this is the log may go on with it, up to where it says that it is durable.
    durable = durable_end(folder.log)
    assert 0 < durable <= 9
    assert cux("db", "rebuild", *at).stdout == f"the ledger stands at record {durable}\n"
    assert checked()["position"] == durable
    exchange.start()
    assert exchange.health()[0] == 200
    exchange.stop()


def test_an_exchange_that_is_told_to_stop_while_it_starts_ends_in_order(folder: DataFolder) -> None:
    process, pids = serve(folder.path, free_port()), folder.run / "pids.json"
    while not pids.exists():
        time.sleep(0.01)
    core = json.loads(pids.read_bytes())["core"]
    # So it is never ready.
    os.kill(core, signal.SIGSTOP)
    process.terminate()
    time.sleep(0.5)
    os.kill(core, signal.SIGCONT)
    out, error = process.communicate(timeout=15)
    assert (process.returncode, error) == (0, "")
    assert "exchange ready" not in out
    assert processes_of(folder.path) == []


async def test_an_exchange_whose_ledger_is_found_to_be_ahead_stops_with_a_sentence(
    folder: DataFolder,
) -> None:
    exchange = Served(folder, free_port())
    connection = json.loads((folder.postgres / "connection.json").read_text())["connection"]
    conn = await connect(connection)
    await conn.execute("UPDATE cux.reader_position SET last = 1000, last_entry = $1", bytes(48))
    await conn.close()
    os.kill(exchange.pid("back"), signal.SIGKILL)
    out, error = await asyncio.to_thread(exchange.process.communicate, timeout=30)
    assert exchange.process.returncode == 1
    first, last = error.splitlines()
    assert first.startswith(f"back: the log in {folder.log} ends before record 1000, which the ledger has")
    assert last == "cux: the log lacks what the ledger has, as back says; the exchange stops"
    assert "back ended with code 3\n" in out
    assert processes_of(folder.path) == []


# -- what dies -------------------------------------------------------------------------------------------


def replayed(folder: DataFolder) -> tuple[str, list[Any]]:
    """State hash and records of the log, applied again in this process."""
    engine, records = Engine(), [decoded(record) for record in read_records(folder.log)]
    for record in records:
        assert tuple(engine.apply(record.time_ns, record.command)) == record.events
    engine.check()
    return engine.state_hash().hex(), records


async def load(client: Client, orders: list[Any], answered: Callable[[], None]) -> list[OrderResult]:
    """Enter the orders, 50 under way at a time; each is entered until it has an answer."""
    room = asyncio.Semaphore(50)

    async def enter(one: Any) -> OrderResult:
        async with room:
            result = await client.enter(one)
            answered()
            return result

    return await asyncio.gather(*(enter(one) for one in orders))


async def killed_under_load(exchange: Served, kill: Callable[[], None]) -> list[OrderResult]:
    """Kill while orders are under way, and return what all of them were answered in the end."""
    seller, buyer = await exchange.register(), await exchange.register("100000000")
    site, hour = await exchange.certify(seller), exchange.new_hour()
    async with exchange.client(seller) as sells, exchange.client(buyer) as buys:
        asks = [order(ask(f"a{n}", site, hour + n % 20, "1", "10")) for n in range(600)]
        bids = [order(bid(f"b{n}", hour + n % 20, "1", "10")) for n in range(600)]
        count, half = itertools.count(1), asyncio.Event()

        def answered() -> None:
            if next(count) == 600:
                half.set()

        loads = asyncio.gather(load(sells, asks, answered), load(buys, bids, answered))
        await half.wait()
        kill()
        both = await asyncio.wait_for(loads, 60)
        # Once more: every answer stands.
        for client, orders, answers in ((sells, asks, both[0]), (buys, bids, both[1])):
            again = await asyncio.gather(*(client.enter(one) for one in orders))
            assert [one.order_id for one in again] == [one.order_id for one in answers]
    return [*both[0], *both[1]]


async def test_nothing_acknowledged_is_lost_when_the_core_is_killed_under_load(exchange: Served) -> None:
    before = exchange.pid("core")
    answers = await killed_under_load(exchange, lambda: os.kill(before, signal.SIGKILL))
    assert exchange.pid("core") != before
    async with exchange.admin() as admin:
        told: dict[str, Any] = await admin.call("venue.status")

    def agrees() -> bool:
        found = cux("db", "check", "--folder", str(exchange.folder.path), "--json")
        checked = json.loads(found.stdout)
        assert (found.returncode, checked["differences"], checked["ledger_sum"]) == (0, [], 0)
        return bool(checked["position"] >= told["sequence"])

    # The ledger follows; at every position it stands at, it agrees with the log.
    await until(agrees, 20)
    verified = [
        json.loads(cux("log", "verify", "--folder", str(exchange.folder.path), "--json").stdout)
        for _ in range(2)
    ]
    assert verified[0]["state_hash"] == verified[1]["state_hash"] == replayed(exchange.folder)[0]
    logged = {
        event.order_id
        for record in replayed(exchange.folder)[1]
        for event in record.events
        if type(event).__name__ == "OrderAccepted"
    }
    assert {answer.order_id for answer in answers} <= logged


async def test_nothing_acknowledged_is_lost_when_the_gateway_is_killed_under_load(exchange: Served) -> None:
    before = exchange.pid("gateway")
    answers = await killed_under_load(exchange, lambda: os.kill(before, signal.SIGKILL))
    assert exchange.pid("gateway") != before
    assert len({answer.order_id for answer in answers}) == len(answers)


@pytest.mark.parametrize("name", ["back", "postgres"])
async def test_the_ledger_catches_up_when_its_processes_are_killed(exchange: Served, name: str) -> None:
    before = exchange.pid(name)
    os.kill(before, signal.SIGKILL)
    who = await exchange.register()
    async with exchange.admin() as admin:
        told: dict[str, Any] = await admin.call("venue.status")

    def caught_up() -> bool:
        found = cux("db", "check", "--folder", str(exchange.folder.path), "--json")
        return found.returncode == 0 and json.loads(found.stdout)["position"] >= told["sequence"]

    await until(caught_up, 20)
    assert exchange.pid(name) != before
    assert who.account


def test_a_supervisor_that_is_killed_leaves_nothing_behind_and_can_be_followed(folder: DataFolder) -> None:
    exchange = Served(folder, free_port())
    assert len(processes_of(folder.path)) >= 5
    exchange.process.kill()
    exchange.process.communicate()
    exchange.start()
    assert exchange.health()[0] == 200
    exchange.process.kill()
    exchange.process.communicate()
    deadline = time.monotonic() + 15
    while processes_of(folder.path):
        assert time.monotonic() < deadline, processes_of(folder.path)
        time.sleep(0.05)


def test_an_exchange_that_is_told_to_stop_ends_in_order(folder: DataFolder) -> None:
    exchange = Served(folder, free_port())

    async def with_a_session_open() -> None:
        async with exchange.client():
            began = time.monotonic()
            exchange.process.send_signal(signal.SIGINT)
            await asyncio.to_thread(exchange.process.wait, 30)
            assert time.monotonic() - began < 10

    asyncio.run(with_a_session_open())
    assert exchange.process.returncode == 0
    assert exchange.process.communicate()[1] == ""
    assert processes_of(folder.path) == []
    replayed(folder)


def test_a_process_that_keeps_dying_ends_the_exchange(folder: DataFolder) -> None:
    exchange = Served(folder, free_port())
    killed = set()
    while exchange.process.poll() is None:
        pid = exchange.pid("gateway")
        if pid not in killed:
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    assert len(killed) == 6
    out, error = exchange.process.communicate()
    assert exchange.process.returncode == 1
    assert "gateway ended with code -9 (Killed); that is too often, the exchange stops" in error
    assert out.count("gateway restarted as") == 5
    assert processes_of(folder.path) == []


class Places:
    """Core and follower as the supervisor keeps them; here they only sleep, and the test says who leads."""

    def __init__(self, folder: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.words: list[str] = []
        self.leader = 0
        self.exchange = Exchange(folder, "127.0.0.1", 0, Postgres({}), self.words.append)
        self.tasks: list[asyncio.Task[None]] = []
        monkeypatch.setattr("gateway.serve.holder_of", lambda _: process(self.leader))
        monkeypatch.setattr(self.exchange, "_start", self._start)

    async def _start(self, name: str) -> None:
        self.exchange._processes[name] = await asyncio.create_subprocess_exec("sleep", "60")

    async def begin(self) -> None:
        for name in ("core", "follower"):
            await self._start(name)
            self.tasks.append(asyncio.create_task(self.exchange._keep_leader_or_follower(name)))
        self.leader = self.pid("core")

    def pid(self, name: str) -> int:
        return self.exchange._processes[name].pid

    async def kill(self, name: str) -> None:
        """Kill it and return when it is there again."""
        before = self.pid(name)
        os.kill(before, signal.SIGKILL)
        await until(lambda: self.pid(name) != before)

    async def settled(self) -> None:
        """Return when it was seen who leads."""
        await until(lambda: self.pid(self.exchange._leader) == self.leader)
        await asyncio.sleep(0.1)

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for running in self.exchange._processes.values():
            if running.returncode is None:
                running.kill()
                await running.wait()


@pytest.fixture
async def places(folder: DataFolder, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Places]:
    found = Places(folder, monkeypatch)
    await found.begin()
    yield found
    await found.end()


async def test_a_leader_that_a_promotion_ends_is_no_crash(places: Places) -> None:
    for _ in range(6):
        for deposed, promoted in (("core", "follower"), ("follower", "core")):
            await places.kill(deposed)
            # It takes the log a moment later.
            places.leader = places.pid(promoted)
            await places.settled()
    assert not any(task.done() for task in places.tasks)
    assert places.words.count("follower leads") == places.words.count("core leads") == 6


async def test_a_follower_that_keeps_failing_does_not_end_a_sound_exchange_whatever_it_is_called(
    places: Places,
) -> None:
    os.kill(places.leader, signal.SIGKILL)
    places.leader = places.pid("follower")
    await places.settled()
    for _ in range(5):
        await places.kill("core")
        await asyncio.sleep(0.1)
    os.kill(places.pid("core"), signal.SIGKILL)
    await until(lambda: places.words.count("core ended with code -9 (Killed)") == 7)
    # It is started again, but later.
    await asyncio.sleep(0.3)
    assert not any(task.done() for task in places.tasks)
    assert places.words.count(f"core restarted as {places.pid('core')}") == 1


async def test_a_leader_that_keeps_failing_ends_the_exchange_whatever_it_is_called(places: Places) -> None:
    os.kill(places.leader, signal.SIGKILL)
    places.leader = places.pid("follower")
    await places.settled()
    for count in range(1, 7):
        await places.kill("follower")
        # It takes the log, or ends before it does.
        if count % 2:
            places.leader = places.pid("follower")
            await places.settled()
    os.kill(places.pid("follower"), signal.SIGKILL)
    await until(places.tasks[1].done)
    with pytest.raises(ServeError, match=r"follower ended with code -9 \(Killed\); that is too often"):
        places.tasks[1].result()
    assert not places.tasks[0].done()


def test_the_pids_file_names_living_processes(exchange: Served) -> None:
    pids = msgspec.json.decode((exchange.folder.run / "pids.json").read_bytes(), type=dict[str, int])
    assert {"core", "gateway", "back"} <= set(pids)
    for pid in pids.values():
        assert Path(f"/proc/{pid}").exists()
