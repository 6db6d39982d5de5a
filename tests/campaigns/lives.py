"""`make lives`: short lives of the exchange on a simulated machine, thousands a minute, each drawn by a seed.

    make lives                  # 20,000 lives
    make lives BUDGET=500000    # so many
    make lives SEED=7           # one of them, and its story

Engine, sequencer, desk, log, recovery and log readers are the real ones. Around them one thread plays the
machine (`tests/campaigns/machine.py`), the core's loop and its writer's, the helper that clears calls,
followers with their snapshots, and clients. Contracts are halted and resumed, and calls start at the band. A
life has a time of faults: kills and power cuts at any point, also while the core starts; syncs and
writes that fail; a disk that runs low; a wall clock that jumps; connections that are cut. Clients send again
over a new connection what was not answered over the old one, and now and then all twice. Then it is calm, and
at last the power is cut once more. Two verdicts:

- safety: what was told is in the log as it was told, no order and no operator's act twice; what a reader saw
  stands in every later log; recovery from a snapshot ends in the state of a full replay, and the engine's
  invariants hold.
- liveness: when the faults have stopped every client gets its answers, every reader all records, and every
  call its clearing.
"""

import argparse
import gc
import random
import sys
import time as wall
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from msgspec.structs import replace

from exchange.clearer import prices_of, solve, terms_of
from exchange.clock import WallClock
from exchange.desk import Desk, Request
from exchange.folder import Settings
from exchange.log import LogError, LogReader, SegmentLog
from exchange.recovery import reapply, recover, snapshot_of, start_from
from exchange.sequencer import Sequencer, Taken
from exchange.snapshot import Snapshot
from schemas.commands import (
    AnyCommand,
    Authority,
    CancelOrder,
    CorrectClock,
    Deposit,
    EnterOrder,
    HaltContract,
    MassCancel,
    OperatorCommand,
    ProposeClearing,
    ReplaceOrder,
    ResumeContract,
    TimeInForce,
)
from schemas.events import CallCleared, OrderAccepted, Phase, Rejected
from schemas.records import Record, decoded
from tests.campaigns.machine import (
    SECOND_NS,
    Connection,
    KilledError,
    Message,
    PowerCutError,
    SimulatedDisk,
    Time,
)
from tests.market import (
    AUTHORITY,
    BUYER,
    CLASS,
    EAST,
    FIRST_HOUR,
    OPERATOR_KEY,
    OTHER_BUYER,
    SELLER,
    SELLER_WEST,
    START_NS,
    WEST,
    ask,
    bid,
    opening,
)
from tests.small_venue import SMALL_VENUE

LIVES = 20_000
CALM_SECONDS = 60
BATCH_MAX = 4
UNSYNCED_MAX = 12
LOW_DISK_BYTES = 1 << 20
ROOM = 1 << 30
HOURS = 3
SITES = {SELLER: EAST, SELLER_WEST: WEST}
VENUE = replace(
    SMALL_VENUE,
    calls=replace(SMALL_VENUE.calls, min_seconds=1, max_seconds=2),
    limits=replace(SMALL_VENUE.limits, band_permille=15, band_small_lots=1),
)
SETTINGS = Settings(
    format=1,
    origin="test.example/small",
    venue=VENUE,
    venue_key=bytes(32),
    operator_keys=(OPERATOR_KEY,),
)


MakeDisk = Callable[[random.Random, Callable[[str], None]], SimulatedDisk]


class SafetyError(AssertionError):
    """Something was lost, doubled or told that is not so."""


class LivenessError(AssertionError):
    """Somebody waits though nothing is in the way."""


class Busy(NamedTuple):
    """The core's word that a command was not taken."""

    reason: str


class DeskOfLives(Desk):
    """With little room, so that members are told to come again."""

    def __init__(self) -> None:
        super().__init__(6, 6, 6, LOW_DISK_BYTES)


class Core:
    """The core process: what `exchange/core.py` and `exchange/writer.py` do, as steps of the one thread."""

    def __init__(self, life: "Life") -> None:
        """Recover and lead.

        Raises:
            LogError: the log cannot be used.
            OSError: it failed.
        """
        self._life = life
        self._time, self._draw = life.time, life.draw
        self.log = SegmentLog(
            life.disk,
            life.segment_max_bytes,
            not_below=life.snapshot_sequence,
            next_epoch=life.draw.random() < 0.2,
        )
        self.recovered = recover(self.log, life.snapshots)
        self._clock = WallClock(
            self.recovered.engine.time_ns,
            wall=lambda: life.time.now_ns + life.skew_ns,
            monotonic=lambda: life.time.now_ns,
        )
        self.sequencer = Sequencer(self.recovered, self._clock, life.draw.randbytes, life.draw.randrange)
        if opened := self.sequencer.open_era(SETTINGS):
            self.log.append(opened)
        self.log.seal()
        self._desk = life.make_desk()
        self._unsynced: deque[tuple[Taken, list[Request]]] = deque()
        self._to_write: list[Record] = []
        self._is_writing = False
        self._work_is_due = False
        self._look_ns = 0
        self._clearing: set[tuple[str, int]] = set()
        self.is_dead = False
        self._soon()

    def first_market(self) -> None:
        """Accounts, sites and money, before anybody trades."""
        self.log.append(self.sequencer.take(opening()[1:]).records)
        self.log.seal()

    @property
    def is_idle(self) -> bool:
        """Whether all that it took in is durable and told to readers."""
        return not (len(self._desk) or self._unsynced or self._to_write or self._is_writing)

    def receive(self, connection: Connection, message: Message) -> None:
        """Take a client's command in, or say why not."""
        if self.is_dead:
            return
        self._look()
        refusal = self._desk.put(Request(connection, message.correlation, message.content))
        if refusal:
            connection.send_to_client(Message(message.correlation, Busy(refusal)))
        else:
            self._soon()

    def _look(self) -> None:
        self._clock.now_ns()
        self._desk.look(self.log.free_bytes(), self._clock.parted_ns)

    def _soon(self) -> None:
        if not self._work_is_due:
            self._work_is_due = True
            self._later(self._draw.randrange(1_000_000), self._work)

    def _later(self, delay_ns: int, action: Callable[[], None]) -> None:
        self._time.later(delay_ns, lambda: None if self.is_dead else action())

    def _work(self) -> None:
        self._work_is_due = False
        if sum(len(taken.records) for taken, _ in self._unsynced) >= UNSYNCED_MAX:
            return
        self._start_clearings()
        due_ns = self.sequencer.next_due_ns()
        if len(self._desk) or (due_ns is not None and due_ns <= self._clock.now_ns()):
            requests = self._desk.take(self._draw.randint(1, BATCH_MAX))
            taken = self.sequencer.take([request.command for request in requests])
            if self._draw.random() < 0.2:
                self.sequencer.engine.check()
            if taken.records:
                self._unsynced.append((taken, requests))
                self._put(taken.records)
            self._soon()
        elif due_ns is not None:
            # At the latest after a second: the wall clock may be corrected meanwhile.
            look_ns = self._time.now_ns + min(due_ns - self._clock.now_ns(), SECOND_NS)
            if not self._time.now_ns < self._look_ns <= look_ns:
                self._look_ns = look_ns
                self._later(look_ns - self._time.now_ns, self._soon)

    def _start_clearings(self) -> None:
        for class_code, hour, _, is_clearing in self.sequencer.engine.calls():
            if is_clearing and (class_code, hour) not in self._clearing:
                self._clearing.add((class_code, hour))
                self._clear(class_code, hour)

    def _clear(self, class_code: str, hour: int) -> None:
        engine = self.sequencer.engine
        if engine.phase(class_code, hour) is not Phase.CLEARING:
            self._clearing.discard((class_code, hour))
            return
        clearing = solve(terms_of(engine, class_code, hour))
        proposal = ProposeClearing(class_code, hour, clearing.fills, prices_of(engine, clearing))

        def propose() -> None:
            self._desk.put_own(proposal)
            self._soon()

        # Meanwhile its orders may be cancelled: then it is refused, and another one is made.
        self._later(self._draw.randrange(200_000_000), propose)
        self._later(SECOND_NS, lambda: self._clear(class_code, hour))

    def _put(self, records: list[Record]) -> None:
        self._to_write += records
        if not self._is_writing:
            self._is_writing = True
            self._later(self._draw.randrange(3_000_000), self._write)

    def _write(self) -> None:
        records, self._to_write = self._to_write, []
        try:
            if not records:
                self._is_writing = False
                self.log.seal()
                return
            self.log.append(records)
        except OSError as error:
            self._life.ended(f"stopped: {error}")
            return
        self._later(self._draw.randrange(1_000_000), lambda: self._durable(records[-1].sequence))
        self._later(self._draw.randrange(5_000_000), self._write)

    def _durable(self, sequence: int) -> None:
        while self._unsynced and self._unsynced[0][0].records[-1].sequence <= sequence:
            taken, requests = self._unsynced.popleft()
            for place, request in zip(taken.answers, requests, strict=True):
                # Its own proposals have no client.
                if request.client is not None:
                    request.client.send_to_client(Message(request.correlation, taken.records[place]))
        self._soon()


class Client:
    """Sends its commands, some at a time, and again what was not answered when its connection was cut."""

    def __init__(self, life: "Life", account: int) -> None:
        self.account = account
        self.waiting: dict[int, AnyCommand] = {}
        self._life = life
        self._draw = life.draw
        self._left = life.draw.randint(3, 12)
        self._window = life.draw.randint(1, 3)
        self._count = 0
        self._connection: Connection | None = None
        self._orders: list[str] = []
        self._later(self._connect)

    @property
    def is_done(self) -> bool:
        """Whether it has all its answers."""
        return not self._left and not self.waiting

    def receive(self, connection: Connection, message: Message) -> None:
        """Take an answer in."""
        if connection is not self._connection or message.correlation not in self.waiting:
            return
        if isinstance(message.content, Busy):
            self._life.tell(f"client {self.account}: {message.correlation} is busy: {message.content.reason}")
            self._later(lambda: self._send_again(message.correlation))
            return
        assert isinstance(message.content, Record)
        self._life.told(self, self.waiting.pop(message.correlation), message.content)
        self._later(self._go_on)

    def cut_heard(self, connection: Connection) -> None:
        """Connect anew."""
        if connection is self._connection:
            self._connection = None
            self._later(self._connect)

    def submit(self, command: AnyCommand) -> None:
        """Send a command, now and then twice."""
        for _ in range(2 if self._draw.random() < 0.1 else 1):
            self._count += 1
            self.waiting[self._count] = command
            self._life.tell(f"client {self.account}: {self._count} is {_short(command)}")
            self._send_again(self._count)

    def cut(self) -> None:
        """Lose the connection."""
        if self._connection is not None:
            self._connection.cut()

    def _later(self, action: Callable[[], None]) -> None:
        self._life.time.later(self._draw.randrange(1_000_000, 200_000_000), action)

    def _connect(self) -> None:
        if self._connection is not None:
            return
        self._connection = self._life.connect(self)
        if self._connection is None:
            self._later(self._connect)
            return
        for correlation in list(self.waiting):
            self._send_again(correlation)
        self._go_on()

    def _send_again(self, correlation: int) -> None:
        if self._connection is not None and correlation in self.waiting:
            self._connection.send_to_core(Message(correlation, self.waiting[correlation]))

    def _go_on(self) -> None:
        while self._connection is not None and self._left and len(self.waiting) < self._window:
            self._left -= 1
            self.submit(self._next_command())

    def _next_command(self) -> AnyCommand:
        chance, draw = self._draw.random(), self._draw
        valid_until_ns = self._life.time.now_ns + 500 * SECOND_NS
        if chance < 0.06:
            return MassCancel(self.account)
        if chance < 0.25 and self._orders:
            return CancelOrder(self.account, 0, draw.choice(self._orders))
        if chance < 0.35 and self._orders:
            return ReplaceOrder(
                account=self.account,
                client_order_id=draw.choice(self._orders),
                valid_until_ns=valid_until_ns,
                lots=draw.randint(1, 4),
                price_ticks=draw.randint(98, 102),
            )
        self._orders.append(f"o{self._count + 1}")
        terms: dict[str, object] = {
            "account": self.account,
            "client_order_id": self._orders[-1],
            "valid_until_ns": valid_until_ns,
            "delivery_hour": FIRST_HOUR + draw.randrange(HOURS),
        }
        if draw.random() < 0.15:
            terms["hours"] = 2
        elif draw.random() < 0.2:
            terms["time_in_force"] = TimeInForce.IOC
        elif draw.random() < 0.05:
            terms["time_in_force"] = TimeInForce.AUCTION
        elif draw.random() < 0.2:
            terms["time_in_force"] = TimeInForce.GTD
            terms["expire_ns"] = self._life.time.now_ns + draw.randrange(2 * SECOND_NS)
        lots, price_ticks = draw.randint(1, 3), draw.randint(98, 102)
        if self.account in SITES:
            if "hours" in terms:
                terms["min_hours"] = 1
            return ask(0, SITES[self.account], lots, price_ticks, **terms)
        return bid(0, lots, price_ticks, **terms)


class Operator(Client):
    """Pays in, halts and resumes, each time under a signature of its own, and corrects the clock."""

    def _next_command(self) -> AnyCommand:
        chance, hour = self._draw.random(), FIRST_HOUR + self._draw.randrange(HOURS)
        if chance < 0.4:
            return Deposit(BUYER, 1, authority=self._signature())
        if chance < 0.7:
            return HaltContract(CLASS, hour, authority=self._signature())
        return ResumeContract(CLASS, hour, authority=self._signature())

    def correct_clock(self) -> None:
        """Have the wall clock believed again."""
        self.submit(CorrectClock(authority=self._signature()))

    def _signature(self) -> Authority:
        return replace(AUTHORITY, signed_ns=START_NS + self._count + 1)


class Reader:
    """Reads the log from a process of its own and remembers what it saw, whatever happens."""

    def __init__(self, life: "Life") -> None:
        self.seen: list[_Plain] = []
        self._life = life
        self._reader = LogReader(life.disk, 1)
        self.poll()

    def start_again(self) -> None:
        """Go on where it was, as after a restart."""
        self._reader = LogReader(self._life.disk, len(self.seen) + 1)

    def poll(self) -> None:
        """Read what has become durable, and look again later."""
        if self._life.draw.random() < 0.05:
            self.start_again()
        for record in self._reader.poll():
            if record.sequence != len(self.seen) + 1:
                raise SafetyError(f"a reader got record {record.sequence} after {len(self.seen)}")
            self.seen.append(_plain(record))
            self.take_in(record)
        self._life.time.later(self._life.draw.randrange(300_000_000), self.poll)

    def take_in(self, record: Record) -> None:
        """Do something with the record."""


class Follower(Reader):
    """Re-applies the log and keeps snapshots."""

    def __init__(self, life: "Life") -> None:
        self._recovered = start_from((), 0)
        super().__init__(life)

    def take_in(self, record: Record) -> None:
        """Apply it, and now and then keep the state."""
        self._recovered = reapply(self._recovered, record)
        if self._life.draw.random() < 0.1:
            self._life.snapshots.insert(0, snapshot_of(self._recovered))
            del self._life.snapshots[2:]


class Life:
    """One life, drawn by its seed. `tell` hears its story."""

    def __init__(
        self,
        seed: int,
        tell: Callable[[str], None] = lambda _: None,
        make_disk: MakeDisk = SimulatedDisk,
        make_desk: Callable[[], Desk] = DeskOfLives,
    ) -> None:
        self.draw = random.Random(seed)
        self.time = Time(START_NS)
        self._story = tell
        self.disk = make_disk(self.draw, self.tell)
        self.make_desk = make_desk
        self.segment_max_bytes = self.draw.choice((1_000, 4_000, 1 << 20))
        self.skew_ns = 0
        self.snapshots: list[Snapshot] = []
        self.crashes: Counter[str] = Counter()
        self.cleared = 0
        self.promises: list[_Plain] = []
        self._core: Core | None = None
        self._core = Core(self)
        self._core.first_market()
        self._readers = [Reader(self), Follower(self)]
        self._operator = Operator(self, 0)
        self._clients = [
            *(Client(self, account) for account in (SELLER, SELLER_WEST, BUYER, OTHER_BUYER)),
            self._operator,
        ]

    @property
    def snapshot_sequence(self) -> int:
        """The last record that a snapshot holds: the log may not end below it."""
        return self.snapshots[0].sequence if self.snapshots else 0

    def tell(self, words: str) -> None:
        """Go on with the story."""
        self._story(f"{(self.time.now_ns - START_NS) / SECOND_NS:9.6f} {words}")

    def run(self) -> None:
        """Live it.

        Raises:
            SafetyError, LivenessError: the verdict, where it is not well.
        """
        try:
            self._live()
        except (SafetyError, LivenessError):
            raise
        except Exception as error:
            raise SafetyError(f"the exchange failed: {type(error).__name__}: {error}") from error

    def _live(self) -> None:
        calm_ns = START_NS + self.draw.randrange(SECOND_NS // 2, 4 * SECOND_NS)
        for _ in range(self.draw.randint(0, 8)):
            fault = self.draw.choice(_FAULTS)
            self.time.later(self.draw.randrange(calm_ns - START_NS), partial(fault, self))
        self._until(lambda: self.time.now_ns >= calm_ns, calm_ns + SECOND_NS)
        self.tell("it is calm")
        self.disk.fault, self.disk.crash_after, self.disk.room = "", None, ROOM
        if self.skew_ns:
            self._operator.correct_clock()
        self._until(self._all_is_done, calm_ns + CALM_SECONDS * SECOND_NS)
        if not self._all_is_done():
            raise LivenessError(self._who_waits())
        assert self._core is not None
        self._refuse_broken_promises(self._core)
        self._crash(PowerCutError(), "when all is done")
        self._restart()

    def _until(self, condition: Callable[[], bool], end_ns: int) -> None:
        while not condition() and self.time.now_ns < end_ns:
            try:
                self.time.step()
            except KilledError as crash:
                self._crash(crash, "at an operation of the disk")

    # -- the core and who speaks to it ---------------------------------------------------------------

    def connect(self, client: Client) -> Connection | None:
        """Connect a client, if a core listens."""
        if self._core is None:
            return None
        return Connection(self.time, self.draw, self._core.receive, client.receive, client.cut_heard)

    def told(self, client: Client, command: AnyCommand, record: Record) -> None:
        """Hear what a client was told."""
        known = decoded(record)
        self.tell(f"client {client.account}: record {record.sequence}, {type(known.events[0]).__name__}")
        if known.command != command:
            raise SafetyError(f"record {record.sequence} answered {command}, but holds {known.command}")
        self.promises.append(_plain(record))

    def ended(self, why: str) -> None:
        """Hear that the core ended by itself."""
        self._stop_core(why)

    def _stop_core(self, why: str) -> None:
        self.tell(f"the core ends: {why}")
        if self._core is not None:
            self._core.is_dead = True
            self._core = None
        for client in self._clients:
            client.cut()
        self.time.later(self.draw.randrange(10_000_000, 500_000_000), self._restart)

    def _crash(self, crash: KilledError, why: str) -> None:
        self.disk.crash_after = None
        self.crashes[type(crash).__name__] += 1
        self._stop_core(f"{type(crash).__name__} {why}")
        if isinstance(crash, PowerCutError):
            self.disk.cut_power()
            for reader in self._readers:
                reader.start_again()

    def _restart(self) -> None:
        if self._core is not None:
            return
        try:
            self._core = Core(self)
        except OSError as error:
            self._stop_core(f"stopped while it started: {error}")
            return
        except LogError as error:
            raise SafetyError(f"the log is refused: {error}") from error
        self.tell(f"the core leads from record {self._core.log.last_sequence}")
        self._refuse_broken_promises(self._core)

    # -- what may happen -----------------------------------------------------------------------------

    def _kill(self) -> None:
        self._crash(KilledError(), "between two steps")

    def _cut_power(self) -> None:
        self._crash(PowerCutError(), "between two steps")

    def _crash_in_an_operation(self) -> None:
        self.disk.crash_is_power_cut = self.draw.random() < 0.5
        self.disk.crash_after = self.draw.randrange(12)

    def _fail_disk(self) -> None:
        self.disk.fault = self.draw.choice(("sync", "write"))

    def _fill_disk(self) -> None:
        self.disk.room = LOW_DISK_BYTES - 1
        self.tell("the disk is low")
        self.time.later(self.draw.randrange(SECOND_NS), self._free_disk)

    def _free_disk(self) -> None:
        self.disk.room = ROOM

    def _jump(self) -> None:
        self.skew_ns += self.draw.choice((-1, 1)) * self.draw.randrange(5 * SECOND_NS)
        self.tell(f"the wall clock is off by {self.skew_ns / SECOND_NS:.3f} s")
        self.time.later(self.draw.randrange(SECOND_NS), self._operator.correct_clock)

    def _cut_connections(self) -> None:
        for client in self._clients:
            if self.draw.random() < 0.5:
                client.cut()

    # -- verdicts ------------------------------------------------------------------------------------

    def _all_is_done(self) -> bool:
        return not self._who_waits()

    def _who_waits(self) -> str:
        for client in self._clients:
            if not client.is_done:
                return (
                    f"client {client.account} waits for {list(client.waiting.items())[:1] or 'a connection'}"
                )
        if self._core is None or not self._core.is_idle:
            return "the core has work that it does not do"
        for class_code, hour, _, _ in self._core.sequencer.engine.calls():
            return f"the call in {class_code}, hour {hour}, is not cleared"
        for reader in self._readers:
            if len(reader.seen) < self._core.log.last_sequence:
                return f"a reader waits for record {len(reader.seen) + 1} of {self._core.log.last_sequence}"
        return ""

    def _refuse_broken_promises(self, core: Core) -> None:
        """Look up in the log what was told and seen, and compare the engine with a full replay."""
        records = list(core.log.read(1))
        logged = [_plain(record) for record in records]
        for promise in self.promises:
            if promise not in logged[promise.sequence - 1 : promise.sequence]:
                raise SafetyError(f"record {promise.sequence} was told, and the log has another or none")
        for reader in self._readers:
            if reader.seen != logged[: len(reader.seen)]:
                raise SafetyError(f"a reader saw {len(reader.seen)} records, and the log has others or fewer")
        done: Counter[object] = Counter()
        self.cleared = 0
        whole = start_from((), 0)
        for record in records:
            whole = reapply(whole, record)
            known = decoded(record)
            self.cleared += any(isinstance(event, CallCleared) for event in known.events)
            if isinstance(known.command, EnterOrder) and isinstance(known.events[0], OrderAccepted):
                done[known.command.account, known.command.client_order_id] += 1
            elif isinstance(known.command, OperatorCommand) and not isinstance(known.events[0], Rejected):
                done[bytes(record.command)] += 1
        if twice := [what for what, count in done.items() if count > 1]:
            raise SafetyError(f"{twice} were done more than once")
        whole.engine.check()
        if whole.engine.state_hash() != core.sequencer.engine.state_hash():
            raise SafetyError(f"at record {whole.sequence} the state is not that of a full replay")


_FAULTS = (
    Life._kill,
    Life._cut_power,
    Life._crash_in_an_operation,
    Life._crash_in_an_operation,
    Life._fail_disk,
    Life._fill_disk,
    Life._jump,
    Life._cut_connections,
)


class _Plain(NamedTuple):
    """A record as bytes, to be compared."""

    sequence: int
    time_ns: int
    salt: bytes
    parts: tuple[bytes, ...]


def _plain(record: Record) -> _Plain:
    return _Plain(record.sequence, record.time_ns, record.salt, record.parts)


def _short(command: AnyCommand) -> str:
    fields = ", ".join(
        f"{name}={getattr(command, name)}"
        for name in ("client_order_id", "order_id", "lots", "price_ticks", "hours", "time_in_force")
        if getattr(command, name, None)
    )
    return f"{type(command).__name__}({fields})"


def main() -> int:
    """Live many lives, or one of them and tell its story."""
    parser = argparse.ArgumentParser(prog="make lives", description=main.__doc__)
    parser.add_argument("--seed", type=int, default=None, help="live this one and tell its story")
    parser.add_argument("--budget", type=int, default=LIVES, help="how many lives")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return _judge(arguments.seed, _say)
    first = random.SystemRandom().randrange(10**9)
    began = said = wall.monotonic()
    for count in range(1, arguments.budget + 1):
        if code := _judge(first + count, lambda _: None):
            return code
        if count % 100 == 0:
            # Recovery freezes what it made, for a process that lives on.
            gc.unfreeze()
        now = wall.monotonic()
        if now - said > 5 or count == arguments.budget:
            said = now
            _say(
                f"{count} lives from seed {first + 1}, {60 * count / (now - began):.0f} a minute: all is well"
            )
    return 0


def _judge(seed: int, tell: Callable[[str], None]) -> int:
    try:
        Life(seed, tell).run()
    except SafetyError as broken:
        _say(f"SAFETY is broken: {broken}\nits story: make lives SEED={seed}")
        return 1
    except LivenessError as stuck:
        _say(f"LIVENESS is broken: {stuck}\nits story: make lives SEED={seed}")
        return 2
    return 0


def _say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
