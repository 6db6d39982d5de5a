"""Phases: halts, and calls from their start to their clearing."""

from exchange.auction import CallBook, CallOrder, CellClearing, fault
from exchange.book import CALL, CLEARING, CONTINUOUS, HALTED, PRE_OPEN, Book
from exchange.contract import HOUR_NS
from exchange.hourly import meet
from exchange.market import PHASES, SECOND_NS, Events, Market, refuse
from exchange.order import Order
from exchange.slots import AUCTION
from schemas.commands import CellPrice, EndCall, ProposeClearing
from schemas.events import CallCleared, EndReason
from schemas.reasons import RejectReason


def _listed_book(market: Market, class_code: str, hour: int) -> Book | None:
    """Return the book of a contract that is listed and not closed, or refuse."""
    listed = market.listed_class(class_code)
    market.check_tradable(hour, hour, "delivery_hour")
    return listed.books.get(hour)


def _refuse_phase(phase: int, wanted: str) -> None:
    refuse(RejectReason.WRONG_PHASE, "delivery_hour", f"a contract that is {wanted}; it is {PHASES[phase]}")


def halt(market: Market, class_code: str, hour: int) -> Events:
    """Halt a contract."""
    book = _listed_book(market, class_code, hour)
    if book is None:
        book = market.book(market.listed_class(class_code), hour)
    if book.phase == HALTED:
        _refuse_phase(HALTED, "not halted")
    return [market.enter_phase(book, HALTED)]


def resume(market: Market, class_code: str, hour: int) -> Events:
    """Restart a halted contract through a call."""
    book = _listed_book(market, class_code, hour)
    if book is None or book.phase != HALTED:
        _refuse_phase(CONTINUOUS if book is None else book.phase, "halted")
    assert book is not None
    return [market.enter_phase(book, CALL)]


def end_call(market: Market, command: EndCall) -> Events:
    """End a call at the moment that was drawn for it."""
    book = _listed_book(market, command.class_code, command.delivery_hour)
    if book is None or book.phase != CALL:
        _refuse_phase(CONTINUOUS if book is None else book.phase, "in a call")
    assert book is not None
    earliest_ns = book.phase_since_ns + market.calls.min_seconds * SECOND_NS
    if market.time_ns < earliest_ns:
        refuse(
            RejectReason.WRONG_PHASE, "delivery_hour", f"a call that has lasted {market.calls.min_seconds} s"
        )
    return _ended(market, book)


def call_is_due(market: Market, hour: int, index: int, due_ns: int) -> Events:
    """Open the call of a contract in `pre_open`, or end one that has lasted as long as it may."""
    book = market.class_list[index].books.get(hour)
    if book is None:
        return []
    if book.phase == PRE_OPEN:
        opened_ns = (hour - market.horizon_hours) * HOUR_NS + market.calls.pre_open_seconds * SECOND_NS
        if due_ns != opened_ns:
            return []
        opened = market.enter_phase(book, CALL)
        return [opened]
    # A later call has its own time: what was due for an earlier one is over.
    if book.phase != CALL or due_ns < book.phase_since_ns + market.calls.max_seconds * SECOND_NS:
        return []
    return _ended(market, book)


def _ended(market: Market, book: Book) -> Events:
    low, high = collar_of(market, book)
    if _may_trade(book, low, high):
        return [market.enter_phase(book, CLEARING)]
    return _over(market, book, low, high)


def _may_trade(book: Book, low: int, high: int) -> bool:
    """Say whether any ask may meet a bid at the collar's prices."""
    for bids in book.bids:
        if bids.best is None or -bids.best.key < low:
            continue
        for asks in book.asks:
            best = asks.best
            if best is not None and best.key <= min(-bids.best.key, high) and bids.served_by[asks.cell]:
                return True
    return False


def _over(market: Market, book: Book, low: int, high: int) -> Events:
    """Let a call be over: what was for it alone, or is beyond the collar, ends."""
    for_call: list[Order] = []
    beyond: list[Order] = []
    for order in book.resting():
        if order.time_in_force == AUCTION:
            for_call.append(order)
        elif order.price > high if order.is_bid else order.price < low:
            beyond.append(order)
    events = market.end_all(for_call, EndReason.CALL_ENDED)
    events += market.end_all(beyond, EndReason.BAND)
    events.append(market.enter_phase(book, CONTINUOUS))
    return events


def collar_of(market: Market, book: Book) -> tuple[int, int]:
    """Return the lowest and highest price at which the call may clear."""
    if book.collar_stale:
        market.set_collar(book)
    return (book.collar_low, book.collar_high) if book.collar_high else (1, market.price_max)


def call_book(market: Market, book: Book) -> CallBook:
    """Return what takes part in the contract's call."""
    asks: list[CallOrder] = []
    bids: list[CallOrder] = []
    for order in book.resting():
        taking_part = CallOrder(order.order_id, order.price, order.leaves_lots, order.cell, order.priority)
        if order.is_bid:
            bids.append(taking_part)
        else:
            asks.append(taking_part)
    low, high = collar_of(market, book)
    return CallBook(asks, bids, market.eligibility.served_by, low, high)


def propose(market: Market, command: ProposeClearing) -> Events:
    """Check a proposed clearing and, if it is the right one, let the call trade by it."""
    book = _listed_book(market, command.class_code, command.delivery_hour)
    if book is None or book.phase != CLEARING:
        _refuse_phase(CONTINUOUS if book is None else book.phase, "clearing")
    assert book is not None
    cells: list[CellClearing] = []
    for price in command.prices:
        cell = market.eligibility.find_supply_cell(price.zone, price.carbon, price.security)
        if cell < 0:
            refuse(RejectReason.CLEARING_PRICES_WRONG, "prices", "supply cells of the venue")
        cells.append(CellClearing(cell, price.lowest_ticks, price.highest_ticks, price.price_ticks))
    reason = fault(call_book(market, book), command.fills, cells)
    if reason is not None:
        refuse(reason, "fills", "the one clearing that is right by rule")
    # The collar under which the orders were collected: the prices of this call move it.
    low, high = collar_of(market, book)
    lots = 0
    for fill in command.fills:
        lots += fill.lots
    events: Events = [CallCleared(book.class_code, book.hour, lots, command.prices)]
    ticks = {cell.cell: cell.price_ticks for cell in cells}
    for fill in command.fills:
        bid, ask = market.orders.get(fill.bid_order_id), market.orders.get(fill.ask_order_id)
        assert bid is not None
        assert ask is not None
        meet(market, bid, ask, ticks[ask.cell], fill.lots, 0, ask.price, events)
    for cleared in cells:
        book.moved_reference(book.ask_cells[cleared.cell]).call(cleared.price_ticks)
    return events + _over(market, book, low, high)


def price_of(market: Market, cell: CellClearing) -> CellPrice:
    """Return a cell's clearing in words."""
    zone, carbon, security = market.eligibility.supply_terms(cell.cell)
    return CellPrice(zone, carbon, security, cell.lowest_ticks, cell.highest_ticks, cell.price_ticks)
