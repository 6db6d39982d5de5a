"""`cux serve`: starts the database, the core, the gateway, the back and the follower, and watches them."""

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import msgspec

from exchange.folder import DataFolder, FolderError
from exchange.link import CoreLink, CoreLostError
from exchange.lock import holder_of, process
from exchange.log import LogError
from exchange.process import SUPERVISOR
from settlement.back import LEDGER_AHEAD
from settlement.database import connect, migrate
from settlement.postgres import DatabaseError, Postgres, connection_of
from settlement.writer import LedgerAheadError, position_in

RESTARTS_MAX = 5
RESTART_WINDOW_SECONDS = 60.0
START_SECONDS = 60.0
STOP_SECONDS = 20.0
POSTGRES_LOOK_SECONDS = 0.5
_MODULES = {
    "core": "exchange.core",
    "gateway": "gateway.server",
    "back": "settlement.back",
    "follower": "exchange.core",
}


class ServeError(Exception):
    """The exchange could not be started or kept up; the process that failed has said why."""


class _Ends:
    """How often something ended within the last minute."""

    def __init__(self) -> None:
        self._at: deque[float] = deque()

    def one_more_is_too_many(self) -> bool:
        """Note that it ended, and say whether it did too often."""
        now = time.monotonic()
        self._at.append(now)
        while self._at[0] < now - RESTART_WINDOW_SECONDS:
            self._at.popleft()
        return len(self._at) > RESTARTS_MAX


class Exchange:
    """The processes of one exchange. A process that dies is started again, within limits."""

    def __init__(
        self, folder: DataFolder, host: str, port: int, postgres: Postgres, tell: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._host, self._port = host, port
        self._postgres = postgres
        self._tell = tell
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        # Core and follower are one program and change places when the follower is promoted.
        self._leader = "core"
        self._leader_ends = _Ends()

    async def run(self, stop: asyncio.Event) -> None:
        """Start everything, keep it up until `stop`, end it in order.

        Raises:
            DatabaseError: the database cannot be used.
            LedgerAheadError: the log lacks what the ledger has.
            ServeError: a process ended before it was ready, or keeps dying.
        """
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._prepare_database()
            for name, ready in (
                ("core", self._core_ready),
                ("gateway", self._gateway_ready),
                ("back", None),
                ("follower", None),
            ):
                await self._start(name)
                if ready is not None:
                    await self._until_ready(name, ready, stop)
                if stop.is_set():
                    return
                keep = self._keep_leader_or_follower if name in ("core", "follower") else self._keep
                tasks.append(asyncio.create_task(keep(name)))
            tasks.append(asyncio.create_task(self._keep_postgres()))
            self._tell(
                f"exchange ready at ws://{self._host}:{self._port}/ws; "
                + ", ".join(f"{name} {pid}" for name, pid in self._pids().items())
            )
            stopping = asyncio.create_task(self._stopped(stop))
            tasks.append(stopping)
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await self._end()
            self._postgres.stop()

    async def _prepare_database(self) -> None:
        try:
            conn = await connect(self._postgres.connection)
        except (OSError, asyncpg.PostgresError) as error:
            raise DatabaseError(f"the database cannot be reached: {error}") from error
        try:
            await migrate(conn)
            # Before anybody leads: the ledger may have seen more than a log that was cut.
            await position_in(conn, self._folder.log)
        except LedgerAheadError:
            raise
        except LogError:
            # The core reads all of it, and says more exactly where it is damaged.
            pass
        finally:
            await conn.close()

    async def _stopped(self, stop: asyncio.Event) -> None:
        await stop.wait()

    async def _keep(self, name: str) -> None:
        """Start the gateway or the back again whenever it ends.

        Trading needs the gateway: if it ends too often, all stops. It does not need the back, unless that one
        finds that the log has lost what the ledger has.
        """
        ends = _Ends()
        while True:
            ended = await self._end_of(name)
            if name == "back" and self._processes[name].returncode == LEDGER_AHEAD:
                raise ServeError("the log lacks what the ledger has, as back says; the exchange stops")
            if ends.one_more_is_too_many():
                if name == "gateway":
                    raise ServeError(f"{ended}; that is too often, the exchange stops")
                await asyncio.sleep(RESTART_WINDOW_SECONDS / RESTARTS_MAX)
            await self._restart(name)

    async def _keep_leader_or_follower(self, name: str) -> None:
        """Start core or follower again whenever it ends.

        Trading needs a leader: if the one that leads ends too often, whatever it is called, all stops. Its
        end does not count where the other one leads then: it was promoted.
        """
        ends_of_follower = _Ends()
        while True:
            ended = await self._end_of(name)
            if name != self._leader and ends_of_follower.one_more_is_too_many():
                await asyncio.sleep(RESTART_WINDOW_SECONDS / RESTARTS_MAX)
            await self._restart(name)
            leader = await self._leader_after(name)
            if leader != self._leader:
                self._tell(f"{leader} leads")
                self._leader = leader
            if leader == name and self._leader_ends.one_more_is_too_many():
                raise ServeError(f"{ended}; that is too often, the exchange stops")

    async def _leader_after(self, name: str) -> str:
        """Return which of the two leads, or comes to, after one was started again; the one, if it ends."""
        other = "follower" if name == "core" else "core"
        deadline = time.monotonic() + START_SECONDS
        while not self._leads(name) and self._processes[name].returncode is None:
            if self._leads(other):
                return other
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.05)
        return name

    def _leads(self, name: str) -> bool:
        found = self._processes.get(name)
        if found is None or found.returncode is not None:
            return False
        holder = holder_of(self._folder.log)
        return holder is not None and holder == process(found.pid)

    async def _end_of(self, name: str) -> str:
        """Return when a process has ended, what is to be said of it."""
        ended = f"{name} {_words(await self._processes[name].wait())}"
        self._tell(ended)
        return ended

    async def _restart(self, name: str) -> None:
        await self._start(name)
        self._tell(f"{name} restarted as {self._processes[name].pid}")

    async def _keep_postgres(self) -> None:
        """Start the database again when it ends; the exchange trades on meanwhile."""
        while True:
            await asyncio.sleep(POSTGRES_LOOK_SECONDS)
            if self._postgres.running:
                continue
            self._tell("postgres ended")
            self._postgres.stop()
            try:
                # In this very thread: the kernel ends the server with the thread that started it.
                self._postgres = Postgres.start(self._folder.postgres)
            except DatabaseError as error:
                self._tell(f"{error}; trying again")
                await asyncio.sleep(RESTART_WINDOW_SECONDS / RESTARTS_MAX)
                continue
            self._write_pids()
            self._tell(f"postgres restarted as {self._postgres.pid}")

    async def _start(self, name: str) -> None:
        arguments = [sys.executable, "-m", _MODULES[name], str(self._folder.path)]
        if name == "gateway":
            arguments += ["--host", self._host, "--port", str(self._port)]
        elif name in ("core", "follower"):
            # One program: who gets the folder leads, and they change places when the follower is promoted.
            arguments.append("--stand-by")
        environment = {**os.environ, SUPERVISOR: str(os.getpid())}
        # A new session: an interrupt at the terminal reaches the supervisor alone, which ends all in order.
        self._processes[name] = await asyncio.create_subprocess_exec(
            *arguments, env=environment, start_new_session=True
        )
        self._write_pids()

    def _write_pids(self) -> None:
        # Whole at every moment: others look at it while it changes.
        beside = self._folder.run / "pids.new"
        beside.write_bytes(msgspec.json.encode(self._pids()))
        beside.rename(self._folder.run / "pids.json")

    def _pids(self) -> dict[str, int]:
        pids = {name: process.pid for name, process in self._processes.items()}
        return pids if self._postgres.pid is None else {"postgres": self._postgres.pid, **pids}

    async def _until_ready(
        self, name: str, ready: Callable[[], Awaitable[bool]], stop: asyncio.Event
    ) -> None:
        """Wait as long as the process lives: a long log takes its time; and no longer than until `stop`."""
        patience = time.monotonic() + START_SECONDS
        while not stop.is_set() and not await ready():
            code = self._processes[name].returncode
            if code is not None:
                raise ServeError(f"{name} did not start, it {_words(code)}")
            if time.monotonic() > patience:
                self._tell(f"{name} is not ready yet")
                patience += START_SECONDS
            await asyncio.sleep(0.05)

    async def _core_ready(self) -> bool:
        try:
            link = await CoreLink.connect(self._folder.core_socket)
        except (OSError, CoreLostError):
            return False
        await link.close()
        return True

    async def _gateway_ready(self) -> bool:
        # Another program on this port is not our gateway: ask at its own door.
        connector = aiohttp.UnixConnector(str(self._folder.admin_socket))
        async with aiohttp.ClientSession(connector=connector) as session:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with session.get("http://admin/health") as answer:
                    return answer.status == 200
        return False

    async def _end(self) -> None:
        for name in ("gateway", "back", "follower", "core"):
            running = self._processes.get(name)
            if running is None or running.returncode is not None:
                continue
            running.send_signal(signal.SIGTERM)
            try:
                code = await asyncio.wait_for(running.wait(), STOP_SECONDS)
            except TimeoutError:
                self._tell(f"{name} has not ended in {STOP_SECONDS:g} seconds and is killed")
                running.kill()
                await running.wait()
            else:
                # One that had hardly begun does not yet hear that it should end.
                if code not in (0, -signal.SIGTERM):
                    self._tell(f"{name} {_words(code)}")


def _words(code: int) -> str:
    """Return what is to be said of a process that ended so; why, it says itself if it can."""
    if code < 0:
        return f"ended with code {code} ({signal.strsignal(-code)})"
    if code == 0:
        return "ended with code 0 (somebody else told it to stop)"
    return f"ended with code {code}"


def serve(path: Path, host: str, port: int, tell: Callable[[str], None]) -> None:
    """Run the exchange of a data folder until SIGTERM or SIGINT. Call it from the main thread.

    Raises:
        FolderError, DatabaseError, LedgerAheadError, ServeError: it cannot run.
    """
    folder = DataFolder(path)
    folder.settings()
    # Held until this process ends: a second one would take the first one's core for its own.
    hold(folder)
    refuse_busy_port(host, port)

    async def run(postgres: Postgres) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await Exchange(folder, host, port, postgres, tell).run(stop)

    asyncio.run(run(Postgres.start(folder.postgres)))


@contextlib.contextmanager
def database_of(folder: DataFolder) -> Iterator[Mapping[str, Any]]:
    """Yield how to connect to the exchange's database, which is started meanwhile where nobody serves it.

    Raises:
        FolderError, DatabaseError: there is no exchange, or no database, or it cannot be started.
    """
    folder.settings()
    connection = connection_of(folder.postgres)
    try:
        lock = hold(folder)
    except FolderError:
        yield connection
        return
    try:
        with Postgres.start(folder.postgres) as server:
            yield server.connection
    finally:
        os.close(lock)


def hold(folder: DataFolder) -> int:
    """Return the descriptor of the folder's lock, which lasts until it is closed.

    Raises:
        FolderError: another `cux serve` holds it.
    """
    lock = os.open(folder.path / "serve.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise FolderError(f"{folder.path} is served by another cux serve") from None
    return lock


def refuse_busy_port(host: str, port: int) -> None:
    """Find out now, before anything is started, that the port cannot be had.

    Raises:
        ServeError: it is in use, or not ours to use.
    """
    with socket.socket() as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind((host, port))
        except OSError as error:
            raise ServeError(
                f"cannot listen on {host}:{port}: {error.strerror}; name another --port"
            ) from None
