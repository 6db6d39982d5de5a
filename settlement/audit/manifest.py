"""What an export consists of, and its manifest: whose log, which rules, every file's size and SHA-256.

The manifest is a signed note. Its second line is no number, so that nobody can take it for a checkpoint.
"""

from typing import NamedTuple

import msgspec

from schemas.venue import Venue
from settlement.audit.note import NoteError, parse_count

MANIFEST = "manifest"
VENUE = "venue.json"
RECORDS_PER_FILE = 10_000
FORM = "cux audit export 1"
_FIELDS = ("origin", "rules", "protocol", "release", "engine", "codec", "records")


class ListedFile(NamedTuple):
    """A file of the export; `sha256` is in hexadecimal."""

    sha256: str
    size: int


class Manifest(NamedTuple):
    """What an export says of itself. `release` is the version of CUX that made it and verifies it."""

    origin: str
    rules: str
    protocol: str
    release: str
    engine: str
    codec: str
    records: int
    files: dict[str, ListedFile]

    def text(self) -> str:
        """Return the text that is signed: the form, a line for each field, a line for each file."""
        lines = [FORM, *(f"{name} {getattr(self, name)}" for name in _FIELDS)]
        lines += [f"file {file.sha256} {file.size} {path}" for path, file in sorted(self.files.items())]
        return "".join(f"{line}\n" for line in lines)


def records_path(first: int) -> str:
    """Return the path of the file whose first record has this sequence number."""
    return f"records/{(first - 1) // RECORDS_PER_FILE:06d}.msgpack"


def table_path(name: str) -> str:
    """Return the path of a table."""
    return f"tables/{name}.csv"


def venue_json(venue: Venue) -> bytes:
    """Return the catalogue as people read it."""
    return msgspec.json.format(msgspec.json.encode(venue), indent=1) + b"\n"


def parse_manifest(text: str) -> Manifest:
    """Return the manifest of a note's text.

    Raises:
        NoteError: it is malformed; the message names the line.
    """
    form, *lines = text.removesuffix("\n").split("\n")
    if form != FORM:
        raise NoteError(f"manifest of form {form[:60]!r}; {FORM!r} is what this verifier reads")
    fields = []
    for name, line in zip(_FIELDS, lines, strict=False):
        found, _, value = line.partition(" ")
        if found != name or not value:
            raise NoteError(f"manifest line {line[:60]!r}: {name} and its value are wanted")
        fields.append(value)
    if len(fields) < len(_FIELDS):
        raise NoteError(f"manifest without {_FIELDS[len(fields)]}")
    files: dict[str, ListedFile] = {}
    for line in lines[len(_FIELDS) :]:
        parts = line.split(" ", 3)
        if len(parts) != 4 or parts[0] != "file" or len(parts[1]) != 64 or parts[3] in files:
            raise NoteError(f"manifest line {line[:60]!r}: file, SHA-256, size and a new path are wanted")
        files[parts[3]] = ListedFile(parts[1], parse_count("size", parts[2]))
    origin, rules, protocol, release, engine, codec, records = fields
    return Manifest(origin, rules, protocol, release, engine, codec, parse_count("records", records), files)
