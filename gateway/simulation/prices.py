"""Market prices of the classes, from snapshots of published rental offers.

A snapshot is a JSON object with `date` and `offers`; an offer names `gpu`, `vram_gb`, `usd_hr` and `kind`.
"""

import gzip
import json
import zlib
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from gateway.simulation.openb import TraceError
from gateway.simulation.scenario import ScenarioError
from schemas.venue import AcceleratorClass, Venue

SUBFOLDER = "gpurentalprices/snapshots"
SNAPSHOTS = 7
"""So many of the newest snapshots are read: a week, since offers of a kind repeat from day to day."""

KINDS = ("on-demand", "secure", "community")
"""Spot and serverless are other products: one can end within the hour, the other is no machine."""

OFFERED_AS = {
    "V100-SXM2-16": "v100-sxm2",
    "T4": "t4",
    "A10": "a10",
    # The A800 and the H800 are the A100 and the H100 with slower links between chips; no snapshot has them.
    "A800-SXM": "a100-sxm-80",
    "H800-SXM": "h100-sxm",
}
"""The snapshots' GPU id that prices a class."""

PRICED_LIKE = {"P100-PCIE": "V100-SXM2-16", "V100-SXM2-32": "V100-SXM2-16"}
"""Classes without offers or reference price: priced as this class, by FP32."""

PERCENT_OF_USD = {"CNY": 700, "EUR": 90, "USD": 100}
"""What the catalogues convert a dollar to, in hundredths: their source `price`. Not a market rate."""

_USD_MAX = 1000


class Offer(NamedTuple):
    """A published offer of one GPU for an hour."""

    gpu: str
    memory_gb: Decimal
    usd: Decimal


class MarketPrice(NamedTuple):
    """A class's middle price, and its offers in order; both in ticks per GPU-hour."""

    middle_ticks: int
    offers_ticks: tuple[int, ...]


def find_snapshots(data: Path) -> list[Path]:
    """Return the newest snapshots under the data folder, oldest first; none if there are none."""
    return sorted((data / SUBFOLDER).glob("*.json*"))[-SNAPSHOTS:]


def read_offers(paths: Sequence[Path]) -> list[Offer]:
    """Return the offers of the snapshots that are of a kind to be compared.

    Raises:
        TraceError: a file is refused.
    """
    offers: list[Offer] = []
    for path in paths:
        for index, raw in enumerate(_raw_offers(path)):
            where = f"offers[{index}]"
            if not isinstance(raw, dict):
                raise TraceError(path, 1, where, str(raw), "an object")
            if _text(path, where, raw, "kind") in KINDS:
                gpu = _text(path, where, raw, "gpu")
                usd = _amount(path, where, raw, "usd_hr", _USD_MAX)
                offers.append(Offer(gpu, _amount(path, where, raw, "vram_gb", 10_000), usd))
    return offers


def market_prices(venue: Venue, codes: Sequence[str], offers: Sequence[Offer]) -> dict[str, MarketPrice]:
    """Return the price of each class: by its offers, else by the catalogue, else by FP32 to a like class.

    Ticks are rounded half-even from the exact figure, and are 1 at least.

    Raises:
        ScenarioError: nothing gives the price of a class.
    """
    classes = {one.code: one for one in venue.classes}
    prices: dict[str, MarketPrice] = {}
    for code in codes:
        figures = _figures(venue, classes, code, offers)
        if not figures:
            raise ScenarioError(
                f"class {code}: no offer of a rental price, no reference_price_ticks in venue {venue.code}"
                " and no like class to go by; one of the three is needed"
            )
        ticks = tuple(max(1, round(figure)) for figure in figures)
        prices[code] = MarketPrice(ticks[len(ticks) // 2], ticks)
    return prices


def _figures(
    venue: Venue, classes: dict[str, AcceleratorClass], code: str, offers: Sequence[Offer]
) -> list[Fraction]:
    accelerator = classes[code]
    percent = PERCENT_OF_USD.get(venue.currency.code)
    if percent is not None and code in OFFERED_AS:
        ticks_of_usd = Fraction(percent * 10_000, venue.currency.tick_micros)
        figures = [
            Fraction(offer.usd) * ticks_of_usd
            for offer in offers
            if offer.gpu == OFFERED_AS[code] and _is_near(offer.memory_gb, accelerator.memory_gb)
        ]
        if figures:
            return sorted(figures)
    if accelerator.reference_price_ticks is not None:
        return [Fraction(accelerator.reference_price_ticks)]
    like = classes.get(PRICED_LIKE.get(code, ""))
    if like is None or like.fp32_gflops is None or accelerator.fp32_gflops is None:
        return []
    ratio = Fraction(accelerator.fp32_gflops, like.fp32_gflops)
    return [figure * ratio for figure in _figures(venue, classes, like.code, offers)]


def _is_near(memory_gb: Decimal, wanted_gb: int) -> bool:
    return abs(memory_gb - wanted_gb) * 10 <= wanted_gb


def _raw_offers(path: Path) -> list[Any]:
    try:
        data = path.read_bytes()
        text = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        snapshot = json.loads(text, parse_float=Decimal, parse_int=Decimal)
    except json.JSONDecodeError as error:
        raise TraceError(path, error.lineno, "offers", error.msg, "a JSON object") from error
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise TraceError(path, 1, "offers", str(error), "a whole JSON file, plain or gzip") from error
    offers = snapshot.get("offers") if isinstance(snapshot, dict) else None
    if not isinstance(offers, list):
        raise TraceError(path, 1, "offers", str(offers), "a list of offers")
    return offers


def _text(path: Path, where: str, raw: dict[str, Any], field: str) -> str:
    value = raw.get(field)
    if not isinstance(value, str):
        raise TraceError(path, 1, f"{where}.{field}", str(value), "a text")
    return value


def _amount(path: Path, where: str, raw: dict[str, Any], field: str, most: int) -> Decimal:
    # NaN and Infinity are read as floats, every other number as a Decimal.
    value = raw.get(field)
    if not isinstance(value, Decimal) or not 0 < value <= most:
        raise TraceError(path, 1, f"{where}.{field}", str(value), f"a number over 0, at most {most}")
    return value
