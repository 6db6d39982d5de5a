"""Supply: nodes of the trace, sampled and grouped into sites, offer their hours in price steps."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from random import Random
from typing import NamedTuple
from zoneinfo import ZoneInfo

from msgspec.structs import replace

from exchange.contract import HOUR_NS
from gateway.simulation import draws
from gateway.simulation.draws import pick, stream
from gateway.simulation.market import Market, Planned, lots_of_node
from gateway.simulation.openb import MODELS, Node
from schemas.commands import CancelOrder, EnterOrder, Side

_MINUTE_NS = 60_000_000_000
_REPRICE_PAUSE_NS = 5_000_000_000


class AskPlan(NamedTuple):
    """One price step of a site in one hour; `again` is when, and at what price, it is entered anew."""

    at_ns: int
    hour: int
    step: int
    price_ticks: int
    again: tuple[int, int] | None


class SitePlan(NamedTuple):
    """A site whose capacity is not known yet: its asks are drawn, their lots are not."""

    site: int
    account: int
    class_code: str
    zone: str
    security: str
    cost_ticks: int
    steps: int
    asks: list[AskPlan]


class Supply(NamedTuple):
    """Capacity in lots by site, and how many nodes were sampled for it."""

    lots: dict[int, int]
    nodes: int


class NodeDeck:
    """The nodes of each class in a seeded order, dealt to the class's sites until a target is reached.

    A larger target deals the same nodes to the same sites, and then more. The last node offers only
    what the target still lacks. When a class's nodes run out they are dealt again: demand is scaled up too.
    """

    def __init__(self, market: Market, nodes: Sequence[Node]) -> None:
        self._market = market
        self._lots: dict[str, list[int]] = {}
        for code, accelerator in market.classes.items():
            lots = [lots_of_node(node.gpus, accelerator) for node in nodes if MODELS[node.model] == code]
            stream(market.seed, "nodes", code).shuffle(lots)
            self._lots[code] = [count for count in lots if count]

    def sample(self, code: str, target_lots: int) -> Iterator[int]:
        """Yield the lots of one node after another up to the target."""
        lots = self._lots[code]
        index = 0
        while target_lots > 0:
            yield min(lots[index % len(lots)], target_lots)
            target_lots -= lots[index % len(lots)]
            index += 1

    def deal(self, sites: Sequence[SitePlan], lot_hours: Mapping[str, int], permille: int) -> Supply:
        """Return the supply that offers `permille` of each class's demanded lot-hours, a lot at least."""
        by_class: dict[str, list[SitePlan]] = {}
        for site in sites:
            by_class.setdefault(site.class_code, []).append(site)
        supply: Counter[int] = Counter()
        nodes = 0
        for code, own in by_class.items():
            random = stream(self._market.seed, "deal", code)
            shares = [(site.site, pick(random, draws.SITE_SIZE)) for site in own]
            for index, lots in enumerate(self.sample(code, self.target(lot_hours[code], permille))):
                # Every site gets one node before any gets a second.
                supply[own[index].site if index < len(own) else pick(random, shares)] += lots
                nodes += 1
        return Supply(dict(supply), nodes)

    def target(self, lot_hours: int, permille: int) -> int:
        """Return the lots that offer this part of the lot-hours over the window."""
        return max(1, lot_hours * permille // (1000 * len(self._market.window.hours)))


def plan_sites(
    market: Market,
    deck: NodeDeck,
    lot_hours: Mapping[str, int],
    *,
    least_permille: int,
    most: int,
    first_account: int,
) -> list[SitePlan]:
    """Return at most about `most` sites, by class in proportion to the demanded GPU-hours.

    Every class that is demanded has a site, and no class more sites than nodes at the least supply.
    """
    counts = _site_counts(market, lot_hours, most)
    codes: list[str] = []
    for code, count in counts.items():
        nodes = sum(1 for _ in deck.sample(code, deck.target(lot_hours[code], least_permille)))
        codes += [code] * min(count, nodes)
    accounts = _owners(market, len(codes), first_account)
    return [
        _plan_site(market, number, accounts[number - 1], code) for number, code in enumerate(codes, start=1)
    ]


def draw_asks(market: Market, sites: Sequence[SitePlan], supply: Supply, client: str) -> list[Planned]:
    """Return the asks of the sites' capacity, and those that are cancelled and entered anew."""
    planned: list[Planned] = []
    for site in sites:
        capacity = supply.lots.get(site.site, 0)
        each, rest = divmod(capacity, site.steps)
        for ask in site.asks:
            # The cheapest step takes what does not divide.
            lots = each + (rest if ask.step == 0 else 0)
            if lots == 0:
                continue
            name = f"s{site.site}-{ask.hour}-{ask.step}"
            order = EnterOrder(
                account=site.account,
                client_order_id=name,
                valid_until_ns=market.valid_until_ns(ask.at_ns),
                side=Side.SELL,
                class_code=site.class_code,
                delivery_hour=ask.hour,
                lots=lots,
                price_ticks=ask.price_ticks,
                site=site.site,
                carbon=market.grades[site.zone, ask.hour],
            )
            planned.append(Planned(ask.at_ns, client, order, site.cost_ticks))
            if ask.again is not None:
                again_ns, price_ticks = ask.again
                cancel = CancelOrder(site.account, client_order_id=name)
                planned.append(Planned(again_ns - _REPRICE_PAUSE_NS, client, cancel, 0))
                renewed = replace(
                    order,
                    client_order_id=name + "r",
                    valid_until_ns=market.valid_until_ns(again_ns),
                    price_ticks=price_ticks,
                )
                planned.append(Planned(again_ns, client, renewed, site.cost_ticks))
    return planned


def _site_counts(market: Market, lot_hours: Mapping[str, int], most: int) -> dict[str, int]:
    """Return the sites of each demanded class: one each, the others by largest remainder."""
    weights = {
        code: lot_hours[code] * accelerator.lot_eighths
        for code, accelerator in market.classes.items()
        if lot_hours.get(code)
    }
    total, spare = sum(weights.values()), max(0, most - len(weights))
    counts = {code: 1 + weight * spare // total for code, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda code: (-(weights[code] * spare % total), code))
    for code in by_remainder[: len(weights) + spare - sum(counts.values())]:
        counts[code] += 1
    return counts


def _owners(market: Market, sites: int, first_account: int) -> list[int]:
    """Return the provider of each site: providers own one to four, of any class and zone."""
    random = stream(market.seed, "owners")
    accounts: list[int] = []
    account = first_account
    while len(accounts) < sites:
        accounts += [account] * pick(random, draws.SITES_PER_PROVIDER)
        account += 1
    del accounts[sites:]
    random.shuffle(accounts)
    return accounts


def _plan_site(market: Market, number: int, account: int, code: str) -> SitePlan:
    random = stream(market.seed, "site", number)
    whole = market.classes[code].lot_eighths >= 8
    weights = draws.SITE_ZONE_WHOLE_GPU if whole else draws.SITE_ZONE_FRACTION
    zone = pick(
        random, [(one.code, weights.get(one.code, draws.SITE_ZONE_OTHER)) for one in market.site_zones]
    )
    tiers = [tier.code for tier in reversed(market.venue.security_tiers)]
    security_rank = min(pick(random, draws.SITE_SECURITY_RANK), len(tiers) - 1)
    price, highest = market.prices[code], market.venue.limits.price_max_ticks
    offer = random.choice(price.offers_ticks) * draws.COST_OF_OFFER_PERMILLE // 1000
    least, most = (price.middle_ticks * bound // 1000 for bound in draws.COST_OF_MIDDLE_PERMILLE)
    cost = min(max(offer, least), most) * pick(random, draws.COST_SPREAD_PERMILLE)
    cost = cost * (1000 + draws.SECURITY_COST_PERMILLE * security_rank) // 1_000_000
    cost = min(max(1, cost), highest)
    margins = [random.randint(*draws.FIRST_MARGIN_PERMILLE)]
    for _ in range(pick(random, draws.PRICE_STEPS) - 1):
        margins.append(margins[-1] + random.randint(*draws.NEXT_MARGIN_PERMILLE))
    asks: list[AskPlan] = []
    for hour in market.window.hours:
        for step, margin in enumerate(margins):
            price_ticks = _price_ask(market, hour, cost, margin)
            at_ns, again_ns = _time_ask(market, random, hour, step == len(margins) - 1)
            changed = min(price_ticks * random.randint(*draws.REPRICE_PERMILLE) // 1000, highest)
            again = None if again_ns is None else (again_ns, max(cost, changed))
            asks.append(AskPlan(at_ns, hour, step, price_ticks, again))
    return SitePlan(number, account, code, zone, tiers[security_rank], cost, len(margins), asks)


def _price_ask(market: Market, hour: int, cost: int, margin_permille: int) -> int:
    """Return cost plus margin by the local hour's factor, never below cost."""
    local = datetime.fromtimestamp(hour * HOUR_NS // 1_000_000_000, UTC)
    factor = draws.HOUR_PERMILLE[local.astimezone(ZoneInfo(market.venue.time_zone)).hour]
    price = cost * (1000 + margin_permille) * factor // 1_000_000
    return min(max(cost, price), market.venue.limits.price_max_ticks)


def _time_ask(market: Market, random: Random, hour: int, dearest: bool) -> tuple[int, int | None]:
    """Return when an ask is entered, and when anew at another price, if it is.

    Only a site's dearest step is: it is the least likely to be sold meanwhile.
    """
    start, gate = market.window.start_ns, market.gate_ns(hour)
    late_until = min(market.window.end_ns, gate - draws.LATE_ROOM_NS)
    at_ns = random.randrange(start, min(start + draws.EARLY_NS, gate - draws.EARLY_ROOM_NS))
    if random.randrange(100) < draws.LATE_ASKS_PERCENT and late_until > start + draws.EARLY_NS:
        at_ns = random.randrange(start + draws.EARLY_NS, late_until)
    again_from = at_ns + 30 * _MINUTE_NS
    if dearest and again_from < late_until and random.randrange(100) < draws.REPRICED_ASKS_PERCENT:
        return at_ns, random.randrange(again_from, late_until)
    return at_ns, None
