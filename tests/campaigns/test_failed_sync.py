"""What a failed sync left in the kernel's memory is not taken for durable by the next writer."""

import os
import re
from pathlib import Path

import pytest

from exchange.disk import FolderDisk

KEPT = bytes(100_000)


def bytes_written() -> int:
    """How much this process has handed to write calls of whatever kind."""
    found = re.search(r"wchar: (\d+)", Path("/proc/self/io").read_text())
    assert found is not None
    return int(found[1])


def test_what_a_cut_keeps_is_written_anew_before_it_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a sync that failed the kernel shows what it has not written, and takes it for clean.

    A later sync does not write it either: a core that starts then would tell of records that a power cut
    takes back.
    """
    disk = FolderDisk(tmp_path)
    disk.create(1)
    disk.append(1, KEPT + b"torn")
    before = bytes_written()
    at_syncs: list[int] = []

    def sync(_: int) -> None:
        at_syncs.append(bytes_written() - before)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "fdatasync", sync)
    disk.truncate(1, len(KEPT))
    assert disk.read(1) == KEPT
    assert at_syncs[-1] >= len(KEPT)
