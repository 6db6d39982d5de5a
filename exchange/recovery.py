"""Recovery: the engine as snapshot and log make it."""

import contextlib
import gc
import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from exchange.engine import ENGINE_DIGEST, Engine, restored
from exchange.log import Log, LogError
from exchange.migrations import STATE_FORMAT, Encoded, can_migrate, migrated
from exchange.packing import READS_PLAIN_ORDERS, packed, unpacked
from exchange.slots import Command, taken, told
from exchange.snapshot import Snapshot, Snapshots
from schemas.codec import decode_command, decode_event, encode
from schemas.commands import AnyCommand, OpenEra
from schemas.events import EraOpened
from schemas.records import Record, entry_of


class Recovered(NamedTuple):
    """An engine that has applied the log up to `sequence`, and the era that runs, None before the first.

    `migrated_from` is the hash of the state as the release before had it, where it was migrated. `at` is the
    record of that sequence, or where it has not been read yet, its entry as a snapshot has it.
    """

    engine: Engine
    era: OpenEra | None
    sequence: int
    migrated_from: bytes | None = None
    at: Record | bytes = b""


def recover(log: Log, snapshots: Iterable[Snapshot] = ()) -> Recovered:
    """Return what snapshots, the newest first, and log make.

    Raises:
        LogError: the log ends before a snapshot, or the snapshot is of another log; or a record is damaged,
            of another version, or gives other events than the log holds.
    """
    recovered = start_from(snapshots, log.last_sequence)
    for record in log.read(max(recovered.sequence, 1)):
        recovered = reapply(recovered, record)
    return recovered


def start_from(snapshots: Iterable[Snapshot], last_sequence: int) -> Recovered:
    """Return the state of the newest snapshot that can be used for a log that ends there.

    That is one in today's form; or in an older one that leads to it, which must stand at the log's end: the
    records after it were made by rules that are no longer here.

    Raises:
        LogError: the log ends before a snapshot, or what it holds has a form that its number does not.
    """
    for snapshot in snapshots:
        sequence, state_format = snapshot.sequence, snapshot.state_format
        if sequence > last_sequence:
            raise LogError(
                f"the log ends with record {last_sequence}, but there is a snapshot of record {sequence}: "
                "the log has lost what was told; restore it from a copy"
            )
        encoded = Encoded(snapshot.era, snapshot.state)
        if state_format == STATE_FORMAT:
            return _restored(encoded, snapshot)
        if sequence == last_sequence and can_migrate(state_format):
            recovered = _restored(migrated(encoded, state_format), snapshot)
            return recovered._replace(migrated_from=snapshot.state_hash)
    return Recovered(Engine(), None, 0)


def _restored(encoded: Encoded, snapshot: Snapshot) -> Recovered:
    try:
        era = decode_command(encoded.era)
        with _without_collector():
            engine = restored(encoded.state)
    except msgspec.DecodeError as error:
        raise LogError(f"the snapshot of record {snapshot.sequence} holds no state: {error}") from None
    assert isinstance(era, OpenEra)
    return Recovered(engine, era, snapshot.sequence, at=snapshot.entry)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Make much that stays, or goes at once: to look for garbage meanwhile takes longer than to make it."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        # What is there now need not be looked at again.
        gc.freeze()
        if collects:
            gc.enable()


def reapply(recovered: Recovered, record: Record) -> Recovered:
    """Apply the next record to the engine and return where it stands then.

    The record after which a snapshot was made may come first: it is compared with what the snapshot says.

    Raises:
        LogError: the record is of another version, fails, or gives other events than the log holds; or the
            snapshot was made after another record.
    """
    if record.sequence == recovered.sequence and isinstance(recovered.at, bytes):
        if recovered.at != entry_of(record):
            raise LogError(f"the snapshot of record {record.sequence} is of another log than this one")
        return recovered._replace(at=record)
    assert record.sequence == recovered.sequence + 1
    data = bytes(record.command)
    plain = unpacked(data) if READS_PLAIN_ORDERS else None
    command: AnyCommand | Command
    try:
        command = decode_command(data) if plain is None else plain
    except msgspec.DecodeError as error:
        raise LogError(f"record {record.sequence} is of another version of cux: {error}; {_ADVICE}") from None
    try:
        events = recovered.engine.execute(record.time_ns, taken(command))
    except Exception as error:
        raise LogError(
            f"record {record.sequence}: the engine fails at it ({type(error).__name__}: {error}), as it did "
            "not when the log was written: by another release, or it was tampered with"
        ) from error
    # Encoding is quicker than decoding; only where a later version has added to an event do bytes differ.
    if [packed(event) for event in events] != [bytes(event) for event in record.events]:
        try:
            known = [decode_event(bytes(event)) for event in record.events]
        except msgspec.DecodeError as error:
            raise LogError(
                f"record {record.sequence} is of another version of cux: {error}; {_ADVICE}"
            ) from None
        if [told(event) for event in events] != known:
            raise LogError(_difference(recovered, record))
    era = recovered.era
    if isinstance(command, OpenEra) and isinstance(events[0], EraOpened):
        era = command
    return Recovered(recovered.engine, era, record.sequence, at=record)


_ADVICE = "stop the release that wrote it cleanly first: its last snapshot is what this one starts from"


def _difference(recovered: Recovered, record: Record) -> str:
    words = f"record {record.sequence}: this engine gives other events than the log holds"
    if recovered.era is not None and recovered.era.engine_digest != ENGINE_DIGEST:
        return f"{words}, which another release wrote; {_ADVICE}"
    return f"{words}, though this very release wrote it: a bug, or a log that was tampered with"


def snapshot_of(recovered: Recovered) -> Snapshot:
    """Return the state as a snapshot; an era runs."""
    assert recovered.era is not None
    entry = recovered.at if isinstance(recovered.at, bytes) else entry_of(recovered.at)
    assert entry
    with _without_collector():
        state = recovered.engine.encoded_state()
    state_hash = hashlib.sha256(state).digest()
    return Snapshot(recovered.sequence, entry, STATE_FORMAT, state_hash, encode(recovered.era), state)


def keep_snapshot(snapshots: Snapshots, recovered: Recovered) -> None:
    """Make a snapshot, unless one of this record or of a later one is whole and in today's form.

    None is made before an era runs.

    Raises:
        OSError: it could not be written.
    """
    if recovered.era is None:
        return
    for found in snapshots.whole(lambda _: None):
        if found.sequence < recovered.sequence:
            break
        if found.state_format == STATE_FORMAT:
            return
    snapshots.write(snapshot_of(recovered))
