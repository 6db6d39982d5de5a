"""`make crash`: a real exchange under load, its processes killed at random points, its promises kept.

    make crash                       # 200 kills
    make crash SEED=7 BUDGET=40      # the kills of one seed

One exchange after the other, each on a folder of its own, takes up to 40 kills: of the core for the most
part, also while it recovers or because its follower is promoted, of the gateway, the follower, the back, the
database, the supervisor, and of all at once. Now and then it is stopped in order and started again.
Members enter and cancel meanwhile, and repeat what they do not know under the same client order id; an
operator halts contracts and resumes them through a call, and repeats an act under the same signature. After
each restart:

- what a member was told is in the log: each order once and under the number that he was told, each cancel,
  each fill; and each act that the operator was told, once;
- the log applied again gives the events that it holds, and the invariants hold;
- the ledger catches up with the log and holds the engine's funds, orders and fills.

At the end of each exchange every order has its answer, every call its clearing, and a full replay has the
same state hash as the one that was kept up from kill to kill, and as the snapshot of every stop. The seed
draws kills and orders; which instruction a kill meets is chance, so a second run of a seed is like the first,
not the same.
"""

import argparse
import asyncio
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import msgspec

from exchange.engine import Engine
from exchange.folder import DataFolder
from exchange.follower import StandbyError, ask_standby
from exchange.log import LogReader
from exchange.snapshot import Snapshots
from gateway.client import Client, LostError, RefusedError
from gateway.keys import read_key
from schemas.authority import signed
from schemas.codec import encode
from schemas.commands import EnterOrder, HaltContract, OperatorCommand, ResumeContract
from schemas.events import CallCleared, OrderAccepted, OrderEnded, Rejected, trades_of
from schemas.reasons import RejectReason
from schemas.records import Record, decoded
from schemas.wire import OrderEnter
from settlement.database import connect
from settlement.postgres import connection_of
from settlement.writer import LOST, engine_equals_ledger, position
from tests.exchange_fixture import (
    ROOT,
    VENUE,
    Exchange,
    Participant,
    ask,
    bid,
    free_port,
    order,
    processes_of,
    small_folder,
    temporary_folder,
)
from tests.market import CLASS, FIRST_HOUR

KILLS_A_LIFE = 40
START_SECONDS = 60.0
CATCH_UP_SECONDS = 60.0
HOURS = 20
SHORT_CALLS = msgspec.structs.replace(
    VENUE, calls=msgspec.structs.replace(VENUE.calls, min_seconds=1, max_seconds=2)
)
BLOWS = {
    "core": 10,
    "promote": 3,
    "gateway": 3,
    "follower": 2,
    "back": 2,
    "postgres": 2,
    "supervisor": 2,
    "all": 1,
    "stop": 1,
}
"""What happens, and how often beside the others: a process is killed; the follower is promoted and kills the
core; the exchange is stopped in order."""
AGAIN = 0.25
"""How often a kill of the core is followed by one while it recovers."""


class BrokenError(AssertionError):
    """A promise was broken; the message says which."""


class Supervised(Exchange):
    """`cux serve` whose processes are killed. What it says stands in a file."""

    def __init__(self, folder: DataFolder) -> None:
        super().__init__(folder, free_port())
        self.said = folder.path.parent / "said.txt"
        self.start()

    def start(self) -> None:
        """Start it; it is not ready then."""
        command = [sys.executable, "-m", "gateway.cli", "serve", "--folder", str(self.folder.path)]
        with self.said.open("ab") as said:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port)], stdout=said, stderr=said, cwd=ROOT
            )

    def pids(self) -> dict[str, int]:
        """The process numbers by name; a process may have ended by now."""
        with contextlib.suppress(OSError):
            return msgspec.json.decode((self.folder.run / "pids.json").read_bytes(), type=dict[str, int])
        return {}

    def kill(self, victim: str) -> None:
        """Send SIGKILL to a process, or to all of them; one that is not there now is left alone."""
        pids = self.pids()
        if victim in ("supervisor", "all"):
            self.process.kill()
            self.process.wait()
        if victim != "all":
            pids = {name: pid for name, pid in pids.items() if name == victim}
        mine = processes_of(self.folder.path)
        for pid in pids.values():
            # A number in the file may be another's by now.
            if pid in mine:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    async def until_ready(self) -> None:
        """Return when orders are taken; start again what was killed, or gave up after too many deaths.

        Raises:
            BrokenError: it does not come back, or a process failed by itself.
        """
        deadline = time.monotonic() + START_SECONDS
        while not await asyncio.to_thread(self._healthy):
            self.refuse_bad_words()
            if time.monotonic() > deadline:
                raise BrokenError("the exchange did not come back")
            if self.process.poll() is not None:
                self.start()
            await asyncio.sleep(0.02)
        self.refuse_bad_words()

    def refuse_bad_words(self) -> None:
        """Look through what the processes said.

        Raises:
            BrokenError: one of them failed, though it was not killed.
        """
        words = self.said.read_text(errors="replace")
        for found in re.finditer(
            r"^.*(Traceback|LogError|AssertionError|is damaged|did not start).*$", words, re.MULTILINE
        ):
            raise BrokenError(f"a process failed by itself: {found[0]}; all it said:\n{words[-4000:]}")
        for name, code in re.findall(
            r"^(core|back|gateway|follower) ended with code (-?\d+)", words, re.MULTILINE
        ):
            if int(code) != -signal.SIGKILL:
                raise BrokenError(
                    f"{name} ended with code {code} and was not killed; all it said:\n{words[-4000:]}"
                )

    def _healthy(self) -> bool:
        running = set(processes_of(self.folder.path))
        if self.process.poll() is not None or not set(self.pids().values()) <= running:
            return False
        try:
            return self.health()[0] == 200
        except (OSError, msgspec.DecodeError):
            return False

    def stop(self) -> int:
        """End it in order, and return its code."""
        self.process.terminate()
        return self.process.wait(60)

    def end(self) -> None:
        """Kill it, and return when none of its processes is left; they end with the supervisor."""
        self.kill("all")
        deadline = time.monotonic() + 20
        while processes_of(self.folder.path) and time.monotonic() < deadline:
            time.sleep(0.05)


class Told:
    """What members were told: the promises that must hold."""

    def __init__(self) -> None:
        self.orders: dict[tuple[int, str], int] = {}
        self.refused: set[tuple[int, str]] = set()
        self.canceled: set[int] = set()
        self.trades: set[int] = set()
        self.acts: set[bytes] = set()

    def copy(self) -> "Told":
        """The promises as they are now."""
        now = Told()
        now.orders, now.refused = dict(self.orders), set(self.refused)
        now.canceled, now.trades = set(self.canceled), set(self.trades)
        now.acts = set(self.acts)
        return now


class Member:
    """Enters and cancels, some at a time, and repeats until it has an answer."""

    WINDOW = 4
    PAUSE_SECONDS = 0.03

    def __init__(self, who: Participant, site: int, first_hour: int, draw: random.Random, told: Told) -> None:
        self.who = who
        self._site = site
        self._first_hour = first_hour
        self._draw = draw
        self._told = told
        self._count = 0
        self._open: list[str] = []

    async def trade(self, client: Client, stop: asyncio.Event) -> None:
        """Trade until `stop`; then return when all that was sent is answered."""
        await asyncio.gather(*(self._trade(client, stop) for _ in range(self.WINDOW)))

    async def _trade(self, client: Client, stop: asyncio.Event) -> None:
        while not stop.is_set():
            if self._open and self._draw.random() < 0.3:
                await self._cancel(client, self._open.pop(self._draw.randrange(len(self._open))))
            else:
                await self._enter(client, self._next_order())
            await asyncio.sleep(self.PAUSE_SECONDS)

    def _next_order(self) -> OrderEnter:
        self._count += 1
        name, hour = f"{self.who.account}-{self._count}", self._first_hour + self._draw.randrange(HOURS)
        price = str(self._draw.randint(8, 12))
        if self._site:
            return order(ask(name, self._site, hour, "1", price))
        return order(bid(name, hour, str(self._draw.randint(1, 2)), price))

    async def _enter(self, client: Client, one: OrderEnter) -> None:
        key = self.who.account, one.client_order_id
        while True:
            try:
                answer = await client.enter(one)
            except LostError:
                continue
            except RefusedError:
                self._told.refused.add(key)
                return
            break
        self._told.orders[key] = answer.order_id
        self._told.trades.update(fill.trade_id for fill in answer.fills)
        self._open.append(one.client_order_id)

    async def _cancel(self, client: Client, name: str) -> None:
        while True:
            try:
                answer = await client.cancel(name)
            except LostError:
                with contextlib.suppress(LostError):
                    await client.status(name)  # It connects again.
                continue
            except RefusedError as refusal:
                if refusal.code == RejectReason.UNKNOWN_ORDER:
                    # It was filled, or an earlier attempt was taken.
                    return
                await asyncio.sleep(0.05)
                continue
            self._told.canceled.add(answer.order_id)
            return


class Operator:
    """Halts contracts and resumes them, one at a time, and repeats each act until it has an answer."""

    PAUSE_SECONDS = 0.5

    def __init__(self, exchange: Exchange, draw: random.Random, told: Told) -> None:
        self._exchange = exchange
        self._draw = draw
        self._told = told

    async def operate(self, stop: asyncio.Event) -> None:
        """Go on until `stop`; then return when what was halted has been resumed."""
        while not stop.is_set():
            hour = FIRST_HOUR + self._draw.randrange(HOURS)
            for command in (HaltContract(CLASS, hour), ResumeContract(CLASS, hour)):
                await self._do(command)
                await asyncio.sleep(self._draw.uniform(0, self.PAUSE_SECONDS))

    async def _do(self, command: OperatorCommand) -> None:
        key = read_key(self._exchange.folder.keys / "operator-1.key")
        act = signed(command, key, time.time_ns(), "crash")
        while True:
            try:
                async with self._exchange.admin() as client:
                    await client.operate(act)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            except RefusedError:
                # An attempt before it was taken, or the exchange has no room for acts now.
                return
            self._told.acts.add(encode(act))
            return


class Replayed:
    """The log applied again, in this process, as far as it has been read; and what stands in it."""

    def __init__(self, folder: Path) -> None:
        self.engine = Engine()
        self.position = 0
        self.accepted: dict[tuple[int, str], list[int]] = {}
        self.ended: set[int] = set()
        self.trades: set[int] = set()
        self.acts: Counter[bytes] = Counter()
        self.cleared = 0
        self._reader = LogReader(folder)
        self._read: list[Record] = []

    @property
    def durable(self) -> int:
        """How far the log is known to be durable."""
        self._read += self._reader.poll()
        return self._read[-1].sequence if self._read else self.position

    def apply_to(self, last: int) -> None:
        """Apply the records up to `last`.

        Raises:
            BrokenError: they give other events than the log holds.
        """
        count = last - self.position
        ready, self._read = self._read[:count], self._read[count:]
        for record in ready:
            self.apply(record)
        if self.position != last:
            raise BrokenError(
                f"record {last} is asked for, but the log is durable up to {self.position} only"
            )

    def apply(self, record: Record) -> None:
        """Apply the next record.

        Raises:
            BrokenError: it gives other events than it holds.
        """
        known = decoded(record)
        if tuple(self.engine.apply(known.time_ns, known.command)) != known.events:
            raise BrokenError(f"record {known.sequence} gives other events when it is applied again")
        self.position = known.sequence
        if isinstance(known.command, OperatorCommand) and not isinstance(known.events[0], Rejected):
            self.acts[bytes(record.command)] += 1
        for event in known.events:
            if isinstance(event, OrderAccepted):
                assert isinstance(known.command, EnterOrder)
                key = known.command.account, known.command.client_order_id
                self.accepted.setdefault(key, []).append(event.order_id)
            elif isinstance(event, OrderEnded):
                self.ended.add(event.order_id)
            elif isinstance(event, CallCleared):
                self.cleared += 1
            self.trades.update(trade.trade_id for trade in trades_of(event))

    def lacks(self, told: Told) -> str:
        """Say which of the promises the log lacks; empty if it has them all."""
        for key, order_id in told.orders.items():
            if order_id not in self.accepted.get(key, ()):
                return f"order {key} was acknowledged as {order_id}; the log has {self.accepted.get(key)}"
        if lost := told.canceled - self.ended:
            return f"the cancels of orders {sorted(lost)[:5]} were acknowledged and are not in the log"
        if lost := told.trades - self.trades:
            return f"the trades {sorted(lost)[:5]} were told and are not in the log"
        if told.acts - self.acts.keys():
            return "an operator's act was acknowledged and is not in the log"
        return ""

    def check(self, told: Told) -> None:
        """Look for what must never be, whatever is still to come.

        Raises:
            BrokenError: an order or an act is in the log twice, or an order that was refused; or an invariant
                is broken.
        """
        if twice := [act for act, count in self.acts.items() if count > 1]:
            raise BrokenError(f"acts {twice[:3]!r} are in the log more than once")
        for key, order_ids in self.accepted.items():
            if len(order_ids) > 1:
                raise BrokenError(f"order {key} is in the log {len(order_ids)} times: {order_ids}")
        if wrong := told.refused & self.accepted.keys():
            raise BrokenError(f"orders {sorted(wrong)[:5]} were refused and are in the log")
        self.engine.check()


class Life:
    """One exchange and its kills."""

    def __init__(self, folder: DataFolder, seed: int) -> None:
        self.seed = seed
        self.exchange = Supervised(folder)
        self.replayed = Replayed(folder.log)
        self.told = Told()
        self.killed: Counter[str] = Counter()
        self._draw = random.Random(seed)

    async def run(self, kills: int) -> None:
        """Kill so often, and check after each.

        Raises:
            BrokenError: a promise was broken.
        """
        exchange = self.exchange
        await exchange.until_ready()
        # Else no call would end.
        await exchange.set_clock(speed=1)
        members = [await self._new_member(sells) for sells in (True, True, False, False)]
        stop = asyncio.Event()
        async with contextlib.AsyncExitStack() as clients:
            trading = [
                asyncio.create_task(
                    member.trade(await clients.enter_async_context(exchange.client(member.who)), stop)
                )
                for member in members
            ]
            operator = Operator(exchange, random.Random(self._draw.random()), self.told)
            trading.append(asyncio.create_task(operator.operate(stop)))
            for _ in range(kills):
                await self._one_kill(sum(self.killed.values()) + 1, kills)
                for task in trading:
                    if task.done():
                        task.result()
            stop.set()
            done, waiting = await asyncio.wait(trading, timeout=CATCH_UP_SECONDS)
            for task in done:
                task.result()
            if waiting:
                raise BrokenError("somebody waits for an answer though nothing is killed any more")
        await self._catch_up()
        deadline = time.monotonic() + CATCH_UP_SECONDS
        while self.replayed.engine.calls():
            if time.monotonic() > deadline:
                raise BrokenError(f"calls do not end: {self.replayed.engine.calls()}")
            await asyncio.sleep(0.2)
            await self._catch_up()
        self._refuse_another_state_hash()
        await self._stop()

    async def _stop(self) -> None:
        """End the exchange in order.

        Raises:
            BrokenError: it fails, or its last snapshot is not the state of a full replay.
        """
        code = await asyncio.to_thread(self.exchange.stop)
        if code != 0:
            raise BrokenError(f"cux serve ended with code {code} when it was told to stop")
        self.exchange.refuse_bad_words()
        whole = Replayed(self.exchange.folder.log)
        whole.apply_to(whole.durable)
        found = next(iter(Snapshots(self.exchange.folder.snapshots).whole(self._refuse_snapshot)), None)
        if found is None or found.sequence != whole.position:
            raise BrokenError(f"the exchange stopped at record {whole.position} without a snapshot of it")
        if found.state_hash != whole.engine.state_hash():
            raise BrokenError(f"the snapshot of record {found.sequence} is not the state of a full replay")

    def _refuse_snapshot(self, words: str) -> None:
        raise BrokenError(f"a snapshot cannot be used: {words}")

    async def _new_member(self, sells: bool) -> Member:
        who = await self.exchange.register("100000000")
        site = await self.exchange.certify(who) if sells else 0
        return Member(who, site, FIRST_HOUR, random.Random(self._draw.random()), self.told)

    async def _one_kill(self, number: int, kills: int) -> None:
        delay = self._draw.uniform(0.02, 0.6)
        victim = self._draw.choices(list(BLOWS), list(BLOWS.values()))[0]
        again = self._draw.uniform(0, 0.6) if victim == "core" and self._draw.random() < AGAIN else None
        await asyncio.sleep(delay)
        began = time.monotonic()
        if victim == "promote":
            with contextlib.suppress(StandbyError):
                await ask_standby(self.exchange.folder, "promote")
        elif victim == "stop":
            await self._stop()
        else:
            self.exchange.kill(victim)
        self.killed[victim] += 1
        if again is not None:
            await asyncio.sleep(again)
            self.exchange.kill("core")
        await self.exchange.until_ready()
        back = time.monotonic() - began
        await self._catch_up()
        sys.stdout.write(
            f"seed {self.seed}, kill {number} of {kills}: {victim}{'' if again is None else ' twice'}; "
            f"back in {back:.1f} s, ledger in {time.monotonic() - began:.1f} s; "
            f"{len(self.told.orders)} orders acknowledged, {self.replayed.position} records\n"
        )
        sys.stdout.flush()

    async def _catch_up(self) -> None:
        """Return when log and ledger have all that members were told by now; look for what must never be.

        Raises:
            BrokenError: a promise was broken, or the ledger does not follow.
        """
        told = self.told.copy()
        due = self.replayed.durable
        deadline = time.monotonic() + CATCH_UP_SECONDS
        while True:
            with contextlib.suppress(*LOST):
                reached = await self._compare_ledger()
                if reached >= due and not self.replayed.lacks(told):
                    break
            if time.monotonic() > deadline:
                lacks = self.replayed.lacks(told) or "the ledger does not follow"
                raise BrokenError(f"{lacks}; log durable to {due}, ledger at {self.replayed.position}")
            await asyncio.sleep(0.02)
        self.replayed.check(told)

    async def _compare_ledger(self) -> int:
        """Return where the ledger stands, after a comparison there with the log applied again."""
        replayed = self.replayed
        conn = await connect(connection_of(self.exchange.folder.postgres))
        try:
            async with conn.transaction(isolation="repeatable_read"):
                reached = await position(conn)
                if reached > replayed.durable or reached < replayed.position:
                    raise BrokenError(
                        f"the ledger stands at {reached} and was at {replayed.position},"
                        f" the log is durable to {replayed.durable}"
                    )
                replayed.apply_to(reached)
                differences = await engine_equals_ledger(conn, replayed.engine.balances())
                counts = [
                    await conn.fetchval(f"SELECT count(*) FROM cux.{table}") for table in ("orders", "fills")
                ]
        finally:
            conn.terminate()
        if differences:
            raise BrokenError(f"at record {reached} the ledger differs: {differences}")
        logged = [sum(map(len, replayed.accepted.values())), len(replayed.trades)]
        if counts != logged:
            raise BrokenError(
                f"at record {reached} the ledger has {counts} orders and fills, the log {logged}"
            )
        return reached

    def _refuse_another_state_hash(self) -> None:
        """Compare with a full replay of what is on the disk.

        Raises:
            BrokenError: it has another state hash.
        """
        kept, whole = self.replayed, Replayed(self.exchange.folder.log)
        kept.apply_to(kept.durable)
        whole.apply_to(whole.durable)
        here, there = kept.engine.state_hash(), whole.engine.state_hash()
        if (kept.position, here) != (whole.position, there):
            raise BrokenError(
                f"a full replay ends at {whole.position} with {there.hex()}, the one that was kept up"
                f" at {kept.position} with {here.hex()}"
            )


def live(seed: int, kills: int) -> Life:
    """Let one exchange live through its kills, and return it.

    Raises:
        BrokenError: a promise was broken; the folder is kept, the message says where and how to run it again.
    """
    with temporary_folder() as path:
        life = Life(small_folder(path, SHORT_CALLS), seed)
        try:
            asyncio.run(life.run(kills))
        except BaseException as error:
            life.exchange.end()
            kept = Path(tempfile.mkdtemp(prefix=f"cux-crash-{seed}-"))
            shutil.copytree(path, kept, dirs_exist_ok=True, ignore=_without_sockets)
            what = str(error) if isinstance(error, BrokenError) else repr(error)
            raise BrokenError(
                f"{what}\nagain with: make crash SEED={seed} BUDGET={kills}; its folder is kept in {kept}"
            ) from error
        finally:
            life.exchange.end()
    return life


def _without_sockets(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not (path := Path(folder, name)).is_dir() and not path.is_file()]


def main() -> int:
    """Kill, check, and say what was found."""
    parser = argparse.ArgumentParser(prog="make crash", description=main.__doc__)
    parser.add_argument("--seed", type=int, default=None, help="of the first exchange; drawn by default")
    parser.add_argument("--budget", type=int, default=200, help="how many kills in all")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    killed: Counter[str] = Counter()
    cleared = 0
    while (left := arguments.budget - killed.total()) > 0:
        try:
            life = live(seed, min(left, KILLS_A_LIFE))
        except BrokenError as broken:
            sys.stdout.write(f"BROKEN: {broken}\n")
            return 1
        killed += life.killed
        cleared += life.replayed.cleared
        seed += 1
    told = ", ".join(f"{count} of {name}" for name, count in killed.items())
    sys.stdout.write(
        f"nothing acknowledged was lost or doubled in {killed.total()} kills ({told}), "
        f"and {cleared} calls were cleared\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
