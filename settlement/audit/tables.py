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
from exchange.depth import OpenOrder
from exchange.quantity import gpus_of, money_of, price_of
from schemas.commands import (
    AnyCommand,
    CertifySite,
    CorrectClock,
    Deposit,
    DerateSite,
    EnterOrder,
    HaltContract,
    OpenEra,
    OperatorCommand,
    OrderType,
    PostSettlement,
    ReceiveReadings,
    RegisterAccount,
    RegisterKey,
    ReinstateAccount,
    ResumeContract,
    Side,
    StartSettlementRun,
    SuspendAccount,
    TimeInForce,
    Withdraw,
)
from schemas.events import (
    AnyEvent,
    BlockTraded,
    CallCleared,
    ContractClosed,
    EndReason,
    OrderAccepted,
    OrderEnded,
    OrderListed,
    OrderReduced,
    OrderReplaced,
    PhaseChanged,
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
        "displayed_quantity",
        "transaction_price",
        "passive_or_aggressive",
        "transaction_id",
        "site",
        "zone",
        "latency",
        "carbon",
        "security",
        "minimum_quantity",
        "passive_only",
        "self_trade",
        "linked_order_id",
        "position",
        "standing_offer",
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
        "position",
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
        "position",
    ),
    "phases": (
        "sequence",
        "event_time",
        "order_book",
        "phase",
    ),
    "calls": (
        "sequence",
        "event_time",
        "order_book",
        "zone",
        "carbon",
        "security",
        "lowest_price",
        "highest_price",
        "price",
        "currency",
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

_VALIDITY = {
    TimeInForce.GTC: "GTCV",
    TimeInForce.GTD: "GTSV",
    TimeInForce.IOC: "IOCV",
    TimeInForce.FOK: "FOKV",
    TimeInForce.AUCTION: "CALL",
}
_END_EVENT = {
    EndReason.REQUESTED: "CAME",
    EndReason.REPLACED: "CAME",
    EndReason.WITHDRAWN: "CAME",
    EndReason.SELF_TRADE: "CAMO",
    EndReason.EVICTED: "CAMO",
    EndReason.GROUP: "CAMO",
    EndReason.CAPACITY: "CAMO",
    EndReason.BAND: "CAMO",
    EndReason.IMMEDIATE: "EXPI",
    EndReason.EXPIRED: "EXPI",
    EndReason.GATE: "EXPI",
    EndReason.CALL_ENDED: "EXPI",
}
_SIDE = {Side.BUY: "BUYI", Side.SELL: "SELL"}

Cell = str | int


class Sink(Protocol):
    """Where a table's text goes, line by line."""

    def write(self, text: str, /) -> object:
        """Take one line with its newline."""


class _OpenOrder(OpenOrder):
    """An open order with what its rows say of it until it is replaced.

    `links` are the first order of its group and the standing offer that listed it.
    """

    __slots__ = ("links", "lot_eighths", "terms")

    def __init__(
        self, order_id: int, command: EnterOrder, lot_eighths: int, links: tuple[Cell, Cell]
    ) -> None:
        super().__init__(order_id, command)
        self.lot_eighths = lot_eighths
        self.links = links
        self.terms: tuple[Cell, ...] = ()

    def left(self) -> tuple[Cell, Cell]:
        """Return the remaining and the displayed quantity."""
        shown = "" if self.command.hours > 1 else _gpus(self.shown_lots, self.lot_eighths)
        return _gpus(self.leaves_lot_hours, self.lot_eighths), shown


class _Group:
    """The open alternatives of an account under one name."""

    __slots__ = ("first", "members")

    def __init__(self, first: int) -> None:
        self.first = first
        self.members = 0


class Tables:
    """Turns records into rows, in the order of the log. Holds only sites and open orders."""

    def __init__(self, sinks: dict[str, Sink]) -> None:
        """Write the header of each table of `COLUMNS` to its sink."""
        self._rows: dict[str, Callable[[Sequence[Cell]], object]] = {}
        for name, columns in COLUMNS.items():
            self._rows[name] = row = csv.writer(sinks[name], lineterminator="\n").writerow
            row(columns)
        self._orders: dict[int, _OpenOrder] = {}
        self._groups: dict[tuple[int, str], _Group] = {}
        self._sites: dict[int, CertifySite] = {}
        # By trade id, which ascends from 1 without a gap: a resale may name its position alone.
        self._trade_sites: list[int] = []
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
                    self._entered(sequence, time_ns, event.order_id, command, "")
                case OrderListed():
                    self._entered(sequence, time_ns, event.order_id, event.order, event.offer_id)
                case OrderReplaced():
                    self._replaced(sequence, time_ns, event)
                case OrderReduced():
                    by_hand = isinstance(command, DerateSite)
                    self._reduced(sequence, time_ns, event, "REMH" if by_hand else "REMA")
                case Traded():
                    self._traded(sequence, time_ns, event)
                case BlockTraded():
                    for leg in event.legs:
                        self._traded(sequence, time_ns, leg)
                case OrderEnded():
                    self._ended(sequence, time_ns, event)
                case Rejected() if isinstance(command, EnterOrder):
                    self._rejected(sequence, time_ns, command, event)
                case PhaseChanged() | ContractClosed():
                    self._phase(sequence, time_ns, event)
                case CallCleared():
                    self._cleared(sequence, time_ns, event)
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
        self,
        order_id: Cell,
        command: EnterOrder,
        lot_eighths: int,
        origin: tuple[Cell, ...],
        links: tuple[Cell, Cell],
    ) -> tuple[Cell, ...]:
        """Return the columns that stay the same until a replace; `origin` is site, zone and grades."""
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
            _type(command),
            "" if command.order_type is OrderType.MARKET else _price(command.price_ticks, self._tick_micros),
            self._currency,
            _gpus(command.lots * command.hours, lot_eighths),
            *origin,
            _gpus(command.min_lots, lot_eighths) if command.min_lots else "",
            "true" if command.post_only else "false",
            command.self_trade.value,
            links[0],
            command.position or "",
            links[1],
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
        """Write a row.

        `execution` is traded, remaining and displayed quantity, price, role and transaction id.
        """
        self._rows["orders"](
            (sequence, _time(time_ns), terms[0], event, reason, *terms[1:12], *execution, *terms[12:])
        )

    def _entered(self, sequence: int, time_ns: int, order_id: int, command: EnterOrder, offer: Cell) -> None:
        first: Cell = ""
        if command.exclusive_group is not None:
            key = (command.account, command.exclusive_group)
            group = self._groups.setdefault(key, _Group(order_id))
            group.members += 1
            first = group.first
        lot_eighths = self._lot_eighths[command.class_code]
        order = _OpenOrder(order_id, command, lot_eighths, (first, offer))
        self._orders[order_id] = order
        self._tell_terms(order)
        self._order_row(sequence, time_ns, "NEWO", "", order.terms, "", *order.left(), "", "", "")

    def _tell_terms(self, order: _OpenOrder) -> None:
        command = order.command
        need = command.requirement
        origin: tuple[Cell, ...]
        if need is not None:
            origin = ("", need.zone, need.latency, need.carbon, need.security)
        else:
            site = self._sites[command.site or self._trade_sites[command.position - 1]]
            assert command.carbon is not None
            origin = (site.site, site.zone, "", command.carbon, site.security)
        order.terms = self._terms(order.order_id, command, order.lot_eighths, origin, order.links)

    def _rejected(self, sequence: int, time_ns: int, command: EnterOrder, event: Rejected) -> None:
        # An order that never was in force has no id of its own; the record's number is unique. Codes that
        # are not the venue's are anything that somebody typed: they stay in the record.
        lot_eighths = self._lot_eighths.get(command.class_code, 8)
        terms = self._terms(f"R{sequence}", command, lot_eighths, ("",) * 5, ("", ""))
        self._order_row(sequence, time_ns, "REMO", event.reason.name.lower(), terms, "", 0, "", "", "", "")

    def _replaced(self, sequence: int, time_ns: int, event: OrderReplaced) -> None:
        order = self._orders[event.order_id]
        order.replace(event)
        self._tell_terms(order)
        self._order_row(sequence, time_ns, "REME", "", order.terms, "", *order.left(), "", "", "")

    def _reduced(self, sequence: int, time_ns: int, event: OrderReduced, kind: str) -> None:
        order = self._orders[event.order_id]
        order.reduce(event)
        self._order_row(
            sequence, time_ns, kind, event.reason.value, order.terms, "", *order.left(), "", "", ""
        )

    def _ended(self, sequence: int, time_ns: int, event: OrderEnded) -> None:
        terms = self._close(event.order_id).terms
        kind = _END_EVENT[event.reason]
        self._order_row(sequence, time_ns, kind, event.reason.value, terms, "", 0, "", "", "", "")

    def _close(self, order_id: int) -> _OpenOrder:
        order = self._orders.pop(order_id)
        name = order.command.exclusive_group
        if name is not None:
            key = (order.command.account, name)
            self._groups[key].members -= 1
            if not self._groups[key].members:
                del self._groups[key]
        return order

    def _traded(self, sequence: int, time_ns: int, trade: Traded) -> None:
        self._trade_sites.append(trade.site)
        price = _price(trade.price_ticks, self._tick_micros)
        lot_eighths = self._lot_eighths[trade.class_code]
        gpus = _gpus(trade.lots, lot_eighths)
        contract = _contract(trade.class_code, trade.delivery_hour)
        carbon = self._orders[trade.ask_order_id].command.carbon
        assert carbon is not None
        for order_id, side in ((trade.bid_order_id, Side.BUY), (trade.ask_order_id, Side.SELL)):
            order = self._orders[order_id]
            order.fill(trade)
            is_open = order.leaves_lot_hours > 0
            if not is_open:
                self._close(order_id)
            role = "" if trade.taker is None else "AGRE" if side is trade.taker else "PASV"
            self._order_row(
                sequence,
                time_ns,
                "PARF" if is_open else "FILL",
                "",
                order.terms,
                gpus,
                *order.left(),
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
                "" if trade.taker is None else _SIDE[trade.taker],
                trade.bid_order_id,
                trade.ask_order_id,
                trade.buyer,
                trade.seller,
                trade.site,
                trade.block or "",
                money_of(trade.buyer_fee_micros),
                money_of(trade.seller_fee_micros),
                money_of(trade.bond_micros),
                trade.position or "",
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
                trade.position or "",
            )
        )

    def _phase(self, sequence: int, time_ns: int, event: PhaseChanged | ContractClosed) -> None:
        phase = event.phase.value if isinstance(event, PhaseChanged) else "closed"
        contract = _contract(event.class_code, event.delivery_hour)
        self._rows["phases"]((sequence, _time(time_ns), contract, phase))

    def _cleared(self, sequence: int, time_ns: int, event: CallCleared) -> None:
        contract = _contract(event.class_code, event.delivery_hour)
        for cell in event.prices:
            prices = (cell.lowest_ticks, cell.highest_ticks, cell.price_ticks)
            self._rows["calls"](
                (
                    sequence,
                    _time(time_ns),
                    contract,
                    cell.zone,
                    cell.carbon,
                    cell.security,
                    *(_price(ticks, self._tick_micros) for ticks in prices),
                    self._currency,
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
            case DerateSite():
                hours = f"{_hour(command.from_hour)} to {_hour(command.until_hour)}"
                subject = f"site {command.site} to {command.capacity_lots} lots from {hours}"
            case SuspendAccount() | ReinstateAccount():
                account = command.account
            case HaltContract() | ResumeContract():
                if command.class_code in self._lot_eighths:
                    subject = _contract(command.class_code, command.delivery_hour)
            case ReceiveReadings():
                subject = f"batch {command.batch}"
            case StartSettlementRun():
                subject = f"run {command.run}"
            case CorrectClock():
                pass
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


def _type(command: EnterOrder) -> str:
    if command.hours > 1:
        return "block" if command.side is Side.BUY else "run"
    return "iceberg" if command.display_lots else command.order_type.value


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
