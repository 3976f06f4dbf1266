"""The cutting is Qwen2.5-VL's: sizes, the order of patches, and bands that equal the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embridge.demo.photographs import Pixels
from embridge.demo.vision import (
    CLIP_MEAN,
    CLIP_STD,
    MAX_ASPECT,
    MAX_PIXELS,
    MIN_PIXELS,
    PATCH,
    TOKEN,
    Grid,
    VisionTower,
    bands,
    embed_band,
    patches_of,
    places_of,
    smart_resize,
)


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)


def num_distinct(rows: torch.Tensor) -> int:
    return len({tuple(row) for row in rows.tolist()})


@pytest.mark.parametrize(
    ("size", "budget", "expected"),
    [
        # The picture of the model card, 2044 x 1372: a grid of 1 x 98 x 146 patches.
        ((1372, 2044), {}, (98 * PATCH, 146 * PATCH)),
        # The two cats that the processors' documentation uses, 640 x 480.
        ((480, 640), {}, (476, 644)),
        ((56, 56), {}, (56, 56)),
        # Half a multiple goes to the even one.
        ((70, 98), {}, (56, 112)),
        # Under 4 tokens both sides grow.
        ((1, 1), {}, (56, 56)),
        ((10, 100), {}, (28, 196)),
        # The processor's class default of 1280 tokens, which a photograph of 12 megapixels exceeds.
        ((3024, 4032), {"max_pixels": 1280 * TOKEN * TOKEN}, (840, 1148)),
    ],
)
def test_known_sizes_come_out_as_the_processor_gives_them(
    size: tuple[int, int], budget: dict[str, int], expected: tuple[int, int]
) -> None:
    assert smart_resize(*size, **budget) == expected


@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_a_resized_image_is_multiples_of_28_within_the_budget(height: int, width: int) -> None:
    if max(height, width) > MAX_ASPECT * min(height, width):
        with pytest.raises(ValueError, match="aspect ratio"):
            smart_resize(height, width)
        return
    resized_height, resized_width = smart_resize(height, width)
    assert resized_height % TOKEN == 0
    assert resized_width % TOKEN == 0
    assert MIN_PIXELS <= resized_height * resized_width <= MAX_PIXELS


@pytest.mark.parametrize("size", [(10, 2001), (2001, 10), (0, 10)])
def test_an_image_the_processor_would_refuse_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="pixels"):
        smart_resize(*size)


def test_tokens_are_the_area_over_784() -> None:
    grid = Grid.of(1372, 2044)
    assert (grid.time, grid.height, grid.width) == (1, 98, 146)
    assert grid.num_tokens == 1372 * 2044 // 784


def test_patches_are_grouped_by_token_channel_frame_and_place() -> None:
    pixels = noise(3 * TOKEN, 2 * TOKEN)
    height, width, _ = pixels.shape
    expected = []
    for token_row in range(height // TOKEN):
        for token_column in range(width // TOKEN):
            for row in range(2):
                for column in range(2):
                    top, left = token_row * TOKEN + row * PATCH, token_column * TOKEN + column * PATCH
                    patch = pixels[top : top + PATCH, left : left + PATCH].astype(np.float64) / 255
                    expected.append(
                        [
                            (patch[y, x, channel] - CLIP_MEAN[channel]) / CLIP_STD[channel]
                            for channel in range(3)
                            for _frame in range(2)
                            for y in range(PATCH)
                            for x in range(PATCH)
                        ]
                    )
    torch.testing.assert_close(patches_of(pixels), torch.tensor(expected, dtype=torch.float32))


def test_bands_cover_every_row_once() -> None:
    grid = Grid(height=10, width=6)
    assert [list(band) for band in bands(grid, 7)] == [[0, 1], [2, 3], [4]]
    assert [list(band) for band in bands(grid, 1)] == [[0], [1], [2], [3], [4]]
    assert [list(band) for band in bands(grid, 1000)] == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("deepstack_layers", [0, 3])
def test_an_image_embedded_in_bands_equals_the_image_embedded_whole(deepstack_layers: int) -> None:
    pixels = noise(5 * TOKEN, 3 * TOKEN)
    grid = Grid(height=10, width=6)
    tower = VisionTower(hidden_size=64, deepstack_layers=deepstack_layers, seed=3)
    whole, whole_deepstack = embed_band(tower, pixels, grid, range(grid.token_rows))
    assert whole.shape == (grid.num_tokens, 64)
    assert whole.dtype == torch.bfloat16
    pieces = [embed_band(tower, pixels, grid, band) for band in bands(grid, 7)]
    torch.testing.assert_close(torch.cat([rows for rows, _ in pieces]), whole)
    if not deepstack_layers:
        assert whole_deepstack is None
        return
    assert whole_deepstack is not None
    assert whole_deepstack.shape == (grid.num_tokens, deepstack_layers, 64)
    torch.testing.assert_close(torch.cat([deep for _, deep in pieces if deep is not None]), whole_deepstack)


def test_every_place_of_a_uniform_picture_has_its_own_row() -> None:
    grid = Grid(height=40, width=24)
    pixels = np.zeros((grid.height * PATCH, grid.width * PATCH, 3), dtype=np.uint8)
    assert num_distinct(places_of(grid, range(grid.token_rows))) == grid.height * grid.width
    rows, _ = embed_band(VisionTower(hidden_size=64), pixels, grid, range(grid.token_rows))
    assert num_distinct(rows) == grid.num_tokens


def test_the_seed_alone_decides_the_weights() -> None:
    first, again, other = (VisionTower(hidden_size=16, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.merger.weight, again.merger.weight)
    assert not torch.equal(first.merger.weight, other.merger.weight)
