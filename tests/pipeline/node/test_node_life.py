"""A node from READY to its end, and what its clients see of that."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import encoding, scheduling
from support.agents import Agent, running
from support.encoding import ended, give, open_sender
from support.nodes import Station, config_of, start_node, station
from support.opening import open_control
from support.remains import alive
from support.scheduling import Queues
from support.waiting import wait_until

from embridge import Client, EmbeddingRequest, Node, Phase, attach, launch
from embridge.allocator.errors import AttachError, LaunchError, NodeGoneError
from embridge.allocator.records import NodeState, Process
from embridge.pipeline.client.client import library_of
from embridge.pipeline.node.launch_messages import Ready, encode_config
from embridge.pipeline.node.launcher_start import command
from embridge.workers.process_spec import READY

pytestmark = pytest.mark.process


# ---- up


def test_when_launch_returns_every_process_is_ready_and_gives_signs_of_life(encode: Station, language: Station) -> None:
    """READY means all of them; each beats by itself."""
    for it in (encode, language):
        processes = it.control.processes
        assert it.control.state == NodeState.READY
        assert processes.names == ["launcher", "bootstrap", "poller", "worker0", "worker1"]
        assert {name: processes.get(name, Process.STATE) for name in processes.names} == dict.fromkeys(
            processes.names, READY
        )
        assert alive(list(it.pids().values())) == list(it.pids().values())
        beats = {name: processes.get(name, Process.BEAT_NS) for name in processes.names}
        wait_until(
            lambda: all(processes.get(name, Process.BEAT_NS) > beat for name, beat in beats.items())  # noqa: B023
        )


def test_a_run_directory_that_is_in_use_is_refused_and_the_node_in_it_goes_on(encode: Station) -> None:
    with pytest.raises(LaunchError, match=rf"run directory {encode.run_dir}: a node is running there"):
        launch(config_of("encode", encode.run_dir))
    assert alive([encode.node.pid]) == [encode.node.pid]
    assert open_control(encode.run_dir).incarnation == encode.node.incarnation


def test_attaching_where_no_node_is_says_so(own_dir: Path) -> None:
    """No directory, a directory without a node, and the socket of a node that was killed."""
    with pytest.raises(AttachError, match=r"No such file or directory; is `embridge launch` running\?"):
        attach(own_dir / "nothing")
    (own_dir / "empty").mkdir()
    with pytest.raises(AttachError, match=r"No such file or directory; is `embridge launch` running\?"):
        attach(own_dir / "empty")
    (own_dir / "stale").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(own_dir / "stale" / "embridge.sock"))
    with pytest.raises(AttachError, match=r"Connection refused; is `embridge launch` running\?"):
        attach(own_dir / "stale")


def test_opening_a_request_on_the_wrong_side_says_which_one_is_right(
    encode: Station, sending: Client, receiving: Queues, room: int
) -> None:
    with pytest.raises(ValueError, match=r"receiver: .* encode node; attach to the language node"):
        sending.receiver(encode.addr, room)
    with pytest.raises(ValueError, match=r"sender: .* language node; attach to the encode node"):
        receiving.client.sender(room, 10)


# ---- the end, asked for


def test_sigterm_lets_accepted_requests_end_and_refuses_new_ones(
    own_dir: Path, encode: Station, sending: Client, rooms: Iterator[int]
) -> None:
    """P18: on the language side, a request in the middle of its transfer arrives whole; then the node is gone, with
    status 0.
    """
    room, late = next(rooms), next(rooms)
    with station("language", own_dir / "l", deepstack_layers=3) as draining, attach(draining.run_dir) as client:
        queues = Queues(client)
        queues.add(encode.addr, room)
        sender = open_sender(sending, room, 3000)
        give(sender, 0, 1500)
        wait_until(lambda: queues.requests[room].transferred_tokens == 1500)
        draining.node.terminate()
        wait_until(lambda: draining.control.state == NodeState.DRAINING)
        with pytest.raises(NodeGoneError, match="the node is DRAINING; it takes no new requests"):
            client.receiver(encode.addr, late)
        queues.add(encode.addr, late)
        assert "DRAINING" in queues.take(late, 20).reason
        with pytest.raises(AttachError, match="the node is DRAINING; it takes no new clients"):
            attach(draining.run_dir)
        assert draining.node.wait(0) is None
        give(sender, 1500)
        assert queues.take(room, 20).difference == ""
        assert ended(sender).error == ""
        assert draining.node.wait(20) == 0
        assert draining.says("draining")


def test_an_encode_node_that_drains_finishes_what_it_has_and_a_second_sigterm_ends_it_at_once(
    own_dir: Path, language: Station, receiving: Queues, rooms: Iterator[int]
) -> None:
    """P18: of two requests one ends while the node drains; the other never would, and fails on both sides with the
    node.
    """
    room, endless, late = next(rooms), next(rooms), next(rooms)
    with station("encode", own_dir / "e", deepstack_layers=3) as draining, attach(draining.run_dir) as client:
        for number in (room, endless):
            receiving.add(draining.addr, number)
        sender, other = open_sender(client, room, 3000), open_sender(client, endless, 10)
        give(sender, 0, 1500)
        wait_until(lambda: sender.sent_tokens == 1500)
        draining.node.terminate()
        wait_until(lambda: draining.control.state == NodeState.DRAINING)
        with pytest.raises(NodeGoneError, match="the node is DRAINING; it takes no new requests"):
            client.sender(late, 10)
        give(sender, 1500)
        assert receiving.take(room, 20).difference == ""
        assert draining.node.wait(0) is None
        draining.node.terminate()
        assert draining.node.wait(20) == 0
        assert ended(other).reason == "this client's own node is gone"
        assert "is lost" in receiving.take(endless, 20).reason
        assert not alive(list(draining.pids().values()))


def test_a_launcher_that_has_not_looked_yet_when_it_is_told_a_second_time_is_told_both_times(own_dir: Path) -> None:
    """P18: the kernel keeps one signal of a kind for a process that does not run, however often it is sent."""
    process = subprocess.Popen(["sleep", "60"])
    node = Node(process, config_of("encode", own_dir / "n"), Ready(), -1)
    try:
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2][0] == "T")
        node.terminate()
        node.terminate()
        status = Path(f"/proc/{process.pid}/status").read_text()
        (pending,) = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("ShdPnd"))
        assert pending.bit_count() == 2
    finally:
        process.kill()
        process.wait()


# ---- the end, not asked for


def test_signals_that_come_when_a_node_ends_do_not_change_how_it_has_ended(own_dir: Path) -> None:
    """P10: `Node.stop` sends two, and between them the launcher may have gone a long way."""
    for _ in range(3):
        node = start_node(config_of("encode", own_dir / "n"), own_dir / "log")
        node.terminate()
        while node.wait(0) is None:
            os.kill(node.pid, signal.SIGINT)
        assert node.stop() == 0


def test_when_the_launcher_is_killed_none_of_its_processes_is_left_after_a_second(own_dir: Path) -> None:
    """P10: a "dead launcher": the parent-death signal and the death pipe; a client hears of it, too."""
    with station("encode", own_dir / "e") as it, attach(it.run_dir) as client:
        pids = list(it.pids().values())
        assert alive(pids) == pids
        os.kill(it.node.pid, signal.SIGKILL)
        wait_until(lambda: not alive(pids), 1.0, lambda: f"orphans gone: {alive(pids)}")
        wait_until(lambda: client.node_gone)
        with pytest.raises(NodeGoneError, match=r"the node in .* is gone; attach\(\) again once it is back"):
            client.sender(1, 10)


def _launch_here(state: SimpleNamespace, run_dir: Path) -> dict[str, int]:
    state.node = start_node(config_of("encode", run_dir), run_dir.with_suffix(".log"))
    control = open_control(run_dir)
    return {name: control.processes.get(name, Process.PID) for name in control.processes.names}


def test_when_the_process_that_launched_a_node_is_killed_the_node_stops(own_dir: Path) -> None:
    """P9: nobody has to remember it."""
    with running("launching process") as parent:
        pids = parent.call(_launch_here, own_dir / "e")
        assert alive(list(pids.values())) == list(pids.values())
        parent.kill()
        wait_until(lambda: not alive(list(pids.values())), 20, lambda: f"node gone: {alive(list(pids.values()))}")
    assert "the process that launched this node is gone; stopping" in (own_dir / "e.log").read_text()
    assert not (own_dir / "e" / "embridge.sock").exists()


def test_a_node_whose_parent_has_died_before_it_was_ready_stops_and_leaves_nothing(own_dir: Path) -> None:
    """P9: nobody reads its READY; it says so in a line, ends, and its run socket is gone."""
    read, write = os.pipe()
    alive_read, alive_write = os.pipe()
    os.close(read)
    parent = os.pidfd_open(os.getpid())
    node = subprocess.Popen(
        command(write, alive_read, parent),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(write, alive_read, parent),
        start_new_session=True,
    )
    os.close(parent)
    os.close(write)
    os.close(alive_read)
    assert node.stdin is not None
    node.stdin.write(encode_config(config_of("encode", own_dir / "e")))
    node.stdin.close()
    wait_until(lambda: (own_dir / "e" / "embridge.sock").exists() or node.poll() is not None, 60)
    os.close(alive_write)
    assert node.stderr is not None
    said = node.stderr.read().decode()
    assert node.wait(60) == 1, said
    assert "the process that launched this node cannot be told: Broken pipe" in said
    assert "Traceback" not in said
    assert not (own_dir / "e" / "embridge.sock").exists()
    node.stderr.close()


# ---- clients


def _fork(state: SimpleNamespace, run_dir: Path, addr: str, room: int) -> list[str]:
    """What a forked child of an attached process is told by each call."""
    client = scheduling.queues_of(state, run_dir).client
    receiver = client.receiver(addr, room)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = []
        for call in (
            client.poll,
            lambda: client.receiver(addr, room + 1),
            receiver.abort,
            lambda: receiver.init([], 0),
        ):
            try:
                call()
                said.append("nothing")
            except RuntimeError as error:
                said.append(str(error))
        os.write(write, "\n".join(said).encode())
        os._exit(0)
    os.close(write)
    said = os.read(read, 4096).decode().split("\n")
    os.close(read)
    os.waitpid(pid, 0)
    assert not receiver.poll().is_terminal
    receiver.clear()
    return said


def test_a_client_is_refused_after_a_fork_and_goes_on_in_the_parent(
    encode: Station, language: Station, encoder: Agent, scheduler: Agent, rooms: Iterator[int]
) -> None:
    """DESIGN: a client is one process; two that shared a seat would both write its rings."""
    room = next(rooms)
    said = scheduler.call(_fork, language.run_dir, encode.addr, next(rooms))
    assert said == ["this client was attached before a fork; attach() again in the child"] * 4
    scheduler.call(scheduling.request, language.run_dir, encode.addr, room)
    encoder.call(encoding.send, encode.run_dir, room, 3000)
    assert scheduler.call(scheduling.take, language.run_dir, room).difference == ""


def test_a_scheduler_sleeps_in_its_own_select_until_a_status_rises(
    encode: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """DESIGN: `arm` before sleeping on `fileno`; a rise before arming makes it refuse, one after it wakes the
    sleeper.
    """
    client = receiving.client
    request = receiving.add(encode.addr, room)
    wait_until(lambda: request.receiver is not None and request.receiver.handshake_done)

    def asleep() -> bool:
        client.poll()
        return client.arm()

    wait_until(asleep)
    sender = open_sender(sending, room, 2000)
    readable, _, _ = select.select([client.fileno()], [], [], 10)
    assert readable == [client.fileno()]
    rose = wait_until(client.poll, 1)
    assert [handle.room for handle in rose] == [room]
    wait_until(asleep)
    assert select.select([client.fileno()], [], [], 0)[0] == []
    give(sender)
    assert receiving.take(room, 20).difference == ""
    wait_until(asleep)


def test_what_a_pop_has_seen_of_a_receiver_that_its_caller_drives_is_told_before_the_caller_sleeps(
    encode: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """P8: the queue has no use for it; `poll` has to tell."""
    client = receiving.client
    receiver = client.receiver(encode.addr, room)
    receiver.init([])
    wait_until(lambda: receiver.handshake_done)
    wait_until(lambda: client.poll() is not None and client.arm())
    sender = open_sender(sending, room, 10)
    wait_until(lambda: receiver.poll() == Phase.WaitingForInput)
    receiving.step()
    assert not client.arm()
    assert [handle.room for handle in client.poll()] == [room]
    receiver.clear()
    assert ended(sender).error == "TransferAborted"


def test_poll_costs_nothing_and_reports_nothing_while_nothing_happens(
    encode: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """P8: it never waits; an idle request is reported once, when it rises."""
    receiving.add(encode.addr, room)
    sender = open_sender(sending, room, 10)
    wait_until(lambda: sender.poll() == Phase.WaitingForInput)
    rose = wait_until(sending.poll)
    assert [handle.room for handle in rose] == [room]
    before = time.monotonic()
    polls = 0
    while time.monotonic() - before < 0.25:
        assert not sending.poll()
        polls += 1
    assert polls > 100
    give(sender)
    assert receiving.take(room, 20).difference == ""


def test_wrong_arguments_are_named_with_what_they_should_be(
    encode: Station, sending: Client, receiving: Queues, rooms: Iterator[int]
) -> None:
    """Each is a ValueError of the caller, and opens no request."""
    room = next(rooms)
    open_sender(sending, room, 10)
    for match, call in (
        ("total_tokens: 0 is outside 1 to", lambda: sending.sender(next(rooms), 0)),
        (r"room: -1 is outside 0 to 2\*\*63 - 1", lambda: sending.sender(-1, 10)),
        (f"room: {room} is in use", lambda: sending.sender(room, 10)),
        ("timeout_s: 0 s must be positive", lambda: sending.sender(next(rooms), 10, timeout_s=0)),
        ("bootstrap_addr: 'here' is not of the form", lambda: receiving.client.receiver("here", next(rooms))),
        (
            "required_dst_info_num: 0",
            lambda: receiving.client.receiver(encode.addr, next(rooms), required_dst_info_num=0),
        ),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    request = EmbeddingRequest(room=room, bootstrap_addr=encode.addr)
    receiving.requests[room] = request
    receiving.prealloc.add(request)
    with pytest.raises(ValueError, match="was added before"):
        receiving.prealloc.add(request)
    assert receiving.prealloc is not None
    give(library_of(sending).requests.by_room[room])  # type: ignore[arg-type]
    assert receiving.take(room, 20).difference == ""
