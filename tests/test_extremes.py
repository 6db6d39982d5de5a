"""Every number of every command at its extremes: `apply` is total, and a refusal changes nothing."""

from collections.abc import Iterator
from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from exchange.contract import HOUR_NS
from exchange.engine import Engine
from schemas.codec import encode
from schemas.commands import (
    AnyCommand,
    CallFill,
    CancelOrder,
    CancelStandingOffer,
    CellPrice,
    CertifySite,
    CorrectClock,
    Deposit,
    DerateSite,
    EndCall,
    EnterStandingOffer,
    HaltContract,
    ListStandingOffer,
    MassCancel,
    OpenEra,
    OrderType,
    PostSettlement,
    ProposeClearing,
    ReceiveReadings,
    RegisterAccount,
    RegisterKey,
    ReinstateAccount,
    ReplaceOrder,
    ReplaceStandingOffer,
    Requirement,
    ResumeContract,
    RetryBlock,
    Scope,
    Side,
    StartSettlementRun,
    SuspendAccount,
    Tick,
    TimeInForce,
    Withdraw,
)
from schemas.events import OrderRepeated, Rejected
from tests.market import (
    AUTHORITY,
    BUYER,
    CLASS,
    EAST,
    FIRST_HOUR,
    MIDDLE,
    OTHER_BUYER,
    SELLER,
    START_NS,
    VENUES,
    ask,
    bid,
    opening,
)

EXTREMES = (0, -1, 1, 2**31, 2**62, 2**63 - 1, -(2**63))
NOW = (FIRST_HOUR + 1) * HOUR_NS
"""The first delivery hour is over: its trade may be settled. The call to be cleared began a minute before."""
MINUTE = 60 * 10**9
UNTIL = NOW + 9 * MINUTE
LATE = {"valid_until_ns": UNTIL}
NEXT, IN_CALL, CLEARING, HALTED = FIRST_HOUR + 3, FIRST_HOUR + 6, FIRST_HOUR + 7, FIRST_HOUR + 8
NEED = Requirement("east", "L4", "E", "S1")


def offer_of(side: Side, **changes: object) -> EnterStandingOffer:
    fields: dict[str, object] = {
        "account": BUYER,
        "name": "a bid",
        "side": side,
        "class_code": CLASS,
        "from_hour": NEXT,
        "until_hour": NEXT + 4,
        "lots": 1,
        "price_curve": (100,),
        "requirement": NEED,
        **LATE,
    }
    return EnterStandingOffer(**{**fields, **changes})  # type: ignore[arg-type]


A_BID = offer_of(Side.BUY)
OF_RUNS = offer_of(
    Side.SELL,
    name="runs",
    account=SELLER,
    hours=2,
    min_hours=1,
    requirement=None,
    site=EAST,
    carbon="E",
)

# An order of every kind, a trade, a settlement run, a block to be retried, calls, an offer that lists.
BEFORE: tuple[AnyCommand, ...] = (
    ask(1, EAST, 3, 100),
    bid(2, 2, 100),
    StartSettlementRun(1, "first", 1, 0, 9, bytes(32), authority=AUTHORITY),
    Tick(),
    bid(3, 5, 90, delivery_hour=NEXT, display_lots=2, **LATE),
    bid(4, 2, 120, delivery_hour=NEXT, hours=2, **LATE),
    ask(5, EAST, 9, 120, delivery_hour=NEXT, hours=3, min_hours=2, **LATE),
    ask(6, EAST, 4, 104, delivery_hour=NEXT, **LATE),
    bid(7, 1, 80, delivery_hour=NEXT, exclusive_group="g", account=OTHER_BUYER, **LATE),
    ask(8, EAST, 1, 104, delivery_hour=NEXT + 1, **LATE),
    bid(9, 1, 104, delivery_hour=NEXT + 1, **LATE),
    DerateSite(EAST, NEXT + 2, NEXT + 3, 7, authority=AUTHORITY),
    HaltContract(CLASS, HALTED, authority=AUTHORITY),
    HaltContract(CLASS, IN_CALL, authority=AUTHORITY),
    ResumeContract(CLASS, IN_CALL, authority=AUTHORITY),
    HaltContract(CLASS, CLEARING, authority=AUTHORITY),
    ResumeContract(CLASS, CLEARING, authority=AUTHORITY),
    ask(10, EAST, 2, 100, delivery_hour=CLEARING, **LATE),
    bid(11, 2, 100, delivery_hour=CLEARING, **LATE),
    A_BID,
    SuspendAccount(OTHER_BUYER, authority=AUTHORITY),
)
BASES: tuple[AnyCommand, ...] = (
    RegisterAccount(9, 9, authority=AUTHORITY),
    RegisterKey(BUYER, bytes(32), (Scope.TRADE,), authority=AUTHORITY),
    Deposit(BUYER, 5, authority=AUTHORITY),
    Withdraw(BUYER, 5, authority=AUTHORITY),
    CertifySite(9, SELLER, "east", CLASS, 4, "D", "S2", 0, NEXT + 9, authority=AUTHORITY),
    DerateSite(EAST, NEXT, NEXT + 2, 3, authority=AUTHORITY),
    SuspendAccount(BUYER, authority=AUTHORITY),
    ReinstateAccount(OTHER_BUYER, authority=AUTHORITY),
    HaltContract(CLASS, NEXT, authority=AUTHORITY),
    ResumeContract(CLASS, HALTED, authority=AUTHORITY),
    bid(20, 4, 100, delivery_hour=NEXT, **LATE),
    bid(20, 4, 0, delivery_hour=NEXT, order_type=OrderType.MARKET, time_in_force=TimeInForce.IOC, **LATE),
    bid(20, 4, 100, delivery_hour=NEXT, hours=3, **LATE),
    bid(20, 4, 99, delivery_hour=NEXT, time_in_force=TimeInForce.GTD, expire_ns=NOW + MINUTE, **LATE),
    bid(20, 4, 104, delivery_hour=NEXT, exclusive_group="h", min_lots=1, display_lots=2, **LATE),
    ask(20, EAST, 2, 90, delivery_hour=NEXT, **LATE),
    ask(20, MIDDLE, 2, 90, delivery_hour=NEXT, hours=3, min_hours=2, **LATE),
    ask(20, EAST, 1, 90, delivery_hour=NEXT + 1, account=BUYER, position=2, **LATE),
    ReplaceOrder(account=BUYER, order_id=3, lots=6, price_ticks=91, valid_until_ns=UNTIL),
    ReplaceOrder(account=SELLER, order_id=5, lots=8, price_ticks=119, valid_until_ns=UNTIL),
    ReplaceOrder(account=BUYER, order_id=4, lots=1, price_ticks=90, valid_until_ns=UNTIL),
    CancelOrder(BUYER, 3),
    MassCancel(BUYER, delivery_hour=NEXT),
    replace(A_BID, name="another"),
    OF_RUNS,
    ReplaceStandingOffer(account=BUYER, offer_id=1, lots=2, price_curve=(90,), valid_until_ns=UNTIL),
    CancelStandingOffer(BUYER, 1),
    ListStandingOffer(1),
    RetryBlock(4),
    EndCall(CLASS, IN_CALL),
    ProposeClearing(CLASS, CLEARING, (CallFill(11, 10, 2),), (CellPrice("east", "E", "S2", 100, 100, 100),)),
    ReceiveReadings(1, "slurm", 0, 1, 1, bytes(32), authority=AUTHORITY),
    StartSettlementRun(2, "first", 1, 0, 9, bytes(32), authority=AUTHORITY),
    PostSettlement(1, 1, "delivered", 0, 5, 5, 5, 5),
)


def busy(venue: str = "banded") -> Engine:
    """A market in which something of everything is going on."""
    engine = Engine()
    time_ns = START_NS
    for command in (*opening(VENUES[venue]), *BEFORE):
        if isinstance(command, Tick):
            time_ns = NOW - MINUTE
        events = engine.apply(time_ns, command)
        assert venue != "banded" or not any(isinstance(e, Rejected) for e in events), (command, events)
    engine.apply(NOW, EndCall(CLASS, CLEARING))
    return engine


def apply(engine: Engine, command: AnyCommand) -> bool:
    """Apply the command, check what must hold after it, and say whether it was accepted."""
    before = engine.state_hash()
    events = engine.apply(NOW, command)
    engine.check()
    for event in events:
        encode(event)
    refused = isinstance(events[0], Rejected)
    if refused:
        assert len(events) == 1, command
        assert engine.state_hash() == before, f"{command} was refused and changed something"
    elif not isinstance(events[0], OrderRepeated):
        assert engine.state_hash() != before, f"{command} was done and is not in the state"
    return not refused


def numbers_of(command: msgspec.Struct) -> list[str]:
    """Return the fields that hold a number."""
    return [name for name in command.__struct_fields__ if type(getattr(command, name)) is int]


def extremes_of(command: AnyCommand) -> Iterator[AnyCommand]:
    """Yield the command with each of its numbers, also in its parts, at each extreme."""
    for name in numbers_of(command):
        for extreme in EXTREMES:
            yield replace(command, **{name: extreme})
    for name in command.__struct_fields__:
        parts = getattr(command, name)
        if name == "price_curve":
            for extreme in EXTREMES:
                yield replace(command, price_curve=(extreme,))
        elif isinstance(parts, tuple) and parts and isinstance(parts[0], msgspec.Struct):
            for number in numbers_of(parts[0]):
                for extreme in EXTREMES:
                    yield replace(command, **{name: (replace(parts[0], **{number: extreme}),)})


def test_every_command_is_tried() -> None:
    tried = {type(command) for command in BASES}
    # Nothing in a correction of the clock can be extreme.
    assert tried | {OpenEra, Tick, CorrectClock} == set(get_args(AnyCommand))


@pytest.mark.parametrize("base", BASES, ids=lambda command: type(command).__name__)
def test_the_command_is_accepted_as_it_stands(base: AnyCommand) -> None:
    assert apply(busy(), base)


@pytest.mark.parametrize("base", BASES, ids=lambda command: type(command).__name__)
def test_each_number_at_each_extreme_is_done_or_refused_whole(base: AnyCommand) -> None:
    engine = busy()
    for command in extremes_of(base):
        if apply(engine, command):
            engine = busy()


CODES = {"class_code": "H9", "carbon": "Z", "zone": "moon", "security": "S9", "client_order_id": "o20"}


@st.composite
def strained(draw: st.DrawFn) -> AnyCommand:
    """A command with some of its numbers at extremes, and now and then a code that nobody knows."""
    command = draw(st.sampled_from(BASES))
    names = numbers_of(command)
    changed = draw(st.lists(st.sampled_from(names), max_size=3, unique=True))
    changes: dict[str, object] = {
        name: draw(st.sampled_from((*EXTREMES, 2, NEXT, NEXT + 1, 10**7, 10**5))) for name in changed
    }
    codes = [name for name in CODES if getattr(command, name, None) is not None]
    if codes and draw(st.integers(0, 9)) == 0:
        code = draw(st.sampled_from(codes))
        changes[code] = CODES[code]
    return replace(command, **changes)


@settings(max_examples=150)
@given(st.sampled_from(sorted(VENUES)), st.lists(strained(), min_size=1, max_size=8))
def test_any_numbers_one_after_another_are_done_or_refused_whole(
    venue: str, commands: list[AnyCommand]
) -> None:
    engine = busy(venue)
    for command in commands:
        apply(engine, command)
    # What was taken in can be carried on to the end.
    for hour in (NEXT, CLEARING, NEXT + 200):
        engine.apply(max(NOW, hour * HOUR_NS), Tick())
        engine.check()
