"""Signed notes and checkpoints: a text, a blank line, one or more Ed25519 signatures.

Source: C2SP signed-note and tlog-checkpoint. Parsing is strict (UTF-8, no control characters, base64
only in its canonical form), so that a note has one spelling and every flipped bit is seen.
"""

import base64
import binascii
import hashlib
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_ED25519 = b"\x01"
_KEY_ID_BYTES = 4
SIGNATURES_MAX = 100
"""A note with more is refused; C2SP asks for at least 16."""


class NoteError(ValueError):
    """The note, or the key, is not what it must be; the message says why."""


class VerifierKey(NamedTuple):
    """A name and the raw Ed25519 public key that signs under it."""

    name: str
    public_key: bytes

    @property
    def key_id(self) -> bytes:
        """The four bytes that name the key, beside its name, in a signature."""
        digest = hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public_key).digest()
        return digest[:_KEY_ID_BYTES]

    def __str__(self) -> str:
        """Return the vkey string: name, key id, type and key."""
        return f"{self.name}+{self.key_id.hex()}+{encode_base64(_ED25519 + self.public_key)}"


class Signature(NamedTuple):
    """A signature line: who signed, and with what."""

    name: str
    key_id: bytes
    signature: bytes


class Note(NamedTuple):
    """A note as it was parsed; the text is worth nothing before `verify`."""

    text: str
    signatures: tuple[Signature, ...]

    def verify(self, key: VerifierKey) -> None:
        """Return when the key signed the text. Signatures by other keys are ignored.

        Raises:
            NoteError: the key did not sign, or a signature of the key's does not hold.
        """
        by_key = [s for s in self.signatures if s.name == key.name and s.key_id == key.key_id]
        if not by_key:
            found = ", ".join(f"{s.name}+{s.key_id.hex()}" for s in self.signatures)
            raise NoteError(f"signed by {found}; a signature by {key.name}+{key.key_id.hex()} is wanted")
        public_key = Ed25519PublicKey.from_public_bytes(key.public_key)
        for signature in by_key:
            try:
                public_key.verify(signature.signature, self.text.encode())
            except InvalidSignature:
                raise NoteError(f"the signature by {key.name}+{key.key_id.hex()} does not hold") from None


class Checkpoint(NamedTuple):
    """A tree head: whose log, how many entries, the root over them. `extensions` are opaque."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the text that is signed."""
        return "".join(
            f"{line}\n" for line in (self.origin, self.size, encode_base64(self.root), *self.extensions)
        )


def parse_verifier_key(text: str) -> VerifierKey:
    """Return the key of a vkey string, `name+id+base64(type, key)`.

    Raises:
        NoteError: it is malformed, of another type than Ed25519, or its id is not the key's.
    """
    name, _, rest = text.partition("+")
    key_id, _, encoded = rest.partition("+")
    _check_name(name)
    data = decode_base64(encoded)
    if data[:1] != _ED25519 or len(data) != 33:
        raise NoteError(f"vkey {text!r}: a key of type 01 (Ed25519) and 32 bytes is wanted")
    key = VerifierKey(name, data[1:])
    if key.key_id.hex() != key_id:
        raise NoteError(f"vkey {text!r}: the id {key_id!r} is not the key's, which is {key.key_id.hex()!r}")
    return key


def verifier_key(name: str, key: Ed25519PrivateKey) -> VerifierKey:
    """Return what verifies the notes that `key` signs under `name`.

    Raises:
        NoteError: the name is empty or holds a space, a plus or a control character.
    """
    _check_name(name)
    return VerifierKey(name, key.public_key().public_bytes_raw())


def sign(text: str, name: str, key: Ed25519PrivateKey) -> bytes:
    """Return the note: the text with one signature by `key` under `name`.

    Raises:
        NoteError: the text does not end in a newline or holds control characters, or the name is wrong.
    """
    key_id = verifier_key(name, key).key_id
    line = f"— {name} {encode_base64(key_id + key.sign(text.encode()))}\n"
    note = f"{text}\n{line}".encode()
    # What cannot be read back must not be signed.
    parse(note)
    return note


def parse(data: bytes) -> Note:
    """Return the note; nobody has verified it yet.

    Raises:
        NoteError: it is malformed; the message says where.
    """
    try:
        whole = data.decode()
    except UnicodeDecodeError as error:
        raise NoteError(f"no UTF-8 at byte {error.start}") from None
    if any(c < " " and c != "\n" for c in whole):
        raise NoteError("a control character; only newlines are allowed")
    text, blank, tail = whole.rpartition("\n\n")
    if not blank or not tail.endswith("\n"):
        raise NoteError("no signatures after a blank line")
    lines = tail[:-1].split("\n")
    if len(lines) > SIGNATURES_MAX:
        raise NoteError(f"{len(lines)} signatures; at most {SIGNATURES_MAX} are allowed")
    return Note(text + "\n", tuple(_parse_signature(line) for line in lines))


def parse_checkpoint(text: str) -> Checkpoint:
    """Return the checkpoint of a note's text.

    Raises:
        NoteError: it is malformed; the message names the line.
    """
    lines = text.removesuffix("\n").split("\n")
    if len(lines) < 3 or not all(lines):
        raise NoteError("a checkpoint has at least three lines, none empty: origin, size, root")
    origin, size, root, *extensions = lines
    return Checkpoint(origin, parse_count("size", size), decode_hash("root", root), tuple(extensions))


def parse_count(name: str, text: str) -> int:
    """Return a number below 2^63 written in decimal without leading zeros.

    Raises:
        NoteError: it is written otherwise.
    """
    if not (
        text.isascii() and text.isdigit() and len(text) < 20 and str(int(text)) == text and int(text) < 2**63
    ):
        raise NoteError(f"{name} {text[:40]!r}: a decimal number below 2^63 without leading zeros is wanted")
    return int(text)


def decode_hash(name: str, text: str) -> bytes:
    """Return a hash of 32 bytes from canonical base64.

    Raises:
        NoteError: it is none.
    """
    data = decode_base64(text)
    if len(data) != 32:
        raise NoteError(f"{name} {text[:60]!r}: 32 bytes in base64 are wanted")
    return data


def encode_base64(data: bytes) -> str:
    """Return the canonical base64 of RFC 4648, section 4."""
    return base64.b64encode(data).decode()


def decode_base64(text: str) -> bytes:
    """Return the bytes of canonical base64.

    Raises:
        NoteError: it is no base64, or one that no encoder writes.
    """
    try:
        data = base64.b64decode(text.encode(), validate=True)
    except binascii.Error:
        data = b""
    # A decoder overlooks bits beyond the last byte; an encoder leaves them zero.
    if not data or encode_base64(data) != text:
        raise NoteError(f"{text[:60]!r} is no canonical base64")
    return data


def _check_name(name: str) -> None:
    if not name or any(c == "+" or c < " " or c.isspace() for c in name):
        raise NoteError(f"key name {name!r}: at least one character, no spaces, no plus is wanted")


def _parse_signature(line: str) -> Signature:
    dash, _, rest = line.partition(" ")
    name, _, encoded = rest.partition(" ")
    if dash != "—":
        raise NoteError(f"signature line {line[:60]!r}: a dash, a name and base64 are wanted")
    _check_name(name)
    data = decode_base64(encoded)
    if len(data) <= _KEY_ID_BYTES:
        raise NoteError(f"signature line {line[:60]!r}: a key id and a signature are wanted")
    return Signature(name, data[:_KEY_ID_BYTES], data[_KEY_ID_BYTES:])
