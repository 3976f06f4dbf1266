"""Why a request does not move: who owes its next step, what that step is, and since when it is owed.

`explain` is a function of the view of one request in its node's control segment (`EncodeView`, `LanguageView`), and of
nothing else. There is a table of rules for each side. The rules are tried from the top, and the first that applies is
the answer. A rule says who owes the step, and through which processes of this node the step has to go: if one of these
is in trouble (stopped, silent, being restarted), the answer names that process, with its trouble first.

A node decides nothing by it. It is for people, and the words that it reads may change meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from embridge.allocator.records import WrittenBy
from embridge.allocator.status import Phase
from embridge.workers.inspection.views import Actor, EncodeView, LanguageView


class Explanation(NamedTuple):
    """Who owes the next step of a request, what the step is, and since when it is owed (monotonic ns).

    `rule` is the name of the rule that applied.
    """

    process: Actor
    reason: str
    since_ns: int
    rule: str


class Rule(NamedTuple):
    """One rule of a table.

    `who`, `since` and `through` name attributes of the view; `why` is a format in which `v` is the view.
    """

    name: str
    applies: Callable[[Any], bool]
    who: str
    why: str
    since: str = "moved_ns"
    through: tuple[str, ...] = ()


_BOTH: Final = (
    Rule(
        "client gone",
        lambda v: not v.has_ended and v.is_client_gone,
        "poller",
        "the client that opened it is gone; the request has to be ended as Failed",
    ),
    Rule(
        "untold",
        lambda v: not v.has_ended and v.is_untold,
        "client",
        "only its client knows of it: it waits for the other side, and tells this node soon "
        "({v.sent} of {v.length} rows sent)",
    ),
    Rule(
        "failed", lambda v: not v.has_ended and v.has_failure, "poller", "the failure has to be published: {v.failure}"
    ),
    Rule(
        "late",
        lambda v: not v.has_ended and v.is_late,
        "poller",
        "its deadline has passed; it has to be ended",
        "deadline_ns",
    ),
)

_RELEASE: Final = Rule(
    "release",
    lambda v: True,
    "bootstrap",
    "the request has ended for everybody; its slot has to be released",
    "ended_ns",
    ("poller",),
)

ENCODE: Final = (
    *_BOTH,
    Rule(
        "untold end",
        lambda v: v.has_ended and v.is_untold and not v.is_client_gone,
        "client",
        "the request has ended, and no other process knows of it; its client has to release its slot",
        "ended_ns",
    ),
    Rule(
        "no init",
        lambda v: not v.has_ended and not v.destinations,
        "absent",
        "no init came; its scheduler has not asked this node for the room ({v.ready} of {v.length} rows are ready)",
        "opened_ns",
        ("bootstrap",),
    ),
    Rule(
        "inits missing",
        lambda v: not v.has_ended and v.num_inits < v.required,
        "absent",
        "{v.num_inits} of {v.required} inits came",
        through=("bootstrap",),
    ),
    Rule(
        "destination lost",
        lambda v: not v.has_ended and any(d.is_lost for d in v.destinations),
        "poller",
        "a destination is lost; the request has to be ended as Failed",
    ),
    Rule(
        "delivered",
        lambda v: not v.has_ended and v.total and v.slowest.sent >= v.total,
        "poller",
        "every row is delivered; Success has to be published",
    ),
    Rule(
        "encode",
        lambda v: not v.has_ended and v.slowest.sent >= v.ready,
        "client",
        "it has to embed more: {v.ready} of {v.length} rows are ready, all sent",
    ),
    Rule(
        "grant",
        lambda v: not v.has_ended and v.slowest.sent >= v.slowest.granted,
        "other",
        "it has to grant more: {v.slowest.granted} rows are granted, all sent, {v.ready} are ready "
        "(its pool: unknown here)",
        through=("bootstrap",),
    ),
    Rule(
        "door",
        lambda v: not v.has_ended and v.written_by == WrittenBy.UNDECIDED,
        "other",
        "who writes rows [{v.slowest.sent}, {v.movable}) is not decided: "
        "it has to let this client in, which would write them itself",
        through=("client",),
    ),
    Rule(
        "write directly",
        lambda v: not v.has_ended and v.written_by == WrittenBy.CLIENT,
        "client",
        "its library thread has to write rows [{v.slowest.sent}, {v.movable}) into the blocks of {v.other}: "
        "they are ready and granted",
    ),
    Rule(
        "writes fail",
        lambda v: not v.has_ended and v.slowest.failing_ns,
        "worker",
        "every write to {v.other} fails; it tries again",
        "failing_ns",
    ),
    Rule(
        "fenced",
        lambda v: not v.has_ended and v.slowest.is_fenced,
        "other",
        "the session of its grant is fenced; it has to grant its window anew",
        through=("bootstrap",),
    ),
    Rule(
        "writing",
        lambda v: not v.has_ended and v.slowest.issued > v.slowest.sent,
        "worker",
        "its write of rows [{v.slowest.sent}, {v.slowest.issued}) to {v.other} is under way",
    ),
    Rule(
        "write",
        lambda v: not v.has_ended and v.slowest.staged > v.slowest.sent,
        "worker",
        "it has to write rows [{v.slowest.sent}, {v.slowest.staged}): they are staged and granted",
    ),
    Rule(
        "source blocks",
        lambda v: not v.has_ended and v.waits_for_block and v.free_blocks == 0,
        "client",
        "its library thread waits for a source block: none is free, {v.held}",
    ),
    Rule(
        "stage",
        lambda v: not v.has_ended,
        "client",
        "its library thread has to stage rows [{v.slowest.sent}, {v.movable}), which are ready and granted",
    ),
    Rule(
        "under way",
        lambda v: not v.is_quiet,
        "worker",
        "the request has ended; it has to say that nothing of it is under way",
        "ended_ns",
    ),
    Rule(
        "rows kept",
        lambda v: not v.is_cleared and not v.is_client_gone,
        "client",
        "the request has ended; its library thread has to let go of the rows",
        "ended_ns",
    ),
    Rule(
        "close",
        lambda v: v.waiting,
        "not_closed",
        "the request has ended; that node has to close it",
        "ended_ns",
        ("poller",),
    ),
    _RELEASE,
)

LANGUAGE: Final = (
    Rule(
        "whole",
        lambda v: not v.has_ended and v.is_whole and not v.is_untold and not v.is_peer_lost,
        "other",
        "every row has landed; how the request ends is decided there, also when its client or deadline ends it",
        through=("poller",),
    ),
    *_BOTH,
    Rule(
        "handshake",
        lambda v: not v.has_ended and not v.has_peer,
        "other",
        "the handshake is pending: it has not answered the registration",
        "opened_ns",
        ("bootstrap",),
    ),
    Rule(
        "peer lost",
        lambda v: not v.has_ended and v.is_peer_lost,
        "poller",
        "{v.other} is lost; the request has to be ended as Failed",
    ),
    Rule("init", lambda v: not v.has_ended and not v.has_asked, "client", "it has to grant the first blocks (init)"),
    Rule(
        "engine",
        lambda v: not v.has_ended and not v.has_engine,
        "worker",
        "its engine has to begin a session, under which blocks can be granted",
    ),
    Rule("send grant", lambda v: not v.has_ended and not v.is_contacted, "bootstrap", "it has to send the grant"),
    Rule(
        "no answer",
        lambda v: not v.has_ended and not v.is_heard,
        "other",
        "it has not answered the init: its encoder has not opened room {v.room}",
        through=("bootstrap", "poller"),
    ),
    Rule(
        "inits missing",
        lambda v: not v.has_ended and v.phase == Phase.Bootstrapping,
        "other",
        "it waits for the inits of all {v.required} destinations",
        through=("poller",),
    ),
    Rule(
        "drain",
        lambda v: not v.has_ended and not v.has_all_blocks and v.sent // v.block_size > v.drained_blocks,
        "client",
        "its library thread has to copy out rows [{v.drained}, {v.sent}), which have landed",
    ),
    Rule(
        "delivered",
        lambda v: not v.has_ended and v.total and v.sent >= v.total,
        "other",
        "every row has landed; it has to tell of Success",
        through=("poller",),
    ),
    Rule(
        "claimed",
        lambda v: not v.has_ended and v.sent < v.granted and v.is_held and not v.is_writer_gone,
        "writer",
        "it is writing rows from {v.sent} on into the blocks itself, and holds the claim",
    ),
    Rule(
        "grant unknown",
        lambda v: not v.has_ended and v.sent < v.granted and v.known_blocks < v.granted_blocks,
        "other",
        "it knows {v.known_blocks} of {v.granted_blocks} blocks granted; the grant is sent again",
        through=("bootstrap", "poller"),
    ),
    Rule(
        "encode",
        lambda v: not v.has_ended and v.ready <= v.sent,
        "other",
        "its encoder has to embed more: {v.ready} of {v.length} rows are ready, all sent",
        through=("poller",),
    ),
    Rule(
        "write",
        lambda v: not v.has_ended and v.sent < v.granted,
        "other",
        "it has to write rows [{v.sent}, {v.granted}) as far as they are ready ({v.ready})",
        through=("poller",),
    ),
    Rule(
        "quarantine",
        lambda v: not v.has_ended and v.free_blocks == 0 and v.quarantined_blocks,
        "fencing",
        "wants {v.wanted_blocks} blocks, none is free; {v.quarantined_blocks} are in quarantine under {v.fence}",
        through=("poller",),
    ),
    Rule(
        "blocks",
        lambda v: not v.has_ended and v.free_blocks == 0,
        "holder",
        "wants {v.wanted_blocks} blocks, none is free, none in quarantine; {v.held}",
    ),
    Rule(
        "grant",
        lambda v: not v.has_ended,
        "client",
        "it has to grant more: {v.granted} rows are granted, all sent, {v.ready} are ready; "
        "{v.free_blocks} blocks are free, so others "
        "come first, or its host memory is full (results not released)",
    ),
    Rule(
        "claim of the dead",
        lambda v: v.phase == Phase.Failed and v.is_held and v.is_writer_gone,
        "launcher",
        "the request has failed while {v.writer} was writing, which is dead; its claim has to be ended "
        "({v.own_quarantined_blocks} blocks are in quarantine)",
        "ended_ns",
        ("poller",),
    ),
    Rule(
        "claim",
        lambda v: v.phase == Phase.Failed and v.is_held,
        "writer",
        "the request has failed while it was writing into the blocks; it has to give the claim back "
        "({v.own_quarantined_blocks} blocks are in quarantine until then)",
        "ended_ns",
        ("poller",),
    ),
    Rule(
        "no encode node",
        lambda v: v.phase == Phase.Failed and not v.is_acked and not v.has_peer,
        "bootstrap",
        "the request has failed; it looks for the encode node, to tell it",
        "ended_ns",
    ),
    Rule(
        "writers",
        lambda v: v.phase == Phase.Failed and not v.is_acked and v.is_peer_lost,
        "launcher",
        "{v.other} is lost, and a process of it still maps the payload; it has to see that one end",
        "ended_ns",
        ("poller",),
    ),
    Rule(
        "abort",
        lambda v: v.phase == Phase.Failed and not v.is_acked,
        "other",
        "the request has failed; that node has to acknowledge the abort, for it may still write",
        "ended_ns",
        ("bootstrap", "poller"),
    ),
    Rule(
        "lent",
        lambda v: v.is_lent and not v.is_cleared and not v.is_client_gone,
        "client",
        "the request has ended, and its rows are lent to its scheduler, which has to call release()",
        "ended_ns",
    ),
    Rule(
        "clear",
        lambda v: not v.is_cleared and not v.is_client_gone,
        "client",
        "the request has ended; it has to call clear(), which its queue does",
        "ended_ns",
    ),
    _RELEASE,
)


def explain(view: EncodeView | LanguageView) -> Explanation:
    """Who owes the next step of this request, what the step is, and since when it is owed."""
    rule = next(rule for rule in (ENCODE if isinstance(view, EncodeView) else LANGUAGE) if rule.applies(view))
    owes: Actor = getattr(view, rule.who)
    why = rule.why.format(v=view)
    for name in rule.through:
        between: Actor = getattr(view, name)
        if between.trouble:
            return Explanation(between, f"{between.trouble}; behind it, {owes}: {why}", between.trouble_ns, rule.name)
    since_ns: int = getattr(view, rule.since) or view.opened_ns
    if owes.trouble:
        return Explanation(owes, f"{owes.trouble}; {why}", owes.trouble_ns or since_ns, rule.name)
    return Explanation(owes, why, since_ns, rule.name)
