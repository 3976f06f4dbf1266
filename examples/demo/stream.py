"""One request as the encoder produces it: chunks of rows in order, each complete in every buffer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from embridge.demo.photographs import Pixels
from embridge.demo.prompt import Prompt, text_rows
from embridge.demo.vision import VisionTower, bands, embed_band

BUFFERS = ("input_embeddings", "fill_ids", "mrope_positions", "deepstack_embeddings", "aux_datas")


class Chunk(NamedTuple):
    """Rows [start, start + n) of a request: contiguous CPU tensors, as `sender.write` takes them."""

    start: int
    input_embeddings: Tensor  # (n, hidden) bfloat16
    fill_ids: Tensor  # (n,) int32
    mrope_positions: Tensor  # (n, 3) int32
    deepstack_embeddings: Tensor | None  # (n, D, hidden) bfloat16


def joined(chunks: Sequence[Chunk]) -> Chunk:
    """One chunk of consecutive ones."""
    deepstack = [chunk.deepstack_embeddings for chunk in chunks if chunk.deepstack_embeddings is not None]
    return Chunk(
        chunks[0].start,
        torch.cat([chunk.input_embeddings for chunk in chunks]),
        torch.cat([chunk.fill_ids for chunk in chunks]),
        torch.cat([chunk.mrope_positions for chunk in chunks]),
        torch.cat(deepstack) if deepstack else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingStream:
    """Embeds one request of `prompt` with `tower`, about `chunk_tokens` rows at a time."""

    tower: VisionTower
    prompt: Prompt
    seed: int
    chunk_tokens: int

    def chunks(self, pixels: Pixels) -> Iterator[Chunk]:
        """Every row of the request, in order. Deepstack rows of text are zero: it has nothing to add to them."""
        fill_ids, positions = self.prompt.fill_ids(), self.prompt.mrope_positions()
        image, total = self.prompt.image, self.prompt.num_tokens

        def chunk(start: int, rows: Tensor, deepstack: Tensor | None) -> Chunk:
            stop = start + len(rows)
            return Chunk(start, rows, fill_ids[start:stop], positions[start:stop], deepstack)

        def text(span: range) -> Chunk:
            rows = text_rows(fill_ids[span.start : span.stop], self.tower.hidden_size, seed=self.seed)
            layers = len(self.tower.deepstack_mergers)
            return chunk(span.start, rows, rows.new_zeros(len(rows), layers, rows.shape[1]) if layers else None)

        yield text(range(image.start))
        columns = self.prompt.grid.token_columns
        for band in bands(self.prompt.grid, self.chunk_tokens):
            yield chunk(image.start + band.start * columns, *embed_band(self.tower, pixels, self.prompt.grid, band))
        yield text(range(image.stop, total))


class Digests:
    """A running blake2b of every buffer of a request, fed in row order: what was sent, or what arrived."""

    def __init__(self) -> None:
        self._hashes = {name: hashlib.blake2b(digest_size=16) for name in BUFFERS}

    def update(self, name: str, tensor: Tensor) -> None:
        self._hashes[name].update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)

    def add(self, chunk: Chunk) -> None:
        self.update("input_embeddings", chunk.input_embeddings)
        self.update("fill_ids", chunk.fill_ids)
        self.update("mrope_positions", chunk.mrope_positions)
        if chunk.deepstack_embeddings is not None:
            self.update("deepstack_embeddings", chunk.deepstack_embeddings)

    def result(self) -> dict[str, str]:
        return {name: running.hexdigest() for name, running in self._hashes.items()}
