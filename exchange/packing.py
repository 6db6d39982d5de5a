"""Plain orders from their bytes, and what comes of orders to its bytes, without the structs of the words.

The bytes are the canonical ones of `schemas.codec`, and so is the meaning. Most commands are hourly limit
orders, cancels and replaces; for these it pays to go without. All else is left to the codec.
"""

from typing import Final

from librt.strings import BytesWriter, read_i16_be, read_i32_be, read_i64_be, write_i32_be, write_i64_be
from mypy_extensions import i32, i64, u8

from exchange import ENGINE_BUILD
from exchange.build import COMPILED
from exchange.slots import (
    CancelOrder,
    Command,
    EnterOrder,
    OrderAccepted,
    OrderEnded,
    OrderReplaced,
    ReplaceOrder,
    Requirement,
    Traded,
    requirement_of,
    told,
)
from schemas import commands
from schemas.codec import encode

READS_PLAIN_ORDERS: Final = ENGINE_BUILD == COMPILED
"""Whether it pays to read them here first: interpreted, the codec is quicker."""

CODE_MAX: Final = 40
_REQUIREMENTS_MAX: Final = 10_000


class Submitted:
    """A command as it came from a client, and the client's number for it."""

    __slots__ = ("command", "correlation")

    def __init__(self, correlation: int, command: Command) -> None:
        self.correlation = correlation
        self.command = command


class OtherFormError(Exception):
    """The bytes are not those of a plain order; what they are only the codec can say."""


def submitted(frame: bytes) -> Submitted | None:
    """Return the plain order that the frame submits, None if it is any other frame."""
    reader = _Reader(frame)
    try:
        reader.expect(_SUBMIT)
        correlation = reader.integer()
        return Submitted(correlation, _command(reader))
    except (OtherFormError, IndexError):
        return None


def unpacked(data: bytes) -> Command | None:
    """Return the plain order whose canonical bytes these are, None if they are anything else."""
    try:
        return _command(_Reader(data))
    except (OtherFormError, IndexError):
        return None


def bytes_of(command: commands.AnyCommand | Command) -> bytes:
    """Return the canonical bytes of a command."""
    if isinstance(command, Command):
        assert command.packed
        return command.packed
    return encode(command)


def packed(event: object) -> bytes:
    """Return the canonical bytes of an event as the engine has it."""
    if isinstance(event, OrderAccepted):
        out = BytesWriter()
        _field(out, _ACCEPTED, event.order_id)
        _field(out, _RESERVED, event.reserved_micros)
        return out.getvalue()
    if isinstance(event, OrderEnded):
        return _packed_end(event)
    if isinstance(event, Traded):
        return _packed_trade(event)
    if isinstance(event, OrderReplaced):
        return _packed_replace(event)
    return encode(told(event))


# -- reading ---------------------------------------------------------------------------------------------


class _Reader:
    """Bytes, and how far they are read. Beyond their end an `IndexError` is raised."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at: i64 = 0

    def meets(self, words: bytes) -> bool:
        """Pass over these bytes if they come next, and say whether they do."""
        data, at = self.data, self.at
        size: i64 = len(words)
        if at + size > len(data):
            return False
        done: i64 = 0
        while done + 8 <= size:
            if read_i64_be(data, at + done) != read_i64_be(words, done):
                return False
            done += 8
        while done < size:
            if data[at + done] != words[done]:
                return False
            done += 1
        self.at = at + size
        return True

    def expect(self, words: bytes) -> None:
        """Pass over these bytes.

        Raises:
            OtherFormError: others come next.
        """
        if not self.meets(words):
            raise OtherFormError

    def integer(self) -> i64:
        """Return the integer that comes next, in its shortest form.

        Raises:
            OtherFormError: it is none, is longer than need be, or is beyond 64 bits with a sign.
        """
        data, at = self.data, self.at
        head: i64 = data[at]
        value: i64
        least: i64
        if head < 0x80:
            self.at = at + 1
            return head
        if head >= 0xE0:
            self.at = at + 1
            return head - 0x100
        if head == 0xCC:
            value, least, size = i64(data[at + 1]), 0x80, i64(2)
        elif head == 0xCD:
            value, least, size = i64(read_i16_be(data, at + 1)) & 0xFFFF, 0x100, i64(3)
        elif head == 0xCE:
            value, least, size = i64(read_i32_be(data, at + 1)) & 0xFFFFFFFF, 0x10000, i64(5)
        elif head == 0xCF:
            value, least, size = read_i64_be(data, at + 1), 0x100000000, i64(9)
        else:
            # Negative numbers of more than one byte are no plain order's.
            raise OtherFormError
        if value < least:
            raise OtherFormError
        self.at = at + size
        return value

    def code(self) -> str:
        """Return the code that comes next.

        Raises:
            OtherFormError: it is no text of 1 to 40 printable ASCII characters in its shortest form.
        """
        data, at = self.data, self.at
        head: i64 = data[at]
        start: i64
        size: i64
        if 0xA1 <= head <= 0xBF:
            start, size = at + 1, head - 0xA0
        elif head == 0xD9:
            start, size = at + 2, i64(data[at + 1])
            if not 32 <= size <= CODE_MAX:
                raise OtherFormError
        else:
            raise OtherFormError
        end = start + size
        place = start
        while place < end:
            if not 0x20 <= data[place] <= 0x7E:
                raise OtherFormError
            place += 1
        self.at = end
        return data[start:end].decode("ascii")

    def pass_code(self) -> None:
        """Pass over the code that comes next, whatever is in it; what is none leads anywhere."""
        head: i64 = self.data[self.at]
        self.at += 2 + i64(self.data[self.at + 1]) if head == 0xD9 else head - 0x9F

    def finish(self) -> None:
        """See that nothing is left.

        Raises:
            OtherFormError: something is.
        """
        if self.at != len(self.data):
            raise OtherFormError


def _command(reader: _Reader) -> Command:
    """Return the plain order that fills the rest of what is read."""
    start = reader.at
    fields: i64 = reader.data[start]
    command: Command
    if fields == 0xDE:
        reader.at = start + 3
        left = i64(read_i16_be(reader.data, start + 1))
        reader.expect(_ENTER)
        command = _enter(reader, left - 2)
    else:
        reader.at = start + 1
        left = fields - 0x80
        if reader.meets(_CANCEL):
            command = _cancel(reader, left - 2)
        else:
            reader.expect(_REPLACE)
            command = _replace(reader, left - 2)
    reader.finish()
    command.packed = reader.data[start:]
    return command


def _enter(reader: _Reader, left: i64) -> EnterOrder:
    account = reader.integer()
    reader.expect(_CLIENT_ORDER_ID)
    client_order_id = reader.code()
    reader.expect(_VALID_UNTIL)
    valid_until_ns = reader.integer()
    is_bid = reader.meets(_BUY)
    if not is_bid:
        reader.expect(_SELL)
    class_code = reader.code()
    reader.expect(_DELIVERY_HOUR)
    delivery_hour = reader.integer()
    reader.expect(_LOTS)
    lots = reader.integer()
    reader.expect(_PRICE)
    price_ticks = reader.integer()
    need: Requirement | None = None
    site: i64 = 0
    carbon: str | None = None
    if is_bid:
        reader.expect(_REQUIREMENT)
        need = _requirement(reader)
        left -= 8
    else:
        reader.expect(_SITE)
        site = reader.integer()
        reader.expect(_CARBON)
        carbon = reader.code()
        left -= 9
    # What is 0 or empty by default is left out where it is so.
    if left or price_ticks == 0 or (not is_bid and site == 0):
        raise OtherFormError
    return EnterOrder(
        account,
        client_order_id,
        valid_until_ns,
        is_bid,
        class_code,
        delivery_hour,
        1,
        lots,
        price_ticks,
        need,
        site,
        carbon,
    )


_requirements: dict[bytes, Requirement] = {}


def _requirement(reader: _Reader) -> Requirement:
    """Return the requirement that comes next; the same bytes are the same object."""
    data, start = reader.data, reader.at
    reader.expect(_ZONE)
    # Its four codes need not be read if these bytes came before.
    for key in _GRADES:
        reader.pass_code()
        reader.expect(key)
    reader.pass_code()
    end = reader.at
    known = _requirements.get(data[start:end])
    if known is not None:
        return known
    reader.at = start
    reader.expect(_ZONE)
    zone = reader.code()
    codes = []
    for key in _GRADES:
        reader.expect(key)
        codes.append(reader.code())
    if len(_requirements) >= _REQUIREMENTS_MAX:
        _requirements.clear()
    known = requirement_of(commands.Requirement(zone, codes[0], codes[1], codes[2]))
    _requirements[data[start : reader.at]] = known
    return known


def _cancel(reader: _Reader, left: i64) -> CancelOrder:
    account = reader.integer()
    order_id, client_order_id = _name(reader)
    if left != 1:
        raise OtherFormError
    return CancelOrder(account, order_id, client_order_id)


def _replace(reader: _Reader, left: i64) -> ReplaceOrder:
    account = reader.integer()
    order_id, client_order_id = _name(reader)
    reader.expect(_VALID_UNTIL)
    valid_until_ns = reader.integer()
    reader.expect(_LOTS)
    lots = reader.integer()
    reader.expect(_PRICE)
    price_ticks = reader.integer()
    if left != 4:
        raise OtherFormError
    return ReplaceOrder(account, order_id, client_order_id, valid_until_ns, lots, price_ticks)


def _name(reader: _Reader) -> tuple[i64, str | None]:
    """Return the one id by which an order is named."""
    if reader.meets(_ORDER_ID):
        order_id = reader.integer()
        if order_id == 0:
            raise OtherFormError
        return order_id, None
    reader.expect(_CLIENT_ORDER_ID)
    return 0, reader.code()


# -- writing ---------------------------------------------------------------------------------------------


def _integer(out: BytesWriter, value: int) -> None:
    """Write an integer in its shortest form."""
    number: i64 = value
    if number >= 0:
        if number < 0x80:
            out.append(u8(number))
        elif number < 0x100:
            out.append(u8(0xCC))
            out.append(u8(number))
        elif number < 0x10000:
            out.append(u8(0xCD))
            out.append(u8(number >> 8))
            out.append(u8(number & 0xFF))
        elif number < 0x100000000:
            out.append(u8(0xCE))
            write_i32_be(out, i32(number if number < 0x80000000 else number - 0x100000000))
        else:
            out.append(u8(0xCF))
            write_i64_be(out, number)
    elif number >= -0x20:
        out.append(u8(number + 0x100))
    elif number >= -0x80:
        out.append(u8(0xD0))
        out.append(u8(number + 0x100))
    elif number >= -0x8000:
        out.append(u8(0xD1))
        out.append(u8((number >> 8) + 0x100))
        out.append(u8(number & 0xFF))
    elif number >= -0x80000000:
        out.append(u8(0xD2))
        write_i32_be(out, i32(number))
    else:
        out.append(u8(0xD3))
        write_i64_be(out, number)


def _field(out: BytesWriter, key: bytes, value: int) -> None:
    out.write(key)
    _integer(out, value)


def _text(out: BytesWriter, text: str) -> None:
    """Write a text of fewer than 256 bytes."""
    data = text.encode()
    size: i64 = len(data)
    if size >= 32:
        assert size < 256
        out.append(u8(0xD9))
        out.append(u8(size))
    else:
        out.append(u8(0xA0 + size))
    out.write(data)


def _packed_end(event: OrderEnded) -> bytes:
    out = BytesWriter()
    _field(out, _ENDED, event.order_id)
    _field(out, _ACCOUNT, event.account)
    _field(out, _LEAVES, event.leaves_lots)
    _field(out, _RELEASED, event.released_micros)
    out.write(_REASON)
    _text(out, event.reason)
    return out.getvalue()


def _packed_replace(event: OrderReplaced) -> bytes:
    out = BytesWriter()
    _field(out, _REPLACED, event.order_id)
    _field(out, _ACCOUNT, event.account)
    _field(out, _LOTS, event.lots)
    _field(out, _PRICE, event.price_ticks)
    _field(out, _LEAVES, event.leaves_lots)
    _field(out, _RESERVED, event.reserved_micros)
    return out.getvalue()


def _packed_trade(event: Traded) -> bytes:
    out = BytesWriter()
    _field(out, _TRADED, event.trade_id)
    out.write(_CLASS_CODE)
    _text(out, event.class_code)
    _field(out, _DELIVERY_HOUR, event.delivery_hour)
    _field(out, _PRICE, event.price_ticks)
    _field(out, _LOTS, event.lots)
    if event.taker > 0:
        out.write(_TAKER_BUY)
    elif event.taker < 0:
        out.write(_TAKER_SELL)
    else:
        out.write(_TAKER_NONE)
    _field(out, _BID, event.bid_order_id)
    _field(out, _ASK, event.ask_order_id)
    _field(out, _BUYER, event.buyer)
    _field(out, _SELLER, event.seller)
    _field(out, _SITE, event.site)
    fields = _TRADED_FIELDS
    fields += _unless_0(out, _BLOCK, event.block)
    fields += _unless_0(out, _POSITION, event.position)
    _field(out, _NOTIONAL, event.notional_micros)
    fields += _unless_0(out, _BUYER_FEE, event.buyer_fee_micros)
    fields += _unless_0(out, _BUYER_RELEASED, event.buyer_released_micros)
    fields += _unless_0(out, _BOND, event.bond_micros)
    fields += _unless_0(out, _SELLER_FEE, event.seller_fee_micros)
    fields += _unless_0(out, _SELLER_RELEASED, event.seller_released_micros)
    # A struct that may have more than 15 fields has its count in two bytes.
    out[2] = u8(fields)
    return out.getvalue()


def _unless_0(out: BytesWriter, key: bytes, value: int) -> int:
    """Write a field whose default is 0, and return how many were written."""
    if value == 0:
        return 0
    _field(out, key, value)
    return 1


# -- the constant parts ----------------------------------------------------------------------------------


def _key(name: str) -> bytes:
    return bytes([0xA0 + len(name)]) + name.encode()


def _head(tag: str, first: str) -> bytes:
    """Return what stands before the first field's value."""
    return _key("type") + _key(tag) + _key(first)


_TRADED_FIELDS: Final = 13

_ACCOUNT: Final = _key("account")
_ASK: Final = _key("ask_order_id")
_BID: Final = _key("bid_order_id")
_BLOCK: Final = _key("block")
_BOND: Final = _key("bond_micros")
_BUYER: Final = _key("buyer")
_BUYER_FEE: Final = _key("buyer_fee_micros")
_BUYER_RELEASED: Final = _key("buyer_released_micros")
_CARBON: Final = _key("carbon")
_CLASS_CODE: Final = _key("class_code")
_CLIENT_ORDER_ID: Final = _key("client_order_id")
_DELIVERY_HOUR: Final = _key("delivery_hour")
_LEAVES: Final = _key("leaves_lots")
_LOTS: Final = _key("lots")
_NOTIONAL: Final = _key("notional_micros")
_ORDER_ID: Final = _key("order_id")
_POSITION: Final = _key("position")
_PRICE: Final = _key("price_ticks")
_REASON: Final = _key("reason")
_RELEASED: Final = _key("released_micros")
_REQUIREMENT: Final = _key("requirement")
_RESERVED: Final = _key("reserved_micros")
_SELLER: Final = _key("seller")
_SELLER_FEE: Final = _key("seller_fee_micros")
_SELLER_RELEASED: Final = _key("seller_released_micros")
_SITE: Final = _key("site")
_VALID_UNTIL: Final = _key("valid_until_ns")
_ZONE: Final = b"\x84" + _key("zone")
_GRADES: Final = [_key("latency"), _CARBON, _key("security")]

_BUY: Final = _key("side") + _key("buy") + _CLASS_CODE
_SELL: Final = _key("side") + _key("sell") + _CLASS_CODE
_TAKER_BUY: Final = _key("taker") + _key("buy")
_TAKER_SELL: Final = _key("taker") + _key("sell")
_TAKER_NONE: Final = _key("taker") + b"\xc0"

_SUBMIT: Final = b"\x93\x02"
_ENTER: Final = _head("enter_order", "account")
_CANCEL: Final = _head("cancel_order", "account")
_REPLACE: Final = _head("replace_order", "account")
_ACCEPTED: Final = b"\x83" + _head("order_accepted", "order_id")
_ENDED: Final = b"\x86" + _head("order_ended", "order_id")
_REPLACED: Final = b"\x87" + _head("order_replaced", "order_id")
_TRADED: Final = b"\xde\0\0" + _head("traded", "trade_id")
