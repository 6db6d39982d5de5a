"""`cux meter`, `settle`: readings in, money out."""

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import asyncpg
import typer
from rich.status import Status

from exchange.contract import HOUR_NS
from exchange.folder import DataFolder
from exchange.link import CoreLink
from exchange.quantity import money_of
from gateway.cli.app import (
    FOLDER,
    INT64_MAX,
    AsJson,
    Folder,
    KeyFile,
    console,
    figure,
    group,
    lines,
    operator_key,
    run,
    show,
    table,
    word,
)
from schemas.authority import signed
from schemas.commands import OperatorCommand
from schemas.venue import Venue
from settlement.database import connect
from settlement.ingest import ingest_folder
from settlement.postgres import connection_of
from settlement.runs import explain, settle
from settlement.submission import Progress, Sign

C = TypeVar("C", bound=OperatorCommand)

meter = group("meter", "Meter readings.")
settle_group = group("settle", "Settlement runs.")


class Desk(NamedTuple):
    """What settlement works with: the ledger, the core, the catalogue, the operator's signature."""

    conn: asyncpg.Connection
    link: CoreLink
    venue: Venue
    sign: Sign


@asynccontextmanager
async def desk(folder: Path, key: Path | None, reason: str) -> AsyncIterator[Desk]:
    """Open the ledger and the core's socket of a running exchange."""
    data = DataFolder(folder)
    private = operator_key(data, key)
    conn = await connect(connection_of(data.postgres))
    link = await CoreLink.connect(data.core_socket)

    def sign(command: C) -> C:
        return signed(command, private, time.time_ns(), reason)

    try:
        yield Desk(
            conn,
            link,
            data.settings().venue,
            sign,
        )
    finally:
        await link.close()
        await conn.close()


def told_by(shown: Status) -> Progress:
    """Return a progress that is shown on the terminal."""
    return lambda what, done, total: shown.update(f"{what}: {done} of {total}")


@meter.command("ingest")
def meter_ingest(
    meters: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A folder of site-N folders.")],
    source: Annotated[str, typer.Option(help="Who delivered the readings.")] = "sites",
    folder: Folder = FOLDER,
    key: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Take in the new files of a meter folder and announce them to the log.

    Example: cux meter ingest /var/spool/cux-meters
    """

    async def work() -> dict[str, Any]:
        async with desk(folder, key, "readings") as open_desk:
            now = await open_desk.link.clock()
            with console.status("reading meters") as shown:
                report = await ingest_folder(
                    open_desk.conn,
                    open_desk.link.submit,
                    meters,
                    source,
                    now_ns=now.time_ns,
                    sign=open_desk.sign,
                    clock_skew_seconds=open_desk.venue.settlement.clock_skew_seconds,
                    progress=told_by(shown),
                )
        return report._asdict()

    found = run(work())
    show(as_json, found, lines(found))


@settle_group.command("run")
def settle_run(
    kind: Annotated[str, typer.Option(help="initial, final or correction.")] = "initial",
    number: Annotated[
        int | None, typer.Option("--run", min=1, max=INT64_MAX, help="Its number; the next one by default.")
    ] = None,
    grace_hours: Annotated[
        int, typer.Option(min=0, max=INT64_MAX, help="Leave out hours that ended less than this ago.")
    ] = 0,
    folder: Folder = FOLDER,
    key: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Settle what was delivered: reconcile fills with readings and move the difference to earlier runs."""

    async def work() -> dict[str, Any]:
        async with desk(folder, key, f"{kind} run") as open_desk:
            last = await open_desk.conn.fetchval("SELECT coalesce(max(run), 0) FROM cux.settlement_runs")
            now = await open_desk.link.clock()
            with console.status("settling") as shown:
                report = await settle(
                    open_desk.conn,
                    open_desk.link.submit,
                    open_desk.sign,
                    open_desk.venue,
                    run=last + 1 if number is None else number,
                    kind=kind,
                    last_sequence=open_desk.link.durable,
                    before_hour=now.time_ns // HOUR_NS - grace_hours,
                    progress=told_by(shown),
                )
        return report._asdict()

    found = run(work())
    show(as_json, found, lines(found))


@settle_group.command("status")
def settle_status(folder: Folder = FOLDER, as_json: AsJson = False) -> None:
    """List the runs and what each posted."""

    async def work() -> list[dict[str, Any]]:
        conn = await connect(connection_of(DataFolder(folder).postgres))
        try:
            rows = await conn.fetch(
                "SELECT r.run, r.kind, r.position, r.readings_batch, r.postings, "
                "count(s.trade_id) AS posted, coalesce(sum(s.payment_micros), 0)::bigint AS payment_micros, "
                "coalesce(sum(s.refund_micros), 0)::bigint AS refund_micros, "
                "coalesce(sum(s.penalty_micros), 0)::bigint AS penalty_micros "
                "FROM cux.settlement_runs r LEFT JOIN cux.settlements s USING (run) "
                "GROUP BY r.run, r.kind, r.position, r.readings_batch, r.postings ORDER BY r.run"
            )
        finally:
            await conn.close()
        return [dict(row) for row in rows]

    found = run(work())
    show(as_json, found, "" if found else "no runs")
    if found and not as_json:
        counts = ("run", "position", "readings_batch", "postings", "posted")
        amounts = ("payment", "refund", "penalty")
        names = [figure(name.replace("_", "\n")) for name in (*counts, *amounts)]
        runs = table("", word("kind"), *names)
        for row in found:
            sums = (money_of(row[f"{name}_micros"]) for name in amounts)
            runs.add_row(row["kind"], *(str(row[name]) for name in counts), *sums)
        console.print(runs)


def _told(chain: dict[str, Any]) -> Iterator[str]:
    """Yield the chain's lines: the fill name by name, then a line for each row of the other parts."""
    for name, part in chain.items():
        yield f"{name}:"
        if isinstance(part, dict):
            yield from (f"  {field}" for field in _fields(part))
        else:
            yield from ("  " + ", ".join(_fields(row)) for row in part)
            if not part:
                yield "  none"


def _fields(row: dict[str, Any]) -> Iterator[str]:
    """Yield name and value of what the row has, money as a decimal in the venue's currency."""
    for name, value in row.items():
        if value is None:
            continue
        if name.endswith("_micros"):
            yield f"{name.removesuffix('_micros')} {money_of(value)}"
        else:
            yield f"{name} {value}"


@settle_group.command("explain")
def settle_explain(
    trade_id: Annotated[int, typer.Argument(min=1, max=INT64_MAX, help="A fill's trade id.")],
    folder: Folder = FOLDER,
    as_json: AsJson = False,
) -> None:
    """Tell how a fill's figures came about: readings, reconciliation, postings, transfers."""

    async def work() -> dict[str, Any]:
        data = DataFolder(folder)
        conn = await connect(connection_of(data.postgres))
        try:
            return await explain(conn, data.settings().venue, trade_id)
        finally:
            await conn.close()

    found = run(work())
    show(as_json, found, "\n".join(_told(found)))
