"""Offline matching: commands as JSON lines, read and checked one by one; no clock, and nothing is written.

A line is `{"sequence":1,"time_ns":0,"command":{"type":"open_era",...}}`. The form of each command is that of
`schemas/commands.py`; bytes (keys, digests) are base64.
"""

import difflib
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, inspect

from schemas.catalogue import check_venue
from schemas.commands import AnyCommand, OpenEra
from schemas.events import AnyEvent
from schemas.venue import Venue

LINE_MAX_BYTES = 16 * 1024 * 1024
_VALUE_MAX = 100


class OfflineError(ValueError):
    """The input cannot be matched; the message names input, line, field, value and what is allowed."""


class Line(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A command of the input: its number, when it is applied, and what came of it where that is known."""

    sequence: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    time_ns: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    command: AnyCommand
    events: tuple[AnyEvent, ...] | None = None


class Outcome(Struct, frozen=True):
    """What came of a command."""

    sequence: int
    time_ns: int
    events: Sequence[AnyEvent]


def read_lines(name: str, lines: Iterable[bytes]) -> Iterator[Line]:
    """Yield the commands of JSON lines; empty lines and a byte order mark at the beginning are passed over.

    `name` stands before each fault.

    Raises:
        OfflineError: a line is not such a line, or does not follow on the one before it.
    """
    decoder = msgspec.json.Decoder(Line)
    sequence = time_ns = 0
    for number, raw in enumerate(lines, 1):
        text = raw.removeprefix(BOM_UTF8) if number == 1 else raw
        try:
            line = decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if not text.strip():
                continue
            raise OfflineError(f"{name}, line {number}, {_fault(text, error)}") from None
        if line.sequence != sequence + 1:
            raise OfflineError(f"{name}, line {number}, sequence {line.sequence}: {sequence + 1} is allowed")
        if line.time_ns < time_ns:
            raise OfflineError(
                f"{name}, line {number}, time_ns {line.time_ns}: {time_ns} or later is allowed, "
                f"time does not run backwards"
            )
        command = line.command
        if isinstance(command, OpenEra):
            _check(command.venue, f"{name}, line {number}, command.venue")
        elif sequence == 0:
            found = command.__struct_config__.tag
            raise OfflineError(
                f"{name}, line {number}, command.type {found!r}: open_era is allowed, it is always the first"
            )
        sequence, time_ns = line.sequence, line.time_ns
        yield line


def difference(found: Sequence[AnyEvent], known: Sequence[AnyEvent]) -> str | None:
    """Say where the engine's events `found` differ first from those `known`; None if they are the same."""
    for index in range(max(len(found), len(known))):
        ours, theirs = (
            msgspec.json.encode(events[index]).decode() if index < len(events) else "none"
            for events in (found, known)
        )
        if ours != theirs:
            return f"event {index + 1} is {ours} by this engine, and was {theirs}"
    return None


def _check(venue: Venue, place: str) -> None:
    """Refuse a catalogue whose parts do not fit; where its figures come from is nothing to the engine."""
    for fault in check_venue(venue):
        if not re.match(r"(\w+\[\d+\]\.)?sources?\b", fault):
            raise OfflineError(f"{place}.{fault}")


# --- the words of a fault ------------------------------------------------------------------------------


def _fault(text: bytes, error: Exception) -> str:
    """Return what is wrong with a line that could not be decoded."""
    if len(text) >= LINE_MAX_BYTES:
        return f"{len(text)} bytes: at most {LINE_MAX_BYTES} in a line are allowed"
    if isinstance(error, msgspec.ValidationError):
        try:
            return _misfit(msgspec.json.decode(text), str(error))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as found:
            error = found  # what follows the misfit is not even JSON
    what, _, at = str(error).removeprefix("JSON is malformed: ").partition(" (byte ")
    if not at:
        return f"{_short(repr(text.decode(errors='replace').strip()))}: JSON is allowed ({what})"
    start = min(int(at.rstrip(")")), len(text.rstrip()) - 1)
    here = text[start : start + _VALUE_MAX].decode(errors="replace").rstrip()
    return f"column {start + 1} {here!r}: JSON is allowed ({what})"


def _misfit(raw: object, message: str) -> str:
    """Return msgspec's message as a fault, with the value at its path and what is allowed there."""
    what, _, path = message.partition(" - at `$")
    steps = re.findall(r"\.(\w+)|\[(\d+|\.\.\.)\]", path)
    value, known, names = raw, inspect.type_info(Line), ""
    choices: list[str] = []
    for name, index in steps:
        # What has no type or no value of its own, as a key of a table, is told by what is around it.
        choices = _tags(known) if name == "type" else []
        form = _struct(known, value)
        if name and isinstance(value, dict):
            value = value.get(name)
            fields = {} if form is None else {field.encode_name: field.type for field in form.fields}
            known = fields.get(name, inspect.AnyType())
        elif index.isdigit() and isinstance(value, list):
            value = value[int(index)]
            known = form.fields[int(index)].type if form is not None else _item(known)
        names += f".{name}" if name else f"[{index}]"
    place = names.removeprefix(".")
    within = f"{place}, " if place else ""
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL)
    missing = re.fullmatch(r"Object missing required field `(.*)`", what)
    if unknown is not None:
        return (
            f"{within}field {_short(repr(unknown[1]))}: {_among(unknown[1], _fields(_struct(known, value)))}"
        )
    if missing is not None:
        return f"{within}field {missing[1]!r}: missing, it is required"
    shown = f"{place or 'the line'} {_short(msgspec.json.encode(value).decode())}"
    choices = choices or [str(one) for member in _members(known) for one in _values(member)]
    if what.startswith("Invalid") and choices:
        return f"{shown}: {_among(str(value), choices)}"
    if isinstance(known, inspect.BytesType):
        return f"{shown}: base64 is allowed, of {known.min_length or 0} to {known.max_length} bytes"
    return f"{shown}: {re.sub(r'^Expected |, got .*$|`', '', what)} is allowed"


def _members(known: inspect.Type) -> tuple[inspect.Type, ...]:
    return known.types if isinstance(known, inspect.UnionType) else (known,)


def _tags(known: inspect.Type) -> list[str]:
    return [str(one.tag) for one in _members(known) if isinstance(one, inspect.StructType) and one.tag]


def _values(known: inspect.Type) -> Iterable[Any]:
    if isinstance(known, inspect.EnumType):
        return [one.value for one in known.cls]
    return known.values if isinstance(known, inspect.LiteralType) else ()


def _struct(known: inspect.Type, value: object) -> inspect.StructType | None:
    """Return the struct that the value is meant to be, None if it is meant to be none."""
    for one in _members(known):
        if isinstance(one, inspect.StructType) and (
            one.tag_field is None or (isinstance(value, dict) and value.get(one.tag_field) == one.tag)
        ):
            return one
    return None


def _fields(form: inspect.StructType | None) -> list[str]:
    if form is None:  # its type is given twice
        return ["each field once"]
    tag = [] if form.tag_field is None else [form.tag_field]
    return tag + [field.encode_name for field in form.fields]


def _item(known: inspect.Type) -> inspect.Type:
    arrays = [one.item_type for one in _members(known) if isinstance(one, inspect.VarTupleType)]
    return arrays[0] if arrays else inspect.AnyType()


def _among(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"{', '.join(known)} {'are' if len(known) > 1 else 'is'} allowed" + (
        f"; did you mean {near[0]}?" if near else ""
    )


def _short(shown: str) -> str:
    return shown if len(shown) <= _VALUE_MAX else f"{shown[: _VALUE_MAX - 3]}..."
