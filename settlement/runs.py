"""Settlement runs: fills, readings and rules in, differences out, posted through the exchange.

A run is a function of what its plan names. The plan is written down first, so that a run that was cut
off computes the same postings again and goes on behind those that already stand in the log.
"""

import asyncio
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import asyncpg

from exchange.eligibility import Eligibility
from schemas.codec import encode
from schemas.commands import PostSettlement, Requirement, StartSettlementRun
from schemas.events import Rejected, SettlementPosted, SettlementRunStarted
from schemas.reasons import RejectReason
from schemas.venue import Venue, Zone
from settlement.ingest import stored_batch_sha256
from settlement.reconcile import (
    EIGHTH_HOUR_MS,
    Evidence,
    Fill,
    Reconciliation,
    Verdict,
    counting,
    delivered_by_fill,
    energy_by_fill,
    intensity_by_hour,
    metered_gpu_ms,
    reconcile,
)
from settlement.rules import (
    NOTHING,
    Amounts,
    ContractTrade,
    GateAsk,
    Replacement,
    posting_of,
    replacement_of,
    undelivered_lots,
)
from settlement.submission import Progress, RefusedError, Sign, Submit, submitted
from settlement.writer import position

KINDS = ("initial", "final", "correction")
IN_FLIGHT = 256
_POLL_SECONDS = 0.02
_PROGRESS_EVERY = 1000


class RunError(Exception):
    """The run cannot be made as things stand; the message says why."""


class RunReport(NamedTuple):
    """What a run did. `pending` fills wait for readings; `posted` were posted by this call.

    `sequence` is the last record of the run; the ledger has taken it in.
    """

    run: int
    kind: str
    position: int
    readings_batch: int
    fills: int
    verdicts: dict[str, int]
    pending: int
    postings: int
    posted: int
    sequence: int


class Plan(NamedTuple):
    """What a run is a function of, beside the venue's rules.

    Fills up to the log's `position` whose delivery hour is below `before_hour`, and the readings up to
    `readings_batch`.
    """

    run: int
    kind: str
    position: int
    readings_batch: int
    before_hour: int


class Finding(NamedTuple):
    """A fill, what was found of it, and what it comes to (None while it is pending)."""

    fill: Fill
    reconciliation: Reconciliation
    basis: str | None
    amounts: Amounts | None


async def settle(
    conn: asyncpg.Connection,
    submit: Submit,
    sign: Sign,
    venue: Venue,
    *,
    run: int,
    kind: str,
    last_sequence: int,
    before_hour: int,
    progress: Progress | None = None,
) -> RunReport:
    """Make the run, or finish it if it was cut off, and return what it did.

    `last_sequence` is the log's end as the caller knows it: the ledger is waited for. `before_hour`
    leaves out hours that have not ended, or whose grace for late readings has not. A run that is
    repeated keeps its first plan and posts nothing again.

    Raises:
        RunError: the run's number or kind is not allowed, an earlier run is unfinished, or the evidence
            is not what was announced.
        RefusedError: the exchange refused the run or a posting.
        asyncpg.PostgresError, OSError: the database or the exchange is gone; the run can be repeated.
    """
    if kind not in KINDS:
        raise RunError(f"kind {kind!r}: one of {', '.join(KINDS)} is allowed")
    await _caught_up(conn, last_sequence, progress)
    plan = await _stored_plan(conn, run, kind)
    is_new = plan is None
    if plan is None:
        plan = await _new_plan(conn, run, kind, last_sequence, before_hour)
    await _check_evidence(conn, plan, progress)
    posted = await _posted(conn, plan)
    findings = await _findings(conn, venue, plan, posted, progress)
    postings = list(_differences(plan, findings, posted))
    if is_new:
        await _store(conn, plan, findings)

    start = StartSettlementRun(
        run=plan.run,
        kind=plan.kind,
        position=plan.position,
        readings_batch=plan.readings_batch,
        postings=len(postings),
        sha256=hashlib.sha256(b"".join(map(encode, postings))).digest(),
    )
    sequence = await _start(conn, submit, sign, start)
    done = {
        r["trade_id"] for r in await conn.fetch("SELECT trade_id FROM cux.settlements WHERE run = $1", run)
    }
    due = [posting for posting in postings if posting.trade_id not in done]
    sequence = max(sequence, await _post(submit, due, progress))
    await _caught_up(conn, sequence, progress)
    return RunReport(
        run=run,
        kind=kind,
        position=plan.position,
        readings_batch=plan.readings_batch,
        fills=len(findings),
        verdicts=dict(sorted(Counter(f.reconciliation.verdict.value for f in findings).items())),
        pending=sum(finding.amounts is None for finding in findings),
        postings=len(postings),
        posted=len(due),
        sequence=sequence,
    )


async def explain(conn: asyncpg.Connection, venue: Venue, trade_id: int) -> dict[str, Any]:
    """Return a fill's chain: fill, readings (and which of them count), reconciliations, postings, transfers.

    A resold fill's delivery hangs on what it was resold from and to: `resales` are the trades of its chain,
    and the readings are those of all of them.

    Raises:
        RunError: the ledger has no such fill.
    """
    chain = {fill.trade_id: fill for fill in await _fills(conn, venue, _CHAIN, trade_id)}
    if trade_id not in chain:
        raise RunError(f"trade {trade_id}: a fill of the ledger is wanted")
    fill = chain[trade_id]
    readings = []
    rows = await conn.fetch(
        "SELECT f.site, f.format, r.job, r.trade_id, r.start_ns, r.end_ns, r.gpu_ms, r.energy_mj, "
        "f.batch, f.name, encode(f.sha256, 'hex') AS file_sha256, r.line, r.host, a.sequence AS announced "
        "FROM cux.readings r JOIN cux.reading_files f USING (file_id) "
        "LEFT JOIN cux.readings_announced a USING (batch) WHERE r.trade_id = ANY($1) "
        "ORDER BY f.file_id, r.line",
        list(chain),
    )
    evidence = [Evidence(*tuple(row)[: len(Evidence._fields)]) for row in rows]
    left: set[Evidence] = set()
    for one in chain.values():
        left.update(counting(one, evidence, venue.settlement.clock_skew_seconds))
    for row, item in zip(rows, evidence, strict=True):
        # The first of identical rows stands for all of them.
        readings.append({**row, "counts": item in left if item.energy_mj is None else None})
        left.discard(item)
    return {
        "fill": {
            **fill._asdict(),
            **await _one(conn, "SELECT * FROM cux.fills WHERE trade_id = $1", trade_id),
        },
        "resales": [
            {"trade_id": one.trade_id, "position": one.position, "lots": one.lots, "buyer": one.buyer}
            for one in chain.values()
            if len(chain) > 1
        ],
        "readings": readings,
        "reconciliations": await _all(
            conn, "SELECT * FROM cux.reconciliations WHERE trade_id = $1 ORDER BY run", trade_id
        ),
        "postings": await _all(
            conn, "SELECT * FROM cux.settlements WHERE trade_id = $1 ORDER BY run", trade_id
        ),
        "transfers": await _all(
            conn,
            "SELECT t.* FROM cux.transfers t JOIN cux.settlements s USING (sequence) "
            "WHERE s.trade_id = $1 ORDER BY t.sequence, t.ordinal",
            trade_id,
        ),
    }


_CHAIN = """trade_id IN (
    WITH RECURSIVE bought AS (
        SELECT trade_id, position FROM cux.fills WHERE trade_id = $1
        UNION ALL
        SELECT f.trade_id, f.position FROM cux.fills f JOIN bought ON f.trade_id = bought.position
    ), chain AS (
        SELECT trade_id FROM bought WHERE position = 0
        UNION ALL
        SELECT f.trade_id FROM cux.fills f JOIN chain ON f.position = chain.trade_id AND f.position <> 0
    ) SELECT trade_id FROM chain
)"""
"""The first sale of what trade $1 is of, and every resale of that."""


# -- the plan -----------------------------------------------------------------------------------------


async def _stored_plan(conn: asyncpg.Connection, run: int, kind: str) -> Plan | None:
    row = await conn.fetchrow("SELECT * FROM cux.settlement_plans WHERE run = $1", run)
    if row is None:
        return None
    plan = Plan(**row)
    if plan.kind != kind:
        raise RunError(f"run {run} is {plan.kind}, not {kind}; a new number is wanted")
    return plan


async def _new_plan(
    conn: asyncpg.Connection, run: int, kind: str, last_sequence: int, before_hour: int
) -> Plan:
    unfinished = await conn.fetchval(
        "SELECT min(p.run) FROM cux.settlement_plans p LEFT JOIN cux.settlement_runs r USING (run) "
        "WHERE r.run IS NULL OR r.postings > (SELECT count(*) FROM cux.settlements s WHERE s.run = p.run)"
    )
    if unfinished is not None:
        raise RunError(f"run {unfinished} is not finished; repeat it first")
    last = await conn.fetchval(
        "SELECT coalesce(max(run), 0) FROM "
        "(SELECT run FROM cux.settlement_plans UNION SELECT run FROM cux.settlement_runs) AS runs"
    )
    if run <= last:
        raise RunError(f"run {run}: a number above {last} is allowed")
    batch = await conn.fetchval(
        "SELECT coalesce(max(batch), 0) FROM cux.readings_announced WHERE sequence <= $1", last_sequence
    )
    return Plan(run, kind, last_sequence, batch, before_hour)


async def _check_evidence(conn: asyncpg.Connection, plan: Plan, progress: Progress | None) -> None:
    """Refuse readings that are not those whose digest stands in the log."""
    announced = await conn.fetch(
        "SELECT batch, sequence, sha256 FROM cux.readings_announced WHERE batch <= $1 ORDER BY batch",
        plan.readings_batch,
    )
    for number, (batch, sequence, sha256) in enumerate(announced, 1):
        if await stored_batch_sha256(conn, batch) != sha256:
            raise RunError(f"readings batch {batch} is not what was announced at sequence {sequence}")
        if progress is not None:
            progress("checking readings against the log", number, len(announced))


# -- what is found ------------------------------------------------------------------------------------


async def _fills(conn: asyncpg.Connection, venue: Venue, where: str, *values: object) -> list[Fill]:
    # The condition is one of this module's own.
    query = (
        "SELECT trade_id, class_code, delivery_hour, price_ticks, lots, bid_order_id, buyer, seller, site, "  # noqa: S608
        f"notional_micros, bond_micros, position FROM cux.fills WHERE {where} ORDER BY trade_id"
    )
    lot_ms = {c.code: c.lot_eighths * EIGHTH_HOUR_MS for c in venue.classes}
    return [
        Fill._make((*tuple(row)[:-1], row["lots"] * lot_ms[row["class_code"]], row["position"]))
        for row in await conn.fetch(query, *values)
    ]


async def _posted(conn: asyncpg.Connection, plan: Plan) -> dict[int, Amounts]:
    """Return what earlier runs have posted of each fill, in all."""
    return {
        trade_id: Amounts(*amounts)
        for trade_id, *amounts in await conn.fetch(
            "SELECT trade_id, sum(payment_micros)::bigint, sum(refund_micros)::bigint, "
            "sum(penalty_micros)::bigint, sum(bond_release_micros)::bigint "
            "FROM cux.settlements WHERE run < $1 GROUP BY trade_id",
            plan.run,
        )
    }


async def _findings(
    conn: asyncpg.Connection,
    venue: Venue,
    plan: Plan,
    posted: Mapping[int, Amounts],
    progress: Progress | None,
) -> list[Finding]:
    fills = await _fills(
        conn, venue, "sequence <= $1 AND delivery_hour < $2", plan.position, plan.before_hour
    )
    evidence: dict[int, list[Evidence]] = defaultdict(list)
    for item in await _evidence(conn, "gpu_ms IS NOT NULL", plan):
        if item.trade_id is not None:
            evidence[item.trade_id].append(item)
    energy = energy_by_fill(await _evidence(conn, "energy_mj IS NOT NULL", plan))
    intensity = intensity_by_hour(
        await conn.fetch(
            "SELECT zone, hour, batch, mgco2_per_kwh FROM cux.carbon_intensity WHERE batch <= $1",
            plan.readings_batch,
        )
    )
    zones = await _zones(conn, venue)
    rules = venue.settlement
    metered: dict[int, int | None] = {}
    for number, fill in enumerate(fills, 1):
        seen = evidence.get(fill.trade_id, ())
        metered[fill.trade_id] = metered_gpu_ms(fill, seen, rules.clock_skew_seconds)
        if number % _PROGRESS_EVERY == 0:
            if progress is not None:
                progress("reconciling", number, len(fills))
            await asyncio.sleep(0)
    delivered = delivered_by_fill(fills, metered, rules.tolerance_permille)
    reconciled: list[tuple[Fill, Reconciliation]] = []
    for fill in fills:
        zone = zones[fill.site]
        result = reconcile(
            fill,
            delivered[fill.trade_id],
            energy.get((fill.site, fill.trade_id)),
            zone,
            intensity.get((zone.code, fill.delivery_hour)),
            rules=rules,
        )
        reconciled.append((fill, result))

    # Only an initial run waits for what nobody has metered yet, and only as long as nothing was posted.
    pending = {
        fill.trade_id
        for fill, found in reconciled
        if plan.kind == "initial" and found.verdict is Verdict.MISSING and fill.trade_id not in posted
    }
    undelivered = [
        (fill, found)
        for fill, found in reconciled
        if found.payable_gpu_ms < found.contracted_gpu_ms and fill.trade_id not in pending
    ]
    replacements = await _replacements(conn, venue, plan.position, undelivered)
    findings = []
    for fill, found in reconciled:
        replacement = replacements.get(fill.trade_id)
        basis = None if replacement is None else replacement.basis
        amounts = None
        if fill.trade_id not in pending:
            amounts = posting_of(fill, found, rules, venue.currency.tick_micros, replacement)
        findings.append(Finding(fill, found, basis, amounts))
    return findings


async def _evidence(conn: asyncpg.Connection, condition: str, plan: Plan) -> Iterator[Evidence]:
    # The condition is one of this module's own.
    query = (
        "SELECT site, format, job, trade_id, start_ns, end_ns, gpu_ms, energy_mj FROM cux.readings "  # noqa: S608
        f"JOIN cux.reading_files USING (file_id) WHERE batch <= $1 AND {condition}"
    )
    return (Evidence(*row) for row in await conn.fetch(query, plan.readings_batch))


async def _zones(conn: asyncpg.Connection, venue: Venue) -> dict[int, Zone]:
    zones = {zone.code: zone for zone in venue.zones}
    return {row["site"]: zones[row["zone"]] for row in await conn.fetch("SELECT site, zone FROM cux.sites")}


async def _replacements(
    conn: asyncpg.Connection,
    venue: Venue,
    last_sequence: int,
    undelivered: Sequence[tuple[Fill, Reconciliation]],
) -> dict[int, Replacement]:
    """Return the replacement price of each fill that was not delivered in full, from the market's records."""
    contracts = sorted({(fill.class_code, fill.delivery_hour) for fill, _ in undelivered})
    wanted = ([code for code, _ in contracts], [hour for _, hour in contracts])
    trades: dict[tuple[str, int], list[ContractTrade]] = defaultdict(list)
    for code, hour, *trade in await conn.fetch(
        "SELECT class_code, delivery_hour, b.trade_group, s.trade_group, sum(lots)::bigint, "
        "sum(price_ticks * lots)::bigint FROM cux.fills f "
        "JOIN cux.accounts b ON b.account = f.buyer JOIN cux.accounts s ON s.account = f.seller "
        "WHERE f.sequence <= $1 "
        "AND (class_code, delivery_hour) IN (SELECT * FROM unnest($2::text[], $3::bigint[])) "
        "GROUP BY 1, 2, 3, 4",
        last_sequence,
        *wanted,
    ):
        trades[code, hour].append(ContractTrade(*trade))
    asks: dict[tuple[str, int], list[tuple[tuple[str, str, str], GateAsk]]] = defaultdict(list)
    for code, hour, zone, carbon, security, *ask in await conn.fetch(
        "SELECT o.class_code, o.delivery_hour, s.zone, o.carbon, s.security, a.trade_group, "
        "coalesce(r.price_ticks, o.price_ticks), e.leaves_lots "
        "FROM cux.order_ends e JOIN cux.orders o USING (order_id) "
        "LEFT JOIN cux.fills p ON p.trade_id = o.position "
        "JOIN cux.sites s ON s.site = coalesce(o.site, p.site) JOIN cux.accounts a ON a.account = o.account "
        "LEFT JOIN LATERAL (SELECT price_ticks FROM cux.order_replacements "
        "WHERE order_id = o.order_id ORDER BY sequence DESC LIMIT 1) r ON true "
        "WHERE e.reason = 'gate' AND e.sequence <= $1 AND o.side = 'sell' AND o.hours = 1 "
        "AND (o.class_code, o.delivery_hour) IN (SELECT * FROM unnest($2::text[], $3::bigint[]))",
        last_sequence,
        *wanted,
    ):
        asks[code, hour].append(((zone, carbon, security), GateAsk(*ask)))
    requirements = {
        order_id: Requirement(*terms)
        for order_id, *terms in await conn.fetch(
            "SELECT order_id, required_zone, required_latency, required_carbon, required_security "
            "FROM cux.orders WHERE order_id = ANY($1)",
            [fill.bid_order_id for fill, _ in undelivered],
        )
    }
    groups = {
        row["account"]: row["trade_group"]
        for row in await conn.fetch("SELECT account, trade_group FROM cux.accounts")
    }
    eligibility = Eligibility(venue)
    replacements = {}
    for fill, found in undelivered:
        contract = fill.class_code, fill.delivery_hour
        requirement = requirements[fill.bid_order_id]
        replacements[fill.trade_id] = replacement_of(
            fill,
            (groups[fill.buyer], groups[fill.seller]),
            undelivered_lots(fill, found),
            trades[contract],
            [ask for terms, ask in asks[contract] if eligibility.site_serves(requirement, *terms)],
        )
    return replacements


def _differences(
    plan: Plan, findings: Sequence[Finding], posted: Mapping[int, Amounts]
) -> Iterator[PostSettlement]:
    """Yield what earlier runs have not posted, by trade."""
    for fill, found, _, amounts in findings:
        if amounts is None:
            continue
        difference = amounts.minus(posted.get(fill.trade_id, NOTHING))
        if difference != NOTHING:
            yield PostSettlement(
                plan.run, fill.trade_id, found.verdict.value, found.delivered_gpu_ms or 0, *difference
            )


async def _store(conn: asyncpg.Connection, plan: Plan, findings: Sequence[Finding]) -> None:
    """Write the plan, and what was found where it differs from what the last run found."""
    columns = [*Reconciliation._fields[1:], "replacement_basis", *Amounts._fields]
    before = {
        trade_id: tuple(found)
        for trade_id, *found in await conn.fetch(
            f"SELECT DISTINCT ON (trade_id) trade_id, {', '.join(columns)} FROM cux.reconciliations "  # noqa: S608
            "ORDER BY trade_id, run DESC"
        )
    }
    rows = []
    for fill, found, basis, amounts in findings:
        row = (*found[1:], basis, *(amounts or (None,) * len(NOTHING)))
        if before.get(fill.trade_id) != row:
            rows.append((plan.run, fill.trade_id, *row))
    async with conn.transaction():
        await conn.execute(
            "INSERT INTO cux.settlement_plans (run, kind, position, readings_batch, before_hour) "
            "VALUES ($1, $2, $3, $4, $5)",
            *plan,
        )
        await conn.copy_records_to_table(
            "reconciliations", schema_name="cux", columns=["run", "trade_id", *columns], records=rows
        )


# -- posting ------------------------------------------------------------------------------------------


async def _start(conn: asyncpg.Connection, submit: Submit, sign: Sign, start: StartSettlementRun) -> int:
    """Announce the run unless the log has it; return the sequence by which it has."""
    query = "SELECT sequence, postings, sha256 FROM cux.settlement_runs WHERE run = $1"
    stored = await conn.fetchrow(query, start.run)
    if stored is None:
        record = await submitted(submit, sign(start))
        match record.events[0]:
            case SettlementRunStarted():
                return record.sequence
            case Rejected(reason=RejectReason.DUPLICATE_RUN | RejectReason.DUPLICATE_COMMAND):
                # It was announced before a crash, beyond what the caller knew of the log.
                await _caught_up(conn, record.sequence, None)
                stored = await conn.fetchrow(query, start.run)
            case answer:
                raise RefusedError(f"run {start.run}: {answer}")
    if stored is None:
        raise RunError(f"run {start.run}: the number is taken; a new one above 0 is allowed")
    if (stored["postings"], stored["sha256"]) != (start.postings, start.sha256):
        raise RunError(
            f"run {start.run} comes to other postings than it announced at sequence {stored['sequence']}"
        )
    return int(stored["sequence"])


async def _post(submit: Submit, postings: Sequence[PostSettlement], progress: Progress | None) -> int:
    """Submit the postings, some of them at a time, and return the last one's sequence, 0 if there is none."""
    waiting = iter(postings)
    done = last = 0

    async def work() -> None:
        nonlocal done, last
        for posting in waiting:
            record = await submitted(submit, posting)
            match record.events[0]:
                # What a crash left posted is not posted again.
                case SettlementPosted() | Rejected(reason=RejectReason.DUPLICATE_POSTING):
                    last = max(last, record.sequence)
                case answer:
                    raise RefusedError(f"run {posting.run}, trade {posting.trade_id}: {answer}")
            done += 1
            if progress is not None and (done % _PROGRESS_EVERY == 0 or done == len(postings)):
                progress("posting", done, len(postings))

    workers = [asyncio.create_task(work()) for _ in range(min(IN_FLIGHT, len(postings)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
    return last


async def _caught_up(conn: asyncpg.Connection, sequence: int, progress: Progress | None) -> None:
    """Wait until the ledger has taken in the log up to `sequence`."""
    while (reached := await position(conn)) < sequence:
        if progress is not None:
            progress("waiting for the ledger", reached, sequence)
        await asyncio.sleep(_POLL_SECONDS)


async def _all(conn: asyncpg.Connection, query: str, *values: object) -> list[dict[str, Any]]:
    return [dict(row) for row in await conn.fetch(query, *values)]


async def _one(conn: asyncpg.Connection, query: str, *values: object) -> dict[str, Any]:
    return dict(await conn.fetchrow(query, *values))
