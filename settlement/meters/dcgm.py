"""NVIDIA DCGM exporter text: the energy counter of each GPU at the time of the scrape."""

import re

from settlement.meters.readings import (
    MeterError,
    Parsed,
    Quarantined,
    Reading,
    scaled_of,
    text_of,
    trade_of,
)

ENERGY = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
"""Millijoules since the driver was loaded, of the whole GPU."""

_SAMPLE = re.compile(r"\w+\{(?P<labels>.*)\}\s+(?P<value>\S+)(?:\s+-?\d+)?\s*", re.ASCII)
_LABEL = re.compile(r'\s*([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"\s*(?:,|$)', re.ASCII)


def parse(data: bytes, scraped_ns: int) -> Parsed:
    """Return the energy counter of each GPU, also of those that serve no fill: they end an interval.

    Other metrics are counted as others; some are absent on MIG devices, and none is needed. A MIG
    instance is a GPU of its own here (`UUID/instance`) though its counter is the whole device's: see
    `settlement.reconcile.energy_by_fill`. Newer exporters write `Hostname`, older ones `hostname`.
    """
    readings: list[Reading] = []
    quarantined: list[Quarantined] = []
    others = 0
    lines = data.decode("utf-8", "replace").split("\n")
    if lines[-1]:
        quarantined.append(Quarantined(len(lines), "the row has no end: half a file"))
    for number, line in enumerate(lines[:-1], 1):
        if not line.startswith(ENERGY):
            others += bool(line) and not line.startswith("#")
            continue
        try:
            readings.append(_reading(number, line, scraped_ns))
        except MeterError as error:
            quarantined.append(Quarantined(number, str(error)))
    return Parsed(readings, quarantined, others)


def _reading(number: int, line: str, scraped_ns: int) -> Reading:
    match = _SAMPLE.fullmatch(line)
    if match is None:
        raise MeterError(f"sample {line[:200]!r}: name{{labels}} value is wanted")
    labels = _labels(match["labels"])
    gpu = text_of(labels.get("UUID") or labels.get("uuid") or "", "UUID")
    if instance := labels.get("GPU_I_ID"):
        gpu += "/" + text_of(instance, "GPU_I_ID")
    host = labels.get("Hostname") or labels.get("hostname")
    return Reading(
        line=number,
        job=gpu,
        trade_id=trade_of(labels.get("pod", ""), "pod"),
        host="" if host is None else text_of(host, "Hostname"),
        start_ns=scraped_ns,
        end_ns=scraped_ns,
        gpu_ms=None,
        energy_mj=scaled_of(match["value"], 1, ENERGY),
    )


def _labels(text: str) -> dict[str, str]:
    labels: dict[str, str] = {}
    at = 0
    while at < len(text):
        match = _LABEL.match(text, at)
        if match is None:
            raise MeterError(f'labels {text[at : at + 200]!r}: name="value" is wanted')
        labels[match[1]] = match[2]
        at = match.end()
    return labels
