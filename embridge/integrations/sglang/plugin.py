"""What SGLang 0.5.23 calls: receivers that fetch, and a delivery of its encoders that publishes.

Both stand on names that SGLang does not promise to keep; `make engines` tries them with its own classes. A message
without rows has an attribute `embridge`, a `Told`. One with rows is read as ever, so an encoder without the plugin, or
with a full shelf, is understood.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import torch
from sglang.srt.disaggregation.encoder import receiver
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from embridge import ConfigError
from embridge.integrations.sglang.options import VARIABLE, Options
from embridge.integrations.sglang.parts import PartMissed, Parts
from embridge.integrations.sglang.published import PublishedParts, Told

BACKEND: Final = "zmq_to_scheduler"
ENCODER: Final = "sglang.srt.disaggregation.encoder.server.MMEncoder.__init__"


class _Waiting:
    """One request on one rank that waits for its embeddings: over SGLang's class, whose part this is."""

    def __init__(self, *args: Any, parts: Parts, **named: Any) -> None:
        super().__init__(*args, **named)
        self._parts = parts
        self._has_rows = False

    def _extract_embedding_from_buffer(self: Any, recv_obj: Any, parts: Any) -> None:
        told = getattr(recv_obj, "embridge", None)
        if told is None:
            super()._extract_embedding_from_buffer(recv_obj, parts)  # type: ignore[misc]
            return
        self._parts.expect(self.rid, recv_obj.part_idx, told, recv_obj.shape, recv_obj.dtype)
        recv_obj.embedding = torch.empty(recv_obj.shape, dtype=recv_obj.dtype, device="meta")  # until it is fetched

    def _prepare_embedding_buffer(self: Any) -> bool:
        if not self._has_rows:
            try:
                rows: Mapping[int, torch.Tensor] | None = self._parts.rows(self.rid)
            except PartMissed as error:
                self._fail_and_release(f"embridge: {error}", int(HTTPStatus.BAD_GATEWAY))
                return False
            if rows is None:
                return False
            for index, found in rows.items():
                self.recv_embedding_data.embedding_list[index] = found
            self._has_rows = True
        is_ready: bool = super()._prepare_embedding_buffer()  # type: ignore[misc]
        return is_ready


class WaitingByHTTP(_Waiting, receiver.WaitingZmqRequest):
    pass


class WaitingByGRPC(_Waiting, receiver.WaitingZmqRequestGrpc):
    pass


_OURS: Final = {receiver.WaitingZmqRequest: WaitingByHTTP, receiver.WaitingZmqRequestGrpc: WaitingByGRPC}


class _Receiver:
    """One in each scheduler (and, without a task of its own, in the tokenizer): over SGLang's class."""

    def __init__(self: Any, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._parts: Parts | None = None
        if self.scheduler is None:
            return
        if self.encoder_transfer_backend != BACKEND:
            said = f"--encoder-transfer-backend {self.encoder_transfer_backend}"
            raise ConfigError(f"{VARIABLE}: it is set, and {said}; give {BACKEND}, or unset it")
        shares = self.tp_size > 1 and self.nnodes == 1
        leads = self.tp_rank == 0 or not shares
        self._parts = Parts(Options.from_env(), leads=leads, group=self.tp_group if shares else None)

    def _process_waiting_requests(self: Any, recv_reqs: Any, waiting_cls: Any, **named: Any) -> Any:
        if self.waiting_list:  # the same on all ranks
            self._parts.exchange()
        found = super()._process_waiting_requests(  # type: ignore[misc]
            recv_reqs, _OURS[waiting_cls], parts=self._parts, **named
        )
        self._parts.keep(self.waiting_by_rid)
        return found


class ReceiverByHTTP(_Receiver, receiver.MMReceiverHTTP):
    pass


class ReceiverByGRPC(_Receiver, receiver.MMReceiverGrpc):
    pass


def deliver(_: None, encoder: Any, *args: Any, **named: Any) -> None:
    """After an encoder of SGLang's was made: give it our delivery, if it delivers anything."""
    if encoder.rank != 0:
        return
    if encoder.transfer_backend != BACKEND:
        said = f"--encoder-transfer-backend {encoder.transfer_backend}"
        raise ConfigError(f"{VARIABLE}: it is set, and {said}; give {BACKEND}, or unset it")
    encoder.delivery = delivery_of(encoder, PublishedParts(Options.from_env()))


def delivery_of(encoder: Any, published: PublishedParts) -> Any:
    """A delivery that publishes each part once, and tells each destination where."""
    from sglang.srt.disaggregation.encoder import server  # of encoders alone

    class Delivery(server.ZmqDelivery):
        """SGLang's own, for what cannot be published."""

        def __init__(self) -> None:
            super().__init__(encoder, cleanup_receive_state=True)
            self.published = published
            self._told: dict[str, asyncio.Task[Told | None]] = {}

        async def send(self, state: Any, destination: Any) -> None:
            data = await encoder._wait_for_embedding(state)
            told = await self._publish(state, data)
            if told is None:
                await super().send(state, destination)
                return
            light = data.copy_without_embedding()
            light.embedding, light.embridge = torch.zeros(1, dtype=torch.uint8), tuple(told)
            await encoder._send(light.embedding, light, url=destination.endpoint)

        async def _publish(self, state: Any, data: Any) -> Told | None:
            if data.embedding is None or data.embedding.dim() != 2 or data.error_msg is not None:
                return None
            if state.req_id not in self._told:
                self._told[state.req_id] = asyncio.create_task(published.publish(data.embedding))
            return await asyncio.shield(self._told[state.req_id])

        async def release(self, state: Any) -> None:
            self._told.pop(state.req_id, None)
            await super().release(state)

    return Delivery()


def install() -> None:
    """Put the receivers where SGLang looks for them, and hook its encoders."""
    receiver._MM_RECEIVER_BY_MODE.update(http=ReceiverByHTTP, grpc=ReceiverByGRPC)
    HookRegistry.register(ENCODER, deliver, HookType.AFTER)
