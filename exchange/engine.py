"""The engine: a pure function of the log. `apply(time, command)` returns the events; nothing else happens.

No clock, no randomness, no input or output, no floats, no iteration over sets.
"""

import hashlib
from heapq import heappop, heappush
from pathlib import Path
from typing import NoReturn, TypeVar

import msgspec

from exchange.book import Book, CellSide
from exchange.contract import HOUR_NS, gate_ns
from exchange.eligibility import Eligibility
from exchange.funds import VENUE, Purse, transfers
from exchange.matching import BlockPlan, plan_block, plan_hourly
from exchange.order import Order, Terms
from schemas.codec import encode
from schemas.commands import (
    AnyCommand,
    CancelOrder,
    CertifySite,
    Deposit,
    EnterOrder,
    OpenEra,
    OperatorCommand,
    PostSettlement,
    ReceiveReadings,
    RegisterAccount,
    RegisterKey,
    Scope,
    Side,
    StartSettlementRun,
    Tick,
    TimeInForce,
    Withdraw,
)
from schemas.events import (
    AccountRegistered,
    AnyEvent,
    BlockTraded,
    ContractClosed,
    Deposited,
    EndReason,
    EraOpened,
    KeyRegistered,
    OrderAccepted,
    OrderEnded,
    OrderRepeated,
    ReadingsReceived,
    Rejected,
    SettlementPosted,
    SettlementRunStarted,
    SiteCertified,
    Traded,
    Withdrawn,
)
from schemas.reasons import RejectReason
from schemas.venue import AcceleratorClass, Venue

MAX_MICROS = 2**62
MAX_LOTS = 2**31
_RULES = ("book", "contract", "eligibility", "engine", "funds", "matching", "order", "quantity")

ENGINE_DIGEST = hashlib.sha256(
    b"".join((Path(__file__).parent / f"{name}.py").read_bytes() for name in _RULES)
).digest()
"""SHA-256 of the modules that decide; an era names the one that made it."""

EMPTY_STATE = hashlib.sha256(b"").digest()
"""The state hash before the first era."""


class _Refusal(Exception):  # noqa: N818 - it is control flow inside one `apply`, never seen outside
    def __init__(self, reason: RejectReason, field: str, allowed: str) -> None:
        self.event = Rejected(reason, field, allowed)


def _refuse(reason: RejectReason, field: str, allowed: str) -> NoReturn:
    raise _Refusal(reason, field, allowed)


class Account:
    """A participant inside the engine: money by purse, and the orders that its client's ids name."""

    __slots__ = ("account", "client_orders", "group", "open_orders", "purses")

    def __init__(self, account: int, group: int) -> None:
        self.account = account
        self.group = group
        self.purses = [0] * (max(Purse) + 1)
        self.client_orders: dict[str, Order] = {}
        self.open_orders: dict[int, Order] = {}


class Site:
    """A certified site; `load` is sold + open lots by delivery hour."""

    __slots__ = ("certificate", "load")

    def __init__(self, certificate: CertifySite) -> None:
        self.certificate = certificate
        self.load: dict[int, int] = {}


class Fill:
    """What settlement may still move of a trade."""

    __slots__ = ("bond", "buyer", "hour", "last_run", "notional", "posted", "seller")

    def __init__(self, trade: Traded) -> None:
        self.buyer, self.seller, self.hour = trade.buyer, trade.seller, trade.delivery_hour
        self.notional, self.bond = trade.notional_micros, trade.bond_micros
        # Payment, refund, penalty and release of the bond by all runs so far.
        self.posted = (0, 0, 0, 0)
        self.last_run = 0


class Run:
    """A settlement run that may still post."""

    __slots__ = ("left",)

    def __init__(self, postings: int) -> None:
        self.left = postings


E = TypeVar("E", bound=AnyEvent)

# Kinds of due work, in the order in which they are done at the same time.
_GATE, _EXPIRY, _FORGET = 1, 2, 3


class Engine:
    """The market's state. Before `OpenEra` every other command is misuse."""

    def __init__(self) -> None:
        self.venue: Venue | None = None
        self.time_ns = 0
        self.accounts: dict[int, Account] = {VENUE: Account(VENUE, VENUE)}
        self.sites: dict[int, Site] = {}
        self.class_sites: dict[str, list[int]] = {}
        self.keys: dict[bytes, tuple[int, tuple[Scope, ...]]] = {}
        self.operator_keys: tuple[bytes, ...] = ()
        self.operator_acts: dict[bytes, bool] = {}
        self.orders: dict[int, Order] = {}
        self.books: dict[str, dict[int, Book]] = {}
        self.fills: dict[int, Fill] = {}
        self.runs: dict[int, Run] = {}
        self.last_order_id = 0
        self.last_trade_id = 0
        self.last_batch = 0
        self._due: list[tuple[int, int, int]] = []
        self._gates: dict[int, bool] = {}

    # -- the one entrance ----------------------------------------------------------------------------

    def apply(self, time_ns: int, command: AnyCommand) -> list[AnyEvent]:
        """Return what the command causes at `time_ns`: first what was due by then, then its answer.

        Raises:
            ValueError: no era is open, or time runs backwards; the state is unchanged.
        """
        if time_ns < self.time_ns:
            raise ValueError(f"time {time_ns} is before {self.time_ns}")
        if self.venue is None and not isinstance(command, OpenEra):
            raise ValueError("the first command of a log is open_era")
        self.time_ns = time_ns
        events = self._do_due()
        try:
            events += self._dispatch(command)
        except _Refusal as refusal:
            events.append(refusal.event)
        return events

    def next_due_ns(self) -> int | None:
        """Return when the next work falls due, None if there is none."""
        return self._due[0][0] if self._due else None

    def _dispatch(self, command: AnyCommand) -> list[AnyEvent]:
        match command:
            case EnterOrder():
                return self._enter(command)
            case CancelOrder():
                return self._cancel(command)
            case Tick():
                return []
            case PostSettlement():
                return self._post(command)
            case OpenEra():
                return self._open_era(command)
            case _:
                digest = self._checked_act(command)
                events = self._operate(command)
                self.operator_acts[digest] = True
                return events

    def _operate(self, command: OperatorCommand) -> list[AnyEvent]:
        match command:
            case RegisterAccount():
                return self._register_account(command)
            case RegisterKey():
                return self._register_key(command)
            case Deposit():
                account = self._account(command.account)
                # What the bank paid in bounds every purse, overdrafts apart: all stay 64-bit numbers.
                paid_in = -self.accounts[VENUE].purses[Purse.BANK]
                self._check_amount(command.amount_micros, MAX_MICROS - 1 - paid_in)
                return [self._booked(Deposited(account.account, command.amount_micros))]
            case Withdraw():
                account = self._account(command.account)
                self._check_amount(command.amount_micros, MAX_MICROS - 1)
                self._check_cash(account, command.amount_micros)
                return [self._booked(Withdrawn(account.account, command.amount_micros))]
            case CertifySite():
                return self._certify(command)
            case ReceiveReadings():
                if command.batch <= self.last_batch:
                    _refuse(RejectReason.DUPLICATE_RUN, "batch", f"above {self.last_batch}")
                self.last_batch = command.batch
                return [ReadingsReceived(command.batch)]
            case StartSettlementRun():
                if command.run in self.runs or command.run <= 0:
                    _refuse(
                        RejectReason.DUPLICATE_RUN, "run", f"a new number above 0; {command.run} is taken"
                    )
                self.runs[command.run] = Run(max(0, command.postings))
                return [SettlementRunStarted(command.run)]
            case _:
                raise AssertionError(command)

    # -- era, accounts, sites ------------------------------------------------------------------------

    def _open_era(self, command: OpenEra) -> list[AnyEvent]:
        venue = command.venue
        self.venue = venue
        self.operator_keys = command.operator_keys
        self.classes: dict[str, AcceleratorClass] = {c.code: c for c in venue.classes}
        self.eligibility = Eligibility(venue)
        self.terms = Terms(venue)
        self.tick_lot_micros = {
            c.code: venue.currency.tick_micros * c.lot_eighths // 8 for c in venue.classes
        }
        for code in self.classes:
            self.books.setdefault(code, {})
            self.class_sites.setdefault(code, [])
        return [EraOpened()]

    def _checked_act(self, command: OperatorCommand) -> bytes:
        """Return the digest of an act that an operator signed and that was not done before."""
        # The signature itself is checked where keys are: at the door and by the verifier.
        if command.authority is None or command.authority.key not in self.operator_keys:
            _refuse(RejectReason.UNKNOWN_OPERATOR, "authority", "the key of an operator of this era")
        digest = hashlib.sha256(encode(command)).digest()
        if digest in self.operator_acts:
            _refuse(RejectReason.DUPLICATE_COMMAND, "authority", "a signature that was not used before")
        return digest

    def _register_account(self, command: RegisterAccount) -> list[AnyEvent]:
        if command.account in self.accounts or command.account < 0:
            _refuse(RejectReason.DUPLICATE_ACCOUNT, "account", "a new number above 0")
        self.accounts[command.account] = Account(command.account, command.trade_group)
        return [AccountRegistered(command.account)]

    def _register_key(self, command: RegisterKey) -> list[AnyEvent]:
        self._account(command.account)
        if command.key in self.keys:
            _refuse(RejectReason.DUPLICATE_KEY, "key", "a key that no account has")
        self.keys[command.key] = (command.account, command.scopes)
        return [KeyRegistered(command.account)]

    def _certify(self, command: CertifySite) -> list[AnyEvent]:
        self._account(command.account)
        if command.site in self.sites or command.site <= 0:
            _refuse(RejectReason.DUPLICATE_SITE, "site", "a new number above 0")
        if command.zone not in self.eligibility.zones:
            _refuse(RejectReason.UNKNOWN_ZONE, "zone", "a zone of the venue")
        if command.class_code not in self.classes:
            _refuse(RejectReason.UNKNOWN_CLASS, "class_code", "a class of the venue")
        if command.carbon not in self.eligibility.carbon:
            _refuse(RejectReason.UNKNOWN_GRADE, "carbon", ", ".join(self.eligibility.carbon))
        if command.security not in self.eligibility.security:
            _refuse(RejectReason.UNKNOWN_GRADE, "security", ", ".join(self.eligibility.security))
        if not 0 < command.capacity_lots <= MAX_LOTS:
            _refuse(RejectReason.QUANTITY_OUT_OF_RANGE, "capacity_lots", f"1 to {MAX_LOTS}")
        if command.until_hour <= command.from_hour:
            _refuse(RejectReason.HOURS_OUT_OF_RANGE, "until_hour", f"above from_hour, {command.from_hour}")
        self.sites[command.site] = Site(command)
        self.class_sites[command.class_code].append(command.site)
        return [SiteCertified(command.site)]

    # -- orders --------------------------------------------------------------------------------------

    def _enter(self, command: EnterOrder) -> list[AnyEvent]:
        account = self._account(command.account)
        known = account.client_orders.get(command.client_order_id)
        if known is not None:
            if known.command != command:
                _refuse(
                    RejectReason.DUPLICATE_ORDER_ID,
                    "client_order_id",
                    "an id not in use, or the very same order again",
                )
            return [
                OrderRepeated(known.order_id, known.reserved_micros, known.filled_lots, known.leaves_lots),
            ]
        order = self._checked(account, command)
        if order.is_block:
            return self._enter_block(account, order)
        return self._enter_hourly(account, order)

    def _checked(self, account: Account, command: EnterOrder) -> Order:
        """Return the order if its terms are allowed here and now; funds and room are checked later."""
        assert self.venue is not None
        limits = self.venue.limits
        self._check_validity(command)
        if not 0 < command.price_ticks <= limits.price_max_ticks:
            _refuse(RejectReason.PRICE_OUT_OF_RANGE, "price_ticks", f"1 to {limits.price_max_ticks}")
        if not 0 < command.lots <= limits.order_max_lots:
            _refuse(RejectReason.QUANTITY_OUT_OF_RANGE, "lots", f"1 to {limits.order_max_lots}")
        hours_max = limits.block_max_hours if command.side is Side.BUY else 1
        if not 0 < command.hours <= hours_max:
            _refuse(RejectReason.HOURS_OUT_OF_RANGE, "hours", f"1 to {hours_max}")
        if command.class_code not in self.classes:
            _refuse(RejectReason.UNKNOWN_CLASS, "class_code", "a class of the venue")
        tick_lot_micros = self.tick_lot_micros[command.class_code]
        if 2 * command.price_ticks * command.lots * command.hours * tick_lot_micros >= MAX_MICROS:
            _refuse(RejectReason.NOTIONAL_OUT_OF_RANGE, "price_ticks", f"a notional below {MAX_MICROS // 2}")
        expires, dated = command.expire_ns, command.time_in_force is TimeInForce.GTD
        if expires <= self.time_ns if dated else expires != 0:
            _refuse(RejectReason.TIME_IN_FORCE_MISMATCH, "expire_ns", "a time ahead with gtd, none otherwise")
        cell = self._demand_cell(command) if command.side is Side.BUY else self._supply_cell(account, command)
        self._check_hours(command)
        if account.purses[Purse.CASH] < 0:
            _refuse(RejectReason.ACCOUNT_SUSPENDED, "account", "an account that is not overdrawn")
        if len(account.open_orders) >= limits.open_orders_max:
            _refuse(RejectReason.TOO_MANY_OPEN_ORDERS, "account", f"{limits.open_orders_max} open orders")
        return Order(self.last_order_id + 1, command, account.group, cell, tick_lot_micros)

    def _check_validity(self, command: EnterOrder) -> None:
        assert self.venue is not None
        longest = self.venue.limits.valid_until_max_seconds
        if command.valid_until_ns < self.time_ns:
            _refuse(RejectReason.COMMAND_EXPIRED, "valid_until_ns", f"not before {self.time_ns}")
        if command.valid_until_ns > self.time_ns + longest * 1_000_000_000:
            _refuse(RejectReason.VALIDITY_TOO_LONG, "valid_until_ns", f"at most {longest} s ahead")

    def _check_hours(self, command: EnterOrder) -> None:
        assert self.venue is not None
        first, last = command.delivery_hour, command.delivery_hour + command.hours - 1
        if not 0 <= last <= self.time_ns // HOUR_NS + self.venue.horizon_hours:
            _refuse(RejectReason.BEYOND_HORIZON, "delivery_hour", f"within {self.venue.horizon_hours} hours")
        if gate_ns(first, self.venue.gate_seconds) <= self.time_ns:
            _refuse(RejectReason.GATE_CLOSED, "delivery_hour", f"{self.venue.gate_seconds} s before delivery")

    def _demand_cell(self, command: EnterOrder) -> int:
        need = command.requirement
        if need is None or command.site or command.carbon is not None:
            _refuse(RejectReason.SIDE_FIELDS_MISMATCH, "requirement", "a bid names a requirement and no site")
        if need.zone not in self.eligibility.zones:
            _refuse(RejectReason.UNKNOWN_ZONE, "requirement.zone", "a zone of the venue")
        grades = (
            ("latency", need.latency, self.eligibility.latency),
            ("carbon", need.carbon, self.eligibility.carbon),
            ("security", need.security, self.eligibility.security),
        )
        for name, code, known in grades:
            if code not in known:
                _refuse(RejectReason.UNKNOWN_GRADE, f"requirement.{name}", ", ".join(known))
        return self.eligibility.demand_cell(need)

    def _supply_cell(self, account: Account, command: EnterOrder) -> int:
        if command.requirement is not None or not command.site or command.carbon is None:
            _refuse(RejectReason.SIDE_FIELDS_MISMATCH, "site", "an ask names a site and its carbon grade")
        site = self.sites.get(command.site)
        if site is None:
            _refuse(RejectReason.UNKNOWN_SITE, "site", "a certified site")
        certificate = site.certificate
        if certificate.account != account.account:
            _refuse(RejectReason.NOT_SITE_OWNER, "site", "a site of the account's own")
        if certificate.class_code != command.class_code:
            _refuse(RejectReason.CLASS_NOT_CERTIFIED, "class_code", certificate.class_code)
        ranks = self.eligibility.carbon
        if command.carbon not in ranks:
            _refuse(RejectReason.UNKNOWN_GRADE, "carbon", ", ".join(ranks))
        if ranks[command.carbon] < ranks[certificate.carbon]:
            _refuse(RejectReason.GRADE_NOT_CERTIFIED, "carbon", f"{certificate.carbon} or worse")
        if not certificate.from_hour <= command.delivery_hour < certificate.until_hour:
            _refuse(RejectReason.SITE_NOT_CERTIFIED, "delivery_hour", "an hour that the certificate covers")
        free = certificate.capacity_lots - site.load.get(command.delivery_hour, 0)
        if command.lots > free:
            _refuse(RejectReason.CAPACITY_EXCEEDED, "lots", f"{free} lots are free at the site in that hour")
        return self.eligibility.supply_cell(certificate.zone, command.carbon, certificate.security)

    def _enter_hourly(self, account: Account, order: Order) -> list[AnyEvent]:
        command = order.command
        book = self.books[command.class_code].get(command.delivery_hour) or Book()
        plan = plan_hourly(book.makers(order, self.eligibility), order)
        if command.side is Side.SELL:
            # An ask that takes sells above its limit: its bond and fee are those of the better prices.
            for maker, lots in plan.matches:
                order.worth_left_micros += order.notional(
                    maker.command.price_ticks - command.price_ticks, lots
                )
        events: list[AnyEvent] = [self._accept(account, order)]
        book = self._book(command.class_code, command.delivery_hour)
        if command.side is Side.SELL:
            load = self.sites[command.site].load
            load[command.delivery_hour] = load.get(command.delivery_hour, 0) + command.lots
        for maker, lots in plan.matches:
            book.take(maker, lots)
            order.take(lots)
            bid, ask = (order, maker) if command.side is Side.BUY else (maker, order)
            bid.worth_left_micros -= bid.notional(bid.command.price_ticks, lots)
            events.append(self._booked(self._trade(bid, ask, maker.command.price_ticks, lots)))
            self._close_if_filled(maker)
        if plan.self_trade:
            events.append(self._end(order, EndReason.SELF_TRADE))
        elif order.leaves_lots:
            book.add(order)
            if command.side is Side.SELL:
                events += self._serve_blocks(book, order)
            if order.leaves_lots and command.time_in_force is TimeInForce.IOC:
                events.append(self._end_resting(order, EndReason.IMMEDIATE))
        self._close_if_filled(order)
        return events

    def _enter_block(self, account: Account, order: Order) -> list[AnyEvent]:
        assert self.venue is not None
        command, limits = order.command, self.venue.limits
        table = self.eligibility.served_by(order.cell)
        sites = [s for s in self.class_sites[command.class_code] if self._may_serve(s, table)]
        if len(sites) * command.hours > limits.block_max_site_hours:
            _refuse(
                RejectReason.BLOCK_TOO_WIDE,
                "hours",
                f"hours x eligible sites to {limits.block_max_site_hours}",
            )
        plan = plan_block(sites, self._books_of(order), order, table)
        rests = plan is None and command.time_in_force is not TimeInForce.IOC
        evicted = self._to_evict(order) if rests else []
        events: list[AnyEvent] = [self._accept(account, order)]
        if plan is not None:
            events.append(self._trade_block(order, plan))
        elif rests:
            events += [self._end_resting(worse, EndReason.EVICTED) for worse in evicted]
            for hour in order.hours:
                self._book(command.class_code, hour).add(order)
        else:
            events.append(self._end(order, EndReason.IMMEDIATE))
        return events

    def _may_serve(self, site: int, table: bytes) -> bool:
        certificate = self.sites[site].certificate
        return bool(
            table[self.eligibility.supply_cell(certificate.zone, certificate.carbon, certificate.security)]
        )

    def _to_evict(self, block: Order) -> list[Order]:
        """Return the resting blocks that must go to make room for this one, oldest first."""
        assert self.venue is not None
        most = self.venue.limits.resting_blocks_max
        evicted: dict[int, Order] = {}
        for hour in block.hours:
            book = self.books[block.command.class_code].get(hour)
            if book is None or len(book.blocks) < most:
                continue
            worst = min(book.blocks.values(), key=lambda b: (b.command.price_ticks, -b.order_id))
            if worst.command.price_ticks >= block.command.price_ticks:
                _refuse(
                    RejectReason.TOO_MANY_RESTING_BLOCKS,
                    "price_ticks",
                    f"above {worst.command.price_ticks}, or another hour: {most} blocks rest in one",
                )
            evicted[worst.order_id] = worst
        return [evicted[order_id] for order_id in sorted(evicted)]

    def _serve_blocks(self, book: Book, ask: Order) -> list[AnyEvent]:
        """Try the resting blocks of the ask's hour, best price first, at the ask's site."""
        events: list[AnyEvent] = []
        blocks = sorted(book.blocks.values(), key=lambda b: (-b.command.price_ticks, b.order_id))
        for block in blocks:
            if ask.leaves_lots == 0:
                break
            table = self.eligibility.served_by(block.cell)
            if not table[ask.cell]:
                continue
            plan = plan_block([ask.command.site], self._books_of(block), block, table)
            if plan is not None:
                for hour in block.hours:
                    self.books[block.command.class_code][hour].remove(block)
                events.append(self._trade_block(block, plan))
        return events

    def _cancel(self, command: CancelOrder) -> list[AnyEvent]:
        account = self._account(command.account)
        if command.order_id:
            order = account.open_orders.get(command.order_id)
        else:
            order = account.client_orders.get(command.client_order_id or "")
        if order is None or order.order_id not in account.open_orders:
            _refuse(RejectReason.UNKNOWN_ORDER, "order_id", "an open order of the account")
        return [self._end_resting(order, EndReason.REQUESTED)]

    # -- what happens to an order ----------------------------------------------------------------------

    def _accept(self, account: Account, order: Order) -> AnyEvent:
        reserve = order.required_micros(self.terms)
        self._check_cash(account, reserve)
        # After this point the order must succeed.
        command = order.command
        self.last_order_id = order.order_id
        order.reserved_micros = reserve
        self.orders[order.order_id] = order
        account.open_orders[order.order_id] = order
        account.client_orders[command.client_order_id] = order
        heappush(self._due, (command.valid_until_ns + 1, _FORGET, order.order_id))
        assert self.venue is not None
        gate = gate_ns(command.delivery_hour, self.venue.gate_seconds)
        # At the gate the order ends anyway; a later expiry would only lie in the queue.
        if command.time_in_force is TimeInForce.GTD and command.expire_ns < gate:
            heappush(self._due, (command.expire_ns, _EXPIRY, order.order_id))
        return self._booked(OrderAccepted(order.order_id, reserve), account.account)

    def _trade(self, bid: Order, ask: Order, price_ticks: int, lots: int) -> Traded:
        """Return the trade of `lots`, which the quantities already show; its money is not booked yet."""
        self.last_trade_id += 1
        taker = Side.BUY if bid.order_id > ask.order_id else Side.SELL
        notional = bid.notional(price_ticks, lots)
        ask.worth_left_micros -= notional
        buyer_fee = bid.charge_fee(self.terms, notional, taker is Side.BUY)
        seller_fee = ask.charge_fee(self.terms, notional, taker is Side.SELL)
        bond = ask.charge_bond(self.terms, notional)
        bid_keeps, ask_keeps = bid.required_micros(self.terms), ask.required_micros(self.terms)
        trade = Traded(
            trade_id=self.last_trade_id,
            class_code=ask.command.class_code,
            delivery_hour=ask.command.delivery_hour,
            price_ticks=price_ticks,
            lots=lots,
            taker=taker,
            bid_order_id=bid.order_id,
            ask_order_id=ask.order_id,
            buyer=bid.command.account,
            seller=ask.command.account,
            site=ask.command.site,
            block=bid.order_id if bid.is_block else 0,
            notional_micros=notional,
            buyer_fee_micros=buyer_fee,
            buyer_released_micros=bid.reserved_micros - notional - buyer_fee - bid_keeps,
            bond_micros=bond,
            seller_fee_micros=seller_fee,
            seller_released_micros=ask.reserved_micros - bond - seller_fee - ask_keeps,
        )
        bid.reserved_micros, ask.reserved_micros = bid_keeps, ask_keeps
        self.fills[trade.trade_id] = Fill(trade)
        return trade

    def _trade_block(self, block: Order, plan: BlockPlan) -> AnyEvent:
        legs: list[Traded] = []
        for index, (ask, lots) in enumerate(plan.legs):
            price = ask.command.price_ticks
            self.books[ask.command.class_code][ask.command.delivery_hour].take(ask, lots)
            # One hour may cost more than the limit where another costs less: the last leg releases the rest.
            last = index == len(plan.legs) - 1
            block.worth_left_micros = 0 if last else block.worth_left_micros - block.notional(price, lots)
            legs.append(self._trade(block, ask, price, lots))
            self._close_if_filled(ask)
        block.take(block.leaves_lots)
        self._close_if_filled(block)
        return self._booked(BlockTraded(block.order_id, plan.site, tuple(legs)))

    def _end_resting(self, order: Order, reason: EndReason) -> AnyEvent:
        """Take the order out of its books and end it."""
        for book in self._books_of(order).values():
            if book is not None:
                book.remove(order)
        return self._end(order, reason)

    def _end(self, order: Order, reason: EndReason) -> AnyEvent:
        """End what is open of an order that stands in no book."""
        command = order.command
        leaves_lots, released = order.leaves_lots, order.reserved_micros
        if command.side is Side.SELL:
            load = self.sites[command.site].load
            load[command.delivery_hour] -= leaves_lots
        order.leaves_lots = order.reserved_micros = 0
        self._close(order)
        return self._booked(OrderEnded(order.order_id, command.account, leaves_lots, released, reason))

    def _close_if_filled(self, order: Order) -> None:
        if order.leaves_lots == 0 and order.order_id in self.accounts[order.command.account].open_orders:
            self._close(order)

    def _close(self, order: Order) -> None:
        del self.accounts[order.command.account].open_orders[order.order_id]
        if order.command.valid_until_ns < self.time_ns:
            self._forget(order)

    def _forget(self, order: Order) -> None:
        del self.accounts[order.command.account].client_orders[order.command.client_order_id]
        del self.orders[order.order_id]

    # -- due work --------------------------------------------------------------------------------------

    def _do_due(self) -> list[AnyEvent]:
        events: list[AnyEvent] = []
        while self._due and self._due[0][0] <= self.time_ns:
            _, kind, number = heappop(self._due)
            if kind == _GATE:
                events += self._close_gate(number)
                continue
            order = self.orders.get(number)
            if order is None:
                continue
            is_open = number in self.accounts[order.command.account].open_orders
            if kind == _EXPIRY and is_open:
                events.append(self._end_resting(order, EndReason.EXPIRED))
            elif kind == _FORGET and not is_open:
                self._forget(order)
        return events

    def _close_gate(self, hour: int) -> list[AnyEvent]:
        events: list[AnyEvent] = []
        del self._gates[hour]
        for code, books in self.books.items():
            book = books.get(hour)
            if book is None:
                continue
            events.append(ContractClosed(code, hour))
            open_orders = {order.order_id: order for side in book.sides.values() for order in _resting(side)}
            for order_id, order in sorted({**open_orders, **book.blocks}.items()):
                assert order.order_id == order_id
                events.append(self._end_resting(order, EndReason.GATE))
            del books[hour]
            for site in self.class_sites[code]:
                self.sites[site].load.pop(hour, None)
        return events

    # -- settlement ------------------------------------------------------------------------------------

    def _post(self, command: PostSettlement) -> list[AnyEvent]:
        run, fill = self.runs.get(command.run), self.fills.get(command.trade_id)
        if run is None:
            _refuse(RejectReason.UNKNOWN_RUN, "run", "a run that was started")
        if fill is None:
            _refuse(RejectReason.UNKNOWN_FILL, "trade_id", "a trade of this log")
        if fill.last_run >= command.run:
            _refuse(RejectReason.DUPLICATE_POSTING, "run", f"above {fill.last_run}, which posted this fill")
        if run.left == 0:
            _refuse(RejectReason.POSTINGS_EXCEED_RUN, "run", "as many postings as the run announced")
        if (fill.hour + 1) * HOUR_NS > self.time_ns:
            _refuse(RejectReason.NOT_YET_DELIVERED, "trade_id", "a fill whose delivery hour has ended")
        paid, refunded, penalty, released = fill.posted
        posted = (
            paid + command.payment_micros,
            refunded + command.refund_micros,
            penalty + command.penalty_micros,
            released + command.bond_release_micros,
        )
        # A correction may take back what earlier runs posted, and no more than that.
        if min(posted[:2]) < 0 or sum(posted[:2]) > fill.notional:
            left = fill.notional - paid - refunded
            _refuse(RejectReason.POSTING_EXCEEDS_FILL, "payment_micros", f"with the refund {left}")
        if min(posted[2:]) < 0 or sum(posted[2:]) > fill.bond:
            left = fill.bond - penalty - released
            _refuse(RejectReason.POSTING_EXCEEDS_FILL, "penalty_micros", f"with the release {left}")
        run.left -= 1
        fill.last_run = command.run
        fill.posted = posted
        return [
            self._booked(
                SettlementPosted(
                    run=command.run,
                    trade_id=command.trade_id,
                    buyer=fill.buyer,
                    seller=fill.seller,
                    payment_micros=command.payment_micros,
                    refund_micros=command.refund_micros,
                    penalty_micros=command.penalty_micros,
                    bond_release_micros=command.bond_release_micros,
                )
            )
        ]

    # -- small things ----------------------------------------------------------------------------------

    def _account(self, number: int) -> Account:
        account = self.accounts.get(number)
        if account is None or number == VENUE:
            _refuse(RejectReason.UNKNOWN_ACCOUNT, "account", "a registered account")
        return account

    def _check_amount(self, amount_micros: int, most: int) -> None:
        if not 0 < amount_micros <= most:
            _refuse(RejectReason.AMOUNT_OUT_OF_RANGE, "amount_micros", f"1 to {most}")

    def _check_cash(self, account: Account, amount_micros: int) -> None:
        cash = account.purses[Purse.CASH]
        if cash < amount_micros:
            _refuse(
                RejectReason.INSUFFICIENT_FUNDS,
                "account",
                f"{amount_micros} micros are needed, {cash} are free",
            )

    def _booked(self, event: E, account: int = VENUE) -> E:
        """Move the event's money and return the event."""
        for debit, debit_purse, credit, credit_purse, amount in transfers(account, event):
            self.accounts[debit].purses[debit_purse] -= amount
            self.accounts[credit].purses[credit_purse] += amount
        return event

    def _book(self, class_code: str, hour: int) -> Book:
        assert self.venue is not None
        books = self.books[class_code]
        book = books.get(hour)
        if book is None:
            books[hour] = book = Book()
            if hour not in self._gates:
                self._gates[hour] = True
                heappush(self._due, (gate_ns(hour, self.venue.gate_seconds), _GATE, hour))
        return book

    def _books_of(self, order: Order) -> dict[int, Book | None]:
        books = self.books[order.command.class_code]
        return {hour: books.get(hour) for hour in order.hours}

    # -- state -----------------------------------------------------------------------------------------

    def state_hash(self) -> bytes:
        """Return the SHA-256 of the whole state, the same in every process that applied the same log."""
        if self.venue is None:
            return EMPTY_STATE
        state = (
            self.time_ns,
            (self.last_order_id, self.last_trade_id, self.last_batch),
            self.venue,
            self.operator_keys,
            sorted(self.operator_acts),
            [(a.account, a.group, a.purses) for _, a in sorted(self.accounts.items())],
            sorted(self.keys.items()),
            [(s.certificate, sorted(s.load.items())) for _, s in sorted(self.sites.items())],
            [_order_state(order, self._is_open(order)) for _, order in sorted(self.orders.items())],
            [
                (n, f.buyer, f.seller, f.hour, f.notional, f.bond, f.posted, f.last_run)
                for n, f in sorted(self.fills.items())
            ],
            [(n, run.left) for n, run in sorted(self.runs.items())],
            [(code, sorted(books)) for code, books in self.books.items()],
            sorted(self._due),
        )
        return hashlib.sha256(msgspec.msgpack.encode(state, order="deterministic")).digest()

    def _is_open(self, order: Order) -> bool:
        return order.order_id in self.accounts[order.command.account].open_orders

    def balances(self) -> dict[tuple[int, int], int]:
        """Return every purse that is not empty, by account and purse, in millionths."""
        return {
            (number, purse): account.purses[purse]
            for number, account in sorted(self.accounts.items())
            for purse in Purse
            if account.purses[purse]
        }

    def check(self) -> None:
        """Assert the invariants of the whole state; slow.

        No eligible cross of two trade groups; no resting block that could trade; open orders stand in
        their books and nowhere else; reserves and purses as the orders say; no site-hour above its
        capacity; money sums to zero.
        """
        assert sum(self.balances().values()) == 0
        reserved: dict[int, int] = {}
        load: dict[tuple[int, int], int] = {}
        open_in: dict[tuple[str, int], list[int]] = {}
        for order_id, order in sorted(self.orders.items()):
            if not self._is_open(order):
                continue
            for hour in order.hours:
                open_in.setdefault((order.command.class_code, hour), []).append(order_id)
            assert order.leaves_lots > 0
            assert order.reserved_micros == order.required_micros(self.terms)
            number = order.command.account
            reserved[number] = reserved.get(number, 0) + order.reserved_micros
            if order.command.side is Side.SELL:
                key = (order.command.site, order.command.delivery_hour)
                load[key] = load.get(key, 0) + order.leaves_lots
        for number, account in self.accounts.items():
            assert account.purses[Purse.RESERVED] == reserved.get(number, 0), number
            assert min(account.purses[Purse.COMMITTED], account.purses[Purse.BOND]) >= 0
        for number, site in self.sites.items():
            for hour, lots in site.load.items():
                assert load.get((number, hour), 0) <= lots <= site.certificate.capacity_lots
        for code, books in self.books.items():
            for hour, book in books.items():
                standing = [order.order_id for side in book.sides.values() for order in _resting(side)]
                assert sorted([*standing, *book.blocks]) == open_in.pop((code, hour), [])
                self._check_book(book)
        assert not open_in, f"open orders that stand in no book: {open_in}"

    def _check_book(self, book: Book) -> None:
        at_sites = [ask.order_id for site in book.site_asks.values() for _, _, ask in site]
        assert sorted(ask.order_id for ask in _resting(book.sides[Side.SELL])) == sorted(at_sites)
        for site, lots in book.site_lots.items():
            assert lots == sum(ask.leaves_lots for _, _, ask in book.site_asks[site]), site
        for bid in _resting(book.sides[Side.BUY]):
            plan = plan_hourly(book.makers(bid, self.eligibility), bid)
            assert not plan.matches, f"bid {bid.order_id} crosses {plan.matches[0].maker.order_id}"
        for block in book.blocks.values():
            table = self.eligibility.served_by(block.cell)
            sites = self.class_sites[block.command.class_code]
            plan_of_block = plan_block(sites, self._books_of(block), block, table)
            assert plan_of_block is None, f"block {block.order_id} could trade at {plan_of_block}"


def _resting(cells: dict[int, CellSide]) -> list[Order]:
    return [order for cell in cells.values() for _, _, order in cell.orders()]


def _order_state(order: Order, is_open: bool) -> tuple[object, ...]:
    return (
        order.order_id,
        order.command,
        order.leaves_lots,
        order.filled_lots,
        order.reserved_micros,
        order.worth_left_micros,
        order.fee_accrued,
        order.bond_accrued,
        is_open,
    )
