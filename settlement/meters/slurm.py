"""Slurm accounting: headerless `sacct --parsable2` rows of 32 fields, JobName last."""

import re

from settlement.meters.readings import (
    QUANTITY_MAX,
    SECOND_NS,
    MeterError,
    Parsed,
    Quarantined,
    Reading,
    text_of,
    time_ns_of,
    trade_of,
    whole_of,
)

FIELDS = (  # noqa: SIM905 - as `sacct --format` takes them
    "JobID,JobIDRaw,User,Account,State,Start,End,AveCPU,AveDiskRead,AveDiskWrite,AveRSS,AveVMSize,ElapsedRaw,"
    "ExitCode,Layout,MaxRSS,MaxVMSize,MinCPU,ReqCPUS,ReqMem,ReqNodes,Reservation,Submit,Suspended,SystemCPU,"
    "TimelimitRaw,UserCPU,NodeList,Partition,AllocTRES,Priority,JobName"
).split(",")

_JOB_ID, _START, _END = (FIELDS.index(name) for name in ("JobID", "Start", "End"))
_ELAPSED, _SUSPENDED = FIELDS.index("ElapsedRaw"), FIELDS.index("Suspended")
_NODES, _TRES, _NAME = (FIELDS.index(name) for name in ("NodeList", "AllocTRES", "JobName"))

_NO_TIME = ("Unknown", "None", "")
_SPAN = re.compile(r"(?:(?:(\d{1,5})-)?(\d{1,4}):)?(\d\d):(\d\d)(?:\.\d+)?", re.ASCII)


def parse(data: bytes) -> Parsed:
    """Return a reading for each allocation row of a job that holds or held GPUs.

    Step rows (`.batch`, `.extern`, `.0`) repeat their allocation's GPUs and are left out. A running job
    (`End=Unknown`) is read as ending when it was looked at. Delivered is what elapsed without what was
    suspended, in whole seconds, times the GPUs. A job that has not started gives no reading; one that is
    named after a fill and has no GPU is quarantined.
    """
    readings: list[Reading] = []
    quarantined: list[Quarantined] = []
    others = 0
    lines = data.decode("utf-8", "replace").split("\n")
    if lines[-1]:
        quarantined.append(Quarantined(len(lines), "the row has no end: half a file"))
    for number, line in enumerate(lines[:-1], 1):
        # The name comes last and may hold the separator itself.
        row = line.split("|", len(FIELDS) - 1)
        if len(row) < len(FIELDS):
            quarantined.append(Quarantined(number, f"{len(row)} fields; {len(FIELDS)} are wanted"))
            continue
        if "." in row[_JOB_ID]:
            continue
        try:
            reading = _reading(number, row)
        except MeterError as error:
            quarantined.append(Quarantined(number, str(error)))
            continue
        if reading is None:
            others += 1
        else:
            readings.append(reading)
    return Parsed(readings, quarantined, others)


def _reading(number: int, row: list[str]) -> Reading | None:
    trade_id = trade_of(row[_NAME].rstrip("\r"), "JobName")
    if row[_START] in _NO_TIME:
        return None
    eighths = gpu_eighths(row[_TRES])
    if eighths is None:
        if trade_id is None:
            return None
        raise MeterError(f"AllocTRES {row[_TRES][:200]!r}: gres/gpu, gres/gpu:type or gres/shard is wanted")
    elapsed = whole_of(row[_ELAPSED], "ElapsedRaw")
    suspended = _seconds(row[_SUSPENDED])
    start_ns = time_ns_of(row[_START], "Start")
    if row[_END] in _NO_TIME:
        end_ns = start_ns + (elapsed + suspended) * SECOND_NS
    else:
        end_ns = time_ns_of(row[_END], "End")
        if end_ns < start_ns:
            raise MeterError(f"End {row[_END]}: not before Start {row[_START]} is wanted")
        # Slurm takes what was suspended out of ElapsedRaw. Where a copy of its database does not, the
        # span says so; with neither doubt the two are equal.
        elapsed = min(elapsed, max(0, (end_ns - start_ns) // SECOND_NS - suspended))
    gpu_ms = elapsed * eighths * 1000 // 8
    if gpu_ms > QUANTITY_MAX:
        raise MeterError(
            f"AllocTRES {row[_TRES][:200]!r}: at most {QUANTITY_MAX} GPU-milliseconds are allowed"
        )
    return Reading(
        line=number,
        job=text_of(row[_JOB_ID], "JobID"),
        trade_id=trade_id,
        host=text_of(row[_NODES], "NodeList"),
        start_ns=start_ns,
        end_ns=end_ns,
        gpu_ms=gpu_ms,
        energy_mj=None,
    )


def gpu_eighths(tres: str) -> int | None:
    """Return the GPUs of an AllocTRES in eighths, None if it names none.

    `gres/gpu=N` is the total of what `gres/gpu:type=N` repeats by type: the types are added up only where
    no total is given. `gres/shard=N` is N eighths, where there is no GPU.

    Raises:
        MeterError: a number is none.
    """
    total, typed, shards = None, None, None
    for part in tres.split(","):
        name, _, value = part.partition("=")
        if name == "gres/gpu":
            total = whole_of(value, name)
        elif name.startswith("gres/gpu:"):
            typed = (typed or 0) + whole_of(value, name)
        elif name == "gres/shard":
            shards = whole_of(value, name)
    gpus = typed if total is None else total
    return shards if gpus is None else gpus * 8


def _seconds(span: str) -> int:
    match = _SPAN.fullmatch(span)
    if match is None:
        raise MeterError(f"Suspended {span[:200]!r}: [[days-]hours:]minutes:seconds is wanted")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
