"""No record is told before it was synced after it was written: the real core, watched by `strace`."""

import asyncio
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.campaigns.cores import CORE, CoreProcess, bids, make_folder, open_market
from tests.campaigns.trace import Verdict, calls, command, judge
from tests.exchange_fixture import until

if shutil.which("strace") is None:
    if "CI" in os.environ:
        raise RuntimeError("strace is not installed; .ci/run installs it")
    pytest.skip("strace is not installed (Debian: strace)", allow_module_level=True)

CLIENTS, BIDS = 4, 60
START = "import runpy; runpy.run_module('exchange.core', run_name='__main__')"
NEVER_SYNCS = "import os; os.fdatasync = os.fsync = lambda file: None"
SYNCS_LATE = (
    "import os, threading; real = os.fdatasync;"
    "os.fdatasync = os.fsync = lambda file: threading.Timer(0.3, real, [file]).start()"
)


async def watched(path: Path, core: tuple[str, ...]) -> Verdict:
    """Let clients load a core under `strace`, and judge what was seen."""
    trace = path / "trace"
    with CoreProcess(make_folder(path), [*command(trace), *core]) as process:
        links = [await process.link() for _ in range(CLIENTS)]
        await open_market(links[0])
        told = await asyncio.gather(*(bids(link, n * 1000, BIDS) for n, link in enumerate(links)))
        for link in links:
            await link.close()
        await process.stop()
    await until(lambda: b"+++ exited with" in trace.read_bytes()[-200:])
    verdict = judge(list(calls(trace.read_text().splitlines())))
    # Each bid was told to its client, and nobody else asked.
    assert [len(one) for one in told] == [BIDS] * CLIENTS
    assert verdict.records >= CLIENTS * BIDS
    return verdict


async def test_every_acknowledgement_follows_a_sync_that_began_after_the_write(tmp_path: Path) -> None:
    verdict = await watched(tmp_path, CORE)
    assert verdict.unsynced == []


@pytest.mark.parametrize("patch", [NEVER_SYNCS, SYNCS_LATE], ids=["never", "late"])
async def test_a_core_that_does_not_sync_or_syncs_too_late_is_found(tmp_path: Path, patch: str) -> None:
    verdict = await watched(tmp_path, (sys.executable, "-c", f"{patch}; {START}"))
    assert len(verdict.unsynced) > verdict.told / 2
