"""The rules of the market, and the log that makes them history."""
