"""Recovery: snapshot and tail make what the whole log makes; what cannot be trusted is refused."""

from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from exchange import migrations
from exchange.clock import SimulatedClock
from exchange.engine import EMPTY_STATE, Engine
from exchange.folder import Settings
from exchange.log import FileLog, LogError
from exchange.migrations import STATE_FORMAT, Encoded
from exchange.recovery import Recovered, keep_snapshot, reapply, recover, snapshot_of, start_from
from exchange.sequencer import Sequencer
from exchange.snapshot import Snapshot, Snapshots
from schemas.commands import OpenEra
from schemas.records import Record
from tests.golden import day, encoded
from tests.market import OPERATOR_KEY, START_NS
from tests.test_engine_properties import VENUES

DAY: list[Record] = [encoded(record) for record in day(VENUES[1], 37, 150)]


class Folder(NamedTuple):
    """A log and its snapshots."""

    log: FileLog
    snapshots: Snapshots


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """The log of a day, and no snapshots."""
    log = FileLog(tmp_path / "log")
    log.append(DAY)
    return Folder(log, Snapshots(tmp_path / "snapshots"))


def at(sequence: int) -> Recovered:
    """What the records up to `sequence` make."""
    recovered = Recovered(Engine(), None, 0)
    for record in DAY[:sequence]:
        recovered = reapply(recovered, record)
    return recovered


def refuse(words: str) -> None:
    raise AssertionError(words)


def settings() -> Settings:
    return Settings(
        format=1,
        origin="test.example/small",
        venue=VENUES[1],
        venue_key=bytes(32),
        operator_keys=(OPERATOR_KEY,),
    )


# -- snapshot and tail -----------------------------------------------------------------------------------


def test_a_snapshot_of_any_record_and_the_tail_make_what_the_whole_log_makes(folder: Folder) -> None:
    whole = recover(folder.log)
    assert whole.sequence == len(DAY)
    for sequence in range(1, len(DAY) + 1, 7):
        recovered = recover(folder.log, [snapshot_of(at(sequence))])
        assert recovered.engine.encoded_state() == whole.engine.encoded_state()
        assert (recovered.era, recovered.sequence) == (whole.era, whole.sequence)


def test_a_start_begins_at_the_newest_snapshot(folder: Folder) -> None:
    for sequence in (50, 90):
        folder.snapshots.write(snapshot_of(at(sequence)))
    assert start_from(folder.snapshots.whole(refuse), len(DAY)).sequence == 90
    assert start_from(folder.snapshots.whole(refuse), 90).sequence == 90


def test_where_the_newest_snapshot_is_damaged_the_one_before_it_does(folder: Folder, tmp_path: Path) -> None:
    for sequence in (50, 90):
        folder.snapshots.write(snapshot_of(at(sequence)))
    newest = max((tmp_path / "snapshots").iterdir())
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    words: list[str] = []
    assert start_from(folder.snapshots.whole(words.append), len(DAY)).sequence == 50
    assert len(words) == 1
    recovered = recover(folder.log, folder.snapshots.whole(words.append))
    assert recovered.engine.state_hash() == at(len(DAY)).engine.state_hash()


def test_the_running_era_is_known_from_the_snapshot_and_no_other_is_opened(folder: Folder) -> None:
    recovered = recover(folder.log, [snapshot_of(at(len(DAY)))])
    assert recovered.era == recover(folder.log).era is not None
    assert Sequencer(recovered, SimulatedClock(START_NS)).open_era(settings()) == []


def test_a_log_that_ends_before_a_snapshot_is_refused(folder: Folder, tmp_path: Path) -> None:
    folder.snapshots.write(snapshot_of(at(100)))
    log = FileLog(tmp_path / "short")
    log.append(DAY[:99])
    with pytest.raises(LogError, match=r"the log ends with record 99, .* snapshot of record 100"):
        recover(log, folder.snapshots.whole(refuse))
    log.close()
    with pytest.raises(LogError, match="record 100 was seen"):
        FileLog(tmp_path / "short", not_below=folder.snapshots.last_sequence)


def test_a_snapshot_of_another_log_is_refused(folder: Folder, tmp_path: Path) -> None:
    folder.snapshots.write(snapshot_of(at(100)))
    log = FileLog(tmp_path / "another")
    # The same commands and events; that they are another log's only the salts tell.
    log.append([msgspec.structs.replace(record, salt=b"another exchange") for record in DAY])
    with pytest.raises(LogError, match="the snapshot of record 100 is of another log than this one"):
        recover(log, folder.snapshots.whole(refuse))
    log.close()


def test_a_snapshot_of_another_form_is_none_of_todays(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(migrations.STEPS, STATE_FORMAT - 1, from_older)
    folder.snapshots.write(older(at(90)))
    keep_snapshot(folder.snapshots, at(90))
    assert [found.state_format for found in folder.snapshots.whole(refuse)] == [STATE_FORMAT]


def test_a_snapshot_is_not_made_again_where_a_whole_one_is(folder: Folder, tmp_path: Path) -> None:
    keep_snapshot(folder.snapshots, Recovered(Engine(), None, 0))
    assert folder.snapshots.last_sequence == 0
    keep_snapshot(folder.snapshots, at(90))
    (path,) = (tmp_path / "snapshots").iterdir()
    before = path.stat()
    for sequence in (90, 50):
        keep_snapshot(folder.snapshots, at(sequence))
        assert [path.stat() for path in (tmp_path / "snapshots").iterdir()] == [before]
    path.write_bytes(path.read_bytes()[:-1])
    keep_snapshot(folder.snapshots, at(90))
    assert [found.sequence for found in folder.snapshots.whole(refuse)] == [90]


# -- another release -------------------------------------------------------------------------------------


def older(recovered: Recovered) -> Snapshot:
    """The snapshot as a release with an older form would have made it.

    The venue stood last in its state, and a word before its era.
    """
    made = snapshot_of(recovered)
    fields = msgspec.msgpack.decode(made.state)
    state = msgspec.msgpack.encode([*fields[1:], fields[0]])
    return made._replace(
        state_format=STATE_FORMAT - 1, state=state, state_hash=b"o" * 32, era=b"old " + made.era
    )


def from_older(old: Encoded) -> Encoded:
    """The step from that form to today's."""
    fields = msgspec.msgpack.decode(old.state)
    return Encoded(old.era.removeprefix(b"old "), msgspec.msgpack.encode([fields[-1], *fields[:-1]]))


def by_another_release(era: OpenEra | None) -> OpenEra:
    assert era is not None
    return msgspec.structs.replace(era, engine_digest=b"e" * 32)


def test_an_older_snapshot_at_the_logs_end_is_migrated_and_the_new_era_tells_both_hashes(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(migrations.STEPS, STATE_FORMAT - 1, from_older)
    whole = recover(folder.log)
    left = older(whole._replace(era=by_another_release(whole.era)))
    recovered = recover(folder.log, [left])
    assert recovered.engine.encoded_state() == whole.engine.encoded_state()
    (record,) = Sequencer(recovered, SimulatedClock(START_NS)).open_era(settings())
    era = decoded_era(record)
    assert era.state_before == left.state_hash
    assert era.state_after == whole.engine.state_hash()
    assert record.sequence == len(DAY) + 1


def test_a_snapshot_of_an_older_form_before_the_logs_end_is_not_used(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(migrations.STEPS, STATE_FORMAT - 1, from_older)
    assert start_from([older(at(100))], len(DAY)).sequence == 0
    assert start_from([older(at(100)), snapshot_of(at(50))], len(DAY)).sequence == 50


def test_a_snapshot_of_a_form_that_nothing_leads_from_is_not_used(folder: Folder) -> None:
    left = snapshot_of(at(len(DAY)))
    for form in (STATE_FORMAT - 1, STATE_FORMAT + 1):
        assert start_from([left._replace(state_format=form)], len(DAY)).sequence == 0


def test_a_state_that_is_none_of_its_form_is_refused() -> None:
    with pytest.raises(LogError, match="the snapshot of record 3 holds no state"):
        start_from([snapshot_of(at(3))._replace(state=b"\x90")], 3)
    with pytest.raises(LogError, match="the snapshot of record 3 holds no state"):
        start_from([snapshot_of(at(3))._replace(era=b"old")], 3)


def test_another_release_that_gives_the_same_events_opens_an_era_with_the_same_state_twice(
    folder: Folder,
) -> None:
    whole = recover(folder.log)
    recovered = whole._replace(era=by_another_release(whole.era))
    (record,) = Sequencer(recovered, SimulatedClock(START_NS)).open_era(settings())
    era = decoded_era(record)
    assert era.state_before == era.state_after == at(len(DAY)).engine.state_hash() != EMPTY_STATE


def decoded_era(record: Record) -> OpenEra:
    era = msgspec.msgpack.decode(bytes(record.command), type=OpenEra)
    assert isinstance(era, OpenEra)
    return era


# -- what the log says and this engine does not ----------------------------------------------------------


def altered(place: int) -> Record:
    """A record that tells no event, though its command has one."""
    return msgspec.structs.replace(DAY[place], events=())


def test_other_events_than_the_logs_are_refused_with_their_record() -> None:
    with pytest.raises(LogError, match=r"record 101: this engine gives other events .* a bug, or"):
        reapply(at(100), altered(100))


def test_other_events_of_another_release_say_to_stop_that_one_first() -> None:
    before = at(100)
    with pytest.raises(LogError, match=r"record 101: .* another release wrote; stop the release"):
        reapply(before._replace(era=by_another_release(before.era)), altered(100))


def test_a_record_at_which_the_engine_fails_is_refused_with_its_number() -> None:
    earlier = msgspec.structs.replace(DAY[100], time_ns=1)
    with pytest.raises(LogError, match=r"record 101: the engine fails at it \("):
        reapply(at(100), earlier)
    first = msgspec.structs.replace(DAY[100], sequence=1)
    with pytest.raises(LogError, match=r"record 1: the engine fails at it \("):
        reapply(at(0), first)


def test_a_command_that_is_not_known_here_is_of_another_version() -> None:
    unknown = msgspec.structs.replace(DAY[100], command=msgspec.Raw(msgspec.msgpack.encode({"type": "none"})))
    with pytest.raises(LogError, match=r"record 101 is of another version of cux: .* stop the release"):
        reapply(at(100), unknown)


def test_an_event_to_which_a_later_version_added_nothing_but_a_default_is_the_same() -> None:
    record = DAY[0]
    (event,) = record.events
    # As another encoder might have it: the same map, told longer.
    fields = msgspec.msgpack.decode(bytes(event))
    longer = b"\xde" + len(fields).to_bytes(2, "big")
    for name, value in fields.items():
        longer += msgspec.msgpack.encode(name) + msgspec.msgpack.encode(value)
    assert longer != bytes(event)
    reapply(at(0), msgspec.structs.replace(record, events=(msgspec.Raw(longer),)))
