"""The writer: a thread that makes records durable while the engine goes on with the next ones."""

from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread

from exchange.log import Log
from schemas.records import Record

SEAL_AFTER_SECONDS = 0.005
"""Readers need not wait longer for the last record; under load the next batch's header tells them sooner."""


class Writer:
    """Takes all batches that came while the last sync ran, and makes them durable with one.

    `durable` is told up to which sequence the log is durable, `failed` what ended the thread: after a
    failure it does not touch the log again. Both are called in the thread.
    """

    def __init__(
        self, log: Log, durable: Callable[[int], object], failed: Callable[[Exception], object]
    ) -> None:
        self._log = log
        self._durable = durable
        self._failed = failed
        self._batches: SimpleQueue[list[Record] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="log writer", daemon=True)
        self._thread.start()

    def put(self, records: list[Record]) -> None:
        """Have the log's next records made durable."""
        self._batches.put(records)

    def stop(self) -> None:
        """Return when what was put is durable, or the log failed."""
        self._batches.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            is_last = False
            while not is_last:
                records, is_last = self._next()
                if records:
                    self._log.append(records)
                    self._durable(records[-1].sequence)
        except Exception as error:
            self._failed(error)

    def _next(self) -> tuple[list[Record], bool]:
        """Return all that waits, at least one batch, and whether it is the last."""
        try:
            batch = self._batches.get(timeout=SEAL_AFTER_SECONDS)
        except Empty:
            self._log.seal()
            batch = self._batches.get()
        records: list[Record] = []
        while batch is not None:
            records += batch
            try:
                batch = self._batches.get_nowait()
            except Empty:
                return records, False
        return records, True
