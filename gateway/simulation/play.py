"""A client program: plays one client's order file against a running exchange, as its accounts."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from gateway.client import Client, LostError, RefusedError
from gateway.simulation.scenario import Act, Participant, read_acts, read_scenario
from schemas.reasons import DoorError, RejectReason
from schemas.wire import OrderEnter

SYNC_SECONDS = 0.5
WAIT_MAX_SECONDS = 0.05
VALID_PERMILLE = 900
"""Orders are valid for this share of the longest time that the venue allows."""


class PlayReport(Struct, frozen=True, kw_only=True):
    """What a client did: acts, refusals by name, and an order's microseconds from sending to the answer.

    `lost` counts acts that got no answer because the exchange stayed away.
    """

    client: str
    entered: int
    accepted: int
    cancels: int
    lost: int
    refused: dict[str, int]
    ack_us: list[int]


class _VenueClock:
    """Venue time between two looks at it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._time_ns = self._speed = 0
        self._since = 0

    async def look(self) -> None:
        """Ask the exchange; keep the old reading where it does not answer."""
        try:
            shown = await self._client.time()
        except (RefusedError, LostError):
            return
        self._since = time.monotonic_ns()
        self._time_ns, self._speed = shown.time, shown.speed

    def now_ns(self) -> int:
        """Return venue time as far as it is known."""
        return self._time_ns + (time.monotonic_ns() - self._since) * self._speed

    async def reach(self, time_ns: int) -> None:
        """Return when venue time is `time_ns` or later."""
        while (missing := time_ns - self.now_ns()) > 0:
            wait = missing / self._speed / 1e9 if self._speed else WAIT_MAX_SECONDS
            await asyncio.sleep(min(wait, WAIT_MAX_SECONDS))

    async def keep(self) -> None:
        """Look again and again."""
        while True:
            await self.look()
            await asyncio.sleep(SYNC_SECONDS)


class Player:
    """The accounts of one client, each with a session of its own."""

    def __init__(self, scenario_folder: Path, client: str, url: str) -> None:
        scenario = read_scenario(scenario_folder)
        self._client = client
        self._url = url
        self._acts = read_acts(scenario_folder, client)
        self._participants = [one for one in scenario.participants if one.client == client]
        self._sessions: dict[int, Client] = {}
        self._entered: dict[tuple[int, str], asyncio.Task[None]] = {}
        self._ack_us: list[int] = []
        self._refused: Counter[str] = Counter()
        self._valid_ns = 0
        self._accepted = self._sent = self._cancels = self._lost = 0

    async def play(self, on_ready: Callable[[], None], on_act: Callable[[int, int], None]) -> PlayReport:
        """Log in, say ready, send each act at its time, return when all are answered."""
        await asyncio.gather(*(self._open(one) for one in self._participants))
        first = next(iter(self._sessions.values()))
        venue = (await first.call("reference.venue", None, dict[str, Any]))["venue"]
        limits = venue.get("limits", {})
        self._valid_ns = limits.get("valid_until_max_seconds", 600) * VALID_PERMILLE * 1_000_000
        clock = _VenueClock(first)
        await clock.look()
        keeping = asyncio.create_task(clock.keep())
        on_ready()
        tasks: list[asyncio.Task[None]] = []
        for number, act in enumerate(self._acts, start=1):
            await clock.reach(act.at_ns)
            task = asyncio.create_task(self._do(act, clock))
            if act.method == "order.enter":
                self._entered[act.account, act.params["client_order_id"]] = task
            tasks.append(task)
            on_act(number, len(self._acts))
        await asyncio.gather(*tasks)
        keeping.cancel()
        await asyncio.gather(*(session.close() for session in self._sessions.values()))
        return PlayReport(
            client=self._client,
            entered=self._sent,
            accepted=self._accepted,
            cancels=self._cancels,
            lost=self._lost,
            refused=dict(sorted(self._refused.items())),
            ack_us=sorted(self._ack_us),
        )

    async def _open(self, one: Participant) -> None:
        session = Client(self._url, one.private_key())
        await session.connect()
        self._sessions[one.account] = session

    async def _do(self, act: Act, clock: _VenueClock) -> None:
        session = self._sessions[act.account]
        began = time.perf_counter_ns()
        try:
            if act.method == "order.enter":
                self._sent += 1
                order = msgspec.convert(
                    {**act.params, "valid_until": clock.now_ns() + self._valid_ns}, OrderEnter
                )
                await session.enter(order)
                self._accepted += 1
            else:
                self._cancels += 1
                client_order_id = act.params["client_order_id"]
                # A cancel never overtakes its order.
                if (entering := self._entered.get((act.account, client_order_id))) is not None:
                    await asyncio.wait([entering])
                await session.cancel(client_order_id)
        except RefusedError as refusal:
            self._refused[_name(refusal.code)] += 1
        except LostError:
            self._lost += 1
        if act.method == "order.enter":
            self._ack_us.append((time.perf_counter_ns() - began) // 1000)


def _name(code: int) -> str:
    for names in (RejectReason, DoorError):
        if code in list(names):
            return names(code).name.lower()
    return str(code)
