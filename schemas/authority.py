"""Operators' signatures: made where the key is, checked at the door and again by a verifier."""

from typing import TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec.structs import replace

from schemas.codec import signed_bytes
from schemas.commands import Authority, OperatorCommand

C = TypeVar("C", bound=OperatorCommand)


def signed(command: C, key: Ed25519PrivateKey, signed_ns: int, reason: str) -> C:
    """Return the command with the authority of `key`."""
    unsigned = replace(command, authority=Authority(key.public_key().public_bytes_raw(), signed_ns, reason))
    assert unsigned.authority is not None
    signature = key.sign(signed_bytes(unsigned))
    return replace(unsigned, authority=replace(unsigned.authority, signature=signature))


def signature_holds(command: OperatorCommand) -> bool:
    """Say whether the command carries a signature by the key that it names."""
    if command.authority is None:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(command.authority.key).verify(
            command.authority.signature, signed_bytes(command)
        )
    except InvalidSignature:
        return False
    return True
