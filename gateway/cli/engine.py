"""`cux engine`: match orders offline, by the exchange's own engine, from a log or from JSON lines."""

import gc
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
import typer

from exchange.book import CellSide
from exchange.contract import parse_symbol, symbol
from exchange.depth import Supply
from exchange.disk import FolderDisk
from exchange.engine import EMPTY_STATE, ENGINE_DIGEST, Engine
from exchange.folder import DataFolder
from exchange.log import LogError, read_records
from exchange.offline import LINE_MAX_BYTES, Line, OfflineError, Outcome, difference, read_lines
from exchange.quantity import gpus_of, price_of
from gateway.cli.app import INT64_MAX, AsJson, console, group, show
from gateway.cli.evidence import understood
from gateway.cli.play import book_table
from schemas import RULES_VERSION
from schemas.catalogue import load_venue
from schemas.codec import CODEC_DIGEST
from schemas.commands import (
    AnyCommand,
    Authority,
    CertifySite,
    Deposit,
    EnterOrder,
    OpenEra,
    RegisterAccount,
    Requirement,
    Side,
    TimeInForce,
)
from schemas.records import Decoded
from schemas.venue import (
    AcceleratorClass,
    CarbonGrade,
    Currency,
    Hub,
    LatencyTier,
    Limits,
    SecurityTier,
    Source,
    Venue,
    Zone,
)

engine = group("engine", "Offline matching: the engine alone, without clock, network or disk.")

STDIN = "-"
PROGRESS_EVERY = 1 << 16
PLAIN_PRICE_MAX, PLAIN_HOUR = 10**8, 720
"""What `example` allows for a price, and the hour that it trades: 30 days after its first moment."""
NO_KEY = bytes(32)
"""The key of venue and operator in what `example` and `era` print; the engine checks no signature."""

Input = Annotated[
    str,
    typer.Argument(metavar="FILE", help="JSON lines, the folder of an exchange or of its log, - for stdin."),
]


@engine.command("run")
def engine_run(
    file: Input,
    state_hash: Annotated[
        bool, typer.Option("--hash", help="Print state hash and last sequence number, no events.")
    ] = False,
    book: Annotated[
        str, typer.Option(metavar="CONTRACT", help="Print this contract's book at the end, no events.")
    ] = "",
    check: Annotated[
        bool, typer.Option("--check", help="Compare with the events that the input holds, print none.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Apply commands in order and write the events of each as a line of JSON.

    A line of input is {"sequence":1,"time_ns":0,"command":{"type":"open_era",...}}, of output
    {"sequence":1,"time_ns":0,"events":[{"type":"era_opened"}]}. See cux engine example.

    Example: cux engine example | cux engine run -
    """
    if state_hash + bool(book) + check > 1:
        raise typer.BadParameter("--hash, --book and --check: one of them is allowed")
    contract = _contract(book) if book else None
    # As in the core: a collector that looks at every open order again and again costs more than the book.
    gc.set_threshold(100_000, 50, 100)
    market = Engine()
    outcomes = _outcomes(market, file)
    if not state_hash and not check and contract is None:
        _write(outcome for _, outcome in outcomes)
        return
    last = 0
    for line, outcome in outcomes:
        last = outcome.sequence
        if check:
            _compare(file, line, outcome)
    if contract is not None:
        found = book_of(market, last, *contract)
        if as_json or not sys.stdout.isatty():
            show(True, found, "")
        else:
            console.print(book_table(found))
    elif check:
        show(as_json, {"records": last}, f"{last} records, the same events")
    else:
        digest = market.state_hash().hex()
        show(as_json, {"sequence": last, "state_hash": digest}, f"{digest} {last}")


def _write(outcomes: Iterable[Outcome]) -> None:
    write, encode = sys.stdout.buffer.write, msgspec.json.Encoder().encode
    try:
        for outcome in outcomes:
            write(encode(outcome) + b"\n")
    finally:
        # What came before a fault is told before the fault is.
        sys.stdout.buffer.flush()


@engine.command("example")
def engine_example() -> None:
    """Print ten lines that `cux engine run` takes: plain orders of one class, hour and grade.

    Example: cux engine example > day.jsonl && cux engine run day.jsonl
    """
    for line in example():
        typer.echo(msgspec.json.encode(line))


@engine.command("era")
def engine_era(
    venue: Annotated[str, typer.Option(help="A catalogue: china, europe, or a TOML file.")] = "china",
    time_ns: Annotated[
        int, typer.Option(min=0, max=INT64_MAX, help="When it opens, in nanoseconds UTC since 1970.")
    ] = 0,
) -> None:
    """Print the open_era line of a venue, the first of any input.

    Its one operator's key is 32 bytes of zero; the engine checks no signature.

    Example: cux engine era --venue europe > day.jsonl
    """
    typer.echo(msgspec.json.encode(Line(1, time_ns, era(load_venue(venue)))))


def era(venue: Venue) -> OpenEra:
    """Return what opens a venue's first era offline."""
    return OpenEra(
        origin="offline",
        rules_version=RULES_VERSION,
        venue=venue,
        venue_key=NO_KEY,
        operator_keys=(NO_KEY,),
        engine_digest=ENGINE_DIGEST,
        codec_digest=CODEC_DIGEST,
        state_before=EMPTY_STATE,
        state_after=EMPTY_STATE,
    )


def example() -> Iterator[Line]:
    """Yield a file of ten lines: a venue of one of each, a seller, a buyer, a site, five orders.

    No bound of the venue stands in the way of other orders in the place of these: the collar, without which
    there are no market orders, reaches over all prices.
    """
    figures = {"grid_mgco2_per_kwh": "none", "location": "none"}
    venue = Venue(
        code="plain",
        name="Plain",
        catalogue_version=1,
        time_zone="UTC",
        currency=Currency(code="CNY"),
        gate_seconds=0,
        bond_permille=0,
        limits=Limits(
            price_max_ticks=PLAIN_PRICE_MAX,
            order_max_lots=10**9,
            open_orders_max=10**9,
            collar_permille=PLAIN_PRICE_MAX * 1000,
        ),
        latency_tiers=(LatencyTier(code="L"),),
        carbon_grades=(CarbonGrade(code="C"),),
        security_tiers=(SecurityTier(code="S", meaning="any"),),
        sources=(Source(key="none", kind="rule", text="made up"),),
        hubs=(Hub(code="hub", name="Hub"),),
        zones=(
            Zone(
                code="here",
                name="Here",
                hub="hub",
                kind="metro",
                latitude_micro=0,
                longitude_micro=0,
                grid_mgco2_per_kwh=0,
                sources=figures,
            ),
        ),
        round_trips=(),
        classes=(
            AcceleratorClass(
                code="GPU",
                name="GPU",
                vendor="any",
                form_factor="any",
                memory_gb=80,
                software="any",
                domestic=False,
                lot_eighths=8,
                reference_price_ticks=1000,
                sources={"memory_gb": "none", "reference_price_ticks": "none"},
            ),
        ),
    )
    operator = Authority(NO_KEY, signed_ns=0, reason="")
    opening: list[AnyCommand] = [
        era(venue),
        RegisterAccount(1, 1, authority=operator),
        RegisterAccount(2, 2, authority=operator),
        Deposit(2, 4_000_000_000_000_000_000, authority=operator),
        CertifySite(1, 1, "here", "GPU", 2_000_000_000, "C", "S", 0, PLAIN_HOUR + 1, authority=operator),
    ]
    for sequence, command in enumerate(opening, 1):
        yield Line(sequence, 0, command)
    orders = [
        (Side.SELL, "s1", 5, 1000, TimeInForce.GTC),
        (Side.SELL, "s2", 3, 950, TimeInForce.GTC),
        (Side.BUY, "b1", 4, 1000, TimeInForce.GTC),
        (Side.BUY, "b2", 2, 900, TimeInForce.GTC),
        (Side.SELL, "s3", 1, 900, TimeInForce.IOC),
    ]
    for second, (side, name, lots, price_ticks, time_in_force) in enumerate(orders, 1):
        buys = side is Side.BUY
        order = EnterOrder(
            account=2 if buys else 1,
            client_order_id=name,
            valid_until_ns=second * 1_000_000_000,
            side=side,
            class_code="GPU",
            delivery_hour=PLAIN_HOUR,
            lots=lots,
            price_ticks=price_ticks,
            time_in_force=time_in_force,
            requirement=Requirement("here", "L", "C", "S") if buys else None,
            site=0 if buys else 1,
            carbon=None if buys else "C",
        )
        yield Line(len(opening) + second, second * 1_000_000_000, order)


def book_of(market: Engine, sequence: int, class_code: str, hour: int) -> dict[str, Any]:
    """Return what is shown of a contract by cell and price, best first, in the form of `cux book --json`.

    Raises:
        OfflineError: the venue has no such class, or the hour is not listed yet.
    """
    state = market.market
    if class_code not in state.classes:
        classes = ", ".join(state.classes)
        raise OfflineError(f"contract {symbol(class_code, hour)}: a contract of {classes} is allowed")
    last = state.hour + state.horizon_hours
    if hour > last:
        allowed = f"up to {symbol(class_code, last)} is allowed"
        raise OfflineError(f"contract {symbol(class_code, hour)}: not listed at the end; {allowed}")
    table, book = state.eligibility, state.classes[class_code].at(hour)
    needed = {
        table.find_demand_cell(*codes): codes
        for codes in product(table.zones, table.latency, table.carbon, table.security)
    }
    return {
        "contract": symbol(class_code, hour),
        "phase": "closed" if hour <= state.closed_hour else market.phase(class_code, hour),
        "seq": sequence,
        "time": market.time_ns,
        "bids": [
            _row(market, class_code, Requirement(*needed[cell]), price_ticks, lots)
            for price_ticks, cell, lots in reversed(_levels(book.bids if book else []))
        ],
        "asks": [
            _row(market, class_code, Supply(*table.supply_terms(cell)), price_ticks, lots)
            for price_ticks, cell, lots in _levels(book.asks if book else [])
        ],
    }


def _levels(sides: Iterable[CellSide]) -> list[tuple[int, int, int]]:
    """Return price, cell and shown lots of every level, the lowest price first."""
    lots: dict[tuple[int, int], int] = {}
    for side in sides:
        for order in side.orders():
            level = (order.price, side.cell)
            lots[level] = lots.get(level, 0) + order.shown_lots
    return [(price_ticks, cell, shown) for (price_ticks, cell), shown in sorted(lots.items())]


def _row(
    market: Engine, class_code: str, cell: Supply | Requirement, price_ticks: int, lots: int
) -> dict[str, Any]:
    venue = market.venue
    assert venue is not None
    (lot_eighths,) = (one.lot_eighths for one in venue.classes if one.code == class_code)
    is_bid = isinstance(cell, Requirement)
    return {
        "side": Side.BUY if is_bid else Side.SELL,
        "cell": msgspec.structs.asdict(cell) if isinstance(cell, Requirement) else cell._asdict(),
        "price": price_of(price_ticks, venue.currency.tick_micros),
        "gpus": gpus_of(lots, lot_eighths),
    }


def _contract(text: str) -> tuple[str, int]:
    try:
        return parse_symbol(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--book") from None


# --- input ----------------------------------------------------------------------------------------------


def _outcomes(market: Engine, file: str) -> Iterator[tuple[Line | Decoded, Outcome]]:
    """Apply the commands of the input one by one; on a terminal, long input tells how far it is."""
    shows_progress = sys.stderr.isatty() and not sys.stdout.isatty()
    done = 0
    try:
        for line in _lines(file):
            try:
                events = market.apply(line.time_ns, line.command)
            except ValueError as error:  # of a log alone: lines were read with an eye to it
                raise LogError(f"{file}, record {line.sequence}: {error}") from None
            yield line, Outcome(line.sequence, line.time_ns, events)
            done += 1
            if shows_progress and done % PROGRESS_EVERY == 0:
                sys.stderr.write(f"\r{done} commands")
                sys.stderr.flush()
        if done == 0:
            raise OfflineError(f"{file}: no command; open_era is wanted first")
    finally:
        if shows_progress and done >= PROGRESS_EVERY:
            sys.stderr.write("\r\033[K")


def _lines(file: str) -> Iterator[Line | Decoded]:
    """Yield what the input holds.

    Raises:
        OfflineError, LogError: it holds no such thing.
    """
    if file == STDIN:
        yield from _text("stdin", sys.stdin.buffer)
    elif Path(file).is_dir():
        yield from _log(Path(file))
    else:
        try:
            with Path(file).open("rb") as text:
                yield from _text(file, text)
        except FileNotFoundError:
            raise OfflineError(f"{file}: not there; JSON lines, a log folder or - is allowed") from None


def _text(name: str, text: BinaryIO) -> Iterator[Line]:
    # A line that never ends must not fill the memory.
    return read_lines(name, iter(partial(text.readline, LINE_MAX_BYTES), b""))


def _log(path: Path) -> Iterator[Decoded]:
    folder = DataFolder(path)
    log = folder.log if folder.log.is_dir() else path
    if not FolderDisk(log).segments():
        raise OfflineError(f"{log}: no log; a folder of an exchange that has run, or its log, is allowed")
    return map(understood, read_records(log))


def _compare(name: str, line: Line | Decoded, outcome: Outcome) -> None:
    """Refuse events that are not those of the input.

    Raises:
        OfflineError: they differ, or the input holds none.
    """
    where = f"{name}, record {line.sequence}"
    if line.events is None:
        raise OfflineError(f"{where}: no events; --check compares with those of a log or of cux log show")
    differs = difference(outcome.events, line.events)
    if differs is not None:
        raise OfflineError(f"{where}: {differs}")
