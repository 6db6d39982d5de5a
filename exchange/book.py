"""The order book of one contract: hourly orders by cell, price and time; resting blocks beside them."""

from collections.abc import Iterator
from heapq import merge

from sortedcontainers import SortedDict, SortedList

from exchange.eligibility import Eligibility
from exchange.order import Order
from schemas.commands import Side

Level = dict[int, Order]
"""The orders of one price in one cell by order id, oldest first."""


class CellSide:
    """One side of one cell: levels best first."""

    __slots__ = ("levels", "sign")

    def __init__(self, side: Side) -> None:
        self.sign = 1 if side is Side.SELL else -1
        self.levels: SortedDict = SortedDict()

    def add(self, order: Order) -> None:
        """Put the order behind those of its price."""
        key = self.sign * order.command.price_ticks
        level: Level | None = self.levels.get(key)
        if level is None:
            self.levels[key] = level = {}
        level[order.order_id] = order

    def remove(self, order: Order) -> None:
        """Take the order out."""
        key = self.sign * order.command.price_ticks
        level: Level = self.levels[key]
        del level[order.order_id]
        if not level:
            del self.levels[key]

    def orders(self) -> Iterator[tuple[int, int, Order]]:
        """Yield (signed price, order id, order), best first."""
        for key, level in self.levels.items():
            for order in level.values():
                yield key, order.order_id, order


class Book:
    """All that is open in one contract."""

    def __init__(self) -> None:
        self.sides: dict[Side, dict[int, CellSide]] = {Side.BUY: {}, Side.SELL: {}}
        self.site_asks: dict[int, SortedList] = {}
        self.site_lots: dict[int, int] = {}
        self.blocks: dict[int, Order] = {}

    def add(self, order: Order) -> None:
        """Let the order rest; a block rests in the book of each of its hours."""
        if order.is_block:
            self.blocks[order.order_id] = order
            return
        side = order.command.side
        cells = self.sides[side]
        cell = cells.get(order.cell)
        if cell is None:
            cells[order.cell] = cell = CellSide(side)
        cell.add(order)
        if side is Side.SELL:
            site = order.command.site
            self.site_asks.setdefault(site, SortedList()).add(
                (order.command.price_ticks, order.order_id, order)
            )
            self.site_lots[site] = self.site_lots.get(site, 0) + order.leaves_lots

    def remove(self, order: Order) -> None:
        """Take a resting order out."""
        if order.is_block:
            del self.blocks[order.order_id]
            return
        self.sides[order.command.side][order.cell].remove(order)
        if order.command.side is Side.SELL:
            site = order.command.site
            self.site_asks[site].remove((order.command.price_ticks, order.order_id, order))
            self.site_lots[site] -= order.leaves_lots

    def take(self, order: Order, lots: int) -> None:
        """Fill `lots` of a resting hourly order and drop it when nothing is left."""
        if order.leaves_lots == lots:
            self.remove(order)
        elif order.command.side is Side.SELL:
            self.site_lots[order.command.site] -= lots
        order.take(lots)

    def makers(self, taker: Order, eligibility: Eligibility) -> Iterator[Order]:
        """Yield the resting hourly orders that the taker may meet, by price, then time."""
        if taker.command.side is Side.BUY:
            table = eligibility.served_by(taker.cell)
            sides = [side for cell, side in self.sides[Side.SELL].items() if table[cell]]
        else:
            bids = self.sides[Side.BUY].items()
            sides = [side for cell, side in bids if eligibility.served_by(cell)[taker.cell]]
        for _, _, maker in merge(*(side.orders() for side in sides)):
            yield maker
