"""The providers' meters, played: from what was sold, the files that their sites would leave.

It stands on the other side of settlement: it knows what was really delivered, writes it down in the
formats of Slurm, OpenCost and the DCGM exporter with the flaws of real meters, makes some providers
deliver short, and keeps the list of those apart. Conventions and figures: REPORTS.md, "Meter".

    python -m gateway.simulation.meter --fills FILE --out DIR --secret FILE --seed N [--carbon FILE]
"""

import argparse
import os
import sys
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from random import Random
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta, Struct, field

HOUR_S = 3600
FILE_HOURS = 6
"""Delivery hours in one Slurm or OpenCost file, counted from the Unix epoch."""
JITTER_S = 10
"""Delivered time differs from what was sold by at most this: 0.28 % of an hour."""
SKEW_S = 20
SHORTFALL_PERMILLE = 15
SHORTFALLS_MIN = 10
DECOY_S = (15, 28)
"""How much a decoy lacks of its hour, jitter included: 0.42 to 0.78 %."""
LATE_PERMILLE = 30
COPIED_PERMILLE = 50
SCRAPED_GPU_HOURS = 16_000
"""How many GPU-hours are scraped for energy, about: fewer hosts a site, then fewer hours, keep to it."""
HOST_GPUS = 8
HOSTS_MAX = 4
IDLE_PERMILLE = 120

Number = Annotated[int, Meta(ge=1, le=2**63 - 1)]


class MeterError(Exception):
    """The meters cannot be written; the message says what is wrong and what is allowed."""


class Delivery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A fill's hour as the provider's schedule states it; `tdp_w` is one GPU's, if it is known."""

    trade_id: Number
    site: Number
    class_code: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9.'-]{0,39}$(?!\n)")] = field(name="class")
    delivery_hour: Annotated[int, Meta(ge=0, le=2_000_000)]
    gpu_eighths: Annotated[int, Meta(ge=1, le=2**40)]
    tdp_w: Annotated[int, Meta(ge=1, le=100_000)] | None = None


class MeterSummary(Struct, frozen=True, kw_only=True):
    """What was written; it does not say what was short."""

    fills: int
    sites: int
    files: int
    late_files: int
    copied_files: int
    fills_with_energy: int
    size_bytes: int


class _Plan(Enum):
    FULL = "full"
    DECOY = "decoy"
    SHORT = "short"
    NOTHING_RAN = "nothing_ran"
    NO_JOB = "no_job"


class _Job(NamedTuple):
    """How a fill is really served: from `start_s` on, UTC by a true clock, `elapsed_s` of work."""

    delivery: Delivery
    plan: _Plan
    start_s: int
    elapsed_s: int
    suspended_s: int
    rows: str
    partial_rows: str

    @property
    def end_s(self) -> int:
        return self.start_s + self.elapsed_s + self.suspended_s

    @property
    def gpus(self) -> int:
        """GPUs that it occupies, a shared one counted whole."""
        return -(-self.delivery.gpu_eighths // 8)


def read_schedule(lines: Iterable[bytes], source: str) -> list[Delivery]:
    """Return the deliveries of a file of JSON lines; empty lines are passed over.

    Raises:
        MeterError: a line is no delivery, or a fill comes twice.
    """
    decoder = msgspec.json.Decoder(Delivery)
    schedule: list[Delivery] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            schedule.append(decoder.decode(line))
        except msgspec.DecodeError as error:
            shown = line.decode(errors="replace").strip()[:300]
            raise MeterError(f"{source}, line {number}: {error}; the line is {shown}") from None
    _refuse_repeats(schedule, source)
    return schedule


def _refuse_repeats(schedule: Sequence[Delivery], source: str) -> None:
    seen: set[int] = set()
    for delivery in schedule:
        if delivery.trade_id in seen:
            raise MeterError(f"{source}: trade_id {delivery.trade_id} comes twice; each fill is allowed once")
        seen.add(delivery.trade_id)


def write_meters(
    schedule: Sequence[Delivery], out: Path, secret: Path, seed: int, carbon: Path | None = None
) -> MeterSummary:
    """Write the meter folder `out` and the list of what is short to `secret` (mode 0600).

    The same deliveries, in any order, and the same seed give the same bytes. `carbon` is copied to
    `carbon.csv`. Files that arrive late stand under `out/late` in the same structure.

    Raises:
        MeterError: a fill comes twice, `out` is not empty, or `secret` lies inside it.
        OSError: a file cannot be read or written.
    """
    _refuse_repeats(schedule, "the schedule")
    if secret.resolve().is_relative_to(out.resolve()):
        raise MeterError(f"--secret {secret}: a file outside the meter folder {out} is allowed")
    if out.exists() and any(out.iterdir()):
        raise MeterError(f"--out {out}: an empty or new folder is allowed")
    out.mkdir(parents=True, exist_ok=True)
    if carbon is not None:
        (out / "carbon.csv").write_bytes(carbon.read_bytes())

    ordered = sorted(schedule, key=lambda d: (d.site, d.delivery_hour, d.trade_id))
    plans = _plans(ordered, Random(f"{seed}/plans"))
    files = sorted({(d.site, d.delivery_hour // FILE_HOURS) for d in ordered})
    writer = _Writer(out, files, Random(f"{seed}/files"))
    by_site: dict[int, list[Delivery]] = {}
    for delivery in ordered:
        by_site.setdefault(delivery.site, []).append(delivery)
    site_hours = len({(d.site, d.delivery_hour) for d in ordered})
    exporters = _Coverage(site_hours)

    served: list[_Job] = []
    with_energy = 0
    for index, (site, deliveries) in enumerate(by_site.items()):
        rng = Random(f"{seed}/site/{site}")
        cluster: _Slurm | _OpenCost = _OpenCost(site, rng) if index % 2 else _Slurm(site, rng)
        jobs = [cluster.serve(delivery, plans.get(delivery.trade_id, _Plan.FULL)) for delivery in deliveries]
        _write_time(cluster, jobs, writer, rng)
        with_energy += _Exporter(site, jobs, exporters, cluster.skew_s, rng).write(writer)
        served += jobs
    _write_secret(secret, served)
    return MeterSummary(
        fills=len(ordered),
        sites=len(by_site),
        files=writer.files,
        late_files=writer.late_files,
        copied_files=writer.copied_files,
        fills_with_energy=with_energy,
        size_bytes=writer.size_bytes,
    )


def _plans(ordered: Sequence[Delivery], rng: Random) -> dict[int, _Plan]:
    """Return by trade id which fills fall short and which only look as if; the rest is absent."""
    trades = sorted(d.trade_id for d in ordered)
    count = min(len(trades), max(SHORTFALLS_MIN, -(-len(trades) * SHORTFALL_PERMILLE // 1000)))
    decoys = min(count, len(trades) - count)
    chosen = rng.sample(trades, count + decoys)
    plans = dict.fromkeys(chosen[count:], _Plan.DECOY)
    for index, trade_id in enumerate(chosen[:count]):
        # One in ten delivers nothing and says so, one in ten has no job at all.
        plans[trade_id] = {3: _Plan.NOTHING_RAN, 7: _Plan.NO_JOB}.get(index % 10, _Plan.SHORT)
    return plans


def _elapsed_s(plan: _Plan, rng: Random) -> int:
    match plan:
        case _Plan.NOTHING_RAN | _Plan.NO_JOB:
            return 0
        case _Plan.DECOY:
            return HOUR_S - rng.randint(*DECOY_S)
        case _Plan.FULL:
            return HOUR_S + rng.randint(-JITTER_S, JITTER_S)
        case _Plan.SHORT:
            # One in five lacks just 2 %, where a tolerance of 1 % is put to the test.
            permille = 980 if rng.randrange(5) == 0 else rng.randint(10, 980)
            jitter = rng.randint(-JITTER_S, JITTER_S) * permille // 1000
            return HOUR_S * permille // 1000 + jitter


class _Cluster(ABC):
    """What the two kinds of site have in common: a clock that is off, and how a fill is served."""

    suspends = False

    def __init__(self, site: int, rng: Random) -> None:
        self.site = site
        self.rng = rng
        self.skew_s = rng.randint(-SKEW_S, SKEW_S)

    def serve(self, delivery: Delivery, plan: _Plan) -> _Job:
        """Return how the fill is served, with the rows that the meter shows at the end and on the way."""
        elapsed_s = _elapsed_s(plan, self.rng)
        missing_s = max(0, HOUR_S - elapsed_s)
        suspended_s = 0
        start_s = delivery.delivery_hour * HOUR_S + self.rng.randint(0, 5)
        if plan is _Plan.SHORT:
            # A short job ends early, starts late, or (under Slurm) is suspended.
            why = self.rng.randrange(3)
            if why == 1:
                start_s = delivery.delivery_hour * HOUR_S + missing_s
            elif why == 2 and self.suspends:
                suspended_s = missing_s
        job = _Job(delivery, plan, start_s, elapsed_s, suspended_s, "", "")
        if plan is _Plan.NO_JOB:
            return job
        job = job._replace(rows=self.rows(job))
        if plan is _Plan.FULL and delivery.delivery_hour % FILE_HOURS == 0:
            job = job._replace(partial_rows=self.rows(job, self.rng.randint(600, 1200)))
        return job

    @abstractmethod
    def rows(self, job: _Job, partial_s: int | None = None) -> str:
        """Return what the meter shows of a job, at its end or after `partial_s` seconds."""


class _Slurm(_Cluster):
    """A Slurm cluster: `sacct --parsable2 --noheader`, 32 fields, times in UTC."""

    kind, suffix, suspends = "slurm", "txt", True

    def __init__(self, site: int, rng: Random) -> None:
        super().__init__(site, rng)
        self.gres_form = site // 2 % 3
        self.job_id = rng.randint(100_000, 900_000)
        self.job_ids: dict[int, int] = {}

    def rows(self, job: _Job, partial_s: int | None = None) -> str:
        """Return the allocation's row and those of its batch and extern steps, which repeat its GPUs."""
        delivery = job.delivery
        job_id = self.job_ids.get(delivery.trade_id)
        if job_id is None:
            self.job_id += self.rng.randint(1, 4)
            job_id = self.job_ids[delivery.trade_id] = self.job_id
        start = _iso(job.start_s + self.skew_s)
        end, elapsed_s, state, code = _iso(job.end_s + self.skew_s), job.elapsed_s, "COMPLETED", "0:0"
        if partial_s is not None:
            end, elapsed_s, state = "Unknown", partial_s, "RUNNING"
        elif job.plan is _Plan.NOTHING_RAN:
            state = "CANCELLED by 2101477"
        elif job.plan is _Plan.SHORT:
            state, code = ("COMPLETED", "0:0") if job.suspended_s else ("NODE_FAIL", "1:0")
        return _sacct(
            job_id=job_id,
            name=f"cux-{delivery.trade_id}",
            state=state,
            code=code,
            start=start,
            end=end,
            submit=_iso(job.start_s + self.skew_s - 300),
            elapsed_s=elapsed_s,
            suspended=_clock(job.suspended_s),
            gpus=job.gpus,
            gres=self._gres(delivery),
        )

    def others(self, first_hour: int) -> str:
        """Return rows of jobs that deliver no fill: one that ran, one still running, one pending."""
        start, text = first_hour * HOUR_S + self.skew_s, ""
        ran = self.rng.randint(300, 3000)
        for state, begin, end, elapsed_s in (
            ("COMPLETED", _iso(start), _iso(start + ran), ran),
            ("RUNNING", _iso(start), "Unknown", FILE_HOURS * HOUR_S),
            ("PENDING", "Unknown", "Unknown", 0),
        ):
            self.job_id += 1
            text += _sacct(
                job_id=self.job_id,
                name="train",
                state=state,
                code="0:0",
                start=begin,
                end=end,
                submit=_iso(start - 900),
                elapsed_s=elapsed_s,
                suspended="00:00:00",
                gpus=1,
                gres="gres/gpu=1",
            )
        return text

    def file_text(self, jobs: Iterable[tuple[int, str]], first_hour: int) -> str:
        """Return a file of the jobs' rows."""
        return "".join(rows for _, rows in jobs) + self.others(first_hour)

    def _gres(self, delivery: Delivery) -> str:
        gpus, shards = divmod(delivery.gpu_eighths, 8)
        if shards:
            return f"gres/shard={delivery.gpu_eighths}"
        typed = f"gres/gpu:{delivery.class_code.lower().replace('-', '_')}={gpus}"
        return (f"gres/gpu={gpus}", typed, f"{typed},gres/gpu={gpus}")[self.gres_form]


def _sacct(
    *,
    job_id: int,
    name: str,
    state: str,
    code: str,
    start: str,
    end: str,
    submit: str,
    elapsed_s: int,
    suspended: str,
    gpus: int,
    gres: str,
) -> str:
    """Return an allocation's row and, once it has started, its steps' rows.

    As in Slurm's own accounting, the elapsed time leaves the suspended time out.
    """
    cpus, nodes = 12 * gpus, -(-gpus // HOST_GPUS)
    if start == "Unknown":
        return (
            f"{job_id}|{job_id}|cux|cux|{state}|{start}|{end}||||||{elapsed_s}|{code}|||||{cpus}"
            f"|{100 * gpus}G|{nodes}||{submit}|{suspended}|00:00:00|90|00:00:00|None assigned|gpu"
            f"||100|{name}\n"
        )
    hosts = "gpu-1" if nodes == 1 else f"gpu-[1-{nodes}]"
    used = f"cpu={cpus},{gres},mem={100 * gpus}G,node={nodes}"
    step_state = state.split(" ", maxsplit=1)[0]
    steps = "".join(
        f"{job_id}.{step}|{job_id}.{step}||cux|{step_state}|{start}|{end}|{cpu}|{read}M|0.28M|{rss}K|0"
        f"|{elapsed_s}|{code}|Unknown|{rss}K|0|{cpu}|{cpus}||{nodes}||{start}|{suspended}|00:10.277||05:06.252"
        f"|{hosts}||{billing}{used}|100|{step}\n"
        for step, cpu, read, rss, billing in (
            ("batch", "00:05:16", "3365.99", 4173944, ""),
            ("extern", "00:00:00", "0.01", 0, f"billing={cpus},"),
        )
    )
    return (
        f"{job_id}|{job_id}|cux|cux|{state}|{start}|{end}||||||{elapsed_s}|{code}|||||{cpus}|{100 * gpus}G"
        f"|{nodes}||{submit}|{suspended}|00:10.278|90|05:06.252|{hosts}|gpu|billing={cpus},{used}|100|{name}\n"
        f"{steps}"
    )


class _OpenCost(_Cluster):
    """A Kubernetes cluster with OpenCost: allocations by pod, one query a delivery hour."""

    kind, suffix = "opencost", "json"

    def rows(self, job: _Job, partial_s: int | None = None) -> str:
        """Return the pod's allocation as a member of a JSON object.

        The window is wider than the hour by two minutes on each side, so that a clock which is off
        cuts nothing away; the query asks for the pods of one delivery hour only.
        """
        delivery = job.delivery
        hour_s = delivery.delivery_hour * HOUR_S
        elapsed_s = job.elapsed_s if partial_s is None else partial_s
        start, end = job.start_s + self.skew_s, job.start_s + self.skew_s + elapsed_s
        pod, node = f"cux-{delivery.trade_id}", f"gpu-{delivery.trade_id % 97}.cluster.internal"
        cpus = 12 * job.gpus
        cpu_hours = _decimal(cpus * elapsed_s * 100_000, HOUR_S)
        ram = 100 * 2**30 * job.gpus
        return (
            f'"{pod}":{{"name":"{pod}","properties":{{"cluster":"site-{self.site}","node":"{node}",'
            f'"container":"main","namespace":"cux","pod":"{pod}","providerID":"{node}",'
            f'"labels":{{"cux_delivery_hour":"{delivery.delivery_hour}"}},'
            f'"namespaceLabels":{{"kubernetes_io_metadata_name":"cux"}}}},'
            f'"window":{{"start":"{_iso(hour_s - 120)}Z","end":"{_iso(hour_s + HOUR_S + 120)}Z"}},'
            f'"start":"{_iso(start)}Z","end":"{_iso(end)}Z","minutes":{_decimal(elapsed_s * 100_000, 60)},'
            f'"cpuCores":{cpus},"cpuCoreRequestAverage":{cpus},"cpuCoreUsageAverage":{cpus},'
            f'"cpuCoreHours":{cpu_hours},"cpuCost":0,"cpuCostAdjustment":0,"cpuEfficiency":1,'
            f'"gpuCount":{_decimal(delivery.gpu_eighths * 12_500, 1)},'
            f'"gpuHours":{_decimal(delivery.gpu_eighths * elapsed_s * 12_500, HOUR_S)},'
            f'"gpuCost":0,"gpuCostAdjustment":0,"networkTransferBytes":0,"networkReceiveBytes":0,'
            f'"networkCost":0,"networkCrossZoneCost":0,"networkCrossRegionCost":0,"networkInternetCost":0,'
            f'"networkCostAdjustment":0,"loadBalancerCost":0,"loadBalancerCostAdjustment":0,"pvBytes":0,'
            f'"pvByteHours":0,"pvCost":0,"pvs":null,"pvCostAdjustment":0,"ramBytes":{ram},'
            f'"ramByteRequestAverage":{ram},"ramByteUsageAverage":{ram},'
            f'"ramByteHours":{_decimal(ram * elapsed_s * 100_000, HOUR_S)},"ramCost":0,"ramCostAdjustment":0,'
            f'"ramEfficiency":1,"externalCost":0,"sharedCost":0,"totalCost":0,"totalEfficiency":1,'
            f'"proportionalAssetResourceCosts":{{}},"lbAllocations":null,"sharedCostBreakdown":{{}}}}'
        )

    def file_text(self, jobs: Iterable[tuple[int, str]], first_hour: int) -> str:
        """Return a file of the jobs' allocations, one object an hour, empty where nothing ran."""
        by_hour: dict[int, list[str]] = {h: [] for h in range(first_hour - 1, first_hour + FILE_HOURS + 1)}
        for hour, rows in jobs:
            by_hour[hour].append(rows)
        data = ",\n".join("{" + ",\n".join(rows) + "}" for rows in by_hour.values())
        return f'{{"code":200,"status":"success","data":[{data}]}}\n'


def _write_time(cluster: _Slurm | _OpenCost, jobs: list[_Job], writer: "_Writer", rng: Random) -> None:
    """Write the site's GPU time, a file every `FILE_HOURS` that repeats some rows of its neighbours.

    A file also shows some jobs of the hour after it, under way: the last state of a job is in the
    file of its own hour.
    """
    by_file: dict[int, list[tuple[int, str]]] = {d.delivery.delivery_hour // FILE_HOURS: [] for d in jobs}
    for job in jobs:
        hour = job.delivery.delivery_hour
        file = hour // FILE_HOURS
        if not job.rows:
            continue
        by_file[file].append((hour, job.rows))
        if (hour + 1) % FILE_HOURS == 0 and file + 1 in by_file and rng.randrange(4) == 0:
            by_file[file + 1].append((hour, job.rows))
        early = file - 1
        # A partial row whose end comes late would stand alone until then, and look like a shortfall.
        on_time = (cluster.site, file) not in writer.late
        if job.partial_rows and early in by_file and on_time and rng.randrange(8) == 0:
            by_file[early].append((hour, job.partial_rows))
    for file, rows in sorted(by_file.items()):
        first_hour = file * FILE_HOURS
        name = f"{cluster.kind}-{first_hour}-{FILE_HOURS}"
        writer.write_time(cluster.site, file, name, cluster.suffix, cluster.file_text(rows, first_hour))


class _Gpu:
    """A scraped GPU: its energy counter in mJ since boot, up to when, and whom it serves."""

    __slots__ = ("counter_mj", "host", "index", "jobs", "labels", "until_s")

    def __init__(self, host: int, index: int, labels: str, counter_mj: int) -> None:
        self.host, self.index, self.labels = host, index, labels
        self.counter_mj = counter_mj
        self.until_s = 0
        self.jobs: list[tuple[_Job, int]] = []


class _Coverage:
    """How much the exporters see: hosts a site, and the share of its hours."""

    def __init__(self, site_hours: int) -> None:
        self.gpu_hours = HOST_GPUS * site_hours
        self.hosts = max(1, min(HOSTS_MAX, SCRAPED_GPU_HOURS // max(1, self.gpu_hours)))

    def sees(self, rng: Random) -> bool:
        """Draw whether a site's hour is scraped."""
        return rng.randrange(self.gpu_hours) < SCRAPED_GPU_HOURS


class _Exporter:
    """The DCGM exporter of a site's first hosts, scraped two or three times in each hour with a fill there.

    A fill is scraped when all of its GPUs are on those hosts. A job on part of a GPU has it alone and
    draws its part of the power. Classes without a known TDP have no exporter.
    """

    def __init__(self, site: int, jobs: list[_Job], coverage: _Coverage, skew_s: int, rng: Random) -> None:
        self.site, self.coverage, self.skew_s, self.rng = site, coverage, skew_s, rng
        self.host_label = "Hostname" if site % 3 else "hostname"
        self.scraped_mid_hour = site % 4 == 0
        self.jobs: dict[int, list[_Job]] = {}
        for job in jobs:
            if job.delivery.tdp_w is not None and job.rows:
                self.jobs.setdefault(job.delivery.delivery_hour, []).append(job)
        self.gpus = [
            self._gpu(jobs[0].delivery.class_code, host, index)
            for host in range(coverage.hosts)
            for index in range(HOST_GPUS)
        ]

    def _gpu(self, class_code: str, host: int, index: int) -> _Gpu:
        serial = uuid.UUID(int=self.rng.getrandbits(128))
        labels = (
            f'gpu="{index}",UUID="GPU-{serial}",pci_bus_id="00000000:{0x11 * (index + 3):02X}:00.0",'
            f'device="nvidia{index}",modelName="{class_code}",{self.host_label}="gpu-node-{host + 1}",'
            'DCGM_FI_DRIVER_VERSION="580.105.08"'
        )
        return _Gpu(host, index, labels, self.rng.randint(10**6, 10**12))

    def write(self, writer: "_Writer") -> int:
        """Write the scrapes; return how many fills they cover."""
        covered = 0
        for hour, jobs in sorted(self.jobs.items()):
            placed = self._place(jobs) if self.coverage.sees(self.rng) else 0
            if not placed:
                continue
            covered += placed
            used = {gpu.host for gpu in self.gpus if gpu.jobs}
            gpus = [gpu for gpu in self.gpus if gpu.host in used]
            tdp_w = jobs[0].delivery.tdp_w
            assert tdp_w is not None
            for time_s, reboot in self._scrape_times(hour):
                for gpu in gpus:
                    self._run(gpu, time_s, tdp_w, reboot)
                writer.write_scrape(self.site, f"dcgm-{time_s + self.skew_s}.prom", self._text(gpus, time_s))
        return covered

    def _scrape_times(self, hour: int) -> Iterator[tuple[int, bool]]:
        """Yield when the hour is scraped, by a true clock, and whether the hosts were rebooted before."""
        start_s = hour * HOUR_S
        reboot = self.rng.randrange(50) == 0
        yield start_s + self.rng.randint(60, 120), False
        if self.scraped_mid_hour:
            yield start_s + self.rng.randint(1500, 2100), False
        yield start_s + HOUR_S - self.rng.randint(60, 120), reboot

    def _place(self, jobs: list[_Job]) -> int:
        """Give the exporter's GPUs to fills of one hour, drawn by lot, and return how many fit."""
        for gpu in self.gpus:
            gpu.jobs = []
        free = list(self.gpus)
        placed = 0
        for job in self.rng.sample(jobs, len(jobs)):
            if job.gpus > len(free):
                continue
            load_permille = self.rng.randint(550, 950)
            left_eighths = job.delivery.gpu_eighths
            for gpu in free[: job.gpus]:
                gpu.jobs = [(job, load_permille * min(8, left_eighths) // 8)]
                left_eighths -= 8
            del free[: job.gpus]
            placed += 1
        return placed

    def _run(self, gpu: _Gpu, until_s: int, tdp_w: int, reboot: bool) -> None:
        """Let the counter run on; W x s x permille are mJ."""
        from_s = gpu.until_s or until_s
        if reboot:
            # The counter starts again from zero halfway since the last scrape.
            from_s, gpu.counter_mj = (from_s + until_s) // 2, 0
        gpu.counter_mj += tdp_w * IDLE_PERMILLE * (until_s - from_s)
        for job, permille in gpu.jobs:
            busy_s = max(0, min(until_s, job.end_s) - max(from_s, job.start_s))
            gpu.counter_mj += tdp_w * permille * busy_s
        gpu.until_s = until_s

    def _text(self, gpus: list[_Gpu], time_s: int) -> str:
        usage: list[str] = []
        energy: list[str] = []
        for gpu in gpus:
            labels, load = gpu.labels, 0
            for job, permille in gpu.jobs:
                if job.start_s <= time_s < job.end_s:
                    pod = f"cux-{job.delivery.trade_id}"
                    labels += f',container="main",namespace="cux",pod="{pod}",pod_uid=""'
                    load = permille // 10
            usage.append(f"DCGM_FI_DEV_GPU_UTIL{{{labels}}} {load}\n")
            energy.append(f"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{labels}}} {gpu.counter_mj}\n")
        return (
            "# HELP DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION Total energy consumption since boot (in mJ).\n"
            "# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter\n"
            f"{''.join(energy)}"
            "# HELP DCGM_FI_DEV_GPU_UTIL GPU utilization (in %).\n"
            "# TYPE DCGM_FI_DEV_GPU_UTIL gauge\n"
            f"{''.join(usage)}"
        )


class _Writer:
    """Puts the files where they belong, and counts them."""

    def __init__(self, out: Path, time_files: list[tuple[int, int]], rng: Random) -> None:
        self.out, self.rng = out, rng
        count = len(time_files)
        self.late = set(rng.sample(time_files, -(-count * LATE_PERMILLE // 1000)))
        self.copied = set(rng.sample(time_files, -(-count * COPIED_PERMILLE // 1000)))
        self.files = self.late_files = self.copied_files = self.size_bytes = 0
        self._folders: set[Path] = set()

    def write_time(self, site: int, file: int, name: str, suffix: str, text: str) -> None:
        """Write a file of GPU time, and again under another name if it is drawn so."""
        late = (site, file) in self.late
        self._write(site, f"{name}.{suffix}", text, late)
        if (site, file) in self.copied:
            self._write(site, f"{name}-again.{suffix}", text, late)
            self.copied_files += 1

    def write_scrape(self, site: int, name: str, text: str) -> None:
        """Write a scrape; its name is its time, so it has no copies."""
        self._write(site, name, text, self.rng.randrange(1000) < LATE_PERMILLE)

    def _write(self, site: int, name: str, text: str, late: bool) -> None:
        folder = self.out / "late" / f"site-{site}" if late else self.out / f"site-{site}"
        if folder not in self._folders:
            folder.mkdir(parents=True, exist_ok=True)
            self._folders.add(folder)
        data = text.encode()
        (folder / name).write_bytes(data)
        self.files += 1
        self.late_files += late
        self.size_bytes += len(data)


def _write_secret(path: Path, jobs: list[_Job]) -> None:
    """Write what is short to a file that only its owner may read."""

    def listed(plans: tuple[_Plan, ...]) -> list[dict[str, int]]:
        chosen = sorted((job for job in jobs if job.plan in plans), key=lambda job: job.delivery.trade_id)
        return [
            {
                "trade_id": job.delivery.trade_id,
                "site": job.delivery.site,
                "delivery_hour": job.delivery.delivery_hour,
                "delivered_permille": job.elapsed_s * 1000 // HOUR_S,
                "delivered_gpu_ms": job.delivery.gpu_eighths * job.elapsed_s * 125,
            }
            for job in chosen
        ]

    content = {
        "shortfalls": listed((_Plan.SHORT, _Plan.NOTHING_RAN, _Plan.NO_JOB)),
        "decoys": listed((_Plan.DECOY,)),
    }
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)
        file.write(msgspec.json.format(msgspec.json.encode(content)) + b"\n")


def _iso(time_s: int) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _clock(seconds: int) -> str:
    return f"{seconds // HOUR_S:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _decimal(numerator_e5: int, denominator: int) -> str:
    """Return a quotient given in hundred-thousandths as a decimal number, rounded half up to five places."""
    whole, rest = divmod((2 * numerator_e5 + denominator) // (2 * denominator), 100_000)
    return f"{whole}.{rest:05d}".rstrip("0").rstrip(".")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; prints what was written as one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m gateway.simulation.meter", description="Play the meters."
    )
    parser.add_argument("--fills", required=True, help="JSON lines of deliveries, - for standard input")
    parser.add_argument("--out", required=True, type=Path, help="the meter folder; empty or new")
    parser.add_argument("--secret", required=True, type=Path, help="where to list what is short")
    parser.add_argument("--seed", required=True, type=int)
    parser.add_argument("--carbon", type=Path, help="carbon intensities, copied to carbon.csv")
    options = parser.parse_args(arguments)
    try:
        if options.fills == "-":
            schedule = read_schedule(sys.stdin.buffer, "standard input")
        else:
            with Path(options.fills).open("rb") as lines:
                schedule = read_schedule(lines, options.fills)
        summary = write_meters(schedule, options.out, options.secret, options.seed, options.carbon)
    except (MeterError, OSError) as error:
        sys.stderr.write(f"meter: {error}\n")
        return 2
    sys.stdout.write(msgspec.json.encode(summary).decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
