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
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import asyncpg
import msgspec

from exchange.folder import DataFolder, FolderError
from exchange.link import CoreLink
from exchange.process import SUPERVISOR
from settlement.database import connect, migrate
from settlement.postgres import DatabaseError, Postgres

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

    async def run(self, stop: asyncio.Event) -> None:
        """Start everything, keep it up until `stop`, end it in order.

        Raises:
            DatabaseError: the database cannot be used.
            ServeError: a process ended before it was ready, or keeps dying.
        """
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._migrate()
            for name, ready in (
                ("core", self._core_ready),
                ("gateway", self._gateway_ready),
                ("back", None),
                ("follower", None),
            ):
                await self._start(name)
                if ready is not None:
                    await self._until_ready(name, ready)
                tasks.append(asyncio.create_task(self._keep(name)))
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

    async def _migrate(self) -> None:
        try:
            conn = await connect(self._postgres.connection)
        except (OSError, asyncpg.PostgresError) as error:
            raise DatabaseError(f"the database cannot be reached: {error}") from error
        await migrate(conn)
        await conn.close()

    async def _stopped(self, stop: asyncio.Event) -> None:
        await stop.wait()

    async def _keep(self, name: str) -> None:
        """Start a process again whenever it ends.

        Trading needs core and gateway: if one of them ends too often, all stops. It does not need the others.
        """
        restarts: deque[float] = deque()
        while True:
            code = await self._processes[name].wait()
            now = time.monotonic()
            restarts.append(now)
            while restarts[0] < now - RESTART_WINDOW_SECONDS:
                restarts.popleft()
            self._tell(f"{name} ended with code {code}")
            if len(restarts) > RESTARTS_MAX:
                if name in ("core", "gateway"):
                    raise ServeError(f"{name} ended with code {code}; that is too often, the exchange stops")
                await asyncio.sleep(RESTART_WINDOW_SECONDS / RESTARTS_MAX)
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

    async def _until_ready(self, name: str, ready: Callable[[], Awaitable[bool]]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not await ready():
            if self._processes[name].returncode is not None or time.monotonic() > deadline:
                raise ServeError(f"{name} did not start")
            await asyncio.sleep(0.05)

    async def _core_ready(self) -> bool:
        try:
            link = await CoreLink.connect(self._folder.core_socket)
        except OSError:
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
            process = self._processes.get(name)
            if process is None or process.returncode is not None:
                continue
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()


def serve(path: Path, host: str, port: int, tell: Callable[[str], None]) -> None:
    """Run the exchange of a data folder until SIGTERM or SIGINT. Call it from the main thread.

    Raises:
        FolderError, DatabaseError, ServeError: it cannot run.
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
