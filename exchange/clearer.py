"""The helper that clears calls, a process of its own: the solver is pure Python and would stall the core."""

import asyncio
import contextlib
import signal
import sys

import msgspec
from msgspec import Struct

from exchange.auction import CallBook, CallOrder, CellClearing
from exchange.calls import price_of
from exchange.clearing import clear
from exchange.engine import Engine
from schemas.commands import CallFill, CellPrice
from schemas.link import LENGTH

_Order = tuple[int, int, int, int, int]


class CallTerms(Struct, frozen=True, array_like=True):
    """What takes part in a call. An order is its id, price within the collar, lots, cell and priority.

    `served_by` gives for a demand cell a table over supply cells: 1 where the cell may serve it.
    """

    asks: list[_Order]
    bids: list[_Order]
    served_by: dict[int, bytes]


class Clearing(Struct, frozen=True, array_like=True):
    """The right clearing. A price is a supply cell, its lowest, its highest and its clearing price."""

    fills: tuple[CallFill, ...]
    prices: tuple[tuple[int, int, int, int], ...]


class ClearerLostError(ConnectionError):
    """The helper ended before it answered."""


_encoder = msgspec.msgpack.Encoder()
_terms_decoder = msgspec.msgpack.Decoder(CallTerms)
_clearing_decoder = msgspec.msgpack.Decoder(Clearing)


def terms_of(engine: Engine, class_code: str, hour: int) -> CallTerms:
    """Return what takes part in a contract's call, in a form that another process can read."""
    book, served_by = engine.call_book(class_code, hour), engine.market.eligibility.served_by
    asks: list[_Order] = []
    bids: list[_Order] = []
    for order, ticks, is_bid in zip(book.orders, book.ticks, book.is_bid, strict=True):
        side = bids if is_bid else asks
        side.append((order.order_id, ticks, order.lots, order.cell, order.priority))
    return CallTerms(asks, bids, {cell: served_by(cell) for cell in book.demand_cells})


def prices_of(engine: Engine, clearing: Clearing) -> tuple[CellPrice, ...]:
    """Return the clearing's prices with their cells in words."""
    return tuple(price_of(engine.market, CellClearing(*price)) for price in clearing.prices)


def solve(terms: CallTerms) -> Clearing:
    """Return the one right clearing."""
    asks = [CallOrder(*order) for order in terms.asks]
    bids = [CallOrder(*order) for order in terms.bids]
    ticks = [order.price_ticks for order in asks + bids]
    # The prices are within the collar already.
    low, high = min(ticks, default=1), max(ticks, default=1)
    fills, prices = clear(CallBook(asks, bids, terms.served_by.__getitem__, low, high))
    return Clearing(
        fills,
        tuple((price.cell, price.lowest_ticks, price.highest_ticks, price.price_ticks) for price in prices),
    )


class Clearer:
    """The helper's process, started when a call first needs it. It ends when its input does."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None

    async def clear(self, terms: CallTerms) -> Clearing:
        """Return the one right clearing; ask for one at a time.

        Raises:
            OSError: the helper cannot be started, or was lost; the next call starts another.
        """
        process = self._process
        if process is None:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "exchange.clearer",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        data = _encoder.encode(terms)
        try:
            process.stdin.write(LENGTH.pack(len(data)) + data)
            await process.stdin.drain()
            (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
            return _clearing_decoder.decode(await process.stdout.readexactly(length))
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            await self.stop()
            raise ClearerLostError("the helper that clears calls ended before it answered") from error

    async def stop(self) -> None:
        """End the helper, whatever it is doing."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def main() -> None:
    """Clear one call after the other, from standard input to standard output."""
    # An interrupt at the terminal is for the core, which ends this process with its input. A core that was
    # killed reads no answer, and may have left half a question: both end it without a word.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    read, write = sys.stdin.buffer, sys.stdout.buffer
    while len(head := read.read(LENGTH.size)) == LENGTH.size:
        (length,) = LENGTH.unpack(head)
        if len(terms := read.read(length)) < length:
            return
        data = _encoder.encode(solve(_terms_decoder.decode(terms)))
        write.write(LENGTH.pack(len(data)) + data)
        write.flush()


if __name__ == "__main__":
    main()
