"""The doors, on real sockets: who gets in, what is answered, what is refused, and that feeds are exact."""

import asyncio
import base64
import contextlib
import json
import random
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import uvloop
import websockets
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Origin

from exchange.contract import HOUR_NS
from exchange.folder import DataFolder
from exchange.link import BusyError, CoreLink, CoreLostError
from gateway.client import RefusedError
from gateway.methods import METHODS
from gateway.server import TICK_SECONDS, Gateway
from gateway.session import BRACKETS_MAX, CHANNELS_MAX, IN_FLIGHT_MAX, Session
from schemas.authority import signed
from schemas.codec import encode
from schemas.commands import (
    AnyCommand,
    CancelStandingOffer,
    CellPrice,
    CertifySite,
    Deposit,
    DerateSite,
    EndCall,
    EnterOrder,
    EnterStandingOffer,
    HaltContract,
    ListStandingOffer,
    MassCancel,
    OrderType,
    PostSettlement,
    ProposeClearing,
    ReinstateAccount,
    ReplaceOrder,
    ReplaceStandingOffer,
    Requirement,
    ResumeContract,
    RetryBlock,
    Scope,
    SelfTrade,
    Side,
    SuspendAccount,
    Tick,
    TimeInForce,
)
from schemas.events import (
    AnyEvent,
    BlockTraded,
    CallCleared,
    ContractClosed,
    EndReason,
    EraOpened,
    ListingSkipped,
    OrderAccepted,
    OrderEnded,
    OrderListed,
    OrderReduced,
    OrderReplaced,
    Phase,
    PhaseChanged,
    SiteCertified,
    SiteDerated,
    StandingOfferEnded,
    StandingOfferEntered,
    StandingOfferListed,
    StandingOfferReplaced,
    Traded,
)
from schemas.reasons import DoorError, RejectReason
from schemas.records import Decoded, Record
from schemas.venue import CallRules
from schemas.wire import (
    Fill,
    Funds,
    OfferEnter,
    OfferReplace,
    OfferResult,
    OrderEnter,
    OrderNamed,
    OrderReplace,
    OrderResult,
)
from tests.exchange_fixture import (
    REQUIREMENT,
    VALID_UNTIL,
    VENUE,
    Exchange,
    Participant,
    Running,
    ask,
    bid,
    contract,
    login_params,
    order,
    public,
    running,
    text_of,
    until,
)
from tests.market import FIRST_HOUR, START_NS, open_era
from tests.small_venue import SMALL_VENUE


@pytest.fixture(scope="module")
def exchange() -> Iterator[Running]:
    with running() as found:
        yield found


class Caller:
    """A session through the independent `websockets` library: whole answers, nothing resolved."""

    def __init__(self, ws: ClientConnection) -> None:
        self.ws = ws
        self.numbers = iter(range(1, 1_000_000))

    async def call(self, method: str, params: Any = None) -> dict[str, Any]:
        number = next(self.numbers)
        await self.say(
            {"jsonrpc": "2.0", "id": number, "method": method, "params": {} if params is None else params}
        )
        while (answer := await self.hear()).get("id") != number:
            pass
        return answer

    async def say(self, message: Any) -> None:
        await self.ws.send(message if isinstance(message, str | bytes) else json.dumps(message))

    async def hear(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(await asyncio.wait_for(self.ws.recv(), 10))
        return answer

    async def challenge(self, key: Ed25519PrivateKey) -> bytes:
        answer = await self.call("session.challenge", {"key": public(key)})
        return base64.b64decode(answer["result"]["challenge"])

    async def login(self, key: Ed25519PrivateKey) -> dict[str, Any]:
        challenge = await self.challenge(key)
        return await self.call("session.login", login_params(key, challenge))


@asynccontextmanager
async def session(exchange: Exchange, who: Participant | None = None, **options: Any) -> Any:
    async with connect(exchange.url, compression=None, **options) as ws:
        caller = Caller(ws)
        if who is not None:
            assert "result" in await caller.login(who.key)
        yield caller


def code_of(answer: dict[str, Any]) -> int:
    code: int = answer["error"]["code"]
    return code


# -- login -----------------------------------------------------------------------------------------------


async def test_a_registered_key_that_signs_the_challenge_is_in(exchange: Running) -> None:
    who = await exchange.register()
    async with session(exchange) as caller:
        answer = await caller.login(who.key)
        assert answer["result"] == {"account": who.account, "scopes": ["trade", "read"]}
        assert answer["us_in"] <= answer["us_out"] <= time.time_ns() // 1000
        funds = await caller.call("account.funds")
        assert funds["result"]["account"] == who.account


async def test_an_unknown_key_gets_a_challenge_but_not_in(exchange: Running) -> None:
    async with session(exchange) as caller:
        answer = await caller.login(Ed25519PrivateKey.generate())
        assert code_of(answer) == DoorError.LOGIN_FAILED
        assert code_of(await caller.call("account.funds")) == DoorError.LOGIN_REQUIRED


async def test_a_signature_is_good_for_one_login(exchange: Running) -> None:
    who = await exchange.register()
    async with session(exchange) as first, session(exchange) as second:
        used = login_params(who.key, await first.challenge(who.key))
        assert "result" in await first.call("session.login", used)
        assert code_of(await first.call("session.login", used)) == DoorError.LOGIN_FAILED
        assert code_of(await second.call("session.login", used)) == DoorError.LOGIN_FAILED
        await second.challenge(who.key)
        assert code_of(await second.call("session.login", used)) == DoorError.LOGIN_FAILED


async def test_a_challenge_is_good_for_the_session_and_the_key_that_asked(exchange: Running) -> None:
    one, other = await exchange.register(), await exchange.register()
    async with session(exchange) as first, session(exchange) as second:
        challenge = await first.challenge(one.key)
        assert code_of(await second.call("session.login", login_params(one.key, challenge))) == 1003
        await second.challenge(one.key)
        assert code_of(await second.call("session.login", login_params(one.key, challenge))) == 1003
        assert code_of(await first.call("session.login", login_params(other.key, challenge))) == 1003


async def test_a_second_login_changes_who_the_session_is_and_a_failed_one_does_not(exchange: Running) -> None:
    one, other = await exchange.register(), await exchange.register()
    async with session(exchange, one) as caller:
        assert (await caller.login(other.key))["result"]["account"] == other.account
        assert code_of(await caller.login(Ed25519PrivateKey.generate())) == DoorError.LOGIN_FAILED
        assert (await caller.call("account.funds"))["result"]["account"] == other.account


@pytest.mark.parametrize("text", ["é", "no base64", "AAAA", "A" * 43])
async def test_a_key_that_is_none_is_refused_by_name(exchange: Running, text: str) -> None:
    async with session(exchange) as caller:
        answer = await caller.call("session.challenge", {"key": text})
        assert code_of(answer) == DoorError.INVALID_PARAMS
        assert answer["error"]["data"]["field"] == "key"


# -- scopes ----------------------------------------------------------------------------------------------


async def test_without_a_login_every_method_with_a_scope_is_refused(exchange: Running) -> None:
    assert {name for name, method in METHODS.items() if method.scope} == {
        *("order.enter", "order.replace", "order.cancel", "order.mass_cancel", "order.status", "order.open"),
        *("offer.enter", "offer.replace", "offer.cancel", "offer.open"),
        *("account.funds", "account.fills", "account.sites"),
    }
    async with session(exchange) as caller:
        for name, method in METHODS.items():
            if method.scope is not None:
                assert code_of(await caller.call(name)) == DoorError.LOGIN_REQUIRED, name
        answer = await caller.call("market.subscribe", {"channels": ["orders"]})
        assert code_of(answer) == DoorError.LOGIN_REQUIRED


async def test_admin_methods_are_not_to_be_found_at_the_public_door(exchange: Running) -> None:
    who = await exchange.register()
    admin = {name for name, method in METHODS.items() if method.admin}
    assert admin == {"operator.submit", "clock.set", "venue.status", "venue.sites"}
    async with session(exchange, who) as caller:
        for name in (*admin, "no.such"):
            answer = await caller.call(name)
            assert code_of(answer) == DoorError.METHOD_NOT_FOUND
            assert answer["error"]["message"] == f"no method {name!r}"


async def test_a_key_does_only_what_its_scopes_say(exchange: Running) -> None:
    reader = await exchange.register(scopes=(Scope.READ,))
    trader = await exchange.register(scopes=(Scope.TRADE,))
    hour = exchange.new_hour()
    async with session(exchange, reader) as reads, session(exchange, trader) as trades:
        assert code_of(await reads.call("order.enter", bid("a", hour))) == DoorError.SCOPE_MISSING
        assert "result" in await reads.call("order.open")
        assert "result" in await trades.call("order.enter", bid("a", hour))
        for answer in (
            await trades.call("order.open"),
            await trades.call("market.subscribe", {"channels": ["fills"]}),
        ):
            assert code_of(answer) == DoorError.SCOPE_MISSING


async def test_an_operators_command_needs_an_operators_signature(exchange: Running) -> None:
    who = await exchange.register()
    deposit = Deposit(who.account, 10**6)
    async with exchange.admin() as admin:
        with pytest.raises(RefusedError) as unsigned:
            await admin.operate(deposit)
        with pytest.raises(RefusedError) as stranger:
            await admin.operate(signed(deposit, who.key, time.time_ns(), "mine"))
    assert {unsigned.value.code, stranger.value.code} == {DoorError.SIGNATURE_INVALID}


async def test_a_refused_operators_command_names_its_own_field(exchange: Running) -> None:
    with pytest.raises(RefusedError) as refusal:
        await exchange.operate(CertifySite(10**6, 10**6, "east", "H100-SXM", 1, "D", "S2", 1, 2))
    assert refusal.value.code == RejectReason.UNKNOWN_ACCOUNT
    who = await exchange.register()
    with pytest.raises(RefusedError) as refusal:
        await exchange.operate(CertifySite(10**6, who.account, "east", "H200", 1, "D", "S2", 1, 2))
    assert refusal.value.code == RejectReason.UNKNOWN_CLASS
    assert refusal.value.data == {"field": "class_code", "value": "H200", "allowed": "a class of the venue"}


# -- orders ----------------------------------------------------------------------------------------------


async def test_an_order_s_life_is_told_exactly(exchange: Running) -> None:
    seller, buyer = await exchange.register("1000"), await exchange.register("1000")
    site, hour = await exchange.certify(seller), exchange.new_hour()
    async with exchange.client(seller) as sells, exchange.client(buyer) as buys:
        resting = await sells.enter(order(ask("a1", site, hour, "3", "10.00")))
        assert resting == OrderResult(
            order_id=resting.order_id, client_order_id="a1", status="open", side=Side.SELL,
            class_code="H100-SXM", delivery_start=hour * HOUR_NS, gpus="3", price="10", filled_gpus="0",
            leaves_gpus="3", phase="continuous",
        )  # fmt: skip
        # A bond of a tenth, a fee of 0.1 % of 30.00 whichever side it is on in the end.
        assert await sells.funds() == Funds(seller.account, "996.97", "3.03", "0", "0")

        taking = await buys.enter(order(bid("b1", hour, "2", "12.50")))
        assert (taking.status, taking.filled_gpus, taking.leaves_gpus) == ("filled", "2", "0")
        (fill,) = taking.fills
        assert fill == Fill(
            trade_id=fill.trade_id, order_id=taking.order_id, client_order_id="b1", side=Side("buy"),
            class_code="H100-SXM", delivery_start=hour * HOUR_NS, gpus="2", price="10", fee="0.02", site=site,
            time=START_NS,
        )  # fmt: skip
        assert await buys.fills() == [fill]
        assert await buys.funds() == Funds(buyer.account, "979.98", "0", "20", "0")
        (sold,) = await sells.fills()
        assert (sold.trade_id, sold.side, sold.gpus, sold.fee) == (fill.trade_id, "sell", "2", "0.01")

        left = await sells.status("a1")
        assert (left.status, left.filled_gpus, left.leaves_gpus, left.fills) == ("open", "2", "1", (sold,))
        ended = await sells.cancel("a1")
        assert (ended.status, ended.end_reason, ended.leaves_gpus) == ("canceled", "requested", "0")
        assert await sells.funds() == Funds(seller.account, "997.99", "0", "0", "2")
        assert await sells.call("order.open") == []
        sites: list[dict[str, Any]] = await sells.call("account.sites")
        assert [(one["site"], one["gpus"], one["class"]) for one in sites] == [(site, "1000", "H100-SXM")]


async def test_an_order_is_found_by_either_id_and_by_its_owner_only(exchange: Running) -> None:
    owner, stranger = await exchange.register(), await exchange.register()
    hour = exchange.new_hour()
    async with session(exchange, owner) as mine, session(exchange, stranger) as theirs:
        entered = (await mine.call("order.enter", bid("x", hour)))["result"]
        number = {"order_id": entered["order_id"]}
        assert (await mine.call("order.status", number))["result"] == entered
        assert (await mine.call("order.status", {"client_order_id": "x"}))["result"] == entered
        assert [one["order_id"] for one in (await mine.call("order.open"))["result"]] == [entered["order_id"]]
        for name in (number, {"client_order_id": "x"}):
            assert code_of(await theirs.call("order.status", name)) == DoorError.NOT_FOUND
            refused = await theirs.call("order.cancel", name)
            assert code_of(refused) == RejectReason.UNKNOWN_ORDER
            # The id that was sent is the one that is named.
            assert {refused["error"]["data"]["field"]: refused["error"]["data"]["value"]} == name
        assert (await mine.call("order.cancel", number))["result"]["status"] == "canceled"
        assert code_of(await mine.call("order.cancel", number)) == RejectReason.UNKNOWN_ORDER


@pytest.mark.parametrize("method", ["order.cancel", "order.status"])
async def test_an_order_is_named_by_exactly_one_id(exchange: Running, method: str) -> None:
    async with session(exchange, await refused_account(exchange)) as caller:
        for params in ({"order_id": 1, "client_order_id": "x"}, {}):
            answer = await caller.call(method, params)
            assert code_of(answer) == DoorError.INVALID_PARAMS
            assert answer["error"]["data"]["field"] == "client_order_id"
            assert answer["error"]["data"]["allowed"] == "exactly one of order_id and client_order_id"


async def test_an_immediate_order_that_meets_nobody_is_canceled(exchange: Running) -> None:
    buyer = await exchange.register("100")
    async with exchange.client(buyer) as buys:
        result = await buys.enter(order(bid("i", exchange.new_hour(), time_in_force="ioc")))
        assert (result.status, result.end_reason, result.fills) == ("canceled", "immediate", ())
        assert await buys.funds() == Funds(buyer.account, "100", "0", "0", "0")


async def test_a_block_has_a_fill_for_each_hour_and_ask(exchange: Running) -> None:
    seller, buyer = await exchange.register(), await exchange.register()
    site, hour = await exchange.certify(seller), exchange.new_hour()
    async with exchange.client(seller) as sells, exchange.client(buyer) as buys:
        for index, price in enumerate(("10", "11", "12")):
            await sells.enter(order(ask(f"a{index}", site, hour + index, "4", price)))
        block = await buys.enter(order(bid("block", hour, "4", "11.50", hours=3)))
        assert (block.status, block.filled_gpus) == ("filled", "4")
        told = [(fill.delivery_start // HOUR_NS - hour, fill.gpus, fill.price) for fill in block.fills]
        assert told == [(0, "4", "10"), (1, "4", "11"), (2, "4", "12")]
        assert {fill.block for fill in block.fills} == {block.order_id}
        assert (await buys.funds()).committed == "132"


def change(name: str, gpus: str, price: str) -> OrderReplace:
    return OrderReplace(client_order_id=name, valid_until=VALID_UNTIL, gpus=gpus, price=price)


async def test_a_replaced_order_keeps_its_place_only_with_fewer_gpus_at_its_price(exchange: Running) -> None:
    seller, buyer = await exchange.register("1000"), await exchange.register()
    site, hour = await exchange.certify(seller), exchange.new_hour()
    async with exchange.client(seller) as sells, exchange.client(buyer) as buys:
        for name in ("a", "b", "c"):
            await sells.enter(order(ask(name, site, hour, "4", "10")))
        more = await sells.replace(change("a", "5", "10"))
        assert (more.status, more.gpus, more.price, more.leaves_gpus) == ("open", "5", "10", "5")
        fewer = await sells.replace(change("b", "2", "10"))
        assert (fewer.gpus, fewer.leaves_gpus) == ("2", "2")
        # A bond of a tenth and the higher fee of 0.1 % of 11 GPUs at 10.00.
        assert (await sells.funds()).reserved == "11.11"
        for name, gpus in (("1", "3"), ("2", "4"), ("3", "2")):
            await buys.enter(order(bid(name, hour, gpus)))
        assert [fill.client_order_id for fill in await sells.fills()] == ["b", "c", "c", "a", "a"]
        # At or below what is filled the rest ends.
        ended = await sells.replace(change("a", "3", "10"))
        assert (ended.status, ended.end_reason, ended.filled_gpus) == ("canceled", "replaced", "3")


@pytest.mark.parametrize(
    ("terms", "code", "field"),
    [
        (("5", "10"), RejectReason.NOTHING_TO_CHANGE, "gpus"),
        (("0", "10"), RejectReason.QUANTITY_OUT_OF_RANGE, "gpus"),
        (("5", "0"), RejectReason.PRICE_OUT_OF_RANGE, "price"),
        (("100000", "10"), RejectReason.INSUFFICIENT_FUNDS, "account"),
    ],
)
async def test_a_refused_replace_names_its_field_and_leaves_the_order_as_it_was(
    exchange: Running, terms: tuple[str, str], code: int, field: str
) -> None:
    who, hour = await exchange.register(), exchange.new_hour()
    async with exchange.client(who) as client:
        before = await client.enter(order(bid("a", hour, "5", "10")))
        with pytest.raises(RefusedError) as refusal:
            await client.replace(change("a", *terms))
        assert (refusal.value.code, refusal.value.data["field"]) == (code, field)
        assert await client.status("a") == before


async def test_a_mass_cancel_ends_what_it_names_and_tells_how_many(exchange: Running) -> None:
    who, stranger = await exchange.register(), await exchange.register()
    site, hour = await exchange.certify(who), exchange.new_hour()
    async with exchange.client(who) as client, exchange.client(stranger) as other:
        await other.enter(order(bid("theirs", hour, "1", "1")))
        for name, at in (("b0", hour), ("b1", hour + 1), ("b2", hour + 2)):
            await client.enter(order(bid(name, at, "1", "1")))
        await client.enter(order(bid("block", hour, "1", "1", hours=2)))
        await client.enter(order(ask("a0", site, hour, "1", "9")))

        async def left() -> list[str]:
            return [one.client_order_id for one in await client.open_orders()]

        # A block counts in each of its hours.
        assert await client.mass_cancel("H100-SXM", (hour + 1) * HOUR_NS) == 2
        assert await left() == ["b0", "b2", "a0"]
        assert await client.mass_cancel(side=Side.SELL) == 1
        assert (await client.status("a0")).end_reason == "requested"
        assert await client.mass_cancel() == 2
        assert await left() == []
        assert len(await other.open_orders()) == 1


async def test_an_iceberg_stands_in_the_book_with_what_it_shows(exchange: Running) -> None:
    seller, buyer = await exchange.register(), await exchange.register()
    site, hour = await exchange.certify(seller), exchange.new_hour()
    async with exchange.client(seller) as sells, exchange.client(buyer) as buys:
        ice = await sells.enter(order(ask("ice", site, hour, "9", "10", display_gpus="2")))
        assert (ice.leaves_gpus, ice.shown_gpus) == ("9", "2")
        await buys.enter(order(bid("b", hour, "3")))
        found = await sells.status("ice")
        assert (found.leaves_gpus, found.shown_gpus) == ("6", "1")
        book: dict[str, Any] = await buys.call("market.snapshot", {"contract": contract(hour)})
        assert [row["gpus"] for row in book["asks"]] == ["1"]
        assert book["phase"] == "continuous"


async def test_post_only_minimum_and_fill_or_kill_are_judged_on_entry(exchange: Running) -> None:
    seller, buyer = await exchange.register(), await exchange.register()
    site, hour = await exchange.certify(seller), exchange.new_hour()
    async with exchange.client(seller) as sells, exchange.client(buyer) as buys:
        await sells.enter(order(ask("a", site, hour, "5", "10")))
        for name, gpus, terms, code in (
            ("p", "1", {"post_only": True}, RejectReason.POST_ONLY_WOULD_TRADE),
            ("m", "8", {"min_gpus": "6"}, RejectReason.MINIMUM_NOT_FILLABLE),
            ("f", "6", {"time_in_force": "fok"}, RejectReason.NOT_FILLABLE),
        ):
            with pytest.raises(RefusedError) as refusal:
                await buys.enter(order(bid(name, hour, gpus, **terms)))
            assert refusal.value.code == code
        assert (await sells.status("a")).leaves_gpus == "5"
        passive = await buys.enter(order(bid("p", hour, "1", "9", post_only=True)))
        assert (passive.status, passive.fills) == ("open", ())
        whole = await buys.enter(order(bid("f", hour, "2", time_in_force="fok")))
        assert whole.status == "filled"
        part = await buys.enter(order(bid("m", hour, "8", min_gpus="3")))
        assert (part.status, part.filled_gpus, part.leaves_gpus) == ("open", "3", "5")


@pytest.mark.parametrize(
    ("mode", "maker", "taker"),
    [("cancel_taker", "open", "canceled"), ("cancel_maker", "canceled", "open"),
     ("cancel_both", "canceled", "canceled")],
)  # fmt: skip
async def test_which_of_an_account_s_own_orders_gives_way_is_its_choice(
    exchange: Running, mode: str, maker: str, taker: str
) -> None:
    who = await exchange.register()
    site, hour = await exchange.certify(who), exchange.new_hour()
    async with exchange.client(who) as client:
        await client.enter(order(ask("a", site, hour)))
        result = await client.enter(order(bid("b", hour, self_trade=mode)))
        assert result.status == taker
        assert (await client.status("a")).status == maker
        assert {result.end_reason, (await client.status("a")).end_reason} <= {None, "self_trade"}
        assert await client.fills() == []


async def test_alternatives_share_one_reserve_and_end_together(exchange: Running) -> None:
    seller, buyer = await exchange.register(), await exchange.register("100")
    site, hour = await exchange.certify(seller), exchange.new_hour()
    async with exchange.client(seller) as sells, exchange.client(buyer) as buys:
        for n, price in enumerate(("10", "12")):
            await buys.enter(order(bid(f"b{n}", hour + n, "4", price, exclusive_group="either")))
        # 4 GPUs at 12.00 and 0.1 %, not the sum.
        assert (await buys.funds()).reserved == "48.048"
        await sells.enter(order(ask("a", site, hour, "1")))
        thinned = await buys.status("b1")
        assert (thinned.status, thinned.leaves_gpus, thinned.exclusive_group) == ("open", "3", "either")
        await sells.enter(order(ask("b", site, hour + 1, "3")))
        ended = await buys.status("b0")
        assert (ended.status, ended.end_reason, ended.filled_gpus) == ("canceled", "group", "1")
        assert (await buys.funds()).reserved == "0"


async def test_what_was_bought_can_be_resold_once(exchange: Running) -> None:
    seller, buyer, second = [await exchange.register() for _ in range(3)]
    site, hour = await exchange.certify(seller), exchange.new_hour()
    async with (
        exchange.client(seller) as sells,
        exchange.client(buyer) as buys,
        exchange.client(second) as wants,
    ):
        await sells.enter(order(ask("a", site, hour, "3", "10")))
        (fill,) = (await buys.enter(order(bid("b", hour, "3")))).fills
        with pytest.raises(RefusedError) as refusal:
            await buys.enter(order(ask("r0", site, hour, "4", "12", position=fill.trade_id)))
        assert refusal.value.code == RejectReason.POSITION_EXCEEDED
        await buys.enter(order(ask("r1", site, hour, "2", "12", position=fill.trade_id)))
        (bought,) = (await wants.enter(order(bid("w", hour, "2", "12")))).fills
        assert (bought.price, bought.position) == ("12", 0)
        resold = (await buys.fills())[-1]
        assert (resold.side, resold.gpus, resold.position) == (Side.SELL, "2", fill.trade_id)
        with pytest.raises(RefusedError) as refusal:
            await wants.enter(order(ask("r2", site, hour, "1", "12", position=fill.trade_id)))
        assert refusal.value.code == RejectReason.UNKNOWN_POSITION


async def test_a_run_sells_windows_that_leave_no_shorter_remnant(exchange: Running) -> None:
    seller, buyer = await exchange.register(), await exchange.register()
    site, hour = await exchange.certify(seller), exchange.new_hour()
    async with exchange.client(seller) as sells, exchange.client(buyer) as buys:
        run = await sells.enter(order(ask("run", site, hour, "4", "10", hours=4, min_hours=2)))
        assert (run.gpus, run.leaves_gpus, run.run_gpus) == ("4", "16", ("4", "4", "4", "4"))
        # Three hours would leave one.
        waits = await buys.enter(order(bid("three", hour, "1", "10", hours=3)))
        assert waits.status == "open"
        block = await buys.enter(order(bid("two", hour + 2, "3", "10", hours=2)))
        assert (block.status, len(block.fills)) == ("filled", 2)
        sold = await sells.status("run")
        assert (sold.filled_gpus, sold.leaves_gpus, sold.run_gpus) == ("6", "10", ("4", "4", "1", "1"))
        fewer = await sells.replace(change("run", "3", "10"))
        assert (fewer.status, fewer.leaves_gpus, fewer.run_gpus) == ("open", "6", ("3", "3", "0", "0"))


async def soon(ask: Callable[[], Awaitable[Any]], expected: Any) -> None:
    """Return when the answer is the one expected, soon."""
    deadline = time.monotonic() + 10
    while (found := await ask()) != expected:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.02)


def standing(name: str, hour: int, hours: int, **changes: Any) -> OfferEnter:
    """A standing ask of 2 GPUs at 10.00."""
    terms: dict[str, Any] = {
        "name": name, "valid_until": VALID_UNTIL, "side": "sell", "class": "H100-SXM",
        "from": hour * HOUR_NS, "until": (hour + hours) * HOUR_NS, "gpus": "2", "price_curve": ["10"],
        "carbon": "E",
    }  # fmt: skip
    return msgspec.convert({**terms, **changes}, OfferEnter)


async def test_a_standing_offer_lists_its_hours_is_changed_and_withdrawn_as_one(exchange: Running) -> None:
    seller, buyer = await exchange.register(), await exchange.register()
    site, hour = await exchange.certify(seller, gpus=4), exchange.new_hour()
    async with exchange.client(seller) as sells, exchange.client(buyer) as buys:
        # An hour that is full already cannot be listed.
        await sells.enter(order(ask("full", site, hour + 3, "4", "99")))
        offer = await sells.enter_offer(standing("nightly", hour, 48, site=site))
        assert (offer.name, offer.gpus, offer.price_curve) == ("nightly", "2", ("10",))

        async def told() -> OfferResult:
            (found,) = await sells.offers()
            return found

        async def listed() -> int:
            return (await told()).open_orders

        await soon(listed, 47)
        found = await told()
        assert (found.offer_id, found.listed_until) == (offer.offer_id, (hour + 48) * HOUR_NS)
        (skipped,) = found.skipped
        assert (skipped.delivery_start, skipped.reason) == (
            (hour + 3) * HOUR_NS,
            RejectReason.CAPACITY_EXCEEDED,
        )
        taken = await buys.enter(order(bid("b", hour + 1, "2")))
        assert taken.status == "filled"
        (sold,) = await sells.fills()
        assert sold.client_order_id == ""
        order_of = await sells.call("order.status", OrderNamed(order_id=sold.order_id), OrderResult)
        assert (order_of.offer_id, order_of.status) == (offer.offer_id, "filled")
        assert (await sells.cancel_offer(offer.offer_id)).open_orders == 0
        assert [one.client_order_id for one in await sells.open_orders()] == ["full"]


async def test_a_standing_offer_is_replaced_while_hours_are_still_to_come(exchange: Running) -> None:
    seller = await exchange.register()
    site, hour = await exchange.certify(seller, gpus=4), exchange.new_hour()
    horizon = START_NS // HOUR_NS + VENUE.horizon_hours
    async with exchange.client(seller) as sells:
        long = standing("long", horizon - 1, 9, site=site)
        offer = await sells.enter_offer(long)

        async def prices() -> list[str]:
            return [f"{one.gpus} @ {one.price}" for one in await sells.open_orders()]

        await soon(prices, ["2 @ 10", "2 @ 10"])
        again = OfferReplace(
            offer_id=offer.offer_id, valid_until=VALID_UNTIL, gpus="3", price_curve=("11.5",)
        )
        changed = await sells.replace_offer(again)
        assert (changed.status, changed.gpus, changed.price_curve) == ("listing", "3", ("11.5",))
        await soon(prices, ["3 @ 11.5", "3 @ 11.5"])
        for refused, code, field in (
            (sells.enter_offer(long), RejectReason.DUPLICATE_OFFER, "name"),
            (sells.replace_offer(again), RejectReason.NOTHING_TO_CHANGE, "gpus"),
            (
                sells.enter_offer(standing("hours", hour, 0, site=site)),
                RejectReason.HOURS_OUT_OF_RANGE,
                "until",
            ),
            (
                sells.enter_offer(standing("curve", hour, 9, site=site, price_curve=["1", "2"])),
                RejectReason.CURVE_OUT_OF_RANGE,
                "price_curve",
            ),
        ):
            with pytest.raises(RefusedError) as refusal:
                await refused
            assert (refusal.value.code, refusal.value.data["field"]) == (code, field)
        ended = await sells.cancel_offer(offer.offer_id)
        assert (ended.status, ended.end_reason) == ("ended", "withdrawn")


async def test_what_an_operator_stops_is_stopped_for_all_and_told(exchange: Running) -> None:
    seller, buyer = await exchange.register(), await exchange.register()
    site, hour = await exchange.certify(seller, gpus=9), exchange.new_hour()
    heard: list[tuple[str, Any]] = []
    async with (
        exchange.client(seller) as sells,
        exchange.client(buyer, lambda *message: heard.append(message)) as buys,
    ):
        await buys.call("market.subscribe", {"channels": ["status"]})
        await sells.enter(order(ask("a", site, hour, "9", "10")))
        await exchange.operate(HaltContract("H100-SXM", hour))
        with pytest.raises(RefusedError) as refusal:
            await buys.enter(order(bid("b", hour)))
        assert refusal.value.code == RejectReason.WRONG_PHASE
        assert (await sells.status("a")).phase == "halted"
        assert (await sells.replace(change("a", "8", "10"))).gpus == "8"
        await exchange.operate(ResumeContract("H100-SXM", hour))
        await until(lambda: len(heard) == 2)
        assert [(channel, data["phase"]) for channel, data in heard] == [
            ("status", "halted"),
            ("status", "call"),
        ]
        await exchange.operate(SuspendAccount(buyer.account))
        with pytest.raises(RefusedError) as refusal:
            await buys.enter(order(bid("b", hour + 1)))
        assert refusal.value.code == RejectReason.ACCOUNT_SUSPENDED
        await exchange.operate(ReinstateAccount(buyer.account))
        await buys.enter(order(bid("b", hour + 1)))
        (answer,) = await exchange.operate(DerateSite(site, hour, hour + 2, 3))
        assert answer["event"] == {"type": "site_derated", "site": site}
        cut = await sells.status("a")
        assert (cut.status, cut.leaves_gpus) == ("open", "3")


async def test_a_halted_contract_restarts_through_a_call() -> None:
    heard: list[tuple[str, Any]] = []
    with running() as exchange:
        seller, buyer = await exchange.register(), await exchange.register()
        site, hour = await exchange.certify(seller), exchange.new_hour()
        async with (
            exchange.client(seller) as sells,
            exchange.client(buyer, lambda *message: heard.append(message)) as buys,
        ):
            await buys.call("market.subscribe", {"channels": ["status", "auction", "trades"]})
            await exchange.operate(HaltContract("H100-SXM", hour), ResumeContract("H100-SXM", hour))
            await sells.enter(order(ask("a", site, hour, "2", "10")))
            await buys.enter(order(bid("low", hour, "1", "9", time_in_force="auction")))
            waits = await buys.enter(order(bid("b", hour, "2", "12", time_in_force="auction")))
            assert (waits.status, waits.phase, waits.fills) == ("open", "call", ())
            # What it would clear at is told again and again, the last order with it at last.
            await until(
                lambda: [data["gpus"] for channel, data in heard if channel == "auction"][-1:] == ["2"]
            )
            (would_be,) = heard[-1][1]["prices"]
            assert (heard[-1][1]["indicative"], would_be["price"]) == (True, "11")
            await exchange.set_clock(START_NS + 100 * 10**9)
            await until(lambda: [c for c, _ in heard].count("trades") == 1)
            (fill,) = (await buys.status("b")).fills
            # Half-way between the ask's price and the bid's; both sides pay the maker's fee of 0.05 %.
            assert (fill.price, fill.fee) == ("11", "0.011")
            assert (await sells.status("a")).status == "filled"
            low = await buys.status("low")
            assert (low.status, low.end_reason) == ("canceled", "call_ended")
            auction = [data for channel, data in heard if channel == "auction"][-1]
            assert not auction["indicative"]
            (price,) = auction["prices"]
            assert (auction["gpus"], price["price"], price["cell"]["carbon"]) == ("2", "11", "E")
            (trade,) = [data for channel, data in heard if channel == "trades"]
            assert trade["taker"] is None
            phases = [data["phase"] for channel, data in heard if channel == "status"]
            assert phases == ["halted", "call", "clearing", "continuous"]


async def test_a_repeat_over_a_new_connection_gets_the_first_answer(exchange: Running) -> None:
    who, hour = await exchange.register("100"), exchange.new_hour()
    async with exchange.client(who) as first:
        entered = await first.enter(order(bid("again", hour, "2")))
    async with exchange.client(who) as second:
        assert await second.enter(order(bid("again", hour, "2"))) == entered
        with pytest.raises(RefusedError) as other:
            await second.enter(order(bid("again", hour, "3")))
        assert other.value.code == RejectReason.DUPLICATE_ORDER_ID
        assert other.value.data["field"] == "client_order_id"
        assert await second.funds() == Funds(who.account, "79.98", "20.02", "0", "0")


async def test_orders_of_a_session_are_applied_in_the_order_sent(exchange: Running) -> None:
    who, hour = await exchange.register(), exchange.new_hour()
    async with session(exchange, who) as caller:
        for n in range(300):
            message = {
                "jsonrpc": "2.0",
                "id": 1000 + n,
                "method": "order.enter",
                "params": bid(f"p{n}", hour),
            }
            await caller.say(message)
        answers: dict[int, dict[str, Any]] = {}
        while len(answers) < 300:
            answer = await caller.hear()
            answers[answer["id"]] = answer["result"]
    assert [answers[1000 + n]["client_order_id"] for n in range(300)] == [f"p{n}" for n in range(300)]
    ids = [answers[1000 + n]["order_id"] for n in range(300)]
    assert ids == sorted(ids)


async def test_calls_beyond_the_bound_of_those_that_wait_are_refused_at_once(exchange: Running) -> None:
    who, hour = await exchange.register(), exchange.new_hour()
    async with session(exchange, who) as caller:
        exchange.core.send_signal(signal.SIGSTOP)
        try:
            for n in range(IN_FLIGHT_MAX + 20):
                await caller.say(
                    {"jsonrpc": "2.0", "id": n, "method": "order.enter", "params": bid(f"f{n}", hour)}
                )
            refused = [await caller.hear() for _ in range(20)]
        finally:
            exchange.core.send_signal(signal.SIGCONT)
        assert {code_of(answer) for answer in refused} == {DoorError.TOO_MANY_IN_FLIGHT}
        assert [answer["id"] for answer in refused] == list(range(IN_FLIGHT_MAX, IN_FLIGHT_MAX + 20))
        taken = [await caller.hear() for _ in range(IN_FLIGHT_MAX)]
        assert {answer["id"] for answer in taken if "result" in answer} == set(range(IN_FLIGHT_MAX))


# -- refusals --------------------------------------------------------------------------------------------

INVALID = DoorError.INVALID_PARAMS
FAR = 2**62 // HOUR_NS * HOUR_NS
MARKET = {"order_type": "market", "price": None, "time_in_force": "ioc"}
NO_ZONE, NO_TIER = {**REQUIREMENT, "zone": "mars"}, {**REQUIREMENT, "latency": "L9"}


@pytest.mark.parametrize(
    ("changes", "code", "field", "value"),
    [
        ({"price": "10.005"}, INVALID, "price", "10.005"),
        ({"gpus": "0.5"}, INVALID, "gpus", "0.5"),
        ({"price": "-1"}, INVALID, "price", "-1"),
        ({"price": "1e3"}, INVALID, "price", "1e3"),
        ({"price": "1\n"}, INVALID, "price", "1\n"),
        ({"price": "NaN"}, INVALID, "price", "NaN"),
        ({"price": 10}, INVALID, "price", 10),
        ({"gpus": "999999999999999999"}, RejectReason.QUANTITY_OUT_OF_RANGE, "gpus", "999999999999999999"),
        ({"price": "999999999999999999"}, INVALID, "price", "999999999999999999"),
        ({"gpus": "0"}, RejectReason.QUANTITY_OUT_OF_RANGE, "gpus", "0"),
        ({"price": "0"}, RejectReason.PRICE_OUT_OF_RANGE, "price", "0"),
        ({"price": "100000.01"}, RejectReason.PRICE_OUT_OF_RANGE, "price", "100000.01"),
        ({"class": "H200"}, RejectReason.UNKNOWN_CLASS, "class", "H200"),
        ({"class": ""}, INVALID, "class", ""),
        ({"side": "hold"}, INVALID, "side", "hold"),
        ({"time_in_force": "day"}, INVALID, "time_in_force", "day"),
        ({"time_in_force": "gtd"}, RejectReason.TIME_IN_FORCE_MISMATCH, "expire_time", None),
        ({"delivery_start": FIRST_HOUR * HOUR_NS + 1}, INVALID, "delivery_start", FIRST_HOUR * HOUR_NS + 1),
        ({"delivery_start": -HOUR_NS}, INVALID, "delivery_start", -HOUR_NS),
        ({"delivery_start": 0}, RejectReason.GATE_CLOSED, "delivery_start", 0),
        ({"delivery_start": FAR}, RejectReason.BEYOND_HORIZON, "delivery_start", FAR),
        ({"delivery_start": 2**63}, INVALID, "delivery_start", 2**63),
        ({"valid_until": 2**63}, INVALID, "valid_until", 2**63),
        ({"valid_until": 2**200}, INVALID, "valid_until", 2**200),
        ({"valid_until": -1}, INVALID, "valid_until", -1),
        ({"valid_until": 1.5}, INVALID, "valid_until", 1.5),
        ({"valid_until": START_NS - 1}, RejectReason.COMMAND_EXPIRED, "valid_until", START_NS - 1),
        ({"valid_until": VALID_UNTIL + 1}, RejectReason.VALIDITY_TOO_LONG, "valid_until", VALID_UNTIL + 1),
        ({"hours": 0}, INVALID, "hours", 0),
        ({"hours": 745}, INVALID, "hours", 745),
        ({"hours": 49}, RejectReason.HOURS_OUT_OF_RANGE, "hours", 49),
        ({"hours": True}, INVALID, "hours", True),
        ({"client_order_id": "x" * 41}, INVALID, "client_order_id", "x" * 41),
        ({"client_order_id": None}, INVALID, "client_order_id", None),
        ({"gpus": None}, INVALID, "gpus", None),
        ({"colour": "red"}, INVALID, "colour", "red"),
        ({"site": 2**63}, INVALID, "site", 2**63),
        ({"site": 1}, RejectReason.SIDE_FIELDS_MISMATCH, "requirement", REQUIREMENT),
        ({"requirement": "east"}, INVALID, "requirement", "east"),
        ({"requirement": NO_ZONE}, RejectReason.UNKNOWN_ZONE, "requirement.zone", "mars"),
        ({"requirement": NO_TIER}, RejectReason.UNKNOWN_GRADE, "requirement.latency", "L9"),
        ({"requirement": {**REQUIREMENT, "zone": 5}}, INVALID, "requirement.zone", 5),
        ({"requirement": {"zone": "east"}}, INVALID, "requirement.latency", None),
        ({"gpus": "100000", "price": "100000"}, RejectReason.INSUFFICIENT_FUNDS, None, None),
        ({"price": None}, RejectReason.PRICE_OUT_OF_RANGE, "price", None),
        ({"order_type": "stop"}, INVALID, "order_type", "stop"),
        ({"order_type": "market"}, RejectReason.ORDER_TYPE_MISMATCH, "order_type", "market"),
        ({**MARKET, "time_in_force": "gtc"}, RejectReason.ORDER_TYPE_MISMATCH, "order_type", "market"),
        (MARKET, RejectReason.NO_REFERENCE_PRICE, "order_type", "market"),
        ({"time_in_force": "auction"}, RejectReason.WRONG_PHASE, None, None),
        ({"time_in_force": "fok"}, RejectReason.NOT_FILLABLE, None, None),
        ({"min_gpus": "0.5"}, INVALID, "min_gpus", "0.5"),
        ({"min_gpus": "2"}, RejectReason.MINIMUM_OUT_OF_RANGE, "min_gpus", "2"),
        ({"min_gpus": "1"}, RejectReason.MINIMUM_NOT_FILLABLE, "min_gpus", "1"),
        ({"display_gpus": "0.5"}, INVALID, "display_gpus", "0.5"),
        ({"display_gpus": "1"}, RejectReason.DISPLAY_OUT_OF_RANGE, "display_gpus", "1"),
        ({"post_only": "yes"}, INVALID, "post_only", "yes"),
        ({"post_only": True, "time_in_force": "ioc"}, RejectReason.POST_ONLY_MISMATCH, "post_only", True),
        ({"self_trade": "allow"}, INVALID, "self_trade", "allow"),
        ({"exclusive_group": ""}, INVALID, "exclusive_group", ""),
        ({"position": -1}, INVALID, "position", -1),
        ({"position": 1}, RejectReason.SIDE_FIELDS_MISMATCH, "requirement", REQUIREMENT),
        ({"min_hours": 745}, INVALID, "min_hours", 745),
        ({"min_hours": 1}, RejectReason.MIN_HOURS_OUT_OF_RANGE, "min_hours", 1),
    ],
    ids=repr,
)  # fmt: skip
async def test_a_bad_order_is_refused_by_field_value_and_what_is_allowed(
    exchange: Running, changes: dict[str, Any], code: int, field: str | None, value: Any
) -> None:
    who = await refused_account(exchange)
    async with session(exchange, who) as caller:
        params = {**bid("bad", FIRST_HOUR), **changes}
        params = {name: one for name, one in params.items() if one is not None}
        answer = await caller.call("order.enter", params)
        assert code_of(answer) == code, answer
        if field is not None:
            data = answer["error"]["data"]
            assert (data["field"], data.get("value")) == (field, value), answer
            assert data["allowed"], answer
            assert field in answer["error"]["message"], answer
        assert (await caller.call("order.open"))["result"] == []
        assert (await caller.call("account.funds"))["result"]["cash"] == "1000"


_refused: dict[int, Participant] = {}


async def refused_account(exchange: Running) -> Participant:
    """One account for all refusals: nothing ever happens to it."""
    if exchange.port not in _refused:
        _refused[exchange.port] = await exchange.register("1000")
    return _refused[exchange.port]


@pytest.mark.parametrize(
    ("method", "params", "field"),
    [
        ("market.snapshot", {"contract": "H100-SXM"}, "contract"),
        ("market.snapshot", {"contract": "H200.20261024T00"}, "contract"),
        ("market.snapshot", {}, "contract"),
        ("market.subscribe", {"channels": ["weather"]}, "channels"),
        ("market.subscribe", {"channels": ["book.H100-SXM"]}, "channels"),
        ("market.subscribe", {"channels": [7]}, "channels"),
        ("account.fills", {"limit": 0}, "limit"),
        ("account.fills", {"since": -1}, "since"),
        ("session.time", {"now": 1}, "now"),
        ("session.login", {"key": text_of(bytes(32))}, "signature"),
    ],
)
async def test_a_bad_param_of_any_method_is_named(
    exchange: Running, method: str, params: dict[str, Any], field: str
) -> None:
    async with session(exchange, await refused_account(exchange)) as caller:
        answer = await caller.call(method, params)
        assert code_of(answer) == DoorError.INVALID_PARAMS
        assert answer["error"]["data"]["field"] == field, answer
        assert answer["error"]["data"]["allowed"]


def deep(brackets: int) -> str:
    """A call in which so many brackets open, one within the other."""
    inner = brackets - 1
    return (
        '{"jsonrpc":"2.0","id":1,"method":"session.time","params":' + '{"a":' * inner + "1" + "}" * brackets
    )


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("", DoorError.PARSE_ERROR),
        ("{", DoorError.PARSE_ERROR),
        (b"\xff\xfe", DoorError.PARSE_ERROR),
        (b'{"jsonrpc":"2.0","id":1,"method":"session.time","params":{"\xff":1}}', DoorError.PARSE_ERROR),
        ("[" * 30_000, DoorError.PARSE_ERROR),
        (deep(BRACKETS_MAX), DoorError.INVALID_PARAMS),
        (deep(BRACKETS_MAX + 1), DoorError.PARSE_ERROR),
        (deep(BRACKETS_MAX + 1).encode(), DoorError.PARSE_ERROR),
        (deep(9_000), DoorError.PARSE_ERROR),
        ("[]", DoorError.INVALID_REQUEST),
        ('[{"jsonrpc":"2.0","id":1,"method":"session.time"}]', DoorError.INVALID_REQUEST),
        ('"session.time"', DoorError.INVALID_REQUEST),
        ("null", DoorError.INVALID_REQUEST),
        ('{"jsonrpc":"2.0","method":"session.time"}', DoorError.INVALID_REQUEST),
        ('{"jsonrpc":"2.0","id":null,"method":"session.time"}', DoorError.INVALID_REQUEST),
        ('{"jsonrpc":"2.0","id":[1],"method":"session.time"}', DoorError.INVALID_REQUEST),
        ('{"jsonrpc":"1.0","id":1,"method":"session.time"}', DoorError.INVALID_REQUEST),
        ('{"id":1,"method":"session.time"}', DoorError.INVALID_REQUEST),
        ('{"jsonrpc":"2.0","id":1,"method":"session.time","meta":1}', DoorError.INVALID_REQUEST),
        ('{"jsonrpc":"2.0","id":1}', DoorError.INVALID_REQUEST),
        ('{"jsonrpc":"2.0","id":1,"method":"session.time","params":[]}', DoorError.INVALID_PARAMS),
    ],
    ids=lambda value: repr(value)[:60],
)
async def test_a_message_that_is_no_call_gets_an_answer_and_the_session_goes_on(
    exchange: Running, message: str | bytes, code: int
) -> None:
    async with session(exchange) as caller:
        await caller.say(message)
        answer = await caller.hear()
        assert code_of(answer) == code
        assert answer["jsonrpc"] == "2.0"
        assert "result" in await caller.call("session.time")


async def test_a_message_above_64_kib_closes_its_session_alone(exchange: Running) -> None:
    async with session(exchange) as large, session(exchange) as other:
        await large.say(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "x" * 64 * 1024}))
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await large.hear()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
        assert "result" in await other.call("session.time")


async def test_a_page_of_another_origin_is_not_served(exchange: Running) -> None:
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{exchange.port + 1}"):
        with pytest.raises(websockets.InvalidStatus) as refused:
            await connect(exchange.url, origin=Origin(origin))
        assert refused.value.response.status_code == 403
    async with session(exchange, origin=f"http://127.0.0.1:{exchange.port}") as caller:
        assert "result" in await caller.call("session.time")


# -- feeds -----------------------------------------------------------------------------------------------


class LocalBook:
    """A book kept as the README tells a client to: the snapshot, then each delta whose `prev_seq` fits."""

    def __init__(self, snapshot: dict[str, Any]) -> None:
        self.seq = snapshot["seq"]
        self.levels: dict[str, str] = {}
        for row in snapshot["bids"] + snapshot["asks"]:
            self.set(row)

    def set(self, row: dict[str, Any]) -> None:
        key = json.dumps([row["side"], row["cell"], row["price"]], sort_keys=True)
        if row["gpus"] == "0":
            self.levels.pop(key, None)
        else:
            self.levels[key] = row["gpus"]

    def take(self, delta: dict[str, Any]) -> None:
        assert delta["prev_seq"] <= self.seq, "a gap"
        assert delta["seq"] >= self.seq, "backwards"
        for row in delta["changes"]:
            self.set(row)
        self.seq = delta["seq"]


class Watcher:
    """Subscribes to books and keeps them."""

    def __init__(self) -> None:
        self.books: dict[str, LocalBook] = {}
        self.waiting: list[tuple[str, Any]] = []

    def heard(self, channel: str, data: Any) -> None:
        # A delta may come before the caller has taken the snapshot out of the answer.
        if channel in self.books:
            self.books[channel].take(data)
        else:
            self.waiting.append((channel, data))

    def shows(self, channel: str, levels: dict[str, str]) -> bool:
        return self.books[channel].levels == levels

    async def subscribe(self, client: Any, channels: list[str]) -> None:
        answer = await client.call("market.subscribe", {"channels": channels})
        for channel, snapshot in answer["snapshots"].items():
            self.books[channel] = LocalBook(snapshot)
        for channel, data in self.waiting:
            self.books[channel].take(data)
        self.waiting.clear()


@pytest.mark.parametrize("seed", [1, 2])
async def test_snapshot_and_deltas_give_the_book_under_random_flow(exchange: Running, seed: int) -> None:
    rng = random.Random(seed)
    sellers = [await exchange.register() for _ in range(2)]
    sites = [
        await exchange.certify(sellers[0], zone="east"),
        await exchange.certify(sellers[1], zone="middle"),
    ]
    buyer = await exchange.register("100000000")
    hour = exchange.new_hour()
    channels = [f"book.{contract(hour + n)}" for n in range(3)]
    early, late = Watcher(), Watcher()
    async with (
        exchange.client(sellers[0]) as one,
        exchange.client(sellers[1]) as two,
        exchange.client(buyer) as buys,
        exchange.client(on_message=early.heard) as watches,
        exchange.client(on_message=late.heard) as joins,
    ):
        await early.subscribe(watches, channels)
        entered: list[tuple[Any, str]] = []

        async def step(n: int) -> None:
            if entered and rng.random() < 0.25:
                client, name = entered.pop(rng.randrange(len(entered)))
                params = {"client_order_id": name}
                await client.call("order.cancel", params)
                return
            at, gpus, price = hour + rng.randrange(3), str(rng.randint(1, 5)), str(rng.randint(95, 105))
            client, name = rng.choice([one, two, buys, buys]), f"{seed}-{n}"
            if client is buys:
                hours = 3 if at == hour and rng.random() < 0.2 else None
                needed = {**REQUIREMENT, "latency": rng.choice(["L1", "L2", "L4"])}
                params = bid(name, at, gpus, price, hours=hours, requirement=needed)
            else:
                params = ask(name, sites[0 if client is one else 1], at, gpus, price)
            entered.append((client, name))
            await client.call("order.enter", params)

        for n in range(0, 400, 20):
            answers = await asyncio.gather(*(step(n + i) for i in range(20)), return_exceptions=True)
            assert all(a is None or isinstance(a, RefusedError) for a in answers), answers
            # What is gone cannot be canceled; a site that is full cannot sell.
            codes = {a.code for a in answers if isinstance(a, RefusedError)}
            assert codes <= {RejectReason.UNKNOWN_ORDER, RejectReason.CAPACITY_EXCEEDED}
            if n == 200:
                await late.subscribe(joins, channels)
        for channel in channels:
            truth: dict[str, Any] = await watches.call(
                "market.snapshot", {"contract": channel.removeprefix("book.")}
            )
            expected = LocalBook(truth).levels
            assert expected, "a book that is empty proves nothing"
            for watcher in (early, late):
                await until(partial(watcher.shows, channel, expected))


async def test_trades_are_public_and_orders_and_fills_are_their_owner_s(exchange: Running) -> None:
    seller, buyer, stranger = [await exchange.register() for _ in range(3)]
    site, hour = await exchange.certify(seller), exchange.new_hour()
    heard: dict[str, list[tuple[str, Any]]] = {"seller": [], "buyer": [], "stranger": [], "nobody": []}

    def into(name: str) -> Any:
        return lambda channel, data: heard[name].append((channel, data))

    private, public_only = {"channels": ["orders", "fills", "trades"]}, {"channels": ["trades"]}
    async with (
        exchange.client(seller, into("seller")) as sells,
        exchange.client(buyer, into("buyer")) as buys,
        exchange.client(stranger, into("stranger")) as idle,
        exchange.client(None, into("nobody")) as nobody,
    ):
        for client in (sells, buys, idle):
            await client.call("market.subscribe", private)
        await nobody.call("market.subscribe", public_only)
        await sells.enter(order(ask("a", site, hour, "2", "10")))
        result = await buys.enter(order(bid("b", hour, "1", "11")))
        await sells.cancel("a")
        await until(lambda: len(heard["seller"]) >= 4 and all(heard.values()))
        trade = ("trades", {"trade_id": result.fills[0].trade_id, "contract": contract(hour), "price": "10",
                            "gpus": "1", "taker": "buy", "block": False, "time": START_NS})  # fmt: skip
        assert heard["nobody"] == heard["stranger"] == [trade]
        mine = {name: [(c, d) for c, d in all_heard if c != "trades"] for name, all_heard in heard.items()}
        assert {d["client_order_id"] for _, d in mine["seller"]} == {"a"}
        assert {d["client_order_id"] for _, d in mine["buyer"]} == {"b"}
        assert [d["status"] for c, d in mine["seller"] if c == "orders"] == ["open", "canceled"]
        # What becomes of an order in one command is told once.
        assert [d["status"] for c, d in mine["buyer"] if c == "orders"] == ["filled"]
        assert [d["price"] for c, d in mine["buyer"] if c == "fills"] == ["10"]
        await buys.call("market.unsubscribe", private)
        before = len(heard["buyer"])
        await buys.enter(order(bid("c", hour, "1", "9")))
        await asyncio.sleep(0.1)
        assert len(heard["buyer"]) == before


async def test_one_that_never_reads_is_closed_and_delays_nobody(exchange: Running) -> None:
    who, hour = await exchange.register(), exchange.new_hour()
    message = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "reference.venue"}).encode()
    deaf = await deaf_session(exchange.port)

    async def flood() -> None:
        """Ask for 20 MB of answers, in bursts, and keep asking until the door is shut."""
        loop = asyncio.get_running_loop()
        while True:
            await loop.sock_sendall(deaf, masked(message) * 100)
            await asyncio.sleep(0.02)

    flooding = asyncio.create_task(flood())
    acks = []
    async with exchange.client(who) as client:
        began = time.monotonic()
        n = 0
        while not flooding.done():
            assert time.monotonic() - began < 30, "it was not closed"
            sent = time.monotonic()
            await client.enter(order(bid(f"d{n}", hour)))
            acks.append(time.monotonic() - sent)
            n += 1
    deaf.close()
    assert isinstance(flooding.exception(), ConnectionError)
    assert len(acks) > 50
    assert sorted(acks)[len(acks) * 95 // 100] < 0.25


async def deaf_session(port: int) -> socket.socket:
    """A WebSocket whose owner never reads more than the handshake."""
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect(("127.0.0.1", port))
    deaf.sendall(
        f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    deaf.setblocking(False)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += await asyncio.get_running_loop().sock_recv(deaf, 1)
    assert answer.startswith(b"HTTP/1.1 101")
    return deaf


def masked(text: bytes) -> bytes:
    """A client's text frame, masked with zeros."""
    assert len(text) < 126
    return bytes((0x81, 0x80 | len(text))) + bytes(4) + text


async def test_one_that_reads_too_late_is_told_why_it_is_closed(exchange: Running) -> None:
    async with session(exchange, max_queue=1) as slow:
        # The library stops reading when its queue is full, and so many answers fit into no socket.
        for n in range(12_000):
            await slow.say({"jsonrpc": "2.0", "id": n, "method": "reference.venue"})
        await asyncio.sleep(0.5)
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                await slow.hear()
        assert slow.ws.close_code == 4008


# -- sessions of a gateway without processes ----------------------------------------------------------------


class Desk:
    """A gateway on no socket: records come from the test, sessions answer into lists."""

    def __init__(self) -> None:
        self.gateway = Gateway(DataFolder(Path("nowhere")))
        self.exchange = self.gateway.exchange
        self.time_ns = START_NS

    def session(self) -> tuple[Session, list[Any]]:
        heard: list[Any] = []
        return Session(self.exchange, lambda text: heard.append(json.loads(text)), True, METHODS), heard

    def take(self, command: AnyCommand, *events: AnyEvent) -> None:
        """Give the gateway the next durable record."""
        parts = [msgspec.Raw(encode(part)) for part in (command, *events)]
        sequence = self.gateway.state.sequence + 1
        self.gateway._on_record(Record(sequence, self.time_ns, bytes(16), parts[0], tuple(parts[1:])))

    def bid(self, order_id: int, hour: int, lots: int = 1) -> None:
        """Give the gateway a bid that rests, all at the same level."""
        self.take(bid_command(order_id, hour, lots=lots), OrderAccepted(order_id, 0))

    async def publish(self) -> None:
        """Let the gateway publish what changed, once."""
        publishing = asyncio.create_task(self.gateway.publish())
        await asyncio.sleep(1.5 * TICK_SECONDS)
        publishing.cancel()


def bid_command(order_id: int, hour: int, **changes: Any) -> EnterOrder:
    fields: dict[str, Any] = {
        "account": 1, "client_order_id": f"o{order_id}", "valid_until_ns": 0, "side": Side.BUY,
        "class_code": "H100-SXM", "delivery_hour": hour, "lots": 1, "price_ticks": 1000,
        "requirement": Requirement(**REQUIREMENT),
    }  # fmt: skip
    return EnterOrder(**{**fields, **changes})


def offer(desk: Desk, offer_id: int, account: int = 1) -> None:
    """Give the gateway a standing bid for three hours."""
    command = EnterStandingOffer(
        account=account, name=f"n{offer_id}", valid_until_ns=0, side=Side.BUY, class_code="H100-SXM",
        from_hour=FIRST_HOUR, until_hour=FIRST_HOUR + 3, lots=2, price_curve=(1000, 0),
        requirement=Requirement(**REQUIREMENT),
    )  # fmt: skip
    desk.take(command, StandingOfferEntered(offer_id, account))


@pytest.fixture
def desk() -> Desk:
    found = Desk()
    found.take(open_era(), EraOpened())
    return found


def call_text(method: str, params: Any = None) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}})


def subscribe_text(*channels: str) -> str:
    return call_text("market.subscribe", {"channels": channels})


async def test_a_closed_session_is_not_served_and_listens_to_nothing(desk: Desk) -> None:
    one, heard = desk.session()
    await one.receive(subscribe_text("trades"))
    waits = asyncio.create_task(one.receive(subscribe_text(f"book.{contract(FIRST_HOUR)}")))
    one.close()
    await waits
    one.join("trades")
    assert len(heard) == 1
    assert desk.exchange.channels == {}


async def test_what_nobody_listens_to_is_forgotten(desk: Desk) -> None:
    book, (one, _), (other, _) = f"book.{contract(FIRST_HOUR)}", desk.session(), desk.session()
    for listener in (one, other):
        await listener.receive(subscribe_text(book, "trades"))
    desk.bid(1, FIRST_HOUR)
    await desk.publish()
    assert set(desk.exchange.book_seq) == {book}
    other.close()
    assert desk.exchange.channels == {book: {one}, "trades": {one}}
    desk.bid(2, FIRST_HOUR)
    for _ in range(2):
        await one.receive(call_text("market.unsubscribe", {"channels": [book, "trades", "fills"]}))
    assert desk.exchange.channels == {}
    await desk.publish()
    assert desk.exchange.book_seq == {}


async def test_a_book_is_exact_when_its_last_listener_left_and_another_came_within_a_tick(desk: Desk) -> None:
    book, (one, _), (other, heard) = f"book.{contract(FIRST_HOUR)}", desk.session(), desk.session()
    await one.receive(subscribe_text(book))
    desk.bid(1, FIRST_HOUR)
    one.close()
    desk.bid(2, FIRST_HOUR)
    await other.receive(subscribe_text(book))
    local = LocalBook(heard.pop()["result"]["snapshots"][book])
    for gpus in ("2", "3"):
        await desk.publish()
        for message in heard:
            local.take(message["params"]["data"])
        assert list(local.levels.values()) == [gpus]
        heard.clear()
        desk.bid(int(gpus) + 1, FIRST_HOUR)


async def test_a_book_is_open_from_an_hour_past_to_the_horizon(desk: Desk) -> None:
    now, (one, heard) = START_NS // HOUR_NS, desk.session()
    last = now + SMALL_VENUE.horizon_hours
    ends = [contract(end).partition(".")[2] for end in (now - 1, last)]

    async def answers(hour: int) -> Iterator[tuple[str, str, Any]]:
        """Field, value and answer of each way to a book."""
        name = contract(hour)
        await one.receive(subscribe_text(f"book.{name}"))
        subscribed = heard.pop()
        await one.receive(call_text("market.snapshot", {"contract": name}))
        return iter([("channels", f"book.{name}", subscribed), ("contract", name, heard.pop())])

    for hour in (now - 1, last):
        assert all("result" in answer for _, _, answer in await answers(hour))
    for hour in (now - 2, last + 1, 0):
        for field, value, answer in await answers(hour):
            assert code_of(answer) == DoorError.INVALID_PARAMS
            assert answer["error"]["data"] == {
                "field": field,
                "value": value,
                "allowed": f"a delivery hour of {ends[0]} to {ends[1]}",
            }
    assert len(desk.exchange.channels) == 2


async def test_a_session_listens_to_a_bounded_number_of_channels(desk: Desk) -> None:
    one, heard = desk.session()
    books = [f"book.{contract(FIRST_HOUR + n)}" for n in range(CHANNELS_MAX)]
    for n in range(0, CHANNELS_MAX, 100):
        await one.receive(subscribe_text(*books[n : n + 100]))
        assert "result" in heard.pop()
    await one.receive(subscribe_text("trades"))
    answer = heard.pop()
    assert code_of(answer) == DoorError.INVALID_PARAMS
    assert answer["error"]["data"]["allowed"] == f"at most {CHANNELS_MAX} channels a session"
    # A snapshot of what it listens to already it may ask for again.
    await one.receive(subscribe_text(books[0]))
    assert "result" in heard.pop()
    await one.receive(call_text("market.unsubscribe", {"channels": [books[0]]}))
    await one.receive(subscribe_text("trades"))
    assert "result" in heard.pop()


def leg(trade_id: int, hour: int, lots: int, **changes: Any) -> Traded:
    fields: dict[str, Any] = {
        "trade_id": trade_id, "class_code": "H100-SXM", "delivery_hour": hour, "price_ticks": 1000,
        "lots": lots, "taker": Side.BUY, "buyer": 1, "seller": 1, "site": 1, "notional_micros": 0,
    }  # fmt: skip
    return Traded(**{**fields, **changes})


def trade(desk: Desk, trade_id: int, bid_order_id: int, ask_order_id: int) -> None:
    """Match one lot of each order."""
    desk.take(Tick(), leg(trade_id, FIRST_HOUR, 1, bid_order_id=bid_order_id, ask_order_id=ask_order_id))


async def test_without_a_listener_no_trade_is_encoded(desk: Desk) -> None:
    one, heard = desk.session()
    for order_id in range(1, 5):
        desk.bid(order_id, FIRST_HOUR)
    await one.receive(subscribe_text("trades"))
    trade(desk, 1, 1, 2)
    await desk.publish()
    assert [message["params"]["channel"] for message in heard[1:]] == ["trades"]
    await one.receive(call_text("market.unsubscribe", {"channels": ["trades"]}))
    trade(desk, 2, 3, 4)
    assert desk.gateway._outbox == {}


async def test_an_order_is_open_until_it_is_filled_or_ended_and_fills_are_told_from_a_trade_on(
    desk: Desk,
) -> None:
    one, heard = desk.session()
    one.account, one.scopes = 1, (Scope.READ,)
    for order_id, lots in ((1, 2), (2, 1), (3, 9), (4, 1), (5, 1)):
        desk.bid(order_id, FIRST_HOUR, lots)
    for trade_id, order_id in ((10, 1), (11, 2), (12, 4)):
        trade(desk, trade_id, order_id, 3)
    desk.take(Tick(), OrderEnded(5, 1, 1, 0, EndReason.REQUESTED))
    await one.receive(call_text("order.open"))
    assert [(found["order_id"], found["leaves_gpus"]) for found in heard[-1]["result"]] == [
        (1, "1"),
        (3, "6"),
    ]
    for since, limit, found in (
        (0, 2, [10, 10]),
        (10, 1000, [11, 11, 12, 12]),
        (9, 2, [10, 10]),
        (12, 1, []),
    ):
        await one.receive(call_text("account.fills", {"since": since, "limit": limit}))
        assert [fill["trade_id"] for fill in heard[-1]["result"]] == found


class Listening:
    """A way to the core that keeps what is submitted, and takes nothing."""

    def __init__(self) -> None:
        self.commands: list[AnyCommand] = []

    async def submit(self, command: AnyCommand) -> Decoded:
        self.commands.append(command)
        raise BusyError


@pytest.fixture
def reader(desk: Desk) -> "Reader":
    return Reader(desk, 1)


class Reader:
    """A session of an account at the desk, with every scope."""

    def __init__(self, desk: Desk, account: int) -> None:
        self.session, self.heard = desk.session()
        self.session.account, self.session.scopes = account, (Scope.READ, Scope.TRADE)

    async def call(self, method: str, params: Any = None) -> Any:
        await self.session.receive(call_text(method, params))
        return self.heard.pop()

    async def status(self, order_id: int) -> dict[str, Any]:
        answer = await self.call("order.status", {"order_id": order_id})
        found: dict[str, Any] = answer["result"]
        return found


async def test_every_term_of_an_order_reaches_the_core(desk: Desk, reader: Reader) -> None:
    core = Listening()
    desk.exchange.link = cast(CoreLink, core)
    terms = {
        "client_order_id": "all", "valid_until": 5, "side": "sell", "class": "T4",
        "delivery_start": FIRST_HOUR * HOUR_NS, "hours": 3, "gpus": "1.5", "price": "0.02",
        "order_type": "market", "time_in_force": "gtd", "expire_time": 6, "min_gpus": "0.125",
        "display_gpus": "0.25", "post_only": True, "self_trade": "cancel_both", "exclusive_group": "g",
        "requirement": REQUIREMENT, "site": 7, "position": 8, "carbon": "E", "min_hours": 2,
    }  # fmt: skip
    assert code_of(await reader.call("order.enter", terms)) == DoorError.BUSY
    assert core.commands == [
        EnterOrder(
            account=1, client_order_id="all", valid_until_ns=5, side=Side.SELL, class_code="T4",
            delivery_hour=FIRST_HOUR, hours=3, lots=12, price_ticks=2, order_type=OrderType.MARKET,
            time_in_force=TimeInForce.GTD, expire_ns=6, min_lots=1, display_lots=2, post_only=True,
            self_trade=SelfTrade.CANCEL_BOTH, exclusive_group="g", requirement=Requirement(**REQUIREMENT),
            site=7, position=8, carbon="E", min_hours=2,
        )
    ]  # fmt: skip
    fields = {one.encode_name for one in msgspec.structs.fields(OrderEnter)}
    assert fields == set(terms), "a term that is not tried here"
    for sent, least in ((terms, EnterOrder), (OFFER, EnterStandingOffer)):
        core.commands.clear()
        required = {k: v for k, v in sent.items() if k not in OPTIONAL}
        await reader.call("order.enter" if least is EnterOrder else "offer.enter", required)
        (command,) = core.commands
        for one in msgspec.structs.fields(least):
            # What is not sent is the command's own default.
            if not one.required:
                assert getattr(command, one.name) == one.default, one.name


OPTIONAL = {
    "hours", "price", "order_type", "time_in_force", "expire_time", "min_gpus", "display_gpus", "post_only",
    "self_trade", "exclusive_group", "requirement", "site", "position", "carbon", "min_hours",
}  # fmt: skip
OFFER = {
    "name": "daily", "valid_until": 5, "side": "sell", "class": "H100-SXM", "from": FIRST_HOUR * HOUR_NS,
    "until": (FIRST_HOUR + 48) * HOUR_NS, "hours": 4, "gpus": "3", "price_curve": ["10.01"] * 23 + ["0"],
    "requirement": REQUIREMENT, "site": 7, "carbon": "D", "min_hours": 2,
}  # fmt: skip


async def test_changes_cancels_and_standing_offers_reach_the_core(desk: Desk, reader: Reader) -> None:
    core = Listening()
    desk.exchange.link = cast(CoreLink, core)
    desk.bid(4, FIRST_HOUR)
    offer(desk, 9)
    other = {"valid_until": 6, "gpus": "2", "price": "11"}
    changed = {"offer_id": 9, "valid_until": 6, "gpus": "2", "price_curve": ["11"]}
    for method, params in (
        ("order.replace", {"order_id": 4, **other}),
        ("order.replace", {"client_order_id": "o4", **other}),
        ("order.mass_cancel", {}),
        ("order.mass_cancel", {"class": "T4", "delivery_start": 7 * HOUR_NS, "side": "buy"}),
        ("offer.enter", OFFER),
        ("offer.replace", changed),
        ("offer.cancel", {"offer_id": 9}),
    ):
        assert code_of(await reader.call(method, params)) == DoorError.BUSY, method
    replaced = ReplaceOrder(account=1, order_id=4, valid_until_ns=6, lots=2, price_ticks=1100)
    assert core.commands == [
        replaced,
        replaced,
        MassCancel(1),
        MassCancel(1, "T4", 7, Side.BUY),
        EnterStandingOffer(
            account=1, name="daily", valid_until_ns=5, side=Side.SELL, class_code="H100-SXM",
            from_hour=FIRST_HOUR, until_hour=FIRST_HOUR + 48, hours=4, lots=3,
            price_curve=(1001,) * 23 + (0,), requirement=Requirement(**REQUIREMENT), site=7, carbon="D",
            min_hours=2,
        ),
        ReplaceStandingOffer(account=1, offer_id=9, valid_until_ns=6, lots=2, price_curve=(1100,)),
        CancelStandingOffer(1, 9),
    ]  # fmt: skip


NOT_A_MEMBERS = (
    Tick(), open_era(), RetryBlock(1), ListStandingOffer(1), EndCall("H100-SXM", FIRST_HOUR),
    ProposeClearing("H100-SXM", FIRST_HOUR, (), ()),
    PostSettlement(run=1, trade_id=1, verdict="v", delivered_gpu_ms=0, payment_micros=0, refund_micros=0,
                   penalty_micros=0, bond_release_micros=0),
)  # fmt: skip


@pytest.mark.parametrize("command", NOT_A_MEMBERS, ids=lambda one: type(one).__name__)
async def test_what_only_the_exchange_itself_submits_comes_through_no_door(
    desk: Desk, reader: Reader, command: AnyCommand
) -> None:
    core = Listening()
    desk.exchange.link = cast(CoreLink, core)
    params = {"command": msgspec.to_builtins(command)}
    assert code_of(await reader.call("operator.submit", params)) == DoorError.INVALID_PARAMS
    assert core.commands == []


@pytest.mark.parametrize(
    ("method", "params", "code", "field", "value"),
    [
        ("order.replace", {"order_id": 4, "gpus": "0.5"}, INVALID, "gpus", "0.5"),
        ("order.replace", {"order_id": 4, "price": "10.005"}, INVALID, "price", "10.005"),
        ("order.replace", {"order_id": 4, "client_order_id": "o4"}, INVALID, "client_order_id", "o4"),
        ("order.replace", {"order_id": 5}, RejectReason.UNKNOWN_ORDER, "order_id", 5),
        ("order.replace", {"client_order_id": "x"}, RejectReason.UNKNOWN_ORDER, "client_order_id", "x"),
        ("order.mass_cancel", {"delivery_start": 1}, INVALID, "delivery_start", 1),
        ("order.mass_cancel", {"side": "both"}, INVALID, "side", "both"),
        ("offer.enter", {"from": 1}, INVALID, "from", 1),
        ("offer.enter", {"until": 1}, INVALID, "until", 1),
        ("offer.enter", {"gpus": "0.5"}, INVALID, "gpus", "0.5"),
        ("offer.enter", {"price_curve": ["1", "0.001"]}, INVALID, "price_curve", "0.001"),
        ("offer.enter", {"class": "H200"}, RejectReason.UNKNOWN_CLASS, "class", "H200"),
        ("offer.replace", {"offer_id": 9, "gpus": "0.5"}, INVALID, "gpus", "0.5"),
        ("offer.replace", {"offer_id": 9, "price_curve": ["0.001"]}, INVALID, "price_curve", "0.001"),
        ("offer.replace", {"offer_id": 8}, RejectReason.UNKNOWN_OFFER, "offer_id", 8),
        ("offer.cancel", {"offer_id": 8}, RejectReason.UNKNOWN_OFFER, "offer_id", 8),
    ],
)  # fmt: skip
async def test_a_change_that_cannot_be_meant_is_refused_at_the_door(
    desk: Desk, reader: Reader, method: str, params: dict[str, Any], code: int, field: str, value: Any
) -> None:
    core = Listening()
    desk.exchange.link = cast(CoreLink, core)
    desk.bid(4, FIRST_HOUR)
    offer(desk, 9)
    # Another account's are as unknown as none.
    desk.take(bid_command(5, FIRST_HOUR, account=2), OrderAccepted(5, 0))
    offer(desk, 8, account=2)
    usual: dict[str, Any] = {
        "order.replace": {"valid_until": 6, "gpus": "2", "price": "11"},
        "offer.enter": OFFER,
        "offer.replace": {"valid_until": 6, "gpus": "2", "price_curve": ["11"]},
    }
    answer = await reader.call(method, {**usual.get(method, {}), **params})
    assert code_of(answer) == code, answer
    data = answer["error"]["data"]
    assert (data["field"], data["value"]) == (field, value)
    assert data["allowed"]
    assert core.commands == []


def replaced(desk: Desk, order_id: int, lots: int, price_ticks: int, leaves_lots: int) -> None:
    command = ReplaceOrder(account=1, order_id=order_id, valid_until_ns=0, lots=lots, price_ticks=price_ticks)
    desk.take(command, OrderReplaced(order_id, 1, lots, price_ticks, leaves_lots, 0))


async def test_an_order_shows_its_terms_as_they_are_now(desk: Desk, reader: Reader) -> None:
    for order_id in (1, 2):
        desk.bid(order_id, FIRST_HOUR, 5)
    trade(desk, 1, 1, 2)
    replaced(desk, 1, 8, 1100, 7)
    found = await reader.status(1)
    assert (found["gpus"], found["price"], found["filled_gpus"], found["leaves_gpus"]) == (
        "8",
        "11",
        "1",
        "7",
    )
    desk.take(Tick(), OrderReduced(1, 1, 3, 4, 0, EndReason.GROUP))
    found = await reader.status(1)
    assert (found["gpus"], found["leaves_gpus"], found["status"]) == ("5", "4", "open")
    desk.take(Tick(), OrderEnded(1, 1, 4, 0, EndReason.REPLACED))
    found = await reader.status(1)
    assert (found["status"], found["end_reason"], found["leaves_gpus"]) == ("canceled", "replaced", "0")


async def test_an_order_is_told_when_it_was_changed_and_not_when_filled_in_part(
    desk: Desk, reader: Reader
) -> None:
    await reader.call("market.subscribe", {"channels": ["orders"]})
    desk.bid(1, FIRST_HOUR, 5)
    desk.take(bid_command(2, FIRST_HOUR, account=2, lots=9), OrderAccepted(2, 0))
    trade(desk, 1, 1, 2)
    replaced(desk, 1, 4, 1000, 3)
    desk.take(Tick(), OrderReduced(1, 1, 1, 2, 0, EndReason.CAPACITY))
    desk.take(Tick(), OrderEnded(1, 1, 2, 0, EndReason.REQUESTED))
    await desk.publish()
    told = [message["params"]["data"] for message in reader.heard]
    assert [(one["status"], one["gpus"], one["leaves_gpus"]) for one in told] == [
        ("open", "5", "5"),
        ("open", "4", "3"),
        ("open", "3", "2"),
        ("canceled", "3", "0"),
    ]


async def test_an_iceberg_tells_its_owner_what_it_shows_and_a_market_order_has_no_price(
    desk: Desk, reader: Reader
) -> None:
    desk.take(bid_command(1, FIRST_HOUR, lots=5, display_lots=2), OrderAccepted(1, 0))
    assert (await reader.status(1))["shown_gpus"] == "2"
    desk.bid(2, FIRST_HOUR, 9)
    trade(desk, 1, 1, 2)
    assert (await reader.status(1))["shown_gpus"] == "1"
    assert "shown_gpus" not in await reader.status(2)
    terms = {"order_type": OrderType.MARKET, "price_ticks": 0, "time_in_force": TimeInForce.IOC}
    desk.take(bid_command(3, FIRST_HOUR, **terms), OrderAccepted(3, 0))
    assert "price" not in await reader.status(3)


async def test_a_run_tells_hour_by_hour_what_is_open(desk: Desk, reader: Reader) -> None:
    site = CertifySite(1, 1, "east", "H100-SXM", 9, "D", "S2", 0, FIRST_HOUR + 99)
    desk.take(site, SiteCertified(1))
    run = {"side": Side.SELL, "requirement": None, "site": 1, "carbon": "E", "hours": 3, "min_hours": 1}
    desk.take(bid_command(1, FIRST_HOUR, lots=4, **run), OrderAccepted(1, 0))
    desk.take(bid_command(2, FIRST_HOUR, account=2, lots=3, hours=2), OrderAccepted(2, 0))
    legs = tuple(leg(n, FIRST_HOUR + n, 3, bid_order_id=2, ask_order_id=1, block=2) for n in range(2))
    desk.take(Tick(), BlockTraded(2, 1, legs))

    async def told() -> tuple[Any, ...]:
        found = await reader.status(1)
        return found["gpus"], found["filled_gpus"], found["leaves_gpus"], found["run_gpus"]

    assert await told() == ("4", "6", "6", ["1", "1", "4"])
    desk.take(Tick(), OrderReduced(1, 1, 1, 5, 0, EndReason.CAPACITY, (0, 1, 4)))
    assert await told() == ("4", "6", "5", ["0", "1", "4"])
    replaced(desk, 1, 2, 1000, 2)
    assert await told() == ("2", "6", "2", ["0", "0", "2"])
    # An hour that is closed does not open again.
    desk.time_ns = FIRST_HOUR * HOUR_NS
    replaced(desk, 1, 5, 1000, 8)
    assert await told() == ("5", "6", "8", ["0", "3", "5"])
    desk.take(Tick(), OrderEnded(1, 1, 8, 0, EndReason.REQUESTED))
    assert await told() == ("5", "6", "0", ["0", "0", "0"])


async def test_a_standing_offer_tells_what_it_listed_what_it_could_not_and_when_it_ends(
    desk: Desk, reader: Reader
) -> None:
    async def told() -> dict[str, Any]:
        (found,) = (await reader.call("offer.open"))["result"]
        assert isinstance(found, dict)
        return found

    offer(desk, 9)
    first = await told()
    assert first == {
        "offer_id": 9, "name": "n9", "status": "listing", "side": "buy", "class": "H100-SXM",
        "from": FIRST_HOUR * HOUR_NS, "until": (FIRST_HOUR + 3) * HOUR_NS, "gpus": "2",
        "price_curve": ["10", "0"],
    }  # fmt: skip
    desk.bid(4, FIRST_HOUR)
    listed = bid_command(5, FIRST_HOUR, client_order_id="n9", valid_until_ns=0, lots=2)
    skip = ListingSkipped(9, FIRST_HOUR + 1, RejectReason.INSUFFICIENT_FUNDS, "account", "more cash")
    desk.take(
        ListStandingOffer(9), StandingOfferListed(9, FIRST_HOUR + 2), OrderListed(5, 9, 0, listed), skip
    )
    assert await told() == {
        **first, "listed_until": (FIRST_HOUR + 2) * HOUR_NS, "open_orders": 1,
        "skipped": [{"delivery_start": (FIRST_HOUR + 1) * HOUR_NS, "reason": 501, "field": "account",
                     "allowed": "more cash"}],
    }  # fmt: skip
    # What it lists has no client id, not even the offer's name.
    order = await reader.status(5)
    assert (order["client_order_id"], order["offer_id"], order["gpus"]) == ("", 9, "2")
    assert code_of(await reader.call("order.status", {"client_order_id": "n9"})) == DoorError.NOT_FOUND
    change = ReplaceStandingOffer(account=1, offer_id=9, valid_until_ns=0, lots=3, price_curve=(900,))
    ended = OrderEnded(5, 1, 2, 0, EndReason.WITHDRAWN)
    desk.take(change, StandingOfferReplaced(9, 1), ended)
    assert await told() == {**first, "gpus": "3", "price_curve": ["9"]}
    again = msgspec.structs.replace(listed, lots=3, price_ticks=900)
    desk.take(
        ListStandingOffer(9), StandingOfferListed(9, FIRST_HOUR + 3), OrderListed(6, 9, 0, again),
        StandingOfferEnded(9, 1, EndReason.EXPIRED),
    )  # fmt: skip
    found = await told()
    assert (found["status"], found["end_reason"], found["open_orders"]) == ("ended", "expired", 1)
    desk.take(Tick(), OrderEnded(6, 1, 3, 0, EndReason.GATE))
    assert (await reader.call("offer.open"))["result"] == []
    assert (await Reader(desk, 2).call("offer.open"))["result"] == []


async def test_hours_that_an_offer_skipped_are_told_until_they_are_past(desk: Desk, reader: Reader) -> None:
    offer(desk, 9)
    for hour in (FIRST_HOUR, FIRST_HOUR + 1):
        skip = ListingSkipped(9, hour, RejectReason.INSUFFICIENT_FUNDS)
        desk.take(ListStandingOffer(9), StandingOfferListed(9, hour + 1), skip)
    desk.time_ns = (FIRST_HOUR + 1) * HOUR_NS
    desk.take(ListStandingOffer(9), StandingOfferListed(9, FIRST_HOUR + 3))
    (found,) = (await reader.call("offer.open"))["result"]
    assert [one["delivery_start"] for one in found["skipped"]] == [(FIRST_HOUR + 1) * HOUR_NS]


async def test_phases_are_told_to_all_and_stand_in_snapshots_and_orders(desk: Desk, reader: Reader) -> None:
    desk.bid(1, FIRST_HOUR)
    desk.take(bid_command(2, FIRST_HOUR - 1, hours=3), OrderAccepted(2, 0))
    name = contract(FIRST_HOUR)
    await reader.call("market.subscribe", {"channels": ["status"]})

    async def phases() -> tuple[str, ...]:
        snapshot = await reader.call("market.snapshot", {"contract": name})
        orders = [(await reader.status(order_id))["phase"] for order_id in (1, 2)]
        return (snapshot["result"]["phase"], *orders)

    assert await phases() == ("continuous", "continuous", "continuous")
    for phase in (Phase.HALTED, Phase.CALL, Phase.CLEARING):
        desk.take(Tick(), PhaseChanged("H100-SXM", FIRST_HOUR, phase))
        # A block waits for all its hours.
        assert await phases() == (phase, phase, phase)
    desk.take(Tick(), PhaseChanged("H100-SXM", FIRST_HOUR, Phase.CONTINUOUS))
    desk.time_ns = FIRST_HOUR * HOUR_NS
    desk.take(Tick(), ContractClosed("H100-SXM", FIRST_HOUR))
    assert await phases() == ("closed", "closed", "continuous")
    assert desk.gateway.state._phases == {}, "what is closed is forgotten"
    await desk.publish()
    told = [message["params"]["data"] for message in reader.heard]
    assert [one["phase"] for one in told] == ["halted", "call", "clearing", "continuous", "closed"]
    assert {one["contract"] for one in told} == {name}


async def test_a_contract_that_opens_with_a_call_has_a_phase_before_anything_is_told_of_it() -> None:
    desk = Desk()
    calls = CallRules(opening=True, pre_open_seconds=60, max_seconds=90)
    venue = msgspec.structs.replace(SMALL_VENUE, horizon_hours=5, calls=calls)
    desk.take(open_era(venue=venue), EraOpened())
    now = START_NS // HOUR_NS
    for hour, after_seconds, phase in (
        (now + 5, 0, "continuous"),  # it was listed when the first era began
        (now + 6, 3600, "pre_open"),
        (now + 6, 3659, "pre_open"),
        (now + 6, 3660, "call"),
        (now + 6, 3749, "call"),
        (now + 6, 3750, "continuous"),
    ):
        desk.time_ns = START_NS + after_seconds * 10**9
        desk.take(Tick())
        assert desk.gateway.state.phase("H100-SXM", hour) == phase, (hour, after_seconds)


async def test_a_clearing_is_told_to_all_and_its_trades_have_no_taker(desk: Desk, reader: Reader) -> None:
    for order_id in (1, 2):
        desk.bid(order_id, FIRST_HOUR)
    await reader.call("market.subscribe", {"channels": ["auction", "trades"]})
    cleared = CallCleared("H100-SXM", FIRST_HOUR, 1, (CellPrice("east", "D", "S2", 900, 1101, 1000),))
    desk.take(Tick(), cleared, leg(1, FIRST_HOUR, 1, bid_order_id=1, ask_order_id=2, taker=None))
    await desk.publish()
    auction, trade = [message["params"] for message in reader.heard]
    assert auction == {
        "channel": "auction",
        "data": {
            "contract": contract(FIRST_HOUR), "indicative": False, "gpus": "1", "time": START_NS,
            "prices": [{"cell": {"zone": "east", "carbon": "D", "security": "S2"}, "price": "10",
                        "lowest": "9", "highest": "11.01"}],
        },
    }  # fmt: skip
    assert (trade["channel"], trade["data"]["taker"]) == ("trades", None)


async def test_a_derating_is_told_to_the_site_s_provider_until_it_is_past(desk: Desk, reader: Reader) -> None:
    desk.take(CertifySite(1, 1, "east", "T4", 80, "D", "S2", 0, FIRST_HOUR + 99), SiteCertified(1))
    desk.take(DerateSite(1, FIRST_HOUR, FIRST_HOUR + 2, 4), SiteDerated(1))
    desk.take(DerateSite(1, FIRST_HOUR, FIRST_HOUR + 9, 0), SiteDerated(1))

    async def told() -> list[tuple[int, int, str]]:
        (site,) = (await reader.call("account.sites"))["result"]
        return [
            (one["from"] // HOUR_NS - FIRST_HOUR, one["until"] // HOUR_NS - FIRST_HOUR, one["gpus"])
            for one in site["deratings"]
        ]

    assert await told() == [(0, 2, "0.5"), (0, 9, "0")]
    desk.time_ns = (FIRST_HOUR + 2) * HOUR_NS
    desk.take(DerateSite(1, FIRST_HOUR + 2, FIRST_HOUR + 3, 8), SiteDerated(1))
    assert await told() == [(0, 9, "0"), (2, 3, "1")]
    assert (await Reader(desk, 2).call("account.sites"))["result"] == []


async def test_the_trade_that_a_sale_resold_is_told_to_its_seller_alone(desk: Desk, reader: Reader) -> None:
    desk.bid(1, FIRST_HOUR)
    site = CertifySite(1, 1, "east", "H100-SXM", 9, "D", "S2", 0, FIRST_HOUR + 99)
    desk.take(site, SiteCertified(1))
    sale = {"side": Side.SELL, "requirement": None, "site": 1, "carbon": "E", "position": 77}
    desk.take(bid_command(2, FIRST_HOUR, **sale), OrderAccepted(2, 0))
    desk.take(Tick(), leg(78, FIRST_HOUR, 1, bid_order_id=1, ask_order_id=2, position=77))
    fills = (await reader.call("account.fills"))["result"]
    assert {fill["side"]: fill.get("position", 0) for fill in fills} == {"buy": 0, "sell": 77}


async def test_before_the_first_record_every_method_that_needs_the_venue_is_busy() -> None:
    one, heard = Desk().session()
    for name in METHODS:
        await one.receive(call_text(name))
        error = heard[-1].get("error", {"code": 0, "message": ""})
        starting = error["code"] == DoorError.BUSY and "is starting" in error["message"]
        assert starting == (name not in {"session.challenge", "session.time", "venue.status"}), name


# -- the core and the gateway die --------------------------------------------------------------------------


async def test_health_and_calls_while_the_core_is_away_and_after(exchange: Running) -> None:
    who, hour = await exchange.register(), exchange.new_hour()
    assert exchange.health()[0] == 200
    async with session(exchange, who) as caller, exchange.client(who) as client:
        for n in range(20):
            await client.enter(order(bid(f"k{n}", hour)))
        exchange.core.send_signal(signal.SIGSTOP)
        for n in range(20, 40):
            await caller.say(
                {"jsonrpc": "2.0", "id": f"k{n}", "method": "order.enter", "params": bid(f"k{n}", hour)}
            )
        under_way = asyncio.create_task(client.enter(order(bid("k40", hour))))
        await asyncio.sleep(0.2)
        exchange.core.kill()
        exchange.core.wait()
        for _ in range(20):
            assert code_of(await caller.hear()) == DoorError.OUTCOME_UNKNOWN
        assert exchange.health()[0] == 503
        assert exchange.health()[1]["ready"] is False
        for method in ("order.enter", "session.time"):
            params = bid("k41", hour) if method == "order.enter" else {}
            assert code_of(await caller.call(method, params)) == DoorError.BUSY
        # What is known can be read all the while.
        assert len((await caller.call("order.open"))["result"]) == 20

        exchange.start_core()
        assert (await asyncio.wait_for(under_way, 10)).status == "open"
        repeated = [await client.enter(order(bid(f"k{n}", hour))) for n in range(40)]
        names = [one.client_order_id for one in await client.call("order.open", None, list[OrderResult])]
        assert sorted(names) == sorted(f"k{n}" for n in range(41))
        assert len({one.order_id for one in repeated}) == 40
        await until(lambda: exchange.health()[0] == 200)


def test_a_command_to_a_core_that_is_going_is_lost_and_no_fault_of_ours(exchange: Running) -> None:
    async def submit() -> None:
        link = await CoreLink.connect(exchange.folder.core_socket)
        link._writer.transport.abort()
        await asyncio.sleep(0)
        with pytest.raises(CoreLostError):
            await link.submit(Tick())

    # The gateway's loop: to write to a transport that is gone is an error there, and nothing elsewhere.
    uvloop.run(submit())


async def test_a_gateway_started_while_the_core_is_away_is_busy_until_it_is_back(exchange: Running) -> None:
    for process in (exchange.gateway, exchange.core):
        process.kill()
        process.wait()
    exchange.launch_gateway()
    await until(exchange.folder.admin_socket.exists)
    async with session(exchange) as caller:
        for method, params in (
            ("reference.venue", {}),
            ("market.snapshot", {"contract": contract(FIRST_HOUR)}),
        ):
            assert code_of(await caller.call(method, params)) == DoorError.BUSY
        exchange.start_core()
        await until(exchange.is_ready)
        assert "result" in await caller.call("reference.venue")


async def test_a_gateway_that_stops_says_goodbye_and_waits_for_nobody(exchange: Running) -> None:
    deaf = await deaf_session(exchange.port)
    async with session(exchange) as caller:
        began = time.monotonic()
        exchange.gateway.terminate()
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await caller.hear()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
        assert await asyncio.to_thread(exchange.gateway.wait, 20) == 0
        assert time.monotonic() - began < 10
    deaf.close()
    exchange.launch_gateway()
    await until(exchange.is_ready)


async def test_the_client_s_orders_survive_a_killed_gateway(exchange: Running) -> None:
    who, hour = await exchange.register(), exchange.new_hour()
    async with exchange.client(who) as client:
        orders = [order(bid(f"g{n}", hour)) for n in range(100)]
        first = [await client.enter(one) for one in orders[:20]]
        entering = [asyncio.create_task(client.enter(one)) for one in orders]
        await asyncio.sleep(0.02)
        exchange.gateway.kill()
        exchange.gateway.wait()
        exchange.launch_gateway()
        results = await asyncio.wait_for(asyncio.gather(*entering), 30)
        assert results[:20] == first
        found = await client.ask("order.open", None, list[OrderResult])
        assert sorted(one.order_id for one in found) == sorted(one.order_id for one in results)
        assert len(found) == 100
