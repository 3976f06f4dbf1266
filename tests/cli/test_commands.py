"""The command line: quick help, one line for what can be expected, flags over environment over file over defaults."""

from __future__ import annotations

import json
import pwd
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from embridge.allocator.errors import LaunchError
from embridge.pipeline.cli import COMMANDS, main
from embridge.pipeline.cli.checks import CHECKS, engines, huge_pages, run_checks
from embridge.pipeline.cli.errors import FAILED, INTERRUPTED, NO_NODE, WRONG, CommandError, expected_errors
from embridge.pipeline.cli.options import node_config, run_dir_of
from embridge.pipeline.cli.ready import say_ready
from embridge.pipeline.cli.status import render
from embridge.pipeline.config import ConfigError
from embridge.workers.run_socket import SOCKET_NAME


def invoke(*args: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, args, env=env, prog_name="embridge")
    return result.exit_code, result.stdout, result.stderr


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from embridge.pipeline.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "print(sorted({'torch', 'numpy', 'zmq', 'rich'} & set(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], check=True, timeout=100, capture_output=True, text=True)
    *help_lines, imported = run.stdout.splitlines()
    assert imported == "[]"
    assert all(any(line.split()[:1] == [name] for line in help_lines) for name in COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(name: str) -> None:
    code, out, _ = invoke(name, "--help")
    assert code == 0
    assert COMMANDS[name].rstrip(".") in " ".join(out.split())


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["launch", "--role", "encode", "--num-blocks", "-1"], "num_blocks"),
        (["launch", "--host", "10.0.0.1"], "host"),
        (["launch", "--config", "/absent.toml"], "/absent.toml"),
        (["launch", "--discovery", "http://10.0.0.1:8998"], "discovery"),
        (["discovery", "--host", "0.0.0.0"], "host"),
        (["discovery", "--host", "10.0.0.1"], "--token-file"),
        (["discovery", "--token-file", "/absent"], "/absent"),
        (["demo", "--requests", "0"], "requests"),
        (["demo", "--block-size", "-1"], "block_size"),
        (["demo", "--images", "/absent"], "/absent"),
        (["launch", "--role", "both"], "--role"),
        (["launch"], "which side is this node? say encode or language: --role"),
        (["stop", "--timeout", "-1"], "--timeout"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it_and_status_2(args: list[str], named: str) -> None:
    code, out, err = invoke(*args)
    assert code == 2
    assert out == ""
    assert named in err.splitlines()[-1]
    assert "Traceback" not in err


def test_what_embridge_raises_on_purpose_is_one_line_and_status_1() -> None:
    import click

    @click.command
    def failing() -> None:
        with expected_errors():
            raise LaunchError("poller: exited with 3\nbefore READY")

    result = CliRunner().invoke(failing)
    assert result.exit_code == 1
    assert result.stderr == "embridge: poller: exited with 3 before READY\n"


def test_discovery_without_its_packages_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("embridge.workers.discovery.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    code, _, err = invoke("discovery", "--port", "0")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "aiohttp is not installed; run pip install 'embridge[discovery]'" in err


def test_ctrl_c_is_status_130_without_a_traceback() -> None:
    import click

    @click.command
    def interrupted() -> None:
        with expected_errors():
            raise KeyboardInterrupt

    result = CliRunner().invoke(interrupted)
    assert result.exit_code == 130
    assert result.stderr.startswith("embridge: interrupted")


def test_flags_go_over_environment_over_toml_over_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml = tmp_path / "node.toml"
    toml.write_text("role = 'encode'\ndefault_allocate_tokens = 1\n[geometry]\nblock_size = 1\nnum_blocks = 1\n")
    monkeypatch.setenv("EMBRIDGE_BLOCK_SIZE", "2")
    monkeypatch.setenv("EMBRIDGE_NUM_BLOCKS", "2")
    config = node_config(toml, {"num_blocks": 3, "run_dir": tmp_path, "hidden_size": None})
    assert (config.role, config.default_allocate_tokens) == ("encode", 1)
    assert (config.geometry.block_size, config.geometry.num_blocks) == (2, 3)
    assert config.geometry.hidden_size == 3584
    assert config.directory == tmp_path


def test_a_bad_environment_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_EMBEDDING_DEFAULT_ALLOCATE_BUFFER_SIZE", "many")
    with pytest.raises(ConfigError, match="SGLANG_EMBEDDING_DEFAULT_ALLOCATE_BUFFER_SIZE: expected a whole number"):
        node_config(None, {})


def test_doctor_reports_every_check_as_a_table_and_as_json() -> None:
    code, out, _ = invoke("doctor", "--json")
    checks = json.loads(out)
    names = [check["name"] for check in checks]
    assert len(set(names)) == len(names) >= len(CHECKS)
    assert "Mooncake" in names
    assert {check["state"] for check in checks} <= {"ok", "note", "warn", "fail"}
    assert code == int(any(check["state"] == "fail" for check in checks))
    assert all(check["advice"] for check in checks if check["state"] in ("warn", "fail"))
    _, table, _ = invoke("doctor", env={"COLUMNS": "200"})
    assert all(check["name"] in table for check in checks)


@pytest.mark.parametrize(
    ("options", "state", "seen"),
    [("rw", "note", "never"), ("rw,huge=never", "note", "never"), ("rw,size=1024k,huge=advise", "ok", "advise")],
)
def test_huge_pages_are_those_of_the_last_mount_of_dev_shm(options: str, state: str, seen: str) -> None:
    mounts = f"tmpfs /dev/shm tmpfs rw,huge=always 0 0\nproc /proc proc rw 0 0\ntmpfs /dev/shm tmpfs {options} 0 0\n"
    check = huge_pages(mounts)
    assert (check.state, check.seen) == (state, f"/dev/shm: {seen}")
    assert ("huge=advise" in check.advice) == (state == "note")


def test_a_check_that_breaks_is_a_failure_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("no such file")

    monkeypatch.setattr("embridge.pipeline.cli.checks.CHECKS", (broken, CHECKS[0]))
    first, second = run_checks()
    assert (first.name, first.state) == ("broken", "fail")
    assert "no such file" in first.seen
    assert second.state == "ok"


def test_a_mooncake_that_does_not_load_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Traceback\nImportError: libibverbs.so.1: cannot open shared object file: No such file or directory\n"
    failed = subprocess.CompletedProcess([], 1, "", said)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("subprocess.run", lambda *args, **kwargs: failed)
    (check,) = engines()
    assert (check.name, check.state) == ("Mooncake", "warn")
    assert "libibverbs.so.1" in check.seen
    assert "libibverbs1" in check.advice


def test_a_mooncake_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (check,) = engines()
    assert (check.name, check.state, check.seen) == ("Mooncake", "warn", "not installed")
    assert "embridge[mooncake" in check.advice


@pytest.mark.parametrize("command", ["status", "top --once", "trace 7", "drain", "stop"])
def test_a_command_about_no_node_is_one_line_and_status_3(command: str, tmp_path: Path) -> None:
    code, out, err = invoke(*command.split(), "--run-dir", str(tmp_path))
    assert (code, out) == (3, "")
    assert len(err.splitlines()) == 1


def test_which_node_is_meant_is_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word about it: the one that runs in a default run directory; of two it is asked for."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for name in ("EMBRIDGE_ROLE", "EMBRIDGE_RUN_DIR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(CommandError, match=f"no node runs in {tmp_path}/embridge-encode nor {tmp_path}"):
        run_dir_of(None, None)
    for role in ("language", "encode"):
        (tmp_path / f"embridge-{role}").mkdir()
        (tmp_path / f"embridge-{role}" / SOCKET_NAME).touch()
        if role == "language":
            assert run_dir_of(None, None) == tmp_path / "embridge-language"
    with pytest.raises(CommandError, match=r"which node\? two run here: say --role encode or --role lang") as raised:
        run_dir_of(None, None)
    assert raised.value.exit_code == 2
    assert run_dir_of(None, "encode") == tmp_path / "embridge-encode"
    monkeypatch.setenv("EMBRIDGE_RUN_DIR", str(tmp_path / "elsewhere"))
    assert run_dir_of(None, None) == tmp_path / "elsewhere"
    assert run_dir_of(tmp_path / "here", "encode") == tmp_path / "here"


def test_status_is_shown_in_one_table_a_group() -> None:
    from rich.console import Console

    console = Console(width=160, record=True)
    status = {
        "role": "encode",
        "blocks": {"free": 3, "owned": 1},
        "processes": {"poller": {"pid": 12, "restarts": 0}, "bootstrap": {"pid": 13, "restarts": 1}},
        "requests": [{"room": 5, "path": ["Bootstrapping"]}],
        "clients": [{"name": "encoder", "pid": 14}],
        "peers": [],
    }
    with console.capture() as capture:
        for part in render(status):
            console.print(part)
    text = capture.get()
    assert [line.split() for line in text.splitlines() if line.startswith("poller")] == [["poller", "12", "0"]]
    assert [line.split() for line in text.splitlines() if line.startswith("encoder")] == [["encoder", "14"]]
    assert "Bootstrapping" in text
    assert "none" in text


def test_on_a_narrow_screen_no_address_of_a_status_is_cut() -> None:
    from rich.console import Console

    address, node = "tcp://127.0.0.1:40913", "3c53c90fd68879df"
    peer = {"node": node, "incarnation": 1796113, "bootstrap_addr": address, "registered_s": 7.8, "trouble": "none"}
    more = {"poller_addr": address, "direct_writers": "none", "writers": "none"}
    short = {"pid": 12, "restarts": 0}
    console = Console(width=80, record=True)
    with console.capture() as capture:
        for part in render({"peers": [peer | more, peer], "processes": {"poller": short}}):
            console.print(part)
    lines = [line.split() for line in capture.get().splitlines()]
    assert lines.count(["bootstrap", "addr", address]) == 2
    assert ["peers", "1"] in lines
    assert ["poller", "12", "0"] in lines


def shown_commands() -> list[tuple[list[str], str, set[int]]]:
    """(words, what `--json` prints, exit statuses) of each row of the table of commands."""
    page = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    rows = re.findall(r"(?m)^\| `embridge ([^`]+)` \| [^|]+ \| ([^|]+) \| ([^|]+) \|$", page)
    return [(words.split(), json_text, {int(code) for code in codes.split(", ")}) for words, json_text, codes in rows]


def test_the_table_of_commands_has_all_of_them_and_says_which_speak_json() -> None:
    import click

    context = click.Context(main)
    shown = {" ".join(word for word in words if word[0] != "-"): json_text for words, json_text, _ in shown_commands()}
    found: dict[str, click.Command] = {}
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found |= {f"{name} {sub}": it for sub, it in command.commands.items()}
        else:
            found[name] = command
    assert shown.keys() == found.keys()
    for name, it in found.items():
        has_json = any("--json" in param.opts for param in it.get_params(context))
        assert has_json is (name != "completion"), name


def test_the_table_of_exit_statuses_has_those_that_commands_end_with() -> None:
    page = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    listed = {int(code) for code in re.findall(r"(?m)^\| (\d+) \|", page)}
    assert listed == {0, FAILED, WRONG, NO_NODE, INTERRUPTED, 128 + signal.SIGTERM}
    assert set().union(*(codes for _, _, codes in shown_commands())) == {0, FAILED, WRONG, NO_NODE}
    assert {words[0] for words, _, codes in shown_commands() if NO_NODE in codes} == {
        *("status", "top", "trace", "drain", "stop")
    }


def test_keys_speak_json(tmp_path: Path) -> None:
    code, out, _ = invoke("keys", "new", str(tmp_path / "a.key"), "--address", "10.0.0.7", "--name", "a", "--json")
    made = json.loads(out)
    assert code == 0
    assert (made["address"], made["name"]) == ("10.0.0.7", "a")
    _, out, _ = invoke("keys", "show", str(tmp_path / "a.key"), "--json")
    assert json.loads(out) == {"address": "-", "public_key": made["public_key"], "name": ""}
    (tmp_path / "nodes.allow").write_text(f"# ours\n10.0.0.7 {made['public_key']} a\n")
    _, out, _ = invoke("keys", "check", str(tmp_path / "nodes.allow"), "--json")
    assert json.loads(out) == [{"line": 2, **made}]


def test_ready_is_one_line_for_people_or_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    say_ready({"role": "encode", "pid": 7}, as_json=False)
    assert capsys.readouterr().out == "READY role=encode pid=7\n"
    say_ready({"role": "encode", "pid": 7}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"state": "READY", "role": "encode", "pid": 7}


def test_completion_is_installed_by_one_command_and_a_shell_completes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    code, out, _ = invoke("completion", "--install", "bash")
    place = tmp_path / ".local/share/bash-completion/completions/embridge"
    assert (code, out) == (0, f"{place}: written; the next bash completes `embridge`\n")
    asked = f"source {place}; complete -p embridge; COMP_WORDS=(embridge launch --role ''); COMP_CWORD=3; "
    asked += '_embridge_completion "$0"; echo "${COMPREPLY[@]}"'
    program = Path(sys.executable).with_name("embridge")
    done = subprocess.run(["bash", "-c", asked, program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["complete -o nosort -F _embridge_completion embridge", "encode language"]


def test_zsh_is_told_once_where_the_completion_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".zshrc").write_text("setopt autocd")
    for _ in range(2):
        assert invoke("completion", "--install", "zsh")[0] == 0
    lines = (tmp_path / ".zshrc").read_text().splitlines()
    assert lines[0] == "setopt autocd"
    assert [line.split()[1] for line in lines[1:]] == ["~/.local/share/zsh/site-functions/_embridge"]
    assert (tmp_path / ".local/share/zsh/site-functions/_embridge").read_text().startswith("#compdef embridge")


def test_completion_for_a_shell_that_is_not_known_asks_which(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = pwd.struct_passwd(("me", "x", 1, 1, "", "/home/me", "/bin/tcsh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: entry)
    assert invoke("completion") == (
        2,
        "",
        "embridge: which shell? yours is 'tcsh'; say one of bash, fish, zsh\n",
    )
