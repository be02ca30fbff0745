"""Bring Python packages, or a Python, to a board that has no internet."""

from device_agents.bootstrap.job import Installed, bootstrap
from device_agents.bootstrap.target import Board, Target, probe

__all__ = ["Board", "Installed", "Target", "bootstrap", "probe"]
