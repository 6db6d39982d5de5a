"""Exports of real logs: what was written verifies, and nothing else does."""

import csv
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from exchange.calls import price_of
from exchange.clearing import clear
from exchange.contract import HOUR_NS, symbol
from exchange.engine import Engine
from exchange.log import FileLog, read_records
from exchange.quantity import micros_of
from schemas.authority import signed
from schemas.codec import decode_command, decode_event, encode
from schemas.commands import (
    AnyCommand,
    CancelOrder,
    CancelStandingOffer,
    CertifySite,
    Deposit,
    DerateSite,
    EndCall,
    EnterOrder,
    EnterStandingOffer,
    HaltContract,
    MassCancel,
    OpenEra,
    OrderType,
    PostSettlement,
    ProposeClearing,
    ReceiveReadings,
    RegisterAccount,
    ReinstateAccount,
    ReplaceOrder,
    Requirement,
    ResumeContract,
    SelfTrade,
    Side,
    StartSettlementRun,
    SuspendAccount,
    Tick,
    TimeInForce,
)
from schemas.events import (
    AnyEvent,
    BlockTraded,
    EndReason,
    OrderAccepted,
    OrderEnded,
    OrderListed,
    Rejected,
    SettlementPosted,
    Traded,
)
from schemas.records import Record, entry_of
from settlement.audit.export import ExportError, ExportReport, export
from settlement.audit.manifest import MANIFEST, ListedFile, parse_manifest
from settlement.audit.note import Checkpoint, parse, sign, verifier_key
from settlement.audit.tables import COLUMNS, Tables
from settlement.audit.tree import Tree
from settlement.audit.verify import main
from tests.market import FIRST_HOUR, START_NS, open_era
from tests.small_venue import SMALL_VENUE

VENUE_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OPERATOR = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
ORIGIN = "test.example/small"
VKEY = str(verifier_key(ORIGIN, VENUE_KEY))
REPOSITORY = Path(__file__).parent.parent
SEED = 7
SECOND_NS = 1_000_000_000
Act = (
    RegisterAccount
    | Deposit
    | CertifySite
    | DerateSite
    | HaltContract
    | ResumeContract
    | SuspendAccount
    | ReinstateAccount
    | ReceiveReadings
    | StartSettlementRun
)
Sign = Callable[[Act], Act]


def sign_act(command: Act) -> Act:
    return signed(command, OPERATOR, START_NS, "as agreed, by contract")


class Script:
    """Applies commands to an engine and keeps the records, as the sequencer would."""

    def __init__(self) -> None:
        self.engine = Engine()
        self.time_ns = START_NS
        self.records: list[Record] = []
        self.events: list[AnyEvent] = []

    def do(self, command: AnyCommand) -> list[AnyEvent]:
        due = self.engine.next_due_ns()
        if due is not None and due <= self.time_ns and not isinstance(command, Tick):
            self._apply(Tick())
        events = self._apply(command)
        while chores := self.engine.chores():
            for chore in chores:
                self._apply(chore)
        return events

    def _apply(self, command: AnyCommand) -> list[AnyEvent]:
        events = self.engine.apply(self.time_ns, command)
        sequence = len(self.records) + 1
        salt = hashlib.sha256(sequence.to_bytes(8, "big")).digest()[:16]
        raw = tuple(msgspec.Raw(encode(event)) for event in events)
        self.records.append(Record(sequence, self.time_ns, salt, msgspec.Raw(encode(command)), raw))
        self.events += events
        return events


def a_market(orders: int, sign_operator: Sign = sign_act) -> Script:
    """A day with orders of every kind, refusals, cancels, expiries, gates, a call, a settlement run."""
    rng = random.Random(SEED)
    script = Script()
    collar = replace(SMALL_VENUE.limits, collar_permille=900)
    script.do(
        open_era(
            venue=replace(SMALL_VENUE, limits=collar),
            venue_key=VENUE_KEY.public_key().public_bytes_raw(),
            operator_keys=(OPERATOR.public_key().public_bytes_raw(),),
        )
    )
    for account in range(1, 7):
        script.do(sign_operator(RegisterAccount(account, account)))
        script.do(sign_operator(Deposit(account, 10**13)))
    places = (("east", "D", "S2"), ("middle", "C", "S3"), ("west", "B", "S1"))
    for site, (zone, carbon, security) in enumerate(places, 1):
        script.do(
            sign_operator(
                CertifySite(
                    site, site, zone, "H100-SXM", 40 + orders // 4, carbon, security, 0, FIRST_HOUR + 100
                )
            )
        )
    for number in range(orders):
        script.time_ns += rng.randrange(10 * SECOND_NS)
        script.do(an_order(rng, number, script.time_ns))
        if number % 9 == 0:
            script.do(CancelOrder(rng.randrange(1, 7), order_id=rng.randrange(1, number + 2)))
    every_act(script, sign_operator)
    # An order outside the calendar, and one of a class that somebody made up.
    script.do(replace(an_order(rng, orders, script.time_ns), delivery_hour=2**62))
    script.do(replace(an_order(rng, orders, script.time_ns), class_code='=cmd|"', lots=2**63 - 1))
    script.time_ns = (FIRST_HOUR + 30) * HOUR_NS
    script.do(Tick())
    settle(script, sign_operator)
    return script


def quiet_ask(script: Script, name: str, hour: int, lots: int, price: int, **terms: Any) -> EnterOrder:
    """An ask of the eastern site in an hour that nobody else trades."""
    fields: dict[str, Any] = {
        "account": 1,
        "client_order_id": name,
        "valid_until_ns": script.time_ns + 60 * SECOND_NS,
        "side": Side.SELL,
        "class_code": "H100-SXM",
        "delivery_hour": FIRST_HOUR + hour,
        "lots": lots,
        "price_ticks": price,
        "site": 1,
        "carbon": "D",
    }
    return EnterOrder(**{**fields, **terms})


def quiet_bid(script: Script, name: str, hour: int, lots: int, price: int, **terms: Any) -> EnterOrder:
    bid = {"account": 4, "side": Side.BUY, "site": 0, "carbon": None, "requirement": ANYWHERE}
    return quiet_ask(script, name, hour, lots, price, **{**bid, **terms})


ANYWHERE = Requirement("east", "L4", "E", "S1")


def every_act(script: Script, sign_operator: Sign) -> None:
    """What the random orders leave out, one after the other; everything but the last is accepted."""

    def do(command: AnyCommand) -> list[AnyEvent]:
        events = script.do(command)
        assert not isinstance(events[0], Rejected), (command, events)
        return events

    def ask(name: str, hour: int, lots: int, price: int, **terms: Any) -> list[AnyEvent]:
        return do(quiet_ask(script, name, hour, lots, price, **terms))

    def bid(name: str, hour: int, lots: int, price: int, **terms: Any) -> list[AnyEvent]:
        return do(quiet_bid(script, name, hour, lots, price, **terms))

    def replace_order(name: str, lots: int, price: int) -> None:
        do(
            ReplaceOrder(
                account=1,
                client_order_id=name,
                valid_until_ns=script.time_ns + 60 * SECOND_NS,
                lots=lots,
                price_ticks=price,
            )
        )

    ask("iceberg", 16, 10, 1000, display_lots=3)
    bid("least", 16, 4, 1000, min_lots=2)
    replace_order("iceberg", 8, 1000)
    replace_order("iceberg", 9, 1010)
    bid("market", 16, 1, 0, order_type=OrderType.MARKET, time_in_force=TimeInForce.IOC)
    _, traded = bid("all", 16, 2, 1010, time_in_force=TimeInForce.FOK)
    ask("passive", 16, 1, 1100, post_only=True)
    assert isinstance(traded, Traded)
    again = {"account": 4, "site": 0, "position": traded.trade_id}
    ask("again", 16, 1, 1005, **again)
    bid("taken again", 16, 2, 1010, account=5, time_in_force=TimeInForce.IOC)
    replace_order("iceberg", 5, 1010)

    ask("mine", 17, 1, 1000)
    bid("mine too", 17, 2, 1000, account=1, self_trade=SelfTrade.CANCEL_BOTH)

    bid("either", 17, 2, 1200, exclusive_group="=g")
    bid("or", 18, 2, 1200, exclusive_group="=g")
    ask("one of two", 18, 1, 1200)
    ask("the other", 17, 1, 1200)

    ask("run", 19, 4, 900, hours=4, min_hours=2)
    bid("within", 19, 2, 1000, hours=2)
    derated = DerateSite(1, FIRST_HOUR + 19, FIRST_HOUR + 23, 3)
    do(sign_operator(derated))

    do(
        EnterStandingOffer(
            account=2,
            name="=nightly",
            valid_until_ns=script.time_ns + 60 * SECOND_NS,
            side=Side.SELL,
            class_code="H100-SXM",
            from_hour=FIRST_HOUR + 24,
            until_hour=FIRST_HOUR + 27,
            lots=1,
            price_curve=(1300,),
            site=2,
            carbon="D",
        )
    )
    do(CancelStandingOffer(2, 1))

    do(sign_operator(HaltContract("H100-SXM", FIRST_HOUR + 28)))
    do(sign_operator(ResumeContract("H100-SXM", FIRST_HOUR + 28)))
    ask("called", 28, 3, 1000)
    bid("calling", 28, 2, 1100, time_in_force=TimeInForce.AUCTION)
    bid("calling too", 28, 2, 1000, account=5, time_in_force=TimeInForce.AUCTION)
    bid("too low", 28, 2, 990, time_in_force=TimeInForce.AUCTION)
    script.time_ns += 70 * SECOND_NS
    do(EndCall("H100-SXM", FIRST_HOUR + 28))
    fills, cells = clear(script.engine.call_book("H100-SXM", FIRST_HOUR + 28))
    prices = tuple(price_of(script.engine.market, cell) for cell in cells)
    do(ProposeClearing("H100-SXM", FIRST_HOUR + 28, fills, prices))

    do(sign_operator(SuspendAccount(6)))
    do(sign_operator(ReinstateAccount(6)))
    do(MassCancel(1, delivery_hour=FIRST_HOUR + 16))
    halt = sign_operator(HaltContract("=cmd", FIRST_HOUR))
    assert isinstance(script.do(halt)[0], Rejected)


def an_order(rng: random.Random, number: int, time_ns: int) -> EnterOrder:
    bid = rng.random() < 0.5
    seller = rng.randrange(1, 4)
    expires = rng.random() < 0.1
    requirement = Requirement(
        rng.choice(("east", "middle", "west")), rng.choice(("L2", "L3", "L4")), "D", rng.choice(("S2", "S1"))
    )
    return EnterOrder(
        account=rng.randrange(4, 7) if bid else seller,
        client_order_id=f"o{number}",
        valid_until_ns=time_ns + 60 * SECOND_NS,
        side=Side.BUY if bid else Side.SELL,
        class_code="H100-SXM",
        delivery_hour=FIRST_HOUR + rng.randrange(12),
        hours=rng.randrange(2, 5) if bid and rng.random() < 0.2 else 1,
        lots=rng.randrange(1, 5),
        price_ticks=rng.randrange(900, 1500),
        time_in_force=TimeInForce.GTD
        if expires
        else rng.choice((TimeInForce.GTC, TimeInForce.GTC, TimeInForce.IOC)),
        expire_ns=time_ns + 300 * SECOND_NS if expires else 0,
        requirement=requirement if bid else None,
        site=0 if bid else seller,
        carbon=None if bid else "D",
    )


def trades_of(events: list[AnyEvent]) -> list[Traded]:
    found = []
    for event in events:
        if isinstance(event, Traded):
            found.append(event)
        elif isinstance(event, BlockTraded):
            found += event.legs
    return found


def settle(script: Script, sign_operator: Sign) -> None:
    script.do(sign_operator(ReceiveReadings(1, "meters", FIRST_HOUR, FIRST_HOUR + 12, 0, bytes(32))))
    postings = [
        PostSettlement(
            run=1,
            trade_id=trade.trade_id,
            verdict="delivered",
            delivered_gpu_ms=3_600_000 * trade.lots,
            payment_micros=trade.notional_micros,
            refund_micros=0,
            penalty_micros=0,
            bond_release_micros=trade.bond_micros,
        )
        for trade in trades_of(script.events)
    ]
    digest = hashlib.sha256(b"".join(map(encode, postings))).digest()
    script.do(
        sign_operator(
            StartSettlementRun(1, "initial", len(script.records), 1, len(postings), digest),
        )
    )
    # Several are under way at once: they need not arrive in their order.
    for posting in reversed(postings):
        script.do(posting)
    for posting in postings[:1]:
        script.do(posting)


def export_of(records: list[Record], folder: Path, key: Ed25519PrivateKey = VENUE_KEY) -> Path:
    """Write the records to a log and export it."""
    log = FileLog(folder / "log")
    log.append(records)
    log.close()
    export(folder / "log", folder / "export", key, ORIGIN)
    return folder / "export"


@dataclass
class Market:
    """One market's records and its export, shared by the tests that change copies of it."""

    records: list[Record]
    events: list[AnyEvent]
    folder: Path
    log: Path
    report: ExportReport


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Market:
    script = a_market(400)
    folder = tmp_path_factory.mktemp("market")
    log = FileLog(folder / "log")
    for start in range(0, len(script.records), 100):
        log.append(script.records[start : start + 100])
    log.close()
    report = export(folder / "log", folder / "export", VENUE_KEY, ORIGIN)
    return Market(script.records, script.events, folder / "export", folder / "log", report)


@pytest.fixture
def copy(market: Market, tmp_path: Path) -> Path:
    return Path(shutil.copytree(market.folder, tmp_path / "copy"))


def verdict(capsys: pytest.CaptureFixture[str], folder: Path, *options: str) -> tuple[int | None, str]:
    """Run the verifier and return its exit code and what it said last."""
    code = main([str(folder), "--vkey", VKEY, *options])
    return code, capsys.readouterr().out.splitlines()[-1]


def forge(folder: Path, records: list[Record]) -> None:
    """Put other records in an export, with a tree, a checkpoint and a manifest that fit: all signed."""
    shutil.rmtree(folder / "tile")

    def write(path: str, data: bytes) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)

    tree = Tree(write)
    for record in records:
        tree.append(entry_of(record))
    tree.finish()
    write("checkpoint", sign(Checkpoint(ORIGIN, tree.size, tree.root()).text(), ORIGIN, VENUE_KEY))
    write("records/000000.msgpack", msgspec.msgpack.encode(records))
    resign(folder, records=len(records))


def resign(folder: Path, key: Ed25519PrivateKey = VENUE_KEY, **fields: Any) -> None:
    """List the files as they are now and sign the manifest: what only the venue itself could do."""
    manifest = parse_manifest(parse((folder / MANIFEST).read_bytes()).text)
    files = {
        path.relative_to(folder).as_posix(): ListedFile(
            hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size
        )
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }
    (folder / MANIFEST).write_bytes(sign(manifest._replace(files=files, **fields).text(), ORIGIN, key))


def altered(record: Record, **changes: object) -> Record:
    """Change the first event of a record that has such a field, or else its command."""
    events = list(record.events)
    for index, raw in enumerate(events):
        event = decode_event(bytes(raw))
        if all(hasattr(event, name) for name in changes):
            events[index] = msgspec.Raw(encode(replace(event, **changes)))
            return Record(record.sequence, record.time_ns, record.salt, record.command, tuple(events))
    command = msgspec.Raw(encode(replace(decode_command(bytes(record.command)), **changes)))
    return Record(record.sequence, record.time_ns, record.salt, command, record.events)


def first(records: list[Record], wanted: type) -> int:
    """Return the index of the first record with such a command or event."""
    for index, record in enumerate(records):
        parts = [decode_command(bytes(record.command)), *(decode_event(bytes(e)) for e in record.events)]
        if any(isinstance(part, wanted) for part in parts):
            return index
    raise AssertionError(wanted)


def rows(folder: Path, table: str) -> list[dict[str, str]]:
    with (folder / f"tables/{table}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# -- what is so verifies -----------------------------------------------------------------------------


def test_an_export_verifies_and_says_what_was_checked(
    market: Market, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(market.folder), "--vkey", market.report.vkey]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "manifest",
        "files",
        "checkpoint",
        "tree",
        "records",
        "operators",
        "settlement",
        "re-execution",
        "tables",
        "VERIFIED:",
    ]
    assert "1 runs posted what they announced" in lines[6]
    assert lines[-1] == f"VERIFIED: {ORIGIN}, {len(market.records)} entries"


def test_the_verdict_is_one_json_object_on_request(
    market: Market, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(market.folder), "--vkey", VKEY, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verified"] is True
    assert (found["entries"], found["root"]) == (len(market.records), market.report.root)


def test_an_export_is_also_a_tlog_tiles_log(market: Market) -> None:
    assert main(["tree", str(market.folder), "--vkey", VKEY]) == 0


def test_the_same_log_gives_the_same_export_byte_for_byte(market: Market, tmp_path: Path) -> None:
    export(market.log, tmp_path / "again", VENUE_KEY, ORIGIN)
    for path in market.folder.rglob("*"):
        if path.is_file():
            assert (tmp_path / "again" / path.relative_to(market.folder)).read_bytes() == path.read_bytes()


def test_the_report_counts_what_stands_in_the_folder(market: Market) -> None:
    sizes = [path.stat().st_size for path in market.folder.rglob("*") if path.is_file()]
    assert (market.report.files, market.report.size_bytes) == (len(sizes), sum(sizes))


def test_a_later_export_continues_an_earlier_one(
    market: Market, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(market.log, tmp_path / "early", VENUE_KEY, ORIGIN, last=300)
    assert verdict(capsys, tmp_path / "early")[0] == 0
    previous = ("--previous", str(tmp_path / "early/checkpoint"))
    assert verdict(capsys, market.folder, *previous)[0] == 0
    # And the other way round it is a rollback.
    previous = ("--previous", str(market.folder / "checkpoint"))
    code, said = verdict(capsys, tmp_path / "early", *previous)
    assert (code, said.startswith("REFUSED: history")) == (1, True)


def test_exports_of_several_record_files_verify(
    market: Market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("manifest", "export", "verify"):
        monkeypatch.setattr(f"settlement.audit.{module}.RECORDS_PER_FILE", 100)
    export(market.log, tmp_path / "chunked", VENUE_KEY, ORIGIN)
    assert len(list((tmp_path / "chunked/records").iterdir())) == -(-len(market.records) // 100)
    assert verdict(capsys, tmp_path / "chunked")[0] == 0


def test_a_second_era_of_the_same_engine_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = a_market(20)
    state = script.engine.state_hash()
    era = decode_command(bytes(script.records[0].command))
    assert isinstance(era, OpenEra)
    script.do(replace(era, state_before=state, state_after=state))
    script.do(sign_act(Deposit(1, 5)))
    assert verdict(capsys, export_of(script.records, tmp_path))[0] == 0


# -- tables ------------------------------------------------------------------------------------------


def test_every_order_is_told_from_its_entry_to_its_end(market: Market) -> None:
    lives: dict[str, list[dict[str, str]]] = {}
    for row in rows(market.folder, "orders"):
        lives.setdefault(row["order_id"], []).append(row)
    accepted = [event for event in market.events if isinstance(event, OrderAccepted | OrderListed)]
    assert len(accepted) == sum(1 for life in lives.values() if life[0]["event"] == "NEWO")
    ends = set()
    for life in lives.values():
        if life[0]["event"] == "REMO":
            assert len(life) == 1
            assert life[0]["reason"]
            continue
        assert life[0]["initial_quantity"] == life[0]["remaining_quantity"]
        for before, row in pairwise(life):
            left, traded = int(before["remaining_quantity"]), int(row["traded_quantity"] or 0)
            match row["event"]:
                case "PARF" | "FILL":
                    assert int(row["remaining_quantity"]) == left - traded
                case "REMA" | "REMH":
                    assert 0 < int(row["remaining_quantity"]) < left
            assert int(row["displayed_quantity"] or 0) <= int(row["remaining_quantity"])
            assert row["initial_quantity"] == before["initial_quantity"] or row["event"] == "REME"
        assert life[-1]["remaining_quantity"] == "0"
        assert {row["event"] for row in life[1:-1]} <= {"PARF", "REME", "REMA", "REMH"}
        ends.add(life[-1]["event"])
    assert ends == {"FILL", "CAME", "CAMO", "EXPI"}


def life_of(market: Market, name: str) -> list[dict[str, str]]:
    """Return the rows of the order with this client's id, or listed by the offer of this name."""
    for record in market.records:
        command = decode_command(bytes(record.command))
        for raw in record.events:
            event = decode_event(bytes(raw))
            order = event.order if isinstance(event, OrderListed) else command
            if (
                isinstance(event, OrderAccepted | OrderListed)
                and isinstance(order, EnterOrder)
                and order.client_order_id == name
            ):
                number = str(event.order_id)
                return [row for row in rows(market.folder, "orders") if row["order_id"] == number]
    raise AssertionError(name)


def told(market: Market, name: str, *columns: str) -> list[tuple[str, ...]]:
    return [tuple(row[column] for column in columns) for row in life_of(market, name)]


def test_an_iceberg_is_told_with_what_it_shows_and_at_which_price(market: Market) -> None:
    life = told(
        market,
        "iceberg",
        "event",
        "limit_price",
        "initial_quantity",
        "remaining_quantity",
        "displayed_quantity",
    )
    assert life == [
        ("NEWO", "10", "10", "10", "3"),
        ("PARF", "10", "10", "7", "3"),
        ("PARF", "10", "10", "6", "2"),
        ("REME", "10", "8", "4", "2"),
        ("REME", "10.1", "9", "5", "3"),
        ("PARF", "10.1", "9", "4", "2"),
        ("PARF", "10.1", "9", "2", "2"),
        ("PARF", "10.1", "9", "1", "1"),
        ("CAME", "10.1", "9", "0", ""),
    ]
    assert life_of(market, "iceberg")[-1]["reason"] == "replaced"


def test_the_terms_of_an_order_are_told(market: Market) -> None:
    def terms(name: str) -> dict[str, str]:
        return life_of(market, name)[0]

    assert terms("iceberg")["order_type"] == "iceberg"
    assert terms("least")["minimum_quantity"] == "2"
    assert (terms("market")["order_type"], terms("market")["limit_price"]) == ("market", "")
    assert terms("all")["validity"] == "FOKV"
    assert (terms("passive")["passive_only"], terms("all")["passive_only"]) == ("true", "false")
    assert terms("mine too")["self_trade"] == "cancel_both"
    assert (terms("run")["order_type"], terms("within")["order_type"]) == ("run", "block")
    assert terms("calling")["validity"] == "CALL"


def test_alternatives_are_linked_to_the_first_of_them_and_cut_by_the_rules(market: Market) -> None:
    first = life_of(market, "either")[0]["order_id"]
    assert told(market, "or", "linked_order_id")[0] == (first,)
    assert told(market, "either", "event", "reason", "linked_order_id") == [
        ("NEWO", "", first),
        ("REMA", "group", first),
        ("FILL", "", first),
    ]
    assert told(market, "or", "event", "reason")[1:] == [("PARF", ""), ("CAMO", "group")]
    assert "=g" not in (market.folder / "tables/orders.csv").read_text()


def test_a_run_is_told_in_gpu_hours_and_a_derating_is_a_human_act(market: Market) -> None:
    life = told(market, "run", "event", "reason", "initial_quantity", "remaining_quantity")
    assert life[:3] == [("NEWO", "", "16", "16"), ("PARF", "", "16", "14"), ("PARF", "", "16", "12")]
    assert life[3][:2] == ("REMH", "capacity")
    assert {row[:2] for row in life[4:-1]} <= {("REMA", "gate"), ("REMH", "capacity")}
    assert life[-1] == ("EXPI", "gate", "16", "0")


def test_what_a_standing_offer_lists_is_told_under_its_number(market: Market) -> None:
    life = told(market, "=nightly", "event", "reason", "standing_offer", "account")
    assert life == [("NEWO", "", "1", "2"), ("CAME", "withdrawn", "1", "2")]
    assert "=nightly" not in (market.folder / "tables/orders.csv").read_text()


def test_a_resale_names_its_position_in_orders_trades_and_deliveries(market: Market) -> None:
    (bought,) = [row["transaction_id"] for row in life_of(market, "all") if row["event"] == "FILL"]
    assert {(row["position"], row["site"]) for row in life_of(market, "again")} == {(bought, "1")}
    for table in ("trades", "deliveries"):
        (resale,) = [row for row in rows(market.folder, table) if row["position"]]
        assert (resale["position"], resale["seller"], resale["buyer"]) == (bought, "4", "5")


def test_a_call_is_told_with_its_phases_and_prices_and_nobody_takes_in_it(market: Market) -> None:
    contract = life_of(market, "called")[0]["order_book"]
    phases = [row["phase"] for row in rows(market.folder, "phases") if row["order_book"] == contract]
    assert phases == ["halted", "call", "clearing", "continuous", "closed"]
    (call,) = rows(market.folder, "calls")
    assert (call["order_book"], call["zone"]) == (contract, "east")
    trades = [row for row in rows(market.folder, "trades") if row["order_book"] == contract]
    assert {(row["price"], row["taker"]) for row in trades} == {(call["price"], "")}
    assert told(market, "called", "event", "passive_or_aggressive")[1:] == [("PARF", ""), ("FILL", "")]
    assert told(market, "too low", "event", "reason")[-1] == ("EXPI", "call_ended")


@pytest.mark.parametrize("reason", EndReason)
@pytest.mark.parametrize("force", TimeInForce)
def test_every_end_and_every_validity_has_its_word(reason: EndReason, force: TimeInForce) -> None:
    sinks = {name: StringIO() for name in COLUMNS}
    tables = Tables(dict(sinks))
    tables.add(1, START_NS, open_era(), [])
    script = Script()
    order = replace(quiet_bid(script, "any", 1, 2, 1000), time_in_force=force)
    ended = OrderEnded(1, 4, 2, 0, reason)
    tables.add(2, START_NS, order, [OrderAccepted(1, 0), ended])
    entry, end = csv.DictReader(StringIO(sinks["orders"].getvalue()))
    assert len(entry["validity"]) == 4
    assert (end["event"] in ("CAME", "CAMO", "EXPI"), end["reason"]) == (True, reason)


def test_trades_deliveries_and_settlements_are_those_of_the_log(market: Market) -> None:
    trades = trades_of(market.events)
    assert any(trade.block for trade in trades)
    found = rows(market.folder, "trades")
    assert [int(row["transaction_id"]) for row in found] == [trade.trade_id for trade in trades]
    assert sum(micros_of(row["notional"]) for row in found) == sum(t.notional_micros for t in trades)
    assert len(rows(market.folder, "deliveries")) == len(trades)
    settled = rows(market.folder, "settlements")
    assert len(settled) == sum(isinstance(event, SettlementPosted) for event in market.events) == len(trades)
    assert {row["verdict"] for row in settled} == {"delivered"}


def test_times_are_written_to_the_nanosecond_and_hours_as_times(market: Market) -> None:
    row = rows(market.folder, "sites")[0]
    assert row["event_time"] == "2026-10-23T14:00:00.000000000Z"
    assert row["valid_from"] == "1970-01-01T00:00:00.000000000Z"
    assert (row["zone"], row["capacity_gpus"]) == ("east", "140")


def test_what_a_refused_order_made_up_does_not_enter_the_tables(market: Market) -> None:
    assert "=cmd" not in (market.folder / "tables/orders.csv").read_text()


def test_operators_acts_are_told_with_who_and_why(market: Market) -> None:
    acts = rows(market.folder, "operators")
    assert acts[1]["act"] == "deposit"
    assert (acts[1]["amount"], acts[1]["outcome"]) == ("10000000", "done")
    assert acts[1]["operator_key"] == OPERATOR.public_key().public_bytes_raw().hex()
    assert acts[1]["reason"] == "as agreed, by contract"
    subjects = {row["act"]: row["subject"] or row["account"] for row in acts if row["outcome"] == "done"}
    assert subjects["derate_site"].startswith("site 1 to 3 lots from 2026-")
    assert subjects["halt_contract"] == subjects["resume_contract"] == symbol("H100-SXM", FIRST_HOUR + 28)
    assert subjects["suspend_account"] == subjects["reinstate_account"] == "6"
    assert [row["subject"] for row in acts if row["outcome"] != "done"] == [""]


# -- what is not so is refused -------------------------------------------------------------------------


def test_every_changed_byte_of_an_export_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(SEED)
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    for trial in range(400):
        path = files[trial % len(files)]
        data = path.read_bytes()
        at, change = rng.randrange(len(data)), rng.randrange(1, 256)
        path.write_bytes(data[:at] + bytes([data[at] ^ change]) + data[at + 1 :])
        name = path.relative_to(copy).as_posix()
        where = f"seed {SEED}, trial {trial}: {name} at byte {at} by {change}"
        code, said = verdict(capsys, copy)
        assert code == 1, where
        assert name in said, f"{where}: {said}"
        path.write_bytes(data)
    assert verdict(capsys, copy)[0] == 0


@pytest.mark.parametrize("change", ["cut", "extend", "empty", "remove", "link"])
def test_a_file_cut_extended_emptied_missing_or_linked_is_refused(
    change: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted(path for path in copy.rglob("*") if path.is_file()):
        data = path.read_bytes()
        path.unlink()
        if change == "link":
            aside = copy.parent / "aside"
            aside.write_bytes(data)
            path.symlink_to(aside)
        elif change != "remove":
            path.write_bytes({"cut": data[:-1], "extend": data + b"\n", "empty": b""}[change])
        code, said = verdict(capsys, copy)
        assert (code, path.relative_to(copy).as_posix() in said) == (1, True), said
        path.unlink(missing_ok=True)
        path.write_bytes(data)


def test_an_unlisted_file_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "tables/more.csv").write_text("a,b\n")
    assert verdict(capsys, copy) == (1, "REFUSED: files: tables/more.csv is not listed in the manifest")
    # Nor does a signature make it a part of an export.
    resign(copy)
    assert verdict(capsys, copy) == (1, "REFUSED: files: tables/more.csv is no part of an export")


def test_an_export_signed_by_another_key_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resign(copy, Ed25519PrivateKey.generate())
    code, said = verdict(capsys, copy)
    assert (code, said.startswith("REFUSED: manifest: signed by")) == (1, True)


def test_a_whole_export_by_another_venue_of_the_same_name_is_refused(
    market: Market, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger = Ed25519PrivateKey.generate()
    era = decode_command(bytes(market.records[0].command))
    assert isinstance(era, OpenEra)
    theirs = altered(market.records[0], venue_key=stranger.public_key().public_bytes_raw())
    folder = export_of([theirs, *market.records[1:]], tmp_path, stranger)
    assert main([str(folder), "--vkey", str(verifier_key(ORIGIN, stranger))]) == 0
    capsys.readouterr()
    assert verdict(capsys, folder)[0] == 1


def test_a_manifest_is_no_checkpoint_and_a_checkpoint_no_manifest(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "checkpoint").write_bytes((copy / MANIFEST).read_bytes())
    assert main(["tree", str(copy), "--vkey", VKEY]) == 1
    assert "size" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wanted", "changes", "said"),
    [
        (Traded, {"price_ticks": 1}, "price_ticks"),
        (Traded, {"buyer": 99}, "buyer"),
        (OrderAccepted, {"reserved_micros": 1}, "reserved_micros"),
        (OrderEnded, {"reason": EndReason.EVICTED}, "evicted"),
        (SettlementPosted, {"payment_micros": 1}, "payment_micros"),
    ],
)
def test_an_altered_history_signed_anew_is_refused_at_its_record(
    wanted: type,
    changes: dict[str, object],
    said: str,
    market: Market,
    copy: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    records = list(market.records)
    at = first(records, wanted)
    records[at] = altered(records[at], **changes)
    forge(copy, records)
    code, last = verdict(capsys, copy)
    assert (code, last.startswith(f"REFUSED: re-execution: record {at + 1}, event ")) == (1, True), last
    assert said in last
    assert "found" in last
    assert "expected" in last


def test_an_event_left_out_or_added_is_refused_at_its_record(
    market: Market, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = first(market.records, Traded)
    record = market.records[at]
    for events in (record.events[:-1], (*record.events, record.events[-1])):
        records = list(market.records)
        records[at] = Record(record.sequence, record.time_ns, record.salt, record.command, events)
        forge(copy, records)
        code, last = verdict(capsys, copy)
        assert (code, f"record {at + 1}, event" in last, "none" in last) == (1, True, True), last


def test_a_record_left_out_with_the_rest_renumbered_is_refused(
    market: Market, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = first(market.records, OrderAccepted)
    rest = [Record(r.sequence - 1, r.time_ns, r.salt, r.command, r.events) for r in market.records[at + 1 :]]
    forge(copy, [*market.records[:at], *rest])
    code, last = verdict(capsys, copy)
    assert (code, last.startswith("REFUSED: re-execution: record ")) == (1, True)


def test_records_exchanged_under_a_signed_manifest_are_refused_by_the_tree(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / "records/000000.msgpack"
    records = msgspec.msgpack.decode(path.read_bytes(), type=list[Record])
    record = records[49]
    records[49] = Record(record.sequence, record.time_ns, bytes(16), record.command, record.events)
    path.write_bytes(msgspec.msgpack.encode(records))
    resign(copy)
    code, last = verdict(capsys, copy)
    assert (code, last.startswith("REFUSED: records: record 50: its parts give the entry")) == (1, True)
    path.write_bytes(msgspec.msgpack.encode([*records[:49], *records[50:], records[49]]))
    resign(copy)
    assert verdict(capsys, copy) == (1, "REFUSED: records: record 51 found where 50 is due")
    path.write_bytes(msgspec.msgpack.encode(records[:-1]))
    resign(copy)
    assert "records found" in verdict(capsys, copy)[1]


def test_time_that_runs_backwards_is_refused(
    market: Market, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = list(market.records)
    r = records[60]
    records[60] = Record(r.sequence, START_NS - 1, r.salt, r.command, r.events)
    forge(copy, records)
    code, last = verdict(capsys, copy)
    assert (code, last.startswith(f"REFUSED: records: record 61: time {START_NS - 1} found")) == (1, True)


def test_a_table_that_says_something_else_is_refused_at_its_line(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / "tables/trades.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:5], lines[5].replace("BUYI", "SELL").replace("CNY", "EUR"), *lines[6:]]))
    resign(copy)
    assert verdict(capsys, copy)[1].startswith("REFUSED: tables: tables/trades.csv, line 6: found")
    path.write_text("".join([*lines, lines[-1]]))
    resign(copy)
    assert "expected the end" in verdict(capsys, copy)[1]
    path.write_text("".join(lines[:-1]))
    resign(copy)
    assert f"line {len(lines)}: found b''" in verdict(capsys, copy)[1]
    path.write_text("".join(lines))
    (copy / "venue.json").write_text("{}\n")
    resign(copy)
    assert "venue.json is not the catalogue" in verdict(capsys, copy)[1]


def test_an_act_without_an_operators_signature_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def forged(command: Act) -> Act:
        act = sign_act(command)
        if not isinstance(command, CertifySite):
            return act
        assert act.authority is not None
        return replace(act, authority=replace(act.authority, reason="another reason"))

    code, last = verdict(capsys, export_of(a_market(5, forged).records, tmp_path))
    assert (code, last) == (1, "REFUSED: operators: record 14: no signature by the operator named holds")


def test_a_refused_act_needs_no_signature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = a_market(5)
    script.do(Deposit(1, 5))
    assert verdict(capsys, export_of(script.records, tmp_path))[0] == 0


def test_a_run_that_posts_something_else_than_it_announced_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def other_digest(command: Act) -> Act:
        return sign_act(
            replace(command, sha256=bytes(32)) if isinstance(command, StartSettlementRun) else command
        )

    code, last = verdict(capsys, export_of(a_market(60, other_digest).records, tmp_path))
    assert (code, "completes run 1: its postings have the SHA-256" in last) == (1, True), last


def test_a_run_under_way_is_said_to_be_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = a_market(60)
    count = len(trades_of(script.events))
    # Without the refused repeat and the last posting.
    assert main([str(export_of(script.records[:-2], tmp_path)), "--vkey", VKEY]) == 0
    assert f"run 1: {count - 1} of {count} posted so far" in capsys.readouterr().out


def test_an_engine_with_one_rule_changed_refuses_at_the_record_where_it_matters(
    market: Market, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Dearer:
        """An engine that takes a little more from whoever comes first."""

        def __init__(self) -> None:
            self.engine = Engine()

        def apply(self, time_ns: int, command: AnyCommand) -> list[AnyEvent]:
            if isinstance(command, OpenEra):
                fees = replace(command.venue.fees, maker_ppm=command.venue.fees.maker_ppm + 1)
                command = replace(command, venue=replace(command.venue, fees=fees))
            return self.engine.apply(time_ns, command)

        def state_hash(self) -> bytes:
            return self.engine.state_hash()

    monkeypatch.setattr("settlement.audit.verify.Engine", Dearer)
    at = first(market.records, Traded) + 1
    code, last = verdict(capsys, market.folder)
    assert (code, last.startswith(f"REFUSED: re-execution: record {at}, event ")) == (1, True), last
    assert "_fee_micros" in last


def test_an_engine_of_another_version_is_refused_by_name(
    market: Market, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("settlement.audit.verify.ENGINE_DIGEST", bytes(32))
    code, last = verdict(capsys, market.folder)
    assert (code, last.startswith("REFUSED: re-execution: record 1 opens an era of engine ")) == (1, True)
    assert bytes(32).hex() in last
    assert "release" in last


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rules_version": "9.9"}, "rules_version 9.9 found"),
        ({"codec_digest": bytes(32)}, f"codec_digest {bytes(32).hex()} found"),
        ({"state_after": bytes(32)}, f"state_after {bytes(32).hex()} found"),
    ],
)
def test_an_era_of_other_rules_codec_or_state_is_refused(
    changes: dict[str, object], said: str, market: Market, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forge(copy, [altered(market.records[0], **changes), *market.records[1:]])
    code, last = verdict(capsys, copy)
    assert (code, said in last) == (1, True), last


# -- bad calls -----------------------------------------------------------------------------------------


def test_an_export_goes_only_into_an_empty_folder(market: Market, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/note.txt").write_text("mine")
    with pytest.raises(ExportError, match="not an empty folder"):
        export(market.log, tmp_path / "full", VENUE_KEY, ORIGIN)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    (tmp_path / "empty").mkdir()
    export(market.log, tmp_path / "empty", VENUE_KEY, ORIGIN)


@pytest.mark.parametrize(
    ("key", "origin", "last", "said"),
    [
        (Ed25519PrivateKey.generate(), ORIGIN, None, "venue key"),
        (VENUE_KEY, "other.example", None, "the log's is 'test.example/small'"),
        (VENUE_KEY, "with space", None, "key name"),
        (VENUE_KEY, ORIGIN, 10**6, "1000000 was asked for"),
    ],
)
def test_an_export_that_cannot_be_made_leaves_nothing_behind(
    key: Ed25519PrivateKey, origin: str, last: int | None, said: str, market: Market, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=said):
        export(market.log, tmp_path / "out", key, origin, last=last)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_log_is_not_exported(tmp_path: Path) -> None:
    FileLog(tmp_path / "log").close()
    with pytest.raises(ExportError, match="ends at record 0"):
        export(tmp_path / "log", tmp_path / "out", VENUE_KEY, ORIGIN)


def test_a_folder_that_is_not_there_is_a_wrong_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "nowhere"), "--vkey", VKEY]) == 2
    assert "is no folder" in capsys.readouterr().err


# -- independence --------------------------------------------------------------------------------------


def test_the_verifier_loads_neither_database_nor_server_nor_command_line() -> None:
    code = (
        "import sys, settlement.audit.verify; "
        "print(*(m for m in ('asyncpg', 'aiohttp', 'typer', 'gateway', 'exchange.log', 'numpy', 'highspy') "
        "if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert done.stdout.strip() == ""


@pytest.fixture
def readable_copy(market: Market) -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        # pytest's own folders are closed to other users.
        Path(folder).chmod(0o755)
        target = Path(shutil.copytree(market.folder, Path(folder) / "export"))
        yield target


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_who_cannot_read_the_exchanges_folder_verifies(market: Market, readable_copy: Path) -> None:
    # An interpreter below root's home is closed to others, so a first run loads all of it and then rights go.
    code = """if True:
        import io, os, sys
        from contextlib import redirect_stdout
        from pathlib import Path
        from settlement.audit.verify import main
        log, *arguments = sys.argv[1:]
        with redirect_stdout(io.StringIO()):
            main(arguments)
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        try:
            list(Path(log).iterdir())
        except PermissionError:
            sys.exit(main(arguments))
        sys.exit("the exchange's folder is readable")
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(market.log), str(readable_copy), "--vkey", VKEY, "--json"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={"PATH": os.defpath},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["verified"] is True


def test_the_log_is_read_but_not_changed_by_an_export(market: Market) -> None:
    assert list(read_records(market.log)) == market.records
