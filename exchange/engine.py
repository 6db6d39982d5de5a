"""The engine: a pure function of the log. `apply(time, command)` returns the events; nothing else happens.

No clock, no randomness, no input or output, no floats, no iteration over sets.
"""

import hashlib
from heapq import heappop, nsmallest

from exchange import slots
from exchange.auction import CallBook
from exchange.blocks import eligible_sites, plan_block, reduce_run, trade_block
from exchange.book import CLEARING
from exchange.build import rules_digest
from exchange.calls import call_book, call_is_due, end_call, propose
from exchange.entry import cancel_order, enter, replace_order
from exchange.invariants import check
from exchange.market import (
    DUE_CALL,
    DUE_GATE,
    DUE_LISTING,
    PHASES,
    Events,
    Market,
    Refusal,
    refuse,
)
from exchange.order import Order
from exchange.registry import Registry
from exchange.standing import cancel_offer, enter_offer, list_offer, listing_is_due, replace_offer
from exchange.state import balances, encoded_state, restore
from schemas.commands import (
    AnyCommand,
    CancelStandingOffer,
    EndCall,
    EnterStandingOffer,
    ListStandingOffer,
    MassCancel,
    OpenEra,
    OperatorCommand,
    PostSettlement,
    ProposeClearing,
    ReplaceStandingOffer,
    RetryBlock,
    Side,
    Tick,
)
from schemas.events import (
    AnyEvent,
    BlockRetried,
    ContractClosed,
    EndReason,
    EraOpened,
    OrdersCanceled,
    Phase,
    Rejected,
)
from schemas.reasons import RejectReason
from schemas.venue import Venue

ENGINE_DIGEST = rules_digest()
"""SHA-256 of the modules that decide; an era names the one that made it."""

EMPTY_STATE = hashlib.sha256(b"").digest()
"""The state hash before the first era."""


class Engine:
    """The market's state. Before `OpenEra` every other command is misuse."""

    def __init__(self) -> None:
        self.venue: Venue | None = None
        self.market = Market()
        self.registry = Registry()

    # -- the one entrance ----------------------------------------------------------------------------

    def apply(self, time_ns: int, command: AnyCommand) -> list[AnyEvent]:
        """Return what the command causes at `time_ns`: first what was due by then, then its answer.

        Raises:
            ValueError: no era is open, or time runs backwards; the state is unchanged.
        """
        return [slots.told(event) for event in self.execute(time_ns, slots.taken(command))]

    def execute(self, time_ns: int, command: object) -> Events:
        """Do as `apply`, with commands and events as `exchange.slots` has them.

        Raises:
            ValueError: no era is open, or time runs backwards; the state is unchanged.
        """
        market = self.market
        if time_ns < market.time_ns:
            raise ValueError(f"time {time_ns} is before {market.time_ns}")
        if self.venue is None:
            if not isinstance(command, OpenEra):
                raise ValueError("the first command of a log is open_era")
            market.first_ns = time_ns
            market.time_ns = time_ns
            return self._open_era(command)
        done: Events | None = None
        if time_ns >= market.next_due_ns:
            done = self._do_due(time_ns)
        if time_ns >= market.turns_ns or time_ns > market.next_forget_ns:
            market.pass_time(time_ns)
        else:
            market.time_ns = time_ns
        try:
            if isinstance(command, slots.EnterOrder):
                answer = enter(market, command)
            elif isinstance(command, slots.CancelOrder):
                answer = cancel_order(market, command)
            elif isinstance(command, slots.ReplaceOrder):
                answer = replace_order(market, command)
            else:
                answer = self._dispatch(command)
        except Refusal as refusal:
            answer = [refusal.event]
        return done + answer if done else answer

    def _dispatch(self, command: object) -> Events:
        market = self.market
        match command:
            case Tick():
                return []
            case PostSettlement():
                return self.registry.post(market, command)
            case MassCancel():
                return self._mass_cancel(command)
            case RetryBlock():
                return self._retry_block(command.order_id)
            case EndCall():
                return end_call(market, command)
            case ProposeClearing():
                return propose(market, command)
            case EnterStandingOffer():
                return enter_offer(market, command)
            case ReplaceStandingOffer():
                return replace_offer(market, command)
            case CancelStandingOffer():
                return cancel_offer(market, command)
            case ListStandingOffer():
                return list_offer(market, command.offer_id)
            case OperatorCommand():
                return self.registry.act(market, command)
            case OpenEra():
                return self._open_era(command)
            case _:
                raise AssertionError(command)

    def _open_era(self, command: OpenEra) -> Events:
        zones = [zone.code for zone in command.venue.zones]
        # Its parts are checked where a catalogue is read; only this would stop the engine.
        if any(trip.a not in zones or trip.b not in zones for trip in command.venue.round_trips):
            return [Rejected(RejectReason.UNKNOWN_ZONE, "venue.round_trips", "zones of the venue")]
        if self.venue is None:
            self.venue = command.venue
            self.market.take_over(command.venue)
            self.market.pass_time(self.market.time_ns)
        elif self.venue != command.venue:
            return [Rejected(RejectReason.VENUE_MISMATCH, "venue", "the catalogue in force")]
        self.registry.operator_keys = command.operator_keys
        return [EraOpened()]

    # -- what the sequencer asks -----------------------------------------------------------------------

    @property
    def time_ns(self) -> int:
        """When the last command was applied."""
        return self.market.time_ns

    def next_due_ns(self) -> int | None:
        """Return when the next work falls due, None if there is none."""
        return self.market.due[0][0] if self.market.due else None

    def chores(self, most: int = 2**31) -> list[AnyCommand]:
        """Return the commands that are to follow at once, the first `most`: retries of blocks, listings."""
        retries, listings = self.market.pending_retries, self.market.pending_listings
        if not retries and not listings:
            return []
        found: list[AnyCommand] = [RetryBlock(order_id) for order_id in nsmallest(most, retries)]
        found += [ListStandingOffer(offer_id) for offer_id in nsmallest(most - len(found), listings)]
        return found

    def calls(self) -> list[tuple[str, int, int, bool]]:
        """Return class, hour and start of every contract in a call, and whether it waits for its clearing."""
        return [
            (book.class_code, book.hour, book.phase_since_ns, book.phase == CLEARING)
            for book in self.market.in_call.values()
        ]

    def call_book(self, class_code: str, hour: int) -> CallBook:
        """Return what takes part in the call of a contract that has one."""
        return call_book(self.market, self.market.classes[class_code].books[hour])

    def phase(self, class_code: str, hour: int) -> Phase:
        """Return the phase of a contract that is listed and not closed."""
        return PHASES[self.market.phase_of(self.market.classes[class_code], hour)]

    # -- commands of several orders ------------------------------------------------------------------

    def _mass_cancel(self, command: MassCancel) -> Events:
        account = self.market.account(command.account)
        class_code, hour, side = command.class_code, command.delivery_hour, command.side
        found = list(account.client_orders.values())
        for offer in self.market.listings.values():
            if offer.account is account:
                found += list(offer.open_orders.values())
        found = [
            order
            for order in found
            if order.leaves_lots
            and (class_code is None or order.book.class_code == class_code)
            and (hour is None or order.hour <= hour < order.hour + order.hours)
            and (side is None or order.is_bid == (side is Side.BUY))
        ]
        if not found:
            refuse(RejectReason.UNKNOWN_ORDER, "account", "open orders that it names")
        events: Events = [OrdersCanceled(account.account, len(found))]
        return events + self.market.end_all(found, EndReason.REQUESTED)

    def _retry_block(self, order_id: int) -> Events:
        market = self.market
        if order_id not in market.pending_retries:
            refuse(RejectReason.NOTHING_TO_CHANGE, "order_id", "a block whose retry is pending")
        del market.pending_retries[order_id]
        block = market.orders.get(order_id)
        assert block is not None
        events: Events = [BlockRetried(order_id)]
        plan = plan_block(market, block, eligible_sites(block))
        if plan is not None:
            trade_block(market, block, plan, events)
        return events

    # -- due work --------------------------------------------------------------------------------------

    def _do_due(self, time_ns: int) -> Events:
        market = self.market
        events: Events = []
        while market.due and market.due[0][0] <= time_ns:
            due_ns, kind, number = heappop(market.due)
            # What is due happens at its own time: what it starts is counted from there.
            market.pass_time(max(due_ns, market.time_ns))
            if kind == DUE_GATE:
                events += self._close_gate(number)
            elif kind == DUE_CALL:
                events += call_is_due(market, number // 1024, number % 1024, due_ns)
            elif kind == DUE_LISTING:
                listing_is_due(market, number)
            else:
                order = market.orders.get(number)
                if order is not None:
                    events.append(market.end(order, EndReason.EXPIRED))
        market.set_next_due()
        return events

    def _close_gate(self, hour: int) -> Events:
        market = self.market
        events: Events = []
        del market.gates[hour]
        for listed in market.class_list:
            book = listed.books.get(hour)
            if book is not None:
                events.append(ContractClosed(listed.code, hour))
                events += market.end_all(book.resting() + list(book.blocks.values()), EndReason.GATE)
                market.in_call.pop((listed.code, hour), None)
                listed.forget(hour)
            runs: list[Order] = []
            for site in listed.sites:
                runs += [run for run in site.runs.values() if run.hour <= hour < run.hour + run.hours]
            for run in sorted(runs, key=_by_id):
                lots = run.run_lots
                assert lots is not None
                if lots[hour - run.hour]:
                    left = list(lots)
                    left[hour - run.hour] = 0
                    reduce_run(market, run, left, EndReason.GATE, events)
            for site in listed.sites:
                site.forget(hour)
        return events

    # -- state -----------------------------------------------------------------------------------------

    def encoded_state(self) -> bytes:
        """Return the whole state, the same bytes in every process that applied the same log."""
        return b"" if self.venue is None else encoded_state(self.venue, self.market, self.registry)

    def state_hash(self) -> bytes:
        """Return the SHA-256 of the encoded state."""
        return hashlib.sha256(self.encoded_state()).digest()

    @property
    def orders(self) -> dict[int, Order]:
        """Every open order by number."""
        return {order.order_id: order for order in self.market.orders.all()}

    def balances(self) -> dict[tuple[int, int], int]:
        """Return every purse that is not empty, by account and purse, in millionths."""
        return balances(self.market)

    def check(self) -> None:
        """Assert the invariants of the whole state; slow."""
        check(self.market)


def restored(state: bytes) -> Engine:
    """Return an engine in that state, which answers ever after as the one that encoded it.

    Raises:
        msgspec.DecodeError: the bytes are no state of this format.
    """
    engine = Engine()
    engine.venue = restore(state, engine.market, engine.registry)
    return engine


def _by_id(order: Order) -> int:
    return order.order_id
