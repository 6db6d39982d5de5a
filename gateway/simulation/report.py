"""What a played day came to: volumes by class, and its surplus against the best and against separate books.

A program of its own, so that it runs beside the rest: `python -m gateway.simulation.report LOG LAST SCENARIO
OUT` writes one JSON object.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import msgspec
from msgspec import Struct

from exchange.log import read_records
from exchange.quantity import money_of
from gateway.simulation.scenario import read_acts, read_scenario
from gateway.simulation.surplus import SurplusReport, private_values, surplus_report
from schemas.catalogue import fp32_pflops_hours, gpu_hours
from schemas.commands import EnterOrder, OpenEra, Side
from schemas.events import OrderAccepted, OrderListed, OrderReplaced, trades_of
from schemas.records import Decoded, decoded

PRIORITY = 10


class ClassVolume(Struct, frozen=True, kw_only=True):
    """One class's day. Quantities are decimals of GPU-hours; PFLOPS-hours are by FP32, none if not known."""

    class_code: str
    fills: int
    demanded_gpu_hours: str
    gpu_hours: str
    pflops_hours_fp32: str | None
    notional: str


class DayReport(Struct, frozen=True, kw_only=True):
    """The day. `fill_ratio_permille` is GPU-hours bought, resales included, over GPU-hours asked for."""

    orders: int
    blocks: int
    fills: int
    demanded_gpu_hours: str
    gpu_hours: str
    pflops_hours_fp32: str
    notional: str
    fill_ratio_permille: int
    classes: tuple[ClassVolume, ...]
    surplus: SurplusReport


def day_report(records: list[Decoded], surplus: SurplusReport) -> DayReport:
    """Return the volumes of a log, beside its surplus."""
    era = records[0].command
    assert isinstance(era, OpenEra)
    orders = [order for record in records for _, order in _entered(record)]
    asked_of = _asked(records)
    trades = [trade for record in records for event in record.events for trade in trades_of(event)]
    rows = []
    all_demanded, all_traded, all_pflops, all_notional = Fraction(0), Fraction(0), Fraction(0), 0
    for one in era.venue.classes:
        asked = asked_of[one.code]
        sold = [trade for trade in trades if trade.class_code == one.code]
        if not asked and not sold:
            continue
        demanded = gpu_hours(one, lots=asked, hours=1)
        traded = gpu_hours(one, lots=sum(trade.lots for trade in sold), hours=1)
        notional = sum(trade.notional_micros for trade in sold)
        pflops = fp32_pflops_hours(one, traded)
        all_demanded += demanded
        all_traded += traded
        all_pflops += pflops or 0
        all_notional += notional
        rows.append(
            ClassVolume(
                class_code=one.code,
                fills=len(sold),
                demanded_gpu_hours=_tenths(demanded),
                gpu_hours=_tenths(traded),
                pflops_hours_fp32=None if pflops is None else _tenths(pflops),
                notional=money_of(notional),
            )
        )
    return DayReport(
        orders=len(orders),
        blocks=sum(1 for order in orders if order.hours > 1 and order.side is Side.BUY),
        fills=len(trades),
        demanded_gpu_hours=_tenths(all_demanded),
        gpu_hours=_tenths(all_traded),
        pflops_hours_fp32=_tenths(all_pflops),
        notional=money_of(all_notional),
        fill_ratio_permille=int(1000 * all_traded / all_demanded) if all_demanded else 0,
        classes=tuple(rows),
        surplus=surplus,
    )


def _entered(record: Decoded) -> Iterator[tuple[int | None, EnterOrder]]:
    """Yield the orders that the record enters or refuses, with their ids (None of a refused one)."""
    accepted = (event.order_id for event in record.events if isinstance(event, OrderAccepted))
    if isinstance(record.command, EnterOrder):
        yield next(accepted, None), record.command
    for event in record.events:
        if isinstance(event, OrderListed):
            yield event.order_id, event.order


def _asked(records: Iterable[Decoded]) -> Counter[str]:
    """Return the lot-hours by class that bids asked for: the most that each ever wanted.

    Of alternatives the one that wants most counts, for all that an account enters under one name.
    """
    wanted: dict[tuple[int, str], tuple[str, int]] = {}
    bids: dict[int, tuple[tuple[int, str], EnterOrder]] = {}

    def want(key: tuple[int, str], class_code: str, lot_hours: int) -> None:
        if key not in wanted or lot_hours > wanted[key][1]:
            wanted[key] = (class_code, lot_hours)

    for record in records:
        for number, (order_id, order) in enumerate(_entered(record)):
            if order.side is Side.SELL:
                continue
            group = order.exclusive_group
            key = (order.account, f"={group}") if group else (record.sequence, str(number))
            want(key, order.class_code, order.lots * order.hours)
            if order_id is not None:
                bids[order_id] = (key, order)
        for event in record.events:
            if isinstance(event, OrderReplaced) and event.order_id in bids:
                key, order = bids[event.order_id]
                want(key, order.class_code, event.lots * order.hours)
    asked: Counter[str] = Counter()
    for class_code, lot_hours in wanted.values():
        asked[class_code] += lot_hours
    return asked


def _tenths(number: Fraction) -> str:
    whole, tenth = divmod(round(number * 10), 10)
    return f"{whole}.{tenth}"


def main() -> int:
    """Write the report of the log's records up to LAST, played from SCENARIO."""
    parser = argparse.ArgumentParser(prog="python -m gateway.simulation.report", description=main.__doc__)
    parser.add_argument("log", type=Path)
    parser.add_argument("last", type=int)
    parser.add_argument("scenario", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    os.nice(PRIORITY)
    scenario = read_scenario(arguments.scenario)
    acts = [act for client in scenario.clients for act in read_acts(arguments.scenario, client)]
    records = [decoded(record) for record in read_records(arguments.log, 1, arguments.last)]
    report = day_report(records, surplus_report(records, private_values(acts)))
    arguments.out.write_bytes(msgspec.json.encode(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
