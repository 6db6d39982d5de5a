"""Which adapter reads which file: by how its name starts."""

import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from settlement.meters import dcgm, opencost, slurm
from settlement.meters.readings import SECOND_NS, MeterError, Parsed

_SLURM = re.compile(r"slurm-.*\.txt", re.DOTALL)
_OPENCOST = re.compile(r"opencost-.*\.json", re.DOTALL)
_DCGM = re.compile(r"dcgm-([0-9]{1,10})(?:[^0-9].*)?\.prom", re.DOTALL | re.ASCII)


class Adapter(NamedTuple):
    """A format and what reads it."""

    format: str
    parse: Callable[[bytes], Parsed]


def adapter_of(name: str) -> Adapter:
    """Return the adapter for a file of this name.

    Raises:
        MeterError: the name is of no format.
    """
    if _SLURM.fullmatch(name):
        return Adapter("slurm", slurm.parse)
    if _OPENCOST.fullmatch(name):
        return Adapter("opencost", opencost.parse)
    if match := _DCGM.fullmatch(name):
        return Adapter("dcgm", partial(dcgm.parse, scraped_ns=int(match[1]) * SECOND_NS))
    raise MeterError(
        f"name {name[:200]!r}: slurm-*.txt, opencost-*.json or dcgm-<unix seconds>.prom is wanted"
    )
