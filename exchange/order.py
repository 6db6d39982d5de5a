"""Accounts, orders, groups and fills inside the engine, and what an open order must keep in reserve."""

from typing import TYPE_CHECKING, Final

from mypy_extensions import mypyc_attr

from exchange.slots import CANCEL_TAKER, GTC, EnterOrder, Traded
from schemas.venue import Venue

if TYPE_CHECKING:
    from exchange.book import Book, CellSide, Level, Listing, Site, SiteHour

PPM: Final = 1_000_000


class Terms:
    """What the venue takes: bond and fees."""

    __slots__ = ("bond_permille", "highest_fee_ppm", "maker_fee_ppm", "taker_fee_ppm")

    def __init__(self, venue: Venue) -> None:
        self.bond_permille: int = venue.bond_permille
        self.maker_fee_ppm: int = venue.fees.maker_ppm
        self.taker_fee_ppm: int = venue.fees.taker_ppm
        self.highest_fee_ppm = max(self.maker_fee_ppm, self.taker_fee_ppm)


class Pledge:
    """What one open quantity keeps in reserve, and what of fees and bond is below a whole millionth."""

    __slots__ = ("bond_accrued", "fee_accrued", "reserved_micros")

    def __init__(self) -> None:
        self.reserved_micros = 0
        self.fee_accrued = 0
        self.bond_accrued = 0

    def required(self, worth_micros: int, is_bid: bool, terms: Terms) -> int:
        """Return what trades still to come, worth that much at most, may take. Rounds up.

        A bid keeps the money and the higher fee, an ask its bond and the higher fee.
        """
        if worth_micros == 0:
            return 0
        fee = (self.fee_accrued + terms.highest_fee_ppm * worth_micros + PPM - 1) // PPM
        if is_bid:
            return worth_micros + fee
        return (self.bond_accrued + terms.bond_permille * worth_micros + 999) // 1000 + fee

    def charge_fee(self, fee_ppm: int, notional_micros: int) -> int:
        """Accrue the fee of a trade and return the whole millionths that fall due; a fraction is kept."""
        accrued = self.fee_accrued + fee_ppm * notional_micros
        due = accrued // PPM
        self.fee_accrued = accrued - due * PPM
        return due

    def charge_bond(self, bond_permille: int, notional_micros: int) -> int:
        """Accrue the bond of a sale and return the whole millionths that fall due; a fraction is kept."""
        accrued = self.bond_accrued + bond_permille * notional_micros
        due = accrued // 1000
        self.bond_accrued = accrued - due * 1000
        return due


class Account:
    """A participant: money by purse, orders by its client's ids, and what it did in this hour."""

    __slots__ = (
        "account",
        "bank",
        "bond",
        "cash",
        "client_orders",
        "committed",
        "fees",
        "group",
        "groups",
        "is_suspended",
        "offers",
        "open_orders",
        "orders_in_hour",
        "rate_hour",
        "reserved",
        "trades_in_hour",
    )

    def __init__(self, account: int, group: int) -> None:
        self.account = account
        self.group = group
        self.cash = 0
        self.reserved = 0
        self.committed = 0
        self.bond = 0
        self.bank = 0
        self.fees = 0
        self.is_suspended = False
        self.client_orders: dict[str, Order] = {}
        self.open_orders = 0
        self.groups: dict[str, Group] = {}
        self.offers: dict[str, Listing] = {}
        self.rate_hour = 0
        self.orders_in_hour = 0
        self.trades_in_hour = 0


class Order(Pledge):
    """An accepted order.

    A bid's `served_by` is the table of the supply cells that may serve it.
    `leaves_lots` is what is open: lot-hours of a run, whose `run_lots` are by hour from its first. Of
    them `shown_lots` stand in the queue. `priority` is the time in the queue. `worth_micros` is the most
    that trades still to come may be worth. `special` is the command where it said more than a plain order
    does: most orders are plain, and small.
    """

    __slots__ = (
        "account",
        "book",
        "cell",
        "client_order_id",
        "entered_lots",
        "entered_price",
        "exclusive",
        "filled_lots",
        "hour",
        "hours",
        "is_bid",
        "leaves_lots",
        "level",
        "listing",
        "lots",
        "newer",
        "older",
        "order_id",
        "passes_own",
        "position",
        "price",
        "priority",
        "run_lots",
        "served_by",
        "shown_lots",
        "side",
        "site",
        "site_hour",
        "special",
        "tick_lot_micros",
        "valid_until_ns",
        "worth_micros",
    )

    def __init__(
        self, order_id: int, account: Account, command: EnterOrder, book: "Book", tick_lot_micros: int
    ) -> None:
        super().__init__()
        # What a cancel and a neighbour need stands together at the front: the order is long not at hand.
        self.older: Order | None = None
        self.newer: Order | None = None
        self.level: Level | None = None
        self.account = account
        self.order_id = order_id
        self.leaves_lots = command.lots
        self.shown_lots = command.lots
        self.is_bid = command.is_bid
        self.passes_own = False
        self.hours = command.hours
        self.side: CellSide | None = None
        self.worth_micros = 0
        self.exclusive: Group | None = None
        self.listing: Listing | None = None
        self.site_hour: SiteHour | None = None
        self.position: Fill | None = None
        self.valid_until_ns = command.valid_until_ns
        self.client_order_id = command.client_order_id
        self.price = command.price_ticks
        self.special: EnterOrder | None = command if is_special(command) else None
        self.priority = 0
        self.filled_lots = 0
        self.tick_lot_micros = tick_lot_micros
        self.book = book
        self.cell = 0
        self.site: Site | None = None
        self.hour = command.delivery_hour
        self.lots = command.lots
        self.entered_lots = command.lots
        self.entered_price = command.price_ticks
        self.served_by = b""
        self.run_lots: list[int] | None = None

    @property
    def is_market(self) -> bool:
        """Whether it was entered without a price."""
        return self.special is not None and self.special.is_market

    @property
    def time_in_force(self) -> int:
        """How long it stays open, as in `exchange.slots`."""
        return GTC if self.special is None else self.special.time_in_force

    @property
    def expire_ns(self) -> int:
        """When it ends, 0 if at no time of its own."""
        return 0 if self.special is None else self.special.expire_ns

    @property
    def min_lots(self) -> int:
        """The least it takes when it is entered."""
        return 0 if self.special is None else self.special.min_lots

    @property
    def display_lots(self) -> int:
        """The most it shows, 0 for all."""
        return 0 if self.special is None else self.special.display_lots

    @property
    def post_only(self) -> bool:
        """Whether it never takes."""
        return self.special is not None and self.special.post_only

    @property
    def self_trade(self) -> int:
        """What gives way when it meets its own group, as in `exchange.slots`."""
        return CANCEL_TAKER if self.special is None else self.special.self_trade

    @property
    def min_hours(self) -> int:
        """The shortest stretch that a run sells."""
        return 0 if self.special is None else self.special.min_hours

    @property
    def is_block(self) -> bool:
        """Whether it is a bid for more than one hour."""
        return self.is_bid and self.hours > 1

    @property
    def is_run(self) -> bool:
        """Whether it is an ask for more than one hour."""
        return not self.is_bid and self.hours > 1

    @property
    def pledge(self) -> Pledge:
        """What holds its reserve: its group, or itself."""
        return self if self.exclusive is None else self.exclusive

    def required_micros(self, terms: Terms) -> int:
        """Return what its pledge must hold now."""
        group = self.exclusive
        if group is None:
            return self.required(self.worth_micros, self.is_bid, terms)
        worth = 0
        for member in group.members.values():
            worth = max(worth, member.worth_micros)
        return group.required(worth, self.is_bid, terms)

    def is_entered_by(self, command: EnterOrder) -> bool:
        """Say whether this very command entered it; requirement, or site and grade, are not compared."""
        group, position = self.exclusive, self.position
        return (
            self.is_bid == command.is_bid
            and self.entered_lots == command.lots
            and self.entered_price == command.price_ticks
            and self.hour == command.delivery_hour
            and self.hours == command.hours
            and self.valid_until_ns == command.valid_until_ns
            and self.book.class_code == command.class_code
            and self.is_market == command.is_market
            and self.time_in_force == command.time_in_force
            and self.expire_ns == command.expire_ns
            and self.min_lots == command.min_lots
            and self.display_lots == command.display_lots
            and self.post_only == command.post_only
            and self.self_trade == command.self_trade
            and self.min_hours == command.min_hours
            and (None if group is None else group.name) == command.exclusive_group
            and (0 if position is None else position.trade.trade_id) == command.position
        )


def is_special(command: EnterOrder) -> bool:
    """Say whether the command has any of the terms that are read from it later."""
    return (
        command.time_in_force != GTC
        or command.is_market
        or command.expire_ns != 0
        or command.min_lots != 0
        or command.display_lots != 0
        or command.post_only
        or command.self_trade != CANCEL_TAKER
        or command.min_hours != 0
    )


class Group(Pledge):
    """Alternatives of one account: one open quantity, one reserve."""

    __slots__ = ("has_traded", "is_bid", "lots", "members", "name", "several_hours")

    def __init__(self, name: str, order: Order) -> None:
        super().__init__()
        self.name = name
        self.is_bid = order.is_bid
        self.lots = order.lots
        self.several_hours = order.hours > 1
        self.has_traded = False
        self.members: dict[int, Order] = {}


@mypyc_attr(acyclic=True)
class Fill:
    """What of a trade is still of use: to settlement, and to its buyer as a position."""

    __slots__ = (
        "carbon",
        "last_run",
        "paid",
        "penalty",
        "refunded",
        "released",
        "resale_lots",
        "trade",
    )

    def __init__(self, trade: Traded, carbon: int) -> None:
        self.trade = trade
        # The rank of the grade with which it was sold.
        self.carbon = carbon
        # Resold, or openly offered for resale.
        self.resale_lots = 0
        # What all runs so far posted.
        self.paid = 0
        self.refunded = 0
        self.penalty = 0
        self.released = 0
        self.last_run = 0
