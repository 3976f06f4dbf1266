"""A request comes out of the encoder in order, complete in every buffer, and its digests tell a changed byte."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embridge.demo.prompt import Prompt
from embridge.demo.stream import BUFFERS, Chunk, Digests, EmbeddingStream, joined
from embridge.demo.vision import TOKEN, Grid, VisionTower


def stream(chunk_tokens: int, deepstack_layers: int) -> list[Chunk]:
    pixels = np.random.default_rng(1).integers(0, 256, (5 * TOKEN, 4 * TOKEN, 3), dtype=np.uint8)
    tower = VisionTower(hidden_size=48, deepstack_layers=deepstack_layers, seed=9)
    prompt = Prompt(grid=Grid(height=10, width=8), text="describe the picture")
    return list(EmbeddingStream(tower=tower, prompt=prompt, seed=9, chunk_tokens=chunk_tokens).chunks(pixels))


@pytest.mark.parametrize("deepstack_layers", [0, 2])
@pytest.mark.parametrize("chunk_tokens", [1, 9, 1000])
def test_chunks_are_contiguous_and_add_up_to_the_request(chunk_tokens: int, deepstack_layers: int) -> None:
    position = 0
    for chunk in stream(chunk_tokens, deepstack_layers):
        count = len(chunk.input_embeddings)
        assert chunk.start == position
        assert chunk.input_embeddings.shape == (count, 48)
        assert chunk.fill_ids.shape == (count,)
        assert chunk.mrope_positions.shape == (count, 3)
        if deepstack_layers:
            assert chunk.deepstack_embeddings is not None
            assert chunk.deepstack_embeddings.shape == (count, deepstack_layers, 48)
        else:
            assert chunk.deepstack_embeddings is None
        assert all(not isinstance(part, torch.Tensor) or part.is_contiguous() for part in chunk)
        position += count
    assert position == 1 + 20 + 1 + 3


def test_the_request_is_the_same_however_it_is_cut() -> None:
    whole, pieces = stream(1000, 2), stream(5, 2)
    assert len(pieces) > len(whole)
    for name in Chunk._fields[1:]:
        torch.testing.assert_close(
            torch.cat([getattr(chunk, name) for chunk in pieces]), torch.cat([getattr(chunk, name) for chunk in whole])
        )


@pytest.mark.parametrize("deepstack_layers", [0, 2])
def test_joined_chunks_are_the_request(deepstack_layers: int) -> None:
    chunks = stream(5, deepstack_layers)
    whole = joined(chunks)
    assert whole.start == 0
    assert len(whole.fill_ids) == 25
    once, pieces = Digests(), Digests()
    once.add(whole)
    for chunk in chunks:
        pieces.add(chunk)
    assert once.result() == pieces.result()


def test_digests_do_not_depend_on_the_cut_but_on_every_byte() -> None:
    chunks = stream(1000, 1)
    once, halves = Digests(), Digests()
    for chunk in chunks:
        once.add(chunk)
        middle = len(chunk.fill_ids) // 2
        for part in (slice(None, middle), slice(middle, None)):
            halves.add(Chunk(chunk.start, *(tensor[part] for tensor in chunk[1:] if tensor is not None)))
    assert once.result() == halves.result()
    assert set(once.result()) == set(BUFFERS)
    changed = Digests()
    chunks[1].mrope_positions[3, 2] += 1
    for chunk in chunks:
        changed.add(chunk)
    assert {name for name in BUFFERS if changed.result()[name] != once.result()[name]} == {"mrope_positions"}
