"""Exports: everything in a log up to a record, with what it takes to prove it, in a folder of plain files."""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from exchange.log import read_records
from schemas import PROTOCOL_VERSION
from schemas.commands import OpenEra
from schemas.records import Record, decoded, entry_of
from settlement.audit.manifest import (
    MANIFEST,
    RECORDS_PER_FILE,
    VENUE,
    ListedFile,
    Manifest,
    records_path,
    table_path,
    venue_json,
)
from settlement.audit.note import Checkpoint, NoteError, sign, verifier_key
from settlement.audit.tables import COLUMNS, Tables
from settlement.audit.tree import CHECKPOINT, Tree

_encoder = msgspec.msgpack.Encoder()


class ExportError(Exception):
    """Nothing was exported; the message says why."""


class ExportReport(NamedTuple):
    """What was exported. `vkey` is what `cux-verify` wants to be told; `root` is in hexadecimal."""

    folder: Path
    origin: str
    vkey: str
    records: int
    root: str
    files: int
    size_bytes: int


def export(
    log_folder: Path,
    out: Path,
    key: Ed25519PrivateKey,
    origin: str,
    *,
    last: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> ExportReport:
    """Write the records 1 to `last` to the folder `out`, signed by the venue's key, and say what was written.

    Without `last` the log must be at rest; on a running exchange `last` is a record known to be durable.
    `progress` is told the number of records done. The folder appears whole or not at all.

    Raises:
        ExportError: `out` holds something, the log is empty or ends before `last`, or key or origin are
            not those of the log's era.
        LogError: the log is damaged.
        OSError: a file cannot be written.
    """
    try:
        vkey = verifier_key(origin, key)
    except NoteError as error:
        raise ExportError(str(error)) from None
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} exists and is not an empty folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f"{out.name}.unfinished")
    try:
        beside.mkdir()
    except FileExistsError:
        raise ExportError(f"{beside} exists: another export is running, or was killed; remove it") from None
    try:
        with ExitStack() as opened:
            writer = _Writer(beside, key, origin, opened)
            for chunk in _chunks(read_records(log_folder, 1, last)):
                writer.add(chunk)
                if progress is not None:
                    progress(chunk[-1].sequence)
            size_bytes = writer.finish(last)
        beside.rename(out)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    tree = writer.tree
    return ExportReport(
        out, origin, str(vkey), tree.size, tree.root().hex(), len(writer.files) + 1, size_bytes
    )


def _chunks(records: Iterator[Record]) -> Iterator[list[Record]]:
    while chunk := list(islice(records, RECORDS_PER_FILE)):
        yield chunk


class _Table:
    """A table being written, and what the manifest will say of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, text: str) -> None:
        data = text.encode()
        self._file.write(data)
        self._digest.update(data)
        self._size += len(data)

    def listed(self) -> ListedFile:
        return ListedFile(self._digest.hexdigest(), self._size)


class _Writer:
    """The files of one export."""

    def __init__(self, folder: Path, key: Ed25519PrivateKey, origin: str, opened: ExitStack) -> None:
        self.files: dict[str, ListedFile] = {}
        self.tree = Tree(self._write)
        self._folder = folder
        self._key = key
        self._origin = origin
        self._era: OpenEra | None = None
        (folder / table_path("")).parent.mkdir()
        self._sinks = {
            name: _Table(opened.enter_context((folder / table_path(name)).open("xb"))) for name in COLUMNS
        }
        self._tables = Tables(dict(self._sinks))

    def add(self, records: list[Record]) -> None:
        """Write a chunk of records: their parts, their entries, their rows."""
        self._write(records_path(self.tree.size + 1), _encoder.encode(records))
        for record in records:
            if record.sequence != self.tree.size + 1:
                raise ExportError(f"record {record.sequence} found; an export starts with record 1")
            self.tree.append(entry_of(record))
            known = decoded(record)
            if isinstance(known.command, OpenEra):
                self._check_era(known.command)
            self._tables.add(known.sequence, known.time_ns, known.command, known.events)

    def finish(self, last: int | None) -> int:
        """Write what is made at the end, the manifest last; return the size of all files."""
        if self._era is None or (last is not None and self.tree.size < last):
            raise ExportError(f"the log ends at record {self.tree.size}; {last or 1} was asked for")
        for name, sink in self._sinks.items():
            self.files[table_path(name)] = sink.listed()
        self.tree.finish()
        self._write(VENUE, venue_json(self._era.venue))
        checkpoint = Checkpoint(self._origin, self.tree.size, self.tree.root())
        self._write(CHECKPOINT, sign(checkpoint.text(), self._origin, self._key))
        manifest = Manifest(
            origin=self._origin,
            rules=self._era.rules_version,
            protocol=PROTOCOL_VERSION,
            release=version("cux"),
            engine=self._era.engine_digest.hex(),
            codec=self._era.codec_digest.hex(),
            records=self.tree.size,
            files=self.files,
        )
        data = sign(manifest.text(), self._origin, self._key)
        (self._folder / MANIFEST).write_bytes(data)
        return len(data) + sum(file.size for file in self.files.values())

    def _check_era(self, era: OpenEra) -> None:
        if era.origin != self._origin:
            raise ExportError(f"origin {self._origin!r}: the log's is {era.origin!r}")
        if era.venue_key != self._key.public_key().public_bytes_raw():
            raise ExportError("the key is not the venue key that the log's era names")
        self._era = era

    def _write(self, path: str, data: bytes) -> None:
        target = self._folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            file.write(data)
        self.files[path] = ListedFile(hashlib.sha256(data).hexdigest(), len(data))
