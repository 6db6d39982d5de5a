"""Every reject reason is reached through the engine, changes nothing, and says what would be right."""

from typing import NamedTuple

import msgspec
import pytest

from exchange.contract import HOUR_NS, gate_ns
from exchange.engine import MAX_MICROS, Engine
from schemas.commands import (
    AnyCommand,
    Authority,
    CancelOrder,
    CertifySite,
    Deposit,
    PostSettlement,
    ReceiveReadings,
    RegisterAccount,
    RegisterKey,
    Requirement,
    Scope,
    StartSettlementRun,
    Tick,
    TimeInForce,
    Withdraw,
)
from schemas.events import OrderAccepted, Rejected, SettlementPosted
from schemas.reasons import RejectReason as R
from schemas.venue import Limits
from tests.market import (
    AUTHORITY,
    BUYER,
    EAST,
    FIRST_HOUR,
    FUNDS,
    MIDDLE,
    OTHER_BUYER,
    SELLER,
    SELLER_WEST,
    START_NS,
    WEST,
    ask,
    bid,
    open_era,
    opening,
)
from tests.small_venue import SMALL_VENUE

GATE = gate_ns(FIRST_HOUR, SMALL_VENUE.gate_seconds)
AFTER = (FIRST_HOUR + 1) * HOUR_NS
SECOND = 10**9


class Row(NamedTuple):
    """`before` is accepted at the start; `command` at `time_ns` is refused in `field` with these words."""

    command: AnyCommand
    field: str
    allowed: str
    before: tuple[AnyCommand, ...] = ()
    time_ns: int = START_NS
    limits: Limits = SMALL_VENUE.limits


def certificate(**changes: object) -> CertifySite:
    fields: dict[str, object] = {
        "site": 9,
        "account": SELLER,
        "zone": "east",
        "class_code": "T4",
        "capacity_lots": 10,
        "carbon": "C",
        "security": "S1",
        "from_hour": 0,
        "until_hour": FIRST_HOUR + 100,
        "authority": AUTHORITY,
    }
    return CertifySite(**{**fields, **changes})  # type: ignore[arg-type]


def needs(**changes: str) -> Requirement:
    fields = {"zone": "east", "latency": "L4", "carbon": "E", "security": "S1"}
    return Requirement(**{**fields, **changes})


def run_of(run: int, postings: int = 9) -> StartSettlementRun:
    return StartSettlementRun(run, "first", 1, 0, postings, bytes(32), authority=AUTHORITY)


def post(run: int = 1, trade: int = 1, **amounts: int) -> PostSettlement:
    fields = dict.fromkeys(
        (
            "delivered_gpu_ms",
            "payment_micros",
            "refund_micros",
            "penalty_micros",
            "bond_release_micros",
        ),
        0,
    )
    return PostSettlement(run=run, trade_id=trade, verdict="delivered", **{**fields, **amounts})


# One GPU at 100 ticks: a notional of a million micros, a bond of a hundred thousand.
TRADE = (ask(1, EAST, 1, 100), bid(2, 1, 100))
NOTIONAL, BOND = 1_000_000, 100_000
LATE = {"valid_until_ns": AFTER + 600 * SECOND}
NEAR = msgspec.structs.replace(SMALL_VENUE.limits, open_orders_max=1)
NARROW = msgspec.structs.replace(SMALL_VENUE.limits, block_max_site_hours=5)
LONG = msgspec.structs.replace(SMALL_VENUE.limits, block_max_hours=744)
FULL = tuple(bid(n, 1, 100, hours=2) for n in range(4))
SOME_KEY = RegisterKey(BUYER, bytes(32), (Scope.TRADE,), authority=AUTHORITY)

ROWS: dict[R, tuple[Row, ...]] = {
    R.PRICE_OUT_OF_RANGE: (
        Row(bid(1, 1, 0), "price_ticks", "1 to 10000000"),
        Row(ask(1, EAST, 1, 10_000_001), "price_ticks", "1 to 10000000"),
    ),
    R.QUANTITY_OUT_OF_RANGE: (
        Row(bid(1, 0, 100), "lots", "1 to 100000"),
        Row(bid(1, 100_001, 1), "lots", "1 to 100000"),
        Row(certificate(capacity_lots=0), "capacity_lots", "1 to 2147483648"),
        Row(certificate(capacity_lots=2**31 + 1), "capacity_lots", "1 to 2147483648"),
    ),
    R.HOURS_OUT_OF_RANGE: (
        Row(bid(1, 1, 100, hours=0), "hours", "1 to 48"),
        Row(bid(1, 1, 100, hours=49), "hours", "1 to 48"),
        Row(ask(1, EAST, 1, 100, hours=2), "hours", "1 to 1"),
        Row(certificate(until_hour=0), "until_hour", "above from_hour, 0"),
    ),
    R.NOTIONAL_OUT_OF_RANGE: (
        Row(bid(1, 100_000, 10_000_000, hours=744), "price_ticks", f"below {2**61}", limits=LONG),
    ),
    R.SIDE_FIELDS_MISMATCH: (
        Row(bid(1, 1, 100, requirement=None), "requirement", "names a requirement and no site"),
        Row(bid(1, 1, 100, site=EAST), "requirement", "names a requirement and no site"),
        Row(bid(1, 1, 100, carbon="E"), "requirement", "names a requirement and no site"),
        Row(ask(1, 0, 1, 100), "site", "names a site and its carbon grade"),
        Row(ask(1, EAST, 1, 100, carbon=None), "site", "names a site and its carbon grade"),
        Row(ask(1, EAST, 1, 100, requirement=needs()), "site", "names a site and its carbon grade"),
    ),
    R.TIME_IN_FORCE_MISMATCH: (
        Row(bid(1, 1, 100, time_in_force=TimeInForce.GTD), "expire_ns", "ahead with gtd"),
        Row(bid(1, 1, 100, time_in_force=TimeInForce.GTD, expire_ns=START_NS), "expire_ns", "ahead with gtd"),
        Row(bid(1, 1, 100, expire_ns=START_NS + 1), "expire_ns", "none otherwise"),
        Row(bid(1, 1, 100, expire_ns=1), "expire_ns", "none otherwise"),
    ),
    R.AMOUNT_OUT_OF_RANGE: (
        Row(Deposit(BUYER, 0, authority=AUTHORITY), "amount_micros", "1 to"),
        Row(Deposit(BUYER, -1, authority=AUTHORITY), "amount_micros", "1 to"),
        Row(
            Deposit(BUYER, MAX_MICROS - 4 * FUNDS, authority=AUTHORITY),
            "amount_micros",
            f"1 to {MAX_MICROS - 1 - 4 * FUNDS}",
        ),
        Row(Withdraw(BUYER, 0, authority=AUTHORITY), "amount_micros", "1 to"),
        Row(Withdraw(BUYER, MAX_MICROS, authority=AUTHORITY), "amount_micros", f"1 to {MAX_MICROS - 1}"),
    ),
    R.UNKNOWN_ACCOUNT: (
        Row(bid(1, 1, 100, account=77), "account", "a registered account"),
        Row(bid(1, 1, 100, account=0), "account", "a registered account"),
        Row(CancelOrder(77, 1), "account", "a registered account"),
        Row(Deposit(0, 1, authority=AUTHORITY), "account", "a registered account"),
        Row(Withdraw(77, 1, authority=AUTHORITY), "account", "a registered account"),
        Row(certificate(account=77), "account", "a registered account"),
        Row(msgspec.structs.replace(SOME_KEY, account=77), "account", "a registered account"),
    ),
    R.UNKNOWN_CLASS: (
        Row(bid(1, 1, 100, class_code="H9"), "class_code", "a class of the venue"),
        Row(certificate(class_code="H9"), "class_code", "a class of the venue"),
    ),
    R.UNKNOWN_ZONE: (
        Row(bid(1, 1, 100, requirement=needs(zone="moon")), "requirement.zone", "a zone of the venue"),
        Row(certificate(zone="moon"), "zone", "a zone of the venue"),
    ),
    R.UNKNOWN_SITE: (Row(ask(1, 9, 1, 100), "site", "a certified site"),),
    R.UNKNOWN_ORDER: (
        Row(CancelOrder(BUYER, 1), "order_id", "an open order of the account"),
        Row(CancelOrder(BUYER), "order_id", "an open order of the account"),
        Row(CancelOrder(BUYER, client_order_id="o1"), "order_id", "an open order of the account"),
        Row(CancelOrder(OTHER_BUYER, 1), "order_id", "an open order", before=(bid(1, 1, 100),)),
        Row(CancelOrder(BUYER, 1), "order_id", "an open order", before=(bid(1, 1, 1), CancelOrder(BUYER, 1))),
    ),
    R.UNKNOWN_GRADE: (
        Row(bid(1, 1, 100, requirement=needs(latency="L9")), "requirement.latency", "L1, L2, L3, L4"),
        Row(bid(1, 1, 100, requirement=needs(carbon="Z")), "requirement.carbon", "A, B, C, D, E"),
        Row(bid(1, 1, 100, requirement=needs(security="S9")), "requirement.security", "S4, S3, S2, S1"),
        Row(ask(1, EAST, 1, 100, carbon="Z"), "carbon", "A, B, C, D, E"),
        Row(certificate(carbon="Z"), "carbon", "A, B, C, D, E"),
        Row(certificate(security="S9"), "security", "S4, S3, S2, S1"),
    ),
    R.UNKNOWN_RUN: (Row(post(run=5), "run", "a run that was started"),),
    R.UNKNOWN_FILL: (Row(post(), "trade_id", "a trade of this log", before=(run_of(1),)),),
    R.UNKNOWN_OPERATOR: (
        Row(Deposit(BUYER, 1), "authority", "the key of an operator of this era"),
        Row(
            Deposit(BUYER, 1, authority=Authority(bytes(32), START_NS, "")),
            "authority",
            "the key of an operator of this era",
        ),
        *(
            Row(msgspec.structs.replace(command, authority=None), "authority", "the key of an operator")
            for command in (
                certificate(),
                run_of(1),
                SOME_KEY,
                RegisterAccount(9, 9),
                Withdraw(BUYER, 1),
                ReceiveReadings(1, "slurm", 0, 1, 1, bytes(32)),
            )
        ),
    ),
    R.COMMAND_EXPIRED: (Row(bid(1, 1, 100, valid_until_ns=START_NS - 1), "valid_until_ns", f"{START_NS}"),),
    R.VALIDITY_TOO_LONG: (
        Row(bid(1, 1, 100, valid_until_ns=START_NS + 600 * SECOND + 1), "valid_until_ns", "at most 600 s"),
    ),
    R.BEYOND_HORIZON: (
        Row(bid(1, 1, 100, delivery_hour=FIRST_HOUR - 10 + 841), "delivery_hour", "within 840 hours"),
        Row(bid(1, 1, 1, delivery_hour=FIRST_HOUR - 10 + 840, hours=2), "delivery_hour", "within 840 hours"),
        Row(bid(1, 1, 100, delivery_hour=-1), "delivery_hour", "within 840 hours"),
    ),
    R.GATE_CLOSED: (
        Row(bid(1, 1, 100, valid_until_ns=GATE), "delivery_hour", "900 s before delivery", time_ns=GATE),
        Row(bid(1, 1, 100, delivery_hour=0, hours=1), "delivery_hour", "900 s before delivery"),
    ),
    R.NOT_YET_DELIVERED: (
        Row(
            post(payment_micros=1),
            "trade_id",
            "whose delivery hour has ended",
            before=(*TRADE, run_of(1)),
            time_ns=AFTER - 1,
        ),
    ),
    R.DUPLICATE_ORDER_ID: (
        Row(bid(1, 1, 101), "client_order_id", "an id not in use", before=(bid(1, 1, 100),)),
        Row(
            bid(1, 1, 101),
            "client_order_id",
            "the very same order again",
            before=(bid(1, 1, 100), CancelOrder(BUYER, 1)),
        ),
    ),
    R.DUPLICATE_ACCOUNT: (
        Row(RegisterAccount(BUYER, 9, authority=AUTHORITY), "account", "a new number above 0"),
        Row(RegisterAccount(0, 9, authority=AUTHORITY), "account", "a new number above 0"),
        Row(RegisterAccount(-1, 9, authority=AUTHORITY), "account", "a new number above 0"),
    ),
    R.DUPLICATE_SITE: (
        Row(certificate(site=EAST), "site", "a new number above 0"),
        Row(certificate(site=0), "site", "a new number above 0"),
    ),
    R.DUPLICATE_KEY: (
        Row(
            msgspec.structs.replace(SOME_KEY, account=SELLER),
            "key",
            "a key that no account has",
            before=(SOME_KEY,),
        ),
    ),
    R.DUPLICATE_COMMAND: (
        Row(
            Deposit(BUYER, 1, authority=AUTHORITY),
            "authority",
            "a signature that was not used before",
            before=(Deposit(BUYER, 1, authority=AUTHORITY),),
        ),
    ),
    R.DUPLICATE_RUN: (
        Row(run_of(1), "run", "a new number above 0", before=(run_of(1, postings=3),)),
        Row(run_of(0), "run", "a new number above 0"),
        Row(ReceiveReadings(0, "slurm", 0, 1, 1, bytes(32), authority=AUTHORITY), "batch", "above 0"),
    ),
    R.DUPLICATE_POSTING: (
        Row(post(), "run", "above 1", before=(*TRADE, run_of(1), Tick(), post()), time_ns=AFTER),
        Row(
            post(1),
            "run",
            "above 2",
            before=(*TRADE, run_of(1), run_of(2), Tick(), post(2)),
            time_ns=AFTER,
        ),
    ),
    R.NOT_SITE_OWNER: (Row(ask(1, WEST, 1, 100, account=SELLER), "site", "a site of the account's own"),),
    R.CLASS_NOT_CERTIFIED: (Row(ask(1, EAST, 1, 100, class_code="T4"), "class_code", "H100-SXM"),),
    R.GRADE_NOT_CERTIFIED: (Row(ask(1, EAST, 1, 100, carbon="C"), "carbon", "D or worse"),),
    R.SITE_NOT_CERTIFIED: (
        Row(ask(1, EAST, 1, 100, delivery_hour=FIRST_HOUR + 100), "delivery_hour", "certificate covers"),
        Row(
            ask(1, 9, 1, 100, account=SELLER, class_code="T4"),
            "delivery_hour",
            "certificate covers",
            before=(certificate(from_hour=FIRST_HOUR + 1),),
        ),
    ),
    R.ACCOUNT_SUSPENDED: (
        Row(
            ask(9, EAST, 1, 100, delivery_hour=FIRST_HOUR + 9, **LATE),
            "account",
            "an account that is not overdrawn",
            before=(
                *TRADE,
                run_of(1),
                run_of(2),
                Tick(),
                post(1, payment_micros=NOTIONAL),
                # All he has, then part of the payment is taken back.
                Withdraw(SELLER, FUNDS - BOND - 1000 // 2 + NOTIONAL, authority=AUTHORITY),
                post(2, payment_micros=-10, refund_micros=10),
            ),
            time_ns=AFTER,
        ),
    ),
    R.INSUFFICIENT_FUNDS: (
        Row(Withdraw(BUYER, FUNDS + 1, authority=AUTHORITY), "account", f"{FUNDS} are free"),
        Row(bid(1, 100_000, 1_000_000), "account", "1001000000000000 micros are needed"),
        Row(bid(1, 100_000, 50_000, hours=24), "account", f"{FUNDS} are free"),
        Row(
            ask(1, 9, 2**17, 10**8, account=SELLER, class_code="T4"),
            "account",
            f"{FUNDS} are free",
            before=(certificate(capacity_lots=2**20),),
            limits=msgspec.structs.replace(SMALL_VENUE.limits, order_max_lots=2**20, price_max_ticks=10**9),
        ),
    ),
    R.CAPACITY_EXCEEDED: (
        Row(ask(1, EAST, 11, 100), "lots", "10 lots are free"),
        Row(ask(2, EAST, 8, 100), "lots", "7 lots are free", before=(ask(1, EAST, 3, 100),)),
        Row(ask(3, EAST, 10, 100), "lots", "9 lots are free", before=TRADE),
    ),
    R.TOO_MANY_OPEN_ORDERS: (
        Row(bid(2, 1, 100), "account", "1 open orders", before=(bid(1, 1, 100),), limits=NEAR),
    ),
    R.TOO_MANY_RESTING_BLOCKS: (
        Row(bid(9, 1, 100, hours=2), "price_ticks", "above 100", before=FULL),
        Row(bid(9, 1, 100, hours=2, delivery_hour=FIRST_HOUR - 1), "price_ticks", "above 100", before=FULL),
    ),
    R.BLOCK_TOO_WIDE: (Row(bid(1, 1, 100, hours=2), "hours", "to 5", limits=NARROW),),
    R.POSTING_EXCEEDS_FILL: tuple(
        Row(command, field, words, before=(*TRADE, run_of(1), run_of(2), Tick(), *earlier), time_ns=AFTER)
        for command, field, words, earlier in (
            (post(payment_micros=NOTIONAL + 1), "payment_micros", f"{NOTIONAL}", ()),
            (post(payment_micros=NOTIONAL, refund_micros=1), "payment_micros", f"{NOTIONAL}", ()),
            (post(payment_micros=-1), "payment_micros", f"{NOTIONAL}", ()),
            (post(payment_micros=2**62, refund_micros=-(2**62)), "payment_micros", f"{NOTIONAL}", ()),
            (post(2, payment_micros=1), "payment_micros", "refund 0", (post(1, payment_micros=NOTIONAL),)),
            (post(2, payment_micros=-8), "payment_micros", f"{NOTIONAL - 7}", (post(1, payment_micros=7),)),
            (post(penalty_micros=BOND + 1), "penalty_micros", f"{BOND}", ()),
            (post(penalty_micros=2**62, bond_release_micros=-(2**62)), "penalty_micros", f"{BOND}", ()),
            (post(bond_release_micros=-1), "penalty_micros", f"{BOND}", ()),
            (post(2, penalty_micros=1), "penalty_micros", "release 0", (post(1, bond_release_micros=BOND),)),
        )
    ),
    R.POSTINGS_EXCEED_RUN: (
        Row(
            post(trade=2),
            "run",
            "as many postings as the run announced",
            before=(*TRADE, ask(3, EAST, 1, 100), bid(4, 1, 100), run_of(1, 1), Tick(), post()),
            time_ns=AFTER,
        ),
    ),
}


def prepared(row: Row) -> Engine:
    """An engine in which `before` is done; what comes after a tick in it happens at the row's time."""
    engine = Engine()
    venue = msgspec.structs.replace(SMALL_VENUE, limits=row.limits)
    time_ns = START_NS
    for command in (open_era(venue=venue), *opening()[1:], *row.before):
        if isinstance(command, Tick):
            time_ns = row.time_ns
        events = engine.apply(time_ns, command)
        assert not any(isinstance(event, Rejected) for event in events), (command, events)
    # What is due by then is done first, so that only the command itself could change the state.
    engine.apply(row.time_ns, Tick())
    return engine


@pytest.mark.parametrize("reason", R)
def test_every_reason_has_a_row(reason: R) -> None:
    assert ROWS.get(reason), f"{reason.name} is refused by no row"


@pytest.mark.parametrize(
    ("reason", "row"),
    [
        pytest.param(reason, row, id=f"{reason.name}-{n}")
        for reason in ROWS
        for n, row in enumerate(ROWS[reason])
    ],
)
def test_a_refused_command_changes_nothing_and_says_what_is_allowed(reason: R, row: Row) -> None:
    engine = prepared(row)
    before, due = engine.state_hash(), engine.next_due_ns()
    [event] = engine.apply(row.time_ns, row.command)
    assert isinstance(event, Rejected)
    assert event.reason is reason
    assert event.field == row.field
    assert row.allowed in event.allowed
    assert (engine.state_hash(), engine.next_due_ns()) == (before, due)
    engine.check()


@pytest.mark.parametrize(
    "command",
    [
        bid(1, 1, 10_000_000, requirement=needs(zone="west", carbon="A", security="S4")),
        bid(1, 1, 1, valid_until_ns=START_NS),
        bid(1, 1, 1, valid_until_ns=START_NS + 600 * SECOND),
        bid(1, 1, 1, delivery_hour=FIRST_HOUR - 10 + 840),
        bid(1, 1, 1, hours=48),
        bid(1, 1, 1, time_in_force=TimeInForce.GTD, expire_ns=START_NS + 1),
        bid(1, 1, 1, delivery_hour=FIRST_HOUR - 9),
        ask(1, EAST, 10, 1, carbon="D"),
        ask(1, EAST, 1, 1, delivery_hour=FIRST_HOUR + 99),
    ],
)
def test_what_stands_just_inside_a_bound_is_accepted(command: AnyCommand) -> None:
    [event, *_] = prepared(Row(command, "", "")).apply(START_NS, command)
    assert isinstance(event, OrderAccepted)


def test_a_correction_may_take_back_what_was_posted() -> None:
    row = Row(
        post(2, payment_micros=-NOTIONAL, refund_micros=NOTIONAL, penalty_micros=5, bond_release_micros=-5),
        "",
        "",
        before=(
            *TRADE,
            run_of(1),
            run_of(2),
            Tick(),
            post(1, payment_micros=NOTIONAL, bond_release_micros=BOND),
        ),
        time_ns=AFTER,
    )
    engine = prepared(row)
    [event] = engine.apply(AFTER, row.command)
    assert isinstance(event, SettlementPosted)
    assert (event.buyer, event.seller) == (BUYER, SELLER)
    engine.check()


def test_purses_stay_numbers_that_can_be_hashed_however_much_is_deposited() -> None:
    engine = prepared(Row(Tick(), "", ""))
    for account in (SELLER, SELLER_WEST, BUYER, OTHER_BUYER) * 2:
        engine.apply(START_NS, Deposit(account, MAX_MICROS // 2, authority=AUTHORITY))
    assert len(engine.state_hash()) == 32


def test_nothing_stays_due_of_what_is_over() -> None:
    """An expiry years ahead does not outlive the order that it was for."""
    forever = {"time_in_force": TimeInForce.GTD, "expire_ns": 2**62}
    engine = prepared(Row(Tick(), "", ""))
    for command in (bid(1, 1, 100, **forever), ask(2, MIDDLE, 1, 101, **forever), CancelOrder(BUYER, 1)):
        engine.apply(START_NS, command)
    engine.apply(GATE, Tick())
    assert engine.next_due_ns() is None
