"""What earlier releases wrote is read and applied as they did; `python -m tests.golden` writes this one's."""

import shutil
from pathlib import Path
from typing import get_args

import pytest

from exchange.log import FileLog, read_records
from exchange.migrations import STATE_FORMAT
from exchange.recovery import recover
from exchange.snapshot import Snapshots
from schemas.commands import AnyCommand
from schemas.events import AnyEvent
from schemas.records import decoded
from tests.golden import FOLDER

GOLDEN = sorted(log.parent for log in FOLDER.glob("*/*/log"))
NOT_IN_GOLDEN: set[str] = set()
"""What came later than the last release."""


@pytest.fixture(params=GOLDEN, ids=lambda path: str(path.relative_to(FOLDER)))
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a golden log: to open one may write to it."""
    return Path(shutil.copytree(request.param, tmp_path / "golden"))


def test_golden_logs_hold_every_kind_of_command_and_event() -> None:
    commands: set[str] = set()
    events: set[str] = set()
    for path in GOLDEN:
        for record in map(decoded, read_records(path / "log")):
            commands.add(type(record.command).__name__)
            events |= {type(event).__name__ for event in record.events}
    assert commands >= {command.__name__ for command in get_args(AnyCommand)} - NOT_IN_GOLDEN
    assert events >= {event.__name__ for event in get_args(AnyEvent)} - NOT_IN_GOLDEN


def test_a_golden_log_gives_the_same_events_and_the_state_that_its_release_had(golden: Path) -> None:
    def refuse(words: str) -> None:
        raise AssertionError(words)

    log = FileLog(golden / "log")
    (snapshot,) = Snapshots(golden / "snapshots").whole(refuse)
    assert snapshot.sequence == log.last_sequence
    # `recover` refuses other events than the log's.
    replayed = recover(log).engine
    replayed.check()
    # From the release's own state, migrated where its form is older.
    started = recover(log, [snapshot]).engine
    started.check()
    assert started.encoded_state() == replayed.encoded_state()
    if snapshot.state_format == STATE_FORMAT:
        assert replayed.state_hash() == snapshot.state_hash
    log.close()
