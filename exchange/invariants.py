"""What is true of the market after every command: DESIGN's invariants, asserted from the state alone."""

from exchange.blocks import eligible_sites, opened, plan_block
from exchange.book import CALL, CLEARING, CONTINUOUS, Book, CellSide
from exchange.market import Market
from exchange.matching import open_sides
from exchange.order import Order
from exchange.state import balances


def check(market: Market) -> None:
    """Assert every invariant; slow.

    No eligible cross of two trade groups in continuous trading; no block that could trade unless its
    retry is pending; open orders stand in their books and nowhere else; reserves and purses as the
    orders say; no sale beyond capacity or position; money sums to zero.
    """
    assert sum(balances(market).values()) == 0
    _check_money(market)
    _check_places(market)
    standing: dict[int, int] = {}
    for listed in market.class_list:
        for near in [*listed.near, listed.recent]:
            assert near is None or listed.books[near.hour] is near
        for hour, book in listed.books.items():
            assert book.hour == hour > market.closed_hour
            _check_book(market, book)
            for order in book.resting() + list(book.blocks.values()):
                standing[order.order_id] = standing.get(order.order_id, 0) + 1
    books = [book for listed in market.class_list for book in listed.books.values()]
    in_call = {(book.class_code, book.hour): book for book in books if book.phase in (CALL, CLEARING)}
    assert market.in_call == in_call
    for site in market.sites.values():
        for run in site.runs.values():
            standing[run.order_id] = 1
    for order in market.orders.all():
        order_id = order.order_id
        assert market.orders.get(order_id) is order
        assert order.leaves_lots > 0, order_id
        # A block stands in the book of each hour, all else in one place.
        assert standing.pop(order_id, 0) == (order.hours if order.is_block else 1), order_id
        assert order.listing is not None or order.account.client_orders[order.client_order_id] is order
    for offer in market.listings.values():
        for order in offer.open_orders.values():
            if order.hours == 1:
                assert order.filled_lots <= offer.traded.get(order.hour, 0), offer.offer_id
    assert not standing, f"orders that stand in a book and are not open: {standing}"


def _check_money(market: Market) -> None:
    reserved: dict[int, int] = {}
    count: dict[int, int] = {}
    seen: dict[tuple[int, str], bool] = {}
    for order in market.orders.all():
        number = order.account.account
        count[number] = count.get(number, 0) + 1
        pledge, group = order.pledge, order.exclusive
        assert pledge.reserved_micros == order.required_micros(market.terms), order.order_id
        if group is not None:
            assert group.members[order.order_id] is order
            assert order.account.groups[group.name] is group
            if (number, group.name) in seen:
                continue
            seen[number, group.name] = True
            leaves = [member.leaves_lots for member in group.members.values()]
            assert min(leaves) == max(leaves), f"group {group.name} of {number}: {leaves}"
        reserved[number] = reserved.get(number, 0) + pledge.reserved_micros
    for number, account in market.accounts.items():
        assert account.reserved == reserved.get(number, 0), number
        assert account.open_orders == count.get(number, 0), number
        assert min(account.committed, account.bond) >= 0, number
        assert all(group.members for group in account.groups.values())


def _check_places(market: Market) -> None:
    """Sold and open lots of each kind, by site and hour, are what the orders say and fit."""
    asks: dict[tuple[int, int], int] = {}
    runs: dict[tuple[int, int], int] = {}
    resold: dict[int, int] = {}
    hourly: dict[tuple[int, int], list[Order]] = {}
    for order in market.orders.all():
        if order.is_bid:
            _check_quantity(order)
            continue
        site, position = order.site, order.position
        assert site is not None
        if order.run_lots is not None:
            assert sum(order.run_lots) == order.leaves_lots
            assert opened(order.run_lots, order.min_hours) == order.run_lots
            assert order.worth_micros == order.price * order.leaves_lots * order.tick_lot_micros
            for index, lots in enumerate(order.run_lots):
                key = (site.number, order.hour + index)
                runs[key] = runs.get(key, 0) + lots
            continue
        _check_quantity(order)
        assert order.site_hour is site.hours[order.hour]
        hourly.setdefault((site.number, order.hour), []).append(order)
        if position is not None:
            resold[position.trade.trade_id] = resold.get(position.trade.trade_id, 0) + order.leaves_lots
        else:
            asks[site.number, order.hour] = asks.get((site.number, order.hour), 0) + order.leaves_lots
    for trade_id, lots in resold.items():
        fill = market.fills[trade_id - 1]
        assert fill.trade.trade_id == trade_id
        assert lots <= fill.resale_lots <= fill.trade.lots
    for number, site in market.sites.items():
        runs_by_price = [run for run in site.best_runs() if run.leaves_lots]
        assert runs_by_price == sorted(site.runs.values(), key=lambda o: (o.price, o.priority))
        for hour, place in site.hours.items():
            assert place.open_asks == asks.pop((number, hour), 0), (number, hour)
            assert place.open_runs == runs.pop((number, hour), 0), (number, hour)
            for open_lots in (place.open_asks, place.open_runs):
                assert open_lots == 0 or place.sold + open_lots <= place.capacity, (number, hour)
            at_site = hourly.pop((number, hour), [])
            assert len(at_site) == place.asks
            book = site.listed.books.get(hour)
            assert place.listed is None or (book is not None and book.lists_asks)
            if book is not None and book.lists_asks:
                listed = [] if place.listed is None else place.listed
                assert sorted(listed, key=lambda o: o.order_id) == at_site
            assert place.earlier is None or place.earlier is site.hours[hour - 1]
            assert place.later is None or place.later is site.hours[hour + 1]
            if place.waiting is not None:
                blocks = [] if book is None else [b for b in book.blocks.values() if b.served_by[site.cell]]
                waiting = [block for block in place.waiting if block.leaves_lots]
                assert waiting == sorted(blocks, key=lambda o: (-o.price, o.priority))
                assert all(block.hours <= place.longest for block in waiting)
            if place.by_price is not None:
                assert place.by_price is place.listed
                assert place.by_price == sorted(at_site, key=lambda o: (o.price, o.priority))
    assert not asks
    assert not hourly
    assert not any(runs.values())


def _check_quantity(order: Order) -> None:
    assert order.worth_micros == order.price * order.leaves_lots * order.hours * order.tick_lot_micros
    if order.display_lots:
        assert 0 < order.shown_lots <= min(order.display_lots, order.leaves_lots)
    else:
        assert order.shown_lots == order.leaves_lots


def _check_side(side: CellSide) -> None:
    levels = side.levels()
    keys = [level.key for level in levels]
    assert keys == sorted(set(keys))
    assert side.count == len(levels)
    index = side.index
    if index is not None:
        assert index.levels == dict(zip(keys, levels, strict=True))
        assert list(index.keys) == keys
        assert all(level is None or index.levels[level.key] is level for level in index.near)
    better = None
    for level in levels:
        assert level.better is better
        better = level
        order, last = level.oldest, None
        assert order is not None
        while order is not None:
            assert order.level is level
            assert order.older is last
            assert order.cell == side.cell
            assert (-order.price if side.is_bid else order.price) == level.key
            assert order.side is side
            assert last is None or last.priority < order.priority
            last, order = order, order.newer
        assert level.newest is last


def _check_book(market: Market, book: Book) -> None:
    assert sorted(side.cell for side in book.bids) == sorted(book.bid_cells)
    assert sorted(side.cell for side in book.asks) == sorted(book.ask_cells)
    for side in [*book.bids, *book.asks]:
        _check_side(side)
    if book.phase != CONTINUOUS:
        return
    for bids in book.bids:
        for bid in bids.orders():
            sides = open_sides(book, bid)
            if sides is None:
                # The best bid of the cell meets nothing, so no other does.
                break
            for asks in sides:
                for ask in asks.orders():
                    if ask.price > bid.price:
                        break
                    assert ask.account.group == bid.account.group, f"{bid.order_id} crosses {ask.order_id}"
    for block in book.blocks.values():
        if block.order_id not in market.pending_retries and block.hour == book.hour:
            plan = plan_block(market, block, eligible_sites(block))
            assert plan is None, f"block {block.order_id} could trade at {plan.site.number}"
