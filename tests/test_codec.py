"""One value, one sequence of bytes; and what a record's root promises."""

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from exchange.engine import Engine
from schemas.authority import signature_holds
from schemas.codec import decode_command, decode_event, encode, signed_bytes
from schemas.commands import AnyCommand, Authority, CancelOrder, Deposit, OpenEra, Side, Tick
from schemas.events import AnyEvent, OrderAccepted, Rejected
from schemas.reasons import RejectReason
from schemas.records import Record, decoded, entry_of, part_hash, part_salt, record_root, root_of
from tests.market import AUTHORITY, START_NS, bid, open_era
from tests.small_venue import SMALL_VENUE

COMMANDS: tuple[type[msgspec.Struct], ...] = get_args(AnyCommand)
EVENTS: tuple[type[msgspec.Struct], ...] = get_args(AnyEvent)


def values(of: inspect.Type) -> st.SearchStrategy[Any]:
    """Values that the type allows, from what msgspec knows of it; integers within 64 bits."""
    match of:
        case inspect.IntType():
            least = -(2**63) if of.ge is None else of.ge
            return st.integers(least, 2**63 - 1 if of.le is None else of.le)
        case inspect.StrType(pattern=str(pattern)):
            most = of.max_length or 2**31
            return st.from_regex(pattern, fullmatch=True).filter(lambda text: len(text) <= most)
        case inspect.StrType(max_length=40):
            return st.from_regex(r"[ -~]{1,40}", fullmatch=True)
        case inspect.StrType():
            # Lone surrogates are no text that UTF-8 can carry.
            letters = st.characters(exclude_categories=["Cs"])
            return st.text(letters, min_size=of.min_length or 0, max_size=min(of.max_length or 30, 30))
        case inspect.BytesType():
            return st.binary(min_size=of.min_length or 0, max_size=of.max_length or 64)
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
        case inspect.EnumType():
            return st.sampled_from(list(of.cls))
        case inspect.LiteralType():
            return st.sampled_from(of.values)
        case inspect.UnionType():
            return st.one_of(*map(values, of.types))
        case inspect.VarTupleType():
            return st.lists(values(of.item_type), min_size=of.min_length or 0, max_size=3).map(tuple)
        case inspect.DictType():
            return st.dictionaries(values(of.key_type), values(of.value_type), max_size=3)
        case inspect.StructType():
            fields = {field.name: values(field.type) for field in of.fields}
            return st.builds(of.cls, **fields)
        case _:
            raise AssertionError(of)


def of_type(cls: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    return values(inspect.type_info(cls))


@pytest.mark.parametrize("cls", COMMANDS, ids=lambda cls: cls.__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_every_command_comes_back_as_it_was_and_encodes_the_same(
    cls: type[msgspec.Struct], data: st.DataObject
) -> None:
    command = data.draw(of_type(cls))
    written = encode(command)
    read = decode_command(written)
    assert type(read) is cls
    assert read == command
    assert encode(read) == written


@pytest.mark.parametrize("code", ["", "a\n", "a\nb", "\x7f", "\x00", "ä", "a" * 41])
@pytest.mark.parametrize(
    "path",
    [
        ("client_order_id",),
        ("class_code",),
        ("exclusive_group",),
        ("carbon",),
        *(("requirement", name) for name in ("zone", "latency", "carbon", "security")),
    ],
    ids=".".join,
)
def test_a_code_of_an_order_is_up_to_forty_printable_letters_of_ascii(
    path: tuple[str, ...], code: str
) -> None:
    told = msgspec.to_builtins(bid(1, 1, 100))
    assert decode_command(msgspec.msgpack.encode(told)) == bid(1, 1, 100)
    *above, name = path
    (told[above[0]] if above else told)[name] = code
    with pytest.raises(msgspec.ValidationError, match=r"ASCII|length"):
        decode_command(msgspec.msgpack.encode(told))


@pytest.mark.parametrize("code", ["", "a\n", "a\nb", "\x7f", "\x00", "ä", "a" * 41])
def test_a_code_is_up_to_forty_printable_letters_of_ascii(code: str) -> None:
    told = msgspec.to_builtins(CancelOrder(1, client_order_id="a"))
    with pytest.raises(msgspec.ValidationError, match=r"regex|length"):
        decode_command(msgspec.msgpack.encode({**told, "client_order_id": code}))


@pytest.mark.parametrize("cls", EVENTS, ids=lambda cls: cls.__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_every_event_comes_back_as_it_was_and_encodes_the_same(
    cls: type[msgspec.Struct], data: st.DataObject
) -> None:
    event = data.draw(of_type(cls))
    written = encode(event)
    read = decode_event(written)
    assert type(read) is cls
    assert read == event
    assert encode(read) == written


def test_the_bytes_of_a_word_never_change() -> None:
    """A log outlives the software: these bytes stand in logs already."""
    assert encode(Tick()) == b"\x81\xa4type\xa4tick"
    assert (
        encode(CancelOrder(3, client_order_id="é")) == b"\x83\xa4type\xaccancel_order\xa7account\x03"
        b"\xafclient_order_id\xa2\xc3\xa9"
    )
    assert (
        encode(Rejected(RejectReason.UNKNOWN_ORDER, "order_id")) == b"\x83\xa4type\xa8rejected"
        b"\xa6reason\xcc\xcd\xa5field\xa8order_id"
    )
    assert (
        encode(OrderAccepted(1, 2))
        == b"\x83\xa4type\xaeorder_accepted\xa8order_id\x01\xafreserved_micros\x02"
    )


def test_equal_catalogues_are_equal_bytes_and_states_in_whatever_order_they_were_written() -> None:
    def era(sources: dict[str, str]) -> OpenEra:
        zone = msgspec.structs.replace(SMALL_VENUE.zones[0], sources=sources)
        venue = msgspec.structs.replace(SMALL_VENUE, zones=(zone, *SMALL_VENUE.zones[1:]))
        return open_era(venue=venue)

    one, other = era({"a": "x", "b": "y"}), era({"b": "y", "a": "x"})
    assert one == other
    assert encode(one) == encode(other)
    hashes = set()
    for opening in (one, other):
        engine = Engine()
        engine.apply(START_NS, opening)
        hashes.add(engine.state_hash())
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"type": "enter_order"}, "missing required field `account`"),
        ({"type": "cancel_order", "account": 2**63}, "account"),
        ({"type": "cancel_order", "account": 1, "client_order_id": ""}, "client_order_id"),
        ({"type": "cancel_order", "account": 1, "client_order_id": "x" * 41}, "client_order_id"),
        ({"type": "cancel_order", "account": 1, "colour": 1}, "unknown field `colour`"),
        ({"type": "cancel_order", "account": 1.0}, "account"),
        ({"type": "buy"}, "buy"),
        ({"account": 1}, "type"),
    ],
)
def test_what_is_no_command_is_refused_by_the_name_of_what_is_wrong(fields: object, said: str) -> None:
    with pytest.raises(msgspec.DecodeError, match=said):
        decode_command(msgspec.msgpack.encode(fields))


def test_an_event_is_no_command_and_a_command_no_event() -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_command(encode(OrderAccepted(1, 2)))
    with pytest.raises(msgspec.DecodeError):
        decode_event(encode(Tick()))


def test_what_is_signed_is_everything_but_the_signature() -> None:
    deposit = Deposit(1, 5, authority=AUTHORITY)
    signed = msgspec.structs.replace(
        deposit, authority=msgspec.structs.replace(AUTHORITY, signature=b"s" * 64)
    )
    assert signed_bytes(signed) == signed_bytes(deposit)
    other_reason = Authority(AUTHORITY.key, AUTHORITY.signed_ns, "another")
    for changed in (Deposit(1, 6, authority=AUTHORITY), Deposit(1, 5, authority=other_reason)):
        assert signed_bytes(changed) != signed_bytes(deposit)
    with pytest.raises(ValueError, match="names no authority"):
        signed_bytes(Deposit(1, 5))
    assert not signature_holds(signed)
    assert not signature_holds(Deposit(1, 5))


def record(command: AnyCommand, events: tuple[AnyEvent, ...], salt: bytes = bytes(16)) -> Record:
    raw = tuple(msgspec.Raw(encode(event)) for event in events)
    return Record(7, 99, salt, msgspec.Raw(encode(command)), raw)


EVENTS_OF_ONE = (OrderAccepted(1, 2), OrderAccepted(2, 2), OrderAccepted(3, 2))


def test_a_record_is_decoded_as_it_was_made() -> None:
    made = record(bid(1, 2, 3), EVENTS_OF_ONE)
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=Record)
    assert (read.parts, read.salt) == (made.parts, made.salt)
    known = decoded(read)
    assert (known.sequence, known.time_ns, known.command, known.events) == (
        7,
        99,
        bid(1, 2, 3),
        EVENTS_OF_ONE,
    )


@given(salts=st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=4, unique=True))
def test_every_part_has_a_salt_of_its_own(salts: list[bytes]) -> None:
    parts = [part_salt(salt, index) for salt in salts for index in range(40)]
    assert len(set(parts)) == len(parts)
    assert {len(salt) for salt in parts} == {16}
    assert not set(parts) & set(salts)


def test_equal_parts_are_hashed_apart() -> None:
    assert part_hash(part_salt(bytes(16), 1), b"part") != part_hash(part_salt(bytes(16), 2), b"part")


@pytest.mark.parametrize("count", range(4))
def test_whatever_changes_in_a_record_changes_its_root_or_its_entry(count: int) -> None:
    events = EVENTS_OF_ONE[:count]
    made = record(bid(1, 2, 3), events)
    others = [
        record(bid(1, 2, 4), events),
        record(bid(1, 2, 3, side=Side.SELL), events),
        record(bid(1, 2, 3), events, bytes(15) + b"\x01"),
        record(bid(1, 2, 3), (*events, OrderAccepted(9, 9))),
        *(
            record(bid(1, 2, 3), (*events[:at], OrderAccepted(9, 9), *events[at + 1 :]))
            for at in range(count)
        ),
        *(record(bid(1, 2, 3), (*events[:at], *events[at + 1 :])) for at in range(count)),
        *(record(bid(1, 2, 3), events[::-1]) for _ in range(count > 1)),
    ]
    roots = {record_root(made), *map(record_root, others)}
    assert len(roots) == 1 + len(others)
    entry = entry_of(made)
    assert len(entry) == 48
    assert entry[16:] == record_root(made)
    for changed in (msgspec.structs.replace(made, sequence=8), msgspec.structs.replace(made, time_ns=98)):
        assert entry_of(changed) != entry
        assert record_root(changed) == record_root(made)


def test_a_root_needs_a_leaf() -> None:
    with pytest.raises(ValueError, match="at least its command"):
        root_of([])
