"""The sequencer: numbers a command, stamps it, applies it. Nothing is told before the log has it."""

import secrets
from collections.abc import Callable, Sequence

import msgspec

from exchange.clock import Clock
from exchange.engine import EMPTY_STATE, ENGINE_DIGEST, Engine
from exchange.folder import Settings
from exchange.log import Log, LogError
from schemas import RULES_VERSION
from schemas.codec import CODEC_DIGEST, encode
from schemas.commands import AnyCommand, OpenEra, Tick
from schemas.records import SALT_BYTES, Record, decoded


class Sequencer:
    """Owns the engine; its records are the log's next."""

    def __init__(
        self, log: Log, clock: Clock, draw_salt: Callable[[int], bytes] = secrets.token_bytes
    ) -> None:
        self.engine = Engine()
        self.era: OpenEra | None = None
        self._next = 1
        self._clock = clock
        self._draw_salt = draw_salt
        for record in log.read(1):
            self._reapply(record)

    def _reapply(self, record: Record) -> None:
        try:
            known = decoded(record)
        except msgspec.DecodeError as error:
            raise LogError(
                f"record {record.sequence} is of another version of cux, run the one that wrote it: {error}"
            ) from None
        events = self.engine.apply(known.time_ns, known.command)
        if tuple(events) != known.events:
            raise LogError(
                f"record {record.sequence}: this engine gives other events than the log holds; "
                f"run the release that wrote it, or restore the log"
            )
        if isinstance(known.command, OpenEra):
            self.era = known.command
        self._next = record.sequence + 1

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
            state_before=state,
            state_after=state,
            clock_speed=settings.clock_speed,
        )
        return self._apply(max(self._clock.now_ns(), self.engine.time_ns), [self.era])

    def next_due_ns(self) -> int | None:
        """Return when the engine has work without a command."""
        return self.engine.next_due_ns()

    def take(self, commands: Sequence[AnyCommand]) -> list[Record]:
        """Return the records of the commands, and before them one of a tick if something is due."""
        time_ns = max(self._clock.now_ns(), self.engine.time_ns)
        due = self.engine.next_due_ns()
        # A tick of its own keeps the rule that a record's first event answers its command.
        tick: list[AnyCommand] = [Tick()] if due is not None and due <= time_ns else []
        return self._apply(time_ns, [*tick, *commands])

    def _apply(self, time_ns: int, commands: Sequence[AnyCommand]) -> list[Record]:
        records = []
        for command in commands:
            events = self.engine.apply(time_ns, command)
            record = Record(
                self._next,
                time_ns,
                self._draw_salt(SALT_BYTES),
                msgspec.Raw(encode(command)),
                tuple(msgspec.Raw(encode(event)) for event in events),
            )
            self._next += 1
            records.append(record)
        return records
