"""What a played day came to: volumes by class, and its surplus against the best and against separate books.

A program of its own, so that it runs beside the rest: `python -m gateway.simulation.report LOG LAST SCENARIO
OUT` writes one JSON object.
"""

import argparse
import os
import sys
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
from schemas.events import trades_of
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
    """The day. `fill_ratio_permille` is GPU-hours bought over GPU-hours asked for."""

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
    orders = [record.command for record in records if isinstance(record.command, EnterOrder)]
    trades = [trade for record in records for event in record.events for trade in trades_of(event)]
    rows = []
    all_demanded, all_traded, all_pflops, all_notional = Fraction(0), Fraction(0), Fraction(0), 0
    for one in era.venue.classes:
        asked = sum(
            order.lots * order.hours
            for order in orders
            if order.class_code == one.code and order.side is Side.BUY
        )
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
        blocks=sum(1 for order in orders if order.hours > 1),
        fills=len(trades),
        demanded_gpu_hours=_tenths(all_demanded),
        gpu_hours=_tenths(all_traded),
        pflops_hours_fp32=_tenths(all_pflops),
        notional=money_of(all_notional),
        fill_ratio_permille=int(1000 * all_traded / all_demanded) if all_demanded else 0,
        classes=tuple(rows),
        surplus=surplus,
    )


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
