"""`Client`: the public face of a process's part in a node, made by `attach()`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from embridge.allocator.geometry import MAX_TOKENS, Role
from embridge.allocator.routes import RouteRecord
from embridge.pipeline.arguments import whole
from embridge.pipeline.client.early_cache import EarlyItemCache
from embridge.pipeline.client.fetch import Fetch
from embridge.pipeline.client.fetching import Fetching
from embridge.pipeline.client.handle import TransferHandle
from embridge.pipeline.client.item_cache import ItemCache
from embridge.pipeline.client.leading_ranks import LeadingRanks
from embridge.pipeline.client.library import Library
from embridge.pipeline.client.opening import open_sender
from embridge.pipeline.client.publishing import ClientShelf, Published
from embridge.pipeline.client.receiver import EmbeddingReceiver, open_receiver
from embridge.pipeline.client.routing import RoutePicker
from embridge.pipeline.client.sender import EmbeddingSender
from embridge.pipeline.client.subscriptions import Subscription, Subscriptions


class Client:
    """One lane of a node. Close it, or use it as a context manager; requests still in flight are then aborted.

    One thread at a time calls it. What it opens is an `EmbeddingSender` on an encode node, an `EmbeddingReceiver` on a
    language node.
    """

    def __init__(self, library: Library) -> None:
        attachment = library.attachment
        self._library = library
        self._attachment = attachment
        self._shelf: ClientShelf | None = None
        self._fetching: Fetching | None = None
        self._subscriptions: Subscriptions | None = None
        self._picker: RoutePicker | None = None
        self.run_dir = attachment.run_dir
        """The run directory of the node (pathlib.Path)."""
        self.lane = attachment.lane
        """The number of this client at the node, from 0."""
        self.geometry = attachment.geometry
        """Shapes and dtype of the node's rows and blocks."""
        self.limits = attachment.control.limits
        """How many slots, clients, workers and peers the node has room for."""
        self.settings = attachment.settings
        """What the node tells its clients of its configuration, by name."""
        self.bootstrap_addr = attachment.bootstrap_addr
        """Where language nodes reach this encode node, as tcp://host:port."""
        self.request_timeout_s = attachment.request_timeout_s
        """Seconds until a request's deadline, where `timeout_s` is not given."""

    @property
    def node_gone(self) -> bool:
        """Whether the node is gone; `attach()` again once it is back."""
        return self._attachment.node_gone

    @property
    def is_closed(self) -> bool:
        """Whether `close()` was called."""
        return self._attachment.is_closed

    @property
    def is_forked(self) -> bool:
        """Whether this is a copy, in a forked child."""
        return self._attachment.is_forked

    @property
    def pinned(self) -> bool:
        """Whether the node's payload is registered with CUDA in this process."""
        return self._attachment.pinned

    @property
    def pin_note(self) -> str:
        """Why the payload is not registered, or what is registered."""
        return self._attachment.pin_note

    @property
    def ranks(self) -> LeadingRanks | None:
        """The other ranks, where `attach` was called with `num_ranks`."""
        return self._library.ranks

    # ---- requests

    def sender(
        self,
        room: int,
        total_tokens: int,
        *,
        aux_datas: Any = None,
        mrope_position_delta: int = 0,
        timeout_s: float | None = None,
    ) -> EmbeddingSender:
        """Open a room on an encode node: `total_tokens` rows will be written (see `EmbeddingSender`).

        `aux_datas` are 16 integers within int32, of which the first two are replaced by the length and
        `mrope_position_delta`. `timeout_s` is the request's deadline in seconds from now. While there is no slot for
        the request it waits for one: all of its methods may be called.

        Raises:
            ValueError: the room or the length is out of range, the room is in use here, or this is no encode node.
            NodeBusyError: every slot is in use, and as many calls as may wait for one do.
            NodeUnhealthyError: one of the node's processes cannot be kept alive.
            NodeGoneError: the node is gone, or is being stopped.
            RuntimeError: after `close()`, or in a forked child.
        """
        return open_sender(
            self._library,
            room,
            total_tokens,
            aux_datas=aux_datas,
            mrope_position_delta=mrope_position_delta,
            timeout_s=timeout_s,
        )

    def receiver(
        self, bootstrap_addr: str, room: int, *, required_dst_info_num: int = 1, timeout_s: float | None = None
    ) -> EmbeddingReceiver:
        """Open a room on a language node, whose rows come from the encode node at `bootstrap_addr`.

        `required_dst_info_num` is the number of language nodes that receive the room. `timeout_s` is the request's
        deadline in seconds from now.

        Raises:
            ValueError, NodeBusyError, NodeUnhealthyError, NodeGoneError, RuntimeError: as `sender`, on a language node;
                ValueError also for an address or a number of destinations that is not valid.
        """
        return open_receiver(self._library, bootstrap_addr, room, required_dst_info_num, timeout_s)

    # ---- published items

    @property
    def shelf(self) -> ClientShelf:
        """The shelf of this encode node. Raises ValueError where it has none; RuntimeError after `close()`."""
        self._attachment.check_attached()
        if self._shelf is None:
            self._shelf = ClientShelf(self._attachment)
        return self._shelf

    def publish(
        self, key: str | bytes, rows: Any, *, replace: bool = False, ttl_s: float | None = None
    ) -> Published:
        """Publish rows under a key on this encode node; anybody may fetch them, until room is made for others.

        `rows` is a tensor or array of shape (num_rows, ...), of floats (bfloat16, float16, float32, float64,
        float8_e4m3fn, float8_e5m2), of integers (int8, int16, int32, int64, uint8) or of bools, whatever the node's
        own dtype is. It is copied, and is the caller's again on return. It never waits, and never raises for want of
        room: the result says whether it was published, or why it was dropped. The least recently used items are
        evicted, none that is in use. Without `replace` an item of that key that is there stays. `ttl_s`: for how many
        seconds it is to be seen.

        Raises:
            ValueError: the key has more than 256 bytes, the rows are no such rows, or the node has no shelf.
            NodeGoneError: the node is gone.
            RuntimeError: after `close()`, or in a forked child.
        """
        shelf = self._shelf or self.shelf
        return shelf.publish(key, rows, replace=replace, ttl_s=ttl_s)

    def fetch(
        self,
        key: str | bytes,
        addr: str,
        *,
        generation: int = 0,
        wait_s: float = 0.0,
        deadline_s: float | None = None,
    ) -> Fetch:
        """Fetch the item that the encode node at `addr` (tcp://ip:port) has published under a key (language side).

        Where that node is on this host, the item is read where it lies, and the fetch has ended on return if an earlier
        one has opened the node's shelf to this client. What is not published is said to be so at once, or after
        `wait_s` seconds in which it may come. `generation`: that one and no other. `deadline_s` (default: the node's
        request timeout) is for a node that does not answer. The errors are those of `Fetch.exception`.

        Raises:
            ValueError: the key or a number is out of range, `addr` is no numeric address, or this is no language node.
            NodeGoneError: this client's own node is gone.
            RuntimeError: after `close()`, or in a forked child.
        """
        return self._all_fetches().fetch(key, addr, generation, wait_s, deadline_s)

    def item_cache(
        self, max_bytes: int, *, wait_s: float = 0.0, shared: bool = False, in_place: bool = False
    ) -> ItemCache:
        """A cache of published items for an engine's requests, of `max_bytes` (language side); see `ItemCache`.

        `wait_s`: for so many seconds an item may come that is not published yet. `shared`: other processes of this host
        may read its items where they lie (`ItemCache.held`), each of which takes whole pages then. `in_place`, of one
        that is shared: users have what lies on a shelf of this host before it is copied (`ItemCache.admit`). A client
        may have several.

        Raises:
            ValueError: a number is out of range, or this is no language node.
            SegmentError: memory that is shared cannot be had.
            RuntimeError: after `close()`, or in a forked child.
        """
        if shared and in_place:
            return EarlyItemCache(self._library, self._all_fetches(), max_bytes, wait_s)
        return ItemCache(self._library, self._all_fetches(), max_bytes, wait_s, shared=shared)

    def subscribe(self, addr: str) -> Subscription:
        """Follow what is published on the encode node at `addr` (tcp://ip:port): which items come and go (language
        side). What it tells comes within a tenth of a second or so; a node may come later, and may come again.

        Raises:
            ValueError: `addr` is no numeric address, 16 nodes are followed already, or this is no language node.
            NodeGoneError, RuntimeError: as `fetch`.
        """
        self._attachment.check_attached()
        if self._subscriptions is None:
            self._subscriptions = Subscriptions(self._library)
        return self._subscriptions.subscribe(addr)

    def _all_fetches(self) -> Fetching:
        self._attachment.check_attached()
        if self._fetching is None:
            self._fetching = Fetching(self._library)
        return self._fetching

    # ---- where to send a request

    def encode_nodes(self) -> list[RouteRecord]:
        """The encode nodes that discovery has told of, with state, health and load; read from shared memory (D10).

        Raises:
            ValueError: this is no language node, or it has no discovery.
            NodeGoneError: the node is gone.
            RuntimeError: after `close()`, or in a forked child.
        """
        return self._route_picker("encode_nodes").nodes()

    def pick_encode_node(self, tokens: int = 0, *, other_than: str = "") -> str:
        """The `bootstrap_addr` of the healthy, READY encode node with the least to do; ties go round.

        From now on that node counts as having `tokens` (0: unknown) more to do, until a report can show it. The caller
        also tells the encoder of that node the room. A request that is retried goes to a node `other_than` the address
        at which it failed; discovery may not have heard of that failure yet. It takes microseconds and no network.

        Raises:
            NoRouteError: no encode node is READY and healthy.
            ValueError: as `encode_nodes`, or `tokens` is out of range.
            NodeGoneError, RuntimeError: as `encode_nodes`.
        """
        tokens = whole("tokens", tokens, 0, MAX_TOKENS)
        return self._route_picker("pick_encode_node").pick(tokens, other_than).bootstrap_addr

    def _route_picker(self, what: str) -> RoutePicker:
        attachment = self._attachment
        attachment.check_usable()
        control = attachment.control
        if control.role != Role.LANGUAGE:
            raise ValueError(f"{what}: this client is attached to an encode node; attach to the language node")
        if self._picker is None:
            if not control.has_discovery:
                where = f"the node in {attachment.run_dir}"
                raise ValueError(f"{what}: {where} has no discovery; launch it with --discovery http://host:port")
            self._picker = RoutePicker(control.routes, attachment.clock)
        return self._picker

    # ---- what has changed

    def poll(self) -> Sequence[TransferHandle]:
        """Every request whose status rose since the last call. One load when nothing did; never blocks.

        Raises:
            RuntimeError: after `close()`, or in a forked child.
        """
        view, attachment, requests = self._library.view, self._attachment, self._library.requests
        if not view.look() and not view.has_looked_at_some:
            return ()
        if attachment.node_gone:  # every request that was in flight has failed
            open_now = [*list(requests.by_slot.values()), *self._library.slot_queue.handles()]
            rose = [handle for handle in open_now if handle.has_risen()]
        else:
            rose = view.rose()
        if requests.departed:
            rose += [handle for handle in requests.take_departed() if handle.has_risen()]
        return rose

    def wait(self, timeout_s: float) -> bool:
        """Sleep, without the GIL, until a status rises or a transfer queue has a request to hand over: poll then.

        True at once if something has risen since the last `poll()`. False if nothing has within `timeout_s` seconds, or
        when a signal has come. A loop that waits for nothing else wakes up sooner with this than with `fileno()`: who
        writes a request's last rows wakes this thread itself.

        Raises:
            ValueError: `timeout_s` is no number of seconds.
            RuntimeError: after `close()`, or in a forked child.
        """
        self._attachment.check_attached()
        return self._library.view.wait(timeout_s)

    def fileno(self) -> int:
        """An eventfd for the caller's own select or epoll.

        After `arm()` it becomes readable when a status rises, or when a transfer queue has a request to hand over.

        Raises:
            RuntimeError: after `close()`, or in a forked child: the number may be another file's by now.
        """
        return self._attachment.fileno()

    def arm(self) -> bool:
        """Call this before sleeping on `fileno()`. False: something has risen since the last `poll()`, so poll first.

        Raises RuntimeError as `fileno`.
        """
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._attachment.fileno())
        return self._library.view.arm()

    # ---- the end

    def close(self) -> None:
        """Leave the node: requests in flight end as Failed on both sides, and every block and slot is given back.

        What this process had mapped is free afterwards, except under tensors and arrays over it that are still alive; a
        warning says so. The lane is not given up while the library thread copies. If that takes longer than some
        seconds, a warning says so, and the thread leaves the node when it has ended. The outcome of requests that have
        ended before can still be asked for (`poll`, `failure_exception`); all else is refused.
        """
        self._library.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def library_of(client: Client) -> Library:
    """The `Library` behind a client, for the other rooms of the package and for tests.

    An application has no use for it.
    """
    return client._library
