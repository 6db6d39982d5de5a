"""Some lives on a simulated machine, and the proof that both verdicts can fail. Many: `make lives`."""

import random
import re
from collections import Counter
from collections.abc import Callable

import pytest

from exchange.desk import Desk, Request
from tests.campaigns import lives
from tests.campaigns.lives import DeskOfLives, Life, LivenessError, MakeDisk, SafetyError
from tests.campaigns.machine import SimulatedDisk


class DiskThatDoesNotSync(SimulatedDisk):
    def sync(self, segment: int) -> None:
        pass


class DiskThatLosesItsEnd(SimulatedDisk):
    def cut_power(self) -> None:
        super().cut_power()
        last = self.segments()[-1]
        self.truncate(last, len(self.read(last)) * 3 // 4)


class DeskThatForgets(DeskOfLives):
    """Takes its fifth command in and never gives it out."""

    def __init__(self) -> None:
        super().__init__()
        self._count = 0

    def put(self, request: Request) -> str:
        self._count += 1
        return "" if self._count == 5 else super().put(request)


def test_no_life_loses_doubles_or_forgets_anything() -> None:
    first = random.SystemRandom().randrange(10**9)
    crashes: Counter[str] = Counter()
    cleared = 0
    for seed in range(first, first + 150):
        life = Life(seed)
        try:
            life.run()
        except (SafetyError, LivenessError) as error:
            pytest.fail(f"{type(error).__name__}: {error}; its story: make lives SEED={seed}")
        crashes += life.crashes
        cleared += life.cleared
    # Of each life's crashes the last is a power cut.
    assert crashes["PowerCutError"] > 200
    assert crashes["KilledError"] > 50
    assert cleared > 50


def story_of(seed: int) -> list[str]:
    story: list[str] = []
    Life(seed, story.append).run()
    return story


def test_a_seed_tells_the_same_story_again() -> None:
    assert story_of(7) == story_of(7)
    assert len(story_of(7)) > 50
    assert story_of(7) != story_of(8)


def verdicts(
    make_disk: MakeDisk = SimulatedDisk, make_desk: Callable[[], Desk] = DeskOfLives
) -> list[AssertionError]:
    """What 20 lives are found guilty of."""
    found: list[AssertionError] = []
    for seed in range(20):
        try:
            Life(seed, make_disk=make_disk, make_desk=make_desk).run()
        except (SafetyError, LivenessError) as error:
            found.append(error)
    return found


def test_a_log_that_does_not_sync_breaks_safety_and_nothing_else() -> None:
    found = verdicts(make_disk=DiskThatDoesNotSync)
    assert len(found) == 20
    assert {type(error) for error in found} == {SafetyError}


def test_a_log_that_loses_its_end_has_not_what_was_told() -> None:
    found = verdicts(make_disk=DiskThatLosesItsEnd)
    assert {type(error) for error in found} == {SafetyError}
    words = {re.sub(r"\d+", "N", str(error)) for error in found}
    assert "record N was told, and the log has another or none" in words


def test_a_desk_that_forgets_a_command_breaks_liveness_and_nothing_else() -> None:
    found = verdicts(make_desk=DeskThatForgets)
    # In some lives a crash comes after it, and the client sends again what was forgotten.
    assert len(found) >= 5
    assert {type(error) for error in found} == {LivenessError}
    assert all(re.match(r"client \d waits for", str(error)) for error in found)


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (SafetyError("lost"), 1, "SAFETY is broken: lost"),
        (LivenessError("waits"), 2, "LIVENESS is broken: waits"),
    ],
)
def test_each_verdict_has_its_own_word_and_code_and_names_the_seed(
    error: Exception,
    code: int,
    word: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(_life: Life) -> None:
        raise error

    monkeypatch.setattr(Life, "run", fails)
    monkeypatch.setattr("sys.argv", ["lives", "--seed", "12"])
    assert lives.main() == code
    assert capsys.readouterr().out == f"{word}\nits story: make lives SEED=12\n"
