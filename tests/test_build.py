"""Which build of the engine runs is known, and both builds are the same engine."""

import ast
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

import exchange
from exchange.build import COMPILED, COMPILED_MODULES, INTERPRETED, RULES, SETTING
from exchange.engine import ENGINE_DIGEST
from schemas.codec import encode
from tests.test_engine_properties import VENUES, Flow, any_step

# Compiling takes a minute, and more on a busy machine.
pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parent.parent
NO_COMPILER = "/bin/false"
WHICH = "import exchange, exchange.engine as e; print(exchange.ENGINE_BUILD, e.__file__)"
REPLAY = """
import hashlib, pathlib, sys
import msgspec
import exchange
from exchange.engine import ENGINE_DIGEST, Engine
from exchange.packing import packed, unpacked
from exchange.slots import taken
from schemas.codec import decode_command

told = hashlib.sha256()
for commands in msgspec.msgpack.decode(pathlib.Path(sys.argv[1]).read_bytes()):
    engine = Engine()
    for time_ns, command in commands:
        for event in engine.execute(time_ns, unpacked(command) or taken(decode_command(command))):
            told.update(packed(event))
        told.update(engine.state_hash())
print(exchange.ENGINE_BUILD, told.hexdigest(), ENGINE_DIGEST.hex())
"""


class Copy(NamedTuple):
    """The sources in a folder of their own."""

    folder: Path

    def python(self, *arguments: str, program: str = sys.executable, **settings: str) -> "Said":
        """Run Python in the folder, which comes before all that is installed."""
        inherited = {name: value for name, value in os.environ.items() if name != SETTING}
        environment = {**inherited, "PYTHONPATH": str(self.folder), **settings}
        command = [program, *arguments]
        run = subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=self.folder, env=environment
        )
        return Said(run.returncode, run.stdout.strip(), run.stderr)

    def build(self, **settings: str) -> "Said":
        return self.python("setup.py", "-q", "build_ext", "--inplace", **settings)


class Said(NamedTuple):
    code: int
    out: str
    error: str


def copy_to(folder: Path) -> Copy:
    for name in ("schemas", "exchange"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return Copy(folder)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """The sources, compiled where that can be."""
    made = copy_to(tmp_path_factory.mktemp("built"))
    built = made.build()
    assert built.code == 0, built.error
    return made


@pytest.fixture
def compiled(copy: Copy) -> Copy:
    if not (copy.folder / "exchange" / "__compiled__").exists():
        pytest.skip("no C compiler with Python's headers here")
    return copy


@pytest.fixture
def bare(tmp_path: Path) -> Copy:
    """The sources and no build."""
    made = copy_to(tmp_path)
    shutil.rmtree(tmp_path / "exchange" / "__compiled__", ignore_errors=True)
    return made


def imported_rules(name: str) -> Iterator[str]:
    for node in ast.walk(ast.parse((ROOT / "exchange" / f"{name}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "exchange":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("exchange."):
            yield node.module.removeprefix("exchange.")


def test_every_module_that_the_engine_rests_on_is_compiled_and_in_its_digest() -> None:
    # They say which build runs and what must hold, and decide nothing.
    found, beside = {"engine"}, {"build", "invariants"}
    while more := {name for known in found for name in imported_rules(known)} - found - beside:
        found |= more
    assert found == set(RULES)
    assert list(RULES) == sorted(RULES)


def test_the_build_that_is_said_to_run_runs() -> None:
    for name in COMPILED_MODULES:
        module = sys.modules.get(f"exchange.{name}")
        if module is not None:
            assert module.__file__ is not None
            runs = INTERPRETED if module.__file__.endswith(".py") else COMPILED
            assert runs == exchange.ENGINE_BUILD, name


def test_where_a_compiler_is_the_compiled_engine_runs(compiled: Copy) -> None:
    build, file = compiled.python("-c", WHICH).out.split()
    assert build == COMPILED
    assert "__compiled__" in file
    assert compiled.python("-c", WHICH, **{SETTING: INTERPRETED}).out.split()[0] == INTERPRETED


def test_without_a_compiler_the_engine_is_installed_and_runs_interpreted(bare: Copy) -> None:
    built = bare.build(CC=NO_COMPILER)
    assert built.code == 0
    assert "the engine runs interpreted" in built.error
    assert bare.python("-c", WHICH).out == f"{INTERPRETED} {bare.folder}/exchange/engine.py"


def test_what_does_not_compile_fails_where_a_compiler_is(bare: Copy, compiled: Copy) -> None:
    with (bare.folder / "exchange" / "order.py").open("a") as source:
        source.write('\nWRONG: int = "a text"\n')
    assert bare.build().code != 0
    assert not list((bare.folder / "exchange" / "__compiled__").iterdir())
    assert bare.build(**{SETTING: INTERPRETED}).code == 0


@pytest.mark.parametrize("edited", ["exchange/order.py", "schemas/events.py"])
def test_an_older_build_never_runs_in_place_of_an_edited_source(compiled: Copy, edited: str) -> None:
    path = compiled.folder / edited
    source = path.read_bytes()
    try:
        path.write_bytes(source + b"# edited\n")
        assert compiled.python("-c", WHICH).out == f"{INTERPRETED} {compiled.folder}/exchange/engine.py"
        refused = compiled.python("-c", WHICH, **{SETTING: COMPILED})
        assert refused.error.splitlines()[-1] == (
            "ImportError: the engine is not compiled from its sources as they stand: run `make build`"
        )
    finally:
        path.write_bytes(source)
    assert compiled.python("-c", WHICH, **{SETTING: COMPILED}).code == 0


def test_a_build_that_lies_beside_its_source_is_refused(compiled: Copy) -> None:
    (shim, *_) = (compiled.folder / "exchange" / "__compiled__").glob("*/order.*")
    hiding = compiled.folder / "exchange" / shim.name
    shutil.copy(shim, hiding)
    try:
        error = compiled.python("-c", WHICH).error.splitlines()[-1]
        assert error == f"ImportError: {hiding} hides order.py, whatever it was made of: run `make clean`"
    finally:
        hiding.unlink()


def test_a_setting_that_is_none_is_refused_in_words(copy: Copy) -> None:
    error = copy.python("-c", WHICH, **{SETTING: "fast"}).error.splitlines()[-1]
    assert error == "ImportError: CUX_ENGINE is 'fast': compiled or interpreted is allowed"


@pytest.fixture(scope="module")
def flows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Commands of some long days in which everything happens."""
    days = []
    for seed, venue in enumerate(VENUES):
        flow = Flow(venue)
        choose = random.Random(seed).choice
        for _ in range(200):
            flow.do(any_step(choose))
        days.append([(record.time_ns, encode(record.command)) for record in flow.records])
    path = tmp_path_factory.mktemp("flows") / "commands"
    path.write_bytes(msgspec.msgpack.encode(days))
    return path


@pytest.fixture(scope="module")
def expected(copy: Copy, flows: Path) -> list[str]:
    """Digests of all events and states, and of the source, as this Python interprets it."""
    said = copy.python("-c", REPLAY, str(flows), **{SETTING: INTERPRETED})
    build, *digests = said.out.split()
    assert build == INTERPRETED, said.error
    assert digests[1] == ENGINE_DIGEST.hex()
    return digests


def test_compiled_and_interpreted_give_the_same_bytes(
    compiled: Copy, flows: Path, expected: list[str]
) -> None:
    said = compiled.python("-c", REPLAY, str(flows))
    assert said.out.split() == [COMPILED, *expected], said.error


@pytest.mark.parametrize("name", ["python3.11", "python3.12", "python3.13", "python3.14"])
def test_every_python_gives_the_same_bytes(copy: Copy, flows: Path, expected: list[str], name: str) -> None:
    program = shutil.which(name)
    if program is None or copy.python("-c", "", program=program).code:
        pytest.skip(f"{name} is not here")
    said = copy.python("-c", REPLAY, str(flows), program=program, **{SETTING: INTERPRETED})
    if said.code and "ModuleNotFoundError" in (fault := said.error.splitlines()[-1]):
        pytest.skip(f"{name} lacks a package: {fault}")
    assert said.out.split() == [INTERPRETED, *expected], said.error
