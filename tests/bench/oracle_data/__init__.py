"""Public latency data as search spaces of hilnas: one adapter per space, one reader of folders."""

from tests.bench.oracle_data.folder import read_folder
from tests.bench.oracle_data.series import Series, Space

__all__ = ["Series", "Space", "read_folder"]
