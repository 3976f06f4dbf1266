"""For every test: what it leaves behind is its failure (P9).

For those that need them: nodes and processes that tests share.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing.resource_tracker
import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import support
from support.agents import Agent, running, start_fork_server
from support.closing import close_all
from support.leaks import LeakCheck
from support.nodes import BEAT_S, TWO_WORKERS, Station, station
from support.remains import run_dirs

import embridge
from embridge.pipeline.client import untold

if TYPE_CHECKING:
    from support import Queues

    from embridge import Client

pytest_plugins = ["support.resuming", "support.distribution", "support.unchanged"]
collect_ignore = ["vllm"]  # `make vllm` runs them, where vLLM is installed
OUTCOME = pytest.StashKey[dict[str, pytest.TestReport]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("agents_import", "modules that agents (support.agents) need not import by themselves", type="args")


def pytest_configure(config: pytest.Config) -> None:
    """The tracker that `multiprocessing` starts on first use lives as long as this process: have it before any test
    begins. A shell that runs us in the background has SIGINT ignored, here and in every child: tests send it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.resource_tracker.ensure_running()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two more than cores: nearly half of the tests' time is waiting for what has to take its time."""
    return len(os.sched_getaffinity(0)) + 2


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash.setdefault(OUTCOME, {})[report.when] = report
    return report


@pytest.fixture(scope="session", autouse=True)
def fork_server(pytestconfig: pytest.Config) -> None:
    """Before the first test, too, and where what its agents write on standard error is captured."""
    start_fork_server(pytestconfig.getini("agents_import"))
    gc.collect()


@pytest.fixture(scope="module", autouse=True)
def what_modules_keep(fork_server: None) -> None:
    """What has been imported by now, and what tests before have kept (trees of all sources, worlds that were explored),
    is not looked through whenever a test's garbage is collected: half a second each time.
    """
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def early_telling() -> Iterator[None]:
    """Clients of this process tell their nodes of a request after 50 ms: many tests look at what a node does for one
    that waits, and need not wait for it ten times as long. Agents keep to the product's time.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(untold, "LATE_NS", untold.LATE_NS // 10)
        yield


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """P9: no process, segment, run directory, descriptor or mapping is left of a test.

    What a failed one left is killed.
    """
    check = LeakCheck()
    try:
        yield
        close_all()
        call = request.node.stash.get(OUTCOME, {}).get("call")
        if call is not None and call.passed:
            request.node.funcargs.clear()  # every other fixture of the test has ended, and what they gave goes with it
            problems = check.problems()
            assert not problems, "left behind: " + "; ".join(problems)
    finally:
        check.restore()
        for pid in check.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def quiet() -> Iterator[None]:
    """What roles say about what they are made to see is not for people."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# ---- shared by the tests of one pytest process: a pair of nodes costs two seconds


@pytest.fixture(scope="session")
def shared_dir() -> Iterator[Path]:
    with run_dirs() as path:
        yield path


@pytest.fixture
def own_dir() -> Iterator[Path]:
    """Run directories of a test's own."""
    with run_dirs() as path:
        yield path


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest) -> str:
    """How rows travel between the shared nodes; `support.nodes.every_engine` has a module's tests run over each."""
    name: str = getattr(request, "param", "shm")
    return name


@pytest.fixture(scope="session")
def stations(shared_dir: Path) -> Iterator[Callable[..., Station]]:
    """The shared nodes by name and engine, each started when it is first asked for, and there until the last test has
    ended.
    """
    made: dict[tuple[str, str], Station] = {}
    with contextlib.ExitStack() as stack:

        def get(role: str, name: str, engine: str, **settings: Any) -> Station:
            if (name, engine) not in made:
                path = shared_dir / f"{name}-{engine}"
                over: dict[str, Any] = {"limits": TWO_WORKERS, **settings}
                made[name, engine] = stack.enter_context(
                    station(role, path, engine=engine, deepstack_layers=3, beat_s=BEAT_S, **over)
                )
            return made[name, engine]

        yield get


@pytest.fixture(scope="session")
def encode(stations: Callable[..., Station], engine: str) -> Station:
    """An encode node: 16 blocks of 128 tokens, hidden 64, three deepstack layers."""
    return stations("encode", "e", engine, num_blocks=16)


@pytest.fixture(scope="session")
def language(stations: Callable[..., Station], engine: str) -> Station:
    """A language node of the same geometry with 9 blocks: its default of 1024 tokens, and the reserve."""
    return stations("language", "l", engine, num_blocks=9, default_allocate_tokens=1024)


@pytest.fixture(scope="session")
def other_language(stations: Callable[..., Station], engine: str) -> Station:
    """One more language node: 8 blocks, and a default of half of them."""
    return stations("language", "m", engine, num_blocks=8, default_allocate_tokens=512)


@pytest.fixture(scope="session")
def encoder() -> Iterator[Agent]:
    """An encoder process, for functions of `support.encoding`."""
    with running("encoder") as agent:
        yield agent


@pytest.fixture(scope="session")
def scheduler() -> Iterator[Agent]:
    """A scheduler process, for functions of `support.scheduling`."""
    with running("scheduler") as agent:
        yield agent


@pytest.fixture(scope="session")
def other_scheduler() -> Iterator[Agent]:
    with running("other scheduler") as agent:
        yield agent


@pytest.fixture(scope="session")
def _rooms() -> Iterator[int]:
    return iter(range(1, 1 << 62))


@pytest.fixture
def room(_rooms: Iterator[int]) -> int:
    """A room number that no other test has."""
    return next(_rooms)


@pytest.fixture
def rooms(_rooms: Iterator[int]) -> Iterator[int]:
    """Room numbers that no other test has."""
    return _rooms


# ---- clients in the test's own process


@pytest.fixture
def sending(encode: Station) -> Iterator[Client]:
    """A client of the shared encode node."""
    with embridge.attach(encode.run_dir) as client:
        yield client
    encode.wait_idle()


@pytest.fixture
def receiving(language: Station) -> Iterator[Queues]:
    """A client of the shared language node, with its queues."""
    with embridge.attach(language.run_dir) as client:
        yield support.Queues(client)
    language.wait_idle()
