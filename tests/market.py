"""Scenarios that read like the domain, on a small venue.

    run("ask 1 3 @ 100; bid 4 @ 101")

Prices are ticks, GPUs lots of H100-SXM, hours are counted from the first delivery hour, 10 hours after the
start. Orders are named by the number in which they were entered or listed, offers and trades by their own.

`venue NAME` as the first step takes another venue than the small one; see `VENUES`.
`ask SITE GPUS @ PRICE`, `bid GPUS @ PRICE`, the price a number or `market`; after it, in any order:
`at HOUR`, `hours N`, `stretch N` (the shortest that a run sells), `by ACCOUNT`, `carbon X`,
`from ZONE LATENCY CARBON SECURITY`, `ioc`, `fok`, `auction`, `gtd SECONDS` (from now), `min GPUS`,
`show GPUS`, `post-only`, `self MODE`, `group NAME`, `resell TRADE`.
`replace N to GPUS @ PRICE`, `cancel N`, `cancel all by ACCOUNT`, and then `at HOUR`, `buy` or `sell`.
`repeat N` enters the very same order again.
`standing ask 1 3 @ 100 at HOUR until HOUR` with `hours`, `stretch`, `carbon`, `from`, `by` as above; the
price may be a curve, `100,90,...`. `replace offer N to GPUS @ PRICE`, `cancel offer N`.
`halt`, `resume`, `end-call`, `clear` (propose the right clearing) and `phase`, of hour 0 or `at HOUR`.
`derate SITE to GPUS at HOUR` and `hours N`, `suspend ACCOUNT`, `reinstate ACCOUNT`,
`withdraw ACCOUNT to MICROS` (all but that many of its free ones), `money ACCOUNT`.
`chores`: the sequencer's own commands, until there are none. `later SECONDS`, `gate HOUR`, `until HOUR`: time
passes, so long, to an hour's gate, to its start.
"""

from collections.abc import Mapping

from msgspec.structs import replace

from exchange.calls import price_of
from exchange.clearing import clear
from exchange.contract import HOUR_NS, gate_ns
from exchange.engine import EMPTY_STATE, ENGINE_DIGEST, Engine
from exchange.funds import Purse
from schemas import RULES_VERSION
from schemas.codec import CODEC_DIGEST
from schemas.commands import (
    AnyCommand,
    Authority,
    CancelOrder,
    CancelStandingOffer,
    CertifySite,
    Deposit,
    DerateSite,
    EndCall,
    EnterOrder,
    EnterStandingOffer,
    HaltContract,
    MassCancel,
    OpenEra,
    OrderType,
    ProposeClearing,
    RegisterAccount,
    ReinstateAccount,
    ReplaceOrder,
    ReplaceStandingOffer,
    Requirement,
    ResumeContract,
    SelfTrade,
    Side,
    SuspendAccount,
    Tick,
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
    ListingSkipped,
    OrderAccepted,
    OrderEnded,
    OrderListed,
    OrderReduced,
    OrderRepeated,
    OrderReplaced,
    OrdersCanceled,
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
from schemas.venue import CallRules, Venue
from tests.small_venue import SMALL_VENUE

FIRST_HOUR = 498_000
"""A delivery hour in October 2026, a Saturday from 00:00 UTC; every scenario starts ten hours before it."""
CLASS = "H100-SXM"
START_NS = (FIRST_HOUR - 10) * HOUR_NS
SECOND_NS = 10**9
OPERATOR_KEY = bytes(range(32))
AUTHORITY = Authority(OPERATOR_KEY, START_NS, "test")
SELLER, SELLER_WEST, BUYER, OTHER_BUYER = 1, 2, 3, 4
EAST, MIDDLE, WEST = 1, 2, 3
FUNDS = 10**15

_SHORT = replace(SMALL_VENUE, horizon_hours=24)
_NEAR_100 = tuple(replace(c, reference_price_ticks=100) for c in SMALL_VENUE.classes)

VENUES: Mapping[str, Venue] = {
    "small": SMALL_VENUE,
    "banded": replace(
        SMALL_VENUE,
        classes=_NEAR_100,
        limits=replace(
            SMALL_VENUE.limits,
            collar_permille=200,
            band_permille=50,
            reference_lots=4,
            band_small_lots=2,
            volatility_calls_per_hour=1,
        ),
    ),
    "short": _SHORT,
    "opening": replace(_SHORT, calls=CallRules(opening=True)),
    "rated": replace(
        SMALL_VENUE, limits=replace(SMALL_VENUE.limits, free_orders_per_hour=3, orders_per_trade=1)
    ),
    "narrow": replace(
        SMALL_VENUE,
        limits=replace(
            SMALL_VENUE.limits,
            open_orders_max=3,
            resting_runs_max=1,
            standing_offers_max=1,
            block_max_site_hours=6,
            iceberg_slices_max=4,
        ),
    ),
}
"""Beside the small one (no collar, no band, 35 days ahead, no opening calls):

`banded`: prices about 100, collar 200, band 50 permille, over the last 4 lots; a remainder up to 2 lots is
small, one call an hour. `short`: 24 hours ahead, to hour 14. `opening`: short, with opening calls. `rated`:
3 orders an hour and 1 for each trade. `narrow`: 3 open orders, 1 run a site, 1 offer, blocks of 6
site-hours, 4 slices.
"""


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


def opening(venue: Venue = SMALL_VENUE) -> list[AnyCommand]:
    """The commands that set the small market up: four accounts with money, three sites of ten GPUs."""
    commands: list[AnyCommand] = [open_era(venue=venue)]
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
                CLASS,
                10,
                carbon,
                security,
                0,
                FIRST_HOUR + 100,
                authority=AUTHORITY,
            )
        )
    return commands


def started(venue: Venue = SMALL_VENUE) -> Engine:
    """An engine with the small market."""
    engine = Engine()
    for command in opening(venue):
        engine.apply(START_NS, command)
    return engine


def bid(number: int, gpus: int, price: int, **changes: object) -> EnterOrder:
    """A bid of the small market; by default any grade serves it."""
    fields: dict[str, object] = {
        "account": BUYER,
        "client_order_id": f"o{number}",
        "valid_until_ns": START_NS + 600 * SECOND_NS,
        "side": Side.BUY,
        "class_code": CLASS,
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
        "valid_until_ns": START_NS + 600 * SECOND_NS,
        "side": Side.SELL,
        "class_code": CLASS,
        "delivery_hour": FIRST_HOUR,
        "lots": gpus,
        "price_ticks": price,
        "site": site,
        "carbon": "E",
    }
    return EnterOrder(**{**fields, **changes})  # type: ignore[arg-type]


def _options(words: list[str], side: Side, now_ns: int) -> dict[str, object]:
    changes: dict[str, object] = {}
    while words:
        match words:
            case ["hours", hours, *words]:
                changes["hours"] = int(hours)
            case ["stretch", hours, *words]:
                changes["min_hours"] = int(hours)
            case ["gtd", seconds, *words]:
                changes["time_in_force"] = TimeInForce.GTD
                changes["expire_ns"] = now_ns + int(seconds) * SECOND_NS
            case ["ioc" | "fok" | "auction" as time_in_force, *words]:
                changes["time_in_force"] = TimeInForce(time_in_force)
            case ["min", gpus, *words]:
                changes["min_lots"] = int(gpus)
            case ["show", gpus, *words]:
                changes["display_lots"] = int(gpus)
            case ["post-only", *words]:
                changes["post_only"] = True
            case ["self", mode, *words]:
                changes["self_trade"] = SelfTrade(mode)
            case ["group", name, *words]:
                changes["exclusive_group"] = name
            case ["by", account, *words]:
                changes["account"] = int(account)
            case ["at", hour, *words]:
                changes["delivery_hour"] = FIRST_HOUR + int(hour)
            case ["carbon", grade, *words]:
                changes["carbon"] = grade
            case ["from", zone, latency, carbon, security, *words] if side is Side.BUY:
                changes["requirement"] = Requirement(zone, latency, carbon, security)
            case ["resell", trade, *words] if side is Side.SELL:
                changes["position"] = int(trade)
                changes.setdefault("account", BUYER)
            case _:
                raise ValueError(f"cannot read {' '.join(words)!r}")
    return changes


def _hour(words: list[str]) -> int:
    match words:
        case []:
            return FIRST_HOUR
        case ["at", hour]:
            return FIRST_HOUR + int(hour)
        case _:
            raise ValueError(f"cannot read {' '.join(words)!r}")


def _curve(prices: str) -> tuple[int, ...]:
    return tuple(int(price) for price in prices.split(","))


class Market:
    """A small market that is told what happens and tells what came of it; every step is checked."""

    def __init__(self) -> None:
        self.begin("small")

    def begin(self, venue: str) -> None:
        """Begin a new market."""
        self.venue = VENUES[venue]
        self.engine = started(self.venue)
        self.time_ns = START_NS
        self.entered = 0
        self.acts = 0
        self.ids: dict[int, int] = {}
        self.names: dict[int, int] = {}
        self.orders: dict[int, EnterOrder] = {}
        self.offer_owners: dict[int, int] = {}

    def play(self, steps: str) -> list[str]:
        """Do the steps and return what the last one reports."""
        reports: list[str] = []
        for step in steps.split(";"):
            reports = self.do(step)
        return reports

    def do(self, step: str) -> list[str]:
        """Do one step and return its reports."""
        match step.split():
            case ["venue", name]:
                self.begin(name)
                return []
            case ["chores"]:
                reports: list[str] = []
                while chores := self.engine.chores():
                    reports += self.apply(chores[0])
                return reports
            case ["money", account]:
                held = self.engine.balances()
                return [
                    ", ".join(
                        f"{purse.name.lower()} {held.get((int(account), purse), 0)}"
                        for purse in (Purse.RESERVED, Purse.COMMITTED, Purse.BOND)
                    )
                ]
            case ["phase", *where]:
                return [str(self.engine.phase(CLASS, _hour(where)))]
            case ["later", seconds]:
                self.time_ns += int(seconds) * SECOND_NS
                return self.apply(Tick())
            case ["gate", hour]:
                self.time_ns = gate_ns(FIRST_HOUR + int(hour), self.venue.gate_seconds)
                return self.apply(Tick())
            case ["until", hour]:
                self.time_ns = (FIRST_HOUR + int(hour)) * HOUR_NS
                return self.apply(Tick())
            case words:
                return self.apply(self.command(words))

    def apply(self, command: AnyCommand) -> list[str]:
        """Apply the command now, check what must hold, and return the reports."""
        before = self.engine.state_hash()
        events = self.engine.apply(self.time_ns, command)
        self.engine.check()
        # Only settlement overdraws an account.
        assert all(
            held >= 0 for (_, purse), held in self.engine.balances().items() if purse is not Purse.BANK
        )
        if isinstance(events[-1] if events else None, Rejected):
            assert self.engine.state_hash() == before, f"{command} was refused and changed something"
        return [text for event in events for text in self.told(event)]

    def command(self, words: list[str]) -> AnyCommand:
        """Return the command in these words."""
        match words:
            case ["ask", site, gpus, "@", price, *options]:
                side = Side.SELL
                order = ask(self.entered + 1, int(site), int(gpus), 0)
            case ["bid", gpus, "@", price, *options]:
                side = Side.BUY
                order = bid(self.entered + 1, int(gpus), 0)
            case _:
                return self._other_command(words)
        self.entered += 1
        changes = _options(options, side, self.time_ns)
        changes["valid_until_ns"] = self.time_ns + 600 * SECOND_NS
        if price == "market":
            changes["order_type"] = OrderType.MARKET
        else:
            changes["price_ticks"] = int(price)
        order = replace(order, **changes)
        self.orders[self.entered] = order
        return order

    def _other_command(self, words: list[str]) -> AnyCommand:
        match words:
            case ["standing", "ask", site, gpus, "@", prices, *options]:
                like = ask(0, int(site), int(gpus), 1)
                return self._offer(like, prices, options, Side.SELL)
            case ["standing", "bid", gpus, "@", prices, *options]:
                return self._offer(bid(0, int(gpus), 1), prices, options, Side.BUY)
            case ["replace", "offer", number, "to", gpus, "@", prices]:
                return ReplaceStandingOffer(
                    account=self.offer_owners[int(number)],
                    offer_id=int(number),
                    valid_until_ns=self.time_ns + 600 * SECOND_NS,
                    lots=int(gpus),
                    price_curve=_curve(prices),
                )
            case ["cancel", "offer", number]:
                return CancelStandingOffer(self.offer_owners[int(number)], int(number))
            case ["replace", number, "to", gpus, "@", price]:
                return ReplaceOrder(
                    account=self.orders[int(number)].account,
                    order_id=self.ids[int(number)],
                    valid_until_ns=self.time_ns + 600 * SECOND_NS,
                    lots=int(gpus),
                    price_ticks=int(price),
                )
            case ["cancel", "all", "by", account, *which]:
                side = Side(which.pop()) if which and which[-1] in ("buy", "sell") else None
                return MassCancel(int(account), delivery_hour=_hour(which) if which else None, side=side)
            case ["repeat", number]:
                return self.orders[int(number)]
            case ["cancel", number]:
                return CancelOrder(self.orders[int(number)].account, self.ids[int(number)])
            case ["end-call", *where]:
                return EndCall(CLASS, _hour(where))
            case ["clear", *where]:
                return self._clearing(_hour(where))
            case _:
                return self._operator_command(words)

    def _operator_command(self, words: list[str]) -> AnyCommand:
        # Every act is another one: what was signed once is done once.
        self.acts += 1
        authority = replace(AUTHORITY, signed_ns=START_NS + self.acts)
        match words:
            case ["halt", *where]:
                return HaltContract(CLASS, _hour(where), authority=authority)
            case ["resume", *where]:
                return ResumeContract(CLASS, _hour(where), authority=authority)
            case ["derate", site, "to", gpus, "at", hour]:
                first = FIRST_HOUR + int(hour)
                return DerateSite(int(site), first, first + 1, int(gpus), authority=authority)
            case ["derate", site, "to", gpus, "at", hour, "hours", hours]:
                first = FIRST_HOUR + int(hour)
                return DerateSite(int(site), first, first + int(hours), int(gpus), authority=authority)
            case ["suspend", account]:
                return SuspendAccount(int(account), authority=authority)
            case ["reinstate", account]:
                return ReinstateAccount(int(account), authority=authority)
            case ["withdraw", account, "to", micros]:
                free = self.engine.balances()[int(account), Purse.CASH]
                return Withdraw(int(account), free - int(micros), authority=authority)
            case _:
                raise ValueError(f"cannot read {' '.join(words)!r}")

    def _offer(self, like: EnterOrder, prices: str, options: list[str], side: Side) -> EnterStandingOffer:
        at = options.index("until")
        until_hour = FIRST_HOUR + int(options[at + 1])
        like = replace(like, **_options(options[:at] + options[at + 2 :], side, self.time_ns))
        return EnterStandingOffer(
            account=like.account,
            name=f"f{len(self.offer_owners) + 1}",
            valid_until_ns=self.time_ns + 600 * SECOND_NS,
            side=side,
            class_code=like.class_code,
            from_hour=like.delivery_hour,
            until_hour=until_hour,
            hours=like.hours,
            lots=like.lots,
            price_curve=_curve(prices),
            requirement=like.requirement,
            site=like.site,
            carbon=like.carbon,
            min_hours=like.min_hours,
        )

    def _clearing(self, hour: int) -> ProposeClearing:
        fills, prices = clear(self.engine.call_book(CLASS, hour))
        cells = tuple(price_of(self.engine.market, price) for price in prices)
        return ProposeClearing(CLASS, hour, fills, cells)

    def told(self, event: AnyEvent) -> list[str]:
        """Return the event in words."""
        match event:
            case OrderAccepted():
                self._name(event.order_id)
                return []
            case OrderListed():
                self.entered += 1
                self.orders[self.entered] = event.order
                self._name(event.order_id)
                listed = event.order
                return [
                    f"{self.entered} listed: {listed.lots} @ {listed.price_ticks}{_at(listed.delivery_hour)}"
                ]
            case OrderRepeated():
                return [f"{self.names[event.order_id]} repeated, {event.leaves_lots} left"]
            case OrderReplaced():
                terms = f"{event.lots} @ {event.price_ticks}, {event.leaves_lots} left"
                return [f"{self.names[event.order_id]} replaced: {terms}"]
            case OrderReduced():
                left = " ".join(str(lots) for lots in event.run_lots or (event.leaves_lots,))
                return [f"{self.names[event.order_id]} reduced {event.reason}, {left} left"]
            case OrdersCanceled():
                return [f"{event.orders} cancelled"]
            case Rejected():
                return [f"rejected {event.reason.name}"]
            case Traded(taker=None):
                ask_name, bid_name = self.names[event.ask_order_id], self.names[event.bid_order_id]
                return [f"{event.lots} @ {event.price_ticks} from {ask_name} to {bid_name}"]
            case Traded():
                maker = event.ask_order_id if event.taker is Side.BUY else event.bid_order_id
                return [f"{event.lots} @ {event.price_ticks} with {self.names[maker]}"]
            case BlockTraded():
                legs = ", ".join(
                    f"{leg.lots} @ {leg.price_ticks} with {self.names[leg.ask_order_id]}"
                    for leg in event.legs
                )
                return [f"block {self.names[event.order_id]} at site {event.site}: {legs}"]
            case BlockRetried():
                return [f"{self.names[event.order_id]} retried"]
            case OrderEnded():
                return [f"{self.names[event.order_id]} ended {event.reason}, {event.leaves_lots} left"]
            case Withdrawn():
                return []
            case _:
                return [self._told_of_market(event)]

    def _told_of_market(self, event: AnyEvent) -> str:
        match event:
            case PhaseChanged():
                return f"{event.phase}{_at(event.delivery_hour)}"
            case ContractClosed():
                return f"closed{_at(event.delivery_hour)}"
            case CallCleared():
                prices = "".join(
                    f", {cell.zone} {cell.carbon} {cell.security} at {cell.price_ticks}"
                    f" of {cell.lowest_ticks} to {cell.highest_ticks}"
                    for cell in event.prices
                )
                return f"cleared {event.lots}{prices}"
            case StandingOfferEntered():
                self.offer_owners[event.offer_id] = event.account
                return f"offer {event.offer_id} entered"
            case StandingOfferReplaced():
                return f"offer {event.offer_id} replaced"
            case StandingOfferListed():
                return f"offer {event.offer_id} listed to {event.until_hour - FIRST_HOUR}"
            case ListingSkipped():
                return f"skipped {event.reason.name}{_at(event.delivery_hour)}"
            case StandingOfferEnded():
                return f"offer {event.offer_id} ended {event.reason}"
            case AccountSuspended():
                return f"account {event.account} suspended"
            case AccountReinstated():
                return f"account {event.account} reinstated"
            case SiteDerated():
                oversold = "".join(f" {hour - FIRST_HOUR}" for hour in event.oversold_hours)
                return f"site {event.site} derated" + (f", oversold{oversold}" if oversold else "")
            case _:
                raise AssertionError(event)

    def _name(self, order_id: int) -> None:
        self.ids[self.entered] = order_id
        self.names[order_id] = self.entered


def _at(hour: int) -> str:
    return f" at {hour - FIRST_HOUR}"


def run(scenario: str) -> list[str]:
    """Play a scenario on a new market and return what its last step reports."""
    return Market().play(scenario)
