"""Images into embedding rows, cut as Qwen2.5-VL cuts them.

The cutting is the real one, because it decides the lengths that a transfer sees: both sides rounded to multiples of 28
within a pixel budget, CLIP's normalisation, patches of 14x14 pixels and 2 frames, and the patches of each 2x2 square
next to each other, so that four of them make one token. The tower behind it is not trained: one linear layer a patch,
GELU, and one linear layer a token. What matters here is that its rows have the right shape and type, depend on the
picture and on the place in it, and come out a band at a time, so that they can be sent while the rest is computed.

An image of (height, width) pixels is (height / 14) x (width / 14) patches and (height / 28) x (width / 28) tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from embridge.demo.photographs import Pixels

PATCH = 14
TEMPORAL_PATCH = 2
MERGE = 2
TOKEN = PATCH * MERGE
CHANNELS = 3
PATCH_VALUES = CHANNELS * TEMPORAL_PATCH * PATCH * PATCH
# The preprocessor configuration of Qwen2.5-VL: 4 to 16384 tokens an image.
MIN_PIXELS = 4 * TOKEN * TOKEN
MAX_PIXELS = 16384 * TOKEN * TOKEN
MAX_ASPECT = 200
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
WIDTH = 256


def smart_resize(
    height: int, width: int, *, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """The size (height, width) at which the model sees an image: multiples of 28 whose product is within the budget.

    The ratio is kept as well as multiples allow. Sides round to the nearest multiple, a half to the even one; outside
    of the budget both sides are scaled by one factor and rounded towards the inside.

    Raises:
        ValueError: a side is not positive, or one is more than 200 times the other (the processor's own limit).
    """
    if min(height, width) < 1:
        raise ValueError(f"image of {width}x{height} pixels: a side < 1; use an image that has pixels")
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(
            f"image of {width}x{height} pixels: aspect ratio {max(height, width) / min(height, width):.0f} > "
            f"{MAX_ASPECT}; crop it"
        )
    rows, columns = round(height / TOKEN), round(width / TOKEN)
    pixels = rows * columns * TOKEN * TOKEN
    if pixels > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(1, math.floor(height / shrink / TOKEN))
        columns = max(1, math.floor(width / shrink / TOKEN))
    elif pixels < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * grow / TOKEN)
        columns = math.ceil(width * grow / TOKEN)
    return rows * TOKEN, columns * TOKEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """`image_grid_thw` of one still image: patches in time, height and width."""

    height: int
    width: int
    time: int = 1

    def __post_init__(self) -> None:
        if self.time != 1 or self.height < MERGE or self.width < MERGE or self.height % MERGE or self.width % MERGE:
            raise ValueError(f"grid {self.time}x{self.height}x{self.width}: not 1 x even x even; resize the image")

    @classmethod
    def of(cls, height: int, width: int, *, max_pixels: int = MAX_PIXELS) -> Grid:
        """The grid that an image of `height` x `width` pixels is resized to."""
        resized_height, resized_width = smart_resize(height, width, max_pixels=max_pixels)
        return cls(height=resized_height // PATCH, width=resized_width // PATCH)

    @property
    def token_rows(self) -> int:
        return self.height // MERGE

    @property
    def token_columns(self) -> int:
        return self.width // MERGE

    @property
    def num_tokens(self) -> int:
        return self.time * self.token_rows * self.token_columns


def patches_of(pixels: Pixels) -> Tensor:
    """(num_patches, 3 * 2 * 14 * 14) float32 of `pixels` (height, width, 3), both multiples of 28.

    Patches are ordered by token, and within a token row by row; values by channel, frame, row, column. A still image
    fills both frames of a patch. A horizontal band of the image gives the same rows as the whole image does there.
    """
    height, width, _ = pixels.shape
    values = torch.tensor(pixels).to(torch.float32).mul_(1 / 255).permute(2, 0, 1)
    values = (values - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    squares = values.reshape(CHANNELS, height // TOKEN, MERGE, PATCH, width // TOKEN, MERGE, PATCH)
    # By token row, token column, row and column in the token; then channel, row, column in the patch.
    squares = squares.permute(1, 4, 2, 5, 0, 3, 6)
    frames = squares.unsqueeze(5).expand(*squares.shape[:5], TEMPORAL_PATCH, PATCH, PATCH)
    return frames.reshape(-1, PATCH_VALUES)


class VisionTower(nn.Module):
    """Patch embedding, GELU, and a 2x2 merger into `hidden_size`; with `deepstack_layers` more mergers beside it.

    Weights come from `seed` alone: two processes that agree on it compute the same function.
    """

    def __init__(self, *, hidden_size: int, deepstack_layers: int = 0, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.hidden_size = hidden_size
        self.patch_embed = _linear(PATCH_VALUES, WIDTH, generator)
        self.merger = _linear(WIDTH * MERGE * MERGE, hidden_size, generator)
        self.deepstack_mergers = nn.ModuleList(
            _linear(WIDTH * MERGE * MERGE, hidden_size, generator) for _ in range(deepstack_layers)
        )

    def forward(self, patches: Tensor, places: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embed whole tokens: `patches` (4n, 1176) at `places` (4n, 256), as `places_of` gives them.

        Returns bfloat16 (n, hidden) and (n, D, hidden), or None without deepstack layers.
        """
        merged = nn.functional.gelu(self.patch_embed(patches) + places).view(-1, WIDTH * MERGE * MERGE)
        rows = self.merger(merged).to(torch.bfloat16)
        if not len(self.deepstack_mergers):
            return rows, None
        return rows, torch.stack([merger(merged).to(torch.bfloat16) for merger in self.deepstack_mergers], dim=1)


def places_of(grid: Grid, token_rows: range) -> Tensor:
    """(num_patches, 256) sines and cosines of each patch's row and column, in the order of `patches_of`.

    They make the rows of a uniform picture differ, so that two rows that changed places are seen.
    """
    inner = torch.arange(MERGE)
    shape = (len(token_rows), grid.token_columns, MERGE, MERGE)
    rows = torch.tensor(list(token_rows)).view(-1, 1, 1, 1) * MERGE + inner.view(1, 1, -1, 1)
    columns = torch.arange(grid.token_columns).view(1, -1, 1, 1) * MERGE + inner.view(1, 1, 1, -1)
    frequency = 10000.0 ** (-torch.arange(WIDTH // 4) / (WIDTH // 4))
    angles = [axis.expand(shape).reshape(-1, 1) * frequency for axis in (rows, columns)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


def bands(grid: Grid, num_tokens: int) -> Iterator[range]:
    """The token rows of `grid` in bands of about `num_tokens` tokens, at least one row each."""
    step = max(1, num_tokens // grid.token_columns)
    for first in range(0, grid.token_rows, step):
        yield range(first, min(first + step, grid.token_rows))


def embed_band(tower: VisionTower, pixels: Pixels, grid: Grid, token_rows: range) -> tuple[Tensor, Tensor | None]:
    """The tower's rows for one band of the resized image `pixels`."""
    with torch.inference_mode():
        patches = patches_of(pixels[token_rows.start * TOKEN : token_rows.stop * TOKEN])
        rows, deepstack = tower(patches, places_of(grid, token_rows))
    return rows, deepstack


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu").requires_grad_(False)
    layer.weight.normal_(std=inputs**-0.5, generator=generator)
    layer.bias.zero_()
    return layer
