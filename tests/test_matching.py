"""The book's rules, as scenarios; exchange/README.md states each in words."""

import pytest
from msgspec.structs import replace

from exchange.book import Reference
from exchange.engine import restored
from schemas.commands import CancelOrder, ReplaceOrder
from schemas.events import OrderEnded, OrderReplaced, Rejected
from schemas.state import decode_state
from tests.market import BUYER, EAST, FIRST_HOUR, START_NS, VENUES, bid, started
from tests.twin_market import TwinMarket, run


def test_trades_happen_at_the_resting_orders_price() -> None:
    assert run("ask 1 3 @ 100; bid 3 @ 105") == ["3 @ 100 with 1"]
    assert run("bid 3 @ 105; ask 1 3 @ 100") == ["3 @ 105 with 1"]


def test_better_price_first_then_earlier_time_across_cells() -> None:
    assert run("ask 1 2 @ 101; ask 3 2 @ 100; ask 2 2 @ 100; bid 5 @ 101") == [
        "2 @ 100 with 2",
        "2 @ 100 with 3",
        "1 @ 101 with 1",
    ]


def test_a_taker_stops_at_its_price() -> None:
    assert run("ask 1 1 @ 100; ask 1 1 @ 102; bid 2 @ 101") == ["1 @ 100 with 1"]
    assert run("bid 1 @ 100; bid 1 @ 98; ask 1 2 @ 99") == ["1 @ 100 with 1"]


def test_time_counts_behind_the_best_price_too() -> None:
    assert run("ask 1 1 @ 100; ask 1 1 @ 102; ask 1 1 @ 102; bid 2 @ 102") == [
        "1 @ 100 with 1",
        "1 @ 102 with 2",
    ]
    assert run("bid 1 @ 102; bid 1 @ 100; bid 1 @ 100; ask 1 2 @ 100") == ["1 @ 102 with 1", "1 @ 100 with 2"]


def test_a_cancelled_order_leaves_those_beside_it_in_their_places() -> None:
    three = "ask 1 1 @ 100; ask 1 1 @ 100; ask 1 1 @ 100; cancel {}; cancel {}; ask 1 1 @ 100; bid 3 @ 100"
    assert run(three.format(2, 3)) == ["1 @ 100 with 1", "1 @ 100 with 4"]
    assert run(three.format(3, 2)) == ["1 @ 100 with 1", "1 @ 100 with 4"]
    assert run(three.format(2, 1)) == ["1 @ 100 with 3", "1 @ 100 with 4"]
    assert run(three.format(1, 3)) == ["1 @ 100 with 2", "1 @ 100 with 4"]
    assert run("ask 1 1 @ 100; ask 1 1 @ 100; ask 1 1 @ 100; cancel 2; bid 3 @ 100") == [
        "1 @ 100 with 1",
        "1 @ 100 with 3",
    ]


def test_a_price_that_was_left_and_is_named_again_stands_in_its_place() -> None:
    assert run("bid 1 @ 100; bid 1 @ 98; bid 1 @ 96; cancel 2; bid 1 @ 98; ask 1 3 @ 96") == [
        "1 @ 100 with 1",
        "1 @ 98 with 4",
        "1 @ 96 with 3",
    ]
    # So too where a cell has many prices, some of them 512 apart.
    many = "; ".join(f"bid 1 @ {price}" for price in range(1, 21))
    again = (
        f"{many}; bid 1 @ 15; cancel 15; cancel 21; bid 1 @ 15; bid 1 @ 527; bid 1 @ 15; bid 1 @ 527; "
        "bid 1 @ 600; ask 1 3 @ 520"
    )
    assert run(again) == ["1 @ 600 with 26", "1 @ 527 with 23", "1 @ 527 with 25"]
    assert run(again + "; ask 3 9 @ 15")[-3:] == ["1 @ 16 with 16", "1 @ 15 with 22", "1 @ 15 with 24"]


def test_an_ask_meets_only_bids_it_can_serve() -> None:
    assert run("bid 1 @ 105 from east L1 E S1; bid 1 @ 104; ask 3 2 @ 100") == ["1 @ 104 with 2"]
    assert run("ask 3 1 @ 100 carbon B; bid 1 @ 104 from west L1 B S1") == ["1 @ 100 with 1"]
    assert run("ask 3 1 @ 100 carbon C; bid 1 @ 104 from west L1 B S1") == []
    assert run("ask 1 1 @ 100; bid 1 @ 104 from east L1 E S3") == []


def test_what_is_not_filled_rests_and_trades_later() -> None:
    assert run("bid 5 @ 100; ask 1 2 @ 100; ask 1 4 @ 99") == ["3 @ 100 with 1"]


def test_an_immediate_order_does_not_rest() -> None:
    assert run("ask 1 2 @ 100; bid 5 @ 100 ioc") == ["2 @ 100 with 1", "2 ended immediate, 3 left"]


def test_a_taker_that_meets_its_own_group_is_cancelled_there() -> None:
    assert run("ask 1 1 @ 100; ask 2 2 @ 101; bid 3 @ 105 by 1") == ["3 ended self_trade, 3 left"]


def test_a_cancelled_order_is_gone() -> None:
    assert run("ask 1 2 @ 100; cancel 1") == ["1 ended requested, 2 left"]
    assert run("ask 1 2 @ 100; cancel 1; bid 1 @ 100") == []


def test_an_order_is_found_by_its_number_however_many_there_were() -> None:
    engine = started()
    kept = {1, 4095, 8191, 8192, 8193}
    for number in range(1, max(kept) + 1):
        engine.apply(START_NS, bid(number, 1, 100))
        if number not in kept:
            engine.apply(START_NS, CancelOrder(BUYER, number))
    engine.apply(START_NS, CancelOrder(BUYER, 8191))
    engine.check()
    assert [number for number, _ in engine.orders.items()] == [1, 4095, 8192, 8193]
    for gone in (0, 2, 4096, 8190, 8191, 8194, 12_288, 2**61):
        assert isinstance(engine.apply(START_NS, CancelOrder(BUYER, gone))[0], Rejected)
    for number in (1, 4095, 8192, 8193):
        assert isinstance(engine.apply(START_NS, CancelOrder(BUYER, number))[0], OrderEnded)
    assert not list(engine.orders.items())


def test_a_site_cannot_offer_more_than_its_certificate() -> None:
    assert run("ask 1 7 @ 100; ask 1 4 @ 101") == ["rejected CAPACITY_EXCEEDED"]
    assert run("ask 1 7 @ 100; bid 7 @ 100; ask 1 4 @ 101") == ["rejected CAPACITY_EXCEEDED"]
    assert run("ask 1 7 @ 100; cancel 1; ask 1 10 @ 101") == []


def test_an_ask_cannot_claim_a_better_grade_than_certified() -> None:
    assert run("ask 1 1 @ 100 carbon C") == ["rejected GRADE_NOT_CERTIFIED"]


def test_the_gate_ends_what_is_open_and_closes_the_contract() -> None:
    assert run("ask 1 2 @ 100; bid 1 @ 90; gate 0") == [
        "closed at 0",
        "1 ended gate, 2 left",
        "2 ended gate, 1 left",
    ]
    assert run("gate 0; bid 1 @ 90") == ["rejected GATE_CLOSED"]


def test_gates_and_hours_pass_each_at_its_own_time() -> None:
    """A quarter of an hour before each hour is a gate; at the hour one more enters the horizon."""
    assert run("gate -9; bid 1 @ 90 at -9") == ["rejected GATE_CLOSED"]
    assert run("gate -9; until -9; gate -8; bid 1 @ 90 at -8") == ["rejected GATE_CLOSED"]
    assert run("venue short; gate -9; bid 1 @ 90 at 15") == ["rejected BEYOND_HORIZON"]
    assert run("venue short; gate -9; until -9; bid 1 @ 90 at 15") == []


def test_an_hour_that_has_closed_is_kept_nowhere() -> None:
    market = TwinMarket()
    market.play("ask 1 1 @ 100; ask 1 1 @ 100 at 1; gate 0")
    site = market.engine.market.sites[EAST]
    assert list(site.hours) == list(site.listed.books) == [FIRST_HOUR + 1]


def test_a_block_is_filled_whole_from_one_site() -> None:
    assert run("ask 1 2 @ 100; ask 1 2 @ 110 at 1; bid 2 @ 105 hours 2") == [
        "block 3 at site 1: 2 @ 100 with 1, 2 @ 110 with 2"
    ]
    assert run("ask 1 2 @ 100; ask 2 2 @ 110 at 1; bid 2 @ 105 hours 2") == []


def test_a_block_takes_several_asks_of_an_hour_best_first() -> None:
    asks = "ask 1 2 @ 101; ask 1 2 @ 100; ask 1 2 @ 102; ask 1 4 @ 100 at 1; bid {} @ 105 hours 2"
    assert run(asks.format(3)) == ["block 5 at site 1: 2 @ 100 with 2, 1 @ 101 with 1, 3 @ 100 with 4"]
    assert run(asks.format(4)) == ["block 5 at site 1: 2 @ 100 with 2, 2 @ 101 with 1, 4 @ 100 with 4"]


def test_what_was_cancelled_at_a_site_leaves_its_other_asks() -> None:
    three = "ask 1 1 @ 100; ask 1 1 @ 101; ask 1 1 @ 102; ask 1 3 @ 100 at 1; cancel 2; "
    assert run(three + "bid 2 @ 102 hours 2") == [
        "block 5 at site 1: 1 @ 100 with 1, 1 @ 102 with 3, 2 @ 100 with 4"
    ]
    assert run(three + "cancel 1; bid 1 @ 102 hours 2") == [
        "block 5 at site 1: 1 @ 102 with 3, 1 @ 100 with 4"
    ]


def test_a_filled_block_is_told_again_with_nothing_left() -> None:
    assert run("ask 1 6 @ 100 hours 2 stretch 1; bid 6 @ 105 hours 2; repeat 2") == ["2 repeated, 0 left"]


def test_an_immediate_block_does_not_rest() -> None:
    assert run("ask 1 1 @ 100; bid 1 @ 100 hours 2 ioc") == ["2 ended immediate, 1 left"]
    assert run("ask 1 1 @ 100 hours 2 stretch 1; bid 1 @ 100 hours 2 ioc") == [
        "block 2 at site 1: 1 @ 100 with 1, 1 @ 100 with 1"
    ]


def test_the_least_total_is_taken_be_it_by_one_tick_and_on_ties_hourly_asks() -> None:
    sites = "ask 1 1 @ 101; ask 1 1 @ 100 at 1; ask 2 1 @ 100; ask 2 1 @ 100 at 1; bid 1 @ 105 hours 2"
    assert run(sites) == ["block 5 at site 2: 1 @ 100 with 3, 1 @ 100 with 4"]
    hourly = "ask 1 1 @ 100; ask 1 1 @ {} at 1; ask 1 1 @ {} hours 2 stretch 1; bid 1 @ 105 hours 2"
    assert run(hourly.format(100, 100)) == ["block 4 at site 1: 1 @ 100 with 1, 1 @ 100 with 2"]
    assert run(hourly.format(101, 101)) == ["block 4 at site 1: 1 @ 100 with 1, 1 @ 101 with 2"]
    assert run(hourly.format(101, 100)) == ["block 4 at site 1: 1 @ 100 with 3, 1 @ 100 with 3"]
    assert run(hourly.format(100, 105)) == ["block 4 at site 1: 1 @ 100 with 1, 1 @ 100 with 2"]


def test_on_ties_of_a_run_and_hourly_asks_a_block_takes_the_lower_site_whichever_has_the_run() -> None:
    hourly = "ask {0} 1 @ 100; ask {0} 1 @ 100 at 1; "
    run_ask = "ask {} 1 @ {} hours 2 stretch 2; "
    block = "bid 1 @ 100 hours 2"
    assert run(hourly.format(2) + run_ask.format(1, 100) + block) == [
        "block 4 at site 1: 1 @ 100 with 3, 1 @ 100 with 3"
    ]
    assert run(run_ask.format(2, 100) + hourly.format(1) + block) == [
        "block 4 at site 1: 1 @ 100 with 2, 1 @ 100 with 3"
    ]
    # The later site by one tick.
    assert run(hourly.format(1) + run_ask.format(2, 99) + block) == [
        "block 4 at site 2: 1 @ 99 with 3, 1 @ 99 with 3"
    ]


def test_a_block_takes_the_cheaper_site_and_on_ties_the_lower_number() -> None:
    two_sites = "ask 2 1 @ 100; ask 2 1 @ 100 at 1; ask 1 1 @ {0}; ask 1 1 @ {0} at 1; bid 1 @ 105 hours 2"
    assert run(two_sites.format(101)) == ["block 5 at site 2: 1 @ 100 with 1, 1 @ 100 with 2"]
    assert run(two_sites.format(100)) == ["block 5 at site 1: 1 @ 100 with 3, 1 @ 100 with 4"]


def test_a_resting_block_trades_when_the_last_missing_ask_arrives() -> None:
    assert run("bid 2 @ 105 hours 2; ask 1 2 @ 100; ask 1 3 @ 110 at 1") == [
        "block 1 at site 1: 2 @ 100 with 2, 2 @ 110 with 3"
    ]


def test_a_resting_block_trades_when_an_ask_comes_down_to_its_limit() -> None:
    waits = "bid 2 @ 100 hours 2; ask 1 1 @ 100; ask 1 1 @ 102; ask 1 2 @ 100 at 1; "
    assert run(waits + "replace 3 to 1 @ 99") == [
        "3 replaced: 1 @ 99, 1 left",
        "block 1 at site 1: 1 @ 99 with 3, 1 @ 100 with 2, 2 @ 100 with 4",
    ]


def test_an_arriving_ask_trades_with_hourly_bids_before_blocks() -> None:
    assert run("bid 1 @ 200 hours 2; bid 1 @ 100; ask 1 1 @ 100 at 1; ask 1 1 @ 90") == ["1 @ 100 with 2"]


def test_resting_blocks_are_tried_best_price_first() -> None:
    assert run("bid 1 @ 101 hours 2; bid 1 @ 102 hours 2; ask 1 1 @ 100 at 1; ask 1 1 @ 100") == [
        "block 2 at site 1: 1 @ 100 with 4, 1 @ 100 with 3"
    ]


def test_a_block_pays_more_in_one_hour_where_others_cost_less() -> None:
    block = "bid 1 @ 100 hours 4; ask 1 1 @ 80; ask 1 1 @ 95 at 1; ask 1 1 @ 120 at 3; "
    assert run(block + "ask 1 1 @ 106 at 2") == []
    assert run(block + "ask 1 1 @ 105 at 2") == [
        "block 1 at site 1: 1 @ 80 with 2, 1 @ 95 with 3, 1 @ 105 with 5, 1 @ 120 with 4"
    ]


def test_an_ask_helps_a_block_of_a_lower_price_past_one_that_no_ask_helps() -> None:
    blocks = "bid 1 @ 110 hours 3; bid 1 @ 101 hours 2; bid 1 @ 104 hours 2; cancel 3; "
    assert run(blocks + "ask 1 1 @ 100 at 1; ask 1 1 @ 101") == [
        "block 2 at site 1: 1 @ 101 with 5, 1 @ 100 with 4"
    ]


def test_a_replaced_block_waits_at_the_place_of_its_new_price() -> None:
    blocks = "bid 1 @ 100 hours 2; bid 1 @ 101 hours 2; ask 1 1 @ 120; ask 1 1 @ 100 at 1; "
    assert run(blocks + "replace 1 to 1 @ 102; ask 1 1 @ 100") == [
        "block 1 at site 1: 1 @ 100 with 5, 1 @ 100 with 4"
    ]


def test_a_block_above_its_limit_in_total_waits() -> None:
    assert run("ask 1 1 @ 100; ask 1 1 @ 111 at 1; bid 1 @ 105 hours 2") == []


def test_a_resting_block_ends_at_its_first_hours_gate() -> None:
    assert run("bid 1 @ 105 hours 3 at 1; gate 1") == ["closed at 1", "1 ended gate, 1 left"]
    assert run("bid 1 @ 105 hours 3; bid 1 @ 90 at 1; gate 0") == ["closed at 0", "1 ended gate, 1 left"]


def test_a_better_block_evicts_the_worst_where_the_hour_is_full() -> None:
    full = "bid 1 @ 100 hours 2; bid 1 @ 99 hours 2; bid 1 @ 99 hours 2; bid 1 @ 102 hours 2; "
    assert run(full + "bid 1 @ 101 hours 3 at 1") == ["3 ended evicted, 1 left"]
    assert run(full + "bid 1 @ 99 hours 3 at 1") == ["rejected TOO_MANY_RESTING_BLOCKS"]


def test_a_full_hour_evicts_for_blocks_of_that_hour_only() -> None:
    full = "bid 1 @ 100 hours 2; bid 1 @ 99 hours 2; bid 1 @ 99 hours 2; bid 1 @ 102 hours 2; "
    assert run(full + "bid 1 @ 99 hours 2 at 2") == []
    assert run(full + "bid 1 @ 103 hours 2 at 2") == []


def test_a_block_that_is_evicted_for_one_hour_makes_room_in_the_next() -> None:
    full = "bid 1 @ 95 at 1 hours 2; bid 1 @ 99 hours 2; bid 1 @ 99 hours 2; bid 1 @ 99 hours 2; "
    room = full + "bid 1 @ 90 at 2 hours 2; bid 1 @ 99 at 2 hours 2; bid 1 @ 99 at 2 hours 2; "
    assert run(room + "bid 1 @ 100 at 1 hours 2") == ["1 ended evicted, 1 left"]
    # The worst of a later hour goes too where that hour is full without the first.
    fuller = room.replace("bid 1 @ 95 at 1 hours 2", "bid 1 @ 95 hours 2") + "bid 1 @ 99 at 2 hours 2; "
    assert run(fuller + "bid 1 @ 100 at 1 hours 2") == ["1 ended evicted, 1 left", "5 ended evicted, 1 left"]
    assert run(fuller + "bid 1 @ 90 at 1 hours 2") == ["rejected TOO_MANY_RESTING_BLOCKS"]


def test_a_post_only_order_never_stands_across_what_it_may_meet_be_it_beyond_the_band() -> None:
    beyond = "venue banded; bid 9 @ 110; "
    for lots in (1, 2, 3):
        assert run(beyond + f"ask 1 {lots} @ 95 post-only") == ["rejected POST_ONLY_WOULD_TRADE"]
    assert run(beyond + "ask 1 3 @ 111 post-only; replace 2 to 3 @ 110") == ["rejected POST_ONLY_WOULD_TRADE"]
    assert run("venue banded; ask 1 9 @ 90; bid 3 @ 95 post-only") == ["rejected POST_ONLY_WOULD_TRADE"]
    # Its own group's orders, and those that it may not meet, are none.
    assert run("venue banded; bid 9 @ 110 by 1; ask 1 3 @ 95 post-only") == []
    assert run("venue banded; bid 9 @ 110 from west L1 E S1; ask 1 3 @ 95 post-only") == []


def test_only_a_block_that_rests_evicts() -> None:
    full = "bid 1 @ 100 hours 2; bid 1 @ 99 hours 2; bid 1 @ 99 hours 2; bid 1 @ 102 hours 2; "
    assert run(full + "bid 1 @ 104 hours 2 ioc") == ["5 ended immediate, 1 left"]
    assert run(full + "ask 1 1 @ 104; ask 1 1 @ 104 at 1; bid 1 @ 104 hours 2") == [
        "block 7 at site 1: 1 @ 104 with 5, 1 @ 104 with 6"
    ]


def test_a_block_that_does_not_rest_needs_no_room() -> None:
    full = "; ".join(["bid 1 @ 100 hours 2 from west L1 E S1"] * 4)
    assert run(full + "; bid 1 @ 95 hours 2 ioc") == ["5 ended immediate, 1 left"]
    assert run(full + "; ask 1 1 @ 90; ask 1 1 @ 90 at 1; bid 1 @ 95 hours 2") == [
        "block 7 at site 1: 1 @ 90 with 5, 1 @ 90 with 6"
    ]


def test_a_blocks_own_groups_asks_are_absent() -> None:
    assert run("ask 1 1 @ 100; ask 1 1 @ 100 at 1; bid 1 @ 105 hours 2 by 1") == []


def test_both_ends_of_the_collar_are_rounded_down() -> None:
    moved = "venue banded; ask 1 4 @ 101; bid 4 @ 101; "
    assert run(moved + "bid 1 @ 80") == []
    assert run(moved + "bid 1 @ 79") == ["rejected PRICE_OUTSIDE_COLLAR"]
    assert run(moved + "bid 1 @ 121") == []
    assert run(moved + "bid 1 @ 122") == ["rejected PRICE_OUTSIDE_COLLAR"]


def test_a_refused_order_does_not_begin_a_new_hours_count() -> None:
    """The market itself asserts that a refusal changes nothing."""
    assert run("venue rated; bid 1 @ 100; later 3600; bid 100000 @ 10000000") == [
        "rejected INSUFFICIENT_FUNDS"
    ]


def test_a_run_refused_other_terms_has_no_block_retried() -> None:
    """The market itself asserts that a refusal changes nothing."""
    refused = "ask 1 3 @ 100 hours 3 stretch 2; bid 1 @ 99 hours 2; withdraw 1 to 10; replace 1 to 3 @ 200"
    assert run(refused) == ["rejected INSUFFICIENT_FUNDS"]


def test_a_replaced_run_stands_in_the_collar_of_its_first_hours_trades() -> None:
    moved = "venue banded; ask 1 2 @ 100 hours 2 stretch 1; ask 1 4 @ 105; bid 4 @ 105; "
    assert run(moved + "replace 1 to 2 @ 126") == ["1 replaced: 2 @ 126, 4 left"]
    assert run(moved + "replace 1 to 2 @ 83") == ["rejected PRICE_OUTSIDE_COLLAR"]


def test_an_ask_of_a_group_that_takes_needs_what_it_sells_for_and_the_dearest_of_the_rest() -> None:
    """It sells one GPU at 150 and keeps one of its alternative at 100: a bond of a tenth of 250."""
    short_by_one = (
        "bid 1 @ 150; ask 1 2 @ 100 at 1 group a; withdraw 1 to 50499; ask 1 2 @ 50 group a; money 1"
    )
    assert run(short_by_one) == ["reserved 202000, committed 0, bond 0"]
    assert run(short_by_one.replace("50499", "50500")) == ["reserved 101000, committed 0, bond 150000"]


# -- icebergs --------------------------------------------------------------------------------------------


def test_icebergs_of_two_cells_take_turns_before_the_next_price() -> None:
    assert run("ask 1 5 @ 100 show 2; ask 3 3 @ 101; ask 2 6 @ 100 show 3; bid 12 @ 101") == [
        "2 @ 100 with 1",
        "3 @ 100 with 3",
        "2 @ 100 with 1",
        "3 @ 100 with 3",
        "1 @ 100 with 1",
        "1 @ 101 with 2",
    ]


def test_a_refreshed_slice_takes_a_new_time_and_a_half_filled_one_keeps_its_own() -> None:
    half = "ask 1 5 @ 100 show 2; bid 1 @ 100; ask 3 2 @ 100; bid 2 @ 100"
    assert run(half) == ["1 @ 100 with 1", "1 @ 100 with 3"]
    assert run(half + "; bid 4 @ 100") == ["1 @ 100 with 3", "2 @ 100 with 1", "1 @ 100 with 1"]


def test_a_block_takes_hidden_lots_and_the_next_slice_stands_last() -> None:
    hidden = "ask 1 6 @ 100 show 2; ask 1 5 @ 100 at 1; ask 3 1 @ 100; bid 5 @ 100 hours 2"
    assert run(hidden) == ["block 4 at site 1: 5 @ 100 with 1, 5 @ 100 with 2"]
    assert run(hidden + "; bid 2 @ 100") == ["1 @ 100 with 3", "1 @ 100 with 1"]


def test_an_iceberg_gives_up_hidden_lots_first_and_keeps_its_place() -> None:
    assert run("ask 1 6 @ 100 show 2; ask 3 2 @ 100; replace 1 to 3 @ 100; bid 5 @ 100") == [
        "2 @ 100 with 1",
        "2 @ 100 with 2",
        "1 @ 100 with 1",
    ]
    assert run("ask 1 6 @ 100 show 2; ask 3 2 @ 100; replace 1 to 1 @ 100; bid 3 @ 100") == [
        "1 @ 100 with 1",
        "2 @ 100 with 2",
    ]


def test_an_iceberg_that_is_given_more_goes_to_the_end() -> None:
    assert run("ask 1 6 @ 100 show 2; ask 3 2 @ 100; replace 1 to 7 @ 100; bid 3 @ 100") == [
        "2 @ 100 with 2",
        "1 @ 100 with 1",
    ]


# -- own orders ------------------------------------------------------------------------------------------


def test_a_taker_that_cancels_makers_goes_on_past_each_of_its_own() -> None:
    own_between = "ask 1 1 @ 100; ask 3 1 @ 101; ask 2 1 @ 102; ask 3 1 @ 103; "
    assert run(own_between + "bid 3 @ 103 by 1 self cancel_maker") == [
        "1 ended self_trade, 1 left",
        "1 @ 101 with 2",
        "3 ended self_trade, 1 left",
        "1 @ 103 with 4",
    ]


def test_a_taker_that_cancels_both_keeps_what_it_got_before() -> None:
    assert run("ask 3 1 @ 100; ask 1 1 @ 101; ask 3 1 @ 102; bid 3 @ 103 by 1 self cancel_both") == [
        "1 @ 100 with 1",
        "2 ended self_trade, 1 left",
        "4 ended self_trade, 2 left",
    ]


def test_the_takers_mode_governs() -> None:
    assert run("ask 1 1 @ 100 self cancel_both; bid 1 @ 100 by 1 self cancel_maker ioc") == [
        "1 ended self_trade, 1 left",
        "2 ended immediate, 1 left",
    ]


def test_fill_or_kill_and_minimum_count_only_the_orders_of_others() -> None:
    own_first = "ask 1 1 @ 100; ask 3 1 @ 101; "
    assert run(own_first + "bid 1 @ 101 by 1 fok") == ["1 @ 101 with 2"]
    assert run(own_first + "bid 2 @ 101 by 1 fok") == ["rejected NOT_FILLABLE"]
    assert run(own_first + "bid 2 @ 101 by 1 min 2") == ["rejected MINIMUM_NOT_FILLABLE"]
    assert run(own_first + "bid 2 @ 101 by 1 min 1") == ["1 @ 101 with 2"]


def test_what_is_left_beside_an_own_order_waits_for_others() -> None:
    crossed = "ask 1 1 @ 100; ask 3 1 @ 101; bid 2 @ 101 by 1 min 1; "
    assert run(crossed + "bid 1 @ 101 by 4") == ["1 @ 100 with 1"]
    assert run(crossed + "ask 3 1 @ 101") == ["1 @ 101 with 3"]


def test_fill_or_kill_and_minimum_count_all_that_can_be_had() -> None:
    two = "ask 1 1 @ 100; ask 3 1 @ 100; "
    assert run(two + "bid 2 @ 100 fok") == ["1 @ 100 with 1", "1 @ 100 with 2"]
    assert run(two + "bid 3 @ 100 min 2") == ["1 @ 100 with 1", "1 @ 100 with 2"]


# -- minimum and post-only -------------------------------------------------------------------------------


def test_a_minimum_is_tested_once() -> None:
    rested = "ask 1 2 @ 100; bid 5 @ 100 min 2; "
    assert run(rested + "ask 1 1 @ 100") == ["1 @ 100 with 2"]
    assert run(rested + "replace 2 to 6 @ 101") == ["2 replaced: 6 @ 101, 4 left"]


def test_a_post_only_order_stays_so_when_it_is_replaced() -> None:
    assert run("ask 3 2 @ 100; bid 1 @ 99 post-only; replace 2 to 1 @ 100") == [
        "rejected POST_ONLY_WOULD_TRADE"
    ]
    assert run("ask 3 2 @ 100; bid 1 @ 99 post-only; replace 2 to 1 @ 100; ask 1 1 @ 99") == ["1 @ 99 with 2"]


def test_a_post_only_order_passes_over_its_own_group() -> None:
    assert run("ask 1 1 @ 100; bid 2 @ 101 by 1 post-only; ask 3 1 @ 99") == ["1 @ 101 with 2"]
    replaced = "ask 1 1 @ 100; bid 2 @ 99 by 1 {}; replace 2 to 2 @ 101"
    assert run(replaced.format("post-only")) == ["2 replaced: 2 @ 101, 2 left"]
    assert run(replaced.format("")) == ["2 replaced: 2 @ 101, 2 left", "2 ended self_trade, 2 left"]


def test_a_post_only_ask_may_complete_a_block() -> None:
    assert run("bid 2 @ 105 hours 2; ask 1 2 @ 100 at 1; ask 1 2 @ 100 post-only") == [
        "block 1 at site 1: 2 @ 100 with 3, 2 @ 100 with 2"
    ]


# -- replace ---------------------------------------------------------------------------------------------


def test_a_price_that_comes_back_has_lost_its_place() -> None:
    assert run("bid 2 @ 100; bid 2 @ 100; replace 1 to 2 @ 101; replace 1 to 2 @ 100; ask 1 2 @ 100") == [
        "2 @ 100 with 2"
    ]


def test_an_order_may_be_given_the_lowest_price() -> None:
    assert run("bid 2 @ 2; replace 1 to 2 @ 1") == ["1 replaced: 2 @ 1, 2 left"]


def test_fewer_lots_at_another_price_lose_the_place() -> None:
    assert run("bid 2 @ 99; bid 2 @ 100; replace 1 to 1 @ 100; ask 1 2 @ 100") == ["2 @ 100 with 2"]


def test_a_replaced_order_takes_what_its_new_price_meets() -> None:
    assert run("ask 1 2 @ 102; bid 3 @ 100; replace 2 to 3 @ 103; ask 1 1 @ 90") == ["1 @ 103 with 2"]


def test_at_or_below_what_is_filled_the_rest_ends_at_whatever_price() -> None:
    half = "bid 4 @ 100; ask 1 2 @ 100; "
    assert run(half + "replace 1 to 2 @ 105") == ["1 ended replaced, 2 left"]
    assert run(half + "replace 1 to 1 @ 100") == ["1 ended replaced, 2 left"]


def test_a_refused_replace_leaves_the_order_and_its_place() -> None:
    refused = "bid 2 @ 100; bid 2 @ 100; withdraw 3 to 0; replace 1 to 3 @ 100"
    assert run(refused) == ["rejected INSUFFICIENT_FUNDS"]
    assert run(refused + "; ask 1 3 @ 100") == ["2 @ 100 with 1", "1 @ 100 with 2"]


def test_an_ask_is_given_more_only_as_far_as_the_site_has_it() -> None:
    assert run("ask 1 6 @ 100; ask 1 3 @ 100; replace 1 to 8 @ 100") == ["rejected CAPACITY_EXCEEDED"]
    assert run("ask 1 6 @ 100; ask 1 3 @ 100; replace 1 to 7 @ 100") == ["1 replaced: 7 @ 100, 7 left"]


def test_a_replaced_block_is_tried_at_its_new_price_and_lots() -> None:
    waits = "bid 2 @ 104 hours 2; ask 1 1 @ 105; ask 1 1 @ 105 at 1; replace 1 to 2 @ 105"
    assert run(waits) == ["1 replaced: 2 @ 105, 2 left"]
    assert run(waits + "; replace 1 to 1 @ 105") == [
        "1 replaced: 1 @ 105, 1 left",
        "block 1 at site 1: 1 @ 105 with 2, 1 @ 105 with 3",
    ]


def test_a_block_given_fewer_lots_keeps_its_place() -> None:
    two = "bid 2 @ 100 hours 2; bid 1 @ 100 hours 2; replace 1 to 1 @ 100; ask 1 1 @ 90; ask 1 1 @ 90 at 1"
    assert run(two) == ["block 1 at site 1: 1 @ 90 with 3, 1 @ 90 with 4"]


def test_a_runs_new_total_is_added_to_each_open_hour() -> None:
    sold = "ask 1 3 @ 100 hours 4 stretch 2; bid 1 @ 100 hours 2; replace 1 to 2 @ 100"
    assert run(sold) == ["1 replaced: 2 @ 100, 6 left"]
    assert run(sold + "; replace 1 to 5 @ 100") == ["1 replaced: 5 @ 100, 18 left"]
    assert run(sold + "; replace 1 to 12 @ 100") == ["rejected CAPACITY_EXCEEDED"]
    assert run("ask 1 3 @ 100 hours 2 stretch 2; bid 2 @ 100 hours 2; replace 1 to 2 @ 100") == [
        "1 ended replaced, 2 left"
    ]


def test_a_replaced_run_serves_resting_blocks() -> None:
    assert run("bid 2 @ 100 hours 2; ask 1 3 @ 101 hours 2 stretch 1; replace 2 to 3 @ 99") == [
        "2 replaced: 3 @ 99, 6 left",
        "block 1 at site 1: 2 @ 99 with 2, 2 @ 99 with 2",
    ]


def test_an_order_replaced_in_a_call_takes_part_on_its_new_terms() -> None:
    call = "halt; resume; bid 1 @ 100; bid 1 @ 100; replace 1 to 2 @ 101; ask 1 2 @ 100; later 90; clear"
    assert run(call)[1:-1] == ["2 @ 100 from 3 to 1"]


def test_what_cannot_be_paid_is_refused_in_a_call_too() -> None:
    refused = "halt; resume; ask 1 2 @ 100; withdraw 1 to 0; replace 1 to 3 @ 100"
    assert run(refused) == ["rejected INSUFFICIENT_FUNDS"]
    assert run(refused + "; bid 3 @ 100; later 90; clear")[1:-1] == ["2 @ 100 from 1 to 2"]


def test_a_refused_replace_leaves_a_block_and_its_place() -> None:
    refused = "bid 2 @ 100 hours 2; bid 2 @ 100 hours 2; withdraw 3 to 0; replace 1 to 3 @ 100"
    assert run(refused) == ["rejected INSUFFICIENT_FUNDS"]
    assert run(refused + "; ask 1 3 @ 100; ask 1 3 @ 100 at 1") == [
        "block 1 at site 1: 2 @ 100 with 3, 2 @ 100 with 4"
    ]


def test_a_run_given_fewer_lots_keeps_its_place() -> None:
    two = "{0}; {0}; replace 1 to {1}; bid 2 @ 100 hours 2"
    assert run(two.format("ask 1 3 @ 100 hours 2 stretch 2", "2 @ 100")) == [
        "block 3 at site 1: 2 @ 100 with 1, 2 @ 100 with 1"
    ]
    assert run(two.format("ask 1 3 @ 100 hours 2 stretch 2", "4 @ 100")) == [
        "block 3 at site 1: 2 @ 100 with 2, 2 @ 100 with 2"
    ]


def test_a_replaced_run_has_nothing_in_its_closed_hours() -> None:
    assert run("ask 1 2 @ 100 hours 3 stretch 1; gate 0; replace 1 to 3 @ 100") == [
        "1 replaced: 3 @ 100, 6 left"
    ]


def test_a_run_is_given_more_only_as_far_as_the_site_has_it_in_each_of_its_hours() -> None:
    assert run("ask 1 10 @ 100 hours 2 stretch 1; replace 1 to 11 @ 100") == ["rejected CAPACITY_EXCEEDED"]
    beside = "ask 1 3 @ 100 hours 2 stretch 1; ask 1 {} @ 100 hours 2 stretch 1 at {}; replace 1 to 4 @ 100"
    assert run(beside.format(7, 1)) == ["rejected CAPACITY_EXCEEDED"]
    assert run(beside.format(6, 1)) == ["1 replaced: 4 @ 100, 8 left"]
    assert run(beside.format(10, 2)) == ["1 replaced: 4 @ 100, 8 left"]


def test_a_run_may_change_its_price_beside_an_hour_that_is_oversold() -> None:
    oversold = "ask 1 4 @ 100 at 1; bid 4 @ 100 at 1; ask 1 2 @ 100 hours 3 stretch 1; derate 1 to 0 at 1; "
    assert run(oversold + "replace 3 to 2 @ 101") == ["3 replaced: 2 @ 101, 4 left"]


def test_a_run_whose_hours_hold_no_other_order_stands_in_the_collar() -> None:
    alone = "venue banded; ask 1 2 @ 100 hours 2 stretch 1; "
    assert run(alone + "replace 1 to 2 @ 120") == ["1 replaced: 2 @ 120, 4 left"]
    assert run(alone + "replace 1 to 2 @ 121") == ["rejected PRICE_OUTSIDE_COLLAR"]


def test_replaces_of_blocks_and_runs_count_in_the_rate() -> None:
    full = "venue rated; {0} hours 2; {0} hours 2; {0} hours 2; replace 1 to 1 @ 101"
    assert run(full.format("bid 1 @ 100")) == ["rejected ORDER_TO_TRADE_EXCEEDED"]
    assert run(full.format("ask 1 1 @ 100 stretch 1")) == ["rejected ORDER_TO_TRADE_EXCEEDED"]


# -- groups ----------------------------------------------------------------------------------------------


def test_a_group_reserves_for_its_dearest_member_only() -> None:
    two = "bid 2 @ 100 group a; bid 2 @ 150 at 1 group a; "
    assert run(two + "money 3") == ["reserved 3003000, committed 0, bond 0"]
    assert run(two + "replace 2 to 2 @ 90; money 3") == ["reserved 2002000, committed 0, bond 0"]
    assert run(two + "cancel 2; money 3") == ["reserved 2002000, committed 0, bond 0"]


def test_alternatives_shrink_together_hidden_lots_first_and_end_together() -> None:
    thinned = "bid 5 @ 100 group a show 2; bid 5 @ 100 at 1 group a; ask 1 4 @ 100 at 1"
    assert run(thinned) == ["4 @ 100 with 2", "1 reduced group, 1 left"]
    assert run(thinned + "; ask 1 1 @ 100") == ["1 @ 100 with 1", "2 ended group, 1 left"]


def test_nothing_joins_a_group_that_has_traded_and_its_name_is_free_when_it_is_gone() -> None:
    traded = "bid 2 @ 100 group a; bid 2 @ 150 at 1 group a; ask 1 1 @ 90; cancel 2; "
    assert run(traded + "bid 1 @ 1 at 5 group a") == ["rejected GROUP_MISMATCH"]
    assert run(traded + "cancel 1; bid 1 @ 1 at 5 group a") == []


def test_a_block_that_trades_ends_its_alternatives() -> None:
    blocks = (
        "bid 2 @ 100 hours 2 group a; bid 2 @ 100 hours 2 at 4 group a; ask 1 2 @ 90 at 5; ask 1 2 @ 90 at 4"
    )
    assert run(blocks) == ["block 2 at site 1: 2 @ 90 with 4, 2 @ 90 with 3", "1 ended group, 2 left"]


def test_an_alternative_that_has_just_ended_is_not_tried_though_the_ask_has_more() -> None:
    asks = "ask 1 4 @ 90 at 1; ask 1 4 @ 90 at 2; "
    blocks = "bid 1 @ 100 hours 2 group a; bid 1 @ 100 hours 3 group a; bid 2 @ 99 hours 2; "
    assert run(asks + blocks + "ask 1 3 @ 90") == [
        "block 3 at site 1: 1 @ 90 with 6, 1 @ 90 with 1",
        "4 ended group, 1 left",
        "block 5 at site 1: 2 @ 90 with 6, 2 @ 90 with 1",
    ]


def test_hourly_orders_and_blocks_do_not_mix_in_a_group() -> None:
    assert run("bid 2 @ 100 group a; bid 2 @ 100 hours 2 at 4 group a") == ["rejected GROUP_MISMATCH"]


def test_a_member_that_no_longer_fits_the_site_ends_whole() -> None:
    members = "ask 1 4 @ 100 group a; ask 1 4 @ 100 at 1 group a; ask 1 10 @ 90 hours 2 stretch 1; "
    assert run(members + "bid 7 @ 90 hours 2") == [
        "block 4 at site 1: 7 @ 90 with 3, 7 @ 90 with 3",
        "1 ended capacity, 4 left",
        "2 ended capacity, 4 left",
    ]


def test_a_call_thins_groups_too() -> None:
    assert run(
        "halt; resume; bid 3 @ 110 group a; bid 3 @ 90 at 1 group a; ask 1 2 @ 100; later 90; clear"
    ) == [
        "cleared 2, east E S2 at 110 of 110 to 110",
        "2 @ 110 from 3 to 1",
        "2 reduced group, 1 left",
        "continuous at 0",
    ]


def test_a_member_ended_by_its_own_group_of_trading_leaves_the_others() -> None:
    assert run("ask 1 1 @ 100; bid 2 @ 100 at 1 group a by 1; bid 2 @ 100 group a by 1") == [
        "3 ended self_trade, 2 left"
    ]


def test_a_replaced_ask_of_a_group_is_worth_what_it_sells_for_and_the_dearest_of_the_rest() -> None:
    two = "bid 1 @ 150; ask 1 2 @ 200 group a; ask 1 2 @ 100 at 1 group a; "
    assert run(two + "money 1") == ["reserved 404000, committed 0, bond 0"]
    assert run(two + "replace 2 to 2 @ 50; money 1") == ["reserved 101000, committed 0, bond 150000"]


# -- capacity --------------------------------------------------------------------------------------------


def test_what_hourly_asks_sell_is_cut_from_runs_the_newest_first() -> None:
    runs = (
        "ask 1 10 @ 100; ask 1 3 @ 100 hours 3 stretch 2; ask 1 4 @ 100 hours 3 stretch 1; "
        "ask 1 3 @ 99 hours 3 stretch 1; "
    )
    assert run(runs + "bid 5 @ 100") == [
        "5 @ 100 with 1",
        "4 reduced capacity, 0 3 3 left",
        "3 reduced capacity, 2 4 4 left",
    ]


def test_a_run_that_took_a_new_time_is_the_newest() -> None:
    runs = "ask 1 10 @ 100; ask 1 5 @ 100 hours 2 stretch 1; ask 1 5 @ 100 hours 2 stretch 1; "
    assert run(runs + "replace 2 to 5 @ 98; bid 2 @ 100") == [
        "2 @ 100 with 1",
        "2 reduced capacity, 3 5 left",
    ]


def test_each_trade_cuts_what_it_must_before_the_next() -> None:
    asks = "ask 1 10 @ 101 hours 3 stretch 2; ask 1 4 @ 90 at 1; ask 1 3 @ 91 at 1; ask 1 3 @ 92 at 1; "
    assert run(asks + "bid 10 @ 100 at 1") == [
        "4 @ 90 with 2",
        "1 reduced capacity, 6 6 6 left",
        "3 @ 91 with 3",
        "1 reduced capacity, 3 3 3 left",
        "3 @ 92 with 4",
        "1 ended capacity, 9 left",
    ]


def test_what_runs_sell_is_cut_from_hourly_asks_hour_by_hour() -> None:
    asks = "ask 1 6 @ 100; ask 1 4 @ 105; ask 1 8 @ 100 at 1; ask 1 6 @ 90 hours 2 stretch 1; "
    assert run(asks + "bid 5 @ 90 hours 2") == [
        "block 5 at site 1: 5 @ 90 with 4, 5 @ 90 with 4",
        "2 ended capacity, 4 left",
        "1 reduced capacity, 5 left",
        "3 reduced capacity, 5 left",
    ]


def test_what_is_cut_off_an_ask_comes_off_its_total_and_needs_room_to_come_back() -> None:
    cut = "ask 1 6 @ 100; ask 1 6 @ 90 hours 2 stretch 1; bid 5 @ 90 hours 2; "
    assert run(cut + "replace 1 to 5 @ 100") == ["rejected NOTHING_TO_CHANGE"]
    assert run(cut + "replace 1 to 6 @ 100") == ["rejected CAPACITY_EXCEEDED"]
    assert run(cut + "replace 1 to 5 @ 101") == ["1 replaced: 5 @ 101, 5 left"]


def test_a_call_cuts_runs_too() -> None:
    assert run(
        "halt; resume; ask 1 6 @ 100; bid 4 @ 110; ask 1 10 @ 90 hours 3 stretch 2; later 90; clear"
    ) == [
        "cleared 4, east E S2 at 100 of 100 to 100",
        "4 @ 100 from 1 to 2",
        "3 reduced capacity, 6 10 10 left",
        "continuous at 0",
    ]


def test_what_still_fits_is_not_cut() -> None:
    assert run("ask 1 3 @ 100; ask 1 3 @ 100; ask 1 5 @ 90 hours 2 stretch 1; bid 5 @ 90 hours 2") == [
        "block 4 at site 1: 5 @ 90 with 3, 5 @ 90 with 3",
        "2 reduced capacity, 2 left",
    ]
    assert run("ask 1 1 @ 100; ask 1 10 @ 90 hours 2 stretch 1; bid 9 @ 90 hours 2") == [
        "block 3 at site 1: 9 @ 90 with 2, 9 @ 90 with 2"
    ]
    assert run("ask 1 1 @ 100; ask 1 10 @ 90 hours 2 stretch 1; bid 10 @ 90 hours 2")[1:] == [
        "1 ended capacity, 1 left"
    ]


def test_what_is_resold_is_passed_over_when_a_site_is_cut() -> None:
    assert run("ask 1 4 @ 100; bid 4 @ 100; ask 1 4 @ 101; ask 1 4 @ 110 resell 1; derate 1 to 4 at 0") == [
        "site 1 derated",
        "3 ended capacity, 4 left",
    ]


def test_a_run_needs_room_in_its_own_hours_only() -> None:
    assert run("ask 1 10 @ 100 hours 2 stretch 1; ask 1 5 @ 100 hours 2 stretch 1 at 2") == []
    sold = "ask 1 4 @ 100 hours 2 stretch 1; bid 4 @ 100 hours 2; "
    assert run(sold + "ask 1 6 @ 100 hours 2 stretch 1") == []
    assert run(sold + "ask 1 7 @ 100 hours 2 stretch 1") == ["rejected CAPACITY_EXCEEDED"]


def test_a_blocks_hourly_asks_cut_runs_hour_by_hour() -> None:
    asks = "ask 1 6 @ 100; ask 1 6 @ 100 at 1; ask 1 10 @ 200 hours 2 stretch 1; bid 6 @ 100 hours 2"
    assert run(asks) == [
        "block 4 at site 1: 6 @ 100 with 1, 6 @ 100 with 2",
        "3 reduced capacity, 4 10 left",
        "3 reduced capacity, 4 4 left",
    ]


def test_a_runs_last_lot_of_an_hour_is_cut_too() -> None:
    assert run("ask 1 1 @ 200 hours 2 stretch 1; ask 1 10 @ 100; bid 10 @ 100")[1:] == [
        "1 reduced capacity, 0 1 left"
    ]


def test_runs_of_other_hours_are_not_cut() -> None:
    runs = "ask 1 5 @ 200 hours 2 stretch 1 at {}; ask 1 5 @ 200 hours 2 stretch 1 at {}; "
    sold = "ask 1 10 @ 100 at {0}; bid 6 @ 100 at {0}"
    cut = ["6 @ 100 with 3", "1 reduced capacity, 4 5 left"]
    assert run(runs.format(0, 4) + sold.format(0)) == cut
    assert run(runs.format(2, 0) + sold.format(2)) == cut


# -- runs and blocks -------------------------------------------------------------------------------------


def test_a_run_sells_nothing_that_leaves_too_short_a_stretch() -> None:
    offered = "ask 1 4 @ 100 hours 4 stretch 2; "
    assert run(offered + "bid 2 @ 100 hours 2 at 1") == []
    assert run(offered + "bid 4 @ 100 hours 3") == []
    assert run(offered + "bid 2 @ 100 hours 2 at 2") == ["block 2 at site 1: 2 @ 100 with 1, 2 @ 100 with 1"]
    assert run(offered + "bid 4 @ 100 hours 4") == [
        "block 2 at site 1: 4 @ 100 with 1, 4 @ 100 with 1, 4 @ 100 with 1, 4 @ 100 with 1"
    ]


def test_a_run_sells_no_window_shorter_than_its_stretch() -> None:
    assert run("ask 1 4 @ 100 hours 4 stretch 3; bid 2 @ 100 hours 2") == []


def test_a_run_meets_no_hourly_bid() -> None:
    assert run("ask 1 4 @ 100 hours 2 stretch 1; bid 1 @ 200") == []
    assert run("bid 1 @ 200; ask 1 4 @ 100 hours 2 stretch 1") == []


def test_runs_fill_a_block_together_best_price_first() -> None:
    assert run("ask 1 1 @ 100 hours 3 stretch 1; ask 1 1 @ 99 hours 3 stretch 3; bid 2 @ 100 hours 3") == [
        "block 3 at site 1: " + ", ".join(["1 @ 99 with 2, 1 @ 100 with 1"] * 3)
    ]


def test_a_block_is_not_filled_from_asks_and_runs_together() -> None:
    assert run("ask 1 1 @ 100; ask 1 1 @ 100 hours 2 stretch 1; bid 1 @ 100 hours 2 at 1") == []
    assert run("ask 1 1 @ 100; ask 1 1 @ 100 at 1 hours 2 stretch 1; bid 1 @ 100 hours 2") == []


def test_an_immediate_run_sells_to_a_resting_block_or_ends() -> None:
    assert run("ask 1 1 @ 100 hours 2 stretch 2 ioc") == ["1 ended immediate, 2 left"]
    assert run("bid 1 @ 100 hours 2; ask 1 2 @ 100 hours 2 stretch 2 ioc") == [
        "block 1 at site 1: 1 @ 100 with 2, 1 @ 100 with 2",
        "2 ended immediate, 2 left",
    ]


def test_a_dated_run_ends_at_its_time_in_any_of_its_hours() -> None:
    assert run("ask 1 1 @ 100 hours 2 stretch 1 gtd 30000; later 30000") == ["1 ended expired, 2 left"]
    assert run("ask 1 1 @ 100 hours 2 stretch 1 gtd 36000; gate 0; until 0") == ["1 ended expired, 1 left"]


def test_a_gate_takes_a_runs_hour_and_the_stretch_that_is_too_short_then() -> None:
    sold = "ask 1 4 @ 100 hours 4 stretch 2; bid 4 @ 100 hours 2 at 2; gate 0"
    assert run(sold) == ["1 ended gate, 8 left"]


def test_a_run_sells_nothing_of_an_hour_that_is_sold() -> None:
    assert run("ask 1 4 @ 100 hours 3 stretch 1; bid 4 @ 100 hours 2; bid 1 @ 100 hours 2 at 1") == []


def test_a_run_is_tested_for_each_lot_and_hour_it_would_leave() -> None:
    offered = "ask 1 4 @ 100 hours 4 stretch 2; "
    assert run(offered + "bid 1 @ 100 hours 2 at 1") == []
    assert run(offered + "bid 3 @ 100 hours 3 at 1") == []


def test_a_block_passes_over_runs_that_may_not_serve_it() -> None:
    assert run("ask 1 1 @ 100 hours 2 stretch 2; bid 1 @ 100 hours 2 by 1") == []
    graded = "ask 1 1 @ 99 hours 2 stretch 1; ask 1 1 @ 100 hours 2 stretch 1 carbon D; "
    assert run(graded + "bid 1 @ 100 hours 2 from east L1 D S1") == [
        "block 3 at site 1: 1 @ 100 with 2, 1 @ 100 with 2"
    ]


def test_runs_that_fill_a_block_together_are_within_its_limit_in_total() -> None:
    two = "ask 1 1 @ 100 hours 2 stretch 1; ask 1 1 @ 120 hours 2 stretch 1; "
    assert run(two + "bid 2 @ 109 hours 2") == []
    assert run(two + "bid 2 @ 110 hours 2") == [
        "block 3 at site 1: " + ", ".join(["1 @ 100 with 1, 1 @ 120 with 2"] * 2)
    ]


def test_a_run_serves_a_block_that_begins_later() -> None:
    assert run("bid 1 @ 100 hours 2 at 1; ask 1 1 @ 100 hours 3 stretch 1") == [
        "block 1 at site 1: 1 @ 100 with 2, 1 @ 100 with 2"
    ]


def test_a_run_passes_over_a_block_that_is_longer() -> None:
    assert run("bid 1 @ 110 hours 3; bid 1 @ 100 hours 2; ask 1 1 @ 100 hours 2 stretch 1") == [
        "block 2 at site 1: 1 @ 100 with 3, 1 @ 100 with 3"
    ]


# -- retries ---------------------------------------------------------------------------------------------


FEWER = "ask 1 3 @ 100 hours 5 stretch 2; derate 1 to 1 at 4; ask 1 1 @ 101 hours 2 stretch 1 at 2; "
"""A run with three lots in four hours and one in the fifth, and another with one lot."""


def test_a_block_is_retried_once_when_what_a_sale_leaves_of_a_run_lets_it_trade() -> None:
    """Two of three lots would have left the last hour's one alone; then that was sold."""
    assert run(FEWER + "bid 3 @ 110 hours 2 at 2") == []
    sold = FEWER + "bid 3 @ 110 hours 2 at 2; bid 1 @ 100 hours 2 at 3; chores"
    assert run(sold) == [
        "3 retried",
        "block 3 at site 1: " + ", ".join(["2 @ 100 with 1, 1 @ 101 with 2"] * 2),
    ]
    assert run(sold + "; chores") == []


def test_a_block_that_less_of_a_run_does_not_let_trade_is_not_retried() -> None:
    assert run(FEWER + "bid 3 @ 100 hours 2 at 2; bid 1 @ 100 hours 2 at 3; chores") == []
    by_its_seller = "bid 3 @ 110 hours 2 at 2 by 1; bid 1 @ 100 hours 2 at 3; chores"
    assert run(FEWER + by_its_seller) == []
    assert run(FEWER + "bid 3 @ 110 hours 2 at 2; cancel 1; chores") == []


def test_a_block_finds_in_a_run_replaced_by_fewer_lots_what_it_did_not_find_before() -> None:
    uneven = "ask 1 3 @ 100 hours 3 stretch 2; derate 1 to 1 at 2; ask 1 1 @ 101 hours 2 stretch 1; "
    assert run(uneven + "bid 3 @ 110 hours 2") == []
    assert run(uneven + "bid 3 @ 110 hours 2; replace 1 to 2 @ 100") == [
        "1 replaced: 2 @ 100, 4 left",
        "block 3 at site 1: " + ", ".join(["2 @ 100 with 1, 1 @ 101 with 2"] * 2),
    ]


def test_a_block_finds_in_a_smaller_run_what_it_did_not_find_before() -> None:
    """Three of four lots would have left the last hour's others alone; then that hour was cut to one."""
    smaller = "ask 1 4 @ 100 hours 3 stretch 2; bid 3 @ 100 hours 2; "
    assert run(smaller + "later 1") == []
    assert run(smaller + "derate 1 to 1 at 2; chores") == [
        "2 retried",
        "block 2 at site 1: 3 @ 100 with 1, 3 @ 100 with 1",
    ]


def test_a_block_is_retried_when_its_last_hour_becomes_continuous() -> None:
    waits = (
        "ask 1 4 @ 90 at 5; bid 1 @ 100 hours 2 at 5; halt at 6; resume at 6; "
        "ask 1 2 @ 100 hours 2 stretch 2 at 5; later 90; chores"
    )
    assert run(waits) == ["2 retried", "block 2 at site 1: 1 @ 100 with 3, 1 @ 100 with 3"]


def test_what_was_ended_is_not_retried() -> None:
    assert run("bid 1 @ 100 hours 2; halt; resume; later 90; cancel 1; chores") == []


def test_a_block_that_traded_before_its_retry_is_not_retried() -> None:
    resumed = "bid 1 @ 100 hours 2; halt; resume; later 90; ask 1 1 @ 100; ask 1 1 @ 100 at 1"
    assert run(resumed) == ["block 1 at site 1: 1 @ 100 with 2, 1 @ 100 with 3"]
    assert run(resumed + "; chores") == []


# -- band, collar and reference --------------------------------------------------------------------------


def test_at_the_band_an_immediate_order_ends_and_a_small_remainder_too() -> None:
    far = "venue banded; ask 1 1 @ 105; ask 1 5 @ 106; "
    assert run(far + "bid 6 @ 106 ioc") == ["1 @ 105 with 1", "3 ended band, 5 left"]
    assert run(far + "bid 3 @ 106") == ["1 @ 105 with 1", "3 ended band, 2 left"]
    assert run(far + "bid 4 @ 106") == ["1 @ 105 with 1", "call at 0"]


def test_what_lies_beyond_the_band_cannot_be_had() -> None:
    far = "venue banded; ask 1 1 @ 105; ask 1 5 @ 106; "
    assert run(far + "bid 6 @ 106 fok") == ["rejected NOT_FILLABLE"]
    assert run(far + "bid 6 @ 106 min 2") == ["rejected MINIMUM_NOT_FILLABLE"]
    assert run(far + "bid 6 @ 106 min 1") == ["1 @ 105 with 1", "call at 0"]
    assert run(far + "bid 6 @ 106 post-only") == ["rejected POST_ONLY_WOULD_TRADE"]


def test_the_band_holds_below_too() -> None:
    assert run("venue banded; bid 5 @ 94; ask 3 1 @ 94") == ["2 ended band, 1 left"]
    assert run("venue banded; bid 5 @ 95; ask 3 1 @ 94") == ["1 @ 95 with 1"]
    assert run("venue banded; bid 5 @ 94; ask 3 5 @ 94") == ["call at 0"]


def test_a_contract_goes_into_a_bounded_number_of_calls_an_hour() -> None:
    one = "venue banded; ask 1 3 @ 106; bid 3 @ 106; later 90; clear; ask 3 6 @ 106; "
    assert run(one + "bid 3 @ 106") == ["4 ended band, 3 left"]
    assert run(one + "later 3600; bid 3 @ 106") == ["call at 0"]


def test_a_venue_may_allow_several_calls_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = replace(VENUES["banded"].limits, volatility_calls_per_hour=3)
    monkeypatch.setitem(VENUES, "banded", replace(VENUES["banded"], limits=limits))
    call = "ask 3 3 @ {0}; bid 3 @ {0}; later 90; clear; "
    three = "venue banded; " + call.format(106) + call.format(112) + "ask 3 3 @ 118; bid 3 @ 118"
    assert run(three) == ["call at 0"]
    assert run(three + "; later 90; clear; ask 3 1 @ 124; bid 3 @ 124") == ["8 ended band, 3 left"]


def test_where_nothing_has_a_reference_price_there_is_no_band(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = tuple(replace(c, reference_price_ticks=None) for c in VENUES["banded"].classes)
    monkeypatch.setitem(VENUES, "banded", replace(VENUES["banded"], classes=classes))
    assert run("venue banded; ask 1 3 @ 500; bid 3 @ 500") == ["3 @ 500 with 1"]


def test_a_collar_without_a_band_moves_with_the_trades(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = replace(VENUES["banded"].limits, band_permille=0)
    monkeypatch.setitem(VENUES, "banded", replace(VENUES["banded"], limits=limits))
    moved = "venue banded; ask 1 4 @ 110; bid 4 @ 110; "
    assert run(moved + "bid 1 @ 132") == []
    assert run(moved + "bid 1 @ 133") == ["rejected PRICE_OUTSIDE_COLLAR"]


def test_each_supply_cell_has_its_own_reference_price() -> None:
    moved = "venue banded; ask 1 4 @ 105; bid 4 @ 105; "
    assert run(moved + "ask 1 1 @ 110; bid 1 @ 110") == ["1 @ 110 with 3"]
    assert run(moved + "ask 3 1 @ 110; bid 1 @ 110") == ["4 ended band, 1 left"]


def test_the_band_is_about_the_price_before_the_command() -> None:
    """After its first four lots the average is 104: 108 would be near enough, had it been so before."""
    assert run("venue banded; ask 1 4 @ 104; ask 1 2 @ 108; bid 6 @ 108") == [
        "4 @ 104 with 1",
        "3 ended band, 2 left",
    ]


def test_the_collar_reaches_from_the_lowest_to_the_highest_reference_price() -> None:
    moved = "venue banded; ask 1 4 @ 105; bid 4 @ 105; ask 3 1 @ 95; bid 1 @ 95; "
    assert run(moved + "bid 1 @ 75") == ["rejected PRICE_OUTSIDE_COLLAR"]
    assert run(moved + "bid 1 @ 76") == []
    assert run(moved + "bid 1 @ 126") == []
    assert run(moved + "bid 1 @ 127") == ["rejected PRICE_OUTSIDE_COLLAR"]


def test_a_calls_price_is_the_reference_price_after_it() -> None:
    cleared = "venue banded; halt; resume; ask 1 1 @ 110; bid 1 @ 110; later 90; clear; "
    assert run(cleared + "bid 1 @ 132") == []
    assert run(cleared + "bid 1 @ 133") == ["rejected PRICE_OUTSIDE_COLLAR"]
    assert run(cleared + "ask 1 1 @ 115; bid 1 @ 115") == ["1 @ 115 with 3"]
    assert run(cleared + "ask 1 1 @ 116; bid 1 @ 116") == ["4 ended band, 1 left"]


def test_blocks_move_no_reference_price() -> None:
    traded = "venue banded; ask 1 1 @ 120; ask 1 1 @ 120 at 1; bid 1 @ 120 hours 2; "
    assert run(traded + "bid 1 @ 121") == ["rejected PRICE_OUTSIDE_COLLAR"]


def test_a_market_orders_price_is_the_end_of_the_collar() -> None:
    assert run("venue banded; bid 3 @ 97; bid 2 @ 80; ask 1 5 @ market ioc") == [
        "3 @ 97 with 1",
        "3 ended band, 2 left",
    ]
    assert run("venue banded; bid 3 @ 97; ask 1 4 @ market fok") == ["rejected NOT_FILLABLE"]
    assert run("venue banded; bid 3 @ 97; ask 1 4 @ market ioc") == [
        "3 @ 97 with 1",
        "2 ended immediate, 1 left",
    ]


def test_the_reference_price_is_the_average_of_the_last_lots_rounded_down() -> None:
    """Of the last four lots one was traded at 105 and three at 104: 109 is just within 50 permille of 104."""
    traded = (
        "venue banded; ask 1 2 @ 100; bid 2 @ 100; ask 1 2 @ 105; bid 2 @ 105; ask 1 3 @ 104; bid 3 @ 104; "
        "ask 1 1 @ {0}; bid 1 @ {0}"
    )
    assert run(traded.format(109)) == ["1 @ 109 with 7"]
    assert run(traded.format(110)) == ["8 ended band, 1 left"]


def test_an_ask_that_takes_moves_and_obeys_its_own_cells_reference_price() -> None:
    taken = "venue banded; bid 4 @ 105; ask 1 4 @ 105; "
    assert run(taken + "bid 5 @ 110; ask 1 1 @ 110") == ["1 @ 110 with 3"]
    assert run(taken + "bid 5 @ 111; ask 1 1 @ 111") == ["4 ended band, 1 left"]
    assert run(taken + "bid 5 @ 110; ask 3 1 @ 110") == ["4 ended band, 1 left"]
    assert run(taken + "ask 1 1 @ 110; bid 1 @ 110") == ["1 @ 110 with 3"]


def test_a_reference_price_is_of_the_last_lots_since_the_last_call() -> None:
    reference = Reference()
    for price, lots in ((95, 1), (105, 3)):
        reference.trade(price, lots, 4)
    assert (reference.ticks, reference.trades()) == (102, [(95, 1), (105, 3)])
    reference.trade(103, 2, 4)
    assert (reference.ticks, reference.trades()) == (104, [(105, 2), (103, 2)])
    reference.call(90)
    assert (reference.ticks, reference.trades()) == (90, [])
    reference.trade(107, 1, 4)
    assert (reference.ticks, reference.trades()) == (107, [(107, 1)])


# -- halts and calls -------------------------------------------------------------------------------------


def test_time_goes_on_in_a_halted_contract() -> None:
    halted = "bid 1 @ 100 gtd 30; ask 1 1 @ 110; halt; later 30"
    assert run(halted) == ["1 ended expired, 1 left"]
    assert run(halted + "; gate 0") == ["closed at 0", "2 ended gate, 1 left"]


def test_a_block_can_be_reduced_while_one_of_its_hours_is_halted() -> None:
    halted = "bid 2 @ 100 hours 2; halt at 1; "
    assert run(halted + "replace 1 to 1 @ 100") == ["1 replaced: 1 @ 100, 1 left"]
    assert run(halted + "replace 1 to 1 @ 99") == ["rejected WRONG_PHASE"]


def test_a_halted_call_begins_anew_when_it_is_resumed() -> None:
    again = "halt; resume; ask 1 1 @ 110; later 60; halt; later 90; resume; later 59; end-call"
    assert run(again) == ["rejected WRONG_PHASE"]
    assert run(again + "; later 31") == ["continuous at 0"]


def test_a_contract_can_be_halted_while_it_is_clearing() -> None:
    stopped = "halt; resume; bid 2 @ 100; ask 1 1 @ 100; later 90; halt"
    assert run(stopped) == ["halted at 0"]
    assert run(stopped + "; clear") == ["rejected WRONG_PHASE"]
    assert run(stopped + "; resume; later 90; clear") == [
        "cleared 1, east E S2 at 100 of 100 to 100",
        "1 @ 100 from 2 to 1",
        "continuous at 0",
    ]


def test_auction_orders_take_part_and_end_with_the_call() -> None:
    assert run("halt; resume; bid 2 @ 101 auction; ask 1 1 @ 100; later 90; clear") == [
        "cleared 1, east E S2 at 101 of 101 to 101",
        "1 @ 101 from 2 to 1",
        "1 ended call_ended, 1 left",
        "continuous at 0",
    ]
    assert run("halt; resume; bid 2 @ 100 auction; later 90") == [
        "1 ended call_ended, 2 left",
        "continuous at 0",
    ]


def test_what_a_call_leaves_beyond_the_collar_ends() -> None:
    """The bid that nobody can serve came when the collar was to 126; now it is to 120."""
    moved = (
        "venue banded; ask 1 4 @ 105; bid 4 @ 105; bid 1 @ 126 from west L1 A S4; "
        "ask 1 4 @ 100; bid 4 @ 100; halt; resume; later 90"
    )
    assert run(moved) == ["3 ended band, 1 left", "continuous at 0"]


def test_a_call_counts_hidden_lots_by_their_orders_time() -> None:
    hidden = "halt; resume; ask 1 5 @ 100 show 2; ask 3 3 @ 100; bid 4 @ 100; later 90; clear"
    assert run(hidden)[1:-1] == ["4 @ 100 from 1 to 3"]
    assert run(hidden + "; bid 4 @ 100") == ["3 @ 100 with 2", "1 @ 100 with 1"]


def test_an_ask_sold_above_its_limit_puts_up_more_as_far_as_its_cash_just_does() -> None:
    """At 105 its bond and fee are 4525 more than it has reserved for 100."""
    sold = "halt; resume; ask 1 1 @ 100; bid 1 @ 110; withdraw 1 to {}; later 90; clear; money 1"
    assert run(sold.format(4525)) == ["reserved 0, committed 0, bond 105000"]
    assert run(sold.format(4524)) == ["reserved 0, committed 0, bond 100000"]


def test_a_clearing_contract_takes_cancels_and_clears_without_what_they_ended() -> None:
    clearing = "halt; resume; bid 1 @ 100; bid 1 @ 101; ask 1 1 @ 100; later 90; "
    assert run(clearing + "replace 1 to 1 @ 99") == ["rejected WRONG_PHASE"]
    assert run(clearing + "cancel 2; clear")[1:-1] == ["1 @ 100 from 3 to 1"]
    assert run(clearing + "cancel 3; clear") == ["cleared 0", "continuous at 0"]


def test_an_idle_contracts_opening_call_is_over_by_itself() -> None:
    listed = "venue opening; until -9; "
    assert run(listed + "later 599; phase at 15") == ["pre_open"]
    assert run(listed + "later 600; phase at 15") == ["call"]
    assert run(listed + "later 689; phase at 15") == ["call"]
    assert run(listed + "later 690; phase at 15") == ["continuous"]


def test_a_contract_entered_in_its_opening_call_has_what_is_left_of_it() -> None:
    assert run("venue opening; until -9; later 650; bid 1 @ 100 at 15; later 40") == ["continuous at 15"]


# -- standing offers -------------------------------------------------------------------------------------


def test_an_offer_lists_each_hour_as_it_enters_the_horizon() -> None:
    offered = "venue short; standing bid 2 @ 90 at 13 until 17; chores; "
    assert run(offered + "until -9; chores") == ["offer 1 listed to 16", "3 listed: 2 @ 90 at 15"]
    assert run(offered + "until -9; chores; later 3599; chores") == []
    assert run(offered + "until -8; chores") == [
        "offer 1 listed to 17",
        "3 listed: 2 @ 90 at 15",
        "4 listed: 2 @ 90 at 16",
        "offer 1 ended expired",
    ]


def test_an_offer_lists_at_most_24_hours_at_once_and_passes_over_prices_of_0() -> None:
    curve = ",".join(str({2: 90, 23: 80}.get(hour, 0)) for hour in range(24))
    assert run(f"standing bid 1 @ {curve} at 0 until 60; chores") == [
        "offer 1 listed to 24",
        "1 listed: 1 @ 90 at 2",
        "2 listed: 1 @ 80 at 23",
        "offer 1 listed to 48",
        "3 listed: 1 @ 90 at 26",
        "4 listed: 1 @ 80 at 47",
        "offer 1 listed to 60",
        "5 listed: 1 @ 90 at 50",
        "offer 1 ended expired",
    ]


def test_an_offer_of_several_hours_lists_at_most_24_orders_at_once() -> None:
    assert run("standing bid 1 @ 1 at 0 until 60 hours 2; chores")[0] == "offer 1 listed to 48"


def test_a_curve_of_a_week_begins_on_monday() -> None:
    """The first hour is Saturday's: the 121st of the week."""
    curve = ",".join(str(hour + 1) for hour in range(168))
    assert run(f"standing bid 1 @ {curve} at 0 until 1; chores")[1] == "1 listed: 1 @ 121 at 0"
    assert run(f"standing bid 1 @ {curve} at 48 until 49; chores")[1] == "1 listed: 1 @ 1 at 48"


def test_an_offer_of_runs_lists_whole_stretches() -> None:
    offered = "venue short; standing ask 1 3 @ 100 at 12 until 17 hours 2 stretch 1; chores"
    assert run(offered) == ["offer 1 listed to 14", "1 listed: 3 @ 100 at 12"]
    assert run(offered + "; until -9; chores") == [
        "offer 1 listed to 16",
        "2 listed: 3 @ 100 at 14",
        "offer 1 ended expired",
    ]


def test_an_hour_that_is_refused_is_skipped_with_its_reason() -> None:
    assert run("standing ask 1 3 @ 100 at 0 until 3; halt at 1; chores") == [
        "offer 1 listed to 3",
        "1 listed: 3 @ 100 at 0",
        "skipped WRONG_PHASE at 1",
        "2 listed: 3 @ 100 at 2",
        "offer 1 ended expired",
    ]
    suspended = "venue short; standing bid 1 @ 90 at 13 until 17; chores; suspend 3; until -9; chores"
    assert run(suspended) == ["offer 1 listed to 16", "skipped ACCOUNT_SUSPENDED at 15"]


def test_hours_that_have_passed_are_passed_over() -> None:
    assert run("venue short; standing bid 2 @ 90 at 13 until 17; until 14; chores") == [
        "offer 1 listed to 17",
        "1 listed: 2 @ 90 at 15",
        "2 listed: 2 @ 90 at 16",
        "offer 1 ended expired",
    ]


def test_a_listed_order_trades_and_is_replaced_like_any_other() -> None:
    listed = "bid 1 @ 95; standing ask 1 3 @ 90 at 0 until 2; chores"
    assert run(listed)[1:3] == ["2 listed: 3 @ 90 at 0", "1 @ 95 with 1"]
    assert run(listed + "; replace 2 to 4 @ 95") == ["2 replaced: 4 @ 95, 3 left"]


def test_a_withdrawn_offer_takes_its_open_orders_with_it_and_lists_no_more() -> None:
    withdrawn = "venue short; standing bid 1 @ 90 at 13 until 17; chores; ask 1 1 @ 90 at 13; cancel offer 1"
    assert run(withdrawn) == ["offer 1 ended withdrawn", "2 ended withdrawn, 1 left"]
    assert run(withdrawn + "; until -9; chores") == []


def test_an_offer_that_is_over_can_be_withdrawn_while_an_order_of_it_is_open() -> None:
    over = "standing ask 1 3 @ 100 at 0 until 1; chores; "
    assert run(over + "cancel offer 1") == ["1 ended withdrawn, 3 left"]
    assert run(over + "bid 3 @ 100; cancel offer 1") == ["rejected UNKNOWN_OFFER"]


def test_a_replaced_offer_lists_its_hours_anew() -> None:
    offered = "venue short; standing bid 2 @ 90 at 13 until 17; chores; ask 1 1 @ 90 at 13; "
    anew = offered + "replace offer 1 to 2 @ 91"
    assert run(anew) == ["offer 1 replaced", "1 ended withdrawn, 1 left", "2 ended withdrawn, 2 left"]
    assert run(anew + "; chores") == [
        "offer 1 listed to 15",
        "4 listed: 1 @ 91 at 13",
        "5 listed: 2 @ 91 at 14",
    ]


def test_a_replaced_offer_never_trades_more_in_an_hour_than_its_new_total() -> None:
    sold = "standing ask 1 4 @ 90 at 0 until 2; chores; bid 3 @ 90; "
    assert run(sold + "replace offer 1 to 4 @ 80; chores")[1:3] == [
        "4 listed: 1 @ 80 at 0",
        "5 listed: 4 @ 80 at 1",
    ]
    again = sold + "replace offer 1 to 9 @ 80; chores; bid 2 @ 80; replace offer 1 to "
    assert run(again + "6 @ 80; chores")[1:3] == ["7 listed: 1 @ 80 at 0", "8 listed: 6 @ 80 at 1"]
    for total in (5, 2):
        # Nothing is left for the first hour, and none is skipped.
        assert run(again + f"{total} @ 80; chores") == [
            "offer 1 listed to 2",
            f"7 listed: {total} @ 80 at 1",
            "offer 1 ended expired",
        ]


def test_what_was_taken_from_a_listed_order_otherwise_than_by_trades_is_listed_anew() -> None:
    cut = "standing ask 1 4 @ 90 at 0 until 1; chores; bid 1 @ 90; replace 1 to 2 @ 90; "
    assert run(cut + "replace offer 1 to 4 @ 80; chores")[1] == "3 listed: 3 @ 80 at 0"
    gone = "standing ask 1 4 @ 90 at 0 until 2; chores; bid 1 @ 90; cancel 1; "
    assert run(gone + "replace offer 1 to 4 @ 80; chores")[1] == "4 listed: 3 @ 80 at 0"


def test_a_standing_bid_for_blocks_lists_what_it_has_not_traded() -> None:
    bought = (
        "standing bid 2 @ 100 at 0 until 4 hours 2; chores; ask 1 1 @ 90; ask 1 9 @ 95; ask 1 2 @ 90 at 1; "
    )
    assert run(bought + "replace offer 1 to 3 @ 100; chores") == [
        "offer 1 listed to 4",
        "6 listed: 1 @ 100 at 0",
        "7 listed: 3 @ 100 at 2",
        "offer 1 ended expired",
    ]
    assert run(bought + "replace offer 1 to 2 @ 101; chores")[1] == "6 listed: 2 @ 101 at 2"


def test_an_offer_of_runs_lists_less_what_it_sold_in_the_hour_in_which_it_sold_most() -> None:
    offered = "standing ask 1 8 @ 100 at 0 until 4 hours 4 stretch 1; chores; "
    sold = offered + "bid 3 @ 100 hours 2; bid 2 @ 100 at 1 hours 2; "
    assert run(sold + "replace offer 1 to 9 @ 90; chores")[1] == "4 listed: 4 @ 90 at 0"
    assert run(sold + "replace offer 1 to 5 @ 90; chores") == ["offer 1 listed to 4", "offer 1 ended expired"]


def test_what_an_offer_has_traded_is_part_of_the_state_until_its_hour_closes() -> None:
    market = TwinMarket()
    market.play("standing ask 1 4 @ 90 at 0 until 2; chores; bid 3 @ 90")
    market.engine = restored(market.engine.encoded_state())
    assert market.play("replace offer 1 to 4 @ 80; chores")[1] == "4 listed: 1 @ 80 at 0"
    traded = []
    for until in ("later 1", "gate 0"):
        market.play(until)
        (state,) = decode_state(market.engine.encoded_state()).offers
        traded.append(state.traded)
    assert traded == [[(FIRST_HOUR, 3)], []]


def test_an_offer_that_has_listed_its_last_hour_is_replaced_like_any_other() -> None:
    over = "standing ask 1 3 @ 100 at 0 until 2; chores; "
    anew = over + "replace offer 1 to 2 @ 101; "
    assert run(over + "replace offer 1 to 2 @ 101") == [
        "offer 1 replaced",
        "1 ended withdrawn, 3 left",
        "2 ended withdrawn, 3 left",
    ]
    assert run(anew + "chores") == [
        "offer 1 listed to 2",
        "3 listed: 2 @ 101 at 0",
        "4 listed: 2 @ 101 at 1",
        "offer 1 ended expired",
    ]
    assert run(anew + "cancel offer 1") == ["offer 1 ended withdrawn"]
    assert run(anew + "chores; cancel all by 1; replace offer 1 to 3 @ 90") == ["rejected UNKNOWN_OFFER"]


def test_of_an_offer_of_runs_a_stretch_that_has_begun_to_close_is_not_listed_anew() -> None:
    begun = (
        "standing ask 1 3 @ 100 at 0 until 4 hours 2 stretch 1; chores; gate 0; replace offer 1 to 2 @ 100"
    )
    assert run(begun) == ["offer 1 replaced", "1 ended withdrawn, 3 left", "2 ended withdrawn, 6 left"]
    assert run(begun + "; chores") == [
        "offer 1 listed to 4",
        "3 listed: 2 @ 100 at 2",
        "offer 1 ended expired",
    ]


def test_an_hour_that_closed_before_it_was_listed_is_passed_over() -> None:
    assert (
        run("venue short; standing bid 2 @ 90 at 13 until 17; gate 13; chores")[1] == "1 listed: 2 @ 90 at 14"
    )


# -- derating and resale ---------------------------------------------------------------------------------


def test_a_derating_cuts_hourly_asks_then_runs_hour_by_hour() -> None:
    open_asks = (
        "ask 1 6 @ 100; ask 1 2 @ 101; ask 1 3 @ 99 hours 2 stretch 2; ask 1 7 @ 99 hours 2 stretch 1; "
        "bid 3 @ 100; derate 1 to 5 at 0 hours 2"
    )
    assert run(open_asks) == [
        "site 1 derated",
        "2 ended capacity, 2 left",
        "1 reduced capacity, 2 left",
        "4 reduced capacity, 0 7 left",
        "3 reduced capacity, 2 2 left",
        "4 reduced capacity, 0 3 left",
    ]
    assert run(open_asks + "; derate 1 to 10 at 0; ask 1 5 @ 120") == []
    assert run(open_asks + "; derate 1 to 10 at 0; ask 1 6 @ 120") == ["rejected CAPACITY_EXCEEDED"]


def test_what_is_sold_stands_and_what_is_resold_needs_no_capacity() -> None:
    sold = "ask 1 4 @ 100; bid 4 @ 100; ask 1 4 @ 110 resell 1; derate 1 to 0 at 0"
    assert run(sold) == ["site 1 derated, oversold 0"]
    assert run(sold + "; bid 4 @ 110 by 4") == ["4 @ 110 with 3"]


def test_resold_lots_count_once() -> None:
    resold = "ask 1 4 @ 100; bid 4 @ 100; ask 1 4 @ 110 resell 1; bid 4 @ 110 by 4; "
    assert run(resold + "ask 1 6 @ 100") == []
    assert run(resold + "ask 1 7 @ 100") == ["rejected CAPACITY_EXCEEDED"]


def test_a_position_is_resold_at_no_better_grade_than_it_was_bought() -> None:
    bought = "ask 1 4 @ 100; bid 4 @ 100; "
    assert run(bought + "ask 1 2 @ 110 resell 1 carbon D") == ["rejected GRADE_NOT_CERTIFIED"]
    better = "ask 1 4 @ 100 carbon D; bid 4 @ 100; ask 1 2 @ 110 resell 1 carbon D; "
    assert run(better + "bid 2 @ 110 by 4 from east L1 D S2") == ["2 @ 110 with 3"]


def test_a_position_that_is_no_longer_offered_can_be_offered_again() -> None:
    offered = "ask 1 2 @ 100; bid 2 @ 100; ask 1 2 @ 110 resell 1; "
    assert run(offered + "ask 1 1 @ 110 resell 1") == ["rejected POSITION_EXCEEDED"]
    assert run(offered + "replace 3 to 1 @ 110; ask 1 1 @ 110 resell 1") == []
    assert run(offered + "cancel 3; ask 1 2 @ 110 resell 1") == []


def test_of_a_position_only_what_a_smaller_ask_gives_up_can_be_offered_again() -> None:
    offered = "ask 1 3 @ 100; bid 3 @ 100; ask 1 3 @ 110 resell 1; replace 3 to 2 @ 110; "
    assert run(offered + "ask 1 2 @ 110 resell 1") == ["rejected POSITION_EXCEEDED"]
    assert run(offered + "ask 1 1 @ 110 resell 1") == []


def test_a_resale_may_leave_its_site_to_its_position() -> None:
    bought = "ask 3 2 @ 100 carbon B; bid 2 @ 100; ask 0 2 @ 110 resell 1 carbon B; "
    assert run(bought + "bid 1 @ 110 by 4 from west L1 B S1") == ["1 @ 110 with 3"]
    assert run(bought + "bid 1 @ 110 by 4; repeat 3") == ["3 repeated, 1 left"]
    named = bought.replace("ask 0", "ask 3")
    assert run(named + "replace 3 to 1 @ 110; bid 1 @ 110 by 4") == ["1 @ 110 with 3"]
    assert run("ask 1 2 @ 100; bid 2 @ 100; ask 2 2 @ 110 resell 1") == ["rejected UNKNOWN_POSITION"]


def test_the_same_resale_with_and_without_its_site_is_one_order() -> None:
    market = TwinMarket()
    market.play("ask 1 2 @ 100; bid 2 @ 100; ask 0 2 @ 110 resell 1")
    market.orders[3] = replace(market.orders[3], site=1)
    assert market.play("repeat 3") == ["3 repeated, 2 left"]
    market.orders[3] = replace(market.orders[3], site=2)
    assert market.play("repeat 3") == ["rejected DUPLICATE_ORDER_ID"]


def test_who_bought_a_resold_position_may_resell_it() -> None:
    again = "ask 1 2 @ 100; bid 2 @ 100; ask 1 2 @ 110 resell 1; bid 2 @ 110 by 4; "
    assert run(again + "ask 1 2 @ 120 resell 2 by 4; bid 2 @ 120") == ["2 @ 120 with 5"]
    assert run(again + "ask 1 2 @ 120 resell 1") == ["rejected POSITION_EXCEEDED"]


def test_a_block_takes_resold_lots_and_its_legs_are_positions() -> None:
    resold = (
        "ask 1 4 @ 100; bid 4 @ 100; ask 1 4 @ 110 resell 1; ask 1 4 @ 110 at 1; bid 4 @ 110 hours 2 by 4"
    )
    assert run(resold) == ["block 5 at site 1: 4 @ 110 with 3, 4 @ 110 with 4"]
    assert run(resold + "; ask 1 4 @ 120 at 1 resell 3 by 4; bid 1 @ 120 at 1") == ["1 @ 120 with 6"]


# -- accounts and repeats --------------------------------------------------------------------------------


def test_each_trade_of_the_hour_allows_more_orders() -> None:
    full = "venue rated; bid 1 @ 100; bid 1 @ 100; replace 1 to 1 @ 99; "
    assert run(full + "bid 1 @ 100") == ["rejected ORDER_TO_TRADE_EXCEEDED"]
    assert run(full + "ask 1 1 @ 100; bid 1 @ 100") == []
    assert run(full + "ask 1 1 @ 100; bid 1 @ 100; bid 1 @ 100") == ["rejected ORDER_TO_TRADE_EXCEEDED"]
    assert run(full + "later 3600; bid 1 @ 100") == []


def test_both_sides_may_enter_more_orders_for_each_trade() -> None:
    traded = "venue rated; ask 1 1 @ 100; ask 1 1 @ 100; ask 1 1 @ 100; bid 2 @ 100; ask 1 1 @ 100; "
    assert run(traded + "ask 1 1 @ 100") == []
    assert run(traded + "ask 1 1 @ 100; ask 1 1 @ 100") == ["rejected ORDER_TO_TRADE_EXCEEDED"]
    traded = "venue rated; bid 1 @ 100; bid 1 @ 100; bid 1 @ 100; ask 1 2 @ 100; bid 1 @ 100; "
    assert run(traded + "bid 1 @ 100") == []
    assert run(traded + "bid 1 @ 100; bid 1 @ 100") == ["rejected ORDER_TO_TRADE_EXCEEDED"]


def test_a_standing_offer_lists_no_more_than_the_rate_allows() -> None:
    assert run("venue rated; standing bid 1 @ 90 at 0 until 4; chores")[3:5] == [
        "3 listed: 1 @ 90 at 2",
        "skipped ORDER_TO_TRADE_EXCEEDED at 3",
    ]


def test_what_a_suspended_account_has_open_still_trades_and_can_be_reduced() -> None:
    open_bid = "bid 3 @ 100; suspend 3; "
    assert run(open_bid + "ask 1 1 @ 100") == ["1 @ 100 with 1"]
    assert run(open_bid + "replace 1 to 2 @ 100") == ["1 replaced: 2 @ 100, 2 left"]
    assert run(open_bid + "replace 1 to 2 @ 99") == ["rejected ACCOUNT_SUSPENDED"]
    assert run(open_bid + "reinstate 3; bid 1 @ 100") == []


def test_the_very_same_order_again_changes_nothing() -> None:
    assert run("bid 3 @ 100; ask 1 1 @ 100; repeat 1") == ["1 repeated, 2 left"]
    assert run("bid 3 @ 100; cancel 1; repeat 1") == ["1 repeated, 0 left"]
    assert run("bid 3 @ 100; replace 1 to 4 @ 101; repeat 1") == ["1 repeated, 4 left"]
    assert run("bid 3 @ 100; cancel 1; later 601; repeat 1") == ["rejected COMMAND_EXPIRED"]
    assert run("bid 1 @ 100 group a; bid 1 @ 100 at 1 group a; repeat 1") == ["1 repeated, 1 left"]


def test_an_ask_is_the_very_same_with_its_site_and_grade() -> None:
    assert run("ask 1 2 @ 100; bid 1 @ 100; repeat 1") == ["1 repeated, 1 left"]


def test_an_id_is_known_until_its_own_validity_has_ended() -> None:
    two = "bid 1 @ 90; cancel 1; later 10; bid 1 @ 90; cancel 2; later 595; "
    assert run(two + "repeat 1") == ["rejected COMMAND_EXPIRED"]
    assert run(two + "repeat 2") == ["2 repeated, 0 left"]
    assert run("bid 1 @ 90; cancel 1; later 600; repeat 1") == ["1 repeated, 0 left"]
    assert run("bid 1 @ 90; later 600; cancel 1; repeat 1") == ["1 repeated, 0 left"]


def test_an_id_is_kept_nowhere_when_it_is_neither_valid_nor_open() -> None:
    market = TwinMarket()
    known = market.engine.market.accounts[BUYER].client_orders
    market.play("bid 1 @ 90; cancel 1; later 10; bid 1 @ 90; cancel 2; bid 1 @ 90; later 592")
    assert list(known) == ["o2", "o3"]
    market.play("later 10")
    assert list(known) == ["o3"]
    market.play("cancel 3")
    assert not known


def test_an_order_is_named_by_its_number_or_by_its_clients_id() -> None:
    engine = started()
    for number in (1, 2):
        engine.apply(START_NS, bid(number, 1, 100))
    named = ReplaceOrder(
        account=BUYER, client_order_id="o2", valid_until_ns=START_NS, lots=1, price_ticks=101
    )
    [replaced] = engine.apply(START_NS, named)
    assert isinstance(replaced, OrderReplaced)
    assert replaced.order_id == 2
    [ended] = engine.apply(START_NS, CancelOrder(BUYER, client_order_id="o1"))
    assert isinstance(ended, OrderEnded)
    assert ended.order_id == 1
