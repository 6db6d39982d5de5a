"""Depth: what is open by contract, side, cell and price, kept from the log's records alone."""

from typing import NamedTuple

from schemas.commands import CertifySite, EnterOrder, Requirement, Side
from schemas.events import BlockTraded, OrderAccepted, OrderEnded, Traded
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
    """An order that rests, or may: its terms and what is left of it."""

    __slots__ = ("command", "leaves_lots", "order_id")

    def __init__(self, order_id: int, command: EnterOrder) -> None:
        self.order_id = order_id
        self.command = command
        self.leaves_lots = command.lots


Contract = tuple[str, int]
Changes = dict[Contract, dict[Level, int]]


class Depth:
    """Lots by level of every contract; blocks are not part of it."""

    def __init__(self) -> None:
        self.levels: dict[Contract, dict[Level, int]] = {}
        self.orders: dict[int, OpenOrder] = {}
        self._sites: dict[int, CertifySite] = {}

    def apply(self, record: Decoded) -> Changes:
        """Take in a record and return the levels that changed, with their new lots (0: gone)."""
        changes: Changes = {}
        command = record.command
        if isinstance(command, CertifySite):
            self._sites[command.site] = command
        for event in record.events:
            match event:
                case OrderAccepted():
                    assert isinstance(command, EnterOrder)
                    order = OpenOrder(event.order_id, command)
                    self.orders[event.order_id] = order
                    self._move(changes, order, command.lots)
                case Traded():
                    self._take(changes, event)
                case BlockTraded():
                    for leg in event.legs:
                        self._take(changes, leg)
                    del self.orders[event.order_id]
                case OrderEnded():
                    order = self.orders.pop(event.order_id)
                    self._move(changes, order, -event.leaves_lots)
        return changes

    def _take(self, changes: Changes, trade: Traded) -> None:
        for order_id in (trade.ask_order_id,) if trade.block else (trade.bid_order_id, trade.ask_order_id):
            order = self.orders[order_id]
            order.leaves_lots -= trade.lots
            self._move(changes, order, -trade.lots)
            if order.leaves_lots == 0:
                del self.orders[order_id]

    def _move(self, changes: Changes, order: OpenOrder, lots: int) -> None:
        command = order.command
        if command.hours > 1:
            return
        contract = (command.class_code, command.delivery_hour)
        level = Level(command.side, self._cell(command), command.price_ticks)
        levels = self.levels.setdefault(contract, {})
        left = levels.get(level, 0) + lots
        if left:
            levels[level] = left
        else:
            levels.pop(level, None)
            if not levels:
                del self.levels[contract]
        changes.setdefault(contract, {})[level] = left

    def _cell(self, command: EnterOrder) -> Supply | Requirement:
        if command.requirement is not None:
            return command.requirement
        certificate = self._sites[command.site]
        assert command.carbon is not None
        return Supply(certificate.zone, command.carbon, certificate.security)
