"""A session: one connection, one caller, JSON-RPC in and out. Answers come from durable records only."""

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from enum import EnumType
from typing import Any, NamedTuple

import msgspec

from exchange.link import BusyError, CoreLink, CoreLostError
from gateway.state import State
from schemas.commands import AnyCommand, Scope
from schemas.reasons import DoorError
from schemas.records import Decoded
from schemas.wire import (
    Failure,
    Request,
    Result,
    RpcError,
)

IN_FLIGHT_MAX = 500
CHANNELS_MAX = 500
"""So many channels a session may listen to at once."""
BRACKETS_MAX = 500
"""So many brackets may open in a message: far more than any call has, and few enough for every decoder."""
_WITHOUT_ERA = {"session.challenge", "session.time", "venue.status"}
"""All other methods need the venue, which is known from the first record on."""
_TOLD_BACK_MAX = 200

_request_decoder = msgspec.json.Decoder(Request)
_encoder = msgspec.json.Encoder()


class CallError(Exception):
    """A call that is refused, as the caller will read it."""

    def __init__(self, code: int, message: str, **data: Any) -> None:
        super().__init__(message)
        self.error = RpcError(code, message, data or None)


class Method(NamedTuple):
    """What a method takes, who may call it, and what does it."""

    params: type[msgspec.Struct]
    scope: Scope | None
    admin: bool
    handler: Callable[["Session", Any], Awaitable[Any]]


class Exchange:
    """What all sessions share: the state, the way to the core, and who listens to what."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.link: CoreLink | None = None
        # Only channels and books that somebody listens to have an entry.
        self.channels: dict[str, set[Session]] = {}
        self.book_seq: dict[str, int] = {}

    async def submit(self, command: AnyCommand) -> Decoded:
        """Return the durable record of the command.

        Raises:
            CallError: busy, or the core is gone and the outcome unknown.
        """
        if self.link is None:
            raise CallError(DoorError.BUSY, "the exchange is not ready; nothing was taken, try again")
        try:
            return await self.link.submit(command)
        except BusyError as error:
            raise CallError(DoorError.BUSY, f"nothing was taken, try again: {error}") from None
        except ValueError as error:
            raise CallError(DoorError.INTERNAL_ERROR, str(error)) from None
        except CoreLostError:
            raise CallError(
                DoorError.OUTCOME_UNKNOWN,
                "the exchange restarted; ask for the order's status, or repeat the order",
            ) from None


class Session:
    """One connection. `send` takes the encoded message and never waits."""

    def __init__(
        self, exchange: Exchange, send: Callable[[bytes], None], admin: bool, methods: Mapping[str, Method]
    ) -> None:
        self.exchange = exchange
        self._methods = methods
        self.admin = admin
        self.account = 0
        self.scopes: tuple[Scope, ...] = ()
        self.channels: set[str] = set()
        self.closed = False
        self.in_flight = 0
        self._send = send
        self._challenge: tuple[bytes, bytes] | None = None

    async def receive(self, text: str | bytes) -> None:
        """Serve one message; whatever it is, it gets one answer, unless the session is closed."""
        if self.closed:
            return
        us_in = time.time_ns() // 1000
        identity: int | str | None = None
        self.in_flight += 1
        try:
            _refuse_depth(text)
            request = _request_decoder.decode(text)
            identity = request.id
            result = await self._call(request)
        except CallError as refusal:
            self._fail(identity, refusal.error, us_in)
        except msgspec.ValidationError as error:
            self._fail(identity, RpcError(DoorError.INVALID_REQUEST, str(error)), us_in)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._fail(identity, RpcError(DoorError.PARSE_ERROR, f"no JSON: {error}"), us_in)
        except Exception:
            self._fail(identity, RpcError(DoorError.INTERNAL_ERROR, "a fault of the exchange's own"), us_in)
            raise
        else:
            answer = Result(
                jsonrpc="2.0", id=request.id, result=result, us_in=us_in, us_out=time.time_ns() // 1000
            )
            self._send(_encoder.encode(answer))
        finally:
            self.in_flight -= 1

    def _fail(self, identity: int | str | None, error: RpcError, us_in: int) -> None:
        answer = Failure(jsonrpc="2.0", id=identity, error=error, us_in=us_in, us_out=time.time_ns() // 1000)
        self._send(_encoder.encode(answer))

    async def _call(self, request: Request) -> Any:
        found = self._methods.get(request.method)
        if found is None or (found.admin and not self.admin):
            raise CallError(DoorError.METHOD_NOT_FOUND, f"no method {request.method!r}")
        if self.exchange.state.era is None and request.method not in _WITHOUT_ERA:
            raise CallError(DoorError.BUSY, "the exchange is starting; nothing was taken, try again")
        if found.scope is not None:
            self.need(found.scope, request.method)
        if self.in_flight > IN_FLIGHT_MAX:
            raise CallError(
                DoorError.TOO_MANY_IN_FLIGHT, f"at most {IN_FLIGHT_MAX} calls may wait for an answer"
            )
        try:
            params = msgspec.json.decode(request.params, type=found.params)
        except msgspec.ValidationError as error:
            raise _misshapen(str(error), request.params, found.params) from None
        return await found.handler(self, params)

    def need(self, scope: Scope, what: str) -> None:
        """Refuse the caller who has not the scope.

        Raises:
            CallError: no login, or the key lacks the scope.
        """
        if not self.scopes:
            raise CallError(DoorError.LOGIN_REQUIRED, f"{what} needs a login")
        if scope not in self.scopes:
            raise CallError(DoorError.SCOPE_MISSING, f"{what} needs the scope {scope}")

    def join(self, channel: str) -> None:
        """Listen to a channel; one that is closed does not, for it would never leave."""
        if not self.closed:
            self.exchange.channels.setdefault(channel, set()).add(self)
            self.channels.add(channel)

    def leave(self, channel: str) -> None:
        """Listen to a channel no more; what nobody listens to is forgotten."""
        if channel not in self.channels:
            return
        self.channels.remove(channel)
        listeners = self.exchange.channels[channel]
        listeners.remove(self)
        if not listeners:
            del self.exchange.channels[channel]
            self.exchange.book_seq.pop(channel, None)

    def close(self) -> None:
        """Leave all channels; messages that wait are not served."""
        self.closed = True
        for channel in list(self.channels):
            self.leave(channel)

    def forward(self, encoded: bytes) -> None:
        """Send a message that was encoded for all who listen."""
        self._send(encoded)


def invalid(field: str, value: Any, allowed: str) -> CallError:
    """Return the refusal of a call for one of its params."""
    shown = bytes(value).decode() if isinstance(value, msgspec.Raw) else value
    return CallError(
        DoorError.INVALID_PARAMS, f"invalid params: {field} {shown} (allowed: {allowed})", field=field,
        value=value, allowed=allowed,
    )  # fmt: skip


def _refuse_depth(text: str | bytes) -> None:
    """Refuse a message that a decoder could be lost in; how deep one goes depends on the Python."""
    if isinstance(text, str):
        opened = text.count("{") + text.count("[")
    else:
        opened = text.count(b"{") + text.count(b"[")
    if opened > BRACKETS_MAX:
        raise CallError(DoorError.PARSE_ERROR, f"{opened} brackets open in the message, {BRACKETS_MAX} may")


def _misshapen(fault: str, params: msgspec.Raw, form: type[msgspec.Struct]) -> CallError:
    """Return the refusal of params that are not of their form; `fault` is the decoder's."""
    what, _, where = fault.partition(" - at `$")
    path = re.findall(r"\w+", re.sub(r"\[.*?\]", "", where))
    if named := re.fullmatch(r"Object (missing required|contains unknown) field `(.*)`", what, re.DOTALL):
        path.append(named[2])
        allowed = "a value, it is required" if named[1] == "missing required" else "no such field"
    else:
        allowed = what.removeprefix("Expected ").partition(", got ")[0]
    for known in msgspec.structs.fields(form):
        if [known.encode_name] == path and isinstance(known.type, EnumType):
            allowed = ", ".join(known.type)
    value: msgspec.Raw | None = params
    for part in path:
        try:
            value = msgspec.json.decode(value or b"", type=dict[str, msgspec.Raw]).get(part)
        except msgspec.DecodeError:
            value = None
    if value is not None:
        # As it came, so that no number is changed; but what is told back is bounded, and text.
        text = bytes(value).decode(errors="replace")
        long = len(text) > _TOLD_BACK_MAX
        value = msgspec.Raw(_encoder.encode(text[:_TOLD_BACK_MAX]) if long else text.encode())
    return invalid(".".join(path), value, allowed)
