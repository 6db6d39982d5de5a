"""The venue catalogue: what is traded, where, under which limits. Decoded from TOML, no floats.

Lengths of time are seconds unless the name says otherwise; `..._permille` and `..._ppm` are fractions;
`sources` maps a field's name to the key of the source or method that gives its figure.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

Name = Annotated[str, Meta(min_length=1, max_length=120)]
VenueCode = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9.'-]{0,39}$(?!\n)")]
Positive = Annotated[int, Meta(ge=1, le=2**53)]
Natural = Annotated[int, Meta(ge=0, le=2**53)]


class Entry(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Base of the catalogue's tables."""


class Source(Entry, frozen=True, kw_only=True):
    """Where a figure comes from, or the method by which it was computed."""

    key: VenueCode
    kind: Literal["measured", "published", "computed", "rule"]
    text: Annotated[str, Meta(min_length=1, max_length=1000)]
    url: str = ""


class Currency(Entry, frozen=True, kw_only=True):
    """The venue's money; a price tick is `tick_micros` millionths of it per GPU-hour."""

    code: Annotated[str, Meta(pattern=r"^[A-Z]{3}$(?!\n)")]
    tick_micros: Positive = 10_000


class Limits(Entry, frozen=True, kw_only=True):
    """Bounds that the engine enforces; each has its own reject reason.

    `collar_permille` bounds an order's price about the reference, `band_permille` a trade's, over which
    `reference_lots` are averaged; 0 is none. A remainder up to `band_small_lots` is cancelled at the band,
    a larger one starts a call, `volatility_calls_per_hour` times. An account may enter and replace
    `free_orders_per_hour` orders and `orders_per_trade` more for each of its trades in that hour; 0 is any.
    """

    price_max_ticks: Positive = 10_000_000
    order_max_lots: Positive = 100_000
    block_max_hours: Annotated[int, Meta(ge=1, le=744)] = 744
    block_max_site_hours: Positive = 50_000
    resting_blocks_max: Positive = 256
    resting_runs_max: Positive = 64
    standing_offers_max: Positive = 64
    open_orders_max: Positive = 20_000
    iceberg_slices_max: Positive = 50
    collar_permille: Natural = 0
    band_permille: Natural = 0
    reference_lots: Positive = 64
    band_small_lots: Natural = 8
    volatility_calls_per_hour: Natural = 2
    free_orders_per_hour: Natural = 0
    orders_per_trade: Natural = 100
    valid_until_max_seconds: Positive = 600


class Fees(Entry, frozen=True, kw_only=True):
    """Fees in millionths of the notional."""

    maker_ppm: Natural = 0
    taker_ppm: Natural = 0


class SettlementRules(Entry, frozen=True, kw_only=True):
    """How differences in delivery become money; see settlement/README.md."""

    tolerance_permille: Annotated[int, Meta(ge=0, le=1000)] = 10
    clock_skew_seconds: Natural = 60
    replacement_factor_permille: Positive = 1200
    penalty_cap_permille: Positive = 2000


class CallRules(Entry, frozen=True, kw_only=True):
    """Call auctions: whether contracts open with one, and how long they collect.

    A contract is in `pre_open` from its listing for `pre_open_seconds`. The end of a call is drawn
    between `min_seconds` and `max_seconds` after its start.
    """

    opening: bool = False
    pre_open_seconds: Natural = 600
    min_seconds: Annotated[int, Meta(ge=1, le=86_400)] = 60
    max_seconds: Annotated[int, Meta(ge=1, le=86_400)] = 90


class LatencyTier(Entry, frozen=True, kw_only=True):
    """Round trip between the site's zone and the bid's zone; none for any."""

    code: VenueCode
    max_rtt_us: Positive | None = None


class CarbonGrade(Entry, frozen=True, kw_only=True):
    """Grams CO2e per kWh of IT load; none for any."""

    code: VenueCode
    max_gco2_per_kwh: Positive | None = None


class SecurityTier(Entry, frozen=True, kw_only=True):
    """What a site's certificate says of who can reach the data."""

    code: VenueCode
    meaning: Name


class Hub(Entry, frozen=True, kw_only=True):
    """A group of zones."""

    code: VenueCode
    name: Name
    name_zh: str = ""


class Zone(Entry, frozen=True, kw_only=True):
    """A metro or a data-centre cluster. Coordinates are millionths of a degree."""

    code: VenueCode
    name: Name
    name_zh: str = ""
    hub: VenueCode
    kind: Literal["cluster", "metro"]
    latitude_micro: Annotated[int, Meta(ge=-90_000_000, le=90_000_000)]
    longitude_micro: Annotated[int, Meta(ge=-180_000_000, le=180_000_000)]
    grid_mgco2_per_kwh: Natural
    pue_permille: Annotated[int, Meta(ge=1000, le=3000)] | None = None
    sources: dict[str, VenueCode]


class RoundTrip(Entry, frozen=True, kw_only=True):
    """The round-trip time between two zones, either way."""

    a: VenueCode
    b: VenueCode
    rtt_us: Positive
    source: VenueCode


class AcceleratorClass(Entry, frozen=True, kw_only=True):
    """What is delivered: accelerator, form factor, the least per GPU, the lot.

    `lot_eighths` is the lot in eighths of a GPU: 1, 8 (one GPU) or 64 (a node of eight).
    The performance figures are of one GPU, dense.
    """

    code: VenueCode
    name: Name
    vendor: Name
    form_factor: Name
    memory_gb: Positive
    bf16_dense_gflops: Positive | None = None
    fp32_gflops: Positive | None = None
    tdp_w: Positive | None = None
    software: Name
    domestic: bool
    lot_eighths: Literal[1, 8, 64]
    min_vcpu_milli: Positive | None = None
    min_memory_mib: Positive | None = None
    min_disk_gib: Positive | None = None
    min_network_mbps: Positive | None = None
    reference_price_ticks: Positive | None = None
    sources: dict[str, VenueCode]


class Venue(Entry, frozen=True, kw_only=True):
    """A market: its money, its clock, its grades, its zones and its classes. Grades stand best first."""

    code: VenueCode
    name: Name
    name_zh: str = ""
    catalogue_version: Positive
    time_zone: Name
    currency: Currency
    gate_seconds: Annotated[int, Meta(ge=0, le=86_400)] = 900
    horizon_hours: Annotated[int, Meta(ge=1, le=8784)] = 840
    bond_permille: Annotated[int, Meta(ge=0, le=1000)] = 100
    limits: Limits = Limits()
    fees: Fees = Fees()
    calls: CallRules = CallRules()
    settlement: SettlementRules = SettlementRules()
    latency_tiers: Annotated[tuple[LatencyTier, ...], Meta(min_length=1, max_length=16)]
    carbon_grades: Annotated[tuple[CarbonGrade, ...], Meta(min_length=1, max_length=16)]
    security_tiers: Annotated[tuple[SecurityTier, ...], Meta(min_length=1, max_length=16)]
    sources: tuple[Source, ...]
    hubs: tuple[Hub, ...]
    zones: Annotated[tuple[Zone, ...], Meta(min_length=1, max_length=1000)]
    round_trips: tuple[RoundTrip, ...]
    classes: Annotated[tuple[AcceleratorClass, ...], Meta(min_length=1, max_length=1000)]
