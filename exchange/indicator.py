"""What calls would clear at now, told while they collect. Nothing of it stands in the log."""

import asyncio
import sys
import time
from collections.abc import Callable

from exchange.clearer import CallTerms, Clearer, prices_of, terms_of
from exchange.contract import symbol
from exchange.engine import Engine
from schemas.events import Phase
from schemas.link import Indicated

EVERY_SECONDS = 1.0
SHARE = 20
"""Reading the books of calls takes at most one part in so many of the core's time."""


class Indicator:
    """Has a helper process of its own, so that no clearing waits for an indication."""

    def __init__(self, engine: Engine, tell: Callable[[Indicated], None]) -> None:
        self._engine = engine
        self._tell = tell
        self._clearer = Clearer()
        # What was told last by contract, and of what: most books are as they were.
        self._told: dict[tuple[str, int], tuple[CallTerms, Indicated]] = {}

    async def run(self) -> None:
        """Tell of every call that collects, again and again, for ever."""
        while True:
            reading = 0.0
            collecting = [
                (code, hour) for code, hour, _, is_clearing in self._engine.calls() if not is_clearing
            ]
            self._told = {contract: self._told[contract] for contract in collecting if contract in self._told}
            for class_code, hour in collecting:
                began = time.monotonic()
                terms = self._terms(class_code, hour)
                reading += time.monotonic() - began
                if terms is not None:
                    await self._indicate(class_code, hour, terms)
            await asyncio.sleep(max(EVERY_SECONDS, reading * SHARE))

    def _terms(self, class_code: str, hour: int) -> CallTerms | None:
        """Return what takes part in a call, None if it has ended meanwhile."""
        if self._engine.phase(class_code, hour) is not Phase.CALL:
            return None
        return terms_of(self._engine, class_code, hour)

    async def _indicate(self, class_code: str, hour: int, terms: CallTerms) -> None:
        told = self._told.get((class_code, hour))
        if told is None or told[0] != terms:
            time_ns = self._engine.time_ns
            try:
                clearing = await self._clearer.clear(terms)
            except OSError as error:
                sys.stderr.write(f"core: no indication for {symbol(class_code, hour)}: {error}\n")
                return
            lots = sum(fill.lots for fill in clearing.fills)
            told = (terms, Indicated(class_code, hour, time_ns, lots, prices_of(self._engine, clearing)))
            self._told[class_code, hour] = told
        self._tell(told[1])

    async def stop(self) -> None:
        """End the helper."""
        await self._clearer.stop()
