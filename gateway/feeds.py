"""What the channels and snapshots show, and how a message of a channel is encoded."""

from collections.abc import Iterator
from typing import Any

import msgspec

from exchange.contract import symbol
from exchange.depth import Level, Supply
from exchange.quantity import gpus_of, price_of
from gateway.state import State
from schemas.commands import CellPrice, Side
from schemas.events import AnyEvent, CallCleared, ContractClosed, PhaseChanged, trades_of
from schemas.link import Indicated
from schemas.wire import Message, Notification

PUBLIC_CHANNELS = ("trades", "status", "auction")
"""The channels that tell everybody of events; books are apart."""

_encoder = msgspec.json.Encoder()


def notification(channel: str, data: Any) -> bytes:
    """Return the encoded message of a channel."""
    return _encoder.encode(Notification(jsonrpc="2.0", method="subscription", params=Message(channel, data)))


def private_channel(name: str, account: int) -> str:
    """Return the key under which an account's own channel is kept."""
    return f"{name}@{account}"


def told_to_all(state: State, event: AnyEvent) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what the public channels tell of an event: trades, phases of contracts, clearings of calls."""
    for trade in trades_of(event):
        yield (
            "trades",
            {
                "trade_id": trade.trade_id,
                "contract": symbol(trade.class_code, trade.delivery_hour),
                "price": price_of(trade.price_ticks, state.tick_micros),
                "gpus": gpus_of(trade.lots, state.lot_eighths[trade.class_code]),
                "taker": trade.taker,
                "block": trade.block != 0,
                "time": state.time_ns,
            },
        )
    match event:
        case PhaseChanged() | ContractClosed():
            phase = event.phase.value if isinstance(event, PhaseChanged) else "closed"
            contract = symbol(event.class_code, event.delivery_hour)
            yield "status", {"contract": contract, "phase": phase, "time": state.time_ns}
        case CallCleared(class_code, delivery_hour, lots, prices):
            contract = symbol(class_code, delivery_hour)
            yield "auction", _call_row(state, class_code, contract, False, lots, prices, state.time_ns)


def indication(state: State, told: Indicated) -> dict[str, Any]:
    """Return what the channel `auction` tells of a call that collects."""
    contract = symbol(told.class_code, told.delivery_hour)
    return _call_row(state, told.class_code, contract, True, told.lots, told.prices, told.time_ns)


def _call_row(
    state: State,
    class_code: str,
    contract: str,
    indicative: bool,
    lots: int,
    prices: tuple[CellPrice, ...],
    time_ns: int,
) -> dict[str, Any]:
    return {
        "contract": contract,
        "indicative": indicative,
        "gpus": gpus_of(lots, state.lot_eighths[class_code]),
        "prices": [
            {
                "cell": Supply(one.zone, one.carbon, one.security)._asdict(),
                "price": price_of(one.price_ticks, state.tick_micros),
                "lowest": price_of(one.lowest_ticks, state.tick_micros),
                "highest": price_of(one.highest_ticks, state.tick_micros),
            }
            for one in prices
        ],
        "time": time_ns,
    }


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
        "phase": state.phase(*contract),
        "seq": state.sequence,
        "time": state.time_ns,
        "bids": [
            level_row(state, contract[0], level, lots) for level, lots in rows if level.side is Side.BUY
        ],
        "asks": [
            level_row(state, contract[0], level, lots) for level, lots in rows if level.side is Side.SELL
        ],
    }
