"""Who goes first, who is told to come back, and that nobody's own commands change places."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.desk import Desk, Inbox, Kind, Request
from exchange.packing import bytes_of
from exchange.slots import Command
from schemas.codec import decode_command
from schemas.commands import (
    AnyCommand,
    CancelOrder,
    CancelStandingOffer,
    CorrectClock,
    EnterOrder,
    HaltContract,
    MassCancel,
    PostSettlement,
    ProposeClearing,
    ReplaceOrder,
    SuspendAccount,
    Tick,
)
from schemas.link import LENGTH, AskClock, Frame, Hello, Submit, decode_frame, encode_frame
from tests.market import bid
from tests.test_rejects import offer, post, replaced

ROOM = {Kind.ORDINARY: 4, Kind.CANCEL: 3, Kind.OPERATOR: 2}
LOW = 1000
ORDINARY: tuple[Callable[[int], AnyCommand], ...] = (
    lambda account: bid(1, 1, 100, account=account),
    lambda account: replaced(1, 100, account=account),
    lambda account: offer(account=account),
)
CANCELS: tuple[Callable[[int], AnyCommand], ...] = (
    lambda account: CancelOrder(account, 1),
    MassCancel,
    lambda account: CancelStandingOffer(account, 1),
)
OPERATORS: tuple[AnyCommand, ...] = (HaltContract("H100-SXM", 1), CorrectClock(), Tick())


def small_desk() -> Desk:
    return Desk(ROOM[Kind.ORDINARY], ROOM[Kind.CANCEL], ROOM[Kind.OPERATOR], LOW)


def given_to(desk: Desk, *commands: AnyCommand) -> None:
    for command in commands:
        assert desk.put(Request(None, 0, command)) == ""


def order(desk: Desk) -> list[AnyCommand | Command]:
    return [request.command for request in desk.take(100)]


class Waiting(NamedTuple):
    kind: Kind
    account: int | None
    request: Request


class Twin:
    """A list in the order of arrival, searched anew for whoever goes next."""

    def __init__(self) -> None:
        self.waiting: list[Waiting] = []

    def put(self, kind: Kind, account: int | None, request: Request) -> bool:
        if sum(1 for other in self.waiting if other.kind is kind) == ROOM[kind]:
            return False
        self.waiting.append(Waiting(kind, account, request))
        return True

    def next(self) -> Request:
        for place, one in enumerate(self.waiting):
            own = [w for w in self.waiting[:place] if one.account is not None and w.account == one.account]
            if one.kind is not Kind.ORDINARY and not own:
                return self.waiting.pop(place).request
        return self.waiting.pop(0).request


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just(Kind.ORDINARY), st.sampled_from([1, 2, None]), st.integers(0, 2)),
        st.tuples(st.just(Kind.CANCEL), st.sampled_from([1, 2]), st.integers(0, 2)),
        st.tuples(st.just(Kind.OPERATOR), st.none(), st.integers(0, 2)),
        st.integers(1, 4),
    ),
    max_size=40,
)


@given(STEPS)
def test_the_desk_does_as_a_list_searched_anew(steps: list[tuple[Kind, int | None, int] | int]) -> None:
    desk, twin = small_desk(), Twin()
    for number, step in enumerate(steps):
        if isinstance(step, int):
            expected = [twin.next() for _ in range(min(step, len(twin.waiting)))]
            assert desk.take(step) == expected
        else:
            kind, account, which = step
            command: AnyCommand
            if kind is Kind.ORDINARY:
                command = ORDINARY[which](account) if account is not None else post()
            elif kind is Kind.CANCEL:
                assert account is not None
                command = CANCELS[which](account)
            else:
                command = OPERATORS[which]
            request = Request("client", number, command)
            assert (desk.put(request) == "") == twin.put(kind, account, request)
        assert len(desk) == len(twin.waiting)
    assert desk.take(1000) == [twin.next() for _ in range(len(twin.waiting))]
    assert len(desk) == 0


def test_cancels_and_operators_go_before_orders_in_the_order_of_their_coming() -> None:
    desk = small_desk()
    halt = HaltContract("H100-SXM", 1)
    given_to(desk, bid(1, 1, 100), CancelOrder(7, 1), halt, MassCancel(8))
    assert order(desk) == [CancelOrder(7, 1), halt, MassCancel(8), bid(1, 1, 100)]


def test_a_cancel_goes_right_after_what_its_account_entered_before_it() -> None:
    desk = small_desk()
    first, others, later = bid(1, 1, 100, account=7), bid(2, 1, 100, account=8), bid(3, 1, 100, account=7)
    given_to(desk, first, MassCancel(7), others, later)
    assert order(desk) == [first, MassCancel(7), others, later]


def test_what_an_operator_does_to_an_account_does_not_wait_for_its_orders() -> None:
    desk = small_desk()
    given_to(desk, bid(1, 1, 100, account=7), SuspendAccount(7))
    assert order(desk) == [SuspendAccount(7), bid(1, 1, 100, account=7)]


def test_each_kind_has_room_of_its_own_and_is_told_when_it_is_full() -> None:
    desk = small_desk()
    orders: list[AnyCommand] = [bid(n, 1, 100, account=n) for n in range(ROOM[Kind.ORDINARY])]
    given_to(desk, *orders)
    assert desk.put(Request(None, 0, bid(9, 1, 100))) == "the exchange is busy: 4 commands wait"
    given_to(desk, *(CancelOrder(n, 1) for n in range(ROOM[Kind.CANCEL])))
    assert desk.put(Request(None, 0, CancelOrder(9, 1))) == "the exchange is busy: 3 cancels wait"
    given_to(desk, *(Tick() for _ in range(ROOM[Kind.OPERATOR])))
    assert desk.put(Request(None, 0, Tick())) == "the exchange is busy: 2 operators' commands wait"
    assert len(desk) == sum(ROOM.values())
    assert len(desk.take(sum(ROOM.values()))) == sum(ROOM.values())
    given_to(desk, *orders)


def test_what_was_refused_is_as_if_it_had_never_come() -> None:
    desk = small_desk()
    given_to(desk, *(bid(n, 1, 100, account=1) for n in range(ROOM[Kind.ORDINARY])))
    assert desk.put(Request(None, 0, bid(9, 1, 100, account=2)))
    # Account 2 has nothing here: its cancel waits for nobody.
    given_to(desk, MassCancel(2))
    assert order(desk)[0] == MassCancel(2)


def test_the_cores_own_goes_first_also_when_all_is_full_or_only_cancels_are_taken() -> None:
    desk = small_desk()
    given_to(desk, *(bid(n, 1, 100) for n in range(ROOM[Kind.ORDINARY])))
    desk.look(0, 0)
    proposal = ProposeClearing("H100-SXM", 1, (), ())
    desk.put_own(proposal)
    assert [request.command for request in desk.take(1)] == [proposal]


@pytest.mark.parametrize(
    ("free_bytes", "parted_ns", "reason"),
    [
        (LOW - 1, 0, f"the disk of the log has {LOW - 1} bytes left; {LOW} are needed"),
        (LOW, -3_600_000_000_000, "the clock jumped by -3600000 ms; an operator must sign correct_clock"),
    ],
)
def test_when_the_disk_is_low_or_the_clock_has_parted_only_cancels_are_taken(
    free_bytes: int, parted_ns: int, reason: str
) -> None:
    desk = small_desk()
    given_to(desk, bid(1, 1, 100, account=5))
    desk.look(free_bytes, parted_ns)
    refused: list[AnyCommand] = [make(1) for make in ORDINARY]
    refused += [post(), HaltContract("H100-SXM", 1), Tick()]
    assert {type(command) for command in refused} >= {EnterOrder, ReplaceOrder, PostSettlement}
    for command in refused:
        assert desk.put(Request(None, 0, command)) == f"only cancels are taken: {reason}"
    given_to(desk, *(make(2) for make in CANCELS))
    # It is what makes the clock right again.
    given_to(desk, CorrectClock())
    # What was taken before stays taken.
    assert len(desk) == 1 + len(CANCELS) + 1
    desk.look(2 * LOW, 0)
    given_to(desk, *refused[:3])


def test_a_disk_that_was_low_must_have_twice_the_bound_again() -> None:
    desk = small_desk()
    for free_bytes, is_low in (
        (LOW, False),
        (LOW - 1, True),
        (2 * LOW - 1, True),
        (2 * LOW, False),
        (LOW, False),
    ):
        desk.look(free_bytes, 0)
        assert bool(desk.cancels_only) == is_low, free_bytes


FRAMES = st.lists(
    st.one_of(
        st.builds(lambda n: Submit(n, bid(n, 1, 100)), st.integers(1, 2**40)),
        st.builds(lambda n: Submit(n, CancelOrder(3, n)), st.integers(1, 2**40)),
        st.builds(lambda n: Submit(n, replaced(1, 100)), st.integers(1, 2**40)),
        st.builds(lambda n: Submit(n, MassCancel(3)), st.integers(1, 2**40)),
        st.sampled_from([Hello(True), AskClock(5)]),
    ),
    max_size=6,
)


@given(FRAMES, st.lists(st.integers(0, 1000), max_size=8))
def test_what_comes_in_any_pieces_is_read_as_it_was_sent(frames: list[Frame], cuts: list[int]) -> None:
    stream = b"".join(map(encode_frame, frames))
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    inbox = Inbox("client", 1000)
    found: list[Frame] = []
    for start, end in itertools.pairwise(places):
        for one in inbox.read(stream[start:end]):
            if isinstance(one, Request):
                assert one.client == "client"
                found.append(Submit(one.correlation, decode_command(bytes_of(one.command))))
            else:
                found.append(decode_frame(one))
    assert found == frames
    assert not inbox.is_broken


@pytest.mark.parametrize("announced", [1001, 2**31 - 1, 2**31, 2**32 - 1])
def test_a_frame_too_large_is_found_before_it_comes_and_after_those_before_it(announced: int) -> None:
    inbox = Inbox(None, 1000)
    (before,) = inbox.read(encode_frame(AskClock(5)) + LENGTH.pack(announced))
    assert isinstance(before, bytes)
    assert decode_frame(before) == AskClock(5)
    assert inbox.is_broken
