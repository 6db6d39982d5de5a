"""Records: what the log holds, and how each part of one can be disclosed on its own.

A record's parts are its command and its events, in order. Every part is hashed with a salt of its own,
derived from the record's, so that showing one part gives no help in guessing its neighbours.
"""

import hashlib
import struct

import msgspec
from msgspec import Struct

from schemas.codec import decode_command, decode_event
from schemas.commands import AnyCommand
from schemas.events import AnyEvent

SALT_BYTES = 16


class Record(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One command, when it was applied, and what came of it. `events[0]` answers the command.

    Two have no such first event: `tick`, and an `end_call` after which nothing is cleared, where the orders
    that end with the call stand before the phase.

    Command and events stay encoded, so that what is hashed and what is read are the same bytes.
    """

    sequence: int
    time_ns: int
    salt: bytes
    command: msgspec.Raw
    events: tuple[msgspec.Raw, ...]

    @property
    def parts(self) -> tuple[bytes, ...]:
        """The encoded command, then the encoded events."""
        return (bytes(self.command), *map(bytes, self.events))


class Decoded(Struct, frozen=True):
    """A record with its command and events decoded."""

    sequence: int
    time_ns: int
    command: AnyCommand
    events: tuple[AnyEvent, ...]


def decoded(record: Record) -> Decoded:
    """Return the record with its parts decoded.

    Raises:
        msgspec.DecodeError: a part is no command or event.
    """
    return Decoded(
        record.sequence,
        record.time_ns,
        decode_command(bytes(record.command)),
        tuple(decode_event(bytes(event)) for event in record.events),
    )


def part_salt(salt: bytes, index: int) -> bytes:
    """Return the salt of a record's part: 16 bytes, from which no other part's follows."""
    return hashlib.sha256(b"\x02" + index.to_bytes(4, "big") + salt).digest()[:SALT_BYTES]


def part_hash(salt: bytes, part: bytes) -> bytes:
    """Return the leaf hash of a part under its own salt."""
    return hashlib.sha256(b"\x00" + salt + part).digest()


def root_of(hashes: list[bytes]) -> bytes:
    """Return the RFC 6962 tree hash over leaf hashes that are already made.

    Raises:
        ValueError: there is no leaf.
    """
    if not hashes:
        raise ValueError("a record has at least its command")
    if len(hashes) == 1:
        return hashes[0]
    split = 1 << ((len(hashes) - 1).bit_length() - 1)
    return hashlib.sha256(b"\x01" + root_of(hashes[:split]) + root_of(hashes[split:])).digest()


def record_root(record: Record) -> bytes:
    """Return the root over the record's salted parts."""
    return root_of([part_hash(part_salt(record.salt, i), part) for i, part in enumerate(record.parts)])


def entry_of(record: Record) -> bytes:
    """Return the record's leaf of the audit tree, 48 bytes big-endian.

    Sequence (8), time (8), root over the parts (32).
    """
    return struct.pack(">QQ", record.sequence, record.time_ns) + record_root(record)
