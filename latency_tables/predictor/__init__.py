"""Latency of networks that nobody measured; see :mod:`latency_tables.predictor.model`."""

from latency_tables.predictor.model import Diagnostics, LatencyModel, Prediction

__all__ = ["Diagnostics", "LatencyModel", "Prediction"]
