"""Plans: what an hourly taker would get. Nothing here changes anything."""

from typing import Final

from mypy_extensions import mypyc_attr

from exchange.book import Book, CellSide, Level
from exchange.order import Order
from exchange.slots import CANCEL_BOTH, CANCEL_TAKER

NOT_STOPPED: Final = 0
AT_OWN: Final = 1
AT_BAND: Final = 2


@mypyc_attr(acyclic=True, free_list_len=1)
class Match:
    """A fill at the maker's price; with 0 lots the maker is the taker's own and is cancelled."""

    __slots__ = ("lots", "maker")

    def __init__(self, maker: Order, lots: int) -> None:
        self.maker = maker
        self.lots = lots


@mypyc_attr(acyclic=True, free_list_len=1)
class Plan:
    """The fills of an hourly taker, in order, and what stopped it before it was filled or found no more."""

    __slots__ = ("lots", "matches", "stopped")

    def __init__(self) -> None:
        self.matches: list[Match] = []
        self.lots = 0
        self.stopped = NOT_STOPPED


@mypyc_attr(acyclic=True, free_list_len=1)
class _Cursor:
    """The next order of one cell that the taker would meet."""

    __slots__ = ("level", "order")

    def __init__(self, level: Level) -> None:
        self.level: Level | None = level
        self.order: Order | None = level.oldest

    def step(self) -> None:
        """Go on to the next order in the cell."""
        order, level = self.order, self.level
        assert order is not None
        assert level is not None
        following = order.newer
        if following is None:
            worse = level.worse
            self.level = worse
            following = None if worse is None else worse.oldest
        self.order = following


def open_sides(book: Book, taker: Order) -> list[CellSide] | None:
    """Return the other side's cells that the taker may meet at its price, None if there are none."""
    found: list[CellSide] | None = None
    price, cell, served_by = taker.price, taker.cell, taker.served_by
    if taker.is_bid:
        for side in book.asks:
            best = side.best
            if best is not None and best.key <= price and served_by[side.cell]:
                if found is None:
                    found = []
                found.append(side)
    else:
        for side in book.bids:
            best = side.best
            if best is not None and -best.key >= price and side.served_by[cell]:
                if found is None:
                    found = []
                found.append(side)
    return found


def in_band(book: Book, supply: CellSide | None, price: int, band_permille: int) -> bool:
    """Say whether a trade of this supply cell may happen at this price."""
    if band_permille == 0:
        return True
    reference = book.reference_ticks(supply)
    off = price - reference if price > reference else reference - price
    return reference == 0 or off * 1000 <= reference * band_permille


def plan_hourly(sides: list[CellSide], taker: Order, band_permille: int) -> Plan:
    """Return the fills `taker` would get from these cells, by price, then time."""
    plan = Plan()
    wanted = taker.leaves_lots
    worst = taker.price if taker.is_bid else -taker.price
    book, mode, group = taker.book, taker.self_trade, taker.account.group
    own = None if taker.is_bid else book.ask_cells.get(taker.cell)
    cursors: list[_Cursor] = []
    for side in sides:
        best = side.best
        assert best is not None
        cursors.append(_Cursor(best))
    # Icebergs of the price at hand whose next slice stands behind all others, with what they still have.
    again: list[Match] = []
    again_key = 0
    while wanted:
        chosen: _Cursor | None = None
        key = priority = 0
        for cursor in cursors:
            order, level = cursor.order, cursor.level
            if order is None or level is None:
                continue
            if chosen is None or level.key < key or (level.key == key and order.priority < priority):
                chosen, key, priority = cursor, level.key, order.priority
        if again and (chosen is None or key != again_key):
            slice_of = again.pop(0)
            maker = slice_of.maker
            lots = min(wanted, maker.display_lots, slice_of.lots)
            if slice_of.lots > lots and lots == maker.display_lots:
                again.append(Match(maker, slice_of.lots - lots))
        elif chosen is None or key > worst:
            break
        else:
            order = chosen.order
            assert order is not None
            maker = order
            chosen.step()
            if maker.account.group == group:
                if taker.passes_own:
                    continue
                if mode == CANCEL_TAKER:
                    plan.stopped = AT_OWN
                    break
                plan.matches.append(Match(maker, 0))
                if mode == CANCEL_BOTH:
                    plan.stopped = AT_OWN
                    break
                continue
            if not in_band(book, maker.side if taker.is_bid else own, maker.price, band_permille):
                plan.stopped = AT_BAND
                break
            lots = min(wanted, maker.shown_lots)
            if lots == maker.shown_lots and maker.leaves_lots > lots:
                again_key = key
                again.append(Match(maker, maker.leaves_lots - lots))
        plan.matches.append(Match(maker, lots))
        plan.lots += lots
        wanted -= lots
    return plan
