"""A bare book, for `make bench-engine`: the least that any engine of ours has to do, so how near we can come.

It takes our commands and answers with our events, keeps clients' ids, reserves money and charges fees and
bonds, by price and time. It knows one contract, no cells, blocks, groups, phases, bands or rules of a venue,
has a level for every price, and never refuses with a reason. Compiled as the engine is, on machine integers.
"""

from typing import Final

from mypy_extensions import i64, mypyc_attr

from exchange import slots
from schemas.events import EndReason

PRICES: Final = 4_096
BOND_PERMILLE: Final = 100
FEE_PPM: Final = 1_000
TICK_LOT_MICROS: Final = 1_000
CASH_MICROS: Final = 4_000_000_000_000_000
MOST_LOTS: Final = 100_000
ACCOUNTS: Final = 200


class Account:
    """A participant's money and its orders by its client's ids."""

    __slots__ = ("bond", "cash", "committed", "known", "number", "open_orders", "reserved")

    def __init__(self, number: i64) -> None:
        self.number: i64 = number
        self.cash: i64 = CASH_MICROS
        self.reserved: i64 = 0
        self.committed: i64 = 0
        self.bond: i64 = 0
        self.open_orders: i64 = 0
        self.known: dict[str, Order] = {}


class Level:
    """The orders of one price."""

    __slots__ = ("newest", "oldest")

    def __init__(self) -> None:
        self.oldest: Order | None = None
        self.newest: Order | None = None


@mypyc_attr(acyclic=True)
class Order:
    """An order, in the queue of its price while it rests."""

    __slots__ = (
        "account",
        "bond_accrued",
        "client_order_id",
        "fee_accrued",
        "is_bid",
        "leaves",
        "level",
        "lots",
        "newer",
        "number",
        "older",
        "price",
        "reserved",
        "site",
        "valid_until",
        "worth",
    )

    def __init__(self, number: i64, account: Account, command: slots.EnterOrder, price: i64) -> None:
        self.older: Order | None = None
        self.newer: Order | None = None
        self.level: Level | None = None
        self.account = account
        self.number: i64 = number
        self.is_bid = command.is_bid
        self.leaves: i64 = command.lots
        self.lots: i64 = command.lots
        self.price: i64 = price
        self.worth: i64 = price * self.leaves * TICK_LOT_MICROS
        self.reserved: i64 = 0
        self.fee_accrued: i64 = 0
        self.bond_accrued: i64 = 0
        self.site: i64 = command.site
        self.valid_until: i64 = command.valid_until_ns
        self.client_order_id = command.client_order_id

    def required(self) -> i64:
        """Return what the trades still to come may take."""
        worth = self.worth
        if worth == 0:
            return 0
        fee = (self.fee_accrued + FEE_PPM * worth + 999_999) // 1_000_000
        if self.is_bid:
            return worth + fee
        return (self.bond_accrued + BOND_PERMILLE * worth + 999) // 1_000 + fee

    def charge_fee(self, notional: i64) -> i64:
        """Return the fee that falls due."""
        accrued = self.fee_accrued + FEE_PPM * notional
        due = accrued // 1_000_000
        self.fee_accrued = accrued - due * 1_000_000
        return due


class Floor:
    """One contract."""

    def __init__(self) -> None:
        self.time: i64 = 0
        self.accounts: list[Account] = [Account(number) for number in range(ACCOUNTS)]
        self.orders: list[Order | None] = [None]
        self.bids: list[Level] = [Level() for _ in range(PRICES)]
        self.asks: list[Level] = [Level() for _ in range(PRICES)]
        self.best_bid: i64 = 0
        self.best_ask: i64 = PRICES - 1
        self.fills: list[slots.Traded] = []
        self.to_forget: list[Order] = []
        self.forgotten: i64 = 0

    def execute(self, time_ns: int, command: object) -> list[object]:
        """Do as the engine does."""
        self.time = time_ns
        self._forget()
        if isinstance(command, slots.EnterOrder):
            return self._enter(command)
        if isinstance(command, slots.CancelOrder):
            order = self._find(command.account, command.order_id)
            return [] if order is None else [self._end(order)]
        assert isinstance(command, slots.ReplaceOrder)
        return self._replace(command)

    def _forget(self) -> None:
        while self.forgotten < len(self.to_forget):
            order = self.to_forget[self.forgotten]
            if order.valid_until >= self.time:
                return
            self.forgotten += 1
            if order.leaves == 0:
                del order.account.known[order.client_order_id]

    def _enter(self, command: slots.EnterOrder) -> list[object]:
        account = self.accounts[i64(command.account)]
        known, client_order_id = account.known, command.client_order_id
        lots: i64 = command.lots
        price: i64 = command.price_ticks
        if command.is_market:
            price = PRICES - 1 if command.is_bid else 0
        if client_order_id in known or not 0 <= price < PRICES or not 0 < lots <= MOST_LOTS:
            return []
        number: i64 = len(self.orders)
        order = Order(number, account, command, price)
        needed = order.required()
        if needed > account.cash:
            return []
        account.cash -= needed
        account.reserved += needed
        account.open_orders += 1
        order.reserved = needed
        self.orders.append(order)
        self.to_forget.append(order)
        known[client_order_id] = order
        events: list[object] = [slots.OrderAccepted(number, needed)]
        self._match(order, events)
        if order.leaves:
            if command.is_market:
                events.append(self._end(order))
            else:
                self._rest(order)
        return events

    def _replace(self, command: slots.ReplaceOrder) -> list[object]:
        order = self._find(command.account, command.order_id)
        if order is None:
            return []
        self._unrest(order)
        lots: i64 = command.lots
        order.price = command.price_ticks
        order.leaves += lots - order.lots
        order.lots = lots
        order.worth = order.leaves * order.price * TICK_LOT_MICROS
        account = order.account
        more = order.required() - order.reserved
        account.cash -= more
        account.reserved += more
        order.reserved += more
        events: list[object] = [
            slots.OrderReplaced(order.number, account.number, lots, order.price, order.leaves, more)
        ]
        self._match(order, events)
        if order.leaves:
            self._rest(order)
        return events

    def _find(self, account: i64, number: i64) -> Order | None:
        order = self.orders[number] if 0 < number < len(self.orders) else None
        return None if order is None or order.account.number != account else order

    def _end(self, order: Order) -> slots.OrderEnded:
        leaves, back, account = order.leaves, order.reserved, order.account
        if order.level is not None:
            self._unrest(order)
        order.leaves = order.worth = order.reserved = 0
        account.reserved -= back
        account.cash += back
        self._close(order)
        return slots.OrderEnded(order.number, account.number, leaves, back, EndReason.REQUESTED)

    def _close(self, order: Order) -> None:
        order.account.open_orders -= 1
        self.orders[order.number] = None

    def _rest(self, order: Order) -> None:
        if order.is_bid:
            level = self.bids[order.price]
            self.best_bid = max(self.best_bid, order.price)
        else:
            level = self.asks[order.price]
            self.best_ask = min(self.best_ask, order.price)
        last = level.newest
        order.older = last
        if last is None:
            level.oldest = order
        else:
            last.newer = order
        level.newest = order
        order.level = level

    def _unrest(self, order: Order) -> None:
        level, older, newer = order.level, order.older, order.newer
        assert level is not None
        if older is None:
            level.oldest = newer
        else:
            older.newer = newer
        if newer is None:
            level.newest = older
        else:
            newer.older = older
        order.older = order.newer = None
        order.level = None

    def _match(self, order: Order, events: list[object]) -> None:
        is_bid, price, group = order.is_bid, order.price, order.account.number
        while order.leaves:
            best = self.best_ask if is_bid else self.best_bid
            if best > price if is_bid else best < price:
                return
            maker = (self.asks if is_bid else self.bids)[best].oldest
            if maker is not None:
                if maker.account.number == group:
                    return
                self._trade(order, maker, events)
            elif is_bid:
                if best == PRICES - 1:
                    return
                self.best_ask += 1
            else:
                if best == 0:
                    return
                self.best_bid -= 1

    def _trade(self, taker: Order, maker: Order, events: list[object]) -> None:
        bid, ask = (taker, maker) if taker.is_bid else (maker, taker)
        lots = min(taker.leaves, maker.leaves)
        price = maker.price
        notional = price * lots * TICK_LOT_MICROS
        taker.leaves -= lots
        maker.leaves -= lots
        if maker.leaves == 0:
            self._unrest(maker)
            self._close(maker)
        if taker.leaves == 0:
            self._close(taker)
        bid.worth -= bid.price * lots * TICK_LOT_MICROS
        ask.worth -= ask.price * lots * TICK_LOT_MICROS
        buyer_fee, seller_fee = bid.charge_fee(notional), ask.charge_fee(notional)
        accrued = ask.bond_accrued + BOND_PERMILLE * notional
        bond = accrued // 1_000
        ask.bond_accrued = accrued - bond * 1_000
        bid_keeps, ask_keeps = bid.required(), ask.required()
        buyer_back = bid.reserved - notional - buyer_fee - bid_keeps
        seller_back = ask.reserved - bond - seller_fee - ask_keeps
        bid.reserved, ask.reserved = bid_keeps, ask_keeps
        buyer, seller = bid.account, ask.account
        buyer.reserved -= notional + buyer_fee + buyer_back
        buyer.committed += notional
        buyer.cash += buyer_back
        seller.reserved -= bond + seller_fee + seller_back
        seller.bond += bond
        seller.cash += seller_back
        trade = slots.Traded(
            len(self.fills) + 1,
            "H100-SXM",
            0,
            price,
            lots,
            1 if taker.is_bid else -1,
            bid.number,
            ask.number,
            buyer.number,
            seller.number,
            ask.site,
            0,
            0,
            notional,
            buyer_fee,
            buyer_back,
            bond,
            seller_fee,
            seller_back,
        )
        self.fills.append(trade)
        events.append(trade)
