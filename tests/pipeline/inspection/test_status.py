"""`embridge status` on real nodes: why a request is stuck, in one line; and what it tells of nodes that do not answer
or are dead.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from support.carrying import carried
from support.encoding import ended, give, open_sender, through_workers, wait_doors
from support.nodes import Station
from support.scheduling import Holder, Queues
from support.stopping import stopped
from support.waiting import wait_until

from embridge import Client, attach
from embridge.allocator.control import Control
from embridge.allocator.errors import AttachError
from embridge.allocator.records import LANE_WORDS, Lane, Slot
from embridge.pipeline.cli import main
from embridge.pipeline.client import doors
from embridge.pipeline.client.client import library_of
from embridge.pipeline.inspection import open_readonly as looking
from embridge.pipeline.inspection.node_status import node_status
from embridge.pipeline.inspection.open_readonly import look, remains
from embridge.workers.timing import NS

node = pytest.mark.process


def said(station: Station, room: int) -> dict[str, Any]:
    """What `embridge status` says of one request."""
    return next((request for request in node_status(station.run_dir)["requests"] if request["room"] == room), {})


def wait_line(station: Station, room: int, line: str) -> dict[str, Any]:
    wait_until(lambda: said(station, room).get("line") == line, 20.0, lambda: said(station, room))
    return said(station, room)


def wait_sent(station: Station, room: int, sent: int) -> None:
    wait_until(lambda: said(station, room).get("sent") == sent, 20.0, lambda: said(station, room))


def invoke(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["status", *args], prog_name="embridge")
    return result.exit_code, result.stdout, result.stderr


# ---- why it does not move


@node
def test_a_request_whose_encoder_sends_nothing_says_so_on_both_sides(
    encode: Station, language: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """P8: first no room, then no rows, then half of them."""
    receiving.add(encode.addr, room)
    there = wait_line(language, room, "no answer")
    assert there["waits_for"].startswith("encode node")
    assert f"its encoder has not opened room {room}" in there["why"]
    sender = open_sender(sending, room, 2000, announce=True)
    here = wait_line(encode, room, "encode")
    assert (here["waits_for"], here["pid"], here["required"]) == (f"client pid {os.getpid()}", os.getpid(), 1)
    assert "0 of 2000 rows are ready" in here["why"]
    assert "0 of 2000 rows are ready" in wait_line(language, room, "encode")["why"]
    assert give(sender, 0, 500)
    wait_sent(encode, room, 500)
    wait_sent(language, room, 500)
    here = wait_line(encode, room, "encode")
    assert (here["ready"], here["total"], here["drained"]) == (500, 2000, None)
    assert here["granted"] >= 1024
    assert 0 <= here["for_s"] <= here["age_s"]
    assert said(language, room)["drained"] == 384
    assert give(sender, 500)
    assert receiving.take(room, 20).difference == ""


@node
def test_how_long_counts_from_the_last_row_that_moved(
    encode: Station, language: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """Not from the phase, which may be minutes old."""
    receiving.add(encode.addr, room)
    sender = open_sender(sending, room, 900)
    seen: dict[str, list[int]] = {"encode": [], "language": []}
    for first, end in ((0, 300), (300, 600), (600, 899)):
        assert give(sender, first, end)
        wait_sent(language, room, end)
        for station in (encode, language):
            words = station.control.slots
            seen[station.control.role.name.lower()].append(words.get(said(station, room)["slot"], Slot.MOVED_NS))
    for moments in seen.values():
        assert moments[0] < moments[1] < moments[2]
    for station in (encode, language):
        now = said(station, room)
        assert now["for_s"] == now["moved_s_ago"] < now["age_s"]
    assert give(sender, 899)
    assert receiving.take(room, 20).difference == ""


@node
def test_a_request_that_waits_for_blocks_names_who_holds_them(
    encode: Station, language: Station, sending: Client, receiving: Queues, rooms: Iterator[int]
) -> None:
    """D9: how many are wanted, that none is free, and the request that holds them."""
    hoarder, room = next(rooms), next(rooms)
    holder = Holder(receiving.client, encode.addr, hoarder)
    try:
        receiving.add(encode.addr, room)
        wait_until(lambda: said(language, room).get("granted") == 1024)
        holder.take_whatever_comes_free()
        sender = open_sender(sending, room, 2000)
        assert give(sender)
        seen = wait_line(language, room, "blocks")
        assert seen["waits_for"] == f"client pid {os.getpid()}"
        assert seen["why"] == f"wants 8 blocks, none is free, none in quarantine; 9 held by room {hoarder}"
        assert (seen["sent"], seen["drained"]) == (1024, 1024)
        here = wait_line(encode, room, "grant")
        assert here["waits_for"].startswith("language node")
        code, out, _ = invoke("--run-dir", str(language.run_dir), "--request", str(room))
        assert code == 0
        assert f"9 held by room {hoarder}" in out
        assert "Transferring" in out
    finally:
        holder.end()
    assert receiving.take(room, 20).difference == ""
    assert ended(sender).error == ""


@node
def test_a_node_shows_since_when_its_clients_and_peers_are_there_and_who_maps_its_payload(
    encode: Station, language: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """R12: what of another node has to end before a block is free, by pid."""
    assert carried(receiving, encode.addr, sending, room, 100).difference == ""
    there = node_status(language.run_dir)
    (client,) = [client for client in there["clients"] if client["pid"] == os.getpid()]
    assert 0 <= client["attached_s"] <= there["up_s"]
    (peer,) = [peer for peer in there["peers"] if peer["node"] == node_status(encode.run_dir)["node_id"]]
    assert 0 <= peer["registered_s"] <= there["up_s"]
    workers = {pid for name, pid in encode.pids().items() if name.startswith("worker")}
    assert set(peer["writers"]) <= workers
    assert os.getpid() in peer["direct_writers"]


@node
def test_a_stopped_worker_is_named_with_that_fact_first(
    encode: Station, language: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """P8: rows are staged and granted, and the process that has to write them is stopped by a signal."""
    worker = f"worker{encode.control.worker_of(room)}"
    with stopped(encode.pid_of(worker)):
        receiving.add(encode.addr, room)
        with through_workers(sending):
            sender = open_sender(sending, room, 500)
        assert give(sender)
        seen = wait_line(encode, room, "write")
        assert seen["process"] == worker
        assert seen["why"].startswith("it is stopped by a signal, its last beat was ")
        assert seen["why"].endswith("it has to write rows [0, 500): they are staged and granted")
        assert next(row for row in node_status(encode.run_dir)["processes"] if row["name"] == worker)["trouble"]
    assert receiving.take(room, 20).difference == ""


# ---- the direct path


@contextmanager
def claimed(sending: Client, language: Station, room: int) -> Iterator[None]:
    """Hold the claim of a room at its destination, as a client does that stands still while it writes there."""
    wait_doors(sending)
    seen = said(language, room)
    found = library_of(sending).doors
    assert found is not None
    peer = library_of(sending).attachment.control.peers.find(language.control.node_id, language.control.incarnation)
    assert peer is not None
    door = found.find(peer, language.control.incarnation)[1]
    assert door is not None
    assert door.part.claims.take(seen["slot"], seen["epoch"], door.writer)
    try:
        yield
    finally:
        door.part.claims.give_back(seen["slot"], seen["epoch"], door.writer)


@node
def test_a_client_that_has_to_write_rows_itself_is_named_on_both_sides(
    encode: Station, language: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """P8, R28: not the transfer worker, which has nothing to do with them; and who writes is shown."""
    receiving.add(encode.addr, room)
    sender = open_sender(sending, room, 300, announce=True)
    wait_until(lambda: said(language, room).get("claim") == "OPEN", 20.0, lambda: said(language, room))
    with claimed(sending, language, room):
        assert give(sender)
        here, there = wait_line(encode, room, "write directly"), wait_line(language, room, "claimed")
        assert (here["waits_for"], here["written_by"]) == (f"client pid {os.getpid()}", "client")
        assert here["destinations"][0]["written_by"] == "client"
        assert "its library thread has to write rows [0, 300) into the blocks of language node" in here["why"]
        assert (there["waits_for"], there["pid"]) == (f"direct writer pid {os.getpid()}", os.getpid())
        assert (there["claim"], there["claim_holder"]) == ("WRITING", os.getpid())
    assert receiving.take(room, 20).difference == ""


@node
def test_a_failed_request_whose_writer_stands_still_names_it_and_the_blocks_that_wait(
    encode: Station, language: Station, sending: Client, receiving: Queues, room: int
) -> None:
    """R30: the pid of the process that has to give the claim back, since when, and how many blocks are quarantined."""
    request = receiving.add(encode.addr, room)
    sender = open_sender(sending, room, 300)
    wait_until(lambda: said(language, room).get("claim") == "OPEN", 20.0, lambda: said(language, room))
    blocks = said(language, room)["blocks"]["granted"]
    with claimed(sending, language, room):
        wait_until(lambda: said(language, room)["age_s"] > 0.1)  # times are told in hundredths of a second
        request.abort()
        seen = wait_line(language, room, "claim")
        assert (seen["pid"], seen["claim"], seen["claim_holder"]) == (os.getpid(), "REVOKED", os.getpid())
        assert f"it has to give the claim back ({blocks} blocks are in quarantine until then)" in seen["why"]
        assert seen["for_s"] < seen["age_s"]
        code, out, _ = invoke("--run-dir", str(language.run_dir), "--request", str(room))
        assert (code, "REVOKED" in out, f"direct writer pid {os.getpid()}" in out) == (0, True, True)
    assert receiving.wait(room, 20).failure is not None
    wait_until(lambda: not said(language, room), 20.0, lambda: said(language, room))
    assert ended(sender).error == "TransferAborted"


@node
def test_a_node_that_has_to_let_a_client_in_is_named(
    encode: Station, language: Station, receiving: Queues, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P8: its launcher does not answer the client's knock, so nobody knows yet who will write."""
    monkeypatch.setattr(doors, "PATIENCE_NS", 1000 * NS)
    receiving.add(encode.addr, room)
    wait_line(language, room, "no answer")
    with stopped(language.node.pid):
        client = attach(encode.run_dir)
        try:
            sender = open_sender(client, room, 300)
            assert give(sender)
            seen = wait_line(encode, room, "door")
            assert seen["waits_for"].startswith("language node")
            assert seen["written_by"] == "undecided"
        finally:
            client.close()
    assert receiving.wait(room, 20).failure is not None


# ---- nodes in trouble


@node
def test_a_node_all_of_whose_processes_are_stopped_can_be_looked_at(
    encode: Station, other_language: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher does not answer: its segment is found among its open files, and is what it was."""
    monkeypatch.setattr(looking, "ANSWER_TIMEOUT_S", 0.2)
    pid = other_language.node.pid
    assert looking.launcher_of(other_language.run_dir) == pid
    with stopped(pid, *other_language.pids().values()):
        seen = node_status(other_language.run_dir)
        assert "the launcher does not answer" in seen["note"]
        assert seen["incarnation"] == other_language.control.incarnation
        assert all(row["trouble"].startswith("it is stopped by a signal") for row in seen["processes"])
        assert "unknown" in seen["keys"]["messages"]
        code, out, _ = invoke("--run-dir", str(other_language.run_dir))
        assert code == 0
        assert "it is stopped by a signal" in out
    wait_until(lambda: not any(row["trouble"] for row in node_status(other_language.run_dir)["processes"]))


@node
def test_looking_changes_nothing(encode: Station) -> None:
    """The mapping is read-only, nobody is seated, and no word of the node's requests, blocks and doorbells differs
    afterwards.
    """
    seen = look(encode.run_dir)
    assert memoryview(seen.control.mapping).readonly
    with pytest.raises(ValueError, match="read-only"):
        seen.control.slots.set(0, Slot.ROOM, 1)
    before = words_without_beats(seen.control)
    node_status(encode.run_dir)
    assert words_without_beats(seen.control) == before


def words_without_beats(control: Control) -> list[int]:
    """From the lanes to the peers; another test's client may still be attached, and beats."""
    at = control.layout
    words = np.frombuffer(control.mapping, np.uint64)[at.lanes // 8 : at.peers // 8].copy()
    words[Lane.BEAT_NS : control.lanes.num_lanes * LANE_WORDS : LANE_WORDS] = 0
    return list(words)


@pytest.mark.parametrize("was_killed", [True, False])
def test_of_a_dead_node_the_run_directory_tells(tmp_path: Path, was_killed: bool) -> None:
    """No launcher holds the lock any more; a socket that is still there was left by one that was killed."""
    (tmp_path / "lock").touch()
    (tmp_path / "identity").write_text(f"{0xAB} 1700000000000\n")
    if was_killed:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.bind(str(tmp_path / "embridge.sock"))
    code, out, _ = invoke("--run-dir", str(tmp_path), "--json")
    left = json.loads(out)
    assert (code, left["state"], left["node_id"], left["last_incarnation"]) == (3, "GONE", "ab", 1700000000000)
    assert ("died without stopping" in left["why"]) == was_killed
    code, out, _ = invoke("--run-dir", str(tmp_path))
    assert (code, "GONE" in out) == (3, True)
    code, out, err = invoke("--run-dir", str(tmp_path), "--request", "7")
    assert (code, out, len(err.splitlines())) == (3, "", 1)


def test_where_no_node_ever_ran_there_is_nothing_to_tell(tmp_path: Path) -> None:
    assert remains(tmp_path) == {}
    with pytest.raises(AttachError):
        look(tmp_path)


# ---- the command


@node
def test_watch_looks_again_until_ctrl_c_and_ends_well(encode: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    naps = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", nap)
    code, out, err = invoke("--run-dir", str(encode.run_dir), "--watch", "--json")
    assert (code, err) == (0, "")
    assert [json.loads(line)["state"] for line in out.splitlines()] == ["READY"] * 3
    naps.clear()
    code, out, _ = invoke("--run-dir", str(encode.run_dir), "--watch")
    assert (code, out.count("READY")) == (0, 3)


@node
def test_a_request_that_is_not_there_is_one_line_and_status_2(encode: Station) -> None:
    code, out, err = invoke("--run-dir", str(encode.run_dir), "--request", "123456789")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "no such request is in flight" in err


@node
def test_a_client_is_shown_with_the_kicks_that_found_a_ring_full(encode: Station, sending: Client) -> None:
    """P12: it has no row of counters, but its rings count."""

    def rings_full() -> int:
        (row,) = [row for row in node_status(encode.run_dir)["clients"] if row["lane"] == sending.lane]
        return int(row["rings_full"])

    before = rings_full()
    with stopped(encode.pid_of("worker0")):
        for slot in range(encode.control.limits.ring_records + 1):
            library_of(sending).attachment.kick_worker(0, slot, 0)  # of no request, so it changes nothing
    assert rings_full() > before
