"""From verdicts to money. Pure and in integers.

Every rule stands in settlement/README.md, "Runs", with worked examples that are run as tests.
"""

from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

from schemas.venue import SettlementRules
from settlement.reconcile import Fill, Reconciliation

_HOUR_MS = 3_600_000


class Amounts(NamedTuple):
    """What a fill comes to: the fields of `PostSettlement`, in millionths."""

    payment_micros: int
    refund_micros: int
    penalty_micros: int
    bond_release_micros: int

    def minus(self, other: "Amounts") -> "Amounts":
        """Return what is still to be posted when `other` was."""
        return Amounts(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))

    def plus(self, other: "Amounts") -> "Amounts":
        """Return the sum."""
        return Amounts(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


NOTHING = Amounts(0, 0, 0, 0)


class ContractTrade(NamedTuple):
    """Trades of a contract between two trade groups, added up: lots, and price in ticks × lots."""

    buyer_group: int
    seller_group: int
    lots: int
    tick_lots: int


class GateAsk(NamedTuple):
    """What was open of an ask when trading ended, from a site that may serve the bid."""

    trade_group: int
    price_ticks: int
    lots: int


class Replacement(NamedTuple):
    """The price per GPU-hour at which a shortfall counts, in ticks, and which of the three it is."""

    price_ticks: Fraction
    basis: str


def replacement_of(
    fill: Fill,
    groups: tuple[int, int],
    undelivered_lots: int,
    trades: Iterable[ContractTrade],
    asks: Iterable[GateAsk],
) -> Replacement:
    """Return the highest of the trade price, the contract's average and the best asks at the gate.

    `groups` are the trade groups of buyer and seller. The average leaves out every trade of the seller's
    group. The asks are the cheapest that together hold `undelivered_lots`, or all there were, averaged by
    lots; those of either group are left out, as the buyer could not have met them or the seller made them.
    """
    best = Replacement(Fraction(fill.price_ticks), "trade")
    others = [t for t in trades if groups[1] not in (t.buyer_group, t.seller_group)]
    lots = sum(t.lots for t in others)
    if lots:
        average = Fraction(sum(t.tick_lots for t in others), lots)
        if average > best.price_ticks:
            best = Replacement(average, "average")
    wanted, tick_lots = undelivered_lots, 0
    for ask in sorted((a for a in asks if a.trade_group not in groups), key=lambda a: a.price_ticks):
        taken = min(ask.lots, wanted)
        tick_lots += taken * ask.price_ticks
        wanted -= taken
    if wanted < undelivered_lots:
        marginal = Fraction(tick_lots, undelivered_lots - wanted)
        if marginal > best.price_ticks:
            best = Replacement(marginal, "asks")
    return best


def undelivered_lots(fill: Fill, reconciliation: Reconciliation) -> int:
    """Return the lots that would have to be bought in its place, rounded up."""
    undelivered_ms = reconciliation.contracted_gpu_ms - reconciliation.payable_gpu_ms
    return -(-fill.lots * undelivered_ms // reconciliation.contracted_gpu_ms)


def posting_of(
    fill: Fill,
    reconciliation: Reconciliation,
    rules: SettlementRules,
    tick_micros: int,
    replacement: Replacement | None,
) -> Amounts:
    """Return what the fill comes to; `replacement` is needed when something was not delivered.

    Payment + refund = notional and penalty + bond release = bond, exactly. The payment and the penalty
    are each rounded half-even once; the penalty's caps are rounded down.
    """
    contracted_ms, payable_ms = reconciliation.contracted_gpu_ms, reconciliation.payable_gpu_ms
    payment = round(Fraction(fill.notional_micros * payable_ms, contracted_ms))
    refund = fill.notional_micros - payment
    penalty = 0
    if payable_ms < contracted_ms:
        assert replacement is not None
        gpu_hours = Fraction(contracted_ms - payable_ms, _HOUR_MS)
        replacing = (
            replacement.price_ticks * tick_micros * gpu_hours * rules.replacement_factor_permille / 1000
        )
        cap = min(refund * rules.penalty_cap_permille // 1000, fill.bond_micros)
        penalty = min(max(0, round(replacing - refund)), cap)
    return Amounts(payment, refund, penalty, fill.bond_micros - penalty)
