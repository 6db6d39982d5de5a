"""Call auctions: what takes part in one, and an exact check of a proposed clearing. Rules 36 to 40.

All orders of a call stand in one line: by price; at one price asks before bids, the earlier of two
asks before the later, the earlier of two bids after the later. Moving lots between cells costs
nothing. So all that can be better about a clearing is one of four steps along cells that may meet or
do: an ask for an ask, a bid for a bid, a trade more, or a trade less. Each compares two orders, and it
is an improvement by rule 37 exactly when they stand the wrong way round in the line. Places in the
line are therefore all that is compared.
"""

from collections.abc import Callable, Iterable, Sequence

from schemas.commands import CallFill
from schemas.reasons import RejectReason

NOWHERE = -1
"""The place of a bound that there is not."""


class CallOrder:
    """An open order. Of two the earlier has the lower `priority`; `cell` is a cell of its own side."""

    __slots__ = ("cell", "lots", "order_id", "price_ticks", "priority")

    def __init__(self, order_id: int, price_ticks: int, lots: int, cell: int, priority: int) -> None:
        self.order_id = order_id
        self.price_ticks = price_ticks
        self.lots = lots
        self.cell = cell
        self.priority = priority


class CellClearing:
    """What a supply cell that trades clears at: `price_ticks` is the floor of the mean of the other two."""

    __slots__ = ("cell", "highest_ticks", "lowest_ticks", "price_ticks")

    def __init__(self, cell: int, lowest_ticks: int, highest_ticks: int, price_ticks: int) -> None:
        self.cell = cell
        self.lowest_ticks = lowest_ticks
        self.highest_ticks = highest_ticks
        self.price_ticks = price_ticks


class CallBook:
    """The orders that take part in a call (rule 36), in the line, and the cells that they are in.

    `served_by` gives for a demand cell a table over supply cells: 1 where the cell may serve it.
    Cells with orders are numbered anew, from 0, in their order; `buyers` of a supply cell and `sellers`
    of a demand cell are bit masks over these numbers.

    By place in the line: `orders`, `ticks` (the price within the collar), `is_bid`, `cell`. By cell:
    `asks` and `bids`, the places of its orders, best first. By order id: `ask_place` and `bid_place`.
    """

    __slots__ = (
        "ask_place",
        "asks",
        "bid_place",
        "bids",
        "buyers",
        "cell",
        "demand_cells",
        "is_bid",
        "orders",
        "sellers",
        "supply_cells",
        "ticks",
    )

    def __init__(
        self,
        asks: Iterable[CallOrder],
        bids: Iterable[CallOrder],
        served_by: Callable[[int], bytes],
        low_ticks: int,
        high_ticks: int,
    ) -> None:
        assert low_ticks <= high_ticks
        # An order id ends the key, so that orders themselves are never compared.
        line: list[tuple[int, bool, int, int, CallOrder]] = []
        for ask in asks:
            if ask.price_ticks <= high_ticks:
                line.append((max(ask.price_ticks, low_ticks), False, ask.priority, ask.order_id, ask))  # noqa: PERF401
        for bid in bids:
            if bid.price_ticks >= low_ticks:
                line.append((min(bid.price_ticks, high_ticks), True, -bid.priority, -bid.order_id, bid))  # noqa: PERF401
        line.sort()
        self.ticks = [key[0] for key in line]
        self.is_bid = [key[1] for key in line]
        self.orders = [key[4] for key in line]
        self.supply_cells = sorted({key[4].cell: None for key in line if not key[1]})
        self.demand_cells = sorted({key[4].cell: None for key in line if key[1]})
        supply = {cell: number for number, cell in enumerate(self.supply_cells)}
        demand = {cell: number for number, cell in enumerate(self.demand_cells)}
        self.cell: list[int] = []
        self.asks: list[list[int]] = [[] for _ in supply]
        self.bids: list[list[int]] = [[] for _ in demand]
        self.ask_place: dict[int, int] = {}
        self.bid_place: dict[int, int] = {}
        for place, order in enumerate(self.orders):
            assert order.lots > 0
            if self.is_bid[place]:
                number = demand[order.cell]
                self.bids[number].append(place)
                self.bid_place[order.order_id] = place
            else:
                number = supply[order.cell]
                self.asks[number].append(place)
                self.ask_place[order.order_id] = place
            self.cell.append(number)
        for places in self.bids:
            places.reverse()
        assert len(self.ask_place) + len(self.bid_place) == len(line), "an order id stands for two orders"
        self.buyers = [0] * len(supply)
        self.sellers = [0] * len(demand)
        for buyer, demand_cell in enumerate(self.demand_cells):
            table = served_by(demand_cell)
            for seller, supply_cell in enumerate(self.supply_cells):
                if table[supply_cell]:
                    self.buyers[seller] |= 1 << buyer
                    self.sellers[buyer] |= 1 << seller


class Matching:
    """Lots matched: `filled` by place in the line, `flow` by supply cell and then demand cell.

    `served` of a supply cell and `suppliers` of a demand cell are bit masks: between which lots flow.
    """

    __slots__ = ("filled", "flow", "served", "suppliers")

    def __init__(self, book: CallBook) -> None:
        self.filled = [0] * len(book.orders)
        self.flow: list[dict[int, int]] = [{} for _ in book.asks]
        self.served = [0] * len(book.asks)
        self.suppliers = [0] * len(book.bids)

    def move(self, supply: int, demand: int, lots: int) -> None:
        """Let so many more lots, or fewer, flow between two cells."""
        flow = self.flow[supply]
        total = flow.get(demand, 0) + lots
        assert total >= 0
        if total:
            flow[demand] = total
            self.served[supply] |= 1 << demand
            self.suppliers[demand] |= 1 << supply
        else:
            del flow[demand]
            self.served[supply] &= ~(1 << demand)
            self.suppliers[demand] &= ~(1 << supply)


def crosses(book: CallBook) -> bool:
    """Say whether any ask that takes part may meet a bid at its price."""
    for places, sellers in zip(book.bids, book.sellers, strict=True):
        for seller in bits(sellers):
            if book.asks[seller][0] < places[0]:
                return True
    return False


def fault(book: CallBook, fills: Sequence[CallFill], prices: Sequence[CellClearing]) -> RejectReason | None:
    """Return what is wrong with a proposed clearing, or None if it is the one right one.

    `CLEARING_INFEASIBLE`: fills that do not ascend by bid, then ask, or name an order that takes no part,
    orders that may not meet, no lots, or more than are open. `CLEARING_NOT_OPTIMAL`: not what rules 37 and
    38 say. `CLEARING_PRICES_WRONG`: not the prices of rule 39, by cell, of the cells that trade.
    """
    matching = _matching(book, fills)
    if matching is None:
        return RejectReason.CLEARING_INFEASIBLE
    if not (_is_best(book, matching) and _flows_in_order(book, matching)):
        return RejectReason.CLEARING_NOT_OPTIMAL
    if pairs(book, matching) != [(fill.bid_order_id, fill.ask_order_id, fill.lots) for fill in fills]:
        return RejectReason.CLEARING_NOT_OPTIMAL
    right = cell_prices(book, matching)
    if len(right) != len(prices):
        return RejectReason.CLEARING_PRICES_WRONG
    for ours, theirs in zip(right, prices, strict=True):
        if (
            ours.cell != theirs.cell
            or ours.lowest_ticks != theirs.lowest_ticks
            or ours.highest_ticks != theirs.highest_ticks
            or ours.price_ticks != theirs.price_ticks
        ):
            return RejectReason.CLEARING_PRICES_WRONG
    return None


def pairs(book: CallBook, matching: Matching) -> list[tuple[int, int, int]]:
    """Return (bid id, ask id, lots), ascending: who meets whom by rule 38 when so many lots flow."""
    found: list[tuple[int, int, int]] = []
    next_bid = [0] * len(book.bids)
    bid_taken = [0] * len(book.bids)
    for supply, places in enumerate(book.asks):
        next_ask = ask_taken = 0
        for demand in bits(matching.served[supply]):
            left = matching.flow[supply][demand]
            while left:
                ask = places[next_ask]
                bid = book.bids[demand][next_bid[demand]]
                ask_left = matching.filled[ask] - ask_taken
                bid_left = matching.filled[bid] - bid_taken[demand]
                lots = min(left, ask_left, bid_left)
                if lots:
                    found.append((book.orders[bid].order_id, book.orders[ask].order_id, lots))
                left -= lots
                ask_taken += lots
                bid_taken[demand] += lots
                if lots == ask_left:
                    next_ask += 1
                    ask_taken = 0
                if lots == bid_left:
                    next_bid[demand] += 1
                    bid_taken[demand] = 0
    found.sort()
    return found


def cell_prices(book: CallBook, matching: Matching) -> list[CellClearing]:
    """Return the prices of the supply cells that trade (rule 39), when the matching is the best.

    Prices are an equilibrium when p(supply) >= p(demand) for cells that may meet, with equality where
    lots flow, and no order would rather have it otherwise. So a cell's lowest price is the highest that
    keeps out, or lets trade, an order of a cell that cannot be dearer; and the other way round.

    Prices of an equilibrium stay one, and keep those of the cells that trade, when each cell that does
    not trade comes down to the cheapest that can serve all that it can. So the condition of rule 39 on
    such cells changes no price of a cell that trades, and is not computed.
    """
    lowest, _ = _lowest(book, matching)
    highest, _ = _spread(
        [(place, book.is_bid[place], book.cell[place]) for place in _upper(book, matching)],
        book.buyers,
        matching.suppliers,
        (1 << len(book.asks)) - 1,
    )
    found: list[CellClearing] = []
    for supply, cell in enumerate(book.supply_cells):
        if matching.served[supply]:
            low, high = book.ticks[lowest[supply]], book.ticks[highest[supply]]
            found.append(CellClearing(cell, low, high, (low + high) // 2))
    return found


def bits(mask: int) -> list[int]:
    """Return the numbers of the bits that are set, ascending."""
    found: list[int] = []
    while mask:
        lowest = mask & -mask
        found.append(lowest.bit_length() - 1)
        mask ^= lowest
    return found


def _matching(book: CallBook, fills: Sequence[CallFill]) -> Matching | None:
    """Return what the fills add up to, None if they are not feasible."""
    matching = Matching(book)
    last = (0, 0)
    for index, fill in enumerate(fills):
        pair = (fill.bid_order_id, fill.ask_order_id)
        if (index and pair <= last) or fill.lots <= 0:
            return None
        last = pair
        bid, ask = book.bid_place.get(fill.bid_order_id), book.ask_place.get(fill.ask_order_id)
        if bid is None or ask is None:
            return None
        supply, demand = book.cell[ask], book.cell[bid]
        if not book.buyers[supply] >> demand & 1:
            return None
        for place in (bid, ask):
            matching.filled[place] += fill.lots
            if matching.filled[place] > book.orders[place].lots:
                return None
        matching.move(supply, demand, fill.lots)
    return matching


def _lower(book: CallBook, matching: Matching) -> list[int]:
    """Return the places that bound a cell's price from below, highest first: filled asks, unfilled bids."""
    return [
        place
        for place in range(len(book.orders) - 1, -1, -1)
        if (
            matching.filled[place] < book.orders[place].lots
            if book.is_bid[place]
            else matching.filled[place] > 0
        )
    ]


def _upper(book: CallBook, matching: Matching) -> list[int]:
    """Return the places that bound a cell's price from above, lowest first: unfilled asks, filled bids."""
    return [
        place
        for place, order in enumerate(book.orders)
        if (matching.filled[place] > 0 if book.is_bid[place] else matching.filled[place] < order.lots)
    ]


def _lowest(book: CallBook, matching: Matching) -> tuple[list[int], list[int]]:
    """Return by supply and by demand cell the highest place that bounds its price from below."""
    return _spread(
        [(place, book.is_bid[place], book.cell[place]) for place in _lower(book, matching)],
        matching.served,
        book.sellers,
        (1 << len(book.asks)) - 1,
    )


def _is_best(book: CallBook, matching: Matching) -> bool:
    """Say whether no step improves the matching by rule 37.

    A lot can go over from any supply cell to a demand cell that it may serve, and back from a demand
    cell to one that supplies it. At the ends of such a way stand what comes in (an unfilled ask) or goes
    out (a filled bid), and what goes out (a filled ask) or comes in (an unfilled bid). The step is an
    improvement when the first stands before the second. The difference to a better matching is a sum of
    such steps and of circles among cells, so when no step improves, none is better: steps at equal prices
    only exchange orders of one side, and the earliest order that the better one fills more comes in by one
    of them, for a later one.
    """
    supply_bound, demand_bound = _lowest(book, matching)
    for place in _upper(book, matching):
        bound = demand_bound if book.is_bid[place] else supply_bound
        if bound[book.cell[place]] > place:
            return False
    return True


def _flows_in_order(book: CallBook, matching: Matching) -> bool:
    """Say whether lots flow between cells in the first way of rule 38.

    They do unless some supply cell can give more to a demand cell and less to a later one, while only
    supply cells after it change what they give. For each supply cell, `last` is by demand cell the last
    one that it serves and that could make up the lots to it.
    """
    later = 0
    for supply in range(len(book.asks) - 1, -1, -1):
        starts = [(demand, True, demand) for demand in reversed(bits(matching.served[supply]))]
        _, last = _spread(starts, matching.served, book.sellers, later)
        for demand in bits(book.buyers[supply]):
            if last[demand] > demand:
                return False
        later |= 1 << supply
    return True


def _spread(
    starts: list[tuple[int, bool, int]], from_supply: list[int], from_demand: list[int], within: int
) -> tuple[list[int], list[int]]:
    """Return by supply and by demand cell the label of the first start that reaches it, else `NOWHERE`.

    A start is (label, is a demand cell, cell). `from_supply` gives the demand cells next to each supply
    cell, `from_demand` the other way; only the supply cells in `within` are passed.
    """
    supply_label, demand_label = [NOWHERE] * len(from_supply), [NOWHERE] * len(from_demand)
    unseen_supply, unseen_demand = within, (1 << len(from_demand)) - 1
    for label, is_demand, cell in starts:
        supply = 0 if is_demand else 1 << cell & unseen_supply
        demand = 1 << cell & unseen_demand if is_demand else 0
        while supply or demand:
            unseen_supply &= ~supply
            unseen_demand &= ~demand
            next_supply = next_demand = 0
            for seen in bits(supply):
                supply_label[seen] = label
                next_demand |= from_supply[seen]
            for seen in bits(demand):
                demand_label[seen] = label
                next_supply |= from_demand[seen]
            supply = next_supply & unseen_supply
            demand = next_demand & unseen_demand
    return supply_label, demand_label
