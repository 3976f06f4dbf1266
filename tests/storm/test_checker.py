"""The checker: a history in which nothing went wrong, and for each rule one in which just that rule was broken."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from storm.checker import NS, PROMISED, check, figures, percentile
from storm.history import Event, Recorder, read
from storm.plan import KILLS, KINDS, kinds_of, request_of

Change = Callable[[list[Event]], None]


def event(t_s: float, name: str, **fields: object) -> Event:
    return {"t": int(t_s * NS), "event": name, **fields}


def one_side(side: str, client: str, room: int, at: float, end: str = "Success", reason: str = "") -> list[Event]:
    who = {"room": room, "side": side, "client": client}
    return [
        event(at, "opened", **who, deadline_s=10.0),
        event(at + 0.1, "phase", **who, phase="Bootstrapping", sent=0),
        event(at + 0.2, "phase", **who, phase="WaitingForInput", sent=0),
        event(at + 0.3, "phase", **who, phase="Transferring", sent=64),
        event(at + 0.4, "phase", **who, phase=end, sent=100),
        event(
            at + 0.4,
            "ended",
            **who,
            phase=end,
            error="PeerLost" if reason else "",
            reason=reason,
            tokens=100,
            difference="",
        ),
    ]


def request(room: int, at: float, end: str = "Success", reason: str = "") -> list[Event]:
    asked = event(at, "asked", room=room, encoder="encoder-0.1", scheduler="scheduler-0.1", encode="e", language="l")
    encode = one_side("encode", "encoder-0.1", room, at, end, reason)
    return [asked, *encode, *one_side("language", "scheduler-0.1", room, at, end, reason)]


def good() -> list[Event]:
    """Two requests that arrive and one that is given up; a worker, a client and a node are killed, each after the
    requests.
    """
    counts = {"free": 24, "owned": 0, "exposed": 0, "quarantined": 0}
    return [
        event(
            0, "begin", seed=1, engine="shm", kinds=["kill worker"], block_size=32, deadline_s=10.0, peer_timeout_s=5.0
        ),
        *(event(0.1, "node_up", node=node, generation=1, processes={"launcher": 1}) for node in "el"),
        *(event(0.2, "joined", client=client, node="e") for client in ("encoder-0.1", "scheduler-0.1")),
        *request(1, 1.0),
        *request(2, 2.0),
        event(3.1, "aborting", room=3, side="encode", why="the storm gave it up"),
        *request(3, 3.0, "Failed", "the storm gave it up"),
        event(1.2, "fault", id=1, kind="kill worker", victim="worker0", node="e", pid=5),
        event(1.5, "restarted", id=1, ns=int(0.3 * NS)),
        event(5.0, "fault", id=2, kind="kill client", victim="encoder-0.1", node="e", pid=6),
        event(5.0, "client_down", client="encoder-0.1", why="killed"),
        event(5.03, "recovered", id=2, held=3, ns=int(0.03 * NS)),
        event(6.0, "fault", id=3, kind="kill node", victim="launcher", node="e", pid=7),
        event(6.0, "node_down", node="e", generation=1, why="killed"),
        event(6.1, "gone", node="e", generation=1, ns=int(0.1 * NS), left=[]),
        event(7.0, "node_up", node="e", generation=2, processes={"launcher": 8}),
        *(event(9.0, "final", node=node, counts=counts, blocks=24, in_flight=[], dead_lanes=[]) for node in "el"),
        event(9.1, "client_down", client="scheduler-0.1", why="the end"),
        event(9.2, "observed", node="e", looks=1000, changes=20),
        event(9.3, "node_down", node="e", generation=2, why="the end"),
    ]


def found(events: list[Event]) -> list[str]:
    return [f"{violation.rule}: {violation.text}" for violation in check(events)]


def pick(events: list[Event], name: str, **fields: object) -> Event:
    return next(e for e in events if e["event"] == name and fields.items() <= e.items())


def test_a_history_in_which_all_is_well_passes() -> None:
    assert found(good()) == []
    assert found([]) == []


def changed(name: str, where: Mapping[str, object], **values: object) -> Change:
    return lambda events: pick(events, name, **where).update(values)


def added(*more: Event) -> Change:
    return lambda events: events.extend(copy.deepcopy(list(more)))


def without(name: str, **where: object) -> Change:
    return lambda events: events.remove(pick(events, name, **where))


def both(*changes: Change) -> Change:
    def change(events: list[Event]) -> None:
        for each in changes:
            each(events)

    return change


def stopped(kind: str, victim: str, node: str, at: float, for_s: float) -> Change:
    return added(
        event(at, "fault", id=9, kind=kind, victim=victim, node=node, pid=9, for_s=for_s),
        event(at + for_s, "eased", id=9),
    )


SENT = {"room": 1, "side": "encode", "phase": "Transferring"}
FINAL = {"node": "l"}
ENDED = {"room": 1, "side": "language"}
LOST = {"phase": "Failed", "error": "PeerLost", "reason": "somebody is lost"}
FAILS = both(
    changed("ended", {"room": 2, "side": "encode"}, **LOST),
    changed("phase", {"room": 2, "side": "encode", "phase": "Success"}, phase="Failed"),
    changed("ended", {"room": 2, "side": "language"}, **LOST),
    changed("phase", {"room": 2, "side": "language", "phase": "Success"}, phase="Failed"),
)

NO_NODE_WAS_KILLED = (without("fault", kind="kill node"), without("node_down", why="killed"), without("gone"))

BAD: dict[str, tuple[Change, str]] = {
    "a request that never ends": (without("ended", room=1, side="language"), "P5: room 1, language side: never ended"),
    "one that ends twice": (
        added(*(e for e in one_side("language", "scheduler-0.1", 1, 1.0) if e["event"] == "ended")),
        "P5: room 1, language side: ended 2 times",
    ),
    "one that ends and was never opened": (
        without("opened", **ENDED),
        "P5: room 1, language side: ended and never opened",
    ),
    "one that ends in no terminal phase": (
        changed("ended", ENDED, phase="Transferring"),
        "P5: room 1, language side: ended as Transferring",
    ),
    "one that ends after its deadline": (
        changed("opened", ENDED, t=-20 * NS),
        "P5: room 1, language side: ended 21.4 s after it was opened, at most 12.0 s",
    ),
    "a phase that goes back": (
        changed("phase", SENT, phase="Bootstrapping"),
        "P5: room 1, encode side: Bootstrapping (64) after",
    ),
    "a watermark that goes back": (
        both(
            changed("phase", SENT, sent=200), added(event(1.35, "phase", **{**SENT, "client": "encoder-0.1"}, sent=100))
        ),
        "P5: room 1, encode side: Transferring (100) after Transferring (200)",
    ),
    "a terminal phase that changes": (
        added(event(1.45, "phase", room=1, side="encode", client="encoder-0.1", phase="Failed", sent=100)),
        "P5: room 1, encode side: Failed (100) after Success",
    ),
    "an outcome that is not the phase": (
        both(changed("ended", ENDED, phase="Failed"), added(event(1.3, "aborting", room=1, side="encode", why=""))),
        "P5: room 1, language side: ended as Failed after Success",
    ),
    "a status word that decreased": (
        added(event(2, "word", node="e", what="e slot 3: decreased")),
        "P5: e slot 3: decreased",
    ),
    "an observer that saw nothing": (changed("observed", {}, looks=0, changes=0), "P5: the observer has seen nothing"),
    "Success on one side only": (
        both(
            changed("ended", {"room": 1, "side": "encode"}, **LOST),
            changed("phase", {"room": 1, "side": "encode", "phase": "Success"}, phase="Failed"),
            without("node_down", node="e", why="killed"),
            without("fault", kind="kill node"),
            added(event(1.3, "aborting", room=1, side="encode", why="")),
        ),
        "P5: room 1: Success at the language side, Failed at the encode side",
    ),
    "a byte that is wrong": (
        changed("ended", ENDED, difference="input_embeddings: 1 of 100 rows of room 1 differ"),
        "P6: room 1, language side: input_embeddings: 1 of 100 rows",
    ),
    "a request that fails when only a worker was killed": (
        both(
            FAILS,
            added(event(2.1, "fault", id=8, kind="kill worker", victim="worker1", node="l", pid=8)),
            added(event(2.4, "restarted", id=8, ns=int(0.3 * NS))),
        ),
        "P11: room 2, encode side: failed for no fault of its own: PeerLost: somebody is lost",
    ),
    "a request that fails for a short stop": (
        both(FAILS, stopped("stop process", "poller", "l", 2.0, 1.0)),
        "P11: room 2, encode side: failed for no fault of its own",
    ),
    "a request that fails for the death of a client that had none of it": (
        both(FAILS, added(event(1.9, "client_down", client="encoder-1.1", why="killed"))),
        "P11: room 2, encode side: failed for no fault of its own",
    ),
    "a request that fails long after a node was back": (
        both(
            FAILS,
            added(
                event(0.02, "node_up", node="l", generation=0),
                event(0.01, "node_down", node="l", generation=0, why="killed"),
            ),
        ),
        "P11: room 2, encode side: failed for no fault of its own",
    ),
    "a request that is refused": (
        added(event(2.0, "refused", room=2, side="encode", client="encoder-0.1", why="no slot")),
        "P11: room 2, encode side: refused: no slot",
    ),
    "a node that ends by itself": (
        changed("node_down", {"why": "killed"}, why="by itself"),
        "P11: node e ended by itself",
    ),
    "a client that ends by itself": (
        changed("client_down", {"why": "killed"}, why="by itself"),
        "P8: client encoder-0.1 ended by itself",
    ),
    "a node that does not come up": (
        added(event(6.5, "not_up", node="e", why="poller exited with 1")),
        "P13: node e did not come up",
    ),
    "a node that does not come up and says nothing of the memory": (
        added(event(6.5, "not_up", node="e", why="SIGBUS", full=True)),
        "P13: node e did not come up: SIGBUS",
    ),
    "an orphan": (
        changed("gone", {}, left=[99], ns=10 * NS),
        "P10: processes [99] of node e are left 10.00 s after its death",
    ),
    "a slow end of a node": (
        changed("gone", {}, ns=int(1.5 * NS)),
        "P10: processes [] of node e are left 1.50 s after its death",
    ),
    "a slow recovery": (
        both(changed("recovered", {}, ns=int(1.2 * NS)), *NO_NODE_WAS_KILLED),
        "P3: encoder-0.1 of e (fault 2): recovered after 1.200 s, at most",
    ),
    "recoveries that are slow too often": (
        changed("recovered", {}, ns=int(0.2 * NS)),
        "P3: p99 of 1 recoveries is 0.200 s, at most 0.100 s",
    ),
    "a recovery that never comes": (
        both(without("recovered"), *NO_NODE_WAS_KILLED),
        "P3: encoder-0.1 of e (fault 2): not recovered",
    ),
    "a process that does not come back": (
        both(
            changed("restarted", {}, ns=20 * NS),
            without("node_down", node="e", why="killed"),
            without("fault", kind="kill node"),
        ),
        "P4: worker0 of e (fault 1): recovered after 20.000 s, at most 15.000 s",
    ),
    "a block that is missing": (
        changed("final", FINAL, counts={"free": 23, "owned": 0, "exposed": 0, "quarantined": 0}),
        "P1: node l: ",
    ),
    "a block that somebody holds at the end": (
        changed("final", FINAL, counts={"free": 23, "owned": 0, "exposed": 1, "quarantined": 0}),
        "P1: node l: blocks are held at the end",
    ),
    "a request in flight at the end": (
        changed("final", FINAL, in_flight=[{"room": 1}]),
        "P5: node l: in flight at the end",
    ),
    "a seat that is not free": (
        changed("final", FINAL, dead_lanes=[2]),
        "P1: node l: seats of the dead are not free: [2]",
    ),
    "something that is left": (
        added(event(9.5, "left", what="/dev/shm/embridge-1")),
        "P9: left behind: /dev/shm/embridge-1",
    ),
    "lines that nobody was killed in": (
        added(event(9.5, "torn", lines=2)),
        "history: 2 lines are torn, 1 clients were killed",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_history_with_one_thing_wrong_is_found_out(what: str) -> None:
    change, text = BAD[what]
    events = good()
    change(events)
    seen = found(sorted(events, key=lambda e: e["t"]))
    assert [line for line in seen if line.startswith(text)], seen


EXCUSED: dict[str, Change] = {
    "it was given up": added(event(2.1, "aborting", room=2, side="language", why="")),
    "its scheduler was killed": added(event(2.1, "client_down", client="scheduler-0.1", why="killed")),
    "its scheduler was killed, and that was noted after it failed": added(
        event(2.1, "fault", id=8, kind="kill client", victim="scheduler-0.1", node="l", pid=8),
        event(2.13, "recovered", id=8, held=0, ns=int(0.03 * NS)),
        event(2.9, "client_down", client="scheduler-0.1", why="killed"),
    ),
    "its node was killed": added(
        event(2.1, "fault", id=8, kind="kill node", victim="launcher", node="l", pid=8),
        event(2.1, "node_down", node="l", generation=1, why="killed"),
        event(4.0, "node_up", node="l", generation=2),
    ),
    "its launcher was killed, and that was noted after it failed": added(
        event(2.1, "fault", id=8, kind="kill launcher", victim="launcher", node="e", pid=8),
        event(2.9, "node_down", node="e", generation=1, why="killed"),
        event(4.0, "node_up", node="e", generation=2),
    ),
    "its node was up again a moment ago": added(
        event(0.3, "node_down", node="l", generation=0, why="killed"), event(0.9, "node_up", node="l", generation=2)
    ),
    "its peer's poller was killed and not up again for longer than one is patient": added(
        event(0.2, "fault", id=8, kind="kill poller", victim="poller", node="l", pid=8),
        event(2.4, "restarted", id=8, ns=int(2.2 * NS)),
    ),
    "its peer's poller was silent for longer than one is patient": stopped("stop process", "poller", "l", 0.0, 2.3),
}


@pytest.mark.parametrize("why", EXCUSED)
def test_a_request_may_fail_when_it_has_lost_what_is_its_own(why: str) -> None:
    events = good()
    FAILS(events)
    assert any(line.startswith("P11") for line in found(events))
    EXCUSED[why](events)
    assert found(sorted(events, key=lambda e: e["t"])) == []


def test_a_process_that_is_stopped_while_it_begins_may_outlive_its_launcher() -> None:
    def left(stopped_at: float) -> list[str]:
        events = good()
        changed("gone", {}, left=[9], ns=10 * NS)(events)
        added(event(5.4, "fault", id=8, kind="kill poller", victim="poller", node="e", pid=8))(events)
        added(event(7.1, "restarted", id=8, ns=NS))(events)
        stopped("stop process", "poller", "e", stopped_at, 12.0)(events)
        return [line for line in found(sorted(events, key=lambda e: e["t"])) if line.startswith("P10")]

    assert left(5.6) == []
    assert left(5.3) == ["P10: processes [9] of node e are left 10.00 s after its death"]


def test_a_request_whose_client_was_killed_has_no_end_on_that_side() -> None:
    events = good()
    without("ended", room=2, side="encode")(events)
    assert found(events) == []


def test_a_recovery_while_another_process_is_down_has_its_own_limit_and_is_not_counted_as_calm() -> None:
    events = good()
    changed("recovered", {}, ns=int(0.9 * NS))(events)
    stopped("stop process", "poller", "e", 4.9, 1.0)(events)
    assert found(events) == []
    assert figures(events)["undisturbed"] == 0


def test_the_figures_count_what_a_history_holds() -> None:
    seen = figures(good())
    assert (seen["kills"], seen["requests"], seen["succeeded"], seen["failed"]) == (3, 3, 2, 1)
    assert (seen["tokens"], seen["blocks"]) == (300, 12)
    assert (seen["recoveries"], seen["undisturbed"], seen["undisturbed_with_blocks"], seen["recovery_p99_ms"]) == (
        1,
        1,
        1,
        30.0,
    )
    assert seen["looks"] == 1000


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(v) for v in range(1, 201)]
    assert [percentile(values, p) for p in (0, 50, 99, 100)] == [1.0, 100.0, 198.0, 200.0]
    assert percentile([7.0], 99) == 7.0


def test_a_line_whose_writer_was_killed_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    one, other = Recorder(path), Recorder(path, without=frozenset({"phase"}))
    one("opened", room=1)
    with path.open("a") as file:
        file.write('\n{"t": 5, "event": "pha')
    other("phase", room=1)
    other("ended", room=1)
    one.close()
    other.close()
    assert [e["event"] for e in read(path)] == ["opened", "ended", "torn"]


def test_a_seed_decides_the_faults_and_the_requests() -> None:
    """P19: the same seed is the same storm, as far as the machine lets it."""
    drawn = [kinds_of(seed, None) for seed in range(400)]
    assert drawn == [kinds_of(seed, None) for seed in range(400)]
    assert all(set(kinds) & set(KILLS) for kinds in drawn)
    for kind in KINDS:
        assert 0.15 < sum(kind in kinds for kinds in drawn) / 400 < 0.4, kind
    assert kinds_of(1, ("cut link", "kill node"), KILLS) == ["kill node"]
    some = [request_of(1, room) for room in range(300)]
    assert some == [request_of(1, room) for room in range(300)]
    assert all(it.parts[-1] == it.total and list(it.parts) == sorted(set(it.parts)) for it in some)
    assert {it.abort_by for it in some} == {"", "encode", "language"}
    assert PROMISED.recovery_p99_s == 0.1
