"""What a market gave to those who traded, beside the most it could have given and beside separate books.

Surplus is the buyers' private values less the sellers' private costs, over everything traded. Fees and
prices only move it between accounts and do not count. An order whose private value is not known counts at
its own limit. What is resold counts once, from its first seller to its last buyer. Rules and worked figures:
REPORTS.md, "Surplus".
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from itertools import chain
from typing import Any, NamedTuple

import highspy
import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from exchange.depth import OpenOrder
from exchange.eligibility import Eligibility
from exchange.quantity import notional_micros
from gateway.simulation.replay import Replay
from gateway.simulation.scenario import Act
from schemas.commands import (
    AnyCommand,
    CancelOrder,
    CancelStandingOffer,
    CertifySite,
    DerateSite,
    EndCall,
    EnterOrder,
    EnterStandingOffer,
    HaltContract,
    ListStandingOffer,
    MassCancel,
    OpenEra,
    OrderType,
    PostSettlement,
    ProposeClearing,
    ReceiveReadings,
    ReplaceOrder,
    ReplaceStandingOffer,
    Requirement,
    ResumeContract,
    RetryBlock,
    Side,
    StartSettlementRun,
)
from schemas.events import (
    AnyEvent,
    OrderAccepted,
    OrderEnded,
    OrderListed,
    OrderReduced,
    OrderReplaced,
    Rejected,
    SiteCertified,
    StandingOfferEntered,
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
    worth = _Worth(values)
    # What each trade's buyer valued it at: to resell it costs him that.
    bought_at: dict[int, int] = {}
    lots_of: dict[str, int] = {}
    tick_micros = 0
    for record in records:
        command = record.command
        if isinstance(command, OpenEra):
            tick_micros = command.venue.currency.tick_micros
            lots_of = {each.code: each.lot_eighths for each in command.venue.classes}
        for event in record.events:
            worth.take_in(record, event)
            for trade in trades_of(event):
                value = worth.of[trade.bid_order_id]
                cost = bought_at[trade.position] if trade.position else worth.of[trade.ask_order_id]
                bought_at[trade.trade_id] = value
                micros += notional_micros(value - cost, trade.lots, lots_of[trade.class_code], tick_micros)
    return micros


class _Worth:
    """What each order counts at, by its id: its private value, or else its limit as it is now.

    A market order without a private value counts at the worst price at which it trades.
    """

    def __init__(self, values: PrivateValues) -> None:
        self.of: dict[int, int] = {}
        self._values = values
        self._private: set[int] = set()

    def take_in(self, record: Decoded, event: AnyEvent) -> None:
        """Follow an event of the record."""
        match event:
            case OrderAccepted() | OrderListed():
                order = entered_by(record, event)
                value = self._values.get((order.account, order.client_order_id))
                if value is not None:
                    self._private.add(event.order_id)
                else:
                    value = _limit(record, event.order_id, order)
                if value is not None:
                    self.of[event.order_id] = value
            case OrderReplaced() if event.order_id not in self._private:
                self.of[event.order_id] = event.price_ticks


def entered_by(record: Decoded, event: OrderAccepted | OrderListed) -> EnterOrder:
    """Return the order that the event of the record tells of."""
    if isinstance(event, OrderListed):
        return event.order
    assert isinstance(record.command, EnterOrder)
    return record.command


def _limit(record: Decoded, order_id: int, order: EnterOrder) -> int | None:
    """Return the order's limit, of a market order the worst price that it got; None if it got none."""
    if order.order_type is OrderType.LIMIT:
        return order.price_ticks
    prices = [
        trade.price_ticks
        for trade in chain.from_iterable(map(trades_of, record.events))
        if order_id in (trade.bid_order_id, trade.ask_order_id)
    ]
    if not prices:
        return None
    return max(prices) if order.side is Side.BUY else min(prices)


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

    def add_ask(self, order: EnterOrder, lots: int, value_ticks: int) -> None:
        """Take in an ask, a run in each of its hours. All asks come before the first bid."""
        certificate = self.sites[order.site]
        assert order.carbon is not None
        cell = self.eligibility.supply_cell(certificate.zone, order.carbon, certificate.security)
        for hour in range(order.delivery_hour, order.delivery_hour + order.hours):
            ask = _Ask(hour, order.site, cell, value_ticks)
            self.asks[ask] = self.asks.get(ask, 0) + lots
            cells = self.cells.setdefault(hour, [])
            if cell not in cells:
                cells.append(cell)

    def add_bid(self, order: EnterOrder, lots: int, value_ticks: int) -> None:
        """Take in a bid, unless there is an hour in which nothing may serve it."""
        assert order.requirement is not None
        demand = self.eligibility.demand_cell(order.requirement)
        first = order.delivery_hour
        serving = tuple(self._serving_at(hour, demand) for hour in range(first, first + order.hours))
        if not all(serving):
            return
        if order.hours == 1:
            bid = (first, serving[0], value_ticks)
            self.bids[bid] = self.bids.get(bid, 0) + lots
        else:
            block = _Block(first, serving, value_ticks)
            self.blocks[block] = self.blocks.get(block, 0) + lots

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


def upper_bound(records: Sequence[Decoded], values: PrivateValues) -> UpperBound:
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


def _markets(records: Sequence[Decoded], values: PrivateValues) -> tuple[Venue, dict[str, _ClassMarket]]:
    venue: Venue | None = None
    sites: dict[int, CertifySite] = {}
    for record in records:
        match record.command:
            case OpenEra() as era:
                venue = era.venue
            case CertifySite() as certificate if _first(record, SiteCertified) is not None:
                sites[certificate.site] = certificate
    if venue is None:
        raise ValueError("the records hold no open_era")
    eligibility = Eligibility(venue)
    markets = {each.code: _ClassMarket(eligibility, sites) for each in venue.classes}
    offered = _offered(records, values)
    for side in (Side.SELL, Side.BUY):
        for order, lots, value in offered:
            if order.side is side:
                market = markets[order.class_code]
                (market.add_ask if side is Side.SELL else market.add_bid)(order, lots, value)
    return venue, markets


def _offered(records: Sequence[Decoded], values: PrivateValues) -> list[tuple[EnterOrder, int, int]]:
    """Return every order that could have traded, with the most lots and the best value it ever had.

    Resales are left out: they offer nothing that was not offered before.
    """
    worth = _Worth(values)
    refused: list[tuple[EnterOrder, int, int]] = []
    orders: dict[int, EnterOrder] = {}
    lots: dict[int, int] = {}
    best: dict[int, int] = {}
    for record in records:
        command = record.command
        if isinstance(command, EnterOrder) and _is_beyond_bearing(record) and not command.position:
            value = values.get((command.account, command.client_order_id), command.price_ticks or None)
            if value is not None:
                refused.append((command, command.lots, value))
        for event in record.events:
            worth.take_in(record, event)
            match event:
                case OrderAccepted() | OrderListed():
                    order = entered_by(record, event)
                    if not order.position and event.order_id in worth.of:
                        orders[event.order_id] = order
                        lots[event.order_id] = order.lots
                        best[event.order_id] = worth.of[event.order_id]
                case OrderReplaced() if event.order_id in orders:
                    number = event.order_id
                    lots[number] = max(lots[number], event.lots)
                    choose = max if orders[number].side is Side.BUY else min
                    best[number] = choose(best[number], worth.of[number])
    return [*((order, lots[number], best[number]) for number, order in orders.items()), *refused]


def _first(record: Decoded, kind: type[Any]) -> Any:
    return next((event for event in record.events if isinstance(event, kind)), None)


def _is_beyond_bearing(record: Decoded) -> bool:
    """Say whether the order was well formed and in time, but more than could be borne just then."""
    rejected = _first(record, Rejected)
    return rejected is not None and rejected.reason // 100 == 5


def _could_trade(record: Decoded) -> bool:
    """Say whether the order was accepted, or well formed and in time."""
    return _first(record, OrderAccepted) is not None or _is_beyond_bearing(record)


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
        self._open: dict[int, OpenOrder] = {}
        self._hourly: dict[tuple[str, int], list[tuple[int, int]]] = {}
        self._runs: dict[tuple[str, int], list[tuple[int, int]]] = {}

    def take_in(self, record: Decoded) -> None:
        """Follow what a command did."""
        for event in record.events:
            match event:
                case OrderAccepted() | OrderListed():
                    command = entered_by(record, event)
                    if command.side is Side.SELL:
                        order = OpenOrder(event.order_id, command)
                        self._open[event.order_id] = order
                        self._offer(order)
                case OrderReplaced() if event.order_id in self._open:
                    self._open[event.order_id].replace(event)
                    self._offer(self._open[event.order_id])
                case OrderReduced() if event.order_id in self._open:
                    self._open[event.order_id].reduce(event)
                case OrderEnded():
                    self._open.pop(event.order_id, None)
            for trade in trades_of(event):
                order = self._open[trade.ask_order_id]
                order.fill(trade)
                if not order.leaves_lot_hours:
                    del self._open[trade.ask_order_id]

    def _offer(self, order: OpenOrder) -> None:
        command = order.command
        heaps = self._runs if command.hours > 1 else self._hourly
        for hour in range(command.delivery_hour, command.delivery_hour + command.hours):
            heap = heaps.setdefault((command.class_code, hour), [])
            heappush(heap, (command.price_ticks, order.order_id))
        known = self.lowest.get(command.class_code, command.price_ticks)
        self.lowest[command.class_code] = min(known, command.price_ticks)

    def best(self, class_code: str, hour: int, *, for_block: bool) -> int | None:
        """Return the lowest open price in an hour, None if nothing is offered. Runs are for blocks."""
        prices = [self._lowest_of(self._hourly.get((class_code, hour), []))]
        if for_block:
            prices.append(self._lowest_of(self._runs.get((class_code, hour), [])))
        return min((price for price in prices if price is not None), default=None)

    def _lowest_of(self, heap: list[tuple[int, int]]) -> int | None:
        while heap:
            price, order_id = heap[0]
            order = self._open.get(order_id)
            if order is not None and order.command.price_ticks == price:
                return price
            # It ended, or stands elsewhere in the heap at another price.
            heappop(heap)
        return None


OrderKey = tuple[int, str, int]
"""Whose an order is, its client's id or the name of its standing offer, and of a listed one the hour."""


def _order_key(record: Decoded, event: OrderAccepted | OrderListed) -> OrderKey:
    order = entered_by(record, event)
    hour = order.delivery_hour if isinstance(event, OrderListed) else 0
    return order.account, order.client_order_id, hour


class _Split:
    """Rewrites a log's commands for a venue in which each exact grade of a class is a class of its own."""

    def __init__(self, records: Sequence[Decoded]) -> None:
        self.asks = _Asks()
        self.books: dict[str, dict[tuple[str, str, str], _Book]] = {}
        self.sites: dict[tuple[int, str], int] = {}
        self.site_books: dict[tuple[int, str], _Book] = {}
        self.eligibility: Eligibility | None = None
        self._eligible: dict[tuple[str, Requirement], list[_Book]] = {}
        # Orders and offers by the log's ids, and the ids that they have here.
        self._orders: dict[int, OrderKey] = {}
        self._orders_here: dict[OrderKey, int] = {}
        self._offers: dict[int, tuple[int, str]] = {}
        self._offers_here: dict[tuple[int, str], int] = {}
        certificates: dict[int, CertifySite] = {}
        for record in records:
            for event in record.events:
                match event:
                    case OrderAccepted() | OrderListed():
                        self._orders[event.order_id] = _order_key(record, event)
                    case StandingOfferEntered():
                        assert isinstance(record.command, EnterStandingOffer)
                        self._offers[event.offer_id] = (event.account, record.command.name)
                    case SiteCertified():
                        assert isinstance(record.command, CertifySite)
                        certificates[event.site] = record.command
            match record.command:
                case EnterOrder(side=Side.SELL, position=0) as order if _could_trade(record):
                    assert order.carbon is not None
                    self._add_site(certificates[order.site], order.carbon)
                case EnterStandingOffer(side=Side.SELL) as offer if _first(record, StandingOfferEntered):
                    assert offer.carbon is not None
                    self._add_site(certificates[offer.site], offer.carbon)

    def take_in(self, record: Decoded) -> None:
        """Follow what a command did here."""
        self.asks.take_in(record)
        for event in record.events:
            match event:
                case OrderAccepted() | OrderListed():
                    self._orders_here[_order_key(record, event)] = event.order_id
                case StandingOfferEntered():
                    assert isinstance(record.command, EnterStandingOffer)
                    self._offers_here[event.account, record.command.name] = event.offer_id

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

        Settlement is left out, and so are orders that could not trade in any book, resales, and what the
        core does by itself: here it does it for these books.
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
            case DerateSite():
                return [
                    replace(command, site=number)
                    for (site, _), number in self.sites.items()
                    if site == command.site
                ]
            case EnterOrder() if command.position or not _could_trade(record):
                return []
            case EnterStandingOffer() if _first(record, StandingOfferEntered) is None:
                return []
            case EnterOrder(side=Side.SELL) | EnterStandingOffer(side=Side.SELL):
                assert command.carbon is not None
                site = (command.site, command.carbon)
                return [replace(command, site=self.sites[site], class_code=self.site_books[site].code)]
            case EnterOrder():
                return self._in_book(command, command.delivery_hour)
            case EnterStandingOffer():
                return self._in_book(command, command.from_hour)
            case CancelOrder(order_id=0) | ReplaceOrder(order_id=0):
                return [command]
            case CancelOrder() | ReplaceOrder():
                key = self._orders.get(command.order_id)
                order_id = None if key is None else self._orders_here.get(key)
                return [] if order_id is None else [replace(command, order_id=order_id)]
            case ReplaceStandingOffer() | CancelStandingOffer():
                name = self._offers.get(command.offer_id)
                offer_id = None if name is None else self._offers_here.get(name)
                return [] if offer_id is None else [replace(command, offer_id=offer_id)]
            case MassCancel(class_code=None):
                return [command]
            case MassCancel(class_code=str(class_code)):
                return [replace(command, class_code=book.code) for book in self._books_of(class_code)]
            case HaltContract() | ResumeContract() | EndCall():
                return [replace(command, class_code=book.code) for book in self._books_of(command.class_code)]
            case ListStandingOffer() | RetryBlock() | ProposeClearing():
                return []
            case ReceiveReadings() | StartSettlementRun() | PostSettlement():
                return []
            case _:
                return [command]

    def _books_of(self, class_code: str) -> Iterable[_Book]:
        return self.books.get(class_code, {}).values()

    def _classes(self, each: AcceleratorClass) -> list[AcceleratorClass]:
        return [replace(each, code=book.code) for book in self._books_of(each.code)]

    def _in_book(self, bid: EnterOrder | EnterStandingOffer, first_hour: int) -> list[AnyCommand]:
        """Return the bid in the eligible book with the cheapest ask open now, if there is one at all.

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
                for book in self._books_of(bid.class_code)
                if self.eligibility.site_serves(bid.requirement, book.zone, book.carbon, book.security)
            ]
            self._eligible[key] = eligible
        if not eligible:
            return []
        hours = range(first_hour, first_hour + bid.hours)
        book = min(eligible, key=lambda book: self._rank(book, hours))
        return [replace(bid, class_code=book.code)]

    def _rank(self, book: _Book, hours: range) -> tuple[int, int, int, int]:
        for_block = len(hours) > 1
        best = [self.asks.best(book.code, hour, for_block=for_block) for hour in hours]
        offered = [price for price in best if price is not None]
        lowest = self.asks.lowest.get(book.code)
        never = 2**63
        return (len(hours) - len(offered), sum(offered), never if lowest is None else lowest, book.number)


def separate_books(records: Sequence[Decoded]) -> Iterator[Decoded]:
    """Yield the records of the same commands, at the same times, on one book for each exact grade.

    An exact grade is a zone, a carbon grade and a security tier. Each is a class of its own in a venue
    made for this, and the engine is the same. A site offers in the book of each grade that its asks
    claim, with its whole capacity in each; that flatters separate books where one site-hour's asks
    claim several grades. Each bid goes to one eligible book (see REPORTS.md).
    """
    split = _Split(records)
    replay = Replay()
    sequence = 0
    for record in records:
        for command in split.commands(record):
            for applied in replay.do(record.time_ns, command):
                sequence += 1
                made = Decoded(sequence, applied.time_ns, applied.command, applied.events)
                split.take_in(made)
                yield made
