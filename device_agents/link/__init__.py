"""The way to a device: transports, the agent's session, leases."""
