"""Every rule of the rulebook (exchange/README.md) stands there with examples, and each example holds.

An example is a scenario of `tests/market.py`. A line `=> ` tells what the step before it reports, with `; `
between reports, and `=> nothing` where there are none; other steps may report what they like. An empty line
begins another market.
"""

import re
from pathlib import Path

import pytest

from schemas.reasons import RejectReason
from tests.market import Market

README = Path(__file__).parent.parent / "exchange" / "README.md"
LAST_RULE = 42


def rules() -> dict[int, list[str]]:
    """Return the examples of each rule, by number."""
    text = README.read_text(encoding="utf-8")
    book = text.split("\n## The rulebook\n")[1].split("\n## ")[0]
    parts = re.split(r"^(\d+)\. ", book, flags=re.MULTILINE)
    found: dict[int, list[str]] = {}
    for number, rule in zip(parts[1::2], parts[2::2], strict=True):
        assert int(number) not in found, f"rule {number} stands twice"
        blocks = re.findall(r"^ *```market\n(.*?)^ *```$", rule, flags=re.MULTILINE | re.DOTALL)
        found[int(number)] = [
            example for block in blocks for example in re.split(r"\n\s*\n", block) if example.strip()
        ]
    return found


RULES = rules()


def test_the_rules_are_numbered_in_order() -> None:
    assert list(RULES) == list(range(1, LAST_RULE + 1))


@pytest.mark.parametrize("number", RULES)
def test_every_rule_has_an_example(number: int) -> None:
    assert any("=> " in example for example in RULES[number]), f"rule {number} has no example"


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(example, id=f"rule-{number}-{place}")
        for number, examples in RULES.items()
        for place, example in enumerate(examples, 1)
    ],
)
def test_the_example_holds(example: str) -> None:
    market = Market()
    reports: list[str] = []
    lines = [line.strip() for line in example.strip().splitlines()]
    assert lines[-1].startswith("=> "), "an example ends with what is reported"
    for line in lines:
        if line.startswith("=> "):
            told = line.removeprefix("=> ")
            assert reports == ([] if told == "nothing" else told.split("; ")), line
        else:
            reports = market.play(line)


def test_every_reason_stands_in_the_table_under_its_number() -> None:
    table = README.read_text(encoding="utf-8").partition("\n## Reasons\n")[2].partition("\n## ")[0]
    told = [(int(number), name) for number, name in re.findall(r"\b(\d{3}) `(\w+)`", table)]
    assert told == [(reason.value, reason.name) for reason in RejectReason]
