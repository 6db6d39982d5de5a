"""Plans: what a taker would get. Nothing here changes anything."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from exchange.book import Book
from exchange.order import Order
from schemas.commands import Side


class Match(NamedTuple):
    """A hourly fill that would happen, at the maker's price."""

    maker: Order
    lots: int


class HourlyPlan(NamedTuple):
    """The fills of an hourly taker; `self_trade` when the next maker is of its own trade group."""

    matches: list[Match]
    self_trade: bool


class BlockPlan(NamedTuple):
    """The legs that fill a block whole from one site, hour by hour, and their cost in tick-lots."""

    site: int
    cost: int
    legs: list[Match]


def plan_hourly(makers: Iterable[Order], taker: Order) -> HourlyPlan:
    """Return the fills `taker` would get from `makers`, which come best first.

    A taker that would meet an order of its own trade group stops there.
    """
    matches: list[Match] = []
    leaves_lots = taker.leaves_lots
    limit, buying = taker.command.price_ticks, taker.command.side is Side.BUY
    for maker in makers:
        price = maker.command.price_ticks
        if price > limit if buying else price < limit:
            break
        if maker.group == taker.group:
            return HourlyPlan(matches, True)
        lots = min(leaves_lots, maker.leaves_lots)
        matches.append(Match(maker, lots))
        leaves_lots -= lots
        if leaves_lots == 0:
            break
    return HourlyPlan(matches, False)


def plan_block_at(
    site: int, books: Mapping[int, Book | None], block: Order, table: bytes, most: int
) -> BlockPlan | None:
    """Return the cheapest way to fill `block` from the site's hourly asks, or None if there is none.

    Its own trade group's asks count as absent. `table` says which supply cells may serve the block;
    `most` is the cost in tick-lots that must not be passed.
    """
    lots = block.command.lots
    if any(book is None or book.site_lots.get(site, 0) < lots for book in books.values()):
        return None
    cost = 0
    legs: list[Match] = []
    for book in books.values():
        assert book is not None
        wanted = lots
        for price, _, ask in book.site_asks[site]:
            if ask.group == block.group or not table[ask.cell]:
                continue
            taken = min(wanted, ask.leaves_lots)
            legs.append(Match(ask, taken))
            cost += price * taken
            wanted -= taken
            if wanted == 0:
                break
        if wanted or cost > most:
            return None
    return BlockPlan(site, cost, legs)


def plan_block(
    sites: Iterable[int], books: Mapping[int, Book | None], block: Order, table: bytes
) -> BlockPlan | None:
    """Return the cheapest plan over the sites, ties to the lower number, within the block's limit."""
    best: BlockPlan | None = None
    most = block.command.price_ticks * block.command.lots * block.command.hours
    for site in sorted(sites):
        plan = plan_block_at(site, books, block, table, most if best is None else best.cost - 1)
        if plan is not None:
            best = plan
    return best
