"""What the gateway knows: made from durable records alone, and made again from them after a restart."""

from collections.abc import Callable

from exchange.contract import HOUR_NS
from exchange.depth import Changes, Depth
from exchange.funds import Purse, transfers
from exchange.quantity import gpus_of, money_of, price_of
from schemas.commands import CertifySite, EnterOrder, OpenEra, RegisterKey, Scope, Side
from schemas.events import (
    AnyEvent,
    BlockTraded,
    KeyRegistered,
    OrderAccepted,
    OrderEnded,
    SiteCertified,
    Traded,
)
from schemas.records import Decoded
from schemas.venue import Venue
from schemas.wire import Fill, Funds, OrderResult


def _unheard(_account: int, _what: object) -> None:
    """Nobody listens."""


class OrderState:
    """An order's life so far."""

    __slots__ = ("command", "end_reason", "filled_lots", "fills", "leaves_lots", "order_id")

    def __init__(self, order_id: int, command: EnterOrder) -> None:
        self.order_id = order_id
        self.command = command
        self.leaves_lots = command.lots
        self.filled_lots = 0
        self.end_reason: str | None = None
        self.fills: list[Fill] = []


class AccountState:
    """An account's money, orders by either id, those of them that are open, and fills by trade id."""

    def __init__(self) -> None:
        self.purses = [0] * (max(Purse) + 1)
        self.orders: dict[int, OrderState] = {}
        self.by_client_id: dict[str, OrderState] = {}
        self.open_orders: dict[int, OrderState] = {}
        self.fills: list[Fill] = []


class State:
    """The gateway's projection; `on_fill` hears of each fill, `on_order` of an order's start and end."""

    def __init__(self) -> None:
        self.sequence = 0
        self.time_ns = 0
        self.era: OpenEra | None = None
        self.depth = Depth()
        self.keys: dict[bytes, tuple[int, tuple[Scope, ...]]] = {}
        self.accounts: dict[int, AccountState] = {}
        self.sites: dict[int, CertifySite] = {}
        self.counts: dict[str, int] = {}
        self.on_fill: Callable[[int, Fill], None] = _unheard
        self.on_order: Callable[[int, OrderState], None] = _unheard
        self._orders: dict[int, OrderState] = {}

    @property
    def venue(self) -> Venue:
        """The catalogue of the running era."""
        assert self.era is not None, "no era is open"
        return self.era.venue

    def account(self, number: int) -> AccountState:
        """Return the account's state; empty for one that nothing happened to."""
        found = self.accounts.get(number)
        if found is None:
            found = self.accounts[number] = AccountState()
        return found

    def apply(self, record: Decoded) -> Changes:
        """Take in the next record and return the depth that changed."""
        assert record.sequence == self.sequence + 1, (record.sequence, self.sequence)
        self.sequence, self.time_ns = record.sequence, record.time_ns
        command = record.command
        if isinstance(command, OpenEra):
            self.era = command
            self.lot_eighths = {c.code: c.lot_eighths for c in command.venue.classes}
            self.tick_micros = command.venue.currency.tick_micros
        submitter = command.account if isinstance(command, EnterOrder) else 0
        for event in record.events:
            self._count(event)
            for debit, debit_purse, credit, credit_purse, amount in transfers(submitter, event):
                self.account(debit).purses[debit_purse] -= amount
                self.account(credit).purses[credit_purse] += amount
            match event:
                case OrderAccepted():
                    assert isinstance(command, EnterOrder)
                    self._accepted(OrderState(event.order_id, command))
                case Traded():
                    self._traded(event, record.time_ns)
                case BlockTraded():
                    for leg in event.legs:
                        self._traded(leg, record.time_ns)
                    self._filled(self._orders[event.order_id])
                case OrderEnded():
                    self._ended(event)
                case KeyRegistered():
                    assert isinstance(command, RegisterKey)
                    self.keys[command.key] = (command.account, command.scopes)
                case SiteCertified():
                    assert isinstance(command, CertifySite)
                    self.sites[command.site] = command
        return self.depth.apply(record)

    def _count(self, event: AnyEvent) -> None:
        name = type(event).__name__
        self.counts[name] = self.counts.get(name, 0) + 1

    def _accepted(self, order: OrderState) -> None:
        account = self.account(order.command.account)
        account.orders[order.order_id] = account.by_client_id[order.command.client_order_id] = order
        self._orders[order.order_id] = account.open_orders[order.order_id] = order
        self.on_order(order.command.account, order)

    def _traded(self, trade: Traded, time_ns: int) -> None:
        for order_id, fee in (
            (trade.bid_order_id, trade.buyer_fee_micros),
            (trade.ask_order_id, trade.seller_fee_micros),
        ):
            order = self._orders[order_id]
            command = order.command
            fill = Fill(
                trade_id=trade.trade_id,
                order_id=order_id,
                client_order_id=command.client_order_id,
                side=command.side,
                class_code=trade.class_code,
                delivery_start=trade.delivery_hour * HOUR_NS,
                gpus=gpus_of(trade.lots, self.lot_eighths[trade.class_code]),
                price=price_of(trade.price_ticks, self.tick_micros),
                fee=money_of(fee),
                site=trade.site,
                block=trade.block,
                time=time_ns,
            )
            order.fills.append(fill)
            self.account(command.account).fills.append(fill)
            self.on_fill(command.account, fill)
            if command.side is Side.SELL or not trade.block:
                order.leaves_lots -= trade.lots
                order.filled_lots += trade.lots
                if order.leaves_lots == 0:
                    self._filled(order)

    def _filled(self, order: OrderState) -> None:
        order.leaves_lots, order.filled_lots = 0, order.command.lots
        del self._orders[order.order_id]
        del self.account(order.command.account).open_orders[order.order_id]
        self.on_order(order.command.account, order)

    def _ended(self, event: OrderEnded) -> None:
        order = self._orders.pop(event.order_id)
        del self.account(event.account).open_orders[event.order_id]
        order.leaves_lots = 0
        order.end_reason = event.reason
        self.on_order(event.account, order)

    def order_result(self, order: OrderState) -> OrderResult:
        """Return the order as its owner sees it."""
        command = order.command
        lot = self.lot_eighths[command.class_code]
        ended = order.end_reason is not None
        return OrderResult(
            order_id=order.order_id,
            client_order_id=command.client_order_id,
            status="canceled" if ended else "filled" if order.leaves_lots == 0 else "open",
            filled_gpus=gpus_of(order.filled_lots, lot),
            leaves_gpus=gpus_of(order.leaves_lots, lot),
            end_reason=order.end_reason,
            fills=tuple(order.fills),
        )

    def funds(self, number: int) -> Funds:
        """Return where the account's money is."""
        purses = self.account(number).purses
        return Funds(
            number,
            money_of(purses[Purse.CASH]),
            money_of(purses[Purse.RESERVED]),
            money_of(purses[Purse.COMMITTED]),
            money_of(purses[Purse.BOND]),
        )
