"""Every reject reason is reached through the engine, changes nothing, and says what would be right."""

from typing import NamedTuple

import msgspec
import pytest

from exchange.contract import HOUR_NS, gate_ns
from exchange.engine import Engine
from exchange.market import MAX_MICROS, MAX_NOTIONAL
from schemas.commands import (
    AnyCommand,
    Authority,
    CallFill,
    CancelOrder,
    CancelStandingOffer,
    CellPrice,
    CertifySite,
    CorrectClock,
    Deposit,
    DerateSite,
    EndCall,
    EnterOrder,
    EnterStandingOffer,
    HaltContract,
    ListStandingOffer,
    MassCancel,
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
from schemas.events import OrderAccepted, Rejected, SettlementPosted, SiteDerated, StandingOfferEntered
from schemas.reasons import RejectReason as R
from schemas.venue import Venue
from tests.market import (
    AUTHORITY,
    BUYER,
    CLASS,
    EAST,
    FIRST_HOUR,
    FUNDS,
    MIDDLE,
    OPERATOR_KEY,
    OTHER_BUYER,
    SELLER,
    SELLER_WEST,
    START_NS,
    VENUES,
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
    venue: Venue = SMALL_VENUE


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


def limited(**changes: int) -> Venue:
    return msgspec.structs.replace(SMALL_VENUE, limits=msgspec.structs.replace(SMALL_VENUE.limits, **changes))


def replaced(
    lots: int,
    price: int,
    order: int = 1,
    account: int = BUYER,
    valid_until_ns: int = START_NS + 600 * SECOND,
) -> ReplaceOrder:
    return ReplaceOrder(
        account=account, order_id=order, valid_until_ns=valid_until_ns, lots=lots, price_ticks=price
    )


def offer(**changes: object) -> EnterStandingOffer:
    """A standing bid for the first two hours."""
    fields: dict[str, object] = {
        "account": BUYER,
        "name": "f1",
        "valid_until_ns": START_NS + 600 * SECOND,
        "side": Side.BUY,
        "class_code": CLASS,
        "from_hour": FIRST_HOUR,
        "until_hour": FIRST_HOUR + 2,
        "lots": 1,
        "price_curve": (100,),
        "requirement": needs(),
    }
    return EnterStandingOffer(**{**fields, **changes})  # type: ignore[arg-type]


def supply_offer(**changes: object) -> EnterStandingOffer:
    """The same of asks."""
    return offer(
        **{"account": SELLER, "side": Side.SELL, "requirement": None, "site": EAST, "carbon": "E", **changes}
    )


def other_offer(
    lots: int = 1,
    curve: tuple[int, ...] = (100,),
    account: int = BUYER,
    valid_until_ns: int = START_NS + 600 * SECOND,
) -> ReplaceStandingOffer:
    return ReplaceStandingOffer(
        account=account,
        offer_id=1,
        valid_until_ns=valid_until_ns,
        lots=lots,
        price_curve=curve,
    )


def derated(**changes: int) -> DerateSite:
    fields = {
        "site": EAST,
        "from_hour": FIRST_HOUR,
        "until_hour": FIRST_HOUR + 1,
        "capacity_lots": 5,
        **changes,
    }
    return DerateSite(**fields, authority=AUTHORITY)


def resale(number: int = 3, lots: int = 1, **changes: object) -> EnterOrder:
    """An ask of what was bought in `TRADE`."""
    return ask(number, EAST, lots, 120, **{"account": BUYER, "position": 1, **changes})


def grouped(number: int, hour: int = 0, lots: int = 1, **changes: object) -> EnterOrder:
    terms = {"exclusive_group": "g", "delivery_hour": FIRST_HOUR + hour, **changes}
    return bid(number, lots, 100, **terms)


def grouped_ask(number: int, hour: int = 0, **changes: object) -> EnterOrder:
    return ask(number, EAST, 1, 120, exclusive_group="g", delivery_hour=FIRST_HOUR + hour, **changes)


def proposal(*fills: tuple[int, int, int], prices: tuple[CellPrice, ...] = ()) -> ProposeClearing:
    return ProposeClearing(CLASS, FIRST_HOUR, tuple(CallFill(*fill) for fill in fills), prices)


# One GPU at 100 ticks: a notional of a million micros, a bond of a hundred thousand.
TRADE = (ask(1, EAST, 1, 100), bid(2, 1, 100))
NOTIONAL, BOND = 1_000_000, 100_000
LATE = {"valid_until_ns": AFTER + 600 * SECOND}
NEAR, NARROW, LONG = limited(open_orders_max=1), limited(block_max_site_hours=5), limited(block_max_hours=744)
BANDED, RATED = VENUES["banded"], VENUES["rated"]
NO_PRICE = msgspec.structs.replace(
    BANDED, classes=tuple(msgspec.structs.replace(c, reference_price_ticks=None) for c in BANDED.classes)
)
DEAR = msgspec.structs.replace(
    BANDED,
    classes=tuple(msgspec.structs.replace(c, reference_price_ticks=10**6) for c in BANDED.classes),
    limits=msgspec.structs.replace(BANDED.limits, order_max_lots=2**31),
)
MARKET = OrderType.MARKET
IOC, FOK, GTD, AUCTION = TimeInForce.IOC, TimeInForce.FOK, TimeInForce.GTD, TimeInForce.AUCTION
LATER = Authority(OPERATOR_KEY, START_NS + 1, "again")
SUSPEND = SuspendAccount(BUYER, authority=AUTHORITY)
HALT = HaltContract(CLASS, FIRST_HOUR, authority=AUTHORITY)
RESUME = ResumeContract(CLASS, FIRST_HOUR, authority=AUTHORITY)
# A call of two bids at 110 and 105 and an ask of three GPUs at 100, to be cleared a minute later.
CALL = (HALT, RESUME, ask(1, EAST, 3, 100), bid(2, 2, 110), bid(3, 2, 105))
END_CALL = EndCall(CLASS, FIRST_HOUR)
CLEARING = (*CALL, Tick(), END_CALL)
CALL_END = START_NS + 60 * SECOND
EAST_AT_105 = CellPrice("east", "E", "S2", 105, 105, 105)
FULL = tuple(bid(n, 1, 100, hours=2) for n in range(4))
SOME_KEY = RegisterKey(BUYER, bytes(32), (Scope.TRADE,), authority=AUTHORITY)

HALT_AGAIN = msgspec.structs.replace(HALT, authority=LATER)
THREE = tuple(bid(n, 1, 100) for n in range(1, 4))

ROWS: dict[R, tuple[Row, ...]] = {
    R.PRICE_OUT_OF_RANGE: (
        Row(bid(1, 1, 0), "price_ticks", "1 to 10000000"),
        Row(ask(1, EAST, 1, 10_000_001), "price_ticks", "1 to 10000000"),
        Row(replaced(1, 0), "price_ticks", "1 to 10000000", before=(bid(1, 1, 100),)),
    ),
    R.QUANTITY_OUT_OF_RANGE: (
        Row(bid(1, 0, 100), "lots", "1 to 100000"),
        Row(bid(1, 100_001, 1), "lots", "1 to 100000"),
        Row(certificate(capacity_lots=0), "capacity_lots", "1 to 2147483648"),
        Row(certificate(capacity_lots=2**31 + 1), "capacity_lots", "1 to 2147483648"),
        Row(replaced(0, 100), "lots", "1 to 100000", before=(bid(1, 1, 100),)),
        Row(offer(lots=0), "lots", "1 to 100000"),
        Row(derated(capacity_lots=-1), "capacity_lots", "0 to 10"),
        Row(derated(capacity_lots=11), "capacity_lots", "0 to 10"),
    ),
    R.HOURS_OUT_OF_RANGE: (
        Row(bid(1, 1, 100, hours=0), "hours", "1 to 48"),
        Row(bid(1, 1, 100, hours=49), "hours", "1 to 48"),
        Row(ask(1, EAST, 1, 100, hours=49, min_hours=1), "hours", "1 to 48"),
        Row(offer(hours=49), "hours", "1 to 48"),
        Row(offer(until_hour=FIRST_HOUR), "until_hour", "1 to 8784 hours after from_hour"),
        Row(derated(until_hour=FIRST_HOUR), "until_hour", "1 to 744 after from_hour"),
        Row(derated(until_hour=FIRST_HOUR + 745), "until_hour", "1 to 744 after from_hour"),
        Row(certificate(until_hour=0), "until_hour", "above from_hour, 0"),
    ),
    R.NOTIONAL_OUT_OF_RANGE: (
        Row(
            bid(1, 100_000, 10_000_000, hours=744), "price_ticks", f"a notional to {MAX_NOTIONAL}", venue=LONG
        ),
        Row(
            replaced(100_000, 10_000_000),
            "price_ticks",
            f"a notional to {MAX_NOTIONAL}",
            before=(bid(1, 1, 1, hours=744),),
            venue=LONG,
        ),
        Row(
            bid(1, 2**31, 0, order_type=MARKET, time_in_force=IOC),
            "lots",
            f"a notional to {MAX_NOTIONAL}",
            venue=DEAR,
        ),
    ),
    R.SIDE_FIELDS_MISMATCH: (
        Row(bid(1, 1, 100, requirement=None), "requirement", "names a requirement and no site"),
        Row(bid(1, 1, 100, site=EAST), "requirement", "names a requirement and no site"),
        Row(bid(1, 1, 100, carbon="E"), "requirement", "names a requirement and no site"),
        Row(ask(1, 0, 1, 100), "site", "names a site or a position, and a carbon grade"),
        Row(ask(1, EAST, 1, 100, carbon=None), "site", "names a site or a position, and a carbon grade"),
        Row(
            ask(1, EAST, 1, 100, requirement=needs()),
            "site",
            "names a site or a position, and a carbon grade",
        ),
        Row(bid(1, 1, 100, position=1), "requirement", "names a requirement and no site"),
        Row(
            resale(hours=2, min_hours=1),
            "position",
            "resale is for hourly orders",
            before=TRADE,
        ),
        Row(supply_offer(site=0), "site", "names a site or a position, and a carbon grade"),
    ),
    R.TIME_IN_FORCE_MISMATCH: (
        Row(bid(1, 1, 100, time_in_force=TimeInForce.GTD), "expire_ns", "ahead with gtd"),
        Row(bid(1, 1, 100, time_in_force=TimeInForce.GTD, expire_ns=START_NS), "expire_ns", "ahead with gtd"),
        Row(bid(1, 1, 100, expire_ns=START_NS + 1), "expire_ns", "none otherwise"),
        Row(bid(1, 1, 100, expire_ns=1), "expire_ns", "none otherwise"),
        Row(bid(1, 1, 100, hours=2, time_in_force=FOK), "time_in_force", "gtc, gtd or ioc for several hours"),
        Row(bid(1, 1, 100, hours=2, time_in_force=AUCTION), "time_in_force", "gtc, gtd or ioc"),
        Row(bid(1, 1, 100, exclusive_group="g", time_in_force=IOC), "time_in_force", "gtc or gtd in a group"),
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
        Row(bid(1, 1, 100, account=OTHER_BUYER + 1), "account", "a registered account"),
        Row(CancelOrder(77, 1), "account", "a registered account"),
        Row(Deposit(0, 1, authority=AUTHORITY), "account", "a registered account"),
        Row(Withdraw(77, 1, authority=AUTHORITY), "account", "a registered account"),
        Row(certificate(account=77), "account", "a registered account"),
        Row(msgspec.structs.replace(SOME_KEY, account=77), "account", "a registered account"),
        Row(replaced(1, 100, account=77), "account", "a registered account"),
        Row(MassCancel(77), "account", "a registered account"),
        Row(offer(account=77), "account", "a registered account"),
        Row(other_offer(account=77), "account", "a registered account"),
        Row(CancelStandingOffer(77, 1), "account", "a registered account"),
        Row(SuspendAccount(77, authority=AUTHORITY), "account", "a registered account"),
        Row(ReinstateAccount(77, authority=AUTHORITY), "account", "a registered account"),
    ),
    R.UNKNOWN_CLASS: (
        Row(bid(1, 1, 100, class_code="H9"), "class_code", "a class of the venue"),
        Row(certificate(class_code="H9"), "class_code", "a class of the venue"),
        Row(offer(class_code="H9"), "class_code", "a class of the venue"),
        Row(HaltContract("H9", FIRST_HOUR, authority=AUTHORITY), "class_code", "a class of the venue"),
        Row(EndCall("H9", FIRST_HOUR), "class_code", "a class of the venue"),
        Row(ProposeClearing("H9", FIRST_HOUR, (), ()), "class_code", "a class of the venue"),
    ),
    R.UNKNOWN_ZONE: (
        Row(bid(1, 1, 100, requirement=needs(zone="moon")), "requirement.zone", "a zone of the venue"),
        Row(certificate(zone="moon"), "zone", "a zone of the venue"),
    ),
    R.VENUE_MISMATCH: (
        Row(
            open_era(venue=msgspec.structs.replace(SMALL_VENUE, gate_seconds=1)),
            "venue",
            "the catalogue in force",
        ),
    ),
    R.UNKNOWN_SITE: (
        Row(ask(1, 9, 1, 100), "site", "a certified site"),
        Row(ask(1, WEST + 1, 1, 100), "site", "a certified site"),
        Row(derated(site=9), "site", "a certified site"),
        Row(supply_offer(site=9), "site", "a certified site"),
    ),
    R.UNKNOWN_ORDER: (
        Row(CancelOrder(BUYER, 1), "order_id", "an open order of the account"),
        Row(CancelOrder(BUYER), "order_id", "an open order of the account"),
        Row(CancelOrder(BUYER, client_order_id="o1"), "order_id", "an open order of the account"),
        Row(CancelOrder(OTHER_BUYER, 1), "order_id", "an open order", before=(bid(1, 1, 100),)),
        Row(CancelOrder(BUYER, 1), "order_id", "an open order", before=(bid(1, 1, 1), CancelOrder(BUYER, 1))),
        Row(replaced(1, 100), "order_id", "an open order of the account"),
        Row(MassCancel(BUYER), "account", "open orders that it names"),
        Row(MassCancel(BUYER, side=Side.SELL), "account", "open orders", before=(bid(1, 1, 100),)),
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
    R.UNKNOWN_FILL: (
        Row(post(), "trade_id", "a trade of this log", before=(run_of(1),)),
        Row(post(trade=2), "trade_id", "a trade of this log", before=(*TRADE, run_of(1))),
        Row(post(trade=0), "trade_id", "a trade of this log", before=(*TRADE, run_of(1))),
    ),
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
                derated(),
                HALT,
                RESUME,
                SuspendAccount(BUYER),
                ReinstateAccount(BUYER),
                CorrectClock(),
            )
        ),
    ),
    R.COMMAND_EXPIRED: (
        Row(bid(1, 1, 100, valid_until_ns=START_NS - 1), "valid_until_ns", f"{START_NS}"),
        Row(replaced(1, 100, valid_until_ns=0), "valid_until_ns", f"{START_NS}", before=(bid(1, 1, 90),)),
        Row(offer(valid_until_ns=START_NS - 1), "valid_until_ns", f"{START_NS}"),
    ),
    R.VALIDITY_TOO_LONG: (
        Row(bid(1, 1, 100, valid_until_ns=START_NS + 600 * SECOND + 1), "valid_until_ns", "at most 600 s"),
    ),
    R.BEYOND_HORIZON: (
        Row(bid(1, 1, 100, delivery_hour=FIRST_HOUR - 10 + 841), "delivery_hour", "within 840 hours"),
        Row(bid(1, 1, 1, delivery_hour=FIRST_HOUR - 10 + 840, hours=2), "delivery_hour", "within 840 hours"),
        Row(bid(1, 1, 100, delivery_hour=-1), "delivery_hour", "within 840 hours"),
        Row(HaltContract(CLASS, FIRST_HOUR + 831, authority=AUTHORITY), "delivery_hour", "within 840 hours"),
        Row(
            offer(from_hour=FIRST_HOUR + 8774, until_hour=FIRST_HOUR + 8775),
            "until_hour",
            "within 8784 hours",
        ),
    ),
    R.GATE_CLOSED: (
        Row(bid(1, 1, 100, valid_until_ns=GATE), "delivery_hour", "900 s before delivery", time_ns=GATE),
        Row(bid(1, 1, 100, delivery_hour=0, hours=1), "delivery_hour", "900 s before delivery"),
        Row(HaltContract(CLASS, FIRST_HOUR - 10, authority=AUTHORITY), "delivery_hour", "before delivery"),
        Row(EndCall(CLASS, FIRST_HOUR - 10), "delivery_hour", "before delivery"),
        Row(
            offer(from_hour=FIRST_HOUR - 20, until_hour=FIRST_HOUR - 9),
            "until_hour",
            "hours of a whole order that are still open",
        ),
        Row(
            offer(from_hour=FIRST_HOUR - 10, until_hour=FIRST_HOUR - 8, hours=2),
            "until_hour",
            "hours of a whole order",
        ),
        Row(
            other_offer(2, account=SELLER, valid_until_ns=GATE),
            "offer_id",
            "hours of a whole order",
            before=(supply_offer(hours=2, min_hours=1), ListStandingOffer(1)),
            time_ns=GATE,
        ),
        Row(derated(from_hour=FIRST_HOUR - 20, until_hour=FIRST_HOUR - 9), "until_hour", "still open"),
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
        *(
            Row(
                ask(1, site, 1, 100, **other),
                "client_order_id",
                "the very same",
                before=(ask(1, EAST, 1, 100),),
            )
            for site, other in (
                (MIDDLE, {}),
                (EAST, {"carbon": "D"}),
                (EAST, {"carbon": None}),
                (EAST, {"requirement": needs()}),
            )
        ),
        *(
            Row(bid(1, 1, 100, **other), "client_order_id", "the very same", before=(bid(1, 1, 100),))
            for other in (
                {"requirement": needs(latency="L3")},
                {"requirement": None},
                {"site": EAST},
                {"carbon": "E"},
            )
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
        Row(derated(until_hour=FIRST_HOUR + 101), "from_hour", "hours that the certificate covers"),
    ),
    R.ACCOUNT_SUSPENDED: (
        Row(
            ask(9, EAST, 1, 100, delivery_hour=FIRST_HOUR + 9, **LATE),
            "account",
            "neither suspended nor overdrawn",
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
        *(
            Row(command, "account", "neither suspended nor overdrawn", before=before)
            for command, before in (
                (bid(1, 1, 100), (SUSPEND,)),
                (bid(1, 1, 100, hours=2), (SUSPEND,)),
                (offer(), (SUSPEND,)),
                (replaced(1, 101), (bid(1, 1, 100), SUSPEND)),
                (replaced(2, 100), (bid(1, 1, 100, hours=2), SUSPEND)),
                (other_offer(2), (offer(), SUSPEND)),
            )
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
            venue=limited(order_max_lots=2**20, price_max_ticks=10**9),
        ),
        Row(
            replaced(100_000, 1_000_000), "account", f"{FUNDS - 1_001_000} are free", before=(bid(1, 1, 100),)
        ),
    ),
    R.CAPACITY_EXCEEDED: (
        Row(ask(1, EAST, 11, 100), "lots", "10 lots are free"),
        Row(ask(2, EAST, 8, 100), "lots", "7 lots are free", before=(ask(1, EAST, 3, 100),)),
        Row(ask(3, EAST, 10, 100), "lots", "9 lots are free", before=TRADE),
        Row(
            ask(2, EAST, 8, 100, hours=2, min_hours=1),
            "lots",
            f"7 lots are free at the site in hour {FIRST_HOUR + 1}",
            before=(ask(1, EAST, 3, 100, hours=2, min_hours=1, delivery_hour=FIRST_HOUR + 1),),
        ),
        Row(ask(1, EAST, 6, 100), "lots", "5 lots are free", before=(derated(),)),
        Row(replaced(11, 100, account=SELLER), "lots", "0 lots are free", before=(ask(1, EAST, 10, 100),)),
    ),
    R.TOO_MANY_OPEN_ORDERS: (
        Row(bid(2, 1, 100), "account", "1 open orders", before=(bid(1, 1, 100),), venue=NEAR),
    ),
    R.TOO_MANY_RESTING_BLOCKS: (
        Row(bid(9, 1, 100, hours=2), "price_ticks", "above 100", before=FULL),
        Row(bid(9, 1, 100, hours=2, delivery_hour=FIRST_HOUR - 1), "price_ticks", "above 100", before=FULL),
    ),
    R.BLOCK_TOO_WIDE: (Row(bid(1, 1, 100, hours=2), "hours", "to 5", venue=NARROW),),
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
    R.ORDER_TYPE_MISMATCH: tuple(
        Row(bid(1, 1, price, order_type=MARKET, **terms), "order_type", "one hour, ioc or fok, no price")
        for price, terms in (
            (0, {}),
            (0, {"time_in_force": GTD, "expire_ns": START_NS + 1}),
            (0, {"time_in_force": IOC, "hours": 2}),
            (1, {"time_in_force": IOC}),
            (-1, {"time_in_force": FOK}),
        )
    ),
    R.MINIMUM_OUT_OF_RANGE: (
        Row(bid(1, 2, 100, min_lots=3), "min_lots", "0 to 2"),
        Row(bid(1, 2, 100, min_lots=-1), "min_lots", "0 to 2"),
        Row(bid(1, 2, 100, hours=2, min_lots=1), "min_lots", "0 to 0"),
    ),
    R.DISPLAY_OUT_OF_RANGE: (
        *(
            Row(bid(1, 100, 100, **terms), "display_lots", "below its lots and at least lots / 50")
            for terms in (
                {"display_lots": 100},
                {"display_lots": 1},
                {"display_lots": -1},
                {"display_lots": 50, "hours": 2},
                {"display_lots": 50, "time_in_force": IOC},
                {"display_lots": 50, "time_in_force": AUCTION},
            )
        ),
        Row(
            replaced(101, 100), "display_lots", "at least lots / 50", before=(bid(1, 9, 100, display_lots=2),)
        ),
        Row(replaced(2, 101), "display_lots", "below its lots", before=(bid(1, 9, 100, display_lots=2),)),
    ),
    R.POST_ONLY_MISMATCH: tuple(
        Row(bid(1, 1, 100, post_only=True, **terms), "post_only", "an hourly gtc or gtd order")
        for terms in ({"hours": 2}, {"time_in_force": IOC}, {"min_lots": 1})
    ),
    R.MIN_HOURS_OUT_OF_RANGE: (
        Row(ask(1, EAST, 1, 100, hours=2), "min_hours", "1 to 2"),
        Row(ask(1, EAST, 1, 100, hours=2, min_hours=3), "min_hours", "1 to 2"),
        Row(ask(1, EAST, 1, 100, hours=2, min_hours=-1), "min_hours", "1 to 2"),
        Row(ask(1, EAST, 1, 100, min_hours=1), "min_hours", "none but for a run"),
        Row(bid(1, 1, 100, hours=2, min_hours=1), "min_hours", "none but for a run"),
        Row(supply_offer(hours=2), "min_hours", "1 to 2"),
        Row(offer(min_hours=1), "min_hours", "none but for runs"),
    ),
    R.CURVE_OUT_OF_RANGE: (
        *(
            Row(offer(price_curve=curve), "price_curve", "1, 24 or 168 prices of 0 to 10000000, not all 0")
            for curve in ((), (100, 100), (0,), (-1,), (10_000_001,), (100,) * 23 + (-1,))
        ),
        Row(other_offer(curve=(0,)), "price_curve", "not all 0", before=(offer(),)),
    ),
    R.UNKNOWN_POSITION: tuple(
        Row(command, "position", "bought in this contract from this site", before=TRADE)
        for command in (
            resale(position=2),
            resale(position=-1),
            resale(account=OTHER_BUYER),
            resale(account=SELLER),
            resale(delivery_hour=FIRST_HOUR + 1),
            ask(3, MIDDLE, 1, 120, account=BUYER, position=1),
            ask(3, 0, 1, 120, account=BUYER, position=2),
            ask(3, 0, 1, 120, account=OTHER_BUYER, position=1),
            ask(3, 0, 1, 120, account=BUYER, position=1, delivery_hour=FIRST_HOUR + 1),
        )
    ),
    R.UNKNOWN_OFFER: (
        Row(CancelStandingOffer(BUYER, 1), "offer_id", "a standing offer of the account"),
        Row(CancelStandingOffer(OTHER_BUYER, 1), "offer_id", "of the account", before=(offer(),)),
        Row(other_offer(2), "offer_id", "a standing offer of the account"),
        Row(
            other_offer(2),
            "offer_id",
            "a standing offer of the account",
            before=(offer(), ListStandingOffer(1), MassCancel(BUYER)),
        ),
        Row(
            CancelStandingOffer(BUYER, 1),
            "offer_id",
            "a standing offer of the account",
            before=(offer(), CancelStandingOffer(BUYER, 1)),
        ),
    ),
    R.WRONG_PHASE: (
        Row(bid(1, 1, 100, time_in_force=AUCTION), "time_in_force", "gtc, gtd, ioc or fok"),
        Row(bid(1, 1, 100), "delivery_hour", "cancels only: the contract is halted", before=(HALT,)),
        Row(bid(1, 1, 1, hours=2), "delivery_hour", f"hour {FIRST_HOUR} is halted", before=(HALT,)),
        *(
            Row(bid(1, 1, 100, **terms), "time_in_force", "with no minimum, in call", before=(HALT, RESUME))
            for terms in (
                {"time_in_force": IOC},
                {"time_in_force": FOK},
                {"min_lots": 1},
                {"post_only": True},
            )
        ),
        Row(
            bid(1, 1, 100, hours=2, time_in_force=IOC),
            "delivery_hour",
            f"hour {FIRST_HOUR} is call",
            before=(HALT, RESUME),
        ),
        Row(bid(9, 1, 1), "delivery_hour", "the contract is clearing", before=CLEARING, time_ns=CALL_END),
        Row(replaced(1, 101), "order_id", "it is halted", before=(bid(1, 1, 100), HALT)),
        Row(replaced(1, 110, 2), "order_id", "is clearing", before=CLEARING, time_ns=CALL_END),
        Row(replaced(3, 110, 2), "order_id", "is clearing", before=CLEARING, time_ns=CALL_END),
        Row(
            replaced(1, 101), "order_id", "it is halted", before=(bid(1, 2, 100), ask(2, EAST, 1, 100), HALT)
        ),
        Row(
            replaced(1, 101),
            "delivery_hour",
            f"hour {FIRST_HOUR} is halted",
            before=(bid(1, 1, 100, hours=2), HALT),
        ),
        Row(
            replaced(1, 100, 4),
            "delivery_hour",
            f"hour {FIRST_HOUR} is clearing",
            before=(*CALL, bid(4, 2, 100, hours=2), Tick(), END_CALL),
            time_ns=CALL_END,
        ),
        Row(HALT_AGAIN, "delivery_hour", "a contract that is not halted; it is halted", before=(HALT,)),
        Row(RESUME, "delivery_hour", "a contract that is halted; it is continuous"),
        Row(END_CALL, "delivery_hour", "a contract that is in a call; it is continuous"),
        Row(END_CALL, "delivery_hour", "a call that has lasted 60 s", before=CALL),
        Row(
            END_CALL,
            "delivery_hour",
            "in a call; it is clearing",
            before=CLEARING,
            time_ns=CALL_END,
        ),
        Row(proposal(), "delivery_hour", "a contract that is clearing; it is call", before=CALL),
    ),
    R.GROUP_MISMATCH: (
        *(
            Row(command, "exclusive_group", "the side, lots and kind of its group", before=before)
            for before, command in (
                ((grouped(1),), grouped(2)),
                ((grouped(1),), grouped(2, hour=1, lots=2)),
                ((grouped(1),), grouped(2, hour=1, hours=2)),
                ((grouped(1, account=SELLER),), grouped_ask(2, hour=1)),
                ((grouped(1, lots=2), ask(2, EAST, 1, 100)), grouped(3, hour=1, lots=2)),
            )
        ),
        Row(grouped_ask(1, hours=2, min_hours=1), "exclusive_group", "none for a run"),
        Row(replaced(2, 100), "lots", "1, which its group has", before=(grouped(1),)),
    ),
    R.DUPLICATE_OFFER: (
        Row(offer(lots=2), "name", "a name that no offer of the account has", before=(offer(),)),
        Row(
            offer(),
            "name",
            "a name that no offer of the account has",
            before=(offer(), CancelStandingOffer(BUYER, 1)),
        ),
    ),
    R.NOTHING_TO_CHANGE: (
        Row(replaced(1, 100), "lots", "another total or price", before=(bid(1, 1, 100),)),
        Row(other_offer(), "lots", "other lots or another curve", before=(offer(),)),
        Row(RetryBlock(1), "order_id", "a block whose retry is pending", before=(bid(1, 1, 100, hours=2),)),
        Row(ListStandingOffer(1), "offer_id", "an offer whose listing is due"),
        Row(
            msgspec.structs.replace(SUSPEND, authority=LATER),
            "account",
            "an account that is not suspended",
            before=(SUSPEND,),
        ),
        Row(ReinstateAccount(BUYER, authority=AUTHORITY), "account", "an account that is suspended"),
    ),
    R.PRICE_OUTSIDE_COLLAR: (
        Row(bid(1, 1, 79), "price_ticks", "80 to 120", venue=BANDED),
        Row(ask(1, EAST, 1, 121), "price_ticks", "80 to 120", venue=BANDED),
        Row(bid(1, 1, 121, hours=2), "price_ticks", "80 to 120", venue=BANDED),
        Row(replaced(1, 121), "price_ticks", "80 to 120", before=(bid(1, 1, 100),), venue=BANDED),
        Row(replaced(1, 121), "price_ticks", "80 to 120", before=(bid(1, 1, 100, hours=2),), venue=BANDED),
        Row(
            replaced(1, 1402),
            "price_ticks",
            "1398 to 1401",
            before=(bid(1, 1, 1400),),
            venue=limited(collar_permille=1),
        ),
    ),
    R.NO_REFERENCE_PRICE: tuple(
        Row(
            bid(1, 1, 0, order_type=MARKET, time_in_force=IOC),
            "order_type",
            "limit: the contract has no collar",
            venue=venue,
        )
        for venue in (SMALL_VENUE, NO_PRICE)
    ),
    R.POST_ONLY_WOULD_TRADE: (
        Row(
            bid(2, 1, 100, post_only=True), "post_only", "that meets nothing", before=(ask(1, EAST, 1, 100),)
        ),
        Row(
            replaced(1, 100, 2),
            "post_only",
            "that meets nothing",
            before=(ask(1, EAST, 1, 100), bid(2, 1, 99, post_only=True)),
        ),
    ),
    R.NOT_FILLABLE: (
        Row(bid(2, 3, 100, time_in_force=FOK), "lots", "2 lots", before=(ask(1, EAST, 2, 100),)),
        Row(bid(1, 1, 100, time_in_force=FOK), "lots", "0 lots can be had"),
    ),
    R.MINIMUM_NOT_FILLABLE: (
        Row(bid(2, 5, 100, min_lots=3), "min_lots", "2 lots", before=(ask(1, EAST, 2, 100),)),
    ),
    R.POSITION_EXCEEDED: (
        Row(resale(lots=2), "lots", "1 lots of it are not resold", before=TRADE),
        Row(resale(4), "lots", "0 lots", before=(*TRADE, resale(3))),
        Row(resale(5), "lots", "0 lots", before=(*TRADE, resale(3), bid(4, 1, 120, account=OTHER_BUYER))),
        Row(replaced(2, 120, 3), "lots", "0 lots of it are not resold", before=(*TRADE, resale(3))),
    ),
    R.GROUP_FULL: (
        Row(
            grouped(9, hour=9), "exclusive_group", "8", before=tuple(grouped(n, hour=n) for n in range(1, 9))
        ),
    ),
    R.ORDER_TO_TRADE_EXCEEDED: (
        Row(bid(4, 1, 100), "account", "3 orders in this hour", before=THREE, venue=RATED),
        Row(bid(4, 1, 100, hours=2), "account", "3 orders in this hour", before=THREE, venue=RATED),
        Row(replaced(1, 99), "account", "3 orders in this hour", before=THREE, venue=RATED),
    ),
    R.TOO_MANY_RESTING_RUNS: (
        Row(
            ask(2, EAST, 1, 100, hours=2, min_hours=1),
            "site",
            "1 runs",
            before=(ask(1, EAST, 1, 100, hours=2, min_hours=1, delivery_hour=FIRST_HOUR + 5),),
            venue=VENUES["narrow"],
        ),
    ),
    R.TOO_MANY_STANDING_OFFERS: (
        Row(offer(name="f2"), "account", "1 offers", before=(offer(),), venue=VENUES["narrow"]),
        Row(
            offer(name="f2"),
            "account",
            "1 offers",
            before=(offer(), ListStandingOffer(1)),
            venue=VENUES["narrow"],
        ),
    ),
    R.CLEARING_INFEASIBLE: tuple(
        Row(proposal(*fills), "fills", "the one clearing", before=CLEARING, time_ns=CALL_END)
        for fills in (
            ((2, 1, 3),),
            ((2, 1, 0),),
            ((2, 9, 1),),
            ((9, 1, 1),),
            ((1, 2, 1),),
            ((3, 1, 1), (2, 1, 2)),
            ((2, 1, 1), (2, 1, 1)),
            ((2, 1, 2), (3, 1, 2)),
        )
    ),
    R.CLEARING_NOT_OPTIMAL: tuple(
        Row(
            proposal(*fills, prices=(EAST_AT_105,)),
            "fills",
            "the one clearing",
            before=CLEARING,
            time_ns=CALL_END,
        )
        for fills in ((), ((2, 1, 2),), ((2, 1, 1), (3, 1, 2)))
    ),
    R.CLEARING_PRICES_WRONG: (
        *(
            Row(
                proposal((2, 1, 2), (3, 1, 1), prices=prices),
                "fills",
                "the one clearing",
                before=CLEARING,
                time_ns=CALL_END,
            )
            for prices in (
                (),
                (CellPrice("east", "E", "S2", 105, 105, 104),),
                (CellPrice("east", "E", "S2", 100, 105, 105),),
                (CellPrice("east", "E", "S1", 105, 105, 105),),
                (EAST_AT_105, CellPrice("west", "E", "S1", 105, 105, 105)),
            )
        ),
        Row(
            proposal((2, 1, 2), (3, 1, 1), prices=(CellPrice("moon", "E", "S2", 105, 105, 105),)),
            "prices",
            "supply cells of the venue",
            before=CLEARING,
            time_ns=CALL_END,
        ),
    ),
}


def prepared(row: Row) -> Engine:
    """An engine in which `before` is done; what comes after a tick in it happens at the row's time."""
    engine = Engine()
    time_ns = START_NS
    for command in (*opening(row.venue), *row.before):
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
        ask(1, EAST, 10, 1, delivery_hour=FIRST_HOUR + 52, hours=48, min_hours=48),
        ask(1, EAST, 10, 1, hours=2, min_hours=1),
        bid(1, 100, 1, display_lots=99),
        bid(1, 100, 1, display_lots=2),
        bid(1, 1, 1, post_only=True, time_in_force=TimeInForce.GTD, expire_ns=START_NS + 1),
        grouped(1, hours=48),
        offer(price_curve=(0,) * 167 + (10_000_000,)),
        offer(from_hour=FIRST_HOUR - 10, until_hour=FIRST_HOUR - 10 + 8784),
        offer(until_hour=FIRST_HOUR - 8, from_hour=FIRST_HOUR - 100),
        derated(until_hour=FIRST_HOUR + 100, capacity_lots=0),
        derated(capacity_lots=10, from_hour=FIRST_HOUR - 600),
    ],
)
def test_what_stands_just_inside_a_bound_is_accepted(command: AnyCommand) -> None:
    [event, *_] = prepared(Row(command, "", "")).apply(START_NS, command)
    assert isinstance(event, OrderAccepted | StandingOfferEntered | SiteDerated)


def test_where_one_order_an_hour_is_free_the_first_of_each_hour_is_accepted() -> None:
    engine = prepared(Row(Tick(), "", "", venue=limited(free_orders_per_hour=1)))
    for number, time_ns in enumerate((START_NS, START_NS + HOUR_NS)):
        order = bid(number, 1, 100, valid_until_ns=time_ns)
        assert isinstance(engine.apply(time_ns, order)[-1], OrderAccepted)


def test_accounts_and_sites_of_high_numbers_are_found() -> None:
    high = 70_000
    registered = (
        RegisterAccount(high, high, authority=AUTHORITY),
        Deposit(high, FUNDS, authority=AUTHORITY),
        certificate(site=high, account=high),
    )
    engine = prepared(Row(Tick(), "", "", before=registered))
    [event, *_] = engine.apply(START_NS, ask(1, high, 1, 100, account=high, class_code="T4"))
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
    last_gate = GATE + HOUR_NS
    later = {"time_in_force": TimeInForce.GTD, "expire_ns": last_gate + 1}
    engine = prepared(Row(Tick(), "", ""))
    engine.apply(START_NS, ask(1, EAST, 1, 100, hours=2, min_hours=1, **later))
    engine.apply(last_gate, Tick())
    assert engine.next_due_ns() is None
    engine = prepared(Row(Tick(), "", ""))
    engine.apply(START_NS, bid(1, 1, 100, hours=2, **{**later, "expire_ns": GATE + 1}))
    engine.apply(GATE, Tick())
    assert engine.next_due_ns() != GATE + 1


def test_the_name_of_an_offer_that_is_over_is_part_of_the_state_while_it_is_taken() -> None:
    """Two markets alike in all but the name."""
    engines = [prepared(Row(Tick(), "", "", before=(offer(name=name),))) for name in ("one", "two")]
    for engine in engines:
        engine.apply(START_NS, CancelStandingOffer(BUYER, 1))
    assert engines[0].state_hash() != engines[1].state_hash()
    for engine in engines:
        engine.apply(START_NS + 601 * SECOND, Tick())
    assert engines[0].state_hash() == engines[1].state_hash()


def test_an_era_whose_round_trips_name_no_zone_is_refused() -> None:
    lost = msgspec.structs.replace(SMALL_VENUE, zones=SMALL_VENUE.zones[:2])
    engine = Engine()
    assert engine.apply(START_NS, open_era(venue=lost)) == [
        Rejected(R.UNKNOWN_ZONE, "venue.round_trips", "zones of the venue")
    ]
    with pytest.raises(ValueError, match="open_era"):
        engine.apply(START_NS, Tick())
