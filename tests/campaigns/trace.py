"""What `strace` saw of a core: was every record synced before it was told?

A record is told in a `Released` frame on a socket. Before the call that sends it begins, an `fdatasync` of
the record's segment must have ended, and that must have begun after the call that wrote the record had ended.
`strace` sees a call begin and end while its thread stands still, so the order of its lines is that of causes.
"""

import re
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from schemas.link import LENGTH, Released, decode_frame

WRITES = ("write", "writev", "pwrite64", "pwritev", "pwritev2")
SENDS = ("sendto", "sendmsg", "sendmmsg")
SYNCS = ("fdatasync", "fsync")
HEADER = struct.Struct("<4sIIQQII")
"""Of a batch in a segment: magic, CRC, epoch, first sequence, durable, count, length."""

WAKE_UP = b"\0"
"""What an event loop sends itself over a socket of its own."""

_LINE = re.compile(r"(?P<thread>\d+) +(?P<rest>.*)")
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>(.*)")
_CALL = re.compile(r"(?P<name>\w+)\((?P<descriptor>\d+<[^>]*>)(?P<arguments>.*)\) += (?P<result>-?\d+)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_UNFINISHED = " <unfinished ...>"


class Call(NamedTuple):
    """A system call on a descriptor; `began` and `ended` are line numbers, `data` what it moved."""

    began: int
    ended: int
    name: str
    descriptor: str
    data: bytes
    result: int

    @property
    def path(self) -> str:
        """What the descriptor stands for: a file's path, or `socket:[inode]`."""
        return bytes.fromhex(self.descriptor.partition("<")[2].rstrip(">").replace("\\x", "")).decode()


def command(trace: Path) -> list[str]:
    """How to start a program under `strace` so that `calls` can read the trace; the program is the child."""
    # Names of descriptors, whole strings in hexadecimal, all threads.
    watched = ",".join(WRITES + SENDS + SYNCS)
    return ["strace", "-D", "-f", "-y", "-xx", "-s", "100000000", "-e", f"trace={watched}", "-o", str(trace)]


def calls(lines: Iterable[str]) -> Iterator[Call]:
    """Yield the calls in the order in which they ended."""
    begun: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(lines):
        found = _LINE.match(line)
        if found is None:
            continue
        thread, rest = found["thread"], found["rest"]
        began = number
        if rest.endswith(_UNFINISHED):
            begun[thread] = number, rest.removesuffix(_UNFINISHED)
            continue
        if resumed := _RESUMED.match(rest):
            began, start = begun.pop(thread)
            rest = start + resumed[1]
        if call := _CALL.match(rest):
            result = int(call["result"])
            text = "".join(_TEXT.findall(call["arguments"]))
            data = bytes.fromhex(text.replace("\\x", ""))[: max(result, 0)]
            yield Call(began, number, call["name"], call["descriptor"], data, result)


class Verdict(NamedTuple):
    """How many records were told, how often in all, and which were told before they were synced."""

    records: int
    told: int
    unsynced: list[int]


def judge(seen: Sequence[Call]) -> Verdict:
    """Look for each record that was told for the sync between its write and its telling."""
    written = dict(_records_written(seen))
    syncs = [call for call in seen if call.name in SYNCS and call.result == 0]
    told = 0
    records: set[int] = set()
    unsynced: list[int] = []
    for sequence, send in _records_told(seen):
        told += 1
        records.add(sequence)
        write = written.get(sequence)
        if write is None or not any(
            sync.path == write.path and write.ended < sync.began and sync.ended < send.began for sync in syncs
        ):
            unsynced.append(sequence)
    return Verdict(len(records), told, unsynced)


def _records_written(seen: Sequence[Call]) -> Iterator[tuple[int, Call]]:
    """Yield every record's sequence and the write with which its batch was whole."""
    segments: dict[str, bytes] = defaultdict(bytes)
    for call in seen:
        if call.name not in WRITES or not call.path.endswith(".log"):
            continue
        rest = segments[call.path] + call.data
        while len(rest) >= HEADER.size:
            _, _, _, first, _, count, length = HEADER.unpack_from(rest)
            if len(rest) < HEADER.size + length:
                break
            for sequence in range(first, first + count):
                yield sequence, call
            rest = rest[HEADER.size + length :]
        segments[call.path] = rest


def _records_told(seen: Sequence[Call]) -> Iterator[tuple[int, Call]]:
    """Yield every record's sequence and the send in which its frame began, connection by connection."""
    connections: dict[str, bytes] = defaultdict(bytes)
    began: dict[str, Call] = {}
    for call in seen:
        if call.name in SYNCS or not call.path.startswith("socket:") or call.data == WAKE_UP:
            continue
        if not connections[call.descriptor]:
            began[call.descriptor] = call
        rest = connections[call.descriptor] + call.data
        while len(rest) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(rest)
            if len(rest) < LENGTH.size + length:
                break
            frame = decode_frame(rest[LENGTH.size : LENGTH.size + length])
            if isinstance(frame, Released):
                for record in frame.records:
                    yield record.sequence, began[call.descriptor]
            rest = rest[LENGTH.size + length :]
            began[call.descriptor] = call
        connections[call.descriptor] = rest
