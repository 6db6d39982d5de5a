"""The steps of the main job, in order."""

import asyncio
import contextlib
import json
import os
import shutil
import sys
import time
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console

from exchange.contract import HOUR_NS
from exchange.folder import DataFolder
from exchange.quantity import lots_of
from gateway.client import Client, LostError
from gateway.demo import summary
from gateway.demo.next_day import open_next_day
from gateway.demo.programs import DemoError, Program, Programs
from gateway.demo.proof import prove
from gateway.keys import read_key
from gateway.simulation.market import trading_window
from gateway.simulation.meter import Delivery
from gateway.simulation.play import PlayReport
from gateway.simulation.register import register
from gateway.simulation.report import DayReport
from gateway.simulation.scenario import Scenario, read_scenario
from gateway.venue_setup import init_venue
from schemas.catalogue import load_venue
from schemas.commands import Side
from settlement.audit.note import verifier_key
from settlement.database import connect
from settlement.postgres import connection_of

VENUE = "china"
DAY = date(2026, 11, 24)
ORIGIN = "cux.example/demo"
MARKER = "cux-demo"
SET_UP_NS = HOUR_NS // 2
"""Simulated time stands this long before the trading day while accounts and sites are registered."""
START_SECONDS = 60.0
POLL_SECONDS = 0.5


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
        self._url = f"ws://127.0.0.1:{options.port}/ws"
        self._venue = load_venue(VENUE)

    def run(self) -> int:
        """Run the job and return the exit code: 0 if everything that must hold does."""
        try:
            server = self._prepare()
            found = asyncio.run(self._day(server))
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

    def _prepare(self) -> Program:
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
        self._programs.finish(building)
        return server

    def _empty_folder(self) -> None:
        marker = self._folder / MARKER
        if self._folder.exists() and any(self._folder.iterdir()) and not marker.exists():
            raise DemoError(f"{self._folder} holds other things; name an empty folder with --folder")
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True, mode=0o700)
        marker.touch()

    # -- the day ---------------------------------------------------------------------------------------

    async def _day(self, server: Program) -> dict[str, Any]:
        scenario = read_scenario(self._scenario)
        admin = await self._admin(server)
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
        runs = [self._settle("initial")]
        self._bring_late_files()
        runs.append(self._settle("final"))
        records = await self._sequence(admin)
        await admin.close()
        self._step("exporting and verifying")
        checking = self._programs.cux("db check", "db", "check", *self._at(), "--json")
        vkey = str(verifier_key(ORIGIN, read_key(self._exchange.keys / "venue.key")))
        proof = prove(self._programs, self._exchange.path, vkey, self._folder / "export", self._options.seed)
        ledger = self._programs.result(checking)
        self._programs.finish(scoring)
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

    async def _admin(self, server: Program) -> Client:
        deadline = time.monotonic() + START_SECONDS
        client = Client(socket=self._exchange.admin_socket)
        while True:
            try:
                await client.connect()
                await client.call("venue.status")
                pids = json.loads((self._exchange.run / "pids.json").read_bytes())
                self._console.print("  " + ", ".join(f"{name} {pid}" for name, pid in pids.items()))
                return client
            except LostError:
                if server.poll() is not None or time.monotonic() > deadline:
                    await client.close()
                    raise DemoError("the exchange did not start") from None
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
        await admin.call("clock.set", {"time": scenario.day_start_ns, "speed": self._options.clock_speed})
        self._step("trading")
        while any(program.poll() is None for program in programs.values()):
            await asyncio.sleep(POLL_SECONDS)
            await self._progress(admin)
        for program in programs.values():
            self._programs.finish(program)
        await admin.call("clock.set", {"speed": 0})
        return [msgspec.json.decode(report.read_bytes(), type=PlayReport) for report in reports.values()]

    async def _progress(self, admin: Client) -> None:
        try:
            status = await admin.call("venue.status", None, dict[str, Any])
        except LostError:
            # The gateway was restarted: the job goes on with the new one.
            with contextlib.suppress(LostError):
                await admin.connect()
            return
        events = status["events"]
        shown = datetime.fromtimestamp(status["time"] // 10**9, UTC)
        self._console.print(
            f"  venue time {shown:%m-%d %H:%M} UTC: {events.get('OrderAccepted', 0)} orders, "
            f"{events.get('Traded', 0)} trades, {events.get('BlockTraded', 0)} blocks, "
            f"{status['open_orders']} open"
        )

    async def _close_gates(self, admin: Client, scenario: Scenario) -> None:
        self._step("closing gates, delivering")
        now = (await admin.time()).time
        # One hour at a time: each step does the due work of one gate.
        for hour in range(now // HOUR_NS + 1, scenario.last_delivery_hour + 3):
            await admin.call("clock.set", {"time": hour * HOUR_NS, "speed": 0})

    async def _sequence(self, admin: Client) -> int:
        status = await admin.call("venue.status", None, dict[str, Any])
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
        self._programs.finish(self._programs.module("meter", "gateway.simulation.meter", *arguments))

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

    def _settle(self, kind: str) -> dict[str, Any]:
        self._step(f"settling: {kind} run")
        ingest = self._programs.cux(
            "meter ingest", "meter", "ingest", str(self._meters), *self._at(), "--json"
        )
        ingested = self._programs.result(ingest)
        run = self._programs.cux("settle run", "settle", "run", "--kind", kind, *self._at(), "--json")
        return {"ingested": ingested, **self._programs.result(run)}

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


def _until_ready(name: str, program: Program) -> None:
    assert program.stdout is not None
    if program.stdout.readline().strip() != b"ready":
        raise DemoError(f"{name} did not start")
