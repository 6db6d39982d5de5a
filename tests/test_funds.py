"""Money only moves: every event's transfers balance, and the engine's purses are their sum."""

import random
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from math import floor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.contract import HOUR_NS
from exchange.engine import Engine
from exchange.funds import VENUE, Purse, Transfer, transfers
from schemas.commands import AnyCommand, PostSettlement, Side, StartSettlementRun
from schemas.events import (
    AccountRegistered,
    AccountReinstated,
    AccountSuspended,
    AnyEvent,
    BlockRetried,
    BlockTraded,
    CallCleared,
    ContractClosed,
    Deposited,
    EndReason,
    EraOpened,
    KeyRegistered,
    ListingSkipped,
    OrderAccepted,
    OrderEnded,
    OrderListed,
    OrderReduced,
    OrderRepeated,
    OrderReplaced,
    OrdersCanceled,
    Phase,
    PhaseChanged,
    ReadingsReceived,
    Rejected,
    SettlementPosted,
    SettlementRunStarted,
    SiteCertified,
    SiteDerated,
    StandingOfferEnded,
    StandingOfferEntered,
    StandingOfferListed,
    StandingOfferReplaced,
    Traded,
    Withdrawn,
)
from schemas.reasons import RejectReason
from schemas.records import Decoded
from tests.market import AUTHORITY, BUYER, EAST, SELLER, START_NS, ask, bid, started
from tests.test_engine_properties import VENUES, Flow, any_step


def trade(**amounts: int) -> Traded:
    fields: dict[str, Any] = {
        "trade_id": 1,
        "class_code": "T4",
        "delivery_hour": 1,
        "price_ticks": 1,
        "lots": 1,
        "taker": Side.BUY,
        "bid_order_id": 2,
        "ask_order_id": 1,
        "buyer": 3,
        "seller": 4,
        "site": 1,
        "notional_micros": 100,
    }
    return Traded(**{**fields, **amounts})


TRADE = trade(
    buyer_fee_micros=2,
    buyer_released_micros=5,
    bond_micros=10,
    seller_fee_micros=1,
    seller_released_micros=3,
)
TRADE_MOVES = {
    (3, Purse.RESERVED): -107,
    (3, Purse.COMMITTED): 100,
    (3, Purse.CASH): 5,
    (4, Purse.RESERVED): -14,
    (4, Purse.BOND): 10,
    (4, Purse.CASH): 3,
    (VENUE, Purse.FEES): 3,
}


def posting(payment: int, refund: int, penalty: int, release: int) -> SettlementPosted:
    return SettlementPosted(
        run=1,
        trade_id=1,
        buyer=3,
        seller=4,
        payment_micros=payment,
        refund_micros=refund,
        penalty_micros=penalty,
        bond_release_micros=release,
    )


MOVES: dict[type[AnyEvent], tuple[AnyEvent, dict[tuple[int, Purse], int]]] = {
    type(event): (event, moves)
    for event, moves in (
        (EraOpened(), {}),
        (Rejected(RejectReason.UNKNOWN_ORDER), {}),
        (AccountRegistered(3), {}),
        (KeyRegistered(3), {}),
        (Deposited(3, 7), {(VENUE, Purse.BANK): -7, (3, Purse.CASH): 7}),
        (Withdrawn(3, 7), {(VENUE, Purse.BANK): 7, (3, Purse.CASH): -7}),
        (SiteCertified(1), {}),
        (OrderAccepted(1, 9), {(3, Purse.CASH): -9, (3, Purse.RESERVED): 9}),
        (OrderRepeated(1, 9, 0, 1), {}),
        (TRADE, TRADE_MOVES),
        (BlockTraded(1, 1, (TRADE, TRADE)), {key: 2 * amount for key, amount in TRADE_MOVES.items()}),
        # A listed order's account stands in the order: its command is the sequencer's own.
        (OrderListed(1, 1, 9, bid(1, 1, 9, account=4)), {(4, Purse.CASH): -9, (4, Purse.RESERVED): 9}),
        (OrderReplaced(1, 3, 1, 1, 1, 9), {(3, Purse.CASH): -9, (3, Purse.RESERVED): 9}),
        (OrderReduced(1, 3, 1, 1, 9, EndReason.GROUP), {(3, Purse.CASH): 9, (3, Purse.RESERVED): -9}),
        (OrdersCanceled(3, 2), {}),
        (BlockRetried(1), {}),
        (PhaseChanged("T4", 1, Phase.CALL), {}),
        (CallCleared("T4", 1, 0, ()), {}),
        (StandingOfferEntered(1, 3), {}),
        (StandingOfferReplaced(1, 3), {}),
        (StandingOfferEnded(1, 3, EndReason.WITHDRAWN), {}),
        (StandingOfferListed(1, 1), {}),
        (ListingSkipped(1, 1, RejectReason.INSUFFICIENT_FUNDS), {}),
        (AccountSuspended(3), {}),
        (AccountReinstated(3), {}),
        (SiteDerated(1), {}),
        (OrderEnded(1, 3, 1, 9, EndReason.GATE), {(3, Purse.CASH): 9, (3, Purse.RESERVED): -9}),
        (ContractClosed("T4", 1), {}),
        (ReadingsReceived(1), {}),
        (SettlementRunStarted(1), {}),
        (
            posting(80, 20, 4, 6),
            {
                (3, Purse.COMMITTED): -100,
                (3, Purse.CASH): 24,
                (4, Purse.CASH): 86,
                (4, Purse.BOND): -10,
            },
        ),
    )
}


def test_a_replace_that_needs_less_gives_back() -> None:
    (moved,) = transfers(VENUE, OrderReplaced(1, 3, 1, 1, 1, -9))
    assert moved == Transfer(3, Purse.RESERVED, 3, Purse.CASH, 9)


def sums(moved: Iterable[Transfer]) -> dict[tuple[int, Purse], int]:
    total: Counter[tuple[int, Purse]] = Counter()
    for transfer in moved:
        assert transfer.amount_micros > 0
        total[transfer.debit_account, transfer.debit_purse] -= transfer.amount_micros
        total[transfer.credit_account, transfer.credit_purse] += transfer.amount_micros
    return {key: amount for key, amount in total.items() if amount}


@pytest.mark.parametrize("kind", AnyEvent.__args__, ids=lambda kind: kind.__name__)
def test_every_kind_of_event_moves_what_it_says(kind: type[AnyEvent]) -> None:
    event, moves = MOVES[kind]
    assert sums(transfers(3, event)) == moves
    assert sum(moves.values()) == 0


@given(amounts=st.tuples(*[st.integers(-(2**62), 2**62)] * 4))
def test_a_posting_and_its_reverse_cancel_out(amounts: tuple[int, int, int, int]) -> None:
    there = list(transfers(VENUE, posting(*amounts)))
    back = list(transfers(VENUE, posting(*(-amount for amount in amounts))))
    assert sums(there + back) == {}
    assert sum(sums(there).values()) == 0


def account_of(command: AnyCommand) -> int:
    return getattr(command, "account", VENUE)


class Ledger:
    """What a reader makes of the records: purses by transfers alone."""

    def __init__(self) -> None:
        self.purses: Counter[tuple[int, int]] = Counter()

    def take_in(self, record: Decoded) -> None:
        for event in record.events:
            for moved in transfers(account_of(record.command), event):
                assert moved.amount_micros > 0
                self.purses[moved.debit_account, moved.debit_purse] -= moved.amount_micros
                self.purses[moved.credit_account, moved.credit_purse] += moved.amount_micros
                # Money is there before it moves: only settlement may overdraw, and only cash.
                if moved.debit_purse is not Purse.BANK and not isinstance(event, SettlementPosted):
                    assert self.purses[moved.debit_account, moved.debit_purse] >= 0, event
            assert sum(self.purses.values()) == 0

    def agrees_with(self, engine: Engine) -> bool:
        return engine.balances() == {key: amount for key, amount in self.purses.items() if amount}


def settle(flow: Flow, choose: random.Random) -> list[Decoded]:
    """Post every fill in a first run, correct some in later ones; return the records."""
    flow.now = (flow.now // HOUR_NS + 9) * HOUR_NS
    commands: list[AnyCommand] = []
    fills = flow.engine.fills
    before = dict.fromkeys(fills, (0, 0, 0, 0))
    for run in (1, 2, 3):
        posts: list[AnyCommand] = []
        for number, fill in fills.items():
            if run > 1 and choose.random() < 0.5:
                continue
            paid, penalty = choose.randint(0, fill.notional), choose.randint(0, fill.bond)
            refund = fill.notional - paid if run == 3 else choose.randint(0, fill.notional - paid)
            target = (paid, refund, penalty, fill.bond - penalty)
            difference = [to - at for to, at in zip(target, before[number], strict=True)]
            before[number] = target
            posts.append(PostSettlement(run, number, "delivered", 0, *difference))
        commands.append(StartSettlementRun(run, "x", 1, 0, len(posts), bytes(32), authority=AUTHORITY))
        commands += posts
    records = []
    for command in commands:
        events = flow.engine.apply(flow.now, command)
        assert not any(isinstance(event, Rejected) for event in events), (command, events)
        records.append(Decoded(0, flow.now, command, tuple(events)))
    return records


@pytest.mark.parametrize("seed", range(9))
def test_the_engines_balances_are_the_sum_of_the_transfers_at_every_record(seed: int) -> None:
    flow, ledger, draw = Flow(VENUES[seed % 3]), Ledger(), random.Random(seed)
    for record in flow.records:
        ledger.take_in(record)
    assert ledger.agrees_with(flow.engine)
    for _ in range(300):
        ledger.take_in(flow.do(any_step(draw.choice)))
        assert ledger.agrees_with(flow.engine)
    assert flow.engine.fills
    for record in settle(flow, draw):
        ledger.take_in(record)
    assert ledger.agrees_with(flow.engine)
    flow.engine.check()


def trades_of(event: AnyEvent) -> tuple[Traded, ...]:
    match event:
        case Traded():
            return (event,)
        case BlockTraded():
            return event.legs
        case _:
            return ()


@pytest.mark.parametrize("seed", range(9))
def test_no_order_takes_more_than_it_reserved_and_fees_are_exact_in_sum(seed: int) -> None:
    venue = VENUES[seed % 3]
    rates = Fraction(venue.fees.maker_ppm, 10**6), Fraction(venue.fees.taker_ppm, 10**6)
    bond_rate = Fraction(venue.bond_permille, 1000)
    flow, draw = Flow(venue), random.Random(100 + seed)
    for _ in range(300):
        flow.do(any_step(draw.choice))
    reserved: dict[int, int] = {}
    fees: Counter[int] = Counter()
    bonds: Counter[int] = Counter()
    owed: dict[tuple[str, int], Fraction] = {}
    for event in (event for record in flow.records for event in record.events):
        if isinstance(event, OrderAccepted):
            reserved[event.order_id] = event.reserved_micros
        if isinstance(event, OrderEnded):
            reserved[event.order_id] -= event.released_micros
            assert reserved[event.order_id] == 0
        for fill in trades_of(event):
            bought, sold = fill.bid_order_id, fill.ask_order_id
            assert min(fill.buyer_released_micros, fill.seller_released_micros) >= 0
            reserved[bought] -= fill.notional_micros + fill.buyer_fee_micros + fill.buyer_released_micros
            reserved[sold] -= fill.bond_micros + fill.seller_fee_micros + fill.seller_released_micros
            assert min(reserved[bought], reserved[sold]) >= 0
            fees[bought] += fill.buyer_fee_micros
            fees[sold] += fill.seller_fee_micros
            bonds[sold] += fill.bond_micros
            for side, order in ((Side.BUY, bought), (Side.SELL, sold)):
                owed["fee", order] = (
                    owed.get(("fee", order), Fraction(0)) + rates[fill.taker is side] * fill.notional_micros
                )
                assert fees[order] == floor(owed["fee", order])
            owed["bond", sold] = owed.get(("bond", sold), Fraction(0)) + bond_rate * fill.notional_micros
            assert bonds[sold] == floor(owed["bond", sold])
    still_open = {n for account in flow.engine.accounts.values() for n in account.open_orders}
    assert {number for number, left in reserved.items() if left} <= still_open
    assert fees
    assert flow.engine.balances().get((VENUE, Purse.FEES), 0) == sum(fees.values())


def test_a_better_price_is_released_at_once() -> None:
    engine = started()
    engine.apply(START_NS, ask(1, EAST, 1, 60))
    accepted, traded = engine.apply(START_NS, bid(2, 2, 100))
    # Two GPUs at 100 ticks of 10,000 micros, and a thousandth for the higher fee.
    assert accepted == OrderAccepted(2, 2_000_000 + 2_000)
    assert isinstance(traded, Traded)
    assert (traded.notional_micros, traded.buyer_fee_micros) == (600_000, 600)
    assert traded.buyer_released_micros == 400_000 + 400
    assert engine.balances()[BUYER, Purse.RESERVED] == 1_000_000 + 1_000
    assert (traded.bond_micros, traded.seller_fee_micros) == (60_000, 300)
    # The ask kept the taker's fee in reserve and was the maker.
    assert traded.seller_released_micros == 300
    assert (SELLER, Purse.RESERVED) not in engine.balances()


def test_an_ask_that_takes_reserves_for_the_price_it_gets() -> None:
    engine = started()
    engine.apply(START_NS, bid(1, 1, 100))
    accepted, traded = engine.apply(START_NS, ask(2, EAST, 3, 60))
    assert accepted == OrderAccepted(2, (1_000_000 + 2 * 600_000) // 10 + 2_200)
    assert isinstance(traded, Traded)
    assert (traded.bond_micros, traded.seller_fee_micros, traded.seller_released_micros) == (
        100_000,
        1_000,
        0,
    )
    assert engine.balances()[SELLER, Purse.RESERVED] == 120_000 + 1_200
