"""`cux standby`: the follower that can take the leader's place."""

import typer

from exchange.folder import DataFolder
from exchange.follower import ask_standby
from gateway.cli.app import FOLDER, AsJson, Folder, group, run, show

standby = group("standby", "The follower: how far it is, and its promotion when the leader is lost.")


@standby.command()
def status(folder: Folder = FOLDER, as_json: AsJson = False) -> None:
    """Say how many records the follower is behind the log; fail where it cannot go on, with the reason.

    Example: cux standby status
    """
    found = run(ask_standby(DataFolder(folder), "status"))
    data = {
        "sequence": found.sequence,
        "durable": found.durable,
        "behind": found.behind,
        "fault": found.fault,
    }
    words = f"record {found.sequence} of {found.durable}, {found.behind} behind"
    show(as_json, data, f"{words}; it stands still: {found.fault}" if found.fault else words)
    if found.fault:
        raise typer.Exit(1)


@standby.command()
def promote(folder: Folder = FOLDER, as_json: AsJson = False) -> None:
    """End the leader, if it still runs, and let the follower lead in its place.

    Refused, and the leader left alone, unless the follower has applied what is durable and reads all of it.

    Example: cux standby promote
    """
    found = run(ask_standby(DataFolder(folder), "promote"))
    data = {"sequence": found.sequence, "epoch": found.epoch}
    show(as_json, data, f"the follower leads from record {found.sequence + 1} on, epoch {found.epoch}")
