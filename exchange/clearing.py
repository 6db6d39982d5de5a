"""The helper that finds the one right clearing of a call; `exchange/auction.py` checks what it finds."""

from itertools import pairwise

from exchange.auction import (
    NOWHERE,
    CallBook,
    CellClearing,
    Matching,
    bits,
    cell_prices,
    pairs,
)
from schemas.commands import CallFill


def clear(book: CallBook) -> tuple[tuple[CallFill, ...], tuple[CellClearing, ...]]:
    """Return the one right clearing: fills by bid and ask id, prices by supply cell."""
    matching = _matched(book)
    _put_flow_in_order(book, matching)
    fills = tuple(CallFill(bid, ask, lots) for bid, ask, lots in pairs(book, matching))
    return fills, tuple(cell_prices(book, matching))


def _matched(book: CallBook) -> Matching:
    """Return the best matching by rule 37; which cell serves which is left open.

    Bids come in from the end of the line, the best first; each takes the first asks of the line that are left
    and that it can be reached from, by cells that give way to each other. A bid never drives out a
    better one, and what a cell can be reached from only becomes worse: where one bid gets no lot, the
    next one in its cell gets none.
    """
    matching = Matching(book)
    next_ask = [0] * len(book.asks)
    first = 0
    closed = [False] * len(book.bids)
    for place in range(len(book.orders) - 1, -1, -1):
        demand = book.cell[place]
        if not book.is_bid[place] or closed[demand]:
            continue
        left = book.orders[place].lots
        while left:
            while first < place and (book.is_bid[first] or matching.filled[first] == book.orders[first].lots):
                first += 1
            way = _way_from_first_ask(book, matching, next_ask, demand, place, first)
            if not way:
                closed[demand] = True
                break
            seller = way[0][0]
            ask = book.asks[seller][next_ask[seller]]
            lots = min(left, book.orders[ask].lots - matching.filled[ask])
            for (_, via), (supply, _) in pairwise(way):
                lots = min(lots, matching.flow[supply][via])
            for index, (supply, via) in enumerate(way):
                if index:
                    matching.move(supply, way[index - 1][1], -lots)
                matching.move(supply, via, lots)
            matching.filled[ask] += lots
            matching.filled[place] += lots
            left -= lots
            if matching.filled[ask] == book.orders[ask].lots:
                next_ask[seller] += 1
    return matching


def _way_from_first_ask(
    book: CallBook, matching: Matching, next_ask: list[int], demand: int, place: int, first: int
) -> list[tuple[int, int]]:
    """Return how lots get from the first ask in the line that can reach the demand cell to there.

    The way is a list of (supply cell, demand cell): each supply cell gives to the demand cell beside it what
    it gave to the one before. Empty if no ask that stands before `place` can reach it. No ask that is left
    stands before `first`: where that one can, none of the others need be looked for.
    """
    found, best = NOWHERE, place
    supply_to = [NOWHERE] * len(book.asks)
    demand_to = [NOWHERE] * len(book.bids)
    unseen_supply, unseen_demand = (1 << len(book.asks)) - 1, ((1 << len(book.bids)) - 1) & ~(1 << demand)
    reached = [demand]
    for to in reached:
        new = book.sellers[to] & unseen_supply
        unseen_supply &= ~new
        for supply in bits(new):
            supply_to[supply] = to
            if next_ask[supply] < len(book.asks[supply]) and book.asks[supply][next_ask[supply]] < best:
                found, best = supply, book.asks[supply][next_ask[supply]]
            served = matching.served[supply] & unseen_demand
            unseen_demand &= ~served
            for via in bits(served):
                demand_to[via] = supply
                reached.append(via)
        if best == first:
            break
    if found == NOWHERE:
        return []
    way = [(found, supply_to[found])]
    while way[-1][1] != demand:
        supply = demand_to[way[-1][1]]
        way.append((supply, supply_to[supply]))
    return way


def _put_flow_in_order(book: CallBook, matching: Matching) -> None:
    """Change which cell serves which, and nothing else, to the way of rule 38."""
    later = (1 << len(book.asks)) - 1
    for supply in range(len(book.asks)):
        later &= ~(1 << supply)
        for demand in bits(book.buyers[supply]):
            while way := _way_to_later(book, matching, supply, demand, later):
                last = way[-1][1]
                lots = matching.flow[supply][last]
                via = demand
                for giver, to in way:
                    lots = min(lots, matching.flow[giver][via])
                    via = to
                matching.move(supply, demand, lots)
                matching.move(supply, last, -lots)
                via = demand
                for giver, to in way:
                    matching.move(giver, via, -lots)
                    matching.move(giver, to, lots)
                    via = to


def _way_to_later(
    book: CallBook, matching: Matching, supply: int, demand: int, later: int
) -> list[tuple[int, int]]:
    """Return how supply cells in `later` can give up `demand` for a later cell that `supply` serves.

    The way is a list of (supply cell, demand cell that it gives to instead), empty if there is none.
    """
    goal = matching.served[supply] >> demand + 1 << demand + 1
    if not goal:
        return []
    unseen_demand = ((1 << len(book.bids)) - 1) & ~(1 << demand)
    supply_from = [NOWHERE] * len(book.asks)
    demand_from = [NOWHERE] * len(book.bids)
    reached = [demand]
    for via in reached:
        new = matching.suppliers[via] & later
        later &= ~new
        for giver in bits(new):
            supply_from[giver] = via
            buyers = book.buyers[giver] & unseen_demand
            unseen_demand &= ~buyers
            for to in bits(buyers):
                demand_from[to] = giver
                reached.append(to)
            if buyers & goal:
                to = bits(buyers & goal)[0]
                way = [(giver, to)]
                while supply_from[way[-1][0]] != demand:
                    to = supply_from[way[-1][0]]
                    way.append((demand_from[to], to))
                way.reverse()
                return way
    return []
