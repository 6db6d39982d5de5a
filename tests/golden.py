"""Golden logs: what a release wrote, which every later one must read and apply to the same events.

`python -m tests.golden` writes those of the release at hand into tests/golden/, once, when it is made.
"""

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from exchange.log import FileLog
from exchange.recovery import recover, snapshot_of
from exchange.snapshot import Snapshots
from schemas.codec import encode
from schemas.commands import (
    AnyCommand,
    CorrectClock,
    PostSettlement,
    ReceiveReadings,
    RegisterKey,
    Scope,
    StartSettlementRun,
)
from schemas.records import SALT_BYTES, Decoded, Record
from schemas.venue import Venue
from tests.market import AUTHORITY, START_NS
from tests.test_engine_properties import CASH, VENUES, Choose, Flow, Wait, any_step

FOLDER = Path(__file__).parent / "golden"
RELEASE = "0.1.0"
STEPS = 250
SEEDS = (32, 37, 50, 59)
"""A day of each venue; in these everything happens."""


class SettledFlow(Flow):
    """A small market to which anything happens, settlement and keys too."""

    def act(self, choose: Choose) -> Decoded:
        """Do any step, or what operators and settlement do, and return the record."""
        if choose(range(8)):
            return self.do(any_step(choose))
        return self.take(self.settling(choose))

    def take(self, command: AnyCommand) -> Decoded:
        """Apply the command, check the state, and return the record."""
        events = self.engine.apply(self.now, command)
        self.engine.check()
        self.records.append(Decoded(len(self.records) + 1, self.now, command, tuple(events)))
        return self.records[-1]

    def settling(self, choose: Choose) -> AnyCommand:
        """A command of operators or settlement."""
        signed = msgspec.structs.replace(AUTHORITY, signed_ns=START_NS + len(self.records))
        match choose(("key", "readings", "clock", "run", "post", "post", "post")):
            case "key":
                key, account = bytes([choose(range(9))]) * 32, choose(tuple(CASH))
                return RegisterKey(account, key, choose(((Scope.TRADE,), ())), authority=signed)
            case "readings":
                return ReceiveReadings(choose(range(9)), "meter", 0, 1, 1, bytes(32), authority=signed)
            case "clock":
                return CorrectClock(authority=signed)
            case "run":
                return StartSettlementRun(choose((1, 2, 3)), "d", 0, 0, 20, bytes(32), authority=signed)
            case _:
                trade = choose(self.trades[:9]) if self.trades else None
                return PostSettlement(
                    run=choose((1, 2, 3, 4)),
                    trade_id=trade.trade_id if trade else 1,
                    verdict="short",
                    delivered_gpu_ms=1,
                    payment_micros=trade.notional_micros * choose((1, 2, 3)) // 4 if trade else 0,
                    refund_micros=trade.notional_micros // 4 if trade else 0,
                    penalty_micros=trade.bond_micros // 2 if trade else 0,
                    bond_release_micros=choose((0, 1)),
                )


def encoded(record: Decoded) -> Record:
    """The record as a log holds it, with a salt of its number alone."""
    return Record(
        record.sequence,
        record.time_ns,
        record.sequence.to_bytes(SALT_BYTES, "big"),
        msgspec.Raw(encode(record.command)),
        tuple(msgspec.Raw(encode(event)) for event in record.events),
    )


def day(venue: Venue, seed: int, steps: int) -> list[Decoded]:
    """The records of a day of any steps, and of some settlement after its first hours."""
    choose = random.Random(seed).choice
    flow = SettledFlow(venue)
    for _ in range(steps):
        flow.act(choose)
    for _ in range(4):
        flow.do(Wait(3600))
    for _ in range(20):
        flow.take(flow.settling(choose))
    return flow.records


def write_golden(folder: Path, records: Sequence[Decoded]) -> None:
    """Write the records as a log, and beside it a snapshot of its end, which holds the state hash."""
    log = FileLog(folder / "log")
    log.append([encoded(record) for record in records])
    Snapshots(folder / "snapshots").write(snapshot_of(recover(log)))
    log.close()
    (folder / "log" / "lock").unlink()


if __name__ == "__main__":
    for terms, seed in zip(VENUES, SEEDS, strict=True):
        target = FOLDER / RELEASE / str(seed)
        shutil.rmtree(target, ignore_errors=True)
        write_golden(target, day(terms, seed, STEPS))
