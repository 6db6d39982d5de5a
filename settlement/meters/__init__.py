"""Meters: adapters from what schedulers and exporters write to readings. Pure: bytes in, readings out."""
