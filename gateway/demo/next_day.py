"""A market to look at after the main job: the last hour's asks and hourly bids again, some days later."""

import asyncio
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import msgspec

from exchange.contract import HOUR_NS, symbol
from gateway.client import Client, RefusedError
from gateway.simulation.scenario import Act, read_acts, read_scenario
from schemas.commands import Side
from schemas.wire import OrderEnter

DAYS = 2
ORDERS_MAX = 400


async def open_next_day(scenario_folder: Path, url: str) -> str:
    """Enter the orders of the last delivery hour for the hour 48 later; return its busiest contract."""
    scenario = read_scenario(scenario_folder)
    last_ns = scenario.last_delivery_hour * HOUR_NS
    acts = [act for client in scenario.clients for act in read_acts(scenario_folder, client)]
    again = list(islice(_of_hour(acts, last_ns), ORDERS_MAX))
    keys = {one.account: one.private_key() for one in scenario.participants}
    by_account: dict[int, list[Act]] = {}
    for act in again:
        by_account.setdefault(act.account, []).append(act)
    await asyncio.gather(
        *(_enter(Client(url, keys[account]), some, last_ns) for account, some in by_account.items())
    )
    entered = [(act.params["class"], act.params["side"]) for act in again]
    # The class with the most orders on its thinner side: a book with two sides to look at.
    two_sided = {code: min(entered.count((code, side)) for side in Side) for code, _ in entered}
    busiest = max(sorted(two_sided), key=two_sided.__getitem__)
    return symbol(busiest, scenario.last_delivery_hour + 24 * DAYS)


def _of_hour(acts: Iterable[Act], start_ns: int) -> Iterable[Act]:
    for act in acts:
        if (
            act.method == "order.enter"
            and act.params["delivery_start"] == start_ns
            and act.params.get("hours", 1) == 1
        ):
            yield act


async def _enter(client: Client, acts: list[Act], last_ns: int) -> None:
    async with client:
        now = (await client.time()).time
        for act in acts:
            order = {
                **act.params,
                "client_order_id": f"{act.params['client_order_id']}+{DAYS}d",
                "delivery_start": last_ns + 24 * DAYS * HOUR_NS,
                "valid_until": now + HOUR_NS // 12,
                "time_in_force": "gtc",
            }
            order.pop("expire_time", None)
            try:
                await client.enter(msgspec.convert(order, OrderEnter))
            except RefusedError:
                # An ask of a site that is full by now: the others make the book.
                continue
