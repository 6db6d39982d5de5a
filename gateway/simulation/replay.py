"""An engine fed offline, with what the core does beside the commands of others."""

from typing import NamedTuple

from exchange.calls import price_of
from exchange.clearing import clear
from exchange.engine import Engine
from schemas.commands import AnyCommand, ProposeClearing, Tick
from schemas.events import AnyEvent, Rejected


class Applied(NamedTuple):
    """A command, when it was applied, and what came of it."""

    time_ns: int
    command: AnyCommand
    events: tuple[AnyEvent, ...]


class Replay:
    """Applies commands at their times. What is due comes before them, at its own time.

    Chores and clearings follow at once. A call that no command ends lasts as long as it may.
    """

    def __init__(self) -> None:
        self.engine = Engine()

    def do(self, time_ns: int, command: AnyCommand) -> list[Applied]:
        """Apply what is due and the command, and return every command that was applied, in order."""
        done: list[Applied] = []
        while (due_ns := self.engine.next_due_ns()) is not None and due_ns <= time_ns:
            done += self._apply(max(due_ns, self.engine.time_ns), Tick())
        return done + self._apply(time_ns, command)

    def _apply(self, time_ns: int, command: AnyCommand) -> list[Applied]:
        done: list[Applied] = []
        following: AnyCommand | None = command
        while following is not None:
            events = tuple(self.engine.apply(time_ns, following))
            # A clearing that was refused would be proposed again for ever.
            assert not (isinstance(following, ProposeClearing) and isinstance(events[0], Rejected)), events
            done.append(Applied(time_ns, following, events))
            chores = self.engine.chores(1)
            following = chores[0] if chores else self._clearing()
        return done

    def _clearing(self) -> ProposeClearing | None:
        for class_code, hour, _, is_clearing in self.engine.calls():
            if is_clearing:
                fills, cells = clear(self.engine.call_book(class_code, hour))
                prices = tuple(price_of(self.engine.market, cell) for cell in cells)
                return ProposeClearing(class_code, hour, fills, prices)
        return None
