"""Fixed flows of orders for `make bench-engine`, the same for every contestant.

A flow is told in plain operations. A small book of its own decides what may be cancelled and what every
contestant must have traded in the end.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

from sortedcontainers import SortedDict

LIMIT, MARKET, CANCEL, REPLACE = range(4)
BUYERS = tuple(range(1, 17))
SELLERS = tuple(range(101, 117))
MIDDLE_TICKS = 1400


class Operation(NamedTuple):
    """What is asked of a contestant.

    `order` counts the limit and market orders of the flow from 0. A replace gives a resting order, of which
    `filled` lots are filled and `lots` open, another price; it stands last there.
    """

    kind: int
    order: int
    is_bid: bool
    account: int
    lots: int
    price: int
    filled: int = 0


class Flow(NamedTuple):
    """Operations to fill the book, then those that are timed, and the lots that trade in these."""

    filling: list[Operation]
    timed: list[Operation]
    traded_lots: int


class _Resting:
    """An order in the flow's own book."""

    def __init__(self, operation: Operation) -> None:
        self.entered = operation
        self.price = operation.price
        self.leaves = operation.lots


class _Book:
    """Price-time priority in a few lines."""

    def __init__(self) -> None:
        self.levels: dict[bool, SortedDict] = {True: SortedDict(lambda price: -price), False: SortedDict()}
        self.orders: dict[int, _Resting] = {}
        self.numbers: list[int] = []
        self.traded = 0

    def best(self, is_bid: bool) -> int | None:
        levels = self.levels[is_bid]
        return int(levels.peekitem(0)[0]) if levels else None

    def enter(self, order: _Resting) -> None:
        """Match the order; what is left of a limit order rests."""
        market = order.entered.kind == MARKET
        is_bid = order.entered.is_bid
        while order.leaves and (best := self.best(not is_bid)) is not None:
            if not market and (order.price < best if is_bid else order.price > best):
                break
            maker: _Resting = next(iter(self.levels[not is_bid][best].values()))
            lots = min(order.leaves, maker.leaves)
            order.leaves -= lots
            maker.leaves -= lots
            self.traded += lots
            if not maker.leaves:
                self.remove(maker)
        if order.leaves and not market:
            self.levels[is_bid].setdefault(order.price, {})[order.entered.order] = order
            self.orders[order.entered.order] = order

    def remove(self, order: _Resting) -> None:
        levels = self.levels[order.entered.is_bid]
        del levels[order.price][order.entered.order]
        if not levels[order.price]:
            del levels[order.price]
        del self.orders[order.entered.order]

    def any_order(self, rng: random.Random) -> _Resting:
        """Return a resting order, each as likely as another."""
        while True:
            at = rng.randrange(len(self.numbers))
            order = self.orders.get(self.numbers[at])
            if order is not None:
                return order
            # Gone long since: the last one takes its place.
            self.numbers[at] = self.numbers[-1]
            self.numbers.pop()


class _Maker:
    """Draws the operations of a flow."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.book = _Book()
        self.entered = 0
        self.middle = MIDDLE_TICKS
        self.crossed = 0

    def rest(self) -> Operation:
        """A limit order away from the middle."""
        distance = 1 + min(400, int(self.rng.expovariate(1 / 25)))
        is_bid = self.rng.random() < 0.5
        lots = self.rng.randrange(5, 51)
        return self._enter(LIMIT, is_bid, lots, self.middle - distance if is_bid else self.middle + distance)

    def cross(self) -> Operation:
        """A limit order that takes from the best price, now and then from the next ones."""
        is_bid = self.rng.random() < 0.5
        best = self.book.best(not is_bid)
        assert best is not None
        beyond = self.rng.choice((0, 0, 0, 1, 2))
        return self._enter(
            LIMIT, is_bid, self.rng.randrange(1, 9), best + beyond if is_bid else best - beyond
        )

    def market(self) -> Operation:
        """A market order."""
        return self._enter(MARKET, self.rng.random() < 0.5, self.rng.randrange(1, 9), 0)

    def cancel(self) -> Operation:
        """The end of a resting order."""
        order = self.book.any_order(self.rng)
        self.book.remove(order)
        entered = order.entered
        return Operation(CANCEL, entered.order, entered.is_bid, entered.account, order.leaves, order.price)

    def replace(self) -> Operation:
        """Another price for a resting order: a few ticks away, on its own side of the middle."""
        order = self.book.any_order(self.rng)
        entered = order.entered
        step = self.rng.choice((-3, -2, -1, 1, 2, 3))
        bound = self.middle - 1 if entered.is_bid else self.middle + 1
        price = (min if entered.is_bid else max)(order.price + step, bound)
        if price == order.price:
            price += -1 if entered.is_bid else 1
        self.book.remove(order)
        told = Operation(
            REPLACE,
            entered.order,
            entered.is_bid,
            entered.account,
            order.leaves,
            price,
            entered.lots - order.leaves,
        )
        order.price = price
        self.book.enter(order)
        return told

    def drift(self) -> None:
        """Let the middle move by a tick now and then."""
        if self.rng.random() < 0.001:
            self.middle += self.rng.choice((-1, 1))

    def _enter(self, kind: int, is_bid: bool, lots: int, price: int) -> Operation:
        account = self.rng.choice(BUYERS if is_bid else SELLERS)
        told = Operation(kind, self.entered, is_bid, account, lots, price)
        self.entered += 1
        before = self.book.traded
        self.book.numbers.append(told.order)
        self.book.enter(_Resting(told))
        self.crossed += kind == LIMIT and self.book.traded > before
        return told


def simple(resting: int = 25_000, operations: int = 200_000, seed: int = 1) -> Flow:
    """Return a flow in one contract: 52 % new orders, of which over a quarter trade, 43 % cancels.

    The rest are 3 % replaces and 2 % market orders.
    """
    maker = _Maker(seed)
    filling = [maker.rest() for _ in range(resting)]
    before, entered, crossed = maker.book.traded, maker.entered, maker.crossed
    timed = []
    for _ in range(operations):
        draw: Callable[[], Operation]
        chance = maker.rng.random()
        if chance < 0.52:
            draw = maker.cross if maker.rng.random() < 0.27 else maker.rest
        elif chance < 0.95:
            draw = maker.cancel
        else:
            draw = maker.replace if chance < 0.98 else maker.market
        timed.append(draw())
        maker.drift()
    new = maker.entered - entered - sum(operation.kind == MARKET for operation in timed)
    assert 0.25 < (maker.crossed - crossed) / new < 0.34, (maker.crossed - crossed) / new
    return Flow(filling, timed, maker.book.traded - before)
