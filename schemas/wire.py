"""What crosses the WebSocket: JSON-RPC 2.0 envelopes and the params and results of each method.

Times are integer nanoseconds UTC; prices, GPUs and money are decimal strings. Unknown fields are refused.
Method names are `group.verb`; the groups are those of the command line.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from schemas.commands import AnyCommand, Requirement, Scope, Side, TimeInForce

TimeNs = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Decimal = Annotated[str, Meta(pattern=r"^[0-9]{1,18}(\.[0-9]{1,6})?$(?!\n)")]  # $ allows a line end after it
Id = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Text = Annotated[str, Meta(min_length=1, max_length=40, pattern="^[ -~]+$")]
Base64 = Annotated[str, Meta(min_length=1, max_length=200)]


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
    """`order.enter`."""

    client_order_id: Text
    valid_until: TimeNs
    side: Side
    class_code: Text = field(name="class")
    delivery_start: TimeNs
    hours: Annotated[int, Meta(ge=1, le=744)] = 1
    gpus: Decimal
    price: Decimal
    time_in_force: TimeInForce = TimeInForce.GTC
    expire_time: TimeNs = 0
    requirement: Requirement | None = None
    site: Id = 0
    carbon: Text | None = None


class OrderNamed(Wire, frozen=True):
    """`order.cancel`, `order.status`: by the exchange's id or by the client's."""

    order_id: Id = 0
    client_order_id: Text | None = None


class FillsSince(Wire, frozen=True):
    """`account.fills`: those with a trade id above `since`, at most `limit`."""

    since: Id = 0
    limit: Annotated[int, Meta(ge=1, le=1000)] = 1000


class Channels(Wire, frozen=True):
    """`market.subscribe`, `market.unsubscribe`: `book.CONTRACT`, `trades`, `orders`, `fills`."""

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


class OrderResult(Wire, frozen=True, kw_only=True):
    """State of an order. `status`: open, filled, canceled."""

    order_id: int
    client_order_id: str
    status: Literal["open", "filled", "canceled"]
    filled_gpus: str
    leaves_gpus: str
    end_reason: str | None = None
    fills: tuple["Fill", ...] = ()


class Fill(Wire, frozen=True, kw_only=True):
    """One side of a trade, one hour: what an account bought or sold."""

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
