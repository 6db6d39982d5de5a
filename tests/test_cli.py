"""The command line, verb by verb, on a running exchange: for people and, with `--json`, for programs."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import typer.main

from exchange.contract import HOUR_NS
from exchange.engine import Engine
from exchange.folder import DataFolder
from exchange.log import FileLog, batch_at, read_records
from exchange.quantity import money_of
from exchange.quarantine import Quarantine
from exchange.recovery import Recovered, reapply, snapshot_of
from exchange.snapshot import Snapshots
from gateway.cli import evidence, main
from gateway.cli.app import app
from gateway.keys import read_key
from schemas.codec import encode
from schemas.commands import CancelOrder, Tick
from schemas.records import Record
from settlement.postgres import DATABASE_URL
from tests.exchange_fixture import (
    Participant,
    Served,
    ask,
    bid,
    contract,
    free_port,
    order,
    small_folder,
    temporary_folder,
)
from tests.golden import day, encoded
from tests.market import FIRST_HOUR, START_NS
from tests.test_engine_properties import VENUES


class Said(NamedTuple):
    """What a command said, and its exit code."""

    code: int
    out: str
    error: str

    @property
    def sentence(self) -> str:
        """The error without the box that is drawn around it."""
        return " ".join(self.error.replace("│", " ").split())

    @property
    def json(self) -> Any:
        assert self.code == 0, self
        return json.loads(self.out.splitlines()[-1])


Cux = Callable[..., Said]


@pytest.fixture
def cux(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cux:
    """The command line, in this process."""

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["cux", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, error = capsys.readouterr()
        return Said(int(ended.value.code or 0), out, error)

    return run


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch, temporary_folder() as path:
        patch.delenv(DATABASE_URL, raising=False)
        yield path


@pytest.fixture(scope="module")
def exchange(place: Path) -> Iterator[Served]:
    """An exchange of the Chinese venue, set up by the command line itself, with one trade in it."""
    folder = place / "exchange"
    by_hand("venue", "init", "china", "--folder", folder, "--clock-speed", 1, "--start-ns", START_NS)
    folder.chmod(0o711)
    served = Served(DataFolder(folder), free_port())
    try:
        keys = [by_hand("keys", "new", place / name).strip() for name in ("seller.key", "buyer.key")]
        for account, key in enumerate(keys, 1):
            by_hand("participant", "register", account, key, "--folder", folder)
            by_hand("participant", "fund", account, "1000000.50", "--folder", folder)
        by_hand(
            *("site", "certify", 1, "--account", 1, "--zone", "zhongwei", "--class", "H800-SXM"),
            *("--gpus", 512, "--carbon", "D", "--security", "S2", "--folder", folder),
        )
        asyncio.run(trade(served, place))
        yield served
    finally:
        served.stop()


def by_hand(*arguments: object) -> str:
    command = [sys.executable, "-m", "gateway.cli", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


async def trade(exchange: Served, place: Path) -> None:
    seller, buyer = (read_key(place / name) for name in ("seller.key", "buyer.key"))
    changes = {"class": "H800-SXM"}
    needed = {"zone": "beijing", "latency": "L4", "carbon": "E", "security": "S1"}
    async with (
        exchange.client(Participant(1, seller)) as sells,
        exchange.client(Participant(2, buyer)) as buys,
    ):
        await sells.enter(order(ask("a", 1, FIRST_HOUR, "5", "12.34", **changes)))
        await buys.enter(order(bid("b", FIRST_HOUR, "2", "13", requirement=needed, **changes)))
        await buys.enter(order(bid("c", FIRST_HOUR, "1", "9.5", requirement=needed, **changes)))


BOOK = contract(FIRST_HOUR).replace("H100", "H800")


# -- without an exchange -----------------------------------------------------------------------------------


def test_the_versions_are_said_in_both_forms(cux: Cux) -> None:
    versions = cux("version", "--json").json
    assert set(versions) == {"cux", "protocol", "rules", "data_format", "engine"}
    assert cux("version").out == "".join(f"{name} {value}\n" for name, value in versions.items())


def commands() -> Iterator[tuple[str, ...]]:
    def below(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield words
        for name, verb in getattr(command, "commands", {}).items():
            yield from below(verb, (*words, name))

    yield from below(typer.main.get_command(app), ())


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_every_verb_has_help(cux: Cux, words: tuple[str, ...]) -> None:
    command: Any = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    assert command.help or command.callback.__doc__, words
    for parameter in command.params:
        if parameter.name not in {"help", "install_completion", "show_completion"}:
            assert parameter.help, (words, parameter.name)
    said = cux(*words, "--help")
    assert said.code == 0
    assert "Usage:" in said.out


@pytest.mark.parametrize(
    ("words", "meant"), [(("servee",), "serve"), (("venue", "int"), "init"), (("particpant",), "participant")]
)
def test_an_unknown_command_is_answered_with_the_nearest(
    cux: Cux, words: tuple[str, ...], meant: str
) -> None:
    said = cux(*words)
    assert said.code == 2
    assert f"Did you mean '{meant}'" in said.error
    assert "Traceback" not in said.error


def test_a_catalogue_is_checked_and_shown(cux: Cux, tmp_path: Path) -> None:
    assert cux("venue", "check", "china").out.endswith("valid\n")
    shown = cux("venue", "show", "europe")
    assert shown.code == 0
    assert "H100-SXM" in shown.out
    # Peak figures of 1,979/2 and 312 TFLOPS, 67 and 19.5: every number is whole in 80 columns.
    (row,) = [line.split() for line in shown.out.splitlines() if line.startswith("H100-SXM ")]
    assert row == ["H100-SXM", "NVIDIA", "SXM5", "80", "989.4", "67", "3.171", "3.436", "700", "1"]
    assert "…" not in shown.out
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("code = 5\n")
    said = cux("venue", "check", wrong)
    assert (said.code, said.out) == (1, "")
    assert said.error.startswith("cux: ")
    assert "code" in said.error
    assert cux("venue", "check", "atlantis").code == 1


@pytest.mark.parametrize("verb", ["serve", "demo"])
@pytest.mark.parametrize("port", [-1, 0, 65_536, 99_999])
def test_a_port_is_one_that_there_is(cux: Cux, tmp_path: Path, verb: str, port: int) -> None:
    said = cux(verb, "--folder", tmp_path / "none", "--port", port)
    assert (said.code, said.out) == (2, "")
    assert f"equal to {1 if port < 1 else 65_535} ╰" in said.sentence
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("day", ["2026-13-45", "tomorrow", "", "0001-01-01", "1900-01-01", "9999-12-31"])
def test_a_day_is_a_date_that_a_market_can_be_on(cux: Cux, tmp_path: Path, day: str) -> None:
    said = cux("scenario", "build", tmp_path / "out", "--day", day)
    assert (said.code, said.out) == (2, "")
    assert f"day {day!r}" in said.sentence
    assert "1971 to 2261" in said.sentence
    assert not (tmp_path / "out").exists()


def test_a_key_is_made_once_and_readable_by_its_owner_only(cux: Cux, tmp_path: Path) -> None:
    path = tmp_path / "my.key"
    said = cux("keys", "new", path)
    assert bytes.fromhex(said.out.strip()) == read_key(path).public_key().public_bytes_raw()
    assert path.stat().st_mode & 0o777 == 0o600
    again = cux("keys", "new", path)
    assert (again.code, again.error) == (1, f"cux: {path} is there already; a key is never overwritten\n")


def test_a_log_of_another_version_is_one_sentence(cux: Cux, tmp_path: Path) -> None:
    assert cux("venue", "init", "china", "--folder", tmp_path).code == 0
    log = FileLog(DataFolder(tmp_path).log)
    log.append([Record(1, START_NS, bytes(16), msgspec.Raw(msgspec.msgpack.encode({"type": "barter"})), ())])
    log.seal()
    log.close()
    for verb, words in (
        ("verify", "record 1 is of another version of cux: "),
        ("show", "record 1: another version of cux wrote it ("),
        ("export", "record 1: another version of cux wrote it ("),
    ):
        said = cux("log", verb, "--folder", tmp_path)
        assert (said.code, said.out) == (1, "")
        assert said.error.startswith(f"cux: {words}")
        assert said.error.count("\n") == 1


def test_a_folder_is_set_up_once(cux: Cux, tmp_path: Path) -> None:
    folder = tmp_path / "a [bold] folder"
    said = cux("venue", "init", "europe", "--folder", folder)
    assert said.code == 0
    assert said.out.startswith(f"{folder}: ")
    assert {path.name for path in (folder / "keys").iterdir()} == {
        "venue.key", "operator-1.key", "operator-2.key",
    }  # fmt: skip
    before = (folder / "cux.json").read_bytes()
    again = cux("venue", "init", "china", "--folder", folder)
    assert again.code == 1
    assert again.error == f"cux: {folder} holds an exchange already; choose another folder\n"
    assert (folder / "cux.json").read_bytes() == before


def test_a_folder_is_there_for_good_when_it_is_set_up(
    cux: Cux, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.readlink(f"/proc/self/fd/{file}")))
    folder = tmp_path / "new"
    assert cux("venue", "init", "china", "--folder", folder).code == 0
    there = {str(path) for path in (tmp_path, folder, *folder.rglob("*")) if path.name != "cux.json"}
    assert there | {f"{folder}/cux.new"} == set(synced)
    # What makes it an exchange: its bytes before its name, its name before anybody is told.
    assert synced[-2:] == [str(folder), str(tmp_path)]


def test_a_set_up_that_was_cut_off_is_repeated_with_the_keys_it_made(cux: Cux, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    made = [cux("keys", "new", keys / name).out.strip() for name in ("venue.key", "operator-1.key")]
    assert cux("venue", "init", "china", "--folder", tmp_path).code == 0
    settings = DataFolder(tmp_path).settings()
    assert [settings.venue_key.hex(), settings.operator_keys[0].hex()] == made
    second = read_key(keys / "operator-2.key").public_key().public_bytes_raw()
    assert settings.operator_keys[1] == second


@pytest.mark.parametrize("bad", [("--clock-speed", 1_000_001), ("--start-ns", 2**63)])
def test_a_venue_gets_no_settings_that_cannot_be_read(cux: Cux, tmp_path: Path, bad: tuple[str, int]) -> None:
    said = cux("venue", "init", "china", "--folder", tmp_path / "none", *bad)
    assert (said.code, said.out) == (2, "")
    assert "Input should be less than or equal to" in said.sentence
    assert not (tmp_path / "none").exists()


def test_a_used_folder_gets_no_keys(cux: Cux, tmp_path: Path) -> None:
    assert cux("venue", "init", "china", "--folder", tmp_path).code == 0
    (tmp_path / "keys" / "operator-2.key").unlink()
    assert cux("venue", "init", "china", "--folder", tmp_path).code == 1
    assert not (tmp_path / "keys" / "operator-2.key").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("log", "verify"),
        ("log", "show"),
        ("log", "export"),
        ("log", "quarantine"),
        ("backup", "copy"),
        ("audit", "vkey"),
        ("db", "check"),
        ("settle", "status"),
    ],
)
def test_a_folder_without_an_exchange_is_one_sentence(
    cux: Cux, tmp_path: Path, words: tuple[str, ...]
) -> None:
    said = cux(*words, "--folder", tmp_path / "none")
    assert said.code == 1
    assert said.error.startswith("cux: ")
    assert said.error.count("\n") == 1


def test_an_exchange_that_is_not_there_is_one_sentence(cux: Cux) -> None:
    url = f"ws://127.0.0.1:{free_port()}/ws"
    said = cux("book", "--url", url)
    assert said.code == 1
    assert said.error.startswith(f"cux: {url}: ")
    assert said.error.count("\n") == 1


# -- with one ----------------------------------------------------------------------------------------------


def test_status_counts_what_happened_in_both_forms(cux: Cux, exchange: Served) -> None:
    found = cux("status", "--folder", exchange.folder.path, "--json").json
    assert found["events"] == {
        "AccountRegistered": 2, "Deposited": 2, "EraOpened": 1, "KeyRegistered": 2, "OrderAccepted": 3,
        "SiteCertified": 1, "Traded": 1,
    }  # fmt: skip
    assert (found["open_orders"], found["sites"], found["time"]) == (2, 1, START_NS)
    text = cux("status", "--folder", exchange.folder.path).out
    assert "open_orders  2" in text
    assert "Traded  1" in text


def test_the_book_is_shown_in_both_forms(cux: Cux, exchange: Served) -> None:
    assert cux("book", "--url", exchange.url, "--json").json == [BOOK]
    assert cux("book", "--url", exchange.url).out == f"{BOOK}\n"
    found = cux("book", BOOK, "--url", exchange.url, "--json").json
    assert [(row["price"], row["gpus"]) for row in found["bids"]] == [("9.5", "1")]
    assert [(row["price"], row["gpus"]) for row in found["asks"]] == [("12.34", "3")]
    text = cux("book", BOOK, "--url", exchange.url).out
    assert "12.34" in text
    assert "zhongwei" in text
    wrong = cux("book", "H800-SXM.2026", "--url", exchange.url)
    assert wrong.code == 1
    assert wrong.error == (
        "cux: invalid params: contract H800-SXM.2026 "
        "(allowed: a class and a UTC hour, as in H100-SXM.20261124T14)\n"
    )


def test_an_operators_act_is_answered_in_both_forms_and_its_refusal_is_one_sentence(
    cux: Cux, exchange: Served, place: Path
) -> None:
    at = ("--folder", exchange.folder.path)
    (answer,) = cux("participant", "fund", 2, "1", *at, "--json").json
    assert answer["event"] == {"type": "deposited", "account": 2, "amount_micros": 1_000_000}
    assert cux("participant", "withdraw", 2, "1", *at).out == f"withdrawn, record {answer['sequence'] + 1}\n"
    unknown = cux("participant", "fund", 99, "1", *at)
    assert (unknown.code, unknown.out) == (1, "")
    assert unknown.error.startswith("cux: unknown_account: account 99 ")
    for amount in ("much", "0.0000001", "NaN", "Infinity", "1e20", "1e999999999"):
        wrong = cux("participant", "fund", 2, amount, *at)
        assert wrong.code == 2, amount
        assert amount in wrong.error
        assert "Traceback" not in wrong.error
    stranger = cux("participant", "fund", 2, "1", "--key", place / "buyer.key", *at)
    assert stranger.code == 1
    assert "not signed by an operator" in stranger.error
    key = cux("participant", "register", 3, "abc", *at)
    assert (key.code, "64 hexadecimal digits" in key.error) == (2, True)


@pytest.mark.parametrize("gpus", ["0.5", "many", "NaN", "Infinity", "0", "-1", "1e30"])
def test_a_site_has_whole_lots(cux: Cux, exchange: Served, gpus: str) -> None:
    said = cux(
        *("site", "certify", 2, "--account", 1, "--zone", "zhongwei", "--class", "H800-SXM", "--gpus", gpus),
        *("--carbon", "D", "--security", "S2", "--folder", exchange.folder.path),
    )
    assert said.code == 2
    assert gpus in said.error
    assert "Traceback" not in said.error


def test_an_account_whose_key_was_refused_gets_another(cux: Cux, exchange: Served, place: Path) -> None:
    at = ("--folder", exchange.folder.path)
    taken = read_key(place / "seller.key").public_key().public_bytes_raw().hex()
    refused = cux("participant", "register", 4, taken, *at)
    assert (refused.code, refused.out) == (1, "")
    key = cux("keys", "new", place / "fourth.key").out.strip()
    assert cux("participant", "register", 4, key, *at).code == 1  # the account is there
    (answer,) = cux("participant", "key", 4, key, *at, "--json").json
    assert answer["event"]["type"] == "key_registered"
    assert answer["event"]["account"] == 4
    wrong = cux("participant", "key", 4, "abc", *at)
    assert (wrong.code, "64 hexadecimal digits" in wrong.sentence) == (2, True)


CERTIFY = ("site", "certify", 2, "--zone", "zhongwei", "--class", "H800-SXM", "--gpus", 8, "--carbon", "D")


@pytest.mark.parametrize(
    "words",
    [
        ("participant", "fund", 2**63, "1"),
        ("participant", "register", 9, "00" * 32, "--trade-group", 2**63),
        (*CERTIFY, "--security", "S2", "--account", 2**63),
        (*CERTIFY, "--security", "S2", "--account", 1, "--days", 3661),
        (*CERTIFY, "--security", "S2", "--account", 1, "--days", 10**30),
        (*CERTIFY[:2], 2**63, *CERTIFY[3:], "--security", "S2", "--account", 1),
        ("clock", "set", "--time", 2**63),
        ("clock", "set", "--speed", 2**63),
        ("settle", "run", "--run", 2**63),
        ("settle", "run", "--grace-hours", 2**63),
        ("settle", "explain", 2**63),
    ],
)
def test_a_number_that_no_command_carries_is_refused(
    cux: Cux, exchange: Served, words: tuple[object, ...]
) -> None:
    said = cux(*words, "--folder", exchange.folder.path)
    assert (said.code, said.out) == (2, "")
    assert "Input should be less than or equal to" in said.sentence
    assert "Traceback" not in said.error


@pytest.mark.parametrize(
    "words",
    [
        ("contract", "halt", "H800-SXM"),
        ("contract", "resume", "H800-SXM.20261124T25"),
        ("site", "derate", 1, "--from", "20261124", "--until", "20261124T14", "--gpus", 1),
        ("site", "derate", 1, "--from", "20261124T13", "--until", "tomorrow", "--gpus", 1),
        ("site", "derate", 7, "--from", "20261124T13", "--until", "20261124T14", "--gpus", 1),
        ("site", "derate", 1, "--from", "20261124T13", "--until", "20261124T14", "--gpus", "0.5"),
        ("site", "derate", 1, "--from", "20261124T13", "--until", "20261124T14", "--gpus", "-1"),
    ],
)
def test_an_act_that_names_nothing_is_refused_with_what_is_wanted(
    cux: Cux, exchange: Served, words: tuple[object, ...]
) -> None:
    said = cux(*words, "--folder", exchange.folder.path)
    assert (said.code, said.out) == (2, "")
    assert "wanted" in said.sentence
    assert "Traceback" not in said.error


def test_operators_stop_and_restart_what_they_name(cux: Cux, exchange: Served, place: Path) -> None:
    at = ("--folder", exchange.folder.path)

    def done(*words: object, why: str) -> dict[str, Any]:
        """Do it, and say what the log holds of it."""
        (answer,) = cux(*words, *at, "--reason", why, "--json").json
        shown = cux("log", "show", "--from", answer["sequence"], "--count", 1, *at).out
        command: dict[str, Any] = json.loads(shown)["command"]
        assert command["authority"]["reason"] == why
        return {**command, "event": answer["event"]}

    halted = done("contract", "halt", BOOK, why="examined")
    assert (halted["type"], halted["class_code"], halted["delivery_hour"]) == (
        "halt_contract",
        "H800-SXM",
        FIRST_HOUR,
    )
    assert cux("book", BOOK, "--url", exchange.url, "--json").json["phase"] == "halted"
    again = cux("contract", "halt", BOOK, *at)
    assert (again.code, again.error.startswith("cux: wrong_phase: ")) == (1, True)
    assert done("contract", "resume", BOOK, why="clear")["type"] == "resume_contract"
    assert cux("book", BOOK, "--url", exchange.url, "--json").json["phase"] == "call"

    suspended = done("participant", "suspend", 2, why="late")
    assert (suspended["type"], suspended["event"]["account"]) == ("suspend_account", 2)
    assert done("participant", "reinstate", 2, why="paid")["type"] == "reinstate_account"
    said = cux("participant", "suspend", 99, *at)
    assert (said.code, said.error.startswith("cux: unknown_account: account 99 ")) == (1, True)

    hours = [contract(FIRST_HOUR + n).partition(".")[2] for n in (0, 2)]
    derate = ("site", "derate", 1, "--from", hours[0], "--until", hours[1], "--gpus")
    derated = done(*derate, 1, why="cooling")
    assert [derated[name] for name in ("site", "from_hour", "until_hour", "capacity_lots")] == [
        *(1, FIRST_HOUR, FIRST_HOUR + 2, 1),
    ]  # fmt: skip
    # Two GPUs are sold in its first hour.
    assert derated["event"]["oversold_hours"] == [FIRST_HOUR]
    told = cux(*derate, 0, *at).out.splitlines()
    assert told[0].startswith("site_derated, record ")
    assert told[1:] == [f"oversold: {BOOK}"]
    whole = cux(*derate, 512, *at).out.splitlines()
    assert len(whole) == 1


def test_the_log_is_verified_and_shown(cux: Cux, exchange: Served) -> None:
    at = ("--folder", exchange.folder.path)
    verified = cux("log", "verify", *at, "--json").json
    assert cux("log", "verify", *at, "--json").json["state_hash"] == verified["state_hash"]
    # One line: a hash that is broken in two cannot be copied.
    assert cux("log", "verify", *at).out == (
        f"{verified['records']} records replayed, the same events; state {verified['state_hash']}\n"
    )
    lines = cux("log", "show", "--from", 2, "--count", 3, *at).out.splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == [2, 3, 4]
    assert json.loads(lines[0])["command"]["type"] == "register_account"


def test_an_exported_log_is_matched_again_to_the_same_events_and_state(
    cux: Cux, exchange: Served, tmp_path: Path
) -> None:
    at = ("--folder", exchange.folder.path)
    day = tmp_path / "day.jsonl"
    assert cux("log", "export", day, *at) == (0, "", "")
    verified = cux("log", "verify", *at, "--json").json
    run = cux("engine", "run", day, "--hash", "--json").json
    assert run == {"sequence": verified["records"], "state_hash": verified["state_hash"]}
    assert cux("engine", "run", day, "--check", "--json").json == {"records": verified["records"]}
    assert cux("log", "export", *at).out.encode() == day.read_bytes()
    again = cux("log", "export", day, *at)
    assert again.code == 1
    assert str(day) in again.error


def test_a_range_of_the_log_is_exported(cux: Cux, exchange: Served) -> None:
    at = ("--folder", exchange.folder.path)
    lines = cux("log", "export", "--from", 3, "--to", 5, *at).out.splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["sequence"] for record in records] == [3, 4, 5]
    assert set(records[0]) == {"sequence", "time_ns", "command", "events"}
    end = cux("log", "verify", *at, "--json").json["records"]
    assert cux("log", "export", "--from", end + 1, *at) == (0, "", "")
    beyond = cux("log", "export", "--from", end + 2, *at)
    assert beyond == (1, "", f"cux: --from {end + 2}: the log ends with record {end}\n")


def test_who_reads_no_further_of_an_export_gets_no_traceback(tmp_path: Path) -> None:
    log = small_folder(tmp_path).log
    write_ticks(log, 5_000)
    command = [sys.executable, "-m", "gateway.cli", "log", "export", "--folder", str(log.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b'{"sequence":1,')
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_a_terminal_hears_how_far_a_long_export_is(
    cux: Cux, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = small_folder(tmp_path).log
    write_ticks(log, 5)
    monkeypatch.setattr(evidence, "PROGRESS_EVERY", 2)
    assert cux("log", "export", "--folder", log.parent).error == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    said = cux("log", "export", "--folder", log.parent)
    assert said.error == "\r2 records\r4 records\r\033[K"
    # What is shown on the terminal itself is not mixed with how much it is.
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert cux("log", "export", "--folder", log.parent).error == ""


def write_ticks(folder: Path, count: int) -> None:
    log = FileLog(folder)
    tick = msgspec.Raw(encode(Tick()))
    log.append([Record(n, START_NS, bytes(16), tick, ()) for n in range(1, count + 1)])
    log.close()


def test_damage_is_told_with_its_place(cux: Cux, exchange: Served, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    assert cux("backup", copy, "--folder", exchange.folder.path).code == 0
    (segment,) = (copy / "log").glob("*.log")
    data = bytearray(segment.read_bytes())
    first = batch_at(bytes(data), 0)
    assert first is not None
    damaged = bytes(data[: first.end]) + bytes([data[first.end] ^ 1]) + bytes(data[first.end + 1 :])
    segment.write_bytes(damaged)
    said = cux("log", "verify", "--folder", copy)
    assert said == (
        1,
        "",
        f"cux: {segment} is damaged at byte {first.end}; the records up to {first.last_sequence} are whole\n",
    )


@pytest.mark.parametrize("is_held", [False, True])
def test_verify_says_what_stands_behind_the_records_that_count(
    cux: Cux, tmp_path: Path, is_held: bool
) -> None:
    """A batch that is damaged behind the last seal may have been told, so nothing green is said of it."""
    folder = small_folder(tmp_path)
    log = FileLog(folder.log)
    records = [encoded(record) for record in day(VENUES[1], 37, 1)]
    log.append(records[:1])
    log.append(records[1:3])
    log.append(records[3:4])
    segment = folder.log / f"{1:020d}.log"
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1
    segment.write_bytes(data)
    if not is_held:
        log._disk.close()
        log._lock.release()
    said = cux("log", "verify", "--folder", folder.path, "--json").json
    torn = len(data) - sum_of_whole(bytes(data))
    counted = (1, 2) if is_held else (3, 0)
    assert (said["records"], said["records_behind"]) == counted
    assert said["torn_bytes"] == torn > 0
    _, *lines = cux("log", "verify", "--folder", folder.path).out.splitlines()
    behind = ["2 more records stand behind, not yet known to be durable"] if is_held else []
    what = "one that is being written" if is_held else "one cut short by a crash (a start removes it)"
    assert lines == [
        *behind,
        f"{torn} bytes behind record 3 are no whole batch: {what}, or damage to one that may have been told",
    ]


def sum_of_whole(data: bytes) -> int:
    end = 0
    while (found := batch_at(data, end)) is not None:
        end = found.end
    return end


def test_verify_refuses_a_log_that_ends_before_a_snapshot_as_a_start_does(
    cux: Cux, exchange: Served, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    assert cux("backup", copy, "--folder", exchange.folder.path).code == 0
    end = cux("log", "verify", "--folder", copy, "--json").json["records"]
    snapshots = Snapshots(copy / "snapshots")
    snapshots.write(snapshot_of(made_by(copy / "log", end)))
    (path,) = (copy / "snapshots").iterdir()
    whole = path.read_bytes()
    # Of another record than it is named after: a start takes the name for what was seen.
    renamed = path.rename(path.with_name(f"{end + 9:020d}.snapshot"))
    said = cux("log", "verify", "--folder", copy)
    assert (said.code, said.out) == (1, "")
    assert f"cux: {copy / 'log'} ends with record {end}; {end + 9} was known\n" in said.error
    renamed.rename(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    log = copy / "log" / f"{1:020d}.log"
    data = log.read_bytes()
    first = batch_at(data, 0)
    assert first is not None
    log.write_bytes(data[: first.end])
    said = cux("log", "verify", "--folder", copy)
    assert (said.code, said.out) == (1, "")
    assert f"ends with record {first.last_sequence}; {end} was known\n" in said.error


def test_a_part_of_the_log_is_shown_and_how_much_more_there_is(cux: Cux, tmp_path: Path) -> None:
    log = small_folder(tmp_path).log
    write_ticks(log, 5)
    at = ("--folder", log.parent)
    said = cux("log", "show", "--from", 2, "--count", 2, *at)
    assert [json.loads(line)["sequence"] for line in said.out.splitlines()] == [2, 3]
    assert said.error == "cux: 2 more, up to record 5\n"
    assert cux("log", "show", *at).error == ""
    assert cux("log", "show", "--from", 4, "--count", 2, *at).error == ""


def test_a_range_that_ends_before_it_begins_is_refused(cux: Cux, tmp_path: Path) -> None:
    log = small_folder(tmp_path).log
    write_ticks(log, 5)
    said = cux("log", "export", tmp_path / "out", "--from", 5, "--to", 3, "--folder", log.parent)
    assert (said.code, said.out) == (2, "")
    assert "3 is below --from 5" in said.sentence
    assert not (tmp_path / "out").exists()


def test_a_snapshot_of_another_state_than_the_logs_is_found(
    cux: Cux, exchange: Served, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    assert cux("backup", copy, "--folder", exchange.folder.path).code == 0
    end = cux("log", "verify", "--folder", copy, "--json").json["records"]
    snapshots = Snapshots(copy / "snapshots")
    three, four, five = (made_by(copy / "log", last) for last in (3, 4, 5))
    snapshots.write(snapshot_of(three))
    assert cux("log", "verify", "--folder", copy, "--json").json["snapshots"] == 1
    snapshots.write(snapshot_of(four)._replace(sequence=5))
    said = cux("log", "verify", "--folder", copy)
    assert said.error == (
        "cux: the snapshot of record 5 is of another log than this one; the records up to 5 are whole\n"
    )
    snapshots.write(snapshot_of(four._replace(sequence=5, at=five.at)))
    said = cux("log", "verify", "--folder", copy)
    assert (said.code, said.out) == (1, "")
    assert said.error.startswith("cux: the snapshot of record 5 is of state ")
    assert said.error.endswith("; the records up to 5 are whole\n")
    snapshots.write(snapshot_of(three)._replace(sequence=end + 1))
    (copy / "snapshots" / f"{5:020d}.snapshot").unlink()
    said = cux("log", "verify", "--folder", copy)
    assert said.error == f"cux: {copy / 'log'} ends with record {end}; {end + 1} was known\n"


def made_by(log: Path, last: int) -> Recovered:
    recovered = Recovered(Engine(), None, 0)
    for record in read_records(log, 1, last):
        recovered = reapply(recovered, record)
    return recovered


def test_what_stands_in_quarantine_is_shown_in_both_forms(cux: Cux, tmp_path: Path) -> None:
    folder = small_folder(tmp_path)
    at = ("--folder", folder.path)
    assert cux("log", "quarantine", *at).out == "nothing is in quarantine\n"
    assert cux("log", "quarantine", *at, "--json").json == []
    path = Quarantine(folder.quarantine).add(CancelOrder(7, 5), ValueError("a bug"))
    (found,) = cux("log", "quarantine", *at, "--json").json
    assert (found["file"], found["error"]) == (str(path), "ValueError: a bug")
    assert found["command"]["type"] == "cancel_order"
    assert found["command"]["order_id"] == 5
    assert "ValueError: a bug" in cux("log", "quarantine", *at).out


def test_the_quarantine_tells_the_fault_itself_and_shows_files_that_tell_nothing(
    cux: Cux, tmp_path: Path
) -> None:
    folder = small_folder(tmp_path)
    outer = RuntimeError("the engine failed at a command")
    outer.__cause__ = ZeroDivisionError("a bug")
    told = Quarantine(folder.quarantine).add(CancelOrder(7, 5), outer)
    assert list(folder.quarantine.iterdir()) == [told]
    for name, content in (("empty", b""), ("no command", b"text\n\nmore"), ("no text", b"\xff\xfe")):
        (folder.quarantine / f"{name}.txt").write_bytes(content)
    found = {one["file"]: one for one in cux("log", "quarantine", "--folder", folder.path, "--json").json}
    assert found.pop(str(told))["error"] == "ZeroDivisionError: a bug"
    assert len(found) == 3
    for one in found.values():
        assert (one["command"], one["error"]) == (None, "the file is damaged: it says nothing")


def test_a_quarantine_that_cannot_be_written_hides_no_failure(tmp_path: Path) -> None:
    folder = small_folder(tmp_path)
    folder.quarantine.write_text("no folder")
    outer = RuntimeError("the engine failed at a command")
    outer.__cause__ = ZeroDivisionError("a bug")
    words = r"engine failed at a command \(ZeroDivisionError: a bug\), which could not be .*File exists"
    with pytest.raises(OSError, match=words):
        Quarantine(folder.quarantine).add(CancelOrder(7, 5), outer)


def test_the_ledger_is_checked_in_both_forms(cux: Cux, exchange: Served) -> None:
    at = ("--folder", exchange.folder.path)
    found = cux("db", "check", *at, "--json").json
    assert (found["ledger_sum"], found["differences"]) == (0, [])
    assert cux("db", "check", *at).out == f"position {found['position']}, sum 0\n"
    assert cux("db", "migrate", *at).out == "nothing to do\n"
    assert cux("settle", "status", *at, "--json").json == []
    assert cux("settle", "status", *at).out == "no runs\n"


def test_an_export_proves_itself_to_a_program_that_has_nothing_else(
    cux: Cux, exchange: Served, place: Path
) -> None:
    at = ("--folder", exchange.folder.path)
    out = place / "export"
    report = cux("audit", "export", out, *at, "--json").json
    vkey = cux("audit", "vkey", *at).out.strip()
    verify = [str(Path(sys.executable).parent / "cux-verify"), str(out), "--vkey", vkey]
    proved = subprocess.run(verify, check=False, capture_output=True, text=True, timeout=60)
    assert proved.returncode == 0, proved
    assert str(report["records"]) in proved.stdout
    changed = place / "changed"
    shutil.copytree(out, changed)
    victim = max(changed.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    verify[1] = str(changed)
    assert subprocess.run(verify, check=False, capture_output=True, timeout=60).returncode == 1
    told = cux("audit", "export", place / "told", *at)
    names = [line.split(" ", 1)[0] for line in told.out.splitlines()]
    assert (told.code, names) == (0, list(report))
    again = cux("audit", "export", out, *at)
    assert again.code == 1
    assert again.error.count("\n") == 1


def test_simulated_time_is_moved_forward_only(cux: Cux, exchange: Served) -> None:
    at = ("--folder", exchange.folder.path)
    assert cux("clock", "set", "--time", START_NS + 10**9, *at).code == 0
    assert cux("status", *at, "--json").json["time"] == START_NS + 10**9
    back = cux("clock", "set", "--time", START_NS, *at)
    assert back.code == 1
    assert back.error.startswith(f"cux: time {START_NS}: a simulated clock only moves forward")


def test_what_was_settled_is_told_in_both_forms(cux: Cux, exchange: Served) -> None:
    at = ("--folder", exchange.folder.path)
    assert cux("clock", "set", "--time", (FIRST_HOUR + 1) * HOUR_NS, *at).code == 0
    assert cux("book", "--url", exchange.url, "--json").json == []
    assert cux("book", "--url", exchange.url).out == "no orders are open\n"
    assert cux("settle", "run", "--kind", "final", *at).code == 0
    (found,) = cux("settle", "status", *at, "--json").json
    assert found["refund_micros"] == 24_680_000  # 2 GPUs at 12.34, of which nothing was metered
    (row,) = [line.split() for line in cux("settle", "status", *at).out.splitlines() if "final" in line]
    counts = [str(found[name]) for name in ("run", "position", "readings_batch", "postings", "posted")]
    penalty = money_of(found["penalty_micros"])
    assert row == ["final", *counts, money_of(found["payment_micros"]), "24.68", penalty]
    chain = cux("settle", "explain", 1, *at).out.splitlines()
    assert [line for line in chain if line.endswith(":")] == [
        "fill:", "resales:", "readings:", "reconciliations:", "postings:", "transfers:",
    ]  # fmt: skip
    assert chain[chain.index("readings:") + 1] == "  none"
    assert "  notional 24.68" in chain
    assert f"refund 24.68, penalty {penalty}" in chain[chain.index("postings:") + 1]
    assert not [line for line in chain if "_micros" in line or "{" in line or "None" in line]
    assert cux("settle", "explain", 1, *at, "--json").json["fill"]["notional_micros"] == 24_680_000
