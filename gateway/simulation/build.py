"""Builds a scenario: one trading day of a venue, from a trace, prices, carbon and a seed.

The same seed and inputs give the same bytes in every file. The rules: gateway/simulation/README.md.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from exchange.contract import HOUR_NS
from exchange.quantity import gpus_of, notional_micros, price_of
from gateway.simulation import carbon, openb, prices
from gateway.simulation.demand import Arrivals, Job, busy_arrivals, draw_bids, draw_buyers, draw_jobs
from gateway.simulation.draws import BUYERS_MAX, SITES_MAX
from gateway.simulation.market import Market, Planned, open_market
from gateway.simulation.openb import Node, Pod, TraceError
from gateway.simulation.prices import Offer
from gateway.simulation.rehearsal import LEAST_SUPPLY_PERMILLE, first_supply, search, unfilled_permille
from gateway.simulation.scenario import (
    Act,
    Participant,
    Scenario,
    ScenarioSummary,
    Site,
    Sources,
    write_scenario,
)
from gateway.simulation.supply import NodeDeck, SitePlan, Supply, draw_asks, plan_sites
from schemas.commands import CancelOrder, EnterOrder
from schemas.venue import Venue

SMALL = Path(__file__).parent / "scenarios" / "small"
PROVIDERS = "providers"
CERTIFIED_AFTER_HOURS = 30 * 24
"""How long a certificate outlasts the last hour that is traded in the scenario."""
FIRST_ACCOUNT = 1000
BIDS_PERMILLE = 700
"""The bids' share of the orders asked for; more where the asks are few."""
USUAL_ORDERS = 20_000
"""With fewer orders asked for there are fewer sites in proportion."""

_FUNDS_STEP_MICROS = 10_000_000_000


class Inputs(NamedTuple):
    """What is read from files."""

    nodes: list[Node]
    pods: list[Pod]
    offers: list[Offer]
    shapes: dict[str, carbon.Shape]
    sources: Sources


class Orders(NamedTuple):
    """The jobs, the lot-hours that they demand by class, and the sites before their capacity is known."""

    jobs: list[Job]
    lot_hours: dict[str, int]
    sites: list[SitePlan]


class Plan(NamedTuple):
    """A day but for its supply. `clients` says which client plays an account."""

    market: Market
    arrivals: Arrivals
    deck: NodeDeck
    orders: Orders
    bids: list[Planned]
    clients: dict[int, str]


class Cast(NamedTuple):
    """The day at one supply: who takes part, from where, and all acts in time order."""

    supply: Supply
    participants: list[Participant]
    sites: list[Site]
    acts: list[Planned]


def build(
    seed: int,
    out: Path,
    *,
    data: Path | None,
    venue: Venue,
    day: date,
    min_orders: int = USUAL_ORDERS,
    clients: int = 3,
    trace: Path | None = None,
) -> ScenarioSummary:
    """Write the scenario of a trading day to the folder `out` and return what it amounts to.

    `data` is the data folder (or a folder with nothing but a trace), `trace` a folder whose trace is
    taken instead of the data folder's. What neither has is taken from the project's own small scenario.

    Raises:
        TraceError: an input file is refused; nothing was written.
        ScenarioError: venue and trace do not fit; nothing was written.
        ValueError: an argument is out of range.
    """
    if min_orders < 1:
        raise ValueError(f"min_orders {min_orders}: at least 1 is allowed")
    if clients < 2:
        raise ValueError(f"clients {clients}: at least 2 are allowed, providers and buyers")
    inputs = read_inputs(data, trace)
    market = open_market(seed, venue, day, nodes=inputs.nodes, offers=inputs.offers, shapes=inputs.shapes)
    buyer_clients = tuple(f"buyers-{number}" for number in range(1, clients))
    plan = _plan(market, inputs, min_orders, buyer_clients)

    def rehearse(supply_permille: int) -> int:
        cast = _cast(plan, supply_permille)
        return unfilled_permille(market, cast.participants, cast.sites, cast.acts)

    best, rounds = search(rehearse, first_supply(market, plan.orders.jobs))
    cast = _cast(plan, best.supply_permille)
    summary = _summary(plan, cast, best.unfilled_permille, rounds)
    assert summary.enters >= min_orders
    scenario = Scenario(
        seed=seed,
        sources=inputs.sources,
        venue=venue.code,
        day=day.isoformat(),
        day_start_ns=market.window.start_ns,
        day_end_ns=market.window.end_ns,
        last_delivery_hour=market.window.hours.stop - 1,
        clients=(PROVIDERS, *buyer_clients),
        participants=tuple(cast.participants),
        sites=tuple(cast.sites),
        summary=summary,
    )
    acts: dict[str, list[Act]] = {client: [] for client in scenario.clients}
    for planned in cast.acts:
        acts[planned.client].append(_act(market, planned))
    write_scenario(out, scenario, acts, market.intensity)
    return summary


def read_inputs(data: Path | None, trace: Path | None = None) -> Inputs:
    """Return trace, offers and carbon shapes from the data folder, each from the small scenario if missing.

    Raises:
        TraceError: a file is refused, or the folder `trace` has none.
    """
    folder = data if trace is None else trace
    found = None if folder is None else openb.find_trace(folder)
    if found is not None:
        why = f"{found[0].name} and {found[1].name} were found"
    elif folder is None:
        why = "no data folder was named"
    else:
        why = f"neither openb_node_list*.csv* nor openb_pod_list*.csv* is in {folder.name}"
    if trace is not None and found is None:
        raise TraceError(trace, 1, "name", why, "a folder with a node list and a pod list")
    own = openb.find_trace(SMALL)
    assert own is not None
    nodes, pods = found or own
    snapshots = [] if data is None else prices.find_snapshots(data)
    grids = {} if data is None else carbon.find_grids(data)
    return Inputs(
        openb.read_nodes(nodes),
        openb.read_pods(pods),
        prices.read_offers(snapshots or [SMALL / "prices.json"]),
        {grid: carbon.read_grid(grid, path) for grid, path in grids.items()}
        or carbon.read_own_shapes(SMALL / "carbon_shapes.csv"),
        Sources(
            trace="openb" if found else "small",
            prices="gpurentalprices" if snapshots else "small",
            carbon="electricitymaps" if grids else "small",
            why=why,
        ),
    )


def _plan(market: Market, inputs: Inputs, min_orders: int, buyer_clients: Sequence[str]) -> Plan:
    arrivals = busy_arrivals(market, inputs.pods)
    deck = NodeDeck(market, inputs.nodes)
    orders = _enough_orders(market, inputs.nodes, arrivals, deck, min_orders)
    first_buyer = max(site.account for site in orders.sites) + 1
    buyers = draw_buyers(market, first_buyer, min(BUYERS_MAX, len(orders.jobs)), buyer_clients)
    return Plan(
        market=market,
        arrivals=arrivals,
        deck=deck,
        orders=orders,
        bids=draw_bids(market, orders.jobs, buyers, orders.sites),
        clients={site.account: PROVIDERS for site in orders.sites}
        | {buyer.account: buyer.client for buyer in buyers},
    )


def _enough_orders(
    market: Market, nodes: Sequence[Node], arrivals: Arrivals, deck: NodeDeck, min_orders: int
) -> Orders:
    """Return jobs and sites that make at least `min_orders` orders, already at the least supply."""
    sites_most = SITES_MAX * min(min_orders, USUAL_ORDERS) // USUAL_ORDERS
    count = min_orders * BIDS_PERMILLE // 1000 + 1
    while True:
        jobs = draw_jobs(market, nodes, arrivals, count)
        lot_hours: Counter[str] = Counter()
        for job in jobs:
            lot_hours[job.class_code] += job.lots * len(job.hours)
        sites = plan_sites(
            market,
            deck,
            lot_hours,
            least_permille=LEAST_SUPPLY_PERMILLE,
            most=sites_most,
            first_account=FIRST_ACCOUNT,
        )
        supply = deck.deal(sites, lot_hours, LEAST_SUPPLY_PERMILLE)
        asks = draw_asks(market, sites, supply, PROVIDERS)
        missing = min_orders - len(jobs) - sum(isinstance(ask.command, EnterOrder) for ask in asks)
        if missing <= 0:
            return Orders(jobs, dict(lot_hours), sites)
        count += missing


def _cast(plan: Plan, supply_permille: int) -> Cast:
    market, sites = plan.market, plan.orders.sites
    supply = plan.deck.deal(sites, plan.orders.lot_hours, supply_permille)
    asks = draw_asks(market, sites, supply, PROVIDERS)
    # Ties are broken by client, then by the order in which the acts were drawn.
    acts = sorted([*asks, *plan.bids], key=lambda act: (act.at_ns, act.client))
    worth: Counter[int] = Counter()
    for act in acts:
        if isinstance(act.command, EnterOrder):
            worth[act.command.account] += _worth_micros(market, act.command)
    participants = [
        _participant(market, account, client, worth[account])
        for account, client in sorted(plan.clients.items())
    ]
    return Cast(supply, participants, [_site(market, one, supply.lots[one.site]) for one in sites], acts)


def _participant(market: Market, account: int, client: str, worth_micros: int) -> Participant:
    # Twice the worth of all its orders covers what they reserve, fees among it, whatever is filled first.
    steps = 2 * worth_micros // _FUNDS_STEP_MICROS + 1
    return Participant(
        account=account,
        trade_group=account,
        role="provider" if client == PROVIDERS else "buyer",
        client=client,
        key_seed=sha256(f"{market.seed}/key/{account}".encode()).hexdigest(),
        funds_micros=steps * _FUNDS_STEP_MICROS,
    )


def _site(market: Market, plan: SitePlan, lots: int) -> Site:
    codes = [grade.code for grade in market.venue.carbon_grades]
    best = min(codes.index(market.grades[plan.zone, hour]) for hour in market.window.hours)
    return Site(
        site=plan.site,
        account=plan.account,
        zone=plan.zone,
        class_code=plan.class_code,
        capacity_lots=lots,
        carbon=codes[best],
        security=plan.security,
        from_hour=market.window.hours.start,
        until_hour=market.window.hours.stop + CERTIFIED_AFTER_HOURS,
    )


def _worth_micros(market: Market, order: EnterOrder) -> int:
    lot_eighths = market.classes[order.class_code].lot_eighths
    tick_micros = market.venue.currency.tick_micros
    return notional_micros(order.price_ticks, order.lots * order.hours, lot_eighths, tick_micros)


def _act(market: Market, planned: Planned) -> Act:
    match planned.command:
        case CancelOrder(account, client_order_id=name):
            return Act(planned.at_ns, account, "order.cancel", {"client_order_id": name}, 0)
        case EnterOrder() as order:
            params = _params(market, order)
            return Act(planned.at_ns, order.account, "order.enter", params, planned.private_value_ticks)


def _params(market: Market, order: EnterOrder) -> dict[str, Any]:
    params: dict[str, Any] = {
        "client_order_id": order.client_order_id,
        "side": order.side.value,
        "class": order.class_code,
        "delivery_start": order.delivery_hour * HOUR_NS,
        "hours": order.hours,
        "gpus": gpus_of(order.lots, market.classes[order.class_code].lot_eighths),
        "price": price_of(order.price_ticks, market.venue.currency.tick_micros),
    }
    if order.requirement is not None:
        return params | {"requirement": order.requirement}
    return params | {"site": order.site, "carbon": order.carbon}


def _summary(plan: Plan, cast: Cast, unfilled: int, rounds: int) -> ScenarioSummary:
    market, jobs = plan.market, plan.orders.jobs
    enters = sum(isinstance(act.command, EnterOrder) for act in cast.acts)
    roles = Counter(one.role for one in cast.participants)
    offered: Counter[str] = Counter()
    for site in cast.sites:
        offered[site.class_code] += site.capacity_lots * len(market.window.hours)
    scale = Fraction(len(jobs) * plan.arrivals.days, len(plan.arrivals.pods))
    return ScenarioSummary(
        enters=enters,
        bids=len(jobs),
        blocks=sum(len(job.hours) > 1 for job in jobs),
        asks=enters - len(jobs),
        cancels=len(cast.acts) - enters,
        providers=roles["provider"],
        buyers=roles["buyer"],
        sites=len(cast.sites),
        nodes=cast.supply.nodes,
        demanded_gpu_hours=_gpu_hours(market, plan.orders.lot_hours),
        offered_gpu_hours=_gpu_hours(market, offered),
        arrivals_scale=str(Decimal(round(scale * 100)) / 100),
        busy_days=plan.arrivals.days,
        job_hours_most=plan.arrivals.hours_most,
        pods_left_out=plan.arrivals.left_out,
        unfilled_permille=unfilled,
        rounds=rounds,
    )


def _gpu_hours(market: Market, lot_hours: Mapping[str, int]) -> str:
    eighths = sum(lots * market.classes[code].lot_eighths for code, lots in lot_hours.items())
    return gpus_of(eighths, 1)
