"""Orders inside the engine, and what they must keep in reserve."""

from schemas.commands import EnterOrder, Side
from schemas.venue import Venue

PPM = 1_000_000


class Terms:
    """What the venue takes: bond and fees, and the worth of a lot-hour at one tick."""

    __slots__ = ("bond_permille", "highest_fee_ppm", "maker_fee_ppm", "taker_fee_ppm")

    def __init__(self, venue: Venue) -> None:
        self.bond_permille = venue.bond_permille
        self.maker_fee_ppm = venue.fees.maker_ppm
        self.taker_fee_ppm = venue.fees.taker_ppm
        self.highest_fee_ppm = max(venue.fees.maker_ppm, venue.fees.taker_ppm)


class Order:
    """An accepted order. Fees and bond accrue exactly and are charged in the whole millionths they pass."""

    __slots__ = (
        "bond_accrued",
        "cell",
        "command",
        "fee_accrued",
        "filled_lots",
        "group",
        "leaves_lots",
        "order_id",
        "reserved_micros",
        "tick_lot_micros",
        "worth_left_micros",
    )

    def __init__(
        self, order_id: int, command: EnterOrder, group: int, cell: int, tick_lot_micros: int
    ) -> None:
        self.order_id = order_id
        self.command = command
        self.group = group
        self.cell = cell
        self.tick_lot_micros = tick_lot_micros
        self.leaves_lots = command.lots
        self.filled_lots = 0
        self.reserved_micros = 0
        self.fee_accrued = 0
        self.bond_accrued = 0
        self.worth_left_micros = self.notional(command.price_ticks, command.lots * command.hours)

    @property
    def is_block(self) -> bool:
        """Whether it wants more than one hour."""
        return self.command.hours > 1

    @property
    def hours(self) -> range:
        """Its delivery hours."""
        return range(self.command.delivery_hour, self.command.delivery_hour + self.command.hours)

    def notional(self, price_ticks: int, lot_hours: int) -> int:
        """Return price × quantity in millionths."""
        return price_ticks * lot_hours * self.tick_lot_micros

    def required_micros(self, terms: Terms) -> int:
        """Return what must be reserved for the trades still to come, worth `worth_left_micros` at most.

        A bid keeps the money and the higher fee, an ask its bond and the higher fee. Rounds up.
        """
        worth = self.worth_left_micros
        if worth == 0:
            return 0
        fee = _ceil(self.fee_accrued + terms.highest_fee_ppm * worth, PPM)
        if self.command.side is Side.BUY:
            return worth + fee
        return _ceil(self.bond_accrued + terms.bond_permille * worth, 1000) + fee

    def charge_fee(self, terms: Terms, notional_micros: int, taker: bool) -> int:
        """Accrue the fee of a trade and return the whole millionths that fall due; a fraction is kept."""
        self.fee_accrued += (terms.taker_fee_ppm if taker else terms.maker_fee_ppm) * notional_micros
        due, self.fee_accrued = divmod(self.fee_accrued, PPM)
        return due

    def charge_bond(self, terms: Terms, notional_micros: int) -> int:
        """Accrue the bond of a sale and return the whole millionths that fall due; a fraction is kept."""
        self.bond_accrued += terms.bond_permille * notional_micros
        due, self.bond_accrued = divmod(self.bond_accrued, 1000)
        return due

    def take(self, lots: int) -> None:
        """Fill `lots` of what is open."""
        self.leaves_lots -= lots
        self.filled_lots += lots
        assert self.leaves_lots >= 0


def _ceil(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
