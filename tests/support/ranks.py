"""What the ranks of a language node do for a test: functions that an `Agent` calls.

Rank 0 uses `support.scheduling`, too.
"""

from __future__ import annotations

import select
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch

from embridge import Client, FollowedRequest, Follower, attach, follow
from embridge.allocator.errors import NodeGoneError
from embridge.pipeline.ranks.leader import Ranks
from embridge.pipeline.scheduler.request import EmbeddingResult
from support.nodes import Settings, Station, station
from support.rows import arrived, difference
from support.scheduling import Queues, queues_of
from support.waiting import wait_until

SHARED_BYTES = 4 << 20  # 7900 tokens


def language_station(run_dir: Path) -> AbstractContextManager[Station]:
    """A language node with little host memory, all of which its ranks share."""
    settings: Settings = {
        "num_blocks": 16,
        "deepstack_layers": 3,
        "default_allocate_tokens": 512,
        "host_buffer_bytes": SHARED_BYTES,
    }
    return station("language", run_dir, **settings)


class Seen(NamedTuple):
    """One request as a rank saw it, its bytes checked."""

    room: int
    total: int
    difference: str  # empty: every byte is right
    aux: tuple[int, int]
    error: str
    reason: str


def seen(queues_geometry: object, room: int, result: EmbeddingResult | None, failure: object) -> Seen:
    if result is None:
        return Seen(room, 0, "", (0, 0), type(failure).__name__, getattr(failure, "reason", ""))
    rows = arrived(result)
    wrong = difference(queues_geometry, room, 0, rows)  # type: ignore[arg-type]
    return Seen(room, len(rows.fill_ids), wrong, (int(result.aux_datas[0]), result.mrope_position_delta), "", "")


# ---- rank 0


def lead(state: SimpleNamespace, run_dir: Path, num_ranks: int, group: str = "") -> None:
    """Attach as rank 0; from then on `support.scheduling` works with this client."""
    torch.set_num_threads(1)
    if not hasattr(state, "queues"):
        state.queues, state.receivers = {}, {}
    state.queues[run_dir] = Queues(attach(run_dir, num_ranks=num_ranks, group=group))


def ranks_of(client: Client) -> Ranks:
    """What this rank 0 keeps for the others."""
    ranks = client.ranks
    assert isinstance(ranks, Ranks)
    return ranks


def states(state: SimpleNamespace, run_dir: Path) -> dict[int, str]:
    return ranks_of(queues_of(state, run_dir).client).states()


def wait_state(state: SimpleNamespace, run_dir: Path, rank: int, what: str) -> None:
    wait_until(lambda: states(state, run_dir)[rank] == what, 20.0, lambda: states(state, run_dir))


def pop(
    state: SimpleNamespace, run_dir: Path, count: int, timeout_s: float = 30.0, *, keep: bool = False
) -> list[list[Seen]]:
    """Pop until `count` requests have come; the batches, as they came. Released, but for those that are to be kept."""
    queues = queues_of(state, run_dir)
    batches: list[list[Seen]] = []

    def came() -> bool:
        finished, failed = queues.transfer.pop_transferred()
        if finished or failed:
            batches.append([seen(queues.client.geometry, r.room, r.result, r.failure) for r in (*finished, *failed)])
        for request in finished:
            if keep:
                queues.done[request.room] = request
            else:
                request.release()
        return sum(map(len, batches)) >= count

    wait_until(came, timeout_s, lambda: batches)
    return batches


def release(state: SimpleNamespace, run_dir: Path, room: int) -> None:
    queues_of(state, run_dir).done.pop(room).release()


def memory(state: SimpleNamespace, run_dir: Path) -> tuple[int, int]:
    """(bytes of shared memory that are in use, requests that were copied into it at their end)."""
    it = ranks_of(queues_of(state, run_dir).client).memory
    return it.num_used_bytes, it.num_moved


def wait_memory_free(state: SimpleNamespace, run_dir: Path) -> None:
    wait_until(lambda: memory(state, run_dir)[0] == 0, 20.0, lambda: memory(state, run_dir))


# ---- followers


def join(state: SimpleNamespace, run_dir: Path, rank: int, group: str = "", timeout_s: float = 20.0) -> None:
    torch.set_num_threads(1)
    if not hasattr(state, "followers"):
        state.followers, state.kept = {}, {}
    state.followers[run_dir] = follow(run_dir, rank=rank, group=group, timeout_s=timeout_s)


def follower_of(state: SimpleNamespace, run_dir: Path) -> Follower:
    follower: Follower = state.followers[run_dir]
    return follower


def pop_followed(
    state: SimpleNamespace, run_dir: Path, count: int, timeout_s: float = 30.0, *, keep: bool = False
) -> list[list[Seen]]:
    """As `pop`, for a follower; it sleeps until something comes."""
    follower = follower_of(state, run_dir)
    batches: list[list[Seen]] = []

    def came() -> bool:
        finished, failed = follower.pop_transferred()
        if finished or failed:
            batches.append([_checked(follower, request) for request in (*finished, *failed)])
        elif follower.arm():
            select.select([follower.fileno()], [], [], 0.5)
        for request in finished:
            if keep:
                state.kept[request.room] = request
            else:
                request.release()
        return sum(map(len, batches)) >= count

    wait_until(came, timeout_s, lambda: batches)
    return batches


def _checked(follower: Follower, request: FollowedRequest) -> Seen:
    return seen(follower.geometry, request.room, request.result, request.failure)


def look_again(state: SimpleNamespace, run_dir: Path, room: int) -> Seen:
    """At a request that is kept."""
    return _checked(follower_of(state, run_dir), state.kept[room])


def release_followed(state: SimpleNamespace, run_dir: Path, room: int) -> None:
    state.kept.pop(room).release()


def drain(state: SimpleNamespace, run_dir: Path) -> tuple[list[Seen], str]:
    """Pop what is left, until this rank hears that nothing more will come; what came, and why it ended."""
    follower = follower_of(state, run_dir)
    came: list[Seen] = []

    def gone() -> str:
        try:
            finished, failed = follower.pop_transferred()
            came.extend(_checked(follower, request) for request in (*finished, *failed))
            if not finished and not failed and follower.arm():
                select.select([follower.fileno()], [], [], 10.0)
        except NodeGoneError as error:
            return str(error)
        return ""

    return came, wait_until(gone, 15.0)


def leave(state: SimpleNamespace, run_dir: Path) -> None:
    """Close the follower, or rank 0's client, of a node."""
    follower = getattr(state, "followers", {}).pop(run_dir, None)
    if follower is not None:
        follower.close()
    queues = getattr(state, "queues", {}).pop(run_dir, None)
    if queues is not None:
        queues.client.close()

