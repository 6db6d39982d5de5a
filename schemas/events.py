"""Events: what the engine answered. Past tense, frozen, tagged; fields are only ever added.

The first event of a record answers its command; those that follow are its consequences. An event that
moves money carries the amounts, so that a ledger copies them and never computes a rule again.
"""

from enum import StrEnum

from msgspec import Struct

from schemas.commands import CellPrice, EnterOrder, Side
from schemas.reasons import RejectReason


class EndReason(StrEnum):
    """Why an order, or a part of it, stopped being open without being filled."""

    REQUESTED = "requested"
    IMMEDIATE = "immediate"
    EXPIRED = "expired"
    GATE = "gate"
    SELF_TRADE = "self_trade"
    EVICTED = "evicted"
    REPLACED = "replaced"
    GROUP = "group"
    CAPACITY = "capacity"
    BAND = "band"
    CALL_ENDED = "call_ended"
    WITHDRAWN = "withdrawn"


class Phase(StrEnum):
    """What a contract takes; `clearing` is a call that has ended and waits for its clearing."""

    PRE_OPEN = "pre_open"
    CALL = "call"
    CLEARING = "clearing"
    CONTINUOUS = "continuous"
    HALTED = "halted"


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


class OrderReplaced(Event, frozen=True, tag="order_replaced"):
    """The order has another total and price; `reserved_micros` (under 0: back) went from cash to reserved.

    Fewer lots at the same price keep their place in the queue, all else goes to its end.
    """

    order_id: int
    account: int
    lots: int
    price_ticks: int
    leaves_lots: int
    reserved_micros: int


class OrderReduced(Event, frozen=True, tag="order_reduced"):
    """`lots` of the order are no longer open; `released_micros` went from reserved to cash.

    A run has `run_lots`: what is open of it now, hour by hour from its first; its `lots` and
    `leaves_lots` are lot-hours.
    """

    order_id: int
    account: int
    lots: int
    leaves_lots: int
    released_micros: int
    reason: EndReason
    run_lots: tuple[int, ...] = ()


class OrdersCanceled(Event, frozen=True, tag="orders_canceled"):
    """Answer to a mass cancel: that many orders end with it."""

    account: int
    orders: int


class OrderListed(Event, frozen=True, tag="order_listed"):
    """A standing offer entered `order`; `reserved_micros` went from cash to reserved."""

    order_id: int
    offer_id: int
    reserved_micros: int
    order: EnterOrder


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
    `seller_fee_micros` reserved to fees, `seller_released_micros` reserved to cash (under 0: from cash, in a
    call that sells above the limit).
    `taker` is the side that came second, a block always, and none in a call. `block` is the order id of
    the block it is a leg of, or 0; `position` the trade whose lots the seller resold, or 0.
    """

    trade_id: int
    class_code: str
    delivery_hour: int
    price_ticks: int
    lots: int
    taker: Side | None
    bid_order_id: int
    ask_order_id: int
    buyer: int
    seller: int
    site: int
    block: int = 0
    position: int = 0
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
    """What was open of the order is no more; `released_micros` went from reserved to cash.

    `leaves_lots` are lot-hours for a run.
    """

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


class PhaseChanged(Event, frozen=True, tag="phase_changed"):
    """The contract entered a phase."""

    class_code: str
    delivery_hour: int
    phase: Phase


class CallCleared(Event, frozen=True, tag="call_cleared"):
    """A call found its clearing: the prices of the supply cells that traded. The trades follow."""

    class_code: str
    delivery_hour: int
    lots: int
    prices: tuple[CellPrice, ...]


class BlockRetried(Event, frozen=True, tag="block_retried"):
    """The block's retry is done."""

    order_id: int


class StandingOfferEntered(Event, frozen=True, tag="standing_offer_entered"):
    """The offer is in force; its hours are listed one batch a command."""

    offer_id: int
    account: int


class StandingOfferReplaced(Event, frozen=True, tag="standing_offer_replaced"):
    """The offer has other terms; what it had listed ends."""

    offer_id: int
    account: int


class StandingOfferEnded(Event, frozen=True, tag="standing_offer_ended"):
    """The offer lists no more: it was withdrawn, or its last hour was listed."""

    offer_id: int
    account: int
    reason: EndReason


class StandingOfferListed(Event, frozen=True, tag="standing_offer_listed"):
    """The offer's hours up to before `until_hour` were listed or skipped."""

    offer_id: int
    until_hour: int


class ListingSkipped(Event, frozen=True, tag="listing_skipped"):
    """An hour of a standing offer could not be listed, and why."""

    offer_id: int
    delivery_hour: int
    reason: RejectReason
    field: str = ""
    allowed: str = ""


class AccountSuspended(Event, frozen=True, tag="account_suspended"):
    """The account may only reduce and cancel."""

    account: int


class AccountReinstated(Event, frozen=True, tag="account_reinstated"):
    """The account may enter orders again."""

    account: int


class ClockCorrected(Event, frozen=True, tag="clock_corrected"):
    """From here on the time is the machine's clock's again, as far as that is later."""


class SiteDerated(Event, frozen=True, tag="site_derated"):
    """The site's capacity changed; in `oversold_hours` more is sold than it now has."""

    site: int
    oversold_hours: tuple[int, ...] = ()


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
    | SiteDerated
    | AccountSuspended
    | AccountReinstated
    | ClockCorrected
    | OrderAccepted
    | OrderListed
    | OrderRepeated
    | OrderReplaced
    | OrderReduced
    | OrdersCanceled
    | Traded
    | BlockTraded
    | BlockRetried
    | OrderEnded
    | PhaseChanged
    | CallCleared
    | ContractClosed
    | StandingOfferEntered
    | StandingOfferReplaced
    | StandingOfferListed
    | ListingSkipped
    | StandingOfferEnded
    | ReadingsReceived
    | SettlementRunStarted
    | SettlementPosted
)
