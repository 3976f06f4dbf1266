"""The process that serves a node's HTTP port: metrics, for whoever asks; it imports no role and touches no payload."""
