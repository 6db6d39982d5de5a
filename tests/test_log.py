"""The log keeps what it acknowledged, cuts only what it never did, and finds every damage."""

import contextlib
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import msgspec
import pytest

from exchange.disk import FolderDisk
from exchange.log import FileLog, LogError, LogReader, batch_at, durable_end, read_records
from schemas.codec import encode
from schemas.commands import CancelOrder, Tick
from schemas.events import OrderEnded
from schemas.records import Record

HEADER_BYTES = 36


def record(sequence: int) -> Record:
    return Record(
        sequence,
        1_000 + sequence,
        bytes([sequence % 256]) * 16,
        msgspec.Raw(encode(CancelOrder(sequence, sequence))),
        (msgspec.Raw(encode(OrderEnded(sequence, 1, 2, 3, "requested"))),),  # type: ignore[arg-type]
    )


def batch(first: int, count: int) -> list[Record]:
    return [record(sequence) for sequence in range(first, first + count)]


def abandon(log: FileLog) -> None:
    """Leave the log as a killed process leaves it: no seal, the lock free."""
    log._disk.close()
    log._lock.release()


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.log"))


def written(folder: Path, sizes: tuple[int, ...], segment_max_bytes: int = 1 << 20) -> list[Record]:
    """Write batches of these sizes and die."""
    log = FileLog(folder, segment_max_bytes)
    records: list[Record] = []
    for size in sizes:
        records += batch(log.last_sequence + 1, size)
        log.append(records[-size:])
    abandon(log)
    return records


def sealed(folder: Path, sizes: tuple[int, ...], segment_max_bytes: int = 1 << 20) -> list[Record]:
    records = written(folder, sizes, segment_max_bytes)
    FileLog(folder, segment_max_bytes).close()
    return records


def plain(records: list[Record]) -> list[tuple[object, ...]]:
    return [(r.sequence, r.time_ns, r.salt, *r.parts) for r in records]


def followed(folder: Path, first: int = 1) -> list[Record]:
    return LogReader(folder, first).poll()


def test_what_was_appended_is_read_again_from_any_sequence(tmp_path: Path) -> None:
    records = sealed(tmp_path, (1, 3, 2))
    log = FileLog(tmp_path)
    assert log.last_sequence == 6
    for first in range(1, 8):
        assert plain(list(log.read(first))) == plain(records[first - 1 :])
        assert plain(list(read_records(tmp_path, first))) == plain(records[first - 1 :])
        assert plain(followed(tmp_path, first)) == plain(records[first - 1 :])
    assert plain(list(read_records(tmp_path, 2, 4))) == plain(records[1:4])
    log.close()


def test_an_empty_log_has_no_records(tmp_path: Path) -> None:
    log = FileLog(tmp_path)
    assert (log.last_sequence, list(log.read(1)), followed(tmp_path)) == (0, [], [])
    log.close()


def test_segments_rotate_and_are_named_after_their_first_sequence(tmp_path: Path) -> None:
    records = sealed(tmp_path, (2,) * 10, segment_max_bytes=300)
    names = [int(path.stem) for path in segments(tmp_path)]
    assert len(names) > 3
    for path, first in zip(segments(tmp_path), names, strict=True):
        found = batch_at(path.read_bytes(), 0)
        assert found is not None
        assert found.first_sequence == first
    for first in range(1, 21):
        assert plain(list(read_records(tmp_path, first))) == plain(records[first - 1 :])
        assert plain(followed(tmp_path, first)) == plain(records[first - 1 :])
    log = FileLog(tmp_path, 300)
    log.append(batch(21, 1))
    assert log.last_sequence == 21
    log.close()


def test_a_tail_torn_at_any_byte_is_cut_and_all_before_it_kept(tmp_path: Path) -> None:
    records = written(tmp_path, (2, 3, 2))
    path = segments(tmp_path)[0]
    data = path.read_bytes()
    kept = 0
    for _ in range(2):
        found = batch_at(data, kept)
        assert found is not None
        kept = found.end
    for length in range(kept, len(data)):
        path.write_bytes(data[:length])
        log = FileLog(tmp_path)
        assert log.cut_bytes == length - kept
        assert log.last_sequence == 5
        assert plain(list(log.read(1))) == plain(records[:5])
        log.append(batch(6, 1))
        log.close()
        assert plain(list(read_records(tmp_path))) == plain([*records[:5], record(6)])


def test_a_whole_batch_that_was_never_sealed_is_kept_and_sealed(tmp_path: Path) -> None:
    records = written(tmp_path, (2, 3))
    assert plain(followed(tmp_path)) == plain(records[:2])
    FileLog(tmp_path).close()
    assert plain(followed(tmp_path)) == plain(records)


def test_every_flipped_bit_of_a_sealed_log_is_found_or_costs_nothing(tmp_path: Path) -> None:
    records = plain(sealed(tmp_path, (1, 2)))
    path = segments(tmp_path)[0]
    data = path.read_bytes()
    seal_at = len(data) - HEADER_BYTES
    readers: tuple[Callable[[], list[Record]], ...] = (
        lambda: list(read_records(tmp_path)),
        lambda: list(read_records(tmp_path, 1, 3)),
        lambda: list(read_records(tmp_path, 1, durable_end(tmp_path))),
    )
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        refused = 0
        for read in readers:
            try:
                found = plain(read())
                # What says how far the log is durable is the seal itself: without it nothing more is known.
                assert found == records or (bit // 8 >= seal_at and found == records[: len(found)])
            except LogError:
                refused += 1
        try:
            log = FileLog(tmp_path)
            assert plain(list(log.read(1))) == records
            abandon(log)
        except LogError:
            refused += 1
        # A seal says nothing that a client was told: without it the same records stand.
        assert refused == 4 or bit // 8 >= seal_at, f"bit {bit}"


def test_a_follower_tells_no_flipped_bit_for_truth(tmp_path: Path) -> None:
    records = plain(sealed(tmp_path, (1, 2)))
    path = segments(tmp_path)[0]
    data = path.read_bytes()
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        told = plain(followed(tmp_path))
        assert told == records[: len(told)]


def test_damage_before_the_tail_is_refused_with_its_place(tmp_path: Path) -> None:
    sealed(tmp_path, (2, 2, 2))
    path = segments(tmp_path)[0]
    data = bytearray(path.read_bytes())
    second = batch_at(bytes(data), 0)
    assert second is not None
    data[second.end + 50] ^= 4
    path.write_bytes(data)
    place = re.escape(f"{path} is damaged at byte {second.end}")
    with pytest.raises(LogError, match=f"{place}, in the batch of sequence 3; the log was durable up to 6"):
        FileLog(tmp_path)
    for last in (None, 4, 6):
        with pytest.raises(LogError, match=place):
            list(read_records(tmp_path, 1, last))
    assert [r.sequence for r in read_records(tmp_path, 1, 2)] == [1, 2]
    assert path.read_bytes() == data, "a refused log is left as it was found"


def test_damage_in_a_segment_that_is_not_the_last_is_no_torn_tail(tmp_path: Path) -> None:
    sealed(tmp_path, (2,) * 6, segment_max_bytes=300)
    path = segments(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LogError, match="later segments exist"):
        FileLog(tmp_path)
    readers: tuple[Callable[[], list[Record]], ...] = (
        lambda: list(read_records(tmp_path)),
        lambda: followed(tmp_path),
    )
    for read in readers:
        with pytest.raises(LogError, match=re.escape(f"{path} is damaged at byte")):
            read()


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_segment_is_refused(tmp_path: Path, missing: int) -> None:
    sealed(tmp_path, (2,) * 6, segment_max_bytes=300)
    segments(tmp_path)[missing].unlink()
    due = 1 + 2 * missing
    gap = re.escape(f"{segments(tmp_path)[missing]} is named after record {due + 2}, but record {due} is due")
    with pytest.raises(LogError, match=gap):
        FileLog(tmp_path)
    readers: tuple[Callable[[], object], ...] = (
        lambda: list(read_records(tmp_path)),
        lambda: followed(tmp_path),
    )
    for read in readers:
        with pytest.raises(LogError, match="starts at 3; 1 was asked for" if missing == 0 else gap):
            read()


def test_records_lost_before_an_empty_last_segment_are_missed(tmp_path: Path) -> None:
    """A writer that did not see the gap would hand out the lost numbers once more."""
    sealed(tmp_path, (2,) * 4, segment_max_bytes=300)
    *_, lost = segments(tmp_path)
    empty = lost.with_name(f"{9:020d}.log")
    empty.touch()
    lost.unlink()
    words = re.escape(f"{empty} is named after record 9, but record {int(lost.stem)} is due")
    reads: tuple[Callable[[], object], ...] = (
        lambda: FileLog(tmp_path),
        lambda: list(read_records(tmp_path)),
        lambda: list(read_records(tmp_path, 1, durable_end(tmp_path))),
        lambda: followed(tmp_path),
    )
    for read in reads:
        with pytest.raises(LogError, match=words):
            read()
    assert empty.read_bytes() == b"", "a refused log is left as it was found"


@pytest.mark.parametrize("number", [4, 999])
def test_an_empty_segment_that_does_not_go_on_where_the_log_ends_is_refused(
    tmp_path: Path, number: int
) -> None:
    sealed(tmp_path, (2, 3))
    stray = tmp_path / f"{number:020d}.log"
    stray.touch()
    words = re.escape(f"{stray} is named after record {number}, but record 6 is due")
    readers: tuple[Callable[[], object], ...] = (
        lambda: FileLog(tmp_path),
        lambda: followed(tmp_path),
        lambda: list(read_records(tmp_path)),
    )
    for read in readers:
        with pytest.raises(LogError, match=words):
            read()
    stray.unlink()
    log = FileLog(tmp_path)
    assert log.last_sequence == 5
    log.close()


@pytest.mark.parametrize("next_epoch", [False, True])
def test_a_crash_after_the_next_segment_was_begun_leaves_a_log_that_goes_on(
    tmp_path: Path, next_epoch: bool
) -> None:
    records = written(tmp_path, (2, 3))
    begun = tmp_path / f"{6:020d}.log"
    begun.touch()
    assert plain(followed(tmp_path)) == plain(records)
    for _ in range(2):
        log = FileLog(tmp_path, 100, next_epoch=next_epoch)
        assert log.last_sequence == 5
        assert log.cut_bytes == 0
        abandon(log)
    log = FileLog(tmp_path, 100)
    log.append(batch(6, 2))
    log.append(batch(8, 1))
    log.close()
    assert plain(list(read_records(tmp_path))) == plain([*records, *batch(6, 3)])
    assert plain(followed(tmp_path, 4)) == plain([*records[3:], *batch(6, 3)])
    assert begun.stat().st_size > 0


def test_a_log_that_ends_early_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    sealed(tmp_path, (2, 2))
    assert [r.sequence for r in read_records(tmp_path, 3, 9)] == [3, 4]
    assert list(read_records(tmp_path, 9, 9)) == []


def test_a_reader_never_tells_more_than_is_known_durable(tmp_path: Path) -> None:
    log = FileLog(tmp_path, 250)
    reader = LogReader(tmp_path)
    told: list[Record] = []
    durable = 0
    for size in (1, 2, 3, 1, 4):
        log.append(batch(log.last_sequence + 1, size))
        # The batch itself says only that those before it were durable.
        told += reader.poll()
        assert [r.sequence for r in told] == list(range(1, durable + 1))
        durable = log.last_sequence
    log.seal()
    told += reader.poll()
    assert [r.sequence for r in told] == list(range(1, 12))
    assert reader.poll() == []
    log.close()


def test_a_reader_waits_for_the_rest_of_a_batch(tmp_path: Path) -> None:
    records = sealed(tmp_path, (2, 3))
    path = segments(tmp_path)[0]
    data = path.read_bytes()
    path.write_bytes(b"")
    reader = LogReader(tmp_path)
    told: list[Record] = []
    with path.open("ab") as file:
        for at in range(len(data)):
            file.write(data[at : at + 1])
            file.flush()
            told += reader.poll()
    assert plain(told) == plain(records)


def test_a_reader_loses_nothing_when_the_writer_rotates_while_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = FileLog(tmp_path, 400)
    log.append(batch(1, 1))
    log.seal()
    reader = LogReader(tmp_path)
    told = [r.sequence for r in reader.poll()]
    real = FolderDisk.segments

    def meanwhile(disk: FolderDisk) -> list[int]:
        # Between the reader's look at its segment and its look at the folder the writer goes on.
        for _ in range(3 if log.last_sequence == 1 else 0):
            log.append(batch(log.last_sequence + 1, 1))
        return real(disk)

    with monkeypatch.context() as patch:
        patch.setattr(FolderDisk, "segments", meanwhile)
        told += [r.sequence for r in reader.poll()]
    log.seal()
    told += [r.sequence for r in reader.poll()]
    assert told == list(range(1, log.last_sequence + 1))
    assert len(segments(tmp_path)) > 1
    log.close()


def test_nothing_of_a_segment_is_unsynced_when_the_next_one_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut a torn seal in a segment before the last would look like damage."""
    durable: dict[int, int] = {}
    real = os.fdatasync

    def synced(file: int) -> None:
        real(file)
        durable[os.fstat(file).st_ino] = os.fstat(file).st_size

    monkeypatch.setattr(os, "fdatasync", synced)
    log = FileLog(tmp_path, 200)
    for sequence in range(1, 8):
        log.append(batch(sequence, 1))
        log.seal()
    *complete, _ = segments(tmp_path)
    assert len(complete) > 2
    for path in complete:
        assert durable[path.stat().st_ino] == path.stat().st_size, path
    log.close()


def test_an_idle_log_is_sealed_once(tmp_path: Path) -> None:
    log = FileLog(tmp_path)
    log.append(batch(1, 1))
    log.seal()
    size = segments(tmp_path)[0].stat().st_size
    log.seal()
    log.close()
    FileLog(tmp_path).close()
    assert segments(tmp_path)[0].stat().st_size == size


def test_a_second_writer_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    log = FileLog(tmp_path)
    with pytest.raises(LogError, match="held by another running exchange"):
        FileLog(tmp_path)
    log.append(batch(1, 1))
    log.close()
    second = FileLog(tmp_path)
    assert second.last_sequence == 1
    second.close()


def test_a_log_of_another_format_is_refused(tmp_path: Path) -> None:
    sealed(tmp_path, (1,))
    path = segments(tmp_path)[0]
    path.write_bytes(b"CUX9" + path.read_bytes()[4:])
    sentence = r"is of log format b'9'; this version reads format b'1'"
    with pytest.raises(LogError, match=sentence):
        FileLog(tmp_path)
    with pytest.raises(LogError, match=sentence):
        list(read_records(tmp_path))


def test_records_that_do_not_follow_are_our_own_bug(tmp_path: Path) -> None:
    log = FileLog(tmp_path)
    with pytest.raises(AssertionError):
        log.append(batch(2, 1))
    log.close()


def test_the_header_is_as_documented(tmp_path: Path) -> None:
    log = FileLog(tmp_path)
    log.append(batch(1, 2))
    log.append([Record(3, 5, bytes(16), msgspec.Raw(encode(Tick())), ())])
    abandon(log)
    data = segments(tmp_path)[0].read_bytes()
    first = batch_at(data, 0)
    assert first is not None
    magic, crc, epoch, sequence, durable, count, length = struct.unpack_from("<4sIIQQII", data, first.end)
    assert (magic, epoch, sequence, durable, count) == (b"CUX1", 1, 3, 2, 1)
    assert first.end + HEADER_BYTES + length == len(data)
    assert crc == google_crc32c.value(data[first.end + 8 :])
    assert msgspec.msgpack.decode(data[first.end + HEADER_BYTES :])[0][:2] == [3, 5]


def test_a_batch_that_another_version_wrote_is_refused_with_its_sequence(tmp_path: Path) -> None:
    sealed(tmp_path, (1,))
    path = segments(tmp_path)[0]
    payload = msgspec.msgpack.encode([[1, 2, b"salt", {}, [], "a part of a later version"]])
    rest = struct.pack("<IQQII", 1, 2, 1, 1, len(payload)) + payload
    head = path.read_bytes()[:4] + struct.pack("<I", google_crc32c.value(rest))
    path.write_bytes(path.read_bytes() + head + rest)
    with pytest.raises(LogError, match="sequence 2 is of another version of cux"):
        list(read_records(tmp_path))


def test_a_promoted_writer_writes_the_next_epoch_at_once(tmp_path: Path) -> None:
    records = sealed(tmp_path, (2,))
    log = FileLog(tmp_path, next_epoch=True)
    assert log.epoch == 2
    # Before its first record: a crash now, and the next one is a third.
    abandon(log)
    log = FileLog(tmp_path, next_epoch=True)
    log.append(batch(3, 1))
    log.close()
    ordinary = FileLog(tmp_path)
    assert ordinary.epoch == 3
    ordinary.close()
    expected = plain([*records, record(3)])
    assert plain(list(read_records(tmp_path))) == plain(followed(tmp_path)) == expected


def test_a_log_whose_epochs_go_back_is_refused_by_all_who_read_it(tmp_path: Path) -> None:
    log = FileLog(tmp_path, next_epoch=True)
    log.append(batch(1, 2))
    log.epoch = 1
    log.append(batch(3, 1))
    log.seal()
    abandon(log)
    sentence = "sequence 3 is of epoch 1, after epoch 2"
    with pytest.raises(LogError, match=sentence):
        FileLog(tmp_path)
    with pytest.raises(LogError, match=sentence):
        list(read_records(tmp_path))
    with pytest.raises(LogError, match=sentence):
        followed(tmp_path)


def test_a_log_that_would_be_cut_below_what_was_seen_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    written(tmp_path, (2, 3))
    path = segments(tmp_path)[0]
    torn = path.read_bytes()[:-1]
    path.write_bytes(torn)
    for seen in (3, 5):
        with pytest.raises(LogError, match=f"ends with record 2, but record {seen} was seen"):
            FileLog(tmp_path, not_below=seen)
        assert path.read_bytes() == torn
    log = FileLog(tmp_path, not_below=2)
    assert log.last_sequence == 2
    log.close()


def test_a_reader_keeps_nothing_that_the_next_writer_may_cut(tmp_path: Path) -> None:
    log = FileLog(tmp_path)
    log.append(batch(1, 2))
    log.seal()
    kept = segments(tmp_path)[0].read_bytes()
    reader = LogReader(tmp_path)
    assert [r.sequence for r in reader.poll()] == [1, 2]
    # Written, seen, and lost with the power before its sync was done.
    log.append(batch(3, 1))
    assert reader.poll() == []
    abandon(log)
    segments(tmp_path)[0].write_bytes(kept)
    log = FileLog(tmp_path)
    log.append(batch(3, 4))
    log.close()
    assert [r.sequence for r in reader.poll()] == [3, 4, 5, 6]


@pytest.mark.parametrize("call", ["write", "fdatasync"])
def test_a_log_that_failed_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    log = FileLog(tmp_path)
    log.append(batch(1, 1))

    def fail(*_: object) -> int:
        raise OSError("the disk failed")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="the disk failed"):
            log.append(batch(2, 1))
    before = segments(tmp_path)[0].read_bytes()
    with pytest.raises(OSError, match="failed before: it is not written again"):
        log.append(batch(2, 1))
    with contextlib.suppress(OSError):
        log.seal()
    log.close()
    assert segments(tmp_path)[0].read_bytes() == before
    FileLog(tmp_path).close()


def test_to_append_nothing_is_nothing(tmp_path: Path) -> None:
    log = FileLog(tmp_path)
    log.append([])
    assert segments(tmp_path)[0].read_bytes() == b""
    log.close()


def test_segments_of_one_batch_begin_also_behind_a_new_epoch_and_seals(tmp_path: Path) -> None:
    log = FileLog(tmp_path, 1, next_epoch=True)
    for sequence in (1, 2, 3):
        log.append(batch(sequence, 1))
        log.seal()
    log.close()
    assert [int(path.stem) for path in segments(tmp_path)] == [1, 2, 3]
    assert plain(list(read_records(tmp_path))) == plain(batch(1, 3))


def test_a_log_follows_itself(tmp_path: Path) -> None:
    log = FileLog(tmp_path)
    log.append(batch(1, 3))
    follower = log.follow(2)
    log.seal()
    assert [r.sequence for r in follower.poll()] == [2, 3]
    log.close()
