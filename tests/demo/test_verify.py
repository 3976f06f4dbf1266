"""The demo's check finds any wrong byte, in any buffer, and says where."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from embridge.demo.prompt import Prompt
from embridge.demo.stream import Digests, EmbeddingStream
from embridge.demo.verify import problem_with
from embridge.demo.vision import TOKEN, Grid, VisionTower

PROMPT = Prompt(grid=Grid(height=6, width=4), text="what is it")


@dataclass(frozen=True, kw_only=True)
class Arrived:
    input_embeddings: Tensor
    fill_ids: Tensor
    mrope_positions: Tensor
    deepstack_embeddings: Tensor | None
    aux_datas: Tensor


def produce(deepstack_layers: int) -> tuple[Arrived, dict[str, str]]:
    pixels = np.random.default_rng(2).integers(0, 256, (3 * TOKEN, 2 * TOKEN, 3), dtype=np.uint8)
    tower = VisionTower(hidden_size=32, deepstack_layers=deepstack_layers)
    chunks = list(EmbeddingStream(tower=tower, prompt=PROMPT, seed=0, chunk_tokens=2).chunks(pixels))
    digests = Digests()
    for chunk in chunks:
        digests.add(chunk)
    digests.update("aux_datas", PROMPT.aux_datas())
    deepstack = [chunk.deepstack_embeddings for chunk in chunks if chunk.deepstack_embeddings is not None]
    arrived = Arrived(
        input_embeddings=torch.cat([chunk.input_embeddings for chunk in chunks]),
        fill_ids=torch.cat([chunk.fill_ids for chunk in chunks]),
        mrope_positions=torch.cat([chunk.mrope_positions for chunk in chunks]),
        deepstack_embeddings=torch.cat(deepstack) if deepstack else None,
        aux_datas=PROMPT.aux_datas(),
    )
    return arrived, digests.result()


@pytest.mark.parametrize("deepstack_layers", [0, 2])
def test_what_was_produced_has_no_problem(deepstack_layers: int) -> None:
    arrived, digests = produce(deepstack_layers)
    assert problem_with(arrived, PROMPT, digests, deepstack_layers=deepstack_layers) is None


@pytest.mark.parametrize(
    "name", ["input_embeddings", "fill_ids", "mrope_positions", "deepstack_embeddings", "aux_datas"]
)
def test_one_changed_value_is_found_in_every_buffer(name: str) -> None:
    arrived, digests = produce(2)
    tensor: Tensor = getattr(arrived, name)
    tensor.view(-1)[-1] += 1
    problem = problem_with(arrived, PROMPT, digests, deepstack_layers=2)
    assert problem is not None
    assert name in problem


def test_two_rows_that_changed_places_are_found() -> None:
    arrived, digests = produce(0)
    arrived.input_embeddings[[2, 3]] = arrived.input_embeddings[[3, 2]]
    assert problem_with(arrived, PROMPT, digests, deepstack_layers=0) == "bytes differ in input_embeddings"


def test_missing_rows_and_layers_are_found() -> None:
    arrived, digests = produce(1)
    short = replace(arrived, input_embeddings=arrived.input_embeddings[:-1])
    assert problem_with(short, PROMPT, digests, deepstack_layers=1) == "input_embeddings: 10 rows != 11"
    short = replace(arrived, fill_ids=arrived.fill_ids[:-1])
    assert "shape" in (problem_with(short, PROMPT, digests, deepstack_layers=1) or "")
    bare = replace(arrived, deepstack_embeddings=None)
    assert "0 layers != 1" in (problem_with(bare, PROMPT, digests, deepstack_layers=1) or "")
