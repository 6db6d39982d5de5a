"""The main job, on a small day of the project's own: every check holds, though the core is killed in it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from exchange.folder import DataFolder

SMALL_DAY = ("--min-orders", "1500", "--clock-speed", "6000")
MUST_BE_THERE = {
    *("orders", "fills", "gpu_hours", "fill_ratio", "surplus_ratio", "surplus_ratio_separate_books"),
    *("ack_ms_p50", "ack_ms_p99", "shortfalls_injected", "shortfalls_found", "false_alarms", "ledger_sum"),
    *("audit_verified", "tampered_refused", "state_hash", "seconds"),
}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def cux(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], int]:
    """A played day in which the core was killed once: its folder, its summary, the records at the kill."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    command = [sys.executable, "-m", "gateway.cli", "demo", "--until-done", "--json", *SMALL_DAY]
    command += ["--folder", str(folder), "--port", str(free_port()), "--data", os.devnull, "--seed", "11"]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    exchange = DataFolder(folder / "exchange")
    deadline = time.monotonic() + 120
    acknowledged = 0
    # Well into the trading day: setting up is about 700 records.
    while acknowledged < 1500 and demo.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            acknowledged = cux("status", "--folder", str(exchange.path), "--json")["sequence"]
    assert demo.poll() is None, demo.communicate()[1]
    os.kill(json.loads((exchange.run / "pids.json").read_bytes())["core"], signal.SIGKILL)
    out, error = demo.communicate(timeout=200)
    assert demo.returncode == 0, error
    return folder, json.loads(out.splitlines()[-1]), acknowledged


def test_everything_that_must_hold_holds_although_the_core_was_killed(
    played: tuple[Path, dict[str, Any], int],
) -> None:
    _, found, acknowledged = played
    assert found.keys() >= MUST_BE_THERE
    assert found["input"]["trace"] == "small"
    assert 1500 <= acknowledged < found["records"]
    assert found["orders"] >= 1500
    assert found["accepted"] + sum(found["refused"].values()) >= found["orders"]
    assert found["ledger_sum"] == found["ledger_differences"] == 0
    assert found["shortfalls_injected"] == found["shortfalls_found"] >= 10
    assert found["decoys"] == found["shortfalls_injected"]
    assert found["false_alarms"] == 0
    assert found["reconciled"] == found["fills"] > 0
    assert found["audit_verified"] is True
    assert found["tampered_refused"] is True
    assert found["surplus_ratio"] > found["surplus_ratio_separate_books"]
    assert found["paid_micros"] > 0
    assert found["penalties_micros"] > 0


def test_the_log_replayed_in_a_fresh_process_gives_the_same_state(
    played: tuple[Path, dict[str, Any], int],
) -> None:
    folder, found, _ = played
    replayed = cux("log", "verify", "--folder", str(folder / "exchange"), "--json")
    assert replayed["state_hash"] == found["state_hash"]
    assert replayed["records"] == found["records"]


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "demo", "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "holds other things" in done.stderr
    assert (tmp_path / "mine.txt").read_text() == "mine"
