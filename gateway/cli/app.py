"""The root of the command line, and what its verbs share."""

import asyncio
import json
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from exchange.folder import DataFolder
from gateway.keys import read_key

T = TypeVar("T")
INT64_MAX = 2**63 - 1
"""The largest number that a command, the log and the ledger carry."""

app = typer.Typer(
    name="cux",
    help="Compute Unit eXchange: an open double-auction exchange for GPU-hours.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console(stderr=False)

Folder = Annotated[
    Path, typer.Option("--folder", envvar="CUX_FOLDER", help="The exchange's data folder.", show_default=True)
]
FOLDER = Path(".cux/exchange")
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Url = Annotated[str, typer.Option("--url", envvar="CUX_URL", help="The exchange's WebSocket address.")]
URL = "ws://127.0.0.1:8470/ws"
KeyFile = Annotated[
    Path | None, typer.Option("--key", envvar="CUX_KEY", help="An Ed25519 key file; see cux keys new.")
]
Port = Annotated[int, typer.Option("--port", min=1, max=65_535, help="The gateway's port.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; it stands in the log.")]


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run asynchronous work to its end."""
    return asyncio.run(work)


def show(as_json: bool, data: Any, text: str) -> None:
    """Print `data` as one line of JSON, or `text`."""
    if as_json:
        typer.echo(json.dumps(data, default=str))
    else:
        # Not through rich: it would break long lines, and read what stands in brackets as its own.
        typer.echo(text)


def lines(data: Mapping[str, Any]) -> str:
    """Return a line of name and value for each entry."""
    return "\n".join(f"{name} {value}" for name, value in data.items())


def table(title: str, *columns: Column) -> Table:
    """Return a table that is as narrow as can be, so that 80 columns show it."""
    return Table(*columns, title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)


def word(name: str) -> Column:
    """Return a column of text; one that has no room breaks it, and never leaves any out."""
    return Column(name, overflow="fold")


def figure(name: str) -> Column:
    """Return a column of numbers, which are never broken; `name` is, at its line ends."""
    return Column(name, justify="right", no_wrap=True)


def operator_key(folder: DataFolder, path: Path | None) -> Ed25519PrivateKey:
    """Return the operator's key: the file that was named, or the first operator's of the folder."""
    return read_key(path or folder.keys / "operator-1.key")


def group(name: str, text: str) -> typer.Typer:
    """Return a new group of verbs."""
    verbs = typer.Typer(help=text, no_args_is_help=True)
    app.add_typer(verbs, name=name)
    return verbs
