"""A node seen from outside, read-only; imports no other room of pipeline."""
