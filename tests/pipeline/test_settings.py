"""Settings come from one source: their fields. Flags, environment, TOML, check and page follow from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from embridge import ConfigError, PipelineConfig, Timing
from embridge.allocator.settings import setting
from embridge.pipeline.cli import main, options
from embridge.pipeline.cli.options import node_config
from embridge.pipeline.config import GROUPS, Layer, all_settings, environment, flags_of, toml_file, variable_of
from embridge.pipeline.settings_page import page

ROOT = Path(__file__).parents[2]
ENCODE = Layer({"role": "encode"})


def test_the_page_is_what_the_fields_say() -> None:
    """`make settings` writes it."""
    assert (ROOT / "docs" / "settings.md").read_text() == page()


def test_every_setting_says_what_it_is_and_has_a_variable_of_its_own() -> None:
    settings = list(all_settings())
    assert all(it.help.endswith(".") for _, it in settings)
    variables = [variable_of(group, it.name) for group, it in settings]
    assert len(set(variables)) == len(variables)
    flags = [flag for group, it in settings for flag in flags_of(group, it)]
    assert len(set(flags)) == len(flags)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoreTiming(Timing):
    """As if a contributor had added one field."""

    patience_s: float = setting(3.0, "How long nobody is in a hurry.", gt=0, lt=9, is_flag=True, why="it suits all")


@pytest.fixture
def one_more(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(GROUPS, "timing", MoreTiming)
    options._setting_options.cache_clear()
    yield
    options._setting_options.cache_clear()


def test_a_setting_is_added_in_one_place(one_more: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its field: variable, TOML key, flag, check, `--help` and the page know it."""
    (tmp_path / "node.toml").write_text("[timing]\npatience_s = 4.5\n")
    from_file = toml_file(tmp_path / "node.toml")
    from_environment = environment({"EMBRIDGE_PATIENCE_S": "5"})
    assert PipelineConfig.of_layers(ENCODE, from_file).timing == MoreTiming(patience_s=4.5)
    assert PipelineConfig.of_layers(ENCODE, from_file, from_environment).timing == MoreTiming(patience_s=5.0)
    monkeypatch.setenv("EMBRIDGE_PATIENCE_S", "5")
    flags = {"role": "encode", "patience_s": 6.0}
    assert node_config(tmp_path / "node.toml", flags).timing == MoreTiming(patience_s=6.0)
    with pytest.raises(ConfigError, match=r"^timing\.patience_s: 9\.5 s is outside 0 to 9 s"):
        PipelineConfig.of_layers(Layer({"timing": {"patience_s": 9.5}}))
    told = CliRunner().invoke(main, ["launch", "--help"]).output
    assert "--patience-s FLOAT" in told
    assert "How long nobody is in a hurry." in told
    assert "**`patience_s`** (number; above 0 to below 9 s; default 3.0 s): How long nobody is in a hurry." in page()
    told = " ".join(page().split())
    assert "Why this default: it suits all. `--patience-s`, `EMBRIDGE_PATIENCE_S`, TOML `timing.patience_s`" in told


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("EMBRIDGE_NUM_SLOTS", " 1_024 ", "limits.num_slots", 1024),
        ("EMBRIDGE_NUM_SLOTS", "+64", "limits.num_slots", 64),
        ("EMBRIDGE_SCAN_S", "1e-1", "timing.scan_s", 0.1),
        ("EMBRIDGE_SCAN_S", ".5", "timing.scan_s", 0.5),
        ("EMBRIDGE_CLIENT_SILENT_AFTER_S", "0", "timing.client_silent_after_s", 0.0),
        ("EMBRIDGE_VERIFY", "YES", "verify", True),
        ("EMBRIDGE_VERIFY", "1", "verify", True),
        ("EMBRIDGE_LOCK_MEMORY", "No", "lock_memory", False),
        ("EMBRIDGE_LOCK_MEMORY", "FALSE", "lock_memory", False),
        ("EMBRIDGE_RUN_DIR", "/tmp/x", "run_dir", Path("/tmp/x")),
    ],
)
def test_texts_are_read_as_python_reads_them(variable: str, text: str, name: str, value: object) -> None:
    found: object = PipelineConfig.from_env({variable: text}, role="encode")
    for part in name.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value) or isinstance(value, Path)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("EMBRIDGE_NUM_SLOTS", "0x40"),
        ("EMBRIDGE_NUM_SLOTS", "1e2"),
        ("EMBRIDGE_SCAN_S", "nan"),
        ("EMBRIDGE_SCAN_S", "inf"),
        ("EMBRIDGE_SCAN_S", "0"),
        ("EMBRIDGE_CLIENT_SILENT_AFTER_S", "1e6"),
        ("EMBRIDGE_VERIFY", " 1"),
        ("EMBRIDGE_VERIFY", "on"),
        ("EMBRIDGE_ROLE", "ENCODE"),
        ("EMBRIDGE_LOG_LEVEL", "debug"),
        ("EMBRIDGE_DTYPE", "BFLOAT16"),
        ("EMBRIDGE_MOONCAKE_PROTOCOL", "TCP"),
        ("EMBRIDGE_MOONCAKE_WRITE_TIMEOUT_S", "3600"),
        ("EMBRIDGE_UNSENT_MAX_BYTES", str((1 << 62) + 1)),
    ],
)
def test_a_value_from_the_environment_that_is_refused_names_its_variable(variable: str, text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        PipelineConfig.from_env({variable: text})
    assert variable in str(raised.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[limits]\nnum_slots = 64.0\n", "limits.num_slots: expected a whole number, got 64.0, a number"),
        ("[limits]\nnum_slots = 100\n", "limits.num_slots: 100 is no multiple of 64"),
        ("[limits]\nnum_slots = true\n", "limits.num_slots: expected a whole number, got True, true or false"),
        ("bootstrap_port = 65536\n", "bootstrap_port: 65536 is outside 0 to 65535"),
        ("host_buffer_bytes = 0\n", "host_buffer_bytes: 0 bytes < 1 bytes; give at least that"),
        ("verify = 1\n", "verify: expected true or false, got 1, a whole number"),
        ("host = 5\n", "host: expected text, got 5, a whole number"),
        ("timing = 5\n", "timing: expected a table of settings, [timing] in a file (Timing), got 5, a whole number"),
    ],
)
def test_a_value_from_a_file_that_is_refused_names_the_file(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "node.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        PipelineConfig.from_toml(path, {})
    assert str(raised.value) == f"{said} (from {path})"


def test_a_value_from_a_flag_that_is_refused_names_the_flag_and_not_what_it_goes_over() -> None:
    run = CliRunner(env={"EMBRIDGE_NUM_SLOTS": "128"}).invoke(main, ["launch", "--num-slots", "100"])
    assert run.exit_code == 2
    assert run.stderr == "embridge: limits.num_slots: 100 is no multiple of 64 (from --num-slots)\n"
