"""Recovery: the engine as the log left it."""

from typing import NamedTuple

import msgspec

from exchange.engine import Engine
from exchange.log import Log, LogError
from schemas.commands import OpenEra
from schemas.records import Record, decoded


class Recovered(NamedTuple):
    """An engine that has applied the log up to `sequence`, and the era that runs, None before the first."""

    engine: Engine
    era: OpenEra | None
    sequence: int


def recover(log: Log) -> Recovered:
    """Return what the log makes.

    Raises:
        LogError: a record is damaged, of another version, or gives other events than the log holds.
    """
    recovered = Recovered(Engine(), None, 0)
    for record in log.read(1):
        recovered = reapply(recovered, record)
    return recovered


def reapply(recovered: Recovered, record: Record) -> Recovered:
    """Apply the next record to the engine and return where it stands then.

    Raises:
        LogError: the record is of another version, or gives other events than the log holds.
    """
    try:
        known = decoded(record)
    except msgspec.DecodeError as error:
        raise LogError(
            f"record {record.sequence} is of another version of cux, run the one that wrote it: {error}"
        ) from None
    events = recovered.engine.apply(known.time_ns, known.command)
    if tuple(events) != known.events:
        raise LogError(
            f"record {record.sequence}: this engine gives other events than the log holds; "
            f"run the release that wrote it, or restore the log"
        )
    era = known.command if isinstance(known.command, OpenEra) else recovered.era
    return Recovered(recovered.engine, era, record.sequence)
