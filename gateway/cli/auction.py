"""`cux auction clear`: the clearing of any two curves, by the exchange's own call auction."""

import csv
import io
import json
import sys
from collections.abc import Iterator
from decimal import Context, Decimal, Inexact, InvalidOperation
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import typer

from exchange.auction import CallBook, CallOrder, crosses
from exchange.clearing import clear
from gateway.cli.app import group

auction = group("auction", "Call auctions.")

STDIN = "-"
COLUMNS = ("side", "price", "quantity")
SIDES = ("buy", "sell")
DIGITS = 50
"""A number has at most so many digits before its point, and as many after it."""
GRID_DIGITS, FLOAT_DIGITS = 10, 15
"""A binary float holds 15 digits for sure; a quantity of as many that is close to one of 10 was that one."""
_EXACT = Context(prec=6 * DIGITS, traps=[Inexact, InvalidOperation])

Curve = list[tuple[int, int]]
"""Price and quantity of each step, in units of the last digit that is allowed."""


class CurveError(ValueError):
    """The file holds no curves; the message names file, line, column, value and what is allowed."""


def read_curves(file: str | Path) -> dict[str, Curve]:
    """Return the steps of both sides, of a CSV file or of stdin (`-`); rows of no quantity are left out.

    The header names side, price and quantity, in any order and case; what else it names is passed over.

    Raises:
        CurveError: a line is no such row.
        OSError: the file cannot be read.
    """
    name, data = ("stdin", sys.stdin.buffer.read()) if file == STDIN else (str(file), Path(file).read_bytes())
    curves: dict[str, Curve] = {side: [] for side in SIDES}
    rows = _rows(name, data)
    line, header = next(rows, (1, []))
    names = [column.strip().lower() for column in header]
    if any(names.count(column) != 1 for column in COLUMNS):
        allowed = f"{','.join(COLUMNS)}, each once, in any order and among others, is"
        raise _fault(name, line, "header", ",".join(header), allowed)
    places = [names.index(column) for column in COLUMNS]
    for line, row in rows:
        if len(row) != len(header):
            raise _fault(name, line, "columns", ",".join(row), f"{len(header)}, as the header has, are")
        side, price_text, quantity_text = (row[place] for place in places)
        curve = curves.get(side.strip().lower())
        if curve is None:
            raise _fault(name, line, "side", side, "buy or sell is")
        price = _number(name, line, "price", price_text)
        quantity = _number(name, line, "quantity", quantity_text)
        if quantity < 0:
            raise _fault(name, line, "quantity", quantity_text, "zero or more is")
        if quantity:
            curve.append((price, quantity))
    return curves


def without_residue(curves: dict[str, Curve]) -> dict[str, Curve]:
    """Return the curves without the last digits that binary floats leave in quantities.

    Published curves are often computed in floats: 0.30000000000000004. One such digit too many on either
    side decides which of two equal totals is the greater, and narrows the interval of prices to one end.
    So a quantity written with 15 digits or more, where floats end, that differs from a number of 10 digits
    of the larger side's total by no more than half of its 15th digit is read as that number. All else stays
    as it is, and so do whole numbers.
    """
    total = max(sum(quantity for _, quantity in curve) for curve in curves.values())
    grid = 10 ** min(DIGITS, max(0, len(str(total)) - GRID_DIGITS))
    residue = grid // 10 ** (FLOAT_DIGITS - GRID_DIGITS) // 2

    def read(quantity: int) -> int:
        if len(str(quantity).rstrip("0")) < FLOAT_DIGITS:
            return quantity
        nearest = (quantity + grid // 2) // grid * grid
        return nearest if nearest and abs(quantity - nearest) <= residue else quantity

    return {side: [(price, read(quantity)) for price, quantity in curve] for side, curve in curves.items()}


def clear_curves(curves: dict[str, Curve]) -> dict[str, str | None]:
    """Return the interval of clearing prices, that of volumes, and the greatest surplus, as decimal strings.

    At every price of the interval, what is bought and what is sold can be the same. The low volume
    leaves out what could trade without gain. Where nothing can trade the prices go from best buy to best
    sell; None where there is none.
    """
    sides: dict[str, list[CallOrder]] = {}
    for side, curve in curves.items():
        levels: dict[int, int] = {}
        for price, quantity in curve:
            levels[price] = levels.get(price, 0) + quantity
        # Ids are the prices: a fill then tells its gain.
        sides[side] = [CallOrder(price, price, lots, cell=0, priority=0) for price, lots in levels.items()]
    buys, sells = sides["buy"], sides["sell"]
    everything = [order.price_ticks for order in (*buys, *sells)] or [0]
    book = CallBook(sells, buys, lambda _: b"\1", min(everything), max(everything))
    if crosses(book):
        fills, (cell,) = clear(book)
        low: int | None = cell.lowest_ticks
        high: int | None = cell.highest_ticks
        gains = [(fill.bid_order_id - fill.ask_order_id, fill.lots) for fill in fills]
    else:
        low = max((order.price_ticks for order in buys), default=None)
        high = min((order.price_ticks for order in sells), default=None)
        gains = []
    return {
        "price_low": None if low is None else _shown(low),
        "price_high": None if high is None else _shown(high),
        "volume_low": _shown(sum(lots for gain, lots in gains if gain)),
        "volume_high": _shown(sum(lots for _, lots in gains)),
        "surplus": _shown(sum(gain * lots for gain, lots in gains), 2 * DIGITS),
    }


@auction.command("clear")
def auction_clear(
    file: Annotated[
        str,
        typer.Argument(help="CSV with side, price and quantity; buy or sell; one step a row. - for stdin."),
    ],
    exact: Annotated[
        bool, typer.Option("--exact", help="Take every digit of a quantity as it is written.")
    ] = False,
) -> None:
    """Clear a buy and a sell curve at one price; print the interval of prices and of volumes as JSON.

    Last digits that binary floats leave in quantities of 15 digits or more, as in 0.30000000000000004, are
    rounded away.

    Example: cux auction clear curves.csv
    """
    curves = read_curves(file)
    typer.echo(json.dumps(clear_curves(curves if exact else without_residue(curves))))


def _rows(name: str, data: bytes) -> Iterator[tuple[int, list[str]]]:
    """Yield fields of each row that is not blank, with the number of the line in which it begins."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # As the lines are counted below: where the part before it ends.
        line = len((data[: error.start] + b".").splitlines())
        raise CurveError(f"{name}, line {line}: {error.reason}; UTF-8 is allowed") from error
    lines = list(io.StringIO(text, newline=""))
    # The line that is added is a blank row, unless a quote is still open.
    reader = csv.reader([*lines, ""], skipinitialspace=True)
    first = 1
    try:
        for row in reader:
            if row and reader.line_num > len(lines):
                raise CurveError(f"{name}, line {first}: a quote that is not closed; CSV is allowed")
            if len(row) > 1 or (row and row[0].strip()):
                yield first, row
            first = reader.line_num + 1
    except csv.Error as error:
        raise CurveError(f"{name}, line {first}: {error}; CSV is allowed") from error


def _number(name: str, line: int, column: str, text: str) -> int:
    units = _units(text)
    if units is None:
        allowed = f"a decimal number, of at most {DIGITS} digits before and {DIGITS} after the point, is"
        raise _fault(name, line, column, text, allowed)
    return units


# Most prices and quantities of a curve come more than once.
@lru_cache(maxsize=1 << 16)
def _units(text: str) -> int | None:
    """Return the number in units of the last digit that is allowed, None if it is none or out of range.

    Spaces around it are allowed.
    """
    # Decimal takes more than the digits of a CSV file: underscores and the digits of other scripts.
    if not text.isascii() or "_" in text:
        return None
    try:
        number = Decimal(text)
        if not number.is_finite() or number.adjusted() >= DIGITS:
            return None
        units = number.scaleb(DIGITS, _EXACT)
    except ArithmeticError:
        return None
    whole = int(units)
    return whole if whole == units else None


def _fault(name: str, line: int, column: str, value: str, allowed: str) -> CurveError:
    value = value.strip()
    shown = value if len(value) <= 2 * DIGITS else f"{value[: 2 * DIGITS]}..."
    return CurveError(f"{name}, line {line}, {column} {shown!r}: {allowed} allowed")


def _shown(number: int, digits: int = DIGITS) -> str:
    """Return a number, in units of that digit after the point, as a decimal string."""
    text = format(Decimal(number).scaleb(-digits, _EXACT), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
