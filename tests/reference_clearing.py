"""The one right clearing of a call, by longest paths on whole numbers: slow, and meant to be read.

Exact ties are settled by weights so large that a later rule never outweighs an earlier one.
Source: exchange/README.md, rules 36 to 39.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

Cell = tuple[int, ...]
"""The ranks of a cell's codes in the catalogue: cells stand in the order of these."""


class Interest(NamedTuple):
    """What an order brings to a call: its price, its time, its cell and all its open lots."""

    number: int
    price: int
    place: int
    cell: Cell
    lots: int


class Clearing(NamedTuple):
    """Lots by bid and ask, and by supply cell that trades its lowest and highest equilibrium price."""

    fills: dict[tuple[int, int], int]
    prices: dict[Cell, tuple[int, int]]


Serves = Callable[[Cell, Cell], bool]
"""Whether a supply cell may serve a demand cell."""


def clearing_of(
    bids: Sequence[Interest], asks: Sequence[Interest], serves: Serves, lowest: int, highest: int
) -> Clearing:
    """Return the clearing of these orders within the collar."""
    bids = sorted((b._replace(price=min(b.price, highest)) for b in bids if b.price >= lowest), key=by_time)
    asks = sorted((a._replace(price=max(a.price, lowest)) for a in asks if a.price <= highest), key=by_time)
    base = sum(order.lots for order in (*bids, *asks)) + 1
    # From the least rule to the first: earlier asks, earlier bids, quantity, surplus.
    for_bids = base ** len(asks)
    for_quantity = for_bids * base ** len(bids)
    for_surplus = for_quantity * base
    gains = [
        [
            (bid.price - ask.price) * for_surplus
            + for_quantity
            + for_bids * base ** (len(bids) - 1 - i)
            + base ** (len(asks) - 1 - j)
            if serves(ask.cell, bid.cell) and bid.price >= ask.price
            else None
            for j, ask in enumerate(asks)
        ]
        for i, bid in enumerate(bids)
    ]
    flow = best_flow(gains, [b.lots for b in bids], [a.lots for a in asks])
    got = {bid.number: sum(row) for bid, row in zip(bids, flow, strict=True)}
    gave = {ask.number: sum(row[j] for row in flow) for j, ask in enumerate(asks)}
    demand = sorted({b.cell for b in bids})
    supply = sorted({a.cell for a in asks})
    between = cell_flow(bids, asks, got, gave, supply, demand, serves)
    return Clearing(
        pairs(bids, asks, got, gave, supply, demand, between),
        equilibrium(bids, asks, got, gave, between, serves, lowest, highest),
    )


def by_time(order: Interest) -> int:
    return order.place


def best_flow(
    gains: Sequence[Sequence[int | None]], wanted: Sequence[int], given: Sequence[int]
) -> list[list[int]]:
    """Return the flow of the greatest gain: along the longest path as long as one gains anything."""
    rows, columns = range(len(wanted)), range(len(given))
    flow = [[0 for _ in columns] for _ in rows]
    while True:
        # Columns are numbered after the rows; the gain of the best path to each and where it comes from.
        best: dict[int, tuple[int, int]] = {i: (0, -1) for i in rows if sum(flow[i]) < wanted[i]}
        changed = True
        while changed:
            changed = False
            for i in rows:
                for j in columns:
                    gain, column = gains[i][j], len(rows) + j
                    if gain is None:
                        continue
                    if i in best and (column not in best or best[i][0] + gain > best[column][0]):
                        best[column] = best[i][0] + gain, i
                        changed = True
                    if (
                        flow[i][j]
                        and column in best
                        and (i not in best or best[column][0] - gain > best[i][0])
                    ):
                        best[i] = best[column][0] - gain, column
                        changed = True
        ends = [
            (best[len(rows) + j][0], len(rows) + j)
            for j in columns
            if len(rows) + j in best and sum(row[j] for row in flow) < given[j]
        ]
        if not ends or max(ends)[0] <= 0:
            return flow
        at = max(ends)[1]
        while at != -1:
            before = best[at][1]
            if at >= len(rows):
                flow[before][at - len(rows)] += 1
            elif before != -1:
                flow[at][before - len(rows)] -= 1
            at = before


def cell_flow(
    bids: Sequence[Interest],
    asks: Sequence[Interest],
    got: dict[int, int],
    gave: dict[int, int],
    supply: Sequence[Cell],
    demand: Sequence[Cell],
    serves: Serves,
) -> dict[tuple[Cell, Cell], int]:
    """Return lots by supply and demand cell: the first gives the most to the first, and so on."""
    total = sum(got.values())
    base = total + 1
    size = len(supply) * len(demand)
    gains = [
        [
            # All lots flow first; then one pair of cells counts more than all after it.
            base ** (size + 1) + base ** (size - 1 - (s * len(demand) + d)) if serves(one, other) else None
            for d, other in enumerate(demand)
        ]
        for s, one in enumerate(supply)
    ]
    flow = best_flow(
        gains,
        [sum(gave[a.number] for a in asks if a.cell == cell) for cell in supply],
        [sum(got[b.number] for b in bids if b.cell == cell) for cell in demand],
    )
    assert sum(map(sum, flow)) == total
    return {(supply[s], demand[d]): lots for s, row in enumerate(flow) for d, lots in enumerate(row) if lots}


def pairs(
    bids: Sequence[Interest],
    asks: Sequence[Interest],
    got: dict[int, int],
    gave: dict[int, int],
    supply: Sequence[Cell],
    demand: Sequence[Cell],
    between: dict[tuple[Cell, Cell], int],
) -> dict[tuple[int, int], int]:
    """Return lots by bid and ask: lot by lot, in order, from cell to cell."""
    from_cell: dict[tuple[Cell, Cell], list[int]] = {}
    to_cell: dict[tuple[Cell, Cell], list[int]] = {}
    for cell in demand:
        ordered = sorted((b for b in bids if b.cell == cell), key=lambda b: (-b.price, b.place))
        queue = [b.number for b in ordered for _ in range(got[b.number])]
        for other in supply:
            lots = between.get((other, cell), 0)
            to_cell[other, cell], queue = queue[:lots], queue[lots:]
    for cell in supply:
        ordered = sorted((a for a in asks if a.cell == cell), key=lambda a: (a.price, a.place))
        queue = [a.number for a in ordered for _ in range(gave[a.number])]
        for other in demand:
            lots = between.get((cell, other), 0)
            from_cell[cell, other], queue = queue[:lots], queue[lots:]
    fills: dict[tuple[int, int], int] = {}
    for key, numbers in to_cell.items():
        for pair in zip(numbers, from_cell[key], strict=True):
            fills[pair] = fills.get(pair, 0) + 1
    return dict(sorted(fills.items()))


def equilibrium(
    bids: Sequence[Interest],
    asks: Sequence[Interest],
    got: dict[int, int],
    gave: dict[int, int],
    between: dict[tuple[Cell, Cell], int],
    serves: Serves,
    lowest: int,
    highest: int,
) -> dict[Cell, tuple[int, int]]:
    """Return the lowest and highest price of each supply cell that trades.

    A demand cell's price is what its bids pay. No bid is served above its price or left out below it, no
    ask sold below its price or left over above it; nobody pays more than a cell that may serve him asks.
    """
    low: dict[tuple[str, Cell], int] = {}
    high: dict[tuple[str, Cell], int] = {}
    for side, orders, done in (("demand", bids, got), ("supply", asks, gave)):
        for order in orders:
            key = side, order.cell
            low.setdefault(key, lowest)
            high.setdefault(key, highest)
            served, left = done[order.number] > 0, done[order.number] < order.lots
            if left if side == "demand" else served:
                low[key] = max(low[key], order.price)
            if served if side == "demand" else left:
                high[key] = min(high[key], order.price)
    demand = {cell for side, cell in low if side == "demand"}
    supply = {cell for side, cell in low if side == "supply"}
    reach = {cell: {other for other in demand if serves(cell, other)} for cell in supply}
    at_most = [(("demand", d), ("supply", s)) for s in supply for d in reach[s]]
    at_most += [(("supply", s), ("demand", d)) for s, d in between]
    at_most += [
        (("supply", one), ("supply", better))
        for one in supply
        for better in supply
        if reach[one] <= reach[better]
    ]
    for _ in range(len(low)):
        for less, more in at_most:
            low[more] = max(low[more], low[less])
            high[less] = min(high[less], high[more])
    assert all(low[key] <= high[key] for key in low)
    return {cell: (low["supply", cell], high["supply", cell]) for cell in sorted({s for s, _ in between})}
