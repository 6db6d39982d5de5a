"""The desk before the sequencer: who waits, who goes first, and who is told to come back later.

Two lanes. The first one, for cancels and for what operators do, goes before the ordinary one; only within
an account nothing overtakes, else a cancel of all that was just entered would leave the order open.
"""

from collections import deque
from enum import IntEnum
from typing import Any, Final, get_args

from librt.strings import read_i32_be
from mypy_extensions import i64, mypyc_attr

from exchange import slots
from exchange.packing import READS_PLAIN_ORDERS, submitted
from schemas.commands import (
    AnyCommand,
    CancelOrder,
    CancelStandingOffer,
    CorrectClock,
    MassCancel,
    OperatorCommand,
    Tick,
)
from schemas.link import LENGTH

ORDINARY_MAX = 10_000
CANCELS_MAX = 10_000
OPERATORS_MAX = 1_000
LOW_DISK_BYTES = 64 * 1024 * 1024
"""What due work and cancels may fill of the disk, when nothing else is taken any more."""


class Kind(IntEnum):
    """Whose room a command takes up. All but the ordinary go in the first lane."""

    ORDINARY = 0
    CANCEL = 1
    OPERATOR = 2


_WORDS = ("commands", "cancels", "operators' commands")


def _kind(command: type) -> Kind:
    if command in (CancelOrder, MassCancel, CancelStandingOffer):
        return Kind.CANCEL
    # A tick comes from an operator who set a simulated clock, or is the core's own.
    return Kind.OPERATOR if issubclass(command, OperatorCommand | Tick) else Kind.ORDINARY


_LENGTH_BYTES: Final = 4
assert LENGTH.size == _LENGTH_BYTES
_KINDS: dict[type, int] = {command: int(_kind(command)) for command in get_args(AnyCommand)}
_ORDINARY: Final = int(Kind.ORDINARY)
_CANCEL: Final = int(Kind.CANCEL)
_OPERATOR: Final = int(Kind.OPERATOR)


class Request:
    """A command that waits; who asked for it, and by which number, is the caller's business.

    `kind` is a `Kind`, `account` whose command it is, None for an operator's and for one that names none.
    """

    __slots__ = ("account", "client", "command", "correlation", "kind")

    def __init__(self, client: Any, correlation: int, command: AnyCommand | slots.Command) -> None:
        self.client = client
        self.correlation = correlation
        self.command = command
        self.account: int | None
        if isinstance(command, slots.Command):
            self.kind = _CANCEL if isinstance(command, slots.CancelOrder) else _ORDINARY
            self.account = command.account
        else:
            self.kind = _KINDS[type(command)]
            self.account = None if self.kind == _OPERATOR else getattr(command, "account", None)


class Inbox:
    """Makes requests of what one client sends, in whatever pieces it comes."""

    def __init__(self, client: Any, frame_max_bytes: int) -> None:
        self._client = client
        self._frame_max_bytes: i64 = frame_max_bytes
        self._left = b""
        self.is_broken = False
        """Whether a frame was announced that is too large: what follows cannot be read."""

    def read(self, data: bytes) -> list[Request | bytes]:
        """Return what the data completes: plain orders as requests, any other frame as its bytes."""
        if self._left:
            data = self._left + data
        found: list[Request | bytes] = []
        at: i64 = 0
        size: i64 = len(data)
        while size - at >= _LENGTH_BYTES:
            start = at + _LENGTH_BYTES
            end = start + i64(read_i32_be(data, at))
            if end < start or end - start > self._frame_max_bytes:
                self.is_broken = True
                break
            if end > size:
                break
            body = data[start:end]
            plain = submitted(body) if READS_PLAIN_ORDERS else None
            found.append(body if plain is None else Request(self._client, plain.correlation, plain.command))
            at = end
        self._left = data[at:]
        return found


def note_answers(
    answers: dict[Any, list[tuple[int, int]]], first: int, places: list[int], requests: list[Request]
) -> None:
    """Add to each client's answers where his record stands, counted from `first`, and his number for it."""
    assert len(places) == len(requests)
    for place, request in zip(places, requests):  # noqa: B905 - compiled, strict is slow
        client = request.client
        if client is not None:
            own = answers.get(client)
            if own is None:
                own = []
                answers[client] = own
            own.append((first + place, request.correlation))


@mypyc_attr(allow_interpreted_subclasses=True)
class Desk:
    """What was taken in and has no number yet."""

    def __init__(
        self,
        ordinary_max: int = ORDINARY_MAX,
        cancels_max: int = CANCELS_MAX,
        operators_max: int = OPERATORS_MAX,
        low_disk_bytes: int = LOW_DISK_BYTES,
    ) -> None:
        self.cancels_only = ""
        """Why nothing but cancels is taken, empty while everything is."""
        self._low_disk_bytes = low_disk_bytes
        self._disk_is_low = False
        # By kind.
        self._max = [ordinary_max, cancels_max, operators_max]
        self._waiting = [0] * len(Kind)
        self._first: deque[Request] = deque()
        self._ordinary: deque[Request] = deque()
        # Ordinary commands are numbered from 0 as they come; so many have gone.
        self._gone = 0
        # The last ordinary command of each account that has one here.
        self._last_of: dict[int, int] = {}
        # The cancels that wait for an ordinary command of their own account, by its number.
        self._behind: dict[int, list[Request]] = {}

    def __len__(self) -> int:
        return len(self._first) + len(self._ordinary) + sum(map(len, self._behind.values()))

    def look(self, free_bytes: int, parted_ns: int) -> None:
        """Take cancels only while the disk is low or the clock has parted, as these two say.

        A disk that was low has room again at twice the bound, lest one that is full to the brim flickers.
        """
        bound = 2 * self._low_disk_bytes if self._disk_is_low else self._low_disk_bytes
        self._disk_is_low = free_bytes < bound
        reasons = []
        if self._disk_is_low:
            reasons.append(f"the disk of the log has {free_bytes} bytes left; {bound} are needed")
        if parted_ns:
            reasons.append(
                f"the clock jumped by {parted_ns // 1_000_000} ms; an operator must sign correct_clock"
            )
        self.cancels_only = " and ".join(reasons)

    def refusal(self, request: Request) -> str:
        """Return why the request would not be taken now, empty where it would."""
        kind = request.kind
        # Also operators wait for room on the disk: what they do can wait, and cancels can't.
        if self.cancels_only and kind != _CANCEL and not isinstance(request.command, CorrectClock):
            return f"only cancels are taken: {self.cancels_only}"
        if self._waiting[kind] >= self._max[kind]:
            return f"the exchange is busy: {self._waiting[kind]} {_WORDS[kind]} wait"
        return ""

    def put(self, request: Request) -> str:
        """Take the request in, or return why not; then it is as if it had never come."""
        refusal = self.refusal(request)
        if refusal:
            return refusal
        kind, account = request.kind, request.account
        self._waiting[kind] += 1
        if kind == _ORDINARY:
            if account is not None:
                self._last_of[account] = self._gone + len(self._ordinary)
            self._ordinary.append(request)
        elif account is not None and account in self._last_of:
            self._behind.setdefault(self._last_of[account], []).append(request)
        else:
            self._first.append(request)
        return ""

    def put_own(self, command: AnyCommand) -> None:
        """Let a command of the core's own go first, whatever else waits."""
        request = Request(None, 0, command)
        self._waiting[request.kind] += 1
        self._first.append(request)

    def take(self, most: int) -> list[Request]:
        """Return what goes next, at most so many."""
        taken: list[Request] = []
        while len(taken) < most:
            if self._first:
                request = self._first.popleft()
            elif self._ordinary:
                request = self._next_ordinary()
            else:
                break
            self._waiting[request.kind] -= 1
            taken.append(request)
        return taken

    def _next_ordinary(self) -> Request:
        request = self._ordinary.popleft()
        number = self._gone
        self._gone += 1
        account = request.account
        if account is not None and self._last_of[account] == number:
            del self._last_of[account]
        # They come next: the first lane is empty.
        behind = self._behind.pop(number, None)
        if behind is not None:
            self._first.extend(behind)
        return request
