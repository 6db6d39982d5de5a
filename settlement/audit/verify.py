"""`cux-verify`: proves an export with nothing but its folder and the venue's public key.

Every check either holds or ends the run: the first thing that is wrong is named, with what was expected
and what was found.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import msgspec

from exchange.engine import ENGINE_DIGEST, Engine
from schemas import RULES_VERSION
from schemas.authority import signature_holds
from schemas.codec import CODEC_DIGEST, decode_command, encode
from schemas.commands import AnyCommand, OpenEra, OperatorCommand, PostSettlement, StartSettlementRun
from schemas.events import AnyEvent, Rejected
from schemas.records import Record, entry_of
from settlement.audit.manifest import (
    MANIFEST,
    RECORDS_PER_FILE,
    VENUE,
    Manifest,
    parse_manifest,
    records_path,
    table_path,
    venue_json,
)
from settlement.audit.note import (
    Checkpoint,
    Note,
    NoteError,
    VerifierKey,
    parse,
    parse_checkpoint,
    parse_verifier_key,
)
from settlement.audit.tables import COLUMNS, Sink, Tables
from settlement.audit.tree import CHECKPOINT, TileReader, Tree, TreeError

VERIFIED, REFUSED, USAGE = 0, 1, 2
_PROGRESS_EVERY = 1000
_SHOWN_MAX = 600
_decoder: msgspec.msgpack.Decoder[list[Record]] = msgspec.msgpack.Decoder(list[Record])


class Listener(Protocol):
    """Hears how the verification goes."""

    def tell(self, check: str, finding: str) -> None:
        """The check holds, and this is what it found."""

    def progress(self, check: str, done: int, total: int) -> None:
        """The check is under way: so much of it is done."""


class Refused(Exception):  # noqa: N818 - the verifier's verdict, not a failure of it
    """The export is not what it says; `check` names the check that failed."""

    def __init__(self, check: str, reason: str) -> None:
        super().__init__(f"{check}: {reason}")
        self.check = check
        self.reason = reason


class Verified(NamedTuple):
    """What was proved."""

    origin: str
    size: int
    root: bytes


def verify_export(folder: Path, key: VerifierKey, previous: bytes | None, listener: Listener) -> Verified:
    """Prove an export made by `settlement.audit.export`; `previous` is an earlier checkpoint's note.

    Raises:
        Refused: something is wrong.
        OSError: a file cannot be read.
    """
    manifest = _manifest(folder, key)
    listener.tell(
        "manifest", f"signed by {key.name}: {manifest.records} records, {len(manifest.files)} files"
    )
    _check_files(folder, manifest, listener)
    listener.tell("files", "each is there, as listed, and no other")
    note, checkpoint = _checkpoint((folder / CHECKPOINT).read_bytes(), key, "checkpoint")
    _check_own_checkpoint(note, checkpoint, key, manifest)
    listener.tell("checkpoint", f"signed by {key.name}: {checkpoint.size} entries")
    reader = _check_tree(folder, key, checkpoint, previous, listener)
    _check_listed(manifest, reader)
    Replay(folder, key, manifest).run(reader.entries(), listener)
    return Verified(checkpoint.origin, checkpoint.size, checkpoint.root)


def verify_tree(folder: Path, key: VerifierKey, previous: bytes | None, listener: Listener) -> Verified:
    """Prove signature and tree of any C2SP tlog-tiles log, whatever its entries are.

    Raises:
        Refused: something is wrong.
        OSError: a file cannot be read.
    """
    try:
        data = (folder / CHECKPOINT).read_bytes()
    except FileNotFoundError:
        raise Refused("checkpoint", f"{CHECKPOINT} is missing") from None
    note, checkpoint = _checkpoint(data, key, "checkpoint")
    others = sum(1 for s in note.signatures if (s.name, s.key_id) != (key.name, key.key_id))
    unchecked = f"; {others} signatures by other keys were not checked" if others else ""
    listener.tell(
        "checkpoint", f"of {checkpoint.origin}, signed by {key.name}: {checkpoint.size} entries{unchecked}"
    )
    reader = _check_tree(folder, key, checkpoint, previous, listener)
    beyond = [path for path in _files(folder) if path.startswith("tile/") and path not in reader.checked]
    if beyond:
        listener.tell(
            "not covered", f"{len(beyond)} files are no part of this checkpoint's tree, as {beyond[0]}"
        )
    return Verified(checkpoint.origin, checkpoint.size, checkpoint.root)


def _manifest(folder: Path, key: VerifierKey) -> Manifest:
    try:
        note = parse((folder / MANIFEST).read_bytes())
        note.verify(key)
        manifest = parse_manifest(note.text)
    except FileNotFoundError:
        raise Refused("manifest", f"{MANIFEST} is missing") from None
    except NoteError as error:
        raise Refused("manifest", str(error)) from None
    if len(note.signatures) != 1:
        raise Refused("manifest", f"{len(note.signatures)} signatures; the venue's alone is allowed")
    if manifest.origin != key.name:
        raise Refused("manifest", f"origin {manifest.origin!r} found, {key.name!r} expected")
    return manifest


def _files(folder: Path) -> list[str]:
    """Return the relative path of everything below the folder that is no folder."""
    found = []
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        found += [Path(parent, name).relative_to(folder).as_posix() for name in (*names, *links)]
    return sorted(found)


def _check_files(folder: Path, manifest: Manifest, listener: Listener) -> None:
    found = _files(folder)
    for path in found:
        if path not in manifest.files and path != MANIFEST:
            raise Refused("files", f"{path} is not listed in the manifest")
        if not (folder / path).is_file() or (folder / path).is_symlink():
            raise Refused("files", f"{path} is no plain file")
    missing = manifest.files.keys() - set(found)
    if missing:
        raise Refused("files", f"{min(missing)} is missing")
    for done, (path, listed) in enumerate(manifest.files.items()):
        listener.progress("files", done, len(manifest.files))
        with (folder / path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != listed.size:
                raise Refused("files", f"{path}: {size} bytes found, {listed.size} expected")
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != listed.sha256:
            raise Refused("files", f"{path}: SHA-256 {digest} found, {listed.sha256} expected")


def _check_listed(manifest: Manifest, reader: TileReader) -> None:
    """Refuse what is listed and signed but is no part of an export."""
    known = {CHECKPOINT, VENUE, *map(table_path, COLUMNS), *reader.checked}
    known.update(map(records_path, range(1, manifest.records + 1, RECORDS_PER_FILE)))
    for path in sorted(known ^ manifest.files.keys()):
        raise Refused("files", f"{path} is {'missing' if path in known else 'no part of an export'}")


def _checkpoint(data: bytes, key: VerifierKey, check: str) -> tuple[Note, Checkpoint]:
    try:
        note = parse(data)
        note.verify(key)
        return note, parse_checkpoint(note.text)
    except NoteError as error:
        raise Refused(check, str(error)) from None


def _check_own_checkpoint(note: Note, checkpoint: Checkpoint, key: VerifierKey, manifest: Manifest) -> None:
    if checkpoint.origin != key.name:
        raise Refused("checkpoint", f"origin {checkpoint.origin!r} found, {key.name!r} expected")
    if checkpoint.size != manifest.records:
        raise Refused(
            "checkpoint", f"size {checkpoint.size} found, {manifest.records} expected by the manifest"
        )
    if len(note.signatures) != 1 or checkpoint.extensions:
        raise Refused("checkpoint", "more than origin, size, root and the venue's signature")


def _check_tree(
    folder: Path,
    key: VerifierKey,
    checkpoint: Checkpoint,
    previous: bytes | None,
    listener: Listener,
) -> TileReader:
    """Build the tree from the entries, compare every tile and the root, and an earlier root on the way."""
    earlier = None
    if previous is not None:
        _, earlier = _checkpoint(previous, key, "history")
        if earlier.origin != checkpoint.origin:
            raise Refused("history", f"the earlier checkpoint is of {earlier.origin!r}")
        if earlier.size > checkpoint.size:
            raise Refused(
                "history", f"the earlier checkpoint has {earlier.size} entries, this one {checkpoint.size}"
            )
    reader = TileReader(folder, checkpoint.size)
    tree = Tree(reader.check)
    earlier_root = tree.root()
    try:
        for entry in reader.entries():
            tree.append(entry)
            if earlier is not None and tree.size == earlier.size:
                earlier_root = tree.root()
            if tree.size % _PROGRESS_EVERY == 0:
                listener.progress("tree", tree.size, checkpoint.size)
        tree.finish()
    except TreeError as error:
        raise Refused("tree", str(error)) from None
    root = tree.root()
    if root != checkpoint.root:
        raise Refused("tree", f"root {root.hex()} found, {checkpoint.root.hex()} expected by the checkpoint")
    listener.tell("tree", f"entries and tiles give the root {root.hex()}")
    if earlier is not None:
        if earlier_root != earlier.root:
            raise Refused(
                "history",
                f"the first {earlier.size} entries give the root {earlier_root.hex()}, "
                f"the earlier checkpoint says {earlier.root.hex()}",
            )
        listener.tell("history", f"begins with the {earlier.size} entries of the earlier checkpoint")
    return reader


class _Run:
    """A settlement run, until all it announced has been posted."""

    def __init__(self, announced: StartSettlementRun) -> None:
        self.announced = announced
        self.posted: list[tuple[int, bytes]] = []


class _TableComparison:
    """Takes a table as it is made again, and holds it against the file."""

    def __init__(self, path: Path) -> None:
        self._name = f"tables/{path.name}"
        self._file: BinaryIO = path.open("rb")
        self._line = 0

    def write(self, text: str) -> None:
        self._line += 1
        expected = text.encode()
        found = self._file.read(len(expected))
        if found != expected:
            found += self._file.readline()
            raise Refused(
                "tables",
                f"{self._name}, line {self._line}: found {found[:_SHOWN_MAX]!r}, expected {expected!r}",
            )

    def close(self) -> None:
        rest = self._file.readline()
        self._file.close()
        if rest:
            raise Refused(
                "tables",
                f"{self._name}, line {self._line + 1}: found {rest[:_SHOWN_MAX]!r}, expected the end",
            )


class Replay:
    """Runs the records through a fresh engine, and holds everything they say against what comes out."""

    def __init__(self, folder: Path, key: VerifierKey, manifest: Manifest) -> None:
        """Start before the first record."""
        self._folder = folder
        self._key = key
        self._manifest = manifest
        self._engine = Engine()
        self._era: OpenEra | None = None
        self._last_ns = 0
        self._signatures = 0
        self._open_runs: dict[int, _Run] = {}
        self._whole_runs = 0
        self._events = 0

    def run(self, entries: Iterator[bytes], listener: Listener) -> None:
        """Check every record against its entry and the engine.

        Raises:
            Refused: at the first record where something differs.
        """
        comparisons = {name: _TableComparison(self._folder / table_path(name)) for name in COLUMNS}
        tables = Tables(dict[str, Sink](comparisons))
        total = self._manifest.records
        for sequence, (record, entry) in enumerate(zip(self._records(), entries, strict=True), 1):
            self._check_entry(record, entry, sequence)
            command = self._command(record)
            events = self._apply(record, command)
            self._check_operator(record.sequence, command, events)
            self._check_run(record, command, events)
            tables.add(record.sequence, record.time_ns, command, events)
            if sequence % _PROGRESS_EVERY == 0:
                listener.progress("records", sequence, total)
        for comparison in comparisons.values():
            comparison.close()
        self._check_against_last_era()
        listener.tell(
            "records", f"1 to {total} without a gap, each as its entry says, no time runs backwards"
        )
        listener.tell("operators", f"{self._signatures} acts, each signed by a key of its era")
        waiting = "".join(
            f"; run {number}: {len(run.posted)} of {run.announced.postings} posted so far"
            for number, run in self._open_runs.items()
        )
        listener.tell("settlement", f"{self._whole_runs} runs posted what they announced{waiting}")
        listener.tell("re-execution", f"{self._events} events come out the same, byte by byte")
        listener.tell("tables", f"{', '.join(COLUMNS)}: as the records say")

    def _records(self) -> Iterator[Record]:
        total = self._manifest.records
        for first in range(1, total + 1, RECORDS_PER_FILE):
            path = records_path(first)
            expected = min(RECORDS_PER_FILE, total - first + 1)
            try:
                records = _decoder.decode((self._folder / path).read_bytes())
            except (msgspec.DecodeError, RecursionError) as error:
                raise Refused("records", f"{path}: {error}") from None
            if len(records) != expected:
                raise Refused("records", f"{path}: {len(records)} records found, {expected} expected")
            yield from records

    def _check_entry(self, record: Record, entry: bytes, sequence: int) -> None:
        if record.sequence != sequence:
            raise Refused("records", f"record {record.sequence} found where {sequence} is due")
        if not self._last_ns <= record.time_ns < 2**63:
            raise Refused(
                "records",
                f"record {sequence}: time {record.time_ns} found, {self._last_ns} or later expected",
            )
        self._last_ns = record.time_ns
        found = entry_of(record)
        if found != entry:
            raise Refused(
                "records",
                f"record {sequence}: its parts give the entry {found.hex()}, the tree has {entry.hex()}",
            )

    def _command(self, record: Record) -> AnyCommand:
        data = bytes(record.command)
        try:
            command = decode_command(data)
        except (msgspec.DecodeError, RecursionError) as error:
            raise Refused("records", f"record {record.sequence}: no command: {error}") from None
        if encode(command) != data:
            raise Refused(
                "records", f"record {record.sequence}: the command is not in its canonical encoding"
            )
        return command

    def _apply(self, record: Record, command: AnyCommand) -> Sequence[AnyEvent]:
        if isinstance(command, OpenEra):
            self._check_era(record.sequence, command)
        try:
            events = self._engine.apply(record.time_ns, command)
        except Exception as error:  # whatever it is: a log that an engine wrote never makes it fail
            raise Refused(
                "re-execution", f"record {record.sequence}: the engine fails: {type(error).__name__}: {error}"
            ) from error
        self._events += len(events)
        expected = [encode(event) for event in events]
        found = [bytes(event) for event in record.events]
        if found != expected:
            index = next(
                (i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), None
            )
            at = min(len(found), len(expected)) if index is None else index
            raise Refused(
                "re-execution",
                f"record {record.sequence}, event {at}: found {_shown(found[at : at + 1])}, "
                f"expected {_shown(expected[at : at + 1])}; the command is {_shown([bytes(record.command)])}",
            )
        return events

    def _check_era(self, sequence: int, era: OpenEra) -> None:
        if era.engine_digest != ENGINE_DIGEST:
            raise Refused(
                "re-execution",
                f"record {sequence} opens an era of engine {era.engine_digest.hex()} "
                f"(rules {era.rules_version}); this verifier holds engine {ENGINE_DIGEST.hex()} "
                f"(rules {RULES_VERSION}): "
                f"release {self._manifest.release} of cux made the export and verifies it",
            )
        pairs = (
            ("origin", era.origin, self._key.name),
            ("venue_key", era.venue_key.hex(), self._key.public_key.hex()),
            ("codec_digest", era.codec_digest.hex(), CODEC_DIGEST.hex()),
            ("rules_version", era.rules_version, RULES_VERSION),
            ("state_after", era.state_after.hex(), self._engine.state_hash().hex()),
        )
        for name, found, expected in pairs:
            if found != expected:
                raise Refused("re-execution", f"record {sequence}: {name} {found} found, {expected} expected")
        self._era = era

    def _check_operator(self, sequence: int, command: AnyCommand, events: Sequence[AnyEvent]) -> None:
        # What was refused changed nothing, whoever sent it.
        if not isinstance(command, OperatorCommand) or _refused(events):
            return
        if not signature_holds(command):
            raise Refused("operators", f"record {sequence}: no signature by the operator named holds")
        assert command.authority is not None
        assert self._era is not None
        if command.authority.key not in self._era.operator_keys:
            raise Refused(
                "operators", f"record {sequence}: {command.authority.key.hex()} is no operator's key"
            )
        self._signatures += 1

    def _check_run(self, record: Record, command: AnyCommand, events: Sequence[AnyEvent]) -> None:
        if _refused(events):
            return
        if isinstance(command, StartSettlementRun):
            run = self._open_runs[command.run] = _Run(command)
        elif isinstance(command, PostSettlement):
            run = self._open_runs[command.run]
            run.posted.append((command.trade_id, bytes(record.command)))
        else:
            return
        announced = run.announced
        if len(run.posted) < announced.postings:
            return
        del self._open_runs[announced.run]
        digest = hashlib.sha256(b"".join(data for _, data in sorted(run.posted))).digest()
        if digest != announced.sha256:
            raise Refused(
                "settlement",
                f"record {record.sequence} completes run {announced.run}: its postings have the SHA-256 "
                f"{digest.hex()}, announced was {announced.sha256.hex()}",
            )
        self._whole_runs += 1

    def _check_against_last_era(self) -> None:
        era, manifest = self._era, self._manifest
        # The engine accepts nothing before an era, and a tree of no records has no files to be listed.
        if era is None:
            raise Refused("records", "there is none")
        pairs = (
            ("rules", manifest.rules, era.rules_version),
            ("engine", manifest.engine, era.engine_digest.hex()),
            ("codec", manifest.codec, era.codec_digest.hex()),
        )
        for name, found, expected in pairs:
            if found != expected:
                raise Refused("manifest", f"{name} {found} found, {expected} expected by the records")
        if (self._folder / VENUE).read_bytes() != venue_json(era.venue):
            raise Refused("tables", f"{VENUE} is not the catalogue that the records hold")


def _refused(events: Sequence[AnyEvent]) -> bool:
    return any(isinstance(event, Rejected) for event in events)


def _shown(part: list[bytes]) -> str:
    """Return an encoded part as people read it, or none."""
    if not part:
        return "none"
    try:
        text = msgspec.json.encode(msgspec.msgpack.decode(part[0])).decode()
    except (ValueError, TypeError, RecursionError):
        text = part[0].hex()
    return text[:_SHOWN_MAX]


class _Terminal:
    """Shows findings on standard output, progress on standard error when that is a terminal."""

    def __init__(self, quiet: bool) -> None:
        self.checks: list[dict[str, str]] = []
        self._quiet = quiet
        self._shows_progress = sys.stderr.isatty()

    def tell(self, check: str, finding: str) -> None:
        self.checks.append({"check": check, "finding": finding})
        self.wipe()
        if not self._quiet:
            sys.stdout.write(f"{check:13} {finding}\n")
            sys.stdout.flush()

    def progress(self, check: str, done: int, total: int) -> None:
        if self._shows_progress:
            sys.stderr.write(f"\r\x1b[K{check:13} {100 * done // max(total, 1)} %")
            sys.stderr.flush()

    def wipe(self) -> None:
        if self._shows_progress:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def main(argv: list[str] | None = None) -> int | None:
    """Entry point of `cux-verify`. Returns 0 for verified, 1 for refused, 2 for a mistake in the call."""
    arguments = sys.argv[1:] if argv is None else argv
    tree_only = arguments[:1] == ["tree"]
    options = _parser(tree_only).parse_args(arguments[1:] if tree_only else arguments)
    terminal = _Terminal(quiet=options.json)
    started = time.monotonic()
    try:
        key = parse_verifier_key(options.vkey)
        previous = options.previous.read_bytes() if options.previous else None
        if not options.folder.is_dir():
            raise NotADirectoryError(f"{options.folder} is no folder")
        verify = verify_tree if tree_only else verify_export
        found = verify(options.folder, key, previous, terminal)
    except Refused as refusal:
        code, verdict = REFUSED, f"REFUSED: {refusal}"
        result: dict[str, object] = {"verified": False, "check": refusal.check, "reason": refusal.reason}
    except (NoteError, OSError) as error:
        code, verdict = USAGE, f"cux-verify: {error}"
        result = {"verified": False, "error": str(error)}
    else:
        code, verdict = VERIFIED, f"VERIFIED: {found.origin}, {found.size} entries"
        result = {
            "verified": True,
            "origin": found.origin,
            "entries": found.size,
            "root": found.root.hex(),
        }
    terminal.wipe()
    if options.json:
        result |= {"checks": terminal.checks, "seconds": round(time.monotonic() - started, 3)}
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        (sys.stderr if code == USAGE else sys.stdout).write(f"{verdict}\n")
    return code


def _parser(tree_only: bool) -> argparse.ArgumentParser:
    if tree_only:
        parser = argparse.ArgumentParser(
            "cux-verify tree", description="Prove signature and tree of any C2SP tlog-tiles log in a folder."
        )
    else:
        parser = argparse.ArgumentParser(
            "cux-verify",
            description="Prove an audit export: that it is complete and unaltered, and that the exchange's "
            "rules give the very same events. `cux-verify tree DIR` proves any C2SP tlog-tiles log.",
            epilog="Exit code 0: verified, 1: refused, 2: the call is wrong. A folder named tree is ./tree.",
        )
    parser.add_argument("folder", metavar="DIR", type=Path, help="the folder")
    parser.add_argument("--vkey", metavar="KEY", required=True, help="the public key: name+id+base64")
    parser.add_argument(
        "--previous", metavar="CHECKPOINT", type=Path, help="an earlier checkpoint, which must be a beginning"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    return parser


if __name__ == "__main__":
    sys.exit(main())
