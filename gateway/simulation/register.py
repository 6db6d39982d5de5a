"""An operator's part before the play: accounts, keys, money and certificates, signed and submitted."""

import asyncio
import time
from collections.abc import Iterable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.client import Client, LostError, RefusedError
from gateway.simulation.scenario import Scenario
from schemas.authority import signed
from schemas.commands import OperatorCommand
from schemas.reasons import DoorError, RejectReason

AT_ONCE = 200
REASON = "simulation"
ATTEMPTS = 100
PAUSE_SECONDS = 0.1
_AGAIN = (DoorError.BUSY, DoorError.OUTCOME_UNKNOWN, DoorError.TOO_MANY_IN_FLIGHT)


async def register(admin: Client, scenario: Scenario, key: Ed25519PrivateKey) -> int:
    """Submit what the scenario needs at the admin door and return how many commands that took.

    Raises:
        RefusedError: the exchange refused one; those before it stand.
        LostError: the exchange stayed away.
    """
    commands = scenario.setup_commands()
    for some in _in_order(commands):
        await asyncio.gather(*(_submit(admin, signed(one, key, time.time_ns(), REASON)) for one in some))
    return len(commands)


async def _submit(admin: Client, command: OperatorCommand) -> None:
    """Submit a signed command until its outcome is known: with its signature it is done once."""
    for _ in range(ATTEMPTS):
        try:
            await admin.operate(command)
        except LostError:
            await admin.ask("venue.status")
        except RefusedError as refusal:
            if refusal.code == RejectReason.DUPLICATE_COMMAND:
                return
            if refusal.code not in _AGAIN:
                raise
            await asyncio.sleep(PAUSE_SECONDS)
        else:
            return
    raise LostError("the exchange stayed away")


def _in_order(commands: Iterable[OperatorCommand]) -> list[list[OperatorCommand]]:
    """Return the commands by kind, some at a time: those of one kind do not depend on each other."""
    kinds: dict[type[OperatorCommand], list[OperatorCommand]] = {}
    for command in commands:
        kinds.setdefault(type(command), []).append(command)
    return [some[i : i + AT_ONCE] for some in kinds.values() for i in range(0, len(some), AT_ONCE)]
