"""Boards: how to reach one, how to time networks on it, and what to think of the numbers.

Import from the modules; the usual doors are :class:`device_agents.measurer.DeviceMeasurer`,
:func:`device_agents.measurer.measure_file` and :func:`device_agents.devices.load_device`.
"""
