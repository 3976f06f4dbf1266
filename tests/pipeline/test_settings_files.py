"""The sample file and what `embridge launch --print-config` prints are TOML files that a node starts from."""

from __future__ import annotations

import logging
import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from embridge import PipelineConfig
from embridge.integrations.sglang.options import VARIABLE
from embridge.pipeline.cli import main
from embridge.pipeline.config import all_settings
from embridge.pipeline.settings_toml import sample
from embridge.pipeline.unknown_variables import nearest

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "deploy" / "node.toml"


def test_the_sample_is_what_the_fields_say_and_starts_a_node_with_defaults() -> None:
    """`make settings` writes it."""
    assert SAMPLE.read_text() == sample()
    assert PipelineConfig.from_toml(SAMPLE, {}) == PipelineConfig(role="encode")


def test_every_setting_is_in_the_sample_and_what_is_commented_out_is_its_default(tmp_path: Path) -> None:
    text = re.sub(r"(?m)^#(?=\w+ = )", "", SAMPLE.read_text())
    given = tomllib.loads(text)
    for group, it in all_settings():
        value = (given[group] if group else given).pop(it.name)
        if it.default not in (None, "") and not it.is_required:
            assert value == it.default, it.name
    assert not any(value for value in given.values())
    (tmp_path / "node.toml").write_text(text)
    assert PipelineConfig.from_toml(tmp_path / "node.toml", {}).discovery, "examples can be used, too"


def test_every_setting_has_a_reason_for_its_default_or_none() -> None:
    """It ends a sentence, so it has neither capital nor stop."""
    for _, it in all_settings():
        assert bool(it.why) is not it.is_required, it.name
        assert not it.why.endswith("."), it.name
        assert it.help.rstrip(".") not in it.why


def test_what_is_printed_names_each_origin_and_is_the_same_configuration_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBRIDGE_NUM_SLOTS", "128")
    monkeypatch.setenv("SGLANG_EMBEDDING_CACHE_BUFFER_SIZE", "640")
    (tmp_path / "node.toml").write_text('role = "encode"\nverify = true\n[mooncake]\nwrite_timeout_s = 2.5\n')
    words = ["--config", str(tmp_path / "node.toml"), "--discovery", "http://127.0.0.1:1", "--print-config"]
    done = CliRunner().invoke(main, ["launch", *words])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    for line in (
        f'role = "encode"  # from {tmp_path}/node.toml; default: none',
        f"verify = true  # from {tmp_path}/node.toml; default: false",
        "num_slots = 128  # from EMBRIDGE_NUM_SLOTS; default: 2048 slots",
        "num_blocks = 5  # from SGLANG_EMBEDDING_CACHE_BUFFER_SIZE; default: 0 blocks",
        'discovery = "http://127.0.0.1:1"  # from --discovery; default: none',
        f"write_timeout_s = 2.5  # from {tmp_path}/node.toml; default: 5.0 s",
        "max_routes = 128  # default, made from other settings",
        "block_size = 128  # default",
        "# key_file: not set",
    ):
        assert line in lines
    (tmp_path / "printed.toml").write_text(done.stdout)
    printed = PipelineConfig.from_toml(tmp_path / "printed.toml", {})
    assert printed == PipelineConfig.from_toml(tmp_path / "node.toml", discovery="http://127.0.0.1:1")


def test_paths_are_printed_as_toml_reads_them(tmp_path: Path) -> None:
    odd = tmp_path / 'a "quoted"\\name\x7f\t\u00e4\U0001f600'
    file = tmp_path / "two\nlines.toml"
    file.write_text('role = "encode"\n')
    done = CliRunner().invoke(main, ["launch", "--config", str(file), "--run-dir", str(odd), "--print-config"])
    assert tomllib.loads(done.stdout)["run_dir"] == str(odd)
    assert f"# from {tmp_path}/two\\nlines.toml; " in done.stdout


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("EMBRIDGE_NUM_SLOT", "EMBRIDGE_NUM_SLOTS"),
        ("EMBRIDGE_POLER_PORT", "EMBRIDGE_POLLER_PORT"),
        ("EMBRIDGE_LIMITS_NUM_SLOTS", "EMBRIDGE_NUM_SLOTS"),
        ("EMBRIDGE_COLOUR_OF_THE_SKY", None),
    ],
)
def test_a_variable_that_no_setting_has_is_named_once_with_the_nearest(
    variable: str, meant: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert PipelineConfig.from_env({variable: "1"}, role="encode").role == "encode"
    (said,) = caplog.messages
    assert said.startswith(f"{variable}: no setting has this variable, so it has no effect; ")
    assert (f"is {meant} meant?" in said) is (meant is not None)


def test_what_kubernetes_puts_there_for_a_service_is_not_named(caplog: pytest.LogCaptureFixture) -> None:
    links = {
        "EMBRIDGE_LM_SERVICE_HOST": "10.0.0.1",
        "EMBRIDGE_LM_SERVICE_PORT_HTTP": "80",
        "EMBRIDGE_LM_PORT": "tcp://10.0.0.1:80",
        "EMBRIDGE_LM_PORT_80_TCP_ADDR": "10.0.0.1",
        "OTHER_NUM_SLOT": "1",
    }
    PipelineConfig.from_env(links, role="encode")
    assert not caplog.messages
    assert nearest("EMBRIDGE_LM_PORT_80_TCP_ADDR", ["EMBRIDGE_HOST"]) is None


def test_what_an_integration_reads_is_not_named(caplog: pytest.LogCaptureFixture) -> None:
    PipelineConfig.from_env({VARIABLE: "{}"}, role="encode")
    assert not caplog.messages


def test_help_has_every_default() -> None:
    told = " ".join(CliRunner().invoke(main, ["launch", "--help"]).output.split())
    for _, it in all_settings():
        if it.is_flag and it.kind in (int, float):
            assert f"[default: {it.default}" in told, it.name
    assert "[asked for]" in told
