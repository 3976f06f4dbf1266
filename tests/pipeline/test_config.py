"""Settings: flags over environment over a TOML file over defaults, and every bad value is an error that names it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from embridge.allocator.geometry import Geometry, Limits
from embridge.pipeline.config import (
    DEFAULT_ROUTES,
    GROUPS,
    ConfigError,
    Layer,
    PipelineConfig,
    default_run_dir,
    groups,
)
from embridge.pipeline.node.launch_messages import decode_config, encode_config
from embridge.workers.timing import Timing
from embridge.workers.transfer.engines.mooncake_settings import MooncakeSettings

PATHS = ("run_dir", "key_file", "allow_file", "discovery_token_file", "discovery_ca_file")


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(
        'role = "encode"\nlog_level = "INFO"\n[geometry]\nnum_blocks = 5\nblock_size = 32\n[timing]\nscan_s = 2.5\n'
    )
    return path


def test_nothing_said_is_the_default() -> None:
    config = PipelineConfig.from_env({}, role="encode")
    assert config == PipelineConfig(role="encode")
    assert config.default_allocate_tokens == 8192
    assert (config.geometry, config.limits, config.timing) == (Geometry(), Limits(has_web=1), Timing())


def test_flags_go_over_the_environment_over_the_file_over_the_defaults(toml: Path) -> None:
    environ = {"EMBRIDGE_NUM_BLOCKS": "6", "EMBRIDGE_LOG_LEVEL": "ERROR"}
    config = PipelineConfig.from_toml(toml, environ, geometry={"num_blocks": 7})
    assert (config.role, config.log_level) == ("encode", "ERROR")
    assert (config.geometry.num_blocks, config.geometry.block_size) == (7, 32)
    assert config.geometry.hidden_size == Geometry().hidden_size
    assert config.timing.scan_s == 2.5
    assert PipelineConfig.from_toml(toml, environ).geometry.num_blocks == 6
    assert PipelineConfig.from_toml(toml, {}).geometry.num_blocks == 5


def test_the_environment_covers_every_setting() -> None:
    values: dict[type, dict[str, Any]] = {
        PipelineConfig: {
            "role": "encode",
            "run_dir": "/tmp/elsewhere",
            "host": "127.0.0.2",
            "bootstrap_port": 4001,
            "poller_port": 4002,
            "key_file": "/tmp/a.key",
            "allow_file": "/tmp/nodes.allow",
            "engine": "shm",
            "metrics_addr": "[::1]:9464",
            "web_hosts": "encode-7.cluster, status.example",
            "discovery": "https://127.0.0.1:8998",
            "discovery_token_file": "/tmp/token",
            "discovery_ca_file": "/tmp/ca.pem",
            "default_allocate_tokens": 77,
            "host_buffer_bytes": 78,
            "unsent_max_bytes": 80,
            "max_restarts": 79,
            "verify": True,
            "direct": False,
            "lock_memory": False,
            "log_level": "DEBUG",
            "log_format": "json",
        },
        Geometry: {
            "hidden_size": 9,
            "block_size": 8,
            "num_blocks": 7,
            "dtype": "float32",
            "deepstack_layers": 3,
            "fill_ids": False,
            "mrope_positions": False,
        },
        Limits: {field.name: 64 for field in dataclasses.fields(Limits)} | {"num_workers": 3, "has_web": 1},
        Timing: {field.name: 1.5 for field in dataclasses.fields(Timing)}
        | {"discovery_ttl_s": 3.0, "silent_after_s": 3.5},
        MooncakeSettings: {"protocol": "rdma", "device": "mlx5_0", "write_timeout_s": 2.5, "connect_timeout_s": 3.5},
    }
    prefixes: dict[type, str] = {MooncakeSettings: "EMBRIDGE_MOONCAKE_"}
    environ = {
        prefixes.get(kind, "EMBRIDGE_") + name.upper(): str(value)
        for kind, group in values.items()
        for name, value in group.items()
    }
    config = PipelineConfig.from_env(environ)
    parts = {name: getattr(config, name) for name in GROUPS} | dict(config.engine_settings)
    assert parts.keys() == groups().keys()
    for kind, expected in values.items():
        part = next((part for part in parts.values() if isinstance(part, kind)), config)
        elsewhere = {*parts, "engine_settings", "source"}
        missing = {field.name for field in dataclasses.fields(kind)} - set(expected) - elsewhere
        assert not missing
        for name, value in expected.items():
            got = getattr(part, name)
            assert got == (Path(value) if name in PATHS else value), name


def test_the_documented_variables_set_the_default_the_pool_and_the_block() -> None:
    config = PipelineConfig.from_env(
        {
            "SGLANG_EMBEDDING_DEFAULT_ALLOCATE_BUFFER_SIZE": "1024",
            "SGLANG_EMBEDDING_CACHE_BUFFER_SIZE": "4000",
            "SGLANG_EMBEDDING_CACHE_BLOCK_SIZE": "64",
        },
        role="encode",
    )
    assert config.default_allocate_tokens == 1024
    assert config.geometry.block_size == 64
    assert config.geometry.num_blocks == 4000 // 64


@pytest.mark.parametrize(
    ("environ", "over", "num_blocks"),
    [
        ({}, {}, 8192 // 32),  # the file's block size counts
        ({}, {"geometry": {"block_size": 16}}, 8192 // 16),
        ({"EMBRIDGE_BLOCK_SIZE": "64"}, {}, 8192 // 64),
        ({"EMBRIDGE_NUM_BLOCKS": "3"}, {}, 3),
        ({}, {"geometry": {"num_blocks": 4}}, 4),
        ({}, {"geometry": Geometry(num_blocks=9)}, 9),
    ],
)
def test_the_pool_in_tokens_becomes_blocks_of_the_size_that_is_used_at_last(
    toml: Path, environ: Mapping[str, str], over: Mapping[str, Any], num_blocks: int
) -> None:
    environ = {"SGLANG_EMBEDDING_CACHE_BUFFER_SIZE": "8192", **environ}
    assert PipelineConfig.from_toml(toml, environ, **over).geometry.num_blocks == num_blocks


def test_our_own_variable_goes_over_the_documented_one() -> None:
    environ = {"SGLANG_EMBEDDING_CACHE_BLOCK_SIZE": "64", "EMBRIDGE_BLOCK_SIZE": "16"}
    assert PipelineConfig.from_env(environ, role="encode").geometry.block_size == 16


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("EMBRIDGE_BOOTSTRAP_PORT", "http"),
        ("EMBRIDGE_NUM_SLOTS", "64.0"),
        ("EMBRIDGE_SCAN_S", "soon"),
        ("EMBRIDGE_LOCK_MEMORY", "perhaps"),
        ("SGLANG_EMBEDDING_DEFAULT_ALLOCATE_BUFFER_SIZE", ""),
        ("SGLANG_EMBEDDING_CACHE_BUFFER_SIZE", "8k"),
        ("SGLANG_EMBEDDING_CACHE_BUFFER_SIZE", "127"),
        ("SGLANG_EMBEDDING_CACHE_BUFFER_SIZE", "-1"),
        ("SGLANG_EMBEDDING_CACHE_BLOCK_SIZE", "x"),
    ],
)
def test_a_variable_that_cannot_be_read_is_named(name: str, text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        PipelineConfig.from_env({name: text})
    assert name in str(raised.value)
    assert text in str(raised.value)


BAD = {
    "role": "router",
    "run_dir": 5,
    "host": "localhost.localdomain.",
    "bootstrap_port": -1,
    "poller_port": 65536,
    "key_file": 7,
    "allow_file": 8,
    "engine": "carrier pigeon",
    "metrics_addr": "localhost",
    "web_hosts": "http://encode-7.cluster",
    "discovery": "somewhere",
    "discovery_token_file": 5,
    "discovery_ca_file": 5,
    "default_allocate_tokens": 0,
    "host_buffer_bytes": 0,
    "unsent_max_bytes": 0,
    "max_restarts": 0,
    "verify": "sometimes",
    "direct": "perhaps",
    "lock_memory": "yes",
    "log_level": "LOUD",
    "log_format": "xml",
    "geometry": 7,
    "limits": [1],
    "timing": "fast",
    "engine_settings": [1],
}


def test_a_bad_value_of_every_setting_is_tried() -> None:
    assert {*BAD, "source"} == {field.name for field in dataclasses.fields(PipelineConfig)}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mooncake": "tcp"}, r"mooncake: expected a table of settings, .* \(MooncakeSettings\), got 'tcp', text"),
        ({"mooncake": Timing()}, r"mooncake: expected a table .*, got Timing\(.*\), of type Timing"),
        ({"mooncake": {"protocol": "udp"}}, "mooncake.protocol: 'udp' is unknown; use one of tcp, rdma"),
        ({"mooncake": {"colour": "red"}}, "mooncake.colour: unknown setting; known: connect_timeout_s, "),
        ({"shm": {}}, "engine_settings: 'shm' has no settings; known: mooncake"),
        ("mooncake", "engine_settings: 'mooncake' is no mapping of engines to their settings"),
    ],
)
def test_settings_of_an_engine_that_cannot_be_used_name_themselves(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}"):
        PipelineConfig(engine_settings=given)


def test_the_settings_of_an_engine_are_a_group_wherever_they_come_from(tmp_path: Path) -> None:
    """Given as such, as what the file has, or over the environment; and one spelling is known there, not two."""
    rdma = MooncakeSettings(protocol="rdma", device="mlx5_0")
    fields = {"protocol": "rdma", "device": "mlx5_0"}
    (tmp_path / "node.toml").write_text('[mooncake]\nprotocol = "rdma"\n')
    for config in (
        PipelineConfig(role="encode", engine_settings={"mooncake": rdma}),
        PipelineConfig(role="encode", engine_settings={"mooncake": fields}),
        PipelineConfig.from_env({}, role="encode", mooncake=rdma),
        PipelineConfig.from_env({"EMBRIDGE_MOONCAKE_DEVICE": "mlx5_0"}, role="encode", mooncake={"protocol": "rdma"}),
        PipelineConfig.from_toml(tmp_path / "node.toml", {"EMBRIDGE_MOONCAKE_DEVICE": "mlx5_0"}, role="encode"),
    ):
        assert config.engine_settings == {"mooncake": rdma}
        assert decode_config(encode_config(config)) == config
    assert PipelineConfig(role="encode").engine_settings == {"mooncake": MooncakeSettings()}
    with pytest.raises(ConfigError, match=r"^mooncake: expected a table .*, got 5, a whole number \(from the file\)"):
        PipelineConfig.of_layers(Layer({"mooncake": 5}, "the file"))
    with pytest.raises(ConfigError, match=r"^engine_settings: unknown setting; known: .*timing.*, mooncake"):
        PipelineConfig.from_env({}, engine_settings={"mooncake": rdma})


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_names_itself(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: .*{BAD[name] if isinstance(BAD[name], int | str) else ''}"):
        PipelineConfig.from_env({}, **{name: BAD[name]})


@pytest.mark.parametrize("name", [name for name in BAD if name not in PATHS])
@pytest.mark.parametrize("value", [None, 1.5, [], True])
def test_a_value_of_the_wrong_type_names_itself(name: str, value: object) -> None:
    if name in ("verify", "direct", "lock_memory") and value is True:
        return
    with pytest.raises(ConfigError, match=f"^{name}: "):
        PipelineConfig.from_env({}, **{name: value})


KEYS: dict[str, Any] = {"key_file": "/tmp/a.key", "allow_file": "/tmp/nodes.allow"}


@pytest.mark.parametrize("host", ["192.168.1.4", "8.8.8.8", "2001:db8::1", "::ffff:10.0.0.1"])
def test_a_host_that_others_can_reach_wants_keys(host: str) -> None:
    """D15: what is not encrypted is not exposed."""
    with pytest.raises(
        ConfigError,
        match=f"host: {host} is no loopback address, and without keys .* make a key with `embridge keys new`",
    ):
        PipelineConfig(host=host)
    assert PipelineConfig(role="encode", host=host, **KEYS).key_file == Path("/tmp/a.key")


@pytest.mark.parametrize("keys", [{}, KEYS])
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::ffff:0.0.0.0"])
def test_all_interfaces_are_always_refused(host: str, keys: dict[str, Any]) -> None:
    """D15: one configured address, with keys or without."""
    with pytest.raises(ConfigError, match=f"host: {host} stands for all interfaces; give the one address"):
        PipelineConfig(host=host, **keys)


@pytest.mark.parametrize(("given", "missing"), [("key_file", "allow_file"), ("allow_file", "key_file")])
def test_a_key_without_a_list_or_a_list_without_a_key_is_refused(given: str, missing: str) -> None:
    settings: dict[str, Any] = {given: Path("/tmp/x")}
    with pytest.raises(ConfigError, match=f"^{given}: it is set and {missing} is not"):
        PipelineConfig(**settings)


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("geometry", "block_size", 0),
        ("geometry", "block_size", 1 << 14),
        ("geometry", "hidden_size", -1),
        ("geometry", "num_blocks", "many"),
        ("geometry", "dtype", "int4"),
        ("limits", "num_slots", 100),
        ("limits", "ring_records", 100),
        ("limits", "window_blocks", -1),
        ("timing", "scan_s", 0),
        ("timing", "heartbeat_s", float("nan")),
        ("timing", "peer_timeout_s", "long"),
        ("timing", "discovery_ttl_s", 1.5),  # less than two reports
        ("limits", "max_routes", 1025),
        ("mooncake", "write_timeout_s", 0),
        ("mooncake", "colour", "red"),
    ],
)
def test_a_bad_value_inside_a_group_names_itself(group: str, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{group}.{key}: .*"):
        PipelineConfig.from_env({}, **{group: {key: value}})


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("127.0.0.1:8998", "not of the form http://host:port"),
        ("http://127.0.0.1", "not of the form"),
        ("http://127.0.0.1:0", "not of the form"),
        ("http://127.0.0.1:99999", "not of the form"),
        ("ftp://127.0.0.1:1", "not of the form"),
        ("http://user:secret@127.0.0.1:1", "not of the form"),
        ("http://127.0.0.1:1/path", "not of the form"),
        ("http://127.0.0.1:1?role=encode", "not of the form"),
        ("http://127.0.0.1\r\nX: y:1", "not of the form"),
        ("http://" + "h" * 120 + ":1", "not of the form"),
        ("http://10.0.0.1:8998", "10.0.0.1 is not a loopback address"),
        ("http://server:8998", "server is not a loopback address"),
        ("etcd://", "not of the form etcd://host:port"),
        ("etcd://10.0.0.1", "'10.0.0.1' is not of the form host:port"),
        ("etcd://a:2379,b:0", "'b:0' is not of the form host:port"),
        ("etcd://a:2379,b:65536", "'b:65536' is not"),
        ("etcd://user:secret@a:2379", "is not of the form host:port"),
        ("etcd://a:2379/pre fix", "not of the form"),
        ("etcd://a:2379//x", "not of the form"),
        ("etcd://a:2379/x?y=1", "not of the form"),
        ("etcd://a:2379/x\n", "not of the form"),
        ("etcd://" + ",".join(["a:1"] * 10), "10 endpoints > 9"),
        ("etcd://a:1/" + "x" * 64, "a prefix of 65 characters > 64"),
        ("etcd://" + "h" * 520 + ":1", "not of the form"),
    ],
)
def test_a_discovery_server_is_a_plain_url_and_beyond_loopback_there_is_a_token(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"discovery: .*{said}"):
        PipelineConfig(discovery=url)


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1:8998", "http://[::1]:8998/", "http://localhost:1", "https://127.0.0.1:1"),
        *("etcd://10.0.0.1:2379,10.0.0.2:2379", "etcds://etcd.cluster:2379/prod/embridge"),
    ],
)
def test_discovery_brings_a_route_table_and_none_is_there_without(url: str) -> None:
    assert PipelineConfig(role="encode").limits.max_routes == 0
    assert PipelineConfig(role="encode", discovery=url).limits.max_routes == DEFAULT_ROUTES
    assert PipelineConfig(role="encode", discovery=url, limits=Limits(max_routes=3)).limits.max_routes == 3
    with pytest.raises(ConfigError, match="max_routes: 3 without discovery"):
        PipelineConfig(limits=Limits(max_routes=3))
    config = PipelineConfig(role="encode", discovery="http://server:8998", discovery_token_file=Path("token"))
    assert config.discovery_token_file == Path.cwd() / "token"
    assert decode_config(encode_config(config)) == config


def test_authorities_are_for_a_server_that_has_a_certificate() -> None:
    for url in ("https://127.0.0.1:1", "etcds://etcd:2379"):
        config = PipelineConfig(role="encode", discovery=url, discovery_ca_file=Path("ca.pem"))
        assert config.discovery_ca_file == Path.cwd() / "ca.pem"
    for url in ("http://127.0.0.1:1", "etcd://etcd:2379"):
        with pytest.raises(ConfigError, match=f"discovery_ca_file: {url} has no certificate; use https:// or etcds://"):
            PipelineConfig(role="encode", discovery=url, discovery_ca_file=Path("ca.pem"))


def test_an_unknown_setting_is_an_error_that_lists_the_known(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text("port = 5\n")
    with pytest.raises(ConfigError, match="port: unknown setting; known: role, run_dir"):
        PipelineConfig.from_toml(path, {})
    path.write_text("[timing]\npatience = 5\n")
    with pytest.raises(ConfigError, match=r"timing\.patience: unknown setting; known: beat_s"):
        PipelineConfig.from_toml(path, {})


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("request_timeout_s", r"timing; give timing=Timing\(request_timeout_s=\.\.\.\)"),
        ("num_slots", r"limits; give limits=Limits\(num_slots=\.\.\.\)"),
        ("hidden_size", r"geometry; give geometry=Geometry\(hidden_size=\.\.\.\)"),
        ("protocol", r"mooncake; give engine_settings={'mooncake': MooncakeSettings\(protocol=\.\.\.\)}"),
    ],
)
def test_a_setting_of_a_part_says_where_it_is_to_be_given(tmp_path: Path, name: str, place: str) -> None:
    given: dict[str, Any] = {name: 5}
    with pytest.raises(TypeError, match=rf"^PipelineConfig: {name} is a setting of {place}$"):
        PipelineConfig(role="encode", **given)
    part = place.partition(";")[0]
    said = rf"{name} is a setting of {part}; give it there, which is \[{part}\] in a file"
    with pytest.raises(ConfigError, match=f"^{name}: {said}$"):
        PipelineConfig.from_env({}, role="encode", **given)
    elsewhere = "timing" if part != "timing" else "limits"
    for table, full in (("", name), (f"[{elsewhere}]\n", rf"{elsewhere}\.{name}")):
        (tmp_path / "node.toml").write_text(f"{table}{name} = 5\n")
        with pytest.raises(ConfigError, match=rf"^{full}: {said} \(from .*node\.toml\)$"):
            PipelineConfig.from_toml(tmp_path / "node.toml", {}, role="encode")


def test_a_setting_of_the_node_that_stands_in_a_part_is_told_to_leave_it() -> None:
    with pytest.raises(ConfigError, match=r"^limits\.host: host is no setting of limits but of the node; give it outs"):
        PipelineConfig.from_env({}, role="encode", limits={"host": "127.0.0.1"})
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        PipelineConfig(role="encode", colour="red")  # type: ignore[call-arg]
    assert list(inspect.signature(PipelineConfig).parameters)[:2] == ["role", "run_dir"]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        PipelineConfig.from_toml(tmp_path / "missing.toml", {})
    (tmp_path / "broken.toml").write_text("role = [")
    with pytest.raises(ConfigError, match=r"broken\.toml"):
        PipelineConfig.from_toml(tmp_path / "broken.toml", {})
    (tmp_path / "bytes.toml").write_bytes(b"role = '\xff'")
    with pytest.raises(ConfigError, match=r"bytes\.toml"):
        PipelineConfig.from_toml(tmp_path / "bytes.toml", {})


def test_a_run_directory_is_absolute_and_each_role_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PipelineConfig(role="encode", run_dir=Path("here")).directory == Path.cwd() / "here"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert PipelineConfig(role="encode").directory == Path("/run/user/7/embridge-encode")
    assert default_run_dir("language") != default_run_dir("encode")


def test_a_configuration_reaches_the_launcher_as_it_is() -> None:
    config = PipelineConfig(
        role="encode", run_dir=Path("/tmp/x"), **KEYS, geometry=Geometry(deepstack_layers=3), timing=Timing(scan_s=0.5)
    )
    assert decode_config(encode_config(config)) == config
