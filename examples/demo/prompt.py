"""The sequence around an image: token ids and three-axis rotary positions, as Qwen2.5-VL lays them out.

    <vision_start> <image_pad> x n <vision_end> text...

Text counts up one position a token on all three axes. The image's tokens share one position in time and count rows and
columns from it; the text behind continues after the largest of them. So a sequence is longer than its positions reach,
and `mrope_position_delta` (last position + 1 - length, negative) tells the decoder where to go on.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from embridge.demo.vision import Grid

VISION_START = 151652
VISION_END = 151653
IMAGE_PAD = 151655
TEXT_VOCABULARY = 151643  # ordinary tokens end here; special ones follow
AUX_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One image and the words that follow it: everything of a request that does not need the vision tower."""

    grid: Grid
    text: str

    @property
    def image(self) -> range:
        """The rows that are image tokens."""
        return range(1, 1 + self.grid.num_tokens)

    @property
    def num_tokens(self) -> int:
        return self.grid.num_tokens + 2 + len(self.text.split())

    def fill_ids(self) -> Tensor:
        """(num_tokens,) int32."""
        words = [word_id(word) for word in self.text.split()]
        return torch.tensor(
            [VISION_START, *[IMAGE_PAD] * self.grid.num_tokens, VISION_END, *words], dtype=torch.int32
        )

    def mrope_positions(self) -> Tensor:
        """(num_tokens, 3) int32: time, height, width."""
        rows, columns = self.grid.token_rows, self.grid.token_columns
        start = self.image.start
        image = torch.full((rows, columns, 3), start, dtype=torch.int32)
        image[..., 1] += torch.arange(rows, dtype=torch.int32).view(-1, 1)
        image[..., 2] += torch.arange(columns, dtype=torch.int32)
        after = start + max(rows, columns)
        behind = torch.arange(after, after + self.num_tokens - self.image.stop, dtype=torch.int32)
        before = torch.arange(start, dtype=torch.int32)
        return torch.cat([before.view(-1, 1).expand(-1, 3), image.view(-1, 3), behind.view(-1, 1).expand(-1, 3)])

    @property
    def mrope_position_delta(self) -> int:
        return max(self.grid.token_rows, self.grid.token_columns) - self.grid.num_tokens

    def aux_datas(self) -> Tensor:
        """(16,) int32: total length, mrope_position_delta, the grid, then zeros."""
        head = [self.num_tokens, self.mrope_position_delta, self.grid.time, self.grid.height, self.grid.width]
        return torch.tensor(head + [0] * (AUX_SIZE - len(head)), dtype=torch.int32)


def word_id(word: str) -> int:
    """A token id for a word: not a tokenizer's, but stable and spread over the text vocabulary."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big") % TEXT_VOCABULARY


def text_rows(fill_ids: Tensor, hidden_size: int, *, seed: int) -> Tensor:
    """(len(fill_ids), hidden) bfloat16: what the language model's embedding table would hold for these ids."""
    rows = torch.empty(len(fill_ids), hidden_size)
    for index, token in enumerate(fill_ids.tolist()):
        rows[index].normal_(generator=torch.Generator().manual_seed(seed << 20 | token))
    return rows.to(torch.bfloat16)
