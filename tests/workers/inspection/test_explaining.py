"""Why a request does not move: every rule of both tables, on views made by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from embridge.allocator.claims import ClaimState
from embridge.allocator.records import WrittenBy
from embridge.allocator.status import Phase
from embridge.workers.inspection.explain import ENCODE, LANGUAGE, Explanation, Rule, explain
from embridge.workers.inspection.views import Actor, DestinationView, EncodeView, LanguageView

NOW = 100_000
CLIENT, BOOTSTRAP, POLLER, WORKER = (
    Actor(name, pid) for pid, name in enumerate(["client", "bootstrap", "poller", "worker1"], 11)
)
LAUNCHER, FENCING, HOLDER = Actor("launcher", 10), Actor("worker0", 20), Actor("client", 21)
WRITER = Actor("direct writer", 31)
THERE, THIRD = Actor("language node 3f at tcp://h:1"), Actor("language node 40 at tcp://h:2")
ENCODER = Actor("encode node 2e at tcp://h:3")

COMMON: dict[str, Any] = {
    "now_ns": NOW,
    "room": 7,
    "phase": Phase.WaitingForInput,
    "total": 2000,
    "opened_ns": 10,
    "moved_ns": 50,
    "deadline_ns": NOW + 1,
    "client": CLIENT,
    "bootstrap": BOOTSTRAP,
    "poller": POLLER,
    "worker": WORKER,
}
ENDED: dict[str, Any] = {"phase": Phase.Failed, "ended_ns": 90}


def destination(**words: Any) -> DestinationView:
    return DestinationView(**{"node": THERE, "granted": 1024, **words})


def encode(*destinations: DestinationView, **words: Any) -> EncodeView:
    """All rows are ready, 1024 are granted; nothing is staged or sent."""
    given = destinations or (destination(),)
    return EncodeView(**{**COMMON, "ready": 2000, "required": len(given), "destinations": given, **words})


def language(**words: Any) -> LanguageView:
    """All rows are ready, 1024 in 8 blocks are granted and known; nothing is sent."""
    usual: dict[str, Any] = {
        "ready": 2000,
        "granted": 1024,
        "granted_blocks": 8,
        "known_blocks": 8,
        "block_size": 128,
        "other": ENCODER,
        "has_peer": True,
        "has_asked": True,
        "is_contacted": True,
        "is_heard": True,
        "free_blocks": 4,
        "launcher": LAUNCHER,
        "fencing": FENCING,
        "holder": HOLDER,
    }
    return LanguageView(**{**COMMON, **usual, **words})


ROUND_OVER: dict[str, Any] = {"sent": 1024, "drained_blocks": 8, "phase": Phase.Transferring}

ENCODE_CASES: dict[str, tuple[EncodeView, Actor, int, str]] = {
    "client gone": (encode(is_client_gone=True), POLLER, 50, "is gone"),
    "untold": (encode(is_untold=True), CLIENT, 50, "0 of 2000 rows sent"),
    "failed": (encode(has_failure=True, failure="the image is broken"), POLLER, 50, "the image is broken"),
    "late": (encode(deadline_ns=80), POLLER, 80, "deadline has passed"),
    "untold end": (encode(**ENDED, is_untold=True), CLIENT, 90, "has to release its slot"),
    "no init": (
        encode(destinations=(), required=0, ready=5),
        Actor("language node"),
        10,
        "no init came.*5 of 2000 rows are ready",
    ),
    "inits missing": (encode(required=3), Actor("language node"), 50, "1 of 3 inits came"),
    "destination lost": (encode(destination(is_lost=True)), POLLER, 50, "destination is lost"),
    "delivered": (encode(destination(sent=2000, granted=2000)), POLLER, 50, "Success has to be published"),
    "encode": (encode(destination(sent=300), ready=300), CLIENT, 50, "has to embed more: 300 of 2000 rows"),
    "grant": (
        encode(destination(sent=1024)),
        THERE,
        50,
        "has to grant more: 1024 rows.*2000 are ready.*pool: unknown here",
    ),
    "door": (
        encode(destination(sent=128, written_by=WrittenBy.UNDECIDED)),
        THERE,
        50,
        r"who writes rows \[128, 1024\) is not decided.*let this client in",
    ),
    "write directly": (
        encode(destination(sent=128, staged=512, written_by=WrittenBy.CLIENT)),
        CLIENT,
        50,
        r"has to write rows \[128, 1024\) into the blocks of language node 3f",
    ),
    "writes fail": (
        encode(destination(failing_ns=30, issued=512)),
        WORKER,
        30,
        "every write to language node 3f .* fails",
    ),
    "fenced": (encode(destination(is_fenced=True)), THERE, 50, "is fenced"),
    "writing": (
        encode(destination(sent=128, issued=512)),
        WORKER,
        50,
        r"its write of rows \[128, 512\) .* is under way",
    ),
    "write": (encode(destination(sent=128, staged=512)), WORKER, 50, r"has to write rows \[128, 512\)"),
    "source blocks": (
        encode(waits_for_block=True, held="15 held by room 8"),
        CLIENT,
        50,
        "source block: none is free, 15 held by room 8",
    ),
    "stage": (encode(), CLIENT, 50, r"has to stage rows \[0, 1024\)"),
    "under way": (encode(**ENDED), WORKER, 90, "nothing of it is under way"),
    "rows kept": (encode(**ENDED, is_quiet=True), CLIENT, 90, "let go of the rows"),
    "close": (encode(**ENDED, is_quiet=True, is_cleared=True), THERE, 90, "has to close it"),
    "release": (
        encode(destination(is_closed=True), **ENDED, is_quiet=True, is_cleared=True),
        BOOTSTRAP,
        90,
        "has to be released",
    ),
}

LANGUAGE_CASES: dict[str, tuple[LanguageView, Actor, int, str]] = {
    "whole": (language(is_whole=True, sent=2000, has_failure=True, deadline_ns=NOW), ENCODER, 50, "decided there"),
    "client gone": (language(is_client_gone=True), POLLER, 50, "is gone"),
    "untold": (language(is_untold=True), CLIENT, 50, "0 of 2000 rows sent"),
    "failed": (language(has_failure=True, failure="no time left"), POLLER, 50, "no time left"),
    "late": (language(deadline_ns=NOW), POLLER, NOW, "deadline has passed"),
    "handshake": (language(has_peer=False), ENCODER, 10, "handshake is pending"),
    "peer lost": (language(is_peer_lost=True), POLLER, 50, "encode node 2e .* is lost"),
    "init": (language(has_asked=False, is_contacted=False), CLIENT, 50, "first blocks"),
    "engine": (language(has_engine=False, is_contacted=False), WORKER, 50, "begin a session"),
    "send grant": (language(is_contacted=False), BOOTSTRAP, 50, "send the grant"),
    "no answer": (language(is_heard=False), ENCODER, 50, "has not opened room 7"),
    "inits missing": (language(phase=Phase.Bootstrapping, required=2), ENCODER, 50, "inits of all 2 destinations"),
    "drain": (language(sent=1024, drained_blocks=2), CLIENT, 50, r"copy out rows \[256, 1024\)"),
    "delivered": (language(sent=2000, granted=2000, drained_blocks=15), ENCODER, 50, "tell of Success"),
    "claimed": (language(sent=100, claim=ClaimState.WRITING, writer=WRITER), WRITER, 50, "writing rows from 100 on"),
    "grant unknown": (language(known_blocks=3), ENCODER, 50, "knows 3 of 8 blocks"),
    "encode": (language(ready=0, total=0), ENCODER, 50, "embed more: 0 of an unknown number of rows"),
    "write": (language(sent=100), ENCODER, 50, r"write rows \[100, 1024\)"),
    "quarantine": (
        language(**ROUND_OVER, free_blocks=0, quarantined_blocks=5, fence="session 3 of worker0"),
        FENCING,
        50,
        "wants 8 blocks, none is free; 5 are in quarantine under session 3 of worker0",
    ),
    "blocks": (
        language(**ROUND_OVER, free_blocks=0, held="9 held by room 8"),
        HOLDER,
        50,
        "wants 8 blocks, none is free.*9 held by",
    ),
    "grant": (language(**ROUND_OVER), CLIENT, 50, "4 blocks are free"),
    "claim of the dead": (
        language(**ENDED, claim=ClaimState.REVOKED, writer=WRITER, is_writer_gone=True, own_quarantined_blocks=8),
        LAUNCHER,
        90,
        "direct writer pid 31 was writing, which is dead; its claim has to be ended .8 blocks",
    ),
    "claim": (
        language(**ENDED, claim=ClaimState.REVOKED, writer=WRITER, own_quarantined_blocks=8),
        WRITER,
        90,
        "has to give the claim back .8 blocks are in quarantine",
    ),
    "no encode node": (language(**ENDED, has_peer=False), BOOTSTRAP, 90, "looks for the encode node"),
    "writers": (language(**ENDED, is_peer_lost=True), LAUNCHER, 90, "still maps the payload"),
    "abort": (language(**ENDED), ENCODER, 90, "acknowledge the abort"),
    "lent": (language(phase=Phase.Success, ended_ns=90, is_lent=True), CLIENT, 90, r"lent .* has to call release\(\)"),
    "clear": (language(**ENDED, is_acked=True), CLIENT, 90, r"call clear\(\)"),
    "release": (language(**ENDED, is_acked=True, is_cleared=True), BOOTSTRAP, 90, "has to be released"),
}


def check(said: Explanation, rule: str, process: Actor, since_ns: int, why: str) -> None:
    assert (said.rule, said.process, said.since_ns) == (rule, process, since_ns)
    assert re.search(why, said.reason), said.reason


@pytest.mark.parametrize("rule", ENCODE_CASES)
def test_every_rule_of_the_encode_side_says_who_what_and_since_when(rule: str) -> None:
    """P8: who waits can tell for whom."""
    check(explain(ENCODE_CASES[rule][0]), rule, *ENCODE_CASES[rule][1:])


@pytest.mark.parametrize("rule", LANGUAGE_CASES)
def test_every_rule_of_the_language_side_says_who_what_and_since_when(rule: str) -> None:
    """P8: who waits can tell for whom."""
    check(explain(LANGUAGE_CASES[rule][0]), rule, *LANGUAGE_CASES[rule][1:])


@pytest.mark.parametrize(("table", "cases"), [(ENCODE, ENCODE_CASES), (LANGUAGE, LANGUAGE_CASES)])
def test_no_rule_is_without_a_case_and_each_has_a_name_and_a_text_of_its_own(
    table: tuple[Rule, ...], cases: dict[str, Any]
) -> None:
    assert [rule.name for rule in table] == list(cases)
    assert len({rule.why for rule in table}) == len(table)


@pytest.mark.parametrize(
    ("view", "rule"),
    [
        *((view, rule) for rule in ENCODE for view in (ENCODE_CASES[rule.name][0],)),
        *((view, rule) for rule in LANGUAGE for view in (LANGUAGE_CASES[rule.name][0],)),
    ],
    ids=lambda value: value.name if isinstance(value, Rule) else type(value).__name__,
)
def test_a_process_in_trouble_is_named_first_wherever_the_step_has_to_go_through_it(
    view: EncodeView | LanguageView, rule: Rule
) -> None:
    usual = explain(view)
    for name in rule.through:
        troubled = replace(
            view, **{name: getattr(view, name)._replace(trouble="its last beat was 3.2 s ago", trouble_ns=60)}
        )
        said = explain(troubled)
        assert said.process.name == name
        assert said.reason == f"its last beat was 3.2 s ago; behind it, {usual.process}: {usual.reason}"
        assert (said.since_ns, said.rule) == (60, rule.name)
    if rule.who in ("client", "bootstrap", "poller", "worker", "launcher", "fencing", "holder", "writer"):
        troubled = replace(view, **{rule.who: getattr(view, rule.who)._replace(trouble="it is stopped", trouble_ns=70)})
        said = explain(troubled)
        assert (said.process.pid, said.reason, said.since_ns) == (
            usual.process.pid,
            f"it is stopped; {usual.reason}",
            70,
        )


def test_of_several_destinations_the_one_furthest_behind_is_explained() -> None:
    ahead = destination(node=THIRD, sent=1024, granted=2000, staged=2000)
    assert explain(encode(ahead, destination(sent=128, staged=256))).reason.startswith(
        "it has to write rows [128, 256)"
    )
    assert explain(encode(ahead, destination(sent=1000, granted=1000))).process == THERE


def test_a_request_that_has_ended_well_or_whose_writer_is_dead_waits_for_no_claim() -> None:
    """R30, R33: a writer may hold it still when the word says Success; a dead one writes no more."""
    held: dict[str, Any] = {"claim": ClaimState.WRITING, "writer": WRITER}
    assert explain(language(phase=Phase.Success, ended_ns=90, **held)).rule == "clear"
    assert explain(language(sent=100, is_writer_gone=True, **held)).rule == "write"
    assert explain(language(**ENDED, **(held | {"claim": ClaimState.ENDED}))).rule == "abort"


def test_a_whole_request_whose_encode_node_cannot_decide_any_more_is_for_its_own_side_to_end() -> None:
    """R36: it is lost; or it does not know of the request."""
    assert explain(language(is_whole=True, sent=2000, is_peer_lost=True)).rule == "peer lost"
    assert explain(language(is_whole=True, sent=2000, is_untold=True)).rule == "untold"


def test_rows_that_stay_in_their_blocks_wait_for_no_drain() -> None:
    """R35: all blocks are granted, so nothing waits for them."""
    kept = {"granted": 2000, "granted_blocks": 16, "known_blocks": 16, "drained_blocks": 0}
    assert explain(language(sent=1024, ready=1024, **kept)).rule == "encode"
    assert explain(language(sent=1024, **kept)).rule == "write"
    assert explain(language(sent=2000, **kept)).rule == "delivered"


def test_a_silent_node_is_named_with_its_silence() -> None:
    silent = THERE._replace(trouble="nothing was heard of it for 4.0 s", trouble_ns=40)
    said = explain(encode(destination(node=silent, sent=1024)))
    assert said.reason.startswith("nothing was heard of it for 4.0 s; it has to grant more")
    assert said.since_ns == 40
