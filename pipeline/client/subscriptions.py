"""Following what is published on encode nodes: which items come and go, by a client of a language node (R72 to R76).

What is told comes through a ring of this client's lane, which its node's poller writes (`allocator/notices.py`).
Whoever looks reads it, for all subscriptions of the client, and nothing here waits for another process. The poller
rings the library thread, which looks, and wakes those who wait for a notice.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from embridge.allocator.geometry import Role
from embridge.allocator.notices import NoticeKind, followed_word
from embridge.allocator.records import FOLLOWED_NODES, Peer
from embridge.pipeline.arguments import is_time, said
from embridge.workers.addresses import numeric
from embridge.workers.timing import NS

if TYPE_CHECKING:
    from embridge.pipeline.client.attachment import Attachment
    from embridge.pipeline.client.library import Library

LOOK_S: Final = 0.5  # of who waits, for his own: the library thread tells him
MEET_NS: Final = NS // 2  # between two words to the bootstrap that a node is to be registered with
MOST_KEPT: Final = 4096  # notices, besides two a key, that are kept for who does not read them


class ItemNotice(NamedTuple):
    """What was told: of an item that it is published or gone, or that all before counts no more (`NoticeKind`)."""

    kind: NoticeKind
    key: bytes = b""
    generation: int = 0
    num_bytes: int = 0


class Subscription:
    """What is published on one encode node, as far as this client was told. Made by `Client.subscribe`. Any thread.

    Iterated, it waits for the next notice, without end; `poll` does not wait.
    """

    def __init__(self, all_of_them: Subscriptions, address: str, place: int) -> None:
        self.address = address
        """Of the node, numeric."""
        self.place = place
        """Which of the places of its lane it has."""
        self.node: tuple[int, int, int] | None = None
        """Entry of the peer table, id and incarnation of the node that is followed; None: it is not known yet."""
        self.word = self.meet_ns = 0
        """By which it follows, and when the node is to be met next."""
        self.is_whole = False
        """Whether all that is published there was told; `keys` has less before."""
        self._all = all_of_them
        self._notices: deque[ItemNotice] = deque()
        self._items: dict[bytes, dict[int, int]] = {}  # key -> generation -> bytes

    def poll(self) -> list[ItemNotice]:
        """What was told since the last call. Raises RuntimeError after `Client.close`, ValueError after `close`."""
        self._all.look(self)
        with self._all.turn:
            found = list(self._notices)
            self._notices.clear()
        return found

    def keys(self) -> dict[bytes, int]:
        """The keys that are published there, each with the generation of its newest item. Raises as `poll`, whose
        notices it leaves.
        """
        self._all.look(self)
        with self._all.turn:
            return {key: max(generations) for key, generations in self._items.items()}

    def wait(self, timeout_s: float) -> bool:
        """Wait for a notice for so many seconds; whether there is one. Raises ValueError, and as `poll`."""
        if not is_time(timeout_s) or timeout_s < 0:
            raise ValueError(f"timeout_s: {said(timeout_s)} s must not be negative")
        until_ns = self._all.clock() + int(min(float(timeout_s), 1e9) * NS)
        with self._all.turn:
            while True:
                self._all.look(self)
                left_ns = until_ns - self._all.clock()
                if self._notices or left_ns <= 0:
                    return bool(self._notices)
                self._all.turn.wait(min(left_ns / NS, LOOK_S))

    def __iter__(self) -> Iterator[ItemNotice]:
        while True:
            self.wait(1e9)
            while (notice := self._next()) is not None:  # one by one: who goes away leaves the others
                yield notice

    async def __aiter__(self) -> AsyncIterator[ItemNotice]:
        loop, is_told = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(is_told.set)

        with self._all.telling(tell):
            while True:
                is_told.clear()
                self._all.look(self)
                while (notice := self._next()) is not None:
                    yield notice
                with suppress(TimeoutError):
                    await asyncio.wait_for(is_told.wait(), LOOK_S)

    def _next(self) -> ItemNotice | None:
        with self._all.turn:
            return self._notices.popleft() if self._notices else None

    def take(self, notice: ItemNotice) -> None:
        """Enter what was told (who has the turn)."""
        if notice.kind == NoticeKind.ALL_TOLD:
            self.is_whole = True
            return
        if len(self._notices) >= MOST_KEPT + 2 * len(self._items):
            # as whoever has lost some is told: what there is follows
            self._notices.clear()
            self._notices.append(ItemNotice(NoticeKind.RESYNC))
            kept = [(key, *it) for key, generations in self._items.items() for it in generations.items()]
            self._notices += (ItemNotice(NoticeKind.PUBLISHED, *it) for it in kept)
        self._notices.append(notice)
        if notice.kind == NoticeKind.RESYNC:
            self._items.clear()
            self.is_whole = False
        elif notice.kind == NoticeKind.PUBLISHED:
            self._items.setdefault(notice.key, {})[notice.generation] = notice.num_bytes
        else:
            generations = self._items.get(notice.key, {})
            generations.pop(notice.generation, None)
            if not generations:
                self._items.pop(notice.key, None)

    def close(self) -> None:
        """Follow it no more. Again: nothing happens."""
        self._all.end(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Subscriptions:
    """All subscriptions of one client."""

    def __init__(self, library: Library) -> None:
        """Raises ValueError: this is no language node."""
        self._attachment: Attachment = library.attachment
        control = self._attachment.control
        if control.role != Role.LANGUAGE:
            raise ValueError("subscribe: this client is attached to an encode node; attach to the language node")
        self.clock = self._attachment.clock
        """Monotonic nanoseconds."""
        self._table = control.notices(self._attachment.lane)
        self._peers = control.peers
        self.turn = threading.Condition(threading.RLock())
        """Who has it changes what is known; who waits for a notice waits for it."""
        self._tells: set[Callable[[], None]] = set()  # of coroutines that wait for one
        self._is_looking = False
        self._serial = self._attachment.clock()  # above all that whoever had the lane before has written
        self._open: dict[int, Subscription] = {}  # by place
        for place in range(FOLLOWED_NODES):
            self._table.follow(place, 0)
        library.add_turn(self._library_turn, self._close)

    def subscribe(self, addr: str) -> Subscription:
        """As `Client.subscribe`."""
        self._attachment.check_usable()
        address = numeric(addr)
        with self.turn:
            free = next((place for place in range(FOLLOWED_NODES) if place not in self._open), None)
            if free is None:
                raise ValueError(f"subscribe: this client follows {FOLLOWED_NODES} nodes already; close a subscription")
            it = self._open[free] = Subscription(self, address, free)
        self.look(it)
        return it

    def look(self, it: Subscription) -> None:
        """Take what was told, for all of them."""
        self._attachment.check_attached()
        with self.turn:
            if self._open.get(it.place) is not it:
                raise ValueError(f"subscription of {it.address}: it was closed")
            if not self._attachment.node_gone:
                self._look()

    def _library_turn(self) -> bool:
        with self.turn:
            if self._open and not self._attachment.node_gone:
                self._look()
        return False

    def _look(self) -> None:
        if self._is_looking:  # by a signal handler in the midst of a look
            return
        self._is_looking = True
        try:
            self._take()
        finally:
            self._is_looking = False

    def _take(self) -> None:
        for it in self._open.values():
            self._follow(it)
        by_word = {it.word: it for it in self._open.values() if it.word}
        has_news = False
        for told in self._table.take():
            if (follower := by_word.get(told.followed)) is not None:
                follower.take(ItemNotice(told.kind, told.key, told.generation, told.num_bytes))
                has_news = True
        if has_news:
            self._wake()

    @contextmanager
    def telling(self, tell: Callable[[], None]) -> Iterator[None]:
        """For a block, call `tell` when there is a notice, on whichever thread has found it."""
        with self.turn:
            self._tells.add(tell)
        try:
            yield
        finally:
            with self.turn:
                self._tells.discard(tell)

    def _wake(self) -> None:
        """Wake those who wait (who has the turn)."""
        self.turn.notify_all()
        for tell in tuple(self._tells):
            tell()

    def _follow(self, it: Subscription) -> None:
        """Follow the node that is at its address now; the poller says itself when that is lost."""
        node = self._node_at(it.address, it.node)
        now_ns = self._attachment.clock()
        if node is None:
            if now_ns >= it.meet_ns and self._attachment.meet(it.address):
                it.meet_ns = now_ns + MEET_NS
            return
        if node == it.node:
            return
        self._serial += 1
        it.node, it.word = node, followed_word(self._serial & _MOST_SERIALS, node[0])
        it.is_whole = False
        self._table.follow(it.place, it.word)
        self._attachment.kick_follows()

    def _node_at(self, address: str, known: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
        if known is not None and self._is_alive(*known):
            return known
        for peer in self._peers.alive():
            record = self._peers.record(peer)
            if record.bootstrap_addr == address:
                return peer, record.node_id, record.incarnation
        return None

    def _is_alive(self, peer: int, node_id: int, incarnation: int) -> bool:
        get = self._peers.get
        at = get(peer, Peer.NODE_ID), get(peer, Peer.INCARNATION)
        return self._peers.is_alive(peer) and at == (node_id, incarnation)

    def end(self, it: Subscription) -> None:
        """Follow one no more."""
        if self._attachment.is_forked:  # it is the parent's, which may have the turn
            return
        with self.turn:
            if self._open.get(it.place) is it:
                del self._open[it.place]
                self._wake()  # they are told that it is closed
                if not self._attachment.is_closed and not self._attachment.node_gone:
                    self._table.follow(it.place, 0)
                    self._attachment.kick_follows()

    def _close(self) -> None:
        with self.turn:
            for place in self._open:
                self._table.follow(place, 0)
            self._open.clear()
            self._wake()


_MOST_SERIALS: Final = (1 << 47) - 1
