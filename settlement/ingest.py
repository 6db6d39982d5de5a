"""Taking evidence in: meter files into Postgres, append-only, and their digest into the log.

A batch is written in one transaction and announced only after its commit; what was written and never
announced is announced by the next call, so that a crash between the two loses nothing.
"""

import asyncio
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import asyncpg
import msgspec

from exchange.contract import HOUR_NS
from schemas.commands import ReceiveReadings
from schemas.events import ReadingsReceived, Rejected
from schemas.reasons import RejectReason
from settlement.meters import carbon
from settlement.meters.carbon import Intensity
from settlement.meters.files import Adapter, adapter_of
from settlement.meters.readings import SECOND_NS, TEXT_MAX, MeterError, Quarantined, Reading
from settlement.submission import Progress, RefusedError, Sign, Submit, submitted

FILE_MAX_BYTES = 64 * 1024 * 1024
_ADVISORY_LOCK = int.from_bytes(b"cux-read", "big")

_encoder = msgspec.msgpack.Encoder()


class IngestReport(NamedTuple):
    """What was taken in. `batch` is None when nothing was new; `sequence` is that of the announcement."""

    batch: int | None
    sequence: int | None
    files: int
    repeated_files: int
    readings: int
    quarantined: int


class _Found(NamedTuple):
    """A file as it lies in the folder. Grid carbon has no adapter; `why` says why it cannot be read."""

    name: str
    sha256: bytes
    data: bytes
    site: int
    adapter: Adapter | None
    why: str

    @property
    def key(self) -> tuple[int, str, bytes]:
        """What makes it the same evidence as another."""
        return self.site, "carbon" if self.adapter is None else self.adapter.format, self.sha256


class _File(NamedTuple):
    """A new file as its adapter understood it; `site` is 0 for grid carbon."""

    site: int
    format: str
    name: str
    sha256: bytes
    readings: list[Reading]
    intensities: list[Intensity]


class _Quarantine(NamedTuple):
    """What is not believed of a file."""

    name: str
    sha256: bytes
    rows: list[Quarantined]


async def ingest_folder(
    conn: asyncpg.Connection,
    submit: Submit,
    folder: Path,
    source: str,
    *,
    now_ns: int,
    sign: Sign,
    clock_skew_seconds: int = 60,
    progress: Progress | None = None,
) -> IngestReport:
    """Take in every new file of a meter folder as one batch and announce it.

    Files are `site-<number>/<format>-...` and `carbon.csv`. A file that was taken in before is passed
    over, under whatever name. What cannot be believed is quarantined by file, line and reason.

    Raises:
        OSError: the folder cannot be read.
        RefusedError: the exchange refused the announcement.
        asyncpg.PostgresError: the database refused; nothing of the batch is there.
    """
    paths = _paths(folder)
    latest_ns = now_ns + clock_skew_seconds * SECOND_NS
    async with conn.transaction():
        await conn.execute("SELECT pg_advisory_xact_lock($1)", _ADVISORY_LOCK)
        known = {tuple(row) for row in await conn.fetch("SELECT site, format, sha256 FROM cux.reading_files")}
        sites = {row["site"] for row in await conn.fetch("SELECT site FROM cux.sites")}
        files: list[_File] = []
        quarantine: list[_Quarantine] = []
        repeated = 0
        for number, path in enumerate(paths, 1):
            file = _open(path, folder, sites)
            repeated += file.key in known
            if file.key not in known:
                refused, taken = _read(file, latest_ns)
                if refused:
                    quarantine.append(_Quarantine(file.name, file.sha256, refused))
                if taken is not None:
                    known.add(file.key)
                    files.append(taken)
            if progress is not None:
                progress("reading meter files", number, len(paths))
            # A long folder must not stop whatever else runs in this loop.
            await asyncio.sleep(0)
        quarantined = await _write_quarantine(conn, quarantine, now_ns)
        batch = await _write_batch(conn, files, source, now_ns) if files else None
    sequence = await _announce(conn, submit, sign)
    return IngestReport(
        batch=batch,
        sequence=sequence,
        files=len(files),
        repeated_files=repeated,
        readings=sum(len(file.readings) for file in files),
        quarantined=quarantined,
    )


def _paths(folder: Path) -> list[Path]:
    return [*sorted(folder.glob("site-*/*")), *folder.glob("carbon.csv")]


def batch_sha256(files: Iterable[tuple[int, str, bytes, Iterable[Reading], Iterable[Intensity]]]) -> bytes:
    """Return the digest of a batch: each file's (site, format, SHA-256), then its rows, in MessagePack."""
    digest = hashlib.sha256()
    for site, kind, sha256, readings, intensities in files:
        digest.update(_encoder.encode((site, kind, sha256)))
        for row in (*readings, *intensities):
            digest.update(_encoder.encode(row))
    return digest.digest()


async def stored_batch_sha256(conn: asyncpg.Connection, batch: int) -> bytes:
    """Return the digest of a batch as it stands in the database."""
    rows: dict[int, list[Reading]] = {}
    for row in await conn.fetch(
        "SELECT file_id, line, job, trade_id, host, start_ns, end_ns, gpu_ms, energy_mj FROM cux.readings "
        "JOIN cux.reading_files USING (file_id) WHERE batch = $1 ORDER BY file_id, line",
        batch,
    ):
        file_id, *fields = row
        rows.setdefault(file_id, []).append(Reading(*fields))
    intensities = [
        Intensity(*row)
        for row in await conn.fetch(
            "SELECT line, zone, hour, mgco2_per_kwh FROM cux.carbon_intensity WHERE batch = $1 ORDER BY line",
            batch,
        )
    ]
    files = await conn.fetch(
        "SELECT file_id, site, format, sha256 FROM cux.reading_files WHERE batch = $1 ORDER BY file_id", batch
    )
    return batch_sha256(
        (site, kind, sha256, rows.get(file_id, ()), intensities if kind == "carbon" else ())
        for file_id, site, kind, sha256 in files
    )


def _open(path: Path, folder: Path, sites: set[int]) -> _Found:
    name = _printable(str(path.relative_to(folder)))
    if not path.is_file() or path.stat().st_size > FILE_MAX_BYTES:
        why = f"a plain file of at most {FILE_MAX_BYTES} bytes is wanted"
        return _Found(name, bytes(32), b"", 0, None, why)
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).digest()
    if path.parent == folder:
        return _Found(name, sha256, data, 0, None, "")
    try:
        return _Found(name, sha256, data, _site_of(path.parent.name, sites), adapter_of(path.name), "")
    except MeterError as error:
        return _Found(name, sha256, data, 0, None, str(error))


def _read(file: _Found, latest_ns: int) -> tuple[list[Quarantined], _File | None]:
    """Return what is not believed of the file and, unless it is refused as a whole, what is."""
    if file.why:
        return [Quarantined(0, file.why)], None
    if file.adapter is None:
        intensities, quarantined = carbon.parse(file.data)
        unique = sorted({(row.zone, row.hour): row for row in intensities}.values())
        return quarantined, _File(0, "carbon", file.name, file.sha256, [], unique)
    parsed = file.adapter.parse(file.data)
    # A GPU that serves no fill ends an interval of one that did; a job that serves none says nothing.
    about_fills = [r for r in parsed.readings if r.trade_id is not None or r.energy_mj is not None]
    future = [
        Quarantined(r.line, f"end {r.end_ns} ns lies in the future; at most {latest_ns} is allowed")
        for r in about_fills
        if r.end_ns > latest_ns
    ]
    kept = [r for r in about_fills if r.end_ns <= latest_ns]
    return parsed.quarantined + future, _File(
        file.site, file.adapter.format, file.name, file.sha256, kept, []
    )


def _site_of(folder: str, sites: set[int]) -> int:
    number = folder.removeprefix("site-")
    if not (number.isascii() and number.isdigit() and len(number) <= 18 and int(number) in sites):
        raise MeterError(f"folder {folder[:TEXT_MAX]!r}: site-<number> of a certified site is wanted")
    return int(number)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


async def _write_quarantine(conn: asyncpg.Connection, refused: list[_Quarantine], now_ns: int) -> int:
    """Return how many rows were new: what is refused as a whole is looked at again, and refused again."""
    rows = [
        (file.name, file.sha256, row.line, _printable(row.why), now_ns)
        for file in refused
        for row in file.rows
    ]
    before = await conn.fetchval("SELECT count(*) FROM cux.quarantine")
    await conn.executemany(
        "INSERT INTO cux.quarantine (name, sha256, line, why, arrived_ns) VALUES ($1, $2, $3, $4, $5) "
        "ON CONFLICT DO NOTHING",
        rows,
    )
    after = await conn.fetchval("SELECT count(*) FROM cux.quarantine")
    return int(after - before)


async def _write_batch(conn: asyncpg.Connection, files: list[_File], source: str, now_ns: int) -> int:
    batch: int = await conn.fetchval(
        "SELECT coalesce(max(batch), 0) + 1 FROM "
        "(SELECT batch FROM cux.readings_batches UNION SELECT batch FROM cux.readings_announced) AS batches"
    )
    first_id: int = await conn.fetchval("SELECT coalesce(max(file_id), 0) + 1 FROM cux.reading_files")
    readings = [row for file in files for row in file.readings]
    sha256 = batch_sha256((f.site, f.format, f.sha256, f.readings, f.intensities) for f in files)
    await conn.execute(
        "INSERT INTO cux.readings_batches (batch, source, arrived_ns, from_hour, until_hour, count, sha256) "
        "VALUES ($1, $2, $3, $4, $5, $6, $7)",
        batch,
        source,
        now_ns,
        min((r.start_ns // HOUR_NS for r in readings), default=0),
        max((-(-r.end_ns // HOUR_NS) for r in readings), default=0),
        len(readings),
        sha256,
    )
    await _copy(
        conn,
        "reading_files",
        "file_id batch site format name sha256",
        ((first_id + i, batch, f.site, f.format, f.name, f.sha256) for i, f in enumerate(files)),
    )
    await _copy(
        conn,
        "readings",
        "file_id line job trade_id host start_ns end_ns gpu_ms energy_mj",
        ((first_id + i, *reading) for i, file in enumerate(files) for reading in file.readings),
    )
    await _copy(
        conn,
        "carbon_intensity",
        "zone hour batch line mgco2_per_kwh",
        ((r.zone, r.hour, batch, r.line, r.mgco2_per_kwh) for f in files for r in f.intensities),
    )
    return batch


async def _copy(
    conn: asyncpg.Connection, table: str, columns: str, rows: Iterable[tuple[object, ...]]
) -> None:
    await conn.copy_records_to_table(table, schema_name="cux", columns=columns.split(), records=rows)


async def _announce(conn: asyncpg.Connection, submit: Submit, sign: Sign) -> int | None:
    """Announce, in order, the batches that the log does not name yet; return the last one's sequence."""
    sequence = None
    for row in await conn.fetch(
        "SELECT batch, source, from_hour, until_hour, count, sha256 FROM cux.readings_batches "
        "WHERE batch > (SELECT coalesce(max(batch), 0) FROM cux.readings_announced) ORDER BY batch"
    ):
        record = await submitted(submit, sign(ReceiveReadings(*row)))
        match record.events[0]:
            case ReadingsReceived():
                sequence = record.sequence
            case Rejected(reason=RejectReason.DUPLICATE_RUN | RejectReason.DUPLICATE_COMMAND):
                # It was announced before a crash, and the ledger's reader has not come to it yet.
                sequence = record.sequence
            case answer:
                raise RefusedError(f"readings batch {row['batch']}: {answer}")
    return sequence
