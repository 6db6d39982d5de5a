"""The meter program: what it writes can be read back, and says what was meant, flaws included."""

import calendar
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from gateway.simulation.meter import Delivery, MeterError, MeterSummary, main, read_schedule, write_meters

FIRST_HOUR = 494_990
FILLS = 1_200
GPU_HOUR_MS = 3_600_000

CLASSES = (("H800-SXM", 8, 700), ("T4", 1, 70), ("A800-SXM.NODE8", 64, 400), ("Ascend-910B", 8, None))


def schedule(fills: int = FILLS, sites: int = 6) -> list[Delivery]:
    rng = Random(7)
    made = []
    for trade_id in range(1, fills + 1):
        site = rng.randint(1, sites)
        code, lot_eighths, tdp_w = CLASSES[site % len(CLASSES)]
        made.append(
            Delivery(
                trade_id=trade_id,
                site=site,
                class_code=code,
                delivery_hour=FIRST_HOUR + rng.randrange(30),
                gpu_eighths=lot_eighths * rng.randint(1, 11),
                tdp_w=tdp_w,
            )
        )
    return made


class Reading(NamedTuple):
    """GPU time of one job, as the meter's own clock has it."""

    start_s: int
    end_s: int
    finished: bool
    gpu_ms: Decimal


class Written(NamedTuple):
    """A meter folder and what it was made from."""

    out: Path
    secret: dict[str, list[dict[str, int]]]
    secret_path: Path
    summary: MeterSummary
    deliveries: dict[int, Delivery]

    def files(self, pattern: str) -> list[Path]:
        return sorted([*self.out.glob(f"site-*/{pattern}"), *self.out.glob(f"late/site-*/{pattern}")])

    @property
    def listed(self) -> set[int]:
        return {entry["trade_id"] for entries in self.secret.values() for entry in entries}


def seconds(text: str) -> int:
    return calendar.timegm(time.strptime(text.removesuffix("Z"), "%Y-%m-%dT%H:%M:%S"))


def slurm_readings(path: Path) -> Iterator[tuple[int, Reading]]:
    for line in path.read_text().splitlines():
        fields = line.split("|")
        assert len(fields) == 32
        if "." in fields[0] or not fields[31].startswith("cux-"):
            continue
        tres = dict(part.split("=") for part in fields[29].split(","))
        whole = next((value for key, value in tres.items() if key.startswith("gres/gpu")), "0")
        eighths = int(tres.get("gres/shard", 0)) or 8 * int(whole)
        finished = fields[6] != "Unknown"
        start_s = seconds(fields[5])
        end_s = seconds(fields[6]) if finished else start_s
        if finished:
            suspended = sum(
                int(n) * unit for n, unit in zip(fields[23].split(":"), (3600, 60, 1), strict=True)
            )
            assert end_s - start_s - suspended == int(fields[12])
        gpu_ms = Decimal(int(fields[12]) * eighths * 125)
        yield int(fields[31][4:]), Reading(start_s, end_s, finished, gpu_ms)


def opencost_readings(path: Path) -> Iterator[tuple[int, Reading]]:
    content = json.loads(path.read_text(), parse_float=Decimal)
    assert content["code"] == 200
    for hour in content["data"]:
        for name, allocation in hour.items():
            assert allocation["name"] == allocation["properties"]["pod"] == name
            window = allocation["window"]
            start_s, end_s = seconds(allocation["start"]), seconds(allocation["end"])
            assert seconds(window["start"]) <= start_s <= end_s <= seconds(window["end"])
            hours = Decimal(allocation["gpuHours"])
            assert abs(hours - Decimal(allocation["gpuCount"]) * (end_s - start_s) / 3600) <= Decimal(
                "0.00001"
            )
            yield int(name[4:]), Reading(start_s, end_s, True, hours * GPU_HOUR_MS)


def last_readings(written: Written) -> dict[int, Reading]:
    """The last state of each job, from all files, the late ones too."""
    found: dict[int, Reading] = {}
    for pattern, read in (("slurm-*.txt", slurm_readings), ("opencost-*.json", opencost_readings)):
        for path in written.files(pattern):
            for trade_id, reading in read(path):
                known = found.get(trade_id)
                if known is None or (reading.finished, reading.end_s) > (known.finished, known.end_s):
                    found[trade_id] = reading
    return found


def write(folder: Path, deliveries: list[Delivery], seed: int = 3) -> Written:
    secret_path = folder / "secret.json"
    summary = write_meters(deliveries, folder / "meters", secret_path, seed)
    secret = json.loads(secret_path.read_text())
    by_trade = {delivery.trade_id: delivery for delivery in deliveries}
    return Written(folder / "meters", secret, secret_path, summary, by_trade)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(tmp_path_factory.mktemp("meters"), schedule())


def test_an_ordinary_fill_is_delivered_within_the_jitter(written: Written) -> None:
    readings = last_readings(written)
    for trade_id, delivery in written.deliveries.items():
        if trade_id in written.listed:
            continue
        contracted = Decimal(delivery.gpu_eighths * GPU_HOUR_MS // 8)
        off = abs(readings[trade_id].gpu_ms - contracted)
        assert off <= contracted * 3 / 1000 + 36, trade_id


def test_what_the_meters_show_of_a_shortfall_or_a_decoy_is_what_the_secret_list_says(
    written: Written,
) -> None:
    readings = last_readings(written)
    for entry in [*written.secret["shortfalls"], *written.secret["decoys"]]:
        delivery = written.deliveries[entry["trade_id"]]
        assert (entry["site"], entry["delivery_hour"]) == (delivery.site, delivery.delivery_hour)
        reading = readings.get(entry["trade_id"])
        shown = Decimal(0) if reading is None else reading.gpu_ms
        assert abs(shown - entry["delivered_gpu_ms"]) <= 36
        permille = entry["delivered_gpu_ms"] * 8000 // (delivery.gpu_eighths * GPU_HOUR_MS)
        assert permille == entry["delivered_permille"]


def test_shortfalls_lie_clear_above_and_decoys_clear_below_one_percent(written: Written) -> None:
    assert all(0 <= entry["delivered_permille"] <= 983 for entry in written.secret["shortfalls"])
    assert any(entry["delivered_permille"] >= 975 for entry in written.secret["shortfalls"])
    assert all(992 <= entry["delivered_permille"] <= 995 for entry in written.secret["decoys"])


def test_one_and_a_half_percent_of_fills_fall_short_and_as_many_others_only_seem_to(written: Written) -> None:
    shortfalls = [entry["trade_id"] for entry in written.secret["shortfalls"]]
    decoys = [entry["trade_id"] for entry in written.secret["decoys"]]
    assert len(shortfalls) == len(decoys) == FILLS * 15 // 1000
    assert len(written.listed) == 2 * len(shortfalls)


@pytest.mark.parametrize(("fills", "shortfalls", "decoys"), [(0, 0, 0), (4, 4, 0), (15, 10, 5), (60, 10, 10)])
def test_at_least_ten_fall_short_where_there_are_ten(
    tmp_path: Path, fills: int, shortfalls: int, decoys: int
) -> None:
    secret = write(tmp_path, schedule(fills)).secret
    assert (len(secret["shortfalls"]), len(secret["decoys"])) == (shortfalls, decoys)


def test_of_nothing_delivered_some_has_a_job_of_no_time_and_some_no_job(written: Written) -> None:
    readings = last_readings(written)
    nothing = [e["trade_id"] for e in written.secret["shortfalls"] if e["delivered_gpu_ms"] == 0]
    assert {trade_id in readings for trade_id in nothing} == {True, False}


def test_every_job_stands_at_the_site_that_sold_it(written: Written) -> None:
    for pattern, read in (("slurm-*.txt", slurm_readings), ("opencost-*.json", opencost_readings)):
        for path in written.files(pattern):
            for trade_id, _ in read(path):
                assert path.parent.name == f"site-{written.deliveries[trade_id].site}"


def test_half_of_the_sites_run_slurm_and_half_opencost(written: Written) -> None:
    slurm = {path.parent.name for path in written.files("slurm-*.txt")}
    opencost = {path.parent.name for path in written.files("opencost-*.json")}
    assert len(slurm) == len(opencost) == 3
    assert not slurm & opencost


def test_a_clock_is_off_by_at_most_twenty_seconds_and_not_the_same_at_every_site(written: Written) -> None:
    earliest: dict[int, int] = {}
    for trade_id, reading in last_readings(written).items():
        delivery = written.deliveries[trade_id]
        if trade_id not in written.listed:
            late_s = reading.start_s - delivery.delivery_hour * 3600
            assert -20 <= late_s <= 25
            earliest[delivery.site] = min(late_s, earliest.get(delivery.site, late_s))
    assert len(set(earliest.values())) > 1


def test_allocation_rows_show_every_form_of_gres_and_steps_repeat_it(tmp_path: Path) -> None:
    written = write(tmp_path, schedule(sites=12))
    forms: Counter[str] = Counter()
    for path in written.files("slurm-*.txt"):
        rows = {line.split("|")[0]: line.split("|") for line in path.read_text().splitlines()}
        for job_id, fields in rows.items():
            gres = ",".join(p for p in fields[29].split(",") if p.startswith("gres"))
            if "." not in job_id and fields[31].startswith("cux-"):
                forms[re.sub(r"=\d+|:[a-z0-9_.]+", "", gres) + (" typed" if "gpu:" in gres else "")] += 1
                for step in ("batch", "extern"):
                    assert gres in rows[f"{job_id}.{step}"][29]
    assert set(forms) == {"gres/gpu", "gres/gpu typed", "gres/gpu,gres/gpu typed", "gres/shard"}


def test_slurm_files_hold_jobs_of_others_running_and_pending(written: Written) -> None:
    states = {line.split("|")[4] for path in written.files("slurm-*.txt") for line in path.open()}
    assert {"COMPLETED", "RUNNING", "PENDING", "NODE_FAIL"} <= states


def test_some_files_come_twice_and_some_rows_stand_in_two_files(written: Written) -> None:
    contents = Counter(path.read_bytes() for p in ("slurm-*", "opencost-*") for path in written.files(p))
    assert sum(count - 1 for count in contents.values()) == written.summary.copied_files > 0
    rows = Counter(
        line
        for path in written.files("slurm-*.txt")
        if "again" not in path.name
        for line in set(path.read_text().splitlines())
        if "|cux-" in line
    )
    assert max(rows.values()) == 2


def test_a_job_seen_under_way_is_seen_at_its_end_in_a_file_on_time(written: Written) -> None:
    under_way, ended = set(), set()
    for path in written.files("slurm-*.txt"):
        for trade_id, reading in slurm_readings(path):
            if not reading.finished:
                under_way.add(trade_id)
            elif "late" not in path.parts:
                ended.add(trade_id)
    assert under_way
    assert under_way <= ended


def test_some_files_arrive_late_in_the_same_structure(written: Written) -> None:
    late = [path for path in written.out.glob("late/site-*/*") if path.is_file()]
    assert len(late) == written.summary.late_files
    assert {path.name.split("-")[0] for path in late} & {"slurm", "opencost"}
    assert len(late) < written.summary.files // 10


def scrapes(written: Written) -> Iterator[tuple[Path, int, list[tuple[dict[str, str], int]]]]:
    """File, its time and its energy samples."""
    for path in written.files("dcgm-*.prom"):
        samples = []
        for line in path.read_text().splitlines():
            if line.startswith("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{"):
                labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
                samples.append((labels, int(line.rpartition(" ")[2])))
        yield path, int(path.stem.removeprefix("dcgm-")), samples


def test_energy_is_scraped_within_the_hour_and_only_where_the_fill_runs(written: Written) -> None:
    seen: dict[int, list[int]] = {}
    labels_seen: set[str] = set()
    pods: set[bool] = set()
    for path, time_s, samples in scrapes(written):
        for labels, _ in samples:
            labels_seen |= {"Hostname", "hostname"} & labels.keys()
            pods.add("pod" in labels)
            if "pod" in labels:
                delivery = written.deliveries[int(labels["pod"].removeprefix("cux-"))]
                assert path.parent.name == f"site-{delivery.site}"
                assert 0 < time_s - delivery.delivery_hour * 3600 < 3600
                seen.setdefault(delivery.trade_id, []).append(time_s)
    assert labels_seen == {"Hostname", "hostname"}
    assert pods == {True, False}
    full = [trade_id for trade_id in seen if trade_id not in written.listed]
    assert full
    assert all(len(set(seen[trade_id])) >= 2 for trade_id in full)
    assert len(seen) <= written.summary.fills_with_energy


def test_energy_runs_between_idle_and_tdp_but_where_a_counter_was_reset(written: Written) -> None:
    last: dict[str, tuple[int, int]] = {}
    resets = steps = 0
    for path, time_s, samples in sorted(scrapes(written), key=lambda scrape: scrape[1]):
        site = int(path.parent.name.removeprefix("site-"))
        tdp_w = CLASSES[site % len(CLASSES)][2]
        assert tdp_w is not None
        for labels, counter_mj in samples:
            from_s, from_mj = last.get(labels["UUID"], (time_s, counter_mj))
            if counter_mj < from_mj:
                resets += 1
            else:
                steps += 1
                assert counter_mj - from_mj <= 1120 * tdp_w * (time_s - from_s)
            last[labels["UUID"]] = (time_s, counter_mj)
    assert 0 < resets < steps


def test_a_class_without_a_known_tdp_has_no_exporter(written: Written) -> None:
    unknown = {f"site-{d.site}" for d in written.deliveries.values() if d.tdp_w is None}
    assert unknown
    assert not unknown & {path.parent.name for path in written.files("dcgm-*.prom")}


DATA = Path(os.environ.get("CUX_DATA") or Path(__file__).parents[2] / "shared" / "data")


def sample(name: str) -> str:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is missing; CUX_DATA names the data folder")
    return path.read_text()


def test_allocations_have_the_members_of_the_real_ones(written: Written) -> None:
    real = json.loads(sample("metering_opencost/allocation-example-output.json"))
    ours = json.loads(written.files("opencost-*.json")[0].read_text())
    assert ours.keys() == real.keys()
    members = {tuple(allocation) for allocation in real["data"][0].values()}
    assert {tuple(a) for hour in ours["data"] for a in hour.values()} == members


def test_rows_leave_the_same_fields_empty_as_the_real_ones(written: Written) -> None:
    def empty(rows: list[str]) -> dict[str, set[tuple[bool, ...]]]:
        shapes: dict[str, set[tuple[bool, ...]]] = {}
        for row in rows:
            fields = row.split("|")
            if "gres/" in fields[29] and fields[4] == "COMPLETED":
                step = fields[0].partition(".")[2]
                shapes.setdefault(step, set()).add(tuple(not field for field in fields))
        return shapes

    real = empty(sample("metering_slurm_gpu/src_testdata_sacct-output.txt").splitlines())
    ours = empty([row for path in written.files("slurm-*.txt") for row in path.read_text().splitlines()])
    assert set(ours) == {"", "batch", "extern"}
    for step, shapes in ours.items():
        assert shapes <= real[step]


def test_samples_have_the_labels_of_the_real_ones(written: Written) -> None:
    real = sample("metering_dcgm/dcgm_h100x8_aicr_sampled.prom").splitlines()
    labels = {tuple(re.findall(r'(\w+)="', line)) for line in real if not line.startswith("#")}
    _, _, samples = next(scrape for scrape in scrapes(written) if "Hostname" in scrape[2][0][0])
    assert {tuple(each) for each, _ in samples} <= labels


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_seed_gives_the_same_bytes_in_any_order_and_another_seed_others(tmp_path: Path) -> None:
    deliveries = schedule(300)
    for name, seed, order in (("a", 3, deliveries), ("b", 3, deliveries[::-1]), ("c", 4, deliveries)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, order, seed)
    first, second, other = (content(tmp_path / name) for name in "abc")
    assert first == second
    assert first != other


def test_only_the_owner_reads_the_secret_list(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("old")
    (tmp_path / "secret.json").chmod(0o644)
    written = write(tmp_path, schedule(20))
    assert written.secret_path.stat().st_mode & 0o777 == 0o600


def test_a_secret_list_inside_the_meter_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MeterError, match="outside the meter folder"):
        write_meters(schedule(5), tmp_path / "out", tmp_path / "out" / "secret.json", 1)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "meters").mkdir()
    (tmp_path / "meters" / "old").touch()
    with pytest.raises(MeterError, match="an empty or new folder is allowed"):
        write(tmp_path, schedule(5))


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (b'{"trade_id":1,"site":0,"class":"T4","delivery_hour":5,"gpu_eighths":1,"tdp_w":70}', "site"),
        (b'{"trade_id":1,"site":2,"class":"T4","delivery_hour":5,"gpu_eighths":1.5}', "gpu_eighths"),
        (b'{"trade_id":1,"site":2,"class":"T|4","delivery_hour":5,"gpu_eighths":1}', "class"),
        (b'{"trade_id":1,"site":2,"class":"T4","gpu_eighths":1}', "delivery_hour"),
        (b'{"trade_id":1,"site":2,', "truncated"),
        (b"[" * 100_000, "`object`"),
    ],
)
def test_a_bad_delivery_is_refused_with_line_field_and_value(line: bytes, named: str) -> None:
    with pytest.raises(MeterError, match=rf"fills\.jsonl, line 2: .*{named}") as caught:
        read_schedule([b"\n", line], "fills.jsonl")
    assert line.decode()[:300] in str(caught.value)


def test_a_fill_that_comes_twice_is_refused() -> None:
    line = b'{"trade_id":9,"site":2,"class":"T4","delivery_hour":5,"gpu_eighths":1}'
    with pytest.raises(MeterError, match="trade_id 9 comes twice"):
        read_schedule([line, line], "fills.jsonl")


def test_the_program_says_in_one_sentence_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--fills",
        str(tmp_path / "none"),
        "--out",
        str(tmp_path / "o"),
        "--secret",
        "s",
        "--seed",
        "1",
    ]
    assert main(options) == 2
    assert re.fullmatch(r"meter: .*No such file or directory: '.*none'\n", capsys.readouterr().err)


def test_the_program_reads_standard_input_and_knows_nothing_of_settlement(tmp_path: Path) -> None:
    (tmp_path / "carbon.csv").write_text("zone,hour,mgco2_per_kwh\neast,494990,500000\n")
    lines = "".join(
        json.dumps(
            {
                "trade_id": d.trade_id,
                "site": d.site,
                "class": d.class_code,
                "delivery_hour": d.delivery_hour,
                "gpu_eighths": d.gpu_eighths,
                "tdp_w": d.tdp_w,
            }
        )
        + "\n"
        for d in schedule(40)
    )
    # Runs the module as `-m` does, then looks at what it brought in.
    code = (
        "import runpy, sys\n"
        "try: runpy.run_module('gateway.simulation.meter', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('settlement', 'tests')]\n"
    )
    out = tmp_path / "meters"
    options = ["--fills", "-", "--out", out, "--secret", tmp_path / "s", "--seed", "5"]
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, options), "--carbon", str(tmp_path / "carbon.csv")],
        input=lines.encode(),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        check=False,
    )
    assert run.returncode == 0, run.stderr.decode()
    assert json.loads(run.stdout)["fills"] == 40
    assert (out / "carbon.csv").read_bytes() == (tmp_path / "carbon.csv").read_bytes()
