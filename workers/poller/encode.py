"""Encode side of the poller: it raises the encode node's status words, and tells every destination what concerns it.

The word is (phase, least `sent` of all required destinations, an absent one counting as 0), computed from the
watermarks and never passed by a caller (B2, R18). A destination is told the common phase and its own progress, and what
else has changed with the next heartbeat. A heartbeat's digest says what was told of all that are in flight; who misses
something of it asks for all, and is told it in pieces, with pauses (R77; `room_lists.py`). A request that has ended is
told again with every heartbeat until its destination closes it or is dead (R23), and its slot is free only when the
worker has said that nothing of it is under way and the client has cleared it.

Where nodes verify, `sent` and the checksum of those rows come from one word, and a request succeeds only when each
destination has said that it has checked all of it (R27): then a row that was damaged on its way
fails the request on every side.
"""

from __future__ import annotations

from dataclasses import dataclass

from embridge.allocator.checksums import RowSum
from embridge.allocator.errors import FailureCode
from embridge.allocator.geometry import MAX_TOKENS
from embridge.allocator.plain_enums import Destination, JoinedBy, Kick, Metric, Peer, Phase, Slot, WrittenBy
from embridge.allocator.records import Process
from embridge.allocator.rings import Record
from embridge.allocator.status import TERMINAL
from embridge.workers import messages as msg
from embridge.workers.poller.base import Poller
from embridge.workers.poller.peer_watch import why_lost
from embridge.workers.poller.room_lists import END_OF_SLOTS, At, ToldRooms
from embridge.workers.reports import room_state, state_of
from embridge.workers.role import Inbox, Out, RoleContext
from embridge.workers.timing import NS

MOST_ROOMS = 1024  # in one heartbeat, of some 100 bytes each: far below the limit of a message
PIECE_ROOMS = 128  # of a snapshot; some milliseconds of work
PIECE_PAUSE_NS = NS // 100  # between two pieces, for everything else
SNAPSHOT_PAUSE = 4  # times as long as the last snapshot to a peer took, until the next one to it


@dataclass(slots=True)
class Snapshot:
    """All that is in flight with a peer is being told; `next_slot` of its slots are done."""

    began_ns: int
    next_slot: int = 0


class Publisher(Poller):
    """The encode node's poller role."""

    def __init__(self, ctx: RoleContext) -> None:
        super().__init__(ctx)
        self._dsts = ctx.control.destinations
        self._told: dict[int, dict[int, tuple[int, ...]]] = {}  # slot -> destination -> what it was told at once last
        self._rooms: dict[tuple[int, int], ToldRooms] = {}  # (peer, incarnation) -> all that it was told last
        self._snapshots: dict[tuple[int, int], Snapshot] = {}  # under way
        self._rests: dict[tuple[int, int], int] = {}  # until when no other snapshot begins
        self._piece_ns = 0
        # (peer, slot, epoch there) -> (slot, epoch, destination) here; two where two senders have one grant (R79)
        self._by_key: dict[tuple[int, int, int], list[tuple[int, int, int]]] = {}
        self._keys: dict[int, list[tuple[int, int, int]]] = {}  # slot -> those of them that lead to it
        self._acks_due: set[tuple[int, int, int]] = set()  # (slot, epoch, destination)
        self._sent: dict[int, list[int]] = {}  # slot -> of each destination, when its phase was computed: told together
        self._checksums: dict[int, list[int]] = {}  # slot -> of these rows, where nodes verify

    def step(self, now_ns: int, inbox: Inbox) -> list[Out]:
        out = super().step(now_ns, inbox)
        if self._snapshots and now_ns - self._piece_ns >= PIECE_PAUSE_NS:
            self._piece_ns = now_ns
            with self._ctx.isolated("snapshot"):
                self._go_on_with(next(iter(self._snapshots)))
        return out

    def next_step_ns(self, now_ns: int) -> int:
        due = super().next_step_ns(now_ns)
        return min(due, self._piece_ns + PIECE_PAUSE_NS) if self._snapshots else due

    # ---- what came

    def _kicked(self, record: Record) -> None:
        if record.kick == Kick.ABORTED and self._ctx.is_current(record.slot, record.epoch):
            self._acks_due.add((record.slot, record.epoch, record.value))

    def _session_began(self, worker: int, number: int) -> None:
        raise AssertionError("an encode node has no sessions")

    def _due(self, slot: int, epoch: int) -> None:
        """The deadline: `_serve`, which follows, sees that it has passed."""

    def _take(self, message: msg.Message, peer: int) -> bool:
        match message:
            case msg.Close():
                self._close(message.key, peer)
            case msg.Heartbeat():
                pass
            case msg.Resync():
                self._begin_snapshot((peer, message.envelope.incarnation))
            case msg.Checked() if self._control.verify:
                for rows in message.rooms:
                    self._checked(rows, peer)
            case _:
                return False
        return True

    def _checked(self, rows: msg.CheckedRows, peer: int) -> None:
        """How many rows a destination has checked (R27)."""
        for slot, epoch, d in self._held_by(rows.key, peer):
            if not self._ctx.is_live(slot, epoch):
                continue
            sent = RowSum.of(self._dsts.get(slot, d, Destination.SUMMED)).tokens
            if rows.checked_tokens > sent:
                checked = f"{rows.checked_tokens} tokens > {sent} tokens that were sent to it"
                reason = f"a destination says that it has checked {checked}"
                self._slots.claim_failure(slot, FailureCode.PROTOCOL, reason)
                self._serve(slot, epoch)
            elif self._dsts.raise_to(slot, d, Destination.VERIFIED, rows.checked_tokens):
                self._serve(slot, epoch)

    def _close(self, key: msg.RequestKey, peer: int) -> None:
        for slot, epoch, d in self._held_by(key, peer):
            if self._ctx.is_current(slot, epoch):
                self._dsts.set(slot, d, Destination.CLOSED, 1)
                self._serve(slot, epoch)
                self._is_told_no_more(slot, epoch, d)

    def _held_by(self, key: msg.RequestKey, peer: int) -> list[tuple[int, int, int]]:
        """What a peer names by a key, of all that it was told."""
        return list(self._by_key.get((peer, key.slot, key.epoch), ()))

    # ---- one request

    def _serve(self, slot: int, epoch: int) -> None:
        self._enter(slot, epoch)
        phase = self._read_progress(slot)
        is_raised = phase == Phase.Success
        if self._ctx.status.epoch(slot) != epoch:
            return  # released since, and open again
        if phase < TERMINAL:
            self._advance(slot, epoch)
            phase = self._read_progress(slot)
        self._tell_all(slot, epoch, phase, self._sent[slot], is_raised=is_raised)
        if phase == Phase.Success:
            self._note_success(slot, epoch)
        if phase >= TERMINAL:
            self._end(slot, epoch)

    def _read_progress(self, slot: int) -> int:
        """Note what each destination has. Returns the phase that goes with it: a client that writes directly raises the
        word after the watermark, so the word is read first.
        """
        phase = self._ctx.status.phase(slot)
        destinations, get = range(self._slots.get(slot, Slot.NUM_DESTINATIONS)), self._dsts.get
        if not self._control.verify:
            self._sent[slot] = [get(slot, d, Destination.SENT) for d in destinations]
            return phase
        sums = [RowSum.of(self._dsts.get(slot, d, Destination.SUMMED)) for d in destinations]
        self._sent[slot] = [tokens for tokens, _ in sums]
        self._checksums[slot] = [checksum for _, checksum in sums]
        return phase

    def _advance(self, slot: int, epoch: int) -> None:
        sent, words = self._sent[slot], self._slots.get_all(slot)
        count = len(sent)
        there = [self._dsts.get_all(slot, d) for d in range(count)]
        if self._failed(slot, epoch, words, there):
            return
        required, total = words[Slot.REQUIRED], words[Slot.TOTAL]
        begin = max([it[Destination.BEGIN] for it in there], default=0)
        if 0 < total <= begin:
            reason = (
                f"a destination has {begin} rows from another encode node, "
                f"and the encoder announces {total} tokens here"
            )
            self._fail(slot, epoch, FailureCode.PROTOCOL, reason)
            return
        if not required or count < required:
            return
        if self._raise(slot, epoch, Phase.WaitingForInput, 0):
            self._tell_all(slot, epoch, Phase.WaitingForInput, [0] * count)
        least = min(sent)
        if not total or not least:
            return
        first = [it[Destination.FIRST_GRANT] for it in there]
        if min(first) < total and all(s >= min(g, total) > 0 for s, g in zip(sent, first, strict=True)):
            before = self._ctx.status.phase(slot)
            self._raise(slot, epoch, Phase.Transferring, min(least, total))
            if before < Phase.Transferring:
                self._tell_all(slot, epoch, Phase.Transferring, sent)
        if least >= total and self._is_verified(there, total):
            self._raise(slot, epoch, Phase.Success, total)
        else:
            self._raise(slot, epoch, self._ctx.status.phase(slot), least)

    def _is_verified(self, there: list[list[int]], total: int) -> bool:
        """Whether every destination has checked every row, where nodes verify (R27)."""
        return not self._control.verify or all(it[Destination.VERIFIED] >= total for it in there)

    def _failed(self, slot: int, epoch: int, words: list[int], there: list[list[int]]) -> bool:
        """End the request if something says so: a reason somebody claimed, its client, a peer, its deadline."""
        code, reason = words[Slot.FAILURE], ""
        if not code and self._ctx.is_lane_dead(slot):
            code, reason = FailureCode.CLIENT_DIED, self._ctx.why_lane_is_dead(slot, "encoder")
        for it in there:
            peer = it[Destination.PEER] - 1
            if not code and not (
                self._control.peers.is_it(peer, it[Destination.INCARNATION])
                and self._control.peers.get(peer, Peer.REGISTRATION) == it[Destination.REGISTRATION]
            ):
                code, reason = FailureCode.PEER_LOST, f"language {why_lost(self._control.peers, peer)}"
            if not code and it[Destination.CLOSED]:
                code, reason = FailureCode.ABORTED, "a destination no longer knows the request"
        if not code and self._now_ns >= words[Slot.DEADLINE_NS]:
            code, reason = FailureCode.TIMEOUT, self._why_late(slot, len(there))
        if not code:
            return False
        self._fail(slot, epoch, code, reason)
        return True

    def _why_late(self, slot: int, count: int) -> str:
        required = self._slots.get(slot, Slot.REQUIRED)
        if not required or count < required:
            waited = f"{count} of {required or 'unknown'} destinations had sent their init"
        else:
            sent = [self._dsts.get(slot, d, Destination.SENT) for d in range(count)]
            granted = [self._dsts.get(slot, d, Destination.GRANTED_TOKENS) for d in range(count)]
            ready, total = self._slots.get(slot, Slot.READY), self._slots.get(slot, Slot.TOTAL)
            waited = f"sent {sent} granted {granted} ready {ready} of {total} tokens"
        return f"deadline passed on the encode side: {waited}"

    # ---- telling

    def _checksum(self, slot: int, d: int, sent: int) -> int:
        return self._checksums[slot][d] if sent and self._control.verify else 0

    def _tell_all(self, slot: int, epoch: int, phase: int, sent: list[int], *, is_raised: bool = False) -> None:
        for d, tokens in enumerate(sent):
            self._tell(slot, epoch, d, phase, tokens, is_raised)

    def _tell(self, slot: int, epoch: int, d: int, phase: int, sent: int, is_raised: bool = False) -> None:
        """Tell one destination, if what concerns it has changed since it was told last.

        `is_raised`: somebody else has raised the word to Success. If that was the transfer worker it has told the
        destination, too, and the next heartbeat repeats what it said (R83).
        """
        there = self._dsts.get_all(slot, d)
        peer, incarnation = there[Destination.PEER] - 1, there[Destination.INCARNATION]
        if not self._control.peers.is_it(peer, incarnation) or not self._is_taken_up(slot, epoch, there):
            return
        rooms, at = self._rooms_with((peer, incarnation)), At(slot, epoch, d)
        if there[Destination.CLOSED]:
            rooms.close(at)
            return
        state = state_of(self._ctx, slot, there, phase, sent, self._checksum(slot, d, sent))
        granted = there[Destination.GRANTED_TOKENS]
        if not self._ctx.is_current(slot, epoch):
            return  # it was released after it had been asked for, and what was read may be the next one's (R16)
        # more ready than granted is news, and that they fill a block; how much more is not
        total, ready = state.total_tokens, state.ready_tokens
        filled = min(granted + self._control.geometry.block_size, total or MAX_TOKENS)
        crossing = min(ready, granted + 1) if ready < filled else filled
        news = (epoch, phase, state.sent_tokens, total, crossing, state.known_blocks, state.tainted)
        told = self._told.setdefault(slot, {}).get(d)
        is_only = len(self._sent[slot]) == 1  # of several the worker tells none
        is_told = is_raised and is_only and there[Destination.WRITTEN_BY] != WrittenBy.CLIENT
        if told is not None and told != news and is_told:
            rooms.leave(at)
        elif told == news:
            rooms.differs(at, state)
        else:
            self._told[slot][d] = news
            rooms.tell(at, state)
            if told is None:
                key = (peer, state.key.slot, state.key.epoch)
                self._by_key.setdefault(key, []).append((slot, epoch, d))
                self._keys.setdefault(slot, []).append(key)
            if told is None and phase < TERMINAL and not state.sent_tokens and total:
                self._say(peer, msg.Announce(self._envelope_to(peer), state.key, total))
            self._say(peer, msg.Status(self._envelope_to(peer), state))
        if (
            (slot, epoch, d) in self._acks_due
            and phase >= TERMINAL
            and self._slots.get(slot, Slot.QUIESCED_EPOCH) == epoch
        ):
            self._acks_due.discard((slot, epoch, d))
            self._say(peer, msg.AbortAck(self._envelope_to(peer), state.key, state.tainted))

    def _is_taken_up(self, slot: int, epoch: int, there: list[int]) -> bool:
        """Whether the bootstrap knows the destination to which a client has bound its slot: else a message that answers
        ours would find it unknown there (R79). It kicks when it does.
        """
        if self._slots.get(slot, Slot.JOINED_BY) != JoinedBy.CLIENT:
            return True
        peer, remote_slot = there[Destination.PEER] - 1, there[Destination.REMOTE_SLOT]
        if self._control.peers.tombstone(peer, remote_slot) >= there[Destination.REMOTE_EPOCH]:
            return True
        self._ctx.to("bootstrap").send(Kick.OPEN, slot, epoch)
        return False

    # ---- heartbeats and snapshots

    def _rooms_with(self, node: tuple[int, int]) -> ToldRooms:
        rooms = self._rooms.get(node)
        if rooms is None:
            self._rooms = {
                other: held for other, held in self._rooms.items() if len(held) or self._control.peers.is_it(*other)
            }
            self._rests = {other: until for other, until in self._rests.items() if until > self._now_ns}
            rooms = self._rooms[node] = ToldRooms()
        return rooms

    def _num_rooms(self, peer: int) -> int:
        rooms = self._rooms.get((peer, self._control.peers.get(peer, Peer.INCARNATION)))
        return len(rooms) if rooms is not None else 0

    def _beats(self, peer: int, envelope: msg.Envelope) -> list[msg.Message]:
        rooms = self._rooms.get((peer, envelope.for_incarnation), ToldRooms())
        restarts, due = self._control.processes.get("bootstrap", Process.NUM_RESTARTS), rooms.due()
        beats: list[msg.Message] = []
        for first in range(0, max(len(due), rooms.num_closed, 1), MOST_ROOMS):
            listed = self._tell_again(rooms, due[first : first + MOST_ROOMS])
            closed = rooms.take_closed(MOST_ROOMS)
            beats.append(msg.Heartbeat(envelope, listed, closed, *rooms.digest, restarts))
        return beats

    def _tell_again(self, rooms: ToldRooms, which: list[At]) -> list[msg.RoomState]:
        """The states of these requests now, noted as told; without those that are no more."""
        states = []
        for at in which:
            if not self._ctx.is_current(at.slot, at.epoch):
                continue
            phase = self._read_progress(at.slot)
            if at.destination >= len(self._sent[at.slot]):
                continue  # it was released since, and its slot is open again
            sent = self._sent[at.slot][at.destination]
            checksum = self._checksum(at.slot, at.destination, sent)
            state = room_state(self._ctx, at.slot, at.destination, phase, sent, checksum)
            if self._ctx.is_current(at.slot, at.epoch):  # still: what was read is its own (R16)
                rooms.tell(at, state)
                states.append(state)
        return states

    def _begin_snapshot(self, node: tuple[int, int]) -> None:
        """Tell a peer all that is in flight with it, unless that is under way, or was just done."""
        if node not in self._snapshots and self._now_ns >= self._rests.get(node, 0):
            self._snapshots[node] = Snapshot(self._now_ns)
            self._ctx.count(Metric.SNAPSHOTS)

    def _go_on_with(self, node: tuple[int, int]) -> None:
        """Send one piece of a snapshot; the next one is another peer's turn."""
        snapshot, rooms, (peer, incarnation) = self._snapshots.pop(node), self._rooms.get(node, ToldRooms()), node
        if not self._control.peers.is_it(peer, incarnation):
            return
        first, (end, which) = snapshot.next_slot, rooms.piece(snapshot.next_slot, PIECE_ROOMS)
        self._say(peer, msg.Snapshot(self._ctx.envelope(incarnation), first, end, self._tell_again(rooms, which)))
        if end < END_OF_SLOTS:
            snapshot.next_slot = end
            self._snapshots[node] = snapshot
        else:
            self._rests[node] = self._now_ns + SNAPSHOT_PAUSE * (self._now_ns - snapshot.began_ns)

    def _is_told_no_more(self, slot: int, epoch: int, d: int) -> None:
        for rooms in self._rooms.values():
            rooms.forget(At(slot, epoch, d))

    # ---- the end

    def _end(self, slot: int, epoch: int) -> None:
        if self._slots.get(slot, Slot.QUIESCED_EPOCH) != epoch:
            self._ctx.to_worker_of(slot).send(Kick.LOOK, slot, epoch)  # it says when nothing of it is under way
            return
        lane_dead = self._ctx.is_lane_dead(slot)
        if lane_dead and self._control.blocks.cells.reclaim(slot, epoch, False):
            self._control.ring_block_waiters()
        if not lane_dead and self._slots.get(slot, Slot.CLEARED_EPOCH) != epoch:
            return
        for d in range(self._slots.get(slot, Slot.NUM_DESTINATIONS)):
            peer = self._dsts.get(slot, d, Destination.PEER) - 1
            if self._control.peers.is_it(peer, self._dsts.get(slot, d, Destination.INCARNATION)) and not (
                self._dsts.get(slot, d, Destination.CLOSED)
            ):
                return
        self._ctx.to("bootstrap").send(Kick.RELEASE, slot, epoch)
        self._forget(slot)

    def _forget(self, slot: int) -> None:
        """By what was noted here: the slot's own words may be about the next request by now."""
        epoch = self._live.pop(slot, 0)
        self._sent.pop(slot, None)
        self._checksums.pop(slot, None)
        for d in self._told.pop(slot, ()):
            self._is_told_no_more(slot, epoch, d)
        if self._acks_due:
            self._acks_due.difference_update([(slot, epoch, d) for d in range(self._dsts.num_destinations)])
        for key in self._keys.pop(slot, ()):
            others = [held for held in self._by_key.pop(key, ()) if held[:2] != (slot, epoch)]
            if others:
                self._by_key[key] = others
