"""What the channels and snapshots show, and how a message of a channel is encoded."""

from typing import Any

import msgspec

from exchange.contract import symbol
from exchange.depth import Level, Supply
from exchange.quantity import gpus_of, price_of
from gateway.state import State
from schemas.commands import Side
from schemas.wire import Message, Notification

_encoder = msgspec.json.Encoder()


def notification(channel: str, data: Any) -> bytes:
    """Return the encoded message of a channel."""
    return _encoder.encode(Notification(jsonrpc="2.0", method="subscription", params=Message(channel, data)))


def private_channel(name: str, account: int) -> str:
    """Return the key under which an account's own channel is kept."""
    return f"{name}@{account}"


def level_row(state: State, class_code: str, level: Level, lots: int) -> dict[str, Any]:
    """Return a level as the feeds show it."""
    if isinstance(level.cell, Supply):
        cell: Any = level.cell._asdict()
    else:
        cell = level.cell
    return {
        "side": level.side,
        "cell": cell,
        "price": price_of(level.price_ticks, state.tick_micros),
        "gpus": gpus_of(lots, state.lot_eighths[class_code]),
    }


def book_of(state: State, contract: tuple[str, int]) -> dict[str, Any]:
    """Return all levels of a contract, bids and asks best first."""
    levels = state.depth.levels.get(contract, {})
    rows = sorted(
        levels.items(), key=lambda row: -row[0].price_ticks if row[0].side is Side.BUY else row[0].price_ticks
    )
    return {
        "contract": symbol(*contract),
        "seq": state.sequence,
        "time": state.time_ns,
        "bids": [
            level_row(state, contract[0], level, lots) for level, lots in rows if level.side is Side.BUY
        ],
        "asks": [
            level_row(state, contract[0], level, lots) for level, lots in rows if level.side is Side.SELL
        ],
    }
