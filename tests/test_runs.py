"""Ingest and settlement runs against a real Postgres, the real engine and the real ledger writer."""

import asyncio
import hashlib
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from exchange.contract import HOUR_NS, gate_ns
from exchange.engine import Engine
from exchange.funds import Purse
from exchange.link import BusyError
from exchange.log import FileLog
from gateway.simulation.meter import Delivery, write_meters
from schemas.authority import C, signature_holds, signed
from schemas.codec import encode
from schemas.commands import (
    AnyCommand,
    OpenEra,
    PostSettlement,
    ReceiveReadings,
    ReplaceOrder,
    StartSettlementRun,
    Tick,
)
from schemas.events import BlockTraded, Rejected, Traded
from schemas.records import Decoded, Record
from settlement.ingest import IngestReport, ingest_folder
from settlement.meters.slurm import FIELDS
from settlement.rules import Amounts
from settlement.runs import RunError, RunReport, explain, settle
from settlement.submission import RefusedError
from settlement.writer import engine_equals_ledger, follow, position
from tests.market import (
    AUTHORITY,
    BUYER,
    EAST,
    FIRST_HOUR,
    MIDDLE,
    OTHER_BUYER,
    SELLER,
    SELLER_WEST,
    START_NS,
    WEST,
    ask,
    bid,
    opening,
)
from tests.small_venue import SMALL_VENUE

pytest_plugins = ["tests.postgres_fixture"]

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
AFTER_NS = (FIRST_HOUR + 6) * HOUR_NS
"""All the delivery hours of these tests have ended."""


class Killed(Exception):  # noqa: N818 - it stands for a crash, not for an error
    """The process dies here."""


class Exchange:
    """The real engine and log in this process; settlement speaks to it as it would to the core."""

    def __init__(self, folder: Path) -> None:
        self.log = FileLog(folder)
        self.engine = Engine()
        self.time_ns = START_NS
        self.commands: list[AnyCommand] = []
        self.before: Callable[[AnyCommand], None] = lambda _: None

    def do(self, command: AnyCommand) -> Decoded:
        due = self.engine.next_due_ns()
        if not isinstance(command, Tick) and due is not None and due <= self.time_ns:
            # As the sequencer does, so that a record's first event answers its command.
            self.do(Tick())
        events = tuple(self.engine.apply(self.time_ns, command))
        self.engine.check()
        sequence = self.log.last_sequence + 1
        raws = tuple(msgspec.Raw(encode(event)) for event in events)
        self.log.append([Record(sequence, self.time_ns, bytes(16), msgspec.Raw(encode(command)), raws)])
        self.log.seal()
        self.commands.append(command)
        return Decoded(sequence, self.time_ns, command, events)

    async def submit(self, command: AnyCommand) -> Decoded:
        self.before(command)
        await asyncio.sleep(0)
        return self.do(command)

    def sign(self, command: C, /) -> C:
        return signed(command, KEY, self.time_ns, "test")

    def trade(self, *commands: AnyCommand) -> list[Traded]:
        trades: list[Traded] = []
        for command in commands:
            for event in self.do(command).events:
                assert not isinstance(event, Rejected), event
                trades += [event] if isinstance(event, Traded) else []
                trades += event.legs if isinstance(event, BlockTraded) else []
        return trades

    def purses(self) -> dict[tuple[int, int], int]:
        return self.engine.balances()

    def held(self, account: int, purse: Purse) -> int:
        return self.engine.balances().get((account, purse), 0)


class Desk:
    """Settlement's side of the small market."""

    def __init__(self, exchange: Exchange, conn: asyncpg.Connection, folder: Path) -> None:
        self.exchange, self.conn, self.folder = exchange, conn, folder
        self.runs = itertools.count(1)

    def write(self, name: str, text: str | bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)

    async def ledger(self) -> None:
        """Wait until the ledger has everything."""
        while await position(self.conn) < self.exchange.log.last_sequence:  # noqa: ASYNC110 - others fill it
            await asyncio.sleep(0.005)

    async def fetchval(self, query: str) -> Any:
        return await self.conn.fetchval(query)

    async def ingest(self, submit: Callable[[AnyCommand], Awaitable[Decoded]] | None = None) -> IngestReport:
        await self.ledger()
        return await ingest_folder(
            self.conn,
            submit or self.exchange.submit,
            self.folder,
            "meters",
            now_ns=self.exchange.time_ns,
            sign=self.exchange.sign,
        )

    async def settle(self, kind: str = "final", run: int | None = None, before: int = 5) -> RunReport:
        return await settle(
            self.conn,
            self.exchange.submit,
            self.exchange.sign,
            SMALL_VENUE,
            run=next(self.runs) if run is None else run,
            kind=kind,
            last_sequence=self.exchange.log.last_sequence,
            before_hour=FIRST_HOUR + before,
        )

    async def settled(self, trade: Traded) -> Amounts:
        """What was posted for a trade by all runs."""
        row = await self.conn.fetchrow(
            "SELECT sum(payment_micros)::bigint, sum(refund_micros)::bigint, sum(penalty_micros)::bigint, "
            "sum(bond_release_micros)::bigint FROM cux.settlements WHERE trade_id = $1",
            trade.trade_id,
        )
        return Amounts(*row)

    async def check(self) -> None:
        """What must hold after every run: engine and ledger agree, and nothing appears or vanishes."""
        await self.ledger()
        assert await engine_equals_ledger(self.conn, self.exchange.purses()) == []
        assert await self.fetchval("SELECT coalesce(sum(amount_micros), 0) FROM cux.balances") == 0
        assert await self.fetchval(
            "SELECT bool_and(paid = notional_micros AND freed = bond_micros) FROM ("
            "SELECT trade_id, sum(payment_micros + refund_micros) AS paid, "
            "sum(penalty_micros + bond_release_micros) AS freed FROM cux.settlements GROUP BY trade_id) AS s "
            "JOIN cux.fills USING (trade_id)"
        ) in (True, None)
        for start in (c for c in self.exchange.commands if isinstance(c, StartSettlementRun)):
            posted = [
                c for c in self.exchange.commands if isinstance(c, PostSettlement) and c.run == start.run
            ]
            unique = {c.trade_id: c for c in posted}
            assert start.postings == len(unique)
            in_order = b"".join(encode(unique[trade_id]) for trade_id in sorted(unique))
            assert start.sha256 == hashlib.sha256(in_order).digest()


@pytest_asyncio.fixture
async def desk(database: dict[str, Any], conn: asyncpg.Connection, tmp_path: Path) -> AsyncIterator[Desk]:
    exchange = Exchange(tmp_path / "log")
    for command in opening():
        match command:
            case OpenEra():
                keys = (AUTHORITY.key, KEY.public_key().public_bytes_raw())
                exchange.do(msgspec.structs.replace(command, operator_keys=keys))
            case _:
                exchange.do(command)
    stop = asyncio.Event()
    writer = asyncio.create_task(follow(tmp_path / "log", database, stop))
    yield Desk(exchange, conn, tmp_path / "meters")
    stop.set()
    await writer
    exchange.log.close()


def iso(hour: int, seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(hour * 3600 + seconds))


def job(trade: Traded, seconds: int = 3600, *, job_id: int | None = None, skew: int = 0) -> str:
    """What sacct shows of the fill's job, with a step that repeats its GPUs."""
    hour, name = trade.delivery_hour, job_id or 1000 + trade.trade_id
    row = dict.fromkeys(FIELDS, "") | {
        "JobID": str(name),
        "Start": iso(hour, skew),
        "End": iso(hour, skew + seconds),
        "ElapsedRaw": str(seconds),
        "Suspended": "00:00:00",
        "NodeList": "gpu-1",
        "AllocTRES": f"gres/gpu:h100={trade.lots},gres/gpu={trade.lots}",
        "JobName": f"cux-{trade.trade_id}",
    }
    step = row | {"JobID": f"{name}.batch", "JobName": "batch"}
    return "".join("|".join(r[field] for field in FIELDS) + "\n" for r in (row, step))


def energy(trade: Traded, *counters: int) -> str:
    label = f'UUID="GPU-a",Hostname="gpu-1",pod="cux-{trade.trade_id}"'
    return "".join(f"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{label}}} {counter}\n" for counter in counters)


def three_fills(exchange: Exchange) -> list[Traded]:
    """Two GPUs, one GPU and one GPU of three sites in the first hour, at 10, 11 and 12; a fourth is left."""
    trades = exchange.trade(
        ask(1, EAST, 2, 1000),
        ask(2, MIDDLE, 1, 1100),
        ask(3, WEST, 2, 1200),
        bid(4, 3, 2000),
        bid(5, 1, 2000, account=OTHER_BUYER),
    )
    assert [t.lots for t in trades] == [2, 1, 1]
    exchange.time_ns = gate_ns(FIRST_HOUR, SMALL_VENUE.gate_seconds)
    exchange.do(Tick())
    exchange.time_ns = AFTER_NS
    return trades


# -- ingest -------------------------------------------------------------------------------------------


async def test_readings_are_stored_and_their_digest_stands_in_the_log(desk: Desk) -> None:
    east, middle, _ = three_fills(desk.exchange)
    desk.write("site-1/slurm-a.txt", job(east))
    desk.write("site-2/slurm-a.txt", job(middle) + "half a row")
    desk.write(f"site-1/dcgm-{FIRST_HOUR * 3600 + 60}.prom", energy(east, 1000))
    desk.write("carbon.csv", f"zone,hour,mgco2_per_kwh\neast,{FIRST_HOUR},400000\n")
    report = await desk.ingest()
    assert report == IngestReport(1, desk.exchange.log.last_sequence, 4, 0, 3, 1)
    (announced,) = [c for c in desk.exchange.commands if isinstance(c, ReceiveReadings)]
    assert signature_holds(announced)
    assert (announced.count, announced.from_hour, announced.until_hour) == (3, FIRST_HOUR, FIRST_HOUR + 1)
    assert announced.sha256 == await desk.fetchval("SELECT sha256 FROM cux.readings_batches")
    assert await desk.fetchval("SELECT why FROM cux.quarantine") == "the row has no end: half a file"


async def test_the_same_file_is_taken_in_once_under_any_name_and_late_files_later(desk: Desk) -> None:
    east, middle, _ = three_fills(desk.exchange)
    desk.write("site-1/slurm-a.txt", job(east))
    desk.write("site-1/slurm-a-copy.txt", job(east))
    assert (await desk.ingest())[2:5] == (1, 1, 1)
    announced = len(desk.exchange.commands)
    assert (await desk.ingest())[:5] == (None, None, 0, 2, 0)
    assert len(desk.exchange.commands) == announced
    desk.write("site-2/slurm-late.txt", job(middle))
    assert (await desk.ingest())[:5] == (2, desk.exchange.log.last_sequence, 1, 2, 1)


async def test_a_batch_that_a_crash_left_unannounced_is_announced_by_the_next_call(desk: Desk) -> None:
    east, middle, _ = three_fills(desk.exchange)
    desk.write("site-1/slurm-a.txt", job(east))

    async def crash_before(command: AnyCommand) -> Decoded:
        raise Killed

    async def crash_after(command: AnyCommand) -> Decoded:
        desk.exchange.do(command)
        raise Killed

    with pytest.raises(Killed):
        await desk.ingest(crash_before)
    assert await desk.fetchval("SELECT count(*) FROM cux.readings") == 1
    with pytest.raises(Killed):
        await desk.ingest(crash_after)
    desk.write("site-2/slurm-a.txt", job(middle))
    assert (await desk.ingest()).batch == 2
    batches = [c.batch for c in desk.exchange.commands if isinstance(c, ReceiveReadings)]
    assert batches == [1, 2]
    await desk.ledger()
    assert await desk.fetchval("SELECT count(*) FROM cux.readings_announced") == 2


async def test_an_announcement_that_the_log_already_has_is_not_an_error(desk: Desk) -> None:
    """The ledger may still be behind when the next call asks it what was announced."""
    east, *_ = three_fills(desk.exchange)
    desk.write("site-1/slurm-a.txt", job(east))
    await desk.ledger()
    first: list[ReceiveReadings] = []

    async def twice(command: AnyCommand) -> Decoded:
        assert isinstance(command, ReceiveReadings)
        first.append(command)
        desk.exchange.do(command)
        return desk.exchange.do(command)

    report = await desk.ingest(twice)
    assert report.sequence == desk.exchange.log.last_sequence
    assert len(first) == 1


UNBELIEVABLE = [
    ("site-99/slurm-a.txt", "", "folder 'site-99': site-<number> of a certified site is wanted"),
    ("site-x/slurm-a.txt", "", "folder 'site-x': site-<number> of a certified site is wanted"),
    ("site-1/notes.txt", "", "name 'notes.txt': slurm-"),
    ("site-1/opencost-a.json", "{", "no allocation document"),
    ("site-1/slurm-a.txt", "1|2|3\n", "3 fields; 32 are wanted"),
    ("site-1/dcgm-99.prom", 'DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{UUID="a"} -5\n', "DCGM_FI_DEV_TOTAL"),
    ("site-1/dcgm-9999999999.prom", 'DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{UUID="a"} 5\n', "end 99999"),
    ("site-1/slurm-\udce9\n.txt", "x\n", "1 fields; 32 are wanted"),
    ("site-1/slurm-folder.txt/a", "", "a plain file of at most"),
    ("carbon.csv", "zone\n", "header 'zone'"),
]


async def test_what_cannot_be_believed_is_quarantined_by_name_once_and_the_rest_goes_on(desk: Desk) -> None:
    east, *_ = three_fills(desk.exchange)
    desk.write("site-1/slurm-good.txt", job(east))
    for name, text, _ in UNBELIEVABLE:
        desk.write(name, text)
    assert (await desk.ingest()).quarantined == len(UNBELIEVABLE)
    assert (await desk.ingest()).quarantined == 0, "the same complaint is not made twice"
    reasons = {row["name"]: row["why"] for row in await desk.conn.fetch("SELECT * FROM cux.quarantine")}
    for name, _, why in UNBELIEVABLE:
        shown = name.replace("\udce9\n", r"\udce9\n").removesuffix("/a")
        assert reasons[shown].startswith(why)
    assert await desk.fetchval("SELECT count(*) FROM cux.readings WHERE trade_id IS NOT NULL") == 1


async def test_evidence_cannot_be_changed(desk: Desk) -> None:
    east, *_ = three_fills(desk.exchange)
    desk.write("site-1/slurm-a.txt", job(east))
    await desk.ingest()
    await desk.settle()
    for table in (
        *("readings_batches", "reading_files", "readings", "carbon_intensity", "quarantine"),
        *("settlement_plans", "reconciliations"),
    ):
        for statement in (f"DELETE FROM cux.{table}", f"TRUNCATE cux.{table} CASCADE"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
                await desk.conn.execute(statement)
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
        await desk.conn.execute("UPDATE cux.readings SET gpu_ms = 0")


async def test_readings_that_are_not_those_announced_are_not_used(desk: Desk) -> None:
    east, *_ = three_fills(desk.exchange)
    desk.write("site-1/slurm-a.txt", job(east))
    desk.write("carbon.csv", f"zone,hour,mgco2_per_kwh\neast,{FIRST_HOUR},1\neast,{FIRST_HOUR + 1},2\n")
    await desk.ingest()
    await desk.conn.execute("ALTER TABLE cux.readings DISABLE TRIGGER append_only")
    await desk.conn.execute("UPDATE cux.readings SET gpu_ms = gpu_ms - 1")
    with pytest.raises(RunError, match="readings batch 1 is not what was announced at sequence"):
        await desk.settle()
    await desk.conn.execute("UPDATE cux.readings SET gpu_ms = gpu_ms + 1")
    assert (await desk.settle()).postings == 3


async def test_a_hundred_thousand_rows_are_taken_in_within_seconds(desk: Desk) -> None:
    east, *_ = three_fills(desk.exchange)
    desk.exchange.time_ns = AFTER_NS + HOUR_NS
    rows = [f'{{UUID="GPU-{n}",Hostname="gpu-1",pod="cux-{east.trade_id}"}} {n}' for n in range(2000)]
    for scrape in range(50):
        text = "".join(f"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{row}\n" for row in rows)
        desk.write(f"site-1/dcgm-{FIRST_HOUR * 3600 + scrape}.prom", text + f"# {scrape}\n")
    began = time.perf_counter()
    assert (await desk.ingest()).readings == 100_000
    assert time.perf_counter() - began < 30


# -- runs ---------------------------------------------------------------------------------------------


async def test_a_final_run_pays_what_was_delivered_and_the_provider_bears_the_shortfall(desk: Desk) -> None:
    east, middle, west = three_fills(desk.exchange)
    desk.write("site-1/slurm-a.txt", job(east, 3590, skew=15))
    desk.write("site-2/slurm-a.txt", job(middle, 1800))
    await desk.ingest()
    report = await desk.settle()
    assert (report.fills, report.verdicts) == (3, {"delivered": 1, "missing": 1, "short": 1})
    assert (report.pending, report.postings, report.posted) == (0, 3, 3)
    bond = {t.trade_id: t.bond_micros for t in (east, middle, west)}
    assert await desk.settled(east) == (20_000_000, 0, 0, bond[east.trade_id])
    # The best ask left at the gate was at 12: 12 x 0.5 h x 1.2 - 5.50 = 1.70, capped by the bond of 1.10.
    assert await desk.settled(middle) == (5_500_000, 5_500_000, 1_100_000, 0)
    assert await desk.settled(west) == (0, 12_000_000, 1_200_000, 0)
    assert desk.exchange.held(BUYER, Purse.COMMITTED) == desk.exchange.held(OTHER_BUYER, Purse.COMMITTED) == 0
    assert desk.exchange.held(SELLER, Purse.BOND) == desk.exchange.held(SELLER_WEST, Purse.BOND) == 0
    await desk.check()


async def test_an_initial_run_leaves_missing_fills_pending_and_the_final_run_settles_them(desk: Desk) -> None:
    east, middle, west = three_fills(desk.exchange)
    desk.write("site-1/slurm-a.txt", job(east))
    await desk.ingest()
    initial = await desk.settle("initial")
    assert (initial.verdicts, initial.pending, initial.posted) == ({"delivered": 1, "missing": 2}, 2, 1)
    assert desk.exchange.held(OTHER_BUYER, Purse.COMMITTED) == 12_000_000
    desk.write("site-2/slurm-late.txt", job(middle))
    await desk.ingest()
    final = await desk.settle("final")
    assert (final.verdicts, final.pending, final.posted) == ({"delivered": 2, "missing": 1}, 0, 2)
    assert (await desk.settled(west)).refund_micros == 12_000_000
    again = await desk.settle("initial")
    assert (again.pending, again.postings) == (0, 0), "what was settled as missing does not become pending"
    await desk.check()


async def test_a_second_run_with_nothing_new_posts_and_stores_nothing(desk: Desk) -> None:
    east, *_ = three_fills(desk.exchange)
    desk.write("site-1/slurm-a.txt", job(east))
    await desk.ingest()
    first = await desk.settle()
    held = desk.exchange.purses()
    second = await desk.settle()
    assert (first.posted, second.postings, second.posted) == (3, 0, 0)
    assert desk.exchange.purses() == held
    assert await desk.fetchval("SELECT count(*) FROM cux.reconciliations WHERE run = 2") == 0
    repeated = await desk.settle(run=1)
    assert (repeated.postings, repeated.posted) == (3, 0)
    await desk.check()


async def test_late_readings_make_a_correction_that_posts_the_difference(desk: Desk) -> None:
    east, middle, _ = three_fills(desk.exchange)
    desk.write("site-1/slurm-a.txt", job(east, 1800))
    desk.write("site-2/slurm-a.txt", job(middle))
    await desk.ingest()
    await desk.settle()
    assert (await desk.settled(east)).payment_micros == 10_000_000
    desk.write("site-1/slurm-b.txt", job(east, 3600))
    await desk.ingest()
    correction = await desk.settle("correction")
    assert correction.postings == 1
    assert await desk.settled(east) == (20_000_000, 0, 0, east.bond_micros)
    await desk.check()


async def test_fills_beyond_the_position_or_the_hour_are_left_for_later(desk: Desk) -> None:
    trades = desk.exchange.trade(ask(1, EAST, 2, 1000), bid(2, 1, 2000))
    trades += desk.exchange.trade(
        ask(3, EAST, 1, 1000, delivery_hour=FIRST_HOUR + 1), bid(4, 1, 2000, delivery_hour=FIRST_HOUR + 1)
    )
    desk.exchange.time_ns = AFTER_NS
    for trade in trades:
        desk.write(f"site-1/slurm-{trade.trade_id}.txt", job(trade))
    await desk.ingest()
    assert (await desk.settle(before=1)).fills == 1
    assert (await desk.settle(before=0)).fills == 0
    assert (await desk.settle(before=2)).postings == 1
    await desk.check()


async def test_every_leg_of_a_block_is_settled_by_its_own_hour(desk: Desk) -> None:
    hours = range(3)
    legs = desk.exchange.trade(
        *(ask(1 + h, EAST, 4, 1000 + h, delivery_hour=FIRST_HOUR + h) for h in hours),
        bid(9, 2, 1500, hours=3),
    )
    assert len(legs) == 3
    desk.exchange.time_ns = AFTER_NS
    desk.write("site-1/slurm-a.txt", "".join(job(leg, 3600 - 1800 * i) for i, leg in enumerate(legs)))
    await desk.ingest()
    assert (await desk.settle()).verdicts == {"delivered": 1, "short": 2}
    assert [(await desk.settled(leg)).payment_micros for leg in legs] == [20_000_000, 10_010_000, 0]
    await desk.check()


def resold(exchange: Exchange) -> tuple[Traded, Traded, Traded]:
    """Two GPUs of the eastern site are bought at 10; one is resold at 12, and that again at 13."""
    (first,) = exchange.trade(ask(1, EAST, 2, 1000), bid(2, 2, 1000))
    again = {"account": BUYER, "position": first.trade_id}
    (second,) = exchange.trade(ask(3, EAST, 1, 1200, **again), bid(4, 1, 1200, account=OTHER_BUYER))
    again = {"account": OTHER_BUYER, "position": second.trade_id}
    (third,) = exchange.trade(ask(5, EAST, 1, 1300, **again), bid(6, 1, 1300, account=SELLER_WEST))
    assert (first.position, second.position, third.position) == (0, first.trade_id, second.trade_id)
    exchange.time_ns = AFTER_NS
    return first, second, third


@pytest.mark.parametrize("named_after", ["the last buyers", "the first"])
async def test_a_resold_hour_is_delivered_once_and_paid_by_each_who_bought_it(
    desk: Desk, named_after: str
) -> None:
    """The site's jobs are named after who used the GPUs, or after whom it sold them to."""
    first, second, third = resold(desk.exchange)
    half = job(first).replace("h100=2", "h100=1").replace("gpu=2", "gpu=1")
    desk.write("site-1/slurm-a.txt", half + job(third) if named_after == "the last buyers" else job(first))
    await desk.ingest()
    report = await desk.settle("initial")
    assert (report.verdicts, report.pending) == ({"delivered": 3}, 0)
    assert await desk.settled(first) == (20_000_000, 0, 0, first.bond_micros)
    assert await desk.settled(second) == (12_000_000, 0, 0, second.bond_micros)
    assert await desk.settled(third) == (13_000_000, 0, 0, third.bond_micros)
    await desk.check()


async def test_a_shortfall_of_a_resold_hour_goes_back_along_its_chain(desk: Desk) -> None:
    first, second, third = resold(desk.exchange)
    desk.write("site-1/slurm-a.txt", job(first, 2700))
    await desk.ingest()
    assert (await desk.settle()).verdicts == {"short": 3}
    # One GPU and a half were there: the first buyer's own, and half of the one that he resold.
    paid = [(await desk.settled(trade)).payment_micros for trade in (first, second, third)]
    assert paid == [15_000_000, 6_000_000, 6_500_000]
    await desk.check()
    chain = await explain(desk.conn, SMALL_VENUE, third.trade_id)
    numbers = [trade.trade_id for trade in (first, second, third)]
    assert [row["trade_id"] for row in chain["resales"]] == numbers
    assert [row["position"] for row in chain["resales"]] == [0, *numbers[:2]]
    assert [(row["trade_id"], row["counts"]) for row in chain["readings"]] == [(first.trade_id, True)]


async def test_the_asks_at_the_gate_are_hourly_ones_at_their_last_price(desk: Desk) -> None:
    (trade,) = desk.exchange.trade(
        ask(1, EAST, 1, 1000),
        bid(2, 1, 1000),
        ask(3, WEST, 2, 1900),
        ask(4, WEST, 1, 1050, hours=2, min_hours=1),
    )
    replace = ReplaceOrder(
        account=SELLER_WEST,
        client_order_id="o3",
        valid_until_ns=START_NS + 1,
        lots=2,
        price_ticks=1080,
    )
    for price in (1500, 1080):
        desk.exchange.do(msgspec.structs.replace(replace, price_ticks=price))
    desk.exchange.time_ns = AFTER_NS
    desk.exchange.do(Tick())
    desk.write("site-1/slurm-a.txt", job(trade, 3240))
    await desk.ingest()
    await desk.settle()
    # A tenth of a GPU-hour at 10.80 x 1.2, less the refund of 1.00.
    assert await desk.settled(trade) == (9_000_000, 1_000_000, 296_000, 704_000)
    assert await desk.fetchval("SELECT replacement_basis FROM cux.reconciliations") == "asks"
    await desk.check()


async def test_among_the_asks_at_the_gate_is_a_resale_that_names_its_position_alone(desk: Desk) -> None:
    short, whole = desk.exchange.trade(
        ask(1, EAST, 2, 1000), bid(2, 1, 1000), bid(3, 1, 1000, account=OTHER_BUYER)
    )
    desk.exchange.do(ask(4, 0, 1, 1080, account=OTHER_BUYER, position=whole.trade_id))
    desk.exchange.time_ns = AFTER_NS
    desk.exchange.do(Tick())
    desk.write("site-1/slurm-a.txt", job(short, 3240))
    desk.write("site-1/slurm-b.txt", job(whole))
    await desk.ingest()
    await desk.settle()
    assert await desk.settled(short) == (9_000_000, 1_000_000, 296_000, 704_000)
    await desk.check()


@pytest.mark.parametrize("survivors", [0, 1, 2, 3])
async def test_a_run_cut_off_at_any_point_is_finished_by_repeating_it(desk: Desk, survivors: int) -> None:
    """Before the announcement, after it, in the middle of the postings, before the last of them."""
    east, *_ = three_fills(desk.exchange)
    desk.write("site-1/slurm-a.txt", job(east))
    await desk.ingest()
    left = itertools.count(survivors, -1)

    def kill(command: AnyCommand) -> None:
        if isinstance(command, StartSettlementRun | PostSettlement) and next(left) == 0:
            raise Killed

    desk.exchange.before = kill
    with pytest.raises(Killed):
        await desk.settle(run=1)
    desk.exchange.before = lambda _: None
    # Readings that come in between are for the next run: this one keeps its plan.
    desk.write("site-3/slurm-late.txt", "")
    desk.write("site-1/slurm-late.txt", job(east, 1800, job_id=5, skew=1800) + job(east, 1800, job_id=6))
    await desk.ingest()
    with pytest.raises(RunError, match="run 1 is not finished"):
        await desk.settle(run=2)
    report = await desk.settle(run=1)
    assert (report.readings_batch, report.postings) == (1, 3)
    assert len({c.trade_id for c in desk.exchange.commands if isinstance(c, PostSettlement)}) == 3
    assert sum(isinstance(c, StartSettlementRun) for c in desk.exchange.commands) == 1
    await desk.check()


async def test_postings_that_the_caller_does_not_know_of_are_not_made_twice(desk: Desk) -> None:
    """A restarted caller may know an older end of the log than what the crashed one had reached."""
    three_fills(desk.exchange)
    await desk.settle(run=1)
    await desk.conn.execute("ALTER TABLE cux.settlements DISABLE TRIGGER append_only")
    await desk.conn.execute("DELETE FROM cux.settlements")
    report = await desk.settle(run=1)
    assert report.posted == 3
    refused = [c for c in desk.exchange.commands if isinstance(c, PostSettlement)]
    assert len(refused) == 6, "the exchange refused three of them, and that is what counts"


async def test_a_busy_exchange_is_asked_again(desk: Desk) -> None:
    three_fills(desk.exchange)
    busy = random.Random(1)

    def refuse_some(command: AnyCommand) -> None:
        if busy.random() < 0.5:
            raise BusyError

    desk.exchange.before = refuse_some
    assert (await desk.settle()).posted == 3
    await desk.check()


async def test_a_refused_posting_ends_the_run_with_the_reason(desk: Desk) -> None:
    three_fills(desk.exchange)
    desk.exchange.time_ns = FIRST_HOUR * HOUR_NS
    with pytest.raises(RefusedError, match=r"run 1, trade \d+: .*NOT_YET_DELIVERED"):
        await desk.settle()


async def test_a_run_of_another_kind_or_an_old_number_is_refused(desk: Desk) -> None:
    three_fills(desk.exchange)
    await desk.settle("initial", run=3)
    with pytest.raises(RunError, match="run 3 is initial, not final"):
        await desk.settle("final", run=3)
    with pytest.raises(RunError, match="run 2: a number above 3 is allowed"):
        await desk.settle("final", run=2)
    with pytest.raises(RunError, match="kind 'weekly': one of initial, final, correction is allowed"):
        await desk.settle("weekly", run=4)


async def test_energy_and_carbon_are_on_record_with_the_verdict(desk: Desk) -> None:
    east, middle, _ = three_fills(desk.exchange)
    desk.write("site-1/slurm-a.txt", job(east))
    for second, counter in ((60, 5_000_000_000), (3540, 8_600_000_000)):
        desk.write(f"site-1/dcgm-{FIRST_HOUR * 3600 + second}.prom", energy(east, counter))
    desk.write("carbon.csv", f"zone,hour,mgco2_per_kwh\neast,{FIRST_HOUR},400000\n")
    await desk.ingest()
    await desk.settle()
    query = (
        "SELECT energy_mj, co2e_mg, intensity_source, pue_known FROM cux.reconciliations WHERE trade_id = $1"
    )
    assert tuple(await desk.conn.fetchrow(query, east.trade_id)) == (3_600_000_000, 500_000, "hourly", True)
    assert tuple(await desk.conn.fetchrow(query, middle.trade_id)) == (None, None, "catalogue", False)


async def test_explain_tells_a_fills_whole_chain(desk: Desk) -> None:
    east, middle, _ = three_fills(desk.exchange)
    desk.write("site-1/slurm-a.txt", job(east, 1800))
    desk.write("site-1/slurm-b.txt", job(east, 3600) + job(middle))
    desk.write(f"site-1/dcgm-{FIRST_HOUR * 3600}.prom", energy(east, 5))
    await desk.ingest()
    await desk.settle()
    chain = await explain(desk.conn, SMALL_VENUE, east.trade_id)
    assert (chain["fill"]["trade_id"], chain["fill"]["contracted_gpu_ms"]) == (east.trade_id, 7_200_000)
    assert [(r["name"], r["counts"]) for r in chain["readings"]] == [
        (f"site-1/dcgm-{FIRST_HOUR * 3600}.prom", None),
        ("site-1/slurm-a.txt", False),
        ("site-1/slurm-b.txt", True),
    ]
    assert [r["verdict"] for r in chain["reconciliations"]] == ["delivered"]
    assert [p["payment_micros"] for p in chain["postings"]] == [20_000_000]
    assert [t["amount_micros"] for t in chain["transfers"]] == [20_000_000, east.bond_micros]
    assert all(r["announced"] == chain["readings"][0]["announced"] for r in chain["readings"])
    assert json.dumps(chain, default=bytes.hex)
    with pytest.raises(RunError, match="trade 999: a fill of the ledger is wanted"):
        await explain(desk.conn, SMALL_VENUE, 999)


@pytest.mark.parametrize("seed", range(6))
async def test_readings_in_any_order_with_runs_in_between_end_in_the_same_balances(
    desk: Desk, seed: int
) -> None:
    draw = random.Random(seed)
    east, middle, west = three_fills(desk.exchange)
    texts = [job(east, seconds) for seconds in (600, 1800, 3600)]
    texts += [job(middle, seconds) for seconds in (300, 1800)]
    files = [(f"site-{1 + (n > 2)}/slurm-{n}.txt", text) for n, text in enumerate(texts)]
    draw.shuffle(files)
    for name, text in files:
        desk.write(name, text)
        await desk.ingest()
        if draw.random() < 0.7:
            await desk.settle(draw.choice(["initial", "final", "correction"]))
            await desk.check()
    await desk.settle("final")
    await desk.check()
    assert [await desk.settled(trade) for trade in (east, middle, west)] == [
        (20_000_000, 0, 0, 2_000_000),
        (5_500_000, 5_500_000, 1_100_000, 0),
        (0, 12_000_000, 1_200_000, 0),
    ]
    assert (await desk.settle("correction")).postings == 0


async def test_every_shortfall_that_played_meters_hide_is_found_and_nothing_else(desk: Desk) -> None:
    """The meters are the simulation's own; it keeps its list apart and knows nothing of settlement."""
    hours = range(60)
    trades = desk.exchange.trade(
        *(
            command
            for hour in hours
            for site in (EAST, MIDDLE, WEST)
            for number in [10 * hour + 2 * site]
            for command in (
                ask(number, site, 8, 1000, delivery_hour=FIRST_HOUR + hour),
                bid(number + 1, 1, 1000, delivery_hour=FIRST_HOUR + hour),
                bid(number + 600, 7, 1000, delivery_hour=FIRST_HOUR + hour, account=OTHER_BUYER),
            )
        )
    )
    assert {trade.site for trade in trades} == {EAST, MIDDLE, WEST}
    desk.exchange.time_ns = (FIRST_HOUR + len(hours) + 1) * HOUR_NS
    schedule = [
        Delivery(
            trade_id=trade.trade_id,
            site=trade.site,
            class_code=trade.class_code,
            delivery_hour=trade.delivery_hour,
            gpu_eighths=8 * trade.lots,
            tdp_w=700,
        )
        for trade in trades
    ]
    secret = desk.folder.with_name("secret.json")
    write_meters(schedule, desk.folder, secret, seed=3)
    await desk.ingest()
    initial = await desk.settle("initial", before=len(hours))
    for late in (desk.folder / "late").rglob("*.*"):
        target = desk.folder / late.relative_to(desk.folder / "late")
        target.parent.mkdir(exist_ok=True)
        late.rename(target)
    assert (await desk.ingest()).files > 0
    final = await desk.settle("final", before=len(hours))
    assert (initial.fills, final.fills) == (len(trades), len(trades))
    found = await desk.conn.fetch(
        "SELECT trade_id FROM (SELECT DISTINCT ON (trade_id) trade_id, verdict FROM cux.reconciliations "
        "ORDER BY trade_id, run DESC) AS last WHERE verdict IN ('short', 'missing')"
    )
    hidden = {short["trade_id"] for short in json.loads(secret.read_bytes())["shortfalls"]}
    assert {row["trade_id"] for row in found} == hidden
    assert await desk.fetchval("SELECT count(*) FROM cux.reconciliations WHERE energy_mj > 0") > 0
    assert await desk.fetchval("SELECT count(*) FROM cux.quarantine") == 0
    await desk.check()
