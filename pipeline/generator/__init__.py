"""The architecture generator of ShiftNAS: an architecture for any level of cost, without search."""
