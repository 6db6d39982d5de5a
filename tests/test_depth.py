"""Depth and its changes are the engine's book at every record."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from exchange.depth import Changes, Contract, Depth, Level, Supply
from exchange.engine import Engine
from schemas.commands import Side
from tests.test_engine_properties import STEPS, VENUES, Flow, any_step


def book_of(engine: Engine) -> dict[Contract, dict[Level, int]]:
    """Add up the engine's own books."""
    levels: dict[Contract, dict[Level, int]] = {}
    for code, books in engine.books.items():
        for hour, book in books.items():
            for side, cells in book.sides.items():
                for cell, orders in cells.items():
                    for _, _, order in orders.orders():
                        supply = Supply(*engine.eligibility.supply_terms(cell)) if side is Side.SELL else None
                        terms = order.command.requirement or supply
                        assert terms is not None
                        level = Level(side, terms, order.command.price_ticks)
                        contract = levels.setdefault((code, hour), {})
                        contract[level] = contract.get(level, 0) + order.leaves_lots
    return levels


def take_in(levels: dict[Contract, dict[Level, int]], changes: Changes) -> None:
    """What a client does that knows only the changes."""
    for contract, changed in changes.items():
        mine = levels.setdefault(contract, {})
        for level, lots in changed.items():
            assert lots >= 0
            if lots:
                mine[level] = lots
            else:
                mine.pop(level, None)
        if not mine:
            del levels[contract]


class Watched:
    """A market, its depth, and a client that was sent the changes."""

    def __init__(self, terms: int) -> None:
        self.flow = Flow(VENUES[terms])
        self.depth = Depth()
        self.client: dict[Contract, dict[Level, int]] = {}
        for record in self.flow.records:
            assert self.depth.apply(record) == {}

    def do(self, step: object) -> None:
        take_in(self.client, self.depth.apply(self.flow.do(step)))  # type: ignore[arg-type]
        book = book_of(self.flow.engine)
        assert self.depth.levels == book
        assert self.client == book
        assert {number: order.leaves_lots for number, order in self.depth.orders.items()} == {
            number: order.leaves_lots
            for account in self.flow.engine.accounts.values()
            for number, order in account.open_orders.items()
        }


@given(terms=st.integers(0, len(VENUES) - 1), steps=STEPS)
@settings(max_examples=max(50, settings().max_examples // 2))
def test_depth_and_changes_are_the_book_after_any_commands(terms: int, steps: list[list[object]]) -> None:
    market = Watched(terms)
    for few in steps:
        for step in few:
            market.do(step)


def test_depth_and_changes_are_the_book_through_long_days() -> None:
    held = {Side.BUY: 0, Side.SELL: 0}
    for seed in range(12):
        market = Watched(seed % len(VENUES))
        choose = random.Random(1000 + seed).choice
        for _ in range(300):
            market.do(any_step(choose))
            for levels in market.client.values():
                for level in levels:
                    held[level.side] += 1
    assert min(held.values()) > 1000
