"""`BaseKV*`-shaped classes over rooms, for schedulers that follow the scheme of the first documents.

There the encode side gives a request's rows once, and the language side allocates blocks before it knows their number:
it sends `send_metadata` with its default, and while `needs_resume`, `resume_transfer` with new blocks. The bootstrap
server is an encode node, a manager a client of the node of its host, and the blocks are the node's: a receiver takes
them (`allocate`), and copies out what has landed (`take`). The phases have SGLang's numbers, in which Failed is the
lowest, so that the least of all ranks' is the outcome.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from sglang.srt.disaggregation.base import (
    BaseKVBootstrapServer,
    BaseKVManager,
    BaseKVReceiver,
    BaseKVSender,
    KVPoll,
)
from sglang.srt.disaggregation.base.conn import KVTransferDestination, KVTransferMetric

from embridge import (
    Client,
    EmbeddingChunk,
    EmbeddingReceiver,
    EmbeddingResult,
    EmbeddingSender,
    Node,
    NodeGoneError,
    Phase,
    PipelineConfig,
    attach,
    launch,
)
from embridge.allocator.geometry import AUX_WORDS
from embridge.integrations.sglang.options import Options
from embridge.pipeline.client.client import library_of
from embridge.pipeline.scheduler.host_memory import HostRows
from embridge.workers.timing import NS

JOIN_S: Final = 60.0
ROLES: Final = MappingProxyType({"prefill": "encode", "encode": "encode", "decode": "language", "language": "language"})
"""Which side of the transfer a mode of SGLang's is."""
POLL: Final[Mapping[Phase, int]] = MappingProxyType(
    {
        Phase.Bootstrapping: KVPoll.Bootstrapping,
        Phase.WaitingForInput: KVPoll.WaitingForInput,
        Phase.Transferring: KVPoll.Transferring,
        Phase.Success: KVPoll.Success,
        Phase.Failed: KVPoll.Failed,
    }
)


class EmbridgeKVBootstrapServer(BaseKVBootstrapServer):
    """An encode node, whose bootstrap answers at `host:port`. It ends with `close`, and with this process."""

    def __init__(self, host: str, port: int, **settings: Any) -> None:
        """Launch the node; `settings` are more of `PipelineConfig`'s, over the environment (`EMBRIDGE_HIDDEN_SIZE`).

        Raises ConfigError, LaunchError as `launch`: `host` is the one address that the node binds, not all of them.
        """
        run_dir = settings.pop("run_dir", Options.from_env().directory("encode"))
        config = PipelineConfig.from_env(role="encode", run_dir=run_dir, host=host, bootstrap_port=port, **settings)
        self._node: Node = launch(config)

    @property
    def address(self) -> str:
        """Where receivers find it, as tcp://host:port."""
        return self._node.bootstrap_addr

    def close(self) -> None:
        """Stop the node."""
        self._node.stop()


class EmbridgeKVManager(BaseKVManager):
    """A client of this host's node: of its encode node where the mode is prefill or encode, else of its language node.

    The scheduler's thread only, as for its senders and receivers.
    """

    def __init__(
        self,
        args: Any,
        disaggregation_mode: Any,
        server_args: Any,
        is_mla_backend: bool | None = False,
        *,
        run_dir: str | Path | None = None,
        required_dst_info_num: int = 1,
        timeout_s: float | None = None,
    ) -> None:
        """Join the node in `run_dir` (default: that of `EMBRIDGE_SGLANG`, or of the role), and wait for it a minute.

        Of SGLang's arguments the mode alone is used. `required_dst_info_num`: how many ranks receive each room.
        `timeout_s`: the deadline of each request, in seconds (default: the node's).

        Raises:
            AttachError: no node is there.
            ValueError: the mode is none of prefill, encode, decode, language.
        """
        mode = str(getattr(disaggregation_mode, "value", disaggregation_mode))
        if mode not in ROLES:
            raise ValueError(f"disaggregation_mode: {mode!r} is none of {', '.join(ROLES)}")
        self.required_dst_info_num = required_dst_info_num
        self.timeout_s = timeout_s
        self.source: Mapping[str, torch.Tensor] = {}
        self._run_dir = Path(run_dir) if run_dir is not None else Options.from_env().directory(ROLES[mode])
        self.client: Client = attach(self._run_dir, wait_s=JOIN_S)
        if (role := library_of(self.client).attachment.control.role.name.lower()) != ROLES[mode]:
            self.client.close()
            raise ValueError(f"disaggregation_mode: {mode!r}, and the node in {self._run_dir} is of role {role}")

    def register_to_bootstrap(self) -> None:
        """Join the node again if it has gone: requests from before have failed. Raises AttachError."""
        if self.client.node_gone:
            self.client.close()
            self.client = attach(self._run_dir, wait_s=JOIN_S)

    def set_source(self, **buffers: torch.Tensor) -> None:
        """Where `EmbridgeKVSender.send` takes rows from: by the names of `EmbeddingSender.write`, each of shape
        (blocks, block_size, ...), in the node's dtype.
        """
        self.source = buffers

    def close(self) -> None:
        """Leave the node; requests in flight end as Failed on both sides."""
        self.client.close()


class _Handle:
    """What a sender and a receiver have in common."""

    _handle: EmbeddingSender | EmbeddingReceiver | None = None
    _manager: EmbridgeKVManager

    def poll(self) -> int:
        """One of `KVPoll`, from one load."""
        return POLL[self._handle.poll()] if self._handle is not None else int(KVPoll.Bootstrapping)

    def failure_exception(self) -> None:
        """Raise the TransferError that says why it has failed, if it has."""
        if self._handle is not None and (error := self._handle.failure_exception()) is not None:
            raise error

    def abort(self) -> None:
        """Give it up: unless it has ended, it ends as Failed on both sides."""
        if self._handle is not None:
            with contextlib.suppress(NodeGoneError):  # which has failed it
                self._handle.abort()

    def clear(self) -> None:
        """Need nothing of it any more."""
        if self._handle is not None:
            self._handle.clear()

    def get_transfer_metric(self) -> KVTransferMetric:
        """Seconds from the grant to Success, and bytes that have landed at every destination."""
        if self._handle is None:
            return KVTransferMetric()
        stamps = self._handle.stamps_ns
        begun, done = stamps[Phase.WaitingForInput], stamps[Phase.Success]
        return KVTransferMetric(
            transfer_latency_s=(done - begun) / NS if begun and done else None,
            transfer_total_bytes=self._handle.sent_tokens * self._manager.client.geometry.token_bytes,
        )


class EmbridgeKVSender(_Handle, BaseKVSender):
    """The encode side of one request; it does not know of resumes."""

    _handle: EmbeddingSender | None = None

    def __init__(
        self, mgr: EmbridgeKVManager, bootstrap_addr: str, bootstrap_room: int,
        req_has_disagg_prefill_dp_rank: bool = False,
    ) -> None:
        """The room at the manager's node, whatever the address."""
        self._manager, self._room = mgr, bootstrap_room
        self._given = 0

    def init(
        self, num_kv_indices: int, aux_index: int | None = None, *, aux_datas: Any = None, mrope_position_delta: int = 0
    ) -> None:
        """Open the room, and tell its length: `num_kv_indices` tokens. Raises as `Client.sender`."""
        self._handle = self._manager.client.sender(
            self._room,
            num_kv_indices,
            aux_datas=aux_datas,
            mrope_position_delta=mrope_position_delta,
            timeout_s=self._manager.timeout_s,
        )
        self._handle.announce()

    def send_embedding(self, input_embeddings: torch.Tensor, *others: Any, **named: Any) -> bool:
        """Give all rows at once, as `EmbeddingSender.send_embedding`: ids, positions and deepstack rows follow.

        False, with no effect: the room is not open, has ended, or has its rows.
        """
        return self._handle is not None and self._handle.send_embedding(input_embeddings, *others, **named)

    def send(
        self, kv_indices: npt.NDArray[np.int32], state_indices: Sequence[Any] | None = None,
        num_kv_tokens: int | None = None,
    ) -> None:
        """Give the next `num_kv_tokens` rows, which lie in these blocks of the manager's `source` (default: as many as
        are there, and are missing). Without effect where the room is not open, or has ended.

        Raises ValueError, NodeBusyError as `EmbeddingSender.write`.
        """
        if self._handle is None:
            return
        if not self._manager.source:
            raise ValueError("kv_indices: no buffers were named; call the manager's set_source")
        blocks = torch.as_tensor(np.asarray(kv_indices, np.int64))
        rows: dict[str, Any] = {name: buffer[blocks].flatten(0, 1) for name, buffer in self._manager.source.items()}
        there = next(iter(rows.values())).shape[0]
        count = min(there, self._handle.total_tokens - self._given) if num_kv_tokens is None else num_kv_tokens
        if count > there:
            raise ValueError(f"num_kv_tokens: {count} > {there} in these blocks")
        if self._handle.write(self._given, **{name: it[:count] for name, it in rows.items()}):
            self._given += count


class EmbridgeKVReceiver(_Handle, BaseKVReceiver):
    """The language side of one request, on one rank."""

    _handle: EmbeddingReceiver | None = None

    def __init__(self, mgr: EmbridgeKVManager, bootstrap_addr: str, bootstrap_room: int | None = None) -> None:
        """`bootstrap_addr`: of the encode node, as tcp://ip:port or ip:port. Raises ValueError: there is no room."""
        if bootstrap_room is None:
            raise ValueError("bootstrap_room: None; a request has a room")
        self._manager, self._room = mgr, bootstrap_room
        self._address = bootstrap_addr if "://" in bootstrap_addr else f"tcp://{bootstrap_addr}"
        self._rows: HostRows | None = None
        self._has_metadata = False
        self.transferred_tokens = 0
        """How many rows were taken out of their blocks."""

    def init(self, prefill_dp_rank: int = 0) -> None:
        """Open the room. It is WaitingForInput once the encode node is known. Raises as `Client.receiver`."""
        self._handle = self._manager.client.receiver(
            self._address,
            self._room,
            required_dst_info_num=self._manager.required_dst_info_num,
            timeout_s=self._manager.timeout_s,
        )

    def poll(self) -> int:
        """One of `KVPoll`: before `send_metadata`, WaitingForInput says that blocks can be taken."""
        found = super().poll()
        handle = self._handle
        if found == KVPoll.Bootstrapping and handle is not None and (self._has_metadata or handle.handshake_done):
            return int(KVPoll.WaitingForInput)
        return found

    def allocate(self, num_tokens: int) -> npt.NDArray[np.uint32]:
        """Take blocks for so many tokens; fewer, or none, where blocks are short: take what is there, or wait."""
        return self._need().allocate(-(-num_tokens // self._manager.client.geometry.block_size))

    def send_metadata(
        self, kv_indices: npt.NDArray[Any], aux_index: int | None = None, state_indices: Sequence[Any] | None = None,
        decode_prefix_len: int | None = None, destination: Any = KVTransferDestination.HOST, *,
        allocated_tokens: int | None = None,
    ) -> None:
        """The initial transfer: grant the first blocks, which `allocate` gave. Raises as `EmbeddingReceiver.init`."""
        self._need().init(np.asarray(kv_indices, np.uint32), allocated_tokens)
        self._has_metadata = True

    def resume_transfer(
        self, embedding_indices: npt.NDArray[Any], sent_tokens: int, allocated_tokens: int | None = None
    ) -> None:
        """The resumed transfer: grant new blocks. Raises as `EmbeddingReceiver.resume_transfer`."""
        self._need().resume_transfer(np.asarray(embedding_indices, np.uint32), sent_tokens, allocated_tokens)

    @property
    def needs_resume(self) -> bool:
        """Whether all that was granted has landed here, and rows remain."""
        return self._handle is not None and self._handle.needs_resume

    @property
    def sent_tokens(self) -> int:
        """How many rows have landed here."""
        return self._handle.sent_tokens if self._handle is not None else 0

    @property
    def total_embedding_length(self) -> int:
        """The request's length in tokens; 0: it is not known yet."""
        return self._handle.total_embedding_length if self._handle is not None else 0

    def take(self) -> EmbeddingChunk | None:
        """Copy the rows out that have landed since the last call, and free their whole blocks.

        None: there is none, or the request has failed. The chunk is views of this process's memory.
        """
        handle = self._need()
        first, end, total = self.transferred_tokens, handle.sent_tokens, handle.total_embedding_length
        if not total or end <= first or handle.poll() == Phase.Failed:
            return None
        client = self._manager.client
        attachment, bs = library_of(client).attachment, client.geometry.block_size
        if self._rows is None:
            self._rows = HostRows(client.geometry, total, np.empty(HostRows.size_of(client.geometry, total), np.uint8))
            self._rows.aux[:AUX_WORDS] = attachment.buffers.aux_datas[handle.block_of(0)]
        blocks = range(first // bs, -(-end // bs))
        parts = [(handle.block_of(k), max(first, k * bs), min(end, (k + 1) * bs)) for k in blocks]
        self._rows.drain(attachment.payload, parts)
        if handle.poll() == Phase.Failed:  # what was in the blocks may have been another request's
            return None
        handle.release_drained(end)
        self.transferred_tokens = end
        rows = self._rows
        return EmbeddingChunk(
            first, end, rows.input_embeddings(first, end), rows.fill_ids(first, end),
            rows.mrope_positions(first, end), rows.deepstack_embeddings(first, end),
        )  # fmt: skip

    def result(self) -> EmbeddingResult:
        """All rows, in token order. Raises ValueError: not all of them were taken."""
        total = self.total_embedding_length
        if self._rows is None or not total or self.transferred_tokens < total:
            raise ValueError(f"room {self._room}: {self.transferred_tokens} of {total} rows were taken")
        return EmbeddingResult(self._rows, total)

    def _need(self) -> EmbeddingReceiver:
        if self._handle is None:
            raise ValueError(f"room {self._room}: it is not open; call init")
        return self._handle
