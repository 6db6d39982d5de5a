"""How words become bytes: MessagePack for the log and the processes, JSON for people.

The encoding is canonical: one value, one sequence of bytes. `CODEC_DIGEST` names it.
"""

import hashlib
from pathlib import Path

import msgspec
from msgspec import Struct

from schemas.commands import AnyCommand, Authority, OperatorCommand
from schemas.events import AnyEvent

# Deterministic: tables of equal values are equal bytes, in whatever order they were filled.
_encoder = msgspec.msgpack.Encoder(order="deterministic")
_command_decoder: msgspec.msgpack.Decoder[AnyCommand] = msgspec.msgpack.Decoder(AnyCommand)
_event_decoder: msgspec.msgpack.Decoder[AnyEvent] = msgspec.msgpack.Decoder(AnyEvent)

_FORMS = ("codec", "commands", "events", "reasons", "records", "state", "venue")
CODEC_DIGEST = hashlib.sha256(
    b"".join((Path(__file__).parent / f"{name}.py").read_bytes() for name in _FORMS)
).digest()
"""SHA-256 of the modules that define the encoding."""


def encode(value: Struct) -> bytes:
    """Return the canonical bytes of a command or an event."""
    return _encoder.encode(value)


def decode_command(data: bytes) -> AnyCommand:
    """Return the command.

    Raises:
        msgspec.DecodeError: the bytes are no command.
    """
    return _command_decoder.decode(data)


def decode_event(data: bytes) -> AnyEvent:
    """Return the event.

    Raises:
        msgspec.DecodeError: the bytes are no event.
    """
    return _event_decoder.decode(data)


def signed_bytes(command: OperatorCommand) -> bytes:
    """Return what an operator signs: the command encoded with an empty signature.

    Raises:
        ValueError: the command names no authority.
    """
    authority = command.authority
    if authority is None:
        raise ValueError("the command names no authority")
    unsigned = Authority(authority.key, authority.signed_ns, authority.reason)
    return _encoder.encode(msgspec.structs.replace(command, authority=unsigned))
