"""Which transfers an event means: the one place where an event becomes debits and credits."""

from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from schemas.events import (
    AnyEvent,
    BlockTraded,
    Deposited,
    OrderAccepted,
    OrderEnded,
    OrderListed,
    OrderReduced,
    OrderReplaced,
    SettlementPosted,
    Traded,
    Withdrawn,
)

VENUE = 0
"""The venue's own account: the other side of the bank, and the fees."""


class Purse(IntEnum):
    """Where money of an account is. `BANK` and `FEES` are the venue's."""

    CASH = 1
    RESERVED = 2
    COMMITTED = 3
    BOND = 4
    BANK = 5
    FEES = 6


class Transfer(NamedTuple):
    """`amount_micros` (over 0) leaves the debited purse and enters the credited one."""

    debit_account: int
    debit_purse: Purse
    credit_account: int
    credit_purse: Purse
    amount_micros: int


def transfers(account: int, event: AnyEvent) -> Iterator[Transfer]:
    """Yield the event's transfers, in order; `account` is the command's, for events that leave it out.

    A negative amount (a settlement's correction, a replace that needs less) is the reverse transfer.
    """
    match event:
        case Deposited():
            yield from _move(VENUE, Purse.BANK, event.account, Purse.CASH, event.amount_micros)
        case Withdrawn():
            yield from _move(event.account, Purse.CASH, VENUE, Purse.BANK, event.amount_micros)
        case OrderAccepted():
            yield from _move(account, Purse.CASH, account, Purse.RESERVED, event.reserved_micros)
        case OrderListed():
            account = event.order.account
            yield from _move(account, Purse.CASH, account, Purse.RESERVED, event.reserved_micros)
        case OrderReplaced():
            yield from _move(event.account, Purse.CASH, event.account, Purse.RESERVED, event.reserved_micros)
        case OrderReduced() | OrderEnded():
            yield from _move(event.account, Purse.RESERVED, event.account, Purse.CASH, event.released_micros)
        case Traded():
            yield from _trade(event)
        case BlockTraded():
            for leg in event.legs:
                yield from _trade(leg)
        case SettlementPosted():
            buyer, seller = event.buyer, event.seller
            yield from _move(buyer, Purse.COMMITTED, seller, Purse.CASH, event.payment_micros)
            yield from _move(buyer, Purse.COMMITTED, buyer, Purse.CASH, event.refund_micros)
            yield from _move(seller, Purse.BOND, buyer, Purse.CASH, event.penalty_micros)
            yield from _move(seller, Purse.BOND, seller, Purse.CASH, event.bond_release_micros)
        case _:
            return


def _trade(trade: Traded) -> Iterator[Transfer]:
    buyer, seller = trade.buyer, trade.seller
    yield from _move(buyer, Purse.RESERVED, buyer, Purse.COMMITTED, trade.notional_micros)
    yield from _move(buyer, Purse.RESERVED, VENUE, Purse.FEES, trade.buyer_fee_micros)
    yield from _move(buyer, Purse.RESERVED, buyer, Purse.CASH, trade.buyer_released_micros)
    # First, as it may bring money: under 0 for an ask that a call sells above its limit.
    yield from _move(seller, Purse.RESERVED, seller, Purse.CASH, trade.seller_released_micros)
    yield from _move(seller, Purse.RESERVED, seller, Purse.BOND, trade.bond_micros)
    yield from _move(seller, Purse.RESERVED, VENUE, Purse.FEES, trade.seller_fee_micros)


def _move(
    debit_account: int, debit_purse: Purse, credit_account: int, credit_purse: Purse, amount_micros: int
) -> Iterator[Transfer]:
    if amount_micros > 0:
        yield Transfer(debit_account, debit_purse, credit_account, credit_purse, amount_micros)
    elif amount_micros < 0:
        yield Transfer(credit_account, credit_purse, debit_account, debit_purse, -amount_micros)
