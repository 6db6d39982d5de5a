"""OpenCost: allocation JSON. A pod that delivers a fill is named after it."""

import json
from decimal import Decimal
from typing import Any

from settlement.meters.readings import (
    MeterError,
    Parsed,
    Quarantined,
    Reading,
    scaled_of,
    text_of,
    time_ns_of,
    trade_of,
    whole_file,
)

_GPU_HOUR_MS = 3_600_000


def parse(data: bytes) -> Parsed:
    """Return a reading for each allocation; `line` counts them from 1.

    GPU time is `gpuHours`, read exactly and rounded half-even to a millisecond. The interval is the
    allocation's own `start` and `end`, or the window's where it has none.
    """
    try:
        document = json.loads(data, parse_float=Decimal, parse_constant=_refuse_constant)
        groups = _object(document, "document")["data"]
    except (ValueError, RecursionError, KeyError) as error:
        return whole_file(f"no allocation document: {type(error).__name__}: {str(error)[:200]}")
    if not isinstance(groups, list):
        return whole_file("data: a list of objects is wanted")
    readings: list[Reading] = []
    quarantined: list[Quarantined] = []
    number = 0
    for group in groups:
        # A window without allocations is written as null.
        if group is not None and not isinstance(group, dict):
            return whole_file("data: a list of objects is wanted")
        for name, allocation in (group or {}).items():
            number += 1
            try:
                readings.append(_reading(number, name, _object(allocation, "allocation")))
            except MeterError as error:
                quarantined.append(Quarantined(number, str(error)))
    return Parsed(readings, quarantined, 0)


def _reading(number: int, name: str, allocation: dict[str, Any]) -> Reading:
    properties = _object(allocation.get("properties") or {}, "properties")
    pod = properties.get("pod")
    window = _object(allocation.get("window") or {}, "window")
    start_ns = time_ns_of(allocation.get("start") or window.get("start"), "start")
    end_ns = time_ns_of(allocation.get("end") or window.get("end"), "end")
    if end_ns < start_ns:
        raise MeterError(f"end {allocation.get('end')}: not before start {allocation.get('start')} is wanted")
    hours = allocation.get("gpuHours")
    if not isinstance(hours, (int, Decimal)) or isinstance(hours, bool):
        raise MeterError(f"gpuHours {str(hours)[:200]!r}: a number is wanted")
    gpu_ms = scaled_of(hours, _GPU_HOUR_MS, "gpuHours")
    if gpu_ms and start_ns == end_ns:
        raise MeterError(f"gpuHours {hours}: 0 is wanted where end is start, {allocation.get('start')}")
    node = properties.get("node")
    return Reading(
        line=number,
        job=text_of(name, "name"),
        trade_id=trade_of(pod, "properties.pod") if isinstance(pod, str) else None,
        host="" if node is None else text_of(node, "properties.node"),
        start_ns=start_ns,
        end_ns=end_ns,
        gpu_ms=gpu_ms,
        energy_mj=None,
    )


def _object(value: Any, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MeterError(f"{field} {str(value)[:200]!r}: an object is wanted")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")
