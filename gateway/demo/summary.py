"""What the main job found: one object for programs, a table and a few lines for people."""

from collections.abc import Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from gateway.simulation.play import PlayReport
from gateway.simulation.report import DayReport


def failures(found: dict[str, Any]) -> list[str]:
    """Return what does not hold that must; it decides the job's exit code."""
    shared, separate = found["surplus_ratio"], found["surplus_ratio_separate_books"]
    rules = {
        "every order and cancel got an answer": found["lost"] == 0,
        "the ledger sums to zero": found["ledger_sum"] == 0,
        "the ledger equals the engine's funds": found["ledger_differences"] == 0,
        "every injected shortfall is found": found["shortfalls_found"] == found["shortfalls_injected"],
        "no delivery within tolerance is called short": found["false_alarms"] == 0,
        "the export verifies": found["audit_verified"],
        "a copy with one flipped byte is refused": found["tampered_refused"],
        "the shared book is ahead of separate books": shared > separate,
    }
    return [rule for rule, holds in rules.items() if not holds]


def of_play(reports: Sequence[PlayReport]) -> dict[str, Any]:
    """Return what the clients did and how long the exchange took to answer them."""
    acks = sorted(us for report in reports for us in report.ack_us)
    refused: dict[str, int] = {}
    for report in reports:
        for name, count in report.refused.items():
            refused[name] = refused.get(name, 0) + count
    return {
        "orders": sum(report.entered for report in reports),
        "accepted": sum(report.accepted for report in reports),
        "cancels": sum(report.cancels for report in reports),
        "lost": sum(report.lost for report in reports),
        "refused": refused,
        "ack_ms_p50": _percentile_ms(acks, 50),
        "ack_ms_p99": _percentile_ms(acks, 99),
    }


def of_day(day: DayReport) -> dict[str, Any]:
    """Return the day's volumes and its surplus. Ratios and GPU-hours are for reading, hence floats."""
    surplus = day.surplus
    return {
        "blocks": day.blocks,
        "fills": day.fills,
        "gpu_hours": float(day.gpu_hours),
        "demanded_gpu_hours": float(day.demanded_gpu_hours),
        "pflops_hours_fp32": float(day.pflops_hours_fp32),
        "notional": day.notional,
        "fill_ratio": day.fill_ratio_permille / 1000,
        "classes": msgspec.to_builtins(day.classes),
        "surplus_ratio": (surplus.surplus_ratio_permille or 0) / 1000,
        "surplus_ratio_separate_books": (surplus.surplus_ratio_separate_books_permille or 0) / 1000,
        "surplus": msgspec.to_builtins(surplus),
    }


def _percentile_ms(ordered_us: Sequence[int], percent: int) -> float:
    if not ordered_us:
        return 0.0
    return ordered_us[min(len(ordered_us) - 1, len(ordered_us) * percent // 100)] / 1000


def show(console: Console, found: dict[str, Any]) -> None:
    """Print the summary for people."""
    table = Table("class", "fills", "asked GPU-h", "sold GPU-h", "PFLOPS-h FP32", "notional CNY")
    for one in found["classes"]:
        table.add_row(
            one["class_code"],
            str(one["fills"]),
            one["demanded_gpu_hours"],
            one["gpu_hours"],
            one["pflops_hours_fp32"] or "",
            one["notional"],
        )
    console.print(table)
    for name, text in _lines(found).items():
        console.print(f"[bold]{name:>14}[/bold]  {text}", soft_wrap=True)


def _lines(found: dict[str, Any]) -> dict[str, str]:
    source, surplus = found["input"], found["surplus"]
    return {
        "input": f"{source['trace']} trace, {source['prices']} prices, {source['carbon']} carbon: "
        f"{source['why']}",
        "orders": f"{found['orders']} entered, {found['blocks']} of them blocks; "
        f"{found['accepted']} accepted, {found['cancels']} cancels; refused {found['refused'] or 'none'}",
        "fills": f"{found['fills']}: {found['gpu_hours']} of {found['demanded_gpu_hours']} GPU-hours "
        f"({found['fill_ratio']:.1%}), {found['pflops_hours_fp32']} PFLOPS-hours FP32, "
        f"CNY {found['notional']}",
        "surplus": f"{found['surplus_ratio']:.1%} of the upper bound (LP {surplus['lp_status']}, "
        f"gap {surplus['lp_gap_ppm']} ppm); separate books {found['surplus_ratio_separate_books']:.1%}",
        "order to ack": f"p50 {found['ack_ms_p50']} ms, p99 {found['ack_ms_p99']} ms",
        "delivery": f"{found['shortfalls_injected']} shortfalls injected, {found['shortfalls_found']} "
        f"found, {found['false_alarms']} false alarms among {found['decoys']} decoys",
        "ledger": f"sum {found['ledger_sum']}, {found['ledger_differences']} differences to the engine",
        "audit": f"verified {found['audit_verified']} as {found['verified_as']}; a copy with a byte "
        f"flipped in {found['tampered_file']} refused {found['tampered_refused']}",
        "state": found["state_hash"],
        "time": f"{found['seconds']} s",
    }
