"""The back process: follows the log into the ledger, at low priority."""

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from exchange.folder import DataFolder, FolderError
from exchange.log import LogError
from exchange.process import STOP_SIGNALS, end_with_supervisor
from settlement.postgres import DatabaseError, connection_of
from settlement.writer import LedgerAheadError, Progress, follow

PRIORITY = 5
LEDGER_AHEAD = 3
"""The exit code that says: the log lacks what the ledger has, trading must stop."""


class _Told:
    """Says once that the database is away and how far behind the ledger is, and once that it is back."""

    def __init__(self) -> None:
        self._away = False

    def __call__(self, progress: Progress) -> None:
        if progress.error and not self._away:
            sys.stderr.write(f"back: the ledger is {progress.behind} records behind: {progress.error}\n")
        elif self._away and not progress.error:
            sys.stderr.write(f"back: the database is back; the ledger is {progress.behind} records behind\n")
        self._away = bool(progress.error)


async def _run(folder: DataFolder) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    await follow(folder.log, connection_of(folder.postgres), stop, _Told())
    for number in STOP_SIGNALS:
        # One that comes while the loop closes would be written to what is closed already, and told.
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)


def main() -> int:
    """Keep the ledger of the exchange in a data folder at its log, until told to stop."""
    end_with_supervisor()
    parser = argparse.ArgumentParser(prog="cux-back", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    folder = DataFolder(parser.parse_args().folder)
    os.nice(PRIORITY)
    try:
        asyncio.run(_run(folder))
    except LedgerAheadError as error:
        sys.stderr.write(f"back: {error}\n")
        return LEDGER_AHEAD
    except (FolderError, LogError, DatabaseError) as error:
        sys.stderr.write(f"back: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
