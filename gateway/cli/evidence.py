"""`cux log`, `audit`, `db`: what happened, and the proof of it."""

import gc
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, BinaryIO, NamedTuple, TypeVar

import msgspec
import typer

from exchange.engine import Engine
from exchange.folder import DataFolder
from exchange.log import LogEnd, LogError, durable_end, end_of, read_records
from exchange.migrations import STATE_FORMAT
from exchange.recovery import Recovered, reapply
from exchange.snapshot import Snapshots
from gateway.cli.app import FOLDER, INT64_MAX, AsJson, Folder, console, group, lines, run, show
from gateway.keys import read_key
from gateway.serve import database_of
from schemas.records import Decoded, Record, decoded, entry_of
from settlement.audit.export import export
from settlement.audit.note import verifier_key
from settlement.database import connect, migrate
from settlement.postgres import connection_of
from settlement.writer import engine_equals_ledger, position_in, rebuild

log = group("log", "The log: the only truth.")
audit = group("audit", "Exports that prove themselves.")
db = group("db", "The ledger's database.")

T = TypeVar("T")
PROGRESS_EVERY = 1 << 14
First = Annotated[int, typer.Option("--from", min=1, max=INT64_MAX, help="The first sequence number.")]


def understood(record: Record) -> Decoded:
    """Return the record with its parts decoded.

    Raises:
        LogError: a part is no command or event that this version knows.
    """
    try:
        return decoded(record)
    except msgspec.DecodeError as error:
        raise LogError(f"record {record.sequence}: another version of cux wrote it ({error})") from None


class _Known(NamedTuple):
    """What a snapshot says of the log at its record."""

    entry: bytes
    state_hash: bytes


def replay(
    folder: DataFolder, last: int, snapshots: Mapping[int, _Known] = MappingProxyType({})
) -> Recovered:
    """Apply the log's records up to `last` again and return what they make.

    `snapshots` are those that are known, by their record.

    Raises:
        LogError: the log is damaged, ends before `last`, gives other events or states than it did, or
            another version wrote it.
    """
    recovered = Recovered(Engine(), None, 0)
    # As in the core: a collector that looks at every open order again and again costs more than the book.
    gc.set_threshold(100_000, 50, 100)
    try:
        for record in counted(read_records(folder.log, 1, last)):
            recovered = reapply(recovered, record)
            if record.sequence in snapshots:
                _compare(recovered, record, snapshots[record.sequence])
    except LogError as error:
        raise LogError(f"{error}; the records up to {recovered.sequence} are whole") from None
    if recovered.sequence < last:
        raise LogError(f"{folder.log} ends with record {recovered.sequence}; {last} was known")
    return recovered


def _compare(recovered: Recovered, record: Record, known: _Known) -> None:
    if known.entry != entry_of(record):
        raise LogError(f"the snapshot of record {record.sequence} is of another log than this one")
    found = recovered.engine.state_hash()
    if found != known.state_hash:
        raise LogError(
            f"the snapshot of record {recovered.sequence} is of state {known.state_hash.hex()}, the log of "
            f"{found.hex()}"
        )


def counted(records: Iterable[T], *, aside: bool = True) -> Iterator[T]:
    """Pass the records on, and tell a terminal how many came; not where they are shown on it themselves."""
    tells = aside and sys.stderr.isatty()
    count = 0
    try:
        for count, record in enumerate(records, 1):
            yield record
            if tells and count % PROGRESS_EVERY == 0:
                sys.stderr.write(f"\r{count} records")
                sys.stderr.flush()
    finally:
        if tells and count >= PROGRESS_EVERY:
            sys.stderr.write("\r\033[K")


@log.command("verify")
def log_verify(folder: Folder = FOLDER, as_json: AsJson = False) -> None:
    """Apply the whole log again: events, and the states of its snapshots, must be the same.

    While the exchange runs, as far as the log is known to be durable; else all of it. Says what stands behind
    that. The first fault ends it, with its place.
    """
    began = time.monotonic()
    data = DataFolder(folder)
    data.settings()  # a folder without an exchange is no log without records
    kept = Snapshots(data.snapshots)
    # Before the log's end is looked up: none is of a later record, whole or not.
    newest = kept.last_sequence
    found = kept.whole(lambda words: typer.echo(f"cux: {words}", err=True))
    snapshots = {
        one.sequence: _Known(one.entry, one.state_hash) for one in found if one.state_format == STATE_FORMAT
    }
    end = end_of(data.log)
    recovered = replay(data, max(end.last, newest), snapshots)
    verdict = {
        "records": recovered.sequence,
        "snapshots": len(snapshots),
        "state_hash": recovered.engine.state_hash().hex(),
        "records_behind": end.whole - end.last,
        "torn_bytes": end.torn_bytes,
        "seconds": time.monotonic() - began,
    }
    words = f"{recovered.sequence} records replayed, the same events; state {verdict['state_hash']}"
    show(as_json, verdict, "\n".join([words, *_behind(end)]))


def _behind(end: LogEnd) -> list[str]:
    """Say what stands behind the log's last record that counts."""
    words = []
    if end.whole > end.last:
        words.append(f"{end.whole - end.last} more records stand behind, not yet known to be durable")
    if end.torn_bytes:
        what = "one that is being written" if end.is_held else "one cut short by a crash (a start removes it)"
        words.append(
            f"{end.torn_bytes} bytes behind record {end.whole} are no whole batch: {what}, "
            "or damage to one that may have been told"
        )
    return words


@log.command("show")
def log_show(
    first: First = 1,
    count: Annotated[int, typer.Option(min=1, help="How many records.")] = 20,
    folder: Folder = FOLDER,
) -> None:
    """Print records as JSON lines, and say on stderr how many more there are."""
    records, end = _records(DataFolder(folder), first, first + count - 1)
    for record in records:
        typer.echo(msgspec.json.encode(record))
    if first + count <= end:
        typer.echo(f"cux: {end - first - count + 1} more, up to record {end}", err=True)


@log.command("export")
def log_export(
    out: Annotated[str, typer.Argument(metavar="FILE", help="A new file, or - for stdout.")] = "-",
    first: First = 1,
    last: Annotated[
        int, typer.Option("--to", min=1, max=INT64_MAX, help="The last sequence number.")
    ] = INT64_MAX,
    folder: Folder = FOLDER,
) -> None:
    """Write records as JSON lines, as far as the log goes; from the first on, cux engine run reads them.

    Example: cux log export day.jsonl && cux engine run day.jsonl --check
    """
    if last < first:
        raise typer.BadParameter(f"{last} is below --from {first}", param_hint="--to")
    records, _ = _records(DataFolder(folder), first, last)
    if out == "-":
        _write(counted(records, aside=not sys.stdout.isatty()), sys.stdout.buffer)
        return
    with Path(out).open("xb") as file:
        _write(counted(records), file)


def _records(folder: DataFolder, first: int, last: int) -> tuple[Iterator[Decoded], int]:
    """Return the records from `first` to `last` as far as they count, and the last one that does.

    Raises:
        LogError: the log does not come near `first`, is damaged, or another version wrote it.
    """
    folder.settings()
    end = end_of(folder.log).last
    if first > end + 1:
        raise LogError(f"--from {first}: the log ends with record {end}")
    return map(understood, read_records(folder.log, first, min(last, end))), end


def _write(records: Iterable[Decoded], file: BinaryIO) -> None:
    encode = msgspec.json.Encoder().encode
    try:
        file.writelines(encode(record) + b"\n" for record in records)
    finally:
        # What came before a fault is told before the fault is.
        file.flush()


@log.command("quarantine")
def log_quarantine(folder: Folder = FOLDER, as_json: AsJson = False) -> None:
    """Show the commands that the engine failed at, which the exchange refuses since then."""
    data = DataFolder(folder)
    data.settings()
    found = [_quarantined(path) for path in sorted(data.quarantine.glob("*.txt"))]
    text = "\n".join(f"{one['file']}\n  {one['error']}\n  {json.dumps(one['command'])}" for one in found)
    show(as_json, found, text or "nothing is in quarantine")


def _quarantined(path: Path) -> dict[str, Any]:
    """Return what stands in a file; one that tells nothing is shown too, for its name is what refuses."""
    try:
        command, *words = path.read_text().splitlines()
        return {"file": str(path), "command": msgspec.json.decode(command), "error": words[-1]}
    except (ValueError, IndexError):
        return {"file": str(path), "command": None, "error": "the file is damaged: it says nothing"}


@audit.command("export")
def audit_export(
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    folder: Folder = FOLDER,
    as_json: AsJson = False,
) -> None:
    """Export the log with its tree, signed checkpoint and tables; verify it with cux-verify.

    Example: cux audit export out && cux-verify out --vkey "$(cux audit vkey)"
    """
    data = DataFolder(folder)
    settings = data.settings()
    with console.status("exporting") as shown:
        report = export(
            data.log,
            out,
            read_key(data.keys / "venue.key"),
            settings.origin,
            # What is signed is never lost: no record for which nothing but this machine's memory may stand.
            last=durable_end(data.log),
            progress=lambda done: shown.update(f"exporting: {done} records"),
        )
    show(as_json, report._asdict(), lines(report._asdict()))


@audit.command("vkey")
def audit_vkey(folder: Folder = FOLDER) -> None:
    """Print the key that verifies this venue's exports."""
    data = DataFolder(folder)
    typer.echo(str(verifier_key(data.settings().origin, read_key(data.keys / "venue.key"))))


@db.command("migrate")
def db_migrate(folder: Folder = FOLDER) -> None:
    """Apply the migrations that the database lacks."""

    async def work() -> list[str]:
        conn = await connect(connection_of(DataFolder(folder).postgres))
        try:
            return await migrate(conn)
        finally:
            await conn.close()

    typer.echo("\n".join(run(work())) or "nothing to do")


@db.command("rebuild")
def db_rebuild(folder: Folder = FOLDER) -> None:
    """Empty the ledger and make it again from the log."""
    data = DataFolder(folder)
    with console.status("rebuilding") as shown, database_of(data) as connection:
        reached = run(
            rebuild(
                data.log,
                connection,
                lambda progress: shown.update(f"rebuilding: {progress.position} of {progress.durable}"),
            )
        )
    typer.echo(f"the ledger stands at record {reached}")


@db.command("check")
def db_check(folder: Folder = FOLDER, as_json: AsJson = False) -> None:
    """Compare the ledger with the engine's funds at its position, and add it up: the sum must be zero.

    The log must hold the record at that position as the ledger has it.
    """
    data = DataFolder(folder)

    async def work(connection: Mapping[str, Any]) -> dict[str, Any]:
        conn = await connect(connection)
        try:
            async with conn.transaction(isolation="repeatable_read"):
                reached = await position_in(conn, data.log)
                engine = replay(data, reached).engine
                differences = await engine_equals_ledger(conn, engine.balances())
                total = await conn.fetchval(
                    "SELECT coalesce(sum(amount_micros), 0)::bigint FROM cux.balances"
                )
        finally:
            await conn.close()
        return {
            "position": reached,
            "ledger_sum": total,
            "differences": differences,
            "state_hash": engine.state_hash().hex(),
        }

    with database_of(data) as connection:
        found = run(work(connection))
    show(
        as_json,
        found,
        "\n".join([f"position {found['position']}, sum {found['ledger_sum']}", *found["differences"]]),
    )
    if found["differences"] or found["ledger_sum"]:
        raise typer.Exit(1)
