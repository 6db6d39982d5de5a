"""A real core process for the campaigns that watch one or make its disk fail."""

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from exchange.folder import DataFolder, Settings
from exchange.link import BusyError, CoreLink, CoreLostError
from exchange.log import read_records
from schemas.events import OrderAccepted, OrderRepeated, Rejected
from schemas.records import Decoded, decoded
from tests.exchange_fixture import ROOT, VENUE
from tests.market import OPERATOR_KEY, START_NS, bid, opening

CORE = (sys.executable, "-m", "exchange.core")
START_SECONDS = 30.0


def make_folder(path: Path) -> DataFolder:
    """The data folder of a new exchange whose clock stands; its core needs nothing else."""
    folder = DataFolder(path / "exchange")
    folder.create(
        Settings(
            format=1,
            origin="test.example/small",
            venue=VENUE,
            venue_key=bytes(32),
            operator_keys=(OPERATOR_KEY,),
            clock_speed=1,
            start_ns=START_NS,
        )
    )
    return folder


class CoreProcess:
    """A core, started by `command` with the folder as its argument. Ends with the `with` statement."""

    def __init__(self, folder: DataFolder, command: Sequence[str | Path] = CORE) -> None:
        self.folder = folder
        folder.core_socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [*map(str, command), str(folder.path)], stderr=subprocess.PIPE, text=True, cwd=ROOT
        )

    def __enter__(self) -> "CoreProcess":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    async def link(self) -> CoreLink:
        """Connect as soon as it listens."""
        deadline = asyncio.get_running_loop().time() + START_SECONDS
        while asyncio.get_running_loop().time() < deadline:
            try:
                return await CoreLink.connect(self.folder.core_socket)
            except (OSError, CoreLostError):
                assert self.process.poll() is None, self.process.communicate()[1]
                await asyncio.sleep(0.02)
        raise AssertionError("the core did not start")

    async def ended(self) -> tuple[int, str]:
        """Return its code and what it said, when it has ended."""
        _, said = await asyncio.to_thread(self.process.communicate, None, 30)
        return self.process.returncode, said

    async def stop(self) -> None:
        """End it in order."""
        self.process.terminate()
        code, said = await self.ended()
        assert code == 0, (code, said)


async def open_market(link: CoreLink) -> None:
    """Accounts, sites and money, as in `tests/market.py`."""
    for command in opening()[1:]:
        answer = await link.submit(command)
        assert not isinstance(answer.events[0], Rejected), answer


async def bids(link: CoreLink, first: int, count: int, at_a_time: int = 20) -> dict[str, Decoded]:
    """Enter bids that rest, and return what was acknowledged, by client order id, until the core is lost."""
    told: dict[str, Decoded] = {}
    numbers = iter(range(first, first + count))

    async def enter() -> None:
        for number in numbers:
            try:
                answer = await link.submit(bid(number, 1, 1))
            except (CoreLostError, BusyError):
                return
            assert isinstance(answer.events[0], OrderAccepted | OrderRepeated), answer
            told[f"o{number}"] = answer

    await asyncio.gather(*(enter() for _ in range(at_a_time)))
    return told


def logged(folder: DataFolder) -> dict[int, Decoded]:
    """What the log holds, by sequence."""
    return {record.sequence: decoded(record) for record in read_records(folder.log)}
