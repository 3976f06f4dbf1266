"""P13: the run directory is this user's, whatever others may have put in its place; and what stands in it is one clear
message or none.
"""

from __future__ import annotations

import errno
import os
import selectors
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.nodes import config_of
from support.simulation import segment

from embridge import ConfigError, Limits, PipelineConfig, attach
from embridge.allocator.control import Control, format_control
from embridge.allocator.errors import AttachError, LaunchError
from embridge.allocator.geometry import Geometry, Role
from embridge.allocator.layout import ControlLayout
from embridge.pipeline.config import default_run_dir
from embridge.pipeline.inspection.open_readonly import look, remains
from embridge.pipeline.node.launcher import Launcher
from embridge.pipeline.node.recovery import Recovery
from embridge.pipeline.node.run_socket_server import RunSocketServer
from embridge.pipeline.run_dir import RunDirError, open_run_dir, read_identity
from embridge.workers.discovery.auth_token import read_token
from embridge.workers.keys import KeyFileError, read_allow_list, read_key_file
from embridge.workers.timing import Timing

FEW = Limits(num_slots=64, max_clients=2, num_workers=1, window_blocks=64, max_peers=4, ring_records=64)
SOMEBODY = 12345
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what belongs to somebody else")


@contextmanager
def opened(path: Path, *, create: bool = False) -> Iterator[int]:
    fd = open_run_dir(path, create=create)
    try:
        yield fd
    finally:
        os.close(fd)


def launcher_in(path: Path) -> Launcher:
    """A launcher up to where it would start processes."""
    return Launcher(config_of("encode", path, num_blocks=2, limits=FEW))


def refused_everywhere(path: Path, match: str) -> None:
    """By a launcher, which writes nothing there; by whoever attaches; by whoever looks."""
    with pytest.raises(LaunchError, match=match):
        launcher_in(path)
    with pytest.raises(AttachError, match=match):
        attach(path)
    with pytest.raises(AttachError, match=match):
        look(path)
    assert remains(path) == {}


# ---- who has made it


def test_what_is_missing_is_made_for_this_user_alone(own_dir: Path) -> None:
    before = os.umask(0)
    try:
        with opened(own_dir / "a" / "b" / "c", create=True) as fd:
            assert os.path.samestat(os.fstat(fd), (own_dir / "a" / "b" / "c").stat())
    finally:
        os.umask(before)
    for path in (own_dir / "a", own_dir / "a" / "b", own_dir / "a" / "b" / "c"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path


def test_who_only_looks_makes_nothing(own_dir: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_run_dir(own_dir / "a" / "b")
    assert not (own_dir / "a").exists()


@as_root
@pytest.mark.parametrize("whose", ["run", "run/embridge-encode"])
def test_a_folder_of_somebody_else_is_refused(own_dir: Path, whose: str) -> None:
    """In the temporary directory anybody may have made one by the name that ours would have."""
    path = own_dir / "run" / "embridge-encode"
    path.mkdir(parents=True, mode=0o700)
    path.chmod(0o700)
    os.chown(own_dir / whose, SOMEBODY, SOMEBODY)
    refused_everywhere(
        path, rf"run directory {path}: {own_dir / whose} belongs to user {SOMEBODY}, not to user 0; have it removed"
    )
    assert list(path.iterdir()) == []


@pytest.mark.parametrize("link", ["run", "run/embridge-encode"])
def test_no_link_is_followed_where_anybody_may_put_one(own_dir: Path, link: str) -> None:
    """Not even one of this user: whoever made it, what it names is not what was meant."""
    (own_dir / "elsewhere" / "embridge-encode").mkdir(parents=True, mode=0o700)
    (own_dir / "elsewhere" / "embridge-encode").chmod(0o700)
    if "/" in link:
        (own_dir / "run").mkdir()
        (own_dir / link).symlink_to(own_dir / "elsewhere" / "embridge-encode")
    else:
        (own_dir / link).symlink_to(own_dir / "elsewhere")
    path = own_dir / "run" / "embridge-encode"
    refused_everywhere(path, rf"run directory {path}: {own_dir / link} is a symbolic link .*; give the folder itself")
    assert list((own_dir / "elsewhere" / "embridge-encode").iterdir()) == []


def test_elsewhere_a_link_of_this_user_is_followed_but_never_as_the_last() -> None:
    """/proc/self is one, to a folder of this process."""
    with opened(Path("/proc/self/fd")) as fd:
        assert os.fstat(fd).st_uid == os.geteuid()
    with pytest.raises(RunDirError, match="/proc/self is a symbolic link"):
        open_run_dir(Path("/proc/self"))


@as_root
def test_elsewhere_a_link_of_somebody_else_is_not_followed() -> None:
    home = Path(tempfile.mkdtemp(dir="/run"))
    try:
        (home / "there").mkdir(mode=0o700)
        (home / "ours").symlink_to("there/..")
        (home / "theirs").symlink_to("there")
        os.lchown(home / "theirs", SOMEBODY, SOMEBODY)
        (home / "there" / "n").mkdir()
        with opened(home / "ours" / "there" / "n"):
            pass
        with pytest.raises(
            RunDirError, match=rf"theirs is a symbolic link of user {SOMEBODY}, not of user 0; choose another"
        ):
            open_run_dir(home / "theirs" / "n")
    finally:
        shutil.rmtree(home)


def test_links_that_lead_in_a_circle_end(own_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_dir / "a").symlink_to("b")
    (own_dir / "b").symlink_to("a")
    monkeypatch.setattr("stat.S_IWOTH", 0)  # as if nobody but this user could write to the folders above
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        open_run_dir(own_dir / "a" / "n")


def test_a_folder_that_everybody_may_write_to_is_refused_unless_it_is_sticky(own_dir: Path) -> None:
    (own_dir / "open" / "n").mkdir(parents=True)
    (own_dir / "open" / "n").chmod(0o700)
    (own_dir / "open").chmod(0o1777)
    with opened(own_dir / "open" / "n"):
        pass
    (own_dir / "open").chmod(0o777)
    refused_everywhere(own_dir / "open" / "n", rf"{own_dir}/open has mode 777: anybody may write to it; chmod o-w it")
    (own_dir / "open").chmod(0o1777)
    refused_everywhere(own_dir / "open", rf"{own_dir}/open has mode 1777: anybody may write to it; chmod 700 it")


@as_root
def test_the_default_is_refused_where_somebody_was_first(own_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without XDG_RUNTIME_DIR it stands in the temporary directory, by a name that anybody can foresee."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(own_dir))
    path = default_run_dir("encode")
    assert path.parent.parent == own_dir
    node = launcher_in(path)
    node._release()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    shutil.rmtree(path.parent)
    path.parent.mkdir(mode=0o755)
    os.chown(path.parent, SOMEBODY, SOMEBODY)
    refused_everywhere(path, rf"{path.parent} belongs to user {SOMEBODY}")
    assert list(path.parent.iterdir()) == []


# ---- what stands in it


def huge(path: Path) -> None:
    path.write_text(f"{'9' * 5000} 1\n")


WRONG: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a huge number": ("it does not hold two numbers, of 20 digits at most", huge),
    "a node id beyond a word": (
        "node id 9223372036854775808 is outside 1 to 9223372036854775807",
        lambda p: p.write_text(f"{1 << 63} 5"),
    ),
    "no node id": ("node id 0 is outside 1 to", lambda p: p.write_text("0 5")),
    "an incarnation without a next one": (
        "incarnation 9223372036854775807 is outside 1 to",
        lambda p: p.write_text(f"7 {(1 << 63) - 1}"),
    ),
    "something else": ("it does not hold two numbers", lambda p: p.write_bytes(b"\xff\xfe")),
    "a FIFO": ("it is no regular file", os.mkfifo),
    "a folder": ("it is no regular file", os.mkdir),
    "a link": ("it is a symbolic link", lambda p: p.symlink_to("/etc/hostname")),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_identity_that_is_none_is_named_with_the_remedy(own_dir: Path, what: str) -> None:
    text, make = WRONG[what]
    with opened(own_dir / "n", create=True):
        make(own_dir / "n" / "identity")
    with pytest.raises(
        LaunchError, match=rf"^run directory {own_dir}/n: identity: {text}.*; (remove that file|choose another)"
    ):
        launcher_in(own_dir / "n")
    assert "node_id" not in remains(own_dir / "n")


def test_an_identity_stays_with_the_run_directory_and_incarnations_rise(own_dir: Path) -> None:
    """R14; an empty file is what a machine leaves that went down as it was written."""
    seen: list[tuple[int, int]] = []
    for far in (0, 1 << 50):
        if far:
            (own_dir / "n" / "identity").write_text(f"{seen[-1][0]} {far}\n")
        node = launcher_in(own_dir / "n")
        node._release()
        seen.append((node.node_id, node.incarnation))
    assert seen[1] == (seen[0][0], (1 << 50) + 1)
    with opened(own_dir / "n") as fd:
        assert read_identity(fd) == seen[1]
    (own_dir / "n" / "identity").write_text("")
    node = launcher_in(own_dir / "n")
    node._release()
    assert node.node_id != seen[0][0]


@pytest.mark.parametrize("name", ["lock", "identity.new", "embridge.sock"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/etc/hostname", path)], ids=["FIFO", "link"])
def test_nothing_is_waited_for_and_nothing_written_through_in_a_run_directory(
    own_dir: Path, name: str, make: Callable[[Path], None]
) -> None:
    before = Path("/etc/hostname").read_bytes()
    with opened(own_dir / "n", create=True):
        make(own_dir / "n" / name)
    if name == "lock":
        with pytest.raises(
            LaunchError, match=r"run directory .*/n: lock: it is (no regular file|a symbolic link).*; choose another"
        ):
            launcher_in(own_dir / "n")
    else:
        node = launcher_in(own_dir / "n")
        node._release()
    assert Path("/etc/hostname").read_bytes() == before


@pytest.mark.parametrize("name", ["run_dir", "key_file", "allow_file", "discovery_token_file"])
def test_a_path_that_is_no_text_is_named(name: str) -> None:
    """It could not be told to the launcher, nor to another node."""
    settings: dict[str, Any] = {"key_file": "k", "allow_file": "a", name: os.fsdecode(b"/tmp/\xff")}
    with pytest.raises(ConfigError, match=rf"{name}: b'.*\\xff.*' is no UTF-8 text; choose another path"):
        PipelineConfig(**settings)


def test_files_of_keys_and_tokens_are_not_waited_for(own_dir: Path) -> None:
    """P8: an allow-list is read again while the node runs."""
    os.mkfifo(own_dir / "fifo", 0o600)
    for read, error in ((read_key_file, KeyFileError), (read_allow_list, KeyFileError), (read_token, ValueError)):
        with pytest.raises(error, match="it is no regular file"):
            read(own_dir / "fifo")


# ---- whose socket it is


@pytest.fixture
def doors() -> Iterator[Callable[[Path], RunSocketServer]]:
    layout = ControlLayout.of(Role.ENCODE, Geometry(hidden_size=8, num_blocks=2), FEW)
    mapping = segment(layout.size)
    format_control(mapping, Role.ENCODE, Geometry(hidden_size=8, num_blocks=2), FEW, node_id=1, incarnation=1, now_ns=1)
    control = Control(mapping)
    with selectors.DefaultSelector() as selector:
        yield lambda path: RunSocketServer(control, Recovery(control), path, selector, {}, {}, "", Timing(), 0, {})


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        return sock.connect_ex(str(path)) == 0


@pytest.mark.parametrize("removed", ["the folder", "its files"])
def test_the_end_of_a_node_leaves_the_socket_of_the_next_one(
    own_dir: Path, doors: Callable[[Path], RunSocketServer], removed: str
) -> None:
    """D5: somebody has removed the run directory of a node that runs, and launched another one there."""
    path = own_dir / "n" / "embridge.sock"
    path.parent.mkdir()
    first = doors(path)
    path.unlink()
    if removed == "the folder":
        path.parent.rmdir()
        path.parent.mkdir()
    second = doors(path)
    first.close()
    assert answers(path)
    second.close()
    assert not path.exists()


def test_a_node_whose_lock_was_removed_keeps_its_socket(
    own_dir: Path, doors: Callable[[Path], RunSocketServer]
) -> None:
    """Whoever answers there is alive; a socket that nobody listens at is replaced."""
    path = own_dir / "embridge.sock"
    first = doors(path)
    with pytest.raises(OSError, match="a node is running there"):
        doors(path)
    assert answers(path)
    first.close()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
        stale.bind(str(path))
    second = doors(path)
    assert answers(path)
    second.close()
