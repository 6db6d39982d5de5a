"""What crosses the WebSocket: JSON-RPC 2.0 envelopes and the params and results of each method.

Times are integer nanoseconds UTC; prices, GPUs and money are decimal strings. Unknown fields are refused.
Method names are `group.verb`; the groups are those of the command line.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from schemas.commands import AnyCommand, OrderType, Requirement, Scope, SelfTrade, Side, TimeInForce

TimeNs = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Decimal = Annotated[str, Meta(pattern=r"^[0-9]{1,18}(\.[0-9]{1,6})?$(?!\n)")]  # $ allows a line end after it
Id = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Text = Annotated[str, Meta(min_length=1, max_length=40, pattern=r"^[ -~]+$(?!\n)")]
Base64 = Annotated[str, Meta(min_length=1, max_length=200)]
Hours = Annotated[int, Meta(ge=1, le=744)]
Curve = Annotated[tuple[Decimal, ...], Meta(max_length=168)]


class Wire(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of all that crosses the wire."""


class Request(Wire, frozen=True):
    """A call."""

    jsonrpc: Literal["2.0"]
    id: int | str
    method: Annotated[str, Meta(max_length=60)]
    params: msgspec.Raw = msgspec.Raw(b"{}")


class RpcError(Wire, frozen=True):
    """Why a call failed. `data` names the field, its value and what is allowed."""

    code: int
    message: str
    data: dict[str, Any] | None = None


class Result(Wire, frozen=True, kw_only=True):
    """The answer of a call that succeeded. `us_in`, `us_out`: microseconds UTC in and out."""

    jsonrpc: Literal["2.0"]
    id: int | str
    result: Any
    us_in: int
    us_out: int


class Failure(Wire, frozen=True, kw_only=True):
    """The answer of a call that failed; no id where none could be read."""

    jsonrpc: Literal["2.0"]
    id: int | str | None
    error: RpcError
    us_in: int
    us_out: int


class Message(Wire, frozen=True):
    """What a subscribed channel brings."""

    channel: str
    data: Any


class Notification(Wire, frozen=True, kw_only=True):
    """A message of a subscribed channel; its method is `subscription`."""

    jsonrpc: Literal["2.0"]
    method: Literal["subscription"]
    params: Message


class SessionChallenge(Wire, frozen=True):
    """`session.challenge`: ask for the bytes to be signed."""

    key: Base64


class SessionLogin(Wire, frozen=True):
    """`session.login`: sign `cux-login:` and the challenge's bytes with the key."""

    key: Base64
    signature: Base64


class OrderEnter(Wire, frozen=True, kw_only=True):
    """`order.enter`: the terms of `EnterOrder`. A market order has no price."""

    client_order_id: Text
    valid_until: TimeNs
    side: Side
    class_code: Text = field(name="class")
    delivery_start: TimeNs
    hours: Hours = 1
    gpus: Decimal
    price: Decimal = "0"
    order_type: OrderType = OrderType.LIMIT
    time_in_force: TimeInForce = TimeInForce.GTC
    expire_time: TimeNs = 0
    min_gpus: Decimal = "0"
    display_gpus: Decimal = "0"
    post_only: bool = False
    self_trade: SelfTrade = SelfTrade.CANCEL_TAKER
    exclusive_group: Text | None = None
    requirement: Requirement | None = None
    site: Id = 0
    position: Id = 0
    carbon: Text | None = None
    min_hours: Annotated[int, Meta(ge=0, le=744)] = 0


class OrderNamed(Wire, frozen=True):
    """`order.cancel`, `order.status`: by the exchange's id or by the client's."""

    order_id: Id = 0
    client_order_id: Text | None = None


class OrderReplace(OrderNamed, frozen=True, kw_only=True):
    """`order.replace`: `gpus` is the new total, what is filled included."""

    valid_until: TimeNs
    gpus: Decimal
    price: Decimal


class OrderMassCancel(Wire, frozen=True, kw_only=True):
    """`order.mass_cancel`: every open order, or those of a class, of a delivery hour, of a side."""

    class_code: Text | None = field(default=None, name="class")
    delivery_start: TimeNs | None = None
    side: Side | None = None


class OfferEnter(Wire, frozen=True, kw_only=True):
    """`offer.enter`: an order for every hour from `from` to before `until`, as it enters the horizon.

    `price_curve` has 1, 24 or 168 prices by UTC hour of the week from Monday 00:00; 0 lists nothing then.
    """

    name: Text
    valid_until: TimeNs
    side: Side
    class_code: Text = field(name="class")
    from_time: TimeNs = field(name="from")
    until_time: TimeNs = field(name="until")
    hours: Hours = 1
    gpus: Decimal
    price_curve: Curve
    requirement: Requirement | None = None
    site: Id = 0
    carbon: Text | None = None
    min_hours: Annotated[int, Meta(ge=0, le=744)] = 0


class OfferReplace(Wire, frozen=True, kw_only=True):
    """`offer.replace`: other GPUs and prices; what it listed ends and is listed anew."""

    offer_id: Id
    valid_until: TimeNs
    gpus: Decimal
    price_curve: Curve


class OfferNamed(Wire, frozen=True):
    """`offer.cancel`."""

    offer_id: Id


class FillsSince(Wire, frozen=True):
    """`account.fills`: those with a trade id above `since`, at most `limit`."""

    since: Id = 0
    limit: Annotated[int, Meta(ge=1, le=1000)] = 1000


class Channels(Wire, frozen=True):
    """`market.subscribe`, `market.unsubscribe`.

    `book.CONTRACT`, `trades`, `status`, `auction`; after a login `orders`, `fills`.
    """

    channels: Annotated[tuple[Annotated[str, Meta(max_length=80)], ...], Meta(max_length=100)]


class ContractNamed(Wire, frozen=True):
    """`market.snapshot`."""

    contract: Annotated[str, Meta(max_length=60)]


class OperatorSubmit(Wire, frozen=True):
    """`operator.submit`: a signed command, at the admin door only."""

    command: AnyCommand


class ClockSet(Wire, frozen=True):
    """`clock.set`: move a simulated clock forward, then let it run at a speed; at the admin door only."""

    time: TimeNs | None = None
    speed: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None


class NoParams(Wire, frozen=True):
    """Params of methods that take none."""


ContractPhase = Literal["pre_open", "call", "clearing", "continuous", "halted", "closed"]
"""What a contract takes; `closed` after its gate."""


class OrderResult(Wire, frozen=True, kw_only=True):
    """State of an order: its terms now, what became of it, what its contract takes.

    `gpus` is the total, which replaces and cuts change; a market order has no price. An iceberg has
    `shown_gpus`. A run has `run_gpus`, what is open of it hour by hour from its first; its `filled_gpus` and
    `leaves_gpus` are GPU-hours. An order that a standing offer listed has `offer_id` and no client id.
    `phase` is that of its contract; of several hours the first that is not yet closed and not continuous
    counts.
    """

    order_id: int
    client_order_id: str
    status: Literal["open", "filled", "canceled"]
    side: Side
    class_code: str = field(name="class")
    delivery_start: int
    hours: int = 1
    gpus: str
    price: str | None = None
    filled_gpus: str
    leaves_gpus: str
    shown_gpus: str | None = None
    run_gpus: tuple[str, ...] = ()
    exclusive_group: str | None = None
    offer_id: int = 0
    phase: ContractPhase
    end_reason: str | None = None
    fills: tuple["Fill", ...] = ()


class MassCancelResult(Wire, frozen=True):
    """So many orders ended."""

    orders: int


class SkippedHour(Wire, frozen=True, kw_only=True):
    """An hour that a standing offer could not list; `reason` is a number of `RejectReason`."""

    delivery_start: int
    reason: int
    field: str
    allowed: str


class OfferResult(Wire, frozen=True, kw_only=True):
    """State of a standing offer. `listed_until`: hours before it were listed or skipped, 0: none yet.

    `open_orders` of those that it listed are open. `skipped` are the hours still to be delivered that were
    refused when they were listed.
    """

    offer_id: int
    name: str
    status: Literal["listing", "ended"]
    side: Side
    class_code: str = field(name="class")
    from_time: int = field(name="from")
    until_time: int = field(name="until")
    hours: int = 1
    gpus: str
    price_curve: tuple[str, ...]
    listed_until: int = 0
    open_orders: int = 0
    skipped: tuple[SkippedHour, ...] = ()
    end_reason: str | None = None


class Fill(Wire, frozen=True, kw_only=True):
    """One side of a trade, one hour: what an account bought or sold.

    `position` is the trade whose GPUs a seller resold.
    """

    trade_id: int
    order_id: int
    client_order_id: str
    side: Side
    class_code: str = field(name="class")
    delivery_start: int
    gpus: str
    price: str
    fee: str
    site: int
    block: int = 0
    position: int = 0
    time: int


class Funds(Wire, frozen=True):
    """Where an account's money is."""

    account: int
    cash: str
    reserved: str
    committed: str
    bond: str


class LoginResult(Wire, frozen=True):
    """Who the session is."""

    account: int
    scopes: tuple[Scope, ...]


class VenueTime(Wire, frozen=True):
    """Venue time now and how many times as fast as the wall clock it runs (1: real time, 0: it stands)."""

    time: int
    speed: int
