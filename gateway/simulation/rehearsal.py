"""Rehearses a day in the engine, offline, to find how much supply leaves the wanted share unfilled."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import NamedTuple

from exchange.engine import EMPTY_STATE, ENGINE_DIGEST
from gateway.simulation.demand import Job
from gateway.simulation.market import Market, Planned
from gateway.simulation.replay import Replay
from gateway.simulation.scenario import Participant, Site
from schemas import RULES_VERSION
from schemas.codec import CODEC_DIGEST
from schemas.commands import AnyCommand, Authority, Deposit, EnterOrder, OpenEra, RegisterAccount, Side
from schemas.events import trades_of

GOAL_PERMILLE = 300
NEAR_PERMILLE = 25
"""The search ends when the unfilled share is so near to the goal."""

ROUNDS_MAX = 6
LEAST_SUPPLY_PERMILLE = 700
"""With so much supply over demand, the goal's share at least stays unfilled whatever the prices are."""
FIRST_COVERAGE_PERMILLE = 840
"""The search starts where the capacity of each hour could cover this share of its demand.

On nine traces, real and made up, the supplies found in the end covered 750 to 900.
"""
SLOPE = 4
"""Where a permille of the demand more is unfilled, so many permille more of supply fill it."""

_OPERATOR = Authority(bytes(32), 0, "rehearsal")


class Tried(NamedTuple):
    """A supply that was tried and the share of the demand that it left unfilled."""

    supply_permille: int
    unfilled_permille: int


def unfilled_permille(
    market: Market, participants: Iterable[Participant], sites: Iterable[Site], acts: Sequence[Planned]
) -> int:
    """Return the share of the bids' GPU-hours, as entered, that the engine leaves unfilled."""
    replay = Replay()
    opening: list[AnyCommand] = [_era(market)]
    for one in participants:
        opening.append(RegisterAccount(one.account, one.trade_group, authority=_OPERATOR))
        opening.append(Deposit(one.account, one.funds_micros, authority=_OPERATOR))
    opening += [site.certify(_OPERATOR) for site in sites]
    for command in opening:
        replay.do(market.window.start_ns, command)
    demanded = filled = 0
    for act in acts:
        command = act.command
        if isinstance(command, EnterOrder) and command.side is Side.BUY:
            lot_eighths = market.classes[command.class_code].lot_eighths
            demanded += command.lots * command.hours * lot_eighths
        for applied in replay.do(act.at_ns, command):
            for trade in chain.from_iterable(map(trades_of, applied.events)):
                filled += trade.lots * market.classes[trade.class_code].lot_eighths
    return (demanded - filled) * 1000 // demanded


def first_supply(market: Market, jobs: Iterable[Job]) -> int:
    """Return the permille of supply over demand that could cover enough if only capacity counted."""
    by_hour: Counter[tuple[str, int]] = Counter()
    by_class: Counter[str] = Counter()
    for job in jobs:
        for hour in job.hours:
            by_hour[job.class_code, hour] += job.lots
        by_class[job.class_code] += job.lots * len(job.hours)
    eighths = {code: one.lot_eighths for code, one in market.classes.items()}
    demanded = sum(lots * eighths[code] for code, lots in by_class.items())
    hours = len(market.window.hours)

    def coverage_permille(supply: int) -> int:
        covered = sum(
            min(lots, by_class[code] * supply // (1000 * hours)) * eighths[code]
            for (code, _), lots in by_hour.items()
        )
        return covered * 1000 // demanded

    supply = LEAST_SUPPLY_PERMILLE
    while coverage_permille(supply) < FIRST_COVERAGE_PERMILLE:
        supply += supply // 10
    return supply


def search(rehearse: Callable[[int], int], first: int) -> tuple[Tried, int]:
    """Return the supply whose unfilled share came nearest to the goal, and the rounds it took.

    The search starts at the supply `first`.

    `rehearse` returns the share that a supply leaves unfilled, which falls as the supply grows.
    """
    scarce: Tried | None = None
    ample: Tried | None = None
    supply = first
    best = Tried(supply, 1000)
    rounds = 0
    while rounds < ROUNDS_MAX:
        rounds += 1
        tried = Tried(supply, rehearse(supply))
        if _distance(tried) < _distance(best):
            best = tried
        if _distance(tried) <= NEAR_PERMILLE:
            break
        if tried.unfilled_permille > GOAL_PERMILLE:
            scarce = tried
        else:
            ample = tried
        supply = _between(scarce, ample) if scarce and ample else _beyond(tried)
    return best, rounds


def _distance(tried: Tried) -> int:
    return abs(tried.unfilled_permille - GOAL_PERMILLE)


def _beyond(tried: Tried) -> int:
    """Return a supply on the goal's other side, or near to it, going by the slope found on the traces."""
    change = SLOPE * (tried.unfilled_permille - GOAL_PERMILLE)
    supply = tried.supply_permille * (1000 + min(max(change, -500), 1000)) // 1000
    return max(LEAST_SUPPLY_PERMILLE, supply)


def _between(scarce: Tried, ample: Tried) -> int:
    """Return where a straight line meets the goal, but not too near to either end: the curve is none."""
    width = ample.supply_permille - scarce.supply_permille
    drop = max(1, scarce.unfilled_permille - ample.unfilled_permille)
    step = width * (scarce.unfilled_permille - GOAL_PERMILLE) // drop
    return scarce.supply_permille + min(max(step, width // 10), width - width // 10)


def _era(market: Market) -> OpenEra:
    return OpenEra(
        origin="rehearsal",
        rules_version=RULES_VERSION,
        venue=market.venue,
        venue_key=_OPERATOR.key,
        operator_keys=(_OPERATOR.key,),
        engine_digest=ENGINE_DIGEST,
        codec_digest=CODEC_DIGEST,
        state_before=EMPTY_STATE,
        state_after=EMPTY_STATE,
    )
