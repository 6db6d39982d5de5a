"""`cux log`, `audit`, `db`: what happened, and the proof of it."""

import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from exchange.engine import Engine
from exchange.folder import DataFolder
from exchange.log import LogError, durable_end, read_records
from gateway.cli.app import FOLDER, AsJson, Folder, console, group, lines, run, show
from gateway.keys import read_key
from schemas.records import Decoded, Record, decoded
from settlement.audit.export import export
from settlement.audit.note import verifier_key
from settlement.database import connect, migrate
from settlement.postgres import connection_of
from settlement.writer import engine_equals_ledger, position, rebuild

log = group("log", "The log: the only truth.")
audit = group("audit", "Exports that prove themselves.")
db = group("db", "The ledger's database.")


def understood(record: Record) -> Decoded:
    """Return the record with its parts decoded.

    Raises:
        LogError: a part is no command or event that this version knows.
    """
    try:
        return decoded(record)
    except msgspec.DecodeError as error:
        raise LogError(f"record {record.sequence}: another version of cux wrote it ({error})") from None


def replay(folder: Path, last: int) -> tuple[Engine, int]:
    """Apply the log's commands up to `last` again and return the engine and their number.

    Raises:
        LogError: the engine gives other events than the log holds, or another version wrote it.
    """
    engine, count = Engine(), 0
    for record in read_records(DataFolder(folder).log, 1, last):
        known = understood(record)
        if tuple(engine.apply(known.time_ns, known.command)) != known.events:
            raise LogError(f"record {record.sequence}: the engine gives other events than the log holds")
        count += 1
    return engine, count


@log.command("verify")
def log_verify(folder: Folder = FOLDER, as_json: AsJson = False) -> None:
    """Apply the whole log again: the events must be the same. Prints the state hash."""
    began = time.monotonic()
    DataFolder(folder).settings()  # a folder without an exchange is no log without records
    engine, count = replay(folder, durable_end(DataFolder(folder).log))
    data = {"records": count, "state_hash": engine.state_hash().hex(), "seconds": time.monotonic() - began}
    show(as_json, data, f"{count} records replayed, the same events; state {data['state_hash']}")


@log.command("show")
def log_show(
    first: Annotated[int, typer.Option("--from", min=1, help="The first sequence number.")] = 1,
    count: Annotated[int, typer.Option(min=1, help="How many records.")] = 20,
    folder: Folder = FOLDER,
) -> None:
    """Print records as JSON lines."""
    data = DataFolder(folder)
    data.settings()
    last = min(durable_end(data.log), first + count - 1)
    for record in read_records(data.log, first, last):
        typer.echo(msgspec.json.encode(understood(record)))


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
    with console.status("rebuilding") as shown:
        reached = run(
            rebuild(
                data.log,
                connection_of(data.postgres),
                lambda progress: shown.update(f"rebuilding: {progress.position} of {progress.durable}"),
            )
        )
    typer.echo(f"the ledger stands at record {reached}")


@db.command("check")
def db_check(folder: Folder = FOLDER, as_json: AsJson = False) -> None:
    """Compare the ledger with the engine's funds at its position, and add it up: the sum must be zero."""
    data = DataFolder(folder)

    async def work() -> dict[str, Any]:
        conn = await connect(connection_of(data.postgres))
        try:
            async with conn.transaction(isolation="repeatable_read"):
                reached = await position(conn)
                engine, _ = replay(folder, reached)
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

    found = run(work())
    show(
        as_json,
        found,
        "\n".join([f"position {found['position']}, sum {found['ledger_sum']}", *found["differences"]]),
    )
    if found["differences"] or found["ledger_sum"]:
        raise typer.Exit(1)
