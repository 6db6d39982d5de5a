"""`cux book`, `scenario`, `play`, `demo`: look at the market, and play one."""

from datetime import date
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table

from exchange.folder import DataFolder
from gateway.cli.app import (
    FOLDER,
    URL,
    AsJson,
    Folder,
    KeyFile,
    Port,
    Url,
    app,
    console,
    group,
    operator_key,
    run,
    show,
)
from gateway.client import Client
from gateway.demo.job import Demo, Options
from gateway.simulation.build import build
from gateway.simulation.play import Player
from gateway.simulation.register import register
from gateway.simulation.scenario import read_scenario
from schemas.catalogue import load_venue

scenario = group("scenario", "Inputs of a simulated market day.")
Seed = Annotated[int, typer.Option(help="Same seed, same order files, byte for byte.")]
Data = Annotated[Path | None, typer.Option(envvar="CUX_DATA", help="Real traces, prices and carbon.")]
MinOrders = Annotated[int, typer.Option(min=1, help="The day has at least so many orders.")]
Trace = Annotated[Path | None, typer.Option(help="Another trace folder of the openb form.")]


def data_folder(named: Path | None) -> Path | None:
    """Return the folder of real data: the one named, else `shared/data` beside the project, or None."""
    folder = named or Path(__file__).resolve().parents[2].parent / "shared" / "data"
    return folder if folder.is_dir() else None


def book_table(found: dict[str, Any]) -> Table:
    """Return a contract's book, as feeds and `book_of` give it, for people."""
    table = Table(
        "bid cell",
        "GPUs",
        "bid",
        "ask",
        "GPUs",
        "ask cell",
        title=f"{found['contract']}, record {found['seq']}",
    )
    for row in range(max(len(found["bids"]), len(found["asks"]))):
        bids, asks = found["bids"][row : row + 1], found["asks"][row : row + 1]
        left = (
            [" ".join(bids[0]["cell"].values()), bids[0]["gpus"], bids[0]["price"]] if bids else ["", "", ""]
        )
        right = (
            [asks[0]["price"], asks[0]["gpus"], " ".join(asks[0]["cell"].values())] if asks else ["", "", ""]
        )
        table.add_row(*left, *right)
    return table


@app.command()
def book(
    contract: Annotated[str, typer.Argument(help="As in H800-SXM.20261124T14; none: list them.")] = "",
    url: Url = URL,
    as_json: AsJson = False,
) -> None:
    """Show a contract's book by cell, or which contracts have orders.

    Example: cux book H800-SXM.20261124T14
    """

    async def ask() -> Any:
        async with Client(url) as client:
            if not contract:
                return await client.call("reference.contracts")
            return await client.call("market.snapshot", {"contract": contract})

    found = run(ask())
    if as_json or not contract:
        show(as_json, found, "\n".join(found) or "no orders are open" if not contract else "")
        return
    console.print(book_table(found))


def _date(day: str) -> date:
    """Return the day, which must lie where times in nanoseconds do."""
    try:
        found = date.fromisoformat(day)
    except ValueError:
        found = date.min
    if not 1971 <= found.year <= 2261:
        raise typer.BadParameter(f"day {day!r}: a date from 1971 to 2261 is wanted, as in 2026-11-24")
    return found


@scenario.command("build")
def scenario_build(
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    seed: Seed = 1,
    data: Data = None,
    trace: Trace = None,
    venue: Annotated[str, typer.Option(help="The venue's catalogue.")] = "china",
    day: Annotated[str, typer.Option(help="The trading day, in the venue's time zone.")] = "2026-11-24",
    min_orders: MinOrders = 20_000,
) -> None:
    """Make a scenario: sites, participants and each client's order file, from a trace or from our own.

    Example: cux scenario build day1 --seed 7
    """
    found = build(
        seed,
        out,
        data=data_folder(data),
        trace=trace,
        venue=load_venue(venue),
        day=_date(day),
        min_orders=min_orders,
    )
    typer.echo(msgspec.json.encode(found))


@scenario.command("register")
def scenario_register(
    scenario_folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A scenario folder.")],
    folder: Folder = FOLDER,
    key: KeyFile = None,
) -> None:
    """Open the scenario's accounts at a running exchange, fund them, certify its sites.

    Example: cux scenario register day1 && cux play day1 --client providers
    """
    exchange = DataFolder(folder)

    async def work() -> int:
        async with Client(socket=exchange.admin_socket) as admin:
            return await register(admin, read_scenario(scenario_folder), operator_key(exchange, key))

    typer.echo(f"{run(work())} commands taken")


@app.command()
def play(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A scenario folder.")],
    client: Annotated[str, typer.Option(help="Which client's order file.")],
    report: Annotated[Path | None, typer.Option(help="Where to write what was done, as JSON.")] = None,
    url: Url = URL,
) -> None:
    """Send a client's orders to a running exchange, each at its venue time.

    Example: cux play day1 --client providers
    """

    def progress(done: int, of: int) -> None:
        if done % 1000 == 0:
            typer.echo(f"{client}: {done} of {of}")

    done = run(Player(folder, client, url).play(lambda: typer.echo("ready"), progress))
    if report is not None:
        report.write_bytes(msgspec.json.encode(done))
    typer.echo(
        f"{client}: {done.entered} orders, {done.accepted} accepted, {done.cancels} cancels, {done.refused}"
    )


@app.command()
def demo(
    seed: Seed = 1,
    data: Data = None,
    trace: Trace = None,
    as_json: AsJson = False,
    until_done: Annotated[bool, typer.Option(help="Stop the exchange after the summary.")] = False,
    folder: Annotated[Path, typer.Option(help="Where its files go; emptied first.")] = Path(".cux/demo"),
    port: Port = 8470,
    clock_speed: Annotated[int, typer.Option(min=1, help="Simulated seconds a second.")] = 1200,
    min_orders: MinOrders = 20_000,
) -> None:
    """Run the main job: a trading day from orders to payment and proof, on a real cluster's demand.

    Example: cux demo --until-done --json
    """
    options = Options(
        seed=seed,
        data=data_folder(data),
        trace=trace,
        folder=folder,
        port=port,
        clock_speed=clock_speed,
        min_orders=min_orders,
        until_done=until_done,
        as_json=as_json,
    )
    raise typer.Exit(Demo(options).run())
