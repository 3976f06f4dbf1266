"""D15: key files and allow-lists: what is wrong with one is an error that names file and line, and a secret is shown
nowhere.
"""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from embridge.pipeline.cli import main
from embridge.pipeline.config import ConfigError, PipelineConfig
from embridge.pipeline.node.launch import check_keys
from embridge.pipeline.node.launch_messages import encode_config
from embridge.workers.keys import (
    AllowFile,
    KeyFileError,
    KeyPair,
    allow_line,
    is_key,
    parse_allow_list,
    read_allow_list,
    read_key_file,
    write_key_file,
)

# Always the same ones: they are in the names of tests, which several processes collect.
PAIR = KeyPair("B^gJW@8Q#<s%4xWU!rhTLaa&OWtaElx0$w4tVb&A", "N$nriP*=uObwXKw6Z&od=o{/+B:@Tm]V[HxO0iVu")
OTHER = KeyPair("l>:X3z2vwS28V)$VPmMq{C3@hTW-21JC9gneZ[FF", "HK%cuTaWlz!.oV>/@M@0rUP1xtSV&<k0Gt*FBy/!")
KEY, KEY2 = PAIR.public, OTHER.public
HASHED = "0#" + "0" * 38  # a key may hold the character of comments


def invoke(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(arg) for arg in args], prog_name="embridge")
    return result.exit_code, result.stdout, result.stderr


def key_of(text: str, endpoint: str) -> str | None:
    return parse_allow_list(text, Path("nodes.allow")).key_of(endpoint)


# ---- the secret key file


def test_a_key_file_is_for_its_user_alone_and_gives_back_its_key(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    before = os.umask(0)
    try:
        write_key_file(path, PAIR)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_key_file(path) == PAIR
    with pytest.raises(KeyFileError, match="it exists; choose another name"):
        write_key_file(path, OTHER)
    assert read_key_file(path) == PAIR


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610])
def test_a_key_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "node.key"
    write_key_file(path, PAIR)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=f"mode {mode:o}, others may use it; run `chmod 600"):
        read_key_file(path)


def test_a_key_file_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "node.key"
    write_key_file(path, PAIR)
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    with pytest.raises(KeyFileError, match=f"it belongs to user {uid}; it must belong to user {uid + 1}"):
        read_key_file(path)


@pytest.mark.parametrize(
    "text", ["", "secret-key\n", f"secret-key {KEY[:-1]}\n", f"public-key {KEY}\n", "secret-key " + "\x7f" * 40]
)
def test_a_file_without_a_key_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "node.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="no line `secret-key <40 characters>`") as raised:
        read_key_file(path)
    assert KEY[:-1] not in str(raised.value)
    with pytest.raises(KeyFileError, match="make one with `embridge keys new"):
        read_key_file(tmp_path / "absent.key")


def test_a_secret_is_in_no_text_that_a_key_pair_is_turned_into(tmp_path: Path) -> None:
    """It crosses into the processes of a node as a pickle over their pipe, and appears nowhere else."""
    assert PAIR.secret not in f"{PAIR} {PAIR!r} {[PAIR]}"
    assert pickle.loads(pickle.dumps(PAIR)) == PAIR
    write_key_file(tmp_path / "node.key", PAIR)
    config = PipelineConfig(role="encode", key_file=tmp_path / "node.key", allow_file=tmp_path / "x")
    assert PAIR.secret.encode() not in encode_config(config)


# ---- the allow-list


@pytest.mark.parametrize(
    ("line", "endpoint", "found"),
    [
        ("10.0.0.1 {}", "tcp://10.0.0.1:4000", True),
        ("10.0.0.1:4000 {}", "tcp://10.0.0.1:4000", True),
        ("10.0.0.1:4000 {}", "tcp://10.0.0.1:4001", False),
        ("10.0.0.1 {}", "tcp://10.0.0.10:4000", False),
        ("Node-7.Example {} name", "tcp://node-7.example:1", True),
        ("[::1]:4000 {}", "tcp://[::1]:4000", True),
        ("[::1] {}", "tcp://[::1]:1", True),
        ("2001:DB8:0::1 {}", "tcp://[2001:db8::1]:9", True),
        ("- {}", "tcp://-:4000", False),
        ("  10.0.0.1\t{}   name # a comment", "tcp://10.0.0.1:1", True),
        ("10.0.0.1 {} # a comment", "tcp://10.0.0.1:1", True),
        ("# 10.0.0.1 {}", "tcp://10.0.0.1:1", False),
    ],
)
@pytest.mark.parametrize("key", [KEY, HASHED])
def test_the_key_beside_an_address_is_found(line: str, endpoint: str, found: bool, key: str) -> None:
    assert key_of(line.format(key), endpoint) == (key if found else None)


def test_the_line_of_the_port_goes_over_that_of_the_host() -> None:
    for text in (f"h {KEY}\nh:7 {KEY2}\n", f"h:7 {KEY2}\nh {KEY}\n"):
        assert key_of(text, "tcp://h:7") == KEY2
        assert key_of(text, "tcp://h:8") == KEY


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("10.0.0.1", "1 field; write `<address> <public key> [name]`"),
        ("10.0.0.1 short", "its second field is no public key of 40 characters"),
        (f"10.0.0.1 {KEY[:-1]}~", "its second field is no public key"),
        # every character is allowed, the number is too large
        ("10.0.0.1 " + "#" * 40, "its second field is no public key"),
        (f"10.0.0.1:0 {KEY}", "port '0' is outside 1 to 65535"),
        (f"10.0.0.1:x {KEY}", "port 'x' is outside"),
        (f"10.0.0.1: {KEY}", "port '' is outside"),
        (f"[::1 {KEY}", "is no address"),
        (f"[10.0.0.1]:5 {KEY}", "is no address"),
        (f"::g {KEY}", "is no address"),
        (f"a/b {KEY}", "is no address"),
        (f"{'k' * 40} 10.0.0.1", "its second field is no public key"),
        (f"10.0.0.1 {KEY} two words", "4 fields; a name is one word"),
        (f"10.0.0.9 {KEY2}", "10.0.0.9 has another key in line 2"),
    ],
)
def test_a_malformed_line_is_named_with_its_file(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "nodes.allow"
    path.write_text(f"# nodes\n10.0.0.9 {KEY}\n{line}\n")
    with pytest.raises(KeyFileError, match=f"^allow file {re.escape(str(path))}, line 3: .*{re.escape(says)}"):
        read_allow_list(path)
    write_key_file(tmp_path / "node.key", PAIR)
    with pytest.raises(ConfigError, match="line 3"):
        check_keys(PipelineConfig(role="encode", key_file=tmp_path / "node.key", allow_file=path))
    code, out, err = invoke("keys", "check", path)
    assert (code, out) == (2, "")
    assert "line 3" in err


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_list_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "nodes.allow"
    path.write_text(f"- {KEY}\n")
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=f"mode {mode:o}, others may add themselves; run `chmod go-w"):
        read_allow_list(path)


def test_bytes_that_are_no_text_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "nodes.allow"
    path.write_bytes(b"# \n\n\xff\xfe\n")
    with pytest.raises(KeyFileError, match="line 3: it is no UTF-8 text"):
        read_allow_list(path)


def test_a_list_is_read_again_when_its_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "nodes.allow"
    path.write_text(f"- {KEY}\n")
    allow = AllowFile(path)
    assert not allow.refresh()
    fresh = tmp_path / "fresh"
    fresh.write_text(f"- {KEY}\n- {KEY2}\n")
    fresh.replace(path)
    assert allow.refresh()
    assert allow.list.keys == {KEY, KEY2}
    assert not allow.refresh()
    path.write_text("broken\n")
    assert not allow.refresh()
    assert allow.list.keys == {KEY, KEY2}


def test_a_key_is_forty_characters_for_thirty_two_bytes() -> None:
    assert is_key(KEY)
    assert is_key(HASHED)
    assert not any(is_key(text) for text in ("", KEY + "0", KEY[:-5], "é" * 40, "%" * 40, KEY[:-1] + " "))


# ---- the commands


def test_keys_new_show_and_check_fit_together(tmp_path: Path) -> None:
    secret, allow = tmp_path / "node.key", tmp_path / "nodes.allow"
    code, line, err = invoke("keys", "new", secret, "--address", "10.0.0.7:4000", "--name", "encode-7")
    assert code == 0
    pair = read_key_file(secret)
    assert line == f"10.0.0.7:4000 {pair.public} encode-7\n"
    assert invoke("keys", "show", secret)[1] == f"- {pair.public}\n"
    allow.write_text(line + invoke("keys", "show", secret, "--address", "[::1]:9")[1])
    code, out, _ = invoke("keys", "check", allow)
    assert code == 0
    assert out.splitlines() == [
        f"line 1: 10.0.0.7:4000 {pair.public} encode-7",
        f"line 2: [::1]:9 {pair.public}",
        "2 lines, 1 keys; nothing is wrong with them",
    ]
    assert pair.secret not in line + err + out


def test_keys_new_leaves_nothing_behind_when_it_is_asked_wrongly(tmp_path: Path) -> None:
    secret = tmp_path / "node.key"
    for wrong in (["--address", "a/b"], ["--address", "h", "--name", "two words"], ["--address", "h:0"], []):
        code, out, _ = invoke("keys", "new", secret, *wrong)
        assert (code, out) == (2, "")
        assert not secret.exists()
    secret.write_text("")
    code, _, err = invoke("keys", "new", secret, "--address", "h")
    assert code == 2
    assert "it exists" in err
    with pytest.raises(ValueError, match="is no address"):
        allow_line("::x", KEY)


@pytest.mark.parametrize("name", ["new", "show", "check"])
def test_every_keys_command_explains_itself(name: str) -> None:
    code, out, _ = invoke("keys", name, "--help")
    assert code == 0
    assert len(out.split()) > 20


def test_launch_refuses_keys_that_cannot_be_used_in_one_line(tmp_path: Path) -> None:
    secret, allow = tmp_path / "node.key", tmp_path / "nodes.allow"
    write_key_file(secret, PAIR)
    secret.chmod(0o644)
    allow.write_text(f"- {KEY2}\n")
    code, out, err = invoke(
        *("launch", "--role", "encode", "--run-dir", tmp_path / "n", "--key-file", secret, "--allow-file", allow)
    )
    assert (code, out) == (2, "")
    assert err.splitlines() == [f"embridge: key file {secret}: mode 644, others may use it; run `chmod 600 {secret}`"]
    assert not (tmp_path / "n").exists()
