"""Connections to the ledger's database and its migrations: plain SQL, numbered, forward only."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

from settlement.postgres import DATABASE_URL, DatabaseError

OLDEST_VERSION = 15
MIGRATIONS = Path(__file__).parent / "migrations"
WRITER_ROLE = "cux_writer"

_FILE_NAME = re.compile(r"[0-9]{4}_[a-z0-9_]+\.sql")
_ADVISORY_LOCK = int.from_bytes(b"cux-migr", "big")


class _Migration(NamedTuple):
    name: str
    sql: str
    sha256: str


async def connect(connection: Mapping[str, Any]) -> asyncpg.Connection:
    """Return a new connection; `connection` is what `settlement.postgres.connection_of` returns.

    Raises:
        DatabaseError: the server is older than version 15, or the URL of a database is none.
        asyncpg.PostgresError, OSError: the server refuses, or is not there.
    """
    try:
        conn = await asyncpg.connect(**connection, timeout=10, server_settings={"application_name": "cux"})
    except asyncpg.ClientConfigurationError as error:
        raise DatabaseError(f"{DATABASE_URL} names no database: {error}") from error
    version = conn.get_server_version()
    if version.major < OLDEST_VERSION:
        await conn.close()
        raise DatabaseError(
            f"the database server is Postgres {version.major}; {OLDEST_VERSION} or later is needed"
        )
    return conn


async def assume_writer(conn: asyncpg.Connection) -> bool:
    """Give up every right that the ledger's writer does not need; False where the role cannot be had."""
    try:
        await conn.execute(f"SET ROLE {WRITER_ROLE}")
    except (asyncpg.InvalidParameterValueError, asyncpg.InsufficientPrivilegeError):
        return False
    return True


async def migrate(conn: asyncpg.Connection, folder: Path = MIGRATIONS) -> list[str]:
    """Apply the migrations that the database lacks, all or none, and return their names.

    Of several callers at once one does the work and the others wait for it.

    Raises:
        DatabaseError: an applied migration has been changed, or the database is newer than this code.
    """
    known = _read_migrations(folder)
    async with conn.transaction():
        await conn.execute("SELECT pg_advisory_xact_lock($1)", _ADVISORY_LOCK)
        await conn.execute("CREATE SCHEMA IF NOT EXISTS cux")
        await conn.execute(
            "CREATE TABLE IF NOT EXISTS cux.schema_migrations ("
            "name text PRIMARY KEY, sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        applied = await conn.fetch("SELECT name, sha256 FROM cux.schema_migrations ORDER BY name")
        _refuse_other_history({row["name"]: row["sha256"] for row in applied}, known)
        missing = known[len(applied) :]
        for migration in missing:
            await conn.execute(migration.sql)
            await conn.execute(
                "INSERT INTO cux.schema_migrations (name, sha256) VALUES ($1, $2)",
                migration.name,
                migration.sha256,
            )
    return [migration.name for migration in missing]


def _read_migrations(folder: Path) -> list[_Migration]:
    migrations = []
    for number, path in enumerate(sorted(folder.glob("*.sql")), start=1):
        if not _FILE_NAME.fullmatch(path.name) or int(path.name[:4]) != number:
            raise DatabaseError(f"migration {path.name}: {number:04d}_name.sql is due")
        data = path.read_bytes()
        migrations.append(_Migration(path.stem, data.decode(), hashlib.sha256(data).hexdigest()))
    return migrations


def _refuse_other_history(applied: dict[str, str], known: list[_Migration]) -> None:
    digests = {migration.name: migration.sha256 for migration in known}
    for name, sha256 in applied.items():
        if name not in digests:
            raise DatabaseError(f"the database has migration {name}, which this version of cux does not know")
        if digests[name] != sha256:
            raise DatabaseError(f"migration {name} was changed after it had been applied to this database")
    # What was applied is the beginning of what is known, as numbers leave no gap.
    assert list(applied) == [migration.name for migration in known[: len(applied)]]
