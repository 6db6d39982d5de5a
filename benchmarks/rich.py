"""A fixed flow with everything the market has: 20 cells, 24 hours, blocks, runs, groups, icebergs, minima.

The engine's own answers, as the flow is drawn, say what is open and may be cancelled.
"""

import random
from typing import NamedTuple

from msgspec.structs import replace

from benchmarks.workloads import BUYERS, MIDDLE_TICKS, SELLERS
from exchange.engine import Engine
from schemas.codec import encode
from schemas.commands import (
    AnyCommand,
    CancelOrder,
    CertifySite,
    Deposit,
    EnterOrder,
    MassCancel,
    OrderType,
    RegisterAccount,
    ReplaceOrder,
    Requirement,
    Side,
    TimeInForce,
)
from schemas.events import (
    AnyEvent,
    OrderAccepted,
    OrderEnded,
    OrderReduced,
    OrderReplaced,
    Rejected,
    trades_of,
)
from schemas.venue import Venue
from tests.market import AUTHORITY, FIRST_HOUR, START_NS, open_era
from tests.small_venue import SMALL_VENUE

HOURS = 24
STEP_NS = 1_000_000
VALID_NS = 30_000_000_000
"""A millisecond from one operation to the next; a client's id is remembered for half a minute."""
SUPPLY = (("east", "D", "S2"), ("east", "C", "S3"), ("middle", "C", "S3"), ("middle", "D", "S2"),
          ("west", "B", "S1"), ("west", "A", "S2"))  # fmt: skip
DEMAND = tuple(
    Requirement(*words.split())
    for words in (
        "east L4 E S1", "east L3 E S1", "east L2 D S2", "east L1 D S2", "east L4 C S2", "middle L4 E S1",
        "middle L3 D S1", "middle L2 D S2", "middle L1 C S3", "middle L4 B S1", "west L4 E S1",
        "west L3 C S2", "west L1 B S1", "west L4 D S2",
    )
)  # fmt: skip
"""With the supply's these are 20 cells."""

VENUE: Venue = replace(
    SMALL_VENUE,
    limits=replace(
        SMALL_VENUE.limits,
        open_orders_max=10_000_000,
        resting_blocks_max=256,
        collar_permille=500,
        band_permille=200,
        free_orders_per_hour=10_000_000,
    ),
)
"""The small venue with collar, band and order-to-trade ratio; its fees and bonds are charged."""


class Told(NamedTuple):
    """A command, encoded, and when it comes."""

    time_ns: int
    command: bytes


def opening(venue: Venue = VENUE, supply: tuple[tuple[str, str, str], ...] = SUPPLY) -> list[AnyCommand]:
    """Return the commands that set a market up: accounts with money, a site for every seller."""
    commands: list[AnyCommand] = [open_era(venue=venue)]
    for account in (*BUYERS, *SELLERS):
        commands.append(RegisterAccount(account, account, authority=AUTHORITY))
        commands.append(Deposit(account, 2**56, authority=AUTHORITY))
    for n, seller in enumerate(SELLERS):
        zone, carbon, security = supply[n % len(supply)]
        until_hour = FIRST_HOUR + 10_000
        commands.append(
            CertifySite(
                seller, seller, zone, "H100-SXM", 2**30, carbon, security, 0, until_hour, authority=AUTHORITY
            )
        )
    return commands


class _Open:
    """An open order as the events tell of it; of a block or run `leaves` are lot-hours."""

    def __init__(self, number: int, command: EnterOrder) -> None:
        self.number, self.account = number, command.account
        self.lots, self.price = command.lots, command.price_ticks
        self.leaves = command.lots * command.hours


class _Maker:
    """Draws commands and applies them."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.engine = Engine()
        self.time_ns = START_NS
        self.entered = 0
        self.open: dict[int, _Open] = {}
        self.ids: list[int] = []
        for command in opening():
            self.engine.apply(START_NS, command)

    def tell(self, command: AnyCommand) -> Told | None:
        """Apply the command at the next moment and return it, None where it is refused."""
        self.time_ns += STEP_NS
        events = self.engine.apply(self.time_ns, command)
        if isinstance(events[0], Rejected):
            return None
        for event in events:
            self.hear(command, event)
        return Told(self.time_ns, encode(command))

    def hear(self, command: AnyCommand, event: AnyEvent) -> None:
        """Keep what is open."""
        match event:
            case OrderAccepted(order_id) if isinstance(command, EnterOrder):
                self.ids.append(order_id)
                self.open[order_id] = _Open(order_id, command)
            case OrderReplaced():
                order = self.open[event.order_id]
                order.lots, order.price, order.leaves = event.lots, event.price_ticks, event.leaves_lots
            case OrderReduced():
                order = self.open[event.order_id]
                order.lots, order.leaves = event.lots, event.leaves_lots
            case OrderEnded():
                self.open.pop(event.order_id)
        for trade in trades_of(event):
            for number in (trade.bid_order_id, trade.ask_order_id):
                order = self.open[number]
                order.leaves -= trade.lots
                if not order.leaves:
                    del self.open[number]

    def any_order(self) -> "_Open":
        """Return an open order, each as likely as another."""
        while True:
            at = self.rng.randrange(len(self.ids))
            order = self.open.get(self.ids[at])
            if order is not None:
                return order
            # Gone long since: the last one takes its place.
            self.ids[at] = self.ids[-1]
            self.ids.pop()

    def order(self, rests: bool) -> EnterOrder:
        """An order of any kind."""
        rng, is_bid = self.rng, self.rng.random() < 0.5
        kind = rng.random()
        crosses = not rests and rng.random() < 0.27
        distance = -rng.randrange(1, 6) if crosses else 1 + min(400, int(rng.expovariate(1 / 25)))
        self.entered += 1
        account = rng.choice(BUYERS if is_bid else SELLERS)
        order = EnterOrder(
            account=account,
            client_order_id=f"{self.entered:08}",
            valid_until_ns=self.time_ns + VALID_NS,
            side=Side.BUY if is_bid else Side.SELL,
            class_code="H100-SXM",
            delivery_hour=FIRST_HOUR + rng.randrange(HOURS),
            lots=rng.randrange(1, 9) if crosses else rng.randrange(5, 51),
            price_ticks=MIDDLE_TICKS - distance if is_bid else MIDDLE_TICKS + distance,
            requirement=rng.choice(DEMAND) if is_bid else None,
            site=0 if is_bid else account,
            carbon=None if is_bid else rng.choice(("E", SUPPLY[(account - SELLERS[0]) % len(SUPPLY)][1])),
        )
        first = FIRST_HOUR + rng.randrange(HOURS - 8)
        if kind < 0.03:
            hours = rng.randrange(2, 9)
            short = 0 if is_bid else rng.randrange(1, hours + 1)
            return replace(order, delivery_hour=first, hours=hours, min_hours=short)
        if kind < 0.06:
            # Alternatives of one account need the same lots: a handful of groups an account.
            name = f"g{self.entered // 400}"
            return replace(order, lots=20, exclusive_group=name)
        if kind < 0.11 and not crosses:
            return replace(order, lots=50, display_lots=10)
        if kind < 0.16 and crosses:
            return replace(order, time_in_force=TimeInForce.IOC)
        if kind < 0.20 and crosses:
            return replace(order, time_in_force=TimeInForce.FOK, lots=rng.randrange(1, 4))
        if kind < 0.24 and crosses:
            return replace(order, min_lots=1)
        if kind < 0.28 and not crosses:
            return replace(order, post_only=True)
        return order

    def command(self) -> AnyCommand:
        """52 % new orders, 41 % cancels, 5 % replaces, a few market orders and mass cancels."""
        rng, chance = self.rng, self.rng.random()
        if chance < 0.52:
            return self.order(rests=False)
        if chance < 0.93:
            order = self.any_order()
            return CancelOrder(order.account, order.number)
        if chance < 0.98:
            order = self.any_order()
            return ReplaceOrder(
                account=order.account,
                order_id=order.number,
                valid_until_ns=self.time_ns + VALID_NS,
                lots=order.lots if rng.random() < 0.7 else max(1, order.lots - 1),
                price_ticks=order.price + rng.choice((-2, -1, 0, 1, 2)),
            )
        if chance < 0.999:
            return replace(
                self.order(rests=True),
                hours=1,
                min_hours=0,
                lots=rng.randrange(1, 9),
                display_lots=0,
                post_only=False,
                exclusive_group=None,
                price_ticks=0,
                order_type=OrderType.MARKET,
                time_in_force=TimeInForce.IOC,
            )
        return MassCancel(rng.choice(BUYERS), "H100-SXM", FIRST_HOUR + rng.randrange(HOURS), Side.BUY)


def rich(resting: int = 25_000, operations: int = 100_000, seed: int = 1) -> tuple[list[Told], list[Told]]:
    """Return the commands that fill the books, then those that are timed; none is refused."""
    maker = _Maker(seed)
    filling: list[Told] = []
    while len(filling) < resting:
        told = maker.tell(maker.order(rests=True))
        filling += [told] if told else []
    timed: list[Told] = []
    while len(timed) < operations:
        told = maker.tell(maker.command())
        timed += [told] if told else []
    return filling, timed
