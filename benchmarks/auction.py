"""`make bench-auction`: real day-ahead curves through `cux auction clear`, and what a call costs to check.

The curves are the Italian market's (GME), 1 to 15 April 2025, seven zones; the source and its licence
stand in the data folder. A zone's published net import takes any price. Its published price then lies
between the ends of the clearing prices, or not.
"""

import csv
import gzip
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from benchmarks.form import report, row
from exchange.auction import CallBook, CallOrder, fault
from exchange.clearing import clear
from gateway.cli.auction import clear_curves, read_curves, without_residue

DATA = Path(os.environ.get("CUX_DATA", Path(__file__).parents[2] / "shared" / "data"))
GME = DATA / "gme_italy_2025-04"
TOLERANCE = Decimal("0.011")
"""In EUR/MWh: published prices are rounded to a cent."""
ORDERS, SUPPLY_CELLS, DEMAND_CELLS, ELIGIBLE = 10_000, 100, 300, 0.3


class ZoneHour(NamedTuple):
    """A zone in an hour: its published price in EUR/MWh, and its curves as `cux auction clear` takes them."""

    timestamp: str
    zone: str
    price: Decimal
    lines: list[str]


class Cleared(NamedTuple):
    """The ends of the clearing prices that were found, None where there is none."""

    hour: ZoneHour
    low: Decimal | None
    high: Decimal | None

    @property
    def within(self) -> bool:
        """Whether the published price lies between them."""
        above = self.low is None or self.low - TOLERANCE <= self.hour.price
        return above and (self.high is None or self.hour.price <= self.high + TOLERANCE)


def zone_hours() -> Iterator[ZoneHour]:
    """Yield all zone-hours, by time and zone, with the net import as a price-taker.

    An exchange is what a zone sends abroad; a flow goes from a zone to another.
    """
    net_import: dict[tuple[str, str], Decimal] = {}
    for each in _rows("published-exchanges"):
        key = (each["timestamp"], each["zone"])
        net_import[key] = net_import.get(key, Decimal(0)) - Decimal(each["exchange_mwh"])
    for each in _rows("published-flows"):
        for zone, sign in ((each["from_zone"], -1), (each["to_zone"], 1)):
            key = (each["timestamp"], zone)
            net_import[key] = net_import.get(key, Decimal(0)) + sign * Decimal(each["flow_mwh"])
    prices = {
        (each["timestamp"], each["zone"]): Decimal(each["price_eur_per_mwh"])
        for each in _rows("published-prices")
    }
    steps: dict[tuple[str, str], list[tuple[str, Decimal, str]]] = {}
    for each in _rows("bid-curves"):
        side = "buy" if each["side"] == "demand" else "sell"
        step = (side, Decimal(each["price_eur_per_mwh"]), each["quantity_mwh"])
        steps.setdefault((each["timestamp"], each["zone"]), []).append(step)
    for (timestamp, zone), found in sorted(steps.items()):
        taken = net_import[timestamp, zone]
        every_price = [price for _, price, _ in found]
        if taken > 0:
            found.append(("sell", min(every_price), str(taken)))
        else:
            found.append(("buy", max(every_price), str(-taken)))
        lines = ["side,price,quantity", *(f"{side},{price},{quantity}" for side, price, quantity in found)]
        yield ZoneHour(timestamp, zone, prices[timestamp, zone], lines)


def cleared(hour: ZoneHour, folder: Path) -> Cleared:
    """Return what `cux auction clear` finds for the hour's file."""
    path = folder / "curves.csv"
    path.write_text("\n".join(hour.lines))
    found = clear_curves(without_residue(read_curves(path)))
    low, high = found["price_low"], found["price_high"]
    return Cleared(hour, None if low is None else Decimal(low), None if high is None else Decimal(high))


def call_of_many_cells() -> Callable[[], CallBook]:
    """Return what makes the book of a call of fixed seed."""
    draw = random.Random(1)
    meets = [bytes(draw.random() < ELIGIBLE for _ in range(SUPPLY_CELLS)) for _ in range(DEMAND_CELLS)]
    asks, bids = (
        [
            CallOrder(i, draw.randint(1000, 1500), draw.randint(1, 20), draw.randrange(cells), i)
            for i in range(first, ORDERS, 2)
        ]
        for first, cells in enumerate((SUPPLY_CELLS, DEMAND_CELLS))
    )
    return lambda: CallBook(asks, bids, meets.__getitem__, 1, 10_000)


def main() -> None:
    if not GME.is_dir():
        raise SystemExit(f"no {GME}: CUX_DATA names the data folder")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = [cleared(hour, Path(folder)) for hour in zone_hours()]
    gme_seconds = time.perf_counter() - began
    misses = [one for one in found if not one.within]
    for hour, low, high in misses:
        print(f"{hour.timestamp} {hour.zone}: published {hour.price}, cleared from {low} to {high}")
    book = call_of_many_cells()
    began = time.perf_counter()
    fills, prices = clear(book())
    solved = time.perf_counter()
    assert fault(book(), fills, prices) is None
    checked = time.perf_counter()
    report(
        "auction",
        [
            row("auction.gme_within", len(found) - len(misses), "zone-hours", len(found)),
            row("auction.gme_time", gme_seconds, "s"),
            row("auction.check", (checked - solved) * 1000, "ms", (solved - began) * 1000),
        ],
    )


def _rows(name: str) -> Iterator[dict[str, str]]:
    with gzip.open(GME / f"{name}.apr01-15.csv.gz", "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


if __name__ == "__main__":
    main()
