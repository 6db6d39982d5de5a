"""Demand: pods of the trace's busy days, resampled, become bids."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import product
from typing import NamedTuple

from exchange.contract import HOUR_NS
from exchange.eligibility import Eligibility
from gateway.simulation import draws
from gateway.simulation.draws import pick, stream
from gateway.simulation.market import Market, Planned
from gateway.simulation.openb import MODELS, Node, Pod
from gateway.simulation.scenario import ScenarioError
from gateway.simulation.supply import SitePlan
from schemas.commands import CancelOrder, EnterOrder, Requirement, Side

JOB_HOURS_MAX = 24
MEAN_JOB_HOURS_MAX = 4
"""Longer jobs are cut: to a day, and to less where the trace's jobs would take more hours on average.

So the deliveries of a day stay within what a demonstration can meter. The openb trace takes 1.8 hours.
"""

BUSY_PART = 4
"""A busy day has at least this part of the arrivals of the busiest: a quarter."""

_DAY_NS = 24 * HOUR_NS
_MINUTE_NS = 60_000_000_000


class Arrivals(NamedTuple):
    """The pods of the busy days, how many days these are, and the GPU pods that no node can serve.

    Jobs longer than `hours_most` are cut to it.
    """

    pods: list[Pod]
    days: int
    left_out: int
    hours_most: int


class Job(NamedTuple):
    """A pod in the market: lots of a class for some hours, asked for at `at_ns`."""

    at_ns: int
    class_code: str
    lots: int
    hours: range
    batch: bool


class Buyer(NamedTuple):
    """A buying account and where its users are."""

    account: int
    client: str
    zone: str


def busy_arrivals(market: Market, pods: Sequence[Pod]) -> Arrivals:
    """Return the servable pods of the busy days.

    Raises:
        ScenarioError: no pod accepts a model that a node has.
    """
    servable = [
        pod for pod in pods if not pod.models or any(MODELS[model] in market.classes for model in pod.models)
    ]
    if not servable:
        raise ScenarioError("no pod of the trace accepts a model that a node has; at least one is needed")
    by_day = Counter(pod.arrival_ns // _DAY_NS for pod in servable)
    most = max(by_day.values())
    days = {day for day, count in by_day.items() if count * BUSY_PART >= most}
    busy = [pod for pod in servable if pod.arrival_ns // _DAY_NS in days]
    wanted = [_whole_hours(pod.duration_ns) for pod in busy]
    hours_most = JOB_HOURS_MAX
    while sum(min(hours, hours_most) for hours in wanted) > MEAN_JOB_HOURS_MAX * len(busy):
        hours_most -= 1
    return Arrivals(busy, len(days), len(pods) - len(servable), hours_most)


def draw_jobs(market: Market, nodes: Iterable[Node], arrivals: Arrivals, count: int) -> list[Job]:
    """Return `count` jobs: pods drawn with replacement, at their time of day, each of one class.

    A pod of several classes, or of none named, takes one by the GPUs that the trace's nodes have of it.
    """
    gpus: Counter[str] = Counter()
    for node in nodes:
        gpus[MODELS[node.model]] += node.gpus
    day_ns = market.window.end_ns - market.window.start_ns
    random = stream(market.seed, "jobs")
    jobs: list[Job] = []
    for _ in range(count):
        pod = random.choice(arrivals.pods)
        named = [MODELS[model] for model in pod.models] or list(market.classes)
        code = pick(random, [(code, gpus[code]) for code in named if code in market.classes])
        jitter_ns = random.randint(-draws.ARRIVAL_JITTER_NS, draws.ARRIVAL_JITTER_NS)
        # Around midnight the jitter is mirrored, so that an evening stays an evening.
        of_day_ns = abs(pod.arrival_ns % _DAY_NS + jitter_ns)
        of_day_ns = min(of_day_ns, 2 * _DAY_NS - 1 - of_day_ns)
        at_ns = market.window.start_ns + min(of_day_ns, day_ns - 1)
        lot_eighths = market.classes[code].lot_eighths
        lots = min(-(-pod.gpu_milli * 8 // (1000 * lot_eighths)), market.venue.limits.order_max_lots)
        wanted = min(_whole_hours(pod.duration_ns), arrivals.hours_most)
        hours = _delivery_hours(market, at_ns, wanted, pick(random, draws.LEAD_HOURS))
        jobs.append(Job(at_ns, code, lots, hours, pod.qos in draws.BATCH_QOS))
    return jobs


def draw_buyers(market: Market, first_account: int, count: int, clients: Sequence[str]) -> list[Buyer]:
    """Return the buying accounts, dealt to the clients in turn."""
    metros = [zone.code for zone in market.venue.zones if zone.kind == "metro"]
    zones = [
        (code, draws.BUYER_ZONE.get(code, draws.BUYER_ZONE_OTHER))
        for code in metros or [zone.code for zone in market.venue.zones]
    ]
    random = stream(market.seed, "buyers")
    return [
        Buyer(first_account + index, clients[index % len(clients)], pick(random, zones))
        for index in range(count)
    ]


def draw_bids(
    market: Market, jobs: Sequence[Job], buyers: Sequence[Buyer], sites: Sequence[SitePlan]
) -> list[Planned]:
    """Return the bids, and the cancels of a few of them; each buyer has looked at what the sites offer."""
    # A few buyers send much and many send little, as tenants do.
    buyer_weights = [(buyer, 1000 // (rank + 5)) for rank, buyer in enumerate(buyers)]
    desk = _RequirementDesk(market, sites)
    planned: list[Planned] = []
    for number, job in enumerate(jobs, start=1):
        random = stream(market.seed, "bid", number)
        buyer = pick(random, buyer_weights)
        latency_table = draws.LATENCY_RANK_BATCH if job.batch else draws.LATENCY_RANK_SERVICE
        ranks = Ranks(
            pick(random, draws.CARBON_RANK), pick(random, latency_table), pick(random, draws.SECURITY_RANK)
        )
        requirement, strictness = desk.nearest(buyer.zone, ranks, job)
        value = market.prices[job.class_code].middle_ticks * pick(random, draws.VALUE_PERMILLE)
        value = value * random.randint(*draws.VALUE_SPREAD_PERMILLE)
        value = value * (1000 + draws.STRICTNESS_PERMILLE * strictness) // 10**9
        value = min(max(1, value), market.venue.limits.price_max_ticks)
        limit = max(1, value * (1000 - random.randint(0, draws.SHADE_PERMILLE_MAX)) // 1000)
        client_order_id = f"b{number}"
        bid = EnterOrder(
            account=buyer.account,
            client_order_id=client_order_id,
            valid_until_ns=market.valid_until_ns(job.at_ns),
            side=Side.BUY,
            class_code=job.class_code,
            delivery_hour=job.hours.start,
            hours=len(job.hours),
            lots=job.lots,
            price_ticks=limit,
            requirement=requirement,
        )
        planned.append(Planned(job.at_ns, buyer.client, bid, value))
        earliest, latest = job.at_ns + 5 * _MINUTE_NS, market.gate_ns(job.hours.start) - 5 * _MINUTE_NS
        latest = min(latest, market.window.end_ns)
        if random.randrange(100) < draws.CANCELED_BIDS_PERCENT and earliest < latest:
            cancel = CancelOrder(buyer.account, client_order_id=client_order_id)
            planned.append(Planned(random.randrange(earliest, latest), buyer.client, cancel, 0))
    return planned


class Ranks(NamedTuple):
    """What a buyer would like, counted from the worst tier of each attribute upwards."""

    carbon: int
    latency: int
    security: int


class _RequirementDesk:
    """Turns a wish into the nearest requirement that some site of the class can serve in every hour."""

    def __init__(self, market: Market, sites: Sequence[SitePlan]) -> None:
        self._market = market
        self._eligibility = Eligibility(market.venue)
        self._supply: dict[str, list[tuple[str, str]]] = {}
        for site in sites:
            terms = self._supply.setdefault(site.class_code, [])
            if (site.zone, site.security) not in terms:
                terms.append((site.zone, site.security))
        self._codes = [
            [one.code for one in reversed(market.venue.carbon_grades)],
            [one.code for one in reversed(market.venue.latency_tiers)],
            [one.code for one in reversed(market.venue.security_tiers)],
        ]

    def nearest(self, zone: str, wish: Ranks, job: Job) -> tuple[Requirement, int]:
        """Return the requirement and its strictness, the sum of its ranks.

        The wish is relaxed by the fewest ranks, carbon before latency before security; where no site
        serves even the worst tiers, the wish stands.
        """
        tops = [min(rank, len(codes) - 1) for rank, codes in zip(wish, self._codes, strict=True)]
        candidates = sorted(
            product(*(range(top + 1) for top in tops)),
            key=lambda ranks: (-sum(ranks), ranks),
        )
        for ranks in candidates:
            requirement = self._requirement(zone, ranks)
            if self._is_served(requirement, job):
                return requirement, sum(ranks)
        return self._requirement(zone, tops), sum(tops)

    def _requirement(self, zone: str, ranks: Sequence[int]) -> Requirement:
        carbon, latency, security = (codes[rank] for codes, rank in zip(self._codes, ranks, strict=True))
        return Requirement(zone, latency, carbon, security)

    def _is_served(self, requirement: Requirement, job: Job) -> bool:
        grades, serves = self._market.grades, self._eligibility.site_serves
        return any(
            all(serves(requirement, zone, grades[zone, hour], security) for hour in job.hours)
            for zone, security in self._supply[job.class_code]
        )


def _whole_hours(duration_ns: int) -> int:
    """Return the hours that a job takes, rounded up: one at least."""
    return max(1, -(-duration_ns // HOUR_NS))


def _delivery_hours(market: Market, at_ns: int, wanted: int, lead: int) -> range:
    """Return the delivery hours, which begin `lead` after the first that the gate leaves room for."""
    window = market.window.hours
    earliest = -(-(at_ns + draws.BID_ROOM_NS + market.venue.gate_seconds * 1_000_000_000) // HOUR_NS)
    earliest = max(earliest, window.start)
    hours = min(wanted, market.venue.limits.block_max_hours, window.stop - earliest)
    # A job that would end after the last hour starts sooner.
    start = min(earliest + lead, window.stop - hours)
    return range(start, start + hours)
