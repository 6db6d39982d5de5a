"""What the gateway knows: made from durable records alone, and made again from them after a restart."""

from collections.abc import Callable

from exchange.contract import HOUR_NS, gate_ns
from exchange.depth import Changes, Depth
from exchange.funds import Purse, transfers
from exchange.quantity import gpus_of, money_of, price_of
from schemas.commands import (
    AnyCommand,
    CertifySite,
    DerateSite,
    EnterOrder,
    EnterStandingOffer,
    OpenEra,
    OrderType,
    RegisterKey,
    ReplaceStandingOffer,
    Scope,
    Side,
)
from schemas.events import (
    AnyEvent,
    BlockTraded,
    ContractClosed,
    KeyRegistered,
    ListingSkipped,
    OrderAccepted,
    OrderEnded,
    OrderListed,
    OrderReduced,
    OrderReplaced,
    Phase,
    PhaseChanged,
    SiteCertified,
    SiteDerated,
    StandingOfferEnded,
    StandingOfferEntered,
    StandingOfferListed,
    StandingOfferReplaced,
    Traded,
)
from schemas.records import Decoded
from schemas.venue import Venue
from schemas.wire import ContractPhase, Fill, Funds, OfferResult, OrderResult, SkippedHour


def _unheard(_account: int, _what: object) -> None:
    """Nobody listens."""


class OfferState:
    """A standing offer's life so far."""

    __slots__ = (
        "command",
        "end_reason",
        "listed_until_hour",
        "lots",
        "offer_id",
        "open_orders",
        "price_curve",
        "skipped",
    )

    def __init__(self, offer_id: int, command: EnterStandingOffer) -> None:
        self.offer_id = offer_id
        self.command = command
        self.lots = command.lots
        self.price_curve = command.price_curve
        self.listed_until_hour = 0
        self.open_orders = 0
        self.skipped: list[ListingSkipped] = []
        self.end_reason: str | None = None


class OrderState:
    """An order's life so far. `leaves_lots` and `filled_lots` of a run are lot-hours."""

    __slots__ = (
        "command",
        "end_reason",
        "filled_lots",
        "fills",
        "leaves_lots",
        "lots",
        "offer",
        "order_id",
        "price_ticks",
        "run_lots",
    )

    def __init__(self, order_id: int, command: EnterOrder, offer: OfferState | None = None) -> None:
        self.order_id = order_id
        self.command = command
        self.offer = offer
        self.lots = command.lots
        self.price_ticks = command.price_ticks
        self.run_lots = [command.lots] * command.hours if self.is_run else []
        self.leaves_lots = command.lots * command.hours if self.is_run else command.lots
        self.filled_lots = 0
        self.end_reason: str | None = None
        self.fills: list[Fill] = []

    @property
    def is_run(self) -> bool:
        """Whether it sells windows of several hours."""
        return self.command.side is Side.SELL and self.command.hours > 1

    @property
    def client_order_id(self) -> str:
        """The client's id, empty for what a standing offer listed."""
        return "" if self.offer is not None else self.command.client_order_id


class AccountState:
    """An account's money, orders by either id, those of them that are open, fills by trade id, offers."""

    def __init__(self) -> None:
        self.purses = [0] * (max(Purse) + 1)
        self.orders: dict[int, OrderState] = {}
        self.by_client_id: dict[str, OrderState] = {}
        self.open_orders: dict[int, OrderState] = {}
        self.fills: list[Fill] = []
        self.offers: dict[int, OfferState] = {}


class State:
    """The gateway's projection.

    `on_fill` hears of each fill; `on_order`, after a record, of the orders that it entered, changed
    otherwise than by a fill in part, or ended.
    """

    def __init__(self) -> None:
        self.sequence = 0
        self.time_ns = 0
        self.era: OpenEra | None = None
        self.depth = Depth()
        self.keys: dict[bytes, tuple[int, tuple[Scope, ...]]] = {}
        self.accounts: dict[int, AccountState] = {}
        self.sites: dict[int, CertifySite] = {}
        self.deratings: dict[int, list[DerateSite]] = {}
        self.counts: dict[str, int] = {}
        self.on_fill: Callable[[int, Fill], None] = _unheard
        self.on_order: Callable[[int, OrderState], None] = _unheard
        self._first_era_ns = 0
        self._orders: dict[int, OrderState] = {}
        self._offers: dict[int, OfferState] = {}
        self._phases: dict[tuple[str, int], Phase] = {}
        self._touched: dict[int, OrderState] = {}

    @property
    def venue(self) -> Venue:
        """The catalogue of the running era."""
        assert self.era is not None, "no era is open"
        return self.era.venue

    def account(self, number: int) -> AccountState:
        """Return the account's state; empty for one that nothing happened to."""
        found = self.accounts.get(number)
        if found is None:
            found = self.accounts[number] = AccountState()
        return found

    def apply(self, record: Decoded) -> Changes:
        """Take in the next record and return the depth that changed."""
        assert record.sequence == self.sequence + 1, (record.sequence, self.sequence)
        self.sequence, self.time_ns = record.sequence, record.time_ns
        command = record.command
        if isinstance(command, OpenEra):
            self.era = command
            self._first_era_ns = self._first_era_ns or record.time_ns
            self.lot_eighths = {c.code: c.lot_eighths for c in command.venue.classes}
            self.tick_micros = command.venue.currency.tick_micros
        submitter = command.account if isinstance(command, EnterOrder) else 0
        changes = self.depth.apply(record)
        for event in record.events:
            self._count(event)
            for debit, debit_purse, credit, credit_purse, amount in transfers(submitter, event):
                self.account(debit).purses[debit_purse] -= amount
                self.account(credit).purses[credit_purse] += amount
            match event:
                case OrderAccepted():
                    assert isinstance(command, EnterOrder)
                    order = OrderState(event.order_id, command)
                    self.account(command.account).by_client_id[command.client_order_id] = order
                    self._entered(order)
                case OrderListed():
                    offer = self._offers[event.offer_id]
                    offer.open_orders += 1
                    self._entered(OrderState(event.order_id, event.order, offer))
                case OrderReplaced():
                    self._replaced(event)
                case OrderReduced():
                    self._reduced(event)
                case Traded():
                    self._traded(event, record.time_ns)
                case BlockTraded():
                    for leg in event.legs:
                        self._traded(leg, record.time_ns)
                    block = self._orders[event.order_id]
                    block.filled_lots, block.leaves_lots = block.leaves_lots, 0
                    self._over(block)
                case OrderEnded():
                    order = self._orders[event.order_id]
                    order.leaves_lots, order.run_lots = 0, [0] * len(order.run_lots)
                    order.end_reason = event.reason
                    self._over(order)
                case KeyRegistered():
                    assert isinstance(command, RegisterKey)
                    self.keys[command.key] = (command.account, command.scopes)
                case SiteCertified():
                    assert isinstance(command, CertifySite)
                    self.sites[command.site] = command
                case SiteDerated():
                    assert isinstance(command, DerateSite)
                    self._derated(command)
                case PhaseChanged():
                    self._phases[event.class_code, event.delivery_hour] = event.phase
                case ContractClosed():
                    self._phases.pop((event.class_code, event.delivery_hour), None)
                case (
                    StandingOfferEntered()
                    | StandingOfferReplaced()
                    | StandingOfferListed()
                    | ListingSkipped()
                    | StandingOfferEnded()
                ):
                    self._offered(command, event)
        touched, self._touched = self._touched, {}
        for order in touched.values():
            self.on_order(order.command.account, order)
        return changes

    def _count(self, event: AnyEvent) -> None:
        name = type(event).__name__
        self.counts[name] = self.counts.get(name, 0) + 1

    def _entered(self, order: OrderState) -> None:
        account = self.account(order.command.account)
        account.orders[order.order_id] = account.open_orders[order.order_id] = order
        self._orders[order.order_id] = self._touched[order.order_id] = order

    def _replaced(self, event: OrderReplaced) -> None:
        order = self._touched[event.order_id] = self._orders[event.order_id]
        if order.is_run:
            # The same to every hour that is not yet closed makes no stretch shorter.
            first = order.command.delivery_hour
            order.run_lots = [
                0 if self._closed(hour) else max(0, lots + event.lots - order.lots)
                for hour, lots in enumerate(order.run_lots, first)
            ]
        order.lots, order.price_ticks, order.leaves_lots = event.lots, event.price_ticks, event.leaves_lots

    def _reduced(self, event: OrderReduced) -> None:
        order = self._touched[event.order_id] = self._orders[event.order_id]
        order.leaves_lots, order.run_lots = event.leaves_lots, list(event.run_lots)
        if not order.is_run:
            order.lots -= event.lots

    def _derated(self, command: DerateSite) -> None:
        now = self.time_ns // HOUR_NS
        known = [one for one in self.deratings.get(command.site, []) if one.until_hour > now]
        self.deratings[command.site] = [*known, command]

    def _offered(self, command: AnyCommand, event: AnyEvent) -> None:
        match event:
            case StandingOfferEntered():
                assert isinstance(command, EnterStandingOffer)
                offer = self._offers[event.offer_id] = OfferState(event.offer_id, command)
                self.account(event.account).offers[event.offer_id] = offer
            case StandingOfferReplaced():
                assert isinstance(command, ReplaceStandingOffer)
                offer = self._offers[event.offer_id]
                offer.lots, offer.price_curve = command.lots, command.price_curve
                offer.listed_until_hour, offer.skipped, offer.end_reason = 0, [], None
            case StandingOfferListed():
                offer = self._offers[event.offer_id]
                offer.listed_until_hour = event.until_hour
                # What is past need not be told for ever.
                now = self.time_ns // HOUR_NS
                offer.skipped = [one for one in offer.skipped if one.delivery_hour >= now]
            case ListingSkipped():
                self._offers[event.offer_id].skipped.append(event)
            case StandingOfferEnded():
                self._offers[event.offer_id].end_reason = event.reason

    def _traded(self, trade: Traded, time_ns: int) -> None:
        for order_id, fee in (
            (trade.bid_order_id, trade.buyer_fee_micros),
            (trade.ask_order_id, trade.seller_fee_micros),
        ):
            order = self._orders[order_id]
            command = order.command
            fill = Fill(
                trade_id=trade.trade_id,
                order_id=order_id,
                client_order_id=order.client_order_id,
                side=command.side,
                class_code=trade.class_code,
                delivery_start=trade.delivery_hour * HOUR_NS,
                gpus=gpus_of(trade.lots, self.lot_eighths[trade.class_code]),
                price=price_of(trade.price_ticks, self.tick_micros),
                fee=money_of(fee),
                site=trade.site,
                block=trade.block,
                position=trade.position if command.side is Side.SELL else 0,
                time=time_ns,
            )
            order.fills.append(fill)
            self.account(command.account).fills.append(fill)
            self.on_fill(command.account, fill)
            if command.side is Side.SELL or not trade.block:
                order.leaves_lots -= trade.lots
                order.filled_lots += trade.lots
                if order.is_run:
                    order.run_lots[trade.delivery_hour - command.delivery_hour] -= trade.lots
                if order.leaves_lots == 0:
                    self._over(order)

    def _over(self, order: OrderState) -> None:
        self._touched[order.order_id] = order
        del self._orders[order.order_id]
        del self.account(order.command.account).open_orders[order.order_id]
        if order.offer is not None:
            order.offer.open_orders -= 1

    # -- as it is told ---------------------------------------------------------------------------------

    def phase(self, class_code: str, hour: int) -> ContractPhase:
        """Return what the contract takes, also if nothing was entered in it and it tells of no phase."""
        if self._closed(hour):
            return "closed"
        known = self._phases.get((class_code, hour))
        if known is not None:
            return known.value
        calls, listed_ns = self.venue.calls, (hour - self.venue.horizon_hours) * HOUR_NS
        if not calls.opening or listed_ns <= self._first_era_ns:
            return "continuous"
        age_seconds = (self.time_ns - listed_ns) // 1_000_000_000
        if age_seconds < calls.pre_open_seconds:
            return "pre_open"
        return "call" if age_seconds < calls.pre_open_seconds + calls.max_seconds else "continuous"

    def _closed(self, hour: int) -> bool:
        return self.time_ns >= gate_ns(hour, self.venue.gate_seconds)

    def _phase_of(self, command: EnterOrder) -> ContractPhase:
        hours = range(command.delivery_hour, command.delivery_hour + command.hours)
        phases = [self.phase(command.class_code, hour) for hour in hours]
        # Of a run the first hours close before the last.
        return next((one for one in phases if one not in {"continuous", "closed"}), phases[-1])

    def order_result(self, order: OrderState) -> OrderResult:
        """Return the order as its owner sees it."""
        command = order.command
        lot = self.lot_eighths[command.class_code]
        ended = order.end_reason is not None
        market = command.order_type is OrderType.MARKET
        depth = self.depth.orders.get(order.order_id) if command.display_lots else None
        return OrderResult(
            order_id=order.order_id,
            client_order_id=order.client_order_id,
            status="canceled" if ended else "filled" if order.leaves_lots == 0 else "open",
            side=command.side,
            class_code=command.class_code,
            delivery_start=command.delivery_hour * HOUR_NS,
            hours=command.hours,
            gpus=gpus_of(order.lots, lot),
            price=None if market else price_of(order.price_ticks, self.tick_micros),
            filled_gpus=gpus_of(order.filled_lots, lot),
            leaves_gpus=gpus_of(order.leaves_lots, lot),
            shown_gpus=None if depth is None else gpus_of(depth.shown_lots, lot),
            run_gpus=tuple(gpus_of(lots, lot) for lots in order.run_lots),
            exclusive_group=command.exclusive_group,
            offer_id=order.offer.offer_id if order.offer is not None else 0,
            phase=self._phase_of(command),
            end_reason=order.end_reason,
            fills=tuple(order.fills),
        )

    def offer_result(self, offer: OfferState) -> OfferResult:
        """Return the standing offer as its owner sees it."""
        command = offer.command
        return OfferResult(
            offer_id=offer.offer_id,
            name=command.name,
            status="listing" if offer.end_reason is None else "ended",
            side=command.side,
            class_code=command.class_code,
            from_time=command.from_hour * HOUR_NS,
            until_time=command.until_hour * HOUR_NS,
            hours=command.hours,
            gpus=gpus_of(offer.lots, self.lot_eighths[command.class_code]),
            price_curve=tuple(price_of(ticks, self.tick_micros) for ticks in offer.price_curve),
            listed_until=offer.listed_until_hour * HOUR_NS,
            open_orders=offer.open_orders,
            skipped=tuple(
                SkippedHour(
                    delivery_start=one.delivery_hour * HOUR_NS,
                    reason=one.reason,
                    field=one.field,
                    allowed=one.allowed,
                )
                for one in offer.skipped
            ),
            end_reason=offer.end_reason,
        )

    def funds(self, number: int) -> Funds:
        """Return where the account's money is."""
        purses = self.account(number).purses
        return Funds(
            number,
            money_of(purses[Purse.CASH]),
            money_of(purses[Purse.RESERVED]),
            money_of(purses[Purse.COMMITTED]),
            money_of(purses[Purse.BOND]),
        )
