"""The disk fails under a real core (libfiu): it ends with a clear word, and what it had told is there."""

import asyncio
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from exchange.folder import DataFolder
from exchange.link import CoreLink
from schemas.events import OrderAccepted, OrderRepeated
from schemas.records import Decoded
from tests.campaigns.cores import CORE, CoreProcess, bids, logged, make_folder, open_market
from tests.campaigns.trace import Call, calls, command, judge
from tests.market import bid

if missing := [tool for tool in ("fiu-run", "strace") if shutil.which(tool) is None]:
    if "CI" in os.environ:
        raise RuntimeError(f"{missing} are not installed; .ci/run installs them")
    pytest.skip(f"{missing} are not installed (Debian: fiu-utils, strace)", allow_module_level=True)

SYNC_FAILS = f"posix/io/sync/fdatasync {errno.EIO}"
WRITE_FAILS = f"posix/io/rw/write {errno.EIO}"
DISK_IS_FULL = f"posix/io/rw/write {errno.ENOSPC}"
MAGIC = b"CUX1"
"""A batch begins with it, the rest of one that was cut short does not."""
WRITES_ARE_CUT = "posix/io/rw/write/reduce 0"


class FaultyCore:
    """A core whose calls fail when it is told so, watched by `strace`."""

    def __init__(self, folder: DataFolder, path: Path) -> None:
        self.trace = path / "trace"
        self._fault = path / "fault"
        faulty = ["fiu-run", "-x", "-f", "", sys.executable, "-m", "tests.campaigns.faulty_core"]
        self.core = CoreProcess(folder, [*command(self.trace), *faulty])

    def fail(self, fault: str) -> None:
        """From now on libfiu fails these calls before they reach the kernel."""
        beside = self._fault.with_suffix(".new")
        beside.write_text(fault)
        beside.rename(self._fault)

    def seen(self) -> list[Call]:
        """What `strace` saw until now."""
        return list(calls(self.trace.read_text().splitlines()))


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
        faulty.fail(fault)
        told = await asyncio.wait_for(loading, 20)
        code, said = await core.ended()
    assert len(told) > 50
    assert code == 1
    *_, last = said.splitlines()
    assert last.startswith("core: stopped, nothing after the last answer was told: ")
    assert word in last
    assert "Traceback" not in said
    verdict = judge(faulty.seen())
    assert verdict.records >= len(told)
    assert verdict.unsynced == []
    await refuse_loss(folder, told)


async def test_writes_that_are_cut_short_are_finished(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    faulty = FaultyCore(folder, tmp_path)
    with faulty.core as core:
        links = [await core.link() for _ in range(3)]
        await open_market(links[0])
        faulty.fail(WRITES_ARE_CUT)
        told = await load(links, 100)
        await core.stop()
    assert len(told) == 300
    seen = faulty.seen()
    written = [call for call in seen if call.name == "write" and call.path.endswith(".log")]
    assert sum(not call.data.startswith(MAGIC) for call in written) > 20, "no write was cut"
    verdict = judge(seen)
    assert verdict.records >= 300
    assert verdict.unsynced == []
    await refuse_loss(folder, told)


async def test_a_disk_that_is_full_ends_the_core_and_with_more_room_all_it_told_is_there(
    tmp_path: Path,
) -> None:
    if os.getuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", disk], check=True)
    try:
        folder, trace = make_folder(disk), tmp_path / "trace"
        # With a bound for a low disk it would never come so far.
        with CoreProcess(folder, [*command(trace), *CORE, "--low-disk-bytes", "0"]) as core:
            links = [await core.link() for _ in range(3)]
            await open_market(links[0])
            told = await asyncio.wait_for(load(links, 20_000), 30)
            code, said = await core.ended()
        assert len(told) > 100
        assert code == 1
        assert said.startswith("core: stopped, nothing after the last answer was told: ")
        assert "No space left on device" in said
        assert judge(list(calls(trace.read_text().splitlines()))).unsynced == []
        subprocess.run(["mount", "-o", "remount,size=256m", disk], check=True)
        await refuse_loss(folder, told)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
