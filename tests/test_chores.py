"""What the sequencer does of its own: retries, listings, ends of calls; and the core, clearings."""

import asyncio
import contextlib
import gc
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from exchange.clearer import CallTerms, Clearer, ClearerLostError, Clearing, prices_of, solve, terms_of
from exchange.clock import SECOND_NS
from exchange.contract import HOUR_NS, symbol
from exchange.core import OWN_COMMANDS, Core
from exchange.engine import Engine
from exchange.folder import DataFolder, Settings
from exchange.link import CoreLink
from exchange.log import FileLog, Log, LogReader, read_records
from exchange.recovery import recover
from exchange.sequencer import CHORES_MAX, Sequencer
from gateway.state import State
from schemas.commands import (
    AnyCommand,
    CancelOrder,
    EndCall,
    EnterOrder,
    EnterStandingOffer,
    HaltContract,
    ListStandingOffer,
    ProposeClearing,
    ReplaceStandingOffer,
    ResumeContract,
    RetryBlock,
    Tick,
    TimeInForce,
)
from schemas.events import BlockTraded, CallCleared, OrderAccepted, OrderListed, Phase, Rejected, Traded
from schemas.link import LENGTH
from schemas.reasons import RejectReason
from schemas.records import Decoded, Record, decoded
from schemas.venue import Venue
from tests.exchange_fixture import until
from tests.market import (
    AUTHORITY,
    BUYER,
    CLASS,
    EAST,
    FIRST_HOUR,
    OPERATOR_KEY,
    START_NS,
    VENUES,
    Market,
    ask,
    bid,
    opening,
)
from tests.small_venue import SMALL_VENUE
from tests.test_core import CoreProcess, make_folder

COLLECTOR = gc.get_threshold()
CALL_LEAST_NS = SMALL_VENUE.calls.min_seconds * SECOND_NS
CALL_MOST_NS = SMALL_VENUE.calls.max_seconds * SECOND_NS
MANY = replace(
    SMALL_VENUE,
    limits=replace(SMALL_VENUE.limits, open_orders_max=2000, resting_blocks_max=2000),
)
"""The small venue without its small bounds of open orders and resting blocks."""


class MemoryLog:
    """A log that is as durable as the test. Nobody follows it."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    @property
    def last_sequence(self) -> int:
        return len(self.records)

    def append(self, records: Sequence[Record]) -> None:
        assert [r.sequence for r in records] == list(
            range(len(self.records) + 1, len(self.records) + len(records) + 1)
        )
        self.records += records

    def seal(self) -> None:
        pass

    def read(self, first: int) -> Iterator[Record]:
        yield from self.records[first - 1 :]

    def follow(self, first: int) -> LogReader:
        raise AssertionError

    def free_bytes(self) -> int:
        return 2**62

    def close(self) -> None:
        pass


class SetClock:
    """Shows what it is set to."""

    speed = 0
    simulated = True
    parted_ns = 0

    def correct(self) -> None:
        pass

    def __init__(self) -> None:
        self.time_ns = START_NS

    def now_ns(self) -> int:
        return self.time_ns


class Desk:
    """A sequencer with its log and a clock that the test sets."""

    def __init__(
        self, venue: Venue = SMALL_VENUE, log: Log | None = None, below: Callable[[int], int] = lambda _: 0
    ) -> None:
        self.log = log or MemoryLog()
        self.clock = SetClock()
        self.draws: list[int] = []
        self.below = below
        settings = Settings(
            format=1,
            origin="test.example/small",
            venue=venue,
            venue_key=bytes(32),
            operator_keys=(OPERATOR_KEY,),
            clock_speed=1,
            start_ns=START_NS,
        )
        self.restart()
        self.log.append(self.sequencer.open_era(settings))
        self.give(*opening(venue)[1:])

    def restart(self) -> None:
        """Begin again with what the log holds, on the same clock."""
        self.sequencer = Sequencer(recover(self.log), self.clock, secrets.token_bytes, self._draw)
        self.clock.time_ns = max(self.clock.time_ns, self.sequencer.engine.time_ns)

    def _draw(self, bound: int) -> int:
        self.draws.append(bound)
        return self.below(bound)

    def give(self, *commands: AnyCommand) -> list[Decoded]:
        """Take one batch, append it, and return it."""
        records, answers = self.sequencer.take(commands)
        if records:
            self.log.append(records)
        self.engine.check()
        batch = [decoded(record) for record in records]
        assert [batch[place].command for place in answers] == list(commands)
        return batch

    def settle(self) -> list[Decoded]:
        """Take batches without commands until nothing is due, and return their records."""
        found: list[Decoded] = []
        while (due := self.sequencer.next_due_ns()) is not None and due <= self.clock.time_ns:
            batch = self.give()
            assert batch, "due, and nothing done"
            found += batch
        return found

    @property
    def engine(self) -> Engine:
        return self.sequencer.engine

    def phase(self) -> Phase:
        return self.engine.phase(CLASS, FIRST_HOUR)

    def clearing(self) -> ProposeClearing:
        """The right clearing of the first hour, found as the helper does."""
        found = solve(terms_of(self.engine, CLASS, FIRST_HOUR))
        return ProposeClearing(CLASS, FIRST_HOUR, found.fills, prices_of(self.engine, found))


def kinds(records: Iterable[Decoded]) -> list[type]:
    return [type(record.command) for record in records]


def assert_reapplied(records: Iterable[Record], state: bytes) -> None:
    """The log, applied from its beginning, gives its own events and this state."""
    engine = Engine()
    for record in records:
        known = decoded(record)
        assert tuple(engine.apply(known.time_ns, known.command)) == known.events
    assert engine.state_hash() == state


def offer(hours: int, first: int = FIRST_HOUR) -> AnyCommand:
    """A standing ask of one GPU at site 1."""
    words = f"standing ask {EAST} 1 @ 100 at {first - FIRST_HOUR} until {first - FIRST_HOUR + hours}"
    return Market().command(words.split())


def halt(hour: int = FIRST_HOUR, nth: int = 0) -> HaltContract:
    return HaltContract(CLASS, hour, authority=replace(AUTHORITY, signed_ns=START_NS + nth))


def resume(hour: int = FIRST_HOUR, nth: int = 0) -> ResumeContract:
    return ResumeContract(CLASS, hour, authority=replace(AUTHORITY, signed_ns=START_NS + nth))


def blocks(count: int) -> list[EnterOrder]:
    """Bids for two hours, without any ask to meet."""
    return [bid(n, 1, 100, hours=2) for n in range(count)]


def in_a_call(desk: Desk, *orders: EnterOrder) -> list[int]:
    """Halt and resume the first hour, enter the orders, and return their ids."""
    desk.give(halt(), resume())
    ids = []
    for record in desk.give(*orders):
        (event, *_) = record.events
        assert isinstance(event, OrderAccepted)
        ids.append(event.order_id)
    return ids


# -- chores ------------------------------------------------------------------------------------------------


def test_chores_follow_the_command_that_caused_them_at_its_time() -> None:
    desk = Desk()
    desk.clock.time_ns += 5
    batch = desk.give(bid(1, 1, 50), offer(30), bid(2, 1, 60))
    assert kinds(batch) == [
        EnterOrder,
        EnterStandingOffer,
        ListStandingOffer,
        ListStandingOffer,
        EnterOrder,
    ]
    assert {record.time_ns for record in batch} == {START_NS + 5}
    listed = [event for record in batch for event in record.events if isinstance(event, OrderListed)]
    assert [event.order.delivery_hour for event in listed] == list(range(FIRST_HOUR, FIRST_HOUR + 30))
    assert desk.settle() == []


def test_what_is_left_of_many_chores_waits_for_batches_with_members_commands_between() -> None:
    desk = Desk(MANY)
    in_a_call(desk, *blocks(250))
    desk.clock.time_ns += CALL_MOST_NS
    first = desk.give(bid(1000, 1, 1))
    assert kinds(first) == [Tick] + [RetryBlock] * CHORES_MAX + [EnterOrder]
    assert desk.sequencer.next_due_ns() == desk.clock.time_ns
    second = desk.give(bid(1001, 1, 1))
    assert kinds(second) == [RetryBlock] * CHORES_MAX + [EnterOrder]
    assert kinds(desk.settle()) == [RetryBlock] * 50
    commands = [record.command for record in map(decoded, desk.log.read(1))]
    tried = [command.order_id for command in commands if isinstance(command, RetryBlock)]
    assert len(set(tried)) == len(tried) == 250


def test_a_retry_that_another_made_needless_is_not_given() -> None:
    desk = Desk()
    desk.give(halt(), resume(), halt(FIRST_HOUR + 1), resume(FIRST_HOUR + 1))
    # Two alternatives, whose hours all become continuous at once: the first to trade ends the other.
    desk.give(*(bid(n, 1, 100, hours=2, delivery_hour=FIRST_HOUR + n, exclusive_group="g") for n in (0, 1)))
    desk.give(*(ask(10 + n, EAST, 1, 90, delivery_hour=FIRST_HOUR + n) for n in (0, 1, 2)))
    desk.clock.time_ns += CALL_MOST_NS
    batch = desk.settle()
    assert kinds(batch) == [Tick, RetryBlock]
    assert any(isinstance(event, BlockTraded) for event in batch[1].events)


def test_a_block_whose_hours_become_continuous_is_tried_and_trades() -> None:
    desk = Desk()
    asks = [ask(10 + n, EAST, 1, 90, delivery_hour=FIRST_HOUR + n) for n in (0, 1)]
    in_a_call(desk, bid(1, 1, 100, hours=2), *asks)
    desk.clock.time_ns += CALL_LEAST_NS
    batch = desk.settle()
    assert kinds(batch) == [EndCall, RetryBlock]
    assert any(isinstance(event, BlockTraded) for event in batch[1].events)


def test_an_offers_next_hours_are_listed_when_they_enter_the_horizon_without_a_command() -> None:
    desk = Desk(VENUES["short"])
    last = START_NS // HOUR_NS + VENUES["short"].horizon_hours
    desk.give(offer(4, last))
    due = desk.sequencer.next_due_ns()
    assert due == START_NS + HOUR_NS
    desk.clock.time_ns = due
    batch = desk.settle()
    assert kinds(batch) == [Tick, ListStandingOffer]
    (listed,) = [event for event in batch[1].events if isinstance(event, OrderListed)]
    assert listed.order.delivery_hour == last + 1


def test_an_offer_replaced_after_its_last_hour_is_shown_as_one_that_lists_again() -> None:
    desk, state, shown = Desk(), State(), []
    change = ReplaceStandingOffer(account=1, offer_id=1, valid_until_ns=START_NS, lots=2, price_curve=(101,))
    desk.give(offer(30))
    desk.give(change)
    for record in map(decoded, desk.log.read(1)):
        state.apply(record)
        for told in map(state.offer_result, state.account(1).offers.values()):
            shown.append((type(record.command), told.gpus, told.status, told.end_reason, told.open_orders))
    assert shown == [
        (EnterStandingOffer, "1", "listing", None, 0),
        (ListStandingOffer, "1", "listing", None, 24),
        (ListStandingOffer, "1", "ended", "expired", 30),
        (ReplaceStandingOffer, "2", "listing", None, 0),
        (ListStandingOffer, "2", "listing", None, 24),
        (ListStandingOffer, "2", "ended", "expired", 30),
    ]


def test_two_restarts_in_the_middle_of_chores_lose_and_repeat_none(tmp_path: Path) -> None:
    desk = Desk(MANY, FileLog(tmp_path))
    in_a_call(desk, *blocks(250))
    desk.clock.time_ns += CALL_MOST_NS
    left = [len(desk.engine.chores())]
    for _ in range(2):
        desk.give()
        left.append(len(desk.engine.chores()))
        desk.log.close()
        desk.log = FileLog(tmp_path)
        desk.restart()
        assert len(desk.engine.chores()) == left[-1]
    assert left == [0, 150, 50]
    assert kinds(desk.settle()) == [RetryBlock] * 50
    retries = [r for r in map(decoded, desk.log.read(1)) if isinstance(r.command, RetryBlock)]
    assert len(retries) == 250
    assert not any(isinstance(record.events[0], Rejected) for record in retries)
    assert_reapplied(desk.log.read(1), desk.engine.state_hash())


# -- calls -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [0, 7, 15, 29])
def test_a_call_ends_at_the_moment_drawn_within_its_window(part: int) -> None:
    desk = Desk(below=lambda _: part * SECOND_NS)
    in_a_call(desk, ask(1, EAST, 1, 90), bid(2, 1, 100))
    end = START_NS + CALL_LEAST_NS + part * SECOND_NS
    assert desk.sequencer.next_due_ns() == end
    # Drawn once, from every nanosecond of the window.
    assert desk.draws == [CALL_MOST_NS - CALL_LEAST_NS + 1]
    desk.clock.time_ns = end - 1
    assert desk.give() == []
    desk.clock.time_ns = end
    (record,) = desk.give()
    assert record.command == EndCall(CLASS, FIRST_HOUR)
    assert desk.phase() is Phase.CLEARING
    assert len(desk.draws) == 1


def test_each_call_of_a_contract_has_a_draw_of_its_own() -> None:
    desk = Desk()
    in_a_call(desk, ask(1, EAST, 1, 90))
    desk.clock.time_ns += CALL_LEAST_NS
    assert kinds(desk.settle()) == [EndCall]
    assert desk.phase() is Phase.CONTINUOUS
    desk.give(halt(nth=1), resume(nth=1))
    desk.clock.time_ns += CALL_LEAST_NS - 1
    # The latest end of the first call falls due, and ends nothing.
    assert kinds(desk.settle()) == [Tick]
    assert desk.phase() is Phase.CALL
    desk.clock.time_ns += 1
    assert kinds(desk.settle()) == [EndCall]
    assert len(desk.draws) == 2


def test_a_call_drawn_to_its_latest_moment_ends_by_the_engine_alone() -> None:
    desk = Desk(below=lambda bound: bound - 1)
    in_a_call(desk, ask(1, EAST, 1, 90), bid(2, 1, 100))
    desk.clock.time_ns += CALL_MOST_NS
    assert kinds(desk.settle()) == [Tick]
    assert desk.phase() is Phase.CLEARING


def test_after_a_restart_an_end_is_drawn_anew_and_not_before_what_has_passed() -> None:
    desk = Desk(below=lambda bound: bound // 2)
    in_a_call(desk, ask(1, EAST, 1, 90), bid(2, 1, 100))
    desk.clock.time_ns += CALL_LEAST_NS + 10 * SECOND_NS
    desk.restart()
    left = CALL_MOST_NS - CALL_LEAST_NS - 10 * SECOND_NS
    assert desk.sequencer.next_due_ns() == desk.clock.time_ns + (left + 1) // 2
    assert desk.draws[-1] == left + 1


def test_a_call_whose_window_passed_while_the_exchange_was_down_ends_at_once() -> None:
    desk = Desk()
    in_a_call(desk, ask(1, EAST, 1, 90), bid(2, 1, 100))
    desk.clock.time_ns += 10 * CALL_MOST_NS
    desk.restart()
    assert kinds(desk.settle()) == [Tick]
    assert desk.phase() is Phase.CLEARING


def test_opening_calls_of_contracts_that_nobody_told_of_end_by_a_draw_too() -> None:
    desk = Desk(VENUES["opening"])
    rules = VENUES["opening"].calls
    desk.clock.time_ns = START_NS + HOUR_NS
    hour = desk.clock.time_ns // HOUR_NS + VENUES["opening"].horizon_hours
    desk.clock.time_ns += rules.pre_open_seconds * SECOND_NS + SECOND_NS
    late = {"delivery_hour": hour, "valid_until_ns": desk.clock.time_ns + SECOND_NS}
    desk.give(bid(1, 1, 100, **late))
    assert desk.engine.phase(CLASS, hour) is Phase.CALL
    desk.clock.time_ns += (rules.min_seconds - 1) * SECOND_NS
    assert kinds(desk.settle()) == [EndCall]
    assert desk.engine.phase(CLASS, hour) is Phase.CONTINUOUS


def test_a_call_clears_by_the_proposal_and_one_made_before_a_cancel_is_refused() -> None:
    desk = Desk()
    _, cheap, _ = in_a_call(desk, ask(1, EAST, 2, 80), ask(2, EAST, 1, 70), bid(3, 2, 100))
    desk.clock.time_ns += CALL_LEAST_NS
    assert kinds(desk.settle()) == [EndCall]
    early = desk.clearing()
    *_, refused = desk.give(CancelOrder(1, cheap), early)
    (event,) = refused.events
    assert isinstance(event, Rejected)
    assert event.reason is RejectReason.CLEARING_INFEASIBLE
    assert desk.phase() is Phase.CLEARING
    (taken,) = desk.give(desk.clearing())
    assert isinstance(taken.events[0], CallCleared)
    trades = [event for event in taken.events if isinstance(event, Traded)]
    assert [(trade.lots, trade.price_ticks) for trade in trades] == [(2, 90)]
    assert desk.phase() is Phase.CONTINUOUS
    assert_reapplied(desk.log.read(1), desk.engine.state_hash())


def test_a_call_that_lost_all_its_orders_clears_with_no_trade() -> None:
    desk = Desk()
    ids = in_a_call(desk, ask(1, EAST, 2, 80), bid(3, 2, 100))
    desk.clock.time_ns += CALL_LEAST_NS
    desk.settle()
    desk.give(CancelOrder(1, ids[0]), CancelOrder(BUYER, ids[1]))
    (taken,) = desk.give(desk.clearing())
    assert taken.events[0] == CallCleared(CLASS, FIRST_HOUR, 0, ())
    assert desk.phase() is Phase.CONTINUOUS


# -- the helper and the core -------------------------------------------------------------------------------


async def test_a_helper_that_is_lost_is_told_and_another_is_started() -> None:
    terms = CallTerms([(1, 80, 2, 0, 1)], [(2, 100, 2, 5, 2)], {5: b"\1"})
    clearer = Clearer()
    try:
        right = await clearer.clear(terms)
        assert right == solve(terms)
        assert right.prices == ((0, 80, 100, 90),)
        assert clearer._process is not None
        clearer._process.kill()
        with pytest.raises(ClearerLostError):
            await clearer.clear(terms)
        assert await clearer.clear(terms) == right
    finally:
        await clearer.stop()


@pytest.mark.parametrize("left", [2, -1, None])
def test_a_helper_ends_without_a_word_with_a_core_that_was_killed(left: int | None) -> None:
    question = msgspec.msgpack.encode(CallTerms([(1, 80, 2, 0, 1)], [(2, 100, 2, 5, 2)], {5: b"\1"}))
    question = LENGTH.pack(len(question)) + question
    with subprocess.Popen(
        [sys.executable, "-m", "exchange.clearer"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as helper:  # fmt: skip
        assert helper.stdin is not None
        assert helper.stdout is not None
        assert helper.stderr is not None
        # Killed before it reads the answer, or while it asks.
        helper.stdout.close()
        helper.stdin.write(question[:left])
        helper.stdin.close()
        assert helper.stderr.read() == b""
        assert helper.wait(20) == (0 if left else -signal.SIGPIPE)


def core_of(folder: DataFolder) -> Core:
    log = FileLog(folder.log)
    return Core(folder, log, recover(log))


@contextlib.asynccontextmanager
async def served(core: Core, socket: Path) -> AsyncIterator[CoreLink]:
    """Let the core serve in this very process, and yield a link to it."""
    serving = asyncio.create_task(core.serve(socket))
    await until(socket.exists)
    link = await CoreLink.connect(socket)
    yield link
    await link.close()
    core.stop()
    await serving
    # The core has set the collector of its process, which here is the tests'.
    gc.unfreeze()
    gc.set_threshold(*COLLECTOR)


async def open_call(link: CoreLink, *orders: EnterOrder) -> list[int]:
    """Let the first hour be in a call with these orders, and return their ids."""
    for command in (*opening()[1:], halt(), resume()):
        answer = await link.submit(command)
        assert not isinstance(answer.events[0], Rejected), answer
    ids = []
    for order in orders:
        (event, *_) = (await link.submit(order)).events
        assert isinstance(event, OrderAccepted)
        ids.append(event.order_id)
    return ids


def proposals_of(log: Path) -> list[Decoded]:
    records = map(decoded, read_records(log))
    return [record for record in records if isinstance(record.command, ProposeClearing)]


async def test_a_proposal_refused_after_a_cancel_is_made_again_and_only_its_contract_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exchange.core.CLEAR_AGAIN_SECONDS", 0.05)
    asked: list[CallTerms] = []
    go_on = asyncio.Event()

    async def slow(self: Clearer, terms: CallTerms) -> Clearing:
        asked.append(terms)
        await go_on.wait()
        return solve(terms)

    monkeypatch.setattr(Clearer, "clear", slow)
    folder = make_folder(tmp_path)
    core = core_of(folder)
    async with served(core, folder.core_socket) as link:
        orders = (ask(1, EAST, 2, 80), ask(2, EAST, 1, 70), bid(3, 2, 100))
        _, cheap, _ = await open_call(link, *orders)
        await link.set_clock(START_NS + CALL_MOST_NS)
        await until(lambda: bool(asked))
        # The rest of the market trades meanwhile.
        await link.submit(ask(4, EAST, 1, 80, delivery_hour=FIRST_HOUR + 1))
        traded = await link.submit(bid(5, 1, 80, delivery_hour=FIRST_HOUR + 1))
        assert any(isinstance(event, Traded) for event in traded.events)
        await link.submit(CancelOrder(1, cheap))
        go_on.set()
        await until(lambda: len(proposals_of(folder.log)) == 2)
    refused, taken = proposals_of(folder.log)
    assert isinstance(refused.events[0], Rejected)
    assert isinstance(taken.events[0], CallCleared)
    assert len(asked) == 2
    assert_reapplied(read_records(folder.log), core.sequencer.engine.state_hash())


async def test_a_contract_that_is_halted_while_it_waits_for_the_helper_is_not_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[CallTerms] = []
    go_on = asyncio.Event()

    async def slow(self: Clearer, terms: CallTerms) -> Clearing:
        asked.append(terms)
        await go_on.wait()
        return solve(terms)

    monkeypatch.setattr(Clearer, "clear", slow)
    folder = make_folder(tmp_path)
    core = core_of(folder)
    later = FIRST_HOUR + 1
    async with served(core, folder.core_socket) as link:
        await open_call(link, ask(1, EAST, 2, 80), bid(2, 2, 100))
        for command in (
            halt(later),
            resume(later),
            ask(3, EAST, 2, 80, delivery_hour=later),
            bid(4, 2, 100, delivery_hour=later),
        ):
            await link.submit(command)
        await link.set_clock(START_NS + CALL_MOST_NS)
        await until(lambda: bool(asked))
        await link.submit(halt(later, 1))
        go_on.set()
        await until(lambda: bool(proposals_of(folder.log)))
    assert len(asked) == 1
    (taken,) = proposals_of(folder.log)
    assert isinstance(taken.command, ProposeClearing)
    assert taken.command.delivery_hour == FIRST_HOUR


async def test_a_helper_that_keeps_failing_is_asked_at_a_bounded_pace_and_said_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("exchange.core.CLEAR_AGAIN_SECONDS", 0.2)
    asked: list[float] = []

    async def lost(self: Clearer, terms: CallTerms) -> Clearing:
        asked.append(time.monotonic())
        raise ClearerLostError("gone")

    monkeypatch.setattr(Clearer, "clear", lost)
    folder = make_folder(tmp_path)
    core = core_of(folder)
    async with served(core, folder.core_socket) as link:
        await open_call(link, ask(1, EAST, 2, 80), bid(2, 2, 100))
        await link.set_clock(START_NS + CALL_MOST_NS)
        await until(lambda: len(asked) == 3)
        await link.submit(bid(3, 1, 1, delivery_hour=FIRST_HOUR + 1))
    assert asked[2] - asked[0] >= 0.4
    assert f"{symbol(CLASS, FIRST_HOUR)} is cleared later: gone" in capsys.readouterr().err


async def test_the_helper_ends_with_the_core(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    core = core_of(folder)
    async with served(core, folder.core_socket) as link:
        await open_call(link, ask(1, EAST, 2, 80), bid(2, 2, 100))
        await link.set_clock(START_NS + CALL_MOST_NS)
        await until(lambda: bool(proposals_of(folder.log)))
        helper = core._clearer._process
        assert helper is not None
        assert helper.returncode is None
    assert helper.returncode is not None


async def test_a_core_that_ends_while_a_call_clears_proposes_again_after_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path)
    core = core_of(folder)

    async def never(self: Clearer, terms: CallTerms) -> Clearing:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(Clearer, "clear", never)
    async with served(core, folder.core_socket) as link:
        await open_call(link, ask(1, EAST, 2, 80), bid(2, 2, 100, time_in_force=TimeInForce.AUCTION))
        await link.set_clock(START_NS + CALL_MOST_NS)
        await until(lambda: core.sequencer.engine.phase(CLASS, FIRST_HOUR) is Phase.CLEARING)
    assert proposals_of(folder.log) == []
    folder.core_socket.unlink(missing_ok=True)
    again = CoreProcess(folder)
    link = await again.link()
    await until(lambda: bool(proposals_of(folder.log)))
    await link.close()
    assert again.kill(signal.SIGTERM) == 0
    (taken,) = proposals_of(folder.log)
    assert isinstance(taken.events[0], CallCleared)
    assert any(isinstance(event, Traded) for event in taken.events)


async def test_a_real_core_does_chores_ends_calls_and_clears_them_without_a_command(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    core = CoreProcess(folder)
    link = await core.link()
    await open_call(link, ask(1, EAST, 2, 80), bid(2, 2, 100), bid(3, 1, 50, hours=2))
    await link.set_clock(START_NS + CALL_LEAST_NS - SECOND_NS, 20)
    await until(lambda: RetryBlock in kinds(map(decoded, read_records(folder.log))))
    await link.close()
    assert core.kill(signal.SIGTERM) == 0
    records = map(decoded, read_records(folder.log))
    *_, ended, cleared, retried = [record for record in records if not isinstance(record.command, Tick)]
    assert isinstance(ended.command, EndCall)
    assert START_NS + CALL_LEAST_NS <= ended.time_ns < START_NS + CALL_MOST_NS
    assert isinstance(cleared.events[0], CallCleared)
    assert isinstance(retried.command, RetryBlock)


async def test_what_the_core_alone_gives_is_refused_from_clients(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    core = core_of(folder)
    own: list[AnyCommand] = [
        opening()[0],
        Tick(),
        RetryBlock(1),
        ListStandingOffer(1),
        EndCall(CLASS, FIRST_HOUR),
        ProposeClearing(CLASS, FIRST_HOUR, (), ()),
    ]
    assert set(OWN_COMMANDS) == {type(command) for command in own}
    async with served(core, folder.core_socket) as link:
        for command in own:
            with pytest.raises(ValueError, match="is given by the core alone"):
                await link.submit(command)
        assert core.log.last_sequence == 1
