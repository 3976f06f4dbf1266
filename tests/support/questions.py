"""Fetches of published items, message by message: what the other node asks, grants and answers is the test's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import torch

from embridge.allocator.geometry import SHELF_BLOCK_BYTES
from embridge.allocator.records import Slot
from embridge.allocator.status import Phase
from embridge.pipeline.client.fetch import Fetch
from embridge.workers import messages as msg
from support.alone import BLOCK_SIZE, ENCODE_ADDRESS, EncodeAlone, LanguageAlone
from support.simulation import LIMITS

ROW_BYTES: Final = 4  # two elements of bfloat16, as `Alone` has them
THERE: Final = "there.sock"


class Shelved(EncodeAlone):
    """An encode node with a shelf of so many blocks; a fetch's room is its slot's number."""

    def __init__(self, num_blocks: int = 2, **options: Any) -> None:
        limits = replace(LIMITS, shelf_bytes=num_blocks * SHELF_BLOCK_BYTES)
        super().__init__(**{"limits": limits, **options})

    def publish(self, key: str, num_bytes: int = 40, *, version: int = 1) -> int:
        """Publish so many bytes of a version, in place of what is there; its generation."""
        rows = torch.full((1, num_bytes), version, dtype=torch.uint8)
        generation = self.client.publish(key, rows, replace=True).generation
        self.settle()
        return generation

    def ask(
        self, slot: int, key: str, *, epoch: int = 1, generation: int = 0, node_id: int = 10, **changes: Any
    ) -> None:
        own = f"tcp://10.1.{node_id >> 8 & 255}.{node_id & 255}:2"
        values: dict[str, Any] = {
            "envelope": self.envelope(node_id=node_id), "key": msg.RequestKey(slot, epoch, slot), "endpoint": own,
            "dst_port": 7, "session_id": 1, "base": 1 << 32, "dst_embedding_indices": [], "first_block": 0,
            "required_dst_info_num": 1, "allocated_tokens": 0, "registration": 1, "item": key.encode(),
            "generation": generation,
        }  # fmt: skip
        self.hears("bootstrap", msg.Ask(**{**values, **changes}))

    @property
    def num_pinned(self) -> int:
        return self.control.shelf.counts().pinned

    def open(self) -> list[tuple[int, int]]:
        """The (slot, epoch) of what is open here."""
        return list(self.control.open_slots())

    def told(self) -> list[msg.RoomState]:
        """What was told since `forget_sent`."""
        return [*(it.room for it in self.sent(msg.Status)), *(it.room for it in self.sent(msg.Landed))]


def state_of(
    node: LanguageAlone, slot: int, phase: Phase, sent: int, item: msg.ItemState | None, **changes: Any
) -> msg.RoomState:
    """How the encode node sees a fetch."""
    total = -(-item.num_bytes // ROW_BYTES) if item is not None else 0
    get = node.slots.get
    values: dict[str, Any] = {
        "key": msg.RequestKey(slot, get(slot, Slot.EPOCH), get(slot, Slot.ROOM)), "phase": phase, "resumed": False,
        "sent_tokens": sent, "total_tokens": total, "ready_tokens": total,
        "known_blocks": node.slots.granted(slot)[0], "session": get(slot, Slot.SESSION), "tainted": 0, "code": 0,
        "reason": "", "checksum": 0, "item": item,
    }  # fmt: skip
    return msg.RoomState(**{**values, **changes})


def tell(node: LanguageAlone, slot: int, phase: Phase, sent: int, item: msg.ItemState | None, **changes: Any) -> None:
    state = state_of(node, slot, phase, sent, item, **changes)
    node.told.put(state)
    node.hears("poller", msg.Status(node.envelope(node_id=20), state))


def fetch_from_afar(node: LanguageAlone, key: str, **named: Any) -> tuple[Fetch, int]:
    """Begin a fetch from the encode node, which is on another host; (fetch, its slot)."""
    fetch = node.client.fetch(key, ENCODE_ADDRESS, **named)
    node.settle()
    if not list(node.control.peers.alive()):
        envelope = node.envelope(node_id=20)
        fields = (ENCODE_ADDRESS, "tcp://10.0.0.20:2", node.world.engine.name, 16, 16, THERE)
        node.hears("bootstrap", msg.Registered(envelope, *fields), address=ENCODE_ADDRESS)
    node.advance(0.3, until=lambda: bool(list(node.control.open_slots())))
    ((slot, _),) = list(node.control.open_slots())
    return fetch, slot


def land(node: LanguageAlone, slot: int, data: bytes) -> None:
    """Write bytes into the blocks that are granted, from the first on, as the encode node does."""
    payload, begin = memoryview(node.node.payload), 0
    block_bytes = BLOCK_SIZE * ROW_BYTES
    for k in range(node.slots.granted(slot)[0]):
        block = node.control.windows.get(slot, k)
        part = data[k * block_bytes : (k + 1) * block_bytes]
        at = begin + block * block_bytes
        payload[at : at + len(part)] = part
