"""Depth: what is shown by contract, side, cell and price, kept from the log's records alone."""

from typing import NamedTuple

import msgspec

from schemas.commands import CertifySite, EnterOrder, Requirement, Side
from schemas.events import (
    BlockTraded,
    OrderAccepted,
    OrderEnded,
    OrderListed,
    OrderReduced,
    OrderReplaced,
    SiteCertified,
    Traded,
)
from schemas.records import Decoded


class Supply(NamedTuple):
    """The cell of an ask."""

    zone: str
    carbon: str
    security: str


class Level(NamedTuple):
    """A price in a cell: a bid's cell is its requirement."""

    side: Side
    cell: Supply | Requirement
    price_ticks: int


class OpenOrder:
    """An open order: its terms as they are now, the lot-hours left of it, and the lots that it shows.

    An iceberg shows a slice; a block or run shows nothing.
    """

    __slots__ = ("command", "leaves_lot_hours", "order_id", "shown_lots")

    def __init__(self, order_id: int, command: EnterOrder) -> None:
        self.order_id = order_id
        self.command = command
        self.leaves_lot_hours = command.lots * command.hours
        self.shown_lots = 0
        self._show_slice()

    def replace(self, event: OrderReplaced) -> None:
        """Take new terms; where it keeps its place in the queue, the hidden lots go first."""
        old = self.command
        self.command = msgspec.structs.replace(old, lots=event.lots, price_ticks=event.price_ticks)
        # What is left of a block is told in lots, of a run in lot-hours.
        is_block = old.hours > 1 and old.side is Side.BUY
        self.leaves_lot_hours = event.leaves_lots * (old.hours if is_block else 1)
        if event.price_ticks == old.price_ticks and event.lots < old.lots:
            self._hide_first()
        else:
            self._show_slice()

    def reduce(self, event: OrderReduced) -> None:
        """Take lots out, of the total too; the hidden ones go first."""
        if self.command.hours == 1:
            total = self.command.lots - event.lots
            self.command = msgspec.structs.replace(self.command, lots=total)
        self.leaves_lot_hours = event.leaves_lots
        self._hide_first()

    def fill(self, trade: Traded) -> None:
        """Take a trade out of what is shown; when that is gone the next slice is."""
        self.leaves_lot_hours -= trade.lots
        # An order that takes, a block and a call go through hidden lots too.
        if trade.lots >= self.shown_lots:
            self._show_slice()
        else:
            self.shown_lots -= trade.lots

    def _show_slice(self) -> None:
        if self.command.hours == 1:
            self.shown_lots = min(self.command.display_lots or self.leaves_lot_hours, self.leaves_lot_hours)

    def _hide_first(self) -> None:
        self.shown_lots = min(self.shown_lots, self.leaves_lot_hours)


Contract = tuple[str, int]
Changes = dict[Contract, dict[Level, int]]


class Depth:
    """Shown lots by level of every contract; blocks and runs are not part of it."""

    def __init__(self) -> None:
        self.levels: dict[Contract, dict[Level, int]] = {}
        self.orders: dict[int, OpenOrder] = {}
        self._sites: dict[int, CertifySite] = {}
        # By trade id, which ascends from 1 without a gap: a resale may name its position alone.
        self._trade_sites: list[int] = []
        self._moved: dict[tuple[Contract, Level], int] = {}

    def apply(self, record: Decoded) -> Changes:
        """Take in a record and return the levels that changed, with their new lots (0: gone)."""
        command = record.command
        for event in record.events:
            match event:
                case SiteCertified():
                    assert isinstance(command, CertifySite)
                    self._sites[event.site] = command
                case OrderAccepted():
                    assert isinstance(command, EnterOrder)
                    self._enter(OpenOrder(event.order_id, command))
                case OrderListed():
                    self._enter(OpenOrder(event.order_id, event.order))
                case Traded():
                    self._trade_sites.append(event.site)
                    self._fill(event.bid_order_id, event)
                    self._fill(event.ask_order_id, event)
                case BlockTraded():
                    for leg in event.legs:
                        self._trade_sites.append(leg.site)
                        self._fill(leg.bid_order_id, leg)
                        self._fill(leg.ask_order_id, leg)
                case OrderReplaced() | OrderReduced() | OrderEnded():
                    self._change(event)
                case _:
                    pass
        return self._changes()

    def _enter(self, order: OpenOrder) -> None:
        self.orders[order.order_id] = order
        self._move(order, order.shown_lots)

    def _fill(self, order_id: int, trade: Traded) -> None:
        order = self.orders[order_id]
        shown_lots = order.shown_lots
        order.fill(trade)
        self._move(order, order.shown_lots - shown_lots)
        if order.leaves_lot_hours == 0:
            del self.orders[order_id]

    def _change(self, event: OrderReplaced | OrderReduced | OrderEnded) -> None:
        order = self.orders[event.order_id]
        self._move(order, -order.shown_lots)
        match event:
            case OrderReplaced():
                order.replace(event)
            case OrderReduced():
                order.reduce(event)
            case OrderEnded():
                del self.orders[event.order_id]
                return
        self._move(order, order.shown_lots)

    def _move(self, order: OpenOrder, lots: int) -> None:
        if lots:
            command = order.command
            contract = (command.class_code, command.delivery_hour)
            at = (contract, Level(command.side, self._cell(command), command.price_ticks))
            self._moved[at] = self._moved.get(at, 0) + lots

    def _changes(self) -> Changes:
        """Put what moved into the levels and return those that are not what they were."""
        changes: Changes = {}
        for (contract, level), lots in self._moved.items():
            if not lots:
                continue
            levels = self.levels.setdefault(contract, {})
            left = levels.get(level, 0) + lots
            if left:
                levels[level] = left
            else:
                del levels[level]
                if not levels:
                    del self.levels[contract]
            changes.setdefault(contract, {})[level] = left
        self._moved.clear()
        return changes

    def _cell(self, command: EnterOrder) -> Supply | Requirement:
        if command.requirement is not None:
            return command.requirement
        certificate = self._sites[command.site or self._trade_sites[command.position - 1]]
        assert command.carbon is not None
        return Supply(certificate.zone, command.carbon, certificate.security)
