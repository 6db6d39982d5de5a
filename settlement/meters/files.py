"""Which adapter reads which file: by how its name starts."""

import re
from typing import NamedTuple

from settlement.meters import dcgm, opencost, slurm
from settlement.meters.readings import SECOND_NS, MeterError, Parsed

_SLURM = re.compile(r"slurm-.*\.txt", re.DOTALL)
_OPENCOST = re.compile(r"opencost-.*\.json", re.DOTALL)
_DCGM = re.compile(r"dcgm-([0-9]{1,10})(?:[^0-9].*)?\.prom", re.DOTALL | re.ASCII)


class MeterFile(NamedTuple):
    """A file's format and what its adapter made of it."""

    format: str
    parsed: Parsed


def parse_file(name: str, data: bytes) -> MeterFile:
    """Return what the file says.

    Raises:
        MeterError: the name is of no format.
    """
    if _SLURM.fullmatch(name):
        return MeterFile("slurm", slurm.parse(data))
    if _OPENCOST.fullmatch(name):
        return MeterFile("opencost", opencost.parse(data))
    if match := _DCGM.fullmatch(name):
        return MeterFile("dcgm", dcgm.parse(data, int(match[1]) * SECOND_NS))
    raise MeterError(
        f"name {name[:200]!r}: slurm-*.txt, opencost-*.json or dcgm-<unix seconds>.prom is wanted"
    )
