"""The gateway process: WebSocket and HTTP doors in front, the core's socket behind."""

import argparse
import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import uvloop
from aiohttp import web

from exchange.contract import symbol
from exchange.folder import DataFolder, FolderError
from exchange.link import CoreLink
from exchange.log import LogError, read_records
from exchange.process import STOP_SIGNALS, end_with_supervisor
from gateway.feeds import PUBLIC_CHANNELS, indication, level_row, notification, private_channel, told_to_all
from gateway.methods import METHODS
from gateway.session import Exchange, Session
from gateway.state import OrderState, State
from schemas.link import Indicated
from schemas.records import Record, decoded
from schemas.wire import Fill

MESSAGE_MAX_BYTES = 64 * 1024
TICK_SECONDS = 0.01
BACKLOG_MAX_BYTES = 4 * 1024 * 1024
"""A session that leaves this much unread is closed with code 4008."""
CLOSE_SECONDS = 5.0
"""It may still read that it is closed; after this it is cut off."""
STOP_SECONDS = 2.0
"""So long the sessions have to say goodbye when the gateway stops."""


class Gateway:
    """State, feeds and sessions; reconnects to a core that was restarted."""

    def __init__(self, folder: DataFolder) -> None:
        self._folder = folder
        self.state = State()
        self.exchange = Exchange(self.state)
        self.state.on_fill = self._on_fill
        self.state.on_order = self._on_order
        self._changed: dict[tuple[str, int], dict[Any, int]] = {}
        self._outbox: dict[str, list[bytes]] = {}
        self._sockets: set[web.WebSocketResponse] = set()

    async def follow_core(self) -> None:
        """Keep the state at the core's last durable record, for ever."""
        while True:
            try:
                link = await CoreLink.connect(self._folder.core_socket, self._on_record, self._on_indicated)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            # No await until the link is open for calls: records that come meanwhile wait in the socket.
            for record in read_records(self._folder.log, self.state.sequence + 1, link.durable):
                self._on_record(record)
            self.exchange.link = link
            await link.wait_closed()
            self.exchange.link = None

    def _on_record(self, record: Record) -> None:
        if record.sequence <= self.state.sequence:
            return
        known = decoded(record)
        for contract, levels in self.state.apply(known).items():
            if f"book.{symbol(*contract)}" in self.exchange.channels:
                self._changed.setdefault(contract, {}).update(levels)
            else:
                # Older changes that were not sent yet must not overwrite the snapshot of who comes next.
                self._changed.pop(contract, None)
        if any(channel in self.exchange.channels for channel in PUBLIC_CHANNELS):
            for event in known.events:
                for channel, data in told_to_all(self.state, event):
                    if channel in self.exchange.channels:
                        self._outbox.setdefault(channel, []).append(notification(channel, data))

    def _on_indicated(self, told: Indicated) -> None:
        if "auction" in self.exchange.channels:
            message = notification("auction", indication(self.state, told))
            self._outbox.setdefault("auction", []).append(message)

    def _on_fill(self, account: int, fill: Fill) -> None:
        self._private("fills", account, fill)

    def _on_order(self, account: int, order: OrderState) -> None:
        if private_channel("orders", account) in self.exchange.channels:
            self._private("orders", account, self.state.order_result(order))

    def _private(self, name: str, account: int, data: Any) -> None:
        channel = private_channel(name, account)
        if channel in self.exchange.channels:
            self._outbox.setdefault(channel, []).append(notification(name, data))

    async def publish(self) -> None:
        """Send what changed, once a tick: encoded once for all who see the same."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            changed, self._changed = self._changed, {}
            outbox, self._outbox = self._outbox, {}
            for contract, levels in changed.items():
                name = f"book.{symbol(*contract)}"
                if name not in self.exchange.channels:
                    continue
                rows = [level_row(self.state, contract[0], level, lots) for level, lots in levels.items()]
                # The first delta since somebody listens follows on any snapshot.
                before = self.exchange.book_seq.get(name, 0)
                self.exchange.book_seq[name] = self.state.sequence
                data = {
                    "prev_seq": before,
                    "seq": self.state.sequence,
                    "time": self.state.time_ns,
                    "changes": rows,
                }
                outbox.setdefault(name, []).append(notification(name, data))
            for channel, messages in outbox.items():
                for session in list(self.exchange.channels.get(channel, ())):
                    for message in messages:
                        session.forward(message)

    # -- doors -----------------------------------------------------------------------------------------

    async def socket(self, request: web.Request, admin: bool) -> web.WebSocketResponse:
        """Serve one WebSocket connection."""
        origin = request.headers.get("Origin")
        if origin is not None and origin.split("://")[-1] != request.host:
            raise web.HTTPForbidden(text=f"origin {origin} is not allowed")
        ws = web.WebSocketResponse(max_msg_size=MESSAGE_MAX_BYTES, compress=False, heartbeat=30)
        await ws.prepare(request)
        tasks: set[asyncio.Task[None]] = set()
        outbox = _Outbox(ws, request.transport)
        session = Session(self.exchange, outbox.put, admin, METHODS)
        self._sockets.add(ws)
        try:
            async for message in ws:
                if message.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                    break
                task = asyncio.create_task(session.receive(message.data))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        finally:
            self._sockets.discard(ws)
            session.close()
            await outbox.end()
        return ws

    async def health(self, _request: web.Request) -> web.Response:
        """Say that the process lives, and whether orders can be taken."""
        ready = self.exchange.link is not None
        body = msgspec.json.encode(
            {"ready": ready, "sequence": self.state.sequence, "time": self.state.time_ns}
        )
        return web.Response(body=body, content_type="application/json", status=200 if ready else 503)

    async def end_sessions(self, _app: web.Application) -> None:
        """Close every session with code 1001: else the server would wait for its caller to leave."""
        going = [asyncio.create_task(ws.close(code=1001, message=b"going away")) for ws in self._sockets]
        if going:
            await asyncio.wait(going, timeout=STOP_SECONDS)

    def app(self, admin: bool) -> web.Application:
        """Return the application of one door."""
        app = web.Application()
        app.on_shutdown.append(self.end_sessions)

        async def socket(request: web.Request) -> web.WebSocketResponse:
            return await self.socket(request, admin)

        app.router.add_get("/ws", socket)
        app.router.add_get("/health", self.health)
        return app


class _Outbox:
    """What a session has not been sent yet. `put` never waits; who lags too far behind is closed."""

    def __init__(self, ws: web.WebSocketResponse, transport: asyncio.Transport | None) -> None:
        self._ws = ws
        self._transport = transport
        self._messages: asyncio.Queue[bytes] = asyncio.Queue()
        self._bytes = 0
        self._writing = asyncio.create_task(self._write())
        self._closing: asyncio.Task[None] | None = None

    def put(self, message: bytes) -> None:
        """Send the message after those before it, or close the session that does not read."""
        if self._closing is not None:
            return
        self._bytes += len(message)
        self._messages.put_nowait(message)
        if self._bytes > BACKLOG_MAX_BYTES:
            # The writer may wait for the reader for ever, so it cannot be what closes.
            self._closing = asyncio.create_task(self._close())

    async def end(self) -> None:
        """Send nothing more; return when the connection need not be kept for a last word."""
        # First the close: all drains of aiohttp wait for one future, to cancel one is to cancel all.
        if self._closing is not None:
            await self._closing
        self._writing.cancel()

    async def _write(self) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                message = await self._messages.get()
                await self._ws.send_frame(message, aiohttp.WSMsgType.TEXT)
                self._bytes -= len(message)

    async def _close(self) -> None:
        closing = asyncio.create_task(self._ws.close(code=4008, message=b"too slow a reader"))
        await asyncio.wait({closing}, timeout=CLOSE_SECONDS)
        closing.cancel()
        if self._transport is not None:
            self._transport.abort()


async def _run(folder: DataFolder, host: str, port: int) -> None:
    gateway = Gateway(folder)
    following = asyncio.create_task(gateway.follow_core())
    publishing = asyncio.create_task(gateway.publish())
    runners = [
        web.AppRunner(gateway.app(admin), access_log=None, shutdown_timeout=STOP_SECONDS)
        for admin in (False, True)
    ]
    for runner in runners:
        await runner.setup()
    folder.admin_socket.unlink(missing_ok=True)
    await web.TCPSite(runners[0], host, port).start()
    await web.UnixSite(runners[1], str(folder.admin_socket)).start()
    stop = asyncio.Event()
    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    stopping = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait({following, publishing, stopping}, return_when=asyncio.FIRST_COMPLETED)
    for runner in runners:
        await runner.cleanup()
    for task in done - {stopping}:
        task.result()


def main() -> int:
    """Run the gateway of the exchange in a data folder until told to stop."""
    end_with_supervisor()
    parser = argparse.ArgumentParser(prog="cux-gateway", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8470)
    arguments = parser.parse_args()
    try:
        uvloop.run(_run(DataFolder(arguments.folder), arguments.host, arguments.port))
    except (FolderError, LogError) as error:
        sys.stderr.write(f"gateway: {error}\n")
        return 1
    except OSError as error:
        address = f"{arguments.host}:{arguments.port}"
        sys.stderr.write(f"gateway: cannot listen on {address}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
