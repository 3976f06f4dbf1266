"""`attach()`: join a node from any process of the same user."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from embridge.allocator.errors import AttachError
from embridge.allocator.geometry import Role
from embridge.allocator.pinning import is_cuda_in_use
from embridge.allocator.ranklog import MAX_RANKS
from embridge.pipeline.arguments import whole
from embridge.pipeline.client.attachment import Attachment
from embridge.pipeline.client.client import Client
from embridge.pipeline.client.library import Library
from embridge.pipeline.join import join, once_up, place_of
from embridge.pipeline.ranks.leader import Ranks

KNOCK_WAIT_S: Final = 0.05


def attach(
    run_dir: str | Path | None = None,
    *,
    role: str = "language",
    pin: bool | None = None,
    num_ranks: int = 1,
    group: str = "",
    wait_s: float = 0.0,
) -> Client:
    """Join the node that runs in `run_dir` (default: the default directory of that role).

    `wait_s`: wait for so many seconds for a node that is not up yet, or is being started again.

    `num_ranks`: this process is rank 0 of so many on this node (at most 32); the others call `follow(run_dir,
    rank=...)`. What it receives then lies in shared memory, `host_buffer_bytes` of it, reserved here (a third of a
    second a GiB). `group` tells several rank 0s of one node apart.

    `pin`: register the payload with CUDA in this process; by default where this process uses CUDA already. What took
    effect stands in `Client.pinned`, and why not in `Client.pin_note`; without it everything works, only slower. An
    encoder must not register it by itself: the node must know of the device, and waits for it before a killed encoder's
    blocks are another's.

    Raises:
        AttachError: no node answers there, it belongs to another user, it takes no new clients, or its layout is
            another one; with ranks: this group has a rank 0 already.
        SegmentError: /dev/shm has no room for what the ranks are to share.
        ValueError: `num_ranks` or `wait_s` is out of range, or `role` is none.
    """
    num_ranks = whole("num_ranks", num_ranks, 1, MAX_RANKS, f"2 to {MAX_RANKS} (1: there is no other rank)")
    path = place_of(run_dir, role)
    library = once_up(lambda: _join(path), wait_s)
    client = Client(library)
    if num_ranks != 1:
        try:
            library.ranks = Ranks(library.attachment, num_ranks, group)
        except BaseException:
            client.close()
            raise
    if pin or (pin is None and is_cuda_in_use()):
        library.attachment.pin()
    return client


def _join(run_dir: Path) -> Library:
    """A library over what the node hands out, with its thread."""
    joined = join(run_dir)
    try:
        attachment = Attachment(
            run_dir,
            joined.control,
            joined.payload,
            joined.sock,
            joined.welcome,
            time.monotonic_ns,
            event_fds=joined.event_fds,
            shelf=joined.shelf,
        )
        library = Library(attachment)
        if attachment.control.role == Role.LANGUAGE:
            library.neighbours.look()  # so that its first receivers by hand go straight; a queue looks again
        library.start()
    except BaseException as error:
        for fd in (*joined.event_fds.values(), joined.sock.detach()):
            os.close(fd)
        joined.payload.discard()
        if joined.shelf is not None:
            joined.shelf.discard()
        joined.control.close()
        if isinstance(error, LookupError | ValueError):
            raise AttachError(f"node in {run_dir}: what it handed over does not fit together: {error}") from error
        if isinstance(error, RuntimeError):
            remedy = "check `ulimit -u`"
            raise AttachError(f"node in {run_dir}: the library thread cannot be started: {error}; {remedy}") from error
        raise
    if library.doors is not None:
        library.doors.wait_for_answers(KNOCK_WAIT_S)  # for its first senders; a node that is busy answers later
    return library
