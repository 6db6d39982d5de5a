"""Contracts: a class in a delivery hour, say `H100-SXM.20261124T14`."""

from datetime import UTC, datetime, timedelta

HOUR_NS = 3_600_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FORMAT = "%Y%m%dT%H"


def symbol(class_code: str, hour: int) -> str:
    """Return the contract's symbol; `hour` is counted from the Unix epoch, UTC."""
    return f"{class_code}.{_EPOCH + timedelta(hours=hour):{_FORMAT}}"


def parse_symbol(text: str) -> tuple[str, int]:
    """Return class code and hour of a symbol.

    Raises:
        ValueError: the text is no symbol.
    """
    class_code, _, stamp = text.rpartition(".")
    try:
        start = datetime.strptime(stamp, _FORMAT).replace(tzinfo=UTC)
    except ValueError:
        start = None
    if (
        not class_code
        or start is None
        or symbol(class_code, hour := (start - _EPOCH) // timedelta(hours=1)) != text
    ):
        raise ValueError(f"contract {text!r}: a class and a UTC hour are wanted, as in H100-SXM.20261124T14")
    return class_code, hour


def gate_ns(hour: int, gate_seconds: int) -> int:
    """Return when trading in a delivery hour ends."""
    return hour * HOUR_NS - gate_seconds * 1_000_000_000
