"""The sequencer: numbers a command, stamps it, applies it. Nothing is told before the log has it."""

import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from msgspec import Raw

from exchange.clock import SECOND_NS, Clock
from exchange.engine import EMPTY_STATE, ENGINE_DIGEST
from exchange.folder import Settings
from exchange.packing import bytes_of, packed
from exchange.recovery import Recovered
from exchange.slots import Command, taken
from schemas import RULES_VERSION
from schemas.codec import CODEC_DIGEST, decode_command
from schemas.commands import AnyCommand, CorrectClock, EndCall, OpenEra, Tick
from schemas.events import ClockCorrected
from schemas.records import SALT_BYTES, Record

CHORES_MAX = 100
"""How many of the engine's chores one batch does; the next does what is left, members' commands between."""


SALTS_AT_ONCE = 256

# Found at once; a name that comes from where nothing is compiled is looked up each time.
_RAW: Final = Raw
_RECORD: Final = Record


class CommandFailedError(Exception):
    """Applying a command raised: the fault is ours, and the engine is not to be used any more."""

    def __init__(self, command: AnyCommand | Command) -> None:
        kind = decode_command(bytes_of(command)).__struct_config__.tag
        super().__init__(f"the engine failed at a command of type {kind}")
        self.command = command


class Taken(NamedTuple):
    """A batch of records; `answers` are the places in it of the commands' own, in their order."""

    records: list[Record]
    answers: list[int]


class Sequencer:
    """Owns the engine; its records are the log's next.

    What the engine cannot draw is drawn here: salts, many at once, by `draw_salt(bytes)`, ends of calls by
    `draw_below(bound)`, an integer from 0 to below the bound.
    """

    def __init__(
        self,
        recovered: Recovered,
        clock: Clock,
        draw_salt: Callable[[int], bytes] = secrets.token_bytes,
        draw_below: Callable[[int], int] = secrets.randbelow,
    ) -> None:
        self.engine = recovered.engine
        self.era = recovered.era
        self._migrated_from = recovered.migrated_from
        self._next = recovered.sequence + 1
        self._clock = clock
        self._draw_salt = draw_salt
        # Drawn for many records at once: to ask the system for each would cost as much as to encode it.
        self._salts: list[bytes] = []
        self._draw_below = draw_below
        # When each call is to end, by class, hour and start.
        self._call_ends: dict[tuple[str, int, int], int] = {}
        self._chores_left = 0

    def open_era(self, settings: Settings) -> list[Record]:
        """Return the record that opens an era, none where the running one was made by this very code."""
        era = self.era
        if era is not None and (era.engine_digest, era.codec_digest) == (ENGINE_DIGEST, CODEC_DIGEST):
            return []
        state = EMPTY_STATE if era is None else self.engine.state_hash()
        self.era = OpenEra(
            origin=settings.origin,
            rules_version=RULES_VERSION,
            venue=settings.venue if era is None else era.venue,
            venue_key=settings.venue_key,
            operator_keys=settings.operator_keys,
            engine_digest=ENGINE_DIGEST,
            codec_digest=CODEC_DIGEST,
            state_before=self._migrated_from or state,
            state_after=state,
            clock_speed=settings.clock_speed,
        )
        return [self._apply(self._now_ns(), self.era)]

    def next_due_ns(self) -> int | None:
        """Return when there is work without a command, None if there is none."""
        if self.engine.chores(1):
            return self.engine.time_ns
        self._draw_call_ends()
        due = self.engine.next_due_ns()
        return min([*self._call_ends.values(), *([] if due is None else [due])], default=None)

    def take(self, commands: Sequence[AnyCommand | Command]) -> Taken:
        """Return the records of the commands, and before them those of what is due.

        The engine's chores follow the record that caused them, up to `CHORES_MAX` in all; those that the
        last batch left come first.

        Raises:
            CommandFailedError: the engine failed.
        """
        time_ns = self._now_ns()
        self._chores_left = CHORES_MAX
        records: list[Record] = []
        due = self.engine.next_due_ns()
        if due is not None and due <= time_ns:
            # A tick of its own keeps the rule that a record's first event answers its command.
            records.append(self._apply(time_ns, Tick()))
        self._do_chores(time_ns, records)
        self._draw_call_ends()
        ended = [EndCall(code, hour) for (code, hour, _), end in self._call_ends.items() if end <= time_ns]
        self._do(time_ns, ended, records)
        answers = self._do(time_ns, commands, records)
        return Taken(records, answers)

    def _do(self, time_ns: int, commands: Iterable[AnyCommand | Command], records: list[Record]) -> list[int]:
        """Add the commands' records and their chores', and return the places of the former."""
        places = []
        for command in commands:
            places.append(len(records))
            records.append(self._apply(time_ns, command))
            self._do_chores(time_ns, records)
        return places

    def _do_chores(self, time_ns: int, records: list[Record]) -> None:
        # One at a time: what is done may make the next one needless.
        while self._chores_left and (chores := self.engine.chores(1)):
            self._chores_left -= 1
            records.append(self._apply(time_ns, chores[0]))

    def _draw_call_ends(self) -> None:
        """Draw for each call that has none the moment at which it ends, within what is left of its window."""
        calls = self.engine.calls()
        if not calls and not self._call_ends:
            return
        known, self._call_ends = self._call_ends, {}
        for code, hour, since_ns, is_clearing in calls:
            if not is_clearing:
                call = (code, hour, since_ns)
                self._call_ends[call] = known[call] if call in known else self._drawn_end_ns(since_ns)

    def _drawn_end_ns(self, since_ns: int) -> int:
        assert self.engine.venue is not None
        rules = self.engine.venue.calls
        earliest_ns = max(since_ns + rules.min_seconds * SECOND_NS, self._now_ns())
        latest_ns = since_ns + rules.max_seconds * SECOND_NS
        return earliest_ns + self._draw_below(max(latest_ns - earliest_ns, 0) + 1)

    def _now_ns(self) -> int:
        return max(self._clock.now_ns(), self.engine.time_ns)

    def _apply(self, time_ns: int, command: AnyCommand | Command) -> Record:
        try:
            events = self.engine.execute(time_ns, taken(command))
            data, parts = _RAW(bytes_of(command)), tuple([_RAW(packed(event)) for event in events])
        except Exception as error:
            raise CommandFailedError(command) from error
        if not isinstance(command, Command) and isinstance(command, CorrectClock):
            self._corrected(events[0])
        record = _RECORD(self._next, time_ns, self._salt(), data, parts)
        self._next += 1
        return record

    def _corrected(self, event: object) -> None:
        if isinstance(event, ClockCorrected):
            self._clock.correct()

    def _salt(self) -> bytes:
        if not self._salts:
            drawn = self._draw_salt(SALTS_AT_ONCE * SALT_BYTES)
            ends = range(len(drawn), 0, -SALT_BYTES)
            self._salts = [drawn[end - SALT_BYTES : end] for end in ends]
        return self._salts.pop()
