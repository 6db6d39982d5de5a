"""The one form of all benchmarks: a table for people, and `benchmarks/results/NAME.json`.

A figure stands beside what was measured in the same run, as machines are shared: trust the ratio.
"""

import json
import math
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
_DIGITS = 4


class Row(TypedDict):
    """A figure: its value, what was measured beside it, and ours over that; None where nothing was."""

    figure: str
    value: float
    unit: str
    beside: float | None
    ratio: float | None


def row(figure: str, value: float, unit: str, beside: float | None = None) -> Row:
    """Return a row, rounded to four digits; `beside` has the same unit."""
    ratio = None if beside is None else _rounded(value / beside)
    return Row(
        figure=figure,
        value=_rounded(value),
        unit=unit,
        beside=None if beside is None else _rounded(beside),
        ratio=ratio,
    )


def report(name: str, rows: Sequence[Row]) -> Path:
    """Print the rows and write them with machine and commit; return the file."""
    measured_on = {"machine": machine(), "commit": commit()}
    table = Table("figure", "value", "unit", "beside", "ratio", title=f"{name}, {commit()}")
    for one in rows:
        table.add_row(
            one["figure"], f"{one['value']:g}", one["unit"], _shown(one["beside"]), _shown(one["ratio"])
        )
    Console().print(table)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps([{**one, **measured_on} for one in rows], indent=1) + "\n")
    return path


def machine() -> dict[str, str | int]:
    """Return the processor's model, how many cores we may use, and the Python."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }


def commit() -> str:
    """Return the commit, marked where files were changed since; "unknown" outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    found = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parent)
    return found.stdout.strip() or "unknown"


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process and its threads have used so far, in steps of a clock tick."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that so many percent of the values do not exceed.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values, no percentile")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
