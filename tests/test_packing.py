"""Plain orders and their events are the same bytes without the structs of the words as with them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange import slots
from exchange.packing import packed, submitted, unpacked
from schemas.codec import decode_command, encode
from schemas.commands import (
    AnyCommand,
    CancelOrder,
    EnterOrder,
    ReplaceOrder,
    Requirement,
    SelfTrade,
    Side,
    TimeInForce,
)
from schemas.events import EndReason
from schemas.link import AnyFrame, Submit, decode_frame, encode_frame

EDGES = [0, 1, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1]
INTEGERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([sign * edge for edge in EDGES for sign in (1, -1)]),
    st.sampled_from([-32, -33, -129, -(2**15), -(2**15) - 1, -(2**31), -(2**31) - 1, -(2**63)]),
)
POSITIVE = st.one_of(st.integers(1, 2**63 - 1), st.sampled_from(EDGES[1:]))
CODES = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=40
) | st.sampled_from(["x" * 31, "x" * 32, "x" * 40])
REQUIREMENTS = st.builds(Requirement, CODES, CODES, CODES, CODES)


def orders(integers: st.SearchStrategy[int]) -> st.SearchStrategy[AnyCommand]:
    """Return plain and other orders, cancels and replaces."""
    common = {
        "account": integers,
        "client_order_id": CODES,
        "valid_until_ns": integers,
        "class_code": CODES,
        "delivery_hour": integers,
        "lots": integers,
        "price_ticks": integers,
    }
    bids = st.builds(EnterOrder, side=st.just(Side.BUY), requirement=REQUIREMENTS, **common)
    asks = st.builds(EnterOrder, side=st.just(Side.SELL), site=integers, carbon=CODES, **common)
    others = st.builds(
        EnterOrder,
        side=st.sampled_from(Side),
        requirement=st.none() | REQUIREMENTS,
        site=integers,
        carbon=st.none() | CODES,
        hours=st.sampled_from([0, 1, 8]),
        time_in_force=st.sampled_from(TimeInForce),
        min_lots=st.sampled_from([0, 3]),
        post_only=st.booleans(),
        self_trade=st.sampled_from(SelfTrade),
        exclusive_group=st.none() | CODES,
        **common,
    )
    named = {"account": integers, "order_id": integers, "client_order_id": st.none() | CODES}
    replaces = st.builds(ReplaceOrder, valid_until_ns=integers, lots=integers, price_ticks=integers, **named)
    return st.one_of(bids, asks, others, replaces, st.builds(CancelOrder, **named))


def fields(command: object) -> dict[str, object]:
    """Return what a command inside says; of a requirement its object, which is one for equal ones."""
    names = {name for kind in type(command).__mro__ for name in getattr(kind, "__slots__", ())}
    return {name: getattr(command, name) for name in names - {"packed"}}


def assert_is_read(command: AnyCommand) -> None:
    data = encode(command)
    found = unpacked(data)
    if found is not None:
        taken = slots.taken(command)
        assert type(found) is type(taken)
        assert fields(found) == fields(taken)
        assert found.packed == data


@given(orders(INTEGERS))
def test_what_is_read_is_what_the_codec_reads(command: AnyCommand) -> None:
    assert_is_read(command)


@given(orders(POSITIVE))
def test_every_plain_order_is_read(command: AnyCommand) -> None:
    assert_is_read(command)
    data = encode(command)
    is_plain = True
    if isinstance(command, EnterOrder):
        plain = EnterOrder(
            account=command.account,
            client_order_id=command.client_order_id,
            valid_until_ns=command.valid_until_ns,
            side=command.side,
            class_code=command.class_code,
            delivery_hour=command.delivery_hour,
            lots=command.lots,
            price_ticks=command.price_ticks,
            requirement=command.requirement if command.side is Side.BUY else None,
            site=0 if command.side is Side.BUY else command.site,
            carbon=None if command.side is Side.BUY else command.carbon,
        )
        is_plain = command == plain and (command.requirement is not None or command.carbon is not None)
    elif isinstance(command, CancelOrder | ReplaceOrder):
        is_plain = command.client_order_id is None
    assert (unpacked(data) is not None) == is_plain


@given(orders(POSITIVE), INTEGERS)
def test_a_frame_that_submits_is_read_with_its_number(command: AnyCommand, correlation: int) -> None:
    frame = encode_frame(Submit(correlation, command))[4:]
    found = submitted(frame)
    if found is not None:
        assert (found.correlation, found.command.packed) == (correlation, encode(command))


@given(orders(POSITIVE), st.data())
def test_bytes_that_differ_are_left_to_the_codec_or_mean_the_same(
    command: AnyCommand, data: st.DataObject
) -> None:
    whole = bytearray(encode(command))
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.integers(0, len(whole) - 1))
        match data.draw(st.sampled_from(["set", "cut", "add"])):
            case "set":
                whole[place] = data.draw(st.integers(0, 255))
            case "cut":
                del whole[place]
            case _:
                whole.insert(place, data.draw(st.integers(0, 255)))
    found = unpacked(bytes(whole))
    if found is not None:
        known = decode_command(bytes(whole))
        assert encode(known) == bytes(whole) == found.packed
        assert fields(found) == fields(slots.taken(known))


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_left(data: bytes) -> None:
    assert unpacked(data) is None or encode(decode_command(data)) == data
    if submitted(data) is not None:
        frame: AnyFrame = decode_frame(data)
        assert isinstance(frame, Submit)


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_frame_cut_short_is_left_to_the_codec(cut: int) -> None:
    command = CancelOrder(7, 2**40)
    frame = encode_frame(Submit(5, command))[4:]
    assert submitted(frame[:-cut]) is None


@given(INTEGERS, INTEGERS)
def test_an_acceptance_is_packed_as_the_codec_does(order_id: int, reserved: int) -> None:
    assert_is_packed(slots.OrderAccepted(order_id, reserved))


@given(INTEGERS, INTEGERS, INTEGERS, INTEGERS, st.sampled_from(EndReason))
def test_an_end_is_packed_as_the_codec_does(
    order_id: int, account: int, leaves_lots: int, released_micros: int, reason: EndReason
) -> None:
    assert_is_packed(slots.OrderEnded(order_id, account, leaves_lots, released_micros, reason))


@given(st.lists(INTEGERS, min_size=6, max_size=6))
def test_a_replacement_is_packed_as_the_codec_does(numbers: list[int]) -> None:
    assert_is_packed(slots.OrderReplaced(*numbers))


TRADES = st.builds(
    slots.Traded,
    **dict.fromkeys(("trade_id", "delivery_hour", "price_ticks", "lots", "bid_order_id"), INTEGERS),
    **dict.fromkeys(("ask_order_id", "buyer", "seller", "site", "block", "position"), INTEGERS),
    **dict.fromkeys(("notional_micros", "buyer_fee_micros", "buyer_released_micros"), INTEGERS),
    **dict.fromkeys(("bond_micros", "seller_fee_micros", "seller_released_micros"), INTEGERS),
    class_code=CODES,
    taker=st.sampled_from([-1, 0, 1]),
)


@given(TRADES)
def test_a_trade_is_packed_as_the_codec_does(trade: slots.Traded) -> None:
    assert_is_packed(trade)


def test_any_other_event_is_packed_by_the_codec() -> None:
    leg = slots.Traded(1, "H100-SXM", 500_000, 2_000, 8, 1, 2, 3, 4, 5, 6, 2, 0, 9, 0, 0, 1, 0, 0)
    assert_is_packed(slots.BlockTraded(2, 6, [leg]))


def assert_is_packed(event: slots.Event) -> None:
    assert packed(event) == encode(event.told())
