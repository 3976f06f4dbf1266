"""How vLLM finds the connector, what its configuration may say, and what it counts."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engines import Ask, Running, ended, loaded
from prometheus_client import REGISTRY
from runners import config_of
from test_behaviours import promised
from vllm.config import ECTransferConfig
from vllm.distributed.ec_transfer.ec_connector.factory import ECConnectorFactory
from vllm.distributed.ec_transfer.ec_connector.metrics import ECConnectorLogging, ECConnectorProm

from embridge import ConfigError, PipelineConfig, launch
from embridge.integrations.engine_settings import EngineSettings as Settings
from embridge.integrations.vllm import EmbridgeConnector, register
from embridge.integrations.vllm.stats import COUNTS, Done, Stats
from embridge.pipeline.config import default_run_dir


def test_the_module_path_leads_to_the_connector() -> None:
    code = (
        "from vllm.config import ECTransferConfig as C\n"
        "from vllm.distributed.ec_transfer.ec_connector.factory import ECConnectorFactory as F\n"
        "c = C(ec_connector='EmbridgeConnector', ec_role='ec_both',\n"
        "      ec_connector_module_path='embridge.integrations.vllm')\n"
        "print(F.get_connector_class(c).__name__)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert found.stdout == "EmbridgeConnector\n", found.stderr


def test_the_entry_point_registers_it_and_again_does_no_harm(producer: Running) -> None:
    """The engines of these tests name no module path."""
    register()
    register()
    transfer = ECTransferConfig(ec_connector="EmbridgeConnector", ec_role="ec_both")
    assert ECConnectorFactory.get_connector_class(transfer) is EmbridgeConnector


@pytest.mark.parametrize(
    "extra",
    [
        {"lunch": True},
        {"launch": "true"},
        {"shelf_bytes": 1},
        {"cache_bytes": True},
        {"wait_s": -1},
        {"encoders": "tcp://127.0.0.1:1"},
        {"encoders": ["localhost"]},
        {"encoders": [7]},
        {"on_missing": "wait"},
        {"node": []},
    ],
)
def test_a_setting_that_cannot_be_used_is_named(extra: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"ec_connector_extra_config: .*\b{next(iter(extra))}\b"):
        Settings.of(extra, "ec_connector_extra_config")


def test_a_key_has_the_namespace_and_is_hashed_where_it_would_be_too_long() -> None:
    settings = Settings.of({"namespace": "v2/"}, "ec_connector_extra_config")
    assert settings.key("abc") == "v2/abc"
    assert len(settings.key("x" * 300)) == 64
    assert settings.key("x" * 300) != settings.key("x" * 301)


@pytest.mark.parametrize("identifier", ["", "\ud800", "x" * 5000, "\0", "é" * 200])
def test_an_identifier_of_any_form_has_a_key(identifier: str) -> None:
    """Clients may name their media themselves."""
    assert 0 < len(Settings.of({}, "ec_connector_extra_config").key(identifier).encode()) <= 256


def test_each_engine_of_a_host_has_a_run_directory_of_its_own() -> None:
    settings = Settings.of({"launch": True}, "ec_connector_extra_config")
    assert settings.directory("encode", "e1", is_both=True) == default_run_dir("encode-e1")
    assert len({settings.directory("encode", it, is_both=True) for it in ("a/b", "a.b", "../x", "x" * 99)}) == 4
    assert "/" not in settings.directory("encode", "../x", is_both=False).name
    fixed = Settings.of({"run_dir": "/run/e"}, "ec_connector_extra_config")
    assert fixed.directory("encode", "e1", is_both=False) == Path("/run/e")
    assert fixed.directory("encode", "e1", is_both=True) == Path("/run/e/encode")


def test_an_engine_without_its_node_does_not_start_and_says_why(start: Callable[..., Running], folder: Path) -> None:
    with pytest.raises(RuntimeError, match="AttachError: node in"):
        start("ec_producer", {"launch": False, "run_dir": str(folder / "none")})


def test_a_consumer_of_which_nothing_says_from_where_it_may_fetch_does_not_start(start: Callable[..., Running]) -> None:
    with pytest.raises(RuntimeError, match=r"ConfigError: ec_connector_extra_config: encoders: name the encode nodes"):
        start("ec_consumer", {"encoders": []})


def test_engines_join_nodes_that_run_by_themselves(start: Callable[..., Running], folder: Path, name: str) -> None:
    run_dirs = {role: folder / f"{role}-by-hand" for role in ("encode", "language")}
    shape: dict[str, Any] = {"geometry": {"hidden_size": 64, "num_blocks": 8}}
    configs = {role: PipelineConfig.from_env(role=role, run_dir=it, **shape) for role, it in run_dirs.items()}
    configs["encode"] = PipelineConfig.from_env(
        role="encode", run_dir=run_dirs["encode"], limits={"shelf_bytes": 1 << 22}, **shape
    )
    with launch(configs["encode"]), launch(configs["language"]):
        source = start("ec_producer", {"launch": False, "run_dir": str(run_dirs["encode"])})
        target = start("ec_consumer", {"launch": False, "run_dir": str(run_dirs["language"])})
        steps = target.run(Ask(name=name, items=((name, 0, 16),), params=promised(source, name)))
        assert loaded(steps) == [name]
        source.stop()
        target.stop()
    for run_dir in run_dirs.values():
        for path in run_dir.iterdir():
            path.unlink()
        run_dir.rmdir()


def test_what_workers_say_of_a_step_is_over_when_the_last_of_them_has_said_it() -> None:
    """R70."""
    done = Done(4, Counter(published=1)).aggregate(Done(3, Counter()))
    assert (done.step, done.counts) == (3, {"published": 1})


def test_counts_come_to_the_log_and_to_prometheus_by_vllms_own_ways(
    spec_of: Callable[..., Any], producer: Running, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(spec_of("ec_consumer"))
    told = Stats(data={"loads": 2}).aggregate(Stats(data={"loads": 1, "missed": 1}))
    lines: list[str] = []
    logs = ECConnectorLogging(config.ec_transfer_config)
    logs.observe(told.data)
    logs.log(lambda text, *values: lines.append(text % values))
    assert lines == ["EC Transfer metrics: loads=3, missed=1"]
    more = Stats(data={"loads": 5}).data
    one, other = EmbridgeConnector.build_ec_connector_stats(more), EmbridgeConnector.build_ec_connector_stats(more)
    one.aggregate(Stats(data={"loads": 1}))  # each logger has its own
    assert (one.data, other.data) == ({"loads": 6}, {"loads": 5})
    metrics = ECConnectorProm(config, ["engine"], {0: ["0"]})
    metrics.observe(told.data)
    assert REGISTRY.get_sample_value("vllm:embridge_loads_total", {"engine": "0"}) == 3
    assert all(REGISTRY.get_sample_value(f"vllm:embridge_{it}_total", {"engine": "0"}) is not None for it in COUNTS)
    assert logging.getLogger("embridge").level == logging.NOTSET


def test_how_long_a_scheduler_is_asked_is_told(producer: Running, consumer: Running, name: str) -> None:
    """No time is asserted: a busy machine would fail it. The line is for people."""
    images = [f"{name}{k:02}" for k in range(30)]
    params = promised(producer, *images)
    asks = [Ask(name=it, items=((it, 0, 16),), params=params, max_tokens=30) for it in images]
    steps = consumer.run(*asks)
    assert len(ended(steps)) == 30
    times = sorted(ns for step in steps for ns in step.ensure_ns)
    p50, p99, longest = times[len(times) // 2] / 1e3, times[len(times) * 99 // 100] / 1e3, times[-1] / 1e3
    print(f"ensure_cache_available: {len(times)} calls, p50 {p50:.1f} us, p99 {p99:.1f} us, longest {longest:.0f} us")
