"""The state as bytes: what the state hash covers and a snapshot holds. Made and read by `exchange/state.py`.

Canonical and flat: arrays in a fixed order, every list sorted by what identifies its members. Whatever
changes here is another state format: see `exchange/migrations.py`.
"""

import msgspec
from msgspec import Struct

from schemas.commands import CertifySite, Scope
from schemas.venue import Venue


class Part(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Base of the parts. They hold no cycles, so the collector need not look at them."""


class GroupState(Part, frozen=True):
    """A group that is in force; its members are the orders that name it."""

    name: str
    reserved_micros: int
    fee_accrued: int
    bond_accrued: int
    has_traded: bool


class AccountState(Part, frozen=True):
    """An account; amounts in millionths."""

    account: int
    group: int
    cash: int
    reserved: int
    committed: int
    bond: int
    bank: int
    fees: int
    is_suspended: bool
    open_orders: int
    rate_hour: int
    orders_in_hour: int
    trades_in_hour: int
    groups: list[GroupState]


class SiteHourState(Part, frozen=True):
    """A site's capacity in an hour that is not closed, and what of it is sold or open, in lots."""

    hour: int
    capacity: int
    sold: int
    open_asks: int
    open_runs: int


class SiteState(Part, frozen=True):
    """A certified site."""

    certificate: CertifySite
    hours: list[SiteHourState]


class ReferenceState(Part, frozen=True):
    """A supply cell's reference price, and price and lots of the trades that it averages, oldest first."""

    cell: int
    ticks: int
    trades: list[tuple[int, int]]


class BookState(Part, frozen=True):
    """A contract in which something was entered; what stands in it is with the orders."""

    class_code: str
    hour: int
    phase: int
    phase_since_ns: int
    call_hour: int
    calls_in_hour: int
    references: list[ReferenceState]


class OfferState(Part, frozen=True):
    """A standing offer that lists, or has open orders, or whose name is still taken.

    `traded` is what its orders have traded, in lots by hour that is not closed.
    """

    offer_id: int
    account: int
    name: str
    valid_until_ns: int
    is_bid: bool
    class_code: str
    from_hour: int
    until_hour: int
    next_hour: int
    hours: int
    lots: int
    price_curve: tuple[int, ...]
    requirement: tuple[str, str, str, str] | None
    site: int
    carbon: str | None
    min_hours: int
    is_over: bool
    traded: list[tuple[int, int]]


class FillState(Part, frozen=True):
    """What of a trade is still of use."""

    trade_id: int
    class_code: str
    delivery_hour: int
    lots: int
    site: int
    carbon: int
    buyer: int
    seller: int
    notional_micros: int
    bond_micros: int
    resale_lots: int
    paid: int
    refunded: int
    penalty: int
    released: int
    last_run: int


class OrderState(Part, frozen=True):
    """An order that is open, or whose client's id is still taken.

    `site`, `position` and `offer_id` are 0 for none. `group_is_over` says that the group is not the one in
    force under its name. `worth_micros` and the like follow from price and lots.
    """

    order_id: int
    account: int
    client_order_id: str
    valid_until_ns: int
    is_bid: bool
    is_market: bool
    post_only: bool
    time_in_force: int
    self_trade: int
    class_code: str
    hour: int
    hours: int
    min_hours: int
    cell: int
    site: int
    position: int
    offer_id: int
    group: str | None
    group_is_over: bool
    entered_lots: int
    entered_price: int
    expire_ns: int
    min_lots: int
    display_lots: int
    lots: int
    price: int
    leaves_lots: int
    shown_lots: int
    filled_lots: int
    run_lots: list[int] | None
    priority: int
    reserved_micros: int
    fee_accrued: int
    bond_accrued: int


class State(Part, frozen=True):
    """All that the engine's answers to come depend on. `due` is time, kind and number of each due work."""

    venue: Venue
    time_ns: int
    first_ns: int
    last_order_id: int
    last_trade_id: int
    last_offer_id: int
    last_priority: int
    accounts: list[AccountState]
    sites: list[SiteState]
    books: list[BookState]
    offers: list[OfferState]
    fills: list[FillState]
    orders: list[OrderState]
    pending_retries: list[int]
    pending_listings: list[int]
    due: list[tuple[int, int, int]]
    keys: list[tuple[bytes, int, tuple[Scope, ...]]]
    operator_keys: tuple[bytes, ...]
    acts: list[bytes]
    runs: list[tuple[int, int]]
    last_batch: int


# Deterministic: the catalogue holds tables.
_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder: msgspec.msgpack.Decoder[State] = msgspec.msgpack.Decoder(State)


def encode_state(state: State) -> bytes:
    """Return the state's canonical bytes."""
    return _encoder.encode(state)


def decode_state(data: bytes) -> State:
    """Return the state.

    Raises:
        msgspec.DecodeError: the bytes are no state of this format.
    """
    return _decoder.decode(data)
