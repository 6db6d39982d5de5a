"""Why a command was refused: one closed, ordered list."""

from enum import IntEnum, unique


@unique
class RejectReason(IntEnum):
    """The reasons of the engine, in the order in which they are tested.

    The number is the wire code and is never reused. 1xx form, 2xx reference, 3xx time, 4xx identity,
    5xx what the account or the site can bear, 6xx what became of the order on entry, 7xx operations.
    """

    PRICE_OUT_OF_RANGE = 101
    QUANTITY_OUT_OF_RANGE = 102
    HOURS_OUT_OF_RANGE = 103
    NOTIONAL_OUT_OF_RANGE = 104
    SIDE_FIELDS_MISMATCH = 105
    TIME_IN_FORCE_MISMATCH = 106
    AMOUNT_OUT_OF_RANGE = 107

    UNKNOWN_ACCOUNT = 201
    UNKNOWN_CLASS = 202
    UNKNOWN_ZONE = 203
    UNKNOWN_SITE = 204
    UNKNOWN_ORDER = 205
    UNKNOWN_GRADE = 206
    UNKNOWN_RUN = 207
    UNKNOWN_FILL = 208
    UNKNOWN_OPERATOR = 209

    COMMAND_EXPIRED = 301
    VALIDITY_TOO_LONG = 302
    BEYOND_HORIZON = 303
    GATE_CLOSED = 304
    NOT_YET_DELIVERED = 305

    DUPLICATE_ORDER_ID = 401
    DUPLICATE_ACCOUNT = 402
    DUPLICATE_SITE = 403
    DUPLICATE_KEY = 404
    DUPLICATE_RUN = 405
    DUPLICATE_POSTING = 406
    NOT_SITE_OWNER = 407
    CLASS_NOT_CERTIFIED = 408
    GRADE_NOT_CERTIFIED = 409
    SITE_NOT_CERTIFIED = 410
    ACCOUNT_SUSPENDED = 411

    INSUFFICIENT_FUNDS = 501
    CAPACITY_EXCEEDED = 502
    TOO_MANY_OPEN_ORDERS = 503
    TOO_MANY_RESTING_BLOCKS = 504
    BLOCK_TOO_WIDE = 505
    POSTING_EXCEEDS_FILL = 506
    POSTINGS_EXCEED_RUN = 507
