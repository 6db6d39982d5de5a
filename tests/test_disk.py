"""The disk of the log as it really is, and the lock that says who may write it."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from exchange.disk import FolderDisk
from exchange.folder import FolderError
from exchange.lock import FolderLock, HeldError, Holder, holder_of, is_held, process
from exchange.log import FileLog, LogError, LogReader, durable_end, read_records

HOLD = """
import pathlib, sys, time
from exchange.lock import FolderLock
FolderLock(pathlib.Path(sys.argv[1]))
print(1, flush=True)
time.sleep(60)
"""


def test_what_was_appended_is_read_from_any_byte_on(tmp_path: Path) -> None:
    disk = FolderDisk(tmp_path)
    disk.create(1)
    disk.append(1, b"abc")
    disk.append(1, b"def")
    disk.sync(1)
    assert [disk.read(1, offset) for offset in (0, 4, 6)] == [b"abcdef", b"ef", b""]
    disk.create(7)
    disk.append(7, b"x")
    assert disk.segments() == FolderDisk(tmp_path).segments() == [1, 7]
    disk.truncate(1, 2)
    assert FolderDisk(tmp_path).read(1) == b"ab"
    disk.append(1, b"!")
    assert disk.read(1) == b"ab!"
    disk.close()


def test_a_disk_that_is_not_there_has_no_segments(tmp_path: Path) -> None:
    assert FolderDisk(tmp_path / "missing").segments() == []


def test_a_segment_is_made_once(tmp_path: Path) -> None:
    FolderDisk(tmp_path).create(1)
    with pytest.raises(FileExistsError):
        FolderDisk(tmp_path).create(1)


def test_a_write_that_the_system_cuts_short_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:3]))
    disk = FolderDisk(tmp_path)
    disk.create(1)
    disk.append(1, b"abcdefgh")
    assert disk.read(1) == b"abcdefgh"
    disk.close()


def test_a_segment_is_there_for_good_when_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(file: int) -> None:
        real(file)
        synced.append(os.readlink(f"/proc/self/fd/{file}"))

    monkeypatch.setattr(os, "fsync", fsync)
    FolderDisk(tmp_path).create(1)
    assert synced == [str(tmp_path)]


def test_one_file_is_held_from_the_write_to_the_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is opened anew after a failed write-back does not hear of the failure."""
    written: list[int] = []
    synced: list[int] = []
    real_write, real_sync = os.write, os.fdatasync

    def write(file: int, data: memoryview) -> int:
        written.append(file)
        return real_write(file, data)

    def fdatasync(file: int) -> None:
        synced.append(file)
        real_sync(file)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    disk = FolderDisk(tmp_path)
    disk.create(1)
    for _ in range(2):
        disk.append(1, b"abc")
        disk.sync(1)
    assert len({*written, *synced}) == 1
    disk.close()


@pytest.mark.parametrize("what", ["segment removed", "segment replaced", "folder removed", "folder replaced"])
def test_a_segment_that_is_no_longer_in_its_place_is_not_synced(tmp_path: Path, what: str) -> None:
    """Else a leader would go on to acknowledge what nobody will find again."""
    folder = tmp_path / "log"
    folder.mkdir()
    disk = FolderDisk(folder)
    disk.create(1)
    disk.append(1, b"abc")
    disk.sync(1)
    path = Path(disk.name(1))
    match what:
        case "segment removed":
            path.unlink()
        case "segment replaced":
            path.rename(tmp_path / "old")
            path.write_bytes(b"abc")
        case "folder removed":
            shutil.rmtree(folder)
        case _:
            folder.rename(tmp_path / "old")
            shutil.copytree(tmp_path / "old", folder)
    disk.append(1, b"def")
    with pytest.raises(OSError, match=r"0001\.log was removed, moved or replaced"):
        disk.sync(1)
    disk.close()


@pytest.mark.parametrize("name", [f"{1:020d} (1).log", "5.log", f"{0:020d}.log", f"{1:021d}.log"])
def test_a_file_that_is_named_like_a_segment_and_is_none_is_refused_by_its_name(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "notes.log").touch()
    assert FolderDisk(tmp_path).segments() == []
    (tmp_path / name).touch()
    words = re.escape(f"{tmp_path / name} is no segment of the log: one is named by 20 digits")
    with pytest.raises(FolderError, match=words):
        FolderDisk(tmp_path).segments()
    reads: tuple[Callable[[], object], ...] = (
        lambda: FileLog(tmp_path),
        lambda: durable_end(tmp_path),
        lambda: list(read_records(tmp_path)),
        lambda: LogReader(tmp_path).poll(),
    )
    for read in reads:
        with pytest.raises(LogError, match=words):
            read()


def test_the_free_bytes_are_those_of_the_folders_file_system(tmp_path: Path) -> None:
    space = os.statvfs(tmp_path)
    assert abs(FolderDisk(tmp_path).free_bytes() - space.f_bavail * space.f_frsize) < 256 * 1024 * 1024


def test_the_lock_says_which_process_holds_it(tmp_path: Path) -> None:
    assert holder_of(tmp_path) is None
    lock = FolderLock(tmp_path)
    me = process(os.getpid())
    assert me is not None
    assert holder_of(tmp_path) == me
    # The same number at another time is another process.
    assert me != Holder(me.pid, me.started + 1)
    lock.release()


@pytest.mark.parametrize("program", [("rm", "-f"), ("cp", "/dev/null")], ids=" ".join)
def test_the_lock_outlives_the_file_that_says_who_holds_it(tmp_path: Path, program: tuple[str, ...]) -> None:
    lock = FolderLock(tmp_path)
    subprocess.run([*program, tmp_path / "lock"], check=True)
    assert is_held(tmp_path)
    with pytest.raises(HeldError):
        FolderLock(tmp_path)
    lock.release()
    assert not is_held(tmp_path)
    FolderLock(tmp_path).release()


def test_to_ask_whether_a_folder_is_held_keeps_nobody_from_taking_it(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "missing")
    # What whoever asks does, longer than it takes him.
    asking = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH)
    assert not is_held(tmp_path), "two may ask at once"
    done = threading.Timer(0.02, os.close, (asking,))
    done.start()
    FolderLock(tmp_path).release()
    done.join()


def test_a_lock_that_cannot_say_who_holds_it_is_let_go(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(IsADirectoryError):
        FolderLock(tmp_path)
    assert not is_held(tmp_path)


def test_a_process_that_is_not_there_is_none() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert process(gone.pid) is None


def test_a_lock_is_waited_for_at_most_so_long_and_taken_when_its_holder_dies(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.read(1)
    before = time.monotonic()
    with pytest.raises(HeldError, match="is held by another running exchange"):
        FolderLock(tmp_path, 0.2)
    assert 0.2 <= time.monotonic() - before < 5
    found = holder_of(tmp_path)
    assert found is not None
    assert found == process(holder.pid)
    killer = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -9 {holder.pid}"])
    FolderLock(tmp_path, 10).release()
    killer.wait()
    holder.wait()
    holder.stdout.close()
