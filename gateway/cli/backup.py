"""`cux backup`: a copy of a data folder, also of a live one, that is the exchange as it was at one record."""

import os
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from exchange.disk import FolderDisk
from exchange.folder import DataFolder, FolderError, sync
from exchange.log import LogError, SegmentLog, batch_at, end_of
from exchange.snapshot import Snapshots
from gateway.cli.app import FOLDER, AsJson, Folder, app, show


class Backup(NamedTuple):
    """How far a copy reaches: its last record."""

    folder: str
    record: int


@app.command()
def backup(
    to: Annotated[Path, typer.Argument(help="A new folder, or an empty one.")],
    folder: Folder = FOLDER,
    as_json: AsJson = False,
) -> None:
    """Copy the exchange's data folder, also while it runs; started there, it goes on from that moment.

    Log, snapshots, settings, keys, quarantine; not Postgres, whose ledger is made again from the log.

    Example: cux backup /mnt/backup/monday && cux serve --folder /mnt/backup/monday
    """
    made = back_up(DataFolder(folder), to.absolute())
    show(as_json, made._asdict(), f"{made.folder}: up to record {made.record}")


def back_up(source: DataFolder, to: Path) -> Backup:
    """Copy what an exchange is made of, and return when it is durable.

    Until it is whole the copy has no settings, so nothing starts there.

    Raises:
        FolderError: there is no exchange, or more than files among its keys; or the target holds something,
            or lies in the source.
        LogError: the log is damaged, or ends before a snapshot.
    """
    source.settings()
    if to.resolve().is_relative_to(source.path.resolve()):
        raise FolderError(f"{to} lies in {source.path}, of which it would be a copy; name another folder")
    for path in source.keys.iterdir():
        if not path.is_file():
            raise FolderError(f"{path} is no file: keys holds key files alone; move it elsewhere")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise FolderError(f"{to} holds something already; name a new folder, or an empty one")
    target = DataFolder(to)
    for folder in (target.path, target.log, target.snapshots, target.keys):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Snapshots before the log: it must not end before one of them.
    _copy_files(source.snapshots, target.snapshots, "[0-9]*.snapshot")
    record = _copy_log(source, target)
    _copy_files(source.keys, target.keys, "*")
    if source.quarantine.exists():
        target.quarantine.mkdir(mode=0o700)
        _copy_files(source.quarantine, target.quarantine, "*.txt")
    _copy_files(source.path, target.path, "clock-speed")
    sync(target.path)
    _copy_files(source.path, target.path, source.settings_file.name)
    sync(target.path.parent)
    return Backup(str(to), record)


def _copy_log(source: DataFolder, target: DataFolder) -> int:
    """Copy the log's records that count, check every batch, and return the last one."""
    last = end_of(source.log).last
    found = FolderDisk(source.log)
    for segment in found.segments():
        if segment > max(last, 1):
            break
        path = Path(found.name(segment))
        data = found.read(segment)
        # What is behind was perhaps not synced, or is no whole batch: it may never have happened.
        _write(target.log / path.name, data[: _end_of(last, path, data)])
    copy = FolderDisk(target.log)
    try:
        log = SegmentLog(copy, not_below=max(last, Snapshots(target.snapshots).last_sequence))
        log.close()
    finally:
        copy.close()
    sync(target.log)
    return log.last_sequence


def _end_of(last: int, path: Path, data: bytes) -> int:
    """Return where in the segment the batches up to record `last` end.

    Raises:
        LogError: a batch before that is damaged.
    """
    end, reached = 0, int(path.stem) - 1
    while end < len(data):
        batch = batch_at(data, end)
        if batch is None and reached < last:
            raise LogError(f"{path} is damaged at byte {end}, after record {reached}")
        if batch is None or batch.last_sequence > last:
            break
        end, reached = batch.end, batch.last_sequence
    return end


def _copy_files(source: Path, target: Path, pattern: str) -> None:
    for path in sorted(source.glob(pattern)):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            # A snapshot that gave way to a newer one meanwhile.
            continue
        _write(target / path.name, data)
    sync(target)


def _write(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
