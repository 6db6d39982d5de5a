"""The small market of `tests/market.py` with the slow twin beside it.

Each step happens to both, and both tell the same events, to the last amount, and hold the same money.
"""

from exchange.funds import VENUE, Purse
from schemas.commands import AnyCommand, CertifySite, Deposit, RegisterAccount
from schemas.events import AnyEvent
from tests.market import START_NS, Market, opening
from tests.reference_engine import ReferenceEngine
from tests.test_engine_properties import essentials


class TwinMarket(Market):
    """A small market whose twin is told the same, and compared after every step."""

    def begin(self, venue: str) -> None:
        """Begin a new market and its twin."""
        super().begin(venue)
        self.events: list[AnyEvent] = []
        commands = opening(self.venue)
        self.twin = ReferenceEngine(
            self.venue,
            {c.account: c.trade_group for c in commands if isinstance(c, RegisterAccount)},
            {c.site: c for c in commands if isinstance(c, CertifySite)},
            START_NS,
        )
        for command in commands:
            if isinstance(command, Deposit):
                self.twin.apply(START_NS, command)

    def apply(self, command: AnyCommand) -> list[str]:
        """Apply the command to both, compare, and return the reports."""
        self.events = []
        reports = super().apply(command)
        assert essentials(self.events) == self.twin.apply(self.time_ns, command), command
        self.compare_state()
        return reports

    def told(self, event: AnyEvent) -> list[str]:
        """Return the event in words, and keep it."""
        self.events.append(event)
        return super().told(event)

    def compare_state(self) -> None:
        """Compare what is open, and the money."""
        engine, twin = self.engine, self.twin
        assert {
            number: (order.leaves_lots, order.filled_lots, order.pledge.reserved_micros)
            for number, order in engine.orders.items()
        } == {o.number: (o.leaves, o.filled, o.pledge.reserved) for o in twin.open_orders()}
        held = {(VENUE, Purse.FEES): twin.fees}
        for purse, amounts in (
            (Purse.CASH, twin.cash),
            (Purse.RESERVED, twin.reserved),
            (Purse.COMMITTED, twin.committed),
            (Purse.BOND, twin.bonds),
        ):
            held |= {(account, purse): amount for account, amount in amounts.items()}
        assert {key: amount for key, amount in engine.balances().items() if key[1] is not Purse.BANK} == {
            key: amount for key, amount in held.items() if amount
        }


def run(scenario: str) -> list[str]:
    """Play a scenario on a new market and its twin, and return what its last step reports."""
    return TwinMarket().play(scenario)
