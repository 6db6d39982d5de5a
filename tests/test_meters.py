"""Meters: what each adapter understands, and what it does not believe."""

import json
import os
from pathlib import Path

import pytest

from exchange.contract import HOUR_NS
from settlement.meters import carbon, dcgm, opencost, slurm
from settlement.meters.files import adapter_of
from settlement.meters.readings import MeterError, Parsed, Reading

DATA = Path(os.environ.get("CUX_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
SECOND_NS = 10**9
TWO_PM_NS = 1_763_992_800 * SECOND_NS
"""2025-11-24 14:00:00 UTC."""


def capture(name: str) -> bytes:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no {path}: CUX_DATA names the folder with the public captures")
    return path.read_bytes()


def sacct(**changes: str) -> bytes:
    """A row of sacct; by default one GPU of trade 7 from 14:00 to 15:00."""
    row = {
        **dict.fromkeys(slurm.FIELDS, ""),
        "JobID": "100",
        "Start": "2025-11-24T14:00:00",
        "End": "2025-11-24T15:00:00",
        "ElapsedRaw": "3600",
        "Suspended": "00:00:00",
        "NodeList": "gpu-1",
        "AllocTRES": "billing=8,cpu=8,gres/gpu=1,mem=64G,node=1",
        "JobName": "cux-7",
        **changes,
    }
    return "|".join(row[name] for name in slurm.FIELDS).encode() + b"\n"


def only(parsed: Parsed) -> Reading:
    assert parsed.quarantined == []
    (reading,) = parsed.readings
    return reading


def refused(parsed: Parsed) -> tuple[int, str]:
    assert parsed.readings == []
    ((line, why),) = parsed.quarantined
    return line, why


# -- Slurm --------------------------------------------------------------------------------------------


def test_slurm_counts_each_job_of_the_real_capture_once_and_not_its_steps() -> None:
    data = capture("metering_slurm_gpu/src_testdata_sacct-output.txt")
    parsed = slurm.parse(data)
    assert parsed.quarantined == []
    assert len(parsed.readings) == 16
    assert all("." not in reading.job for reading in parsed.readings)
    assert sum(r.gpu_ms or 0 for r in parsed.readings) == 3_007_000
    steps = sum("." in line.split("|")[0] and "gres/gpu" in line for line in data.decode().splitlines())
    assert steps > 0, "the capture has steps that repeat their job's GPUs"


def test_slurm_reads_both_gres_forms_once_and_running_jobs_up_to_now_in_the_real_capture() -> None:
    parsed = slurm.parse(capture("metering_slurm_gpu/tests_testdata_sacct_resource.txt"))
    running = {reading.job: reading for reading in parsed.readings}
    assert parsed.quarantined == []
    assert parsed.others == 1, "the pending job"
    assert running["1879824"].gpu_ms == 1_192_379_000
    assert running["1902893"].gpu_ms == 4 * 256_072_000
    assert running["1902893"].end_ns - running["1902893"].start_ns == 256_072 * SECOND_NS


@pytest.mark.parametrize(
    ("tres", "eighths"),
    [
        ("gres/gpu=4", 32),
        ("gres/gpu:a100=4,gres/gpu=4", 32),
        ("gres/gpu:a100=4", 32),
        ("gres/gpu:a100=1,gres/gpu:v100=2", 24),
        ("gres/shard=3", 3),
        ("gres/gpu=0", 0),
        ("cpu=8,mem=64G", None),
    ],
)
def test_slurm_gpus_are_the_total_or_the_types_never_both(tres: str, eighths: int | None) -> None:
    assert slurm.gpu_eighths(tres) == eighths


def test_slurm_delivers_elapsed_times_gpus() -> None:
    reading = only(slurm.parse(sacct(AllocTRES="gres/gpu=8")))
    assert reading == Reading(1, "100", 7, "gpu-1", TWO_PM_NS, TWO_PM_NS + HOUR_NS, 8 * 3_600_000, None)


def test_slurm_shards_are_eighths_of_a_gpu() -> None:
    assert only(slurm.parse(sacct(AllocTRES="gres/shard=3"))).gpu_ms == 3 * 450_000


@pytest.mark.parametrize("elapsed", ["3000", "3600"])
def test_slurm_suspended_time_is_not_delivered_whether_or_not_elapsed_contains_it(elapsed: str) -> None:
    assert only(slurm.parse(sacct(ElapsedRaw=elapsed, Suspended="00:10:00"))).gpu_ms == 3_000_000


def test_slurm_running_job_is_read_as_ending_when_it_was_looked_at() -> None:
    reading = only(slurm.parse(sacct(End="Unknown", ElapsedRaw="600", Suspended="00:01:00")))
    assert (reading.gpu_ms, reading.end_ns) == (600_000, TWO_PM_NS + 660 * SECOND_NS)


def test_slurm_job_that_has_not_started_gives_no_reading() -> None:
    pending = sacct(Start="Unknown", End="Unknown", ElapsedRaw="0", AllocTRES="", NodeList="None assigned")
    assert slurm.parse(pending) == Parsed([], [], 1)


def test_slurm_job_that_ran_no_time_is_a_reading_of_nothing_which_is_not_missing() -> None:
    assert only(slurm.parse(sacct(End="2025-11-24T14:00:00", ElapsedRaw="0"))).gpu_ms == 0


def test_slurm_name_may_hold_the_separator() -> None:
    assert only(slurm.parse(sacct(JobName="a|b|c"))).trade_id is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"JobName": "cux-"}, "JobName 'cux-'"),
        ({"JobName": "cux-07"}, "JobName 'cux-07'"),
        ({"JobName": "cux-7x"}, "JobName 'cux-7x'"),
        ({"ElapsedRaw": "-5"}, "ElapsedRaw '-5'"),
        ({"ElapsedRaw": "9" * 30}, "ElapsedRaw '9999"),
        ({"Start": "yesterday"}, "Start 'yesterday'"),
        ({"End": "2025-11-24T13:00:00"}, "End 2025-11-24T13:00:00"),
        ({"Suspended": "soon"}, "Suspended 'soon'"),
        ({"AllocTRES": "cpu=8"}, "AllocTRES 'cpu=8'"),
        ({"AllocTRES": "gres/gpu=9000000000000000"}, "AllocTRES 'gres/gpu=9"),
        ({"AllocTRES": "gres/gpu=x"}, "gres/gpu 'x'"),
        ({"JobID": "1\0"}, "JobID '1\\x00'"),
    ],
)
def test_slurm_bad_row_is_quarantined_by_field_and_value(changes: dict[str, str], field: str) -> None:
    line, why = refused(slurm.parse(sacct(**changes)))
    assert line == 1
    assert why.startswith(field)
    assert "wanted" in why or "allowed" in why


def test_slurm_half_a_file_loses_only_its_last_row() -> None:
    whole = sacct() + sacct(JobID="101", JobName="cux-123")
    for cut in range(len(sacct()) + 1, len(whole)):
        parsed = slurm.parse(whole[:cut])
        assert [r.job for r in parsed.readings] == ["100"], "cux-12 is not cux-123"
        assert [q.line for q in parsed.quarantined] == [2]


# -- OpenCost -----------------------------------------------------------------------------------------


def allocation(**changes: object) -> dict[str, object]:
    """An allocation of trade 7: two GPUs from 14:00 to 15:00."""
    return {
        "name": "cux-7",
        "properties": {"pod": "cux-7", "node": "gpu-1", "labels": {"team": "a"}},
        "window": {"start": "2025-11-24T00:00:00Z", "end": "2025-11-25T00:00:00Z"},
        "start": "2025-11-24T14:00:00Z",
        "end": "2025-11-24T15:00:00Z",
        "gpuHours": 2,
        **changes,
    }


def document(*allocations: dict[str, object]) -> bytes:
    return json.dumps({"code": 200, "data": [{f"a{i}": a for i, a in enumerate(allocations)}]}).encode()


def test_opencost_reads_the_real_capture() -> None:
    parsed = opencost.parse(capture("metering_opencost/allocation-example-output.json"))
    assert [reading.job for reading in parsed.readings] == ["kube-system", "opencost", "prometheus"]
    assert [(r.trade_id, r.gpu_ms) for r in parsed.readings] == [(None, 0)] * 3
    assert parsed.quarantined == []


def test_opencost_takes_the_pods_own_interval_before_the_window() -> None:
    reading = only(opencost.parse(document(allocation())))
    assert reading == Reading(1, "a0", 7, "gpu-1", TWO_PM_NS, TWO_PM_NS + HOUR_NS, 7_200_000, None)
    windowed = only(opencost.parse(document(allocation(start=None, end=None))))
    assert windowed.end_ns - windowed.start_ns == 24 * HOUR_NS


def test_opencost_gpu_hours_are_decimals_rounded_half_even_to_a_millisecond() -> None:
    def gpu_ms(text: str) -> int | None:
        raw = document(allocation(gpuHours=0)).replace(b'"gpuHours": 0', b'"gpuHours": ' + text.encode())
        return only(opencost.parse(raw)).gpu_ms

    assert gpu_ms("0.3") == 1_080_000, "no binary fraction on the way"
    assert gpu_ms("0.00000125") == 4
    assert gpu_ms("0.00000375") == 14
    assert gpu_ms("0.99999999999999999999") == 3_600_000
    assert gpu_ms("1e-400") == 0


def test_opencost_pod_of_no_fill_has_no_trade() -> None:
    for properties in ({}, None, {"pod": "web-1"}, {"pod": None}):
        assert only(opencost.parse(document(allocation(properties=properties)))).trade_id is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"gpuHours": -1}, "gpuHours -1"),
        ({"gpuHours": "2"}, "gpuHours '2'"),
        ({"gpuHours": True}, "gpuHours 'True'"),
        ({"gpuHours": None}, "gpuHours 'None'"),
        ({"gpuHours": 1e300}, "gpuHours 1"),
        ({"end": "2025-11-24T14:00:00Z"}, "gpuHours 2: 0 is wanted"),
        ({"end": "2025-11-24T13:00:00Z"}, "end 2025-11-24T13:00:00Z"),
        ({"start": 5}, "start '5'"),
        ({"properties": {"pod": "cux-x"}}, "properties.pod 'cux-x'"),
        ({"properties": 3}, "properties '3'"),
    ],
)
def test_opencost_bad_allocation_is_quarantined_and_its_neighbour_read(
    changes: dict[str, object], why: str
) -> None:
    parsed = opencost.parse(document(allocation(**changes), allocation()))
    assert [reading.line for reading in parsed.readings] == [2]
    ((line, reason),) = parsed.quarantined
    assert line == 1
    assert reason.startswith(why)


@pytest.mark.parametrize(
    "data",
    [
        document(allocation())[:-3],
        b"",
        b"[]",
        b"{}",
        b'{"data": 5}',
        b'{"data": [5]}',
        b"\xff\xfe{",
        b'{"data": NaN}',
        b"[" * 100_000,
    ],
)
def test_opencost_file_that_is_no_document_is_quarantined_whole(data: bytes) -> None:
    line, why = refused(opencost.parse(data))
    assert line == 0
    assert why


def test_opencost_window_without_allocations_is_empty() -> None:
    assert opencost.parse(b'{"data": [null, {}]}') == Parsed([], [], 0)


# -- DCGM ---------------------------------------------------------------------------------------------


def sample(value: object = 5000, **labels: str) -> bytes:
    """An energy sample of a GPU that serves trade 7."""
    named = {"gpu": "0", "UUID": "GPU-a", "Hostname": "gpu-1", "pod": "cux-7", **labels}
    inner = ",".join(f'{name}="{text}"' for name, text in named.items())
    return f"{dcgm.ENERGY}{{{inner}}} {value}\n".encode()


def test_dcgm_reads_energy_of_a_gpu_without_pod_labels_in_the_real_capture() -> None:
    parsed = dcgm.parse(capture("metering_dcgm/dcgm_l4_kops.prom"), TWO_PM_NS)
    assert parsed.quarantined == []
    assert {(r.job, r.trade_id, r.host, r.energy_mj) for r in parsed.readings} == {
        ("GPU-c2f76b33-7953-256e-8f33-1343419b1a1c", None, "i-030791dc5a37cd257", 4_742_776)
    }


def test_dcgm_without_energy_says_nothing_in_the_real_capture() -> None:
    assert dcgm.parse(capture("metering_dcgm/dcgm_h100x8_aicr_sampled.prom"), 0) == Parsed([], [], 30)


def test_dcgm_host_is_read_from_either_spelling() -> None:
    newer, older = sample(), sample().replace(b"Hostname", b"hostname")
    assert only(dcgm.parse(newer, 5)) == only(dcgm.parse(older, 5))
    assert only(dcgm.parse(newer, 5)) == Reading(1, "GPU-a", 7, "gpu-1", 5, 5, None, 5000)


def test_dcgm_mig_instance_is_a_gpu_of_its_own_and_needs_no_utilisation() -> None:
    data = sample(GPU_I_ID="1", GPU_I_PROFILE="1g.10gb") + sample(GPU_I_ID="2", pod="cux-8")
    assert [(r.job, r.trade_id) for r in dcgm.parse(data, 0).readings] == [("GPU-a/1", 7), ("GPU-a/2", 8)]


def test_dcgm_label_may_hold_what_ends_labels_elsewhere() -> None:
    data = sample(modelName='NVIDIA \\"H100\\", 80GB} HBM3\\\\')
    assert only(dcgm.parse(data, 0)).energy_mj == 5000


@pytest.mark.parametrize(("text", "energy_mj"), [("4.335301032e+09", 4_335_301_032), ("1 1763992800000", 1)])
def test_dcgm_value_may_be_written_with_an_exponent_or_a_time(text: str, energy_mj: int) -> None:
    assert only(dcgm.parse(sample(text), 0)).energy_mj == energy_mj


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (sample(-1), dcgm.ENERGY),
        (sample("NaN"), dcgm.ENERGY),
        (sample("+Inf"), dcgm.ENERGY),
        (sample("1e99"), dcgm.ENERGY),
        (sample(UUID=""), "UUID ''"),
        (sample(pod="cux-x"), "pod 'cux-x'"),
        (dcgm.ENERGY.encode() + b"{gpu=0} 5\n", "labels"),
        (dcgm.ENERGY.encode() + b" 5\n", "sample"),
        (sample()[:-2], "the row has no end"),
    ],
)
def test_dcgm_bad_sample_is_quarantined(data: bytes, why: str) -> None:
    assert refused(dcgm.parse(data, 0))[1].startswith(why)


# -- carbon and files ---------------------------------------------------------------------------------


def test_carbon_reads_its_rows_and_quarantines_the_others() -> None:
    data = b"zone,hour,mgco2_per_kwh\neast,490000,581000\neast,x,1\neast,490001\neast,490003,99999999\neast,4"
    rows, quarantined = carbon.parse(data)
    assert rows == [(2, "east", 490_000, 581_000)]
    assert [row.line for row in quarantined] == [6, 3, 4, 5]


def test_carbon_without_its_header_is_quarantined_whole() -> None:
    rows, quarantined = carbon.parse(b"east,490000,581000\n")
    assert (rows, quarantined[0].line) == ([], 0)


@pytest.mark.parametrize(
    ("name", "data", "form"),
    [
        ("slurm-1-1.txt", sacct(), "slurm"),
        ("opencost-a.json", document(allocation()), "opencost"),
        ("dcgm-1763992800.prom", sample(), "dcgm"),
        ("dcgm-1763992800-copy.prom", sample(), "dcgm"),
    ],
)
def test_file_name_says_the_format(name: str, data: bytes, form: str) -> None:
    adapter = adapter_of(name)
    assert adapter.format == form
    if form == "dcgm":
        assert only(adapter.parse(data)).start_ns == TWO_PM_NS


@pytest.mark.parametrize("name", ["notes.md", "dcgm-now.prom", "slurm.txt", "dcgm-99999999999.prom"])
def test_file_of_no_format_is_refused_with_the_forms_that_are_allowed(name: str) -> None:
    with pytest.raises(MeterError, match=r"slurm-\*\.txt, opencost-\*\.json or dcgm-<unix seconds>\.prom"):
        adapter_of(name)
