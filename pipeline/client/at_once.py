"""Rows that are written at once: into the blocks of their destination, by the caller's thread, without a second look.

Most requests are such: all rows are given in one call, as plain tensors in host memory; their destination is on this
host, and has granted them; and no process of either node was told of the request. Then one native call finds the grant,
copies, and releases the slot (`allocator/native/untold.h`). Whatever is otherwise, nothing has happened that the common
way of a `write` would not find.
"""

from __future__ import annotations

from threading import get_ident
from typing import Any

from embridge.allocator._core import TurnTaker
from embridge.allocator.geometry import Geometry
from embridge.allocator.status import TERMINAL
from embridge.pipeline.client.direct_path import DirectPath
from embridge.pipeline.client.doors import Doors
from embridge.pipeline.client.handle import NO_SLOT
from embridge.pipeline.client.in_place import GivesInPlace
from embridge.pipeline.client.is_done import IsDone
from embridge.pipeline.client.stock import Stock


class WritesAtOnce(GivesInPlace, IsDone):
    """The part of an `EmbeddingSender` that writes without keeping anything, and ends what it has written."""

    _path: DirectPath | None = None
    _stock: Stock | None = None  # until the end, if a row was kept
    _writes_itself = True  # until the end, where this client may
    _writing = False
    _writer = 0
    _taken = 0  # rows that the caller knows to be taken
    _ready = 0  # ahead of it where a call that was refused for want of memory had written some of its rows
    _told_ready = 0
    _is_announced = False

    @property
    def _geometry(self) -> Geometry:
        return self._library.attachment.geometry

    @property
    def _direct(self) -> DirectPath | None:
        """How this client writes rows itself; made when it is first asked for (either thread). None where it does not,
        and after the end.
        """
        if (path := self._path) is not None or not self._writes_itself:
            return path
        made: DirectPath = vars(self).setdefault("_path", DirectPath(self._library, self, self.total_tokens))
        return made

    def _leave_direct(self) -> None:
        """Nothing is written any more; and what leads back here would wait for the collector."""
        self._writes_itself = False
        self._path = None

    def _write_plain(
        self, start: int, rows: Any, fill_ids: Any, positions: Any, deepstack: Any, *, is_all: bool = False
    ) -> bool:
        """Write rows that need no second look straight into their blocks. False: they are to be given as any others,
        as far as they are not there yet, and may be wrong. `is_all`: wrong unless they are all of the request's.
        """
        library = self._library
        doors, attachment = library.doors, library.attachment
        if (
            doors is None or not self._writes_itself or not doors.open_ones or type(start) is not int
            or start != self._taken or start != self._ready or self._out
        ):
            return False
        span = doors.plain_rows.span(start, rows, deepstack, positions, fill_ids)
        if span is None or span[1] > self.total_tokens or (is_all and span[1] != self.total_tokens):
            return False
        self._writing = True  # as in `write`
        self._writer = get_ident()
        end = 0
        try:
            if attachment.is_closed or attachment.node_gone or attachment.is_forked:
                return False
            path = self._path
            has_found = path is not None and path.has_found
            if not has_found and start == 0 and self.slot != NO_SLOT and span[1] <= doors.few_rows:
                end = self._send(doors, span)
            if not end and (direct := self._direct) is not None:
                is_open = self.slot != NO_SLOT and self.poll() < TERMINAL
                if not has_found and not (is_open and direct.may_write(start)):
                    return False
                end = direct.write_plain(span)
            if end:
                self._is_announced = True
                self._ready = self._told_ready = abs(end)
            if abs(end) != span[1]:
                return False
            self._taken = span[1]
            return True
        except BufferError:  # as in `write`, which looks why
            return False
        finally:
            self._writing = False
            has_ended = self._final is None and end != 0 and not attachment.is_closed and self.poll() >= TERMINAL
            if has_ended and (self._done_callbacks or not library.view.end(self)):
                library.wake(self)

    def _send(self, doors: Doors, span: list[int]) -> int:
        """Find the grant of a request that has no destination yet, write these rows, its first, and end it, if they are
        all: one native call for each door. Returns as `DirectWriter.write`; 0, too, where there is no grant.
        """
        library = self._library
        view = library.view
        for peer, door in doors.open_ones:
            with TurnTaker(view.turn) as has_turn:
                path = self._path  # with the turn: the library thread makes one, and offers, in its own
                may_leave = (
                    has_turn and self._stock is None and self._filling is None and not self._done_callbacks
                    and (path is None or not path.has_offered)
                )
                with doors.deciding:
                    said = door.untold.send(
                        peer, self.room, self.slot, self.epoch, self.total_tokens, may_leave, *span
                    )
                if isinstance(said, tuple):
                    self._ended_at_once(*said)
            if view.library_waits:
                library.attachment.library_bell.ring()
            if isinstance(said, tuple):
                library.attachment.user_bell.ring()
                if library.slot_queue.is_wanted:
                    library.attachment.library_bell.ring()
                return span[1]
            if said and (direct := self._direct) is not None:
                return direct.follow_up(said, door)
        return 0

    def _ended_at_once(self, word: int, stamps: tuple[int, ...]) -> None:
        """Note the end of a request of which nothing is kept, and of which no process of either node was told (whoever
        has the turn).
        """
        self.keep_outcome(word, stamps)
        self._library.left(self, word)
        self._leave_direct()
        self._done = True
        if self._done_callbacks:  # it was added meanwhile
            self._has_done()

    def end_here(self) -> bool:
        if not self._leave_untold():
            if not self.is_untold:
                return False
            self._end_by_look()
        if self._library.slot_queue.is_wanted:
            self._attachment.library_bell.ring()
        return self._final is not None

    def _leave_untold(self) -> bool:
        """End a request of which nothing is kept, and of which no process of either node was told: one look."""
        direct = self._path
        if (
            direct is None or self._stock is not None or self._writing or self._filling is not None
            or self._final is not None or self._attachment.node_gone
        ):
            return False
        if (ended := direct.leave()) is None:
            return False
        self._ended_at_once(*ended)
        return True

    def _end_by_look(self) -> None:
        self.service()
        self._attachment.flush()
