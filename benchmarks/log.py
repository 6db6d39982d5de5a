"""`make bench-log`: what it costs to make commands durable, and to make the state of them again.

A real core, compiled, is told the simple flow of `make bench-engine` over its Unix socket. Beside it, in the
same run, a bare loop takes the very batches that the core wrote through the same formats to the same disk,
without an engine, and Postgres inserts a row a command. Rounds of all alternate; the middle one counts.
"""

import argparse
import asyncio
import contextlib
import gc
import io
import itertools
import json
import os
import pickle
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import asyncpg
import msgspec

from benchmarks import workloads
from benchmarks.engine import ROOT, build_copy, command_of
from benchmarks.form import Row, cpu_seconds, percentile, report, row
from benchmarks.rich import VENUE, opening
from benchmarks.workloads import Operation
from exchange.clock import SimulatedClock
from exchange.folder import FORMAT, DataFolder, Settings
from exchange.link import FrameBuffer
from exchange.log import FileLog, batch_at, read_records
from exchange.process import SUPERVISOR
from exchange.recovery import Recovered, recover, snapshot_of
from exchange.sequencer import Sequencer
from exchange.snapshot import Snapshots
from gateway.cli.engine import engine_run
from schemas.codec import decode_command, decode_event, encode
from schemas.commands import AnyCommand
from schemas.events import Rejected
from schemas.link import FRAME_MAX_BYTES, AnyFrame, Busy, Hello, Released, Submit, Welcome, encode_frame
from schemas.records import Record
from settlement.postgres import DATABASE_URL, Postgres
from tests.market import AUTHORITY, START_NS

ROUNDS = 5
RESTING, OPERATIONS = 25_000, 200_000
IN_FLIGHT = 4_000
RATES = (1_000, 5_000, 10_000, 20_000)
RATE_SECONDS = 4
ALONE = 1_000
"""So many records are appended and synced one by one: the least that any delay can be."""
INSERTS, CONNECTIONS = 4_000, 32
SNAPSHOT_FLOW = (250_000, 750_000)
"""What rests, and what follows, before the snapshot is made: the flow lets the book shrink."""
BATCH = 1_000
START_SECONDS = 120.0
SITES = (("east", "D", "S2"),)


# -- the core, and who talks to it -----------------------------------------------------------------------


def new_folder(path: Path) -> DataFolder:
    """Return the data folder of a new exchange, whose simulated time stands."""
    folder = DataFolder(path)
    folder.create(
        Settings(
            format=FORMAT,
            origin="bench.example/log",
            venue=VENUE,
            venue_key=bytes(32),
            operator_keys=(AUTHORITY.key,),
            clock_speed=1,
            start_ns=START_NS,
        )
    )
    return folder


def opening_commands() -> list[AnyCommand]:
    """Return what opens the market: accounts, money, sites. The core opens the era itself."""
    return list(opening(VENUE, SITES))[1:]


@contextlib.contextmanager
def core(copy: Path, folder: DataFolder) -> Iterator["Link"]:
    """Run a core of the copy in the folder, and yield a link to it."""
    command = [sys.executable, "-m", "exchange.core", str(folder.path)]
    environment = {**child_environment(copy), SUPERVISOR: str(os.getpid())}
    process = subprocess.Popen(command, cwd=copy, env=environment)
    try:
        yield Link(folder.core_socket, process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def child_environment(copy: Path) -> dict[str, str]:
    """Return the environment of a process that runs the copy, compiled."""
    return {**os.environ, "CUX_ENGINE": "compiled", "PYTHONPATH": str(copy), "PYTHONHASHSEED": "0"}


class Link:
    """A client of the core that does little itself."""

    def __init__(self, path: Path, process: "subprocess.Popen[bytes]") -> None:
        """Return when the core has said welcome."""
        self.pid = process.pid
        self._socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + START_SECONDS
        while self._socket.connect_ex(str(path)):
            assert process.poll() is None, "the core ended"
            assert time.monotonic() < deadline, "the core is not ready"
            time.sleep(0.005)
        self._buffer = FrameBuffer(FRAME_MAX_BYTES)
        self.send([encode_frame(Hello(records=False))])
        (welcome,) = self.receive()
        assert isinstance(welcome, Welcome)

    def send(self, frames: Sequence[bytes]) -> None:
        self._socket.sendall(b"".join(frames))

    def receive(self) -> list[AnyFrame]:
        """Return the frames that came, once something has."""
        data = self._socket.recv(1 << 20)
        assert data, "the core is gone"
        return list(self._buffer.frames(data))

    def is_ready(self, seconds: float) -> bool:
        """Say whether something came, at the latest after so many seconds."""
        return bool(select.select([self._socket], [], [], seconds)[0])


def closed_loop(link: Link, frames: Sequence[bytes]) -> float:
    """Have the commands made durable, many in flight; return the seconds it took."""
    began = time.perf_counter()
    link.send(frames[:IN_FLIGHT])
    sent, answered = IN_FLIGHT, 0
    while answered < len(frames):
        new = 0
        for frame in link.receive():
            assert isinstance(frame, Released), frame
            new += len(frame.correlations)
        answered += new
        if sent < len(frames):
            link.send(frames[sent : sent + new])
            sent += new
    return time.perf_counter() - began


def open_loop(link: Link, frames: Sequence[bytes], first: int, rate: int) -> list[float] | None:
    """Send the commands, numbered from `first`, at a rate; return their delays in seconds.

    A delay counts from when the command was to be sent, so that one who is late hides nothing. None says
    that the core was too slow for the rate.
    """
    began = time.perf_counter() + 0.05
    delays: list[float] = []
    sent, is_busy = 0, False
    while len(delays) < len(frames):
        now = time.perf_counter()
        due = min(len(frames), int((now - began) * rate) + 1) if now >= began else 0
        if due > sent:
            link.send(frames[sent:due])
            sent = due
        wait = began + sent / rate - time.perf_counter() if sent < len(frames) else 1.0
        if link.is_ready(max(wait, 0.0)):
            came = link.receive()
            now = time.perf_counter()
            for frame in came:
                assert isinstance(frame, Released | Busy), frame
                is_busy |= isinstance(frame, Busy)
                numbers = frame.correlations if isinstance(frame, Released) else (frame.correlation,)
                delays += [now - began - (number - first) / rate for number in numbers]
    return None if is_busy else delays


class Plan(NamedTuple):
    """The frames of the flow: those that open the market and fill the book, and those that are timed.

    Correlations count all of them from 1.
    """

    before: list[bytes]
    timed: list[bytes]


def make_plan() -> Plan:
    """Return the simple flow as frames; time stands, so all orders are valid until the same moment."""
    flow = workloads.simple(RESTING, OPERATIONS)
    numbers = itertools.count(1)
    before = opening_commands() + [command_of(one, START_NS) for one in flow.filling]
    timed = [command_of(one, START_NS) for one in flow.timed]
    return Plan(*([encode_frame(Submit(next(numbers), one)) for one in part] for part in (before, timed)))


# -- what stands beside it -------------------------------------------------------------------------------


class Batch(NamedTuple):
    """A batch of the core's log: its commands as frames, and what else its records hold."""

    frames: bytes
    records: list[tuple[int, int, bytes, tuple[Any, ...]]]


def batches_of(folder: DataFolder) -> list[Batch]:
    """Return the batches that the core wrote of the timed commands."""
    first = 2 + len(opening_commands()) + RESTING
    found = []
    for path in sorted(folder.log.glob("*.log")):
        data, offset = path.read_bytes(), 0
        while (batch := batch_at(data, offset)) is not None:
            offset = batch.end
            if not batch.size or batch.first_sequence < first:
                continue
            frames, rest = b"", []
            for record in batch.records():
                events = tuple(decode_event(bytes(event)) for event in record.events)
                frames += encode_frame(Submit(record.sequence, decode_command(bytes(record.command))))
                rest.append((record.sequence, record.time_ns, record.salt, events))
            found.append(Batch(frames, rest))
    return found


def bare_loop(batches: Sequence[Batch], path: Path) -> dict[str, Any]:
    """Decode, encode, checksum, append and sync the batches without an engine.

    Returns wall and processor seconds, and the seconds that each of `ALONE` records takes alone.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    log = FileLog(path / "batches")
    # The log's records are numbered from 1.
    shift = batches[0].records[0][0] - 1
    buffer = FrameBuffer(FRAME_MAX_BYTES)
    began, began_cpu = time.perf_counter(), time.process_time()
    for batch in batches:
        records = []
        for frame, (sequence, time_ns, salt, events) in zip(
            buffer.frames(batch.frames), batch.records, strict=True
        ):
            assert isinstance(frame, Submit)
            command = msgspec.Raw(encode(frame.command))
            encoded = tuple([msgspec.Raw(encode(event)) for event in events])
            records.append(Record(sequence - shift, time_ns, salt, command, encoded))
        log.append(records)
    seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    one = records[-1]
    alone = []
    for _ in range(ALONE):
        record = Record(log.last_sequence + 1, one.time_ns, one.salt, one.command, one.events)
        began = time.perf_counter()
        log.append([record])
        alone.append(time.perf_counter() - began)
    log.close()
    return {"seconds": seconds, "cpu": cpu, "alone": alone}


async def insert(connection: dict[str, Any], records: Sequence[Record], connections: int) -> float:
    """Insert a row a record, each committed before the connection's next, and return the seconds it took."""
    links = [await asyncpg.connect(**connection) for _ in range(connections)]
    await links[0].execute(
        "DROP TABLE IF EXISTS records; CREATE TABLE records (sequence bigint PRIMARY KEY, time_ns bigint "
        "NOT NULL, salt bytea NOT NULL, command bytea NOT NULL, events bytea[] NOT NULL)"
    )
    rows = iter([(one.sequence, one.time_ns, one.salt, one.parts[0], list(one.parts[1:])) for one in records])
    prepared = [await link.prepare("INSERT INTO records VALUES ($1, $2, $3, $4, $5)") for link in links]

    async def work(statement: Any) -> None:
        for values in rows:
            await statement.fetch(*values)

    began = time.perf_counter()
    await asyncio.gather(*map(work, prepared))
    seconds = time.perf_counter() - began
    assert await links[0].fetchval("SELECT count(*) FROM records") == len(records)
    for link in links:
        await link.close()
    return seconds


# -- logs made without a core, to start from -------------------------------------------------------------


def build_log(folder: DataFolder, resting: int, operations: int) -> None:
    """Write the log of the simple flow, a millisecond of venue time a command, and a snapshot of its end."""
    flow = workloads.simple(resting, operations)
    log = FileLog(folder.log)
    clock = SimulatedClock(START_NS)
    sequencer = Sequencer(recover(log), clock)
    log.append(sequencer.open_era(folder.settings()))
    log.append(sequencer.take(opening_commands()).records)
    todo: list[Operation] = flow.filling + flow.timed
    for start in range(0, len(todo), BATCH):
        clock.set(START_NS + (start + 1) * 1_000_000, None)
        commands = [command_of(one, clock.now_ns()) for one in todo[start : start + BATCH]]
        log.append(sequencer.take(commands).records)
    last = next(log.read(log.last_sequence))
    Snapshots(folder.snapshots).write(
        snapshot_of(Recovered(sequencer.engine, sequencer.era, last.sequence, at=last))
    )
    log.close()


def timed_recovery(folder: DataFolder) -> dict[str, Any]:
    """Open the log and apply all of it, as a core does that finds no snapshot."""
    began = time.process_time()
    log = FileLog(folder.log)
    recovered = recover(log)
    seconds = time.process_time() - began
    return {"seconds": seconds, "state_hash": recovered.engine.state_hash().hex()}


def timed_engine_run(lines: Path) -> dict[str, Any]:
    """Do what `cux engine run LINES --hash` does, after its imports."""
    printed = io.StringIO()
    began = time.process_time()
    with contextlib.redirect_stdout(printed):
        engine_run(str(lines), state_hash=True, book="", check=False, as_json=True)
    seconds = time.process_time() - began
    return {"seconds": seconds, "state_hash": json.loads(printed.getvalue())["state_hash"]}


def write_lines(folder: DataFolder, lines: Path) -> None:
    """Write the log's commands as lines that `cux engine run` reads."""
    with lines.open("wb") as file:
        for record in read_records(folder.log):
            command = decode_command(bytes(record.command))
            line = {"sequence": record.sequence, "time_ns": record.time_ns, "command": command}
            file.write(msgspec.json.encode(line) + b"\n")


# -- the benchmark ---------------------------------------------------------------------------------------


def contend(copy: Path, what: str, *arguments: object) -> dict[str, Any]:
    """Run one of the contestants below in a process of its own, with the compiled copy."""
    command = [sys.executable, "-m", "benchmarks.log", "--contend", what, *map(str, arguments)]
    told = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, cwd=copy, env=child_environment(copy)
    )
    answer: dict[str, Any] = json.loads(told.stdout)
    return answer


def contestant(what: str, *words: str) -> dict[str, Any]:
    """Be one."""
    path = Path(words[0])
    match what:
        case "bare":
            return bare_loop(pickle.loads(path.read_bytes()), Path(words[1]))
        case "build":
            build_log(new_folder(path), *map(int, words[1:]))
            return {}
        case "recover":
            return timed_recovery(DataFolder(path))
        case _:
            return timed_engine_run(path)


def bench_durable(copy: Path, rounds: int) -> list[Row]:
    """Measure durable commands a second: of a core, of the bare loop, of Postgres."""
    plan = make_plan()
    measured: dict[str, list[float]] = {
        name: [] for name in ("core", "core cpu", "bare", "bare cpu", "one", "many")
    }
    os.environ.pop(DATABASE_URL, None)
    with scratch() as at, Postgres.start(at) as postgres:
        for _ in range(rounds):
            with scratch() as path:
                folder = new_folder(path / "exchange")
                with core(copy, folder) as link:
                    closed_loop(link, plan.before)
                    before = cpu_seconds(link.pid)
                    measured["core"].append(OPERATIONS / closed_loop(link, plan.timed))
                    measured["core cpu"].append((cpu_seconds(link.pid) - before) / OPERATIONS)
                batches = batches_of(folder)
                (path / "batches.pickle").write_bytes(pickle.dumps(batches))
                bare = contend(copy, "bare", path / "batches.pickle", path / "bare")
                answers = [events[0] for batch in batches for *_, events in batch.records]
                count = len(answers)
                # Cancels go first, so a few orders are ended before they would have traded.
                refused = sum(isinstance(answer, Rejected) for answer in answers)
                assert refused < count / 100, f"{refused} commands were refused"
                measured["bare"].append(count / bare["seconds"])
                measured["bare cpu"].append(bare["cpu"] / count)
                records = list(itertools.islice(read_records(folder.log, RESTING), INSERTS))
            for name, connections in (("one", 1), ("many", CONNECTIONS)):
                part = records[: INSERTS // 4] if connections == 1 else records
                seconds = asyncio.run(insert(postgres.connection, part, connections))
                measured[name].append(len(part) / seconds)
    found = {name: median(values) for name, values in measured.items()}
    return [
        row("log.durable", found["core"], "1/s", found["bare"]),
        row("log.durable.processor", 1e6 * found["core cpu"], "us", 1e6 * found["bare cpu"]),
        row("log.durable.postgres", found["core"], "1/s", found["many"]),
        row("log.durable.postgres_1", found["core"], "1/s", found["one"]),
    ]


def bench_delay(copy: Path, rounds: int) -> list[Row]:
    """Measure delays at offered loads, beside a record that is appended and synced alone."""
    plan = make_plan()
    delays: dict[int, list[list[float]]] = {rate: [] for rate in RATES}
    alone: list[list[float]] = []
    gc.disable()
    for _ in range(rounds):
        with scratch() as path:
            folder = new_folder(path / "exchange")
            with core(copy, folder) as link:
                closed_loop(link, plan.before)
                start = 0
                for rate in RATES:
                    frames = plan.timed[start : start + rate * RATE_SECONDS]
                    found = open_loop(link, frames, 1 + len(plan.before) + start, rate)
                    start += len(frames)
                    if found is None:
                        print(f"{rate} commands a second are more than the core takes here: left out")
                        break
                    delays[rate].append(found)
            batch = batches_of(folder)[-1:]
            (path / "batches.pickle").write_bytes(pickle.dumps(batch))
            alone.append(contend(copy, "bare", path / "batches.pickle", path / "bare")["alone"])
    gc.enable()
    rows = []
    for rate, runs in delays.items():
        for name, percent in (("p50", 50), ("p99", 99), ("p999", 99.9)):
            if len(runs) == rounds:
                ours, least = (1e3 * median([percentile(one, percent) for one in of]) for of in (runs, alone))
                rows.append(row(f"log.delay_{name}_{rate}", ours, "ms", least))
    return rows


def bench_recovery(copy: Path, rounds: int) -> list[Row]:
    """Measure how fast a log is applied again, beside `cux engine run` on its commands."""
    rates: dict[str, list[float]] = {"recover": [], "run": []}
    with scratch() as path:
        folder = DataFolder(path / "exchange")
        contend(copy, "build", folder.path, RESTING, OPERATIONS)
        write_lines(folder, path / "lines.jsonl")
        count = sum(1 for _ in read_records(folder.log))
        for _ in range(rounds):
            again, run = contend(copy, "recover", folder.path), contend(copy, "run", path / "lines.jsonl")
            assert again["state_hash"] == run["state_hash"]
            rates["recover"].append(count / again["seconds"])
            rates["run"].append(count / run["seconds"])
    return [row("log.recovery", median(rates["recover"]), "1/s", median(rates["run"]))]


def bench_start(copy: Path, rounds: int) -> list[Row]:
    """Measure how long a core takes to its welcome from a snapshot, beside one with an empty log."""
    large: list[float] = []
    empty: list[float] = []
    with scratch() as path:
        folder = DataFolder(path / "exchange")
        contend(copy, "build", folder.path, *SNAPSHOT_FLOW)
        for number in range(rounds):
            large.append(seconds_to_start(copy, folder))
            empty.append(seconds_to_start(copy, new_folder(path / str(number))))
    return [row("log.start_snapshot", median(large), "s", median(empty))]


def seconds_to_start(copy: Path, folder: DataFolder) -> float:
    """Return how long it takes from starting a core to its welcome."""
    began = time.perf_counter()
    with core(copy, folder):
        return time.perf_counter() - began


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Yield a new folder that the database's user can pass through, on the disk of temporary files."""
    path = Path(tempfile.mkdtemp(prefix="cux-bench-"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path)


PARTS: dict[str, Callable[[Path, int], list[Row]]] = {
    "durable": bench_durable,
    "delay": bench_delay,
    "recovery": bench_recovery,
    "start": bench_start,
}


def main() -> None:
    """Run the benchmark or some of its parts, or, for itself, one contestant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"all, or some of: {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--contend", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contend:
        print(json.dumps(contestant(*arguments.contend)))
        return
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"parts {sorted(unknown)}: {', '.join(PARTS)} are allowed")
    with scratch() as copy:
        build_copy(copy)
        for name in ("settlement", "gateway"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        rows: list[Row] = []
        for name in arguments.parts or PARTS:
            rows += PARTS[name](copy, arguments.rounds)
    report("log", rows)


if __name__ == "__main__":
    main()
