"""The settings of the engine Mooncake."""

from __future__ import annotations

from dataclasses import dataclass

from embridge.allocator.settings import check, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class MooncakeSettings:
    """How a node's Mooncake engines travel.

    For "tcp", `MC_FORCE_TCP` is set in the engines' processes, for the engine picks RDMA by itself where it sees a
    device.
    """

    protocol: str = setting(
        "tcp", "How engines travel.", choices=lambda: ("tcp", "rdma"), why="every network has it"
    )
    device: str = setting("", "The RDMA device; empty: all that Mooncake finds.", why="Mooncake knows which are near")
    write_timeout_s: float = setting(
        5.0, "An attempt that takes longer has failed; with it, up to 16 MiB are under way.", gt=0, lt=3600,
        why="16 MiB take 0.14 s at 1 Gbit/s",
    )  # fmt: skip
    connect_timeout_s: float = setting(
        3.0, "A session that cannot be opened for so long is unreachable.", gt=0, lt=3600,
        why="it is less than `timing.connect_timeout_s`",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check(self)
