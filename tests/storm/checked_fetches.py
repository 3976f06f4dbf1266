"""What a history must not contain of fetches of published items: one that does not end in time, or with every byte, or
that fails for no reason; and the figures that it shows of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from storm.history import Event
from storm.items import RARE

NS = 1_000_000_000


class Span(NamedTuple):
    """From and until when something was so, in ns."""

    first: int
    last: int

    def meets(self, other: Span) -> bool:
        return self.first <= other.last and other.first <= self.last


class Told(Protocol):
    """A history, as the checker has it."""

    of: dict[str, list[Event]]
    last: int
    client_died: dict[str, int]
    allowed: Any

    def excuse(self, asked: Event, span: Span) -> str: ...


def faults_of_fetches(told: Told) -> Iterator[tuple[str, str, int]]:
    """(label, what happened, when) of each that must not be."""
    begun = {(event["client"], event["number"]): event for event in told.of["fetch"]}
    for event in told.of["fetched"]:
        name = f"fetch {event['number']} of {event['client']}"
        if event["difference"]:
            yield "P6", f"{name}: {event['difference']}", event["t"]
        begin = begun.pop((event["client"], event["number"]), None)
        if begin is None:
            continue
        span = Span(begin["t"], event["t"])
        excuse = _excuse(told, event["client"], span) or _asked_nobody(told, begin)
        if span.last - span.first > _most_ns(told, begin) and not excuse:
            yield "P5", f"{name}: ended {(span.last - span.first) / NS:.1f} s after it began", event["t"]
        if event["error"] and event["error"] not in (*RARE, "given up") and not excuse:
            text = f"{name}: failed for no fault of its own: {event['error']}: {event['reason']}"
            yield "P11", text, event["t"]
    for (client, number), begin in begun.items():
        if told.last - begin["t"] > _most_ns(told, begin) and not _has_left(told, client, begin["t"]):
            yield "P5", f"fetch {number} of {client}: never ended", told.last


def _most_ns(told: Told, begin: Event) -> float:
    most: float = (begin["deadline_s"] + told.allowed.slack_s) * NS
    return most


def _excuse(told: Told, client: str, span: Span) -> str:
    """Why a fetch by that client may have failed, from whichever node it was; empty if nothing explains it."""
    for node in dict.fromkeys(event["node"] for event in told.of["node_up"] if event["node"] != "l"):
        asked = {"room": -1, "encoder": "", "scheduler": client, "encode": node, "language": "l"}
        if why := told.excuse(asked, span):
            return why
    return ""


def _asked_nobody(told: Told, begin: Event) -> str:
    """Why a fetch may have failed that asks at an address where a node was: its client has yet to hear of the next one.
    Empty if a node was there.
    """
    latest = {event["node"]: event["addr"] for event in told.of["node_up"] if event["t"] < begin["t"]}
    return "" if begin["addr"] in latest.values() else f"no node is at {begin['addr']} any more"


def _has_left(told: Told, client: str, t: int) -> bool:
    """Whether a client has died, or left, or has joined anew, after that time."""
    events = [*told.of["client_down"], *told.of["joined"]]
    return told.client_died.get(client, 0) >= t or any(e["client"] == client and e["t"] >= t for e in events)


def figures_of_fetches(fetched: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many there were."""
    return {
        "fetched": sum(not event["error"] for event in fetched),
        "fetched_in_place": sum(event["where"] == "in place" for event in fetched),
        "fetches_failed": sum(event["error"] not in ("", *RARE) for event in fetched),
        "fetches_gone_on": sum(event.get("kept", 0) > 0 for event in fetched),
    }
