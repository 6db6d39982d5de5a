"""Notes, checkpoints and the tree, against the published vectors and against any change of a byte."""

import random
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from settlement.audit.note import (
    Checkpoint,
    NoteError,
    parse,
    parse_checkpoint,
    parse_verifier_key,
    sign,
    verifier_key,
)
from settlement.audit.tree import Tree, leaf_hash, tile_path
from settlement.audit.verify import main

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ORIGIN = "log.example/test"
VKEY = str(verifier_key(ORIGIN, KEY))

LEAVES = [
    bytes.fromhex(leaf)
    for leaf in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = (
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
"""The leaves and roots, by tree size, with which implementations of RFC 6962 are commonly tested."""

# The reference vectors of the note format: its own specification's, and those of its Go package.
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETERS_NOTE = (
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n\n"
    "— PeterNeumann "
    "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
).encode()


def write_log(folder: Path, entries: list[bytes], upto: int | None = None) -> None:
    """Write a tlog-tiles log; with `upto`, let it have been published at that size before."""

    def write(path: str, data: bytes) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)

    tree = Tree(write)
    for entry in entries:
        tree.append(entry)
        if tree.size == upto:
            tree.finish()
    tree.finish()
    text = Checkpoint(ORIGIN, tree.size, tree.root()).text()
    (folder / "checkpoint").write_bytes(sign(text, ORIGIN, KEY))


def naive_root(hashes: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, word by word."""
    from hashlib import sha256

    if not hashes:
        return sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    k = 1
    while k * 2 < len(hashes):
        k *= 2
    return sha256(b"\x01" + naive_root(hashes[:k]) + naive_root(hashes[k:])).digest()


@pytest.mark.parametrize("size", range(9))
def test_roots_are_those_of_the_published_vectors(size: int) -> None:
    tree = Tree()
    for leaf in LEAVES[:size]:
        tree.append(leaf)
    assert tree.root().hex() == ROOTS[size]


@pytest.mark.parametrize("size", [255, 256, 257, 511, 512, 600, 65_535, 65_536, 65_537])
def test_roots_over_several_levels_of_tiles_are_those_of_the_definition(size: int) -> None:
    tree = Tree()
    entries = [number.to_bytes(4, "big") for number in range(size)]
    for entry in entries:
        tree.append(entry)
    assert tree.root() == naive_root([leaf_hash(entry) for entry in entries])


def test_a_tree_has_the_tiles_of_the_specifications_example() -> None:
    widths: dict[str, int] = {}
    tree = Tree(lambda path, data: widths.__setitem__(path, len(data)))
    for number in range(70_000):
        tree.append(number.to_bytes(4, "big"))
    tree.finish()
    hashes = {path: size for path, size in widths.items() if "entries" not in path}
    assert hashes == {
        **{tile_path(0, index): 8192 for index in range(273)},
        "tile/0/273.p/112": 112 * 32,
        "tile/1/000": 8192,
        "tile/1/001.p/17": 17 * 32,
        "tile/2/000.p/1": 32,
    }
    assert widths["tile/entries/000"] == 256 * 6
    assert widths["tile/entries/273.p/112"] == 112 * 6


def test_a_tree_of_one_full_tile_has_a_partial_tile_above() -> None:
    paths = []
    tree = Tree(lambda path, _: paths.append(path))
    for number in range(256):
        tree.append(bytes([number]))
    tree.finish()
    assert paths == ["tile/entries/000", "tile/0/000", "tile/1/000.p/1"]


def test_a_tiles_index_is_spelt_in_groups_of_three_digits() -> None:
    assert tile_path(0, 1_234_067) == "tile/0/x001/x234/067"
    assert tile_path("entries", 1000, 7) == "tile/entries/x001/000.p/7"


def test_a_note_of_the_reference_implementation_verifies() -> None:
    parse(PETERS_NOTE).verify(parse_verifier_key(PETER))
    assert str(parse_verifier_key(PETER)) == PETER


def test_every_flipped_bit_of_a_note_is_refused() -> None:
    key = parse_verifier_key(PETER)
    for bit in range(len(PETERS_NOTE) * 8):
        mutated = bytearray(PETERS_NOTE)
        mutated[bit // 8] ^= 1 << bit % 8
        with pytest.raises(NoteError):
            parse(bytes(mutated)).verify(key)


def test_every_flipped_bit_of_a_key_is_refused() -> None:
    for bit in range(len(VKEY) * 8):
        mutated = bytearray(VKEY.encode())
        mutated[bit // 8] ^= 1 << bit % 8
        try:
            text = mutated.decode()
        except UnicodeDecodeError:
            continue
        with pytest.raises(NoteError):
            parse_verifier_key(text)


def test_a_note_may_carry_signatures_of_others() -> None:
    other = sign("text\n", "witness.example", Ed25519PrivateKey.generate())
    note = sign("text\n", ORIGIN, KEY) + other.rpartition(b"\n\n")[2]
    parse(note).verify(verifier_key(ORIGIN, KEY))


def test_a_note_signed_by_another_key_of_the_same_name_is_refused() -> None:
    note = sign("text\n", ORIGIN, Ed25519PrivateKey.generate())
    with pytest.raises(NoteError, match="is wanted"):
        parse(note).verify(verifier_key(ORIGIN, KEY))


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "a\u00a0b"])
def test_a_key_name_with_spaces_or_a_plus_is_refused(name: str) -> None:
    with pytest.raises(NoteError, match="key name"):
        sign("text\n", name, KEY)


@pytest.mark.parametrize("text", ["no newline", "a\tb\n", "a\x00\n", "\x7f\n\n\n— x AAAA"])
def test_a_text_that_could_not_be_read_back_is_not_signed(text: str) -> None:
    with pytest.raises(NoteError):
        sign(text, ORIGIN, KEY)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("origin\n5\n", "at least three lines"),
        ("origin\n05\nAAAA\n", "size '05'"),
        ("origin\n-5\nAAAA\n", "size '-5'"),
        ("origin\n٥\nAAAA\n", "size"),
        ("origin\n9223372036854775808\nAAAA\n", "below 2\\^63"),
        ("origin\n5\nAAAA\n", "root 'AAAA'"),
        (f"origin\n5\n{'A' * 42}B=\n", "canonical"),
        ("origin\n\n5\n", "none empty"),
    ],
)
def test_a_malformed_checkpoint_is_refused_by_its_line(text: str, reason: str) -> None:
    with pytest.raises(NoteError, match=reason):
        parse_checkpoint(text)


@pytest.mark.parametrize("size", [0, 1, 3, 256, 300, 70_000])
def test_a_log_of_any_size_and_entries_of_any_length_verify(size: int, tmp_path: Path) -> None:
    lengths = random.Random(size)
    write_log(tmp_path, [bytes(lengths.choice((0, 1, 48, 200))) for _ in range(size)])
    assert main(["tree", str(tmp_path), "--vkey", VKEY]) == 0


def test_the_longest_entry_verifies(tmp_path: Path) -> None:
    write_log(tmp_path, [bytes(65_535), b""])
    assert main(["tree", str(tmp_path), "--vkey", VKEY]) == 0


def test_a_log_that_has_grown_beyond_its_checkpoint_verifies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [number.to_bytes(2, "big") for number in range(1000)]
    write_log(tmp_path, entries[:300])
    checkpoint = (tmp_path / "checkpoint").read_bytes()
    write_log(tmp_path, entries)
    (tmp_path / "checkpoint").write_bytes(checkpoint)
    # The full tile is there now, so the partial one may go.
    (tmp_path / "tile/0/001.p/44").unlink()
    assert main(["tree", str(tmp_path), "--vkey", VKEY]) == 0
    assert "no part of this checkpoint's tree" in capsys.readouterr().out


def test_every_changed_byte_of_a_log_is_refused(tmp_path: Path) -> None:
    seed = 20261124
    rng = random.Random(seed)
    # Partial tiles of an earlier size stay behind; they are covered too.
    write_log(tmp_path, [rng.randbytes(rng.randrange(60)) for _ in range(700)], upto=400)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert any(path.name == "144" for path in files)
    for trial in range(300):
        path = files[trial % len(files)]
        data = path.read_bytes()
        at, change = rng.randrange(len(data)), rng.randrange(1, 256)
        path.write_bytes(data[:at] + bytes([data[at] ^ change]) + data[at + 1 :])
        where = f"seed {seed}, trial {trial}: {path.relative_to(tmp_path)} at byte {at} by {change}"
        assert main(["tree", str(tmp_path), "--vkey", VKEY]) == 1, where
        path.write_bytes(data)
    assert main(["tree", str(tmp_path), "--vkey", VKEY]) == 0


@pytest.mark.parametrize("change", ["cut", "extend", "remove"])
def test_a_log_with_a_file_cut_extended_or_missing_is_refused(change: str, tmp_path: Path) -> None:
    write_log(tmp_path, [bytes(number % 7) for number in range(600)])
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        data = path.read_bytes()
        if change == "remove":
            path.unlink()
        else:
            path.write_bytes(data[:-1] if change == "cut" else data + b"\x00")
        assert main(["tree", str(tmp_path), "--vkey", VKEY]) == 1, path
        path.write_bytes(data)


def test_the_same_log_signed_by_another_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(tmp_path, LEAVES)
    stranger = str(verifier_key(ORIGIN, Ed25519PrivateKey.generate()))
    assert main(["tree", str(tmp_path), "--vkey", stranger]) == 1
    assert "checkpoint: signed by" in capsys.readouterr().out


def test_a_log_that_continues_an_earlier_checkpoint_verifies_and_another_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [number.to_bytes(2, "big") for number in range(700)]
    for name, log in (("old", entries[:333]), ("new", entries), ("split", [b"other", *entries[1:]])):
        write_log(tmp_path / name, log)
    previous = ["--previous", str(tmp_path / "old/checkpoint")]
    assert main(["tree", str(tmp_path / "new"), "--vkey", VKEY, *previous]) == 0
    assert "begins with the 333 entries" in capsys.readouterr().out
    assert main(["tree", str(tmp_path / "split"), "--vkey", VKEY, *previous]) == 1
    assert "the first 333 entries give the root" in capsys.readouterr().out


def test_a_log_rolled_back_behind_an_earlier_checkpoint_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(tmp_path / "old", LEAVES[:3])
    write_log(tmp_path / "new", LEAVES)
    previous = ["--previous", str(tmp_path / "new/checkpoint")]
    assert main(["tree", str(tmp_path / "old"), "--vkey", VKEY, *previous]) == 1
    assert "the earlier checkpoint has 8 entries, this one 3" in capsys.readouterr().out


def test_a_wrong_call_is_told_from_a_refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_log(tmp_path, LEAVES)
    assert main(["tree", str(tmp_path / "nowhere"), "--vkey", VKEY]) == 2
    assert main(["tree", str(tmp_path), "--vkey", VKEY[:-1]]) == 2
    with pytest.raises(SystemExit) as usage:
        main(["tree", str(tmp_path)])
    assert usage.value.code == 2
    assert "--vkey" in capsys.readouterr().err
