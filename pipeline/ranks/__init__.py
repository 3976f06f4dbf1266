"""One request for many ranks: rank 0 leads, the others follow; imports client and scheduler."""
