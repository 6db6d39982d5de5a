"""Which build of the engine runs: compiled by mypyc, or the same modules interpreted.

What is compiled lies in a folder named after the digest of its sources. So an older build never hides an
edited module: until `make build` has compiled it again, it runs interpreted, and `cux version` says so.
"""

import hashlib
import os
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

RULES = (
    "auction",
    "blocks",
    "book",
    "calls",
    "contract",
    "eligibility",
    "engine",
    "entry",
    "funds",
    "hourly",
    "market",
    "matching",
    "order",
    "registry",
    "slots",
    "standing",
    "state",
)
"""The modules that decide."""

PASSAGE = ("desk", "packing", "sequencer")
"""The modules that every command passes on its way to the engine and to the log; they decide nothing."""

COMPILED_MODULES = RULES + PASSAGE

SETTING = "CUX_ENGINE"
COMPILED, INTERPRETED = "compiled", "interpreted"
_PACKAGE = Path(__file__).parent


def rules_digest() -> bytes:
    """Return the SHA-256 of the source of the modules that decide, whichever build runs."""
    return hashlib.sha256(b"".join((_PACKAGE / f"{name}.py").read_bytes() for name in RULES)).digest()


def build_folder() -> Path:
    """Return where a build of this very source for this Python lies, or would lie."""
    digest = hashlib.sha256()
    # What is compiled relies on the types of the words too.
    words = sorted((_PACKAGE.parent / "schemas").glob("*.py"))
    for path in (*(_PACKAGE / f"{name}.py" for name in COMPILED_MODULES), *words):
        digest.update(path.read_bytes())
    return _PACKAGE / "__compiled__" / f"{sysconfig.get_config_var('SOABI')}-{digest.hexdigest()[:16]}"


def choose_build(search_path: list[str]) -> str:
    """Return which build will run, after putting a compiled one first in the package's search path.

    `CUX_ENGINE` set to `compiled` refuses to run without one, set to `interpreted` to run with one.

    Raises:
        ImportError: there is no such build, or a compiled module lies where `make build` puts none.
    """
    wanted = os.environ.get(SETTING, "")
    if wanted not in {"", COMPILED, INTERPRETED}:
        raise ImportError(f"{SETTING} is {wanted!r}: {COMPILED} or {INTERPRETED} is allowed")
    for name in COMPILED_MODULES:
        for suffix in EXTENSION_SUFFIXES:
            if (hiding := _PACKAGE / f"{name}{suffix}").exists():
                raise ImportError(f"{hiding} hides {name}.py, whatever it was made of: run `make clean`")
    folder = build_folder()
    if wanted != INTERPRETED and folder.is_dir():
        search_path.insert(0, str(folder))
        return COMPILED
    if wanted == COMPILED:
        raise ImportError("the engine is not compiled from its sources as they stand: run `make build`")
    return INTERPRETED
