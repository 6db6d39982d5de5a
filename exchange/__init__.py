"""The rules of the market, and the log that makes them history."""

from exchange.build import choose_build

ENGINE_BUILD = choose_build(__path__)
"""`compiled` or `interpreted`."""
