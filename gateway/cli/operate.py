"""`cux participant`, `site`, `contract`, `clock`, `status`: an operator's signed acts, at the admin door."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from exchange.contract import HOUR_NS, parse_symbol, symbol
from exchange.folder import DataFolder
from exchange.quantity import lots_of, micros_of
from gateway.cli.app import (
    FOLDER,
    INT64_MAX,
    AsJson,
    Folder,
    KeyFile,
    Reason,
    app,
    group,
    operator_key,
    run,
    show,
)
from gateway.client import Client
from schemas.authority import signed
from schemas.commands import (
    CertifySite,
    Deposit,
    DerateSite,
    HaltContract,
    OperatorCommand,
    RegisterAccount,
    RegisterKey,
    ReinstateAccount,
    ResumeContract,
    Scope,
    SuspendAccount,
    Withdraw,
)

participant = group("participant", "Accounts: who may trade, with which keys and how much money.")
site = group("site", "Providers' sites and their certificates.")
contract = group("contract", "Contracts: a class in a delivery hour.")
clock = group("clock", "Simulated time.")
Account = Annotated[int, typer.Argument(min=1, max=INT64_MAX, help="The account's number.")]
PublicKey = Annotated[str, typer.Argument(help="The Ed25519 public key as hex; see cux keys new.")]
Site = Annotated[int, typer.Argument(min=1, max=INT64_MAX, help="The site's number.")]
Symbol = Annotated[str, typer.Argument(metavar="{symbol}", help="As in H800-SXM.20261124T14, UTC.")]


async def _ask(folder: Path, method: str, params: Any = None) -> Any:
    async with Client(socket=DataFolder(folder).admin_socket) as client:
        return await client.call(method, params)


async def _operate(folder: Path, key: Path | None, reason: str, commands: list[OperatorCommand]) -> list[Any]:
    """Sign the commands, submit them in order, return the answers."""
    data = DataFolder(folder)
    private = operator_key(data, key)
    async with Client(socket=data.admin_socket) as client:
        return [
            await client.operate(signed(command, private, time.time_ns(), reason)) for command in commands
        ]


def _done(as_json: bool, answers: list[Any]) -> None:
    show(as_json, answers, "\n".join(f"{one['event']['type']}, record {one['sequence']}" for one in answers))


def _micros(amount: str) -> int:
    try:
        return micros_of(amount)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _lots(gpus: str, lot_eighths: int, least: int) -> int:
    try:
        lots = lots_of(gpus, lot_eighths)
    except (ValueError, ArithmeticError):
        lots = -1
    if not least <= lots < 2**63:
        raise typer.BadParameter(f"gpus {gpus!r}: a multiple of the class's lot is wanted")
    return lots


def _hour(option: str, text: str) -> int:
    try:
        return parse_symbol(f"contract.{text}")[1]
    except ValueError:
        raise typer.BadParameter(f"{option} {text!r}: a UTC hour is wanted, as in 20261124T14") from None


def _contract(text: str) -> tuple[str, int]:
    try:
        return parse_symbol(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _access(account: int, public_key: str) -> RegisterKey:
    try:
        raw = bytes.fromhex(public_key)
        Ed25519PublicKey.from_public_bytes(raw)
    except (ValueError, UnsupportedAlgorithm):
        raise typer.BadParameter(f"key {public_key!r}: 64 hexadecimal digits are wanted") from None
    return RegisterKey(account, raw, (Scope.TRADE, Scope.READ))


@participant.command("register")
def participant_register(
    account: Account,
    public_key: PublicKey,
    trade_group: Annotated[
        int | None, typer.Option(min=-INT64_MAX - 1, max=INT64_MAX, help="Accounts of one owner share it.")
    ] = None,
    folder: Folder = FOLDER,
    key: KeyFile = None,
    reason: Reason = "registered",
    as_json: AsJson = False,
) -> None:
    """Open an account and give a key access to it.

    Example: cux participant register 17 $(cux keys new buyer.key)
    """
    commands: list[OperatorCommand] = [
        RegisterAccount(account, account if trade_group is None else trade_group),
        _access(account, public_key),
    ]
    _done(as_json, run(_operate(folder, key, reason, commands)))


@participant.command("key")
def participant_key(
    account: Account,
    public_key: PublicKey,
    folder: Folder = FOLDER,
    key: KeyFile = None,
    reason: Reason = "another key",
    as_json: AsJson = False,
) -> None:
    """Give another key access to an account that there is.

    Example: cux participant key 17 $(cux keys new second.key)
    """
    _done(as_json, run(_operate(folder, key, reason, [_access(account, public_key)])))


@participant.command("fund")
def participant_fund(
    account: Account,
    amount: Annotated[str, typer.Argument(help="Money received, in the venue's currency.")],
    folder: Folder = FOLDER,
    key: KeyFile = None,
    reason: Reason = "deposit",
    as_json: AsJson = False,
) -> None:
    """Credit money received at the bank."""
    _done(as_json, run(_operate(folder, key, reason, [Deposit(account, _micros(amount))])))


@participant.command("withdraw")
def participant_withdraw(
    account: Account,
    amount: Annotated[str, typer.Argument(help="Money paid out, in the venue's currency.")],
    folder: Folder = FOLDER,
    key: KeyFile = None,
    reason: Reason = "withdrawal",
    as_json: AsJson = False,
) -> None:
    """Debit money paid out at the bank."""
    _done(as_json, run(_operate(folder, key, reason, [Withdraw(account, _micros(amount))])))


@participant.command("suspend")
def participant_suspend(
    account: Account,
    folder: Folder = FOLDER,
    key: KeyFile = None,
    reason: Reason = "suspended",
    as_json: AsJson = False,
) -> None:
    """Take no more orders from an account; it may still cancel and reduce.

    Example: cux participant suspend 17 --reason "margin call of 24 November not met"
    """
    _done(as_json, run(_operate(folder, key, reason, [SuspendAccount(account)])))


@participant.command("reinstate")
def participant_reinstate(
    account: Account,
    folder: Folder = FOLDER,
    key: KeyFile = None,
    reason: Reason = "reinstated",
    as_json: AsJson = False,
) -> None:
    """Take orders from a suspended account again."""
    _done(as_json, run(_operate(folder, key, reason, [ReinstateAccount(account)])))


@contract.command("halt")
def contract_halt(
    name: Symbol,
    folder: Folder = FOLDER,
    key: KeyFile = None,
    reason: Reason = "halted",
    as_json: AsJson = False,
) -> None:
    """Stop trading in a contract; cancels and reductions are still taken.

    Example: cux contract halt H800-SXM.20261124T14 --reason "erroneous trades are examined"
    """
    _done(as_json, run(_operate(folder, key, reason, [HaltContract(*_contract(name))])))


@contract.command("resume")
def contract_resume(
    name: Symbol,
    folder: Folder = FOLDER,
    key: KeyFile = None,
    reason: Reason = "resumed",
    as_json: AsJson = False,
) -> None:
    """Restart a halted contract through a call auction."""
    _done(as_json, run(_operate(folder, key, reason, [ResumeContract(*_contract(name))])))


@site.command("certify")
def site_certify(
    number: Site,
    account: Annotated[int, typer.Option(min=1, max=INT64_MAX, help="Its provider.")],
    zone: Annotated[str, typer.Option(help="Its zone.")],
    class_code: Annotated[str, typer.Option("--class", help="What it delivers.")],
    gpus: Annotated[str, typer.Option(help="Its capacity in every hour.")],
    carbon: Annotated[str, typer.Option(help="The best carbon grade it may claim.")],
    security: Annotated[str, typer.Option(help="Its security tier.")],
    days: Annotated[int, typer.Option(min=1, max=3660, help="How long the certificate holds.")] = 365,
    folder: Folder = FOLDER,
    key: KeyFile = None,
    reason: Reason = "certified",
    as_json: AsJson = False,
) -> None:
    """Register and certify a site.

    Example: cux site certify 3 --account 7 --zone zhongwei --class H800-SXM --gpus 512 --carbon D
    --security S2
    """
    lots = {one.code: one.lot_eighths for one in DataFolder(folder).settings().venue.classes}
    if class_code not in lots:
        raise typer.BadParameter(f"class {class_code!r} is not of this venue; see cux venue show")
    capacity = _lots(gpus, lots[class_code], 1)
    now_hour = run(_ask(folder, "session.time"))["time"] // HOUR_NS
    certificate = CertifySite(
        number, account, zone, class_code, capacity, carbon, security, now_hour, now_hour + 24 * days
    )
    _done(as_json, run(_operate(folder, key, reason, [certificate])))


@site.command("derate")
def site_derate(
    number: Site,
    from_hour: Annotated[str, typer.Option("--from", help="The first hour, UTC, as in 20261124T14.")],
    until_hour: Annotated[str, typer.Option("--until", help="The hour after the last.")],
    gpus: Annotated[str, typer.Option(help="Its capacity in each of these hours.")],
    folder: Folder = FOLDER,
    key: KeyFile = None,
    reason: Reason = "derated",
    as_json: AsJson = False,
) -> None:
    """Set a site's capacity for some hours; open asks beyond it are cut, what is sold stands.

    Example: cux site derate 3 --from 20261124T14 --until 20261124T20 --gpus 256 --reason "a cooling fault"
    """
    hours = _hour("from", from_hour), _hour("until", until_hour)
    known = {one["site"]: one["class"] for one in run(_ask(folder, "venue.sites"))}
    if number not in known:
        raise typer.BadParameter(f"site {number}: a site that was certified is wanted")
    lots = {one.code: one.lot_eighths for one in DataFolder(folder).settings().venue.classes}
    derating = DerateSite(number, *hours, _lots(gpus, lots[known[number]], 0))
    answers = run(_operate(folder, key, reason, [derating]))
    _done(as_json, answers)
    oversold = answers[0]["event"].get("oversold_hours", [])
    if oversold and not as_json:
        names = (symbol(known[number], hour) for hour in oversold)
        typer.echo("\n".join(f"oversold: {name}" for name in names))


@clock.command("set")
def clock_set(
    time_ns: Annotated[
        int | None, typer.Option("--time", max=INT64_MAX, help="UTC nanoseconds, not in the past.")
    ] = None,
    speed: Annotated[
        int | None, typer.Option(max=INT64_MAX, help="Simulated seconds a second; 0 stands.")
    ] = None,
    folder: Folder = FOLDER,
) -> None:
    """Move simulated time forward, then let it run at a speed."""
    run(_ask(folder, "clock.set", {"time": time_ns, "speed": speed}))


@app.command()
def status(folder: Folder = FOLDER, as_json: AsJson = False) -> None:
    """Show how far the log is and what has happened."""
    found = run(_ask(folder, "venue.status"))
    lines = [f"{name:>12}  {value}" for name, value in found.items() if name != "events"]
    lines += [f"{name:>26}  {count}" for name, count in found["events"].items()]
    show(as_json, found, "\n".join(lines))
