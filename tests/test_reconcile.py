"""Reconciliation and the money that follows from it: pure, against slow twins."""

import doctest
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from exchange.contract import HOUR_NS
from schemas.venue import SettlementRules
from settlement.reconcile import (
    Evidence,
    Fill,
    Reconciliation,
    Verdict,
    counting,
    delivered_by_fill,
    delivered_gpu_ms,
    energy_by_fill,
    intensity_by_hour,
    metered_gpu_ms,
    reconcile,
    verdict_of,
)
from settlement.rules import (
    NOTHING,
    Amounts,
    ContractTrade,
    GateAsk,
    Replacement,
    posting_of,
    replacement_of,
    undelivered_lots,
)
from tests.small_venue import SMALL_VENUE

HOUR = 498_000
START_NS = HOUR * HOUR_NS
MINUTE_NS = 60 * 10**9
RULES = SettlementRules()
EAST, MIDDLE = SMALL_VENUE.zones[0], SMALL_VENUE.zones[1]
TICK_MICROS = 10_000

FILL = Fill(
    trade_id=7,
    class_code="H100-SXM",
    delivery_hour=HOUR,
    price_ticks=1000,
    lots=2,
    bid_order_id=1,
    buyer=3,
    seller=1,
    site=1,
    notional_micros=20_000_000,
    bond_micros=2_000_000,
    contracted_gpu_ms=7_200_000,
)


def row(
    gpu_ms: int,
    start: int = 0,
    end: int = 60,
    *,
    job: str = "a",
    site: int = 1,
    form: str = "slurm",
    **more: int,
) -> Evidence:
    """A reading of GPU time of trade 7; start and end in minutes of the delivery hour."""
    ns = (START_NS + start * MINUTE_NS, START_NS + end * MINUTE_NS)
    return Evidence(site, form, job, more.get("trade_id", 7), *ns, gpu_ms, None)


def found(evidence: list[Evidence]) -> Reconciliation:
    metered = metered_gpu_ms(FILL, evidence, RULES.clock_skew_seconds)
    return reconcile(FILL, metered, None, EAST, None, rules=RULES)


def delivered(*evidence: Evidence) -> int | None:
    return found(list(evidence)).delivered_gpu_ms


# -- which readings count -----------------------------------------------------------------------------


def test_nothing_read_is_missing_and_a_reading_of_nothing_is_short() -> None:
    assert (found([]).verdict, found([]).delivered_gpu_ms) == (Verdict.MISSING, None)
    nothing_ran = found([row(0, 0, 0)])
    assert (nothing_ran.verdict, nothing_ran.delivered_gpu_ms) == (Verdict.SHORT, 0)


def test_identical_rows_count_once() -> None:
    assert delivered(row(7_200_000), row(7_200_000), row(7_200_000)) == 7_200_000


def test_of_a_jobs_rows_the_one_that_ends_last_counts_then_the_larger() -> None:
    assert delivered(row(1_200_000, 0, 10), row(7_200_000), row(3_600_000, 0, 30)) == 7_200_000
    assert delivered(row(7_000_000), row(7_100_000)) == 7_100_000


def test_rows_of_one_job_that_do_not_overlap_add_up() -> None:
    """A requeued job keeps its number; an allocation is shown window by window."""
    assert delivered(row(3_600_000, 0, 30), row(3_600_000, 30, 60)) == 7_200_000


def test_a_wide_window_and_the_narrow_ones_inside_it_count_once() -> None:
    assert delivered(row(3_600_000, 0, 30), row(3_600_000, 30, 60), row(7_200_000, 0, 60)) == 7_200_000


def test_several_jobs_of_a_fill_add_up() -> None:
    assert delivered(row(3_600_000, job="a"), row(3_600_000, job="b")) == 7_200_000


def test_two_formats_are_views_of_one_delivery_and_the_one_that_saw_more_counts() -> None:
    both = [row(7_200_000, form="opencost"), row(7_000_000, form="slurm")]
    assert delivered(*both) == 7_200_000
    assert delivered(*reversed(both)) == 7_200_000


def test_readings_of_another_site_or_trade_do_not_count() -> None:
    assert delivered(row(7_200_000, site=2)) is None
    assert delivered(row(7_200_000, trade_id=8)) is None


def test_a_job_outside_the_hour_does_not_count_and_one_shifted_by_the_skew_counts_in_full() -> None:
    assert delivered(row(7_200_000, 62, 122)) is None
    assert delivered(row(7_200_000, -62, -2)) is None
    assert delivered(row(7_200_000, 1, 61)) == 7_200_000
    assert delivered(row(7_200_000, -1, 59)) == 7_200_000


def test_a_job_that_straddles_the_hour_counts_by_its_share_within() -> None:
    assert delivered(row(7_200_000, 31, 91)) == 7_200_000 * 30 // 60


@given(
    st.lists(
        st.builds(
            row,
            st.integers(0, 10**7),
            st.integers(-90, 90),
            st.integers(91, 150),
            job=st.sampled_from("ab"),
            site=st.sampled_from([1, 2]),
            form=st.sampled_from(["slurm", "opencost"]),
        )
    ),
    st.randoms(use_true_random=False),
)
def test_what_counts_does_not_depend_on_order_or_repetition(evidence: list[Evidence], random: object) -> None:
    shuffled = evidence * 2
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert found(shuffled) == found(evidence)


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.integers(-2, 4),
            st.integers(0, 6),
            st.integers(0, 3),
            st.sampled_from("xy"),
        ),
        max_size=8,
    )
)
def test_counting_equals_a_slow_twin(drawn: list[tuple[str, int, int, int, str]]) -> None:
    evidence = [row(ms * n * 600_000, 15 * s, 15 * (s + n), job=j, form=f) for j, s, n, ms, f in drawn]
    chosen = counting(FILL, evidence, 60)
    total = sum(delivered_gpu_ms(FILL, e, 60) for e in chosen)
    assert (total if chosen else None) == slow_delivered(evidence)


def slow_delivered(evidence: list[Evidence]) -> int | None:
    """Minute by minute: a row stands if none of its job, later or larger, stands at one of its minutes."""
    best: int | None = None
    for name in ("x", "y"):
        total, seen = 0, False
        for job in ("a", "b"):
            rows = {e for e in evidence if (e.format, e.job) == (name, job)}
            standing: list[Evidence] = []
            for e in sorted(rows, key=lambda e: (-e.end_ns, -(e.gpu_ms or 0), e.start_ns)):
                minutes = set(range(e.start_ns, e.end_ns, MINUTE_NS))
                taken = {m for other in standing for m in range(other.start_ns, other.end_ns, MINUTE_NS)}
                inside = any(o.start_ns < e.end_ns and e.start_ns < o.end_ns for o in standing)
                if not minutes & taken and not inside:
                    standing.append(e)
            for e in standing:
                lo, hi = START_NS - MINUTE_NS, START_NS + HOUR_NS + MINUTE_NS
                if e.start_ns < hi and e.end_ns > lo:
                    seen = True
                    span = e.end_ns - e.start_ns
                    part = Fraction(min(hi, e.end_ns) - max(lo, e.start_ns), span) if span else Fraction(1)
                    total += round((e.gpu_ms or 0) * part)
        if seen:
            best = max(best or 0, total)
    return best


def test_a_meter_gone_wild_is_recorded_as_a_number_that_fits() -> None:
    wild = [row(2**53, job=str(n)) for n in range(5000)]
    assert delivered(*wild) == 2**53
    assert energy_by_fill(
        [scrape(s, c, gpu=str(n)) for n in range(5000) for s, c in ((1, 0), (2, 2**53))]
    ) == {(1, 7): 2**53}


# -- resold lots --------------------------------------------------------------------------------------

LOT_MS = 3_600_000


def of_lots(trade_id: int, lots: int, position: int = 0) -> Fill:
    return FILL._replace(trade_id=trade_id, lots=lots, contracted_gpu_ms=lots * LOT_MS, position=position)


def delivered_lots(*fills: Fill, **metered: float) -> list[float | None]:
    """Lots delivered on each fill when `tN` lots were metered under its number."""
    read = {one.trade_id: metered.get(f"t{one.trade_id}") for one in fills}
    read_ms = {number: None if lots is None else round(lots * LOT_MS) for number, lots in read.items()}
    found = delivered_by_fill(fills, read_ms, 10)
    return [None if ms is None else ms / LOT_MS for ms in (found[one.trade_id] for one in fills)]


TWO = of_lots(1, 2)
ONE_OF_THEM = of_lots(2, 1, 1)


def test_what_is_metered_for_a_resale_was_delivered_on_the_position_too() -> None:
    assert delivered_lots(TWO, ONE_OF_THEM, t1=1, t2=1) == [2, 1]
    assert delivered_lots(TWO, ONE_OF_THEM, t2=0.5) == [0.5, 0.5]
    assert delivered_lots(TWO, of_lots(2, 2, 1), of_lots(3, 1, 2), t2=1, t3=1) == [2, 2, 1]


def test_what_is_metered_for_a_position_beyond_the_lots_kept_went_to_its_resales() -> None:
    assert delivered_lots(TWO, ONE_OF_THEM, t1=2) == [2, 1]
    assert delivered_lots(TWO, ONE_OF_THEM, t1=1.5) == [1.5, 0.5]
    assert delivered_lots(TWO, ONE_OF_THEM, t1=1.5, t2=0.75) == [2.25, 1]
    assert delivered_lots(of_lots(1, 4), ONE_OF_THEM, of_lots(3, 2, 1), t1=3) == [3, 1, 1]
    assert delivered_lots(TWO, of_lots(2, 2, 1), of_lots(3, 1, 2), t1=2) == [2, 2, 1]


def test_what_is_metered_for_a_position_is_first_for_the_lots_kept() -> None:
    """A buyer does not pay for what was metered as another's."""
    assert delivered_lots(TWO, ONE_OF_THEM, t1=1) == [1, None]
    assert delivered_lots(TWO, ONE_OF_THEM, t1=0.5) == [0.5, None]
    assert delivered_lots(TWO, ONE_OF_THEM, t1=1, t2=0.25) == [1.25, 0.25]


def test_a_difference_within_the_tolerance_is_handed_to_nobody() -> None:
    assert delivered_lots(TWO, ONE_OF_THEM, t1=1.01) == [1.01, None]
    assert delivered_lots(TWO, ONE_OF_THEM, t1=1.02) == [1.02, 0.02]


def test_a_chain_that_nobody_metered_is_missing_and_other_fills_are_as_they_were() -> None:
    assert delivered_lots(TWO, ONE_OF_THEM, of_lots(3, 2), t3=1.5) == [None, None, 1.5]


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(1, 4), st.none() | st.integers(0, 4)), min_size=1, max_size=8
    )
)
def test_no_gpu_hour_is_delivered_to_two_resales(drawn: list[tuple[int, int, int | None]]) -> None:
    fills: list[Fill] = []
    kept: dict[int, int] = {}
    metered: dict[int, int | None] = {}
    for number, (back, wanted, read) in enumerate(drawn, 1):
        position = number - back if kept.get(number - back) else 0
        lots = min(wanted, kept[position]) if position else wanted
        if position:
            kept[position] -= lots
        fills.append(of_lots(number, lots, position))
        kept[number] = lots
        metered[number] = None if read is None else read * LOT_MS
    got = delivered_by_fill(fills, metered, 10)
    for one in fills:
        resold_ms = sum(got[each.trade_id] or 0 for each in fills if each.position == one.trade_id)
        assert max(resold_ms, metered[one.trade_id] or 0) <= (got[one.trade_id] or 0)
    first = sum(got[one.trade_id] or 0 for one in fills if not one.position)
    assert first == sum(ms or 0 for ms in metered.values())


# -- verdict ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delivered_ms", "verdict", "payable_ms"),
    [
        (1_000_000, Verdict.DELIVERED, 1_000_000),
        (990_000, Verdict.DELIVERED, 1_000_000),
        (989_999, Verdict.SHORT, 989_999),
        (0, Verdict.SHORT, 0),
        (1_010_000, Verdict.DELIVERED, 1_000_000),
        (1_010_001, Verdict.OVER, 1_000_000),
        (None, Verdict.MISSING, 0),
    ],
)
def test_a_difference_within_the_tolerance_is_delivered_and_what_is_over_is_not_paid(
    delivered_ms: int | None, verdict: Verdict, payable_ms: int
) -> None:
    assert verdict_of(1_000_000, delivered_ms, 10) is verdict
    result = Reconciliation(7, verdict, 1_000_000, delivered_ms, None, None, "hourly", True)
    assert result.payable_gpu_ms == payable_ms


# -- energy and carbon --------------------------------------------------------------------------------


def scrape(
    second: int, energy_mj: int, trade_id: int | None = 7, gpu: str = "GPU-a", site: int = 1
) -> Evidence:
    return Evidence(site, "dcgm", gpu, trade_id, second, second, None, energy_mj)


def test_energy_is_the_sum_of_differences_between_consecutive_scrapes_of_the_fill() -> None:
    samples = [
        scrape(3, 400),
        scrape(1, 100),
        scrape(2, 250),
        scrape(1, 1000, gpu="GPU-b"),
        scrape(3, 1500, gpu="GPU-b"),
    ]
    assert energy_by_fill(samples) == {(1, 7): 300 + 500}


def test_energy_before_and_after_the_fill_is_not_the_fills() -> None:
    samples = [scrape(1, 100, None), scrape(2, 200), scrape(3, 300), scrape(4, 400, None), scrape(5, 500)]
    assert energy_by_fill(samples) == {(1, 7): 100}


def test_energy_of_a_reset_counter_is_what_it_shows_since() -> None:
    assert energy_by_fill([scrape(1, 900), scrape(2, 1000), scrape(3, 40), scrape(4, 90)]) == {
        (1, 7): 100 + 40 + 50
    }


def test_energy_seen_only_once_is_not_known() -> None:
    assert energy_by_fill([scrape(1, 100)]) == {}


def test_energy_of_repeated_scrapes_counts_once() -> None:
    samples = [scrape(1, 100), scrape(2, 250)]
    assert energy_by_fill(samples * 3) == {(1, 7): 150}


def test_energy_of_a_shared_gpu_is_divided_and_never_counted_twice() -> None:
    """MIG instances all show the whole device's counter."""
    samples = [
        scrape(second, counter, trade, f"GPU-a/{instance}")
        for second, counter in ((1, 1000), (2, 1701))
        for instance, trade in ((1, 7), (2, 8), (3, None))
    ]
    assert energy_by_fill(samples) == {(1, 7): 233, (1, 8): 233}


def test_energy_of_the_same_gpu_name_at_another_site_is_apart() -> None:
    samples = [scrape(1, 100), scrape(2, 150), scrape(1, 7, site=2), scrape(2, 10, site=2)]
    assert energy_by_fill(samples) == {(1, 7): 50, (2, 7): 3}


def test_emissions_are_energy_times_intensity_times_pue_rounded_once() -> None:
    one_kwh_mj = 3_600_000_000
    result = reconcile(FILL, None, one_kwh_mj, EAST, 400_000, rules=RULES)
    assert (result.co2e_mg, result.intensity_source, result.pue_known) == (500_000, "hourly", True)
    assert reconcile(FILL, None, 3_600_000, EAST, 2, rules=RULES).co2e_mg == 0, "0.0025 mg"
    assert reconcile(FILL, None, one_kwh_mj * 2 // 5, EAST, 3, rules=RULES).co2e_mg == 2, (
        "1.5 mg, half to even"
    )


def test_emissions_without_an_hourly_figure_take_the_catalogues_and_say_so() -> None:
    result = reconcile(FILL, None, 3_600_000_000, MIDDLE, None, rules=RULES)
    assert (result.co2e_mg, result.intensity_source, result.pue_known) == (500_000, "catalogue", False)


def test_emissions_without_energy_are_not_known() -> None:
    assert reconcile(FILL, None, None, EAST, 400_000, rules=RULES).co2e_mg is None


def test_intensity_of_the_latest_batch_counts() -> None:
    rows = [("east", 5, 2, 300), ("east", 5, 1, 900), ("west", 5, 1, 0)]
    assert dict(intensity_by_hour(rows)) == {("east", 5): 300, ("west", 5): 0}


# -- money --------------------------------------------------------------------------------------------


def short(delivered_ms: int | None) -> Reconciliation:
    verdict = verdict_of(FILL.contracted_gpu_ms, delivered_ms, RULES.tolerance_permille)
    return Reconciliation(7, verdict, FILL.contracted_gpu_ms, delivered_ms, None, None, "hourly", True)


def test_what_is_delivered_in_full_is_paid_in_full_and_frees_the_bond() -> None:
    for delivered_ms in (7_200_000, 7_128_000, 9_000_000):
        assert posting_of(FILL, short(delivered_ms), RULES, TICK_MICROS, None) == (
            20_000_000,
            0,
            0,
            2_000_000,
        )


def test_a_shortfall_costs_the_provider_what_replacing_it_costs_beyond_the_refund() -> None:
    """Half of two GPU-hours at 10.00: 10.00 back; 12.00 x 1 h x 1.2 - 10.00 = 4.40, capped by the bond."""
    at_12 = Replacement(Fraction(1200), "asks")
    assert posting_of(FILL, short(3_600_000), RULES, TICK_MICROS, at_12) == (
        10_000_000,
        10_000_000,
        2_000_000,
        0,
    )
    rich = FILL._replace(bond_micros=50_000_000)
    assert posting_of(rich, short(3_600_000), RULES, TICK_MICROS, at_12) == (
        *(10_000_000, 10_000_000),
        *(4_400_000, 45_600_000),
    )


def test_a_penalty_never_exceeds_its_share_of_the_undelivered_notional() -> None:
    rich = FILL._replace(bond_micros=10**12)
    dear = Replacement(Fraction(100_000), "asks")
    assert posting_of(rich, short(3_600_000), RULES, TICK_MICROS, dear).penalty_micros == 20_000_000


def test_a_factor_below_one_never_makes_the_buyer_pay() -> None:
    mild = SettlementRules(replacement_factor_permille=500)
    at_trade = Replacement(Fraction(1000), "trade")
    assert posting_of(FILL, short(0), mild, TICK_MICROS, at_trade).penalty_micros == 0


def test_replacement_is_the_highest_of_trade_average_and_asks() -> None:
    def price(trades: list[ContractTrade], asks: list[GateAsk]) -> Replacement:
        return replacement_of(FILL, (3, 1), 2, trades, asks)

    assert price([], []) == Replacement(Fraction(1000), "trade")
    assert price([ContractTrade(3, 2, 3, 3600)], []) == Replacement(Fraction(1200), "average")
    assert price([ContractTrade(3, 2, 3, 3600)], [GateAsk(2, 1300, 5)]) == Replacement(Fraction(1300), "asks")
    assert price([ContractTrade(3, 2, 1, 800)], [GateAsk(2, 900, 5)]) == Replacement(Fraction(1000), "trade")


def test_replacement_leaves_out_the_defaulters_group_on_either_side() -> None:
    own = [ContractTrade(1, 2, 1, 9000), ContractTrade(3, 1, 1, 9000)]
    asks = [GateAsk(1, 9000, 5), GateAsk(3, 9000, 5)]
    assert replacement_of(FILL, (3, 1), 2, own, asks) == Replacement(Fraction(1000), "trade")


def test_replacement_takes_the_cheapest_asks_that_hold_what_is_lacking() -> None:
    asks = [GateAsk(2, 1400, 5), GateAsk(2, 1100, 1), GateAsk(2, 1200, 1)]
    assert replacement_of(FILL, (3, 1), 2, [], asks).price_ticks == 1150
    assert replacement_of(FILL, (3, 1), 3, [], asks).price_ticks == Fraction(1100 + 1200 + 1400, 3)
    assert replacement_of(FILL, (3, 1), 3, [], asks[1:]).price_ticks == 1150, "all there were"


def test_lots_to_be_replaced_are_rounded_up() -> None:
    assert undelivered_lots(FILL, short(7_000_000)) == 1
    assert undelivered_lots(FILL, short(3_600_000)) == 1
    assert undelivered_lots(FILL, short(3_599_999)) == 2
    assert undelivered_lots(FILL, short(None)) == 2


@given(
    price=st.integers(1, 10**7),
    lots=st.integers(1, 10**5),
    delivered_permyriad=st.one_of(st.none(), st.integers(0, 12_000)),
    bond_permille=st.integers(0, 1000),
    replacing=st.fractions(1, 10**7, max_denominator=1000),
    rules=st.builds(
        SettlementRules,
        tolerance_permille=st.integers(0, 1000),
        replacement_factor_permille=st.integers(1, 5000),
        penalty_cap_permille=st.integers(1, 5000),
    ),
)
@example(price=1, lots=1, delivered_permyriad=5000, bond_permille=100, replacing=Fraction(1), rules=RULES)
def test_amounts_equal_a_slow_twin_and_add_up_exactly(
    *,
    price: int,
    lots: int,
    delivered_permyriad: int | None,
    bond_permille: int,
    replacing: Fraction,
    rules: SettlementRules,
) -> None:
    notional = price * lots * TICK_MICROS
    contracted = lots * 3_600_000
    fill = FILL._replace(
        price_ticks=price,
        lots=lots,
        notional_micros=notional,
        bond_micros=notional * bond_permille // 1000,
        contracted_gpu_ms=contracted,
    )
    delivered_ms = None if delivered_permyriad is None else contracted * delivered_permyriad // 10_000
    verdict = verdict_of(contracted, delivered_ms, rules.tolerance_permille)
    result = Reconciliation(7, verdict, contracted, delivered_ms, None, None, "hourly", True)
    amounts = posting_of(fill, result, rules, TICK_MICROS, Replacement(replacing, "asks"))

    assert amounts.payment_micros + amounts.refund_micros == notional
    assert amounts.penalty_micros + amounts.bond_release_micros == fill.bond_micros
    assert min(amounts) >= 0

    share = Fraction(delivered_ms or 0, contracted)
    if delivered_ms is not None and share >= 1 - Fraction(rules.tolerance_permille, 1000):
        share = Fraction(1)
    payment = round(notional * share)
    refund = notional - payment
    cost = replacing * TICK_MICROS * lots * (1 - share) * Fraction(rules.replacement_factor_permille, 1000)
    penalty = max(0, round(cost - refund)) if share < 1 else 0
    penalty = min(penalty, int(refund * Fraction(rules.penalty_cap_permille, 1000)), fill.bond_micros)
    assert amounts == (payment, refund, penalty, fill.bond_micros - penalty)


@given(st.lists(st.tuples(*[st.integers(0, 10**12)] * 4), min_size=1, max_size=6))
def test_differences_of_run_after_run_add_up_to_the_last_finding(found_by_run: list[tuple[int, ...]]) -> None:
    posted = NOTHING
    for amounts in found_by_run:
        posted = posted.plus(Amounts(*amounts).minus(posted))
    assert posted == found_by_run[-1]
    assert posted.minus(posted) == NOTHING


def test_the_examples_of_the_readme_come_out_as_written() -> None:
    readme = Path(__file__).parents[1] / "settlement" / "README.md"
    result = doctest.testfile(str(readme), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0
    assert result.attempted > 0
