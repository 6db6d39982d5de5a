"""The ledger's writer: follows the log and copies what it says into Postgres, each record exactly once.

A batch is one transaction: the fenced position, the rows, commit. Whatever happens to the connection,
the position in the database says what is in it, and the writer goes on from there.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

from exchange.funds import VENUE, transfers
from exchange.log import LogError, LogReader, durable_end, read_records
from schemas.commands import (
    CertifySite,
    EnterOrder,
    PostSettlement,
    ReceiveReadings,
    RegisterAccount,
    StartSettlementRun,
)
from schemas.events import (
    AccountRegistered,
    AnyEvent,
    CallCleared,
    OrderAccepted,
    OrderEnded,
    OrderListed,
    OrderReduced,
    OrderReplaced,
    PhaseChanged,
    ReadingsReceived,
    SettlementPosted,
    SettlementRunStarted,
    SiteCertified,
    Traded,
    trades_of,
)
from schemas.records import Decoded, Record, decoded, entry_of
from settlement.database import assume_writer, connect

READER = "ledger"
BATCH_MAX_RECORDS = 5_000
POLL_SECONDS = 0.01
RETRY_FIRST_SECONDS = 0.05
RETRY_MAX_SECONDS = 5.0

LOST = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""What a database raises that is gone, or going; all of it is answered by connecting again."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "accounts": ("account", "sequence", "time_ns", "trade_group", "registry_digest"),
    "sites": (
        *("site", "sequence", "time_ns", "account", "zone", "class_code", "capacity_lots"),
        *("carbon", "security", "from_hour", "until_hour"),
    ),
    "orders": (
        *("order_id", "sequence", "time_ns", "account", "client_order_id", "valid_until_ns", "side"),
        *("class_code", "delivery_hour", "hours", "lots", "price_ticks", "time_in_force", "expire_ns"),
        *("required_zone", "required_latency", "required_carbon", "required_security"),
        *("site", "carbon", "reserved_micros", "order_type", "min_lots", "display_lots", "post_only"),
        *("self_trade", "exclusive_group", "position", "min_hours", "offer_id"),
    ),
    "order_replacements": (
        *("order_id", "sequence", "time_ns", "account", "lots", "price_ticks", "leaves_lots"),
        "reserved_micros",
    ),
    "order_reductions": (
        *("order_id", "sequence", "ordinal", "time_ns", "account", "lots", "leaves_lots"),
        *("released_micros", "reason", "run_lots"),
    ),
    "order_ends": (
        *("order_id", "sequence", "time_ns", "account", "leaves_lots", "released_micros", "reason"),
    ),
    "fills": (
        *("trade_id", "sequence", "time_ns", "class_code", "delivery_hour", "price_ticks", "lots", "taker"),
        *("bid_order_id", "ask_order_id", "buyer", "seller", "site", "block", "notional_micros"),
        *("buyer_fee_micros", "buyer_released_micros"),
        *("bond_micros", "seller_fee_micros", "seller_released_micros", "position"),
    ),
    "phases": ("sequence", "ordinal", "time_ns", "class_code", "delivery_hour", "phase"),
    "call_prices": (
        *("sequence", "time_ns", "class_code", "delivery_hour", "zone", "carbon", "security"),
        *("lowest_ticks", "highest_ticks", "price_ticks"),
    ),
    "transfers": (
        *("sequence", "ordinal", "debit_account", "debit_purse", "credit_account", "credit_purse"),
        "amount_micros",
    ),
    "readings_announced": (
        *("batch", "sequence", "time_ns", "source", "from_hour", "until_hour", "count", "sha256"),
    ),
    "settlement_runs": (
        *("run", "sequence", "time_ns", "kind", "position", "readings_batch", "postings", "sha256"),
    ),
    "settlements": (
        *("run", "trade_id", "sequence", "time_ns", "verdict", "delivered_gpu_ms", "buyer", "seller"),
        *("payment_micros", "refund_micros", "penalty_micros", "bond_release_micros"),
    ),
}
"""The ledger's tables and the columns that are written, in the order of the rows below."""

Rows = dict[str, list[tuple[Any, ...]]]


class LedgerAheadError(LogError):
    """The ledger has what the log has lost, or never had. Whoever trades on makes a second truth."""


class Progress(NamedTuple):
    """How far the ledger has got: up to `position`, of `durable` records in the log."""

    position: int
    durable: int
    error: str = ""
    """Why the database cannot be written now, empty if it can."""

    @property
    def behind(self) -> int:
        """How many records are still to be taken in."""
        return max(0, self.durable - self.position)


async def follow(
    log_folder: Path,
    connection: Mapping[str, Any],
    stop: asyncio.Event,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Copy the log into the ledger until `stop` is set; the batch in hand is finished first.

    A database that is gone is asked for again, at most every 5 seconds; `on_progress` then says why
    and how far behind the ledger is, and after each batch how far it has got.

    Raises:
        LedgerAheadError: the log lacks what the ledger has.
        LogError: the log is damaged.
        DatabaseError: the server is older than this code can use.
    """
    delay = RETRY_FIRST_SECONDS
    reached = 0
    while not stop.is_set():
        try:
            async with _writer_connection(connection) as conn:
                reached = await position_in(conn, log_folder)
                for batch, durable in _log_batches(log_folder, reached + 1):
                    if batch:
                        await _write(conn, batch)
                        reached, delay = batch[-1].sequence, RETRY_FIRST_SECONDS
                        on_progress(Progress(reached, durable))
                    else:
                        await _pause(stop, POLL_SECONDS)
                    if stop.is_set():
                        break
        except (*LOST, _TryAgainError) as error:
            on_progress(Progress(reached, durable_end(log_folder), _reason(error)))
            await _pause(stop, delay)
            delay = min(2 * delay, RETRY_MAX_SECONDS)


async def rebuild(
    log_folder: Path,
    connection: Mapping[str, Any],
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> int:
    """Empty the ledger's tables, read the log again, and return the position reached.

    It is one transaction by the tables' owner: until it commits the old ledger is what there is.
    A writer that follows meanwhile waits, and then goes on from the new position.

    Raises:
        LogError: the log is damaged.
        DatabaseError: the server is older than this code can use.
        asyncpg.PostgresError, OSError: the database refuses, or is gone; nothing has changed.
    """
    tables = [f"cux.{table}" for table in COLUMNS]
    conn = await connect(connection)
    try:
        async with conn.transaction():
            await conn.execute(
                "UPDATE cux.reader_position SET last = 0, last_entry = '' WHERE reader = $1", READER
            )
            for table in tables:
                await conn.execute(f"ALTER TABLE {table} DISABLE TRIGGER append_only")
            await conn.execute(f"TRUNCATE {', '.join(tables)}")
            for table in tables:
                await conn.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER append_only")
            for batch, durable in _log_batches(log_folder, 1):
                if not batch:
                    break
                await _write(conn, batch)
                on_progress(Progress(batch[-1].sequence, durable))
            return await position(conn)
    finally:
        await conn.close(timeout=5)


async def position(conn: asyncpg.Connection) -> int:
    """Return the last sequence number that the ledger has taken in, 0 if none."""
    last, _ = await _position_and_entry(conn)
    return last


async def position_in(conn: asyncpg.Connection, log_folder: Path) -> int:
    """Return the last sequence number that the ledger has taken in, which the log holds as the ledger has it.

    Raises:
        LedgerAheadError: it does not.
        LogError: the log is damaged before it.
    """
    last, entry = await _position_and_entry(conn)
    if last == 0:
        return 0
    # Not up to there alone: a torn end before it is the end.
    record = next(read_records(log_folder, last), None)
    if record is None:
        raise LedgerAheadError(
            f"the log in {log_folder} ends before record {last}, which the ledger has: {_LOST}"
        )
    if entry_of(record) != entry:
        raise LedgerAheadError(
            f"record {last} of the log in {log_folder} is not the one that the ledger has: {_LOST}"
        )
    return last


_LOST = (
    "restore the whole log from a copy; or, if there is none, make the ledger again from what is there: "
    "cux db rebuild"
)


async def engine_equals_ledger(
    conn: asyncpg.Connection, balances: Mapping[tuple[int, int], int]
) -> list[str]:
    """Return where the engine's funds and the ledger's differ, a sentence each; none if all is well.

    `balances` maps account and purse to millionths, at the ledger's position; a purse that is not
    named holds nothing.
    """
    rows = await conn.fetch("SELECT account, purse, amount_micros FROM cux.balances")
    ledger = {(row["account"], row["purse"]): row["amount_micros"] for row in rows}
    return [
        f"account {account}, purse {purse}: {engine_micros} in the engine, {ledger_micros} in the ledger"
        for account, purse in sorted(ledger.keys() | balances.keys())
        if (engine_micros := balances.get((account, purse), 0))
        != (ledger_micros := ledger.get((account, purse), 0))
    ]


def rows_of(records: Iterable[Decoded]) -> Rows:
    """Return the rows that the records mean, by table, each in the order of its `COLUMNS`."""
    rows: Rows = {table: [] for table in COLUMNS}
    for record in records:
        ordinal = 0
        account = getattr(record.command, "account", VENUE)
        for number, event in enumerate(record.events, 1):
            _add_fact(rows, record, event, number)
            for transfer in transfers(account, event):
                ordinal += 1
                rows["transfers"].append((record.sequence, ordinal, *transfer))
    return rows


class _TryAgainError(Exception):
    """Log and ledger do not fit at this moment."""


@contextlib.asynccontextmanager
async def _writer_connection(connection: Mapping[str, Any]) -> AsyncIterator[asyncpg.Connection]:
    # A batch takes a fraction of a second: who has not answered in a minute never will.
    conn = await connect({**connection, "command_timeout": 60})
    try:
        await assume_writer(conn)
        yield conn
    except BaseException:
        conn.terminate()
        raise
    await conn.close(timeout=5)


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)


def _reason(error: BaseException) -> str:
    # asyncpg answers a lost connection with the complaint that a transaction cannot be ended on it.
    while isinstance(error.__context__, LOST):
        error = error.__context__
    return str(error) if isinstance(error, _TryAgainError) else f"{type(error).__name__}: {error}"


async def _position_and_entry(conn: asyncpg.Connection) -> tuple[int, bytes]:
    row = await conn.fetchrow("SELECT last, last_entry FROM cux.reader_position WHERE reader = $1", READER)
    assert row is not None
    return row["last"], row["last_entry"]


def _log_batches(log_folder: Path, first: int) -> Iterator[tuple[list[Record], int]]:
    """Yield durable records from `first` on and how far the log is durable; an empty list is the end, now."""
    durable = durable_end(log_folder)
    # What is there already, however much, is not read into memory at once.
    stored = itertools.islice(read_records(log_folder, first, durable), max(0, durable - first + 1))
    while batch := list(itertools.islice(stored, BATCH_MAX_RECORDS)):
        if batch[0].sequence != first:
            raise LogError(f"{log_folder} starts at {batch[0].sequence}; {first} was asked for")
        first = batch[-1].sequence + 1
        yield batch, durable
    reader = LogReader(log_folder, first)
    while True:
        records = reader.poll()
        for start in range(0, len(records), BATCH_MAX_RECORDS):
            yield records[start : start + BATCH_MAX_RECORDS], records[-1].sequence
        yield [], durable


async def _write(conn: asyncpg.Connection, batch: Sequence[Record]) -> None:
    rows = rows_of(decoded(record) for record in batch)
    async with conn.transaction():
        fenced = await conn.execute(
            "UPDATE cux.reader_position SET last = $1, last_entry = $2 WHERE reader = $3 AND last = $4",
            batch[-1].sequence,
            entry_of(batch[-1]),
            READER,
            batch[0].sequence - 1,
        )
        if fenced != "UPDATE 1":
            raise _TryAgainError(f"another writer has moved the ledger away from {batch[0].sequence - 1}")
        for table, columns in COLUMNS.items():
            if rows[table]:
                await conn.copy_records_to_table(
                    table, schema_name="cux", columns=columns, records=rows[table]
                )


def _add_fact(rows: Rows, record: Decoded, event: AnyEvent, ordinal: int) -> None:
    at = (record.sequence, record.time_ns)
    rows["fills"] += [_fill_row(at, trade) for trade in trades_of(event)]
    match record.command, event:
        case RegisterAccount() as command, AccountRegistered():
            rows["accounts"].append((command.account, *at, command.trade_group, command.registry_digest))
        case CertifySite() as command, SiteCertified():
            rows["sites"].append(
                (
                    *(command.site, *at, command.account, command.zone, command.class_code),
                    *(command.capacity_lots, command.carbon, command.security),
                    *(command.from_hour, command.until_hour),
                )
            )
        case EnterOrder() as command, OrderAccepted():
            rows["orders"].append(_order_row(at, command, event, None))
        case _, OrderListed():
            rows["orders"].append(_order_row(at, event.order, event, event.offer_id))
        case _, OrderReplaced():
            rows["order_replacements"].append(
                (
                    *(event.order_id, *at, event.account, event.lots, event.price_ticks),
                    *(event.leaves_lots, event.reserved_micros),
                )
            )
        case _, OrderReduced():
            rows["order_reductions"].append(
                (
                    *(event.order_id, record.sequence, ordinal, record.time_ns, event.account, event.lots),
                    *(event.leaves_lots, event.released_micros, event.reason.value),
                    list(event.run_lots) or None,
                )
            )
        case _, OrderEnded():
            rows["order_ends"].append(
                (
                    *(event.order_id, *at, event.account, event.leaves_lots, event.released_micros),
                    event.reason.value,
                )
            )
        case _, PhaseChanged():
            rows["phases"].append(
                (
                    *(record.sequence, ordinal, record.time_ns, event.class_code, event.delivery_hour),
                    event.phase.value,
                )
            )
        case _, CallCleared():
            rows["call_prices"] += [
                (
                    *(*at, event.class_code, event.delivery_hour, cell.zone, cell.carbon, cell.security),
                    *(cell.lowest_ticks, cell.highest_ticks, cell.price_ticks),
                )
                for cell in event.prices
            ]
        case ReceiveReadings() as command, ReadingsReceived():
            rows["readings_announced"].append(
                (
                    *(command.batch, *at, command.source, command.from_hour, command.until_hour),
                    *(command.count, command.sha256),
                )
            )
        case StartSettlementRun() as command, SettlementRunStarted():
            rows["settlement_runs"].append(
                (
                    *(command.run, *at, command.kind, command.position, command.readings_batch),
                    *(command.postings, command.sha256),
                )
            )
        case PostSettlement() as command, SettlementPosted():
            rows["settlements"].append(
                (
                    *(event.run, event.trade_id, *at, command.verdict, command.delivered_gpu_ms),
                    *(event.buyer, event.seller, event.payment_micros, event.refund_micros),
                    *(event.penalty_micros, event.bond_release_micros),
                )
            )


def _order_row(
    at: tuple[int, int], command: EnterOrder, event: OrderAccepted | OrderListed, offer_id: int | None
) -> tuple[Any, ...]:
    need = command.requirement
    return (
        *(event.order_id, *at, command.account, command.client_order_id, command.valid_until_ns),
        *(command.side.value, command.class_code, command.delivery_hour, command.hours),
        *(command.lots, command.price_ticks, command.time_in_force.value, command.expire_ns),
        *((need.zone, need.latency, need.carbon, need.security) if need else (None,) * 4),
        *(command.site or None, command.carbon, event.reserved_micros, command.order_type.value),
        *(command.min_lots, command.display_lots, command.post_only, command.self_trade.value),
        *(command.exclusive_group, command.position or None, command.min_hours, offer_id),
    )


def _fill_row(at: tuple[int, int], trade: Traded) -> tuple[Any, ...]:
    return (
        *(trade.trade_id, *at, trade.class_code, trade.delivery_hour, trade.price_ticks, trade.lots),
        *(trade.taker and trade.taker.value, trade.bid_order_id, trade.ask_order_id),
        *(trade.buyer, trade.seller),
        *(trade.site, trade.block, trade.notional_micros),
        *(trade.buyer_fee_micros, trade.buyer_released_micros),
        *(trade.bond_micros, trade.seller_fee_micros, trade.seller_released_micros, trade.position),
    )
