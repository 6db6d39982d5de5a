"""Reads the Alibaba openb GPU trace: its node list and its pod list, plain or gzip.

The form is that of cluster-trace-gpu-v2023: times in seconds from the trace's start, GPUs in
thousandths of one. Every fault is refused with file, line and column.
"""

import csv
import gzip
import re
import zlib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple, NoReturn, TextIO

SUBFOLDER = "alibaba_gpu_v2023"
POD_COLUMNS = (
    "name",
    "cpu_milli",
    "memory_mib",
    "num_gpu",
    "gpu_milli",
    "gpu_spec",
    "qos",
    "pod_phase",
    "creation_time",
    "deletion_time",
    "scheduled_time",
)
NODE_COLUMNS = ("sn", "cpu_milli", "memory_mib", "gpu", "model")

MODELS = {
    "P100": "P100-PCIE",
    "V100M16": "V100-SXM2-16",
    "V100M32": "V100-SXM2-32",
    "T4": "T4",
    "A10": "A10",
    # The trace does not disclose G2 and G3; these two classes are an assumption, stated in the README.
    "G2": "A800-SXM",
    "G3": "H800-SXM",
}
"""The trace's model names to classes of the catalogue."""

_SECONDS_MAX = 10**10
_RESOURCE_MAX = 10**12
_GPUS_MAX = 1024
_SECOND_NS = 1_000_000_000
_NUMBER = re.compile(r"[0-9]{1,18}(\.[0-9]{0,9})?")
_SHOWN_MAX = 60


class TraceError(Exception):
    """An input file is refused; nothing was written. Says where, what was found and what is allowed."""

    def __init__(self, path: Path, line: int, column: str, value: str, allowed: str) -> None:
        self.path, self.line, self.column, self.value, self.allowed = path, line, column, value, allowed
        shown = value if len(value) <= _SHOWN_MAX else value[:_SHOWN_MAX] + "…"
        super().__init__(f"{path}, line {line}, column {column}: {shown!r} found; allowed: {allowed}")


class Row(NamedTuple):
    """A line of a CSV file, by column."""

    path: Path
    line: int
    fields: dict[str, str]

    def refuse(self, column: str, allowed: str) -> NoReturn:
        """Refuse the file because of this column.

        Raises:
            TraceError: always.
        """
        raise TraceError(self.path, self.line, column, self.fields[column], allowed)

    def number(self, column: str, most: int, least: int = 0) -> Decimal:
        """Return the column as an exact decimal number.

        Raises:
            TraceError: it is no number in decimal digits, or out of range.
        """
        text = self.fields[column]
        if not _NUMBER.fullmatch(text) or not least <= Decimal(text) <= most:
            self.refuse(column, f"a number from {least} to {most}")
        return Decimal(text)

    def whole(self, column: str, most: int, least: int = 0) -> int:
        """Return the column as an integer.

        Raises:
            TraceError: it is no whole number, or out of range.
        """
        text = self.fields[column]
        if not _NUMBER.fullmatch(text) or not least <= Decimal(text) <= most or Decimal(text) % 1:
            self.refuse(column, f"a whole number from {least} to {most}")
        return int(Decimal(text))


class Node(NamedTuple):
    """A machine of the trace."""

    gpus: int
    model: str


class Pod(NamedTuple):
    """A GPU pod. `models` are those it accepts, in the file's order; none means any."""

    gpu_milli: int
    models: tuple[str, ...]
    qos: str
    arrival_ns: int
    duration_ns: int


def read_rows(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    """Yield the lines of a CSV file with a header, plain or gzip; columns beyond those wanted are ignored.

    Raises:
        TraceError: the file cannot be read whole, lacks a column, or a line has another number of fields.
    """
    lines = 0
    try:
        with _open_text(path) as text:
            reader = csv.reader(text, strict=True)
            header = next(reader, [])
            lines = reader.line_num
            for column in columns:
                if header.count(column) != 1:
                    found = ",".join(header)
                    raise TraceError(path, 1, column, found, f"a header that has the column {column} once")
            for fields in reader:
                lines = reader.line_num
                if len(fields) != len(header):
                    found = f"{len(fields)} fields"
                    raise TraceError(
                        path, lines, header[-1], found, f"{len(header)} fields, as in the header"
                    )
                yield Row(path, lines, dict(zip(header, fields, strict=True)))
    except EOFError:
        raise TraceError(path, lines + 1, columns[0], "a truncated file", "a whole gzip file") from None
    except (gzip.BadGzipFile, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(
            path, lines + 1, columns[0], str(error), "a CSV file in UTF-8, plain or gzip"
        ) from error
    except OSError as error:
        raise TraceError(path, 1, columns[0], str(error), "a file that can be read") from error


def _open_text(path: Path) -> TextIO:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    if zipped:
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def read_nodes(path: Path) -> list[Node]:
    """Return the machines that have GPUs.

    Raises:
        TraceError: the file is refused, or no machine has a GPU.
    """
    nodes: list[Node] = []
    for row in read_rows(path, NODE_COLUMNS):
        row.whole("cpu_milli", _RESOURCE_MAX)
        row.whole("memory_mib", _RESOURCE_MAX)
        gpus = row.whole("gpu", _GPUS_MAX)
        if gpus:
            nodes.append(Node(gpus, _known_model(row, "model", row.fields["model"])))
    if not nodes:
        raise TraceError(path, 1, "gpu", "no node with GPUs", "at least one node with a GPU")
    return nodes


def read_pods(path: Path) -> list[Pod]:
    """Return the pods that want GPUs, Pending ones among them: their life counts from creation.

    Raises:
        TraceError: the file is refused, or no pod wants a GPU.
    """
    pods: list[Pod] = []
    for row in read_rows(path, POD_COLUMNS):
        row.whole("cpu_milli", _RESOURCE_MAX)
        row.whole("memory_mib", _RESOURCE_MAX)
        gpus = row.whole("num_gpu", _GPUS_MAX)
        milli = row.whole("gpu_milli", 1000, 1 if gpus else 0)
        spec = row.fields["gpu_spec"]
        named = [_known_model(row, "gpu_spec", model) for model in spec.split("|")] if spec else []
        created = row.number("creation_time", _SECONDS_MAX)
        started = created
        if row.fields["scheduled_time"]:
            started = row.number("scheduled_time", _SECONDS_MAX)
        deleted = row.number("deletion_time", _SECONDS_MAX)
        if deleted < started:
            row.refuse(
                "deletion_time", f"a number from {started}, when the pod started: no negative duration"
            )
        if gpus:
            models = tuple(dict.fromkeys(named))  # the trace repeats a model now and then
            arrival_ns, duration_ns = int(created * _SECOND_NS), int((deleted - started) * _SECOND_NS)
            pods.append(Pod(gpus * milli, models, row.fields["qos"], arrival_ns, duration_ns))
    if not pods:
        raise TraceError(path, 1, "num_gpu", "no pod that wants GPUs", "at least one pod with num_gpu over 0")
    return pods


def find_trace(folder: Path) -> tuple[Path, Path] | None:
    """Return node list and pod list in the folder or its `alibaba_gpu_v2023`; None if neither is there.

    Of several pod lists that with most constraints (`gpuspec33`) is taken, of several node lists that of
    the GPU nodes; otherwise the first by name.

    Raises:
        TraceError: one of the two is there without the other.
    """
    for place in (folder / SUBFOLDER, folder):
        nodes = _first(place, "openb_node_list*.csv*", "gpu_node")
        pods = _first(place, "openb_pod_list*.csv*", "gpuspec33")
        if nodes and pods:
            return nodes, pods
        if nodes or pods:
            missing = "openb_pod_list*.csv*" if nodes else "openb_node_list*.csv*"
            raise TraceError(
                place / missing, 1, "name", "no such file", "a node list and a pod list side by side"
            )
    return None


def _first(folder: Path, pattern: str, preferred: str) -> Path | None:
    found = sorted(folder.glob(pattern), key=lambda path: (preferred not in path.name, path.name))
    return found[0] if found else None


def _known_model(row: Row, column: str, model: str) -> str:
    if model not in MODELS:
        row.refuse(column, f"a model among {', '.join(MODELS)}")
    return model
