"""The disk fails under a real core (libfiu): it ends with a clear word, and what it had told is there."""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from exchange.folder import DataFolder
from exchange.link import CoreLink
from schemas.events import OrderAccepted, OrderRepeated
from schemas.records import Decoded
from tests.campaigns.cores import CORE, CoreProcess, bids, logged, make_folder, open_market
from tests.campaigns.trace import calls, command, judge
from tests.market import bid

if missing := [tool for tool in ("fiu-run", "strace") if shutil.which(tool) is None]:
    if "CI" in os.environ:
        raise RuntimeError(f"{missing} are not installed; .ci/run installs them")
    pytest.skip(f"{missing} are not installed (Debian: fiu-utils, strace)", allow_module_level=True)

SYNC_FAILS = "enable name=posix/io/sync/fdatasync,failinfo=5"
WRITE_FAILS = "enable name=posix/io/rw/write,failinfo=5,onetime"
DISK_IS_FULL = "enable name=posix/io/rw/write,failinfo=28,onetime"
"""The write that fails is the log's: what is sent goes over sockets. Once, for the last word must get out."""
WRITES_ARE_CUT = "enable_random name=posix/io/rw/write/reduce,probability=0.5"


class FaultyCore:
    """A core whose calls fail when it is told so, watched by `strace`."""

    def __init__(self, folder: DataFolder, path: Path) -> None:
        self.trace = path / "trace"
        self._control = path / "fiu"
        watched = [*command(self.trace), "fiu-run", "-x", "-f", str(self._control), *CORE]
        self.core = CoreProcess(folder, watched)

    async def fail(self, *faults: str) -> None:
        """From now on these calls fail; libfiu fails them before they reach the kernel."""
        arguments = [word for fault in faults for word in ("-c", fault)]
        told = await asyncio.to_thread(
            subprocess.run,
            ["fiu-ctrl", "-f", str(self._control), *arguments, str(self.core.process.pid)],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        assert told.stdout == ""

    def unsynced(self) -> list[int]:
        """The records that were told and had not been synced."""
        return judge(list(calls(self.trace.read_text().splitlines()))).unsynced


async def load(links: Sequence[CoreLink], count: int) -> dict[str, Decoded]:
    """Enter so many bids by each client; return what was acknowledged until the core was lost."""
    told = await asyncio.gather(*(bids(link, 1 + n * 100_000, count) for n, link in enumerate(links)))
    return {name: answer for one in told for name, answer in one.items()}


async def refuse_loss(folder: DataFolder, told: dict[str, Decoded]) -> None:
    """Start the core again: all that was told is in the log and is answered alike, nothing is there twice."""
    found = logged(folder)
    for answer in told.values():
        assert found[answer.sequence] == answer
    with CoreProcess(folder) as again:
        link = await again.link()
        for name, answer in told.items():
            first = answer.events[0]
            assert isinstance(first, OrderAccepted)
            repeated = (await link.submit(bid(int(name[1:]), 1, 1))).events[0]
            assert isinstance(repeated, OrderRepeated), name
            assert repeated.order_id == first.order_id
        await link.close()
        await again.stop()
    accepted = [r.command for r in logged(folder).values() if isinstance(r.events[0], OrderAccepted)]
    assert len(accepted) == len({command.client_order_id for command in accepted})  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        (SYNC_FAILS, "Input/output error"),
        (WRITE_FAILS, "Input/output error"),
        (DISK_IS_FULL, "No space left on device"),
    ],
    ids=["EIO on fdatasync", "EIO on write", "ENOSPC on write"],
)
async def test_a_core_whose_disk_fails_ends_with_a_clear_word_and_tells_nothing_more(
    tmp_path: Path, fault: str, word: str
) -> None:
    folder = make_folder(tmp_path)
    faulty = FaultyCore(folder, tmp_path)
    with faulty.core as core:
        links = [await core.link() for _ in range(3)]
        await open_market(links[0])
        loading = asyncio.create_task(load(links, 20_000))
        await asyncio.sleep(0.3)
        await faulty.fail(fault)
        told = await asyncio.wait_for(loading, 20)
        code, said = await core.ended()
    assert len(told) > 50
    assert code == 1
    *_, last = said.splitlines()
    assert last.startswith("core: stopped, nothing after the last answer was told: ")
    assert word in last
    assert "Traceback" not in said
    assert faulty.unsynced() == []
    await refuse_loss(folder, told)


async def test_writes_that_are_cut_short_are_finished(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    faulty = FaultyCore(folder, tmp_path)
    with faulty.core as core:
        links = [await core.link() for _ in range(3)]
        await open_market(links[0])
        await faulty.fail(WRITES_ARE_CUT)
        told = await load(links, 100)
        await core.stop()
    assert len(told) == 300
    assert faulty.unsynced() == []
    await refuse_loss(folder, told)
