"""The book keeps what it finds fast in order: levels of a side, books of a class, runs of a site."""

import random

from msgspec.structs import replace

from exchange.book import CHUNK, MANY_LEVELS, NEAR_HOURS, NEAR_MASK, CellSide
from exchange.engine import Engine, restored
from schemas.commands import CancelOrder, CertifySite, ReplaceOrder
from schemas.events import BlockTraded, OrderAccepted, OrderReplaced, Traded
from tests.market import AUTHORITY, BUYER, CLASS, FIRST_HOUR, SELLER, START_NS, ask, bid, started
from tests.small_venue import SMALL_VENUE

LARGE = 4
"""A site with room for all asks."""


def market() -> Engine:
    """A market that takes many orders."""
    limits = replace(SMALL_VENUE.limits, open_orders_max=10_000)
    engine = started(replace(SMALL_VENUE, limits=limits, horizon_hours=3 * NEAR_HOURS))
    until = FIRST_HOUR + 3 * NEAR_HOURS
    site = CertifySite(LARGE, SELLER, "east", CLASS, 1000, "D", "S2", 0, until, authority=AUTHORITY)
    engine.apply(START_NS, site)
    return engine


def the_side(engine: Engine, is_bid: bool) -> CellSide:
    """The one side on which something was entered."""
    book = engine.market.classes[CLASS].books[FIRST_HOUR]
    (side,) = book.bids if is_bid else book.asks
    return side


def fill_and_empty(is_bid: bool) -> None:
    """Let orders of many prices come and go; those that are left trade best first, then the oldest first."""
    draw, engine = random.Random(5), market()
    waiting: dict[int, int] = {}
    account, order = BUYER if is_bid else SELLER, 0
    # More come than go, then more go: levels appear and vanish at the ends and between, few and many.
    for step in range(1, 1001):
        if waiting and draw.random() < (0.2 if step <= 300 else 0.6):
            gone = draw.choice(list(waiting))
            engine.apply(START_NS, CancelOrder(account, gone))
            del waiting[gone]
        else:
            # Prices next to each other, and prices that share a place among those found last.
            price = 1 + draw.randrange(60) + (NEAR_MASK + 1) * draw.randrange(3)
            order += 1
            entered = bid(order, 1, price) if is_bid else ask(order, LARGE, 1, price)
            (accepted,) = engine.apply(START_NS, entered)
            assert isinstance(accepted, OrderAccepted)
            waiting[order] = price
        if step % 20 == 0:
            engine.check()
        if step == 300:
            assert the_side(engine, is_bid).count > MANY_LEVELS
            assert the_side(engine, is_bid).index is not None
    assert 10 < the_side(engine, is_bid).count < MANY_LEVELS
    taker = ask(order + 1, LARGE, 10, 1) if is_bid else bid(order + 1, 10, 10_000)
    traded = [event for event in engine.apply(START_NS, taker) if isinstance(event, Traded)]
    best = sorted(waiting, key=lambda order: (-waiting[order] if is_bid else waiting[order], order))
    assert [event.bid_order_id if is_bid else event.ask_order_id for event in traded] == best[:10]
    engine.check()


def test_bids_of_many_prices_come_go_and_trade_best_first() -> None:
    fill_and_empty(is_bid=True)


def test_asks_of_many_prices_come_go_and_trade_best_first() -> None:
    fill_and_empty(is_bid=False)


def test_hours_that_share_a_place_among_those_found_last_are_told_apart() -> None:
    engine = market()
    hours = [FIRST_HOUR, FIRST_HOUR + NEAR_HOURS + 1, FIRST_HOUR + 1]
    for turn in range(2):
        for number, hour in enumerate(hours):
            engine.apply(START_NS, bid(10 * turn + number, 1, 100 + number, delivery_hour=hour))
            engine.check()
    for number, hour in enumerate(hours):
        sold = engine.apply(START_NS, ask(100 + number, LARGE, 2, 1, delivery_hour=hour))
        trades = [event for event in sold if isinstance(event, Traded)]
        assert [(trade.delivery_hour, trade.price_ticks) for trade in trades] == [(hour, 100 + number)] * 2


def test_runs_that_come_and_go_sell_best_first() -> None:
    draw, engine = random.Random(6), market()
    waiting: dict[int, int] = {}
    for order in range(1, 200):
        price = 100 + draw.randrange(30)
        run = ask(order, LARGE, 1, price, hours=2, min_hours=1)
        (accepted,) = engine.apply(START_NS, run)
        assert isinstance(accepted, OrderAccepted)
        waiting[order] = price
        # The best stays, else all that have ended before it would be let go at once.
        while len(waiting) > 12:
            gone = draw.choice(sorted(waiting, key=lambda order: (waiting[order], order))[1:])
            engine.apply(START_NS, CancelOrder(SELLER, gone))
            del waiting[gone]
        engine.check()
    _, traded = engine.apply(START_NS, bid(1000, 5, 200, hours=2))
    assert isinstance(traded, BlockTraded)
    best = sorted(waiting, key=lambda order: (waiting[order], order))
    assert [leg.ask_order_id for leg in traded.legs] == 2 * best[:5]


def test_asks_that_come_move_and_go_sell_to_blocks_best_first() -> None:
    draw, engine = random.Random(7), market()
    # Tried once, and too dear: from now on the site has its asks at hand.
    engine.apply(START_NS, bid(1, 1, 1, hours=2))
    waiting: dict[int, tuple[int, int]] = {}
    for order in range(2, 300):
        hour, price = draw.randrange(2), 100 + draw.randrange(30)
        moved = draw.choice(sorted(waiting)) if waiting and draw.random() < 0.3 else 0
        if moved:
            hour = waiting[moved][0]
            (told,) = engine.apply(
                START_NS,
                ReplaceOrder(
                    account=SELLER, order_id=moved, valid_until_ns=START_NS, lots=1, price_ticks=price
                ),
            )
            if isinstance(told, OrderReplaced):
                del waiting[moved]
                waiting[moved] = hour, price
        entered = ask(order, LARGE, 1, 100 + draw.randrange(30), delivery_hour=FIRST_HOUR + hour)
        (accepted,) = engine.apply(START_NS, entered)
        assert isinstance(accepted, OrderAccepted)
        waiting[accepted.order_id] = hour, entered.price_ticks
        while len(waiting) > 12:
            gone = draw.choice(sorted(waiting))
            engine.apply(START_NS, CancelOrder(SELLER, gone))
            del waiting[gone]
        if order % 10 == 0:
            engine.check()
    # In the order of their times, so that a stable sort by price is by price, then time.
    best = [
        sorted((o for o in waiting if waiting[o][0] == hour), key=lambda o: waiting[o][1]) for hour in (0, 1)
    ]
    _, traded = engine.apply(START_NS, bid(1000, 3, 200, hours=2))
    assert isinstance(traded, BlockTraded)
    assert [leg.ask_order_id for leg in traded.legs] == best[0][:3] + best[1][:3]


def test_open_orders_are_found_by_their_numbers_also_where_many_between_have_ended_and_after_a_restore() -> (
    None
):
    engine = market()
    kept = [1, 2, CHUNK - 1, CHUNK, 2 * CHUNK + 7]
    for order in range(1, kept[-1] + 1):
        engine.apply(START_NS, bid(order, 1, 100))
        if order not in kept:
            engine.apply(START_NS, CancelOrder(BUYER, order))
    for again in (engine, restored(engine.encoded_state())):
        assert list(again.orders) == kept
        for order in kept:
            assert again.market.orders.get(order) is again.orders[order]
        assert again.market.orders.get(3) is None
        for order in kept:
            assert type(again.apply(START_NS, CancelOrder(BUYER, order))[0]).__name__ == "OrderEnded"
            assert again.market.orders.get(order) is None
        # Those before the last hold no places any more.
        assert [len(chunk.orders) for chunk in again.market.orders._chunks[:-1]] == [0, 0]
        again.apply(START_NS, bid(kept[-1] + 1, 1, 100))
        assert list(again.orders) == [kept[-1] + 1]
