"""What runs inside each process of a node. Knows shared memory and the network, not the API that users call."""

if not __name__.startswith("embridge."):
    raise ImportError(
        f"{__name__!r} is the folder of embridge.workers, imported by its bare name; import embridge.workers, "
        "or leave the repository's root"
    )
