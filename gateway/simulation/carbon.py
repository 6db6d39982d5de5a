"""Hourly carbon intensity: the catalogue's annual figure times the shape of a measured grid.

China publishes no hourly figure. The shape is a measured zone's hour over its mean of the year, at the
same local month, day and hour; which grid stands for which zone is the table `SHAPE_OF`.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

from exchange.contract import HOUR_NS
from gateway.simulation.openb import Row, TraceError, read_rows
from gateway.simulation.scenario import CarbonByHour
from schemas.venue import Venue, Zone

SUBFOLDER = "electricitymaps_hourly"
TIME_COLUMN = "Datetime (UTC)"
VALUE_COLUMN = "Carbon Intensity gCO₂eq/kWh (direct)"
OWN_COLUMNS = ("shape", "hour", "permille")

UTC_OFFSET_HOURS = {"DE-LU": 1, "GB": 0, "IN-WE": 5, "JP-TK": 9, "SG": 8, "US-CAL-CISO": -8}
"""Standard time of the measured grids, so that noon meets noon; half an hour of India's is left out."""

SHAPE_OF = {
    "zhangjiakou": "DE-LU",  # wind and sun on a fossil base
    "horinger": "DE-LU",
    "qingyang": "US-CAL-CISO",  # much sun
    "zhongwei": "US-CAL-CISO",
    "wuhu": "IN-WE",  # coal
    "chongqing": "IN-WE",
    "guian": "IN-WE",
    "guiyang": "IN-WE",
    "yangtze-delta": "JP-TK",  # a dense coast with sun at noon
    "beijing": "JP-TK",
    "tianjin": "JP-TK",
    "shanghai": "JP-TK",
    "hangzhou": "JP-TK",
    "nanjing": "JP-TK",
    "shaoguan": "SG",  # steady
    "guangzhou": "SG",
    "shenzhen": "SG",
    "tianfu": "SG",
    "chengdu": "SG",
}
DEFAULT_SHAPE = "DE-LU"
"""For a zone that the table does not name."""

_GRAMS_MAX = 5000
_YEAR_HOURS_MIN = 8760
_PERMILLE_MAX = 10_000


HourOfYear = tuple[int, int, int]
"""Month, day and hour of a measured grid's local time; month and day are 0 where every day is the same."""


class Shape(NamedTuple):
    """A grid's hours in any one unit, and their mean."""

    values: dict[HourOfYear, int]
    mean: Fraction

    def factor(self, local: datetime) -> Fraction:
        """Return the intensity at this local hour over the mean."""
        # The measured year has no 29 February.
        day = 28 if (local.month, local.day) == (2, 29) else local.day
        value = self.values.get((local.month, day, local.hour))
        return (self.values[0, 0, local.hour] if value is None else value) / self.mean


def find_grids(data: Path) -> dict[str, Path]:
    """Return the files of the measured grids under the data folder; empty unless all are there."""
    found = {
        grid: path
        for grid in UTC_OFFSET_HOURS
        for path in sorted((data / SUBFOLDER).glob(f"{grid}_*_hourly.csv*"))
    }
    return found if len(found) == len(UTC_OFFSET_HOURS) else {}


def read_grid(grid: str, path: Path) -> Shape:
    """Return the shape of a measured grid from a year of hours.

    Raises:
        TraceError: the file is refused, or is no whole year.
    """
    offset = timedelta(hours=UTC_OFFSET_HOURS[grid])
    values: dict[HourOfYear, int] = {}
    for row in read_rows(path, (TIME_COLUMN, VALUE_COLUMN)):
        local = _time(row) + offset
        # In micrograms: integers add up a hundred times faster than fractions.
        values[local.month, local.day, local.hour] = int(row.number(VALUE_COLUMN, _GRAMS_MAX) * 1_000_000)
    if len(values) < _YEAR_HOURS_MIN or not any(values.values()):
        raise TraceError(
            path, 1, TIME_COLUMN, f"{len(values)} hours", f"the {_YEAR_HOURS_MIN} hours of a year"
        )
    return Shape(values, Fraction(sum(values.values()), len(values)))


def read_own_shapes(path: Path) -> dict[str, Shape]:
    """Return the made-up shapes of the small scenario: 24 hours each, the same every day.

    Raises:
        TraceError: the file is refused.
    """
    values: dict[str, dict[HourOfYear, int]] = {}
    for row in read_rows(path, OWN_COLUMNS):
        hour = row.whole("hour", 23)
        values.setdefault(row.fields["shape"], {})[0, 0, hour] = row.whole("permille", _PERMILLE_MAX)
    for grid in UTC_OFFSET_HOURS:
        if len(values.get(grid, {})) != 24:
            raise TraceError(path, 1, "shape", grid, "24 hours of every shape")
    return {grid: Shape(hours, Fraction(sum(hours.values()), len(hours))) for grid, hours in values.items()}


def hourly_intensity(venue: Venue, shapes: dict[str, Shape], hours: range) -> CarbonByHour:
    """Return the grid intensity of every zone and Unix hour in milligrams per kWh, rounded half-even."""
    zone_time = ZoneInfo(venue.time_zone)
    table: dict[tuple[str, int], int] = {}
    for zone in venue.zones:
        shape = shapes[SHAPE_OF.get(zone.code, DEFAULT_SHAPE)]
        for hour in hours:
            local = datetime.fromtimestamp(hour * HOUR_NS // 1_000_000_000, UTC).astimezone(zone_time)
            table[zone.code, hour] = round(zone.grid_mgco2_per_kwh * shape.factor(local))
    return table


def carbon_grade(venue: Venue, zone: Zone, grid_mgco2_per_kwh: int) -> str:
    """Return the best grade that a site in the zone holds at this grid intensity, PUE counted.

    The zone's PUE must be known.
    """
    assert zone.pue_permille is not None
    # mg × permille: a million of them is a gram at PUE 1.
    of_it_load = grid_mgco2_per_kwh * zone.pue_permille
    bounds: Sequence[tuple[str, int | None]] = [(g.code, g.max_gco2_per_kwh) for g in venue.carbon_grades]
    return next(code for code, most in bounds if most is None or of_it_load <= most * 1_000_000)


def _time(row: Row) -> datetime:
    try:
        time = datetime.fromisoformat(row.fields[TIME_COLUMN])
    except ValueError:
        time = None
    if time is None or time.tzinfo is not None:
        row.refuse(TIME_COLUMN, "a time such as 2023-01-01 00:00:00")
    return time
