"""Takes grants back to which no encoder has come, so that their blocks are there for requests whose rows wait (R34).

A request is granted ahead of its rows, because they may come at once. While no process of the node was told of it, its
grant stands in shared memory alone. So its scheduler's client may take it back without a message: either an encoder has
bound itself to the grant, or none will. The request is opened anew then, with nothing granted, and is granted its
blocks when its rows are there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Final

from embridge.pipeline.client.handle import TransferHandle
from embridge.pipeline.client.library import Library
from embridge.pipeline.client.receiver import EmbeddingReceiver
from embridge.pipeline.scheduler.default_grant import AdaptiveDefault
from embridge.pipeline.scheduler.host_memory import HostMemory
from embridge.pipeline.scheduler.request import EmbeddingRequest
from embridge.workers.timing import NS

SOON_NS: Final = NS // 50  # rows that come by then find the grant, whoever else waits


class Withdrawing:
    """One transfer queue's. Whoever has the turn calls it."""

    def __init__(
        self,
        library: Library,
        memory: HostMemory,
        default: AdaptiveDefault,
        active: Collection[EmbeddingRequest],
        want: Callable[[EmbeddingRequest], None],
    ) -> None:
        """`active` are the requests of the queue. `want` enters one among those that could use a block."""
        self._untold = library.requests.untold
        control = library.attachment.control
        self._blocks, self._posts = control.blocks, control.posts
        self._lane = library.attachment.lane
        self._bs = library.attachment.geometry.block_size
        self._memory = memory
        self._default = default
        self._active = active
        self._want = want

    def late(self, receiver: EmbeddingReceiver) -> bool:
        """Take the grant of a request back of which its node is about to be told: it cannot be taken back after that.
        False: it keeps what it has, for nobody else is there, or three quarters of the pool are free, or an encoder has
        it.
        """
        plenty = self._blocks.num_blocks * 3 // 4
        is_alone = len(self._active) == 1 and not self._others_wait()
        may_keep = is_alone or self._blocks.cells.num_free(plenty) == plenty
        return not may_keep and self._take_back(receiver)

    def make_room(self, waiting: Iterable[EmbeddingRequest]) -> bool:
        """Take so many grants back that those of these requests whose rows wait can have blocks for them; a quarter of
        the pool, where other clients wait for some. True if a block came free.
        """
        if not len(self._untold):
            return False
        wanted = self._blocks.num_blocks // 4 if self._others_wait() else 0
        for request in waiting:
            receiver, record = request.receiver, request.record
            if receiver is None:
                continue
            if record.has_rows_waiting:
                wanted += -(-receiver.ready_tokens // self._bs) - receiver.granted_blocks
            elif not record.is_contacted and self._posts.has_offer(request.room):
                wanted += -(-self._default.now // self._bs) + 1  # the reserve is not for it
        before = self._blocks.cells.num_free(wanted)
        if before < wanted:
            self._untold.take_back(SOON_NS, self._take_back, lambda: self._blocks.cells.num_free(wanted) >= wanted)
        return self._blocks.cells.num_free(wanted) > before

    def _others_wait(self) -> bool:
        return any(lane != self._lane for lane in self._blocks.waiters())

    def _take_back(self, receiver: TransferHandle) -> bool:
        """Withdraw a grant, and enter its request among those that are to be told to the encode node."""
        if not isinstance(receiver, EmbeddingReceiver) or receiver.request is None:
            return False
        request: EmbeddingRequest = receiver.request
        record = request.record
        if not record.is_contacted or not receiver.renew():  # nothing is granted yet, or an encoder has it
            return False
        self._memory.give_back_later(None, record.reserved_tokens)
        record.reserved_tokens = record.first_of_run = record.run_blocks = 0
        record.prepared = None
        record.is_contacted = False
        record.has_share = record.is_withdrawn = True
        if request.abort_reason:  # it was given up while it was opened anew
            receiver.abort(request.abort_reason)
        self._want(request)
        return True
