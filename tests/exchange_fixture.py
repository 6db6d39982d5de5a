"""A real exchange for tests: core and gateway in processes of their own, or the whole `cux serve`.

The small venue on a simulated clock that stands ten hours before `FIRST_HOUR`. A test takes accounts,
sites and a delivery hour of its own, so that many share one exchange.

    with running() as exchange: ...      # core and gateway
    with served() as exchange: ...       # cux serve: with Postgres, back and the supervisor
"""

import asyncio
import base64
import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from exchange.contract import HOUR_NS, symbol
from exchange.folder import DataFolder
from exchange.process import SUPERVISOR
from exchange.quantity import micros_of
from gateway.client import Client
from gateway.keys import read_key
from gateway.methods import LOGIN_PREFIX
from gateway.venue_setup import init_venue
from schemas.authority import signed
from schemas.commands import CertifySite, Deposit, OperatorCommand, RegisterAccount, RegisterKey, Scope
from schemas.venue import Venue
from schemas.wire import OrderEnter
from tests.market import FIRST_HOUR, START_NS
from tests.small_venue import SMALL_VENUE

ROOT = Path(__file__).parent.parent
START_SECONDS = 60.0
VENUE: Venue = replace(
    SMALL_VENUE, limits=replace(SMALL_VENUE.limits, open_orders_max=20_000), horizon_hours=2000
)
"""The small venue without its small bound of open orders, and with hours for every test."""
VALID_UNTIL = START_NS + 600 * 10**9
REQUIREMENT = {"zone": "east", "latency": "L4", "carbon": "E", "security": "S1"}


class Participant(NamedTuple):
    """An account and a key to it."""

    account: int
    key: Ed25519PrivateKey


class Exchange:
    """A running exchange: where it is, and what an operator does there."""

    def __init__(self, folder: DataFolder, port: int) -> None:
        self.folder = folder
        self.port = port
        self.url = f"ws://127.0.0.1:{port}/ws"
        self._accounts = itertools.count(1)
        self._sites = itertools.count(1)
        self._hours = itertools.count(FIRST_HOUR, 50)

    def client(
        self, who: Participant | None = None, on_message: Callable[[str, Any], None] | None = None
    ) -> Client:
        """A client of the public door, logged in as `who`."""
        return Client(self.url, who and who.key, on_message=on_message)

    def admin(self) -> Client:
        """A client of the admin door."""
        return Client(socket=self.folder.admin_socket)

    async def operate(self, *commands: OperatorCommand) -> list[Any]:
        """Submit commands signed by the first operator, in order."""
        key = read_key(self.folder.keys / "operator-1.key")
        async with self.admin() as client:
            return [await client.operate(signed(c, key, time.time_ns(), "test")) for c in commands]

    async def set_clock(self, time_ns: int | None = None, speed: int | None = None) -> None:
        """Move simulated time."""
        async with self.admin() as client:
            await client.call("clock.set", {"time": time_ns, "speed": speed})

    async def register(
        self, funds: str = "1000000", scopes: tuple[Scope, ...] = (Scope.TRADE, Scope.READ)
    ) -> Participant:
        """Open a new account with money in it."""
        who = Participant(next(self._accounts), Ed25519PrivateKey.generate())
        await self.operate(
            RegisterAccount(who.account, who.account),
            RegisterKey(who.account, who.key.public_key().public_bytes_raw(), scopes),
            Deposit(who.account, micros_of(funds)),
        )
        return who

    async def certify(self, who: Participant, gpus: int = 1000, zone: str = "east") -> int:
        """Certify a site of H100-SXM, carbon D, security S2, and return its number."""
        site = next(self._sites)
        hours = (FIRST_HOUR - 10, FIRST_HOUR + 2000)
        await self.operate(CertifySite(site, who.account, zone, "H100-SXM", gpus, "D", "S2", *hours))
        return site

    def new_hour(self) -> int:
        """A delivery hour that no other test trades in, nor the 49 after it."""
        return next(self._hours)

    def health(self) -> tuple[int, dict[str, Any]]:
        """Status and body of /health."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/health")
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, msgspec.json.decode(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, msgspec.json.decode(error.read())


class Running(Exchange):
    """Core and gateway, started and killed by the test."""

    def __init__(self, folder: DataFolder, port: int) -> None:
        super().__init__(folder, port)
        self.core = self.start_core()
        self.gateway = self.launch_gateway()
        _until(self.is_ready, self.gateway)

    def start_core(self) -> "subprocess.Popen[bytes]":
        """Start the core and return when it listens."""
        self.folder.core_socket.unlink(missing_ok=True)
        self.core = self._start("exchange.core")
        _until(self.folder.core_socket.exists, self.core)
        return self.core

    def launch_gateway(self) -> "subprocess.Popen[bytes]":
        """Start the gateway and return at once. As all of these, from the main thread: it ends with it."""
        self.folder.admin_socket.unlink(missing_ok=True)
        self.gateway = self._start("gateway.server", "--port", str(self.port))
        return self.gateway

    def is_ready(self) -> bool:
        """Whether orders can be taken, at both doors."""
        try:
            return self.folder.admin_socket.exists() and self.health()[0] == 200
        except OSError:
            return False

    def _start(self, module: str, *arguments: str) -> "subprocess.Popen[bytes]":
        # With a supervisor they end with this process, however it ends.
        environment = {**os.environ, SUPERVISOR: str(os.getpid())}
        command = [sys.executable, "-m", module, str(self.folder.path), *arguments]
        return subprocess.Popen(command, env=environment, cwd=ROOT)

    def stop(self) -> None:
        """End both in order."""
        for process in (self.gateway, self.core):
            if process.poll() is None:
                # One that a test has stopped must go on to hear that it should end.
                process.send_signal(signal.SIGCONT)
                process.terminate()
                process.wait(20)


class Served(Exchange):
    """The whole `cux serve`."""

    def __init__(self, folder: DataFolder, port: int) -> None:
        super().__init__(folder, port)
        self.start()

    def start(self) -> None:
        """Start it and return when it says that it is ready."""
        self.process = serve(self.folder.path, self.port)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("exchange ready"):
                return
        raise AssertionError(self.process.communicate()[1])

    def pid(self, name: str) -> int:
        """The process number of core, gateway or back."""
        pids: dict[str, int] = msgspec.json.decode((self.folder.run / "pids.json").read_bytes())
        return pids[name]

    def stop(self) -> None:
        """End it in order."""
        if self.process.poll() is None:
            self.process.terminate()
        self.process.communicate(timeout=60)


def serve(folder: Path, port: int) -> "subprocess.Popen[str]":
    """Start `cux serve`."""
    return subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", "serve", "--folder", str(folder), "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder, short enough for sockets, that the database's user can pass through."""
    # Not pytest's own temporary folder: as root that is closed to the database's user.
    path = Path(tempfile.mkdtemp(prefix="cux-test-"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        left = processes_of(path)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(path, ignore_errors=True)
        assert not left, f"processes {left} were left behind"


def small_folder(path: Path, venue: Venue = VENUE) -> DataFolder:
    """The data folder of a new exchange of the small venue."""
    folder = DataFolder(path / "exchange")
    init_venue(folder, venue, "test.example/small", 1, START_NS)
    folder.path.chmod(0o711)
    return folder


@contextlib.contextmanager
def running() -> Iterator[Running]:
    """Core and gateway on a new folder; none of their processes is left behind."""
    with temporary_folder() as path:
        exchange = Running(small_folder(path), free_port())
        try:
            yield exchange
        finally:
            exchange.stop()


@contextlib.contextmanager
def served() -> Iterator[Served]:
    """`cux serve` on a new folder; none of its processes is left behind."""
    with temporary_folder() as path:
        exchange = Served(small_folder(path), free_port())
        try:
            yield exchange
        finally:
            exchange.stop()


def processes_of(path: Path) -> list[int]:
    """The processes that name the folder on their command line or work in it."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        # It may end while we look.
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().decode(errors="replace")
            if str(path) in words or (process / "cwd").readlink().is_relative_to(path):
                found.append(int(process.name))
    return found


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Return when the condition holds, soon."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def _until(ready: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        assert process.poll() is None, "the process ended before it was ready"
        assert time.monotonic() < deadline, "the process is not ready"
        time.sleep(0.02)


def bid(
    client_order_id: str, hour: int, gpus: str = "1", price: str = "10", **changes: Any
) -> dict[str, Any]:
    """The params of a bid that any supply may serve; a field that is set to None is left out."""
    return _params(
        {
            "client_order_id": client_order_id,
            "valid_until": VALID_UNTIL,
            "side": "buy",
            "class": "H100-SXM",
            "delivery_start": hour * HOUR_NS,
            "gpus": gpus,
            "price": price,
            "requirement": REQUIREMENT,
        },
        changes,
    )


def ask(
    client_order_id: str, site: int, hour: int, gpus: str = "1", price: str = "10", **changes: Any
) -> dict[str, Any]:
    """The params of an ask of carbon grade E."""
    terms = {"side": "sell", "site": site, "carbon": "E", "requirement": None, **changes}
    return bid(client_order_id, hour, gpus, price, **terms)


def _params(fields: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**fields, **changes}.items() if value is not None}


def order(params: dict[str, Any]) -> OrderEnter:
    """The params as the client's own struct."""
    return msgspec.convert(params, OrderEnter)


def contract(hour: int) -> str:
    """The symbol of H100-SXM in the hour."""
    return symbol("H100-SXM", hour)


def text_of(data: bytes) -> str:
    """Base64, as keys and signatures are sent."""
    return base64.b64encode(data).decode()


def public(key: Ed25519PrivateKey) -> str:
    """The key as `session.challenge` and `session.login` take it."""
    return text_of(key.public_key().public_bytes_raw())


def login_params(key: Ed25519PrivateKey, challenge: bytes) -> dict[str, str]:
    """The params of `session.login`."""
    return {"key": public(key), "signature": text_of(key.sign(LOGIN_PREFIX + challenge))}
