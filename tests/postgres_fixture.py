"""A real Postgres for tests: one server a session, a fresh migrated database a test.

A test module asks for it with `pytest_plugins = ["tests.postgres_fixture"]`.
"""

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from settlement.database import connect, migrate
from settlement.postgres import DATABASE_URL, Postgres

_TEMPLATE = "migrated"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The session's server, from the wheel. A test that kills starts a server of its own."""
    # Not pytest's own temporary folder: as root that is closed to the server's user.
    folder = Path(tempfile.mkdtemp(prefix="cux-test-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(DATABASE_URL, raising=False)
        with Postgres.start(folder) as server:
            asyncio.run(_hurry(server.connection))
            asyncio.run(_make_template(server.connection))
            yield server
    shutil.rmtree(folder)


@pytest_asyncio.fixture
async def database(postgres: Postgres) -> AsyncIterator[dict[str, Any]]:
    """How to connect to a database of the test's own, with all migrations and no facts."""
    name = f"test_{next(_numbers)}"
    await _administer(postgres.connection, f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
    yield {**postgres.connection, "database": name}
    await _administer(postgres.connection, f"DROP DATABASE {name} WITH (FORCE)")


@pytest_asyncio.fixture
async def conn(database: dict[str, Any]) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the test's database, as its owner."""
    connection = await connect(database)
    yield connection
    await connection.close(timeout=5)


async def _hurry(server: dict[str, Any]) -> None:
    # A hundred databases are made and dropped, and no power failure is tested: syncs cost half the time.
    await _administer(server, "ALTER SYSTEM SET fsync = off")
    await _administer(server, "SELECT pg_reload_conf()")


async def _make_template(server: dict[str, Any]) -> None:
    await _administer(server, f"CREATE DATABASE {_TEMPLATE}")
    connection = await connect({**server, "database": _TEMPLATE})
    await migrate(connection)
    await connection.close()


async def _administer(server: dict[str, Any], statement: str) -> None:
    connection = await connect(server)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
