"""Carbon intensity of the grid by zone and hour: CSV with the header `zone,hour,mgco2_per_kwh`."""

from typing import NamedTuple

from settlement.meters.readings import MeterError, Quarantined, text_of, whole_of

HEADER = "zone,hour,mgco2_per_kwh"
_HOUR_MAX = 2**31
_INTENSITY_MAX = 10_000_000


class Intensity(NamedTuple):
    """Milligrams CO2e per kWh of the zone's grid in an hour counted from the Unix epoch."""

    line: int
    zone: str
    hour: int
    mgco2_per_kwh: int


def parse(data: bytes) -> tuple[list[Intensity], list[Quarantined]]:
    """Return the rows, and those that are not believed."""
    lines = data.decode("utf-8", "replace").split("\n")
    if lines[0].rstrip("\r") != HEADER:
        return [], [Quarantined(0, f"header {lines[0][:200]!r}: {HEADER} is wanted")]
    rows: list[Intensity] = []
    quarantined: list[Quarantined] = []
    if lines[-1]:
        quarantined.append(Quarantined(len(lines), "the row has no end: half a file"))
    for number, line in enumerate(lines[1:-1], 2):
        try:
            rows.append(_row(number, line.rstrip("\r").split(",")))
        except MeterError as error:
            quarantined.append(Quarantined(number, str(error)))
    return rows, quarantined


def _row(number: int, fields: list[str]) -> Intensity:
    if len(fields) != 3:
        raise MeterError(f"{len(fields)} fields; 3 are wanted")
    hour, intensity = whole_of(fields[1], "hour"), whole_of(fields[2], "mgco2_per_kwh")
    if hour > _HOUR_MAX:
        raise MeterError(f"hour {hour}: hours since 1970 are wanted")
    if intensity > _INTENSITY_MAX:
        raise MeterError(f"mgco2_per_kwh {intensity}: at most {_INTENSITY_MAX} is allowed")
    return Intensity(number, text_of(fields[0], "zone"), hour, intensity)
