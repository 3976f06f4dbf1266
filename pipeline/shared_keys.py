"""Has the instances of a class keep their attributes without a dictionary each, those that are first set late, too.

CPython keeps attributes in the object itself, under keys that all instances of its class share. A name gets among these
keys only if one of the first few instances sets it. A request sets some names at its end alone, when hundreds of others
have been opened: each of them would get a dictionary of its own then, which costs time, memory and a visit by the
collector.
"""

from __future__ import annotations


def share_keys(kind: type, *names: str) -> None:
    """Have instances of a class share the keys of these attributes. To be called where the class is defined."""
    first: object = object.__new__(kind)
    for name in names:
        setattr(first, name, None)
