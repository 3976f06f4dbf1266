"""The sequence around an image: ids and three-axis positions as Qwen2.5-VL's `get_rope_index` gives them."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from embridge.demo.prompt import IMAGE_PAD, VISION_END, VISION_START, Prompt, text_rows, word_id
from embridge.demo.vision import Grid


def test_positions_of_a_small_image_are_those_of_the_paper() -> None:
    prompt = Prompt(grid=Grid(height=4, width=6), text="what is it")
    time, height, width = prompt.mrope_positions().T.tolist()
    assert time == [0, 1, 1, 1, 1, 1, 1, 4, 5, 6, 7]
    assert height == [0, 1, 1, 1, 2, 2, 2, 4, 5, 6, 7]
    assert width == [0, 1, 2, 3, 1, 2, 3, 4, 5, 6, 7]
    assert prompt.mrope_position_delta == 8 - 11


def test_ids_frame_the_image_and_vary_with_the_text() -> None:
    prompt = Prompt(grid=Grid(height=4, width=4), text="a cup of coffee")
    ids = prompt.fill_ids().tolist()
    assert ids[:6] == [VISION_START, *[IMAGE_PAD] * 4, VISION_END]
    assert ids[6:] == [word_id(word) for word in ("a", "cup", "of", "coffee")]
    assert len(set(ids[6:])) == 4


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5))
def test_the_delta_leads_from_the_length_to_the_next_position(rows: int, columns: int, words: int) -> None:
    prompt = Prompt(grid=Grid(height=2 * rows, width=2 * columns), text="word " * words)
    ids, positions = prompt.fill_ids(), prompt.mrope_positions()
    assert ids.shape == (prompt.num_tokens,)
    assert positions.shape == (prompt.num_tokens, 3)
    assert ids.dtype == positions.dtype == torch.int32
    assert int(positions.max()) + 1 == prompt.num_tokens + prompt.mrope_position_delta
    image = positions[prompt.image.start : prompt.image.stop]
    assert len({tuple(place) for place in image.tolist()}) == rows * columns
    aux = prompt.aux_datas()
    assert (aux.shape, aux.dtype) == ((16,), torch.int32)
    assert aux[:2].tolist() == [prompt.num_tokens, prompt.mrope_position_delta]


def test_text_rows_depend_on_the_id_and_the_seed() -> None:
    ids = torch.tensor([5, 6, 5], dtype=torch.int32)
    rows = text_rows(ids, 32, seed=1)
    assert rows.dtype == torch.bfloat16
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])
    assert not torch.equal(rows, text_rows(ids, 32, seed=2))
