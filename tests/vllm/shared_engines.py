"""Engines and nodes that the tests of the vLLM connector share. `make vllm` runs them; `make test` does not."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ |= {"VLLM_TARGET_DEVICE": "cpu", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}

from engines import CONTEXT, Running, running
from runners import EngineSpec, model_folder

NODE = {"geometry": {"hidden_size": 64, "num_blocks": 8}}
LANGUAGE = {"launch": True, "cache_bytes": 1 << 22, "encoders": ["tcp://127.0.0.1:*"], "node": NODE}
ENCODE = {"launch": True, "shelf_bytes": 1 << 24, "node": NODE}


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """Of a model, and of the run directories of nodes."""
    CONTEXT.set_forkserver_preload(["engines"])
    path = Path(tempfile.mkdtemp(prefix="eb-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(path))
        model_folder(path / "model")
        yield path
    left = sorted(it.name for it in path.iterdir() if it.name != "model")
    shutil.rmtree(path)
    assert not left, "run directories are left"


@pytest.fixture(scope="session")
def spec_of(folder: Path) -> Callable[..., EngineSpec]:
    """An engine of a role. `extra` goes over the settings of its connector; the rest is of `EngineSpec`."""
    numbers = iter(range(1000))

    def spec(role: str, extra: dict[str, Any] | None = None, **fields: Any) -> EngineSpec:
        settings = (ENCODE if role == "ec_producer" else LANGUAGE) | (extra or {})
        transfer = {
            "ec_connector": "EmbridgeConnector",
            "ec_role": role,
            "engine_id": f"{role}-{next(numbers)}",
            "ec_connector_extra_config": settings,
        }
        return EngineSpec(model=str(folder / "model"), transfer=transfer, **fields)

    return spec


@pytest.fixture(scope="session")
def producer(spec_of: Callable[..., EngineSpec]) -> Iterator[Running]:
    """An encoder instance with a node of its own."""
    with running(spec_of("ec_producer")) as engine:
        yield engine


@pytest.fixture(scope="session")
def consumer(spec_of: Callable[..., EngineSpec]) -> Iterator[Running]:
    """A language instance with a node of its own."""
    with running(spec_of("ec_consumer")) as engine:
        yield engine


@pytest.fixture
def start(spec_of: Callable[..., EngineSpec]) -> Iterator[Callable[..., Running]]:
    """Engines of a test's own."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **fields: stack.enter_context(running(spec_of(*args, **fields)))


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Of this test alone: goes before the identifiers and the requests that it makes."""
    return f"{abs(hash(request.node.name)) % 10**6:06}"
