"""The main job: one trading day, from orders over WebSocket to payment and proof, in processes of its own."""

import asyncio
import contextlib
import json
import os
import pwd
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table

from exchange.contract import HOUR_NS, symbol
from exchange.folder import DataFolder
from exchange.quantity import lots_of
from gateway.client import Client, LostError
from gateway.keys import read_key
from gateway.serve import ServeError
from gateway.simulation.market import trading_window
from gateway.simulation.meter import Delivery
from gateway.simulation.play import PlayReport
from gateway.simulation.report import DayReport
from gateway.simulation.scenario import Scenario, read_scenario
from gateway.venue_setup import init_venue
from schemas.authority import signed
from schemas.catalogue import load_venue
from schemas.commands import OperatorCommand, Side
from schemas.venue import Venue
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

# Gives up root after what it needs is loaded: the user it becomes may not reach the interpreter's files.
# A first call, on no folder, loads what is only imported when it is used.
_AS_OTHER_USER = """
import contextlib, io, os, sys
from settlement.audit.verify import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    main([os.devnull, *sys.argv[4:]])
os.setgroups([])
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[2]))
sys.exit(main(sys.argv[3:]))
"""


class DemoError(Exception):
    """A step of the main job failed; its process has said why."""


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
    """Runs the steps in order; every program it starts is ended with it."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._began = time.monotonic()
        self._console = Console(stderr=options.as_json, highlight=False)
        self._folder = options.folder.absolute()
        self._exchange = DataFolder(self._folder / "exchange")
        self._scenario_folder = self._folder / "scenario"
        self._meters = self._folder / "meters"
        self._url = f"ws://127.0.0.1:{options.port}/ws"
        self._running: list[subprocess.Popen[bytes]] = []

    def run(self) -> int:
        """Run the job and return the exit code: 0 if everything it checks holds."""
        try:
            server = self._prepare()
            summary = asyncio.run(self._day())
            self._show(summary)
            failed = _failures(summary)
            for failure in failed:
                self._console.print(f"[red]FAILED[/red] {failure}")
            if self._options.as_json:
                sys.stdout.write(json.dumps(summary) + "\n")
                sys.stdout.flush()
            if not self._options.until_done:
                self._stay(server, summary)
            return 1 if failed else 0
        finally:
            self._end()

    # -- set up ----------------------------------------------------------------------------------------

    def _prepare(self) -> subprocess.Popen[bytes]:
        self._empty_folder()
        venue = load_venue(VENUE)
        window = trading_window(venue, DAY)
        init_venue(self._exchange, venue, ORIGIN, self._options.clock_speed, window.start_ns - SET_UP_NS)
        server = self._start(
            "serve", "serve", "--folder", str(self._exchange.path), "--port", str(self._options.port)
        )
        arguments = ["scenario", "build", str(self._scenario_folder), "--seed", str(self._options.seed)]
        arguments += [
            "--venue",
            VENUE,
            "--day",
            DAY.isoformat(),
            "--min-orders",
            str(self._options.min_orders),
        ]
        if self._options.data is not None:
            arguments += ["--data", str(self._options.data)]
        if self._options.trace is not None:
            arguments += ["--trace", str(self._options.trace)]
        self._step("building the scenario")
        environment = {**os.environ} if self._options.data is not None else _without_data()
        self._wait("scenario", self._start("scenario", *arguments, environment=environment), quiet=True)
        return server

    def _empty_folder(self) -> None:
        marker = self._folder / MARKER
        if self._folder.exists() and any(self._folder.iterdir()) and not marker.exists():
            raise DemoError(f"{self._folder} holds other things; name an empty folder with --folder")
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True, mode=0o700)
        marker.touch()

    # -- the day ---------------------------------------------------------------------------------------

    async def _day(self) -> dict[str, Any]:
        scenario = read_scenario(self._scenario_folder)
        async with await self._admin() as admin:
            await self._register(admin, scenario)
            reports = await self._play(admin, scenario)
            await self._close_gates(admin, scenario)
            last = (await admin.call("venue.status", None, dict[str, Any]))["sequence"]
            report = self._folder / "report.json"
            scoring = self._program(
                "report", "gateway.simulation.report", str(self._exchange.log), str(last),
                str(self._scenario_folder), str(report),
            )  # fmt: skip
            await self._deliver(scenario)
            runs = [await self._settle("initial")]
            self._bring_late_files()
            runs.append(await self._settle("final"))
            status = await admin.call("venue.status", None, dict[str, Any])
        found = await self._reconciled()
        self._step("exporting and verifying")
        ledger = self._cux_json("db", "check", *self._at(), allow_failure=True)
        audit = self._audit()
        self._wait("report", scoring)
        day = msgspec.json.decode(report.read_bytes(), type=DayReport)
        return self._summary(scenario, reports, day, runs, found, ledger, audit, status)

    async def _admin(self) -> Client:
        deadline = time.monotonic() + START_SECONDS
        client = Client(socket=self._exchange.admin_socket)
        while True:
            try:
                await client.connect()
                await client.call("venue.status")
                return client
            except LostError:
                if self._running[0].poll() is not None or time.monotonic() > deadline:
                    raise ServeError("the exchange did not start") from None
                await asyncio.sleep(0.1)

    async def _register(self, admin: Client, scenario: Scenario) -> None:
        self._step(f"registering {len(scenario.participants)} participants and {len(scenario.sites)} sites")
        key = read_key(self._exchange.keys / "operator-1.key")
        for command in _in_order(scenario.setup_commands()):
            await asyncio.gather(
                *(admin.operate(signed(one, key, time.time_ns(), "simulation")) for one in command)
            )

    async def _play(self, admin: Client, scenario: Scenario) -> list[PlayReport]:
        programs = {}
        for client in scenario.clients:
            report = str(self._folder / f"{client}.json")
            programs[client] = self._start(
                client, "play", str(self._scenario_folder), "--client", client, "--url", self._url, "--report", report
            )  # fmt: skip
        await asyncio.gather(
            *(asyncio.to_thread(_until_ready, client, one) for client, one in programs.items())
        )
        await admin.call("clock.set", {"time": scenario.day_start_ns, "speed": self._options.clock_speed})
        self._step("trading")
        while any(program.poll() is None for program in programs.values()):
            await asyncio.sleep(POLL_SECONDS)
            with contextlib.suppress(LostError):
                await self._progress(admin)
        for client, program in programs.items():
            self._wait(client, program)
        await admin.call("clock.set", {"speed": 0})
        names = [self._folder / f"{client}.json" for client in scenario.clients]
        return [msgspec.json.decode(name.read_bytes(), type=PlayReport) for name in names]

    async def _progress(self, admin: Client) -> None:
        status = await admin.call("venue.status", None, dict[str, Any])
        events = status["events"]
        shown = datetime.fromtimestamp(status["time"] // 10**9, UTC)
        trades = events.get("Traded", 0)
        self._console.print(
            f"  venue time {shown:%m-%d %H:%M} UTC: {events.get('OrderAccepted', 0)} orders, {trades} trades, "
            f"{events.get('BlockTraded', 0)} blocks, {status['open_orders']} open"
        )

    async def _close_gates(self, admin: Client, scenario: Scenario) -> None:
        self._step("closing gates, delivering")
        now = (await admin.time()).time
        # One hour at a time: each step does the due work of one gate.
        for hour in range(now // HOUR_NS + 1, scenario.last_delivery_hour + 3):
            await admin.call("clock.set", {"time": hour * HOUR_NS, "speed": 0})

    async def _deliver(self, scenario: Scenario) -> None:
        venue = load_venue(VENUE)
        lists = await asyncio.gather(
            *(self._sold(one.private_key(), venue) for one in scenario.participants if one.role == "provider")
        )
        deliveries = sorted((one for sold in lists for one in sold), key=lambda one: one.trade_id)
        schedule = self._folder / "deliveries.jsonl"
        schedule.write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in deliveries))
        self._step(f"metering {len(deliveries)} deliveries")
        program = self._program(
            "meter", "gateway.simulation.meter", "--fills", str(schedule), "--out", str(self._meters),
            "--secret", str(self._folder / "secret.json"), "--seed", str(self._options.seed),
            "--carbon", str(self._scenario_folder / "carbon.csv"),
        )  # fmt: skip
        self._wait("meter", program)

    async def _sold(self, key: Any, venue: Venue) -> list[Delivery]:
        classes = {one.code: one for one in venue.classes}
        async with Client(self._url, key) as client:
            fills = await client.fills()
        return [
            Delivery(
                trade_id=fill.trade_id,
                site=fill.site,
                class_code=fill.class_code,
                delivery_hour=fill.delivery_start // HOUR_NS,
                gpu_eighths=lots_of(fill.gpus, 1),
                tdp_w=classes[fill.class_code].tdp_w,
            )
            for fill in fills
            if fill.side is Side.SELL
        ]

    def _bring_late_files(self) -> None:
        late = self._meters / "late"
        for path in sorted(late.rglob("*")):
            if path.is_file():
                target = self._meters / path.relative_to(late)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.rename(target)
        shutil.rmtree(late, ignore_errors=True)

    async def _settle(self, kind: str) -> dict[str, Any]:
        self._step(f"settling: {kind} run")
        ingested = self._cux_json("meter", "ingest", str(self._meters), *self._at())
        run = self._cux_json("settle", "run", "--kind", kind, *self._at())
        return {"ingested": ingested, **run}

    # -- proof -------------------------------------------------------------------------------------------

    async def _reconciled(self) -> dict[str, Any]:
        conn = await connect(connection_of(self._exchange.postgres))
        try:
            rows = await conn.fetch(
                "SELECT DISTINCT ON (trade_id) trade_id, verdict FROM cux.reconciliations "
                "ORDER BY trade_id, run DESC"
            )
            totals = await conn.fetchrow(
                "SELECT coalesce(sum(payment_micros), 0)::bigint AS paid, "
                "coalesce(sum(refund_micros), 0)::bigint AS refunded, "
                "coalesce(sum(penalty_micros), 0)::bigint AS penalties FROM cux.settlements"
            )
        finally:
            await conn.close()
        # Opened only now: settlement is done.
        secret = json.loads((self._folder / "secret.json").read_bytes())
        injected = {one["trade_id"] for one in secret["shortfalls"]}
        decoys = {one["trade_id"] for one in secret["decoys"]}
        flagged = {row["trade_id"] for row in rows if row["verdict"] != "delivered"}
        return {
            "shortfalls_injected": len(injected),
            "shortfalls_found": len(flagged & injected),
            "false_alarms": len(flagged - injected),
            "decoys": len(decoys),
            "reconciled": len(rows),
            "paid_micros": totals["paid"],
            "refunded_micros": totals["refunded"],
            "penalties_micros": totals["penalties"],
        }

    def _audit(self) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="cux-export-") as parent:
            place = Path(parent)
            place.chmod(0o755)
            out = place / "export"
            self._cux_json("audit", "export", str(out), *self._at())
            for path in (out, *out.rglob("*")):
                path.chmod(0o755 if path.is_dir() else 0o644)
            tampered = place / "tampered"
            shutil.copytree(out, tampered)
            flipped = _flip_one_byte(tampered, random.Random(self._options.seed))
            verifiers = [self._verifier(folder) for folder in (out, tampered)]
            verified, refused = (self._wait_code(one) for one in verifiers)
            shutil.move(out, self._folder / "export")
        return {
            "audit_verified": verified == 0,
            "tampered_refused": refused == 1,
            "tampered_file": flipped,
            "verified_as": "another user"
            if os.getuid() == 0
            else "the same user, as only root can become another",
        }

    def _verifier(self, folder: Path) -> subprocess.Popen[bytes]:
        vkey = str(verifier_key(ORIGIN, read_key(self._exchange.keys / "venue.key")))
        if os.getuid() == 0:
            other = pwd.getpwnam("nobody")
            command = [sys.executable, "-c", _AS_OTHER_USER, str(other.pw_gid), str(other.pw_uid)]
        else:
            command = [sys.executable, "-m", "settlement.audit.verify"]
        return self._popen([*command, str(folder), "--vkey", vkey, "--json"], dict(os.environ))

    def _wait_code(self, program: subprocess.Popen[bytes]) -> int:
        program.communicate()
        return program.returncode

    # -- summary -----------------------------------------------------------------------------------------

    def _summary(
        self,
        scenario: Scenario,
        reports: Sequence[PlayReport],
        day: DayReport,
        runs: list[dict[str, Any]],
        found: dict[str, Any],
        ledger: dict[str, Any],
        audit: dict[str, Any],
        status: dict[str, Any],
    ) -> dict[str, Any]:
        acks = sorted(us for report in reports for us in report.ack_us)
        refused: dict[str, int] = {}
        for report in reports:
            for name, count in report.refused.items():
                refused[name] = refused.get(name, 0) + count
        surplus = day.surplus
        return {
            "seed": self._options.seed,
            "input": msgspec.to_builtins(scenario.sources),
            "orders": sum(report.entered for report in reports),
            "accepted": sum(report.accepted for report in reports),
            "cancels": sum(report.cancels for report in reports),
            "refused": refused,
            "blocks": day.blocks,
            "fills": day.fills,
            "gpu_hours": float(day.gpu_hours),
            "demanded_gpu_hours": float(day.demanded_gpu_hours),
            "pflops_hours_fp32": float(day.pflops_hours_fp32),
            "notional": day.notional,
            "fill_ratio": day.fill_ratio_permille / 1000,
            "classes": msgspec.to_builtins(day.classes),
            "surplus_ratio": _ratio(surplus.surplus_ratio_permille),
            "surplus_ratio_separate_books": _ratio(surplus.surplus_ratio_separate_books_permille),
            "surplus": msgspec.to_builtins(surplus),
            "ack_ms_p50": _percentile(acks, 50),
            "ack_ms_p99": _percentile(acks, 99),
            **found,
            "runs": runs,
            "ledger_sum": ledger["ledger_sum"],
            "ledger_differences": len(ledger["differences"]),
            **audit,
            "records": status["sequence"],
            "state_hash": ledger["state_hash"],
            "seconds": round(time.monotonic() - self._began, 1),
        }

    def _show(self, found: dict[str, Any]) -> None:
        table = Table("class", "fills", "asked GPU-h", "sold GPU-h", "PFLOPS-h FP32", "notional CNY")
        for one in found["classes"]:
            table.add_row(
                one["class_code"], str(one["fills"]), one["demanded_gpu_hours"], one["gpu_hours"],
                one["pflops_hours_fp32"] or "", one["notional"],
            )  # fmt: skip
        self._console.print(table)
        source = found["input"]
        surplus = found["surplus"]
        rows = {
            "input": f"{source['trace']} trace, {source['prices']} prices, {source['carbon']} carbon "
            f"({source['why']})",
            "orders": f"{found['orders']} entered ({found['blocks']} blocks), {found['accepted']} accepted, "
            f"{found['cancels']} cancels, refused {found['refused'] or 'none'}",
            "fills": f"{found['fills']}, {found['gpu_hours']} of {found['demanded_gpu_hours']} GPU-hours "
            f"({found['fill_ratio']:.1%}), {found['pflops_hours_fp32']} PFLOPS-hours FP32, CNY {found['notional']}",
            "surplus": f"{found['surplus_ratio']:.1%} of the upper bound (LP {surplus['lp_status']}, gap "
            f"{surplus['lp_gap_ppm']} ppm); separate books {found['surplus_ratio_separate_books']:.1%}",
            "order to ack": f"p50 {found['ack_ms_p50']} ms, p99 {found['ack_ms_p99']} ms",
            "delivery": f"{found['shortfalls_injected']} shortfalls injected, {found['shortfalls_found']} found, "
            f"{found['false_alarms']} false alarms among {found['decoys']} decoys",
            "ledger": f"sum {found['ledger_sum']}, {found['ledger_differences']} differences to the engine",
            "audit": f"verified {found['audit_verified']} as {found['verified_as']}; "
            f"copy with a flipped byte in {found['tampered_file']} refused {found['tampered_refused']}",
            "state": found["state_hash"],
            "time": f"{found['seconds']} s",
        }
        for name, text in rows.items():
            self._console.print(f"[bold]{name:>14}[/bold]  {text}")

    def _stay(self, server: subprocess.Popen[bytes], found: dict[str, Any]) -> None:
        scenario = read_scenario(self._scenario_folder)
        next_hour = scenario.last_delivery_hour + 24
        contract = symbol(found["classes"][0]["class_code"], next_hour)
        self._console.print(
            f"\nThe exchange stays up at {self._url}; end it with Ctrl-C. Look at it from another terminal:\n"
            f"  cux status --folder {self._exchange.path}\n"
            f"  cux book --url {self._url}\n"
            f"  cux book {contract} --url {self._url}\n"
            f"  cux settle status --folder {self._exchange.path}\n"
            f"  cux settle explain 1 --folder {self._exchange.path}"
        )
        with contextlib.suppress(KeyboardInterrupt):
            server.wait()

    # -- programs ----------------------------------------------------------------------------------------

    def _step(self, text: str) -> None:
        self._console.print(f"[{time.monotonic() - self._began:6.1f} s] {text}")

    def _at(self) -> list[str]:
        return ["--folder", str(self._exchange.path)]

    def _start(
        self, name: str, *arguments: str, environment: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        program = self._popen(
            [sys.executable, "-m", "gateway.cli", *arguments], environment or dict(os.environ)
        )
        self._console.print(f"  started {name}, pid {program.pid}")
        return program

    def _program(self, name: str, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        program = self._popen([sys.executable, "-m", module, *arguments], dict(os.environ))
        self._console.print(f"  started {name}, pid {program.pid}")
        return program

    def _popen(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        program = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        self._running.append(program)
        return program

    def _wait(self, name: str, program: subprocess.Popen[bytes], quiet: bool = False) -> bytes:
        out, _ = program.communicate()
        if program.returncode:
            raise DemoError(f"{name} ended with code {program.returncode}")
        if not quiet:
            self._running.remove(program)
        return out

    def _cux_json(self, *arguments: str, allow_failure: bool = False) -> dict[str, Any]:
        program = self._popen([sys.executable, "-m", "gateway.cli", *arguments, "--json"], dict(os.environ))
        out, _ = program.communicate()
        if program.returncode and not allow_failure:
            raise DemoError(f"cux {' '.join(arguments[:2])} ended with code {program.returncode}")
        return dict(json.loads(out))

    def _end(self) -> None:
        for program in reversed(self._running):
            if program.poll() is None:
                program.send_signal(signal.SIGTERM)
        for program in self._running:
            try:
                program.wait(30)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()


def _without_data() -> dict[str, str]:
    """Return the environment without a data folder; an empty value names none."""
    return {**os.environ, "CUX_DATA": os.devnull}


def _in_order(commands: Sequence[OperatorCommand]) -> list[list[OperatorCommand]]:
    """Return the commands by kind: those of one kind do not depend on each other."""
    kinds: dict[type[OperatorCommand], list[OperatorCommand]] = {}
    for command in commands:
        kinds.setdefault(type(command), []).append(command)
    return [few[i : i + 200] for few in kinds.values() for i in range(0, len(few), 200)]


def _until_ready(client: str, program: subprocess.Popen[bytes]) -> None:
    assert program.stdout is not None
    if program.stdout.readline().strip() != b"ready":
        raise DemoError(f"{client} did not start")


def _flip_one_byte(folder: Path, draw: random.Random) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    chosen = draw.choice(files)
    data = bytearray(chosen.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    chosen.write_bytes(data)
    return str(chosen.relative_to(folder))


def _ratio(permille: int | None) -> float:
    return 0.0 if permille is None else permille / 1000


def _percentile(ordered: Sequence[int], percent: int) -> float:
    if not ordered:
        return 0.0
    return round(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] / 1000, 3)


def _failures(found: dict[str, Any]) -> list[str]:
    """Return what does not hold that must."""
    rules = {
        "the ledger sums to zero": found["ledger_sum"] == 0,
        "the ledger equals the engine's funds": found["ledger_differences"] == 0,
        "every injected shortfall is found": found["shortfalls_found"] == found["shortfalls_injected"],
        "no delivery within tolerance is called short": found["false_alarms"] == 0,
        "the export verifies": found["audit_verified"],
        "a copy with one flipped byte is refused": found["tampered_refused"],
        "the shared book is ahead of separate books": found["surplus_ratio"]
        > found["surplus_ratio_separate_books"],
    }
    return [rule for rule, holds in rules.items() if not holds]
