"""The log as tables: CSV that a person reads, made from commands and events alone.

Times are UTC to the nanosecond; prices, quantities and money are decimal strings; ids are numbers. Orders
are told in the terms of RTS 24 (Delegated Regulation (EU) 2017/580), quantities in GPU-hours. README.md
says what the columns mean.
"""

import csv
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol

from exchange.contract import HOUR_NS, symbol
from exchange.quantity import gpus_of, money_of, price_of
from schemas.commands import (
    AnyCommand,
    CertifySite,
    Deposit,
    EnterOrder,
    OpenEra,
    OperatorCommand,
    PostSettlement,
    ReceiveReadings,
    RegisterAccount,
    RegisterKey,
    Side,
    StartSettlementRun,
    TimeInForce,
    Withdraw,
)
from schemas.events import (
    AnyEvent,
    BlockTraded,
    EndReason,
    OrderAccepted,
    OrderEnded,
    Rejected,
    SettlementPosted,
    SiteCertified,
    Traded,
)
from schemas.venue import Venue

COLUMNS = {
    "orders": (
        "sequence",
        "event_time",
        "order_id",
        "event",
        "reason",
        "account",
        "order_book",
        "delivery_start",
        "hours",
        "side",
        "validity",
        "validity_time",
        "order_type",
        "limit_price",
        "currency",
        "initial_quantity",
        "traded_quantity",
        "remaining_quantity",
        "transaction_price",
        "passive_or_aggressive",
        "transaction_id",
        "site",
        "zone",
        "latency",
        "carbon",
        "security",
    ),
    "trades": (
        "transaction_id",
        "sequence",
        "event_time",
        "order_book",
        "price",
        "currency",
        "gpus",
        "notional",
        "taker",
        "bid_order_id",
        "ask_order_id",
        "buyer",
        "seller",
        "site",
        "block_order_id",
        "buyer_fee",
        "seller_fee",
        "seller_bond",
    ),
    "deliveries": (
        "transaction_id",
        "class",
        "site",
        "zone",
        "carbon",
        "security",
        "delivery_start",
        "delivery_end",
        "capacity_gpus",
        "price",
        "currency",
        "buyer",
        "seller",
    ),
    "settlements": (
        "sequence",
        "event_time",
        "run",
        "transaction_id",
        "verdict",
        "delivered_gpu_seconds",
        "buyer",
        "seller",
        "payment",
        "refund",
        "penalty",
        "bond_release",
        "currency",
    ),
    "sites": (
        "sequence",
        "event_time",
        "site",
        "account",
        "zone",
        "class",
        "capacity_gpus",
        "carbon",
        "security",
        "valid_from",
        "valid_until",
    ),
    "operators": (
        "sequence",
        "event_time",
        "act",
        "outcome",
        "account",
        "subject",
        "amount",
        "operator_key",
        "signed_time",
        "reason",
    ),
}
"""The columns of each table, which is `tables/NAME.csv`."""

_VALIDITY = {TimeInForce.GTC: "GTCV", TimeInForce.GTD: "GTSV", TimeInForce.IOC: "IOCV"}
_END_EVENT = {
    EndReason.REQUESTED: "CAME",
    EndReason.SELF_TRADE: "CAMO",
    EndReason.EVICTED: "CAMO",
    EndReason.IMMEDIATE: "EXPI",
    EndReason.EXPIRED: "EXPI",
    EndReason.GATE: "EXPI",
}
_SIDE = {Side.BUY: "BUYI", Side.SELL: "SELL"}

Cell = str | int


class Sink(Protocol):
    """Where a table's text goes, line by line."""

    def write(self, text: str, /) -> object:
        """Take one line with its newline."""


class _OpenOrder:
    """What later events of an order refer to: the columns that stay, and what is left of it."""

    __slots__ = ("left_lot_hours", "terms")

    def __init__(self, terms: tuple[Cell, ...], lot_hours: int) -> None:
        self.terms = terms
        self.left_lot_hours = lot_hours


class Tables:
    """Turns records into rows, in the order of the log. Holds only sites and open orders."""

    def __init__(self, sinks: dict[str, Sink]) -> None:
        """Write the header of each table of `COLUMNS` to its sink."""
        self._rows: dict[str, Callable[[Sequence[Cell]], object]] = {}
        for name, columns in COLUMNS.items():
            self._rows[name] = row = csv.writer(sinks[name], lineterminator="\n").writerow
            row(columns)
        self._orders: dict[int, _OpenOrder] = {}
        self._sites: dict[int, CertifySite] = {}
        self._currency = ""
        self._tick_micros = 1
        self._lot_eighths: dict[str, int] = {}

    def add(self, sequence: int, time_ns: int, command: AnyCommand, events: Sequence[AnyEvent]) -> None:
        """Write the rows of one record."""
        if isinstance(command, OpenEra):
            self._open_era(command.venue)
        elif isinstance(command, OperatorCommand):
            self._operator_act(sequence, time_ns, command, events)
        for event in events:
            match event:
                case OrderAccepted():
                    assert isinstance(command, EnterOrder)
                    self._accepted(sequence, time_ns, command, event.order_id)
                case Traded():
                    self._traded(sequence, time_ns, event)
                case BlockTraded():
                    for leg in event.legs:
                        self._traded(sequence, time_ns, leg)
                case OrderEnded():
                    self._ended(sequence, time_ns, event)
                case Rejected() if isinstance(command, EnterOrder):
                    self._rejected(sequence, time_ns, command, event)
                case SettlementPosted():
                    assert isinstance(command, PostSettlement)
                    self._posted(sequence, time_ns, command, event)
                case SiteCertified():
                    assert isinstance(command, CertifySite)
                    self._certified(sequence, time_ns, command)
                case _:
                    pass

    def _open_era(self, venue: Venue) -> None:
        self._currency = venue.currency.code
        self._tick_micros = venue.currency.tick_micros
        self._lot_eighths = {c.code: c.lot_eighths for c in venue.classes}

    def _terms(
        self, order_id: Cell, command: EnterOrder, lot_eighths: int, *origin: Cell
    ) -> tuple[Cell, ...]:
        """Return the columns that stay the same over an order's life; `origin` is site, zone and grades."""
        return (
            order_id,
            command.account,
            _contract(command.class_code, command.delivery_hour)
            if command.class_code in self._lot_eighths
            else "",
            _hour(command.delivery_hour),
            command.hours,
            _SIDE[command.side],
            _VALIDITY[command.time_in_force],
            _time(command.expire_ns) if command.expire_ns else "",
            "block" if command.hours > 1 else "limit",
            _price(command.price_ticks, self._tick_micros),
            self._currency,
            _gpus(command.lots * command.hours, lot_eighths),
            *origin,
        )

    def _order_row(
        self,
        sequence: int,
        time_ns: int,
        event: str,
        reason: str,
        terms: tuple[Cell, ...],
        *execution: Cell,
    ) -> None:
        """Write a row; `execution` is traded and remaining quantity, price, role and transaction id."""
        self._rows["orders"](
            (sequence, _time(time_ns), terms[0], event, reason, *terms[1:12], *execution, *terms[12:])
        )

    def _accepted(self, sequence: int, time_ns: int, command: EnterOrder, order_id: int) -> None:
        lot_eighths = self._lot_eighths[command.class_code]
        need = command.requirement
        origin: tuple[Cell, ...]
        if need is not None:
            origin = ("", need.zone, need.latency, need.carbon, need.security)
        else:
            site = self._sites[command.site]
            assert command.carbon is not None
            origin = (command.site, site.zone, "", command.carbon, site.security)
        terms = self._terms(order_id, command, lot_eighths, *origin)
        lot_hours = command.lots * command.hours
        self._orders[order_id] = _OpenOrder(terms, lot_hours)
        self._order_row(sequence, time_ns, "NEWO", "", terms, "", _gpus(lot_hours, lot_eighths), "", "", "")

    def _rejected(self, sequence: int, time_ns: int, command: EnterOrder, event: Rejected) -> None:
        # An order that never was in force has no id of its own; the record's number is unique. Codes that
        # are not the venue's are anything that somebody typed: they stay in the record.
        lot_eighths = self._lot_eighths.get(command.class_code, 8)
        terms = self._terms(f"R{sequence}", command, lot_eighths, "", "", "", "", "")
        self._order_row(sequence, time_ns, "REMO", event.reason.name.lower(), terms, "", 0, "", "", "")

    def _ended(self, sequence: int, time_ns: int, event: OrderEnded) -> None:
        terms = self._orders.pop(event.order_id).terms
        kind = _END_EVENT[event.reason]
        self._order_row(sequence, time_ns, kind, event.reason.value, terms, "", 0, "", "", "")

    def _traded(self, sequence: int, time_ns: int, trade: Traded) -> None:
        price = _price(trade.price_ticks, self._tick_micros)
        lot_eighths = self._lot_eighths[trade.class_code]
        gpus = _gpus(trade.lots, lot_eighths)
        contract = _contract(trade.class_code, trade.delivery_hour)
        carbon = self._orders[trade.ask_order_id].terms[-2]
        for order_id, side in ((trade.bid_order_id, Side.BUY), (trade.ask_order_id, Side.SELL)):
            order = self._orders[order_id]
            order.left_lot_hours -= trade.lots
            left = order.left_lot_hours
            if not left:
                del self._orders[order_id]
            role = "AGRE" if side is trade.taker else "PASV"
            self._order_row(
                sequence,
                time_ns,
                "PARF" if left else "FILL",
                "",
                order.terms,
                gpus,
                _gpus(left, lot_eighths),
                price,
                role,
                trade.trade_id,
            )
        self._rows["trades"](
            (
                trade.trade_id,
                sequence,
                _time(time_ns),
                contract,
                price,
                self._currency,
                gpus,
                money_of(trade.notional_micros),
                _SIDE[trade.taker],
                trade.bid_order_id,
                trade.ask_order_id,
                trade.buyer,
                trade.seller,
                trade.site,
                trade.block or "",
                money_of(trade.buyer_fee_micros),
                money_of(trade.seller_fee_micros),
                money_of(trade.bond_micros),
            )
        )
        site = self._sites[trade.site]
        self._rows["deliveries"](
            (
                trade.trade_id,
                trade.class_code,
                trade.site,
                site.zone,
                carbon,
                site.security,
                _hour(trade.delivery_hour),
                _hour(trade.delivery_hour + 1),
                gpus,
                price,
                self._currency,
                trade.buyer,
                trade.seller,
            )
        )

    def _posted(self, sequence: int, time_ns: int, command: PostSettlement, event: SettlementPosted) -> None:
        self._rows["settlements"](
            (
                sequence,
                _time(time_ns),
                event.run,
                event.trade_id,
                command.verdict,
                # Milliseconds shown as seconds: a thousandth is as exact as a millionth.
                money_of(command.delivered_gpu_ms * 1000),
                event.buyer,
                event.seller,
                money_of(event.payment_micros),
                money_of(event.refund_micros),
                money_of(event.penalty_micros),
                money_of(event.bond_release_micros),
                self._currency,
            )
        )

    def _certified(self, sequence: int, time_ns: int, site: CertifySite) -> None:
        self._sites[site.site] = site
        self._rows["sites"](
            (
                sequence,
                _time(time_ns),
                site.site,
                site.account,
                site.zone,
                site.class_code,
                _gpus(site.capacity_lots, self._lot_eighths[site.class_code]),
                site.carbon,
                site.security,
                _hour(site.from_hour),
                _hour(site.until_hour),
            )
        )

    def _operator_act(
        self, sequence: int, time_ns: int, command: OperatorCommand, events: Sequence[AnyEvent]
    ) -> None:
        account: Cell = ""
        subject: Cell = ""
        amount = ""
        match command:
            case RegisterAccount():
                account, subject = command.account, f"trade group {command.trade_group}"
            case RegisterKey():
                account, subject = command.account, command.key.hex()
            case Deposit() | Withdraw():
                account, amount = command.account, money_of(command.amount_micros)
            case CertifySite():
                account, subject = command.account, f"site {command.site}"
            case ReceiveReadings():
                subject = f"batch {command.batch}"
            case StartSettlementRun():
                subject = f"run {command.run}"
            case _:
                raise AssertionError(command)
        refusal = next((event for event in events if isinstance(event, Rejected)), None)
        authority = command.authority
        self._rows["operators"](
            (
                sequence,
                _time(time_ns),
                str(command.__struct_config__.tag),
                refusal.reason.name.lower() if refusal else "done",
                account,
                subject,
                amount,
                authority.key.hex() if authority else "",
                _time(authority.signed_ns) if authority else "",
                authority.reason if authority else "",
            )
        )


_price = lru_cache(maxsize=65536)(price_of)
_gpus = lru_cache(maxsize=65536)(gpus_of)


@lru_cache(maxsize=65536)
def _contract(class_code: str, hour: int) -> str:
    try:
        return symbol(class_code, hour)
    except OverflowError:
        # Only a refused order can name an hour outside the calendar.
        return f"{class_code}.{hour}"


@lru_cache(maxsize=65536)
def _hour(hour: int) -> str:
    """Return when an hour starts; one outside the calendar as its bare number."""
    try:
        return _time(hour * HOUR_NS)
    except (OverflowError, ValueError):
        return str(hour)


@lru_cache(maxsize=65536)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()


def _time(time_ns: int) -> str:
    """Return `YYYY-MM-DDThh:mm:ss.nnnnnnnnnZ`."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    return f"{_second(seconds)}.{nanoseconds:09d}Z"
