"""The Python client: what it resolves by itself, and what it says when it cannot."""

import ast
import asyncio
import contextlib
import re
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import gateway.client as client_module
from exchange.contract import HOUR_NS
from gateway.client import Client, LostError, RefusedError
from schemas import commands, wire
from schemas.commands import Requirement, Side
from schemas.reasons import DoorError, RejectReason
from schemas.wire import OfferEnter, OrderReplace, OrderResult
from tests.exchange_fixture import (
    REQUIREMENT,
    VALID_UNTIL,
    Running,
    ask,
    bid,
    free_port,
    order,
    running,
    until,
)
from tests.market import START_NS


@pytest.fixture(scope="module")
def exchange() -> Iterator[Running]:
    with running() as found:
        yield found


class Line:
    """A TCP line to the exchange that can swallow what comes down, and be cut."""

    def __init__(self, to: int) -> None:
        self.to = to
        self.port = free_port()
        self.swallows = False
        self.swallowed_bytes = 0
        self._writers: list[asyncio.StreamWriter] = []

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    @asynccontextmanager
    async def laid(self) -> AsyncIterator["Line"]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        try:
            yield self
        finally:
            server.close()
            self.cut()

    def cut(self) -> None:
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.to)
            self._writers += [writer, up_writer]
            await asyncio.gather(self._pump(reader, up_writer), self._pump(up_reader, writer, down=True))
        writer.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, down: bool = False
    ) -> None:
        while data := await reader.read(65536):
            if down and self.swallows:
                self.swallowed_bytes += len(data)
                continue
            writer.write(data)
        writer.close()


async def _swallow_the_next_answer(line: Line) -> None:
    line.swallows = True
    before = line.swallowed_bytes
    await until(lambda: line.swallowed_bytes > before)
    line.swallows = False
    line.cut()


async def test_an_order_whose_answer_was_lost_is_entered_once(exchange: Running) -> None:
    who, hour = await exchange.register(), exchange.new_hour()
    async with Line(exchange.port).laid() as line, Client(line.url, who.key) as client:
        losing = asyncio.create_task(_swallow_the_next_answer(line))
        result = await client.enter(order(bid("lost", hour)))
        assert losing.done(), "the answer came before the line was cut"
        found = await client.call("order.open", None, list[OrderResult])
        assert found == [result]


async def test_a_replace_whose_answer_was_lost_is_found_to_be_done(exchange: Running) -> None:
    who, hour = await exchange.register(), exchange.new_hour()
    async with Line(exchange.port).laid() as line, Client(line.url, who.key) as client:
        entered = await client.enter(order(bid("lost", hour, "5")))
        terms = {"valid_until": VALID_UNTIL, "gpus": "3", "price": "9"}
        change = msgspec.convert({"order_id": entered.order_id, **terms}, OrderReplace)
        losing = asyncio.create_task(_swallow_the_next_answer(line))
        result = await client.replace(change)
        assert losing.done(), "the answer came before the line was cut"
        assert (result.status, result.gpus, result.price) == ("open", "3", "9")
        # The same again, with nothing lost, is refused like any other that changes nothing.
        with pytest.raises(RefusedError) as refusal:
            await client.replace(change)
        assert refusal.value.code == RejectReason.NOTHING_TO_CHANGE


async def test_a_standing_offer_whose_answer_was_lost_is_entered_once(exchange: Running) -> None:
    who, hour = await exchange.register(), exchange.new_hour()
    async with Line(exchange.port).laid() as line, Client(line.url, who.key) as client:
        offer = OfferEnter(
            name="lost", valid_until=VALID_UNTIL, side=Side.BUY, class_code="H100-SXM",
            from_time=hour * HOUR_NS, until_time=(hour + 3) * HOUR_NS, gpus="1", price_curve=("5",),
            requirement=Requirement(**REQUIREMENT),
        )  # fmt: skip
        losing = asyncio.create_task(_swallow_the_next_answer(line))
        result = await client.enter_offer(offer)
        assert losing.done(), "the answer came before the line was cut"
        assert [one.offer_id for one in await client.offers()] == [result.offer_id]
        with pytest.raises(RefusedError) as refusal:
            await client.enter_offer(offer)
        assert refusal.value.code == RejectReason.DUPLICATE_OFFER


async def test_an_order_that_is_no_longer_valid_when_the_line_is_back_is_asked_for() -> None:
    with running() as exchange:
        who, hour = await exchange.register(), exchange.new_hour()
        async with Line(exchange.port).laid() as line, Client(line.url, who.key) as client:
            line.swallows = True
            entering = asyncio.create_task(client.enter(order(bid("late", hour))))
            async with exchange.client(who) as other:
                await until(lambda: line.swallowed_bytes > 0)
                ended = await other.cancel("late")
            await exchange.set_clock(VALID_UNTIL + 1_000_000)
            line.swallows = False
            line.cut()
            result = await entering
            assert (result.order_id, result.status) == (ended.order_id, "canceled")
            with pytest.raises(RefusedError) as refusal:
                await client.enter(order(bid("never", hour)))
            assert refusal.value.code == RejectReason.COMMAND_EXPIRED


async def test_all_orders_of_a_session_resolve_when_its_line_is_cut_again_and_again(
    exchange: Running,
) -> None:
    who, hour = await exchange.register(), exchange.new_hour()
    async with Line(exchange.port).laid() as line, Client(line.url, who.key) as client:

        async def enter(number: int) -> OrderResult:
            await asyncio.sleep(number * 0.005)
            return await client.enter(order(bid(f"c{number}", hour)))

        entering = [asyncio.create_task(enter(number)) for number in range(200)]
        for _ in range(4):
            await asyncio.sleep(0.2)
            line.cut()
        results = await asyncio.wait_for(asyncio.gather(*entering), 30)
        found = await client.call("order.open", None, list[OrderResult])
        assert [one.client_order_id for one in results] == [f"c{number}" for number in range(200)]
        assert sorted(one.order_id for one in found) == sorted(one.order_id for one in results)


async def test_a_call_over_a_cut_line_is_lost_and_says_so(exchange: Running) -> None:
    who = await exchange.register()
    async with Line(exchange.port).laid() as line, Client(line.url, who.key) as client:
        losing = asyncio.create_task(_swallow_the_next_answer(line))
        with pytest.raises(LostError, match="before the answer came"):
            await client.call("account.funds")
        await losing
        with pytest.raises(LostError, match="not connected"):
            await client.call("account.funds")


async def test_a_question_over_a_cut_line_is_asked_again(exchange: Running) -> None:
    who = await exchange.register("7")
    async with Line(exchange.port).laid() as line, Client(line.url, who.key) as client:
        losing = asyncio.create_task(_swallow_the_next_answer(line))
        assert (await client.funds()).cash == "7"
        assert losing.done(), "the answer came before the line was cut"


async def test_an_exchange_that_cannot_be_reached_is_named() -> None:
    url = f"ws://127.0.0.1:{free_port()}/ws"
    with pytest.raises(LostError, match=url):
        async with Client(url):
            pass


async def test_an_admin_socket_where_no_exchange_runs_says_how_to_start_one(tmp_path: Path) -> None:
    left = tmp_path / "left"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(left))
    for path in (tmp_path / "none", left):
        with pytest.raises(LostError) as lost:
            async with Client(socket=path):
                pass
        assert str(lost.value) == f"no exchange runs at {path}; start it with: cux serve --folder FOLDER"


@pytest.mark.parametrize(
    "url", ["notaurl", "", "localhost:8470", "ftp://localhost/ws", "ws://localhost:99999/ws"]
)
async def test_a_url_that_is_none_is_told_the_form_of_one(url: str) -> None:
    with pytest.raises(LostError) as lost:
        async with Client(url):
            pass
    assert str(lost.value) == f"url {url}: ws://host:port/ws is wanted"


async def test_the_end_of_an_old_connection_fails_no_call_over_the_new_one(exchange: Running) -> None:
    async with exchange.client() as client:
        old, reading = client._connection, client._reading
        assert old is not None
        assert reading is not None
        client._drop(old)
        await client._again()
        exchange.core.send_signal(signal.SIGSTOP)
        try:
            asking: asyncio.Task[dict[str, Any]] = asyncio.create_task(client.call("session.time"))
            await until(lambda: client._connection is not None and len(client._connection.waiting) == 1)
            await old.ws.close()
            await reading
        finally:
            exchange.core.send_signal(signal.SIGCONT)
        assert (await asking)["time"] > 0


async def test_an_exchange_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "ATTEMPTS", 3)
    with running() as exchange:
        who, hour = await exchange.register(), exchange.new_hour()
        async with exchange.client(who) as client:
            await asyncio.to_thread(exchange.stop)
            with pytest.raises(LostError, match="stayed away"):
                await client.enter(order(bid("nobody", hour)))


async def test_a_refusal_carries_its_code_and_data(exchange: Running) -> None:
    who, hour = await exchange.register(), exchange.new_hour()
    async with exchange.client(who) as client:
        with pytest.raises(RefusedError, match=r"gpus 0\.5") as refusal:
            await client.enter(order(bid("half", hour, gpus="0.5")))
        assert refusal.value.code == DoorError.INVALID_PARAMS
        assert refusal.value.data == {"field": "gpus", "value": "0.5", "allowed": "a multiple of 1"}
        with pytest.raises(RefusedError) as unknown:
            await client.status("half")
        assert unknown.value.code == DoorError.NOT_FOUND


async def test_a_key_that_is_not_registered_is_refused_at_the_login(exchange: Running) -> None:
    with pytest.raises(RefusedError) as refusal:
        async with Client(exchange.url, Ed25519PrivateKey.generate()):
            pass
    assert refusal.value.code == DoorError.LOGIN_FAILED


async def test_fills_come_page_by_page_and_none_twice(exchange: Running) -> None:
    seller, buyer = await exchange.register(), await exchange.register("100000000")
    site, hour = await exchange.certify(seller), exchange.new_hour()
    async with exchange.client(seller) as sells, exchange.client(buyer) as buys:
        asks = (order(ask(f"a{n}", site, hour + n, "30")) for n in range(48))
        await asyncio.gather(*(sells.enter(one) for one in asks))
        # A block of 48 hours has 48 fills: 21 of them have more than a page holds.
        blocks = (order(bid(f"b{n}", hour, "1", "10", hours=48)) for n in range(21))
        await asyncio.gather(*(buys.enter(one) for one in blocks))
        fills = await buys.fills()
        assert len(fills) == 21 * 48
        assert len({fill.trade_id for fill in fills}) == 21 * 48
        assert [fill.trade_id for fill in fills] == sorted(fill.trade_id for fill in fills)


async def test_the_readme_s_examples_run(exchange: Running) -> None:
    buyer, seller = await exchange.register(), await exchange.register()
    site, hour = await exchange.certify(seller), exchange.new_hour()
    text = (Path(__file__).parents[1] / "gateway" / "README.md").read_text()
    for said, here in (
        ("ws://127.0.0.1:8470/ws", exchange.url),
        ("H800-SXM", "H100-SXM"),
        ('"beijing"', '"east"'),
        ("site=3", f"site={site}"),
    ):
        assert said in text
        text = text.replace(said, here)
    first, second = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    words: dict[str, Any] = {**vars(client_module), **vars(wire), **vars(commands), "HOUR_NS": HOUR_NS}
    words |= {"now": START_NS, "start": hour * HOUR_NS, "key": buyer.key}

    async def run(example: str) -> None:
        code = compile(example, "gateway/README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        await eval(code, words)

    await run(first)
    assert (words["order"].gpus, words["order"].shown_gpus, words["ended"]) == ("48", "8", 1)
    async with exchange.client(seller) as client:
        words["client"] = client
        await run(second)
        assert [one.offer_id for one in await client.offers()] == [words["offer"].offer_id]
        await client.cancel_offer(words["offer"].offer_id)
