"""Compiles the modules of the engine with mypyc, where a C compiler is; without one they run interpreted.

A build is whole or is not there at all. What fails to compile although there is a compiler fails the
installation, rather than leave a slow engine behind: `CUX_ENGINE=interpreted` installs without.
"""

import os
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.absolute()
# By its path: the package itself would look for the build that is still to be made.
BUILD = runpy.run_path(str(ROOT / "exchange" / "build.py"))
MODULES = [f"exchange/{name}.py" for name in BUILD["COMPILED_MODULES"]]
LIBRARY = "exchange.rules"
# Nobody puts another function in one of ours' place: so they may call and inline one another directly.
FLAGS = ["-fno-semantic-interposition", "-fvisibility=hidden"]
KEPT_BUILDS = 3


def can_compile() -> bool:
    """Say whether an extension is wanted, and whether a C compiler and Python's headers are here for it."""
    if os.environ.get(BUILD["SETTING"]) == BUILD["INTERPRETED"]:
        return False
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("#include <Python.h>\n")
        include = f"-I{sysconfig.get_path('include')}"
        command = [*shlex.split(compiler), include, "-c", str(source), "-o", f"{folder}/probe.o"]
        try:
            return subprocess.run(command, check=False, capture_output=True).returncode == 0
        except OSError:
            return False


def compile_engine(folder: Path) -> None:
    """Compile the modules and put them into a new folder."""
    from mypyc.build import mypycify  # noqa: PLC0415 - without a compiler mypyc is not needed

    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as scratch:
        options = [f"--cache-dir={scratch}/cache", *MODULES]
        modules = mypycify(options, group_name=LIBRARY, target_dir=f"{scratch}/c", opt_level="2")
        for module in modules:
            module.extra_compile_args += FLAGS
        command = build_ext(Distribution({"name": "cux-engine", "ext_modules": modules}))
        command.build_lib, command.build_temp = f"{scratch}/lib", f"{scratch}/objects"
        command.ensure_finalized()
        command.run()
        try:
            Path(scratch, "lib", "exchange").rename(folder)
        except OSError:
            # Another process was as quick, with the same sources.
            if not folder.is_dir():
                raise


def forget_old_builds(folder: Path) -> None:
    """Keep the last builds for this Python; a process that is just starting may still import from one."""
    mine = folder.name.rpartition("-")[0]
    builds = sorted(folder.parent.glob(f"{mine}-*"), key=lambda path: path.stat().st_mtime)
    for old in builds[:-KEPT_BUILDS]:
        if old != folder:
            shutil.rmtree(old)


class BuildEngine(build_ext):
    """`build_ext`, which puts the compiled engine where `exchange.build` looks for it."""

    def run(self) -> None:
        """Compile what is not yet compiled; for a wheel, add the build to it."""
        if not can_compile():
            sys.stderr.write("cux: without a C compiler and Python's headers the engine runs interpreted\n")
            return
        folder = BUILD["build_folder"]()
        if not folder.is_dir():
            compile_engine(folder)
            forget_old_builds(folder)
        if not self.inplace and not self.editable_mode:
            shutil.copytree(folder, Path(self.build_lib) / folder.relative_to(ROOT))

    def get_outputs(self) -> list[str]:
        """Return nothing: no file is left where an extension's usually is."""
        return []

    def get_output_mapping(self) -> dict[str, str]:
        """Return nothing, as above."""
        return {}


os.chdir(ROOT)
setup(
    cmdclass={"build_ext": BuildEngine},
    # Named so that a wheel with a compiled engine is known to be for one platform only.
    ext_modules=[Extension(LIBRARY, MODULES)] if can_compile() else [],
)
