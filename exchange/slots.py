"""Commands and events inside the engine: slot objects of the words' names and fields, made and read fast.

`taken` turns a command of `schemas.commands` into one of these, `told` an event into one of `schemas.events`;
what is not on the way of every order has no form of its own here and passes unchanged.
"""

from typing import Final

from mypy_extensions import mypyc_attr

from schemas import commands, events

GTC: Final = 0
GTD: Final = 1
IOC: Final = 2
FOK: Final = 3
AUCTION: Final = 4
CANCEL_TAKER: Final = 0
CANCEL_MAKER: Final = 1
CANCEL_BOTH: Final = 2

_TIME_IN_FORCE: Final = {code: number for number, code in enumerate(commands.TimeInForce)}
_SELF_TRADE: Final = {code: number for number, code in enumerate(commands.SelfTrade)}
_TIMES_IN_FORCE: Final = list(commands.TimeInForce)


@mypyc_attr(acyclic=True)
class Requirement:
    """What a bid needs. `cell` and `served_by` are what the table `settled_by` made of it."""

    __slots__ = ("carbon", "cell", "latency", "security", "served_by", "settled_by", "zone")

    def __init__(self, zone: str, latency: str, carbon: str, security: str) -> None:
        self.zone = zone
        self.latency = latency
        self.carbon = carbon
        self.security = security
        self.settled_by: object = None
        self.cell = 0
        self.served_by = b""


@mypyc_attr(acyclic=True)
class Command:
    """Base of the commands that have a form inside. `packed` are its canonical bytes, if it came so."""

    __slots__ = ("account", "packed")

    def __init__(self, account: int) -> None:
        self.account = account
        self.packed = b""


@mypyc_attr(acyclic=True)
class EnterOrder(Command):
    """An order as it was entered. `time_in_force` and `self_trade` are the numbers above."""

    __slots__ = (
        "carbon",
        "class_code",
        "client_order_id",
        "delivery_hour",
        "display_lots",
        "exclusive_group",
        "expire_ns",
        "hours",
        "is_bid",
        "is_market",
        "lots",
        "min_hours",
        "min_lots",
        "position",
        "post_only",
        "price_ticks",
        "requirement",
        "self_trade",
        "site",
        "time_in_force",
        "valid_until_ns",
    )

    def __init__(
        self,
        account: int,
        client_order_id: str,
        valid_until_ns: int,
        is_bid: bool,
        class_code: str,
        delivery_hour: int,
        hours: int,
        lots: int,
        price_ticks: int,
        requirement: Requirement | None = None,
        site: int = 0,
        carbon: str | None = None,
        is_market: bool = False,
        time_in_force: int = GTC,
        expire_ns: int = 0,
        min_lots: int = 0,
        display_lots: int = 0,
        post_only: bool = False,
        self_trade: int = CANCEL_TAKER,
        exclusive_group: str | None = None,
        position: int = 0,
        min_hours: int = 0,
    ) -> None:
        super().__init__(account)
        self.client_order_id = client_order_id
        self.valid_until_ns = valid_until_ns
        self.is_bid = is_bid
        self.class_code = class_code
        self.delivery_hour = delivery_hour
        self.hours = hours
        self.lots = lots
        self.price_ticks = price_ticks
        self.requirement = requirement
        self.site = site
        self.carbon = carbon
        self.is_market = is_market
        self.time_in_force = time_in_force
        self.expire_ns = expire_ns
        self.min_lots = min_lots
        self.display_lots = display_lots
        self.post_only = post_only
        self.self_trade = self_trade
        self.exclusive_group = exclusive_group
        self.position = position
        self.min_hours = min_hours

    def told(self) -> commands.EnterOrder:
        """Return the command of the words."""
        need = self.requirement
        return commands.EnterOrder(
            account=self.account,
            client_order_id=self.client_order_id,
            valid_until_ns=self.valid_until_ns,
            side=commands.Side.BUY if self.is_bid else commands.Side.SELL,
            class_code=self.class_code,
            delivery_hour=self.delivery_hour,
            hours=self.hours,
            lots=self.lots,
            price_ticks=self.price_ticks,
            order_type=commands.OrderType.MARKET if self.is_market else commands.OrderType.LIMIT,
            time_in_force=_TIMES_IN_FORCE[self.time_in_force],
            expire_ns=self.expire_ns,
            min_lots=self.min_lots,
            display_lots=self.display_lots,
            post_only=self.post_only,
            self_trade=list(commands.SelfTrade)[self.self_trade],
            exclusive_group=self.exclusive_group,
            requirement=None
            if need is None
            else commands.Requirement(need.zone, need.latency, need.carbon, need.security),
            site=self.site,
            position=self.position,
            carbon=self.carbon,
            min_hours=self.min_hours,
        )


@mypyc_attr(acyclic=True)
class ReplaceOrder(Command):
    """A change of an open order's total and price."""

    __slots__ = ("client_order_id", "lots", "order_id", "price_ticks", "valid_until_ns")

    def __init__(
        self,
        account: int,
        order_id: int,
        client_order_id: str | None,
        valid_until_ns: int,
        lots: int,
        price_ticks: int,
    ) -> None:
        super().__init__(account)
        self.order_id = order_id
        self.client_order_id = client_order_id
        self.valid_until_ns = valid_until_ns
        self.lots = lots
        self.price_ticks = price_ticks


@mypyc_attr(acyclic=True)
class CancelOrder(Command):
    """The end of an open order."""

    __slots__ = ("client_order_id", "order_id")

    def __init__(self, account: int, order_id: int, client_order_id: str | None) -> None:
        super().__init__(account)
        self.order_id = order_id
        self.client_order_id = client_order_id


@mypyc_attr(acyclic=True)
class Event:
    """Base of the events that have a form inside."""

    def told(self) -> events.AnyEvent:
        """Return the event of the words."""
        raise AssertionError(self)


@mypyc_attr(acyclic=True, free_list_len=1)
class OrderAccepted(Event):
    """The order is in force."""

    __slots__ = ("order_id", "reserved_micros")

    def __init__(self, order_id: int, reserved_micros: int) -> None:
        self.order_id = order_id
        self.reserved_micros = reserved_micros

    def told(self) -> events.AnyEvent:
        """Return the event of the words."""
        return events.OrderAccepted(self.order_id, self.reserved_micros)


@mypyc_attr(acyclic=True, free_list_len=1)
class OrderReplaced(Event):
    """The order has another total and price."""

    __slots__ = ("account", "leaves_lots", "lots", "order_id", "price_ticks", "reserved_micros")

    def __init__(
        self,
        order_id: int,
        account: int,
        lots: int,
        price_ticks: int,
        leaves_lots: int,
        reserved_micros: int,
    ) -> None:
        self.order_id = order_id
        self.account = account
        self.lots = lots
        self.price_ticks = price_ticks
        self.leaves_lots = leaves_lots
        self.reserved_micros = reserved_micros

    def told(self) -> events.AnyEvent:
        """Return the event of the words."""
        return events.OrderReplaced(
            self.order_id,
            self.account,
            self.lots,
            self.price_ticks,
            self.leaves_lots,
            self.reserved_micros,
        )


@mypyc_attr(acyclic=True)
class OrderReduced(Event):
    """A part of the order is no longer open."""

    __slots__ = ("account", "leaves_lots", "lots", "order_id", "reason", "released_micros", "run_lots")

    def __init__(
        self,
        order_id: int,
        account: int,
        lots: int,
        leaves_lots: int,
        released_micros: int,
        reason: events.EndReason,
        run_lots: list[int] | None,
    ) -> None:
        self.order_id = order_id
        self.account = account
        self.lots = lots
        self.leaves_lots = leaves_lots
        self.released_micros = released_micros
        self.reason = reason
        self.run_lots = run_lots

    def told(self) -> events.AnyEvent:
        """Return the event of the words."""
        return events.OrderReduced(
            self.order_id,
            self.account,
            self.lots,
            self.leaves_lots,
            self.released_micros,
            self.reason,
            tuple(self.run_lots or ()),
        )


@mypyc_attr(acyclic=True, free_list_len=1)
class OrderEnded(Event):
    """What was open of the order is no more."""

    __slots__ = ("account", "leaves_lots", "order_id", "reason", "released_micros")

    def __init__(
        self, order_id: int, account: int, leaves_lots: int, released_micros: int, reason: events.EndReason
    ) -> None:
        self.order_id = order_id
        self.account = account
        self.leaves_lots = leaves_lots
        self.released_micros = released_micros
        self.reason = reason

    def told(self) -> events.AnyEvent:
        """Return the event of the words."""
        return events.OrderEnded(
            self.order_id, self.account, self.leaves_lots, self.released_micros, self.reason
        )


@mypyc_attr(acyclic=True)
class Traded(Event):
    """A trade; `taker` is 1 for the bid, -1 for the ask, 0 for neither."""

    __slots__ = (
        "ask_order_id",
        "bid_order_id",
        "block",
        "bond_micros",
        "buyer",
        "buyer_fee_micros",
        "buyer_released_micros",
        "class_code",
        "delivery_hour",
        "lots",
        "notional_micros",
        "position",
        "price_ticks",
        "seller",
        "seller_fee_micros",
        "seller_released_micros",
        "site",
        "taker",
        "trade_id",
    )

    def __init__(
        self,
        trade_id: int,
        class_code: str,
        delivery_hour: int,
        price_ticks: int,
        lots: int,
        taker: int,
        bid_order_id: int,
        ask_order_id: int,
        buyer: int,
        seller: int,
        site: int,
        block: int,
        position: int,
        notional_micros: int,
        buyer_fee_micros: int,
        buyer_released_micros: int,
        bond_micros: int,
        seller_fee_micros: int,
        seller_released_micros: int,
    ) -> None:
        self.trade_id = trade_id
        self.class_code = class_code
        self.delivery_hour = delivery_hour
        self.price_ticks = price_ticks
        self.lots = lots
        self.taker = taker
        self.bid_order_id = bid_order_id
        self.ask_order_id = ask_order_id
        self.buyer = buyer
        self.seller = seller
        self.site = site
        self.block = block
        self.position = position
        self.notional_micros = notional_micros
        self.buyer_fee_micros = buyer_fee_micros
        self.buyer_released_micros = buyer_released_micros
        self.bond_micros = bond_micros
        self.seller_fee_micros = seller_fee_micros
        self.seller_released_micros = seller_released_micros

    def told(self) -> events.Traded:
        """Return the event of the words."""
        taker = None
        if self.taker:
            taker = commands.Side.BUY if self.taker > 0 else commands.Side.SELL
        return events.Traded(
            trade_id=self.trade_id,
            class_code=self.class_code,
            delivery_hour=self.delivery_hour,
            price_ticks=self.price_ticks,
            lots=self.lots,
            taker=taker,
            bid_order_id=self.bid_order_id,
            ask_order_id=self.ask_order_id,
            buyer=self.buyer,
            seller=self.seller,
            site=self.site,
            block=self.block,
            position=self.position,
            notional_micros=self.notional_micros,
            buyer_fee_micros=self.buyer_fee_micros,
            buyer_released_micros=self.buyer_released_micros,
            bond_micros=self.bond_micros,
            seller_fee_micros=self.seller_fee_micros,
            seller_released_micros=self.seller_released_micros,
        )


@mypyc_attr(acyclic=True)
class BlockTraded(Event):
    """A block was filled whole from one site."""

    __slots__ = ("legs", "order_id", "site")

    def __init__(self, order_id: int, site: int, legs: list[Traded]) -> None:
        self.order_id = order_id
        self.site = site
        self.legs = legs

    def told(self) -> events.AnyEvent:
        """Return the event of the words."""
        return events.BlockTraded(self.order_id, self.site, tuple([leg.told() for leg in self.legs]))


_requirements: dict[tuple[str, str, str, str], Requirement] = {}
_REQUIREMENTS_MAX: Final = 10_000


def requirement_of(need: commands.Requirement) -> Requirement:
    """Return the one object for equal requirements, so that what is made of it is made once."""
    key = (need.zone, need.latency, need.carbon, need.security)
    found = _requirements.get(key)
    if found is None:
        if len(_requirements) >= _REQUIREMENTS_MAX:
            _requirements.clear()
        found = Requirement(need.zone, need.latency, need.carbon, need.security)
        _requirements[key] = found
    return found


def taken(command: commands.AnyCommand | Command) -> object:
    """Return the command as the engine takes it."""
    if isinstance(command, Command):
        return command
    if isinstance(command, commands.EnterOrder):
        need = command.requirement
        return EnterOrder(
            command.account,
            command.client_order_id,
            command.valid_until_ns,
            command.side is commands.Side.BUY,
            command.class_code,
            command.delivery_hour,
            command.hours,
            command.lots,
            command.price_ticks,
            None if need is None else requirement_of(need),
            command.site,
            command.carbon,
            command.order_type is commands.OrderType.MARKET,
            _TIME_IN_FORCE[command.time_in_force],
            command.expire_ns,
            command.min_lots,
            command.display_lots,
            command.post_only,
            _SELF_TRADE[command.self_trade],
            command.exclusive_group,
            command.position,
            command.min_hours,
        )
    if isinstance(command, commands.CancelOrder):
        return CancelOrder(command.account, command.order_id, command.client_order_id)
    if isinstance(command, commands.ReplaceOrder):
        return ReplaceOrder(
            command.account,
            command.order_id,
            command.client_order_id,
            command.valid_until_ns,
            command.lots,
            command.price_ticks,
        )
    return command


def told(event: object) -> events.AnyEvent:
    """Return the event as the words have it."""
    if isinstance(event, Event):
        return event.told()
    assert isinstance(event, events.Event)
    return event  # type: ignore[return-value]
