"""Commands: what may be asked of the engine. Imperative, frozen, tagged; fields are only ever added.

Defaults are part of the encoding (they are left out) and never change. Hours are counted from the
Unix epoch, `..._ns` are UTC nanoseconds, prices are ticks per GPU-hour, quantities lots of the class,
money millionths of the venue's currency.
"""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from schemas.venue import Venue

Code = Annotated[str, Meta(min_length=1, max_length=40, pattern=r"^[ -~]+$(?!\n)")]
"""A code of the venue catalogue (class, zone, tier) or a client's order id: printable ASCII."""

OrderCode = Annotated[str, Meta(min_length=1, max_length=40)]
"""The same in an order, where the struct checks it: a pattern for each is most of what decoding costs."""

Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
"""A raw Ed25519 public key."""
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
"""A SHA-256 digest."""


def check_codes(struct: Struct, joined: str, *names: str) -> None:
    """Check codes, given together and by the names of their fields.

    Raises:
        ValueError: one is not printable ASCII.
    """
    if joined.isascii() and joined.isprintable():
        return
    for name in names:
        code = getattr(struct, name) or ""
        if not (code.isascii() and code.isprintable()):
            raise ValueError(f"Expected `str` of printable ASCII in `{name}`")


class Side(StrEnum):
    """Which side of the book an order is on."""

    BUY = "buy"
    SELL = "sell"


class OrderType(StrEnum):
    """Whether the order names its price or takes any within the collar."""

    LIMIT = "limit"
    MARKET = "market"


class TimeInForce(StrEnum):
    """How long an order may rest.

    To the gate, to `expire_ns`, not at all, whole or not at all, to the end of the next call.
    """

    GTC = "gtc"
    GTD = "gtd"
    IOC = "ioc"
    FOK = "fok"
    AUCTION = "auction"


class SelfTrade(StrEnum):
    """What gives way when an order would meet one of its own trade group; the taker's choice governs."""

    CANCEL_TAKER = "cancel_taker"
    CANCEL_MAKER = "cancel_maker"
    CANCEL_BOTH = "cancel_both"


class Scope(StrEnum):
    """What an access key may do."""

    TRADE = "trade"
    READ = "read"
    DROP_COPY = "drop_copy"
    OPERATE = "operate"
    AUDIT = "audit"


class Authority(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """An operator's signature: Ed25519 by `key` over the command encoded with an empty `signature`."""

    key: Key
    signed_ns: Int64
    reason: Annotated[str, Meta(max_length=200)]
    signature: Annotated[bytes, Meta(max_length=64)] = b""


class Command(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of all commands."""


class OperatorCommand(Command, frozen=True, kw_only=True):
    """Base of the acts of an operator: who, when and why stand in the log."""

    authority: Authority | None = None


class OpenEra(Command, frozen=True, tag="open_era"):
    """The first record of an era: everything the engine must know that is not an event of the market.

    `origin` names the venue's log and signs its checkpoints with `venue_key`. `clock_speed` is 0 on
    the real clock, else simulated seconds a second. The hashes of state are before and after migration.
    """

    origin: Annotated[str, Meta(min_length=1, max_length=200)]
    rules_version: str
    venue: Venue
    venue_key: Key
    operator_keys: tuple[Key, ...]
    engine_digest: Digest
    codec_digest: Digest
    state_before: Digest
    state_after: Digest
    clock_speed: Annotated[int, Meta(ge=0, le=1_000_000)] = 0


class Tick(Command, frozen=True, tag="tick"):
    """Nothing but the passing of time: what is due is done."""


class RegisterAccount(OperatorCommand, frozen=True, tag="register_account"):
    """Open an account. `registry_digest` is a salted hash of what the registry knows of its owner.

    Accounts of one `trade_group` are one owner's: they do not trade with each other.
    """

    account: Int64
    trade_group: Int64
    registry_digest: Digest = bytes(32)


class RegisterKey(OperatorCommand, frozen=True, tag="register_key"):
    """Give an Ed25519 public key access to an account within the scopes."""

    account: Int64
    key: Key
    scopes: tuple[Scope, ...]


class Deposit(OperatorCommand, frozen=True, tag="deposit"):
    """Credit money received at the bank."""

    account: Int64
    amount_micros: Int64


class Withdraw(OperatorCommand, frozen=True, tag="withdraw"):
    """Debit money paid out at the bank."""

    account: Int64
    amount_micros: Int64


class CertifySite(OperatorCommand, frozen=True, tag="certify_site"):
    """Register and certify a provider's site.

    Zone, class, capacity, best carbon grade, security tier and the hours it is good for.
    """

    site: Int64
    account: Int64
    zone: Code
    class_code: Code
    capacity_lots: Int64
    carbon: Code
    security: Code
    from_hour: Int64
    until_hour: Int64


class Requirement(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a bid needs: the zone where its users are and the worst grade of each attribute it accepts."""

    zone: OrderCode
    latency: OrderCode
    carbon: OrderCode
    security: OrderCode

    def __post_init__(self) -> None:
        joined = self.zone + self.latency + self.carbon + self.security
        check_codes(self, joined, "zone", "latency", "carbon", "security")


class EnterOrder(Command, frozen=True, kw_only=True, tag="enter_order"):
    """Enter an order; `hours` over 1 makes a bid a block and an ask a run.

    A bid names a requirement; an ask its site and the carbon grade it will hold in that hour, or in
    `position` the trade that it resells, whose site it then need not name. A market order has no price.
    `min_lots` is the least that must trade on entry, `display_lots` what an iceberg shows, `min_hours` the
    shortest stretch that a run sells.
    Orders of one account that name the same `exclusive_group` are alternatives.
    """

    account: Int64
    client_order_id: OrderCode
    valid_until_ns: Int64
    side: Side
    class_code: OrderCode
    delivery_hour: Int64
    hours: Int64 = 1
    lots: Int64
    price_ticks: Int64 = 0
    order_type: OrderType = OrderType.LIMIT
    time_in_force: TimeInForce = TimeInForce.GTC
    expire_ns: Int64 = 0
    min_lots: Int64 = 0
    display_lots: Int64 = 0
    post_only: bool = False
    self_trade: SelfTrade = SelfTrade.CANCEL_TAKER
    exclusive_group: OrderCode | None = None
    requirement: Requirement | None = None
    site: Int64 = 0
    position: Int64 = 0
    carbon: OrderCode | None = None
    min_hours: Int64 = 0

    def __post_init__(self) -> None:
        joined = f"{self.client_order_id}{self.class_code}{self.exclusive_group}{self.carbon}"
        check_codes(self, joined, "client_order_id", "class_code", "exclusive_group", "carbon")


class ReplaceOrder(Command, frozen=True, kw_only=True, tag="replace_order"):
    """Change an open order, named as in `CancelOrder`: `lots` is the new total, what is filled included."""

    account: Int64
    order_id: Int64 = 0
    client_order_id: Code | None = None
    valid_until_ns: Int64
    lots: Int64
    price_ticks: Int64


class CancelOrder(Command, frozen=True, tag="cancel_order"):
    """Cancel what is open of an account's order, named by `order_id` or, if that is 0, by the client's id."""

    account: Int64
    order_id: Int64 = 0
    client_order_id: Code | None = None


class MassCancel(Command, frozen=True, tag="mass_cancel"):
    """Cancel every open order of an account, or those of a class, of a delivery hour, of a side.

    A block or run counts in each of its hours. Standing offers stay.
    """

    account: Int64
    class_code: Code | None = None
    delivery_hour: Int64 | None = None
    side: Side | None = None


class EnterStandingOffer(Command, frozen=True, kw_only=True, tag="enter_standing_offer"):
    """List the same order for every hour from `from_hour` to before `until_hour` as it enters the horizon.

    With `hours` over 1: a run or block for each whole stretch of that many, counted from `from_hour`.
    `price_curve` has 1, 24 or 168 prices in ticks by UTC hour of the week from Monday 00:00; 0 lists
    nothing then. A run or block has its first hour's price.
    """

    account: Int64
    name: Code
    valid_until_ns: Int64
    side: Side
    class_code: Code
    from_hour: Int64
    until_hour: Int64
    hours: Int64 = 1
    lots: Int64
    price_curve: Annotated[tuple[Int64, ...], Meta(max_length=168)]
    requirement: Requirement | None = None
    site: Int64 = 0
    carbon: Code | None = None
    min_hours: Int64 = 0


class ReplaceStandingOffer(Command, frozen=True, kw_only=True, tag="replace_standing_offer"):
    """Give a standing offer other lots and prices: what it listed is withdrawn and listed anew."""

    account: Int64
    offer_id: Int64
    valid_until_ns: Int64
    lots: Int64
    price_curve: Annotated[tuple[Int64, ...], Meta(max_length=168)]


class CancelStandingOffer(Command, frozen=True, tag="cancel_standing_offer"):
    """Withdraw a standing offer and every open order that it listed."""

    account: Int64
    offer_id: Int64


class ListStandingOffer(Command, frozen=True, tag="list_standing_offer"):
    """List the next hours of a standing offer whose listing is due; the sequencer's own command."""

    offer_id: Int64


class RetryBlock(Command, frozen=True, tag="retry_block"):
    """Try a resting block whose retry is pending; the sequencer's own command."""

    order_id: Int64


class EndCall(Command, frozen=True, tag="end_call"):
    """End a call at the moment that was drawn for it; the sequencer's own command."""

    class_code: Code
    delivery_hour: Int64


class CallFill(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Lots that a bid gets from an ask in a call."""

    bid_order_id: Int64
    ask_order_id: Int64
    lots: Int64


class CellPrice(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a supply cell clears at: the floor of the mean of its lowest and highest equilibrium price."""

    zone: Code
    carbon: Code
    security: Code
    lowest_ticks: Int64
    highest_ticks: Int64
    price_ticks: Int64


class ProposeClearing(Command, frozen=True, tag="propose_clearing"):
    """Submit the one right clearing of a call that has ended: fills by bid and ask, prices by supply cell.

    Fills ascend by bid and ask order id, prices by cell number; only cells that trade have one.
    """

    class_code: Code
    delivery_hour: Int64
    fills: tuple[CallFill, ...]
    prices: tuple[CellPrice, ...]


class HaltContract(OperatorCommand, frozen=True, tag="halt_contract"):
    """Stop trading in a contract: only cancels and reductions are taken."""

    class_code: Code
    delivery_hour: Int64


class ResumeContract(OperatorCommand, frozen=True, tag="resume_contract"):
    """Restart a halted contract through a call."""

    class_code: Code
    delivery_hour: Int64


class SuspendAccount(OperatorCommand, frozen=True, tag="suspend_account"):
    """Take no more orders from an account; what is open stays and may be reduced or cancelled."""

    account: Int64


class ReinstateAccount(OperatorCommand, frozen=True, tag="reinstate_account"):
    """Take orders from a suspended account again."""

    account: Int64


class DerateSite(OperatorCommand, frozen=True, tag="derate_site"):
    """Set a site's capacity from `from_hour` to before `until_hour`; open asks beyond it are cut."""

    site: Int64
    from_hour: Int64
    until_hour: Int64
    capacity_lots: Int64


class CorrectClock(OperatorCommand, frozen=True, tag="correct_clock"):
    """Believe the machine's clock again, which had parted from the time that passed."""


class ReceiveReadings(OperatorCommand, frozen=True, tag="receive_readings"):
    """Announce a batch of meter readings kept outside the log, so that it cannot change unseen."""

    batch: Int64
    source: Code
    from_hour: Int64
    until_hour: Int64
    count: Int64
    sha256: Digest


class StartSettlementRun(OperatorCommand, frozen=True, tag="start_settlement_run"):
    """Announce a run: the fills and readings it was computed from and the digest of what it will post."""

    run: Int64
    kind: Annotated[str, Meta(max_length=20)]
    position: Int64
    readings_batch: Int64
    postings: Int64
    sha256: Digest


class PostSettlement(Command, frozen=True, tag="post_settlement"):
    """Move the money of one fill in one run; the amounts are this run's difference to what was posted.

    `payment_micros` goes from the buyer's committed money to the seller, `refund_micros` back to the
    buyer, `penalty_micros` from the seller's bond to the buyer, `bond_release_micros` back to the seller.
    """

    run: Int64
    trade_id: Int64
    verdict: Code
    delivered_gpu_ms: Int64
    payment_micros: Int64
    refund_micros: Int64
    penalty_micros: Int64
    bond_release_micros: Int64


AnyCommand = (
    OpenEra
    | Tick
    | RegisterAccount
    | RegisterKey
    | Deposit
    | Withdraw
    | CertifySite
    | DerateSite
    | SuspendAccount
    | ReinstateAccount
    | CorrectClock
    | HaltContract
    | ResumeContract
    | EnterOrder
    | ReplaceOrder
    | CancelOrder
    | MassCancel
    | EnterStandingOffer
    | ReplaceStandingOffer
    | CancelStandingOffer
    | ListStandingOffer
    | RetryBlock
    | EndCall
    | ProposeClearing
    | ReceiveReadings
    | StartSettlementRun
    | PostSettlement
)
