"""The market's state, and the few things that happen to an order: it is funded, trades, shrinks, ends."""

from heapq import heappop, heappush
from typing import Final, NoReturn

from exchange import slots
from exchange.book import (
    CALL,
    CLEARING,
    CONTINUOUS,
    PRE_OPEN,
    Book,
    Class,
    Listing,
    Orders,
    Site,
    SiteHour,
)
from exchange.contract import HOUR_NS, gate_ns
from exchange.eligibility import Eligibility
from exchange.order import Account, Fill, Order, Pledge, Terms
from schemas.events import EndReason, Event, Phase, PhaseChanged, Rejected
from schemas.reasons import RejectReason
from schemas.venue import CallRules, Limits, Venue

Events = list[object]
"""Events inside the engine: slot objects where they have that form, else those of the words."""

SECOND_NS: Final = 1_000_000_000
MAX_MICROS: Final = 2**62
MAX_NOTIONAL: Final = 2**61 - 1
"""With the higher fee on top a reserve stays a 64-bit number."""
MAX_LOTS: Final = 2**31
NO_HOUR: Final = -(2**40)
NEVER_NS: Final = 2**62 - 1
NEAR: Final = 65_536
VENUE: Final = 0
"""The venue's own account: the other side of the bank, and the fees."""

# Kinds of due work, in the order in which they are done at the same time.
DUE_LISTING: Final = 1
DUE_CALL: Final = 2
DUE_GATE: Final = 3
DUE_EXPIRY: Final = 4

PHASES: Final = [Phase.PRE_OPEN, Phase.CALL, Phase.CLEARING, Phase.CONTINUOUS, Phase.HALTED]


class Refusal(Exception):  # noqa: N818 - it is control flow inside one `apply`, never seen outside
    """The command changes nothing."""

    def __init__(self, reason: RejectReason, field: str, allowed: str) -> None:
        self.event = Rejected(reason, field, allowed)


def refuse(reason: RejectReason, field: str, allowed: str) -> NoReturn:
    """Raise the refusal."""
    raise Refusal(reason, field, allowed)


class Market:
    """Accounts, sites, orders and books of one venue."""

    def __init__(self) -> None:
        self.time_ns = 0
        self.hour = 0
        # The last delivery hour whose gate has passed, and when hour or gate passes next.
        self.closed_hour = NO_HOUR
        self.turns_ns = 0
        self.first_ns = 0
        self.own = Account(VENUE, VENUE)
        self.accounts: dict[int, Account] = {VENUE: self.own}
        self.classes: dict[str, Class] = {}
        self.class_list: list[Class] = []
        self.sites: dict[int, Site] = {}
        # Those of low numbers once more: a place in a list is found without making a number.
        self.near_accounts: list[Account | None] = []
        self.near_sites: list[Site | None] = []
        self.recent_class: Class | None = None
        self.orders = Orders()
        # By trade id, which ascends from 1 without a gap.
        self.fills: list[Fill] = []
        self.listings: dict[int, Listing] = {}
        self.pending_retries: dict[int, bool] = {}
        self.pending_listings: dict[int, bool] = {}
        self.last_order_id = 0
        self.last_trade_id = 0
        self.last_offer_id = 0
        self.last_priority = 0
        self.due: list[tuple[int, int, int]] = []
        self.next_due_ns = NEVER_NS
        self.gates: dict[int, bool] = {}
        # Contracts in a call or clearing, by class and hour.
        self.in_call: dict[tuple[str, int], Book] = {}
        # Client ids to forget, by the second in which their validity ends.
        self.forget: dict[int, list[Order]] = {}
        self.forget_seconds: list[int] = []
        self.next_forget_ns = NEVER_NS
        self.recent_from_ns = self.recent_until_ns = 0
        self.recent_bucket: list[Order] = []

    def take_over(self, venue: Venue) -> None:
        """Let a catalogue be in force."""
        self.limits: Limits = venue.limits
        self.calls: CallRules = venue.calls
        self.terms = Terms(venue)
        self.eligibility = Eligibility(venue)
        self.gate_seconds: int = venue.gate_seconds
        self.horizon_hours: int = venue.horizon_hours
        # What an order is measured by, read once: a struct's field is slower to reach than a slot's.
        limits = venue.limits
        self.price_max: int = limits.price_max_ticks
        self.order_max_lots: int = limits.order_max_lots
        self.block_max_hours: int = limits.block_max_hours
        self.valid_until_max_ns: int = limits.valid_until_max_seconds * SECOND_NS
        self.open_orders_max: int = limits.open_orders_max
        self.collar_permille: int = limits.collar_permille
        self.band_permille: int = limits.band_permille
        self.reference_lots: int = limits.reference_lots
        self.free_orders_per_hour: int = limits.free_orders_per_hour
        self.orders_per_trade: int = limits.orders_per_trade
        self.opens_by_call: bool = venue.calls.opening
        for index, listed in enumerate(venue.classes):
            known = Class(listed, index, venue.currency.tick_micros)
            self.classes[listed.code] = known
            self.class_list.append(known)

    # -- time ----------------------------------------------------------------------------------------

    def pass_time(self, time_ns: int) -> None:
        """Let it be `time_ns`."""
        self.time_ns = time_ns
        if time_ns >= self.turns_ns:
            self.hour = time_ns // HOUR_NS
            self.closed_hour = (time_ns + self.gate_seconds * SECOND_NS) // HOUR_NS
            self.turns_ns = min((self.hour + 1) * HOUR_NS, gate_ns(self.closed_hour + 1, self.gate_seconds))
        if time_ns > self.next_forget_ns:
            self._forget()

    def _forget(self) -> None:
        while self.forget_seconds and self.forget_seconds[0] * SECOND_NS < self.time_ns:
            for order in self.forget.pop(heappop(self.forget_seconds)):
                known = order.account.client_orders
                if order.leaves_lots == 0 and known.get(order.client_order_id) is order:
                    del known[order.client_order_id]
        seconds = self.forget_seconds
        self.next_forget_ns = seconds[0] * SECOND_NS if seconds else NEVER_NS
        self.recent_from_ns = self.recent_until_ns = 0

    def remember(self, order: Order) -> None:
        """Keep the client's id of an order until its validity has ended."""
        order.account.client_orders[order.client_order_id] = order
        valid_until_ns = order.valid_until_ns
        if not self.recent_from_ns <= valid_until_ns < self.recent_until_ns:
            second = valid_until_ns // SECOND_NS + 1
            bucket = self.forget.get(second)
            if bucket is None:
                bucket = []
                self.forget[second] = bucket
                heappush(self.forget_seconds, second)
                self.next_forget_ns = self.forget_seconds[0] * SECOND_NS
            self.recent_until_ns = second * SECOND_NS
            self.recent_from_ns = self.recent_until_ns - SECOND_NS
            self.recent_bucket = bucket
        self.recent_bucket.append(order)

    def push_due(self, due_ns: int, kind: int, number: int) -> None:
        """Have something done at its time."""
        heappush(self.due, (due_ns, kind, number))
        self.set_next_due()

    def set_next_due(self) -> None:
        """Note when the next work falls due."""
        self.next_due_ns = self.due[0][0] if self.due else NEVER_NS

    def watch_gate(self, hour: int) -> None:
        """See to it that the gate of this delivery hour closes what stands in it."""
        if hour not in self.gates:
            self.gates[hour] = True
            self.push_due(gate_ns(hour, self.gate_seconds), DUE_GATE, hour)

    # -- contracts -----------------------------------------------------------------------------------

    def listed_class(self, code: str) -> Class:
        """Return the class, or refuse."""
        recent = self.recent_class
        if recent is not None and recent.code == code:
            return recent
        listed = self.classes.get(code)
        if listed is None:
            refuse(RejectReason.UNKNOWN_CLASS, "class_code", "a class of the venue")
        self.recent_class = listed
        return listed

    def check_tradable(self, first: int, last: int, field: str) -> None:
        """Refuse hours that are not listed, or closed."""
        if last < 0 or last > self.hour + self.horizon_hours:
            refuse(RejectReason.BEYOND_HORIZON, field, f"within {self.horizon_hours} hours")
        if first <= self.closed_hour:
            refuse(RejectReason.GATE_CLOSED, field, f"{self.gate_seconds} s before delivery")

    def phase_of(self, listed: Class, hour: int) -> int:
        """Return the phase of a contract that is listed and not closed."""
        book = listed.at(hour)
        return self.idle_phase(hour) if book is None else book.phase

    def idle_phase(self, hour: int) -> int:
        """Return the phase of a contract in which nothing was entered yet."""
        if not self.opens_by_call:
            return CONTINUOUS
        since = self.time_ns - (hour - self.horizon_hours) * HOUR_NS
        if (hour - self.horizon_hours) * HOUR_NS <= self.first_ns:
            return CONTINUOUS
        rules = self.calls
        if since < rules.pre_open_seconds * SECOND_NS:
            return PRE_OPEN
        return CALL if since < (rules.pre_open_seconds + rules.max_seconds) * SECOND_NS else CONTINUOUS

    def book(self, listed: Class, hour: int) -> Book:
        """Return the contract's book, made now if nothing was entered before."""
        book = listed.at(hour)
        if book is None:
            book = Book(listed, hour)
            if self.opens_by_call:
                book.phase = self.idle_phase(hour)
                if book.phase != CONTINUOUS:
                    call_ns = (hour - self.horizon_hours) * HOUR_NS + self.calls.pre_open_seconds * SECOND_NS
                    if book.phase == CALL:
                        book.phase_since_ns = call_ns
                        self.in_call[book.class_code, hour] = book
                        call_ns += self.calls.max_seconds * SECOND_NS
                    self.push_due(call_ns, DUE_CALL, self.contract_number(book))
            listed.books[hour] = book
            self.watch_gate(hour)
        return book

    def contract_number(self, book: Book) -> int:
        """Return the number by which due work names a contract: by hour, then class."""
        return book.hour * 1024 + book.listed.index

    def enter_phase(self, book: Book, phase: int) -> Event:
        """Let the contract be in a phase."""
        book.phase = phase
        book.phase_since_ns = self.time_ns
        if phase in (CALL, CLEARING):
            self.in_call[book.class_code, book.hour] = book
        else:
            self.in_call.pop((book.class_code, book.hour), None)
        if phase == CALL:
            ends_ns = self.time_ns + self.calls.max_seconds * SECOND_NS
            self.push_due(ends_ns, DUE_CALL, self.contract_number(book))
        elif phase == CONTINUOUS:
            for order_id in book.blocks:
                self.pending_retries[order_id] = True
        return PhaseChanged(book.class_code, book.hour, PHASES[phase])

    def set_collar(self, book: Book) -> None:
        """Bring the contract's collar up to date: 0 and 0 if it has none."""
        low = high = 0
        for side in book.asks:
            reference = side.reference
            if reference is not None:
                ticks = reference.ticks
                if high == 0:
                    low = high = ticks
                elif ticks < low:
                    low = ticks
                elif ticks > high:
                    high = ticks
        if high == 0:
            low = high = book.listed.reference_ticks
        if low == 0 or self.collar_permille == 0:
            book.collar_low = book.collar_high = 0
        else:
            book.collar_low = max(1, low * (1000 - self.collar_permille) // 1000)
            book.collar_high = min(self.price_max, high * (1000 + self.collar_permille) // 1000)
        book.collar_stale = False

    # -- sites ---------------------------------------------------------------------------------------

    def site_hour(self, site: Site, hour: int) -> SiteHour:
        """Return what the site has in an hour, made now if it had nothing."""
        found = site.at(hour)
        if found is None:
            found = SiteHour(site.capacity)
            site.hours[hour] = found
            self.watch_gate(hour)
        return found

    # -- accounts ------------------------------------------------------------------------------------

    def account(self, number: int) -> Account:
        """Return a participant's account, or refuse."""
        near = self.near_accounts
        account = near[number] if 0 < number < len(near) else self.accounts.get(number)
        if account is None or number == VENUE:
            refuse(RejectReason.UNKNOWN_ACCOUNT, "account", "a registered account")
        return account

    def site(self, number: int) -> Site | None:
        """Return a site, None if there is none of this number."""
        near = self.near_sites
        return near[number] if 0 < number < len(near) else self.sites.get(number)

    def add_account(self, account: Account) -> None:
        """Take in an account."""
        number = account.account
        self.accounts[number] = account
        if 0 < number < NEAR:
            while len(self.near_accounts) <= number:
                self.near_accounts.append(None)
            self.near_accounts[number] = account

    def add_site(self, site: Site) -> None:
        """Take in a site."""
        number = site.number
        self.sites[number] = site
        if 0 < number < NEAR:
            while len(self.near_sites) <= number:
                self.near_sites.append(None)
            self.near_sites[number] = site

    def check_status(self, account: Account) -> None:
        """Refuse an account that may only reduce and cancel."""
        if account.cash < 0 or account.is_suspended:
            refuse(RejectReason.ACCOUNT_SUSPENDED, "account", "an account neither suspended nor overdrawn")

    def check_rate(self, account: Account) -> None:
        """Refuse more orders in this hour than the account's trades allow."""
        free = self.free_orders_per_hour
        if free == 0:
            return
        # Looked at, not counted anew: the order may still be refused.
        same = account.rate_hour == self.hour
        most = free + self.orders_per_trade * (account.trades_in_hour if same else 0)
        if (account.orders_in_hour if same else 0) >= most:
            refuse(RejectReason.ORDER_TO_TRADE_EXCEEDED, "account", f"{most} orders in this hour")

    def turn_rate(self, account: Account) -> None:
        """Count anew when the hour has turned."""
        if account.rate_hour != self.hour:
            account.rate_hour = self.hour
            account.orders_in_hour = account.trades_in_hour = 0

    def count_order(self, account: Account) -> None:
        """Count an order entered or replaced."""
        self.turn_rate(account)
        account.orders_in_hour += 1

    def check_validity(self, valid_until_ns: int) -> None:
        """Refuse a command that came too late, or is valid for too long."""
        if valid_until_ns < self.time_ns:
            refuse(RejectReason.COMMAND_EXPIRED, "valid_until_ns", f"not before {self.time_ns}")
        if valid_until_ns > self.time_ns + self.valid_until_max_ns:
            refuse(
                RejectReason.VALIDITY_TOO_LONG,
                "valid_until_ns",
                f"at most {self.valid_until_max_ns // SECOND_NS} s ahead",
            )

    def check_price(self, price_ticks: int) -> None:
        """Refuse a price that no order may have."""
        if not 0 < price_ticks <= self.price_max:
            refuse(RejectReason.PRICE_OUT_OF_RANGE, "price_ticks", f"1 to {self.price_max}")

    def check_lots(self, lots: int) -> None:
        """Refuse a quantity that no order may have."""
        if not 0 < lots <= self.order_max_lots:
            refuse(RejectReason.QUANTITY_OUT_OF_RANGE, "lots", f"1 to {self.order_max_lots}")

    def check_collar(self, book: Book, price_ticks: int) -> None:
        """Refuse a price outside the contract's collar."""
        if self.collar_permille == 0:
            return
        if book.collar_stale:
            self.set_collar(book)
        if book.collar_high and not book.collar_low <= price_ticks <= book.collar_high:
            refuse(
                RejectReason.PRICE_OUTSIDE_COLLAR,
                "price_ticks",
                f"{book.collar_low} to {book.collar_high}",
            )

    # -- what happens to an order ----------------------------------------------------------------------

    def fund(self, order: Order) -> int:
        """Reserve what the order's pledge needs now and return the change, or refuse and change nothing."""
        account = order.account
        if order.exclusive is None:
            pledge: Pledge = order
            needed = order.required(order.worth_micros, order.is_bid, self.terms)
        else:
            pledge = order.exclusive
            needed = order.required_micros(self.terms)
        more = needed - pledge.reserved_micros
        if more > account.cash:
            refuse(
                RejectReason.INSUFFICIENT_FUNDS,
                "account",
                f"{more} micros are needed, {account.cash} are free",
            )
        # After this point the order must succeed.
        pledge.reserved_micros = needed
        account.reserved += more
        account.cash -= more
        return more

    def release(self, order: Order) -> int:
        """Return to cash what the order's pledge holds beyond its need, and say how much."""
        pledge, account = order.pledge, order.account
        needed = order.required_micros(self.terms)
        back = pledge.reserved_micros - needed
        pledge.reserved_micros = needed
        account.reserved -= back
        account.cash += back
        return back

    def give_time(self, order: Order) -> None:
        """Give the order a new time in the queue."""
        self.last_priority += 1
        order.priority = self.last_priority

    def rest(self, order: Order) -> None:
        """Let an hourly order stand in its book."""
        side = order.side
        if side is None:
            side = order.book.side(order.is_bid, order.cell, self.eligibility)
            order.side = side
        side.add(order)

    def unrest(self, order: Order) -> None:
        """Take a resting hourly order out of its book."""
        side = order.side
        assert side is not None
        side.remove(order)

    def fill(self, order: Order, lots: int) -> None:
        """Take the lots that an hourly order trades out of all that counts it."""
        order.leaves_lots -= lots
        order.filled_lots += lots
        order.shown_lots -= lots
        place = order.site_hour
        if place is not None and order.position is None:
            place.open_asks -= lots
            place.sold += lots
        if order.leaves_lots == 0:
            if order.level is not None:
                self.unrest(order)
            if place is not None:
                place.remove(order)
            self.close(order)
        elif order.shown_lots <= 0:
            self._show_next(order)

    def _show_next(self, order: Order) -> None:
        """Show the next slice of an iceberg, at the end of its price level."""
        order.shown_lots = min(order.display_lots, order.leaves_lots)
        self.give_time(order)
        level = order.level
        if level is not None:
            level.unlink(order)
            level.append(order)
        if order.site_hour is not None:
            order.site_hour.by_price = None

    def shrink(self, order: Order, lots: int) -> None:
        """Take lots out of an hourly order or a block, hidden ones first."""
        order.lots -= lots
        order.leaves_lots -= lots
        order.shown_lots = min(order.shown_lots, order.leaves_lots)
        order.worth_micros -= order.price * lots * order.hours * order.tick_lot_micros
        place = order.site_hour
        if place is not None:
            if order.position is None:
                place.open_asks -= lots
            else:
                order.position.resale_lots -= lots

    def set_run(self, run: Order, run_lots: list[int]) -> None:
        """Let a run have these open lots by hour."""
        site, old = run.site, run.run_lots
        assert site is not None
        assert old is not None
        for index, lots in enumerate(run_lots):
            if lots != old[index]:
                self.site_hour(site, run.hour + index).open_runs += lots - old[index]
        run.run_lots = run_lots
        run.leaves_lots = sum(run_lots)
        run.worth_micros = run.price * run.leaves_lots * run.tick_lot_micros

    def replaced(self, order: Order, reserved_micros: int) -> slots.OrderReplaced:
        """Return the event that tells an order's new total and price."""
        return slots.OrderReplaced(
            order.order_id,
            order.account.account,
            order.lots,
            order.price,
            order.leaves_lots,
            reserved_micros,
        )

    def end(self, order: Order, reason: EndReason) -> slots.OrderEnded:
        """End what is open of the order."""
        leaves_lots = order.leaves_lots
        self.take_away(order)
        released = self.release(order)
        return slots.OrderEnded(order.order_id, order.account.account, leaves_lots, released, reason)

    def take_away(self, order: Order) -> None:
        """Take an order out of wherever it stands and close it; its reserve stays as it is."""
        if order.is_bid and order.hours > 1:
            self.leave_books(order)
        elif order.hours > 1:
            self.set_run(order, [0] * order.hours)
            assert order.site is not None
            order.site.runs.pop(order.order_id, None)
        else:
            if order.level is not None:
                self.unrest(order)
            place = order.site_hour
            if place is not None:
                place.remove(order)
                if order.position is None:
                    place.open_asks -= order.leaves_lots
                else:
                    order.position.resale_lots -= order.leaves_lots
        order.leaves_lots = order.shown_lots = 0
        order.worth_micros = 0
        self.close(order)

    def leave_books(self, block: Order) -> None:
        """Take a block out of the books of its hours."""
        for hour in range(block.hour, block.hour + block.hours):
            book = block.book.listed.books.get(hour)
            if book is not None:
                book.blocks.pop(block.order_id, None)
        self.pending_retries.pop(block.order_id, None)

    def close(self, order: Order) -> None:
        """Count an order that has nothing open as open no more."""
        account = order.account
        account.open_orders -= 1
        self.orders.remove(order)
        group = order.exclusive
        if group is not None:
            del group.members[order.order_id]
            if not group.members:
                del account.groups[group.name]
        listing = order.listing
        if listing is not None:
            del listing.open_orders[order.order_id]
            if listing.is_over and not listing.open_orders:
                del self.listings[listing.offer_id]
        elif order.valid_until_ns < self.time_ns:
            known = account.client_orders
            if known.get(order.client_order_id) is order:
                del known[order.client_order_id]

    def end_all(self, orders: list[Order], reason: EndReason) -> Events:
        """End these orders, in the order of entry."""
        found: Events = []
        for order in sorted(orders, key=_by_id):
            found.append(self.end(order, reason))
        return found

    def thin_group(self, order: Order, lots: int) -> Events:
        """Take what a member of a group trades from the others; the group's reserve stays as it is."""
        group = order.exclusive
        found: Events = []
        if group is None:
            return found
        group.has_traded = True
        for member in list(group.members.values()):
            if member is order:
                continue
            number, account = member.order_id, member.account.account
            out = min(lots, member.leaves_lots)
            if out == member.leaves_lots or member.hours > 1:
                leaves = member.leaves_lots
                self.take_away(member)
                found.append(slots.OrderEnded(number, account, leaves, 0, EndReason.GROUP))
            else:
                self.shrink(member, out)
                found.append(
                    slots.OrderReduced(number, account, out, member.leaves_lots, 0, EndReason.GROUP, None)
                )
        return found

    def book_trade(
        self,
        bid: Order,
        ask: Order,
        hour: int,
        price: int,
        lots: int,
        taker: int,
    ) -> slots.Traded:
        """Move the money of a trade, which quantities and worths already show, and return its event."""
        self.last_trade_id += 1
        terms = self.terms
        notional = price * lots * bid.tick_lot_micros
        bid_pledge, ask_pledge = bid.pledge, ask.pledge
        buyer_fee = bid_pledge.charge_fee(terms.taker_fee_ppm if taker > 0 else terms.maker_fee_ppm, notional)
        seller_rate = terms.taker_fee_ppm if taker < 0 else terms.maker_fee_ppm
        fee_before, bond_before = ask_pledge.fee_accrued, ask_pledge.bond_accrued
        seller_fee = ask_pledge.charge_fee(seller_rate, notional)
        bond = ask_pledge.charge_bond(terms.bond_permille, notional)
        bid_keeps, ask_keeps = bid.required_micros(terms), ask.required_micros(terms)
        buyer_back = bid_pledge.reserved_micros - notional - buyer_fee - bid_keeps
        seller_back = ask_pledge.reserved_micros - bond - seller_fee - ask_keeps
        buyer, seller = bid.account, ask.account
        if seller_back < 0 and seller.cash + seller_back < 0:
            # Sold in a call above its limit, for which alone it has reserved, and its cash does not do.
            ask_pledge.fee_accrued, ask_pledge.bond_accrued = fee_before, bond_before
            at_limit = ask.price * lots * ask.tick_lot_micros
            seller_fee = ask_pledge.charge_fee(seller_rate, at_limit)
            bond = ask_pledge.charge_bond(terms.bond_permille, at_limit)
            ask_keeps = ask.required_micros(terms)
            seller_back = ask_pledge.reserved_micros - bond - seller_fee - ask_keeps
        buyer.reserved -= notional + buyer_fee + buyer_back
        buyer.committed += notional
        buyer.cash += buyer_back
        seller.reserved -= bond + seller_fee + seller_back
        seller.bond += bond
        seller.cash += seller_back
        self.own.fees += buyer_fee + seller_fee
        bid_pledge.reserved_micros = bid_keeps
        ask_pledge.reserved_micros = ask_keeps
        if self.free_orders_per_hour:
            self.turn_rate(buyer)
            self.turn_rate(seller)
            buyer.trades_in_hour += 1
            seller.trades_in_hour += 1
        site = ask.site
        assert site is not None
        class_code = bid.book.class_code
        position = ask.position
        trade = slots.Traded(
            self.last_trade_id,
            class_code,
            hour,
            price,
            lots,
            taker,
            bid.order_id,
            ask.order_id,
            buyer.account,
            seller.account,
            site.number,
            bid.order_id if bid.hours > 1 else 0,
            0 if position is None else position.trade.trade_id,
            notional,
            buyer_fee,
            buyer_back,
            bond,
            seller_fee,
            seller_back,
        )
        self.fills.append(Fill(trade, self.eligibility.carbon_of(ask.cell)))
        if bid.listing is not None:
            bid.listing.count_trade(hour, lots)
        if ask.listing is not None:
            ask.listing.count_trade(hour, lots)
        return trade

    def fill_of(self, trade_id: int) -> Fill | None:
        """Return what is left of a trade, None if there is none of this number."""
        return self.fills[trade_id - 1] if 0 < trade_id <= len(self.fills) else None

    def find_open(self, account: Account, order_id: int, client_order_id: str | None) -> Order | None:
        """Return an account's open order by either id, None if it has none."""
        named = client_order_id or ""
        order = self.orders.get(order_id) if order_id else account.client_orders.get(named)
        if order is None or order.account is not account or order.leaves_lots == 0:
            return None
        return order


def contains(run: Order, block: Order) -> bool:
    """Say whether the block's window lies within the run's."""
    return run.hour <= block.hour and block.hour + block.hours <= run.hour + run.hours


def _by_id(order: Order) -> int:
    return order.order_id
