"""Where nodes are: IPv6 addresses, and names that must be looked up."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from support import wires
from support.carrying import carried, joined
from support.encoding import give, open_sender
from support.mounting import CAN_MOUNT, WHY_NOT
from support.nodes import Station, station
from support.remains import run_dirs
from support.waiting import wait_until

from embridge.workers import messages as msg
from embridge.workers.run_socket import SOCKET_NAME, Question
from embridge.workers.transfer.engines import mooncake

pytestmark = pytest.mark.process

_NO_MOONCAKE = mooncake.why_unavailable()


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Station, Station]]:
    with run_dirs() as path, station("encode", path / "e") as encode, station("language", path / "l") as language:
        yield encode, language


# ---- which node listens at a run socket


def answer_to(question: Question) -> str:
    """What comes of a question, in time."""
    try:
        wait_until(lambda: question.answer() is not None, 10)
        return question.answer() or ""
    finally:
        question.close()


def test_a_node_says_at_its_run_socket_who_it_is(pair: tuple[Station, Station], tmp_path: Path) -> None:
    """R14: its id and its incarnation; whoever asks takes no seat."""
    _, language = pair
    path, control = str(language.run_dir / SOCKET_NAME), language.control
    is_it, is_none = "", "another node answers at its run socket here"
    assert answer_to(Question(path, control.node_id, control.incarnation)) == is_it
    assert answer_to(Question(path, control.node_id + 1, control.incarnation)) == is_none
    assert answer_to(Question(path, control.node_id, control.incarnation + 1)) == is_none
    assert answer_to(Question(str(tmp_path / "none"), 1, 1)) == "its run socket does not answer here"
    assert answer_to(Question("\0" + path, 1, 1)) == "its run socket has no path"


def test_a_node_at_whose_path_another_listens_is_not_taken_for_one_of_this_host(pair: tuple[Station, Station]) -> None:
    """D5: containers with the host's network and a /tmp of their own each; shared memory would fail every request."""
    encode, language = pair
    geometry = language.geometry
    stranger = msgspec.structs.replace(
        msg.decode(wires.register(), "the test"),
        offers={"shm": str(language.run_dir / SOCKET_NAME)},
        hidden_size=geometry.hidden_size,
        block_size=geometry.block_size,
    )
    with wires.dealer(encode.addr) as sock:
        sock.send(msg.encode(stranger))
        assert sock.poll(10_000)
        answer = msg.decode(sock.recv(), "the encode node")
    assert isinstance(answer, msg.Refused)
    assert answer.reason == (
        "no engine in common: another node answers at its run socket here; this encode node offers no Mooncake"
    )


# ---- addresses


def test_a_node_is_reached_by_a_name_of_both_families(pair: tuple[Station, Station]) -> None:
    """`localhost` is ::1 first, perhaps, where nobody listens. Beside it another request asks by the number (R14)."""
    encode, language = pair
    by_name = encode.addr.replace("127.0.0.1", "localhost")
    with joined(encode, language) as (sending, queues):
        for room, addr in ((1, encode.addr), (2, by_name)):
            queues.add(addr, room)
        for room in (2, 1):
            assert give(open_sender(sending, room, 300))
            assert queues.take(room, 20).difference == ""


@pytest.fixture
def mute_resolver(tmp_path: Path) -> Iterator[list[str]]:
    """What a command is run within to have a resolver that takes questions and never answers."""
    if not CAN_MOUNT or not os.path.exists("/etc/nsswitch.conf"):
        pytest.skip(WHY_NOT or "there is no /etc/nsswitch.conf")
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.53\noptions timeout:30 attempts:2\n")
    (tmp_path / "nsswitch.conf").write_text("hosts: files dns\n")
    mounts = " && ".join(f'mount --bind "{tmp_path / name}" /etc/{name}' for name in ("resolv.conf", "nsswitch.conf"))
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as mute:
        mute.bind(("127.0.0.53", 53))
        yield ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh"]


def test_a_name_that_is_slow_to_resolve_is_the_trouble_of_its_request_alone(
    mute_resolver: list[str], pair: tuple[Station, Station]
) -> None:
    """P21: none of the others fails, or waits for it."""
    encode, _ = pair
    with (
        run_dirs() as path,
        station("language", path / "l", within=mute_resolver, connect_timeout_s=5.0) as language,
        joined(encode, language) as (sending, queues),
    ):
        slow = "tcp://slow.example:4000"
        queues.add(slow, 10)
        for room in range(11, 31):
            assert carried(queues, encode.addr, sending, room, 300).difference == ""
        received = queues.take(10, 20)
        assert (
            received.reason
            == f"no encode node answers at {slow} for 5 s; name slow.example does not resolve: no answer yet"
        )


def _has_ipv6() -> bool:
    path = Path("/proc/net/if_inet6")
    return path.exists() and "00000000000000000000000000000001" in path.read_text()


@pytest.mark.skipif(bool(_NO_MOONCAKE), reason=_NO_MOONCAKE or "it is there")
@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no ::1")
def test_mooncake_moves_rows_between_ipv6_addresses() -> None:
    """P6: its handshake knows IPv4 alone, unless it is told."""
    with (
        run_dirs() as path,
        station("encode", path / "e", host="::1", engine="mooncake") as encode,
        station("language", path / "l", host="::1", engine="mooncake") as language,
        joined(encode, language) as (sending, queues),
    ):
        assert encode.addr.startswith("tcp://[::1]:")
        assert carried(queues, encode.addr, sending, 1, 300).difference == ""
