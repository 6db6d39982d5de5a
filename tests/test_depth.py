"""Depth and its changes are the engine's book at every record."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from exchange.depth import Changes, Contract, Depth, Level, Supply
from schemas.commands import AnyCommand, CertifySite, ListStandingOffer, ReplaceOrder, Side, Tick
from schemas.events import (
    AnyEvent,
    BlockTraded,
    EndReason,
    OrderAccepted,
    OrderEnded,
    OrderListed,
    OrderReduced,
    OrderReplaced,
    SiteCertified,
    Traded,
)
from schemas.records import Decoded
from tests.market import BUYER, FIRST_HOUR, SELLER, ask, bid
from tests.test_engine_properties import STEPS, VENUES, Flow, any_step


def book_of(flow: Flow) -> dict[Contract, dict[Level, int]]:
    """Add up what the engine's own orders show."""
    levels: dict[Contract, dict[Level, int]] = {}
    for order in flow.engine.orders.values():
        if order.hours > 1:
            continue
        need = flow.terms[order.order_id].requirement
        cell = need or Supply(*flow.engine.market.eligibility.supply_terms(order.cell))
        level = Level(Side.BUY if order.is_bid else Side.SELL, cell, order.price)
        contract = levels.setdefault((order.book.class_code, order.hour), {})
        contract[level] = contract.get(level, 0) + order.shown_lots
    return levels


def take_in(levels: dict[Contract, dict[Level, int]], changes: Changes) -> None:
    """What a client does that knows only the changes."""
    for contract, changed in changes.items():
        mine = levels.setdefault(contract, {})
        for level, lots in changed.items():
            assert lots >= 0
            if lots:
                mine[level] = lots
            else:
                mine.pop(level, None)
        if not mine:
            del levels[contract]


class Watched:
    """A market, its depth, and a client that was sent the changes."""

    def __init__(self, terms: int) -> None:
        self.flow = Flow(VENUES[terms])
        self.depth = Depth()
        self.client: dict[Contract, dict[Level, int]] = {}
        for record in self.flow.records:
            assert self.depth.apply(record) == {}

    def do(self, step: object) -> None:
        take_in(self.client, self.depth.apply(self.flow.do(step)))  # type: ignore[arg-type]
        book = book_of(self.flow)
        assert self.depth.levels == book
        assert self.client == book
        assert {number: order.leaves_lot_hours for number, order in self.depth.orders.items()} == {
            order.order_id: order.leaves_lots * (order.hours if order.is_block else 1)
            for order in self.flow.engine.orders.values()
        }


@given(terms=st.integers(0, len(VENUES) - 1), steps=STEPS)
@settings(max_examples=max(50, settings().max_examples // 2))
def test_depth_and_changes_are_the_book_after_any_commands(terms: int, steps: list[list[object]]) -> None:
    market = Watched(terms)
    for few in steps:
        for step in few:
            market.do(step)


def test_depth_and_changes_are_the_book_through_long_days() -> None:
    held = {Side.BUY: 0, Side.SELL: 0}
    for seed in range(12):
        market = Watched(seed % len(VENUES))
        choose = random.Random(1000 + seed).choice
        for _ in range(300):
            market.do(any_step(choose))
            for levels in market.client.values():
                for level in levels:
                    held[level.side] += 1
    assert min(held.values()) > 1000


# -- records made by hand ----------------------------------------------------------------------------

CELL = Supply("east", "E", "S2")
CONTRACT = ("H100-SXM", FIRST_HOUR)


def record(command: AnyCommand, *events: AnyEvent) -> Decoded:
    return Decoded(1, 0, command, events)


def sold(lots: int, ask_order_id: int, taker: Side | None, bid_order_id: int = 9, block: int = 0) -> Traded:
    return Traded(
        trade_id=1,
        class_code="H100-SXM",
        delivery_hour=FIRST_HOUR,
        price_ticks=100,
        lots=lots,
        taker=taker,
        bid_order_id=bid_order_id,
        ask_order_id=ask_order_id,
        buyer=BUYER,
        seller=SELLER,
        site=1,
        block=block,
        notional_micros=1,
    )


def a_depth(**iceberg: int) -> Depth:
    """One site, and one ask of ten lots at 100, order 1."""
    depth = Depth()
    site = CertifySite(1, SELLER, "east", "H100-SXM", 10, "D", "S2", 0, FIRST_HOUR + 9)
    depth.apply(record(site, SiteCertified(1)))
    depth.apply(record(ask(1, 1, 10, 100, **iceberg), OrderAccepted(1, 0)))
    return depth


def asks(depth: Depth, side: Side = Side.SELL) -> dict[int, int]:
    """Shown lots by price."""
    levels = depth.levels.get(CONTRACT, {})
    return {level.price_ticks: lots for level, lots in levels.items() if level.side is side}


def replaced(lots: int, price: int, leaves: int) -> Decoded:
    command = ReplaceOrder(account=SELLER, order_id=1, valid_until_ns=0, lots=lots, price_ticks=price)
    return record(command, OrderReplaced(1, SELLER, lots, price, leaves, 0))


def bought(lots: int, *more: AnyEvent) -> Decoded:
    return record(bid(9, lots, 100), OrderAccepted(9, 0), sold(lots, 1, Side.BUY), *more)


def test_of_an_iceberg_the_shown_slice_alone_is_depth_and_the_next_follows_when_it_is_sold() -> None:
    depth = a_depth(display_lots=4)
    assert asks(depth) == {100: 4}
    depth.apply(bought(3))
    assert asks(depth) == {100: 1}
    depth.apply(bought(1))
    assert asks(depth) == {100: 4}
    # One slice goes and one of the same size comes: nobody sees a change.
    assert depth.apply(bought(4)) == {CONTRACT: {Level(Side.SELL, CELL, 100): 2}}
    assert depth.apply(bought(2)) == {CONTRACT: {Level(Side.SELL, CELL, 100): 0}}
    assert (depth.levels, depth.orders) == ({}, {})


def test_a_slice_that_follows_one_of_its_size_is_no_change() -> None:
    assert a_depth(display_lots=4).apply(bought(4)) == {}


def test_what_an_iceberg_takes_on_entry_counts_as_shown() -> None:
    depth = a_depth()
    depth.apply(record(bid(8, 9, 100, display_lots=5), OrderAccepted(8, 0), sold(3, 1, Side.BUY, 8)))
    assert asks(depth, Side.BUY) == {100: 2}
    depth.apply(record(Tick(), OrderEnded(8, BUYER, 6, 0, EndReason.GATE)))
    depth.apply(record(bid(9, 12, 100, display_lots=6), OrderAccepted(9, 0), sold(7, 1, Side.BUY)))
    assert (asks(depth), asks(depth, Side.BUY)) == ({}, {100: 5})
    depth.apply(record(Tick(), OrderEnded(9, BUYER, 5, 0, EndReason.GATE)))
    assert depth.levels == {}


def test_a_block_and_a_call_take_hidden_lots_too_and_the_next_slice_is_shown() -> None:
    block = bid(8, 6, 100, hours=2)
    for command, events in (
        (block, (OrderAccepted(8, 0), BlockTraded(8, 1, (sold(6, 1, Side.BUY, 8, 8),)))),
        (bid(9, 6, 100), (OrderAccepted(9, 0), sold(6, 1, None))),
    ):
        depth = a_depth(display_lots=4)
        depth.apply(record(command, *events))
        assert asks(depth) == {100: 4}
        assert depth.orders[1].leaves_lot_hours == 4


def test_fewer_lots_at_the_same_price_take_the_hidden_ones_first() -> None:
    depth = a_depth(display_lots=4)
    depth.apply(bought(1))
    depth.apply(replaced(8, 100, 7))
    assert asks(depth) == {100: 3}
    depth.apply(replaced(3, 100, 2))
    assert asks(depth) == {100: 2}


def test_any_other_replace_shows_a_new_slice() -> None:
    for lots, price in ((12, 100), (9, 101), (10, 99)):
        depth = a_depth(display_lots=4)
        depth.apply(bought(1))
        depth.apply(replaced(lots, price, lots - 1))
        assert asks(depth) == {price: 4}
        depth.apply(bought(4))
        assert asks(depth) == {price: 4}


def test_a_replaced_order_moves_with_all_it_has_left() -> None:
    depth = a_depth()
    depth.apply(bought(3))
    changes = depth.apply(replaced(8, 90, 5))
    assert changes == {CONTRACT: {Level(Side.SELL, CELL, 100): 0, Level(Side.SELL, CELL, 90): 5}}


def test_a_cut_takes_the_hidden_lots_first() -> None:
    depth = a_depth(display_lots=4)
    assert depth.apply(record(Tick(), OrderReduced(1, SELLER, 5, 5, 0, EndReason.CAPACITY))) == {}
    depth.apply(record(Tick(), OrderReduced(1, SELLER, 2, 3, 0, EndReason.CAPACITY)))
    assert asks(depth) == {100: 3}


def test_a_cut_lowers_the_total_that_a_replace_is_measured_by() -> None:
    depth = a_depth(display_lots=4)
    depth.apply(bought(1))
    depth.apply(record(Tick(), OrderReduced(1, SELLER, 4, 5, 0, EndReason.CAPACITY)))
    assert asks(depth) == {100: 3}
    # Six lots are left in all: seven are more, and so a new slice is shown.
    depth.apply(replaced(7, 100, 6))
    assert asks(depth) == {100: 4}


def test_an_order_that_a_standing_offer_listed_is_depth_like_any_other() -> None:
    depth = a_depth()
    depth.apply(record(ListStandingOffer(1), OrderListed(2, 1, 0, ask(2, 1, 3, 120))))
    assert asks(depth) == {100: 10, 120: 3}


def test_a_run_is_not_in_the_depth_and_goes_with_its_last_lot_hour() -> None:
    depth = a_depth()
    assert depth.apply(record(ask(2, 1, 2, 90, hours=3), OrderAccepted(2, 0))) == {}
    block = bid(3, 2, 100, hours=2)
    legs = (sold(2, 2, Side.BUY, 3, 3), sold(2, 2, Side.BUY, 3, 3))
    assert depth.apply(record(block, OrderAccepted(3, 0), BlockTraded(3, 1, legs))) == {}
    assert {number: order.leaves_lot_hours for number, order in depth.orders.items()} == {1: 10, 2: 2}
    reduced = OrderReduced(2, SELLER, 1, 1, 0, EndReason.GATE, (0, 0, 1))
    assert depth.apply(record(Tick(), reduced)) == {}
    depth.apply(record(block, OrderAccepted(4, 0), BlockTraded(4, 1, (sold(1, 2, Side.BUY, 4, 4),))))
    assert set(depth.orders) == {1, 4}


def test_a_replaced_block_is_still_whole() -> None:
    depth = a_depth()
    depth.apply(record(bid(2, 3, 100, hours=2), OrderAccepted(2, 0)))
    command = ReplaceOrder(account=BUYER, order_id=2, valid_until_ns=0, lots=2, price_ticks=100)
    depth.apply(record(command, OrderReplaced(2, BUYER, 2, 100, 2, -5)))
    legs = (sold(2, 1, Side.BUY, 2, 2), sold(2, 1, Side.BUY, 2, 2))
    depth.apply(record(Tick(), BlockTraded(2, 1, legs)))
    assert set(depth.orders) == {1}


def test_a_certificate_that_was_refused_changes_no_cell() -> None:
    depth = a_depth()
    depth.apply(record(CertifySite(1, BUYER, "west", "H100-SXM", 1, "A", "S4", 0, 1)))
    depth.apply(record(ask(2, 1, 1, 100), OrderAccepted(2, 0)))
    assert depth.levels[CONTRACT] == {Level(Side.SELL, CELL, 100): 11}
