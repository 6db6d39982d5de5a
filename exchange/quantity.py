"""Decimal strings of the wire to integers of the engine and back, exactly."""

from decimal import Decimal

MICROS = 1_000_000


def ticks_of(price: str, tick_micros: int) -> int:
    """Return the price in ticks.

    Raises:
        ValueError: it is no multiple of the tick.
    """
    return _whole(Decimal(price) * MICROS / tick_micros, f"price {price}", _shown(tick_micros, MICROS))


def lots_of(gpus: str, lot_eighths: int) -> int:
    """Return the quantity in lots.

    Raises:
        ValueError: it is no multiple of the lot.
    """
    return _whole(Decimal(gpus) * 8 / lot_eighths, f"gpus {gpus}", _shown(lot_eighths, 8))


def price_of(ticks: int, tick_micros: int) -> str:
    """Return the price as a decimal string."""
    return _shown(ticks * tick_micros, MICROS)


def gpus_of(lots: int, lot_eighths: int) -> str:
    """Return the quantity in GPUs as a decimal string."""
    return _shown(lots * lot_eighths, 8)


def money_of(micros: int) -> str:
    """Return an amount of money as a decimal string."""
    return _shown(micros, MICROS)


def micros_of(amount: str) -> int:
    """Return an amount of money in millionths.

    Raises:
        ValueError: it is no decimal number below 2^63 millionths, or finer than a millionth.
    """
    try:
        number = Decimal(amount) * MICROS
    except ArithmeticError:
        number = Decimal("NaN")
    if not number.is_finite() or abs(number) >= 2**63:
        raise ValueError(f"amount {amount!r}: a decimal number below {2**63 // MICROS} is wanted")
    return _whole(number, f"amount {amount}", "0.000001")


def notional_micros(price_ticks: int, lots: int, lot_eighths: int, tick_micros: int) -> int:
    """Return price × GPUs × one hour; exact, as the catalogue makes tick × lot whole millionths."""
    return price_ticks * lots * lot_eighths * tick_micros // 8


def _whole(number: Decimal, what: str, step: str) -> int:
    if number != int(number):
        raise ValueError(f"{what}: a multiple of {step} is allowed")
    return int(number)


def _shown(numerator: int, denominator: int) -> str:
    text = format(Decimal(numerator) / denominator, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
