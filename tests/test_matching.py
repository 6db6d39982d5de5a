"""The book's rules, as scenarios; exchange/README.md states each in words."""

from tests.market import run


def test_trades_happen_at_the_resting_orders_price() -> None:
    assert run("ask 1 3 @ 100; bid 3 @ 105") == ["3 @ 100 with 1"]
    assert run("bid 3 @ 105; ask 1 3 @ 100") == ["3 @ 105 with 1"]


def test_better_price_first_then_earlier_time_across_cells() -> None:
    assert run("ask 1 2 @ 101; ask 3 2 @ 100; ask 2 2 @ 100; bid 5 @ 101") == [
        "2 @ 100 with 2",
        "2 @ 100 with 3",
        "1 @ 101 with 1",
    ]


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


def test_a_block_is_filled_whole_from_one_site() -> None:
    assert run("ask 1 2 @ 100; ask 1 2 @ 110 at 1; bid 2 @ 105 hours 2") == [
        "block 3 at site 1: 2 @ 100 with 1, 2 @ 110 with 2"
    ]
    assert run("ask 1 2 @ 100; ask 2 2 @ 110 at 1; bid 2 @ 105 hours 2") == []


def test_a_block_takes_the_cheaper_site_and_on_ties_the_lower_number() -> None:
    two_sites = "ask 2 1 @ 100; ask 2 1 @ 100 at 1; ask 1 1 @ {0}; ask 1 1 @ {0} at 1; bid 1 @ 105 hours 2"
    assert run(two_sites.format(101)) == ["block 5 at site 2: 1 @ 100 with 1, 1 @ 100 with 2"]
    assert run(two_sites.format(100)) == ["block 5 at site 1: 1 @ 100 with 3, 1 @ 100 with 4"]


def test_a_resting_block_trades_when_the_last_missing_ask_arrives() -> None:
    assert run("bid 2 @ 105 hours 2; ask 1 2 @ 100; ask 1 3 @ 110 at 1") == [
        "block 1 at site 1: 2 @ 100 with 2, 2 @ 110 with 3"
    ]


def test_an_arriving_ask_trades_with_hourly_bids_before_blocks() -> None:
    assert run("bid 1 @ 200 hours 2; bid 1 @ 100; ask 1 1 @ 100 at 1; ask 1 1 @ 90") == ["1 @ 100 with 2"]


def test_resting_blocks_are_tried_best_price_first() -> None:
    assert run("bid 1 @ 101 hours 2; bid 1 @ 102 hours 2; ask 1 1 @ 100 at 1; ask 1 1 @ 100") == [
        "block 2 at site 1: 1 @ 100 with 4, 1 @ 100 with 3"
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
    """It sells one GPU at 150 and keeps one of its alternative at 100: a tenth of 250 as bond, and the fee."""
    short_by_one = (
        "bid 1 @ 150; ask 1 2 @ 100 at 1 group a; withdraw 1 to 50499; ask 1 2 @ 50 group a; money 1"
    )
    assert run(short_by_one) == ["reserved 202000, committed 0, bond 0"]
    assert run(short_by_one.replace("50499", "50500")) == ["reserved 101000, committed 0, bond 150000"]
