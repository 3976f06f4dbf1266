"""The scheduler's queues: `PreallocQueue` -> `TransferQueue` (in `transfer_queue.py`) -> `WaitingQueue`.

    prealloc.add(request)      the room is opened; handshake; the default is allocated and granted (initial transfer)
    transfer                   drains what lands, frees blocks, allocates and grants the rest (resumed transfers)
    transfer.pop_transferred() finished and failed requests, since the last call
    waiting                    finished requests that wait for their prefill
    prealloc.retry(request)    a failed request, whose encode node is lost, goes on where it was, from another one
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from embridge.pipeline.arguments import check_address, whole
from embridge.pipeline.client.client import Client, library_of
from embridge.pipeline.client.handle import MAX_ROOM
from embridge.pipeline.scheduler.request import EmbeddingRequest
from embridge.pipeline.scheduler.transfer_queue import TransferQueue


class PreallocQueue:
    """Where requests enter: it checks them and hands them to the transfer queue, which opens and grants."""

    def __init__(self, client: Client, transfer: TransferQueue) -> None:
        self._attachment = library_of(client).attachment
        self._transfer = transfer

    def add(self, request: EmbeddingRequest) -> None:
        """Take a request in; never blocks. A fault of the request, now or later, comes out as its failure.

        While every slot of the node is in use it waits for one, at most until its deadline.

        Raises:
            ValueError: this very request was added before; or it is streamed, and the client has ranks.
            NodeBusyError: as many requests as may wait for a slot do; it may be added later.
        """
        if request.record.added_s:
            raise ValueError(f"room {request.room}: this request was added before; make a new one")
        attachment = self._attachment
        if attachment.is_closed or attachment.node_gone or attachment.is_forked:
            attachment.check_usable()
        self._transfer.add(request)

    def retry(
        self,
        request: EmbeddingRequest,
        bootstrap_addr: str,
        *,
        room: int | None = None,
        required_dst_info_num: int | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Continue a request that has failed because its encode node is lost, from another node; never blocks.

        Whole blocks that have come are kept and not sent again. The rest comes from `bootstrap_addr`, where an encoder
        sends the whole request in the same room, of the same length. The request comes out of `pop_transferred` once
        more, finished or failed. A node that has seen the room already needs another number, `room`.
        `required_dst_info_num` is the number of destinations that retry, if others have finished. `timeout_s` is the
        deadline in seconds from now. What is not given stays as it was. The ranks that follow see the failure, and
        later the end of the same request.

        Raises:
            ValueError: it may not be retried, for the reason `EmbeddingRequest.why_not_retryable`; or the address or
                the room is not valid.
            NodeBusyError: as `add`.
        """
        if why_not := request.why_not_retryable:
            raise ValueError(f"room {request.room}: not to be retried: {why_not}")
        self._attachment.check_usable()
        check_address(bootstrap_addr)
        if room is not None:
            room = whole("room", room, 0, MAX_ROOM, "0 to 2**63 - 1")
        self._transfer.check_room()
        request.bootstrap_addr = bootstrap_addr
        request.room = request.room if room is None else room
        if required_dst_info_num is not None:
            request.required_dst_info_num = whole("required_dst_info_num", required_dst_info_num, 1, 64)
        request.timeout_s = request.timeout_s if timeout_s is None else timeout_s
        _begin_again(request, self._attachment.geometry.block_size)
        self._transfer.add(request)

    def extend(self, requests: Iterable[EmbeddingRequest]) -> None:
        """`add` each request. If one is refused, those before it stay added."""
        for request in requests:
            self.add(request)


class WaitingQueue:
    """Finished requests that wait for their prefill, first come, first served."""

    def __init__(self, transfer: TransferQueue) -> None:
        self._transfer = transfer
        self._waiting: deque[EmbeddingRequest] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def update(self) -> list[EmbeddingRequest]:
        """Take over the requests that have finished.

        Returns those that failed. Raises RuntimeError after `Client.close`.
        """
        finished, failed = self._transfer.pop_transferred()
        self._waiting.extend(finished)
        return failed

    def pop(self) -> EmbeddingRequest | None:
        """The next request, or None.

        Call `request.release()` when the prefill has consumed it, to give its memory back.

        What has finished is the caller's, also after `Client.close`.
        """
        return self._waiting.popleft() if self._waiting else None


def _begin_again(request: EmbeddingRequest, block_size: int) -> None:
    """Reset a request to what it was when it was added, except for the whole blocks that have come."""
    record = request.record
    first = record.first_block * block_size
    request.failure = request.receiver = None
    record.first_of_run = record.run_blocks = 0
    record.is_contacted = record.has_share = record.has_rows_waiting = record.fills_a_block = False
    request.transferred_tokens = record.drained_tokens = first
    record.available_tokens = min(record.available_tokens, first)
    request.chunk_info = [(begin, min(end, first)) for begin, end in request.chunk_info if begin < first]
