"""The engine does what its slow twin does, whatever comes in: events, money and open orders are the same.

The long search: `HYPOTHESIS_PROFILE=long pytest --timeout 0 tests/test_engine_properties.py`.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange.contract import HOUR_NS, gate_ns
from exchange.engine import Engine
from exchange.funds import VENUE, Purse
from schemas.commands import (
    AnyCommand,
    CancelOrder,
    CertifySite,
    Deposit,
    EnterOrder,
    RegisterAccount,
    Requirement,
    Side,
    Tick,
    TimeInForce,
)
from schemas.events import AnyEvent, BlockTraded, OrderEnded, OrderRepeated, Rejected, Traded
from schemas.reasons import RejectReason
from schemas.records import Decoded
from schemas.venue import Currency, Fees, Limits, Venue
from tests.market import AUTHORITY, FIRST_HOUR, START_NS, open_era
from tests.reference_engine import ReferenceEngine
from tests.small_venue import SMALL_VENUE

SECOND_NS = 1_000_000_000
# Account 3 is of account 1's owner. Money is short, so that funds are refused now and then.
GROUPS = {1: 1, 2: 2, 3: 1, 4: 4}
CASH = {1: 200, 2: 200, 3: 600, 4: 900}
H100, T4 = "H100-SXM", "T4"
SITES = {
    site: CertifySite(
        site, account, zone, code, capacity, carbon, security, 0, FIRST_HOUR + 90, authority=AUTHORITY
    )
    for site, account, zone, code, capacity, carbon, security in (
        (1, 1, "east", H100, 8, "D", "S2"),
        (2, 1, "middle", H100, 7, "C", "S3"),
        (3, 2, "west", H100, 9, "B", "S1"),
        (4, 2, "east", T4, 9, "D", "S2"),
    )
}
REQUIREMENTS = (
    Requirement("east", "L4", "E", "S1"),
    Requirement("east", "L1", "E", "S1"),
    Requirement("middle", "L3", "D", "S1"),
    Requirement("east", "L2", "D", "S2"),
    Requirement("west", "L4", "C", "S1"),
)
# A tick of 8 micros and fees of odd fractions: roundings happen at every trade.
VENUES = tuple(
    msgspec.structs.replace(
        SMALL_VENUE,
        currency=Currency(code="CNY", tick_micros=8),
        limits=Limits(resting_blocks_max=2, open_orders_max=12, block_max_hours=3, price_max_ticks=8),
        fees=Fees(maker_ppm=maker_ppm, taker_ppm=taker_ppm),
        bond_permille=bond_permille,
        horizon_hours=13,
    )
    for maker_ppm, taker_ppm, bond_permille in (
        (123_457, 250_001, 333),
        (300_001, 70_003, 999),
        (0, 0, 0),
    )
)


class Enter(NamedTuple):
    """An order in terms of now: hours after the next gate, seconds ahead; `flaws` replace its fields."""

    side: Side
    account: int
    class_code: str
    site: int
    carbon: str | None
    need: Requirement
    hour: int
    hours: int
    lots: int
    price: int
    time_in_force: TimeInForce
    expires: int
    valid: int
    name: int | None
    flaws: tuple[tuple[str, object], ...]

    def command(self, now: int, number: int) -> EnterOrder:
        buys, site = self.side is Side.BUY, SITES[self.site]
        next_hour = now // HOUR_NS + 1
        if gate_ns(next_hour, SMALL_VENUE.gate_seconds) <= now:
            next_hour += 1
        command = EnterOrder(
            account=self.account if buys else site.account,
            client_order_id=f"o{number if self.name is None else self.name}",
            valid_until_ns=now + self.valid * SECOND_NS,
            side=self.side,
            class_code=self.class_code if buys else site.class_code,
            delivery_hour=next_hour + self.hour,
            hours=self.hours if buys else 1,
            lots=self.lots,
            price_ticks=self.price,
            time_in_force=self.time_in_force,
            expire_ns=now + self.expires * SECOND_NS if self.time_in_force is TimeInForce.GTD else 0,
            requirement=self.need if buys else None,
            site=0 if buys else self.site,
            carbon=None if buys else self.carbon or site.carbon,
        )
        return msgspec.structs.replace(command, **dict(self.flaws))


FLAWS: tuple[tuple[tuple[str, object], ...], ...] = (
    (("price_ticks", 0),),
    (("price_ticks", 9),),
    (("lots", -1),),
    (("hours", 4),),
    (("expire_ns", 1),),
    (("expire_ns", 2**62),),
    (("time_in_force", TimeInForce.GTD), ("expire_ns", 0)),
    (("valid_until_ns", 0),),
    (("valid_until_ns", 2**62),),
    (("delivery_hour", 0),),
    (("delivery_hour", FIRST_HOUR + 20),),
)


class Again(NamedTuple):
    """The Nth entry from the end once more, as it was or for another price."""

    back: int
    raise_ticks: int


class Cancel(NamedTuple):
    """Cancel by number counted from the last order, or by the client's name."""

    account: int
    back: int
    name: int


class Wait(NamedTuple):
    """Let seconds pass, or go to the next gate that is ahead."""

    seconds: int


class Fund(NamedTuple):
    """Deposit a little money."""

    account: int
    amount_micros: int


Step = Enter | Again | Cancel | Wait | Fund


Choose = Callable[[Sequence[Any]], Any]


def entries(choose: Choose) -> Enter:
    """An order that is mostly sensible, every part of it chosen by `choose`."""
    rarely = choose(range(12)) == 11
    return Enter(
        side=choose((Side.BUY, Side.SELL)),
        account=choose((4, 4, 3, 2)),
        class_code=choose((H100, H100, H100, T4)),
        site=choose((1, 2, 3, 4)),
        carbon=choose((None, None, "E", "B")) if rarely else choose((None, "E")),
        need=choose(REQUIREMENTS),
        hour=choose((0, 0, 0, 1, 1, 2)),
        hours=choose((1, 1, 2, 2, 3)),
        lots=choose((1, 2, 3)),
        price=choose((2, 3, 4, 5)),
        time_in_force=choose((TimeInForce.GTC, TimeInForce.GTC, TimeInForce.GTD, TimeInForce.IOC)),
        expires=choose((60, 3600)),
        valid=choose((600, 300, 0)),
        name=choose(range(40)) if rarely else None,
        flaws=choose(FLAWS) if rarely else (),
    )


def any_step(choose: Choose) -> Step:
    match choose((*["enter"] * 20, "again", "cancel", "cancel by name", "wait", "to what is due", "fund")):
        case "again":
            return Again(choose((1, 2, 3, 4)), choose((0, 0, 1)))
        case "cancel":
            return Cancel(choose((4, 3, 2, 1)), choose(range(6)), -1)
        case "cancel by name":
            return Cancel(choose((4, 3, 2, 1)), 0, choose(range(40)))
        case "wait":
            return Wait(choose((1, 61, 301, 601, 3600)))
        case "to what is due":
            return Wait(-1)
        case "fund":
            return Fund(choose(tuple(CASH)), choose((1000, 300, 1)))
        case _:
            return entries(choose)


@st.composite
def steps(draw: st.DrawFn) -> Step:
    return any_step(lambda choices: draw(st.sampled_from(choices)))


# Lists of lists: long on average, and still cut down to the shortest failing one.
STEPS = st.lists(st.lists(steps(), max_size=12), max_size=12)


class Flow:
    """A small market in which steps become commands; every state is checked."""

    def __init__(self, venue: Venue) -> None:
        self.engine = Engine()
        self.now = START_NS
        self.entered: list[EnterOrder] = []
        self.deposited = 0
        self.records: list[Decoded] = []
        opening: list[AnyCommand] = [open_era(venue=venue)]
        opening += [RegisterAccount(account, group, authority=AUTHORITY) for account, group in GROUPS.items()]
        for command in (*opening, *SITES.values()):
            events = self.engine.apply(START_NS, command)
            assert not isinstance(events[0], Rejected)
            self.records.append(Decoded(len(self.records) + 1, START_NS, command, tuple(events)))
        for account, amount in CASH.items():
            self.do(Fund(account, amount))

    def do(self, step: Step) -> Decoded:
        """Do the step and return its record."""
        command = self.command(step)
        events = self.engine.apply(self.now, command)
        if isinstance(step, Fund):
            self.deposited += step.amount_micros
        self.engine.check()
        self.records.append(Decoded(len(self.records) + 1, self.now, command, tuple(events)))
        return self.records[-1]

    def command(self, step: Step) -> AnyCommand:
        match step:
            case Enter():
                self.entered.append(step.command(self.now, len(self.entered)))
                return self.entered[-1]
            case Again(back, raise_ticks):
                if back > len(self.entered):
                    return Tick()
                old = self.entered[-back]
                return msgspec.structs.replace(old, price_ticks=old.price_ticks + raise_ticks)
            case Cancel(account, back, name):
                if name < 0:
                    return CancelOrder(account, self.engine.last_order_id - back)
                return CancelOrder(account, client_order_id=f"o{name}")
            case Wait(seconds):
                self.now += seconds * SECOND_NS
                if seconds < 0:
                    self.now = self.engine.next_due_ns() or self.now - seconds * SECOND_NS
                return Tick()
            case Fund(account, amount):
                # Signed anew each time: the same signed act is not done twice.
                signed = msgspec.structs.replace(AUTHORITY, signed_ns=START_NS + len(self.records))
                return Deposit(account, amount, authority=signed)


class Pair(Flow):
    """The engine and its twin, told the same and compared after every command."""

    def __init__(self, venue: Venue) -> None:
        self.twin = ReferenceEngine(venue, GROUPS, SITES)
        self.seen: Counter[str] = Counter()
        super().__init__(venue)

    def do(self, step: Step) -> Decoded:
        record = super().do(step)
        assert essentials(record.events) == self.twin.apply(record.time_ns, record.command)
        self.compare_state()
        self.seen.update(kind for event in record.events for kind in kinds(event))
        return record

    def compare_state(self) -> None:
        engine, twin = self.engine, self.twin
        assert {
            number: (order.leaves_lots, order.filled_lots, order.reserved_micros)
            for account in engine.accounts.values()
            for number, order in account.open_orders.items()
        } == {o.number: (o.leaves, o.filled, o.reserved) for o in twin.open_orders()}
        expected = {(VENUE, Purse.BANK): -self.deposited, (VENUE, Purse.FEES): twin.fees}
        for purse, held in (
            (Purse.CASH, twin.cash),
            (Purse.RESERVED, twin.reserved),
            (Purse.COMMITTED, twin.committed),
            (Purse.BOND, twin.bonds),
        ):
            expected |= {(account, purse): amount for account, amount in held.items()}
        assert engine.balances() == {key: amount for key, amount in expected.items() if amount}


def essentials(events: Sequence[AnyEvent]) -> list[AnyEvent]:
    """The events without the words of a refusal, which are tested in test_rejects.py."""
    return [Rejected(event.reason) if isinstance(event, Rejected) else event for event in events]


def kinds(event: AnyEvent) -> list[str]:
    match event:
        case Rejected():
            return [event.reason.name]
        case OrderEnded():
            return [event.reason]
        case BlockTraded():
            return ["block traded"]
        case Traded():
            return [f"{event.taker} took"]
        case OrderRepeated():
            return ["repeated"]
        case _:
            return []


@given(terms=st.integers(0, len(VENUES) - 1), steps=STEPS)
@settings(max_examples=max(200, settings().max_examples))
def test_engine_and_twin_agree_on_any_commands(terms: int, steps: list[list[Step]]) -> None:
    pair = Pair(VENUES[terms])
    for step in chain.from_iterable(steps):
        pair.do(step)


DAYS, DAY_STEPS = max(45, settings().max_examples // 25), 300


def test_engine_and_twin_agree_on_long_days_in_which_everything_happens() -> None:
    seen: Counter[str] = Counter()
    for seed in range(DAYS):
        pair = Pair(VENUES[seed % len(VENUES)])
        choose = random.Random(seed).choice
        try:
            for _ in range(DAY_STEPS):
                pair.do(any_step(choose))
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise
        seen += pair.seen
    wanted = {"buy took", "sell took", "block traded", "repeated"}
    wanted |= {"requested", "immediate", "expired", "gate", "self_trade", "evicted"}
    wanted |= {
        reason.name
        for reason in (
            RejectReason.DUPLICATE_ORDER_ID,
            RejectReason.UNKNOWN_ORDER,
            RejectReason.CAPACITY_EXCEEDED,
            RejectReason.INSUFFICIENT_FUNDS,
            RejectReason.TOO_MANY_OPEN_ORDERS,
            RejectReason.TOO_MANY_RESTING_BLOCKS,
            RejectReason.GRADE_NOT_CERTIFIED,
        )
    }
    assert not wanted - set(seen), f"these never happened: {wanted - set(seen)}"
