"""The ways rows travel: one file an engine, behind the protocol in `base`."""
