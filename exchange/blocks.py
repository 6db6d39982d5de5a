"""Blocks, which are filled whole from one site, and runs, which sell stretches of hours to them."""

from typing import Final

from exchange import slots
from exchange.book import CONTINUOUS, Book, Site, SiteHour
from exchange.market import Events, Market, contains, refuse
from exchange.order import Order
from exchange.slots import IOC
from schemas.events import EndReason
from schemas.reasons import RejectReason

NEVER: Final = 2**61
"""More than any block pays for a lot in all its hours."""


class Leg:
    """Lots that one ask gives in one hour."""

    __slots__ = ("ask", "hour", "lots")

    def __init__(self, ask: Order, hour: int, lots: int) -> None:
        self.ask = ask
        self.hour = hour
        self.lots = lots


class BlockPlan:
    """The legs that fill a block whole from one site, hour by hour, and their cost in tick-lots."""

    __slots__ = ("cost", "legs", "of_runs", "site")

    def __init__(self, site: Site, cost: int, legs: list[Leg], of_runs: bool) -> None:
        self.site = site
        self.cost = cost
        self.legs = legs
        self.of_runs = of_runs


def opened(lots: list[int], stretch: int) -> list[int]:
    """Return, hour by hour, the lots that belong to a stretch of at least `stretch` hours.

    That is the greatest profile of no more lots in which every lot does.
    """
    size = len(lots)
    result = [0] * size
    for start in range(size - stretch + 1):
        least = min(lots[start : start + stretch])
        if least:
            for index in range(start, start + stretch):
                result[index] = max(result[index], least)
    return result


def after_sale(run: Order, first: int, hours: int, wanted: int) -> int:
    """Return how many lots a run gives a block in these hours: all it has of those wanted, or none."""
    lots = run.run_lots
    start = first - run.hour
    if lots is None or start < 0 or start + hours > run.hours or hours < run.min_hours:
        return 0
    least = min(lots[start : start + hours])
    given = min(wanted, least)
    if given <= 0:
        return 0
    left = list(lots)
    for index in range(start, start + hours):
        left[index] -= given
    return given if opened(left, run.min_hours) == left else 0


def all_continuous(market: Market, block: Order) -> bool:
    """Say whether every hour of the block's window trades continuously."""
    listed = block.book.listed
    for hour in range(block.hour, block.hour + block.hours):
        if market.phase_of(listed, hour) != CONTINUOUS:
            return False
    return True


def list_asks(block: Order) -> None:
    """Let the sites have their asks at hand in every hour of the block's window."""
    listed = block.book.listed
    for hour in range(block.hour, block.hour + block.hours):
        book = listed.at(hour)
        if book is not None:
            book.list_asks()


def plan_block(
    market: Market, block: Order, sites: list[Site], of_asks: bool = True, of_runs: bool = True
) -> BlockPlan | None:
    """Return the cheapest way to fill the block from one of the sites, which ascend by number.

    Ties go to the lower number, and there to hourly asks. `of_asks` and `of_runs` say which are looked at.
    """
    if not all_continuous(market, block):
        return None
    list_asks(block)
    best: BlockPlan | None = None
    most = block.price * block.leaves_lots * block.hours
    for site in sites:
        best = _plan_at(block, site, most, best, of_asks, of_runs)
    return best


def _plan_at(
    block: Order, site: Site, most: int, best: BlockPlan | None, of_asks: bool, of_runs: bool
) -> BlockPlan | None:
    """Return how to fill the block at a site, or the best plan so far where that is as good."""
    if of_asks:
        plan = _plan_of_asks(block, site, most if best is None else best.cost - 1)
        if plan is not None:
            best = plan
    if of_runs and site.runs:
        plan = _plan_of_runs(block, site, most if best is None else best.cost - 1)
        if plan is not None:
            best = plan
    return best


def _least_of_asks(block: Order, site: Site) -> int:
    """Return what a lot in every hour costs at least of the site's hourly asks; no block bids NEVER."""
    cost, last = 0, block.hour + block.hours - 1
    place = site.hours.get(block.hour)
    for hour in range(block.hour, last + 1):
        price = 0 if place is None else place.lowest_ask()
        if place is None or price == 0:
            return NEVER
        cost += price
        if hour < last:
            place = site.later_than(place, hour)
    return cost


def _plan_of_asks(block: Order, site: Site, most: int) -> BlockPlan | None:
    lots, group, served = block.leaves_lots, block.account.group, block.served_by
    if _least_of_asks(block, site) * lots > most:
        return None
    places: list[SiteHour] = [site.hours[hour] for hour in range(block.hour, block.hour + block.hours)]
    cost = 0
    legs: list[Leg] = []
    for place in places:
        wanted = lots
        for ask in place.best_first():
            if ask.exclusive is not None or ask.account.group == group or not served[ask.cell]:
                continue
            taken = min(wanted, ask.leaves_lots)
            legs.append(Leg(ask, ask.hour, taken))
            cost += ask.price * taken
            wanted -= taken
            if wanted == 0:
                break
        if wanted or cost > most:
            return None
    return BlockPlan(site, cost, legs, False)


def _plan_of_runs(block: Order, site: Site, most: int) -> BlockPlan | None:
    wanted, group, served = block.leaves_lots, block.account.group, block.served_by
    cost = 0
    given: list[tuple[Order, int]] = []
    for run in site.best_runs():
        if cost + run.price * wanted * block.hours > most:
            # Nor would a dearer one do for what is still wanted.
            return None
        if run.account.group == group or not served[run.cell]:
            continue
        lots = after_sale(run, block.hour, block.hours, wanted)
        if lots:
            given.append((run, lots))
            cost += run.price * lots * block.hours
            wanted -= lots
            if wanted == 0:
                break
    if wanted or cost > most:
        return None
    legs: list[Leg] = []
    for hour in range(block.hour, block.hour + block.hours):
        for run, lots in given:
            legs.append(Leg(run, hour, lots))
    return BlockPlan(site, cost, legs, True)


def trade_block(market: Market, block: Order, plan: BlockPlan, events: Events) -> None:
    """Fill the block by the plan, with all that follows."""
    trades: list[slots.Traded] = []
    lots = block.leaves_lots
    market.leave_books(block)
    sold: dict[int, bool] = {}
    last = len(plan.legs) - 1
    # Its alternatives go first: while it trades leg by leg their reserve must not count.
    thinned = market.thin_group(block, lots)
    for index, leg in enumerate(plan.legs):
        ask = leg.ask
        if index == last:
            # Of an hour above the limit another pays the difference: the last leg releases what is left.
            block.worth_micros = 0
            block.leaves_lots = 0
            block.filled_lots += lots
            market.close(block)
        else:
            block.worth_micros -= ask.price * leg.lots * block.tick_lot_micros
        value = ask.price * leg.lots * ask.tick_lot_micros
        ask.worth_micros -= value
        if ask.hours > 1:
            _take_of_run(market, ask, leg)
        else:
            market.fill(ask, leg.lots)
        sold[leg.hour] = True
        trades.append(market.book_trade(block, ask, leg.hour, ask.price, leg.lots, 1))
    if plan.of_runs:
        for leg in plan.legs:
            if leg.hour == block.hour:
                retry_blocks_of(market, leg.ask)
    events.append(slots.BlockTraded(block.order_id, plan.site.number, trades))
    events += thinned
    for hour in sold:
        place = plan.site.hours[hour]
        if plan.of_runs:
            cut_asks(market, plan.site, place, hour, events)
        else:
            cut_runs(market, plan.site, place, hour, events)


def _take_of_run(market: Market, run: Order, leg: Leg) -> None:
    """Take one leg out of a run; its worth shows it already."""
    lots, site = run.run_lots, run.site
    assert lots is not None
    assert site is not None
    lots[leg.hour - run.hour] -= leg.lots
    run.leaves_lots -= leg.lots
    run.filled_lots += leg.lots
    place = market.site_hour(site, leg.hour)
    place.open_runs -= leg.lots
    place.sold += leg.lots
    if run.leaves_lots == 0:
        del site.runs[run.order_id]
        market.close(run)


def serve_blocks(market: Market, ask: Order, events: Events) -> None:
    """Try the resting blocks that an ask may help to fill, best price first, at its site."""
    if ask.leaves_lots == 0:
        return
    site, is_run = ask.site, ask.hours > 1
    assert site is not None
    # Its hourly asks fill no block of a price below this.
    lowest = 0
    if is_run:
        blocks = _blocks_within(ask, site)
    else:
        place = ask.site_hour
        assert place is not None
        waiting = _waiting(ask.book, site, place)
        if not waiting:
            return
        lowest = _lowest_of_asks(site, place, ask.hour, waiting[0].price)
        blocks = _blocks_of_hour(market, ask, site, waiting, lowest)
    for block in blocks:
        if ask.leaves_lots == 0:
            break
        if block.leaves_lots == 0:
            # It has ended before, or now as the alternative of one that has traded.
            continue
        # What rests could not trade before: only the kind that has come can make the difference.
        both = block.order_id in market.pending_retries
        most = block.price * block.leaves_lots * block.hours
        of_asks = block.price >= lowest and (both or not is_run)
        plan = _plan_at(block, site, most, None, of_asks, both or is_run)
        if plan is not None and all_continuous(market, block):
            trade_block(market, block, plan, events)


def _blocks_within(run: Order, site: Site) -> list[Order]:
    """Return the resting blocks that an open run may serve and that may trade at its site, best first."""
    lowest = site.best_runs()[0].price
    for hour in range(run.hour, run.hour + run.hours):
        place = site.hours.get(hour)
        price = 0 if place is None else place.lowest_ask()
        if 0 < price < lowest:
            lowest = price
    found: list[Order] = []
    for hour in range(run.hour, run.hour + run.hours):
        place = site.hours.get(hour)
        if place is None:
            # It has closed.
            continue
        for block in _waiting(run.book.listed.books.get(hour), site, place):
            if block.price < lowest:
                break
            if block.hour == hour and contains(run, block) and block.served_by[run.cell]:
                found.append(block)
    return sorted(found, key=_best_block_first)


def _blocks_of_hour(market: Market, ask: Order, site: Site, waiting: list[Order], lowest: int) -> list[Order]:
    """Return those of the waiting blocks that an hourly ask may serve and that may trade, best first.

    They may by hourly asks from the price `lowest` on, or by runs where their retry is pending.
    """
    found: list[Order] = []
    runs, pending = site.best_runs(), market.pending_retries
    lowest_run = runs[0].price if runs and pending else NEVER
    for block in waiting:
        price = block.price
        if price < lowest and price < lowest_run:
            break
        if block.served_by[ask.cell] and (price >= lowest or block.order_id in pending):
            found.append(block)
    return found


def _waiting(book: Book | None, site: Site, place: SiteHour) -> list[Order]:
    """Return the resting blocks of a site-hour, best first, and some that have ended; the first rests."""
    found = place.waiting
    if found is None:
        blocks = [] if book is None else [b for b in book.blocks.values() if b.served_by[site.cell]]
        found = sorted(blocks, key=_best_block_first)
        place.waiting = found
        place.longest = 0
        for block in found:
            place.longest = max(place.longest, block.hours)
    while found and found[0].leaves_lots == 0:
        found.pop(0)
    return found


def _lowest_of_asks(site: Site, place: SiteHour, around: int, price: int) -> int:
    """Return a price such that the site's hourly asks fill no block of a lower one in this hour.

    It is NEVER where they fill no block up to `price`: every stretch that a block may want costs more.
    """
    lowest = place.lowest_ask()
    if lowest == 0:
        return NEVER
    # On either side the best stretch counts: what it leaves of what the block would pay for it.
    excess = lowest - price
    for step in range(-1, 2, 2):
        here, hour = place, around
        total = least = 0
        for _ in range(1, place.longest):
            beyond = site.later_than(here, hour) if step > 0 else site.earlier_than(here, hour)
            there = 0 if beyond is None else beyond.lowest_ask()
            if beyond is None or there == 0:
                break
            here = beyond
            hour += step
            lowest = min(lowest, there)
            total += there - price
            least = min(least, total)
        excess += least
    return lowest if excess <= 0 else NEVER


def retry_blocks_of(market: Market, run: Order) -> None:
    """Have the resting blocks retried that may trade now that less of a run is open: it leaves no remnant."""
    site = run.site
    assert site is not None
    if run.leaves_lots == 0:
        return
    for hour in range(run.hour, run.hour + run.hours):
        book = run.book.listed.at(hour)
        if book is None:
            continue
        for block in book.blocks.values():
            if (
                block.hour == hour
                and contains(run, block)
                and block.served_by[run.cell]
                and plan_block(market, block, [site]) is not None
            ):
                market.pending_retries[block.order_id] = True


def _best_block_first(block: Order) -> tuple[int, int]:
    return (-block.price, block.priority)


# -- capacity ------------------------------------------------------------------------------------------


def cut_runs(market: Market, site: Site, place: SiteHour, hour: int, events: Events) -> None:
    """Cut the open runs of a site-hour to what is left of its capacity, newest first."""
    if place.sold + place.open_runs <= place.capacity:
        # As after most trades: the runs need not be looked through.
        return
    for run in sorted(site.runs.values(), key=_newest_first):
        over = place.sold + place.open_runs - place.capacity
        if over <= 0 or place.open_runs == 0:
            return
        index = hour - run.hour
        old = run.run_lots
        assert old is not None
        if not 0 <= index < run.hours or old[index] == 0:
            continue
        lots = list(old)
        lots[index] = max(0, lots[index] - over)
        reduce_run(market, run, lots, EndReason.CAPACITY, events)


def cut_asks(market: Market, site: Site, place: SiteHour, hour: int, events: Events) -> None:
    """Cut the open hourly asks of a site-hour to what is left of its capacity, newest first."""
    book = site.listed.at(hour)
    if book is None or place.asks == 0:
        return
    book.list_asks()
    assert place.listed is not None
    for ask in sorted(place.listed, key=_newest_first):
        over = place.sold + place.open_asks - place.capacity
        if over <= 0 or place.open_asks == 0:
            return
        if ask.position is not None:
            continue
        # The alternatives of a group are of one size: a member that no longer fits is none.
        if over >= ask.leaves_lots or ask.exclusive is not None:
            events.append(market.end(ask, EndReason.CAPACITY))
            continue
        market.shrink(ask, over)
        released = market.release(ask)
        events.append(
            slots.OrderReduced(
                ask.order_id,
                ask.account.account,
                over,
                ask.leaves_lots,
                released,
                EndReason.CAPACITY,
                None,
            )
        )


def _newest_first(order: Order) -> int:
    return -order.priority


def reduce_run(market: Market, run: Order, lots: list[int], reason: EndReason, events: Events) -> None:
    """Let a run have no more than these lots by hour, and of them only what belongs to a stretch."""
    left = opened(lots, run.min_hours)
    if not any(left):
        events.append(market.end(run, reason))
        return
    before = run.leaves_lots
    market.set_run(run, left)
    retry_blocks_of(market, run)
    released = market.release(run)
    events.append(
        slots.OrderReduced(
            run.order_id,
            run.account.account,
            before - run.leaves_lots,
            run.leaves_lots,
            released,
            reason,
            list(left),
        )
    )


# -- entry and replacement -----------------------------------------------------------------------------


def eligible_sites(block: Order) -> list[Site]:
    """Return the sites that may serve the block at their best grade, by number."""
    served = block.served_by
    return [site for site in block.book.listed.sites if served[site.cell]]


def to_evict(market: Market, block: Order) -> list[Order]:
    """Return the resting blocks that must go to make room for this one, or refuse."""
    most: int = market.limits.resting_blocks_max
    evicted: dict[int, Order] = {}
    for hour in range(block.hour, block.hour + block.hours):
        book = block.book.listed.books.get(hour)
        if book is None or len(book.blocks) < most:
            continue
        # One that goes for an earlier hour makes room in this one too.
        staying = [one for one in book.blocks.values() if one.order_id not in evicted]
        if len(staying) < most:
            continue
        worst = max(staying, key=_best_block_first)
        if worst.price >= block.price:
            refuse(
                RejectReason.TOO_MANY_RESTING_BLOCKS,
                "price_ticks",
                f"above {worst.price}, or another hour: {most} blocks rest in one",
            )
        evicted[worst.order_id] = worst
    return list(evicted.values())


def enter_block(
    market: Market, block: Order, plan: BlockPlan | None, evicted: list[Order], events: Events
) -> None:
    """Trade an accepted block by its plan, else let it rest."""
    if plan is not None:
        trade_block(market, block, plan, events)
    elif block.time_in_force == IOC:
        events.append(market.end(block, EndReason.IMMEDIATE))
    else:
        events += market.end_all(evicted, EndReason.EVICTED)
        listed = block.book.listed
        block.book = market.book(listed, block.hour)
        for hour in range(block.hour, block.hour + block.hours):
            book = market.book(listed, hour)
            # Before an ask comes for the block: one that does not rest is not found later.
            book.list_asks()
            book.blocks[block.order_id] = block
        _wait_at_sites(block)


def _wait_at_sites(block: Order) -> None:
    """Let a block that has come, or moved, wait in its hours at the sites that may serve it."""
    for place in _known_to_wait(block):
        waiting = place.waiting
        assert waiting is not None
        place.longest = max(place.longest, block.hours)
        first, until = 0, len(waiting)
        while first < until:
            middle = (first + until) >> 1
            if waiting[middle].price < block.price:
                until = middle
            else:
                first = middle + 1
        waiting.insert(first, block)


def _leave_sites(block: Order) -> None:
    """Take a block that moves from among those that wait."""
    for place in _known_to_wait(block):
        waiting = place.waiting
        assert waiting is not None
        at = 0
        while waiting[at] is not block:
            at += 1
        waiting.pop(at)


def _known_to_wait(block: Order) -> list[SiteHour]:
    """Return the site-hours that may serve the block and know which blocks wait."""
    found: list[SiteHour] = []
    for site in eligible_sites(block):
        place: SiteHour | None = None
        for hour in range(block.hour, block.hour + block.hours):
            place = site.hours.get(hour) if place is None else site.later_than(place, hour - 1)
            if place is not None and place.waiting is not None:
                found.append(place)
    return found


def enter_run(market: Market, run: Order, events: Events) -> None:
    """Offer an accepted run."""
    site = run.site
    assert site is not None
    site.add_run(run)
    serve_blocks(market, run, events)
    if run.leaves_lots and run.time_in_force == IOC:
        events.append(market.end(run, EndReason.IMMEDIATE))


def check_run_room(site: Site, first: int, hours: int, lots: int) -> None:
    """Refuse a run more lots than its site has in every hour."""
    for hour in range(first, first + hours):
        place = site.hours.get(hour)
        free = site.capacity if place is None else place.capacity - place.sold - place.open_runs
        if lots > free:
            refuse(RejectReason.CAPACITY_EXCEEDED, "lots", f"{free} lots are free at the site in hour {hour}")


def replace_block(market: Market, block: Order, lots: int, price: int) -> Events:
    """Give a resting block another total and price; the general tests are done."""
    reduces = price == block.price and lots < block.lots
    plan: BlockPlan | None = None
    was = (block.lots, block.price, block.leaves_lots, block.worth_micros)
    if not reduces:
        market.check_collar(block.book, price)
        market.check_status(block.account)
        market.check_rate(block.account)
    block.lots = block.leaves_lots = block.shown_lots = lots
    block.price = price
    block.worth_micros = price * lots * block.hours * block.tick_lot_micros
    try:
        plan = plan_block(market, block, eligible_sites(block))
        reserved = market.fund(block)
    except Exception:
        block.lots, block.price, block.leaves_lots, block.worth_micros = was
        block.shown_lots = block.leaves_lots
        raise
    if not reduces:
        market.give_time(block)
        market.count_order(block.account)
        _leave_sites(block)
        _wait_at_sites(block)
    events: Events = [market.replaced(block, reserved)]
    if plan is not None:
        trade_block(market, block, plan, events)
    return events


def replace_run(market: Market, run: Order, lots: int, price: int) -> Events:
    """Give an open run another total and price; the general tests are done."""
    old, site = run.run_lots, run.site
    assert old is not None
    assert site is not None
    more = lots - run.lots
    reduces = price == run.price and more < 0
    wanted = [
        max(0, open_lots + more) if run.hour + index > market.closed_hour else 0
        for index, open_lots in enumerate(old)
    ]
    wanted = opened(wanted, run.min_hours)
    if not any(wanted):
        run.lots = lots
        return [market.end(run, EndReason.REPLACED)]
    if not reduces:
        book = run.book.listed.books.get(run.hour)
        market.check_collar(Book(run.book.listed, run.hour) if book is None else book, price)
        market.check_status(run.account)
        market.check_rate(run.account)
        for index, wanted_lots in enumerate(wanted):
            extra = wanted_lots - old[index]
            if extra > 0:
                check_run_room(site, run.hour + index, 1, extra)
    was = (run.lots, run.price, run.worth_micros)
    run.lots, run.price = lots, price
    run.worth_micros = price * sum(wanted) * run.tick_lot_micros
    try:
        reserved = market.fund(run)
    except Exception:
        # A refused replace leaves the run as it was.
        run.lots, run.price, run.worth_micros = was
        raise
    site.runs_by_price = None
    market.set_run(run, wanted)
    if not reduces:
        market.give_time(run)
        market.count_order(run.account)
    events: Events = [market.replaced(run, reserved)]
    serve_blocks(market, run, events)
    return events
