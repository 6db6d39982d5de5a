"""Reconciliation: what was contracted against what the meters saw. Pure and in integers.

Every rule stands in settlement/README.md, "Reconciliation", with the reasons.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from enum import StrEnum
from fractions import Fraction
from typing import NamedTuple

from exchange.contract import HOUR_NS
from schemas.venue import SettlementRules, Zone

EIGHTH_HOUR_MS = 450_000
"""GPU-milliseconds of an eighth of a GPU in an hour."""
_MJ_PER_KWH = 3_600_000_000
_SUM_MAX = 2**53
"""A meter gone wild is recorded as at most this, so that its numbers fit wherever they are written down."""


class Verdict(StrEnum):
    """What became of a fill's delivery: a closed list."""

    DELIVERED = "delivered"
    SHORT = "short"
    OVER = "over"
    MISSING = "missing"


class Fill(NamedTuple):
    """A trade leg to be delivered: `contracted_gpu_ms` at `site` within `delivery_hour`.

    `position` is the trade whose lots the seller resold, or 0.
    """

    trade_id: int
    class_code: str
    delivery_hour: int
    price_ticks: int
    lots: int
    bid_order_id: int
    buyer: int
    seller: int
    site: int
    notional_micros: int
    bond_micros: int
    contracted_gpu_ms: int
    position: int = 0


class Evidence(NamedTuple):
    """A reading with where it came from; the fields are those of `settlement.meters.readings.Reading`."""

    site: int
    format: str
    job: str
    trade_id: int | None
    start_ns: int
    end_ns: int
    gpu_ms: int | None
    energy_mj: int | None


class Reconciliation(NamedTuple):
    """What was found of a fill. `delivered_gpu_ms` is None when nothing was read, `energy_mj` and `co2e_mg`
    when no meter measured energy. Emissions are location-based: energy × grid intensity × PUE.
    """

    trade_id: int
    verdict: Verdict
    contracted_gpu_ms: int
    delivered_gpu_ms: int | None
    energy_mj: int | None
    co2e_mg: int | None
    intensity_source: str
    pue_known: bool

    @property
    def payable_gpu_ms(self) -> int:
        """GPU time that the buyer pays for: what was contracted unless it is short."""
        match self.verdict:
            case Verdict.DELIVERED | Verdict.OVER:
                return self.contracted_gpu_ms
            case Verdict.SHORT:
                assert self.delivered_gpu_ms is not None
                return self.delivered_gpu_ms
            case Verdict.MISSING:
                return 0


def reconcile(
    fill: Fill,
    delivered_ms: int | None,
    energy_mj: int | None,
    zone: Zone,
    hourly_mgco2_per_kwh: int | None,
    *,
    rules: SettlementRules,
) -> Reconciliation:
    """Return what is to be said of the fill's delivery.

    `delivered_ms` is of `delivered_by_fill`, `energy_mj` of `energy_by_fill`. Without an hourly intensity
    the zone's catalogue figure counts, without a PUE 1. Rounds emissions half-even once.
    """
    intensity = zone.grid_mgco2_per_kwh if hourly_mgco2_per_kwh is None else hourly_mgco2_per_kwh
    co2e_mg = None
    if energy_mj is not None:
        pue_permille = zone.pue_permille or 1000
        co2e_mg = round(Fraction(energy_mj * intensity * pue_permille, _MJ_PER_KWH * 1000))
    return Reconciliation(
        trade_id=fill.trade_id,
        verdict=verdict_of(fill.contracted_gpu_ms, delivered_ms, rules.tolerance_permille),
        contracted_gpu_ms=fill.contracted_gpu_ms,
        delivered_gpu_ms=delivered_ms,
        energy_mj=energy_mj,
        co2e_mg=co2e_mg,
        intensity_source="catalogue" if hourly_mgco2_per_kwh is None else "hourly",
        pue_known=zone.pue_permille is not None,
    )


def verdict_of(contracted_gpu_ms: int, delivered_gpu_ms: int | None, tolerance_permille: int) -> Verdict:
    """Return the verdict; a difference of exactly the tolerance is within it."""
    if delivered_gpu_ms is None:
        return Verdict.MISSING
    difference = (delivered_gpu_ms - contracted_gpu_ms) * 1000
    tolerated = contracted_gpu_ms * tolerance_permille
    if difference < -tolerated:
        return Verdict.SHORT
    return Verdict.OVER if difference > tolerated else Verdict.DELIVERED


def delivered_by_fill(
    fills: Iterable[Fill], metered: Mapping[int, int | None], tolerance_permille: int
) -> dict[int, int | None]:
    """Return the GPU time delivered on each trade, None where nothing was read; chains of resales whole.

    `metered` is of `metered_gpu_ms`, by trade. What was metered for a resale was delivered on the position
    too. What was metered for a position is its buyer's own, up to the lots that he kept; what is more than
    that, beyond the tolerance, went to his resales: in the order of trade, to each what it lacks.
    """
    delivered = dict(metered)
    fill_of = {fill.trade_id: fill for fill in fills}
    resales: dict[int, list[Fill]] = defaultdict(list)
    for _, fill in sorted(fill_of.items()):
        if fill.position:
            resales[fill.position].append(fill)
    # A resale has a higher number than its position: so each is whole before what it was resold from.
    for position in sorted(resales, reverse=True):
        seen = [metered[position], *(delivered[resale.trade_id] for resale in resales[position])]
        if any(ms is not None for ms in seen):
            delivered[position] = min(_SUM_MAX, sum(ms or 0 for ms in seen))
    handed: dict[int, int] = defaultdict(int)
    for position in sorted(resales):
        resold_ms = sum(resale.contracted_gpu_ms for resale in resales[position])
        kept_ms = fill_of[position].contracted_gpu_ms - resold_ms
        own_ms = (metered[position] or 0) + handed[position]
        if verdict_of(kept_ms, own_ms, tolerance_permille) is not Verdict.OVER:
            continue
        spare_ms = own_ms - kept_ms
        for resale in resales[position]:
            there_ms = delivered[resale.trade_id] or 0
            given_ms = min(spare_ms, max(0, resale.contracted_gpu_ms - there_ms))
            if given_ms:
                delivered[resale.trade_id] = there_ms + given_ms
                handed[resale.trade_id] = given_ms
                spare_ms -= given_ms
    return delivered


def metered_gpu_ms(fill: Fill, evidence: Iterable[Evidence], skew_seconds: int) -> int | None:
    """Return the GPU time of the readings that count for the fill, None if none does.

    `evidence` is what names this fill, from any site.
    """
    counted = counting(fill, evidence, skew_seconds)
    if not counted:
        return None
    return min(_SUM_MAX, sum(delivered_gpu_ms(fill, row, skew_seconds) for row in counted))


def counting(fill: Fill, evidence: Iterable[Evidence], skew_seconds: int) -> list[Evidence]:
    """Return the readings of GPU time that count for the fill, none if it is missing.

    They are of the fill's site and overlap its hour, widened on both sides by the skew. Of rows of one
    job that overlap each other, the one that ends last counts, then the one with more GPU time: a later
    look at the same job. Formats are two views of the same delivery and are never added: the one that
    saw more counts, then the first by name.
    """
    earliest_ns, latest_ns = _window_ns(fill, skew_seconds)
    jobs: dict[tuple[str, str], set[Evidence]] = defaultdict(set)
    for row in evidence:
        if row.gpu_ms is not None and row.trade_id == fill.trade_id and row.site == fill.site:
            jobs[row.format, row.job].add(row)
    formats: dict[str, list[Evidence]] = defaultdict(list)
    for (name, _), rows in sorted(jobs.items()):
        formats[name] += [
            row for row in _latest_looks(rows) if row.start_ns < latest_ns and row.end_ns > earliest_ns
        ]
    best: list[Evidence] = []
    best_ms = -1
    for rows_of_format in formats.values():
        total_ms = sum(delivered_gpu_ms(fill, row, skew_seconds) for row in rows_of_format)
        if rows_of_format and total_ms > best_ms:
            best, best_ms = rows_of_format, total_ms
    return best


def delivered_gpu_ms(fill: Fill, row: Evidence, skew_seconds: int) -> int:
    """Return the row's GPU time within the fill's widened hour: its share by time, rounded half-even."""
    assert row.gpu_ms is not None
    earliest_ns, latest_ns = _window_ns(fill, skew_seconds)
    if earliest_ns <= row.start_ns and row.end_ns <= latest_ns:
        return row.gpu_ms
    within_ns = min(row.end_ns, latest_ns) - max(row.start_ns, earliest_ns)
    return round(Fraction(row.gpu_ms * within_ns, row.end_ns - row.start_ns))


def energy_by_fill(samples: Iterable[Evidence]) -> dict[tuple[int, int], int]:
    """Return the energy that meters saw of each (site, trade), in millijoules.

    Of each GPU, the counter's differences between consecutive scrapes that both show the fill on it. A
    counter that fell was reset: the interval then counts what it shows since. MIG instances of a GPU, and
    pods that share one, all show the whole device's counter: they get equal parts of it, rounded down.
    """
    gpus: dict[tuple[int, str], dict[int, set[Evidence]]] = defaultdict(lambda: defaultdict(set))
    for sample in samples:
        if sample.energy_mj is not None:
            device = sample.job.partition("/")[0]
            gpus[sample.site, device][sample.start_ns].add(sample)
    energy: dict[tuple[int, int], int] = defaultdict(int)
    for (site, _), scrapes in gpus.items():
        before: dict[tuple[str, int | None], int] = {}
        for _, scrape in sorted(scrapes.items()):
            now: dict[tuple[str, int | None], int] = {}
            for sample in scrape:
                assert sample.energy_mj is not None
                user = (sample.job, sample.trade_id)
                now[user] = max(sample.energy_mj, now.get(user, 0))
            sharers = max(len(before), len(now))
            for user, counter in now.items():
                if user[1] is not None and user in before:
                    used = counter - before[user] if counter >= before[user] else counter
                    energy[site, user[1]] += used // sharers
            before = now
    return {key: min(_SUM_MAX, energy_mj) for key, energy_mj in energy.items()}


def intensity_by_hour(rows: Iterable[tuple[str, int, int, int]]) -> Mapping[tuple[str, int], int]:
    """Return mg CO2e per kWh by (zone, hour) from rows of (zone, hour, batch, figure): the latest batch's."""
    latest: dict[tuple[str, int], tuple[int, int]] = {}
    for zone, hour, batch, figure in rows:
        latest[zone, hour] = max((batch, figure), latest.get((zone, hour), (0, 0)))
    return {key: figure for key, (_, figure) in latest.items()}


def _window_ns(fill: Fill, skew_seconds: int) -> tuple[int, int]:
    skew_ns = skew_seconds * 1_000_000_000
    return fill.delivery_hour * HOUR_NS - skew_ns, (fill.delivery_hour + 1) * HOUR_NS + skew_ns


def _latest_looks(rows: set[Evidence]) -> list[Evidence]:
    kept: list[Evidence] = []
    for row in sorted(rows, key=lambda r: (r.end_ns, r.gpu_ms or 0, -r.start_ns), reverse=True):
        if all(row.end_ns <= other.start_ns for other in kept):
            kept.append(row)
    return kept
