"""Offline matching, through the command line: JSON lines or a log in, events, hash or book out."""

import base64
import gc
import json
import os
import pty
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange.contract import HOUR_NS, symbol
from exchange.engine import Engine
from exchange.folder import DataFolder
from exchange.log import FileLog
from exchange.offline import Line, OfflineError, read_lines
from gateway.cli import main
from gateway.cli.engine import PROGRESS_EVERY, example
from gateway.feeds import book_of
from gateway.state import State
from gateway.venue_setup import init_venue
from schemas.catalogue import check_venue, load_venue
from schemas.codec import encode
from schemas.commands import (
    AnyCommand,
    CancelOrder,
    EnterOrder,
    OpenEra,
    OrderType,
    Requirement,
    Tick,
    TimeInForce,
)
from schemas.events import Rejected, Traded
from schemas.reasons import RejectReason
from schemas.records import SALT_BYTES, Decoded, Record, decoded
from tests.market import CLASS, EAST, FIRST_HOUR, MIDDLE, START_NS, WEST, ask, bid, opening
from tests.small_venue import SMALL_VENUE

README = Path(__file__).parent.parent / "README.md"
CUX = [sys.executable, "-m", "gateway.cli"]
NEAR = Requirement("west", "L1", "C", "S1")
DAY: list[AnyCommand] = [
    *opening(),
    ask(1, EAST, 5, 100),
    ask(2, WEST, 4, 99, carbon="B"),
    ask(3, MIDDLE, 6, 100, display_lots=2),
    ask(4, EAST, 1, 120, delivery_hour=FIRST_HOUR + 1),
    bid(5, 3, 99),
    bid(6, 4, 90),
    bid(7, 2, 90, requirement=NEAR),
    bid(8, 0, 90),
    bid(9, 3, 80, hours=2),
    ask(10, EAST, 2, 100),
    CancelOrder(3, 0, "o6"),
    bid(11, 1, 95),
]
"""A flow with two cells on each side, an iceberg, a block, a refusal, a cancel."""
AT = symbol(CLASS, FIRST_HOUR)


class Said(NamedTuple):
    """What a command said, and its exit code."""

    code: int
    out: str
    error: str


def process(*words: object, given: bytes = b"") -> Said:
    """The command line in a process of its own."""
    command = [*CUX, *map(str, words)]
    done = subprocess.run(
        command, input=given, check=False, capture_output=True, timeout=120, cwd=README.parent
    )
    return Said(done.returncode, done.stdout.decode(), done.stderr.decode())


Cux = Callable[..., Said]


@pytest.fixture
def cux(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Cux]:
    """The command line in this process: the same, and sooner done."""
    threshold = gc.get_threshold()

    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["cux", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, error = capsysbinary.readouterr()
        return Said(int(ended.value.code or 0), out.decode(), error.decode())

    yield run
    gc.set_threshold(*threshold)


def lines_of(commands: Iterable[AnyCommand], time_ns: int = START_NS) -> list[str]:
    return [
        msgspec.json.encode(Line(sequence, time_ns, command)).decode()
        for sequence, command in enumerate(commands, 1)
    ]


def applied() -> Iterator[Decoded]:
    engine = Engine()
    for sequence, command in enumerate(DAY, 1):
        yield Decoded(sequence, START_NS, command, tuple(engine.apply(START_NS, command)))


def told(record: Decoded) -> dict[str, Any]:
    outcome: dict[str, Any] = json.loads(msgspec.json.encode(record))
    del outcome["command"]
    return outcome


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The flow as JSON lines."""
    path = tmp_path_factory.mktemp("day") / "day.jsonl"
    path.write_text("\n".join(lines_of(DAY)) + "\n")
    return path


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    """The folder of an exchange that has taken the flow's orders."""
    folder = DataFolder(tmp_path_factory.mktemp("exchange"))
    init_venue(folder, SMALL_VENUE, "test.example/log", 1, START_NS)
    log = FileLog(folder.log)
    for record in applied():
        events = tuple(msgspec.Raw(encode(event)) for event in record.events)
        command = msgspec.Raw(encode(record.command))
        log.append([Record(record.sequence, record.time_ns, bytes(SALT_BYTES), command, events)])
    log.close()
    return folder


# -- events ----------------------------------------------------------------------------------------------


def test_the_readmes_ten_lines_run_and_give_what_it_shows(tmp_path: Path) -> None:
    section = README.read_text().partition("## Match offline\n")[2].partition("\n## ")[0]
    steps, shown, result = re.findall(r"```\w*\n(.*?)```", section, re.DOTALL)
    path = tmp_path / "day.jsonl"
    first, second = steps.splitlines()
    assert (first, second) == ("cux engine example > day.jsonl", "cux engine run day.jsonl")
    path.write_text(process("engine", "example").out)
    lines, shown_lines = path.read_text().splitlines(), shown.splitlines()
    assert (len(lines), lines[1:]) == (10, shown_lines[1:])
    assert shown_lines[0].endswith(",...}}")
    assert lines[0].startswith(shown_lines[0].removesuffix("...}}"))
    found = process("engine", "run", path)
    assert (found.code, found.error) == (0, "")
    assert found.out.splitlines()[-3:] == result.splitlines()


def test_the_examples_venue_is_whole_and_its_orders_trade_by_price_then_time() -> None:
    engine, trades = Engine(), []
    for line in example():
        if isinstance(line.command, OpenEra):
            assert list(check_venue(line.command.venue)) == []
        for event in engine.apply(line.time_ns, line.command):
            assert not isinstance(event, Rejected), (line, event)
            if isinstance(event, Traded):
                trades.append((event.ask_order_id, event.bid_order_id, event.lots))
    assert trades == [(2, 3, 3), (1, 3, 1), (5, 4, 1)]


def test_plain_orders_in_the_examples_place_are_none_of_them_refused() -> None:
    """As the README says: two traders' limit and market orders, for a day and at the bounds that it names."""
    opening, orders = [*example()][:5], [*example()][5:]
    sell, buy = orders[0].command, orders[2].command
    assert isinstance(sell, EnterOrder)
    assert isinstance(buy, EnterOrder)
    market = {"order_type": OrderType.MARKET, "price_ticks": 0, "time_in_force": TimeInForce.IOC}
    draw = random.Random(1)
    engine, trades, last = Engine(), 0, 0
    for line in opening:
        engine.apply(line.time_ns, line.command)
    for number in range(3000):
        time_ns = number * 29 * 10**9
        terms: dict[str, object] = {"lots": draw.randint(1, 100), "price_ticks": draw.randint(1, 2000)}
        if number % 5 == 0:
            terms |= market
        if number % 500 == 0:
            terms = {"lots": 10**6, "price_ticks": 10**8} | (market if number % 1000 else {})
        order = msgspec.structs.replace(
            draw.choice((sell, buy)), client_order_id=f"o{number}", valid_until_ns=time_ns, **terms
        )
        events = engine.apply(time_ns, order)
        assert not isinstance(events[0], Rejected), (order, events)
        trades += sum(isinstance(event, Traded) for event in events)
        last = time_ns
    assert trades > 1000
    assert last > 23 * HOUR_NS


def test_an_engine_that_is_not_there_is_told_in_one_sentence() -> None:
    done = subprocess.run(
        [*CUX, "version"],
        check=False,
        capture_output=True,
        timeout=120,
        cwd=README.parent,
        env={**os.environ, "CUX_ENGINE": "foo"},
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"cux: CUX_ENGINE is 'foo': compiled or interpreted is allowed\n"


def test_a_line_comes_out_for_each_that_goes_in(cux: Cux, day: Path) -> None:
    found = cux("engine", "run", day)
    assert (found.code, found.error) == (0, "")
    assert [json.loads(line) for line in found.out.splitlines()] == [told(record) for record in applied()]
    assert '"rejected"' in found.out
    assert process("engine", "run", "-", given=day.read_bytes()).out == found.out


def test_empty_lines_are_passed_over_and_the_last_needs_no_end() -> None:
    lines = [line.encode() for line in lines_of(DAY[:3])]
    text = [b"\n", lines[0] + b"\r\n", b"  \n", lines[1] + b"\n", lines[2]]
    assert [line.sequence for line in read_lines("x", text)] == [1, 2, 3]


def test_a_byte_order_mark_before_the_first_line_is_passed_over() -> None:
    lines = [line.encode() + b"\n" for line in lines_of(DAY[:2])]
    assert [line.sequence for line in read_lines("x", [b"\xef\xbb\xbf" + lines[0], lines[1]])] == [1, 2]
    with pytest.raises(OfflineError, match="x, line 2, column 1 "):
        list(read_lines("x", [lines[0], b"\xef\xbb\xbf" + lines[1]]))


def test_an_act_by_a_key_that_is_no_operators_is_refused_by_the_market() -> None:
    lines = lines_of(DAY[:2])
    stranger = base64.b64encode(bytes(32)).decode()
    command = json.loads(lines[1])
    command["command"]["authority"]["key"] = stranger
    (_, line) = read_lines("x", [lines[0].encode(), json.dumps(command).encode()])
    engine = Engine()
    engine.apply(START_NS, DAY[0])
    (event,) = engine.apply(line.time_ns, line.command)
    assert isinstance(event, Rejected)
    assert event.reason is RejectReason.UNKNOWN_OPERATOR


# -- a log -----------------------------------------------------------------------------------------------


def test_a_log_and_the_folder_of_an_exchange_give_the_stored_events(
    cux: Cux, exchange: DataFolder, tmp_path: Path
) -> None:
    log = FileLog(exchange.log)
    stored = [told(decoded(record)) for record in log.read(1)]
    log.close()
    before = {path: path.read_bytes() for path in exchange.path.rglob("*") if path.is_file()}
    # Of the last only the log was copied.
    shutil.copytree(exchange.log, tmp_path / "log")
    for folder in (exchange.path, exchange.log, tmp_path):
        found = cux("engine", "run", folder)
        assert [json.loads(line) for line in found.out.splitlines()] == stored
    assert {path: path.read_bytes() for path in exchange.path.rglob("*") if path.is_file()} == before


def test_the_stored_events_are_compared(cux: Cux, exchange: DataFolder) -> None:
    found = cux("engine", "run", exchange.path, "--check")
    assert (found.code, found.out) == (0, f"{len(DAY)} records, the same events\n")
    assert json.loads(cux("engine", "run", exchange.log, "--check", "--json").out) == {"records": len(DAY)}
    shown = cux("log", "show", "--count", 1000, "--folder", exchange.path).out
    assert process("engine", "run", "-", "--check", given=shown.encode()).out == found.out


def test_the_first_record_whose_events_differ_is_told(cux: Cux, exchange: DataFolder, tmp_path: Path) -> None:
    source, changed = FileLog(exchange.log), FileLog(tmp_path / "log")
    traded = 0
    for record in source.read(1):
        events = list(record.events)
        if len(events) > 1:
            traded = traded or record.sequence
            events[1:] = [msgspec.Raw(encode(Rejected(RejectReason.UNKNOWN_SITE)))]
        changed.append([Record(record.sequence, record.time_ns, record.salt, record.command, tuple(events))])
    source.close()
    changed.close()
    found = cux("engine", "run", tmp_path / "log", "--check")
    assert (found.code, found.out) == (1, "")
    assert found.error.startswith(
        f'cux: {tmp_path}/log, record {traded}: event 2 is {{"type":"traded","trade_id":1,'
    )
    assert '} by this engine, and was {"type":"rejected","reason":' in found.error
    assert found.error.count("\n") == 1


def test_lines_without_events_have_nothing_to_compare(cux: Cux, day: Path) -> None:
    found = cux("engine", "run", day, "--check")
    assert (found.code, found.out) == (1, "")
    assert found.error.startswith(f"cux: {day}, record 1: no events; ")


def test_a_damaged_log_is_refused_with_its_place(exchange: DataFolder, tmp_path: Path) -> None:
    (segment,) = exchange.log.glob("*.log")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / segment.name).write_bytes(data)
    found = process("engine", "run", tmp_path, "--hash")
    assert (found.code, found.out) == (1, "")
    assert f"{segment.name} is damaged at byte" in found.error


# -- hash and book ---------------------------------------------------------------------------------------


def test_the_hash_is_the_engines_and_stands_alone(cux: Cux, day: Path, exchange: DataFolder) -> None:
    engine = Engine()
    for command in DAY:
        engine.apply(START_NS, command)
    digest = engine.state_hash().hex()
    assert cux("engine", "run", day, "--hash").out == f"{digest} {len(DAY)}\n"
    found = json.loads(cux("engine", "run", day, "--hash", "--json").out)
    assert found == {"sequence": len(DAY), "state_hash": digest}
    verified = json.loads(cux("log", "verify", "--folder", exchange.path, "--json").out)
    assert cux("engine", "run", exchange.path, "--hash").out == f"{verified['state_hash']} {len(DAY)}\n"


def test_the_book_is_the_one_that_the_gateway_would_show(cux: Cux, day: Path) -> None:
    state = State()
    for record in applied():
        state.apply(record)
    expected = json.loads(msgspec.json.encode(book_of(state, (CLASS, FIRST_HOUR))))
    found = json.loads(cux("engine", "run", day, "--book", AT).out)
    for book in (expected, found):
        # Cells of the same price are in no order.
        for side in ("bids", "asks"):
            assert book[side]
            prices = [float(row["price"]) for row in book[side]]
            assert all(a >= b if side == "bids" else a <= b for a, b in pairwise(prices))
            book[side].sort(key=json.dumps)
    assert found == expected
    assert len({json.dumps(row["cell"]) for row in found["bids"]}) == 2
    assert found["phase"] == "continuous"


def test_an_empty_book_is_empty_and_a_past_one_closed(cux: Cux, day: Path) -> None:
    empty = json.loads(cux("engine", "run", day, "--book", symbol("T4", FIRST_HOUR)).out)
    assert (empty["phase"], empty["bids"], empty["asks"]) == ("continuous", [], [])
    late = Line(len(DAY) + 1, FIRST_HOUR * HOUR_NS, Tick())
    given = day.read_bytes() + msgspec.json.encode(late)
    closed = json.loads(process("engine", "run", "-", "--book", AT, given=given).out)
    assert (closed["phase"], closed["bids"], closed["asks"]) == ("closed", [], [])
    assert closed["seq"] == len(DAY) + 1


def test_a_contract_that_is_none_is_refused(cux: Cux, day: Path) -> None:
    wrong = cux("engine", "run", day, "--book", "H100")
    assert (wrong.code, wrong.out) == (2, "")
    assert "a UTC hour are wanted" in " ".join(wrong.error.replace("│", " ").split())
    unknown = cux("engine", "run", day, "--book", "H900.20261124T14")
    assert (unknown.code, unknown.out) == (1, "")
    assert unknown.error == "cux: contract H900.20261124T14: a contract of H100-SXM, T4 is allowed\n"
    far = cux("engine", "run", day, "--book", "H100-SXM.20301124T14")
    assert (far.code, far.out) == (1, "")
    last = symbol(CLASS, START_NS // HOUR_NS + SMALL_VENUE.horizon_hours)
    assert far.error == (
        f"cux: contract H100-SXM.20301124T14: not listed at the end; up to {last} is allowed\n"
    )
    assert json.loads(cux("engine", "run", day, "--book", last).out)["phase"] == "continuous"
    both = cux("engine", "run", day, "--book", AT, "--hash")
    assert (both.code, both.out) == (2, "")


def on_a_terminal(words: list[str], given: bytes, descriptor: str) -> tuple[int, str]:
    """Run with a terminal for stdout or stderr, nothing else, and return what it showed."""
    ours, theirs = pty.openpty()
    streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, descriptor: theirs}
    with subprocess.Popen([*CUX, *words], stdin=subprocess.PIPE, cwd=README.parent, **streams) as child:
        os.close(theirs)
        child.communicate(given, timeout=120)
    shown = b""
    try:
        while data := os.read(ours, 1 << 16):
            shown += data
    except OSError:  # how a terminal says that nobody is there any more
        pass
    os.close(ours)
    return child.returncode, shown.decode()


def test_the_book_is_a_table_on_a_terminal(day: Path) -> None:
    code, shown = on_a_terminal(["engine", "run", str(day), "--book", AT], b"", "stdout")
    assert code == 0
    assert "bid cell" in shown
    assert "west L1 C S1" in shown
    assert "{" not in shown


# -- long input ------------------------------------------------------------------------------------------


def ticks(count: int) -> bytes:
    first = lines_of(DAY[:1], 0)[0]
    rest = [
        f'{{"sequence":{number},"time_ns":0,"command":{{"type":"tick"}}}}' for number in range(2, count + 1)
    ]
    return "\n".join([first, *rest]).encode()


def most_memory(given: Path) -> int:
    # Asked of a process between: what a child inherits from a large parent counts as its own.
    script = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[2:], stdin=open(sys.argv[1]), stdout=subprocess.DEVNULL, check=True)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"
    )
    words = [sys.executable, "-c", script, str(given), *CUX, "engine", "run", "-"]
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=120, cwd=README.parent)
    return int(done.stdout)


def test_long_input_takes_no_more_memory_than_short(tmp_path: Path) -> None:
    used = []
    for count in (10, 100_000):
        path = tmp_path / str(count)
        path.write_bytes(ticks(count))
        used.append(most_memory(path))
    # To keep the lines would take 20 MB.
    assert used[1] - used[0] < 6_000_000


def test_long_input_tells_on_a_terminal_how_far_it_is() -> None:
    code, shown = on_a_terminal(["engine", "run", "-"], ticks(PROGRESS_EVERY + 10), "stderr")
    assert (code, shown) == (0, f"\r{PROGRESS_EVERY} commands\r\033[K")
    code, shown = on_a_terminal(["engine", "run", "-"], ticks(1000), "stderr")
    assert (code, shown) == (0, "")


def test_a_reader_that_has_enough_ends_it_quietly(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(ticks(20_000))
    with subprocess.Popen(
        [*CUX, "engine", "run", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=README.parent
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert json.loads(child.stdout.readline())["sequence"] == 1
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == 1


# -- eras ------------------------------------------------------------------------------------------------


def test_the_era_of_a_catalogue_opens_the_input(cux: Cux) -> None:
    line = cux("engine", "era", "--venue", "europe", "--time-ns", 5).out
    found = msgspec.json.decode(line, type=Line)
    assert (found.sequence, found.time_ns) == (1, 5)
    assert found.command.venue == load_venue("europe")  # type: ignore[union-attr]
    assert process("engine", "run", "-", given=line.encode()).out == (
        '{"sequence":1,"time_ns":5,"events":[{"type":"era_opened"}]}\n'
    )
    assert "china, europe" in cux("engine", "era", "--venue", "atlantis").error


def test_a_venue_whose_parts_do_not_fit_is_refused() -> None:
    line = json.loads(lines_of(DAY[:1])[0])
    line["command"]["venue"]["round_trips"][1]["a"] = "middel"
    with pytest.raises(OfflineError) as wrong:
        list(read_lines("x", [json.dumps(line).encode()]))
    assert str(wrong.value) == (
        "x, line 1, command.venue.round_trips[1].a: found middel; "
        "allowed: the code of a zone; did you mean middle?"
    )


# -- faults ----------------------------------------------------------------------------------------------

ENTER = json.loads(lines_of([bid(1, 1, 100)])[0])["command"]
TYPES = "open_era, tick, register_account, register_key, deposit, withdraw, "


def second(**command: object) -> str:
    return json.dumps({"sequence": 2, "time_ns": START_NS, "command": command})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("buy 5 @ 10", "column 1 'buy 5 @ 10': JSON is allowed (invalid character)"),
        ('{"sequence":2,}', "column 15 '}': JSON is allowed (trailing comma in object)"),
        ('{"sequence":2', """'{"sequence":2': JSON is allowed (Input data was truncated)"""),
        ("[]", "the line []: object is allowed"),
        ('{"sequenc":2}', "field 'sequenc': sequence, time_ns, command, events are allowed; "
                          "did you mean sequence?"),
        ('{"sequence":2,"time_ns":5}', "field 'command': missing, it is required"),
        ('{"sequence":"2"}', 'sequence "2": int is allowed'),
        ('{"sequence":2,"time_ns":-1}', "time_ns -1: int >= 0 is allowed"),
        (second(), "command, field 'type': missing, it is required"),
        (second(type="enter_ordr"), f'command.type "enter_ordr": {TYPES}'),
        (second(type="enter_ordr"), "post_settlement are allowed; did you mean enter_order?"),
        (second(type=5), "command.type 5: str is allowed"),
        (second(**{**ENTER, "lotz": 5}), "command, field 'lotz': type, account, client_order_id, "),
        (second(**{**ENTER, "lotz": 5}), "min_hours are allowed; did you mean lots?"),
        (second(type="cancel_order"), "command, field 'account': missing, it is required"),
        (second(**{**ENTER, "side": "byu"}), 'command.side "byu": buy, sell are allowed; did you mean buy?'),
        (second(**{**ENTER, "lots": 2**63}), f"command.lots {2**63}: int <= {2**63 - 1} is allowed"),
        (second(**{**ENTER, "price_ticks": 9.5}), "command.price_ticks 9.5: int is allowed"),
        (second(**{**ENTER, "client_order_id": "é"}), "str of printable ASCII in client_order_id is allowed"),
        (second(**{**ENTER, "client_order_id": ""}), 'command.client_order_id "": str of length >= 1 is'),
        (second(**{**ENTER, "requirement": {"zone": 5}}), "command.requirement.zone 5: str is allowed"),
        (second(**{**ENTER, "requirement": {"zones": "x"}}), "command.requirement, field 'zones': zone, "),
        (second(type="register_key", account=1, key="AAAA", scopes=[]),
         'command.key "AAAA": base64 is allowed, of 32 to 32 bytes'),
        (second(type="register_key", account=1, key="no!", scopes=[]),
         'command.key "no!": base64 is allowed'),
        (second(type="propose_clearing", class_code="T4", delivery_hour=1, fills=[[1, 2, "x"]], prices=[]),
         'command.fills[0][2] "x": int is allowed'),
        ('{"sequence":3,"time_ns":5,"command":{"type":"tick"}}', "sequence 3: 2 is allowed"),
        ('{"sequence":1,"time_ns":5,"command":{"type":"tick"}}', "sequence 1: 2 is allowed"),
        ('{"sequence":2,"time_ns":5,"command":{"type":"tick"}}',
         f"time_ns 5: {START_NS} or later is allowed, time does not run backwards"),
        ("[" * 100_000, "[[["),
        ('{"sequence":' + "[" * 100_000, "JSON is allowed (maximum recursion depth exceeded"),
    ],
)  # fmt: skip
def test_a_fault_names_line_field_value_and_what_is_allowed(text: str, fault: str) -> None:
    lines = [lines_of(DAY[:1])[0].encode() + b"\n", b"\n", text.encode()]
    with pytest.raises(OfflineError) as wrong:
        list(read_lines("orders.jsonl", lines))
    assert str(wrong.value).startswith("orders.jsonl, line 3, ")
    assert fault in str(wrong.value)
    assert "\n" not in str(wrong.value)
    assert len(str(wrong.value)) < 900


def test_a_field_given_twice_is_read_without_a_crash() -> None:
    text = b'{"sequence":1,"time_ns":0,"command":{"type":"tick","lots":1,"type":"unheard"}}'
    with pytest.raises(OfflineError, match=r"^x, line 1, command, field 'lots': each field once "):
        list(read_lines("x", [text]))


@settings(max_examples=300)
@given(st.data())
def test_a_spoiled_line_is_a_fault_and_nothing_else(data: st.DataObject) -> None:
    text = bytearray(lines_of([data.draw(st.sampled_from(DAY[1:]))])[0].encode())
    at = data.draw(st.integers(0, len(text) - 1))
    text[at : at + data.draw(st.integers(0, 12))] = data.draw(
        st.sampled_from(
            [b"", b"null", b"{}", b"[", b"9" * 5000, b"1.5", b"1e400", b'"x"', b'"a":1,', b"\xff"]
        )
    )
    with pytest.raises(OfflineError):
        list(read_lines("x", [lines_of(DAY[:1])[0].encode(), bytes(text)]))


def test_bytes_that_are_no_text_are_a_fault() -> None:
    text = lines_of([CancelOrder(3, 0, "zzz")])[0].encode().replace(b"zzz", b"\xff\xfe")
    with pytest.raises(OfflineError, match=r"^x, line 1, .*JSON is allowed"):
        list(read_lines("x", [text]))


def test_open_era_comes_first() -> None:
    with pytest.raises(OfflineError) as wrong:
        list(read_lines("x", [lines_of([Tick()])[0].encode()]))
    assert str(wrong.value) == "x, line 1, command.type 'tick': open_era is allowed, it is always the first"


def test_what_came_before_a_fault_was_written(day: Path, tmp_path: Path) -> None:
    path = tmp_path / "wrong.jsonl"
    path.write_text("\n".join(day.read_text().splitlines()[:4]) + "\norders\n")
    found = process("engine", "run", path)
    assert found.code == 1
    assert [json.loads(line)["sequence"] for line in found.out.splitlines()] == [1, 2, 3, 4]
    assert found.error == f"cux: {path}, line 5, column 1 'orders': JSON is allowed (invalid character)\n"


def test_input_that_is_not_there_is_one_sentence(cux: Cux, tmp_path: Path) -> None:
    said = cux("engine", "run", tmp_path / "none")
    assert (said.code, said.out) == (1, "")
    assert said.error == f"cux: {tmp_path}/none: not there; JSON lines, a log folder or - is allowed\n"
    said = cux("engine", "run", tmp_path)
    assert (said.code, said.out) == (1, "")
    assert said.error.startswith(f"cux: {tmp_path}: no log; ")
    said = process("engine", "run", "-")
    assert (said.code, said.out) == (1, "")
    assert said.error == "cux: -: no command; open_era is wanted first\n"


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory() -> None:
    said = process("engine", "run", "/dev/zero")
    assert (said.code, said.out) == (1, "")
    assert said.error == "cux: /dev/zero, line 1, 16777216 bytes: at most 16777216 in a line are allowed\n"
