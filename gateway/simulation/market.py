"""What demand and supply of a scenario have in common: the day, the classes, prices and grades."""

from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from exchange.contract import HOUR_NS, gate_ns
from gateway.simulation.carbon import Shape, carbon_grade, hourly_intensity
from gateway.simulation.draws import EARLY_ROOM_NS
from gateway.simulation.openb import MODELS, Node
from gateway.simulation.prices import MarketPrice, Offer, market_prices
from gateway.simulation.scenario import CarbonByHour, ScenarioError
from schemas.commands import CancelOrder, EnterOrder
from schemas.venue import AcceleratorClass, Venue, Zone

VALID_NS = 60_000_000_000
_EARLY_LEAST_NS = 10 * 60_000_000_000


class Window(NamedTuple):
    """The trading day, and the delivery hours of it and the next whose gate is still ahead at its start."""

    start_ns: int
    end_ns: int
    hours: range


class Planned(NamedTuple):
    """An act, as the command that it becomes, and the client whose it is."""

    at_ns: int
    client: str
    command: EnterOrder | CancelOrder
    private_value_ticks: int


class Market(NamedTuple):
    """A venue on a day, seen by those who will trade. `classes` are those that a node of the trace has."""

    seed: int
    venue: Venue
    window: Window
    classes: dict[str, AcceleratorClass]
    prices: dict[str, MarketPrice]
    intensity: CarbonByHour
    site_zones: tuple[Zone, ...]
    grades: dict[tuple[str, int], str]

    def valid_until_ns(self, at_ns: int) -> int:
        """Return a time up to which an order sent at `at_ns` may be valid."""
        return at_ns + min(VALID_NS, self.venue.limits.valid_until_max_seconds * 1_000_000_000)

    def gate_ns(self, hour: int) -> int:
        """Return when trading in the hour ends."""
        return gate_ns(hour, self.venue.gate_seconds)


def open_market(
    seed: int,
    venue: Venue,
    day: date,
    *,
    nodes: Sequence[Node],
    offers: Sequence[Offer],
    shapes: dict[str, Shape],
) -> Market:
    """Return the market of the nodes' classes on the venue's local day.

    Sites stand in the zones whose PUE the catalogue gives: without it no carbon grade can be certified.

    Raises:
        ScenarioError: the venue lacks a class, a price, or a zone for sites.
    """
    window = trading_window(venue, day)
    classes = _classes(venue, nodes)
    site_zones = tuple(zone for zone in venue.zones if zone.pue_permille is not None)
    if not site_zones:
        raise ScenarioError(f"venue {venue.code}: no zone has a pue_permille; sites need at least one")
    intensity = hourly_intensity(venue, shapes, range(window.start_ns // HOUR_NS, window.hours.stop))
    return Market(
        seed=seed,
        venue=venue,
        window=window,
        classes=classes,
        prices=market_prices(venue, list(classes), offers),
        intensity=intensity,
        site_zones=site_zones,
        grades={
            (zone.code, hour): carbon_grade(venue, zone, intensity[zone.code, hour])
            for zone in site_zones
            for hour in window.hours
        },
    )


def trading_window(venue: Venue, day: date) -> Window:
    """Return the venue's local day and the hours to be traded; two days of delivery."""
    zone = ZoneInfo(venue.time_zone)
    start, end, last = (
        int(datetime.combine(day + timedelta(days=days), time(), zone).timestamp()) * 1_000_000_000
        for days in range(3)
    )
    first_hour = -(-start // HOUR_NS)
    while gate_ns(first_hour, venue.gate_seconds) < start + EARLY_ROOM_NS + _EARLY_LEAST_NS:
        first_hour += 1
    return Window(start, end, range(first_hour, last // HOUR_NS))


def lots_of_node(gpus: int, accelerator: AcceleratorClass) -> int:
    """Return how many lots of the class a machine of so many GPUs is."""
    return gpus * 8 // accelerator.lot_eighths


def _classes(venue: Venue, nodes: Sequence[Node]) -> dict[str, AcceleratorClass]:
    known = {one.code: one for one in venue.classes}
    classes: dict[str, AcceleratorClass] = {}
    for model, code in MODELS.items():
        gpus = [node.gpus for node in nodes if node.model == model]
        if gpus and code not in known:
            raise ScenarioError(
                f"venue {venue.code}: no class {code}, which model {model} of the trace stands for;"
                f" its classes are {', '.join(known)}"
            )
        if any(lots_of_node(count, known[code]) for count in gpus):
            classes[code] = known[code]
    if not classes:
        raise ScenarioError(f"venue {venue.code}: no node of the trace is a lot of its class")
    return classes
