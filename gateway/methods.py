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
from gateway.feeds import PUBLIC_CHANNELS, book_of, private_channel
from gateway.session import CHANNELS_MAX, CallError, Method, Session, invalid
from gateway.state import OfferState, OrderState, State
from schemas import PROTOCOL_VERSION, RULES_VERSION
from schemas.authority import signature_holds
from schemas.commands import (
    AnyCommand,
    CancelOrder,
    CancelStandingOffer,
    CertifySite,
    EnterOrder,
    EnterStandingOffer,
    MassCancel,
    OperatorCommand,
    ReplaceOrder,
    ReplaceStandingOffer,
    Scope,
)
from schemas.events import AnyEvent, OrderEnded, OrdersCanceled, Rejected, StandingOfferEntered
from schemas.reasons import DoorError, RejectReason
from schemas.wire import (
    Channels,
    ClockSet,
    ContractNamed,
    FillsSince,
    LoginResult,
    MassCancelResult,
    NoParams,
    OfferEnter,
    OfferNamed,
    OfferReplace,
    OfferResult,
    OperatorSubmit,
    OrderEnter,
    OrderMassCancel,
    OrderNamed,
    OrderReplace,
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
    "min_lots": "min_gpus",
    "display_lots": "display_gpus",
    "from_hour": "from",
    "until_hour": "until",
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
    if not isinstance(params, OperatorCommand):
        field = _WIRE_FIELDS.get(field, field)
    if isinstance(params, OrderNamed) and field == "order_id" and params.client_order_id is not None:
        field = "client_order_id"
    value = msgspec.to_builtins(params)
    for part in field.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    reason = event.reason.name.lower()
    return CallError(
        event.reason, f"{reason}: {field} {value} (allowed: {event.allowed})", field=field, value=value,
        allowed=event.allowed,
    )  # fmt: skip


async def _answer(session: Session, command: AnyCommand, params: msgspec.Struct) -> AnyEvent:
    """Return what the command was answered with.

    Raises:
        CallError: it was refused, or its outcome is unknown.
    """
    record = await session.exchange.submit(command)
    answer = record.events[0]
    if isinstance(answer, Rejected):
        raise _rejection(answer, params)
    return answer


def _whole(field: str, text: str, convert: Callable[[str, int], int], step: int, shown: str) -> int:
    try:
        number = convert(text, step)
    except ValueError:
        raise invalid(field, text, f"a multiple of {shown}") from None
    if number >= 2**62:
        raise invalid(field, text, f"below 2^62 times {shown}")
    return number


class _Units:
    """Reads GPUs and prices of a class."""

    def __init__(self, state: State, class_code: str) -> None:
        lot_eighths = state.lot_eighths.get(class_code)
        if lot_eighths is None:
            raise CallError(
                RejectReason.UNKNOWN_CLASS, f"class {class_code!r} is not of this venue", field="class",
                value=class_code, allowed="reference.classes",
            )  # fmt: skip
        self._lot_eighths = lot_eighths
        self._tick_micros = state.tick_micros

    def lots(self, field: str, gpus: str) -> int:
        """Return the lots, or refuse what is no multiple of one."""
        return _whole(field, gpus, lots_of, self._lot_eighths, gpus_of(1, self._lot_eighths))

    def ticks(self, field: str, price: str) -> int:
        """Return the ticks, or refuse what is no multiple of one."""
        return _whole(field, price, ticks_of, self._tick_micros, price_of(1, self._tick_micros))


def _hour(field: str, time_ns: int) -> int:
    if time_ns % HOUR_NS:
        raise invalid(field, time_ns, f"a full hour, a multiple of {HOUR_NS}")
    return time_ns // HOUR_NS


def _command(session: Session, params: OrderEnter) -> EnterOrder:
    units = _Units(session.exchange.state, params.class_code)
    return EnterOrder(
        account=session.account,
        client_order_id=params.client_order_id,
        valid_until_ns=params.valid_until,
        side=params.side,
        class_code=params.class_code,
        delivery_hour=_hour("delivery_start", params.delivery_start),
        hours=params.hours,
        lots=units.lots("gpus", params.gpus),
        price_ticks=units.ticks("price", params.price),
        order_type=params.order_type,
        time_in_force=params.time_in_force,
        expire_ns=params.expire_time,
        min_lots=units.lots("min_gpus", params.min_gpus),
        display_lots=units.lots("display_gpus", params.display_gpus),
        post_only=params.post_only,
        self_trade=params.self_trade,
        exclusive_group=params.exclusive_group,
        requirement=params.requirement,
        site=params.site,
        position=params.position,
        carbon=params.carbon,
        min_hours=params.min_hours,
    )


@method("order.enter", OrderEnter, Scope.TRADE)
async def _order_enter(session: Session, params: OrderEnter) -> OrderResult:
    await _answer(session, _command(session, params), params)
    state = session.exchange.state
    return state.order_result(state.account(session.account).by_client_id[params.client_order_id])


def _named(session: Session, params: OrderNamed) -> OrderState | None:
    """Return the account's order of that name, if it is known."""
    if bool(params.order_id) == (params.client_order_id is not None):
        allowed = "exactly one of order_id and client_order_id"
        raise invalid("client_order_id", params.client_order_id, allowed)
    account = session.exchange.state.account(session.account)
    if params.order_id:
        return account.orders.get(params.order_id)
    return account.by_client_id.get(params.client_order_id or "")


@method("order.replace", OrderReplace, Scope.TRADE)
async def _order_replace(session: Session, params: OrderReplace) -> OrderResult:
    order = _named(session, params)
    if order is None:
        raise _rejection(
            Rejected(RejectReason.UNKNOWN_ORDER, "order_id", "an order that was answered"), params
        )
    units = _Units(session.exchange.state, order.command.class_code)
    # By its number: a client's id may have come to name an order of another class meanwhile.
    command = ReplaceOrder(
        account=session.account,
        order_id=order.order_id,
        valid_until_ns=params.valid_until,
        lots=units.lots("gpus", params.gpus),
        price_ticks=units.ticks("price", params.price),
    )
    await _answer(session, command, params)
    return session.exchange.state.order_result(order)


@method("order.cancel", OrderNamed, Scope.TRADE)
async def _order_cancel(session: Session, params: OrderNamed) -> OrderResult:
    _named(session, params)
    command = CancelOrder(session.account, params.order_id, params.client_order_id)
    answer = await _answer(session, command, params)
    assert isinstance(answer, OrderEnded)
    state = session.exchange.state
    return state.order_result(state.account(session.account).orders[answer.order_id])


@method("order.mass_cancel", OrderMassCancel, Scope.TRADE)
async def _order_mass_cancel(session: Session, params: OrderMassCancel) -> MassCancelResult:
    start = params.delivery_start
    hour = None if start is None else _hour("delivery_start", start)
    answer = await _answer(session, MassCancel(session.account, params.class_code, hour, params.side), params)
    assert isinstance(answer, OrdersCanceled)
    return MassCancelResult(answer.orders)


@method("order.status", OrderNamed, Scope.READ)
async def _order_status(session: Session, params: OrderNamed) -> OrderResult:
    order = _named(session, params)
    if order is None:
        raise CallError(DoorError.NOT_FOUND, "the account entered no such order")
    return session.exchange.state.order_result(order)


@method("order.open", NoParams, Scope.READ)
async def _order_open(session: Session, _params: NoParams) -> list[OrderResult]:
    state = session.exchange.state
    return [state.order_result(order) for order in state.account(session.account).open_orders.values()]


# -- standing offers -----------------------------------------------------------------------------------


def _curve(units: _Units, prices: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(units.ticks("price_curve", price) for price in prices)


@method("offer.enter", OfferEnter, Scope.TRADE)
async def _offer_enter(session: Session, params: OfferEnter) -> OfferResult:
    state = session.exchange.state
    units = _Units(state, params.class_code)
    command = EnterStandingOffer(
        account=session.account,
        name=params.name,
        valid_until_ns=params.valid_until,
        side=params.side,
        class_code=params.class_code,
        from_hour=_hour("from", params.from_time),
        until_hour=_hour("until", params.until_time),
        hours=params.hours,
        lots=units.lots("gpus", params.gpus),
        price_curve=_curve(units, params.price_curve),
        requirement=params.requirement,
        site=params.site,
        carbon=params.carbon,
        min_hours=params.min_hours,
    )
    answer = await _answer(session, command, params)
    assert isinstance(answer, StandingOfferEntered)
    return state.offer_result(state.account(session.account).offers[answer.offer_id])


def _own_offer(session: Session, params: OfferReplace | OfferNamed) -> OfferState:
    offer = session.exchange.state.account(session.account).offers.get(params.offer_id)
    if offer is None:
        raise _rejection(Rejected(RejectReason.UNKNOWN_OFFER, "offer_id", "an offer of the account"), params)
    return offer


@method("offer.replace", OfferReplace, Scope.TRADE)
async def _offer_replace(session: Session, params: OfferReplace) -> OfferResult:
    offer = _own_offer(session, params)
    units = _Units(session.exchange.state, offer.command.class_code)
    command = ReplaceStandingOffer(
        account=session.account,
        offer_id=params.offer_id,
        valid_until_ns=params.valid_until,
        lots=units.lots("gpus", params.gpus),
        price_curve=_curve(units, params.price_curve),
    )
    await _answer(session, command, params)
    return session.exchange.state.offer_result(offer)


@method("offer.cancel", OfferNamed, Scope.TRADE)
async def _offer_cancel(session: Session, params: OfferNamed) -> OfferResult:
    offer = _own_offer(session, params)
    await _answer(session, CancelStandingOffer(session.account, params.offer_id), params)
    return session.exchange.state.offer_result(offer)


@method("offer.open", NoParams, Scope.READ)
async def _offer_open(session: Session, _params: NoParams) -> list[OfferResult]:
    """Offers that still list, or of which an order is open."""
    state = session.exchange.state
    offers = state.account(session.account).offers.values()
    return [state.offer_result(one) for one in offers if one.end_reason is None or one.open_orders]


# -- account -------------------------------------------------------------------------------------------


@method("account.funds", NoParams, Scope.READ)
async def _account_funds(session: Session, _params: NoParams) -> Any:
    return session.exchange.state.funds(session.account)


@method("account.fills", FillsSince, Scope.READ)
async def _account_fills(session: Session, params: FillsSince) -> Any:
    fills = session.exchange.state.account(session.account).fills
    first = bisect_right(fills, params.since, key=lambda fill: fill.trade_id)
    return fills[first : first + params.limit]


def _site_row(state: State, site: CertifySite) -> dict[str, Any]:
    lot = state.lot_eighths[site.class_code]
    return {
        "site": site.site,
        "account": site.account,
        "zone": site.zone,
        "class": site.class_code,
        "gpus": gpus_of(site.capacity_lots, lot),
        "carbon": site.carbon,
        "security": site.security,
        "from": site.from_hour * HOUR_NS,
        "until": site.until_hour * HOUR_NS,
        # Where two name an hour, the later one holds.
        "deratings": [
            {
                "from": one.from_hour * HOUR_NS,
                "until": one.until_hour * HOUR_NS,
                "gpus": gpus_of(one.capacity_lots, lot),
            }
            for one in state.deratings.get(site.site, [])
        ],
    }


@method("account.sites", NoParams, Scope.READ)
async def _account_sites(session: Session, _params: NoParams) -> Any:
    state = session.exchange.state
    return [_site_row(state, site) for site in state.sites.values() if site.account == session.account]


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


def _contract(name: str, text: str, state: State, field: str) -> tuple[str, int]:
    """Return the contract of this symbol, of which `name` asks for the book, or refuse."""
    try:
        class_code, hour = parse_symbol(text)
    except ValueError:
        raise invalid(field, text, "a class and a UTC hour, as in H100-SXM.20261124T14") from None
    if class_code not in state.lot_eighths:
        raise invalid(field, text, "a class of the venue")
    # An hour past as well: its last orders may end while one subscribes.
    now = state.time_ns // HOUR_NS
    first, last = now - 1, now + state.venue.horizon_hours
    if not first <= hour <= last:
        hours = " to ".join(symbol("", end).removeprefix(".") for end in (first, last))
        raise invalid(field, name, f"a delivery hour of {hours}")
    return class_code, hour


@method("market.snapshot", ContractNamed)
async def _market_snapshot(session: Session, params: ContractNamed) -> Any:
    state = session.exchange.state
    return book_of(state, _contract(params.contract, params.contract, state, "contract"))


@method("market.subscribe", Channels)
async def _market_subscribe(session: Session, params: Channels) -> Any:
    """Enter the channels; a book's answer is its snapshot, and each delta names the number before it."""
    state = session.exchange.state
    snapshots = {}
    for name in params.channels:
        kind, _, rest = name.partition(".")
        channel = name
        if kind == "book":
            snapshots[name] = book_of(state, _contract(name, rest, state, "channels"))
        elif name in {"orders", "fills"}:
            session.need(Scope.READ, name)
            channel = private_channel(name, session.account)
        elif name not in PUBLIC_CHANNELS:
            raise invalid("channels", name, "book.CONTRACT, trades, status, auction, orders, fills")
        if channel not in session.channels and len(session.channels) >= CHANNELS_MAX:
            raise invalid("channels", name, f"at most {CHANNELS_MAX} channels a session")
        session.join(channel)
    return {"snapshots": snapshots}


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


@method("venue.sites", NoParams, admin=True)
async def _venue_sites(session: Session, _params: NoParams) -> Any:
    state = session.exchange.state
    return [_site_row(state, site) for site in state.sites.values()]


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
