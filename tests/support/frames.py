"""Frames that no node would send, drawn by a seed: from noise to messages that are well formed and lie."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from embridge.workers import messages as msg

ODD_VALUES: tuple[Any, ...] = (
    -1, 0, 1, 2**28, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 1.5, float("nan"), True, None, "", "x" * 129,
    "x" * 5000, "\x00",
    b"", b"\xff" * 64, [], [[]], [0] * 5000, {}, {"a": 1}, {1: 2},
)  # fmt: skip
OVERSIZE = b"\x92" + bytes(msg.MAX_MESSAGE_BYTES)
DEEP = b"\x91" * 20_000  # arrays in arrays


class FrameMaker:
    """Draws frames; `target` is the incarnation they are for, `nodes` are the (node id, incarnation) in whose names
    they come.
    """

    def __init__(self, rng: random.Random, target: int, nodes: list[tuple[int, int]]) -> None:
        self._rng = rng
        self._target = target
        self._nodes = nodes
        self._sent: list[bytes] = []
        self._kinds: list[Callable[[], bytes]] = [
            self.noise, self.truncated, self.bent, self.bent, self.lie, self.lie, self.lie, self.replay
        ]  # fmt: skip

    def frames(self, count: int) -> Iterator[bytes]:
        """So many; every few thousandth is too long, or too deep."""
        for number in range(count):
            if number % 4000 == 7:
                yield OVERSIZE
            elif number % 4000 == 8:
                yield DEEP
            else:
                yield self._rng.choice(self._kinds)()

    def noise(self) -> bytes:
        return self._rng.randbytes(self._rng.randint(0, 200))

    def truncated(self) -> bytes:
        data = self.lie()
        return data[: self._rng.randint(0, len(data) - 1)] if self._rng.random() < 0.8 else data + b"\x00"

    def bent(self) -> bytes:
        """A message with something in it that is of another type, out of range, missing, or too much."""
        fields = msgspec.msgpack.decode(self.lie())
        at = fields
        while True:
            place = self._rng.randrange(len(at))
            if isinstance(at[place], list) and at[place] and self._rng.random() < 0.7:
                at = at[place]
                continue
            break
        how = self._rng.random()
        if how < 0.8:
            at[place] = self._rng.choice(ODD_VALUES)
        elif how < 0.9:
            del at[place]
        else:
            at.append(0)
        return msgspec.msgpack.encode(fields)

    def replay(self) -> bytes:
        """What was sent before, once more."""
        return self._rng.choice(self._sent) if self._sent else self.lie()

    def lie(self) -> bytes:
        """A message of the schema: of another incarnation, an older epoch, an unknown room, a block that is not the
        sender's.
        """
        data = msg.encode(self._message())
        if len(self._sent) < 2000:
            self._sent.append(data)
        else:
            self._sent[self._rng.randrange(2000)] = data
        return data

    def _message(self) -> msg.Message:
        rng = self._rng
        node_id, incarnation = rng.choice(self._nodes)
        target = self._target if rng.random() < 0.8 else rng.choice((0, 1, self._target + 1, 2**63 - 1))
        envelope = msg.Envelope(msg.VERSION, node_id, incarnation + (rng.random() < 0.05), target)
        key = msg.RequestKey(
            rng.choice((0, 1, 2, 3, 63, 64, 65535)), rng.choice((1, 2, 3, (1 << 28) - 1)), rng.randrange(40)
        )
        blocks = [rng.choice((0, 1, 2, 15, 16, 2**32 - 1)) for _ in range(rng.choice((0, 1, 2, 3, 20)))]
        some = rng.choice((0, 1, 4, 8, 16, 2**32 - 1))
        state = msg.RoomState(
            key=key, phase=rng.randrange(5), resumed=rng.random() < 0.5, sent_tokens=some,
            total_tokens=rng.choice((0, 8, 2**32 - 1)),
            ready_tokens=some,
            known_blocks=rng.randrange(4), session=rng.choice((0, 1, 2)), tainted=rng.choice((0, 1, 2**32 - 1)),
            code=rng.choice((0, 99)),
            reason="no", checksum=rng.randrange(1 << 32),
            item=rng.choice((None, None, msg.ItemState(1, 1, some or 1, 11, some or 1))),
        )  # fmt: skip
        endpoint = (
            f"tcp://10.1.{node_id >> 8 & 255}.{node_id & 255}:2"
            if rng.random() < 0.9
            else rng.choice(("", "tcp://x:2"))
        )
        first, required, sent = rng.choice((0, 1, 2**32 - 1)), rng.choice((1, 2, 64)), some
        changes = [
            msg.ItemNotice(
                rng.choice((0, 1, 2, 2**32 - 1)), rng.choice((0, 1, 2, 2**63 - 1)), some, b"k" * rng.choice((0, 1, 256))
            )
            for _ in range(rng.choice((0, 1, 2, 20)))
        ]
        stream, number = rng.choice((0, 1, 2, 2**63 - 1)), rng.choice((0, 1, 2, 3, 2**63 - 1))
        match rng.randrange(20):
            case 0:
                return msg.Register(
                    envelope=envelope, bootstrap_addr="tcp://10.0.0.22:1",
                    poller_addr=rng.choice(("tcp://10.0.0.22:2", "tcp://x:2", "no address", "")),
                    offers=rng.choice(({"shm": "here.sock"}, {"mooncake": "2"}, {"mooncake": "-2", "other": ""}, {})),
                    hidden_size=2, block_size=4, num_blocks=16, dtype="bfloat16",
                    deepstack_layers=0, fill_ids=True, mrope_positions=True,
                    num_slots=64, window_blocks=16, registration=rng.choice((0, 1, 2, 2**63 - 1)),
                    verify=rng.random() < 0.1,
                )  # fmt: skip
            case 1:
                announced = rng.choice(("tcp://10.0.0.22:2", "tcp://x:2"))
                return msg.Registered(
                    envelope, "tcp://10.0.0.22:1", announced, rng.choice(("shm", "mooncake", "other")), 16, 16,
                    rng.choice(("", "here.sock")),
                )
            case 2:
                return msg.Refused(envelope, 7, "no", key if rng.random() < 0.5 else None)
            case 3:
                return msg.Stale(envelope, target)
            case 4 | 5:
                return msg.Init(
                    envelope, key, endpoint, 0, 1, 0, blocks, first, required, len(blocks) * 4, rng.choice((0, 1, 2))
                )
            case 15:
                key = key if rng.random() < 0.5 else msgspec.structs.replace(key, slot=rng.randrange(64))
                blocks, first = (blocks, first) if rng.random() < 0.2 else ([], 0)
                item = rng.choice((b"cat", b"dog", b"\0" * 256))
                return msg.Ask(
                    envelope, key, endpoint, 0, 1, 0, blocks, first, 1, len(blocks) * 4, rng.choice((0, 1, 2)), item,
                    rng.choice((0, 1, 2**63 - 1)),
                )
            case 17:
                return msg.Follow(envelope, stream, number)
            case 18:
                return msg.Notices(envelope, stream, number, changes)
            case 19:
                ends = rng.choice((1, 2, 2**32 - 1)), rng.choice((1, 2, 2**32 - 1))
                return msg.Inventory(envelope, stream, number, rng.choice((0, 1, 2**32 - 1)), *ends, changes)
            case 6:
                return msg.Resume(envelope, key, endpoint, 0, 1, 0, blocks, first, required, len(blocks) * 4, sent)
            case 7:
                return msg.Abort(envelope, key, rng.choice((0, 3, 2**32 - 1)), "no")
            case 8:
                return msg.AbortAck(envelope, key, some)
            case 9:
                return rng.choice((msg.Announce(envelope, key, some), msg.Close(envelope, key)))
            case 10:
                return rng.choice((msg.Status, msg.Landed))(envelope, state)
            case 11:
                return msg.Checked(envelope, [msg.CheckedRows(key, some)] * rng.choice((0, 1, 3)))
            case 12:
                return msg.Resync(envelope)
            case 13:
                first_slot, end_slot = rng.choice((0, 1, 65535)), rng.choice((1, 2, 65536))
                return msg.Snapshot(envelope, first_slot, end_slot, [state] * rng.choice((0, 1, 3)))
            case _:
                rooms = [state] * rng.choice((0, 1, 3))
                keys = [key] * rng.choice((0, 1, 3))
                return msg.Heartbeat(envelope, rooms, keys, rng.choice((0, 1, some)), some, rng.choice((0, 1)))
