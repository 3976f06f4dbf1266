"""What is published on encode nodes that clients of this language node follow: a view of each, kept whole (R72 to R76),
and what of it each client was told.

A view is what was announced up to a number of a stream. A change with the next number is entered; a gap has the encode
node asked for what is missed (R75). A client is told how its view differs from what it was told before, as the ring of
its lane has room.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from embridge.allocator.metrics import Metric
from embridge.allocator.notices import Notice, NoticeKind, NoticeTable, peer_of
from embridge.allocator.records import Lane, LaneState, Peer
from embridge.workers import messages as msg
from embridge.workers.role import Out, RoleContext, Send
from embridge.workers.timing import NS

LOOK_NS: Final = NS // 20
MOST_PIECES: Final = 1024
ROOM: Final = 4  # for how many notices there is to be room: a change makes two, and what is told first two more


@dataclass(slots=True)
class _View:
    """What one encode node has announced."""

    incarnation: int
    stream: int = 0  # 0: nothing was told
    number: int = 0
    items: dict[int, msg.ItemNotice] = field(default_factory=dict)  # by entry
    is_behind: bool = True
    asked_ns: int = 0
    pieces: dict[int, msg.Inventory] = field(default_factory=dict)  # of one inventory, by their first entries
    num_entries: int = 0


@dataclass(slots=True)
class _Told:
    """What a client was told of one node."""

    items: dict[int, msg.ItemNotice] = field(default_factory=dict)
    changed: dict[int, None] = field(default_factory=dict)  # entries at which to look
    stream: tuple[int, int] | None = None  # incarnation and stream of which that is; None: of nothing
    is_all_told: bool = False


class FollowedShelves:
    """Used by the language poller only."""

    def __init__(self, ctx: RoleContext) -> None:
        self._ctx = ctx
        self._control = ctx.control
        self._peers = ctx.control.peers
        self._lanes = [ctx.control.notices(lane) for lane in range(ctx.control.limits.max_clients)]
        self._views: dict[int, _View] = {}  # by peer
        self._told: dict[tuple[int, int], _Told] = {}  # by lane and the word by which its client follows
        self._looked_ns = 0
        self._is_due = False  # a client may follow another node, or none
        self._scan_ns = int(ctx.timing.scan_s * NS)

    # ---- from encode nodes

    def take(self, message: msg.Message, peer: int, now_ns: int) -> bool:
        """A message from a living peer. False: it has no business here."""
        if not isinstance(message, msg.Notices | msg.Inventory):
            return False
        view = self._views.get(peer)
        if view is None or view.incarnation != message.envelope.incarnation or message.stream < view.stream:
            return True  # nobody here follows it any more; or it is late
        if isinstance(message, msg.Inventory):
            self._take_piece(message, view, peer)
        elif message.stream != view.stream:
            view.is_behind = True  # a new life of its poller (R73)
        else:
            self._take_changes(message, view, peer)
        self._looked_ns = min(self._looked_ns, now_ns - LOOK_NS)
        return True

    def _take_changes(self, message: msg.Notices, view: _View, peer: int) -> None:
        if message.first > view.number + 1:
            view.is_behind = True  # the gap is asked for (R75)
            return
        for number, change in enumerate(message.changes, message.first):
            if number == view.number + 1 and change.entry < view.num_entries:
                view.number = number
                self._enter(view, change)
                self._look_at(peer, [change.entry])

    @staticmethod
    def _enter(view: _View, change: msg.ItemNotice) -> None:
        if change.generation:
            view.items[change.entry] = change
        else:
            view.items.pop(change.entry, None)

    def _take_piece(self, piece: msg.Inventory, view: _View, peer: int) -> None:
        """Take all that was announced, once all pieces are here (R76)."""
        others = list(view.pieces.values())
        if others and (others[0].stream, others[0].number) != (piece.stream, piece.number):
            view.pieces.clear()
        if len(view.pieces) > MOST_PIECES or piece.num_entries > MOST_PIECES * msg.MAX_NOTICES:
            view.pieces.clear()
            return
        view.pieces[piece.first_entry] = piece
        end = 0
        while end in view.pieces and end < piece.num_entries:
            end = max(view.pieces[end].end_entry, end + 1)
        if end < piece.num_entries or (piece.stream, piece.number) < (view.stream, view.number):
            return
        pieces, view.pieces = view.pieces, {}
        entries = set(view.items)
        view.num_entries = piece.num_entries
        view.items = {
            it.entry: it
            for piece in pieces.values()
            for it in piece.items
            if it.generation and piece.first_entry <= it.entry < piece.end_entry
        }
        view.stream, view.number, view.is_behind = piece.stream, piece.number, False
        self._look_at(peer, entries | set(view.items))

    def _look_at(self, peer: int, entries: Iterable[int]) -> None:
        entries = list(entries)
        for (_, word), told in self._told.items():
            if peer_of(word) == peer:
                told.changed.update(dict.fromkeys(entries))

    # ---- turns

    def hurry(self) -> None:
        """A client has said that it follows other nodes than before."""
        self._is_due = True

    def step(self, now_ns: int, out: list[Out]) -> None:
        """Look which nodes are followed, ask them, and tell the clients. While nobody is known to follow any, and no
        client has said so, the slow scan does that.
        """
        is_wanted = self._is_due or self._told or self._views
        if now_ns - self._looked_ns < (LOOK_NS if is_wanted else self._scan_ns):
            return
        self._looked_ns, self._is_due = now_ns, False
        followed = self._followed()
        for key in self._told.keys() - followed:
            del self._told[key]
        wanted = {peer_of(word) for _, word in followed}
        for peer in [peer for peer, view in self._views.items() if peer not in wanted or not self._is_it(peer, view)]:
            self._lose(peer)
        for peer in wanted:
            if self._peers.is_alive(peer):
                self._ask(peer, now_ns, out)
        for lane, word in followed:
            before = self._lanes[lane].num_told()
            self._tell(lane, word, self._told.setdefault((lane, word), _Told()))
            if self._lanes[lane].num_told() > before:
                self._control.bell(f"library{lane}").ring()  # it wakes who waits for a notice

    def next_ns(self) -> int | None:
        """When it wants to look; None: nobody follows, as far as it knows."""
        return self._looked_ns + LOOK_NS if self._told or self._is_due else None

    def _followed(self) -> list[tuple[int, int]]:
        """(lane, word) of all that is followed; what a dead client followed, nobody does."""
        found: list[tuple[int, int]] = []
        for lane, table in enumerate(self._lanes):
            words = table.followed()
            if words and self._control.lanes.get(lane, Lane.STATE) != LaneState.ATTACHED:
                table.clear()
            else:
                found += [(lane, word) for word in words if peer_of(word) < self._peers.num_peers]
        return found

    def _is_it(self, peer: int, view: _View) -> bool:
        return self._peers.is_alive(peer) and self._peers.get(peer, Peer.INCARNATION) == view.incarnation

    def _lose(self, peer: int) -> None:
        """A node is gone, or nobody follows it: nothing is known of it."""
        self._look_at(peer, set(self._views.pop(peer).items))

    def _ask(self, peer: int, now_ns: int, out: list[Out]) -> None:
        """Say that it is followed, with each heartbeat, and at once when something was missed."""
        view = self._views.get(peer)
        if view is None:
            view = self._views[peer] = _View(self._peers.get(peer, Peer.INCARNATION))
        pause_s = self._ctx.timing.heartbeat_s if view.is_behind else self._ctx.timing.idle_heartbeat_s
        if view.asked_ns and now_ns - view.asked_ns < pause_s * NS:
            return
        if view.is_behind and view.asked_ns:
            self._ctx.count(Metric.NOTICE_GAPS)
        view.asked_ns, view.is_behind = now_ns, not view.stream
        record = self._peers.record(peer)
        follow = msg.Follow(self._ctx.envelope(view.incarnation), view.stream, view.number)
        out.append(Send(record.poller_addr, follow, record.key))

    def _tell(self, lane: int, word: int, told: _Told) -> None:
        """Tell a client how things stand, as far as its ring has room."""
        table, view = self._lanes[lane], self._views.get(peer_of(word))
        stream = (view.incarnation, view.stream) if view is not None and view.stream else None
        room = table.room()
        if told.stream != stream and room >= ROOM:
            told.items.clear()
            table.put(Notice(NoticeKind.RESYNC, word))
            told.stream, told.is_all_told, room = stream, False, room - 1
            told.changed = dict.fromkeys(view.items) if view is not None and stream else {}
        if told.stream != stream or stream is None or view is None:
            return
        while told.changed and room >= ROOM:
            entry = next(iter(told.changed))
            del told.changed[entry]
            room -= self._tell_change(table, word, told.items.pop(entry, None), view.items.get(entry))
            if entry in view.items:
                told.items[entry] = view.items[entry]
        if not told.changed and not told.is_all_told and room >= ROOM:
            told.is_all_told = True
            table.put(Notice(NoticeKind.ALL_TOLD, word))

    @staticmethod
    def _tell_change(table: NoticeTable, word: int, was: msg.ItemNotice | None, now: msg.ItemNotice | None) -> int:
        """How many notices that took."""
        if was == now:
            return 0
        if was is not None:
            table.put(Notice(NoticeKind.EVICTED, word, was.key, was.generation, was.num_bytes))
        if now is not None:
            table.put(Notice(NoticeKind.PUBLISHED, word, now.key, now.generation, now.num_bytes))
        return (was is not None) + (now is not None)
