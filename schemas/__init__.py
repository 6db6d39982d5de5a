"""The words of the exchange: commands, events, records, reasons, wire messages, the venue catalogue."""

PROTOCOL_VERSION = "0.1"
"""Version of the WebSocket protocol; fields are only added within a version."""

RULES_VERSION = "0.2"
"""Version of the market's rules; the same log under the same rules gives the same events."""
