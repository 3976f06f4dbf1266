"""P23: peers that come and go leave nothing with the nodes that stay; `make soak ARGS="--restarts 1000"` has more of
them.
"""

from __future__ import annotations

import pytest
from storm.restarts import visits
from support.remains import run_dirs

from embridge.workers.transfer.engines import mooncake

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

_NO_MOONCAKE = mooncake.why_unavailable()
WORKERS = 5
MOST = 100  # descriptors of a process of the encode node


def test_nodes_and_workers_that_come_and_go_leave_nothing_in_shared_memory() -> None:
    """P23, D6: three language nodes, with their payloads; and twenty writers of an encode node."""
    with run_dirs() as path, visits(path, "shm", num_descriptors=256, encode_workers=WORKERS) as it:
        it.workers(it.encode)
        it.rounds(1, [it.language_node])
        before = it.held()
        it.rounds(2, [it.language_node])
        for _ in range(3):
            it.workers(it.encode)
        it.wait_as_before(before)


@pytest.mark.skipif(bool(_NO_MOONCAKE), reason=_NO_MOONCAKE or "it is there")
def test_sessions_that_begin_and_end_leave_nothing_and_fail_no_request() -> None:
    """P23, P11: four sockets to each of fifteen more sessions would not fit into what a process may have here."""
    worker = "encode/worker0"
    with run_dirs() as path, visits(path, "mooncake", num_descriptors=MOST, language_workers=WORKERS) as it:
        it.workers(it.language)
        before = {who: held for who, held in it.held().items() if who[0] != worker}  # which fills, and begins anew
        (first,) = it.lives[worker].values()
        assert first[-1].descriptors + 4 * 4 * WORKERS > MOST
        it.most_open.clear()
        for _ in range(3):
            it.workers(it.language)
        assert 0 < it.most_open[worker] < MOST
        it.wait_as_before(before)
