"""Frames between the processes, over the core's Unix socket: batches up as commands, down as records.

A frame is a 4-byte big-endian length and its MessagePack bytes.
"""

import struct
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from schemas.commands import AnyCommand, CellPrice
from schemas.records import Record

LENGTH = struct.Struct(">I")
FRAME_MAX_BYTES = 64 * 1024 * 1024


class Frame(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of the frames."""


class Hello(Frame, frozen=True, tag=0):
    """First frame of a client. `records` asks for every durable record, not only answers to its own."""

    records: bool


class Welcome(Frame, frozen=True, tag=1):
    """First frame of the core: records above `durable` will be sent; those up to it stand in the log.

    Venue time is `time_ns` now and runs `clock_speed` times as fast as the wall clock (0: it stands).
    """

    durable: int
    time_ns: int
    clock_speed: int
    simulated: bool


class Submit(Frame, frozen=True, tag=2):
    """One command; `correlation` is the client's and comes back with the record."""

    correlation: int
    command: AnyCommand


class Released(Frame, frozen=True, tag=3):
    """Durable records, in order. `correlations` are the receiver's own, 0 where another submitted."""

    records: tuple[Record, ...]
    correlations: tuple[int, ...]


class Busy(Frame, frozen=True, tag=4):
    """The command was not taken and has no number; try again later. The reason is for people."""

    correlation: int
    reason: str


class SetClock(Frame, frozen=True, tag=5):
    """Move a simulated clock forward to `time_ns`, then run it at `speed` (0: stand). None leaves as is."""

    correlation: int
    time_ns: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    speed: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None


class AskClock(Frame, frozen=True, tag=7):
    """Ask for the time; answered by `Clock`."""

    correlation: int


class Clock(Frame, frozen=True, tag=8):
    """Venue time and its speed now."""

    correlation: int
    time_ns: int
    clock_speed: int


class Done(Frame, frozen=True, tag=6):
    """The frame was served, or the message says why not."""

    correlation: int
    message: str = ""


class Indicated(Frame, frozen=True, tag=9):
    """What a call that collects would clear at, for who asked for records; no record of the log."""

    class_code: str
    delivery_hour: int
    time_ns: int
    lots: int
    prices: tuple[CellPrice, ...]


AnyFrame = Hello | Welcome | Submit | Released | Busy | SetClock | Done | AskClock | Clock | Indicated

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyFrame] = msgspec.msgpack.Decoder(AnyFrame)


def encode_frame(frame: Frame) -> bytes:
    """Return the frame's bytes with their length before them."""
    return b"".join(encode_parts(frame))


def encode_parts(frame: Frame) -> tuple[bytes, bytes]:
    """Return the length and the frame's bytes, to be sent one after the other."""
    body = _encoder.encode(frame)
    return LENGTH.pack(len(body)), body


def decode_frame(body: bytes | memoryview) -> AnyFrame:
    """Return the frame.

    Raises:
        msgspec.DecodeError: the bytes are no frame.
    """
    return _decoder.decode(body)
