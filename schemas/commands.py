"""Commands: what may be asked of the engine. Imperative, frozen, tagged; fields are only ever added.

Defaults are part of the encoding (they are left out) and never change. Hours are counted from the
Unix epoch, `..._ns` are UTC nanoseconds, prices are ticks per GPU-hour, quantities lots of the class,
money millionths of the venue's currency.
"""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from schemas.venue import Venue

Code = Annotated[str, Meta(min_length=1, max_length=40, pattern="^[ -~]+$")]
"""A code of the venue catalogue (class, zone, tier) or a client's order id: printable ASCII."""

Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
"""A raw Ed25519 public key."""
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
"""A SHA-256 digest."""


class Side(StrEnum):
    """Which side of the book an order is on."""

    BUY = "buy"
    SELL = "sell"


class TimeInForce(StrEnum):
    """How long an order may rest: to the gate, to `expire_ns`, or not at all."""

    GTC = "gtc"
    GTD = "gtd"
    IOC = "ioc"


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

    zone: Code
    latency: Code
    carbon: Code
    security: Code


class EnterOrder(Command, frozen=True, kw_only=True, tag="enter_order"):
    """Enter a limit order; `hours` over 1 makes a bid a block.

    A bid names a requirement; an ask its site and the carbon grade it will hold in that hour.
    """

    account: Int64
    client_order_id: Code
    valid_until_ns: Int64
    side: Side
    class_code: Code
    delivery_hour: Int64
    hours: Int64 = 1
    lots: Int64
    price_ticks: Int64
    time_in_force: TimeInForce = TimeInForce.GTC
    expire_ns: Int64 = 0
    requirement: Requirement | None = None
    site: Int64 = 0
    carbon: Code | None = None


class CancelOrder(Command, frozen=True, tag="cancel_order"):
    """Cancel what is open of an account's order, named by `order_id` or, if that is 0, by the client's id."""

    account: Int64
    order_id: Int64 = 0
    client_order_id: Code | None = None


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
    | EnterOrder
    | CancelOrder
    | ReceiveReadings
    | StartSettlementRun
    | PostSettlement
)
