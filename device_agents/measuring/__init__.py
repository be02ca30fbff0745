"""Timing networks on a device: rounds, statistics, verdicts, records."""
