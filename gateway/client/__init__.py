"""The Python client: one session over WebSocket, typed answers, orders of unknown outcome resolved."""

import asyncio
import base64
import errno
import itertools
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import aiohttp
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schemas.commands import OperatorCommand, Side
from schemas.reasons import DoorError, RejectReason
from schemas.wire import (
    Fill,
    Funds,
    LoginResult,
    MassCancelResult,
    OfferEnter,
    OfferNamed,
    OfferReplace,
    OfferResult,
    OrderEnter,
    OrderMassCancel,
    OrderNamed,
    OrderReplace,
    OrderResult,
    RpcError,
    VenueTime,
)

T = TypeVar("T")

_encoder = msgspec.json.Encoder()
RECONNECT_SECONDS = 0.1
ATTEMPTS = 100


class RefusedError(Exception):
    """The exchange refused a call; `code` is a RejectReason or a DoorError."""

    def __init__(self, error: RpcError) -> None:
        super().__init__(error.message)
        self.code = error.code
        self.data = error.data or {}


class LostError(ConnectionError):
    """The connection ended before the answer came."""


class _Envelope(msgspec.Struct):
    id: int | str | None = None
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: RpcError | None = None
    params: msgspec.Raw = msgspec.Raw()


_envelope_decoder = msgspec.json.Decoder(_Envelope)


class _Connection(NamedTuple):
    """A WebSocket and the calls that wait for an answer over it."""

    ws: aiohttp.ClientWebSocketResponse
    waiting: dict[int | str, asyncio.Future[msgspec.Raw]]


class Client:
    """A session. Use as an async context manager, or `connect` and `close`.

    `url` is `ws://host:port/ws`; with `socket` the admin door's Unix socket is used instead.
    """

    def __init__(
        self,
        url: str = "ws://admin/ws",
        key: Ed25519PrivateKey | None = None,
        socket: Path | None = None,
        on_message: Callable[[str, Any], None] | None = None,
    ) -> None:
        self._url, self._key, self._unix = url, key, socket
        self._on_message = on_message
        self._numbers = itertools.count(1)
        self._http: aiohttp.ClientSession | None = None
        self._connection: _Connection | None = None
        self._reading: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()

    async def __aenter__(self) -> "Client":
        try:
            await self.connect()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self) -> None:
        """Connect and log in.

        Raises:
            LostError: the exchange cannot be reached, or the URL is none.
            RefusedError: the login failed.
        """
        if self._http is None:
            connector = aiohttp.UnixConnector(str(self._unix)) if self._unix else None
            self._http = aiohttp.ClientSession(connector=connector)
        try:
            ws = await self._http.ws_connect(self._url, compress=0, max_msg_size=0)
        except (ValueError, aiohttp.NonHttpUrlClientError):
            raise LostError(f"url {self._url}: ws://host:port/ws is wanted") from None
        except (aiohttp.ClientError, OSError) as error:
            if self._unix and getattr(error, "errno", None) in (errno.ENOENT, errno.ECONNREFUSED):
                raise LostError(
                    f"no exchange runs at {self._unix}; start it with: cux serve --folder FOLDER"
                ) from None
            raise LostError(f"{self._unix or self._url}: {error}") from None
        connection = _Connection(ws, {})
        self._reading = asyncio.create_task(self._read(connection))
        try:
            if self._key is not None:
                await self._login(connection, self._key)
        except BaseException:
            await ws.close()
            raise
        # Only now may others call over it: before the login they would be refused.
        self._connection = connection

    async def close(self) -> None:
        """End the session."""
        if self._connection is not None:
            await self._connection.ws.close()
        if self._reading is not None:
            await asyncio.wait([self._reading], timeout=5)
        if self._http is not None:
            await self._http.close()

    async def call(self, method: str, params: Any = None, type: type[T] = Any) -> T:  # type: ignore[assignment]  # noqa: A002
        """Call a method and return its result.

        Raises:
            RefusedError: the exchange refused.
            LostError: the connection ended first; for an order the outcome is unknown.
        """
        if self._connection is None:
            raise LostError("not connected")
        return await self._call(self._connection, method, params, type)

    async def _call(
        self,
        connection: _Connection,
        method: str,
        params: Any,
        type: type[T],  # noqa: A002
    ) -> T:
        if connection.ws.closed:
            raise LostError("not connected")
        number = next(self._numbers)
        answer: asyncio.Future[msgspec.Raw] = asyncio.get_running_loop().create_future()
        connection.waiting[number] = answer
        request = {
            "jsonrpc": "2.0",
            "id": number,
            "method": method,
            "params": {} if params is None else params,
        }
        try:
            await connection.ws.send_frame(_encoder.encode(request), aiohttp.WSMsgType.TEXT)
            return msgspec.json.decode(await answer, type=type)
        except (ConnectionError, RuntimeError) as error:
            self._drop(connection)
            raise LostError(str(error)) from None
        finally:
            connection.waiting.pop(number, None)

    async def ask(self, method: str, params: Any = None, type: type[T] = Any) -> T:  # type: ignore[assignment]  # noqa: A002
        """Call a method that changes nothing; after a lost connection ask again.

        Raises:
            RefusedError: the exchange refused.
            LostError: the exchange stayed away.
        """
        for _ in range(ATTEMPTS):
            try:
                return await self.call(method, params, type)
            except LostError:
                await self._again()
        raise LostError("the exchange stayed away")

    async def enter(self, order: OrderEnter) -> OrderResult:
        """Enter an order; after a lost connection or a restart, find out what became of it.

        A repeat of the same order is answered as the first was, so nothing is entered twice.

        Raises:
            RefusedError: the exchange refused it.
            LostError: the exchange stayed away.
        """
        return await self._resolved(
            lambda: self.call("order.enter", order, OrderResult),
            {RejectReason.COMMAND_EXPIRED},
            lambda: self.status(order.client_order_id),
        )

    async def replace(self, change: OrderReplace) -> OrderResult:
        """Give an open order another total and price; after a lost connection, find out what became of it.

        A repeat changes nothing more: total and price are the order's own by then, or it has ended.

        Raises:
            RefusedError: the exchange refused it; the order is as it was.
            LostError: the exchange stayed away.
        """
        named = OrderNamed(change.order_id, change.client_order_id)
        return await self._resolved(
            lambda: self.call("order.replace", change, OrderResult),
            {RejectReason.NOTHING_TO_CHANGE, RejectReason.UNKNOWN_ORDER, RejectReason.COMMAND_EXPIRED},
            lambda: self.ask("order.status", named, OrderResult),
        )

    async def cancel(self, client_order_id: str) -> OrderResult:
        """Cancel what is open of an order."""
        return await self.call("order.cancel", OrderNamed(client_order_id=client_order_id), OrderResult)

    async def mass_cancel(
        self, class_code: str | None = None, delivery_start: int | None = None, side: Side | None = None
    ) -> int:
        """Cancel every open order, or those of a class, of a delivery hour, of a side; return how many.

        Raises:
            RefusedError: no open order is named.
        """
        named = OrderMassCancel(class_code=class_code, delivery_start=delivery_start, side=side)
        return (await self.call("order.mass_cancel", named, MassCancelResult)).orders

    async def status(self, client_order_id: str) -> OrderResult:
        """Return what became of an order."""
        return await self.ask("order.status", OrderNamed(client_order_id=client_order_id), OrderResult)

    async def open_orders(self) -> list[OrderResult]:
        """Return the account's open orders."""
        return await self.ask("order.open", None, list[OrderResult])

    async def enter_offer(self, offer: OfferEnter) -> OfferResult:
        """Enter a standing offer; after a lost connection, find by its name what became of it.

        Raises:
            RefusedError: the exchange refused it.
            LostError: the exchange stayed away.
        """

        async def found() -> OfferResult | None:
            return next((one for one in reversed(await self.offers()) if one.name == offer.name), None)

        return await self._resolved(
            lambda: self.call("offer.enter", offer, OfferResult),
            {RejectReason.DUPLICATE_OFFER, RejectReason.COMMAND_EXPIRED},
            found,
        )

    async def replace_offer(self, change: OfferReplace) -> OfferResult:
        """Give a standing offer other GPUs and prices: what it listed ends and is listed anew."""
        return await self.call("offer.replace", change, OfferResult)

    async def cancel_offer(self, offer_id: int) -> OfferResult:
        """Withdraw a standing offer and every open order that it listed."""
        return await self.call("offer.cancel", OfferNamed(offer_id), OfferResult)

    async def offers(self) -> list[OfferResult]:
        """Return the standing offers that still list, or of which an order is open."""
        return await self.ask("offer.open", None, list[OfferResult])

    async def fills(self) -> list[Fill]:
        """Return all fills of the account, oldest first."""
        found: list[Fill] = []
        while True:
            since = found[-1].trade_id if found else 0
            page = await self.ask("account.fills", {"since": since}, list[Fill])
            found += page
            if not page:
                return found

    async def funds(self) -> Funds:
        """Return where the account's money is."""
        return await self.ask("account.funds", None, Funds)

    async def time(self) -> VenueTime:
        """Return venue time and its speed."""
        return await self.ask("session.time", None, VenueTime)

    async def operate(self, command: OperatorCommand) -> Any:
        """Submit a signed operator's command at the admin door."""
        return await self.call("operator.submit", {"command": command})

    async def _resolved(
        self,
        call: Callable[[], Awaitable[T]],
        done: Collection[RejectReason],
        found: Callable[[], Awaitable[T | None]],
    ) -> T:
        """Repeat a call until its outcome is known.

        A refusal of a repeat for one of the reasons in `done` means that an earlier call may have been
        taken; `found` then tells what became of it, if it was.
        """
        repeated = False
        for _ in range(ATTEMPTS):
            try:
                return await call()
            except LostError:
                repeated = True
                await self._again()
            except RefusedError as refusal:
                if repeated and refusal.code in done and (known := await found()) is not None:
                    return known
                if refusal.code not in (
                    DoorError.OUTCOME_UNKNOWN,
                    DoorError.BUSY,
                    DoorError.TOO_MANY_IN_FLIGHT,
                ):
                    raise
                repeated = repeated or refusal.code == DoorError.OUTCOME_UNKNOWN
                await asyncio.sleep(RECONNECT_SECONDS)
        raise LostError("the exchange stayed away")

    def _drop(self, connection: _Connection) -> None:
        """Forget a connection that failed, though it may not know yet that it is closed."""
        if self._connection is connection:
            self._connection = None

    async def _again(self) -> None:
        async with self._connecting:
            if self._connection is not None and not self._connection.ws.closed:
                return
            for _ in range(ATTEMPTS):
                try:
                    await self.connect()
                    return
                except LostError:
                    pass
                except RefusedError as refusal:
                    if refusal.code != DoorError.BUSY:
                        raise
                await asyncio.sleep(RECONNECT_SECONDS)
        raise LostError(f"{self._url} stayed away")

    async def _login(self, connection: _Connection, key: Ed25519PrivateKey) -> LoginResult:
        public = base64.b64encode(key.public_key().public_bytes_raw()).decode()
        asked = await self._call(connection, "session.challenge", {"key": public}, dict[str, str])
        challenge = base64.b64decode(asked["challenge"])
        signature = base64.b64encode(key.sign(b"cux-login:" + challenge)).decode()
        params = {"key": public, "signature": signature}
        return await self._call(connection, "session.login", params, LoginResult)

    async def _read(self, connection: _Connection) -> None:
        try:
            async for message in connection.ws:
                envelope = _envelope_decoder.decode(message.data)
                if envelope.params:
                    self._heard(envelope.params)
                    continue
                answer = connection.waiting.get(envelope.id or 0)
                if answer is None or answer.done():
                    continue
                if envelope.error is not None:
                    answer.set_exception(RefusedError(envelope.error))
                else:
                    answer.set_result(envelope.result)
        finally:
            for answer in connection.waiting.values():
                if not answer.done():
                    answer.set_exception(LostError("the connection ended before the answer came"))

    def _heard(self, params: msgspec.Raw) -> None:
        if self._on_message is not None:
            message = msgspec.json.decode(params)
            self._on_message(message["channel"], message["data"])
