"""What a market gave to those who traded, beside the most it could have given and beside separate books.

Surplus is the buyers' private values less the sellers' private costs, over everything traded. Fees and
prices only move it between accounts and do not count. An order whose private value is not known counts at
its own limit. Rules and worked figures: REPORTS.md, "Surplus".
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from itertools import chain
from typing import Any, NamedTuple

import highspy
import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from exchange.eligibility import Eligibility
from exchange.engine import Engine
from exchange.quantity import notional_micros
from gateway.simulation.scenario import Act
from schemas.commands import (
    AnyCommand,
    CancelOrder,
    CertifySite,
    EnterOrder,
    OpenEra,
    PostSettlement,
    ReceiveReadings,
    Requirement,
    Side,
    StartSettlementRun,
)
from schemas.events import (
    AnyEvent,
    OrderAccepted,
    OrderEnded,
    Rejected,
    SiteCertified,
    trades_of,
)
from schemas.records import Decoded
from schemas.venue import AcceleratorClass, Venue

PRICE_UNITS = 1024
"""Shadow prices are rounded to this part of a tick, so that the bound is computed in integers."""

PrivateValues = Mapping[tuple[int, str], int]
"""Ticks per GPU-hour by account and client order id."""


class UpperBound(Struct, frozen=True):
    """No set of trades among the orders is worth more than `micros`.

    `lp_status` is what the solver says of each class that is not optimal, else `optimal`; the bound
    holds whatever it says. `gap_ppm` is how far the bound lies above the solver's optimum.
    """

    micros: int
    lp_status: str
    gap_ppm: int


class SurplusReport(Struct, frozen=True, kw_only=True):
    """Surplus in millionths of the currency, and its share of the bound (rounded down; None of nothing)."""

    traded_micros: int
    separate_books_micros: int
    upper_bound_micros: int
    lp_status: str
    lp_gap_ppm: int
    surplus_ratio_permille: int | None
    surplus_ratio_separate_books_permille: int | None


def private_values(acts: Iterable[Act]) -> dict[tuple[int, str], int]:
    """Return the private values of the orders that the acts enter."""
    return {
        (act.account, act.params["client_order_id"]): act.private_value_ticks
        for act in acts
        if act.method == "order.enter"
    }


def surplus_report(records: Sequence[Decoded], values: PrivateValues) -> SurplusReport:
    """Return the surplus of the log's records beside its bound and beside separate books."""
    traded = traded_surplus(records, values)
    separate = traded_surplus(separate_books(records), values)
    bound = upper_bound(records, values)
    return SurplusReport(
        traded_micros=traded,
        separate_books_micros=separate,
        upper_bound_micros=bound.micros,
        lp_status=bound.lp_status,
        lp_gap_ppm=bound.gap_ppm,
        surplus_ratio_permille=_permille(traded, bound.micros),
        surplus_ratio_separate_books_permille=_permille(separate, bound.micros),
    )


def _permille(part: int, whole: int) -> int | None:
    return part * 1000 // whole if whole else None


def traded_surplus(records: Iterable[Decoded], values: PrivateValues) -> int:
    """Return the surplus of all trades, legs of blocks included, in micros; exact."""
    micros = 0
    value_of: dict[int, int] = {}
    lots_of: dict[str, int] = {}
    tick_micros = 0
    for record in records:
        command = record.command
        if isinstance(command, OpenEra):
            tick_micros = command.venue.currency.tick_micros
            lots_of = {each.code: each.lot_eighths for each in command.venue.classes}
        for event in record.events:
            if isinstance(event, OrderAccepted) and isinstance(command, EnterOrder):
                value_of[event.order_id] = _value(command, values)
        for trade in chain.from_iterable(map(trades_of, record.events)):
            margin = value_of[trade.bid_order_id] - value_of[trade.ask_order_id]
            micros += notional_micros(margin, trade.lots, lots_of[trade.class_code], tick_micros)
    return micros


def _value(order: EnterOrder, values: PrivateValues) -> int:
    return values.get((order.account, order.client_order_id), order.price_ticks)


# -- the bound -----------------------------------------------------------------------------------------

Cell = int
"""A supply cell of `Eligibility`."""
Serving = tuple[Cell, ...]
"""The supply cells that have asks in an hour and may serve a demand. Demands alike in it are one."""


class _Block(NamedTuple):
    first_hour: int
    serving: tuple[Serving, ...]
    value_ticks: int


class _Ask(NamedTuple):
    hour: int
    site: int
    cell: Cell
    cost_ticks: int


class _ClassMarket:
    """All orders of a class as if they had been there at once; what is alike is one entry with its lots."""

    def __init__(self, eligibility: Eligibility, sites: Mapping[int, CertifySite]) -> None:
        self.eligibility = eligibility
        self.sites = sites
        self.asks: dict[_Ask, int] = {}
        self.bids: dict[tuple[int, Serving, int], int] = {}
        self.blocks: dict[_Block, int] = {}
        self.cells: dict[int, list[Cell]] = {}
        self._serving: dict[tuple[int, Cell], Serving] = {}

    def add_ask(self, order: EnterOrder, value_ticks: int) -> None:
        """Take in an ask. All asks come before the first bid."""
        certificate = self.sites[order.site]
        assert order.carbon is not None
        cell = self.eligibility.supply_cell(certificate.zone, order.carbon, certificate.security)
        ask = _Ask(order.delivery_hour, order.site, cell, value_ticks)
        self.asks[ask] = self.asks.get(ask, 0) + order.lots
        cells = self.cells.setdefault(order.delivery_hour, [])
        if cell not in cells:
            cells.append(cell)

    def add_bid(self, order: EnterOrder, value_ticks: int) -> None:
        """Take in a bid, unless there is an hour in which nothing may serve it."""
        assert order.requirement is not None
        demand = self.eligibility.demand_cell(order.requirement)
        first = order.delivery_hour
        serving = tuple(self._serving_at(hour, demand) for hour in range(first, first + order.hours))
        if not all(serving):
            return
        if order.hours == 1:
            bid = (first, serving[0], value_ticks)
            self.bids[bid] = self.bids.get(bid, 0) + order.lots
        else:
            block = _Block(first, serving, value_ticks)
            self.blocks[block] = self.blocks.get(block, 0) + order.lots

    def _serving_at(self, hour: int, demand: Cell) -> Serving:
        known = self._serving.get((hour, demand))
        if known is None:
            table = self.eligibility.served_by(demand)
            known = tuple(cell for cell in self.cells.get(hour, ()) if table[cell])
            self._serving[hour, demand] = known
        return known


class _Lp:
    """A linear programme in the making: columns with bounds, rows `sum <= limit`."""

    def __init__(self) -> None:
        self.costs: list[int] = []
        self.uppers: list[float] = []
        self.limits: list[int] = []
        self.entries: list[tuple[int, int, int]] = []

    def row(self, limit: int = 0) -> int:
        """Add an empty row and return its number."""
        self.limits.append(limit)
        return len(self.limits) - 1

    def column(self, cost: int, upper: float, entries: Iterable[tuple[int, int]]) -> None:
        """Add a variable from 0 to `upper` with its (row, coefficient) entries."""
        column = len(self.costs)
        self.costs.append(cost)
        self.uppers.append(upper)
        self.entries += ((column, row, coefficient) for row, coefficient in entries)

    def solved(self) -> "_Solution":
        """Minimise the costs."""
        highs: Any = highspy.Highs()  # type: ignore[no-untyped-call]
        for option, value in (("output_flag", False), ("threads", 1), ("random_seed", 0)):
            highs.setOptionValue(option, value)
        highs.passModel(self._model())
        highs.run()
        return _Solution(
            highs.modelStatusToString(highs.getModelStatus()).lower(),
            highs.getInfo().objective_function_value,
            highs.getSolution().row_dual,
        )

    def _model(self) -> Any:
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = len(self.costs), len(self.limits)
        lp.col_cost_ = np.array(self.costs, dtype=np.float64)
        lp.col_lower_ = np.zeros(lp.num_col_)
        lp.col_upper_ = np.array(self.uppers, dtype=np.float64)
        lp.row_lower_ = np.full(lp.num_row_, -highspy.kHighsInf)
        lp.row_upper_ = np.array(self.limits, dtype=np.float64)
        entries = np.array(self.entries, dtype=np.int64).reshape(-1, 3)
        # The columns were added in order, so the entries are in column order already.
        counts = np.bincount(entries[:, 0], minlength=lp.num_col_)
        lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        lp.a_matrix_.start_ = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
        lp.a_matrix_.index_ = entries[:, 1].astype(np.int32)
        lp.a_matrix_.value_ = entries[:, 2].astype(np.float64)
        return lp


class _Solution(NamedTuple):
    status: str
    objective: float
    row_duals: list[float]


def upper_bound(records: Iterable[Decoded], values: PrivateValues) -> UpperBound:
    """Return a bound on the surplus of any trades among the orders entered.

    All orders are taken as there at once, at their private values; a block may be filled in part, and
    from several sites; a site-hour sells at most its certified capacity. The linear programme gives
    shadow prices of supply by hour and cell; the bound is what all orders together would gain at those
    prices, rounded to integers. By weak duality that is a bound whatever the prices are, so no
    tolerance of the solver enters it.
    """
    venue, markets = _markets(records, values)
    lots_of = {each.code: each.lot_eighths for each in venue.classes}
    micros = 0
    solver_micros = 0
    troubles: list[str] = []
    for class_code, market in markets.items():
        if not (market.asks and (market.bids or market.blocks)):
            continue
        solution, prices = _solve(market)
        if solution.status != "optimal":
            troubles.append(f"{class_code}: {solution.status}")
        unit_micros = notional_micros(1, 1, lots_of[class_code], venue.currency.tick_micros)
        micros += -(-_gains(market, prices) * unit_micros // PRICE_UNITS)
        solver_micros += int(-solution.objective * unit_micros)
    gap_ppm = (micros - solver_micros) * 1_000_000 // micros if micros else 0
    return UpperBound(micros, "; ".join(troubles) or "optimal", max(0, gap_ppm))


def _markets(records: Iterable[Decoded], values: PrivateValues) -> tuple[Venue, dict[str, _ClassMarket]]:
    venue: Venue | None = None
    sites: dict[int, CertifySite] = {}
    orders: list[EnterOrder] = []
    for record in records:
        match record.command:
            case OpenEra() as era:
                venue = era.venue
            case CertifySite() as certificate if _first(record, SiteCertified) is not None:
                sites[certificate.site] = certificate
            case EnterOrder() as order if _could_trade(record):
                orders.append(order)
    if venue is None:
        raise ValueError("the records hold no open_era")
    eligibility = Eligibility(venue)
    markets = {each.code: _ClassMarket(eligibility, sites) for each in venue.classes}
    for side in (Side.SELL, Side.BUY):
        for order in orders:
            if order.side is side:
                market = markets[order.class_code]
                (market.add_ask if side is Side.SELL else market.add_bid)(order, _value(order, values))
    return venue, markets


def _first(record: Decoded, kind: type[Any]) -> Any:
    return next((event for event in record.events if isinstance(event, kind)), None)


def _could_trade(record: Decoded) -> bool:
    """Say whether the order was well formed and in time: accepted, or more than could be borne just then."""
    if _first(record, OrderAccepted) is not None:
        return True
    rejected = _first(record, Rejected)
    return rejected is not None and rejected.reason // 100 == 5


Prices = dict[tuple[int, Cell], int]
"""Shadow prices by hour and supply cell, in ticks / `PRICE_UNITS`."""


def _solve(market: _ClassMarket) -> tuple[_Solution, Prices]:
    lp = _Lp()
    supply = {(hour, cell): lp.row() for hour, cells in market.cells.items() for cell in cells}
    demand: dict[tuple[int, Serving], int] = {}
    listed: dict[tuple[int, int], int] = {}
    for ask, lots in market.asks.items():
        listed[ask.hour, ask.site] = listed.get((ask.hour, ask.site), 0) + lots
    room = {
        (hour, site): lp.row(market.sites[site].capacity_lots)
        for (hour, site), lots in listed.items()
        if lots > market.sites[site].capacity_lots
    }

    def demand_row(hour: int, serving: Serving) -> int:
        row = demand.get((hour, serving))
        if row is None:
            demand[hour, serving] = row = lp.row()
        return row

    for ask, lots in market.asks.items():
        entries = [(supply[ask.hour, ask.cell], -1)]
        if (ask.hour, ask.site) in room:
            entries.append((room[ask.hour, ask.site], 1))
        lp.column(ask.cost_ticks, lots, entries)
    for (hour, serving, value), lots in market.bids.items():
        lp.column(-value, lots, [(demand_row(hour, serving), 1)])
    for block, lots in market.blocks.items():
        rows = [
            (demand_row(hour, serving), 1) for hour, serving in enumerate(block.serving, block.first_hour)
        ]
        lp.column(-block.value_ticks * len(rows), lots, rows)
    for (hour, serving), row in demand.items():
        for cell in serving:
            lp.column(0, highspy.kHighsInf, [(row, -1), (supply[hour, cell], 1)])
    solution = lp.solved()
    duals = solution.row_duals or [0.0] * len(lp.limits)
    prices = {node: max(0, round(-duals[row] * PRICE_UNITS)) for node, row in supply.items()}
    return solution, prices


def _gains(market: _ClassMarket, prices: Prices) -> int:
    """Return what all orders would gain at these prices, in ticks x lots / `PRICE_UNITS`; exact.

    A bid buys at the cheapest cell that may serve it. A site-hour sells its asks of the greatest
    margin, up to its capacity.
    """

    def price_at(hour: int, serving: Serving) -> int:
        return min(prices[hour, cell] for cell in serving)

    gains = 0
    for (hour, serving, value), lots in market.bids.items():
        gains += lots * max(0, value * PRICE_UNITS - price_at(hour, serving))
    for block, lots in market.blocks.items():
        cost = sum(price_at(hour, serving) for hour, serving in enumerate(block.serving, block.first_hour))
        gains += lots * max(0, block.value_ticks * len(block.serving) * PRICE_UNITS - cost)
    offers: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for ask, lots in market.asks.items():
        margin = prices[ask.hour, ask.cell] - ask.cost_ticks * PRICE_UNITS
        if margin > 0:
            offers.setdefault((ask.hour, ask.site), []).append((margin, lots))
    for (_, site), margins in offers.items():
        left = market.sites[site].capacity_lots
        for margin, lots in sorted(margins, reverse=True):
            gains += margin * min(left, lots)
            left -= min(left, lots)
    return gains


# -- separate books ------------------------------------------------------------------------------------


class _Book(NamedTuple):
    """A class in one exact grade: its own class code in the venue of separate books."""

    code: str
    number: int
    zone: str
    carbon: str
    security: str


class _Asks:
    """The open asks of the separate books, best first."""

    def __init__(self) -> None:
        self.lowest: dict[str, int] = {}
        self._leaves: dict[int, int] = {}
        self._heaps: dict[tuple[str, int], list[tuple[int, int]]] = {}

    def take_in(self, command: AnyCommand, events: Sequence[AnyEvent]) -> None:
        """Follow what a command did."""
        for event in events:
            match event:
                case OrderAccepted(order_id) if isinstance(command, EnterOrder) and command.side is Side.SELL:
                    self._leaves[order_id] = command.lots
                    heap = self._heaps.setdefault((command.class_code, command.delivery_hour), [])
                    heappush(heap, (command.price_ticks, order_id))
                    known = self.lowest.get(command.class_code, command.price_ticks)
                    self.lowest[command.class_code] = min(known, command.price_ticks)
                case OrderEnded(order_id):
                    self._leaves.pop(order_id, None)
        for trade in chain.from_iterable(map(trades_of, events)):
            self._leaves[trade.ask_order_id] -= trade.lots

    def best(self, class_code: str, hour: int) -> int | None:
        """Return the lowest open price in an hour, None if nothing is offered."""
        heap = self._heaps.get((class_code, hour), [])
        while heap and not self._leaves.get(heap[0][1]):
            heappop(heap)
        return heap[0][0] if heap else None


class _Split:
    """Rewrites a log's commands for a venue in which each exact grade of a class is a class of its own."""

    def __init__(self, records: Sequence[Decoded]) -> None:
        self.asks = _Asks()
        self.names: dict[int, tuple[int, str]] = {}
        self.books: dict[str, dict[tuple[str, str, str], _Book]] = {}
        self.sites: dict[tuple[int, str], int] = {}
        self.site_books: dict[tuple[int, str], _Book] = {}
        self.eligibility: Eligibility | None = None
        self._eligible: dict[tuple[str, Requirement], list[_Book]] = {}
        certificates: dict[int, CertifySite] = {}
        for record in records:
            match record.command:
                case CertifySite() as certificate if _first(record, SiteCertified) is not None:
                    certificates[certificate.site] = certificate
                case EnterOrder() as order:
                    accepted = _first(record, OrderAccepted)
                    if accepted is not None:
                        self.names[accepted.order_id] = (order.account, order.client_order_id)
                    if order.side is Side.SELL and _could_trade(record):
                        assert order.carbon is not None
                        self._add_site(certificates[order.site], order.carbon)

    def _add_site(self, certificate: CertifySite, carbon: str) -> None:
        if (certificate.site, carbon) in self.sites:
            return
        grade = (certificate.zone, carbon, certificate.security)
        books = self.books.setdefault(certificate.class_code, {})
        if grade not in books:
            number = sum(map(len, self.books.values())) + 1
            books[grade] = _Book(f"grade-{number}", number, *grade)
        self.sites[certificate.site, carbon] = len(self.sites) + 1
        self.site_books[certificate.site, carbon] = books[grade]

    def commands(self, record: Decoded) -> list[AnyCommand]:
        """Return what stands for the record's command, perhaps nothing.

        Settlement is left out, and so are orders that could not trade in any book.
        """
        command = record.command
        match command:
            case OpenEra():
                self.eligibility = Eligibility(command.venue)
                classes = tuple(one for each in command.venue.classes for one in self._classes(each))
                return [replace(command, venue=replace(command.venue, classes=classes))]
            case CertifySite():
                return [
                    replace(
                        command, site=number, class_code=self.site_books[site, carbon].code, carbon=carbon
                    )
                    for (site, carbon), number in self.sites.items()
                    if site == command.site
                ]
            case EnterOrder() if not _could_trade(record):
                return []
            case EnterOrder(side=Side.SELL):
                assert command.carbon is not None
                site = (command.site, command.carbon)
                return [replace(command, site=self.sites[site], class_code=self.site_books[site].code)]
            case EnterOrder():
                book = self._book_for(command)
                return [] if book is None else [replace(command, class_code=book.code)]
            case CancelOrder() if command.order_id in self.names:
                account, name = self.names[command.order_id]
                return [CancelOrder(account, client_order_id=name)]
            case ReceiveReadings() | StartSettlementRun() | PostSettlement():
                return []
            case _:
                return [command]

    def _classes(self, each: AcceleratorClass) -> list[AcceleratorClass]:
        return [replace(each, code=book.code) for book in self.books.get(each.code, {}).values()]

    def _book_for(self, bid: EnterOrder) -> _Book | None:
        """Return the eligible book with the cheapest ask open now.

        For a block: the one that offers something in most of its hours, then the cheapest in total. Where
        none offers anything: the one with the lowest ask so far in any hour, then the oldest.
        """
        assert self.eligibility is not None
        assert bid.requirement is not None
        key = (bid.class_code, bid.requirement)
        eligible = self._eligible.get(key)
        if eligible is None:
            eligible = [
                book
                for book in self.books.get(bid.class_code, {}).values()
                if self.eligibility.site_serves(bid.requirement, book.zone, book.carbon, book.security)
            ]
            self._eligible[key] = eligible
        return min(eligible, key=lambda book: self._rank(book, bid), default=None)

    def _rank(self, book: _Book, bid: EnterOrder) -> tuple[int, int, int, int]:
        hours = range(bid.delivery_hour, bid.delivery_hour + bid.hours)
        offered = [price for hour in hours if (price := self.asks.best(book.code, hour)) is not None]
        lowest = self.asks.lowest.get(book.code)
        never = 2**63
        return (bid.hours - len(offered), sum(offered), never if lowest is None else lowest, book.number)


def separate_books(records: Sequence[Decoded]) -> Iterator[Decoded]:
    """Yield the records of the same commands, at the same times, on one book for each exact grade.

    An exact grade is a zone, a carbon grade and a security tier. Each is a class of its own in a venue
    made for this, and the engine is the same. A site offers in the book of each grade that its asks
    claim, with its whole capacity in each; that flatters separate books where one site-hour's asks
    claim several grades. Each bid goes to one eligible book (see REPORTS.md).
    """
    split = _Split(records)
    engine = Engine()
    sequence = 0
    for record in records:
        for command in split.commands(record):
            events = tuple(engine.apply(record.time_ns, command))
            split.asks.take_in(command, events)
            sequence += 1
            yield Decoded(sequence, record.time_ns, command, events)
