"""Boards: how to reach one, how to time networks on it, and what to think of the numbers.

Import from the modules. The usual doors: :func:`device_agents.inventory.read_inventory`,
:class:`device_agents.measuring.measurer.DeviceMeasurer` for many networks and
:func:`device_agents.files.measure_file.measure_file` for one file.

==============  ==================================================================================
``link``        the way to a device: transports (local, ssh), the agent's session, leases
``board``       sources of the agent that runs on the device
``measuring``   rounds, statistics, verdicts, records; several boards at once
``files``       one ONNX file measured whole: phases, operators, outputs, limits
``runtimes``    what each runtime is given: the file, or a conversion of it
``bootstrap``   bringing Python packages to a board without internet
``doctor``      everything that matters for measuring, with remedies
==============  ==================================================================================
"""
