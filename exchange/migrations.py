"""Forms of the state: the number of today's, and what leads from each older one to it.

The form is that of `schemas/state.py` and of what it holds of the words: catalogue, certificates, and
the command that opened the era. Whoever changes it gives it a new number and adds the step that leads there.
"""

from collections.abc import Callable
from typing import NamedTuple

STATE_FORMAT = 1
"""The form that `exchange/state.py` makes and reads."""


class Encoded(NamedTuple):
    """A state, and the command that opened the era in which it was, encoded."""

    era: bytes
    state: bytes


STEPS: dict[int, Callable[[Encoded], Encoded]] = {}
"""By the number of an older form: a pure function from what is in it to the same in the next one."""


def can_migrate(state_format: int) -> bool:
    """Say whether what is in this form can be had in today's."""
    return state_format <= STATE_FORMAT and all(old in STEPS for old in range(state_format, STATE_FORMAT))


def migrated(encoded: Encoded, state_format: int) -> Encoded:
    """Return what is in that form in today's."""
    assert can_migrate(state_format)
    for old in range(state_format, STATE_FORMAT):
        encoded = STEPS[old](encoded)
    return encoded
