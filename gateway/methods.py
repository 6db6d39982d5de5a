"""The methods of the protocol: what each takes, who may call it, what it does."""

import base64
import secrets
from bisect import bisect_right
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from exchange.contract import HOUR_NS, parse_symbol, symbol
from exchange.link import CoreLostError
from exchange.quantity import gpus_of, lots_of, money_of, price_of, ticks_of
from gateway.feeds import book_of, private_channel
from gateway.session import CHANNELS_MAX, CallError, Method, Session, invalid
from gateway.state import State
from schemas import PROTOCOL_VERSION, RULES_VERSION
from schemas.authority import signature_holds
from schemas.commands import CancelOrder, EnterOrder, OperatorCommand, Scope
from schemas.events import OrderEnded, Rejected
from schemas.reasons import DoorError, RejectReason
from schemas.wire import (
    Channels,
    ClockSet,
    ContractNamed,
    FillsSince,
    LoginResult,
    NoParams,
    OperatorSubmit,
    OrderEnter,
    OrderNamed,
    OrderResult,
    SessionChallenge,
    SessionLogin,
    VenueTime,
)

LOGIN_PREFIX = b"cux-login:"
CHALLENGE_BYTES = 32
_WIRE_FIELDS = {
    "price_ticks": "price",
    "lots": "gpus",
    "class_code": "class",
    "delivery_hour": "delivery_start",
    "valid_until_ns": "valid_until",
    "expire_ns": "expire_time",
}

METHODS: dict[str, Method] = {}


def method(
    name: str, params: type[msgspec.Struct], scope: Scope | None = None, admin: bool = False
) -> Callable[[Callable[["Session", Any], Awaitable[Any]]], Callable[["Session", Any], Awaitable[Any]]]:
    """Enter a handler in the table of methods."""

    def enter(
        handler: Callable[["Session", Any], Awaitable[Any]],
    ) -> Callable[["Session", Any], Awaitable[Any]]:
        METHODS[name] = Method(params, scope, admin, handler)
        return handler

    return enter


def _base64(text: str, field: str, length: int) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        data = b""
    if len(data) != length:
        raise invalid(field, text, f"{length} bytes in base64")
    return data


# -- session -------------------------------------------------------------------------------------------


@method("session.challenge", SessionChallenge)
async def _session_challenge(session: Session, params: SessionChallenge) -> dict[str, str]:
    key = _base64(params.key, "key", 32)
    # An unknown key gets a challenge as well: who has access is not to be learned here.
    challenge = secrets.token_bytes(CHALLENGE_BYTES)
    session._challenge = (key, challenge)
    return {"challenge": base64.b64encode(challenge).decode()}


@method("session.login", SessionLogin)
async def _session_login(session: Session, params: SessionLogin) -> LoginResult:
    key = _base64(params.key, "key", 32)
    signature = _base64(params.signature, "signature", 64)
    asked, challenge = session._challenge or (b"", b"")
    session._challenge = None
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, LOGIN_PREFIX + challenge)
        holds = asked == key
    except InvalidSignature:
        holds = False
    known = session.exchange.state.keys.get(key)
    if not holds or known is None:
        raise CallError(
            DoorError.LOGIN_FAILED, "the key is not registered or did not sign this session's challenge"
        )
    session.account, session.scopes = known
    return LoginResult(session.account, session.scopes)


@method("session.time", NoParams)
async def _session_time(session: Session, _params: NoParams) -> VenueTime:
    link = session.exchange.link
    if link is None:
        raise CallError(DoorError.BUSY, "the exchange is not ready; try again")
    try:
        clock = await link.clock()
    except CoreLostError:
        raise CallError(DoorError.BUSY, "the exchange is restarting; try again") from None
    return VenueTime(clock.time_ns, clock.clock_speed)


# -- orders --------------------------------------------------------------------------------------------


def _rejection(event: Rejected, params: msgspec.Struct) -> CallError:
    field = event.field
    if isinstance(params, OrderEnter):
        field = _WIRE_FIELDS.get(field, field)
    elif isinstance(params, OrderNamed) and field == "order_id" and params.client_order_id is not None:
        field = "client_order_id"
    value = msgspec.to_builtins(params)
    for part in field.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    reason = event.reason.name.lower()
    return CallError(
        event.reason, f"{reason}: {field} {value} (allowed: {event.allowed})", field=field, value=value,
        allowed=event.allowed,
    )  # fmt: skip


def _whole(field: str, text: str, convert: Callable[[str, int], int], step: int, shown: str) -> int:
    try:
        number = convert(text, step)
    except ValueError:
        raise invalid(field, text, f"a multiple of {shown}") from None
    if number >= 2**62:
        raise invalid(field, text, f"below 2^62 times {shown}")
    return number


def _command(session: Session, params: OrderEnter) -> EnterOrder:
    state = session.exchange.state
    lot_eighths = state.lot_eighths.get(params.class_code)
    if lot_eighths is None:
        raise CallError(
            RejectReason.UNKNOWN_CLASS, f"class {params.class_code!r} is not of this venue", field="class",
            value=params.class_code, allowed="reference.classes",
        )  # fmt: skip
    if params.delivery_start % HOUR_NS:
        raise invalid("delivery_start", params.delivery_start, f"a full hour, a multiple of {HOUR_NS}")
    tick_micros = state.tick_micros
    lots = _whole("gpus", params.gpus, lots_of, lot_eighths, gpus_of(1, lot_eighths))
    price_ticks = _whole("price", params.price, ticks_of, tick_micros, price_of(1, tick_micros))
    return EnterOrder(
        account=session.account,
        client_order_id=params.client_order_id,
        valid_until_ns=params.valid_until,
        side=params.side,
        class_code=params.class_code,
        delivery_hour=params.delivery_start // HOUR_NS,
        hours=params.hours,
        lots=lots,
        price_ticks=price_ticks,
        time_in_force=params.time_in_force,
        expire_ns=params.expire_time,
        requirement=params.requirement,
        site=params.site,
        carbon=params.carbon,
    )


@method("order.enter", OrderEnter, Scope.TRADE)
async def _order_enter(session: Session, params: OrderEnter) -> OrderResult:
    record = await session.exchange.submit(_command(session, params))
    answer = record.events[0]
    if isinstance(answer, Rejected):
        raise _rejection(answer, params)
    state = session.exchange.state
    return state.order_result(state.account(session.account).by_client_id[params.client_order_id])


def _check_one_id(params: OrderNamed) -> None:
    if bool(params.order_id) == (params.client_order_id is not None):
        allowed = "exactly one of order_id and client_order_id"
        raise invalid("client_order_id", params.client_order_id, allowed)


@method("order.cancel", OrderNamed, Scope.TRADE)
async def _order_cancel(session: Session, params: OrderNamed) -> OrderResult:
    _check_one_id(params)
    command = CancelOrder(session.account, params.order_id, params.client_order_id)
    record = await session.exchange.submit(command)
    answer = record.events[0]
    if isinstance(answer, Rejected):
        raise _rejection(answer, params)
    assert isinstance(answer, OrderEnded)
    state = session.exchange.state
    return state.order_result(state.account(session.account).orders[answer.order_id])


@method("order.status", OrderNamed, Scope.READ)
async def _order_status(session: Session, params: OrderNamed) -> OrderResult:
    _check_one_id(params)
    state = session.exchange.state
    account = state.account(session.account)
    if params.order_id:
        order = account.orders.get(params.order_id)
    else:
        order = account.by_client_id.get(params.client_order_id or "")
    if order is None:
        raise CallError(DoorError.NOT_FOUND, "the account entered no such order")
    return state.order_result(order)


@method("order.open", NoParams, Scope.READ)
async def _order_open(session: Session, _params: NoParams) -> list[OrderResult]:
    state = session.exchange.state
    return [state.order_result(order) for order in state.account(session.account).open_orders.values()]


# -- account -------------------------------------------------------------------------------------------


@method("account.funds", NoParams, Scope.READ)
async def _account_funds(session: Session, _params: NoParams) -> Any:
    return session.exchange.state.funds(session.account)


@method("account.fills", FillsSince, Scope.READ)
async def _account_fills(session: Session, params: FillsSince) -> Any:
    fills = session.exchange.state.account(session.account).fills
    first = bisect_right(fills, params.since, key=lambda fill: fill.trade_id)
    return fills[first : first + params.limit]


@method("account.sites", NoParams, Scope.READ)
async def _account_sites(session: Session, _params: NoParams) -> Any:
    state = session.exchange.state
    return [
        {
            "site": site.site,
            "zone": site.zone,
            "class": site.class_code,
            "gpus": gpus_of(site.capacity_lots, state.lot_eighths[site.class_code]),
            "carbon": site.carbon,
            "security": site.security,
            "from": site.from_hour * HOUR_NS,
            "until": site.until_hour * HOUR_NS,
        }
        for site in state.sites.values()
        if site.account == session.account
    ]


# -- reference and market data -------------------------------------------------------------------------


@method("reference.venue", NoParams)
async def _reference_venue(session: Session, _params: NoParams) -> Any:
    era = session.exchange.state.era
    assert era is not None
    return {
        "protocol": PROTOCOL_VERSION,
        "rules": RULES_VERSION,
        "origin": era.origin,
        "venue_key": base64.b64encode(era.venue_key).decode(),
        "clock_speed": era.clock_speed,
        "venue": era.venue,
    }


@method("reference.contracts", NoParams)
async def _reference_contracts(session: Session, _params: NoParams) -> Any:
    """Contracts in which orders are open; any other hour of the horizon can be traded as well."""
    return sorted(symbol(*contract) for contract in session.exchange.state.depth.levels)


def _contract(text: str, state: State, field: str) -> tuple[str, int]:
    try:
        class_code, hour = parse_symbol(text)
    except ValueError:
        raise invalid(field, text, "a class and a UTC hour, as in H100-SXM.20261124T14") from None
    if class_code not in state.lot_eighths:
        raise invalid(field, text, "a class of the venue")
    return class_code, hour


@method("market.snapshot", ContractNamed)
async def _market_snapshot(session: Session, params: ContractNamed) -> Any:
    state = session.exchange.state
    return book_of(state, _contract(params.contract, state, "contract"))


@method("market.subscribe", Channels)
async def _market_subscribe(session: Session, params: Channels) -> Any:
    """Enter the channels; a book's answer is its snapshot, and each delta names the number before it."""
    state = session.exchange.state
    snapshots = {}
    for name in params.channels:
        kind, _, rest = name.partition(".")
        channel = name
        if kind == "book":
            contract = _contract(rest, state, "channels")
            _check_horizon(name, contract[1], state)
            snapshots[name] = book_of(state, contract)
        elif name in {"orders", "fills"}:
            session.need(Scope.READ, name)
            channel = private_channel(name, session.account)
        elif name != "trades":
            raise invalid("channels", name, "book.CONTRACT, trades, orders, fills")
        if channel not in session.channels and len(session.channels) >= CHANNELS_MAX:
            raise invalid("channels", name, f"at most {CHANNELS_MAX} channels a session")
        session.join(channel)
    return {"snapshots": snapshots}


def _check_horizon(name: str, hour: int, state: State) -> None:
    # An hour past as well: its last orders may end while one subscribes.
    now = state.time_ns // HOUR_NS
    first, last = now - 1, now + state.venue.horizon_hours
    if not first <= hour <= last:
        hours = " to ".join(symbol("", end).removeprefix(".") for end in (first, last))
        raise invalid("channels", name, f"a delivery hour of {hours}")


@method("market.unsubscribe", Channels)
async def _market_unsubscribe(session: Session, params: Channels) -> Any:
    for name in params.channels:
        channel = private_channel(name, session.account) if name in {"orders", "fills"} else name
        session.leave(channel)
    return {}


# -- operators, at the admin door ------------------------------------------------------------------------


@method("operator.submit", OperatorSubmit, admin=True)
async def _operator_submit(session: Session, params: OperatorSubmit) -> Any:
    command = params.command
    era = session.exchange.state.era
    assert era is not None
    if not isinstance(command, OperatorCommand):
        raise CallError(DoorError.INVALID_PARAMS, "only an operator's command is taken here")
    if (
        command.authority is None
        or command.authority.key not in era.operator_keys
        or not signature_holds(command)
    ):
        raise CallError(DoorError.SIGNATURE_INVALID, "the command is not signed by an operator of this venue")
    record = await session.exchange.submit(command)
    answer = record.events[0]
    if isinstance(answer, Rejected):
        raise _rejection(answer, command)
    return {"sequence": record.sequence, "event": answer}


@method("clock.set", ClockSet, admin=True)
async def _clock_set(session: Session, params: ClockSet) -> Any:
    link = session.exchange.link
    if link is None:
        raise CallError(DoorError.BUSY, "the exchange is not ready; try again")
    try:
        await link.set_clock(params.time, params.speed)
    except (ValueError, CoreLostError) as error:
        raise CallError(DoorError.CLOCK_REFUSED, str(error)) from None
    return {}


@method("venue.status", NoParams, admin=True)
async def _venue_status(session: Session, _params: NoParams) -> Any:
    state = session.exchange.state
    return {
        "sequence": state.sequence,
        "time": state.time_ns,
        "events": dict(sorted(state.counts.items())),
        "contracts": len(state.depth.levels),
        "open_orders": len(state.depth.orders),
        "accounts": len(state.keys),
        "sites": len(state.sites),
        "fees": money_of(state.account(0).purses[6]),
    }
