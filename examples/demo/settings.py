"""What a run of the demo is made of: the options of `embridge demo`, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from embridge.allocator.geometry import Geometry


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """Sizes are chosen so that the longest photographs pass through pools that are much smaller than they are."""

    requests: int = 12
    in_flight: int = 6  # requests open at one time; enough to make them compete for the language side's blocks
    default_tokens: int = 1024
    pool_blocks: int = 24  # of the language node: 3072 tokens, while a request may have 16384
    encode_pool_blocks: int = 16
    block_size: int = 128
    hidden_size: int = 3584  # Qwen2.5-VL-7B
    deepstack_layers: int = 0
    images: Path | None = None
    engine: str = "shm"
    verify: bool = False
    two_hosts: bool = False  # the nodes in two network namespaces, which share nothing but a cable
    run_dir: Path | None = None
    seed: int = 0
    plain: bool = False
    stall_s: float = 60.0  # nothing moved for so long: give up rather than hang

    def __post_init__(self) -> None:
        for name, least in (("requests", 1), ("in_flight", 1), ("default_tokens", 1), ("seed", 0)):
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"{name}: {value} < {least}; give at least {least}")
        for num_blocks in (self.pool_blocks, self.encode_pool_blocks):
            self.geometry(num_blocks)  # checks the rest

    def geometry(self, num_blocks: int = 1) -> Geometry:
        """The shape of the blocks, in a pool of that many."""
        return Geometry(
            hidden_size=self.hidden_size,
            block_size=self.block_size,
            num_blocks=num_blocks,
            dtype="bfloat16",
            deepstack_layers=self.deepstack_layers,
        )
