"""hilnas: hardware-in-the-loop neural architecture search, the part that runs on the GPU host."""

__version__ = "0.1.0"
