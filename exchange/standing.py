"""Standing offers: one command that lists an order for every hour as it enters the horizon."""

from exchange.book import Listing
from exchange.contract import HOUR_NS
from exchange.entry import demand_cell, enter, supply_cell, supply_site
from exchange.market import DUE_LISTING, Events, Market, Refusal, refuse
from exchange.order import Account
from exchange.slots import EnterOrder, requirement_of
from schemas.commands import CancelStandingOffer, EnterStandingOffer, ReplaceStandingOffer, Side
from schemas.events import (
    EndReason,
    ListingSkipped,
    StandingOfferEnded,
    StandingOfferEntered,
    StandingOfferListed,
    StandingOfferReplaced,
)
from schemas.reasons import RejectReason

LISTED_AT_ONCE = 24
LONGEST_HOURS = 8784


def _check_curve(market: Market, curve: tuple[int, ...]) -> None:
    low, high = (min(curve), max(curve)) if curve else (0, 0)
    if len(curve) not in (1, 24, 168) or low < 0 or not 0 < high <= market.price_max:
        refuse(
            RejectReason.CURVE_OUT_OF_RANGE,
            "price_curve",
            f"1, 24 or 168 prices of 0 to {market.price_max}, not all 0",
        )


def enter_offer(market: Market, command: EnterStandingOffer) -> Events:
    """Take a standing offer; its hours are listed by commands to come."""
    account = market.account(command.account)
    known = account.offers.get(command.name)
    if known is not None and _is_taken(market, known):
        refuse(RejectReason.DUPLICATE_OFFER, "name", "a name that no offer of the account has")
    market.check_validity(command.valid_until_ns)
    market.check_lots(command.lots)
    if not 0 < command.hours <= market.block_max_hours:
        refuse(RejectReason.HOURS_OUT_OF_RANGE, "hours", f"1 to {market.block_max_hours}")
    is_bid = command.side is Side.BUY
    is_run = command.hours > 1 and not is_bid
    if not (1 <= command.min_hours <= command.hours if is_run else command.min_hours == 0):
        refuse(
            RejectReason.MIN_HOURS_OUT_OF_RANGE,
            "min_hours",
            f"1 to {command.hours}" if is_run else "none but for runs",
        )
    _check_curve(market, command.price_curve)
    listed = market.listed_class(command.class_code)
    need = command.requirement
    inside = None if need is None else requirement_of(need)
    if is_bid:
        demand_cell(market, inside, command.site, 0, command.carbon)
    else:
        site = supply_site(market, account, listed, command.site, 0, inside, command.carbon)
        supply_cell(market, site, command.carbon, None)
    if not 0 < command.until_hour - command.from_hour <= LONGEST_HOURS:
        refuse(RejectReason.HOURS_OUT_OF_RANGE, "until_hour", f"1 to {LONGEST_HOURS} hours after from_hour")
    if command.until_hour > market.hour + LONGEST_HOURS:
        refuse(RejectReason.BEYOND_HORIZON, "until_hour", f"within {LONGEST_HOURS} hours")
    offer = Listing(
        market.last_offer_id + 1,
        account,
        command.name,
        command.valid_until_ns,
        is_bid,
        command.class_code,
        command.from_hour,
        command.until_hour,
        command.hours,
        command.lots,
        command.price_curve,
        inside,
        command.site,
        command.carbon,
        command.min_hours,
    )
    _check_open(market, offer, "until_hour")
    market.check_status(account)
    most: int = market.limits.standing_offers_max
    in_force = [one for one in account.offers.values() if one.offer_id in market.listings]
    if len(in_force) >= most:
        refuse(RejectReason.TOO_MANY_STANDING_OFFERS, "account", f"{most} offers")
    market.last_offer_id = offer.offer_id
    _forget_offers(market, account)
    account.offers[command.name] = offer
    market.listings[offer.offer_id] = offer
    schedule(market, offer)
    return [StandingOfferEntered(offer.offer_id, account.account)]


def _is_taken(market: Market, offer: Listing) -> bool:
    """Say whether the offer's name is: it is in force, or a late repeat may come to enter it again."""
    return offer.offer_id in market.listings or offer.valid_until_ns >= market.time_ns


def _forget_offers(market: Market, account: Account) -> None:
    """Forget the names of offers that are no longer taken."""
    for name, offer in list(account.offers.items()):
        if not _is_taken(market, offer):
            del account.offers[name]


def _check_open(market: Market, offer: Listing, field: str) -> None:
    """Refuse an offer of which every stretch has begun to close."""
    if offer.stretch_from(market.closed_hour + 1) + offer.hours > offer.until_hour:
        refuse(RejectReason.GATE_CLOSED, field, "hours of a whole order that are still open")


def schedule(market: Market, offer: Listing) -> None:
    """Have the offer's next hours listed: now, or when they enter the horizon."""
    offer.next_hour = offer.stretch_from(max(offer.next_hour, market.closed_hour + 1))
    last = offer.next_hour + offer.hours - 1
    if last <= market.hour + market.horizon_hours:
        market.pending_listings[offer.offer_id] = True
    else:
        market.push_due((last - market.horizon_hours) * HOUR_NS, DUE_LISTING, offer.offer_id)


def listing_is_due(market: Market, offer_id: int) -> None:
    """Have an offer listed whose next hours entered the horizon."""
    offer = market.listings.get(offer_id)
    if offer is not None and not offer.is_over:
        last = offer.next_hour + offer.hours - 1
        if last <= market.hour + market.horizon_hours:
            market.pending_listings[offer_id] = True


def _offer(market: Market, account: Account, offer_id: int) -> Listing:
    offer = market.listings.get(offer_id)
    if offer is None or offer.account is not account:
        refuse(RejectReason.UNKNOWN_OFFER, "offer_id", "a standing offer of the account")
    return offer


def list_offer(market: Market, offer_id: int) -> Events:
    """List the next hours of an offer whose listing is due."""
    if offer_id not in market.pending_listings:
        refuse(RejectReason.NOTHING_TO_CHANGE, "offer_id", "an offer whose listing is due")
    del market.pending_listings[offer_id]
    offer = market.listings[offer_id]
    for traded_hour in list(offer.traded):
        if traded_hour <= market.closed_hour:
            del offer.traded[traded_hour]
    found: Events = []
    hour = offer.stretch_from(max(offer.next_hour, market.closed_hour + 1))
    for _ in range(LISTED_AT_ONCE):
        if (
            hour + offer.hours > offer.until_hour
            or hour + offer.hours - 1 > market.hour + market.horizon_hours
        ):
            break
        _list(market, offer, hour, found)
        hour += offer.hours
    events: Events = [StandingOfferListed(offer_id, hour)]
    events += found
    if hour + offer.hours > offer.until_hour:
        events.append(_over(market, offer, EndReason.EXPIRED))
    else:
        offer.next_hour = hour
        schedule(market, offer)
    return events


def _list(market: Market, offer: Listing, hour: int, events: Events) -> None:
    price, lots = offer.price_at(hour), offer.lots_at(hour)
    if price == 0 or lots <= 0:
        return
    order = EnterOrder(
        offer.account.account,
        offer.name,
        0,
        offer.is_bid,
        offer.class_code,
        hour,
        offer.hours,
        lots,
        price,
        offer.requirement,
        offer.site,
        offer.carbon,
        min_hours=offer.min_hours,
    )
    try:
        events += enter(market, order, offer)
    except Refusal as refusal:
        why = refusal.event
        events.append(ListingSkipped(offer.offer_id, hour, why.reason, why.field, why.allowed))


def _over(market: Market, offer: Listing, reason: EndReason) -> StandingOfferEnded:
    """Let the offer list no more; it stays in force while an order that it listed is open."""
    offer.is_over = True
    market.pending_listings.pop(offer.offer_id, None)
    if not offer.open_orders:
        del market.listings[offer.offer_id]
    return StandingOfferEnded(offer.offer_id, offer.account.account, reason)


def replace_offer(market: Market, command: ReplaceStandingOffer) -> Events:
    """Give an offer another total and prices: what it listed ends, and what it has not traded is listed anew.

    So also where it had listed its last hour.
    """
    account = market.account(command.account)
    offer = _offer(market, account, command.offer_id)
    market.check_validity(command.valid_until_ns)
    market.check_lots(command.lots)
    _check_curve(market, command.price_curve)
    if command.lots == offer.lots and command.price_curve == offer.price_curve:
        refuse(RejectReason.NOTHING_TO_CHANGE, "lots", "other lots or another curve")
    _check_open(market, offer, "offer_id")
    market.check_status(account)
    offer.lots = command.lots
    offer.price_curve = command.price_curve
    # Before its orders end: one in force is not forgotten with the last of them.
    offer.is_over = False
    events: Events = [StandingOfferReplaced(offer.offer_id, account.account)]
    events += market.end_all(list(offer.open_orders.values()), EndReason.WITHDRAWN)
    offer.next_hour = offer.from_hour
    schedule(market, offer)
    return events


def cancel_offer(market: Market, command: CancelStandingOffer) -> Events:
    """Withdraw an offer and every open order that it listed."""
    account = market.account(command.account)
    offer = _offer(market, account, command.offer_id)
    orders = list(offer.open_orders.values())
    events: Events = []
    if not offer.is_over:
        events.append(_over(market, offer, EndReason.WITHDRAWN))
    return events + market.end_all(orders, EndReason.WITHDRAWN)
