"""The discovery server, and the registrar that reports to it; it imports no other room of `workers`."""
