"""What is wrong with a board, check by check, and what to do about it."""

from device_agents.doctor.bare import diagnose_without_agent
from device_agents.doctor.check import Check
from device_agents.doctor.diagnose import diagnose

__all__ = ["Check", "diagnose", "diagnose_without_agent"]
