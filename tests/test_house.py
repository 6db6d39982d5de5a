"""The house stands as its READMEs say: floors, modules, commands, purity."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from exchange.build import RULES
from gateway.cli.app import app

ROOT = Path(__file__).parent.parent
FLOORS = ("schemas", "exchange", "settlement", "gateway")
PURE = (*RULES, "clearing", "depth", "invariants", "quantity")
IMPURE_MODULES = {"asyncio", "datetime.now", "numpy", "os", "random", "secrets", "socket", "time", "uuid"}
READMES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_imports_only_from_those_below_it(floor: str) -> None:
    above = FLOORS[FLOORS.index(floor) + 1 :]
    for path in (ROOT / floor).rglob("*.py"):
        wrong = [name for name in imported(path) if name.split(".")[0] in (*above, "tests", "benchmarks")]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


@pytest.mark.parametrize("module", PURE)
def test_what_decides_has_no_clock_no_chance_and_no_io(module: str) -> None:
    path = ROOT / "exchange" / f"{module}.py"
    assert not IMPURE_MODULES & set(imported(path))
    source = path.read_text()
    assert not re.search(r"\bfloat\(|\bhash\(|\bopen\(|\.now\(|: float\b", source)
    for node in ast.walk(ast.parse(source)):
        assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), f"{path}: a float"
        assert not isinstance(node, ast.Set | ast.SetComp), (
            f"{path}: a set, whose order is not the same everywhere"
        )


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_a_readme_names_exists(readme: Path) -> None:
    text = readme.read_text()
    for name in re.findall(r"`((?:schemas|exchange|settlement|gateway|tests|benchmarks)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), f"{readme.name} names {name}"
    for name in re.findall(r"`((?:schemas|exchange|settlement|gateway)(?:\.[a-z_]\w*)+)", text):
        assert any(_is_module(name.split(".")[:length]) for length in (2, 3, 4)), (
            f"{readme.name} names {name}"
        )


def _is_module(parts: list[str]) -> bool:
    path = ROOT.joinpath(*parts)
    return len(parts) > 1 and (path.with_suffix(".py").exists() or (path / "__init__.py").exists())


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_a_readme_shows_exists(readme: Path) -> None:
    root = typer.main.get_command(app)
    for line in re.findall(r"^(?:\$ )?(cux [a-z].*)$", readme.read_text(), re.MULTILINE):
        command, words = root, line.split()[1:]
        while words and hasattr(command, "commands"):
            assert words[0] in command.commands, f"{readme.name}: {line}"
            command = command.commands[words.pop(0)]
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(
        r"\bmake ([a-z][\w-]*)",
        "\n".join(re.findall(r"`[^`\n]+`|^make .*$", readme.read_text(), re.MULTILINE)),
    ):
        assert target in targets, f"{readme.name}: make {target}"


def test_no_machine_and_no_registry_is_named() -> None:
    pattern = re.compile(
        r"/(?:work|farm)/|(?:pypi|npmjs|debian)\.(?:org|com)/(?:simple|debian)|index-url|find-links"
    )
    for path in ROOT.rglob("*"):
        inside = path.relative_to(ROOT).parts
        if any(part.startswith(".") and part not in {".ci", ".pre-commit-config.yaml"} for part in inside):
            continue
        if (
            path.is_file()
            and path.suffix in {".py", ".md", ".toml", ".txt", ".sql", ".yaml", ""}
            and path != Path(__file__)
        ):
            assert not pattern.search(path.read_text(errors="ignore").replace("--no-emit-index-url", "")), (
                path
            )
