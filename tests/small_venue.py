"""A venue small enough to know by heart: three zones in a row, two classes, every grade."""

from typing import Literal

from schemas.venue import (
    AcceleratorClass,
    CarbonGrade,
    Currency,
    Fees,
    Hub,
    LatencyTier,
    Limits,
    RoundTrip,
    SecurityTier,
    Source,
    Venue,
    Zone,
)


def _zone(code: str, pue_permille: int | None, grid: int) -> Zone:
    return Zone(
        code=code,
        name=code,
        hub="hub",
        kind="metro",
        latitude_micro=0,
        longitude_micro=0,
        grid_mgco2_per_kwh=grid,
        pue_permille=pue_permille,
        sources={},
    )


def _class(code: str, lot_eighths: Literal[1, 8, 64], reference: int) -> AcceleratorClass:
    return AcceleratorClass(
        code=code,
        name=code,
        vendor="vendor",
        form_factor="SXM",
        memory_gb=80,
        fp32_gflops=67_000,
        bf16_dense_gflops=989_000,
        software="CUDA",
        domestic=False,
        lot_eighths=lot_eighths,
        reference_price_ticks=reference,
        sources={},
    )


SMALL_VENUE = Venue(
    code="small",
    name="Small",
    catalogue_version=1,
    time_zone="Asia/Shanghai",
    currency=Currency(code="CNY"),
    limits=Limits(resting_blocks_max=4, open_orders_max=50, block_max_hours=48),
    fees=Fees(maker_ppm=500, taker_ppm=1000),
    latency_tiers=(
        LatencyTier(code="L1", max_rtt_us=1_000),
        LatencyTier(code="L2", max_rtt_us=5_000),
        LatencyTier(code="L3", max_rtt_us=20_000),
        LatencyTier(code="L4"),
    ),
    carbon_grades=(
        CarbonGrade(code="A", max_gco2_per_kwh=50),
        CarbonGrade(code="B", max_gco2_per_kwh=150),
        CarbonGrade(code="C", max_gco2_per_kwh=350),
        CarbonGrade(code="D", max_gco2_per_kwh=600),
        CarbonGrade(code="E"),
    ),
    security_tiers=tuple(SecurityTier(code=code, meaning=code) for code in ("S4", "S3", "S2", "S1")),
    sources=(Source(key="made-up", kind="rule", text="figures for tests"),),
    hubs=(Hub(code="hub", name="hub"),),
    zones=(_zone("east", 1250, 584_900), _zone("middle", None, 500_000), _zone("west", 1200, 140_400)),
    round_trips=(
        RoundTrip(a="east", b="middle", rtt_us=4_000, source="made-up"),
        RoundTrip(a="middle", b="west", rtt_us=15_000, source="made-up"),
        RoundTrip(a="east", b="west", rtt_us=30_000, source="made-up"),
    ),
    classes=(_class("H100-SXM", 8, 1400), _class("T4", 1, 200)),
)
"""Latency: same zone L1, east-middle L2, middle-west L3, east-west L4."""
