"""The simulation's inputs: what is refused, what is drawn, and the rules of a built scenario."""

import csv
import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pytest

from exchange.contract import HOUR_NS, gate_ns
from exchange.engine import EMPTY_STATE
from exchange.quantity import lots_of, ticks_of
from gateway.simulation import carbon, draws, prices
from gateway.simulation.build import SMALL, build, read_inputs
from gateway.simulation.demand import busy_arrivals, draw_jobs
from gateway.simulation.market import open_market, trading_window
from gateway.simulation.openb import (
    MODELS,
    NODE_COLUMNS,
    POD_COLUMNS,
    TraceError,
    find_trace,
    read_nodes,
    read_pods,
)
from gateway.simulation.rehearsal import search
from gateway.simulation.replay import Replay
from gateway.simulation.scenario import Act, Scenario, ScenarioError, read_acts, read_scenario
from schemas.catalogue import load_venue
from schemas.commands import Authority, CancelOrder, EnterOrder, OpenEra, Side
from schemas.events import BlockTraded, Rejected, Traded
from schemas.reasons import RejectReason
from schemas.wire import OrderEnter, OrderNamed
from tests.small_venue import SMALL_VENUE

CHINA = load_venue("china")
CLASSES = {one.code: one for one in CHINA.classes}
DAY = date(2026, 11, 24)
DATA = Path(os.environ.get("CUX_DATA", Path(__file__).parents[2] / "shared" / "data"))
FEW = 1500
MINUTE_NS = 60_000_000_000


def pod_line(**changes: object) -> str:
    fields: dict[str, object] = dict(
        zip(POD_COLUMNS, ("p", 1000, 1024, 1, 1000, "", "LS", "Running", 100, 200, "110.0"), strict=True)
    )
    return ",".join(str(value) for value in (fields | changes).values())


def write_trace(folder: Path, pods: list[str] | None = None, nodes: list[str] | None = None) -> Path:
    pods = [pod_line()] if pods is None else pods
    nodes = ["n,96000,786432,8,G2"] if nodes is None else nodes
    folder.mkdir(exist_ok=True)
    (folder / "openb_pod_list_x.csv").write_text("\n".join([",".join(POD_COLUMNS), *pods]) + "\n")
    (folder / "openb_node_list_x.csv").write_text("\n".join([",".join(NODE_COLUMNS), *nodes]) + "\n")
    return folder


def build_few(seed: int, out: Path, data: Path | None = None, trace: Path | None = None) -> Scenario:
    build(seed, out, data=data, venue=CHINA, day=DAY, min_orders=FEW, trace=trace)
    return read_scenario(out)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def all_acts(folder: Path, scenario: Scenario) -> list[tuple[str, Act]]:
    acts = [(client, act) for client in scenario.clients for act in read_acts(folder, client)]
    return sorted(acts, key=lambda one: (one[1].at_ns, one[0]))


# -- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", POD_COLUMNS)
def test_a_pod_list_without_a_column_is_refused(tmp_path: Path, column: str) -> None:
    path = write_trace(tmp_path) / "openb_pod_list_x.csv"
    path.write_text(path.read_text().replace(column, "other"))
    with pytest.raises(TraceError, match=rf"openb_pod_list_x.csv, line 1, column {column}: "):
        read_pods(path)


@pytest.mark.parametrize("column", NODE_COLUMNS)
def test_a_node_list_without_a_column_is_refused(tmp_path: Path, column: str) -> None:
    path = write_trace(tmp_path) / "openb_node_list_x.csv"
    header, *rest = path.read_text().splitlines()
    names = ["other" if name == column else name for name in header.split(",")]
    path.write_text("\n".join([",".join(names), *rest]))
    with pytest.raises(TraceError, match=rf"line 1, column {column}: "):
        read_nodes(path)


@pytest.mark.parametrize(
    "column",
    ["cpu_milli", "memory_mib", "num_gpu", "gpu_milli", "creation_time", "deletion_time", "scheduled_time"],
)
@pytest.mark.parametrize(
    "value", ["nan", "inf", "-1", "1e3", "x", "9" * 30, "1_000", "٣", " 1", "--1", "0x1"]
)
def test_a_bad_number_is_refused_with_line_column_value_and_what_is_allowed(
    tmp_path: Path, column: str, value: str
) -> None:
    path = write_trace(tmp_path, [pod_line(), pod_line(**{column: value})]) / "openb_pod_list_x.csv"
    with pytest.raises(TraceError) as caught:
        read_pods(path)
    error = caught.value
    assert (error.path, error.line, error.column, error.value) == (path, 3, column, value)
    assert "number from" in error.allowed
    assert all(part in str(error) for part in (str(path), "line 3", column, repr(value)[:60]))


@pytest.mark.parametrize(
    ("changes", "column"),
    [
        ({"num_gpu": "1.5"}, "num_gpu"),
        ({"num_gpu": ""}, "num_gpu"),
        ({"gpu_milli": 0}, "gpu_milli"),
        ({"gpu_milli": 1001}, "gpu_milli"),
        ({"creation_time": ""}, "creation_time"),
        ({"deletion_time": ""}, "deletion_time"),
        ({"num_gpu": 0, "gpu_milli": 0, "deletion_time": 99}, "deletion_time"),
        ({"deletion_time": 109}, "deletion_time"),
        ({"scheduled_time": "", "deletion_time": 99}, "deletion_time"),
        ({"gpu_spec": "T4|B300"}, "gpu_spec"),
        ({"num_gpu": 0, "gpu_milli": 0, "gpu_spec": "G1"}, "gpu_spec"),
    ],
)
def test_a_pod_that_makes_no_sense_is_refused(
    tmp_path: Path, changes: dict[str, object], column: str
) -> None:
    path = write_trace(tmp_path, [pod_line(**changes)]) / "openb_pod_list_x.csv"
    with pytest.raises(TraceError, match=rf"line 2, column {column}: "):
        read_pods(path)


def test_an_unknown_model_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    folder = write_trace(tmp_path, nodes=["n,1,1,8,B300"])
    with pytest.raises(TraceError, match=f"'B300' found; allowed: a model among {', '.join(MODELS)}"):
        read_nodes(folder / "openb_node_list_x.csv")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "line 1, column name: '' found"),
        (",".join(POD_COLUMNS).encode(), "no pod that wants GPUs"),
        ((",".join(POD_COLUMNS) + "\np,1\n").encode(), "line 2, column scheduled_time: '2 fields' found"),
        ((",".join(POD_COLUMNS) + "\n" + pod_line() + ",1\n").encode(), "'12 fields' found"),
        ((",".join(POD_COLUMNS) + "\n").encode() + b"\xff\xfe\n", "CSV file in UTF-8"),
        ((",".join(POD_COLUMNS) + '\n"p,').encode(), "CSV file in UTF-8"),
        (b"\x1f\x8bnot gzip", "plain or gzip"),
    ],
)
def test_a_file_that_is_no_pod_list_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "openb_pod_list_x.csv"
    path.write_bytes(data)
    with pytest.raises(TraceError, match=message):
        read_pods(path)


def test_a_truncated_gzip_is_refused_with_its_line(tmp_path: Path) -> None:
    text = "\n".join(
        [",".join(POD_COLUMNS), *(pod_line(name=f"p{n}", cpu_milli=n * 7919) for n in range(20_000))]
    )
    whole = gzip.compress(text.encode())
    path = tmp_path / "openb_pod_list_x.csv.gz"
    path.write_bytes(whole)
    assert len(read_pods(path)) == 20_000
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(TraceError, match="a truncated file") as caught:
        read_pods(path)
    assert 10_000 < caught.value.line < 20_000


def test_when_an_input_is_refused_nothing_is_written(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "trace", [pod_line(deletion_time=1)])
    with pytest.raises(TraceError):
        build_few(1, tmp_path / "out", trace=trace)
    assert not (tmp_path / "out").exists()


def test_a_node_list_without_a_pod_list_is_refused(tmp_path: Path) -> None:
    (write_trace(tmp_path) / "openb_pod_list_x.csv").unlink()
    with pytest.raises(TraceError, match=r"openb_pod_list\*\.csv\*"):
        build_few(1, tmp_path / "out", data=tmp_path)


def test_a_named_trace_folder_without_a_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="a folder with a node list and a pod list"):
        read_inputs(None, tmp_path)


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ('{"offers": [{"gpu": "t4", "vram_gb": 16, "usd_hr": NaN, "kind": "secure"}]}', "usd_hr"),
        ('{"offers": [{"gpu": "t4", "vram_gb": 16, "usd_hr": Infinity, "kind": "secure"}]}', "usd_hr"),
        ('{"offers": [{"gpu": "t4", "vram_gb": 16, "usd_hr": -1, "kind": "secure"}]}', "usd_hr"),
        ('{"offers": [{"gpu": "t4", "vram_gb": 16, "usd_hr": "1", "kind": "secure"}]}', "usd_hr"),
        ('{"offers": [{"gpu": "t4", "usd_hr": 1, "kind": "secure"}]}', "vram_gb"),
        ('{"offers": [{"gpu": "t4", "vram_gb": 16, "usd_hr": 1}]}', "kind"),
        ('{"offers": [7]}', "offers"),
        ('{"offers": 7}', "offers"),
        ("[]", "offers"),
        ('{\n"offers": [', "offers"),
    ],
)
def test_a_bad_price_snapshot_is_refused(tmp_path: Path, text: str, column: str) -> None:
    path = tmp_path / "2026-01-01.json"
    path.write_text(text)
    with pytest.raises(TraceError, match=column):
        prices.read_offers([path])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2023-01-01 00:00:00,nan", "line 2, column Carbon"),
        ("2023-01-01 00:00:00,-3", "line 2, column Carbon"),
        ("yesterday,3", "line 2, column Datetime"),
        ("2023-01-01 00:00:00,3", "the 8760 hours of a year"),
    ],
)
def test_a_bad_carbon_file_is_refused(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "SG_2023_hourly.csv"
    path.write_text(f"{carbon.TIME_COLUMN},{carbon.VALUE_COLUMN}\n{line}\n")
    with pytest.raises(TraceError, match=message):
        carbon.read_grid("SG", path)


def test_a_venue_without_the_class_of_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="venue small: no class A800-SXM, which model G2"):
        build(1, tmp_path / "out", data=write_trace(tmp_path / "t"), venue=SMALL_VENUE, day=DAY)


@pytest.mark.parametrize(("name", "value"), [("clients", 1), ("min_orders", 0)])
def test_an_argument_out_of_range_is_refused(tmp_path: Path, name: str, value: int) -> None:
    argument: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=rf"{name} {value}: at least"):
        build(1, tmp_path, data=None, venue=CHINA, day=DAY, **argument)


def test_a_damaged_scenario_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"scenario\.json"):
        read_scenario(tmp_path)
    (tmp_path / "orders").mkdir()
    (tmp_path / "orders" / "a.jsonl").write_text('{"at_ns":1}\n')
    with pytest.raises(ScenarioError, match=r"a\.jsonl, line 1: .*account"):
        read_acts(tmp_path, "a")


# -- what is read and drawn ----------------------------------------------------------------------------------


def test_a_pending_pod_lives_from_its_creation(tmp_path: Path) -> None:
    path = write_trace(tmp_path, [pod_line(scheduled_time=""), pod_line()]) / "openb_pod_list_x.csv"
    assert [pod.duration_ns for pod in read_pods(path)] == [100 * 10**9, 90 * 10**9]


def test_a_model_named_twice_counts_once_and_cpu_pods_are_left_out(tmp_path: Path) -> None:
    pods = [pod_line(num_gpu=0, gpu_milli=0), pod_line(gpu_spec="V100M16|V100M32|V100M32")]
    path = write_trace(tmp_path, pods) / "openb_pod_list_x.csv"
    assert [pod.models for pod in read_pods(path)] == [("V100M16", "V100M32")]


def test_the_trace_is_found_in_a_folder_or_its_subfolder_plain_or_gzip(tmp_path: Path) -> None:
    folder = write_trace(tmp_path / "alibaba_gpu_v2023")
    assert find_trace(tmp_path) == find_trace(folder)
    pods = folder / "openb_pod_list_x.csv"
    (folder / "openb_pod_list_gpuspec33.csv.gz").write_bytes(gzip.compress(pods.read_bytes()))
    found = find_trace(tmp_path)
    assert found is not None
    assert found[1].name == "openb_pod_list_gpuspec33.csv.gz"
    assert read_pods(found[1]) == read_pods(pods)
    assert find_trace(tmp_path / "none") is None


def test_arrivals_come_from_the_busy_days_and_keep_their_time_of_day(tmp_path: Path) -> None:
    day = 86_400
    busy = [pod_line(creation_time=7 * day + n, scheduled_time="", deletion_time=8 * day) for n in range(40)]
    quiet = [pod_line(creation_time=50_000, scheduled_time="", deletion_time=60_000)] * 9
    inputs = read_inputs(None, write_trace(tmp_path, [*quiet, *busy]))
    market = open_market(1, CHINA, DAY, nodes=inputs.nodes, offers=inputs.offers, shapes=inputs.shapes)
    arrivals = busy_arrivals(market, inputs.pods)
    assert (arrivals.days, len(arrivals.pods)) == (1, 40)
    jobs = draw_jobs(market, inputs.nodes, arrivals, 200)
    latest = market.window.start_ns + 40 * 10**9 + draws.ARRIVAL_JITTER_NS
    assert all(market.window.start_ns <= job.at_ns <= latest for job in jobs)


def test_jobs_are_cut_until_they_take_four_hours_on_average(tmp_path: Path) -> None:
    inputs = read_inputs(None, write_trace(tmp_path, [pod_line(deletion_time=10**6)] * 3))
    market = open_market(1, CHINA, DAY, nodes=inputs.nodes, offers=inputs.offers, shapes=inputs.shapes)
    arrivals = busy_arrivals(market, inputs.pods)
    assert arrivals.hours_most == 4
    assert {len(job.hours) for job in draw_jobs(market, inputs.nodes, arrivals, 50)} == {4}


def test_a_pod_that_names_no_class_takes_one_by_the_gpus_on_offer(tmp_path: Path) -> None:
    trace = write_trace(tmp_path, nodes=["n,1,1,2,T4", "n,1,1,6,G2", "n,1,1,0,"])
    inputs = read_inputs(None, trace)
    market = open_market(1, CHINA, DAY, nodes=inputs.nodes, offers=inputs.offers, shapes=inputs.shapes)
    jobs = draw_jobs(market, inputs.nodes, busy_arrivals(market, inputs.pods), 4000)
    share = Counter(job.class_code for job in jobs)
    assert share.total() == 4000
    assert 900 < share["T4"] < 1100
    assert share["A800-SXM"] == 4000 - share["T4"]


def test_pods_that_no_node_can_serve_are_left_out_and_counted(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "t", [pod_line(gpu_spec="T4"), pod_line(gpu_spec="G2|T4")])
    assert build_few(1, tmp_path / "out", trace=trace).summary.pods_left_out == 1
    write_trace(trace, [pod_line(gpu_spec="T4")])
    with pytest.raises(ScenarioError, match="no pod of the trace accepts a model that a node has"):
        build_few(1, tmp_path / "out", trace=trace)


def test_a_class_without_offers_is_priced_by_the_catalogue_then_by_fp32(tmp_path: Path) -> None:
    offers = [prices.Offer("t4", Decimal(16), Decimal("0.5"))]
    found = prices.market_prices(CHINA, ["T4", "V100-SXM2-16", "P100-PCIE"], offers)
    assert found["T4"].middle_ticks == 350
    reference = CLASSES["V100-SXM2-16"].reference_price_ticks
    assert reference is not None
    assert found["V100-SXM2-16"].middle_ticks == reference
    assert found["P100-PCIE"].middle_ticks == round(Fraction(reference * 93, 157))
    with pytest.raises(ScenarioError, match="class A800-SXM: no offer"):
        prices.market_prices(CHINA, ["A800-SXM"], offers)


def test_dollars_are_converted_as_the_catalogues_say() -> None:
    for name in ("china", "europe"):
        venue = load_venue(name)
        rate = prices.PERCENT_OF_USD[venue.currency.code]
        stated = f"times {rate // 100}.{rate % 100:02} {venue.currency.code} per USD"
        assert any(source.key == "price" and stated in source.text for source in venue.sources)


def test_intensity_is_the_annual_figure_times_the_grids_local_hour_over_its_mean(tmp_path: Path) -> None:
    start = datetime(2023, 1, 1, tzinfo=UTC).timestamp()
    path = tmp_path / "US-CAL-CISO_2023_hourly.csv"
    with path.open("w") as file:
        writer = csv.writer(file)
        writer.writerow([carbon.TIME_COLUMN, carbon.VALUE_COLUMN])
        for hour in range(8760):
            utc = datetime.fromtimestamp(start + 3600 * hour, UTC)
            # Noon at UTC-8 is 20:00 UTC: twice as clean as the other hours.
            writer.writerow([f"{utc:%Y-%m-%d %H:%M:%S}", 50 if utc.hour == 20 else 100])
    shapes = dict.fromkeys(carbon.UTC_OFFSET_HOURS, carbon.read_grid("US-CAL-CISO", path))
    leap_day = int(datetime(2028, 2, 28, 16, tzinfo=UTC).timestamp()) // 3600
    table = carbon.hourly_intensity(CHINA, shapes, range(leap_day, leap_day + 24))
    grid = next(zone.grid_mgco2_per_kwh for zone in CHINA.zones if zone.code == "zhongwei")
    mean = Fraction(23 * 100 + 50, 24)
    for local_hour in range(24):
        value = 50 if local_hour == 12 else 100
        assert table["zhongwei", leap_day + local_hour] == round(grid * value / mean)


def test_a_trading_day_is_the_venues_local_day_also_when_clocks_change() -> None:
    window = trading_window(load_venue("europe"), date(2026, 10, 25))
    assert window.end_ns - window.start_ns == 25 * HOUR_NS
    assert window.hours.stop * HOUR_NS - window.start_ns == 49 * HOUR_NS
    china = trading_window(CHINA, DAY)
    assert china.start_ns == datetime(2026, 11, 23, 16, tzinfo=UTC).timestamp() * 10**9
    assert (china.hours.start * HOUR_NS - china.start_ns, len(china.hours)) == (HOUR_NS, 47)


def test_streams_of_other_names_or_seeds_differ_and_the_same_one_repeats() -> None:
    first = [draws.stream(1, "bid", 7).random() for _ in range(2)]
    assert first[0] == first[1]
    assert len({first[0], draws.stream(2, "bid", 7).random(), draws.stream(1, "bid", 8).random()}) == 3


def test_a_value_of_no_weight_is_never_picked() -> None:
    random = draws.stream(1, "pick")
    found = Counter(draws.pick(random, [("a", 0), ("b", 3), ("c", 1), ("d", 0)]) for _ in range(4000))
    assert set(found) == {"b", "c"}
    assert 2800 < found["b"] < 3200


@pytest.mark.parametrize("steepness", [20, 100, 250, 900])
@pytest.mark.parametrize("first", [700, 1400, 6000])
def test_the_search_meets_the_goal_on_any_falling_curve(steepness: int, first: int) -> None:
    best, rounds = search(lambda supply: 100 + 900 * steepness * 10 // (steepness * 10 + supply), first)
    assert 200 <= best.unfilled_permille <= 400
    assert rounds <= 6


# -- the rules of a built scenario ---------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    build_few(7, tmp_path / "a")
    program = (
        "import sys; from datetime import date; from pathlib import Path\n"
        "from gateway.simulation.build import build; from schemas.catalogue import load_venue\n"
        "china, day = load_venue('china'), date(2026, 11, 24)\n"
        f"build(7, Path(sys.argv[1]), data=None, venue=china, day=day, min_orders={FEW})"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "b")], check=True, env=environment)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(contents(tmp_path / "a")) == 5


def test_another_seed_gives_other_orders(tmp_path: Path) -> None:
    build_few(7, tmp_path / "a")
    build_few(8, tmp_path / "b")
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert all(first[name] != second[name] for name in first if name != "carbon.csv")


def test_building_again_over_a_scenario_leaves_no_client_of_the_old_one(tmp_path: Path) -> None:
    for clients in (4, 3):
        build(1, tmp_path, data=None, venue=CHINA, day=DAY, min_orders=FEW, clients=clients)
        names = {path.stem for path in (tmp_path / "orders").iterdir()}
        assert names == set(read_scenario(tmp_path).clients)
        assert len(names) == clients


def test_without_a_data_folder_the_small_scenario_is_played_and_says_so(tmp_path: Path) -> None:
    for data, why in ((None, "no data folder was named"), (tmp_path / "empty", "is in empty")):
        sources = read_inputs(data).sources
        assert (sources.trace, sources.prices, sources.carbon) == ("small", "small", "small")
        assert why in sources.why


@pytest.fixture(scope="module", params=["small-1", "small-2", "openb-1"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, seed = request.param.split("-")
    if source == "openb" and find_trace(DATA) is None:
        pytest.skip(f"no openb trace in {DATA}; CUX_DATA names the data folder")
    out = tmp_path_factory.mktemp(request.param)
    build(int(seed), out, data=DATA if source == "openb" else None, venue=CHINA, day=DAY)
    return out


def test_a_built_scenario_keeps_its_rules(built: Path) -> None:
    scenario = read_scenario(built)
    acts = all_acts(built, scenario)
    check_form(built, scenario)
    check_orders(scenario, [act for _, act in acts])
    check_asks(built, scenario, [act for _, act in acts])


def check_form(folder: Path, scenario: Scenario) -> None:
    """Acts are in time order, within the day, of the client's own accounts, and one id names one order."""
    client_of = {one.account: one.client for one in scenario.participants}
    assert min(client_of) == 1000
    assert len(client_of) == len(scenario.participants)
    assert len({one.key_seed for one in scenario.participants}) == len(client_of)
    seen: set[tuple[int, str]] = set()
    for client in scenario.clients:
        acts = read_acts(folder, client)
        assert acts
        assert [act.at_ns for act in acts] == sorted(act.at_ns for act in acts)
        assert all(scenario.day_start_ns <= act.at_ns < scenario.day_end_ns for act in acts)
        assert {client_of[act.account] for act in acts} == {client}
        for act in acts:
            name = act.account, act.params["client_order_id"]
            if act.method == "order.cancel":
                assert name in seen
                msgspec.convert(act.params, OrderNamed, strict=True)
            else:
                assert name not in seen
                seen.add(name)
    sides = {site.account for site in scenario.sites}
    assert all((one.role == "provider") == (one.account in sides) for one in scenario.participants)


def wire_order(act: Act) -> OrderEnter:
    return msgspec.convert(act.params | {"valid_until": act.at_ns + MINUTE_NS}, OrderEnter, strict=True)


def check_orders(scenario: Scenario, acts: list[Act]) -> None:
    """Enough orders, most of them bids; every gate respected; no job over a day; nobody trades at a loss."""
    enters = [(act, wire_order(act)) for act in acts if act.method == "order.enter"]
    bids = [(act, order) for act, order in enters if order.side is Side.BUY]
    summary = scenario.summary
    assert len(enters) == summary.enters >= 20_000
    assert len(bids) == summary.bids > summary.asks
    for act, order in enters:
        first = order.delivery_start // HOUR_NS
        assert order.delivery_start == first * HOUR_NS
        assert first + order.hours - 1 <= scenario.last_delivery_hour
        room = 30 * MINUTE_NS if order.side is Side.BUY else 25 * MINUTE_NS
        assert act.at_ns + room <= gate_ns(first, CHINA.gate_seconds)
        assert 1 <= order.hours <= 24
        price = ticks_of(order.price, CHINA.currency.tick_micros)
        assert lots_of(order.gpus, CLASSES[order.class_code].lot_eighths) > 0
        if order.side is Side.BUY:
            assert 0 < price <= act.private_value_ticks
            assert order.requirement is not None
        else:
            assert 0 < act.private_value_ticks <= price
    assert sum(order.hours > 1 for _, order in bids) == summary.blocks > 1000
    cancels = [act for act in acts if act.method == "order.cancel"]
    assert len(cancels) == summary.cancels > 100


def check_asks(folder: Path, scenario: Scenario, acts: list[Act]) -> None:
    """No site-hour lists more than its capacity, and each ask claims the grade of its hour."""
    sites = {site.site: site for site in scenario.sites}
    assert all(
        1 <= sum(site.account == owner for site in sites.values()) <= 4
        for owner in {s.account for s in sites.values()}
    )
    zones = {zone.code: zone for zone in CHINA.zones}
    with (folder / "carbon.csv").open() as file:
        intensity = {
            (row["zone"], int(row["hour"])): int(row["mgco2_per_kwh"]) for row in csv.DictReader(file)
        }
    first_hour = scenario.day_start_ns // HOUR_NS
    assert set(intensity) == {
        (z, h) for z in zones for h in range(first_hour, scenario.last_delivery_hour + 1)
    }
    grades = [grade.code for grade in CHINA.carbon_grades]
    listed: dict[tuple[int, int], dict[str, int]] = {}
    for act in acts:
        name = act.params["client_order_id"]
        if act.method == "order.cancel":
            for names in listed.values():
                if name.startswith("s"):
                    names.pop(name, None)
            continue
        order = wire_order(act)
        if order.side is Side.BUY:
            continue
        site, hour = sites[order.site], order.delivery_start // HOUR_NS
        assert (site.account, site.class_code) == (act.account, order.class_code)
        names = listed.setdefault((site.site, hour), {})
        names[name] = lots_of(order.gpus, CLASSES[order.class_code].lot_eighths)
        assert sum(names.values()) <= site.capacity_lots
        pue = zones[site.zone].pue_permille
        assert pue is not None
        of_it_load = Fraction(intensity[site.zone, hour] * pue, 10**6)
        claimed = next(
            g.code
            for g in CHINA.carbon_grades
            if g.max_gco2_per_kwh is None or of_it_load <= g.max_gco2_per_kwh
        )
        assert order.carbon == claimed
        assert grades.index(site.carbon) <= grades.index(claimed)
    hours = range(scenario.sites[0].from_hour, scenario.last_delivery_hour + 1)
    assert len(listed) == len(sites) * len(hours)
    for (number, _), names in listed.items():
        assert sum(names.values()) == sites[number].capacity_lots


def test_in_the_engine_a_fifth_to_two_fifths_of_the_demand_stay_unfilled(built: Path) -> None:
    scenario = read_scenario(built)
    operator = Authority(bytes(32), 0, "test")
    replay = Replay()
    digest = bytes(32)
    era = OpenEra("test", "0.1", CHINA, digest, (digest,), digest, digest, EMPTY_STATE, EMPTY_STATE)
    replay.do(scenario.day_start_ns, era)
    for command in scenario.setup_commands():
        signed = msgspec.structs.replace(command, authority=operator)
        [applied] = replay.do(scenario.day_start_ns, signed)
        assert not isinstance(applied.events[-1], Rejected)
    demanded = filled = Fraction()
    refused: Counter[RejectReason] = Counter()
    for _, act in all_acts(built, scenario):
        if act.method == "order.cancel":
            cancel = CancelOrder(act.account, client_order_id=act.params["client_order_id"])
            done = replay.do(act.at_ns, cancel)
        else:
            order = entered(act)
            done = replay.do(act.at_ns, order)
            if order.side is Side.BUY:
                demanded += gpu_hours(order.class_code, order.lots * order.hours)
        for event in (event for applied in done for event in applied.events):
            trades = event.legs if isinstance(event, BlockTraded) else (event,)
            filled += sum(gpu_hours(t.class_code, t.lots) for t in trades if isinstance(t, Traded))
            if isinstance(event, Rejected):
                refused[event.reason] += 1
    assert Fraction(scenario.summary.demanded_gpu_hours) == demanded
    unfilled = 1 - filled / demanded
    assert Fraction(20, 100) <= unfilled <= Fraction(40, 100)
    assert int(unfilled * 1000) == scenario.summary.unfilled_permille
    # What is filled can no longer be cancelled, and what was sold meanwhile not be offered anew.
    assert set(refused) <= {RejectReason.UNKNOWN_ORDER, RejectReason.CAPACITY_EXCEEDED}
    assert refused[RejectReason.CAPACITY_EXCEEDED] < 50


def gpu_hours(class_code: str, lot_hours: int) -> Fraction:
    return Fraction(lot_hours * CLASSES[class_code].lot_eighths, 8)


def entered(act: Act) -> EnterOrder:
    order = wire_order(act)
    return EnterOrder(
        account=act.account,
        client_order_id=order.client_order_id,
        valid_until_ns=order.valid_until,
        side=order.side,
        class_code=order.class_code,
        delivery_hour=order.delivery_start // HOUR_NS,
        hours=order.hours,
        lots=lots_of(order.gpus, CLASSES[order.class_code].lot_eighths),
        price_ticks=ticks_of(order.price, CHINA.currency.tick_micros),
        requirement=order.requirement,
        site=order.site,
        carbon=order.carbon,
    )


def test_the_small_scenario_is_in_the_traces_own_form() -> None:
    found = find_trace(SMALL)
    assert found is not None
    assert {node.model for node in read_nodes(found[0])} == set(MODELS)
    assert len(read_pods(found[1])) > 500
    assert json.loads((SMALL / "prices.json").read_text())["offers"]
