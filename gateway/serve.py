"""`cux serve`: starts the database, the core, the gateway and the back, and watches them."""

import asyncio
import contextlib
import fcntl
import os
import signal
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
_MODULES = {"core": "exchange.core", "gateway": "gateway.server", "back": "settlement.back"}


class ServeError(Exception):
    """The exchange could not be started or kept up; the process that failed has said why."""


class Exchange:
    """The processes of one exchange. A process that dies is started again, within limits."""

    def __init__(self, folder: DataFolder, host: str, port: int, tell: Callable[[str], None]) -> None:
        self._folder = folder
        self._host, self._port = host, port
        self._tell = tell
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._postgres_pid: int | None = None
        self._restarts: deque[float] = deque()

    async def run(self, postgres: Postgres, stop: asyncio.Event) -> None:
        """Start everything, keep it up until `stop`, end it in order.

        Raises:
            ServeError: a process ended before it was ready, or keeps dying.
        """
        self._postgres_pid = postgres.pid
        try:
            conn = await connect(postgres.connection)
        except (OSError, asyncpg.PostgresError) as error:
            raise DatabaseError(f"the database cannot be reached: {error}") from error
        await migrate(conn)
        await conn.close()
        stopping = asyncio.create_task(stop.wait())
        watching: dict[asyncio.Task[int], str] = {}
        try:
            for name, ready in (("core", self._core_ready), ("gateway", self._gateway_ready), ("back", None)):
                await self._start(name)
                if ready is not None:
                    await self._until_ready(name, ready)
                watching[asyncio.create_task(self._processes[name].wait())] = name
            self._tell(
                f"exchange ready at ws://{self._host}:{self._port}/ws; "
                + ", ".join(f"{name} {pid}" for name, pid in self._pids().items())
            )
            while not stopping.done():
                done, _ = await asyncio.wait({stopping, *watching}, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if task in watching and not stopping.done():
                        name = watching.pop(task)
                        self._note_restart(name, task.result())
                        await self._start(name)
                        watching[asyncio.create_task(self._processes[name].wait())] = name
                        self._tell(f"{name} restarted as {self._processes[name].pid}")
        finally:
            await self._end()
            for task in (stopping, *watching):
                task.cancel()

    async def _start(self, name: str) -> None:
        arguments = [sys.executable, "-m", _MODULES[name], str(self._folder.path)]
        if name == "gateway":
            arguments += ["--host", self._host, "--port", str(self._port)]
        environment = {**os.environ, SUPERVISOR: str(os.getpid())}
        # A new session: an interrupt at the terminal reaches the supervisor alone, which ends all in order.
        self._processes[name] = await asyncio.create_subprocess_exec(
            *arguments, env=environment, start_new_session=True
        )
        # Whole at every moment: others look at it while it changes.
        beside = self._folder.run / "pids.new"
        beside.write_bytes(msgspec.json.encode(self._pids()))
        beside.rename(self._folder.run / "pids.json")

    def _pids(self) -> dict[str, int]:
        pids = {name: process.pid for name, process in self._processes.items()}
        return pids if self._postgres_pid is None else {"postgres": self._postgres_pid, **pids}

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

    def _note_restart(self, name: str, code: int) -> None:
        now = time.monotonic()
        self._restarts.append(now)
        while self._restarts[0] < now - RESTART_WINDOW_SECONDS:
            self._restarts.popleft()
        if len(self._restarts) > RESTARTS_MAX:
            raise ServeError(f"{name} ended with code {code}; that is too often, the exchange stops")
        self._tell(f"{name} ended with code {code}")

    async def _end(self) -> None:
        for name in ("gateway", "back", "core"):
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
    lock = os.open(folder.path / "serve.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise FolderError(f"{folder.path} is served by another cux serve") from None

    async def run(postgres: Postgres) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await Exchange(folder, host, port, tell).run(postgres, stop)

    with Postgres.start(folder.postgres) as postgres:
        asyncio.run(run(postgres))
