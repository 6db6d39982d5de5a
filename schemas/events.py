"""Events: what the engine answered. Past tense, frozen, tagged; fields are only ever added.

The first event of a record answers its command; those that follow are its consequences. An event that
moves money carries the amounts, so that a ledger copies them and never computes a rule again.
"""

from enum import StrEnum

from msgspec import Struct

from schemas.commands import Side
from schemas.reasons import RejectReason


class EndReason(StrEnum):
    """Why an order stopped being open without being filled."""

    REQUESTED = "requested"
    IMMEDIATE = "immediate"
    EXPIRED = "expired"
    GATE = "gate"
    SELF_TRADE = "self_trade"
    EVICTED = "evicted"


class Event(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of all events."""


class EraOpened(Event, frozen=True, tag="era_opened"):
    """The era's catalogue is in force."""


class Rejected(Event, frozen=True, tag="rejected"):
    """The command changed nothing. `field` names what was wrong, `allowed` what would be right."""

    reason: RejectReason
    field: str = ""
    allowed: str = ""


class AccountRegistered(Event, frozen=True, tag="account_registered"):
    """The account is open, with no money in it."""

    account: int


class KeyRegistered(Event, frozen=True, tag="key_registered"):
    """The key has access."""

    account: int


class Deposited(Event, frozen=True, tag="deposited"):
    """Bank to cash."""

    account: int
    amount_micros: int


class Withdrawn(Event, frozen=True, tag="withdrawn"):
    """Cash to bank."""

    account: int
    amount_micros: int


class SiteCertified(Event, frozen=True, tag="site_certified"):
    """The site may be offered from."""

    site: int


class OrderAccepted(Event, frozen=True, tag="order_accepted"):
    """The order is in force with the command's terms; `reserved_micros` went from cash to reserved."""

    order_id: int
    reserved_micros: int


class OrderRepeated(Event, frozen=True, tag="order_repeated"):
    """The same order was entered again under the same id: nothing changed, this is the one in force."""

    order_id: int
    reserved_micros: int
    filled_lots: int
    leaves_lots: int


class Traded(Event, frozen=True, kw_only=True, tag="traded"):
    """One hourly match, or one hour of a block at one ask: a fill for each side.

    Buyer: `notional_micros` reserved to committed, `buyer_fee_micros` reserved to fees,
    `buyer_released_micros` reserved to cash. Seller: `bond_micros` reserved to bond,
    `seller_fee_micros` reserved to fees, `seller_released_micros` reserved to cash.
    `taker` is the side that came second. `block` is the order id of the block it is a leg of, or 0.
    """

    trade_id: int
    class_code: str
    delivery_hour: int
    price_ticks: int
    lots: int
    taker: Side
    bid_order_id: int
    ask_order_id: int
    buyer: int
    seller: int
    site: int
    block: int = 0
    notional_micros: int
    buyer_fee_micros: int = 0
    buyer_released_micros: int = 0
    bond_micros: int = 0
    seller_fee_micros: int = 0
    seller_released_micros: int = 0


class BlockTraded(Event, frozen=True, tag="block_traded"):
    """A block was filled whole from one site: all its legs at once."""

    order_id: int
    site: int
    legs: tuple[Traded, ...]


class OrderEnded(Event, frozen=True, tag="order_ended"):
    """What was open of the order is no more; `released_micros` went from reserved to cash."""

    order_id: int
    account: int
    leaves_lots: int
    released_micros: int
    reason: EndReason


def trades_of(event: Event) -> tuple[Traded, ...]:
    """Return the trades that an event tells of: one, a block's legs, or none."""
    match event:
        case Traded():
            return (event,)
        case BlockTraded():
            return event.legs
        case _:
            return ()


class ContractClosed(Event, frozen=True, tag="contract_closed"):
    """The gate of a contract that held orders has passed."""

    class_code: str
    delivery_hour: int


class ReadingsReceived(Event, frozen=True, tag="readings_received"):
    """The batch of readings is on record."""

    batch: int


class SettlementRunStarted(Event, frozen=True, tag="settlement_run_started"):
    """The run may post."""

    run: int


class SettlementPosted(Event, frozen=True, kw_only=True, tag="settlement_posted"):
    """The fill's money moved, as the command said, between these two accounts."""

    run: int
    trade_id: int
    buyer: int
    seller: int
    payment_micros: int
    refund_micros: int
    penalty_micros: int
    bond_release_micros: int


AnyEvent = (
    EraOpened
    | Rejected
    | AccountRegistered
    | KeyRegistered
    | Deposited
    | Withdrawn
    | SiteCertified
    | OrderAccepted
    | OrderRepeated
    | Traded
    | BlockTraded
    | OrderEnded
    | ContractClosed
    | ReadingsReceived
    | SettlementRunStarted
    | SettlementPosted
)
