"""How `-n` deals the tests out: whole files, so that a file's nodes are started once, and the long ones first.

Files whose tests share the nodes of `conftest.py` go to one process together, for each process would start its own.
Where something else than `-n` alone is asked for (`--dist worksteal`), that holds.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

OVER_EVERY_ENGINE = (
    *("transfers/test_failures.py", "transfers/test_destinations.py", "transfers/test_scenarios.py"),
    *("pipeline/scheduler/test_retry.py", "pipeline/scheduler/test_shortage.py"),
    "pipeline/client/test_reused_buffers.py",
)
OVER_SHARED_MEMORY = (
    *("pipeline/ranks/test_ranks.py", "pipeline/ranks/test_two_ranks.py"),
    *("pipeline/client/test_leaving.py", "pipeline/client/test_bad_input.py", "pipeline/client/test_bad_rows.py"),
    *("pipeline/node/test_bad_nodes.py", "pipeline/node/test_dying.py"),
    *("pipeline/inspection/test_status.py", "transfers/test_lessons.py", "transfers/test_lessons_of_lifetimes.py"),
)
FOR_ENGINES = ("integrations/test_dynamo.py", "integrations/test_sglang_parts.py", "integrations/test_sglang_rooms.py")
TOGETHER = {
    f"tests/{name}": f"tests/{names[0]}"
    for names in (OVER_EVERY_ENGINE, OVER_SHARED_MEMORY, FOR_ENGINES)
    for name in names
}
"""File -> which of them it goes with."""

LONG = (
    "tests/transfers/test_failures.py",
    "tests/pipeline/ranks/test_ranks.py",
    "tests/transfers/test_stress.py",
    "tests/two_hosts/test_two_hosts.py",
    "tests/demo/test_run.py",
    "tests/pipeline/client/test_more_rooms_than_slots.py",
    "tests/pipeline/node/test_visits.py",
    "tests/pipeline/test_spawning.py",
    "tests/transfers/test_discovery.py",
)
"""What is begun first, longest first; it costs time, and nothing else, when this is no longer so."""

LONG_WITHOUT_NODES = (
    "tests/native/test_single_step.py",
    "tests/workers/test_simulation.py",
    "tests/workers/test_simulated_direct_writes.py",
    "tests/native/test_sanitizers.py",
)
"""What is begun first of the rest, so that nobody is left with it in the end."""


def unit_of(nodeid: str) -> str:
    """What is dealt out with this test: its file, or several files."""
    path = nodeid.partition("::")[0]
    return TOGETHER.get(path, path)


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """The next unit goes to the process that comes to the end of its own."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile | None:
    if config.option.dist != "load":
        return None
    config.option.loadscopereorder = False  # not by the number of tests
    return ByFile(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In each of pytest's processes: the order in which units are dealt out, those that start nodes before all
    others.
    """
    if not hasattr(config, "workerinput"):
        return
    first = {unit_of(path): place for place, path in enumerate(LONG)}
    with_nodes = {unit_of(item.nodeid) for item in items if item.get_closest_marker("process")}

    def place(item: pytest.Item) -> tuple[int, bool, bool]:
        unit = unit_of(item.nodeid)
        return first.get(unit, len(LONG)), unit not in with_nodes, unit not in LONG_WITHOUT_NODES

    items.sort(key=place)
