"""`make bench-engine`: operations a second of the engine, beside other matching engines for Python.

Both builds of the engine are made from one copy of the sources. Every contestant is a process of its own on
one and the same core; rounds of all alternate and each one's quickest counts, in processor time: what else
a machine does can only take time. Of memory, the middle round counts.
"""

import argparse
import gc
import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from msgspec.structs import replace

from benchmarks import floor, peers, workloads
from benchmarks.form import Row, report, row
from benchmarks.peers import CANCEL, MARKET, PEERS, REPLACE, Call, Contestant, Operation, measure
from benchmarks.rich import STEP_NS, VALID_NS, VENUE, opening, rich
from exchange import slots
from exchange.engine import Engine
from schemas.codec import decode_command
from schemas.commands import (
    AnyCommand,
    CancelOrder,
    CertifySite,
    EnterOrder,
    OrderType,
    ReplaceOrder,
    Requirement,
    Side,
    TimeInForce,
)
from schemas.events import BlockTraded, Rejected, Traded
from tests.market import AUTHORITY, FIRST_HOUR, START_NS

ROOT = Path(__file__).parent.parent
CACHE = Path(__file__).parent / ".cache"
COPIED = ("schemas", "exchange", "benchmarks", "tests", "setup.py", "pyproject.toml", "README.md", "LICENSE")
NEEDS = Requirement("east", "L4", "E", "S1")
ROUNDS = 5


# -- our engine, as a contestant -------------------------------------------------------------------------


class Ours(Contestant):
    """All checks and events, on slot objects, as commands are inside."""

    def __init__(self) -> None:
        self.engine = Engine()
        self.execute: Callable[[int, object], list[object]] = self.engine.execute
        self.time_ns = START_NS
        for command in opening(VENUE, (("east", "D", "S2"),)):
            events = self.engine.apply(START_NS, command)
            assert not isinstance(events[0], Rejected), events

    def calls(self, operation: Operation) -> list[Call]:
        self.time_ns += STEP_NS
        return [(self.execute, (self.time_ns, slots.taken(command_of(operation, self.time_ns))))]

    def traded(self, results: list[Any]) -> int:
        assert not any(isinstance(events[0], Rejected) for events in results), "an operation was refused"
        return sum(trade.lots for events in results for event in events for trade in trades_inside(event))


class Edge(Ours):
    """The same with the structs of the wire, to and fro."""

    def calls(self, operation: Operation) -> list[Call]:
        self.time_ns += STEP_NS
        return [(self.engine.apply, (self.time_ns, command_of(operation, self.time_ns)))]


class Floor(Ours):
    """The least that an engine of ours has to do."""

    def __init__(self) -> None:
        self.execute = floor.Floor().execute
        self.time_ns = START_NS


class Rich(Ours):
    """Our engine, told commands that no peer knows."""

    def __init__(self) -> None:
        self.engine = Engine()
        for command in opening():
            self.engine.apply(START_NS, command)

    def calls(self, operation: Any) -> list[Call]:
        time_ns, command = operation
        return [(self.engine.execute, (time_ns, slots.taken(decode_command(command))))]


def trades_inside(event: Any) -> Sequence[Any]:
    """Return the trades that an event tells of, in the form of either side of the edge."""
    match event:
        case slots.Traded() | Traded():
            return (event,)
        case slots.BlockTraded() | BlockTraded():
            return event.legs
        case _:
            return ()


def command_of(operation: Operation, time_ns: int) -> AnyCommand:
    """Return the operation as a command; the flow's orders are the engine's, counted from 1."""
    kind, order, is_bid, account, lots, price, filled = operation
    if kind == CANCEL:
        return CancelOrder(account, order + 1)
    if kind == REPLACE:
        return ReplaceOrder(
            account=account,
            order_id=order + 1,
            valid_until_ns=time_ns + VALID_NS,
            lots=filled + lots,
            price_ticks=price,
        )
    market = kind == MARKET
    return EnterOrder(
        account=account,
        client_order_id=f"{order:08}",
        valid_until_ns=time_ns + VALID_NS,
        side=Side.BUY if is_bid else Side.SELL,
        class_code="H100-SXM",
        delivery_hour=FIRST_HOUR,
        lots=lots,
        price_ticks=price,
        order_type=OrderType.MARKET if market else OrderType.LIMIT,
        time_in_force=TimeInForce.IOC if market else TimeInForce.GTC,
        requirement=NEEDS if is_bid else None,
        site=0 if is_bid else account,
        carbon=None if is_bid else "D",
    )


# -- memory, and what it costs when much is open -----------------------------------------------------------

CLASSES, HOURS = 60, 834
"""Over 50,000 contracts."""


def fill_and_time(filling: Iterator[list[Call]], timed: Iterator[list[Call]]) -> dict[str, float]:
    """Return bytes by order that rests after `filling`, and seconds that an operation then takes."""
    gc.set_threshold(100_000, 50, 100)
    gc.collect()
    gc.freeze()
    before, orders = resident_bytes(), 0
    for calls in filling:
        peers.run(calls)
        orders += len(calls)
    gc.collect()
    size = (resident_bytes() - before) / orders
    gc.freeze()
    seconds, operations = 0.0, 0
    while batch := list(itertools.islice(timed, peers.BATCH)):
        calls = [call for one in batch for call in one]
        began = time.process_time()
        peers.run(calls)
        seconds += time.process_time() - began
        operations += len(calls)
    return {"bytes": size, "seconds": seconds / operations}


def resident_bytes() -> int:
    """Return the memory of this process that is in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def one_contract(flow: workloads.Flow) -> dict[str, float]:
    """Measure the simple flow, whose filling may be long."""
    engine = Ours()
    return fill_and_time(
        (engine.calls(operation) for operation in flow.filling),
        (engine.calls(operation) for operation in flow.timed),
    )


def many_contracts() -> dict[str, float]:
    """Measure 50,000 contracts with ten orders each; then two orders trade in each of them."""
    like = VENUE.classes[0]
    classes = tuple(replace(like, code=f"C{n:02}") for n in range(CLASSES))
    engine = Engine()
    seller, buyer = workloads.SELLERS[0], workloads.BUYERS[0]
    for command in opening(replace(VENUE, classes=classes))[: -len(workloads.SELLERS)]:
        engine.apply(START_NS, command)
    for site, one in enumerate(classes, 1):
        certificate = CertifySite(
            site, seller, "east", one.code, 2**30, "D", "S2", 0, FIRST_HOUR + 10_000, authority=AUTHORITY
        )
        engine.apply(START_NS, certificate)
    contracts = [(site, hour) for hour in range(HOURS) for site in range(1, CLASSES + 1)]
    numbers = itertools.count()

    def enter(site: int, hour: int, is_bid: bool, lots: int, price: int) -> list[Call]:
        number = next(numbers)
        operation = (peers.LIMIT, number, is_bid, buyer if is_bid else seller, lots, price, 0)
        time_ns = START_NS + number * 1000
        command = command_of(operation, time_ns)
        assert isinstance(command, EnterOrder)
        command = replace(
            command, class_code=classes[site - 1].code, delivery_hour=FIRST_HOUR - 9 + hour,
            site=0 if is_bid else site,
        )  # fmt: skip
        return [(engine.execute, (time_ns, slots.taken(command)))]

    def filling() -> Iterator[list[Call]]:
        for step in range(1, 6):
            for site, hour in contracts:
                yield enter(site, hour, True, 20, workloads.MIDDLE_TICKS - step)
                yield enter(site, hour, False, 20, workloads.MIDDLE_TICKS + step)

    def timed() -> Iterator[list[Call]]:
        for site, hour in contracts:
            yield enter(site, hour, True, 1, workloads.MIDDLE_TICKS + 1)
            yield enter(site, hour, False, 1, workloads.MIDDLE_TICKS - 1)

    return fill_and_time(filling(), timed())


# -- the contestants' processes ------------------------------------------------------------------------------


def contend(what: str, flow: str) -> dict[str, Any]:
    """Be one contestant of one round."""
    if what == "contracts":
        return many_contracts()
    plan = pickle.loads(Path(flow).read_bytes())
    if what == "size":
        return one_contract(plan)
    return measure({"simple": Ours, "edge": Edge, "floor": Floor, "rich": Rich}[what], *plan[:2])._asdict()


def build_copy(folder: Path) -> None:
    """Copy what the engine and this benchmark are made of, and compile it there."""
    leave = shutil.ignore_patterns("__pycache__", ".cache", "results")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=leave)
        else:
            shutil.copy(ROOT / name, folder / name)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, check=True, cwd=folder, stderr=subprocess.DEVNULL)


def build_floor(copy: Path) -> Path:
    """Compile the bare book with the commands and events, in a copy of a copy; return its folder."""
    folder = copy / "floor"
    shutil.copytree(copy, folder, ignore=shutil.ignore_patterns("floor", "__compiled__", "build"))
    # Empty: what chooses a build of the engine would not have one that lies beside its source.
    for package in ("exchange", "benchmarks"):
        (folder / package / "__init__.py").write_text("")
    command = [
        sys.executable,
        "-m",
        "mypyc",
        "--ignore-missing-imports",
        "exchange/slots.py",
        "benchmarks/floor.py",
    ]
    flags = "-fno-semantic-interposition -fvisibility=hidden"
    environment = {**os.environ, "CFLAGS": flags}
    subprocess.run(command, check=True, cwd=folder, env=environment, capture_output=True)
    return folder


def ours(folder: Path, build: str, what: str, flow: Path | None = None) -> dict[str, Any]:
    """Run our engine in one build."""
    environment = {**os.environ, "CUX_ENGINE": build, "PYTHONPATH": str(folder), "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-m", "benchmarks.engine", "--contend", what, str(flow or "")]
    return _answer(command, folder, environment)


def theirs(python: Path, name: str, flow: Path) -> dict[str, Any]:
    """Run a peer."""
    return _answer(
        [str(python), str(ROOT / "benchmarks" / "peers.py"), name, str(flow)], CACHE, dict(os.environ)
    )


def _answer(command: list[str], folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    told = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder, env=environment)
    if told.returncode:
        raise RuntimeError(f"{' '.join(command)}: {told.stderr}")
    answer: dict[str, Any] = json.loads(told.stdout)
    return answer


def python_of(least: tuple[int, int]) -> str | None:
    """Return a Python of at least this version: this one, or one that is found."""
    if sys.version_info >= least:
        return sys.executable
    names = [f"python3.{minor}" for minor in range(least[1], least[1] + 4)]
    found = [path for name in names if (path := shutil.which(name))]
    installed = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found += [str(path) for name in names for path in sorted(installed.glob(f"*/bin/{name}"))]
    for path in found:
        if subprocess.run([path, "-c", "import venv"], check=False, capture_output=True).returncode == 0:
            return path
    return None


def install_peers() -> dict[str, Path]:
    """Return the Python of each peer that can be had, in an environment of its own, which is kept."""
    pythons: dict[str, Path] = {}
    for name, peer in PEERS.items():
        folder = CACHE / peer.requirement.replace("==", "-")
        python = folder / "bin" / "python"
        if not (folder / "ready").exists():
            base = python_of(peer.python)
            if base is None:
                print(f"{name} is left out: it needs Python {peer.python[0]}.{peer.python[1]}")
                continue
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([base, "-m", "venv", str(folder)], check=True)
            install = [str(python), "-m", "pip", "install", "--quiet", peer.requirement]
            done = subprocess.run(install, check=False, capture_output=True, text=True)
            if done.returncode:
                print(f"{name} is left out: {done.stderr.strip().splitlines()[-1]}")
                continue
            (folder / "ready").touch()
        pythons[name] = python
    return pythons


# -- the benchmark -------------------------------------------------------------------------------------------


def bench_simple(copy: Path, rounds: int) -> list[Row]:
    """Measure the simple flow: both builds, the edge, the bare book, every peer; all trade the same lots."""
    bare = build_floor(copy)
    plan = workloads.simple()
    flow = copy / "simple.pickle"
    flow.write_bytes(pickle.dumps(([tuple(o) for o in plan.filling], [tuple(o) for o in plan.timed])))
    contestants: dict[str, Callable[[], dict[str, Any]]] = {
        "compiled": lambda: ours(copy, "compiled", "simple", flow),
        "interpreted": lambda: ours(copy, "interpreted", "simple", flow),
        "edge": lambda: ours(copy, "compiled", "edge", flow),
        "floor": lambda: ours(bare, "", "floor", flow),
        "floor interpreted": lambda: ours(copy, "interpreted", "floor", flow),
    }
    for name, python in install_peers().items():
        contestants[name] = lambda name=name, python=python: theirs(python, name, flow)  # type: ignore[misc]
    measured: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contend in contestants.items():
            answer = contend()
            assert answer["traded_lots"] == plan.traded_lots, (name, answer, plan.traded_lots)
            measured[name].append(len(plan.timed) / answer["seconds"])
    rate = {name: max(rates) for name, rates in measured.items()}
    best = max((rate[name] for name in PEERS if name in rate), default=None)
    best_pure = max((rate[name] for name, peer in PEERS.items() if peer.pure and name in rate), default=None)
    rows = [
        row("engine.simple.compiled", rate["compiled"], "1/s", best),
        row("engine.simple.interpreted", rate["interpreted"], "1/s", best_pure),
        row("engine.simple.edge", rate["edge"], "1/s", best),
        row("engine.simple.floor.compiled", rate["floor"], "1/s", best),
        row("engine.simple.floor.interpreted", rate["floor interpreted"], "1/s", best_pure),
    ]
    return rows + [row(f"engine.simple.peer.{name}", rate[name], "1/s") for name in PEERS if name in rate]


def bench_rich(copy: Path, rounds: int) -> list[Row]:
    """Measure the rich flow beside the simple one."""
    simple, rich_ = copy / "simple.pickle", copy / "rich.pickle"
    plan = workloads.simple()
    simple.write_bytes(pickle.dumps(([tuple(o) for o in plan.filling], [tuple(o) for o in plan.timed])))
    told = rich()
    rich_.write_bytes(pickle.dumps(tuple([tuple(one) for one in part] for part in told)))
    rates: dict[str, list[float]] = {"simple": [], "rich": []}
    for _ in range(rounds):
        rates["simple"].append(len(plan.timed) / ours(copy, "compiled", "simple", simple)["seconds"])
        rates["rich"].append(len(told[1]) / ours(copy, "compiled", "rich", rich_)["seconds"])
    return [row("engine.rich.compiled", max(rates["rich"]), "1/s", max(rates["simple"]))]


def bench_size(copy: Path, rounds: int) -> list[Row]:
    """Measure memory and cost with 10,000 and 1,000,000 orders in one contract, and with 50,000 contracts."""
    flows = {}
    for resting in (10_000, 1_000_000):
        flows[resting] = copy / f"{resting}.pickle"
        flows[resting].write_bytes(pickle.dumps(workloads.simple(resting, 50_000)))
    few: list[dict[str, float]] = []
    many: list[dict[str, float]] = []
    contracts: list[dict[str, float]] = []
    for _ in range(rounds):
        few.append(ours(copy, "compiled", "size", flows[10_000]))
        many.append(ours(copy, "compiled", "size", flows[1_000_000]))
        contracts.append(ours(copy, "compiled", "contracts"))

    def size(of: list[dict[str, float]]) -> float:
        return median([one["bytes"] for one in of])

    def quickest_ns(of: list[dict[str, float]]) -> float:
        return 1e9 * min(one["seconds"] for one in of)

    few_ns = quickest_ns(few)
    return [
        row("engine.bytes_per_order", size(many), "bytes"),
        row("engine.growth_1m", quickest_ns(many), "ns", few_ns),
        row("engine.contracts_50k.bytes_per_order", size(contracts), "bytes"),
        row("engine.contracts_50k.operation", quickest_ns(contracts), "ns", few_ns),
    ]


PARTS = {"simple": bench_simple, "rich": bench_rich, "size": bench_size}


def main() -> None:
    """Run the benchmark or some of its parts, or, for itself, one contestant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"all, or some of: {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--contend", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contend:
        print(json.dumps(contend(*arguments.contend)))
        return
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"parts {sorted(unknown)}: {', '.join(PARTS)} are allowed")
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        build_copy(Path(folder))
        # Children inherit it: all run on one core.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        rows: list[Row] = []
        for name in arguments.parts or PARTS:
            rows += PARTS[name](Path(folder), arguments.rounds)
    report("engine", rows)


if __name__ == "__main__":
    main()
