"""The proof of the main job: an export, verified by a user who cannot read the exchange's folders."""

import os
import pwd
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from gateway.demo.programs import Program, Programs

# Gives up root after what it needs is loaded: the user it becomes may not reach the interpreter's files.
# A first call, on no folder, loads what is only imported when it is used.
_AS_OTHER_USER = """
import contextlib, io, os, sys
from settlement.audit.verify import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    main([os.devnull, *sys.argv[4:]])
os.setgroups([])
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[2]))
sys.exit(main(sys.argv[3:]))
"""
OTHER_USER = "nobody"


async def prove(programs: Programs, exchange: Path, vkey: str, keep: Path, seed: int) -> dict[str, Any]:
    """Export, verify, and verify a copy with one flipped byte; the export is kept in `keep`."""
    with tempfile.TemporaryDirectory(prefix="cux-export-") as parent:
        place = Path(parent)
        out, tampered = place / "export", place / "tampered"
        await programs.finish(
            programs.cux("audit export", "audit", "export", str(out), "--folder", str(exchange), "--json")
        )
        _let_others_read(place)
        shutil.copytree(out, tampered)
        flipped = flip_one_bit(tampered, random.Random(seed))
        verifiers = [_verifier(programs, folder, vkey) for folder in (out, tampered)]
        for verifier in verifiers:
            await programs.output(verifier)
        shutil.move(out, keep)
    verified, refused = (verifier.returncode for verifier in verifiers)
    return {
        "audit_verified": verified == 0,
        "tampered_refused": refused == 1,
        "tampered_file": flipped,
        "verified_as": OTHER_USER if os.getuid() == 0 else "the same user: only root can become another",
    }


def _let_others_read(place: Path) -> None:
    for path in (place, *place.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _verifier(programs: Programs, folder: Path, vkey: str) -> Program:
    if os.getuid() == 0:
        other = pwd.getpwnam(OTHER_USER)
        command = [sys.executable, "-c", _AS_OTHER_USER, str(other.pw_gid), str(other.pw_uid)]
    else:
        command = [sys.executable, "-m", "settlement.audit.verify"]
    return programs.start(f"cux-verify {folder.name}", [*command, str(folder), "--vkey", vkey, "--json"])


def flip_one_bit(folder: Path, draw: random.Random) -> str:
    """Flip a bit of a byte of a file below the folder and return the file's path in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    chosen = draw.choice(files)
    data = bytearray(chosen.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    chosen.write_bytes(data)
    return str(chosen.relative_to(folder))
