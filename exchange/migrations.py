"""Forms of the state: the number of today's, and what leads from each older one to it.

Whoever changes `exchange/state_form.py` gives the form a new number and adds the step that leads there.
"""

from collections.abc import Callable

STATE_FORMAT = 1
"""The form that `exchange/state.py` makes and reads."""

STEPS: dict[int, Callable[[bytes], bytes]] = {}
"""By the number of an older form: a pure function from a state in it to the same state in the next one."""


def can_migrate(state_format: int) -> bool:
    """Say whether a state of this form can become one of today's."""
    return state_format <= STATE_FORMAT and all(old in STEPS for old in range(state_format, STATE_FORMAT))


def migrated(state: bytes, state_format: int) -> bytes:
    """Return the state in today's form."""
    assert can_migrate(state_format)
    for old in range(state_format, STATE_FORMAT):
        state = STEPS[old](state)
    return state
