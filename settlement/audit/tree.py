"""The audit tree: RFC 6962 over the log's entries, laid out in C2SP tlog-tiles.

A tile holds up to 256 hashes of one level; a hash of level L stands for 256^L entries. Beside the tiles
of level 0 stand bundles of the entries themselves, each with its length before it (uint16, big-endian).
"""

import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from schemas.records import root_of

TILE_WIDTH = 256
HASH_BYTES = 32
CHECKPOINT = "checkpoint"
ENTRIES = "entries"

_LENGTH = struct.Struct(">H")


class TreeError(Exception):
    """The tiles are not those of the tree; the message names the file, what was expected and found."""


def leaf_hash(entry: bytes) -> bytes:
    """Return the RFC 6962 leaf hash of an entry."""
    return hashlib.sha256(b"\x00" + entry).digest()


def tile_path(level: int | str, index: int, width: int = TILE_WIDTH) -> str:
    """Return a tile's path, relative to the log; `level` is a number or `ENTRIES`."""
    text = f"{index % 1000:03d}"
    while index := index // 1000:
        text = f"x{index % 1000:03d}/{text}"
    return f"tile/{level}/{text}" + (f".p/{width}" if width < TILE_WIDTH else "")


class Tree:
    """Grows by one entry at a time and hands out each file of the tlog-tiles layout once, when it is full.

    `on_file(path, data)` gets the full tiles as they fill; `finish` hands out the partial ones. Between
    entries only the right edge of the tree is held: at most 255 hashes a level.
    """

    def __init__(self, on_file: Callable[[str, bytes], None] | None = None) -> None:
        """Start with the empty tree. Without `on_file` only `size` and `root` are kept."""
        self.size = 0
        self._on_file = on_file
        self._levels: list[list[bytes]] = [[]]
        self._bundle: list[bytes] = []

    def append(self, entry: bytes) -> None:
        """Add an entry of at most 65,535 bytes."""
        self.size += 1
        if self._on_file is not None:
            self._bundle += (_LENGTH.pack(len(entry)), entry)
            if self.size % TILE_WIDTH == 0:
                self._hand_out(ENTRIES, self.size // TILE_WIDTH - 1, TILE_WIDTH, self._bundle)
                self._bundle = []
        self._levels[0].append(leaf_hash(entry))
        if self.size % TILE_WIDTH == 0:
            self._carry()

    def root(self) -> bytes:
        """Return the tree's root hash."""
        if not self.size:
            return hashlib.sha256(b"").digest()
        # What lies right of a level's hashes is smaller than any of them: it joins them as one more leaf.
        rest: list[bytes] = []
        for hashes in self._levels:
            if hashes:
                rest = [root_of(hashes + rest)]
        return rest[0]

    def finish(self) -> None:
        """Hand out the partial tiles."""
        for level, hashes in enumerate(self._levels):
            if hashes:
                index = self.size // TILE_WIDTH ** (level + 1)
                self._hand_out(level, index, len(hashes), hashes)
        if self._bundle:
            self._hand_out(ENTRIES, self.size // TILE_WIDTH, self.size % TILE_WIDTH, self._bundle)

    def _carry(self) -> None:
        level = 0
        while len(self._levels[level]) == TILE_WIDTH:
            hashes = self._levels[level]
            self._hand_out(level, self.size // TILE_WIDTH ** (level + 1) - 1, TILE_WIDTH, hashes)
            self._levels[level] = []
            level += 1
            if level == len(self._levels):
                self._levels.append([])
            self._levels[level].append(root_of(hashes))

    def _hand_out(self, level: int | str, index: int, width: int, parts: list[bytes]) -> None:
        if self._on_file is not None:
            self._on_file(tile_path(level, index, width), b"".join(parts))


def parse_bundle(path: str, data: bytes) -> list[bytes]:
    """Return the entries of a bundle; `path` is for the message.

    Raises:
        TreeError: the last entry is cut short.
    """
    entries: list[bytes] = []
    at = 0
    while at < len(data):
        start = at + _LENGTH.size
        if start > len(data) or (end := start + _LENGTH.unpack_from(data, at)[0]) > len(data):
            raise TreeError(f"{path}: entry {len(entries)} is cut short at byte {len(data)}")
        entries.append(data[start:end])
        at = end
    return entries


class TileReader:
    """Reads a log in a folder of tiles and holds every file of them against the tree.

    A log that has grown since its checkpoint keeps partial tiles of other sizes, and may have dropped a
    partial tile for the full one; all of them must agree as far as they say the same.
    """

    def __init__(self, folder: Path, size: int) -> None:
        """Look into the folder for a tree of `size` entries; nothing is read yet."""
        self._folder = folder
        self._size = size
        self.checked: set[str] = set()

    def entries(self) -> Iterator[bytes]:
        """Yield the entries in order.

        Raises:
            TreeError: a bundle is missing, or is not made of as many whole entries as it must hold.
        """
        for index in range(-(-self._size // TILE_WIDTH)):
            wanted = min(TILE_WIDTH, self._size - index * TILE_WIDTH)
            bundles = {
                width: (path, parse_bundle(path, data))
                for width, path, data in self._versions(tile_path(ENTRIES, index), wanted)
            }
            for width, (path, entries) in bundles.items():
                if len(entries) != width:
                    raise TreeError(f"{path}: {len(entries)} entries found, {width} expected")
            entries = (bundles.get(wanted) or bundles[TILE_WIDTH])[1][:wanted]
            for path, others in bundles.values():
                for at, (entry, other) in enumerate(zip(entries, others, strict=False)):
                    if entry != other:
                        raise _differs(path, "entry", at, other, entry)
            yield from entries

    def check(self, path: str, data: bytes) -> None:
        """Compare a tile as the tree hands it out with what stands in the folder.

        Raises:
            TreeError: the file is missing or differs.
        """
        if path.startswith(f"tile/{ENTRIES}/"):
            # These bytes were read here: taken apart by `entries` and put together by the tree.
            return
        for width, found_path, found in self._versions(path.partition(".p/")[0], len(data) // HASH_BYTES):
            if len(found) != width * HASH_BYTES:
                raise TreeError(f"{found_path}: {len(found)} bytes found, {width * HASH_BYTES} expected")
            for at in range(0, min(len(data), len(found)), HASH_BYTES):
                if found[at : at + HASH_BYTES] != data[at : at + HASH_BYTES]:
                    raise _differs(
                        found_path,
                        "hash",
                        at // HASH_BYTES,
                        found[at : at + HASH_BYTES],
                        data[at : at + HASH_BYTES],
                    )

    def _versions(self, path: str, wanted: int) -> list[tuple[int, str, bytes]]:
        """Return width, path and bytes of each file of a tile: full, and partial of any width."""
        versions = []
        partial = self._folder / f"{path}.p"
        names = os.listdir(partial) if partial.is_dir() else []
        widths = [width for width in range(1, TILE_WIDTH) if str(width) in names]
        if (self._folder / path).is_file():
            widths.append(TILE_WIDTH)
        if wanted not in widths and TILE_WIDTH not in widths:
            raise TreeError(f"{path}{'' if wanted == TILE_WIDTH else f'.p/{wanted}'} is missing")
        for width in widths:
            name = path if width == TILE_WIDTH else f"{path}.p/{width}"
            versions.append((width, name, (self._folder / name).read_bytes()))
            self.checked.add(name)
        return versions


def _differs(path: str, what: str, index: int, found: bytes, expected: bytes) -> TreeError:
    return TreeError(f"{path}, {what} {index}: found {found.hex()}, expected {expected.hex()}")
