"""What an encode node has told a language node of the requests in flight between the two, kept on both sides (R77).

The encode side tells what has changed, and with each heartbeat a digest of all that it has told: how many requests, and
the sum of the hashes of what was told of each last. The language side keeps the same of what it has heard. Messages of
one connection come in order, so the two differ only if one was lost, or one of the two processes has begun anew; then
all requests are told again, in pieces. A request that has ended is not in the digest: it is told with each heartbeat
until it is closed (R23).

Of two requests that a slot of the language node has had, only the later counts, on both sides.
"""

from __future__ import annotations

from heapq import nsmallest
from itertools import islice
from typing import Final, NamedTuple

from embridge.allocator.status import TERMINAL
from embridge.workers import messages as msg

MODULUS = 1 << 63
_new: Final = tuple.__new__  # a NamedTuple's own goes through one more function
END_OF_SLOTS = 1 << 16


class At(NamedTuple):
    """One destination of one request of this encode node."""

    slot: int
    epoch: int
    destination: int


class _Entry(NamedTuple):
    state: msg.RoomState
    hash: int


class _List:
    """Requests by their slots at the language node, with what was told of each last, and the digest of all of it."""

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        self._sum = 0

    @property
    def digest(self) -> tuple[int, int]:
        """How many requests, and the sum of their hashes."""
        return len(self._entries), self._sum

    def put(self, state: msg.RoomState) -> bool:
        """Note what was told of a request last. False if it is over, or a later one has its slot."""
        slot = state.key.slot
        held = self._entries.get(slot)
        if held is not None and held.state.key.epoch > state.key.epoch:
            return False
        self._remove(slot)
        if state.phase >= TERMINAL:
            return False
        entry = self._entries[slot] = _new(_Entry, (state, msg.hash_of(state)))
        self._sum = (self._sum + entry.hash) % MODULUS
        return True

    def drop(self, key: msg.RequestKey) -> None:
        """Forget a request."""
        held = self._entries.get(key.slot)
        if held is not None and held.state.key.epoch == key.epoch:
            self._remove(key.slot)

    def _remove(self, slot: int) -> None:
        held = self._entries.pop(slot, None)
        if held is not None:
            self._sum = (self._sum - held.hash) % MODULUS


class HeardRooms(_List):
    """What a language node has heard of the requests in flight with one encode node."""

    bootstrap_restarts: int | None = None
    """How often that node's bootstrap was restarted, by its last heartbeat."""

    def __init__(self) -> None:
        super().__init__()
        self._unknown: dict[int, msg.RequestKey] = {}

    def put_unknown(self, state: msg.RoomState) -> None:
        """Note what was told of a request that this node does not know (any more), and has closed there."""
        if self.put(state):
            self._unknown[state.key.slot] = state.key

    def unknown(self) -> list[msg.RequestKey]:
        """Those of them that have not been said to be over since."""
        return list(self._unknown.values())

    def _remove(self, slot: int) -> None:
        super()._remove(slot)
        self._unknown.pop(slot, None)

    def state(self, slot: int, epoch: int) -> msg.RoomState | None:
        """What was heard of a request last; None: nothing, or it is over."""
        held = self._entries.get(slot)
        return held.state if held is not None and held.state.key.epoch == epoch else None

    def keep_only(self, first_slot: int, end_slot: int, rooms: list[msg.RoomState]) -> None:
        """Forget the requests in these slots that are not among `rooms`, which are all of them."""
        listed = {room.key.slot for room in rooms}
        for slot in [slot for slot in self._entries if first_slot <= slot < end_slot and slot not in listed]:
            self._remove(slot)


class HeardNodes:
    """What a language node has heard of each encode node, by its entry among the peers."""

    def __init__(self) -> None:
        self._nodes: dict[int, tuple[int, HeardRooms]] = {}  # peer -> (incarnation, ...)

    def of(self, peer: int, incarnation: int) -> HeardRooms:
        """What was heard of one incarnation; of another one that had its entry before nothing is kept."""
        held = self._nodes.get(peer)
        if held is None or held[0] != incarnation:
            held = self._nodes[peer] = (incarnation, HeardRooms())
        return held[1]


class ToldRooms(_List):
    """What an encode node has told one language node of the requests in flight with it."""

    def __init__(self) -> None:
        super().__init__()
        self._states: dict[At, msg.RoomState] = {}
        self._at: dict[int, At] = {}  # slot there -> the request that counts
        self._ended: dict[At, int] = {}  # -> how many heartbeats there had been when it was said
        self._num_beats = 0
        self._stale: dict[At, None] = {}
        self._closed: dict[int, msg.RequestKey] = {}  # slot there -> closed, and its peer was not told that it is over

    def __len__(self) -> int:
        """How many are in flight, those that have ended and are not closed included."""
        return len(self._states)

    def tell(self, at: At, state: msg.RoomState) -> None:
        """Note what is told of a request."""
        self._states[at] = state
        self._stale.pop(at, None)
        if self.put(state):
            self._at[state.key.slot] = at
        elif state.phase >= TERMINAL:
            self._ended.setdefault(at, self._num_beats)
            if state.key.slot not in self._entries:
                self._at.pop(state.key.slot, None)

    def differs(self, at: At, state: msg.RoomState) -> None:
        """Have the next heartbeat tell a request if this, which is its state now, is not what was told last."""
        if self._states.get(at) != state:
            self._stale[at] = None

    def leave(self, at: At) -> None:
        """A request that was told of has ended, and somebody else has said so: a heartbeat repeats it."""
        self._ended.setdefault(at, self._num_beats)

    def close(self, at: At) -> None:
        """The peer has closed a request. It knows how that has ended, so the next heartbeat names its key alone."""
        state = self._states.pop(at, None)
        self._stale.pop(at, None)
        self._ended.pop(at, None)
        if state is not None and self._at.get(state.key.slot) == at:
            del self._at[state.key.slot]
            self._closed[state.key.slot] = state.key

    @property
    def num_closed(self) -> int:
        """How many there are for `take_closed`."""
        return len(self._closed)

    def take_closed(self, most: int) -> list[msg.RequestKey]:
        """What a heartbeat is to name as closed; in flight no more from now on."""
        closed = list(islice(self._closed.values(), most))
        for key in closed:
            del self._closed[key.slot]
            self.drop(key)
        return closed

    def forget(self, at: At) -> None:
        """It is closed, and was told to be over; or it is released."""
        state = self._states.pop(at, None)
        self._ended.pop(at, None)
        self._stale.pop(at, None)
        if state is not None:
            self.drop(state.key)
            if self._at.get(state.key.slot) == at:
                del self._at[state.key.slot]

    def due(self) -> list[At]:
        """Of whom the next heartbeat is to tell: those that have changed, and those that have ended some time ago: of
        the others the peer may just have heard, and be about to close them.
        """
        ended = [at for at, since in self._ended.items() if since < self._num_beats]
        self._num_beats += 1
        return list(dict.fromkeys([*self._stale, *ended]))

    def piece(self, first_slot: int, most: int) -> tuple[int, list[At]]:
        """The first requests in flight whose slots there are `first_slot` or above, and the slot before which they are
        all of them.
        """
        slots = nsmallest(most + 1, (slot for slot in self._at if slot >= first_slot))
        end = slots[most] if len(slots) > most else END_OF_SLOTS
        for key in [key for slot, key in self._closed.items() if first_slot <= slot < end]:
            self.drop(key)  # the piece does not name it
        return end, [self._at[slot] for slot in slots[:most]]
