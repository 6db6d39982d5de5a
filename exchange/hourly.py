"""Orders for one hour: entry, matching, replacement."""

from exchange.blocks import cut_runs, serve_blocks
from exchange.book import CALL, CLEARING, CONTINUOUS, HALTED, SiteHour
from exchange.market import PHASES, Events, Market, refuse
from exchange.matching import AT_BAND, AT_OWN, Plan, open_sides, plan_hourly
from exchange.order import Fill, Group, Order
from exchange.slots import AUCTION, FOK, IOC
from schemas.events import EndReason
from schemas.reasons import RejectReason


def check_phase(phase: int, time_in_force: int, is_market: bool, min_lots: int, post_only: bool) -> None:
    """Refuse an hourly order that the contract's phase does not take."""
    if phase == CONTINUOUS:
        if time_in_force == AUCTION:
            refuse(RejectReason.WRONG_PHASE, "time_in_force", "gtc, gtd, ioc or fok in continuous trading")
    elif phase in (CLEARING, HALTED):
        refuse(RejectReason.WRONG_PHASE, "delivery_hour", f"cancels only: the contract is {PHASES[phase]}")
    elif is_market or time_in_force in (IOC, FOK) or min_lots or post_only:
        refuse(
            RejectReason.WRONG_PHASE,
            "time_in_force",
            f"limit orders of gtc, gtd or auction, with no minimum, in {PHASES[phase]}",
        )


def plan_of(market: Market, order: Order, min_lots: int) -> Plan | None:
    """Return what the order would trade now, None if it meets nothing, or refuse it for what it says."""
    plan: Plan | None = None
    sides = open_sides(order.book, order)
    if sides is not None:
        plan = plan_hourly(sides, order, market.band_permille)
    if order.special is None:
        return plan
    filled = 0 if plan is None else plan.lots
    # Also where the band alone stands in the way: it would rest across what it may meet.
    if order.post_only and plan is not None and (filled or plan.stopped == AT_BAND):
        refuse(RejectReason.POST_ONLY_WOULD_TRADE, "post_only", "a price that meets nothing")
    if order.time_in_force == FOK and filled < order.leaves_lots:
        refuse(RejectReason.NOT_FILLABLE, "lots", f"{filled} lots can be had")
    if filled < min_lots:
        refuse(RejectReason.MINIMUM_NOT_FILLABLE, "min_lots", f"{filled} lots can be had")
    return plan


def improve_worth(order: Order, group: Group | None, plan: Plan | None, sign: int = 1) -> None:
    """Let an ask that takes be worth what it will sell for: its bond and fee are of the better prices.

    With -1 for `sign` what was added to the other members of its group is taken back.
    """
    if plan is None or order.is_bid:
        return
    for match in plan.matches:
        order.worth_micros += sign * (match.maker.price - order.price) * match.lots * order.tick_lot_micros
        if group is not None:
            _count_sale(group, order, match.maker.price, match.lots, sign)


def _count_sale(group: Group, ask: Order, price: int, lots: int, sign: int) -> None:
    """Let the other members be worth what a sale at hand brings and what they keep after it.

    Else the dearest of them would need money that the sale has taken from what all share.
    """
    value = price * ask.tick_lot_micros
    for member in group.members.values():
        if member is not ask:
            member.worth_micros += sign * (value - member.price * member.tick_lot_micros) * lots


def match(market: Market, order: Order, plan: Plan | None, events: Events) -> None:
    """Do what was planned, then let what is left rest, start a call, or end."""
    book = order.book
    if plan is not None:
        for step in plan.matches:
            if step.lots == 0:
                events.append(market.end(step.maker, EndReason.SELF_TRADE))
            else:
                trade(market, order, step.maker, step.lots, events)
        if order.leaves_lots == 0:
            return
        if plan.stopped == AT_OWN:
            events.append(market.end(order, EndReason.SELF_TRADE))
            return
        if plan.stopped == AT_BAND:
            _stop_at_band(market, order, events)
            return
    time_in_force = order.time_in_force
    if time_in_force != IOC:
        market.rest(order)
    if not order.is_bid and book.blocks and book.phase == CONTINUOUS:
        serve_blocks(market, order, events)
    if time_in_force == IOC and order.leaves_lots:
        events.append(market.end(order, EndReason.IMMEDIATE))


def trade(market: Market, taker: Order, maker: Order, lots: int, events: Events) -> None:
    """Let an hourly taker and a resting order trade at the latter's price."""
    price = maker.price
    if taker.is_bid:
        bid, ask = taker, maker
    else:
        bid, ask = maker, taker
    if market.collar_permille or market.band_permille:
        side = ask.side
        if side is None:
            side = ask.book.side(False, ask.cell, market.eligibility)
            ask.side = side
        ask.book.moved_reference(side).trade(price, lots, market.reference_lots)
    if ask is taker and ask.exclusive is not None:
        _count_sale(ask.exclusive, ask, price, lots, -1)
    # An ask that takes is worth what it sells for, not its limit.
    meet(market, bid, ask, price, lots, 1 if taker.is_bid else -1, price, events)


def meet(
    market: Market,
    bid: Order,
    ask: Order,
    price: int,
    lots: int,
    taker: int,
    ask_worth: int,
    events: Events,
) -> None:
    """Let a bid and an ask trade, with all that follows; a lot of the ask was worth `ask_worth` ticks."""
    market.fill(bid, lots)
    market.fill(ask, lots)
    value = lots * bid.tick_lot_micros
    bid.worth_micros -= bid.price * value
    ask.worth_micros -= ask_worth * value
    thinned: Events | None = None
    if bid.exclusive is not None or ask.exclusive is not None:
        thinned = market.thin_group(bid, lots)
        thinned += market.thin_group(ask, lots)
    events.append(market.book_trade(bid, ask, bid.hour, price, lots, taker))
    if thinned is not None:
        events += thinned
    place, site = ask.site_hour, ask.site
    assert place is not None
    assert site is not None
    if place.open_runs and ask.position is None:
        cut_runs(market, site, place, ask.hour, events)


def _stop_at_band(market: Market, order: Order, events: Events) -> None:
    """Cancel what is left of a taker at the band, or start a call with it."""
    book, limits = order.book, market.limits
    if book.call_hour != market.hour:
        book.call_hour = market.hour
        book.calls_in_hour = 0
    small = order.leaves_lots <= limits.band_small_lots
    if small or order.time_in_force == IOC or book.calls_in_hour >= limits.volatility_calls_per_hour:
        events.append(market.end(order, EndReason.BAND))
        return
    book.calls_in_hour += 1
    market.rest(order)
    events.append(market.enter_phase(book, CALL))


def replace(market: Market, order: Order, lots: int, price: int) -> Events:
    """Give a resting hourly order another total and price; the general tests are done."""
    book = order.book
    more = lots - order.lots
    if price == order.price and more < 0:
        market.shrink(order, -more)
        return [market.replaced(order, -market.release(order))]
    if order.display_lots:
        check_display(market, True, lots, order.display_lots)
    market.check_collar(book, price)
    market.check_status(order.account)
    market.check_rate(order.account)
    site = order.site
    if site is not None and more > 0:
        check_room(site.capacity, order.site_hour, order.position, more)
    was = (order.lots, order.price, order.leaves_lots, order.worth_micros)
    order.lots, order.price = lots, price
    order.leaves_lots += more
    order.worth_micros = price * order.leaves_lots * order.tick_lot_micros
    plan: Plan | None = None
    try:
        if book.phase == CONTINUOUS:
            plan = plan_of(market, order, 0)
            improve_worth(order, order.exclusive, plan)
        reserved = market.fund(order)
    except Exception:
        # A refused replace leaves the order as it was.
        improve_worth(order, order.exclusive, plan, -1)
        order.lots, order.price, order.leaves_lots, order.worth_micros = was
        raise
    market.unrest(order)
    if site is not None:
        take_room(order, more)
        assert order.site_hour is not None
        order.site_hour.by_price = None
    order.shown_lots = min(order.display_lots or order.leaves_lots, order.leaves_lots)
    market.give_time(order)
    market.count_order(order.account)
    events: Events = [market.replaced(order, reserved)]
    if book.phase == CONTINUOUS:
        match(market, order, plan, events)
    else:
        market.rest(order)
    return events


def check_display(market: Market, may_hide: bool, lots: int, display_lots: int) -> None:
    """Refuse an iceberg that shows nothing or all of its lots, or too little of them."""
    most: int = market.limits.iceberg_slices_max
    if not may_hide or not 0 < display_lots < lots or display_lots * most < lots:
        refuse(
            RejectReason.DISPLAY_OUT_OF_RANGE,
            "display_lots",
            f"of an hourly gtc or gtd order, below its lots and at least lots / {most}",
        )


def check_room(capacity: int, place: SiteHour | None, position: Fill | None, more: int) -> None:
    """Refuse an hourly ask more lots than its site or its position has."""
    if position is not None:
        free = position.trade.lots - position.resale_lots
        if more > free:
            refuse(RejectReason.POSITION_EXCEEDED, "lots", f"{free} lots of it are not resold or offered")
        return
    free = capacity if place is None else place.capacity - place.sold - place.open_asks
    if more > free:
        refuse(RejectReason.CAPACITY_EXCEEDED, "lots", f"{free} lots are free at the site in that hour")


def take_room(order: Order, more: int) -> None:
    """Let an hourly ask offer so many lots more of its site or its position."""
    place, position = order.site_hour, order.position
    assert place is not None
    if position is not None:
        position.resale_lots += more
    else:
        place.open_asks += more
