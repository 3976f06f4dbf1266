"""Whether what arrived is what was produced: nothing of it is taken from the transfer's own word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from embridge.demo.prompt import Prompt
from embridge.demo.stream import BUFFERS, Digests


class Received(Protocol):
    """The buffers of a finished request, `request.result`."""

    @property
    def input_embeddings(self) -> Tensor: ...
    @property
    def fill_ids(self) -> Tensor | None: ...
    @property
    def mrope_positions(self) -> Tensor | None: ...
    @property
    def deepstack_embeddings(self) -> Tensor | None: ...
    @property
    def aux_datas(self) -> Tensor: ...


def problem_with(
    received: Received, prompt: Prompt, digests: Mapping[str, str], *, deepstack_layers: int
) -> str | None:
    """What is wrong with a request that arrived, or None when every byte is right.

    Ids, positions and aux_datas are computed again here, from the prompt; embeddings and deepstack rows are compared by
    the digests that the encoder took before it sent them.
    """
    expected = (
        ("fill_ids", received.fill_ids, prompt.fill_ids()),
        ("mrope_positions", received.mrope_positions, prompt.mrope_positions()),
        ("aux_datas", received.aux_datas, prompt.aux_datas()),
    )
    for name, seen, right in expected:
        if seen is None:
            return f"{name} are missing"
        if seen.shape != right.shape or not torch.equal(seen, right):
            return f"{name} differ: {_difference(seen, right)}"
    rows = received.input_embeddings
    if len(rows) != prompt.num_tokens:
        return f"input_embeddings: {len(rows)} rows != {prompt.num_tokens}"
    deepstack = received.deepstack_embeddings
    layers = 0 if deepstack is None else deepstack.shape[1]
    if layers != deepstack_layers:
        return f"deepstack_embeddings: {layers} layers != {deepstack_layers}"
    arrived = Digests()
    for name in BUFFERS:
        tensor: Tensor | None = getattr(received, name)
        if tensor is not None:
            arrived.update(name, tensor)
    seen_digests = arrived.result()
    wrong = [name for name in BUFFERS if seen_digests[name] != digests[name]]
    return f"bytes differ in {', '.join(wrong)}" if wrong else None


def _difference(seen: Tensor, right: Tensor) -> str:
    if seen.shape != right.shape:
        return f"shape {tuple(seen.shape)} != {tuple(right.shape)}"
    row = int((seen != right).reshape(len(right), -1).any(dim=1).int().argmax())
    return f"first in row {row}, {seen[row].tolist()} != {right[row].tolist()}"
