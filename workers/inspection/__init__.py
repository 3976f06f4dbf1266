"""What a node's control segment says, read-only: its processes, clients and peers, and why a request does not move."""
