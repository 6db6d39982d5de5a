"""A slow, obvious twin of the engine's market: it sorts everything anew at every command.

It knows the rulebook (exchange/README.md, rules 1 to 42) and no settlement. It keeps every order ever
entered, has no book and no tables, compares requirement and certificate in the venue's own figures, and
counts money in fractions. `apply` gives the engine's own event types; a refusal names its reason only.
"""

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from math import ceil, floor
from typing import NamedTuple

from msgspec.structs import replace

from schemas.commands import (
    AnyCommand,
    CallFill,
    CancelOrder,
    CancelStandingOffer,
    CellPrice,
    CertifySite,
    Deposit,
    DerateSite,
    EndCall,
    EnterOrder,
    EnterStandingOffer,
    HaltContract,
    ListStandingOffer,
    MassCancel,
    OrderType,
    ProposeClearing,
    ReinstateAccount,
    ReplaceOrder,
    ReplaceStandingOffer,
    Requirement,
    ResumeContract,
    RetryBlock,
    SelfTrade,
    Side,
    SuspendAccount,
    TimeInForce,
    Withdraw,
)
from schemas.events import (
    AccountReinstated,
    AccountSuspended,
    AnyEvent,
    BlockRetried,
    BlockTraded,
    CallCleared,
    ContractClosed,
    Deposited,
    EndReason,
    ListingSkipped,
    OrderAccepted,
    OrderEnded,
    OrderListed,
    OrderReduced,
    OrderRepeated,
    OrderReplaced,
    OrdersCanceled,
    Phase,
    PhaseChanged,
    Rejected,
    SiteDerated,
    StandingOfferEnded,
    StandingOfferEntered,
    StandingOfferListed,
    StandingOfferReplaced,
    Traded,
    Withdrawn,
)
from schemas.reasons import RejectReason
from schemas.venue import Venue
from tests.reference_clearing import Cell, Clearing, Interest, clearing_of

HOUR_NS = 3_600_000_000_000
SECOND_NS = 1_000_000_000
RESTING = (TimeInForce.GTC, TimeInForce.GTD, TimeInForce.AUCTION)
Collar = tuple[int, int]


class Pledge:
    """Money set aside for one order, or for all the alternatives of a group."""

    def __init__(self) -> None:
        self.members: list[TwinOrder] = []
        self.has_traded = False
        self.reserved = 0
        self.fee = Fraction(0)
        self.bond = Fraction(0)
        # What an ask is about to sell at better prices: worth and lots.
        self.sales: list[tuple[int, int]] = []
        # While a block trades: what its limit leaves for the legs to come.
        self.block_rest: int | None = None


class TwinOrder:
    """An order for ever: its terms and what became of it."""

    def __init__(self, number: int, command: EnterOrder, pledge: Pledge, offer: int = 0) -> None:
        self.number = number
        self.command = command
        self.offer = offer
        self.pledge = pledge
        self.price = command.price_ticks
        self.total = command.lots
        # Lots by hour for a run; else one figure.
        self.open = [command.lots] * (command.hours if self.is_run else 1)
        self.filled = 0
        self.place = 0
        self.shown = 0
        self.retry = False

    @property
    def leaves(self) -> int:
        return sum(self.open)

    @property
    def is_open(self) -> bool:
        return self.leaves > 0

    @property
    def buys(self) -> bool:
        return self.command.side is Side.BUY

    @property
    def is_block(self) -> bool:
        return self.buys and self.command.hours > 1

    @property
    def is_run(self) -> bool:
        return not self.buys and self.command.hours > 1

    @property
    def is_hourly(self) -> bool:
        return self.command.hours == 1

    @property
    def hours(self) -> range:
        return range(self.command.delivery_hour, self.command.delivery_hour + self.command.hours)

    @property
    def contracts(self) -> list[tuple[str, int]]:
        return [(self.command.class_code, hour) for hour in self.hours]

    def open_at(self, hour: int) -> int:
        return self.open[hour - self.command.delivery_hour] if self.is_run else self.open[0]

    def take_off(self, lots: int) -> None:
        """Fewer lots are open: of an iceberg the hidden ones go first."""
        self.open = [max(0, left - lots) for left in self.open]
        self.shown = min(self.shown, self.leaves)


class Contract:
    """What a contract in which something was entered tells of itself."""

    def __init__(self, key: tuple[str, int], phase: Phase, since_ns: int) -> None:
        self.key = key
        self.phase = phase
        self.since_ns = since_ns
        # By supply cell: the price at which it last cleared, and prices and lots traded one by one since.
        self.tape: dict[Cell, list[tuple[int, int]]] = {}
        self.call_prices: dict[Cell, int] = {}
        self.traded: set[Cell] = set()
        self.calls: list[int] = []


class Position(NamedTuple):
    """A trade and the grade of the ask that sold it."""

    trade: Traded
    carbon: str


class Offer:
    """A standing offer: its terms, and the hour from which it is still to be listed."""

    def __init__(self, number: int, command: EnterStandingOffer, next_hour: int) -> None:
        self.number = number
        self.command = command
        self.next_hour = next_hour
        self.lists = True


class Plan(NamedTuple):
    """What a taker meets: makers with the lots it takes, none of its own that end; and what stops it."""

    steps: list[tuple[TwinOrder, int]]
    stop: EndReason | None

    @property
    def lots(self) -> int:
        return sum(lots for _, lots in self.steps)


class Leg(NamedTuple):
    """Lots that a block takes of an ask in an hour."""

    ask: TwinOrder
    hour: int
    lots: int


class ReferenceEngine:
    """The rules, one sentence after another."""

    def __init__(
        self, venue: Venue, groups: dict[int, int], sites: dict[int, CertifySite], start_ns: int
    ) -> None:
        self.venue = venue
        self.groups = groups
        self.sites = sites
        self.first_horizon = start_ns // HOUR_NS + venue.horizon_hours
        self.cash = dict.fromkeys(groups, 0)
        self.reserved = dict.fromkeys(groups, 0)
        self.committed = dict.fromkeys(groups, 0)
        self.bonds = dict.fromkeys(groups, 0)
        self.fees = 0
        self.orders: list[TwinOrder] = []
        self.offers: list[Offer] = []
        self.contracts: dict[tuple[str, int], Contract] = {}
        self.positions: list[Position] = []
        self.capacities: dict[tuple[int, int], int] = {}
        self.suspended: set[int] = set()
        # Accounts and hours: of every order entered or replaced, of every trade.
        self.entries: list[tuple[int, int]] = []
        self.account_trades: list[tuple[int, int]] = []
        self.places = 0
        self.now = start_ns
        self.classes = {c.code: c for c in venue.classes}
        self.maker_fee = Fraction(venue.fees.maker_ppm, 1_000_000)
        self.taker_fee = Fraction(venue.fees.taker_ppm, 1_000_000)
        self.bond_rate = Fraction(venue.bond_permille, 1000)

    def apply(self, time_ns: int, command: AnyCommand) -> list[AnyEvent]:
        self.now = time_ns
        return [*self.pass_time(), *self.answer(command)]

    def answer(self, command: AnyCommand) -> list[AnyEvent]:
        match command:
            case EnterOrder():
                return self.enter(command)
            case ReplaceOrder():
                return self.replace(command)
            case CancelOrder():
                return self.cancel(command)
            case MassCancel():
                return self.mass_cancel(command)
            case RetryBlock():
                return self.retry(command)
            case EnterStandingOffer():
                return self.enter_offer(command)
            case ReplaceStandingOffer():
                return self.replace_offer(command)
            case CancelStandingOffer():
                return self.cancel_offer(command)
            case ListStandingOffer():
                return self.list_offer(command)
            case EndCall():
                return self.end_call(command)
            case ProposeClearing():
                return self.clear(command)
            case HaltContract():
                return self.halt(command)
            case ResumeContract():
                return self.resume(command)
            case SuspendAccount():
                return self.suspend(command)
            case ReinstateAccount():
                return self.reinstate(command)
            case DerateSite():
                return self.derate(command)
            case Deposit():
                return self.deposit(command)
            case Withdraw():
                return self.withdraw(command)
        return []

    # -- time and phases -----------------------------------------------------------------------------

    def gate(self, hour: int) -> int:
        return hour * HOUR_NS - self.venue.gate_seconds * SECOND_NS

    def first_open_hour(self) -> int:
        return (self.now + self.venue.gate_seconds * SECOND_NS) // HOUR_NS + 1

    def listed(self, hour: int) -> int:
        return (hour - self.venue.horizon_hours) * HOUR_NS

    def is_listed(self, hour: int) -> bool:
        return self.listed(hour) <= self.now

    def pass_time(self) -> list[AnyEvent]:
        events: list[AnyEvent] = []
        while due := self.due():
            first = min(due, key=lambda item: item[:3])
            if first[0] > self.now:
                break
            events += self.do_due(first)
        return events

    def due(self) -> list[tuple[int, int, tuple[int, int], TwinOrder | Contract]]:
        """When, kind, number, what: the ends of `pre_open`, of calls, gates, expiries."""
        rules, codes = self.venue.calls, list(self.classes)
        due: list[tuple[int, int, tuple[int, int], TwinOrder | Contract]] = []
        with_runs = {
            key for run in self.open_orders() if run.is_run for key in run.contracts if run.open_at(key[1])
        }
        for code, hour in with_runs - set(self.contracts):
            due.append((self.gate(hour), 2, (hour, codes.index(code)), self.quiet((code, hour))))
        for (code, hour), contract in self.contracts.items():
            number = (hour, codes.index(code))
            due.append((self.gate(hour), 2, number, contract))
            if contract.phase is Phase.PRE_OPEN:
                due.append((contract.since_ns + rules.pre_open_seconds * SECOND_NS, 0, number, contract))
            if contract.phase is Phase.CALL:
                due.append((contract.since_ns + rules.max_seconds * SECOND_NS, 1, number, contract))
        for order in self.open_orders():
            if order.command.time_in_force is TimeInForce.GTD:
                due.append((order.command.expire_ns, 3, (order.number, 0), order))
        return due

    def do_due(self, item: tuple[int, int, tuple[int, int], TwinOrder | Contract]) -> list[AnyEvent]:
        when, kind, _, what = item
        if isinstance(what, TwinOrder):
            return [self.end(what, EndReason.EXPIRED)]
        if kind == 0:
            return [self.change_phase(what, Phase.CALL, when)]
        if kind == 1:
            return self.call_ends(what)
        return self.close(what)

    def close(self, contract: Contract) -> list[AnyEvent]:
        code, hour = contract.key
        events: list[AnyEvent] = [ContractClosed(code, hour)] if contract.key in self.contracts else []
        self.contracts.pop(contract.key, None)
        there = [order for order in self.open_orders() if contract.key in order.contracts]
        events += [self.end(order, EndReason.GATE) for order in there if not order.is_run]
        for run in there:
            if run.is_run:
                left = list(run.open)
                left[hour - run.command.delivery_hour] = 0
                events += self.cut_run(run, left, EndReason.GATE)
        return events

    def contract(self, key: tuple[str, int]) -> Contract:
        """Return the contract; from now on it tells of itself."""
        if key not in self.contracts:
            self.contracts[key] = self.quiet(key)
        return self.contracts[key]

    def quiet(self, key: tuple[str, int]) -> Contract:
        """Return the contract as it is, or as one in which nothing was entered would be."""
        if key in self.contracts:
            return self.contracts[key]
        rules, listed = self.venue.calls, self.listed(key[1])
        call = listed + rules.pre_open_seconds * SECOND_NS
        if (
            not rules.opening
            or key[1] <= self.first_horizon
            or self.now >= call + rules.max_seconds * SECOND_NS
        ):
            return Contract(key, Phase.CONTINUOUS, listed)
        if self.now >= call:
            return Contract(key, Phase.CALL, call)
        return Contract(key, Phase.PRE_OPEN, listed)

    def phase(self, code: str, hour: int) -> Phase:
        return self.quiet((code, hour)).phase

    def phases(self, order: TwinOrder) -> list[Phase]:
        """The phases of the contracts in which the order is."""
        return [self.phase(*key) for key in order.contracts if self.gate(key[1]) > self.now]

    def change_phase(self, contract: Contract, phase: Phase, when: int) -> AnyEvent:
        contract.phase, contract.since_ns = phase, when
        if phase is Phase.CONTINUOUS:
            for order in self.open_orders():
                if order.is_block and contract.key in order.contracts:
                    order.retry = True
        return PhaseChanged(*contract.key, phase)

    def known_contract(self, code: str, hour: int) -> Iterator[RejectReason]:
        if code not in self.classes:
            yield RejectReason.UNKNOWN_CLASS
        elif not self.is_listed(hour):
            yield RejectReason.BEYOND_HORIZON
        elif self.gate(hour) <= self.now:
            yield RejectReason.GATE_CLOSED

    def halt(self, command: HaltContract) -> list[AnyEvent]:
        key = command.class_code, command.delivery_hour
        for reason in self.known_contract(*key):
            return [Rejected(reason)]
        if self.phase(*key) is Phase.HALTED:
            return [Rejected(RejectReason.WRONG_PHASE)]
        return [self.change_phase(self.contract(key), Phase.HALTED, self.now)]

    def resume(self, command: ResumeContract) -> list[AnyEvent]:
        key = command.class_code, command.delivery_hour
        for reason in self.known_contract(*key):
            return [Rejected(reason)]
        if self.phase(*key) is not Phase.HALTED:
            return [Rejected(RejectReason.WRONG_PHASE)]
        return [self.change_phase(self.contract(key), Phase.CALL, self.now)]

    # -- prices of reference -------------------------------------------------------------------------

    def cell(self, order: TwinOrder) -> Cell:
        """The ranks of an order's codes in the catalogue."""
        zones = [zone.code for zone in self.venue.zones]
        carbon = [grade.code for grade in self.venue.carbon_grades]
        security = [tier.code for tier in self.venue.security_tiers]
        need = order.command.requirement
        if need is None:
            site = self.sites[order.command.site]
            assert order.command.carbon is not None
            return (
                zones.index(site.zone),
                carbon.index(order.command.carbon),
                security.index(site.security),
            )
        latency = [tier.code for tier in self.venue.latency_tiers].index(need.latency)
        return zones.index(need.zone), latency, carbon.index(need.carbon), security.index(need.security)

    def reference(self, contract: Contract, cell: Cell) -> int | None:
        """The reference price of a supply cell."""
        one_by_one = [price for price, lots in contract.tape.get(cell, []) for _ in range(lots)]
        if one_by_one:
            last = one_by_one[-self.venue.limits.reference_lots :]
            return sum(last) // len(last)
        if cell in contract.call_prices:
            return contract.call_prices[cell]
        return self.classes[contract.key[0]].reference_price_ticks

    def collar(self, contract: Contract) -> Collar | None:
        """The lowest and highest price allowed; none where nothing says what a price is."""
        limits = self.venue.limits
        if limits.collar_permille == 0:
            return None
        traded = [self.reference(contract, cell) for cell in contract.traded]
        catalogue = self.classes[contract.key[0]].reference_price_ticks
        prices = [price for price in traded or [catalogue] if price is not None]
        if not prices:
            return None
        low = floor(min(prices) * Fraction(1000 - limits.collar_permille, 1000))
        high = floor(max(prices) * Fraction(1000 + limits.collar_permille, 1000))
        return max(1, low), min(limits.price_max_ticks, max(1, high))

    def beyond_band(self, contract: Contract, cell: Cell, price: int) -> bool:
        reference, band = self.reference(contract, cell), self.venue.limits.band_permille
        return (
            band > 0 and reference is not None and abs(price - reference) > Fraction(band * reference, 1000)
        )

    # -- entering ------------------------------------------------------------------------------------

    def open_orders(self) -> list[TwinOrder]:
        return [order for order in self.orders if order.is_open]

    def enter(self, command: EnterOrder) -> list[AnyEvent]:
        if command.account not in self.groups:
            return [Rejected(RejectReason.UNKNOWN_ACCOUNT)]
        # Who resells may leave the site to the position.
        if command.position and not command.site and 1 <= command.position <= len(self.positions):
            command = replace(command, site=self.positions[command.position - 1].trade.site)
        for order in self.orders:
            if (
                not order.offer
                and (order.command.account, order.command.client_order_id)
                == (command.account, command.client_order_id)
                and (order.is_open or order.command.valid_until_ns >= self.now)
            ):
                if order.command != command:
                    return [Rejected(RejectReason.DUPLICATE_ORDER_ID)]
                return [OrderRepeated(order.number, order.pledge.reserved, order.filled, order.leaves)]
        for reason in self.validity(command.valid_until_ns):
            return [Rejected(reason)]
        return self.admit(command)

    def validity(self, valid_until_ns: int) -> Iterator[RejectReason]:
        if valid_until_ns < self.now:
            yield RejectReason.COMMAND_EXPIRED
        if valid_until_ns > self.now + self.venue.limits.valid_until_max_seconds * SECOND_NS:
            yield RejectReason.VALIDITY_TOO_LONG

    def admit(self, command: EnterOrder, offer: int = 0) -> list[AnyEvent]:
        """Enter an order that is new: refuse it, or accept it and do what follows."""
        for reason in self.form_refusals(command):
            return [Rejected(reason)]
        mine = [o for o in self.open_orders() if o.command.account == command.account]
        alternatives = [
            o
            for o in mine
            if command.exclusive_group and o.command.exclusive_group == command.exclusive_group
        ]
        pledge = alternatives[0].pledge if alternatives else Pledge()
        order = TwinOrder(len(self.orders) + 1, command, pledge, offer)
        if command.order_type is OrderType.MARKET:
            collar = self.collar(self.quiet(order.contracts[0]))
            if collar is not None:
                order.price = collar[1] if order.buys else collar[0]
        for reason in self.refusals(order, mine, alternatives):
            return [Rejected(reason)]
        self.places += 1
        order.place = self.places
        pledge.members.append(order)
        self.orders.append(order)
        outcome = self.submit(order, new=True)
        if isinstance(outcome, RejectReason):
            pledge.members.remove(order)
            self.orders.remove(order)
            return [Rejected(outcome)]
        return outcome

    def form_refusals(self, command: EnterOrder) -> Iterator[RejectReason]:
        """What is wrong with the terms themselves."""
        limits, buys, hourly = self.venue.limits, command.side is Side.BUY, command.hours == 1
        market = command.order_type is OrderType.MARKET
        tif = command.time_in_force
        if market and (not hourly or command.price_ticks):
            yield RejectReason.ORDER_TYPE_MISMATCH
        if not market and not 1 <= command.price_ticks <= limits.price_max_ticks:
            yield RejectReason.PRICE_OUT_OF_RANGE
        if not 1 <= command.lots <= limits.order_max_lots:
            yield RejectReason.QUANTITY_OUT_OF_RANGE
        if not 1 <= command.hours <= limits.block_max_hours:
            yield RejectReason.HOURS_OUT_OF_RANGE
        if (
            (tif is TimeInForce.GTD and command.expire_ns <= self.now)
            or (tif is not TimeInForce.GTD and command.expire_ns != 0)
            or (market and tif not in (TimeInForce.IOC, TimeInForce.FOK))
            or (not hourly and tif in (TimeInForce.FOK, TimeInForce.AUCTION))
            or (command.exclusive_group is not None and tif not in (TimeInForce.GTC, TimeInForce.GTD))
        ):
            yield RejectReason.TIME_IN_FORCE_MISMATCH
        if not 0 <= command.min_lots <= (command.lots if hourly else 0):
            yield RejectReason.MINIMUM_OUT_OF_RANGE
        display = command.display_lots
        if display and not (
            hourly
            and tif in (TimeInForce.GTC, TimeInForce.GTD)
            and 0 < display < command.lots
            and display * limits.iceberg_slices_max >= command.lots
        ):
            yield RejectReason.DISPLAY_OUT_OF_RANGE
        if command.post_only and not (hourly and tif in RESTING):
            yield RejectReason.POST_ONLY_MISMATCH
        if not (command.min_hours == 0 if buys or hourly else 1 <= command.min_hours <= command.hours):
            yield RejectReason.MIN_HOURS_OUT_OF_RANGE
        if command.class_code not in self.classes:
            yield RejectReason.UNKNOWN_CLASS
            return
        if buys:
            if command.requirement is None or command.site or command.position or command.carbon is not None:
                yield RejectReason.SIDE_FIELDS_MISMATCH
        else:
            yield from self.supply_refusals(command)

    def supply_refusals(self, command: EnterOrder) -> Iterator[RejectReason]:
        """What is wrong with site or position, and grade."""
        if command.requirement is not None or command.carbon is None:
            yield RejectReason.SIDE_FIELDS_MISMATCH
            return
        if command.position and command.hours > 1:
            yield RejectReason.SIDE_FIELDS_MISMATCH
        if not command.site:
            yield RejectReason.UNKNOWN_POSITION if command.position else RejectReason.SIDE_FIELDS_MISMATCH
            return
        if command.site not in self.sites:
            yield RejectReason.UNKNOWN_SITE
            return
        site = self.sites[command.site]
        if command.position:
            if not 1 <= command.position <= len(self.positions):
                yield RejectReason.UNKNOWN_POSITION
                return
            trade, carbon = self.positions[command.position - 1]
            there = (trade.class_code, trade.delivery_hour, trade.site)
            if trade.buyer != command.account or there != (
                command.class_code,
                command.delivery_hour,
                command.site,
            ):
                yield RejectReason.UNKNOWN_POSITION
        else:
            carbon = site.carbon
            if site.account != command.account:
                yield RejectReason.NOT_SITE_OWNER
            if site.class_code != command.class_code:
                yield RejectReason.CLASS_NOT_CERTIFIED
        if self.carbon(command.carbon) < self.carbon(carbon):
            yield RejectReason.GRADE_NOT_CERTIFIED
        hours = range(command.delivery_hour, command.delivery_hour + command.hours)
        if not command.position and not (site.from_hour <= hours[0] and hours[-1] < site.until_hour):
            yield RejectReason.SITE_NOT_CERTIFIED

    def refusals(
        self, order: TwinOrder, mine: Sequence[TwinOrder], alternatives: Sequence[TwinOrder], new: bool = True
    ) -> Iterator[RejectReason]:
        """Why the order is refused here and now; `mine` are its account's others, and `alternatives`."""
        command, limits, account = order.command, self.venue.limits, order.command.account
        first = self.quiet(order.contracts[0])
        if new:
            if not self.is_listed(order.hours[-1]):
                yield RejectReason.BEYOND_HORIZON
            if self.gate(order.hours[0]) <= self.now:
                yield RejectReason.GATE_CLOSED
        if not self.phase_takes(order, new):
            yield RejectReason.WRONG_PHASE
        collar = self.collar(first)
        if command.order_type is OrderType.MARKET:
            if collar is None:
                yield RejectReason.NO_REFERENCE_PRICE
        elif collar is not None and not collar[0] <= order.price <= collar[1]:
            yield RejectReason.PRICE_OUTSIDE_COLLAR
        if account in self.suspended:
            yield RejectReason.ACCOUNT_SUSPENDED
        if limits.free_orders_per_hour:
            entered = self.entries.count((account, self.now // HOUR_NS))
            traded = self.account_trades.count((account, self.now // HOUR_NS))
            if entered >= limits.free_orders_per_hour + limits.orders_per_trade * traded:
                yield RejectReason.ORDER_TO_TRADE_EXCEEDED
        if new and len(mine) >= limits.open_orders_max:
            yield RejectReason.TOO_MANY_OPEN_ORDERS
        if new and alternatives:
            one = alternatives[0].command
            if (
                order.pledge.has_traded
                or (one.side, one.lots, one.hours > 1) != (command.side, command.lots, command.hours > 1)
                or any(other.contracts == order.contracts for other in alternatives)
            ):
                yield RejectReason.GROUP_MISMATCH
            if len(alternatives) >= 8:
                yield RejectReason.GROUP_FULL
        if not order.buys:
            yield from self.room_refusals(order)
        sites = [site for site in self.sites.values() if self.could_serve(site, order)]
        if order.is_block and command.hours * len(sites) > limits.block_max_site_hours:
            yield RejectReason.BLOCK_TOO_WIDE

    def room_refusals(self, ask: TwinOrder) -> Iterator[RejectReason]:
        command = ask.command
        if command.position:
            trade = self.positions[command.position - 1].trade
            offered = sum(
                o.filled + (o.leaves if o is not ask else 0)
                for o in self.orders
                if not o.buys and o.command.position == command.position
            )
            if ask.leaves > trade.lots - offered:
                yield RejectReason.POSITION_EXCEEDED
            return
        for hour in ask.hours:
            others = [o for o in self.asks_of(command.site, hour) if o is not ask and o.is_run == ask.is_run]
            free = self.capacity(command.site, hour) - self.sold(command.site, hour)
            if ask.open_at(hour) > free - sum(o.open_at(hour) for o in others) and ask.open_at(hour):
                yield RejectReason.CAPACITY_EXCEEDED
        runs = [o for o in self.open_orders() if o.is_run and o.command.site == command.site and o is not ask]
        if ask.is_run and len(runs) >= self.venue.limits.resting_runs_max:
            yield RejectReason.TOO_MANY_RESTING_RUNS

    def phase_takes(self, order: TwinOrder, new: bool) -> bool:
        command, phases = order.command, self.phases(order)
        if not order.is_hourly:
            if command.time_in_force is TimeInForce.IOC:
                return all(phase is Phase.CONTINUOUS for phase in phases)
            return not any(phase in (Phase.HALTED, Phase.CLEARING) for phase in phases)
        if phases[0] in (Phase.PRE_OPEN, Phase.CALL):
            odd = new and (command.min_lots > 0 or command.post_only)
            return command.time_in_force in RESTING and not odd
        return phases[0] is Phase.CONTINUOUS and command.time_in_force is not TimeInForce.AUCTION

    def submit(self, order: TwinOrder, new: bool) -> RejectReason | list[AnyEvent]:
        """Let an order in, or in again with other terms, unless what it would trade or cost forbids it."""
        command, pledge = order.command, order.pledge
        plan = Plan([], None)
        legs: list[Leg] | None = None
        evicted: list[TwinOrder] = []
        if order.is_hourly and self.phases(order)[0] is Phase.CONTINUOUS:
            plan = self.plan(order, new)
            if command.post_only and (plan.lots or plan.stop is EndReason.BAND):
                return RejectReason.POST_ONLY_WOULD_TRADE
            if command.time_in_force is TimeInForce.FOK and plan.lots < order.leaves:
                return RejectReason.NOT_FILLABLE
            if new and plan.lots < command.min_lots:
                return RejectReason.MINIMUM_NOT_FILLABLE
        if order.is_block:
            legs = self.block_legs(order, sorted(self.sites))
            if new and legs is None and command.time_in_force is not TimeInForce.IOC:
                for hour in order.hours:
                    there = [
                        o
                        for o in self.open_orders()
                        if o.is_block
                        and o is not order
                        and o not in evicted
                        and (command.class_code, hour) in o.contracts
                    ]
                    if len(there) >= self.venue.limits.resting_blocks_max:
                        worst = min(there, key=lambda o: (o.price, -o.place))
                        if worst.price >= order.price:
                            return RejectReason.TOO_MANY_RESTING_BLOCKS
                        evicted.append(worst)
        if not order.buys:
            pledge.sales = [
                (self.worth_of(command.class_code, maker.price, lots), lots)
                for maker, lots in plan.steps
                if lots
            ]
        change = self.needed(pledge) - pledge.reserved
        if change > self.cash[command.account]:
            pledge.sales = []
            return RejectReason.INSUFFICIENT_FUNDS
        self.cash[command.account] -= change
        self.reserved[command.account] += change
        pledge.reserved += change
        self.entries.append((command.account, self.now // HOUR_NS))
        events: list[AnyEvent] = [self.admitted(order, change, new)]
        self.show(order)
        if order.is_hourly or (
            order.is_block and legs is None and command.time_in_force is not TimeInForce.IOC
        ):
            for key in order.contracts:
                self.contract(key)
        if order.is_block:
            if legs is not None:
                return [*events, *self.trade_block(order, legs)]
            for other in sorted(evicted, key=lambda o: o.number):
                events.append(self.end(other, EndReason.EVICTED))
        else:
            events += self.take(order, plan)
        if order.is_open and command.time_in_force in (TimeInForce.IOC, TimeInForce.FOK):
            events.append(self.end(order, EndReason.IMMEDIATE))
        return events

    def admitted(self, order: TwinOrder, change: int, new: bool) -> AnyEvent:
        if not new:
            return OrderReplaced(
                order.number, order.command.account, order.total, order.price, order.leaves, change
            )
        if order.offer:
            return OrderListed(order.number, order.offer, change, order.command)
        return OrderAccepted(order.number, change)

    # -- hourly matching -----------------------------------------------------------------------------

    def plan(self, taker: TwinOrder, new: bool) -> Plan:
        """What the taker would meet, by price, then time; nothing changes."""
        command = taker.command
        absent = command.post_only or (
            new and (command.time_in_force is TimeInForce.FOK or command.min_lots > 0)
        )
        contract = self.quiet(taker.contracts[0])
        # Makers with the place, the lots shown and the lots hidden that each would have.
        queue = {
            o: (o.place, o.shown, o.leaves - o.shown)
            for o in self.open_orders()
            if o.buys != taker.buys
            and o.is_hourly
            and o.contracts == taker.contracts
            and (self.serves(o, taker) if taker.buys else self.serves(taker, o))
            and (o.price <= taker.price if taker.buys else o.price >= taker.price)
            and not (absent and self.same_owner(o, taker))
        }
        steps: list[tuple[TwinOrder, int]] = []
        wanted, places = taker.leaves, self.places
        while wanted and queue:
            maker = min(queue, key=lambda o: (o.price if taker.buys else -o.price, queue[o][0]))
            place, shown, hidden = queue[maker]
            if self.same_owner(maker, taker):
                if command.self_trade is not SelfTrade.CANCEL_TAKER:
                    steps.append((maker, 0))
                    del queue[maker]
                if command.self_trade is not SelfTrade.CANCEL_MAKER:
                    return Plan(steps, EndReason.SELF_TRADE)
                continue
            cell = self.cell(maker if taker.buys else taker)
            if self.beyond_band(contract, cell, maker.price):
                return Plan(steps, EndReason.BAND)
            lots = min(wanted, shown)
            steps.append((maker, lots))
            wanted, shown = wanted - lots, shown - lots
            if not shown:
                places += 1
                place, shown = places, min(maker.command.display_lots, hidden)
                hidden -= shown
            queue[maker] = place, shown, hidden
            if not shown:
                del queue[maker]
        return Plan(steps, None)

    def take(self, order: TwinOrder, plan: Plan) -> list[AnyEvent]:
        """Do what was planned; then the order ends or rests, and blocks are tried."""
        command = order.command
        events: list[AnyEvent] = []
        for maker, lots in plan.steps:
            if not lots:
                events.append(self.end(maker, EndReason.SELF_TRADE))
                continue
            bid, ask = (order, maker) if order.buys else (maker, order)
            if not order.buys:
                order.pledge.sales.pop(0)
            events += self.trade_hourly(bid, ask, maker.price, lots, command.side)
        if not order.is_open:
            return events
        contract = self.quiet(order.contracts[0])
        if plan.stop is EndReason.SELF_TRADE:
            return [*events, self.end(order, EndReason.SELF_TRADE)]
        if plan.stop is EndReason.BAND:
            limits, hour = self.venue.limits, self.now // HOUR_NS
            if (
                command.time_in_force in RESTING
                and order.leaves > limits.band_small_lots
                and contract.calls.count(hour) < limits.volatility_calls_per_hour
            ):
                contract.calls.append(hour)
                return [*events, self.change_phase(contract, Phase.CALL, self.now)]
            return [*events, self.end(order, EndReason.BAND)]
        return events + self.serve_blocks(order)

    def show(self, order: TwinOrder) -> None:
        """Show an order that has just come, or the next slice of an iceberg."""
        order.shown = min(order.command.display_lots or order.leaves, order.leaves)

    def hit(self, order: TwinOrder, lots: int) -> None:
        """Take lots of a resting or a taking hourly order, or of a block; the shown ones first."""
        order.open = [order.open[0] - lots]
        order.filled += lots
        if order.shown > lots:
            order.shown -= lots
        elif order.shown and order.leaves:
            self.places += 1
            order.place = self.places
            self.show(order)

    def trade_hourly(
        self, bid: TwinOrder, ask: TwinOrder, price: int, lots: int, taker: Side | None
    ) -> list[AnyEvent]:
        self.hit(bid, lots)
        self.hit(ask, lots)
        rest = [*self.others_give(bid, lots), *self.others_give(ask, lots)]
        event = self.trade(bid, ask, bid.command.delivery_hour, price, lots, taker)
        if taker is not None:
            contract = self.contract(bid.contracts[0])
            contract.tape.setdefault(self.cell(ask), []).append((price, lots))
            contract.traded.add(self.cell(ask))
        cuts = [] if ask.command.position else self.fit(ask.command.site, bid.hours, runs=True)
        return [event, *rest, *cuts]

    def others_give(self, order: TwinOrder, lots: int) -> list[AnyEvent]:
        """What one alternative trades is taken from the others; their money is one with its own."""
        order.pledge.has_traded = True
        events: list[AnyEvent] = []
        for other in [o for o in order.pledge.members if o is not order and o.is_open]:
            before, account = other.leaves, other.command.account
            other.take_off(lots)
            if other.is_open:
                gone = before - other.leaves
                events.append(OrderReduced(other.number, account, gone, other.leaves, 0, EndReason.GROUP))
            else:
                events.append(OrderEnded(other.number, account, before, 0, EndReason.GROUP))
        return events

    # -- blocks and runs -----------------------------------------------------------------------------

    def block_legs(self, block: TwinOrder, sites: list[int]) -> list[Leg] | None:
        """The cheapest way to fill the block whole from one site, within its limit."""
        if any(phase is not Phase.CONTINUOUS for phase in self.phases(block)):
            return None
        ways: list[tuple[int, int, int, list[Leg]]] = []
        for site in sites:
            for kind, legs in enumerate((self.hourly_legs(block, site), self.run_legs(block, site))):
                whole = sum(leg.lots for leg in legs) == block.leaves * block.command.hours
                total = sum(leg.lots * leg.ask.price for leg in legs)
                if whole and total <= block.price * block.leaves * block.command.hours:
                    ways.append((total, site, kind, legs))
        return min(ways, key=lambda way: way[:3])[3] if ways else None

    def sellers(self, block: TwinOrder, site: int, hour: int) -> list[TwinOrder]:
        there = [
            o
            for o in self.open_orders()
            if not o.buys
            and o.command.site == site
            and (block.command.class_code, hour) in o.contracts
            and self.serves(o, block)
            and not self.same_owner(o, block)
            and o.command.exclusive_group is None
        ]
        return sorted(there, key=lambda o: (o.price, o.place))

    def hourly_legs(self, block: TwinOrder, site: int) -> list[Leg]:
        legs: list[Leg] = []
        for hour in block.hours:
            wanted = block.leaves
            for ask in self.sellers(block, site, hour):
                if wanted and ask.is_hourly:
                    legs.append(Leg(ask, hour, min(wanted, ask.leaves)))
                    wanted -= legs[-1].lots
        return legs

    def run_legs(self, block: TwinOrder, site: int) -> list[Leg]:
        legs: list[Leg] = []
        wanted = block.leaves
        for run in self.sellers(block, site, block.hours[0]):
            if run.is_run and block.hours[-1] in run.hours and block.command.hours >= run.command.min_hours:
                lots = min(wanted, *(run.open_at(hour) for hour in block.hours))
                left = [run.open_at(hour) - (lots if hour in block.hours else 0) for hour in run.hours]
                if lots and left == in_stretches(left, run.command.min_hours):
                    legs += [Leg(run, hour, lots) for hour in block.hours]
                    wanted -= lots
        return sorted(legs, key=lambda leg: leg.hour)

    def trade_block(self, block: TwinOrder, legs: list[Leg]) -> list[AnyEvent]:
        pledge, lots, site = block.pledge, block.leaves, legs[0].ask.command.site
        code = block.command.class_code
        left = self.worth_of(code, block.price, lots * block.command.hours)
        self.hit(block, lots)
        rest = self.others_give(block, lots)
        trades: list[Traded] = []
        for ask, hour, part in legs:
            left -= self.worth_of(code, ask.price, part)
            pledge.block_rest = 0 if len(trades) == len(legs) - 1 else left
            if ask.is_run:
                ask.open[hour - ask.command.delivery_hour] -= part
                ask.filled += part
            else:
                self.hit(ask, part)
            trades.append(self.trade(block, ask, hour, ask.price, part, Side.BUY))
        pledge.block_rest = None
        for run in {ask.number: ask for ask, _, _ in legs if ask.is_run}.values():
            self.wake_blocks(run)
        cuts = self.fit(site, block.hours, runs=not legs[0].ask.is_run)
        return [BlockTraded(block.number, site, tuple(trades)), *rest, *cuts]

    def serve_blocks(self, ask: TwinOrder) -> list[AnyEvent]:
        events: list[AnyEvent] = []
        if ask.buys:
            return events
        blocks = [
            o
            for o in self.open_orders()
            if o.is_block
            and (set(o.contracts) <= set(ask.contracts) if ask.is_run else ask.contracts[0] in o.contracts)
            and self.serves(ask, o)
        ]
        for block in sorted(blocks, key=lambda o: (-o.price, o.place)):
            if ask.is_open and block.is_open:
                legs = self.block_legs(block, [ask.command.site])
                if legs is not None:
                    events += self.trade_block(block, legs)
        return events

    def retry(self, command: RetryBlock) -> list[AnyEvent]:
        for order in self.open_orders():
            if order.number == command.order_id and order.retry:
                order.retry = False
                legs = self.block_legs(order, sorted(self.sites))
                traded = [] if legs is None else self.trade_block(order, legs)
                return [BlockRetried(order.number), *traded]
        return [Rejected(RejectReason.NOTHING_TO_CHANGE)]

    # -- capacity ------------------------------------------------------------------------------------

    def capacity(self, site: int, hour: int) -> int:
        return self.capacities.get((site, hour), self.sites[site].capacity_lots)

    def sold(self, site: int, hour: int) -> int:
        """Lots sold first hand: what is resold was counted when it was first sold."""
        return sum(
            p.trade.lots
            for p in self.positions
            if (p.trade.site, p.trade.delivery_hour) == (site, hour) and not p.trade.position
        )

    def asks_of(self, site: int, hour: int) -> list[TwinOrder]:
        """Open asks that need capacity of a site in an hour, hourly ones and runs."""
        return [
            o
            for o in self.open_orders()
            if not o.buys and o.command.site == site and not o.command.position and hour in o.hours
        ]

    def fit(self, site: int, hours: Iterable[int], runs: bool) -> list[AnyEvent]:
        """Cut hourly asks, or runs, to what is not sold, newest first."""
        events: list[AnyEvent] = []
        for hour in hours:
            free = self.capacity(site, hour) - self.sold(site, hour)
            for ask in sorted(self.asks_of(site, hour), key=lambda o: -o.place):
                there = [o for o in self.asks_of(site, hour) if o.is_run == runs]
                excess = min(sum(o.open_at(hour) for o in there) - max(0, free), ask.open_at(hour))
                if ask not in there or excess <= 0:
                    continue
                if runs:
                    left = list(ask.open)
                    left[hour - ask.command.delivery_hour] -= excess
                    events += self.cut_run(ask, left, EndReason.CAPACITY)
                elif excess == ask.leaves or ask.command.exclusive_group is not None:
                    events.append(self.end(ask, EndReason.CAPACITY))
                else:
                    ask.take_off(excess)
                    events.append(self.reduced(ask, excess, EndReason.CAPACITY))
        return events

    def wake_blocks(self, run: TwinOrder) -> None:
        """What is left of a run may suit a block that what was open before did not."""
        for block in self.open_orders():
            if (
                block.is_block
                and run.is_open
                and set(block.contracts) <= set(run.contracts)
                and self.serves(run, block)
                and self.block_legs(block, [run.command.site]) is not None
            ):
                block.retry = True

    def cut_run(self, run: TwinOrder, left: list[int], reason: EndReason) -> list[AnyEvent]:
        """Leave a run what is left of it in stretches that are long enough."""
        left = in_stretches(left, run.command.min_hours)
        gone = run.leaves - sum(left)
        if not gone:
            return []
        if not sum(left):
            return [self.end(run, reason)]
        run.open = left
        self.wake_blocks(run)
        return [self.reduced(run, gone, reason)]

    def reduced(self, order: TwinOrder, gone: int, reason: EndReason) -> AnyEvent:
        return OrderReduced(
            order.number,
            order.command.account,
            gone,
            order.leaves,
            self.release(order.pledge, order.command.account),
            reason,
            tuple(order.open) if order.is_run else (),
        )

    def derate(self, command: DerateSite) -> list[AnyEvent]:
        if command.site not in self.sites:
            return [Rejected(RejectReason.UNKNOWN_SITE)]
        site, hours = self.sites[command.site], range(command.from_hour, command.until_hour)
        if not 0 <= command.capacity_lots <= site.capacity_lots:
            return [Rejected(RejectReason.QUANTITY_OUT_OF_RANGE)]
        if not 1 <= len(hours) <= 744:
            return [Rejected(RejectReason.HOURS_OUT_OF_RANGE)]
        if self.gate(hours[-1]) <= self.now:
            return [Rejected(RejectReason.GATE_CLOSED)]
        if not (site.from_hour <= hours[0] and hours[-1] < site.until_hour):
            return [Rejected(RejectReason.SITE_NOT_CERTIFIED)]
        hours = range(max(hours[0], self.first_open_hour()), hours[-1] + 1)
        self.capacities |= {(command.site, hour): command.capacity_lots for hour in hours}
        oversold = [hour for hour in hours if self.sold(command.site, hour) > command.capacity_lots]
        events: list[AnyEvent] = [SiteDerated(command.site, tuple(oversold))]
        for hour in hours:
            events += self.fit(command.site, (hour,), runs=False)
            events += self.fit(command.site, (hour,), runs=True)
        return events

    # -- replacing and cancelling --------------------------------------------------------------------

    def named(self, command: CancelOrder | ReplaceOrder) -> TwinOrder | None:
        for order in self.open_orders():
            if order.command.account == command.account and (
                order.number == command.order_id
                if command.order_id
                else not order.offer and order.command.client_order_id == command.client_order_id
            ):
                return order
        return None

    def cancel(self, command: CancelOrder) -> list[AnyEvent]:
        if command.account not in self.groups:
            return [Rejected(RejectReason.UNKNOWN_ACCOUNT)]
        order = self.named(command)
        if order is None:
            return [Rejected(RejectReason.UNKNOWN_ORDER)]
        return [self.end(order, EndReason.REQUESTED)]

    def mass_cancel(self, command: MassCancel) -> list[AnyEvent]:
        if command.account not in self.groups:
            return [Rejected(RejectReason.UNKNOWN_ACCOUNT)]
        named = [
            o
            for o in self.open_orders()
            if o.command.account == command.account
            and command.class_code in (None, o.command.class_code)
            and command.side in (None, o.command.side)
            and (command.delivery_hour is None or command.delivery_hour in o.hours)
        ]
        if not named:
            return [Rejected(RejectReason.UNKNOWN_ORDER)]
        canceled: list[AnyEvent] = [OrdersCanceled(command.account, len(named))]
        return canceled + [self.end(order, EndReason.REQUESTED) for order in named]

    def replace(self, command: ReplaceOrder) -> list[AnyEvent]:
        if command.account not in self.groups:
            return [Rejected(RejectReason.UNKNOWN_ACCOUNT)]
        for reason in self.validity(command.valid_until_ns):
            return [Rejected(reason)]
        order = self.named(command)
        if order is None:
            return [Rejected(RejectReason.UNKNOWN_ORDER)]
        if not 1 <= command.price_ticks <= self.venue.limits.price_max_ticks:
            return [Rejected(RejectReason.PRICE_OUT_OF_RANGE)]
        if not 1 <= command.lots <= self.venue.limits.order_max_lots:
            return [Rejected(RejectReason.QUANTITY_OUT_OF_RANGE)]
        total = order.total if order.is_run else order.filled + order.leaves
        if (command.lots, command.price_ticks) == (total, order.price):
            return [Rejected(RejectReason.NOTHING_TO_CHANGE)]
        if order.command.exclusive_group and command.lots != total:
            return [Rejected(RejectReason.GROUP_MISMATCH)]
        fewer = command.price_ticks == order.price and command.lots < total
        phases = self.phases(order)
        if Phase.CLEARING in phases or (Phase.HALTED in phases and not fewer):
            return [Rejected(RejectReason.WRONG_PHASE)]
        left = self.left_after(order, command.lots - total)
        if not sum(left):
            return [self.end(order, EndReason.REPLACED)]
        before = order.total, order.price, order.open, order.shown, order.place
        order.total, order.price, order.open = command.lots, command.price_ticks, left
        if fewer:
            order.shown = min(order.shown, order.leaves)
            return self.shrink(order)
        self.places += 1
        order.place = self.places
        outcome = next(self.replace_refusals(order), None) or self.submit(order, new=False)
        if isinstance(outcome, RejectReason):
            order.total, order.price, order.open, order.shown, order.place = before
            return [Rejected(outcome)]
        return outcome

    def left_after(self, order: TwinOrder, difference: int) -> list[int]:
        """What is open by hour when the total changes by `difference`."""
        if not order.is_run:
            return [max(0, order.leaves + difference)]
        left = [
            max(0, lots + difference) if self.gate(hour) > self.now else 0
            for hour, lots in zip(order.hours, order.open, strict=True)
        ]
        return in_stretches(left, order.command.min_hours)

    def replace_refusals(self, order: TwinOrder) -> Iterator[RejectReason]:
        display = order.command.display_lots
        if display and not display < order.total <= display * self.venue.limits.iceberg_slices_max:
            yield RejectReason.DISPLAY_OUT_OF_RANGE
        yield from self.refusals(order, (), (), new=False)

    def shrink(self, order: TwinOrder) -> list[AnyEvent]:
        """Fewer lots at the same price: the order keeps its place."""
        released = self.release(order.pledge, order.command.account)
        events: list[AnyEvent] = [self.admitted(order, -released, new=False)]
        if order.is_block:
            legs = self.block_legs(order, sorted(self.sites))
            if legs is not None:
                events += self.trade_block(order, legs)
        if order.is_run:
            events += self.serve_blocks(order)
        return events

    # -- standing offers -----------------------------------------------------------------------------

    def enter_offer(self, command: EnterStandingOffer) -> list[AnyEvent]:
        account, limits = command.account, self.venue.limits
        if account not in self.groups:
            return [Rejected(RejectReason.UNKNOWN_ACCOUNT)]
        mine = [o for o in self.offers if o.command.account == account]
        if any(
            o.command.name == command.name and (self.is_live(o) or o.command.valid_until_ns >= self.now)
            for o in mine
        ):
            return [Rejected(RejectReason.DUPLICATE_OFFER)]
        for reason in self.validity(command.valid_until_ns):
            return [Rejected(reason)]
        if not 1 <= command.lots <= limits.order_max_lots:
            return [Rejected(RejectReason.QUANTITY_OUT_OF_RANGE)]
        if not 1 <= command.hours <= min(limits.block_max_hours, command.until_hour - command.from_hour):
            return [Rejected(RejectReason.HOURS_OUT_OF_RANGE)]
        if not self.curve_holds(command.price_curve):
            return [Rejected(RejectReason.CURVE_OUT_OF_RANGE)]
        example = self.listing(command, command.from_hour, max(command.price_curve))
        for reason in self.form_refusals(example):
            if reason is not RejectReason.SITE_NOT_CERTIFIED:
                return [Rejected(reason)]
        offer = Offer(len(self.offers) + 1, command, command.from_hour)
        self.pass_over(offer)
        if not self.has_next(offer):
            return [Rejected(RejectReason.GATE_CLOSED)]
        if account in self.suspended:
            return [Rejected(RejectReason.ACCOUNT_SUSPENDED)]
        if sum(self.is_live(o) for o in mine) >= limits.standing_offers_max:
            return [Rejected(RejectReason.TOO_MANY_STANDING_OFFERS)]
        self.offers.append(offer)
        return [StandingOfferEntered(offer.number, account)]

    def curve_holds(self, curve: Sequence[int]) -> bool:
        prices_hold = all(0 <= price <= self.venue.limits.price_max_ticks for price in curve)
        return len(curve) in (1, 24, 168) and prices_hold and max(curve) > 0

    def is_live(self, offer: Offer) -> bool:
        """Say whether the offer is in force: it still lists, or something that it listed is open."""
        return offer.lists or any(o.offer == offer.number for o in self.open_orders())

    def named_offer(self, number: int, account: int) -> Offer | None:
        for offer in self.offers:
            if offer.number == number and offer.command.account == account and self.is_live(offer):
                return offer
        return None

    def pass_over(self, offer: Offer) -> None:
        """Leave out the hours whose gate has passed."""
        while self.gate(offer.next_hour) <= self.now:
            offer.next_hour += offer.command.hours

    def has_next(self, offer: Offer) -> bool:
        return offer.next_hour + offer.command.hours <= offer.command.until_hour

    def offered(self, offer: Offer, hour: int) -> int:
        """The offer's total less what it has traded, in that of its order's hours in which it is most."""
        hours = range(hour, hour + offer.command.hours)
        traded = dict.fromkeys(hours, 0)
        for trade, _ in self.positions:
            listed = {self.orders[number - 1].offer for number in (trade.bid_order_id, trade.ask_order_id)}
            if trade.delivery_hour in hours and offer.number in listed:
                traded[trade.delivery_hour] += trade.lots
        return offer.command.lots - max(traded.values())

    def listing(self, command: EnterStandingOffer, hour: int, price: int) -> EnterOrder:
        return EnterOrder(
            account=command.account,
            client_order_id=command.name,
            valid_until_ns=0,
            side=command.side,
            class_code=command.class_code,
            delivery_hour=hour,
            hours=command.hours,
            lots=command.lots,
            price_ticks=price,
            requirement=command.requirement,
            site=command.site,
            carbon=command.carbon,
            min_hours=command.min_hours,
        )

    def is_due(self, offer: Offer) -> bool:
        """Say whether the offer can list its next hours, or end for want of any."""
        last = offer.next_hour + offer.command.hours - 1
        return offer.lists and (not self.has_next(offer) or self.is_listed(last))

    def list_offer(self, command: ListStandingOffer) -> list[AnyEvent]:
        offer = next((o for o in self.offers if o.number == command.offer_id and o.lists), None)
        if offer is None:
            return [Rejected(RejectReason.UNKNOWN_OFFER)]
        if not self.is_due(offer):
            return [Rejected(RejectReason.NOTHING_TO_CHANGE)]
        self.pass_over(offer)
        events: list[AnyEvent] = []
        curve, listed = offer.command.price_curve, 0
        while self.has_next(offer) and self.is_due(offer) and listed < 24:
            hour = offer.next_hour
            offer.next_hour += offer.command.hours
            listed += 1
            # The first of January 1970 was a Thursday.
            price, lots = curve[(hour + 72) % 168 % len(curve)], self.offered(offer, hour)
            if price and lots > 0:
                order = replace(self.listing(offer.command, hour, price), lots=lots)
                for event in self.admit(order, offer.number):
                    if isinstance(event, Rejected):
                        events.append(ListingSkipped(offer.number, hour, event.reason))
                    else:
                        events.append(event)
        events.insert(0, StandingOfferListed(offer.number, offer.next_hour))
        if not self.has_next(offer):
            offer.lists = False
            events.append(StandingOfferEnded(offer.number, offer.command.account, EndReason.EXPIRED))
        return events

    def replace_offer(self, command: ReplaceStandingOffer) -> list[AnyEvent]:
        for reason in self.validity(command.valid_until_ns):
            return [Rejected(reason)]
        offer = self.named_offer(command.offer_id, command.account)
        if offer is None:
            return [Rejected(RejectReason.UNKNOWN_OFFER)]
        if not self.curve_holds(command.price_curve):
            return [Rejected(RejectReason.CURVE_OUT_OF_RANGE)]
        if not 1 <= command.lots <= self.venue.limits.order_max_lots:
            return [Rejected(RejectReason.QUANTITY_OUT_OF_RANGE)]
        if (command.lots, command.price_curve) == (offer.command.lots, offer.command.price_curve):
            return [Rejected(RejectReason.NOTHING_TO_CHANGE)]
        terms = replace(offer.command, lots=command.lots, price_curve=command.price_curve)
        anew = Offer(offer.number, terms, terms.from_hour)
        self.pass_over(anew)
        if not self.has_next(anew):
            return [Rejected(RejectReason.GATE_CLOSED)]
        if command.account in self.suspended:
            return [Rejected(RejectReason.ACCOUNT_SUSPENDED)]
        self.offers[offer.number - 1] = anew
        return [StandingOfferReplaced(offer.number, command.account), *self.withdraw_listed(offer)]

    def cancel_offer(self, command: CancelStandingOffer) -> list[AnyEvent]:
        offer = self.named_offer(command.offer_id, command.account)
        if offer is None:
            return [Rejected(RejectReason.UNKNOWN_OFFER)]
        events: list[AnyEvent] = []
        if offer.lists:
            offer.lists = False
            events.append(StandingOfferEnded(offer.number, command.account, EndReason.WITHDRAWN))
        return events + self.withdraw_listed(offer)

    def withdraw_listed(self, offer: Offer) -> list[AnyEvent]:
        listed = [o for o in self.open_orders() if o.offer == offer.number]
        return [self.end(order, EndReason.WITHDRAWN) for order in listed]

    def chores(self) -> list[AnyCommand]:
        """What is to be told to do next: blocks to be retried, offers to be listed."""
        blocks = [RetryBlock(o.number) for o in self.open_orders() if o.retry]
        return [*blocks, *(ListStandingOffer(o.number) for o in self.offers if self.is_due(o))]

    # -- calls ---------------------------------------------------------------------------------------

    def end_call(self, command: EndCall) -> list[AnyEvent]:
        for reason in self.known_contract(command.class_code, command.delivery_hour):
            return [Rejected(reason)]
        contract = self.contracts.get((command.class_code, command.delivery_hour))
        if contract is None or contract.phase is not Phase.CALL:
            return [Rejected(RejectReason.WRONG_PHASE)]
        if self.now < contract.since_ns + self.venue.calls.min_seconds * SECOND_NS:
            return [Rejected(RejectReason.WRONG_PHASE)]
        return self.call_ends(contract)

    def call_ends(self, contract: Contract) -> list[AnyEvent]:
        if self.clearing(contract).fills:
            return [self.change_phase(contract, Phase.CLEARING, self.now)]
        return self.call_over(contract, self.collar(contract))

    def call_over(self, contract: Contract, collar: Collar | None) -> list[AnyEvent]:
        """End what was for the call only, and what did not trade at the call's best prices for others."""
        low, high = collar or (1, self.venue.limits.price_max_ticks)
        events: list[AnyEvent] = []
        for order in self.open_orders():
            if not order.is_hourly or order.contracts != [contract.key]:
                continue
            if order.command.time_in_force is TimeInForce.AUCTION:
                events.append(self.end(order, EndReason.CALL_ENDED))
            elif order.price > high if order.buys else order.price < low:
                events.append(self.end(order, EndReason.BAND))
        return [*events, self.change_phase(contract, Phase.CONTINUOUS, self.now)]

    def clearing(self, contract: Contract) -> Clearing:
        low, high = self.collar(contract) or (1, self.venue.limits.price_max_ticks)
        there = [o for o in self.open_orders() if o.is_hourly and o.contracts == [contract.key]]
        bids, asks = (
            [Interest(o.number, o.price, o.place, self.cell(o), o.leaves) for o in there if o.buys is buys]
            for buys in (True, False)
        )
        return clearing_of(bids, asks, self.cell_serves, low, high)

    def right_clearing(self, code: str, hour: int) -> ProposeClearing:
        """The one proposal that is accepted."""
        clearing = self.clearing(self.quiet((code, hour)))
        return ProposeClearing(
            code,
            hour,
            tuple(CallFill(bid, ask, lots) for (bid, ask), lots in clearing.fills.items()),
            tuple(
                CellPrice(*self.supply_codes(cell), lowest, highest, (lowest + highest) // 2)
                for cell, (lowest, highest) in clearing.prices.items()
            ),
        )

    def clear(self, command: ProposeClearing) -> list[AnyEvent]:
        for reason in self.known_contract(command.class_code, command.delivery_hour):
            return [Rejected(reason)]
        contract = self.contracts.get((command.class_code, command.delivery_hour))
        if contract is None or contract.phase is not Phase.CLEARING:
            return [Rejected(RejectReason.WRONG_PHASE)]
        right = self.right_clearing(*contract.key)
        if command.fills != right.fills:
            feasible = self.is_feasible(contract, command.fills)
            reason = RejectReason.CLEARING_NOT_OPTIMAL if feasible else RejectReason.CLEARING_INFEASIBLE
            return [Rejected(reason)]
        if command.prices != right.prices:
            return [Rejected(RejectReason.CLEARING_PRICES_WRONG)]
        lots, collar = sum(fill.lots for fill in right.fills), self.collar(contract)
        events: list[AnyEvent] = [CallCleared(*contract.key, lots, right.prices)]
        prices = {(p.zone, p.carbon, p.security): p.price_ticks for p in right.prices}
        for fill in right.fills:
            bid, ask = self.orders[fill.bid_order_id - 1], self.orders[fill.ask_order_id - 1]
            cell = self.cell(ask)
            price = prices[self.supply_codes(cell)]
            events += self.trade_hourly(bid, ask, price, fill.lots, None)
            contract.call_prices[cell] = price
            contract.tape.pop(cell, None)
            contract.traded.add(cell)
        return [*events, *self.call_over(contract, collar)]

    def is_feasible(self, contract: Contract, fills: Sequence[CallFill]) -> bool:
        """Say whether the fills could happen at all, each pair once and in order."""
        there = {o.number: o for o in self.open_orders() if o.is_hourly and o.contracts == [contract.key]}
        used = dict.fromkeys(there, 0)
        low, high = self.collar(contract) or (1, self.venue.limits.price_max_ticks)
        for fill in fills:
            bid, ask = there.get(fill.bid_order_id), there.get(fill.ask_order_id)
            if bid is None or ask is None or not bid.buys or ask.buys or not self.serves(ask, bid):
                return False
            if ask.price > high or bid.price < low:
                return False
            used[bid.number] += fill.lots
            used[ask.number] += fill.lots
        named = [(fill.bid_order_id, fill.ask_order_id) for fill in fills]
        return (
            named == sorted(set(named))
            and all(fill.lots > 0 for fill in fills)
            and all(used[number] <= order.leaves for number, order in there.items())
        )

    # -- who may meet --------------------------------------------------------------------------------

    def serves(self, ask: TwinOrder, bid: TwinOrder) -> bool:
        return self.cell_serves(self.cell(ask), self.cell(bid))

    def cell_serves(self, supply: Cell, demand: Cell) -> bool:
        venue = self.venue
        need = Requirement(
            venue.zones[demand[0]].code,
            venue.latency_tiers[demand[1]].code,
            venue.carbon_grades[demand[2]].code,
            venue.security_tiers[demand[3]].code,
        )
        return serves(venue, need, *self.supply_codes(supply))

    def supply_codes(self, cell: Cell) -> tuple[str, str, str]:
        """Zone, carbon grade and security tier of a supply cell."""
        venue = self.venue
        zone, carbon, security = cell
        return venue.zones[zone].code, venue.carbon_grades[carbon].code, venue.security_tiers[security].code

    def could_serve(self, site: CertifySite, order: TwinOrder) -> bool:
        """Say whether the best that a site is certified for may serve a bid."""
        need = order.command.requirement
        if need is None or site.class_code != order.command.class_code:
            return False
        return serves(self.venue, need, site.zone, site.carbon, site.security)

    def carbon(self, code: str) -> int:
        return [grade.code for grade in self.venue.carbon_grades].index(code)

    def same_owner(self, one: TwinOrder, other: TwinOrder) -> bool:
        return self.groups[one.command.account] == self.groups[other.command.account]

    # -- accounts and money --------------------------------------------------------------------------

    def suspend(self, command: SuspendAccount) -> list[AnyEvent]:
        if command.account not in self.groups:
            return [Rejected(RejectReason.UNKNOWN_ACCOUNT)]
        if command.account in self.suspended:
            return [Rejected(RejectReason.NOTHING_TO_CHANGE)]
        self.suspended.add(command.account)
        return [AccountSuspended(command.account)]

    def reinstate(self, command: ReinstateAccount) -> list[AnyEvent]:
        if command.account not in self.groups:
            return [Rejected(RejectReason.UNKNOWN_ACCOUNT)]
        if command.account not in self.suspended:
            return [Rejected(RejectReason.NOTHING_TO_CHANGE)]
        self.suspended.remove(command.account)
        return [AccountReinstated(command.account)]

    def deposit(self, command: Deposit) -> list[AnyEvent]:
        if command.amount_micros <= 0:
            return [Rejected(RejectReason.AMOUNT_OUT_OF_RANGE)]
        self.cash[command.account] += command.amount_micros
        return [Deposited(command.account, command.amount_micros)]

    def withdraw(self, command: Withdraw) -> list[AnyEvent]:
        if command.amount_micros > self.cash[command.account]:
            return [Rejected(RejectReason.INSUFFICIENT_FUNDS)]
        self.cash[command.account] -= command.amount_micros
        return [Withdrawn(command.account, command.amount_micros)]

    def worth_of(self, code: str, price: int, lot_hours: int) -> int:
        lot_eighths = self.classes[code].lot_eighths
        worth = Fraction(price * lot_hours * self.venue.currency.tick_micros * lot_eighths, 8)
        assert worth.denominator == 1
        return int(worth)

    def worth(self, pledge: Pledge) -> int:
        """What the trades still to come are worth at most: sales at hand, and the dearest of the rest."""
        if pledge.block_rest is not None:
            return pledge.block_rest
        at_hand = sum(lots for _, lots in pledge.sales)
        rest = 0
        for order in pledge.members:
            lot_hours = max(0, order.leaves - at_hand) * (order.command.hours if order.is_block else 1)
            rest = max(rest, self.worth_of(order.command.class_code, order.price, lot_hours))
        return sum(worth for worth, _ in pledge.sales) + rest

    def needed(self, pledge: Pledge) -> int:
        """What the trades still to come may take: the higher fee, and the money itself or the bond."""
        worth = self.worth(pledge)
        if worth == 0:
            return 0
        fee = pledge.fee + max(self.maker_fee, self.taker_fee) * worth
        bond = pledge.bond + self.bond_rate * worth
        buys = pledge.members[0].buys
        return (worth if buys else ceil(bond) - floor(pledge.bond)) + ceil(fee) - floor(pledge.fee)

    def release(self, pledge: Pledge, account: int) -> int:
        """Give back what is no longer needed."""
        released = pledge.reserved - self.needed(pledge)
        self.reserved[account] -= released
        self.cash[account] += released
        pledge.reserved -= released
        return released

    def end(self, order: TwinOrder, reason: EndReason) -> AnyEvent:
        leaves, account = order.leaves, order.command.account
        order.open, order.shown = [0] * len(order.open), 0
        return OrderEnded(order.number, account, leaves, self.release(order.pledge, account), reason)

    def trade(
        self, bid: TwinOrder, ask: TwinOrder, hour: int, price: int, lots: int, taker: Side | None
    ) -> Traded:
        """Book the money; the orders' quantities show the trade already."""
        code = ask.command.class_code
        notional = self.worth_of(code, price, lots)
        paid: dict[Side, tuple[int, int, int]] = {}
        for order in (bid, ask):
            side, account, pledge = order.command.side, order.command.account, order.pledge
            rate, before = self.taker_fee if taker is side else self.maker_fee, (pledge.fee, pledge.bond)
            # Sold above its limit in a call, an ask without the cash puts up what it would at its limit.
            for basis in (notional, self.worth_of(code, order.price, lots)):
                pledge.fee = before[0] + basis * rate
                pledge.bond = before[1] + (0 if order.buys else basis * self.bond_rate)
                fee, bond = floor(pledge.fee) - floor(before[0]), floor(pledge.bond) - floor(before[1])
                spent = fee + (notional if order.buys else bond)
                left = pledge.reserved - spent - self.needed(pledge)
                if left >= 0 or self.cash[account] + left >= 0:
                    break
            pledge.reserved -= spent
            self.reserved[account] -= spent
            paid[side] = fee, bond, self.release(pledge, account)
            self.committed[account] += notional if order.buys else 0
            self.bonds[account] += bond
            self.fees += fee
            self.account_trades.append((account, self.now // HOUR_NS))
        trade = Traded(
            trade_id=len(self.positions) + 1,
            class_code=code,
            delivery_hour=hour,
            price_ticks=price,
            lots=lots,
            taker=taker,
            bid_order_id=bid.number,
            ask_order_id=ask.number,
            buyer=bid.command.account,
            seller=ask.command.account,
            site=ask.command.site,
            block=bid.number if bid.is_block else 0,
            position=ask.command.position,
            notional_micros=notional,
            buyer_fee_micros=paid[Side.BUY][0],
            buyer_released_micros=paid[Side.BUY][2],
            bond_micros=paid[Side.SELL][1],
            seller_fee_micros=paid[Side.SELL][0],
            seller_released_micros=paid[Side.SELL][2],
        )
        assert ask.command.carbon is not None
        self.positions.append(Position(trade, ask.command.carbon))
        return trade


def in_stretches(lots: Sequence[int], min_hours: int) -> list[int]:
    """Return what of these lots by hour belongs to a stretch of `min_hours` with as many lots open."""
    windows = range(len(lots) - min_hours + 1)
    return [
        max(min(lots[first : first + min_hours]) for first in windows if first <= at < first + min_hours)
        for at in range(len(lots))
    ]


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
