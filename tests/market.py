"""Scenarios that read like the domain, on the small venue.

    run("ask 1 3 @ 100; bid 4 @ 101")

`ask SITE GPUS @ PRICE`, `bid GPUS @ PRICE`; after it, in any order: `hours N`, `ioc`, `by ACCOUNT`,
`at HOUR` (hours after the first), `carbon X`, `from ZONE LATENCY CARBON SECURITY`. `cancel N` cancels the
Nth order entered, `gate HOUR` lets time pass to that hour's gate. Prices are ticks, GPUs lots of H100-SXM.
"""

from exchange.contract import HOUR_NS, gate_ns
from exchange.engine import EMPTY_STATE, ENGINE_DIGEST, Engine
from schemas import RULES_VERSION
from schemas.codec import CODEC_DIGEST
from schemas.commands import (
    AnyCommand,
    Authority,
    CancelOrder,
    CertifySite,
    Deposit,
    EnterOrder,
    OpenEra,
    RegisterAccount,
    Requirement,
    Side,
    Tick,
    TimeInForce,
)
from schemas.events import AnyEvent, BlockTraded, OrderAccepted, OrderEnded, Rejected, Traded
from tests.small_venue import SMALL_VENUE

FIRST_HOUR = 498_000
"""A delivery hour in October 2026; every scenario starts ten hours before it."""
START_NS = (FIRST_HOUR - 10) * HOUR_NS
OPERATOR_KEY = bytes(range(32))
AUTHORITY = Authority(OPERATOR_KEY, START_NS, "test")
SELLER, SELLER_WEST, BUYER, OTHER_BUYER = 1, 2, 3, 4
EAST, MIDDLE, WEST = 1, 2, 3
FUNDS = 10**15


def open_era(**changes: object) -> OpenEra:
    """The first command of a small market."""
    fields: dict[str, object] = {
        "origin": "test.example/small",
        "rules_version": RULES_VERSION,
        "venue": SMALL_VENUE,
        "venue_key": bytes(32),
        "operator_keys": (OPERATOR_KEY,),
        "engine_digest": ENGINE_DIGEST,
        "codec_digest": CODEC_DIGEST,
        "state_before": EMPTY_STATE,
        "state_after": EMPTY_STATE,
    }
    return OpenEra(**{**fields, **changes})  # type: ignore[arg-type]


def opening() -> list[AnyCommand]:
    """The commands that set the small market up: four accounts with money, three sites of ten GPUs."""
    commands: list[AnyCommand] = [open_era()]
    for account in (SELLER, SELLER_WEST, BUYER, OTHER_BUYER):
        commands.append(RegisterAccount(account, account, authority=AUTHORITY))
        commands.append(Deposit(account, FUNDS, authority=AUTHORITY))
    for site, account, zone, carbon, security in (
        (EAST, SELLER, "east", "D", "S2"),
        (MIDDLE, SELLER, "middle", "D", "S3"),
        (WEST, SELLER_WEST, "west", "B", "S1"),
    ):
        commands.append(
            CertifySite(
                site,
                account,
                zone,
                "H100-SXM",
                10,
                carbon,
                security,
                0,
                FIRST_HOUR + 100,
                authority=AUTHORITY,
            )
        )
    return commands


def started() -> Engine:
    """An engine with the small market."""
    engine = Engine()
    for command in opening():
        engine.apply(START_NS, command)
    return engine


def bid(number: int, gpus: int, price: int, **changes: object) -> EnterOrder:
    """A bid of the small market; by default any grade serves it."""
    fields: dict[str, object] = {
        "account": BUYER,
        "client_order_id": f"o{number}",
        "valid_until_ns": START_NS + 600 * 10**9,
        "side": Side.BUY,
        "class_code": "H100-SXM",
        "delivery_hour": FIRST_HOUR,
        "lots": gpus,
        "price_ticks": price,
        "requirement": Requirement("east", "L4", "E", "S1"),
    }
    return EnterOrder(**{**fields, **changes})  # type: ignore[arg-type]


def ask(number: int, site: int, gpus: int, price: int, **changes: object) -> EnterOrder:
    """An ask of the small market, of carbon grade E."""
    fields: dict[str, object] = {
        "account": SELLER_WEST if site == WEST else SELLER,
        "client_order_id": f"o{number}",
        "valid_until_ns": START_NS + 600 * 10**9,
        "side": Side.SELL,
        "class_code": "H100-SXM",
        "delivery_hour": FIRST_HOUR,
        "lots": gpus,
        "price_ticks": price,
        "site": site,
        "carbon": "E",
    }
    return EnterOrder(**{**fields, **changes})  # type: ignore[arg-type]


def _options(words: list[str], side: Side) -> dict[str, object]:
    changes: dict[str, object] = {}
    while words:
        match words:
            case ["hours", hours, *words]:
                changes["hours"] = int(hours)
            case ["ioc", *words]:
                changes["time_in_force"] = TimeInForce.IOC
            case ["by", account, *words]:
                changes["account"] = int(account)
            case ["at", hour, *words]:
                changes["delivery_hour"] = FIRST_HOUR + int(hour)
            case ["carbon", grade, *words]:
                changes["carbon"] = grade
            case ["from", zone, latency, carbon, security, *words] if side is Side.BUY:
                changes["requirement"] = Requirement(zone, latency, carbon, security)
            case _:
                raise ValueError(f"cannot read {' '.join(words)!r}")
    return changes


class Market:
    """A small market that is told what happens and tells what came of it; every step is checked."""

    def __init__(self) -> None:
        self.engine = started()
        self.time_ns = START_NS
        self.entered = 0
        self.ids: dict[int, int] = {}
        self.names: dict[int, int] = {}

    def do(self, step: str) -> list[str]:
        """Do one step and return its reports."""
        match step.split():
            case ["ask", site, gpus, "@", price, *options]:
                self.entered += 1
                changes = _options(options, Side.SELL)
                command: AnyCommand = ask(self.entered, int(site), int(gpus), int(price), **changes)
            case ["bid", gpus, "@", price, *options]:
                self.entered += 1
                command = bid(self.entered, int(gpus), int(price), **_options(options, Side.BUY))
            case ["cancel", number]:
                order = self.engine.orders[self.ids[int(number)]]
                command = CancelOrder(order.account.account, order.order_id)
            case ["gate", hour]:
                self.time_ns = gate_ns(FIRST_HOUR + int(hour), SMALL_VENUE.gate_seconds)
                command = Tick()
            case _:
                raise ValueError(f"cannot read {step!r}")
        events = self.engine.apply(self.time_ns, command)
        self.engine.check()
        return [text for event in events for text in self.told(event)]

    def told(self, event: AnyEvent) -> list[str]:
        """Return the event in words, orders by the number in which they were entered."""
        match event:
            case OrderAccepted():
                self.ids[self.entered] = event.order_id
                self.names[event.order_id] = self.entered
                return []
            case Rejected():
                return [f"rejected {event.reason.name}"]
            case Traded():
                maker = event.ask_order_id if event.taker is Side.BUY else event.bid_order_id
                return [f"{event.lots} @ {event.price_ticks} with {self.names[maker]}"]
            case BlockTraded():
                legs = ", ".join(
                    f"{leg.lots} @ {leg.price_ticks} with {self.names[leg.ask_order_id]}"
                    for leg in event.legs
                )
                return [f"block {self.names[event.order_id]} at site {event.site}: {legs}"]
            case OrderEnded():
                return [f"{self.names[event.order_id]} ended {event.reason}, {event.leaves_lots} left"]
            case _:
                return []


def run(scenario: str) -> list[str]:
    """Play a scenario on a new small market and return what its last step reports."""
    market = Market()
    reports: list[str] = []
    for step in scenario.split(";"):
        reports = market.do(step.strip())
    return reports
