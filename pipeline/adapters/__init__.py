"""Glue to the schedulers of known engines."""
