"""Campaigns that break the exchange: kills, faults of the disk, and lives on a simulated machine."""
