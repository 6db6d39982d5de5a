"""How settlement speaks to the exchange: commands through a callable, operators' acts signed."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from exchange.link import BusyError
from schemas.commands import AnyCommand, OperatorCommand
from schemas.records import Decoded

_BUSY_PAUSE_SECONDS = 0.05

C = TypeVar("C", bound=OperatorCommand)

Submit = Callable[[AnyCommand], Awaitable[Decoded]]
"""Returns the durable record that the command became."""

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, and how much there is."""


class Sign(Protocol):
    """Gives an operator's command its authority."""

    def __call__(self, command: C, /) -> C:
        """Return the signed command."""
        ...


class RefusedError(Exception):
    """The exchange refused what settlement submitted; the message says what and why."""


async def submitted(submit: Submit, command: AnyCommand) -> Decoded:
    """Return the command's record, however long the exchange is busy with others' commands."""
    while True:
        try:
            return await submit(command)
        except BusyError:
            await asyncio.sleep(_BUSY_PAUSE_SECONDS)
