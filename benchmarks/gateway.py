"""`make bench-gateway`: what an order costs from socket to disk and back, beside a bare WebSocket echo.

Core and gateway with the log on disk, small venue; this process is the client. Every session sends one
call and waits for its answer: a bid that trades, an ask that trades, a bid that rests, its cancel.
The echo takes the same messages through the same client and sends them back as they are. Rounds of
both alternate, and the middle round counts.
"""

import argparse
import asyncio
import base64
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

import aiohttp
import uvloop
from aiohttp import web

from benchmarks.form import Row, cpu_seconds, percentile, report, row
from gateway.server import MESSAGE_MAX_BYTES
from tests.exchange_fixture import (
    Participant,
    Running,
    ask,
    bid,
    free_port,
    login_params,
    order,
    public,
    running,
)

SESSIONS = (1, 50)
ROUNDS = 3
WARM_UP_SECONDS, SECONDS = 0.5, 3.0
HOURS = 24
DEEP = "50000"
"""What rests on each side of each hour, so that every taker meets somebody."""


class Measured(NamedTuple):
    """One round: answers a second, their delays, processor time an answer of all server processes."""

    a_second: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


# -- the client ------------------------------------------------------------------------------------------


async def measure(
    sockets: list[aiohttp.ClientWebSocketResponse], messages: list[Iterator[str]], pids: list[int]
) -> Measured:
    """Send over every socket, one message under way each, and measure after a short warm-up."""
    delays: list[float] = []
    began = time.perf_counter() + WARM_UP_SECONDS
    end = began + SECONDS

    async def session(ws: aiohttp.ClientWebSocketResponse, calls: Iterator[str]) -> None:
        while (sent := time.perf_counter()) < end:
            await ws.send_str(next(calls))
            answer = await ws.receive_str()
            assert '"error"' not in answer, answer
            if sent >= began:
                delays.append(time.perf_counter() - sent)

    async def used() -> float:
        await asyncio.sleep(WARM_UP_SECONDS)
        before = sum(map(cpu_seconds, pids))
        await asyncio.sleep(SECONDS)
        return sum(map(cpu_seconds, pids)) - before

    cpu = asyncio.create_task(used())
    await asyncio.gather(cpu, *itertools.starmap(session, zip(sockets, messages, strict=True)))
    return Measured(
        len(delays) / SECONDS,
        1e3 * percentile(delays, 50),
        1e3 * percentile(delays, 99),
        1e6 * cpu.result() / len(delays),
    )


def calls(name: str, site: int, hour: int) -> Iterator[str]:
    """One session's messages, for ever."""
    for n in itertools.count():
        at = hour + n % HOURS
        for verb, params in (
            ("enter", bid(f"{name}-{n}b", at, "1", "10", time_in_force="ioc")),
            ("enter", ask(f"{name}-{n}a", site, at, "1", "9.98", time_in_force="ioc")),
            ("enter", bid(f"{name}-{n}r", at, "1", "9.9")),
            ("cancel", {"client_order_id": f"{name}-{n}r"}),
        ):
            yield json.dumps({"jsonrpc": "2.0", "id": n, "method": f"order.{verb}", "params": params})


# -- the two servers -------------------------------------------------------------------------------------


async def open_market(exchange: Running) -> int:
    """Put a deep bid and a deep ask into every hour and return the first hour."""
    seller, buyer = await exchange.register("1000000000"), await exchange.register("1000000000")
    site, hour = await exchange.certify(seller, 10 * int(DEEP)), exchange.new_hour()
    async with exchange.client(seller) as sells, exchange.client(buyer) as buys:
        for n in range(HOURS):
            await sells.enter(order(ask(f"deep{n}", site, hour + n, DEEP, "10")))
            await buys.enter(order(bid(f"deep{n}", hour + n, DEEP, "9.98")))
    return hour


async def log_in(ws: aiohttp.ClientWebSocketResponse, who: Participant) -> None:
    async def call(method: str, params: Any) -> Any:
        await ws.send_json({"jsonrpc": "2.0", "id": 0, "method": method, "params": params})
        return (await ws.receive_json())["result"]

    challenge = await call("session.challenge", {"key": public(who.key)})
    await call("session.login", login_params(who.key, base64.b64decode(challenge["challenge"])))


def echo_server(port: int) -> None:
    """A bare WebSocket of the same library and options that sends back what it gets."""

    async def echo(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(max_msg_size=MESSAGE_MAX_BYTES, compress=False, heartbeat=30)
        await ws.prepare(request)
        async for message in ws:
            await ws.send_str(message.data)
        return ws

    app = web.Application()
    app.router.add_get("/ws", echo)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None, loop=uvloop.new_event_loop())


async def bench(exchange: Running, echo_port: int, echo_pid: int) -> list[Row]:
    """Measure both, in turns, at each number of sessions."""
    hour = await open_market(exchange)
    traders = [await exchange.register("1000000000") for _ in range(max(SESSIONS))]
    sites = [await exchange.certify(trader, 100_000) for trader in traders]
    pids = [exchange.core.pid, exchange.gateway.pid]
    orders: dict[int, list[Measured]] = {n: [] for n in SESSIONS}
    echoes: dict[int, list[Measured]] = {n: [] for n in SESSIONS}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as http:
        ours = [await http.ws_connect(exchange.url) for _ in traders]
        theirs = [await http.ws_connect(f"ws://127.0.0.1:{echo_port}/ws") for _ in traders]
        for ws, trader in zip(ours, traders, strict=True):
            await log_in(ws, trader)
        for turn in range(ROUNDS):
            for n in SESSIONS:
                messages = [calls(f"{turn}-{n}", site, hour) for site in sites[:n]]
                orders[n].append(await measure(ours[:n], messages, pids))
                messages = [calls(f"{turn}-{n}", site, hour) for site in sites[:n]]
                echoes[n].append(await measure(theirs[:n], messages, [echo_pid]))
        for ws in (*ours, *theirs):
            await ws.close()
    return [
        *(one for n in SESSIONS for one in _rows(n, orders[n], echoes[n])),
        row("gateway.order_path", *_both(orders[50], echoes[50], "us", lambda m: m.cpu_us)),
    ]


def _rows(n: int, orders: list[Measured], echoes: list[Measured]) -> Iterator[Row]:
    yield row(f"gateway.orders_{n}", *_both(orders, echoes, "1/s", lambda m: m.a_second))
    yield row(f"gateway.ack_p50_{n}", *_both(orders, echoes, "ms", lambda m: m.p50_ms))
    yield row(f"gateway.ack_p99_{n}", *_both(orders, echoes, "ms", lambda m: m.p99_ms))


def _both(
    ours: list[Measured], theirs: list[Measured], unit: str, of: Callable[[Measured], float]
) -> tuple[float, str, float]:
    return median(map(of, ours)), unit, median(map(of, theirs))


def main() -> None:
    """Run the benchmark, or, for itself, the echo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--echo", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.echo:
        echo_server(arguments.echo)
        return
    port = free_port()
    echo = subprocess.Popen([sys.executable, "-m", "benchmarks.gateway", "--echo", str(port)])
    try:
        with running() as exchange:
            # The exchange takes longer to start than the echo: it listens by now.
            rows = uvloop.run(bench(exchange, port, echo.pid))
    finally:
        echo.terminate()
        echo.wait(10)
    report("gateway", rows)


if __name__ == "__main__":
    main()
