"""What callers use, in rooms: client, scheduler and ranks; node, inspection and cli. `embridge` is the door to it."""

if not __name__.startswith("embridge."):
    raise ImportError(
        f"{__name__!r} is the folder of embridge.pipeline, imported by its bare name; import embridge.pipeline, "
        "or leave the repository's root"
    )
