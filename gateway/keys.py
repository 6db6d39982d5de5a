"""Ed25519 keys in files: the raw seed as hex, readable by their owner only."""

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from exchange.folder import FolderError


def new_key(path: Path) -> Ed25519PrivateKey:
    """Make a key and write it.

    Raises:
        FolderError: the file is there already.
    """
    key = Ed25519PrivateKey.generate()
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise FolderError(f"{path} is there already; a key is never overwritten") from None
    with os.fdopen(file, "w") as out:
        out.write(key.private_bytes_raw().hex() + "\n")
    return key


def read_key(path: Path) -> Ed25519PrivateKey:
    """Return the key of a file.

    Raises:
        FolderError: there is none, or it is no key.
    """
    try:
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text().strip()))
    except OSError as error:
        raise FolderError(f"no key at {path}: {error.strerror}") from None
    except ValueError:
        raise FolderError(f"{path} holds no key: 64 hexadecimal digits are wanted") from None
