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

from exchange.calls import price_of
from exchange.clearing import clear
from exchange.contract import HOUR_NS
from exchange.engine import Engine
from exchange.funds import VENUE, Purse, Transfer, transfers
from schemas.commands import (
    AnyCommand,
    EndCall,
    EnterOrder,
    HaltContract,
    PostSettlement,
    ProposeClearing,
    ResumeContract,
    Side,
    StartSettlementRun,
    Withdraw,
)
from schemas.events import (
    AccountRegistered,
    AccountReinstated,
    AccountSuspended,
    AnyEvent,
    BlockRetried,
    BlockTraded,
    CallCleared,
    ClockCorrected,
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
    trades_of,
)
from schemas.reasons import RejectReason
from schemas.records import Decoded
from schemas.venue import Fees, Venue
from tests.market import AUTHORITY, BUYER, EAST, FIRST_HOUR, SELLER, START_NS, ask, bid, opening, started
from tests.small_venue import SMALL_VENUE
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
        (ClockCorrected(), {}),
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
    before = {trade.trade_id: (0, 0, 0, 0) for trade in flow.trades}
    for run in (1, 2, 3):
        posts: list[AnyCommand] = []
        for trade in flow.trades:
            if run > 1 and choose.random() < 0.5:
                continue
            number, notional, bond = trade.trade_id, trade.notional_micros, trade.bond_micros
            paid, penalty = choose.randint(0, notional), choose.randint(0, bond)
            refund = notional - paid if run == 3 else choose.randint(0, notional - paid)
            target = (paid, refund, penalty, bond - penalty)
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
    flow, ledger, draw = Flow(VENUES[seed % len(VENUES)]), Ledger(), random.Random(seed)
    for record in flow.records:
        ledger.take_in(record)
    assert ledger.agrees_with(flow.engine)
    for _ in range(300):
        ledger.take_in(flow.do(any_step(draw.choice)))
        assert ledger.agrees_with(flow.engine)
    assert flow.trades
    for record in settle(flow, draw):
        ledger.take_in(record)
    assert ledger.agrees_with(flow.engine)
    flow.engine.check()


class Pledge:
    """What one open quantity, of an order or a group, holds and has paid."""

    def __init__(self) -> None:
        self.open: set[int] = set()
        self.reserved = self.fees = self.bonds = 0
        self.fees_owed = self.bonds_owed = Fraction(0)


class Pledges:
    """What events say of reserves, fees and bonds, order by order; a group is one."""

    def __init__(self, venue: Venue) -> None:
        self.maker, self.taker = (
            Fraction(ppm, 10**6) for ppm in (venue.fees.maker_ppm, venue.fees.taker_ppm)
        )
        self.bond = Fraction(venue.bond_permille, 1000)
        self.of: dict[int, Pledge] = {}
        self.lots: dict[int, int] = {}
        self.price: dict[int, int] = {}
        self.groups: dict[tuple[int, str], Pledge] = {}
        self.fees = 0

    def take_in(self, command: AnyCommand, event: AnyEvent) -> None:
        match event:
            case OrderAccepted():
                assert isinstance(command, EnterOrder)
                self.enter(event.order_id, command, event.reserved_micros)
            case OrderListed():
                self.enter(event.order_id, event.order, event.reserved_micros)
            case OrderReplaced():
                self.of[event.order_id].reserved += event.reserved_micros
                self.price[event.order_id] = event.price_ticks
                self.lots[event.order_id] = event.leaves_lots
            case OrderReduced():
                self.of[event.order_id].reserved -= event.released_micros
                self.lots[event.order_id] = event.leaves_lots
            case OrderEnded():
                self.of[event.order_id].reserved -= event.released_micros
                self.close(event.order_id)
        for trade in trades_of(event):
            self.trade(trade)
        if isinstance(event, BlockTraded):
            self.close(event.order_id)

    def enter(self, order_id: int, command: EnterOrder, reserved_micros: int) -> None:
        pledge = Pledge()
        if command.exclusive_group is not None:
            key = (command.account, command.exclusive_group)
            if key in self.groups and self.groups[key].open:
                pledge = self.groups[key]
            self.groups[key] = pledge
        pledge.open.add(order_id)
        pledge.reserved += reserved_micros
        self.of[order_id] = pledge
        self.price[order_id] = command.price_ticks
        is_run = command.side is Side.SELL and command.hours > 1
        self.lots[order_id] = command.lots * (command.hours if is_run else 1)

    def close(self, order_id: int) -> None:
        pledge = self.of[order_id]
        pledge.open.discard(order_id)
        assert pledge.open or pledge.reserved == 0

    def trade(self, trade: Traded) -> None:
        # Only in a call, at a price above its limit, does an ask put up more than it has reserved.
        assert min(trade.buyer_released_micros, trade.seller_released_micros) >= 0 or (
            trade.taker is None and trade.price_ticks > self.price[trade.ask_order_id]
        )
        buyer, seller = self.of[trade.bid_order_id], self.of[trade.ask_order_id]
        buyer.reserved -= trade.notional_micros + trade.buyer_fee_micros + trade.buyer_released_micros
        seller.reserved -= trade.bond_micros + trade.seller_fee_micros + trade.seller_released_micros
        assert min(buyer.reserved, seller.reserved) >= 0
        # In a call nobody takes, and an ask without the cash for a better price puts up as at its limit.
        worth = trade.notional_micros
        if trade.taker is None and seller.bonds + trade.bond_micros != floor(
            seller.bonds_owed + self.bond * worth
        ):
            worth = worth * self.price[trade.ask_order_id] // trade.price_ticks
        for side, pledge, fee, of in (
            (Side.BUY, buyer, trade.buyer_fee_micros, trade.notional_micros),
            (Side.SELL, seller, trade.seller_fee_micros, worth),
        ):
            pledge.fees += fee
            pledge.fees_owed += (self.taker if trade.taker is side else self.maker) * of
            assert pledge.fees == floor(pledge.fees_owed)
            self.fees += fee
        seller.bonds += trade.bond_micros
        seller.bonds_owed += self.bond * worth
        assert seller.bonds == floor(seller.bonds_owed)
        for order_id in (trade.ask_order_id,) if trade.block else (trade.bid_order_id, trade.ask_order_id):
            self.lots[order_id] -= trade.lots
            if self.lots[order_id] == 0:
                self.close(order_id)


@pytest.mark.parametrize("seed", range(9))
def test_no_order_takes_more_than_it_reserved_and_fees_are_exact_in_sum(seed: int) -> None:
    venue = VENUES[seed % len(VENUES)]
    flow, draw, pledges = Flow(venue), random.Random(100 + seed), Pledges(venue)
    for _ in range(300):
        flow.do(any_step(draw.choice))
    for record in flow.records:
        for event in record.events:
            pledges.take_in(record.command, event)
    assert {number: pledges.of[number].reserved for number in flow.engine.orders} == {
        number: order.pledge.reserved_micros for number, order in flow.engine.orders.items()
    }
    assert pledges.fees or venue.fees == Fees()
    assert flow.engine.balances().get((VENUE, Purse.FEES), 0) == pledges.fees


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


@pytest.mark.parametrize(("cash", "bond", "fee"), [(1_000_000, 200_000, 1_000), (0, 120_000, 600)])
def test_in_a_call_nobody_takes_and_an_ask_puts_up_for_its_price_what_its_cash_allows(
    cash: int, bond: int, fee: int
) -> None:
    engine, pledges, ledger = Engine(), Pledges(SMALL_VENUE), Ledger()
    now = START_NS

    def do(command: AnyCommand) -> list[AnyEvent]:
        events = engine.apply(now, command)
        assert not isinstance(events[0], Rejected), events
        ledger.take_in(Decoded(1, now, command, tuple(events)))
        for event in events:
            pledges.take_in(command, event)
        assert ledger.agrees_with(engine)
        return events

    for command in opening():
        do(command)
    contract = ("H100-SXM", FIRST_HOUR)
    do(HaltContract(*contract, authority=AUTHORITY))
    do(ResumeContract(*contract, authority=AUTHORITY))
    do(ask(1, EAST, 2, 60))
    do(Withdraw(SELLER, engine.market.accounts[SELLER].cash - cash, authority=AUTHORITY))
    do(bid(2, 3, 100))
    now += 61 * 10**9
    do(EndCall(*contract))
    fills, cells = clear(engine.call_book(*contract))
    prices = tuple(price_of(engine.market, cell) for cell in cells)
    cleared, trade, *_ = do(ProposeClearing(*contract, fills, prices))
    assert isinstance(trade, Traded)
    # Two of three lots are sold: the third bids up to its limit.
    assert (trade.taker, trade.lots, trade.price_ticks) == (None, 2, 100)
    assert (trade.notional_micros, trade.buyer_fee_micros) == (2_000_000, 1_000)
    assert (trade.bond_micros, trade.seller_fee_micros) == (bond, fee)
    assert isinstance(cleared, CallCleared)
    assert pledges.of[2].reserved == 1_000_000 + 1_000
