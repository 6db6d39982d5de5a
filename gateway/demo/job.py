"""The steps of the main job, in order."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console

from exchange.contract import HOUR_NS
from exchange.folder import DataFolder
from exchange.quantity import lots_of
from gateway.client import Client, LostError, RefusedError
from gateway.demo import summary
from gateway.demo.next_day import open_next_day
from gateway.demo.programs import DemoError, Program, Programs
from gateway.demo.proof import prove
from gateway.keys import read_key
from gateway.serve import hold, refuse_busy_port
from gateway.simulation.market import trading_window
from gateway.simulation.meter import Delivery
from gateway.simulation.play import PlayReport
from gateway.simulation.register import register
from gateway.simulation.report import DayReport
from gateway.simulation.scenario import Scenario, read_scenario
from gateway.venue_setup import init_venue
from schemas.catalogue import load_venue
from schemas.commands import Side
from schemas.reasons import DoorError
from settlement.audit.note import verifier_key
from settlement.database import connect
from settlement.postgres import connection_of

VENUE = "china"
DAY = date(2026, 11, 24)
ORIGIN = "cux.example/demo"
HOST = "127.0.0.1"
MARKER = "cux-demo"
SET_UP_NS = HOUR_NS // 2
"""Simulated time stands this long before the trading day while accounts and sites are registered."""
START_SECONDS = 60.0
POLL_SECONDS = 0.5
PAUSE_SECONDS = 0.1
ATTEMPTS = 100

T = TypeVar("T")


class Options(NamedTuple):
    """How the main job is run."""

    seed: int
    data: Path | None
    trace: Path | None
    folder: Path
    port: int
    clock_speed: int
    min_orders: int
    until_done: bool
    as_json: bool


class Demo:
    """Runs the steps; every program it starts is ended with it."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._began = time.monotonic()
        self._console = Console(stderr=options.as_json, highlight=False)
        self._programs = Programs(self._console.print)
        self._folder = options.folder.absolute()
        self._exchange = DataFolder(self._folder / "exchange")
        self._scenario = self._folder / "scenario"
        self._meters = self._folder / "meters"
        self._url = f"ws://{HOST}:{options.port}/ws"
        self._venue = load_venue(VENUE)

    def run(self) -> int:
        """Run the job and return the exit code: 0 if everything that must hold does."""
        # Ended by a signal, too, the job ends what it started.
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        try:
            found, server = asyncio.run(self._work())
            summary.show(self._console, found)
            failed = summary.failures(found)
            for rule in failed:
                self._console.print(f"[red]DOES NOT HOLD[/red] {rule}")
            if self._options.as_json:
                sys.stdout.write(json.dumps(found) + "\n")
                sys.stdout.flush()
            if not self._options.until_done:
                self._stay(server)
            return 1 if failed else 0
        finally:
            self._programs.end()

    # -- set up ----------------------------------------------------------------------------------------

    async def _work(self) -> tuple[dict[str, Any], Program]:
        server = await self._prepare()
        admin = Client(socket=self._exchange.admin_socket)
        try:
            return await self._day(admin, server), server
        finally:
            await admin.close()

    async def _prepare(self) -> Program:
        refuse_busy_port(HOST, self._options.port)
        self._empty_folder()
        options = self._options
        window = trading_window(self._venue, DAY)
        init_venue(self._exchange, self._venue, ORIGIN, options.clock_speed, window.start_ns - SET_UP_NS)
        server = self._programs.cux("serve", "serve", *self._at(), "--port", str(options.port))
        self._step("building the scenario")
        wanted = {
            "--seed": options.seed,
            "--venue": VENUE,
            "--day": DAY,
            "--min-orders": options.min_orders,
            # No data folder is named by a name that is none: the verb must not look for its own.
            "--data": options.data or os.devnull,
        }
        if options.trace is not None:
            wanted["--trace"] = options.trace
        flags = [str(part) for pair in wanted.items() for part in pair]
        building = self._programs.cux("scenario build", "scenario", "build", str(self._scenario), *flags)
        await self._programs.finish(building)
        return server

    def _empty_folder(self) -> None:
        marker = self._folder / MARKER
        if self._folder.exists() and any(self._folder.iterdir()) and not marker.exists():
            raise DemoError(f"{self._folder} holds other things; name an empty folder with --folder")
        if self._exchange.settings_file.exists():
            # An exchange that still runs there is not to be pulled from under its users.
            os.close(hold(self._exchange))
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True, mode=0o700)
        marker.touch()

    # -- the day ---------------------------------------------------------------------------------------

    async def _day(self, admin: Client, server: Program) -> dict[str, Any]:
        scenario = read_scenario(self._scenario)
        await self._until_up(admin, server)
        await self._register(admin, scenario)
        plays = await self._play(admin, scenario)
        await self._close_gates(admin, scenario)
        traded = await self._sequence(admin)
        report = self._folder / "report.json"
        scoring = self._programs.module(
            "report",
            "gateway.simulation.report",
            *map(str, (self._exchange.log, traded, self._scenario, report)),
        )
        await self._deliver(scenario)
        runs = [await self._settle("initial")]
        self._bring_late_files()
        runs.append(await self._settle("final"))
        records = await self._sequence(admin)
        self._step("exporting and verifying")
        checking = self._programs.cux("db check", "db", "check", *self._at(), "--json")
        vkey = str(verifier_key(ORIGIN, read_key(self._exchange.keys / "venue.key")))
        export = self._folder / "export"
        proof = await prove(self._programs, self._exchange.path, vkey, export, self._options.seed)
        ledger = await self._programs.result(checking)
        await self._programs.finish(scoring)
        return {
            "seed": self._options.seed,
            "input": msgspec.to_builtins(scenario.sources),
            **summary.of_play(plays),
            **summary.of_day(msgspec.json.decode(report.read_bytes(), type=DayReport)),
            **await self._reconciled(),
            "runs": runs,
            "ledger_sum": ledger["ledger_sum"],
            "ledger_differences": len(ledger["differences"]),
            **proof,
            "records": records,
            "state_hash": ledger["state_hash"],
            "seconds": round(time.monotonic() - self._began, 1),
        }

    async def _until_up(self, admin: Client, server: Program) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(LostError, RefusedError, FileNotFoundError):
                await admin.connect()
                await admin.call("venue.status")
                pids = json.loads((self._exchange.run / "pids.json").read_bytes())
                if "back" in pids:
                    self._console.print("  " + ", ".join(f"{name} {pid}" for name, pid in pids.items()))
                    return
            if server.poll() is not None or time.monotonic() > deadline:
                raise DemoError("the exchange did not start")
            await asyncio.sleep(0.1)

    async def _register(self, admin: Client, scenario: Scenario) -> None:
        self._step(f"registering {len(scenario.participants)} participants and {len(scenario.sites)} sites")
        await register(admin, scenario, read_key(self._exchange.keys / "operator-1.key"))

    async def _play(self, admin: Client, scenario: Scenario) -> list[PlayReport]:
        reports = {client: self._folder / f"{client}.json" for client in scenario.clients}
        programs = {
            client: self._programs.cux(
                client,
                *("play", str(self._scenario), "--client", client, "--url", self._url),
                *("--report", str(report)),
            )
            for client, report in reports.items()
        }
        await asyncio.gather(*(asyncio.to_thread(_until_ready, name, one) for name, one in programs.items()))
        await _set_clock(admin, scenario.day_start_ns, self._options.clock_speed)
        self._step("trading")
        while any(program.poll() is None for program in programs.values()):
            await asyncio.sleep(POLL_SECONDS)
            await self._progress(admin)
        for program in programs.values():
            await self._programs.finish(program)
        await _set_clock(admin, None, 0)
        return [msgspec.json.decode(report.read_bytes(), type=PlayReport) for report in reports.values()]

    async def _progress(self, admin: Client) -> None:
        status = await _patiently(lambda: admin.ask("venue.status", None, dict[str, Any]))
        events = status["events"]
        shown = datetime.fromtimestamp(status["time"] // 10**9, UTC)
        self._console.print(
            f"  venue time {shown:%m-%d %H:%M} UTC: {events.get('OrderAccepted', 0)} orders, "
            f"{events.get('Traded', 0)} trades, {events.get('BlockTraded', 0)} blocks, "
            f"{status['open_orders']} open"
        )

    async def _close_gates(self, admin: Client, scenario: Scenario) -> None:
        self._step("closing gates, delivering")
        now = (await _patiently(admin.time)).time
        # One hour at a time: each step does the due work of one gate.
        for hour in range(now // HOUR_NS + 1, scenario.last_delivery_hour + 3):
            await _set_clock(admin, hour * HOUR_NS, 0)

    async def _sequence(self, admin: Client) -> int:
        status = await _patiently(lambda: admin.ask("venue.status", None, dict[str, Any]))
        return int(status["sequence"])

    # -- delivery and money --------------------------------------------------------------------------------

    async def _deliver(self, scenario: Scenario) -> None:
        keys = [one.private_key() for one in scenario.participants if one.role == "provider"]
        sold = [one for deliveries in await asyncio.gather(*map(self._sold, keys)) for one in deliveries]
        self._step(f"metering {len(sold)} deliveries")
        schedule = self._folder / "deliveries.jsonl"
        lines = [msgspec.json.encode(one) + b"\n" for one in sorted(sold, key=lambda one: one.trade_id)]
        schedule.write_bytes(b"".join(lines))
        flags = {
            "--fills": schedule,
            "--out": self._meters,
            "--secret": self._folder / "secret.json",
            "--seed": self._options.seed,
            "--carbon": self._scenario / "carbon.csv",
        }
        arguments = [str(part) for pair in flags.items() for part in pair]
        await self._programs.finish(self._programs.module("meter", "gateway.simulation.meter", *arguments))

    async def _sold(self, key: Ed25519PrivateKey) -> list[Delivery]:
        """Return a provider's schedule, as its own session tells it."""
        tdp_w = {one.code: one.tdp_w for one in self._venue.classes}
        async with Client(self._url, key) as client:
            fills = await client.fills()
        return [
            Delivery(
                trade_id=fill.trade_id,
                site=fill.site,
                class_code=fill.class_code,
                delivery_hour=fill.delivery_start // HOUR_NS,
                gpu_eighths=lots_of(fill.gpus, 1),
                tdp_w=tdp_w[fill.class_code],
            )
            for fill in fills
            if fill.side is Side.SELL
        ]

    async def _settle(self, kind: str) -> dict[str, Any]:
        self._step(f"settling: {kind} run")
        ingest = self._programs.cux(
            "meter ingest", "meter", "ingest", str(self._meters), *self._at(), "--json"
        )
        ingested = await self._programs.result(ingest)
        run = self._programs.cux("settle run", "settle", "run", "--kind", kind, *self._at(), "--json")
        return {"ingested": ingested, **await self._programs.result(run)}

    def _bring_late_files(self) -> None:
        late = self._meters / "late"
        for path in sorted(late.rglob("*")):
            if path.is_file():
                target = self._meters / path.relative_to(late)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.rename(target)
        shutil.rmtree(late, ignore_errors=True)

    async def _reconciled(self) -> dict[str, Any]:
        conn = await connect(connection_of(self._exchange.postgres))
        try:
            rows = await conn.fetch(
                "SELECT DISTINCT ON (trade_id) trade_id, verdict FROM cux.reconciliations "
                "ORDER BY trade_id, run DESC"
            )
            moved = await conn.fetchrow(
                "SELECT coalesce(sum(payment_micros), 0)::bigint AS paid_micros, "
                "coalesce(sum(refund_micros), 0)::bigint AS refunded_micros, "
                "coalesce(sum(penalty_micros), 0)::bigint AS penalties_micros FROM cux.settlements"
            )
        finally:
            await conn.close()
        # Opened only now: settlement is done.
        secret = json.loads((self._folder / "secret.json").read_bytes())
        injected = {one["trade_id"] for one in secret["shortfalls"]}
        flagged = {row["trade_id"] for row in rows if row["verdict"] != "delivered"}
        return {
            "shortfalls_injected": len(injected),
            "shortfalls_found": len(flagged & injected),
            "false_alarms": len(flagged - injected),
            "decoys": len(secret["decoys"]),
            "reconciled": len(rows),
            **dict(moved),
        }

    # -- afterwards ------------------------------------------------------------------------------------

    def _stay(self, server: Program) -> None:
        contract = asyncio.run(open_next_day(self._scenario, self._url))
        self._console.print(
            f"\nThe exchange stays up at {self._url}, its clock stands; end it with Ctrl-C.\n"
            "Look at it from another terminal:\n"
            f"  cux book --url {self._url}\n"
            f"  cux book {contract} --url {self._url}\n"
            f"  cux status --folder {self._exchange.path}\n"
            f"  cux settle status --folder {self._exchange.path}\n"
            f"  cux settle explain 1 --folder {self._exchange.path}",
            soft_wrap=True,
        )
        with contextlib.suppress(KeyboardInterrupt):
            server.wait()

    def _step(self, text: str) -> None:
        self._console.print(f"[{time.monotonic() - self._began:6.1f} s] {text}", markup=False)

    def _at(self) -> list[str]:
        return ["--folder", str(self._exchange.path)]


async def _patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Return the answer, also where the exchange is being restarted meanwhile."""
    for _ in range(ATTEMPTS):
        try:
            return await ask()
        except RefusedError as refusal:
            if refusal.code != DoorError.BUSY:
                raise
        await asyncio.sleep(PAUSE_SECONDS)
    raise DemoError("the exchange stayed away")


async def _set_clock(admin: Client, time_ns: int | None, speed: int) -> None:
    """Set the simulated clock, also where the core is restarted meanwhile."""
    for _ in range(ATTEMPTS):
        try:
            await _patiently(partial(admin.ask, "clock.set", {"time": time_ns, "speed": speed}))
        except RefusedError as refusal:
            if refusal.code != DoorError.CLOCK_REFUSED:
                raise
            if time_ns is not None and (await _patiently(admin.time)).time >= time_ns:
                time_ns = None
            await asyncio.sleep(PAUSE_SECONDS)
        else:
            return
    raise DemoError("the clock could not be set")


def _until_ready(name: str, program: Program) -> None:
    assert program.stdout is not None
    if program.stdout.readline().strip() != b"ready":
        raise DemoError(f"{name} did not start")
