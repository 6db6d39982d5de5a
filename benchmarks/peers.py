"""Other matching engines for Python, told the same flow as ours: `PYTHON benchmarks/peers.py NAME FLOW`.

Runs under a peer's own Python, so it needs nothing but the standard library and the peer. FLOW is a pickle
of two lists of plain operations (`benchmarks/workloads.py`), one to fill the book, one that is timed.
What a peer cannot do is done with what it can: a replace is a cancel and a new order.
"""

import gc
import json
import pickle
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

LIMIT, MARKET, CANCEL, REPLACE = range(4)
BATCH = 1_000
Call = tuple[Callable[..., Any], tuple[Any, ...]]
Operation = tuple[int, int, bool, int, int, int, int]


class Contestant(ABC):
    """An engine to be told operations; what it is told is prepared before the clock runs."""

    @abstractmethod
    def calls(self, operation: Operation) -> list[Call]:
        """Return the calls that do the operation."""

    def finish(self) -> None:  # noqa: B027 - most have nothing to fetch
        """Fetch the trades, where they are not handed out at once; this is timed too."""

    @abstractmethod
    def traded(self, results: list[Any]) -> int:
        """Return the lots traded, given what all calls returned."""


class Bourse(Contestant):
    """Rust through PyO3, trades fetched at the end. No rules for accounts. It numbers orders as we do.

    Each order needs a time of its own: orders of one price and time replace one another unseen.
    """

    def __init__(self) -> None:
        from bourse.core import OrderBook

        self.book = OrderBook(0, 1)
        self.trades: list[Any] = []
        self.time = 0

    def calls(self, operation: Operation) -> list[Call]:
        kind, order, is_bid, account, lots, price, _ = operation
        if kind == CANCEL:
            return [(self.book.cancel_order, (order,))]
        self.time += 1
        clock: Call = (self.book.set_time, (self.time,))
        if kind == REPLACE:
            return [clock, (self.book.modify_order, (order, price))]
        place = (is_bid, lots, account) if kind == MARKET else (is_bid, lots, account, price)
        return [clock, (self.book.place_order, place)]

    def finish(self) -> None:
        self.trades = self.book.get_trades()

    def traded(self, results: list[Any]) -> int:
        return sum(trade[3] for trade in self.trades)


class MatchingEngine(Contestant):
    """Pure Python with msgspec, events returned. No replace."""

    def __init__(self) -> None:
        from matching_engine import domain, engine

        self.engine = engine.MatchingEngine()
        self.words = domain
        self.sequence = 0

    def calls(self, operation: Operation) -> list[Call]:
        kind, order, is_bid, account, lots, price, _ = operation
        words = self.words
        commands = []
        if kind in {CANCEL, REPLACE}:
            commands.append(words.CancelOrder(order, account))
        if kind != CANCEL:
            side = words.Side.BUY if is_bid else words.Side.SELL
            if kind == MARKET:
                how = (words.OrderType.MARKET, words.TimeInForce.IOC)
            else:
                how = (words.OrderType.LIMIT, words.TimeInForce.GTC)
            commands.append(words.NewOrder(order, account, side, price, lots, *how))
        calls: list[Call] = []
        for command in commands:
            self.sequence += 1
            calls.append((self.engine.process, (words.SequencedCommand(self.sequence, 0, command),)))
        return calls

    def traded(self, results: list[Any]) -> int:
        from matching_engine.events import Trade

        return sum(event.qty for events in results for event in events if isinstance(event, Trade))


class OrderlyChaos(Contestant):
    """C++ through ctypes, trades handed to a function. No replace, no accounts."""

    def __init__(self) -> None:
        from orderly_chaos import LimitOrderBook, Side

        self.trades: list[Any] = []
        self.book = LimitOrderBook(on_trade=self.trades.append)
        self.sides = {True: Side.BUY, False: Side.SELL}

    def calls(self, operation: Operation) -> list[Call]:
        kind, order, is_bid, _, lots, price, _ = operation
        enter: Call = (self.book.limit, (self.sides[is_bid], order, lots, price))
        if kind == LIMIT:
            return [enter]
        if kind == MARKET:
            return [(self.book.market, (self.sides[is_bid], order, lots))]
        cancel: Call = (self.book.cancel, (order,))
        return [cancel] if kind == CANCEL else [cancel, enter]

    def traded(self, results: list[Any]) -> int:
        return sum(trade.quantity for trade in self.trades)


class Akhil4n(Contestant):
    """Pure Python with sortedcontainers, trades in a list. No replace, no accounts."""

    def __init__(self) -> None:
        import orderbook

        self.words = orderbook
        self.book = orderbook.OrderBook()
        self.ids: dict[int, str] = {}

    def calls(self, operation: Operation) -> list[Call]:
        kind, order, is_bid, _, lots, price, _ = operation
        side = self.words.OrderSide.BID if is_bid else self.words.OrderSide.ASK
        calls: list[Call] = []
        if kind in {CANCEL, REPLACE}:
            calls.append((self.book.cancel_order, (self.ids[order],)))
        if kind == MARKET:
            calls.append((self.book.add_market_order, (self.words.MarketOrder(side, lots),)))
        elif kind != CANCEL:
            new = self.words.Order(side, price, lots)
            self.ids[order] = new.order_id
            calls.append((self.book.add_limit_order, (new,)))
        return calls

    def traded(self, results: list[Any]) -> int:
        return sum(trade.quantity_filled for trade in self.book.trade_log)


class PyOrderBook(Contestant):
    """Pure Python on decimals, trades returned. No replace, no market orders (a far limit), no accounts."""

    def __init__(self) -> None:
        import pyorderbook

        self.words = pyorderbook
        self.book = pyorderbook.Book()
        self.orders: dict[int, Any] = {}

    def calls(self, operation: Operation) -> list[Call]:
        kind, order, is_bid, _, lots, price, _ = operation
        calls: list[Call] = []
        if kind in {CANCEL, REPLACE}:
            calls.append((self.book.cancel, (self.orders[order],)))
        if kind != CANCEL:
            if kind == MARKET:
                price = 1_000_000 if is_bid else 1
            new = (self.words.bid if is_bid else self.words.ask)("X", price, lots)
            self.orders[order] = new
            calls.append((self.book.match, (new,)))
        return calls

    def traded(self, results: list[Any]) -> int:
        return sum(trade.fill_quantity for blotter in results if blotter for trade in blotter.trades)


class Peer(NamedTuple):
    """A package of PyPI: how to install it, the least Python it runs on, whether it is pure Python."""

    requirement: str
    python: tuple[int, int]
    pure: bool
    contestant: type[Contestant]


PEERS = {
    "bourse": Peer("bourse==0.4.0", (3, 11), False, Bourse),
    "matching-engine": Peer("matching-engine==0.1.1", (3, 12), True, MatchingEngine),
    "orderly-chaos": Peer("orderly-chaos==0.2.0", (3, 11), False, OrderlyChaos),
    "akhil4n-orderbook": Peer("akhil4n-orderbook==0.1.1", (3, 11), True, Akhil4n),
    "pyorderbook": Peer("pyorderbook==0.4.9", (3, 11), True, PyOrderBook),
}


class Measured(NamedTuple):
    """Processor time of the timed operations, and the lots that traded in them."""

    seconds: float
    traded_lots: int


def measure(make: Callable[[], Contestant], filling: list[Operation], timed: list[Operation]) -> Measured:
    """Let a contestant do the flow twice: once against the clock, once to see what it trades.

    The clock runs in a fresh process: what another engine leaves of its memory, in pieces, is no place for
    one that is measured. Operations are prepared a batch at a time, as a sequencer would get them, while the
    clock stands.
    """
    contestant = make()
    for operation in filling:
        run(contestant.calls(operation))
    # The collector as our core has it: what is there already is not looked at again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    seconds = 0.0
    for first in range(0, len(timed), BATCH):
        batch = timed[first : first + BATCH]
        calls = [call for operation in batch for call in contestant.calls(operation)]
        began = time.process_time()
        run(calls)
        seconds += time.process_time() - began
    began = time.process_time()
    contestant.finish()
    seconds += time.process_time() - began
    del contestant
    seen = make()
    for operation in filling:
        run(seen.calls(operation))
    results = [call(*arguments) for operation in timed for call, arguments in seen.calls(operation)]
    seen.finish()
    return Measured(seconds, seen.traded(results))


def run(calls: list[Call]) -> None:
    """Do the calls; what they return is dropped."""
    for call, arguments in calls:
        call(*arguments)


def main() -> None:
    """Measure one peer and print what was measured as JSON."""
    name, flow = sys.argv[1:]
    filling, timed = pickle.loads(Path(flow).read_bytes())
    print(json.dumps(measure(PEERS[name].contestant, filling, timed)._asdict()))


if __name__ == "__main__":
    main()
