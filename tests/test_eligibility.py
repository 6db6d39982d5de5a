"""The table of who may meet whom says what the venue's own figures say."""

import random
from itertools import product

import msgspec
import pytest

from exchange.eligibility import Eligibility
from schemas.catalogue import load_venue, venue_names
from schemas.commands import Requirement
from schemas.venue import LatencyTier, Venue
from tests.reference_engine import serves
from tests.small_venue import SMALL_VENUE


def supplies(venue: Venue) -> list[tuple[str, str, str]]:
    """Every zone, carbon grade and security tier."""
    return [
        (zone.code, grade.code, tier.code)
        for zone, grade, tier in product(venue.zones, venue.carbon_grades, venue.security_tiers)
    ]


def requirements(venue: Venue) -> list[Requirement]:
    return [
        Requirement(zone.code, latency.code, grade.code, tier.code)
        for zone, latency, grade, tier in product(
            venue.zones, venue.latency_tiers, venue.carbon_grades, venue.security_tiers
        )
    ]


def test_the_table_is_the_direct_comparison_for_every_cell_of_the_small_venue() -> None:
    eligibility = Eligibility(SMALL_VENUE)
    for need in requirements(SMALL_VENUE):
        table = eligibility.served_by(eligibility.demand_cell(need))
        assert len(table) == len(supplies(SMALL_VENUE))
        for supply in supplies(SMALL_VENUE):
            expected = serves(SMALL_VENUE, need, *supply)
            assert bool(table[eligibility.supply_cell(*supply)]) is expected, (need, supply)
            assert eligibility.site_serves(need, *supply) is expected


@pytest.mark.parametrize("name", venue_names())
def test_the_table_is_the_direct_comparison_for_sampled_cells_of_every_catalogue(name: str) -> None:
    venue = load_venue(name)
    eligibility = Eligibility(venue)
    draw = random.Random(1)
    needs, offers = requirements(venue), supplies(venue)
    outcomes = set()
    for _ in range(6000):
        need, supply = draw.choice(needs), draw.choice(offers)
        expected = serves(venue, need, *supply)
        assert eligibility.site_serves(need, *supply) is expected, (need, supply)
        outcomes.add(expected)
    assert outcomes == {True, False}


@pytest.mark.parametrize("name", venue_names())
def test_cells_are_numbered_without_gaps_or_doubles(name: str) -> None:
    venue = load_venue(name)
    eligibility = Eligibility(venue)
    offers, needs = supplies(venue), requirements(venue)
    assert [eligibility.supply_cell(*supply) for supply in offers] == list(range(len(offers)))
    assert [eligibility.supply_terms(cell) for cell in range(len(offers))] == offers
    assert [eligibility.demand_cell(need) for need in needs] == list(range(len(needs)))


def test_a_requirement_accepts_all_that_a_stricter_one_accepts() -> None:
    venue = load_venue("china")
    eligibility = Eligibility(venue)
    draw = random.Random(2)
    fields = {
        "latency": [tier.code for tier in venue.latency_tiers],
        "carbon": [grade.code for grade in venue.carbon_grades],
        "security": [tier.code for tier in venue.security_tiers],
    }
    for need in draw.sample(requirements(venue), 300):
        field = draw.choice(list(fields))
        codes = fields[field]
        rank = codes.index(getattr(need, field))
        if rank == 0:
            continue
        stricter = msgspec.structs.replace(need, **{field: codes[rank - 1]})
        wide = eligibility.served_by(eligibility.demand_cell(need))
        narrow = eligibility.served_by(eligibility.demand_cell(stricter))
        assert all(a <= b for a, b in zip(narrow, wide, strict=True)), (stricter, need)


def test_a_bound_is_met_by_a_round_trip_of_exactly_its_length() -> None:
    tiers = (LatencyTier(code="L1", max_rtt_us=4_000), LatencyTier(code="L2"))
    venue = msgspec.structs.replace(SMALL_VENUE, latency_tiers=tiers)
    need = Requirement("east", "L1", "E", "S1")
    assert Eligibility(venue).site_serves(need, "middle", "E", "S1")
    tiers = (LatencyTier(code="L1", max_rtt_us=3_999), LatencyTier(code="L2"))
    venue = msgspec.structs.replace(SMALL_VENUE, latency_tiers=tiers)
    assert not Eligibility(venue).site_serves(need, "middle", "E", "S1")


def test_the_tables_do_not_depend_on_the_order_of_the_round_trips() -> None:
    turned = msgspec.structs.replace(SMALL_VENUE, round_trips=SMALL_VENUE.round_trips[::-1])
    one, other = Eligibility(SMALL_VENUE), Eligibility(turned)
    for cell in range(len(requirements(SMALL_VENUE))):
        assert one.served_by(cell) == other.served_by(cell)
