"""`cux version`, `serve`, `venue`, `keys`: set a venue up and run it."""

from decimal import Decimal
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column

from exchange import ENGINE_BUILD
from exchange.folder import FORMAT, DataFolder, Settings
from gateway.cli.app import (
    FOLDER,
    INT64_MAX,
    AsJson,
    Folder,
    Port,
    app,
    console,
    figure,
    group,
    lines,
    show,
    table,
    word,
)
from gateway.keys import new_key
from gateway.serve import serve
from gateway.venue_setup import init_venue
from schemas import PROTOCOL_VERSION, RULES_VERSION
from schemas.catalogue import A100Equivalents, VenueError, a100_equivalents, load_venue

venue = group("venue", "The venue's catalogue and its data folder.")
keys = group("keys", "Ed25519 access keys.")
VenueName = Annotated[str, typer.Argument(help="A catalogue: china, europe, or a TOML file.")]


@app.command()
def version(as_json: AsJson = False) -> None:
    """Say which versions of software, protocol and rules these are, and which build of the engine runs."""
    from importlib.metadata import version as installed  # noqa: PLC0415

    data = {
        "cux": installed("cux"),
        "protocol": PROTOCOL_VERSION,
        "rules": RULES_VERSION,
        "data_format": FORMAT,
        "engine": ENGINE_BUILD,
    }
    show(as_json, data, lines(data))


@app.command("serve")
def serve_command(
    folder: Folder = FOLDER,
    host: Annotated[str, typer.Option(help="Where the gateway listens.")] = "127.0.0.1",
    port: Port = 8470,
) -> None:
    """Run the exchange of a data folder: database, core, gateway, back.

    Example: cux venue init china && cux serve
    """
    serve(folder, host, port, typer.echo)


@venue.command("init")
def venue_init(
    name: VenueName = "china",
    folder: Folder = FOLDER,
    origin: Annotated[str, typer.Option(help="The log's name, as checkpoints carry it.")] = "cux.example/log",
    clock_speed: Annotated[
        int,
        typer.Option(
            min=0,
            max=1_000_000,
            help="Simulated seconds a second, from when `cux clock set` lets it run; 0 is the real clock.",
        ),
    ] = 0,
    start_ns: Annotated[int, typer.Option(min=0, max=INT64_MAX, help="Where simulated time starts.")] = 0,
) -> None:
    """Make a data folder with keys for the venue and its first two operators.

    Example: cux venue init china --folder /srv/cux
    """
    settings: Settings = init_venue(DataFolder(folder), load_venue(name), origin, clock_speed, start_ns)
    typer.echo(f"{folder}: {settings.venue.name}, keys in {folder}/keys")


@venue.command("check")
def venue_check(name: VenueName) -> None:
    """Decode and validate a catalogue."""
    found = load_venue(name)
    typer.echo(f"{found.code}: {len(found.zones)} zones, {len(found.classes)} classes: valid")


def _thousandths(number: int | None) -> str:
    return "" if number is None else f"{Decimal(number) / 1000:f}"


@venue.command("show")
def venue_show(name: VenueName = "china") -> None:
    """Show a catalogue's zones and classes, and what a GPU of each is worth in A100s by peak figures."""
    found = load_venue(name)
    zones = table(
        f"{found.name} {found.name_zh}",
        Column("zone", no_wrap=True),
        *map(word, ("name", "hub", "kind")),
        *map(figure, ("grid\ngCO2e/kWh", "PUE")),
    )
    for zone in found.zones:
        pue = "" if zone.pue_permille is None else f"{zone.pue_permille / 1000:.2f}"
        label = f"{zone.name} {zone.name_zh}"
        zones.add_row(zone.code, label, zone.hub, zone.kind, f"{zone.grid_mgco2_per_kwh / 1000:.1f}", pue)
    console.print(zones)
    classes = table(
        "",
        Column("class", no_wrap=True),
        *map(word, ("vendor", "form")),
        *map(figure, ("memory\nGB", "BF16\ndense\nTFLOPS", "FP32\nTFLOPS")),
        *map(figure, ("A100s\nby\nBF16", "A100s\nby\nFP32", "TDP\nW", "lot\nGPUs")),
    )
    try:
        worth = a100_equivalents(found)
    except VenueError:  # a venue need not have the class that the others are compared with
        worth = {}
    for one in found.classes:
        a100s = worth.get(one.code, A100Equivalents(None, None))
        classes.add_row(
            one.code,
            one.vendor,
            one.form_factor,
            str(one.memory_gb),
            _thousandths(one.bf16_dense_gflops),
            _thousandths(one.fp32_gflops),
            _thousandths(a100s.bf16_dense_permille),
            _thousandths(a100s.fp32_permille),
            "" if one.tdp_w is None else str(one.tdp_w),
            f"{one.lot_eighths / 8:g}",
        )
    console.print(classes)


@keys.command("new")
def keys_new(path: Annotated[Path, typer.Argument(help="Where to write the key.")]) -> None:
    """Make an access key and print its public half.

    Example: cux keys new ~/.cux.key
    """
    typer.echo(new_key(path).public_key().public_bytes_raw().hex())
