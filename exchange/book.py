"""The order book of one contract, by cell, price and time; sites and their hours; standing offers."""

from typing import Final

from sortedcontainers import SortedList

from exchange.eligibility import Eligibility
from exchange.order import Account, Order
from exchange.slots import Requirement
from schemas.commands import CertifySite
from schemas.venue import AcceleratorClass

PRE_OPEN: Final = 0
CALL: Final = 1
CLEARING: Final = 2
CONTINUOUS: Final = 3
HALTED: Final = 4

CHUNK_BITS: Final = 12
CHUNK: Final = 4096
MAX_ORDER_ID: Final = 2**60
MANY_LEVELS: Final = 64
NEAR_MASK: Final = 511
NEAR_HOURS: Final = 1023


class Level:
    """The orders of one price in one cell, from the oldest to the newest, and the levels next to it."""

    __slots__ = ("better", "key", "newest", "oldest", "worse")

    def __init__(self, key: int) -> None:
        self.key = key
        self.oldest: Order | None = None
        self.newest: Order | None = None
        self.better: Level | None = None
        self.worse: Level | None = None

    def append(self, order: Order) -> None:
        """Put the order at the end."""
        last = self.newest
        order.older = last
        order.newer = None
        if last is None:
            self.oldest = order
        else:
            last.newer = order
        self.newest = order
        order.level = self

    def unlink(self, order: Order) -> None:
        """Take the order out."""
        older, newer = order.older, order.newer
        if older is None:
            self.oldest = newer
        else:
            older.newer = newer
        if newer is None:
            self.newest = older
        else:
            newer.older = older
        order.older = order.newer = None
        order.level = None


class CellSide:
    """One side of one cell. A level's key is its price, negative for bids: the least is the best.

    A bids' side has the table of the supply cells that may serve it, an asks' side its reference price.
    Levels hang one on the other, the best first. Where there are many, they are in an index too.
    """

    __slots__ = ("best", "cell", "count", "index", "is_bid", "reference", "served_by")

    def __init__(self, cell: int, is_bid: bool, served_by: bytes) -> None:
        self.cell = cell
        self.is_bid = is_bid
        self.served_by = served_by
        self.reference: Reference | None = None
        self.best: Level | None = None
        self.count = 0
        self.index: LevelIndex | None = None

    def add(self, order: Order) -> None:
        """Put the order behind those of its price."""
        key = -order.price if self.is_bid else order.price
        level = self.best
        if level is None or level.key != key:
            index = self.index
            level = self._level(key) if index is None else index.near[key & NEAR_MASK]
            if level is None or level.key != key:
                assert index is not None
                level = self._indexed(index, key)
        level.append(order)

    def _level(self, key: int) -> Level:
        """Return the level among few, which appears if there is none."""
        better: Level | None = None
        level = self.best
        while level is not None and level.key < key:
            better = level
            level = level.worse
        if level is None or level.key != key:
            level = self._appear(key, better)
            if self.count > MANY_LEVELS:
                self.index = LevelIndex(self.levels())
        return level

    def _indexed(self, index: "LevelIndex", key: int) -> Level:
        """Return the level among many, which appears if there is none."""
        level = index.levels.get(key)
        if level is None:
            level = self._appear(key, index.better(key))
            index.add(level)
        index.near[key & NEAR_MASK] = level
        return level

    def _appear(self, key: int, better: Level | None) -> Level:
        """Let a level appear behind the one that is next better, None if none is."""
        level = Level(key)
        if better is None:
            worse = self.best
            self.best = level
        else:
            worse = better.worse
            better.worse = level
            level.better = better
        if worse is not None:
            worse.better = level
            level.worse = worse
        self.count += 1
        return level

    def _vanish(self, level: Level) -> None:
        """Let a level go that has become empty."""
        better, worse = level.better, level.worse
        if better is None:
            self.best = worse
        else:
            better.worse = worse
        if worse is not None:
            worse.better = better
        # Else levels that have gone would hold one another, for the collector to find.
        level.better = level.worse = None
        self.count -= 1
        if self.index is not None:
            self.index.remove(level)

    def remove(self, order: Order) -> None:
        """Take the order out."""
        level = order.level
        assert level is not None
        level.unlink(order)
        if level.oldest is None:
            self._vanish(level)

    def orders(self) -> list[Order]:
        """Return what rests, best first."""
        found: list[Order] = []
        level = self.best
        while level is not None:
            order = level.oldest
            while order is not None:
                found.append(order)
                order = order.newer
            level = level.worse
        return found

    def levels(self) -> list[Level]:
        """Return the levels, best first."""
        found: list[Level] = []
        level = self.best
        while level is not None:
            found.append(level)
            level = level.worse
        return found


class LevelIndex:
    """The levels of a side by key: of any one, and of the next better."""

    __slots__ = ("keys", "levels", "near")

    def __init__(self, levels: list[Level]) -> None:
        self.levels: dict[int, Level] = {}
        for level in levels:
            self.levels[level.key] = level
        self.keys: SortedList = SortedList(self.levels)
        # Those found last by the end of their key: no number is made for them.
        self.near: list[Level | None] = [None] * (NEAR_MASK + 1)

    def better(self, key: int) -> Level | None:
        """Return the level next better than this key, None if there is none."""
        place: int = self.keys.bisect_left(key)
        return None if place == 0 else self.levels[self.keys[place - 1]]

    def add(self, level: Level) -> None:
        """Take in a level."""
        self.levels[level.key] = level
        self.keys.add(level.key)

    def remove(self, level: Level) -> None:
        """Let a level go."""
        key = level.key
        del self.levels[key]
        self.keys.remove(key)
        self.near[key & NEAR_MASK] = None


class _Lots:
    """Lots traded at one price, and those traded next."""

    __slots__ = ("following", "lots", "price")

    def __init__(self, price: int, lots: int) -> None:
        self.price = price
        self.lots = lots
        self.following: _Lots | None = None


class Reference:
    """A supply cell's reference price: the average of its last lots since its last call, or that call's."""

    __slots__ = ("lots", "newest", "oldest", "ticks", "value")

    def __init__(self) -> None:
        self.ticks = 0
        self.oldest: _Lots | None = None
        self.newest: _Lots | None = None
        self.lots = 0
        self.value = 0

    def trade(self, price: int, lots: int, window: int) -> None:
        """Take in a trade; the average is over the last `window` lots, rounded down."""
        traded = _Lots(price, lots)
        last = self.newest
        if last is None:
            self.oldest = traded
        else:
            last.following = traded
        self.newest = traded
        total, value = self.lots + lots, self.value + price * lots
        while total > window:
            oldest = self.oldest
            assert oldest is not None
            out = min(oldest.lots, total - window)
            total -= out
            value -= out * oldest.price
            oldest.lots -= out
            if oldest.lots == 0:
                self.oldest = oldest.following
        self.lots = total
        self.value = value
        self.ticks = value // total

    def call(self, price: int) -> None:
        """Take in the price of a call: what was traded before counts no more."""
        self.oldest = self.newest = None
        self.lots = 0
        self.value = 0
        self.ticks = price

    def trades(self) -> list[tuple[int, int]]:
        """Return price and lots of what is averaged, the oldest first."""
        found: list[tuple[int, int]] = []
        traded = self.oldest
        while traded is not None:
            found.append((traded.price, traded.lots))
            traded = traded.following
        return found


class Book:
    """All that is open in one contract, its phase, and the prices that bound it.

    `asks` and `bids` are the sides in the order in which their cells appeared, also by cell.
    """

    __slots__ = (
        "ask_cells",
        "asks",
        "bid_cells",
        "bids",
        "blocks",
        "call_hour",
        "calls_in_hour",
        "class_code",
        "collar_high",
        "collar_low",
        "collar_stale",
        "hour",
        "listed",
        "lists_asks",
        "phase",
        "phase_since_ns",
        "recent_asks",
        "recent_bids",
    )

    def __init__(self, listed: "Class", hour: int) -> None:
        self.listed = listed
        self.class_code = listed.code
        self.hour = hour
        self.phase = CONTINUOUS
        self.phase_since_ns = 0
        self.bids: list[CellSide] = []
        self.asks: list[CellSide] = []
        self.bid_cells: dict[int, CellSide] = {}
        self.ask_cells: dict[int, CellSide] = {}
        self.recent_bids: CellSide | None = None
        self.recent_asks: CellSide | None = None
        self.blocks: dict[int, Order] = {}
        # Sites have their asks at hand only from the first block on, which may need them.
        self.lists_asks = False
        self.collar_stale = True
        self.collar_low = 0
        self.collar_high = 0
        self.call_hour = 0
        self.calls_in_hour = 0

    def side(self, is_bid: bool, cell: int, eligibility: Eligibility) -> CellSide:
        """Return the side of a cell, made now if nothing was entered there before."""
        recent = self.recent_bids if is_bid else self.recent_asks
        if recent is not None and recent.cell == cell:
            return recent
        cells = self.bid_cells if is_bid else self.ask_cells
        found = cells.get(cell)
        if found is None:
            found = CellSide(cell, is_bid, eligibility.served_by(cell) if is_bid else b"")
            cells[cell] = found
            if is_bid:
                self.bids.append(found)
            else:
                self.asks.append(found)
        if is_bid:
            self.recent_bids = found
        else:
            self.recent_asks = found
        return found

    def list_asks(self) -> None:
        """From now on let each site have its asks at hand."""
        if self.lists_asks:
            return
        self.lists_asks = True
        for side in self.asks:
            for ask in side.orders():
                assert ask.site_hour is not None
                ask.site_hour.list_ask(ask)

    def resting(self) -> list[Order]:
        """Return every hourly order that rests."""
        found: list[Order] = []
        for side in self.bids:
            found += side.orders()
        for side in self.asks:
            found += side.orders()
        return found

    def reference_ticks(self, side: CellSide | None) -> int:
        """Return the reference price of a supply cell, 0 if there is none."""
        reference = None if side is None else side.reference
        return self.listed.reference_ticks if reference is None else reference.ticks

    def moved_reference(self, side: CellSide) -> Reference:
        """Return the reference price of a supply cell that trades, to be changed."""
        self.collar_stale = True
        reference = side.reference
        if reference is None:
            reference = Reference()
            side.reference = reference
        return reference


class SiteHour:
    """A site's capacity in one hour, and what of it is sold or open.

    The hourly `asks` are counted; once a block was tried in the hour they are `listed` too. That list is
    `by_price`, then time, or None where some may have moved. `waiting` are the resting blocks of the hour
    that the site may serve at its best grade, best first, and some that have ended; None where not known.
    None of them has more than `longest` hours. `earlier` and `later` are the site's hours next to this one,
    once asked for.
    """

    __slots__ = (
        "asks",
        "by_price",
        "capacity",
        "earlier",
        "later",
        "listed",
        "longest",
        "open_asks",
        "open_runs",
        "sold",
        "waiting",
    )

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.sold = 0
        self.open_asks = 0
        self.open_runs = 0
        self.asks = 0
        self.listed: list[Order] | None = None
        self.by_price: list[Order] | None = None
        self.waiting: list[Order] | None = None
        self.longest = 0
        self.earlier: SiteHour | None = None
        self.later: SiteHour | None = None

    def list_ask(self, ask: Order) -> None:
        """Have an hourly ask at hand for blocks."""
        listed = self.listed
        if listed is None:
            self.listed = self.by_price = [ask]
        elif self.by_price is None:
            listed.append(ask)
        else:
            listed.insert(_place_of(ask, listed, len(listed)), ask)

    def remove(self, ask: Order) -> None:
        """Offer an hourly ask no more."""
        self.asks -= 1
        listed = self.listed
        if listed is None:
            return
        at = 0
        if self.by_price is None:
            while listed[at] is not ask:
                at += 1
        else:
            at = _place_of(ask, listed, len(listed))
        gone = listed.pop(at)
        assert gone is ask

    def best_first(self) -> list[Order]:
        """Return the listed asks by price, then time. It is not to be changed."""
        found = self.by_price
        if found is None:
            found = self.listed
            if found is None:
                return []
            # Few have moved since it was in order, so it is not sorted as a whole.
            for at in range(1, len(found)):
                ask, last = found[at], found[at - 1]
                if ask.price < last.price or (ask.price == last.price and ask.priority < last.priority):
                    found.pop(at)
                    found.insert(_place_of(ask, found, at), ask)
            self.by_price = found
        return found

    def lowest_ask(self) -> int:
        """Return the lowest price of a listed ask that blocks may meet, 0 if there is none."""
        found = self.by_price
        for ask in self.best_first() if found is None else found:
            if ask.exclusive is None:
                return ask.price
        return 0


def _place_of(ask: Order, listed: list[Order], until: int) -> int:
    """Return the place of an ask among the first `until`, which are by price, then time."""
    first, price, priority = 0, ask.price, ask.priority
    while first < until:
        middle = (first + until) >> 1
        other = listed[middle]
        if other.price < price or (other.price == price and other.priority < priority):
            first = middle + 1
        else:
            until = middle
    return first


def price_time(order: Order) -> tuple[int, int]:
    """Return the key by which asks are sorted: price, then time."""
    return (order.price, order.priority)


class Site:
    """A certified site."""

    __slots__ = (
        "account",
        "capacity",
        "carbon",
        "cell",
        "certificate",
        "from_hour",
        "hours",
        "listed",
        "number",
        "recent",
        "recent_carbon",
        "recent_cell",
        "recent_hour",
        "runs",
        "runs_by_price",
        "until_hour",
    )

    def __init__(self, certificate: CertifySite, listed: "Class", carbon: int, cell: int) -> None:
        self.certificate = certificate
        self.listed = listed
        self.number: int = certificate.site
        self.account: int = certificate.account
        self.capacity: int = certificate.capacity_lots
        self.from_hour: int = certificate.from_hour
        self.until_hour: int = certificate.until_hour
        # The rank of the best grade it may claim, and the cell it has with that.
        self.carbon = carbon
        self.cell = cell
        self.hours: dict[int, SiteHour] = {}
        self.recent_hour = 0
        self.recent: SiteHour | None = None
        self.recent_carbon = ""
        self.recent_cell = 0
        self.runs: dict[int, Order] = {}
        # None where one has moved.
        self.runs_by_price: list[Order] | None = None

    def add_run(self, run: Order) -> None:
        """Take in an open run."""
        self.runs[run.order_id] = run
        found = self.runs_by_price
        if found is None:
            return
        if len(found) > 2 * len(self.runs):
            # Most of them have ended.
            self.runs_by_price = None
        else:
            found.insert(_place_of(run, found, len(found)), run)

    def best_runs(self) -> list[Order]:
        """Return the open runs by price, then time, and some that have ended; the first is open."""
        found = self.runs_by_price
        if found is None:
            found = sorted(self.runs.values(), key=price_time)
            self.runs_by_price = found
        while found and found[0].leaves_lots == 0:
            found.pop(0)
        return found

    def at(self, hour: int) -> SiteHour | None:
        """Return what it has in an hour, None if nothing yet. The hour asked for last is at hand."""
        if hour == self.recent_hour and self.recent is not None:
            return self.recent
        found = self.hours.get(hour)
        if found is not None:
            self.recent_hour = hour
            self.recent = found
        return found

    def earlier_than(self, place: SiteHour, hour: int) -> SiteHour | None:
        """Return what it has in the hour before that of `place`, None if nothing yet."""
        found = place.earlier
        if found is None:
            found = self.hours.get(hour - 1)
            if found is not None:
                place.earlier = found
                found.later = place
        return found

    def later_than(self, place: SiteHour, hour: int) -> SiteHour | None:
        """Return what it has in the hour after that of `place`, None if nothing yet."""
        found = place.later
        if found is None:
            found = self.hours.get(hour + 1)
            if found is not None:
                place.later = found
                found.earlier = place
        return found

    def forget(self, hour: int) -> None:
        """Let go of an hour that is closed."""
        place = self.hours.pop(hour, None)
        if place is not None and place.later is not None:
            place.later.earlier = None
            place.later = None
        self.recent = None


class Class:
    """An accelerator class: its contracts that hold something, and the sites certified for it."""

    __slots__ = (
        "books",
        "code",
        "index",
        "near",
        "recent",
        "reference_ticks",
        "sites",
        "tick_lot_micros",
    )

    def __init__(self, listed: AcceleratorClass, index: int, tick_micros: int) -> None:
        self.code: str = listed.code
        self.index = index
        self.books: dict[int, Book] = {}
        self.sites: list[Site] = []
        # The book asked for last, and each by the end of its hour: no number is made for them.
        self.recent: Book | None = None
        self.near: list[Book | None] = [None] * (NEAR_HOURS + 1)
        self.reference_ticks: int = listed.reference_price_ticks or 0
        self.tick_lot_micros: int = tick_micros * listed.lot_eighths // 8

    def at(self, hour: int) -> Book | None:
        """Return the book of an hour, None if nothing was entered."""
        recent = self.recent
        if recent is not None and recent.hour == hour:
            return recent
        found = self.near[hour & NEAR_HOURS]
        if found is None or found.hour != hour:
            found = self.books.get(hour)
            if found is None:
                return None
            self.near[hour & NEAR_HOURS] = found
        self.recent = found
        return found

    def forget(self, hour: int) -> None:
        """Let go of a contract that is closed."""
        del self.books[hour]
        self.near[hour & NEAR_HOURS] = self.recent = None


class Listing:
    """A standing offer: its terms, the next hour to list, the open orders that it listed, its trades.

    `traded` are lots by delivery hour, of all orders that it listed; closed hours are forgotten now and then.
    """

    __slots__ = (
        "account",
        "carbon",
        "class_code",
        "from_hour",
        "hours",
        "is_bid",
        "is_over",
        "lots",
        "min_hours",
        "name",
        "next_hour",
        "offer_id",
        "open_orders",
        "price_curve",
        "requirement",
        "site",
        "traded",
        "until_hour",
        "valid_until_ns",
    )

    def __init__(
        self,
        offer_id: int,
        account: Account,
        name: str,
        valid_until_ns: int,
        is_bid: bool,
        class_code: str,
        from_hour: int,
        until_hour: int,
        hours: int,
        lots: int,
        price_curve: tuple[int, ...],
        requirement: Requirement | None,
        site: int,
        carbon: str | None,
        min_hours: int,
    ) -> None:
        self.offer_id = offer_id
        self.account = account
        self.name = name
        self.valid_until_ns = valid_until_ns
        self.is_bid = is_bid
        self.class_code = class_code
        self.from_hour = from_hour
        self.next_hour = from_hour
        self.until_hour = until_hour
        self.hours = hours
        self.lots = lots
        self.price_curve = price_curve
        self.requirement = requirement
        self.site = site
        self.carbon = carbon
        self.min_hours = min_hours
        self.is_over = False
        self.open_orders: dict[int, Order] = {}
        self.traded: dict[int, int] = {}

    def count_trade(self, hour: int, lots: int) -> None:
        """Count what an order that it listed has traded in an hour."""
        self.traded[hour] = self.traded.get(hour, 0) + lots

    def lots_at(self, hour: int) -> int:
        """Return what is left for its order from this hour on, where one of its hours has the least."""
        most = 0
        for one in range(hour, hour + self.hours):
            most = max(most, self.traded.get(one, 0))
        return self.lots - most

    def price_at(self, hour: int) -> int:
        """Return the curve's price in a delivery hour. The Unix epoch was a Thursday, 00:00."""
        return self.price_curve[(hour + 72) % 168 % len(self.price_curve)]

    def stretch_from(self, hour: int) -> int:
        """Return the first hour of its first stretch that begins at `hour` or later."""
        behind = hour - self.from_hour
        return self.from_hour if behind <= 0 else self.from_hour + -(-behind // self.hours) * self.hours


class _Chunk:
    """Orders of neighbouring numbers, and how many of them there are."""

    __slots__ = ("count", "orders")

    def __init__(self) -> None:
        self.count = 0
        self.orders: list[Order | None] = []


class Orders:
    """Orders by number, which ascend without a gap: found without making or hashing a number."""

    __slots__ = ("_chunks", "_last", "_last_index")

    def __init__(self) -> None:
        self._chunks: list[_Chunk] = [_Chunk()]
        self._last = self._chunks[0]
        self._last_index = 0

    def add(self, order: Order) -> None:
        """Take in the order with the next number."""
        index = order.order_id >> CHUNK_BITS
        while index > self._last_index:
            self._last = _Chunk()
            self._chunks.append(self._last)
            self._last_index += 1
        chunk = self._last
        missing = (order.order_id & (CHUNK - 1)) - len(chunk.orders)
        while missing > 0:
            chunk.orders.append(None)
            missing -= 1
        chunk.orders.append(order)
        chunk.count += 1

    def remove(self, order: Order) -> None:
        """Let an order go."""
        index = order.order_id >> CHUNK_BITS
        chunk = self._chunks[index]
        chunk.orders[order.order_id & (CHUNK - 1)] = None
        chunk.count -= 1
        if chunk.count == 0 and index < self._last_index:
            # What is left of a chunk whose orders have all ended is next to nothing.
            chunk.orders = []

    def get(self, order_id: int) -> Order | None:
        """Return the order, None if there is none of this number."""
        if not 0 < order_id < MAX_ORDER_ID:
            return None
        index = order_id >> CHUNK_BITS
        if index > self._last_index:
            return None
        orders = self._chunks[index].orders
        place = order_id & (CHUNK - 1)
        return orders[place] if place < len(orders) else None

    def all(self) -> list[Order]:
        """Return the orders by number."""
        return [order for chunk in self._chunks for order in chunk.orders if order is not None]
