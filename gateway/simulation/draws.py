"""What the trace does not say is drawn from these tables, with a seed. README.md explains them.

A table is a sequence of (value, weight) with integer weights. Ranks count from the worst tier of the
venue upwards, so that a table fits every venue.
"""

import hashlib
from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")
Table = Sequence[tuple[T, int]]

# -- supply ---------------------------------------------------------------------------------------------

SITES_MAX = 48
SITES_PER_PROVIDER: Table[int] = ((1, 30), (2, 30), (3, 25), (4, 15))
SITE_SIZE: Table[int] = ((1, 30), (2, 30), (3, 20), (4, 20))
"""How many shares of its class's nodes a site gets."""

SITE_ZONE_WHOLE_GPU = {
    "zhangjiakou": 14,
    "yangtze-delta": 14,
    "wuhu": 9,
    "shaoguan": 10,
    "tianfu": 8,
    "chongqing": 7,
    "guian": 11,
    "horinger": 12,
    "qingyang": 7,
    "zhongwei": 8,
}
"""Zones of sites whose class is sold by the GPU: training, so the western clusters have their share."""

SITE_ZONE_FRACTION = {
    "zhangjiakou": 20,
    "yangtze-delta": 22,
    "wuhu": 12,
    "shaoguan": 18,
    "tianfu": 10,
    "chongqing": 6,
    "guian": 4,
    "horinger": 4,
    "qingyang": 2,
    "zhongwei": 2,
}
"""Zones of sites whose class is sold by the eighth: inference, so near to the metros."""

SITE_ZONE_OTHER = 8
"""Weight of a zone that the tables do not name."""

SITE_SECURITY_RANK: Table[int] = ((0, 30), (1, 40), (2, 25), (3, 5))

COST_OF_OFFER_PERMILLE = 850
"""A provider's cost over the published offer that he is drawn from: a list price holds a margin."""
COST_OF_MIDDLE_PERMILLE = (550, 950)
"""Bounds of the cost over the class's middle price: offers of hyperscalers reach four times the middle."""
COST_SPREAD_PERMILLE: Table[int] = ((900, 20), (950, 25), (1000, 25), (1050, 20), (1100, 10))
SECURITY_COST_PERMILLE = 40
"""Added to the cost for each rank of the site's security tier."""

PRICE_STEPS: Table[int] = ((2, 30), (3, 45), (4, 25))
FIRST_MARGIN_PERMILLE = (10, 60)
NEXT_MARGIN_PERMILLE = (30, 90)
"""A site's cheapest step asks this much over cost, each further step so much more."""

HOUR_PERMILLE = (
    *(940, 940, 940, 940, 940, 940, 940, 980, 1000, 1030, 1050, 1050),
    *(1030, 1040, 1050, 1050, 1050, 1040, 1040, 1040, 1040, 1040, 1000, 960),
)
"""What an ask is multiplied by in each local hour of delivery; never below cost."""

EARLY_NS = 7_200_000_000_000
"""The day's asks arrive within its first two hours, those of near gates sooner."""
EARLY_ROOM_NS = 25 * 60_000_000_000
LATE_ROOM_NS = 60 * 60_000_000_000
"""At least so long before its gate an early and a late ask arrive."""
LATE_ASKS_PERCENT = 15
REPRICED_ASKS_PERCENT = 10
"""Of a site's dearest steps; the others keep their price."""
REPRICE_PERMILLE = (900, 1040)

# -- demand ---------------------------------------------------------------------------------------------

BUYERS_MAX = 200
BUYER_ZONE = {
    "beijing": 24,
    "shanghai": 22,
    "shenzhen": 14,
    "hangzhou": 12,
    "guangzhou": 11,
    "chengdu": 8,
    "nanjing": 3,
    "tianjin": 3,
    "guiyang": 3,
}
BUYER_ZONE_OTHER = 2

ARRIVAL_JITTER_NS = 5 * 60_000_000_000
"""A resampled pod arrives up to this much before or after its original's time of day."""
BID_ROOM_NS = 30 * 60_000_000_000
"""A bid comes at least so long before the gate of its first hour."""
LEAD_HOURS: Table[int] = (
    (0, 40),
    (1, 18),
    (2, 10),
    (3, 7),
    (4, 5),
    (6, 6),
    (8, 5),
    (12, 4),
    (16, 3),
    (20, 2),
)
"""Hours from the first hour that could still be bought to the delivery's start."""

BATCH_QOS = ("BE", "Burstable")
LATENCY_RANK_BATCH: Table[int] = ((0, 78), (1, 22))
LATENCY_RANK_SERVICE: Table[int] = ((0, 40), (1, 48), (2, 10), (3, 2))
CARBON_RANK: Table[int] = ((0, 62), (1, 25), (2, 11), (3, 2))
SECURITY_RANK: Table[int] = ((0, 56), (1, 34), (2, 9), (3, 1))

VALUE_PERMILLE: Table[int] = tuple(
    (permille, 1) for permille in (764, 916, 1021, 1113, 1204, 1298, 1403, 1531, 1706, 2048)
)
"""A GPU-hour's worth over the class's middle price: the middles of the ten tenths of a log-normal
distribution of median 1.25 and sigma 0.3."""
VALUE_SPREAD_PERMILLE = (970, 1030)
STRICTNESS_PERMILLE = 20
"""Added to the value for each rank that the buyer requires above the worst."""
SHADE_PERMILLE_MAX = 100
"""A limit price is below the value by up to this much."""
CANCELED_BIDS_PERCENT = 2


def stream(seed: int, *names: object) -> Random:
    """Return the generator of this name under the seed; streams of different names are independent."""
    text = "/".join(str(name) for name in (seed, *names))
    return Random(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big"))


def pick(random: Random, table: Table[T]) -> T:
    """Return a value of the table with a chance in proportion to its weight; one weight is over 0."""
    point = random.randrange(sum(weight for _, weight in table))
    for value, weight in table:
        point -= weight
        if point < 0:
            return value
    raise AssertionError("the weights add up to more than the point")
