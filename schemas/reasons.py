"""Why a command was refused: one closed, ordered list."""

from enum import IntEnum, unique


@unique
class RejectReason(IntEnum):
    """The reasons of the engine. The number is the wire code and is never reused.

    1xx form, 2xx reference, 3xx time, 4xx identity, 5xx what the account, the site or the book can bear.
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
    DUPLICATE_COMMAND = 412

    INSUFFICIENT_FUNDS = 501
    CAPACITY_EXCEEDED = 502
    TOO_MANY_OPEN_ORDERS = 503
    TOO_MANY_RESTING_BLOCKS = 504
    BLOCK_TOO_WIDE = 505
    POSTING_EXCEEDS_FILL = 506
    POSTINGS_EXCEED_RUN = 507


@unique
class DoorError(IntEnum):
    """What the gateway refuses before a command reaches the engine. Negative numbers are JSON-RPC's own."""

    PARSE_ERROR = -32700
    INVALID_REQUEST = -32600
    METHOD_NOT_FOUND = -32601
    INVALID_PARAMS = -32602
    INTERNAL_ERROR = -32603

    LOGIN_REQUIRED = 1001
    SCOPE_MISSING = 1002
    LOGIN_FAILED = 1003
    BUSY = 1004
    OUTCOME_UNKNOWN = 1005
    TOO_MANY_IN_FLIGHT = 1006
    NOT_FOUND = 1007
    SIGNATURE_INVALID = 1008
    CLOCK_REFUSED = 1009
