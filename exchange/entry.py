"""How an order comes in: every general test, in the order of the rulebook, then acceptance."""

from typing import Final, NoReturn

from exchange import slots
from exchange.blocks import (
    BlockPlan,
    check_run_room,
    eligible_sites,
    enter_block,
    enter_run,
    plan_block,
    replace_block,
    replace_run,
    to_evict,
)
from exchange.book import CLEARING, CONTINUOUS, HALTED, Book, Class, Listing, Site
from exchange.contract import gate_ns
from exchange.hourly import (
    check_display,
    check_phase,
    check_room,
    improve_worth,
    match,
    plan_of,
    replace,
    take_room,
)
from exchange.market import DUE_EXPIRY, MAX_NOTIONAL, PHASES, Events, Market, refuse
from exchange.matching import Plan
from exchange.order import Account, Fill, Group, Order
from exchange.slots import AUCTION, FOK, GTC, GTD, IOC, EnterOrder, Requirement
from schemas.commands import EnterOrder as EnterOrderCommand
from schemas.events import EndReason, OrderListed, OrderRepeated, Rejected
from schemas.reasons import RejectReason

REQUESTED: Final = EndReason.REQUESTED
UNKNOWN_ORDER: Final = Rejected(RejectReason.UNKNOWN_ORDER, "order_id", "an open order of the account")


def enter(market: Market, command: EnterOrder, listing: Listing | None = None) -> Events:
    """Enter an order; `listing` is the standing offer that lists it."""
    account = market.account(command.account)
    if listing is None:
        known = account.client_orders.get(command.client_order_id)
        if known is not None and (known.leaves_lots or known.valid_until_ns >= market.time_ns):
            if not _is_repeat(market, known, command):
                refuse(
                    RejectReason.DUPLICATE_ORDER_ID,
                    "client_order_id",
                    "an id not in use, or the very same order again",
                )
            return [
                OrderRepeated(
                    known.order_id,
                    known.pledge.reserved_micros,
                    known.filled_lots,
                    known.leaves_lots,
                )
            ]
        valid_until_ns = command.valid_until_ns
        if not market.time_ns <= valid_until_ns <= market.time_ns + market.valid_until_max_ns:
            market.check_validity(valid_until_ns)
    is_bid, hours, lots, price = command.is_bid, command.hours, command.lots, command.price_ticks
    if command.is_market:
        if price or command.time_in_force not in (IOC, FOK) or hours != 1:
            refuse(RejectReason.ORDER_TYPE_MISMATCH, "order_type", "market: one hour, ioc or fok, no price")
    elif not 0 < price <= market.price_max:
        market.check_price(price)
    if not 0 < lots <= market.order_max_lots:
        market.check_lots(lots)
    if not 0 < hours <= market.block_max_hours:
        refuse(RejectReason.HOURS_OUT_OF_RANGE, "hours", f"1 to {market.block_max_hours}")
    time_in_force = command.time_in_force
    if time_in_force != GTC or command.expire_ns or hours != 1:
        _check_time_in_force(market, command)
    if command.min_lots or command.display_lots or command.post_only or command.min_hours or hours != 1:
        _check_shape(market, command)
    listed = market.listed_class(command.class_code)
    tick_lot = listed.tick_lot_micros
    if price * lots * hours * tick_lot > MAX_NOTIONAL:
        refuse(RejectReason.NOTIONAL_OUT_OF_RANGE, "price_ticks", f"a notional to {MAX_NOTIONAL}")
    site: Site | None = None
    position: Fill | None = None
    hour = command.delivery_hour
    if is_bid:
        cell = demand_cell(market, command.requirement, command.site, command.position, command.carbon)
    else:
        site = supply_site(
            market, account, listed, command.site, command.position, command.requirement, command.carbon
        )
        if command.position:
            position = _position(market, account, command, site)
        cell = supply_cell(market, site, command.carbon, position)
        if hour < site.from_hour or hour + hours > site.until_hour:
            refuse(RejectReason.SITE_NOT_CERTIFIED, "delivery_hour", "hours that the certificate covers")
    last = hour + hours - 1
    if last < 0 or last > market.hour + market.horizon_hours or hour <= market.closed_hour:
        market.check_tradable(hour, last, "delivery_hour")
    book = listed.at(hour)
    if hours == 1:
        phase = market.idle_phase(hour) if book is None else book.phase
        if phase != CONTINUOUS or time_in_force == AUCTION:
            check_phase(phase, time_in_force, command.is_market, command.min_lots, command.post_only)
    else:
        phase = CONTINUOUS
        check_phases(market, listed, hour, hours, time_in_force)
    if book is None:
        # Not in the list of books until the order is accepted: what is refused leaves no trace.
        book = Book(listed, hour)
    order = Order(market.last_order_id + 1, account, command, book, tick_lot)
    order.cell = cell
    if command.requirement is not None:
        order.served_by = command.requirement.served_by
    order.site = site
    order.position = position
    if command.is_market:
        _price_market_order(market, book, order)
    elif market.collar_permille:
        if book.collar_stale:
            market.set_collar(book)
        if not book.collar_low <= price <= book.collar_high:
            market.check_collar(book, price)
    if account.cash < 0 or account.is_suspended:
        market.check_status(account)
    free = market.free_orders_per_hour
    if free and account.orders_in_hour >= free:
        market.check_rate(account)
    if account.open_orders >= market.open_orders_max:
        refuse(RejectReason.TOO_MANY_OPEN_ORDERS, "account", f"{market.open_orders_max} open orders")
    group: Group | None = None
    if command.exclusive_group is not None:
        group = _group(account, order, command.exclusive_group)
    if is_bid:
        if hours > 1:
            return _accept_block(market, order, group, listing)
    else:
        assert site is not None
        if hours > 1:
            return _accept_run(market, order, site, listing)
        order.site_hour = site.at(hour)
        check_room(site.capacity, order.site_hour, position, lots)
    return _accept_hourly(market, order, group, listing, phase)


# -- tests of the command alone ------------------------------------------------------------------------


def _is_repeat(market: Market, known: Order, command: EnterOrder) -> bool:
    if not known.is_entered_by(command):
        return False
    need = command.requirement
    if known.is_bid:
        return (
            need is not None
            and not command.site
            and command.carbon is None
            and market.eligibility.find_demand_cell(need.zone, need.latency, need.carbon, need.security)
            == known.cell
        )
    site = known.site
    assert site is not None
    return (
        need is None
        and (site.number == command.site or (command.site == 0 and known.position is not None))
        and command.carbon is not None
        and market.eligibility.carbon.get(command.carbon) == market.eligibility.carbon_of(known.cell)
    )


def _check_time_in_force(market: Market, command: EnterOrder) -> None:
    dated = command.time_in_force == GTD
    if command.expire_ns <= market.time_ns if dated else command.expire_ns != 0:
        refuse(RejectReason.TIME_IN_FORCE_MISMATCH, "expire_ns", "a time ahead with gtd, none otherwise")
    if command.hours > 1 and command.time_in_force in (FOK, AUCTION):
        refuse(RejectReason.TIME_IN_FORCE_MISMATCH, "time_in_force", "gtc, gtd or ioc for several hours")
    if command.exclusive_group is not None and command.time_in_force not in (GTC, GTD):
        refuse(RejectReason.TIME_IN_FORCE_MISMATCH, "time_in_force", "gtc or gtd in a group")


def _check_shape(market: Market, command: EnterOrder) -> None:
    """Refuse a minimum, a shown part, post-only or a shortest stretch where it cannot be."""
    several, rests = command.hours > 1, command.time_in_force in (GTC, GTD)
    if not 0 <= command.min_lots <= command.lots or (several and command.min_lots):
        refuse(RejectReason.MINIMUM_OUT_OF_RANGE, "min_lots", f"0 to {0 if several else command.lots}")
    if command.display_lots:
        check_display(market, rests and not several, command.lots, command.display_lots)
    if command.post_only and (several or not rests or command.min_lots):
        refuse(RejectReason.POST_ONLY_MISMATCH, "post_only", "an hourly gtc or gtd order with no minimum")
    is_run = several and not command.is_bid
    if not (1 <= command.min_hours <= command.hours if is_run else command.min_hours == 0):
        refuse(
            RejectReason.MIN_HOURS_OUT_OF_RANGE,
            "min_hours",
            f"1 to {command.hours}" if is_run else "none but for a run",
        )


def demand_cell(
    market: Market, need: Requirement | None, site: int, position: int, carbon: str | None
) -> int:
    """Return the cell of a bid, or refuse."""
    if need is None or site or position or carbon is not None:
        refuse(RejectReason.SIDE_FIELDS_MISMATCH, "requirement", "a bid names a requirement and no site")
    table = market.eligibility
    if need.settled_by is table:
        return need.cell
    cell = table.settle(need)
    if cell < 0:
        if need.zone not in table.zones:
            refuse(RejectReason.UNKNOWN_ZONE, "requirement.zone", "a zone of the venue")
        for name, code, known in (
            ("latency", need.latency, table.latency),
            ("carbon", need.carbon, table.carbon),
            ("security", need.security, table.security),
        ):
            if code not in known:
                refuse(RejectReason.UNKNOWN_GRADE, f"requirement.{name}", ", ".join(known))
    return cell


def supply_site(
    market: Market,
    account: Account,
    listed: Class,
    number: int,
    position: int,
    need: Requirement | None,
    carbon: str | None,
) -> Site:
    """Return the site an ask names, or its position's, or refuse; without a position it is the account's."""
    if need is not None or not (number or position) or carbon is None:
        refuse(
            RejectReason.SIDE_FIELDS_MISMATCH, "site", "an ask names a site or a position, and a carbon grade"
        )
    if not number:
        fill = market.fill_of(position)
        if fill is None:
            _refuse_position()
        number = fill.trade.site
    site = market.site(number)
    if site is None:
        refuse(RejectReason.UNKNOWN_SITE, "site", "a certified site")
    if position == 0 and site.account != account.account:
        refuse(RejectReason.NOT_SITE_OWNER, "site", "a site of the account's own")
    if site.listed is not listed:
        refuse(RejectReason.CLASS_NOT_CERTIFIED, "class_code", site.listed.code)
    return site


def _position(market: Market, account: Account, command: EnterOrder, site: Site) -> Fill:
    """Return the trade whose lots the ask resells, or refuse."""
    if command.hours > 1:
        refuse(RejectReason.SIDE_FIELDS_MISMATCH, "position", "resale is for hourly orders")
    fill = market.fill_of(command.position)
    if (
        fill is None
        or fill.trade.buyer != account.account
        or fill.trade.class_code != command.class_code
        or fill.trade.delivery_hour != command.delivery_hour
        or fill.trade.site != site.number
    ):
        _refuse_position()
    return fill


def _refuse_position() -> NoReturn:
    refuse(
        RejectReason.UNKNOWN_POSITION,
        "position",
        "a trade by which the account bought in this contract from this site",
    )


def supply_cell(market: Market, site: Site, carbon: str | None, position: Fill | None) -> int:
    """Return the cell of an ask, or refuse a grade that was not certified or not bought."""
    table = market.eligibility
    assert carbon is not None
    if position is None and carbon == site.recent_carbon:
        return site.recent_cell
    rank = table.carbon.get(carbon, -1)
    if rank < 0:
        refuse(RejectReason.UNKNOWN_GRADE, "carbon", ", ".join(table.carbon))
    best = site.carbon if position is None else position.carbon
    if rank < best:
        refuse(RejectReason.GRADE_NOT_CERTIFIED, "carbon", f"{list(table.carbon)[best]} or worse")
    cell = site.cell + (rank - site.carbon) * table.tiers
    if position is None:
        site.recent_carbon = carbon
        site.recent_cell = cell
    return cell


def check_phases(
    market: Market, listed: Class, first: int, hours: int, time_in_force: int, reduces: bool = False
) -> None:
    """Refuse a block or run whose hours do not take it, or its reduction, now."""
    for hour in range(first, first + hours):
        phase = market.phase_of(listed, hour)
        if (
            phase == CLEARING
            or (phase == HALTED and not reduces)
            or (phase != CONTINUOUS and time_in_force == IOC)
        ):
            refuse(RejectReason.WRONG_PHASE, "delivery_hour", f"hour {hour} is {PHASES[phase]}: not now")


def _price_market_order(market: Market, book: Book, order: Order) -> None:
    """Give a market order the price of the collar's bound, or refuse it."""
    if book.collar_stale:
        market.set_collar(book)
    if book.collar_high == 0:
        refuse(RejectReason.NO_REFERENCE_PRICE, "order_type", "limit: the contract has no collar")
    order.price = book.collar_high if order.is_bid else book.collar_low
    if order.price * order.lots * order.tick_lot_micros > MAX_NOTIONAL:
        refuse(RejectReason.NOTIONAL_OUT_OF_RANGE, "lots", f"a notional to {MAX_NOTIONAL}")


def _group(account: Account, order: Order, name: str) -> Group:
    """Return the group the order joins or founds, or refuse."""
    if order.is_run:
        refuse(RejectReason.GROUP_MISMATCH, "exclusive_group", "none for a run")
    group = account.groups.get(name)
    if group is None:
        return Group(name, order)
    if len(group.members) >= 8:
        refuse(RejectReason.GROUP_FULL, "exclusive_group", "8 members")
    taken = [
        member
        for member in group.members.values()
        if (member.book.class_code, member.hour, member.hours)
        == (order.book.class_code, order.hour, order.hours)
    ]
    if (
        taken
        or group.has_traded
        or group.is_bid != order.is_bid
        or group.lots != order.lots
        or group.several_hours != (order.hours > 1)
    ):
        refuse(
            RejectReason.GROUP_MISMATCH,
            "exclusive_group",
            "the side, lots and kind of its group, another contract, before it has traded",
        )
    return group


# -- acceptance ----------------------------------------------------------------------------------------


def _accept(market: Market, order: Order, group: Group | None, listing: Listing | None) -> object:
    """Let the order be in force, or refuse for want of funds; return the event that says so."""
    if group is not None:
        order.exclusive = group
        group.members[order.order_id] = order
        try:
            reserved = market.fund(order)
        except Exception:
            del group.members[order.order_id]
            order.exclusive = None
            raise
        order.account.groups[group.name] = group
    else:
        reserved = market.fund(order)
    account = order.account
    market.last_order_id = order.order_id
    market.give_time(order)
    market.orders.add(order)
    account.open_orders += 1
    if market.free_orders_per_hour:
        market.count_order(account)
    if order.special is not None and order.time_in_force == GTD:
        last = order.hour + order.hours - 1 if order.is_run else order.hour
        # At that gate it ends anyway; a later expiry would only lie in the queue.
        if order.expire_ns < gate_ns(last, market.gate_seconds):
            market.push_due(order.expire_ns, DUE_EXPIRY, order.order_id)
    if listing is not None:
        order.listing = listing
        listing.open_orders[order.order_id] = order
        return OrderListed(order.order_id, listing.offer_id, reserved, _entry_of(order, listing))
    market.remember(order)
    return slots.OrderAccepted(order.order_id, reserved)


def _entry_of(order: Order, listing: Listing) -> EnterOrderCommand:
    """Return the order that a standing offer listed, in words."""
    return EnterOrder(
        listing.account.account,
        listing.name,
        0,
        listing.is_bid,
        listing.class_code,
        order.hour,
        listing.hours,
        order.lots,
        order.price,
        listing.requirement,
        listing.site,
        listing.carbon,
        min_hours=listing.min_hours,
    ).told()


def _accept_hourly(
    market: Market, order: Order, group: Group | None, listing: Listing | None, phase: int
) -> Events:
    order.worth_micros = order.price * order.lots * order.tick_lot_micros
    plan: Plan | None = None
    if phase == CONTINUOUS:
        if order.special is not None:
            order.passes_own = order.post_only or order.time_in_force == FOK or order.min_lots > 0
        plan = plan_of(market, order, order.min_lots)
        if plan is not None:
            improve_worth(order, group, plan)
    try:
        events: Events = [_accept(market, order, group, listing)]
    except Exception:
        improve_worth(order, group, plan, -1)
        raise
    if order.special is not None:
        order.passes_own = order.post_only
        if order.display_lots:
            order.shown_lots = order.display_lots
    order.book = market.book(order.book.listed, order.hour)
    site = order.site
    if site is not None:
        place = order.site_hour
        if place is None:
            place = market.site_hour(site, order.hour)
            order.site_hour = place
        place.asks += 1
        if order.book.lists_asks:
            place.list_ask(order)
        take_room(order, order.lots)
    if phase == CONTINUOUS:
        match(market, order, plan, events)
    else:
        market.rest(order)
    return events


def _accept_block(market: Market, order: Order, group: Group | None, listing: Listing | None) -> Events:
    most: int = market.limits.block_max_site_hours
    sites = eligible_sites(order)
    if len(sites) * order.hours > most:
        refuse(RejectReason.BLOCK_TOO_WIDE, "hours", f"hours x eligible sites to {most}")
    order.worth_micros = order.price * order.lots * order.hours * order.tick_lot_micros
    plan: BlockPlan | None = plan_block(market, order, sites)
    rests = plan is None and order.time_in_force != IOC
    evicted = to_evict(market, order) if rests else []
    events: Events = [_accept(market, order, group, listing)]
    enter_block(market, order, plan, evicted, events)
    return events


def _accept_run(market: Market, order: Order, site: Site, listing: Listing | None) -> Events:
    check_run_room(site, order.hour, order.hours, order.lots)
    most: int = market.limits.resting_runs_max
    if len(site.runs) >= most:
        refuse(RejectReason.TOO_MANY_RESTING_RUNS, "site", f"{most} runs")
    order.run_lots = [order.lots] * order.hours
    order.leaves_lots = order.lots * order.hours
    order.worth_micros = order.price * order.leaves_lots * order.tick_lot_micros
    events: Events = [_accept(market, order, None, listing)]
    for hour in range(order.hour, order.hour + order.hours):
        market.site_hour(site, hour).open_runs += order.lots
    enter_run(market, order, events)
    return events


# -- replacement and cancelling ------------------------------------------------------------------------


def replace_order(market: Market, command: slots.ReplaceOrder) -> Events:
    """Give an open order another total and price."""
    account = market.account(command.account)
    order = market.find_open(account, command.order_id, command.client_order_id)
    if order is None:
        return [UNKNOWN_ORDER]
    market.check_validity(command.valid_until_ns)
    lots, price = command.lots, command.price_ticks
    market.check_price(price)
    market.check_lots(lots)
    if price * lots * order.hours * order.tick_lot_micros > MAX_NOTIONAL:
        refuse(RejectReason.NOTIONAL_OUT_OF_RANGE, "price_ticks", f"a notional to {MAX_NOTIONAL}")
    if lots == order.lots and price == order.price:
        refuse(RejectReason.NOTHING_TO_CHANGE, "lots", "another total or price")
    if order.exclusive is not None and lots != order.lots:
        refuse(RejectReason.GROUP_MISMATCH, "lots", f"{order.lots}, which its group has")
    reduces = price == order.price and lots < order.lots
    if order.hours > 1:
        check_phases(market, order.book.listed, order.hour, order.hours, GTC, reduces)
        return (
            replace_block(market, order, lots, price)
            if order.is_bid
            else replace_run(market, order, lots, price)
        )
    phase = order.book.phase
    if phase == CLEARING:
        refuse(RejectReason.WRONG_PHASE, "order_id", "cancels only: the contract is clearing")
    if phase == HALTED and not reduces:
        refuse(RejectReason.WRONG_PHASE, "order_id", "cancels and fewer lots at the same price: it is halted")
    if lots <= order.filled_lots:
        return [market.end(order, EndReason.REPLACED)]
    return replace(market, order, lots, price)


def cancel_order(market: Market, command: slots.CancelOrder) -> Events:
    """End an open order."""
    account = market.account(command.account)
    order = market.find_open(account, command.order_id, command.client_order_id)
    if order is None:
        # The commonest refusal, of an order that has just traded, is given without raising it.
        return [UNKNOWN_ORDER]
    return [market.end(order, REQUESTED)]
