"""A short crash campaign, and the proof that a broken promise is found. The long one is `make crash`."""

import random
from pathlib import Path

import msgspec
import pytest

from exchange.engine import Engine
from schemas.codec import encode
from schemas.commands import AnyCommand, CancelOrder
from schemas.records import Record
from settlement.postgres import DATABASE_URL
from tests.campaigns.crash import BrokenError, Replayed, Told, live
from tests.market import BUYER, START_NS, ask, bid, opening

BID = (BUYER, "o1")
"""Account and client order id of the bid that is traded and then canceled in the log below."""


@pytest.mark.timeout(180)
def test_nothing_acknowledged_is_lost_or_doubled_when_processes_are_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(DATABASE_URL, raising=False)
    life = live(random.SystemRandom().randrange(10**6), 6)
    assert life.killed.total() == 6
    assert len(life.told.orders) > 100


def records_of(*commands: AnyCommand) -> list[Record]:
    engine = Engine()
    return [
        Record(
            sequence,
            START_NS,
            bytes(16),
            msgspec.Raw(encode(command)),
            tuple(msgspec.Raw(encode(event)) for event in engine.apply(START_NS, command)),
        )
        for sequence, command in enumerate(commands, 1)
    ]


LOGGED = records_of(*opening(), bid(1, 2, 100), ask(2, 1, 1, 100), CancelOrder(BUYER, 1))


@pytest.fixture
def replayed(tmp_path: Path) -> Replayed:
    found = Replayed(tmp_path)
    for record in LOGGED:
        found.apply(record)
    return found


@pytest.fixture
def told() -> Told:
    """All that members could be told of the log."""
    promises = Told()
    promises.orders[BID] = 1
    promises.canceled, promises.trades = {1}, {1}
    return promises


def test_a_log_that_holds_what_was_told_keeps_its_promises(replayed: Replayed, told: Told) -> None:
    assert replayed.lacks(told) == ""
    replayed.check(told)


def test_an_order_a_cancel_a_trade_and_an_act_that_the_log_lacks_are_found(
    replayed: Replayed, told: Told
) -> None:
    told.orders[BUYER, "o9"] = 9
    assert replayed.lacks(told) == "order (3, 'o9') was acknowledged as 9; the log has None"
    del told.orders[BUYER, "o9"]
    told.orders[BID] = 7
    assert replayed.lacks(told) == "order (3, 'o1') was acknowledged as 7; the log has [1]"
    told.orders[BID] = 1
    told.canceled.add(2)
    assert replayed.lacks(told) == "the cancels of orders [2] were acknowledged and are not in the log"
    told.canceled.remove(2)
    told.trades.add(2)
    assert replayed.lacks(told) == "the trades [2] were told and are not in the log"
    told.trades.remove(2)
    told.acts.add(b"another")
    assert replayed.lacks(told) == "an operator's act was acknowledged and is not in the log"


def test_an_order_or_an_act_that_is_in_the_log_twice_and_an_order_that_was_refused_are_found(
    replayed: Replayed, told: Told
) -> None:
    told.refused.add(BID)
    with pytest.raises(BrokenError, match="were refused and are in the log"):
        replayed.check(told)
    told.refused.clear()
    replayed.accepted[BID].append(3)
    with pytest.raises(BrokenError, match="is in the log 2 times"):
        replayed.check(told)
    replayed.accepted[BID].pop()
    replayed.check(told)
    replayed.acts[encode(opening()[1])] += 1
    with pytest.raises(BrokenError, match="are in the log more than once"):
        replayed.check(told)


def test_a_record_that_gives_other_events_when_applied_again_is_found(tmp_path: Path) -> None:
    found = Replayed(tmp_path)
    *first, last = LOGGED
    for record in first:
        found.apply(record)
    with pytest.raises(BrokenError, match=f"record {last.sequence} gives other events"):
        found.apply(msgspec.structs.replace(last, events=()))
