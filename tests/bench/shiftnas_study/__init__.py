"""The parts of :mod:`tests.bench.shiftnas`."""
