"""`cux auction clear`: the clearing of any two curves, by the exchange's own call auction."""

import csv
import json
from collections.abc import Iterable, Iterator
from decimal import Context, Decimal, Inexact, InvalidOperation
from pathlib import Path
from typing import Annotated

import typer

from exchange.auction import CallBook, CallOrder, crosses
from exchange.clearing import clear
from gateway.cli.app import group

auction = group("auction", "Call auctions.")

COLUMNS = ["side", "price", "quantity"]
SIDES = ("buy", "sell")
DIGITS = 50
"""A number has at most so many digits before its point, and as many after it."""
FLOAT_DIGITS = 14
"""So many digits of a side's total are sure to be right when it was computed in binary floats."""
_EXACT = Context(prec=6 * DIGITS, traps=[Inexact, InvalidOperation])

Steps = dict[int, int]
"""A curve: by price the quantity of its steps, both in units of the last digit that is allowed."""


class CurveError(ValueError):
    """The file holds no curves; the message names file, line, column, value and what is allowed."""


def read_curves(path: Path) -> dict[str, Steps]:
    """Return the steps of both sides; rows of no quantity are left out.

    Raises:
        CurveError: a line is not `side,price,quantity`.
        OSError: the file cannot be read.
    """
    curves: dict[str, Steps] = {side: {} for side in SIDES}
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = _rows(path, file)
        line, header = next(rows, (1, []))
        if header != COLUMNS:
            raise _fault(path, line, "header", ",".join(header), f"{','.join(COLUMNS)} is")
        for line, row in rows:
            if len(row) != len(COLUMNS):
                raise _fault(path, line, "columns", ",".join(row), f"{','.join(COLUMNS)}: three of them are")
            side, price_text, quantity_text = row
            if side not in SIDES:
                raise _fault(path, line, "side", side, "buy or sell is")
            price = _number(path, line, "price", price_text)
            quantity = _number(path, line, "quantity", quantity_text)
            if quantity < 0:
                raise _fault(path, line, "quantity", quantity_text, "zero or more is")
            if quantity:
                steps = curves[side]
                steps[price] = steps.get(price, 0) + quantity
    return curves


def without_residue(curves: dict[str, Steps]) -> dict[str, Steps]:
    """Return the curves without the digits that binary floats leave behind; rounds half up.

    Published curves are often computed in floats: 0.30000000000000004. One such digit too many on either
    side decides which of two equal totals is the greater, and narrows the interval of prices to one end.
    So quantities are rounded to `FLOAT_DIGITS` digits of the larger side's total, but to no more than 1.
    """
    total = max(sum(steps.values()) for steps in curves.values())
    step = 10 ** min(DIGITS, max(0, len(str(total)) - FLOAT_DIGITS))
    rounded = {
        side: {price: (quantity + step // 2) // step * step for price, quantity in steps.items()}
        for side, steps in curves.items()
    }
    return {side: {p: n for p, n in steps.items() if n} for side, steps in rounded.items()}


def clear_curves(curves: dict[str, Steps]) -> dict[str, str | None]:
    """Return the interval of clearing prices, that of volumes, and the greatest surplus, as decimal strings.

    At every price of the interval, what is bought and what is sold can be the same. The low volume
    leaves out what could trade without gain. Where nothing can trade the prices go from best buy to best
    sell; None where there is none.
    """
    # Ids are the prices: a fill then tells its gain, and no two steps of a side have the same.
    buys, sells = (
        [CallOrder(price, price, quantity, cell=0, priority=0) for price, quantity in curves[side].items()]
        for side in SIDES
    )
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
        Path, typer.Argument(help="CSV with the header side,price,quantity; buy or sell; one step a row.")
    ],
    exact: Annotated[
        bool, typer.Option("--exact", help="Keep the last digits that binary floats leave in quantities.")
    ] = False,
) -> None:
    """Clear a buy and a sell curve at one price; print the interval of prices and of volumes as JSON.

    Quantities are rounded to 14 digits of the total, but to no more than 1.

    Example: cux auction clear curves.csv
    """
    curves = read_curves(file)
    typer.echo(json.dumps(clear_curves(curves if exact else without_residue(curves))))


def _rows(path: Path, file: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and trimmed fields of each row that is not blank."""
    reader = csv.reader(file, skipinitialspace=True)
    try:
        for row in reader:
            fields = [field.strip() for field in row]
            if fields and fields != [""]:
                yield reader.line_num, fields
    except csv.Error as error:
        raise CurveError(f"{path}, line {reader.line_num}: {error}; CSV is allowed") from error
    except UnicodeDecodeError as error:
        raise CurveError(f"{path}, after line {reader.line_num}: {error}; UTF-8 is allowed") from error


def _number(path: Path, line: int, column: str, text: str) -> int:
    """Return the number in units of the last digit that is allowed."""
    # Decimal takes more than the digits of a CSV file: underscores and the digits of other scripts.
    if text.isascii() and "_" not in text:
        try:
            number = Decimal(text)
            if number.is_finite() and number.adjusted() < DIGITS:
                units = number.scaleb(DIGITS, _EXACT)
                if units == (whole := int(units)):
                    return whole
        except ArithmeticError:
            pass
    allowed = f"a decimal number, of at most {DIGITS} digits before and {DIGITS} after the point, is"
    raise _fault(path, line, column, text, allowed)


def _fault(path: Path, line: int, column: str, value: str, allowed: str) -> CurveError:
    shown = value if len(value) <= 2 * DIGITS else f"{value[: 2 * DIGITS]}..."
    return CurveError(f"{path}, line {line}, {column} {shown!r}: {allowed} allowed")


def _shown(number: int, digits: int = DIGITS) -> str:
    """Return a number, in units of that digit after the point, as a decimal string."""
    text = format(Decimal(number).scaleb(-digits, _EXACT), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
