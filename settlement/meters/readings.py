"""What every adapter gives back, and the small parsers that they share."""

import re
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import NamedTuple

SECOND_NS = 1_000_000_000
QUANTITY_MAX = 2**53
"""No counter of a real meter comes near it; anything above is damage."""
TEXT_MAX = 200

_FILL_NAME = re.compile(r"cux-([1-9][0-9]{0,17})", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Reading(NamedTuple):
    """One row of a meter.

    A reading of GPU time has `gpu_ms` delivered between `start_ns` and `end_ns`; a reading of energy has
    the counter `energy_mj` at `start_ns`, which is `end_ns`. `job` names the job, the allocation or the
    GPU; `host` is the machine by the meter's own name. `trade_id` is None for what serves no fill.
    """

    line: int
    job: str
    trade_id: int | None
    host: str
    start_ns: int
    end_ns: int
    gpu_ms: int | None
    energy_mj: int | None


class Quarantined(NamedTuple):
    """A row that is not believed: its line (0: the whole file), and why."""

    line: int
    why: str


class Parsed(NamedTuple):
    """What an adapter made of a file. `others` counts sound rows that measure no GPU."""

    readings: list[Reading]
    quarantined: list[Quarantined]
    others: int


class MeterError(ValueError):
    """A row or a file cannot be believed; the message names field, value and what is allowed."""


def whole_file(why: str) -> Parsed:
    """Return a file that is quarantined as a whole."""
    return Parsed([], [Quarantined(0, why)], 0)


def trade_of(name: str, field: str) -> int | None:
    """Return the trade that a job's or pod's name stands for, None if it is not about a fill.

    Raises:
        MeterError: the name starts like a fill's but gives no trade.
    """
    if not name.startswith("cux-"):
        return None
    match = _FILL_NAME.fullmatch(name)
    if match is None:
        raise MeterError(f"{field} {name[:TEXT_MAX]!r}: cux-<trade id> is wanted")
    return int(match[1])


def text_of(value: object, field: str) -> str:
    """Return a name as text.

    Raises:
        MeterError: it is empty, too long, or holds what cannot be printed.
    """
    if not isinstance(value, str) or not 0 < len(value) <= TEXT_MAX or not value.isprintable():
        raise MeterError(
            f"{field} {str(value)[:TEXT_MAX]!r}: 1 to {TEXT_MAX} printable characters are wanted"
        )
    return value


def whole_of(value: str, field: str) -> int:
    """Return a number without sign or fraction.

    Raises:
        MeterError: it is none, or above `QUANTITY_MAX`.
    """
    if not (value.isascii() and value.isdigit() and len(value) <= 16 and int(value) <= QUANTITY_MAX):
        raise MeterError(f"{field} {value[:TEXT_MAX]!r}: a whole number of 0 to {QUANTITY_MAX} is wanted")
    return int(value)


def scaled_of(value: str | int | Decimal, factor: int, field: str) -> int:
    """Return a decimal number times `factor`, rounded half-even once.

    Raises:
        MeterError: it is no number, not finite, negative, or the result is above `QUANTITY_MAX`.
    """
    try:
        number = Decimal(value)
    except InvalidOperation:
        number = Decimal("NaN")
    # The size is tested first: an exponent of a million digits must not be expanded.
    if not number.is_finite() or number < 0 or number * factor > QUANTITY_MAX:
        raise MeterError(
            f"{field} {str(value)[:TEXT_MAX]}: a number of 0 to {QUANTITY_MAX // factor} is wanted"
        )
    if number < Decimal("1e-18"):
        return 0
    return round(Fraction(number) * factor)


def time_ns_of(value: object, field: str) -> int:
    """Return an ISO 8601 time in UTC nanoseconds; a time without an offset is UTC.

    Raises:
        MeterError: it is no time.
    """
    if not isinstance(value, str) or not value.isascii():
        raise MeterError(f"{field} {str(value)[:TEXT_MAX]!r}: an ISO 8601 time is wanted")
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise MeterError(f"{field} {value[:TEXT_MAX]!r}: an ISO 8601 time is wanted") from None
    since = (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)) - _EPOCH
    if since.days < 0:
        raise MeterError(f"{field} {value[:TEXT_MAX]!r}: a time after 1970 is wanted")
    return (since.days * 86_400 + since.seconds) * SECOND_NS + since.microseconds * 1_000
