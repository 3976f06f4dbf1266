"""Shared memory and the algorithms in it. Knows no process roles and no network."""

if not __name__.startswith("embridge."):
    raise ImportError(
        f"{__name__!r} is the folder of embridge.allocator, imported by its bare name; import embridge.allocator, "
        "or leave the repository's root"
    )
