"""Surplus: what was traded, the most that could have been, and what separate books would have given."""

from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from exchange.eligibility import Eligibility
from exchange.engine import EMPTY_STATE, ENGINE_DIGEST
from gateway.simulation.replay import Replay
from gateway.simulation.report import day_report
from gateway.simulation.scenario import Act
from gateway.simulation.surplus import (
    private_values,
    separate_books,
    surplus_report,
    traded_surplus,
    upper_bound,
)
from schemas import RULES_VERSION
from schemas.codec import CODEC_DIGEST
from schemas.commands import (
    AnyCommand,
    Authority,
    CancelOrder,
    CancelStandingOffer,
    CertifySite,
    Deposit,
    DerateSite,
    EnterOrder,
    EnterStandingOffer,
    HaltContract,
    MassCancel,
    OpenEra,
    OrderType,
    RegisterAccount,
    ReplaceOrder,
    ReplaceStandingOffer,
    Requirement,
    ResumeContract,
    Side,
    Tick,
    TimeInForce,
)
from schemas.events import BlockTraded, CallCleared, OrderAccepted, Rejected, Traded, trades_of
from schemas.records import Decoded
from schemas.venue import Venue
from tests.small_venue import SMALL_VENUE

HOUR = 494_000
H100, T4 = "H100-SXM", "T4"
BUYER, PROVIDER, OTHER_PROVIDER = 1, 2, 3
H100_TICK_MICROS = 10_000
"""Micros of a tick on a lot of one GPU for an hour."""
OPERATOR = Authority(bytes(32), 0, "test")
ANY = Requirement("east", "L4", "E", "S1")


class Market:
    """The engine, played by hand; keeps the records and the private values."""

    def __init__(self, venue: Venue = SMALL_VENUE) -> None:
        self.replay = Replay()
        self.records: list[Decoded] = []
        self.values: dict[tuple[int, str], int] = {}
        self.time_ns = (HOUR - 10) * 3_600_000_000_000
        self.orders = 0
        self.do(
            OpenEra(
                origin="test",
                rules_version=RULES_VERSION,
                venue=venue,
                venue_key=OPERATOR.key,
                operator_keys=(OPERATOR.key,),
                engine_digest=ENGINE_DIGEST,
                codec_digest=CODEC_DIGEST,
                state_before=EMPTY_STATE,
                state_after=EMPTY_STATE,
            )
        )
        for account in (BUYER, PROVIDER, OTHER_PROVIDER):
            self.do(RegisterAccount(account, account, authority=OPERATOR))
            self.do(Deposit(account, 10**15, authority=OPERATOR))

    def do(self, command: AnyCommand) -> Decoded:
        """Do it, with what the core does before and behind it, and return its own record."""
        self.time_ns += 1_000_000
        own: Decoded | None = None
        for applied in self.replay.do(self.time_ns, command):
            made = Decoded(len(self.records) + 1, *applied)
            self.records.append(made)
            own = made if applied.command is command else own
        assert own is not None
        return own

    def site(
        self,
        number: int,
        zone: str,
        lots: int,
        *,
        class_code: str = H100,
        account: int = PROVIDER,
        carbon: str = "A",
        security: str = "S4",
    ) -> None:
        self.do(
            CertifySite(
                number,
                account,
                zone,
                class_code,
                lots,
                carbon,
                security,
                HOUR,
                HOUR + 100,
                authority=OPERATOR,
            )
        )

    def _enter(self, command: EnterOrder, value: int) -> Decoded:
        self.orders += 1
        command = replace(command, client_order_id=f"o{self.orders}", valid_until_ns=self.time_ns + 10**9)
        self.values[command.account, command.client_order_id] = value
        return self.do(command)

    def sell(
        self,
        site: int,
        lots: int,
        price: int,
        *,
        cost: int | None = None,
        hour: int = HOUR,
        carbon: str = "A",
        class_code: str = H100,
        account: int = PROVIDER,
        **terms: object,
    ) -> Decoded:
        ask = EnterOrder(
            account=account,
            client_order_id="-",
            valid_until_ns=0,
            side=Side.SELL,
            class_code=class_code,
            delivery_hour=hour,
            lots=lots,
            price_ticks=price,
            site=site,
            carbon=carbon,
        )
        return self._enter(replace(ask, **terms), price if cost is None else cost)

    def buy(
        self,
        lots: int,
        price: int,
        *,
        value: int | None = None,
        hour: int = HOUR,
        hours: int = 1,
        need: Requirement = ANY,
        class_code: str = H100,
        account: int = BUYER,
        **terms: object,
    ) -> Decoded:
        bid = EnterOrder(
            account=account,
            client_order_id="-",
            valid_until_ns=0,
            side=Side.BUY,
            class_code=class_code,
            delivery_hour=hour,
            hours=hours,
            lots=lots,
            price_ticks=price,
            requirement=need,
        )
        return self._enter(replace(bid, **terms), price if value is None else value)

    def amend_last(self, account: int, lots: int, price: int) -> Decoded:
        return self.do(
            ReplaceOrder(
                account=account,
                client_order_id=f"o{self.orders}",
                valid_until_ns=self.time_ns + 10**9,
                lots=lots,
                price_ticks=price,
            )
        )

    def stand(self, site: int, lots: int, price: int, **terms: object) -> Decoded:
        offer = EnterStandingOffer(
            account=PROVIDER,
            name="nightly",
            valid_until_ns=self.time_ns + 10**9,
            side=Side.SELL,
            class_code=H100,
            from_hour=HOUR,
            until_hour=HOUR + 3,
            lots=lots,
            price_curve=(price,),
            site=site,
            carbon="A",
        )
        return self.do(replace(offer, **terms))

    def cancel_last(self, account: int) -> None:
        self.do(CancelOrder(account, client_order_id=f"o{self.orders}"))

    @property
    def traded(self) -> int:
        return traded_surplus(self.records, self.values)

    @property
    def bound(self) -> int:
        bound = upper_bound(self.records, self.values)
        assert bound.lp_status == "optimal"
        return bound.micros

    @property
    def separate(self) -> int:
        return traded_surplus(separate_books(self.records), self.values)


def test_surplus_is_value_less_cost_times_what_was_traded_whatever_the_price() -> None:
    market = Market()
    market.site(1, "east", 10)
    market.sell(1, 5, 1000, cost=700)
    market.buy(3, 1200, value=1500)
    assert market.traded == 3 * (1500 - 700) * H100_TICK_MICROS


def test_a_lot_of_an_eighth_counts_for_an_eighth() -> None:
    market = Market()
    market.site(1, "east", 10, class_code=T4)
    market.sell(1, 3, 100, class_code=T4)
    market.buy(3, 180, class_code=T4)
    assert market.traded == 3 * 80 * H100_TICK_MICROS // 8
    assert market.bound == market.traded


def test_the_legs_of_a_block_count_hour_by_hour() -> None:
    market = Market()
    market.site(1, "east", 10)
    market.sell(1, 4, 1000, cost=900)
    market.sell(1, 4, 1100, cost=1000, hour=HOUR + 1)
    traded = market.buy(2, 1300, value=1400, hours=2)
    assert any(isinstance(event, BlockTraded) for event in traded.events)
    assert market.traded == 2 * ((1400 - 900) + (1400 - 1000)) * H100_TICK_MICROS


def test_an_order_without_a_private_value_counts_at_its_limit() -> None:
    market = Market()
    market.site(1, "east", 10)
    market.sell(1, 1, 1000, cost=1)
    market.buy(1, 1200, value=10_000)
    assert traded_surplus(market.records, {}) == 200 * H100_TICK_MICROS


def test_a_replaced_order_without_a_private_value_counts_at_its_limit_of_the_moment() -> None:
    market = Market()
    market.site(1, "east", 10)
    market.sell(1, 5, 1000)
    market.buy(4, 900)
    market.amend_last(BUYER, 3, 1200)
    assert traded_surplus(market.records, {}) == 3 * 200 * H100_TICK_MICROS
    # In the bound a bid has the best it ever had: four lots at 1200.
    assert upper_bound(market.records, {}).micros == 4 * 200 * H100_TICK_MICROS


def test_a_market_order_without_a_private_value_counts_at_the_worst_price_it_got() -> None:
    collared = replace(SMALL_VENUE, limits=replace(SMALL_VENUE.limits, collar_permille=500))
    market = Market(collared)
    market.site(1, "east", 10)
    for price in (1000, 1100):
        market.sell(1, 1, price)
    market.buy(3, 0, order_type=OrderType.MARKET, time_in_force=TimeInForce.IOC)
    assert traded_surplus(market.records, {}) == 100 * H100_TICK_MICROS
    assert upper_bound(market.records, {}).micros >= 100 * H100_TICK_MICROS


def resold() -> Market:
    market = Market()
    market.site(1, "east", 1)
    market.sell(1, 1, 1000, cost=700)
    bought = market.buy(1, 1100, value=1200)
    (trade,) = [event for event in bought.events if isinstance(event, Traded)]
    # He asks for less than it is worth to him, and the last buyer has it for 1150.
    market.sell(1, 1, 1150, cost=1150, account=BUYER, position=trade.trade_id)
    market.buy(1, 1300, value=1900, account=OTHER_PROVIDER)
    return market


def test_what_is_resold_counts_once_from_the_first_seller_to_the_last_buyer() -> None:
    market = resold()
    assert market.traded == (1900 - 700) * H100_TICK_MICROS
    assert market.bound == market.traded


def test_resales_are_left_out_of_separate_books() -> None:
    assert resold().separate == (1200 - 700) * H100_TICK_MICROS


def test_a_run_counts_in_each_of_its_hours() -> None:
    market = Market()
    market.site(1, "east", 10)
    market.sell(1, 2, 1000, hours=3, min_hours=1)
    market.buy(1, 1300, hours=2)
    assert market.traded == market.separate == 2 * 300 * H100_TICK_MICROS
    market.buy(2, 1100, hours=3)
    assert market.bound == (2 * 300 + 3 * 100) * H100_TICK_MICROS
    assert market.traded == market.separate == 2 * 300 * H100_TICK_MICROS


def test_an_order_that_a_standing_offer_listed_counts_like_any_other() -> None:
    market = Market()
    market.site(1, "east", 10)
    market.stand(1, 2, 1000)
    market.buy(2, 1300, hour=HOUR + 1)
    market.buy(1, 1100, hours=3)
    assert market.traded == 2 * 300 * H100_TICK_MICROS
    assert market.separate == market.traded
    assert market.bound == (2 * 300 + 0) * H100_TICK_MICROS


def test_the_bound_looks_ahead_where_the_market_served_who_came_first() -> None:
    market = Market()
    market.site(1, "east", 1)
    market.sell(1, 1, 1000)
    market.buy(1, 1100)
    market.buy(1, 1900)
    assert market.traded == 100 * H100_TICK_MICROS
    assert market.bound == 900 * H100_TICK_MICROS


def test_the_bound_keeps_to_eligibility() -> None:
    market = Market()
    market.site(1, "west", 1)
    market.site(2, "east", 1, account=OTHER_PROVIDER, carbon="C")
    market.sell(1, 1, 1000)
    market.sell(2, 1, 1500, carbon="C", account=OTHER_PROVIDER)
    # The cheap ask is too far for the one bid and the dear one not clean enough for the other.
    market.buy(1, 1400, need=Requirement("east", "L1", "E", "S1"))
    market.buy(1, 1300, need=Requirement("east", "L4", "B", "S1"))
    assert market.bound == market.traded == 300 * H100_TICK_MICROS


def test_a_bid_that_two_grades_may_serve_counts_at_the_cheaper_one() -> None:
    market = Market()
    market.site(1, "east", 5)
    market.site(2, "middle", 1)
    market.sell(1, 5, 500)
    market.sell(2, 1, 1000)
    # Only `middle` may serve these two, which makes it scarce.
    market.buy(2, 2000, need=Requirement("middle", "L1", "E", "S1"))
    market.buy(1, 1500)
    assert market.bound == market.traded == (1000 + 1000) * H100_TICK_MICROS


def test_capacity_offered_again_after_a_cancel_counts_once() -> None:
    market = Market()
    market.site(1, "east", 2)
    market.sell(1, 2, 1000)
    market.cancel_last(PROVIDER)
    market.sell(1, 2, 900)
    market.buy(4, 1500)
    assert market.bound == market.traded == 2 * 600 * H100_TICK_MICROS


def test_an_ask_refused_for_want_of_room_may_still_be_the_better_one() -> None:
    market = Market()
    market.site(1, "east", 2)
    market.sell(1, 2, 1000)
    refused = market.sell(1, 2, 400)
    assert isinstance(refused.events[0], Rejected)
    market.buy(2, 1500)
    assert market.traded == 2 * 500 * H100_TICK_MICROS
    assert market.bound == 2 * 1100 * H100_TICK_MICROS


def test_an_order_refused_for_its_form_is_not_in_the_bound() -> None:
    market = Market()
    market.site(1, "east", 2)
    market.sell(1, 2, 1000)
    refused = market.buy(2, 1500, need=Requirement("atlantis", "L4", "E", "S1"))
    assert isinstance(refused.events[0], Rejected)
    assert market.bound == market.traded == market.separate == 0


def test_a_block_needs_supply_in_each_of_its_hours() -> None:
    market = Market()
    market.site(1, "east", 9)
    market.sell(1, 9, 1000)
    market.sell(1, 9, 1000, hour=HOUR + 2)
    market.buy(3, 2000, hours=3)
    assert market.bound == 0
    market.sell(1, 2, 2600, hour=HOUR + 1)
    # Filled whole or not at all in the market; to two thirds in the bound.
    assert market.traded == 0
    assert market.bound == 2 * (3 * 2000 - 1000 - 1000 - 2600) * H100_TICK_MICROS


def test_the_bound_lets_a_block_take_its_hours_from_several_sites() -> None:
    market = Market()
    market.site(1, "east", 1)
    market.site(2, "middle", 1)
    market.sell(1, 1, 1000)
    market.sell(2, 1, 1000, hour=HOUR + 1)
    market.buy(1, 1500, hours=2)
    assert market.traded == 0
    assert market.bound == 1000 * H100_TICK_MICROS


def test_a_block_and_hourly_bids_compete_in_the_bound() -> None:
    market = Market()
    market.site(1, "east", 1)
    for hour in (HOUR, HOUR + 1):
        market.sell(1, 1, 1000, hour=hour)
    market.buy(1, 1300, hours=2)
    market.buy(1, 1900)
    assert market.traded == 600 * H100_TICK_MICROS
    # The hourly bid gains 900 in the first hour, the block 300 in each: the hourly bid alone is better.
    assert market.bound == 900 * H100_TICK_MICROS


def test_a_market_where_nothing_can_trade_has_no_surplus_and_no_ratio() -> None:
    market = Market()
    market.site(1, "east", 1)
    market.sell(1, 1, 1000)
    market.buy(1, 900)
    report = surplus_report(market.records, market.values)
    assert (report.traded_micros, report.upper_bound_micros, report.separate_books_micros) == (0, 0, 0)
    assert report.surplus_ratio_permille is None
    assert report.surplus_ratio_separate_books_permille is None


def test_records_without_an_era_are_refused() -> None:
    with pytest.raises(ValueError, match="open_era"):
        upper_bound([], {})


def test_a_bid_on_separate_books_meets_only_the_grade_that_was_cheapest_when_it_came() -> None:
    market = Market()
    market.site(1, "east", 5)
    market.site(2, "middle", 5, account=OTHER_PROVIDER)
    market.sell(1, 1, 1000)
    market.sell(2, 4, 1100, account=OTHER_PROVIDER)
    market.buy(3, 1500)
    assert market.traded == (500 + 400 + 400) * H100_TICK_MICROS
    # Sent to `east`, where one lot was; the rest waits there beside what `middle` offers.
    assert market.separate == 500 * H100_TICK_MICROS
    report = surplus_report(market.records, market.values)
    assert report.surplus_ratio_permille == 1000
    assert report.surplus_ratio_separate_books_permille == 500 * 1000 // 1300
    assert report.lp_status == "optimal"
    assert report.lp_gap_ppm == 0


def test_a_block_on_separate_books_goes_where_most_of_its_hours_are_offered() -> None:
    market = Market()
    market.site(1, "east", 5)
    market.site(2, "middle", 5)
    market.sell(1, 5, 500)
    market.sell(2, 5, 1000)
    market.sell(2, 5, 1000, hour=HOUR + 1)
    market.buy(2, 1200, hours=2)
    assert market.separate == market.traded == 2 * 2 * 200 * H100_TICK_MICROS


def test_a_bid_before_any_ask_goes_to_the_grade_that_was_cheapest_so_far() -> None:
    market = Market()
    market.site(1, "east", 5)
    market.site(2, "middle", 5)
    market.sell(1, 1, 900, hour=HOUR + 5)
    market.sell(2, 1, 800, hour=HOUR + 5)
    market.cancel_last(PROVIDER)
    market.buy(1, 1500)
    market.sell(1, 1, 1000)
    assert market.traded == 500 * H100_TICK_MICROS
    assert market.separate == 0
    market.sell(2, 1, 1000)
    assert market.separate == 500 * H100_TICK_MICROS


def test_a_site_that_claims_two_grades_stands_in_two_separate_books() -> None:
    market = Market()
    market.site(1, "east", 5)
    market.sell(1, 1, 1000)
    market.sell(1, 1, 1000, hour=HOUR + 1, carbon="D")
    market.buy(1, 1500)
    market.buy(1, 1500, hour=HOUR + 1)
    classes = {
        r.command.class_code for r in separate_books(market.records) if isinstance(r.command, EnterOrder)
    }
    assert len(classes) == 2
    assert market.separate == market.traded == 1000 * H100_TICK_MICROS


def test_a_cancel_by_the_exchanges_id_finds_the_order_on_separate_books() -> None:
    market = Market()
    market.site(1, "east", 5)
    market.sell(1, 1, 1000)
    market.site(2, "west", 5)
    # On separate books this bid is not entered, so all later ids differ.
    market.buy(1, 1500, need=Requirement("east", "L4", "E", "S4"), class_code=T4)
    market.sell(2, 1, 800)
    number = max(market.replay.engine.orders)
    market.do(CancelOrder(PROVIDER, order_id=number))
    market.buy(1, 900)
    assert market.traded == market.separate == 0


def test_changes_of_orders_and_offers_find_them_on_separate_books() -> None:
    market = Market(replace(SMALL_VENUE, horizon_hours=12))
    # On separate books this bid is not entered, so all later ids differ.
    market.site(1, "east", 9)
    market.buy(1, 1500, need=Requirement("east", "L4", "E", "S4"), class_code=T4)
    entered = market.sell(1, 2, 1000, cost=900)
    (accepted,) = [event for event in entered.events if isinstance(event, OrderAccepted)]
    market.do(
        ReplaceOrder(
            account=PROVIDER,
            order_id=accepted.order_id,
            valid_until_ns=market.time_ns + 10**9,
            lots=1,
            price_ticks=900,
        )
    )
    market.buy(2, 950)
    assert market.traded == market.separate == 50 * H100_TICK_MICROS
    market.stand(1, 3, 800, from_hour=HOUR + 1, until_hour=HOUR + 9)
    market.do(
        ReplaceStandingOffer(
            account=PROVIDER,
            offer_id=1,
            valid_until_ns=market.time_ns + 10**9,
            lots=2,
            price_curve=(700,),
        )
    )
    listed = max(market.replay.engine.orders)
    market.do(CancelOrder(PROVIDER, order_id=listed))
    market.buy(3, 750, hour=HOUR + 1)
    market.buy(3, 750, hour=HOUR + 2)
    assert market.traded == market.separate == (50 + 2 * 50) * H100_TICK_MICROS
    market.stand(1, 1, 600, name="daily", from_hour=HOUR + 1)
    market.do(CancelStandingOffer(PROVIDER, 2))
    market.buy(1, 650, hour=HOUR + 2)
    assert market.traded == market.separate


def test_mass_cancels_deratings_and_halts_reach_every_grade_of_separate_books() -> None:
    market = Market()
    market.site(1, "east", 5)
    market.site(2, "middle", 5)

    def offered() -> None:
        market.sell(1, 5, 1000)
        market.sell(2, 5, 1000)

    def nothing_trades() -> None:
        market.buy(1, 1500)
        market.cancel_last(BUYER)
        assert market.traded == market.separate == 0

    offered()
    market.do(MassCancel(PROVIDER, class_code=H100))
    nothing_trades()
    offered()
    for site in (1, 2):
        market.do(DerateSite(site, HOUR, HOUR + 1, 0, authority=OPERATOR))
    nothing_trades()
    for site in (1, 2):
        market.do(DerateSite(site, HOUR, HOUR + 1, 5, authority=OPERATOR))
    market.do(HaltContract(H100, HOUR, authority=OPERATOR))
    nothing_trades()


def test_separate_books_have_calls_of_their_own() -> None:
    market = Market()
    market.site(1, "east", 5)
    market.site(2, "middle", 5)
    market.do(HaltContract(H100, HOUR, authority=OPERATOR))
    market.do(ResumeContract(H100, HOUR, authority=OPERATOR))
    market.sell(1, 1, 1000)
    market.sell(2, 1, 1100)
    market.buy(2, 1500)
    assert market.traded == 0
    market.time_ns += 100 * 10**9
    market.do(Tick())
    assert any(isinstance(event, CallCleared) for record in market.records for event in record.events)
    assert market.traded == (500 + 400) * H100_TICK_MICROS
    assert market.separate == 500 * H100_TICK_MICROS


def test_a_days_demand_is_the_most_that_each_bid_wanted_and_alternatives_count_once() -> None:
    market = Market()
    market.site(1, "east", 10)
    market.sell(1, 4, 1000, hours=2, min_hours=1)
    market.sell(1, 4, 1000)
    market.buy(2, 900)
    market.amend_last(BUYER, 3, 900)
    market.amend_last(BUYER, 1, 1000)
    for hour in (HOUR, HOUR + 1):
        market.buy(2, 900, hour=hour, exclusive_group="either")
    market.buy(2, 1000, hours=2)
    report = day_report(market.records, surplus_report(market.records, market.values))
    assert (report.orders, report.blocks, report.fills) == (6, 1, 3)
    assert (report.demanded_gpu_hours, report.gpu_hours) == ("9.0", "5.0")


def test_separate_books_of_one_grade_trade_as_the_one_book() -> None:
    market = Market()
    market.site(1, "east", 20)
    for price in (1000, 1100, 1050):
        market.sell(1, 2, price, cost=price - 50)
    market.buy(3, 1090, value=1200)
    market.buy(5, 1500)
    market.do(Tick())
    assert market.separate == market.traded > 0


def test_private_values_are_those_of_the_acts_that_enter_orders() -> None:
    enter = Act(1, 7, "order.enter", {"client_order_id": "a", "side": "buy"}, 1234)
    cancel = Act(2, 7, "order.cancel", {"client_order_id": "a"}, 0)
    assert private_values([enter, cancel]) == {(7, "a"): 1234}


ZONES = ("east", "middle", "west")
needs = st.builds(
    Requirement,
    st.sampled_from(ZONES),
    st.sampled_from(("L1", "L2", "L3", "L4")),
    st.sampled_from(("B", "D", "E")),
    st.sampled_from(("S3", "S1")),
)
sites = st.lists(
    st.tuples(
        st.sampled_from(ZONES), st.integers(1, 6), st.sampled_from("ABC"), st.sampled_from(("S4", "S1"))
    ),
    min_size=1,
    max_size=4,
)
asks = st.tuples(
    st.just("ask"),
    st.integers(0, 3),
    st.integers(1, 4),
    st.integers(1, 12),
    st.integers(0, 3),
    st.integers(0, 2),
)
bids = st.tuples(
    st.just("bid"),
    needs,
    st.integers(1, 4),
    st.integers(1, 15),
    st.integers(0, 3),
    st.integers(0, 2),
    st.integers(1, 3),
)
cancels = st.tuples(st.just("cancel"))
amends = st.tuples(
    st.just("amend"), st.sampled_from((BUYER, PROVIDER)), st.integers(1, 5), st.integers(1, 14)
)
runs = st.tuples(st.just("run"), st.integers(0, 3), st.integers(1, 4), st.integers(1, 12), st.integers(2, 3))
offers = st.tuples(st.just("offer"), st.integers(0, 3), st.integers(1, 3), st.integers(1, 12))
resales = st.tuples(st.just("resale"), st.integers(1, 3), st.integers(1, 15))
either = st.tuples(st.just("either"), needs, st.integers(1, 4), st.integers(1, 15))
derates = st.tuples(st.just("derate"), st.integers(0, 3), st.integers(0, 3))
calls = st.tuples(st.just("call"))
more = amends | runs | offers | resales | either | derates | calls


def signed(market: Market) -> Authority:
    """The same act can be done again: it is signed anew."""
    return Authority(bytes(32), market.time_ns, "test")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sites, st.lists(asks | bids | cancels | more, max_size=25))
def test_no_market_and_no_separate_books_pass_the_bound(
    places: list[tuple[str, int, str, str]], acts: list[tuple[object, ...]]
) -> None:
    market = Market()
    for number, (zone, lots, carbon, security) in enumerate(places, 1):
        market.site(number, zone, lots, carbon=carbon, security=security)
    for act in acts:
        match act:
            case ("ask", int(site), int(lots), int(price), int(margin), int(later)):
                number = site % len(places) + 1
                # One carbon grade in each site-hour, as providers claim it.
                carbon = "CDE"[(number + later) % 3]
                market.sell(
                    number, lots, price, cost=max(0, price - margin), hour=HOUR + later, carbon=carbon
                )
            case ("bid", Requirement() as need, int(lots), int(price), int(shade), int(later), int(hours)):
                market.buy(lots, price, value=price + shade, hour=HOUR + later, hours=hours, need=need)
            case ("amend", int(account), int(lots), int(price)):
                market.amend_last(account, lots, price)
            case ("run", int(site), int(lots), int(price), int(hours)):
                market.sell(site % len(places) + 1, lots, price, carbon="E", hours=hours, min_hours=1)
            case ("offer", int(site), int(lots), int(price)):
                market.stand(site % len(places) + 1, lots, price, name=f"n{len(market.records)}", carbon="E")
            case ("resale", int(lots), int(price)):
                trades = [t for r in market.records for e in r.events for t in trades_of(e)]
                if trades:
                    last = trades[-1]
                    market.sell(
                        last.site,
                        lots,
                        price,
                        account=last.buyer,
                        position=last.trade_id,
                        hour=last.delivery_hour,
                        carbon="E",
                    )
            case ("either", Requirement() as need, int(lots), int(price)):
                name = f"g{len(market.records)}"
                for hour in (HOUR, HOUR + 1):
                    market.buy(
                        lots, price, need=need, hour=hour, account=OTHER_PROVIDER, exclusive_group=name
                    )
            case ("derate", int(site), int(lots)):
                market.do(DerateSite(site % len(places) + 1, HOUR, HOUR + 2, lots, authority=signed(market)))
            case ("call",):
                market.do(HaltContract(H100, HOUR, authority=signed(market)))
                market.do(ResumeContract(H100, HOUR, authority=signed(market)))
                market.time_ns += 60 * 10**9
            case _:
                market.cancel_last(BUYER)
                market.cancel_last(PROVIDER)
    bound = upper_bound(market.records, market.values)
    # A replaced bid may pay more than its private value, so a market may end below nothing.
    assert market.traded <= bound.micros
    assert market.separate <= bound.micros
    assert bound.lp_status == "optimal"
    # Prices of whole ticks carry an optimum of such a small market, or halves and thirds of ticks.
    assert bound.gap_ppm <= 1000


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(ZONES), st.integers(1, 9)), min_size=1, max_size=3),
    st.lists(st.tuples(st.sampled_from(ZONES), st.sampled_from(("L1", "L3")), st.integers(1, 9)), max_size=4),
)
def test_of_single_lots_in_one_hour_the_bound_is_the_best_assignment(
    offers: list[tuple[str, int]], wants: list[tuple[str, str, int]]
) -> None:
    market = Market()
    for number, (zone, price) in enumerate(offers, 1):
        market.site(number, zone, 1)
        market.sell(number, 1, price)
    for zone, latency, price in wants:
        market.buy(1, price, need=Requirement(zone, latency, "E", "S1"))
    eligible = Eligibility(SMALL_VENUE)
    best = 0
    # Every way to give each bid one of the asks or none.
    for choice in product(range(-1, len(offers)), repeat=len(wants)):
        taken = [ask for ask in choice if ask >= 0]
        if len(set(taken)) < len(taken):
            continue
        pairs = [(want, offers[ask]) for want, ask in zip(wants, choice, strict=True) if ask >= 0]
        if all(
            eligible.site_serves(Requirement(zone, latency, "E", "S1"), place, "A", "S4")
            for (zone, latency, _), (place, _) in pairs
        ):
            best = max(best, sum(value - cost for (_, _, value), (_, cost) in pairs))
    assert market.bound == best * H100_TICK_MICROS
