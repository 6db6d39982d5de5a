"""A simulated market: inputs from a real trace, played by ordinary clients of the exchange."""
