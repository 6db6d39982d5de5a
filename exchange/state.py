"""What the engine's state is, as one value: the same in every process that applied the same log."""

import hashlib

import msgspec

from exchange.book import Book, Listing
from exchange.funds import Purse
from exchange.market import Market
from exchange.order import Account, Fill, Group, Order
from exchange.registry import Registry
from schemas.venue import Venue


def state_hash(venue: Venue, market: Market, registry: Registry) -> bytes:
    """Return the SHA-256 of the whole state."""
    state = (
        venue,
        (market.time_ns, market.first_ns),
        (market.last_order_id, market.last_trade_id, market.last_offer_id, market.last_priority),
        [_account(account, market.time_ns) for _, account in sorted(market.accounts.items())],
        [
            (
                site.certificate,
                [
                    (hour, place.capacity, place.sold, place.open_asks, place.open_runs)
                    for hour, place in sorted(site.hours.items())
                ],
            )
            for _, site in sorted(market.sites.items())
        ],
        [_order(order) for order in known_orders(market)],
        [_book(book) for listed in market.class_list for _, book in sorted(listed.books.items())],
        [_fill(fill) for fill in market.fills],
        [_listing(offer) for _, offer in sorted(market.listings.items())],
        sorted(market.pending_retries),
        sorted(market.pending_listings),
        sorted(market.due),
        sorted(registry.keys.items()),
        registry.operator_keys,
        sorted(registry.acts),
        sorted(registry.runs.items()),
        registry.last_batch,
    )
    return hashlib.sha256(msgspec.msgpack.encode(state, order="deterministic")).digest()


def known_orders(market: Market) -> list[Order]:
    """Return every order that is open or whose client's id is still taken, by number."""
    found = {order.order_id: order for order in market.orders.all()}
    for account in market.accounts.values():
        for order in account.client_orders.values():
            # The same moment for all: an id whose validity has ended may be asked for or not.
            if order.leaves_lots or order.valid_until_ns >= market.time_ns:
                found[order.order_id] = order
    return [order for _, order in sorted(found.items())]


def balances(market: Market) -> dict[tuple[int, int], int]:
    """Return every purse that is not empty, by account and purse, in millionths."""
    found: dict[tuple[int, int], int] = {}
    for number, account in sorted(market.accounts.items()):
        for purse, amount in zip(Purse, _purses(account), strict=True):
            if amount:
                found[number, purse] = amount
    return found


def _purses(account: Account) -> tuple[int, ...]:
    return (
        account.cash,
        account.reserved,
        account.committed,
        account.bond,
        account.bank,
        account.fees,
    )


def _account(account: Account, now_ns: int) -> tuple[object, ...]:
    return (
        account.account,
        account.group,
        _purses(account),
        account.is_suspended,
        account.open_orders,
        (account.rate_hour, account.orders_in_hour, account.trades_in_hour),
        [_group(group) for _, group in sorted(account.groups.items())],
        # Names of offers that are taken, with what frees them.
        [
            (name, offer.is_over, offer.valid_until_ns)
            for name, offer in sorted(account.offers.items())
            if not offer.is_over or offer.valid_until_ns >= now_ns
        ],
    )


def _group(group: Group) -> tuple[object, ...]:
    return (
        group.name,
        group.reserved_micros,
        group.fee_accrued,
        group.bond_accrued,
        group.has_traded,
        sorted(group.members),
    )


def _order(order: Order) -> tuple[object, ...]:
    """Return all that is not in its group, its book or its offer."""
    position, listing = order.position, order.listing
    return (
        order.order_id,
        order.account.account,
        order.client_order_id,
        order.valid_until_ns,
        (order.is_bid, order.is_market, order.post_only, order.time_in_force, order.self_trade),
        (order.book.class_code, order.hour, order.hours, order.min_hours),
        order.cell,
        0 if order.site is None else order.site.number,
        0 if position is None else position.trade.trade_id,
        0 if listing is None else listing.offer_id,
        (order.entered_lots, order.entered_price, order.expire_ns, order.min_lots, order.display_lots),
        (order.lots, order.price, order.leaves_lots, order.shown_lots, order.filled_lots),
        order.run_lots,
        order.priority,
        (order.worth_micros, order.reserved_micros, order.fee_accrued, order.bond_accrued),
    )


def _book(book: Book) -> tuple[object, ...]:
    return (
        book.class_code,
        book.hour,
        book.phase,
        book.phase_since_ns,
        (book.call_hour, book.calls_in_hour),
        [
            (cell, side.reference.ticks, side.reference.trades())
            for cell, side in sorted(book.ask_cells.items())
            if side.reference is not None
        ],
        sorted(book.blocks),
    )


def _fill(fill: Fill) -> tuple[object, ...]:
    return (
        fill.trade.trade_id,
        (fill.trade.class_code, fill.trade.delivery_hour, fill.trade.lots, fill.trade.site, fill.carbon),
        (
            fill.trade.buyer,
            fill.trade.seller,
            fill.trade.notional_micros,
            fill.trade.bond_micros,
            fill.resale_lots,
        ),
        (fill.paid, fill.refunded, fill.penalty, fill.released, fill.last_run),
    )


def _listing(offer: Listing) -> tuple[object, ...]:
    need = offer.requirement
    return (
        offer.offer_id,
        offer.account.account,
        offer.name,
        offer.valid_until_ns,
        offer.is_bid,
        (offer.class_code, offer.from_hour, offer.until_hour, offer.next_hour, offer.hours, offer.lots),
        offer.price_curve,
        None if need is None else (need.zone, need.latency, need.carbon, need.security),
        (offer.site, offer.carbon, offer.min_hours, offer.is_over),
        sorted(offer.open_orders),
    )
