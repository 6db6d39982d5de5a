"""What operators and settlement do: accounts, keys, money, sites, runs and their postings."""

import hashlib

from exchange.blocks import cut_asks, cut_runs
from exchange.book import Site
from exchange.calls import halt, resume
from exchange.contract import HOUR_NS
from exchange.funds import Purse, transfers
from exchange.market import MAX_LOTS, MAX_MICROS, VENUE, Events, Market, refuse
from exchange.order import Account
from schemas.codec import encode
from schemas.commands import (
    CertifySite,
    CorrectClock,
    Deposit,
    DerateSite,
    HaltContract,
    OperatorCommand,
    PostSettlement,
    ReceiveReadings,
    RegisterAccount,
    RegisterKey,
    ReinstateAccount,
    ResumeContract,
    Scope,
    StartSettlementRun,
    SuspendAccount,
    Withdraw,
)
from schemas.events import (
    AccountRegistered,
    AccountReinstated,
    AccountSuspended,
    AnyEvent,
    ClockCorrected,
    Deposited,
    KeyRegistered,
    ReadingsReceived,
    SettlementPosted,
    SettlementRunStarted,
    SiteCertified,
    SiteDerated,
    Withdrawn,
)
from schemas.reasons import RejectReason

DERATED_AT_ONCE = 744


class Registry:
    """Keys, operators' acts, batches of readings and settlement runs."""

    def __init__(self) -> None:
        self.keys: dict[bytes, tuple[int, tuple[Scope, ...]]] = {}
        self.operator_keys: tuple[bytes, ...] = ()
        self.acts: dict[bytes, bool] = {}
        # Postings that each settlement run may still make.
        self.runs: dict[int, int] = {}
        self.last_batch = 0

    def act(self, market: Market, command: OperatorCommand) -> Events:
        """Do an act that an operator signed and that was not done before."""
        # The signature itself is checked where keys are: at the door and by the verifier.
        if command.authority is None or command.authority.key not in self.operator_keys:
            refuse(RejectReason.UNKNOWN_OPERATOR, "authority", "the key of an operator of this era")
        digest = hashlib.sha256(encode(command)).digest()
        if digest in self.acts:
            refuse(RejectReason.DUPLICATE_COMMAND, "authority", "a signature that was not used before")
        events = self._do(market, command)
        self.acts[digest] = True
        return events

    def _do(self, market: Market, command: OperatorCommand) -> Events:
        match command:
            case RegisterAccount():
                return _register_account(market, command)
            case RegisterKey():
                return self._register_key(market, command)
            case Deposit():
                account = market.account(command.account)
                # What the bank paid in bounds every purse, overdrafts apart: all stay 64-bit numbers.
                paid_in = -market.accounts[VENUE].bank
                _check_amount(command.amount_micros, MAX_MICROS - 1 - paid_in)
                return [booked(market, Deposited(account.account, command.amount_micros))]
            case Withdraw():
                account = market.account(command.account)
                _check_amount(command.amount_micros, MAX_MICROS - 1)
                if account.cash < command.amount_micros:
                    refuse(
                        RejectReason.INSUFFICIENT_FUNDS,
                        "account",
                        f"{command.amount_micros} micros are needed, {account.cash} are free",
                    )
                return [booked(market, Withdrawn(account.account, command.amount_micros))]
            case CertifySite():
                return _certify(market, command)
            case DerateSite():
                return _derate(market, command)
            case SuspendAccount():
                account = market.account(command.account)
                if account.is_suspended:
                    refuse(RejectReason.NOTHING_TO_CHANGE, "account", "an account that is not suspended")
                account.is_suspended = True
                return [AccountSuspended(account.account)]
            case ReinstateAccount():
                account = market.account(command.account)
                if not account.is_suspended:
                    refuse(RejectReason.NOTHING_TO_CHANGE, "account", "an account that is suspended")
                account.is_suspended = False
                return [AccountReinstated(account.account)]
            case CorrectClock():
                # What follows from it is the sequencer's business, which stamps.
                return [ClockCorrected()]
            case HaltContract():
                return halt(market, command.class_code, command.delivery_hour)
            case ResumeContract():
                return resume(market, command.class_code, command.delivery_hour)
            case ReceiveReadings():
                if command.batch <= self.last_batch:
                    refuse(RejectReason.DUPLICATE_RUN, "batch", f"above {self.last_batch}")
                self.last_batch = command.batch
                return [ReadingsReceived(command.batch)]
            case StartSettlementRun():
                if command.run in self.runs or command.run <= 0:
                    refuse(RejectReason.DUPLICATE_RUN, "run", f"a new number above 0; {command.run} is taken")
                self.runs[command.run] = max(0, command.postings)
                return [SettlementRunStarted(command.run)]
            case _:
                raise AssertionError(command)

    def _register_key(self, market: Market, command: RegisterKey) -> Events:
        market.account(command.account)
        if command.key in self.keys:
            refuse(RejectReason.DUPLICATE_KEY, "key", "a key that no account has")
        self.keys[command.key] = (command.account, command.scopes)
        return [KeyRegistered(command.account)]

    def post(self, market: Market, command: PostSettlement) -> Events:
        """Move the money of one fill in one run."""
        left, fill = self.runs.get(command.run), market.fill_of(command.trade_id)
        if left is None:
            refuse(RejectReason.UNKNOWN_RUN, "run", "a run that was started")
        if fill is None:
            refuse(RejectReason.UNKNOWN_FILL, "trade_id", "a trade of this log")
        if fill.last_run >= command.run:
            refuse(RejectReason.DUPLICATE_POSTING, "run", f"above {fill.last_run}, which posted this fill")
        if left == 0:
            refuse(RejectReason.POSTINGS_EXCEED_RUN, "run", "as many postings as the run announced")
        if (fill.trade.delivery_hour + 1) * HOUR_NS > market.time_ns:
            refuse(RejectReason.NOT_YET_DELIVERED, "trade_id", "a fill whose delivery hour has ended")
        paid = fill.paid + command.payment_micros
        refunded = fill.refunded + command.refund_micros
        penalty = fill.penalty + command.penalty_micros
        released = fill.released + command.bond_release_micros
        # A correction may take back what earlier runs posted, and no more than that.
        if min(paid, refunded) < 0 or paid + refunded > fill.trade.notional_micros:
            most = fill.trade.notional_micros - fill.paid - fill.refunded
            refuse(RejectReason.POSTING_EXCEEDS_FILL, "payment_micros", f"with the refund {most}")
        if min(penalty, released) < 0 or penalty + released > fill.trade.bond_micros:
            most = fill.trade.bond_micros - fill.penalty - fill.released
            refuse(RejectReason.POSTING_EXCEEDS_FILL, "penalty_micros", f"with the release {most}")
        self.runs[command.run] = left - 1
        fill.last_run = command.run
        fill.paid, fill.refunded, fill.penalty, fill.released = paid, refunded, penalty, released
        posted = SettlementPosted(
            run=command.run,
            trade_id=command.trade_id,
            buyer=fill.trade.buyer,
            seller=fill.trade.seller,
            payment_micros=command.payment_micros,
            refund_micros=command.refund_micros,
            penalty_micros=command.penalty_micros,
            bond_release_micros=command.bond_release_micros,
        )
        return [booked(market, posted)]


def _register_account(market: Market, command: RegisterAccount) -> Events:
    if command.account in market.accounts or command.account < 0:
        refuse(RejectReason.DUPLICATE_ACCOUNT, "account", "a new number above 0")
    market.add_account(Account(command.account, command.trade_group))
    return [AccountRegistered(command.account)]


def _certify(market: Market, command: CertifySite) -> Events:
    market.account(command.account)
    table = market.eligibility
    if command.site in market.sites or command.site <= 0:
        refuse(RejectReason.DUPLICATE_SITE, "site", "a new number above 0")
    if command.zone not in table.zones:
        refuse(RejectReason.UNKNOWN_ZONE, "zone", "a zone of the venue")
    listed = market.listed_class(command.class_code)
    if command.carbon not in table.carbon:
        refuse(RejectReason.UNKNOWN_GRADE, "carbon", ", ".join(table.carbon))
    if command.security not in table.security:
        refuse(RejectReason.UNKNOWN_GRADE, "security", ", ".join(table.security))
    if not 0 < command.capacity_lots <= MAX_LOTS:
        refuse(RejectReason.QUANTITY_OUT_OF_RANGE, "capacity_lots", f"1 to {MAX_LOTS}")
    if command.until_hour <= command.from_hour:
        refuse(RejectReason.HOURS_OUT_OF_RANGE, "until_hour", f"above from_hour, {command.from_hour}")
    cell = table.supply_cell(command.zone, command.carbon, command.security)
    site = Site(command, listed, table.carbon[command.carbon], cell)
    market.add_site(site)
    listed.sites.append(site)
    listed.sites.sort(key=_by_number)
    return [SiteCertified(command.site)]


def _by_number(site: Site) -> int:
    return site.number


def _derate(market: Market, command: DerateSite) -> Events:
    site = market.sites.get(command.site)
    if site is None:
        refuse(RejectReason.UNKNOWN_SITE, "site", "a certified site")
    if not 0 <= command.capacity_lots <= site.capacity:
        refuse(RejectReason.QUANTITY_OUT_OF_RANGE, "capacity_lots", f"0 to {site.capacity}")
    if not 0 < command.until_hour - command.from_hour <= DERATED_AT_ONCE:
        refuse(RejectReason.HOURS_OUT_OF_RANGE, "until_hour", f"1 to {DERATED_AT_ONCE} after from_hour")
    first = max(command.from_hour, market.closed_hour + 1)
    if first >= command.until_hour:
        refuse(RejectReason.GATE_CLOSED, "until_hour", "after an hour that is still open")
    certificate = site.certificate
    if first < certificate.from_hour or command.until_hour > certificate.until_hour:
        refuse(RejectReason.SITE_NOT_CERTIFIED, "from_hour", "hours that the certificate covers")
    oversold: list[int] = []
    cuts: Events = []
    for hour in range(first, command.until_hour):
        place = market.site_hour(site, hour)
        place.capacity = command.capacity_lots
        if place.sold > place.capacity:
            oversold.append(hour)
        cut_asks(market, site, place, hour, cuts)
        cut_runs(market, site, place, hour, cuts)
    events: Events = [SiteDerated(site.number, tuple(oversold))]
    return events + cuts


def _check_amount(amount_micros: int, most: int) -> None:
    if not 0 < amount_micros <= most:
        refuse(RejectReason.AMOUNT_OUT_OF_RANGE, "amount_micros", f"1 to {most}")


def move(account: Account, purse: Purse, amount_micros: int) -> None:
    """Let a purse of the account hold so much more."""
    match purse:
        case Purse.CASH:
            account.cash += amount_micros
        case Purse.RESERVED:
            account.reserved += amount_micros
        case Purse.COMMITTED:
            account.committed += amount_micros
        case Purse.BOND:
            account.bond += amount_micros
        case Purse.BANK:
            account.bank += amount_micros
        case Purse.FEES:
            account.fees += amount_micros


def booked(market: Market, event: AnyEvent) -> AnyEvent:
    """Move the event's money and return the event."""
    for debit, debit_purse, credit, credit_purse, amount in transfers(VENUE, event):
        move(market.accounts[debit], debit_purse, -amount)
        move(market.accounts[credit], credit_purse, amount)
    return event
