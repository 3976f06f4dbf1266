"""What a history must not contain: a pure function of it, and the figures that it shows.

    P5    every accepted request ends once, in time, and its status only rises; no status word did otherwise P6
    Success means every byte P11   a request fails only if it was given up, or a client or node of its own was killed,
    or silent for longer than a peer's patience P3    the blocks of a killed client are free or quarantined again in
    time P4    a process that was killed is READY again, a node that was killed leaves no process P1    at the end every
    block is free, or counted as quarantined; no request, no seat is left P9    nothing else is left
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from storm.checked_fetches import Span, faults_of_fetches, figures_of_fetches
from storm.history import Event

NS = 1_000_000_000
ORDER = ["Bootstrapping", "WaitingForInput", "Transferring", "Success", "Failed"]
TERMINAL = ("Success", "Failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """Limits, in seconds. The promises' own are those of an idle machine."""

    slack_s: float = 2.0  # beyond a deadline
    grace_s: float = 1.5  # how long after a node is up again its requests may still fail for its death
    # a process that is stopped, or not up again, for longer is one that a peer may take for dead
    patience_s: float = 2.0
    recovery_p99_s: float = 0.1
    recovery_s: float = 1.0
    recovery_disturbed_s: float = 10.0  # while another process of the node is down or stopped
    restart_s: float = 15.0
    gone_s: float = 1.0
    # while one of its processes is being started: it hears of the launcher's death when it is up
    gone_disturbed_s: float = 5.0


PROMISED = Allowed()


class Violation(NamedTuple):
    """One rule that was broken: its label, what happened, and when it was seen."""

    rule: str
    text: str
    t: int

    def __str__(self) -> str:
        return f"{self.rule} at {self.t / NS:.3f}: {self.text}"


class _Told:
    """A history, sorted by what it is about."""

    def __init__(self, events: Sequence[Event], allowed: Allowed) -> None:
        self.allowed = allowed
        self.of: dict[str, list[Event]] = defaultdict(list)
        for event in events:
            self.of[event["event"]].append(event)
        self.last = max((event["t"] for event in events), default=0)
        self.asked = {event["room"]: event for event in self.of["asked"]}
        self.sides: dict[tuple[int, str], list[Event]] = defaultdict(list)
        for name in ("opened", "phase", "ended"):
            for event in self.of[name]:
                self.sides[event["room"], event["side"]].append(event)
        for side in self.sides.values():
            side.sort(key=lambda event: event["t"])
        self.given_up = {event["room"] for event in self.of["aborting"]}
        self.client_died = {
            event["client"]: event["t"] for event in self.of["client_down"] if event["why"] != "the end"
        }
        for fault in self.of["fault"]:
            if fault["kind"] == "kill client":  # others hear of it within milliseconds, before `client_down` is noted
                self.client_died[fault["victim"]] = fault["t"]
        self.ends = {event["id"]: event["t"] for name in ("eased", "restarted", "recovered") for event in self.of[name]}
        self.node_down = self._downs()
        self.stops = self._stops()
        self.silences = self._silences()

    def _downs(self) -> dict[str, list[Span]]:
        """When each node was not up, its first start left out, and with the grace after it is up again."""
        spans: dict[str, list[Span]] = defaultdict(list)
        ups: dict[str, list[int]] = defaultdict(list)
        for event in self.of["node_up"]:
            ups[event["node"]].append(event["t"])
        # its clients hear of a kill within milliseconds, before `node_down` is noted
        kills = [event for event in self.of["fault"] if event["kind"] in ("kill node", "kill launcher")]
        for event in [*kills, *self.of["node_down"]]:
            if event.get("why") != "the end":
                until = min((t for t in ups[event["node"]] if t > event["t"]), default=self.last)
                spans[event["node"]].append(Span(event["t"], until + int(self.allowed.grace_s * NS)))
        return spans

    def _stops(self) -> list[tuple[Event, Span]]:
        """Faults that hold something up, with their spans."""
        lasting = [f for f in self.of["fault"] if "for_s" in f]
        return [(f, Span(f["t"], self.ends.get(f["id"], self.last))) for f in lasting]

    def held_up_ns(self, asked: Event, span: Span) -> int:
        """How long, in that time, some process was stopped that this request needs."""
        nodes, clients = (asked["encode"], asked["language"]), (asked["encoder"], asked["scheduler"])
        total = 0
        for fault, stop in self.stops:
            if fault["node"] in (*nodes, "") and (fault["victim"] in clients or "client" not in fault["kind"]):
                total += max(0, min(stop.last, span.last) - max(stop.first, span.first))
        return total

    def excuse(self, asked: Event, span: Span) -> str:
        """Why this request may have failed; empty if nothing explains it."""
        if asked["room"] in self.given_up:
            return "given up"
        for client in (asked["encoder"], asked["scheduler"]):
            if client in self.client_died and self.client_died[client] <= span.last:
                return f"{client} died"
        for node in (asked["encode"], asked["language"]):
            if any(down.meets(span) for down in self.node_down[node]):
                return f"node {node} was down"
        grace = int(self.allowed.grace_s * NS)
        for fault, silence in self.silences:
            if fault["node"] in (asked["encode"], asked["language"], "") and Span(
                silence.first, silence.last + grace
            ).meets(span):
                return f"{fault['victim']} of {fault['node']} was silent"
        return ""

    def _silences(self) -> list[tuple[Event, Span]]:
        """When a process of a node said nothing for so long that a peer may take it for dead: stopped, or killed and
        not up again yet.
        """
        kinds = ("stop process", "cut link", "kill worker", "kill poller", "kill bootstrap")
        spans = [(f, Span(f["t"], self.ends.get(f["id"], self.last))) for f in self.of["fault"] if f["kind"] in kinds]
        return [(fault, span) for fault, span in spans if span.last - span.first > self.allowed.patience_s * NS]

    def is_stopped_at_birth(self, node: str, pid: int, t: int) -> bool:
        """Whether a process is stopped then since before it can have asked to die with its launcher."""
        for stop, span in self.stops:
            if (stop["kind"], stop.get("node"), stop.get("pid")) == ("stop process", node, pid) and span.last >= t:
                patience = stop["t"] - int(self.allowed.patience_s * NS)
                return any(
                    (f.get("node"), f["victim"]) == (node, stop["victim"]) and patience <= f["t"] < stop["t"]
                    for f in self.of["fault"]
                    if f["kind"].startswith("kill")
                )
        return False

    def disturbed(self, fault: Event, span: Span) -> bool:
        """Whether another process of that node was down or stopped meanwhile; over a network, of any node.

        There a write that failed with its peer may still read source blocks, until the worker that made it has begun
        again (R8).
        """
        is_network = any(begin["engine"] == "mooncake" for begin in self.of["begin"])
        for other in self.of["fault"]:
            if (
                other["id"] == fault["id"]
                or "client" in other["kind"]
                or (other["node"] != fault["node"] and not is_network)
            ):
                continue
            if Span(other["t"], self.ends.get(other["id"], self.last)).meets(span):
                return True
        return False


def check(events: Sequence[Event], allowed: Allowed = PROMISED) -> list[Violation]:
    """Everything in a history that must not be; empty when the storm held."""
    told = _Told(events, allowed)
    found = [*_words(told), *_nodes(told), *_recoveries(told), *_claims(told), *_end(told)]
    for room, side in told.sides:
        found += _side(told, room, side)
    for room in told.asked:
        found += _both(told, room)
    found += [Violation(*fault) for fault in faults_of_fetches(told)]
    return sorted(found, key=lambda violation: violation.t)


def _words(told: _Told) -> list[Violation]:
    found = [Violation("P5", event["what"], event["t"]) for event in told.of["word"]]
    observed = told.of["observed"]
    if observed and not any(event["looks"] > event["changes"] > 0 for event in observed):
        found.append(Violation("P5", "the observer has seen nothing", observed[-1]["t"]))
    kills = sum(1 for event in told.of["fault"] if event["kind"] == "kill client")
    for event in told.of["torn"]:
        if event["lines"] > kills:
            found.append(
                Violation("history", f"{event['lines']} lines are torn, {kills} clients were killed", event["t"])
            )
    return found


def _nodes(told: _Told) -> list[Violation]:
    found = []
    for event in told.of["node_down"]:
        if event["why"] == "by itself":
            found.append(Violation("P11", f"node {event['node']} ended by itself", event["t"]))
    for event in told.of["client_down"]:
        if event["why"] == "by itself":
            found.append(Violation("P8", f"client {event['client']} ended by itself", event["t"]))
    for event in told.of["not_up"]:
        if not (event.get("full") and "/dev/shm" in event["why"]):
            found.append(Violation("P13", f"node {event['node']} did not come up: {event['why']}", event["t"]))
    for event in told.of["gone"]:
        before = [
            f
            for f in told.of["fault"]
            if (f.get("node"), f["victim"]) == (event["node"], "launcher") and f["t"] <= event["t"]
        ]
        disturbed = bool(before) and told.disturbed(before[-1], Span(before[-1]["t"], before[-1]["t"]))
        limit = told.allowed.gone_disturbed_s if disturbed else told.allowed.gone_s
        if event["left"] and all(told.is_stopped_at_birth(event["node"], pid, event["t"]) for pid in event["left"]):
            continue
        if event["left"] or event["ns"] > limit * NS:
            text = (
                f"processes {event['left']} of node {event['node']} are left {event['ns'] / NS:.2f} s after its death"
            )
            found.append(Violation("P10", text, event["t"]))
    return found


def _recoveries(told: _Told) -> list[Violation]:
    found, calm = [], []
    recovered = {event["id"]: event for event in told.of["recovered"]}
    restarted = {event["id"]: event for event in told.of["restarted"]}
    for fault in told.of["fault"]:
        is_client = fault["kind"] == "kill client"
        if not is_client and fault["kind"] not in ("kill worker", "kill poller", "kill bootstrap"):
            continue
        done = (recovered if is_client else restarted).get(fault["id"])
        span = Span(fault["t"], fault["t"] + done["ns"] if done else told.last)
        if any(Span(down.first, down.first).meets(span) for down in told.node_down[fault["node"]]):
            continue  # what was to be recovered is gone
        took = (span.last - span.first) / NS
        disturbed = told.disturbed(fault, span)
        held_up = (
            sum(
                max(0, min(s.last, span.last) - max(s.first, span.first))
                for f, s in told.stops
                if f["node"] == fault["node"]
            )
            / NS
        )
        name, allowed = f"{fault['victim']} of {fault['node']} (fault {fault['id']})", told.allowed
        if is_client:
            limit, rule = (allowed.recovery_disturbed_s + held_up if disturbed else allowed.recovery_s), "P3"
            if done and not disturbed:
                calm.append(took)
        else:
            limit, rule = allowed.restart_s + held_up, "P4"
        if took > limit or (done is None and took > 0 and told.last - span.first > limit * NS):
            what = f"recovered after {took:.3f} s" if done else f"not recovered {took:.3f} s later"
            found.append(Violation(rule, f"{name}: {what}, at most {limit:.3f} s", span.last))
    if calm and percentile(calm, 99) > told.allowed.recovery_p99_s:
        most_s = told.allowed.recovery_p99_s
        text = f"p99 of {len(calm)} recoveries is {percentile(calm, 99):.3f} s, at most {most_s:.3f} s"
        found.append(Violation("P3", text, told.last))
    return found


def _claims(told: _Told) -> list[Violation]:
    """What a killed encoder was writing into at the language node."""
    found, faults = [], {fault["id"]: fault for fault in told.of["fault"]}
    for event in told.of["let_go"]:
        fault = faults[event["id"]]
        span = Span(fault["t"], fault["t"] + event["ns"])
        is_disturbed = told.disturbed({**fault, "node": "l"}, span)
        limit = told.allowed.recovery_disturbed_s if is_disturbed else told.allowed.recovery_s
        if event["ns"] > limit * NS:
            text = f"{fault['victim']} (fault {fault['id']}): its claims were held for {event['ns'] / NS:.2f} s"
            found.append(Violation("P3", text, event["t"]))
    return found


def _end(told: _Told) -> list[Violation]:
    found = []
    for event in told.of["final"]:
        counts, node = event["counts"], event["node"]
        if sum(counts.values()) != event["blocks"]:
            found.append(Violation("P1", f"node {node}: {counts} are not {event['blocks']} blocks", event["t"]))
        if counts["owned"] or counts["exposed"]:
            found.append(Violation("P1", f"node {node}: blocks are held at the end: {counts}", event["t"]))
        if event["in_flight"]:
            found.append(Violation("P5", f"node {node}: in flight at the end: {event['in_flight'][:2]}", event["t"]))
        if any(event.get("items", ())):
            pinned, filling, pages = event["items"]
            text = f"node {node}: {pinned} items pinned, {filling} being filled, {pages} pages of fetches at the end"
            found.append(Violation("P1", text, event["t"]))
        if event["dead_lanes"]:
            found.append(
                Violation("P1", f"node {node}: seats of the dead are not free: {event['dead_lanes']}", event["t"])
            )
    found += [Violation("P9", f"left behind: {event['what']}", event["t"]) for event in told.of["left"]]
    return found


def _side(told: _Told, room: int, side: str) -> list[Violation]:
    """One side of one request."""
    events, found = told.sides[room, side], []
    name = f"room {room}, {side} side"
    opened = next((event for event in events if event["event"] == "opened"), None)
    ended = [event for event in events if event["event"] == "ended"]
    seen: tuple[int, int] = (-1, -1)
    for event in events:
        if event["event"] != "phase":
            continue
        rank, now = ORDER.index(event["phase"]), event["phase"]
        if seen[0] >= 0 and ORDER[seen[0]] in TERMINAL:
            found.append(Violation("P5", f"{name}: {now} ({event['sent']}) after {ORDER[seen[0]]}", event["t"]))
        elif (rank, event["sent"]) < seen:
            found.append(
                Violation("P5", f"{name}: {now} ({event['sent']}) after {ORDER[seen[0]]} ({seen[1]})", event["t"])
            )
        seen = (rank, event["sent"])
    found += [Violation("P6", f"{name}: {event['difference']}", event["t"]) for event in ended if event["difference"]]
    if opened is None:
        if ended:
            found.append(Violation("P5", f"{name}: ended and never opened", ended[0]["t"]))
        return found
    if len(ended) > 1:
        found.append(Violation("P5", f"{name}: ended {len(ended)} times", ended[1]["t"]))
    for event in ended[:1]:
        if event["phase"] not in TERMINAL:
            found.append(Violation("P5", f"{name}: ended as {event['phase']}", event["t"]))
        if seen[0] >= 0 and ORDER[seen[0]] in TERMINAL and ORDER[seen[0]] != event["phase"]:
            found.append(Violation("P5", f"{name}: ended as {event['phase']} after {ORDER[seen[0]]}", event["t"]))
    asked = told.asked[room]
    until = ended[0]["t"] if ended else told.last
    died = told.client_died.get(opened["client"])
    if not ended and (
        died is not None
        or any(e["client"] == opened["client"] for e in told.of["client_down"] if e["why"] != "the end")
    ):
        return found
    limit = opened["deadline_s"] * NS + told.allowed.slack_s * NS + told.held_up_ns(asked, Span(opened["t"], until))
    if not ended:
        found.append(
            Violation("P5", f"{name}: never ended, {(until - opened['t']) / NS:.1f} s after it was opened", until)
        )
    elif until - opened["t"] > limit:
        text = f"{name}: ended {(until - opened['t']) / NS:.1f} s after it was opened, at most {limit / NS:.1f} s"
        found.append(Violation("P5", text, until))
    return found


def _both(told: _Told, room: int) -> list[Violation]:
    """Both sides of one request together."""
    asked, found = told.asked[room], []
    ends = {
        side: next((e for e in told.sides.get((room, side), ()) if e["event"] == "ended"), None)
        for side in ("encode", "language")
    }
    for side, event in ends.items():
        if event is not None and event["phase"] == "Failed" and not told.excuse(asked, Span(asked["t"], event["t"])):
            text = f"room {room}, {side} side: failed for no fault of its own: {event['error']}: {event['reason']}"
            found.append(Violation("P11", text, event["t"]))
    for event in told.of["refused"]:
        if event["room"] == room and not told.excuse(asked, Span(asked["t"], event["t"])):
            found.append(Violation("P11", f"room {room}, {event['side']} side: refused: {event['why']}", event["t"]))
    language, encode = ends["language"], ends["encode"]
    encode_lost = any(down.meets(Span(asked["t"], told.last)) for down in told.node_down[asked["encode"]])
    if language and encode and language["phase"] == "Success" and encode["phase"] == "Failed" and not encode_lost:
        text = f"room {room}: Success at the language side, Failed at the encode side: {encode['reason']}"
        found.append(Violation("P5", text, encode["t"]))
    return found


# ---- figures


def percentile(values: Sequence[float], percent: float) -> float:
    """The least value that so many per cent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def figures(events: Sequence[Event], allowed: Allowed = PROMISED) -> dict[str, Any]:
    """What a history shows, in numbers."""
    told = _Told(events, allowed)
    kinds: dict[str, int] = defaultdict(int)
    for fault in told.of["fault"]:
        kinds[fault["kind"]] += 1
    by_id = {fault["id"]: fault for fault in told.of["fault"]}
    calm, all_of_them, exits, held = [], [], [], 0
    for event in told.of["recovered"]:
        fault = by_id[event["id"]]
        took = event["ns"] / NS
        all_of_them.append(took)
        if not told.disturbed(fault, Span(fault["t"], fault["t"] + event["ns"])):
            calm.append(took)
            held += event["held"] > 0
            exits.append(min(took, event.get("exit_ns", 0) / NS))
    language = [event for event in told.of["ended"] if event["side"] == "language"]
    writes = [event["ns"] / NS for event in told.of["let_go"] if event["claims"]]
    result: dict[str, Any] = {
        "kills": sum(count for kind, count in kinds.items() if kind.startswith("kill")),
        "faults": dict(kinds),
        "requests": len(language),
        "succeeded": sum(event["phase"] == "Success" for event in language),
        "failed": sum(event["phase"] == "Failed" for event in language),
        **figures_of_fetches(told.of["fetched"]),
        "tokens": sum(event["tokens"] for event in language),
        "blocks": sum(
            math.ceil(event["tokens"] / begin["block_size"]) for begin in told.of["begin"] for event in language
        ),
        "looks": sum(event["looks"] for event in told.of["observed"]),
        "recoveries": len(all_of_them),
        "undisturbed": len(calm),
        "undisturbed_with_blocks": held,
    }
    for name, values in (("recovery", calm), ("recovery_all", all_of_them), ("exit", exits)):
        if values:
            result |= {
                f"{name}_{label}_ms": round(1e3 * percentile(values, p), 1)
                for label, p in (("p50", 50), ("p99", 99), ("max", 100))
            }
    stopped = [fault for fault in told.of["fault"] if "room" in fault]
    if stopped:
        result |= {"stopped_in_mid_write": len(stopped), "killed_in_mid_write": len(writes)}
        if writes:
            result["claims_let_go_max_ms"] = round(1e3 * max(writes), 1)
    for event_name in ("restarted", "gone"):
        values = [event["ns"] / NS for event in told.of[event_name]]
        if values:
            result[f"{event_name}_max_s"] = round(max(values), 2)
    return result
