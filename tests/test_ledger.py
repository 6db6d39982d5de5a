"""The ledger: its migrations, what can be done to its facts (nothing), and that each record lands once."""

import asyncio
import os
import random
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from exchange.funds import transfers
from exchange.log import FileLog, LogError, durable_end
from schemas.codec import encode
from schemas.commands import (
    AnyCommand,
    CancelOrder,
    CellPrice,
    CertifySite,
    Deposit,
    EnterOrder,
    ListStandingOffer,
    OrderType,
    PostSettlement,
    ProposeClearing,
    ReceiveReadings,
    RegisterAccount,
    ReplaceOrder,
    Requirement,
    SelfTrade,
    Side,
    StartSettlementRun,
    Tick,
    Withdraw,
)
from schemas.events import (
    AccountRegistered,
    AnyEvent,
    BlockTraded,
    CallCleared,
    Deposited,
    EndReason,
    OrderAccepted,
    OrderEnded,
    OrderListed,
    OrderReduced,
    OrderReplaced,
    Phase,
    PhaseChanged,
    ReadingsReceived,
    Rejected,
    SettlementPosted,
    SettlementRunStarted,
    SiteCertified,
    Traded,
    Withdrawn,
)
from schemas.reasons import RejectReason
from schemas.records import Record, decoded
from settlement.database import MIGRATIONS, assume_writer, connect, migrate
from settlement.postgres import DatabaseError, Postgres
from settlement.writer import (
    COLUMNS,
    LOST,
    LedgerAheadError,
    Progress,
    engine_equals_ledger,
    follow,
    position,
    position_in,
    rebuild,
    rows_of,
)

pytest_plugins = ["tests.postgres_fixture"]

HOUR = 498_000
NEED = Requirement(zone="east", latency="L3", carbon="C", security="S2")


def record(sequence: int, command: AnyCommand, *events: AnyEvent) -> Record:
    raw = tuple(msgspec.Raw(encode(event)) for event in events)
    return Record(sequence, sequence * 1000, bytes(16), msgspec.Raw(encode(command)), raw)


def bid(account: int, name: str, hours: int = 1) -> EnterOrder:
    return EnterOrder(
        account=account,
        client_order_id=name,
        valid_until_ns=5,
        side=Side.BUY,
        class_code="T4",
        delivery_hour=HOUR,
        hours=hours,
        lots=2,
        price_ticks=200,
        requirement=NEED,
    )


def ask(account: int, name: str) -> EnterOrder:
    return EnterOrder(
        account=account,
        client_order_id=name,
        valid_until_ns=5,
        side=Side.SELL,
        class_code="T4",
        delivery_hour=HOUR,
        lots=2,
        price_ticks=180,
        site=7,
        carbon="B",
    )


def trade(trade_id: int, bid_order_id: int, ask_order_id: int, hour: int = HOUR, block: int = 0) -> Traded:
    return Traded(
        trade_id=trade_id,
        class_code="T4",
        delivery_hour=hour,
        price_ticks=180,
        lots=2,
        taker=Side.BUY,
        bid_order_id=bid_order_id,
        ask_order_id=ask_order_id,
        buyer=1,
        seller=2,
        site=7,
        block=block,
        notional_micros=450_000,
        buyer_fee_micros=450,
        buyer_released_micros=50,
        bond_micros=45_000,
        seller_fee_micros=225,
        seller_released_micros=25,
    )


def story() -> list[Record]:
    """One record of every kind, with the money they mean."""
    posting = PostSettlement(1, 10, "short", 1_800_000, 225_000, 225_000, 45_000, 0)
    correction = PostSettlement(2, 10, "delivered", 3_600_000, 225_000, -225_000, -45_000, 45_000)
    said: list[tuple[AnyCommand, tuple[AnyEvent, ...]]] = [
        (RegisterAccount(1, 1, b"r" * 32), (AccountRegistered(1),)),
        (RegisterAccount(2, 2), (AccountRegistered(2),)),
        (RegisterAccount(2, 2), (Rejected(RejectReason.DUPLICATE_ACCOUNT, "account"),)),
        (CertifySite(7, 2, "west", "T4", 64, "A", "S3", HOUR, HOUR + 24), (SiteCertified(7),)),
        (Deposit(1, 10_000_000), (Deposited(1, 10_000_000),)),
        (Deposit(2, 1_000_000), (Deposited(2, 1_000_000),)),
        (Withdraw(1, 1), (Withdrawn(1, 1),)),
        (ask(2, "a"), (OrderAccepted(1, 45_250),)),
        (bid(1, "b"), (OrderAccepted(2, 450_500), trade(10, 2, 1))),
        (ask(2, "c"), (OrderAccepted(3, 90_500),)),
        (
            bid(1, "d", hours=2),
            (
                OrderAccepted(4, 901_000),
                BlockTraded(4, 7, (trade(11, 4, 3, HOUR, 4), trade(12, 4, 3, HOUR + 1, 4))),
            ),
        ),
        (bid(1, "e"), (OrderAccepted(5, 450_500),)),
        (CancelOrder(1, 5), (OrderEnded(5, 1, 2, 450_500, EndReason.REQUESTED),)),
        (bid(1, "f"), (OrderAccepted(6, 450_500),)),
        (Tick(), (OrderEnded(6, 1, 2, 450_500, EndReason.GATE),)),
        (ReceiveReadings(1, "meter", HOUR, HOUR + 1, 3, b"s" * 32), (ReadingsReceived(1),)),
        (StartSettlementRun(1, "initial", 15, 1, 1, b"t" * 32), (SettlementRunStarted(1),)),
        (posting, (posted(posting),)),
        (StartSettlementRun(2, "correction", 15, 1, 1, b"u" * 32), (SettlementRunStarted(2),)),
        (correction, (posted(correction),)),
    ]
    return [record(number, command, *events) for number, (command, events) in enumerate(said, start=1)]


def market_day() -> list[Record]:
    """What the story leaves out: every order term, replaces, reductions, a listing, a call, a resale."""
    terms = {"order_type": OrderType.MARKET, "min_lots": 1, "display_lots": 3, "post_only": True}
    more = {"self_trade": SelfTrade.CANCEL_BOTH, "exclusive_group": "g"}
    run = msgspec.structs.replace(ask(2, "r"), hours=3, min_hours=2)
    replacement = ReplaceOrder(account=1, order_id=20, valid_until_ns=5, lots=1, price_ticks=190)
    cleared = CallCleared("T4", HOUR, 2, (CellPrice("west", "B", "S3", 170, 181, 175),))
    resale = msgspec.structs.replace(ask(1, "again"), position=13)
    said: list[tuple[AnyCommand, tuple[AnyEvent, ...]]] = [
        (msgspec.structs.replace(bid(1, "m"), **terms, **more), (OrderAccepted(20, 450_500),)),
        (replacement, (OrderReplaced(20, 1, 1, 190, 1, -200_000),)),
        (ListStandingOffer(5), (OrderListed(21, 5, 45_250, ask(2, "nightly")),)),
        (run, (OrderAccepted(22, 90_500),)),
        (
            Tick(),
            (
                OrderReduced(21, 2, 1, 1, 20_000, EndReason.CAPACITY),
                OrderReduced(22, 2, 2, 4, 30_000, EndReason.GATE, (0, 2, 2)),
                PhaseChanged("T4", HOUR, Phase.CALL),
                PhaseChanged("T4", HOUR + 1, Phase.CALL),
            ),
        ),
        (
            ProposeClearing("T4", HOUR, (), ()),
            (
                cleared,
                msgspec.structs.replace(trade(13, 20, 21), taker=None),
                PhaseChanged("T4", HOUR, Phase.CONTINUOUS),
            ),
        ),
        (resale, (OrderAccepted(23, 45_250), msgspec.structs.replace(trade(14, 20, 23), position=13))),
    ]
    return [record(number, command, *events) for number, (command, events) in enumerate(said, start=21)]


def posted(command: PostSettlement) -> SettlementPosted:
    return SettlementPosted(
        run=command.run,
        trade_id=command.trade_id,
        buyer=1,
        seller=2,
        payment_micros=command.payment_micros,
        refund_micros=command.refund_micros,
        penalty_micros=command.penalty_micros,
        bond_release_micros=command.bond_release_micros,
    )


def busy_day(count: int, first: int = 1, seed: int = 1) -> list[Record]:
    """Deposits, orders, trades and ends, as many as asked for."""
    dice = random.Random(seed)
    records = []
    for number in range(first, first + count):
        command: AnyCommand
        events: tuple[AnyEvent, ...]
        match dice.randrange(3):
            case 0:
                command = Deposit(1, number)
                events = (Deposited(1, number),)
            case 1:
                command = bid(1, f"b{number}")
                events = (OrderAccepted(number, 450_500), trade(number, number, number))
            case _:
                command = bid(1, f"b{number}")
                events = (OrderAccepted(number, 7), OrderEnded(number, 1, 2, 7, EndReason.IMMEDIATE))
        records.append(record(number, command, *events))
    return records


def funds_by_hand(records: Sequence[Record]) -> dict[tuple[int, int], int]:
    held: dict[tuple[int, int], int] = {}
    for found in map(decoded, records):
        for event in found.events:
            for move in transfers(getattr(found.command, "account", 0), event):
                debit = (move.debit_account, int(move.debit_purse))
                credit = (move.credit_account, int(move.credit_purse))
                held[debit] = held.get(debit, 0) - move.amount_micros
                held[credit] = held.get(credit, 0) + move.amount_micros
    return held


async def dump(conn: asyncpg.Connection) -> dict[str, bytes]:
    """Every table of the ledger as Postgres writes it out, rows where they lie."""
    dumped = {}
    for table in (*COLUMNS, "reader_position"):
        chunks: list[bytes] = []

        async def keep(chunk: bytes, to: list[bytes] = chunks) -> None:
            to.append(bytes(chunk))

        await conn.copy_from_query(f"SELECT * FROM cux.{table}", output=keep, format="binary")
        dumped[table] = b"".join(chunks)
    return dumped


class Follower:
    """A writer at work, and what it said."""

    def __init__(self, folder: Path, connection: dict[str, Any]) -> None:
        self.said: list[Progress] = []
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(follow(folder, connection, self.stop, self.said.append))

    async def reach(self, sequence: int) -> None:
        await self.see(lambda progress: progress.position >= sequence and not progress.error)

    async def see(self, wanted: Callable[[Progress], bool]) -> Progress:
        async with asyncio.timeout(20):
            while True:
                if self.task.done():
                    self.task.result()
                for progress in self.said:
                    if wanted(progress):
                        return progress
                await asyncio.sleep(0.005)


@asynccontextmanager
async def following(folder: Path, connection: dict[str, Any]) -> AsyncIterator[Follower]:
    follower = Follower(folder, connection)
    try:
        yield follower
    finally:
        follower.stop.set()
        with suppress(LogError):
            await follower.task


async def eventually(condition: Callable[[], Awaitable[Any]]) -> None:
    for _ in range(4000):
        if await condition():
            return
        await asyncio.sleep(0.005)
    raise TimeoutError


async def expect_ledger_of(conn: asyncpg.Connection, records: Sequence[Record]) -> None:
    """Check that each record is in the ledger once and nothing else is."""
    expected = rows_of(map(decoded, records))
    for table, columns in COLUMNS.items():
        found = await conn.fetch(f"SELECT {', '.join(columns)} FROM cux.{table}")
        assert sorted(map(tuple, found), key=repr) == sorted(expected[table], key=repr), table
    assert await position(conn) == records[-1].sequence


@pytest.fixture
def log(tmp_path: Path) -> Iterator[FileLog]:
    log = FileLog(tmp_path / "log")
    yield log
    log.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "log"


# Migrations


async def test_a_second_migration_does_nothing(conn: asyncpg.Connection) -> None:
    assert await migrate(conn) == []
    applied = await conn.fetch("SELECT name FROM cux.schema_migrations ORDER BY name")
    assert [row["name"] for row in applied] == sorted(path.stem for path in MIGRATIONS.glob("*.sql"))


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    """A copy of the migrations with one more."""
    folder = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, folder)
    number = len(list(folder.glob("*.sql"))) + 1
    (folder / f"{number:04d}_more.sql").write_text("CREATE TABLE cux.more (number bigint);\n")
    return folder


async def test_only_what_is_missing_is_applied(conn: asyncpg.Connection, migrations: Path) -> None:
    (name,) = await migrate(conn, migrations)
    assert name.endswith("_more")
    assert await conn.fetchval("SELECT count(*) FROM cux.more") == 0


async def test_of_racing_runners_one_applies_each_migration(
    database: dict[str, Any], migrations: Path
) -> None:
    runners = [await connect(database) for _ in range(4)]
    applied = await asyncio.gather(*(migrate(runner, migrations) for runner in runners))
    assert sorted(map(len, applied)) == [0, 0, 0, 1]
    for runner in runners:
        await runner.close()


async def test_an_applied_migration_that_was_changed_is_refused_by_name(
    conn: asyncpg.Connection, migrations: Path
) -> None:
    with (migrations / "0001_ledger.sql").open("a") as file:
        file.write("-- a harmless word\n")
    with pytest.raises(DatabaseError, match="0001_ledger was changed"):
        await migrate(conn, migrations)
    assert await conn.fetchval("SELECT to_regclass('cux.more')") is None


async def test_a_database_newer_than_the_code_is_refused(conn: asyncpg.Connection, migrations: Path) -> None:
    await migrate(conn, migrations)
    with pytest.raises(DatabaseError, match=r"has migration \d{4}_more, which this version"):
        await migrate(conn)


def only_more(migrations: Path) -> Path:
    (more,) = migrations.glob("*_more.sql")
    return more


async def test_a_migration_that_fails_leaves_nothing_behind(
    conn: asyncpg.Connection, migrations: Path
) -> None:
    more = only_more(migrations)
    more.write_text("CREATE TABLE cux.more (number bigint); SELECT 1 / 0;")
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(conn, migrations)
    assert await conn.fetchval("SELECT to_regclass('cux.more')") is None
    more.write_text("CREATE TABLE cux.more (number bigint);")
    assert await migrate(conn, migrations) == [more.stem]


@pytest.mark.parametrize("name", ["0001_again.sql", "0099_gap.sql", "more.sql"])
async def test_a_migration_out_of_order_is_refused(
    conn: asyncpg.Connection, migrations: Path, name: str
) -> None:
    (migrations / name).write_text("SELECT 1;")
    with pytest.raises(DatabaseError, match=r"_name\.sql is due"):
        await migrate(conn, migrations)


# Append-only


async def test_facts_cannot_be_changed_even_by_their_owner(
    conn: asyncpg.Connection, folder: Path, log: FileLog, database: dict[str, Any]
) -> None:
    log.append(story())
    log.seal()
    async with following(folder, database) as follower:
        await follower.reach(20)
    before = await dump(conn)
    for table, (column, *_) in COLUMNS.items():
        for statement in (
            f"UPDATE cux.{table} SET {column} = {column} + 1",
            f"DELETE FROM cux.{table}",
            f"TRUNCATE cux.{table}",
            f"SET session_replication_role = replica; DELETE FROM cux.{table}",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match=f"cux.{table} is append-only"):
                await conn.execute(statement)
    assert await dump(conn) == before


async def test_the_writer_may_add_facts_and_nothing_else(conn: asyncpg.Connection) -> None:
    assert await assume_writer(conn)
    for statement in (
        "UPDATE cux.transfers SET amount_micros = 1",
        "DELETE FROM cux.fills",
        "TRUNCATE cux.orders",
        "ALTER TABLE cux.fills DISABLE TRIGGER append_only",
        "DROP TABLE cux.fills",
        "DELETE FROM cux.reader_position",
        "CREATE TABLE cux.other (n bigint)",
        "UPDATE cux.schema_migrations SET sha256 = ''",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await conn.execute(statement)


async def test_the_database_refuses_an_amount_that_is_not_positive(conn: asyncpg.Connection) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await conn.execute("INSERT INTO cux.transfers VALUES (1, 1, 1, 1, 2, 1, 0)")


async def test_an_owner_without_rights_over_roles_has_a_ledger(
    postgres: Postgres, folder: Path, log: FileLog
) -> None:
    admin = await connect(postgres.connection)
    await admin.execute("CREATE ROLE plain LOGIN PASSWORD 'plain'")
    await admin.execute("CREATE DATABASE plain OWNER plain")
    theirs = {**postgres.connection, "user": "plain", "password": "plain", "database": "plain"}
    try:
        log.append(story())
        log.seal()
        conn = await connect(theirs)
        await migrate(conn)
        async with following(folder, theirs) as follower:
            await follower.reach(20)
        await expect_ledger_of(conn, story())
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
            await conn.execute("DELETE FROM cux.fills")
        await conn.close()
    finally:
        await admin.execute("DROP DATABASE plain WITH (FORCE)")
        await admin.execute("DROP ROLE plain")
        await admin.close()


# The writer

PLAIN = {
    "order_type": "limit",
    "min_lots": 0,
    "display_lots": 0,
    "post_only": False,
    "self_trade": "cancel_taker",
    "exclusive_group": None,
    "position": None,
    "min_hours": 0,
    "offer_id": None,
}
"""What an order has that asks for nothing special."""


async def test_every_kind_of_record_lands_once_with_its_fields(
    conn: asyncpg.Connection, database: dict[str, Any], folder: Path, log: FileLog
) -> None:
    log.append(story())
    log.seal()
    async with following(folder, database) as follower:
        await follower.reach(20)
    await expect_ledger_of(conn, story())

    async def row(query: str) -> dict[str, Any]:
        return dict(await conn.fetchrow(query))

    assert await row("SELECT * FROM cux.accounts WHERE account = 1") == {
        "account": 1,
        "sequence": 1,
        "time_ns": 1000,
        "trade_group": 1,
        "registry_digest": b"r" * 32,
    }
    site = await row("SELECT * FROM cux.sites")
    assert site == {
        "site": 7,
        "sequence": 4,
        "time_ns": 4000,
        "account": 2,
        "zone": "west",
        "class_code": "T4",
        "capacity_lots": 64,
        "carbon": "A",
        "security": "S3",
        "from_hour": HOUR,
        "until_hour": HOUR + 24,
    }
    terms = {
        "valid_until_ns": 5,
        "class_code": "T4",
        "delivery_hour": HOUR,
        "lots": 2,
        "time_in_force": "gtc",
        "expire_ns": 0,
    }
    assert await row("SELECT * FROM cux.orders WHERE order_id = 4") == {
        "order_id": 4,
        "sequence": 11,
        "time_ns": 11000,
        "account": 1,
        "client_order_id": "d",
        **terms,
        "side": "buy",
        "hours": 2,
        "price_ticks": 200,
        "required_zone": "east",
        "required_latency": "L3",
        "required_carbon": "C",
        "required_security": "S2",
        "site": None,
        "carbon": None,
        "reserved_micros": 901_000,
        **PLAIN,
    }
    assert await row("SELECT * FROM cux.orders WHERE order_id = 1") == {
        "order_id": 1,
        "sequence": 8,
        "time_ns": 8000,
        "account": 2,
        "client_order_id": "a",
        **terms,
        "side": "sell",
        "hours": 1,
        "price_ticks": 180,
        "required_zone": None,
        "required_latency": None,
        "required_carbon": None,
        "required_security": None,
        "site": 7,
        "carbon": "B",
        "reserved_micros": 45_250,
        **PLAIN,
    }
    assert await row("SELECT * FROM cux.order_ends WHERE order_id = 6") == {
        "order_id": 6,
        "sequence": 15,
        "time_ns": 15000,
        "account": 1,
        "leaves_lots": 2,
        "released_micros": 450_500,
        "reason": "gate",
    }
    assert await row("SELECT * FROM cux.fills WHERE trade_id = 12") == {
        "trade_id": 12,
        "sequence": 11,
        "time_ns": 11000,
        "class_code": "T4",
        "delivery_hour": HOUR + 1,
        "price_ticks": 180,
        "lots": 2,
        "taker": "buy",
        "bid_order_id": 4,
        "ask_order_id": 3,
        "buyer": 1,
        "seller": 2,
        "site": 7,
        "block": 4,
        "notional_micros": 450_000,
        "buyer_fee_micros": 450,
        "buyer_released_micros": 50,
        "bond_micros": 45_000,
        "seller_fee_micros": 225,
        "seller_released_micros": 25,
        "position": 0,
    }
    assert await row("SELECT * FROM cux.readings_announced") == {
        "batch": 1,
        "sequence": 16,
        "time_ns": 16000,
        "source": "meter",
        "from_hour": HOUR,
        "until_hour": HOUR + 1,
        "count": 3,
        "sha256": b"s" * 32,
    }
    assert await row("SELECT * FROM cux.settlement_runs WHERE run = 2") == {
        "run": 2,
        "sequence": 19,
        "time_ns": 19000,
        "kind": "correction",
        "position": 15,
        "readings_batch": 1,
        "postings": 1,
        "sha256": b"u" * 32,
    }
    assert await row("SELECT * FROM cux.settlements WHERE run = 2") == {
        "run": 2,
        "trade_id": 10,
        "sequence": 20,
        "time_ns": 20000,
        "verdict": "delivered",
        "delivered_gpu_ms": 3_600_000,
        "buyer": 1,
        "seller": 2,
        "payment_micros": 225_000,
        "refund_micros": -225_000,
        "penalty_micros": -45_000,
        "bond_release_micros": 45_000,
    }
    # The correction takes back what the first run gave: a transfer the other way round.
    back = await conn.fetch("SELECT * FROM cux.transfers WHERE sequence = 20 ORDER BY ordinal")
    assert [tuple(row)[1:] for row in back] == [
        (1, 1, 3, 2, 1, 225_000),
        (2, 1, 1, 1, 3, 225_000),
        (3, 1, 1, 2, 4, 45_000),
        (4, 2, 4, 2, 1, 45_000),
    ]


async def test_every_term_of_an_order_and_every_change_of_one_lands_with_its_fields(
    conn: asyncpg.Connection, database: dict[str, Any], folder: Path, log: FileLog
) -> None:
    records = [*story(), *market_day()]
    log.append(records)
    log.seal()
    await rebuild(folder, database)
    await expect_ledger_of(conn, records)

    async def rows(query: str) -> list[dict[str, Any]]:
        return [dict(row) for row in await conn.fetch(query)]

    special = ", ".join(PLAIN)
    assert await rows(f"SELECT order_id, {special} FROM cux.orders WHERE order_id >= 20 ORDER BY 1") == [
        {
            "order_id": 20,
            **PLAIN,
            "order_type": "market",
            "min_lots": 1,
            "display_lots": 3,
            "post_only": True,
            "self_trade": "cancel_both",
            "exclusive_group": "g",
        },
        {"order_id": 21, **PLAIN, "offer_id": 5},
        {"order_id": 22, **PLAIN, "min_hours": 2},
        {"order_id": 23, **PLAIN, "position": 13},
    ]
    assert await rows("SELECT account, client_order_id FROM cux.orders WHERE order_id = 21") == [
        {"account": 2, "client_order_id": "nightly"}
    ]
    assert await rows("SELECT * FROM cux.order_replacements") == [
        {
            "order_id": 20,
            "sequence": 22,
            "time_ns": 22000,
            "account": 1,
            "lots": 1,
            "price_ticks": 190,
            "leaves_lots": 1,
            "reserved_micros": -200_000,
        }
    ]
    at = {"sequence": 25, "time_ns": 25000}
    assert await rows("SELECT * FROM cux.order_reductions ORDER BY ordinal") == [
        {
            **at,
            "order_id": 21,
            "ordinal": 1,
            "account": 2,
            "lots": 1,
            "leaves_lots": 1,
            "released_micros": 20_000,
            "reason": "capacity",
            "run_lots": None,
        },
        {
            **at,
            "order_id": 22,
            "ordinal": 2,
            "account": 2,
            "lots": 2,
            "leaves_lots": 4,
            "released_micros": 30_000,
            "reason": "gate",
            "run_lots": [0, 2, 2],
        },
    ]
    phase = {"class_code": "T4"}
    assert await rows("SELECT * FROM cux.phases ORDER BY sequence, ordinal") == [
        {**phase, **at, "ordinal": 3, "delivery_hour": HOUR, "phase": "call"},
        {**phase, **at, "ordinal": 4, "delivery_hour": HOUR + 1, "phase": "call"},
        {
            **phase,
            "sequence": 26,
            "time_ns": 26000,
            "ordinal": 3,
            "delivery_hour": HOUR,
            "phase": "continuous",
        },
    ]
    assert await rows("SELECT * FROM cux.call_prices") == [
        {
            **phase,
            "sequence": 26,
            "time_ns": 26000,
            "delivery_hour": HOUR,
            "zone": "west",
            "carbon": "B",
            "security": "S3",
            "lowest_ticks": 170,
            "highest_ticks": 181,
            "price_ticks": 175,
        }
    ]
    assert await rows("SELECT trade_id, taker, position FROM cux.fills WHERE trade_id >= 13 ORDER BY 1") == [
        {"trade_id": 13, "taker": None, "position": 0},
        {"trade_id": 14, "taker": "buy", "position": 13},
    ]
    assert await engine_equals_ledger(conn, funds_by_hand(records)) == []


async def test_a_ledger_from_before_the_market_was_complete_is_the_one_a_rebuild_makes(
    database: dict[str, Any], conn: asyncpg.Connection, folder: Path, log: FileLog, tmp_path: Path
) -> None:
    older = tmp_path / "migrations"
    older.mkdir()
    for name in ("0001_ledger.sql", "0002_delivery.sql"):
        shutil.copy(MIGRATIONS / name, older)
    await conn.execute("DROP SCHEMA cux CASCADE")
    await migrate(conn, older)
    rows = rows_of(map(decoded, story()))
    for table in (table for table in COLUMNS if rows[table]):
        there = await conn.fetch(
            "SELECT column_name FROM information_schema.columns "
            "WHERE table_schema = 'cux' AND table_name = $1",
            table,
        )
        columns = [name for name in COLUMNS[table] if name in {row[0] for row in there}]
        places = [COLUMNS[table].index(name) for name in columns]
        await conn.copy_records_to_table(
            table,
            schema_name="cux",
            columns=columns,
            records=[tuple(row[place] for place in places) for row in rows[table]],
        )
    assert await migrate(conn) == ["0003_market"]
    migrated = await dump(conn)
    log.append(story())
    log.seal()
    await rebuild(folder, database)
    rebuilt = await dump(conn)
    del migrated["reader_position"], rebuilt["reader_position"]
    assert migrated == rebuilt


async def test_balances_are_the_engines_and_sum_to_zero(
    conn: asyncpg.Connection, database: dict[str, Any], folder: Path, log: FileLog
) -> None:
    records = [*story(), *busy_day(300, 21)]
    log.append(records)
    log.seal()
    await rebuild(folder, database)
    engine = funds_by_hand(records)
    assert await engine_equals_ledger(conn, engine) == []
    assert await conn.fetchval("SELECT sum(amount_micros) FROM cux.balances") == 0
    cash, bond = (1, 1), (2, 4)
    wrong = {**engine, cash: engine[cash] + 1, (9, 1): 5}
    del wrong[bond]
    assert await engine_equals_ledger(conn, wrong) == [
        f"account 1, purse 1: {engine[cash] + 1} in the engine, {engine[cash]} in the ledger",
        f"account 2, purse 4: 0 in the engine, {engine[bond]} in the ledger",
        "account 9, purse 1: 5 in the engine, 0 in the ledger",
    ]


async def test_records_are_followed_as_they_become_durable_and_not_before(
    conn: asyncpg.Connection, database: dict[str, Any], folder: Path, log: FileLog
) -> None:
    day = busy_day(60)
    async with following(folder, database) as follower:
        for start in range(0, 50, 10):
            log.append(day[start : start + 10])
        # The log does not say yet that its last batch is durable.
        await follower.reach(40)
        await asyncio.sleep(0.1)
        assert await position(conn) == 40
        log.seal()
        await follower.reach(50)
        log.append(day[50:])
        log.seal()
        await follower.reach(60)
        assert not any(progress.error for progress in follower.said)
    await expect_ledger_of(conn, day)


async def test_a_connection_cut_in_mid_transaction_loses_nothing_and_doubles_nothing(
    conn: asyncpg.Connection, database: dict[str, Any], folder: Path, log: FileLog
) -> None:
    day = busy_day(400)
    async with following(folder, database) as follower:
        for start in range(0, 400, 100):
            async with hold_transfers(database):
                log.append(day[start : start + 100])
                log.seal()
                # The position is updated and rows are in, when the writer meets the lock.
                await eventually(lambda: conn.fetchval(WAITING))
                assert await position(conn) == start
                await conn.execute(f"SELECT pg_terminate_backend(pid) FROM ({WAITING}) AS waiting")
            await follower.reach(start + 100)
        assert any("administrator command" in progress.error for progress in follower.said)
    await expect_ledger_of(conn, day)
    assert await engine_equals_ledger(conn, funds_by_hand(day)) == []


WAITING = "SELECT pid FROM pg_locks WHERE relation = 'cux.transfers'::regclass AND NOT granted"


@asynccontextmanager
async def hold_transfers(database: dict[str, Any]) -> AsyncIterator[None]:
    """Hold up whoever writes transfers."""
    conn = await connect(database)
    try:
        await conn.execute("BEGIN; LOCK TABLE cux.transfers IN SHARE MODE")
        yield
    finally:
        with suppress(*LOST):
            await conn.execute("ROLLBACK")
        conn.terminate()


async def test_a_server_killed_with_9_in_mid_transaction_is_waited_for_and_nothing_is_lost_or_doubled(
    folder: Path, log: FileLog
) -> None:
    day = busy_day(400)
    place = Path(tempfile.mkdtemp(prefix="cux-test-"))
    server = Postgres.start(place)
    database = server.connection
    try:
        conn = await connect(database)
        await migrate(conn)
        log.append(day[:150])
        log.seal()
        async with following(folder, database) as follower:
            await follower.reach(150)
            async with hold_transfers(database):
                log.append(day[150:300])
                log.seal()
                await eventually(lambda: conn.fetchval(WAITING))
                assert server.pid is not None
                os.kill(server.pid, signal.SIGKILL)
                # The exchange trades on; the writer says how far behind the ledger is.
                log.append(day[300:])
                log.seal()
                lost = await follower.see(lambda progress: progress.behind == 250)
                assert (lost.position, lost.durable) == (150, 400)
                assert lost.error
            conn.terminate()
            server.stop()
            server = Postgres.start(place)
            await follower.reach(400)
        conn = await connect(database)
        await expect_ledger_of(conn, day)
        assert await engine_equals_ledger(conn, funds_by_hand(day)) == []
        await conn.close()
    finally:
        server.stop()
        shutil.rmtree(place)


async def test_two_writers_at_once_write_each_record_once(
    conn: asyncpg.Connection, database: dict[str, Any], folder: Path, log: FileLog
) -> None:
    day = busy_day(600)
    async with following(folder, database) as one, following(folder, database) as other:
        for start in range(0, 600, 20):
            log.append(day[start : start + 20])
            log.seal()
            await asyncio.sleep(0.005)
        await eventually(lambda: at(conn, 600))
        fences = [progress for progress in (*one.said, *other.said) if progress.error]
        assert all("another writer" in progress.error for progress in fences)
    await expect_ledger_of(conn, day)


async def at(conn: asyncpg.Connection, sequence: int) -> bool:
    return await position(conn) == sequence


async def test_a_rebuild_gives_the_same_tables_to_the_byte(
    conn: asyncpg.Connection, database: dict[str, Any], folder: Path, log: FileLog
) -> None:
    day = [*story(), *market_day(), *busy_day(500, 28)]
    async with following(folder, database) as follower:
        for start in range(0, len(day), 40):
            log.append(day[start : start + 40])
            log.seal()
            await follower.reach(min(start + 40, len(day)))
    before = await dump(conn)
    # Somebody with the owner's rights tampers, by taking the protection away first.
    await conn.execute(
        "ALTER TABLE cux.fills DISABLE TRIGGER append_only; DELETE FROM cux.fills WHERE trade_id % 2 = 0"
    )
    assert (await dump(conn))["fills"] != before["fills"]
    assert await rebuild(folder, database) == len(day)
    assert await dump(conn) == before
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
        await conn.execute("DELETE FROM cux.fills")


async def test_a_rebuild_that_fails_leaves_the_ledger_as_it_was(
    conn: asyncpg.Connection, database: dict[str, Any], folder: Path, log: FileLog, tmp_path: Path
) -> None:
    log.append(story())
    log.seal()
    await rebuild(folder, database)
    before = await dump(conn)
    other = FileLog(tmp_path / "other")
    other.append(busy_day(50))
    # The same trade twice: no log of ours says so.
    other.append([record(51, Tick(), trade(900, 1, 1)), record(52, Tick(), trade(900, 1, 1))])
    other.close()
    with pytest.raises(asyncpg.UniqueViolationError):
        await rebuild(tmp_path / "other", database)
    assert await dump(conn) == before


async def test_the_writer_goes_on_after_a_rebuild_under_its_feet(
    conn: asyncpg.Connection, database: dict[str, Any], folder: Path, log: FileLog
) -> None:
    day = busy_day(300)
    async with following(folder, database) as follower:
        log.append(day[:100])
        log.seal()
        await follower.reach(100)
        log.append(day[100:200])
        log.seal()
        await rebuild(folder, database)
        log.append(day[200:])
        log.seal()
        await follower.reach(300)
    await expect_ledger_of(conn, day)


async def test_another_log_is_refused(
    conn: asyncpg.Connection, database: dict[str, Any], folder: Path, log: FileLog, tmp_path: Path
) -> None:
    log.append(story())
    log.seal()
    await rebuild(folder, database)
    before = await dump(conn)
    other = FileLog(tmp_path / "other")
    other.append(busy_day(50))
    other.close()
    with pytest.raises(LedgerAheadError, match=r"record 20 .* is not the one that the ledger has"):
        await asyncio.wait_for(follow(tmp_path / "other", database, asyncio.Event()), 10)
    assert await dump(conn) == before


async def test_a_log_that_ends_before_the_ledger_is_refused_torn_or_not(
    conn: asyncpg.Connection, database: dict[str, Any], folder: Path, log: FileLog, tmp_path: Path
) -> None:
    log.append(story())
    log.seal()
    await rebuild(folder, database)
    other = FileLog(tmp_path / "other")
    other.append(story()[:10])
    other.close()
    for tear in (b"", b"CUX1 half a batch"):
        with next((tmp_path / "other").glob("*.log")).open("ab") as file:
            file.write(tear)
        with pytest.raises(LedgerAheadError, match="ends before record 20, which the ledger has"):
            await asyncio.wait_for(follow(tmp_path / "other", database, asyncio.Event()), 10)
        with pytest.raises(LedgerAheadError, match="ends before record 20, which the ledger has"):
            await position_in(conn, tmp_path / "other")
    assert await position_in(conn, folder) == 20


async def test_a_database_that_was_not_migrated_is_reported_and_waited_for(
    postgres: Postgres, folder: Path, log: FileLog
) -> None:
    admin = await connect(postgres.connection)
    await admin.execute("CREATE DATABASE empty")
    empty = {**postgres.connection, "database": "empty"}
    try:
        log.append(story())
        log.seal()
        async with following(folder, empty) as follower:
            said = await follower.see(lambda progress: bool(progress.error))
            assert "cux.reader_position" in said.error
            assert said.behind == 20
            conn = await connect(empty)
            await migrate(conn)
            await follower.reach(20)
            await expect_ledger_of(conn, story())
            await conn.close()
    finally:
        await admin.execute("DROP DATABASE empty WITH (FORCE)")
        await admin.close()


def test_the_end_of_a_log_is_what_it_says_is_durable(folder: Path) -> None:
    assert durable_end(folder) == 0
    log = FileLog(folder, segment_max_bytes=1)
    log.append(busy_day(10))
    assert durable_end(folder) == 0
    log.append(busy_day(10, 11))  # in a new segment
    assert durable_end(folder) == 10
    log.seal()
    assert durable_end(folder) == 20
    log.close()
