"""A slow, obvious twin of the engine's market rules: it sorts everything anew at every command.

It knows orders, blocks, cancels, gates, deposits and reserves, not settlement. It keeps every order ever
entered, has no book and no tables, compares requirement and certificate in the venue's own figures, and
counts money in fractions. `apply` gives the engine's own event types; a refusal names its reason only.
"""

from collections.abc import Iterator
from fractions import Fraction
from math import ceil, floor

from schemas.commands import (
    AnyCommand,
    CancelOrder,
    CertifySite,
    Deposit,
    EnterOrder,
    Requirement,
    Side,
    TimeInForce,
)
from schemas.events import (
    AnyEvent,
    BlockTraded,
    ContractClosed,
    Deposited,
    EndReason,
    OrderAccepted,
    OrderEnded,
    OrderRepeated,
    Rejected,
    Traded,
)
from schemas.reasons import RejectReason
from schemas.venue import Venue

HOUR_NS = 3_600_000_000_000
SECOND_NS = 1_000_000_000
Fills = list[tuple["TwinOrder", int]]
"""Resting orders and the lots taken of each."""


class TwinOrder:
    """An order for ever: its terms and what became of it."""

    def __init__(self, number: int, command: EnterOrder) -> None:
        self.number = number
        self.command = command
        self.is_open = True
        self.leaves = command.lots
        self.filled = 0
        self.worth = 0
        self.reserved = 0
        self.fee = Fraction(0)
        self.bond = Fraction(0)

    @property
    def buys(self) -> bool:
        return self.command.side is Side.BUY

    @property
    def is_block(self) -> bool:
        return self.command.hours > 1

    @property
    def price(self) -> int:
        return self.command.price_ticks

    @property
    def hours(self) -> range:
        return range(self.command.delivery_hour, self.command.delivery_hour + self.command.hours)


class ReferenceEngine:
    """The rules, one sentence after another."""

    def __init__(self, venue: Venue, groups: dict[int, int], sites: dict[int, CertifySite]) -> None:
        self.venue = venue
        self.groups = groups
        self.sites = sites
        self.cash = dict.fromkeys(groups, 0)
        self.reserved = dict.fromkeys(groups, 0)
        self.committed = dict.fromkeys(groups, 0)
        self.bonds = dict.fromkeys(groups, 0)
        self.fees = 0
        self.orders: list[TwinOrder] = []
        self.contracts: set[tuple[str, int]] = set()
        self.trades = 0
        self.now = 0
        self.classes = {c.code: c for c in venue.classes}
        self.maker_fee = Fraction(venue.fees.maker_ppm, 1_000_000)
        self.taker_fee = Fraction(venue.fees.taker_ppm, 1_000_000)
        self.bond_rate = Fraction(venue.bond_permille, 1000)

    def apply(self, time_ns: int, command: AnyCommand) -> list[AnyEvent]:
        self.now = time_ns
        events = self.pass_time()
        match command:
            case EnterOrder():
                events += self.enter(command)
            case CancelOrder():
                events += self.cancel(command)
            case Deposit():
                self.cash[command.account] += command.amount_micros
                events.append(Deposited(command.account, command.amount_micros))
        return events

    # -- time ----------------------------------------------------------------------------------------

    def gate(self, hour: int) -> int:
        return hour * HOUR_NS - self.venue.gate_seconds * SECOND_NS

    def pass_time(self) -> list[AnyEvent]:
        gates = [(self.gate(hour), 1, hour) for hour in {hour for _, hour in self.contracts}]
        expiries = [
            (o.command.expire_ns, 2, o.number)
            for o in self.open_orders()
            if o.command.time_in_force is TimeInForce.GTD
        ]
        events: list[AnyEvent] = []
        for due, kind, number in sorted(gates + expiries):
            if due > self.now:
                break
            if kind == 1:
                events += self.close(number)
            elif self.orders[number - 1].is_open:
                events.append(self.end(self.orders[number - 1], EndReason.EXPIRED))
        return events

    def close(self, hour: int) -> list[AnyEvent]:
        events: list[AnyEvent] = []
        for code in self.classes:
            if (code, hour) in self.contracts:
                self.contracts.remove((code, hour))
                events.append(ContractClosed(code, hour))
                there = [o for o in self.open_orders() if o.command.class_code == code and hour in o.hours]
                events += [self.end(order, EndReason.GATE) for order in there]
        return events

    # -- orders --------------------------------------------------------------------------------------

    def open_orders(self) -> list[TwinOrder]:
        return [order for order in self.orders if order.is_open]

    def enter(self, command: EnterOrder) -> list[AnyEvent]:
        known = [
            o
            for o in self.orders
            if (o.command.account, o.command.client_order_id) == (command.account, command.client_order_id)
            and (o.is_open or o.command.valid_until_ns >= self.now)
        ]
        if known:
            order = known[0]
            if order.command != command:
                return [Rejected(RejectReason.DUPLICATE_ORDER_ID)]
            return [OrderRepeated(order.number, order.reserved, order.filled, order.leaves)]
        refusal = next(self.refusals(command), None)
        if refusal is not None:
            return [Rejected(refusal)]
        order = TwinOrder(len(self.orders) + 1, command)
        return self.enter_block(order) if order.is_block else self.enter_hourly(order)

    def refusals(self, command: EnterOrder) -> Iterator[RejectReason]:
        """Why the terms are refused here and now, funds and resting blocks apart."""
        limits, buys = self.venue.limits, command.side is Side.BUY
        if command.valid_until_ns < self.now:
            yield RejectReason.COMMAND_EXPIRED
        if command.valid_until_ns > self.now + limits.valid_until_max_seconds * SECOND_NS:
            yield RejectReason.VALIDITY_TOO_LONG
        if not 1 <= command.price_ticks <= limits.price_max_ticks:
            yield RejectReason.PRICE_OUT_OF_RANGE
        if not 1 <= command.lots <= limits.order_max_lots:
            yield RejectReason.QUANTITY_OUT_OF_RANGE
        if not 1 <= command.hours <= (limits.block_max_hours if buys else 1):
            yield RejectReason.HOURS_OUT_OF_RANGE
        gtd, expires = command.time_in_force is TimeInForce.GTD, command.expire_ns
        if (gtd and expires <= self.now) or (not gtd and expires != 0):
            yield RejectReason.TIME_IN_FORCE_MISMATCH
        if not buys:
            yield from self.ask_refusals(command)
        if command.delivery_hour + command.hours - 1 > self.now // HOUR_NS + self.venue.horizon_hours:
            yield RejectReason.BEYOND_HORIZON
        if self.gate(command.delivery_hour) <= self.now:
            yield RejectReason.GATE_CLOSED
        mine = [o for o in self.open_orders() if o.command.account == command.account]
        if len(mine) >= limits.open_orders_max:
            yield RejectReason.TOO_MANY_OPEN_ORDERS

    def ask_refusals(self, command: EnterOrder) -> Iterator[RejectReason]:
        site = self.sites[command.site]
        assert command.carbon is not None
        if site.account != command.account:
            yield RejectReason.NOT_SITE_OWNER
        if site.class_code != command.class_code:
            yield RejectReason.CLASS_NOT_CERTIFIED
        if self.carbon(command.carbon) < self.carbon(site.carbon):
            yield RejectReason.GRADE_NOT_CERTIFIED
        if command.delivery_hour not in range(site.from_hour, site.until_hour):
            yield RejectReason.SITE_NOT_CERTIFIED
        here = (command.site, command.delivery_hour)
        taken = sum(
            o.filled + o.leaves
            for o in self.orders
            if not o.buys and (o.command.site, o.command.delivery_hour) == here
        )
        if command.lots > site.capacity_lots - taken:
            yield RejectReason.CAPACITY_EXCEEDED

    def enter_hourly(self, order: TwinOrder) -> list[AnyEvent]:
        fills, self_trade = self.hourly_fills(order)
        rest = order.leaves - sum(lots for _, lots in fills)
        # A bid reserves at its limit; an ask the worth of what it sells at once, and the rest at its limit.
        order.worth = self.worth_of(order, order.price, order.leaves)
        if not order.buys:
            order.worth = self.worth_of(order, order.price, rest) + sum(
                self.worth_of(order, maker.price, lots) for maker, lots in fills
            )
        events = self.accept(order)
        if not order.is_open:
            return events
        self.contracts.add((order.command.class_code, order.command.delivery_hour))
        for maker, lots in fills:
            bid, ask = (order, maker) if order.buys else (maker, order)
            bid.worth -= self.worth_of(bid, bid.price, lots)
            ask.worth -= self.worth_of(ask, maker.price, lots)
            self.fill(bid, lots)
            self.fill(ask, lots)
            events.append(self.trade(bid, ask, maker.price, lots))
        if self_trade:
            return [*events, self.end(order, EndReason.SELF_TRADE)]
        if not order.buys:
            events += self.serve_blocks(order)
        if order.is_open and order.command.time_in_force is TimeInForce.IOC:
            events.append(self.end(order, EndReason.IMMEDIATE))
        return events

    def hourly_fills(self, taker: TwinOrder) -> tuple[Fills, bool]:
        """The fills by price, then time, and whether the taker meets its own group's order."""
        makers = [
            o
            for o in self.open_orders()
            if o.buys != taker.buys
            and not o.is_block
            and o.command.class_code == taker.command.class_code
            and o.command.delivery_hour == taker.command.delivery_hour
            and (self.serves(o, taker) if taker.buys else self.serves(taker, o))
            and (o.price <= taker.price if taker.buys else o.price >= taker.price)
        ]
        fills: Fills = []
        wanted = taker.leaves
        for maker in sorted(makers, key=lambda o: (o.price if taker.buys else -o.price, o.number)):
            if wanted == 0:
                break
            if self.same_owner(maker, taker):
                return fills, True
            fills.append((maker, min(wanted, maker.leaves)))
            wanted -= fills[-1][1]
        return fills, False

    def enter_block(self, order: TwinOrder) -> list[AnyEvent]:
        plan = self.block_fills(order, sorted(self.sites))
        order.worth = self.worth_of(order, order.price, order.command.lots * order.command.hours)
        rests = plan is None and order.command.time_in_force is not TimeInForce.IOC
        evicted: dict[int, TwinOrder] = {}
        if rests:
            for hour in order.hours:
                there = [
                    o
                    for o in self.open_orders()
                    if o.is_block and o.command.class_code == order.command.class_code and hour in o.hours
                ]
                if len(there) >= self.venue.limits.resting_blocks_max:
                    worst = min(there, key=lambda o: (o.price, -o.number))
                    if worst.price >= order.price:
                        return [Rejected(RejectReason.TOO_MANY_RESTING_BLOCKS)]
                    evicted[worst.number] = worst
        events = self.accept(order)
        if not order.is_open:
            return events
        if plan is not None:
            return [*events, self.trade_block(order, plan)]
        if not rests:
            return [*events, self.end(order, EndReason.IMMEDIATE)]
        self.contracts |= {(order.command.class_code, hour) for hour in order.hours}
        return events + [self.end(evicted[number], EndReason.EVICTED) for number in sorted(evicted)]

    def block_fills(self, block: TwinOrder, sites: list[int]) -> Fills | None:
        """The cheapest way to fill the block whole from one site, hour by hour, within its limit."""
        best: tuple[int, Fills] | None = None
        for site in sites:
            fills: Fills = []
            for hour in block.hours:
                wanted = block.command.lots
                asks = [
                    o
                    for o in self.open_orders()
                    if not o.buys
                    and (o.command.site, o.command.delivery_hour) == (site, hour)
                    and o.command.class_code == block.command.class_code
                    and self.serves(o, block)
                    and not self.same_owner(o, block)
                ]
                for ask in sorted(asks, key=lambda o: (o.price, o.number)):
                    if wanted:
                        fills.append((ask, min(wanted, ask.leaves)))
                        wanted -= fills[-1][1]
            whole = sum(lots for _, lots in fills) == block.command.lots * block.command.hours
            cost = sum(ask.price * lots for ask, lots in fills)
            within = cost <= block.price * block.command.lots * block.command.hours
            if whole and within and (best is None or cost < best[0]):
                best = cost, fills
        return None if best is None else best[1]

    def serve_blocks(self, ask: TwinOrder) -> list[AnyEvent]:
        events: list[AnyEvent] = []
        here = ask.command.delivery_hour
        blocks = [
            o
            for o in self.open_orders()
            if o.is_block
            and o.command.class_code == ask.command.class_code
            and here in o.hours
            and self.serves(ask, o)
        ]
        for block in sorted(blocks, key=lambda o: (-o.price, o.number)):
            if ask.is_open:
                fills = self.block_fills(block, [ask.command.site])
                if fills is not None:
                    events.append(self.trade_block(block, fills))
        return events

    def trade_block(self, block: TwinOrder, fills: Fills) -> AnyEvent:
        legs = []
        for index, (ask, lots) in enumerate(fills):
            ask.worth -= self.worth_of(ask, ask.price, lots)
            block.worth -= self.worth_of(block, ask.price, lots)
            if index == len(fills) - 1:
                block.worth = 0
            self.fill(ask, lots)
            legs.append(self.trade(block, ask, ask.price, lots))
        self.fill(block, block.leaves)
        return BlockTraded(block.number, fills[0][0].command.site, tuple(legs))

    def cancel(self, command: CancelOrder) -> list[AnyEvent]:
        for order in self.open_orders():
            named = command.order_id or command.client_order_id
            if order.command.account == command.account and named in (
                order.number,
                order.command.client_order_id,
            ):
                return [self.end(order, EndReason.REQUESTED)]
        return [Rejected(RejectReason.UNKNOWN_ORDER)]

    # -- who may meet --------------------------------------------------------------------------------

    def serves(self, ask: TwinOrder, bid: TwinOrder) -> bool:
        assert bid.command.requirement is not None
        assert ask.command.carbon is not None
        site = self.sites[ask.command.site]
        return serves(self.venue, bid.command.requirement, site.zone, ask.command.carbon, site.security)

    def carbon(self, code: str) -> int:
        return [grade.code for grade in self.venue.carbon_grades].index(code)

    def same_owner(self, one: TwinOrder, other: TwinOrder) -> bool:
        return self.groups[one.command.account] == self.groups[other.command.account]

    # -- money ---------------------------------------------------------------------------------------

    def worth_of(self, order: TwinOrder, price: int, lot_hours: int) -> int:
        worth = Fraction(
            price
            * lot_hours
            * self.venue.currency.tick_micros
            * self.classes[order.command.class_code].lot_eighths,
            8,
        )
        assert worth.denominator == 1
        return int(worth)

    def needed(self, order: TwinOrder) -> int:
        """What the trades still to come may take: the higher fee, and the money itself or the bond."""
        if order.worth == 0:
            return 0
        fee = order.fee + max(self.maker_fee, self.taker_fee) * order.worth
        bond = order.bond + self.bond_rate * order.worth
        pledge = order.worth if order.buys else ceil(bond) - floor(order.bond)
        return pledge + ceil(fee) - floor(order.fee)

    def accept(self, order: TwinOrder) -> list[AnyEvent]:
        account, order.reserved = order.command.account, self.needed(order)
        if self.cash[account] < order.reserved:
            order.is_open = False
            return [Rejected(RejectReason.INSUFFICIENT_FUNDS)]
        self.orders.append(order)
        self.cash[account] -= order.reserved
        self.reserved[account] += order.reserved
        return [OrderAccepted(order.number, order.reserved)]

    def fill(self, order: TwinOrder, lots: int) -> None:
        order.leaves -= lots
        order.filled += lots
        order.is_open = order.leaves > 0

    def end(self, order: TwinOrder, reason: EndReason) -> AnyEvent:
        account = order.command.account
        event = OrderEnded(order.number, account, order.leaves, order.reserved, reason)
        self.reserved[account] -= order.reserved
        self.cash[account] += order.reserved
        order.is_open, order.leaves, order.reserved = False, 0, 0
        return event

    def trade(self, bid: TwinOrder, ask: TwinOrder, price: int, lots: int) -> Traded:
        """Book the money; quantities and what the orders are still worth show the trade already."""
        self.trades += 1
        taker = Side.BUY if bid.number > ask.number else Side.SELL
        notional = self.worth_of(ask, price, lots)
        paid: dict[Side, tuple[int, int, int]] = {}
        for order in (bid, ask):
            fee, bond, account = floor(order.fee), floor(order.bond), order.command.account
            order.fee += notional * (self.taker_fee if taker is order.command.side else self.maker_fee)
            order.bond += 0 if order.buys else notional * self.bond_rate
            fee, bond = floor(order.fee) - fee, floor(order.bond) - bond
            keeps = self.needed(order)
            released = order.reserved - keeps - fee - (notional if order.buys else bond)
            paid[order.command.side] = fee, bond, released
            self.reserved[account] += keeps - order.reserved
            self.cash[account] += released
            self.committed[account] += notional if order.buys else 0
            self.bonds[account] += bond
            self.fees += fee
            order.reserved = keeps
        return Traded(
            trade_id=self.trades,
            class_code=ask.command.class_code,
            delivery_hour=ask.command.delivery_hour,
            price_ticks=price,
            lots=lots,
            taker=taker,
            bid_order_id=bid.number,
            ask_order_id=ask.number,
            buyer=bid.command.account,
            seller=ask.command.account,
            site=ask.command.site,
            block=bid.number if bid.is_block else 0,
            notional_micros=notional,
            buyer_fee_micros=paid[Side.BUY][0],
            buyer_released_micros=paid[Side.BUY][2],
            bond_micros=paid[Side.SELL][1],
            seller_fee_micros=paid[Side.SELL][0],
            seller_released_micros=paid[Side.SELL][2],
        )


def serves(venue: Venue, need: Requirement, zone: str, carbon: str, security: str) -> bool:
    """Say whether supply of these terms is good enough, straight from the venue's figures."""
    rtt = 0
    if need.zone != zone:
        [rtt] = [t.rtt_us for t in venue.round_trips if {t.a, t.b} == {need.zone, zone}]
    [bound] = [t.max_rtt_us for t in venue.latency_tiers if t.code == need.latency]
    grades = [g.code for g in venue.carbon_grades]
    tiers = [t.code for t in venue.security_tiers]
    return (
        (bound is None or rtt <= bound)
        and grades.index(carbon) <= grades.index(need.carbon)
        and tiers.index(security) <= tiers.index(need.security)
    )
