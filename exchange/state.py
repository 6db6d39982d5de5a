"""The engine's state as one value: the same in every process that applied the same log, and restored from it.

What `encoded_state` leaves out is found again (caches) or follows from what it holds.
"""

from exchange.book import CALL, CLEARING, Book, Listing, Reference, Site, SiteHour
from exchange.funds import Purse
from exchange.market import DUE_GATE, VENUE, Market
from exchange.order import Account, Fill, Group, Order
from exchange.registry import Registry
from exchange.slots import EnterOrder, Traded, requirement_of
from schemas.commands import Requirement
from schemas.state import (
    AccountState,
    BookState,
    FillState,
    GroupState,
    OfferState,
    OrderState,
    ReferenceState,
    SiteHourState,
    SiteState,
    State,
    decode_state,
    encode_state,
)
from schemas.venue import Venue

# -- the state, told -------------------------------------------------------------------------------------


def encoded_state(venue: Venue, market: Market, registry: Registry) -> bytes:
    """Return the whole state in its canonical encoding."""
    now_ns = market.time_ns
    return encode_state(
        State(
            venue,
            now_ns,
            market.first_ns,
            market.last_order_id,
            market.last_trade_id,
            market.last_offer_id,
            market.last_priority,
            [_account_state(account) for _, account in sorted(market.accounts.items())],
            [_site_state(site) for _, site in sorted(market.sites.items())],
            [_book_state(book) for listed in market.class_list for _, book in sorted(listed.books.items())],
            [_offer_state(offer, market.closed_hour) for offer in _known_offers(market)],
            [_fill_state(fill) for fill in market.fills],
            [_order_state(order) for order in _known_orders(market)],
            sorted(market.pending_retries),
            sorted(market.pending_listings),
            sorted(market.due),
            [(key, account, scopes) for key, (account, scopes) in sorted(registry.keys.items())],
            registry.operator_keys,
            sorted(registry.acts),
            sorted(registry.runs.items()),
            registry.last_batch,
        )
    )


def _known_orders(market: Market) -> list[Order]:
    """Return every order that is open or whose client's id is still taken, by number."""
    found = {order.order_id: order for order in market.orders.all()}
    now_ns = market.time_ns
    for account in market.accounts.values():
        for order in account.client_orders.values():
            # The same moment for all: an id whose validity has ended may be asked for or not.
            if order.leaves_lots == 0 and order.valid_until_ns >= now_ns:
                found[order.order_id] = order
    return [found[order_id] for order_id in sorted(found)]


def _known_offers(market: Market) -> list[Listing]:
    """Return every offer that lists, or has open orders, or whose name is still taken, by number."""
    found = dict(market.listings)
    for account in market.accounts.values():
        for offer in account.offers.values():
            if offer.valid_until_ns >= market.time_ns:
                found[offer.offer_id] = offer
    return [found[offer_id] for offer_id in sorted(found)]


def balances(market: Market) -> dict[tuple[int, int], int]:
    """Return every purse that is not empty, by account and purse, in millionths."""
    found: dict[tuple[int, int], int] = {}
    for number, account in sorted(market.accounts.items()):
        held = (account.cash, account.reserved, account.committed, account.bond, account.bank, account.fees)
        for purse, amount in zip(Purse, held, strict=True):
            if amount:
                found[number, purse] = amount
    return found


def _account_state(account: Account) -> AccountState:
    return AccountState(
        account.account,
        account.group,
        account.cash,
        account.reserved,
        account.committed,
        account.bond,
        account.bank,
        account.fees,
        account.is_suspended,
        account.open_orders,
        account.rate_hour,
        account.orders_in_hour,
        account.trades_in_hour,
        [_group_state(group) for _, group in sorted(account.groups.items())],
    )


def _group_state(group: Group) -> GroupState:
    return GroupState(
        group.name, group.reserved_micros, group.fee_accrued, group.bond_accrued, group.has_traded
    )


def _site_state(site: Site) -> SiteState:
    return SiteState(
        site.certificate,
        [
            SiteHourState(hour, place.capacity, place.sold, place.open_asks, place.open_runs)
            for hour, place in sorted(site.hours.items())
        ],
    )


def _book_state(book: Book) -> BookState:
    return BookState(
        book.class_code,
        book.hour,
        book.phase,
        book.phase_since_ns,
        book.call_hour,
        book.calls_in_hour,
        [
            ReferenceState(cell, side.reference.ticks, side.reference.trades())
            for cell, side in sorted(book.ask_cells.items())
            if side.reference is not None
        ],
    )


def _offer_state(offer: Listing, closed_hour: int) -> OfferState:
    need = offer.requirement
    return OfferState(
        offer.offer_id,
        offer.account.account,
        offer.name,
        offer.valid_until_ns,
        offer.is_bid,
        offer.class_code,
        offer.from_hour,
        offer.until_hour,
        offer.next_hour,
        offer.hours,
        offer.lots,
        offer.price_curve,
        None if need is None else (need.zone, need.latency, need.carbon, need.security),
        offer.site,
        offer.carbon,
        offer.min_hours,
        offer.is_over,
        [(hour, lots) for hour, lots in sorted(offer.traded.items()) if hour > closed_hour],
    )


def _fill_state(fill: Fill) -> FillState:
    trade = fill.trade
    return FillState(
        trade.trade_id,
        trade.class_code,
        trade.delivery_hour,
        trade.lots,
        trade.site,
        fill.carbon,
        trade.buyer,
        trade.seller,
        trade.notional_micros,
        trade.bond_micros,
        fill.resale_lots,
        fill.paid,
        fill.refunded,
        fill.penalty,
        fill.released,
        fill.last_run,
    )


def _order_state(order: Order) -> OrderState:
    site, position, listing, group = order.site, order.position, order.listing, order.exclusive
    return OrderState(
        order.order_id,
        order.account.account,
        order.client_order_id,
        order.valid_until_ns,
        order.is_bid,
        order.is_market,
        order.post_only,
        order.time_in_force,
        order.self_trade,
        order.book.class_code,
        order.hour,
        order.hours,
        order.min_hours,
        order.cell,
        0 if site is None else site.number,
        0 if position is None else position.trade.trade_id,
        0 if listing is None else listing.offer_id,
        None if group is None else group.name,
        group is not None and order.account.groups.get(group.name) is not group,
        order.entered_lots,
        order.entered_price,
        order.expire_ns,
        order.min_lots,
        order.display_lots,
        order.lots,
        order.price,
        order.leaves_lots,
        order.shown_lots,
        order.filled_lots,
        order.run_lots,
        order.priority,
        order.reserved_micros,
        order.fee_accrued,
        order.bond_accrued,
    )


# -- the state, restored ---------------------------------------------------------------------------------


def restore(data: bytes, market: Market, registry: Registry) -> Venue:
    """Let a new market and registry be in the encoded state, and return the catalogue in force.

    Raises:
        msgspec.DecodeError: the bytes are no state of this format.
    """
    state = decode_state(data)
    market.take_over(state.venue)
    market.first_ns = state.first_ns
    market.pass_time(state.time_ns)
    market.last_order_id = state.last_order_id
    market.last_trade_id = state.last_trade_id
    market.last_offer_id = state.last_offer_id
    market.last_priority = state.last_priority
    for known in state.accounts:
        _restore_account(market, known)
    groups = {(known.account, group.name): group for known in state.accounts for group in known.groups}
    for certified in state.sites:
        _restore_site(market, certified)
    for entered in state.books:
        _restore_book(market, entered)
    for offered in state.offers:
        _restore_offer(market, offered)
    market.fills = [_restored_fill(fill) for fill in state.fills]
    _restore_orders(market, state.orders, groups)
    for offer in list(market.listings.values()):
        if offer.is_over and not offer.open_orders:
            # Of it only the name is still known.
            del market.listings[offer.offer_id]
    market.pending_retries = dict.fromkeys(state.pending_retries, True)
    market.pending_listings = dict.fromkeys(state.pending_listings, True)
    # In order, and so a heap.
    market.due = state.due
    market.set_next_due()
    market.gates = {number: True for _, kind, number in state.due if kind == DUE_GATE}
    registry.keys = {key: (account, scopes) for key, account, scopes in state.keys}
    registry.operator_keys = state.operator_keys
    registry.acts = dict.fromkeys(state.acts, True)
    registry.runs = dict(state.runs)
    registry.last_batch = state.last_batch
    return state.venue


def _restore_account(market: Market, known: AccountState) -> None:
    if known.account == VENUE:
        account = market.own
    else:
        account = Account(known.account, known.group)
        market.add_account(account)
    account.cash = known.cash
    account.reserved = known.reserved
    account.committed = known.committed
    account.bond = known.bond
    account.bank = known.bank
    account.fees = known.fees
    account.is_suspended = known.is_suspended
    account.open_orders = known.open_orders
    account.rate_hour = known.rate_hour
    account.orders_in_hour = known.orders_in_hour
    account.trades_in_hour = known.trades_in_hour


def _restore_site(market: Market, certified: SiteState) -> None:
    certificate, table = certified.certificate, market.eligibility
    listed = market.classes[certificate.class_code]
    cell = table.supply_cell(certificate.zone, certificate.carbon, certificate.security)
    site = Site(certificate, listed, table.carbon[certificate.carbon], cell)
    market.add_site(site)
    listed.sites.append(site)
    for at in certified.hours:
        place = SiteHour(at.capacity)
        place.sold = at.sold
        place.open_asks = at.open_asks
        place.open_runs = at.open_runs
        site.hours[at.hour] = place


def _restore_book(market: Market, entered: BookState) -> None:
    listed = market.classes[entered.class_code]
    book = Book(listed, entered.hour)
    book.phase = entered.phase
    book.phase_since_ns = entered.phase_since_ns
    book.call_hour = entered.call_hour
    book.calls_in_hour = entered.calls_in_hour
    for known in entered.references:
        reference = Reference()
        reference.call(known.ticks)
        for price, lots in known.trades:
            reference.trade(price, lots, market.reference_lots)
        book.side(False, known.cell, market.eligibility).reference = reference
    listed.books[entered.hour] = book
    if book.phase in (CALL, CLEARING):
        market.in_call[book.class_code, book.hour] = book


def _restore_offer(market: Market, offered: OfferState) -> None:
    need = offered.requirement
    offer = Listing(
        offered.offer_id,
        market.accounts[offered.account],
        offered.name,
        offered.valid_until_ns,
        offered.is_bid,
        offered.class_code,
        offered.from_hour,
        offered.until_hour,
        offered.hours,
        offered.lots,
        offered.price_curve,
        None if need is None else requirement_of(Requirement(*need)),
        offered.site,
        offered.carbon,
        offered.min_hours,
    )
    offer.next_hour = offered.next_hour
    offer.is_over = offered.is_over
    offer.traded = dict(offered.traded)
    offer.account.offers[offer.name] = offer
    market.listings[offer.offer_id] = offer


def _restored_fill(known: FillState) -> Fill:
    # What else its event told is of no more use.
    trade = Traded(
        trade_id=known.trade_id,
        class_code=known.class_code,
        delivery_hour=known.delivery_hour,
        price_ticks=0,
        lots=known.lots,
        taker=0,
        bid_order_id=0,
        ask_order_id=0,
        buyer=known.buyer,
        seller=known.seller,
        site=known.site,
        block=0,
        position=0,
        notional_micros=known.notional_micros,
        buyer_fee_micros=0,
        buyer_released_micros=0,
        bond_micros=known.bond_micros,
        seller_fee_micros=0,
        seller_released_micros=0,
    )
    fill = Fill(trade, known.carbon)
    fill.resale_lots = known.resale_lots
    fill.paid = known.paid
    fill.refunded = known.refunded
    fill.penalty = known.penalty
    fill.released = known.released
    fill.last_run = known.last_run
    return fill


def _restore_orders(
    market: Market, orders: list[OrderState], groups: dict[tuple[int, str], GroupState]
) -> None:
    """Put the orders where they stand; sites, books, offers and fills are there."""
    # Of orders that have ended: nothing in a closed contract is looked at but its name.
    closed: dict[tuple[str, int], Book] = {}
    resting: list[Order] = []
    blocks: list[Order] = []
    for known in orders:
        listed = market.classes[known.class_code]
        book = listed.at(known.hour)
        if book is None:
            book = closed.get((known.class_code, known.hour))
            if book is None:
                book = closed[known.class_code, known.hour] = Book(listed, known.hour)
        order = _restored_order(market, known, book)
        if known.group is not None:
            _join_group(order, known, groups)
        if known.leaves_lots:
            market.orders.add(order)
            if order.hours == 1:
                resting.append(order)
                _offer_at_site(order)
            elif order.is_bid:
                order.worth_micros = order.price * order.leaves_lots * order.hours * order.tick_lot_micros
                blocks.append(order)
            else:
                order.worth_micros = order.price * order.leaves_lots * order.tick_lot_micros
                assert order.site is not None
                order.site.runs[order.order_id] = order
        if known.offer_id:
            offer = market.listings[known.offer_id]
            order.listing = offer
            offer.open_orders[order.order_id] = order
        else:
            market.remember(order)
    # Each behind those of its price that came before it.
    resting.sort(key=_by_priority)
    for order in resting:
        order.worth_micros = order.price * order.leaves_lots * order.tick_lot_micros
        market.rest(order)
    for block in blocks:
        for hour in range(block.hour, block.hour + block.hours):
            book = block.book.listed.books[hour]
            book.list_asks()
            book.blocks[block.order_id] = block


def _by_priority(order: Order) -> int:
    return order.priority


def _restored_order(market: Market, known: OrderState, book: Book) -> Order:
    entered = EnterOrder(
        known.account,
        known.client_order_id,
        known.valid_until_ns,
        known.is_bid,
        known.class_code,
        known.hour,
        known.hours,
        known.entered_lots,
        known.entered_price,
        is_market=known.is_market,
        time_in_force=known.time_in_force,
        expire_ns=known.expire_ns,
        min_lots=known.min_lots,
        display_lots=known.display_lots,
        post_only=known.post_only,
        self_trade=known.self_trade,
        min_hours=known.min_hours,
    )
    account = market.accounts[known.account]
    order = Order(known.order_id, account, entered, book, book.listed.tick_lot_micros)
    order.passes_own = known.post_only
    order.cell = known.cell
    if known.is_bid:
        order.served_by = market.eligibility.served_by(known.cell)
    else:
        order.site = market.sites[known.site]
    if known.position:
        order.position = market.fills[known.position - 1]
    order.lots = known.lots
    order.price = known.price
    order.leaves_lots = known.leaves_lots
    order.shown_lots = known.shown_lots
    order.filled_lots = known.filled_lots
    order.run_lots = known.run_lots
    order.priority = known.priority
    order.reserved_micros = known.reserved_micros
    order.fee_accrued = known.fee_accrued
    order.bond_accrued = known.bond_accrued
    return order


def _join_group(order: Order, known: OrderState, groups: dict[tuple[int, str], GroupState]) -> None:
    """Let the order be of its group: the one in force, or one that is over and holds nothing."""
    account, name = order.account, known.group
    assert name is not None
    group = None if known.group_is_over else account.groups.get(name)
    if group is None:
        group = Group(name, order)
        if not known.group_is_over:
            state = groups[account.account, name]
            group.reserved_micros = state.reserved_micros
            group.fee_accrued = state.fee_accrued
            group.bond_accrued = state.bond_accrued
            group.has_traded = state.has_traded
            account.groups[name] = group
    order.exclusive = group
    if known.leaves_lots:
        group.members[order.order_id] = order


def _offer_at_site(order: Order) -> None:
    """Count an open hourly ask at its site."""
    site = order.site
    if site is not None:
        place = site.at(order.hour)
        assert place is not None
        place.asks += 1
        order.site_hour = place
