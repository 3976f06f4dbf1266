"""A word of the header with a bit a lane: whose library threads wait for something, so that whoever has it can ring them."""

from __future__ import annotations

from embridge.allocator._core import Mapping, Words
from embridge.allocator.layout import ControlLayout, Header


class LaneBits:
    """Set and cleared by the lane's client, cleared by the poller when that is dead; read by whoever may have what is waited for."""

    def __init__(self, mapping: Mapping, layout: ControlLayout, word: Header) -> None:
        self._header = Words(mapping, layout.header, 64)
        self._word = word

    def set(self, lane: int, waits: bool) -> None:
        if waits:
            self._header.set_bits(self._word, 1 << lane)
        else:
            self._header.clear_bits(self._word, 1 << lane)

    def has(self, lane: int) -> bool:
        return bool(self._header.load(self._word) >> lane & 1)

    def lanes(self) -> list[int]:
        """Those that wait; one load while none does."""
        word = self._header.load(self._word)
        return [lane for lane in range(word.bit_length()) if word >> lane & 1] if word else []
